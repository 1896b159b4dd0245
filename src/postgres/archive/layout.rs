//! Where the objects of a cluster are: names to keys and back. Pure; `docs/format/repository.md` is the same in prose.
//!
//! Fixed-width hexadecimal makes the order of keys the order of positions.

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, WalFileName};
use crate::postgres::format::timeline::TimelineId;
use crate::vault::archive_name;
use crate::vault::repository::key::{KeyPrefix, ObjectKey, ObjectKeyError};

archive_name! {
    /// The name under which a cluster is configured and its objects are stored.
    ClusterName
}

/// Ends the name of a decision; what precedes it is the name of the fork.
const RESOLVED_SUFFIX: &str = ".resolved";

/// What an object of a cluster is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClusterObject {
    /// `cluster`: the system identifier and the segment size.
    Identity,
    /// A whole WAL segment.
    Segment(SegmentName),
    /// Another file of `pg_wal`: a partial segment, a history, a backup label, or a name only its sender understands.
    File(WalFileName),
    /// A backup's manifest, by label.
    Backup(String),
    /// The names that go with a backup, by its label.
    Names(String),
    /// A manifest whose backup was taken away, by label: its packs stay for a while.
    Expired(String),
    /// That a backup is to stay, by its label.
    Pin(String),
    /// The mark of a backup under way: its name, and the renewal's number.
    Running(String, u32),
    /// A pack of chunks, by id.
    Pack(String),
    /// WAL that is known to be lost.
    Gap {
        /// The timeline it was on.
        timeline: TimelineId,
        /// The first byte lost.
        start: Lsn,
        /// The position after the last byte lost.
        end: Lsn,
    },
    /// A server whose WAL differs from the archive.
    Fork {
        /// The timeline it is on.
        timeline: TimelineId,
        /// Where the server leaves the archive.
        at: Lsn,
    },
    /// What an operator decided about a fork.
    ForkResolution {
        /// The fork's timeline.
        timeline: TimelineId,
        /// The fork's position.
        at: Lsn,
    },
    /// WAL of a segment that still grows.
    Piece {
        /// The timeline it is on.
        timeline: TimelineId,
        /// Its first byte.
        start: Lsn,
        /// The position after its last byte.
        end: Lsn,
    },
    /// What `check` writes and deletes.
    Probe(String),
}

/// The keys of one cluster's objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    cluster: ClusterName,
}

impl Layout {
    /// The keys of the cluster of this name.
    #[must_use]
    pub const fn new(cluster: ClusterName) -> Layout {
        Layout { cluster }
    }

    /// The cluster's name.
    #[must_use]
    pub const fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    fn path_below(&self, path: &str) -> String {
        format!("{}/{path}", self.cluster)
    }

    /// Everything of this cluster.
    #[must_use]
    pub fn all(&self) -> KeyPrefix {
        KeyPrefix::from_parts(self.cluster.0.clone())
    }

    /// What the cluster is.
    #[must_use]
    pub fn identity(&self) -> ObjectKey {
        ObjectKey::from_parts(self.path_below("cluster"))
    }

    /// All WAL: one prefix a timeline below it.
    #[must_use]
    pub fn wal(&self) -> KeyPrefix {
        KeyPrefix::from_parts(self.path_below("wal"))
    }

    /// One timeline's WAL: one prefix for each log file of 4 GiB below it, and `files`.
    #[must_use]
    pub fn timeline(&self, timeline: TimelineId) -> KeyPrefix {
        KeyPrefix::from_parts(self.path_below(&format!("wal/{}", timeline.hex())))
    }

    /// A whole segment.
    #[must_use]
    pub fn segment(&self, name: SegmentName) -> ObjectKey {
        let name = name.to_string();
        let log: String = name.chars().skip(8).take(8).collect();
        let timeline: String = name.chars().take(8).collect();
        ObjectKey::from_parts(self.path_below(&format!("wal/{timeline}/{log}/{name}")))
    }

