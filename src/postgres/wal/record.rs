//! WAL records: the fixed header, the CRC, and where a record's main data lies (`xlogrecord.h`, `DecodeXLogRecord` in
//! `xlogreader.c`). [`super::decode`] checks them.

use crate::postgres::format::lsn::Lsn;

use super::byte_reader::ByteReader;
use super::identifiers::RelFileLocator;
use super::page::MajorVersion;

/// Bytes of the fixed header (`SizeOfXLogRecord`).
pub const RECORD_HEADER_BYTES: usize = 24;
/// The shortest record: a header and nothing else.
pub const MIN_RECORD_BYTES: u32 = 24;
/// The longest record any release accepts: the reader's buffer has to be one allocation (`MaxAllocSize`;
/// `XLogRecordMaxSize` since 16).
pub const MAX_RECORD_BYTES: u32 = 1 << 30;

/// Resource managers whose records walkeep looks into (`rmgrlist.h`).
pub mod rmgr {
    /// Checkpoints, switches, restore points, parameter changes.
    pub const XLOG: u8 = 0;
    /// Commits and aborts.
    pub const TRANSACTION: u8 = 1;
    /// Files created and truncated.
    pub const STORAGE: u8 = 2;
    /// Databases created and dropped.
    pub const DATABASE: u8 = 4;
    /// Tablespaces created and dropped.
    pub const TABLESPACE: u8 = 5;
    /// Tables, too: several rows inserted together.
    pub const HEAP2: u8 = 9;
    /// Tables.
    pub const SMGR_TRUNCATE_HEAP: u8 = 10;
    /// The last of the built-in ones, logical messages; custom ones are numbered from 128 (`RM_MIN_CUSTOM_ID`, since
    /// 15).
    pub(super) const LAST_BUILT_IN: u8 = 21;
    /// The first number an extension may take.
    pub const FIRST_CUSTOM: u8 = 128;
}

/// The part of `xl_info` that belongs to the resource manager (`XLR_RMGR_INFO_MASK`).
pub const RMGR_INFO: u8 = 0xF0;
/// `XLOG_SWITCH` of resource manager [`rmgr::XLOG`]: nothing after it in the segment means anything.
const XLOG_SWITCH_INFO: u8 = 0x40;

/// A record's fixed header (`XLogRecord`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    /// Bytes of the whole record, this header included (`xl_tot_len`).
    pub total_len: u32,
    /// The transaction that wrote it, or 0 (`xl_xid`).
    pub xid: u32,
    /// Where the record before it starts (`xl_prev`).
    pub prev: Lsn,
    /// Flags; the high half belongs to the resource manager (`xl_info`).
    pub info: u8,
    /// The resource manager (`xl_rmid`).
    pub rmgr: u8,
    /// CRC-32C of all that follows the header, then of the header up to here (`xl_crc`).
    pub crc: u32,
}

impl RecordHeader {
    /// Reads a header.
    #[must_use]
    #[inline]
    pub const fn parse(h: &[u8; RECORD_HEADER_BYTES]) -> RecordHeader {
        RecordHeader {
            total_len: u32::from_le_bytes([h[0], h[1], h[2], h[3]]),
            xid: u32::from_le_bytes([h[4], h[5], h[6], h[7]]),
            prev: Lsn::new(u64::from_le_bytes([h[8], h[9], h[10], h[11], h[12], h[13], h[14], h[15]])),
            info: h[16],
            rmgr: h[17],
            crc: u32::from_le_bytes([h[20], h[21], h[22], h[23]]),
        }
    }

    /// Whether the record ends its segment.
    #[must_use]
    #[inline]
    pub const fn is_switch(&self) -> bool {
        self.rmgr == rmgr::XLOG && self.info & RMGR_INFO == XLOG_SWITCH_INFO
    }

    /// Whether a resource manager of this number can exist (`RmgrIdIsValid`).
    #[must_use]
    #[inline]
    pub const fn has_valid_rmgr(&self) -> bool {
        self.rmgr <= rmgr::LAST_BUILT_IN || self.rmgr >= rmgr::FIRST_CUSTOM
    }
}

/// A whole record whose CRC and place in the chain were checked.
#[derive(Clone, Copy, Debug)]
pub struct WalRecord<'a> {
    /// Where it starts; what `pg_waldump` prints as `lsn`, and what a recovery target is compared with.
    pub lsn: Lsn,
    /// Where the next one may start at the earliest, page headers aside (`EndRecPtr`); the segment's end for a switch.
    pub end_lsn: Lsn,
    /// The fixed header.
    pub header: RecordHeader,
    /// All its bytes, header included, joined where pages divided them.
    pub bytes: &'a [u8],
}

