//! Sealing: plaintext in, the bytes of an object out.

use std::borrow::Cow;
use std::io;

use bytes::Bytes;

use super::binding::ObjectBinding;
use super::cipher::{ObjectCipher, SealedPart, TagMismatchError};
use super::compress::{CompressionLevel, with_compressed};
use super::frame_table::{
    FrameEntry, MAX_FRAME_BYTES, MAX_TRAILER_BYTES, MIN_FRAME_BYTES, ObjectFooter, ObjectHeader, StoredLen,
    frame_count, frame_len,
};
use super::keys::{EpochKeyId, ObjectEncryption, RandomnessError, random_bytes};
use super::{content_hash, frame_table};
use crate::base::scoped_threads;

/// How to seal one object.
#[derive(Clone, Copy, Debug)]
pub struct SealSpec<'a> {
    /// What it is, and its name.
    pub binding: &'a ObjectBinding,
    /// How hard to compress.
    pub level: CompressionLevel,
    /// Plaintext bytes a frame: a power of two from [`MIN_FRAME_BYTES`] to [`MAX_FRAME_BYTES`]. Smaller frames read
    /// faster at random and compress worse: 3 % worse at 1 MiB than in one piece, on WAL.
    pub frame_size: u32,
    /// What the object says about itself; readable from the trailer alone.
    pub metadata: &'a [u8],
    /// How many threads may work on it at once, with the caller's.
    pub threads: usize,
    /// Whether to record the BLAKE3 of the plaintext, by which two objects are compared. Where it is left out the tags
    /// of an encrypted object say as much about its integrity; an object that is not encrypted has it always.
    pub content: bool,
}

impl<'a> SealSpec<'a> {
    /// The usual frame, 1 MiB.
    pub const DEFAULT_FRAME_BYTES: u32 = 1 << 20;

    /// The usual: level [`CompressionLevel::Auto`], frames of 1 MiB, no metadata, the calling thread alone.
    #[must_use]
    pub const fn new(binding: &'a ObjectBinding) -> SealSpec<'a> {
        SealSpec {
            binding,
            level: CompressionLevel::Auto,
            frame_size: SealSpec::DEFAULT_FRAME_BYTES,
            metadata: &[],
            threads: 1,
            content: true,
        }
    }
}

/// An object, ready to be put.
#[derive(Clone, Debug)]
pub struct SealedObject {
    /// Its bytes, in parts: never put together, as a store takes parts as well.
    pub parts: Vec<Bytes>,
    /// How many bytes that is.
    pub len: u64,
    /// How many bytes of plaintext it holds.
    pub plain_len: u64,
    /// The plaintext's BLAKE3; zero if it was left out.
    pub content: [u8; 32],
}

impl SealedObject {
    /// The object in one piece; copies it.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.parts.concat().into()
    }
}

/// An object cannot be sealed.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// More plaintext than its kind may have.
    #[error("{binding} would hold {len} bytes; at most {max} are allowed")]
    TooLarge {
        /// What it was to be.
        binding: ObjectBinding,
        /// What was given.
        len: u64,
        /// What is allowed.
        max: u64,
    },
    /// More metadata than fits a trailer.
    #[error("{binding} would have {len} bytes of metadata; at most {MAX_TRAILER_BYTES} are allowed")]
    MetadataTooLarge {
        /// What it was to be.
        binding: ObjectBinding,
        /// What was given.
        len: usize,
    },
    /// A frame size outside the format.
    #[error(
        "frames of {0} bytes are not allowed; the size is a power of two from {MIN_FRAME_BYTES} to {MAX_FRAME_BYTES}"
    )]
    FrameSize(u32),
    /// No random numbers for the salt.
    #[error(transparent)]
    Random(#[from] RandomnessError),
    /// zstd failed; it does so when memory runs out.
    #[error("{binding} cannot be compressed")]
    Compress {
        /// What it was to be.
        binding: ObjectBinding,
        /// zstd's word.
        source: io::Error,
    },
    /// The cipher refused, which no length within the limits makes it do.
    #[error("{0} cannot be encrypted")]
    Encrypt(ObjectBinding),
}

/// Seals `plain`, given in as many pieces as there are; nothing is copied but what straddles two pieces.
///
/// Works on `spec.threads` threads at once. Needs, beside plaintext and result, about two frames a thread.
///
/// # Errors
/// [`SealError`]: beyond the limits, or the system is out of memory or random numbers.
pub fn seal_object(
    plain: &[&[u8]],
    spec: &SealSpec<'_>,
    protection: &ObjectEncryption,
) -> Result<SealedObject, SealError> {
    seal_salted(plain, spec, protection, random_bytes()?)
}

