//! What happened, told from the archived WAL alone, beside what the server itself said when it did it; and the way back
//! from each accident, taken with real recovery.

use std::time::Duration;

use serde_json::Value;

use super::end_to_end::Attached;
use crate::support::process::until;
use crate::support::{Cluster, Options, Site, majors, waldump};

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

/// Where a restore to just before what stands at this position stops.
fn stop(site: &Site, at: u64) -> Option<String> {
    let plan = site.walkeep(&["plan", "postgres", "main", "--json", "--before-event", &waldump::spell(at)]);
    plan.json()["target_lsn"].as_str().map(str::to_owned)
}

/// Kind, database and relation.
fn what(event: &Value) -> (String, String, String) {
    let text = |field: &str| event[field].as_str().unwrap_or_default().to_owned();
    (text("kind"), text("database"), text("relation"))
}

fn in_database(cluster: &Cluster, database: &str, statements: &str) {
    cluster.run("psql", &["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", statements]).expect_ok();
}

const BEFORE: &str = "
    create table orders as select n, repeat('x', 100) as note from generate_series(1, 500) n;
    create table kept (n int primary key, note text);
    insert into kept select n, repeat(md5(n::text), 100) from generate_series(1, 50) n;
    create schema sales;
    create table sales.customers (id serial primary key, name text);
    insert into sales.customers (name) select md5(n::text) from generate_series(1, 100) n;
    create table measured (day int, value int) partition by range (day);
    create table measured_1 partition of measured for values from (1) to (10);
    create table measured_2 partition of measured for values from (10) to (20);
    insert into measured select 1 + n % 19, n from generate_series(1, 200) n;
    create table \"Odd name\" (x int)";

/// Every accident there is, in the order of the list that is expected, on tables older and younger than the backup.
fn accidents(it: &Attached) -> Vec<(&'static str, &'static str, &'static str)> {
    let sql = |statements: &str| drop(it.cluster.sql(statements));
    sql("alter table orders rename to purchases");
    sql("create table young as select n from generate_series(1, 300) n");
    sql("create schema audit; create table audit.trail (x int, note text); insert into audit.trail values (1, 'a')");
    in_database(
        &it.cluster,
        "shop",
        "create table items (id int primary key, name text); insert into items values (1, 'a')",
    );

    sql("begin; drop table purchases; truncate kept; rollback");
    sql("drop table purchases");
    sql("truncate young");
    sql("drop table young");
    in_database(&it.cluster, "shop", "drop table items");
    sql("drop table measured_1");
    sql("do $$ begin begin drop table audit.trail; exception when others then null; end; end $$");
    sql(
        "do $$ begin begin drop table kept; raise 'no'; exception when others then null; end; perform txid_current(); \
            end $$",
    );
    sql("begin; drop table sales.customers; prepare transaction 'p'");
    sql("insert into kept values (51, 'b')");
    sql("commit prepared 'p'");
    sql("vacuum full kept");
    sql("alter table kept alter column n type bigint");
    sql("truncate kept");
    sql("drop table \"Odd name\"");
    sql("create temporary table gone (x int); drop table gone");
    sql("reindex table measured");
    sql("create database young_shop");
    sql("drop database shop");
    vec![
        ("drop", "postgres", "public.purchases"),
        ("truncate", "postgres", "public.young"),
        ("drop", "postgres", "public.young"),
        ("drop", "shop", "public.items"),
        ("drop", "postgres", "public.measured_1"),
        ("drop", "postgres", "audit.trail"),
        ("drop", "postgres", "sales.customers"),
        ("rewrite", "postgres", "public.kept"),
        ("rewrite", "postgres", "public.kept"),
        ("truncate", "postgres", "public.kept"),
        ("drop", "postgres", "public.\"Odd name\""),
        ("create-database", "young_shop", ""),
        ("drop-database", "shop", ""),
    ]
}

