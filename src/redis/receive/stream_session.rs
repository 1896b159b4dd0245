//! One connection's stream: bytes in, spooled and acknowledged, cut into stretches.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use jiff::{SignedDuration, Timestamp};

use super::position::ReceivePosition;
use super::receiver::Receiver;
use super::server_clock::RedisServerClock;
use super::settings::ReceiveEvent;
use crate::base::blocking::run_blocking;
use crate::base::clock::Clock;
use crate::redis::archive::snapshot::error::SnapshotError;
use crate::redis::archive::stream::StretchName;
use crate::redis::archive::stream::StretchStart;
use crate::redis::archive::stream::spool::UnfinishedStretch;
use crate::redis::archive::{ArrivalMark, ReadDelays, ServerRun};
use crate::redis::format::resp::{CommandKind, CommandLimits, CommandParser};
use crate::redis::wire::{RedisConnection, ServerInfo};
use crate::vault::spool::SpoolError;

/// How often what has come is synced and acknowledged, as a replica acknowledges (`replicationCron`).
const SYNC_INTERVAL: Duration = Duration::from_secs(1);
/// Bytes that are held before they are spooled.
const MAX_PENDING_BYTES: usize = 1 << 20;
/// How near to each other marks are: what a target time is exact to.
const MARK_INTERVAL: Duration = Duration::from_millis(10);
/// A stretch is cut within a transaction only beyond so many bytes.
const MAX_TRANSACTION_BYTES: u64 = 64 << 20;

/// Nothing was read for so long: what came meanwhile has no time.
const MIN_READ_PAUSE: Duration = Duration::from_secs(1);

/// Says whether there was anything to wait for. Not slowed down so that others get their turn, as that would look like
/// waiting.
async fn poll_and_note_wait<T>(read: impl Future<Output = T>, waited: &mut bool) -> T {
    let mut read = pin!(tokio::task::unconstrained(read));
    poll_fn(|context| {
        let polled = read.as_mut().poll(context);
        *waited |= polled.is_pending();
        polled
    })
    .await
}

/// How following ended.
pub(super) enum FollowEnd {
    /// As it was told to.
    Shutdown,
    /// Otherwise.
    Broken(SnapshotError),
}

pub(super) struct StreamFollower {
    connection: RedisConnection,
    parser: CommandParser,
    /// `None` only while it is being written.
    file: Option<UnfinishedStretch>,
    file_name: StretchName,
    run: Option<ServerRun>,
    server_clock: RedisServerClock,
    /// Bytes from `spooled` on.
    pending: BytesMut,
    spooled_offset: u64,
    marks: Vec<ArrivalMark>,
    last_mark: (u64, Duration),
    received_at: Timestamp,
    last_heard_at: Duration,
    read_delays: ReadDelays,
    /// When nothing lay in the socket, or the server was asked how far it is.
    drained_at: Duration,
    /// Whether nothing was read for a second, and since then not all that had come meanwhile.
    held_up: bool,
    /// The offset to which the server had come when it was followed.
    backlog_end: u64,
    synced_at: Duration,
    began_at: Duration,
    has_written: bool,
    asked_for_offset: bool,
}

impl StreamFollower {
    pub(super) async fn start(
        receiver: &mut Receiver<'_>,
        mut connection: RedisConnection,
        position: ReceivePosition,
        info: &ServerInfo,
    ) -> Result<StreamFollower, SnapshotError> {
        let clock = Arc::clone(receiver.instance.vault().clock());
        let (now, at) = (clock.elapsed(), clock.now());
        let ReceivePosition { replid, offset, db, in_transaction, follows, .. } = position;
        let run = info.get("run_id").map(|id| ServerRun { server: connection.peer().to_owned(), id: id.to_owned() });
        let missed_until = info.number("master_repl_offset");
        let beginning = StretchStart {
            replid,
            first: offset,
            db,
            in_transaction,
            follows,
            started_at: at,
            run: run.clone(),
            missed_until,
        };
        let growing = receiver.begin_stretch_file(beginning).await?;
        connection.acknowledge(receiver.acknowledgeable_offset(offset)).await?;
        Ok(StreamFollower {
            connection,
            parser: CommandParser::resume_at(offset, db, in_transaction, CommandLimits::default()),
            file_name: growing.name(),
            file: Some(growing),
            server_clock: RedisServerClock::new(&receiver.settings.source, run.as_ref().map(|run| run.id.clone()), now),
            run,
            pending: BytesMut::new(),
            spooled_offset: offset,
            marks: Vec::new(),
            last_mark: (offset, now),
            received_at: at,
            last_heard_at: now,
            read_delays: ReadDelays::default(),
            drained_at: receiver.offset_asked_at,
            // What was written since it was asked how far it is may come together with what was written before.
            held_up: true,
            backlog_end: missed_until.unwrap_or(0),
            synced_at: now,
            began_at: now,
            has_written: false,
            asked_for_offset: false,
        })
    }

