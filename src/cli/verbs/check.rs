//! `walkeep check`: does archiving work, end to end, now?
//!
//! Every part is tried and said, good or bad, so that one run shows all that is wrong. The proof is the last line:
//! the server is made to end its current WAL segment, and that very segment must arrive in the repository.

use clap::Args;

use crate::base::findings::CheckFindings;
use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{self, CliError, CliExitCode};
use crate::cli::open;
use crate::cli::show::check::{CONNECTION_SUBJECT, CheckedStore, print_findings, print_json};
use crate::cli::show::shell;
use crate::config::{ClusterConfig, Config, InstanceConfig};
use crate::postgres::archive::Archive;
use crate::postgres::archive::spool::Spool;
use crate::postgres::check::{self as postgres_check, CheckedServer};
use crate::redis;
use crate::redis::check::stream::{NewestArchived, StreamCheckFacts, judge_stream};
use crate::redis::wire::ServerInfo;
use crate::vault::{VaultError, probe};

/// Prove that archiving works, end to end, now
#[derive(Args, Debug)]
#[command(after_help = help::CHECK_HELP)]
pub(in crate::cli) struct CheckArgs {
    /// The cluster or Redis instance [default: all that are configured, one after the other]
    #[arg(value_name = "NAME")]
    pub(in crate::cli) cluster: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

pub(in crate::cli) async fn run(args: CheckArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let (clusters, instances) = config.find_all_named(args.cluster.as_deref())?;
    let several = clusters.len().saturating_add(instances.len()) > 1;
    let mut all: Vec<CheckedStore<'_>> = Vec::new();
    for cluster in clusters {
        let mut findings = check_cluster(&config, cluster, around).await;
        let name = cluster.name.as_str();
        warn_of_idle_settings(&config, &format!("[postgres.{name}]"), all.is_empty(), &mut findings);
        all.push(CheckedStore::new(name, false, findings));
        print_newest(&args, &all, around)?;
    }
    for instance in instances {
        let mut findings = check_instance(&config, instance, around).await;
        let name = instance.name.as_str();
        warn_of_idle_settings(&config, &format!("[redis.{name}]"), all.is_empty(), &mut findings);
        all.push(CheckedStore::new(name, true, findings));
        print_newest(&args, &all, around)?;
    }
    match all.as_slice() {
        [] => return Err(CliError::usage(format!("nothing is configured in {}", config.path.display())).into()),
        all if args.json => print_json(all, several, &around.output)?,
        _ => {}
    }
    let codes = all.iter().map(CheckedStore::exit_code);
    Ok(codes.max_by_key(|code| code.severity()).unwrap_or(CliExitCode::Done))
}

/// Adds the settings that this version ignores: those of this section, and with the first store those of no section.
fn warn_of_idle_settings(config: &Config, section: &str, first: bool, findings: &mut CheckFindings) {
    let of_all = |idle: &&String| first && !idle.contains("[redis.") && !idle.contains("[postgres.");
    for idle in config.idle.iter().filter(|idle| idle.ends_with(section) || of_all(idle)) {
        let text = if idle.starts_with("backup of ") {
            format!(
                "{idle} starts nothing in this version: run walkeep backup at those times; walkeep health judges by it"
            )
        } else {
            format!("{idle} is read and checked, but this version does nothing with it")
        };
        findings.add_warning("configuration", text);
    }
}

/// Prints the last of these below the others, as soon as it has been checked.
fn print_newest(args: &CheckArgs, all: &[CheckedStore<'_>], around: &CliContext) -> anyhow::Result<()> {
    let (false, Some(last)) = (args.json, all.last()) else { return Ok(()) };
    if all.len() > 1 {
        around.output.print_line("")?;
    }
    print_findings(last, &around.output)
}

async fn check_cluster(config: &Config, cluster: &ClusterConfig, around: &CliContext) -> CheckFindings {
    let mut findings = CheckFindings::default();
    let archive = match open::open_archive(config, cluster, around).await {
        Ok(archive) => Some(archive),
        Err(error) => {
            findings.add_error("repository", to_cli_error(&error));
            None
        }
    };
    if let Some(archive) = &archive {
        match archive.unresolved_forks().await {
            Ok(forks) => {
                forks.iter().for_each(|known| findings.add_bad("fork", known.describe(cluster.name.as_str())));
            }
            Err(error) => findings.add_error("fork", error),
        }
        probe::check_repositories(archive.vault(), |name| archive.layout().probe(name), &mut findings).await;
        if let Some(spool) = Spool::existing(&config.state_dir, archive) {
            let identity = archive.identity().await.ok().flatten();
            add_set_aside(spool.set_aside_report(identity.map(|identity| identity.segment_size)), &mut findings);
        }
    }
    if let Err(error) = check_postgres_server(config, cluster, archive.as_ref(), around, &mut findings).await {
        findings.add_error(CONNECTION_SUBJECT, to_cli_error(&error));
    }
    findings
}

/// Archiving works in spite of them: what they had is no longer on its way.
fn add_set_aside(files: Vec<String>, findings: &mut CheckFindings) {
    files.into_iter().for_each(|file| findings.add_warning("spool", file));
}

async fn check_postgres_server(
    config: &Config,
    cluster: &ClusterConfig,
    archive: Option<&Archive>,
    around: &CliContext,
    findings: &mut CheckFindings,
) -> anyhow::Result<()> {
    if let Some(conninfo) = cluster.conninfo(&around.environment)? {
        let push_command = format!("{} archive-push %p", shell::postgres_command_prefix(&config.path)?);
        let server = CheckedServer { conninfo: &conninfo, slot: cluster.slot.as_str(), push_command: &push_command };
        postgres_check::check_server(server, archive, &*around.clock, findings).await;
        return Ok(());
    }
    let come = match archive {
        Some(archive) => archive.identity().await.is_ok_and(|identity| identity.is_some()),
        None => false,
    };
    let text = if come {
        "none is configured: what the server sends can be seen with walkeep list, but not be asked for"
    } else {
        "none is configured, and no WAL has come yet: set archive_command in the server as walkeep init shows it"
    };
    findings.add_warning(CONNECTION_SUBJECT, text);
    Ok(())
}

async fn check_instance(config: &Config, of: &InstanceConfig, around: &CliContext) -> CheckFindings {
    let mut findings = CheckFindings::default();
    let opened = open::open_instance(config, of, around).await;
    match &opened {
        Ok(instance) => {
            probe::check_repositories(instance.vault(), |name| instance.layout().probe(name), &mut findings).await;
            add_set_aside(instance.spool().map(|spool| spool.set_aside_report()).unwrap_or_default(), &mut findings);
        }
        Err(error) => findings.add_error("repository", to_cli_error(error)),
    }
    let info = match check_redis_server(of, around, &mut findings).await {
        Ok(info) => Some(info),
        Err(error) => {
            findings.add_error("connection", to_cli_error(&error));
            None
        }
    };
    if let Ok(instance) = &opened
        && let Err(error) = check_stream(config, instance, info.as_ref(), &mut findings).await
    {
        findings.add_error("newest", error);
    }
    findings
}

async fn check_redis_server(
    of: &InstanceConfig,
    around: &CliContext,
    findings: &mut CheckFindings,
) -> anyhow::Result<ServerInfo> {
    let source = of.redis_source(&around.environment, &around.clock)?;
    Ok(redis::check::check_server(&source, findings).await?)
}

/// What is archived of the instance, and whether more is received. `info` is what the server reports, if it can be
/// asked.
async fn check_stream(
    config: &Config,
    instance: &redis::archive::Archive,
    info: Option<&ServerInfo>,
    findings: &mut CheckFindings,
) -> Result<(), VaultError> {
    let newest = redis::health::find_newest_moment(instance).await?;
    let unknown = newest.is_err();
    let newest =
        newest.map(|moment| NewestArchived { time: moment.time, replid: moment.replid, offset: moment.offset });
    let facts = StreamCheckFacts::gather(instance, newest, info).await?;
    if unknown && let Some(asked) = open::suggest_other_names(open::StoreKind::Instance, config, instance.vault()).await
    {
        findings.add_warning("newest", format!("nothing is archived under this name; {asked}"));
    }
    judge_stream(&facts, findings);
    Ok(())
}

/// The error in one line with its exit code, as a finding holds it.
fn to_cli_error(error: &anyhow::Error) -> CliError {
    CliError { code: exit::exit_code(error), message: exit::error_line(error) }
}
