//! WAL segments: their size, their numbers, and the grammar of the names in `pg_wal` and in an archive
//! (`xlog_internal.h`).

use std::fmt;

use super::lsn::Lsn;
use super::timeline_id::TimelineId;

/// The number that identifies a cluster for life (`system_identifier` in `pg_control`); 64 bits, printed in decimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SystemId(u64);

impl SystemId {
    /// The identifier as `pg_control` and each segment's long page header hold it.
    #[must_use]
    pub const fn new(id: u64) -> SystemId {
        SystemId(id)
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl serde::Serialize for SystemId {
    /// As a string: JSON readers round numbers beyond 2^53.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> serde::Deserialize<'de> for SystemId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<SystemId, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map(SystemId).map_err(serde::de::Error::custom)
    }
}

/// The size of a cluster's segments: a power of two from 1 MiB to 1 GiB, 16 MiB unless `initdb --wal-segsize` said
/// otherwise (`IsValidWalSegSize`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SegmentSize(u32);

/// A segment size that PostgreSQL does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} bytes is no WAL segment size; it is a power of two from 1 MiB to 1 GiB")]
pub struct SegmentSizeError(u64);

impl SegmentSize {
    /// 16 MiB, what `initdb` chooses.
    pub const DEFAULT: SegmentSize = SegmentSize(16 << 20);

    /// The largest that PostgreSQL allows.
    pub const MAX_BYTES: u64 = 1 << 30;

    /// The size of `bytes`, if PostgreSQL allows it.
    ///
    /// # Errors
    /// [`SegmentSizeError`] unless `bytes` is a power of two from 1 MiB to 1 GiB.
    pub fn new(bytes: u64) -> Result<SegmentSize, SegmentSizeError> {
        match u32::try_from(bytes) {
            Ok(size) if size.is_power_of_two() && (1 << 20..=1 << 30).contains(&size) => Ok(SegmentSize(size)),
            _ => Err(SegmentSizeError(bytes)),
        }
    }

    /// Bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0 as u64
    }

    /// Bytes, for sizes in memory.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no segment is empty")]
    pub const fn len(self) -> usize {
        self.0 as usize
    }

    /// Segments per 4 GiB of log, where file names wrap (`XLogSegmentsPerXLogId`).
    #[must_use]
    const fn per_log_file(self) -> u64 {
        0x1_0000_0000 / self.get()
    }

    /// The segment that holds the byte at `lsn`.
    #[must_use]
    pub const fn segment_of(self, lsn: Lsn) -> SegmentNo {
        SegmentNo(lsn.get() / self.get())
    }

    /// The offset of `lsn` within its segment.
    #[must_use]
    pub const fn offset_of(self, lsn: Lsn) -> u64 {
        lsn.get() % self.get()
    }
}

impl TryFrom<u32> for SegmentSize {
    type Error = SegmentSizeError;

    fn try_from(bytes: u32) -> Result<SegmentSize, SegmentSizeError> {
        SegmentSize::new(u64::from(bytes))
    }
}

impl From<SegmentSize> for u32 {
    fn from(size: SegmentSize) -> u32 {
        size.0
    }
}

/// The number of a segment: its first byte's position divided by the segment size (`XLogSegNo`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SegmentNo(u64);

impl SegmentNo {
    /// The segment of this number.
    #[must_use]
    pub const fn new(number: u64) -> SegmentNo {
        SegmentNo(number)
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The segment after this one.
    #[must_use]
    pub const fn next(self) -> SegmentNo {
        SegmentNo(self.0.saturating_add(1))
    }

    /// The segment before this one; `None` for the very first.
    #[must_use]
    pub const fn previous(self) -> Option<SegmentNo> {
        match self.0.checked_sub(1) {
            Some(number) => Some(SegmentNo(number)),
            None => None,
        }
    }

    /// The position of the segment's first byte.
    #[must_use]
    pub const fn start(self, size: SegmentSize) -> Lsn {
        Lsn::new(self.0.saturating_mul(size.get()))
    }

    /// The position after the segment's last byte.
    #[must_use]
    pub const fn end(self, size: SegmentSize) -> Lsn {
        self.next().start(size)
    }
}

/// The name of a whole segment: 24 hexadecimal digits, of timeline, log file and segment in it (`XLogFileName`).
///
/// The digits alone don't tell the segment's number: that takes the segment size ([`SegmentName::number`]).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    timeline: TimelineId,
    log: u32,
    segment: u32,
}

