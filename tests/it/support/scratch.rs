//! A scratch directory that the servers' user owns, removed at the end unless the test failed.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use super::process;

/// Short, because a Unix socket's path has at most 107 bytes.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: Option<tempfile::TempDir>,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("walkeep-").tempdir().expect("a scratch directory");
        give(dir.path());
        Self { dir: Some(dir) }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.as_ref().expect("held until drop").path()
    }

    pub(crate) fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }

    /// A new directory inside, with the modes PostgreSQL wants.
    pub(crate) fn directory(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).expect("create a directory");
        rustix::fs::chmod(&path, rustix::fs::Mode::RWXU).expect("chmod");
        give(&path);
        path
    }

    /// A file inside, readable by the servers' user alone.
    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, content).expect("write a file");
        rustix::fs::chmod(&path, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).expect("chmod");
        give(&path);
        path
    }
}

/// Gives a path to the user that the servers run as.
pub(crate) fn give(path: &Path) {
    if let Some(user) = process::server_user() {
        chown(path, Some(user.uid), Some(user.gid)).expect("chown");
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let kept = self.dir.take().expect("held until drop").keep();
            eprintln!("kept for a look: {}", kept.display());
        }
    }
}
