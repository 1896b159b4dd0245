//! The spool of commands: what has come and is in no repository yet, durable on this machine.
//!
//! One file a stretch, `<replication id>.<first offset, 20 digits>.commands` in `<state-dir>/spool/<instance>/`, which
//! grows at its end. Each append is one frame of a spool file (`vault::spool`), bound to instance, file and the frame's
//! number. The frame's metadata has its marks. The first frame, which has no bytes, has what the stretch begins with.
//!
//! What is read is always a prefix of what was appended and has all that was synced, unless the file is damaged. A
//! damaged file is never removed but set aside ([`Spool::recover`]). The bytes may end within a command:
//! [`SpooledStretch::into_stretch`] leaves that part out, and the server is asked for it again.
//!
//! All calls block.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::spooled_stretch::{SpooledStretch, StretchStart};
use super::stretch::{ArrivalMark, ReadDelays, StretchName};
use crate::base::clock::ClockMeasurement;
use crate::base::durable;
use crate::redis::archive::instance::Archive;
use crate::vault::seal::{OBJECT_END, SealedKind};
use crate::vault::spool::{
    FramePosition, GrowingFile, MAX_FRAME_PLAIN_BYTES, ScannedFrames, SetAsideFile, SpoolError, SpoolFolder,
    SpoolFormat, SpoolLock, SpoolProtection, SpoolRest, buffered, open_for_reading, remove_file, sync_left_file,
};

/// A frame has at most its plaintext, if that defies compression, with marks for each of its bytes' milliseconds.
static COMMANDS_FORMAT: SpoolFormat = SpoolFormat {
    kind: SealedKind::Commands,
    file_suffix: ".commands",
    max_stored_bytes: MAX_FRAME_PLAIN_BYTES + (4 << 20),
};

/// What is added to the name of a file that is to take the place of one.
const SHORTENED_FILE_SUFFIX: &str = "shorter";

#[derive(Serialize, Deserialize)]
struct StretchFrame {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    beginning: Option<StretchStart>,
    marks: Vec<ArrivalMark>,
    at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clock: Option<ClockMeasurement>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reading: Option<ReadDelays>,
}

/// One instance's spool.
#[derive(Clone, Debug)]
pub struct Spool {
    folder: SpoolFolder,
}

impl Spool {
    /// The receiver's spool of `instance` under `state_dir`. Its directory and its key are made if they do not exist.
    ///
    /// # Errors
    /// The directory can't be made, or the spool's key cannot be unwrapped.
    pub fn open(state_dir: &Path, instance: &Archive) -> Result<Spool, SpoolError> {
        let vault = instance.vault();
        let by = vault.key_encryption_key();
        let protection = SpoolProtection::provide(state_dir, by, vault.protection(), vault.clock().now())?;
        Ok(Spool { folder: Spool::folder(state_dir, instance, protection).create()? })
    }

    /// Takes the spool for one receiver alone.
    ///
    /// # Errors
    /// [`SpoolError::InUse`] if there is another one.
    pub fn lock(&self) -> Result<SpoolLock, SpoolError> {
        // With a state-dir of its own it would store the same stretches a second time.
        self.folder.lock("end it: one instance has one receiver, and another server a [redis.NAME] of its own")
    }

    /// The spool of `instance` under `state_dir`, for reading; `None` if there is certainly none. If this user may not
    /// look, that is an error of the first read: acknowledged commands may be there.
    #[must_use]
    pub fn open_existing(state_dir: &Path, instance: &Archive) -> Option<Spool> {
        let vault = instance.vault();
        let protection = SpoolProtection::read(state_dir, vault.key_encryption_key(), vault.protection());
        let folder = Spool::folder(state_dir, instance, protection);
        folder.may_exist().then_some(Spool { folder })
    }

    fn folder(state_dir: &Path, instance: &Archive, protection: SpoolProtection) -> SpoolFolder {
        SpoolFolder::in_state_dir(state_dir, &instance.name().to_string(), &COMMANDS_FORMAT, protection)
    }

    fn path(&self, name: StretchName) -> PathBuf {
        self.folder.path(&file_stem(name))
    }

