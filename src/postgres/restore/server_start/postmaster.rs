//! The server's main process, as a child of this one: its number is known before it writes a file, and so is its end,
//! whatever ended it and in whatever language it logs.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::{Read, Seek};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};

use super::error::{ServerStartError, io_error};
use super::programs::ServerUser;

/// Everything that `postgres` is called with.
#[derive(Clone, Debug)]
pub(super) struct ServerCommand {
    pub(super) program: PathBuf,
    pub(super) user: ServerUser,
    pub(super) arguments: Vec<OsString>,
    /// More arguments as the user wrote them, which the shell splits, as for `pg_ctl -o`. They win.
    pub(super) options: Vec<String>,
}

impl ServerCommand {
    fn command(&self, more: &[&str]) -> Command {
        if self.options.is_empty() {
            let mut command = self.user.command(&self.program);
            command.args(&self.arguments).args(more);
            return command;
        }
        let mut command = self.user.command(Path::new("/bin/sh"));
        // The shell replaces itself, so that the process is the server.
        let script = format!("exec \"$0\" \"$@\" {} {}", self.options.join(" "), more.join(" "));
        command.arg("-c").arg(script).arg(&self.program).args(&self.arguments);
        command
    }

    /// The value that a setting would have in the server (`postgres -C`); `None` if this version has no such setting.
    pub(super) fn setting(&self, name: &str) -> Result<String, ServerStartError> {
        let mut command = self.command(&["-C", name]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let output = command.output().map_err(io_error("run", &self.program))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned());
        }
        let answer = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = answer.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Err(ServerStartError::Configuration { answer: lines.join("\n  ") })
    }

    /// Starts the server. What it prints is appended to `log`.
    pub(super) fn start(&self, log: &Path) -> Result<Postmaster, ServerStartError> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(log).map_err(io_error("open", log))?;
        self.user.give(log)?;
        let mut command = self.command(&[]);
        command.stdout(file.try_clone().map_err(io_error("open", log))?).stderr(file);
        // A signal to our group, such as Ctrl-C, is not meant for the server.
        command.process_group(0);
        let mut child = command.spawn().map_err(io_error("run", &self.program))?;
        let (pid, ended) = (child.id(), Arc::new(OnceLock::new()));
        let told = Arc::clone(&ended);
        let wait = move || {
            if let Ok(status) = child.wait() {
                let _only_once = told.set(status);
            }
        };
        std::thread::Builder::new().name("postmaster".to_owned()).spawn(wait).map_err(io_error("watch", log))?;
        Ok(Postmaster { pid, ended })
    }
}

/// A server that was started.
#[derive(Debug)]
pub(super) struct Postmaster {
    pub(super) pid: u32,
    ended: Arc<OnceLock<ExitStatus>>,
}

impl Postmaster {
    /// How it ended, if it has.
    pub(super) fn ended(&self) -> Option<ExitStatus> {
        self.ended.get().copied()
    }

    /// The process and its children, as `/proc` shows them.
    pub(super) fn processes(&self) -> Vec<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.pid);
        let children = std::fs::read_to_string(path).unwrap_or_default();
        std::iter::once(self.pid).chain(children.split_whitespace().filter_map(|pid| pid.parse().ok())).collect()
    }
}

/// The end of a file from `from` on, not more than `limit` bytes of it.
pub(super) fn read_from(path: &Path, from: u64, limit: u64) -> std::io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(std::io::SeekFrom::Start(from.min(len)))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
