//! Commands that were acknowledged and are only in the spool: another key does not touch them, and a file with a
//! changed bit is kept and reported.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use walkeep::redis::archive::RedisTarget;

use super::receive::{PATIENCE, acknowledged, based, receiving, restored, work};
use crate::support::Site;
use crate::support::process::{self, until};
use crate::support::redis::{QUICK_REDIS, RedisServer, debug, site_for};

/// A receiver whose repository went away, and which then was killed.
fn spooled() -> (RedisServer, Site) {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let site = site_for(&server);
    let mut receiver = receiving(&site);
    based(&receiver);
    fs::rename(site.repository(), site.path().join("kept")).unwrap();
    for round in 0..3 {
        work(&server, round);
        acknowledged(&server, &mut receiver);
    }
    receiver.kill9();
    (server, site)
}

fn files_in(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeMap::new() };
    let files = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())).collect()
}

/// Receives until the server's data can be restored.
fn assert_restorable(server: &RedisServer, site: &Site) {
    let mut receiver = receiving(site);
    acknowledged(server, &mut receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    let stored = until(PATIENCE, || site.walkeep(&["verify", "cache"]).code.filter(|code| *code == 0));
    assert!(stored.is_some(), "{}", site.walkeep(&["verify", "cache"]).stdout);
    assert_eq!(restored(site, RedisTarget::Newest).digest(), server.digest());
}

#[test]
fn a_receiver_with_another_key_does_not_touch_the_spool() {
    let (server, site) = spooled();
    let folder = site.state_dir().join("spool/cache");
    let before = files_in(&folder);
    assert!(!before.is_empty());
    let (key, kept) = (site.path().join("walkeep.key"), site.path().join("kept.key"));
    fs::rename(&key, &kept).unwrap();
    let mut command = process::walkeep();
    command.args(["init", "--cluster", "x", "--repository", &site.repository_url()]);
    command.arg("--state-dir").arg(site.state_dir()).arg("--config").arg(site.path().join("other.toml"));
    process::run({
        command.arg("--key-file").arg(&key);
        command
    })
    .expect_ok();
    let ended = site.walkeep(&["receive", "cache"]).expect_code(6);
    let keys = site.state_dir().join("spool/keys");
    assert!(ended.stderr.contains(keys.to_str().unwrap()), "{}", ended.stderr);
    site.walkeep(&["health", "cache"]).expect_code(1);
    assert!(files_in(&folder) == before && !folder.join("set-aside").exists(), "the spool was touched");

    fs::rename(site.repository(), site.path().join("other")).unwrap();
    fs::rename(site.path().join("kept"), site.repository()).unwrap();
    fs::rename(&kept, &key).unwrap();
    // What the server has now begins after what is spooled.
    server.fill(3000);
    assert_restorable(&server, &site);
    assert!(!folder.join("set-aside").exists());
}

#[test]
fn a_spool_file_with_a_changed_bit_is_set_aside_and_reported() {
    let (server, site) = spooled();
    fs::rename(site.path().join("kept"), site.repository()).unwrap();
    let folder = site.state_dir().join("spool/cache");
    let before = files_in(&folder);
    let (name, bytes) = before.iter().find(|(name, _)| name.ends_with(".commands")).expect("a stretch");
    let mut bytes = bytes.clone();
    let half = bytes.len() / 2;
    bytes[half] ^= 1;
    fs::write(folder.join(name), &bytes).unwrap();
    // The server still has what was damaged.
    assert_restorable(&server, &site);
    let aside = format!("{name}.1");
    assert!(files_in(&folder.join("set-aside")) == BTreeMap::from([(aside.clone(), bytes)]));

    let aside = folder.join("set-aside").join(aside);
    let health = site.walkeep(&["health", "cache", "--json"]).expect_code(1);
    let health: serde_json::Value = serde_json::from_str(&health.stdout).expect("JSON");
    let findings = health["instances"][0]["findings"].as_array().expect("findings");
    let found: Vec<_> = findings.iter().filter(|finding| finding["subject"] == "spool").collect();
    let (replid, first) = name.trim_end_matches(".commands").split_once('.').unwrap();
    let range = format!("commands of history {replid} after offset {}", first.parse::<u64>().unwrap());
    let text = found[0]["text"].as_str().unwrap();
    assert!(found.len() == 1 && found[0]["level"] == "bad", "{found:?}");
    assert!(text.starts_with(&format!("{} is a damaged spool file with {range}; ", aside.display())), "{text}");
    let checked = site.walkeep(&["check", "cache", "--json"]).stdout;
    assert!(checked.contains(aside.to_str().unwrap()) && checked.contains(&range), "{checked}");
}
