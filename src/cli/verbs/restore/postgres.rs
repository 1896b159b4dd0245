//! `walkeep restore postgres`: resolves the target, proves it, shows the plan and carries it out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use clap::Args;

use super::selective::{self, SelectiveRestoreArgs, SelectiveRestoreCommand};
use super::server::{configured_server, start_server};
use crate::base::restore_estimate::{MeasuredRestore, RestoreEstimator};
use crate::cli::args::help;
use crate::cli::args::role::{RequestedRole, StandbyArgs, SuccessorArgs};
use crate::cli::args::target::{PostgresServerArgs, PostgresTargetArgs, read_postgres_target, target_action};
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::show::plan::postgres::print_server_plan;
use crate::cli::show::progress::ProgressDisplay;
use crate::cli::show::restore::postgres::{
    PostgresRestoreJson, print_next_command, print_placed, print_reached, print_role,
};
use crate::cli::show::shell;
use crate::cli::verbs::plan::postgres::{lost_wal_warning, make_plan};
use crate::config::Config;
use crate::postgres::archive::Archive;
use crate::postgres::restore::destination::Destination;
use crate::postgres::restore::plan::{ProvedRestore, RestorePlanDocument};
use crate::postgres::restore::recovery_settings::{
    recovery_end_command_line, restore_command_line, standby_restore_command_line,
};
use crate::postgres::restore::server_configuration::ConfigurationSearch;
use crate::postgres::restore::server_role::ServerRole;
use crate::postgres::restore::target::RecoveryTargetAction;
use crate::postgres::restore::{self, RestoreOptions, RestoredCluster};

/// A PostgreSQL cluster
#[derive(Args, Debug)]
#[command(after_help = help::RESTORE_HELP)]
pub(in crate::cli) struct RestorePostgresArgs {
    /// The cluster [default: the only one configured]
    #[arg(value_name = "CLUSTER")]
    pub(in crate::cli) cluster: Option<String>,
    /// The empty or new folder to restore into; with --delta, an old data directory of the cluster
    #[arg(long, value_name = "DIR")]
    #[arg(required_unless_present_any = ["database", "table"], conflicts_with_all = ["database", "table"])]
    pub(in crate::cli) pgdata: Option<PathBuf>,
    /// Put the tablespace that was in OLD into NEW; once for each
    #[arg(long = "tablespace-mapping", value_name = "OLD=NEW")]
    pub(in crate::cli) tablespaces: Vec<String>,
    /// Restore over what is in --pgdata: what is right stays, by hash; all else is replaced or removed, also WAL that
    /// was not archived (plan --pgdata names it)
    #[arg(long, requires = "pgdata")]
    pub(in crate::cli) delta: bool,
    /// Put pg_wal into DIR, an empty or new folder, and make it a link
    #[arg(long, value_name = "DIR", requires = "pgdata")]
    pub(in crate::cli) waldir: Option<PathBuf>,
    /// The restored server's postgresql.conf, if it is not in --pgdata [default: the one of the last server in --pgdata,
    /// or the one in /etc/postgresql/MAJOR that names --pgdata, or that of the backup]
    #[arg(long, value_name = "FILE", requires = "pgdata")]
    pub(in crate::cli) config_file: Option<PathBuf>,
    /// With --delta: no server runs in --pgdata, although it has a postmaster.pid and walkeep cannot see whether that
    /// server runs in another container or on another machine
    #[arg(long, requires = "delta")]
    pub(in crate::cli) force: bool,
    /// Start the server, wait until the target is reached, and print what was reached
    #[arg(long)]
    pub(in crate::cli) start: bool,
    #[command(flatten)]
    pub(in crate::cli) server: PostgresServerArgs,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
    // The groups with headings go last: what follows a heading is shown under it.
    #[command(flatten)]
    pub(in crate::cli) single: SelectiveRestoreArgs,
    #[command(flatten)]
    pub(in crate::cli) target: PostgresTargetArgs,
    #[command(flatten)]
    pub(in crate::cli) successor: SuccessorArgs,
    #[command(flatten)]
    pub(in crate::cli) standby: StandbyArgs,
}

