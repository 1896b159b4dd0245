//! A digest as bytes.
//!
//! One version byte, then fields in a fixed order: varints (seven bits a byte, lowest first), signed ones zigzag.
//! Positions in the segment are given from its start; endings and events from the one before, times likewise.
//! `docs/format/digest.md` has the table. A note about how the segment came may stand behind a digest; it is no part of
//! it, as it does not depend on the segment.

#[cfg(test)]
mod tests;
mod events;
mod fields;

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentNo, SegmentSize, SystemId};
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;

use super::segment_digest::{MAX_FRAGMENT_BYTES, RecordFragment, SegmentDigest, SegmentState};
use crate::postgres::wal::byte_reader::{ByteReader, put_signed, put_varint};
use crate::postgres::wal::event::{TransactionEnd, TransactionEndKind, Xid};
use fields::{put_bytes, put_option, read_bytes, read_option};

/// The version written here. Versions 1, which had no changes, and 2, which said nothing of tablespaces, are read as
/// well.
const DIGEST_VERSION: u8 = 3;
/// The version of a digest with a note behind it; the digest itself is of version 3.
const DIGEST_WITH_NOTE_VERSION: u8 = 4;
/// The longest reason kept for a broken segment.
const MAX_REASON_BYTES: usize = 512;

/// Bytes that are not a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DigestFormatError {
    /// A later walkeep wrote it.
    #[error(
        "this segment digest has format {0}, which this walkeep does not know; use a newer walkeep, or rebuild the \
            digest from the segment"
    )]
    Version(u8),
    /// It ends too soon, goes on too long, or says what no segment can contain.
    #[error("this segment digest is damaged in its {0}; rebuild it from the segment")]
    Damaged(&'static str),
}

impl SegmentDigest {
    /// The digest as bytes: about five for a commit.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(256 + 6 * self.endings.len() + 64 * self.events.len());
        out.push(DIGEST_VERSION);
        put_varint(&mut out, u64::from(self.timeline.get()));
        put_varint(&mut out, self.segment.get());
        put_varint(&mut out, u64::from(self.segment_size.get().trailing_zeros()));
        out.extend_from_slice(&self.page_magic.to_le_bytes());
        out.extend_from_slice(&self.system_id.get().to_le_bytes());
        out.extend_from_slice(&self.content);
        out.push(u8::from(self.switched) | u8::from(self.overwrites) << 1);
        self.put_state(&mut out);
        let start = self.start();
        for position in [self.first_record, self.last_record] {
            put_option(&mut out, position.map(|lsn| lsn.bytes_since(start)));
        }
        put_option(&mut out, self.first_prev.map(Lsn::get));
        put_varint(&mut out, self.valid_until.bytes_since(start));
        put_varint(&mut out, self.records);
        put_varint(&mut out, self.omitted_events);
        for time in [self.earliest, self.latest] {
            put_time(&mut out, time);
        }
        for fragment in [&self.head, &self.tail] {
            put_fragment(&mut out, fragment.as_ref(), start);
        }
        put_endings(&mut out, &self.endings, start);
        events::put_events(&mut out, &self.events, start);
        events::put_events(&mut out, &self.changes, start);
        out
    }

    fn put_state(&self, out: &mut Vec<u8>) {
        match &self.state {
            SegmentState::Checked => out.push(0),
            SegmentState::Opaque => out.push(1),
            SegmentState::Broken { at, why } => {
                out.push(2);
                put_varint(out, at.get());
                put_bytes(out, why.get(..why.floor_char_boundary(MAX_REASON_BYTES)).unwrap_or(why).as_bytes());
            }
        }
    }

    /// Reads what [`SegmentDigest::to_bytes`] wrote.
    ///
    /// # Errors
    /// [`DigestFormatError`] if it is of another version or not a digest. It allocates no more than some times the
    /// length of `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Result<SegmentDigest, DigestFormatError> {
        let (body, _) = split_note(bytes).ok_or(DigestFormatError::Damaged("note"))?;
        let mut reader = ByteReader::new(body);
        let (version, mut digest) = outline(&mut reader)?;
        let (start, end) = (digest.start(), digest.end());
        digest.head = read_fragment(&mut reader, start).ok_or(DigestFormatError::Damaged("head"))?;
        digest.tail = read_fragment(&mut reader, start).ok_or(DigestFormatError::Damaged("tail"))?;
        digest.endings = read_endings(&mut reader, start).ok_or(DigestFormatError::Damaged("endings"))?;
        digest.events = events::read_events(&mut reader, start).ok_or(DigestFormatError::Damaged("events"))?;
        if version > 1 {
            digest.changes = events::read_events(&mut reader, start).ok_or(DigestFormatError::Damaged("changes"))?;
        }
        let events = digest.events.last().into_iter().chain(digest.changes.last());
        let last = digest.endings.last().map(|e| e.lsn).into_iter().chain(events.map(|e| e.lsn)).max();
        if !reader.rest().is_empty() || last.is_some_and(|lsn| lsn >= end) || digest.valid_until > end {
            return Err(DigestFormatError::Damaged("extent"));
        }
        Ok(digest)
    }

    /// Only what [`SegmentDigest::to_bytes`] wrote of the segment as a whole; fragments, endings and events are left
    /// empty. Most of a digest is those.
    ///
    /// # Errors
    /// [`DigestFormatError`] if it is of another version or does not begin like a digest.
    pub fn outline(bytes: &[u8]) -> Result<SegmentDigest, DigestFormatError> {
        outline(&mut ByteReader::new(bytes)).map(|(_, digest)| digest)
    }
}

