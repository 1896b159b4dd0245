//! One database or one table back into a running server under another name. What it must be is recorded from the server
//! itself with `pg_dump` or by the sessions that wrote it; what it must not touch is dumped before and after.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};
use rustix::process::Signal;

use super::restore_moments::History;
use crate::support::process::{self, Finished, until};
use crate::support::waldump::lsn;
use crate::support::workload::{self, Workload};
use crate::support::{Cluster, Options, QUICK, Running, Site, installed, majors};

/// A server that streams to its installation of walkeep.
pub(super) struct Rig {
    pub(super) cluster: Cluster,
    pub(super) site: Site,
    _receiver: Running,
}

impl Rig {
    pub(super) fn start(major: u32, options: Options) -> Self {
        let cluster = Cluster::start(major, options.segment_size_mb(1).set("wal_keep_size", "2GB"));
        let site = Site::for_cluster(&cluster);
        site.scratch().directory("scratch");
        let receiver = site.spawn("receive", &["receive", "main"]);
        cluster.wait_for("select count(*) > 0 from pg_stat_replication");
        Self { cluster, site, _receiver: receiver }
    }

    pub(super) fn backup(&self) {
        self.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    }

    /// Until everything written so far is in the repository.
    pub(super) fn settle(&self) {
        self.cluster.switch_wal();
        let end = lsn(&self.cluster.sql("select pg_current_wal_lsn()")) >> 20;
        let there = until(Duration::from_secs(60), || {
            let list = self.site.walkeep(&["list", "postgres", "main", "--json"]).json();
            let windows = list["clusters"][0]["windows"].as_array()?.clone();
            (windows.iter().filter_map(|w| w["to_lsn"].as_str()).map(lsn).max()? >> 20 >= end).then_some(())
        });
        assert!(there.is_some(), "not archived: {}", self.site.walkeep(&["list"]).stdout);
    }

