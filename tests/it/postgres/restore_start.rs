//! `restore --start` beside real servers that log in every way and end in every way.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::{Pid, Signal};

use super::end_to_end::Attached;
use crate::support::process::{self, Finished, Orphan, until};
use crate::support::{Cluster, Options, QUICK, cluster, installed};

/// No run of a test waits longer.
const LIMIT: Duration = Duration::from_secs(120);

/// A directory that walkeep restored, perhaps with a server in it, which ends with this value.
struct Restored {
    data: PathBuf,
    bin: PathBuf,
}

impl Restored {
    fn pid(&self) -> Option<i32> {
        fs::read_to_string(self.data.join("postmaster.pid")).ok()?.lines().next()?.trim().parse().ok()
    }

    fn psql(&self, connect: &str, statement: &str) -> Finished {
        let mut words = connect.split_whitespace();
        let mut command = process::command(self.bin.join(words.next().unwrap()), Orphan::Kill);
        command.args(words).args(["-U", "postgres", "-d", "postgres", "-XAtqc", statement]);
        process::run(command)
    }
}

impl Drop for Restored {
    fn drop(&mut self) {
        if let Ok(text) = fs::read_to_string(self.data.join("postmaster.pid")) {
            let sockets = text.lines().nth(4).unwrap_or_default().to_owned();
            let mut command = process::command(self.bin.join("pg_ctl"), Orphan::Kill);
            command.arg("-D").arg(&self.data).args(["-m", "immediate", "-w", "-s", "stop"]);
            process::run(command);
            if sockets.starts_with("/tmp/walkeep-") {
                fs::remove_dir_all(sockets).ok();
            }
        }
    }
}

/// An archived cluster with three rows, the last of them after the backup.
fn archived(major: u32, options: Options) -> Attached {
    let it = Attached::start(major, options.segment_size_mb(1));
    it.cluster.sql("create table t as select n from generate_series(1, 2) n");
    it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
    it.cluster.sql("insert into t values (3)");
    it.archive();
    it
}

/// A directory to restore into, and the command that does it and starts the server.
fn restore_into(it: &Attached, name: &str, more: &[&str]) -> (Restored, Command) {
    let restored = Restored { data: it.site.path().join(name), bin: installed::bin(it.cluster.major) };
    let mut command = it.site.command();
    command.args(["restore", "postgres", "main", "--start", "--pgdata"]).arg(&restored.data);
    command.arg("--pg-bindir").arg(&restored.bin).args(more);
    (restored, command)
}

/// Runs a command that must not wait without a limit.
fn run_limited(it: &Attached, name: &str, command: Command) -> (i32, String) {
    let mut running = process::Running::start(command, &it.site.path().join(format!("{name}.log")));
    let code = running.wait(LIMIT).code().expect("an exit code");
    (code, running.output())
}

/// Options that let a server listen where no other does.
fn elsewhere(it: &Attached) -> String {
    format!("-p {} -k {}", cluster::free_port(), it.site.path().display())
}

#[test]
fn a_server_that_ends_is_seen_and_its_log_shown_wherever_it_logs() {
    let formats = [
        (QUICK, "stderr", ""),
        (QUICK, "collector", "logging_collector=on"),
        (QUICK, "json", "logging_collector=on log_destination=jsonlog"),
        (QUICK, "syslog", "log_destination=syslog"),
        (17, "csv", "logging_collector=on log_destination=csvlog"),
        (13, "both", "logging_collector=on log_destination=stderr,csvlog"),
    ];
    for (major, name, settings) in formats {
        let pairs = settings.split_whitespace().filter_map(|setting| setting.split_once('='));
        let options = pairs.fold(Options::default(), |options, (name, value)| options.set(name, value));
        let it = archived(major, options);
        let options = format!("{} -c restore_command='exit 200'", elsewhere(&it));
        let (restored, command) = restore_into(&it, name, &["--server-options", &options]);
        let (code, output) = run_limited(&it, name, command);
        assert_eq!(code, 1, "{name}: {output}");
        assert!(output.contains("ended before it reached its target, with exit status: 1"), "{name}: {output}");
        let shown = output.contains("could not restore file");
        assert_eq!(shown, name != "syslog", "{name}: {output}");
        assert_eq!(output.contains("by syslog"), name == "syslog", "{name}: {output}");
        assert!(restored.pid().is_none(), "{name}: it still runs");
    }
}

