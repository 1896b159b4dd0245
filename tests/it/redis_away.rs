//! What is not where it was: a repository that is away keeps nothing from the other one, a master that the Sentinels left is left, and a replica that
//! comes back is waited for.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::process::Signal;

use super::redis_receive::{acknowledged, based, receiving};
use super::support::Site;
use super::support::process::{self, Orphan, Running, until};
use super::support::redis::{QUICK_REDIS, RedisServer, Sentinels, second_repository, site, site_for};

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
    let back = until(PATIENCE, || receiver.output().contains("all repositories can be reached now").then_some(()));
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
