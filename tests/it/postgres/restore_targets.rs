//! Where a target leads: the plan's answer, a restore by it, and PostgreSQL's own recovery with the same target must
//! end at the same record.
//!
//! On every major: random targets of every kind over a log with what makes an answer wrong easily: sessions whose
//! commits overtake each other, a clock that was set back, aborts, prepared transactions, subtransactions, two
//! timelines. What PostgreSQL says in its own log while it stops is compared, too.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::restore_moments::{History, KINDS, Target};
use crate::support::process::{self, Orphan};
use crate::support::scratch;
use crate::support::waldump::{self, Ending, Record, lsn, spell};
use crate::support::workload::Workload;
use crate::support::{Cluster, Options, Scratch, Site, majors};

/// What a recovery came to.
#[derive(Debug)]
struct Stopped {
    /// The end of the last record that was replayed.
    at: u64,
    /// The time of the last commit or abort that was replayed, as the server shows it.
    last: String,
    /// What it said when it stopped.
    words: String,
}

/// A log that two timelines share, kept by PostgreSQL's own means in a folder, and by walkeep.
struct Scene {
    major: u32,
    site: Site,
    scratch: Scratch,
    history: History,
    /// A subtransaction that was rolled back, and one that committed with its transaction.
    subtransactions: [u32; 2],
}

impl Scene {
    fn new(major: u32, seed: u64) -> Scene {
        let scratch = Scratch::new();
        let (clock, folder) = (scratch.file("clock", "+0s\n"), scratch.directory("wal"));
        let options = Options::default().segment_size_mb(1).set("max_prepared_transactions", 20).clock(clock.clone());
        let options = options.set("wal_keep_size", "8GB").set("synchronous_commit", "off").set("archive_mode", "on");
        let cluster = Cluster::start(major, options.clone());
        cluster.run("pgbench", &["-i", "-s", "1", "-q"]).expect_ok();
        let site = Site::for_cluster(&cluster);
        let both = format!("cp %p {0}/.%f && mv {0}/.%f {0}/%f && {1}", folder.display(), site.archive_command());
        cluster.set("archive_command", &both);
        let base = scratch.join("base").to_string_lossy().into_owned();
        cluster.run("pg_basebackup", &["-D", &base, "-X", "none", "-c", "fast", "--no-sync"]).expect_ok();
        site.walkeep(&["backup", "postgres", "main"]).expect_ok();
        let consistent = cluster.current_lsn();

        // Ahead first, so that it is never set back to before the backup: what that holds could not be undone by any
        // target.
        fs::write(&clock, "+180s\n").unwrap();
        let workload = Workload::start(&cluster, 3, seed);
        cluster.run("pgbench", &["-c", "12", "-j", "2", "-T", "1", "-n", "-N"]).expect_ok();
        cluster.sql("select pg_create_restore_point('ahead')");
        fs::write(&clock, "+90s\n").unwrap();
        cluster.run("pgbench", &["-c", "12", "-j", "2", "-T", "1", "-n", "-N"]).expect_ok();
        cluster.sql("select pg_create_restore_point('set back')");
        fs::write(&clock, "+177s\n").unwrap();
        std::thread::sleep(Duration::from_millis(300));
        workload.stop();
        let subtransactions = subtransactions(&cluster);
        let mut standby = cluster.standby(options.set("archive_command", &both));
        // The standby archives what it writes itself, not what it was sent; and the backup it came from has ended one
        // more segment.
        let last = cluster.switch_wal();
        cluster.wait_for(&format!("select coalesce(max(last_archived_wal), '') >= '{last}' from pg_stat_archiver"));
        let fork = cluster.current_lsn();
        standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{fork}'"));
        let mut cluster = cluster;
        cluster.stop_immediately();
        standby.promote();
        let begun = standby.current_lsn();
        standby.run("pgbench", &["-c", "8", "-j", "2", "-T", "1", "-n", "-N"]).expect_ok();
        standby.sql("select pg_create_restore_point('after the fork')");
        let last = standby.switch_wal();
        standby.wait_for(&format!("select coalesce(max(last_archived_wal), '') >= '{last}' from pg_stat_archiver"));
        standby.stop_immediately();

        let records = both_timelines(&standby, &scratch, &consistent);
        assert!(records.last().is_some_and(|record| record.lsn > lsn(&begun)), "nothing of the second timeline");
        Scene { major, site, scratch, history: History::of(records, &consistent), subtransactions }
    }

