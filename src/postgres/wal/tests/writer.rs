//! Writes WAL, byte by byte and slowly, after `xlog_internal.h` and `xlogrecord.h` alone: the other side of everything
//! the decoder does.

use std::fmt;

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentSize};
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wal::page::MajorVersion;

pub(super) const PAGE: u64 = 8192;
pub(super) const SYSTEM: u64 = 7_000_000_000_000_000_001;

/// A record that was written.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Written {
    pub(super) lsn: u64,
    pub(super) end: u64,
    pub(super) bytes: Vec<u8>,
}

#[derive(Clone)]
pub(super) struct Writer {
    pub(super) major: MajorVersion,
    pub(super) timeline: u32,
    pub(super) size: u64,
    pub(super) start: u64,
    pub(super) out: Vec<u8>,
    pub(super) prev: u64,
    pub(super) written: Vec<Written>,
    /// Bytes of the record under way that are not written yet.
    left: u32,
    /// The next page bears `XLP_FIRST_IS_OVERWRITE_CONTRECORD`.
    overwrite: bool,
}

/// Without the bytes, of which there are too many to read.
impl fmt::Debug for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{} of {} bytes", Lsn::new(self.lsn), Lsn::new(self.end), self.bytes.len())
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log from {}: {:?}", Lsn::new(self.start), self.written)
    }
}

impl Writer {
    pub(super) fn new(start: u64) -> Writer {
        assert_eq!(start % PAGE, 0);
        let prev = start.saturating_sub(64);
        let (out, written) = (Vec::new(), Vec::new());
        let (major, timeline, size) = (MajorVersion::V15, 1, 1 << 20);
        Writer { major, timeline, size, start, out, prev, written, left: 0, overwrite: false }
    }

    pub(super) fn position(&self) -> u64 {
        self.start + self.out.len() as u64
    }

    /// At a page's start, its header.
    fn page(&mut self) {
        let at = self.position();
        if !at.is_multiple_of(PAGE) {
            return;
        }
        let long = at.is_multiple_of(self.size);
        let flags = u16::from(self.left > 0) | u16::from(long) << 1 | u16::from(self.overwrite) << 3;
        self.overwrite = false;
        self.out.extend(self.major.magic().to_le_bytes());
        self.out.extend(flags.to_le_bytes());
        self.out.extend(self.timeline.to_le_bytes());
        self.out.extend(at.to_le_bytes());
        self.out.extend(self.left.to_le_bytes());
        self.out.extend([0; 4]);
        if long {
            self.out.extend(SYSTEM.to_le_bytes());
            self.out.extend(u32::try_from(self.size).unwrap().to_le_bytes());
            self.out.extend(u32::try_from(PAGE).unwrap().to_le_bytes());
        }
    }

    /// A record of any body, aligned and cut by pages.
    pub(super) fn record(&mut self, rmgr: u8, info: u8, xid: u32, body: &[u8]) -> Lsn {
        let bytes = self.bytes(rmgr, info, xid, body);
        let lsn = self.put(&bytes, bytes.len());
        self.prev = lsn;
        while !self.position().is_multiple_of(8) {
            self.out.push(0);
        }
        self.written.push(Written { lsn, end: self.position(), bytes });
        Lsn::new(lsn)
    }

    fn bytes(&self, rmgr: u8, info: u8, xid: u32, body: &[u8]) -> Vec<u8> {
        let mut header = Vec::new();
        header.extend(u32::try_from(24 + body.len()).unwrap().to_le_bytes());
        header.extend(xid.to_le_bytes());
        header.extend(self.prev.to_le_bytes());
        header.extend([info, rmgr, 0, 0]);
        let crc = naive_crc(&[body, &header].concat());
        header.extend(crc.to_le_bytes());
        [&header, body].concat()
    }

