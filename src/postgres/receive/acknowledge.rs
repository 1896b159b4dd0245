//! What may be acknowledged: the end of the log that is durable without a gap.
//!
//! Pure: it is told what has happened to each segment, and says up to where everything is safe. Nothing is ever
//! acknowledged that is only in memory, and what was acknowledged once stays so.

use std::collections::VecDeque;

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentNo, SegmentSize};

/// When WAL counts as safe, so that the server may forget it and a synchronous commit may return.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AcknowledgePolicy {
    /// Once it is synced on this machine, or in the repository: a commit waits for one fsync.
    #[default]
    Spool,
    /// Once it is in the repository, whole or in pieces: a synchronous commit waits as long as copies are apart.
    Repository,
}

/// What is known of a segment.
#[derive(Debug, Clone, Copy)]
struct SegmentProgress {
    number: SegmentNo,
    spooled: Lsn,
    /// In every repository, in pieces.
    copied: Lsn,
    archived: bool,
}

impl SegmentProgress {
    fn new(number: SegmentNo, size: SegmentSize) -> SegmentProgress {
        SegmentProgress { number, spooled: number.start(size), copied: number.start(size), archived: false }
    }
}

/// The segments from the first that isn't archived on.
#[derive(Debug)]
pub struct DurabilityLedger {
    policy: AcknowledgePolicy,
    size: SegmentSize,
    stages: VecDeque<SegmentProgress>,
    /// Everything before this is durable.
    safe: Lsn,
}

impl DurabilityLedger {
    /// A ledger of a stream that begins with the segment `first`; everything before it is durable, or none of our
    /// business.
    #[must_use]
    pub fn new(policy: AcknowledgePolicy, size: SegmentSize, first: SegmentNo) -> DurabilityLedger {
        let stage = SegmentProgress::new(first, size);
        DurabilityLedger { policy, size, stages: VecDeque::from([stage]), safe: first.start(size) }
    }

    /// A ledger of a stream that continues with the segment `next`. What is before it, from `first` on, is whole in the
    /// spool and not archived: with [`AcknowledgePolicy::Repository`] that may not be acknowledged yet.
    #[must_use]
    pub fn resume(policy: AcknowledgePolicy, size: SegmentSize, first: SegmentNo, next: SegmentNo) -> DurabilityLedger {
        let mut ledger = DurabilityLedger::new(policy, size, first);
        let mut number = first;
        while number < next {
            ledger.mark_spooled(number, number.end(size));
            number = number.next();
        }
        ledger
    }

    /// The policy.
    #[must_use]
    pub const fn policy(&self) -> AcknowledgePolicy {
        self.policy
    }

    /// Everything of segment `number` before `until` is synced in the spool.
    pub fn mark_spooled(&mut self, number: SegmentNo, until: Lsn) {
        if let Some(stage) = self.segment_progress(number) {
            stage.spooled = stage.spooled.max(until);
        }
        self.advance_safe_lsn();
    }

    /// Everything of segment `number` before `until` is in the repository.
    pub fn mark_copied(&mut self, number: SegmentNo, until: Lsn) {
        if let Some(stage) = self.segment_progress(number) {
            stage.copied = stage.copied.max(until);
        }
        self.advance_safe_lsn();
    }

    /// Segment `number` is in the repository.
    pub fn mark_archived(&mut self, number: SegmentNo) {
        if let Some(stage) = self.segment_progress(number) {
            stage.archived = true;
        }
        self.advance_safe_lsn();
    }

    /// Everything before `lsn` is durable for another reason: it was acknowledged on an earlier timeline, and is kept.
    pub fn raise_safe_lsn(&mut self, lsn: Lsn) {
        self.safe = self.safe.max(lsn);
    }

    /// Everything before this may be acknowledged.
    #[must_use]
    pub const fn safe_lsn(&self) -> Lsn {
        self.safe
    }

    /// How far segment `number` is spooled; its start if not at all.
    #[must_use]
    pub fn spooled_until(&self, number: SegmentNo) -> Lsn {
        let known = self.stages.iter().find(|stage| stage.number == number);
        known.map_or(number.start(self.size), |stage| stage.spooled)
    }

    /// Whether segment `number` is in the repository, or was never to come through here.
    #[must_use]
    pub fn is_archived(&self, number: SegmentNo) -> bool {
        match self.stages.front() {
            Some(first) if number < first.number => true,
            _ => self.stages.iter().any(|stage| stage.number == number && stage.archived),
        }
    }

    /// The stage of `number`, which is noted if it is new. `None` for one that is done with.
    fn segment_progress(&mut self, number: SegmentNo) -> Option<&mut SegmentProgress> {
        let first = self.stages.front()?.number;
        let mut next = self.stages.back()?.number.next();
        while next <= number {
            self.stages.push_back(SegmentProgress::new(next, self.size));
            next = next.next();
        }
        let index = usize::try_from(number.get().checked_sub(first.get())?).ok()?;
        self.stages.get_mut(index)
    }

