//! The bytes around the frames: header, frame table, footer. Layout and limits only; nothing here compresses or
//! encrypts.
//!
//! ```text
//! header 64 | frames … | frame table 8 each | trailer | footer 96
//! ```
//!
//! The footer begins with a copy of the header, so that the end of an object alone tells how to open its trailer. All
//! numbers are little-endian. `docs/format/sealed-object.md` has the fields.

use std::ops::Range;

use sha2::{Digest, Sha256};

use super::binding::{ObjectBinding, SealedKind};
use super::fault::{ObjectPart, OpenFault};
use super::keys::EpochKeyId;

/// How an object begins; the byte after it is the format's version.
const OBJECT_MAGIC: [u8; 7] = *b"walkeep";
/// The version this module writes, and the newest it reads.
const OBJECT_VERSION: u8 = 1;
/// How an object ends.
pub const OBJECT_END: [u8; 4] = *b"sEAL";

/// Bytes of the header.
pub(super) const HEADER_BYTES: usize = 64;
/// Bytes of the footer.
pub(super) const FOOTER_BYTES: usize = 96;
/// Bytes of an entry of the frame table.
pub(super) const FRAME_ENTRY_BYTES: usize = 8;

/// The largest trailer, compressed or not: the digest of a 1 GiB segment of the smallest transactions takes less than
/// half of it.
pub const MAX_TRAILER_BYTES: usize = 64 << 20;
/// Frames are a power of two of at least this many bytes.
pub const MIN_FRAME_BYTES: u32 = 4 << 10;
/// Frames are a power of two of at most this many bytes.
pub const MAX_FRAME_BYTES: u32 = 4 << 20;

/// What a frame may be longer by than its plaintext: a tag.
const MAX_FRAME_GROWTH_BYTES: u32 = 16;
/// The top bit of a stored length: set if the plaintext was compressed.
const COMPRESSED_BIT: u32 = 1 << 31;

/// What an object begins with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ObjectHeader {
    pub(super) kind: SealedKind,
    /// [`EpochKeyId::NONE`] and `encrypted == false` come together.
    pub(super) key: EpochKeyId,
    pub(super) encrypted: bool,
    pub(super) frame_size: u32,
    pub(super) salt: [u8; 32],
}

impl ObjectHeader {
    pub(super) fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let fields = OBJECT_MAGIC.into_iter().chain([OBJECT_VERSION, self.kind.code(), u8::from(self.encrypted), 0, 0]);
        let fields = fields.chain(self.frame_size.to_le_bytes()).chain(*self.key.as_bytes()).chain(self.salt);
        bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        bytes
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<ObjectHeader, OpenFault> {
        let magic: [u8; 7] = array(bytes, 0).ok_or(OpenFault::NotSealed)?;
        if magic != OBJECT_MAGIC {
            return Err(OpenFault::NotSealed);
        }
        let damaged = OpenFault::Damaged(ObjectPart::Header);
        let [version, kind, cipher, zero, zero_too]: [u8; 5] = array(bytes, 7).ok_or(damaged)?;
        if version != OBJECT_VERSION {
            return Err(OpenFault::Newer(version));
        }
        let frame_size = number(bytes, 12).ok_or(damaged)?;
        let key = EpochKeyId::from_bytes(array(bytes, 16).ok_or(damaged)?);
        let salt = array(bytes, 32).ok_or(damaged)?;
        let kind = SealedKind::from_code(kind).ok_or(damaged)?;
        let sound = cipher <= 1
            && (zero, zero_too) == (0, 0)
            && (cipher == 1) == (key != EpochKeyId::NONE)
            && (MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&frame_size)
            && frame_size.is_power_of_two();
        if sound { Ok(ObjectHeader { kind, key, encrypted: cipher == 1, frame_size, salt }) } else { Err(damaged) }
    }

    /// What every tag of the object authenticates beside its own part: the header, and through `binding` the object's
    /// name.
    pub(super) fn authenticated_context(&self, binding: &ObjectBinding) -> [u8; 32] {
        Sha256::new().chain_update(self.to_bytes()).chain_update(binding.subject().as_bytes()).finalize().into()
    }
}

