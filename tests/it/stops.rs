//! Where a target leads: the plan's answer, a restore by it, and PostgreSQL's own recovery with the same target must end at the same record.
//! The targets lie where an answer is easily wrong: at commits whose times run against the order of the log.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};

use crate::support::process::{self, Orphan};
use crate::support::waldump::{self, Ending, Record, lsn};
use crate::support::workload::Workload;
use crate::support::{Cluster, Options, QUICK, Scratch, Site};

/// A target in the words of both: of PostgreSQL's setting, and of walkeep's option.
struct Target {
    kind: &'static str,
    value: String,
    inclusive: bool,
}

impl Target {
    fn at(time: jiff::Timestamp, inclusive: bool) -> Target {
        Target { kind: "time", value: time.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string(), inclusive }
    }

    fn options(&self) -> Vec<String> {
        let mut options = vec![format!("--target-{}", self.kind), self.value.clone()];
        options.extend((!self.inclusive).then(|| "--target-exclusive".to_owned()));
        options
    }
}

#[test]
fn a_target_leads_where_postgresqls_own_recovery_stops() {
    let seed = rand::random();
    let mut random = SmallRng::seed_from_u64(seed);
    let options = Options::default().segment_size_mb(1).set("max_prepared_transactions", 20);
    let options = options.set("wal_keep_size", "8GB").set("synchronous_commit", "off");
    let cluster = Cluster::start(QUICK, options);
    cluster.run("pgbench", &["-i", "-s", "1", "-q"]).expect_ok();
    let site = Site::for_cluster(&cluster);
    let mut receiver = site.spawn("receive", &["receive", "main"]);
    let scratch = Scratch::new();
    let base = scratch.join("base");
    let base_backup = ["-D", &base.to_string_lossy(), "-X", "none", "-c", "fast", "--no-sync"].map(str::to_owned);
    cluster.run("pg_basebackup", &base_backup.each_ref().map(String::as_str)).expect_ok();
    site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    let consistent = cluster.current_lsn();

    let workload = Workload::start(&cluster, 3, seed);
    cluster.run("pgbench", &["-c", "16", "-j", "2", "-T", "2", "-n", "-N"]).expect_ok();
    cluster.sql("select pg_create_restore_point('midway')");
    cluster.run("pgbench", &["-c", "16", "-j", "2", "-T", "2", "-n", "-N"]).expect_ok();
    workload.stop();
    let last = cluster.switch_wal();
    let records = waldump::records(&cluster, &cluster.pg_wal(), 1, &consistent);
    let endings = waldump::endings(&records);
    let ended = cluster.current_lsn();
    let kept = process::until(Duration::from_secs(60), || {
        cluster.sql(&format!("select bool_and(flush_lsn >= '{ended}') from pg_stat_replication")).eq("t").then_some(())
    });
    assert!(kept.is_some(), "the receiver never got {last}");
    assert!(receiver.terminate().success());

    for target in targets(&endings, &mut random) {
        let stopped = recovered(&cluster, &base, &scratch, &target);
        let mut arguments = vec!["plan".to_owned(), "postgres".into(), "main".into(), "--json".into()];
        arguments.extend(target.options());
        let plan = site.walkeep(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).json();
        let told = format!("{} {} (inclusive: {}), seed {seed}", target.kind, target.value, target.inclusive);
        assert_eq!(plan["reachable"], true, "{told}: {}", plan["reason"]);
        let planned = lsn(plan["target_lsn"].as_str().unwrap());
        let next = |end: u64| records.iter().find(|record| record.lsn >= end).map(|record| record.lsn);
        let replayed = |end: u64| records.iter().rfind(|record| record.lsn < end).map(|record: &Record| record.lsn);
        let expected = if plan["inclusive"] == true { replayed(stopped) } else { next(stopped) };
        assert_eq!(Some(planned), expected, "{told}: recovery stopped at {}", waldump::spell(stopped));
        let commits = |found: Option<&Ending>| found.map(|ending| ending.lsn);
        let before = commits(endings.iter().rfind(|ending| ending.commit && ending.lsn < stopped));
        let after = commits(endings.iter().find(|ending| ending.commit && ending.lsn >= stopped));
        assert_eq!(plan["last_commit_before"]["lsn"].as_str().map(lsn), before, "{told}");
        assert_eq!(plan["first_commit_after"]["lsn"].as_str().map(lsn), after, "{told}");
        if random.random_bool(0.3) {
            assert_eq!(restored(&site, &scratch, &target), stopped, "{told}: restored");
        }
    }
}

