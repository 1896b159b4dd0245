//! The streaming receiver: WAL of one cluster from a server into the archive, without a gap, as long as it is let.
//!
//! ```text
//! replication --piece--> intake --segment--> upload --> archive::ingest          whole segments, straight from memory
//!                          |  |--tail--> archive::spool                            what is no whole segment yet
//!                          |  \--piece--> archive::pieces                          the same, some seconds later
//!                          \--> acknowledge --position--> replication             what is safe
//! ```
//!
//! While the server is ahead, whole segments are made in memory, checked, sealed and put into the repository, several
//! at once, and each is acknowledged when it and all before it are there. At the log's end the growing segment goes to
//! the spool: whenever the socket has drained, everything that came is written and synced at once, and then
//! acknowledged. So a synchronous commit waits for one fsync, and a backlog is written once, compressed, instead of
//! twice.
//!
//! # The order of durable effects
//!
//! 1. The slot exists and holds WAL before anything is streamed.
//! 2. A timeline's history is archived before any of its WAL is streamed.
//! 3. Bytes are appended to the spool, then synced; then they may be acknowledged ([`acknowledge`]). With `acknowledge
//!    = "repository"` they may not; there a piece is put into every repository ([`piece_uploads`]), and then what it
//!    holds may be.
//! 4. A whole segment is put into every repository, under its name, all at once; then it may be acknowledged.
//! 5. Only then is its spool file removed, and its pieces.
//! 6. The part of a segment in which a timeline ended is archived as a file of its own before its spool file is
//!    removed, and before the position falls back to the beginning of that segment on the next timeline.
//! 7. A gap is recorded in the repository before anything after it is received.
//!
//! A crash after any of these steps leaves the steps before it done, and nothing of the later ones. What was
//! acknowledged is in the spool or in the repository; what was not, the server still has, because the slot holds it. On
//! the next start ([`resume`]) the repository is listed, spooled segments that are there already are removed, whole
//! ones are put there, and the stream begins anew at the first byte of the segment under way; whatever of it was
//! spooled is compared with what the server sends.
//!
//! # What it does not do
//!
//! It replays nothing, so it never reports anything as applied: with `synchronous_commit = remote_apply` a commit that
//! waits for walkeep waits for ever. With `acknowledge = "repository"` a synchronous commit waits until the next piece
//! is put, [`ReceiveSettings::copy_every`] at the most and what the put takes; without pieces, until its segment is
//! full or switched. Choose `spool`, the default, for a fast synchronous standby. The index is filled by whoever
//! observes the receiver ([`ReceiveObserver`]); nothing here waits for it.
//!
//! Every ten seconds the server is asked for its clock ([`server_clock`]); how far that was from ours stands with each
//! segment and piece, so that a restore of PostgreSQL and Redis to one moment knows it. Not so for a standby, as
//! commits carry the time of its primary.
//!
//! Memory: [`ReceiveSettings::memory`] bytes of segments on their way to the repository, one segment under way, and
//! their sealed forms; at least two segments, however large they are.

mod intake;
mod segment_uploads;
pub mod acknowledge;
mod resume_context;
mod resume;
mod archived_path;
mod slot;
mod error;
mod settings;
mod server_clock;
mod piece_uploads;
mod receiver_state;
mod piece_copies;
mod followers;
#[cfg(test)]
mod followers_model;
mod stream_session;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

pub use acknowledge::AcknowledgePolicy;
pub use error::ReceiveError;
pub use settings::{ReceiveEvent, ReceiveObserver, ReceiveSettings};

use crate::base::clock::{Clock, timeout};
use crate::base::retry::{Backoff, ErrorClass, RetryPolicy};
use crate::postgres::archive::Archive;
use crate::postgres::archive::gap::Gap;
use crate::postgres::archive::spool::Spool;
use crate::postgres::fork_check::{ComparedWal, ForkCause, FoundFork, Verdict};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::timeline::{TimelineId, TimelinePath};
use crate::postgres::wire::{self, NextTimeline, ReplicationConnection, SlotName, StartedReplication};
use followers::Followers;
use intake::{IntakeStart, SpoolScope, TimelineIntake};
use piece_copies::PieceCopies;
use receiver_state::ReceiverState;
use resume::GapEnd;
use resume_context::ResumeContext;
use segment_uploads::SegmentUploads;
use stream_session::{StreamEnd, StreamSession};

