//! The index: where in the archive a moment, a transaction, a restore point or a position is.
//!
//! It holds a summary of each segment, of each block of 256 segments and of each four full blocks, level upon level,
//! and every event, in RocksDB; all of it comes from the digests in the trailers of the segments' objects, so an index
//! that is lost is rebuilt from them, and nothing is ever acknowledged on its word. One process writes
//! ([`WalIndex::open_writer`]); any number read beside it ([`WalIndex::open_reader`]).
//!
//! [`keys`] and [`segment_update`] say what is written, [`path_search`] and [`continuity`] what is asked; they are
//! pure, over [`key_value_store::KeyValueStore`], and only `rocks` names RocksDB. The calls block: from async code they
//! go through `spawn_blocking`. `docs/format/index.md` describes the bytes.

#[cfg(test)]
mod block_tests;
#[cfg(test)]
mod tests;
pub mod xid_ranges;
pub mod path_search;
mod rocks;
pub mod cluster_view;
#[cfg(test)]
pub(crate) mod test_archive;
pub mod continuity;
pub mod keys;
pub mod summary;
mod value_codec;
mod error;
pub mod key_value_store;
pub mod segment_update;
mod path_continuity;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use tempfile::TempDir;

use crate::postgres::format::segment::SegmentNo;
use crate::postgres::format::timeline::TimelineId;

pub use cluster_view::IndexView;
pub use continuity::{WalContinuity, WalDefect, WalHole};
pub use error::IndexError;
pub use keys::{BlockId, PARAMETERS_TAG, RESTORE_POINT_TAG, SegmentId};
pub use path_search::{ParameterMaxima, PathSearch, SegmentFilter};
pub use segment_update::IndexEntry;
pub use summary::{ContrecordState, SegmentSummary};
pub use walk::{PathSegment, WalkNext, WalkStep, WholeBlock};

use key_value_store::{IndexBatch, KeyFamily, KeyValueStore, LayeredStore};
use keys::ClusterKeys;
use rocks::RocksStore;
use segment_update::IndexUpdate;

/// The format of keys and values; an index of another format is not read but rebuilt.
const INDEX_FORMAT: u32 = 3;

const FORMAT_KEY: &[u8] = b"format";
const REPOSITORY_KEY: &[u8] = b"repository";
/// A batch is applied when it has grown to this: a rebuild then needs no more memory than that.
const BATCH_BYTES: usize = 1 << 20;

/// Segments by their timeline.
pub type SegmentsByTimeline = BTreeMap<TimelineId, Vec<SegmentNo>>;

/// An open index.
#[derive(Debug)]
pub struct WalIndex {
    rocks: RocksStore,
    /// Held while something is read, changed and written back.
    writing: Mutex<()>,
    /// What a reader has taken in by itself and the database does not have yet. Always empty for the writer.
    own: RwLock<Arc<IndexBatch>>,
    /// The directory of an index that lives as long as this.
    _scratch: Option<TempDir>,
}

impl WalIndex {
    /// Opens the index in `dir` for writing, making it where there is none. `repositories` are the ids of those it is
    /// made from: one that is among them already is enough to recognise it by, and the others are noted.
    ///
    /// # Errors
    /// [`IndexError::Locked`] where another process writes it; [`IndexError::OtherRepository`],
    /// [`IndexError::OtherFormat`] and [`IndexError::Damaged`] where it has to be replaced ([`WalIndex::recreate`]).
    pub fn open_writer(dir: &Path, repositories: &[String]) -> Result<WalIndex, IndexError> {
        let index = WalIndex::from_rocks(RocksStore::open_writer(dir)?);
        let fresh = index.rocks.get(KeyFamily::Meta, FORMAT_KEY)?.is_none()
            && index.rocks.get(KeyFamily::Meta, REPOSITORY_KEY)?.is_none();
        let noted = if fresh { Vec::new() } else { index.check_identity(repositories)? };
        let all: BTreeSet<&String> = noted.iter().chain(repositories).collect();
        if fresh || all.len() > noted.len() {
            let ids: Vec<&str> = all.into_iter().map(String::as_str).collect();
            let mut batch = IndexBatch::default();
            batch.put(KeyFamily::Meta, FORMAT_KEY.to_vec(), INDEX_FORMAT.to_be_bytes().to_vec());
            batch.put(KeyFamily::Meta, REPOSITORY_KEY.to_vec(), ids.join(",").into_bytes());
            index.rocks.apply(&batch)?;
        }
        Ok(index)
    }

    fn from_rocks(rocks: RocksStore) -> WalIndex {
        WalIndex { rocks, writing: Mutex::new(()), own: RwLock::default(), _scratch: None }
    }

    /// The database, and what a reader has on top of it.
    fn layered_store(&self) -> LayeredStore<&RocksStore> {
        LayeredStore::new(&self.rocks, Arc::clone(&self.own.read().unwrap_or_else(PoisonError::into_inner)))
    }

