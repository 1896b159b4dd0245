//! The snapshot that a stream is of use with: taken beside it, and tried again, ever more rarely, until there is one.
//!
//! Each attempt makes the server fork and write all it has, so it is not to be wasted: not on a repository that does not take the stream either,
//! and not again and again where it fails in the same way.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::{JoinError, JoinHandle};

use super::resume::is_based;
use super::{ReceiveEvent, ReceivePosition, Receiver};
use crate::base::retry::{Backoff, ErrorClass, RetryPolicy};
use crate::redis::archive::snapshot::error::SnapshotError;
use crate::redis::archive::snapshot::take::{BegunSnapshot, SnapshotSource, take};
use crate::redis::archive::{Archive, SnapshotManifest};
use crate::redis::wire::ReplicationId;
use crate::vault::SkippedRepositories;

/// Pauses after what may be better the next time.
const AGAIN: RetryPolicy =
    RetryPolicy { first: Duration::from_secs(30), longest: Duration::from_secs(30 * 60), total: None };
/// The pause after what trying again does not mend. Somebody may mend it meanwhile (the right to write, a full key ring), and then no restart
/// should be needed. It holds for a new connection also: a server whose connections break every minute would fork every minute.
const LATER: Duration = Duration::from_secs(60 * 60);

/// A snapshot under way.
pub(super) type SnapshotTask = JoinHandle<Result<SnapshotManifest, SnapshotError>>;
/// How it ended.
pub(super) type SnapshotTaskResult = Result<Result<SnapshotManifest, SnapshotError>, JoinError>;

/// Whether a snapshot leads to the stream, and what is done about it.
#[derive(Debug)]
pub(super) struct BaseSnapshot {
    /// Whether one does.
    pub(super) there: bool,
    /// The one under way.
    pub(super) taking: Option<SnapshotTask>,
    /// Whether one does is being found out, of all that an earlier run left.
    looking: Option<JoinHandle<bool>>,
    /// The histories in which the stream came without a break, in order, each with the offset from which it did.
    begins: Vec<(ReplicationId, u64)>,
    /// Whether the last one came to nothing: a replica that refuses, or whose disk is so slow that the stream has gone on beyond what the master
    /// keeps, would do so again. The next one comes from the master itself.
    failed: bool,
    backoff: Backoff,
    /// None is begun before.
    again: Duration,
}

impl BaseSnapshot {
    pub(super) fn new(now: Duration, seed: u64) -> BaseSnapshot {
        let backoff = Backoff::new(AGAIN, now, seed);
        BaseSnapshot {
            there: false,
            taking: None,
            looking: None,
            begins: Vec::new(),
            failed: false,
            backoff,
            again: now,
        }
    }

    /// Begins to find out whether a snapshot leads to the position. Beside the stream: a week of it is long to look through in a store far away,
    /// and what the server keeps meanwhile is little.
    pub(super) fn look(&mut self, instance: &Archive, position: Option<ReceivePosition>) {
        let (Some(position), instance) = (position, instance.clone()) else { return };
        self.looking = Some(tokio::spawn(async move {
            let clock = instance.vault().clock();
            let mut backoff = Backoff::new(AGAIN, clock.elapsed(), position.offset);
            loop {
                match is_based(&instance, &position).await {
                    Ok(based) => return based,
                    Err(error) => {
                        let pause = backoff.pause(clock.elapsed()).unwrap_or(AGAIN.longest);
                        tracing::warn!(%error, ?pause, "cannot tell yet whether a snapshot leads to the stream");
                        clock.sleep(pause).await;
                    }
                }
            }
        }));
    }

    /// Takes in what was found out, if that is known by now.
    async fn looked(&mut self) {
        if let Some(looked) = self.looking.take_if(|looking| looking.is_finished()) {
            // Where looking gave up, another snapshot is taken: that is never wrong.
            self.there |= looked.await.unwrap_or(false);
        }
    }

    /// The stream begins anew.
    pub(super) fn forget(&mut self) {
        self.there = false;
        self.begins.clear();
        if let Some(taking) = self.taking.take() {
            taking.abort();
        }
        if let Some(looking) = self.looking.take() {
            looking.abort();
        }
    }

    /// The stream comes from there, or goes on there under another name.
    pub(super) fn follows_from(&mut self, replid: ReplicationId, offset: u64) {
        if self.begins.last().is_none_or(|(last, _)| *last != replid) {
            self.begins.push((replid, offset));
        }
    }

