//! Whether the stretches of a stream go on where another ends.

use std::collections::{BTreeMap, BTreeSet};

use jiff::{SignedDuration, Timestamp};

use crate::redis::archive::stream::PreviousHistory;
use crate::redis::archive::{StreamHole, StreamStretch};
use crate::redis::format::replication_id::ReplicationId;

/// One that another repository has had for longer than this does not come any more, unless it waits in the spool.
pub(super) const UPLOAD_GRACE: SignedDuration = SignedDuration::from_mins(10);

/// A stretch that was listed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct ListedStretch {
    replid: ReplicationId,
    first: u64,
    /// The offset after its last byte; `None` if it could not be read, which is said of it already.
    last: Option<u64>,
    follows: Option<(ReplicationId, u64)>,
    ended_at: Timestamp,
}

impl ListedStretch {
    pub(super) fn from_stretch(stretch: &StreamStretch) -> ListedStretch {
        let follows = stretch.follows.map(|PreviousHistory { replid, offset }| (replid, offset));
        let StreamStretch { replid, first, last, ended_at, .. } = *stretch;
        ListedStretch { replid, first, last: Some(last), follows, ended_at }
    }

    /// Where a snapshot stands: the stream goes on from there.
    pub(super) fn from_snapshot(replid: ReplicationId, offset: u64, at: Timestamp) -> ListedStretch {
        ListedStretch { replid, first: offset, last: Some(offset), follows: None, ended_at: at }
    }

    fn is_snapshot(&self) -> bool {
        self.last == Some(self.first)
    }

    pub(super) fn unreadable(replid: ReplicationId, first: u64) -> ListedStretch {
        ListedStretch { replid, first, last: None, follows: None, ended_at: Timestamp::UNIX_EPOCH }
    }
}

/// Up to where each history goes; not said of one whose last stretch could not be read.
type HistoryEnds = BTreeMap<ReplicationId, Option<u64>>;

/// What is missing between these stretches and snapshots, all of one repository.
pub(super) fn find_holes(pieces: &[ListedStretch]) -> Vec<StreamHole> {
    let mut sorted = pieces.to_vec();
    sorted.sort_unstable();
    let mut holes = Vec::new();
    let mut ends = HistoryEnds::new();
    for piece in &sorted {
        let end = ends.entry(piece.replid).or_insert(None);
        if let Some(from) = end.filter(|end| *end < piece.first) {
            holes.push(StreamHole { replid: piece.replid, from, to: Some(piece.first) });
        }
        *end = piece.last.map(|last| end.map_or(last, |end| end.max(last)));
    }
    for (replid, offset) in sorted.iter().filter_map(|piece| piece.follows) {
        // A history of which nothing is left was taken by retention.
        if let Some(Some(from)) = ends.get(&replid).filter(|end| end.is_some_and(|end| end < offset)) {
            holes.push(StreamHole { replid, from: *from, to: Some(offset) });
        }
    }
    holes
}

/// What each repository lacks at the end of a history that another has: by the repository's number.
pub(super) fn find_missing_tails(all: &[Vec<ListedStretch>], now: Timestamp) -> Vec<(usize, StreamHole)> {
    let arrived = |piece: &&ListedStretch| now.duration_since(piece.ended_at) > UPLOAD_GRACE;
    let mut tails = Vec::new();
    for (number, own) in all.iter().enumerate() {
        let mut ends = HistoryEnds::new();
        for piece in own {
            let end = ends.entry(piece.replid).or_insert(Some(0));
            *end = end.zip(piece.last).map(|(end, last)| end.max(last));
        }
        for (replid, from) in ends.into_iter().filter_map(|(replid, end)| Some((replid, end?))) {
            let others = all.iter().flatten().filter(|piece| piece.replid == replid).filter(arrived);
            // Up to another snapshot nobody need have received.
            let others = others.filter(|piece| piece.last > Some(piece.first));
            let to = others.filter_map(|piece| piece.last).max().filter(|to| *to > from);
            tails.extend(to.map(|to| (number, StreamHole { replid, from, to: Some(to) })));
        }
    }
    tails
}

/// What any repository has of a history.
#[derive(Clone, Copy, Debug)]
struct HistoryExtent {
    first: u64,
    last: u64,
    follows: Option<(ReplicationId, u64)>,
    began_at: Timestamp,
    ended_at: Timestamp,
}

