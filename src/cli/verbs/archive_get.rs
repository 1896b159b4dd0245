//! `walkeep archive-get`: one file for PostgreSQL's `restore_command`, with exit codes that never end a recovery by
//! mistake.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;

use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::CliError;
use crate::cli::open;
use crate::config::{ClusterConfig, Config};
use crate::postgres::archive::spool::Spool;
use crate::postgres::archive_get::prefetch::{self, Prefetch};
use crate::postgres::archive_get::{self, ArchiveGetOutcome, ArchiveGetRequest};
use crate::postgres::format::segment::SegmentName;

/// Fetch one archived file: for restore_command
#[derive(Args, Debug)]
#[command(after_help = help::ARCHIVE_GET_HELP)]
pub(in crate::cli) struct ArchiveGetArgs {
    /// The file's name, as PostgreSQL gives it in %f
    #[arg(value_name = "FILE")]
    pub(in crate::cli) file: String,
    /// Where to put it, as PostgreSQL gives it in %p
    #[arg(value_name = "DEST")]
    pub(in crate::cli) destination: PathBuf,
    /// The cluster [default: the only one configured]
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) cluster: Option<String>,
    /// For a standby, which asks again: report trouble as a missing file instead of stopping the server
    #[arg(long)]
    pub(in crate::cli) standby: bool,
    /// The server has a recovery target: give it also the WAL just before a gap, where PostgreSQL stops with an error
    /// unless it has reached the target
    #[arg(long, hide = true, conflicts_with = "standby")]
    pub(in crate::cli) has_target: bool,
    /// Fetch what follows segment FILE into the folder DEST; archive-get starts this itself
    #[arg(long, hide = true)]
    pub(in crate::cli) fetch_ahead: bool,
}

/// The exit code itself: it is PostgreSQL's to read, not a person's.
pub(in crate::cli) async fn run(args: ArchiveGetArgs, around: &CliContext) -> anyhow::Result<u8> {
    let config = around.read_config()?;
    let cluster = config.cluster(args.cluster.as_deref())?;
    if args.fetch_ahead {
        let archive = Arc::new(open::open_archive(&config, cluster, around).await?);
        let after = SegmentName::parse(&args.file);
        let after = after.ok_or_else(|| CliError::usage(format!("{:?} is no segment to fetch ahead of", args.file)))?;
        prefetch::fill_directory(&archive, &args.destination, after).await?;
        return Ok(0);
    }
    let dest = std::path::absolute(&args.destination).context("cannot tell where the file goes")?;
    let ahead = start_prefetch(&config, cluster, &dest)?;
    let request =
        ArchiveGetRequest { name: args.file.clone(), dest, standby: args.standby, has_target: args.has_target };
    let got = fetch(&config, cluster, (&request, ahead.as_ref()), around).await;
    match got.with_context(|| format!("cannot fetch {}", args.file))? {
        ArchiveGetOutcome::Placed(source) => {
            tracing::info!(file = args.file, ?source, "fetched");
            Ok(0)
        }
        ArchiveGetOutcome::Absent => {
            tracing::info!(file = args.file, "not archived, nor anything after it");
            Ok(archive_get::EXIT_ABSENT)
        }
    }
}

/// The nearest place first: what is ready, then this machine's repositories, then all. So a repository elsewhere that
/// does not answer delays nothing that is here.
async fn fetch(
    config: &Config,
    cluster: &ClusterConfig,
    (request, ahead): (&ArchiveGetRequest, Option<&Prefetch>),
    around: &CliContext,
) -> anyhow::Result<ArchiveGetOutcome> {
    if let Some(placed) = archive_get::place_prefetched(request, ahead)? {
        return Ok(placed);
    }
    if let Some(local) = open::open_local_archive(config, cluster, around).await
        && let Some(placed) = archive_get::place_archived(&Arc::new(local), request, ahead).await?
    {
        return Ok(placed);
    }
    let archive = Arc::new(open::open_archive(config, cluster, around).await?);
    let spool = Spool::existing(&config.state_dir, &archive);
    Ok(archive_get::archive_get(&archive, request, ahead, spool.as_ref()).await?)
}

/// Fetching ahead, by a process of its own that outlives this one.
fn start_prefetch(config: &Config, cluster: &ClusterConfig, dest: &Path) -> anyhow::Result<Option<Prefetch>> {
    let program = std::env::current_exe().context("cannot tell where the program itself is")?;
    let (path, name) = (config.path.clone(), cluster.name.clone());
    let start = move |dir: &Path, after: SegmentName| -> io::Result<()> {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(&program);
        command.arg("--config").arg(&path).args(["archive-get", "--cluster", name.as_str(), "--fetch-ahead"]);
        command.arg(after.to_string()).arg(dir);
        // Whoever waits for our output or signals our group must not wait for it or hit it.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        command.spawn().map(drop)
    };
    Ok(Prefetch::for_destination(dest, &config.state_dir, Box::new(start)))
}
