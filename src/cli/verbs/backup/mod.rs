//! `walkeep backup`: takes a backup and prints its label.
//!
//! Only the label goes to standard output, so that a script can have it. Progress and the summary go to standard error.

pub(in crate::cli) mod postgres;
pub(in crate::cli) mod redis;
pub(in crate::cli) mod all;
pub(in crate::cli) mod single;

use clap::{Args, Subcommand};

use postgres::BackupPostgresArgs;
use redis::BackupRedisArgs;
use single::{DeleteBackupArgs, SingleBackupArgs};

use crate::cli::args::help;

/// Take a backup now and print its label
#[derive(Args, Debug)]
#[command(after_help = help::BACKUP_HELP)]
pub(in crate::cli) struct BackupArgs {
    #[command(subcommand)]
    pub(in crate::cli) of: BackupCommand,
}

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum BackupCommand {
    Postgres(BackupPostgresArgs),
    Redis(BackupRedisArgs),
    /// Of everything that is configured, one after the other
    #[command(after_help = help::BACKUP_HELP)]
    All,
    /// Keep a PostgreSQL backup, and every moment since, until unkeep
    Keep(SingleBackupArgs),
    /// Leave a backup to the retention again
    Unkeep(SingleBackupArgs),
    /// Remove a PostgreSQL backup now; later cleanups remove its data
    Delete(DeleteBackupArgs),
}
