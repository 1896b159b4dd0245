//! The folder of one archive's spool files: its lock, its files by name, and a file that grows.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::SpoolError;
use super::frames::{FrameFormat, SpoolFormat};
use super::keys::SpoolProtection;
use crate::base::durable;
use crate::base::lock::FileLock;

/// Keeps other receivers out of a spool until it is dropped. The operating system ends the lock with the process. The
/// locked file is an empty one beside the folder, which stays.
#[derive(Debug)]
pub struct SpoolLock {
    _held: FileLock,
}

/// Which process has locked that file, by `/proc/locks` (proc(5)). `None` if it is not listed, as a process of another
/// container is not. It never names another process: a user will end the one that it names.
fn lock_holder_pid(file: &Metadata) -> Option<u32> {
    let (major, minor) = (rustix::fs::major(file.dev()), rustix::fs::minor(file.dev()));
    let number = format!("{major:02x}:{minor:02x}:{}", file.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip_while(|word| *word != "FLOCK").skip(3);
        let (pid, file) = (words.next()?, words.next()?);
        pid.parse().ok().filter(|&pid| pid > 0 && file == number)
    })
}

/// The spool files of one archive.
#[derive(Clone, Debug)]
pub(crate) struct SpoolFolder {
    pub(super) dir: PathBuf,
    pub(super) archive: String,
    pub(super) format: &'static SpoolFormat,
    pub(super) protection: SpoolProtection,
}

impl SpoolFolder {
    pub(crate) fn new(
        dir: PathBuf,
        archive: &str,
        format: &'static SpoolFormat,
        protection: SpoolProtection,
    ) -> SpoolFolder {
        SpoolFolder { dir, archive: archive.to_owned(), format, protection }
    }

    /// The folder of the archive of this name in the state directory.
    pub(crate) fn in_state_dir(
        state_dir: &Path,
        archive: &str,
        format: &'static SpoolFormat,
        protection: SpoolProtection,
    ) -> SpoolFolder {
        SpoolFolder::new(state_dir.join("spool").join(archive), archive, format, protection)
    }

    /// Creates the folder if it does not exist.
    pub(crate) fn create(self) -> Result<SpoolFolder, SpoolError> {
        durable::create_dir_all(&self.dir, 0o700)?;
        Ok(self)
    }

    /// Whether the folder exists, or this user may not know.
    pub(crate) fn may_exist(&self) -> bool {
        match fs::metadata(&self.dir) {
            Ok(found) => found.is_dir(),
            Err(error) => !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory),
        }
    }

    /// Takes the folder for one receiver alone.
    ///
    /// # Errors
    /// [`SpoolError::InUse`] if another receiver has it, or the error of the operating system.
    pub(crate) fn lock(&self, instead: &'static str) -> Result<SpoolLock, SpoolError> {
        let mut path = self.dir.as_os_str().to_owned();
        path.push(".lock");
        let failed = |source| SpoolError::Io { action: "lock", path: PathBuf::from(&path), source };
        // Open for writing: over NFS nothing else can be locked, and so no folder.
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        match FileLock::acquire(file) {
            Ok(held) => Ok(SpoolLock { _held: held }),
            Err(TryLockError::WouldBlock) => {
                Err(SpoolError::InUse { dir: self.dir.clone(), pid: lock_holder_pid(&metadata), instead })
            }
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }

    /// Of all files, the part of the name before the suffix, as far as `parse` takes it, in no order.
    pub(crate) fn list<T>(&self, parse: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, SpoolError> {
        let failed = |source| SpoolError::Io { action: "list", path: self.dir.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            names.extend(name.to_str().and_then(|name| name.strip_suffix(self.format.file_suffix)).and_then(&parse));
        }
        Ok(names)
    }

    /// The file of this name, which gets the suffix.
    pub(crate) fn path(&self, stem: &str) -> PathBuf {
        self.dir.join(format!("{stem}{}", self.format.file_suffix))
    }

    /// The frames of its files.
    pub(crate) fn frames(&self) -> FrameFormat<'_> {
        FrameFormat { archive: &self.archive, format: self.format, protection: &self.protection }
    }

    /// Makes the names of the files durable.
    pub(crate) fn sync(&self) -> Result<(), SpoolError> {
        Ok(durable::sync_dir(&self.dir)?)
    }
}

/// A file for reading; `None` if there is none.
pub(crate) fn open_for_reading(path: &Path) -> Result<Option<File>, SpoolError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(SpoolError::Io { action: "open", path: path.to_owned(), source }),
    }
}

/// A reader of a whole file.
pub(crate) fn buffered<R: Read>(file: R) -> BufReader<R> {
    BufReader::with_capacity(1 << 20, file)
}

/// Makes a file durable that another run may have left, or whose sync failed. The pages that a failed fsync left in
/// memory but not on disk are read from the disk again.
pub(crate) fn sync_left_file(file: &File, path: &Path) -> Result<(), SpoolError> {
    file.sync_all().map_err(SpoolError::io("fsync", path))?;
    let dropped = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
    dropped.map_err(io::Error::from).map_err(SpoolError::io("read", path))
}

/// Removes a file, if there is one. The removal is not synced: the receiver finds a file that reappears after a power
/// cut in the repository, and removes it again.
pub(crate) fn remove_file(path: &Path) -> Result<(), SpoolError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(SpoolError::Io { action: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// A spool file that is open at its end.
#[derive(Debug)]
pub(crate) struct GrowingFile {
    file: File,
    path: PathBuf,
    folder: SpoolFolder,
}

impl GrowingFile {
    /// `file` must be at the end of its last whole frame.
    pub(crate) fn new(file: File, path: PathBuf, folder: SpoolFolder) -> GrowingFile {
        GrowingFile { file, path, folder }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a frame, which is durable only after [`GrowingFile::sync`].
    ///
    /// # Errors
    /// The error of the operating system. The file may then end in half a frame.
    pub(crate) fn append(&mut self, place: &str, plain: &[u8], metadata: &[u8]) -> Result<(), SpoolError> {
        let stored = self.folder.frames().seal(place, plain, metadata)?;
        self.file.write_all(&stored).map_err(SpoolError::io("write", &self.path))
    }

    /// Makes all that was appended survive a power cut.
    ///
    /// # Errors
    /// The error of the operating system. It is then unknown what is on the disk.
    pub(crate) fn sync(&mut self) -> Result<(), SpoolError> {
        self.file.sync_data().map_err(SpoolError::io("fsync", &self.path))
    }
}
