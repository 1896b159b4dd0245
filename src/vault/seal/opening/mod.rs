//! Opening: the bytes of an object in, plaintext out, or a reason why not.

pub(super) mod fuzz;

use std::fmt;
use std::ops::Range;

use bytes::Bytes;

use super::binding::{ObjectBinding, SealedKind};
use super::cipher::{ObjectCipher, SealedPart};
use super::compress::decompress_from;
use super::content_hash;
use super::fault::{ObjectPart, OpenError, OpenFault};
use super::frame_table::{
    FOOTER_BYTES, FRAME_ENTRY_BYTES, FrameEntry, HEADER_BYTES, MAX_TRAILER_BYTES, ObjectFooter, ObjectHeader,
    StoredLen, array,
};
use super::keys::{EpochKeyId, ObjectEncryption};
use crate::base::scoped_threads;

/// An opened object.
#[derive(Clone, Debug)]
pub struct OpenedObject {
    /// What was sealed.
    pub plain: Bytes,
    /// What the object says about itself.
    pub metadata: Vec<u8>,
    /// The plaintext's BLAKE3, verified; zero if it was left out.
    pub content: [u8; 32],
}

/// Opens an object as a whole, on up to `threads` threads.
///
/// Allocates the plaintext, at most [`SealedKind::max_len`], and about two frames a thread. Where the repository is
/// encrypted, nothing of that size is allocated before the trailer, and with it every length, has proved authentic.
///
/// # Errors
/// [`OpenError`], with the part that is at fault.
pub fn open_object(
    object: &[u8],
    binding: &ObjectBinding,
    protection: &ObjectEncryption,
    threads: usize,
) -> Result<OpenedObject, OpenError> {
    let name = |fault| OpenError { binding: binding.clone(), fault };
    let header = ObjectHeader::parse(object).map_err(name)?;
    let trailer = match read_trailer(object, object.len() as u64, binding, protection)? {
        SuffixOutcome::Ready(trailer) => trailer,
        SuffixOutcome::NeedMore(_) => return Err(name(OpenFault::NoEnd)),
    };
    // Equal as bytes, too: every bit of a header is checked when it is read.
    if header != trailer.header {
        return Err(name(OpenFault::Damaged(ObjectPart::Header)));
    }
    let frames = trailer.range(trailer.stored_range(0..trailer.plain_len), object)?;
    let plain = trailer.open_frames(0..trailer.frames.len(), frames, threads, true)?;
    Ok(OpenedObject { plain, content: trailer.content, metadata: trailer.metadata })
}

/// What the end of an object gave.
#[derive(Debug)]
pub enum SuffixOutcome {
    /// The trailer.
    Ready(Box<Trailer>),
    /// That was too little: read so many bytes from the end, and ask again.
    NeedMore(u64),
}

/// The end of an object, opened: what the object says about itself, and how to read any part of it.
pub struct Trailer {
    binding: ObjectBinding,
    header: ObjectHeader,
    frames: Vec<FrameEntry>,
    plain_len: u64,
    content: [u8; 32],
    metadata: Vec<u8>,
    cipher: ObjectCipher,
    context: [u8; 32],
}

impl fmt::Debug for Trailer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Trailer { binding, header, frames, plain_len, metadata, cipher, .. } = self;
        write!(f, "Trailer({binding}, {cipher:?}, key {:?}, ", header.key)?;
        write!(f, "{plain_len} bytes in {} frames, {} of metadata)", frames.len(), metadata.len())
    }
}

