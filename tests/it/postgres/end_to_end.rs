//! The main job from end to end, on every major: WAL in, base backup, restore to a target, and the restored server
//! asked.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::process::{self, until};
use crate::support::waldump::lsn;
use crate::support::{Cluster, Options, QUICK, Running, Site, majors};

/// A server with a receiver attached, and its installation of walkeep.
pub(crate) struct Attached {
    pub(crate) cluster: Cluster,
    pub(crate) site: Site,
    receiver: Running,
}

impl Attached {
    pub(crate) fn start(major: u32, options: Options) -> Self {
        let cluster = Cluster::start(major, options);
        let site = Site::for_cluster(&cluster);
        let receiver = site.spawn("receive", &["receive", "main"]);
        cluster.wait_for("select count(*) > 0 from pg_stat_replication");
        Self { cluster, site, receiver }
    }

    /// Until everything written so far is in the repository.
    pub(crate) fn archive(&self) {
        self.cluster.switch_wal();
        archived(&self.site, &self.cluster);
    }

    /// What is written from now on is on the server alone.
    pub(crate) fn end_receiver(&mut self) {
        self.receiver.kill9();
    }

    pub(crate) fn restore(&self, name: &str, target: &[&str]) -> Cluster {
        let data = self.site.path().join(name);
        let pgdata = data.to_string_lossy();
        let command = [&["restore", "postgres", "main", "--pgdata", &pgdata], target].concat();
        self.site.walkeep(&command).expect_ok();
        started(self.cluster.major, data)
    }
}

/// Until the segment before the server's current one is in the repository.
fn archived(site: &Site, cluster: &Cluster) {
    let end = lsn(&cluster.sql("select pg_current_wal_lsn()"));
    let size = lsn_size(cluster);
    let there = until(Duration::from_secs(60), || {
        let list = site.walkeep(&["list", "postgres", "main", "--json"]).json();
        let to =
            list["clusters"][0]["windows"].as_array()?.iter().filter_map(|w| w["to_lsn"].as_str()).map(lsn).max()?;
        (to / size >= end / size).then_some(())
    });
    assert!(there.is_some(), "not archived: {}", site.walkeep(&["list", "postgres", "main"]).stdout);
}

fn lsn_size(cluster: &Cluster) -> u64 {
    cluster.sql("select setting from pg_settings where name = 'wal_segment_size'").parse().unwrap()
}

pub(crate) fn started(major: u32, data: PathBuf) -> Cluster {
    let mut restored = Cluster::adopt(major, &data);
    restored.start_again();
    restored.wait_for("select not pg_is_in_recovery()");
    restored
}

#[test]
fn every_major_comes_back() {
    for major in majors() {
        let it = Attached::start(major, Options::default().segment_size_mb(1));
        it.cluster.sql("create table t as select n from generate_series(1, 20000) n");
        it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
        it.cluster.sql("insert into t select n from generate_series(20001, 40000) n; create table later (x int)");
        it.cluster.sql("select pg_create_restore_point('before the accident')");
        it.cluster.sql("drop table t; insert into later values (1)");
        it.archive();

        let restored = it.restore("named", &["--target-name", "before the accident"]);
        assert_eq!(restored.sql("select count(*), sum(n) from t"), "40000|800020000", "{major}");
        assert_eq!(restored.sql("select count(*) from later"), "0");
        assert_eq!(restored.system_identifier(), it.cluster.system_identifier());
        assert_eq!(restored.sql("show archive_mode"), "off");

        let restored = it.restore("newest", &[]);
        assert_eq!(restored.sql("select to_regclass('t') is null, (select count(*) from later)"), "t|1", "{major}");
    }
}

#[test]
fn archive_command_alone_is_enough() {
    let site = Site::new();
    let options = Options::default().set("archive_mode", "on").set("archive_command", site.archive_command());
    let cluster = Cluster::start(QUICK, options);
    site.init(&["--connection", &cluster.socket_conninfo()]).expect_ok();
    cluster.sql("create table t as select 1 as n");
    site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    cluster.sql("insert into t values (2)");
    let last = cluster.switch_wal();
    cluster.wait_for(&format!("select last_archived_wal >= '{last}' from pg_stat_archiver"));

    let data = site.path().join("restored");
    site.walkeep(&["restore", "postgres", "main", "--pgdata", &data.to_string_lossy()]).expect_ok();
    assert_eq!(started(QUICK, data).sql("select sum(n) from t"), "3");
    assert_eq!(cluster.sql("select failed_count from pg_stat_archiver"), "0");
}

#[test]
fn tablespaces_and_unlogged_tables_come_back() {
    let it = Attached::start(QUICK, Options::default());
    let there = it.site.scratch().directory("fast");
    it.cluster.sql(&format!("create tablespace fast location '{}'", there.display()));
    it.cluster.sql(
        "create table t tablespace fast as select n from generate_series(1, 1000) n; create unlogged table \
        u as select 1 as n",
    );
    it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    it.cluster.sql("insert into t values (1001)");
    it.archive();

    let moved = it.site.scratch().join("moved");
    let mapping = format!("{}={}", there.display(), moved.display());
    let restored = it.restore("restored", &["--tablespace-mapping", &mapping]);
    assert_eq!(restored.sql("select count(*) from t"), "1001");
    assert_eq!(restored.sql("select count(*) from u"), "0");
    assert_eq!(
        restored.sql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'fast'"),
        moved.to_string_lossy()
    );
    assert_eq!(it.cluster.sql("select count(*) from t"), "1001");
}

/// Damage must stop recovery: a server that promotes instead has silently lost what came after (RestoreArchivedFile,
/// xlogarchive.c).
#[test]
fn damage_stops_recovery_instead_of_promoting() {
    let it = Attached::start(QUICK, Options::default().segment_size_mb(1));
    it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    for _ in 0..4 {
        it.cluster.sql(
            "create table if not exists t (filler text); insert into t select repeat('x', 1000) from \
            generate_series(1, 1000)",
        );
        it.archive();
    }
    let Attached { cluster, site, mut receiver } = it;
    assert!(receiver.terminate().success(), "{}", receiver.output());
    let data = site.path().join("restored");
    site.walkeep(&["restore", "postgres", "main", "--pgdata", &data.to_string_lossy()]).expect_ok();

    // The last but one of what recovery will ask for.
    let mut segments: Vec<PathBuf> = files(&site.repository().join("main/wal/00000001"));
    segments.sort();
    let broken = &segments[segments.len() - 2];
    let mut bytes = fs::read(broken).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(broken, bytes).unwrap();

    let mut restored = Cluster::adopt(QUICK, &data);
    if restored.try_start().is_ok() {
        until(Duration::from_secs(30), || (!restored.is_running()).then_some(()));
        let state = restored.try_sql("select pg_is_in_recovery()");
        assert!(state.is_err(), "still up, in recovery: {state:?}\n{}", process::tail(&restored.log(), 20));
    }
    assert!(restored.log().contains("FATAL"), "{}", restored.log());
    assert!(!restored.log().contains("selected new timeline"), "{}", restored.log());
    drop(cluster);
}

fn files(folder: &std::path::Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let is_segment = |path: &PathBuf| path.file_name().is_some_and(|name| name.len() == 24);
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).filter(is_segment).collect()
}
