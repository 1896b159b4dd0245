//! Two repositories with the same archive, one of which lacks something or is unreachable: each command reports which.

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
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

    let listed = pair.site.walkeep(&["list", "--json"]).json();
    let [local, second] = [0_usize, 1].map(|nth| &listed["clusters"][0]["repositories"][nth]);
    assert_eq!(
        (&local["repository"], &local["backups"][0]),
        (&"local".into(), &pair.label.as_str().into()),
        "{listed:#}"
    );
    assert_eq!((&local["lacking"]["segments"], &second["lacking"]["segments"]), (&0.into(), &1.into()), "{listed:#}");
    assert_eq!((&second["lacking"]["first_segment"], &second["windows"]), (&name.into(), &serde_json::json!([])));
    assert_eq!(second["lacking"]["backups"][0], pair.label.as_str());
    let shown = pair.site.walkeep(&["list"]).expect_ok();
    assert!(shown.contains(&format!("second lacks WAL that another repository has: {name}")), "{shown}");
    assert!(shown.lines().all(|line| line.chars().count() <= 100), "{shown}");
    let health = pair.site.walkeep(&["health"]).expect_code(1);
    let bad = health.stdout.lines().find(|line| line.contains("repository   BAD second"));
    assert!(bad.is_some(), "{}", health.stdout);
    assert!(health.stdout.contains(&pair.label), "{}", health.stdout);
    let planned = pair.site.walkeep(&["plan", "postgres", "--json"]).json();
    assert_eq!(planned["reachable"], true, "local has all: {planned:#}");

    fs::rename(&aside, taken).unwrap();
    fs::rename(&no_backups, &backups).unwrap();
    pair.site.walkeep(&["verify"]).expect_ok();
    let listed = pair.site.walkeep(&["list", "--json"]).json();
    let [local, second] = [0_usize, 1].map(|nth| &listed["clusters"][0]["repositories"][nth]);
    for repository in [local, second] {
        assert_eq!(repository["windows"][0]["backups"][0], pair.label.as_str(), "{listed:#}");
        assert_eq!(repository["lacking"]["segments"], 0, "{listed:#}");
    }
}

#[test]
fn an_unreachable_repository_is_named_and_the_other_one_used() {
    let pair = Pair::start();
    pair.take_second_away();
    let verified = pair.site.walkeep(&["verify"]).expect_code(5);
    assert!(verified.stdout.contains("repository second was NOT verified"), "{}", verified.stdout);
    assert!(!verified.stdout.contains("everything is there and right"), "{}", verified.stdout);
    let shown = pair.site.walkeep(&["list"]).expect_ok();
    assert!(shown.contains("second is unreachable, and nothing here counts on it"), "{shown}");
    let listed = pair.site.walkeep(&["list", "--json"]).json();
    assert!(listed["clusters"][0]["repositories"][1]["unreachable"].is_string(), "{listed:#}");
    let planned = pair.site.walkeep(&["plan", "postgres", "--json"]).json();
    assert_eq!((&planned["reachable"], &planned["backup"]), (&true.into(), &pair.label.as_str().into()), "{planned:#}");
    let planned = pair.site.walkeep(&["plan", "postgres"]).expect_ok();
    assert!(planned.contains("repository second is unreachable"), "{planned}");
    let health = pair.site.walkeep(&["health"]).expect_code(1);
    assert!(health.stdout.contains("repository   BAD second cannot be reached"), "{}", health.stdout);
    assert!(health.stdout.contains("connected to slot walkeep"), "{}", health.stdout);
    pair.put_second_back();
    pair.site.walkeep(&["verify"]).expect_ok();
    let well = until(Duration::from_secs(60), || (pair.site.walkeep(&["health"]).code == Some(0)).then_some(()));
    assert!(well.is_some(), "{}", pair.site.walkeep(&["health"]).stdout);
}

/// The index remembers segments of a repository that is gone.
#[test]
fn a_plan_promises_only_what_a_reachable_repository_has() {
    let mut pair = Pair::start();
    assert!(pair.receiver.terminate().success(), "{}", pair.receiver.output());
    let end = |pair: &Pair| pair.site.walkeep(&["plan", "postgres", "--json"]).json()["target_lsn"].clone();
    let whole = end(&pair);
    let segments = pair.segments(&pair.site.repository());
    let last = segments.last().unwrap();
    fs::rename(last, pair.site.path().join("aside")).unwrap();
    assert_eq!(end(&pair), whole, "second has it");
    pair.take_second_away();
    let without = end(&pair);
    assert_ne!(without, whole, "no reachable repository has {}", last.display());
    let listed = pair.site.walkeep(&["list", "--json"]).json();
    assert_eq!(
        listed["clusters"][0]["windows"][0]["to_lsn"],
        listed["clusters"][0]["repositories"][0]["windows"][0]["to_lsn"]
    );
    pair.put_second_back();
    assert_eq!(end(&pair), whole);
}

