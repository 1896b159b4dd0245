//! What the index keeps of one segment, and of a block of segments.

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;
use crate::postgres::wal::digest::{SegmentDigest, SegmentState};
use crate::postgres::wal::event::{TransactionEnd, TransactionEndKind, Xid};

use super::error::IndexError;
use super::value_codec::{ValueReader, ValueWriter};
use super::xid_ranges::XidRanges;

/// One segment: its digest without the dense part, and what a search asks of it first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SegmentSummary {
    /// The segment's digest without endings and events, and once its head has been joined without the head's bytes.
    pub digest: SegmentDigest,
    /// How many transactions end in it, the one of [`ContrecordState::Whole`] included.
    pub endings: u64,
    /// The smallest time of those endings.
    pub earliest: Option<PgTime>,
    /// The largest time of those endings.
    pub latest: Option<PgTime>,
    /// Ranges that cover the transactions that end in it.
    pub xids: XidRanges,
    /// The record that began before the segment, if one reaches into it.
    pub contrecord: ContrecordState,
    /// Bytes of the segment's object in the repository, 0 if not known.
    pub stored: u64,
}

/// What became of the record that reaches into a segment from the one before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ContrecordState {
    /// None does.
    None,
    /// One does, and the segments with its other parts are not in the index yet, or a part was too long to keep.
    Open,
    /// It goes on beyond this segment, too: it counts where it ends.
    Through,
    /// Its parts make a whole record, with the right CRC.
    Whole {
        /// Where the record starts.
        start: Lsn,
        /// The transaction that ends with it, if it is that kind of record.
        ending: Option<TransactionEnd>,
    },
    /// Its parts don't make a record: one of the two segments is not what was written.
    Torn(String),
}

impl SegmentSummary {
    /// The summary of a segment whose neighbours are not known.
    #[must_use]
    pub fn from_digest(digest: &SegmentDigest, stored: u64) -> SegmentSummary {
        let joint = match &digest.head {
            None => ContrecordState::None,
            Some(head) if head.held < head.total => ContrecordState::Through,
            Some(_) => ContrecordState::Open,
        };
        let kept = (digest.state.clone(), digest.head.clone(), digest.tail.clone());
        SegmentSummary {
            digest: SegmentDigest {
                endings: Vec::new(),
                events: Vec::new(),
                changes: Vec::new(),
                state: kept.0,
                head: kept.1,
                tail: kept.2,
                ..*digest
            },
            endings: digest.endings.len() as u64,
            earliest: digest.earliest,
            latest: digest.latest,
            xids: XidRanges::covering(named_xids(&digest.endings), XidRanges::RANGES_PER_SEGMENT),
            contrecord: joint,
            stored,
        }
    }

    /// Takes in what became of the record that reaches into the segment.
    #[must_use]
    pub fn with_contrecord(mut self, joint: ContrecordState) -> SegmentSummary {
        if let ContrecordState::Whole { ending: Some(ending), .. } = &joint {
            self.endings = self.endings.saturating_add(1);
            self.earliest = Some(self.earliest.map_or(ending.time, |time| time.min(ending.time)));
            self.latest = self.latest.max(Some(ending.time));
            self.xids = self.xids.union(&XidRanges::covering(named_xids(&[*ending]), 1), XidRanges::RANGES_PER_SEGMENT);
        }
        if !matches!(joint, ContrecordState::Open | ContrecordState::Through) {
            // They were kept for this, and may be 64 KiB.
            self.digest.head.iter_mut().for_each(|head| head.bytes = Vec::new());
        }
        self.contrecord = joint;
        self
    }

    /// The transaction that ends with the record that reaches into the segment.
    #[must_use]
    pub fn contrecord_ending(&self) -> Option<&TransactionEnd> {
        match &self.contrecord {
            ContrecordState::Whole { ending, .. } => ending.as_ref(),
            ContrecordState::None | ContrecordState::Open | ContrecordState::Through | ContrecordState::Torn(_) => None,
        }
    }

