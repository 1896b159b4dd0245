//! What a commit was told is safe is there after the worst: server and receiver gone in the same moment, in the middle
//! of a segment; another repository in the place of the one that it was received for; a spool file with a changed bit.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::process::{self, Finished, until};
use crate::support::{Cluster, Options, QUICK, Site};

const PATIENCE: Duration = Duration::from_secs(60);

/// Acknowledged WAL that is only in the spool.
struct Spooled {
    cluster: Cluster,
    site: Site,
    /// Whole segments, as the server had them.
    segments: Vec<(String, Vec<u8>)>,
}

impl Spooled {
    /// A receiver whose repository went away, and which then was killed.
    fn new() -> Self {
        let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
        let site = Site::for_cluster(&cluster);
        let mut receiver = site.spawn("receive", &["receive"]);
        cluster.wait_for("select count(*) = 1 from pg_stat_replication where application_name = 'walkeep'");
        fs::rename(site.repository(), site.path().join("kept")).unwrap();
        cluster.sql("create table t (x text)");
        let mut segments = Vec::new();
        let flushed =
            "select coalesce(bool_or(flush_lsn = pg_current_wal_flush_lsn()), false) from pg_stat_replication";
        for _ in 0..3 {
            // Acknowledged in between, so that each file has several frames.
            for _ in 0..2 {
                cluster.sql("insert into t select md5(g::text) from generate_series(1, 1500) g");
                cluster.wait_for(flushed);
            }
            let name = cluster.switch_wal();
            segments.push((name.clone(), fs::read(cluster.pg_wal().join(&name)).unwrap()));
        }
        cluster.wait_for(flushed);
        receiver.kill9();
        let spooled = Spooled { cluster, site, segments };
        let files = spooled.files();
        assert!(spooled.segments.iter().all(|(name, _)| files.contains_key(&format!("{name}.tail"))), "{files:?}");
        spooled
    }

    /// The server removes what was acknowledged, as it may.
    fn forgotten_by_the_server(self) -> Self {
        let there = |(name, _): &(String, Vec<u8>)| self.cluster.pg_wal().join(name).exists();
        let gone = until(PATIENCE, || {
            self.cluster.sql("insert into t values ('x')");
            self.cluster.switch_wal();
            self.cluster.sql("checkpoint");
            (!self.segments.iter().any(there)).then_some(())
        });
        assert!(gone.is_some(), "the server keeps what was acknowledged");
        self
    }

    fn folder(&self) -> PathBuf {
        self.site.state_dir().join("spool/main")
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        files_in(&self.folder())
    }

    fn aside(&self) -> BTreeMap<String, Vec<u8>> {
        files_in(&self.folder().join("set-aside"))
    }

    /// `walkeep init` with this key file, for the same cluster, repository folder and state directory. Returns the
    /// configuration.
    fn init_again(&self, key_file: &Path) -> PathBuf {
        let config = self.site.path().join("other.toml");
        let mut command = process::walkeep();
        command.args(["init", "--cluster", "main", "--repository", &self.site.repository_url()]);
        command.args(["--connection", &self.cluster.socket_conninfo()]);
        command.arg("--state-dir").arg(self.site.state_dir()).arg("--config").arg(&config);
        process::run({
            command.arg("--key-file").arg(key_file);
            command
        })
        .expect_ok();
        config
    }

    fn put_the_repository_back(&self) {
        if self.site.repository().exists() {
            fs::rename(self.site.repository(), self.site.path().join("other")).unwrap();
        }
        fs::rename(self.site.path().join("kept"), self.site.repository()).unwrap();
    }

    /// Changes a bit after the first frames of the spool file of this segment, and returns the file.
    fn change_a_bit(&self, nth: usize) -> Vec<u8> {
        let path = self.folder().join(format!("{}.tail", self.segments[nth].0));
        let mut bytes = fs::read(&path).unwrap();
        let late = bytes.len() * 3 / 4;
        bytes[late] ^= 1;
        fs::write(&path, &bytes).unwrap();
        bytes
    }

    /// Receives with this configuration until its repository has all segments as the server had them.
    fn assert_archived(&self, config: &Path) {
        self.assert_some_archived(config, self.segments.iter());
    }