/// Opens the trailer of an object of `object_len` bytes from the last of them. Any number may be tried; too few are
/// answered with how many it takes.
///
/// # Errors
/// [`OpenError`].
pub fn read_trailer(
    suffix: &[u8],
    object_len: u64,
    binding: &ObjectBinding,
    protection: &ObjectEncryption,
) -> Result<SuffixOutcome, OpenError> {
    let name = |fault| OpenError { binding: binding.clone(), fault };
    if object_len < (HEADER_BYTES + FOOTER_BYTES) as u64 {
        return Err(name(OpenFault::NoEnd));
    }
    let Some(foot) = suffix.len().checked_sub(FOOTER_BYTES).and_then(|at| suffix.get(at..)) else {
        return Ok(SuffixOutcome::NeedMore(FOOTER_BYTES as u64));
    };
    let footer = ObjectFooter::parse(foot, object_len).map_err(name)?;
    let tail_len = footer.tail_len();
    let Some(tail) = usize::try_from(tail_len)
        .ok()
        .and_then(|len| suffix.len().checked_sub(len))
        .and_then(|at| suffix.get(at..suffix.len().saturating_sub(FOOTER_BYTES)))
    else {
        return Ok(SuffixOutcome::NeedMore(tail_len));
    };
    let cipher = object_cipher(&footer.header, binding, protection).map_err(name)?;
    let trailer = open_trailer(&footer, tail, object_len, binding, cipher).map_err(name)?;
    Ok(SuffixOutcome::Ready(Box::new(trailer)))
}

fn object_cipher(
    header: &ObjectHeader,
    binding: &ObjectBinding,
    protection: &ObjectEncryption,
) -> Result<ObjectCipher, OpenFault> {
    if header.kind != binding.kind() {
        return Err(OpenFault::WrongKind(header.kind));
    }
    match (protection, header.encrypted) {
        (ObjectEncryption::Encrypted(ring), true) => {
            let key = ring.get(header.key).ok_or(OpenFault::UnknownKey(header.key))?;
            Ok(ObjectCipher::for_object(key.secret(), &header.salt))
        }
        (ObjectEncryption::None, false) => Ok(ObjectCipher::Clear),
        (ObjectEncryption::Encrypted(_), false) => Err(OpenFault::NotEncrypted),
        (ObjectEncryption::None, true) => Err(OpenFault::Encrypted),
    }
}

/// `tail` is frame table and trailer.
fn open_trailer(
    footer: &ObjectFooter,
    tail: &[u8],
    object_len: u64,
    binding: &ObjectBinding,
    cipher: ObjectCipher,
) -> Result<Trailer, OpenFault> {
    let damaged = OpenFault::Damaged(ObjectPart::Trailer);
    if crc32fast::hash(tail) != footer.crc {
        return Err(damaged);
    }
    let (table, sealed) = tail.split_at_checked(footer.frames as usize * FRAME_ENTRY_BYTES).ok_or(damaged)?;
    let context = footer.header.authenticated_context(binding);
    let associated = footer.associated(&context, table);
    let mut plain = vec![0; footer.trailer_plain as usize];
    let part =
        StoredPart { sealed: SealedPart::Trailer, part: ObjectPart::Trailer, stored: footer.trailer, bytes: sealed };
    open_part(&cipher, part, &associated, &mut plain)?;
    let frames = footer.frames(table, object_len)?;
    let content = array(&plain, 0).ok_or(damaged)?;
    let metadata = plain.split_off(32);
    let (header, plain_len) = (footer.header.clone(), footer.plain_len);
    Ok(Trailer { binding: binding.clone(), header, frames, plain_len, content, metadata, cipher, context })
}

/// One part of an object, as it is stored.
struct StoredPart<'b> {
    /// Its place in the order of nonces.
    sealed: SealedPart,
    /// Its name in an error.
    part: ObjectPart,
    stored: StoredLen,
    bytes: &'b [u8],
}

/// Decrypts and decompresses one part into `plain`, which has exactly its length.
fn open_part(
    cipher: &ObjectCipher,
    StoredPart { sealed, part, stored, bytes }: StoredPart<'_>,
    associated: &[u8],
    plain: &mut [u8],
) -> Result<(), OpenFault> {
    let decrypt =
        |to: &mut [u8]| cipher.open(sealed, associated, bytes, to).map_err(|_tag| OpenFault::NotAuthentic(part));
    if !stored.compressed {
        return decrypt(plain);
    }
    let len = bytes.len().checked_sub(cipher.overhead_bytes(sealed)).ok_or(OpenFault::Damaged(part))?;
    if decompress_from(len, plain, decrypt)? { Ok(()) } else { Err(OpenFault::Damaged(part)) }
}

