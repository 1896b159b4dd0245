//! CPU work off the async threads, results in the order of submission; and the budget that bounds the bytes in flight.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Named threads that run one function over items, several at a time, with a bounded queue before them.
///
/// Dropping the stage lets its threads end once what was submitted is done.
pub struct WorkerStage<I, O> {
    queue: mpsc::Sender<StageJob<I, O>>,
    /// One permit an item from submission until its work is done: the bound of the queue.
    room: Arc<Semaphore>,
}

impl<I, O> fmt::Debug for WorkerStage<I, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stage").field("room", &self.room.available_permits()).finish_non_exhaustive()
    }
}

struct StageJob<I, O> {
    item: I,
    done: oneshot::Sender<O>,
    room: OwnedSemaphorePermit,
}

/// The work on an item panicked, or its stage is gone. The item is lost; nothing of it may be acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a worker thread gave up on an item; this is a bug in walkeep, and its message is in the log above")]
pub struct StageLostError;

/// One submitted item's result, to be awaited.
#[derive(Debug)]
pub struct PendingResult<O>(oneshot::Receiver<O>);

impl<O> PendingResult<O> {
    /// Waits for the result.
    ///
    /// # Errors
    /// [`StageLostError`] if the work panicked.
    pub async fn wait(self) -> Result<O, StageLostError> {
        self.0.await.map_err(|_closed| StageLostError)
    }
}

impl<I: Send + 'static, O: Send + 'static> WorkerStage<I, O> {
    /// Starts `threads` threads named `name`. At most `depth` items are waiting or being worked on; submitting more
    /// waits.
    ///
    /// # Errors
    /// The operating system gave no thread.
    pub fn start(
        name: &str,
        threads: usize,
        depth: usize,
        work: impl Fn(I) -> O + Send + Sync + 'static,
    ) -> io::Result<WorkerStage<I, O>> {
        let (queue, jobs) = mpsc::channel::<StageJob<I, O>>();
        let jobs = Arc::new(Mutex::new(jobs));
        let work = Arc::new(work);
        for n in 0..threads.max(1) {
            let (jobs, work) = (Arc::clone(&jobs), Arc::clone(&work));
            thread::Builder::new().name(format!("{name}-{n}")).spawn(move || run_worker(&jobs, &*work))?;
        }
        Ok(WorkerStage { queue, room: Arc::new(Semaphore::new(depth.max(1))) })
    }

    /// Queues an item, waiting for room first. Cancel safe: dropped while it waits, nothing was queued.
    ///
    /// # Errors
    /// [`StageLostError`] if no thread is left.
    pub async fn submit(&self, item: I) -> Result<PendingResult<O>, StageLostError> {
        let room = Arc::clone(&self.room).acquire_owned().await.map_err(|_closed| StageLostError)?;
        let (done, pending) = oneshot::channel();
        self.queue.send(StageJob { item, done, room }).map_err(|_closed| StageLostError)?;
        Ok(PendingResult(pending))
    }
}

fn run_worker<I, O>(jobs: &Mutex<mpsc::Receiver<StageJob<I, O>>>, work: &impl Fn(I) -> O) {
    loop {
        // A thread never panics while it holds the lock, so a poisoned one is as good.
        let next = jobs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
        let Ok(StageJob { item, done, room }) = next else { return };
        if let Ok(output) = catch_unwind(AssertUnwindSafe(|| work(item))) {
            // Whoever submitted it may have gone; that is theirs to decide.
            drop(done.send(output));
        }
        drop(room);
    }
}

/// A stage's results in the order in which the items were pushed.
#[derive(Debug)]
pub struct OrderedStage<'a, I, O> {
    stage: &'a WorkerStage<I, O>,
    pending: VecDeque<PendingResult<O>>,
}

impl<'a, I: Send + 'static, O: Send + 'static> OrderedStage<'a, I, O> {
    /// An empty sequence over `stage`.
    #[must_use]
    pub fn new(stage: &'a WorkerStage<I, O>) -> OrderedStage<'a, I, O> {
        OrderedStage { stage, pending: VecDeque::new() }
    }

    /// Queues the next item, waiting for room.
    ///
    /// # Errors
    /// [`StageLostError`] if no thread is left.
    pub async fn push(&mut self, item: I) -> Result<(), StageLostError> {
        self.pending.push_back(self.stage.submit(item).await?);
        Ok(())
    }

    /// Waits for the oldest item's result; `None` if none is outstanding. Not cancel safe: dropped while it waits, that
    /// result is lost.
    ///
    /// # Errors
    /// [`StageLostError`] if that item's work panicked; later items are not affected.
    pub async fn next(&mut self) -> Result<Option<O>, StageLostError> {
        match self.pending.pop_front() {
            Some(oldest) => oldest.wait().await.map(Some),
            None => Ok(None),
        }
    }

    /// Items pushed whose result was not taken yet.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.pending.len()
    }
}

