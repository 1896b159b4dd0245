//! Servers that were set back or cloned are refused and recorded, and the archive stays as it is. Servers that only
//! crashed, lag or were promoted are followed.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use walkeep::postgres::receive::ReceiveError;

use super::receive::{Background, Home, copy_dir};
use crate::support::process::until;
use crate::support::{Cluster, Options, QUICK, Scratch, Site, majors};

fn write_segment(cluster: &Cluster) -> String {
    cluster.sql("create table if not exists filled (x int, filler text)");
    cluster.sql("insert into filled select g, repeat('x', 500) from generate_series(1, 200) g");
    cluster.switch_wal()
}

fn flushed(cluster: &Cluster) -> String {
    cluster.sql("select pg_current_wal_flush_lsn()")
}

/// Everything archived, by its hash: all but records of forks, and what the shipper notes.
fn wal_objects(site: &Site) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    let mut folders = vec![site.repository().join("main")];
    while let Some(folder) = folders.pop() {
        // Nothing is there before the first segment, and files under other names come and go while a receiver runs.
        let Ok(entries) = fs::read_dir(folder) else { continue };
        for path in entries.map(|entry| entry.unwrap().path()) {
            if path.ends_with("main/fork") {
                continue;
            } else if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = fs::read(&path) {
                found.push((path, blake3::hash(&bytes).to_hex().to_string()));
            }
        }
    }
    found.sort();
    found
}

fn wait_for_object(site: &Site, segment: &str) {
    let archived = || wal_objects(site).iter().any(|(path, _)| path.ends_with(segment)).then_some(());
    until(Duration::from_secs(60), archived).unwrap_or_else(|| panic!("{segment} was never archived"));
}

/// The forks that the program lists.
fn forks(site: &Site) -> Vec<serde_json::Value> {
    let listed = site.walkeep(&["fork", "list", "main", "--json"]).expect_code(0).json();
    listed["clusters"][0]["forks"].as_array().unwrap().clone()
}

fn put_back(cluster: &Cluster, saved: &std::path::Path) {
    fs::remove_dir_all(cluster.data()).unwrap();
    copy_dir(saved, cluster.data());
}

/// A snapshot of the virtual machine is put back: first the server is behind the archive, later it has overtaken it.
#[test]
fn a_server_that_was_set_back_is_refused_until_it_has_another_name() {
    for major in [14, QUICK, 18] {
        let mut cluster = Cluster::start(major, Options::default().segment_size_mb(1));
        let site = Site::for_cluster(&cluster);
        let mut receiver = site.spawn("receive", &["receive", "main"]);
        wait_for_object(&site, &write_segment(&cluster));
        receiver.terminate();
        cluster.stop();
        let copy = Scratch::new();
        let saved = copy.join("saved");
        copy_dir(cluster.data(), &saved);
        cluster.start_again();
        let mut receiver = site.spawn("receive", &["receive", "main"]);
        for _ in 0..3 {
            wait_for_object(&site, &write_segment(&cluster));
        }
        receiver.terminate();
        let archived_end = flushed(&cluster);
        cluster.stop();
        put_back(&cluster, &saved);
        cluster.start_again();
        cluster.sql("create table other (y text); insert into other values ('another history')");
        let before = wal_objects(&site);
        assert!(forks(&site).is_empty());

        let receive = || {
            let mut receiver = site.spawn("refused", &["receive", "main"]);
            let status = receiver.wait(Duration::from_secs(60));
            assert_eq!(status.code(), Some(6), "{major}: {}", receiver.output());
            receiver.output()
        };
        assert!(receive().contains("fork"), "{major}");
        let listed = forks(&site);
        assert_eq!(listed.len(), 1, "{major}: {listed:?}");
        assert!(listed[0]["resolution"].is_null(), "{listed:?}");
        let at = listed[0]["at"].as_str().unwrap().to_owned();
        let is_before = cluster.sql(&format!("select '{at}'::pg_lsn < '{archived_end}'::pg_lsn"));
        assert_eq!(is_before, "t", "{major}: {at} {archived_end}");

        // It overtakes the archive. Nothing of that is received, and it is the same fork.
        while cluster.sql(&format!("select pg_current_wal_flush_lsn() < '{archived_end}'::pg_lsn + 3000000")) == "t" {
            write_segment(&cluster);
        }
        receive();
        assert_eq!(forks(&site), listed, "{major}");
        assert!(wal_objects(&site) == before, "{major}: the archive was changed");

        let health = site.walkeep(&["health", "main"]).expect_code(1);
        assert!(health.stdout.contains("fork") && health.stdout.contains(&at), "{major}: {}", health.stdout);
        let check = site.walkeep(&["check", "main"]);
        assert!(check.stdout.contains("fork"), "{major}: {}", check.stdout);
        let resolve = |at: &str, keep: &str| {
            site.walkeep(&["fork", "resolve", "main", "--timeline", "1", "--at", at, "--keep", keep])
        };
        assert!(resolve(&at, "server").expect_code(2).stderr.contains("walkeep receive NEW-NAME"));
        resolve("0/1", "archive").expect_code(4);
        resolve(&at, "archive").expect_code(0);
        assert!(!forks(&site)[0]["resolution"].is_null());
        assert!(!site.walkeep(&["health", "main"]).stdout.contains("fork"), "{major}");
        // The decision refuses the server. It ends the alarm, and starts no second one.
        receive();
        assert_eq!(forks(&site).len(), 1, "{major}");
        assert!(!forks(&site)[0]["resolution"].is_null());
        assert!(wal_objects(&site) == before, "{major}: the archive was changed");
        site.walkeep(&["verify", "main"]).expect_code(0);
    }
}

