//! The options of `walkeep log` that both stores share.

use clap::Args;

#[derive(Args, Debug, Clone)]
pub(in crate::cli) struct LogTimeArgs {
    /// Only what happened then or later: a time as --target-time of restore takes it
    #[arg(long, value_name = "TIME")]
    pub(in crate::cli) since: Option<String>,
    /// Only what happened then or earlier
    #[arg(long, value_name = "TIME")]
    pub(in crate::cli) until: Option<String>,
}
