//! `walkeep health` of a cluster: what is protected, and what is wrong.

use std::time::Duration;

use super::retention::Rig;
use crate::support::process::until;

#[test]
fn health_says_what_is_wrong() {
    let Rig { cluster, site, mut receiver } = Rig::start();
    let bad = site.walkeep(&["health"]).expect_code(1);
    assert!(bad.stdout.contains("NOT healthy") && bad.stdout.contains("there is no backup"), "{}", bad.stdout);
    site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    cluster.sql("insert into t values (1, 'x')");
    // What is written is in the spool within moments.
    let well =
        until(Duration::from_secs(30), || Some(site.walkeep(&["health"])).filter(|health| health.code == Some(0)));
    let well = well.unwrap_or_else(|| panic!("{}", site.walkeep(&["health"]).stdout));
    assert!(well.stdout.contains("everything that the server has written is protected"), "{}", well.stdout);
    let json = site.walkeep(&["health", "main", "--json"]).json();
    assert_eq!((&json["healthy"], &json["clusters"][0]["unprotected_seconds"]), (&true.into(), &0.into()), "{json}");

    receiver.terminate();
    let alone = site.walkeep(&["health"]).expect_code(1);
    assert!(alone.stdout.contains("not connected to slot walkeep"), "{}", alone.stdout);
    drop(cluster);
    let gone = site.walkeep(&["health"]).expect_code(1);
    assert!(gone.stdout.contains("server       BAD cannot be asked"), "{}", gone.stdout);
}
