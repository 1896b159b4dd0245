//! Page headers of the write-ahead log (`XLogPageHeaderData` and `XLogLongPageHeaderData`, `xlog_internal.h`).
//!
//! Reads what stands there; whether it fits the place where it stands is for [`super::decode`] to say.

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::SystemId;

/// Bytes of an ordinary page's header (`SizeOfXLogShortPHD`).
pub const SHORT_PAGE_HEADER_BYTES: usize = 24;
/// Bytes of the header of a segment's first page (`SizeOfXLogLongPHD`).
pub const LONG_PAGE_HEADER_BYTES: usize = 40;
/// The page size of every packaged PostgreSQL (`XLOG_BLCKSZ`).
pub const DEFAULT_WAL_PAGE_BYTES: u32 = 8192;

/// The page begins with the rest of a record from before (`XLP_FIRST_IS_CONTRECORD`).
pub const FIRST_IS_CONTRECORD: u16 = 0x0001;
/// The long form of the header (`XLP_LONG_HEADER`).
pub const HAS_LONG_HEADER: u16 = 0x0002;
/// The record that should have gone on here was lost in a crash and is void (`XLP_FIRST_IS_OVERWRITE_CONTRECORD`).
pub const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
/// Every flag that any supported release defines (`XLP_ALL_FLAGS`).
pub const ALL_FLAGS: u16 = 0x000F;

/// A major release whose WAL walkeep can read. The layout changes only with the major release, and so does the magic
/// (`XLOG_PAGE_MAGIC`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum MajorVersion {
    /// PostgreSQL 13, magic D106.
    V13,
    /// PostgreSQL 14, magic D10D.
    V14,
    /// PostgreSQL 15, magic D110.
    V15,
    /// PostgreSQL 16, magic D113.
    V16,
    /// PostgreSQL 17, magic D116.
    V17,
    /// PostgreSQL 18, magic D118.
    V18,
}

impl MajorVersion {
    /// All of them, oldest first.
    pub const ALL: [MajorVersion; 6] = [
        MajorVersion::V13,
        MajorVersion::V14,
        MajorVersion::V15,
        MajorVersion::V16,
        MajorVersion::V17,
        MajorVersion::V18,
    ];

    /// The release that writes pages of this magic; `None` for one that is not known here, be it older, newer or a
    /// beta.
    #[must_use]
    pub const fn from_magic(magic: u16) -> Option<MajorVersion> {
        match magic {
            0xD106 => Some(MajorVersion::V13),
            0xD10D => Some(MajorVersion::V14),
            0xD110 => Some(MajorVersion::V15),
            0xD113 => Some(MajorVersion::V16),
            0xD116 => Some(MajorVersion::V17),
            0xD118 => Some(MajorVersion::V18),
            _ => None,
        }
    }

    /// The magic of this release's pages.
    #[must_use]
    pub const fn magic(self) -> u16 {
        match self {
            MajorVersion::V13 => 0xD106,
            MajorVersion::V14 => 0xD10D,
            MajorVersion::V15 => 0xD110,
            MajorVersion::V16 => 0xD113,
            MajorVersion::V17 => 0xD116,
            MajorVersion::V18 => 0xD118,
        }
    }

    /// 13 to 18.
    #[must_use]
    pub const fn number(self) -> u16 {
        match self {
            MajorVersion::V13 => 13,
            MajorVersion::V14 => 14,
            MajorVersion::V15 => 15,
            MajorVersion::V16 => 16,
            MajorVersion::V17 => 17,
            MajorVersion::V18 => 18,
        }
    }
}

/// Whether `magic` could be that of some PostgreSQL's little-endian pages: all since 8.3 lie from D062 on, and 18 is at
/// D118.
#[must_use]
pub const fn plausible_magic(magic: u16) -> bool {
    matches!(magic, 0xD062..=0xD2FF)
}

/// A page's header, as it stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WalPageHeader {
    /// The format's version (`xlp_magic`).
    pub magic: u16,
    /// Flags (`xlp_info`).
    pub info: u16,
    /// The timeline of the page's first record (`xlp_tli`); zero never occurs on a real page.
    pub timeline: u32,
    /// The page's own position (`xlp_pageaddr`); a recycled page still bears its old one.
    pub address: Lsn,
    /// Bytes of a record begun earlier that remained to be written when this page began (`xlp_rem_len`).
    pub remaining: u32,
    /// The further fields of a segment's first page.
    pub long: Option<LongPageHeader>,
}

