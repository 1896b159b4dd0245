//! The spool: WAL that has come and is not in the repository yet, durable on this machine.
//!
//! One file a segment, `<segment name>.tail`, which grows at its end. Each append is one frame: a length, and the bytes sealed as an object of
//! their own that is bound to cluster, segment and offset, so nothing lies here in clear and no frame opens in another's place. The order of
//! effects: create the file, fsync its directory, append frames, fsync the file; only after that are the bytes said to be safe. A crash
//! leaves whole frames and perhaps the beginning of one more; reading stops at the first frame that does not open, so what is read is always
//! a prefix of what was appended, and contains all that was synced.
//!
//! Two receivers would write over each other's files, so a receiver locks an empty file beside the folder (`flock`).
//!
//! All calls block. Not known here: who fills the spool, and when a file may go.

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use super::Archive;
use crate::base::durable;
use crate::base::lock::FileLock;
use crate::postgres::archive::layout::ClusterName;
use crate::postgres::format::segment::{SegmentName, SegmentSize};
use crate::vault::seal::{self, CompressionLevel, ObjectBinding, ObjectEncryption, SealError, SealSpec, SealedKind};

/// The most plaintext in one frame: bounds what a reader must hold beside the segment itself.
const MAX_FRAME_BYTES: usize = 4 << 20;

/// The most bytes a frame has on disk: the plaintext, were it to defy compression, and room for header and trailer.
const MAX_STORED_FRAME_BYTES: usize = MAX_FRAME_BYTES + (64 << 10);

const SPOOL_FILE_SUFFIX: &str = ".tail";

/// Why WAL, or the commands of an instance, could not be spooled or read back.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// The operating system said no.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What it said.
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
        /// The other one's process, if the kernel tells.
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
    /// Bytes that do not continue what is there: a bug.
    #[error("the spool of {name} holds {held} bytes, and bytes from {offset} on were to be appended")]
    NotContiguous {
        /// The segment.
        name: SegmentName,
        /// What is there.
        held: u64,
        /// What was given.
        offset: u64,
    },
}

/// Keeps other receivers away from a spool for as long as it is there; the operating system lets go of it with the process. What is locked is an
/// empty file beside the folder, which stays.
#[derive(Debug)]
pub struct SpoolLock {
    _held: FileLock,
}

impl SpoolLock {
    /// Locks a spool, for one receiver alone.
    ///
    /// # Errors
    /// [`SpoolError::InUse`] if there is another one; what the operating system said.
    pub(crate) fn acquire(dir: &Path, instead: &'static str) -> Result<SpoolLock, SpoolError> {
        let mut path = dir.as_os_str().to_owned();
        path.push(".lock");
        let failed = |source| SpoolError::Io { action: "lock", path: PathBuf::from(&path), source };
        // Open for writing: over NFS nothing else can be locked, and so no folder.
        let file =
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        match FileLock::acquire(file) {
            Ok(held) => Ok(SpoolLock { _held: held }),
            Err(TryLockError::WouldBlock) => {
                Err(SpoolError::InUse { dir: dir.to_owned(), pid: lock_holder_pid(&metadata), instead })
            }
            Err(TryLockError::Error(source)) => Err(failed(source)),
        }
    }
}

/// Which process has locked that file, by `/proc/locks` (proc(5)); `None` where it does not say, as of another container's. Never another process
/// than that: somebody will end it.
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

/// The directory of one cluster's tails.
#[derive(Debug, Clone)]
pub struct Spool {
    dir: PathBuf,
    cluster: ClusterName,
    protection: Arc<ObjectEncryption>,
}

