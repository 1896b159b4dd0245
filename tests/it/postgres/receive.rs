//! The receiver against real servers: what it archives is what they have in `pg_wal`, what it acknowledges survives
//! kill -9, and it goes on where it stopped, over reconnections, promotions and gaps.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use walkeep::base::clock::SystemClock;
use walkeep::postgres::archive::Archive;
use walkeep::postgres::archive::spool::Spool;
use walkeep::postgres::format::lsn::Lsn;
use walkeep::postgres::format::segment::{SegmentName, SegmentSize, WalFileName};
use walkeep::postgres::format::timeline::TimelineId;
use walkeep::postgres::receive::{
    self, AcknowledgePolicy, ReceiveError, ReceiveEvent, ReceiveObserver, ReceiveOutcome, ReceiveSettings,
};
use walkeep::postgres::wire::{Conninfo, LibpqEnvironment, SlotName};
use walkeep::vault::seal::CompressionLevel;
use walkeep::vault::{RepositoryLocation, Vault, VaultSettings};

use crate::support::process::until;
use crate::support::{Cluster, Options, QUICK, Scratch, majors};

const MIB: u64 = 1 << 20;

/// An archive in a scratch directory, unencrypted, and a receiver's state beside it.
pub(super) struct Home {
    pub(super) scratch: Scratch,
}

impl Home {
    pub(super) fn new() -> Home {
        Home { scratch: Scratch::new() }
    }

    pub(super) async fn archive(&self) -> Arc<Archive> {
        open_archive(self.scratch.path()).await
    }

    pub(super) fn settings(&self, conninfo: &str) -> ReceiveSettings {
        settings(self.scratch.path(), conninfo)
    }

    pub(super) async fn receive_until(&self, cluster: &Cluster, end: &str) -> ReceiveOutcome {
        let mut settings = self.settings(&cluster.conninfo());
        settings.end = Some(end.parse().unwrap());
        let (_running, shutdown) = watch::channel(false);
        let archive = self.archive().await;
        let run = receive::receive(&archive, &settings, &(), shutdown);
        tokio::time::timeout(Duration::from_secs(60), run).await.expect("it never ended").unwrap()
    }

    /// The segments of a timeline in the archive, each compared with the server's own file where the server still has
    /// it.
    pub(super) async fn compare(&self, cluster: &Cluster, timeline: u32) -> Vec<SegmentName> {
        let archive = self.archive().await;
        let timeline = TimelineId::new(timeline).unwrap();
        let mut names = Vec::new();
        for (name, _) in archive.list_segments(timeline, None).await.unwrap().found {
            let archived = archive.segment(name).await.unwrap().unwrap();
            if let Ok(bytes) = fs::read(cluster.pg_wal().join(name.to_string())) {
                assert!(archived == bytes, "{name} differs from the server's on {}", cluster.major);
            }
            names.push(name);
        }
        names
    }

    /// How many whole segments of 1 MiB are in the spool, each compared with the server's.
    async fn spooled_whole(&self, cluster: &Cluster) -> usize {
        let spool = Spool::open(&self.scratch.join("state"), self.archive().await.as_ref()).unwrap();
        let size = SegmentSize::new(MIB).unwrap();
        let mut whole = 0;
        for name in spool.list_segments().unwrap() {
            let bytes = spool.read_segment(name, size).unwrap();
            let server = fs::read(cluster.pg_wal().join(name.to_string())).unwrap();
            assert!(server.starts_with(&bytes), "{name} differs from the server's");
            whole += usize::from(bytes.len() == size.len());
        }
        whole
    }

    async fn spooled(&self, size: u64) -> Vec<(SegmentName, usize)> {
        let spool = Spool::open(&self.scratch.join("state"), self.archive().await.as_ref()).unwrap();
        let size = SegmentSize::new(size).unwrap();
        spool
            .list_segments()
            .unwrap()
            .into_iter()
            .map(|name| (name, spool.read_segment(name, size).unwrap().len()))
            .collect()
    }
}

async fn open_archive(home: &Path) -> Arc<Archive> {
    let clock = SystemClock::shared();
    let options = walkeep::vault::repository::RepositoryOptions::new();
    let place =
        RepositoryLocation { name: "local".into(), url: format!("file://{}/repository", home.display()), options };
    let settings = VaultSettings { places: vec![place], key: None, level: CompressionLevel::Auto, threads: 2, clock };
    let vault = Vault::create(settings).await.unwrap();
    Arc::new(Archive::new(Arc::new(vault), "main".parse().unwrap()))
}