    /// Follows until something ends it; gives the name of the stretch that was under way.
    pub(super) async fn run(mut self, receiver: &mut Receiver<'_>, clock: &dyn Clock) -> (StretchName, FollowEnd) {
        let mut ended = loop {
            match self.step(receiver, clock).await {
                Ok(true) => {}
                Ok(false) => break FollowEnd::Shutdown,
                Err(error) => break FollowEnd::Broken(error),
            }
        };
        // What has come is good, whatever ended it; unless it is the spool that fails.
        if self.file.is_some()
            && let Err(error) = self.spool_pending(true).await
        {
            ended = FollowEnd::Broken(error);
        } else if matches!(ended, FollowEnd::Shutdown) {
            // The server may be gone; then it asks nobody how far we were.
            drop(self.connection.acknowledge(receiver.acknowledgeable_offset(self.spooled_offset)).await);
        }
        (self.file_name, ended)
    }

    /// One thing that happens; false when it is time to end.
    async fn step(&mut self, receiver: &mut Receiver<'_>, clock: &dyn Clock) -> Result<bool, SnapshotError> {
        let due = self.synced_at.saturating_add(SYNC_INTERVAL).saturating_sub(clock.elapsed());
        let (uploads, base, shutdown) = receiver.split_wait_sources();
        if *shutdown.borrow() {
            return Ok(false);
        }
        let (began, mut waited, mut read) = (clock.elapsed(), false, None);
        tokio::select! {
            bytes = poll_and_note_wait(self.connection.read_stream(), &mut waited) => read = Some(bytes?),
            () = clock.sleep(due) => {
                self.connection.check_silence(clock.elapsed().saturating_sub(self.last_heard_at))?;
                self.asked_for_offset = true;
            }
            stored = uploads.next_stored() => receiver.observer.event(ReceiveEvent::Stored(&stored?)),
            ended = Receiver::base_snapshot(base) => receiver.finish_base_snapshot(ended, clock.elapsed()),
            _ = shutdown.changed() => return Ok(!*receiver.shutdown.borrow()),
        }
        let woke = clock.elapsed();
        // Then nobody knows when it should have been woken.
        let overslept = woke > began.saturating_add(due).saturating_add(MARK_INTERVAL);
        if waited {
            self.drained_at = if overslept { began } else { woke };
        }
        if let Some(bytes) = read {
            self.push_bytes(&bytes, waited && !overslept, clock)?;
        }
        self.server_clock.poll(receiver.instance.vault().clock()).await;
        if self.server_clock.is_elsewhere() {
            let why =
                "is not the master that the Sentinels name, though it still sends; theirs is followed from here on";
            return Err(SnapshotError::UnsuitableServer {
                server: self.connection.peer().to_owned(),
                why: why.to_owned(),
            });
        }
        if self.asked_for_offset {
            self.spool_pending(true).await?;
            let safe = receiver.acknowledgeable_offset(self.spooled_offset);
            self.connection.acknowledge(safe).await?;
            receiver.observer.event(ReceiveEvent::Acknowledged(safe));
            (self.asked_for_offset, self.synced_at) = (false, clock.elapsed());
        } else if self.pending.len() >= MAX_PENDING_BYTES {
            self.spool_pending(false).await?;
        }
        if self.is_rotation_due(receiver, clock) {
            self.rotate(receiver, clock).await?;
        }
        receiver.retry_base_snapshot(clock.elapsed()).await;
        Ok(true)
    }

    /// `promptly` if they were read as soon as they came.
    fn push_bytes(&mut self, bytes: &Bytes, promptly: bool, clock: &dyn Clock) -> Result<(), SnapshotError> {
        // What came before a pause has the time before the pause, or a target within the pause would leave it out.
        if clock.elapsed() >= self.last_mark.1.saturating_add(MARK_INTERVAL) {
            self.add_mark();
        }
        let (wrote, asked) = (&mut self.has_written, &mut self.asked_for_offset);
        self.parser.push(bytes, &mut |command| match command.kind {
            CommandKind::Other => *wrote = true,
            CommandKind::GetAck => *asked = true,
            CommandKind::Empty | CommandKind::Ping | CommandKind::Select | CommandKind::Multi | CommandKind::Exec => {}
        })?;
        self.pending.extend_from_slice(bytes);
        self.received_at = clock.now();
        let silent = clock.elapsed().saturating_sub(self.last_heard_at);
        self.last_heard_at = clock.elapsed();
        self.record_read_delay(promptly, silent);
        if self.last_heard_at >= self.last_mark.1.saturating_add(MARK_INTERVAL) {
            self.add_mark();
        }
        Ok(())
    }