impl Spool {
    /// The spool of `archive`'s cluster under `state_dir`; made if it isn't there.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn open(state_dir: &Path, archive: &Archive) -> Result<Spool, SpoolError> {
        Spool::in_state_dir(state_dir, archive.cluster().clone(), Arc::clone(archive.vault().protection()))
    }

    /// The spool of `archive`'s cluster under `state_dir`, for reading; `None` if there is none.
    #[must_use]
    pub fn existing(state_dir: &Path, archive: &Archive) -> Option<Spool> {
        let cluster = archive.cluster().clone();
        let dir = state_dir.join("spool").join(cluster.as_str());
        dir.is_dir().then(|| Spool { dir, cluster, protection: Arc::clone(archive.vault().protection()) })
    }

    /// Takes the spool for one receiver alone.
    ///
    /// # Errors
    /// [`SpoolError::InUse`] if there is another one.
    pub fn lock(&self) -> Result<SpoolLock, SpoolError> {
        SpoolLock::acquire(&self.dir, "end it, or give this one a state-dir of its own")
    }

    fn in_state_dir(
        state_dir: &Path,
        cluster: ClusterName,
        protection: Arc<ObjectEncryption>,
    ) -> Result<Spool, SpoolError> {
        let dir = state_dir.join("spool").join(cluster.as_str());
        durable::create_dir_all(&dir, 0o700)?;
        Ok(Spool { dir, cluster, protection })
    }

    /// The segments of which something is spooled, by timeline and position.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn list_segments(&self) -> Result<Vec<SegmentName>, SpoolError> {
        let failed = |source| SpoolError::Io { action: "list", path: self.dir.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            names.extend(
                name.to_str().and_then(|name| name.strip_suffix(SPOOL_FILE_SUFFIX)).and_then(SegmentName::parse),
            );
        }
        names.sort_unstable_by_key(ToString::to_string);
        Ok(names)
    }

    /// What is spooled of a segment, from its first byte on; empty if nothing is.
    ///
    /// # Errors
    /// The file is there and can't be read.
    pub fn read_segment(&self, name: SegmentName, size: SegmentSize) -> Result<Bytes, SpoolError> {
        let path = self.path(name);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Bytes::new()),
            Err(source) => return Err(SpoolError::Io { action: "open", path, source }),
        };
        Ok(self.scan_frames(&mut file, name, size).map_err(|source| SpoolError::Io { action: "read", path, source })?.0)
    }

    /// Opens a segment's file to append to it. What an earlier run left is synced first, as nobody knows whether it ever was, and a torn frame
    /// at its end is cut off. Also gives what the file holds.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn open_for_append(&self, name: SegmentName, size: SegmentSize) -> Result<(SpoolFile, Bytes), SpoolError> {
        let path = self.path(name);
        let failed = |action: &'static str| {
            let path = path.clone();
            move |source| SpoolError::Io { action, path, source }
        };
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = opened.map_err(failed("open"))?;
        file.sync_all().map_err(failed("fsync"))?;
        // Pages that an earlier, failed fsync left in memory but not on disk are read from the disk again.
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)
            .map_err(io::Error::from)
            .map_err(failed("read"))?;
        let (plain, end) = self.scan_frames(&mut file, name, size).map_err(failed("read"))?;
        let len = file.seek(SeekFrom::End(0)).map_err(failed("read"))?;
        if len > end {
            tracing::info!(%name, cut = len - end, "a torn frame is cut off the spool");
            file.set_len(end).map_err(failed("truncate"))?;
            file.sync_all().map_err(failed("fsync"))?;
        }
        file.seek(SeekFrom::Start(end)).map_err(failed("read"))?;
        durable::sync_dir(&self.dir)?;
        let held = plain.len() as u64;
        Ok((SpoolFile { file, path, name, held, spool: self.clone() }, plain))
    }

    /// Removes a segment's file, if there is one. Not synced: should it come back after a power cut, it is found in the repository and removed
    /// again.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn remove_segment(&self, name: SegmentName) -> Result<(), SpoolError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(SpoolError::Io { action: "remove", path, source }),
        }
    }

    fn path(&self, name: SegmentName) -> PathBuf {
        self.dir.join(format!("{name}{SPOOL_FILE_SUFFIX}"))
    }

    fn binding(&self, name: SegmentName, offset: u64) -> ObjectBinding {
        ObjectBinding::new(SealedKind::WalFile, format!("spool/{}/{name}/{offset}", self.cluster.as_str()))
    }

    /// All whole frames, and the position in the file where they end.
    fn scan_frames(&self, file: &mut File, name: SegmentName, size: SegmentSize) -> io::Result<(Bytes, u64)> {
        let mut plain = BytesMut::new();
        let mut end = 0;
        let mut reader = io::BufReader::with_capacity(1 << 20, file);
        let mut stored = Vec::new();
        loop {
            let mut len = [0; 4];
            if read_full(&mut reader, &mut len)? < len.len() {
                break;
            }
            let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
            if len > MAX_STORED_FRAME_BYTES {
                break;
            }
            stored.resize(len, 0);
            if read_full(&mut reader, &mut stored)? < len {
                break;
            }
            let binding = self.binding(name, plain.len() as u64);
            let Ok(frame) = seal::open_object(&stored, &binding, &self.protection, 1) else { break };
            if plain.len() + frame.plain.len() > size.len() {
                break;
            }
            plain.extend_from_slice(&frame.plain);
            end += 4 + len as u64;
        }
        Ok((plain.freeze(), end))
    }
}

