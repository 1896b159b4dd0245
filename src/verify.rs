//! Reads back and authenticates everything.
