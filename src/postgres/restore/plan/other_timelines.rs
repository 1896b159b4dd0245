//! Timelines that a restore does not follow, and what is on them that it will not have.
//!
//! PostgreSQL follows the newest timeline unless told otherwise, be it that of a test promotion which archived to the
//! wrong place. What is missed by that is said, with the option that has it.

use super::proof::{PlanInput, path_to};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::timeline::{TimelineHistory, TimelineId, TimelinePath};
use crate::postgres::restore::error::RestoreError;
use crate::postgres::restore::resolve_target::{ResolvedTarget, resolve_target};
use crate::postgres::restore::target::{RecoveryTarget, RestoreRequest};

/// Timelines that are looked at, the newest; each is a failover or a restore, and of older ones nobody wants to know.
const MAX_TIMELINES: usize = 8;

/// One sentence for each other timeline whose last commit is not on `path`.
pub(super) fn other_timeline_notes(world: PlanInput<'_>, path: &TimelinePath) -> Result<Vec<String>, RestoreError> {
    let mut notes = Vec::new();
    for other in other_paths(world, path)? {
        let Some(last) = world.facts.commit_before(&other, Lsn::MAX)? else { continue };
        let on = other.timeline_at(last.lsn);
        // What is on the timeline's ancestors is said of them.
        if on == other.target() && path.timeline_at(last.lsn) != on {
            notes.push(format!(
                "timeline {on} has commits that timeline {} does not have, from {} on and up to {}; --target-timeline \
                    {on} follows it",
                path.target(),
                parting_lsn(path, &other),
                last.time
            ));
        }
    }
    Ok(notes)
}

/// Where the target is, in a sentence, if it is on a timeline that `path` does not take.
pub(super) fn target_on_other_timeline(
    world: PlanInput<'_>,
    request: &RestoreRequest,
    path: &TimelinePath,
) -> Result<Option<String>, RestoreError> {
    for other in other_paths(world, path)? {
        let ResolvedTarget::At { stop, .. } = resolve_target(world.facts, &other, request, Lsn::INVALID)? else {
            continue;
        };
        let (lsn, on) = (stop.lsn(), other.timeline_at(stop.lsn()));
        if path.timeline_at(lsn) == on && path.switch_point(on).is_none_or(|end| lsn < end) {
            continue;
        }
        let there = match request.target() {
            RecoveryTarget::Time(_) => "something ended after it",
            _ => "it is there",
        };
        return Ok(Some(format!(
            "on timeline {on}, which parted from this one at {}, {there}, at {lsn}; --target-timeline {} follows that \
                one",
            parting_lsn(path, &other),
            other.target()
        )));
    }
    Ok(None)
}

/// The ways to the newest timelines but that of `path`, the newest first.
fn other_paths(world: PlanInput<'_>, path: &TimelinePath) -> Result<Vec<TimelinePath>, RestoreError> {
    let first = TimelineHistory::first();
    let mut others: Vec<TimelineId> = world.histories.iter().chain([&first]).map(|history| history.timeline).collect();
    others.sort_unstable_by_key(|timeline| std::cmp::Reverse(*timeline));
    others.dedup();
    others.retain(|timeline| *timeline != path.target());
    others.into_iter().take(MAX_TIMELINES).map(|timeline| path_to(world, timeline)).collect()
}

/// Where `other` leaves `path`: the first position that both have on different timelines.
pub(super) fn parting_lsn(path: &TimelinePath, other: &TimelinePath) -> Lsn {
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
