//! One installation of walkeep: configuration, state directory and repository in a scratch directory, and the program
//! run against them.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::process::{self, Finished, Running};
use super::{Cluster, Scratch};

#[derive(Debug)]
pub(crate) struct Site {
    scratch: Scratch,
}

impl Site {
    /// Nothing but empty directories.
    pub(crate) fn new() -> Self {
        Self { scratch: Scratch::new() }
    }

    /// `walkeep init` for this server, as cluster `main`, reached over its Unix socket.
    pub(crate) fn for_cluster(cluster: &Cluster) -> Self {
        let site = Self::new();
        site.init(&["--connection", &cluster.socket_conninfo()]).expect_ok();
        site
    }

    /// `walkeep init` for cluster `main` with more options; the configuration, repository and state go to this site's
    /// own places.
    pub(crate) fn init(&self, more: &[&str]) -> Finished {
        let mut command = process::walkeep();
        command.args(["init", "--cluster", "main", "--repository", &self.repository_url()]);
        command.arg("--state-dir").arg(self.state_dir()).arg("--config").arg(self.config()).args(more);
        process::run(command)
    }

    pub(crate) fn path(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.scratch.join("walkeep.toml")
    }

    pub(crate) fn state_dir(&self) -> PathBuf {
        self.scratch.join("state")
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.scratch.join("repository")
    }

    pub(crate) fn repository_url(&self) -> String {
        format!("file://{}", self.repository().display())
    }

    /// Makes another repository, and adds its section to the configuration. It gets the keys when it is opened.
    pub(crate) fn add_repository(&self, name: &str, url: &str) {
        let options = walkeep::vault::repository::RepositoryOptions::new();
        let create = walkeep::vault::repository::Repository::create(url, &options);
        super::redis::block_on(create).expect("a second repository");
        super::redis::give_all(Path::new(url.trim_start_matches("file://")));
        let text = std::fs::read_to_string(self.config()).expect("the configuration");
        let section = format!("[repository.{name}]\nurl = \"{url}\"\n\n[postgres.main]");
        self.scratch.file("walkeep.toml", &text.replace("[postgres.main]", &section));
    }

    /// The program with this site's configuration, ready for arguments.
    pub(crate) fn command(&self) -> Command {
        let mut command = process::walkeep();
        command.env("WALKEEP_CONFIG", self.config());
        command
    }

    pub(crate) fn walkeep(&self, arguments: &[&str]) -> Finished {
        let mut command = self.command();
        command.args(arguments);
        process::run(command)
    }

    /// In the background, such as `receive` or `serve`; output goes to `NAME.log` in the site.
    pub(crate) fn spawn(&self, name: &str, arguments: &[&str]) -> Running {
        let mut command = self.command();
        command.args(arguments);
        Running::start(command, &self.scratch.join(format!("{name}.log")))
    }

    /// For `archive_command`.
    pub(crate) fn archive_command(&self) -> String {
        format!("{} --config {} archive-push %p", env!("CARGO_BIN_EXE_walkeep"), self.config().display())
    }

    /// For `restore_command`.
    pub(crate) fn restore_command(&self) -> String {
        format!("{} --config {} archive-get %f \"%p\"", env!("CARGO_BIN_EXE_walkeep"), self.config().display())
    }
}
