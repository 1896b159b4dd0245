//! Two repositories with the same archive, one of which lacks something or is unreachable: each command reports which.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::support::process::{Running, until};
use crate::support::redis::second_repository;
use crate::support::{Cluster, Options, QUICK, Site};

/// A cluster whose receiver fills `local` and `second`, with a backup in both.
struct Pair {
    cluster: Cluster,
    site: Site,
    second: PathBuf,
    receiver: Running,
    label: String,
}

impl Pair {
    fn start() -> Self {
        let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
        let site = Site::for_cluster(&cluster);
        let second = second_repository(&site, "");
        let mut config = fs::File::options().append(true).open(site.config()).unwrap();
        config.write_all(b"copy-every = \"1h\"\n").unwrap();
        let receiver = site.spawn("receive", &["receive", "main"]);
        cluster.wait_for("select count(*) > 0 from pg_stat_replication");
        let label = site.walkeep(&["backup", "postgres", "main"]).expect_ok().trim().to_owned();
        let pair = Self { cluster, site, second, receiver, label };
        for _ in 0..4 {
            pair.cluster.sql("create table if not exists t (n int); insert into t values (1)");
            pair.cluster.switch_wal();
        }
        let equal = until(Duration::from_secs(60), || (pair.segments_are_equal()).then_some(()));
        assert!(equal.is_some(), "{}", pair.receiver.output());
        // Old enough not to be on their way.
        for path in files(&pair.site.repository().join("main")).into_iter().chain(files(&pair.second.join("main"))) {
            let file = fs::File::options().write(true).open(path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
        pair
    }

    /// The segments of a repository, sorted.
    fn segments(&self, repository: &Path) -> Vec<PathBuf> {
        files(&repository.join("main/wal"))
    }

    fn segments_are_equal(&self) -> bool {
        let names = |of: &Path| {
            let names: Vec<PathBuf> =
                self.segments(of).iter().map(|path| path.strip_prefix(of).unwrap().to_owned()).collect();
            names
        };
        let (local, second) = (names(&self.site.repository()), names(&self.second));
        local.len() >= 4 && local == second
    }

    fn moved(&self) -> PathBuf {
        self.site.path().join("moved")
    }

    fn take_second_away(&self) {
        fs::rename(&self.second, self.moved()).unwrap();
    }

    fn put_second_back(&self) {
        fs::rename(self.moved(), &self.second).unwrap();
    }
}

/// Every file under a folder, sorted.
fn files(folder: &Path) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { found.push(path) }
        }
    }
    found.sort();
    found
}

#[test]
fn verify_names_what_one_of_two_repositories_lacks() {
    let mut pair = Pair::start();
    // The receiver would copy what is lacking.
    assert!(pair.receiver.terminate().success(), "{}", pair.receiver.output());
    let verified = pair.site.walkeep(&["verify"]).expect_code(0);
    assert!(verified.stdout.contains("everything is there and right"), "{}", verified.stdout);

    let segments = pair.segments(&pair.second);
    let taken = &segments[segments.len() / 2];
    let name = taken.file_name().unwrap().to_str().unwrap();
    let aside = pair.site.path().join("aside");
    fs::rename(taken, &aside).unwrap();
    let (backups, no_backups) = (pair.second.join("main/backup"), pair.site.path().join("backups"));
    assert!(!files(&backups).is_empty(), "the backup is not where this test looks for it");
    fs::rename(&backups, &no_backups).unwrap();
    let found = pair.site.walkeep(&["verify"]).expect_code(6);
    for part in [&format!("second lacks segment {name}"), &format!("second lacks backup {}", pair.label)] {
        assert!(found.stdout.contains(part.as_str()), "{part:?} is missing in\n{}", found.stdout);
    }
    assert!(!found.stdout.contains("local lacks"), "{}", found.stdout);
    let json: serde_json::Value = serde_json::from_str(&pair.site.walkeep(&["verify", "--json"]).stdout).unwrap();
    let main = &json["clusters"][0];
    assert_eq!((&json["whole"], &main["gaps"][0]["repository"]), (&false.into(), &"second".into()), "{json:#}");
    assert_eq!(main["lacking"][0]["repository"], "second");

    fs::rename(&aside, taken).unwrap();
    fs::rename(&no_backups, &backups).unwrap();
    pair.site.walkeep(&["verify"]).expect_ok();
}

#[test]
fn an_unreachable_repository_is_named_and_the_other_one_used() {
    let pair = Pair::start();
    pair.take_second_away();
    let verified = pair.site.walkeep(&["verify"]).expect_code(5);
    assert!(verified.stdout.contains("repository second was NOT verified"), "{}", verified.stdout);
    assert!(!verified.stdout.contains("everything is there and right"), "{}", verified.stdout);
    pair.put_second_back();
    pair.site.walkeep(&["verify"]).expect_ok();
}
