//! One connection: dialled, encrypted where wanted, logged in, and then asked.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::address::{RedisAddress, RedisLogin, RedisPassword};
use super::error::{FIRST_REPLY, RedisError};
use super::info::ServerInfo;
use super::tls::{self, RedisTlsFiles};
use crate::base::clock::{Clock, SharedClock, timeout};
use crate::redis::format::resp::{RedisReply, encode_command};

/// A host that drops packets would hold us for the two minutes of the kernel's own patience.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The silence after which a server counts as gone: Redis's own `repl-timeout`, six times its
/// `repl-ping-replica-period`, and while a snapshot is prepared a line feed comes every second.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);
/// What one read may bring. A socket's buffer is a few hundred KiB; more would not come at once.
const READ_BUFFER_BYTES: usize = 512 << 10;
/// With less room than this a new buffer is begun.
const MIN_BUFFER_ROOM_BYTES: usize = 64 << 10;
/// The longest reply held in memory.
const MAX_REPLY_BYTES: usize = 32 << 20;

trait RedisSocket: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> RedisSocket for S {}

/// Where a server is, and how to get in.
#[derive(Clone, Debug)]
pub struct RedisEndpoint {
    /// Where it listens.
    pub address: RedisAddress,
    /// Who logs in.
    pub login: RedisLogin,
    /// What TLS is set up with, if the address wants it.
    pub tls: RedisTlsFiles,
    /// Where time comes from.
    pub clock: SharedClock,
    /// After how much silence it counts as gone.
    pub silence: Duration,
}

impl RedisEndpoint {
    /// A server with the usual limits.
    #[must_use]
    pub fn new(address: RedisAddress, login: RedisLogin, tls: RedisTlsFiles, clock: SharedClock) -> RedisEndpoint {
        RedisEndpoint { address, login, tls, clock, silence: SILENCE_TIMEOUT }
    }
}

/// A connection on which the login is done.
pub struct RedisConnection {
    socket: Box<dyn RedisSocket>,
    pub(super) input: BytesMut,
    peer: String,
    clock: SharedClock,
    silence: Duration,
    /// Whether it has answered anything, or is known to speak TLS.
    spoke: bool,
}

impl std::fmt::Debug for RedisConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl RedisConnection {
    /// Connects and logs in.
    ///
    /// # Errors
    /// The server can't be reached, or does not let us in.
    pub async fn connect(server: &RedisEndpoint) -> Result<RedisConnection, RedisError> {
        let peer = server.address.to_string();
        let dialled = timeout(&*server.clock, CONNECT_TIMEOUT, open_socket(server, &peer)).await;
        let (tls, tcp) = match server.address {
            RedisAddress::Tcp { tls, .. } => (tls, true),
            RedisAddress::Unix(_) => (false, false),
        };
        let during = if tls {
            "a TLS connection was opened; if that port speaks no TLS, write redis://"
        } else {
            "a connection was opened"
        };
        let socket = dialled.ok_or_else(|| RedisError::Silent {
            server: peer.clone(),
            during,
            seconds: CONNECT_TIMEOUT.as_secs(),
        })??;
        let (clock, silence) = (Arc::clone(&server.clock), server.silence);
        let mut connection =
            RedisConnection { socket, input: BytesMut::new(), peer, clock, silence, spoke: tls || !tcp };
        let password = server.login.password.as_ref().map(RedisPassword::reveal);
        match (&server.login.user, password) {
            // A user that has `nopass` is let in with any password (`checkPasswordBasedAuth`, acl.c), and never without
            // being named.
            (Some(user), password) => {
                connection.call(&[b"AUTH", user.as_bytes(), password.unwrap_or_default()]).await?;
            }
            (None, Some(password)) => {
                connection.call(&[b"AUTH", password]).await?;
            }
            (None, None) => {}
        }
        Ok(connection)
    }

    /// The server's address, for messages.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    pub(super) fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Sends a command and waits for its reply.
    ///
    /// # Errors
    /// An error reply, as what it means; or the connection.
    pub async fn call(&mut self, arguments: &[&[u8]]) -> Result<RedisReply, RedisError> {
        let command = String::from_utf8_lossy(arguments.first().copied().unwrap_or_default()).into_owned();
        self.send(&encode_command(arguments)).await?;
        match self.read_reply("a reply was awaited").await? {
            RedisReply::Error(message) => Err(RedisError::from_reply(&self.peer, &command, &message)),
            reply => Ok(reply),
        }
    }

