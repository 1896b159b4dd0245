//! Databases whose owners define whatever PostgreSQL lets them define, and every command that speaks SQL run against
//! them. Nothing of theirs may run with the rights of walkeep, and nothing of theirs may keep their data from coming
//! back.
//!
//! What would have run leaves a mark: a role that became a superuser, or a file that only a superuser can write.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::restore_selective::Rig;
use crate::support::process::{self, Finished, Orphan, Running, until};
use crate::support::{Options, QUICK, majors};

/// A function that takes its chance, if it has one: it makes `mallory` a superuser, and writes a file.
fn trap(name: &str, arguments: &str, returns: &str, result: &str, mark: &Path) -> String {
    format!(
        "create or replace function {name}({arguments}) returns {returns} language plpgsql \
         set search_path = pg_catalog as $trap$ begin \
         begin execute $e$copy (select 1) to '{}'$e$; exception when others then null; end; \
         begin execute 'alter role mallory superuser'; exception when others then null; end; \
         if current_user <> 'mallory' then \
         begin execute format('alter role %I password %L', current_user, 'stolen'); \
         exception when others then null; end; end if; \
         return {result}; end $trap$; ",
        mark.display()
    )
}

/// Operators on the types of the catalogs, each with a trap in it, in the schema `public`.
fn operators(mark: &Path) -> String {
    let mut text = String::new();
    let pairs = [
        ("oid", "int4", "int8"),
        ("oid", "oid", "int8"),
        ("name", "name", "text"),
        ("name", "text", "text"),
        ("\"char\"", "\"char\"", "int4"),
        ("text", "text", "bytea"),
    ];
    for (nth, (left, right, as_type)) in pairs.into_iter().enumerate() {
        for (word, operator) in [("eq", "="), ("ne", "<>"), ("ge", ">="), ("lt", "<")] {
            let function = format!("public.{word}_{nth}");
            let convert = |x: &str| match as_type {
                "bytea" => format!("convert_to({x}, 'UTF8')"),
                other => format!("{x}::{other}"),
            };
            let result = format!("{} {operator} {}", convert("a"), convert("b"));
            text.push_str(&trap(&function, &format!("a {left}, b {right}"), "bool", &result, mark));
            write!(
                text,
                "create operator public.{operator} (leftarg = {left}, rightarg = {right}, function = {function}); "
            )
            .unwrap();
        }
    }
    text
}

/// A server with a role that owns every database, and a directory in which a superuser could leave a file.
struct Hostile {
    rig: Rig,
    mark: PathBuf,
}

impl Hostile {
    fn start(major: u32, options: Options) -> Self {
        let rig = Rig::start(major, options);
        rig.cluster.sql("create role mallory login");
        let mark = rig.site.scratch().directory("marks").join("mark");
        Self { rig, mark }
    }

    /// A database of mallory's, with what it does there as itself.
    fn database(&self, name: &str, statements: &str) {
        self.rig.cluster.sql(&format!("create database {name} owner mallory"));
        // Before 15 everybody may create in `public`, and from then on the database's owner.
        let as_owner = format!("set session authorization mallory; {statements}");
        self.rig.cluster.sql_in(name, &as_owner);
    }

    fn set(&self, database: &str, setting: &str) {
        self.rig.cluster.sql(&format!("alter database {database} set {setting}"));
    }

    /// Nothing of mallory's has run with the rights of another.
    fn check_unharmed(&self, after: &str) {
        // The test's own query must not fall into a trap.
        let superuser = self.rig.cluster.sql_in(
            "dbname=postgres options='-c search_path='",
            "select rolsuper from pg_catalog.pg_roles where rolname = 'mallory'",
        );
        assert_eq!(superuser, "f", "mallory is a superuser after {after}");
        let passwords = self.rig.cluster.sql_in(
            "dbname=postgres options='-c search_path='",
            "select rolname from pg_catalog.pg_authid where rolpassword is not null",
        );
        assert_eq!(passwords, "", "whose password was set by {after}");
        assert!(!self.mark.exists(), "{} was written by {after}", self.mark.display());
    }

