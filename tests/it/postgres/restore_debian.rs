//! Clusters with Debian's layout, whose configuration is outside the data directory and so in no backup.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::end_to_end::Attached;
use crate::support::process::{self, Finished, Orphan, until};
use crate::support::{Options, QUICK, Scratch, Site, cluster, installed};

/// A server that is stopped in the end, by its data directory.
struct Stopped(PathBuf);

impl Drop for Stopped {
    fn drop(&mut self) {
        let major = fs::read_to_string(self.0.join("PG_VERSION")).unwrap_or_default();
        if let Ok(major) = major.trim().parse()
            && self.0.join("postmaster.pid").exists()
        {
            let mut command = process::command(installed::bin(major).join("pg_ctl"), Orphan::Kill);
            command.arg("-D").arg(&self.0).args(["-m", "immediate", "-w", "-s", "stop"]);
            process::run(command);
        }
    }
}

/// One statement, asked at an address from `--json`.
fn ask(major: u32, document: &serde_json::Value, statement: &str) -> String {
    let address = &document["reached"]["address"];
    let host = address["socket_dir"].as_str().unwrap();
    let mut command = process::command(installed::bin(major).join("psql"), Orphan::Kill);
    command.args(["-h", host, "-p", &address["port"].to_string(), "-U", "postgres", "-XAtqc", statement]);
    process::run(command).expect_ok().trim().to_owned()
}

fn json(finished: Finished) -> serde_json::Value {
    finished.json()
}

#[test]
fn a_copy_of_a_cluster_without_configuration_in_its_directory_starts() {
    for major in [QUICK, 17] {
        // What the configuration outside asks of a standby must not be lost.
        let options = Options::default().segment_size_mb(1).debian_layout().set("max_connections", 130);
        let mut it = Attached::start(major, options);
        assert!(!it.cluster.data().join("postgresql.conf").exists());
        it.cluster.sql("create table t as select 1 as n");
        it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
        it.cluster.sql("insert into t values (2)");
        it.archive();
        let plan = it.site.walkeep(&["plan", "postgres", "main"]).expect_ok();
        let plan = plan.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(plan.contains("has no postgresql.conf"), "{plan}");

        // With none at all: walkeep writes files that set nothing.
        let copy = it.site.path().join("copy");
        let _stopped = Stopped(copy.clone());
        let bin = installed::bin(major);
        let sockets = format!("-p {} -k {}", cluster::free_port(), it.site.path().display());
        let restore = |data: &Path, more: &[&str]| {
            let (data, bin) = (data.to_string_lossy(), bin.to_string_lossy());
            let start = ["restore", "postgres", "main", "--pgdata", &data, "--pg-bindir", &bin, "--start", "--json"];
            it.site.walkeep(&[&start, more].concat())
        };
        let done = json(restore(&copy, &["--server-options", &sockets]));
        assert_eq!(ask(major, &done, "select sum(n) from t"), "3");
        assert_eq!(ask(major, &done, "show max_connections"), "130", "what the WAL demands");
        let notes = done["restored"]["notes"].to_string();
        assert!(notes.contains("--config-file"), "{notes}");

        // With the original's, which names the original's directory and has an old target: the copy is started.
        let config = it.cluster.config_file();
        let extra = config.parent().unwrap().join("conf.d/old.conf");
        fs::write(&extra, "recovery_target_time = '2020-01-01 00:00:00+00'\nmax_connections = 20\n").unwrap();
        let second = it.site.path().join("second");
        let _stopped = Stopped(second.clone());
        let config = config.to_string_lossy().into_owned();
        let done = json(restore(&second, &["--config-file", &config, "--server-options", &sockets_of(&it)]));
        assert_eq!(ask(major, &done, "select sum(n) from t"), "3");
        assert_eq!(ask(major, &done, "show data_directory"), second.to_string_lossy());
        assert_eq!(ask(major, &done, "show config_file"), config);
        assert_eq!(ask(major, &done, "show max_connections"), "130");
        let notes = done["restored"]["notes"].to_string();
        assert!(notes.contains("hba_file is") && notes.contains("data_directory is set to"), "{notes}");
        fs::remove_file(&extra).unwrap();

        // In place: the file is known from the last start.
        it.cluster.stop();
        let data = it.cluster.data().to_owned();
        let _stopped = Stopped(data.clone());
        let done = json(restore(&data, &["--delta", "--server-options", &sockets_of(&it)]));
        assert_eq!(ask(major, &done, "show config_file"), config);
        assert_eq!(ask(major, &done, "select sum(n) from t"), "3");
        assert!(!data.join("postgresql.conf").exists());
    }
}

fn sockets_of(it: &Attached) -> String {
    format!("-p {} -k {}", cluster::free_port(), it.site.path().display())
}

/// Clusters as Debian's tools make them, under a root of their own.
struct DebianRoot {
    scratch: Scratch,
    started: Vec<(String, PathBuf)>,
}

impl DebianRoot {
    /// `None` if Debian's tools are not here.
    fn new() -> Option<DebianRoot> {
        let here = Path::new("/usr/bin/pg_createcluster").exists() && installed::bin(QUICK).ends_with("bin");
        let packaged = Path::new(&format!("/usr/lib/postgresql/{QUICK}/bin/initdb")).exists();
        (here && packaged).then(|| DebianRoot { scratch: Scratch::new(), started: Vec::new() })
    }

    fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = process::command(program, Orphan::Kill);
        command.env("PG_CLUSTER_CONF_ROOT", self.scratch.join("etc")).args(arguments);
        command
    }

    /// `pg_createcluster`. Gives the data directory and the port.
    fn create(&mut self, name: &str) -> (PathBuf, u16) {
        self.scratch.directory("etc");
        let (data, port) = (self.scratch.join(format!("{name}-data")), cluster::free_port());
        let version = QUICK.to_string();
        let (dir, log) = (data.to_string_lossy().into_owned(), self.scratch.join(format!("{name}.log")));
        let sockets = self.scratch.directory("sockets");
        let mut command = self.command("pg_createcluster", &[&version, name, "-d", &dir, "-p", &port.to_string()]);
        command.arg("-l").arg(&log).arg("-s").arg(&sockets).args(["--no-status", "--start-conf", "manual"]);
        command.args(["--", "--no-sync", "-U", "postgres"]);
        process::run(command).expect_ok();
        self.started.push((name.to_owned(), data.clone()));
        (data, port)
    }

    fn control(&self, name: &str, action: &str) -> Finished {
        let version = QUICK.to_string();
        process::run(self.command("pg_ctlcluster", &["--skip-systemctl-redirect", &version, name, action]))
    }

    fn psql(&self, port: u16, statement: &str) -> Finished {
        let mut command = process::command(installed::bin(QUICK).join("psql"), Orphan::Kill);
        command.arg("-h").arg(self.scratch.join("sockets")).args(["-p", &port.to_string(), "-U", "postgres"]);
        command.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statement]);
        process::run(command)
    }
}

impl Drop for DebianRoot {
    fn drop(&mut self) {
        self.started.iter().for_each(|(_, data)| drop(Stopped(data.clone())));
    }
}

#[test]
fn clusters_of_debians_tools_are_restored_in_place_and_into_a_new_cluster() {
    let Some(mut debian) = DebianRoot::new() else {
        println!("skipped: no postgresql-common here");
        return;
    };
    let (data, port) = debian.create("main");
    debian.control("main", "start").expect_ok();
    let site = Site::new();
    let conninfo = format!("host={} port={port} user=postgres", debian.scratch.join("sockets").display());
    site.init(&["--connection", &conninfo]).expect_ok();
    let _receiver = site.spawn("receive", &["receive", "main"]);
    let attached = until(Duration::from_secs(60), || {
        let count = debian.psql(port, "select count(*) from pg_stat_replication").expect_ok();
        (count.trim() == "1").then_some(())
    });
    assert!(attached.is_some());
    debian.psql(port, "create table t as select 1 as n").expect_ok();
    site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    debian.psql(port, "insert into t values (2); select pg_switch_wal()").expect_ok();
    debian.psql(port, "select pg_create_restore_point('here')").expect_ok();
    let planned = until(Duration::from_secs(60), || {
        (site.walkeep(&["plan", "postgres", "main", "--target-name", "here"]).code == Some(0)).then_some(())
    });
    assert!(planned.is_some());

    // In place.
    debian.control("main", "stop").expect_ok();
    fs::remove_dir_all(data.join("base/1")).unwrap();
    let etc = debian.scratch.join("etc");
    let restore = |data: &Path, more: &[&str]| {
        let mut command = site.command();
        command.env("PG_CLUSTER_CONF_ROOT", &etc);
        command.args(["restore", "postgres", "main", "--target-name", "here", "--pgdata"]).arg(data).args(more);
        process::run(command)
    };
    let done = restore(&data, &["--delta", "--start", "--json"]).json();
    assert_eq!(done["restored"]["config_file"], debian.scratch.join("etc/15/main/postgresql.conf").to_str().unwrap());
    assert_eq!(done["reached"]["address"]["port"], port);
    assert_eq!(debian.psql(port, "select sum(n) from t").expect_ok().trim(), "3");
    // Debian's tools know it, and start it again.
    debian.control("main", "stop").expect_ok();
    debian.control("main", "start").expect_ok();
    assert_eq!(debian.psql(port, "select sum(n), pg_is_in_recovery() from t").expect_ok().trim(), "3|f");

    // Beside it, into a cluster that was created for it: its own configuration is found by its directory.
    let (other, other_port) = debian.create("other");
    fs::remove_dir_all(&other).unwrap();
    let done = restore(&other, &["--start", "--json"]).json();
    assert_eq!(done["reached"]["address"]["port"], other_port, "{done}");
    assert_eq!(debian.psql(other_port, "select sum(n) from t").expect_ok().trim(), "3");
    assert_eq!(debian.psql(port, "show data_directory").expect_ok().trim(), data.to_string_lossy());
    assert_eq!(debian.psql(other_port, "show data_directory").expect_ok().trim(), other.to_string_lossy());

    // The port of the first one is taken while it runs.
    debian.control("other", "stop").expect_ok();
    let config = debian.scratch.join("etc/15/main/postgresql.conf");
    let third = debian.scratch.join("third");
    let done = restore(&third, &["--start", "--json", "--config-file", &config.to_string_lossy()]).json();
    let _stopped = Stopped(third.clone());
    assert_eq!(done["reached"]["address"]["private"], true, "{done}");
    assert_eq!(ask(QUICK, &done, "show data_directory"), third.to_string_lossy());
    fs::remove_dir_all(done["reached"]["address"]["socket_dir"].as_str().unwrap()).ok();
}