/// [`seal_object`], with the metadata asked for only when the frames are sealed, so that another thread may work it out
/// meanwhile. It is told the plaintext's BLAKE3, as in [`SealedObject::content`]. [`SealSpec::metadata`] is not used.
///
/// # Errors
/// As [`seal_object`].
pub fn seal_with(
    plain: &[&[u8]],
    spec: &SealSpec<'_>,
    protection: &ObjectEncryption,
    metadata: impl FnOnce([u8; 32]) -> Vec<u8>,
) -> Result<SealedObject, SealError> {
    let salt = random_bytes()?;
    seal_parts(plain, spec, protection, salt, |content| Cow::Owned(metadata(content)))
}

/// [`seal_object`] with the salt given: the same salt twice under one key would repeat nonces, so only tests do it.
pub(super) fn seal_salted(
    plain: &[&[u8]],
    spec: &SealSpec<'_>,
    protection: &ObjectEncryption,
    salt: [u8; 32],
) -> Result<SealedObject, SealError> {
    check_metadata(spec.metadata.len(), spec)?;
    seal_parts(plain, spec, protection, salt, |_content| Cow::Borrowed(spec.metadata))
}

fn seal_parts<'m>(
    plain: &[&[u8]],
    spec: &SealSpec<'_>,
    protection: &ObjectEncryption,
    salt: [u8; 32],
    metadata: impl FnOnce([u8; 32]) -> Cow<'m, [u8]>,
) -> Result<SealedObject, SealError> {
    let pieces = PlaintextParts::new(plain);
    check_limits(pieces.len, spec)?;
    let (key, cipher) = match protection {
        ObjectEncryption::Encrypted(ring) => {
            (ring.current().0, ObjectCipher::for_object(ring.current().1.secret(), &salt))
        }
        ObjectEncryption::None => (EpochKeyId::NONE, ObjectCipher::Clear),
    };
    let encrypted = matches!(protection, ObjectEncryption::Encrypted(_));
    let header = ObjectHeader { kind: spec.binding.kind(), key, encrypted, frame_size: spec.frame_size, salt };
    let hashed = spec.content || !encrypted;
    let sealer = Sealer { spec, cipher, context: header.authenticated_context(spec.binding), pieces, hashed };

    let sealed = sealer.seal_frames()?;
    let content = match sealed.as_slice() {
        _ if !hashed => [0; 32],
        [] => *blake3::hash(&[]).as_bytes(),
        [only] => only.content,
        several => {
            let values: Vec<[u8; 32]> = several.iter().map(|frame| frame.content).collect();
            content_hash::root_hash(&values, sealer.pieces.len, spec.frame_size)
        }
    };
    let frames: Vec<FrameEntry> = sealed.iter().map(|sealed| sealed.frame).collect();
    let table = frame_table::table_bytes(&frames);
    let metadata = metadata(content);
    check_metadata(metadata.len(), spec)?;
    let tail = sealer.seal_tail(header.clone(), &table, &[content.as_slice(), &metadata].concat())?;

    let mut parts = Vec::with_capacity(sealed.len().saturating_add(2));
    parts.push(Bytes::copy_from_slice(&header.to_bytes()));
    parts.extend(sealed.into_iter().map(|sealed| sealed.bytes));
    parts.push(tail.into());
    let len = parts.iter().map(|part| part.len() as u64).sum();
    Ok(SealedObject { parts, len, plain_len: sealer.pieces.len, content })
}

fn check_metadata(len: usize, spec: &SealSpec<'_>) -> Result<(), SealError> {
    // Room for the content hash, and for the tag and what zstd adds to noise.
    if len > MAX_TRAILER_BYTES - (1 << 20) {
        return Err(SealError::MetadataTooLarge { binding: spec.binding.clone(), len });
    }
    Ok(())
}

fn check_limits(len: u64, spec: &SealSpec<'_>) -> Result<(), SealError> {
    let max = spec.binding.kind().max_len();
    if len > max {
        return Err(SealError::TooLarge { binding: spec.binding.clone(), len, max });
    }
    if !spec.frame_size.is_power_of_two() || !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&spec.frame_size) {
        return Err(SealError::FrameSize(spec.frame_size));
    }
    Ok(())
}

/// What sealing any frame of one object takes.
struct Sealer<'a> {
    spec: &'a SealSpec<'a>,
    cipher: ObjectCipher,
    context: [u8; 32],
    pieces: PlaintextParts<'a>,
    hashed: bool,
}

struct SealedFrame {
    frame: FrameEntry,
    bytes: Bytes,
    /// The BLAKE3 of an only frame; else its value in the tree.
    content: [u8; 32],
}

