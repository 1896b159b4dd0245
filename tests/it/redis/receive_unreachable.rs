//! What is not where it was: a repository that is away keeps nothing from the other one, a master that the Sentinels
//! left is left, a replica that comes back is waited for and so is a server that loads its data, and a replica that was
//! promoted without all that we have is another history.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use rustix::process::Signal;
use walkeep::redis::archive::RedisTarget;

use super::receive::{acknowledged, based, reach, receiving, restored, work};
use crate::support::Site;
use crate::support::process::{self, Orphan, Running, until};
use crate::support::redis::{
    QUICK_REDIS, RedisServer, Sentinels, block_on, debug, instance, second_repository, site, site_for,
};

/// A stretch in which anything was written ends after half a minute.
const PATIENCE: Duration = Duration::from_secs(120);

/// The stretches in a repository, each as its history and offset.
fn stretches(repository: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for history in fs::read_dir(repository.join("cache/stream")).into_iter().flatten() {
        let history = history.expect("a history").path();
        for stretch in fs::read_dir(&history).expect("stretches") {
            let name = stretch.expect("a stretch").path();
            found.insert(name.strip_prefix(repository).expect("within").display().to_string());
        }
    }
    found
}

fn awaited(site: &Site, receiver: &Running, count: usize) {
    let there = until(PATIENCE, || (stretches(&site.repository()).len() >= count).then_some(()));
    assert!(there.is_some(), "{:?}\n{}", stretches(&site.repository()), receiver.output());
}

/// Nobody may look into it any more: what a mount that is gone or a right that was taken away comes to.
fn forbid(folder: &Path, forbidden: bool) {
    fs::set_permissions(folder, Permissions::from_mode(if forbidden { 0 } else { 0o700 })).expect("permissions");
}

#[test]
fn a_repository_that_is_away_keeps_nothing_from_the_other_one() {
    let server = RedisServer::start(QUICK_REDIS, &[]);
    let site = site_for(&server);
    let second = second_repository(&site, "");
    let mut receiver = receiving(&site);
    based(&receiver);
    server.feed("SET a 1\n");
    acknowledged(&server, &mut receiver);
    forbid(&second, true);
    // What is spooled then goes to one, and is on its way to the other.
    for round in 0..2 {
        server.feed(&format!("SET b {round}\n"));
        awaited(&site, &receiver, round + 1);
    }
    assert!(receiver.output().contains("a stretch of the stream stays spooled"), "{}", receiver.output());
    assert!(receiver.ended().is_none(), "{}", receiver.output());
    let had = stretches(&second);
    assert!(had.len() < 2, "{had:?}");
    assert!(receiver.terminate().success(), "{}", receiver.output());
    let before = stretches(&site.repository()).len();

    // Long after, what waits in the spool is not missed; without the spool it is.
    forbid(&second, false);
    let later = || {
        let mut command = process::command("env", Orphan::Kill);
        command.args(["LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1", "FAKETIME_DISABLE_SHM=1", "FAKETIME=+1h"]);
        command.arg(env!("CARGO_BIN_EXE_walkeep")).args(["verify", "cache"]).env("WALKEEP_CONFIG", site.config());
        process::run(command)
    };
    later().expect_ok();
    let aside = site.path().join("aside");
    fs::rename(site.state_dir(), &aside).expect("renamed");
    let missed = later().expect_code(6);
    assert!(missed.stdout.contains("missing  in second: "), "{}", missed.stdout);
    fs::rename(&aside, site.state_dir()).expect("renamed");
    forbid(&second, true);

    // Away from the start on, and back without anybody starting anything again.
    let mut receiver = site.spawn("again", &["receive", "cache", "-v"]);
    server.feed("SET c 1\n");
    acknowledged(&server, &mut receiver);
    awaited(&site, &receiver, before + 1);
    forbid(&second, false);
    let back = until(PATIENCE, || receiver.output().contains("the repository is reachable again").then_some(()));
    assert!(back.is_some(), "{}", receiver.output());
    server.feed("SET d 1\n");
    acknowledged(&server, &mut receiver);
    let all = until(PATIENCE, || (stretches(&second) == stretches(&site.repository())).then_some(()));
    assert!(all.is_some(), "{:?}\n{}", stretches(&second), receiver.output());
    assert!(receiver.terminate().success(), "{}", receiver.output());
    assert!(!receiver.output().contains("gap"), "{}", receiver.output());
    site.walkeep(&["verify", "cache"]).expect_ok();
    assert_eq!(stretches(&second), stretches(&site.repository()));
}

