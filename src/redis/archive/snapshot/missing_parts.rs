//! Whether the parts that a snapshot names are there: what a plan proves before anything is read.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use super::manifest::SnapshotManifest;
use crate::redis::archive::instance::Archive;
use crate::vault::{UnreachableRepositories, VaultError};

/// Snapshots that are not whole, by label, each with what it lacks.
pub(crate) type MissingParts = BTreeMap<String, String>;

impl Archive {
    /// Which of these snapshots name a part that no repository has that answers, with the bytes that were stored. One
    /// listing of each repository.
    ///
    /// # Errors
    /// No repository could be asked.
    pub async fn find_missing_parts(&self, snapshots: &[SnapshotManifest]) -> Result<MissingParts, VaultError> {
        self.find_missing_parts_in_reachable(snapshots, &mut UnreachableRepositories::default()).await
    }

    pub(crate) async fn find_missing_parts_in_reachable(
        &self,
        snapshots: &[SnapshotManifest],
        unasked: &mut UnreachableRepositories,
    ) -> Result<MissingParts, VaultError> {
        let parts = self.layout.parts();
        let lists = join_all(self.vault.places.iter().map(|place| {
            let parts = &parts;
            async move { place.repository()?.list(parts).await.map_err(|error| place.repository_error(error)) }
        }))
        .await;
        let (lists, silent) = self.vault.collect_answers(lists)?;
        unasked.insert(silent);
        let mut there: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for object in lists.into_iter().flatten() {
            there.entry(object.key.to_string()).or_default().push(object.len);
        }
        let mut lacking = MissingParts::new();
        for snapshot in snapshots {
            if let Some(what) = self.describe_missing_part(snapshot, &there) {
                tracing::warn!(label = snapshot.label, what, "this snapshot cannot be restored");
                lacking.insert(snapshot.label.clone(), what);
            }
        }
        Ok(lacking)
    }

    /// The first part that is not there as it was stored.
    fn describe_missing_part(&self, snapshot: &SnapshotManifest, there: &BTreeMap<String, Vec<u64>>) -> Option<String> {
        (0..).zip(&snapshot.parts).find_map(|(number, part)| {
            let key = self.layout.part(&snapshot.label, number).ok()?;
            match there.get(key.as_str()) {
                None => Some(format!("{key} is missing")),
                Some(lens) if !lens.contains(&part.stored) => {
                    let found = lens.first().copied().unwrap_or_default();
                    Some(format!("{key} has {found} bytes instead of {}", part.stored))
                }
                Some(_) => None,
            }
        })
    }
}
