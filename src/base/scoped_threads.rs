//! Work on independent items by a few scoped threads, results in order.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// More threads than this are never started for one object, whatever was asked for.
const MAX_THREADS: usize = 64;

/// Applies `work` to every item, on the calling thread and up to `threads - 1` others, and returns the results in the
/// items' order. After a first error no further item is begun; of several errors one is returned.
pub(crate) fn map_on_threads<T, R, E>(
    items: impl ExactSizeIterator<Item = T> + Send,
    threads: usize,
    work: impl Fn(T) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E>
where
    T: Send,
    R: Send,
    E: Send,
{
    let helpers = threads.min(items.len()).min(MAX_THREADS).saturating_sub(1);
    if helpers == 0 {
        return items.map(work).collect();
    }
    let total = items.len();
    let queue = Mutex::new(items.enumerate());
    let stop = AtomicBool::new(false);
    let run = || -> Result<Vec<(usize, R)>, E> {
        let mut done = Vec::with_capacity(total);
        while !stop.load(Ordering::Relaxed) {
            // The guard is dropped at the end of this statement: the item is worked on without it.
            let next = queue.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((index, item)) = next else { break };
            match work(item) {
                Ok(result) => done.push((index, result)),
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(error);
                }
            }
        }
        Ok(done)
    };
    let mut done = std::thread::scope(|scope| {
        let others: Vec<_> = (0..helpers).map(|_| scope.spawn(run)).collect();
        let mut all = vec![run()];
        all.extend(
            others.into_iter().map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
        );
        all.into_iter().collect::<Result<Vec<_>, E>>().map(|parts| parts.into_iter().flatten().collect::<Vec<_>>())
    })?;
    done.sort_unstable_by_key(|(index, _)| *index);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

#[cfg(test)]
mod tests {
    use super::map_on_threads;

    #[test]
    fn results_come_in_order_from_any_number_of_threads() {
        for threads in [0, 1, 2, 7, 1000] {
            let squares = map_on_threads(0..500_u32, threads, |n| Ok::<u32, ()>(n * n)).unwrap();
            assert_eq!(squares, (0..500).map(|n| n * n).collect::<Vec<u32>>());
        }
    }

    #[test]
    fn an_error_ends_it() {
        for threads in [1, 4] {
            assert_eq!(map_on_threads(0..100, threads, |n| if n == 70 { Err(n) } else { Ok(n) }), Err(70));
        }
    }
}
