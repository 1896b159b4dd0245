//! What a restore over an old data directory refuses: always before anything in it was touched, so that the old server
//! starts as before.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rustix::process::{Pid, Signal};

use super::end_to_end::{Attached, started};
use super::restore_delta::tree;
use crate::support::process::{self, until};
use crate::support::{Options, QUICK, scratch};

/// No wait is longer.
const LIMIT: Duration = Duration::from_secs(60);

/// A cluster with a backup and one row after it, archived.
fn archived(major: u32) -> Attached {
    let it = Attached::start(major, Options::default().segment_size_mb(1));
    it.cluster.sql("create table t as select 1 as n");
    it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    it.cluster.sql("insert into t values (2)");
    it.archive();
    it
}

fn packs(it: &Attached) -> Vec<PathBuf> {
    objects(it, "pack")
}

/// The files in the repository's folders of this name.
fn objects(it: &Attached, folder: &str) -> Vec<PathBuf> {
    let (mut found, mut left) = (Vec::new(), vec![it.site.repository()]);
    while let Some(path) = left.pop() {
        if path.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.components().any(|part| part.as_os_str() == folder) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn delta(data: &Path) -> Vec<String> {
    let words = ["restore", "postgres", "main", "--delta", "--pgdata"];
    words.iter().map(|word| (*word).to_owned()).chain([data.to_string_lossy().into_owned()]).collect()
}

fn run_delta(it: &Attached, data: &Path, more: &[&str]) -> process::Finished {
    let mut command = it.site.command();
    command.args(delta(data)).args(more);
    process::run(command)
}

/// Without the line breaks that fit a plan to the terminal.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The processes of a server, by their working directory.
fn processes_in(data: &Path) -> Vec<i32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let there = all.filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == data));
    there.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Refused with this code and these words, and nothing was changed.
fn refused(it: &Attached, data: &Path, code: i32, why: &str) {
    let before = tree(data);
    let answer = run_delta(it, data, &[]).expect_code(code);
    let text = one_line(&format!("{}{}", answer.stdout, answer.stderr));
    assert!(text.contains(why), "{text}");
    assert!(before == tree(data), "it was touched: {text}");
}

#[test]
fn a_pack_that_is_missing_or_damaged_leaves_the_old_server_as_it_is() {
    for major in [QUICK, 17] {
        let mut it = archived(major);
        let data = it.cluster.data().to_owned();
        it.cluster.stop();
        // Most of the directory is right, so that few packs are fetched: the proof is of all.
        let all = packs(&it);
        for pack in &all {
            let content = fs::read(pack).unwrap();
            fs::remove_file(pack).unwrap();
            let plan = it.site.walkeep(&["plan", "postgres", "main"]).expect_code(3);
            assert!(one_line(&plan.stdout).contains("in no reachable repository"), "{}", plan.stdout);
            refused(&it, &data, 3, "in no reachable repository");
            fs::write(pack, &content).unwrap();
            scratch::give(pack);
        }
        it.site.walkeep(&["plan", "postgres", "main"]).expect_ok();
        // A listing does not show damage; the first pack is opened before anything is touched.
        fs::write(data.join("PG_VERSION"), "0\n").unwrap();
        for pack in &all {
            let mut content = fs::read(pack).unwrap();
            let middle = content.len() / 2;
            content[middle] ^= 1;
            fs::write(pack, content).unwrap();
        }
        refused(&it, &data, 6, "");
        fs::write(data.join("PG_VERSION"), format!("{major}\n")).unwrap();
        it.cluster.start_again();
        assert_eq!(it.cluster.sql("select sum(n) from t"), "3", "{major}");
    }
}

#[test]
fn a_segment_that_is_missing_is_found_by_the_plan() {
    let mut it = archived(QUICK);
    let segment = it.cluster.sql("select pg_walfile_name(pg_create_restore_point('here'))");
    it.archive();
    let data = it.cluster.data().to_owned();
    it.cluster.stop();
    let target = ["--target-name", "here"];
    it.site.walkeep(&[&["plan", "postgres", "main"], &target[..]].concat()).expect_ok();
    // The index knows it still.
    let stored = objects(&it, "wal").into_iter().find(|path| path.to_string_lossy().contains(&segment));
    fs::remove_file(stored.expect("the segment")).unwrap();
    it.site.walkeep(&[&["plan", "postgres", "main"], &target[..]].concat()).expect_code(3);
    let before = tree(&data);
    run_delta(&it, &data, &target).expect_code(3);
    assert!(before == tree(&data), "it was touched");
    it.cluster.start_again();
    assert_eq!(it.cluster.sql("select sum(n) from t"), "3");
}

