//! Disks and the owners of files: how much is free where something is written, and to whom a file written by root
//! belongs.
//!
//! Errors are those of the operating system. The callers know what they wanted of which path, and add it.

use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

/// The space of a file system.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FileSystemSpace {
    /// Bytes free for this process; root's reserve is not counted.
    pub(crate) free: u64,
    /// Bytes in all.
    pub(crate) total: u64,
}

/// The space of the file system that holds `path`, which must exist.
pub(crate) fn space_at(path: &Path) -> io::Result<FileSystemSpace> {
    let found = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(FileSystemSpace { free: bytes(found.f_bavail), total: bytes(found.f_blocks) })
}

/// Bytes free on the file system that holds `path`, which must exist.
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    space_at(path).map(|space| space.free)
}

/// `path`, or the nearest directory above it that exists: where `path` will be created.
pub(crate) fn nearest_existing(path: &Path) -> &Path {
    let found = path.ancestors().find(|above| above.exists());
    // Above a relative path is the working directory.
    found.unwrap_or(Path::new(if path.is_absolute() { "/" } else { "." }))
}

/// The user and the group that a file belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FileOwner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl FileOwner {
    /// The owner of an existing file or directory.
    pub(crate) fn of(path: &Path) -> io::Result<FileOwner> {
        path.metadata().map(|metadata| FileOwner { uid: metadata.uid(), gid: metadata.gid() })
    }

    pub(crate) const fn is_root(self) -> bool {
        self.uid == 0
    }

    /// Makes a file or directory this owner's. Only root may give files away.
    pub(crate) fn give(self, path: &Path) -> io::Result<()> {
        chown(path, Some(self.uid), Some(self.gid))
    }
}

/// Whether this process may give files away.
pub(crate) fn runs_as_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::Command;

    use super::{FileOwner, free_bytes, nearest_existing, runs_as_root, space_at};

    /// What a program prints about a path, as numbers.
    fn printed(program: &str, arguments: &[&str], path: &Path) -> Vec<u64> {
        let output = Command::new(program).args(arguments).arg(path).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    }

    #[test]
    fn space_is_what_df_prints() {
        let dir = tempfile::tempdir().unwrap();
        let [total, free] = printed("df", &["--block-size=1", "--output=size,avail"], dir.path())[..] else {
            panic!("df prints two numbers")
        };
        let space = space_at(dir.path()).unwrap();
        assert_eq!(space.total, total);
        // Other tests write meanwhile.
        let difference = space.free.abs_diff(free).max(free_bytes(dir.path()).unwrap().abs_diff(free));
        assert!(difference < total / 20, "{} and {free}", space.free);
        assert!(space_at(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn what_is_absent_will_be_where_its_nearest_directory_is() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(nearest_existing(dir.path()), dir.path());
        assert_eq!(nearest_existing(&dir.path().join("a/b")), dir.path());
        assert_eq!(nearest_existing(Path::new("/absent-here/a")), Path::new("/"));
        assert_eq!(nearest_existing(Path::new("absent-here/a")), Path::new("."));
    }

    #[test]
    fn owners_are_what_stat_prints() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let own = FileOwner::of(&file).unwrap();
        assert_eq!(printed("stat", &["-c", "%u %g"], &file), [u64::from(own.uid), u64::from(own.gid)]);
        assert_eq!(own.is_root(), runs_as_root());
        own.give(&file).unwrap();
        let other = FileOwner { uid: 12_345, gid: 54_321 };
        if runs_as_root() {
            other.give(&file).unwrap();
            assert_eq!(printed("stat", &["-c", "%u %g"], &file), [12_345, 54_321]);
        } else {
            assert!(other.give(&file).is_err());
        }
        assert!(FileOwner::of(&dir.path().join("absent")).is_err());
    }
}
