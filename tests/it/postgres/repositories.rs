//! A second repository beside the first one: added while the receiver runs, filled, compared, and restored from alone.

use std::fs;
use std::time::Duration;

use crate::support::process::until;
use crate::support::store::S3;
use crate::support::workload::{Workload, transactions};
use crate::support::{Cluster, Options, QUICK, Site};

/// What `repository list --json` has of one repository.
fn listed(site: &Site, name: &str) -> serde_json::Value {
    let all = site.walkeep(&["repository", "list", "--json"]).json();
    let found = all["repositories"].as_array().unwrap().iter().find(|one| one["name"] == name);
    found.unwrap_or_else(|| panic!("{name} is not in {all:#}")).clone()
}

fn lacks(site: &Site, name: &str) -> u64 {
    listed(site, name)["lacking"][0]["objects"].as_u64().unwrap()
}

/// The local disk is lost; what the writer was told is committed is restored from the object store alone.
#[test]
fn a_repository_that_was_added_later_is_enough_to_restore() {
    let store = S3::start();
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1).set("max_prepared_transactions", 20));
    let site = Site::for_cluster(&cluster);
    let mut receiver = site.spawn("receive", &["receive", "main"]);
    cluster.wait_for("select count(*) > 0 from pg_stat_replication");
    let workload = Workload::start(&cluster, 2, 7);
    site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    let before = fs::read_to_string(site.config()).unwrap();

    // Encrypted, and beside a running receiver.
    let added = store.add_to(&site).expect_ok();
    assert!(added.contains("offsite is added") && added.contains("walkeep repository sync offsite"), "{added}");
    assert!(!added.contains("testtest"), "{added}");
    let after = fs::read_to_string(site.config()).unwrap();
    assert!(after.starts_with(&before) && after.contains("[repository.offsite]\n"), "{after}");
    assert_eq!(listed(&site, "offsite")["retention_hours"], 90 * 24);
    assert!(lacks(&site, "offsite") > 0);
    site.walkeep(&["repository", "check", "offsite"]).expect_code(1);
    let planned = site.walkeep(&["repository", "sync", "offsite", "--dry-run"]).expect_ok();
    assert!(planned.contains("main: offsite lacks "), "{planned}");
    assert!(lacks(&site, "offsite") > 0);

    let health = site.walkeep(&["health"]).expect_code(1).stdout;
    assert!(health.contains("offsite: the receiver does not store in it"), "{health}");
    let synced = site.walkeep(&["repository", "sync", "local", "offsite"]).expect_ok();
    assert!(synced.contains("main: copied "), "{synced}");
    // The receiver does not know it yet: what it stores from now on is lacking.
    cluster.switch_wal();
    until(Duration::from_secs(60), || (lacks(&site, "offsite") > 0).then_some(())).expect("something to lack");
    assert!(receiver.terminate().success());
    let mut receiver = site.spawn("receive", &["receive", "main"]);
    cluster.wait_for("select count(*) > 0 from pg_stat_replication");
    cluster.switch_wal();
    let complete = || site.walkeep(&["repository", "check"]).code.filter(|code| *code == 0);
    until(Duration::from_secs(60), complete).unwrap_or_else(|| {
        panic!("{}", site.walkeep(&["repository", "check"]).stdout);
    });

    std::thread::sleep(Duration::from_secs(1));
    let committed = workload.stop();
    // The server does not wait for the receiver, so its last WAL may still be on the way.
    cluster.sql("select pg_switch_wal()");
    cluster
        .wait_for("select coalesce(bool_or(flush_lsn >= pg_current_wal_flush_lsn()), false) from pg_stat_replication");
    assert!(receiver.terminate().success(), "{}", receiver.output());
    let aside = site.path().join("lost");
    fs::rename(site.repository(), &aside).unwrap();
    fs::remove_dir_all(site.state_dir()).unwrap();
    let state = listed(&site, "local");
    assert!(state["unreachable"].as_str().is_some_and(|why| why.contains("no repository")), "{state:#}");
    site.walkeep(&["repository", "check", "local"]).expect_code(5);

    site.walkeep(&["repository", "remove", "local"]).expect_code(5);
    let removed = site.walkeep(&["repository", "remove", "local", "--force"]).expect_ok();
    assert!(removed.contains("Nothing was deleted"), "{removed}");

    let data = site.path().join("restored");
    site.walkeep(&["restore", "postgres", "main", "--pgdata", &data.to_string_lossy()]).expect_ok();
    let mut restored = Cluster::adopt(QUICK, &data);
    restored.start_again();
    restored.wait_for("select not pg_is_in_recovery()");
    let found = transactions(&restored);
    let lost: Vec<_> = committed.difference(&found).collect();
    assert!(lost.is_empty() && !committed.is_empty(), "{} of {} are lost: {lost:?}", lost.len(), committed.len());
}