    fn assert_some_archived<'s>(&self, config: &Path, segments: impl Iterator<Item = &'s (String, Vec<u8>)>) {
        let mut receiver = self.site.spawn("again", &["--config", config.to_str().unwrap(), "receive", "-v"]);
        for (name, bytes) in segments {
            let dest = self.site.scratch().directory("out").join(name);
            // The spool would do for `archive-get`, too, as long as the file is there.
            let spooled = self.folder().join(format!("{name}.tail"));
            let got = until(PATIENCE, || {
                let got = with(config, &["archive-get", name, dest.to_str().unwrap()]);
                assert!(receiver.ended().is_none(), "{}", receiver.output());
                (got.code == Some(0) && !spooled.exists()).then_some(())
            });
            assert!(got.is_some(), "{name} is not archived\n{}", receiver.output());
            assert!(fs::read(&dest).unwrap() == *bytes, "{name} is not what the server had");
        }
        assert!(receiver.terminate().success(), "{}", receiver.output());
        let files = self.files();
        assert!(!self.segments.iter().any(|(name, _)| files.contains_key(&format!("{name}.tail"))), "{files:?}");
    }
}

fn files_in(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeMap::new() };
    let files = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file());
    files.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), fs::read(&path).unwrap())).collect()
}

fn with(config: &Path, arguments: &[&str]) -> Finished {
    let mut command = process::walkeep();
    command.arg("--config").arg(config).args(arguments);
    process::run(command)
}

/// The findings of `health --json` about the spool.
fn found_in_spool(config: &Path) -> Vec<String> {
    let health: serde_json::Value = serde_json::from_str(&with(config, &["health", "--json"]).stdout).expect("JSON");
    let findings = health["clusters"][0]["findings"].as_array().expect("findings");
    let spool = findings.iter().filter(|finding| finding["subject"] == "spool");
    spool
        .map(|finding| format!("{} {}", finding["level"].as_str().unwrap(), finding["text"].as_str().unwrap()))
        .collect()
}

/// The spool is not the repository's: neither another one nor another key may cost what was acknowledged.
#[test]
fn a_receiver_with_another_key_does_not_touch_the_spool() {
    let spooled = Spooled::new().forgotten_by_the_server();
    let before = spooled.files();
    let other = spooled.init_again(&spooled.site.path().join("other.key"));
    let ended = with(&other, &["receive"]).expect_code(6);
    let keys = spooled.site.state_dir().join("spool/keys");
    assert!(ended.stderr.contains(keys.to_str().unwrap()), "{}", ended.stderr);
    assert!(ended.stderr.contains("configure the key-encryption key"), "{}", ended.stderr);
    with(&other, &["health"]).expect_code(1);
    assert!(spooled.files() == before && spooled.aside().is_empty(), "the spool was touched");

    spooled.put_the_repository_back();
    spooled.assert_archived(&spooled.site.config());
    assert!(spooled.aside().is_empty());
}

#[test]
fn another_repository_gets_what_was_received_for_the_first_one() {
    let spooled = Spooled::new().forgotten_by_the_server();
    let other = spooled.init_again(&spooled.site.path().join("walkeep.key"));
    spooled.assert_archived(&other);
    assert!(spooled.aside().is_empty());
}

#[test]
fn a_spool_file_with_a_changed_bit_is_set_aside_and_reported() {
    let spooled = Spooled::new();
    spooled.put_the_repository_back();
    let (name, _) = &spooled.segments[1];
    let bytes = spooled.change_a_bit(1);
    // The server still has it.
    spooled.assert_archived(&spooled.site.config());
    let aside = format!("{name}.tail.1");
    assert!(spooled.aside() == BTreeMap::from([(aside.clone(), bytes)]), "{:?}", spooled.aside().keys());

    let aside = spooled.folder().join("set-aside").join(aside);
    let log = fs::read_to_string(spooled.site.path().join("again.log")).unwrap();
    assert!(log.contains("ERROR") && log.contains(aside.to_str().unwrap()), "{log}");
    let shown = spooled.site.walkeep(&["health"]).expect_code(1);
    assert!(shown.stdout.contains("spool        BAD "), "{}", shown.stdout);
    let number = u64::from_str_radix(&name[16..], 16).unwrap();
    let range = format!("WAL 0/{:X} to 0/{:X} of timeline 1", number << 20, (number + 1) << 20);
    let config = spooled.site.config();
    let found = found_in_spool(&config);
    let [said] = &found[..] else { panic!("{found:?}") };
    assert!(said.starts_with(&format!("bad {} is a damaged spool file with {range}; ", aside.display())), "{said}");
    let checked = with(&config, &["check", "--json"]).stdout;
    assert!(checked.contains(aside.to_str().unwrap()) && checked.contains(&range), "{checked}");
    fs::remove_file(&aside).unwrap();
    assert_eq!(found_in_spool(&config), [""; 0]);
}