    /// Rows of a database, whatever is set for it.
    fn rows(&self, database: &str, table: &str) -> String {
        let calm = "-c search_path= -c role=none -c statement_timeout=0 -c array_nulls=on \
                    -c idle_in_transaction_session_timeout=0 -c local_preload_libraries= -c session_preload_libraries=";
        let newer = if self.rig.cluster.major >= 17 { " -c transaction_timeout=0" } else { "" };
        self.rig.cluster.sql_in(
            &format!("dbname={database} options='{calm}{newer}'"),
            &format!("select pg_catalog.md5(pg_catalog.string_agg(t::text, ',' order by id)) from {table} t"),
        )
    }
}

const ROWS: &str = "create table public.t (id int primary key, tags int[], note text); \
    insert into public.t select n, array[n, null], 'note ' || n from pg_catalog.generate_series(1, 500) n; ";

fn operators_are_never_called(major: u32) {
    let hostile = Hostile::start(major, Options::default());
    let rig = &hostile.rig;
    // The first is searched after `pg_catalog`, where it is the best match of (oid, int4); the second before.
    hostile.database("plain", &format!("{ROWS}{}", operators(&hostile.mark)));
    hostile.database("first", &format!("{ROWS}{}", operators(&hostile.mark)));
    hostile.set("first", "search_path = public, pg_catalog");
    // The database that walkeep itself connects to.
    rig.cluster.sql(&operators(&hostile.mark));
    rig.cluster.sql("alter database postgres set search_path = public, pg_catalog");
    hostile.check_unharmed("the test's own preparations");
    rig.backup();
    hostile.check_unharmed("backup");
    // The role that the documentation recommends.
    rig.cluster.sql_in("template1", "create role keeper login replication");
    let text = std::fs::read_to_string(rig.site.config()).unwrap();
    let config = rig.site.scratch().file("keeper.toml", &text.replace("user=postgres", "user=keeper"));
    let config = config.display().to_string();
    for arguments in [&["backup", "postgres", "main"][..], &["check"], &["health"]] {
        rig.site.walkeep(&[&["--config", &*config], arguments].concat());
        hostile.check_unharmed(&format!("{} as keeper", arguments.join(" ")));
    }
    for arguments in [&["check"][..], &["health"], &["list", "postgres", "main"], &["log", "postgres", "main"]] {
        rig.site.walkeep(arguments);
        hostile.check_unharmed(&arguments.join(" "));
    }
    rig.settle();
    for name in ["plain", "first"] {
        rig.restore(&["--table", "public.t", "--database", name, "--as", "public.again"]).expect_code(0);
        hostile.check_unharmed("restore --table");
        assert_eq!(hostile.rows(name, "public.again"), hostile.rows(name, "public.t"), "{major} {name}");
        let restored = format!("{name}_restored");
        rig.restore(&["--database", name]).expect_code(0);
        hostile.check_unharmed("restore --database");
        assert_eq!(hostile.rows(&restored, "public.t"), hostile.rows(name, "public.t"), "{major} {name}");
    }
    rig.check_clean();
}

#[test]
fn operators_of_a_database_owner_are_never_called_on_13() {
    operators_are_never_called(13);
}

#[test]
fn operators_of_a_database_owner_are_never_called_on_17() {
    operators_are_never_called(17);
}

/// Settings of a database that would end a session, take its rights, or change what it reads, one a database.
fn hostile_settings(major: u32) -> Vec<(&'static str, &'static str)> {
    let mut settings = vec![
        ("slow", "statement_timeout = '1ms'"),
        ("locked", "lock_timeout = '1ms'"),
        ("quiet", "idle_in_transaction_session_timeout = '1ms'"),
        ("still", "default_transaction_read_only = on"),
        ("serial", "default_transaction_isolation = serializable"),
        ("masked", "role = mallory"),
        ("words", "array_nulls = off"),
        ("preload", "session_preload_libraries = 'walkeep_no_such_library'"),
        ("local", "local_preload_libraries = 'walkeep_no_such_library'"),
        ("replica", "session_replication_role = replica"),
        ("quoted", "quote_all_identifiers = on"),
        ("escaped", "standard_conforming_strings = off"),
    ];
    if major >= 14 {
        settings.push(("idle", "idle_session_timeout = '100ms'"));
    }
    if major >= 17 {
        settings.push(("short", "transaction_timeout = '20ms'"));
    }
    settings
}

