//! What records say of heap pages: which table, how many rows, and the tuple itself where it is asked for.
//!
//! Block references are read as `DecodeXLogRecord` does (`xlogreader.c`), tuples as `heap_xlog_insert` and
//! `heap_xlog_update` put them together (`heapam.c`, since 18 `heapam_xlog.c`). The scan of a segment asks of every
//! heap record which file it is about; only records of system catalogs are looked into further.

use std::borrow::Cow;

use super::byte_reader::ByteReader;
use super::identifiers::RelFileLocator;
use super::page::MajorVersion;
use super::page_image::{ImageCompression, decompress_image};
use super::record::{RECORD_HEADER_BYTES, RMGR_INFO, RecordHeader, WalRecord, rmgr};

/// What a heap record does (`heapam_xlog.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HeapOperation {
    Insert,
    Delete,
    Update,
    InPlace,
    MultiInsert,
    /// `XLOG_FPI` of resource manager XLOG: pages of a new file, as a rewrite writes them.
    Pages,
}

/// What the record of this header does to a heap; `None` for most.
#[inline]
pub(super) const fn heap_operation(header: &RecordHeader) -> Option<HeapOperation> {
    match header.rmgr {
        rmgr::SMGR_TRUNCATE_HEAP => match header.info & 0x70 {
            0x00 => Some(HeapOperation::Insert),
            0x10 => Some(HeapOperation::Delete),
            0x20 | 0x40 => Some(HeapOperation::Update),
            0x70 => Some(HeapOperation::InPlace),
            _ => None,
        },
        rmgr::HEAP2 if header.info & 0x70 == 0x50 => Some(HeapOperation::MultiInsert),
        rmgr::XLOG if header.info & RMGR_INFO == 0xB0 => Some(HeapOperation::Pages),
        _ => None,
    }
}

const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const SAME_REL: u8 = 0x80;
const FORK_MASK: u8 = 0x0F;
const IMAGE_HAS_HOLE: u8 = 0x01;

/// The file of a record's first block, if that is in a main fork. Reads no more than the front of the record, and so
/// must be fast: it is asked of most records there are.
#[inline]
pub(super) fn first_file(bytes: &[u8], major: MajorVersion) -> Option<RelFileLocator> {
    let front = bytes.get(RECORD_HEADER_BYTES..)?;
    let &[0, flags, _, _, ref rest @ ..] = front else { return None };
    if flags & (FORK_MASK | SAME_REL) != 0 {
        return None;
    }
    let at = if flags & HAS_IMAGE == 0 {
        0
    } else {
        let image = *rest.get(4)?;
        if image & compressed_image_flags(major) != 0 && image & IMAGE_HAS_HOLE != 0 { 7 } else { 5 }
    };
    let id: &[u8; 12] = rest.get(at..)?.first_chunk()?;
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *id;
    Some(RelFileLocator {
        tablespace: u32::from_le_bytes([a, b, c, d]),
        database: u32::from_le_bytes([e, f, g, h]),
        filenode: u32::from_le_bytes([i, j, k, l]),
    })
}

/// Until 14 there was one way to compress an image; in 15 its flag's place went to another, and three ways came.
#[inline]
const fn compressed_image_flags(major: MajorVersion) -> u8 {
    match major {
        MajorVersion::V13 | MajorVersion::V14 => 0x02,
        MajorVersion::V15 | MajorVersion::V16 | MajorVersion::V17 | MajorVersion::V18 => 0x1C,
    }
}

/// A block that a record refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct RecordBlock<'a> {
    pub(super) file: RelFileLocator,
    /// 0 for the main fork.
    pub(super) fork: u8,
    pub(super) number: u32,
    pub(super) image: Option<PageImage<'a>>,
    pub(super) data: &'a [u8],
}

/// A page in a record, without the hole in its middle.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PageImage<'a> {
    bytes: &'a [u8],
    hole: u16,
    way: Option<ImageCompression>,
}

/// A record's blocks, with what of the record belongs to each, and its main data.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct RecordBlocks<'a> {
    pub(super) blocks: Vec<RecordBlock<'a>>,
    pub(super) main: &'a [u8],
}

