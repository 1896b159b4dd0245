//! Which moment a snapshot and the stream behind it lead to.

use jiff::Timestamp;

use super::super::snapshot::{SnapshotManifest, SnapshotOrigin};
use super::super::stream::{ArrivalMark, ReadDelays, StreamStretch, UntimedBacklog};
use super::chain::StretchChain;
use super::route::cut_chain_at;
use super::{remove_foreign_snapshots, unrecorded_intervals};
use crate::redis::format::rdb::{RdbLimits, RdbWalker};

const ID: &str = "0123456789abcdef0123456789abcdef01234567";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A snapshot of the second 10 at offset 100.
fn snapshot() -> SnapshotManifest {
    let mut walker = RdbWalker::new(RdbLimits::default());
    walker.push(b"REDIS0009\xff\0\0\0\0\0\0\0\0").unwrap();
    SnapshotManifest {
        format: 1,
        label: "x".into(),
        started_at: at(9),
        finished_at: at(12),
        at: at(10),
        origin: SnapshotOrigin::File { path: "x".into() },
        flavour: crate::redis::format::flavour::ServerFlavour::Redis,
        version: "7".into(),
        run_id: None,
        replid: ID.parse().ok(),
        offset: Some(100),
        db: 3,
        walk: walker.finish().unwrap(),
        parts: Vec::new(),
        logical_bytes: 18,
        stored_bytes: 0,
    }
}

fn stretch(first: u64, last: u64, ended: i64, marks: &[(u64, i64)]) -> StreamStretch {
    StreamStretch {
        replid: ID.parse().unwrap(),
        first,
        last,
        db: 0,
        in_transaction: false,
        db_after: 0,
        in_transaction_after: false,
        follows: None,
        started_at: at(10),
        ended_at: at(ended),
        writes: 1,
        marks: marks.iter().map(|(offset, second)| ArrivalMark { offset: *offset, db: 1, time: at(*second) }).collect(),
        run: None,
        notable: None,
        clock: None,
        missed: None,
        reading: None,
    }
}

/// Offset and number of stretches, or where the way ends.
fn check(way: &[StreamStretch], time: Option<i64>) -> Result<(u64, usize), i64> {
    let way = StretchChain { stretches: way.to_vec(), damaged: false };
    let reach = cut_chain_at(&snapshot(), way, time.map(at)).map_err(|short| short.followed_to.as_second())?;
    Ok((reach.to.unwrap().offset, reach.stretches.len()))
}

#[test]
fn a_time_is_the_last_mark_before_anything_later() {
    // The second stretch's clock was set back once.
    let way = [
        stretch(50, 200, 15, &[(90, 9), (150, 12), (200, 15)]),
        stretch(200, 400, 30, &[(250, 20), (300, 18), (400, 30)]),
    ];
    for (time, expected) in [
        (10, Ok((100, 0))),
        (11, Ok((100, 0))),
        (12, Ok((150, 1))),
        (14, Ok((150, 1))),
        (15, Ok((200, 1))),
        // What came at 20 stands before what came at 18: it is not in the state of 19.
        (19, Ok((200, 1))),
        (20, Ok((300, 2))),
        (30, Ok((400, 2))),
        (31, Err(30)),
    ] {
        assert_eq!(check(&way, Some(time)), expected, "{time}");
    }
    assert_eq!(check(&way, None), Ok((400, 2)));
}

#[test]
fn silence_counts_only_as_far_as_something_shows_it() {
    // A transaction that was open when the stream ended has no mark, but the bytes before it are known to be all there
    // was.
    let way = [stretch(100, 200, 25, &[(150, 12)])];
    assert_eq!(check(&way, Some(25)), Ok((150, 1)));
    assert_eq!(check(&way, Some(26)), Err(25));
    assert_eq!(check(&[], Some(10)), Ok((100, 0)));
    assert_eq!(check(&[], Some(11)), Err(10));
    assert_eq!(check(&[], None), Ok((100, 0)));
}

#[test]
fn a_time_at_which_nobody_received_is_not_known() {
    let stretch = |first, last, started, ended, writes, mark| StreamStretch {
        started_at: at(started),
        writes,
        ..stretch(first, last, ended, &[(last - 10, mark), (last, ended)])
    };
    let way = [stretch(100, 200, 11, 20, 1, 12), stretch(200, 300, 80, 90, 1, 81)];
    assert_eq!(unrecorded_intervals(&snapshot(), &way), [(at(20), at(80))]);
    for (time, expected) in [(20, Ok((200, 1))), (21, Err(20)), (79, Err(20)), (80, Ok((200, 1))), (90, Ok((300, 2)))] {
        assert_eq!(check(&way, Some(time)), expected, "{time}");
    }
    assert_eq!(check(&way, None), Ok((300, 2)));
    // Nothing was written meanwhile, or nobody received for a moment only.
    for next in [stretch(200, 300, 80, 90, 0, 81), stretch(200, 300, 80, 90, 1, 84), stretch(200, 300, 35, 40, 1, 36)] {
        assert_eq!(check(&[way[0].clone(), next], Some(30)), Ok((200, 1)));
    }
}

