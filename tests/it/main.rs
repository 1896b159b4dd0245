//! Tests of the whole against real servers, one binary. `tests/setup.sh` puts the servers there; each test starts its own, on free ports,
//! in a scratch directory, and they are gone when it ends.

#![allow(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::string_slice,
    clippy::unwrap_used,
    reason = "a test says what it expects by panicking"
)]

#[allow(dead_code, unused_imports, reason = "each test takes the parts of the support that it needs")]
mod support;

/// The support itself: servers of every major start, crash, promote and go away.
mod servers;

/// The command line as users and scripts meet it.
mod cli;
/// Restores to random moments.
mod moments;
/// The replication client: every command, every way to log in.
mod replication;
/// The index over a real server's WAL.
mod index;
/// Records, endings and events beside `pg_waldump`'s.
mod wal_oracle;
/// The receiver: complete, resumable, truthful.
mod receive;
/// Base backups, put back by other code than the restore's.
mod backup;
/// `archive_command`.
mod push;
/// `restore_command`.
mod get;
/// Faults between archive and recovery: stop or wait, never promote.
mod failsafe;
/// Restores through the library: targets of every kind, timelines, tablespaces, and what cannot be reached.
mod restore;
/// Parsers beside PostgreSQL's own programs.
mod formats;
/// What was acknowledged, after the worst.
mod acknowledged;
/// WAL of seconds ago, after worse.
mod pieces;
/// The main job from end to end, on every major.
mod whole;
/// `walkeep log`: accidents of every kind on real servers, and the way back from each.
mod log;
/// Retention and health.
mod cleanup;
/// Restores over an old data directory.
mod delta;
/// Tablespaces that replay makes at the paths of the original.
mod tablespaces;
/// One database or table back into a running server under another name.
mod single;
/// Targets beside PostgreSQL's own recovery.
mod stops;
/// Redis snapshots: taken, refused, imported.
mod redis_snapshot;
/// Imported files that no server may load as they are.
mod redis_files;
/// What a server keeps of its own is left alone.
mod redis_persistence;
/// Sentinels with passwords, and which server sends the snapshot.
mod redis_sentinel;
/// The stream of a Redis server: complete, resumable, followed through failovers.
mod redis_receive;
/// The receiver of an instance begins again.
mod redis_resume;
/// Full and failing disks under the receiver of a Redis server.
mod redis_full;
/// A connection in pieces of a few bytes: transactions, and the end of a snapshot.
mod redis_pieces;
/// Bytes that change on their way from a Redis server.
mod redis_damage;
/// A transaction longer than any stretch, and values that look like the stream.
mod redis_commands;
/// Failovers one after another, branches, and the way to a target over them.
mod timelines;
/// `walkeep log redis`: accidents on real servers, and the way back from each.
mod redis_log;
/// Retention of Redis instances.
mod redis_cleanup;
/// A repository that is away, and a master that is another one now.
mod redis_away;
/// How protected a Redis instance is.
mod redis_health;
/// What is said of Redis instances to whoever has never seen walkeep.
mod redis_words;
/// What is missing in the stream, or not known.
mod redis_holes;
/// Redis back out: what is written, seen by servers of every version.
mod redis_restore;
/// A client that works without a pause and keeps a record of its own.
mod redis_workload;
/// Clocks that are off, and what is said of them.
mod clocks;
/// Redis to random moments of a busy time, beside that record.
mod redis_moments;
mod redis_overlap;
/// A repository that is slower than the server.
mod redis_slow;
/// Times at which nobody received, or nobody read.
mod redis_pauses;
/// PostgreSQL and Redis to one moment.
mod joint;