/// Set back and promoted before it writes anything on the old timeline: the way out that the guide gives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_set_back_and_promoted_is_followed() {
    let mut cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    let home = Home::new();
    write_segment(&cluster);
    home.receive_until(&cluster, &flushed(&cluster)).await;
    cluster.stop();
    let copy = Scratch::new();
    let saved = copy.join("saved");
    copy_dir(cluster.data(), &saved);
    cluster.start_again();
    for _ in 0..3 {
        write_segment(&cluster);
    }
    home.receive_until(&cluster, &flushed(&cluster)).await;
    cluster.stop();
    put_back(&cluster, &saved);
    fs::write(cluster.data().join("standby.signal"), "").unwrap();
    cluster.start_again();
    cluster.promote();
    let receiver = Background::start(&home, home.settings(&cluster.conninfo())).await;
    receiver.wait_for("streaming 2").await;
    let name = write_segment(&cluster);
    receiver.wait_for(&format!("archived {name}")).await;
    receiver.stop().await.unwrap();
    assert_eq!(home.archive().await.forks().await.unwrap(), []);
}

#[test]
fn a_clone_that_pushes_under_the_same_name_is_recorded() {
    let site = Site::new();
    site.init(&[]).expect_ok();
    let options = Options::default().segment_size_mb(1).set("archive_mode", "on");
    let mut original = Cluster::start(QUICK, options.set("archive_command", site.archive_command()));
    wait_for_object(&site, &write_segment(&original));
    original.stop();
    let copy = Scratch::new();
    let clone_data = copy.join("clone");
    copy_dir(original.data(), &clone_data);
    original.start_again();
    let name = write_segment(&original);
    wait_for_object(&site, &name);
    let before = wal_objects(&site);
    let mut clone = Cluster::adopt(QUICK, &clone_data);
    clone.start_again();
    clone.sql(
        "create table of_clone (z text); insert into of_clone select repeat('z', 100) from generate_series(1, 99)",
    );
    clone.switch_wal();
    clone.wait_for("select failed_count > 0 from pg_stat_archiver");
    let listed = forks(&site);
    assert_eq!(listed.len(), 1, "{listed:?}");
    let file = clone.sql(&format!("select pg_walfile_name('{}')", listed[0]["at"].as_str().unwrap()));
    assert_eq!(file, name, "{listed:?}");
    assert!(wal_objects(&site) == before, "the archive was changed");
    clone.stop();
    // The original continues.
    let next = write_segment(&original);
    wait_for_object(&site, &next);
    let health = site.walkeep(&["health", "main"]).expect_code(1);
    assert!(health.stdout.contains("fork"), "{}", health.stdout);
    assert_eq!(forks(&site), listed);
}

/// The archive is fed by the primary, then by a standby that has less.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_lags_is_waited_for() {
    for major in [14, QUICK] {
        let mut primary = Cluster::start(major, Options::default().segment_size_mb(1));
        let standby = primary.standby(Options::default());
        let home = Home::new();
        write_segment(&primary);
        home.receive_until(&primary, &flushed(&primary)).await;
        let received = flushed(&primary);
        standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{received}'"));
        standby.set("primary_conninfo", "host=127.0.0.1 port=1 user=postgres");
        primary.wait_for("select count(*) = 0 from pg_stat_replication");
        for _ in 0..3 {
            write_segment(&primary);
        }
        let name = write_segment(&primary);
        home.receive_until(&primary, &flushed(&primary)).await;
        let receiver = Background::start(&home, home.settings(&standby.conninfo())).await;
        receiver.wait_for("disconnected the server ends before").await;
        standby.set("primary_conninfo", &primary.conninfo());
        let next = write_segment(&primary);
        receiver.wait_for(&format!("archived {next}")).await;
        receiver.stop().await.unwrap();
        assert_eq!(home.archive().await.forks().await.unwrap(), [], "{major}");
        let names = home.compare(&primary, 1).await;
        assert!(names.iter().any(|archived| archived.to_string() == name), "{major}");
        primary.stop();
    }
}

