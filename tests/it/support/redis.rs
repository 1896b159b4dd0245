//! Redis and Valkey servers and Sentinels of every version that is here, each on a free port of 127.0.0.1 in a
//! directory of its own, gone when dropped.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::installed::cache;
use super::process::{self, Finished, Orphan, Running, until};
use super::{Scratch, Site};

/// The versions that `tests/setup.sh` fetches, by the folder's name.
pub(crate) const VERSIONS: [&str; 4] = ["6.2", "7.0", "8.2", "valkey9"];

/// The version that a test takes unless it is about versions: Debian's.
pub(crate) const QUICK_REDIS: &str = "7.0";

const PATIENCE: Duration = Duration::from_secs(60);

/// A program of one version.
pub(crate) fn program(version: &str, name: &str) -> PathBuf {
    let path = cache().join(format!("redis/{version}/bin/{name}"));
    assert!(path.exists(), "{} is not there: run tests/setup.sh", path.display());
    path
}

/// A port nobody listens on now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("its address").port()
}

#[derive(Debug)]
pub(crate) struct RedisServer {
    pub(crate) version: String,
    pub(crate) port: u16,
    running: Running,
    scratch: Scratch,
    options: Vec<String>,
    /// What its clock is off by, as libfaketime has it.
    clock: Option<String>,
}

impl RedisServer {
    /// A server of this version with these options (`--name`, `value`, …), ready for commands.
    pub(crate) fn start(version: &str, options: &[&str]) -> Self {
        Self::start_with_clock(version, None, options)
    }

    /// The same with a clock that is off by so much, such as `-90s`.
    pub(crate) fn start_with_clock(version: &str, clock: Option<&str>, options: &[&str]) -> Self {
        let clock = clock.map(str::to_owned);
        let scratch = Scratch::new();
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let port = free_port();
        let running = Self::run((version, &clock), port, &scratch, &options);
        let server = Self { version: version.to_owned(), port, running, scratch, options, clock };
        server.await_ready();
        server
    }

    fn run((version, clock): (&str, &Option<String>), port: u16, scratch: &Scratch, options: &Vec<String>) -> Running {
        let program = program(version, "redis-server");
        let mut command = match clock {
            // Not before the program that changes the user: what libfaketime makes would belong to root.
            Some(clock) => {
                let mut command = process::command("env", Orphan::Kill);
                command.arg("LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1").arg(format!("FAKETIME={clock}"));
                // Waits are measured by the other clock, which stays as it is.
                command.args(["FAKETIME_DONT_FAKE_MONOTONIC=1", "FAKETIME_DISABLE_SHM=1"]).arg(program);
                command
            }
            None => process::command(program, Orphan::Kill),
        };
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--daemonize", "no"]);
        command.args(["--repl-diskless-sync-delay", "0", "--dir"]).arg(scratch.path());
        command.arg("--unixsocket").arg(scratch.join("redis.sock"));
        command.args(options);
        Running::start(command, &scratch.join("redis.log"))
    }

    fn await_ready(&self) {
        let ready = until(PATIENCE, || {
            let pong = self.run_cli(&["PING"]);
            ["PONG", "NOAUTH", "NOPERM", "LOADING", "MASTERDOWN"]
                .iter()
                .any(|word| pong.stdout.contains(word))
                .then_some(())
        });
        assert!(ready.is_some(), "redis does not answer\n{}", self.running.output());
    }

    /// Kills it and starts it again where it was.
    pub(crate) fn restart(&mut self) {
        self.running.kill9();
        self.running = Self::run((&self.version, &self.clock), self.port, &self.scratch, &self.options);
        self.await_ready();
    }

    pub(crate) fn kill9(&mut self) {
        self.running.kill9();
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        self.running.signal(signal);
    }

