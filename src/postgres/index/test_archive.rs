//! A made-up archive for tests: timelines that fork, segments that are missing, times that go back and forth, ids that
//! wrap; and the slow, obvious answers to what the index is asked.

use proptest::prelude::{Strategy, any, prop_oneof};

use super::key_value_store::MemoryStore;
use super::keys::{ClusterKeys, SegmentId};
use super::segment_update::{IndexEntry, IndexUpdate};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentNo, SegmentSize, SystemId};
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::{HistoryEntry, TimelineHistory, TimelineId, TimelinePath};
use crate::postgres::wal::digest::{SegmentDigest, SegmentState};
use crate::postgres::wal::event::{TransactionEnd, TransactionEndKind, WalEvent, WalEventKind, Xid};

/// The cluster's name.
pub(crate) const CLUSTER_NAME: &str = "main";
/// The first segment.
pub(crate) const FIRST_SEGMENT: u64 = 3;

/// Digests along a chain of timelines 1, 2, 3 …, and the path to the last.
#[derive(Debug, Clone)]
pub(crate) struct TestArchive {
    pub(crate) digests: Vec<SegmentDigest>,
    pub(crate) path: TimelinePath,
    pub(crate) size: SegmentSize,
}

/// What a world is made of.
#[derive(Debug, Clone)]
pub(crate) struct ArchiveRecipe {
    /// For each timeline how many segments it goes on for, and where in its last one it is left (in eighths).
    lives: Vec<(u64, u64)>,
    /// For each ending: distance to the one before (in sixteenths of a segment), step of its xid, step of its time,
    /// kind.
    steps: Vec<(u64, i32, i64, u8)>,
    /// Which segments were never archived.
    missing: Vec<bool>,
    /// Whether the parent's copy of a segment in which a timeline forks was archived.
    parents_copy: bool,
    xid: u32,
}

pub(crate) fn any_recipe() -> impl Strategy<Value = ArchiveRecipe> {
    use proptest::collection::vec;
    let step = (
        0..40_u64,
        -3..6_i32,
        prop_oneof![2 => -50..200_i64, 3 => Just0, 1 => prop_oneof![Just(-1_i64), Just(1_i64)]],
        0..4_u8,
    );
    (
        vec((0..7_u64, 0..8_u64), 1..4),
        vec(step, 0..60),
        vec(prop_oneof![4 => Just(false), 1 => Just(true)], 40),
        any::<bool>(),
        xid(),
    )
        .prop_map(|(lives, steps, missing, parents_copy, xid)| ArchiveRecipe {
            lives,
            steps,
            missing,
            parents_copy,
            xid,
        })
}

use proptest::strategy::Just;
#[expect(non_upper_case_globals, reason = "reads as a strategy")]
const Just0: Just<i64> = Just(0);

fn xid() -> impl Strategy<Value = u32> {
    prop_oneof![Just(700), Just(u32::MAX - 20), any::<u32>()]
}

impl ArchiveRecipe {
    pub(crate) fn build(&self) -> TestArchive {
        let size = SegmentSize::new(1 << 20).unwrap();
        let mut endings = self.endings(size);
        let mut world = TestArchive { digests: Vec::new(), path: TimelinePath::first(), size };
        let mut history = Vec::new();
        let (mut first, mut begin) = (FIRST_SEGMENT, Lsn::INVALID);
        let mut missing = self.missing.iter().copied().cycle();
        for (index, (segments, eighths)) in self.lives.iter().enumerate() {
            let timeline = TimelineId::new(u32::try_from(index).unwrap() + 1).unwrap();
            let last = first + segments;
            let end = Lsn::new(last * size.get() + eighths * size.get() / 8);
            let open = index + 1 == self.lives.len();
            if open {
                endings.retain(|ending| ending.end_lsn <= SegmentNo::new(last).end(size));
            }
            for number in first..=last {
                let within = |ending: &&TransactionEnd| {
                    size.segment_of(ending.lsn).get() == number && (open || ending.end_lsn <= end)
                };
                let own: Vec<TransactionEnd> = endings.iter().filter(within).copied().collect();
                let archived = open || number != last || self.parents_copy;
                if archived && !missing.next().unwrap_or(false) {
                    world.digests.push(digest(timeline, SegmentNo::new(number), size, own));
                }
            }
            if !open {
                // What the parent wrote after the fork is another story: the child's endings lie beyond it.
                endings.retain(|ending| ending.end_lsn <= end || ending.lsn >= end);
                history.push(HistoryEntry { timeline, end: end.max(begin), reason: String::new() });
                (first, begin) = (last, end);
            } else {
                world.path = TimelineHistory { timeline, entries: history.clone() }.path();
            }
        }
        world
    }

    fn endings(&self, size: SegmentSize) -> Vec<TransactionEnd> {
        let mut lsn = SegmentNo::new(FIRST_SEGMENT).start(size);
        let (mut xid, mut micros) = (self.xid, 0_i64);
        let mut endings = Vec::new();
        for (distance, xid_step, time_step, kind) in &self.steps {
            lsn = lsn.checked_add(distance * size.get() / 16 + 40).unwrap();
            xid = xid.wrapping_add_signed(*xid_step).max(3);
            micros += time_step;
            let end_lsn = lsn.checked_add(40).unwrap();
            if size.segment_of(lsn) != size.segment_of(Lsn::new(end_lsn.get() - 1)) {
                continue;
            }
            let kind = match kind {
                0 => TransactionEndKind::Commit,
                1 => TransactionEndKind::Abort,
                2 => TransactionEndKind::CommitPrepared,
                _ => TransactionEndKind::AbortPrepared,
            };
            endings.push(TransactionEnd {
                lsn,
                end_lsn,
                xid: Xid::new(xid),
                time: PgTime::from_pg_micros(micros),
                kind,
            });
        }
        endings
    }
}