    /// Makes changes: in the database, or if this is a reader on top of it, for itself alone.
    fn apply(&self, batch: IndexBatch) -> Result<(), IndexError> {
        if self.is_writer() {
            return self.rocks.apply(&batch);
        }
        let mut own = self.own.write().unwrap_or_else(PoisonError::into_inner);
        *own = Arc::new(Arc::unwrap_or_clone(std::mem::take(&mut *own)).merged_with(batch));
        Ok(())
    }

    /// Opens the index in `dir` for reading, as it stands now, beside whoever writes it.
    ///
    /// # Errors
    /// [`IndexError::Absent`] where there is none; else as [`WalIndex::open_writer`].
    pub fn open_reader(dir: &Path, repositories: &[String]) -> Result<WalIndex, IndexError> {
        let index = WalIndex::from_rocks(RocksStore::open_reader(dir)?);
        index.check_identity(repositories)?;
        Ok(index)
    }

    /// Opens an empty index in `dir` for writing, in place of whatever index is there.
    ///
    /// # Errors
    /// [`IndexError::Locked`] where another process writes it.
    pub fn recreate(dir: &Path, repositories: &[String]) -> Result<WalIndex, IndexError> {
        RocksStore::destroy(dir)?;
        WalIndex::open_writer(dir, repositories)
    }

    /// An empty index that is gone when it is dropped: in `folder` if it can be written, else among the machine's
    /// temporary files.
    ///
    /// # Errors
    /// There is no room for it in either place.
    pub fn scratch(folder: &Path, repositories: &[String]) -> Result<WalIndex, IndexError> {
        let failed = |source| IndexError::File { what: "create an index below", path: std::env::temp_dir(), source };
        let mut builder = tempfile::Builder::new();
        let builder = builder.prefix("walkeep-index-");
        let dir = builder.tempdir_in(folder).or_else(|_unwritable| builder.tempdir()).map_err(failed)?;
        let index = WalIndex::open_writer(dir.path(), repositories)?;
        Ok(WalIndex { _scratch: Some(dir), ..index })
    }

    /// The repositories that the index says it is made from, if one of those at hand is among them.
    fn check_identity(&self, repositories: &[String]) -> Result<Vec<String>, IndexError> {
        let dir = || self.rocks.dir().to_owned();
        let format = self.rocks.get(KeyFamily::Meta, FORMAT_KEY)?;
        let found = self.rocks.get(KeyFamily::Meta, REPOSITORY_KEY)?;
        let (Some(format), Some(found)) = (format, found) else {
            return Err(IndexError::Damaged { dir: dir(), what: "it doesn't say what it is an index of".to_owned() });
        };
        let format = format.try_into().map(u32::from_be_bytes).unwrap_or(0);
        if format != INDEX_FORMAT {
            return Err(IndexError::OtherFormat { dir: dir(), found: format, expected: INDEX_FORMAT });
        }
        let found = String::from_utf8_lossy(&found).into_owned();
        let noted: Vec<String> = found.split(',').map(str::to_owned).collect();
        if !noted.iter().any(|id| repositories.contains(id)) {
            return Err(IndexError::OtherRepository { dir: dir(), found, expected: repositories.join(",") });
        }
        Ok(noted)
    }

    /// Whether this process is the writer.
    #[must_use]
    pub fn is_writer(&self) -> bool {
        self.rocks.is_writer()
    }

