//! Starting a restored server, waiting until it has reached its target, and finding out what it reached.
//!
//! The server is a child process ([`postmaster`]), so that its end is seen whatever ends it. What it reached is read
//! from what it writes for programs: `pg_control`, the status line of `postmaster.pid`, and the history of the timeline
//! that it begins, whose last line has the end of the old one. No connection is needed, except to see that a server
//! pauses. Nothing is decided by the words in its log ([`server_log`]), which are for people.

mod address;
mod error;
mod log_excerpt;
mod postmaster;
mod programs;
mod replay_progress;
mod server_log;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use super::plan::{CommitPoint, ProvedRestore};
use super::resolve_target::RecoveryStop;
use super::target::RecoveryTargetAction;
use crate::base::blocking::run_blocking;
use crate::base::clock::SharedClock;
use crate::base::retry::ErrorClass;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::{DbState, PgControl, RequiredSettings};
use crate::postgres::format::timeline::{TimelineHistory, TimelineId};
use crate::postgres::sql::SqlSession;
use crate::postgres::wire::{Conninfo, LibpqEnvironment};

use address::choose_address;
use error::io_error;
use postmaster::{Postmaster, ServerCommand};
use programs::ServerUser;
use replay_progress::ReplayWatch;
use server_log::ServerLog;

pub use address::ServerAddress;
pub use error::ServerStartError;
pub use log_excerpt::LogExcerpt;
pub(super) use programs::{find_programs, major_version_of};

/// How often the server's files are looked at: often enough not to add to a short replay.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// How often it is looked for progress, which reads files of each of the server's processes.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// How long a server may do nothing before it is given up. A `restore_command` that waits for a store ends sooner.
const DEFAULT_START_TIMEOUT: Duration = Duration::from_secs(600);

/// How long a server that may pause must do nothing before the user is asked to look, if walkeep may not.
const QUIET_BEFORE_SILENT: Duration = Duration::from_secs(10);

/// Where the server's first words go, in its data directory; later ones go where its own settings say.
pub const START_LOG: &str = "walkeep-start.log";

/// How a restored server is started.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServerStart {
    /// Its data directory.
    pub pgdata: PathBuf,
    /// The directory with `pg_ctl` and `postgres`, if the user named one.
    pub bindir: Option<PathBuf>,
    /// Other directories to look for them in, such as those of `PATH`.
    pub search: Vec<PathBuf>,
    /// More options for the server, as `pg_ctl -o` takes them.
    pub options: Vec<String>,
    /// Its `postgresql.conf`, if that is not in the data directory.
    pub config_file: Option<PathBuf>,
    /// How long it may make no progress.
    pub timeout: Duration,
}

/// How far a started server is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ReplayProgress {
    /// About how far replay has come.
    pub replayed: Option<Lsn>,
    /// How long it has been doing nothing.
    pub idle: Duration,
}

/// What a started server came to.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct ReachedTarget {
    /// What it did at its target.
    pub action: RecoveryTargetAction,
    /// The end of the last record it replayed, where the server says so.
    pub lsn: Option<Lsn>,
    /// The timeline on which it continues.
    pub timeline: TimelineId,
    /// The last transaction that was replayed.
    pub last_commit: Option<CommitPoint>,
    /// How long starting and replay took.
    pub seconds: f64,
    /// How it is reached, unless it has stopped at its target.
    pub address: Option<ServerAddress>,
}

impl ServerStart {
    /// The server of a data directory, as it is configured.
    #[must_use]
    pub const fn new(pgdata: PathBuf) -> ServerStart {
        ServerStart {
            pgdata,
            bindir: None,
            search: Vec::new(),
            options: Vec::new(),
            config_file: None,
            timeout: DEFAULT_START_TIMEOUT,
        }
    }

    /// Whether a server of this major version can be started here at all: asked before the files are restored.
    ///
    /// # Errors
    /// There are no programs, or the directory is root's.
    pub fn check(&self, major: u32) -> Result<(), ServerStartError> {
        find_programs(major, self.bindir.as_deref(), &self.search)?;
        ServerUser::of(&self.pgdata).map(drop)
    }

    /// Starts the server and waits until it has done at its target what it was told to, as long as it makes progress.
    ///
    /// # Errors
    /// [`ServerStartError`].
    pub async fn run(
        &self,
        proved: &ProvedRestore,
        action: RecoveryTargetAction,
        clock: &SharedClock,
    ) -> Result<ReachedTarget, ServerStartError> {
        self.run_watched(proved, action, clock, &|_| {}).await
    }

