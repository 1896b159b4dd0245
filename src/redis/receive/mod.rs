//! The stream of commands of one instance into the repositories, without a gap, as long as it is let.
//!
//! ```text
//! redis --bytes--> parser (where may it be cut?) --> spool --fsync--> acknowledge        once a second, and when the server asks
//!                                                      \--whole stretch--> archive::instance
//! ```
//!
//! # The order of durable effects
//!
//! 1. A snapshot's offset is known before the stream behind it is followed; the stream is followed while the snapshot
//!    is still being stored.
//! 2. Bytes are appended to the spool, then synced; only then, and when a snapshot is stored that leads to them, are
//!    they acknowledged.
//! 3. A stretch is put into every repository; only then is its spool file removed.
//! 4. A break is recorded before anything after it is received: in one repository at least, and in the others when they
//!    are there.
//! 5. What a repository lacks of what the others have is copied into it, manifests last. Nothing waits for that.
//!
//! A crash after any of these leaves the steps before it done. On the next start what is spooled is put, and the server
//! is asked for what follows the last whole command. Where it cannot continue, because its backlog does not reach back
//! that far or its history has parted from ours, the break is recorded and a new snapshot begins a new stretch of
//! history. After a failover the stream goes on under a new replication id from the very next byte, if the new master
//! has all that we have (`masterTryPartialResynchronization`).
//!
//! Memory: a few MiB of bytes not yet spooled, and one stretch at a time on its way to each repository:
//! [`ReceiveSettings::rotate_bytes`], or one command if that is longer.

mod acknowledge;
mod base_snapshot;
mod continuation;
mod position;
mod receiver;
mod repository_filling;
mod resume;
mod server_clock;
mod settings;
mod stream_session;
mod stretch_uploads;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use self::base_snapshot::BaseSnapshot;
use self::continuation::{request_continuation, waiting_reason};
use self::receiver::{Receiver, ResumeState};
use self::stream_session::{FollowEnd, StreamFollower};
use self::stretch_uploads::StretchUploads;
use crate::base::clock::Clock;
use crate::base::retry::{Backoff, ErrorClass, RetryPolicy};
use crate::redis::archive::snapshot::error::SnapshotError;
use crate::redis::archive::snapshot::take::{BegunSnapshot, warn_of_persistence_trouble};
use crate::redis::archive::stream::spool::Spool;
use crate::redis::archive::{Archive, Gap};
use crate::redis::wire::{self, RedisConnection, ServerInfo};

pub use self::position::ReceivePosition;
pub use self::settings::{ReceiveEvent, ReceiveObserver, ReceiveSettings};

/// Pauses between attempts to connect. For ever: a server that is down for a week must be followed again when it is
/// back.
const RECONNECT_POLICY: RetryPolicy =
    RetryPolicy { first: Duration::from_millis(250), longest: Duration::from_secs(15), total: None };

/// Receives until `shutdown` becomes true, or something happens that trying again can't mend. Not cancel safe: end it
/// by `shutdown`.
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
                "does not continue from the snapshot that {server} has just begun; if that lasts, give it a larger \
                    repl-backlog-size"
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
}