/// As after a partition: the Sentinels have another master, and the old one goes on sending.
#[test]
fn a_master_that_the_sentinels_left_is_left() {
    let (old, new) = (RedisServer::start(QUICK_REDIS, &[]), RedisServer::start(QUICK_REDIS, &[]));
    let sentinel = Sentinels::alone(&old);
    let site = site(&sentinel.section());
    let mut receiver = receiving(&site);
    based(&receiver);
    server_named(&sentinel, &new);
    new.feed("SET a 1\n");
    let left =
        until(PATIENCE, || receiver.output().contains("is not the master that the Sentinels name").then_some(()));
    assert!(left.is_some(), "{}", receiver.output());
    acknowledged(&new, &mut receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
}

fn server_named(sentinel: &Sentinels, server: &RedisServer) {
    let port = server.port.to_string();
    sentinel.ask(sentinel.ports[0], &["SENTINEL", "REMOVE", "mymaster"]);
    sentinel.ask(sentinel.ports[0], &["SENTINEL", "MONITOR", "mymaster", "127.0.0.1", &port, "1"]);
}

/// Before its own link is up it has no backlog, which is no reason to begin anew.
#[test]
fn a_replica_that_comes_back_before_its_master_is_waited_for() {
    let master = RedisServer::start(QUICK_REDIS, &[]);
    let port = master.port.to_string();
    let mut replica = RedisServer::start(QUICK_REDIS, &["--replicaof", "127.0.0.1", &port]);
    let linked = |replica: &RedisServer| (replica.info("master_link_status") == "up").then_some(());
    assert!(until(PATIENCE, || linked(&replica)).is_some(), "{}", replica.log());
    let site = site_for(&replica);
    let mut receiver = receiving(&site);
    based(&receiver);
    master.feed("SET a 1\n");
    assert!(until(PATIENCE, || (replica.offset() == master.offset()).then_some(())).is_some(), "{}", replica.log());
    acknowledged(&replica, &mut receiver);
    master.signal(Signal::STOP);
    replica.ask(&["SAVE"]);
    replica.restart();
    let waits = until(PATIENCE, || receiver.output().contains("it is a replica without its master").then_some(()));
    assert!(waits.is_some(), "{}", receiver.output());
    master.signal(Signal::CONT);
    assert!(until(PATIENCE, || linked(&replica)).is_some(), "{}", replica.log());
    master.feed("SET b 2\n");
    assert!(until(PATIENCE, || (replica.offset() == master.offset()).then_some(())).is_some(), "{}", replica.log());
    acknowledged(&replica, &mut receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    assert!(!receiver.output().contains("gap"), "{}", receiver.output());
}

/// Loads its data again, so slowly that it is at it until it is let; the client that has it do so.
fn loading(server: &RedisServer, site: &Site) -> Running {
    server.ask(&["CONFIG", "SET", "key-load-delay", "5000"]);
    let mut command = server.cli();
    command.args(["DEBUG", "RELOAD"]);
    let reload = Running::start(command, &site.path().join("reload.log"));
    let begun = until(PATIENCE, || (server.info("loading") == "1").then_some(()));
    assert!(begun.is_some(), "{}", reload.output());
    reload
}

/// How often the receiver has met the server like that.
fn meetings(receiver: &Running) -> usize {
    let meets = |line: &&str| line.contains("the stream of commands broke") && line.contains("it is loading its data");
    receiver.output().lines().filter(meets).count()
}

/// Waits until the receiver has met the server like that more often than so many times, then lets it load.
fn met(server: &RedisServer, receiver: &Running, before: usize, mut reload: Running) {
    let met = until(PATIENCE, || (meetings(receiver) > before).then_some(()));
    assert!(met.is_some(), "{}", receiver.output());
    assert_eq!(server.info("loading"), "1", "it was to be loading still");
    server.ask(&["CONFIG", "SET", "key-load-delay", "0"]);
    assert!(reload.wait(PATIENCE).success(), "{}", reload.output());
}

/// At first, and in the middle of the stream.
#[test]
fn a_server_that_loads_its_data_is_waited_for() {
    let events = vec!["--loading-process-events-interval-bytes", "1024"];
    let server = RedisServer::start(QUICK_REDIS, &[debug(QUICK_REDIS), events].concat());
    server.fill(3000);
    let site = site_for(&server);
    let reload = loading(&server, &site);
    let mut receiver = receiving(&site);
    met(&server, &receiver, 0, reload);
    based(&receiver);
    work(&server, 1);
    acknowledged(&server, &mut receiver);

    let before = meetings(&receiver);
    let reload = loading(&server, &site);
    server.ask(&["CLIENT", "KILL", "TYPE", "replica"]);
    met(&server, &receiver, before, reload);
    work(&server, 2);
    acknowledged(&server, &mut receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    assert!(!receiver.output().contains("gap"), "{}", receiver.output());
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest());
}

/// What only the old master wrote, and we received, is a history that ends there: every moment of it can be restored,
/// and the new master's begins with a snapshot of its own.
#[test]
fn a_replica_that_is_promoted_behind_us_is_a_gap_and_begins_anew() {
    // No sign of life comes in between, so that what is received is what was written.
    let quiet = vec!["--repl-ping-replica-period", "3600"];
    let mut master = RedisServer::start(QUICK_REDIS, &[debug(QUICK_REDIS), quiet].concat());
    let port = master.port.to_string();
    let replica =
        RedisServer::start(QUICK_REDIS, &[debug(QUICK_REDIS), vec!["--replicaof", "127.0.0.1", &port]].concat());
    let linked = until(PATIENCE, || (replica.info("master_link_status") == "up").then_some(()));
    assert!(linked.is_some(), "{}", replica.log());
    let link = master.ask(&["CLIENT", "LIST", "TYPE", "replica"]);
    let link = link.strip_prefix("id=").and_then(|link| link.split(' ').next()).expect("the replica's link");
    let sentinel = Sentinels::alone(&master);
    let site = site(&sentinel.section());
    // A stream that begins anew soon after its first snapshot waits for half a minute; one that another run began does
    // not.
    let mut receiver = receiving(&site);
    based(&receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    let mut receiver = receiving(&site);

    master.feed("SET both 1\nRPUSH list a b\n");
    acknowledged(&master, &mut receiver);
    let both = until(PATIENCE, || (replica.offset() == master.offset()).then_some(()));
    assert!(both.is_some(), "{}", replica.log());
    replica.signal(Signal::STOP);
    // Or what the master wrote would wait for it in its socket. A greeting of the Sentinel may wait there already.
    assert_eq!(master.ask(&["CLIENT", "KILL", "ID", link]), "1");
    let cut_at = master.offset();
    let mut moments = vec![(Timestamp::now(), master.digest())];
    for round in 0..3 {
        // So that the next round is another moment to marks that are 10 ms apart.
        std::thread::sleep(Duration::from_millis(50));
        // Who waits has the server ask how far the receiver is, which answers at once.
        master.feed(&format!("SET lost {round}\nRPUSH list {round}\nWAIT 1 10000\n"));
        acknowledged(&master, &mut receiver);
        moments.push((Timestamp::now(), master.digest()));
    }
    let (history, ahead) = (master.info("master_replid"), master.offset());
    assert!(ahead > cut_at, "{ahead}");
    std::thread::sleep(Duration::from_millis(50));
    master.kill9();
    let unseen = Timestamp::now();
    replica.signal(Signal::CONT);
    replica.ask(&["REPLICAOF", "NO", "ONE"]);
    let promoted_at = replica.offset();
    assert!(promoted_at <= cut_at, "{promoted_at}, not {cut_at}: it was to have less than we have");
    server_named(&sentinel, &replica);
    replica.feed("SET new 1\nRPUSH list new\n");

    let twice = until(PATIENCE, || (receiver.output().matches("to begin with is stored").count() == 2).then_some(()));
    assert!(twice.is_some(), "{}", receiver.output());
    assert!(receiver.output().contains("the stream has a gap"), "{}", receiver.output());
    replica.feed("SET new 2\n");
    acknowledged(&replica, &mut receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    let gaps = block_on(async { instance(&site).await.gaps().await.expect("asked") });
    let places: Vec<(String, u64)> = gaps.iter().map(|gap| (gap.replid.to_string(), gap.offset)).collect();
    assert_eq!(places, [(history, ahead)], "{gaps:?}");
    // The last of them is known up to when the last byte had come, which was before.
    let last = moments.pop().expect("a moment").1;
    for (time, digest) in &moments {
        assert_eq!(restored(&site, RedisTarget::Time(*time)).digest(), *digest, "{time}");
    }
    let lost: walkeep::redis::wire::ReplicationId = gaps[0].replid;
    assert_eq!(restored(&site, RedisTarget::Offset(lost, ahead)).digest(), last, "the last of what the old master had");
    assert!(reach(&site, RedisTarget::Time(unseen)).is_err(), "nobody knows what was there between");
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), replica.digest());
    site.walkeep(&["verify", "cache"]).expect_ok();
}