impl Trailer {
    /// What the object is.
    #[must_use]
    pub const fn kind(&self) -> SealedKind {
        self.header.kind
    }

    /// The epoch key it is encrypted under; [`EpochKeyId::NONE`] if it is not.
    #[must_use]
    pub const fn key(&self) -> EpochKeyId {
        self.header.key
    }

    /// How many bytes were sealed.
    #[must_use]
    pub const fn plain_len(&self) -> u64 {
        self.plain_len
    }

    /// The BLAKE3 of what was sealed; zero if it was left out ([`super::SealSpec::content`]).
    #[must_use]
    pub const fn content(&self) -> &[u8; 32] {
        &self.content
    }

    /// What the object says about itself.
    #[must_use]
    pub fn metadata(&self) -> &[u8] {
        &self.metadata
    }

    /// Which of the object's bytes have to be read for this range of the plaintext, so that [`Trailer::open_range`] can
    /// open it. Empty for an empty range.
    #[must_use]
    pub fn stored_range(&self, plain: Range<u64>) -> Range<u64> {
        let frames = self.frames.get(self.frames_covering(&plain)).unwrap_or_default();
        match (frames.first(), frames.last()) {
            (Some(first), Some(last)) => first.offset..last.range().end,
            _ => HEADER_BYTES as u64..HEADER_BYTES as u64,
        }
    }

    /// This range of the plaintext, from the bytes of the object that [`Trailer::stored_range`] named for it.
    ///
    /// # Errors
    /// [`OpenError`], also if the range goes beyond the plaintext.
    pub fn open_range(&self, plain: Range<u64>, stored: &[u8], threads: usize) -> Result<Bytes, OpenError> {
        if plain.start > plain.end || plain.end > self.plain_len {
            return Err(self.error(OpenFault::OutOfRange { plain_len: self.plain_len }));
        }
        let frames = self.frames_covering(&plain);
        let skipped = (frames.start as u64).saturating_mul(u64::from(self.header.frame_size));
        let opened = self.open_frames(frames, stored, threads, false)?;
        let at = |position: u64| usize::try_from(position.saturating_sub(skipped)).unwrap_or(usize::MAX);
        let wanted = at(plain.start).min(opened.len())..at(plain.end).min(opened.len());
        Ok(opened.slice(wanted))
    }

    fn frames_covering(&self, plain: &Range<u64>) -> Range<usize> {
        let size = u64::from(self.header.frame_size);
        let bound = |frame: u64| usize::try_from(frame).unwrap_or(usize::MAX).min(self.frames.len());
        if plain.start >= plain.end {
            return 0..0;
        }
        bound(plain.start / size)..bound(plain.end.div_ceil(size))
    }

    fn error(&self, fault: OpenFault) -> OpenError {
        OpenError { binding: self.binding.clone(), fault }
    }