    /// All stretches of which something is spooled, by name.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn list(&self) -> Result<Vec<StretchName>, SpoolError> {
        let mut names = self.folder.list(parse_file_stem)?;
        names.sort_unstable();
        Ok(names)
    }

    /// What is spooled under a name; `None` if nothing is, or not even its beginning. If the file is damaged, that is
    /// what precedes the damage.
    ///
    /// # Errors
    /// The file is there and can't be read, or the spool's key cannot be unwrapped.
    pub fn read(&self, name: StretchName) -> Result<Option<SpooledStretch>, SpoolError> {
        let (spooled, scanned) = self.scan(name)?;
        if let SpoolRest::Damaged(error) = scanned.rest {
            let path = self.path(name);
            tracing::warn!(file = %path.display(), %error, "a spool file is damaged; the stream before that is used");
        }
        Ok(spooled)
    }

    /// What opens of a file, from its beginning on, and what follows.
    fn scan(&self, name: StretchName) -> Result<(Option<SpooledStretch>, ScannedFrames), SpoolError> {
        let path = self.path(name);
        match open_for_reading(&path)? {
            Some(file) => self.read_frames(name, &path, &mut buffered(file)),
            None => Ok((None, ScannedFrames { end: 0, rest: SpoolRest::Nothing })),
        }
    }

    /// The same of any bytes.
    fn read_frames(
        &self,
        name: StretchName,
        path: &Path,
        file: &mut impl Read,
    ) -> Result<(Option<SpooledStretch>, ScannedFrames), SpoolError> {
        let mut spooled: Option<SpooledStretch> = None;
        let mut bytes = BytesMut::new();
        let place = |at: FramePosition| frame_place(name, at.number);
        let scanned = self.folder.frames().scan(path, file, place, |opened| {
            let Ok(frame) = serde_json::from_slice::<StretchFrame>(&opened.metadata) else { return false };
            match (&mut spooled, frame.beginning) {
                (None, Some(beginning)) => {
                    let StretchFrame { marks, at: ended_at, clock, reading, .. } = frame;
                    spooled = Some(SpooledStretch { beginning, bytes: Bytes::new(), marks, ended_at, clock, reading });
                }
                (Some(spooled), None) => {
                    bytes.extend_from_slice(&opened.plain);
                    spooled.marks.extend(frame.marks);
                    spooled.ended_at = frame.at;
                    spooled.clock = frame.clock.or(spooled.clock);
                    spooled.reading = frame.reading.or(spooled.reading.take());
                }
                _ => return false,
            }
            true
        })?;
        Ok((spooled.map(|spooled| SpooledStretch { bytes: bytes.freeze(), ..spooled }), scanned))
    }

    /// Removes a file of which all that opens is stored, or not worth it. A damaged file is set aside instead: its rest
    /// was acknowledged, and may be the only copy.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn discard(&self, name: StretchName) -> Result<(), SpoolError> {
        match self.scan(name)?.1.rest {
            SpoolRest::Nothing | SpoolRest::Torn => remove_file(&self.path(name)),
            SpoolRest::Damaged(error) => self.keep_aside(name, 0, &error),
        }
    }

    /// Keeps a file that cannot be read or synced under another name, so that it does not prevent others from being
    /// read. What opens of it is kept under its name too.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn set_aside(&self, name: StretchName, why: &SpoolError) -> Result<(), SpoolError> {
        let readable = self.scan(name).map_or(0, |(_, scanned)| scanned.end);
        self.keep_aside(name, readable, why)
    }

    fn keep_aside(&self, name: StretchName, readable: u64, error: &impl fmt::Display) -> Result<(), SpoolError> {
        let aside = self.folder.set_aside(&file_stem(name), readable)?;
        tracing::error!(
            file = %aside.display(), history = %name.replid, first = name.first, %error,
            "a spool file of acknowledged commands is damaged: it is kept under this name, what opens is used, and the \
             server is asked for the rest again; if a gap is recorded, take a snapshot. If the key is unknown, stop \
             the receiver, configure the repository with that key, and move the file back. Remove it when it is no \
             longer needed"
        );
        Ok(())
    }

    /// What is in the files that were set aside because they are damaged, by their names, and what to do.
    ///
    /// # Errors
    /// The directory can't be read.
    fn describe_set_aside(&self) -> Result<Vec<String>, SpoolError> {
        let describe = |SetAsideFile { path, stem }| {
            let what = parse_file_stem(&stem)
                .map_or("a part of the spool".to_owned(), |StretchName { replid, first }| {
                    format!("commands of history {replid} after offset {first}")
                });
            format!(
                "{} is a damaged spool file with {what}; if walkeep verify reports them as missing, take a snapshot; \
                 then remove the file",
                path.display()
            )
        };
        Ok(self.folder.list_set_aside()?.into_iter().map(describe).collect())
    }

    /// The same, or why it is not known, for a report.
    #[must_use]
    pub fn set_aside_report(&self) -> Vec<String> {
        self.describe_set_aside().unwrap_or_else(|error| vec![error.to_string()])
    }

    /// Takes the beginning of a transaction away from the end of a file to which nothing is appended any more: after a
    /// failover the stream goes on from before it, as a replica counts a transaction only when it is whole
    /// (`commandProcessed`, networking.c), and else the server sends it again. It stays if it began in an earlier file,
    /// or goes on in one that begins at `next`; and if there is no room to write the file anew.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn end_with_whole_transaction(&self, name: StretchName, next: Option<u64>) -> Result<(), SpoolError> {
        let (Some(spooled), ScannedFrames { rest: SpoolRest::Nothing | SpoolRest::Torn, .. }) = self.scan(name)? else {
            return Ok(());
        };
        let end = name.first.saturating_add(spooled.bytes.len() as u64);
        let Some(cut) = spooled.last_cut_offset().filter(|_| next.is_none_or(|next| next > end)) else { return Ok(()) };
        if let Err(error) = self.shorten(name, spooled, cut) {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(
                error,
                "a transaction stays open at the end of a spooled stretch; should the server fail over now, that is a \
                    gap"
            );
        }
        Ok(())
    }

    /// Replaces a file, which is not damaged, by one that ends at `cut`.
    fn shorten(&self, name: StretchName, spooled: SpooledStretch, cut: u64) -> Result<(), SpoolError> {
        let SpooledStretch { beginning, bytes, mut marks, ended_at, clock, reading } = spooled;
        let (path, whole) = (self.path(name), self.path(name).with_added_extension(SHORTENED_FILE_SUFFIX));
        marks.retain(|mark| mark.offset <= cut);
        let bytes = bytes.get(..usize::try_from(cut.saturating_sub(name.first)).unwrap_or(0)).unwrap_or_default();
        let begun = remove_file(&whole).and_then(|()| self.begin_at(beginning, whole.clone()));
        let written = begun.and_then(|mut growing| {
            (growing.clock, growing.reading) = (clock, reading);
            if !bytes.is_empty() {
                growing.append(bytes, marks, ended_at)?;
            }
            growing.sync()?;
            Ok(durable::rename(&whole, &path)?)
        });
        if written.is_err() {
            // It is made anew the next time, and read by nobody.
            drop(fs::remove_file(&whole));
        }
        written
    }

    /// Makes a file durable that another run may have left, or whose sync failed: what the disk did not take is no
    /// longer seen after that. A damaged file is set aside, with a copy of what opens in its place. Nothing if there is
    /// no such file.
    ///
    /// # Errors
    /// What the operating system said. Nobody knows then what is on the disk.
    pub fn recover(&self, name: StretchName) -> Result<(), SpoolError> {
        let path = self.path(name);
        let Some(file) = open_for_reading(&path)? else { return Ok(()) };
        sync_left_file(&file, &path)?;
        self.folder.sync()?;
        let (_, ScannedFrames { end, rest }) = self.scan(name)?;
        match rest {
            SpoolRest::Nothing | SpoolRest::Torn => Ok(()),
            SpoolRest::Damaged(error) => self.keep_aside(name, end, &error),
        }
    }

    /// Which file that is, and how long: another one, or one that grew, differs. `None` if there is none.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn extent(&self, name: StretchName) -> Result<Option<(u64, u64)>, SpoolError> {
        let path = self.path(name);
        match fs::metadata(&path) {
            Ok(metadata) => Ok(Some((metadata.ino(), metadata.len()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(SpoolError::Io { action: "look at", path, source }),
        }
    }

    /// Begins a stretch, of which there must be no file: the caller has discarded one that has nothing but a beginning.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn begin(&self, beginning: StretchStart) -> Result<UnfinishedStretch, SpoolError> {
        let path = self.path(beginning.name());
        self.begin_at(beginning, path)
    }

    fn begin_at(&self, beginning: StretchStart, path: PathBuf) -> Result<UnfinishedStretch, SpoolError> {
        let name = beginning.name();
        let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = opened.map_err(SpoolError::io("create", &path))?;
        self.folder.sync()?;
        let at = beginning.started_at;
        let file = GrowingFile::new(file, path, self.folder.clone());
        let mut growing = UnfinishedStretch { file, name, frames: 0, clock: None, reading: None };
        let marks = Vec::new();
        growing
            .append_frame(&[], &StretchFrame { beginning: Some(beginning), marks, at, clock: None, reading: None })?;
        Ok(growing)
    }
}