    /// The part of the index that is about `cluster`.
    ///
    /// # Errors
    /// What RocksDB says, or [`IndexError::Cluster`].
    pub fn view(&self, cluster: &str) -> Result<IndexView<'_>, IndexError> {
        IndexView::new(self.layered_store(), cluster)
    }

    /// Takes digests in, a reader for itself alone, in whatever order they come; one that is there already changes
    /// nothing. A crash leaves some of them in and the others out, never half of one.
    ///
    /// # Errors
    /// What RocksDB says; [`IndexError::SegmentSize`] for a segment that is not the cluster's.
    pub fn ingest<'a>(
        &self,
        cluster: &str,
        entries: impl IntoIterator<Item = IndexEntry<'a>>,
    ) -> Result<(), IndexError> {
        let cluster = ClusterKeys::new(cluster)?;
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            let store = self.layered_store();
            let mut ingest = IndexUpdate::new(&store, &cluster)?;
            for entry in entries.by_ref() {
                ingest.add_segment(entry)?;
                if ingest.batch_bytes() >= BATCH_BYTES {
                    break;
                }
            }
            let batch = ingest.finish();
            drop(store);
            self.apply(batch)?;
        }
        Ok(())
    }

    /// Says that every segment of `timeline` that was archived up to `at` is in the index. The mark moves on by itself
    /// over what follows without a hole, so that a catch-up begins there ([`IndexView::timeline_mark`]).
    ///
    /// # Errors
    /// What RocksDB says.
    pub fn set_mark(&self, cluster: &str, timeline: TimelineId, at: SegmentNo) -> Result<(), IndexError> {
        let cluster = ClusterKeys::new(cluster)?;
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let store = self.layered_store();
        let mut ingest = IndexUpdate::new(&store, &cluster)?;
        ingest.set_mark(timeline, at)?;
        let batch = ingest.finish();
        drop(store);
        self.apply(batch)
    }

    /// Removes segments that the repository has no longer, with their events. A block of which others are left keeps
    /// claiming them, which costs a search a moment and no answer.
    ///
    /// # Errors
    /// What RocksDB says.
    pub fn forget(&self, cluster: &str, timeline: TimelineId, segments: &[SegmentNo]) -> Result<(), IndexError> {
        let cluster = ClusterKeys::new(cluster)?;
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let batch = segment_update::forget_segments(&self.layered_store(), &cluster, timeline, segments)?;
        self.apply(batch)
    }

    /// Takes in what the writer has written since this reader was opened or last refreshed. What the reader had taken
    /// in by itself is dropped: the writer's blocks may know more by now than those on top of them.
    ///
    /// # Errors
    /// What RocksDB says.
    pub fn refresh(&self) -> Result<(), IndexError> {
        *self.own.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
        self.rocks.refresh()
    }

    /// Writes all that is in memory to files; a reader has nothing to write.
    ///
    /// # Errors
    /// What RocksDB says.
    pub fn flush(&self) -> Result<(), IndexError> {
        if self.is_writer() { self.rocks.flush() } else { Ok(()) }
    }

    /// How large the index is.
    ///
    /// # Errors
    /// What RocksDB says.
    pub fn stats(&self) -> Result<IndexStats, IndexError> {
        let mut families = Vec::new();
        for family in KeyFamily::ALL {
            let (keys, bytes) = self.rocks.estimated_size(family)?;
            families.push(FamilyStats { name: family.name(), keys, bytes });
        }
        Ok(IndexStats { format: INDEX_FORMAT, families, memory: self.rocks.memory_bytes()? })
    }
}

impl WalIndex {
    /// The part of the index that is about `cluster`, with digests laid over it that never get into it: of segments
    /// that still grow.
    ///
    /// # Errors
    /// As [`WalIndex::ingest`].
    pub fn view_with<'a>(
        &self,
        cluster: &str,
        entries: impl IntoIterator<Item = IndexEntry<'a>>,
    ) -> Result<IndexView<'_>, IndexError> {
        self.view_without(cluster, &SegmentsByTimeline::new(), entries)
    }

    /// The same, as if the index did not have the segments `gone`: of an archive in which they are not.
    ///
    /// # Errors
    /// As [`WalIndex::ingest`].
    pub fn view_without<'a>(
        &self,
        cluster: &str,
        gone: &SegmentsByTimeline,
        entries: impl IntoIterator<Item = IndexEntry<'a>>,
    ) -> Result<IndexView<'_>, IndexError> {
        let (store, of) = (self.layered_store(), ClusterKeys::new(cluster)?);
        let mut without = IndexBatch::default();
        for (timeline, segments) in gone {
            without = without.merged_with(segment_update::forget_segments(&store, &of, *timeline, segments)?);
        }
        let store = LayeredStore::new(store, Arc::new(without));
        let mut ingest = IndexUpdate::new(&store, &of)?;
        for entry in entries {
            ingest.add_segment(entry)?;
        }
        let over = Arc::new(ingest.finish());
        IndexView::new(LayeredStore::new(store, over), cluster)
    }
}

/// An index in memory alone, for one task. It takes a few hundred bytes a segment.
#[derive(Debug, Default)]
pub struct InMemoryIndex(key_value_store::MemoryStore);

impl InMemoryIndex {
    /// Takes a digest in, as [`WalIndex::ingest`] does.
    ///
    /// # Errors
    /// [`IndexError::SegmentSize`] for a segment that is not the cluster's.
    pub fn ingest(&mut self, cluster: &str, entry: IndexEntry<'_>) -> Result<(), IndexError> {
        let cluster = ClusterKeys::new(cluster)?;
        let mut ingest = IndexUpdate::new(&self.0, &cluster)?;
        ingest.add_segment(entry)?;
        let batch = ingest.finish();
        self.0.apply(&batch);
        Ok(())
    }

    /// The part of it that is about `cluster`.
    ///
    /// # Errors
    /// [`IndexError::Cluster`].
    pub fn view(&self, cluster: &str) -> Result<IndexView<'_>, IndexError> {
        IndexView::new(&self.0, cluster)
    }
}

/// How large an index is, as RocksDB estimates it.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct IndexStats {
    /// The format of its keys and values.
    pub format: u32,
    /// Each family of keys.
    pub families: Vec<FamilyStats>,
    /// Bytes that RocksDB holds in memory in this process.
    pub memory: u64,
}

/// One family of keys.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct FamilyStats {
    /// What it holds.
    pub name: &'static str,
    /// Keys, about.
    pub keys: u64,
    /// Bytes in files, compressed; what is still in memory and in the log is not counted.
    pub bytes: u64,
}
