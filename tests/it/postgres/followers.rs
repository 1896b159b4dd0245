//! Two repositories, of which one is unreachable, and a receiver that is killed: nothing waits for it, and it gets
//! everything in the end. The oracles are the names in the other repository's folder, and a restore from each alone.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::process::{Running, tail, until};
use crate::support::{Cluster, Options, QUICK, Site};

/// A cluster with small segments, and a site with a second repository behind a link that can be taken away.
struct Scene {
    cluster: Cluster,
    site: Site,
    link: PathBuf,
    folder: PathBuf,
}

impl Scene {
    fn new(policy: &str) -> Scene {
        let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
        cluster.sql("create table t (n int)");
        let site = Site::for_cluster(&cluster);
        let (link, folder) = (site.path().join("second"), site.path().join("second-disk"));
        site.scratch().directory("second-disk");
        symlink(&folder, &link).unwrap();
        site.add_repository("second", &format!("file://{}", link.display()));
        let text = fs::read_to_string(site.config()).unwrap();
        let usual = text.lines().find(|line| line.starts_with("acknowledge = ")).unwrap();
        let text = text.replace(usual, &format!("{policy}\ncopy-every = \"1s\""));
        site.scratch().file("walkeep.toml", &text);
        Scene { cluster, site, link, folder }
    }

    fn take_away(&self) {
        fs::remove_file(&self.link).unwrap();
    }

    fn put_back(&self) {
        symlink(&self.folder, &self.link).unwrap();
    }

    fn receive(&self) -> Running {
        self.site.spawn("receive", &["receive"])
    }

    /// A row in a segment of its own, whose name it is.
    fn row(&self, n: u32) -> String {
        self.cluster.sql(&format!("insert into t values ({n})"));
        self.cluster.switch_wal()
    }

    /// Waits until the first repository has this segment.
    fn await_archived(&self, segment: &str, receiver: &Running) {
        let stored = || objects(&self.site.repository()).iter().any(|key| key.ends_with(segment));
        let archived = until(Duration::from_secs(60), || stored().then_some(()));
        assert!(archived.is_some(), "{segment} is not archived\n{}", tail(&receiver.output(), 30));
    }

    /// Waits until both repositories have the same objects, and gives them.
    fn await_equal(&self, receiver: &Running) -> BTreeSet<String> {
        let equal = until(Duration::from_secs(90), || {
            let (first, second) = (objects(&self.site.repository()), objects(&self.folder));
            (first == second).then_some(first)
        });
        equal.unwrap_or_else(|| {
            let (first, second) = (objects(&self.site.repository()), objects(&self.folder));
            let missing: Vec<&String> = first.symmetric_difference(&second).collect();
            panic!("only one of them has {missing:?}\n{}", tail(&receiver.output(), 40))
        })
    }

    /// The rows that a restore gives, with these repositories configured.
    fn restored_rows(&self, keep: &[&str]) -> String {
        let text = fs::read_to_string(self.site.config()).unwrap();
        let (mut kept, mut dropping) = (String::new(), false);
        for line in text.lines() {
            if line.starts_with('[') {
                let kept = keep.iter().any(|name| {
                    line == format!("[repository.{name}]") || line.starts_with(&format!("[repository.{name}] "))
                });
                dropping = line.starts_with("[repository.") && !kept;
            }
            if !dropping {
                kept += &format!("{line}\n");
            }
        }
        let name = keep.join("-");
        let state = self.site.path().join(format!("state-{name}"));
        let kept = kept.replace(self.site.state_dir().to_str().unwrap(), state.to_str().unwrap());
        let config = self.site.scratch().file(&format!("{name}.toml"), &kept);
        let data = self.site.path().join(format!("restored-{name}"));
        let config = config.to_str().unwrap();
        let bin = self.cluster.program("postgres");
        let bindir = bin.parent().unwrap().to_str().unwrap();
        let arguments = ["--config", config, "restore", "postgres", "--pgdata", data.to_str().unwrap()];
        self.site.walkeep(&[arguments.as_slice(), &["--pg-bindir", bindir]].concat()).expect_ok();
        let mut server = Cluster::adopt(QUICK, &data);
        server.start_again();
        server.wait_for("select not pg_is_in_recovery()");
        let rows = server.sql("select string_agg(n::text, ',' order by n) from t");
        server.stop();
        rows
    }
}

