//! From a host in a connection string to an open socket: names resolved, Unix sockets found, TCP set up. No protocol is
//! spoken here.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::conninfo::{Conninfo, ConninfoHost, SslMode, TcpKeepalives};
use super::error::ReplicationError;

/// Anything bytes can go through both ways.
pub(crate) trait PgSocket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> PgSocket for S {}

/// Where Debian's packages, and PostgreSQL as it comes, put the server's socket (`DEFAULT_PGSOCKET_DIR`).
const SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// The longest attempt on one address if the connection string sets no `connect_timeout`: a host that drops packets
/// would hold us for the two minutes of the kernel's own patience.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// One way to reach a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SocketTarget {
    /// Over TCP.
    Tcp(SocketAddr),
    /// A Unix socket; a name that begins with a zero byte is an abstract one.
    Unix(String),
}

/// An open socket on which nothing has been said yet.
pub(crate) enum RawSocket {
    /// Over TCP.
    Tcp(TcpStream),
    /// A Unix socket.
    Unix(UnixStream),
}

impl RawSocket {
    /// Our own address on it; `None` for a Unix socket.
    pub(crate) fn local_ip(&self) -> Option<std::net::IpAddr> {
        match self {
            RawSocket::Tcp(stream) => stream.local_addr().ok().map(|address| address.ip()),
            RawSocket::Unix(_) => None,
        }
    }
}

/// Whether an attempt is with TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TransportEncryption {
    /// It is not.
    Plain,
    /// It is.
    Tls,
}

/// The ways to try on one address, in order. Unix sockets never have TLS, whatever the mode (libpq: "sslmode is ignored
/// for Unix domain socket communication").
pub(crate) fn encryptions(mode: SslMode, address: &SocketTarget) -> &'static [TransportEncryption] {
    match (mode, address) {
        (_, SocketTarget::Unix(_)) | (SslMode::Disable, _) => &[TransportEncryption::Plain],
        (SslMode::Allow, _) => &[TransportEncryption::Plain, TransportEncryption::Tls],
        (SslMode::Prefer, _) => &[TransportEncryption::Tls, TransportEncryption::Plain],
        (SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull, _) => &[TransportEncryption::Tls],
    }
}

/// How long one attempt may take.
pub(crate) fn attempt_limit(info: &Conninfo) -> Duration {
    info.connect_timeout.unwrap_or(CONNECT_TIMEOUT)
}

/// The directory of sockets that a host without a name means.
pub(crate) fn default_socket_dir(port: u16) -> &'static str {
    let [first, second] = SOCKET_DIRS;
    let has_socket = |dir: &str| Path::new(dir).join(format!(".s.PGSQL.{port}")).exists();
    if !has_socket(first) && has_socket(second) { second } else { first }
}

/// All addresses of a host.
pub(crate) async fn resolve_addresses(host: &ConninfoHost) -> Result<Vec<SocketTarget>, ReplicationError> {
    let port = host.port;
    if let Some(address) = host.address {
        return Ok(vec![SocketTarget::Tcp(SocketAddr::new(address, port))]);
    }
    let unix = |dir: &str| match dir.strip_prefix('@') {
        Some(name) => SocketTarget::Unix(format!("\0{name}/.s.PGSQL.{port}")),
        None => SocketTarget::Unix(format!("{}/.s.PGSQL.{port}", dir.trim_end_matches('/'))),
    };
    if let Some(dir) = host.socket_dir() {
        return Ok(vec![unix(dir)]);
    }
    let Some(name) = host.name.as_deref() else { return Ok(vec![unix(default_socket_dir(port))]) };
    let failed = |source| ReplicationError::Connect { host: host.to_string(), source };
    let found: Vec<SocketTarget> =
        tokio::net::lookup_host((name, port)).await.map_err(failed)?.map(SocketTarget::Tcp).collect();
    if found.is_empty() {
        return Err(failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address")));
    }
    Ok(found)
}

/// Opens a socket to `address`.
pub(crate) async fn open_socket(address: &SocketTarget, info: &Conninfo) -> io::Result<RawSocket> {
    match address {
        SocketTarget::Tcp(address) => {
            let stream = TcpStream::connect(address).await?;
            stream.set_nodelay(true)?;
            set_keepalives(&stream, info.keepalives)?;
            Ok(RawSocket::Tcp(stream))
        }
        SocketTarget::Unix(path) => {
            let stream = UnixStream::connect(path).await?;
            if let Some(wanted) = &info.require_peer {
                let uid = stream.peer_cred()?.uid();
                let owner = user_name(uid).unwrap_or_else(|| uid.to_string());
                if owner != *wanted {
                    let problem = format!("the server runs as user {owner}, requirepeer wants {wanted}");
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, problem));
                }
            }
            Ok(RawSocket::Unix(stream))
        }
    }
}

fn set_keepalives(stream: &TcpStream, wanted: TcpKeepalives) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_socket_keepalive(stream, wanted.enabled)?;
    if !wanted.enabled {
        return Ok(());
    }
    if let Some(idle) = wanted.idle {
        sockopt::set_tcp_keepidle(stream, idle)?;
    }
    if let Some(interval) = wanted.interval {
        sockopt::set_tcp_keepintvl(stream, interval)?;
    }
    if let Some(count) = wanted.count {
        sockopt::set_tcp_keepcnt(stream, count)?;
    }
    if let Some(timeout) = wanted.user_timeout {
        sockopt::set_tcp_user_timeout(stream, u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX))?;
    }
    Ok(())
}

/// The name of the operating system's user, as `/etc/passwd` has it; libpq connects as this user if it isn't told
/// otherwise.
pub(crate) fn current_user() -> Option<String> {
    user_name(rustix::process::geteuid().as_raw())
}

fn user_name(uid: u32) -> Option<String> {
    let text = std::fs::read_to_string("/etc/passwd").ok()?;
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::{SocketTarget, TransportEncryption, encryptions, resolve_addresses};
    use crate::postgres::wire::conninfo::{Conninfo, LibpqEnvironment, SslMode};

    #[tokio::test]
    async fn hosts_lead_to_addresses_without_a_resolver_where_possible() {
        let info = Conninfo::parse("host=/run/pg/,@a/b,::1 port=7", &LibpqEnvironment::new()).unwrap();
        let mut found = Vec::new();
        for host in &info.hosts {
            found.extend(resolve_addresses(host).await.unwrap());
        }
        let expected = [
            SocketTarget::Unix("/run/pg/.s.PGSQL.7".into()),
            SocketTarget::Unix("\0a/b/.s.PGSQL.7".into()),
            SocketTarget::Tcp("[::1]:7".parse().unwrap()),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_unix_socket_never_has_tls() {
        assert_eq!(encryptions(SslMode::VerifyFull, &SocketTarget::Unix("/x".into())), [TransportEncryption::Plain]);
        assert_eq!(
            encryptions(SslMode::Require, &SocketTarget::Tcp("[::1]:7".parse().unwrap())),
            [TransportEncryption::Tls]
        );
    }
}