#[test]
fn a_server_that_logs_in_german_is_no_different() {
    let scratch = crate::support::Scratch::new();
    let Some(locales) = cluster::german_locale(&scratch).filter(|_| cluster::has_german(QUICK)) else {
        println!("skipped: no German locale or messages here");
        return;
    };
    let it = archived(QUICK, Options::default().german(locales.clone()).set("logging_collector", "on"));
    let options = format!("{} -c restore_command='exit 200'", elsewhere(&it));
    let (_restored, mut command) = restore_into(&it, "failing", &["--server-options", &options]);
    command.env("LOCPATH", &locales);
    let (code, output) = run_limited(&it, "failing", command);
    assert_eq!(code, 1, "{output}");
    assert!(output.contains("konnte Datei") && output.contains("nicht aus Archiv wiederherstellen"), "{output}");

    let (restored, mut command) = restore_into(&it, "right", &["--server-options", &elsewhere(&it), "--json"]);
    command.env("LOCPATH", &locales);
    let (code, output) = run_limited(&it, "right", command);
    assert_eq!(code, 0, "{output}");
    check_rows(&restored, &output);
}

/// The address that `--json` reports leads to a server with all rows.
fn check_rows(restored: &Restored, output: &str) -> serde_json::Value {
    let start = output.find("{\n").unwrap_or_else(|| panic!("{output}"));
    let document: serde_json::Value = serde_json::from_str(&output[start..]).unwrap_or_else(|_| panic!("{output}"));
    let address = document["reached"]["address"].clone();
    let connect = format!("psql -h {} -p {}", address["socket_dir"].as_str().unwrap(), address["port"]);
    assert_eq!(restored.psql(&connect, "select count(*), sum(n) from t").expect_ok().trim(), "3|6");
    address
}

#[test]
fn a_killed_server_is_seen() {
    let it = archived(QUICK, Options::default().set("logging_collector", "on"));
    let options = format!("{} -c restore_command='sleep 15; exit 1'", elsewhere(&it));
    let (restored, command) = restore_into(&it, "killed", &["--server-options", &options]);
    let mut running = process::Running::start(command, &it.site.path().join("killed.log"));
    let pid = until(LIMIT, || restored.pid()).expect("a server");
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let code = running.wait(LIMIT).code();
    for child in children.split_whitespace().filter_map(|pid| Pid::from_raw(pid.parse().ok()?)) {
        rustix::process::kill_process(child, Signal::KILL).ok();
    }
    assert_eq!(code, Some(1));
    assert!(running.output().contains("with signal: 9 (SIGKILL)"), "{}", running.output());
    fs::remove_file(restored.data.join("postmaster.pid")).unwrap();
}

#[test]
fn a_configuration_that_the_server_refuses_is_shown() {
    let it = archived(QUICK, Options::default());
    let options = format!("{} -c no_such_setting=1", elsewhere(&it));
    let (_restored, command) = restore_into(&it, "refused", &["--server-options", &options]);
    let (code, output) = run_limited(&it, "refused", command);
    assert_eq!(code, 1, "{output}");
    assert!(output.contains("unrecognized configuration parameter \"no_such_setting\""), "{output}");
}

#[test]
fn a_server_that_does_nothing_is_given_up_and_still_runs() {
    let it = archived(QUICK, Options::default());
    let options = format!("{} -c restore_command='sleep 60; exit 1'", elsewhere(&it));
    let more = ["--server-options", options.as_str(), "--start-timeout", "3s"];
    let (restored, command) = restore_into(&it, "idle", &more);
    let (code, output) = run_limited(&it, "idle", command);
    assert_eq!(code, 1, "{output}");
    assert!(output.contains("has made no progress for 3 s"), "{output}");
    let pid = restored.pid().expect("it still runs");
    assert!(output.contains(&format!("(process {pid})")), "{output}");
}

