//! Starting a restored server, waiting until it has reached its target, and finding out what it reached.
//!
//! What was reached is read from what the server itself writes: `pg_control`, and the history of the timeline it
//! begins, whose last line says where the old one was left. No connection is needed, except to see that a server
//! pauses.

use std::fs;
use std::io::{self, Read, Seek};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::plan::{CommitPoint, ProvedRestore};
use super::resolve_target::RecoveryStop;
use super::target::RecoveryTargetAction;
use crate::base::clock::SharedClock;
use crate::base::disk::{self, FileOwner};
use crate::base::retry::ErrorClass;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::{DbState, PgControl};
use crate::postgres::format::timeline::{TimelineHistory, TimelineId};
use crate::postgres::sql::SqlSession;
use crate::postgres::wire::{Conninfo, LibpqEnvironment};

/// How often the server's files are looked at: often enough not to add to a short replay.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

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
}

/// What a started server came to.
#[derive(Clone, PartialEq, Debug, serde::Serialize)]
pub struct ReachedTarget {
    /// What it did at its target.
    pub action: RecoveryTargetAction,
    /// The end of the last record it replayed, where the server says so.
    pub lsn: Option<Lsn>,
    /// The timeline it goes on with.
    pub timeline: TimelineId,
    /// The last transaction that was replayed.
    pub last_commit: Option<CommitPoint>,
    /// How long starting and replay took.
    pub seconds: f64,
}

/// A restored server that did not get where it should.
#[derive(Debug, thiserror::Error)]
pub enum ServerStartError {
    /// There are no programs of this major version.
    #[error("no PostgreSQL {major} was found in {looked}; name its directory with --pg-bindir")]
    NoPrograms {
        /// The version of the data directory.
        major: u32,
        /// Where was looked.
        looked: String,
    },
    /// PostgreSQL refuses to be root.
    #[error(
        "PostgreSQL refuses to run as root, and {pgdata} belongs to root; give it to the server's user and start it as that user"
    )]
    Root {
        /// The data directory.
        pgdata: PathBuf,
    },
    /// A program or file could not be used.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The server ended before its target.
    #[error("the server ended before it reached its target: {last_words}; its log is {log}")]
    ServerEnded {
        /// The last complaint in its log.
        last_words: String,
        /// Its log.
        log: PathBuf,
    },
    /// It waits for ever.
    #[error("the server cannot go on: {why}; raise that in postgresql.auto.conf and start it again; its log is {log}")]
    ServerStuck {
        /// What it wants, in its own words.
        why: String,
        /// Its log.
        log: PathBuf,
    },
    /// Nobody can tell whether it pauses.
    #[error(
        "the server is up, but whether it pauses at its target cannot be asked: {why}; ask it yourself, by the socket in {socket_dir}: \
         SELECT pg_is_wal_replay_paused(), pg_last_wal_replay_lsn()"
    )]
    Silent {
        /// Why it cannot be asked.
        why: String,
        /// Where its socket is.
        socket_dir: String,
    },
    /// It stopped elsewhere.
    #[error("the server stopped replay at {reached}, but the plan says {planned}; don't use it, and report this")]
    StoppedElsewhere {
        /// Where it stopped.
        reached: Lsn,
        /// Where it should have.
        planned: String,
    },
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ServerStartError + 'a {
    move |source| ServerStartError::Io { what, path: path.to_owned(), source }
}

impl ServerStart {
    /// Starts the server and waits, as long as it takes, until it has done at its target what it was told to.
    ///
    /// # Errors
    /// [`ServerStartError`].
    pub async fn run(
        &self,
        proved: &ProvedRestore,
        action: RecoveryTargetAction,
        clock: &SharedClock,
    ) -> Result<ReachedTarget, ServerStartError> {
        let begun = clock.elapsed();
        self.launch()?;
        let seen = loop {
            if let Some(seen) = self.poll_reached(action).await? {
                break seen;
            }
            clock.sleep(POLL_INTERVAL).await;
        };
        let (timeline, lsn) = seen;
        if let Some(reached) = lsn {
            check_reached(reached, proved.stop)?;
        }
        let seconds = clock.elapsed().saturating_sub(begun).as_secs_f64();
        Ok(ReachedTarget { action, lsn, timeline, last_commit: proved.commits.last, seconds })
    }

