//! The receiver's slot and the archive's holes: what the server no longer holds is recorded once, and what it still has
//! is fetched.

use std::fs;
use std::time::Duration;

use walkeep::postgres::archive::gap::Gap;
use walkeep::postgres::format::lsn::Lsn;
use walkeep::postgres::format::segment::{SegmentName, SegmentSize};
use walkeep::postgres::format::time::PgTime;
use walkeep::postgres::format::timeline::TimelineId;
use walkeep::postgres::wire::{
    Conninfo, LibpqEnvironment, ReplicationConnection, SlotName, StandbyStatus, StartedReplication, WalStreamEvent,
};

use super::receive::{Background, Home, start_victim, walk};
use crate::support::{Cluster, Options, QUICK, majors};

const MIB: u64 = 1 << 20;

fn size() -> SegmentSize {
    SegmentSize::new(MIB).unwrap()
}

fn numbers(names: &[SegmentName]) -> Vec<u64> {
    names.iter().map(|name| name.number(size()).unwrap().get()).collect()
}

/// Segments between the first and the last archived one that neither the archive nor a gap accounts for.
async fn unaccounted(home: &Home, cluster: &Cluster) -> Vec<u64> {
    let numbers = numbers(&home.compare(cluster, 1).await);
    let gaps = home.archive().await.gaps().await.unwrap();
    let is_lost =
        |number: u64| gaps.iter().any(|gap| gap.start.get() < (number + 1) * MIB && number * MIB < gap.end.get());
    let (first, last) = (numbers[0], numbers[numbers.len() - 1]);
    (first..=last).filter(|number| !numbers.contains(number) && !is_lost(*number)).collect()
}

fn write_segments(cluster: &Cluster, count: usize) {
    cluster.sql("create table if not exists filled (x int, filler text)");
    for _ in 0..count {
        cluster.sql("insert into filled select g, repeat('x', 500) from generate_series(1, 200) g");
        cluster.switch_wal();
    }
}

fn flushed(cluster: &Cluster) -> String {
    cluster.sql("select pg_current_wal_flush_lsn()")
}

/// Streams from the slot for a moment and reports a position: an invalidated slot then looks as if it held WAL.
async fn use_slot(cluster: &Cluster) {
    let info = Conninfo::parse(&cluster.conninfo(), &LibpqEnvironment::new()).unwrap();
    let connection = ReplicationConnection::connect(&info).await.unwrap();
    let slot = SlotName::new("walkeep").unwrap();
    let start: Lsn = flushed(cluster).parse().unwrap();
    let start = Lsn::new(start.get() & !(MIB - 1));
    let started = connection.start_physical(Some(&slot), start, TimelineId::FIRST).await.unwrap();
    let StartedReplication::Streaming(mut stream) = started else { panic!("the timeline ends") };
    let status = StandbyStatus { written: start, flushed: start, reply_wanted: true };
    stream.send_status(status, PgTime::from_pg_micros(0)).await.unwrap();
    while !matches!(stream.next().await.unwrap(), WalStreamEvent::Keepalive(_)) {}
    stream.finish().await.unwrap().0.close().await;
    cluster.wait_for("select not active and restart_lsn is not null from pg_replication_slots");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalidated_slot_is_replaced_and_costs_one_gap() {
    for major in majors() {
        let options = Options::default().segment_size_mb(1).set("min_wal_size", "2MB").set("max_wal_size", "4MB");
        let cluster = Cluster::start(major, options.set("max_slot_wal_keep_size", "2MB"));
        let home = Home::new();
        home.receive_until(&cluster, &flushed(&cluster)).await;
        for _ in 0..50 {
            write_segments(&cluster, 5);
            cluster.sql("checkpoint");
            if cluster.sql("select wal_status = 'lost' and restart_lsn is null from pg_replication_slots") == "t" {
                break;
            }
        }
        assert_eq!(cluster.sql("select wal_status from pg_replication_slots"), "lost", "{major}");
        cluster.set("max_slot_wal_keep_size", "-1");
        if (16..18).contains(&major) {
            use_slot(&cluster).await;
            assert_eq!(cluster.sql("select wal_status from pg_replication_slots"), "lost", "{major}");
        }
        let receiver = Background::start(&home, home.settings(&cluster.conninfo())).await;
        receiver.wait_for("gap").await;
        let name = cluster.switch_wal();
        receiver.wait_for(&format!("archived {name}")).await;
        assert_eq!(cluster.sql("select wal_status from pg_replication_slots"), "reserved", "{major}");
        receiver.stop().await.unwrap();
        let gaps = home.archive().await.gaps().await.unwrap();
        assert_eq!(gaps.len(), 1, "{major}: {gaps:?}");

        // Without the receiver, much is written: a slot that holds nothing would lose it.
        for _ in 0..4 {
            write_segments(&cluster, 5);
            cluster.sql("checkpoint");
        }
        cluster.switch_wal();
        home.receive_until(&cluster, &flushed(&cluster)).await;
        assert_eq!(home.archive().await.gaps().await.unwrap(), gaps, "{major}");
        assert_eq!(unaccounted(&home, &cluster).await, Vec::<u64>::new(), "{major}");
    }
}

/// The file of a segment in the repository.
fn remove_archived(home: &Home, name: &SegmentName) {
    let file = walk(&home.scratch.join("repository")).into_iter().find(|file| *file == name.to_string()).unwrap();
    let mut folders = vec![home.scratch.join("repository")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.ends_with(&file) {
                fs::remove_file(path).unwrap();
            }
        }
    }
}

