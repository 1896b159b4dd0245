//! `walkeep receive` of a Redis instance on disks that are full or fail: what was acknowledged is there, and it goes on
//! as soon as there is room.

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};
use rustix::process::{Pid, Signal};
use walkeep::redis::archive::RedisTarget;

use super::receive::{PATIENCE, acknowledged, based, reach, receiving, restored, work};
use crate::support::disk::Disk;
use crate::support::process::{self, Orphan, until};
use crate::support::redis::{QUICK_REDIS, RedisServer, block_on, configured, debug, instance, site_for};
use crate::support::{Running, Site};

/// A server that remembers enough for whoever is away for a while.
fn server() -> RedisServer {
    RedisServer::start(QUICK_REDIS, &[debug(QUICK_REDIS), vec!["--repl-backlog-size", "256mb"]].concat())
}

/// So much that nobody can compress.
fn noise(server: &RedisServer, kilobytes: usize, seed: u64) {
    let random = &mut SmallRng::seed_from_u64(seed);
    let mut lines = String::new();
    for n in 0..kilobytes {
        let text: String = (0..1000).map(|_| char::from(random.random_range(b'a'..=b'z'))).collect();
        lines.push_str(&format!("SET noise:{seed}:{n} {text}\n"));
    }
    server.feed(&lines);
}

/// How far the server was acknowledged, by whoever is connected now.
fn acked(server: &RedisServer) -> u64 {
    let replicas = server.ask(&["INFO", "replication"]);
    let offsets = replicas.lines().filter(|line| line.starts_with("slave") && line.contains("state=online"));
    let offsets = offsets.filter_map(|line| line.split("offset=").nth(1)?.split(',').next()?.parse().ok());
    offsets.max().unwrap_or(0)
}

/// Waits for something new in the log; gives how far the server was acknowledged meanwhile.
fn told(server: &RedisServer, receiver: &mut Running, says: &str) -> u64 {
    let before = receiver.output().matches(says).count();
    let mut highest = 0;
    let found = until(PATIENCE, || {
        assert!(receiver.ended().is_none(), "it has ended\n{}", receiver.output());
        highest = acked(server).max(highest);
        (receiver.output().matches(says).count() > before).then_some(())
    });
    assert!(found.is_some(), "nothing says {says:?}\n{}", receiver.output());
    highest
}

fn spooled(site: &Site) -> usize {
    std::fs::read_dir(site.state_dir().join("spool/cache")).expect("the spool").count()
}

fn spooled_bytes(site: &Site) -> u64 {
    let files = std::fs::read_dir(site.state_dir().join("spool/cache")).expect("the spool");
    files.map(|file| file.and_then(|file| file.metadata()).map_or(0, |known| known.len())).sum()
}

fn no_gap(site: &Site) {
    assert_eq!(block_on(async { instance(site).await.gaps().await.expect("asked") }), []);
}

#[test]
fn a_full_spool_loses_nothing_acknowledged_and_goes_on_when_there_is_room() {
    let server = server();
    let site = site_for(&server);
    let disk = Disk::mount(&site.state_dir(), 3);
    let mut receiver = receiving(&site);
    based(&receiver);
    // More than the disk holds: what is there goes to the repository, and then there is room for the next.
    noise(&server, 7000, 1);
    acknowledged(&server, &mut receiver);
    assert!(receiver.output().contains("No space left on device"), "{}", receiver.output());
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest(), "larger than the disk");
    // Full of something else, while the stream goes on. Whatever is still on its way to the repository would make room
    // again.
    assert!(until(PATIENCE, || (spooled_bytes(&site) < 64 << 10).then_some(())).is_some(), "{}", receiver.output());
    disk.fill();
    noise(&server, 2000, 2);
    let acked = told(&server, &mut receiver, "No space left on device");
    let (reached, _) = reach(&site, RedisTarget::Newest).expect("reachable");
    assert!(reached.to.is_some_and(|to| to.offset >= acked), "{:?}, acknowledged {acked}", reached.to);
    // Nor by the end of the process, and started without room it says why it waits.
    receiver.kill9();
    let mut receiver = receiving(&site);
    told(&server, &mut receiver, "No space left on device");
    let (reached, _) = reach(&site, RedisTarget::Newest).expect("reachable");
    assert!(reached.to.is_some_and(|to| to.offset >= acked), "{:?}, acknowledged {acked}", reached.to);
    disk.clear();
    work(&server, 1);
    acknowledged(&server, &mut receiver);
    receiver.kill9();
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest(), "room again");
    no_gap(&site);
}