/// A length as stored, and whether what it counts was compressed before it was encrypted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct StoredLen {
    pub(super) len: u32,
    pub(super) compressed: bool,
}

impl StoredLen {
    fn to_bits(self) -> u32 {
        self.len & !COMPRESSED_BIT | if self.compressed { COMPRESSED_BIT } else { 0 }
    }

    fn from_bits(bits: u32) -> StoredLen {
        StoredLen { len: bits & !COMPRESSED_BIT, compressed: bits & COMPRESSED_BIT != 0 }
    }
}

/// An entry of the frame table, with what follows from its place in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct FrameEntry {
    /// Where the frame's stored bytes begin in the object.
    pub(super) offset: u64,
    pub(super) stored: StoredLen,
    pub(super) crc: u32,
    pub(super) plain_len: u32,
    pub(super) last: bool,
}

impl FrameEntry {
    /// The frame's stored bytes, within the object.
    pub(super) fn range(&self) -> Range<u64> {
        self.offset..self.offset.saturating_add(u64::from(self.stored.len))
    }

    /// What the frame's tag authenticates.
    pub(super) fn associated(&self, context: &[u8; 32], number: u64) -> [u8; 46] {
        let mut data = [0; 46];
        let fields = context.iter().copied().chain(number.to_le_bytes()).chain(self.plain_len.to_le_bytes());
        let fields = fields.chain([u8::from(self.last), u8::from(self.stored.compressed)]);
        data.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        data
    }
}

/// The length of frame `number` of a plaintext of `plain_len` bytes.
pub(super) fn frame_len(plain_len: u64, frame_size: u32, number: u64) -> u32 {
    let rest = plain_len.saturating_sub(number.saturating_mul(u64::from(frame_size)));
    u32::try_from(rest).map_or(frame_size, |rest| rest.min(frame_size))
}

/// How many frames a plaintext takes: none if it is empty.
pub(super) fn frame_count(plain_len: u64, frame_size: u32) -> u64 {
    plain_len.div_ceil(u64::from(frame_size))
}

/// The frame table as bytes.
pub(super) fn table_bytes(frames: &[FrameEntry]) -> Vec<u8> {
    frames.iter().flat_map(|frame| [frame.stored.to_bits(), frame.crc]).flat_map(u32::to_le_bytes).collect()
}

/// What an object ends with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct ObjectFooter {
    pub(super) header: ObjectHeader,
    pub(super) frames: u32,
    pub(super) trailer: StoredLen,
    pub(super) trailer_plain: u32,
    /// CRC-32 of frame table and trailer.
    pub(super) crc: u32,
    pub(super) plain_len: u64,
}

impl ObjectFooter {
    pub(super) fn to_bytes(&self) -> [u8; FOOTER_BYTES] {
        let mut bytes = [0; FOOTER_BYTES];
        let fields = self.header.to_bytes().into_iter().chain(self.frames.to_le_bytes());
        let fields = fields.chain(self.trailer.to_bits().to_le_bytes()).chain(self.trailer_plain.to_le_bytes());
        let fields = fields.chain(self.crc.to_le_bytes()).chain(self.plain_len.to_le_bytes());
        bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        let (covered, rest) = bytes.split_at_mut(FOOTER_BYTES - 8);
        let (crc, end) = rest.split_at_mut(4);
        crc.copy_from_slice(&crc32fast::hash(covered).to_le_bytes());
        end.copy_from_slice(&OBJECT_END);
        bytes
    }

