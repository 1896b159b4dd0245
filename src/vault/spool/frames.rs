//! The frames of a spool file: sealing one, and reading all of them up to the first that does not open.
//!
//! What follows the last frame that opens is nothing, torn or damaged ([`SpoolRest`]). It is torn only if a crash while
//! a frame was appended can have left it: the file ends before the frame does, or has only zeros from there on, or
//! zeros in a sector that a file system had not written yet. Everything else is damage: an unknown key, a changed bit, a
//! length that is none, bytes after the end of a frame that does not open. A doubtful case is damage, because damage is
//! kept and a torn frame is not.

use std::fmt;
use std::io::{self, Read};
use std::path::Path;

use super::error::SpoolError;
use super::keys::SpoolProtection;
use crate::vault::seal::{
    self, CompressionLevel, EpochKeyId, OBJECT_END, ObjectBinding, ObjectPart, OpenFault, OpenedObject, SealSpec,
    SealedKind,
};

/// The most plaintext in one frame: bounds what a reader must hold beside all that it has read.
pub(crate) const MAX_FRAME_PLAIN_BYTES: usize = 4 << 20;

/// The smallest unit that a disk writes as a whole. A power cut leaves each of them written or not.
const SECTOR_BYTES: usize = 512;

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

/// How far the frames of a file open.
#[derive(Debug)]
pub(crate) struct ScannedFrames {
    /// The position in the file where the frames that opened and were accepted end.
    pub(crate) end: u64,
    /// What follows them.
    pub(crate) rest: SpoolRest,
}

/// What follows the last frame that opens.
#[derive(Debug)]
pub(crate) enum SpoolRest {
    /// The end of the file.
    Nothing,
    /// An incomplete frame as a crash leaves it, or space that was never written.
    Torn,
    /// Something that was written and cannot be read.
    Damaged(FrameDamage),
}

/// Why a spool file does not open to its end.
#[derive(Debug, thiserror::Error)]
#[error("the frame at byte {at} {fault}")]
pub(crate) struct FrameDamage {
    at: u64,
    fault: FrameFault,
}

#[derive(Debug)]
enum FrameFault {
    Length(u32),
    UnknownKey(EpochKeyId),
    Part(ObjectPart),
    Other(OpenFault),
    NotNext,
    Unreadable(io::Error),
}

impl fmt::Display for FrameFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FrameFault::Length(len) => write!(f, "has no end at its length, {len}"),
            FrameFault::UnknownKey(key) => {
                write!(f, "is sealed with key {key}, which neither this state-dir nor a configured repository has")
            }
            FrameFault::Part(part) => write!(f, "does not open: its {part} is damaged"),
            FrameFault::Other(fault) => write!(f, "does not open: {fault}"),
            FrameFault::NotNext => f.write_str("opens, but does not continue the file"),
            FrameFault::Unreadable(error) => write!(f, "cannot be read from the disk: {error}"),
        }
    }
}

impl From<OpenFault> for FrameFault {
    fn from(fault: OpenFault) -> FrameFault {
        match fault {
            OpenFault::UnknownKey(key) => FrameFault::UnknownKey(key),
            OpenFault::Damaged(part) => FrameFault::Part(part),
            OpenFault::NotSealed
            | OpenFault::Newer(_)
            | OpenFault::NoEnd
            | OpenFault::NotAuthentic(_)
            | OpenFault::WrongKind(_)
            | OpenFault::Encrypted
            | OpenFault::NotEncrypted
            | OpenFault::TooLarge { .. }
            | OpenFault::OutOfRange { .. } => FrameFault::Other(fault),
        }
    }
}

/// The next thing in a file.
enum NextFrame {
    /// A frame that opened, and how many bytes it has in the file.
    Opened(OpenedObject, u64),
    End(SpoolRest),
}

/// The frames of the files of one archive.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FrameFormat<'f> {
    pub(super) archive: &'f str,
    pub(super) format: &'static SpoolFormat,
    pub(super) protection: &'f SpoolProtection,
}

