//! `restore_command` as PostgreSQL calls it: what it is told decides whether it replays, stops or promotes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::process::until;
use crate::support::{Cluster, Options, QUICK, Site};

/// A server that archives, and a copy of its data directory from before anything interesting.
struct Scene {
    site: Site,
    cluster: Cluster,
    base: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let site = Site::new();
        site.init(&[]).expect_ok();
        let options = Options::default().set("archive_mode", "on").set("archive_command", site.archive_command());
        let cluster = Cluster::start(QUICK, options);
        cluster.sql("create table t (n int)");
        let base = site.scratch().directory("base");
        fs::remove_dir(&base).unwrap();
        cluster
            .run("pg_basebackup", &["-D", &base.to_string_lossy(), "-X", "none", "-c", "fast", "--no-sync"])
            .expect_ok();
        Scene { site, cluster, base }
    }

    /// Inserts one row and ends the segment; the row's number is its segment's.
    fn segment(&self, n: u32) -> String {
        self.cluster.sql(&format!("insert into t values ({n})"));
        self.cluster.switch_wal()
    }

    fn archived(&self, segment: &str) {
        self.cluster
            .wait_for(&format!("select coalesce(max(last_archived_wal), '') >= '{segment}' from pg_stat_archiver"));
    }

    /// The copy, ready to recover through `archive-get` with these settings.
    fn restored(&self, settings: &str) -> Cluster {
        let restored = Cluster::adopt(QUICK, &self.base);
        fs::write(self.base.join("recovery.signal"), "").unwrap();
        let command = self.site.restore_command();
        let more = format!(
            "\narchive_mode = off\nrestore_command = '{command}'\nrecovery_target_action = promote\n{settings}\n"
        );
        let config = self.base.join("postgresql.conf");
        let text = fs::read_to_string(&config).unwrap() + &more;
        fs::write(config, text).unwrap();
        restored
    }

    fn object(&self, segment: &str) -> PathBuf {
        self.site
            .repository()
            .join("main/wal")
            .join(segment.get(..8).unwrap())
            .join(segment.get(8..16).unwrap())
            .join(segment)
    }
}

fn rows(cluster: &Cluster) -> String {
    cluster.wait_for("select not pg_is_in_recovery()");
    cluster.sql("select string_agg(n::text, ',' order by n) from t")
}

#[test]
fn recovery_replays_all_there_is_and_cleans_up() {
    let scene = Scene::new();
    let segments: Vec<String> = (1..=12).map(|n| scene.segment(n)).collect();
    scene.archived(&segments[11]);
    let mut restored = scene.restored("");
    restored.start_again();
    assert_eq!(rows(&restored), "1,2,3,4,5,6,7,8,9,10,11,12");
    restored.stop();
    let left = |dir: &Path| -> Vec<String> {
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.starts_with(".walkeep")).collect()
    };
    // A process that still fetches ahead notices that its directory is gone.
    let clean = until(Duration::from_secs(10), || left(scene.site.path()).is_empty().then_some(()));
    assert!(clean.is_some(), "{:?}", left(scene.site.path()));
    assert!(left(&scene.base).is_empty() && left(&scene.base.join("pg_wal")).is_empty());
}

#[test]
fn a_hole_or_damage_stops_recovery_and_never_promotes() {
    let scene = Scene::new();
    let segments: Vec<String> = (1..=5).map(|n| scene.segment(n)).collect();
    scene.archived(&segments[4]);
    let object = scene.object(&segments[2]);
    let stored = fs::read(&object).unwrap();
    let mut restored = scene.restored("");
    let mut damaged = stored.clone();
    damaged[stored.len() / 2] ^= 1;
    for broken in [None, Some(&stored[..stored.len() / 2]), Some(&damaged)] {
        match broken {
            Some(bytes) => fs::write(&object, bytes).unwrap(),
            None => fs::remove_file(&object).unwrap(),
        }
        let log = restored.try_start().expect_err("it came up past a hole");
        assert!(log.contains("FATAL"), "{log}");
        assert!(!log.contains("selected new timeline"), "{log}");
        assert!(scene.base.join("recovery.signal").exists());
    }
    // The repository is out of reach for a while.
    fs::write(&object, &stored).unwrap();
    let away = scene.site.path().join("away");
    fs::rename(scene.site.repository(), &away).unwrap();
    let log = restored.try_start().expect_err("it came up without its archive");
    assert!(!log.contains("selected new timeline"), "{log}");
    fs::rename(&away, scene.site.repository()).unwrap();
    restored.start_again();
    assert_eq!(rows(&restored), "1,2,3,4,5");
}

#[test]
fn the_tail_of_a_timeline_that_a_promotion_cut_is_restored() {
    let scene = Scene::new();
    let segments: Vec<String> = (1..=3).map(|n| scene.segment(n)).collect();
    scene.archived(&segments[2]);
    let standby = scene
        .cluster
        .standby(Options::default().set("archive_mode", "on").set("archive_command", scene.site.archive_command()));
    // Committed, replicated, and in a segment that timeline 1 never completes.
    scene.cluster.sql("insert into t values (77)");
    let lsn = scene.cluster.current_lsn();
    standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{lsn}'"));
    let mut cluster = scene.cluster;
    cluster.kill9();
    standby.promote();
    standby.sql("insert into t values (88)");
    let first = standby.switch_wal();
    standby.wait_for(&format!("select coalesce(max(last_archived_wal), '') >= '{first}' from pg_stat_archiver"));
    let scene = Scene { cluster, ..scene };

    let mut along_the_old = scene.restored("recovery_target_timeline = '1'");
    along_the_old.start_again();
    assert_eq!(rows(&along_the_old), "1,2,3,77");
}

#[test]
fn a_standby_is_told_to_ask_again() {
    let scene = Scene::new();
    let segments: Vec<String> = (1..=3).map(|n| scene.segment(n)).collect();
    scene.archived(&segments[2]);
    let dest = scene.site.scratch().directory("dest").join("RECOVERYXLOG");
    let dest = dest.to_string_lossy();
    let get = |name: &str, more: &[&str]| {
        let arguments = [&["archive-get", name, &dest], more].concat();
        scene.site.walkeep(&arguments).code
    };
    assert_eq!(get(&segments[1], &["--standby"]), Some(0));
    fs::remove_file(scene.object(&segments[1])).unwrap();
    assert_eq!(get(&segments[1], &["--standby"]), Some(1));
    assert!(get(&segments[1], &[]).unwrap() > 125);
    assert_eq!(get("00000007.history", &[]), Some(1));
    assert!(get("no such name", &[]).unwrap() > 125);
    assert!(scene.site.walkeep(&["archive-get"]).code.unwrap() > 125);
    assert!(scene.site.walkeep(&["--config", "/nowhere", "archive-get", &segments[0], &dest]).code.unwrap() > 125);
}
