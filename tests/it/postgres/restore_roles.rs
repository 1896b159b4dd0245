//! What restored servers do after their recovery: copies that are isolated, successors, and standbys. Real servers show
//! it: replicas that are built from them, a publisher, a primary.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::end_to_end::{Attached, started};
use crate::support::process::{self, Orphan};
use crate::support::{Cluster, Options, QUICK, majors};

fn auto_conf(server: &Cluster) -> String {
    fs::read_to_string(server.data().join("postgresql.auto.conf")).unwrap()
}

/// Nothing of the recovery is left in a server's settings.
fn check_recovery_is_gone(server: &Cluster) {
    let settings = auto_conf(server);
    for word in ["recovery", "restore_command", "include"] {
        let lines = settings.lines().filter(|line| !line.starts_with('#'));
        assert!(lines.clone().all(|line| !line.contains(word)), "{word} in\n{settings}");
    }
    assert!(!server.data().join("pg_stat_tmp/walkeep_recovery.conf").exists());
}

/// Restores with more options, and does not start the server.
fn restored(it: &Attached, name: &str, options: &[&str]) -> (PathBuf, String) {
    let data = it.site.path().join(name);
    let pgdata = data.to_string_lossy().into_owned();
    let command = [&["restore", "postgres", "main", "--pgdata", &pgdata], options].concat();
    let printed = it.site.walkeep(&command).expect_ok();
    (data, printed)
}

/// A replica that pg_basebackup makes follows the restored server, without the archive and without the original. After
/// a failover to it, pg_rewind makes the restored server its replica.
#[test]
fn replicas_are_built_from_a_restored_server() {
    for major in majors().into_iter().filter(|major| [13, 15, 17, 18].contains(major)) {
        // pg_rewind reads WAL since the last checkpoint that both have.
        let it = Attached::start(major, Options::default().set("wal_keep_size", "1GB"));
        it.cluster.sql("create table t as select 1 as n");
        it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
        it.cluster.sql("insert into t values (2)");
        it.cluster.sql("select pg_create_restore_point('here'); insert into t values (3)");
        it.archive();
        let mut restored = it.restore("restored", &["--target-name", "here"]);
        check_recovery_is_gone(&restored);

        // The original and the archive are gone.
        let Attached { cluster, site, .. } = it;
        drop(cluster);
        fs::rename(site.repository(), site.path().join("away")).unwrap();
        let replica = restored.standby(Options::default());
        restored.sql("insert into t values (4)");
        replica.wait_for("select string_agg(n::text, ',' order by n) = '1,2,4' from t");

        let lsn = restored.current_lsn();
        replica.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{lsn}'"));
        replica.promote();
        restored.sql("insert into t values (99)");
        replica.sql("insert into t values (5); checkpoint");
        restored.stop();
        let data = restored.data().to_string_lossy().into_owned();
        let source = replica.socket_conninfo();
        restored.run("pg_rewind", &["-D", &data, "--source-server", &source, "-R"]).expect_ok();
        restored.start_again();
        restored.wait_for("select pg_is_in_recovery() and string_agg(n::text, ',' order by n) = '1,2,4,5' from t");
    }
}

/// A replica that is made while the restored server pauses in recovery has no settings of that recovery either.
#[test]
fn a_replica_of_a_paused_server_follows_it_to_its_new_timeline() {
    let it = Attached::start(QUICK, Options::default());
    it.cluster.sql("create table t as select 1 as n");
    it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    it.cluster.sql("select pg_create_restore_point('here')");
    it.archive();
    let (data, _) = restored(&it, "paused", &["--target-name", "here", "--target-action", "pause"]);
    let mut paused = Cluster::adopt(QUICK, &data);
    paused.start_again();
    paused.wait_for("select pg_is_wal_replay_paused()");
    let replica = paused.standby(Options::default());
    let error = it.site.walkeep(&["recovery-ended", "--pgdata", &data.to_string_lossy()]).expect_code(1).stderr;
    assert!(error.contains("recovery has not ended"), "{error}");

    // PostgreSQL writes the settings of included files into postgresql.auto.conf.
    paused.sql("alter system set work_mem = '9MB'");
    assert!(auto_conf(&paused).contains("recovery_target_lsn"), "{}", auto_conf(&paused));
    paused.sql("select pg_wal_replay_resume()");
    paused.wait_for("select not pg_is_in_recovery()");
    check_recovery_is_gone(&paused);
    assert!(auto_conf(&paused).contains("work_mem = '9MB'"), "{}", auto_conf(&paused));
    paused.sql("insert into t values (2)");
    replica.wait_for("select string_agg(n::text, ',' order by n) = '1,2' from t");
}

