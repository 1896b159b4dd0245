//! `walkeep plan`: resolves a target and proves whether it can be reached. Changes nothing.

pub(in crate::cli) mod postgres;
pub(in crate::cli) mod redis;
pub(in crate::cli) mod all;

use clap::{Args, Subcommand};

use all::PlanAllArgs;
use postgres::PlanPostgresArgs;
use redis::PlanRedisArgs;

use crate::cli::args::help;

/// Resolve a target and prove whether it can be reached; touches nothing
#[derive(Args, Debug)]
#[command(after_help = help::PLAN_HELP)]
pub(in crate::cli) struct PlanArgs {
    #[command(subcommand)]
    pub(in crate::cli) of: PlanCommand,
}

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum PlanCommand {
    Postgres(PlanPostgresArgs),
    Redis(PlanRedisArgs),
    All(PlanAllArgs),
}
