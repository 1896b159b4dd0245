//! A restore to a random moment shows exactly the transactions committed before it. What was committed when is read by `pg_waldump` from
//! the server's own WAL, and where recovery stops is PostgreSQL's rule (`recoveryStopsBefore`, `recoveryStopsAfter` in xlogrecovery.c).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};

use crate::support::process::{self, Orphan};
use crate::support::waldump::{self, Ending, Record, lsn, spell};
use crate::support::workload::{self, Workload};
use crate::support::{Cluster, Options, QUICK, Scratch, Site};

const TARGETS: usize = 20;

/// A place to stop, in the words of both walkeep and PostgreSQL.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) kind: &'static str,
    pub(super) value: String,
    pub(super) inclusive: bool,
}

/// The WAL of a finished workload, as PostgreSQL reads it.
pub(super) struct History {
    records: Vec<Record>,
    endings: Vec<Ending>,
    /// Where the first backup is consistent; no target lies before.
    consistent: u64,
}

impl History {
    pub(super) fn read(cluster: &Cluster, folder: &Path, from: &str, consistent: &str) -> Self {
        let records = waldump::records(cluster, folder, 1, from);
        let endings = waldump::endings(&records);
        Self { records, endings, consistent: lsn(consistent) }
    }

    /// A random target and the transactions of `ledger` that it leaves committed.
    pub(super) fn draw(&self, random: &mut SmallRng) -> (Target, BTreeSet<u32>) {
        loop {
            let inclusive = random.random_bool(0.5);
            let (kind, value, stop) = match random.random_range(0..3) {
                0 => self.draw_time(random, inclusive),
                1 => self.draw_lsn(random, inclusive),
                _ => self.draw_xid(random, inclusive),
            };
            // Recovery needs a record to stop at, after the backup is consistent.
            if let Some(stop) = stop.filter(|stop| *stop > self.consistent) {
                let committed = self.endings.iter().filter(|ending| ending.commit && ending.lsn < stop);
                return (Target { kind, value, inclusive }, committed.map(|ending| ending.xid).collect());
            }
        }
    }

    /// In WAL order the first ending after the time: times are not in that order. Most draws lie on an ending or a microsecond beside it.
    fn draw_time(&self, random: &mut SmallRng, inclusive: bool) -> (&'static str, String, Option<u64>) {
        let near = self.any_ending(random).time;
        let offset = match random.random_range(0..4) {
            0 => 0,
            1 => 1,
            2 => -1,
            _ => random.random_range(-5_000..5_000),
        };
        let time = near + jiff::SignedDuration::from_micros(offset);
        let stop = self.endings.iter().find(|ending| if inclusive { ending.time > time } else { ending.time >= time });
        ("time", time.strftime("%Y-%m-%d %H:%M:%S.%6f+00").to_string(), stop.map(|ending| ending.lsn))
    }

    /// The first record that starts at or after the position is the last one replayed, or the first not replayed.
    fn draw_lsn(&self, random: &mut SmallRng, inclusive: bool) -> (&'static str, String, Option<u64>) {
        let near = &self.records[random.random_range(0..self.records.len() - 1)];
        let at = near.lsn + if random.random_bool(0.3) { random.random_range(1..40) } else { 0 };
        let found = self.records.iter().find(|record| record.lsn >= at).map(|record| record.lsn);
        ("lsn", spell(at), found.map(|lsn| if inclusive { lsn + 1 } else { lsn }))
    }

    fn draw_xid(&self, random: &mut SmallRng, inclusive: bool) -> (&'static str, String, Option<u64>) {
        let ending = self.any_ending(random);
        if ending.xid == 0 {
            return ("xid", String::new(), None);
        }
        ("xid", ending.xid.to_string(), Some(if inclusive { ending.lsn + 1 } else { ending.lsn }))
    }

    fn any_ending(&self, random: &mut SmallRng) -> Ending {
        self.endings[random.random_range(0..self.endings.len())]
    }
}

/// Small segments, so that a short workload fills many.
pub(super) fn source() -> Cluster {
    let options =
        Options::default().segment_size_mb(1).set("max_prepared_transactions", 20).set("wal_keep_size", "4GB");
    Cluster::start(QUICK, options.set("synchronous_commit", "off").set("autovacuum_naptime", "1s"))
}

/// What a restored directory shows once PostgreSQL has replayed up to the target.
pub(super) fn shown(data: &Path) -> BTreeSet<u32> {
    let mut restored = Cluster::adopt(QUICK, data);
    restored.start_again();
    restored.wait_for("select not pg_is_in_recovery()");
    // Prepared but not ended at the target: in doubt, so not committed.
    let found = workload::transactions(&restored);
    restored.stop_immediately();
    found
}