    /// Any file of `pg_wal` by its name.
    #[must_use]
    pub fn file(&self, name: &WalFileName) -> ObjectKey {
        match name {
            WalFileName::Segment(segment) => self.segment(*segment),
            WalFileName::Partial(segment) | WalFileName::BackupLabel { segment, .. } => {
                ObjectKey::from_parts(self.path_below(&format!("wal/{}/files/{name}", segment.timeline().hex())))
            }
            WalFileName::History(timeline) => {
                ObjectKey::from_parts(self.path_below(&format!("history/{}.history", timeline.hex())))
            }
            // The place in which the receiver has always put them.
            WalFileName::Tail { .. } | WalFileName::Other(_) => {
                ObjectKey::from_parts(self.path_below(&format!("wal/other/{name}")))
            }
        }
    }

    /// The beginnings of segments whose rest was never received, and files with names that only their senders
    /// understand.
    #[must_use]
    pub fn other_files(&self) -> KeyPrefix {
        KeyPrefix::from_parts(self.path_below("wal/other"))
    }

    /// All timeline histories.
    #[must_use]
    pub fn histories(&self) -> KeyPrefix {
        KeyPrefix::from_parts(self.path_below("history"))
    }

    /// All backups' manifests; labels sort by time.
    #[must_use]
    pub fn backups(&self) -> KeyPrefix {
        KeyPrefix::from_parts(self.path_below("backup"))
    }

    /// The manifest of the backup `label`.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if `label` cannot stand in a name.
    pub fn backup(&self, label: &str) -> Result<ObjectKey, ObjectKeyError> {
        self.backups().object_key(label)
    }

    /// What databases and tables were called when the backup `label` was taken.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if `label` cannot stand in a name.
    pub fn names(&self, label: &str) -> Result<ObjectKey, ObjectKeyError> {
        self.all_names().object_key(label)
    }

    /// The names of all backups.
    #[must_use]
    pub fn all_names(&self) -> KeyPrefix {
        KeyPrefix::from_parts(self.path_below("names"))
    }

    /// All expired manifests.
    #[must_use]
    pub fn expired(&self) -> KeyPrefix {
        KeyPrefix::from_parts(self.path_below("expired"))
    }

    /// The manifest of the backup `label` that was taken away.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if `label` cannot stand in a name.
    pub fn expired_manifest(&self, label: &str) -> Result<ObjectKey, ObjectKeyError> {
        self.expired().object_key(label)
    }

    /// All pins.
    #[must_use]
    pub fn pins(&self) -> KeyPrefix {
        KeyPrefix::from_parts(self.path_below("keep"))
    }

    /// The pin of the backup `label`.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if `label` cannot stand in a name.
    pub fn pin(&self, label: &str) -> Result<ObjectKey, ObjectKeyError> {
        self.pins().object_key(label)
    }

    /// The marks of backups under way, one prefix for each below it.
    #[must_use]
    pub fn running(&self) -> KeyPrefix {
        KeyPrefix::from_parts(self.path_below("running"))
    }

    /// All packs.
    #[must_use]
    pub fn packs(&self) -> KeyPrefix {
        KeyPrefix::from_parts(self.path_below("pack"))
    }

    /// The pack `id`, in one of up to 256 parts by its first two characters.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if `id` cannot stand in a name.
    pub fn pack(&self, id: &str) -> Result<ObjectKey, ObjectKeyError> {
        let part: String = id.chars().take(2).collect();
        self.packs().child(&part)?.object_key(id)
    }

    /// All recorded gaps.
    #[must_use]
    pub fn gaps(&self) -> KeyPrefix {
        KeyPrefix::from_parts(self.path_below("gap"))
    }

    /// A gap from `start` to `end`.
    #[must_use]
    pub fn gap(&self, timeline: TimelineId, start: Lsn, end: Lsn) -> ObjectKey {
        ObjectKey::from_parts(self.path_below(&format!("gap/{}/{}", timeline.hex(), format_range(start, end))))
    }