    /// As [`ServerStart::run`], with a call of `progress` every second.
    ///
    /// # Errors
    /// [`ServerStartError`].
    pub async fn run_watched(
        &self,
        proved: &ProvedRestore,
        action: RecoveryTargetAction,
        clock: &SharedClock,
        progress: &(dyn Fn(ReplayProgress) + Sync),
    ) -> Result<ReachedTarget, ServerStartError> {
        let begun = clock.elapsed();
        let (start, before) = (self.clone(), read_pg_control(&self.pgdata));
        let mut server = run_blocking(move || start.launch(before)).await??;
        let mut watch = ReplayWatch::default();
        let mut looked = None;
        let (timeline, lsn) = loop {
            if let Some(seen) = server.poll_reached(action, watch.idle(clock.elapsed())).await? {
                break seen;
            }
            let now = clock.elapsed();
            if looked.is_none_or(|looked| now.saturating_sub(looked) >= WATCH_INTERVAL) {
                looked = Some(now);
                watch.look(&server.process, &self.pgdata, read_pg_control(&self.pgdata).as_ref(), now);
                progress(ReplayProgress { replayed: watch.position(), idle: watch.idle(now) });
                if watch.idle(now) >= self.timeout {
                    return Err(server.no_progress_error(&watch, now));
                }
            }
            clock.sleep(POLL_INTERVAL).await;
        };
        if let Some(reached) = lsn {
            check_reached(reached, proved.stop)?;
        }
        let seconds = clock.elapsed().saturating_sub(begun).as_secs_f64();
        let address = (action != RecoveryTargetAction::Shutdown).then_some(server.address);
        Ok(ReachedTarget { action, lsn, timeline, last_commit: proved.commits.last, seconds, address })
    }

    /// The directory with the programs of the data directory's own major version, which alone can read it.
    fn own_programs(&self) -> Result<PathBuf, ServerStartError> {
        let file = self.pgdata.join("PG_VERSION");
        let text = fs::read_to_string(&file).map_err(io_error("read", &file))?;
        let bad = |_| io_error("understand", &file)(std::io::ErrorKind::InvalidData.into());
        let major: u32 = text.trim().parse().map_err(bad)?;
        find_programs(major, self.bindir.as_deref(), &self.search)
    }

    fn launch(&self, before: Option<PgControl>) -> Result<StartedServer, ServerStartError> {
        let programs = self.own_programs()?;
        let mut arguments: Vec<OsString> = vec!["-D".into(), self.pgdata.clone().into()];
        let mut set = |name: &str, path: &Path| {
            let mut setting = OsString::from(format!("{name}="));
            setting.push(path);
            arguments.extend(["-c".into(), setting]);
        };
        if let Some(file) = &self.config_file {
            set("config_file", file);
        }
        // A configuration file may name another directory, for example that of the server it was written for.
        set("data_directory", &self.pgdata);
        let user = ServerUser::of(&self.pgdata)?;
        let mut command =
            ServerCommand { program: programs.join("postgres"), user, arguments, options: self.options.clone() };
        let address = choose_address(&mut command)?;
        let start_log = self.pgdata.join(START_LOG);
        let log = ServerLog::find(&command, &self.pgdata, start_log.clone())?;
        let process = command.start(&start_log)?;
        // A server that starts has what `pg_control` demands; else it would end.
        let satisfied = before.as_ref().map(|before| before.required);
        Ok(StartedServer { pgdata: self.pgdata.clone(), before, command, process, address, log, satisfied })
    }
}

/// A server that was started.
struct StartedServer {
    pgdata: PathBuf,
    /// `pg_control` as it was before the start.
    before: Option<PgControl>,
    command: ServerCommand,
    process: Postmaster,
    address: ServerAddress,
    log: ServerLog,
    /// The demands of the WAL that its settings are known to meet.
    satisfied: Option<RequiredSettings>,
}

