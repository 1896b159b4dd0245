//! One object that a repository lacks, and when it may get it.

use std::collections::BTreeMap;

use crate::vault::repository::key::ObjectKey;
use crate::vault::seal::SealedKind;

/// When an object may be shipped: everything of an earlier stage is in the repository first, so that a manifest never
/// names what is not there (a crash between two stages leaves objects that nothing names yet).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ShipStage {
    /// What the archive is, histories and gaps: small, and needed to make sense of the rest.
    Description,
    /// WAL or commands, oldest first.
    Log,
    /// What manifests name: packs of chunks, or parts of a snapshot.
    Data,
    /// Manifests, and the names that belong to a backup.
    Manifest,
}

/// An object that a repository lacks. Items sort in the order in which they are shipped.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ShipItem {
    /// When it may be shipped.
    pub stage: ShipStage,
    /// Its key, the same in each repository.
    pub key: ObjectKey,
    /// What kind of object it is.
    pub kind: SealedKind,
}

/// What a comparison of one repository with the others found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lacking {
    /// What the repository lacks, in the order in which it is shipped.
    pub items: Vec<ShipItem>,
    /// Which of that data each of the lacking manifests names.
    pub needs: ManifestNeeds,
    /// The cursor once all of it is shipped; `None` if the others have no log.
    pub through: Option<ObjectKey>,
    /// Repositories that could not be compared with, each with the reason: what only they have is not among the items.
    pub unasked: Vec<(String, String)>,
}

/// Which data each manifest names, of what a repository lacks. Data that no repository gives holds back the manifests
/// that need it, and no others. A large backup names 100,000 packs, so the key of each is kept once.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ManifestNeeds {
    data: BTreeMap<ObjectKey, u32>,
    manifests: BTreeMap<ObjectKey, Vec<u32>>,
}

impl ManifestNeeds {
    /// Notes that the manifest, or what belongs to it, is of no use without this data.
    pub fn add(&mut self, manifest: &ObjectKey, data: &ObjectKey) {
        let next = u32::try_from(self.data.len()).unwrap_or(u32::MAX);
        let number = *self.data.entry(data.clone()).or_insert(next);
        self.manifests.entry(manifest.clone()).or_default().push(number);
    }

    /// The manifests that need this data.
    pub fn of_data(&self, data: &ObjectKey) -> impl Iterator<Item = &ObjectKey> {
        let number = self.data.get(data).copied();
        let needs = move |numbers: &[u32]| number.is_some_and(|number| numbers.contains(&number));
        self.manifests.iter().filter(move |(_, numbers)| needs(numbers)).map(|(manifest, _)| manifest)
    }
}

/// What of the others' objects a repository is to have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum SeedScope {
    /// What its own retention would keep: from its oldest backup on; everything if it has none.
    #[default]
    FromOwnOldestBackup,
    /// All backups, and all WAL or commands.
    All,
    /// The newest backup, and all WAL or commands since it began.
    NewestBackup,
}