/// What only the first page of a segment says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LongPageHeader {
    /// The cluster's identity (`xlp_sysid`).
    pub system_id: SystemId,
    /// The segment size (`xlp_seg_size`).
    pub segment_size: u32,
    /// The page size (`xlp_xlog_blcksz`).
    pub page_size: u32,
}

impl WalPageHeader {
    /// Reads a header. `None` if `bytes` ends before it does: 24 bytes are enough to see whether 40 are needed.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<WalPageHeader> {
        let h = bytes.first_chunk::<SHORT_PAGE_HEADER_BYTES>()?;
        let info = u16::from_le_bytes([h[2], h[3]]);
        let long = if info & HAS_LONG_HEADER == 0 { None } else { Some(LongPageHeader::parse(bytes)?) };
        Some(WalPageHeader {
            magic: u16::from_le_bytes([h[0], h[1]]),
            info,
            timeline: u32::from_le_bytes([h[4], h[5], h[6], h[7]]),
            address: Lsn::new(u64::from_le_bytes([h[8], h[9], h[10], h[11], h[12], h[13], h[14], h[15]])),
            remaining: u32::from_le_bytes([h[16], h[17], h[18], h[19]]),
            long,
        })
    }

    /// The bytes that the header takes up.
    #[must_use]
    pub const fn size(&self) -> usize {
        if self.long.is_some() { LONG_PAGE_HEADER_BYTES } else { SHORT_PAGE_HEADER_BYTES }
    }

    /// Whether any of `flags` is set.
    #[must_use]
    pub const fn has_flags(&self, flags: u16) -> bool {
        self.info & flags != 0
    }
}

impl LongPageHeader {
    fn parse(bytes: &[u8]) -> Option<LongPageHeader> {
        let h = bytes.first_chunk::<LONG_PAGE_HEADER_BYTES>()?;
        Some(LongPageHeader {
            system_id: SystemId::new(u64::from_le_bytes([h[24], h[25], h[26], h[27], h[28], h[29], h[30], h[31]])),
            segment_size: u32::from_le_bytes([h[32], h[33], h[34], h[35]]),
            page_size: u32::from_le_bytes([h[36], h[37], h[38], h[39]]),
        })
    }
}

/// Fuzz body: whatever the bytes, a header is read or not, and never more than was there.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    if let Some(header) = WalPageHeader::parse(data) {
        assert!(header.size() <= data.len(), "a header longer than what it was read from");
        assert_eq!(header.has_flags(HAS_LONG_HEADER), header.long.is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::{MajorVersion, WalPageHeader, fuzz};
    use crate::postgres::format::lsn::Lsn;

    /// A segment's first page header, byte by byte as `xlog_internal.h` lays it out; the numbers are chosen to tell the
    /// fields apart.
    const FIRST: [u8; 40] = [
        0x10, 0xD1, 0x07, 0x00, 0x01, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x02, 0x00, 0x00, 0x00, 0x00, 0x2A, 0x00,
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x61, 0x00, 0x00, 0x00, 0x01,
        0x00, 0x20, 0x00, 0x00,
    ];

    #[test]
    fn reads_both_forms() {
        let header = WalPageHeader::parse(&FIRST).unwrap();
        assert_eq!(MajorVersion::from_magic(header.magic), Some(MajorVersion::V15));
        assert_eq!((header.timeline, header.address, header.remaining), (1, Lsn::new(0x200_0000), 42));
        let long = header.long.unwrap();
        assert_eq!(long.system_id.get(), 0x6122_3344_5566_7788);
        assert_eq!((long.segment_size, long.page_size, header.size()), (16 << 20, 8192, 40));

        let mut short = FIRST;
        short[2] = 0x05;
        let header = WalPageHeader::parse(&short[..24]).unwrap();
        assert_eq!((header.long, header.size()), (None, 24));
    }

    #[test]
    fn a_cut_header_is_none() {
        for cut in 0..FIRST.len() {
            assert_eq!(WalPageHeader::parse(&FIRST[..cut]), None, "{cut} bytes");
            fuzz(&FIRST[..cut]);
        }
    }

    #[test]
    fn magics_and_majors_are_one_to_one() {
        for major in MajorVersion::ALL {
            assert_eq!(MajorVersion::from_magic(major.magic()), Some(major));
        }
        assert_eq!(MajorVersion::from_magic(0xD119), None);
    }
}
