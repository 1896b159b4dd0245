//! The RocksDB index over the archive.
