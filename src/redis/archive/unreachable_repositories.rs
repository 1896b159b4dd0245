//! Which repositories were asked. What only one has that was not is not known to be missing, and what is the newest is not known either.

use std::collections::BTreeMap;

use super::Archive;
use super::history::{RedisTarget, RestoreRoute, UnreachableState};
use crate::vault::VaultError;
use crate::vault::repository::ObjectInfo;
use crate::vault::repository::key::KeyPrefix;

/// Repositories that could not be asked, by name, each with what was in the way.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct UnreachableRepositories(BTreeMap<String, String>);

impl UnreachableRepositories {
    pub(super) fn insert(&mut self, unasked: impl IntoIterator<Item = (String, String)>) {
        for (name, why) in unasked {
            let prefix = format!("repository {name}: ");
            let why = why.strip_prefix(&prefix).map(str::to_owned).unwrap_or(why);
            self.0.entry(name).or_insert(why);
        }
    }

    pub(super) fn merge(&mut self, more: &UnreachableRepositories) {
        self.insert(more.0.clone());
    }

    /// Name and reason of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, why)| (name.as_str(), why.as_str()))
    }

    /// Goes on only if all were asked.
    ///
    /// # Errors
    /// [`VaultError::NotAllAnswered`].
    pub fn ensure_empty(&self) -> Result<(), VaultError> {
        let said: Vec<String> = self.iter().map(|(name, why)| format!("repository {name}: {why}")).collect();
        if said.is_empty() { Ok(()) } else { Err(VaultError::NotAllAnswered { why: said.join("; ") }) }
    }

    /// Says so, where what the others have is told all the same.
    pub fn log_warnings(&self) {
        for (repository, why) in self.iter() {
            tracing::warn!(repository, why, "this repository could not be asked; what only it has is not told");
        }
    }
}

impl Archive {
    /// What is under a prefix in the repositories that answer; the others are noted.
    pub(super) async fn list_reachable(
        &self,
        prefix: &KeyPrefix,
        unasked: &mut UnreachableRepositories,
    ) -> Result<Vec<ObjectInfo>, VaultError> {
        let listing = self.vault.list(prefix, None).await?;
        unasked.insert(listing.unasked);
        Ok(listing.objects)
    }

    /// Whether any repository has a snapshot of this label, whole or not.
    ///
    /// # Errors
    /// [`VaultError::NotAllAnswered`] if none of those has that could be asked, and not all could.
    pub async fn has_snapshot(&self, label: &str) -> Result<bool, VaultError> {
        let mut unasked = UnreachableRepositories::default();
        let found = self.list_snapshot_labels_in_reachable(&mut unasked).await?.iter().any(|known| known == label);
        if !found {
            unasked.ensure_empty()?;
        }
        Ok(found)
    }

    /// Finds the way to what is wanted, from the newest snapshot that leads there, or from the one named. All that is on the way is there: the
    /// parts of the snapshot are listed with the bytes that were stored, and the trailer of each stretch was read.
    ///
    /// # Errors
    /// No repository could be asked, or something does not open. [`VaultError::NotAllAnswered`] where the answer would be another one if a repository
    /// that could not be asked had more. What cannot be reached is no error but an answer.
    pub async fn resolve_target(
        &self,
        wanted: RedisTarget,
        from: Option<&str>,
    ) -> Result<Result<RestoreRoute, UnreachableState>, VaultError> {
        let mut unasked = UnreachableRepositories::default();
        let found = self.find_route(wanted, from, &mut unasked).await?;
        let holds = match wanted {
            RedisTarget::Time(_) | RedisTarget::Offset(..) => found.is_ok(),
            // A newer one may be elsewhere.
            RedisTarget::Snapshot => found.is_ok() && from.is_some(),
            RedisTarget::Newest => false,
        };
        if !holds {
            unasked.ensure_empty()?;
        }
        Ok(found)
    }

