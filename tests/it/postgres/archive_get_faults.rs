//! Faults between the archive and a recovery: what a one-shot restore must not take for the end of the log, and what a
//! standby sits out.
//!
//! PostgreSQL promotes when `restore_command` says that there is no more (TRAPS 40 to 43). So under each fault a
//! one-shot restore must stop, still in archive recovery on its old timeline, and go on to the very end once the fault
//! is mended; a standby must stay up, stay a standby, and go on by itself.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::{Pid, Signal};

use crate::support::process::{self, Orphan, until};
use crate::support::store::{Mode, Proxy, S3};
use crate::support::{Cluster, Options, QUICK, Scratch, Site};

/// Segments with a row each; the fault is at the fourth.
const SEGMENTS: u32 = 6;
const HIT: usize = 3;

/// An archive with a few segments, a base to recover from, and a configuration of the recovering side alone.
struct Scene {
    scratch: Scratch,
    site: Site,
    segments: Vec<String>,
    /// What is recovered reads the repository by way of this link.
    link: PathBuf,
    config: PathBuf,
    key: PathBuf,
}

impl Scene {
    fn new() -> Scene {
        let site = Site::new();
        site.init(&[]).expect_ok();
        let scratch = Scratch::new();
        let (_, segments) = filled(&scratch, site.archive_command());
        let (link, config, key) = (scratch.join("archive"), scratch.join("walkeep.toml"), scratch.join("key"));
        symlink(site.repository(), &link).unwrap();
        let text = fs::read_to_string(site.config()).unwrap();
        let key_file = text.lines().find_map(|line| line.strip_prefix("key-file = \"")?.split('"').next()).unwrap();
        let key_file = site.path().join(key_file);
        scratch.file("key", &fs::read_to_string(&key_file).unwrap());
        let text = text.replace(&site.repository_url(), &format!("file://{}", link.display()));
        let text = text.replace(key_file.to_str().unwrap(), key.to_str().unwrap());
        scratch.file("walkeep.toml", &text);
        Scene { scratch, site, segments, link, config, key }
    }

    fn object(&self) -> PathBuf {
        let name = &self.segments[HIT];
        self.site.repository().join("main/wal").join(&name[..8]).join(&name[8..16]).join(name)
    }