impl<'a> RecordBlocks<'a> {
    /// `None` for a record that is not whole, or whose headers don't add up.
    pub(super) fn parse(record: &WalRecord<'a>, major: MajorVersion) -> Option<RecordBlocks<'a>> {
        let main = record.main_data(major)?;
        let mut reader = ByteReader::new(record.bytes.get(RECORD_HEADER_BYTES..)?);
        let mut heads: Vec<(RecordBlock<'a>, usize, usize)> = Vec::new();
        let mut file = None;
        while let Some(&id) = reader.rest().first()
            && id <= 32
        {
            reader.u8()?;
            let head = read_block(&mut reader, file, major)?;
            file = Some(head.0.file);
            heads.push(head);
        }
        // Origin, transaction and the main data's length come between the blocks' headers and what belongs to them.
        let of_blocks: usize = heads.iter().map(|(_, image, data)| image.saturating_add(*data)).sum();
        let from = record.bytes.len().checked_sub(main.len())?.checked_sub(of_blocks)?;
        let mut rest = ByteReader::new(record.bytes.get(from..)?);
        let mut blocks = Vec::with_capacity(heads.len());
        for (mut block, image_len, data_len) in heads {
            let image = rest.take_bytes(image_len)?;
            block.data = rest.take_bytes(data_len)?;
            block.image = block.image.map(|found| PageImage { bytes: image, ..found });
            blocks.push(block);
        }
        Some(RecordBlocks { blocks, main })
    }
}

/// A block's header after its id; with how many bytes of image and of data belong to it.
fn read_block<'a>(
    reader: &mut ByteReader<'a>,
    before: Option<RelFileLocator>,
    major: MajorVersion,
) -> Option<(RecordBlock<'a>, usize, usize)> {
    let flags = reader.u8()?;
    let data_len = usize::from(reader.u16()?);
    let (mut image, mut image_len) = (None, 0);
    if flags & HAS_IMAGE != 0 {
        image_len = usize::from(reader.u16()?);
        let hole = reader.u16()?;
        let info = reader.u8()?;
        let way = image_compression(info, major);
        if way.is_some() && info & IMAGE_HAS_HOLE != 0 {
            reader.u16()?;
        }
        image = Some(PageImage { bytes: &[], hole, way });
    }
    let file = if flags & SAME_REL != 0 {
        before?
    } else {
        RelFileLocator { tablespace: reader.u32()?, database: reader.u32()?, filenode: reader.u32()? }
    };
    let number = reader.u32()?;
    let data_len = if flags & HAS_DATA == 0 && data_len == 0 { 0 } else { data_len };
    Some((RecordBlock { file, fork: flags & FORK_MASK, number, image, data: &[] }, image_len, data_len))
}

/// How the image is compressed, if it is (`xlogrecord.h`).
const fn image_compression(info: u8, major: MajorVersion) -> Option<ImageCompression> {
    match info & compressed_image_flags(major) {
        0 => None,
        0x08 => Some(ImageCompression::Lz4),
        0x10 => Some(ImageCompression::Zstd),
        _ => Some(ImageCompression::Pglz),
    }
}

impl<'a> PageImage<'a> {
    /// The user data of the tuple at this place of the page. `None` if there is none.
    fn tuple_data(&self, offset: u16) -> Option<Cow<'a, [u8]>> {
        let hole = usize::from(self.hole);
        match self.way {
            None => tuple_in_page(self.bytes, hole, offset).map(Cow::Borrowed),
            Some(way) => {
                let page = decompress_image(self.bytes, way)?;
                tuple_in_page(&page, hole, offset).map(|tuple| Cow::Owned(tuple.to_vec()))
            }
        }
    }
}

/// The tuple at a place of a page that lacks its hole (`PageGetItemId`, `bufpage.h`).
fn tuple_in_page(page: &[u8], hole: usize, offset: u16) -> Option<&[u8]> {
    const PAGE_HEADER: usize = 24;
    const NORMAL: u32 = 1;
    let pointer = PAGE_HEADER.checked_add(usize::from(offset.checked_sub(1)?).checked_mul(4)?)?;
    if hole > 0 && pointer.checked_add(4)? > hole {
        return None;
    }
    let item = u32::from_le_bytes(*page.get(pointer..)?.first_chunk()?);
    let (at, flags, len) = (item & 0x7FFF, item >> 15 & 3, item >> 17);
    if flags != NORMAL {
        return None;
    }
    // The page's own header says how long it is; what of that is not here is the hole, and tuples lie behind it.
    let version = u16::from_le_bytes(*page.get(18..)?.first_chunk()?);
    let missing = usize::from(version & 0xFF00).checked_sub(page.len())?;
    let at = (at as usize).checked_sub(missing)?;
    let tuple = page.get(at..at.checked_add(len as usize)?)?;
    let header = usize::from(*tuple.get(22)?);
    tuple.get(header..)
}

