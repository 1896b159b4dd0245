//! The stream of commands of one instance into the repositories, without a gap, as long as it is let.
//!
//! ```text
//! redis --bytes--> parser (where may it be cut?) --> spool --fsync--> acknowledge        once a second, and when the server asks
//!                                                      \--whole stretch--> archive::instance
//! ```
//!
//! # The order of durable effects
//!
//! 1. A snapshot's offset is known before the stream behind it is followed; the stream is followed while the snapshot is still being stored.
//! 2. Bytes are appended to the spool, then synced; only then, and when a snapshot is stored that leads to them, are they acknowledged.
//! 3. A stretch is put into every repository; only then is its spool file removed.
//! 4. A break is recorded before anything after it is received: in one repository at least, and in the others when they are there.
//!
//! A crash after any of these leaves the steps before it done. On the next start what is spooled is put, and the server is asked for what
//! follows the last whole command. Where it cannot continue, because its backlog does not reach back that far or its history has parted from
//! ours, the break is recorded and a new snapshot begins a new stretch of history. After a failover the stream goes on under a new
//! replication id from the very next byte, if the new master has all that we have (`masterTryPartialResynchronization`).
//!
//! Memory: a few MiB of bytes not yet spooled, and one stretch at a time on its way to each repository: [`ReceiveSettings::rotate_bytes`], or one
//! command if that is longer.

pub(crate) mod stream_session;
pub(crate) mod stretch_uploads;
pub(crate) mod server_clock;
pub(crate) mod base_snapshot;
pub(crate) mod resume;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use super::archive::snapshot::take::{BegunSnapshot, warn_of_persistence_trouble};
use super::receive::base_snapshot::{BaseSnapshot, SnapshotTask};
use super::receive::resume::ResumeState;
use super::receive::stream_session::{FollowEnd, StreamFollower};
use super::receive::stretch_uploads::StretchUploads;
use crate::base::clock::Clock;
use crate::base::retry::{Backoff, ErrorClass, RetryPolicy};
use crate::redis::archive::snapshot::error::SnapshotError;
use crate::redis::archive::stream::PreviousHistory;
use crate::redis::archive::stream::spool::{Spool, StretchName, StretchStart, UnfinishedStretch};
use crate::redis::archive::{Archive, Gap, SnapshotManifest, StreamStretch};
use crate::redis::format::replication_id::ReplicationId;
use crate::redis::wire::{self, RedisConnection, RedisSource, ServerInfo, SyncAnswer, SyncRequest};
use crate::vault::SkippedRepositories;

/// Pauses between attempts to connect. For ever: a server that is down for a week must be followed again when it is back.
const RECONNECT_POLICY: RetryPolicy =
    RetryPolicy { first: Duration::from_millis(250), longest: Duration::from_secs(15), total: None };
/// How long a clean end may wait for what is on its way to the repositories; the rest stays spooled.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// What to receive, and how.
#[derive(Clone, Debug)]
pub struct ReceiveSettings {
    /// Where the server is.
    pub source: RedisSource,
    /// Where the spool is.
    pub state_dir: PathBuf,
    /// A stretch ends when it has so many bytes.
    pub rotate_bytes: u64,
    /// A stretch in which anything was written ends after this time.
    pub rotate_after: Duration,
    /// Any stretch ends after this time.
    pub rotate_idle: Duration,
}

impl ReceiveSettings {
    /// The usual: 16 MiB, or half a minute, or four minutes of nothing but signs of life: five minutes are late to `walkeep health`, which
    /// may see the repository alone. What is younger is in the spool alone.
    #[must_use]
    pub fn new(source: RedisSource, state_dir: PathBuf) -> ReceiveSettings {
        let (rotate_after, rotate_idle) = (Duration::from_secs(30), Duration::from_secs(240));
        ReceiveSettings { source, state_dir, rotate_bytes: 16 << 20, rotate_after, rotate_idle }
    }
}