impl SegmentName {
    /// The name of segment `number` on `timeline`. `None` past the end of the name space (2^32 log files).
    #[must_use]
    pub fn new(timeline: TimelineId, number: SegmentNo, size: SegmentSize) -> Option<SegmentName> {
        let log = u32::try_from(number.0 / size.per_log_file()).ok()?;
        let segment = u32::try_from(number.0 % size.per_log_file()).ok()?;
        Some(SegmentName { timeline, log, segment })
    }

    /// The timeline the segment is on.
    #[must_use]
    pub const fn timeline(self) -> TimelineId {
        self.timeline
    }

    /// The segment's number. `None` if no segment of a cluster with this segment size has such a name.
    #[must_use]
    pub fn number(self, size: SegmentSize) -> Option<SegmentNo> {
        let segment = u64::from(self.segment);
        (segment < size.per_log_file()).then(|| SegmentNo(u64::from(self.log) * size.per_log_file() + segment))
    }

    /// Reads exactly 24 hexadecimal digits, upper case as PostgreSQL writes them.
    #[must_use]
    pub fn parse(name: &str) -> Option<SegmentName> {
        if name.len() != 24 {
            return None;
        }
        let timeline = TimelineId::new(hex_u32(name.get(0..8)?)?)?;
        Some(SegmentName { timeline, log: hex_u32(name.get(8..16)?)?, segment: hex_u32(name.get(16..24)?)? })
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:08X}{:08X}", self.timeline.hex(), self.log, self.segment)
    }
}

impl fmt::Debug for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Eight upper-case hexadecimal digits (`strspn(fname, "0123456789ABCDEF")` in `IsXLogFileName`).
fn hex_u32(text: &str) -> Option<u32> {
    let plain = text.len() == 8 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if plain { u32::from_str_radix(text, 16).ok() } else { None }
}

/// What PostgreSQL may hand to `archive_command` or ask of `restore_command`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WalFileName {
    /// A whole segment, `0000000100000000000000A3`.
    Segment(SegmentName),
    /// The last, partly filled segment of a timeline that ended in a promotion, `….partial` (`IsPartialXLogFileName`).
    Partial(SegmentName),
    /// A timeline's history, `00000002.history` (`IsTLHistoryFileName`).
    History(TimelineId),
    /// A backup's label, `<segment>.<offset>.backup` (`IsBackupHistoryFileName`).
    BackupLabel {
        /// The segment the backup starts in.
        segment: SegmentName,
        /// The offset of its start in that segment.
        offset: u32,
    },
    /// The beginning of a segment whose rest was never received, `<segment>.<length>.tail`. The receiver archives it
    /// before a gap and at the end of a timeline; PostgreSQL does not use the name.
    Tail {
        /// The segment.
        segment: SegmentName,
        /// How many bytes of the segment the file holds, from the first on.
        len: u32,
    },
    /// Any other name PostgreSQL may use: up to 64 ASCII letters, digits and dots (backup.sgml).
    Other(String),
}

impl WalFileName {
    /// The longest name `archive_command` is ever called with (`MAX_XFN_CHARS` in `pgarch.h` is 40; backup.sgml
    /// promises 64).
    const MAX_BYTES: usize = 64;