    /// Whether the stream has all that comes after that.
    fn leads(&self, replid: ReplicationId, offset: u64) -> bool {
        self.begins.iter().enumerate().any(|(nth, (history, from))| {
            let end = nth.checked_add(1).and_then(|next| self.begins.get(next)).map_or(u64::MAX, |(_, end)| *end);
            *history == replid && (*from..=end).contains(&offset)
        })
    }

    /// Whether one is to be begun now.
    fn is_due(&self, now: Duration) -> bool {
        !self.there && self.taking.is_none() && self.looking.is_none() && now >= self.again
    }

    /// How long a stream that begins with a snapshot has to wait for it: less than after what trying again does not mend, for nothing is received
    /// meanwhile.
    pub(super) fn wait(&self, now: Duration) -> Duration {
        self.again.saturating_sub(now).min(AGAIN.longest)
    }

    pub(super) fn pause(&mut self, now: Duration) -> Duration {
        self.failed = true;
        // Whole seconds read better in the log.
        let pause = Duration::from_secs(self.backoff.pause(now).unwrap_or(AGAIN.longest).as_secs().max(1));
        self.again = now.saturating_add(pause);
        pause
    }

    /// One has just begun: a stream that breaks and begins anew does not begin another at once.
    pub(super) fn hold(&mut self, now: Duration) {
        self.again = self.again.max(now.saturating_add(AGAIN.first));
    }

    fn pause_long(&mut self, now: Duration) {
        self.failed = true;
        self.again = now.saturating_add(LATER);
    }

    /// The snapshot under way has ended, well or not. Gives the one that leads to the stream.
    fn ended(&mut self, taken: SnapshotTaskResult, now: Duration) -> Option<SnapshotManifest> {
        self.taking = None;
        match taken {
            Ok(Ok(snapshot)) => {
                let leads =
                    snapshot.replid.zip(snapshot.offset).is_some_and(|(replid, offset)| self.leads(replid, offset));
                if leads {
                    (self.there, self.failed) = (true, false);
                    self.backoff.reset(now);
                    return Some(snapshot);
                }
                // A replica may be behind its master.
                let (label, pause) = (snapshot.label, self.pause(now));
                tracing::warn!(
                    label,
                    ?pause,
                    "the snapshot does not lead to the stream that is followed; another one is taken"
                );
            }
            Ok(Err(error)) if error.class() == ErrorClass::Transient => {
                let pause = self.pause(now);
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, ?pause, "no snapshot to begin with; it is tried again");
            }
            Ok(Err(error)) => {
                self.pause_long(now);
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, again_in = ?LATER, "no snapshot to begin with: without one nothing can be restored to a moment from here on");
            }
            Err(error) if error.is_panic() => {
                self.pause_long(now);
                tracing::error!(again_in = ?LATER, "taking a snapshot to begin with gave up; this is a bug in walkeep, and its message is in the log above");
            }
            // By `forget`, for another one.
            Err(_aborted) => {}
        }
        None
    }
}

