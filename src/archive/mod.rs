//! One way in for WAL, one way out: what joins sealing, the repositories and the digests.
//!
//! An [`Archive`] is one cluster in all configured repositories. What goes in is checked, sealed once and put into every one of them
//! ([`ingest`]); only when all have it is it acknowledged. What comes out is opened and authenticated ([`fetch`]), from whichever repository
//! has it whole. An object is absent only if every repository says so: one that cannot be asked is an error, never "not found".
//!
//! Not known here: RocksDB, PostgreSQL's sockets, and who asks.

mod absent;
pub mod chunks;
pub mod clocks;
mod error;
pub mod fetch;
pub mod gap;
pub mod growing;
mod identity;
pub mod ingest;
pub mod instance;
mod keys;
pub mod lookup;
pub mod manifest;
pub mod names;
pub mod objects;
pub mod overview;
pub mod path;
pub mod pieces;
pub mod spool;
pub mod reindex;
pub mod tail;

#[cfg(test)]
#[expect(
    clippy::cast_possible_truncation,
    clippy::disallowed_methods,
    reason = "small numbers; repositories moved away"
)]
pub(crate) mod tests;

use std::fmt;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::OnceCell;

use crate::clock::SharedClock;
use crate::repository::layout::{ClusterName, Layout};
use crate::repository::{self, Repository};
use crate::seal::keys::KeyEncryptionKey;
use crate::seal::{Level, Protection};

pub use absent::Absent;
pub use error::Error;
pub use identity::Identity;

/// A repository that an archive is kept in.
#[derive(Clone, Debug)]
pub struct Place {
    /// Its name in the configuration.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// How to get there.
    pub options: repository::Options,
}

/// What an archive is opened with.
#[derive(Debug)]
pub struct Settings {
    /// The cluster.
    pub cluster: ClusterName,
    /// The repositories, at least one; each gets everything.
    pub places: Vec<Place>,
    /// The key that wraps the repositories' keys; `None` if encryption is off.
    pub key: Option<KeyEncryptionKey>,
    /// How hard to compress.
    pub level: Level,
    /// How many threads may work on one segment.
    pub threads: usize,
    /// Where time comes from.
    pub clock: SharedClock,
}

/// One place, as it was found.
#[derive(Debug)]
struct OpenPlace {
    name: String,
    /// What was in the way, if it was not found: reading goes on without it, writing does not.
    repository: Result<Repository, Arc<repository::Error>>,
}

impl OpenPlace {
    fn repository(&self) -> Result<&Repository, Error> {
        match &self.repository {
            Ok(repository) => Ok(repository),
            Err(source) => Err(Error::Repository { name: self.name.clone(), source: Arc::clone(source) }),
        }
    }

    /// Names this place in a repository's error.
    fn named(&self, source: repository::Error) -> Error {
        Error::Repository { name: self.name.clone(), source: Arc::new(source) }
    }
}

/// One cluster in all its repositories.
pub struct Archive {
    layout: Layout,
    places: Vec<OpenPlace>,
    protection: Arc<Protection>,
    level: Level,
    threads: usize,
    clock: SharedClock,
    identity: OnceCell<Identity>,
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive").field("cluster", self.cluster()).field("places", &self.places).finish_non_exhaustive()
    }
}

impl Archive {
    /// Opens the repositories and their keys. Costs, for each repository and all of them at once, one small read, one listing of `keys/` and
    /// one read a key.
    ///
    /// A repository that cannot be reached is remembered: reading goes on without it, and every write fails. If none can be reached that is an
    /// error now.
    ///
    /// # Errors
    /// No repository could be opened, or the key does not fit one.
    pub async fn open(settings: Settings) -> Result<Archive, Error> {
        let opened = join_all(settings.places.iter().map(|place| Repository::open(&place.url, &place.options))).await;
        let mut places = Vec::with_capacity(opened.len());
        for (place, repository) in settings.places.iter().zip(opened) {
            places.push(OpenPlace { name: place.name.clone(), repository: repository.map_err(Arc::new) });
        }
        Archive::over(places, settings).await
    }

    /// Makes those of the repositories that are not there yet, and their keys, then opens the archive. What exists stays as it is.
    ///
    /// # Errors
    /// A repository cannot be made or opened, or the key does not fit one that exists.
    pub async fn create(settings: Settings) -> Result<Archive, Error> {
        let mut places = Vec::with_capacity(settings.places.len());
        for place in &settings.places {
            let repository = match Repository::open(&place.url, &place.options).await {
                Err(repository::Error::NoRepository { .. }) => Repository::create(&place.url, &place.options).await,
                opened => opened,
            };
            let repository = repository
                .map_err(|source| Error::Repository { name: place.name.clone(), source: Arc::new(source) })?;
            places.push(OpenPlace { name: place.name.clone(), repository: Ok(repository) });
        }
        keys::provide(&places, settings.key.as_ref(), &*settings.clock).await?;
        Archive::over(places, settings).await
    }

    async fn over(places: Vec<OpenPlace>, settings: Settings) -> Result<Archive, Error> {
        let Some(first) = places.first() else { return Err(Error::NoPlace) };
        if places.iter().all(|place| place.repository.is_err()) {
            first.repository()?;
        }
        let protection = keys::load(&places, settings.key.as_ref()).await?;
        Ok(Archive {
            layout: Layout::new(settings.cluster),
            places,
            protection: Arc::new(protection),
            level: settings.level,
            threads: settings.threads.max(1),
            clock: settings.clock,
            identity: OnceCell::new(),
        })
    }

    /// The cluster's name.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        self.layout.cluster()
    }

    /// Where this cluster's objects stand.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// How objects are protected.
    #[must_use]
    pub fn protection(&self) -> &Arc<Protection> {
        &self.protection
    }

    /// How hard to compress unless the caller knows better.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// How many threads may work on one object.
    #[must_use]
    pub const fn threads(&self) -> usize {
        self.threads
    }

    /// Where time comes from.
    #[must_use]
    pub fn clock(&self) -> &SharedClock {
        &self.clock
    }

    /// The repositories that could be opened, with their names.
    pub fn repositories(&self) -> impl Iterator<Item = (&str, &Repository)> {
        self.places.iter().filter_map(|place| Some((place.name.as_str(), place.repository.as_ref().ok()?)))
    }

    /// The repositories that could not be opened, with what was in the way.
    pub fn unreachable(&self) -> impl Iterator<Item = (&str, &Arc<repository::Error>)> {
        self.places.iter().filter_map(|place| Some((place.name.as_str(), place.repository.as_ref().err()?)))
    }
}