impl Sealer<'_> {
    fn seal_frames(&self) -> Result<Vec<SealedFrame>, SealError> {
        // At most a million: `Kind::max_len` over `MIN_FRAME`.
        let count = usize::try_from(frame_count(self.pieces.len, self.spec.frame_size)).unwrap_or(usize::MAX);
        scoped_threads::map_on_threads(0..count, self.spec.threads, |number| self.seal_frame(number, count))
    }

    fn seal_frame(&self, index: usize, count: usize) -> Result<SealedFrame, SealError> {
        let number = index as u64;
        let offset = number.saturating_mul(u64::from(self.spec.frame_size));
        let plain_len = frame_len(self.pieces.len, self.spec.frame_size, number);
        let plain = self.pieces.slice(offset, plain_len as usize);
        let content = match (self.hashed, count) {
            (false, _) => [0; 32],
            (true, 1) => *blake3::hash(&plain).as_bytes(),
            (true, _) => content_hash::subtree_hash(&[&plain], offset),
        };
        let last = index.saturating_add(1) == count;
        let bytes = self.encrypt(&plain, |stored, bytes| {
            let frame = FrameEntry { offset: 0, stored, crc: 0, plain_len, last };
            self.cipher
                .seal(SealedPart::Frame(number), &frame.associated(&self.context, number), bytes)
                .map(|b| (frame, b))
        });
        let (frame, bytes) = bytes?;
        let stored = StoredLen { len: stored_len(&bytes), ..frame.stored };
        let frame = FrameEntry { stored, crc: crc32fast::hash(&bytes), ..frame };
        Ok(SealedFrame { frame, bytes: bytes.into(), content })
    }

    /// Frame table, trailer and footer.
    fn seal_tail(&self, header: ObjectHeader, table: &[u8], plain: &[u8]) -> Result<Vec<u8>, SealError> {
        let (mut footer, trailer) = self.encrypt(plain, |stored, bytes| {
            let len = bytes.len().saturating_add(self.cipher.overhead_bytes(SealedPart::Trailer));
            let footer = ObjectFooter {
                header: header.clone(),
                frames: u32::try_from(table.len() / frame_table::FRAME_ENTRY_BYTES).unwrap_or(u32::MAX),
                trailer: StoredLen { len: u32::try_from(len).unwrap_or(u32::MAX), ..stored },
                trailer_plain: u32::try_from(plain.len()).unwrap_or(u32::MAX),
                crc: 0,
                plain_len: self.pieces.len,
            };
            let associated = footer.associated(&self.context, table);
            self.cipher.seal(SealedPart::Trailer, &associated, bytes).map(|sealed| (footer, sealed))
        })?;
        let mut tail =
            Vec::with_capacity(table.len().saturating_add(trailer.len()).saturating_add(frame_table::FOOTER_BYTES));
        tail.extend_from_slice(table);
        tail.extend_from_slice(&trailer);
        footer.crc = crc32fast::hash(&tail);
        tail.extend_from_slice(&footer.to_bytes());
        Ok(tail)
    }

    /// Compresses `plain` if that pays, and lets `seal` encrypt the result while it still lies in the thread's buffer.
    fn encrypt<R>(
        &self,
        plain: &[u8],
        seal: impl FnOnce(StoredLen, &[u8]) -> Result<R, TagMismatchError>,
    ) -> Result<R, SealError> {
        let sealed = with_compressed(plain, self.spec.level, |smaller| {
            let stored = StoredLen { len: 0, compressed: smaller.is_some() };
            seal(stored, smaller.unwrap_or(plain))
        });
        sealed
            .map_err(|source| SealError::Compress { binding: self.spec.binding.clone(), source })?
            .map_err(|_too_long| SealError::Encrypt(self.spec.binding.clone()))
    }
}

fn stored_len(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

/// A plaintext in pieces, as one.
struct PlaintextParts<'a> {
    /// Each piece with the offset it begins at.
    pieces: Vec<(u64, &'a [u8])>,
    len: u64,
}

impl<'a> PlaintextParts<'a> {
    fn new(plain: &[&'a [u8]]) -> PlaintextParts<'a> {
        let mut len = 0_u64;
        let mut pieces = Vec::with_capacity(plain.len());
        for piece in plain.iter().filter(|piece| !piece.is_empty()) {
            pieces.push((len, *piece));
            len = len.saturating_add(piece.len() as u64);
        }
        PlaintextParts { pieces, len }
    }

    /// `len` bytes from `offset`, which lie within the whole; borrowed if they lie within one piece.
    fn slice(&self, offset: u64, len: usize) -> Cow<'a, [u8]> {
        let first = self.pieces.partition_point(|(start, _)| *start <= offset).saturating_sub(1);
        let mut gathered = Vec::new();
        for (start, piece) in self.pieces.iter().skip(first) {
            let at = offset.saturating_add(gathered.len() as u64).saturating_sub(*start);
            let rest = usize::try_from(at).ok().and_then(|at| piece.get(at..)).unwrap_or_default();
            let wanted = len.saturating_sub(gathered.len());
            match rest.get(..wanted) {
                Some(all) if gathered.is_empty() => return Cow::Borrowed(all),
                Some(all) => {
                    gathered.extend_from_slice(all);
                    break;
                }
                None => {
                    gathered.reserve_exact(wanted);
                    gathered.extend_from_slice(rest);
                }
            }
        }
        Cow::Owned(gathered)
    }
}
