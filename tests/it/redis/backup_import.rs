//! RDB files that were brought: with values of modules, in a format newer than this walkeep, with keys that no server
//! loads. Kept as they are, and what is to be expected of them is said before a server is tried.

use std::path::PathBuf;

use serde_json::{Value, json};
use walkeep::redis::format::rdb;

use crate::support::redis::{QUICK_REDIS, RedisServer, VERSIONS, program, rdb_of, site};
use crate::support::{Finished, Scratch, Site};

/// A site whose server is not needed: nothing listens there.
fn alone() -> Site {
    site("url = \"redis://127.0.0.1:1\"\n")
}

fn imported(site: &Site, bytes: &[u8]) -> Finished {
    let path = site.scratch().file("import.rdb", "");
    std::fs::write(&path, bytes).expect("write");
    site.walkeep(&["backup", "redis", "--json", "--from-file", &path.display().to_string()]).expect_code(0)
}

fn label(taken: &Value) -> &str {
    taken["label"].as_str().expect("a label")
}

/// Restores into a new folder for a server of this version, which is started if `more` says so.
fn restore(site: &Site, version: &str, more: &[&str]) -> (Scratch, Finished) {
    let scratch = Scratch::new();
    let dir = scratch.directory("redis").display().to_string();
    let program = program(version, "redis-server").display().to_string();
    let words = [&["restore", "redis", "--dir", &dir, "--redis-server", &program][..], more].concat();
    let finished = site.walkeep(&words);
    (scratch, finished)
}

fn fixture(name: &str) -> Vec<u8> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rdb").join(name);
    std::fs::read(path).expect("a file")
}

/// What everybody who meets the snapshot is told.
fn is_told(site: &Site, taken: Finished, says: &str) {
    assert!(taken.stderr.contains(says), "{says}: {}", taken.stderr);
    let taken = taken.json();
    let told = |warnings: &Value| {
        let warnings = warnings.as_array().expect("warnings").iter();
        warnings.filter_map(Value::as_str).any(|warning| warning.contains(says))
    };
    assert!(told(&taken["warnings"]), "{says}: {taken:#}");
    let listed = site.walkeep(&["list", "redis", "--json"]).json();
    let backup = &listed["instances"][0]["backups"][0];
    assert!(backup["label"] == taken["label"] && told(&backup["warnings"]), "{says}: {listed:#}");
    let (_scratch, restored) = restore(site, QUICK_REDIS, &["--json"]);
    let report = restored.json();
    assert!(told(&report["warnings"]), "{says}: {report:#}");
    let (_scratch, restored) = restore(site, QUICK_REDIS, &[]);
    assert!(restored.stdout.contains(&format!("warning: the snapshot {says}")), "{says}: {}", restored.stdout);
    restored.expect_ok();
    let shown = site.walkeep(&["list", "redis"]).expect_ok();
    assert!(shown.contains(label(&taken)), "{shown}");
    site.walkeep(&["verify", "cache"]).expect_ok();
}

/// A value of RedisJSON's, and a module's word on the side, each in a file that a server wrote.
#[test]
fn what_modules_wrote_is_kept_and_the_module_is_named() {
    for (name, module, keys) in [
        ("rdbtools/redis_40_with_module.rdb", "ReJSON-RL", 2),
        ("rdbtools/redis_60_with_module_aux.rdb", "test__rdb", 0),
    ] {
        let bytes = fixture(name);
        let site = alone();
        let taken = imported(&site, &bytes);
        let taken_as: Value = serde_json::from_str(&taken.stdout).expect("JSON");
        assert_eq!(taken_as["keys"], keys, "{name}");
        assert!(rdb_of(&site, label(&taken_as)) == bytes, "{name}: other bytes");
        is_told(&site, taken, &format!("loads only into a server with the modules {module}"));
    }
}

