//! The spool of commands: what has come and is in no repository yet, durable on this machine.
//!
//! One file a stretch, `<replication id>.<first offset, 20 digits>.commands` in `<state-dir>/spool/<instance>/`, which grows at its end. Each
//! append is one frame: a length, and the bytes sealed as an object of their own that is bound to instance, file and the frame's number, so
//! nothing lies here in clear and no frame opens in another's place. The frame's metadata has its marks; that of the first frame, which
//! has no bytes, says what the stretch begins with.
//!
//! The order of effects is that of the spool of WAL (`archive::spool`): create, fsync the directory, append, fsync; only then are bytes said to
//! be safe. What is read is always a prefix of what was appended and has all that was synced. The bytes may end within a command:
//! [`Spooled::stretch`] leaves that part out, and the server is asked for it again.
//!
//! All calls block.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Instance;
use super::commands::{Follows, Mark, Run, Stretch};
use super::notable::{NOTED_KEYS, Scan};
use crate::archive::spool::{Lock, SpoolError};
use crate::durable;
use crate::redis::ReplicationId;
use crate::resp::{Commands, Kind as CommandKind, Limits};
use crate::seal::{self, Binding, Kind, Level, Protection, SealSpec};

/// The most plaintext in one frame.
const MAX_FRAME: usize = 4 << 20;
/// The most bytes a frame has on disk, were it to defy compression, with marks for each of its bytes' milliseconds.
const MAX_STORED: usize = MAX_FRAME + (4 << 20);
const SUFFIX: &str = ".commands";

/// What a stretch begins with.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Beginning {
    /// The history.
    pub replid: ReplicationId,
    /// The offset before its first byte, which begins a command.
    pub first: u64,
    /// The database that it acts on.
    pub db: u32,
    /// Whether a transaction is open.
    pub in_transaction: bool,
    /// The history before, if this is the first stretch under a new name.
    pub follows: Option<Follows>,
    /// When.
    pub started_at: Timestamp,
    /// From whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<Run>,
}

#[derive(Serialize, Deserialize)]
struct Frame {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    beginning: Option<Beginning>,
    marks: Vec<Mark>,
    at: Timestamp,
}

/// One instance's spool.
#[derive(Clone, Debug)]
pub struct Spool {
    dir: PathBuf,
    instance: String,
    protection: Arc<Protection>,
}

/// The name of a spooled stretch: its history and first offset.
pub type Name = (ReplicationId, u64);

/// A file's content.
#[derive(Clone, Debug)]
pub struct Spooled {
    /// What it begins with.
    pub beginning: Beginning,
    /// Its bytes, which may end within a command.
    pub bytes: Bytes,
    /// Its marks.
    pub marks: Vec<Mark>,
    /// When the last of it had come.
    pub ended_at: Timestamp,
}

impl Spooled {
    /// The stretch up to its last whole command, and its bytes.
    #[must_use]
    pub fn stretch(self) -> (Stretch, Bytes) {
        let Spooled { beginning, bytes, mut marks, ended_at } = self;
        let Beginning { replid, first, db, in_transaction, follows, started_at, run } = beginning;
        let mut parser = Commands::resuming(first, db, in_transaction, Limits::default());
        let mut writes = 0_u64;
        let mut scan = Scan::begin(first, in_transaction, NOTED_KEYS, &marks, ended_at);
        let parsed = parser.push(&bytes, &mut |command| {
            scan.see(command);
            writes = writes.saturating_add(u64::from(command.kind == CommandKind::Other));
        });
        if let Err(error) = parsed {
            tracing::error!(%replid, %error, "the spooled stream is used up to there");
        }
        let notable = Some(scan.end());
        let last = parser.boundary();
        let len = usize::try_from(last.saturating_sub(first)).unwrap_or(0).min(bytes.len());
        marks.retain(|mark| mark.offset <= last);
        let stretch = Stretch {
            replid,
            first,
            last,
            db,
            in_transaction,
            db_after: parser.db(),
            in_transaction_after: parser.in_transaction(),
            follows,
            started_at,
            ended_at,
            writes,
            marks,
            run,
            notable,
        };
        (stretch, bytes.slice(..len))
    }
}

