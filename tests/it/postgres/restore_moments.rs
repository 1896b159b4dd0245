//! A restore to a random moment shows exactly the transactions committed before it. What was committed when is read by
//! `pg_waldump` from the server's own WAL, and where recovery stops is PostgreSQL's rule (`recoveryStopsBefore`,
//! `recoveryStopsAfter` in xlogrecovery.c), to which `restore_targets.rs` holds it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};

use crate::support::process;
use crate::support::waldump::{self, Ending, Record, lsn, spell};
use crate::support::workload::{self, Workload};
use crate::support::{Cluster, Options, QUICK, Site};

const TARGETS: usize = 20;

/// Kinds of targets to draw, the more important ones more than once.
pub(super) const KINDS: usize = 8;

/// A place to stop, in the words of both walkeep and PostgreSQL.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) kind: &'static str,
    pub(super) value: String,
    pub(super) inclusive: bool,
}

impl Target {
    /// As walkeep's command line has it.
    pub(super) fn options(&self) -> Vec<String> {
        let mut options = vec![format!("--target-{}", self.kind), self.value.clone()];
        options.extend((!self.inclusive).then(|| "--target-exclusive".to_owned()));
        options
    }

    /// As PostgreSQL's configuration has it.
    pub(super) fn settings(&self) -> String {
        let Target { kind, value, inclusive } = self;
        format!("recovery_target_{kind} = '{value}'\nrecovery_target_inclusive = {inclusive}\n")
    }
}

/// The WAL of a finished workload, as PostgreSQL reads it.
pub(super) struct History {
    pub(super) records: Vec<Record>,
    pub(super) endings: Vec<Ending>,
    /// Where the first backup is consistent; no target lies before.
    consistent: u64,
}

impl History {
    pub(super) fn read(cluster: &Cluster, folder: &Path, from: &str, consistent: &str) -> Self {
        Self::of(waldump::records(cluster, folder, 1, from), consistent)
    }

    pub(super) fn of(records: Vec<Record>, consistent: &str) -> Self {
        let endings = waldump::endings(&records);
        Self { records, endings, consistent: lsn(consistent) }
    }

    /// A random target and the transactions of `ledger` that it leaves committed.
    pub(super) fn draw(&self, random: &mut SmallRng) -> (Target, BTreeSet<u32>) {
        let (target, stop) = self.draw_stop(random);
        let committed = self.endings.iter().filter(|ending| ending.commit && ending.lsn < stop);
        (target, committed.map(|ending| ending.xid).collect())
    }

    /// A random target, and where it stops: records that start before are replayed.
    pub(super) fn draw_stop(&self, random: &mut SmallRng) -> (Target, u64) {
        let kind = random.random_range(0..KINDS);
        self.draw_stop_of(kind, random)
    }

    /// The same of one of the [`KINDS`]: half are times, a quarter positions, and a transaction and a restore point.
    pub(super) fn draw_stop_of(&self, kind: usize, random: &mut SmallRng) -> (Target, u64) {
        loop {
            // PostgreSQL knows no "before" a restore point.
            let inclusive = kind == 7 || random.random_bool(0.5);
            let (kind, value, stop) = match kind {
                0..=3 => self.draw_time(random, inclusive),
                4..=5 => self.draw_lsn(random, inclusive),
                6 => self.draw_xid(random, inclusive),
                _ => self.draw_name(random, inclusive),
            };
            // Recovery needs a record to stop at, after the backup is consistent.
            if let Some(stop) = stop.filter(|stop| *stop > self.consistent) {
                return (Target { kind, value, inclusive }, stop);
            }
        }
    }

    /// A restore point: the first of its name is the one.
    fn draw_name(&self, random: &mut SmallRng, inclusive: bool) -> (&'static str, String, Option<u64>) {
        let named = |record: &Record| {
            let name = record.description.strip_prefix("RESTORE_POINT ")?.split(';').next()?;
            (record.manager == "XLOG").then(|| (name.to_owned(), record.lsn))
        };
        let points: Vec<(String, u64)> = self.records.iter().filter_map(named).collect();
        if points.is_empty() {
            return ("name", String::new(), None);
        }
        let name = points[random.random_range(0..points.len())].0.clone();
        let first = points.iter().find(|(other, _)| *other == name).map(|(_, lsn)| *lsn);
        ("name", name, first.map(|lsn| if inclusive { lsn + 1 } else { lsn }))
    }

    /// In WAL order the first ending after the time: times are not in that order. Most draws lie on an ending or a
    /// microsecond beside it.
    fn draw_time(&self, random: &mut SmallRng, inclusive: bool) -> (&'static str, String, Option<u64>) {
        // Every other one at an ending that is earlier than one before it in the log, if there is any.
        let mut latest = self.endings[0].time;
        let backward = |ending: &&Ending| {
            let back = ending.time < latest;
            latest = latest.max(ending.time);
            back
        };
        let backward: Vec<Ending> = self.endings.iter().filter(backward).copied().collect();
        let near = match backward.len() {
            0 => self.any_ending(random).time,
            some if random.random_bool(0.5) => backward[random.random_range(0..some)].time,
            _ => self.any_ending(random).time,
        };
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
    let mut command = site.command();
    command.args(["restore", "postgres", "main", "--pgdata"]).arg(&data).args(target.options());
    let finished = process::run(command);
    assert_eq!(finished.code, Some(0), "{target:?}, seed {seed}\n{}{}", finished.stdout, finished.stderr);
    data
}