#[test]
fn accidents_of_every_kind_are_told_by_name_and_undone() {
    for major in majors() {
        let options =
            Options::default().segment_size_mb(1).set("max_prepared_transactions", 5).set("autovacuum", "off");
        let it = Attached::start(major, options);
        it.cluster.sql(BEFORE);
        it.cluster.sql("create database shop");
        it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
        let expected = accidents(&it);
        it.archive();

        let events: Vec<Value> = told(&it.site, &[])
            .into_iter()
            .filter(|event| !["restore-point", "parameters", "restart"].contains(&event["kind"].as_str().unwrap()))
            .collect();
        let seen: Vec<_> = events.iter().map(what).collect();
        let seen: Vec<_> = seen
            .iter()
            .map(|(a, b, c)| (a.as_str(), b.as_str(), c.as_str()))
            .skip_while(|(kind, name, _)| (*kind, *name) == ("create-database", "shop"))
            .collect();
        assert_eq!(seen, expected, "{major}");
        assert!(events.iter().all(|event| event["kind"] != "large-transaction"));
        let of_kept = told(&it.site, &["--relation", "public.kept", "--event", "truncate", "--event", "rewrite"]);
        assert_eq!(of_kept.len(), 3, "{major}");

        let find = |kind: &str, relation: &str| {
            let is = |event: &&Value| event["kind"] == kind && event["relation"] == relation;
            events.iter().find(is).unwrap_or_else(|| panic!("{kind} of {relation}"))
        };
        for (nth, (kind, relation, question, answer)) in [
            ("drop", "public.purchases", "select count(*), sum(n) from purchases", "500|125250"),
            ("truncate", "public.young", "select count(*) from young", "300"),
            ("drop", "audit.trail", "select x from audit.trail", "1"),
            ("truncate", "public.kept", "select count(*) from kept", "51"),
            ("drop", "public.measured_1", "select count(*) > 0 from measured_1", "t"),
        ]
        .into_iter()
        .enumerate()
        {
            let restored = it.restore(&format!("undone-{nth}"), &way_back(find(kind, relation)));
            assert_eq!(restored.sql(question), answer, "{major}: before {kind} of {relation}");
        }
        let restored = it.restore("in-doubt", &way_back(find("drop", "sales.customers")));
        restored.sql("rollback prepared 'p'");
        assert_eq!(restored.sql("select count(*) from sales.customers"), "100", "{major}");
        let shop = events.iter().find(|event| event["kind"] == "drop-database").unwrap();
        let restored = it.restore("with-shop", &way_back(shop));
        in_database(&restored, "shop", "create table works (x int)");
    }
}

/// Rows as `DELETE … RETURNING` and `GET DIAGNOSTICS` count them, and records as `pg_waldump` shows them.
#[test]
fn mass_changes_are_counted_as_the_server_counts_them() {
    for major in majors() {
        let it = Attached::start(major, Options::default().segment_size_mb(1).set("autovacuum", "off"));
        it.cluster.sql("create table big (n int, note text); create table small (n int)");
        it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
        let from = it.cluster.current_lsn();
        it.cluster.sql("insert into big select n, repeat('x', 50) from generate_series(1, 30000) n");
        it.cluster.sql("insert into small select generate_series(1, 3000)");
        it.cluster.sql("begin; delete from big; rollback");
        let count = |statement: &str| -> (u64, u64) {
            let answer = it.cluster.sql(&format!(
                "with changed as ({statement} returning 1) select count(*), txid_current() from changed"
            ));
            let (rows, xid) = answer.split_once('|').unwrap();
            (rows.parse().unwrap(), xid.parse().unwrap())
        };
        let deleted = count("delete from big where n % 3 = 0");
        let updated = count("update big set note = note || 'y' where n % 3 = 1");
        let few = count("delete from small where n <= 999");
        let in_parts = it.cluster.sql(
            "create function parts() returns bigint language plpgsql as $$ declare rows bigint; total bigint := 0; begin
               for part in 0..9 loop begin
                 delete from big where n % 30 = part * 3 + 2; get diagnostics rows = row_count; total := total + rows;
               exception when others then null; end; end loop; return total; end $$;
             select parts(), txid_current()",
        );
        let (in_parts, of) = in_parts.split_once('|').unwrap();
        it.archive();

        let told = told(&it.site, &["--event", "delete", "--event", "update"]);
        let seen: Vec<(String, u64, u64)> = told
            .iter()
            .map(|event| (what(event).0, event["rows"].as_u64().unwrap(), event["xid"].as_u64().unwrap()))
            .collect();
        let expected = [
            ("delete".to_owned(), deleted.0, deleted.1),
            ("update".to_owned(), updated.0, updated.1),
            ("delete".to_owned(), in_parts.parse().unwrap(), of.parse().unwrap()),
        ];
        assert_eq!(seen, expected, "{major}");
        assert!(told.iter().all(|event| event["relation"] == "public.big"), "{major}: {told:?}");
        let few_told = super::log::told(&it.site, &["--event", "delete", "--rows", "999", "--relation", "small"]);
        assert_eq!(few_told.len(), 1, "{major}");
        assert_eq!((few_told[0]["rows"].as_u64(), few_told[0]["xid"].as_u64()), (Some(few.0), Some(few.1)));
        let large = super::log::told(&it.site, &["--event", "large-transaction"]);
        assert_eq!(large[0]["rows"].as_u64(), Some(30_000), "{major}: {large:?}");

        let records = waldump::records(&it.cluster, &it.cluster.pg_wal(), 1, &from);
        let shown = |xid: u64, word: &str| {
            let of_xid = records.iter().filter(|record| u64::from(record.xid) == xid && record.manager == "Heap");
            of_xid.filter(|record| record.description.starts_with(word)).count() as u64
        };
        assert_eq!(shown(deleted.1, "DELETE"), deleted.0);
        assert_eq!(shown(updated.1, "UPDATE") + shown(updated.1, "HOT_UPDATE"), updated.0);

        let restored = it.restore("before-the-delete", &way_back(&told[0]));
        assert_eq!(restored.sql("select count(*) from big"), "30000", "{major}");
        // Any record of the transaction leads to before its commit.
        let middle = records.iter().find(|record| u64::from(record.xid) == updated.1).unwrap();
        assert_eq!(stop(&it.site, middle.lsn).as_deref(), told[1]["lsn"].as_str(), "{major}");
        // Also one that a subtransaction wrote.
        let top: u64 = of.parse().unwrap();
        let part = |record: &&waldump::Record| u64::from(record.xid) > top && record.description.starts_with("DELETE");
        let middle = records.iter().find(part).expect("what a subtransaction deleted");
        assert_eq!(stop(&it.site, middle.lsn).as_deref(), told[2]["lsn"].as_str(), "{major}");
    }
}

