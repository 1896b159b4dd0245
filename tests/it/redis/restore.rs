//! Restores of Redis, seen by real servers: what is written loads, in every version, with the data of the moment that
//! was asked for.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};
use walkeep::base::clock::SystemClock;
use walkeep::redis::format::rdb::{self, RdbChecksum, RdbLimits, RdbSummary, RdbValueKind, RdbWalker};
use walkeep::redis::format::resp::StreamCut;
use walkeep::redis::restore::server_start::{LoadedData, check_server_loads, query_server_version};
use walkeep::redis::restore::{
    CommandArrivals, DataFileForm, DataFileNames, DataFileWriter, PlacedFiles, RedisVersion, RestoreError,
    server_options,
};
use walkeep::redis::wire::{
    RedisAddress, RedisConnection, RedisEndpoint, RedisLogin, RedisTlsFiles, ServerFlavour, SyncAnswer, SyncRequest,
};

use crate::support::Scratch;
use crate::support::process::{self, Orphan, until};
use crate::support::redis::{RedisServer, VERSIONS, block_on, debug, program, site_for};

const PATIENCE: Duration = Duration::from_secs(60);

fn version(version: &str) -> RedisVersion {
    block_on(query_server_version(&program(version, "redis-server"))).expect("a version")
}

fn has_field_expiry(version: &str) -> bool {
    ["8.2", "valkey9"].contains(&version)
}

/// Every type in every encoding that a little and a lot of data reach, in several databases, some of it expiring.
fn everything(server: &RedisServer) {
    server.fill(900);
    let mut lines = String::new();
    let long = "long text that LZF likes ".repeat(400);
    lines.push_str(&format!(
        "SET long \"{long}\"\nSET number 12345\nSET negative -7\nSET far 1234567890123\nSET empty \"\"\n"
    ));
    for n in 0..700 {
        lines
            .push_str(&format!("RPUSH biglist element-{n} {n}\nSADD bigset member-{n}\nSADD bigints {}\n", n * 70_001));
        lines.push_str(&format!(
            "ZADD bigzset {n}.5 member-{n}\nHSET bighash field-{n} value-{n}\nXADD bigstream * n {n} text t-{n}\n"
        ));
    }
    lines.push_str("RPUSH listofone \"");
    lines.push_str(&"x".repeat(20_000));
    lines.push_str("\"\nSADD words alpha beta gamma 1 2\nZADD inf -inf low +inf high\nXDEL nothing 0-1\n");
    lines.push_str("XGROUP CREATE bigstream readers 0\nXREADGROUP GROUP readers ann COUNT 50 STREAMS bigstream >\n");
    lines.push_str("XREADGROUP GROUP readers bob COUNT 20 STREAMS bigstream >\nXGROUP CREATE empties all $ MKSTREAM\n");
    lines.push_str("SELECT 7\nSET soon gone EX 100000\nHSET h f v\nPEXPIREAT h 99999999999999\nSELECT 0\n");
    if has_field_expiry(&server.version) {
        lines.push_str("HSET fields a 1 b 2 c 3\nHEXPIRE fields 100000 FIELDS 1 a\n");
        for n in 0..600 {
            lines.push_str(&format!("HSET manyfields f{n} v{n}\n"));
        }
        lines.push_str("HEXPIRE manyfields 100000 FIELDS 2 f1 f2\n");
    }
    server.feed(&lines);
    if server.version != "6.2" {
        let code = "#!lua name=lib\nredis.register_function('f', function(keys, args) return 1 end)";
        server.ask(&["FUNCTION", "LOAD", code]);
    }
}

fn saved(server: &RedisServer) -> Vec<u8> {
    server.ask(&["SAVE"]);
    std::fs::read(server.path().join("dump.rdb")).expect("the dump")
}

