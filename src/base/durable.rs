//! Files that survive a power cut: temporary file, fsync, rename, fsync of the directory. The only caller of
//! `fs::rename`.
//!
//! Each function returns only once its effect is on stable storage, as far as the file system tells the truth. All of
//! them block, so async code calls them through `spawn_blocking`. After a failed fsync the kernel may have dropped the
//! very pages it could not write, so nothing here syncs the same file twice: the temporary file is removed and the
//! caller starts over.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags};

/// A file operation that did not succeed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}", path = path.display())]
pub struct DurableError {
    action: &'static str,
    path: PathBuf,
    source: io::Error,
}

impl DurableError {
    /// What the operating system said.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.source.kind()
    }

    fn io_error<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DurableError + 'a {
        move |source| DurableError { action, path: path.to_owned(), source }
    }
}

/// A file under construction beside its final place. Dropped without a [`StagedFile::publish`] or
/// [`StagedFile::publish_new`], it is removed.
#[derive(Debug)]
pub struct StagedFile {
    path: PathBuf,
    file: Option<File>,
}

impl StagedFile {
    /// Creates `path` anew for writing, with the given permission bits; whatever a crashed writer left under this name
    /// is removed first.
    ///
    /// `path` must be in the directory of the final name, and must be used by one writer at a time.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn begin(path: &Path, mode: u32) -> Result<StagedFile, DurableError> {
        match fs::remove_file(path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(DurableError::io_error("remove the left-over", path)(e)),
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        let file = file.map_err(DurableError::io_error("create", path))?;
        Ok(StagedFile { path: path.to_owned(), file: Some(file) })
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), DurableError> {
        match self.file.as_mut() {
            Some(file) => file.write_all(bytes).map_err(DurableError::io_error("write", &self.path)),
            None => Ok(()),
        }
    }

    /// Takes back what was written after the first `len` bytes; what is written next follows them.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn truncate(&mut self, len: u64) -> Result<(), DurableError> {
        match self.file.as_mut() {
            Some(file) => {
                let cut = file.set_len(len).and_then(|()| file.seek(SeekFrom::Start(len)));
                cut.map(drop).map_err(DurableError::io_error("truncate", &self.path))
            }
            None => Ok(()),
        }
    }

    /// Syncs the file and puts it at `target`, over whatever is there, durably.
    ///
    /// # Errors
    /// What the operating system said; `target` is then as it was, unless only the sync of its directory failed.
    pub fn publish(mut self, target: &Path) -> Result<(), DurableError> {
        self.sync()?;
        rename(&self.path, target)
    }

    /// Syncs the file and puts it at `target`, durably, unless something is there already.
    ///
    /// # Errors
    /// `AlreadyExists` as [`DurableError::kind`] if `target` exists, or what else the operating system said.
    pub fn publish_new(mut self, target: &Path) -> Result<(), DurableError> {
        self.sync()?;
        rename_new(&self.path, target)
    }

    fn sync(&mut self) -> Result<(), DurableError> {
        match self.file.take() {
            Some(file) => file.sync_all().map_err(DurableError::io_error("fsync", &self.path)),
            None => Ok(()),
        }
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        // After a successful rename there is nothing here any more, and after a failure nobody is left to tell.
        drop(fs::remove_file(&self.path));
    }
}

/// Writes a file that must not exist yet, durably. Others see it whole or not at all.
///
/// # Errors
/// `AlreadyExists` as [`DurableError::kind`] if `path` exists, or what else the operating system said.
pub fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DurableError> {
    let mut staged = StagedFile::begin(&temporary_path(path), mode)?;
    staged.write(bytes)?;
    staged.publish_new(path)
}

/// Writes a file, durably, over whatever is there. Others see the old content or the new, never a part.
///
/// # Errors
/// What the operating system said.
pub fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), DurableError> {
    let mut staged = StagedFile::begin(&temporary_path(path), mode)?;
    staged.write(bytes)?;
    staged.publish(path)
}

/// Renames `from`, whose content must already be synced, to `to`, over whatever is there, and syncs the directories of
/// both.
///
/// # Errors
/// What the operating system said.
#[expect(clippy::disallowed_methods, reason = "this is the one place that renames")]
pub fn rename(from: &Path, to: &Path) -> Result<(), DurableError> {
    fs::rename(from, to).map_err(DurableError::io_error("rename a file to", to))?;
    sync_parents(from, to)
}

/// Renames `from`, whose content must already be synced, to `to`, which must not exist, and syncs the directories of
/// both.
///
/// # Errors
/// `AlreadyExists` as [`DurableError::kind`] if `to` exists, or what else the operating system said.
pub fn rename_new(from: &Path, to: &Path) -> Result<(), DurableError> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Ok(()) => {}
        // Network file systems often lack the flag; a hard link refuses an existing name too.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => {
            fs::hard_link(from, to).map_err(DurableError::io_error("create", to))?;
            fs::remove_file(from).map_err(DurableError::io_error("remove", from))?;
        }
        Err(errno) => return Err(DurableError::io_error("create", to)(errno.into())),
    }
    sync_parents(from, to)
}

