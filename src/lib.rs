//! walkeep keeps PostgreSQL clusters and Redis instances restorable to any moment.
//!
//! Two wings share one vault. The [`vault`] stores named, sealed, immutable objects in one or more repositories. The
//! [`postgres`] wing and the [`redis`] wing each archive one store in it, and use the same words: `format` and `wire`
//! below, `archive` above them, and then one flow for each verb of the command line. The wings never import each other;
//! [`joint`] brings both stores to one moment.
//!
//! **PostgreSQL.** WAL arrives over the replication protocol ([`postgres::receive`]) or as an `archive_command`
//! ([`postgres::archive_push`]). Either way a whole segment goes through [`postgres::archive::ingest`]: every record is
//! checked and digested ([`postgres::wal`]), the bytes are compressed and encrypted ([`vault::seal`]) and created in
//! the repositories ([`vault::repository`]) under a name that sorts by position. Only then is the segment acknowledged.
//! The digests are also kept in the [`postgres::index`], which can be deleted and rebuilt. A base backup
//! ([`postgres::backup`]) is cut into chunks that are stored once each; its manifest is written last. A restore
//! ([`postgres::restore`]) resolves its target to the exact record where PostgreSQL will stop, proves that everything
//! it needs is stored, and only then touches the disk; PostgreSQL then fetches its WAL through
//! [`postgres::archive_get`].
//!
//! **Redis.** A Redis or Valkey instance is followed as its replica ([`redis::wire`]). A snapshot is walked while it
//! streams in ([`redis::format::rdb`]) and stored in parts. The stream of commands after it ([`redis::format::resp`])
//! is spooled, acknowledged, and stored in stretches whose marks tie offsets to times ([`redis::receive`],
//! [`redis::archive`]).
//!
//! The modules below are in reading order, lowest layer first. A module imports only from the layers below its own,
//! which `tests/tidy/` checks.

pub mod base;
pub mod vault;
pub mod postgres;
pub mod redis;
pub mod joint;
pub mod control;
pub mod config;
pub mod cli;