/// Times at and around commits that are earlier than one before them in the log, and a target of each other kind.
fn targets(endings: &[Ending], random: &mut SmallRng) -> Vec<Target> {
    let mut latest = endings[0].time;
    let mut backward = Vec::new();
    for ending in endings {
        if ending.time < latest {
            backward.push((ending.time, latest));
        }
        latest = latest.max(ending.time);
    }
    println!("{} of {} endings are earlier than one before them", backward.len(), endings.len());
    assert!(!backward.is_empty(), "no commit times against the order of the log");
    let micro = jiff::SignedDuration::from_micros(1);
    let mut targets = Vec::new();
    for _ in 0..3 {
        let (early, late) = backward[random.random_range(0..backward.len())];
        let times = [early, early - micro, late, late - micro, early + micro];
        for at in [random.random_range(0..2), random.random_range(2..5)] {
            targets.push(Target::at(times[at], random.random_bool(0.5)));
        }
    }
    let pick = |random: &mut SmallRng, wanted: fn(&Ending) -> bool| {
        let some: Vec<&Ending> = endings.iter().filter(|ending| wanted(ending) && ending.xid != 0).collect();
        some[random.random_range(0..some.len())].xid.to_string()
    };
    let xid = |value, inclusive| Target { kind: "xid", value, inclusive };
    targets.push(xid(pick(random, |ending| ending.prepared), random.random_bool(0.5)));
    targets.push(xid(pick(random, |ending| !ending.commit), random.random_bool(0.5)));
    targets.push(Target { kind: "name", value: "midway".into(), inclusive: true });
    targets
}

/// How far PostgreSQL alone recovers, from its own base backup and its own segments.
fn recovered(cluster: &Cluster, base: &Path, scratch: &Scratch, target: &Target) -> u64 {
    let data = scratch.join("recovered");
    let mut copy = process::command("cp", Orphan::Kill);
    copy.arg("-a").arg(base).arg(&data);
    process::run(copy).expect_ok();
    let settings = format!(
        "restore_command = 'cp {}/%f %p'\nrecovery_target_{} = '{}'\nrecovery_target_inclusive = {}\nrecovery_target_action = pause\n",
        cluster.pg_wal().display(),
        target.kind,
        target.value,
        target.inclusive
    );
    fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
    scratch.file("recovered/recovery.signal", "");
    paused_at(&data)
}

/// How far a restore by walkeep gets.
fn restored(site: &Site, scratch: &Scratch, target: &Target) -> u64 {
    let data = scratch.directory("restored");
    let mut arguments: Vec<String> =
        ["restore", "postgres", "main", "--target-action", "pause"].map(str::to_owned).into();
    arguments.extend(["--pgdata".to_owned(), data.to_string_lossy().into_owned()]);
    arguments.extend(target.options());
    site.walkeep(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).expect_ok();
    paused_at(&data)
}

/// Starts a server that pauses at its target; where that is. Then it is gone, directory and all.
fn paused_at(data: &Path) -> u64 {
    let mut server = Cluster::adopt(QUICK, data);
    server.start_again();
    server.wait_for("select pg_get_wal_replay_pause_state() = 'paused'");
    let at = lsn(&server.sql("select pg_last_wal_replay_lsn()"));
    server.stop_immediately();
    drop(server);
    fs::remove_dir_all(data).unwrap();
    at
}