/// A number of bytes that may be in memory at once. Waiting for a share of it is the back-pressure.
#[derive(Debug, Clone)]
pub struct Budget {
    /// One permit a KiB: a semaphore counts no further than 2^32 at once, and 4 TiB will do.
    kibibytes: Arc<Semaphore>,
    total: u32,
}

/// A share of a [`Budget`], given back when dropped.
#[derive(Debug)]
pub struct Share(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Budget {
    /// A budget of `bytes`, rounded up to whole KiB.
    #[must_use]
    pub fn new(bytes: u64) -> Budget {
        let total = to_kibibytes(bytes).max(1);
        Budget { kibibytes: Arc::new(Semaphore::new(total as usize)), total }
    }

    /// Waits until `bytes` are free and takes them. A request larger than the whole budget waits for all of it, so that
    /// a segment of 1 GiB still gets through a smaller budget, alone.
    pub async fn take(&self, bytes: u64) -> Option<Share> {
        let wanted = to_kibibytes(bytes).min(self.total);
        // The semaphore is never closed.
        Arc::clone(&self.kibibytes).acquire_many_owned(wanted).await.ok().map(Share)
    }

    /// Bytes that are free now.
    #[cfg(test)]
    fn free(&self) -> u64 {
        self.kibibytes.available_permits() as u64 * 1024
    }
}

fn to_kibibytes(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::{Budget, OrderedStage, StageLostError, WorkerStage};
    use std::sync::mpsc;
    use std::sync::{Arc, Mutex};

    #[tokio::test]
    async fn results_come_in_the_order_of_submission_whoever_ends_first() {
        let (release, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let stage = WorkerStage::start("test", 2, 8, move |n: u32| {
            if n == 0 {
                gate.lock().unwrap().recv().unwrap();
            } else if n == 7 {
                release.send(()).unwrap();
            }
            n * 2
        })
        .unwrap();
        let mut ordered = OrderedStage::new(&stage);
        for n in 0..8 {
            ordered.push(n).await.unwrap();
        }
        for n in 0..8 {
            assert_eq!(ordered.next().await, Ok(Some(n * 2)));
        }
        assert_eq!(ordered.next().await, Ok(None));
    }

    #[tokio::test]
    async fn a_panic_costs_one_item_and_no_thread() {
        let stage = WorkerStage::start("test", 1, 4, |n: u32| {
            assert_ne!(n, 1, "planted");
            n
        })
        .unwrap();
        let mut ordered = OrderedStage::new(&stage);
        for n in 0..4 {
            ordered.push(n).await.unwrap();
        }
        assert_eq!(ordered.next().await, Ok(Some(0)));
        assert_eq!(ordered.next().await, Err(StageLostError));
        assert_eq!(ordered.next().await, Ok(Some(2)));
        assert_eq!(ordered.next().await, Ok(Some(3)));
    }

    #[tokio::test]
    async fn no_more_than_the_depth_is_accepted() {
        let gate = Arc::new(Mutex::new(()));
        let held = gate.lock().unwrap();
        let inner = Arc::clone(&gate);
        let stage = WorkerStage::start("test", 1, 2, move |n: u32| {
            drop(inner.lock().unwrap());
            n
        })
        .unwrap();
        let first = futures_util::FutureExt::now_or_never(stage.submit(1)).unwrap().unwrap();
        let second = futures_util::FutureExt::now_or_never(stage.submit(2)).unwrap().unwrap();
        assert!(futures_util::FutureExt::now_or_never(stage.submit(3)).is_none());
        drop(held);
        assert_eq!((first.wait().await, second.wait().await), (Ok(1), Ok(2)));
        assert_eq!(stage.submit(3).await.unwrap().wait().await, Ok(3));
    }

    #[tokio::test]
    async fn a_budget_is_never_overdrawn_and_lets_the_largest_through_alone() {
        let budget = Budget::new(8 << 10);
        let share = budget.take(6 << 10).await.unwrap();
        assert_eq!(budget.free(), 2 << 10);
        assert!(futures_util::FutureExt::now_or_never(budget.take(3 << 10)).is_none());
        drop(share);
        let all = budget.take(1 << 30).await.unwrap();
        assert_eq!(budget.free(), 0);
        drop(all);
        assert_eq!(budget.free(), 8 << 10);
    }
}
