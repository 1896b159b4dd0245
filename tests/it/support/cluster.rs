//! A real PostgreSQL for one test: fresh data directory, free port, private socket directory, gone at the end whatever
//! happens.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rustix::process::Signal;

use super::process::{self, Finished, Orphan, Running, until};
use super::{Scratch, installed, template};

const START_LIMIT: Duration = Duration::from_secs(60);

/// How a cluster differs from the ordinary one: 16 MiB segments, data checksums, trust, `wal_level = replica`.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    segment_size_mb: u32,
    checksums: bool,
    settings: Vec<(String, String)>,
    password: Option<(String, &'static str)>,
    tls: bool,
    clock: Option<PathBuf>,
    locales: Option<PathBuf>,
    /// Whether the configuration is outside the data directory, as on Debian.
    outside: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_size_mb: 16,
            checksums: true,
            settings: Vec::new(),
            password: None,
            tls: false,
            clock: None,
            locales: None,
            outside: false,
        }
    }
}

impl Options {
    /// One line of postgresql.conf.
    pub(crate) fn set(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.into(), value.to_string()));
        self
    }

    pub(crate) fn segment_size_mb(mut self, size: u32) -> Self {
        self.segment_size_mb = size;
        self
    }

    pub(crate) fn without_checksums(mut self) -> Self {
        self.checksums = false;
        self
    }

    /// User postgres needs this password over TCP, by SCRAM-SHA-256. The Unix socket stays open to the test.
    pub(crate) fn scram(mut self, password: &str) -> Self {
        self.password = Some((password.into(), "scram-sha-256"));
        self
    }

    /// The same with the older md5 exchange.
    pub(crate) fn md5(mut self, password: &str) -> Self {
        self.password = Some((password.into(), "md5"));
        self
    }

    /// The server's clock is off by what stands in this file, such as `-90s`, and follows it when it changes.
    pub(crate) fn clock(mut self, file: PathBuf) -> Self {
        self.clock = Some(file);
        self
    }

    /// The server reports errors in German, where it has the translation, with the locale in this directory
    /// ([`german_locale`]).
    pub(crate) fn german(mut self, locales: PathBuf) -> Self {
        self.locales = Some(locales);
        self.set("lc_messages", "de_DE.UTF-8")
    }

    /// The configuration files are in a directory of their own, as on Debian ([`Cluster::config_file`]); none is in the
    /// data directory.
    pub(crate) fn debian_layout(mut self) -> Self {
        self.outside = true;
        self
    }

    /// TLS with a certificate for `localhost` and 127.0.0.1 that signs itself: [`Cluster::root_certificate`]. Not on
    /// 13, which was built without.
    pub(crate) fn tls(mut self) -> Self {
        self.tls = true;
        self
    }
}

/// A directory with a German locale, made without root; `None` if the machine has no sources of locales.
pub(crate) fn german_locale(scratch: &Scratch) -> Option<PathBuf> {
    let folder = scratch.directory("locales");
    let mut command = process::command("localedef", Orphan::Kill);
    command.args(["-i", "de_DE", "-f", "UTF-8"]).arg(folder.join("de_DE.UTF-8"));
    (process::run(command).code == Some(0)).then_some(folder)
}

/// Whether Debian's PostgreSQL of this major has its messages in German here.
pub(crate) fn has_german(major: u32) -> bool {
    // `tests/setup.sh` links Debian's into the cache.
    let packaged = installed::bin(major).canonicalize().is_ok_and(|bin| bin.starts_with("/usr/lib/postgresql"));
    packaged && Path::new(&format!("/usr/share/locale/de/LC_MESSAGES/postgres-{major}.mo")).exists()
}

/// The server is tied to the thread that started it last: when that thread ends, so does the server. Dropping it shuts
/// it down.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) major: u32,
    pub(crate) port: u16,
    bin: PathBuf,
    data: PathBuf,
    server: Option<Running>,
    options: Options,
    scratch: Arc<Scratch>,
}

impl Cluster {
    /// A new cluster of this major, up and ready.
    pub(crate) fn start(major: u32, options: Options) -> Self {
        let scratch = Scratch::new();
        let data = scratch.join("data");
        template::create(major, options.segment_size_mb, options.checksums, &data);
        let mut cluster = Self::over(major, data, options, scratch);
        cluster.configure();
        if cluster.options.outside {
            cluster.move_configuration();
        }
        cluster.start_again();
        if let Some((password, method)) = cluster.options.password.clone() {
            cluster.sql(&format!("set password_encryption = '{method}'; alter user postgres password '{password}'"));
        }
        cluster
    }