    /// How far PostgreSQL alone recovers, from its own base backup and its own segments.
    fn recovered(&self, target: &Target) -> Stopped {
        self.paused(&self.to_recover(target))
    }

    /// What PostgreSQL alone says of a target that it never meets.
    fn never_met(&self, target: &Target) -> String {
        let data = self.to_recover(target);
        let mut server = Cluster::adopt(self.major, &data);
        // It may be up for a moment, as a standby that takes connections.
        let log = match server.try_start() {
            Err(log) => log,
            Ok(()) => {
                let ended = process::until(Duration::from_secs(60), || (!server.is_running()).then_some(()));
                assert!(ended.is_some(), "{target:?}: it does not end\n{}", server.log());
                server.log()
            }
        };
        server.kill9();
        fs::remove_dir_all(&data).unwrap();
        log
    }

    /// A copy of the base backup that recovers up to a target.
    fn to_recover(&self, target: &Target) -> PathBuf {
        let data = self.scratch.join("recovered");
        let mut copy = process::command("cp", Orphan::Kill);
        copy.arg("-a").arg(self.scratch.join("base")).arg(&data);
        process::run(copy).expect_ok();
        let folder = self.scratch.join("wal");
        let settings = format!(
            "restore_command = 'cp {}/%f %p'\n{}recovery_target_action = pause\narchive_mode = off\n",
            folder.display(),
            target.settings()
        );
        fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
        self.scratch.file("recovered/recovery.signal", "");
        data
    }

    /// How far a restore by walkeep gets.
    fn restored(&self, options: &[String]) -> Stopped {
        let data = self.scratch.directory("restored");
        let mut command = self.site.command();
        command.args(["restore", "postgres", "main", "--target-action", "pause", "--pgdata"]).arg(&data).args(options);
        process::run(command).expect_ok();
        self.paused(&data)
    }

    /// Starts a server that pauses at its target; where that is. Then it is gone, directory and all.
    fn paused(&self, data: &Path) -> Stopped {
        let mut server = Cluster::adopt(self.major, data);
        server.start_again();
        let paused =
            if self.major == 13 { "pg_is_wal_replay_paused()" } else { "pg_get_wal_replay_pause_state() = 'paused'" };
        server.wait_for(&format!("select {paused}"));
        let asked = "select pg_last_wal_replay_lsn(), to_char(pg_last_xact_replay_timestamp() at time zone 'UTC', \
            'YYYY-MM-DD HH24:MI:SS.US')";
        let answer = server.sql(asked);
        let (at, last) = answer.split_once('|').unwrap();
        let log = server.log();
        let words =
            log.lines().find_map(|line| line.split_once("recovery stopping ")).map(|(_, words)| words.to_owned());
        let words = words.unwrap_or_else(|| panic!("it does not say where it stopped\n{log}"));
        server.stop_immediately();
        drop(server);
        fs::remove_dir_all(data).unwrap();
        Stopped { at: lsn(at), last: last.to_owned(), words }
    }

    fn plan(&self, options: &[String]) -> serde_json::Value {
        let mut command = self.site.command();
        command.args(["plan", "postgres", "main", "--json"]).args(options);
        process::run(command).json()
    }