impl<'a> WalRecord<'a> {
    /// The part of the record that belongs to no block. `None` if the headers before it don't add up, which the CRC
    /// makes unlikely.
    #[must_use]
    pub fn main_data(&self, major: MajorVersion) -> Option<&'a [u8]> {
        let layout = RecordLayout::parse(
            self.bytes.get(RECORD_HEADER_BYTES..)?,
            self.bytes.len().checked_sub(RECORD_HEADER_BYTES)?,
            major,
        )?;
        self.bytes.get(RECORD_HEADER_BYTES.checked_add(layout.main_at)?..)
    }

    /// The pages that the record changes. `None` if the headers don't add up.
    #[must_use]
    pub fn pages(&self, major: MajorVersion) -> Option<Vec<ChangedPage>> {
        let body = self.bytes.get(RECORD_HEADER_BYTES..)?;
        let (mut pages, mut same) = (Vec::new(), None);
        RecordLayout::parse_noting(body, body.len(), major, &mut |block| {
            let file = block.file.or(same);
            same = file;
            if let Some(file) = file {
                let restored = block.restores_page(major);
                pages.push(ChangedPage { file, fork: block.flags & BlockHeader::FORK, block: block.number, restored });
            }
        })?;
        Some(pages)
    }
}

/// A page that a record changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChangedPage {
    /// The relation's file.
    pub file: RelFileLocator,
    /// Which part of the relation (`ForkNumber`): 0 is the main one.
    pub fork: u8,
    /// The page's number in it.
    pub block: u32,
    /// Whether replay writes the whole page, whatever was in it: from an image, or because the record makes it new.
    pub restored: bool,
}

/// Where in what follows a record's header the main data begins and how long it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RecordLayout {
    pub(super) main_at: usize,
    pub(super) main_len: usize,
}

impl RecordLayout {
    /// Walks the block headers at the front of `body`, which may be cut short after them; `full_len` is its length when
    /// whole.
    pub(super) fn parse(body: &[u8], full_len: usize, major: MajorVersion) -> Option<RecordLayout> {
        RecordLayout::parse_noting(body, full_len, major, &mut |_| {})
    }

    #[inline]
    fn parse_noting(
        body: &[u8],
        full_len: usize,
        major: MajorVersion,
        note: &mut impl FnMut(BlockHeader),
    ) -> Option<RecordLayout> {
        let mut reader = ByteReader::new(body);
        let mut of_blocks = 0_usize;
        let mut main_len = 0_usize;
        loop {
            let headers = body.len().checked_sub(reader.rest().len())?;
            if headers.checked_add(of_blocks)? == full_len {
                break;
            }
            match reader.u8()? {
                255 => main_len = usize::from(reader.u8()?),
                254 => main_len = usize::try_from(reader.u32()?).ok()?,
                253 => drop(reader.u16()?),
                252 => drop(reader.u32()?),
                0..=32 => {
                    let block = BlockHeader::read(&mut reader, major)?;
                    of_blocks = of_blocks.checked_add(block.data_bytes)?;
                    note(block);
                    continue;
                }
                _ => return None,
            }
            if main_len > 0 {
                break;
            }
        }
        let headers = body.len().checked_sub(reader.rest().len())?;
        let main_at = headers.checked_add(of_blocks)?;
        (main_at.checked_add(main_len)? == full_len).then_some(RecordLayout { main_at, main_len })
    }
}

/// A block reference without its id (`XLogRecordBlockHeader`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct BlockHeader {
    flags: u8,
    /// How its image was made, if it has one (`bimg_info`).
    image: u8,
    /// Bytes of image and data that belong to it.
    data_bytes: usize,
    /// Its file; `None` if it is that of the reference before.
    file: Option<RelFileLocator>,
    number: u32,
}

impl BlockHeader {
    const FORK: u8 = 0x0F;
    const HAS_IMAGE: u8 = 0x10;
    const WILL_INIT: u8 = 0x40;
    const SAME_REL: u8 = 0x80;
    const IMAGE_HAS_HOLE: u8 = 0x01;

    fn read(reader: &mut ByteReader<'_>, major: MajorVersion) -> Option<BlockHeader> {
        // Until 14 there was one way to compress an image; in 15 its flag's place went to BKPIMAGE_APPLY and three
        // others came.
        let compressed = if major <= MajorVersion::V14 { 0x02 } else { 0x1C };
        let flags = reader.u8()?;
        let (mut data_bytes, mut image) = (usize::from(reader.u16()?), 0);
        if flags & Self::HAS_IMAGE != 0 {
            data_bytes = data_bytes.checked_add(usize::from(reader.u16()?))?;
            reader.u16()?;
            image = reader.u8()?;
            if image & compressed != 0 && image & Self::IMAGE_HAS_HOLE != 0 {
                reader.u16()?;
            }
        }
        let file = match flags & Self::SAME_REL {
            0 => Some(RelFileLocator { tablespace: reader.u32()?, database: reader.u32()?, filenode: reader.u32()? }),
            _ => None,
        };
        Some(BlockHeader { flags, image, data_bytes, file, number: reader.u32()? })
    }

