//! The Redis and Valkey wing: snapshots, the replication stream, restores, and what keeps them in order. A flow has the
//! name of its counterpart in `postgres/`.

/// Sentinels with passwords, and which server sends the snapshot.
mod sentinel;
/// The stream of a Redis server: complete, resumable, followed through failovers.
mod receive;
/// The receiver of an instance begins again.
mod receive_resume;
/// Full and failing disks under the receiver.
mod receive_full_disk;
/// Commands that only the spool has, beside another key and with a changed bit.
mod receive_spool;
/// A connection in pieces of a few bytes: transactions, and the end of a snapshot.
mod receive_fragments;
/// Bytes that change on their way from the server.
mod receive_damage;
/// A transaction longer than any stretch, and values that look like the stream.
mod receive_commands;
/// Two receivers on one server.
mod receive_overlap;
/// A repository gets by itself what it missed, and each is judged alone.
mod followers;
/// A repository that is unreachable, and a master that is another one now.
mod receive_unreachable;
/// Snapshots: taken, refused, imported.
mod backup;
/// Imported files that no server may load as they are.
mod backup_import;
/// A snapshot leaves the server's own persistence alone.
mod backup_persistence;
/// A repository that is slower than the server.
mod backup_slow;
/// What is written by a restore, seen by servers of every version.
mod restore;
/// A client that works without a pause and keeps a record of its own.
mod workload;
/// Restores to random moments of a busy time, beside that record.
mod restore_moments;
/// Times at which no receiver ran, or none could read.
mod restore_pauses;
/// `walkeep log redis`: accidents on real servers, and the way back from each.
mod log;
/// `walkeep cleanup` of instances.
mod retention;
/// What is missing in the stream, or not known.
mod verify;
/// How protected an instance is.
mod health;
/// What `check` proves, and what every wrong step is answered.
mod check;
