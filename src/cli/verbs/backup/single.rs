//! `walkeep backup keep`, `unkeep` and `delete`: one PostgreSQL backup by its label.

use std::sync::Arc;

use anyhow::Context;
use clap::Args;

use crate::cli::context::CliContext;
use crate::cli::exit::CliExitCode;
use crate::cli::open;
use crate::postgres::archive::{Archive, reindex};
use crate::postgres::retention::single;

/// A backup, by its label.
#[derive(Args, Debug)]
pub(in crate::cli) struct SingleBackupArgs {
    /// The backup's label, as walkeep list shows it
    #[arg(value_name = "LABEL")]
    label: String,
    /// The cluster [default: the only one configured]
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
}

/// A backup that is to be removed.
#[derive(Args, Debug)]
pub(in crate::cli) struct DeleteBackupArgs {
    #[command(flatten)]
    backup: SingleBackupArgs,
    /// Remove it even if it is the only one that can be restored
    #[arg(long)]
    force: bool,
}

pub(in crate::cli) async fn keep(args: SingleBackupArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let archive = open_archive(&args, around).await?;
    single::keep_backup(&archive, &args.label).await.with_context(|| format!("cannot keep {}", args.label))?;
    around.output.print_line(format!("{} stays until: walkeep backup unkeep {}", args.label, args.label))?;
    Ok(CliExitCode::Done)
}

pub(in crate::cli) async fn unkeep(args: SingleBackupArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let archive = open_archive(&args, around).await?;
    single::unkeep_backup(&archive, &args.label).await.with_context(|| format!("cannot unkeep {}", args.label))?;
    around.output.print_line(format!("the retention decides about {} again", args.label))?;
    Ok(CliExitCode::Done)
}

pub(in crate::cli) async fn delete(args: DeleteBackupArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let DeleteBackupArgs { backup, force } = args;
    let archive = open_archive(&backup, around).await?;
    let config = around.read_config()?;
    let (index, _) = reindex::open_index(&archive, &open::index_dir(&config)).await.context("cannot open the index")?;
    let deleted = single::delete_backup(&archive, &index, &backup.label, force).await;
    deleted.with_context(|| format!("cannot remove {}", backup.label))?;
    around
        .output
        .print_line(format!("{} is removed; walkeep cleanup frees its space after the grace", backup.label))?;
    Ok(CliExitCode::Done)
}

async fn open_archive(args: &SingleBackupArgs, around: &CliContext) -> anyhow::Result<Arc<Archive>> {
    let config = around.read_config()?;
    let cluster = config.cluster(args.cluster.as_deref())?;
    Ok(Arc::new(open::open_archive(&config, cluster, around).await?))
}