/// Kills, restarts and switches, each followed by a new start of the receiver.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_raise_no_alarm() {
    for major in [13, QUICK, 18] {
        let mut cluster = Cluster::start(major, Options::default().segment_size_mb(1));
        let home = Home::new();
        home.receive_until(&cluster, &flushed(&cluster)).await;
        for round in 0..10 {
            if round % 3 == 0 {
                write_segment(&cluster);
            } else {
                cluster.sql("create table if not exists filled (x int, filler text)");
                cluster.sql("insert into filled select g, repeat('y', 500) from generate_series(1, 700) g");
            }
            if round % 2 == 0 {
                home.receive_until(&cluster, &flushed(&cluster)).await;
            }
            let client = cluster.client().await;
            client
                .batch_execute("begin; insert into filled select g, 'z' from generate_series(1, 9000) g")
                .await
                .unwrap();
            match round {
                4 => cluster.stop(),
                _ => cluster.kill9(),
            }
            cluster.start_again();
            home.receive_until(&cluster, &flushed(&cluster)).await;
            let first = home.compare(&cluster, 1).await;
            // A start with nothing new stores nothing again.
            home.receive_until(&cluster, &flushed(&cluster)).await;
            assert!(home.compare(&cluster, 1).await.starts_with(&first), "{major}");
        }
        assert_eq!(home.archive().await.forks().await.unwrap(), [], "{major}");
        assert!(home.compare(&cluster, 1).await.len() >= 4, "{major}");
        // A promotion, and kills after it.
        cluster.stop();
        fs::write(cluster.data().join("standby.signal"), "").unwrap();
        cluster.start_again();
        cluster.promote();
        for _ in 0..3 {
            write_segment(&cluster);
            home.receive_until(&cluster, &flushed(&cluster)).await;
            cluster.kill9();
            cluster.start_again();
        }
        home.receive_until(&cluster, &flushed(&cluster)).await;
        assert_eq!(home.archive().await.forks().await.unwrap(), [], "{major}");
        assert!(home.compare(&cluster, 2).await.len() >= 3, "{major}");
        assert!(home.archive().await.gaps().await.unwrap().is_empty(), "{major}");
    }
}

/// Set back while the receiver runs: the next connection of the same receiver finds it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_set_back_under_a_running_receiver_is_refused() {
    for major in majors().into_iter().filter(|major| [13, QUICK, 18].contains(major)) {
        let mut cluster = Cluster::start(major, Options::default().segment_size_mb(1));
        let home = Home::new();
        write_segment(&cluster);
        cluster.stop();
        let copy = Scratch::new();
        let saved = copy.join("saved");
        copy_dir(cluster.data(), &saved);
        cluster.start_again();
        let receiver = Background::start(&home, home.settings(&cluster.conninfo())).await;
        receiver.wait_for("streaming").await;
        for _ in 0..3 {
            let name = write_segment(&cluster);
            receiver.wait_for(&format!("archived {name}")).await;
        }
        cluster.stop();
        put_back(&cluster, &saved);
        cluster.start_again();
        let error = tokio::time::timeout(Duration::from_secs(60), receiver.task).await.unwrap().unwrap().unwrap_err();
        let is_fork = matches!(error, ReceiveError::Forked { .. } | ReceiveError::Diverged { .. });
        assert!(is_fork, "{major}: {error}");
        assert_eq!(home.archive().await.forks().await.unwrap().len(), 1, "{major}");
    }
}

/// A clone that still has the archive's `archive_command` was first with a segment.
#[test]
fn a_receiver_whose_segment_a_clone_has_archived_records_the_fork() {
    let mut cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    let site = Site::for_cluster(&cluster);
    let mut receiver = site.spawn("receive", &["receive", "main"]);
    wait_for_object(&site, &write_segment(&cluster));
    receiver.terminate();
    cluster.stop();
    let copy = Scratch::new();
    copy_dir(cluster.data(), &copy.join("clone"));
    let mut clone = Cluster::adopt(QUICK, &copy.join("clone"));
    clone.start_again();
    clone.sql("create table other (y text); insert into other values ('another history')");
    let pushed = clone.pg_wal().join(write_segment(&clone));
    cluster.start_again();
    let mut receiver = site.spawn("receive", &["receive", "main"]);
    // The comparison at the start uses no slot.
    cluster.wait_for("select coalesce(bool_or(active), false) from pg_replication_slots");
    site.walkeep(&["archive-push", pushed.to_str().unwrap()]).expect_ok();
    assert_eq!(forks(&site), Vec::<serde_json::Value>::new());
    let segment = write_segment(&cluster);
    assert_eq!(pushed.file_name().unwrap().to_str(), Some(segment.as_str()), "they are at different segments");
    let status = receiver.wait(Duration::from_secs(60));
    assert_eq!(status.code(), Some(6), "{}", receiver.output());
    let listed = forks(&site);
    assert_eq!(listed.len(), 1, "{listed:?}");
    let reason = listed[0]["reason"].as_str().unwrap();
    assert!(reason.contains(&segment), "{reason}");
    clone.stop();
    cluster.stop();
}

