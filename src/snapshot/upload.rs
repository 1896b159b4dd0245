//! Stretches on their way from the spool to the repositories, one after the other, beside the stream.

use std::time::Duration;

use tokio::sync::mpsc;

use super::Error;
use crate::archive::instance::spool::{Name, Spool};
use crate::archive::instance::{Instance, Stretch};
use crate::retry::{Backoff, Class, Policy};

/// For as long as a repository is away, the stream is spooled.
const AGAIN: Policy = Policy { first: Duration::from_millis(500), longest: Duration::from_secs(30), total: None };

/// The stretches on their way. Dropped, it leaves what did not arrive in the spool.
pub(super) struct Uploads {
    names: mpsc::UnboundedSender<Name>,
    results: mpsc::UnboundedReceiver<Result<Option<Stretch>, Error>>,
    outstanding: usize,
    worker: tokio::task::JoinHandle<()>,
}

impl Uploads {
    /// Both queues hold one entry a spool file, so it is the disk that bounds them.
    pub(super) fn start(instance: &Instance, spool: &Spool) -> Uploads {
        let (names, mut wanted) = mpsc::unbounded_channel();
        let (done, results) = mpsc::unbounded_channel();
        let (instance, spool) = (instance.clone(), spool.clone());
        let worker = tokio::spawn(async move {
            while let Some(name) = wanted.recv().await {
                if done.send(store(&instance, &spool, name).await).is_err() {
                    break;
                }
            }
        });
        Uploads { names, results, outstanding: 0, worker }
    }

    /// A stretch to which nothing is appended any more.
    pub(super) fn put(&mut self, name: Name) {
        // The worker is there as long as this is.
        if self.names.send(name).is_ok() {
            self.outstanding = self.outstanding.saturating_add(1);
        }
    }

    pub(super) fn outstanding(&self) -> usize {
        self.outstanding
    }

    /// The next stretch that is stored. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Stretch, Error> {
        loop {
            let Some(result) = self.results.recv().await else { return Err(Error::Lost) };
            self.outstanding = self.outstanding.saturating_sub(1);
            if let Some(stretch) = result? {
                return Ok(stretch);
            }
        }
    }
}

impl Drop for Uploads {
    fn drop(&mut self) {
        self.worker.abort();
    }
}

/// Puts a stretch, then removes its file. `None` if there was nothing in it.
async fn store(instance: &Instance, spool: &Spool, name: Name) -> Result<Option<Stretch>, Error> {
    let read = {
        let spool = spool.clone();
        move || spool.read(name).map(|spooled| spooled.map(crate::archive::instance::spool::Spooled::stretch))
    };
    let found = tokio::task::spawn_blocking(read).await.map_err(|_panic| Error::Lost)??;
    let mut stored = None;
    if let Some((stretch, bytes)) = found.filter(|(stretch, _)| stretch.last > stretch.first) {
        let clock = instance.archive().clock();
        let mut backoff = Backoff::new(AGAIN, clock.elapsed(), name.1);
        while let Err(error) = instance.put_commands(&stretch, bytes.clone()).await {
            let pause = backoff.pause(clock.elapsed()).filter(|_| error.class() == Class::Transient);
            let Some(pause) = pause else { return Err(error.into()) };
            tracing::warn!(error = &error as &dyn std::error::Error, ?pause, "a stretch of the stream stays spooled");
            clock.sleep(pause).await;
        }
        stored = Some(stretch);
    }
    let spool = spool.clone();
    tokio::task::spawn_blocking(move || spool.remove(name)).await.map_err(|_panic| Error::Lost)??;
    Ok(stored)
}
