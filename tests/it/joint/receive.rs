//! One `walkeep receive` for everything that is configured: a cluster, another cluster, and a Redis instance.

use std::time::Duration;

use crate::support::process::{tail, until};
use crate::support::redis::RedisServer;
use crate::support::{Cluster, Options, QUICK, Site};

#[test]
fn one_process_follows_all_and_one_that_fails_ends_no_other() {
    let small = || Options::default().segment_size_mb(1);
    let (main, other) = (Cluster::start(QUICK, small()), Cluster::start(QUICK, small()));
    let mut redis = RedisServer::start("7.0", &[]);
    let site = Site::for_cluster(&main);
    let text = std::fs::read_to_string(site.config()).unwrap();
    let sections = format!(
        "\n[postgres.other]\nconnection = \"{}\"\n\n[redis.cache]\nurl = \"{}\"\n",
        other.socket_conninfo(),
        redis.url()
    );
    site.scratch().file("walkeep.toml", &(text + &sections));

    let mut receiver = site.spawn("receive", &["receive"]);
    let archived = |name: &str, folder: &str| {
        let found = until(Duration::from_secs(60), || {
            let listed = std::fs::read_dir(site.repository().join(name).join(folder)).ok()?;
            listed.flatten().next().map(drop)
        });
        assert!(found.is_some(), "nothing of {name}\n{}", tail(&receiver.output(), 30));
    };
    redis.ask(&["SET", "a", "1"]);
    archived("cache", "snapshot");
    for (cluster, name) in [(&main, "main"), (&other, "other")] {
        cluster.sql("create table t (n int)");
        cluster.switch_wal();
        archived(name, "wal");
    }
    // The instance's server ends; the clusters are followed as before, and so is the instance when it is back.
    redis.kill9();
    let segment = main.switch_wal();
    let path = site.repository().join(format!("main/wal/00000001/00000000/{segment}"));
    let stored = until(Duration::from_secs(60), || path.exists().then_some(()));
    assert!(stored.is_some(), "{}", tail(&receiver.output(), 30));
    assert!(receiver.ended().is_none(), "{}", receiver.output());
    // Both clusters are in one index, which this process writes.
    for name in ["main", "other"] {
        let listed = site.walkeep(&["list", "postgres", name, "--json"]).json();
        assert_ne!(listed.to_string().find(&format!("\"{name}\"")), None, "{listed}");
    }
    assert!(receiver.terminate().success(), "{}", receiver.output());
    let log = receiver.output();
    assert!(!log.contains("the index is not kept up to date"), "{log}");
    drop((main, other));
}

/// Two processes on one state directory: one writes the index, and the other takes over when the first has ended.
#[test]
fn the_index_is_taken_over_from_a_receiver_that_ends() {
    let small = || Options::default().segment_size_mb(1);
    let (main, other) = (Cluster::start(QUICK, small()), Cluster::start(QUICK, small()));
    let site = Site::for_cluster(&main);
    let text = std::fs::read_to_string(site.config()).unwrap();
    let section = format!("\n[postgres.other]\nconnection = \"{}\"\n", other.socket_conninfo());
    site.scratch().file("walkeep.toml", &(text + &section));
    main.switch_wal();
    let mut first = site.spawn("first", &["receive", "main"]);
    let indexed = |cluster: &str| {
        let stats = site.walkeep(&["index", "stats", "--json"]);
        let stats: serde_json::Value = serde_json::from_str(&stats.stdout).unwrap_or_default();
        let mut timelines = stats["timelines"].as_array().into_iter().flatten();
        timelines.any(|of| of["cluster"] == cluster && of["last"].is_string()).then_some(())
    };
    assert!(until(Duration::from_secs(60), || indexed("main")).is_some(), "{}", first.output());
    let second = site.spawn("second", &["receive", "other"]);
    other.sql("create table t (n int)");
    other.switch_wal();
    let reports = |what: &str| until(Duration::from_secs(60), || second.output().contains(what).then_some(()));
    assert!(reports("being written by another walkeep process").is_some(), "{}", second.output());
    assert!(first.terminate().success(), "{}", first.output());
    assert!(reports("the index is kept up to date again").is_some(), "{}", second.output());
    assert!(until(Duration::from_secs(60), || indexed("other")).is_some(), "{}", second.output());
    drop((main, other));
}