fn settings_hinder_nothing(major: u32) {
    let hostile = Hostile::start(major, Options::default());
    let rig = &hostile.rig;
    let settings = hostile_settings(major);
    for (name, setting) in &settings {
        hostile.database(name, ROWS);
        // Of a role in a database, it wins over the database's own.
        rig.cluster.sql(&format!("alter role postgres in database {name} set {setting}"));
        rig.cluster.sql(&format!("alter database {name} set {setting}"));
    }
    // The database of walkeep's own sessions has them all, but for those that let nobody in.
    rig.cluster.sql("create database own");
    let own = rig.cluster.socket_conninfo().replace("dbname=postgres", "dbname=own");
    for (_, setting) in settings.iter().filter(|(name, _)| !NOBODY_GETS_IN.contains(name)) {
        rig.cluster.sql(&format!("alter database own set {setting}"));
    }
    let text = std::fs::read_to_string(rig.site.config()).unwrap();
    let config = rig.site.scratch().file("own.toml", &text.replace("dbname=postgres", "dbname=own"));
    let walkeep =
        |arguments: &[&str]| rig.site.walkeep(&[&["--config", &*config.display().to_string()], arguments].concat());
    let backup = walkeep(&["backup", "postgres", "main"]).expect_code(0);
    let unlisted = backup.stderr.lines().filter(|line| line.contains("are not listed"));
    assert!(unlisted.clone().all(|line| line.contains("preload")), "{}", backup.stderr);
    walkeep(&["check"]).expect_code(0);
    walkeep(&["health"]).expect_code(0);
    rig.settle();
    for (name, _) in &settings {
        let restored = format!("{name}_restored");
        rig.restore(&["--database", name, "--into", &own]).expect_code(0);
        assert_eq!(hostile.rows(&restored, "public.t"), hostile.rows(name, "public.t"), "{major} {name}");
        if !NOBODY_GETS_IN.contains(name) {
            let table = ["--table", "public.t", "--database", name, "--as", "public.again", "--into", &own];
            rig.restore(&table).expect_code(0);
            assert_eq!(hostile.rows(name, "public.again"), hostile.rows(name, "public.t"), "{major} {name}");
        }
        rig.check_clean();
    }
}

/// Libraries that are not installed: PostgreSQL refuses each login.
const NOBODY_GETS_IN: [&str; 2] = ["preload", "local"];

#[test]
fn settings_of_databases_hinder_nothing_on_13() {
    settings_hinder_nothing(13);
}

#[test]
fn settings_of_databases_hinder_nothing_on_17() {
    settings_hinder_nothing(17);
}

/// Objects that run code, or that cannot be built where the `search_path` is empty.
const DIFFICULT: &str = "create schema app; set search_path = app, public; \
    create table app.plain (n int); insert into app.plain values (7); \
    create table app.t (id int primary key, tags int[], note text); \
    insert into app.t select n, array[n, null], 'note ' || n from generate_series(1, 500) n; \
    create function app.seven() returns int language sql stable as 'select n from plain'; \
    create function app.same(x int) returns int language plpgsql immutable \
    as 'begin perform n from plain; return x; end'; \
    create table app.checked (id int check (app.same(id) > 0), note text default app.seven()::text); \
    insert into app.checked values (1), (2); \
    create table app.made (id int, twice int generated always as (app.same(id) * 2) stored); \
    insert into app.made values (1), (2); ";

/// From 17 on, a server restricts the `search_path` while it builds these, in the original, too.
const UNTIL_16: &str = "create index t_same on app.t (app.same(id)); \
    create materialized view app.seen as select app.seven() as n; ";

/// An event trigger that forbids every change of the schema, and leaves a mark.
fn event_triggers(mark: &Path, major: u32) -> String {
    let body = format!(
        "begin begin execute $e$copy (select 1) to '{}'$e$; exception when others then null; end; \
         if current_database() <> 'postgres' then raise exception 'no changes here'; end if; end",
        mark.display()
    );
    let mut text = format!(
        "create function public.forbid() returns event_trigger language plpgsql set search_path = pg_catalog as \
         $trap${body}$trap$; create event trigger a on ddl_command_start execute function public.forbid(); \
         create event trigger b on ddl_command_end execute function public.forbid(); \
         create event trigger c on sql_drop execute function public.forbid(); "
    );
    if major >= 17 {
        text.push_str(
            "create event trigger d on login execute function public.forbid(); \
             alter event trigger d enable always; ",
        );
    }
    text
}

