//! The order of effects that makes a file durable: temporary file, fsync, rename, fsync of the directory.