#[test]
fn a_backup_that_lost_a_pack_is_passed_over_for_an_older_one() {
    let it = archived(QUICK);
    let before = packs(&it);
    it.cluster.sql("create table u as select n, md5(n::text) from generate_series(1, 20000) n");
    it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    it.archive();
    let new: Vec<PathBuf> = packs(&it).into_iter().filter(|pack| !before.contains(pack)).collect();
    fs::remove_file(&new[0]).unwrap();
    let plan = it.site.walkeep(&["plan", "postgres", "main"]).expect_ok();
    assert!(plan.contains("cannot be restored"), "{plan}");
    let restored = it.restore("older", &[]);
    assert_eq!(restored.sql("select (select sum(n) from t), (select count(*) from u)"), "3|20000");
    let list = it.site.walkeep(&["list", "postgres", "main", "--json"]).json();
    let newest =
        list["clusters"][0]["backups"].as_array().unwrap().last().unwrap()["label"].as_str().unwrap().to_owned();
    it.site.walkeep(&["plan", "postgres", "main", "--backup", &newest]).expect_code(3);
}

#[test]
fn a_server_that_cannot_be_seen_is_not_ruled_out() {
    if process::server_user().is_none() {
        println!("skipped: only root makes namespaces");
        return;
    }
    let mut it = archived(QUICK);
    let data = it.cluster.data().to_owned();
    // As in a container that has the volume of another one: no process and no memory of the server is shown.
    let run = |more: &[&str]| {
        let mut inner = it.site.command();
        inner.args(delta(&data)).args(more);
        let mut command = Command::new("unshare");
        command.args(["--pid", "--ipc", "--fork", "--mount-proc"]).arg(inner.get_program()).args(inner.get_args());
        command.env("WALKEEP_CONFIG", it.site.config()).current_dir("/");
        process::run(command)
    };
    let answer = run(&[]).expect_code(2);
    assert!(answer.stderr.contains("a server may run in") && answer.stderr.contains("--force"), "{}", answer.stderr);
    it.cluster.sql("insert into t values (4)");
    assert!(data.join("postmaster.pid").exists() && !data.join("walkeep.restoring").exists());
    // Where the server is seen, no word of the user is taken.
    let seen = run_delta(&it, &data, &["--force"]).expect_code(2);
    assert!(seen.stderr.contains("a server seems to run"), "{}", seen.stderr);
    it.cluster.sql("insert into t values (5)");

    // Killed in that other container: nothing here shows it, and the user knows.
    let pid_file = fs::read(data.join("postmaster.pid")).unwrap();
    it.cluster.stop();
    fs::write(data.join("postmaster.pid"), pid_file).unwrap();
    scratch::give(&data.join("postmaster.pid"));
    refused(&it, &data, 2, "--force");
    run_delta(&it, &data, &["--force"]).expect_code(0);
    assert_eq!(started(QUICK, data).sql("select count(*) > 1 from t"), "t");
}

#[test]
fn a_backend_that_outlived_its_postmaster_is_found() {
    let mut it = archived(QUICK);
    let data = it.cluster.data().to_owned();
    let mut session = it.cluster.command("psql");
    session.args(["-XAtqc", "select 'backend ' || pg_backend_pid(); select pg_sleep(300)"]);
    let session = process::Running::start(session, &it.site.path().join("session.log"));
    let pid =
        until(LIMIT, || it.cluster.sql("select pid from pg_stat_activity where wait_event = 'PgSleep'").parse().ok());
    let backend = Pid::from_raw(pid.expect("a backend")).unwrap();
    // One that hangs, for example in a file system, does not notice that the postmaster is gone.
    rustix::process::kill_process(backend, Signal::STOP).unwrap();
    it.cluster.kill9();
    let alone = [backend.as_raw_nonzero().get()];
    assert!(until(LIMIT, || (processes_in(&data) == alone).then_some(())).is_some(), "{:?}", processes_in(&data));
    refused(&it, &data, 2, "a server seems to run");
    // Its shared memory shows it also without a look at processes.
    rustix::process::kill_process(backend, Signal::KILL).unwrap();
    drop(session);
    assert!(until(LIMIT, || processes_in(&data).is_empty().then_some(())).is_some());
    // What a crash leaves here, a postmaster.pid and a segment that nobody has, is no obstacle.
    assert!(data.join("postmaster.pid").exists());
    run_delta(&it, &data, &[]).expect_code(0);
    assert_eq!(started(QUICK, data).sql("select sum(n) from t"), "3");
}

