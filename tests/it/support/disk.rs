//! A small file system of its own, which can be filled.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::process;

/// A file system in memory, mounted until it is dropped. Mounting is for root, so others go through sudo, as
/// `tests/setup.sh` does.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
}

fn as_root(program: &str) -> Command {
    if rustix::process::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("sudo");
    command.arg("-n").arg(program);
    command
}

impl Disk {
    /// Over this folder, which is made if it is not there, for the user that the servers run as.
    pub(crate) fn mount(path: &Path, megabytes: u32) -> Self {
        fs::create_dir_all(path).expect("a folder");
        let (uid, gid) = match process::server_user() {
            Some(user) => (user.uid, user.gid),
            None => (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
        };
        let mut command = as_root("mount");
        let options = format!("size={megabytes}m,uid={uid},gid={gid},mode=700");
        command.args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path);
        process::run(command).expect_ok();
        Self { path: path.into() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves no room.
    pub(crate) fn fill(&self) {
        let mut ballast = fs::File::create(self.path.join("ballast")).expect("a file");
        let full = std::iter::repeat_with(|| ballast.write_all(&[0; 4096])).find_map(Result::err);
        assert_eq!(full.expect("an end").kind(), std::io::ErrorKind::StorageFull);
    }

    /// Makes room again.
    pub(crate) fn clear(&self) {
        fs::remove_file(self.path.join("ballast")).expect("removed");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let mut command = as_root("umount");
        command.arg("--lazy").arg(&self.path);
        let finished = process::run(command);
        if finished.code != Some(0) {
            eprintln!("{}: {}", finished.command, finished.stderr);
        }
    }
}
