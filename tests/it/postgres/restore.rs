//! Plans and restores of real servers through the library: PostgreSQL's own recovery says whether a plan was right.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::SmallRng;
use walkeep::base::clock::SystemClock;
use walkeep::postgres::archive::{Archive, reindex};
use walkeep::postgres::backup;
use walkeep::postgres::format::segment::WalFileName;
use walkeep::postgres::format::time::PgTime;
use walkeep::postgres::index::WalIndex;
use walkeep::postgres::restore::destination::Destination;
use walkeep::postgres::restore::plan::{PlanOutcome, ProvedRestore, RestorePlan, TargetPlace};
use walkeep::postgres::restore::recovery_settings::RECOVERY_FILE;
use walkeep::postgres::restore::resolve_target::RecoveryStop;
use walkeep::postgres::restore::server_configuration::ConfigurationSearch;
use walkeep::postgres::restore::server_role::ServerRole;
use walkeep::postgres::restore::server_start::{ReachedTarget, ServerStart, ServerStartError};
use walkeep::postgres::restore::target::{
    RecoveryTarget, RecoveryTargetAction, RestoreRequest, TargetTimeline, parse_xid,
};
use walkeep::postgres::restore::{self, RestoreOptions, RestoredCluster};
use walkeep::postgres::wire::{Conninfo, LibpqEnvironment};
use walkeep::vault::repository;
use walkeep::vault::seal::CompressionLevel;
use walkeep::vault::seal::keys::KeyEncryptionKey;
use walkeep::vault::{RepositoryLocation, Vault, VaultSettings};

use super::restore_moments as moments;
use crate::support::process::{self, Orphan};
use crate::support::workload::Workload;
use crate::support::{Cluster, Options, QUICK, Scratch, cluster, majors};

/// An archive that is fed from a folder which servers copy their WAL to.
struct Rig {
    scratch: Scratch,
    archive: Arc<Archive>,
    feeder: tokio::task::JoinHandle<()>,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.feeder.abort();
    }
}

