//! Starting a server on what was written, to see that it loads and what it then has.
//!
//! It listens on a private Unix socket only. It is told that it is the replica of a server that isn't there, for a
//! replica drops no expired keys and writes nothing of its own: so its counts are those of the snapshot to the key, and
//! the files stay as they were written. Where commands follow the snapshot, it is compared how many bytes of both it
//! has read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::error::RestoreError;
use super::placement::{DataFileForm, PlacedFiles};
use super::redis_conf::DataFileNames;
use super::server_options;
use crate::base::clock::SharedClock;
use crate::redis::format::server_version::RedisVersion;
use crate::redis::wire::{RedisAddress, RedisConnection, RedisEndpoint, RedisLogin, RedisTlsFiles, ServerInfo};

/// Between two looks at a server that loads.
const LOAD_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long an ended server may take to close its files; then it is killed. It has nothing to write.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);
/// Lines of a server's log that are kept for the message: a crash report can be long, and the reason stands before it.
const MAX_LOG_LINES: usize = 60;
/// The longest path of a Unix socket (`sun_path`), with some room.
const MAX_SOCKET_PATH_BYTES: usize = 100;

/// What a server had after loading.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct LoadedData {
    /// Which server it was.
    pub server: String,
    /// Keys by database.
    pub keys: BTreeMap<u64, u64>,
    /// Whether these were compared with the snapshot: they can't be where commands follow it.
    pub compared: bool,
}

/// Asks a program which server it is.
///
/// # Errors
/// It can't be run, or is no server.
pub async fn query_server_version(program: &Path) -> Result<RedisVersion, RestoreError> {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output().await;
    let output = output.map_err(|source| RestoreError::StartServer { program: program.to_owned(), source })?;
    let text = String::from_utf8_lossy(&output.stdout);
    let short = || text.chars().take(200).collect();
    RedisVersion::parse_program_output(&text)
        .ok_or_else(|| RestoreError::NotAServerProgram { program: program.to_owned(), output: short() })
}

/// Starts `program` on what was written, waits until it has loaded, compares, and ends it again.
///
/// # Errors
/// It does not load, or has other keys than the snapshot.
pub async fn check_server_loads(
    program: &Path,
    placed: &PlacedFiles,
    names: &DataFileNames,
    clock: &SharedClock,
) -> Result<LoadedData, RestoreError> {
    let socket = socket_path(&placed.dir);
    let mut running = TrialServer::start(program, placed, names, &socket)?;
    // On an error it is killed when it is dropped.
    let (connection, info) = running.await_loaded(&socket, clock).await?;
    running.shut_down(connection, clock).await;
    compare_keys(&info, placed)
}

/// In the folder itself, unless its name is too long.
fn socket_path(dir: &Path) -> PathBuf {
    let inside = dir.join(".walkeep.sock");
    if inside.as_os_str().len() < MAX_SOCKET_PATH_BYTES {
        return inside;
    }
    PathBuf::from(format!("/tmp/.walkeep-{}.sock", std::process::id()))
}

/// A server under way; killed when dropped.
struct TrialServer {
    program: PathBuf,
    child: Child,
    log: Vec<JoinHandle<Vec<String>>>,
}

impl TrialServer {
    fn start(
        program: &Path,
        placed: &PlacedFiles,
        names: &DataFileNames,
        socket: &Path,
    ) -> Result<TrialServer, RestoreError> {
        let mut command = Command::new(program);
        command.args(server_options::server_options(placed, names));
        command.args(["--port", "0", "--unixsocketperm", "700", "--daemonize", "no", "--logfile", ""]);
        command.args(["--save", "", "--auto-aof-rewrite-percentage", "0", "--aof-load-truncated", "no"]);
        command.args(["--replicaof", "127.0.0.1", "1"]).arg("--unixsocket").arg(socket);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let started = command.spawn();
        let mut child = started.map_err(|source| RestoreError::StartServer { program: program.to_owned(), source })?;
        let log = [child.stdout.take().map(|out| tokio::spawn(read_last_lines(out)))];
        let errors = [child.stderr.take().map(|out| tokio::spawn(read_last_lines(out)))];
        let log = log.into_iter().chain(errors).flatten().collect();
        Ok(TrialServer { program: program.to_owned(), child, log })
    }

