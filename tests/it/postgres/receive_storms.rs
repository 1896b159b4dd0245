//! Random kills, shutdowns and outages under load, with a local repository and one in an object store: each repository
//! alone restores to the newest moment that it promises.
//!
//! The oracles are the writers' own record of what was committed, and `pg_waldump` for what was committed before a
//! position. `WALKEEP_STORM_ROUNDS` and `WALKEEP_STORM_SEED` make it longer or other.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};

use crate::support::process::{Running, tail, until};
use crate::support::store::{Mode, Proxy, S3};
use crate::support::waldump::{self, lsn};
use crate::support::workload::{Workload, transactions};
use crate::support::{Cluster, Options, QUICK, Site};

/// Enough for each kind of trouble to occur twice or so.
const ROUNDS: u64 = 12;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().expect("a number"))
}

struct Storm {
    cluster: Cluster,
    site: Site,
    network: Proxy,
    store: S3,
    receiver: Running,
    random: SmallRng,
}

impl Storm {
    fn start(seed: u64) -> Storm {
        let options = Options::default().segment_size_mb(1).set("wal_keep_size", "4GB");
        let cluster = Cluster::start(QUICK, options.set("max_prepared_transactions", "20"));
        let site = Site::for_cluster(&cluster);
        let store = S3::start();
        let network = Proxy::before(store.port());
        store.add_through(&site, network.port()).expect_ok();
        let receiver = site.spawn("receive", &["receive"]);
        cluster.wait_for("select count(*) > 0 from pg_stat_replication");
        site.walkeep(&["backup", "postgres"]).expect_ok();
        Storm { cluster, site, network, store, receiver, random: SmallRng::seed_from_u64(seed) }
    }

    fn pause(&mut self, longest_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.random.random_range(20..longest_ms)));
    }

    /// One piece of trouble, which ends before the next begins; except for the network, which may stay slow.
    fn round(&mut self) {
        let disk = self.site.repository();
        let away = self.site.path().join("unmounted");
        match self.random.random_range(0..7) {
            0 | 1 => {
                self.receiver.kill9();
                self.pause(300);
                self.receive();
            }
            2 => {
                assert!(self.receiver.terminate().success(), "{}", tail(&self.receiver.output(), 30));
                self.receive();
            }
            3 => self.network.set(if self.random.random_bool(0.5) { Mode::Slow } else { Mode::Pass }),
            4 => {
                self.network.set(Mode::Cut);
                self.pause(2000);
                self.network.set(Mode::Pass);
            }
            5 => {
                self.network.set(Mode::Hold);
                self.pause(1500);
                self.receiver.kill9();
                self.receive();
                self.network.set(Mode::Pass);
            }
            _ => {
                fs::rename(&disk, &away).unwrap();
                self.pause(1500);
                if self.random.random_bool(0.5) {
                    self.receiver.kill9();
                    self.receive();
                }
                fs::rename(&away, &disk).unwrap();
            }
        }
        self.pause(900);
    }

    fn receive(&mut self) {
        self.receiver = self.site.spawn("receive", &["receive"]);
    }

    /// Waits until a repository has this segment and lacks nothing that the other has.
    fn await_complete(&self, name: &str, reached: u64) {
        let complete = until(Duration::from_secs(120), || {
            let listed = self.site.walkeep(&["list", "--json"]);
            let listed: serde_json::Value = serde_json::from_str(&listed.stdout).ok()?;
            let of = listed["clusters"][0]["repositories"].as_array()?;
            let judged = of.iter().find(|judged| judged["repository"] == name)?;
            let to = judged["windows"]
                .as_array()?
                .iter()
                .filter_map(|window| Some(lsn(window["to_lsn"].as_str()?)))
                .max()?;
            (to >= reached && judged["lacking"]["segments"] == 0).then_some(())
        });
        assert!(complete.is_some(), "{name} is not complete\n{}", tail(&self.receiver.output(), 40));
    }

    /// Restores from one repository alone, on a machine that has nothing else: the position that the plan promises, and
    /// the transactions that a server then has.
    fn restored(&self, keep: &str, port: Option<u16>) -> (u64, BTreeSet<u32>) {
        let config = self.config_with(keep, port);
        let config = config.to_str().unwrap();
        let data = self.site.path().join(format!("restored-{keep}"));
        let plan = self.site.walkeep(&["--config", config, "plan", "postgres", "--json"]).json();
        assert_eq!(plan["reachable"], true, "{plan:#}");
        let program = self.cluster.program("postgres");
        let bindir = program.parent().unwrap().to_str().unwrap();
        let arguments = ["--config", config, "restore", "postgres", "--pgdata", data.to_str().unwrap()];
        self.site.walkeep(&[arguments.as_slice(), &["--pg-bindir", bindir]].concat()).expect_ok();
        let mut server = Cluster::adopt(QUICK, &data);
        server.start_again();
        server.wait_for("select not pg_is_in_recovery()");
        let found = transactions(&server);
        server.stop();
        fs::remove_dir_all(data).unwrap();
        (lsn(plan["target_lsn"].as_str().unwrap()), found)
    }

    /// This repository's section alone, a state directory of its own, and another port for the store.
    fn config_with(&self, keep: &str, port: Option<u16>) -> PathBuf {
        let text = fs::read_to_string(self.site.config()).unwrap();
        let mut kept = String::new();
        let mut dropping = false;
        for line in text.lines() {
            if line.starts_with('[') {
                dropping = line.starts_with("[repository.") && !line.starts_with(&format!("[repository.{keep}]"));
            }
            if !dropping {
                kept += &format!("{line}\n");
            }
        }
        let state = self.site.path().join(format!("state-{keep}"));
        let mut kept = kept.replace(self.site.state_dir().to_str().unwrap(), state.to_str().unwrap());
        if let Some(port) = port {
            kept = kept.replace(&format!("127.0.0.1:{}", self.network.port()), &format!("127.0.0.1:{port}"));
        }
        self.site.scratch().file(&format!("{keep}.toml"), &kept)
    }
}

