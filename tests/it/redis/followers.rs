//! Two repositories, of which one misses something: it is brought there without a command, and each is judged by
//! itself. The oracles are the names in both, and the server's digest of what each alone restores.

use std::collections::BTreeSet;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use walkeep::redis::archive::RedisTarget;

use super::receive::{acknowledged, based, receiving, restored, work};
use crate::support::Site;
use crate::support::process::{Running, tail, until};
use crate::support::redis::{QUICK_REDIS, RedisServer, debug, program, second_repository, site_for};
use crate::support::store::{Mode, Proxy, S3};

/// A stretch in which anything was written ends after half a minute.
const PATIENCE: Duration = Duration::from_secs(120);

/// The names of the instance's objects in a folder.
fn objects(repository: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![repository.join("cache")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            let key = path.strip_prefix(repository).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                folders.push(path);
            } else if !key.contains('#') {
                found.insert(key);
            }
        }
    }
    found
}

fn count(objects: &BTreeSet<String>, folder: &str) -> usize {
    objects.iter().filter(|key| key.starts_with(folder)).count()
}

/// Waits until the first repository has so many stretches.
fn await_stretches(site: &Site, receiver: &Running, wanted: usize) {
    let stored = || (count(&objects(&site.repository()), "cache/stream/") >= wanted).then_some(());
    assert!(until(PATIENCE, stored).is_some(), "{wanted} stretches\n{}", tail(&receiver.output(), 30));
}

/// Waits until both have the same objects, and gives them.
fn await_equal(both: impl Fn() -> [BTreeSet<String>; 2], receiver: &Running) -> BTreeSet<String> {
    let equal = until(PATIENCE, || {
        let [first, second] = both();
        (first == second).then_some(first)
    });
    equal.unwrap_or_else(|| {
        let [first, second] = both();
        let missing: Vec<&String> = first.symmetric_difference(&second).collect();
        panic!("only one of them has {missing:?}\n{}", tail(&receiver.output(), 40))
    })
}

