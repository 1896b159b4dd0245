//! A restore in two steps: the files are placed, and a server is started on them if that is wanted.

use std::time::Duration;

use super::destination::RedisDestination;
use super::plan::restore_work;
use super::server_start::{LoadedData, check_server_loads};
use super::write::{RestoreOptions, restore_instance};
use super::{DataFileNames, PlacedFiles, RestoreError, server_options};
use crate::base::clock::SharedClock;
use crate::base::restore_estimate::MeasuredRestore;
use crate::redis::archive::{Archive, RestoreRoute};

/// Files that a server can start from.
#[derive(Clone, Debug)]
pub struct PlacedRestore {
    /// The files.
    pub files: PlacedFiles,
    /// What to know before a server is started on them.
    pub warnings: Vec<String>,
    /// How long placing them took.
    pub took: Duration,
}

/// What a restore came to.
#[derive(Clone, Debug, serde::Serialize)]
pub struct FinishedRedisRestore {
    /// The files.
    #[serde(rename = "restored")]
    pub placed: PlacedFiles,
    /// What to know before a server is started on them.
    pub warnings: Vec<String>,
    /// What a server had after loading the files, if one was started.
    pub loaded: Option<LoadedData>,
    /// The options that a server is to be started with.
    #[serde(rename = "start")]
    pub options: Vec<String>,
    /// How long it took, if a server was started.
    #[serde(skip)]
    pub measured: Option<MeasuredRestore>,
}

impl RedisDestination {
    fn file_names(&self) -> DataFileNames {
        self.conf.as_ref().map(|(_, conf)| conf.names.clone()).unwrap_or_default()
    }

    /// Writes the files. `progress` is called with the bytes written and the bytes in all.
    ///
    /// # Errors
    /// Something is missing or damaged, or cannot be written.
    pub async fn place(
        &self,
        instance: &Archive,
        route: &RestoreRoute,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<PlacedRestore, RestoreError> {
        let clock = instance.vault().clock();
        let began = clock.elapsed();
        let options = RestoreOptions { dir: self.dir.clone(), version: self.version, names: self.file_names() };
        let files = restore_instance(instance, route, options, progress).await?;
        let took = clock.elapsed().saturating_sub(began);
        let mut warnings = self.unread_conf_warnings();
        let conf = self.conf.as_ref().map(|(path, conf)| (path.as_str(), conf));
        warnings.extend(server_options::configuration_warnings(&files, conf, self.version));
        Ok(PlacedRestore { files, warnings, took })
    }

    /// Ends a restore. If `start`, a server is started on the files and compared with the snapshot.
    ///
    /// # Errors
    /// The server does not load the files, or has other keys than the snapshot.
    pub async fn finish(
        &self,
        route: &RestoreRoute,
        placed: PlacedRestore,
        start: bool,
        clock: &SharedClock,
    ) -> Result<FinishedRedisRestore, RestoreError> {
        let PlacedRestore { files, warnings, took } = placed;
        let (names, began) = (self.file_names(), clock.elapsed());
        let loaded = match self.program.as_ref().filter(|_| start) {
            Some(program) => Some(check_server_loads(program, &files, &names, clock).await?),
            None => None,
        };
        let loading = clock.elapsed().saturating_sub(began);
        let measured = loaded.as_ref().map(|_| MeasuredRestore {
            work: restore_work(route),
            file_seconds: took.as_secs_f64(),
            replay_seconds: loading.as_secs_f64(),
        });
        let options = server_options::server_options(&files, &names);
        Ok(FinishedRedisRestore { placed: files, warnings, loaded, options, measured })
    }
}