/// The servers' own words name the module. Before they end they look for damage in the file and find none, at length
/// (`rdbReportError`, rdb.c): that comes after the reason, and is none.
#[test]
fn a_server_without_the_module_says_so_and_its_words_are_passed_on() {
    for (name, says) in [
        ("rdbtools/redis_60_with_module_aux.rdb", "AUX module data I can't load: no matching module 'test__rdb'"),
        ("rdbtools/redis_40_with_module.rdb", "module data I can't load: no matching module type 'ReJSON-RL'"),
    ] {
        let site = alone();
        imported(&site, &fixture(name));
        for version in VERSIONS {
            let (_scratch, refused) = restore(&site, version, &["--start"]);
            let refused = refused.expect_code(1);
            let stderr = &refused.stderr;
            assert!(stderr.contains("a server does not come up on them as it should"), "{version} {name}: {stderr}");
            assert!(stderr.contains(says), "{version} {name}: {stderr}");
        }
    }
}

/// With the checksum that belongs there, as servers write it.
fn summed(mut bytes: Vec<u8>) -> Vec<u8> {
    let sum = rdb::crc64(0, &bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    bytes
}

/// An opcode that nobody has given a meaning yet.
const UNKNOWN: u8 = 0xf0;

/// A server's own dump with three keys, as a later one might write it: a newer version, and behind the keys something
/// that is not known yet. And where that begins.
fn newer() -> (Vec<u8>, usize) {
    let server = RedisServer::start(QUICK_REDIS, &[]);
    server.feed("SET a 1\nRPUSH l a b c\nSELECT 3\nSET b 2\nSAVE\n");
    let dump = std::fs::read(server.path().join("dump.rdb")).expect("the dump");
    // Without its end and its checksum.
    let body = &dump[9..dump.len() - 9];
    (summed([b"REDIS0013", body, &[UNKNOWN], b"\x03new and unheard of\xff"].concat()), 9 + body.len())
}

/// Without a word of it, the keys that were counted look like all there are.
#[test]
fn a_list_says_beside_the_count_what_is_not_in_it() {
    let module = fixture("rdbtools/redis_40_with_module.rdb");
    for (bytes, says) in [(newer().0, "not walked beyond byte "), (module, "with the modules ReJSON-RL")] {
        let site = alone();
        let taken = imported(&site, &bytes).json();
        let shown = site.walkeep(&["list", "redis"]).expect_ok();
        assert!(shown.contains(label(&taken)) && shown.contains(says), "{says}: {shown}");
    }
}

#[test]
fn a_newer_format_is_kept_as_it_is_and_said_not_to_be_walked() {
    let (bytes, at) = newer();
    let site = alone();
    let taken = imported(&site, &bytes);
    let taken_as: Value = serde_json::from_str(&taken.stdout).expect("JSON");
    assert_eq!((&taken_as["keys"], &taken_as["rdb_version"]), (&3.into(), &13.into()), "{taken_as:#}");
    assert!(rdb_of(&site, label(&taken_as)) == bytes, "other bytes");
    let opaque = bytes.len() - at;
    let says = format!("not walked beyond byte {at}: code {UNKNOWN} belongs to a newer format than this walkeep knows");
    assert!(taken.stderr.contains(&format!("{opaque} bytes are stored as they came")), "{}", taken.stderr);
    is_told(&site, taken, &says);

    for version in VERSIONS {
        let (scratch, refused) = restore(&site, version, &["--start"]);
        let refused = refused.expect_code(1);
        let said = format!("{}{}", refused.stdout, refused.stderr);
        assert!(said.contains("does not load this snapshot, which is Redis's RDB version 13"), "{version}: {said}");
        assert!(refused.stderr.contains("Can't handle RDB format version 13"), "{version}: {}", refused.stderr);
        // For a server that can, it is there.
        let restored = std::fs::read(scratch.join("redis/dump.rdb")).expect("the restored dump");
        assert!(restored == bytes, "{version}: other bytes");
    }
    // What is not walked is still summed.
    let path = site.scratch().file("import.rdb", "");
    let mut damaged = bytes.clone();
    let last = damaged.len() - 12;
    damaged[last] ^= 1;
    std::fs::write(&path, damaged).expect("write");
    site.walkeep(&["backup", "redis", "--from-file", &path.display().to_string()]).expect_code(6);
}

/// A string with its length before it.
fn text(text: &[u8]) -> Vec<u8> {
    [&[u8::try_from(text.len()).expect("a short text")], text].concat()
}

/// A key of this type, of which `value` is all that follows its name.
fn key(code: u8, name: &str, value: &[u8]) -> Vec<u8> {
    [&[code][..], &text(name.as_bytes()), value].concat()
}

fn expiring(at: i64, key: Vec<u8>) -> Vec<u8> {
    [&[0xfc][..], &at.to_le_bytes(), &key].concat()
}

/// By hand, for no server writes such files any more: collections of every old encoding with nothing in them, and keys
/// whose time is over. What is said of the snapshot, what the check finds and what a server then has agree to the key.
#[test]
fn what_a_server_drops_while_it_loads_is_counted_before() {
    const EMPTY_ZIPLIST: &[u8] = &[11, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0xff];
    let (past, future) = (1_000_000_000_000, 99_999_999_999_999);
    let empties = [
        key(1, "list", &[0]),
        key(2, "set", &[0]),
        key(3, "zset-old", &[0]),
        key(4, "hash", &[0]),
        key(5, "zset", &[0]),
        key(10, "list-ziplist", &text(EMPTY_ZIPLIST)),
        key(12, "zset-ziplist", &text(EMPTY_ZIPLIST)),
        key(13, "hash-ziplist", &text(EMPTY_ZIPLIST)),
        key(14, "quicklist", &[0]),
        key(14, "quicklist-of-one", &[&[1][..], &text(EMPTY_ZIPLIST)].concat()),
    ];
    let rest = [
        key(0, "string", &text(b"value")),
        key(1, "full", &[&[2][..], &text(b"a"), &text(b"b")].concat()),
        expiring(future, key(0, "later", &text(b"value"))),
        expiring(past, key(0, "gone", &text(b"value"))),
        expiring(past, key(1, "gone-list", &[&[1][..], &text(b"a")].concat())),
    ];
    // Another database, which has nothing that stays.
    let other = [&[0xfe, 3][..], &expiring(past, key(0, "gone", &text(b"value"))), &key(2, "empty", &[0])].concat();
    let bytes = summed([b"REDIS0009\xfe\x00", &*empties.concat(), &rest.concat(), &other, b"\xff"].concat());
    let site = alone();
    let taken = imported(&site, &bytes).json();
    assert_eq!(taken["keys"], empties.len() + rest.len() + 2, "{taken:#}");
    for version in VERSIONS {
        let (_scratch, restored) = restore(&site, version, &["--start", "--json"]);
        let report = restored.json();
        let warnings = report["warnings"].to_string();
        assert!(warnings.contains("11 empty collections are in the snapshot"), "{version}: {warnings}");
        assert!(warnings.contains("3 keys of the snapshot have expired since"), "{version}: {warnings}");
        // What the check starts drops no key for its age.
        assert_eq!(report["loaded"]["keys"], json!({"0": 5, "3": 1}), "{version}: {report:#}");
        assert_eq!(report["loaded"]["compared"], true, "{version}");
        let options = report["start"].as_array().expect("options").iter();
        let options: Vec<&str> = options.map(|word| word.as_str().expect("a word")).collect();
        let server = RedisServer::start(version, &options);
        server.await_loaded();
        let count = |database: &str| server.ask(&["-n", database, "DBSIZE"]);
        assert_eq!((count("0"), count("3")), ("3".into(), "0".into()), "{version}: {report:#}");
    }
}