    /// Whether the digest says all about the segment's records.
    #[must_use]
    pub fn is_checked(&self) -> bool {
        self.digest.state == SegmentState::Checked
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut writer = ValueWriter::default();
        writer.bytes(&self.digest.to_bytes());
        writer.number(self.endings);
        put_time(&mut writer, self.earliest);
        put_time(&mut writer, self.latest);
        self.xids.write(&mut writer);
        put_contrecord(&mut writer, &self.contrecord);
        writer.number(self.stored);
        writer.finish()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<SegmentSummary, IndexError> {
        let mut reader = ValueReader::new(bytes);
        let read = |reader: &mut ValueReader<'_>| {
            Some(SegmentSummary {
                digest: SegmentDigest::from_bytes(reader.bytes()?).ok()?,
                endings: reader.number()?,
                earliest: read_time(reader)?,
                latest: read_time(reader)?,
                xids: XidRanges::read(reader)?,
                contrecord: read_contrecord(reader)?,
                stored: reader.number()?,
            })
        };
        read(&mut reader).filter(|_| reader.is_finished()).ok_or(IndexError::MalformedValue("segment summary"))
    }
}

/// The transactions that a target can name: those with a number.
fn named_xids(endings: &[TransactionEnd]) -> impl Iterator<Item = u32> {
    endings.iter().map(|ending| ending.xid.get()).filter(|&xid| xid != 0)
}

/// What 256 segments of a timeline have in common, or four such blocks that are full, so that a search passes over them
/// in one step. It may claim too much, never too little: a removed segment leaves times and transactions as they are.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BlockSummary {
    /// The largest time of an ending.
    pub latest: Option<PgTime>,
    /// Ranges that cover the transactions that end there.
    pub xids: XidRanges,
    /// Whether any segment holds an ending.
    pub endings: bool,
    /// How many of its segments are there.
    pub segments: u64,
    /// What they are together, once all are there.
    pub full: Option<FullBlock>,
}

/// All segments of a block together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FullBlock {
    /// Whether the log in them can be read from the first segment to the last: every record is right, and each segment
    /// tied to the one before.
    pub whole: bool,
    /// Records that start and end in one of them.
    pub records: u64,
    /// Bytes of their objects.
    pub stored: u64,
}

impl BlockSummary {
    /// Four neighbours in one, if all of them are full. Whether their log hangs together is not known by that.
    #[must_use]
    pub fn from_children(children: &[BlockSummary]) -> Option<BlockSummary> {
        let mut all =
            BlockSummary { full: Some(FullBlock { whole: false, records: 0, stored: 0 }), ..BlockSummary::default() };
        for child in children {
            let (sum, full) = (all.full.as_mut()?, child.full?);
            sum.records = sum.records.saturating_add(full.records);
            sum.stored = sum.stored.saturating_add(full.stored);
            all.segments = all.segments.saturating_add(child.segments);
            all.latest = all.latest.max(child.latest);
            all.xids = all.xids.union(&child.xids, XidRanges::RANGES_PER_BLOCK);
            all.endings |= child.endings;
        }
        Some(all)
    }