/// Pauses between attempts to connect. For ever: a server that is down for a week must be followed again when it is
/// back.
const RECONNECT_POLICY: RetryPolicy =
    RetryPolicy { first: Duration::from_millis(250), longest: Duration::from_secs(15), total: None };

/// How long a clean end may take: what is on its way to the repository, and the server's farewell.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);

/// A beginning of a segment that is shorter may be a page's header alone, which proves nothing.
const MIN_COMPARED_BYTES: usize = 8192;

/// How long the server may take to say farewell, if we are to stop: nothing depends on it any more.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);

/// How receiving ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReceiveOutcome {
    /// Everything before this is safe.
    pub until: Lsn,
    /// The timeline of that position.
    pub timeline: TimelineId,
    /// Whether [`ReceiveSettings::end`] was reached.
    pub reached: bool,
}

/// Receives until `settings.end` is archived, `shutdown` becomes true, or something happens that trying again can't
/// mend. Not cancel safe: end it by `shutdown`.
///
/// # Errors
/// [`ReceiveError`] of a kind that trying again doesn't mend. Everything acknowledged is safe nevertheless.
pub async fn receive(
    archive: &Arc<Archive>,
    settings: &ReceiveSettings,
    observer: &dyn ReceiveObserver,
    shutdown: watch::Receiver<bool>,
) -> Result<ReceiveOutcome, ReceiveError> {
    let spool = {
        let (state_dir, archive) = (settings.state_dir.clone(), Arc::clone(archive));
        tokio::task::spawn_blocking(move || Spool::open(&state_dir, &archive))
            .await
            .map_err(|_panic| ReceiveError::WorkerLost)??
    };
    let _alone = spool.lock()?;
    let mut receiver = Receiver { archive, settings, observer, shutdown, spool, state: None };
    let clock = Arc::clone(archive.vault().clock());
    let seed = u64::try_from(clock.now().as_nanosecond() & i128::from(u32::MAX)).unwrap_or(1);
    let mut backoff = Backoff::new(RECONNECT_POLICY, clock.elapsed(), seed);
    loop {
        let before = receiver.safe_lsn();
        match receiver.run_attempt(&*clock).await {
            Ok(finished) => return Ok(finished),
            Err(error) if error.class() == ErrorClass::Transient && !*receiver.shutdown.borrow() => {
                if receiver.safe_lsn() > before {
                    backoff.reset(clock.elapsed());
                }
                let pause = backoff.next_pause(clock.elapsed()).unwrap_or(RECONNECT_POLICY.longest);
                tracing::warn!(error = &error as &dyn std::error::Error, ?pause, "the stream of WAL broke");
                observer.event(ReceiveEvent::Disconnected { error, pause });
                receiver.spool_all().await?;
                receiver.pause(&*clock, pause).await?;
            }
            Err(error) => {
                receiver.finish_and_flush(&*clock).await?;
                return if *receiver.shutdown.borrow() { receiver.outcome(false) } else { Err(error) };
            }
        }
    }
}

struct Receiver<'a> {
    archive: &'a Arc<Archive>,
    settings: &'a ReceiveSettings,
    observer: &'a dyn ReceiveObserver,
    shutdown: watch::Receiver<bool>,
    spool: Spool,
    state: Option<ReceiverState>,
}

impl fmt::Debug for Receiver<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("settings", self.settings).finish_non_exhaustive()
    }
}

