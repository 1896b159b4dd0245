//! The control socket: how a short-lived command hands its work to a running service, and asks how it does.
//!
//! A Unix socket in the state directory, for its owner alone. One request is one line of JSON, and so is its answer; a
//! connection carries any number of them, one after the other. What a request means is not known here: the service
//! brings a [`ControlHandler`].

use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::base::clock::{Clock, SharedClock, timeout};
use crate::base::durable;
use crate::base::error_kind::{ErrorKind, HasKind};

/// The socket's name in the state directory.
const SOCKET_NAME: &str = "control.sock";

/// The longest line in either direction: a path, a name and an error fit many times over.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// Connections served at once. PostgreSQL runs one `archive_command` at a time; a few more may ask for the status.
const MAX_CONNECTIONS: usize = 16;

/// How long a client waits for the service to take its connection and its request. A service that is alive does so in a
/// moment; one that is not must not hold up `archive_command`, which can do without it.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a connection may lie idle before the service closes it.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What a client asks.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum ControlRequest {
    /// Is anybody there?
    Ping,
    /// Archive this file of `pg_wal`.
    Push {
        /// The cluster's name in the configuration.
        cluster: String,
        /// The file, as an absolute path.
        path: PathBuf,
        /// The name PostgreSQL gives it.
        name: String,
    },
    /// How is it going?
    Status,
}

/// What the service answers.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum ControlResponse {
    /// Somebody is there.
    Pong {
        /// The service's version.
        version: String,
        /// The clusters it serves.
        clusters: Vec<String>,
        /// The repositories that it stores in; empty from a version that does not answer this.
        #[serde(default)]
        repositories: Vec<String>,
    },
    /// The file is archived, durable in every repository.
    Pushed {
        /// Whether it was there already.
        identical: bool,
    },
    /// The request was understood and taken; the answer will follow.
    Accepted,
    /// The service did not do it, and trying without the service would give the same.
    Refused {
        /// Why.
        why: String,
        /// Whether it may succeed later.
        transient: bool,
    },
    /// Not this service's business: do it yourself.
    NotMine,
    /// How it is going.
    Status {
        /// As the service describes it.
        status: serde_json::Value,
    },
}

/// Why a service could not be asked. Whoever can do without it does.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Nobody listens.
    #[error("no walkeep service listens at {path}")]
    NotListening {
        /// The socket.
        path: PathBuf,
    },
    /// It listens and does not answer, or not in time, or nonsense.
    #[error("the walkeep service at {path} does not answer: {why}")]
    NoAnswer {
        /// The socket.
        path: PathBuf,
        /// What happened.
        why: String,
    },
    /// The socket cannot be set up.
    #[error("cannot listen at {path}: {source}")]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another service listens.
    #[error("another walkeep service listens at {path} already; stop it first, or give this one another state-dir")]
    SocketInUse {
        /// The socket.
        path: PathBuf,
    },
}

impl HasKind for ControlError {
    fn kind(&self) -> ErrorKind {
        match self {
            ControlError::NotListening { .. } | ControlError::NoAnswer { .. } => ErrorKind::Unavailable,
            ControlError::Listen { .. } => ErrorKind::Failed,
            ControlError::SocketInUse { .. } => ErrorKind::Conflict,
        }
    }
}

/// Asks the service whose state directory this is, and waits up to `patience` for the answer once the request was
/// taken.
///
/// # Errors
/// [`ControlError::NotListening`] or [`ControlError::NoAnswer`]. After the latter the request may have been carried
/// out.
pub async fn send_request(
    state_dir: &Path,
    request: &ControlRequest,
    clock: &dyn Clock,
    patience: Duration,
) -> Result<ControlResponse, ControlError> {
    let path = state_dir.join(SOCKET_NAME);
    let silent = |why: &dyn std::fmt::Display| ControlError::NoAnswer { path: path.clone(), why: why.to_string() };
    let stream = match timeout(clock, ACCEPT_TIMEOUT, UnixStream::connect(&path)).await {
        Some(Ok(stream)) => stream,
        Some(Err(e)) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Err(ControlError::NotListening { path });
        }
        Some(Err(e)) => return Err(silent(&e)),
        None => return Err(silent(&"it does not take connections")),
    };
    let mut stream = BufReader::new(stream);
    write_message(&mut stream, request).await.map_err(|e| silent(&e))?;
    let mut limit = ACCEPT_TIMEOUT;
    loop {
        match timeout(clock, limit, read_message(&mut stream)).await {
            Some(Ok(Some(ControlResponse::Accepted))) => limit = patience,
            Some(Ok(Some(answer))) => return Ok(answer),
            Some(Ok(None)) => return Err(silent(&"it closed the connection")),
            Some(Err(e)) => return Err(silent(&e)),
            None => return Err(silent(&format_args!("nothing within {} seconds", limit.as_secs()))),
        }
    }
}

