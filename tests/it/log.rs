//! What happened, told from the archived WAL alone, beside what the server itself said when it did it; and the way back from each accident,
//! taken with real recovery.

use serde_json::Value;

use crate::support::{Options, Site, majors};
use crate::whole::Attached;

/// The events that `walkeep log` tells.
fn told(site: &Site, arguments: &[&str]) -> Vec<Value> {
    let command = [&["log", "postgres", "main", "--json"], arguments].concat();
    let text = site.walkeep(&command).expect_ok();
    text.lines().map(|line| serde_json::from_str(line).expect("a JSON object a line")).collect()
}

/// The options that lead to just before an event, as words.
fn way_back(event: &Value) -> Vec<&str> {
    event["target"].as_str().expect("a target").split(' ').collect()
}

#[test]
fn a_dropped_table_is_found_and_comes_back() {
    for major in majors() {
        let it = Attached::start(major, Options::default().segment_size_mb(1));
        it.cluster.sql("create table orders as select n from generate_series(1, 500) n; create table other (x int)");
        it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
        it.cluster.sql("insert into orders select n from generate_series(501, 1000) n");
        it.cluster.sql("begin; drop table orders; rollback");
        assert_eq!(told(&it.site, &["--event", "drop"]).len(), 0, "{major}: nothing was dropped yet");
        it.cluster.sql("drop table orders; insert into other values (1)");
        it.cluster.sql("truncate other; insert into other values (2)");
        it.archive();

        let drops = told(&it.site, &["--event", "drop", "--event", "truncate"]);
        assert_eq!(drops.len(), 2, "{major}: {drops:?}");
        let restored = it.restore("undropped", &way_back(&drops[0]));
        assert_eq!(restored.sql("select count(*) from orders"), "1000", "{major}");
        assert_eq!(restored.sql("select count(*) from other"), "0", "{major}");
        let restored = it.restore("untruncated", &way_back(&drops[1]));
        assert_eq!(restored.sql("select string_agg(x::text, ',') from other"), "1", "{major}");
        assert_eq!(restored.sql("select to_regclass('orders') is null"), "t", "{major}");
    }
}

#[test]
fn the_life_of_a_server_is_told() {
    let mut it = Attached::start(15, Options::default().segment_size_mb(1));
    it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    let before = it.cluster.sql("select to_char(now() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')");
    it.cluster.sql("create table t (x int); select pg_create_restore_point('before release 7')");
    it.cluster.sql("alter system set max_connections = 60");
    it.cluster.restart();
    it.cluster.sql("checkpoint; insert into t values (1)");
    it.cluster.sql("create database shop");
    let oid = it.cluster.sql("select oid from pg_database where datname = 'shop'");
    it.cluster.sql("drop database shop");
    it.cluster.sql("drop table t");
    it.archive();

    let kinds = |arguments: &[&str]| -> Vec<String> {
        told(&it.site, arguments).iter().map(|event| event["kind"].as_str().unwrap().to_owned()).collect()
    };
    let all = ["restore-point", "restart", "parameters", "drop-database", "drop", "restore-point"];
    assert_eq!(
        kinds(&[
            "--since", &before, "--event", all[0], "--event", all[1], "--event", all[2], "--event", all[3], "--event",
            all[4]
        ]),
        all
    );
    assert!(kinds(&[]).iter().all(|kind| kind != "checkpoint" && kind != "backup"));
    assert!(!kinds(&["--event", "checkpoint"]).is_empty());
    let points = told(&it.site, &["--event", "restore-point"]);
    assert_eq!(points[0]["detail"], "before release 7");
    let changed = told(&it.site, &["--event", "parameters"]);
    assert!(changed[0]["detail"].as_str().unwrap().contains("max_connections"), "{changed:?}");
    assert!(told(&it.site, &["--until", &before, "--event", "drop"]).is_empty());
    let dropped = told(&it.site, &["--event", "drop-database"]);
    assert!([Some(oid.as_str()), Some("shop")].contains(&dropped[0]["database"].as_str()), "{dropped:?}");

    // The files are gone before the transaction commits, and the row of pg_database is spoilt before that: it must be whole.
    let restored = it.restore("with-shop", &way_back(&dropped[0]));
    assert_eq!(restored.sql("select datconnlimit from pg_database where datname = 'shop'"), "-1");
    let asked = restored.run("psql", &["-XAtq", "-d", "shop", "-c", "select 1"]);
    assert_eq!(asked.expect_ok().trim(), "1");
}