fn what_fails_is_named_and_the_data_is_there(major: u32) {
    let hostile = Hostile::start(major, Options::default());
    let rig = &hostile.rig;
    rig.cluster.sql("create role gone");
    rig.cluster.sql("create database shop");
    rig.cluster.sql_in("shop", DIFFICULT);
    if major < 17 {
        rig.cluster.sql_in("shop", &format!("set search_path = app, public; {UNTIL_16}"));
    }
    rig.cluster.sql("alter role gone in database shop set work_mem = '7MB'");
    rig.cluster.sql_in("shop", "grant select on app.t to gone");
    let before = |database: &str| {
        let options = format!("dbname={database} options='-c event_triggers=off'");
        let database = if major >= 17 { options.as_str() } else { database };
        rig.cluster.sql_in(
            database,
            "select (select md5(string_agg(t::text, ',' order by id)) from app.t), \
             (select string_agg(t::text, ' ' order by id) from app.checked t), \
             (select string_agg(t::text, ' ' order by id) from app.made t)",
        )
    };
    let expected = before("shop");
    rig.cluster.sql_in("shop", &event_triggers(&hostile.mark, major));
    rig.backup();
    hostile.check_unharmed("backup");
    rig.cluster.sql("alter role gone in database shop reset all");
    rig.settle();
    // Its event trigger is switched off for it.
    let revoke = "set session_replication_role = replica; revoke all on app.t from gone; drop role gone";
    let off = if major >= 17 { "dbname=shop options='-c event_triggers=off'" } else { "shop" };
    rig.cluster.sql_in(off, revoke);
    hostile.check_unharmed("the test's own preparations");

    let done = rig.restore(&["--database", "shop", "--target-immediate"]);
    let told = done.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(done.code, Some(1), "{}{}", done.stdout, done.stderr);
    hostile.check_unharmed("restore --database");
    assert_eq!(before("shop_restored"), expected, "{major}\n{}", done.stdout);
    for words in ["CHECK checked_id_check of app.checked", "generated column twice of app.made"] {
        assert!(told.contains(words), "{words}: {}", done.stdout);
    }
    assert!(told.contains("role gone is not in this server"), "{}", done.stdout);
    for words in ["CREATE INDEX t_same", "REFRESH MATERIALIZED VIEW app.seen"] {
        assert_eq!(told.contains(words), major < 17, "{}", done.stdout);
    }
    let valid = "select convalidated from pg_constraint where conname = 'checked_id_check'";
    let restored = if major >= 17 { "dbname=shop_restored options='-c event_triggers=off'" } else { "shop_restored" };
    assert_eq!(rig.cluster.sql_in(restored, valid), "f");
    assert_eq!(
        rig.cluster.sql_in(restored, "select count(*) from pg_event_trigger"),
        if major < 17 { "3" } else { "4" }
    );
    rig.check_clean();

    for (table, code) in [("t", i32::from(major < 17)), ("checked", 1), ("made", 1)] {
        let done = rig.restore(&["--database", "shop", "--table", &format!("app.{table}"), "--as", "app.again"]);
        assert_eq!(done.code, Some(code), "{table}: {}{}", done.stdout, done.stderr);
        hostile.check_unharmed("restore --table");
        let rows = format!("select string_agg(t::text, ' ' order by id) from app.{table} t");
        let again = "select string_agg(t::text, ' ' order by id) from app.again t";
        assert_eq!(rig.cluster.sql_in(off, again), rig.cluster.sql_in(off, &rows), "{major} {table}");
        rig.cluster.sql_in(off, "set session_replication_role = replica; drop table app.again");
    }
    rig.check_clean();
}

#[test]
fn what_fails_is_named_and_the_data_is_there_on_15() {
    what_fails_is_named_and_the_data_is_there(QUICK);
}

#[test]
fn what_fails_is_named_and_the_data_is_there_on_17() {
    what_fails_is_named_and_the_data_is_there(17);
}