    /// Does harm; what it gives back mends it.
    fn harm(&self, fault: Fault) -> Box<dyn FnOnce() + '_> {
        let object = self.object();
        match fault {
            Fault::Hole => {
                let away = self.scratch.join("away");
                fs::rename(&object, &away).unwrap();
                Box::new(move || fs::rename(away, object).unwrap())
            }
            Fault::BitFlip | Fault::Truncated => {
                let whole = fs::read(&object).unwrap();
                let mut damaged = whole.clone();
                damaged[whole.len() / 2] ^= 0x10;
                damaged.truncate(if matches!(fault, Fault::BitFlip) { whole.len() } else { whole.len() / 2 });
                fs::write(&object, damaged).unwrap();
                Box::new(move || fs::write(object, whole).unwrap())
            }
            Fault::Unreachable => {
                fs::remove_file(&self.link).unwrap();
                Box::new(|| symlink(self.site.repository(), &self.link).unwrap())
            }
            Fault::WrongKey => {
                let right = fs::read_to_string(&self.key).unwrap();
                let other = Site::new();
                other.init(&[]).expect_ok();
                let text = fs::read_to_string(other.config()).unwrap();
                let file = text.lines().find_map(|line| line.strip_prefix("key-file = \"")?.split('"').next()).unwrap();
                fs::write(&self.key, fs::read(other.path().join(file)).unwrap()).unwrap();
                Box::new(move || fs::write(&self.key, right).unwrap())
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Hole,
    BitFlip,
    Truncated,
    Unreachable,
    WrongKey,
}

/// A server whose WAL goes to an archive, a row a segment; its base backup is left in `base`. The names of the
/// segments.
fn filled(scratch: &Scratch, archive_command: String) -> (Cluster, Vec<String>) {
    let options = Options::default().set("archive_mode", "on").set("archive_command", archive_command);
    let cluster = Cluster::start(QUICK, options);
    cluster.sql("create table t (n int)");
    let base = scratch.join("base");
    cluster.run("pg_basebackup", &["-D", base.to_str().unwrap(), "-X", "none", "-c", "fast", "--no-sync"]).expect_ok();
    let segments: Vec<String> = (1..=SEGMENTS).map(|n| row(&cluster, n)).collect();
    archived(&cluster, segments.last().unwrap());
    (cluster, segments)
}

/// A row in a segment of its own, whose name it is.
fn row(cluster: &Cluster, n: u32) -> String {
    cluster.sql(&format!("insert into t values ({n})"));
    cluster.switch_wal()
}

fn archived(cluster: &Cluster, segment: &str) {
    cluster.wait_for(&format!("select coalesce(max(last_archived_wal), '') >= '{segment}' from pg_stat_archiver"));
}

/// A copy of the base that recovers through `archive-get`.
fn recovering(scratch: &Scratch, name: &str, config: &Path, standby: bool) -> Cluster {
    let data = scratch.join(name);
    let mut copy = process::command("cp", Orphan::Kill);
    copy.arg("-a").arg(scratch.join("base")).arg(&data);
    process::run(copy).expect_ok();
    let (program, flag) = (env!("CARGO_BIN_EXE_walkeep"), if standby { " --standby" } else { "" });
    // Without hot standby a server that recovers is not up before it is done, so that coming up means having promoted.
    let settings = format!(
        "\narchive_mode = off\nhot_standby = {}\nrestore_command = '{program} --config {} archive-get{flag} %f \"%p\"'\n\
         recovery_target_action = promote\nwal_retrieve_retry_interval = '300ms'\n",
        if standby { "on" } else { "off" },
        config.display()
    );
    let conf = data.join("postgresql.conf");
    fs::write(&conf, fs::read_to_string(&conf).unwrap() + &settings).unwrap();
    scratch.file(&format!("{name}/{}", if standby { "standby.signal" } else { "recovery.signal" }), "");
    Cluster::adopt(QUICK, &data)
}

/// That recovery has not ended: nothing was promoted, and the next start goes on.
fn still_recovers(server: &Cluster, log: &str, what: &str) {
    let control = server.run("pg_controldata", &["-D", server.data().to_str().unwrap()]).expect_ok();
    let said = |name: &str| {
        control.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {control}")).trim()
    };
    // One that could not even ask for histories has not begun, and is as the backup left it.
    let begun = server.log().contains("starting backup recovery") || server.log().contains("redo starts");
    let state = if begun { "in archive recovery" } else { "in production" };
    assert_eq!(said("Database cluster state:"), state, "{what}\n{log}");
    assert_eq!(said("Latest checkpoint's TimeLineID:"), "1", "{what}\n{log}");
    assert!(!server.pg_wal().join("00000002.history").exists(), "{what}\n{log}");
    assert!(!log.contains("selected new timeline"), "{what}\n{log}");
}

fn rows(server: &Cluster) -> String {
    server.sql("select string_agg(n::text, ',' order by n) from t")
}

const ALL: &str = "1,2,3,4,5,6";

/// What a server that recovers and takes no connections before it is done comes to: its log if it ended, nothing if it
/// was promoted.
fn outcome(server: &mut Cluster) -> Option<String> {
    if let Err(log) = server.try_start() {
        return Some(log);
    }
    let ended = until(Duration::from_secs(400), || {
        if !server.is_running() {
            return Some(true);
        }
        server.try_sql("select pg_is_in_recovery()").is_ok_and(|answer| answer == "f").then_some(false)
    });
    let log = server.log();
    if ended.unwrap_or_else(|| panic!("it goes on and on\n{log}")) {
        server.kill9();
        return Some(log);
    }
    None
}

fn stops_and_goes_on(mut server: Cluster, mend: impl FnOnce(), what: &str) {
    let log = outcome(&mut server).unwrap_or_else(|| panic!("{what}: it was promoted"));
    assert!(log.contains("startup FATAL"), "{what}\n{log}");
    assert!(server.data().join("recovery.signal").exists(), "{what}");
    still_recovers(&server, &log, what);
    mend();
    goes_to_the_end(&mut server, what);
}

fn goes_to_the_end(server: &mut Cluster, what: &str) {
    if let Some(log) = outcome(server) {
        panic!("{what}: it did not come up\n{log}");
    }
    assert_eq!(rows(server), ALL, "{what}");
    server.stop();
}

#[test]
fn a_one_shot_restore_stops_at_every_fault_and_goes_on_once_it_is_mended() {
    let scene = Scene::new();
    for fault in [Fault::Hole, Fault::BitFlip, Fault::Truncated, Fault::Unreachable, Fault::WrongKey] {
        let server = recovering(&scene.scratch, &format!("{fault:?}"), &scene.config, false);
        let mend = scene.harm(fault);
        stops_and_goes_on(server, mend, &format!("{fault:?}"));
    }
}

#[test]
fn a_standby_sits_every_fault_out_and_goes_on_by_itself() {
    let scene = Scene::new();
    for fault in [Fault::Hole, Fault::BitFlip, Fault::Truncated, Fault::Unreachable, Fault::WrongKey] {
        let mut server = recovering(&scene.scratch, &format!("standby-{fault:?}"), &scene.config, true);
        // Where the whole archive is out of reach the standby needs what it had before.
        let whole = matches!(fault, Fault::Unreachable | Fault::WrongKey);
        let hole = whole.then(|| scene.harm(Fault::Hole));
        let mend = if whole { None } else { Some(scene.harm(fault)) };
        server.start_again();
        server.wait_for("select string_agg(n::text, ',' order by n) = '1,2,3' from t");
        let mend = mend.unwrap_or_else(|| scene.harm(fault));
        if let Some(fill) = hole {
            // A process that opened the archive before the fault would find the segment.
            asks_again(&server, fault);
            wait_for_prefetchers(&scene.config);
            fill();
        }
        asks_again(&server, fault);
        assert!(server.is_running());
        assert_eq!(
            (server.sql("select pg_is_in_recovery()").as_str(), rows(&server).as_str()),
            ("t", "1,2,3"),
            "{fault:?}"
        );
        still_recovers(&server, &server.log(), &format!("{fault:?}"));
        mend();
        server.wait_for(&format!("select string_agg(n::text, ',' order by n) = '{ALL}' from t"));
        assert_eq!(server.sql("select pg_is_in_recovery()"), "t", "{fault:?}");
        still_recovers(&server, &server.log(), &format!("{fault:?}, mended"));
        server.stop();
    }
}

/// Waits until the standby has asked for the segment a few times more, each time in vain.
fn asks_again(server: &Cluster, fault: Fault) {
    let asked = || server.log().matches("cannot ").count();
    let before = asked();
    let again = until(Duration::from_secs(60), || (asked() >= before + 3).then_some(()));
    assert!(again.is_some(), "{fault:?}: it does not ask again\n{}", process::tail(&server.log(), 30));
}

/// Waits until no process fetches ahead for this configuration.
fn wait_for_prefetchers(config: &Path) {
    let gone = until(Duration::from_secs(60), || prefetchers(config).is_empty().then_some(()));
    assert!(gone.is_some(), "a prefetcher does not end");
}

/// The processes that fetch ahead for this configuration.
fn prefetchers(config: &Path) -> Vec<Pid> {
    let config = config.to_str().unwrap();
    let pids = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let pid = entry.file_name().to_str()?.parse().ok().and_then(Pid::from_raw)?;
        (line.contains(config) && line.contains("--fetch-ahead")).then_some(pid)
    });
    pids.collect()
}

