//! A tablespace that was made after the backup: replay works at its very path, which a live server may own.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::end_to_end::{Attached, started};
use crate::support::{Options, QUICK, majors};

/// Everything in a directory, by number, content and the time of its last change of any kind: `chmod` and the making of
/// what is there would show.
fn seen(directory: &Path) -> BTreeMap<PathBuf, (u64, i64, i64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut left = vec![directory.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let content = if metadata.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        if metadata.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.insert(path, (metadata.ino(), metadata.ctime(), metadata.ctime_nsec(), content));
    }
    found
}

#[test]
fn a_live_tablespace_is_never_replayed_into() {
    for major in majors() {
        let it = Attached::start(major, Options::default().segment_size_mb(1).set("autovacuum", "off"));
        it.cluster.sql("create table t as select n from generate_series(1, 1000) n");
        it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
        let space = it.site.scratch().directory("late space");
        it.cluster.sql("insert into t values (1001)");
        it.cluster.sql(&format!("create tablespace late location '{}'", space.display()));
        let oid = it.cluster.sql("select oid from pg_tablespace where spcname = 'late'");
        it.cluster.sql("create table precious tablespace late as select n from generate_series(1, 1000) n");
        it.cluster.sql("checkpoint");
        it.archive();
        let before = seen(&space);
        assert!(before.len() > 3, "{before:?}");

        let data = it.site.path().join("refused");
        let pgdata = data.to_string_lossy();
        let refused = it.site.walkeep(&["restore", "postgres", "--pgdata", &pgdata]).expect_code(3);
        let why = &refused.stderr;
        assert!(why.contains(&*space.to_string_lossy()) && why.contains(&oid) && why.contains("PG_"), "{why}");
        let planned = it.site.walkeep(&["plan", "postgres", "--pgdata", &pgdata, "--json"]).expect_code(3);
        let planned: serde_json::Value = serde_json::from_str(&planned.stdout).unwrap();
        assert_eq!(planned["reachable"], false);
        assert_eq!(planned["tablespaces_made"][0]["location"], space.to_string_lossy().as_ref());
        assert!(planned["tablespaces_made"][0]["time"].is_string(), "{planned}");
        assert!(!data.exists(), "nothing was touched");

        // The way out that it names.
        let lsn = why.split("--target-lsn ").nth(1).unwrap().split(' ').next().unwrap();
        // One major shows the rest; what they do in replay is the same.
        if major == QUICK {
            let restored = it.restore("before", &["--target-lsn", lsn, "--target-exclusive"]);
            assert_eq!(restored.sql("select count(*) from t"), "1001");
            assert_eq!(restored.sql("select to_regclass('precious') is null"), "t");
        }
        assert_eq!(seen(&space), before, "{major}: the live server's directory was touched");
        assert_eq!(it.cluster.sql("select count(*) from precious"), "1000");

        // Where the path is free, as on another machine, replay may have it: absent, or empty.
        let mut it = it;
        it.cluster.stop();
        fs::rename(&space, space.with_file_name("elsewhere")).unwrap();
        for name in ["absent", "empty"].into_iter().take(if major == QUICK { 2 } else { 1 }) {
            if name == "empty" {
                it.site.scratch().directory("late space");
            }
            let data = it.site.path().join(name);
            let told = it.site.walkeep(&["restore", "postgres", "--pgdata", &data.to_string_lossy()]).expect_code(0);
            assert!(told.stdout.contains("late space"), "a note says where replay will write: {}", told.stdout);
            let restored = started(major, data);
            assert_eq!(restored.sql("select count(*) from precious"), "1000", "{major} {name}");
            drop(restored);
            assert!(fs::read_dir(&space).unwrap().next().is_some(), "{major} {name}");
            fs::remove_dir_all(&space).unwrap();
        }
    }
}
