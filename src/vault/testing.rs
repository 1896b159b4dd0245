//! Vaults in scratch directories, for tests.

use std::sync::Arc;

use jiff::Timestamp;
use object_store::memory::InMemory;
use tempfile::TempDir;

use super::{RepositoryLocation, Vault, VaultError, VaultRepository, VaultSettings, key_objects};
use crate::base::clock::{ManualClock, SharedClock, SystemClock};
use crate::vault::repository::fault_store::FaultStore;
use crate::vault::repository::{Repository, RepositoryOptions};
use crate::vault::seal::CompressionLevel;
use crate::vault::seal::keys::KeyEncryptionKey;

/// One repository in each of these directories.
pub(crate) fn settings(dirs: &[&TempDir], key: Option<&KeyEncryptionKey>) -> VaultSettings {
    let place = |(n, dir): (usize, &&TempDir)| RepositoryLocation {
        name: format!("place{n}"),
        url: dir.path().join("repository").to_str().unwrap().to_owned(),
        options: RepositoryOptions::new(),
    };
    VaultSettings {
        places: dirs.iter().enumerate().map(place).collect(),
        key: key.cloned(),
        level: CompressionLevel::Auto,
        threads: 2,
        clock: SystemClock::shared(),
    }
}

/// A new vault in these directories.
pub(crate) async fn create(dirs: &[&TempDir], key: Option<&KeyEncryptionKey>) -> Arc<Vault> {
    Arc::new(Vault::create(settings(dirs, key)).await.unwrap())
}

/// The vault in these directories.
pub(crate) async fn open(dirs: &[&TempDir], key: Option<&KeyEncryptionKey>) -> Result<Arc<Vault>, VaultError> {
    Vault::open(settings(dirs, key)).await.map(Arc::new)
}

/// A vault in one store whose faults are scripted.
pub(crate) async fn faulty() -> (Arc<Vault>, FaultStore) {
    let clock = Arc::new(ManualClock::jumping_from(Timestamp::UNIX_EPOCH));
    let store = FaultStore::wrap(Arc::new(InMemory::new()));
    let mut options = RepositoryOptions::new();
    options.clock = Arc::<ManualClock>::clone(&clock);
    let repository = Repository::create_in_store(Arc::new(store.clone()), &options).await.unwrap();
    let key = KeyEncryptionKey::generate().unwrap();
    key_objects::provide_keys(&[("only".into(), repository.clone())], Some(&key), &*clock).await.unwrap();
    let shared: SharedClock = Arc::<ManualClock>::clone(&clock);
    let places = vec![Arc::new(VaultRepository::opened("only", repository, &shared))];
    let settings = VaultSettings { key: Some(key), clock, places: vec![], ..settings(&[], None) };
    (Arc::new(Vault::from_repositories(places, settings).await.unwrap()), store)
}
