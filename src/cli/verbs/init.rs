//! `walkeep init`: a repository, its key and the configuration for one cluster.
//!
//! The server is looked at before anything is written. What is written goes in this order: key file, repository with
//! its keys, configuration. An init that fails half-way can simply be run again: nothing was sealed yet, the key file
//! it made is taken away again, and the configuration, which everything else starts from, comes last.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use crate::base::durable;
use crate::cli::args::help;
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::cli::show::output::TextTone;
use crate::cli::show::shell;
use crate::config::{self, Config, NewConfig};
use crate::postgres::archive::layout::ClusterName;
use crate::postgres::check::server::{InspectedServer, ServerAdvice};
use crate::vault::Vault;
use crate::vault::seal::keys::KeyEncryptionKey;

/// The key's file beside the configuration.
const KEY_FILE_NAME: &str = "walkeep.key";
/// Configuration and key are read by their owner alone: the one may hold a password, and whoever has the other can
/// read everything.
const OWNER_ONLY_FILE_MODE: u32 = 0o600;
const OWNER_ONLY_FOLDER_MODE: u32 = 0o700;

/// Create a repository, its key and the configuration for a cluster
#[derive(Args, Debug)]
#[command(after_help = help::INIT_HELP)]
pub(in crate::cli) struct InitArgs {
    /// What the cluster is to be called
    #[arg(long, value_name = "NAME")]
    pub(in crate::cli) cluster: String,
    /// How to reach it: a libpq connection string or URI; without, archive_command alone feeds it
    #[arg(long, value_name = "CONNINFO")]
    pub(in crate::cli) connection: Option<String>,
    /// Where to store: file:///folder, s3://bucket/folder, gs://bucket/folder or az://container/folder
    #[arg(long, value_name = "URL")]
    pub(in crate::cli) repository: String,
    /// Where the index, the spool and the control socket go [default: /var/lib/walkeep]
    #[arg(long, value_name = "DIR")]
    pub(in crate::cli) state_dir: Option<PathBuf>,
    /// Where the new key goes [default: walkeep.key beside the configuration]
    #[arg(long, value_name = "FILE", conflicts_with = "no_encryption")]
    pub(in crate::cli) key_file: Option<PathBuf>,
    /// Store without encryption
    #[arg(long)]
    pub(in crate::cli) no_encryption: bool,
}

pub(in crate::cli) async fn run(args: InitArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let path = config::new_config_path(around.named_config.as_deref(), &around.environment);
    let path = std::path::absolute(&path).context("cannot tell where the configuration goes")?;
    let folder = path.parent().unwrap_or(Path::new("/")).to_owned();
    refuse_to_overwrite(&path, "name another place with --config, or add a section to it by hand")?;
    let key = InitKey::choose(&args, &folder)?;
    let text = render_config(&args, key.path())?;
    let new = Config::parse(&path, &text).context("what init would write is no configuration; this is a bug")?;
    let cluster = new.cluster(None)?;
    let server = match cluster.conninfo(&around.environment)? {
        Some(info) => Some(InspectedServer::inspect(&info).await?.0),
        None => None,
    };
    for folder in [&folder, &new.state_dir] {
        durable::create_dir_all(folder, OWNER_ONLY_FOLDER_MODE)
            .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    }
    key.write()?;
    let made = Vault::create(open::archive_settings(&new, around)?).await;
    if let Err(error) = made {
        key.remove();
        return Err(anyhow::Error::from(error).context("cannot make the repository"));
    }
    durable::write_new(&path, text.as_bytes(), OWNER_ONLY_FILE_MODE)
        .with_context(|| format!("cannot write the configuration {}", path.display()))?;
    print_report(&args, &new, &key, server.as_ref(), around)?;
    Ok(CliExitCode::Done)
}

fn refuse_to_overwrite(path: &Path, instead: &str) -> Result<(), CliError> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(CliError::usage(format!("{} exists already and is not overwritten; {instead}", path.display()))),
        Err(_) => Ok(()),
    }
}

fn render_config(args: &InitArgs, key_file: Option<&Path>) -> anyhow::Result<String> {
    let repository = config::parse_repository_url(&args.repository)
        .map_err(|why| CliError::usage(format!("--repository: {why}")))?;
    config::parse_name::<ClusterName>(&args.cluster).map_err(|why| CliError::usage(format!("--cluster: {why}")))?;
    let state_dir = args.state_dir.clone().unwrap_or_else(|| PathBuf::from(config::DEFAULT_STATE_DIR));
    let state_dir = std::path::absolute(&state_dir).context("cannot tell where the state directory goes")?;
    Ok(config::render_config(&NewConfig {
        cluster: &args.cluster,
        connection: args.connection.as_deref(),
        repository: &repository,
        state_dir: &state_dir,
        key_file,
    }))
}

/// What is to become of the key.
#[derive(Debug)]
enum InitKey {
    /// There is to be none.
    None,
    /// The user named one that exists.
    Existing(PathBuf),
    New(PathBuf),
}

