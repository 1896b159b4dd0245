//! The command line as a user and a script meet it: `init` and `check` on real servers, and what every wrong call is
//! answered.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use crate::support::process::until;
use crate::support::{Cluster, Options, QUICK, Site};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// One line, which begins with the program's name and holds `says`; nothing on standard output; the code.
fn refused(site: &Site, arguments: &[&str], code: i32, says: &str) {
    let finished = site.walkeep(arguments).expect_code(code);
    assert_eq!(finished.stdout, "", "{arguments:?}");
    assert_eq!(finished.stderr.lines().count(), 1, "{arguments:?}: {}", finished.stderr);
    assert!(
        finished.stderr.starts_with("walkeep: ") && finished.stderr.contains(says),
        "{arguments:?}: {}",
        finished.stderr
    );
}

#[test]
fn init_sets_up_what_check_then_proves() {
    let cluster = Cluster::start(QUICK, Options::default());
    let site = Site::new();
    let said = site.init(&["--connection", &cluster.socket_conninfo()]).expect_ok();
    for part in ["main is set up", "archive_command = '", "archive-push %p'", "keep a copy", "walkeep --config"] {
        assert!(said.contains(part), "{part:?} is missing in:\n{said}");
    }
    assert!(!said.contains('\x1b'), "colours, although this is no terminal:\n{said}");
    assert_eq!(mode(&site.config()), 0o600);
    assert_eq!(mode(&site.path().join("walkeep.key")), 0o600);

    // Nothing brings WAL yet, and check says so.
    let finished = site.walkeep(&["check"]).expect_code(1);
    assert!(finished.stdout.contains("FAIL  segment       nothing brings WAL here"), "{}", finished.stdout);
    let report = site.walkeep(&["check", "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report.stdout).unwrap();
    assert_eq!(report["healthy"], false);
    let probes = site.repository().join("main/probe");
    assert!(fs::read_dir(&probes).map_or(true, |mut left| left.next().is_none()), "a probe was left in {probes:?}");
}

#[test]
fn init_overwrites_nothing() {
    let site = Site::new();
    site.init(&[]).expect_ok();
    let (config, key) = (fs::read(site.config()).unwrap(), fs::read(site.path().join("walkeep.key")).unwrap());
    // Nobody was asked, and nothing has come: that is not said to work.
    let checked = site.walkeep(&["check"]).expect_ok();
    assert!(checked.contains("no WAL has come yet") && !checked.contains("archiving works"), "{checked}");
    let again = site.init(&[]).expect_code(2);
    assert!(again.stderr.contains("exists already and is not overwritten"), "{}", again.stderr);
    fs::remove_file(site.config()).unwrap();
    let again = site.init(&[]).expect_code(2);
    assert!(again.stderr.contains("walkeep.key exists already and is not overwritten"), "{}", again.stderr);
    // With the key named, the repository that it opens is taken over as it is.
    let path = site.path().join("walkeep.key");
    site.init(&["--key-file", &path.to_string_lossy()]).expect_ok();
    assert_eq!((fs::read(site.config()).unwrap(), fs::read(path).unwrap()), (config, key));
    // Another key does not fit that repository, and no trace of it stays.
    fs::remove_file(site.config()).unwrap();
    let other = site.path().join("other.key");
    site.init(&["--key-file", &other.to_string_lossy()]).expect_code(6);
    assert!(!other.exists() && !site.config().exists());
}

#[test]
fn init_looks_at_the_server_before_it_writes() {
    let site = Site::new();
    let nobody = format!("host={} port=1", site.path().display());
    let finished = site.init(&["--connection", &nobody]).expect_code(5);
    assert!(finished.stderr.starts_with("walkeep: cannot connect for replication: "), "{}", finished.stderr);
    let left: Vec<_> = fs::read_dir(site.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_wrong_call_gets_one_line_and_its_code() {
    let site = Site::new();
    refused(&site, &["check"], 2, "cannot read the configuration");
    refused(&site, &["chekc"], 2, "unrecognized subcommand 'chekc'; a similar subcommand exists: 'check'");
    refused(&site, &["check", "--time-zone", "Mars"], 2, "\"Mars\" is no time zone");
    site.init(&[]).expect_ok();
    refused(&site, &["check", "sales"], 2, "nothing called \"sales\" is configured; there is main");
    let good = fs::read_to_string(site.config()).unwrap();
    fs::write(site.config(), good.replace("state-dir", "stat-dir")).unwrap();
    refused(
        &site,
        &["check"],
        2,
        "walkeep.toml:2: the top of the file has no key \"stat-dir\"; did you mean \"state-dir\"?",
    );
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_walkeep")).arg("--help").stdout(writer).output();
    let output = output.unwrap();
    assert_eq!((output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()), (Some(0), ""));
}

#[test]
fn trouble_of_a_restore_command_stops_postgresql_instead_of_promoting_it() {
    let site = Site::new();
    refused(&site, &["archive-get", "000000010000000000000001", "x"], 202, "cannot read the configuration");
    refused(&site, &["archive-get"], 202, "were not provided");
    refused(&site, &["archive-get", "--standby", "000000010000000000000001", "x"], 1, "cannot read the configuration");
}

/// Every key that the manual promises.
fn has_keys(value: &serde_json::Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "{key} is missing in {value:#}");
    }
}

#[test]
fn the_main_job_from_the_command_line() {
    let cluster = Cluster::start(QUICK, Options::default());
    let site = Site::for_cluster(&cluster);
    let mut receiver = site.spawn("receive", &["receive"]);
    cluster.wait_for("select count(*) = 1 from pg_stat_replication where application_name = 'walkeep'");
    let checked = site.walkeep(&["check"]).expect_ok();
    assert!(checked.contains("main: archiving works"), "{checked}");

    cluster.sql("create table kept as select 1 as x");
    let label = site.walkeep(&["backup", "postgres"]).expect_ok();
    let label = label.trim();
    assert_eq!(label.lines().count(), 1, "more than the label on standard output: {label}");
    let xid = cluster.sql("begin; insert into kept values (2); select pg_current_xact_id(); commit");
    cluster.sql("drop table kept");
    cluster.switch_wal();
    let end = cluster.current_lsn();
    cluster.switch_wal();

    let listed = until_planned(&site, &xid);
    has_keys(&listed, &PLAN);
    assert_eq!((&listed["reachable"], &listed["backup"]), (&true.into(), &label.into()));
    let shown = site.walkeep(&["plan", "postgres", "main", "--target-xid", &xid]).expect_ok();
    for part in ["reachable      yes", &format!("backup         {label}"), "To do it:", "--pgdata DIR"] {
        assert!(shown.contains(part), "{part:?} is missing in:\n{shown}");
    }
    assert!(shown.lines().all(|line| line.chars().count() <= 120), "{shown}");

    let listed = site.walkeep(&["list", "postgres", "main", "--json"]).json();
    let main = &listed["clusters"][0];
    has_keys(main, &["system_id", "backups", "windows", "gaps"]);
    assert_eq!(main["system_id"], cluster.system_identifier().to_string());
    has_keys(&main["backups"][0], &BACKUP);
    has_keys(&main["windows"][0], &["from_time", "to_time", "from_lsn", "to_lsn", "timeline"]);
    let shown = site.walkeep(&["list"]).expect_ok();
    assert!(shown.contains(label) && shown.contains("Gaps: none"), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 100), "{shown}");

    // To the end of a position, and then no further.
    let late = site.walkeep(&["plan", "postgres", "--target-lsn", "FFFF/0", "--json"]).expect_code(3);
    let late: serde_json::Value = serde_json::from_str(&late.stdout).unwrap();
    assert_eq!(late["reachable"], false);
    has_keys(&late["nearest_before"], &["lsn", "time", "backup", "options"]);
    refused(&site, &["plan", "postgres", "--backup", "nope"], 4, "there is no backup \"nope\"");
    refused(
        &site,
        &["plan", "postgres", "--target-time", "2026-11-22 14:00"],
        2,
        "has no time zone; it is 2026-11-22T14:00:00Z or",
    );

    assert!(receiver.terminate().success(), "{}", receiver.output());
    let ended = site.walkeep(&["receive", "--end-lsn", &end]).expect_code(0);
    assert_eq!(ended.stdout, "");
    assert!(site.walkeep(&["verify"]).expect_ok().contains("everything is there and right"));
    assert!(site.walkeep(&["index", "rebuild"]).expect_ok().starts_with("the index holds "));
    has_keys(&site.walkeep(&["index", "stats", "--json"]).json(), &["families", "timelines", "directory"]);

    let target = site.path().join("restored");
    let arguments = ["restore", "postgres", "--pgdata", &target.to_string_lossy(), "--target-xid", &xid];
    let restored = site.walkeep(&arguments).expect_ok();
    assert!(restored.contains("restored ") && restored.contains("start it with: pg_ctl -D"), "{restored}");
    let again = site.walkeep(&arguments).expect_code(2);
    assert!(again.stderr.contains("is not empty"), "{}", again.stderr);
    let mut copy = Cluster::adopt(QUICK, &target);
    copy.start_again();
    copy.wait_for("select not pg_is_in_recovery()");
    assert_eq!(copy.sql("select sum(x) from kept"), "3");
}

const PLAN: [&str; 12] = [
    "reachable",
    "reason",
    "target_lsn",
    "timeline",
    "backup",
    "last_commit_before",
    "first_commit_after",
    "wal_segments",
    "wal_bytes",
    "estimated_seconds",
    "nearest_before",
    "nearest_after",
];
const BACKUP: [&str; 8] =
    ["label", "started_at", "finished_at", "start_lsn", "stop_lsn", "timeline", "logical_bytes", "stored_bytes"];

/// The plan to just after this transaction, once its segment is archived.
fn until_planned(site: &Site, xid: &str) -> serde_json::Value {
    let arguments = ["plan", "postgres", "--target-xid", xid, "--json"];
    let planned = until(Duration::from_secs(60), || {
        let finished = site.walkeep(&arguments);
        assert!(matches!(finished.code, Some(0 | 3)), "{finished:?}");
        (finished.code == Some(0)).then(|| serde_json::from_str(&finished.stdout).unwrap())
    });
    planned.unwrap_or_else(|| panic!("{:?}", site.walkeep(&arguments)))
}

#[test]
fn damage_is_named_and_ends_with_six() {
    let cluster = Cluster::start(QUICK, Options::default().set("archive_mode", "on"));
    let site = Site::for_cluster(&cluster);
    cluster.set("archive_command", &site.archive_command());
    assert!(site.walkeep(&["check"]).expect_ok().contains("archiving works"), "by archive_command alone");
    site.walkeep(&["verify", "main"]).expect_ok();
    let segments = site.repository().join("main/wal/00000001/00000000");
    let object = fs::read_dir(segments).unwrap().next().unwrap().unwrap().path();
    let mut bytes = fs::read(&object).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&object, bytes).unwrap();
    let finished = site.walkeep(&["verify", "main"]).expect_code(6);
    let name = object.file_name().unwrap().to_string_lossy().into_owned();
    assert!(finished.stdout.contains("NOT WHOLE") && finished.stdout.contains(&name), "{}", finished.stdout);
    // PostgreSQL must not take it for the end of the archive.
    let dest = site.path().join("segment");
    let got = site.walkeep(&["archive-get", &name, &dest.to_string_lossy()]).expect_code(206);
    assert!(got.stderr.contains(&format!("walkeep: cannot fetch {name}: ")), "{}", got.stderr);
    assert!(!dest.exists());
}

#[test]
fn every_command_has_examples() {
    let site = Site::new();
    for command in [
        "init",
        "check",
        "receive",
        "archive-push",
        "archive-get",
        "backup",
        "list",
        "plan",
        "restore",
        "verify",
        "index",
    ] {
        let help = site.walkeep(&[command, "--help"]).expect_ok();
        assert!(help.contains("Example") || help.contains("In postgresql.conf"), "{command}: {help}");
        assert!(help.lines().all(|line| line.chars().count() <= 120), "{command}: {help}");
    }
    let help = site.walkeep(&["--help"]).expect_ok();
    assert!(help.contains("First steps:") && help.contains("Exit codes:"), "{help}");
}