/// The names of a repository's objects, but for its keys and for pieces, which do not stay.
fn objects(repository: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![repository.join("main")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let key = path.strip_prefix(repository).unwrap().to_str().unwrap().to_owned();
            if key.starts_with("main/piece") || key.contains('#') {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(key);
            }
        }
    }
    found
}

/// Nothing that needs all repositories is on the way of receiving, of a reconnect, or of a backup.
#[test]
fn a_repository_that_is_unreachable_delays_nothing_and_is_filled() {
    let mut scene = Scene::new("");
    scene.take_away();
    let mut receiver = scene.receive();
    scene.await_archived(&scene.row(1), &receiver);
    scene.cluster.restart();
    scene.await_archived(&scene.row(2), &receiver);
    let backup = scene.site.walkeep(&["backup", "postgres"]);
    backup.expect_ok();
    let last = scene.row(3);
    scene.await_archived(&last, &receiver);
    assert_eq!(objects(&scene.folder), BTreeSet::new());
    scene.put_back();
    let stored = scene.await_equal(&receiver);
    for part in ["main/backup/", "main/pack/", "main/cluster", &last] {
        assert!(stored.iter().any(|key| key.contains(part)), "{part} is not among {stored:?}");
    }
    scene.await_archived(&scene.row(4), &receiver);
    scene.await_equal(&receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    for keep in ["local", "second"] {
        assert_eq!(scene.restored_rows(&[keep]), "1,2,3,4", "{keep}");
    }
    // The day the first one burns its section is in the configuration still.
    fs::rename(scene.site.repository(), scene.site.path().join("burnt")).unwrap();
    assert_eq!(scene.restored_rows(&["local", "second"]), "1,2,3,4");
    scene.cluster.stop();
}

/// Segments that only one repository had when the receiver was killed are brought to the other.
#[test]
fn what_a_repository_lacks_after_a_kill_is_brought_to_it() {
    let mut scene = Scene::new("");
    let mut receiver = scene.receive();
    scene.await_archived(&scene.row(1), &receiver);
    scene.await_equal(&receiver);
    for round in 0..5 {
        scene.take_away();
        let mut last = String::new();
        for n in 0..4 {
            last = scene.row(10 * round + n);
        }
        scene.await_archived(&last, &receiver);
        receiver.kill9();
        scene.put_back();
        // What comes next goes into both.
        receiver = scene.receive();
        scene.await_archived(&scene.row(10 * round + 9), &receiver);
    }
    scene.await_equal(&receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    scene.site.walkeep(&["verify"]).expect_ok();
    scene.cluster.stop();
}

/// What counts as archived is what the policy names.
#[test]
fn the_server_keeps_what_the_required_repository_does_not_have() {
    let mut scene = Scene::new("acknowledge = { repositories = [\"second\"], at-least = 1 }");
    let mut receiver = scene.receive();
    scene.await_archived(&scene.row(1), &receiver);
    let acknowledged = |scene: &Scene, lsn: &str| {
        format!(
            "select coalesce(bool_or(flush_lsn >= '{lsn}'), false) from pg_stat_replication where '{}' <> ''",
            scene.folder.display()
        )
    };
    let reached = scene.cluster.current_lsn();
    scene.cluster.wait_for(&acknowledged(&scene, &reached));
    scene.take_away();
    let segment = scene.row(2);
    let beyond = scene.cluster.current_lsn();
    scene.await_archived(&segment, &receiver);
    scene.row(3);
    assert_eq!(scene.cluster.sql(&acknowledged(&scene, &beyond)), "f", "{}", receiver.output());
    scene.put_back();
    scene.cluster.wait_for(&acknowledged(&scene, &beyond));
    scene.await_equal(&receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    scene.cluster.stop();
}