/// The digest of a stock server that starts on what this repository alone restores, as on another machine.
fn restored_from(site: &Site, keep: &str, target: &[&str]) -> String {
    let text = fs::read_to_string(site.config()).unwrap();
    let (mut kept, mut dropping) = (String::new(), false);
    for line in text.lines() {
        if line.starts_with('[') {
            dropping = line.starts_with("[repository.") && !line.starts_with(&format!("[repository.{keep}]"));
        }
        if !dropping {
            kept += &format!("{line}\n");
        }
    }
    let name = format!("{keep}{}", target.concat().replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
    let state = site.path().join(format!("state-{name}"));
    let kept = kept.replace(site.state_dir().to_str().unwrap(), state.to_str().unwrap());
    let config = site.scratch().file(&format!("{name}.toml"), &kept);
    let dir = site.scratch().directory(&format!("restored-{name}"));
    let server = program(QUICK_REDIS, "redis-server");
    let words = ["--config", config.to_str().unwrap(), "restore", "redis", "--dir", dir.to_str().unwrap()];
    let more = ["--redis-server", server.to_str().unwrap(), "--start", "--json"];
    let report = site.walkeep(&[words.as_slice(), &more, target].concat()).json();
    let start = report["start"].as_array().expect("options").iter().map(|word| word.as_str().expect("a word"));
    let options: Vec<&str> = start.chain(debug(QUICK_REDIS)).collect();
    RedisServer::start(QUICK_REDIS, &options).digest()
}

/// What `list --json` has of the instance's repositories.
fn listed(site: &Site) -> Vec<serde_json::Value> {
    let said = site.walkeep(&["list", "redis", "--json"]).json();
    said["instances"][0]["repositories"].as_array().expect("repositories").clone()
}

/// An object store is unreachable for a while. A snapshot is taken, and the receiver continues on another machine, so
/// that the stretches are in no spool any longer.
#[test]
fn a_store_that_was_unreachable_gets_what_it_missed_without_a_command() {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    server.fill(300);
    let site = site_for(&server);
    let store = S3::start();
    store.add_to(&site).expect_ok();
    let proxy = Proxy::before(store.port());
    let direct = fs::read_to_string(site.config()).unwrap();
    let through = direct.replace(&format!("127.0.0.1:{}", store.port()), &format!("127.0.0.1:{}", proxy.port()));
    assert_ne!(direct, through);
    site.scratch().file("walkeep.toml", &through);
    let both = || [objects(&site.repository()), store.objects("cache/")];

    let mut receiver = receiving(&site);
    based(&receiver);
    work(&server, 1);
    acknowledged(&server, &mut receiver);
    await_equal(both, &receiver);
    proxy.set(Mode::Cut);
    let had = store.objects("cache/");
    work(&server, 2);
    acknowledged(&server, &mut receiver);
    // It is stored where it can be.
    site.walkeep(&["backup", "redis"]).expect_code(5);
    work(&server, 3);
    acknowledged(&server, &mut receiver);
    let before = count(&objects(&site.repository()), "cache/stream/");
    assert!(receiver.terminate().success(), "{}", receiver.output());
    await_stretches(&site, &receiver, before + 1);
    fs::rename(site.state_dir(), site.path().join("another-machine")).unwrap();
    let mut receiver = site.spawn("again", &["receive", "cache", "-v"]);
    work(&server, 4);
    acknowledged(&server, &mut receiver);

    // What is unknown is named, and the rest is answered from the other one.
    let plan = site.walkeep(&["plan", "redis", "--json"]).json();
    assert_eq!(
        (&plan["reachable"], &plan["unreachable"][0]["repository"]),
        (&true.into(), &"offsite".into()),
        "{plan}"
    );
    let [local, offsite] = listed(&site).try_into().expect("two");
    assert!(local["unreachable"].is_null() && local["newest_time"].is_string(), "{local}");
    assert_eq!(local["backups"].as_array().map(Vec::len), Some(2), "{local}");
    assert!(offsite["unreachable"].is_string() && offsite["newest_time"].is_null(), "{offsite}");
    let health = site.walkeep(&["health", "cache", "--json"]).expect_code(1);
    assert!(health.stdout.contains("offsite cannot be reached"), "{}", health.stdout);
    assert_eq!(store.objects("cache/"), had, "it was to be unreachable");

    proxy.set(Mode::Pass);
    await_stretches(&site, &receiver, before + 2);
    let all = await_equal(both, &receiver);
    assert_eq!(count(&all, "cache/snapshot/"), 2, "{all:?}");
    assert!(!receiver.output().contains("gap"), "{}", receiver.output());
    let [local, offsite] = listed(&site).try_into().expect("two");
    for one in [&local, &offsite] {
        assert_eq!((&one["lacking"]["stretches"], &one["unreachable"]), (&0.into(), &serde_json::Value::Null), "{one}");
        assert_eq!(one["backups"].as_array().map(Vec::len), Some(2), "{one}");
    }
    acknowledged(&server, &mut receiver);
    let digest = server.digest();
    assert!(receiver.terminate().success(), "{}", receiver.output());
    await_equal(both, &receiver);
    for keep in ["local", "offsite"] {
        assert_eq!(restored_from(&site, keep, &[]), digest, "{keep}");
    }
    site.walkeep(&["verify", "cache"]).expect_ok();
}

/// A repository is added to an archive that has two histories, a gap and several snapshots.
#[test]
fn a_repository_that_is_added_gets_what_there_was_before() {
    let mut server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    server.fill(50);
    let site = site_for(&server);
    let mut receiver = receiving(&site);
    based(&receiver);
    work(&server, 1);
    acknowledged(&server, &mut receiver);
    let label = site.walkeep(&["backup", "redis"]).expect_ok().trim().to_owned();
    let first = server.digest();
    work(&server, 2);
    acknowledged(&server, &mut receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    // Its data and its history are lost.
    server.restart();
    work(&server, 3);
    let mut receiver = site.spawn("again", &["receive", "cache", "-v"]);
    based(&receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    let before = objects(&site.repository());
    assert!(count(&before, "cache/gap/") == 1 && count(&before, "cache/snapshot/") == 3, "{before:?}");

    let second = second_repository(&site, "");
    let mut receiver = site.spawn("both", &["receive", "cache", "-v"]);
    let both = || [objects(&site.repository()), objects(&second)];
    let all = await_equal(both, &receiver);
    assert!(all.is_superset(&before), "{all:?}");
    work(&server, 4);
    acknowledged(&server, &mut receiver);
    let digest = server.digest();
    assert!(receiver.terminate().success(), "{}", receiver.output());
    await_equal(both, &receiver);
    assert_eq!(restored_from(&site, "second", &[]), digest);
    assert_eq!(restored_from(&site, "second", &["--backup", &label, "--target-immediate"]), first);
    site.walkeep(&["verify", "cache"]).expect_ok();
}

/// Acknowledged commands that only the spool has, which this user may not read, are unknown and not absent.
#[test]
fn a_spool_that_cannot_be_read_reassures_nobody() {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let site = site_for(&server);
    let mut receiver = receiving(&site);
    based(&receiver);
    work(&server, 1);
    acknowledged(&server, &mut receiver);
    receiver.kill9();
    let digest = server.digest();
    let folder = site.state_dir().join("spool");
    let files = fs::read_dir(folder.join("cache")).expect("the spool").flatten().map(|entry| entry.path());
    let file = files.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "commands")).expect("one");
    for (nth, unread) in [folder, file].into_iter().enumerate() {
        let readable = fs::metadata(&unread).unwrap().permissions();
        fs::set_permissions(&unread, Permissions::from_mode(0o000)).unwrap();
        let plan = site.walkeep(&["plan", "redis"]);
        assert!(plan.code != Some(0) && plan.stderr.contains("spool"), "{unread:?}: {plan:?}");
        let dir = site.scratch().directory(&format!("restored-{nth}"));
        let server = program(QUICK_REDIS, "redis-server");
        let words = ["restore", "redis", "--dir", dir.to_str().unwrap(), "--redis-server", server.to_str().unwrap()];
        let restore = site.walkeep(&words);
        assert!(restore.code != Some(0) && restore.stderr.contains("spool"), "{restore:?}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        // What does not depend on it is answered.
        let immediate = site.walkeep(&["plan", "redis", "--target-immediate", "--json"]).json();
        assert_eq!(immediate["reachable"], true, "{immediate}");
        let listed = site.walkeep(&["list", "redis"]).expect_ok();
        assert!(listed.contains("the spool cannot be read"), "{listed}");
        let said = site.walkeep(&["list", "redis", "--json"]).json();
        assert!(said["instances"][0]["unread_spool"].is_string(), "{said}");
        let health = site.walkeep(&["health", "cache"]).expect_code(1).stdout;
        assert!(health.contains("spool        BAD cannot be read"), "{health}");
        fs::set_permissions(&unread, readable).unwrap();
    }
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), digest);
    site.walkeep(&["plan", "redis"]).expect_ok();
}