/// Reads until the buffer is full or the file ends; gives how much was read.
fn read_full(reader: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// One segment's file, open at its end.
#[derive(Debug)]
pub struct SpoolFile {
    file: File,
    path: PathBuf,
    name: SegmentName,
    held: u64,
    spool: Spool,
}

impl SpoolFile {
    /// The segment.
    #[must_use]
    pub const fn name(&self) -> SegmentName {
        self.name
    }

    /// How many bytes of the segment are in the file, synced or not.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.held
    }

    /// Appends `bytes`, which stand at `offset` in the segment. They are safe only after [`SpoolFile::sync`].
    ///
    /// # Errors
    /// What the operating system said. The file may then end in half a frame and must be opened anew.
    pub fn append(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SpoolError> {
        if offset != self.held {
            return Err(SpoolError::NotContiguous { name: self.name, held: self.held, offset });
        }
        for piece in bytes.chunks(MAX_FRAME_BYTES) {
            let binding = self.spool.binding(self.name, self.held);
            let spec = SealSpec { level: CompressionLevel::Fixed(-5), ..SealSpec::new(&binding) };
            let sealed = seal::seal_object(&[piece], &spec, &self.spool.protection)?;
            let mut frame = Vec::with_capacity(4 + usize::try_from(sealed.len).unwrap_or(0));
            frame.extend_from_slice(&u32::try_from(sealed.len).unwrap_or(u32::MAX).to_le_bytes());
            for part in &sealed.parts {
                frame.extend_from_slice(part);
            }
            let written = self.file.write_all(&frame);
            written.map_err(|source| SpoolError::Io { action: "write", path: self.path.clone(), source })?;
            self.held += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes all that was appended survive a power cut.
    ///
    /// # Errors
    /// What the operating system said. Nobody knows then what is on the disk: the file must be opened anew.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        self.file.sync_data().map_err(|source| SpoolError::Io { action: "fsync", path: self.path.clone(), source })
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "the sizes here are small")]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::Spool;
    use crate::postgres::format::segment::{SegmentName, SegmentSize};
    use crate::vault::seal::ObjectEncryption;

    fn spool(dir: &std::path::Path) -> Spool {
        Spool::in_state_dir(dir, "main".parse().unwrap(), Arc::new(ObjectEncryption::None)).unwrap()
    }

    fn name(text: &str) -> SegmentName {
        SegmentName::parse(text).unwrap()
    }

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    #[test]
    fn what_was_appended_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let a = name("0000000100000000000000A3");
        let (mut tail, held) = spool.open_for_append(a, SIZE).unwrap();
        assert!(held.is_empty());
        let text: Vec<u8> = (0..5_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        tail.append(0, &text[..100]).unwrap();
        tail.append(100, &text[100..]).unwrap();
        assert!(tail.append(7, b"x").is_err(), "a gap was taken");
        tail.sync().unwrap();
        assert_eq!(spool.read_segment(a, SIZE).unwrap(), text);
        let (mut again, held) = spool.open_for_append(a, SIZE).unwrap();
        assert_eq!(held, text);
        again.append(text.len() as u64, b"more").unwrap();
        assert_eq!(spool.read_segment(a, SIZE).unwrap().len(), text.len() + 4);
        assert_eq!(spool.list_segments().unwrap(), [a]);
        spool.remove_segment(a).unwrap();
        spool.remove_segment(a).unwrap();
        assert!(spool.list_segments().unwrap().is_empty() && spool.read_segment(a, SIZE).unwrap().is_empty());
    }

    #[test]
    fn a_file_under_another_segments_name_does_not_open() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let (a, b) = (name("0000000100000000000000A3"), name("0000000100000000000000A4"));
        spool.open_for_append(a, SIZE).unwrap().0.append(0, b"of A3").unwrap();
        fs::copy(spool.path(a), spool.path(b)).unwrap();
        assert!(spool.read_segment(b, SIZE).unwrap().is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// A crash may cut the file anywhere and may leave anything in the part that was never synced.
        #[test]
        fn after_any_cut_a_prefix_of_whole_frames_is_left(cut in 0_usize..3000, rubbish in any::<Option<u8>>()) {
            let dir = tempfile::tempdir().unwrap();
            let spool = spool(dir.path());
            let a = name("0000000100000000000000A3");
            let (mut tail, _) = spool.open_for_append(a, SIZE).unwrap();
            let mut ends = vec![(0, 0)];
            for n in 0..8_u8 {
                let at = tail.held();
                tail.append(at, &[n; 100]).unwrap();
                ends.push((fs::metadata(spool.path(a)).unwrap().len() as usize, tail.held()));
            }
            let mut bytes = fs::read(spool.path(a)).unwrap();
            let cut = cut.min(bytes.len());
            match rubbish {
                Some(fill) => bytes[cut..].fill(fill),
                None => bytes.truncate(cut),
            }
            fs::write(spool.path(a), &bytes).unwrap();
            let expected = ends.iter().rev().find(|(end, _)| *end <= cut).unwrap().1;
            let (mut tail, held) = spool.open_for_append(a, SIZE).unwrap();
            // The rubbish may be just what was there.
            prop_assert!(held.len() as u64 >= expected);
            prop_assert!(held.chunks(100).enumerate().all(|(n, frame)| frame.len() == 100 && frame.iter().all(|b| *b == n as u8)));
            tail.append(held.len() as u64, b"goes on").unwrap();
            prop_assert_eq!(spool.read_segment(a, SIZE).unwrap().len(), held.len() + 7);
        }
    }
}