/// A digest with these endings; every third one is a restore point, too, so that there are events.
pub(crate) fn digest(
    timeline: TimelineId,
    segment: SegmentNo,
    size: SegmentSize,
    endings: Vec<TransactionEnd>,
) -> SegmentDigest {
    let point = |ending: &TransactionEnd| WalEvent {
        lsn: ending.end_lsn,
        end_lsn: ending.end_lsn.saturating_add(96),
        xid: Xid::NONE,
        kind: WalEventKind::RestorePoint { name: format!("point {}", ending.xid.get() % 5), time: ending.time },
    };
    let events = endings
        .iter()
        .filter(|ending| ending.xid.get() % 3 == 0)
        .map(point)
        .filter(|e| size.segment_of(e.lsn) == segment);
    SegmentDigest {
        timeline,
        segment,
        segment_size: size,
        page_magic: 0xD110,
        system_id: SystemId::new(7),
        state: SegmentState::Checked,
        first_record: Some(segment.start(size).saturating_add(40)),
        last_record: Some(Lsn::new(segment.end(size).get() - 64)),
        first_prev: Some(Lsn::new(segment.start(size).get() - 64)),
        valid_until: segment.end(size),
        switched: false,
        overwrites: false,
        records: endings.len() as u64,
        earliest: endings.iter().map(|ending| ending.time).min(),
        latest: endings.iter().map(|ending| ending.time).max(),
        events: events.collect(),
        endings,
        changes: Vec::new(),
        omitted_events: 0,
        head: None,
        tail: None,
        content: [0; 32],
    }
}

impl TestArchive {
    /// The index of it, in memory, the segments taken in the order given by `shuffle`.
    pub(crate) fn index(&self, shuffle: u64) -> MemoryStore {
        let mut order: Vec<usize> = (0..self.digests.len()).collect();
        order.sort_by_key(|number| (*number as u64 + 1).wrapping_mul(shuffle | 1).rotate_left(17));
        let cluster = ClusterKeys::new(CLUSTER_NAME).unwrap();
        let mut memory = MemoryStore::default();
        for number in order {
            let mut ingest = IndexUpdate::new(&memory, &cluster).unwrap();
            ingest.add_segment(IndexEntry { digest: &self.digests[number], stored: 10 }).unwrap();
            let batch = ingest.finish();
            memory.apply(&batch);
        }
        memory
    }

    pub(crate) fn digest(&self, place: SegmentId) -> Option<&SegmentDigest> {
        self.digests.iter().find(|digest| digest.timeline == place.timeline && digest.segment == place.segment)
    }

    /// Takes the way to one of the timelines instead, knowing which others left it.
    pub(crate) fn switch_path_to(&mut self, pick: usize) {
        let spans = self.path.spans().to_vec();
        let entries: Vec<HistoryEntry> = spans
            .iter()
            .filter_map(|span| Some(HistoryEntry { timeline: span.timeline, end: span.end?, reason: String::new() }))
            .collect();
        let history = |at: usize| TimelineHistory { timeline: spans[at].timeline, entries: entries[..at].to_vec() };
        let all: Vec<TimelineHistory> = (1..spans.len()).map(history).collect();
        self.path = history(pick % spans.len()).path().with_departures(&all);
    }

    /// Every segment of the path, each from the newest timeline that has it: where it is, and where the path leaves it.
    pub(crate) fn segments(&self) -> Vec<(SegmentId, Lsn)> {
        let mut found = Vec::new();
        for number in 0..200 {
            let segment = SegmentNo::new(number);
            for span in self.path.spans().iter().rev() {
                let (begins, end) = (self.size.segment_of(span.begin), span.end.unwrap_or(Lsn::MAX));
                let place = SegmentId { timeline: span.timeline, segment };
                if begins <= segment && end > segment.start(self.size) && self.digest(place).is_some() {
                    found.push((place, segment.end(self.size).min(end)));
                    break;
                }
            }
        }
        if let Some((place, end)) = self.tail() {
            // Looked for on its own timeline first, whose segment this is in all but the name.
            found.retain(|(other, _)| other.segment != place.segment);
            found.push((place, end));
        }
        found
    }

    /// Where the path's last timeline goes on after its own last segment: in the first segment of one that left it.
    fn tail(&self) -> Option<(SegmentId, Lsn)> {
        let span = self.path.spans().last()?;
        let own = self.digests.iter().filter(|digest| digest.timeline == span.timeline).map(|digest| digest.segment);
        let segment = own.max().map_or(self.size.segment_of(span.begin), SegmentNo::next);
        let copies = self.path.departures().iter().filter(|left| {
            self.size.offset_of(left.at) > 0
                && self.size.segment_of(left.at) == segment
                && self.size.segment_of(left.begin) == segment
                && self.digest(SegmentId { timeline: left.by, segment }).is_some()
        });
        let left = copies.min_by_key(|left| (std::cmp::Reverse(left.at), left.by))?;
        Some((SegmentId { timeline: left.by, segment }, left.at))
    }

    /// Every ending of the path in log order.
    pub(crate) fn endings(&self) -> Vec<TransactionEnd> {
        let of = |(place, to): (SegmentId, Lsn)| {
            let endings = self.digest(place).map(|digest| digest.endings.clone()).unwrap_or_default();
            endings.into_iter().filter(move |ending| ending.end_lsn <= to)
        };
        self.segments().into_iter().flat_map(of).collect()
    }
}