    /// All recorded forks, and what was decided about them.
    #[must_use]
    pub fn forks(&self) -> KeyPrefix {
        KeyPrefix::from_parts(self.path_below("fork"))
    }

    /// A fork on `timeline` at `at`.
    #[must_use]
    pub fn fork(&self, timeline: TimelineId, at: Lsn) -> ObjectKey {
        ObjectKey::from_parts(self.path_below(&format!("fork/{}/{:016X}", timeline.hex(), at.get())))
    }

    /// What was decided about a fork.
    #[must_use]
    pub fn fork_resolution(&self, timeline: TimelineId, at: Lsn) -> ObjectKey {
        ObjectKey::from_parts(self.path_below(&format!("fork/{}/{:016X}{RESOLVED_SUFFIX}", timeline.hex(), at.get())))
    }

    /// All pieces of segments that still grow.
    #[must_use]
    pub fn pieces(&self) -> KeyPrefix {
        KeyPrefix::from_parts(self.path_below("piece"))
    }

    /// Those of one timeline.
    #[must_use]
    pub fn timeline_pieces(&self, timeline: TimelineId) -> KeyPrefix {
        KeyPrefix::from_parts(self.path_below(&format!("piece/{}", timeline.hex())))
    }

    /// The piece from `start` to `end`.
    #[must_use]
    pub fn piece(&self, timeline: TimelineId, start: Lsn, end: Lsn) -> ObjectKey {
        ObjectKey::from_parts(self.path_below(&format!("piece/{}/{}", timeline.hex(), format_range(start, end))))
    }

    /// What `check` writes and deletes.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if `name` cannot stand in a name.
    pub fn probe(&self, name: &str) -> Result<ObjectKey, ObjectKeyError> {
        KeyPrefix::from_parts(self.path_below("probe")).object_key(name)
    }

    /// The key of `object`.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if a label, an id or a probe's name cannot stand in a name.
    fn key_of_object(&self, object: &ClusterObject) -> Result<ObjectKey, ObjectKeyError> {
        match object {
            ClusterObject::Identity => Ok(self.identity()),
            ClusterObject::Segment(name) => Ok(self.segment(*name)),
            ClusterObject::File(name) => Ok(self.file(name)),
            ClusterObject::Backup(label) => self.backup(label),
            ClusterObject::Names(label) => self.names(label),
            ClusterObject::Expired(label) => self.expired_manifest(label),
            ClusterObject::Pin(label) => self.pin(label),
            ClusterObject::Running(name, number) => self.running().child(name)?.object_key(&format!("{number:06}")),
            ClusterObject::Pack(id) => self.pack(id),
            ClusterObject::Gap { timeline, start, end } => Ok(self.gap(*timeline, *start, *end)),
            ClusterObject::Fork { timeline, at } => Ok(self.fork(*timeline, *at)),
            ClusterObject::ForkResolution { timeline, at } => Ok(self.fork_resolution(*timeline, *at)),
            ClusterObject::Piece { timeline, start, end } => Ok(self.piece(*timeline, *start, *end)),
            ClusterObject::Probe(name) => self.probe(name),
        }
    }

