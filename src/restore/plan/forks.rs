//! Timelines that a restore does not follow, and what is on them that it will not have.
//!
//! PostgreSQL follows the newest timeline unless told otherwise, be it that of a test promotion which archived to the wrong place. What is
//! missed by that is said, with the option that has it.

use super::World;
use crate::postgres::lsn::Lsn;
use crate::postgres::timeline::{History, TimelineId, TimelinePath};
use crate::restore::Error;

/// Timelines that are looked at, the newest; each is a failover or a restore, and of older ones nobody wants to know.
const LOOKED_AT: usize = 8;

/// One sentence for each other timeline whose last commit is not on `path`.
pub(super) fn notes(world: World<'_>, path: &TimelinePath) -> Result<Vec<String>, Error> {
    let first = History::first();
    let mut others: Vec<&History> = world.histories.iter().chain([&first]).collect();
    others.sort_by_key(|history| std::cmp::Reverse(history.timeline));
    others.dedup_by_key(|history| history.timeline);
    others.retain(|history| history.timeline != path.target());
    let mut notes = Vec::new();
    for history in others.into_iter().take(LOOKED_AT) {
        let other = history.path();
        let Some(last) = world.facts.commit_before(&other, Lsn::MAX)? else { continue };
        let on = other.timeline_at(last.lsn);
        // What is on the timeline's ancestors is said of them.
        if on == history.timeline && path.timeline_at(last.lsn) != on {
            notes.push(format!(
                "timeline {on} has commits that timeline {} does not have, from {} on and up to {}; --target-timeline {on} follows it",
                path.target(),
                parted(path, &other),
                last.time
            ));
        }
    }
    Ok(notes)
}

/// Where `other` leaves `path`: the first position that both have on different timelines.
fn parted(path: &TimelinePath, other: &TimelinePath) -> Lsn {
    let begins = |path: &TimelinePath| path.spans().iter().map(|span| span.begin).collect::<Vec<_>>();
    let mut positions = begins(path);
    positions.extend(begins(other));
    positions.sort_unstable();
    let apart = |position: &Lsn| -> bool {
        let (here, there): (TimelineId, TimelineId) = (path.timeline_at(*position), other.timeline_at(*position));
        here != there
    };
    positions.into_iter().find(apart).unwrap_or(Lsn::INVALID)
}
