//! `archive_command` as PostgreSQL calls it: every file archived once, whole and durable, or refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::support::process::{self, until};
use crate::support::{Cluster, Finished, Options, QUICK, Site, majors};

/// A server whose `archive_command` is ours, and nothing else brings WAL.
fn archiving(major: u32, options: Options) -> (Site, Cluster) {
    let site = Site::new();
    site.init(&[]).expect_ok();
    let options = options.set("archive_mode", "on").set("archive_command", site.archive_command());
    (site, Cluster::start(major, options))
}

/// Waits until everything up to the segment just ended is archived.
fn archived(cluster: &Cluster, segment: &str) {
    cluster.wait_for(&format!(
        "select coalesce(max(last_archived_wal), '') >= '{segment}' from pg_stat_archiver where last_archived_wal !~ \
            'history'"
    ));
}

fn push(site: &Site, path: &Path) -> Finished {
    site.walkeep(&["archive-push", &path.to_string_lossy()])
}

fn object(site: &Site, name: &str) -> PathBuf {
    site.repository().join("main/wal").join(name.get(..8).unwrap()).join(name.get(8..16).unwrap()).join(name)
}

/// All objects of the repository with their content's hash.
fn objects(site: &Site) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![site.repository()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((path.clone(), blake3::hash(&fs::read(path).unwrap()).to_hex().to_string()));
            }
        }
    }
    found.sort();
    found
}

/// A segment that the server has finished, copied to where the test may change it.
fn copied(site: &Site, cluster: &Cluster, segment: &str) -> PathBuf {
    let folder = site.scratch().directory("copy");
    let copy = folder.join(segment);
    fs::copy(cluster.pg_wal().join(segment), &copy).unwrap();
    rustix::fs::chmod(&copy, rustix::fs::Mode::from_raw_mode(0o644)).unwrap();
    copy
}

/// Refused in a way that lets PostgreSQL try again, and for this reason.
fn refused(finished: &Finished, says: &str) {
    let code = finished.code.unwrap_or(-1);
    assert!((1..=125).contains(&code), "{}: {code}", finished.command);
    assert!(finished.stderr.contains(says), "{says:?} is not in {}", finished.stderr);
}

#[test]
fn every_major_archives_every_file() {
    for major in majors() {
        let size = if major == 13 { 1 } else { 16 };
        let (site, cluster) = archiving(major, Options::default().segment_size_mb(size));
        cluster.sql("create table t (n int)");
        let mut segments = Vec::new();
        for n in 0..4 {
            cluster.sql(&format!("insert into t select generate_series(1, 1000 * {n})"));
            segments.push(cluster.switch_wal());
        }
        archived(&cluster, &segments[3]);
        for segment in &segments {
            assert!(object(&site, segment).exists(), "{major}: {segment}");
        }
        assert_eq!(cluster.sql("select failed_count from pg_stat_archiver"), "0", "{major}: {}", cluster.log());
    }
}

#[test]
fn the_same_again_is_success_and_another_content_is_refused() {
    let (site, cluster) = archiving(QUICK, Options::default());
    let segment = cluster.switch_wal();
    archived(&cluster, &segment);
    let before = objects(&site);
    let copy = copied(&site, &cluster, &segment);
    push(&site, &copy).expect_ok();

    // What follows the switch does not count: a standby's copy may differ there.
    let mut bytes = fs::read(&copy).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    assert!(end < bytes.len() - 8192, "the segment is full");
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&copy, &bytes).unwrap();
    push(&site, &copy).expect_ok();

    // What precedes it does. PostgreSQL must see 1 to 125.
    bytes[9000] ^= 1;
    fs::write(&copy, &bytes).unwrap();
    refused(&push(&site, &copy), "different content");
    // A record of the fork is all that is new.
    let (forks, others): (Vec<_>, Vec<_>) =
        objects(&site).into_iter().partition(|(path, _)| path.to_string_lossy().contains("/main/fork/"));
    assert_eq!((forks.len(), others), (1, before));
}

#[test]
fn what_is_not_whole_or_not_of_this_cluster_is_refused() {
    let (site, cluster) = archiving(QUICK, Options::default());
    let segment = cluster.switch_wal();
    archived(&cluster, &segment);
    cluster.sql("create table t ()");
    let next = cluster.switch_wal();
    archived(&cluster, &next);
    let before = objects(&site);
    let copy = copied(&site, &cluster, &segment);
    let whole = fs::read(&copy).unwrap();
    for len in [0, 100, 1 << 20, whole.len() - 1] {
        fs::write(&copy, &whole[..len]).unwrap();
        refused(&push(&site, &copy), "bytes");
    }
    // One segment under another's name.
    let wrong = copy.with_file_name("0000000100000000000000F0");
    fs::write(&wrong, &whole).unwrap();
    refused(&push(&site, &wrong), "belongs at");
    // No file at all, and names that no server uses.
    for path in ["/nowhere/000000010000000000000001", "/etc", "/tmp/a b"] {
        refused(&push(&site, Path::new(path)), path.rsplit('/').next().unwrap());
    }
    // Another server, by mistake with the same configuration.
    let other = Cluster::start(QUICK, Options::default());
    other.sql("create table other ()");
    let foreign = copied(&site, &other, &other.switch_wal());
    refused(&push(&site, &foreign), "system identifier");
    assert_eq!(objects(&site), before);
}