/// A digest as [`SegmentDigest::to_bytes`] wrote it, with a note behind it. An empty one changes nothing, and neither
/// does one of more than 64 KiB.
#[must_use]
pub fn with_note(mut bytes: Vec<u8>, note: &[u8]) -> Vec<u8> {
    if let (Ok(len @ 1..), Some(version)) = (u16::try_from(note.len()), bytes.first_mut()) {
        *version = DIGEST_WITH_NOTE_VERSION;
        bytes.extend_from_slice(note);
        bytes.extend_from_slice(&len.to_le_bytes());
    }
    bytes
}

/// The note behind a digest; empty if there is none.
#[must_use]
pub fn note_after_digest(bytes: &[u8]) -> &[u8] {
    split_note(bytes).map_or(&[], |(_, note)| note)
}

/// The digest, and the note behind it.
fn split_note(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    if bytes.first() != Some(&DIGEST_WITH_NOTE_VERSION) {
        return Some((bytes, &[]));
    }
    let (front, len) = bytes.split_last_chunk()?;
    front.split_at_checked(front.len().checked_sub(usize::from(u16::from_le_bytes(*len)))?)
}

/// The version, and everything before the fragments.
fn outline(reader: &mut ByteReader<'_>) -> Result<(u8, SegmentDigest), DigestFormatError> {
    let version = match reader.u8() {
        Some(version @ 1..=DIGEST_WITH_NOTE_VERSION) => version,
        Some(other) => return Err(DigestFormatError::Version(other)),
        None => return Err(DigestFormatError::Damaged("version")),
    };
    let digest = head_fields(reader).ok_or(DigestFormatError::Damaged("header"))?;
    Ok((version, digest))
}

/// Everything before the fragments; those, endings and events are left empty.
fn head_fields(reader: &mut ByteReader<'_>) -> Option<SegmentDigest> {
    let timeline = TimelineId::new(u32::try_from(reader.varint()?).ok()?)?;
    let segment = SegmentNo::new(reader.varint()?);
    let segment_size = SegmentSize::new(1_u64.checked_shl(u32::try_from(reader.varint()?).ok()?)?).ok()?;
    // The segment's end must be a position, too.
    segment.get().checked_add(1)?.checked_mul(segment_size.get())?;
    let page_magic = reader.u16()?;
    let system_id = SystemId::new(reader.u64()?);
    let content = reader.array()?;
    let flags = reader.u8().filter(|flags| flags & !3 == 0)?;
    let state = match reader.u8()? {
        0 => SegmentState::Checked,
        1 => SegmentState::Opaque,
        2 => SegmentState::Broken {
            at: Lsn::new(reader.varint()?),
            why: String::from_utf8(read_bytes(reader, MAX_REASON_BYTES)?.to_vec()).ok()?,
        },
        _ => return None,
    };
    let start = segment.start(segment_size);
    let first_record = read_position(reader, start)?;
    let last_record = read_position(reader, start)?;
    let first_prev = read_option(reader)?.map(Lsn::new);
    Some(SegmentDigest {
        timeline,
        segment,
        segment_size,
        page_magic,
        system_id,
        state,
        first_record,
        last_record,
        first_prev,
        valid_until: start.checked_add(reader.varint()?)?,
        switched: flags & 1 != 0,
        overwrites: flags & 2 != 0,
        records: reader.varint()?,
        omitted_events: reader.varint()?,
        earliest: read_time(reader)?,
        latest: read_time(reader)?,
        endings: Vec::new(),
        events: Vec::new(),
        changes: Vec::new(),
        head: None,
        tail: None,
        content,
    })
}

fn read_position(reader: &mut ByteReader<'_>, start: Lsn) -> Option<Option<Lsn>> {
    match read_option(reader)? {
        Some(offset) => Some(Some(start.checked_add(offset)?)),
        None => Some(None),
    }
}

fn put_time(out: &mut Vec<u8>, time: Option<PgTime>) {
    out.push(u8::from(time.is_some()));
    if let Some(time) = time {
        put_signed(out, time.pg_micros());
    }
}

