//! The snapshot that a stream is of use with: taken beside it, and tried again, ever more rarely, until there is one.
//!
//! Each attempt makes the server fork and write all it has, so it is not to be wasted: not on a repository that does
//! not take the stream either, and not again and again where it fails in the same way.

use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};

use super::position::ReceivePosition;
use crate::base::retry::{Backoff, ErrorClass, RetryPolicy};
use crate::redis::archive::snapshot::error::SnapshotError;
use crate::redis::archive::{Archive, SnapshotManifest};
use crate::redis::format::replication_id::ReplicationId;
use crate::vault::VaultError;

/// Pauses after what may be better the next time.
const SNAPSHOT_RETRY_POLICY: RetryPolicy =
    RetryPolicy { first: Duration::from_secs(30), longest: Duration::from_secs(30 * 60), total: None };
/// The pause after what trying again does not mend. Somebody may mend it meanwhile (the right to write, a full key
/// ring), and then no restart should be needed. It holds for a new connection also: a server whose connections break
/// every minute would fork every minute.
const PERMANENT_ERROR_PAUSE: Duration = Duration::from_secs(60 * 60);

/// A snapshot under way.
pub(super) type SnapshotTask = JoinHandle<Result<SnapshotManifest, SnapshotError>>;
/// How it ended.
pub(super) type SnapshotTaskResult = Result<Result<SnapshotManifest, SnapshotError>, JoinError>;

/// Whether a snapshot leads to the stream, and what is done about it.
#[derive(Debug)]
pub(super) struct BaseSnapshot {
    /// Whether one does.
    pub(super) has_snapshot: bool,
    /// The one under way.
    pub(super) attempt: Option<SnapshotTask>,
    /// Whether one does is being found out, of all that an earlier run left.
    search: Option<JoinHandle<bool>>,
    /// The histories in which the stream came without a break, in order, each with the offset from which it did.
    history_starts: Vec<(ReplicationId, u64)>,
    /// Whether the last one came to nothing: a replica that refuses, or whose disk is so slow that the stream has gone
    /// on beyond what the master keeps, would do so again. The next one comes from the master itself.
    pub(super) last_attempt_failed: bool,
    backoff: Backoff,
    /// None is begun before.
    next_attempt_at: Duration,
}

impl BaseSnapshot {
    pub(super) fn new(now: Duration, seed: u64) -> BaseSnapshot {
        let backoff = Backoff::new(SNAPSHOT_RETRY_POLICY, now, seed);
        BaseSnapshot {
            has_snapshot: false,
            attempt: None,
            search: None,
            history_starts: Vec::new(),
            last_attempt_failed: false,
            backoff,
            next_attempt_at: now,
        }
    }

    /// Begins to find out whether a snapshot leads to the position. Beside the stream: a week of it is long to look
    /// through in a store far away, and what the server keeps meanwhile is little.
    pub(super) fn search_for_base(&mut self, instance: &Archive, position: Option<ReceivePosition>) {
        let (Some(position), instance) = (position, instance.clone()) else { return };
        self.search = Some(tokio::spawn(async move {
            let clock = instance.vault().clock();
            let mut backoff = Backoff::new(SNAPSHOT_RETRY_POLICY, clock.elapsed(), position.offset);
            loop {
                match has_base_snapshot(&instance, &position).await {
                    Ok(based) => return based,
                    Err(error) => {
                        let pause = backoff.next_pause(clock.elapsed()).unwrap_or(SNAPSHOT_RETRY_POLICY.longest);
                        tracing::warn!(%error, ?pause, "cannot tell yet whether a snapshot leads to the stream");
                        clock.sleep(pause).await;
                    }
                }
            }
        }));
    }

    /// Takes in what was found out, if that is known by now.
    pub(super) async fn collect_search_result(&mut self) {
        if let Some(looked) = self.search.take_if(|looking| looking.is_finished()) {
            // Where looking gave up, another snapshot is taken: that is never wrong.
            self.has_snapshot |= looked.await.unwrap_or(false);
        }
    }

    /// The stream begins anew.
    pub(super) fn reset(&mut self) {
        self.has_snapshot = false;
        self.history_starts.clear();
        if let Some(taking) = self.attempt.take() {
            taking.abort();
        }
        if let Some(looking) = self.search.take() {
            looking.abort();
        }
    }

    /// The stream comes from there, or goes on there under another name.
    pub(super) fn record_history_start(&mut self, replid: ReplicationId, offset: u64) {
        if self.history_starts.last().is_none_or(|(last, _)| *last != replid) {
            self.history_starts.push((replid, offset));
        }
    }