    fn advance_safe_lsn(&mut self) {
        while self.stages.front().is_some_and(|first| first.archived) {
            if let Some(done) = self.stages.pop_front() {
                self.safe = self.safe.max(done.number.end(self.size));
                if self.stages.is_empty() {
                    self.stages.push_back(SegmentProgress::new(done.number.next(), self.size));
                }
            }
        }
        for stage in &self.stages {
            let end = stage.number.end(self.size);
            let durable = match self.policy {
                AcknowledgePolicy::Spool => stage.spooled,
                AcknowledgePolicy::Repository => stage.copied,
            };
            if stage.archived || durable >= end {
                self.safe = self.safe.max(end);
            } else {
                self.safe = self.safe.max(durable);
                break;
            }
        }
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "the numbers here are small")]
mod tests {
    use super::{AcknowledgePolicy, DurabilityLedger};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::segment::{SegmentNo, SegmentSize};
    use proptest::prelude::*;

    const MIB: u64 = 1 << 20;

    fn ledger(policy: AcknowledgePolicy) -> DurabilityLedger {
        DurabilityLedger::new(policy, SegmentSize::new(MIB).unwrap(), SegmentNo::new(10))
    }

    fn at(segment: u64, offset: u64) -> Lsn {
        Lsn::new(segment * MIB + offset)
    }

    #[test]
    fn a_gap_is_never_acknowledged() {
        let mut ledger = ledger(AcknowledgePolicy::Spool);
        ledger.mark_archived(SegmentNo::new(11));
        assert_eq!(ledger.safe_lsn(), at(10, 0));
        ledger.mark_spooled(SegmentNo::new(12), at(12, 7));
        assert_eq!(ledger.safe_lsn(), at(10, 0));
        ledger.mark_spooled(SegmentNo::new(10), at(10, 500));
        assert_eq!(ledger.safe_lsn(), at(10, 500));
        ledger.mark_archived(SegmentNo::new(10));
        assert_eq!(ledger.safe_lsn(), at(12, 7));
        assert!(ledger.is_archived(SegmentNo::new(3)) && !ledger.is_archived(SegmentNo::new(12)));
    }

    #[test]
    fn the_repository_alone_counts_when_told_so() {
        let mut ledger = ledger(AcknowledgePolicy::Repository);
        ledger.mark_spooled(SegmentNo::new(10), at(11, 0));
        assert_eq!(ledger.safe_lsn(), at(10, 0));
        ledger.mark_copied(SegmentNo::new(10), at(10, 500));
        assert_eq!(ledger.safe_lsn(), at(10, 500));
        ledger.mark_copied(SegmentNo::new(11), at(11, 8));
        assert_eq!(ledger.safe_lsn(), at(10, 500));
        ledger.mark_archived(SegmentNo::new(10));
        assert_eq!(ledger.safe_lsn(), at(11, 8));
        ledger.raise_safe_lsn(at(10, 3));
        assert_eq!(ledger.safe_lsn(), at(11, 8), "what was acknowledged is not taken back");
    }

    /// A restart acknowledges nothing that the policy does not count as safe.
    #[test]
    fn what_is_only_spooled_is_not_acknowledged_after_a_restart_either() {
        let size = SegmentSize::new(MIB).unwrap();
        let resumed = |policy| DurabilityLedger::resume(policy, size, SegmentNo::new(10), SegmentNo::new(12));
        assert_eq!(resumed(AcknowledgePolicy::Spool).safe_lsn(), at(12, 0));
        let mut strict = resumed(AcknowledgePolicy::Repository);
        assert_eq!(strict.safe_lsn(), at(10, 0));
        strict.mark_archived(SegmentNo::new(11));
        assert_eq!(strict.safe_lsn(), at(10, 0));
        strict.mark_archived(SegmentNo::new(10));
        assert_eq!(strict.safe_lsn(), at(12, 0));
    }

    proptest! {
        /// The same answer as looking at every byte.
        #[test]
        fn as_a_naive_model_has_it(steps in proptest::collection::vec((0_u64..6, 0_u64..5, any::<bool>()), 0..40)) {
            let mut ledger = ledger(AcknowledgePolicy::Spool);
            let mut durable = [[false; 4]; 6];
            for (segment, quarters, archive) in steps {
                let number = SegmentNo::new(10 + segment);
                if archive {
                    ledger.mark_archived(number);
                    durable[segment as usize] = [true; 4];
                } else {
                    ledger.mark_spooled(number, at(10 + segment, quarters * MIB / 4));
                    durable[segment as usize][..quarters as usize].fill(true);
                }
                let safe = durable.iter().flatten().take_while(|quarter| **quarter).count() as u64;
                prop_assert_eq!(ledger.safe_lsn(), at(10, safe * MIB / 4));
            }
        }
    }
}