    /// What stands under `key`, or `None` if it is not a name that walkeep gives to an object of this cluster.
    #[must_use]
    pub fn object_of_key(&self, key: &ObjectKey) -> Option<ClusterObject> {
        let path = key.as_str().strip_prefix(self.cluster.as_str())?.strip_prefix('/')?;
        let parts: Vec<&str> = path.split('/').collect();
        let object = match parts.as_slice() {
            ["cluster"] => ClusterObject::Identity,
            ["wal", _, "files", name] | ["wal", "other", name] | ["history", name] => {
                ClusterObject::File(WalFileName::parse(name)?)
            }
            ["wal", _, _, name] => ClusterObject::Segment(SegmentName::parse(name)?),
            ["backup", label] => ClusterObject::Backup((*label).to_owned()),
            ["names", label] => ClusterObject::Names((*label).to_owned()),
            ["expired", label] => ClusterObject::Expired((*label).to_owned()),
            ["keep", label] => ClusterObject::Pin((*label).to_owned()),
            ["running", name, number] => ClusterObject::Running((*name).to_owned(), number.parse().ok()?),
            ["pack", _, id] => ClusterObject::Pack((*id).to_owned()),
            ["gap", timeline, range] => {
                let (timeline, start, end) = parse_range(timeline, range)?;
                ClusterObject::Gap { timeline, start, end }
            }
            ["fork", timeline, at] => {
                let (at, resolved) = at.strip_suffix(RESOLVED_SUFFIX).map_or((*at, false), |at| (at, true));
                let (timeline, at) = (parse_timeline(timeline)?, Lsn::new(parse_hex(at, 16)?));
                if resolved {
                    ClusterObject::ForkResolution { timeline, at }
                } else {
                    ClusterObject::Fork { timeline, at }
                }
            }
            ["piece", timeline, range] => {
                let (timeline, start, end) = parse_range(timeline, range)?;
                ClusterObject::Piece { timeline, start, end }
            }
            ["probe", name] => ClusterObject::Probe((*name).to_owned()),
            _ => return None,
        };
        // One object, one name: what does not come back to the same key stands in a wrong place.
        (self.key_of_object(&object).ok().as_ref() == Some(key)).then_some(object)
    }
}

fn format_range(start: Lsn, end: Lsn) -> String {
    format!("{:016X}-{:016X}", start.get(), end.get())
}

/// A timeline and a range of it, as names have them.
fn parse_range(timeline: &str, range: &str) -> Option<(TimelineId, Lsn, Lsn)> {
    let (start, end) = range.split_once('-')?;
    Some((parse_timeline(timeline)?, Lsn::new(parse_hex(start, 16)?), Lsn::new(parse_hex(end, 16)?)))
}

fn parse_timeline(timeline: &str) -> Option<TimelineId> {
    TimelineId::new(u32::try_from(parse_hex(timeline, 8)?).ok()?)
}

