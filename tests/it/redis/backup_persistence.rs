//! The server's own persistence beside walkeep's: a snapshot leaves it alone, but for the dump that the server itself
//! writes for every replica unless it sends from memory; and when it fails, that is said and keeps no snapshot away.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::SystemTime;

use super::receive::{PATIENCE, based, receiving};
use crate::support::process::until;
use crate::support::redis::{RedisServer, VERSIONS, debug, rdb_of, site_for, started_from};

/// How long a fork took and what it cost: the server measures it of every child, whoever that was for.
const MEASURED: [&str; 2] = ["rdb_last_bgsave_time_sec", "rdb_last_cow_size"];

/// All that the server's own persistence is, seen from outside.
struct Own {
    configuration: String,
    persistence: BTreeMap<String, String>,
    /// By name within the server's folder: size, when last written, and which file that is.
    files: BTreeMap<String, (u64, SystemTime, u64)>,
}

impl Own {
    fn of(server: &RedisServer) -> Own {
        let idle = until(PATIENCE, || (server.info("rdb_bgsave_in_progress") == "0").then_some(()));
        assert!(idle.is_some(), "{}", server.ask(&["INFO", "persistence"]));
        let persistence = server.ask(&["INFO", "persistence"]);
        let lines = persistence.lines().filter_map(|line| line.trim_end().split_once(':'));
        let lines = lines.filter(|(name, _)| !MEASURED.contains(name));
        Own {
            configuration: server.ask(&["CONFIG", "GET", "*"]),
            persistence: lines.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
            files: files(server.path()),
        }
    }
}

fn files(folder: &Path) -> BTreeMap<String, (u64, SystemTime, u64)> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry")) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let known = entry.metadata().expect("an entry");
        if known.is_dir() {
            let below = files(&entry.path()).into_iter();
            found.extend(below.map(|(below, known)| (format!("{name}/{below}"), known)));
        } else if name != "redis.log" {
            found.insert(name, (known.len(), known.modified().expect("a time"), known.ino()));
        }
    }
    found
}

/// What is another in the two, or in one alone.
fn differing<V: PartialEq>(before: &BTreeMap<String, V>, after: &BTreeMap<String, V>) -> BTreeSet<String> {
    let names = before.keys().chain(after.keys());
    names.filter(|name| before.get(*name) != after.get(*name)).cloned().collect()
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// Of a transfer from memory the server keeps no trace. One from a file is a `BGSAVE` of the server's own by all that
/// shows (`startBgsaveForReplication`, replication.c): it writes its dump anew, and what that has counts as saved.
#[test]
fn a_snapshot_changes_nothing_but_the_dump_that_the_server_sends_from() {
    for version in VERSIONS {
        let options = ["--repl-diskless-sync", "yes", "--appendonly", "yes", "--appendfsync", "always"];
        let saves = ["--save", "3600", "1"];
        let server = RedisServer::start(version, &[debug(version), options.to_vec(), saves.to_vec()].concat());
        let site = site_for(&server);
        server.ask(&["SET", "a", "1"]);
        server.ask(&["SAVE"]);
        server.ask(&["SET", "b", "2"]);
        server.ask(&["SET", "c", "3"]);
        // The time of a save is told in whole seconds.
        let second = || server.ask(&["TIME"]).lines().next().map(str::to_owned);
        let later = until(PATIENCE, || (second() > Some(server.info("rdb_last_save_time"))).then_some(()));
        assert!(later.is_some(), "{version}: the clock stands still");

        let before = Own::of(&server);
        assert_eq!(before.persistence["rdb_changes_since_last_save"], "2", "{version}");
        site.walkeep(&["backup", "redis"]).expect_ok();
        let after = Own::of(&server);
        assert_eq!(differing(&before.persistence, &after.persistence), set(&[]), "{version}, from memory");
        assert_eq!(differing(&before.files, &after.files), set(&[]), "{version}, from memory");
        assert_eq!(before.configuration, after.configuration, "{version}, from memory");

        server.ask(&["CONFIG", "SET", "repl-diskless-sync", "no"]);
        let before = Own::of(&server);
        let label = site.walkeep(&["backup", "redis"]).expect_ok();
        let after = Own::of(&server);
        let counted: &[&str] = if version == "6.2" { &[] } else { &["rdb_saves"] };
        let saved = [&["rdb_changes_since_last_save", "rdb_last_save_time"], counted].concat();
        assert_eq!(differing(&before.persistence, &after.persistence), set(&saved), "{version}, from a file");
        assert_eq!(after.persistence["rdb_changes_since_last_save"], "0", "{version}");
        assert_eq!(differing(&before.files, &after.files), set(&["dump.rdb"]), "{version}, from a file");
        assert_eq!(before.configuration, after.configuration, "{version}, from a file");
        // And that dump is what was sent.
        let dump = fs::read(server.path().join("dump.rdb")).expect("the dump");
        assert!(dump == rdb_of(&site, label.trim()), "{version}: another dump");
    }
}

/// Nobody may make a file there any more.
fn forbid(server: &RedisServer, forbidden: bool) {
    let mode = if forbidden { 0o500 } else { 0o700 };
    fs::set_permissions(server.path(), Permissions::from_mode(mode)).expect("permissions");
}

/// A server whose last `BGSAVE` has failed.
fn failing(version: &str, options: &[&str]) -> RedisServer {
    let server = RedisServer::start(version, &[debug(version), options.to_vec()].concat());
    server.fill(100);
    forbid(&server, true);
    server.ask(&["BGSAVE"]);
    let failed = until(PATIENCE, || (server.info("rdb_last_bgsave_status") == "err").then_some(()));
    assert!(failed.is_some(), "{version}: {}", server.ask(&["INFO", "persistence"]));
    server
}

fn is_told_and_backed_up(server: &RedisServer) {
    let site = site_for(server);
    let taken = site.walkeep(&["backup", "redis", "--json"]).expect_code(0);
    assert!(taken.stderr.contains("the server's own BGSAVE fails (last good one: "), "{}", taken.stderr);
    let taken = taken.json();
    let restored = started_from(&server.version, &rdb_of(&site, taken["label"].as_str().expect("a label")), &[]);
    assert_eq!(restored.digest(), server.digest(), "{}", server.version);
    // And it fails as before: nothing of walkeep's counts as the server's own.
    assert_eq!(server.info("rdb_last_bgsave_status"), "err", "{}", server.version);
}

#[test]
fn a_save_of_its_own_that_fails_is_told_with_the_snapshot() {
    for version in VERSIONS {
        let server = failing(version, &["--repl-diskless-sync", "yes"]);
        is_told_and_backed_up(&server);
        forbid(&server, false);
    }
}

/// With save points, and as it comes, such a server refuses `PING` along with all that writes (`processCommand`,
/// server.c), but nothing that a replica needs: it is then that a backup is needed most.
#[test]
fn a_server_that_refuses_writes_because_its_saves_fail_is_backed_up_and_followed() {
    for version in VERSIONS {
        let server = failing(version, &["--repl-diskless-sync", "yes", "--save", "3600", "1"]);
        assert!(server.run_cli(&["SET", "a", "1"]).stdout.contains("MISCONF"), "{version}");
        is_told_and_backed_up(&server);
        let site = site_for(&server);
        let receiver = receiving(&site);
        based(&receiver);
        forbid(&server, false);
    }
}