fn walk(bytes: &[u8]) -> Result<RdbSummary, rdb::RdbError> {
    let mut walker = RdbWalker::new(RdbLimits::default());
    bytes.chunks(1000).try_for_each(|piece| walker.push(piece))?;
    walker.finish()
}

/// The server's own counts are the oracle: keys and expiries by database, keys by type.
#[test]
fn a_walk_counts_what_the_server_counts() {
    for name in VERSIONS {
        let server = RedisServer::start(name, &debug(name));
        everything(&server);
        let walk = walk(&saved(&server)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((walk.checksum, walk.stopped.as_ref(), walk.unwalked), (RdbChecksum::Verified, None, 0), "{name}");
        assert_eq!(walk.functions, u64::from(name != "6.2"));
        assert_eq!(walk.databases.keys().copied().collect::<Vec<_>>(), [0, 3, 7, 15], "{name}");
        for (number, database) in &walk.databases {
            let line = server.info(&format!("db{number}"));
            let counts = format!("keys={},expires={}", database.keys, database.with_expiry);
            assert!(line.starts_with(&format!("{counts},")), "{name} db{number}: {line}, walked {counts}");
            for (kind, word) in [
                (RdbValueKind::String, "string"),
                (RdbValueKind::List, "list"),
                (RdbValueKind::Set, "set"),
                (RdbValueKind::SortedSet, "zset"),
                (RdbValueKind::Hash, "hash"),
                (RdbValueKind::Stream, "stream"),
            ] {
                let found = server.ask(&["-n", &number.to_string(), "SCAN", "0", "COUNT", "1000000", "TYPE", word]);
                // The cursor, which is back at the beginning, and the keys.
                assert!(found.starts_with('0'), "{found}");
                let found = found.lines().skip(1).filter(|line| !line.is_empty()).count() as u64;
                assert_eq!(database.kinds.get(&kind).copied().unwrap_or(0), found, "{name} db{number} {word}");
            }
        }
        let fields = if has_field_expiry(name) { 2 } else { 0 };
        assert_eq!(walk.databases[&0].with_field_expiry, fields, "{name}");
    }
}

/// `redis-check-rdb` counts the keys of the files that came from elsewhere, and refuses the one that the walk refuses.
#[test]
fn the_servers_own_check_agrees_on_files_from_elsewhere() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rdb");
    let list = std::fs::read_to_string(fixtures.join("expected.txt")).expect("the list");
    for name in list.lines().map(|line| line.split(' ').next().expect("a name")) {
        let bytes = std::fs::read(fixtures.join(name)).expect("a file");
        let checker = if bytes.starts_with(b"VALKEY") { "valkey9" } else { "8.2" };
        let mut command = process::command(program(checker, "redis-check-rdb"), Orphan::Kill);
        command.arg(fixtures.join(name));
        let said = process::run(command);
        let number = |what: &str| {
            let line = said.stdout.lines().find(|line| line.ends_with(what))?;
            line.split(' ').nth(1)?.parse::<u64>().ok()
        };
        match walk(&bytes) {
            Ok(walk) => {
                assert!(said.stdout.contains("RDB looks OK"), "{name}\n{}", said.stdout);
                let expiring: u64 = walk.databases.values().map(|database| database.with_expiry).sum();
                assert_eq!((number(" keys read"), number(" expires")), (Some(walk.keys()), Some(expiring)), "{name}");
            }
            Err(error) => assert!(!said.stdout.contains("RDB looks OK"), "{name}: {error}\n{}", said.stdout),
        }
    }
}

fn place_dump(dir: &Path, bytes: &[u8]) -> Result<PlacedFiles, RestoreError> {
    let now = jiff::Timestamp::now().as_millisecond();
    let limits = RdbLimits { expired_by: Some(now), ..RdbLimits::default() };
    let mut place = DataFileWriter::new(dir, DataFileForm::Dump, &DataFileNames::default(), limits)?;
    place.push_snapshot(bytes)?;
    place.finish(None)
}

