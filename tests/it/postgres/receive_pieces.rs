//! The segment under way in the repository: what outlives server and receiver together, and that nothing of it stays
//! behind.

use std::fs;
use std::io::Write as _;
use std::time::Duration;

use crate::support::process::until;
use crate::support::waldump::lsn;
use crate::support::{Cluster, Options, QUICK, Running, Site};

struct Rig {
    cluster: Cluster,
    site: Site,
    receiver: Running,
}

impl Rig {
    fn start(settings: &str) -> Self {
        let cluster = Cluster::start(QUICK, Options::default());
        let site = Site::for_cluster(&cluster);
        let text = fs::read_to_string(site.config()).unwrap();
        let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with("acknowledge")).collect();
        fs::write(site.config(), kept.join("\n")).unwrap();
        let mut config = fs::File::options().append(true).open(site.config()).unwrap();
        writeln!(config, "\n{settings}").unwrap();
        let receiver = site.spawn("receive", &["receive", "main"]);
        cluster.wait_for("select count(*) > 0 from pg_stat_replication");
        site.walkeep(&["backup", "postgres", "main"]).expect_ok();
        cluster.sql("create table t (n int)");
        Self { cluster, site, receiver }
    }

    /// The ranges of the pieces that are there.
    fn pieces(&self) -> Vec<(u64, u64)> {
        let files = fs::read_dir(self.site.repository().join("main/piece/00000001")).into_iter().flatten();
        let number = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let names = files.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let ours = names.filter(|name| name.len() == 33);
        ours.map(|name| (number(&name[..16]), number(&name[17..]))).collect()
    }

    /// Server, receiver and its machine are gone at once; what a restore elsewhere shows of `t`.
    fn after_the_worst(self) -> String {
        let Self { mut cluster, site, mut receiver } = self;
        cluster.stop_immediately();
        receiver.kill9();
        fs::remove_dir_all(site.state_dir()).unwrap();
        site.walkeep(&["verify"]).expect_ok();
        let data = site.path().join("restored");
        site.walkeep(&["restore", "postgres", "main", "--pgdata", &data.to_string_lossy()]).expect_ok();
        let mut restored = Cluster::adopt(QUICK, &data);
        restored.start_again();
        restored.wait_for("select not pg_is_in_recovery()");
        restored.sql("select string_agg(n::text, ',' order by n) from t")
    }
}

#[test]
fn what_was_committed_seconds_ago_outlives_server_and_receiver() {
    let rig = Rig::start("copy-every = \"1s\"");
    for n in 0..6 {
        rig.cluster.sql(&format!("insert into t values ({n})"));
        let end = lsn(&rig.cluster.sql("select pg_current_wal_lsn()"));
        let copied = || rig.pieces().iter().any(|(_, until)| *until >= end).then_some(());
        until(Duration::from_secs(30), copied).unwrap_or_else(|| panic!("{:?}", rig.pieces()));
    }
    assert!(rig.pieces().len() <= 6, "{:?}", rig.pieces());
    assert_eq!(rig.after_the_worst(), "0,1,2,3,4,5");
}

/// A commit that waits for the repository waits for a piece, not for a whole segment.
#[test]
fn a_synchronous_commit_waits_for_the_repository() {
    let rig = Rig::start("acknowledge = \"repository\"\ncopy-every = \"1s\"");
    rig.cluster.set("synchronous_standby_names", "walkeep");
    rig.cluster.wait_for("select sync_state = 'sync' from pg_stat_replication");
    for n in 0..3 {
        rig.cluster.sql(&format!("set statement_timeout = '60s'; insert into t values ({n})"));
    }
    assert_eq!(rig.after_the_worst(), "0,1,2");
}

#[test]
fn pieces_go_when_their_segment_is_whole() {
    let rig = Rig::start("copy-every = \"1s\"");
    rig.cluster.sql("insert into t values (1)");
    until(Duration::from_secs(30), || (!rig.pieces().is_empty()).then_some(())).unwrap();
    for n in 0..3 {
        rig.cluster.sql(&format!("insert into t values ({n})"));
        rig.cluster.switch_wal();
        let begin = lsn(&rig.cluster.sql("select pg_current_wal_lsn()")) >> 24 << 24;
        let gone = until(Duration::from_secs(30), || rig.pieces().iter().all(|(from, _)| *from >= begin).then_some(()));
        gone.unwrap_or_else(|| panic!("{begin:X} {:X?}", rig.pieces()));
    }
}

/// Without copies there are none, and a restore elsewhere ends with the last whole segment.
#[test]
fn copies_can_be_left_out() {
    let rig = Rig::start("copy-every = \"off\"");
    rig.cluster.sql("insert into t values (1)");
    let name = rig.cluster.switch_wal();
    let there = || {
        let list = rig.site.walkeep(&["verify", "--json"]).json();
        let whole = rig.site.repository().join(format!("main/wal/00000001/00000000/{name}")).exists();
        (whole && list["whole"] == true).then_some(())
    };
    until(Duration::from_secs(30), there).unwrap();
    rig.cluster.sql("insert into t values (2)");
    rig.cluster.wait_for("select flush_lsn = pg_current_wal_flush_lsn() from pg_stat_replication");
    assert_eq!(rig.pieces(), []);
    assert_eq!(rig.after_the_worst(), "1");
}

/// Who ends the receiver for good finds everything in the repository, and not only what the last copy had.
#[test]
fn a_receiver_that_ends_copies_the_rest() {
    let rig = Rig::start("copy-every = \"1h\"");
    for n in 0..3 {
        rig.cluster.sql(&format!("insert into t values ({n})"));
    }
    rig.cluster.wait_for("select flush_lsn = pg_current_wal_flush_lsn() from pg_stat_replication");
    let Rig { cluster, site, mut receiver } = rig;
    assert!(receiver.terminate().success(), "{}", receiver.output());
    assert_eq!(Rig { cluster, site, receiver }.after_the_worst(), "0,1,2");
}