/// How a tuple stands in its record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum HeapTuple<'a> {
    /// All of its user data.
    Whole(Cow<'a, [u8]>),
    /// As the tuple before but for these bytes, which stand so far behind its beginning.
    Changed(u16, &'a [u8]),
}

/// The place of a tuple: page, and number on it.
pub(super) type ItemPointer = (u32, u16);

/// What a record of one tuple does: where the tuple is that it makes, what is in it, and where the one is that it takes
/// away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct HeapChange<'a> {
    pub(super) file: RelFileLocator,
    pub(super) new: Option<(ItemPointer, Option<HeapTuple<'a>>)>,
    pub(super) old: Option<ItemPointer>,
}

/// Reads an insertion, an update, a deletion or a change in place. `None` for anything else.
pub(super) fn heap_change<'a>(record: &WalRecord<'a>, major: MajorVersion) -> Option<HeapChange<'a>> {
    let operation = heap_operation(&record.header)?;
    let parts = RecordBlocks::parse(record, major)?;
    let first = parts.blocks.first()?;
    let mut main = ByteReader::new(parts.main);
    let file = first.file;
    Some(match operation {
        HeapOperation::Insert => {
            let offset = main.u16()?;
            let tuple = match first.image {
                Some(image) => image.tuple_data(offset),
                None => after_tuple_header(first.data).map(Cow::Borrowed),
            };
            HeapChange { file, new: Some(((first.number, offset), tuple.map(HeapTuple::Whole))), old: None }
        }
        HeapOperation::Delete => {
            main.u32()?;
            HeapChange { file, new: None, old: Some((first.number, main.u16()?)) }
        }
        HeapOperation::InPlace => {
            let offset = main.u16()?;
            let tuple = match first.image {
                Some(image) => image.tuple_data(offset),
                None => Some(Cow::Borrowed(first.data)),
            };
            HeapChange { file, new: Some(((first.number, offset), tuple.map(HeapTuple::Whole))), old: None }
        }
        HeapOperation::Update => {
            main.u32()?;
            let old = main.u16()?;
            main.u8()?;
            let flags = main.u8()?;
            main.u32()?;
            let offset = main.u16()?;
            let tuple = match first.image {
                Some(image) => image.tuple_data(offset).map(HeapTuple::Whole),
                None => updated_tuple(first.data, flags),
            };
            let old_page = parts.blocks.get(1).map_or(first.number, |block| block.number);
            HeapChange { file, new: Some(((first.number, offset), tuple)), old: Some((old_page, old)) }
        }
        HeapOperation::MultiInsert | HeapOperation::Pages => return None,
    })
}

/// `xl_heap_header`, and behind it the tuple from its null bitmap on.
const SHORT_TUPLE_HEADER_BYTES: usize = 5;
/// `SizeofHeapTupleHeader`.
const TUPLE_HEADER_BYTES: usize = 23;

fn after_tuple_header(data: &[u8]) -> Option<&[u8]> {
    let hoff = usize::from(*data.get(4)?);
    data.get(SHORT_TUPLE_HEADER_BYTES.checked_add(hoff.checked_sub(TUPLE_HEADER_BYTES)?)?..)
}

/// `log_heap_update`: what the new tuple shares with the old one at either end may be left out.
fn updated_tuple(data: &[u8], flags: u8) -> Option<HeapTuple<'_>> {
    const PREFIX_FROM_OLD: u8 = 1 << 5;
    const SUFFIX_FROM_OLD: u8 = 1 << 6;
    let mut reader = ByteReader::new(data);
    let prefix = if flags & PREFIX_FROM_OLD == 0 { 0 } else { reader.u16()? };
    let suffix = if flags & SUFFIX_FROM_OLD == 0 { 0 } else { reader.u16()? };
    let changed = after_tuple_header(reader.rest())?;
    Some(if prefix == 0 && suffix == 0 {
        HeapTuple::Whole(Cow::Borrowed(changed))
    } else {
        HeapTuple::Changed(prefix, changed)
    })
}

/// Rows that the record changes; 0 where that cannot be told.
pub(super) fn inserted_rows(record: &WalRecord<'_>, major: MajorVersion) -> u64 {
    // `xl_heap_multi_insert`: flags, a byte of padding, then the number of tuples.
    let count = |main: &[u8]| Some(u16::from_le_bytes(*main.get(2..)?.first_chunk()?));
    record.main_data(major).and_then(count).map_or(0, u64::from)
}
