//! PostgreSQL's programs of one major version, and the user that runs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::error::{ServerStartError, io_error};
use crate::base::disk::{self, FileOwner};

/// The directory with the programs of this major version: the one that was named, or where distributions put it, or
/// elsewhere.
pub(in super::super) fn find_programs(
    major: u32,
    bindir: Option<&Path>,
    search: &[PathBuf],
) -> Result<PathBuf, ServerStartError> {
    let packaged = [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")].map(PathBuf::from);
    let places: Vec<PathBuf> = match bindir {
        Some(bindir) => vec![bindir.to_owned()],
        None => packaged.into_iter().chain(search.iter().cloned()).collect(),
    };
    let fits =
        |place: &&PathBuf| place.join("pg_ctl").exists() && major_version_of(&place.join("postgres")) == Some(major);
    let looked = || places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ");
    places.iter().find(fits).cloned().ok_or_else(|| ServerStartError::NoPrograms { major, looked: looked() })
}

/// The major version of a `postgres` program, in its own words: `postgres (PostgreSQL) 15.12 (Debian 15.12-1)`.
pub(in super::super) fn major_version_of(postgres: &Path) -> Option<u32> {
    let output = Command::new(postgres).arg("--version").stdin(Stdio::null()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let version = text.split_once("(PostgreSQL)")?.1.trim_start();
    version.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// The user that runs the server of a data directory.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerUser {
    /// Set if this process is root: then the server runs as the owner of its directory.
    owner: Option<FileOwner>,
}

impl ServerUser {
    /// The user for the server of `pgdata`, which may not exist yet: then the owner of the directory above it will own
    /// it.
    pub(super) fn of(pgdata: &Path) -> Result<ServerUser, ServerStartError> {
        if !disk::runs_as_root() {
            return Ok(ServerUser { owner: None });
        }
        let existing = disk::nearest_existing(pgdata);
        let owner = FileOwner::of(existing).map_err(io_error("read", existing))?;
        if owner.is_root() {
            return Err(ServerStartError::Root { pgdata: pgdata.to_owned() });
        }
        Ok(ServerUser { owner: Some(owner) })
    }

    /// Gives a file or directory to the user.
    pub(super) fn give(self, path: &Path) -> Result<(), ServerStartError> {
        self.owner.map_or(Ok(()), |owner| owner.give(path)).map_err(io_error("give its owner to", path))
    }

    pub(super) const fn is_other(self) -> bool {
        self.owner.is_some()
    }

    /// A program that runs as the user, with all groups that the user has: Debian's `ssl-cert` alone may read the keys
    /// of certificates. The standard library can set one group only, so this is left to `setpriv` if it is there; that
    /// replaces itself with the program, and the process keeps its number.
    pub(super) fn command(self, program: &Path) -> Command {
        let Some(owner) = self.owner else { return quiet(Command::new(program)) };
        let setpriv = ["/usr/bin/setpriv", "/bin/setpriv"].map(Path::new).into_iter().find(|path| path.exists());
        match setpriv.filter(|_| has_name(owner.uid)) {
            Some(setpriv) => {
                let mut command = quiet(Command::new(setpriv));
                let (uid, gid) = (format!("--reuid={}", owner.uid), format!("--regid={}", owner.gid));
                command.args([uid, gid, "--init-groups".to_owned(), "--".to_owned()]).arg(program);
                command
            }
            None => {
                use std::os::unix::process::CommandExt;
                let mut command = quiet(Command::new(program));
                command.uid(owner.uid).gid(owner.gid);
                command
            }
        }
    }
}

fn quiet(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
    command
}

/// Whether the user database knows the number; without a name a user has no groups to look up.
fn has_name(uid: u32) -> bool {
    let mut id = quiet(Command::new("id"));
    id.args(["-nu", &uid.to_string()]).status().is_ok_and(|status| status.success())
}
