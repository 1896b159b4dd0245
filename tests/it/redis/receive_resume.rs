//! `walkeep receive` of a Redis instance begins again: after damage, a clock that was set back, and beside another
//! receiver.

use std::path::PathBuf;
use std::time::Duration;

use jiff::SignedDuration;
use walkeep::redis::archive::stream::StretchToStore;
use walkeep::redis::archive::{RedisTarget, StreamStretch};

use super::receive::{acknowledged, based, receiving, restored, work};
use crate::support::Site;
use crate::support::process::{Running, until};
use crate::support::redis::{QUICK_REDIS, RedisServer, block_on, debug, instance, site_for};

const PATIENCE: Duration = Duration::from_secs(60);

/// The stored stretches, in order.
fn stretches(site: &Site) -> Vec<StreamStretch> {
    block_on(async {
        let instance = instance(site).await;
        let mut all = Vec::new();
        for listed in instance.stored_stretches().await.expect("listed") {
            let (replid, first) = (listed.name.replid, listed.name.first);
            all.push(instance.stored_stretch(replid, first).await.expect("asked").expect("there"));
        }
        all
    })
}

/// The file of a stored stretch.
fn file_of(site: &Site, stretch: &StreamStretch) -> PathBuf {
    let key = instance_key(site, stretch);
    let mut folders = vec![site.repository()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.to_string_lossy().ends_with(&key) {
                return path;
            }
        }
    }
    panic!("{key} is not there")
}

fn instance_key(site: &Site, stretch: &StreamStretch) -> String {
    block_on(async {
        let instance = instance(site).await;
        instance.layout().commands(&stretch.replid.to_string(), stretch.first).expect("a key").to_string()
    })
}

/// Flips one byte of the newest stored stretch, near its end, where what it says of itself stands.
fn rot_the_newest(site: &Site) {
    let newest = stretches(site).into_iter().max_by_key(|stretch| stretch.last).expect("a stretch");
    let path = file_of(site, &newest);
    let mut bytes = std::fs::read(&path).expect("the object");
    let at = bytes.len() - 40;
    bytes[at] ^= 1;
    std::fs::write(&path, bytes).expect("written");
}

/// Ends it, with everything stored.
fn end(mut receiver: Running) {
    assert!(receiver.terminate().success(), "{}", receiver.output());
}

/// A master becomes one of another name, with all it had, as at a failover (`shiftReplicationId`).
fn promote(server: &RedisServer) {
    server.ask(&["REPLICAOF", "127.0.0.1", "1"]);
    server.ask(&["REPLICAOF", "NO", "ONE"]);
}

#[test]
fn a_rotted_stretch_does_not_keep_the_receiver_from_the_stream() {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let site = site_for(&server);
    let mut receiver = receiving(&site);
    based(&receiver);
    for round in 0..2 {
        work(&server, round);
        acknowledged(&server, &mut receiver);
        end(receiver);
        receiver = receiving(&site);
    }
    work(&server, 2);
    acknowledged(&server, &mut receiver);
    end(receiver);
    rot_the_newest(&site);
    site.walkeep(&["verify", "cache"]).expect_code(6);
    work(&server, 3);
    let mut receiver = receiving(&site);
    work(&server, 4);
    acknowledged(&server, &mut receiver);
    assert!(receiver.output().contains("walkeep verify tells"), "{}", receiver.output());
    assert!(!receiver.output().contains("has a gap"), "{}", receiver.output());
    end(receiver);
    // The server still had what was damaged.
    site.walkeep(&["verify", "cache"]).expect_code(0);
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest());
}