    /// The directory with the programs of the data directory's own major version, which alone can read it.
    fn own_programs(&self) -> Result<PathBuf, ServerStartError> {
        let file = self.pgdata.join("PG_VERSION");
        let text = fs::read_to_string(&file).map_err(io_error("read", &file))?;
        let bad = |_| io_error("understand", &file)(io::ErrorKind::InvalidData.into());
        let major: u32 = text.trim().parse().map_err(bad)?;
        find_programs(major, self.bindir.as_deref(), &self.search)
    }

    fn launch(&self) -> Result<(), ServerStartError> {
        let pg_ctl = self.own_programs()?.join("pg_ctl");
        let mut command = Command::new(&pg_ctl);
        command.arg("-D").arg(&self.pgdata).arg("-l").arg(self.start_log()).args(["-W", "-s"]);
        if !self.options.is_empty() {
            command.arg("-o").arg(self.options.join(" "));
        }
        command.arg("start").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        if disk::runs_as_root() {
            let owner = FileOwner::of(&self.pgdata).map_err(io_error("read", &self.pgdata))?;
            if owner.is_root() {
                return Err(ServerStartError::Root { pgdata: self.pgdata.clone() });
            }
            command.uid(owner.uid).gid(owner.gid);
        }
        let status = command.status().map_err(io_error("run", &pg_ctl))?;
        if status.success() { Ok(()) } else { Err(self.ended_error()) }
    }

    fn start_log(&self) -> PathBuf {
        self.pgdata.join(START_LOG)
    }

    /// What the server has come to, once it has done what it was told; `None` while it has not. The position where
    /// replay ended is known of one that was promoted or pauses.
    async fn poll_reached(
        &self,
        action: RecoveryTargetAction,
    ) -> Result<Option<(TimelineId, Option<Lsn>)>, ServerStartError> {
        let Some(control) = self.read_pg_control() else { return Ok(None) };
        let status = self.read_postmaster_pid();
        match (action, status) {
            (RecoveryTargetAction::Promote, Some(status)) if control.state == DbState::Production && status.ready => {
                let timeline = control.checkpoint_timeline;
                // The new timeline's checkpoint may come later than its history and the first transactions.
                Ok(self.newest_switch_point(timeline).map(|(timeline, lsn)| (timeline, Some(lsn))))
            }
            (RecoveryTargetAction::Pause, Some(status)) if status.ready => {
                let paused = self.poll_paused(&status).await?;
                Ok(paused.map(|lsn| (control.checkpoint_timeline, lsn)))
            }
            (RecoveryTargetAction::Shutdown, None) if control.state == DbState::ShutDownInRecovery => {
                Ok(Some((control.checkpoint_timeline, None)))
            }
            (_, None) if self.has_ended() => Err(self.ended_error()),
            (_, Some(_)) => self.stuck_error().map_or(Ok(None), Err),
            _ => Ok(None),
        }
    }

    /// The position at which a server pauses, once it does; no position if it only says so in its log. One that lets
    /// nobody in to ask, and that logs elsewhere, cannot be waited for.
    async fn poll_paused(&self, server: &PostmasterPid) -> Result<Option<Option<Lsn>>, ServerStartError> {
        let conninfo = format!("host='{}' port={} user=postgres dbname=postgres", server.socket_dir, server.port);
        let Ok(info) = Conninfo::parse(&conninfo, &LibpqEnvironment::default()) else { return Ok(None) };
        let asked = match SqlSession::connect(&info).await {
            Ok(sql) => sql.paused_at().await,
            Err(error) => Err(error),
        };
        match asked {
            Ok(paused) => Ok(paused),
            Err(error) if error.class() == ErrorClass::Permanent => {
                let said = self.log_tail().unwrap_or_default();
                // `recoveryPausesHere` in xlogrecovery.c; logging_collector takes the log elsewhere
                // (`SysLogger_Start`).
                if said.contains("pausing at the end of recovery") {
                    return Ok(Some(None));
                }
                if said.contains("redirecting log output") {
                    return Err(ServerStartError::Silent {
                        why: error.to_string(),
                        socket_dir: server.socket_dir.clone(),
                    });
                }
                Ok(None)
            }
            Err(_not_yet) => Ok(None),
        }
    }

    /// While it is being replaced the file may be anything.
    fn read_pg_control(&self) -> Option<PgControl> {
        PgControl::parse(&fs::read(self.pgdata.join("global/pg_control")).ok()?).ok()
    }