#[test]
fn a_copy_beside_its_original_gets_a_port_and_a_socket_of_its_own() {
    for (major, wished) in [(QUICK, "on"), (17, "off")] {
        let mut it = Attached::start(major, Options::default().segment_size_mb(1));
        let (log, pid_file) = (it.site.scratch().directory("log"), it.site.path().join("external.pid"));
        // What the original was started with on its command line is in the configuration that the copy gets.
        let sockets = Path::new(&it.cluster.socket_conninfo()).to_owned();
        let sockets =
            sockets.to_string_lossy().split_once("host=").unwrap().1.split_whitespace().next().unwrap().to_owned();
        for (name, value) in [
            ("port", it.cluster.port.to_string()),
            ("unix_socket_directories", sockets.trim_matches('\'').to_owned()),
            ("listen_addresses", "127.0.0.1".to_owned()),
            ("logging_collector", wished.to_owned()),
            ("log_directory", log.display().to_string()),
            ("external_pid_file", pid_file.display().to_string()),
        ] {
            it.cluster.sql(&format!("alter system set {name} = '{value}'"));
        }
        it.cluster.restart();
        it.cluster.wait_for("select count(*) > 0 from pg_stat_replication");
        it.cluster.sql("create table t as select n from generate_series(1, 2) n");
        it.site.walkeep(&["backup", "postgres", "main"]).expect_ok();
        it.cluster.sql("insert into t values (3)");
        it.archive();
        let original = fs::read_to_string(&pid_file).unwrap();
        let logged = files(&log);

        let (restored, command) = restore_into(&it, "copy", &["--json"]);
        let (code, output) = run_limited(&it, "copy", command);
        assert_eq!(code, 0, "{major}: {output}");
        let address = check_rows(&restored, &output);
        assert_eq!(address["private"], true, "{address}");
        assert_ne!(address["port"], it.cluster.port);
        let connect = format!("psql -h {} -p {}", address["socket_dir"].as_str().unwrap(), address["port"]);
        let shown = |setting: &str| restored.psql(&connect, &format!("show {setting}")).expect_ok().trim().to_owned();
        assert_eq!(
            (shown("listen_addresses"), shown("data_directory")),
            (String::new(), restored.data.display().to_string())
        );
        // The original is as it was.
        it.cluster.sql("insert into t values (4)");
        assert_eq!(restored.psql(&connect, "select count(*) from t").expect_ok().trim(), "3");
        assert_eq!(fs::read_to_string(&pid_file).unwrap(), original);
        assert_eq!(files(&log), logged, "the copy logs into the original's directory");

        // For people.
        let (second, command) = restore_into(&it, "second", &[]);
        let (code, output) = run_limited(&it, "second", command);
        assert_eq!(code, 0, "{output}");
        let line =
            output.lines().find_map(|line| line.trim().strip_prefix("connect with")).expect("how to connect").trim();
        let there = second.psql(line, "show data_directory").expect_ok();
        assert_eq!(Path::new(there.trim()), second.data);

        // A port that the user chose is not changed, and the server's own words say what is wrong.
        let port = it.cluster.port;
        let options = format!("-p {port}");
        let (_third, command) = restore_into(&it, "third", &["--server-options", &options]);
        let (code, output) = run_limited(&it, "third", command);
        assert_eq!(code, 1, "{output}");
        assert!(output.contains(&port.to_string()) && output.contains("ended before it reached"), "{output}");
        let dir = PathBuf::from(address["socket_dir"].as_str().unwrap());
        assert!(dir.starts_with("/tmp") && dir.to_string_lossy().contains("walkeep-"), "{}", dir.display());
    }
}

fn files(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn root_starts_the_server_as_its_owner_with_all_groups_of_that_user() {
    let Some(user) = process::server_user() else { return };
    let it = archived(QUICK, Options::default());
    let expected = Command::new("id").args(["-G", &user.uid.to_string()]).output().unwrap();
    let expected = String::from_utf8(expected.stdout).unwrap();
    let data = it.site.scratch().directory("by-root");
    let (restored, as_user) = restore_into(&it, "by-root", &["--server-options", &elsewhere(&it)]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_walkeep"));
    let arguments: Vec<_> = as_user.get_args().skip_while(|word| *word != "restore").collect();
    command.args(&arguments).env("WALKEEP_CONFIG", it.site.config());
    let (code, output) = run_limited(&it, "by-root", command);
    assert_eq!(code, 0, "{output}");
    let status = fs::read_to_string(format!("/proc/{}/status", restored.pid().unwrap())).unwrap();
    let groups = |text: &str| {
        let mut all: Vec<u32> = text.split_whitespace().filter_map(|group| group.parse().ok()).collect();
        all.sort_unstable();
        all
    };
    let line = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
    assert_eq!(groups(line), groups(&expected));
    assert!(status.contains(&format!("Uid:\t{0}\t{0}\t{0}\t{0}", user.uid)), "{status}");
    assert!(data.join("walkeep-start.log").exists());

    // A directory that would be root's is refused before anything is restored.
    let roots = tempfile::Builder::new().prefix("roots-").tempdir().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_walkeep"));
    command.env("WALKEEP_CONFIG", it.site.config()).args(["restore", "postgres", "main", "--start", "--pgdata"]);
    command.arg(roots.path().join("data"));
    let (code, output) = run_limited(&it, "roots", command);
    assert_eq!(code, 1, "{output}");
    assert!(output.contains("PostgreSQL refuses to run as root") && !roots.path().join("data").exists(), "{output}");
}

#[test]
fn a_server_that_pauses_is_recognised_without_its_log() {
    let it = archived(QUICK, Options::default().set("logging_collector", "on"));
    let more = ["--server-options", &elsewhere(&it), "--target-action", "pause", "--json"];
    let (restored, command) = restore_into(&it, "paused", &more);
    let (code, output) = run_limited(&it, "paused", command);
    assert_eq!(code, 0, "{output}");
    let address = check_rows(&restored, &output);
    let connect = format!("psql -h {} -p {}", address["socket_dir"].as_str().unwrap(), address["port"]);
    assert_eq!(restored.psql(&connect, "select pg_is_wal_replay_paused()").expect_ok().trim(), "t");
    let _stays_until_here: &Cluster = &it.cluster;
}