    /// Takes over a data directory that something else made, such as a restore, without starting a server on it. The
    /// directory stays.
    pub(crate) fn adopt(major: u32, data: &Path) -> Self {
        Self::over(major, data.into(), Options::default(), Scratch::new())
    }

    fn over(major: u32, data: PathBuf, options: Options, scratch: Scratch) -> Self {
        let bin = installed::bin(major);
        Self { major, port: 0, bin, data, server: None, options, scratch: Arc::new(scratch) }
    }

    /// A streaming standby of this cluster, made with pg_basebackup, up and in recovery.
    pub(crate) fn standby(&self, settings: Options) -> Self {
        let scratch = Scratch::new();
        let data = scratch.join("data");
        self.run("pg_basebackup", &["-D", &data.to_string_lossy(), "-R", "-X", "stream", "-c", "fast", "--no-sync"])
            .expect_ok();
        let mut options = self.options.clone();
        options.settings = settings.settings;
        let mut standby = Self::over(self.major, data, options, scratch);
        standby.append_settings();
        standby.start_again();
        standby
    }

    fn configure(&self) {
        let method = self.options.password.as_ref().map_or("trust", |(_, method)| method);
        let hba = format!(
            "local all all trust\nlocal replication all trust\nhost all all 127.0.0.1/32 {method}\nhost replication \
                all 127.0.0.1/32 {method}\n"
        );
        fs::write(self.data.join("pg_hba.conf"), hba).expect("pg_hba.conf");
        if self.options.tls {
            self.make_certificate();
        }
        self.append_settings();
    }

    /// `postgresql.conf` of a cluster with Debian's layout.
    pub(crate) fn config_file(&self) -> PathBuf {
        self.scratch.join("etc/postgresql.conf")
    }