    /// Whether the stream has all that comes after that.
    fn covers(&self, replid: ReplicationId, offset: u64) -> bool {
        self.history_starts.iter().enumerate().any(|(nth, (history, from))| {
            let end =
                nth.checked_add(1).and_then(|next| self.history_starts.get(next)).map_or(u64::MAX, |(_, end)| *end);
            *history == replid && (*from..=end).contains(&offset)
        })
    }

    /// Whether one is to be begun now.
    pub(super) fn is_due(&self, now: Duration) -> bool {
        !self.has_snapshot && self.attempt.is_none() && self.search.is_none() && now >= self.next_attempt_at
    }

    /// How long a stream that begins with a snapshot has to wait for it: less than after what trying again does not
    /// mend, for nothing is received meanwhile.
    pub(super) fn time_until_due(&self, now: Duration) -> Duration {
        self.next_attempt_at.saturating_sub(now).min(SNAPSHOT_RETRY_POLICY.longest)
    }

    pub(super) fn schedule_retry(&mut self, now: Duration) -> Duration {
        self.last_attempt_failed = true;
        // Whole seconds read better in the log.
        let pause =
            Duration::from_secs(self.backoff.next_pause(now).unwrap_or(SNAPSHOT_RETRY_POLICY.longest).as_secs().max(1));
        self.next_attempt_at = now.saturating_add(pause);
        pause
    }

    /// One has just begun: a stream that breaks and begins anew does not begin another at once.
    pub(super) fn delay_retry(&mut self, now: Duration) {
        self.next_attempt_at = self.next_attempt_at.max(now.saturating_add(SNAPSHOT_RETRY_POLICY.first));
    }

    fn schedule_late_retry(&mut self, now: Duration) {
        self.last_attempt_failed = true;
        self.next_attempt_at = now.saturating_add(PERMANENT_ERROR_PAUSE);
    }

    /// The snapshot under way has ended, well or not. Gives the one that leads to the stream.
    pub(super) fn finish_attempt(&mut self, taken: SnapshotTaskResult, now: Duration) -> Option<SnapshotManifest> {
        self.attempt = None;
        match taken {
            Ok(Ok(snapshot)) => {
                let leads =
                    snapshot.replid.zip(snapshot.offset).is_some_and(|(replid, offset)| self.covers(replid, offset));
                if leads {
                    (self.has_snapshot, self.last_attempt_failed) = (true, false);
                    self.backoff.reset(now);
                    return Some(snapshot);
                }
                // A replica may be behind its master.
                let (label, pause) = (snapshot.label, self.schedule_retry(now));
                tracing::warn!(
                    label,
                    ?pause,
                    "the snapshot does not lead to the stream that is followed; another one is taken"
                );
            }
            Ok(Err(error)) if error.class() == ErrorClass::Transient => {
                let pause = self.schedule_retry(now);
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, ?pause, "no snapshot to begin with; it is tried again");
            }
            Ok(Err(error)) => {
                self.schedule_late_retry(now);
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, again_in = ?PERMANENT_ERROR_PAUSE, "no snapshot to begin with: without one \
                    nothing can be restored to a moment from here on");
            }
            Err(error) if error.is_panic() => {
                self.schedule_late_retry(now);
                tracing::error!(again_in = ?PERMANENT_ERROR_PAUSE, "taking a snapshot to begin with gave up; this is \
                    a bug in walkeep, and its message is in the log above");
            }
            // By `forget`, for another one.
            Err(_aborted) => {}
        }
        None
    }
}

