//! `walkeep fork list|resolve`: servers whose WAL differs from the archive, and what to do with them.

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};

use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::cli::show::fork::{ClusterForksJson, ForkListJson, print_forks, print_resolved};
use crate::postgres::archive::fork::{Fork, ForkResolution, KeptSide, RecordedFork};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::timeline::TimelineId;

/// Servers whose WAL differs from the archive: list them, and decide
#[derive(Args, Debug)]
#[command(after_help = help::FORK_HELP)]
pub(in crate::cli) struct ForkArgs {
    #[command(subcommand)]
    pub(in crate::cli) what: ForkCommand,
}

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum ForkCommand {
    /// Show all recorded forks
    List(ForkListArgs),
    /// Decide about a fork, which ends its alarm
    Resolve(ForkResolveArgs),
}

#[derive(Args, Debug)]
pub(in crate::cli) struct ForkListArgs {
    /// The cluster [default: all that are configured]
    #[arg(value_name = "CLUSTER")]
    pub(in crate::cli) cluster: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

#[derive(Args, Debug)]
pub(in crate::cli) struct ForkResolveArgs {
    /// The cluster
    #[arg(value_name = "CLUSTER")]
    pub(in crate::cli) cluster: String,
    /// The fork's timeline
    #[arg(long, value_name = "TIMELINE")]
    pub(in crate::cli) timeline: u32,
    /// The fork's position
    #[arg(long, value_name = "LSN")]
    pub(in crate::cli) at: String,
    /// Whose WAL this archive keeps
    #[arg(long, value_name = "SIDE")]
    pub(in crate::cli) keep: KeepArg,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(in crate::cli) enum KeepArg {
    /// The archive's: the server's WAL is refused on this timeline
    Archive,
    /// The server's: explains how, because archived WAL is never overwritten
    Server,
}

pub(in crate::cli) async fn run(what: ForkCommand, around: &CliContext) -> anyhow::Result<CliExitCode> {
    match what {
        ForkCommand::List(args) => list(&args, around).await,
        ForkCommand::Resolve(args) => resolve(&args, around).await,
    }
}

async fn list(args: &ForkListArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let clusters = match args.cluster.as_deref() {
        Some(name) => vec![config.cluster(Some(name))?],
        None => config.clusters.iter().collect(),
    };
    let mut all = Vec::new();
    for cluster in clusters {
        let archive = open::open_archive(&config, cluster, around).await?;
        let forks = archive.forks().await.with_context(|| format!("cannot list the forks of {}", cluster.name))?;
        all.push(ClusterForksJson { cluster: cluster.name.to_string(), forks });
    }
    if args.json {
        around.output.print_json(&ForkListJson { clusters: &all })?;
    } else {
        print_forks(&all, &around.output)?;
    }
    Ok(CliExitCode::Done)
}

async fn resolve(args: &ForkResolveArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let timeline = TimelineId::new(args.timeline).ok_or_else(|| CliError::usage("--timeline 0 does not exist"))?;
    let at: Lsn = args.at.parse().map_err(|why| CliError::usage(format!("--at: {why}")))?;
    let config = around.read_config()?;
    let cluster = config.cluster(Some(&args.cluster))?;
    let archive = open::open_archive(&config, cluster, around).await?;
    let name = cluster.name.as_str();
    let forks = archive.forks().await.with_context(|| format!("cannot list the forks of {name}"))?;
    let Some(RecordedFork { fork, resolution }) =
        forks.into_iter().find(|known| known.fork.timeline == timeline && known.fork.at == at)
    else {
        let message =
            format!("{name} has no recorded fork on timeline {timeline} at {at}; see walkeep fork list {name}");
        return Err(CliError { code: CliExitCode::NotFound, message }.into());
    };
    if args.keep == KeepArg::Server {
        return Err(CliError::usage(explain_keep_server(name, &fork)).into());
    }
    let resolution = match resolution {
        Some(earlier) => earlier,
        None => {
            let resolution = ForkResolution { timeline, at, keep: KeptSide::Archive, decided_at: around.clock.now() };
            archive
                .resolve_fork(&resolution)
                .await
                .with_context(|| format!("cannot record the decision for {name}"))?;
            resolution
        }
    };
    print_resolved(name, &fork, &resolution, &around.output)?;
    Ok(CliExitCode::Done)
}

/// The ways out for a server that is to stay: the archive's objects are never overwritten.
fn explain_keep_server(name: &str, fork: &Fork) -> String {
    let (timeline, at) = (fork.timeline, fork.at);
    format!(
        "walkeep never overwrites archived WAL, so it cannot keep the server's WAL of timeline {timeline} under the \
            name {name}. Archive the server under another name: add a section [postgres.NEW-NAME] with its \
            connection, start walkeep receive NEW-NAME, and take a backup with walkeep backup postgres NEW-NAME. If \
            the server has written nothing since it was set back, you can set it back again, create standby.signal \
            before its first start and run SELECT pg_promote(): it then begins a new timeline, which {name} accepts. \
            After either, run walkeep fork resolve {name} --timeline {timeline} --at {at} --keep archive"
    )
}