/// A damaged part holds back its own snapshot from a repository that is being filled, and no other.
#[test]
fn a_damaged_part_holds_back_only_its_snapshot() {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    server.fill(50);
    let site = site_for(&server);
    let mut receiver = receiving(&site);
    based(&receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    let damaged = site.walkeep(&["backup", "redis"]).expect_ok().trim().to_owned();
    server.fill(100);
    let whole = site.walkeep(&["backup", "redis"]).expect_ok().trim().to_owned();
    let digest = server.digest();
    let part = site.repository().join(format!("cache/rdb/{damaged}/000000"));
    let mut bytes = fs::read(&part).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&part, bytes).unwrap();
    let manifest = |label: &str| format!("cache/snapshot/{label}");

    // By a command, and by a receiver.
    let second = second_repository(&site, "");
    let synced = site.walkeep(&["repository", "sync", "second"]).expect_code(6);
    assert!(synced.stdout.contains(&format!("not copied: {}", manifest(&damaged))), "{}", synced.stdout);
    let has = objects(&second);
    assert!(has.contains(&manifest(&whole)) && !has.contains(&manifest(&damaged)), "{has:?}");
    assert_eq!(restored_from(&site, "second", &["--target-immediate"]), digest);
    fs::remove_dir_all(second.join("cache")).unwrap();
    let mut receiver = site.spawn("again", &["receive", "cache", "-v"]);
    let filled = until(PATIENCE, || objects(&second).contains(&manifest(&whole)).then_some(()));
    assert!(filled.is_some(), "{}", receiver.output());
    assert!(receiver.terminate().success(), "{}", receiver.output());
    assert!(receiver.output().contains("this object cannot be filled"), "{}", receiver.output());
    assert!(!objects(&second).contains(&manifest(&damaged)), "{:?}", objects(&second));
}
