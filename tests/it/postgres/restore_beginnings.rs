//! Segments that no repository has whole: what was acknowledged of them is planned, restored, and judged, before a gap
//! and on a timeline that has just begun. The writers' own record says what must be there.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::support::process::{self, Finished, until};
use crate::support::waldump::lsn;
use crate::support::{Cluster, Options, QUICK, Running, Site};

/// A server with a receiver and a backup.
struct Scene {
    cluster: Cluster,
    site: Site,
    receiver: Running,
}

impl Scene {
    fn start() -> Scene {
        let options = Options::default().segment_size_mb(1).set("min_wal_size", "2MB").set("max_wal_size", "4MB");
        let cluster = Cluster::start(QUICK, options);
        let site = Site::for_cluster(&cluster);
        let text = fs::read_to_string(site.config()).unwrap();
        fs::write(site.config(), text + "\ncopy-every = \"1s\"\n").unwrap();
        cluster.sql("create table t (n int)");
        let receiver = site.spawn("receive", &["receive", "main"]);
        cluster.wait_for("select count(*) > 0 from pg_stat_replication");
        site.walkeep(&["backup", "postgres", "main"]).expect_ok();
        Scene { cluster, site, receiver }
    }

    fn insert(&self, n: u32) -> String {
        self.cluster.sql(&format!("insert into t values ({n}) returning pg_current_xact_id()"))
    }

    /// Everything that the server has written is received.
    fn received(&self) {
        self.cluster.wait_for("select flush_lsn = pg_current_wal_flush_lsn() from pg_stat_replication");
    }

    fn receive_again(&mut self) {
        self.receiver = self.site.spawn("receive-again", &["receive", "main"]);
    }

    /// The receiver ends, and the server removes WAL that it needs.
    fn lose_wal(&mut self) {
        assert!(self.receiver.terminate().success(), "{}", self.receiver.output());
        self.cluster.wait_for("select not active from pg_replication_slots");
        self.cluster.sql("select pg_drop_replication_slot(slot_name) from pg_replication_slots");
        self.cluster.sql("create table filler (text text)");
        for _ in 0..12 {
            self.cluster.sql("insert into filler select repeat('x', 500) from generate_series(1, 200)");
            self.cluster.switch_wal();
        }
        self.cluster.sql("checkpoint");
    }

    fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let (mut found, mut left) = (Vec::new(), vec![self.site.repository().join(folder)]);
        while let Some(folder) = left.pop() {
            for path in fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
                if path.is_dir() { left.push(path) } else { found.push(path) }
            }
        }
        found
    }

    fn tails(&self) -> Vec<PathBuf> {
        self.objects("main/wal/other")
            .into_iter()
            .filter(|path| path.extension().is_some_and(|e| e == "tail"))
            .collect()
    }

    /// Waits until a segment after the gap is archived.
    fn archived_after_gap(&self) {
        self.cluster.wait_for("select count(*) > 0 from pg_stat_replication");
        let name = self.cluster.switch_wal();
        let there = || self.objects("main/wal").iter().any(|path| path.ends_with(&name)).then_some(());
        until(Duration::from_secs(30), there).unwrap_or_else(|| panic!("{}", self.receiver.output()));
        assert!(!self.objects("main/gap").is_empty(), "{}", self.receiver.output());
    }

    fn plan(&self, options: &[&str]) -> Value {
        let finished = self.site.walkeep(&[&["plan", "postgres", "--json"], options].concat());
        serde_json::from_str(&finished.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", finished.stdout, finished.stderr))
    }

    fn restored(&self, name: &str, options: &[&str]) -> String {
        let pgdata = self.site.path().join(name);
        let into = ["restore", "postgres", "--pgdata", pgdata.to_str().unwrap()];
        self.site.walkeep(&[&into, options].concat()).expect_ok();
        let mut server = Cluster::adopt(QUICK, &pgdata);
        server.start_again();
        server.wait_for("select not pg_is_in_recovery()");
        rows(&server)
    }

    /// `cleanup` in ten days, with a window of one.
    fn cleanup_later(&self) {
        let mut command = process::command("env", process::Orphan::Kill);
        command.args(["LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1", "FAKETIME_DISABLE_SHM=1", "FAKETIME=+10d"]);
        command
            .arg(env!("CARGO_BIN_EXE_walkeep"))
            .args(["cleanup", "1", "--grace", "0", "--trust-this-clock"])
            .env("WALKEEP_CONFIG", self.site.config());
        process::run(command).expect_ok();
    }

    fn archive_get(&self, options: &[&str], name: &str) -> Finished {
        let dest = self.site.path().join("got");
        self.site.walkeep(&[&["archive-get"], options, &[name, dest.to_str().unwrap()]].concat())
    }
}