    fn move_configuration(&self) {
        let etc = self.scratch.directory("etc");
        self.scratch.directory("etc/conf.d");
        for name in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
            fs::copy(self.data.join(name), etc.join(name)).expect("a copy");
            super::scratch::give(&etc.join(name));
            fs::remove_file(self.data.join(name)).expect("it was copied");
        }
        let mut text = fs::read_to_string(etc.join("postgresql.conf")).expect("postgresql.conf");
        for (name, path) in [
            ("data_directory", self.data.clone()),
            ("hba_file", etc.join("pg_hba.conf")),
            ("ident_file", etc.join("pg_ident.conf")),
        ] {
            writeln!(text, "{name} = '{}'", path.display()).unwrap();
        }
        text.push_str("include_dir = 'conf.d'\n");
        fs::write(etc.join("postgresql.conf"), text).expect("postgresql.conf");
    }

    fn append_settings(&self) {
        let mut text = fs::read_to_string(self.data.join("postgresql.conf")).expect("postgresql.conf");
        text.push_str("\n# for the test\n");
        for (name, value) in DEFAULTS {
            writeln!(text, "{name} = '{value}'").unwrap();
        }
        if self.options.tls {
            text.push_str("ssl = on\n");
        }
        for (name, value) in &self.options.settings {
            writeln!(text, "{name} = '{}'", value.replace('\'', "''")).unwrap();
        }
        fs::write(self.data.join("postgresql.conf"), text).expect("postgresql.conf");
    }

    fn make_certificate(&self) {
        assert!(self.major > 13, "the build of 13 has no TLS");
        let mut openssl = process::command("openssl", Orphan::Kill);
        openssl
            .current_dir(&self.data)
            .args("req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=localhost".split(' '));
        openssl.args("-keyout server.key -out server.crt -addext subjectAltName=DNS:localhost,IP:127.0.0.1".split(' '));
        process::run(openssl).expect_ok();
    }

    /// What a client needs for `sslrootcert`.
    pub(crate) fn root_certificate(&self) -> PathBuf {
        self.data.join("server.crt")
    }

    /// Starts the server and waits until it takes connections. Panics with the server's log if it does not come up.
    pub(crate) fn start_again(&mut self) {
        if let Err(log) = self.try_start() {
            panic!("PostgreSQL {} did not start\n{}", self.major, process::tail(&log, 40));
        }
    }

    /// The same; a server that ends instead of coming up is an answer too: its log.
    pub(crate) fn try_start(&mut self) -> Result<(), String> {
        assert!(self.server.is_none(), "it runs already");
        let log = self.scratch.join("server.log");
        fs::write(&log, "").expect("a log file");
        // Somebody else may take the free port first, and the children of a killed server hold its shared memory for a
        // moment.
        for _ in 0..50 {
            if self.port == 0 {
                self.port = free_port();
            }
            let mut server = Running::start(self.postgres(), &log);
            if self.wait_until_ready(&mut server) {
                self.server = Some(server);
                return Ok(());
            }
            let text = server.output();
            if text.contains("Address already in use") {
                self.port = 0;
            } else if !text.contains("pre-existing shared memory block") {
                return Err(text);
            }
            fs::write(&log, "").expect("a log file");
            std::thread::sleep(Duration::from_millis(100));
        }
        Err("it never came up".into())
    }

    /// `postgres` itself, in front of it what sets its clock. That must not touch the program that changes the user:
    /// what libfaketime makes then belongs to root.
    fn program_with_clock(&self) -> Command {
        let postgres = self.bin.join("postgres");
        let Some(file) = &self.options.clock else { return process::command(postgres, Orphan::Quit) };
        let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
        assert!(Path::new(library).exists(), "{library} is not there: run tests/setup.sh");
        let mut command = process::command("env", Orphan::Quit);
        command.arg(format!("LD_PRELOAD={library}")).arg(format!("FAKETIME_TIMESTAMP_FILE={}", file.display()));
        // Waits are measured by the other clock, which stays as it is.
        command.args(["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"]).arg(postgres);
        command
    }

    fn postgres(&self) -> Command {
        let mut command = self.program_with_clock();
        command.arg("-D").arg(&self.data).arg("-p").arg(self.port.to_string());
        command.arg("-k").arg(self.scratch.path()).args(["-c", "listen_addresses=127.0.0.1"]);
        if self.options.outside {
            command.arg("-c").arg(format!("config_file={}", self.config_file().display()));
        }
        if let Some(locales) = &self.options.locales {
            command.env("LOCPATH", locales);
        }
        // What PyPI has was built for another folder: a standby's libpqwalreceiver would find the system's older libpq
        // and fail.
        if let Some(lib) = self.bin.parent().map(|top| top.join("lib")).filter(|lib| lib.join("libpq.so.5").exists()) {
            command.env("LD_LIBRARY_PATH", lib);
        }
        command
    }

    /// False when it ended instead. The last line of postmaster.pid says how far it is, as `pg_ctl` reads it.
    fn wait_until_ready(&self, server: &mut Running) -> bool {
        let pid = server.pid().to_string();
        until(START_LIMIT, || {
            if server.ended().is_some() {
                return Some(false);
            }
            let file = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
            let lines: Vec<&str> = file.lines().collect();
            let up = lines.first() == Some(&pid.as_str()) && matches!(lines.get(7)?.trim(), "ready" | "standby");
            up.then_some(true)
        })
        .unwrap_or_else(|| panic!("not ready after {START_LIMIT:?}\n{}", process::tail(&server.output(), 40)))
    }

    /// Fast shutdown: clients are cut off, a shutdown checkpoint is written, WAL senders finish.
    pub(crate) fn stop(&mut self) {
        self.shut_down(Signal::INT);
    }

    /// As a crash, but orderly: no checkpoint, recovery at the next start.
    pub(crate) fn stop_immediately(&mut self) {
        self.shut_down(Signal::QUIT);
    }

    fn shut_down(&mut self, signal: Signal) {
        if let Some(mut server) = self.server.take() {
            server.signal(signal);
            server.wait(Duration::from_secs(60));
        }
    }

    pub(crate) fn kill9(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill9();
        }
    }

    pub(crate) fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// True while the server's process is there.
    pub(crate) fn is_running(&mut self) -> bool {
        self.server.as_mut().is_some_and(|server| server.ended().is_none())
    }

    /// Makes a standby a primary, and waits until it is one.
    pub(crate) fn promote(&self) {
        self.sql("select pg_promote(true, 60)");
        self.wait_for("select not pg_is_in_recovery()");
    }

    /// Waits until a query answers `t`. An error is no answer yet: a standby may not have the table so far.
    pub(crate) fn wait_for(&self, query: &str) {
        let mut answer = Ok(String::new());
        let asked = until(Duration::from_secs(60), || {
            answer = self.try_sql(query);
            answer.as_deref().is_ok_and(|answer| answer == "t").then_some(())
        });
        assert!(asked.is_some(), "still not true: {query}: {answer:?}\n{}", process::tail(&self.log(), 40));
    }

    /// One or more statements through psql over the Unix socket: rows in lines, columns with `|` between. Panics on an
    /// error.
    pub(crate) fn sql(&self, statements: &str) -> String {
        self.try_sql(statements).unwrap_or_else(|error| panic!("{statements}\n{error}"))
    }

    pub(crate) fn try_sql(&self, statements: &str) -> Result<String, String> {
        let finished = self.run("psql", &["-XAtq", "-v", "ON_ERROR_STOP=1", "-c", statements]);
        if finished.code == Some(0) { Ok(finished.stdout.trim_end().to_owned()) } else { Err(finished.stderr) }
    }

    /// The same in another database.
    pub(crate) fn sql_in(&self, database: &str, statements: &str) -> String {
        let finished = self.run("psql", &["-XAtq", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", statements]);
        assert_eq!(finished.code, Some(0), "{statements}\n{}", finished.stderr);
        finished.stdout.trim_end().to_owned()
    }

    /// One of PostgreSQL's own programs of this major, pointed at this server.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Finished {
        let mut command = self.command(program);
        command.args(arguments);
        process::run(command)
    }

    /// The same, not yet started.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = process::command(self.bin.join(program), Orphan::Kill);
        command.env("PGHOST", self.scratch.path()).env("PGPORT", self.port.to_string());
        command.env("PGUSER", "postgres").env("PGDATABASE", "postgres").env("PGCONNECT_TIMEOUT", "10");
        command
    }

    /// How clients reach it over TCP, password and all.
    pub(crate) fn conninfo(&self) -> String {
        let password =
            self.options.password.as_ref().map(|(password, _)| format!(" password='{password}'")).unwrap_or_default();
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres{password}", self.port)
    }

    /// Where its Unix socket is.
    pub(crate) fn socket_dir(&self) -> &Path {
        self.scratch.path()
    }

    /// How clients reach it over its Unix socket, without a password.
    pub(crate) fn socket_conninfo(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.scratch.path().display(), self.port)
    }

    /// A client for tests that hold transactions open or run many at once. The task that drives it ends with it.
    pub(crate) async fn client(&self) -> tokio_postgres::Client {
        let (client, connection) =
            tokio_postgres::connect(&self.socket_conninfo(), tokio_postgres::NoTls).await.expect("connect");
        tokio::spawn(connection);
        client
    }

    pub(crate) fn data(&self) -> &Path {
        &self.data
    }

    pub(crate) fn pg_wal(&self) -> PathBuf {
        self.data.join("pg_wal")
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    /// The server's log since its last start.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.scratch.join("server.log")).unwrap_or_default()
    }

    pub(crate) fn system_identifier(&self) -> u64 {
        self.sql("select system_identifier from pg_control_system()").parse().expect("a number")
    }

    /// Where the next record will be written, in PostgreSQL's spelling.
    pub(crate) fn current_lsn(&self) -> String {
        self.sql("select pg_current_wal_insert_lsn()")
    }

    /// Ends the current segment and gives its name; there is always something in it.
    pub(crate) fn switch_wal(&self) -> String {
        // Not by the position up to which the server has written: what is inserted may be in the next segment.
        // Each with a name of its own: a target may be drawn by it.
        let point = "pg_create_restore_point('switch at ' || pg_current_wal_insert_lsn())";
        self.sql(&format!("select pg_walfile_name(pg_switch_wal()) from {point}"))
    }

    /// One line of configuration changed in the running server.
    pub(crate) fn set(&self, name: &str, value: &str) {
        self.sql(&format!("alter system set {name} = '{}'", value.replace('\'', "''")));
        self.sql("select pg_reload_conf()");
        self.wait_for(&format!("select current_setting('{name}') = '{}'", value.replace('\'', "''")));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take()
            && server.ended().is_none()
        {
            server.signal(Signal::QUIT);
            until(Duration::from_secs(10), || server.ended());
        }
        remove_shared_memory(&self.data);
    }
}

/// Small, and as durable as a test needs: a killed server loses nothing that it had written, only a power cut would.
const DEFAULTS: [(&str, &str); 9] = [
    ("fsync", "off"),
    ("shared_buffers", "32MB"),
    ("dynamic_shared_memory_type", "mmap"),
    ("max_connections", "50"),
    ("max_wal_senders", "10"),
    ("max_replication_slots", "10"),
    ("wal_level", "replica"),
    ("log_line_prefix", "%m [%p] %b "),
    ("log_min_messages", "info"),
];

/// A killed server leaves its System V segment, whose id it wrote to postmaster.pid.
fn remove_shared_memory(data: &Path) {
    let Ok(file) = fs::read_to_string(data.join("postmaster.pid")) else { return };
    if let Some(id) = file.lines().nth(6).and_then(|line| line.split_whitespace().nth(1)) {
        let mut ipcrm = process::command("ipcrm", Orphan::Kill);
        ipcrm.args(["-m", id]);
        process::run(ipcrm);
    }
}

pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port").port()
}