/// A backup of a server that was set back would be replayed with the archive's WAL, which is another history.
#[test]
fn a_server_that_was_set_back_is_not_backed_up() {
    for archive_has_forked_segment in [true, false] {
        let mut cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
        let site = Site::for_cluster(&cluster);
        cluster.sql("create table t (n int); insert into t select generate_series(1, 1000)");
        site.walkeep(&["backup", "postgres"]).expect_ok();
        cluster.stop();
        let copy = Scratch::new();
        let saved = copy.join("saved");
        copy_dir(cluster.data(), &saved);
        cluster.start_again();
        cluster.sql("insert into t select generate_series(2001, 3000)");
        if archive_has_forked_segment {
            site.walkeep(&["backup", "postgres"]).expect_ok();
        } else {
            let mut receiver = site.spawn("receive", &["receive", "main"]);
            wait_for_object(&site, &write_segment(&cluster));
            receiver.terminate();
        }
        cluster.stop();
        put_back(&cluster, &saved);
        cluster.start_again();
        cluster.sql("insert into t select generate_series(900001, 900300)");
        let before = wal_objects(&site);
        let refused = site.walkeep(&["backup", "postgres"]).expect_code(6);
        assert!(refused.stderr.contains("no backup is taken") && refused.stderr.contains("fork"), "{}", refused.stderr);
        assert_eq!(forks(&site).len(), 1);
        assert!(wal_objects(&site) == before, "the archive was changed");
        cluster.stop();
    }
}

/// The way out of a fork: the server is restored from the archive over its own directory, on a new timeline.
#[test]
fn a_forked_server_that_was_restored_is_followed_and_backed_up() {
    for is_whole in [false, true] {
        let mut cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
        let site = Site::for_cluster(&cluster);
        cluster.sql("create table t (n int)");
        let mut receiver = site.spawn("receive", &["receive", "main"]);
        cluster.wait_for("select count(*) > 0 from pg_stat_replication");
        site.walkeep(&["backup", "postgres"]).expect_ok();
        receiver.terminate();
        cluster.stop();
        let copy = Scratch::new();
        let saved = copy.join("saved");
        copy_dir(cluster.data(), &saved);
        cluster.start_again();
        let mut receiver = site.spawn("receive", &["receive", "main"]);
        cluster.sql("insert into t values (1)");
        wait_for_object(&site, &write_segment(&cluster));
        cluster.sql("insert into t values (2)");
        let segment = write_segment(&cluster);
        wait_for_object(&site, &segment);
        cluster.sql("insert into t values (3)");
        cluster.sql("select pg_create_restore_point('middle')");
        cluster.wait_for(
            "select coalesce(bool_or(flush_lsn >= pg_current_wal_flush_lsn()), false) from pg_stat_replication",
        );
        if is_whole {
            // The segment is whole in the archive, and the restore ends in its middle.
            wait_for_object(&site, &write_segment(&cluster));
        }
        receiver.terminate();
        cluster.stop();
        put_back(&cluster, &saved);
        cluster.start_again();
        cluster.sql("insert into t values (999)");
        let refused = site.walkeep(&["backup", "postgres"]).expect_code(6);
        assert!(refused.stderr.contains("fork"), "{}", refused.stderr);
        cluster.stop();

        let data = cluster.data().to_str().unwrap().to_owned();
        let bin = cluster.program("postgres");
        let bindir = bin.parent().unwrap().to_str().unwrap();
        let mut restore =
            vec!["restore", "postgres", "--pgdata", &data, "--delta", "--takeover", "--pg-bindir", bindir];
        if is_whole {
            restore.extend(["--target-name", "middle"]);
        }
        site.walkeep(&restore).expect_ok();
        cluster.start_again();
        cluster.wait_for("select not pg_is_in_recovery()");
        assert_eq!(cluster.sql("select string_agg(n::text, ',' order by n) from t"), "1,2,3");
        let mut receiver = site.spawn("again", &["receive", "main"]);
        cluster.wait_for("select coalesce(bool_or(active), false) from pg_replication_slots");
        cluster.sql("insert into t values (4)");
        wait_for_object(&site, &write_segment(&cluster));
        site.walkeep(&["backup", "postgres"]).expect_ok();
        assert!(receiver.terminate().success(), "{}", receiver.output());
        cluster.stop();
    }
}