/// What a service does with a request.
pub trait ControlHandler: Send + Sync + 'static {
    /// The answer. Dropped if the service ends meanwhile.
    fn handle(&self, request: ControlRequest) -> impl Future<Output = ControlResponse> + Send;
}

/// The service's end of the socket. Dropping it removes the socket.
#[derive(Debug)]
pub struct ControlListener {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlListener {
    /// Listens in this state directory, which must exist. A socket that a crashed service left is replaced.
    ///
    /// # Errors
    /// [`ControlError::SocketInUse`] if a service answers there, or [`ControlError::Listen`].
    pub fn bind(state_dir: &Path) -> Result<ControlListener, ControlError> {
        use std::os::unix::fs::PermissionsExt;
        let path = state_dir.join(SOCKET_NAME);
        let failed = |source| ControlError::Listen { path: path.clone(), source };
        match std::os::unix::net::UnixStream::connect(&path) {
            Ok(_) => return Err(ControlError::SocketInUse { path }),
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(&path).map_err(failed)?,
            Err(_) => {}
        }
        // Bound under another name first: nobody may connect before the permissions are right.
        let hidden = state_dir.join(format!(".{SOCKET_NAME}.{}", std::process::id()));
        drop(fs::remove_file(&hidden));
        let listener = UnixListener::bind(&hidden).map_err(failed)?;
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600)).map_err(failed)?;
        durable::rename(&hidden, &path).map_err(|e| failed(io::Error::other(e)))?;
        Ok(ControlListener { listener, path })
    }

    /// Answers requests until dropped; requests in the making are then given up. Not cancel safe in that sense.
    pub async fn serve(&self, handler: Arc<impl ControlHandler>, clock: SharedClock) {
        let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            // Never closed.
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            let stream = match self.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of file descriptors, most likely; they come back as connections end.
                    tracing::warn!(%error, socket = %self.path.display(), "cannot take a connection");
                    clock.sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (handler, clock) = (Arc::clone(&handler), Arc::clone(&clock));
            connections.spawn(async move {
                // Whoever asked will see that the connection ended.
                drop(serve_connection(stream, &*handler, &*clock).await);
                drop(permit);
            });
            while connections.try_join_next().is_some() {}
        }
    }
}

impl Drop for ControlListener {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.path));
    }
}

async fn serve_connection(stream: UnixStream, handler: &impl ControlHandler, clock: &dyn Clock) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = timeout(clock, IDLE_TIMEOUT, read_message(&mut stream)).await.transpose()?.flatten() {
        if matches!(request, ControlRequest::Push { .. }) {
            write_message(&mut stream, &ControlResponse::Accepted).await?;
        }
        let answer = handler.handle(request).await;
        write_message(&mut stream, &answer).await?;
    }
    Ok(())
}

async fn write_message(stream: &mut BufReader<UnixStream>, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.get_mut().write_all(&line).await
}

/// The next message; `None` if the other end has closed.
async fn read_message<M: for<'de> Deserialize<'de>>(stream: &mut BufReader<UnixStream>) -> io::Result<Option<M>> {
    let mut line = Vec::new();
    stream.take(MAX_LINE_BYTES).read_until(b'\n', &mut line).await?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(serde_json::from_slice(&line)?)),
        Some(_) => Err(io::Error::new(io::ErrorKind::InvalidData, "half a message, or one that is too long")),
    }
}