impl FrameFormat<'_> {
    fn binding(&self, place: &str) -> ObjectBinding {
        ObjectBinding::new(self.format.kind, format!("spool/{}/{place}", self.archive))
    }

    /// A frame as it is in the file, with its length.
    pub(crate) fn seal(&self, place: &str, plain: &[u8], metadata: &[u8]) -> Result<Vec<u8>, SpoolError> {
        let binding = self.binding(place);
        let spec = SealSpec { level: CompressionLevel::Fixed(-5), metadata, ..SealSpec::new(&binding) };
        let sealed = seal::seal_object(&[plain], &spec, &self.protection.encryption)?;
        let limit = self.format.max_stored_bytes;
        assert!(sealed.len <= limit as u64, "a frame of {} bytes, and {limit} at most can be read back", sealed.len);
        let mut stored = Vec::with_capacity(usize::try_from(sealed.len).unwrap_or(0).saturating_add(4));
        stored.extend_from_slice(&u32::try_from(sealed.len).unwrap_or(u32::MAX).to_le_bytes());
        sealed.parts.iter().for_each(|part| stored.extend_from_slice(part));
        Ok(stored)
    }

    /// Reads frames from the beginning of a file until one does not open in its `place`, or is not accepted.
    ///
    /// # Errors
    /// The error of the operating system, unless it is the disk that cannot read the file. [`SpoolError::Key`] if a
    /// frame needs a key of the spool that cannot be unwrapped.
    pub(crate) fn scan(
        &self,
        path: &Path,
        reader: &mut impl Read,
        place: impl Fn(FramePosition) -> String,
        mut accept: impl FnMut(&OpenedObject) -> bool,
    ) -> Result<ScannedFrames, SpoolError> {
        let (mut at, mut end) = (FramePosition { number: 0, plain_offset: 0 }, 0_u64);
        let rest = loop {
            match self.next_frame(path, reader, &place(at), end)? {
                NextFrame::Opened(frame, stored) if accept(&frame) => {
                    at.number = at.number.saturating_add(1);
                    at.plain_offset = at.plain_offset.saturating_add(frame.plain.len() as u64);
                    end = end.saturating_add(stored);
                }
                NextFrame::Opened(..) => break SpoolRest::Damaged(FrameDamage { at: end, fault: FrameFault::NotNext }),
                NextFrame::End(rest) => break rest,
            }
        };
        Ok(ScannedFrames { end, rest })
    }

    fn next_frame(&self, path: &Path, reader: &mut impl Read, place: &str, at: u64) -> Result<NextFrame, SpoolError> {
        match self.try_next_frame(reader, place, at) {
            // A bad sector. Other errors are not the file's.
            Err(TryNextError::Io(error)) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                let fault = FrameFault::Unreadable(error);
                Ok(NextFrame::End(SpoolRest::Damaged(FrameDamage { at, fault })))
            }
            Err(TryNextError::Io(error)) => Err(SpoolError::io("read", path)(error)),
            Err(TryNextError::Spool(error)) => Err(error),
            Ok(next) => Ok(next),
        }
    }

    fn try_next_frame(&self, reader: &mut impl Read, place: &str, at: u64) -> Result<NextFrame, TryNextError> {
        let damaged = |fault| NextFrame::End(SpoolRest::Damaged(FrameDamage { at, fault }));
        let torn = || NextFrame::End(SpoolRest::Torn);
        let mut stored = Vec::new();
        reader.take(4).read_to_end(&mut stored)?;
        let Ok(len) = <[u8; 4]>::try_from(stored.as_slice()) else {
            return Ok(NextFrame::End(if stored.is_empty() { SpoolRest::Nothing } else { SpoolRest::Torn }));
        };
        let len = u32::from_le_bytes(len);
        if len == 0 || len as usize > self.format.max_stored_bytes {
            let unwritten = len == 0 && is_zero_to_end(reader)?;
            return Ok(if unwritten { torn() } else { damaged(FrameFault::Length(len)) });
        }
        stored.clear();
        reader.take(u64::from(len)).read_to_end(&mut stored)?;
        if stored.len() < len as usize {
            // A length that has changed makes a frame seem cut as well, but then its end is there.
            let ended = stored.windows(OBJECT_END.len()).any(|window| window == OBJECT_END);
            return Ok(if ended { damaged(FrameFault::Length(len)) } else { torn() });
        }
        let fault = match seal::open_object(&stored, &self.binding(place), &self.protection.encryption, 1) {
            Ok(frame) => return Ok(NextFrame::Opened(frame, u64::from(len).saturating_add(4))),
            Err(error) => error.fault,
        };
        if let (OpenFault::UnknownKey(_) | OpenFault::Encrypted, Some(missing)) = (fault, &self.protection.missing) {
            return Err(TryNextError::Spool(SpoolError::Key(std::sync::Arc::clone(missing))));
        }
        let unwritten = stored.ends_with(&[0; OBJECT_END.len()]) || has_unwritten_sector(&stored, at.saturating_add(4));
        let torn_last = unwritten && is_zero_to_end(reader)?;
        Ok(if torn_last { torn() } else { damaged(fault.into()) })
    }
}

enum TryNextError {
    Io(io::Error),
    Spool(SpoolError),
}

impl From<io::Error> for TryNextError {
    fn from(error: io::Error) -> TryNextError {
        TryNextError::Io(error)
    }
}

/// Whether one of a frame's sectors, the first apart, has only zeros. Sealed bytes have no such runs; a file whose
/// length reached the disk before its content does. `start` is the position of the bytes in the file.
fn has_unwritten_sector(stored: &[u8], start: u64) -> bool {
    let before = start.next_multiple_of(SECTOR_BYTES as u64).saturating_sub(start);
    let sectors = usize::try_from(before).ok().and_then(|before| stored.get(before..)).unwrap_or_default();
    // Less than an end mark at the end of the frame may be a single byte that has changed.
    let mut sectors = sectors.chunks(SECTOR_BYTES).filter(|sector| sector.len() >= OBJECT_END.len());
    sectors.any(|sector| sector.iter().all(|byte| *byte == 0))
}

fn is_zero_to_end(reader: &mut impl Read) -> io::Result<bool> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = match reader.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read?,
        };
        if read == 0 {
            return Ok(true);
        }
        if buffer.iter().take(read).any(|byte| *byte != 0) {
            return Ok(false);
        }
    }
}