/// Names and places that are configured already, and what cannot be a repository: nothing is written.
#[test]
fn adding_refuses_what_is_there_and_what_does_not_work() {
    let site = Site::new();
    site.init(&[]).expect_ok();
    let before = fs::read(site.config()).unwrap();
    let refused = |arguments: &[&str], code, says: &str| {
        let refused = site.walkeep(&[&["repository", "add"], arguments].concat()).expect_code(code);
        assert!(refused.stderr.contains(says), "{arguments:?}: {}", refused.stderr);
        assert_eq!(fs::read(site.config()).unwrap(), before, "{arguments:?}");
    };
    let repository = site.repository();
    let local = repository.to_str().unwrap();
    refused(&["local", "/somewhere"], 2, "[repository.local] is configured already");
    refused(&["two", &format!("{local}/")], 2, "are the same place");
    let link = site.path().join("link");
    std::os::unix::fs::symlink(&repository, &link).unwrap();
    refused(&["two", link.to_str().unwrap()], 2, "is [repository.local]");
    refused(&["two", "file:///srv/a#b"], 2, "no # part");
    refused(&["two", "s3://bucket:9000/x"], 2, "endpoint");
    refused(&["two", "/proc/walkeep", "--retention", "90 dys"], 2, "retention = \"90 dys\"");
    refused(&["two", "/tmp/x", "--setting", "endpoint=x"], 2, "has no key \"endpoint\"");
    let foreign = site.scratch().join("foreign");
    fs::create_dir(&foreign).unwrap();
    fs::write(foreign.join("PG_VERSION"), "17").unwrap();
    refused(&["two", foreign.to_str().unwrap()], 2, "holds other files");

    // An empty one works, is complete, and goes again.
    let second = site.path().join("second");
    site.walkeep(&["repository", "add", "two", second.to_str().unwrap()]).expect_ok();
    site.walkeep(&["repository", "check"]).expect_ok();
    site.walkeep(&["repository", "sync", "two"]).expect_ok();
    site.walkeep(&["repository", "sync", "two", "two"]).expect_code(2);
    let removed = site.walkeep(&["repository", "remove", "two"]).expect_ok();
    assert!(removed.contains("Nothing was deleted"), "{removed}");
    assert_eq!(
        String::from_utf8(fs::read(site.config()).unwrap()).unwrap().trim_end(),
        String::from_utf8(before).unwrap().trim_end()
    );
    assert!(second.join("walkeep.json").exists());
    site.walkeep(&["repository", "remove", "local"]).expect_code(2);
}

/// What only one repository has is not given up without `--force`.
#[test]
fn removing_a_repository_that_alone_has_something_needs_force() {
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    let site = Site::for_cluster(&cluster);
    let second = site.path().join("second");
    site.walkeep(&["repository", "add", "two", second.to_str().unwrap()]).expect_ok();
    let mut receiver = site.spawn("receive", &["receive", "main"]);
    cluster.wait_for("select count(*) > 0 from pg_stat_replication");
    site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    cluster.switch_wal();
    let complete = || site.walkeep(&["repository", "check"]).code.filter(|code| *code == 0);
    until(Duration::from_secs(60), complete).unwrap_or_else(|| {
        panic!("{}", site.walkeep(&["repository", "check"]).stdout);
    });
    assert!(receiver.terminate().success());
    let wal = site.repository().join("main/wal/00000001/00000000");
    let segment = fs::read_dir(&wal).unwrap().next().unwrap().unwrap().path();
    let kept = fs::read(&segment).unwrap();
    fs::remove_file(&segment).unwrap();
    let refused = site.walkeep(&["repository", "remove", "two"]).expect_code(1);
    assert!(refused.stderr.contains("1 in main/wal"), "{}", refused.stderr);
    fs::write(&segment, kept).unwrap();
    let shown = site.walkeep(&["repository", "remove", "two"]).expect_ok();
    assert!(!shown.contains("only it had"), "{shown}");
    // With it: what is given up is shown.
    site.walkeep(&["repository", "add", "two", second.to_str().unwrap()]).expect_ok();
    fs::remove_file(&segment).unwrap();
    let shown = site.walkeep(&["repository", "remove", "two", "--force"]).expect_ok();
    assert!(shown.contains("only it had 1 objects in main/wal"), "{shown}");
}

