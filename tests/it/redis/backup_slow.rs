//! A repository that takes a snapshot more slowly than the server sends it: the server does not wait for it.

use std::time::Duration;

use crate::support::Site;
use crate::support::process::until;
use crate::support::redis::{QUICK_REDIS, RedisServer, program};
use crate::support::store::{Mode, Proxy, S3};

/// The server sends 200 MB to a repository that takes nothing yet.
const PATIENCE: Duration = Duration::from_secs(180);

/// More than is held in memory between the server and the repository.
const KEYS: &str = "200000";

#[test]
fn a_server_is_done_before_a_slow_repository_has_the_snapshot() {
    let server = RedisServer::start(
        QUICK_REDIS,
        &[
            "--enable-debug-command",
            "local",
            "--rdbcompression",
            "no",
            "--repl-diskless-sync",
            "yes",
            "--repl-diskless-sync-delay",
            "0",
        ],
    );
    server.ask(&["DEBUG", "POPULATE", KEYS, "key", "1000"]);
    let store = S3::start();
    let proxy = Proxy::before(store.port());
    let site = Site::new();
    store.init(&site);
    let text = std::fs::read_to_string(site.config()).expect("the configuration");
    let text = text.split("[postgres.main]").next().expect("a part").to_owned();
    let through = text.replace(&format!("127.0.0.1:{}", store.port()), &format!("127.0.0.1:{}", proxy.port()));
    site.scratch().file("walkeep.toml", &format!("{through}\n[redis.cache]\nurl = \"{}\"\n", server.url()));

    // The first part does not arrive, and so no other.
    proxy.hold_at("/rdb/");
    let mut backup = site.spawn("backup", &["backup", "redis"]);
    let sent = "Background RDB transfer terminated with success";
    let done = until(PATIENCE, || {
        assert!(backup.ended().is_none(), "it has ended\n{}", backup.output());
        server.log().contains(sent).then_some(())
    });
    assert!(done.is_some(), "{}\n{}", backup.output(), server.log());
    // What waits leaves no files.
    let files = std::fs::read_dir(site.state_dir()).into_iter().flatten().map(|file| file.expect("a file").file_name());
    let files: Vec<_> = files.filter(|name| name.to_string_lossy().starts_with(".part")).collect();
    assert!(files.is_empty(), "{files:?}");
    proxy.set(Mode::Pass);
    assert!(backup.wait(PATIENCE).success(), "{}", backup.output());
    site.walkeep(&["verify", "cache"]).expect_ok();
    let (dir, server) = (site.path().join("restored").display().to_string(), program(QUICK_REDIS, "redis-server"));
    let words =
        ["restore", "redis", "--dir", &dir, "--redis-server", &server.display().to_string(), "--start", "--json"];
    let report = site.walkeep(&words).json();
    assert_eq!(
        report["loaded"]["keys"]["0"].as_u64().map(|keys| keys.to_string()).as_deref(),
        Some(KEYS),
        "{report:#}"
    );
}