/// What an observer hears of.
#[derive(Debug)]
pub enum ReceiveEvent<'e> {
    /// The stream is followed.
    Streaming {
        /// Which server.
        server: &'e str,
        /// Which history.
        replid: ReplicationId,
        /// From where.
        from: u64,
    },
    /// The history goes on under another name.
    Renamed(PreviousHistory, ReplicationId),
    /// A stretch is in every repository.
    Stored(&'e StreamStretch),
    /// Everything up to here is durable, and the server knows.
    Acknowledged(u64),
    /// A snapshot to begin with is stored.
    Snapshot(&'e SnapshotManifest),
    /// The stream has a break.
    Gap(&'e Gap),
}

/// Who hears what happens. Called between two reads of the socket, so it must return at once.
pub trait ReceiveObserver: Send + std::marker::Sync {
    /// Something happened.
    fn event(&self, event: ReceiveEvent<'_>);
}

/// Nobody.
impl ReceiveObserver for () {
    fn event(&self, _event: ReceiveEvent<'_>) {}
}

/// Where the stream is to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReceivePosition {
    /// The history.
    pub replid: ReplicationId,
    /// The offset up to which everything is durable here, after a whole command.
    pub offset: u64,
    /// The database that the next command acts on.
    db: u32,
    /// Whether a transaction is open.
    in_transaction: bool,
    /// The history before, if nothing was stored under this name yet.
    follows: Option<PreviousHistory>,
    /// When the last byte had come.
    until: Option<Timestamp>,
}

impl ReceivePosition {
    fn from_stretch(stretch: &StreamStretch) -> ReceivePosition {
        ReceivePosition {
            replid: stretch.replid,
            offset: stretch.last,
            db: stretch.db_after,
            in_transaction: stretch.in_transaction_after,
            follows: stretch.follows.filter(|_| stretch.first == stretch.last),
            until: Some(stretch.ended_at),
        }
    }
}

/// Receives until `shutdown` becomes true, or something happens that trying again can't mend. Not cancel safe: end it by `shutdown`.
///
/// # Errors
/// [`SnapshotError`] of a kind that trying again doesn't mend. Everything acknowledged is safe nevertheless.
pub async fn receive_stream(
    instance: &Archive,
    settings: &ReceiveSettings,
    observer: &dyn ReceiveObserver,
    shutdown: watch::Receiver<bool>,
) -> Result<Option<ReceivePosition>, SnapshotError> {
    let instance = instance.clone().with_spool(settings.state_dir.clone());
    let spool = Spool::open(&settings.state_dir, &instance)?;
    let _alone = spool.lock()?;
    let uploads = StretchUploads::start(&instance, &spool);
    let clock = Arc::clone(instance.vault().clock());
    let seed = u64::try_from(clock.now().as_nanosecond() & i128::from(u32::MAX)).unwrap_or(1);
    let (left, base) = (ResumeState::default(), BaseSnapshot::new(clock.elapsed(), seed));
    let mut receiver = Receiver {
        instance,
        settings,
        observer,
        shutdown,
        spool,
        uploads,
        resume_state: left,
        position: None,
        unclosed_file: None,
        offset_asked_at: Duration::ZERO,
        base_snapshot: base,
    };
    let mut backoff = Backoff::new(RECONNECT_POLICY, clock.elapsed(), seed);
    loop {
        let before = receiver.position;
        let error = match receiver.connect_and_follow(&*clock).await {
            Ok(()) => break,
            Err(error) => error,
        };
        if *receiver.shutdown.borrow() {
            break;
        }
        let away = matches!(&error, SnapshotError::Vault(error) if error.may_pass());
        if error.class() != ErrorClass::Transient && !away {
            receiver.await_uploads(&*clock).await;
            return Err(error);
        }
        // Where it began anew nothing came on: a snapshot stands further on by itself.
        let came_on = |now: ReceivePosition| {
            before.is_some_and(|before| before.replid == now.replid && before.offset < now.offset)
        };
        if receiver.position.is_some_and(came_on) {
            backoff.reset(clock.elapsed());
        }
        let pause = backoff.next_pause(clock.elapsed()).unwrap_or(RECONNECT_POLICY.longest);
        // Its causes stand in its words already.
        let pause_text = format!("{:.1} s", pause.as_secs_f64());
        tracing::warn!(%error, pause = pause_text, "the stream of commands broke");
        if let Err(error) = receiver.pause_before_retry(&*clock, pause).await {
            receiver.await_uploads(&*clock).await;
            return Err(error);
        }
    }
    receiver.await_uploads(&*clock).await;
    Ok(receiver.position)
}

struct Receiver<'a> {
    instance: Archive,
    settings: &'a ReceiveSettings,
    observer: &'a dyn ReceiveObserver,
    shutdown: watch::Receiver<bool>,
    spool: Spool,
    uploads: StretchUploads,
    /// What an earlier run left.
    resume_state: ResumeState,
    position: Option<ReceivePosition>,
    /// The stretch that was under way when following ended, until it is read again.
    unclosed_file: Option<StretchName>,
    /// When the server was asked how far it is.
    offset_asked_at: Duration,
    /// The snapshot that leads to the position.
    base_snapshot: BaseSnapshot,
}

impl Receiver<'_> {
    /// Connects and follows the stream until it breaks or is to end.
    async fn connect_and_follow(&mut self, clock: &dyn Clock) -> Result<(), SnapshotError> {
        if *self.shutdown.borrow() {
            return Ok(());
        }
        self.find_resume_position().await?;
        if let Some(name) = self.unclosed_file {
            self.put_finished_file(name).await?;
        }
        self.offset_asked_at = clock.elapsed();
        let (connection, info) = self.settings.source.connect().await?;
        warn_of_persistence_trouble(&connection, &info);
        if let Some(position) = self.position {
            if let Some(message) = waiting_reason(&info, &position) {
                return Err(wire::RedisError::NotReady { server: connection.peer().to_owned(), message }.into());
            }
            if let Some((connection, position)) = request_continuation(connection, &info, position).await? {
                self.retry_base_snapshot(clock.elapsed()).await;
                return self.follow(connection, &info, position, clock).await;
            }
            self.record_gap(&position, &info, clock).await?;
        } else {
            drop(connection);
        }
        self.record_unknown_ends().await?;
        self.begin_new_history(clock).await
    }

    /// A snapshot, and the stream from its offset on.
    async fn begin_new_history(&mut self, clock: &dyn Clock) -> Result<(), SnapshotError> {
        self.base_snapshot.reset();
        let wait = self.base_snapshot.time_until_due(clock.elapsed());
        if !wait.is_zero() {
            tracing::warn!(
                wait = format!("{:.0} s", wait.as_secs_f64()),
                "the stream begins anew with a snapshot, which failed before; it is not asked for at once"
            );
            self.pause_before_retry(clock, wait).await?;
            if *self.shutdown.borrow() {
                return Ok(());
            }
        }
        match self.await_snapshot_start(clock).await {
            Ok((connection, info, position)) => {
                self.base_snapshot.delay_retry(clock.elapsed());
                self.base_snapshot.record_history_start(position.replid, position.offset);
                self.follow(connection, &info, position, clock).await
            }
            Err(error) => {
                self.base_snapshot.schedule_retry(clock.elapsed());
                Err(error)
            }
        }
    }

    /// A snapshot that has begun, and the server that goes on from it.
    async fn await_snapshot_start(
        &mut self,
        clock: &dyn Clock,
    ) -> Result<(RedisConnection, ServerInfo, ReceivePosition), SnapshotError> {
        let begun = self.begin_base_snapshot();
        let begun = tokio::select! {
            begun = begun => begun,
            // A server may prepare it for long. Nobody hears of this error.
            _ = self.shutdown.wait_for(|shutdown| *shutdown) => {
                self.base_snapshot.reset();
                return Err(SnapshotError::WorkerPanicked);
            }
        };
        let Ok(BegunSnapshot { server, replid, offset, db }) = begun else {
            return Err(self.base_snapshot_error().await);
        };
        self.offset_asked_at = clock.elapsed();
        let (connection, info) = self.settings.source.connect().await?;
        let peer = connection.peer().to_owned();
        let position = ReceivePosition { replid, offset, db, in_transaction: false, follows: None, until: None };
        let Some((connection, position)) = request_continuation(connection, &info, position).await? else {
            let why = format!(
                "does not continue from the snapshot that {server} has just begun; if that lasts, give it a larger repl-backlog-size"
            );
            return Err(SnapshotError::UnsuitableServer { server: peer, why });
        };
        Ok((connection, info, position))
    }

    async fn follow(
        &mut self,
        connection: RedisConnection,
        info: &ServerInfo,
        position: ReceivePosition,
        clock: &dyn Clock,
    ) -> Result<(), SnapshotError> {
        if let Some(follows) = position.follows {
            self.observer.event(ReceiveEvent::Renamed(follows, position.replid));
        }
        let (server, replid, from) = (connection.peer(), position.replid, position.offset);
        self.observer.event(ReceiveEvent::Streaming { server, replid, from });
        self.base_snapshot.record_history_start(replid, from);
        self.position = Some(position);
        let following = StreamFollower::start(self, connection, position, info).await?;
        let (name, ended) = following.run(self, clock).await;
        self.unclosed_file = Some(name);
        self.put_finished_file(name).await?;
        match ended {
            FollowEnd::Shutdown => Ok(()),
            FollowEnd::Broken(error) => Err(error),
        }
    }

    /// What is durable of a stretch is what is there when it is read from the disk again, after a sync that did not fail; the rest is asked for
    /// once more. Until then nothing is received: the position is acknowledged as soon as it is followed from.
    async fn put_finished_file(&mut self, name: StretchName) -> Result<(), SnapshotError> {
        let spool = self.spool.clone();
        let read = tokio::task::spawn_blocking(move || {
            spool.truncate_torn_tail(name)?;
            spool.end_with_whole_transaction(name, None)?;
            Ok::<_, crate::vault::spool::SpoolError>(spool.read(name)?.map(|spooled| spooled.into_stretch().0))
        });
        let stretch = read.await.map_err(|_panic| SnapshotError::WorkerPanicked)??;
        self.unclosed_file = None;
        let Some(stretch) = stretch else { return Ok(()) };
        self.position = Some(ReceivePosition::from_stretch(&stretch));
        // An empty one is begun again under the same name, so it must not be on its way then.
        if stretch.first < stretch.last {
            self.uploads.enqueue(name);
        }
        Ok(())
    }

    /// Begins the file of a stretch, unless there is one of that name with commands that are in no repository yet.
    async fn begin_stretch_file(&mut self, beginning: StretchStart) -> Result<UnfinishedStretch, SnapshotError> {
        let name = (beginning.replid, beginning.first);
        let on_its_way = SnapshotError::StillUploading { replid: name.0, first: name.1 };
        if self.uploads.is_uploading(name) {
            return Err(on_its_way);
        }
        let spool = self.spool.clone();
        let begun = tokio::task::spawn_blocking(move || {
            let there = spool.read(name)?.map(|spooled| spooled.into_stretch().0);
            match there {
                Some(stretch) if stretch.first < stretch.last => Ok(None),
                _ => {
                    spool.discard(name)?;
                    spool.begin(beginning).map(Some)
                }
            }
        });
        let begun = begun.await.map_err(|_panic| SnapshotError::WorkerPanicked)??;
        begun.ok_or_else(|| {
            self.uploads.enqueue(name);
            on_its_way
        })
    }

    /// What may be acknowledged of what is durable here: nothing as long as no snapshot is stored that leads to it, for without one nobody can
    /// restore it. The server takes a smaller offset than before for a sign of life (`replconfCommand`, replication.c).
    fn acknowledgeable_offset(&self, durable: u64) -> u64 {
        if self.base_snapshot.has_snapshot { durable } else { 0 }
    }

    /// The parts that are waited for at once.
    fn split_wait_sources(&mut self) -> (&mut StretchUploads, &mut Option<SnapshotTask>, &mut watch::Receiver<bool>) {
        (&mut self.uploads, &mut self.base_snapshot.attempt, &mut self.shutdown)
    }

    async fn record_gap(
        &mut self,
        position: &ReceivePosition,
        info: &ServerInfo,
        clock: &dyn Clock,
    ) -> Result<(), SnapshotError> {
        let told = |name: &str| info.get(name).unwrap_or("?").to_owned();
        let reason = format!(
            "the server cannot continue from there: it is in history {} at offset {}, its backlog begins at {}",
            told("master_replid"),
            told("master_repl_offset"),
            told("repl_backlog_first_byte_offset")
        );
        let (replid, offset, until) = (position.replid, position.offset, position.until);
        let gap = Gap { replid, offset, until, noticed_at: clock.now(), reason };
        self.record_gap_everywhere(&gap).await?;
        self.position = None;
        Ok(())
    }

    /// Records a break where that is possible, and later in the other repositories.
    async fn record_gap_everywhere(&mut self, gap: &Gap) -> Result<(), SnapshotError> {
        let absent = SkippedRepositories::new(self.uploads.unavailable());
        self.instance.record_gap(gap, &absent).await?;
        absent.errors().into_keys().for_each(|place| self.uploads.enqueue_gap(place, gap));
        self.observer.event(ReceiveEvent::Gap(gap));
        Ok(())
    }

    async fn pause_before_retry(&mut self, clock: &dyn Clock, pause: Duration) -> Result<(), SnapshotError> {
        let end = clock.elapsed().saturating_add(pause);
        loop {
            let left = end.saturating_sub(clock.elapsed());
            if left.is_zero() || *self.shutdown.borrow() {
                return Ok(());
            }
            tokio::select! {
                stored = self.uploads.next_stored() => self.observer.event(ReceiveEvent::Stored(&stored?)),
                () = clock.sleep(left) => return Ok(()),
                _ = self.shutdown.changed() => return Ok(()),
            }
        }
    }

    /// Lets what is on its way arrive.
    async fn await_uploads(&mut self, clock: &dyn Clock) {
        self.base_snapshot.reset();
        let end = clock.elapsed().saturating_add(SHUTDOWN_TIMEOUT);
        while self.uploads.outstanding_count() > 0 {
            let left = end.saturating_sub(clock.elapsed());
            match crate::base::clock::timeout(clock, left, self.uploads.next_stored()).await {
                Some(Ok(stored)) => self.observer.event(ReceiveEvent::Stored(&stored)),
                Some(Err(_)) | None => break,
            }
        }
    }
}

/// The position under the name that the server gave it.
fn with_new_replid(position: ReceivePosition, name: Option<ReplicationId>) -> ReceivePosition {
    match name.filter(|name| *name != position.replid) {
        Some(replid) => {
            let before =
                position.follows.unwrap_or(PreviousHistory { replid: position.replid, offset: position.offset });
            ReceivePosition { replid, follows: Some(before), ..position }
        }
        None => position,
    }
}

/// The stream from the position on, under the name that it has now; `None` if the server cannot continue there.
async fn request_continuation(
    mut connection: RedisConnection,
    info: &ServerInfo,
    position: ReceivePosition,
) -> Result<Option<(RedisConnection, ReceivePosition)>, SnapshotError> {
    if !can_continue(info, &position) {
        return Ok(None);
    }
    let synced =
        connection.request_sync(SyncRequest::Continue(position.replid, position.offset), info.version()).await?;
    Ok(match synced {
        SyncAnswer::Continue(name) => Some((connection, with_new_replid(position, name))),
        SyncAnswer::Full(..) => None,
    })
}

/// Why the server may continue in a moment though it cannot now: a replica that has just begun has no backlog before its own link is up, and one
/// that lags comes to where we are. To begin anew would make a gap of that.
fn waiting_reason(info: &ServerInfo, position: &ReceivePosition) -> Option<String> {
    let replica = info.get("role") == Some("slave");
    let same = info.get("master_replid") == Some(position.replid.to_string().as_str());
    let behind = info.number("master_repl_offset").is_some_and(|offset| offset < position.offset);
    match info.get("master_link_status") {
        Some(status) if replica && status != "up" => Some("it is a replica without its master".to_owned()),
        Some(_) if replica && same && behind => {
            Some(format!("it is a replica that has not come to offset {} yet", position.offset))
        }
        _ => None,
    }
}

/// Whether the server will continue, by what it says of its backlog; asking it in vain would make it begin a snapshot.
fn can_continue(info: &ServerInfo, position: &ReceivePosition) -> bool {
    let id = position.replid.to_string();
    let next = position.offset.saturating_add(1);
    let same = info.get("master_replid") == Some(id.as_str());
    let before = info.get("master_replid2") == Some(id.as_str())
        && info.number("second_repl_offset").is_some_and(|second| next <= second);
    let first = info.number("repl_backlog_first_byte_offset").unwrap_or(u64::MAX);
    let len = info.number("repl_backlog_histlen").unwrap_or(0);
    (same || before)
        && info.number("repl_backlog_active") == Some(1)
        && (first..=first.saturating_add(len)).contains(&next)
}

#[cfg(test)]
mod tests {
    use super::{ReceivePosition, can_continue, waiting_reason, with_new_replid};
    use crate::redis::wire::ServerInfo;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn position(offset: u64) -> ReceivePosition {
        let replid = A.parse().unwrap();
        ReceivePosition { replid, offset, db: 0, in_transaction: false, follows: None, until: None }
    }

    /// As `masterTryPartialResynchronization` decides.
    #[test]
    fn a_server_continues_within_its_backlog_and_history() {
        let info = |id: &str, second: &str| {
            ServerInfo::parse(&format!(
                "master_replid:{id}\nmaster_replid2:{A}\nsecond_repl_offset:{second}\nrepl_backlog_active:1\n\
                 repl_backlog_first_byte_offset:101\nrepl_backlog_histlen:50\n"
            ))
        };
        for (offset, same, failed_over) in [
            (99, false, false),
            (100, true, true),
            (120, true, true),
            (121, true, false),
            (150, true, false),
            (151, false, false),
        ] {
            assert_eq!(can_continue(&info(A, "-1"), &position(offset)), same, "{offset}");
            assert_eq!(can_continue(&info(B, "121"), &position(offset)), failed_over, "{offset}");
        }
        assert!(!can_continue(
            &ServerInfo::parse(&format!("master_replid:{A}\nrepl_backlog_active:0")),
            &position(100)
        ));
    }

    #[test]
    fn a_replica_that_comes_back_is_waited_for() {
        let info = |role: &str, link: &str, id: &str, offset: u64| {
            ServerInfo::parse(&format!(
                "role:{role}\nmaster_link_status:{link}\nmaster_replid:{id}\nmaster_repl_offset:{offset}"
            ))
        };
        for (role, link, id, offset, waits) in [
            ("slave", "down", A, 200, true),
            ("slave", "down", B, 200, true),
            ("slave", "up", A, 99, true),
            ("slave", "up", A, 100, false),
            // Another history does not come to where we are.
            ("slave", "up", B, 99, false),
            ("master", "up", A, 99, false),
        ] {
            assert_eq!(
                waiting_reason(&info(role, link, id, offset), &position(100)).is_some(),
                waits,
                "{role} {link} {id}"
            );
        }
        assert_eq!(waiting_reason(&ServerInfo::parse("role:master"), &position(100)), None);
    }

    #[test]
    fn a_name_that_changes_twice_before_anything_comes_still_follows_the_first() {
        let b = with_new_replid(position(7), Some(B.parse().unwrap()));
        let c = with_new_replid(b, Some("cccccccccccccccccccccccccccccccccccccccc".parse().unwrap()));
        assert_eq!(c.follows.map(|follows| (follows.replid.to_string(), follows.offset)), Some((A.to_owned(), 7)));
        assert_eq!(with_new_replid(position(7), None), position(7));
    }
}
