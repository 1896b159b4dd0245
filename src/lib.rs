//! walkeep keeps PostgreSQL clusters and Redis instances restorable to any moment.
//!
//! WAL comes in over the replication protocol ([`receive`]) or as an `archive_command` ([`push`]). Either way a whole segment goes through
//! [`archive::ingest`]: every record is checked and digested ([`wal`]), the bytes are compressed and encrypted ([`seal`]) and put into the
//! repository, once, under a name that sorts by position ([`repository`]). Only then is the segment acknowledged. The digests are also kept
//! in an [`index`], which can be thrown away and rebuilt.
//!
//! A base backup ([`backup`]) is cut into chunks that are stored once each; its manifest is written last. A restore ([`restore`]) resolves
//! its target to the exact record where PostgreSQL will stop, proves that everything it needs is there, and only then touches the disk;
//! PostgreSQL then fetches its WAL through [`get`].
//!
//! A Redis or Valkey instance is followed as its replica ([`redis`]): a snapshot is walked while it streams by ([`rdb`]) and stored in parts, and
//! the stream of commands behind it ([`resp`]) is kept with marks that tie its offsets to times ([`snapshot`], [`archive::instance`]).
//!
//! The modules stand in layers, lowest first. A module imports only from the layers below its own, which `tests/tidy.rs` checks.

// L0  leaves: know nothing of PostgreSQL or storage
pub mod clock;
pub mod durable;
pub mod lock;
pub mod retry;
pub mod pipeline;

// L1  formats: pure. Bytes in, values out; no async, no files, no clock
pub mod postgres;
pub mod wal;
pub mod rdb;
pub mod resp;
pub mod seal;

// L2  adapters: each is the only module that names its foreign system
pub mod pem;
pub mod replication;
pub mod sql;
pub mod redis;
pub mod repository;
pub mod index;
pub mod control;

pub mod vault;

// L3  archive: joins seal, repository and index
pub mod archive;

// L4  flows: siblings that never import one another
pub mod receive;
pub mod push;
pub mod get;
pub mod backup;
pub mod snapshot;
pub mod restore;
pub mod explore;
pub mod retention;
pub mod verify;
pub mod health;

// L5  edge: the only users of anyhow and clap
pub mod config;
pub mod cli;