/// `digits` upper-case hexadecimal digits.
fn parse_hex(text: &str, digits: usize) -> Option<u64> {
    let plain = text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'));
    if plain { u64::from_str_radix(text, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::{ClusterName, ClusterObject, Layout, ObjectKey};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::segment::{SegmentName, SegmentNo, SegmentSize, WalFileName};
    use crate::postgres::format::timeline::TimelineId;
    use proptest::prelude::*;

    fn layout() -> Layout {
        Layout::new("main".parse().unwrap())
    }

    #[test]
    fn every_object_stands_where_the_format_says() {
        let check = |object: ClusterObject, expected: &str| {
            let key = layout().key_of_object(&object).unwrap();
            assert_eq!(key.as_str(), expected);
            assert_eq!(layout().object_of_key(&key), Some(object), "{expected}");
        };
        let file = |name| ClusterObject::File(WalFileName::parse(name).unwrap());
        let segment = SegmentName::parse("0000000A00000001000000FE").unwrap();
        check(ClusterObject::Identity, "main/cluster");
        check(ClusterObject::Segment(segment), "main/wal/0000000A/00000001/0000000A00000001000000FE");
        check(file("0000000A00000001000000FE.partial"), "main/wal/0000000A/files/0000000A00000001000000FE.partial");
        check(
            file("0000000A00000001000000FE.00000028.backup"),
            "main/wal/0000000A/files/0000000A00000001000000FE.00000028.backup",
        );
        check(file("0000000A.history"), "main/history/0000000A.history");
        check(file("custom.file.1"), "main/wal/other/custom.file.1");
        let tail = ClusterObject::File(WalFileName::Tail { segment, len: 0x2000 });
        check(tail, "main/wal/other/0000000A00000001000000FE.00002000.tail");
        check(ClusterObject::Backup("20261122T020000Z-F".into()), "main/backup/20261122T020000Z-F");
        check(ClusterObject::Names("20261122T020000Z-F".into()), "main/names/20261122T020000Z-F");
        check(ClusterObject::Expired("20261122T020000Z-F".into()), "main/expired/20261122T020000Z-F");
        check(ClusterObject::Pin("20261122T020000Z-F".into()), "main/keep/20261122T020000Z-F");
        check(
            ClusterObject::Running("20261122T020000Z-F-12ab".into(), 3),
            "main/running/20261122T020000Z-F-12ab/000003",
        );
        check(ClusterObject::Pack("ab12".into()), "main/pack/ab/ab12");
        check(
            ClusterObject::Gap {
                timeline: TimelineId::new(10).unwrap(),
                start: Lsn::new(0x1_0000_0000),
                end: Lsn::new(u64::MAX),
            },
            "main/gap/0000000A/0000000100000000-FFFFFFFFFFFFFFFF",
        );
        check(
            ClusterObject::Piece {
                timeline: TimelineId::new(10).unwrap(),
                start: Lsn::new(0x1_0000_0000),
                end: Lsn::new(0x1_0000_2000),
            },
            "main/piece/0000000A/0000000100000000-0000000100002000",
        );
        let (timeline, at) = (TimelineId::new(10).unwrap(), Lsn::new(0x1_0000_2000));
        check(ClusterObject::Fork { timeline, at }, "main/fork/0000000A/0000000100002000");
        check(ClusterObject::ForkResolution { timeline, at }, "main/fork/0000000A/0000000100002000.resolved");
        check(ClusterObject::Probe("x1".into()), "main/probe/x1");
    }

    #[test]
    fn what_stands_in_a_wrong_place_is_not_ours() {
        for wrong in [
            "other/cluster",
            "mainly/cluster",
            "main",
            "main/wal/0000000B/00000001/0000000A00000001000000FE",
            "main/wal/0000000A/00000002/0000000A00000001000000FE",
            "main/wal/0000000A/files/0000000A00000001000000FE",
            "main/wal/other/0000000A.history",
            "main/wal/0000000A/files/0000000A00000001000000FE.00002000.tail",
            "main/history/custom.file.1",
            "main/pack/ac/ab12",
            "main/gap/0000000A/1-2",
            "main/fork/0000000A/100002000",
            "main/fork/0000000A/0000000100002000.resolved.resolved",
            "main/gap/00000000/0000000100000000-FFFFFFFFFFFFFFFF",
        ] {
            assert_eq!(layout().object_of_key(&ObjectKey::parse(wrong).unwrap()), None, "{wrong}");
        }
    }

    #[test]
    fn names_of_other_archives_are_refused() {
        for wrong in ["", "keys", "KEYS", "-a", "_a", "a.b", "a/b", "..", &"a".repeat(64)] {
            assert!(wrong.parse::<ClusterName>().is_err(), "{wrong:?}");
        }
        assert!(layout().backup("a/b").is_err());
        assert!(layout().probe("..").is_err());
    }

    proptest! {
        #[test]
        fn keys_sort_as_positions_do(a in 0..1_u64 << 40, b in 0..1_u64 << 40, mebibytes in 0..=10_u32) {
            let size = SegmentSize::new(1 << (20 + mebibytes)).unwrap();
            let timeline = TimelineId::FIRST;
            let (Some(x), Some(y)) = (
                SegmentName::new(timeline, SegmentNo::new(a), size),
                SegmentName::new(timeline, SegmentNo::new(b), size),
            ) else { return Ok(()) };
            prop_assert_eq!(a.cmp(&b), layout().segment(x).cmp(&layout().segment(y)));
            let gap = |start| layout().gap(timeline, Lsn::new(start), Lsn::MAX);
            prop_assert_eq!(a.cmp(&b), gap(a).cmp(&gap(b)));
        }
    }
}
