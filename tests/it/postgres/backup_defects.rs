//! Backups of servers whose data directory is not plain, or damaged: each backup that is not whole says so, everywhere.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};
use walkeep::postgres::backup::{self, BackupOptions, BackupProgress};

use super::backup::{archive, put_back, server, started, take};
use crate::support::cluster::{german_locale, has_german};
use crate::support::waldump::lsn;
use crate::support::{Cluster, Options, QUICK, Scratch, Site, majors, scratch};

const PAGE: usize = 8192;

/// Moves a file or directory of the data directory elsewhere and leaves a link to it.
fn move_away(cluster: &Cluster, path: &str, elsewhere: &Path) {
    let (from, to) = (cluster.data().join(path), elsewhere.join(path.replace('/', "_")));
    let moved = std::process::Command::new("mv").arg(&from).arg(&to).status().unwrap();
    assert!(moved.success());
    symlink(&to, &from).unwrap();
}

fn move_back(cluster: &Cluster, path: &str, elsewhere: &Path) {
    let (to, from) = (cluster.data().join(path), elsewhere.join(path.replace('/', "_")));
    fs::remove_file(&to).unwrap();
    assert!(std::process::Command::new("mv").arg(&from).arg(&to).status().unwrap().success());
}

/// Flips a bit in a page of a table's file.
fn damage(file: &Path, block: usize) {
    let mut content = fs::read(file).unwrap();
    content[block * PAGE + 4000] ^= 1;
    fs::write(file, content).unwrap();
}

fn label(output: &str) -> String {
    output.trim().to_owned()
}

#[test]
fn a_backup_without_files_that_the_server_left_out_says_so_until_one_is_whole() {
    let elsewhere = Scratch::new();
    // The server's warnings are in its own language.
    let locales = has_german(QUICK).then(|| german_locale(&elsewhere)).flatten();
    let options = Options::default().segment_size_mb(1).set("archive_mode", "on");
    let options = locales.into_iter().fold(options, Options::german);
    let mut cluster = Cluster::start(QUICK, options);
    cluster.sql("create table moved as select generate_series(1, 1000) as i");
    cluster.sql("create table left_alone as select generate_series(1, 500) as i");
    cluster.sql("create database lost");
    cluster.sql("checkpoint");
    let table = cluster.sql("select pg_relation_filepath('moved')");
    let database = format!("base/{}", cluster.sql("select oid from pg_database where datname = 'lost'"));
    let site = Site::for_cluster(&cluster);
    cluster.set("archive_command", &site.archive_command());
    cluster.stop();
    let away = elsewhere.directory("away");
    for path in [table.as_str(), database.as_str(), "pg_ident.conf"] {
        move_away(&cluster, path, &away);
    }
    scratch::give(&away);
    cluster.start_again();
    assert_eq!(cluster.sql("select count(*) from moved"), "1000", "the server itself does not mind");

    let taken = site.walkeep(&["backup", "postgres", "main"]).expect_code(6);
    let first = label(&taken.stdout);
    for words in ["is stored, but it is not whole", &table, &database, "--accept-missing-files", "pg_ident.conf"] {
        assert!(taken.stderr.contains(words), "{words}: {}", taken.stderr);
    }
    assert!(!taken.stderr.contains(&format!("{database}/")), "the directory stands for its files: {}", taken.stderr);
    let listed = site.walkeep(&["list"]).expect_ok();
    assert!(listed.contains("NO") && listed.contains("is not whole: 2 files are missing"), "{listed}");
    let health = site.walkeep(&["health"]).expect_code(1);
    assert!(health.stdout.contains("is not whole"), "{}", health.stdout);
    let verified = site.walkeep(&["verify"]).expect_code(6);
    assert!(verified.stdout.contains("was not whole when it was taken"), "{}", verified.stdout);
    let plan = site.walkeep(&["plan", "postgres", "main"]).expect_code(3);
    assert!(plan.stdout.contains(&format!("backup {first} is not used, because it is not whole")), "{}", plan.stdout);
    let named = site.walkeep(&["plan", "postgres", "main", "--backup", &first]).expect_code(6);
    assert!(named.stderr.contains("add --accept-missing-files"), "{}", named.stderr);
    let plan = site.walkeep(&["plan", "postgres", "main", "--accept-missing-files"]).expect_ok();
    assert!(plan.contains("is not whole, and neither is what is restored"), "{plan}");

    let data = site.path().join("restored");
    let into = data.to_string_lossy().into_owned();
    site.walkeep(&["restore", "postgres", "main", "--pgdata", &into, "--accept-missing-files"]).expect_ok();
    // It is started without the German locale.
    let mut settings = std::fs::File::options().append(true).open(data.join("postgresql.auto.conf")).unwrap();
    settings.write_all(b"lc_messages = 'C'\n").unwrap();
    let mut restored = Cluster::adopt(QUICK, &data);
    restored.start_again();
    restored.wait_for("select not pg_is_in_recovery()");
    assert_eq!(restored.sql("select count(*) from left_alone"), "500");
    assert!(restored.try_sql("select count(*) from moved").is_err(), "PostgreSQL finds no file, as the backup said");
    drop(restored);

    cluster.stop();
    for path in [table.as_str(), database.as_str()] {
        move_back(&cluster, path, &away);
    }
    cluster.start_again();
    let second = label(&site.walkeep(&["backup", "postgres", "main"]).expect_ok());
    let plan = site.walkeep(&["plan", "postgres", "main"]).expect_ok();
    assert!(plan.contains(&second), "{plan}");
    let health = site.walkeep(&["health"]);
    assert!(health.stdout.contains(&format!("{first} is not whole")), "{}", health.stdout);
}