/// What has had the time to arrive everywhere, oldest first.
fn collect_histories(all: &[Vec<ListedStretch>], now: Timestamp) -> Vec<(ReplicationId, HistoryExtent)> {
    let mut found: BTreeMap<ReplicationId, HistoryExtent> = BTreeMap::new();
    for piece in all.iter().flatten().filter(|piece| now.duration_since(piece.ended_at) > UPLOAD_GRACE) {
        let Some(last) = piece.last.filter(|_| !piece.is_snapshot()) else { continue };
        let (first, follows, at) = (piece.first, piece.follows, piece.ended_at);
        let history =
            found.entry(piece.replid).or_insert(HistoryExtent { first, last, follows, began_at: at, ended_at: at });
        (history.last, history.ended_at) = (history.last.max(last), history.ended_at.max(at));
        if first <= history.first {
            (history.first, history.began_at) = (first, at.min(history.began_at));
            history.follows = follows.or(history.follows);
        }
    }
    let mut histories: Vec<_> = found.into_iter().collect();
    histories.sort_by_key(|(_, history)| history.began_at);
    histories
}

/// What each repository lacks of a history that another has, all of it or its beginning: by the repository's number.
///
/// Retention may have taken what is old. But it takes nothing that a snapshot leads to which it leaves, and manifests
/// before all else. So a history is missed to which a snapshot leads that is there, over others that go on from one
/// another, and one that is newer than all that is there.
pub(super) fn find_missing_beginnings(all: &[Vec<ListedStretch>], now: Timestamp) -> Vec<(usize, StreamHole)> {
    let histories = collect_histories(all, now);
    let mut found = Vec::new();
    for (number, own) in all.iter().enumerate() {
        let Some(newest) = own.iter().map(|piece| piece.ended_at).max() else { continue };
        let mut led: BTreeSet<ReplicationId> = BTreeSet::new();
        for (replid, history) in &histories {
            // A snapshot from beyond the place where it went on is of a branch of its own.
            let leads = |(before, offset): (ReplicationId, u64)| {
                let from =
                    |piece: &ListedStretch| piece.is_snapshot() && piece.replid == before && piece.first <= offset;
                led.contains(&before) || own.iter().any(from)
            };
            let leads = history.follows.is_some_and(leads);
            if leads {
                led.insert(*replid);
            }
            let begun = own.iter().filter(|piece| piece.replid == *replid).map(|piece| piece.first).min();
            let newer = begun.is_none() && history.ended_at > newest;
            if (leads || newer) && begun.is_none_or(|begun| begun > history.first) {
                let to = Some(begun.unwrap_or(history.last));
                found.push((number, StreamHole { replid: *replid, from: history.first, to }));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{ListedStretch, StreamHole, find_holes, find_missing_beginnings, find_missing_tails};
    use crate::redis::format::replication_id::ReplicationId;

    fn id(digit: char) -> ReplicationId {
        digit.to_string().repeat(40).parse().unwrap()
    }

    fn piece(history: char, first: u64, last: u64) -> ListedStretch {
        ListedStretch {
            replid: id(history),
            first,
            last: Some(last),
            follows: None,
            ended_at: Timestamp::from_second(1000).unwrap(),
        }
    }

    fn hole(history: char, from: u64, to: u64) -> StreamHole {
        StreamHole { replid: id(history), from, to: Some(to) }
    }

    #[test]
    fn stretches_that_meet_or_overlap_have_no_hole() {
        let follows = Some((id('a'), 400));
        let whole = [
            piece('a', 100, 200),
            piece('a', 150, 300),
            piece('a', 300, 400),
            ListedStretch { follows, ..piece('b', 400, 500) },
            // Another history has nothing to do with these.
            piece('c', 9000, 9100),
        ];
        assert_eq!(find_holes(&whole), []);
        assert_eq!(find_holes(&[]), []);
        // What retention took from the front is not missed.
        assert_eq!(find_holes(&whole[2..]), []);
        assert_eq!(find_holes(&whole[3..]), []);
    }

    #[test]
    fn what_is_missing_between_them_is_named() {
        let follows = Some((id('a'), 400));
        let b = ListedStretch { follows, ..piece('b', 400, 500) };
        assert_eq!(find_holes(&[piece('a', 300, 400), piece('a', 100, 200), b]), [hole('a', 200, 300)]);
        assert_eq!(find_holes(&[piece('a', 100, 200), b]), [hole('a', 200, 400)]);
        // One that could not be read may reach as far as the next one.
        let unread = ListedStretch::unreadable(id('a'), 200);
        assert_eq!(find_holes(&[piece('a', 100, 200), unread, piece('a', 300, 400), b]), []);
        assert_eq!(find_holes(&[piece('a', 100, 200), unread, b]), []);
        assert_eq!(find_holes(&[unread, piece('a', 300, 350), b]), [hole('a', 350, 400)]);
    }

    #[test]
    fn the_stretch_behind_a_snapshot_is_missed() {
        let snapshot = ListedStretch::from_snapshot(id('a'), 100, Timestamp::UNIX_EPOCH);
        assert_eq!(find_holes(&[snapshot, piece('a', 200, 300)]), [hole('a', 100, 200)]);
        assert_eq!(find_holes(&[snapshot, piece('a', 100, 200)]), []);
        assert_eq!(find_holes(&[snapshot, piece('a', 50, 200)]), []);
        // Behind it nobody may ever have received.
        assert_eq!(find_holes(&[piece('b', 200, 300), snapshot]), []);
    }

    #[test]
    fn a_repository_without_what_another_has_is_named() {
        let now = Timestamp::from_second(10_000).unwrap();
        let whole = vec![piece('a', 100, 200), piece('a', 200, 300)];
        let short = vec![piece('a', 100, 200)];
        assert_eq!(find_missing_tails(&[whole.clone(), short.clone(), vec![]], now), [(1, hole('a', 200, 300))]);
        assert_eq!(find_missing_tails(&[whole.clone(), short], Timestamp::from_second(1500).unwrap()), []);
        assert_eq!(find_missing_tails(&[whole.clone(), vec![piece('a', 200, 300)]], now), []);
        assert_eq!(
            find_missing_tails(
                &[whole.clone(), vec![piece('a', 100, 200), ListedStretch::unreadable(id('a'), 200)]],
                now
            ),
            []
        );
        // A snapshot and nothing behind it.
        let snapshot = |offset| ListedStretch::from_snapshot(id('a'), offset, Timestamp::UNIX_EPOCH);
        assert_eq!(find_missing_tails(&[whole.clone(), vec![snapshot(100)]], now), [(1, hole('a', 100, 300))]);
        assert_eq!(find_missing_tails(&[whole, vec![snapshot(300)], vec![snapshot(500)]], now), []);
    }

    #[test]
    fn a_repository_without_a_whole_history_that_another_has_is_named() {
        let now = 10_000;
        let at =
            |piece: ListedStretch, second| ListedStretch { ended_at: Timestamp::from_second(second).unwrap(), ..piece };
        let after =
            |piece: ListedStretch, history, offset| ListedStretch { follows: Some((id(history), offset)), ..piece };
        let a = piece('a', 100, 400);
        let b = at(after(piece('b', 400, 500), 'a', 400), 2000);
        let more_of_b = at(piece('b', 500, 600), 2100);
        let c = at(after(piece('c', 600, 700), 'b', 600), 3000);
        // Of nobody known: with a gap before it.
        let d = at(piece('d', 7000, 7100), 3500);
        let check = |own: &[ListedStretch], second: i64, expected: &[StreamHole]| {
            let whole = vec![a, b, more_of_b, c, d];
            let all = [whole, own.to_vec()];
            let expected: Vec<_> = expected.iter().map(|hole| (1, *hole)).collect();
            assert_eq!(find_missing_beginnings(&all, Timestamp::from_second(second).unwrap()), expected, "{own:?}");
        };
        let (no_b, no_c, no_d) = (hole('b', 400, 600), hole('c', 600, 700), hole('d', 7000, 7100));
        check(&[a], now, &[no_b, no_c, no_d]);
        check(&[a, b, more_of_b, c, d], now, &[]);
        check(&[], now, &[]);
        // What came in the last minutes may be on its way.
        check(&[a], 2100 + 600, &[hole('b', 400, 500)]);
        check(&[a], 2000 + 600, &[]);
        // Where a snapshot leads there, what it has since does not hide it, nor that it has the end.
        let snapshot =
            |offset, second| ListedStretch::from_snapshot(id('a'), offset, Timestamp::from_second(second).unwrap());
        let (s, e) = (snapshot(100, 900), at(piece('e', 1, 2), 9500));
        check(&[s, a, e], now, &[no_b, no_c]);
        check(&[s, a, b, more_of_b, e], now, &[no_c]);
        check(&[s, a, more_of_b, c, d], now, &[hole('b', 400, 500)]);
        // A branch of its own: the old master went on.
        check(&[snapshot(400, 9000)], now, &[no_b, no_c]);
        check(&[snapshot(401, 9000)], now, &[]);
        // Retention took what is old, or is about to and was cut short, or the repository was added since.
        check(&[a, e], now, &[]);
        check(&[a, more_of_b, c, d], now, &[]);
        check(&[more_of_b, c, d], now, &[]);
        check(&[d], now, &[]);
        check(&[c], now, &[no_d]);
    }
}