/// Without a list of names there are those that the log shows; what it does not show has its OID.
#[test]
fn names_come_from_the_log_where_no_backup_has_them() {
    for major in majors() {
        // Whole pages stand in the WAL after each checkpoint, compressed in each way that the release has.
        let compression = if major < 15 { "on" } else { ["pglz", "lz4", "zstd"][major as usize % 3] };
        let options = Options::default().segment_size_mb(1).set("autovacuum", "off");
        let it = Attached::start(major, options.set("wal_compression", compression));
        it.cluster.sql("checkpoint");
        it.cluster
            .sql("create schema sales; create table sales.first (x int); alter table sales.first rename to second");
        it.cluster.sql("checkpoint");
        it.cluster.sql("truncate sales.second");
        it.cluster.sql("drop table sales.second");
        it.cluster.switch_wal();
        // The receiver may be about to make the index; a command that meets it half made ends with an error.
        let asked = || it.site.walkeep(&["log", "postgres", "main", "--event", "restore-point"]);
        let there = until(Duration::from_secs(30), || Some(asked()).filter(|log| log.stdout.contains("switch")));
        assert!(there.is_some(), "{major}: not archived");
        let seen: Vec<_> =
            told(&it.site, &["--event", "drop", "--event", "truncate"]).iter().map(|event| what(event).2).collect();
        assert_eq!(seen, ["sales.second", "sales.second"], "{major}");
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

    // Its commit is no place to stop before: whichever record of it is named, the way leads to before the first of
    // these.
    let xid = u32::try_from(dropped[0]["xid"].as_u64().unwrap()).unwrap();
    let records = waldump::records(&it.cluster, &it.cluster.pg_wal(), 1, dropped[0]["lsn"].as_str().unwrap());
    let own: Vec<_> = records.iter().filter(|record| record.xid == xid).collect();
    assert!(own.iter().any(|record| record.manager == "Transaction") && own.len() >= 3, "{own:?}");
    for record in own {
        assert_eq!(stop(&it.site, record.lsn).as_deref(), dropped[0]["lsn"].as_str(), "{record:?}");
    }

    // The files are gone before the transaction commits, and the row of pg_database is spoilt before that: it must be
    // whole.
    let restored = it.restore("with-shop", &way_back(&dropped[0]));
    assert_eq!(restored.sql("select datconnlimit from pg_database where datname = 'shop'"), "-1");
    let asked = restored.run("psql", &["-XAtq", "-d", "shop", "-c", "select 1"]);
    assert_eq!(asked.expect_ok().trim(), "1");
}
