//! What a repository missed while it was unreachable, or before it was added, is copied into it from another one:
//! snapshots, stretches of the stream, histories and records of gaps, beside the stream and without anybody waiting for
//! it.
//!
//! Stretches that the spool still has are left to [`super::stretch_uploads`], which brings them in their order.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::redis::archive::Archive;
use crate::redis::archive::stream::StretchName;
use crate::vault::VaultError;
use crate::vault::repository::key::ObjectKey;
use crate::vault::shipper::fillers::{ComparableArchive, RepositoryFillers};
use crate::vault::shipper::{Lacking, SeedScope};

/// The stretches that the spool has now.
type SpooledNames = Box<dyn Fn() -> Vec<StretchName> + Send + Sync>;

/// Fills the repositories of the instance until the result is dropped.
pub(super) fn start_filling(instance: &Archive, spooled: SpooledNames) -> RepositoryFillers {
    let comparable = FilledInstance { instance: instance.clone(), spooled, covered: Mutex::default() };
    let comparable: Arc<dyn ComparableArchive> = Arc::new(comparable);
    RepositoryFillers::start(instance.vault(), &comparable)
}

struct FilledInstance {
    instance: Archive,
    spooled: SpooledNames,
    /// Stretches that a repository does not need, because it has the same commands in others.
    covered: Mutex<BTreeSet<(String, ObjectKey)>>,
}

impl FilledInstance {
    fn spooled_keys(&self) -> BTreeSet<ObjectKey> {
        let layout = self.instance.layout();
        let key = |name: StretchName| layout.commands(&name.replid.to_string(), name.first).ok();
        (self.spooled)().into_iter().filter_map(key).collect()
    }

    fn covered(&self, repository: &str) -> BTreeSet<ObjectKey> {
        let covered = self.covered.lock().unwrap_or_else(PoisonError::into_inner);
        covered.iter().filter(|(of, _)| of == repository).map(|(_, key)| key.clone()).collect()
    }

    async fn find_lacking(&self, repository: &str) -> Result<Lacking, VaultError> {
        let spooled = self.spooled_keys();
        let mut except = self.covered(repository);
        except.extend(spooled.iter().cloned());
        let lacking = self.instance.lacking_except(repository, SeedScope::default(), &mut except).await?;
        let mut covered = self.covered.lock().unwrap_or_else(PoisonError::into_inner);
        covered.extend(except.into_iter().filter(|key| !spooled.contains(key)).map(|key| (repository.to_owned(), key)));
        Ok(lacking)
    }
}

impl ComparableArchive for FilledInstance {
    fn lacking<'a>(&'a self, repository: &'a str) -> BoxFuture<'a, Result<Lacking, VaultError>> {
        self.find_lacking(repository).boxed()
    }
}