    /// Whether replay needs nothing of what was in the page (`BKPIMAGE_APPLY`, `BKPBLOCK_WILL_INIT`).
    fn restores_page(&self, major: MajorVersion) -> bool {
        let apply = if major <= MajorVersion::V14 { 0x04 } else { 0x02 };
        self.flags & Self::WILL_INIT != 0 || (self.flags & Self::HAS_IMAGE != 0 && self.image & apply != 0)
    }
}

/// The CRC-32C that belongs into a record's header: of the body first, then of the header's first twenty bytes
/// (`ValidXLogRecord`).
#[must_use]
#[inline]
pub fn record_crc(header: &[u8; RECORD_HEADER_BYTES], body: &[u8]) -> u32 {
    finish_crc(crc32c::crc32c(body), header)
}

/// Continues the CRC of a body with its header.
#[inline]
pub(super) fn finish_crc(body: u32, header: &[u8; RECORD_HEADER_BYTES]) -> u32 {
    match header.first_chunk::<20>() {
        Some(fields) => crc32c::crc32c_append(body, fields),
        None => body,
    }
}

/// Fuzz body: any bytes as a record; the main data is within it or not found.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some((chunk, _)) = data.split_first_chunk::<RECORD_HEADER_BYTES>() else { return };
    let header = RecordHeader::parse(chunk);
    let record = WalRecord { lsn: Lsn::new(0), end_lsn: Lsn::new(0), header, bytes: data };
    for major in MajorVersion::ALL {
        if let Some(main) = record.main_data(major) {
            assert!(main.len() <= data.len(), "main data longer than its record");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{RECORD_HEADER_BYTES, RecordHeader, RecordLayout, WalRecord, fuzz, record_crc};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::wal::page::MajorVersion;

    fn with_body(body: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; RECORD_HEADER_BYTES];
        bytes.extend_from_slice(body);
        bytes
    }

    fn main_of(body: &[u8], major: MajorVersion) -> Option<Vec<u8>> {
        let bytes = with_body(body);
        let header = RecordHeader::parse(bytes.first_chunk().unwrap());
        let record = WalRecord { lsn: Lsn::new(8), end_lsn: Lsn::new(16), header, bytes: &bytes };
        fuzz(&bytes);
        record.main_data(major).map(<[u8]>::to_vec)
    }

    #[test]
    fn finds_the_main_data_behind_whatever_stands_before_it() {
        let check =
            |body: &[u8], main: &[u8]| assert_eq!(main_of(body, MajorVersion::V15).as_deref(), Some(main), "{body:?}");
        check(&[255, 3, 7, 8, 9], &[7, 8, 9]);
        check(&[254, 3, 0, 0, 0, 7, 8, 9], &[7, 8, 9]);
        check(&[253, 1, 0, 252, 9, 9, 9, 9, 255, 1, 5], &[5]);
        let mut with_block = vec![0, 0x20, 2, 0];
        with_block.extend_from_slice(&[1; 12]);
        with_block.extend_from_slice(&[4, 0, 0, 0, 255, 1, 0xAA, 0xBB, 5]);
        check(&with_block, &[5]);
        check(&[], &[]);
        assert_eq!(main_of(&[255, 4, 7, 8, 9], MajorVersion::V15), None, "shorter than it says");
        assert_eq!(main_of(&[255, 2, 7, 8, 9], MajorVersion::V15), None, "longer than it says");
        assert_eq!(main_of(&[77, 1, 1], MajorVersion::V15), None, "an id that does not exist");
    }

    #[test]
    fn image_flags_differ_before_15() {
        let mut body = vec![0, 0x10, 0, 0, 1, 0, 0, 0, 0x03];
        let tail = [&[1; 12][..], &[4, 0, 0, 0, 255, 1, 0xEE, 5]].concat();
        body.extend_from_slice(&tail);
        assert_eq!(main_of(&body, MajorVersion::V15).unwrap(), [5], "0x02 is APPLY: no hole length follows");
        body.splice(9..9, [0, 1]);
        assert_eq!(main_of(&body, MajorVersion::V14).unwrap(), [5], "0x02 is COMPRESSED: a hole length follows");
        assert_eq!(main_of(&body, MajorVersion::V15), None);
    }

    #[test]
    fn a_layout_is_read_from_the_front_alone() {
        let front = [254, 0, 0, 1, 0, 7, 7];
        let expected = RecordLayout { main_at: 5, main_len: 0x1_0000 };
        assert_eq!(RecordLayout::parse(&front, 5 + 0x1_0000, MajorVersion::V18), Some(expected));
    }

    #[test]
    fn the_crc_covers_the_body_first_and_then_the_header_without_its_crc() {
        let mut header = [0; RECORD_HEADER_BYTES];
        header[0] = 24;
        let before = record_crc(&header, b"body");
        assert_eq!(before, crc32c::crc32c(b"body\x18\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"));
        header[23] = 1;
        assert_eq!(record_crc(&header, b"body"), before, "the CRC field is not part of it");
        header[19] = 1;
        assert_ne!(record_crc(&header, b"body"), before, "the padding is");
    }
}