    pub(crate) fn path(&self) -> &Path {
        self.scratch.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.scratch.join("redis.sock")
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// redis-cli of its version against its socket, which no option can close.
    pub(crate) fn cli(&self) -> Command {
        let mut command = process::command(program(&self.version, "redis-cli"), Orphan::Kill);
        command.arg("-s").arg(self.socket());
        command
    }

    pub(crate) fn run_cli(&self, arguments: &[&str]) -> Finished {
        let mut command = self.cli();
        command.args(arguments);
        process::run(command)
    }

    /// What a command answers, which must not be an error.
    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        let answer = self.run_cli(arguments).expect_ok();
        let word = answer.split(' ').next().unwrap_or_default();
        assert!(!["ERR", "NOAUTH", "WRONGTYPE", "NOPERM"].contains(&word), "{arguments:?}: {answer}");
        answer.trim_end().to_owned()
    }

    /// One line of INFO.
    pub(crate) fn info(&self, name: &str) -> String {
        let text = self.ask(&["INFO", "everything"]);
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("INFO has no {name}\n{text}")).trim_end().to_owned()
    }

    pub(crate) fn offset(&self) -> u64 {
        self.info("master_repl_offset").parse().expect("an offset")
    }

    /// Runs many commands, one a line, through one client.
    pub(crate) fn feed(&self, lines: &str) {
        let script = self.scratch.file("feed", lines);
        let mut command = process::command("sh", Orphan::Kill);
        let cli = program(&self.version, "redis-cli");
        command.arg("-c").arg(format!("{} -s {} < {}", cli.display(), self.socket().display(), script.display()));
        let answers = process::run(command).expect_ok();
        let wrong = answers.lines().find(|line| line.starts_with("ERR") || line.starts_with("(error)"));
        assert!(wrong.is_none(), "{wrong:?}");
    }

    /// Waits until it has loaded what it started from.
    pub(crate) fn await_loaded(&self) {
        let loaded = || self.run_cli(&["INFO", "persistence"]).stdout.contains("\nloading:0").then_some(());
        assert!(until(PATIENCE, loaded).is_some(), "it goes on loading\n{}", self.log());
    }

    /// A digest of all its data, by itself.
    pub(crate) fn digest(&self) -> String {
        self.await_loaded();
        self.ask(&["DEBUG", "DIGEST"])
    }

    pub(crate) fn log(&self) -> String {
        self.running.output()
    }

    /// Every type, every encoding a little of data reaches, expiries, and three databases.
    pub(crate) fn fill(&self, keys: usize) {
        use std::fmt::Write;
        let mut lines = String::new();
        for n in 0..keys {
            let line = match n % 9 {
                0 => format!("SET string:{n} value-{n}"),
                1 => format!("SET number:{n} {n} EX 100000"),
                2 => format!("RPUSH list:{n} a b c {n} {}", "x".repeat(100)),
                3 => format!("SADD set:{n} a b {n}"),
                4 => format!("SADD intset:{n} 1 2 {n}"),
                5 => format!("ZADD zset:{n} 1 a 2.5 b {n} c"),
                6 => format!("HSET hash:{n} f v g {n}"),
                7 => format!("XADD stream:{n} * f v n {n}"),
                _ => format!("APPEND big:{n} {}", "abcdefgh".repeat(200)),
            };
            writeln!(lines, "{line}").expect("a string");
        }
        lines.push_str("SELECT 3\nSET third yes\nSELECT 15\nHSET last f 1\nSELECT 0\n");
        lines.push_str("XGROUP CREATE stream:7 group 0\nXREADGROUP GROUP group me COUNT 1 STREAMS stream:7 >\n");
        self.feed(&lines);
    }
}

/// Three Sentinels around a master named `mymaster`.
#[derive(Debug)]
pub(crate) struct Sentinels {
    pub(crate) ports: Vec<u16>,
    version: String,
    /// How one logs in there, as redis-cli wants it.
    login: Vec<String>,
    _running: Vec<Running>,
    _scratch: Scratch,
}