#[cfg(test)]
mod tests {
    use super::{
        ControlError, ControlHandler, ControlListener, ControlRequest, ControlResponse, SOCKET_NAME, send_request,
    };
    use crate::base::clock::SystemClock;
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;
    use std::sync::Arc;
    use std::time::Duration;

    const PATIENCE: Duration = Duration::from_secs(10);

    struct Echo;

    impl ControlHandler for Echo {
        async fn handle(&self, request: ControlRequest) -> ControlResponse {
            match request {
                ControlRequest::Ping => ControlResponse::Pong {
                    version: "test".into(),
                    clusters: vec!["main".into()],
                    repositories: vec!["local".into()],
                },
                ControlRequest::Push { name, .. } => ControlResponse::Refused { why: name, transient: true },
                ControlRequest::Status => std::future::pending().await,
            }
        }
    }

    fn push(name: &str) -> ControlRequest {
        ControlRequest::Push { cluster: "main".into(), path: PathBuf::from("/x"), name: name.into() }
    }

    #[tokio::test]
    async fn asks_and_is_answered_by_nobody_but_the_owner() {
        let dir = tempfile::tempdir().unwrap();
        let clock = SystemClock::shared();
        assert!(matches!(
            send_request(dir.path(), &ControlRequest::Ping, &*clock, PATIENCE).await,
            Err(ControlError::NotListening { .. })
        ));
        let listener = ControlListener::bind(dir.path()).unwrap();
        let mode = std::fs::metadata(dir.path().join(SOCKET_NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(matches!(ControlListener::bind(dir.path()), Err(ControlError::SocketInUse { .. })));
        let serving = listener.serve(Arc::new(Echo), Arc::clone(&clock));
        let asking = async {
            let pong = ControlResponse::Pong {
                version: "test".into(),
                clusters: vec!["main".into()],
                repositories: vec!["local".into()],
            };
            assert_eq!(send_request(dir.path(), &ControlRequest::Ping, &*clock, PATIENCE).await.unwrap(), pong);
            let refused = ControlResponse::Refused { why: "a".into(), transient: true };
            assert_eq!(send_request(dir.path(), &push("a"), &*clock, PATIENCE).await.unwrap(), refused);
            let late = send_request(dir.path(), &push(&"x".repeat(70_000)), &*clock, PATIENCE).await;
            assert!(matches!(late, Err(ControlError::NoAnswer { .. })), "a line without end");
        };
        tokio::select! { () = serving => unreachable!(), () = asking => {} }
        drop(listener);
        assert!(!dir.path().join(SOCKET_NAME).exists());
    }

    #[tokio::test]
    async fn a_service_that_hangs_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let clock = crate::base::clock::ManualClock::jumping_from(jiff::Timestamp::UNIX_EPOCH);
        // Connections pile up in the kernel's queue; nobody takes them.
        let _listener = ControlListener::bind(dir.path()).unwrap();
        let error = send_request(dir.path(), &ControlRequest::Ping, &clock, PATIENCE).await.unwrap_err();
        assert!(matches!(error, ControlError::NoAnswer { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_socket_left_by_a_crash_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        // Dropping std's listener leaves its file, as a crash does.
        drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET_NAME)).unwrap());
        let clock = SystemClock::shared();
        assert!(matches!(
            send_request(dir.path(), &ControlRequest::Ping, &*clock, PATIENCE).await,
            Err(ControlError::NotListening { .. })
        ));
        ControlListener::bind(dir.path()).unwrap();
    }

    #[tokio::test]
    async fn nonsense_ends_its_own_connection_only() {
        let dir = tempfile::tempdir().unwrap();
        let clock = SystemClock::shared();
        let listener = ControlListener::bind(dir.path()).unwrap();
        let serving = listener.serve(Arc::new(Echo), Arc::clone(&clock));
        let asking = async {
            let mut other = std::os::unix::net::UnixStream::connect(dir.path().join(SOCKET_NAME)).unwrap();
            other.write_all(b"{\"request\":\"format-disk\"}\n\xff\n").unwrap();
            assert!(send_request(dir.path(), &ControlRequest::Ping, &*clock, PATIENCE).await.is_ok());
        };
        tokio::select! { () = serving => unreachable!(), () = asking => {} }
    }
}
