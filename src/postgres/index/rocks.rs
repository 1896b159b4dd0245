//! RocksDB as the index's store: how it is opened, how much memory it may take, and who may write.
//!
//! The directory of an index holds `db/` (the database), `lock` (held by the one writer for as long as it lives) and
//! `readers/` (what RocksDB's secondary instances need for themselves). Nothing else in walkeep names RocksDB.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, Direction, ErrorKind,
    IteratorMode, LogLevel, Options, ReadOptions, WriteBatch, WriteOptions,
};

use super::error::IndexError;
use super::key_value_store::{IndexBatch, KeyChange, KeyFamily, KeyValueStore, KeyValues, ScanOrder};
use super::keys::KeyRange;
use crate::base::lock::FileLock;

/// Blocks kept for reading: the summaries of some 100,000 segments.
const BLOCK_CACHE_BYTES: usize = 8 << 20;
/// Everything written and not yet in a file, over all families; with the cache and the tables' own overhead RocksDB
/// stays near 24 MiB.
const WRITE_BUFFERS_BYTES: usize = 8 << 20;
/// One family's share of [`WRITE_BUFFERS_BYTES`] before it is written out.
const WRITE_BUFFER_BYTES: usize = 4 << 20;
/// The write-ahead log is cut off here, so that opening after a crash replays little.
const MAX_ROCKS_LOG_BYTES: u64 = 16 << 20;

/// An open database.
pub(super) struct RocksStore {
    db: DB,
    dir: PathBuf,
    role: RocksRole,
}

/// What this process may do with the database.
enum RocksRole {
    /// The one writer; the lock is let go with the file.
    Writer { _lock: FileLock },
    /// One of any number of readers; its scratch directory is removed in the end.
    Reader { scratch: PathBuf },
}

impl std::fmt::Debug for RocksStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let role = if matches!(self.role, RocksRole::Writer { .. }) { "writer" } else { "reader" };
        f.debug_struct("Rocks").field("dir", &self.dir).field("role", &role).finish_non_exhaustive()
    }
}

impl RocksStore {
    /// Opens the database for writing, making it where there is none.
    pub(super) fn open_writer(dir: &Path) -> Result<RocksStore, IndexError> {
        create_dir(dir)?;
        let lock = lock_writer(dir)?;
        sweep_readers(dir);
        let mut options = db_options();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        let families = family_descriptors();
        let db =
            DB::open_cf_descriptors(&options, dir.join("db"), families).map_err(|source| open_error(dir, source))?;
        Ok(RocksStore { db, dir: dir.to_owned(), role: RocksRole::Writer { _lock: lock } })
    }

