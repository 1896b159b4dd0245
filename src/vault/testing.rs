//! Vaults in scratch directories, for tests.

use std::sync::Arc;

use jiff::Timestamp;
use object_store::memory::InMemory;
use tempfile::TempDir;

use super::{Error, OpenPlace, Place, Settings, Vault, key_objects};
use crate::base::clock::{ManualClock, SystemClock};
use crate::vault::repository::fault_store::FaultStore;
use crate::vault::repository::{Options, Repository};
use crate::vault::seal::Level;
use crate::vault::seal::keys::KeyEncryptionKey;

/// One repository in each of these directories.
pub(crate) fn settings(dirs: &[&TempDir], key: Option<&KeyEncryptionKey>) -> Settings {
    let place = |(n, dir): (usize, &&TempDir)| Place {
        name: format!("place{n}"),
        url: dir.path().join("repository").to_str().unwrap().to_owned(),
        options: Options::new(),
    };
    Settings {
        places: dirs.iter().enumerate().map(place).collect(),
        key: key.cloned(),
        level: Level::Auto,
        threads: 2,
        clock: SystemClock::shared(),
    }
}

/// A new vault in these directories.
pub(crate) async fn create(dirs: &[&TempDir], key: Option<&KeyEncryptionKey>) -> Arc<Vault> {
    Arc::new(Vault::create(settings(dirs, key)).await.unwrap())
}

/// The vault in these directories.
pub(crate) async fn open(dirs: &[&TempDir], key: Option<&KeyEncryptionKey>) -> Result<Arc<Vault>, Error> {
    Vault::open(settings(dirs, key)).await.map(Arc::new)
}

/// A vault in one store whose faults are scripted.
pub(crate) async fn faulty() -> (Arc<Vault>, FaultStore) {
    let clock = Arc::new(ManualClock::jumping_from(Timestamp::UNIX_EPOCH));
    let store = FaultStore::over(Arc::new(InMemory::new()));
    let mut options = Options::new();
    options.clock = Arc::<ManualClock>::clone(&clock);
    let repository = Repository::over(Arc::new(store.clone()), &options).await.unwrap();
    let places = vec![OpenPlace { name: "only".into(), repository: Ok(repository) }];
    let key = KeyEncryptionKey::generate().unwrap();
    key_objects::provide(&places, Some(&key), &*clock).await.unwrap();
    let settings = Settings { key: Some(key), clock, places: vec![], ..settings(&[], None) };
    (Arc::new(Vault::over(places, settings).await.unwrap()), store)
}