fn rows(server: &Cluster) -> String {
    server.sql("select string_agg(n::text, ',' order by n) from t")
}

fn segment_of(file: &std::path::Path) -> String {
    file.file_name().unwrap().to_str().unwrap()[..24].to_owned()
}

/// The receiver archives what it has of the segment before a gap as a `.tail`.
#[test]
fn the_last_commit_before_a_gap_is_restored_from_the_tail() {
    let mut scene = Scene::start();
    scene.insert(1);
    scene.cluster.switch_wal();
    let last = scene.insert(2);
    scene.received();
    scene.lose_wal();
    let lost = scene.insert(3);
    for _ in 0..6 {
        scene.cluster.switch_wal();
        scene.cluster.sql("insert into filler values ('y')");
    }
    scene.cluster.sql("checkpoint");
    scene.receive_again();
    scene.archived_after_gap();
    let tails = scene.tails();
    assert_eq!(tails.len(), 1, "{tails:?}");
    restores_up_to_the_gap(&scene, &last, &lost, &segment_of(&tails[0]));

    // Its length is in its name.
    let tail = fs::read(&tails[0]).unwrap();
    fs::write(&tails[0], &tail[..tail.len() - 1]).unwrap();
    assert!(scene.site.walkeep(&["verify"]).stdout.contains(".tail"));
    fs::write(&tails[0], tail).unwrap();

    // With the segments around it its time is up.
    scene.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    scene.cleanup_later();
    assert_eq!(scene.tails(), Vec::<PathBuf>::new());
}

fn restores_up_to_the_gap(scene: &Scene, last: &str, lost: &str, segment: &str) {
    let plan = scene.plan(&["--target-xid", last]);
    assert_eq!(plan["reachable"], true, "{plan}");
    assert_eq!(scene.restored("last", &["--target-xid", last]), "1,2");
    assert_eq!(scene.plan(&["--target-xid", lost])["reachable"], false);
    scene.site.walkeep(&["plan", "postgres", "--target-xid", lost]).expect_code(3);
    let list = scene.site.walkeep(&["list", "postgres", "--json"]).json();
    let gaps = list["clusters"][0]["gaps"].as_array().unwrap();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    let ends: Vec<u64> =
        list["clusters"][0]["windows"].as_array().unwrap().iter().map(|w| lsn(w["to_lsn"].as_str().unwrap())).collect();
    assert_eq!(ends, [lsn(gaps[0]["from_lsn"].as_str().unwrap())], "{list}");

    // A server without a target would take its end for the end of the archive, and promote.
    scene.archive_get(&[], segment).expect_code(206);
    scene.archive_get(&["--has-target"], segment).expect_ok();
}

/// The same from pieces alone, as after the loss of the receiver's machine.
#[test]
fn the_last_commit_before_a_gap_is_restored_from_pieces() {
    let mut scene = Scene::start();
    scene.insert(1);
    scene.cluster.switch_wal();
    let last = scene.insert(2);
    scene.received();
    scene.lose_wal();
    let lost = scene.insert(3);
    scene.cluster.sql("checkpoint");
    scene.receive_again();
    scene.archived_after_gap();
    assert!(scene.receiver.terminate().success());
    let tails = scene.tails();
    for tail in &tails {
        fs::remove_file(tail).unwrap();
    }
    let folder = scene.site.repository().join("main/piece");
    let away = scene.site.path().join("pieces");
    fs::rename(&folder, &away).unwrap();
    assert_eq!(scene.plan(&["--target-xid", &last])["reachable"], false, "nothing has it");
    fs::rename(&away, &folder).unwrap();
    restores_up_to_the_gap(&scene, &last, &lost, &segment_of(&tails[0]));
}