    /// Waits until the server has loaded everything, however long that takes.
    async fn await_loaded(
        &mut self,
        socket: &Path,
        clock: &SharedClock,
    ) -> Result<(RedisConnection, ServerInfo), RestoreError> {
        let server = RedisEndpoint::new(
            RedisAddress::Unix(socket.to_owned()),
            RedisLogin::default(),
            RedisTlsFiles::default(),
            SharedClock::clone(clock),
        );
        loop {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.exit_error(status).await);
            }
            if let Ok(mut connection) = RedisConnection::connect(&server).await {
                match connection.query_info().await {
                    Ok(info) if info.get("loading") == Some("0") => return Ok((connection, info)),
                    // It loads, or it ends: the next look tells.
                    Ok(_) | Err(_) => {}
                }
            }
            clock.sleep(LOAD_POLL_INTERVAL).await;
        }
    }

    async fn exit_error(&mut self, status: ExitStatus) -> RestoreError {
        let mut log = Vec::new();
        for lines in self.log.drain(..) {
            log.extend(lines.await.unwrap_or_default());
        }
        log.push(format!("{} ended with {status}", self.program.display()));
        RestoreError::ServerExited { program: self.program.clone(), log: log.join("\n") }
    }

    /// Ends the server, which has nothing to save.
    async fn shut_down(mut self, mut connection: RedisConnection, clock: &SharedClock) {
        // There is no answer: the connection closes.
        drop(connection.call(&[b"SHUTDOWN", b"NOSAVE"]).await);
        let ended = tokio::select! {
            ended = self.child.wait() => ended.is_ok(),
            () = clock.sleep(SHUTDOWN_TIMEOUT) => false,
        };
        if !ended {
            tracing::warn!("the server that was started to check does not end by itself and is killed");
            drop(self.child.kill().await);
        }
    }
}

async fn read_last_lines(out: impl AsyncRead + Unpin) -> Vec<String> {
    let (mut lines, mut last) = (BufReader::new(out).lines(), std::collections::VecDeque::new());
    while let Ok(Some(line)) = lines.next_line().await {
        // A server that cannot load a file checks it, and says what it counted in it.
        if line.starts_with('[') {
            continue;
        }
        if last.len() == MAX_LOG_LINES {
            last.pop_front();
        }
        last.push_back(line);
    }
    last.into()
}

fn compare_keys(info: &ServerInfo, placed: &PlacedFiles) -> Result<LoadedData, RestoreError> {
    let count = |number: u64| {
        let line = info.get(&format!("db{number}"))?;
        line.split(',').find_map(|part| part.strip_prefix("keys="))?.parse::<u64>().ok()
    };
    let keys: BTreeMap<u64, u64> = (0..placed.databases).filter_map(|db| Some((db, count(db)?))).collect();
    let compared = placed.commands == 0 && placed.walk.stopped.is_none();
    let server = format!("{} {}", info.flavour(), info.version());
    // What it says it has read of append-only files: all of what was written, or it took other files, or not all of
    // them.
    let read =
        info.number("aof_current_size").filter(|read| placed.form != DataFileForm::Dump && *read != placed.bytes);
    if let Some(read) = read {
        return Err(RestoreError::ContentDiffers(format!(
            "{server} has loaded {read} bytes of append-only files, of {} that were written",
            placed.bytes
        )));
    }
    if compared {
        let expected: BTreeMap<u64, u64> = placed
            .walk
            .databases
            .iter()
            .map(|(number, database)| (*number, database.keys.saturating_sub(database.empty)))
            .filter(|(_, keys)| *keys > 0)
            .collect();
        if keys != expected {
            return Err(RestoreError::ContentDiffers(format!(
                "{} has {}, the snapshot {}",
                server,
                list_key_counts(&keys),
                list_key_counts(&expected)
            )));
        }
    }
    Ok(LoadedData { server, keys, compared })
}

fn list_key_counts(keys: &BTreeMap<u64, u64>) -> String {
    match keys.is_empty() {
        true => "no keys".to_owned(),
        false => keys.iter().map(|(db, keys)| format!("{keys} in db{db}")).collect::<Vec<_>>().join(", "),
    }
}