    /// What the server says of itself (`pidfile.h`).
    fn read_postmaster_pid(&self) -> Option<PostmasterPid> {
        let text = fs::read_to_string(self.pgdata.join("postmaster.pid")).ok()?;
        let line = |number: usize| text.lines().nth(number).map(str::trim).unwrap_or_default();
        Some(PostmasterPid { port: line(3).to_owned(), socket_dir: line(4).to_owned(), ready: line(7) == "ready" })
    }

    /// The newest timeline that begins in this directory, and where it left its parent. Timelines this server begins
    /// are newer than `known`.
    fn newest_switch_point(&self, known: TimelineId) -> Option<(TimelineId, Lsn)> {
        let names = fs::read_dir(self.pgdata.join("pg_wal")).ok()?;
        let timelines = names.filter_map(|name| {
            let name = name.ok()?.file_name();
            let number = u32::from_str_radix(name.to_str()?.strip_suffix(".history")?, 16).ok()?;
            TimelineId::new(number)
        });
        let newest = timelines.max().filter(|newest| *newest >= known)?;
        let text = fs::read_to_string(self.pgdata.join(format!("pg_wal/{}.history", newest.hex()))).ok()?;
        let history = TimelineHistory::parse(newest, &text).ok()?;
        history.entries.last().map(|entry| (newest, entry.end))
    }

    /// Whether a server that has no `postmaster.pid` had one: it wrote its log, and said that it is down.
    fn has_ended(&self) -> bool {
        let text = fs::read(self.start_log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.contains("database system is shut down") || text.contains("FATAL:")
    }

    /// A server of 14 or later whose settings are below those of the log does not end but waits, until somebody shuts
    /// it down (`RecoveryRequiresIntParameter`).
    fn stuck_error(&self) -> Option<ServerStartError> {
        const WAITS: &str = "because of insufficient parameter settings";
        let text = self.log_tail().unwrap_or_default();
        let mut lines = text.lines().skip_while(|line| !line.contains(WAITS));
        lines.next()?;
        let detail = lines.next().and_then(|line| line.split_once("DETAIL:"));
        let why = detail.map_or(WAITS, |(_, why)| why.trim());
        Some(ServerStartError::ServerStuck { why: why.to_owned(), log: self.start_log() })
    }

    /// The last few lines of the log, however long it is.
    fn log_tail(&self) -> io::Result<String> {
        let mut file = fs::File::open(self.start_log())?;
        let len = file.metadata()?.len();
        file.seek(io::SeekFrom::Start(len.saturating_sub(4096)))?;
        let mut bytes = Vec::new();
        file.take(4096).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn ended_error(&self) -> ServerStartError {
        let text = fs::read(self.start_log()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let complaint = text.lines().rev().find(|line| line.contains("FATAL:") || line.contains("PANIC:"));
        let last = complaint.or(text.lines().last()).unwrap_or("it said nothing");
        let words = last.split_once("FATAL:").map_or(last, |(_, words)| words).trim();
        let taken = text.contains("Address already in use") || text.contains("already in use by another");
        let advice = if taken { "; its port is taken, try --server-options '-p 5433'" } else { "" };
        ServerStartError::ServerEnded { last_words: format!("{words}{advice}"), log: self.start_log() }
    }
}

/// What `postmaster.pid` says.
struct PostmasterPid {
    port: String,
    socket_dir: String,
    /// Whether it takes connections: of a server in recovery, those that only read.
    ready: bool,
}

/// The directory with the programs of this major version: the one that was named, or where distributions put it, or
/// elsewhere.
pub(super) fn find_programs(
    major: u32,
    bindir: Option<&Path>,
    search: &[PathBuf],
) -> Result<PathBuf, ServerStartError> {
    let packaged = [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")].map(PathBuf::from);
    let places: Vec<PathBuf> = match bindir {
        Some(bindir) => vec![bindir.to_owned()],
        None => packaged.into_iter().chain(search.iter().cloned()).collect(),
    };
    let fits =
        |place: &&PathBuf| place.join("pg_ctl").exists() && major_version_of(&place.join("postgres")) == Some(major);
    let looked = || places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ");
    places.iter().find(fits).cloned().ok_or_else(|| ServerStartError::NoPrograms { major, looked: looked() })
}

/// The major version of a `postgres` program, in its own words: `postgres (PostgreSQL) 15.12 (Debian 15.12-1)`.
pub(super) fn major_version_of(postgres: &Path) -> Option<u32> {
    let output = Command::new(postgres).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_once("(PostgreSQL)")?.1.trim_start();
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
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
