//! What is missing in the stream of a Redis server, and what is not known: named, never passed over.

use std::path::PathBuf;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::support::Site;
use crate::support::process::{Running, until};
use crate::support::redis::{RedisServer, rdb_of, site_for};

const PATIENCE: Duration = Duration::from_secs(60);

fn receiving(site: &Site) -> Running {
    site.spawn("receive", &["receive", "cache", "-v"])
}

/// Waits until what the server has written is safe, and ends the receiver: what it received is a stretch of its own
/// then.
fn received(server: &RedisServer, site: &Site, mut receiver: Running) {
    let safe = || {
        let health = site.walkeep(&["health", "cache", "--json"]);
        let said: serde_json::Value = serde_json::from_str(&health.stdout).expect("JSON");
        let newest = &said["instances"][0]["newest"];
        (newest["offset"].as_u64() >= Some(server.offset())).then_some(())
    };
    assert!(until(PATIENCE, safe).is_some(), "{}", receiver.output());
    assert!(receiver.terminate().success(), "{}", receiver.output());
}

/// The objects of the stream, in the order of their offsets.
fn stretches(site: &Site) -> Vec<(u64, PathBuf)> {
    let stream = site.repository().join("cache/stream");
    let mut found = Vec::new();
    for history in std::fs::read_dir(stream).expect("the stream") {
        for object in std::fs::read_dir(history.expect("a history").path()).expect("a history") {
            let path = object.expect("an object").path();
            found.push((path.file_name().unwrap().to_str().unwrap().parse().expect("an offset"), path));
        }
    }
    found.sort();
    found
}

/// A server whose stream was received three times, each a stretch of its own behind the first one's snapshot.
fn received_thrice() -> (RedisServer, Site) {
    let server = RedisServer::start("7.0", &[]);
    let site = site_for(&server);
    let receiver = receiving(&site);
    let based = until(PATIENCE, || receiver.output().contains("a snapshot to begin with is stored").then_some(()));
    assert!(based.is_some(), "{}", receiver.output());
    server.feed("SET a 1\n");
    received(&server, &site, receiver);
    for round in 2..4 {
        let receiver = receiving(&site);
        server.feed(&format!("SET a {round}\n"));
        received(&server, &site, receiver);
    }
    (server, site)
}

#[test]
fn a_stretch_that_is_gone_is_missed_by_every_command() {
    let (server, site) = received_thrice();
    site.walkeep(&["verify", "cache"]).expect_ok();
    let plan = site.walkeep(&["plan", "redis", "--json"]).json();
    assert!(plan["hole"].is_null() && plan["offset"] == server.offset(), "{plan}");

    let all = stretches(&site);
    let [(_, _), (from, middle), (to, _)] = all.as_slice() else { panic!("{all:?}") };
    let middle_bytes = std::fs::read(middle).expect("the object");
    std::fs::remove_file(middle).expect("remove");
    let missing = format!("what lies between offset {from} and {to} of history {}", server.info("master_replid"));
    let verified = site.walkeep(&["verify", "cache"]).expect_code(6);
    assert!(verified.stdout.contains(&format!("missing  in local: {missing} is missing")), "{}", verified.stdout);
    let listed = site.walkeep(&["list", "redis"]);
    assert!(listed.stdout.contains(&missing), "{}", listed.stdout);
    let plan = site.walkeep(&["plan", "redis", "--json"]).json();
    assert!(plan["hole"].as_str().is_some_and(|hole| hole.contains(&missing)) && plan["offset"] == *from, "{plan}");
    let shown = site.walkeep(&["plan", "redis"]);
    assert!(shown.stdout.contains("this is not all that is archived"), "{}", shown.stdout);

    // Damaged is as good as gone, and no more than that.
    let mut damaged = middle_bytes.clone();
    let half = damaged.len() / 2;
    damaged[half..].fill(0x55);
    std::fs::write(middle, &damaged).expect("write");
    let plan = site.walkeep(&["plan", "redis", "--json"]).json();
    assert!(plan["hole"].as_str().is_some_and(|hole| hole.contains("is damaged")) && plan["offset"] == *from, "{plan}");
    std::fs::write(middle, &middle_bytes).expect("write");
    site.walkeep(&["verify", "cache"]).expect_ok();

    // A snapshot that is damaged costs that snapshot alone.
    site.walkeep(&["backup", "redis"]).expect_ok();
    let manifests = std::fs::read_dir(site.repository().join("cache/snapshot")).expect("snapshots");
    let newest = manifests.map(|entry| entry.expect("a snapshot").path()).max().expect("a snapshot");
    std::fs::write(&newest, b"no manifest at all").expect("write");
    let plan = site.walkeep(&["plan", "redis"]);
    assert!(plan.stderr.contains("a snapshot cannot be used"), "{}", plan.stderr);
    let label = newest.file_name().unwrap().to_str().unwrap();
    assert!(!plan.expect_ok().contains(label));
    let health = site.walkeep(&["health", "cache"]).expect_code(1);
    let said = "the newest snapshot, ";
    assert!(health.stdout.contains(said) && health.stdout.contains("its manifest does"), "{}", health.stdout);
    let as_it_is = site.walkeep(&["plan", "redis", "--target-immediate"]).expect_code(3);
    assert!(as_it_is.stdout.contains(label), "{}", as_it_is.stdout);
}