impl Receiver<'_> {
    /// Begins a snapshot beside the stream.
    pub(super) fn begin_base(&mut self) -> oneshot::Receiver<BegunSnapshot> {
        let (begun, hears) = oneshot::channel();
        let (instance, source) = (self.instance.clone(), self.settings.source.clone());
        let absent = Arc::new(SkippedRepositories::of(self.uploads.away()));
        let from_master = self.base.failed;
        let take = async move {
            let input = if from_master { SnapshotSource::Master(&source) } else { SnapshotSource::Server(&source) };
            take(&instance, input, Some(begun), &absent, &mut |_| {}).await
        };
        self.base.taking = Some(tokio::spawn(take));
        hears
    }

    /// Why the snapshot under way came to nothing.
    pub(super) async fn base_failed(&mut self) -> SnapshotError {
        match self.base.taking.take() {
            Some(taking) => match taking.await {
                Ok(Err(error)) => error,
                Ok(Ok(_)) | Err(_) => SnapshotError::Lost,
            },
            None => SnapshotError::Lost,
        }
    }

    /// The snapshot under way has ended, well or not.
    pub(super) fn base_ended(&mut self, taken: SnapshotTaskResult, now: Duration) {
        if let Some(snapshot) = self.base.ended(taken, now) {
            self.observer.event(ReceiveEvent::Snapshot(&snapshot));
        }
    }

    /// The snapshot under way; never ready if there is none.
    pub(super) async fn base(taking: &mut Option<SnapshotTask>) -> SnapshotTaskResult {
        match taking {
            Some(taking) => taking.await,
            None => std::future::pending().await,
        }
    }

    /// Begins a snapshot if there is none to begin with, none under way, and the time for the next attempt has come.
    pub(super) async fn retry_base(&mut self, now: Duration) {
        self.base.looked().await;
        if !self.base.is_due(now) {
            return;
        }
        drop(self.begin_base());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{AGAIN, BaseSnapshot, LATER};
    use crate::redis::archive::snapshot::error::SnapshotError;
    use crate::redis::wire::ReplicationId;

    fn id(history: char) -> ReplicationId {
        history.to_string().repeat(40).parse().unwrap()
    }

    fn transient() -> SnapshotError {
        SnapshotError::Unfit { server: "x".into(), why: "is busy".into() }
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
            assert!(base.ended(Ok(Err(transient())), now).is_none());
            let pause = due(&base, now);
            pauses.push(pause);
            now += pause;
        }
        let half = AGAIN.longest / 2;
        assert!(
            pauses[0] <= AGAIN.first + Duration::from_secs(1)
                && pauses.iter().rev().take(4).all(|pause| *pause >= half),
            "{pauses:?}"
        );
        // A day of it asks the server less than a hundred times.
        assert!(pauses.iter().all(|pause| *pause <= AGAIN.longest + Duration::from_secs(1)), "{pauses:?}");
    }

    #[test]
    fn what_trying_again_does_not_mend_waits_for_an_hour() {
        let now = Duration::from_secs(7);
        let mut base = BaseSnapshot::new(now, 1);
        assert!(base.ended(Ok(Err(SnapshotError::Lost)), now).is_none());
        assert_eq!(due(&base, now), LATER);
    }

    #[test]
    fn a_stream_that_begins_anew_waits_as_well() {
        let mut base = BaseSnapshot::new(Duration::ZERO, 1);
        assert_eq!(base.wait(Duration::ZERO), Duration::ZERO);
        let pause = base.pause(Duration::ZERO);
        base.forget();
        assert_eq!((base.wait(Duration::ZERO), base.wait(pause)), (pause, Duration::ZERO));
        let mut held = BaseSnapshot::new(pause, 1);
        held.hold(pause);
        assert_eq!(held.wait(pause), AGAIN.first);
        base.pause_long(pause);
        assert_eq!(base.wait(pause), AGAIN.longest);
    }

    #[tokio::test]
    async fn a_panic_is_no_snapshot_and_not_tried_at_once() {
        let now = Duration::from_secs(7);
        let mut base = BaseSnapshot::new(now, 1);
        let panicked = tokio::spawn(async { panic!("a bug") }).await.map(|()| Err(SnapshotError::Lost));
        assert!(base.ended(panicked, now).is_none());
        assert_eq!(due(&base, now), LATER);
        let mut base = BaseSnapshot::new(now, 1);
        let task = tokio::spawn(std::future::pending::<()>());
        task.abort();
        assert!(base.ended(task.await.map(|()| Err(SnapshotError::Lost)), now).is_none());
        assert!(base.is_due(now));
    }

    #[test]
    fn only_a_snapshot_from_the_streams_first_byte_on_leads_to_it() {
        let mut base = BaseSnapshot::new(Duration::ZERO, 1);
        assert!(!base.leads(id('a'), 5));
        base.follows_from(id('a'), 100);
        base.follows_from(id('a'), 150);
        for (history, offset, expected) in [('a', 99, false), ('a', 100, true), ('a', 7000, true), ('b', 100, false)] {
            assert_eq!(base.leads(id(history), offset), expected, "{history} {offset}");
        }
        // After a failover, what the old master wrote beyond it is in no stream.
        base.follows_from(id('b'), 200);
        for (history, offset, expected) in [('a', 200, true), ('a', 201, false), ('b', 199, false), ('b', 200, true)] {
            assert_eq!(base.leads(id(history), offset), expected, "{history} {offset}");
        }
        base.forget();
        assert!(!base.leads(id('b'), 200));
    }
}
