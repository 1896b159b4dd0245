//! What happens to an archive while it is verified: segments arrive, and retention takes others away. Neither is
//! damage.

use std::collections::{BTreeMap, HashSet};

use jiff::Timestamp;

use super::lacking::{LATE_SEGMENT_WAIT, MAX_LATE_SEGMENTS, POLL_INTERVAL, YOUNG_SEGMENT_AGE};
use super::{ClusterVerifyError, RepositoryVerifier};
use crate::postgres::archive::layout::ClusterObject;
use crate::postgres::format::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::postgres::format::timeline::TimelineId;
use crate::vault::repository::ObjectInfo;

impl RepositoryVerifier<'_> {
    /// The segments that were on their way when the others were listed, as far as they came.
    pub(super) async fn list_late_segments(
        &self,
        listed: &[ObjectInfo],
    ) -> Result<Vec<ObjectInfo>, ClusterVerifyError> {
        let (clock, Some(size)) = (self.archive.vault().clock(), self.size) else { return Ok(Vec::new()) };
        let segments = listed.iter().filter_map(|object| match self.archive.layout().object_of_key(&object.key)? {
            ClusterObject::Segment(name) => Some((name, object.modified)),
            _ => None,
        });
        let mut awaited = missing_before_young(segments, size, clock.now());
        let (mut come, began) = (Vec::new(), clock.elapsed());
        while !awaited.is_empty() {
            for name in std::mem::take(&mut awaited) {
                let key = self.archive.layout().segment(name);
                match self.repository.head(&key).await.map_err(|error| self.repository_error(error))? {
                    Some(object) => come.push(object),
                    None => awaited.push(name),
                }
            }
            if clock.elapsed().saturating_sub(began) >= LATE_SEGMENT_WAIT {
                break;
            }
            if !awaited.is_empty() {
                clock.sleep(POLL_INTERVAL).await;
            }
        }
        Ok(come)
    }

    /// Settles what was listed and then not there: if it is no longer listed either, retention took it, and nothing is
    /// said about it.
    pub(super) async fn settle_removed_objects(&self) -> Result<(), ClusterVerifyError> {
        let mut gone = Vec::new();
        self.record(|found| gone.append(&mut found.gone));
        if gone.is_empty() {
            return Ok(());
        }
        let listed =
            self.repository.list(&self.archive.layout().all()).await.map_err(|error| self.repository_error(error))?;
        let listed: HashSet<&str> = listed.iter().map(|object| object.key.as_str()).collect();
        for key in gone.iter().filter(|key| listed.contains(key.as_str())) {
            self.record_damage(key.as_str(), "it is listed and not there");
        }
        self.record(|found| {
            found.damage.retain(|damage| listed.contains(damage.object.as_str()));
            let layout = self.archive.layout();
            let is_listed = |label: &str| layout.backup(label).is_ok_and(|key| listed.contains(key.as_str()));
            found.summaries.retain(|summary| is_listed(&summary.label));
        });
        Ok(())
    }
}

/// The segments that are not there before others which are young.
fn missing_before_young(
    there: impl Iterator<Item = (SegmentName, Timestamp)>,
    size: SegmentSize,
    now: Timestamp,
) -> Vec<SegmentName> {
    let mut timelines: BTreeMap<TimelineId, BTreeMap<SegmentNo, Timestamp>> = BTreeMap::new();
    for (name, modified) in there {
        if let Some(number) = name.number(size) {
            timelines.entry(name.timeline()).or_default().insert(number, modified);
        }
    }
    let mut found = Vec::new();
    for (timeline, numbers) in timelines {
        for ((before, _), (after, modified)) in numbers.iter().zip(numbers.iter().skip(1)) {
            let first = before.get().saturating_add(1);
            let few = after.get().saturating_sub(first) <= MAX_LATE_SEGMENTS;
            if few && now.duration_since(*modified) < YOUNG_SEGMENT_AGE {
                let names = (first..after.get()).map(SegmentNo::new);
                found.extend(names.filter_map(|number| SegmentName::new(timeline, number, size)));
            }
        }
    }
    found
}
