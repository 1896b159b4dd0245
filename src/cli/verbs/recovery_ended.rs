//! `walkeep recovery-ended`: the `recovery_end_command` of restored servers.

use std::path::PathBuf;

use clap::Args;

use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::postgres::restore::recovery_end::{RecoveryEnd, remove_recovery_settings};

/// Remove from a restored server's settings what only its recovery needed. The server runs this itself
#[derive(Args, Debug)]
#[command(after_help = help::RECOVERY_ENDED_HELP)]
pub(in crate::cli) struct RecoveryEndedArgs {
    /// The server's data directory
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) pgdata: PathBuf,
}

pub(in crate::cli) fn run(args: &RecoveryEndedArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    match remove_recovery_settings(&args.pgdata)? {
        RecoveryEnd::Removed(names) if names.is_empty() => {
            around.output.print_line("no settings of a recovery are left")?;
        }
        RecoveryEnd::Removed(names) => {
            around.output.print_line(format!("removed from postgresql.auto.conf: {}", names.join(", ")))?;
        }
        RecoveryEnd::InRecovery(signal) => {
            let message =
                format!("recovery has not ended: {} has {signal}; nothing was removed", args.pgdata.display());
            return Err(CliError { code: CliExitCode::Failed, message }.into());
        }
    }
    Ok(CliExitCode::Done)
}
