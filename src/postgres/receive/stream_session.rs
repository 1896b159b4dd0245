//! One stream of one timeline, from its start to whatever ends it: reads as much as comes, syncs when the socket has
//! drained, reports what is safe, answers the server however busy the rest is.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::sync::watch;

use super::error::ReceiveError;
use super::intake::{SpoolCommit, SpoolScope};
use super::receiver_state::ReceiverState;
use super::segment_uploads::{UploadLoad, UploadedSegment};
use super::server_clock::ClockProbe;
use super::settings::{ReceiveEvent, ReceiveObserver, ReceiveSettings};
use crate::base::clock::Clock;
use crate::postgres::archive::pieces::WalPiece;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;
use crate::postgres::wire::{self, PhysicalStream, StandbyStatus, WalStreamEvent};

/// Reports go out at least this often, so that the server knows we are there and monitoring sees how far.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// The least time after which a silent connection is dead, whatever TCP thinks. An idle server has nothing to say but
/// its clock, for which we ask every ten seconds: more than one question was not answered then.
const MIN_SILENCE_LIMIT: Duration = Duration::from_secs(30);

/// The same for a server that never cuts off a silent standby (`wal_receiver_timeout` is 60 s, too).
const DEFAULT_SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// Messages taken in one go before the rest gets its turn.
const MESSAGES_PER_TURN: usize = 64;

/// Why a stream ended, other than by an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// The timeline goes no further.
    Timeline,
    /// The position that was asked for is archived.
    Reached,
    /// We are to stop.
    Shutdown,
}

/// One stream and what it feeds.
pub(super) struct StreamSession<'a> {
    settings: &'a ReceiveSettings,
    clock: &'a dyn Clock,
    observer: &'a dyn ReceiveObserver,
    state: &'a mut ReceiverState,
    shutdown: watch::Receiver<bool>,
    /// The server cuts a standby off that is silent for longer; zero for never.
    sender_timeout: Duration,
    load: watch::Receiver<UploadLoad>,
    reported: Lsn,
    reported_at: Duration,
    heard_at: Duration,
    /// Whether reports may go out. A report moves the slot, also back, so none is sent that would move it to WAL that
    /// the server has removed: it reports such a loss at once.
    may_report: bool,
    reply_wanted: bool,
    question: ClockProbe,
    ended: bool,
}