    /// `INFO` with all of its usual sections.
    ///
    /// # Errors
    /// As [`RedisConnection::call`].
    pub async fn query_info(&mut self) -> Result<ServerInfo, RedisError> {
        let reply = self.call(&[b"INFO"]).await?;
        let text = match &reply {
            RedisReply::Bulk(bytes) => String::from_utf8_lossy(bytes),
            _ => return Err(RedisError::protocol(&self.peer, "INFO is answered with something else than text")),
        };
        Ok(ServerInfo::parse(&text))
    }

    /// For a caller that waits for more than the socket, and so counts the silence itself.
    ///
    /// # Errors
    /// The server has been silent for too long.
    pub fn check_silence(&self, silence: Duration) -> Result<(), RedisError> {
        if silence < self.silence { Ok(()) } else { Err(self.silence_error("the stream was followed")) }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> Result<(), RedisError> {
        let sent = async {
            self.socket.write_all(bytes).await?;
            self.socket.flush().await
        };
        match timeout(&*self.clock, self.silence, sent).await {
            Some(Ok(())) => Ok(()),
            Some(Err(source)) => Err(self.io_error(source, "something was sent")),
            None => Err(self.silence_error("something was sent")),
        }
    }

    /// Line feeds that come before a reply are signs of life.
    pub(super) async fn read_reply(&mut self, during: &'static str) -> Result<RedisReply, RedisError> {
        loop {
            self.skip_line_feeds();
            match RedisReply::parse(&self.input).map_err(|error| RedisError::resp(&self.peer, &error))? {
                Some((reply, len)) => {
                    drop(self.input.split_to(len));
                    self.spoke = true;
                    return Ok(reply);
                }
                None if self.input.len() > MAX_REPLY_BYTES => {
                    return Err(RedisError::protocol(
                        &self.peer,
                        format!("a reply of more than {MAX_REPLY_BYTES} bytes"),
                    ));
                }
                None => self.read_more(during).await?,
            }
        }
    }

    pub(super) fn skip_line_feeds(&mut self) {
        let feeds = self.input.iter().take_while(|byte| **byte == b'\n').count();
        drop(self.input.split_to(feeds));
    }

    /// Reads more. Cancel safe.
    pub(super) async fn read_more(&mut self, during: &'static str) -> Result<(), RedisError> {
        if self.input.capacity().saturating_sub(self.input.len()) < MIN_BUFFER_ROOM_BYTES {
            self.input.reserve(READ_BUFFER_BYTES);
        }
        let during = if self.spoke { during } else { FIRST_REPLY };
        let read = timeout(&*self.clock, self.silence, self.socket.read_buf(&mut self.input)).await;
        match read {
            Some(Ok(0)) => Err(RedisError::Closed { server: self.peer.clone(), during }),
            Some(Ok(_)) => Ok(()),
            Some(Err(source)) => Err(self.io_error(source, during)),
            None => Err(self.silence_error(during)),
        }
    }

    /// The bytes that have come, at least one. Cancel safe.
    pub(super) async fn read_bytes(&mut self, during: &'static str) -> Result<Bytes, RedisError> {
        if self.input.is_empty() {
            self.read_more(during).await?;
        }
        Ok(self.input.split().freeze())
    }

    fn io_error(&self, source: io::Error, during: &'static str) -> RedisError {
        let server = self.peer.clone();
        match source.kind() {
            // How an output buffer that is full, or a kill, looks from here.
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof => {
                RedisError::Closed { server, during }
            }
            _ => RedisError::socket(&server, source),
        }
    }

    fn silence_error(&self, during: &'static str) -> RedisError {
        RedisError::Silent { server: self.peer.clone(), during, seconds: self.silence.as_secs() }
    }
}

async fn open_socket(server: &RedisEndpoint, peer: &str) -> Result<Box<dyn RedisSocket>, RedisError> {
    let failed = |source| RedisError::socket(peer, source);
    let (host, port, tls) = match &server.address {
        RedisAddress::Unix(path) => return Ok(Box::new(UnixStream::connect(path).await.map_err(failed)?)),
        RedisAddress::Tcp { host, port, tls } => (host.as_str(), *port, *tls),
    };
    let stream = TcpStream::connect((host, port)).await.map_err(failed)?;
    stream.set_nodelay(true).map_err(failed)?;
    if !tls {
        return Ok(Box::new(stream));
    }
    let config = tls::tls_client_config(&server.tls)?;
    let name = ServerName::try_from(host.to_owned()).map_err(|bad| failed(io::Error::other(bad)))?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    Ok(Box::new(connected.map_err(failed)?))
}