pub(super) fn check(target: &Target, expected: &BTreeSet<u32>, found: &BTreeSet<u32>, seed: u64) {
    let missing: Vec<_> = expected.difference(found).collect();
    let extra: Vec<_> = found.difference(expected).collect();
    assert!(missing.is_empty() && extra.is_empty(), "{target:?}, seed {seed}: missing {missing:?}, too many {extra:?}");
}

/// That the rule this file draws by is PostgreSQL's own: the same with pg_basebackup, `cp` and PostgreSQL's recovery alone.
#[test]
fn the_oracle_agrees_with_postgresql() {
    let seed = rand::random();
    let mut random = SmallRng::seed_from_u64(seed);
    let cluster = source();
    let scratch = Scratch::new();
    let base = scratch.join("base").to_string_lossy().into_owned();
    let from = cluster.current_lsn();
    let workload = Workload::start(&cluster, 4, seed);
    cluster.run("pg_basebackup", &["-D", &base, "-X", "none", "-c", "fast", "--no-sync"]).expect_ok();
    let consistent = cluster.current_lsn();
    std::thread::sleep(Duration::from_secs(1));
    let ours = workload.stop();
    cluster.switch_wal();

    let history = History::read(&cluster, &cluster.pg_wal(), &from, &consistent);
    for n in 0..4 {
        let (target, mut expected) = history.draw(&mut random);
        expected.retain(|xid| ours.contains(xid));
        let data = scratch.join(format!("restored-{n}"));
        let mut copy = process::command("cp", Orphan::Kill);
        copy.args(["-a", &base]).arg(&data);
        process::run(copy).expect_ok();
        let settings = format!(
            "restore_command = 'cp {}/%f %p'\nrecovery_target_{} = '{}'\nrecovery_target_inclusive = {}\nrecovery_target_action = promote\n",
            cluster.pg_wal().display(),
            target.kind,
            target.value,
            target.inclusive
        );
        fs::write(data.join("postgresql.auto.conf"), settings).unwrap();
        scratch.file(&format!("restored-{n}/recovery.signal"), "");
        check(&target, &expected, &shown(&data), seed);
    }
}

#[test]
fn a_restore_shows_exactly_what_was_committed_before() {
    let seed = rand::random();
    let mut random = SmallRng::seed_from_u64(seed);
    let cluster = source();
    let site = Site::for_cluster(&cluster);
    let mut receiver = site.spawn("receive", &["receive", "main"]);
    cluster.wait_for("select count(*) > 0 from pg_stat_replication");

    let from = cluster.current_lsn();
    let workload = Workload::start(&cluster, 6, seed);
    site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    let consistent = cluster.current_lsn();
    std::thread::sleep(Duration::from_secs(3));
    site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    std::thread::sleep(Duration::from_secs(3));
    let acknowledged = workload.stop();
    let last = cluster.switch_wal();
    let history = History::read(&cluster, &cluster.pg_wal(), &from, &consistent);
    let committed: BTreeSet<u32> = history.endings.iter().filter(|e| e.commit).map(|e| e.xid).collect();
    let ours = workload::transactions(&cluster);
    assert_eq!(ours, acknowledged);
    assert!(ours.is_subset(&committed) && ours.len() > 500, "{} of {}", ours.len(), committed.len());

    let end = cluster.current_lsn();
    wait_until_archived(&site, &end);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    drop(receiver);
    drop(cluster);

    for n in 0..TARGETS {
        let (target, mut expected) = history.draw(&mut random);
        expected.retain(|xid| ours.contains(xid));
        let data = restore(&site, &target, n, seed);
        check(&target, &expected, &shown(&data), seed);
        fs::remove_dir_all(data).unwrap();
    }
    println!("{TARGETS} targets over {} transactions, up to {last}", ours.len());
}

/// The last segment is in the repository a moment after the switch.
fn wait_until_archived(site: &Site, end: &str) {
    let end = lsn(end);
    let archived = process::until(Duration::from_secs(30), || {
        let list = site.walkeep(&["list", "postgres", "main", "--json"]).json();
        let to = list["clusters"][0]["windows"][0]["to_lsn"].as_str()?.to_owned();
        (lsn(&to) + (1 << 20) >= end).then_some(())
    });
    assert!(archived.is_some(), "not archived up to {}", spell(end));
}

fn restore(site: &Site, target: &Target, n: usize, seed: u64) -> PathBuf {
    let data = site.path().join(format!("restored-{n}"));
    let option = format!("--target-{}", target.kind);
    let mut command = site.command();
    command.args(["restore", "postgres", "main", "--pgdata"]).arg(&data).args([&option, &target.value]);
    if !target.inclusive {
        command.arg("--target-exclusive");
    }
    let finished = process::run(command);
    assert_eq!(finished.code, Some(0), "{target:?}, seed {seed}\n{}{}", finished.stdout, finished.stderr);
    data
}