/// What a kill leaves while segments are uploaded out of order, made by hand: holes below the last archived segment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_are_filled_from_the_server_with_and_without_a_slot() {
    for (major, with_slot) in [(13, true), (14, true), (QUICK, true), (QUICK, false), (18, false)] {
        let cluster = Cluster::start(major, Options::default().segment_size_mb(1).set("wal_keep_size", "1GB"));
        let home = Home::new();
        write_segments(&cluster, 2);
        // Without a slot, only what has been received is a place to continue from.
        cluster.sql("insert into filled values (1)");
        let receive = |end: String| {
            let mut settings = home.settings(&cluster.conninfo());
            settings.slot = settings.slot.filter(|_| with_slot);
            settings.end = Some(end.parse().unwrap());
            let home = &home;
            async move {
                let task = Background::start(home, settings).await.task;
                tokio::time::timeout(Duration::from_secs(60), task).await.unwrap().unwrap().unwrap()
            }
        };
        receive(flushed(&cluster)).await;
        write_segments(&cluster, 12);
        receive(flushed(&cluster)).await;
        let before = home.compare(&cluster, 1).await;
        assert!(before.len() >= 12, "{before:?}");
        for at in [3, 6, 7] {
            remove_archived(&home, &before[at]);
        }
        write_segments(&cluster, 1);
        receive(flushed(&cluster)).await;
        let after = home.compare(&cluster, 1).await;
        assert!(before.iter().all(|name| after.contains(name)), "{major}: {before:?} {after:?}");
        assert_eq!(home.archive().await.gaps().await.unwrap(), Vec::<Gap>::new(), "{major}");
    }
}

/// The server has no WAL for the holes any more: each is recorded as it is, and no further.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn holes_that_cannot_be_filled_are_recorded_exactly() {
    for major in [14, QUICK] {
        let options = Options::default().segment_size_mb(1).set("min_wal_size", "2MB").set("max_wal_size", "4MB");
        let cluster = Cluster::start(major, options);
        let home = Home::new();
        home.receive_until(&cluster, &flushed(&cluster)).await;
        write_segments(&cluster, 12);
        home.receive_until(&cluster, &flushed(&cluster)).await;
        let names = home.compare(&cluster, 1).await;
        for _ in 0..50 {
            if !cluster.pg_wal().join(names[8].to_string()).exists() {
                break;
            }
            write_segments(&cluster, 2);
            home.receive_until(&cluster, &flushed(&cluster)).await;
            cluster.sql("checkpoint");
        }
        assert!(!cluster.pg_wal().join(names[8].to_string()).exists(), "{major}");
        for at in [3, 6, 7] {
            remove_archived(&home, &names[at]);
        }
        write_segments(&cluster, 2);
        home.receive_until(&cluster, &flushed(&cluster)).await;
        let gaps = home.archive().await.gaps().await.unwrap();
        let found: Vec<(u64, u64)> = gaps.iter().map(|gap| (gap.start.get() / MIB, gap.end.get() / MIB)).collect();
        let numbers = numbers(&names);
        assert_eq!(found, [(numbers[3], numbers[4]), (numbers[6], numbers[8])], "{major}");
        // Nothing is recorded twice, and nothing keeps the receiver from its work.
        write_segments(&cluster, 2);
        home.receive_until(&cluster, &flushed(&cluster)).await;
        assert_eq!(home.archive().await.gaps().await.unwrap(), gaps, "{major}");
        assert_eq!(unaccounted(&home, &cluster).await, Vec::<u64>::new(), "{major}");
    }
}

/// Killed again and again while it catches up: in the end everything that the server wrote is archived.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kills_while_catching_up_leave_no_hole() {
    let cluster = Cluster::start(14, Options::default().segment_size_mb(1).set("wal_sender_timeout", "5s"));
    let home = Home::new();
    home.receive_until(&cluster, &flushed(&cluster)).await;
    for round in 0..10_u64 {
        write_segments(&cluster, 25);
        let before = walk(&home.scratch.join("repository")).len();
        let mut victim = start_victim(&home, &cluster);
        // Into the middle of its uploads, each time at another one.
        let wanted = before + 2 + usize::try_from(round * 2).unwrap();
        for _ in 0..1000 {
            if walk(&home.scratch.join("repository")).len() >= wanted {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
        cluster.wait_for("select count(*) = 0 from pg_stat_replication");
    }
    cluster.switch_wal();
    home.receive_until(&cluster, &flushed(&cluster)).await;
    assert_eq!(home.archive().await.gaps().await.unwrap(), Vec::<Gap>::new());
    assert_eq!(unaccounted(&home, &cluster).await, Vec::<u64>::new());
    let archived = numbers(&home.compare(&cluster, 1).await);
    let written: Lsn = flushed(&cluster).parse().unwrap();
    assert_eq!(archived[archived.len() - 1] + 1, written.get() / MIB, "the end is missing");
}