/// What every major warns of, and what none does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missing_relation_files_are_found_by_the_servers_warning_and_by_the_catalogs() {
    for major in majors() {
        let scratch = Scratch::new();
        let mut cluster = Cluster::start(major, Options::default().segment_size_mb(1));
        let space = scratch.directory("space");
        cluster.sql(&format!("create tablespace slow location '{}'", space.display()));
        for (name, more) in [("linked", ""), ("removed", ""), ("in_space", "tablespace slow"), ("good", "")] {
            cluster.sql(&format!("create table {name} {more} as select generate_series(1, 300) as i"));
        }
        cluster.sql("create unlogged table passing as select 1 as i");
        cluster.sql("checkpoint");
        let file = |name: &str| cluster.sql(&format!("select pg_relation_filepath('{name}')"));
        let (linked, removed, in_space) = (file("linked"), file("removed"), file("in_space"));
        cluster.stop();
        let away = scratch.directory("away");
        move_away(&cluster, &linked, &away);
        move_away(&cluster, &in_space, &away);
        scratch::give(&away);
        fs::remove_file(cluster.data().join(&removed)).unwrap();
        cluster.start_again();
        let archive = archive(&scratch, false).await;
        let summary = take(&archive, &cluster).await;
        let mut expected = [linked, removed, in_space];
        expected.sort_unstable();
        assert_eq!(summary.defects.missing_files, expected, "{major}");
        assert_eq!(summary.defects.missing_file_count, 3);
    }
}

#[test]
fn a_damaged_page_marks_the_backup_and_later_backups_are_taken() {
    let mut cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1).set("archive_mode", "on"));
    cluster.sql("create table things as select i, md5(i::text) as text from generate_series(1, 20000) i");
    cluster.sql("create table others as select generate_series(1, 500) as i");
    // A role without any right on the server's files, or in the databases.
    cluster.sql("create role walkeep login replication");
    let site = Site::new();
    let connection = cluster.socket_conninfo().replace("user=postgres", "user=walkeep");
    assert!(connection.contains("user=walkeep"), "{connection}");
    site.init(&["--connection", &connection]).expect_ok();
    cluster.set("archive_command", &site.archive_command());
    let file = cluster.sql("select pg_relation_filepath('things')");
    cluster.stop();
    damage(&cluster.data().join(&file), 5);
    damage(&cluster.data().join(&file), 17);
    cluster.start_again();

    for _ in 0..2 {
        let taken = site.walkeep(&["backup", "postgres", "main"]).expect_code(6);
        for words in [&format!("2 pages are damaged: block 5 of {file}, block 17 of {file}"), "--accept-damaged-pages"]
        {
            assert!(taken.stderr.contains(words), "{words}: {}", taken.stderr);
        }
    }
    let json = site.walkeep(&["list", "--json"]).json();
    let backups = json["clusters"][0]["backups"].as_array().unwrap();
    assert!(backups.len() == 2 && backups.iter().all(|one| one["restorable"] == false), "{json}");
    // Lines are broken to fit.
    let unbroken = |text: String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let health = unbroken(site.walkeep(&["health"]).expect_code(1).stdout);
    assert!(health.contains("2 pages are damaged"), "{health}");
    let plan = unbroken(site.walkeep(&["plan", "postgres", "main"]).expect_code(3).stdout);
    for words in ["no backup is whole", "--accept-damaged-pages accepts it"] {
        assert!(plan.contains(words), "{plan}");
    }

    let data = site.path().join("restored");
    let into = data.to_string_lossy().into_owned();
    site.walkeep(&["restore", "postgres", "main", "--pgdata", &into, "--accept-damaged-pages"]).expect_ok();
    let mut restored = Cluster::adopt(QUICK, &data);
    restored.start_again();
    restored.wait_for("select not pg_is_in_recovery()");
    assert_eq!(restored.sql("select count(*) from others"), "500");
    assert!(restored.try_sql("select count(*) from things").unwrap_err().contains("page"), "damaged, as was said");
}