fn checked(name: &str, placed: &PlacedFiles) -> Result<LoadedData, RestoreError> {
    block_on(check_server_loads(
        &program(name, "redis-server"),
        placed,
        &DataFileNames::default(),
        &SystemClock::shared(),
    ))
}

/// Which server loads whose dump is told before it is tried, and told right.
#[test]
fn who_loads_what_is_known() {
    for writer in VERSIONS {
        let server = RedisServer::start(writer, &[]);
        server.feed("SET a 1\nRPUSH l a b c\n");
        let bytes = saved(&server);
        for reader in VERSIONS {
            let scratch = Scratch::new();
            let placed = place_dump(&scratch.directory("redis"), &bytes).expect("placed");
            let loads = version(reader).can_load(placed.walk.magic, placed.walk.version);
            let warned = server_options::configuration_warnings(&placed, None, version(reader))
                .join("\n")
                .contains("does not load");
            let loaded = checked(reader, &placed);
            assert_eq!((loaded.is_ok(), warned), (loads, !loads), "{reader} on a dump of {writer}: {loaded:?}");
            match loaded {
                Ok(loaded) => assert_eq!((loaded.compared, loaded.keys[&0]), (true, 2)),
                Err(RestoreError::ServerExited { log, .. }) => {
                    assert!(log.contains("RDB format version") || log.contains("Wrong signature"), "{log}")
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

/// Keys that have expired and empty collections explain what a server that starts from a dump has fewer.
#[test]
fn expired_keys_are_explained() {
    for name in VERSIONS {
        let server = RedisServer::start(name, &debug(name));
        server.ask(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]);
        server.feed("SET a 1\nSET b 2 PX 1\nSET c 3 PX 1\nSET d 4 EX 100000\n");
        std::thread::sleep(Duration::from_millis(20));
        let scratch = Scratch::new();
        let dir = scratch.directory("redis");
        let placed = place_dump(&dir, &saved(&server)).expect("placed");
        assert_eq!((placed.walk.databases[&0].keys, placed.walk.databases[&0].expired), (4, 2), "{name}");
        let warnings = server_options::configuration_warnings(&placed, None, version(name)).join("\n");
        assert!(warnings.contains("2 keys of the snapshot have expired"), "{warnings}");
        let before = std::fs::read(dir.join("dump.rdb")).expect("the dump");
        assert_eq!(checked(name, &placed).expect("loaded").keys[&0], 4, "{name}: all of them, as in the file");
        assert!(std::fs::read(dir.join("dump.rdb")).expect("the dump") == before, "the check changes nothing");
        assert_eq!(started(name, &placed).ask(&["DBSIZE"]), "2", "{name}: without those that have expired");
    }
}

/// A server as the user is told to start it.
fn started(name: &str, placed: &PlacedFiles) -> RedisServer {
    let options = server_options::server_options(placed, &DataFileNames::default());
    let mut options: Vec<&str> = options.iter().map(String::as_str).collect();
    options.extend(debug(name));
    RedisServer::start(name, &options)
}

/// What a replica gets: the snapshot, and the stream as far as it has come.
struct Recording {
    rdb: Vec<u8>,
    begin: StreamCut,
    stream: Arc<Mutex<Vec<u8>>>,
    _runtime: tokio::runtime::Runtime,
}

impl Recording {
    fn of(server: &RedisServer) -> Recording {
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        let address = RedisAddress::Unix(server.socket());
        let (rdb, offset, connection) = runtime.block_on(async {
            let server =
                RedisEndpoint::new(address, RedisLogin::default(), RedisTlsFiles::default(), SystemClock::shared());
            let mut connection = RedisConnection::connect(&server).await.expect("connected");
            let version = connection.query_info().await.expect("INFO").version().to_owned();
            // A history that it never had: it sends all it has, and goes on.
            let unknown = SyncRequest::Continue("f".repeat(40).parse().expect("a name"), 0);
            let SyncAnswer::Full(_, offset) =
                connection.request_sync(unknown, &version).await.expect("a synchronisation")
            else {
                panic!("no snapshot")
            };
            let mut transfer = connection.begin_transfer().await.expect("a transfer");
            let mut rdb = Vec::new();
            while let Some(bytes) = connection.read_snapshot(&mut transfer).await.expect("the snapshot") {
                rdb.extend_from_slice(&bytes);
            }
            connection.acknowledge(offset).await.expect("acknowledged");
            (rdb, offset, connection)
        });
        let stream = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&stream);
        runtime.spawn(async move {
            let mut connection = connection;
            // The server begins the stream at the first of these that comes after it has ended its child.
            let mut again = tokio::time::interval(Duration::from_millis(100));
            loop {
                tokio::select! {
                    bytes = connection.read_stream() => match bytes {
                        Ok(bytes) => into.lock().expect("the stream").extend_from_slice(&bytes),
                        Err(_) => return,
                    },
                    _ = again.tick() => drop(connection.acknowledge(offset).await),
                }
            }
        });
        let db = walk(&rdb).expect("a dump").stream_database().unwrap_or(0);
        Recording { rdb, begin: StreamCut { offset, db }, stream, _runtime: runtime }
    }

    fn up_to(&self, offset: u64) -> Vec<u8> {
        let len = usize::try_from(offset - self.begin.offset).expect("a length");
        let come = until(PATIENCE, || {
            let stream = self.stream.lock().expect("the stream");
            stream.get(..len).map(<[u8]>::to_vec)
        });
        come.expect("the stream comes")
    }

    fn place(&self, name: &str, dir: &Path, offset: u64) -> PlacedFiles {
        let form = DataFileForm::for_version(version(name), offset > self.begin.offset);
        let mut place = DataFileWriter::new(dir, form, &DataFileNames::default(), RdbLimits::default()).expect("begun");
        for piece in self.rdb.chunks(4096) {
            place.push_snapshot(piece).expect("the snapshot");
        }
        if form != DataFileForm::Dump {
            place = place.begin_commands(self.begin).expect("a whole snapshot");
            let arrivals = arrived_now(offset);
            for piece in self.up_to(offset).chunks(777) {
                place.push_commands(piece, &arrivals).expect("the commands");
            }
        }
        place.finish(None).expect("placed")
    }
}

/// All of it at once.
fn arrived_now(last: u64) -> CommandArrivals {
    let now = jiff::Timestamp::now();
    let stretch = serde_json::json!({
        "replid": "0".repeat(40), "first": 0, "last": last, "db": 0, "in_transaction": false, "db_after": 0,
        "in_transaction_after": false, "follows": null, "started_at": now, "ended_at": now, "writes": 0, "marks": [],
    });
    CommandArrivals::from_stretch(&serde_json::from_value(stretch).expect("a stretch"))
}

/// One random change of a workload, as a client would make it.
fn change(random: &mut SmallRng, name: &str, nth: usize) -> String {
    let key = random.random_range(0..40);
    match random.random_range(0..18) {
        0 => format!("SET s{key} {nth}"),
        1 => format!("SET s{key} {nth} EX 100000"),
        2 => format!("INCRBYFLOAT f{key} 0.5"),
        3 => format!("RPUSH l{key} {nth} {}", "x".repeat(nth % 300)),
        4 => format!("LPOP l{key}"),
        5 => format!("SADD set{key} {nth} a b c"),
        6 => format!("SPOP set{key}"),
        7 => format!("ZADD z{key} {nth} m{nth}"),
        8 => format!("HSET h{key} f{} {nth}", nth % 50),
        9 => format!("HDEL h{key} f{}", nth % 50),
        10 => format!("XADD x{key} MAXLEN 100 * n {nth}"),
        11 => format!("DEL s{key} l{key}"),
        12 => format!(
            "EVAL \"redis.call('SET', KEYS[1], ARGV[1]); redis.call('INCR', KEYS[2]); return 1\" 2 s{key} n{key} {nth}"
        ),
        13 => format!(
            "MULTI\nSET s{key} tx-{nth}\nINCR n{key}\nSELECT {}\nSET other {nth}\nEXEC",
            random.random_range(0..4)
        ),
        14 => format!("SELECT {}", random.random_range(0..4)),
        15 => format!("SET brief{key} {nth} PX 5"),
        16 if has_field_expiry(name) => format!("HSET h{key} brief {nth} f0 1\nHPEXPIRE h{key} 100000000 FIELDS 1 f0"),
        16 => format!("PERSIST s{key}"),
        _ if nth.is_multiple_of(97) => "FLUSHDB".to_owned(),
        _ => format!("APPEND big{key} {}", "y".repeat(500)),
    }
}

/// A workload of every type, expiry, scripts, transactions and several databases, restored to random moments: the
/// server's digest at each moment, written down by itself, is the digest of a stock server that starts from what was
/// written.
#[test]
fn every_moment_comes_back_as_the_server_knew_it() {
    for (seed, name) in (0..).zip(VERSIONS) {
        let random = &mut SmallRng::seed_from_u64(seed);
        let server = RedisServer::start(name, &debug(name));
        everything(&server);
        // The stream goes on in the database that was used last.
        server.feed("SELECT 2\nSET before 1\n");
        let recording = Recording::of(&server);
        let mut moments = vec![(recording.begin.offset, server.digest())];
        let mut nth = 0;
        for _ in 0..6 {
            let mut lines = String::new();
            for _ in 0..random.random_range(20..300) {
                lines.push_str(&change(random, name, nth));
                lines.push('\n');
                nth += 1;
            }
            server.feed(&lines);
            // What is brief has gone by then, and the server knows it.
            std::thread::sleep(Duration::from_millis(30));
            await_expiry(&server);
            moments.push((server.offset(), server.digest()));
        }
        server.feed("MULTI\nSET never seen\nEXEC\nFLUSHALL\n");
        for (offset, digest) in moments {
            let scratch = Scratch::new();
            let dir = scratch.directory("redis");
            let placed = recording.place(name, &dir, offset);
            files_are_good(name, &placed);
            let loaded = checked(name, &placed).expect("loaded");
            assert_eq!(loaded.compared, placed.commands == 0, "{name}");
            let restored = started(name, &placed);
            assert_eq!(restored.digest(), digest, "{name} at {offset}");
            let functions = |server: &RedisServer| server.ask(&["FUNCTION", "LIST"]);
            assert!(name == "6.2" || functions(&restored) == functions(&server), "{name}");
            let loaded: u64 = loaded.keys.values().sum();
            let keys = |db: &str| restored.ask(&["-n", db, "DBSIZE"]).parse::<u64>().expect("a number");
            assert_eq!(loaded, (0..16).map(|db| keys(&db.to_string())).sum::<u64>(), "{name} at {offset}");
        }
    }
}

/// The same from the command line, by time: what the receiver has kept leads to the state that the server had at each
/// moment.
#[test]
fn every_moment_by_its_time() {
    for (seed, name) in (100..).zip(VERSIONS) {
        let random = &mut SmallRng::seed_from_u64(seed);
        let server = RedisServer::start(name, &debug(name));
        everything(&server);
        let site = site_for(&server);
        let receiver = site.spawn("receive", &["receive", "cache", "-v"]);
        let based = until(PATIENCE, || receiver.output().contains("a snapshot to begin with is stored").then_some(()));
        assert!(based.is_some(), "no snapshot\n{}", receiver.output());
        let mut moments = Vec::new();
        let mut nth = 0;
        for _ in 0..5 {
            let lines: Vec<String> =
                (0..random.random_range(20..200)).map(|more| change(random, name, nth + more)).collect();
            nth += lines.len();
            server.feed(&(lines.join("\n") + "\n"));
            std::thread::sleep(Duration::from_millis(30));
            await_expiry(&server);
            // Until the receiver has what was written, it cannot say when that was.
            let offset = server.offset();
            let has = |lag: &str| {
                let acked =
                    lag.lines().filter_map(|line| line.split("offset=").nth(1)?.split(',').next()?.parse::<u64>().ok());
                acked.max() >= Some(offset)
            };
            let acked = until(PATIENCE, || has(&server.ask(&["INFO", "replication"])).then_some(()));
            assert!(acked.is_some(), "not acknowledged\n{}", receiver.output());
            moments.push((jiff::Timestamp::now(), server.digest()));
            std::thread::sleep(Duration::from_millis(50));
        }
        server.feed("MULTI\nSET never seen\nEXEC\nFLUSHALL\n");
        let program = program(name, "redis-server").display().to_string();
        // Something later, so that the last moment is known to be covered.
        let last = moments.last().expect("a moment").0.to_string();
        let covered = || {
            site.walkeep(&["plan", "redis", "--target-time", &last, "--json"]).stdout.contains("\"reachable\": true")
        };
        assert!(until(PATIENCE, || covered().then_some(())).is_some(), "{}", receiver.output());
        for (time, digest) in moments {
            let scratch = Scratch::new();
            let dir = scratch.directory("redis").display().to_string();
            let time = time.to_string();
            let mut words = vec!["restore", "redis", "--dir", &dir, "--target-time", &time, "--redis-server", &program];
            words.extend(["--start", "--json"]);
            let report = site.walkeep(&words).json();
            let start = report["start"].as_array().expect("options").iter().map(|word| word.as_str().expect("a word"));
            let options: Vec<&str> = start.chain(debug(name)).collect();
            assert_eq!(RedisServer::start(name, &options).digest(), digest, "{name} at {time}: {report}");
        }
        assert_eq!(site.walkeep(&["verify", "--json"]).json()["whole"], true, "{name}");
        let windows = &site.walkeep(&["list", "redis", "--json"]).json()["instances"][0]["windows"];
        assert_eq!(windows.as_array().map(Vec::len), Some(1), "{windows}");
    }
}

/// Waits until nothing brief is left: everything that still expires does so in a day or later.
fn await_expiry(server: &RedisServer) {
    let gone = until(PATIENCE, || {
        let found = (0..4).any(|db| !server.ask(&["-n", &db.to_string(), "--scan", "--pattern", "brief*"]).is_empty());
        (!found).then_some(())
    });
    assert!(gone.is_some(), "what is brief stays");
}

/// The server's own checker finds nothing to repair.
fn files_are_good(name: &str, placed: &PlacedFiles) {
    let checks: &[(&str, &str)] = match placed.form {
        DataFileForm::Dump => &[("redis-check-rdb", "dump.rdb")],
        DataFileForm::Preamble => &[("redis-check-aof", "appendonly.aof")],
        // Valkey 9's checker knows a base by Redis's magic alone, and refuses what its own server writes.
        DataFileForm::Parts if name == "valkey9" => &[
            ("redis-check-rdb", "appendonlydir/appendonly.aof.1.base.rdb"),
            ("redis-check-aof", "appendonlydir/appendonly.aof.1.incr.aof"),
        ],
        DataFileForm::Parts => &[("redis-check-aof", "appendonlydir/appendonly.aof.manifest")],
    };
    for (tool, file) in checks {
        let mut command = process::command(program(name, tool), Orphan::Kill);
        command.arg(placed.dir.join(file));
        let said = process::run(command).expect_ok();
        let good = ["RDB looks OK", "is valid", "All AOF files and manifest are valid"];
        assert!(good.iter().any(|good| said.contains(good)), "{name}: {said}");
    }
}

/// From the command line: a snapshot taken, listed, planned, restored, started, verified; and what is refused.
#[test]
fn from_the_command_line() {
    for name in VERSIONS {
        let server = RedisServer::start(name, &debug(name));
        everything(&server);
        let site = site_for(&server);
        let label = site.walkeep(&["backup", "redis"]).expect_ok().trim().to_owned();
        let listed = site.walkeep(&["list", "redis", "--json"]).json();
        assert_eq!(listed["instances"][0]["backups"][0]["label"], label.as_str());
        assert!(site.walkeep(&["list"]).expect_ok().contains(&label));
        let plan = site.walkeep(&["plan", "redis", "--target-immediate", "--json"]).json();
        assert_eq!((&plan["reachable"], &plan["backup"]), (&true.into(), &label.as_str().into()));

        let scratch = Scratch::new();
        let dir = scratch.directory("redis");
        let dir_name = dir.display().to_string();
        let program = program(name, "redis-server").display().to_string();
        let conf = scratch.file("redis.conf", "appendonly yes\n").display().to_string();
        let restore = |more: &[&str]| {
            let mut all = vec!["restore", "redis", "cache", "--dir", &dir_name, "--redis-server", &program];
            all.extend(more);
            site.walkeep(&all)
        };
        let said = restore(&["--target-immediate", "--start", "--redis-conf", &conf]).expect_ok();
        assert!(said.contains("comes up EMPTY"), "{said}");
        assert!(said.contains(", as the snapshot says"), "{said}");
        let command = said.lines().find_map(|line| line.strip_prefix("start it with: ")).expect("what to do next");
        let words: Vec<&str> = command.split(' ').skip(1).collect();
        let options: Vec<&str> = words.into_iter().chain(debug(name)).collect();
        assert_eq!(RedisServer::start(name, &options).digest(), server.digest(), "{name}: {command}");

        // A folder with something in it; a moment before all snapshots; one far after.
        assert!(restore(&[]).expect_code(2).stderr.contains("is not empty"));
        let before = site.walkeep(&["plan", "redis", "--target-time", "2020-01-01T00:00:00Z", "--json"]).expect_code(3);
        let before: serde_json::Value = serde_json::from_str(&before.stdout).expect("JSON");
        assert_eq!((&before["reachable"], before["nearest_after"].is_string()), (&false.into(), true));
        restore(&["--target-time", "2100-01-01T00:00:00Z"]).expect_code(3);

        let verified = site.walkeep(&["verify", "--json"]).json();
        assert_eq!(
            (&verified["whole"], &verified["instances"][0]["repositories"][0]["snapshots"]),
            (&true.into(), &1.into())
        );
        let part = site.repository().join(format!("cache/rdb/{label}/000000"));
        let mut bytes = std::fs::read(&part).expect("the part");
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&part, bytes).expect("damaged");
        let found = site.walkeep(&["verify", "cache"]).expect_code(6);
        assert!(found.stdout.contains(&format!("cache/rdb/{label}/000000")), "{}", found.stdout);
        let other = scratch.directory("other").display().to_string();
        site.walkeep(&["restore", "redis", "--dir", &other, "--redis-server", &program]).expect_code(6);
        assert_eq!(
            std::fs::read_dir(&other).expect("a folder").count(),
            0,
            "{name}: nothing of what is damaged is left"
        );
    }
}

/// A plan proves that all it names is there: without a part of the newest snapshot the way begins at the one before,
/// and without any part, or with a hole in the stream, the plan says what is missing and how near one can come.
#[test]
fn a_plan_names_what_is_missing() {
    let server = RedisServer::start("7.0", &debug("7.0"));
    server.feed("SET a 1\n");
    let site = site_for(&server);
    let mut receiver = site.spawn("receive", &["receive", "cache", "-v"]);
    let based = || receiver.output().contains("a snapshot to begin with is stored").then_some(());
    assert!(until(PATIENCE, based).is_some(), "{}", receiver.output());
    server.feed("SET b 2\n");
    let newest = site.walkeep(&["backup", "redis"]).expect_ok().trim().to_owned();
    server.feed("SET c 3\n");
    assert!(receiver.terminate().success(), "{}", receiver.output());
    let plan = |more: &[&str], code: i32| -> serde_json::Value {
        let said = site.walkeep(&[&["plan", "redis", "--json"], more].concat()).expect_code(code);
        serde_json::from_str(&said.stdout).expect("JSON")
    };
    let whole = plan(&[], 0);
    assert_eq!(whole["backup"], newest.as_str());
    let part = site.repository().join(format!("cache/rdb/{newest}/000000"));
    let bytes = std::fs::read(&part).expect("the part");
    for (damaged, says) in [(Some(&bytes[1..]), "bytes instead of"), (None, "is missing")] {
        std::fs::remove_file(&part).expect("removed");
        damaged.into_iter().for_each(|damaged| std::fs::write(&part, damaged).expect("written"));
        // The same state by a longer way.
        let other = plan(&[], 0);
        assert!(other["backup"] != newest.as_str() && other["offset"] == whole["offset"], "{other}");
        for target in [vec!["--target-immediate"], vec!["--backup", &newest]] {
            let refused = plan(&target, 3);
            let reason = refused["reason"].as_str().expect("why");
            assert!(reason.contains(says) && reason.contains(&format!("cache/rdb/{newest}/000000")), "{refused}");
        }
        assert!(plan(&["--target-immediate"], 3)["nearest_before"].is_string());
        let dir = site.path().join("never");
        let into = dir.display().to_string();
        site.walkeep(&["restore", "redis", "--dir", &into, "--target-immediate"]).expect_code(3);
        assert!(!dir.exists());
    }
    // No snapshot is whole.
    std::fs::remove_dir_all(site.repository().join("cache/rdb")).expect("removed");
    assert!(plan(&[], 3)["reason"].as_str().expect("why").contains("is missing"));
}

/// A crash while the files are written leaves nothing that a server starts from.
#[test]
fn without_its_manifest_nothing_is_loaded() {
    let server = RedisServer::start("7.0", &[]);
    server.feed("SET a 1\n");
    let recording = Recording::of(&server);
    server.feed("SET b 2\n");
    let scratch = Scratch::new();
    let placed = recording.place("7.0", &scratch.directory("redis"), server.offset());
    assert_eq!(started("7.0", &placed).ask(&["DBSIZE"]), "2");
    std::fs::remove_file(placed.files.last().expect("the manifest")).expect("removed");
    assert_eq!(started("7.0", &placed).ask(&["DBSIZE"]), "0");
}

/// A damaged file is refused by the check, with what the server says of it.
#[test]
fn a_server_that_does_not_come_up_is_told_with_its_log() {
    let server = RedisServer::start("7.0", &[]);
    server.feed("SET a 1\n");
    let scratch = Scratch::new();
    let placed = place_dump(&scratch.directory("redis"), &saved(&server)).expect("placed");
    std::fs::write(&placed.files[0], b"REDIS0010 and nothing more").expect("written");
    let Err(RestoreError::ServerExited { log, .. }) = checked("7.0", &placed) else { panic!("it loads") };
    assert!(log.contains("ended with"), "{log}");
    let other = PlacedFiles { walk: walk(&saved(&RedisServer::start("7.0", &[]))).expect("a dump"), ..placed };
    std::fs::write(&other.files[0], saved(&server)).expect("written");
    let differs = checked("7.0", &other).expect_err("another count");
    assert_eq!(
        differs.to_string(),
        "the server that was started has not the keys of the snapshot: Redis 7.0.15 has 1 in db0, the snapshot no keys"
    );
    assert_eq!(version("valkey9").flavour, ServerFlavour::Valkey);
}