#[test]
fn read_only_files_and_other_users_files() {
    let mut it = Attached::start(QUICK, Options::default().segment_size_mb(1));
    let data = it.cluster.data().to_owned();
    // Longer than a pack, so that its pieces arrive from two.
    let mut noise = vec![0; 40 << 20];
    SmallRng::seed_from_u64(7).fill_bytes(&mut noise);
    let (large, secret) = (data.join("read-only.bin"), data.join("secret.key"));
    for (path, content, mode) in [(&large, &noise[..], 0o444), (&secret, &b"key"[..], 0o400)] {
        fs::write(path, content).unwrap();
        scratch::give(path);
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    it.cluster.sql("create table t as select 1 as n");
    it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    it.archive();
    let fresh = it.site.path().join("fresh");
    it.site.walkeep(&["restore", "postgres", "main", "--pgdata", &fresh.to_string_lossy()]).expect_ok();
    let right = |data: &Path| {
        assert!(fs::read(data.join("read-only.bin")).unwrap() == noise);
        for (name, mode) in [("read-only.bin", 0o444), ("secret.key", 0o400)] {
            let is = data.join(name).metadata().unwrap().permissions().mode() & 0o777;
            assert_eq!(is, mode, "{name}");
        }
    };
    right(&fresh);
    it.cluster.stop();
    // Another byte in it, so that it is written to, and another length.
    let mut changed = noise.clone();
    changed[3 << 20] ^= 1;
    changed.extend([1, 2, 3]);
    fs::set_permissions(&large, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&large, changed).unwrap();
    fs::set_permissions(&large, fs::Permissions::from_mode(0o444)).unwrap();
    let lost = data.join("lost+found");
    let root = process::server_user().is_some();
    if root {
        // As mkfs makes it: root's, and nobody else looks into it.
        fs::create_dir(&lost).unwrap();
        fs::set_permissions(&lost, fs::Permissions::from_mode(0o700)).unwrap();
    }
    run_delta(&it, &data, &[]).expect_code(0);
    right(&data);
    assert_eq!(lost.exists(), root);
    if root {
        fs::remove_dir(&lost).unwrap();
        let foreign = data.join("base/foreign");
        fs::create_dir(&foreign).unwrap();
        fs::set_permissions(&foreign, fs::Permissions::from_mode(0o700)).unwrap();
        refused(&it, &data, 2, "belongs to user 0");
        fs::remove_dir(&foreign).unwrap();
        let version = data.join("PG_VERSION");
        std::os::unix::fs::chown(&version, Some(0), Some(0)).unwrap();
        refused(&it, &data, 2, "PG_VERSION belongs to user 0");
        scratch::give(&version);
    }
    assert_eq!(started(QUICK, data).sql("select sum(n) from t"), "1");
}

#[test]
fn a_plan_for_an_old_directory_is_that_of_delta() {
    let Attached { mut cluster, site, .. } = archived(QUICK);
    let data = cluster.data().to_owned();
    let plan = |data: &Path| {
        let pgdata = data.to_string_lossy().into_owned();
        one_line(&site.walkeep(&["plan", "postgres", "main", "--pgdata", &pgdata]).expect_ok())
    };
    let command = format!("--pgdata {} --delta", data.display());
    let running = plan(&data);
    assert!(running.contains("a server seems to run") && running.contains(&command), "{running}");
    let fresh = site.path().join("fresh");
    let absent = plan(&fresh);
    assert!(absent.contains(&format!("--pgdata {} --start", fresh.display())), "{absent}");
    fs::create_dir(&fresh).unwrap();
    fs::write(fresh.join("note"), "").unwrap();
    let refused = site.walkeep(&["plan", "postgres", "main", "--pgdata", &fresh.to_string_lossy()]).expect_code(3);
    assert!(one_line(&refused.stdout).contains("has note and no global/pg_control"), "{}", refused.stdout);
    cluster.stop();
    let stopped = plan(&data);
    assert!(stopped.contains(&command) && !stopped.contains("seems to run"), "{stopped}");
}
