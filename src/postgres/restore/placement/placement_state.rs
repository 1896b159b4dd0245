//! A backup's files on their way to their places.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, OnceLock};

use crate::base::durable::Filesystem;
use crate::base::lock::FileLock;
use crate::postgres::archive::chunks::ChunkSubtreeHash;
use crate::postgres::archive::manifest::Manifest;
use crate::postgres::restore::destination::CheckedDestination;

/// A piece of a file: which chunk, and where it goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct ChunkPlacement {
    pub(super) entry: u32,
    pub(super) chunk: u32,
    pub(super) offset: u64,
}

/// A file's way to being whole.
#[derive(Debug)]
pub(super) struct TargetFile {
    pub(super) path: PathBuf,
    pub(super) mode: u32,
    pub(super) hash: [u8; 32],
    pub(super) len: u64,
    pub(super) pieces: u32,
    pub(super) written: Mutex<FileProgress>,
}

/// What of a file was written: the values of its chunks, which join to its hash, as long as some are still to come.
#[derive(Debug, Default)]
pub(super) struct FileProgress {
    pub(super) values: Vec<ChunkSubtreeHash>,
    pub(super) count: u32,
    /// Which were there before; empty where none was.
    pub(super) kept: Vec<bool>,
}

/// A backup's files and where they go.
pub struct Placement {
    pub(super) manifest: Arc<Manifest>,
    pub(super) ground: CheckedDestination,
    pub(super) targets: BTreeMap<u32, TargetFile>,
    pub(super) by_pack: Vec<Vec<ChunkPlacement>>,
    pub(super) placed: AtomicU64,
    pub(super) reused: AtomicU64,
    /// The file systems written to, from before the first write on.
    pub(super) filesystems: OnceLock<Vec<Filesystem>>,
    /// The marker, once it stands, locked where the file system has locks.
    pub(super) marker: OnceLock<Option<FileLock>>,
    /// Whether the marker was there before, of a restore that was stopped.
    pub(super) found_marker: AtomicBool,
}

impl std::fmt::Debug for Placement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Placement")
            .field("ground", &self.ground)
            .field("files", &self.targets.len())
            .finish_non_exhaustive()
    }
}
