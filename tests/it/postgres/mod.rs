//! The PostgreSQL wing, in the order of the layers: what is read, how WAL is received, base backups, restores, and what
//! keeps them in order.

/// Parsers beside PostgreSQL's own programs.
mod format;
/// Records, endings and events beside `pg_waldump`'s.
mod wal;
/// The replication client: every command, every way to log in.
mod wire;
/// The index over a real server's WAL.
mod index;
/// What a server refuses, and in which language.
mod wire_refusals;
/// The receiver: complete, resumable, truthful.
mod receive;
/// A second repository: added while the receiver runs, filled, and restored from alone.
mod repositories;
/// The receiver's slot, and what is missing in the archive.
mod receive_slot;
/// Servers that say nothing, or something else than before.
mod receive_silence;
/// Two repositories of which one is unreachable.
mod followers;
/// Servers that were set back, cloned, or only restarted: what is refused, and what is not.
mod forks;
/// What the receiver acknowledged, after server and receiver crashed together.
mod receive_spool;
mod receive_storms;
/// The segment under way in the repository.
mod receive_pieces;
/// What is reported of each of two repositories.
mod two_repositories;
/// `archive_command`.
mod archive_push;
/// `restore_command`.
mod archive_get;
/// Faults between archive and recovery: stop or wait, never promote.
mod archive_get_faults;
/// Base backups, put back by other code than the restore's.
mod backup;
/// Base backups of servers that leave files out or have damaged pages.
mod backup_defects;
/// The main job from end to end, on every major.
pub(crate) mod end_to_end;
/// Restores through the library: targets of every kind, timelines, tablespaces, and what cannot be reached.
mod restore;
/// Restores to random moments.
mod restore_moments;
/// Targets beside PostgreSQL's own recovery.
mod restore_targets;
/// Failovers one after another, branches, and the way to a target over them.
mod restore_timelines;
/// Segments that no repository has whole: before a gap, and on a timeline that has just begun.
mod restore_beginnings;
/// Servers that `restore --start` starts: where they log, how they end, and which port they get.
mod restore_start;
/// Clusters whose configuration is outside the data directory, as source and as target.
mod restore_debian;
/// Restores over an old data directory.
mod restore_delta;
/// Copies, successors and standbys after their restore.
mod restore_roles;
/// What such a restore refuses before it touches anything: then the old server starts as before.
mod restore_delta_refusals;
/// Tablespaces that replay creates at the paths of the original.
mod restore_tablespaces;
/// One database or table back into a running server under another name.
mod restore_selective;
/// What users may define in their databases, against every command that speaks SQL.
mod hostile;
/// `walkeep log`: accidents of every kind on real servers, and the way back from each.
mod log;
/// `walkeep cleanup`: what is removed, and what stays restorable.
mod retention;
/// How protected a cluster is.
mod health;
