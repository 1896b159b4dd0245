//! Which ports of this machine are in use: asked before a server is started here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Whether another process has the port on one of these addresses, which are as in `listen_addresses`.
#[must_use]
pub fn is_port_taken(listen_addresses: &str, port: u16) -> bool {
    let names = listen_addresses.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.flat_map(addresses_of).any(
        |address| matches!(TcpListener::bind((address, port)), Err(error) if error.kind() == io::ErrorKind::AddrInUse),
    )
}

/// The addresses of a name. A name that only a resolver knows is one of this machine's, so that its port
/// is looked for on all of them.
fn addresses_of(name: &str) -> Vec<IpAddr> {
    match (name, name.parse()) {
        (_, Ok(address)) => vec![address],
        ("localhost", _) => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        _ => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    }
}

/// Whether a process answers on the socket of a server with this port in this directory.
#[must_use]
pub fn is_socket_taken(socket_dir: &Path, port: u16) -> bool {
    UnixStream::connect(socket_dir.join(format!(".s.PGSQL.{port}"))).is_ok()
}

/// A port that no process has at the moment.
///
/// # Errors
/// What the operating system said.
pub fn free_port() -> io::Result<u16> {
    Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use super::{free_port, is_port_taken, is_socket_taken};

    #[test]
    fn a_port_is_taken_as_long_as_a_process_has_it() {
        let holder = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = holder.local_addr().unwrap().port();
        for addresses in ["localhost", "127.0.0.1", "*", "10.0.0.255, localhost"] {
            assert!(is_port_taken(addresses, port), "{addresses}");
        }
        assert!(!is_port_taken("", port) && !is_port_taken("127.0.0.2", port));
        drop(holder);
        assert!(!is_port_taken("127.0.0.1", free_port().unwrap()));
    }

    #[test]
    fn a_socket_is_taken_only_if_a_process_answers() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join(".s.PGSQL.5432")).unwrap();
        assert!(is_socket_taken(dir.path(), 5432) && !is_socket_taken(dir.path(), 5433));
        drop(listener);
        assert!(!is_socket_taken(dir.path(), 5432), "a file that a killed server left");
    }
}