impl Receiver<'_> {
    fn safe_lsn(&self) -> Lsn {
        self.state.as_ref().map_or(Lsn::INVALID, |state| state.intake.safe_lsn())
    }

    fn outcome(&self, reached: bool) -> Result<ReceiveOutcome, ReceiveError> {
        let timeline = self.state.as_ref().map_or(TimelineId::FIRST, |state| state.intake.timeline());
        Ok(ReceiveOutcome { until: self.safe_lsn(), timeline, reached })
    }

    /// Makes what is in memory durable here, whatever the policy: the server may be gone for good. It is copied beside
    /// what comes next.
    async fn spool_all(&mut self) -> Result<(), ReceiveError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        state.intake.commit_now(SpoolScope::All, &mut state.uploads).await?;
        state.copies.copy_now(state.intake.unfinished_segment(), &state.uploads.clocks);
        state.intake.wait_for_removal().await;
        Ok(())
    }

    /// The same at the end, where nothing comes next: waits for the repositories, but not for ever.
    async fn finish_and_flush(&mut self, clock: &dyn Clock) -> Result<(), ReceiveError> {
        let end = clock.elapsed().saturating_add(SHUTDOWN_TIMEOUT);
        self.spool_all().await?;
        let Some(state) = &mut self.state else { return Ok(()) };
        // What is being copied may have been begun before the last of it came.
        let _patience_over = timeout(clock, SHUTDOWN_TIMEOUT, state.copies.wait_until_idle()).await;
        state.copies.copy_now(state.intake.unfinished_segment(), &state.uploads.clocks);
        while *self.shutdown.borrow() && state.uploads.outstanding() > 0 {
            let left = end.saturating_sub(clock.elapsed());
            let Some(done) = timeout(clock, left, state.uploads.next_uploaded()).await else { break };
            state.finish_upload(done, self.observer)?;
        }
        let left = end.saturating_sub(clock.elapsed());
        let _patience_over = timeout(clock, left, state.copies.wait_until_idle()).await;
        state.intake.wait_for_removal().await;
        Ok(())
    }

    /// Waits before the next attempt; segments go on being archived.
    async fn pause(&mut self, clock: &dyn Clock, pause: Duration) -> Result<(), ReceiveError> {
        let end = clock.elapsed().saturating_add(pause);
        loop {
            let left = end.saturating_sub(clock.elapsed());
            if left.is_zero() || *self.shutdown.borrow() {
                return Ok(());
            }
            let uploads = self.state.as_mut().map(|state| &mut state.uploads);
            let uploaded = async {
                match uploads {
                    Some(uploads) => uploads.next_uploaded().await,
                    None => std::future::pending().await,
                }
            };
            let done = tokio::select! {
                done = uploaded => done,
                () = clock.sleep(left) => return Ok(()),
                _ = self.shutdown.changed() => return Ok(()),
            };
            if let Some(state) = &mut self.state {
                state.finish_upload(done, self.observer)?;
            }
        }
    }

    /// Connects, streams timeline after timeline, and ends well or with an error.
    async fn run_attempt(&mut self, clock: &dyn Clock) -> Result<ReceiveOutcome, ReceiveError> {
        if *self.shutdown.borrow() {
            return self.outcome(false);
        }
        let (mut connection, mut known) = unless_stopped(&self.shutdown, Box::pin(self.connect(clock))).await?;
        if let Some(compared) = self.compare_kept(connection, &known, clock).await? {
            connection = compared;
        } else {
            (connection, known) = unless_stopped(&self.shutdown, Box::pin(self.connect(clock))).await?;
        }
        self.prepare_resume(&known).await?;
        self.compare_end(&known).await?;
        loop {
            let next = match self.stream_timeline(connection, &known, clock).await {
                Ok(StreamOutcome::Finished(finished)) => return Ok(finished),
                Ok(StreamOutcome::Next(same, next)) => {
                    connection = same;
                    next
                }
                Err(ReceiveError::Replication(error)) if error.is_wal_removed() => {
                    self.record_gap(&known, clock, &error).await?;
                    return Err(wire::ReplicationError::ConnectionClosed(None).into());
                }
                Err(ReceiveError::Replication(error)) if error.is_slot_lost() => {
                    return unless_stopped(&self.shutdown, self.replace_slot(error)).await;
                }
                Err(ReceiveError::Replication(error)) if error.is_ahead_of_server() => {
                    return Err(self.server_behind_error());
                }
                Err(error @ ReceiveError::Diverged { timeline, at, .. }) => {
                    let kept_until = self.state.as_ref().map_or(at, |state| state.intake.position());
                    let found = FoundFork { timeline, at, kept_until, cause: ForkCause::Differs };
                    known.compared_server().record_fork(self.archive, found).await;
                    return Err(error);
                }
                Err(error) => return Err(error),
            };
            let learned = resume::learn_path(&mut connection, self.archive, next.timeline);
            known.path = unless_stopped(&self.shutdown, learned).await?;
            self.switch_timeline(next, &known.path).await?;
        }
    }

    /// Connects, and learns which cluster this is, on which timelines, with which slot.
    async fn connect(&self, clock: &dyn Clock) -> Result<(ReplicationConnection, ResumeContext), ReceiveError> {
        let mut connection = ReplicationConnection::connect(&self.settings.conninfo).await?;
        let standby = connection.is_in_recovery().await?;
        let identity = connection.identify_system().await?;
        let size = connection.segment_size().await?;
        if let Some(expected) = self.archive.known_identity().await? {
            if expected.system_id != identity.system_id {
                let (host, found) = (connection.peer().to_owned(), identity.system_id);
                return Err(ReceiveError::WrongSystem { host, found, expected: expected.system_id });
            }
            if expected.segment_size != size {
                return Err(ReceiveError::WrongSize { found: size, expected: expected.segment_size });
            }
        }
        let slot = match &self.settings.slot {
            Some(name) => slot::ensure_slot(&mut connection, &self.settings.conninfo, name, clock).await?,
            None => None,
        };
        let path = resume::learn_path(&mut connection, self.archive, identity.timeline).await?;
        let server = connection.peer().to_owned();
        Ok((connection, ResumeContext { identity, standby, server, size, path, slot }))
    }

    /// Compares the server with the last whole segment that is kept. While something of the segment under way is in
    /// memory, that is compared with the stream and suffices. The connection is returned if it can be used for more.
    async fn compare_kept(
        &self,
        connection: ReplicationConnection,
        known: &ResumeContext,
        clock: &dyn Clock,
    ) -> Result<Option<ReplicationConnection>, ReceiveError> {
        let begun = self.state.as_ref().and_then(|state| state.intake.unfinished_segment());
        if begun.is_some_and(|segment| segment.bytes.len() >= MIN_COMPARED_BYTES) {
            return Ok(Some(connection));
        }
        let spool = self.state.is_none().then_some(&self.spool);
        let server = known.compared_server();
        let compared = ComparedWal { archive: self.archive, spool, known: &server, clock };
        let compare = async { Ok(Box::pin(compared.compare(connection)).await?) };
        let comparison = unless_stopped(&self.shutdown, compare).await?;
        match comparison.verdict {
            Verdict::Equal => {}
            Verdict::Unknown(timeline) => {
                tracing::debug!(%timeline, server = known.server, "the server no longer has the last archived segment");
            }
            Verdict::Recorded(recorded) => return Err(ReceiveError::forked(known.server.clone(), &recorded)),
            Verdict::Fork(found) => {
                let recorded = server.record_fork(self.archive, found).await;
                return Err(ReceiveError::forked(known.server.clone(), &recorded));
            }
        }
        Ok(comparison.connection)
    }

    /// Refuses a primary that has less than what was received of the segment under way.
    async fn compare_end(&self, known: &ResumeContext) -> Result<(), ReceiveError> {
        let Some(state) = &self.state else { return Ok(()) };
        let (timeline, kept_until, at) = (state.intake.timeline(), state.intake.position(), known.identity.flushed);
        let begun = state.intake.unfinished_segment().is_some_and(|segment| !segment.bytes.is_empty());
        if known.standby || !begun || timeline != known.identity.timeline || at >= kept_until {
            return Ok(());
        }
        let found = FoundFork { timeline, at, kept_until, cause: ForkCause::Behind };
        known.compared_server().record_fork(self.archive, found).await;
        Err(state.intake.diverged_error(at))
    }

    /// Finds where to begin, or checks that what is in memory still fits the server.
    async fn prepare_resume(&mut self, known: &ResumeContext) -> Result<(), ReceiveError> {
        let Some(state) = &self.state else {
            let followers = Followers::start(self.archive, &self.settings.state_dir);
            let (spool, memory) = (self.spool.clone(), self.settings.memory);
            let server = known.server.clone();
            let mut uploads = SegmentUploads::start(self.archive, spool, known.size, memory, followers, server)
                .map_err(|_no_thread| ReceiveError::WorkerLost)?;
            let found = resume::find_start(self.archive, &self.spool, known, &mut uploads);
            let beginning = unless_stopped(&self.shutdown, found).await?;
            uploads.clocks.resume(resume::read_clock_measurements(self.archive, &beginning, known.size).await);
            let intake = TimelineIntake::new(beginning, self.spool.clone(), known.size, self.settings.acknowledge)?;
            let copies = PieceCopies::new(self.archive, known.size, self.settings.copy_every);
            let path = known.path.truncated_to(intake.timeline());
            self.state = Some(ReceiverState { size: known.size, path, intake, uploads, copies });
            return Ok(());
        };
        let (timeline, position) = (state.intake.timeline(), state.intake.position());
        let common = resume::common_end(&state.path, position, &known.path);
        if common >= position && known.path.contains_timeline(timeline) {
            return Ok(());
        }
        // The server's history leaves ours before the end of what we have.
        let next = NextTimeline { timeline: known.path.timeline_at(common), start: common };
        self.switch_timeline(next, &known.path).await
    }

    /// Goes over to another timeline, at the beginning of the segment in which it forked off.
    async fn switch_timeline(&mut self, next: NextTimeline, path: &TimelinePath) -> Result<(), ReceiveError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        state.intake.commit_now(SpoolScope::Tail, &mut state.uploads).await?;
        self.wait_for_uploads().await?;
        let Some(state) = &mut self.state else { return Ok(()) };
        let safe = state.intake.safe_lsn();
        self.archive_unfinished_segment().await?;
        let Some(state) = &mut self.state else { return Ok(()) };
        let segment = state.size.segment_of(next.start);
        let beginning = IntakeStart { timeline: next.timeline, segment, unarchived: segment, spooled: None };
        let mut intake = TimelineIntake::new(beginning, self.spool.clone(), state.size, self.settings.acknowledge)?;
        intake.raise_safe_lsn(safe.min(next.start));
        state.copies.forget_positions();
        state.path = path.truncated_to(next.timeline);
        state.intake = intake;
        self.observer.event(ReceiveEvent::Timeline { timeline: next.timeline, from: next.start });
        Ok(())
    }

    /// Waits until everything that is on its way is in the repository.
    async fn wait_for_uploads(&mut self) -> Result<(), ReceiveError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        while state.uploads.outstanding() > 0 {
            let done = tokio::select! {
                done = state.uploads.next_uploaded() => done,
                _ = self.shutdown.changed() => return Err(wire::ReplicationError::ConnectionClosed(None).into()),
            };
            state.finish_upload(done, self.observer)?;
        }
        Ok(())
    }

    /// Archives what has come of a segment that will not be continued, and removes it from the spool.
    async fn archive_unfinished_segment(&mut self) -> Result<(), ReceiveError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        let Some(partial) = state.intake.current_segment() else { return Ok(()) };
        resume::archive_tail(self.archive, partial.name, partial.bytes, state.size).await?;
        state.copies.mark_archived(partial.name);
        let spool = self.spool.clone();
        tokio::task::spawn_blocking(move || spool.remove_segment(partial.name))
            .await
            .map_err(|_panic| ReceiveError::WorkerLost)??;
        Ok(())
    }

    /// Streams the timeline that the intake is on, to its end or ours.
    async fn stream_timeline(
        &mut self,
        connection: ReplicationConnection,
        known: &ResumeContext,
        clock: &dyn Clock,
    ) -> Result<StreamOutcome, ReceiveError> {
        let Some(state) = &mut self.state else { return Err(ReceiveError::WorkerLost) };
        let (timeline, from, server) =
            (state.intake.timeline(), state.intake.stream_from(), connection.peer().to_owned());
        let opened = open_stream(connection, self.settings.slot.as_ref(), from, timeline);
        let OpenedStream { started, standby, sender_timeout } = unless_stopped(&self.shutdown, opened).await?;
        if standby {
            tracing::info!(
                server,
                "the server is a standby: commits carry the time of its primary's clock, which is not asked"
            );
        }
        state.uploads.clocks.begin_stream(clock.machine(), standby);
        let mut stream = match started {
            StartedReplication::Streaming(stream) => stream,
            StartedReplication::TimelineEnded(connection, next) => return Ok(StreamOutcome::Next(connection, next)),
        };
        self.observer.event(ReceiveEvent::Streaming { server, timeline, from });
        let held_beyond = known.slot.and_then(|slot| slot.restart).is_some_and(|held| held > state.intake.safe_lsn());
        let mut session =
            StreamSession::new(self.settings, clock, self.observer, state, self.shutdown.clone(), sender_timeout);
        if held_beyond {
            session.report_once_heard();
        }
        let ended = session.run(&mut stream).await?;
        let farewell = match ended {
            StreamEnd::Timeline => SHUTDOWN_TIMEOUT,
            StreamEnd::Reached | StreamEnd::Shutdown => FAREWELL_TIMEOUT,
        };
        let finish = timeout(clock, farewell, stream.finish()).await;
        match (ended, finish) {
            (StreamEnd::Timeline, Some(finish)) => match finish? {
                (connection, Some(next)) => Ok(StreamOutcome::Next(connection, next)),
                (_, None) => Err(wire::ReplicationError::UnexpectedAnswer("the end of a timeline").into()),
            },
            (StreamEnd::Timeline, None) => Err(wire::ReplicationError::ConnectionClosed(None).into()),
            (ended, finish) => {
                if let Some(Ok((connection, _))) = finish {
                    connection.close().await;
                }
                self.finish_and_flush(clock).await?;
                Ok(StreamOutcome::Finished(self.outcome(ended == StreamEnd::Reached)?))
            }
        }
    }

    /// The server no longer has what we need: says so for ever, and goes on with what it has.
    async fn record_gap(
        &mut self,
        known: &ResumeContext,
        clock: &dyn Clock,
        error: &wire::ReplicationError,
    ) -> Result<(), ReceiveError> {
        let Some(state) = &mut self.state else { return Ok(()) };
        state.intake.commit_now(SpoolScope::Tail, &mut state.uploads).await?;
        let (lost_from, size) = (state.intake.position(), state.size);
        let (timeline, stream_from) = (state.intake.timeline(), state.intake.stream_from());
        let found = resume::find_gap_end(self.archive, known, lost_from).await?;
        let end = match found {
            GapEnd::OnServer(_, segment) | GapEnd::Archived(segment) => segment.start(size),
        };
        if end <= stream_from && !matches!(found, GapEnd::Archived(_)) {
            // The server is not ahead of us; it has lost what it has not written yet, which makes no sense.
            return Err(wire::ReplicationError::UnexpectedAnswer("START_REPLICATION").into());
        }
        if end > lost_from {
            let reason = format!("the server had removed the WAL before it was received: {error}");
            let gap = Gap { timeline, start: lost_from, end, noticed_at: clock.now(), reason };
            self.archive.record_gap(&gap).await?;
            self.observer.event(ReceiveEvent::Gap(gap));
        }
        self.archive_unfinished_segment().await?;
        let GapEnd::OnServer(timeline, segment) = found else {
            // What follows the hole is archived. The next attempt looks for the next hole.
            self.wait_for_uploads().await?;
            self.state = None;
            return Ok(());
        };
        let Some(state) = &mut self.state else { return Ok(()) };
        let beginning = IntakeStart { timeline, segment, unarchived: segment, spooled: None };
        state.intake = TimelineIntake::new(beginning, self.spool.clone(), size, self.settings.acknowledge)?;
        Ok(())
    }

    /// The server has invalidated our slot and refuses to stream from it. A new one holds WAL from now on. Whether what
    /// we need is still there, the next attempt shows.
    async fn replace_slot(&self, error: wire::ReplicationError) -> Result<ReceiveOutcome, ReceiveError> {
        let Some(slot) = &self.settings.slot else { return Err(error.into()) };
        tracing::error!(error = &error as &dyn std::error::Error, %slot, "the server has invalidated the replication \
            slot; it is dropped and created again");
        let mut connection = ReplicationConnection::connect(&self.settings.conninfo).await?;
        slot::drop_and_create(&mut connection, slot).await?;
        connection.close().await;
        Err(wire::ReplicationError::ConnectionClosed(None).into())
    }

    fn server_behind_error(&self) -> ReceiveError {
        match &self.state {
            Some(state) => {
                ReceiveError::ServerBehind { timeline: state.intake.timeline(), at: state.intake.stream_from() }
            }
            None => ReceiveError::WorkerLost,
        }
    }
}

