//! Repositories that are left out of something that is stored in many objects, because they are away, full or
//! forbidden: the others get it all the same.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use futures_util::future::join_all;

use super::error::VaultError;
use super::repositories::Vault;
use super::vault_repository::VaultRepository;
use crate::vault::repository::PutOutcome;
use crate::vault::repository::key::ObjectKey;
use crate::vault::seal::SealedObject;

/// The repositories that are left out, each with what was in the way. What was begun without one stays without it.
#[derive(Debug, Default)]
pub struct SkippedRepositories(Mutex<BTreeMap<usize, VaultError>>);

impl SkippedRepositories {
    /// These, from the beginning.
    #[must_use]
    pub fn new(places: BTreeMap<usize, VaultError>) -> SkippedRepositories {
        SkippedRepositories(Mutex::new(places))
    }

    /// Their numbers, and what was in the way.
    #[must_use]
    pub fn errors(&self) -> BTreeMap<usize, VaultError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Leaves this one out from now on.
    pub(crate) fn skip(&self, place: usize, error: VaultError) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(place).or_insert(error);
    }
}

impl Vault {
    /// The repositories that are unreachable now, to be left out of what begins now.
    #[must_use]
    pub fn skip_unreachable(&self) -> SkippedRepositories {
        let failed = self.places.iter().enumerate().filter_map(|(nth, place)| Some((nth, place.failure()?.0)));
        SkippedRepositories::new(failed.collect())
    }

    /// The repositories that are not left out, with their numbers and names.
    pub(crate) fn not_skipped(&self, skipped: &SkippedRepositories) -> impl Iterator<Item = (usize, &VaultRepository)> {
        let out = skipped.errors();
        self.places
            .iter()
            .enumerate()
            .filter(move |(nth, _)| !out.contains_key(nth))
            .map(|(nth, place)| (nth, &**place))
    }

    /// Puts a sealed object into every place that is not absent. One that is away, full or forbidden is absent from
    /// then on, if any other place is left.
    ///
    /// # Errors
    /// No place took it, or one refused it for another reason.
    pub async fn put_where_not_skipped(
        &self,
        key: &ObjectKey,
        sealed: &SealedObject,
        absent: &SkippedRepositories,
    ) -> Result<PutOutcome, VaultError> {
        let out = absent.errors();
        let places = self.places.iter().enumerate().filter(|(nth, _)| !out.contains_key(nth));
        let puts = join_all(
            places.map(|(nth, place)| async move { (nth, place.put_when_open(key, sealed, &self.keys).await) }),
        )
        .await;
        let (mut all, mut away) = (None, Vec::new());
        for (nth, put) in puts {
            match put {
                Ok(PutOutcome::Created) => all = Some(PutOutcome::Created),
                Ok(PutOutcome::Exists) => all = all.or(Some(PutOutcome::Exists)),
                Err(error) if error.may_pass() => away.push((nth, error)),
                Err(error) => return Err(error),
            }
        }
        let Some(put) = all else {
            let first = away.into_iter().next().map(|(_, error)| error);
            return Err(first.or_else(|| out.into_values().next()).unwrap_or(VaultError::NoRepository));
        };
        away.into_iter().for_each(|(nth, error)| absent.skip(nth, error));
        Ok(put)
    }
}

#[cfg(test)]
mod tests {
    use super::SkippedRepositories;
    use crate::vault::VaultError;
    use crate::vault::repository::PutOutcome;
    use crate::vault::repository::key::ObjectKey;
    use crate::vault::seal::SealedKind;
    use crate::vault::testing::create;

    #[tokio::test]
    async fn who_is_away_is_left_out_until_the_end_if_anybody_is_left() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let vault = create(&[&dirs[0], &dirs[1]], None).await;
        let key = |name: &str| ObjectKey::parse(&format!("main/gap/{name}")).unwrap();
        let sealed = async |name: &str| {
            vault.seal_object(SealedKind::Gap, &key(name), vec!["x".into()], Vec::new()).await.unwrap()
        };
        let there = |dir: &tempfile::TempDir, name: &str| dir.path().join("repository/main/gap").join(name).exists();
        let put = async |name: &str, absent: &SkippedRepositories| {
            vault.put_where_not_skipped(&key(name), &sealed(name).await, absent).await
        };
        let forbid = |dir: &tempfile::TempDir, forbidden: bool| {
            let (marker, aside) = (dir.path().join("repository/walkeep.json"), dir.path().join("aside.json"));
            let (from, to) = if forbidden { (marker, aside) } else { (aside, marker) };
            crate::base::durable::rename(&from, &to).unwrap();
        };
        let absent = SkippedRepositories::default();
        assert_eq!(put("a", &absent).await.unwrap(), PutOutcome::Created);
        assert!(absent.errors().is_empty() && there(&dirs[0], "a") && there(&dirs[1], "a"));
        forbid(&dirs[1], true);
        assert_eq!(put("b", &absent).await.unwrap(), PutOutcome::Created);
        assert_eq!(absent.errors().into_keys().collect::<Vec<_>>(), [1]);
        forbid(&dirs[1], false);
        // What is begun without it goes on without it: a manifest must not name what is not there.
        put("c", &absent).await.unwrap();
        assert!(there(&dirs[0], "c") && !there(&dirs[1], "c"));
        forbid(&dirs[0], true);
        assert!(matches!(put("d", &absent).await.unwrap_err(), VaultError::Repository { .. }));
    }
}