#[test]
fn other_files_of_pg_wal_are_archived_too() {
    let (site, cluster) = archiving(QUICK, Options::default());
    cluster.sql("select pg_backup_start('x', true); select pg_backup_stop(false)");
    let label = fs::read_dir(cluster.pg_wal())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .find(|name| name.ends_with(".backup"))
        .unwrap();
    let archived = site.repository().join("main/wal/00000001/files").join(&label);
    assert!(until(Duration::from_secs(30), || archived.exists().then_some(())).is_some(), "{}", cluster.log());
    let folder = site.scratch().directory("files");
    for name in ["custom.file.1", "00000002.history"] {
        fs::write(folder.join(name), "1\t0/3000000\tno reason\n").unwrap();
        push(&site, &folder.join(name)).expect_ok();
        push(&site, &folder.join(name)).expect_ok();
        fs::write(folder.join(name), "1\t0/4000000\tno reason\n").unwrap();
        refused(&push(&site, &folder.join(name)), "different content");
    }
}

/// I1 by the operating system's own faults: whatever fails, success is never said, nothing is left under the segment's
/// name that is not whole, and the next attempt succeeds.
#[test]
fn no_fault_of_the_disk_is_taken_for_success() {
    let site = Site::new();
    site.init(&[]).expect_ok();
    let cluster = Cluster::start(QUICK, Options::default());
    cluster.sql("create table t as select generate_series(1, 10000)");
    let segments: Vec<String> = (0..6).map(|_| cluster.switch_wal()).collect();
    push(&site, &copied(&site, &cluster, &segments[0])).expect_ok();
    let faults = [
        ("fsync:error=EIO:when=1", 5),
        ("fsync:error=EIO:when=2", 5),
        ("write:error=ENOSPC", 5),
        ("linkat:error=EIO", 5),
        ("linkat:error=EACCES", 1),
    ];
    for ((fault, code), segment) in faults.iter().zip(&segments[1..]) {
        let copy = copied(&site, &cluster, segment);
        let mut strace = process::command("strace", process::Orphan::Kill);
        strace.args(["-f", "-qq", "-o", "/dev/null", "-e", &format!("inject={fault}")]);
        if fault.starts_with("write") {
            // Only the object's own bytes: the runtime wakes its threads by writes, too.
            strace.arg("-P").arg(format!("{}#1", object(&site, segment).display()));
        }
        strace.arg(env!("CARGO_BIN_EXE_walkeep")).arg("--config").arg(site.config()).arg("archive-push").arg(&copy);
        let finished = process::run(strace);
        assert_eq!(finished.code, Some(*code), "{fault}: {}", finished.stderr);
        push(&site, &copy).expect_ok();
        push(&site, &copy).expect_ok();
    }
    let files = objects(&site);
    let left: Vec<_> = files.iter().filter(|(path, _)| path.to_string_lossy().contains('#')).collect();
    assert!(left.len() <= 1, "{left:?}");
}

/// Killed at any moment, a push leaves either nothing or the whole object under the segment's name.
#[test]
fn a_push_killed_at_any_moment_is_settled_by_the_next() {
    let site = Site::new();
    site.init(&[]).expect_ok();
    let cluster = Cluster::start(QUICK, Options::default());
    cluster.sql("create table t as select generate_series(1, 10000)");
    let segment = cluster.switch_wal();
    let copy = copied(&site, &cluster, &segment);
    for delay in (0..40).step_by(3) {
        let mut timeout = Command::new("timeout");
        timeout.args(["-s", "KILL", &format!("0.{delay:03}")]);
        let mut inner = process::command(env!("CARGO_BIN_EXE_walkeep"), process::Orphan::Kill);
        inner.arg("--config").arg(site.config()).arg("archive-push").arg(&copy);
        timeout.arg(inner.get_program()).args(inner.get_args());
        process::run(timeout);
        if object(&site, &segment).exists() {
            push(&site, &copy).expect_ok();
            fs::remove_file(object(&site, &segment)).unwrap();
        }
    }
    push(&site, &copy).expect_ok();
}