    /// Takes a segment in, which is `new` or was there already. What is known of all together must be found out again.
    #[must_use]
    pub fn with_segment(mut self, summary: &SegmentSummary, new: bool) -> BlockSummary {
        self.segments = self.segments.saturating_add(u64::from(new));
        self.full = None;
        self.latest = self.latest.max(summary.latest);
        self.xids = self.xids.union(&summary.xids, XidRanges::RANGES_PER_BLOCK);
        self.endings |= summary.endings > 0;
        self
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut writer = ValueWriter::default();
        put_time(&mut writer, self.latest);
        self.xids.write(&mut writer);
        writer.byte(u8::from(self.endings));
        writer.number(self.segments);
        writer.byte(self.full.map_or(0, |full| if full.whole { 2 } else { 1 }));
        if let Some(full) = self.full {
            writer.number(full.records);
            writer.number(full.stored);
        }
        writer.finish()
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Result<BlockSummary, IndexError> {
        let mut reader = ValueReader::new(bytes);
        let read = |reader: &mut ValueReader<'_>| {
            let (latest, xids, endings) = (read_time(reader)?, XidRanges::read(reader)?, reader.byte()? != 0);
            let segments = reader.number()?;
            let full = match reader.byte()? {
                0 => None,
                whole @ 1..=2 => {
                    Some(FullBlock { whole: whole == 2, records: reader.number()?, stored: reader.number()? })
                }
                _ => return None,
            };
            Some(BlockSummary { latest, xids, endings, segments, full })
        };
        read(&mut reader).filter(|_| reader.is_finished()).ok_or(IndexError::MalformedValue("block"))
    }
}

fn put_time(writer: &mut ValueWriter, time: Option<PgTime>) {
    writer.byte(u8::from(time.is_some()));
    if let Some(time) = time {
        writer.signed(time.pg_micros());
    }
}

fn read_time(reader: &mut ValueReader<'_>) -> Option<Option<PgTime>> {
    match reader.byte()? {
        0 => Some(None),
        1 => reader.signed().map(|micros| Some(PgTime::from_pg_micros(micros))),
        _ => None,
    }
}

fn put_contrecord(writer: &mut ValueWriter, joint: &ContrecordState) {
    match joint {
        ContrecordState::None => writer.byte(0),
        ContrecordState::Open => writer.byte(1),
        ContrecordState::Through => writer.byte(2),
        ContrecordState::Whole { start, ending: None } => {
            writer.byte(3);
            writer.number(start.get());
        }
        ContrecordState::Whole { start, ending: Some(ending) } => {
            writer.byte(4);
            writer.number(start.get());
            put_ending(writer, ending);
        }
        ContrecordState::Torn(why) => {
            writer.byte(5);
            writer.bytes(why.as_bytes());
        }
    }
}

fn read_contrecord(reader: &mut ValueReader<'_>) -> Option<ContrecordState> {
    Some(match reader.byte()? {
        0 => ContrecordState::None,
        1 => ContrecordState::Open,
        2 => ContrecordState::Through,
        3 => ContrecordState::Whole { start: Lsn::new(reader.number()?), ending: None },
        4 => ContrecordState::Whole { start: Lsn::new(reader.number()?), ending: Some(read_ending(reader)?) },
        5 => ContrecordState::Torn(String::from_utf8_lossy(reader.bytes()?).into_owned()),
        _ => return None,
    })
}

fn put_ending(writer: &mut ValueWriter, ending: &TransactionEnd) {
    writer.number(ending.lsn.get());
    writer.number(ending.end_lsn.get());
    writer.number(u64::from(ending.xid.get()));
    writer.signed(ending.time.pg_micros());
    writer.byte(match ending.kind {
        TransactionEndKind::Commit => 0,
        TransactionEndKind::Abort => 1,
        TransactionEndKind::CommitPrepared => 2,
        TransactionEndKind::AbortPrepared => 3,
    });
}

fn read_ending(reader: &mut ValueReader<'_>) -> Option<TransactionEnd> {
    Some(TransactionEnd {
        lsn: Lsn::new(reader.number()?),
        end_lsn: Lsn::new(reader.number()?),
        xid: Xid::new(u32::try_from(reader.number()?).ok()?),
        time: PgTime::from_pg_micros(reader.signed()?),
        kind: match reader.byte()? {
            0 => TransactionEndKind::Commit,
            1 => TransactionEndKind::Abort,
            2 => TransactionEndKind::CommitPrepared,
            3 => TransactionEndKind::AbortPrepared,
            _ => return None,
        },
    })
}
