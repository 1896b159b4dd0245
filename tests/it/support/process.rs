//! Running programs as the user that the servers run as. PostgreSQL refuses to be root, so root's tests run everything
//! as `postgres`.

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};

#[derive(Debug)]
pub(crate) struct ServerUser {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// None when the tests' own user will do.
pub(crate) fn server_user() -> Option<&'static ServerUser> {
    static USER: OnceLock<Option<ServerUser>> = OnceLock::new();
    USER.get_or_init(|| {
        rustix::process::geteuid().is_root().then(|| {
            let users = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd");
            let line =
                users.lines().find(|line| line.starts_with("postgres:")).expect("user postgres: run tests/setup.sh");
            let field = |n| line.split(':').nth(n).and_then(|id: &str| id.parse().ok()).expect("uid and gid");
            ServerUser { uid: field(2), gid: field(3) }
        })
    })
    .as_ref()
}

/// What happens to a program when the thread that started it ends without having stopped it, as when the test run is
/// killed.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Orphan {
    Kill,
    /// An immediate shutdown of PostgreSQL, which takes its children along.
    Quit,
}

/// A command that runs as the servers' user, with none of the caller's PostgreSQL settings.
pub(crate) fn command(program: impl AsRef<OsStr>, orphan: Orphan) -> Command {
    let mut command = Command::new("setpriv");
    command.arg(match orphan {
        Orphan::Kill => "--pdeathsig=KILL",
        Orphan::Quit => "--pdeathsig=QUIT",
    });
    if let Some(user) = server_user() {
        command.arg(format!("--reuid={}", user.uid)).arg(format!("--regid={}", user.gid)).arg("--clear-groups");
        command.env("HOME", "/var/lib/postgresql");
    }
    command.arg("--").arg(program).stdin(Stdio::null()).current_dir("/");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("PG") || name.to_string_lossy().starts_with("WALKEEP_") {
            command.env_remove(name);
        }
    }
    command
}

/// The program under test.
pub(crate) fn walkeep() -> Command {
    command(env!("CARGO_BIN_EXE_walkeep"), Orphan::Kill)
}

#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) command: String,
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) elapsed: Duration,
}

impl Finished {
    /// Standard output of a command that had to succeed.
    pub(crate) fn expect_ok(self) -> String {
        self.expect_code(0).stdout
    }

    pub(crate) fn expect_code(self, code: i32) -> Self {
        assert!(
            self.code == Some(code),
            "{}\nended with {:?}, expected {code}\nstdout: {}\nstderr: {}",
            self.command,
            self.code,
            self.stdout,
            self.stderr
        );
        self
    }

    /// Standard output of a command that had to succeed, as JSON.
    pub(crate) fn json(self) -> serde_json::Value {
        let text = self.expect_ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("not JSON: {error}\n{text}"))
    }
}

/// Runs to the end and captures everything.
pub(crate) fn run(mut command: Command) -> Finished {
    let started = Instant::now();
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    Finished {
        command: format!("{command:?}"),
        code: output.status.code(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        elapsed: started.elapsed(),
    }
}

/// A program in the background, its output going to a file. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let file = File::options().create(true).append(true).open(log).expect("a log file");
        command.stdout(file.try_clone().expect("dup")).stderr(file);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Self { child, log: log.into() }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("pid")).expect("pid");
        rustix::process::kill_process(pid, signal).expect("kill");
    }

    /// The status, if it has ended.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait")
    }

    pub(crate) fn wait(&mut self, limit: Duration) -> ExitStatus {
        until(limit, || self.child.try_wait().expect("wait"))
            .unwrap_or_else(|| panic!("still running after {limit:?}\n{}", self.output()))
    }

    pub(crate) fn kill9(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    /// What SIGTERM makes of it.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        if self.ended().is_none() {
            self.signal(Signal::TERM);
        }
        self.wait(Duration::from_secs(60))
    }

    /// Everything printed so far, both streams.
    pub(crate) fn output(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.log) {
            file.read_to_string(&mut text).ok();
        }
        text
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().ok();
            self.child.wait().ok();
        }
        if thread::panicking() {
            eprintln!("---- {}\n{}", self.log.display(), tail(&self.output(), 30));
        }
    }
}

/// The pause between two questions that cost nothing, and the longest one.
const PAUSES: [Duration; 2] = [Duration::from_millis(10), Duration::from_millis(200)];

/// Asks again and again until there is an answer, or the limit is over. A question that starts a program is asked less
/// often: the pause is as long as the question took, so that the tests that wait leave the processors to those that
/// work.
pub(crate) fn until<T>(limit: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let started = Instant::now();
    loop {
        let asked = Instant::now();
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if started.elapsed() > limit {
            return None;
        }
        thread::sleep(asked.elapsed().clamp(PAUSES[0], PAUSES[1]));
    }
}

pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