fn file_stem(StretchName { replid, first }: StretchName) -> String {
    format!("{replid}.{first:020}")
}

fn parse_file_stem(stem: &str) -> Option<StretchName> {
    let (replid, first) = stem.split_once('.')?;
    Some(StretchName { replid: replid.parse().ok()?, first: first.parse().ok()? })
}

/// What a frame is bound to, apart from the instance.
fn frame_place(StretchName { replid, first }: StretchName, number: u64) -> String {
    format!("{replid}/{first}/{number}")
}

/// A stretch that grows.
#[derive(Debug)]
pub struct UnfinishedStretch {
    file: GrowingFile,
    name: StretchName,
    frames: u64,
    clock: Option<ClockMeasurement>,
    reading: Option<ReadDelays>,
}

impl UnfinishedStretch {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> StretchName {
        self.name
    }

    /// What is known of the server's clock since the stretch began; it is said with what is appended next.
    pub fn set_clock(&mut self, clock: Option<ClockMeasurement>) {
        self.clock = clock;
    }

    /// How promptly the stretch was read so far; said likewise.
    pub fn set_read_delays(&mut self, reading: ReadDelays) {
        self.reading = Some(reading);
    }

    /// Appends bytes that had come by `at`, with marks among them. They are safe only after
    /// [`UnfinishedStretch::sync`].
    ///
    /// # Errors
    /// What the operating system said. The file may then end in half a frame, and nothing may be appended to it any
    /// more.
    pub fn append(&mut self, bytes: &[u8], marks: Vec<ArrivalMark>, at: Timestamp) -> Result<(), SpoolError> {
        let last = bytes.len().div_ceil(MAX_FRAME_PLAIN_BYTES).saturating_sub(1);
        let mut marks = Some(marks);
        for (nth, piece) in bytes.chunks(MAX_FRAME_PLAIN_BYTES).enumerate() {
            // Marks must not be read without the bytes before them.
            let marks = if nth == last { marks.take().unwrap_or_default() } else { Vec::new() };
            let (clock, reading) = (self.clock, self.reading.clone());
            self.append_frame(piece, &StretchFrame { beginning: None, marks, at, clock, reading })?;
        }
        Ok(())
    }