/// The transactions committed by a record that ends at or before this position.
fn committed_before(cluster: &Cluster, from: &str, position: u64) -> BTreeSet<u32> {
    let records = waldump::records(cluster, &cluster.pg_wal(), 1, from);
    let endings = waldump::endings(&records).into_iter();
    // The next record begins where this one ends, or later.
    let next = |at: u64| records.iter().map(|record| record.lsn).find(|lsn| *lsn > at).unwrap_or(u64::MAX);
    endings.filter(|end| end.commit && next(end.lsn) <= position).map(|end| end.xid).collect()
}

#[test]
fn each_repository_alone_keeps_what_it_promises_in_a_storm() {
    let (rounds, seed) = (setting("WALKEEP_STORM_ROUNDS", ROUNDS), setting("WALKEEP_STORM_SEED", 1));
    println!("{rounds} rounds of seed {seed}");
    let mut storm = Storm::start(seed);
    let begin = storm.cluster.current_lsn();
    let workload = Workload::start(&storm.cluster, 3, seed);
    for _ in 0..rounds {
        storm.round();
    }
    // The store is lost, a while before the machine.
    storm.network.set(Mode::Cut);
    storm.pause(1500);
    let committed = workload.stop();
    let reached = lsn(&storm.cluster.current_lsn());
    storm.cluster.switch_wal();
    storm.pause(1500);
    storm.receiver.kill9();
    let store = Some(storm.store.port());
    for (name, port) in [("local", None), ("offsite", store)] {
        let (promised, found) = storm.restored(name, port);
        let expected: BTreeSet<u32> =
            committed_before(&storm.cluster, &begin, promised).intersection(&committed).copied().collect();
        let lost: Vec<&u32> = expected.difference(&found).collect();
        assert!(lost.is_empty(), "{lost:?} of {} promised transactions are not in {name}", expected.len());
        assert!(found.is_subset(&committed) && !found.is_empty(), "{name}: {}", found.len());
        fs::remove_dir_all(storm.site.path().join(format!("state-{name}"))).unwrap();
    }

    // Back again, each gets the rest.
    storm.network.set(Mode::Pass);
    storm.receive();
    for (name, port) in [("local", None), ("offsite", store)] {
        storm.await_complete(name, reached);
        let (_, found) = storm.restored(name, port);
        assert_eq!(found.symmetric_difference(&committed).count(), 0, "{name}: of {} transactions", committed.len());
    }
    assert!(storm.receiver.terminate().success(), "{}", tail(&storm.receiver.output(), 30));
    storm.cluster.stop();
}