impl Spool {
    /// The spool of `instance` under `state_dir`; made if it isn't there.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn open(state_dir: &Path, instance: &Instance) -> Result<Spool, SpoolError> {
        let spool = Spool::at(state_dir, instance);
        durable::create_dir_all(&spool.dir, 0o700)?;
        Ok(spool)
    }

    /// Takes the spool for one receiver alone.
    ///
    /// # Errors
    /// [`SpoolError::InUse`] if there is another one.
    pub fn lock(&self) -> Result<Lock, SpoolError> {
        Lock::take(&self.dir)
    }

    /// The spool of `instance` under `state_dir`, for reading; `None` if there is none.
    #[must_use]
    pub fn existing(state_dir: &Path, instance: &Instance) -> Option<Spool> {
        Some(Spool::at(state_dir, instance)).filter(|spool| spool.dir.is_dir())
    }

    fn at(state_dir: &Path, instance: &Instance) -> Spool {
        let name = instance.name().to_string();
        Spool {
            dir: state_dir.join("spool").join(&name),
            instance: name,
            protection: Arc::clone(instance.archive().protection()),
        }
    }

    fn path(&self, (replid, first): Name) -> PathBuf {
        self.dir.join(format!("{replid}.{first:020}{SUFFIX}"))
    }

    fn binding(&self, (replid, first): Name, frame: u64) -> Binding {
        Binding::new(Kind::Commands, format!("spool/{}/{replid}/{first}/{frame}", self.instance))
    }

    /// All stretches of which something is spooled, by name.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn list(&self) -> Result<Vec<Name>, SpoolError> {
        let failed = |source| SpoolError::File { action: "list", path: self.dir.clone(), source };
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let name = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)?.split_once('.'));
            names.extend(name.and_then(|(replid, first)| Some((replid.parse().ok()?, first.parse().ok()?))));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// What is spooled under a name; `None` if nothing is, or not even its beginning.
    ///
    /// # Errors
    /// The file is there and can't be read.
    pub fn read(&self, name: Name) -> Result<Option<Spooled>, SpoolError> {
        let path = self.path(name);
        let mut file = match File::open(&path) {
            Ok(file) => io::BufReader::with_capacity(1 << 20, file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(SpoolError::File { action: "open", path, source }),
        };
        let mut spooled: Option<Spooled> = None;
        let mut bytes = BytesMut::new();
        for number in 0.. {
            let read = read_frame(&mut file).map_err(|source| SpoolError::File {
                action: "read",
                path: path.clone(),
                source,
            })?;
            let opened =
                read.and_then(|stored| seal::open(&stored, &self.binding(name, number), &self.protection, 1).ok());
            let Some(opened) = opened else { break };
            let Ok(frame) = serde_json::from_slice::<Frame>(&opened.metadata) else { break };
            match (&mut spooled, frame.beginning) {
                (None, Some(beginning)) => {
                    spooled = Some(Spooled { beginning, bytes: Bytes::new(), marks: frame.marks, ended_at: frame.at });
                }
                (Some(spooled), None) => {
                    bytes.extend_from_slice(&opened.plain);
                    spooled.marks.extend(frame.marks);
                    spooled.ended_at = frame.at;
                }
                _ => break,
            }
        }
        Ok(spooled.map(|spooled| Spooled { bytes: bytes.freeze(), ..spooled }))
    }

    /// Removes a file, if there is one. Not synced: should it come back after a power cut, its stretch is found in the repository.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn remove(&self, name: Name) -> Result<(), SpoolError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(SpoolError::File { action: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    /// Begins a stretch. A file of that name has nothing but a beginning, or was read before: it is made anew.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn begin(&self, beginning: Beginning) -> Result<Growing, SpoolError> {
        let name = (beginning.replid, beginning.first);
        let path = self.path(name);
        self.remove(name)?;
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = opened.map_err(|source| SpoolError::File { action: "create", path: path.clone(), source })?;
        durable::sync_dir(&self.dir)?;
        let at = beginning.started_at;
        let mut growing = Growing { spool: self.clone(), file, path, name, frames: 0 };
        growing.frame(&[], &Frame { beginning: Some(beginning), marks: Vec::new(), at })?;
        Ok(growing)
    }
}

/// The next frame's sealed bytes; `None` where the file ends or makes no sense.
fn read_frame(reader: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut stored = Vec::new();
    reader.take(4).read_to_end(&mut stored)?;
    let Ok(len) = <[u8; 4]>::try_from(stored.as_slice()) else { return Ok(None) };
    let len = u32::from_le_bytes(len);
    if len as usize > MAX_STORED {
        return Ok(None);
    }
    stored.clear();
    reader.take(u64::from(len)).read_to_end(&mut stored)?;
    Ok((stored.len() == len as usize).then_some(stored))
}

/// A stretch that grows.
#[derive(Debug)]
pub struct Growing {
    spool: Spool,
    file: File,
    path: PathBuf,
    name: Name,
    frames: u64,
}

impl Growing {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> Name {
        self.name
    }