    fn append_frame(&mut self, bytes: &[u8], frame: &StretchFrame) -> Result<(), SpoolError> {
        let metadata =
            serde_json::to_vec(frame).map_err(|error| SpoolError::io("write", self.file.path())(error.into()))?;
        self.file.append(&frame_place(self.name, self.frames), bytes, &metadata)?;
        self.frames = self.frames.saturating_add(1);
        Ok(())
    }

    /// Makes all that was appended survive a power cut.
    ///
    /// # Errors
    /// What the operating system said. Nobody knows then what is on the disk.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        self.file.sync()
    }
}

/// The body of a fuzz target. The first byte chooses: the rest as a file, or as what is written into one. That is then
/// cut anywhere, as by a crash, and has room behind it that was never written, or one byte of it is changed.
///
/// Whatever is done, what is read is a prefix of what was written. A crash leaves every whole frame, and nothing that
/// is worth keeping; where a whole frame does not open, the file is kept.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some(([choice, at @ .., mask], rest)) = data.split_first_chunk::<4>() else { return };
    let protection = SpoolProtection::without_encryption();
    let spool = Spool { folder: SpoolFolder::new(PathBuf::new(), "fuzz", &COMMANDS_FORMAT, protection) };
    let (Ok(replid), first) = ("07".repeat(20).parse(), u64::from(*choice)) else { return };
    let name = StretchName { replid, first };
    let read = |mut file: &[u8]| match spool.read_frames(name, Path::new(""), &mut file) {
        Ok((found, ScannedFrames { rest, .. })) => (found, matches!(rest, SpoolRest::Damaged(_))),
        Err(_) => (None, true),
    };
    if choice & 1 == 0 {
        let kept = read(rest).0.map(SpooledStretch::into_stretch);
        assert!(kept.is_none_or(|(stretch, bytes)| stretch.last.saturating_sub(stretch.first) == bytes.len() as u64));
        return;
    }
    let (started_at, pieces) = (Timestamp::UNIX_EPOCH, rest.len().div_ceil(4).max(1));
    let beginning = StretchStart { first, ..StretchStart::new(replid, started_at) };
    let (mut file, mut ends, mut beginning) = (Vec::new(), Vec::new(), Some(beginning));
    for (number, piece) in std::iter::once(rest.get(..0).unwrap_or_default()).chain(rest.chunks(pieces)).enumerate() {
        let frame =
            StretchFrame { beginning: beginning.take(), marks: Vec::new(), at: started_at, clock: None, reading: None };
        let metadata = serde_json::to_vec(&frame).unwrap_or_default();
        file.extend(
            spool.folder.frames().seal(&frame_place(name, number as u64), piece, &metadata).unwrap_or_default(),
        );
        ends.push((file.len(), number.saturating_mul(pieces).min(rest.len())));
    }
    let at = usize::from(u16::from_le_bytes(*at)) % file.len().max(1);
    let opens = |len: usize| ends.iter().rev().find(|(end, _)| *end <= len).map(|(_, bytes)| *bytes);
    let (found, damaged, whole) = if choice & 2 == 0 {
        let whole = opens(at);
        file.truncate(at);
        file.resize(at.saturating_add(usize::from(*mask)), 0);
        let (found, damaged) = read(&file);
        // A frame may have the bytes that end one in what it holds; such a file is kept in vain.
        let harmless = mask == &0 && !rest.windows(OBJECT_END.len()).any(|window| window == OBJECT_END);
        assert!(!damaged || !harmless, "a file as a crash leaves it is not removed");
        (found, damaged, whole)
    } else {
        if let Some(byte) = file.get_mut(at) {
            *byte ^= mask;
        }
        let (found, damaged) = read(&file);
        (found, damaged, opens(file.len()))
    };
    let bytes = found.as_ref().map(|found| found.bytes.len());
    assert!(bytes >= whole || damaged, "{bytes:?} of {whole:?} bytes open, and the file is not kept");
    if let Some(found) = found {
        assert!(rest.starts_with(&found.bytes), "what is read was not written");
        let (stretch, bytes) = found.clone().into_stretch();
        assert!(found.bytes.starts_with(&bytes) && stretch.last == first.saturating_add(bytes.len() as u64));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use jiff::Timestamp;

    use super::{ArrivalMark, COMMANDS_FORMAT, Spool, SpoolFolder, StretchName, StretchStart};
    use crate::redis::format::resp::encode_command;
    use crate::vault::spool::SpoolProtection;

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    fn spool(dir: &std::path::Path) -> Spool {
        let protection = SpoolProtection::without_encryption();
        Spool { folder: SpoolFolder::new(dir.to_owned(), "cache", &COMMANDS_FORMAT, protection) }
    }

    fn beginning(first: u64) -> StretchStart {
        let replid = ID.parse().unwrap();
        StretchStart { first, db: 2, ..StretchStart::new(replid, Timestamp::UNIX_EPOCH) }
    }

    #[test]
    fn what_was_appended_is_read_up_to_its_last_whole_command() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let mut growing = spool.begin(beginning(100)).unwrap();
        let commands =
            [encode_command(&[b"SELECT", b"5"]), encode_command(&[b"SET", b"a", b"1"]), encode_command(&[b"PING"])]
                .concat();
        let end = 100 + commands.len() as u64;
        let mark = ArrivalMark { offset: end, db: 5, time: Timestamp::UNIX_EPOCH };
        let late = Timestamp::from_second(9).unwrap();
        growing.append(&commands, vec![mark], Timestamp::UNIX_EPOCH).unwrap();
        let offset = crate::base::clock::ClockOffset { low: -3, high: 5 };
        let clock = Some(crate::base::clock::ClockMeasurement::single(late, offset));
        growing.set_clock(clock);
        growing.append(b"*1\r\n$4\r\nPI", vec![], late).unwrap();
        growing.sync().unwrap();
        assert_eq!(spool.list().unwrap(), [growing.name()]);
        let (stretch, bytes) = spool.read(growing.name()).unwrap().unwrap().into_stretch();
        assert_eq!(bytes, commands);
        assert_eq!((stretch.first, stretch.last, stretch.db, stretch.db_after), (100, end, 2, 5));
        assert_eq!((stretch.writes, stretch.marks, stretch.ended_at, stretch.clock), (1, vec![mark], late, clock));
        spool.discard(growing.name()).unwrap();
        assert!(spool.read(growing.name()).unwrap().is_none() && spool.list().unwrap().is_empty());
    }

    /// A crash may cut the file anywhere.
    #[test]
    fn after_any_cut_a_prefix_of_whole_frames_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let mut growing = spool.begin(beginning(0)).unwrap();
        let path = growing.file.path().to_owned();
        let mut ends = vec![(fs::metadata(&path).unwrap().len(), 0)];
        for n in 1..6_u64 {
            growing.append(&encode_command(&[b"PING"]), vec![], Timestamp::UNIX_EPOCH).unwrap();
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
        fs::copy(other.file.path(), &path).unwrap();
        assert!(spool.read(growing.name()).unwrap().is_none());
    }

    /// A replica that becomes the master counts no part of a transaction.
    #[test]
    fn a_transaction_that_is_open_at_the_end_is_taken_away() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let (before, after) = (encode_command(&[b"SET", b"a", b"1"]), encode_command(&[b"SET", b"b", b"2"]));
        let open = [encode_command(&[b"MULTI"]), encode_command(&[b"INCR", b"a"])].concat();
        let closed = [open.clone(), encode_command(&[b"EXEC"])].concat();
        let end = 100 + before.len() as u64;
        let half = &after[..after.len() - 3];
        for (bytes, in_transaction, next, left) in [
            ([&before[..], &open].concat(), false, None, before.len()),
            ([&before[..], &open, half].concat(), false, None, before.len()),
            (open.clone(), false, None, 0),
            // Nothing is open, or it began before.
            ([&before[..], &closed, half].concat(), false, None, before.len() + closed.len()),
            (after.clone(), true, None, after.len()),
            // Another file goes on within it.
            ([&before[..], &open].concat(), false, Some(end + open.len() as u64), before.len() + open.len()),
        ] {
            spool.discard(StretchName { replid: beginning(100).replid, first: 100 }).unwrap();
            let mut growing = spool.begin(StretchStart { in_transaction, ..beginning(100) }).unwrap();
            let mark = |offset| ArrivalMark { offset, db: 2, time: Timestamp::UNIX_EPOCH };
            growing.append(&bytes, vec![mark(100), mark(end)], Timestamp::from_second(5).unwrap()).unwrap();
            spool.end_with_whole_transaction(growing.name(), next).unwrap();
            let (stretch, its) = spool.read(growing.name()).unwrap().unwrap().into_stretch();
            assert_eq!((its.len(), &its[..]), (left, &bytes[..left]));
            let empty = left == 0;
            assert_eq!(
                stretch.marks,
                if empty {
                    vec![]
                } else {
                    [mark(100), mark(end)].into_iter().filter(|mark| mark.offset <= stretch.last).collect()
                }
            );
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
    }

    /// Only what a crash leaves goes with the file.
    #[test]
    fn what_the_disk_has_changed_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let mut growing = spool.begin(beginning(0)).unwrap();
        let (name, path) = (growing.name(), growing.file.path().to_owned());
        for _ in 0..3 {
            growing.append(&encode_command(&[b"PING"]), vec![], Timestamp::UNIX_EPOCH).unwrap();
        }
        let whole = fs::read(&path).unwrap();
        let aside = dir.path().join("set-aside").join(path.file_name().unwrap()).with_added_extension("1");
        let kept = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            spool.discard(name).unwrap();
            assert!(!path.exists() && spool.list().unwrap().is_empty());
            let kept = fs::read(&aside).ok();
            fs::remove_file(&aside).ok();
            kept
        };
        assert_eq!(kept(&whole), None);
        for cut in 0..whole.len() {
            assert_eq!(kept(&whole[..cut]), None, "cut at {cut}");
        }
        assert_eq!(kept(&[&whole[..], &[0; 5000]].concat()), None, "room that was never written");
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            assert!(kept(&changed).is_some_and(|kept| kept == changed), "{at} of {}", whole.len());
        }
        spool.discard(name).unwrap();
    }
}
