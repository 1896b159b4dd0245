//! Servers that say nothing, and servers that say something else than before.

use std::fs;
use std::time::Duration;

use walkeep::postgres::format::segment::SegmentSize;
use walkeep::postgres::receive::ReceiveError;

use super::receive::{Background, Home, copy_dir};
use crate::support::relay::Relay;
use crate::support::{Cluster, Options, QUICK, Scratch};

fn through(relay: &Relay) -> String {
    format!("host=127.0.0.1 port={} user=postgres dbname=postgres", relay.port)
}

/// Waits as long as the receiver waits for an answer, and some more.
async fn wait_patiently(receiver: &Background, text: &str) {
    for _ in 0..1200 {
        if receiver.notes.has(text) {
            return;
        }
        assert!(!receiver.task.is_finished(), "it ended; {:?}", receiver.notes.0.lock().unwrap());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("no {text:?} in {:?}", receiver.notes.0.lock().unwrap());
}

async fn wait_until_held(relay: &Relay) {
    while !relay.holds() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// One waits for each answer that the receiver wants before it streams: it ends at once when it is told to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_receiver_that_waits_for_an_answer_ends_when_told_to() {
    let cluster = Cluster::start(QUICK, Options::default());
    for word in [
        "IDENTIFY_SYSTEM",
        "SHOW wal_segment_size",
        "READ_REPLICATION_SLOT",
        "CREATE_REPLICATION_SLOT",
        "SHOW wal_sender_timeout",
        "START_REPLICATION",
    ] {
        cluster.sql("select pg_drop_replication_slot(slot_name) from pg_replication_slots where not active");
        let relay = Relay::before_port(cluster.port);
        relay.hold_after_word(word);
        let home = Home::new();
        let receiver = Background::start(&home, home.settings(&through(&relay))).await;
        wait_until_held(&relay).await;
        // Less than it would wait for the answer.
        let ended = tokio::time::timeout(Duration::from_secs(20), receiver.stop()).await;
        let ended = ended.unwrap_or_else(|_| panic!("it was deaf after {word}"));
        assert!(!ended.unwrap().reached, "{word}");
        drop(relay);
        cluster.wait_for("select count(*) = 0 from pg_replication_slots where active");
    }
}

/// In the middle of a connection attempt, and in the middle of a stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_server_is_connected_to_again() {
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    let (relay, other_relay) = (Relay::before_port(cluster.port), Relay::before_port(cluster.port));
    relay.hold_after_word("SHOW wal_segment_size");
    let (home, other_home) = (Home::new(), Home::new());
    let receiver = Background::start(&home, home.settings(&through(&relay))).await;
    let mut settings = other_home.settings(&through(&other_relay));
    settings.slot = None;
    cluster.set("wal_sender_timeout", "20s");
    let streaming = Background::start(&other_home, settings).await;
    streaming.wait_for("streaming").await;
    other_relay.hold_after(0);

    wait_patiently(&receiver, "did not answer within 30 s").await;
    relay.let_pass();
    wait_patiently(&receiver, "streaming").await;
    wait_patiently(&streaming, "did not answer within 30 s").await;
    other_relay.let_pass();
    let name = cluster.switch_wal();
    wait_patiently(&receiver, &format!("archived {name}")).await;
    wait_patiently(&streaming, &format!("archived {name}")).await;
    receiver.stop().await.unwrap();
    streaming.stop().await.unwrap();
}

/// A server that lost its last WAL, or was set back: nothing is removed, and the way out that the message names works.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_set_back_to_an_older_state_is_noticed() {
    let mut cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    let home = Home::new();
    cluster.sql("create table t (x int)");
    home.receive_until(&cluster, &cluster.current_lsn()).await;
    cluster.stop();
    let copy = Scratch::new();
    let saved = copy.join("saved");
    copy_dir(cluster.data(), &saved);
    cluster.start_again();
    cluster.sql("insert into t values (1)");
    home.receive_until(&cluster, &cluster.sql("select pg_current_wal_flush_lsn()")).await;
    cluster.stop();
    fs::remove_dir_all(cluster.data()).unwrap();
    copy_dir(&saved, cluster.data());
    cluster.start_again();
    cluster.sql("insert into t select generate_series(1, 100)");
    let mut message = String::new();
    let mut file = None;
    for _ in 0..2 {
        let receiver = Background::start(&home, home.settings(&cluster.conninfo())).await;
        let error = tokio::time::timeout(Duration::from_secs(60), receiver.task).await.unwrap().unwrap().unwrap_err();
        message = error.to_string();
        let ReceiveError::Diverged { spool_file, .. } = error else { panic!("{message}") };
        file = Some(spool_file);
    }
    let file = file.unwrap();
    assert!(message.contains(&format!("move {} away", file.display())), "{message}");
    fs::rename(&file, home.scratch.join("aside")).unwrap();
    let name = cluster.switch_wal();
    let receiver = Background::start(&home, home.settings(&cluster.conninfo())).await;
    receiver.wait_for(&format!("archived {name}")).await;
    receiver.stop().await.unwrap();
    let size = SegmentSize::new(1 << 20).unwrap();
    let numbers: Vec<u64> =
        home.compare(&cluster, 1).await.iter().map(|name| name.number(size).unwrap().get()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a hole: {numbers:?}");
}