    /// Appends bytes that had come by `at`, with marks among them. They are safe only after [`Growing::sync`].
    ///
    /// # Errors
    /// What the operating system said. The file may then end in half a frame, and nothing may be appended to it any more.
    pub fn append(&mut self, bytes: &[u8], marks: Vec<Mark>, at: Timestamp) -> Result<(), SpoolError> {
        let last = bytes.len().div_ceil(MAX_FRAME).saturating_sub(1);
        let mut marks = Some(marks);
        for (nth, piece) in bytes.chunks(MAX_FRAME).enumerate() {
            // Marks must not be read without the bytes before them.
            let marks = if nth == last { marks.take().unwrap_or_default() } else { Vec::new() };
            self.frame(piece, &Frame { beginning: None, marks, at })?;
        }
        Ok(())
    }

    fn frame(&mut self, bytes: &[u8], frame: &Frame) -> Result<(), SpoolError> {
        let failed = |source| SpoolError::File { action: "write", path: self.path.clone(), source };
        let metadata = serde_json::to_vec(frame).map_err(|error| failed(error.into()))?;
        let binding = self.spool.binding(self.name, self.frames);
        let spec = SealSpec { level: Level::Fixed(-5), metadata: &metadata, ..SealSpec::new(&binding) };
        let sealed = seal::seal(&[bytes], &spec, &self.spool.protection)?;
        let mut stored = Vec::with_capacity(usize::try_from(sealed.len).unwrap_or(0).saturating_add(4));
        stored.extend_from_slice(&u32::try_from(sealed.len).unwrap_or(u32::MAX).to_le_bytes());
        sealed.parts.iter().for_each(|part| stored.extend_from_slice(part));
        self.file.write_all(&stored).map_err(failed)?;
        self.frames = self.frames.saturating_add(1);
        Ok(())
    }

    /// Makes all that was appended survive a power cut.
    ///
    /// # Errors
    /// What the operating system said. Nobody knows then what is on the disk.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        self.file.sync_data().map_err(|source| SpoolError::File { action: "fsync", path: self.path.clone(), source })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use jiff::Timestamp;

    use super::{Beginning, Mark, Spool};
    use crate::resp::encode;
    use crate::seal::Protection;

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    fn spool(dir: &std::path::Path) -> Spool {
        Spool { dir: dir.to_owned(), instance: "cache".into(), protection: Arc::new(Protection::None) }
    }

    fn beginning(first: u64) -> Beginning {
        let replid = ID.parse().unwrap();
        let started_at = Timestamp::UNIX_EPOCH;
        Beginning { replid, first, db: 2, in_transaction: false, follows: None, started_at, run: None }
    }

    #[test]
    fn what_was_appended_is_read_up_to_its_last_whole_command() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let mut growing = spool.begin(beginning(100)).unwrap();
        let commands = [encode(&[b"SELECT", b"5"]), encode(&[b"SET", b"a", b"1"]), encode(&[b"PING"])].concat();
        let end = 100 + commands.len() as u64;
        let mark = Mark { offset: end, db: 5, time: Timestamp::UNIX_EPOCH };
        let late = Timestamp::from_second(9).unwrap();
        growing.append(&commands, vec![mark], Timestamp::UNIX_EPOCH).unwrap();
        growing.append(b"*1\r\n$4\r\nPI", vec![], late).unwrap();
        growing.sync().unwrap();
        assert_eq!(spool.list().unwrap(), [growing.name()]);
        let (stretch, bytes) = spool.read(growing.name()).unwrap().unwrap().stretch();
        assert_eq!(bytes, commands);
        assert_eq!((stretch.first, stretch.last, stretch.db, stretch.db_after), (100, end, 2, 5));
        assert_eq!((stretch.writes, stretch.marks, stretch.ended_at), (1, vec![mark], late));
        spool.remove(growing.name()).unwrap();
        assert!(spool.read(growing.name()).unwrap().is_none() && spool.list().unwrap().is_empty());
    }

    /// A crash may cut the file anywhere.
    #[test]
    fn after_any_cut_a_prefix_of_whole_frames_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let mut growing = spool.begin(beginning(0)).unwrap();
        let path = growing.path.clone();
        let mut ends = vec![(fs::metadata(&path).unwrap().len(), 0)];
        for n in 1..6_u64 {
            growing.append(&encode(&[b"PING"]), vec![], Timestamp::UNIX_EPOCH).unwrap();
            ends.push((fs::metadata(&path).unwrap().len(), 14 * n));
        }
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let expected = ends.iter().rev().find(|(end, _)| *end <= cut as u64).map(|(_, len)| *len);
            let read = spool.read(growing.name()).unwrap().map(|spooled| spooled.bytes.len() as u64);
            assert_eq!(read, expected, "cut at {cut}");
        }
        // Another stretch's file does not open under this name.
        let other = spool.begin(beginning(7)).unwrap();
        fs::copy(&other.path, &path).unwrap();
        assert!(spool.read(growing.name()).unwrap().is_none());
    }
}
