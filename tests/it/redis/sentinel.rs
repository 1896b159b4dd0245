//! Sentinels that let nobody in without a password, and replicas that a snapshot is better not taken from.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;

use walkeep::redis::archive::SnapshotOrigin;

use super::receive::PATIENCE;
use crate::support::Site;
use crate::support::process::until;
use crate::support::redis::{QUICK_REDIS, RedisServer, Sentinels, VERSIONS, block_on, instance, site};
use crate::support::relay::Relay;

/// The passwords of the Sentinels are others than those of the servers, and neither is tried in the other's place.
#[test]
fn sentinels_have_a_login_of_their_own() {
    for version in VERSIONS {
        let master = RedisServer::start(version, &["--requirepass", "hunter2", "--masterauth", "hunter2"]);
        master.run_cli(&["-a", "hunter2", "--no-auth-warning", "SET", "a", "1"]).expect_ok();
        let lines = "requirepass opensesame\nsentinel auth-pass mymaster hunter2\n\
                     user walkeep on >s3cret -@all +sentinel|get-master-addr-by-name +sentinel|replicas\n";
        let sentinel = Sentinels::guarded(&master, lines, &["-a", "opensesame", "--no-auth-warning"]);
        let with = |keys: &str| {
            let site = site(&format!("{}{keys}", sentinel.section()));
            for word in ["hunter2", "opensesame", "s3cret"] {
                site.scratch().file(word, &format!("{word}\n"));
            }
            site
        };
        let (own, user) = ("password-file = \"hunter2\"\n", "sentinel-user = \"walkeep\"\n");
        let password = |word: &str| format!("sentinel-password-file = \"{word}\"\n");
        for keys in [password("opensesame"), format!("{user}{}", password("s3cret"))] {
            let site = with(&format!("{own}{keys}"));
            assert_eq!(site.walkeep(&["backup", "redis", "--json"]).json()["keys"], 1, "{version}: {keys}");
        }
        for (keys, says) in [
            (String::new(), "NOAUTH"),
            (password("hunter2"), "WRONGPASS"),
            (password("s3cret"), "WRONGPASS"),
            (format!("{user}{}", password("opensesame")), "WRONGPASS"),
        ] {
            let refused = with(&format!("{own}{keys}")).walkeep(&["backup", "redis"]);
            let stderr = &refused.stderr;
            assert!(refused.code != Some(0), "{version}: {keys}");
            let named = format!("no Sentinel names the master: Redis at 127.0.0.1:{}", sentinel.ports[0]);
            assert!(stderr.contains(&named) && stderr.contains(says), "{version}: {keys}: {stderr}");
            let words = ["hunter2", "opensesame", "s3cret"];
            assert!(words.iter().all(|word| !stderr.contains(word)), "{version}: a password is shown: {stderr}");
        }
        // The Sentinel lets us in, the server does not.
        let refused = with(&password("opensesame")).walkeep(&["backup", "redis"]).expect_code(1);
        let named = format!("Redis at 127.0.0.1:{} does not let walkeep in: NOAUTH", master.port);
        assert!(refused.stderr.contains(&named), "{version}: {}", refused.stderr);
    }
}

/// The port of the server that sends the snapshot.
fn taken_from(site: &Site) -> u16 {
    let taken = site.walkeep(&["backup", "redis", "--json"]).json();
    let label = taken["label"].as_str().expect("a label");
    let snapshot = block_on(async { instance(site).await.read_snapshot(label).await.expect("asked").expect("there") });
    let SnapshotOrigin::Replication { server, .. } = snapshot.origin else { panic!("{:?}", snapshot.origin) };
    server.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
}

/// What a replica is behind is missing in its snapshot, and one whose own saves fail would fail with ours; the master
/// then bears it, and only then.
#[test]
fn a_replica_that_lags_or_cannot_save_is_passed_over_for_its_master() {
    let master = RedisServer::start(QUICK_REDIS, &[]);
    let relay = Relay::before(&master);
    let port = relay.port.to_string();
    let replica = RedisServer::start(QUICK_REDIS, &["--replicaof", "127.0.0.1", &port]);
    let linked = until(PATIENCE, || (replica.info("master_link_status") == "up").then_some(()));
    assert!(linked.is_some(), "{}", replica.log());
    let sentinel = Sentinels::alone(&master);
    // Or it would have the replica leave the relay.
    let ask = |words: &[&str]| sentinel.ask(sentinel.ports[0], words);
    ask(&["SENTINEL", "SET", "mymaster", "failover-timeout", "600000"]);
    let known = until(PATIENCE, || {
        let replicas = ask(&["SENTINEL", "replicas", "mymaster"]);
        (replicas.contains("flags\nslave\n") && replicas.contains("master-link-status\nok\n")).then_some(())
    });
    assert!(known.is_some(), "{}", ask(&["SENTINEL", "replicas", "mymaster"]));
    let site = site(&sentinel.section());
    assert_eq!(taken_from(&site), replica.port, "it is well");

    relay.hold_after(0);
    let script = "local value = string.rep('x', 1000000) for n = 1, 20 do redis.call('SET', 'big:' .. n, value) end";
    master.ask(&["EVAL", script, "0"]);
    assert_eq!(replica.info("master_link_status"), "up");
    assert_eq!(taken_from(&site), master.port, "the replica lags by 20 MB");
    relay.let_pass();
    let there = until(PATIENCE, || (replica.offset() == master.offset()).then_some(()));
    assert!(there.is_some(), "{}", replica.log());
    assert_eq!(taken_from(&site), replica.port, "it has come to where its master is");

    let idle = || {
        let idle = until(PATIENCE, || (replica.info("rdb_bgsave_in_progress") == "0").then_some(()));
        assert!(idle.is_some(), "{}", replica.log());
    };
    let save = |mode: u32, ends: &str| {
        fs::set_permissions(replica.path(), Permissions::from_mode(mode)).expect("permissions");
        // The child that sent the snapshot may still be there.
        idle();
        replica.ask(&["BGSAVE"]);
        idle();
        assert_eq!(replica.info("rdb_last_bgsave_status"), ends, "{}", replica.log());
    };
    save(0o500, "err");
    assert_eq!(taken_from(&site), master.port, "the replica's own saves fail");
    save(0o700, "ok");
    assert_eq!(taken_from(&site), replica.port, "they do not any more");
}