#[test]
fn what_is_missing_right_behind_the_snapshot_is_missed_and_so_is_the_identity() {
    let (server, site) = received_thrice();
    let all = stretches(&site);
    let [(begin, first), (from, _), (_, _)] = all.as_slice() else { panic!("{all:?}") };
    // Right behind the snapshot, where no stretch is before it.
    let first_bytes = std::fs::read(first).expect("the object");
    std::fs::remove_file(first).expect("remove");
    let verified = site.walkeep(&["verify", "cache"]).expect_code(6);
    assert!(verified.stdout.contains(&format!("between offset {begin} and {from} of")), "{}", verified.stdout);
    let health = site.walkeep(&["health", "cache"]).expect_code(1);
    let said = format!("{begin} and {from} of history");
    assert!(
        health.stdout.contains(&said) && !health.stdout.contains("is walkeep receive running"),
        "{}",
        health.stdout
    );
    std::fs::write(first, &first_bytes).expect("write");

    // What says what it is, is missed, and keeps nobody from the rest.
    let identity = site.repository().join("cache/instance");
    let identity_bytes = std::fs::read(&identity).expect("the object");
    std::fs::remove_file(&identity).expect("remove");
    let verified = site.walkeep(&["verify", "cache"]).expect_code(6);
    assert!(verified.stdout.contains("cache/instance in local: it is missing"), "{}", verified.stdout);
    let plan = site.walkeep(&["plan", "redis", "--json"]).json();
    assert!(plan["hole"].is_null() && plan["offset"] == server.offset(), "{plan}");
    assert!(site.walkeep(&["list", "redis"]).expect_ok().contains("Can be restored to any moment\n"));
    std::fs::write(&identity, &identity_bytes).expect("write");
    site.walkeep(&["verify", "cache"]).expect_ok();
}

