//! Where a restored server listens. A copy beside the original, which has the port already, gets a free port and a
//! socket in a directory of its own, and nothing else reaches it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rand::TryRng;
use rand::rngs::SysRng;

use super::error::{ServerStartError, io_error};
use super::postmaster::ServerCommand;
use crate::postgres::wire::local_port::{free_port, is_port_taken, is_socket_taken};

/// Where private sockets are made: the path of a socket is limited to 107 bytes (`sun_path`).
const SOCKET_PARENT: &str = "/tmp";

/// How a started server is reached.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct ServerAddress {
    /// The first directory with its socket; none if it has no socket.
    pub socket_dir: Option<PathBuf>,
    /// Its port, which is also in the socket's name.
    pub port: u16,
    /// Whether it got a port and a socket of its own, because another server has the port that is configured.
    pub private: bool,
}

impl ServerAddress {
    /// The start of a command that connects to it.
    #[must_use]
    pub fn psql(&self) -> String {
        let host = self.socket_dir.as_ref().map_or_else(|| "127.0.0.1".to_owned(), |dir| dir.display().to_string());
        let host = if host.contains(char::is_whitespace) { format!("'{host}'") } else { host };
        format!("psql -h {host} -p {}", self.port)
    }
}

/// Finds out where the server would listen, and moves it elsewhere if another server is there.
pub(super) fn choose_address(server: &mut ServerCommand) -> Result<ServerAddress, ServerStartError> {
    let port: u16 = server.setting("port")?.parse().unwrap_or_default();
    let dirs = server.setting("unix_socket_directories")?;
    let dirs: Vec<PathBuf> = dirs.split(',').map(|dir| PathBuf::from(dir.trim().trim_matches('"'))).collect();
    let dirs: Vec<&PathBuf> = dirs.iter().filter(|dir| !dir.as_os_str().is_empty()).collect();
    let listen = server.setting("listen_addresses")?;
    let named = ServerAddress { socket_dir: dirs.first().map(|dir| (*dir).clone()), port, private: false };
    let taken = is_port_taken(&listen, port) || dirs.iter().any(|dir| is_socket_taken(dir, port));
    if taken && !sets_port(&server.options) {
        return move_to_private_socket(server);
    }
    // Another machine may lack the directory, and another user may not write there.
    if dirs.iter().any(|dir| !is_usable(dir, server)) && !taken {
        let dir = create_socket_dir(server)?;
        add_setting(server, "unix_socket_directories", &dir.display().to_string());
        return Ok(ServerAddress { socket_dir: Some(dir), ..named });
    }
    Ok(named)
}

fn move_to_private_socket(server: &mut ServerCommand) -> Result<ServerAddress, ServerStartError> {
    let port = free_port().map_err(io_error("find a free port for", &server.program))?;
    let dir = create_socket_dir(server)?;
    // The original's file with its process number is not the copy's to write.
    let pid_file = server.setting("external_pid_file")?;
    if !pid_file.is_empty() {
        add_setting(server, "external_pid_file", &dir.join("postmaster.pid").display().to_string());
    }
    // The original uses a log directory outside the data directory too. A server without network connections needs no
    // certificate, and this machine or user may not have its key.
    for (name, value) in [
        ("unix_socket_directories", dir.display().to_string()),
        ("port", port.to_string()),
        ("listen_addresses", String::new()),
        ("logging_collector", "off".to_owned()),
        ("log_destination", "stderr".to_owned()),
        ("ssl", "off".to_owned()),
    ] {
        add_setting(server, name, &value);
    }
    Ok(ServerAddress { socket_dir: Some(dir), port, private: true })
}

fn add_setting(server: &mut ServerCommand, name: &str, value: &str) {
    server.arguments.extend(["-c".into(), format!("{name}={value}").into()]);
}

/// Whether the user chose the port: then walkeep does not choose another.
fn sets_port(options: &[String]) -> bool {
    options.iter().flat_map(|options| options.split_whitespace()).any(|word| {
        word.starts_with("-p") || word.trim_start_matches("-c").trim_start_matches("--").starts_with("port=")
    })
}

fn is_usable(dir: &Path, server: &ServerCommand) -> bool {
    use rustix::fs::{Access, access};
    // Of another user this process knows no more than that the directory is there.
    if server.user.is_other() { dir.is_dir() } else { access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok() }
}

fn create_socket_dir(server: &ServerCommand) -> Result<PathBuf, ServerStartError> {
    let mut random = [0; 8];
    let path = Path::new(SOCKET_PARENT);
    let none = |error| io_error("draw a random name in", path)(std::io::Error::other(error));
    SysRng.try_fill_bytes(&mut random).map_err(none)?;
    let dir = path.join(format!("walkeep-{:016x}", u64::from_le_bytes(random)));
    // An existing directory, which may be another user's, is an error.
    DirBuilder::new().mode(0o700).create(&dir).map_err(io_error("create", &dir))?;
    server.user.give(&dir)?;
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::{ServerAddress, sets_port};

    #[test]
    fn a_port_that_the_user_chose_is_recognised() {
        for chosen in ["-p 5433", "-c port=5433", "-cport=1 -k /x", "--port=7"] {
            assert!(sets_port(&[chosen.to_owned()]), "{chosen}");
        }
        for other in ["-k /tmp", "-c work_mem=1MB", ""] {
            assert!(!sets_port(&[other.to_owned()]), "{other}");
        }
    }

    #[test]
    fn the_command_connects_to_the_socket_or_to_this_machine() {
        let address = ServerAddress { socket_dir: Some("/tmp/a b".into()), port: 5433, private: true };
        assert_eq!(address.psql(), "psql -h '/tmp/a b' -p 5433");
        assert_eq!(ServerAddress { socket_dir: None, ..address }.psql(), "psql -h 127.0.0.1 -p 5433");
    }
}