pub(in crate::cli) async fn run(args: RestorePostgresArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let cluster = config.cluster(args.cluster.as_deref())?;
    let target = read_postgres_target(&args.target, around)?;
    let role = read_role(&args)?;
    let Some(pgdata) = args.pgdata.clone() else {
        let command =
            SelectiveRestoreCommand { part: &args.single, target: &target, server: &args.server, json: args.json };
        return Box::pin(selective::run(&command, &config, cluster, around)).await;
    };
    let action = target_action(args.target.target_action);
    let places = RestorePlaces { pgdata: &pgdata, waldir: args.waldir.as_deref(), tablespaces: &args.tablespaces };
    let options = RestoreOptions {
        configuration: configuration_search(args.config_file.as_deref(), around)?,
        force: args.force,
        ..build_options(&places, action, &role, &config, cluster.name.as_str())?
    };
    let (planner, plan) = make_plan(&config, cluster, &target.request, around).await?;
    if !args.json {
        let program = shell::shell_command_prefix(&config, around);
        print_server_plan(&plan, &target, &role, (&program, false), &around.output)?;
    }
    let document = RestorePlanDocument::from(&plan);
    let Some(proved) = plan.restore() else {
        if args.json {
            around.output.print_json(&PostgresRestoreJson { plan: document, restored: None, reached: None })?;
        }
        return Ok(CliExitCode::Unreachable);
    };
    let archive = planner.archive();
    if args.start {
        let server = configured_server(&options.destination.pgdata, &args.server, None, around);
        server.check(restore::backup_major_version(archive, &proved.backup).await?)?;
    }
    if args.delta {
        let lines = lost_wal_warning(&config, archive, &options.destination.pgdata, around).await?;
        print_warning(&lines, args.json, around)?;
    }
    let began = around.clock.elapsed();
    let restored = place_files(archive, proved, &options, args.delta, around).await?;
    let took = around.clock.elapsed().saturating_sub(began);
    if !args.json {
        print_placed(&restored, args.delta, took, &around.output)?;
        print_role(&restored, &around.output)?;
    }
    let reached = if args.start {
        let config_file = restored.config_file.clone();
        let server = configured_server(&options.destination.pgdata, &args.server, config_file, around);
        Some(start_server(&server, proved, action, args.json, around).await?)
    } else {
        None
    };
    if let Some(reached) = &reached {
        let replay_seconds = reached.seconds;
        let measured = MeasuredRestore { work: proved.work, file_seconds: took.as_secs_f64(), replay_seconds };
        RestoreEstimator::record(&config.state_dir, cluster.name.as_str(), measured);
    }
    if args.json {
        let reached = reached.as_ref();
        around.output.print_json(&PostgresRestoreJson { plan: document, restored: Some(&restored), reached })?;
        return Ok(CliExitCode::Done);
    }
    match &reached {
        Some(reached) => print_reached(reached, &around.output)?,
        None => print_next_command(&restored, action, &around.output)?,
    }
    Ok(CliExitCode::Done)
}

/// Prints lines, or logs them beside a JSON document.
fn print_warning(lines: &[String], json: bool, around: &CliContext) -> anyhow::Result<()> {
    if json {
        lines.iter().for_each(|line| tracing::warn!("{line}"));
        return Ok(());
    }
    lines.iter().try_for_each(|line| around.output.print_line(line))
}

/// The role that is asked for. One that does not fit the rest of the command line is refused.
fn read_role(args: &RestorePostgresArgs) -> Result<RequestedRole, CliError> {
    let role = RequestedRole::read(&args.successor, &args.standby, &args.target)?;
    if args.pgdata.is_none() && role != RequestedRole::default() {
        return Err(CliError::usage(
            "--standby, --takeover and --archive-mode are for a whole server: name its folder with --pgdata",
        ));
    }
    if args.standby.standby && args.start {
        return Err(CliError::usage(
            "--start waits for a target, and a standby has none; start the standby with pg_ctl or its service",
        ));
    }
    Ok(role)
}