/// However short it was: what comes first when a server is followed again was written before.
#[test]
fn what_a_server_wrote_while_nobody_followed_it_has_no_time() {
    let missed = |until, writes| Some(UntimedBacklog { until, writes });
    let again = |first, last, ended, missed, marks: &[(u64, i64)]| StreamStretch {
        started_at: at(marks[0].1),
        missed,
        ..stretch(first, last, ended, marks)
    };
    let before = stretch(100, 200, 20, &[(150, 12), (200, 20)]);
    // Caught up at 24, with offset 280.
    let after = again(200, 300, 30, missed(280, 2), &[(220, 23), (280, 24), (300, 30)]);
    let way = [before.clone(), after];
    assert_eq!(unrecorded_intervals(&snapshot(), &way), [(at(20), at(24))]);
    for (time, expected) in [(20, Ok((200, 1))), (21, Err(20)), (23, Err(20)), (24, Ok((280, 2)))] {
        assert_eq!(check(&way, Some(time)), expected, "{time}");
    }
    // Signs of life alone: nothing was written, so the state of 22 is known.
    let silent = again(200, 300, 30, missed(280, 0), &[(220, 23), (300, 30)]);
    assert_eq!(check(&[before.clone(), silent], Some(22)), Ok((200, 1)));
    // Not caught up when the stretch ends, but in the next one.
    let (some, rest) = (
        again(200, 300, 26, missed(350, 9), &[(220, 23), (300, 26)]),
        again(300, 400, 40, missed(350, 1), &[(340, 27), (360, 28), (400, 40)]),
    );
    assert_eq!(unrecorded_intervals(&snapshot(), &[before.clone(), some.clone(), rest.clone()]), [(at(20), at(28))]);
    assert_eq!(check(&[before.clone(), some.clone(), rest], Some(26)), Err(20));
    assert_eq!(unrecorded_intervals(&snapshot(), &[before.clone(), some]), [(at(20), at(26))]);
    // Another receiver's stretch has it all already.
    let other = again(150, 300, 30, missed(200, 5), &[(200, 23), (300, 30)]);
    assert_eq!(unrecorded_intervals(&snapshot(), &[before, other]), []);
    // The snapshot is younger than what was missed.
    let old = again(50, 300, 30, missed(100, 5), &[(100, 11), (300, 30)]);
    assert_eq!(unrecorded_intervals(&snapshot(), &[old]), []);
}

#[test]
fn a_receiver_that_was_held_up_does_not_know_what_was_there_meanwhile() {
    let read = |late_ms, held_up: &[(i64, i64)], writes| StreamStretch {
        reading: Some(ReadDelays { late_ms, held_up: held_up.iter().map(|(from, to)| (at(*from), at(*to))).collect() }),
        writes,
        ..stretch(100, 400, 40, &[(150, 12), (200, 20), (400, 25)])
    };
    let held = [read(7, &[(5, 11), (20, 24), (22, 25)], 3)];
    assert_eq!(unrecorded_intervals(&snapshot(), &held), [(at(10), at(11)), (at(20), at(25))]);
    assert_eq!((check(&held, Some(23)), check(&held, Some(25))), (Err(20), Ok((400, 1))));
    assert_eq!(unrecorded_intervals(&snapshot(), &[read(7, &[(20, 24)], 0)]), []);
    // What lay unread at the target is told by the stretch it is in, and by the one that comes next.
    let late = |way: &[StreamStretch], second| {
        let way = StretchChain { stretches: way.to_vec(), damaged: false };
        cut_chain_at(&snapshot(), way, Some(at(second))).unwrap().late.as_millis()
    };
    let next = StreamStretch {
        reading: Some(ReadDelays { late_ms: 90, held_up: vec![] }),
        ..stretch(400, 500, 60, &[(500, 50)])
    };
    let way = [read(7, &[], 3), next];
    assert_eq!((late(&way, 15), late(&way, 30), late(&way, 55), late(&way[..1], 35)), (7, 90, 90, 7));
}

#[test]
fn another_servers_dump_is_never_the_newest_state() {
    let own = |label: &str| SnapshotManifest {
        label: label.into(),
        origin: SnapshotOrigin::Replication { server: "x".into(), role: "master".into() },
        ..snapshot()
    };
    let file = |label: &str, replid| SnapshotManifest { label: label.into(), replid, ..snapshot() };
    let left = |mut all: Vec<SnapshotManifest>| {
        remove_foreign_snapshots(&mut all);
        all.into_iter().map(|snapshot| snapshot.label).collect::<Vec<_>>()
    };
    let same = ID.parse().ok();
    let other = ID.replace('0', "f").parse().ok();
    assert_eq!(left(vec![own("a"), file("b", None), file("c", same), file("d", other)]), ["a", "c"]);
    assert_eq!(left(vec![file("b", None), file("d", other)]), ["b", "d"]);
}