/// How the stream of one timeline ended well.
enum StreamOutcome {
    Finished(ReceiveOutcome),
    Next(ReplicationConnection, NextTimeline),
}

/// A stream that has begun, and what has to be known of its server.
struct OpenedStream {
    started: StartedReplication,
    /// Whether the server is one.
    standby: bool,
    sender_timeout: Duration,
}

async fn open_stream(
    mut connection: ReplicationConnection,
    slot: Option<&SlotName>,
    from: Lsn,
    timeline: TimelineId,
) -> Result<OpenedStream, ReceiveError> {
    let sender_timeout = connection.show_duration("wal_sender_timeout").await?;
    let standby = connection.is_in_recovery().await?;
    let started = connection.start_physical(slot, from, timeline).await?;
    Ok(OpenedStream { started, standby, sender_timeout })
}

/// What `work` gives, unless we are to stop first: then it is dropped, and must have done nothing by halves.
async fn unless_stopped<T>(
    shutdown: &watch::Receiver<bool>,
    work: impl Future<Output = Result<T, ReceiveError>>,
) -> Result<T, ReceiveError> {
    let mut shutdown = shutdown.clone();
    let stopped = async {
        if shutdown.wait_for(|stop| *stop).await.is_err() {
            // No one is left who could stop us.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        done = work => done,
        () = stopped => Err(wire::ReplicationError::ConnectionClosed(None).into()),
    }
}