/// A new cluster under the old name, on the old address, with lower positions.
#[test]
fn a_server_of_another_cluster_is_named() {
    let first = Cluster::start(QUICK, Options::default());
    let site = Site::for_cluster(&first);
    let mut receiver = site.spawn("receive", &["receive", "main"]);
    first.wait_for("select count(*) > 0 from pg_stat_replication");
    site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    assert!(receiver.terminate().success(), "{}", receiver.output());
    let second = Cluster::start(QUICK, Options::default());
    assert_ne!(first.system_identifier(), second.system_identifier());
    let config = fs::read_to_string(site.config()).unwrap();
    let other = config.replace(&first.socket_conninfo(), &second.socket_conninfo());
    assert_ne!(config, other, "the connection is written otherwise");
    fs::write(site.config(), other).unwrap();
    for command in ["health", "check"] {
        let found = site.walkeep(&[command, "main"]);
        assert_ne!(found.code, Some(0), "{command}: {}", found.stdout);
        let shown = found.stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        let identifier = format!("another cluster (system identifier {})", second.system_identifier());
        assert!(shown.contains(&identifier) && shown.contains(&first.system_identifier().to_string()), "{shown}");
    }
}

/// The only repository is gone, and all else is still reported.
#[test]
fn health_shows_the_server_without_the_only_repository() {
    let cluster = Cluster::start(QUICK, Options::default());
    let site = Site::for_cluster(&cluster);
    let _receiver = site.spawn("receive", &["receive", "main"]);
    cluster.wait_for("select count(*) > 0 from pg_stat_replication");
    fs::rename(site.repository(), site.path().join("moved")).unwrap();
    let health = site.walkeep(&["health"]).expect_code(1);
    for part in ["archive      BAD", "receiver     ok  connected to slot walkeep", "free for the spool"] {
        assert!(health.stdout.contains(part), "{part:?} is missing in\n{}", health.stdout);
    }
}

/// An object store that takes each connection and never answers.
struct SilentStore {
    port: u16,
    connections: Arc<Mutex<Vec<TcpStream>>>,
}

impl SilentStore {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::<Mutex<Vec<TcpStream>>>::default();
        let taken = Arc::clone(&connections);
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                taken.lock().unwrap().push(connection);
            }
        });
        Self { port, connections }
    }

    /// How many connections there were so far.
    fn asked(&self) -> usize {
        self.connections.lock().unwrap().len()
    }

    fn configure_in(&self, site: &Site) {
        let section = format!(
            "[repository.offsite]\nurl = \"s3://bucket/walkeep\"\nendpoint = \"http://127.0.0.1:{}\"\nallow-http = \
                true\nregion = \"us-east-1\"\naccess-key-id = \"a\"\nsecret-access-key = \"b\"\n\n[postgres.main]",
            self.port
        );
        let config = fs::read_to_string(site.config()).unwrap();
        site.scratch().file("walkeep.toml", &config.replacen("[postgres.main]", &section, 1));
    }
}

/// Each of these is a process of its own, which PostgreSQL starts for each segment and waits for.
#[test]
fn push_and_get_do_not_wait_again_and_again_for_a_repository_that_is_silent() {
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    let site = Site::for_cluster(&cluster);
    let store = SilentStore::start();
    store.configure_in(&site);
    let next = || {
        cluster.sql("create table if not exists t (n int); insert into t values (1)");
        cluster.pg_wal().join(cluster.switch_wal())
    };
    let push = |segment: &Path| site.walkeep(&["archive-push", segment.to_str().unwrap()]).expect_code(0).stderr;
    let first = next();
    let warned = push(&first);
    assert!(warned.contains("not in this repository") && warned.contains("offsite"), "{warned}");
    let asked = store.asked();
    assert!(asked > 0, "the repository was left out at once");
    for _ in 0..2 {
        let warned = push(&next());
        assert!(warned.contains("not asked again yet"), "{warned}");
    }
    assert_eq!(store.asked(), asked, "the repository was asked again");

    let name = first.file_name().unwrap().to_str().unwrap();
    let fetched = site.path().join("fetched");
    site.walkeep(&["archive-get", name, fetched.to_str().unwrap()]).expect_ok();
    assert_eq!(fs::read(&fetched).unwrap(), fs::read(&first).unwrap());

    // The pause has passed.
    fs::remove_file(site.state_dir().join("unreachable.json")).unwrap();
    push(&next());
    assert!(store.asked() > asked, "the repository was never asked again");
}

/// The receiver was started before the second repository was added, so its index is one of the first alone.
#[test]
fn an_index_of_a_lost_repository_stops_no_restore() {
    let mut pair = Pair::start();
    assert!(pair.receiver.terminate().success(), "{}", pair.receiver.output());
    // An index of other repositories: as if it had been made before the second one was added.
    fs::remove_dir_all(pair.site.state_dir().join("index")).unwrap();
    let config = fs::read_to_string(pair.site.config()).unwrap();
    let sections: Vec<&str> = config.split("\n[").collect();
    let alone = sections.iter().filter(|section| !section.starts_with("repository.second]")).copied();
    let alone = pair.site.scratch().file("alone.toml", &alone.collect::<Vec<_>>().join("\n["));
    pair.site.walkeep(&["--config", alone.to_str().unwrap(), "list"]).expect_ok();
    fs::rename(pair.site.repository(), pair.site.path().join("burnt")).unwrap();
    for command in [vec!["list"], vec!["plan", "postgres"], vec!["log"]] {
        let done = pair.site.walkeep(&command).expect_code(0);
        assert!(done.stderr.contains("reads the archive instead"), "{command:?}: {}", done.stderr);
    }
}