    /// The plan for a target against what PostgreSQL did with it.
    fn compare(&self, target: &Target, stop: u64, told: &str) -> Stopped {
        let History { records, endings, .. } = &self.history;
        let stopped = self.recovered(target);
        let next = |from: u64| records.iter().find(|record| record.lsn >= from).map(|record| record.lsn);
        let before = |to: u64| records.iter().rfind(|record| record.lsn < to).map(|record| record.lsn);
        let at = spell(stopped.at);
        assert_eq!(
            next(stop),
            next(stopped.at),
            "{told}: the rule that targets are drawn by is not PostgreSQL's; stopped at {at}"
        );
        let plan = self.plan(&target.options());
        assert_eq!(plan["reachable"], true, "{told}: {}", plan["reason"]);
        let planned = lsn(plan["target_lsn"].as_str().unwrap());
        let expected = if plan["inclusive"] == true { before(stopped.at) } else { next(stopped.at) };
        assert_eq!(Some(planned), expected, "{told}: recovery stopped at {at}, {}", stopped.words);
        let commit =
            |found: Option<&Ending>| found.map(|ending| (ending.lsn, u64::from(ending.xid), ending.time.to_string()));
        let shown = |name: &str| {
            let commit = &plan[name];
            let time = commit["time"].as_str()?.replacen(' ', "T", 1).replace("+00", "Z");
            let time: jiff::Timestamp = time.parse().unwrap_or_else(|error| panic!("{error}: {time}"));
            Some((lsn(commit["lsn"].as_str()?), commit["xid"].as_u64()?, time.to_string()))
        };
        let kept = endings.iter().rfind(|ending| ending.commit && ending.lsn < stopped.at);
        let lost = endings.iter().find(|ending| ending.commit && ending.lsn >= stopped.at);
        // Before the first record that was read here there may be commits, too.
        if kept.is_some() {
            assert_eq!(shown("last_commit_before"), commit(kept), "{told}");
        }
        assert_eq!(shown("first_commit_after"), commit(lost), "{told}");
        self.said(&stopped, planned, target, told);
        stopped
    }

    /// What PostgreSQL said and shows of the transactions around its stop.
    fn said(&self, stopped: &Stopped, planned: u64, target: &Target, told: &str) {
        let endings = &self.history.endings;
        let words = &stopped.words;
        if let Some((_, rest)) = words.split_once("transaction ") {
            let xid = rest.split(',').next().unwrap();
            let ending = endings.iter().find(|ending| ending.lsn == planned);
            assert_eq!(ending.map(|ending| ending.xid.to_string()).as_deref(), Some(xid), "{told}: {words}");
        }
        let side = if target.kind == "time" || !target.inclusive { "before" } else { "after" };
        assert!(words.starts_with(side) || words.starts_with("at restore point"), "{told}: {words}");
        // The time of the record it stops at is not noted where a position made it stop (`recoveryStopsAfter`).
        let replayed = endings.iter().rev().filter(|ending| ending.lsn < stopped.at);
        let times: Vec<String> =
            replayed.take(2).map(|ending| ending.time.strftime("%Y-%m-%d %H:%M:%S.%6f").to_string()).collect();
        assert!(times.is_empty() || times.contains(&stopped.last), "{told}: {} is none of {times:?}", stopped.last);
    }
}

/// A transaction with two subtransactions, of which the first is rolled back: their numbers.
fn subtransactions(cluster: &Cluster) -> [u32; 2] {
    let insert = "insert into ledger (rows, filler) values (3, '') returning xmin";
    let statements = [
        "begin",
        insert,
        "savepoint a",
        insert,
        "rollback to a",
        "release a",
        "savepoint b",
        insert,
        "release b",
        insert,
        "commit",
    ];
    // One by one: of several statements at once an older psql shows the last one's rows only.
    let arguments: Vec<&str> = ["-XAtq"].into_iter().chain(statements.iter().flat_map(|one| ["-c", one])).collect();
    let asked = cluster.run("psql", &arguments).expect_ok();
    let seen: Vec<u32> = asked.lines().map(|xid| xid.parse().unwrap()).collect();
    assert!(seen.len() == 4 && seen[0] == seen[3] && seen[0] < seen[1] && seen[1] < seen[2], "{asked}");
    [seen[1], seen[2]]
}