    /// Reads the last [`FOOTER_BYTES`] bytes of an object of `object_len` bytes. What it returns fits the object's
    /// length and the limits of its kind.
    pub(super) fn parse(bytes: &[u8], object_len: u64) -> Result<ObjectFooter, OpenFault> {
        let damaged = OpenFault::Damaged(ObjectPart::Footer);
        if array(bytes, FOOTER_BYTES - 4) != Some(OBJECT_END) || bytes.len() != FOOTER_BYTES {
            return Err(OpenFault::NoEnd);
        }
        let covered = bytes.get(..FOOTER_BYTES - 8).ok_or(damaged)?;
        if number(bytes, FOOTER_BYTES - 8) != Some(crc32fast::hash(covered)) {
            return Err(damaged);
        }
        let header = ObjectHeader::parse(bytes)?;
        let footer = ObjectFooter {
            frames: number(bytes, 64).ok_or(damaged)?,
            trailer: StoredLen::from_bits(number(bytes, 68).ok_or(damaged)?),
            trailer_plain: number(bytes, 72).ok_or(damaged)?,
            crc: number(bytes, 76).ok_or(damaged)?,
            plain_len: array(bytes, 80).map(u64::from_le_bytes).ok_or(damaged)?,
            header,
        };
        if footer.plain_len > footer.header.kind.max_len() {
            return Err(OpenFault::TooLarge { len: footer.plain_len, max: footer.header.kind.max_len() });
        }
        let sound = u64::from(footer.frames) == frame_count(footer.plain_len, footer.header.frame_size)
            && usize::try_from(footer.trailer.len).is_ok_and(|len| len <= MAX_TRAILER_BYTES)
            && usize::try_from(footer.trailer_plain).is_ok_and(|len| len <= MAX_TRAILER_BYTES)
            && (HEADER_BYTES as u64).saturating_add(footer.tail_len()) <= object_len;
        if sound { Ok(footer) } else { Err(damaged) }
    }

    /// Bytes from the frame table to the object's end.
    pub(super) fn tail_len(&self) -> u64 {
        (u64::from(self.frames) * FRAME_ENTRY_BYTES as u64) + u64::from(self.trailer.len) + FOOTER_BYTES as u64
    }

    /// What the trailer's tag authenticates: what the object is, the footer's lengths, and the frame table.
    pub(super) fn associated(&self, context: &[u8; 32], table: &[u8]) -> Vec<u8> {
        let mut data = Vec::with_capacity(table.len().saturating_add(64));
        data.extend_from_slice(context);
        data.extend_from_slice(&self.frames.to_le_bytes());
        data.extend_from_slice(&self.trailer.to_bits().to_le_bytes());
        data.extend_from_slice(&self.trailer_plain.to_le_bytes());
        data.extend_from_slice(&self.plain_len.to_le_bytes());
        data.extend_from_slice(table);
        data
    }

    /// The frame table, read; refuses one whose frames do not fill the object from the header to the table.
    pub(super) fn frames(&self, table: &[u8], object_len: u64) -> Result<Vec<FrameEntry>, OpenFault> {
        let damaged = OpenFault::Damaged(ObjectPart::Trailer);
        let mut frames = Vec::with_capacity(table.len() / FRAME_ENTRY_BYTES);
        let mut offset = HEADER_BYTES as u64;
        for (index, entry) in table.chunks_exact(FRAME_ENTRY_BYTES).enumerate() {
            let stored = StoredLen::from_bits(number(entry, 0).ok_or(damaged)?);
            let plain_len = frame_len(self.plain_len, self.header.frame_size, index as u64);
            let crc = number(entry, 4).ok_or(damaged)?;
            let last = index.saturating_add(1) as u64 == u64::from(self.frames);
            // What is compressed is smaller than its plaintext, so nothing is longer than plaintext and tag.
            if stored.len > plain_len.saturating_add(MAX_FRAME_GROWTH_BYTES) {
                return Err(damaged);
            }
            frames.push(FrameEntry { offset, stored, crc, plain_len, last });
            offset = offset.saturating_add(u64::from(stored.len));
        }
        if offset.saturating_add(self.tail_len()) == object_len { Ok(frames) } else { Err(OpenFault::NoEnd) }
    }
}

/// The `N` bytes at `at`.
pub(super) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    array(bytes, at).map(u32::from_le_bytes)
}