/// Where the files of a restore go.
pub(in crate::cli) struct RestorePlaces<'p> {
    pub(in crate::cli) pgdata: &'p Path,
    pub(in crate::cli) waldir: Option<&'p Path>,
    /// `OLD=NEW`, once for each tablespace that is moved.
    pub(in crate::cli) tablespaces: &'p [String],
}

/// Where `postgresql.conf` is looked for: Debian's tools take another root from the environment, and so does this.
fn configuration_search(named: Option<&Path>, around: &CliContext) -> anyhow::Result<ConfigurationSearch> {
    let default = ConfigurationSearch::default();
    let root = around.environment.get("PG_CLUSTER_CONF_ROOT").filter(|root| !root.is_empty());
    Ok(ConfigurationSearch {
        named: named.map(std::path::absolute).transpose().context("cannot tell where the configuration file is")?,
        debian_root: root.map_or(default.debian_root, PathBuf::from),
    })
}

/// How a plan is carried out.
pub(in crate::cli) fn build_options(
    places: &RestorePlaces<'_>,
    action: RecoveryTargetAction,
    role: &RequestedRole,
    config: &Config,
    cluster: &str,
) -> anyhow::Result<RestoreOptions> {
    let pgdata = std::path::absolute(places.pgdata).context("cannot tell where the data directory goes")?;
    let waldir = places.waldir.map(std::path::absolute).transpose().context("cannot tell where pg_wal goes")?;
    let program = std::env::current_exe().context("cannot tell where the program itself is")?;
    let restore_command = match &role.role {
        ServerRole::Standby(_) => standby_restore_command_line(&program, &config.path, cluster),
        ServerRole::Copy | ServerRole::Takeover => restore_command_line(&program, Some(&config.path), cluster),
    };
    Ok(RestoreOptions {
        destination: Destination { pgdata, mapping: parse_tablespace_mappings(places.tablespaces)? },
        action,
        waldir,
        restore_command,
        end_command: recovery_end_command_line(&program),
        role: role.role.clone(),
        keep_archiving: role.keep_archiving,
        configuration: ConfigurationSearch::default(),
        force: false,
    })
}

/// `OLD=NEW`, once for each tablespace. A `\=` is an equals sign in a path, as in `pg_basebackup`.
fn parse_tablespace_mappings(tablespaces: &[String]) -> Result<Vec<(PathBuf, PathBuf)>, CliError> {
    let parse = |text: &String| {
        let hidden = text.replace("\\=", "\0");
        let (old, new) =
            hidden.split_once('=').filter(|(old, new)| !old.is_empty() && !new.is_empty() && !new.contains('='))?;
        Some((PathBuf::from(old.replace('\0', "=")), PathBuf::from(new.replace('\0', "="))))
    };
    let read = |text| {
        parse(text)
            .ok_or_else(|| CliError::usage(format!("--tablespace-mapping {text:?}: write OLD=NEW, two absolute paths")))
    };
    tablespaces.iter().map(read).collect()
}

pub(in crate::cli) async fn place_files(
    archive: &Arc<Archive>,
    proved: &ProvedRestore,
    wishes: &RestoreOptions,
    delta: bool,
    around: &CliContext,
) -> anyhow::Result<RestoredCluster> {
    let progress = ProgressDisplay::new("restore", 0, around.quiet);
    let told = |done, total| progress.set_done(done, total);
    let restored = if delta {
        restore::restore_delta(archive, proved, wishes, told).await
    } else {
        restore::restore(archive, proved, wishes, told).await
    };
    progress.finish();
    restored.with_context(|| format!("cannot restore into {}", wishes.destination.pgdata.display()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::parse_tablespace_mappings;

    #[test]
    fn mappings_are_two_paths() {
        let read = |text: &str| parse_tablespace_mappings(&[text.to_owned()]).map(|pairs| pairs[0].clone());
        let paths = |old: &str, new: &str| (PathBuf::from(old), PathBuf::from(new));
        assert_eq!(read("/a=/b").unwrap(), paths("/a", "/b"));
        assert_eq!(read("/a\\=x=/b").unwrap(), paths("/a=x", "/b"));
        for wrong in ["/a", "=/b", "/a=", "/a=/b=/c"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