/// The server no longer has what the file had after the damage: that is a gap, and nothing else is lost.
#[test]
fn what_is_before_and_after_the_damage_is_archived() {
    let spooled = Spooled::new().forgotten_by_the_server();
    spooled.put_the_repository_back();
    let bytes = spooled.change_a_bit(1);
    let (name, whole) = &spooled.segments[1];
    spooled.assert_some_archived(&spooled.site.config(), spooled.segments.iter().filter(|(other, _)| other != name));
    assert!(spooled.aside() == BTreeMap::from([(format!("{name}.tail.1"), bytes)]));
    let listed = spooled.site.walkeep(&["list", "--json"]).json();
    let gaps = listed["clusters"][0]["gaps"].as_array().unwrap_or_else(|| panic!("{listed}"));
    assert!(!gaps.is_empty(), "{listed}");
    // Its beginning, as long as its name says.
    let found = process::run({
        let mut command = process::command("find", process::Orphan::Kill);
        command.arg(spooled.site.repository()).args(["-name", &format!("{name}.*.tail*"), "-printf", "%f"]);
        command
    });
    let found = found.expect_ok();
    let len = usize::from_str_radix(found.split('.').nth(1).unwrap_or_default(), 16).expect(&found);
    assert!(0 < len && len < whole.len(), "{found}");
    assert_eq!(found_in_spool(&spooled.site.config()).len(), 1);
}

#[test]
fn a_commit_that_the_receiver_acknowledged_is_restored_from_its_spool() {
    let mut cluster = Cluster::start(QUICK, Options::default());
    let site = Site::for_cluster(&cluster);
    let mut receiver = site.spawn("receive", &["receive"]);
    cluster.wait_for("select count(*) = 1 from pg_stat_replication where application_name = 'walkeep'");
    site.walkeep(&["backup", "postgres"]).expect_ok();
    cluster.set("synchronous_standby_names", "walkeep");
    cluster.wait_for("select sync_state = 'sync' from pg_stat_replication");
    cluster.sql("create table kept (number int)");
    for number in 1..=50 {
        cluster.sql(&format!("insert into kept values ({number})"));
    }
    cluster.kill9();
    receiver.kill9();

    let restored = site.path().join("restored");
    let told = site.walkeep(&["restore", "postgres", "--pgdata", restored.to_str().unwrap()]).expect_ok();
    assert!(told.contains("reachable      yes"), "{told}");
    let mut restored = Cluster::adopt(QUICK, &restored);
    restored.start_again();
    restored.wait_for("select not pg_is_in_recovery()");
    assert_eq!(restored.sql("select count(*), max(number) from kept"), "50|50");
    restored.stop();
}

/// Two would write over each other's spool. The message says whom to end.
#[test]
fn a_second_receiver_on_the_same_state_is_refused() {
    let cluster = Cluster::start(QUICK, Options::default());
    let site = Site::for_cluster(&cluster);
    let mut receiver = site.spawn("receive", &["receive"]);
    cluster.wait_for("select count(*) = 1 from pg_stat_replication where application_name = 'walkeep'");
    let second = site.walkeep(&["receive"]).expect_code(1);
    let holder = format!("another `walkeep receive` (pid {}) uses", receiver.pid());
    assert!(second.stderr.contains(&holder), "{holder}\n{}", second.stderr);
    receiver.kill9();
    // The lock went with the process.
    let mut receiver = site.spawn("receive", &["receive"]);
    cluster.sql("create table later ()");
    cluster
        .wait_for("select coalesce(bool_or(flush_lsn = pg_current_wal_flush_lsn()), false) from pg_stat_replication");
    assert!(receiver.terminate().success(), "{}", receiver.output());
}