/// Processes that fetch ahead for this configuration die all the time.
#[test]
fn a_killed_prefetcher_costs_nothing() {
    let scene = Scene::new();
    let (over, config) = (Arc::new(AtomicBool::new(false)), scene.config.clone());
    let killer = std::thread::spawn({
        let over = Arc::clone(&over);
        move || {
            let mut killed = 0;
            while !over.load(Ordering::Relaxed) {
                let signal = |pid: &Pid| rustix::process::kill_process(*pid, Signal::KILL).is_ok();
                killed += prefetchers(&config).iter().filter(|pid| signal(pid)).count();
                std::thread::sleep(Duration::from_millis(1));
            }
            killed
        }
    });
    let mut server = recovering(&scene.scratch, "one-shot", &scene.config, false);
    goes_to_the_end(&mut server, "one-shot");
    let mut standby = recovering(&scene.scratch, "standby", &scene.config, true);
    standby.start_again();
    standby.wait_for(&format!("select string_agg(n::text, ',' order by n) = '{ALL}' from t"));
    assert_eq!(standby.sql("select pg_is_in_recovery()"), "t");
    over.store(true, Ordering::Relaxed);
    assert!(killer.join().unwrap() > 0, "nothing was killed");
}

/// A store behind a network that is slow, then gone.
#[test]
fn a_network_that_is_slow_or_cut_never_promotes() {
    let store = S3::start();
    let proxy = Proxy::before(store.port());
    let (site, scratch) = (Site::new(), Scratch::new());
    store.init(&site);
    let (cluster, segments) = filled(&scratch, site.archive_command());
    let text = fs::read_to_string(site.config()).unwrap();
    let through = text.replace(&format!("127.0.0.1:{}", store.port()), &format!("127.0.0.1:{}", proxy.port()));
    assert_ne!(text, through);
    // A configuration's folder holds its key file.
    let config = site.scratch().file("through.toml", &through);

    proxy.set(Mode::Slow);
    let mut standby = recovering(&scratch, "standby", &config, true);
    standby.start_again();
    let mut slow = recovering(&scratch, "slow", &config, false);
    goes_to_the_end(&mut slow, "slow");
    standby.wait_for(&format!("select string_agg(n::text, ',' order by n) = '{ALL}' from t"));
    still_recovers(&standby, &standby.log(), "the standby, slow");

    // The store's own patience is two minutes, so both wait at the same time.
    proxy.set(Mode::Pass);
    let one_shot = recovering(&scratch, "cut", &config, false);
    proxy.cut_at(&segments[HIT]);
    stops_and_goes_on(
        one_shot,
        || {
            let failed = until(Duration::from_secs(200), || standby.log().contains("walkeep: ").then_some(()));
            assert!(failed.is_some(), "{}", process::tail(&standby.log(), 20));
            assert_eq!(standby.sql("select pg_is_in_recovery()"), "t");
            still_recovers(&standby, &standby.log(), "the standby");
            assert_eq!(rows(&standby), ALL);
            proxy.set(Mode::Pass);
        },
        "cut",
    );
    // What has come into the store since, by another way, comes to the standby by itself.
    archived(&cluster, &row(&cluster, SEGMENTS + 1));
    assert!(standby.is_running());
    standby.wait_for(&format!("select string_agg(n::text, ',' order by n) = '{ALL},{}' from t", SEGMENTS + 1));
    still_recovers(&standby, &standby.log(), "the standby, with the network back");
    assert_eq!(standby.sql("select pg_is_in_recovery()"), "t");
    standby.stop();
}