impl InitKey {
    fn choose(args: &InitArgs, folder: &Path) -> anyhow::Result<InitKey> {
        if args.no_encryption {
            return Ok(InitKey::None);
        }
        let Some(named) = &args.key_file else {
            let path = folder.join(KEY_FILE_NAME);
            refuse_to_overwrite(&path, "to use that key, name it with --key-file")?;
            return Ok(InitKey::New(path));
        };
        let path = std::path::absolute(named).context("cannot tell where the key file is")?;
        Ok(if path.exists() { InitKey::Existing(path) } else { InitKey::New(path) })
    }

    fn path(&self) -> Option<&Path> {
        match self {
            InitKey::None => None,
            InitKey::Existing(path) | InitKey::New(path) => Some(path),
        }
    }

    fn write(&self) -> anyhow::Result<()> {
        let InitKey::New(path) = self else { return Ok(()) };
        let key = KeyEncryptionKey::generate().context("cannot make a key")?;
        let line = zeroize::Zeroizing::new(format!("{}\n", *key.to_text()));
        durable::write_new(path, line.as_bytes(), OWNER_ONLY_FILE_MODE)
            .with_context(|| format!("cannot write the key file {}", path.display()))
    }

    /// Nothing was sealed with it yet.
    fn remove(&self) {
        if let InitKey::New(path) = self
            && let Err(error) = fs::remove_file(path)
        {
            tracing::warn!(%error, path = %path.display(), "the unused key file stays behind");
        }
    }
}

fn print_report(
    args: &InitArgs,
    new: &Config,
    key: &InitKey,
    server: Option<&InspectedServer>,
    around: &CliContext,
) -> anyhow::Result<()> {
    let out = &around.output;
    let call = shell::postgres_command_prefix(&new.path)?;
    let push = format!("{call} archive-push %p");
    let done = |what: &str, text: String| out.print_line(format!("  {what:<14} {text}"));
    out.print_line(out.style(TextTone::Strong, format!("{} is set up", args.cluster)))?;
    if let Some(server) = server {
        let (release, peer) = (server.release(), &server.peer);
        done("server", format!("PostgreSQL {release} at {peer}, system {}", server.identity.system_id))?;
    }
    for repository in &new.repositories {
        done("repository", repository.url.to_string())?;
    }
    match key {
        InitKey::None => done("key", out.style(TextTone::Warning, "none: whoever reaches the repository can read it"))?,
        InitKey::Existing(path) => done("key", format!("{}, which was there", path.display()))?,
        InitKey::New(path) => {
            done("key", format!("{}; keep a copy elsewhere: without it nothing can be restored", path.display()))?;
        }
    }
    done("configuration", new.path.display().to_string())?;
    let advice = server.map_or_else(|| advice_without_server(&push), |server| server.advice(&push));
    let (mut conf, sql): (Vec<ServerAdvice>, Vec<ServerAdvice>) =
        advice.into_iter().partition(|advice| !advice.line.ends_with(';'));
    conf.sort_by_key(|advice| !advice.needed);
    for (heading, lines) in [("Set in postgresql.conf:", conf), ("Run in SQL, as a superuser:", sql)] {
        if lines.is_empty() {
            continue;
        }
        out.print_line("")?;
        out.print_line(heading)?;
        for advice in lines {
            out.print_line(format!("  {}", out.style(TextTone::Strong, &advice.line)))?;
            let word = if advice.needed { "needed" } else { "advised" };
            out.print_line(out.style(TextTone::Quiet, format!("    # {word}: {}", advice.why)))?;
        }
    }
    print_next_steps(args, new, around)
}

/// What a server that cannot be asked needs.
fn advice_without_server(push: &str) -> Vec<ServerAdvice> {
    let line = |line: String, why| ServerAdvice { needed: true, line, why };
    vec![
        line("wal_level = replica".to_owned(), "or logical; needs a restart"),
        line("archive_mode = on".to_owned(), "needs a restart"),
        line(format!("archive_command = '{}'", push.replace('\'', "''")), "hands each segment over; needs a reload"),
    ]
}

fn print_next_steps(args: &InitArgs, new: &Config, around: &CliContext) -> anyhow::Result<()> {
    let out = &around.output;
    let found =
        config::locate_config(None, &around.environment).map(|path| std::path::absolute(path).unwrap_or_default());
    let option = match found {
        Ok(path) if path == new.path => String::new(),
        _ => format!("--config {} ", new.path.display()),
    };
    out.print_line("")?;
    out.print_line("Then:")?;
    let step = |command: &str, why: &str| {
        out.print_line(format!(
            "  {}  {}",
            format_args!("walkeep {option}{command:<16}"),
            out.style(TextTone::Quiet, format!("# {why}"))
        ))
    };
    if args.connection.is_some() {
        step("receive", "streams WAL; leave it running")?;
        step("check", "proves that archiving works")?;
        step("backup postgres", "the first base backup")?;
    } else {
        step("list", "shows what has arrived")?;
    }
    if rustix::process::geteuid().is_root() {
        out.print_line("")?;
        let note = "These files belong to root. Give them to the user that PostgreSQL runs as, who must be able to read \
                    the key.";
        out.print_line(out.style(TextTone::Warning, note))?;
    }
    Ok(())
}