/// Replay of what a subscription did takes a place for its replication origin.
#[test]
fn clusters_with_a_subscription_are_restored_in_part() {
    for major in majors().into_iter().filter(|major| [13, 17, 18].contains(major)) {
        let hostile = Hostile::start(major, Options::default().set("wal_level", "logical"));
        let rig = &hostile.rig;
        hostile.database("shop", ROWS);
        rig.cluster
            .sql_in("shop", "create subscription s connection 'host=/nowhere' publication p with (connect = false)");
        rig.backup();
        rig.cluster.sql("select pg_replication_origin_create('walkeep test')");
        rig.cluster.sql("select pg_replication_origin_advance('walkeep test', '0/1')");
        rig.settle();
        rig.restore(&["--database", "shop"]).expect_code(0);
        assert_eq!(hostile.rows("shop_restored", "public.t"), hostile.rows("shop", "public.t"), "{major}");
        rig.check_clean();
    }
}

/// An exporter connects to every database that it finds, and an administrator ends a session of walkeep's own.
#[test]
fn sessions_of_others_are_ended_and_its_own_is_opened_again() {
    let hostile = Hostile::start(QUICK, Options::default());
    let rig = &hostile.rig;
    hostile.database("shop", ROWS);
    rig.backup();
    rig.settle();
    let staged = "select datname from pg_database where datname like 'walkeep%'";
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let name = until(Duration::from_secs(120), || {
                let name = rig.cluster.sql(staged);
                (!name.is_empty()).then_some(name)
            });
            let name = name.expect("a database is being filled");
            let ended = until(Duration::from_secs(60), || {
                let end = "select pg_terminate_backend(pid) from pg_stat_activity \
                           where application_name = 'walkeep' and query like 'SELECT pg_catalog.pg_database_size%'";
                (!rig.cluster.sql(end).is_empty()).then_some(())
            });
            assert!(ended.is_some(), "walkeep's own session");
            // Ended by the restore, which is its error.
            rig.cluster.run("psql", &["-XAtq", "-d", &name, "-c", "select pg_sleep(300)"]);
        });
        rig.restore(&["--database", "shop"]).expect_code(0);
    });
    assert_eq!(hostile.rows("shop_restored", "public.t"), hostile.rows("shop", "public.t"));
    rig.check_clean();
}

/// PgBouncer, as Debian has it: options are refused, or dropped if it is told to.
#[test]
fn a_connection_pooler_is_called_that() {
    if !Path::new("/usr/sbin/pgbouncer").exists() {
        eprintln!("skipped: PgBouncer is not installed");
        return;
    }
    let hostile = Hostile::start(QUICK, Options::default());
    let rig = &hostile.rig;
    for ignored in ["extra_float_digits", "extra_float_digits, options"] {
        let pooler = Pooler::start(rig, ignored);
        let text = std::fs::read_to_string(rig.site.config()).unwrap();
        let own = rig.cluster.socket_conninfo();
        assert!(text.contains(&own), "{text}");
        rig.site.scratch().file("pooled.toml", &text.replace(&own, &pooler.conninfo));
        let config = rig.site.path().join("pooled.toml").display().to_string();
        let checked = rig.site.walkeep(&["--config", &config, "check"]);
        let told = format!("{}{}", checked.stdout, checked.stderr);
        assert!(told.contains("a connection pooler"), "{ignored}: {told}");
        let table = ["restore", "postgres", "main", "--table", "t", "--into", &pooler.conninfo];
        let refused: Finished = rig.site.walkeep(&table);
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert!(refused.stderr.contains("a connection pooler"), "{ignored}: {}", refused.stderr);
    }
}

struct Pooler {
    _process: Running,
    conninfo: String,
}

impl Pooler {
    fn start(rig: &Rig, ignored: &str) -> Self {
        let scratch = rig.site.scratch();
        let port = crate::support::cluster::free_port();
        let server = rig.cluster.socket_conninfo().replace(" user=postgres dbname=postgres", "");
        scratch.file("users", "\"postgres\" \"\"\n");
        let users = rig.site.path().join("users").display().to_string();
        let text = format!(
            "[databases]\n* = {server} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = any\nauth_file = {users}\npool_mode = transaction\n\
             ignore_startup_parameters = {ignored}\n"
        );
        let name = format!("pgbouncer-{port}");
        let config = scratch.file(&format!("{name}.ini"), &text);
        let mut command = process::command("/usr/sbin/pgbouncer", Orphan::Kill);
        command.arg(&config);
        let running = Running::start(command, &rig.site.path().join(format!("{name}.log")));
        let up = until(Duration::from_secs(20), || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        assert!(up.is_some(), "{}", running.output());
        Self { _process: running, conninfo: format!("host=127.0.0.1 port={port} user=postgres dbname=postgres") }
    }
}
