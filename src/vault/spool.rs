//! The spool file: sealed frames that are durable on this machine before the repositories have them.
//!
//! A file grows at its end. Each append is one frame: its length, and the bytes sealed as an object of their own. The
//! caller gives the place of each frame, which binds it to the archive, the file and its position in it. So nothing is
//! stored here in clear, and no frame opens in another's place.
//!
//! The order of effects: create the file, fsync its directory, append frames, fsync the file. Only after that are the
//! bytes durable. A crash leaves whole frames and perhaps the beginning of one more. Reading stops at the first frame
//! that does not open, so what is read is always a prefix of what was appended, and contains all that was synced.
//!
//! Two receivers would overwrite each other's files, so a receiver locks an empty file beside the folder (`flock`).
//!
//! All calls block. Not known here: the names of the files, what is in the frames, what happens to the bytes after the
//! last frame that opens, and when a file may go.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::base::durable;
use crate::base::lock::FileLock;
use crate::vault::seal::{
    self, CompressionLevel, OBJECT_END, ObjectBinding, ObjectEncryption, OpenedObject, SealError, SealSpec, SealedKind,
};

/// The most plaintext in one frame: bounds what a reader must hold beside all that it has read.
pub(crate) const MAX_FRAME_PLAIN_BYTES: usize = 4 << 20;

/// Why WAL, or the commands of an instance, could not be spooled or read back.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The operating system refused it.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Another receiver is at work.
    #[error(
        "another `walkeep receive`{} uses {}; {instead}",
        pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default(), dir.display()
    )]
    InUse {
        /// The spool.
        dir: PathBuf,
        /// The other receiver's process, if the kernel reports it.
        pid: Option<u32>,
        /// What to do.
        instead: &'static str,
    },
    /// A directory could not be made or synced.
    #[error(transparent)]
    Durable(#[from] durable::DurableError),
    /// A frame could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Bytes that do not continue the file: a bug.
    #[error("the spool of {name} holds {held} bytes, and bytes from {offset} on were to be appended")]
    NotContiguous {
        /// The name of the file's content.
        name: String,
        /// How many bytes the file holds.
        held: u64,
        /// The position of the bytes that were given.
        offset: u64,
    },
}

impl SpoolError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SpoolError {
        move |source| SpoolError::Io { action, path: path.to_owned(), source }
    }
}

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

/// What the files of one kind of spool have in common.
#[derive(Debug)]
pub(crate) struct SpoolFormat {
    pub(crate) kind: SealedKind,
    /// The end of each file's name.
    pub(crate) file_suffix: &'static str,
    /// The most bytes a frame has on disk. A larger length is no frame's.
    pub(crate) max_stored_bytes: usize,
}

/// Where in its file a frame begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct FramePosition {
    /// How many frames are before it.
    pub(crate) number: u64,
    /// How many bytes of plaintext are before it.
    pub(crate) plain_offset: u64,
}

/// The spool files of one archive.
#[derive(Clone, Debug)]
pub(crate) struct SpoolFolder {
    dir: PathBuf,
    archive: String,
    format: &'static SpoolFormat,
    protection: Arc<ObjectEncryption>,
}

impl SpoolFolder {
    pub(crate) fn new(
        dir: PathBuf,
        archive: &str,
        format: &'static SpoolFormat,
        protection: Arc<ObjectEncryption>,
    ) -> SpoolFolder {
        SpoolFolder { dir, archive: archive.to_owned(), format, protection }
    }

    /// The folder of the archive of this name in the state directory.
    pub(crate) fn in_state_dir(
        state_dir: &Path,
        archive: &str,
        format: &'static SpoolFormat,
        protection: Arc<ObjectEncryption>,
    ) -> SpoolFolder {
        SpoolFolder::new(state_dir.join("spool").join(archive), archive, format, protection)
    }

