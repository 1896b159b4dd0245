//! Restores over an old data directory: the same as a fresh restore, file by file, and whenever it is killed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::end_to_end::{Attached, started};
use crate::support::{Cluster, Options, QUICK, process};

/// Every file's mode and content, every link's destination.
pub(super) fn tree(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let (mut found, mut left) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = left.pop() {
        let metadata = path.symlink_metadata().unwrap();
        let content = if metadata.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else if metadata.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else {
            fs::read(&path).unwrap()
        };
        found.insert(path.strip_prefix(root).unwrap().to_owned(), (metadata.permissions().mode(), content));
    }
    found
}

fn same(one: &Path, other: &Path, when: &str) {
    let (one, other) = (tree(one), tree(other));
    let names = one.keys().chain(other.keys());
    let differ: Vec<&PathBuf> = names.filter(|name| one.get(*name) != other.get(*name)).collect();
    assert!(differ.is_empty(), "{when}: {differ:?}");
}

/// A fresh restore's tablespace lies elsewhere; nothing else of it may differ.
fn rename_space(fresh: &Path, mapped: &Path, space: &Path) {
    for entry in fs::read_dir(fresh.join("pg_tblspc")).unwrap() {
        let link = entry.unwrap().path();
        fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(space, &link).unwrap();
    }
    let text = fs::read_to_string(fresh.join("tablespace_map")).unwrap();
    fs::write(fresh.join("tablespace_map"), text.replace(&*mapped.to_string_lossy(), &space.to_string_lossy()))
        .unwrap();
}

#[test]
fn an_old_directory_becomes_what_a_fresh_restore_makes_whenever_it_is_killed() {
    let seed: u64 = rand::random();
    let mut random = SmallRng::seed_from_u64(seed);
    let mut it = Attached::start(QUICK, Options::default().segment_size_mb(1));
    let space = it.site.scratch().directory("space");
    it.cluster.sql(&format!("create tablespace s location '{}'", space.display()));
    it.cluster.sql(
        "create table t as select n, repeat('x', 500) as filler from generate_series(1, 60000) n; create \
        index on t (n)",
    );
    it.cluster
        .sql("create table u tablespace s as select n from generate_series(1, 50000) n; create table gone as select 1");
    it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    it.cluster.sql("insert into t select n, 'later' from generate_series(60001, 61000) n");
    it.cluster.sql("select pg_create_restore_point('before the accident')");
    it.cluster.sql(
        "drop table gone; update t set filler = 'lost' where n % 9 = 0; create table more as select * from \
        t; truncate u",
    );
    it.archive();
    let data = it.cluster.data().to_owned();
    let pgdata = data.to_string_lossy().into_owned();
    let delta = ["restore", "postgres", "--pgdata", &pgdata, "--delta", "--target-name", "before the accident"];

    let refused = it.site.walkeep(&delta).expect_code(2);
    assert!(refused.stderr.contains("stop it first"), "{}", refused.stderr);
    it.cluster.sql("insert into more values (0, 'still there')");
    let mut other = Cluster::start(QUICK, Options::default());
    other.stop();
    let (there, before) = (other.data().to_string_lossy().into_owned(), tree(other.data()));
    let refused = it.site.walkeep(&["restore", "postgres", "--pgdata", &there, "--delta"]).expect_code(2);
    assert!(refused.stderr.contains("is of the cluster"), "{}", refused.stderr);
    assert!(before == tree(other.data()), "it was touched");

    it.end_receiver();
    it.cluster.sql("insert into more select n, 'nowhere else' from generate_series(1, 100) n");
    let unarchived = it.cluster.sql("select pg_walfile_name(pg_current_wal_lsn())");
    it.cluster.stop();
    // Nobody else has what was written last; it is said by whoever only asks, and before it is removed.
    let planned = it.site.walkeep(&["plan", "postgres", "--pgdata", &pgdata]).expect_ok();
    assert!(planned.contains("of WAL that no repository has"), "{planned}");
    assert!(planned.contains(&unarchived), "{unarchived}: {planned}");
    let (fresh, mapped) = (it.site.path().join("fresh"), it.site.path().join("fresh space"));
    let mapping = format!("{}={}", space.display(), mapped.display());
    let target = ["--target-name", "before the accident", "--tablespace-mapping", &mapping];
    let plain = ["restore", "postgres", "--pgdata", &*fresh.to_string_lossy()];
    it.site.walkeep(&[&plain[..], &target].concat()).expect_ok();
    rename_space(&fresh, &mapped, &space);
    let (mut killed, mut disarmed) = (0, 0);
    for n in 0..10 {
        let mut run = it.site.spawn(&format!("run{n}"), &delta);
        std::thread::sleep(Duration::from_millis(random.random_range(20..400)));
        if run.ended().is_none() {
            run.kill9();
            killed += 1;
        } else {
            assert!(run.wait(Duration::from_secs(1)).success(), "seed {seed}\n{}", run.output());
        }
        // Whatever has a pg_control and was begun is whole.
        let begun = data.join("walkeep.restoring").exists();
        disarmed += u32::from(begun && !data.join("global/pg_control").exists());
    }
    println!("{killed} of 10 killed, {disarmed} times halfway, seed {seed}");
    let told = it.site.walkeep(&delta).expect_code(0);
    assert!(told.stdout.contains("were there"), "{}", told.stdout);
    same(&data, &fresh, &format!("seed {seed}"));
    same(&space, &mapped, &format!("seed {seed}"));
    assert!(!data.join("walkeep.restoring").exists());

    // Of what is there already, nothing is fetched but pg_control, which was taken away first.
    let again = it.site.walkeep(&[&delta[..], &["--json"]].concat()).expect_ok();
    let again: serde_json::Value = serde_json::from_str(&again).unwrap();
    let bytes = |name: &str| again["restored"][name].as_u64().unwrap();
    assert_eq!(bytes("bytes") - bytes("reused_bytes"), 8192);

    check_it_runs(started(QUICK, data));
}

fn check_it_runs(mut restored: Cluster) {
    assert_eq!(restored.sql("select count(*), sum(n) from t"), "61000|1860530500");
    assert_eq!(
        restored.sql("select (select count(*) from u), (select count(*) from gone), to_regclass('more') is null"),
        "50000|1|t"
    );
    let amcheck = restored.program("pg_amcheck");
    if amcheck.exists() && restored.try_sql("create extension amcheck").is_ok() {
        restored.run("pg_amcheck", &["--all", "--heapallindexed"]).expect_ok();
    }
    restored.stop();
    let checked = restored.data().to_string_lossy().into_owned();
    let mut check = process::command(restored.program("pg_checksums"), process::Orphan::Kill);
    check.args(["--check", "-D", &checked]);
    process::run(check).expect_ok();
}