    /// Reads a name as PostgreSQL's `%f` gives it. `None` if it is not one that PostgreSQL could use; such a name,
    /// which could also climb out of a directory, must be refused.
    #[must_use]
    pub fn parse(name: &str) -> Option<WalFileName> {
        if let Some(segment) = SegmentName::parse(name) {
            return Some(WalFileName::Segment(segment));
        }
        if let Some(segment) = name.strip_suffix(".partial").and_then(SegmentName::parse) {
            return Some(WalFileName::Partial(segment));
        }
        if let Some(timeline) = name.strip_suffix(".history").and_then(hex_u32).and_then(TimelineId::new) {
            return Some(WalFileName::History(timeline));
        }
        if let Some((segment, offset)) = name.strip_suffix(".backup").and_then(|stem| stem.split_once('.'))
            && let (Some(segment), Some(offset)) = (SegmentName::parse(segment), hex_u32(offset))
        {
            return Some(WalFileName::BackupLabel { segment, offset });
        }
        if let Some((segment, len)) = name.strip_suffix(".tail").and_then(|stem| stem.split_once('.'))
            && let (Some(segment), Some(len)) = (SegmentName::parse(segment), hex_u32(len))
        {
            return Some(WalFileName::Tail { segment, len });
        }
        let known = (1..=WalFileName::MAX_BYTES).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.')
            && !name.starts_with('.');
        known.then(|| WalFileName::Other(name.to_owned()))
    }
}

impl fmt::Display for WalFileName {
    /// The name as it was read.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WalFileName::Segment(segment) => fmt::Display::fmt(segment, f),
            WalFileName::Partial(segment) => write!(f, "{segment}.partial"),
            WalFileName::History(timeline) => write!(f, "{}.history", timeline.hex()),
            WalFileName::BackupLabel { segment, offset } => write!(f, "{segment}.{offset:08X}.backup"),
            WalFileName::Tail { segment, len } => write!(f, "{segment}.{len:08X}.tail"),
            WalFileName::Other(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{SegmentName, SegmentNo, SegmentSize, WalFileName};
    use crate::postgres::format::timeline::TimelineId;

    #[test]
    fn names_wrap_where_the_segment_size_says() {
        let timeline = TimelineId::new(16).unwrap();
        for (mebibytes, number, name) in [
            (16, 255, "0000001000000000000000FF"),
            (16, 256, "000000100000000100000000"),
            (1, 4095, "000000100000000000000FFF"),
            (1, 4096, "000000100000000100000000"),
            (1024, 3, "000000100000000000000003"),
            (1024, 4, "000000100000000100000000"),
        ] {
            let size = SegmentSize::new(mebibytes << 20).unwrap();
            let segment = SegmentName::new(timeline, SegmentNo::new(number), size).unwrap();
            assert_eq!(segment.to_string(), name);
            assert_eq!(SegmentName::parse(&segment.to_string()).unwrap().number(size), Some(SegmentNo::new(number)));
        }
        let beyond = SegmentName::parse("000000010000000000000100").unwrap();
        assert_eq!(beyond.number(SegmentSize::DEFAULT), None, "16 MiB segments end at FF");
    }

    #[test]
    fn sizes_are_powers_of_two_from_1_mib_to_1_gib() {
        for wrong in [0, 1, 1 << 19, (1 << 20) + 1, 3 << 20, 1 << 31, 1 << 40] {
            assert!(SegmentSize::new(wrong).is_err(), "{wrong} was accepted");
        }
    }

    #[test]
    fn every_name_postgresql_may_use_is_known_and_no_other() {
        let segment = SegmentName::parse("0000000100000000000000A3").unwrap();
        let check = |name: &str, expected: WalFileName| {
            assert_eq!(WalFileName::parse(name).as_ref(), Some(&expected), "{name}");
            assert_eq!(expected.to_string(), name);
        };
        check("0000000100000000000000A3", WalFileName::Segment(segment));
        check("0000000100000000000000A3.partial", WalFileName::Partial(segment));
        check("00000010.history", WalFileName::History(TimelineId::new(16).unwrap()));
        check("0000000100000000000000A3.00000028.backup", WalFileName::BackupLabel { segment, offset: 0x28 });
        check("0000000100000000000000A3.00A2B0C8.tail", WalFileName::Tail { segment, len: 0x00A2_B0C8 });
        check("0000000100000000000000A3.tail", WalFileName::Other("0000000100000000000000A3.tail".into()));
        check("0000000100000000000000a3", WalFileName::Other("0000000100000000000000a3".into()));
        check("custom.file.1", WalFileName::Other("custom.file.1".into()));
        for wrong in ["", "..", "a/b", "../x", "a b", "a\0", "é", ".hidden", &"a".repeat(65)] {
            assert_eq!(WalFileName::parse(wrong), None, "{wrong:?}");
        }
    }
}
