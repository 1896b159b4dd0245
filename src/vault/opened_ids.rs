//! Which repository of a vault has which id.
//!
//! Two sections of a configuration may name one place by two URLs, for example with a trailing slash or over a symbolic
//! link. That place is one copy and must not count as two.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::error::VaultError;
use crate::vault::repository::{Repository, RepositoryId};

/// The ids of the repositories that were opened, by name.
#[derive(Debug, Default)]
pub(super) struct OpenedIds(Mutex<BTreeMap<String, RepositoryId>>);

impl OpenedIds {
    /// Records the id of this repository, unless another one has it.
    pub(super) fn claim(&self, name: &str, repository: Repository) -> Result<Repository, VaultError> {
        let id = repository.id();
        let mut ids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((other, _)) = ids.iter().find(|(other, taken)| **taken == id && *other != name) {
            return Err(VaultError::SameRepository { name: name.to_owned(), other: other.clone() });
        }
        ids.insert(name.to_owned(), id);
        Ok(repository)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::settings;
    use crate::base::error_kind::{ErrorKind, HasKind};
    use crate::vault::repository::PutOutcome;
    use crate::vault::repository::key::ObjectKey;
    use crate::vault::seal::SealedKind;
    use crate::vault::{Vault, VaultError};

    /// Over a symbolic link, with a trailing slash, and as a copy: the first one of the configuration is used.
    #[tokio::test]
    async fn two_urls_of_one_repository_are_one_copy() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        Vault::create(settings(&[&dirs[0]], None)).await.unwrap();
        let folder = dirs[0].path().join("repository");
        let link = dirs[1].path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        let slash = format!("{}/", folder.display());
        for second in [link.to_str().unwrap(), &slash] {
            let mut both = settings(&[&dirs[0], &dirs[1]], None);
            both.places[1].url = second.to_owned();
            let vault = Vault::open(both).await.unwrap();
            let unreachable: Vec<_> = vault.unreachable().collect();
            let [("place1", error)] = unreachable.as_slice() else { panic!("{second}: {unreachable:?}") };
            assert!(matches!(error, VaultError::SameRepository { other, .. } if other == "place0"), "{error}");
            assert_eq!(error.kind(), ErrorKind::Usage);
            // The one that is left works.
            let key = ObjectKey::parse(&format!("main/gap/{}", second.len())).unwrap();
            let put = vault.put_object(SealedKind::Gap, &key, vec!["x".into()], Vec::new()).await.unwrap();
            assert_eq!(put, PutOutcome::Created);
        }
    }

    /// One that is opened later is compared too: its disk was mounted after the start.
    #[tokio::test]
    async fn a_repository_that_is_reopened_is_compared_too() {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        Vault::create(settings(&[&dirs[0]], None)).await.unwrap();
        let clock = std::sync::Arc::new(crate::base::clock::ManualClock::jumping_from(jiff::Timestamp::UNIX_EPOCH));
        let mut both = settings(&[&dirs[0], &dirs[1]], None);
        both.clock = std::sync::Arc::<crate::base::clock::ManualClock>::clone(&clock);
        let vault = Vault::open(both).await.unwrap();
        assert!(matches!(vault.unreachable().next(), Some(("place1", VaultError::Repository { .. }))));
        std::os::unix::fs::symlink(dirs[0].path().join("repository"), dirs[1].path().join("repository")).unwrap();
        clock.advance(std::time::Duration::from_secs(60));
        let error = vault.reopened_id("place1").await.unwrap_err();
        assert!(matches!(error, VaultError::SameRepository { .. }), "{error}");
    }
}
