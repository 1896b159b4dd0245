//! `walkeep restore`: plans, then restores.

pub(in crate::cli) mod postgres;
pub(in crate::cli) mod selective;
pub(in crate::cli) mod redis;
pub(in crate::cli) mod all;
mod server;

use clap::{Args, Subcommand};

use all::RestoreAllArgs;
use postgres::RestorePostgresArgs;
use redis::RestoreRedisArgs;

use crate::cli::args::help;

/// Plan, then restore
#[derive(Args, Debug)]
#[command(after_help = help::RESTORE_HELP)]
pub(in crate::cli) struct RestoreArgs {
    #[command(subcommand)]
    pub(in crate::cli) of: RestoreCommand,
}

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum RestoreCommand {
    Postgres(Box<RestorePostgresArgs>),
    Redis(RestoreRedisArgs),
    All(Box<RestoreAllArgs>),
}
