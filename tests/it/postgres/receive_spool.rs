//! What a commit was told is safe is there after the worst: server and receiver gone in the same moment, in the middle
//! of a segment.

use crate::support::{Cluster, Options, QUICK, Site};

#[test]
fn a_commit_that_the_receiver_acknowledged_is_restored_from_its_spool() {
    let mut cluster = Cluster::start(QUICK, Options::default());
    let site = Site::for_cluster(&cluster);
    let mut receiver = site.spawn("receive", &["receive"]);
    cluster.wait_for("select count(*) = 1 from pg_stat_replication where application_name = 'walkeep'");
    site.walkeep(&["backup", "postgres"]).expect_ok();
    cluster.set("synchronous_standby_names", "walkeep");
    cluster.wait_for("select sync_state = 'sync' from pg_stat_replication");
    cluster.sql("create table kept (number int)");
    for number in 1..=50 {
        cluster.sql(&format!("insert into kept values ({number})"));
    }
    cluster.kill9();
    receiver.kill9();

    let restored = site.path().join("restored");
    let told = site.walkeep(&["restore", "postgres", "--pgdata", restored.to_str().unwrap()]).expect_ok();
    assert!(told.contains("reachable      yes"), "{told}");
    let mut restored = Cluster::adopt(QUICK, &restored);
    restored.start_again();
    restored.wait_for("select not pg_is_in_recovery()");
    assert_eq!(restored.sql("select count(*), max(number) from kept"), "50|50");
    restored.stop();
}

/// Two would write over each other's spool. The message says whom to end.
#[test]
fn a_second_receiver_on_the_same_state_is_refused() {
    let cluster = Cluster::start(QUICK, Options::default());
    let site = Site::for_cluster(&cluster);
    let mut receiver = site.spawn("receive", &["receive"]);
    cluster.wait_for("select count(*) = 1 from pg_stat_replication where application_name = 'walkeep'");
    let second = site.walkeep(&["receive"]).expect_code(1);
    let holder = format!("another `walkeep receive` (pid {}) uses", receiver.pid());
    assert!(second.stderr.contains(&holder), "{holder}\n{}", second.stderr);
    receiver.kill9();
    // The lock went with the process.
    let mut receiver = site.spawn("receive", &["receive"]);
    cluster.sql("create table later ()");
    cluster
        .wait_for("select coalesce(bool_or(flush_lsn = pg_current_wal_flush_lsn()), false) from pg_stat_replication");
    assert!(receiver.terminate().success(), "{}", receiver.output());
}