/// One that was rolled back has a record of its own, where recovery stops; one that committed has none, so that it is
/// never met (TRAPS 48).
fn subtransactions_as_targets(scene: &Scene) {
    let [undone, committed] = scene.subtransactions;
    let target = |xid: u32, inclusive| Target { kind: "xid", value: xid.to_string(), inclusive };
    let of = |xid| scene.history.endings.iter().find(move |ending| ending.xid == xid);
    let ending = of(undone).expect("the record of the one that was rolled back");
    assert!(!ending.commit && of(committed).is_none());
    scene.compare(&target(undone, true), ending.lsn + 1, &format!("{}, undone subtransaction {undone}", scene.major));

    let told = format!("{}, committed subtransaction {committed}", scene.major);
    let refused = scene.site.walkeep(&["plan", "postgres", "main", "--target-xid", &committed.to_string()]);
    let refused = refused.expect_code(3).stdout;
    assert!(refused.contains("subtransaction"), "{told}: {refused}");
    let log = scene.never_met(&target(committed, true));
    assert!(log.contains("recovery ended before configured recovery target was reached"), "{told}\n{log}");
}

/// What the first timeline has up to where the second left it, and then what that has.
fn both_timelines(cluster: &Cluster, place: &Scratch, from: &str) -> Vec<Record> {
    let folder = place.join("wal");
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let files = || fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
    let history = fs::read_to_string(folder.join("00000002.history")).unwrap();
    let switch = history.split_whitespace().nth(1).unwrap();
    // Left right at the end of a segment, it has none that it did not complete.
    let cut = lsn(switch) & 0xF_FFFF != 0;
    let partial =
        process::until(Duration::from_secs(60), || files().find(|path| !cut || name(path).ends_with(".partial")));
    assert!(partial.is_some(), "the first timeline's end is not archived");
    // Its last segment under the name that it never got.
    let first = place.directory("wal-1");
    for path in files().filter(|path| name(path).starts_with("00000001")) {
        let copy = first.join(name(&path).trim_end_matches(".partial"));
        fs::copy(&path, &copy).unwrap();
        scratch::give(&copy);
    }
    let mut records = waldump::records(cluster, &first, 1, from);
    records.retain(|record| record.lsn < lsn(switch));
    records.extend(waldump::records(cluster, &folder, 2, switch));
    records
}

fn agrees_on(major: u32) {
    if !majors().contains(&major) {
        println!("PostgreSQL {major} is not installed");
        return;
    }
    let seed = rand::random();
    let mut random = SmallRng::seed_from_u64(seed);
    let scene = Scene::new(major, seed);
    let endings = &scene.history.endings;
    let back = endings.iter().zip(endings.iter().skip(1)).filter(|(one, next)| next.time < one.time).count();
    let far = endings.iter().zip(endings.iter().skip(1)).any(|(one, next)| (one.time - next.time).get_seconds() > 60);
    println!("{major}: {} endings, {back} earlier than the one before, seed {seed}", endings.len());
    assert!(back > 0 && far, "{major}: no commit times against the order of the log");
    for nth in 0..KINDS {
        let (target, stop) = scene.history.draw_stop_of(nth, &mut random);
        let told = format!("{major}, {target:?}, seed {seed}");
        let stopped = scene.compare(&target, stop, &told);
        if nth % 4 == 0 {
            let restored = scene.restored(&target.options());
            assert_eq!(restored.at, stopped.at, "{told}: restored");
        }
    }
    subtransactions_as_targets(&scene);
    // The end of the backup is walkeep's own backup's.
    let immediate = ["--target-immediate".to_owned()];
    let plan = scene.plan(&immediate);
    let restored = scene.restored(&immediate);
    assert!(restored.words.starts_with("after reaching consistency"), "{}", restored.words);
    assert!(restored.at >= lsn(plan["target_lsn"].as_str().unwrap()), "{plan}");
}

#[test]
fn postgresql_13() {
    agrees_on(13);
}

#[test]
fn postgresql_14() {
    agrees_on(14);
}

#[test]
fn postgresql_15() {
    agrees_on(15);
}

#[test]
fn postgresql_16() {
    agrees_on(16);
}

#[test]
fn postgresql_17() {
    agrees_on(17);
}

#[test]
fn postgresql_18() {
    agrees_on(18);
}