    /// Opens the database beside its writer, as it stands now.
    pub(super) fn open_reader(dir: &Path) -> Result<RocksStore, IndexError> {
        if !dir.join("db").join("CURRENT").exists() {
            return Err(IndexError::Absent(dir.to_owned()));
        }
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let own = format!("{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let scratch = dir.join("readers").join(own);
        create_dir(&scratch)?;
        let db = DB::open_cf_descriptors_as_secondary(&db_options(), &dir.join("db"), &scratch, family_descriptors());
        match db {
            Ok(db) => Ok(RocksStore { db, dir: dir.to_owned(), role: RocksRole::Reader { scratch } }),
            Err(source) => {
                remove_scratch(&scratch);
                Err(open_error(dir, source))
            }
        }
    }

    /// Removes the database, if no other process writes it.
    pub(super) fn destroy(dir: &Path) -> Result<(), IndexError> {
        create_dir(dir)?;
        let _lock = lock_writer(dir)?;
        let db = dir.join("db");
        match std::fs::remove_dir_all(&db) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(IndexError::File { what: "remove the old index", path: db, source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// The index's directory.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whether this process is the writer.
    pub(super) fn is_writer(&self) -> bool {
        matches!(self.role, RocksRole::Writer { .. })
    }

    /// Makes a batch's changes. They reach the system's page cache, not the disk: after a power cut the index may lack
    /// its last entries, never hold half of a batch, and catches up from the repository.
    pub(super) fn apply(&self, batch: &IndexBatch) -> Result<(), IndexError> {
        let mut out = WriteBatch::default();
        for (family, range) in batch.cleared() {
            out.delete_range_cf(self.family(*family)?, &range.from, &range.to);
        }
        for (family, key, change) in batch.changes() {
            match change {
                KeyChange::Put(value) => out.put_cf(self.family(family)?, key, value),
                KeyChange::Delete => out.delete_cf(self.family(family)?, key),
            }
        }
        let mut how = WriteOptions::default();
        how.set_sync(false);
        self.db.write_opt(out, &how).map_err(|source| open_error(&self.dir, source))
    }

    /// Takes in what the writer has written since; nothing to do for the writer itself.
    pub(super) fn refresh(&self) -> Result<(), IndexError> {
        match self.role {
            RocksRole::Writer { .. } => Ok(()),
            RocksRole::Reader { .. } => {
                self.db.try_catch_up_with_primary().map_err(|source| open_error(&self.dir, source))
            }
        }
    }

    /// Writes everything in memory to files and waits for the disk.
    pub(super) fn flush(&self) -> Result<(), IndexError> {
        let families =
            KeyFamily::ALL.iter().map(|&family| self.family(family)).collect::<Result<Vec<_>, IndexError>>()?;
        self.db
            .flush_cfs_opt(&families, &rocksdb::FlushOptions::default())
            .map_err(|source| open_error(&self.dir, source))
    }

    /// A family's number of keys and bytes in files, as RocksDB estimates them.
    pub(super) fn estimated_size(&self, family: KeyFamily) -> Result<(u64, u64), IndexError> {
        let ask = |name: &str| -> Result<u64, IndexError> {
            let value = self
                .db
                .property_int_value_cf(self.family(family)?, name)
                .map_err(|source| open_error(&self.dir, source))?;
            Ok(value.unwrap_or(0))
        };
        Ok((ask("rocksdb.estimate-num-keys")?, ask("rocksdb.total-sst-files-size")?))
    }

    /// Bytes that RocksDB holds in memory: write buffers, block cache, table readers.
    pub(super) fn memory_bytes(&self) -> Result<u64, IndexError> {
        let mut total = 0u64;
        for family in KeyFamily::ALL {
            for name in ["rocksdb.cur-size-all-mem-tables", "rocksdb.estimate-table-readers-mem"] {
                let value = self
                    .db
                    .property_int_value_cf(self.family(family)?, name)
                    .map_err(|source| open_error(&self.dir, source))?;
                total = total.saturating_add(value.unwrap_or(0));
            }
        }
        // The cache is shared by all families: each reports the whole of it.
        let cache = self.db.property_int_value_cf(self.family(KeyFamily::Segments)?, "rocksdb.block-cache-usage");
        Ok(total.saturating_add(cache.map_err(|source| open_error(&self.dir, source))?.unwrap_or(0)))
    }

    fn family(&self, family: KeyFamily) -> Result<&rocksdb::ColumnFamily, IndexError> {
        let missing = || IndexError::Damaged { dir: self.dir.clone(), what: format!("no family {}", family.name()) };
        self.db.cf_handle(family.name()).ok_or_else(missing)
    }
}

impl Drop for RocksStore {
    fn drop(&mut self) {
        if let RocksRole::Reader { scratch } = &self.role {
            remove_scratch(scratch);
        }
    }
}

impl KeyValueStore for RocksStore {
    fn get(&self, family: KeyFamily, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        self.db.get_cf(self.family(family)?, key).map_err(|source| open_error(&self.dir, source))
    }

    fn scan(&self, family: KeyFamily, range: &KeyRange, order: ScanOrder) -> KeyValues<'_> {
        if range.from >= range.to {
            return Box::new(std::iter::empty());
        }
        let handle = match self.family(family) {
            Ok(handle) => handle,
            Err(error) => return Box::new(std::iter::once(Err(error))),
        };
        let mut how = ReadOptions::default();
        how.set_iterate_lower_bound(range.from.clone());
        how.set_iterate_upper_bound(range.to.clone());
        let mode = match order {
            ScanOrder::Forward => IteratorMode::From(&range.from, Direction::Forward),
            ScanOrder::Backward => IteratorMode::End,
        };
        let pairs = self.db.iterator_cf_opt(handle, how, mode);
        Box::new(pairs.map(|pair| match pair {
            Ok((key, value)) => Ok((key.into_vec(), value.into_vec())),
            Err(source) => Err(open_error(&self.dir, source)),
        }))
    }
}

/// Settings of the whole database.
fn db_options() -> Options {
    let mut options = Options::default();
    options.set_db_write_buffer_size(WRITE_BUFFERS_BYTES);
    options.set_max_total_wal_size(MAX_ROCKS_LOG_BYTES);
    // After a power cut the log may end anywhere: what is whole counts. All families are flushed together, so that they
    // agree.
    options.set_wal_recovery_mode(DBRecoveryMode::PointInTime);
    options.set_atomic_flush(true);
    options.set_paranoid_checks(true);
    // Readers beside the writer need every file open, lest a compaction remove one under them.
    options.set_max_open_files(-1);
    options.set_max_background_jobs(2);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options.set_log_level(LogLevel::Warn);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    options.set_max_manifest_file_size(4 << 20);
    options
}

/// The families, with one cache for all of them.
fn family_descriptors() -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(BLOCK_CACHE_BYTES);
    let family = |family: &KeyFamily| {
        let mut table = BlockBasedOptions::default();
        table.set_block_cache(&cache);
        table.set_cache_index_and_filter_blocks(true);
        table.set_cache_index_and_filter_blocks_with_high_priority(true);
        table.set_bloom_filter(10.0, false);
        table.set_format_version(5);
        let mut options = Options::default();
        options.set_block_based_table_factory(&table);
        options.set_write_buffer_size(WRITE_BUFFER_BYTES);
        options.set_max_write_buffer_number(2);
        options.set_target_file_size_base(8 << 20);
        options.set_compression_type(DBCompressionType::Zstd);
        ColumnFamilyDescriptor::new(family.name(), options)
    };
    let mut families: Vec<ColumnFamilyDescriptor> = KeyFamily::ALL.iter().map(family).collect();
    // RocksDB insists on a family of this name; it stays empty.
    families.push(ColumnFamilyDescriptor::new("default", Options::default()));
    families
}

/// Takes the writer's lock.
fn lock_writer(dir: &Path) -> Result<FileLock, IndexError> {
    let path = dir.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|source| IndexError::File { what: "open", path: path.clone(), source })?;
    FileLock::acquire(file).map_err(|error| match error {
        TryLockError::WouldBlock => IndexError::Locked(dir.to_owned()),
        TryLockError::Error(source) => IndexError::File { what: "lock", path, source },
    })
}

fn create_dir(dir: &Path) -> Result<(), IndexError> {
    std::fs::create_dir_all(dir).map_err(|source| IndexError::File {
        what: "create directory",
        path: dir.to_owned(),
        source,
    })
}

/// Removes what readers that died have left. A directory whose process lives, or cannot be told, stays.
fn sweep_readers(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir.join("readers")) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let process =
            name.to_str().and_then(|name| name.split_once('-')).map(|(process, _)| Path::new("/proc").join(process));
        if process.is_some_and(|process| Path::new("/proc/self").exists() && !process.exists()) {
            remove_scratch(&entry.path());
        }
    }
}

/// Removes a reader's scratch directory; a left-over does no harm and the next writer tries again.
fn remove_scratch(scratch: &Path) {
    if let Err(error) = std::fs::remove_dir_all(scratch) {
        tracing::debug!(dir = %scratch.display(), %error, "cannot remove a reader's scratch directory");
    }
}

/// Tells damage, which a rebuild heals, from a disk or a permission that a rebuild would meet again.
fn open_error(dir: &Path, source: rocksdb::Error) -> IndexError {
    match source.kind() {
        ErrorKind::Corruption | ErrorKind::InvalidArgument | ErrorKind::NotSupported => {
            IndexError::Damaged { dir: dir.to_owned(), what: source.into_string() }
        }
        ErrorKind::IOError if source.as_ref().contains("No such file") => {
            IndexError::Damaged { dir: dir.to_owned(), what: source.into_string() }
        }
        _ => IndexError::Database { dir: dir.to_owned(), source },
    }
}