#[test]
fn a_full_repository_leaves_the_stream_in_the_spool_and_gets_it_when_there_is_room() {
    let server = server();
    server.fill(100);
    let site = Site::new();
    let disk = Disk::mount(&site.repository(), 6);
    let site = configured(site, &format!("url = \"{}\"\n", server.url()));
    disk.fill();
    // No snapshot can be stored, by hand or to begin with. The stream is spooled all the same, but nobody can restore
    // it without one: so the server is not told that it is safe.
    let refused = site.walkeep(&["backup", "redis"]).expect_code(5);
    assert!(refused.stderr.contains("is full") && refused.stderr.contains("free some space"), "{}", refused.stderr);
    let mut receiver = receiving(&site);
    told(&server, &mut receiver, "no snapshot to begin with");
    assert!(receiver.output().contains("is full"), "{}", receiver.output());
    let before = spooled_bytes(&site);
    work(&server, 1);
    assert!(until(PATIENCE, || (spooled_bytes(&site) > before).then_some(())).is_some(), "{}", receiver.output());
    assert_eq!(acked(&server), 0, "{}", receiver.output());
    let unreachable = reach(&site, RedisTarget::Newest).expect_err("no snapshot");
    assert!(unreachable.contains("snapshot"), "{unreachable}");
    // With room a receiver begins with a snapshot, without a gap in the stream that it has.
    receiver.kill9();
    disk.clear();
    let mut receiver = receiving(&site);
    based(&receiver);
    work(&server, 2);
    acknowledged(&server, &mut receiver);
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest(), "room again");
    // Full once more: a stretch stays here, also after a clean end, and counts.
    disk.fill();
    noise(&server, 500, 3);
    acknowledged(&server, &mut receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    assert!(receiver.output().contains("a stretch of the stream stays spooled"), "{}", receiver.output());
    assert!(spooled(&site) > 0, "nothing is spooled");
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest(), "from the spool");
    let mut receiver = receiving(&site);
    told(&server, &mut receiver, "a stretch of the stream stays spooled");
    work(&server, 3);
    acknowledged(&server, &mut receiver);
    disk.clear();
    assert!(until(PATIENCE, || (spooled(&site) == 1).then_some(())).is_some(), "{}", receiver.output());
    assert!(receiver.terminate().success(), "{}", receiver.output());
    assert_eq!(spooled(&site), 0);
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest(), "stored");
    no_gap(&site);
}

/// As [`receiving`], on a disk that takes what is written to this file and fails when it is to make that durable; and
/// who it is.
fn receiving_in_vain(site: &Site, file: &str) -> (Running, Pid) {
    let pid = site.path().join("pid");
    let mut strace = process::command("strace", Orphan::Kill);
    strace.args(["-f", "-qq", "-o", "/dev/null", "-P", file, "-e", "inject=fsync,fdatasync:error=EIO"]);
    // So that it ends with the tracer, and can be ended before.
    strace.args(["setpriv", "--pdeathsig=KILL", "sh", "-c", "echo $$ > \"$0\" && exec \"$@\""]).arg(&pid);
    strace.arg(env!("CARGO_BIN_EXE_walkeep")).args(["receive", "cache", "-v"]).env("WALKEEP_CONFIG", site.config());
    let running = Running::start(strace, &site.path().join("receive.log"));
    let known = until(PATIENCE, || std::fs::read_to_string(&pid).ok()?.trim().parse().ok().and_then(Pid::from_raw));
    (running, known.expect("it starts"))
}

/// What was never made durable is never acknowledged, whatever the page cache holds.
#[test]
fn what_the_disk_does_not_make_durable_is_not_acknowledged() {
    let server = server();
    let site = site_for(&server);
    let mut receiver = receiving(&site);
    based(&receiver);
    work(&server, 1);
    acknowledged(&server, &mut receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    // Everything is in the repository, and what comes next will be spooled from there on.
    let (reached, _) = reach(&site, RedisTarget::Newest).expect("reachable");
    let safe = reached.stretches.last().expect("a stretch").last;
    let name = format!("spool/cache/{}.{safe:020}.commands", server.info("master_replid"));
    let file = site.state_dir().join(name).display().to_string();
    let (mut receiver, pid) = receiving_in_vain(&site, &file);
    let following = until(PATIENCE, || (receiver.output().matches("following the stream").count() == 2).then_some(()));
    assert!(following.is_some(), "{}", receiver.output());
    noise(&server, 3000, 1);
    let failed = until(PATIENCE, || {
        let acked = acked(&server);
        assert!(acked <= safe, "acknowledged {acked}, and nothing beyond {safe} is durable\n{}", receiver.output());
        (receiver.output().matches("cannot fsync").count() >= 3).then_some(())
    });
    assert!(failed.is_some(), "{}", receiver.output());
    assert!(receiver.ended().is_none(), "{}", receiver.output());
    assert!(std::path::Path::new(&file).exists(), "nothing is spooled in {file}");
    rustix::process::kill_process(pid, Signal::KILL).expect("kill");
    receiver.wait(PATIENCE);

    // On a disk that is well again it goes on where it was.
    let mut receiver = receiving(&site);
    work(&server, 2);
    acknowledged(&server, &mut receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest());
    no_gap(&site);
}