impl StartedServer {
    /// What the server has come to, once it has done what it was told; `None` while it has not. The position where
    /// replay ended is known of one that was promoted or pauses. `idle` is how long it has been doing nothing.
    async fn poll_reached(
        &mut self,
        action: RecoveryTargetAction,
        idle: Duration,
    ) -> Result<Option<(TimelineId, Option<Lsn>)>, ServerStartError> {
        // Asked before the files are read, which then are as the server left them.
        let ended = self.process.ended();
        let Some(control) = read_pg_control(&self.pgdata) else {
            return match ended {
                Some(how) => Err(self.ended_error(how).await),
                None => Ok(None),
            };
        };
        if let Some(how) = ended {
            let stopped = control.state == DbState::ShutDownInRecovery && self.before.as_ref() != Some(&control);
            if action == RecoveryTargetAction::Shutdown && stopped {
                return Ok(Some((control.checkpoint_timeline, None)));
            }
            return Err(self.ended_error(how).await);
        }
        if !self.takes_connections() {
            return Ok(None);
        }
        match action {
            RecoveryTargetAction::Promote if control.state == DbState::Production => {
                let timeline = control.checkpoint_timeline;
                // The new timeline's checkpoint may come later than its history and the first transactions.
                Ok(newest_switch_point(&self.pgdata, timeline).map(|(timeline, lsn)| (timeline, Some(lsn))))
            }
            RecoveryTargetAction::Pause => {
                self.check_settings(&control).await?;
                let paused = self.poll_paused(idle).await?;
                Ok(paused.map(|lsn| (control.checkpoint_timeline, lsn)))
            }
            RecoveryTargetAction::Promote | RecoveryTargetAction::Shutdown => {
                self.check_settings(&control).await.map(|()| None)
            }
        }
    }

    /// Whether `postmaster.pid` is this server's and has the status of one that takes connections, in recovery those
    /// that read only (`pidfile.h`).
    fn takes_connections(&self) -> bool {
        let Ok(text) = fs::read_to_string(self.pgdata.join("postmaster.pid")) else { return false };
        let line = |number: usize| text.lines().nth(number).map(str::trim).unwrap_or_default();
        line(0) == self.process.pid.to_string() && line(7) == "ready"
    }

    /// The position at which a server pauses, once it does. One that lets no process in to ask, and does nothing any
    /// more, cannot be waited for.
    async fn poll_paused(&self, idle: Duration) -> Result<Option<Option<Lsn>>, ServerStartError> {
        let host = self.address.socket_dir.as_ref().map_or_else(|| "127.0.0.1".into(), |dir| dir.to_string_lossy());
        let host = host.replace('\\', "\\\\").replace('\'', "\\'");
        let conninfo = format!("host='{host}' port={} user=postgres dbname=postgres", self.address.port);
        let Ok(info) = Conninfo::parse(&conninfo, &LibpqEnvironment::default()) else { return Ok(None) };
        let asked = match SqlSession::connect(&info).await {
            Ok(sql) => sql.paused_at().await,
            Err(error) => Err(error),
        };
        match asked {
            Ok(paused) => Ok(paused),
            Err(error) if error.class() == ErrorClass::Permanent => {
                if let Some(paused) = self.ask_as_server_user().await? {
                    return Ok(paused);
                }
                if idle < QUIET_BEFORE_SILENT {
                    return Ok(None);
                }
                let (pid, connect) = (self.process.pid, self.address.psql());
                Err(ServerStartError::Silent { pid, why: error.to_string(), connect })
            }
            Err(_not_yet) => Ok(None),
        }
    }

    /// The same asked by `psql` as the server's user, if this process is root: with `peer`, the usual method for
    /// sockets, root is not let in as `postgres`. `None` if that is no way.
    async fn ask_as_server_user(&self) -> Result<Option<Option<Option<Lsn>>>, ServerStartError> {
        let psql = self.command.program.with_file_name("psql");
        let Some(dir) = self.address.socket_dir.clone().filter(|_| self.command.user.is_other() && psql.exists())
        else {
            return Ok(None);
        };
        let mut command = self.command.user.command(&psql);
        command.arg("-h").arg(dir).args(["-p", &self.address.port.to_string(), "-U", "postgres", "-wXAtq", "-c"]);
        command.arg("SELECT pg_catalog.pg_is_wal_replay_paused(), pg_catalog.pg_last_wal_replay_lsn()");
        command.arg("postgres").stdout(Stdio::piped());
        let output = run_blocking(move || command.output()).await?.map_err(io_error("run", &psql))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some((paused, lsn)) = text.trim().split_once('|').filter(|_| output.status.success()) else {
            return Ok(None);
        };
        Ok(Some((paused == "t").then(|| lsn.parse().ok())))
    }