/// A restore in place, and a receiver that goes on with the new timeline: commits in its first segment are in pieces.
#[test]
fn the_first_segment_of_a_new_timeline_counts_before_it_is_whole() {
    let mut scene = Scene::start();
    let target = scene.insert(1);
    scene.insert(2);
    scene.received();
    scene.cluster.stop();
    assert!(scene.receiver.terminate().success(), "{}", scene.receiver.output());
    let data = scene.cluster.data().to_owned();
    let into = ["restore", "postgres", "--delta", "--pgdata", data.to_str().unwrap(), "--target-xid", &target];
    scene.site.walkeep(&into).expect_ok();
    scene.cluster.start_again();
    scene.cluster.wait_for("select not pg_is_in_recovery()");
    assert_eq!(rows(&scene.cluster), "1");
    scene.receive_again();
    scene.cluster.wait_for("select count(*) > 0 from pg_stat_replication");
    let newest = scene.insert(3);
    let end = lsn(&scene.cluster.sql("select pg_current_wal_lsn()"));
    scene.received();
    let copied = || {
        let names = scene.objects("main/piece/00000002");
        let end_of = |path: &PathBuf| u64::from_str_radix(&path.file_name().unwrap().to_str().unwrap()[17..], 16);
        names.iter().any(|path| end_of(path).is_ok_and(|until| until >= end)).then_some(())
    };
    until(Duration::from_secs(30), copied).unwrap_or_else(|| panic!("{:?}", scene.objects("main/piece")));
    assert!(scene.objects("main/wal/00000002").iter().all(|path| path.components().any(|c| c.as_os_str() == "files")));

    let health = scene.site.walkeep(&["health", "--json"]).stdout;
    assert!(!health.contains("does walkeep receive follow this server"), "{health}");
    let plan = scene.plan(&["--target-xid", &newest, "--target-timeline", "2"]);
    assert_eq!((&plan["reachable"], &plan["timeline"]), (&true.into(), &2.into()), "{plan}");
    assert!(scene.receiver.terminate().success());
    scene.cluster.stop_immediately();
    fs::remove_dir_all(scene.site.state_dir()).unwrap();
    assert_eq!(scene.restored("newest", &[]), "1,3");
}

/// A server whose user may not read the receiver's spool must not take that for the end of the archive.
#[test]
fn a_spool_that_cannot_be_read_proves_nothing() {
    let mut scene = Scene::start();
    scene.insert(1);
    let after = scene.cluster.switch_wal();
    scene.insert(2);
    scene.received();
    scene.receiver.kill9();
    let segment = scene.cluster.sql("select pg_walfile_name(pg_current_wal_lsn())");
    assert!(segment > after);
    let spool = scene.site.state_dir().join("spool");
    fs::remove_dir_all(scene.site.repository().join("main/piece")).ok();
    let folder = spool.join("main");
    let file = folder.join(format!("{segment}.tail"));
    for unread in [scene.site.state_dir(), spool, folder, file] {
        let readable = fs::metadata(&unread).unwrap().permissions();
        fs::set_permissions(&unread, fs::Permissions::from_mode(0o000)).unwrap();
        let refused = scene.archive_get(&[], &segment);
        assert!(refused.code.is_some_and(|code| code >= 200), "{unread:?}: {refused:?}");
        assert!(refused.stderr.contains("spool"), "{unread:?}: {refused:?}");
        fs::set_permissions(&unread, readable).unwrap();
    }
    scene.archive_get(&[], &segment).expect_ok();
}