    /// Puts the first `len` bytes; answers where they begin.
    fn put(&mut self, bytes: &[u8], len: usize) -> u64 {
        self.left = 0;
        self.page();
        let lsn = self.position();
        for (n, byte) in bytes[..len].iter().enumerate() {
            self.left = u32::try_from(bytes.len() - n).unwrap();
            if n > 0 {
                self.page();
            }
            self.out.push(*byte);
        }
        self.left = 0;
        lsn
    }

    /// A record with main data only.
    pub(super) fn data(&mut self, rmgr: u8, info: u8, xid: u32, main: &[u8]) -> Lsn {
        let len = u32::try_from(main.len()).unwrap();
        let mut body = Vec::new();
        match u8::try_from(len) {
            Ok(short) => body.extend([255, short]),
            Err(_) => {
                body.push(254);
                body.extend(len.to_le_bytes());
            }
        }
        body.extend(main);
        self.record(rmgr, info, xid, &body)
    }

    pub(super) fn commit(&mut self, xid: u32, micros: i64) -> Lsn {
        self.data(1, 0x00, xid, &micros.to_le_bytes())
    }

    /// `XLOG_SWITCH` and zeros up to the segment's end.
    pub(super) fn switch(&mut self) -> Lsn {
        let lsn = self.record(0, 0x40, 0, &[]);
        self.fill(0);
        self.written.last_mut().unwrap().end = self.position();
        lsn
    }

    /// Something else up to the segment's end.
    pub(super) fn fill(&mut self, byte: u8) {
        while !self.position().is_multiple_of(self.size) {
            self.out.push(byte);
        }
    }

    /// Records up to the segment's end, the last of which may run over it.
    pub(super) fn fill_with_records(&mut self, body: usize) {
        let end = (self.position() / self.size + 1) * self.size;
        while self.position() < end {
            self.record(10, 0, 7, &vec![9; body]);
        }
    }

    /// A record of which only what fits into this page and `more` after it is written; the page then says that it is
    /// void.
    pub(super) fn cut_by_a_crash(&mut self, body: &[u8], more: u64) -> Lsn {
        let bytes = self.bytes(10, 0, 8, body);
        let next = self.position().next_multiple_of(PAGE);
        assert!(next > self.position());
        let room = (0..more).map(|n| next + n * PAGE).fold(next - self.position(), |room, page| {
            room + PAGE - if page.is_multiple_of(self.size) { 40 } else { 24 }
        });
        let room = usize::try_from(room).unwrap();
        assert!(room < bytes.len());
        let lsn = self.put(&bytes, room);
        self.overwrite = true;
        let main = [lsn.to_le_bytes(), 55_i64.to_le_bytes()].concat();
        self.data(0, 0xD0, 0, &main);
        Lsn::new(lsn)
    }

    /// The whole segments written so far.
    pub(super) fn segments(&self) -> Vec<(SegmentName, Vec<u8>)> {
        assert_eq!(self.start % self.size, 0);
        let size = self.segment_size();
        let whole = self.out.chunks_exact(size.len()).zip(self.start / self.size..);
        whole
            .map(|(bytes, number)| {
                let number = crate::postgres::format::segment::SegmentNo::new(number);
                (SegmentName::new(self.timeline_id(), number, size).unwrap(), bytes.to_vec())
            })
            .collect()
    }

    pub(super) fn segment_size(&self) -> SegmentSize {
        SegmentSize::new(self.size).unwrap()
    }

    pub(super) fn timeline_id(&self) -> TimelineId {
        TimelineId::new(self.timeline).unwrap()
    }
}

/// CRC-32C bit by bit (reflected polynomial 0x82F63B78): the definition, to hold the fast one against.
fn naive_crc(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 0 { 0 } else { 0x82F6_3B78 };
        }
    }
    !crc
}

#[test]
fn the_crc_is_crc_32c() {
    assert_eq!(naive_crc(b"123456789"), 0xE306_9283, "the check value of CRC-32C");
}
