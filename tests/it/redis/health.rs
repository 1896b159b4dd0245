//! `walkeep health` of a Redis instance, beside what the server says of itself.

use std::time::Duration;

use crate::support::process::until;
use crate::support::redis::{RedisServer, site_for};
use crate::support::{Scratch, Site};

const PATIENCE: Duration = Duration::from_secs(30);

/// What it says of the instance, and how it ends.
fn health(site: &Site) -> (Option<i32>, serde_json::Value) {
    let health = site.walkeep(&["health", "cache", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&health.stdout).expect("JSON");
    assert_eq!(said["healthy"], health.code == Some(0), "{said}");
    (health.code, said["instances"][0].clone())
}

/// The finding about `subject`, in one line.
fn found(site: &Site, subject: &str) -> (Option<i32>, String) {
    let (code, said) = health(site);
    let findings = said["findings"].as_array().expect("findings");
    let finding = findings.iter().find(|finding| finding["subject"] == subject).expect("looked at");
    (code, format!("{} {}", finding["level"].as_str().unwrap(), finding["text"].as_str().unwrap()))
}

#[test]
fn health_says_how_protected_an_instance_is() {
    let mut server = RedisServer::start("7.0", &["--enable-protected-configs", "yes"]);
    let site = site_for(&server);
    let (code, text) = found(&site, "protection");
    assert!(code == Some(1) && text.contains("bad nothing can be restored: there is no snapshot yet"), "{text}");

    site.walkeep(&["backup", "redis"]).expect_ok();
    server.fill(10);
    let (code, text) = found(&site, "protection");
    assert!(code == Some(0) && text.starts_with("good by snapshots alone"), "{text}");

    let mut receiver = site.spawn("receive", &["receive", "cache"]);
    let based = until(PATIENCE, || receiver.output().contains("a snapshot to begin with is stored").then_some(()));
    assert!(based.is_some(), "{}", receiver.output());
    server.fill(100);
    let all = "good everything that the server has written is protected";
    let well =
        until(PATIENCE, || Some(found(&site, "protection")).filter(|(code, text)| *code == Some(0) && text == all));
    assert!(well.is_some(), "{:?}\n{}", found(&site, "protection"), receiver.output());
    let (_, said) = health(&site);
    assert_eq!((&said["unprotected_seconds"], &said["unprotected_bytes"]), (&0.into(), &0.into()), "{said}");
    assert_eq!(said["server"]["replid"], server.info("master_replid"), "{said}");
    assert_eq!(said["newest"]["replid"], said["server"]["replid"], "{said}");

    // What a BGSAVE that fails looks like from outside: nothing but this.
    let doomed = Scratch::new();
    server.ask(&["CONFIG", "SET", "dir", doomed.path().to_str().unwrap()]);
    drop(doomed);
    server.ask(&["BGSAVE"]);
    let failed = until(PATIENCE, || (server.info("rdb_last_bgsave_status") == "err").then_some(()));
    assert!(failed.is_some(), "{}", server.ask(&["INFO", "persistence"]));
    let (code, text) = found(&site, "server");
    assert!(code == Some(1) && text.contains("bad the server's own BGSAVE fails"), "{text}");

    receiver.terminate();
    server.ask(&["SET", "late", "1"]);
    let (_, text) = found(&site, "protection");
    let alone = server.offset() - health(&site).1["newest"]["offset"].as_u64().expect("an offset");
    assert!(
        alone > 0 && text.starts_with(&format!("good {alone} bytes of commands are on the server alone")),
        "{text}"
    );

    server.kill9();
    let (code, text) = found(&site, "server");
    assert!(code == Some(1) && text.starts_with("bad cannot be asked: Redis at 127.0.0.1:"), "{text}");
    let shown = site.walkeep(&["health"]).expect_code(1);
    assert!(shown.stdout.contains("cache  NOT healthy\n  newest       can be restored up to "), "{}", shown.stdout);
    let wrong = site.walkeep(&["health", "cash"]).expect_code(2);
    assert!(
        wrong.stderr.contains("nothing called \"cash\" is configured; did you mean \"cache\"?"),
        "{}",
        wrong.stderr
    );
}