impl Sentinels {
    pub(crate) fn watch(master: &RedisServer) -> Self {
        let sentinels = Self::start(master, 3, "", &[]);
        let known = until(PATIENCE, || {
            let all = sentinels.ports.iter().all(|port| {
                let text = sentinels.ask(*port, &["SENTINEL", "master", "mymaster"]);
                text.contains("num-other-sentinels\n2") && !text.contains("num-slaves\n0")
            });
            all.then_some(())
        });
        assert!(known.is_some(), "the Sentinels do not find each other and the replica");
        sentinels
    }

    /// One that knows of no other.
    pub(crate) fn alone(master: &RedisServer) -> Self {
        Self::guarded(master, "", &[])
    }

    /// The same with more lines in its configuration, and how redis-cli then logs in.
    pub(crate) fn guarded(master: &RedisServer, lines: &str, login: &[&str]) -> Self {
        let sentinels = Self::start(master, 1, lines, login);
        let known = until(PATIENCE, || {
            let named = sentinels.ask(sentinels.ports[0], &["SENTINEL", "get-master-addr-by-name", "mymaster"]);
            named.contains(&master.port.to_string()).then_some(())
        });
        assert!(known.is_some(), "the Sentinel does not answer");
        sentinels
    }

    fn start(master: &RedisServer, count: usize, lines: &str, login: &[&str]) -> Self {
        let scratch = Scratch::new();
        let ports: Vec<u16> = (0..count).map(|_| free_port()).collect();
        let running = ports.iter().map(|port| {
            let dir = scratch.directory(&port.to_string());
            let text = format!(
                "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor mymaster 127.0.0.1 {} 2\n\
                 sentinel down-after-milliseconds mymaster 1000\nsentinel failover-timeout mymaster 5000\n{lines}",
                dir.display(),
                master.port
            );
            let config = scratch.file(&format!("{port}/sentinel.conf"), &text);
            let mut command = process::command(program(&master.version, "redis-server"), Orphan::Kill);
            command.arg(config).arg("--sentinel");
            Running::start(command, &scratch.join(format!("{port}.log")))
        });
        let running = running.collect();
        let login = login.iter().map(|word| (*word).to_owned()).collect();
        Self { ports, version: master.version.clone(), login, _running: running, _scratch: scratch }
    }

    pub(crate) fn ask(&self, port: u16, arguments: &[&str]) -> String {
        let mut command = process::command(program(&self.version, "redis-cli"), Orphan::Kill);
        command.args(["-p", &port.to_string()]).args(&self.login).args(arguments);
        process::run(command).stdout
    }

    /// For the configuration.
    pub(crate) fn section(&self) -> String {
        let addresses: Vec<String> = self.ports.iter().map(|port| format!("\"127.0.0.1:{port}\"")).collect();
        format!("sentinels = [{}]\nmaster = \"mymaster\"\n", addresses.join(", "))
    }
}

/// A site with an instance `cache` and no cluster that could be asked.
pub(crate) fn site(section: &str) -> Site {
    configured(Site::new(), section)
}

/// As [`site`], in this place.
pub(crate) fn configured(site: Site, section: &str) -> Site {
    site.init(&[]).expect_ok();
    let path = site.config();
    let text = std::fs::read_to_string(&path).expect("the configuration");
    // Without the cluster that init made.
    let text = text.split("[postgres.main]").next().expect("a part").to_owned();
    site.scratch().file("walkeep.toml", &format!("{text}\n[redis.cache]\n{section}"));
    site
}

pub(crate) fn site_for(server: &RedisServer) -> Site {
    site(&format!("url = \"{}\"\n", server.url()))
}