/// If the settings of recovery are lost before it has ended, the server does not recover by another command and to
/// another target.
#[test]
fn a_server_that_lost_its_target_does_not_start() {
    let options = Options::default().set("restore_command", "false").set("archive_cleanup_command", "false");
    let it = Attached::start(QUICK, options);
    it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    it.archive();
    let (data, _) = restored(&it, "lost", &[]);
    let (file, kept) = (data.join("pg_stat_tmp/walkeep_recovery.conf"), it.site.path().join("kept"));
    fs::rename(&file, &kept).unwrap();
    let mut server = Cluster::adopt(QUICK, &data);
    let log = server.try_start().unwrap_err();
    assert!(log.contains("must specify restore_command"), "{log}");
    fs::rename(&kept, &file).unwrap();
    server.start_again();
    server.wait_for("select not pg_is_in_recovery()");
    check_recovery_is_gone(&server);
    server.restart();
    assert_eq!(server.sql("show restore_command"), "false");
}

/// A server with everything that makes a copy of it act: a subscription, a synchronous standby, a delay, and archiving.
struct BusyServer {
    publisher: Cluster,
    it: Attached,
}

impl BusyServer {
    fn start() -> BusyServer {
        let publisher = Cluster::start(QUICK, Options::default().set("wal_level", "logical"));
        publisher.sql("create table news (n int primary key); create publication p for table news");
        let options = Options::default().set("recovery_min_apply_delay", "1h").set("archive_mode", "on");
        let it = Attached::start(QUICK, options.set("archive_command", "true"));
        it.cluster.sql("create table news (n int primary key); create table t (n int)");
        let from = publisher.socket_conninfo();
        it.cluster.sql(&format!("create subscription s connection '{from}' publication p"));
        publisher.sql("insert into news values (1)");
        it.cluster.wait_for("select count(*) = 1 from news");
        it.cluster.set("synchronous_standby_names", "walkeep");
        it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
        it.cluster.sql("insert into t values (1)");
        it.archive();
        BusyServer { publisher, it }
    }
}

/// A commit does not wait for a standby. `timeout` ends a wait with 124.
fn check_commits(server: &Cluster) {
    let mut psql = process::command("timeout", Orphan::Kill);
    psql.arg("20").arg(server.program("psql")).args(["-X", "-d", &server.socket_conninfo()]);
    psql.args(["-c", "insert into t values (2)"]);
    process::run(psql).expect_ok();
}

#[test]
fn a_copy_is_isolated_and_a_successor_takes_over() {
    let BusyServer { publisher, it } = BusyServer::start();
    let plan = it.site.walkeep(&["plan", "postgres", "main"]).expect_ok();
    assert!(plan.contains("isolated copy"), "{plan}");
    let (data, printed) = restored(&it, "copy", &[]);
    for line in ["archive_mode = 'off'", "synchronous_standby_names = ''", "(before: 'walkeep')", "ALTER SYSTEM RESET"]
    {
        assert!(printed.contains(line), "{line} in\n{printed}");
    }
    let mut copy = started(QUICK, data);
    check_recovery_is_gone(&copy);
    check_commits(&copy);
    publisher.sql("insert into news values (2)");
    it.cluster.wait_for("select count(*) = 2 from news");
    assert_eq!(copy.sql("select count(*) from news"), "1");
    assert_eq!(copy.sql("select count(*) from pg_stat_activity where backend_type like 'logical%'"), "0");
    assert_eq!(copy.sql("show archive_mode"), "off");
    copy.stop();

    // What it archives is as it was configured, and is said as it is.
    let (data, printed) = restored(&it, "archiving", &["--archive-mode", "preserve"]);
    assert!(printed.contains("it archives: archive_mode = on, archive_command = 'true'"), "{printed}");
    let mut archiving = started(QUICK, data);
    assert_eq!(archiving.sql("show archive_mode"), "on");
    check_commits(&archiving);
    archiving.stop();

    let (data, printed) = restored(&it, "successor", &["--takeover"]);
    assert!(printed.contains("it takes over") && printed.contains("commits wait until a standby"), "{printed}");
    let Attached { cluster, site, .. } = it;
    drop(cluster);
    let successor = started(QUICK, data);
    check_recovery_is_gone(&successor);
    publisher.sql("insert into news values (3)");
    successor.wait_for("select count(*) > 0 from news where n = 3");
    let shown = ["archive_mode", "synchronous_standby_names"].map(|name| successor.sql(&format!("show {name}")));
    assert_eq!(shown, ["on", "walkeep"]);
    successor.sql("select pg_reload_conf()");
    successor.wait_for("select current_setting('recovery_min_apply_delay') = '1h'");
    drop(site);
}

/// The rows of `t` that a server must show in the end.
fn shows(server: &Cluster, last: u32) {
    server.wait_for(&format!("select max(n) = {last} and count(*) = {last} from t"));
}