/// The names of the packs in a folder.
fn packs(repository: &std::path::Path) -> std::collections::BTreeSet<std::path::PathBuf> {
    let mut found = std::collections::BTreeSet::new();
    let mut folders = vec![repository.join("main/pack")];
    while let Some(folder) = folders.pop() {
        for path in fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path);
            }
        }
    }
    found
}

/// A damaged pack holds back the backup that needs it from a repository that is being filled, and no other.
#[test]
fn a_damaged_pack_holds_back_only_the_backup_that_needs_it() {
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    let site = Site::for_cluster(&cluster);
    let mut receiver = site.spawn("receive", &["receive", "main"]);
    cluster.wait_for("select count(*) > 0 from pg_stat_replication");
    let labels = || -> Vec<String> {
        let names = fs::read_dir(site.repository().join("main/backup")).unwrap();
        let mut names: Vec<String> = names.map(|name| name.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    let before = packs(&site.repository());
    cluster.sql("create table t as select md5(n::text) from generate_series(1, 20000) n");
    site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    assert!(receiver.terminate().success(), "{}", receiver.output());
    let after = packs(&site.repository());
    let damaged = after.difference(&before).next().expect("a pack of the second backup alone");
    let mut bytes = fs::read(damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(damaged, bytes).unwrap();
    let [first, second] = labels().try_into().expect("two backups");

    let folder = site.path().join("second");
    site.walkeep(&["repository", "add", "two", folder.to_str().unwrap()]).expect_ok();
    let synced = site.walkeep(&["repository", "sync", "two"]).expect_code(6).stdout;
    assert!(synced.contains(&format!("not copied: main/backup/{second}")), "{synced}");
    assert!(folder.join("main/backup").join(&first).exists(), "{synced}");
    assert!(!folder.join("main/backup").join(&second).exists(), "{synced}");
    site.walkeep(&["repository", "remove", "local", "--force"]).expect_ok();
    fs::remove_dir_all(site.state_dir()).unwrap();
    let data = site.path().join("restored");
    site.walkeep(&["restore", "postgres", "main", "--pgdata", data.to_str().unwrap()]).expect_ok();
    let mut restored = Cluster::adopt(QUICK, &data);
    restored.start_again();
    restored.wait_for("select not pg_is_in_recovery()");
    assert_eq!(restored.sql("select count(*) from t"), "20000");
}

/// The manifest is there and a pack that it names is not: the backup does not restore from this repository.
#[test]
fn a_lost_pack_of_a_stored_backup_is_reported_and_filled() {
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    let site = Site::for_cluster(&cluster);
    let folder = site.path().join("second");
    site.walkeep(&["repository", "add", "two", folder.to_str().unwrap()]).expect_ok();
    site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    assert_eq!(lacks(&site, "two"), 0);
    let lost = packs(&folder).pop_first().expect("a pack");
    fs::remove_file(&lost).unwrap();
    assert_eq!(lacks(&site, "two"), 1);
    site.walkeep(&["repository", "check", "two"]).expect_code(1);
    let synced = site.walkeep(&["repository", "sync", "two"]).expect_ok();
    assert!(synced.contains("copied 1 object"), "{synced}");
    assert!(lost.exists());
    assert_eq!(lacks(&site, "two"), 0);
}