    /// The same as far as the repositories tell that answer: for whoever says how things are, and not for a restore.
    ///
    /// # Errors
    /// No repository could be asked, or something does not open.
    pub async fn resolve_target_from_reachable(
        &self,
        wanted: RedisTarget,
        from: Option<&str>,
    ) -> Result<Result<RestoreRoute, UnreachableState>, VaultError> {
        self.find_route(wanted, from, &mut UnreachableRepositories::default()).await
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;
    use tempfile::TempDir;

    use crate::base::retry::ErrorClass;
    use crate::redis::archive::{Archive, RedisTarget, SnapshotManifest, SnapshotOrigin, StreamStretch};
    use crate::redis::format::rdb::{RdbLimits, RdbWalker};
    use crate::redis::format::resp::encode_command;
    use crate::vault::SkippedRepositories;
    use crate::vault::testing::{create, open};

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";
    const LABEL: &str = "20261122T120000.000Z";
    const OTHER: &str = "20261122T130000.000Z";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A snapshot of the second 10 at offset 100.
    fn snapshot() -> SnapshotManifest {
        let mut walker = RdbWalker::new(RdbLimits::default());
        walker.push(b"REDIS0009\xff\0\0\0\0\0\0\0\0").unwrap();
        SnapshotManifest {
            format: 1,
            label: LABEL.into(),
            started_at: at(9),
            finished_at: at(12),
            at: at(10),
            origin: SnapshotOrigin::File { path: "x".into() },
            flavour: crate::redis::format::flavour::ServerFlavour::Redis,
            version: "7".into(),
            run_id: None,
            replid: ID.parse().ok(),
            offset: Some(100),
            db: 0,
            walk: walker.finish().unwrap(),
            parts: Vec::new(),
            logical_bytes: 18,
            stored_bytes: 0,
        }
    }

    /// One command of 27 bytes, which had come by then.
    async fn put(instance: &Archive, first: u64, second: i64) {
        let bytes = Bytes::from(encode_command(&[b"SET", b"a", b"1"]));
        let last = first + bytes.len() as u64;
        let stretch: StreamStretch = serde_json::from_value(serde_json::json!({
            "replid": ID, "first": first, "last": last, "db": 0, "in_transaction": false, "db_after": 0,
            "in_transaction_after": false, "follows": null, "started_at": at(second - 1), "ended_at": at(second),
            "writes": 1, "marks": [[last, 0, at(second).as_microsecond()]],
        }))
        .unwrap();
        for place in 0..instance.place_count() {
            instance.put_commands(place, &stretch, bytes.clone()).await.unwrap();
        }
    }

    async fn instance(dirs: &[&TempDir]) -> Archive {
        Archive::new(open(dirs, None).await.unwrap(), "main".parse().unwrap())
    }

    #[tokio::test]
    async fn what_a_repository_may_have_that_is_away_is_neither_missing_nor_left_out() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let both = Archive::new(create(&[&a, &b], None).await, "main".parse().unwrap());
        both.put_snapshot(&snapshot(), &SkippedRepositories::default()).await.unwrap();
        put(&both, 100, 12).await;
        // The other one lags.
        put(&instance(&[&a]).await, 127, 20).await;
        let newest = both.resolve_target(RedisTarget::Newest, None).await.unwrap().unwrap();
        assert_eq!(newest.to.unwrap().offset, 154);
        assert!(!both.has_snapshot(OTHER).await.unwrap());

        std::fs::remove_dir_all(a.path().join("repository")).unwrap();
        let left = instance(&[&a, &b]).await;
        let id = ID.parse().unwrap();
        for (wanted, from, offset) in [
            (RedisTarget::Time(at(12)), None, Some(127)),
            (RedisTarget::Offset(id, 127), None, Some(127)),
            (RedisTarget::Snapshot, Some(LABEL), Some(100)),
            (RedisTarget::Newest, None, None),
            (RedisTarget::Snapshot, None, None),
            (RedisTarget::Time(at(20)), None, None),
            (RedisTarget::Offset(id, 154), None, None),
            (RedisTarget::Snapshot, Some(OTHER), None),
        ] {
            match (left.resolve_target(wanted, from).await, offset) {
                (Ok(found), Some(offset)) => assert_eq!(found.unwrap().to.unwrap().offset, offset, "{wanted:?}"),
                (Err(error), None) => {
                    assert!(matches!(error, crate::vault::VaultError::NotAllAnswered { .. }), "{wanted:?}: {error}");
                    assert_eq!(error.class(), ErrorClass::Transient);
                    assert!(error.to_string().contains("place0"), "{error}");
                }
                (found, _) => panic!("{wanted:?}: {found:?}"),
            }
        }
        assert!(left.has_snapshot(LABEL).await.unwrap());
        assert!(matches!(left.has_snapshot(OTHER).await, Err(crate::vault::VaultError::NotAllAnswered { .. })));
        assert_eq!(left.find_histories_at(&"127".parse().unwrap()).await.unwrap(), [id]);
        assert!(matches!(
            left.find_histories_at(&"154".parse().unwrap()).await,
            Err(crate::vault::VaultError::NotAllAnswered { .. })
        ));

        // Who only tells how things are, and who goes on from there, has what there is.
        let told = left.resolve_target_from_reachable(RedisTarget::Newest, None).await.unwrap().unwrap();
        assert_eq!(told.to.unwrap().offset, 127);
        assert_eq!(left.stored_stretches().await.unwrap().len(), 1);
        let known = left.list_known_stretches().await.unwrap();
        assert_eq!(known.unreachable().iter().map(|(name, _)| name).collect::<Vec<_>>(), ["place0"]);
    }
}