/// Gives `from`, whose content must already be synced, a second name `to`, which must not exist, and syncs the
/// directory of that name.
///
/// # Errors
/// `AlreadyExists` as [`DurableError::kind`] if `to` exists, or the error of the operating system, for example because
/// the file system has no hard links.
pub fn link_new(from: &Path, to: &Path) -> Result<(), DurableError> {
    fs::hard_link(from, to).map_err(DurableError::io_error("create", to))?;
    sync_dir(parent_of(to))
}

/// Creates a directory and those above it that are missing, each with the given permission bits, durably.
///
/// # Errors
/// What the operating system said.
pub fn create_dir_all(path: &Path, mode: u32) -> Result<(), DurableError> {
    use std::os::unix::fs::DirBuilderExt;
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        create_dir_all(parent, mode)?;
    }
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(e) => return Err(DurableError::io_error("create the directory", path)(e)),
    }
    sync_dir(parent_of(path))
}

/// Makes the creations, renames and removals in a directory durable.
///
/// # Errors
/// What the operating system said.
pub fn sync_dir(path: &Path) -> Result<(), DurableError> {
    let dir = File::open(path).map_err(DurableError::io_error("open the directory", path))?;
    dir.sync_all().map_err(DurableError::io_error("fsync the directory", path))
}

/// Makes a file's content durable, whoever wrote it.
///
/// # Errors
/// What the operating system said.
pub fn sync_file(path: &Path) -> Result<(), DurableError> {
    let file = File::open(path).map_err(DurableError::io_error("open", path))?;
    file.sync_all().map_err(DurableError::io_error("fsync", path))
}

/// A whole file system, for what writes so many files that a sync of each would take longer than the writing.
#[derive(Debug)]
pub struct Filesystem {
    path: PathBuf,
    dir: File,
}

impl Filesystem {
    /// The file system that the directory `path` is on. To be opened before anything is written: the kernel reports
    /// what it could not write since then.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn containing(path: &Path) -> Result<Filesystem, DurableError> {
        let dir = File::open(path).map_err(DurableError::io_error("open the directory", path))?;
        Ok(Filesystem { path: path.to_owned(), dir })
    }

    /// Makes everything on it durable, content and names.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn sync(&self) -> Result<(), DurableError> {
        rustix::fs::syncfs(&self.dir)
            .map_err(io::Error::from)
            .map_err(DurableError::io_error("sync the file system of", &self.path))
    }
}

fn sync_parents(from: &Path, to: &Path) -> Result<(), DurableError> {
    let (source, target) = (parent_of(from), parent_of(to));
    sync_dir(target)?;
    if source == target { Ok(()) } else { sync_dir(source) }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A hidden name in the same directory, own to this process.
fn temporary_path(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}

#[cfg(test)]
mod tests {
    use super::{StagedFile, create_dir_all, rename_new, replace_file, sync_file, write_new};
    use std::fs;
    use std::io::ErrorKind;

    fn names(dir: &std::path::Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_file_never_replaces_another() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_new(&path, b"first", 0o600).unwrap();
        assert_eq!(write_new(&path, b"second", 0o600).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        replace_file(&path, b"third", 0o600).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"third");
        assert_eq!(names(dir.path()), ["a"], "temporary files are left");
    }

    #[test]
    fn a_rename_to_a_new_name_refuses_one_that_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "a").unwrap();
        fs::write(&b, "b").unwrap();
        assert_eq!(rename_new(&a, &b).unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"a".to_vec(), b"b".to_vec()));
        rename_new(&a, &dir.path().join("c")).unwrap();
        assert_eq!(names(dir.path()), ["b", "c"]);
    }

    #[test]
    fn what_is_not_finished_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let staged = dir.path().join(".a.tmp");
        fs::write(&staged, "left by a crash").unwrap();
        let mut file = StagedFile::begin(&staged, 0o600).unwrap();
        file.write(b"half").unwrap();
        drop(file);
        assert!(names(dir.path()).is_empty());
    }

    #[test]
    fn directories_are_created_to_any_depth() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b/c");
        create_dir_all(&deep, 0o700).unwrap();
        create_dir_all(&deep, 0o700).unwrap();
        assert!(deep.is_dir());
        fs::write(deep.join("file"), "").unwrap();
        sync_file(&deep.join("file")).unwrap();
        let error = create_dir_all(&deep.join("file/d"), 0o700).unwrap_err();
        assert!(error.to_string().contains("file"), "{error}");
    }
}