    /// Creates the folder if it does not exist.
    pub(crate) fn create(self) -> Result<SpoolFolder, SpoolError> {
        durable::create_dir_all(&self.dir, 0o700)?;
        Ok(self)
    }

    pub(crate) fn exists(&self) -> bool {
        self.dir.is_dir()
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

    /// Makes the names of the files durable.
    pub(crate) fn sync(&self) -> Result<(), SpoolError> {
        Ok(durable::sync_dir(&self.dir)?)
    }

    fn binding(&self, place: &str) -> ObjectBinding {
        ObjectBinding::new(self.format.kind, format!("spool/{}/{place}", self.archive))
    }

    /// A frame as it is in the file, with its length.
    pub(crate) fn seal_frame(&self, place: &str, plain: &[u8], metadata: &[u8]) -> Result<Vec<u8>, SpoolError> {
        let binding = self.binding(place);
        let spec = SealSpec { level: CompressionLevel::Fixed(-5), metadata, ..SealSpec::new(&binding) };
        let sealed = seal::seal_object(&[plain], &spec, &self.protection)?;
        let limit = self.format.max_stored_bytes;
        assert!(sealed.len <= limit as u64, "a frame of {} bytes, and {limit} at most can be read back", sealed.len);
        let mut stored = Vec::with_capacity(usize::try_from(sealed.len).unwrap_or(0).saturating_add(4));
        stored.extend_from_slice(&u32::try_from(sealed.len).unwrap_or(u32::MAX).to_le_bytes());
        sealed.parts.iter().for_each(|part| stored.extend_from_slice(part));
        Ok(stored)
    }

    /// Reads frames from the beginning of a file until one is cut short, does not open in its `place`, or is not
    /// accepted. Returns the position in the file where the accepted frames end.
    pub(crate) fn read_frames(
        &self,
        reader: &mut impl Read,
        place: impl Fn(FramePosition) -> String,
        mut accept: impl FnMut(&OpenedObject) -> bool,
    ) -> io::Result<u64> {
        let (mut at, mut end) = (FramePosition { number: 0, plain_offset: 0 }, 0_u64);
        while let Some(stored) = self.read_stored_frame(reader)? {
            let Ok(frame) = seal::open_object(&stored, &self.binding(&place(at)), &self.protection, 1) else { break };
            if !accept(&frame) {
                break;
            }
            at.number = at.number.saturating_add(1);
            at.plain_offset = at.plain_offset.saturating_add(frame.plain.len() as u64);
            end = end.saturating_add(stored.len() as u64).saturating_add(4);
        }
        Ok(end)
    }

    /// The next frame's sealed bytes; `None` if the file ends before its end, or its length is no frame's.
    fn read_stored_frame(&self, reader: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
        let mut stored = Vec::new();
        reader.take(4).read_to_end(&mut stored)?;
        let Ok(len) = <[u8; 4]>::try_from(stored.as_slice()) else { return Ok(None) };
        let len = u32::from_le_bytes(len);
        if len as usize > self.format.max_stored_bytes {
            return Ok(None);
        }
        stored.clear();
        reader.take(u64::from(len)).read_to_end(&mut stored)?;
        Ok((stored.len() == len as usize).then_some(stored))
    }

    /// Whether the bytes after the last frame that opens are what a crash leaves: the beginning of a frame, or space
    /// that was never written. A length that has changed makes a frame seem cut as well, but then its end is there.
    pub(crate) fn is_torn(&self, rest: &[u8]) -> bool {
        let cut = || {
            let Some((len, frame)) = rest.split_first_chunk::<4>() else { return true };
            let len = u32::from_le_bytes(*len) as usize;
            frame.len() < len
                && len <= self.format.max_stored_bytes
                && !frame.windows(OBJECT_END.len()).any(|window| window == OBJECT_END)
        };
        rest.iter().all(|byte| *byte == 0) || cut()
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
        let stored = self.folder.seal_frame(place, plain, metadata)?;
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
