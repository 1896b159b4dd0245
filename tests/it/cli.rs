//! The command line as a user and a script meet it: `init` and `check` on real servers, and what every wrong call is answered.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

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
    refused(&site, &["check", "sales"], 2, "no cluster \"sales\" is configured; there is main");
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
fn trouble_of_a_restore_command_stops_postgresql_instead_of_promoting_it() {
    let site = Site::new();
    refused(&site, &["archive-get", "000000010000000000000001", "x"], 202, "cannot read the configuration");
    refused(&site, &["archive-get"], 202, "were not provided");
    refused(&site, &["archive-get", "--standby", "000000010000000000000001", "x"], 1, "cannot read the configuration");
}