/// A monitoring system gets a document in any case.
#[test]
fn health_says_what_it_cannot_look_at() {
    let (_server, site) = received_thrice();
    let gaps = site.repository().join("cache/gap").join("a".repeat(40));
    std::fs::create_dir_all(&gaps).expect("a folder");
    std::fs::write(gaps.join("00000000000000000001"), b"no record").expect("write");
    let health = site.walkeep(&["health", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&health.stdout).expect("JSON");
    let finding = &said["instances"][0]["findings"][0];
    assert_eq!((health.code, &said["healthy"], &finding["level"]), (Some(1), &false.into(), &"bad".into()), "{said}");
    assert!(finding["text"].as_str().expect("a text").contains("cache/gap/"), "{said}");
}

#[test]
fn a_time_at_which_nobody_received_is_refused() {
    let server = RedisServer::start("7.0", &[]);
    let site = site_for(&server);
    let receiver = receiving(&site);
    let based = until(PATIENCE, || receiver.output().contains("a snapshot to begin with is stored").then_some(()));
    assert!(based.is_some(), "{}", receiver.output());
    server.feed("SET a 1\n");
    received(&server, &site, receiver);
    let ended = Timestamp::now();
    std::thread::sleep(Duration::from_secs(17));
    server.feed("SET a 2\n");
    std::thread::sleep(Duration::from_secs(1));
    let again = Timestamp::now();
    received(&server, &site, receiving(&site));

    let between = ended.checked_add(SignedDuration::from_secs(15)).expect("a time").to_string();
    let refused = site.walkeep(&["plan", "redis", "--target-time", &between]).expect_code(3);
    assert!(refused.stdout.contains("nobody received the stream at that time"), "{}", refused.stdout);
    let nearest = site.walkeep(&["plan", "redis", "--target-time", &between, "--nearest", "--json"]).json();
    let at: Timestamp = nearest["at"].as_str().expect("a time").parse().expect("a time");
    assert!(at <= ended, "{nearest}");
    let listed = site.walkeep(&["list", "redis", "--json"]).json();
    let windows = listed["redis"][0]["windows"].as_array().or_else(|| listed["instances"][0]["windows"].as_array());
    let windows = windows.unwrap_or_else(|| panic!("{listed}"));
    let time = |window: usize, name: &str| windows[window][name].as_str().unwrap().parse::<Timestamp>().unwrap();
    assert!(windows.len() == 2 && time(0, "to_time") <= ended && time(1, "from_time") >= again, "{listed}");
    // What is shown can be typed, wherever it is shown.
    let shown = site.walkeep(&["list", "redis"]).expect_ok();
    let row =
        shown.lines().find(|line| line.contains(" to ") && line.starts_with("  20")).expect("a window").to_owned();
    let columns: Vec<&str> = row.split("  ").map(str::trim).filter(|column| !column.is_empty()).collect();
    let first = listed["redis"][0]["windows"].as_array().or_else(|| listed["instances"][0]["windows"].as_array());
    let from = first.expect("windows")[0]["from_time"].as_str().unwrap().parse::<Timestamp>().unwrap();
    let before = from.checked_sub(SignedDuration::from_secs(1)).expect("a time").to_string();
    let early = site.walkeep(&["plan", "redis", "--target-time", &before]).expect_code(3).stdout;
    let after = early.lines().find_map(|line| line.trim().strip_prefix("after it: "));
    let after = after.unwrap_or_else(|| panic!("{early}"));
    for time in [columns[0], columns[1], after] {
        site.walkeep(&["plan", "redis", "--target-time", time]).expect_ok();
    }
    // Nothing is missing, only its time.
    site.walkeep(&["plan", "redis"]).expect_ok();
    site.walkeep(&["verify", "cache"]).expect_ok();
}

#[test]
fn another_servers_dump_is_kept_and_is_not_the_newest_state() {
    let (server, other) = (RedisServer::start("7.0", &[]), RedisServer::start("7.0", &[]));
    let site = site_for(&server);
    server.feed("SET a ours\n");
    let ours = site.walkeep(&["backup", "redis", "--json"]).json();
    other.feed("SET a theirs\nSAVE\n");
    let dump = other.path().join("dump.rdb");
    let theirs = site.walkeep(&["backup", "redis", "--from-file", dump.to_str().unwrap(), "--json"]).json();
    let plan = site.walkeep(&["plan", "redis", "--json"]).json();
    assert_eq!(plan["backup"], ours["label"], "{plan}");
    let named = site.walkeep(&["plan", "redis", "--backup", theirs["label"].as_str().unwrap(), "--json"]).json();
    assert_eq!(named["backup"], theirs["label"], "{named}");
    assert_eq!(rdb_of(&site, theirs["label"].as_str().unwrap()), std::fs::read(dump).expect("the dump"));
}