impl<'a> StreamSession<'a> {
    pub(super) fn new(
        settings: &'a ReceiveSettings,
        clock: &'a dyn Clock,
        observer: &'a dyn ReceiveObserver,
        state: &'a mut ReceiverState,
        shutdown: watch::Receiver<bool>,
        sender_timeout: Duration,
    ) -> StreamSession<'a> {
        let (now, load) = (clock.elapsed(), state.uploads.subscribe_load());
        StreamSession {
            settings,
            clock,
            observer,
            state,
            shutdown,
            sender_timeout,
            load,
            reported: Lsn::INVALID,
            reported_at: now,
            heard_at: now,
            may_report: true,
            reply_wanted: true,
            question: ClockProbe::first_due_at(now),
            ended: false,
        }
    }

    /// Reports nothing before the server has sent something. For a stream that begins before what the slot holds.
    pub(super) fn report_once_heard(&mut self) {
        self.may_report = false;
    }

    pub(super) async fn run(&mut self, stream: &mut PhysicalStream) -> Result<StreamEnd, ReceiveError> {
        loop {
            let drained = self.drain_socket(stream)?;
            while let Some(done) = self.state.uploads.try_next_uploaded() {
                self.state.finish_upload(done, self.observer)?;
            }
            self.copy_if_due();
            let end_received = self.end_received();
            if *self.shutdown.borrow() {
                self.state.intake.commit_now(SpoolScope::All, &mut self.state.uploads).await?;
            } else if self.ended || end_received {
                self.state.intake.commit_now(SpoolScope::Tail, &mut self.state.uploads).await?;
            } else if (drained || !self.has_room())
                && self.state.intake.wants_commit(SpoolScope::Needed, &self.state.uploads)
            {
                self.state.intake.start_commit(SpoolScope::Needed, &self.state.uploads);
            }
            self.send_report(stream).await?;
            if self.ended {
                return Ok(StreamEnd::Timeline);
            }
            if *self.shutdown.borrow() {
                return Ok(StreamEnd::Shutdown);
            }
            if end_received && self.state.uploads.outstanding() == 0 && self.end_safe() {
                return Ok(StreamEnd::Reached);
            }
            if drained || !self.has_room() {
                self.wait_for_event(stream).await?;
            }
        }
    }

    fn has_room(&self) -> bool {
        !self.ended
            && !self.has_received_all()
            && self.state.intake.has_room(&self.state.uploads, self.settings.spool_limit)
    }

    /// All that was asked for has come, as far as it makes sense to read on: with acknowledgement by the repository up
    /// to the end of the segment.
    fn has_received_all(&self) -> bool {
        self.end_received() && self.end_safe()
    }

    fn end_received(&self) -> bool {
        self.settings.end.is_some_and(|end| self.state.intake.position() >= end)
    }

    fn end_safe(&self) -> bool {
        self.settings.end.is_none_or(|end| self.state.intake.safe_lsn() >= end)
    }

    /// Takes what has been read or can be read without waiting. Whether the socket is drained.
    fn drain_socket(&mut self, stream: &mut PhysicalStream) -> Result<bool, ReceiveError> {
        for _ in 0..MESSAGES_PER_TURN {
            if !self.has_room() {
                return Ok(false);
            }
            let event = match stream.buffered()? {
                Some(event) => event,
                None => match stream.next().now_or_never() {
                    Some(event) => event?,
                    None => return Ok(true),
                },
            };
            self.handle_event(event)?;
        }
        Ok(false)
    }

    fn handle_event(&mut self, event: WalStreamEvent) -> Result<(), ReceiveError> {
        self.heard_at = self.clock.elapsed();
        self.may_report = true;
        match event {
            WalStreamEvent::Wal(wal) => self.state.intake.push_wal(&wal, &mut self.state.uploads)?,
            WalStreamEvent::Keepalive(keepalive) => {
                self.state.intake.set_server_end(keepalive.server_end);
                self.reply_wanted |= keepalive.reply_requested;
                // The trip is taken after the time, so that it is not too short for it.
                let came = self.clock.now();
                if !keepalive.reply_requested
                    && let Some(trip) = self.question.mark_answered(self.clock.elapsed())
                {
                    self.state.uploads.clocks.add_answer(keepalive.sent_at, came, trip);
                    self.observer.event(ReceiveEvent::Clock { note: self.state.uploads.clocks.current_note() });
                }
            }
            WalStreamEvent::EndOfTimeline => self.ended = true,
        }
        Ok(())
    }

    /// Copies what has come of the segment under way, if it is time.
    fn copy_if_due(&mut self) {
        if let Some(piece) = self.state.copies.try_next_finished() {
            self.state.intake.mark_copied(piece);
        }
        self.state.copies.copy_if_due(
            self.state.intake.segment_worth_copying(),
            self.clock.elapsed(),
            &self.state.uploads.clocks,
        );
    }

    /// How long until there is something to do that nobody calls for.
    fn time_until_due(&self) -> Duration {
        if !self.may_report {
            return REPORT_INTERVAL;
        }
        let copy = self
            .state
            .intake
            .segment_worth_copying()
            .and_then(|_| self.state.copies.until_due(self.state.intake.position(), self.clock.elapsed()));
        let question = self.question.until_due(self.clock.elapsed());
        self.time_until_report().min(copy.unwrap_or(Duration::MAX)).min(question.unwrap_or(Duration::MAX))
    }

    /// How long the server may be silent: as long as it lets us be (`wal_sender_timeout`).
    fn silence_limit(&self) -> Duration {
        if self.sender_timeout.is_zero() { DEFAULT_SILENCE_LIMIT } else { self.sender_timeout.max(MIN_SILENCE_LIMIT) }
    }

    /// How long until the next report is due.
    fn time_until_report(&self) -> Duration {
        let mut every = REPORT_INTERVAL;
        if !self.sender_timeout.is_zero() {
            every = every.min(self.sender_timeout / 3);
        }
        every.saturating_sub(self.clock.elapsed().saturating_sub(self.reported_at))
    }

    /// Sends a report if there is something new in it, if the server wants one, or if it is time for that or to ask for
    /// its clock.
    async fn send_report(&mut self, stream: &mut PhysicalStream) -> Result<(), ReceiveError> {
        if !self.may_report {
            return Ok(());
        }
        // What is only in memory is not written, so both positions are the one that is safe. Nothing is ever applied.
        let safe = self.state.intake.safe_lsn();
        let ask = self.question.is_due(self.clock.elapsed());
        if safe != self.reported || self.reply_wanted || ask || self.time_until_report().is_zero() {
            let status = StandbyStatus { written: safe, flushed: safe, reply_wanted: ask };
            if ask {
                self.question.mark_sent(self.clock.elapsed());
            }
            stream.send_status(status, PgTime::from_timestamp(self.clock.now())).await?;
            if safe != self.reported {
                self.observer.event(ReceiveEvent::Acknowledged { until: safe });
            }
            self.reported = safe;
            self.reported_at = self.clock.elapsed();
            self.reply_wanted = false;
        }
        Ok(())
    }

    /// Waits for whatever comes first.
    async fn wait_for_event(&mut self, stream: &mut PhysicalStream) -> Result<(), ReceiveError> {
        let may_take = self.has_room();
        if !may_take {
            // It may be speaking; we don't listen.
            self.heard_at = self.clock.elapsed();
        } else if self.clock.elapsed().saturating_sub(self.heard_at) > self.silence_limit() {
            let (host, limit) = (stream.peer().to_owned(), self.silence_limit());
            return Err(wire::ReplicationError::TimedOut { host, limit }.into());
        }
        let pause = self.time_until_due();
        let StreamSession { state, clock, shutdown, load, .. } = self;
        let ReceiverState { intake, uploads, copies, .. } = &mut **state;
        let next = tokio::select! {
            event = stream.next(), if may_take => SessionEvent::Event(event),
            committed = intake.commit_ended() => SessionEvent::Committed(committed),
            uploaded = uploads.next_uploaded() => SessionEvent::Uploaded(uploaded),
            copied = copies.next_finished() => SessionEvent::Copied(copied),
            () = clock.sleep(pause) => SessionEvent::Nothing,
            _ = shutdown.changed() => SessionEvent::Nothing,
            _ = load.changed() => SessionEvent::Nothing,
        };
        match next {
            SessionEvent::Event(event) => self.handle_event(event?),
            SessionEvent::Committed(committed) => self.state.intake.apply_commit(committed?, &mut self.state.uploads),
            SessionEvent::Uploaded(uploaded) => self.state.finish_upload(uploaded, self.observer),
            SessionEvent::Copied(piece) => {
                piece.into_iter().for_each(|piece| self.state.intake.mark_copied(piece));
                Ok(())
            }
            SessionEvent::Nothing => Ok(()),
        }
    }
}

/// What came first.
enum SessionEvent {
    Event(Result<WalStreamEvent, wire::ReplicationError>),
    Committed(Result<SpoolCommit, ReceiveError>),
    Uploaded(UploadedSegment),
    Copied(Option<WalPiece>),
    Nothing,
}