impl Rig {
    async fn new() -> Rig {
        let scratch = Scratch::new();
        let place = RepositoryLocation {
            name: "local".into(),
            url: format!("file://{}", scratch.join("repository").display()),
            options: repository::RepositoryOptions::new(),
        };
        let settings = VaultSettings {
            places: vec![place],
            key: Some(KeyEncryptionKey::generate().unwrap()),
            level: CompressionLevel::Auto,
            threads: 2,
            clock: SystemClock::shared(),
        };
        let vault = Arc::new(Vault::create(settings).await.unwrap());
        let archive = Arc::new(Archive::new(vault, "main".parse().unwrap()));
        let folder = scratch.directory("wal");
        let (fed, from) = (Arc::clone(&archive), folder.clone());
        let feeder = tokio::spawn(async move {
            loop {
                feed(&fed, &from).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Rig { scratch, archive, feeder }
    }

    fn folder(&self) -> PathBuf {
        self.scratch.join("wal")
    }

    /// How the rig's servers archive; a name that is there stays as it is.
    fn archiving(&self, options: Options) -> Options {
        let folder = self.folder().display().to_string();
        let command = format!("test -f {folder}/%f || (cp %p {folder}/.%f && mv {folder}/.%f {folder}/%f)");
        options.set("archive_mode", "on").set("archive_command", command)
    }

    async fn backup(&self, cluster: &Cluster) -> String {
        let server = Conninfo::parse(&cluster.socket_conninfo(), &LibpqEnvironment::new()).unwrap();
        backup::take_backup(&self.archive, &server, &backup::BackupOptions::default(), &mut |_| {}).await.unwrap().label
    }

    /// Everything written so far is in the archive.
    async fn settle(&self, cluster: &Cluster) {
        let last = cluster.switch_wal();
        cluster.wait_for(&format!("select last_archived_wal >= '{last}' from pg_stat_archiver"));
        feed(&self.archive, &self.folder()).await;
    }

    async fn index(&self) -> Arc<WalIndex> {
        reindex::open_index(&self.archive, &self.scratch.join("index")).await.unwrap().0
    }

    async fn plan(&self, request: RestoreRequest) -> RestorePlan {
        restore::plan_restore(&self.archive, &self.index().await, None, request).await.unwrap()
    }

    /// Plans a target that can be reached.
    async fn proved(&self, request: RestoreRequest) -> ProvedRestore {
        let plan = self.plan(request).await;
        plan.restore().unwrap_or_else(|| panic!("{}", plan.reason())).clone()
    }

    async fn place(
        &self,
        proved: &ProvedRestore,
        name: &str,
        action: RecoveryTargetAction,
        mapping: Vec<(PathBuf, PathBuf)>,
    ) -> RestoredCluster {
        let wishes = RestoreOptions {
            destination: Destination { pgdata: self.scratch.join(name), mapping },
            action,
            restore_command: format!("cp {}/%f \"%p\"", self.folder().display()),
            end_command: format!("rm -f {RECOVERY_FILE}"),
            waldir: None,
            role: ServerRole::Copy,
            keep_archiving: false,
            configuration: ConfigurationSearch::default(),
            force: false,
        };
        restore::restore(&self.archive, proved, &wishes, |_, _| {}).await.unwrap()
    }

    /// Plans, restores, and runs the server up to its target.
    async fn restored(&self, request: RestoreRequest, name: &str) -> (ProvedRestore, ReachedTarget, Server) {
        let proved = self.proved(request).await;
        self.place(&proved, name, RecoveryTargetAction::Promote, Vec::new()).await;
        let (reached, server) = self.started(&proved, name, RecoveryTargetAction::Promote).await;
        (proved, reached.unwrap(), server)
    }

    async fn started(
        &self,
        proved: &ProvedRestore,
        name: &str,
        action: RecoveryTargetAction,
    ) -> (Result<ReachedTarget, ServerStartError>, Server) {
        let server = Server { pgdata: self.scratch.join(name) };
        let start = ServerStart {
            bindir: Some(crate::support::installed::bin(server.major())),
            options: vec![format!("-p {} -k {}", cluster::free_port(), self.scratch.path().display())],
            ..ServerStart::new(server.pgdata.clone())
        };
        let reached = start.run(proved, action, &SystemClock::shared()).await;
        (reached, server)
    }
}

/// Puts every file of the folder into the archive.
async fn feed(archive: &Arc<Archive>, folder: &Path) {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for name in names.iter().filter(|name| !name.starts_with('.')) {
        let file = WalFileName::parse(name).unwrap();
        archive.put_wal_file(&file, fs::read(folder.join(name)).unwrap().into()).await.unwrap();
    }
}

/// A server that was started by a restore. It is stopped when dropped.
struct Server {
    pgdata: PathBuf,
}

impl Server {
    fn major(&self) -> u32 {
        fs::read_to_string(self.pgdata.join("PG_VERSION")).unwrap().trim().parse().unwrap()
    }

    fn stop(&self) {
        if self.pgdata.join("postmaster.pid").exists() {
            let mut command =
                process::command(crate::support::installed::bin(self.major()).join("pg_ctl"), Orphan::Kill);
            command.arg("-D").arg(&self.pgdata).args(["-m", "immediate", "-w", "-s", "stop"]);
            process::run(command);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn request(target: RecoveryTarget) -> RestoreRequest {
    RestoreRequest::new(target, false).unwrap()
}

fn time(text: &str) -> RecoveryTarget {
    RecoveryTarget::Time(PgTime::from_timestamp(text.replacen(' ', "T", 1).parse().unwrap()))
}

/// A drawn target as walkeep's command line would make it.
fn drawn(target: &moments::Target) -> RestoreRequest {
    let wanted = match target.kind {
        "time" => time(&target.value),
        "lsn" => RecoveryTarget::Lsn(target.value.parse().unwrap()),
        "name" => RecoveryTarget::Name(target.value.clone()),
        _ => RecoveryTarget::Xid(parse_xid(&target.value).unwrap()),
    };
    RestoreRequest::new(wanted, !target.inclusive).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_random_moment_shows_exactly_what_was_committed_before_it() {
    let seed = rand::random();
    let mut random = SmallRng::seed_from_u64(seed);
    let rig = Rig::new().await;
    let options = rig.archiving(Options::default().segment_size_mb(1).set("max_prepared_transactions", 20));
    let cluster = Cluster::start(QUICK, options.set("synchronous_commit", "off").set("wal_keep_size", "4GB"));
    let from = cluster.current_lsn();
    let workload = Workload::start(&cluster, 4, seed);
    rig.backup(&cluster).await;
    let consistent = cluster.current_lsn();
    tokio::time::sleep(Duration::from_millis(500)).await;
    rig.backup(&cluster).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let ours = workload.stop();
    rig.settle(&cluster).await;

    let history = moments::History::read(&cluster, &cluster.pg_wal(), &from, &consistent);
    let mut used = BTreeSet::new();
    for n in 0..6 {
        let (target, mut expected) = history.draw(&mut random);
        expected.retain(|xid| ours.contains(xid));
        let (proved, reached, server) = rig.restored(drawn(&target), &format!("restored-{n}")).await;
        assert_eq!(reached.last_commit, proved.commits.last, "{target:?}, seed {seed}");
        used.insert(proved.backup.clone());
        server.stop();
        let found = moments::shown(&server.pgdata);
        moments::check(&target, &expected, &found, seed);
        // What the plan says of the transactions beside the target is true.
        if let Some(after) = proved.commits.next.filter(|after| ours.contains(&after.xid.get())) {
            assert!(!found.contains(&after.xid.get()), "{target:?}, seed {seed}");
        }
    }
    println!("backups used: {used:?}, seed {seed}");
}

/// The rows of `t` in a restored directory, once it runs by itself.
fn rows(server: &Server) -> String {
    server.stop();
    let mut restored = Cluster::adopt(server.major(), &server.pgdata);
    restored.start_again();
    restored.wait_for("select not pg_is_in_recovery()");
    let found = restored.sql("select string_agg(i::text, ',' order by i) from t");
    restored.stop();
    found
}

/// One row for each step, a restore point after the second, and a backup after the first.
async fn steps(rig: &Rig, cluster: &Cluster) -> Steps {
    cluster.sql("create table t (i int); insert into t values (1)");
    rig.backup(cluster).await;
    cluster.sql("insert into t values (2)");
    cluster.sql("select pg_create_restore_point('between')");
    let between = cluster.sql("select clock_timestamp()");
    let xid = cluster.sql("insert into t values (3) returning pg_current_xact_id()");
    let after = cluster.current_lsn();
    cluster.sql("insert into t values (4)");
    Steps { between: between + ":00", xid, after }
}

struct Steps {
    between: String,
    xid: String,
    after: String,
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_target_and_every_major_with_tablespaces() {
    for major in majors() {
        let rig = Rig::new().await;
        let cluster = Cluster::start(major, rig.archiving(Options::default().segment_size_mb(1)));
        let spaces = ["a space", "back\\slash"].map(|name| rig.scratch.directory(name));
        for (n, space) in spaces.iter().enumerate() {
            cluster.sql(&format!("create tablespace s{n} location '{}'", space.display()));
            cluster.sql(&format!("create table t{n} tablespace s{n} as select * from generate_series(1, 1000) g"));
        }
        cluster.sql("create unlogged table u as select 1");
        let steps = steps(&rig, &cluster).await;
        rig.settle(&cluster).await;
        let new =
            spaces.each_ref().map(|old| old.with_file_name(format!("{} new", old.file_name().unwrap().display())));
        let mapping: Vec<_> = spaces.iter().cloned().zip(new).collect();
        for (name, target, shown) in [
            ("immediate", RecoveryTarget::Immediate, "1"),
            ("name", RecoveryTarget::Name("between".into()), "1,2"),
            ("time", time(&steps.between), "1,2"),
            ("xid", RecoveryTarget::Xid(parse_xid(&steps.xid).unwrap()), "1,2,3"),
            ("lsn", RecoveryTarget::Lsn(steps.after.parse().unwrap()), "1,2,3"),
            ("latest", RecoveryTarget::Latest, "1,2,3,4"),
        ] {
            // One kind shows that a major works; all kinds are the same to it.
            if major != QUICK && name != "time" {
                continue;
            }
            let proved = rig.proved(request(target)).await;
            let placed = rig.place(&proved, name, RecoveryTargetAction::Promote, mapping.clone()).await;
            assert_eq!(
                fs::metadata(&placed.pgdata).unwrap().permissions(),
                fs::metadata(cluster.data()).unwrap().permissions()
            );
            let (reached, server) = rig.started(&proved, name, RecoveryTargetAction::Promote).await;
            let reached = reached.unwrap();
            assert_eq!((reached.timeline.get(), reached.action), (2, RecoveryTargetAction::Promote), "{major} {name}");
            assert_eq!(rows(&server), shown, "{major} {name}");
            check_tablespaces(&server, &mapping);
            for (_, new) in &mapping {
                fs::remove_dir_all(new).unwrap();
            }
        }
    }
}

fn check_tablespaces(server: &Server, mapping: &[(PathBuf, PathBuf)]) {
    let mut restored = Cluster::adopt(server.major(), &server.pgdata);
    restored.start_again();
    assert_eq!(restored.sql("select count(*) from t0 natural join t1"), "1000");
    assert_eq!(restored.sql("select count(*) from u"), "0", "unlogged tables come back empty");
    assert_eq!(restored.sql("show archive_mode"), "off");
    let places =
        restored.sql("select pg_tablespace_location(oid) from pg_tablespace where spcname like 's_' order by 1");
    let expected: Vec<String> = mapping.iter().map(|(_, new)| new.display().to_string()).collect();
    assert_eq!(places.lines().collect::<BTreeSet<_>>(), expected.iter().map(String::as_str).collect());
    restored.stop();
    restored.run("pg_checksums", &["--check", "-D", &server.pgdata.to_string_lossy()]).expect_ok();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_after_the_last_commit_is_refused_and_the_nearest_point_reached() {
    let rig = Rig::new().await;
    let cluster = Cluster::start(QUICK, rig.archiving(Options::default().segment_size_mb(1)));
    steps(&rig, &cluster).await;
    rig.settle(&cluster).await;
    let now = time(&(cluster.sql("select clock_timestamp()") + ":00"));
    let plan = rig.plan(request(now.clone())).await;
    assert!(
        !plan.is_reachable(),
        "PostgreSQL would end with: recovery ended before configured recovery target was reached"
    );
    assert!(plan.reason().contains("the last archived commit"), "{}", plan.reason());
    assert!(plan.nearest_before().is_some());
    let (proved, reached, server) = rig.restored(request(now).or_nearest(true), "nearest").await;
    assert_eq!(reached.last_commit, proved.commits.last);
    assert_eq!(rows(&server), "1,2,3,4");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_can_pause_or_shut_down_at_its_target() {
    let rig = Rig::new().await;
    let cluster = Cluster::start(QUICK, rig.archiving(Options::default().segment_size_mb(1).set("hot_standby", "off")));
    let steps = steps(&rig, &cluster).await;
    rig.settle(&cluster).await;
    let proved = rig.proved(request(time(&steps.between))).await;
    for (name, action) in [("paused", RecoveryTargetAction::Pause), ("stopped", RecoveryTargetAction::Shutdown)] {
        rig.place(&proved, name, action, Vec::new()).await;
        let (reached, server) = rig.started(&proved, name, action).await;
        let reached = reached.unwrap();
        assert_eq!((reached.action, reached.timeline.get()), (action, 1));
        assert_eq!(server.pgdata.join("postmaster.pid").exists(), action == RecoveryTargetAction::Pause);
        assert_eq!(
            reached.lsn.is_some(),
            action == RecoveryTargetAction::Pause,
            "where it pauses is told by the server"
        );
        assert!(server.pgdata.join("recovery.signal").exists());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_ends_before_its_target_is_an_error_with_its_last_words() {
    let rig = Rig::new().await;
    let cluster = Cluster::start(QUICK, rig.archiving(Options::default().segment_size_mb(1)));
    steps(&rig, &cluster).await;
    rig.settle(&cluster).await;
    let proved = rig.proved(request(RecoveryTarget::Latest)).await;
    rig.place(&proved, "data", RecoveryTargetAction::Promote, Vec::new()).await;
    let settings = rig.scratch.join("data").join(RECOVERY_FILE);
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, text.replace("restore_command = 'cp ", "restore_command = 'exit 200; cp ")).unwrap();
    let (reached, _server) = rig.started(&proved, "data", RecoveryTargetAction::Promote).await;
    let error = reached.unwrap_err();
    assert!(
        matches!(&error, ServerStartError::ServerEnded { log, .. } if log.lines.iter().any(|line| {
            line.contains("could not restore file")
        })),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_were_raised_after_the_backup_are_raised_in_the_restored_server() {
    let rig = Rig::new().await;
    let options = Options::default().segment_size_mb(1).set("max_connections", 20).set("max_worker_processes", 4);
    let mut cluster = Cluster::start(QUICK, rig.archiving(options));
    steps(&rig, &cluster).await;
    cluster.sql("alter system set max_connections = 70");
    cluster.restart();
    cluster.sql("alter system set max_connections = 30");
    cluster.sql("alter system set max_worker_processes = 6");
    cluster.restart();
    cluster.sql("insert into t values (5)");
    rig.settle(&cluster).await;
    let (proved, _, server) = rig.restored(request(RecoveryTarget::Latest), "data").await;
    assert_eq!(proved.required_settings.max_connections, 70, "the most that the log had");
    assert_eq!(rows(&server), "1,2,3,4,5");

    // A server that got less waits and would wait for ever.
    rig.place(&proved, "low", RecoveryTargetAction::Promote, Vec::new()).await;
    let auto_conf = rig.scratch.join("low/postgresql.auto.conf");
    let text = fs::read_to_string(&auto_conf).unwrap();
    fs::write(&auto_conf, text.replace("max_connections = '70'", "max_connections = '25'")).unwrap();
    let (reached, _server) = rig.started(&proved, "low", RecoveryTargetAction::Promote).await;
    let error = reached.unwrap_err();
    assert!(
        matches!(&error, ServerStartError::ServerStuck { why, .. } if why.contains("max_connections = 25")),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_follows_the_timeline_it_was_told() {
    let rig = Rig::new().await;
    let options = rig.archiving(Options::default().segment_size_mb(1));
    let cluster = Cluster::start(QUICK, options.clone());
    let steps = steps(&rig, &cluster).await;
    let standby = cluster.standby(options);
    standby.wait_for("select count(*) = 4 from t");
    // Both go on from here, each on its own timeline.
    standby.promote();
    standby.sql("insert into t values (20)");
    cluster.sql("insert into t values (10)");
    rig.settle(&cluster).await;
    rig.settle(&standby).await;
    rig.backup(&standby).await;
    standby.sql("insert into t values (21)");
    rig.settle(&standby).await;

    let on = |choice: &str| request(RecoveryTarget::Latest).on_timeline(choice.parse::<TargetTimeline>().unwrap());
    let (proved, reached, server) = rig.restored(on("latest"), "latest").await;
    assert_eq!((proved.timeline.get(), reached.timeline.get()), (2, 3));
    assert_eq!(rows(&server), "1,2,3,4,20,21");
    let (proved, reached, server) = rig.restored(on("1"), "first").await;
    assert_eq!((proved.timeline.get(), reached.timeline.get()), (1, 3), "2 is taken, as the archive tells the server");
    assert_eq!(rows(&server), "1,2,3,4,10");
    // Over the fork: from the backup before it to a target after it, and to one before.
    let first = restore::backup_summaries(&rig.archive).await.unwrap()[0].label.clone();
    let (proved, _, server) = rig.restored(on("latest").from_backup(Some(first)), "over").await;
    assert_eq!(proved.timeline.get(), 2);
    assert_eq!(rows(&server), "1,2,3,4,20,21");
    let (_, _, server) = rig.restored(request(time(&steps.between)), "before").await;
    assert_eq!(rows(&server), "1,2");
    let unknown = restore::plan_restore(&rig.archive, &rig.index().await, None, on("7")).await.unwrap_err();
    assert!(unknown.to_string().contains("the history of timeline 7"), "{unknown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_is_found_before_anything_is_touched_and_the_server_stops_right_before_it() {
    let rig = Rig::new().await;
    let cluster = Cluster::start(QUICK, rig.archiving(Options::default().segment_size_mb(1)));
    steps(&rig, &cluster).await;
    cluster.switch_wal();
    cluster.sql("insert into t values (5)");
    let lost = cluster.switch_wal();
    cluster.sql("insert into t values (6)");
    rig.settle(&cluster).await;
    let Some(WalFileName::Segment(segment)) = WalFileName::parse(&lost) else { panic!("{lost}") };
    rig.archive.vault().delete(&rig.archive.layout().segment(segment)).await.unwrap();
    fs::remove_file(rig.folder().join(&lost)).unwrap();

    let last = rig
        .plan(request(RecoveryTarget::Xid(parse_xid(&cluster.sql("select xmin from t where i = 6")).unwrap())))
        .await;
    assert!(last.reason().contains("not archived"), "{}", last.reason());
    let PlanOutcome::Unreachable(target) = &last.outcome else { panic!("{last:?}") };
    assert!(matches!(target.place, TargetPlace::AfterObstacle { nearest_before: Some(_), .. }), "{target:?}");
    let proved = rig.proved(request(RecoveryTarget::Latest)).await;
    assert!(proved.hole_follows && matches!(proved.stop, RecoveryStop::After(_)), "{proved:?}");
    // As `archive-get` answers for a hole: PostgreSQL must not even ask.
    let wishes = RestoreOptions {
        destination: Destination { pgdata: rig.scratch.join("data"), mapping: Vec::new() },
        action: RecoveryTargetAction::Promote,
        restore_command: format!("case %f in {lost}) exit 200;; esac; cp {}/%f \"%p\"", rig.folder().display()),
        end_command: format!("rm -f {RECOVERY_FILE}"),
        waldir: None,
        role: ServerRole::Copy,
        keep_archiving: false,
        configuration: ConfigurationSearch::default(),
        force: false,
    };
    restore::restore(&rig.archive, &proved, &wishes, |_, _| {}).await.unwrap();
    let (reached, server) = rig.started(&proved, "data", RecoveryTargetAction::Promote).await;
    reached.unwrap();
    assert_eq!(rows(&server), "1,2,3,4");
}