/// A second repository beside the site's own, with these settings in its section.
pub(crate) fn second_repository(site: &Site, settings: &str) -> PathBuf {
    let second = site.path().join("second");
    let url = format!("file://{}", second.display());
    let text = std::fs::read_to_string(site.config()).expect("the configuration");
    let before = if text.contains("[postgres.main]") { "[postgres.main]" } else { "[redis.cache]" };
    let section = format!("[repository.second]\nurl = \"{url}\"\n{settings}\n\n{before}");
    site.scratch().file("walkeep.toml", &text.replace(before, &section));
    let key = std::fs::read_to_string(site.path().join("walkeep.key")).expect("the key file");
    let key = walkeep::vault::seal::keys::KeyEncryptionKey::from_text(key.trim()).expect("a key");
    let place = |name: &str, url: String| walkeep::vault::RepositoryLocation {
        name: name.into(),
        url,
        options: walkeep::vault::repository::RepositoryOptions::new(),
    };
    let settings = walkeep::vault::VaultSettings {
        places: vec![place("local", site.repository_url()), place("second", url)],
        key: Some(key),
        level: walkeep::vault::seal::CompressionLevel::Fixed(1),
        threads: 1,
        clock: walkeep::base::clock::SystemClock::shared(),
    };
    block_on(walkeep::vault::Vault::create(settings)).expect("a second repository");
    give_all(&second);
    second
}

/// To the user that the program runs as.
pub(crate) fn give_all(folder: &Path) {
    super::scratch::give(folder);
    for entry in std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()) {
        if entry.is_dir() { give_all(&entry) } else { super::scratch::give(&entry) }
    }
}

/// The options that let a server of this version tell its digest.
pub(crate) fn debug(version: &str) -> Vec<&'static str> {
    if version == "6.2" { Vec::new() } else { vec!["--enable-debug-command", "yes"] }
}

/// The site's instance, opened through the library.
pub(crate) async fn instance(site: &Site) -> walkeep::redis::archive::Archive {
    use walkeep::redis::archive::Archive;
    use walkeep::vault::{RepositoryLocation, Vault, VaultSettings};
    let key = std::fs::read_to_string(site.path().join("walkeep.key")).expect("the key file");
    let key = walkeep::vault::seal::keys::KeyEncryptionKey::from_text(key.trim()).expect("a key");
    let settings = VaultSettings {
        places: vec![RepositoryLocation {
            name: "local".into(),
            url: site.repository_url(),
            options: walkeep::vault::repository::RepositoryOptions::new(),
        }],
        key: Some(key),
        level: walkeep::vault::seal::CompressionLevel::Fixed(1),
        threads: 1,
        clock: walkeep::base::clock::SystemClock::shared(),
    };
    let vault = Vault::open(settings).await.expect("the vault");
    let name = "cache".parse().expect("a name");
    Archive::new(std::sync::Arc::new(vault), name).with_spool(site.state_dir())
}

/// The snapshot's RDB file, put together again.
pub(crate) fn rdb_of(site: &Site, label: &str) -> Vec<u8> {
    block_on(async {
        let instance = instance(site).await;
        let snapshot = instance.read_snapshot(label).await.expect("asked").expect("the snapshot");
        let mut file = Vec::new();
        for number in 0..snapshot.parts.len() {
            file.extend_from_slice(&instance.read_part(&snapshot, number).await.expect("a part"));
        }
        assert_eq!(file.len() as u64, snapshot.logical_bytes);
        file
    })
}

pub(crate) fn block_on<T>(work: impl std::future::Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
        .block_on(work)
}

/// A server of this version that has loaded this RDB file.
pub(crate) fn started_from(version: &str, rdb: &[u8], options: &[&str]) -> RedisServer {
    let server = starting_from(version, rdb, options);
    server.await_loaded();
    server
}

/// A server of this version that loads this RDB file.
pub(crate) fn starting_from(version: &str, rdb: &[u8], options: &[&str]) -> RedisServer {
    let folder = Scratch::new();
    let path = folder.join("dump.rdb");
    std::fs::write(&path, rdb).expect("write");
    super::scratch::give(&path);
    let dir = folder.path().display().to_string();
    let mut all = vec!["--dir", dir.as_str()];
    all.extend(debug(version));
    all.extend(options);
    RedisServer::start(version, &all)
}