    /// A server of 14 or later that already takes connections does not end if its settings are below those of the WAL,
    /// but waits until it is shut down (`RecoveryRequiresIntParameter`). `pg_control` has what the WAL demands.
    async fn check_settings(&mut self, control: &PgControl) -> Result<(), ServerStartError> {
        if control.state != DbState::ArchiveRecovery || self.satisfied == Some(control.required) {
            return Ok(());
        }
        for (name, needed) in control.required.names_and_values() {
            let command = self.command.clone();
            let value = run_blocking(move || command.setting(name)).await??;
            if value.parse::<u32>().is_ok_and(|value| value < needed) {
                let why = format!("{name} = {value} in its settings, and the WAL needs {needed}");
                return Err(ServerStartError::ServerStuck { pid: self.process.pid, why, log: self.log.excerpt() });
            }
        }
        self.satisfied = Some(control.required);
        Ok(())
    }

    async fn ended_error(&self, how: std::process::ExitStatus) -> ServerStartError {
        let log = self.log.last_excerpt().await;
        ServerStartError::ServerEnded { pid: self.process.pid, how: how.to_string(), log }
    }

    fn no_progress_error(&self, watch: &ReplayWatch, now: Duration) -> ServerStartError {
        let reached = watch.position().map_or_else(String::new, |lsn| format!(", at about {lsn}"));
        let (pid, waited, log) = (self.process.pid, watch.idle(now), self.log.excerpt());
        ServerStartError::NoProgress { pid, waited, reached, log }
    }
}

/// While it is being replaced the file may be anything.
fn read_pg_control(pgdata: &Path) -> Option<PgControl> {
    PgControl::parse(&fs::read(pgdata.join("global/pg_control")).ok()?).ok()
}

/// The newest timeline that begins in this directory, and where it left its parent. Timelines this server begins are
/// newer than `known`.
fn newest_switch_point(pgdata: &Path, known: TimelineId) -> Option<(TimelineId, Lsn)> {
    let names = fs::read_dir(pgdata.join("pg_wal")).ok()?;
    let timelines = names.filter_map(|name| {
        let name = name.ok()?.file_name();
        let number = u32::from_str_radix(name.to_str()?.strip_suffix(".history")?, 16).ok()?;
        TimelineId::new(number)
    });
    let newest = timelines.max().filter(|newest| *newest >= known)?;
    let text = fs::read_to_string(pgdata.join(format!("pg_wal/{}.history", newest.hex()))).ok()?;
    let history = TimelineHistory::parse(newest, &text).ok()?;
    history.entries.last().map(|entry| (newest, entry.end))
}

/// The end of the last record replayed against the plan. A record that would be the next may start after page headers
/// and padding, so behind it by a few bytes.
fn check_reached(reached: Lsn, stop: RecoveryStop) -> Result<(), ServerStartError> {
    const BETWEEN_RECORDS: u64 = 64;
    let (right, planned) = match stop {
        RecoveryStop::Before(lsn) => {
            (reached <= lsn && lsn.bytes_since(reached) < BETWEEN_RECORDS, format!("just before {lsn}"))
        }
        RecoveryStop::After(lsn) => (reached > lsn, format!("after the record at {lsn}")),
        RecoveryStop::Consistent(lsn) => (reached >= lsn, format!("as soon as {lsn} was passed")),
    };
    if right { Ok(()) } else { Err(ServerStartError::StoppedElsewhere { reached, planned }) }
}

#[cfg(test)]
mod tests {
    use super::{ServerStartError, check_reached};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::restore::resolve_target::RecoveryStop;

    #[test]
    fn a_server_that_stopped_elsewhere_is_found_out() {
        let ok = |reached, stop| check_reached(Lsn::new(reached), stop).is_ok();
        assert!(ok(0x1000, RecoveryStop::Before(Lsn::new(0x1000))));
        assert!(ok(0x2000, RecoveryStop::Before(Lsn::new(0x2018))), "a page header lies between");
        assert!(!ok(0x1000, RecoveryStop::Before(Lsn::new(0x1100))), "a record is missing");
        assert!(!ok(0x1008, RecoveryStop::Before(Lsn::new(0x1000))), "one is too many");
        assert!(
            ok(0x1100, RecoveryStop::After(Lsn::new(0x1000))) && !ok(0x1000, RecoveryStop::After(Lsn::new(0x1000)))
        );
        let error = check_reached(Lsn::new(8), RecoveryStop::Consistent(Lsn::new(16))).unwrap_err();
        assert!(matches!(error, ServerStartError::StoppedElsewhere { .. }));
    }
}