fn read_time(reader: &mut ByteReader<'_>) -> Option<Option<PgTime>> {
    match reader.u8()? {
        0 => Some(None),
        1 => Some(Some(PgTime::from_pg_micros(reader.signed()?))),
        _ => None,
    }
}

fn put_fragment(out: &mut Vec<u8>, fragment: Option<&RecordFragment>, start: Lsn) {
    out.push(u8::from(fragment.is_some()));
    if let Some(fragment) = fragment {
        put_varint(out, fragment.start.bytes_since(start));
        put_varint(out, fragment.end.bytes_since(start));
        put_varint(out, u64::from(fragment.total));
        put_varint(out, u64::from(fragment.held));
        out.extend_from_slice(&fragment.rest_crc.to_le_bytes());
        put_bytes(out, &fragment.bytes);
    }
}

fn read_fragment(reader: &mut ByteReader<'_>, start: Lsn) -> Option<Option<RecordFragment>> {
    match reader.u8()? {
        0 => Some(None),
        1 => {
            let fragment = RecordFragment {
                start: start.checked_add(reader.varint()?)?,
                end: start.checked_add(reader.varint()?)?,
                total: u32::try_from(reader.varint()?).ok()?,
                held: u32::try_from(reader.varint()?).ok()?,
                rest_crc: reader.u32()?,
                bytes: read_bytes(reader, MAX_FRAGMENT_BYTES)?.to_vec(),
            };
            let kept = u32::try_from(fragment.bytes.len()).ok()?;
            (kept <= fragment.held && fragment.held <= fragment.total).then_some(Some(fragment))
        }
        _ => None,
    }
}

/// One ending: distance from the one before in units of eight bytes · length in the same and kind · xid and time as
/// differences.
fn put_endings(out: &mut Vec<u8>, endings: &[TransactionEnd], start: Lsn) {
    put_varint(out, endings.len() as u64);
    let (mut lsn, mut xid, mut micros) = (start, 0_i64, 0_i64);
    for ending in endings {
        put_varint(out, ending.lsn.bytes_since(lsn) >> 3);
        put_varint(out, (ending.end_lsn.bytes_since(ending.lsn) >> 3) << 2 | ending.kind.number());
        put_signed(out, i64::from(ending.xid.get()).wrapping_sub(xid));
        put_signed(out, ending.time.pg_micros().wrapping_sub(micros));
        (lsn, xid, micros) = (ending.lsn, i64::from(ending.xid.get()), ending.time.pg_micros());
    }
}

fn read_endings(reader: &mut ByteReader<'_>, start: Lsn) -> Option<Vec<TransactionEnd>> {
    /// The fewest bytes an ending takes: what is left bounds how many there can be, and so what is allocated.
    const SMALLEST: usize = 4;
    let count = usize::try_from(reader.varint()?).ok().filter(|count| *count <= reader.rest().len() / SMALLEST)?;
    let mut endings = Vec::with_capacity(count);
    let (mut lsn, mut xid, mut micros) = (start, 0_i64, 0_i64);
    for _ in 0..count {
        lsn = lsn.checked_add(reader.varint()?.checked_mul(8)?)?;
        let extent = reader.varint()?;
        let end_lsn = lsn.checked_add((extent >> 2).checked_mul(8)?)?;
        let kind = TransactionEndKind::from_number(extent & 3);
        xid = xid.checked_add(reader.signed()?)?;
        micros = micros.wrapping_add(reader.signed()?);
        let (number, time) = (u32::try_from(xid).ok()?, PgTime::from_pg_micros(micros));
        endings.push(TransactionEnd { lsn, end_lsn, xid: Xid::new(number), time, kind });
    }
    Some(endings)
}

impl TransactionEndKind {
    const fn number(self) -> u64 {
        match self {
            TransactionEndKind::Commit => 0,
            TransactionEndKind::Abort => 1,
            TransactionEndKind::CommitPrepared => 2,
            TransactionEndKind::AbortPrepared => 3,
        }
    }

    const fn from_number(number: u64) -> TransactionEndKind {
        match number & 3 {
            0 => TransactionEndKind::Commit,
            1 => TransactionEndKind::Abort,
            2 => TransactionEndKind::CommitPrepared,
            _ => TransactionEndKind::AbortPrepared,
        }
    }
}

/// Fuzz body: any bytes are a digest or are refused; one that was read is written and read to the same.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    assert!(note_after_digest(data).len() <= data.len());
    if let Ok(digest) = SegmentDigest::from_bytes(data) {
        let again = SegmentDigest::from_bytes(&digest.to_bytes());
        assert_eq!(again.as_ref(), Ok(&digest), "written and read back");
        assert!(digest.events.len() <= data.len() && digest.endings.len() <= data.len());
        assert!(digest.changes.len() <= data.len());
    }
}