fn standby_at(data: &Path) -> Cluster {
    let mut standby = Cluster::adopt(QUICK, data);
    standby.start_again();
    standby
}

#[test]
fn standbys_follow_the_primary_the_archive_and_a_failover() {
    let mut it = Attached::start(QUICK, Options::default().segment_size_mb(1));
    it.cluster.sql("create table t as select 1 as n; create table filler (text text)");
    it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    it.cluster.sql("insert into t values (2)");
    it.archive();

    let refused = it.site.walkeep(&["restore", "postgres", "--pgdata", "/x", "--standby", "--target-time", "now"]);
    assert!(refused.expect_code(2).stderr.contains("omit --target-time"));
    it.cluster.sql("select pg_create_physical_replication_slot('first', true)");
    let primary = it.cluster.socket_conninfo();
    let connected = ["--standby", "--primary-conninfo", &primary, "--slot", "first"];
    let (data, printed) = restored(&it, "first", &connected);
    assert!(printed.contains("it is a standby"), "{printed}");
    let first = standby_at(&data);
    // The second one knows both, and takes the one that accepts writes.
    let both = format!(
        "host={},{} port={},{} user=postgres dbname=postgres target_session_attrs=read-write",
        it.cluster.socket_dir().display(),
        first.socket_dir().display(),
        it.cluster.port,
        first.port
    );
    let (data, _) = restored(&it, "second", &["--standby", "--primary-conninfo", &both]);
    let mut second = standby_at(&data);
    let (data, printed) = restored(&it, "archive-only", &["--standby"]);
    assert!(printed.contains("restore_command"), "{printed}");
    let archive_only = standby_at(&data);
    it.cluster.sql("insert into t values (3)");
    [&first, &second].iter().for_each(|standby| shows(standby, 3));
    it.archive();
    shows(&archive_only, 3);
    assert_eq!(it.cluster.sql("select count(*) from pg_stat_replication where application_name = 'walreceiver'"), "2");

    // The second one falls behind: what it needs is no longer on the primary.
    second.stop();
    let needed = it.cluster.switch_wal();
    for _ in 0..4 {
        it.cluster.sql("insert into filler select repeat('x', 1000) from generate_series(1, 1500)");
        it.archive();
    }
    it.cluster.sql("insert into t values (4)");
    it.archive();
    shows(&first, 4);
    it.cluster.sql("checkpoint");
    it.cluster.wait_for(&format!(
        "select pg_switch_wal() is not null and not exists (select from pg_ls_waldir() where name = '{needed}')"
    ));
    second.start_again();
    shows(&second, 4);
    assert!(second.log().contains(&format!("restored log file \"{needed}\"")), "{}", second.log());

    // A failover.
    it.end_receiver();
    it.cluster.stop();
    first.promote();
    first.sql("insert into t values (5)");
    shows(&second, 5);
    assert_eq!(second.sql("select received_tli from pg_stat_wal_receiver"), "2");
}

#[test]
fn wal_has_its_own_place_and_group_access_stays() {
    let mut it = Attached::start(QUICK, Options::default());
    it.cluster.stop();
    let mut chmod = process::command("chmod", Orphan::Kill);
    chmod.args(["-R", "g=rX"]).arg(it.cluster.data());
    process::run(chmod).expect_ok();
    it.cluster.start_again();
    it.cluster.wait_for("select count(*) > 0 from pg_stat_replication");
    it.cluster.sql("create table t as select 1 as n");
    it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    it.archive();

    let waldir = it.site.path().join("wal");
    let wal = waldir.to_string_lossy().into_owned();
    let (data, _) = restored(&it, "restored", &["--waldir", &wal]);
    assert_eq!(fs::read_link(data.join("pg_wal")).unwrap(), waldir);
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!([mode(&data), mode(&waldir)], [0o750, 0o750]);
    for name in ["postgresql.auto.conf", "backup_label", "recovery.signal", "pg_stat_tmp/walkeep_recovery.conf"] {
        assert_eq!(mode(&data.join(name)), 0o640, "{name}");
    }
    let server = started(QUICK, data);
    assert_eq!(server.sql("select sum(n) from t"), "1");
    assert_eq!(mode(&server.data().join("postgresql.auto.conf")), 0o640);
    assert!(fs::read_dir(&waldir).unwrap().any(|entry| entry.unwrap().file_name().len() == 24));

    let other = it.site.path().join("other").to_string_lossy().into_owned();
    let taken = it.site.walkeep(&["restore", "postgres", "--pgdata", &other, "--waldir", &wal]).expect_code(2).stderr;
    assert!(taken.contains("it is not empty"), "{taken}");
    let within = format!("{other}/wal");
    let inside =
        it.site.walkeep(&["restore", "postgres", "--pgdata", &other, "--waldir", &within]).expect_code(2).stderr;
    assert!(inside.contains("outside the data directory"), "{inside}");
}