fn settings(home: &Path, conninfo: &str) -> ReceiveSettings {
    let conninfo = Conninfo::parse(conninfo, &LibpqEnvironment::new()).unwrap();
    ReceiveSettings::new(conninfo, Some(SlotName::new("walkeep").unwrap()), home.join("state"))
}

/// Notes what happens.
#[derive(Default)]
pub(super) struct Notes(pub(super) Mutex<Vec<String>>);

impl ReceiveObserver for Notes {
    fn event(&self, event: ReceiveEvent) {
        let note = match event {
            ReceiveEvent::Archived { name, .. } => format!("archived {name}"),
            ReceiveEvent::Timeline { timeline, from } => format!("timeline {timeline} from {from}"),
            ReceiveEvent::Gap(gap) => format!("gap {} {}", gap.start, gap.end),
            ReceiveEvent::Streaming { timeline, from, .. } => format!("streaming {timeline} {from}"),
            ReceiveEvent::Disconnected { error, .. } => format!("disconnected {error}"),
            ReceiveEvent::Acknowledged { .. } | ReceiveEvent::Clock { .. } => return,
        };
        self.0.lock().unwrap().push(note);
    }
}

impl Notes {
    pub(super) fn has(&self, text: &str) -> bool {
        self.0.lock().unwrap().iter().any(|note| note.contains(text))
    }
}

/// A receiver in the background of this test.
pub(super) struct Background {
    pub(super) notes: Arc<Notes>,
    stop: watch::Sender<bool>,
    pub(super) task: tokio::task::JoinHandle<Result<ReceiveOutcome, ReceiveError>>,
}

impl Background {
    pub(super) async fn start(home: &Home, settings: ReceiveSettings) -> Background {
        let notes = Arc::new(Notes::default());
        let (stop, shutdown) = watch::channel(false);
        let (archive, observer) = (home.archive().await, Arc::clone(&notes));
        let task = tokio::spawn(async move { receive::receive(&archive, &settings, &*observer, shutdown).await });
        Background { notes, stop, task }
    }