    /// Notes for how long what was just read may have lain there, if it was not waited for: since nothing did.
    /// `silent`: since the read before.
    fn record_read_delay(&mut self, promptly: bool, silent: Duration) {
        if promptly {
            self.held_up = false;
            return;
        }
        let late = self.last_heard_at.saturating_sub(self.drained_at);
        self.held_up |= silent >= MIN_READ_PAUSE;
        if late < MIN_READ_PAUSE || !self.held_up {
            return self.read_delays.record_lateness(late);
        }
        let from = SignedDuration::try_from(late).ok().and_then(|late| self.received_at.checked_sub(late).ok());
        self.read_delays.record_pause(from.unwrap_or(self.received_at), self.received_at);
    }

    /// Notes that everything up to the last possible cut has come.
    fn add_mark(&mut self) {
        let Some(cut) = self.parser.cut().filter(|cut| cut.offset > self.last_mark.0) else { return };
        self.marks.push(ArrivalMark { offset: cut.offset, db: cut.db, time: self.received_at });
        self.last_mark = (cut.offset, self.last_heard_at);
    }

    /// Spools what is pending.
    async fn spool_pending(&mut self, sync: bool) -> Result<(), SnapshotError> {
        self.add_mark();
        let bytes = self.pending.split().freeze();
        self.spooled_offset = self.spooled_offset.saturating_add(bytes.len() as u64);
        self.write(bytes, sync).await
    }

    async fn write(&mut self, bytes: Bytes, sync: bool) -> Result<(), SnapshotError> {
        // Gone for good if it fails: what is in the file then is found out by reading it.
        let mut growing = self.file.take().ok_or(SnapshotError::WorkerPanicked)?;
        let (marks, at) = (std::mem::take(&mut self.marks), self.received_at);
        growing.set_clock(self.server_clock.stretch_measurement());
        growing.set_read_delays(self.read_delays.clone());
        let written = run_blocking(move || {
            if !bytes.is_empty() {
                growing.append(&bytes, marks, at)?;
            }
            if sync {
                growing.sync()?;
            }
            Ok::<_, SpoolError>(growing)
        });
        self.file = Some(written.await??);
        Ok(())
    }

    /// Whether the stretch is to end, and may end here.
    fn is_rotation_due(&self, receiver: &Receiver<'_>, clock: &dyn Clock) -> bool {
        let boundary = self.parser.boundary();
        let len = boundary.saturating_sub(self.file_name.first);
        let age = clock.elapsed().saturating_sub(self.began_at);
        let settings = receiver.settings;
        let due = len >= settings.rotate_bytes
            || (self.has_written && age >= settings.rotate_after)
            || age >= settings.rotate_idle;
        let may = boundary >= self.spooled_offset
            && len > 0
            && (!self.parser.in_transaction() || len >= MAX_TRANSACTION_BYTES);
        due && may
    }

    /// Ends the stretch after its last whole command and begins the next one there.
    async fn rotate(&mut self, receiver: &mut Receiver<'_>, clock: &dyn Clock) -> Result<(), SnapshotError> {
        let boundary = self.parser.boundary();
        let head = usize::try_from(boundary.saturating_sub(self.spooled_offset)).unwrap_or(0).min(self.pending.len());
        self.add_mark();
        let head = self.pending.split_to(head).freeze();
        self.write(head, true).await?;
        self.spooled_offset = boundary;
        let beginning = StretchStart {
            replid: self.file_name.replid,
            first: boundary,
            db: self.parser.db(),
            in_transaction: self.parser.in_transaction(),
            follows: None,
            started_at: self.received_at,
            run: self.run.clone(),
            missed_until: Some(self.backlog_end).filter(|until| *until > boundary),
        };
        let growing = receiver.begin_stretch_file(beginning).await?;
        receiver.uploads.enqueue(self.file_name);
        self.file_name = growing.name();
        self.file = Some(growing);
        (self.began_at, self.has_written) = (clock.elapsed(), false);
        self.read_delays = ReadDelays::default();
        self.server_clock.begin_stretch();
        Ok(())
    }
}