/// Whether one of the newest snapshots leads to the position.
async fn has_base_snapshot(instance: &Archive, position: &ReceivePosition) -> Result<bool, SnapshotError> {
    let known = instance.list_known_stretches().await?;
    known.ensure_spool_was_read()?;
    let before = position.follows.map(|follows| (follows.replid, follows.offset));
    let ends: Vec<_> = [(position.replid, position.offset)].into_iter().chain(before).collect();
    for label in instance.list_snapshot_labels().await?.iter().rev().take(3) {
        let Some(snapshot) = ignore_damaged(instance.read_snapshot(label).await)?.flatten() else { continue };
        if ignore_damaged(instance.chain_reaches(&snapshot, &known, &ends).await)? == Some(true) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What was read; nothing, with a warning that names the object, if it is damaged.
pub(super) fn ignore_damaged<T>(read: Result<T, VaultError>) -> Result<Option<T>, SnapshotError> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error) if error.is_integrity() => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "going on without it; walkeep verify tells what else is damaged");
            Ok(None)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{BaseSnapshot, PERMANENT_ERROR_PAUSE, SNAPSHOT_RETRY_POLICY};
    use crate::redis::archive::snapshot::error::SnapshotError;
    use crate::redis::format::replication_id::ReplicationId;

    fn id(history: char) -> ReplicationId {
        history.to_string().repeat(40).parse().unwrap()
    }

    fn transient() -> SnapshotError {
        SnapshotError::UnsuitableServer { server: "x".into(), why: "is busy".into() }
    }

    /// When the next attempt is due, to the second.
    fn due(base: &BaseSnapshot, now: Duration) -> Duration {
        (0..).map(|seconds| now + Duration::from_secs(seconds)).find(|at| base.is_due(*at)).unwrap() - now
    }

    #[test]
    fn what_fails_is_tried_again_ever_more_rarely() {
        let mut now = Duration::ZERO;
        let mut base = BaseSnapshot::new(now, 1);
        assert!(base.is_due(now));
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert!(base.finish_attempt(Ok(Err(transient())), now).is_none());
            let pause = due(&base, now);
            pauses.push(pause);
            now += pause;
        }
        let half = SNAPSHOT_RETRY_POLICY.longest / 2;
        assert!(
            pauses[0] <= SNAPSHOT_RETRY_POLICY.first + Duration::from_secs(1)
                && pauses.iter().rev().take(4).all(|pause| *pause >= half),
            "{pauses:?}"
        );
        // A day of it asks the server less than a hundred times.
        assert!(
            pauses.iter().all(|pause| *pause <= SNAPSHOT_RETRY_POLICY.longest + Duration::from_secs(1)),
            "{pauses:?}"
        );
    }

    #[test]
    fn what_trying_again_does_not_mend_waits_for_an_hour() {
        let now = Duration::from_secs(7);
        let mut base = BaseSnapshot::new(now, 1);
        assert!(base.finish_attempt(Ok(Err(SnapshotError::WorkerPanicked)), now).is_none());
        assert_eq!(due(&base, now), PERMANENT_ERROR_PAUSE);
    }

    #[test]
    fn a_stream_that_begins_anew_waits_as_well() {
        let mut base = BaseSnapshot::new(Duration::ZERO, 1);
        assert_eq!(base.time_until_due(Duration::ZERO), Duration::ZERO);
        let pause = base.schedule_retry(Duration::ZERO);
        base.reset();
        assert_eq!((base.time_until_due(Duration::ZERO), base.time_until_due(pause)), (pause, Duration::ZERO));
        let mut held = BaseSnapshot::new(pause, 1);
        held.delay_retry(pause);
        assert_eq!(held.time_until_due(pause), SNAPSHOT_RETRY_POLICY.first);
        base.schedule_late_retry(pause);
        assert_eq!(base.time_until_due(pause), SNAPSHOT_RETRY_POLICY.longest);
    }

    #[tokio::test]
    async fn a_panic_is_no_snapshot_and_not_tried_at_once() {
        let now = Duration::from_secs(7);
        let mut base = BaseSnapshot::new(now, 1);
        let panicked = tokio::spawn(async { panic!("a bug") }).await.map(|()| Err(SnapshotError::WorkerPanicked));
        assert!(base.finish_attempt(panicked, now).is_none());
        assert_eq!(due(&base, now), PERMANENT_ERROR_PAUSE);
        let mut base = BaseSnapshot::new(now, 1);
        let task = tokio::spawn(std::future::pending::<()>());
        task.abort();
        assert!(base.finish_attempt(task.await.map(|()| Err(SnapshotError::WorkerPanicked)), now).is_none());
        assert!(base.is_due(now));
    }

    #[test]
    fn only_a_snapshot_from_the_streams_first_byte_on_leads_to_it() {
        let mut base = BaseSnapshot::new(Duration::ZERO, 1);
        assert!(!base.covers(id('a'), 5));
        base.record_history_start(id('a'), 100);
        base.record_history_start(id('a'), 150);
        for (history, offset, expected) in [('a', 99, false), ('a', 100, true), ('a', 7000, true), ('b', 100, false)] {
            assert_eq!(base.covers(id(history), offset), expected, "{history} {offset}");
        }
        // After a failover, what the old master wrote beyond it is in no stream.
        base.record_history_start(id('b'), 200);
        for (history, offset, expected) in [('a', 200, true), ('a', 201, false), ('b', 199, false), ('b', 200, true)] {
            assert_eq!(base.covers(id(history), offset), expected, "{history} {offset}");
        }
        base.reset();
        assert!(!base.covers(id('b'), 200));
    }
}