    pub(super) async fn wait_for(&self, text: &str) {
        for _ in 0..3000 {
            if self.notes.has(text) {
                return;
            }
            assert!(!self.task.is_finished(), "it ended; {:?}", self.notes.0.lock().unwrap());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no {text:?} in {:?}", self.notes.0.lock().unwrap());
    }

    pub(super) async fn stop(self) -> Result<ReceiveOutcome, ReceiveError> {
        self.stop.send(true).unwrap();
        tokio::time::timeout(Duration::from_secs(60), self.task).await.expect("it did not stop").unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_archived_as_the_server_has_it() {
    for major in majors() {
        let cluster = Cluster::start(major, Options::default().segment_size_mb(1));
        let home = Home::new();
        // The slot is made by the first run, at its end everything before is archived.
        home.receive_until(&cluster, &cluster.current_lsn()).await;
        cluster.sql("create table t as select generate_series(1, 60000) as x");
        cluster.switch_wal();
        cluster.sql("insert into t values (1)");
        let end: Lsn = cluster.sql("select pg_current_wal_flush_lsn()").parse().unwrap();
        let finished = home.receive_until(&cluster, &end.to_string()).await;
        assert!(finished.reached && finished.until >= end, "{finished:?}");
        let names = home.compare(&cluster, 1).await;
        assert!(names.len() >= 4, "{names:?}");
        let numbers: Vec<u64> =
            names.iter().map(|name| name.number(SegmentSize::new(MIB).unwrap()).unwrap().get()).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a hole: {names:?}");
        let held: Lsn = cluster.sql("select restart_lsn from pg_replication_slots").parse().unwrap();
        assert!(held >= end && held <= finished.until, "the slot holds {held}");
        // The rest is in the spool, and nothing else.
        let spooled = home.spooled(MIB).await;
        assert_eq!(spooled.len(), 1, "{spooled:?}");
        assert_eq!(spooled[0].1 as u64, finished.until.get() % MIB);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_on_in_the_middle_of_a_segment() {
    let cluster = Cluster::start(QUICK, Options::default());
    let home = Home::new();
    for round in 0..4 {
        cluster.sql(&format!("create table t{round} as select generate_series(1, 5000) as x"));
        let end = cluster.sql("select pg_current_wal_flush_lsn()");
        home.receive_until(&cluster, &end).await;
    }
    cluster.switch_wal();
    cluster.sql("select pg_create_restore_point('more')");
    home.receive_until(&cluster, &cluster.sql("select pg_current_wal_flush_lsn()")).await;
    assert!(!home.compare(&cluster, 1).await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_synchronous_commit_waits_for_it_and_a_shutdown_does_not_hang() {
    let mut cluster = Cluster::start(QUICK, Options::default());
    cluster.sql("create table t (x int)");
    let home = Home::new();
    let receiver = Background::start(&home, home.settings(&cluster.conninfo())).await;
    receiver.wait_for("streaming").await;
    cluster.set("synchronous_standby_names", "walkeep");
    cluster.wait_for("select coalesce((select sync_state = 'sync' from pg_stat_replication), false)");
    for x in 0..20 {
        cluster.sql(&format!("insert into t values ({x})"));
        let told = cluster.sql(
            "select flush_lsn >= pg_current_wal_insert_lsn() - 1000, replay_lsn is null, write_lsn = flush_lsn from \
                pg_stat_replication",
        );
        assert!(told.ends_with("t|t"), "{told}");
    }
    let began = Instant::now();
    cluster.stop();
    assert!(began.elapsed() < Duration::from_secs(30), "the server waited for the receiver");
    receiver.wait_for("disconnected").await;
    let finished = receiver.stop().await.unwrap();
    // The shutdown checkpoint, the server's last record, is here.
    let control = cluster.run("pg_controldata", &["-D", &cluster.data().to_string_lossy()]).expect_ok();
    let line = control.lines().find(|line| line.starts_with("Latest checkpoint location")).unwrap();
    let last: Lsn = line.rsplit(' ').next().unwrap().parse().unwrap();
    assert!(finished.until > last, "{} is not beyond {last}", finished.until);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_server_is_followed_again() {
    let mut cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    let home = Home::new();
    let receiver = Background::start(&home, home.settings(&cluster.conninfo())).await;
    receiver.wait_for("streaming").await;
    for round in 0..3 {
        cluster.sql(&format!("create table t{round} as select generate_series(1, 20000) as x"));
        if round == 1 {
            cluster.kill9()
        } else {
            cluster.stop()
        }
        cluster.start_again();
    }
    let name = cluster.switch_wal();
    receiver.wait_for(&format!("archived {name}")).await;
    receiver.stop().await.unwrap();
    assert!(home.compare(&cluster, 1).await.len() >= 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promotion_is_followed() {
    for major in majors() {
        let mut primary = Cluster::start(major, Options::default().segment_size_mb(1));
        let mut standby = primary.standby(Options::default());
        standby.wait_for("select pg_is_in_recovery()");
        let home = Home::new();
        let both = format!(
            "host=127.0.0.1,127.0.0.1 port={},{} user=postgres target_session_attrs=read-write connect_timeout=5",
            primary.port, standby.port
        );
        let receiver = Background::start(&home, home.settings(&both)).await;
        receiver.wait_for("streaming 1").await;
        primary.sql("create table t as select generate_series(1, 30000) as x");
        primary.sql("select pg_create_restore_point('last on one')");
        let last = primary.sql("select pg_current_wal_flush_lsn()");
        standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{last}'"));
        primary.stop_immediately();
        standby.promote();
        receiver.wait_for("timeline 2").await;
        standby.sql("create table u as select generate_series(1, 30000) as x");
        let name = standby.switch_wal();
        receiver.wait_for(&format!("archived {name}")).await;
        receiver.stop().await.unwrap();
        let archive = home.archive().await;
        let history = archive.file(&WalFileName::History(TimelineId::new(2).unwrap())).await.unwrap().unwrap();
        assert_eq!(history, fs::read(standby.pg_wal().join("00000002.history")).unwrap());
        home.compare(&primary, 1).await;
        let second = home.compare(&standby, 2).await;
        let first_file = fs::read_dir(standby.pg_wal()).unwrap().filter_map(|entry| {
            let name = entry.unwrap().file_name().into_string().unwrap();
            (name.len() == 24 && name.starts_with("00000002")).then_some(name)
        });
        assert_eq!(second[0].to_string(), first_file.min().unwrap(), "the segment with the fork is missing");
        standby.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_that_is_promoted_goes_on_streaming() {
    let primary = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    let standby = primary.standby(Options::default());
    standby.wait_for("select pg_is_in_recovery()");
    let home = Home::new();
    let receiver = Background::start(&home, home.settings(&standby.conninfo())).await;
    receiver.wait_for("streaming 1").await;
    primary.sql("create table t as select generate_series(1, 30000) as x");
    let last = primary.sql("select pg_current_wal_flush_lsn()");
    standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{last}'"));
    standby.promote();
    receiver.wait_for("streaming 2").await;
    let name = standby.switch_wal();
    receiver.wait_for(&format!("archived {name}")).await;
    receiver.stop().await.unwrap();
    assert!(!home.compare(&standby, 2).await.is_empty());
    // A standby's clock says nothing of commits, which carry the time of the primary's.
    let archive = home.archive().await;
    let of_standby = archive.list_segments(TimelineId::FIRST, None).await.unwrap().found;
    for (name, _) in &of_standby {
        assert_eq!(archive.clock_measurements(*name).await.unwrap(), [], "{name}");
    }
    assert!(!of_standby.is_empty());
    // What had come of the segment in which the first timeline ended is kept, though nobody may ever ask for it.
    let kept = walk(&home.scratch.join("repository")).into_iter().filter(|name| name.ends_with(".tail")).count();
    assert_eq!(kept, 1);
}

/// A primary that went on alone: the standby that replaces it never had the end of its WAL. Both ways are kept, and the
/// new one from the fork on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fork_before_the_end_of_what_was_received_is_followed() {
    for restarted in [false, true] {
        let mut primary = Cluster::start(QUICK, Options::default().segment_size_mb(1));
        let mut standby = primary.standby(Options::default());
        standby.wait_for("select pg_is_in_recovery()");
        let last = primary.sql("select pg_current_wal_flush_lsn()");
        standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{last}'"));
        standby.stop();
        let home = Home::new();
        let both = format!(
            "host=127.0.0.1,127.0.0.1 port={},{} user=postgres target_session_attrs=read-write connect_timeout=5",
            primary.port, standby.port
        );
        let mut receiver = Some(Background::start(&home, home.settings(&both)).await);
        let running = receiver.as_ref().unwrap();
        running.wait_for("streaming 1").await;
        primary.sql("create table alone as select generate_series(1, 40000) as x");
        let name = primary.switch_wal();
        running.wait_for(&format!("archived {name}")).await;
        primary.sql("insert into alone values (1)");
        if restarted {
            receiver.take().unwrap().stop().await.unwrap();
        }
        primary.stop_immediately();
        standby.start_again();
        standby.promote();
        let receiver = match receiver {
            Some(running) => running,
            None => Background::start(&home, home.settings(&both)).await,
        };
        receiver.wait_for("streaming 2").await;
        standby.sql("create table other as select generate_series(1, 40000) as x");
        let name = standby.switch_wal();
        receiver.wait_for(&format!("archived {name}")).await;
        receiver.stop().await.unwrap();
        let (first, second) = (home.compare(&primary, 1).await, home.compare(&standby, 2).await);
        let size = SegmentSize::new(MIB).unwrap();
        let history = fs::read_to_string(standby.pg_wal().join("00000002.history")).unwrap();
        let fork: Lsn = history.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert_eq!(second[0].number(size).unwrap(), size.segment_of(fork), "{second:?} after a fork at {fork}");
        assert!(first.last().unwrap().number(size).unwrap() > size.segment_of(fork), "{first:?}");
        assert!(home.archive().await.gaps().await.unwrap().is_empty());
    }
}

pub(super) fn walk(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(walk(&path));
        } else {
            found.push(path.file_name().unwrap().to_string_lossy().into_owned());
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_wal_is_recorded_and_the_rest_received() {
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1).set("min_wal_size", "2MB"));
    let home = Home::new();
    home.receive_until(&cluster, &cluster.current_lsn()).await;
    cluster.sql("select pg_drop_replication_slot('walkeep')");
    cluster.sql("create table t as select generate_series(1, 100000) as x");
    for _ in 0..3 {
        cluster.sql("checkpoint");
        cluster.switch_wal();
    }
    cluster.sql("checkpoint");
    let receiver = Background::start(&home, home.settings(&cluster.conninfo())).await;
    receiver.wait_for("gap").await;
    let name = cluster.switch_wal();
    receiver.wait_for(&format!("archived {name}")).await;
    receiver.stop().await.unwrap();
    let gaps = home.archive().await.gaps().await.unwrap();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    let names = home.compare(&cluster, 1).await;
    let size = SegmentSize::new(MIB).unwrap();
    let after = names.iter().find(|name| name.number(size).unwrap().start(size) >= gaps[0].end).unwrap();
    assert_eq!(after.number(size).unwrap().start(size), gaps[0].end, "nothing is missing beside what is recorded");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_refused() {
    let (one, other) = (Cluster::start(QUICK, Options::default()), Cluster::start(QUICK, Options::default()));
    let home = Home::new();
    one.sql("create table t as select 1");
    one.switch_wal();
    home.receive_until(&one, &one.current_lsn()).await;
    let receiver = Background::start(&home, home.settings(&other.conninfo())).await;
    let error = tokio::time::timeout(Duration::from_secs(60), receiver.task).await.unwrap().unwrap().unwrap_err();
    assert!(matches!(error, ReceiveError::WrongSystem { .. }), "{error}");
    assert!(error.to_string().contains(&other.system_identifier().to_string()), "{error}");
}

pub(super) fn copy_dir(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_repository_alone_may_be_what_counts() {
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    let home = Home::new();
    let mut settings = home.settings(&cluster.conninfo());
    settings.acknowledge = AcknowledgePolicy::Repository;
    let receiver = Background::start(&home, settings).await;
    receiver.wait_for("streaming").await;
    cluster.sql("create table t as select 1");
    let name = cluster.switch_wal();
    receiver.wait_for(&format!("archived {name}")).await;
    cluster.sql("insert into t values (1)");
    let whole: Lsn = cluster.sql("select pg_current_wal_flush_lsn()").parse().unwrap();
    let boundary = Lsn::new(whole.get() & !(MIB - 1));
    cluster.wait_for(&format!("select flush_lsn = '{boundary}' from pg_stat_replication"));
    assert!(home.spooled(MIB).await.is_empty());
    receiver.stop().await.unwrap();
    // The end of a run keeps the tail here all the same: the server may never come back.
    assert_eq!(home.spooled(MIB).await.len(), 1);
}

/// Makes the repository refuse segments of the first timeline, as if its disk were gone, until it is undone.
struct Outage {
    place: PathBuf,
    aside: PathBuf,
}

impl Outage {
    fn begin(home: &Home) -> Outage {
        let place = home.scratch.join("repository/main/wal/00000001");
        let aside = home.scratch.join("aside");
        fs::rename(&place, &aside).unwrap();
        fs::write(&place, "not a directory").unwrap();
        Outage { place, aside }
    }

    fn end(self) {
        fs::remove_file(&self.place).unwrap();
        fs::rename(&self.aside, &self.place).unwrap();
    }
}

/// While the repository is gone, commits go on: the spool takes whole segments. After a crash in the middle of it they
/// are archived from there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_go_on_without_the_repository() {
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    cluster.sql("create table t (x int, filler text)");
    let home = Home::new();
    home.receive_until(&cluster, &cluster.current_lsn()).await;
    let mut victim = start_victim(&home, &cluster);
    cluster.wait_for("select count(*) > 0 from pg_stat_replication where application_name = 'walkeep'");
    let name = cluster.switch_wal();
    until(Duration::from_secs(30), || walk(&home.scratch.join("repository")).contains(&name).then_some(())).unwrap();
    cluster.set("synchronous_standby_names", "walkeep");
    let outage = Outage::begin(&home);
    for _ in 0..12 {
        cluster.sql("insert into t select g, repeat(md5(g::text), 20) from generate_series(1, 1500) g");
    }
    let spooled = home.spooled_whole(&cluster).await;
    assert!(spooled >= 5, "only {spooled} whole segments are in the spool");
    victim.kill().unwrap();
    victim.wait().unwrap();
    outage.end();
    cluster.set("synchronous_standby_names", "");
    let acknowledged: Lsn = cluster.sql("select restart_lsn from pg_replication_slots").parse().unwrap();
    assert_safe(&home, &cluster, acknowledged).await;
    cluster.switch_wal();
    home.receive_until(&cluster, &cluster.sql("select pg_current_wal_flush_lsn()")).await;
    let names = home.compare(&cluster, 1).await;
    let numbers: Vec<u64> =
        names.iter().map(|name| name.number(SegmentSize::new(MIB).unwrap()).unwrap().get()).collect();
    assert!(numbers.len() > 8 && numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a hole: {names:?}");
    assert!(home.spooled(MIB).await.len() <= 1, "archived segments are still in the spool");
}

/// The server must not think us dead because the repository takes nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_repository_does_not_cost_the_connection() {
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1).set("wal_sender_timeout", "1500ms"));
    cluster.sql("create table t (x int, filler text)");
    let home = Home::new();
    let mut settings = home.settings(&cluster.conninfo());
    settings.acknowledge = AcknowledgePolicy::Repository;
    let receiver = Background::start(&home, settings).await;
    receiver.wait_for("streaming").await;
    let name = cluster.switch_wal();
    receiver.wait_for(&format!("archived {name}")).await;
    let pid = cluster.sql("select pid from pg_stat_replication");
    let outage = Outage::begin(&home);
    for _ in 0..6 {
        cluster.sql("insert into t select g, repeat(md5(g::text), 20) from generate_series(1, 3000) g");
        tokio::time::sleep(Duration::from_millis(800)).await;
    }
    let held = cluster.sql("select pg_current_wal_flush_lsn() - flush_lsn > 3000000 from pg_stat_replication");
    assert_eq!(held, "t", "more was acknowledged than the repository can have");
    outage.end();
    let name = cluster.switch_wal();
    receiver.wait_for(&format!("archived {name}")).await;
    assert_eq!(cluster.sql("select pid from pg_stat_replication"), pid, "the connection was cut and made anew");
    receiver.stop().await.unwrap();
    home.compare(&cluster, 1).await;
}

/// A crash between two durable effects leaves files that the next run must put right: each state is made by hand.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crash_leaves_between_two_steps_is_put_right() {
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    let home = Home::new();
    let spool_dir = home.scratch.join("state/spool/main");
    let flushed = || cluster.sql("select pg_current_wal_flush_lsn()");

    // The slot is made, nothing is received: the archive begins where the slot holds.
    cluster.sql("select pg_create_physical_replication_slot('walkeep', true)");
    let held: Lsn = cluster.sql("select restart_lsn from pg_replication_slots").parse().unwrap();
    cluster.sql("create table t as select generate_series(1, 40000) as x");
    home.receive_until(&cluster, &flushed()).await;
    let first = home.compare(&cluster, 1).await[0];
    let size = SegmentSize::new(MIB).unwrap();
    assert_eq!(first.number(size).unwrap(), size.segment_of(held));

    // A segment is archived, its spool file is still there.
    let (name, _) = home.spooled(MIB).await[0];
    let file = spool_dir.join(format!("{name}.tail"));
    let saved = fs::read(&file).unwrap();
    cluster.switch_wal();
    cluster.sql("insert into t values (1)");
    home.receive_until(&cluster, &flushed()).await;
    assert!(!file.exists());
    fs::write(&file, &saved).unwrap();
    cluster.sql("insert into t values (2)");
    home.receive_until(&cluster, &flushed()).await;
    assert!(!file.exists(), "a spool file of an archived segment stays");

    // A frame is torn: a power cut in the middle of an append.
    let (name, len) = home.spooled(MIB).await[0];
    let file = spool_dir.join(format!("{name}.tail"));
    let mut torn = fs::read(&file).unwrap();
    torn.extend_from_slice(&300_u32.to_le_bytes());
    torn.extend_from_slice(&[0x77; 100]);
    fs::write(&file, &torn).unwrap();
    assert_eq!(home.spooled(MIB).await[0].1, len);
    cluster.sql("insert into t values (3)");
    home.receive_until(&cluster, &flushed()).await;
    assert!(!spool_dir.join("set-aside").exists(), "a torn frame is no damage");

    // All of the spool is gone, as with its disk: the server has what was not archived, unless it was told that it may
    // go.
    fs::remove_dir_all(home.scratch.join("state")).unwrap();
    cluster.switch_wal();
    cluster.sql("insert into t values (4)");
    home.receive_until(&cluster, &flushed()).await;
    let names = home.compare(&cluster, 1).await;
    let numbers: Vec<u64> = names.iter().map(|name| name.number(size).unwrap().get()).collect();
    assert!(numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]), "a hole: {names:?}");
}

/// The receiver as a process of its own, for tests that kill it. Not a test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by other tests as their victim"]
async fn victim() {
    let (Some(home), Some(conninfo)) = (std::env::var_os("VICTIM_HOME"), std::env::var_os("VICTIM_CONNINFO")) else {
        return;
    };
    let home = PathBuf::from(home);
    let archive = open_archive(&home).await;
    let (_running, shutdown) = watch::channel(false);
    let outcome = receive::receive(&archive, &settings(&home, conninfo.to_str().unwrap()), &(), shutdown).await;
    panic!("the victim ended by itself: {outcome:?}");
}

pub(super) fn start_victim(home: &Home, cluster: &Cluster) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "postgres::receive::victim", "--ignored", "--nocapture"])
        .env("VICTIM_HOME", home.scratch.path())
        .env("VICTIM_CONNINFO", cluster.conninfo())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Everything the server was told is safe must be there after kill -9, in the spool or in the repository.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_by_kill_9() {
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1).set("wal_sender_timeout", "5s"));
    cluster.sql("create table t (x int, filler text)");
    let home = Home::new();
    for round in 0..12_u64 {
        let mut victim = start_victim(&home, &cluster);
        cluster.wait_for("select count(*) > 0 from pg_stat_replication where application_name = 'walkeep'");
        let writer = {
            let mut command = cluster.command("psql");
            let work = "insert into t select g, repeat(md5(g::text), 20) from generate_series(1, 200) g; select \
                pg_sleep(0.002);";
            command.args(["-Xq", "-c", &work.repeat(400)]).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().unwrap()
        };
        // Different moments: while connecting, in the middle of segments, between put and acknowledgement.
        std::thread::sleep(Duration::from_millis(20 + 97 * round % 700));
        victim.kill().unwrap();
        victim.wait().unwrap();
        let mut writer = writer;
        writer.kill().ok();
        writer.wait().unwrap();
        until(Duration::from_secs(30), || {
            (cluster.sql("select count(*) from pg_stat_replication") == "0").then_some(())
        })
        .expect("the dead receiver's connection stays");
        // The slot's position is the last acknowledgement the server got.
        let acknowledged: Lsn = match cluster.sql("select restart_lsn from pg_replication_slots").parse() {
            Ok(lsn) => lsn,
            Err(_) => continue,
        };
        assert_safe(&home, &cluster, acknowledged).await;
    }
    cluster.switch_wal();
    home.receive_until(&cluster, &cluster.sql("select pg_current_wal_flush_lsn()")).await;
    let names = home.compare(&cluster, 1).await;
    assert!(names.len() > 3, "{names:?}");
}

/// Every byte from the first archived segment up to `until` is in the repository or the spool, and is the server's.
async fn assert_safe(home: &Home, cluster: &Cluster, until: Lsn) {
    let archive = home.archive().await;
    let size = SegmentSize::new(MIB).unwrap();
    let archived = home.compare(cluster, 1).await;
    let spool = Spool::open(&home.scratch.join("state"), &archive).unwrap();
    let Some(first) = archived.iter().chain(&spool.list_segments().unwrap()).filter_map(|name| name.number(size)).min()
    else {
        return;
    };
    let mut number = first;
    while number.start(size) < until {
        let name = SegmentName::new(TimelineId::FIRST, number, size).unwrap();
        if !archived.contains(&name) {
            let spooled = spool.read_segment(name, size).unwrap();
            let have = number.start(size).checked_add(spooled.len() as u64).unwrap();
            assert!(have >= until.min(number.end(size)), "{until} was acknowledged, and {name} is here up to {have}");
            let server = fs::read(cluster.pg_wal().join(name.to_string())).unwrap();
            assert!(server.starts_with(&spooled), "{name} in the spool differs from the server's");
        }
        number = number.next();
    }
}