    fn arguments<'a>(&'a self, more: &[&'a str], bin: &'a str, scratch: &'a str) -> Vec<&'a str> {
        [&["restore", "postgres", "main", "--pg-bindir", bin, "--scratch-dir", scratch], more].concat()
    }

    pub(super) fn restore(&self, more: &[&str]) -> Finished {
        let (bin, scratch) = (self.bin(), self.scratch().display().to_string());
        self.site.walkeep(&self.arguments(more, &bin, &scratch))
    }

    fn bin(&self) -> String {
        installed::bin(self.cluster.major).display().to_string()
    }

    pub(super) fn scratch(&self) -> PathBuf {
        self.site.path().join("scratch")
    }

    /// Everything in a database as statements, but for what differs between two dumps of the same.
    pub(super) fn dump(&self, database: &str, more: &[&str]) -> String {
        let arguments = [&["-d", database], more].concat();
        let text = self.cluster.run("pg_dump", &arguments).expect_ok();
        let told = |line: &&str| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict");
        text.lines().filter(told).collect::<Vec<_>>().join("\n")
    }

    pub(super) fn databases(&self) -> BTreeSet<String> {
        self.cluster.sql("select datname from pg_database").lines().map(str::to_owned).collect()
    }

    /// Nothing of a run is left, here or there.
    pub(super) fn check_clean(&self) {
        let left: Vec<_> = fs::read_dir(self.scratch()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(left.is_empty(), "{left:?}");
        let staged: Vec<_> = self.databases().into_iter().filter(|name| name.contains("walkeep")).collect();
        assert!(staged.is_empty(), "{staged:?}");
    }
}

/// Everything that a dump can get wrong, in a schema of its own.
const SHOP: &str = "create schema app; \
    create table app.customers (id int primary key, name text not null); \
    create table app.orders (id bigserial primary key, ref int generated always as identity, customer int references \
    app.customers, \
      total numeric check (total >= 0), doubled numeric generated always as (total * 2) stored, note text unique); \
    create index orders_total on app.orders (total); create statistics app.orders_both on customer, total from \
    app.orders; \
    create function app.touched() returns trigger language plpgsql as 'begin return new; end'; \
    create trigger touch before update on app.orders for each row execute function app.touched(); \
    create view app.large as select * from app.orders where total > 10; \
    create materialized view app.per_customer as select customer, count(*) from app.orders group by 1; \
    insert into app.customers select n, 'customer ' || n from generate_series(1, 50) n; \
    insert into app.orders (customer, total, note) select n % 50 + 1, n, 'note ' || n from generate_series(1, 2000) n; \
    grant select on app.orders to clerk; alter table app.orders owner to shopkeeper; \
    refresh materialized view app.per_customer; comment on table app.orders is 'what was ordered'";

#[test]
fn every_major_brings_back_a_database_and_a_table() {
    for major in majors() {
        let rig = Rig::start(major, Options::default());
        rig.cluster.sql("create role shopkeeper; create role clerk");
        rig.cluster.sql(
            "create database zoptal template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C' owner shopkeeper",
        );
        rig.cluster.sql("alter database zoptal set work_mem = '7MB'");
        rig.cluster.sql("create database other");
        rig.cluster.sql_in("zoptal", SHOP);
        rig.cluster.sql_in(
            "other",
            "create table big as select n, repeat('x', 500) as filler from generate_series(1, 20000) n",
        );
        rig.backup();
        rig.cluster.sql_in(
            "zoptal",
            "update app.orders set total = total + 1 where id % 3 = 0; delete from app.orders where id % 7 = 0",
        );
        rig.cluster.sql_in("other", "update big set n = n + 1 where n % 2 = 0; create index on big (n)");
        let then = rig.dump("zoptal", &[]);
        let rows = rig
            .cluster
            .sql_in("zoptal", "select md5(string_agg(o::text, ',' order by id)), count(*) from app.orders o");
        rig.cluster.sql("select pg_create_restore_point('before the accident')");
        rig.cluster.sql_in("zoptal", "update app.orders set total = 0, note = null; drop table app.customers cascade");
        rig.cluster.sql_in("other", "delete from big where n % 3 = 0");
        rig.settle();
        let before = (rig.dump("zoptal", &[]), rig.dump("other", &[]), rig.databases());

        let done = rig
            .restore(&["--database", "zoptal", "--as", "zoptal_restore", "--target-name", "before the accident"])
            .expect_code(0);
        assert!(done.stdout.contains("brought back: database zoptal_restore"), "{}", done.stdout);
        assert_eq!(rig.dump("zoptal_restore", &[]), then, "{major}");
        let like = "select pg_encoding_to_char(encoding), datcollate, datdba::regrole, (select setconfig from \
            pg_db_role_setting where setdatabase = d.oid) from pg_database d where datname = ";
        assert_eq!(rig.cluster.sql(&format!("{like}'zoptal_restore'")), rig.cluster.sql(&format!("{like}'zoptal'")));
        assert_eq!((rig.dump("zoptal", &[]), rig.dump("other", &[])), (before.0.clone(), before.1.clone()), "{major}");
        let mut expected = before.2.clone();
        expected.insert("zoptal_restore".into());
        assert_eq!(rig.databases(), expected);
        rig.check_clean();

        let table = ["--table", "app.orders", "--database", "zoptal", "--target-name", "before the accident"];
        let done = rig.restore(&table).expect_code(0);
        for told in ["foreign key orders_customer_fkey is left out", "trigger touch is left out"] {
            assert!(done.stdout.contains(told), "{}", done.stdout);
        }
        let again = "select md5(string_agg(o::text, ',' order by id)), count(*) from app.orders_restored o";
        assert_eq!(rig.cluster.sql_in("zoptal", again), rows, "{major}");
        let indexes =
            "select string_agg(indexname, ',' order by indexname) from pg_indexes where tablename = 'orders_restored'";
        assert_eq!(
            rig.cluster.sql_in("zoptal", indexes),
            "orders_restored_note_key,orders_restored_pkey,orders_restored_total"
        );
        // Its sequences are its own.
        rig.cluster.sql_in("zoptal", "insert into app.orders_restored (customer, total) values (1, 1)");
        assert_eq!(rig.cluster.sql_in("zoptal", "select max(id), max(ref) from app.orders_restored"), "2001|2001");
        rig.cluster.sql_in("zoptal", "drop table app.orders_restored");
        assert_eq!(rig.dump("zoptal", &[]), before.0, "{major}");
        rig.check_clean();
    }
}

/// Every kind of change in databases that are left out, until told to stop: what replay has to get over without their
/// files.
fn noise(cluster: &Cluster, stop: &AtomicBool, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut made = 0;
    while !stop.load(Ordering::Relaxed) {
        let statement = match random.random_range(0..10) {
            0 => "vacuum (freeze) pgbench_accounts",
            1 => "vacuum full wide",
            2 => "truncate short; insert into short select n from generate_series(1, 3000) n",
            3 => "delete from wide where n % 5 = 0",
            4 => "insert into wide select n, array[n, n % 7], repeat('y', 300) from generate_series(1, 800) n",
            5 => "update pgbench_accounts set abalance = abalance + 1 where aid % 40 = 0",
            6 => "reindex table wide",
            7 => "vacuum wide",
            8 => "checkpoint",
            _ => "vacuum short",
        };
        cluster.sql_in("noise", statement);
        if random.random_bool(0.15) {
            made += 1;
            let strategy = match (cluster.major >= 15, random.random_bool(0.5)) {
                (true, true) => "strategy file_copy",
                (true, false) => "strategy wal_log",
                (false, _) => "",
            };
            cluster.sql(&format!("create database made{made} template quiet {strategy}"));
            if random.random_bool(0.5) {
                cluster.sql(&format!("drop database made{made}"));
            }
        }
    }
}

fn fill_noise(rig: &Rig) {
    for name in ["noise", "quiet", "going", "zoptal"] {
        rig.cluster.sql(&format!("create database {name}"));
    }
    let space = rig.site.scratch().directory("space");
    rig.cluster.sql(&format!("create tablespace space location '{}'", space.display()));
    rig.cluster.run("pgbench", &["-i", "-q", "-s", "2", "noise"]).expect_ok();
    rig.cluster.sql_in(
        "noise",
        "create table wide (n int, tags int[], filler text); create index on wide using gin \
        (tags); create index on wide using hash (n); create index on wide using brin (n)",
    );
    rig.cluster.sql_in(
        "noise",
        "insert into wide select n, array[n, n % 7], repeat('y', 300) from generate_series(1, \
        5000) n; create table short (n int) tablespace space; create index on short (n)",
    );
    rig.cluster.sql_in(
        "noise",
        "insert into short select generate_series(1, 2000); create unlogged table gone as select 1 as n",
    );
    rig.cluster.sql_in("quiet", "create table still as select n from generate_series(1, 5000) n");
    rig.cluster.sql_in("going", "create table t as select n from generate_series(1, 5000) n");
    rig.cluster.sql_in("zoptal", "create table in_space (n int) tablespace space");
}

/// Random targets while every other database is being changed: exactly what was committed before each.
fn under_traffic(major: u32, options: Options) {
    let seed: u64 = rand::random();
    let mut random = SmallRng::seed_from_u64(seed);
    let rig = Rig::start(
        major,
        options.set("max_prepared_transactions", 20).set("autovacuum_naptime", "1s").set("checkpoint_timeout", "30s"),
    );
    fill_noise(&rig);
    let from = rig.cluster.current_lsn();
    let stop = Arc::new(AtomicBool::new(false));
    let work = Workload::start_in(&rig.cluster, "zoptal", 3, seed);
    let (consistent, ours) = std::thread::scope(|scope| {
        let noisy = scope.spawn(|| noise(&rig.cluster, &stop, seed));
        rig.backup();
        let consistent = rig.cluster.current_lsn();
        std::thread::sleep(Duration::from_secs(2));
        rig.cluster.sql("drop database going");
        std::thread::sleep(Duration::from_secs(2));
        stop.store(true, Ordering::Relaxed);
        noisy.join().unwrap();
        (consistent, work.stop())
    });
    rig.settle();
    let history = History::read(&rig.cluster, &rig.cluster.pg_wal(), &from, &consistent);
    let others = (rig.dump("noise", &[]), rig.dump("quiet", &[]), rig.dump("zoptal", &[]));
    for n in 0..4 {
        let (target, mut expected) = history.draw(&mut random);
        expected.retain(|xid| ours.contains(xid));
        let (option, name) = (format!("--target-{}", target.kind), format!("again{n}"));
        let mut arguments = vec!["--database", "zoptal", "--as", &name, &option, &target.value];
        if !target.inclusive {
            arguments.push("--target-exclusive");
        }
        let done = rig.restore(&arguments);
        assert_eq!(done.code, Some(0), "{major}, seed {seed}, {target:?}\n{}{}", done.stdout, done.stderr);
        assert!(!done.stderr.contains("everything is restored"), "seed {seed}\n{}", done.stderr);
        let found = workload::transactions_in(&rig.cluster, &name);
        super::restore_moments::check(&target, &expected, &found, seed);
    }
    assert_eq!((rig.dump("noise", &[]), rig.dump("quiet", &[]), rig.dump("zoptal", &[])), others);
    rig.check_clean();
}

#[test]
fn traffic_in_other_databases_does_not_matter_on_15() {
    under_traffic(15, Options::default());
}

#[test]
fn traffic_in_other_databases_does_not_matter_on_18() {
    under_traffic(18, Options::default());
}

/// Without checksums, setting a page all-visible brings no image of it: replay meets pages that were left out.
#[test]
fn traffic_without_checksums_does_not_matter() {
    under_traffic(15, Options::default().without_checksums());
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_done() {
    let rig = Rig::start(QUICK, Options::default());
    rig.cluster.sql("create database zoptal");
    rig.cluster.sql("create database taken");
    rig.cluster.sql_in(
        "zoptal",
        "create table orders as select 1 as n; create view shown as select 1 as n; create \
        table orders_restored (n int)",
    );
    rig.backup();
    rig.cluster.sql("create table t as select 1 as n");
    rig.settle();
    let check = |arguments: &[&str], code: i32, words: &str| {
        let done = rig.restore(arguments).expect_code(code);
        assert!(done.stderr.contains(words), "{}", done.stderr);
        let last = done.stderr.lines().last().unwrap();
        assert!(last.starts_with("walkeep: ") && last.contains(words), "{}", done.stderr);
        rig.check_clean();
    };
    check(&["--database", "zoptal", "--as", "taken"], 2, "database taken exists already");
    check(&["--table", "orders", "--database", "zoptal"], 2, "relation public.orders_restored exists already");
    check(&["--table", "orders", "--database", "zoptal", "--as", "none.orders"], 4, "has no schema none");
    check(&["--table", "orders", "--database", "none"], 4, "has no database none");
    check(&["--table", "a.b.c", "--database", "zoptal"], 2, "write schema.name");
    check(&["--database", "zoptl", "--as", "back"], 4, "did you mean zoptal?");
    check(&["--table", "order", "--database", "zoptal", "--as", "x"], 4, "did you mean public.orders?");
    check(&["--table", "shown", "--database", "zoptal", "--as", "x"], 2, "public.shown was a view");
    let late = rig.restore(&["--database", "zoptal", "--target-time", "now"]).expect_code(3);
    assert!(late.stdout.contains("reachable      NO"), "{}", late.stdout);
    rig.check_clean();
    assert!(!rig.databases().iter().any(|name| name.contains("restore")));
}

#[test]
fn databases_that_were_made_or_renamed_after_the_backup_are_found() {
    let rig = Rig::start(QUICK, Options::default());
    rig.cluster.sql("create database source");
    rig.cluster.sql("create database old");
    rig.cluster.sql_in("source", "create table t as select n from generate_series(1, 3000) n");
    rig.cluster.sql_in("old", "create table t as select n from generate_series(1, 2000) n");
    rig.backup();
    rig.cluster.sql("create database copied template source strategy file_copy");
    rig.cluster.sql("create database logged template source strategy wal_log");
    rig.cluster.sql("alter database old rename to young");
    rig.cluster.sql("create role gone; create role kept");
    rig.cluster.sql_in(
        "young",
        "create table mine as select 1 as n; alter table mine owner to gone; grant select on t to gone, kept",
    );
    rig.cluster.sql("select pg_create_restore_point('here')");
    rig.cluster.sql_in("young", "drop table mine; revoke all on t from gone");
    rig.cluster.sql("drop role gone");
    rig.settle();
    for (name, rows) in [("copied", "3000"), ("logged", "3000"), ("young", "2000")] {
        let new = format!("{name} \"again\" = 'x'");
        let done = rig.restore(&["--database", name, "--as", &new, "--target-name", "here"]).expect_code(0);
        assert_eq!(
            rig.cluster.sql_in(&format!("dbname='{}'", new.replace('\'', "\\'")), "select count(*) from t"),
            rows
        );
        let told = done.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(told.contains("what gone owned belongs to the superuser now"), name == "young", "{}", done.stdout);
        rig.check_clean();
    }
    let acl =
        rig.cluster.sql_in("dbname='young \"again\" = \\'x\\''", "select relacl from pg_class where relname = 't'");
    assert!(acl.contains("kept=r") && !acl.contains("gone"), "{acl}");
}

#[test]
fn partitions_come_back_as_one_table_and_one_of_them_alone() {
    let rig = Rig::start(QUICK, Options::default());
    rig.cluster.sql(
        "create table p (id bigint generated by default as identity, at int, primary key (id, at)) \
        partition by range (at)",
    );
    rig.cluster.sql(
        "create table p1 partition of p for values from (0) to (100); create table p2 partition of p for \
        values from (100) to (200)",
    );
    rig.cluster.sql("insert into p (at) select n from generate_series(0, 199) n");
    rig.backup();
    rig.cluster.sql("delete from p where at = 7");
    rig.cluster.sql("select pg_create_restore_point('here')");
    rig.cluster.sql("delete from p where at > 50");
    rig.settle();
    rig.restore(&["--table", "p", "--target-name", "here"]).expect_code(0);
    assert_eq!(rig.cluster.sql("select count(*), sum(at) from p_restored"), "199|19893");
    rig.restore(&["--table", "p1", "--as", "first", "--target-name", "here"]).expect_code(0);
    assert_eq!(rig.cluster.sql("select count(*) from first"), "99");
    assert_eq!(rig.cluster.sql("select count(*) from pg_inherits where inhrelid = 'first'::regclass"), "0");
    assert_eq!(rig.cluster.sql("select count(*) from p"), "50");
    rig.check_clean();
}

/// After a DROP: rows, keys and where its sequences were.
#[test]
fn dropped_tables_come_back_under_their_own_names() {
    let rig = Rig::start(QUICK, Options::default());
    rig.cluster.sql(
        "create sequence shared; create table one (id bigserial primary key, ref int default nextval('shared'), \
         n int); insert into one (n) select n from generate_series(1, 30) n; \
         create table many (id bigserial, also int generated by default as identity, n int) \
         partition by range (n); create table many_1 partition of many for values from (0) to (100); \
         insert into many (n) select n from generate_series(1, 40) n; create extension postgres_fdw; \
         create server far foreign data wrapper postgres_fdw options (host '/nowhere'); \
         create foreign table many_far partition of many for values from (100) to (200) server far",
    );
    rig.backup();
    rig.cluster.sql("select pg_create_restore_point('here')");
    let rows =
        |table: &str| rig.cluster.sql(&format!("select md5(string_agg(t::text, ',' order by id)) from {table} t"));
    let before = (rows("one"), rows("many_1"));
    rig.cluster.sql("drop table one; drop foreign table many_far; drop table many; drop sequence shared");
    rig.settle();
    // The sequence that it shared was dropped with it, and is not its own.
    let done = rig.restore(&["--table", "one", "--target-name", "here"]).expect_code(1);
    assert!(done.stdout.contains("default of column ref of public.one"), "{}", done.stdout);
    let done = rig.restore(&["--table", "many", "--target-name", "here"]).expect_code(0);
    assert!(done.stdout.contains("many_far is a foreign table"), "{}", done.stdout);
    assert_eq!((rows("one"), rows("many")), before);
    rig.cluster.sql("insert into one (n) values (1); insert into many (n) values (1)");
    assert_eq!(rig.cluster.sql("select max(id) from one"), "31");
    assert_eq!(rig.cluster.sql("select max(id), max(also) from many"), "41|41");
    rig.check_clean();
}

#[test]
fn where_leaving_out_is_not_safe_everything_is_restored_or_nothing() {
    let rig = Rig::start(QUICK, Options::default());
    rig.cluster.sql("create database zoptal");
    rig.cluster.sql("create database other");
    rig.cluster.sql_in("zoptal", "create table t as select n from generate_series(1, 1000) n");
    rig.cluster.sql_in("other", "create table t as select n from generate_series(1, 1000) n");
    rig.backup();
    rig.cluster.set("full_page_writes", "off");
    rig.cluster.sql("checkpoint");
    rig.cluster.sql_in("other", "update t set n = n + 1");
    rig.cluster.sql_in("zoptal", "update t set n = n + 1");
    rig.settle();
    let done = rig.restore(&["--database", "zoptal"]).expect_code(0);
    assert!(done.stdout.contains("full_page_writes was off"), "{}", done.stdout);
    assert_eq!(rig.cluster.sql_in("zoptal_restored", "select sum(n) from t"), "501500");

    // Replaying the making of a tablespace would work in its own directory, which the running server uses.
    let space = rig.site.scratch().directory("late");
    rig.cluster.sql(&format!("create tablespace late location '{}'", space.display()));
    rig.cluster.sql("create table precious tablespace late as select n from generate_series(1, 1000) n");
    rig.settle();
    let refused = rig.restore(&["--database", "zoptal", "--as", "x"]).expect_code(3);
    assert!(refused.stderr.contains("was made at") && refused.stderr.contains("--backup"), "{}", refused.stderr);
    rig.cluster.sql("checkpoint");
    assert_eq!(rig.cluster.sql("select count(*) from precious"), "1000");
    rig.check_clean();
}

/// Whenever it is stopped, nothing is left; and what a kill leaves is named by the next run.
#[test]
fn nothing_is_left_when_it_is_stopped() {
    let seed: u64 = rand::random();
    let mut random = SmallRng::seed_from_u64(seed);
    let rig = Rig::start(QUICK, Options::default());
    rig.cluster.sql("create database zoptal");
    rig.cluster.sql_in(
        "zoptal",
        "create table t as select n, repeat('x', 200) as filler from generate_series(1, \
        60000) n; create index on t (n)",
    );
    rig.backup();
    for _ in 0..4 {
        rig.cluster.sql_in("zoptal", "update t set filler = filler || 'y' where n % 4 = 0");
    }
    rig.settle();
    let before = rig.databases();
    let (bin, scratch) = (rig.bin(), rig.scratch().display().to_string());
    let arguments = rig.arguments(&["--database", "zoptal", "--as", "again"], &bin, &scratch);
    let (mut interrupted, mut finished) = (0, false);
    for n in 0..12 {
        let mut run = rig.site.spawn(&format!("run{n}"), &arguments);
        let appeared = until(Duration::from_secs(30), || fs::read_dir(rig.scratch()).unwrap().next().map(drop));
        assert!(appeared.is_some(), "{}", run.output());
        std::thread::sleep(Duration::from_millis(random.random_range(0..4000)));
        if run.ended().is_none() {
            run.signal(if n % 2 == 0 { Signal::TERM } else { Signal::INT });
        }
        let status = run.wait(Duration::from_secs(60));
        rig.check_clean();
        if status.success() {
            finished = true;
            rig.cluster.sql("drop database again");
        } else {
            interrupted += 1;
            assert!(run.output().contains("interrupted"), "seed {seed}\n{}", run.output());
            assert_eq!(status.code(), Some(1));
        }
        assert_eq!(rig.databases(), before, "seed {seed}");
    }
    println!("{interrupted} of 12 interrupted, one finished: {finished}");
    assert!(interrupted > 2, "seed {seed}");

    let mut run = rig.site.spawn("killed", &arguments);
    let server = until(Duration::from_secs(60), || {
        let dir = fs::read_dir(rig.scratch()).unwrap().next()?.ok()?.path();
        fs::read_to_string(dir.join("data/postmaster.pid")).ok().filter(|text| text.lines().count() > 3)?;
        Some(dir)
    })
    .unwrap();
    run.kill9();
    let next = rig.restore(&["--database", "zoptal", "--as", "again"]).expect_code(0);
    let name = server.file_name().unwrap().to_string_lossy();
    assert!(next.stderr.contains(&*name) && next.stderr.contains("rm -r"), "{}", next.stderr);
    let mut stop = process::command(installed::bin(QUICK).join("pg_ctl"), process::Orphan::Kill);
    stop.arg("-D").arg(server.join("data")).args(["-m", "immediate", "-w", "-s", "stop"]);
    process::run(stop);
    fs::remove_dir_all(&server).unwrap();
    for staged in rig.databases().iter().filter(|name| name.starts_with("walkeep_restoring_")) {
        rig.cluster.sql(&format!("drop database {staged}"));
    }
    rig.check_clean();
}