    /// Bytes `range` of the whole object.
    fn range<'a>(&self, range: Range<u64>, object: &'a [u8]) -> Result<&'a [u8], OpenError> {
        let bounds = usize::try_from(range.start).ok().zip(usize::try_from(range.end).ok());
        bounds.and_then(|(start, end)| object.get(start..end)).ok_or_else(|| self.error(OpenFault::NoEnd))
    }

    /// Opens these frames from their stored bytes, side by side; verifies the content's hash if they are `all`.
    fn open_frames(&self, which: Range<usize>, stored: &[u8], threads: usize, all: bool) -> Result<Bytes, OpenError> {
        let first = which.start;
        let frames = self.frames.get(which).unwrap_or_default();
        let base = frames.first().map_or(0, |frame| frame.offset);
        let len: u64 = frames.iter().map(|frame| u64::from(frame.plain_len)).sum();
        let stored_len: u64 = frames.iter().map(|frame| u64::from(frame.stored.len)).sum();
        if stored.len() as u64 != stored_len {
            return Err(self.error(OpenFault::NoEnd));
        }
        // Zero if it was left out, as only an encrypted object may.
        let hashed = all && (self.content != [0; 32] || !self.header.encrypted);
        let mut plain = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        let slots = plain.chunks_mut(self.header.frame_size as usize).zip(frames).enumerate();
        let values = scoped_threads::map_on_threads(slots, threads, |(index, (slot, frame))| {
            let at = |position: u64| usize::try_from(position.saturating_sub(base)).unwrap_or(usize::MAX);
            let bytes = stored.get(at(frame.range().start)..at(frame.range().end)).unwrap_or_default();
            self.open_frame(first.saturating_add(index) as u64, frame, bytes, slot)?;
            Ok(match (hashed, frames.len()) {
                (true, 2..) => content_hash::subtree_hash(
                    &[slot],
                    (index as u64).saturating_mul(u64::from(self.header.frame_size)),
                ),
                _ => [0; 32],
            })
        })
        .map_err(|fault| self.error(fault))?;
        if hashed {
            let content = match values.len() {
                0 | 1 => *blake3::hash(&plain).as_bytes(),
                _ => content_hash::root_hash(&values, len, self.header.frame_size),
            };
            if content != self.content {
                return Err(self.error(OpenFault::Damaged(ObjectPart::Whole)));
            }
        }
        Ok(plain.into())
    }

    fn open_frame(&self, number: u64, frame: &FrameEntry, bytes: &[u8], plain: &mut [u8]) -> Result<(), OpenFault> {
        if crc32fast::hash(bytes) != frame.crc {
            return Err(OpenFault::Damaged(ObjectPart::Frame(number)));
        }
        let associated = frame.associated(&self.context, number);
        let part = StoredPart {
            sealed: SealedPart::Frame(number),
            part: ObjectPart::Frame(number),
            stored: frame.stored,
            bytes,
        };
        open_part(&self.cipher, part, &associated, plain)
    }
}

/// What [`check_without_key`] saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CheckedObject {
    /// What the object says it is.
    pub kind: SealedKind,
    /// The epoch key it says it is encrypted under; [`EpochKeyId::NONE`] if none.
    pub key: EpochKeyId,
    /// How many bytes it says were sealed.
    pub plain_len: u64,
}

/// Looks for rot without any key: checksums and lengths. Says nothing about who wrote the object, or under which name.
///
/// # Errors
/// The [`OpenFault`], with the part that is damaged.
pub fn check_without_key(object: &[u8]) -> Result<CheckedObject, OpenFault> {
    let header = ObjectHeader::parse(object)?;
    let foot = object.len().checked_sub(FOOTER_BYTES).filter(|at| *at >= HEADER_BYTES).ok_or(OpenFault::NoEnd)?;
    let footer = ObjectFooter::parse(object.get(foot..).unwrap_or_default(), object.len() as u64)?;
    if footer.header != header {
        return Err(OpenFault::Damaged(ObjectPart::Header));
    }
    let tail = usize::try_from(footer.tail_len()).ok().and_then(|len| object.len().checked_sub(len));
    let tail = tail.and_then(|at| object.get(at..foot)).ok_or(OpenFault::NoEnd)?;
    if crc32fast::hash(tail) != footer.crc {
        return Err(OpenFault::Damaged(ObjectPart::Trailer));
    }
    let table = tail.get(..footer.frames as usize * FRAME_ENTRY_BYTES).ok_or(OpenFault::NoEnd)?;
    for (number, frame) in footer.frames(table, object.len() as u64)?.iter().enumerate() {
        let bounds = usize::try_from(frame.range().start).ok().zip(usize::try_from(frame.range().end).ok());
        let bytes = bounds.and_then(|(start, end)| object.get(start..end)).ok_or(OpenFault::NoEnd)?;
        if crc32fast::hash(bytes) != frame.crc {
            return Err(OpenFault::Damaged(ObjectPart::Frame(number as u64)));
        }
    }
    Ok(CheckedObject { kind: header.kind, key: header.key, plain_len: footer.plain_len })
}

const _: () = assert!(MAX_TRAILER_BYTES < 1 << 31, "trailer lengths have 31 bits");