/// The server changes a page while the backup reads it: what is read is wrong, and WAL has all of the page.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_replay_restores_is_no_damage() {
    let scratch = Scratch::new();
    // What is in memory stays there until the shutdown: the file keeps the wrong page.
    let options = Options::default().segment_size_mb(1).set("bgwriter_lru_maxpages", 0).set("checkpoint_timeout", "1h");
    let cluster = Cluster::start(QUICK, options.set("shared_buffers", "256MB").set("autovacuum", "off"));
    cluster.sql("create table things as select i, md5(i::text) as text from generate_series(1, 20000) i");
    cluster.sql("create table filler as select i, md5(i::text) as text from generate_series(1, 300000) i");
    cluster.sql("vacuum things");
    cluster.sql("checkpoint");
    assert_eq!(cluster.sql("select count(*) from things"), "20000");
    let file = cluster.data().join(cluster.sql("select pg_relation_filepath('things')"));
    damage(&file, 5);
    let archive = archive(&scratch, false).await;
    let options = BackupOptions { max_rate_kib: Some(8 << 10), ..BackupOptions::default() };
    let (seen, mut reading) = tokio::sync::watch::channel(false);
    let mut note = |progress| {
        if matches!(progress, BackupProgress::Reading { .. }) {
            seen.send_replace(true);
        }
    };
    let server = server(&cluster);
    let changing = async {
        reading.wait_for(|reading| *reading).await.unwrap();
        assert_eq!(
            cluster.sql(
                "with c as (update things set text = 'new' where ctid between '(5,0)' and '(5,999)' \
                                returning 1) select count(*) > 0 from c"
            ),
            "t"
        );
    };
    let (taken, ()) = tokio::join!(backup::take_backup(&archive, &server, &options, &mut note), changing);
    let summary = taken.unwrap();
    assert!(summary.defects.is_empty(), "{}", summary.defects);
    assert_eq!(summary.torn_pages, 1, "the page was read as it is on disk");
    let data = put_back(&archive, &summary.label, &scratch, "restored").await;
    let restored = started(QUICK, &data);
    let sum = "select count(*), sum(hashtext(t::text)::bigint) from things t";
    assert_eq!(restored.sql(sum), cluster.sql(sum));
}

/// The server takes what is wrong from its memory; only the file is damaged, and nothing ever restores it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_from_before_1970_is_backed_up() {
    for major in majors() {
        let scratch = Scratch::new();
        let cluster = Cluster::start(major, Options::default().segment_size_mb(1));
        let file = cluster.data().join("old.conf");
        fs::write(&file, "old").unwrap();
        scratch::give(&file);
        let time = Timespec { tv_sec: -86_400 * 365, tv_nsec: 0 };
        let times = Timestamps { last_access: time, last_modification: time };
        utimensat(CWD, &file, &times, AtFlags::empty()).unwrap();
        let archive = archive(&scratch, false).await;
        let summary = take(&archive, &cluster).await;
        let data = put_back(&archive, &summary.label, &scratch, "restored").await;
        assert_eq!(fs::read(data.join("old.conf")).unwrap(), b"old", "{major}");
    }
}

#[test]
fn a_restore_point_whose_name_was_given_twice_is_not_guessed() {
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1).set("archive_mode", "on"));
    let site = Site::for_cluster(&cluster);
    cluster.set("archive_command", &site.archive_command());
    cluster.sql("create table t as select 1 as i");
    site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    // PostgreSQL answers where the record ends.
    let first = lsn(&cluster.sql("select pg_create_restore_point('same')"));
    cluster.sql("insert into t values (2)");
    let between = label(&site.walkeep(&["backup", "postgres", "main"]).expect_ok());
    let second = lsn(&cluster.sql("select pg_create_restore_point('same')"));
    cluster.sql("insert into t values (3)");
    site.walkeep(&["backup", "postgres", "main"]).expect_ok();

    let refused = site.walkeep(&["plan", "postgres", "main", "--target-name", "same"]).expect_code(2);
    assert!(refused.stderr.contains("2 restore points are called \"same\""), "{}", refused.stderr);
    // A record of a name has less than 128 bytes.
    let named: Vec<u64> = refused.stderr.split([' ', ',', ';']).filter(|word| word.contains('/')).map(lsn).collect();
    let near = |end: u64| named.iter().any(|start| (end - 128..end).contains(start));
    assert!(near(first) && near(second), "{first:X} {second:X}: {}", refused.stderr);
    let chosen = ["plan", "postgres", "main", "--target-name", "same", "--backup", &between, "--json"];
    let plan = site.walkeep(&chosen).json();
    let stop = lsn(plan["stop"]["after"].as_str().unwrap_or_else(|| panic!("{plan}")));
    assert!((second - 128..second).contains(&stop), "{stop:X}: {plan}");
}
