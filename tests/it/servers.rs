//! The support that every other test stands on.

use std::fs;

use crate::support::{Cluster, Options, QUICK, majors};

#[test]
fn every_major_starts_with_its_own_identity() {
    for major in majors() {
        let cluster = Cluster::start(major, Options::default());
        assert_eq!(cluster.sql("show server_version_num").parse::<u32>().unwrap() / 10_000, major);
        assert_eq!(cluster.sql("show data_checksums"), "on");
        let other = Cluster::start(major, Options::default().segment_size_mb(1).without_checksums());
        assert_eq!(other.sql("show wal_segment_size"), "1MB");
        assert_eq!(other.sql("show data_checksums"), "off");
        assert_ne!(cluster.system_identifier(), other.system_identifier());
    }
}

#[test]
fn a_killed_server_recovers_and_none_is_left_behind() {
    let mut cluster = Cluster::start(QUICK, Options::default());
    cluster.sql("create table kept as select 1 as x");
    cluster.kill9();
    cluster.start_again();
    assert!(cluster.log().contains("automatic recovery in progress"), "{}", cluster.log());
    assert_eq!(cluster.sql("select x from kept"), "1");
    let pid = fs::read_to_string(cluster.data().join("postmaster.pid")).unwrap();
    let pid = pid.lines().next().unwrap().to_owned();
    drop(cluster);
    assert!(!fs::exists(format!("/proc/{pid}")).unwrap());
}

#[test]
fn a_standby_follows_and_is_promoted() {
    let primary = Cluster::start(QUICK, Options::default());
    primary.sql("create table t as select 7 as x");
    let standby = primary.standby(Options::default());
    standby.wait_for("select pg_is_in_recovery()");
    standby.promote();
    assert_eq!(standby.sql("select x from t"), "7");
    assert_eq!(standby.sql("select timeline_id from pg_control_checkpoint()"), "2");
    assert_eq!(standby.system_identifier(), primary.system_identifier());
}

#[tokio::test]
async fn passwords_are_asked_for_over_tcp() {
    let cluster = Cluster::start(QUICK, Options::default().scram("a secret"));
    let connect =
        |conninfo: String| async move { tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await.map(drop) };
    connect(cluster.conninfo()).await.unwrap();
    let without = cluster.conninfo().replace("a secret", "wrong");
    assert!(connect(without).await.is_err());
    let row = cluster.client().await.query_one("select 1", &[]).await.unwrap();
    assert_eq!(row.get::<_, i32>(0), 1);
}