#[test]
fn a_rotted_stretch_that_no_backlog_has_any_more_is_a_gap_and_a_new_snapshot() {
    let server = RedisServer::start(QUICK_REDIS, &[debug(QUICK_REDIS), vec!["--repl-backlog-size", "16384"]].concat());
    let site = site_for(&server);
    let mut receiver = receiving(&site);
    based(&receiver);
    work(&server, 1);
    acknowledged(&server, &mut receiver);
    end(receiver);
    rot_the_newest(&site);
    server.fill(3000);
    let mut receiver = receiving(&site);
    let gap = until(PATIENCE, || receiver.output().contains("the stream has a gap").then_some(()));
    assert!(gap.is_some(), "{}", receiver.output());
    let based = until(PATIENCE, || (receiver.output().matches("to begin with is stored").count() == 2).then_some(()));
    assert!(based.is_some(), "{}", receiver.output());
    work(&server, 2);
    acknowledged(&server, &mut receiver);
    end(receiver);
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest());
    assert_eq!(block_on(async { instance(&site).await.gaps().await.expect("asked").len() }), 1);
}

/// The clock was an hour ahead until the failover.
#[test]
fn a_clock_that_was_set_back_does_not_lead_back_behind_a_failover() {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let site = site_for(&server);
    let mut receiver = receiving(&site);
    based(&receiver);
    work(&server, 1);
    acknowledged(&server, &mut receiver);
    end(receiver);
    let before = stretches(&site);
    block_on(async {
        let instance = instance(&site).await;
        for stretch in &before {
            let bytes = instance.stored_commands(stretch.replid, stretch.first).await.expect("asked").expect("there");
            let key = instance.layout().commands(&stretch.replid.to_string(), stretch.first).expect("a key");
            instance.vault().delete(&key).await.expect("removed");
            let ended_at = stretch.ended_at + SignedDuration::from_hours(1);
            instance
                .put_commands(0, &StretchToStore::new(StreamStretch { ended_at, ..stretch.clone() }, bytes))
                .await
                .expect("put");
        }
    });
    promote(&server);
    for round in 2..5 {
        let mut receiver = receiving(&site);
        work(&server, round);
        acknowledged(&server, &mut receiver);
        assert!(!receiver.output().contains("gap"), "{}", receiver.output());
        // First what is spooled tells where it goes on, then what is stored.
        if round == 2 { receiver.kill9() } else { end(receiver) }
    }
    let log = std::fs::read_to_string(site.scratch().join("receive.log")).expect("the log");
    assert_eq!(log.matches("a failover").count(), 1, "{log}");
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest());
    site.walkeep(&["verify", "cache"]).expect_code(0);
}

/// As in a rolling update in which each has a volume of its own.
#[test]
fn two_receivers_with_a_state_each_do_not_stand_in_each_others_way() {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let site = site_for(&server);
    let receiver = receiving(&site);
    based(&receiver);
    end(receiver);
    let text = std::fs::read_to_string(site.config()).expect("the configuration");
    let state = site.state_dir().display().to_string();
    assert!(text.contains(&state), "{text}");
    let other = site
        .scratch()
        .file("other.toml", &text.replace(&state, &site.scratch().directory("other").display().to_string()));
    let second = |site: &Site| {
        let mut command = site.command();
        command.env("WALKEEP_CONFIG", &other).args(["receive", "cache", "-v"]);
        Running::start(command, &site.scratch().join("other.log"))
    };
    // Each begins where the other one does.
    let (mut one, mut two) = (receiving(&site), second(&site));
    let both =
        until(PATIENCE, || [&one, &two].iter().all(|one| one.output().contains("following the stream")).then_some(()));
    assert!(both.is_some(), "{}\n{}", one.output(), two.output());
    let twice = until(PATIENCE, || (server.info("connected_slaves") == "2").then_some(()));
    assert!(twice.is_some(), "{}", server.info("connected_slaves"));
    work(&server, 1);
    acknowledged(&server, &mut one);
    end(one);
    work(&server, 2);
    acknowledged(&server, &mut two);
    end(two);
    let (mut one, mut two) = (receiving(&site), second(&site));
    work(&server, 3);
    acknowledged(&server, &mut one);
    acknowledged(&server, &mut two);
    two.kill9();
    end(one);
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest());
    let two = second(&site);
    let followed = until(PATIENCE, || (two.output().matches("following the stream").count() == 3).then_some(()));
    assert!(followed.is_some(), "{}", two.output());
    end(two);
    site.walkeep(&["verify", "cache"]).expect_code(0);
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest());
}
