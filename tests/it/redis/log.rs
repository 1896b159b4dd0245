//! `walkeep log redis`: what happened on real servers is told, and the target of each line leads to just before it.

use std::fmt::Write;
use std::time::Duration;

use serde_json::Value;

use crate::support::process::{Running, until};
use crate::support::redis::{
    QUICK_REDIS, RedisServer, Sentinels, VERSIONS, block_on, debug, instance, program, site, site_for,
};
use crate::support::{Scratch, Site};

const PATIENCE: Duration = Duration::from_secs(60);

fn receiving(site: &Site) -> Running {
    let receiver = site.spawn("receive", &["receive", "cache", "-v"]);
    based(&receiver, 1);
    receiver
}

/// Waits until so many snapshots to begin with are stored.
fn based(receiver: &Running, snapshots: usize) {
    let stored = || receiver.output().matches("to begin with is stored").count() >= snapshots;
    assert!(until(PATIENCE, || stored().then_some(())).is_some(), "no snapshot\n{}", receiver.output());
}

/// Waits until all that the server has written is durable here.
fn acknowledged(server: &RedisServer, receiver: &Running) {
    let done = until(PATIENCE, || {
        let replicas = server.ask(&["INFO", "replication"]);
        let online = replicas.lines().filter(|line| line.starts_with("slave") && line.contains("state=online"));
        let acked = online.filter_map(|line| line.split("offset=").nth(1)?.split(',').next()?.parse::<u64>().ok());
        (acked.max() >= Some(server.offset())).then_some(())
    });
    assert!(done.is_some(), "not acknowledged\n{}", receiver.output());
}

fn log(site: &Site, words: &[&str]) -> Vec<Value> {
    let words: Vec<&str> = ["log", "redis"].into_iter().chain(words.iter().copied()).chain(["--json"]).collect();
    let told = site.walkeep(&words).expect_ok();
    told.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["kind"].as_str().expect("a kind")).collect()
}

/// A server that starts from what the target of this line leads to, pasted as it is, and the folder that it needs as
/// long as it runs.
fn restored(site: &Site, version: &str, event: &Value) -> (RedisServer, Scratch) {
    let scratch = Scratch::new();
    let dir = scratch.directory("redis").display().to_string();
    let program = program(version, "redis-server").display().to_string();
    let target = event["target"].as_str().unwrap_or_else(|| panic!("no target: {event}"));
    let mut words = vec!["restore", "redis", "--dir", &dir, "--redis-server", &program, "--start", "--json"];
    words.extend(target.split(' '));
    let report = site.walkeep(&words).json();
    let start = report["start"].as_array().expect("options").iter().map(|word| word.as_str().expect("a word"));
    let options: Vec<&str> = start.chain(debug(version)).collect();
    (RedisServer::start(version, &options), scratch)
}

/// What happens, and how it is told: kind, database, keys.
struct Accident {
    lines: String,
    told: (&'static str, Value, Value),
}

fn keys(prefix: &str, count: usize) -> String {
    (0..count).fold(String::new(), |mut text, n| {
        write!(text, " {prefix}:{n}").expect("a string");
        text
    })
}

fn accidents() -> Vec<Accident> {
    let accident =
        |lines: &str, kind, db: Value, keys: Value| Accident { lines: lines.to_owned(), told: (kind, db, keys) };
    let single: String = (0..1100).map(|n| format!("UNLINK single:{n}\n")).collect();
    let script = "EVAL \"for n=0,1099 do redis.call('DEL', 'script:'..n) end\" 0\n";
    let transaction = format!("MULTI\nSET inner 1\nDEL{}\nDEL{}\nEXEC\n", keys("tx", 60), keys("ty", 60));
    vec![
        accident("SELECT 2\nFLUSHDB\n", "flush-db", 2.into(), Value::Null),
        accident(&format!("SELECT 1\n{transaction}"), "delete", 1.into(), 120.into()),
        accident(&format!("SELECT 3\ndel{}\n", keys("one", 1200)), "delete", 3.into(), 1200.into()),
        accident(&format!("SELECT 4\n{script}"), "delete", 4.into(), 1100.into()),
        accident(&format!("SELECT 5\n{single}"), "delete", 5.into(), 1100.into()),
        accident("SELECT 2\nMULTI\nSET inner 2\nFLUSHDB\nEXEC\n", "flush-db", 2.into(), Value::Null),
        accident("SELECT 9\nFLUSHALL ASYNC\n", "flush-all", Value::Null, Value::Null),
    ]
}

fn fill(server: &RedisServer) {
    let mut lines = String::new();
    for (db, prefix, count) in
        [(1, "tx", 60), (1, "ty", 60), (3, "one", 1200), (4, "script", 1100), (5, "single", 1100)]
    {
        writeln!(lines, "SELECT {db}").expect("a string");
        (0..count).for_each(|n| writeln!(lines, "SET {prefix}:{n} {n}").expect("a string"));
    }
    server.feed(&lines);
}

/// Accidents one right behind the other, with writes between them that must not be lost: a twin that lives through the
/// same says what was there just before each.
#[test]
fn each_accident_is_told_with_the_way_to_just_before_it() {
    for version in VERSIONS {
        let [server, twin] = [(), ()].map(|()| RedisServer::start(version, &debug(version)));
        let site = site_for(&server);
        fill(&server);
        fill(&twin);
        let receiver = receiving(&site);
        let mut all = String::new();
        let mut before = Vec::new();
        for (nth, accident) in accidents().iter().enumerate() {
            let writes = format!("SELECT 2\nSET last:{nth} x\nSELECT 7\nRPUSH list {nth}\n");
            twin.feed(&writes);
            before.push(twin.digest());
            twin.feed(&accident.lines);
            all.push_str(&writes);
            all.push_str(&accident.lines);
        }
        server.feed(&all);
        server.feed("SET after 1\n");
        assert_eq!(
            server.digest(),
            {
                twin.feed("SET after 1\n");
                twin.digest()
            },
            "{version}: no twin"
        );
        acknowledged(&server, &receiver);
        // From the spool, and from the repository.
        let spooled = log(&site, &["--keys", "100"]);
        drop(receiver);
        site.spawn("again", &["receive", "cache", "-v"]).terminate();
        let events = log(&site, &["--keys", "100"]);
        assert_eq!(spooled, events, "{version}");
        let told: Vec<_> = events
            .iter()
            .map(|event| (event["kind"].as_str().expect("a kind"), event["database"].clone(), event["keys"].clone()))
            .collect();
        assert_eq!(told, accidents().into_iter().map(|accident| accident.told).collect::<Vec<_>>(), "{version}");
        assert_eq!(log(&site, &["--keys", "99"]), events, "{version}");
        assert_eq!(kinds(&log(&site, &[])), ["flush-db", "delete", "delete", "delete", "flush-db", "flush-all"]);
        for (nth, (event, digest)) in events.iter().zip(&before).enumerate() {
            let (restored, _dir) = restored(&site, version, event);
            assert_eq!(restored.digest(), *digest, "{version} {event}");
            assert_eq!(restored.ask(&["-n", "2", "EXISTS", &format!("last:{nth}")]), "1", "{version} {event}");
        }
    }
}

/// What is asked for is what is told, and people see it.
#[test]
fn the_question_narrows_what_is_told() {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let site = site_for(&server);
    assert!(site.walkeep(&["log", "redis"]).expect_code(4).stderr.contains("nothing of cache is archived"));
    server.feed("SET a 1\nSET b 2\n");
    let receiver = receiving(&site);
    let mut between = Vec::new();
    for n in 0..3 {
        server.feed(&format!("SELECT {n}\nSET a {n}\nFLUSHDB\n"));
        acknowledged(&server, &receiver);
        std::thread::sleep(Duration::from_millis(30));
        between.push(jiff::Timestamp::now().to_string());
        std::thread::sleep(Duration::from_millis(30));
    }
    let databases =
        |words: &[&str]| -> Vec<Value> { log(&site, words).iter().map(|event| event["database"].clone()).collect() };
    assert_eq!(databases(&[]), [0, 1, 2]);
    assert_eq!(databases(&["--since", &between[0]]), [1, 2]);
    assert_eq!(databases(&["--until", &between[1]]), [0, 1]);
    assert_eq!(databases(&["--since", &between[0], "--until", &between[1]]), [1]);
    assert_eq!(databases(&["--since", "1 hour ago", "--event", "flush-all"]), Vec::<u64>::new());
    assert_eq!(kinds(&log(&site, &["--event", "snapshot", "--event", "flush-db"]))[..2], ["snapshot", "flush-db"]);
    let first = &log(&site, &[])[0];
    assert!(first["detail"].as_str().expect("a detail").ends_with(" before had 2 keys"), "{first}");
    for name in ["time", "end_time", "offset", "replid", "kind", "database", "keys", "commands", "detail", "target"] {
        assert!(first.get(name).is_some(), "{name}: {first}");
    }
    assert_eq!(first["replid"], server.info("master_replid"));
    let shown = site.walkeep(&["log", "redis", "cache"]).expect_ok();
    let target = first["target"].as_str().expect("a target");
    assert!(shown.lines().next().expect("a line").ends_with(target), "{shown}");
    assert!(shown.contains("walkeep restore redis cache --dir DIR --start TARGET"), "{shown}");
    let plan = site
        .walkeep(&["plan", "redis", "--json", "--target-offset", target.split(' ').nth(1).expect("a place")])
        .json();
    assert_eq!((&plan["reachable"], &plan["offset"]), (&true.into(), &first["offset"]), "{plan}");
    let unknown = site.walkeep(&["plan", "redis", "--target-offset", "999999999"]).expect_code(4);
    assert!(unknown.stderr.contains("has offset 999999999"), "{}", unknown.stderr);
    assert!(
        site.walkeep(&["plan", "redis", "--target-offset", "12@zz"]).expect_code(2).stderr.contains("84213@1f3ac09b")
    );
}

/// Deletes each of these keys by a client of its own, as `xargs -n 1 redis-cli del` does. Gives how many there were, as
/// the server says, and the longest pause between them in milliseconds.
fn one_by_one(server: &RedisServer, prefix: &str, count: usize) -> (u64, i64) {
    let (mut deleted, mut longest, mut last) = (0, 0, jiff::Timestamp::now());
    for n in 0..count {
        deleted += server.ask(&["DEL", &format!("{prefix}:{n}")]).parse::<u64>().expect("a number");
        let now = jiff::Timestamp::now();
        longest = longest.max(now.as_millisecond() - last.as_millisecond());
        last = now;
        std::thread::sleep(Duration::from_millis(20));
    }
    (deleted, longest)
}

/// Far fewer a second than a line needs, for several seconds; a flush in between, and keys that are not there. Where
/// the machine paused for long, nobody can say what belongs together.
fn deletes_one_by_one() -> Option<()> {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let site = site_for(&server);
    let fill = |prefix: &str, count| {
        keys(prefix, count).split(' ').skip(1).map(|key| format!("SET {key} 1\n")).collect::<String>()
    };
    server.feed(&format!("{}{}", fill("first", 74), fill("kept", 10)));
    let mut receiver = receiving(&site);
    let (first, pause) = one_by_one(&server, "first", 74);
    server.feed(&format!("FLUSHDB\n{}", fill("second", 150)));
    let (second, later) = one_by_one(&server, "second", 170);
    acknowledged(&server, &receiver);
    if pause.max(later) > 600 {
        return None;
    }
    assert_eq!((first, second), (74, 150), "the clients' own count");
    let told =
        |words: &[&str]| -> Vec<u64> { log(&site, words).iter().filter_map(|event| event["keys"].as_u64()).collect() };
    let all = log(&site, &["--keys", "20"]);
    assert_eq!(kinds(&all), ["delete", "flush-db", "delete"], "{all:?}");
    for stored in [false, true] {
        if stored {
            assert!(receiver.terminate().success(), "{}", receiver.output());
        }
        for (keys, expected) in
            [("1", vec![74, 150]), ("74", vec![74, 150]), ("75", vec![150]), ("150", vec![150]), ("151", vec![])]
        {
            assert_eq!(told(&["--keys", keys]), expected, "{keys}");
            assert_eq!(told(&["--keys", keys, "--event", "delete"]), expected, "{keys}");
        }
    }
    let end = all[2]["end_time"].as_str().expect("an end");
    assert_eq!(told(&["--keys", "100", "--since", end]), [150], "it went on until then");
    for (event, size, gone) in [(&all[0], "84", "first:0"), (&all[2], "150", "second:0")] {
        let (restored, _dir) = restored(&site, QUICK_REDIS, event);
        assert_eq!(
            (restored.ask(&["DBSIZE"]).as_str(), restored.ask(&["EXISTS", gone]).as_str()),
            (size, "1"),
            "{event}"
        );
    }
    Some(())
}

#[test]
fn what_is_deleted_one_by_one_is_one_line_with_all_of_it() {
    assert!((0..5).any(|_| deletes_one_by_one().is_some()), "the machine pauses all the time");
}

/// What came in a stretch that is lost is not told, but that it is lost is.
#[test]
fn a_hole_in_the_stream_is_told() {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let site = site_for(&server);
    let mut ends = Vec::new();
    for (nth, lines) in ["SET a 1\n", "SET b 2\nFLUSHDB\n", "SET c 3\n"].into_iter().enumerate() {
        let mut receiver = if nth == 0 {
            receiving(&site)
        } else {
            site.spawn(&format!("receive-{nth}"), &["receive", "cache", "-v"])
        };
        server.feed(lines);
        acknowledged(&server, &receiver);
        if nth == 0 {
            ends.push(server.digest());
        }
        assert!(receiver.terminate().success(), "{}", receiver.output());
    }
    assert_eq!(kinds(&log(&site, &[])), ["flush-db"]);
    let stream = site.repository().join("cache/stream").join(server.info("master_replid"));
    let mut stretches: Vec<_> =
        std::fs::read_dir(&stream).expect("stretches").map(|entry| entry.expect("one").path()).collect();
    stretches.sort();
    assert_eq!(stretches.len(), 3, "{stretches:?}");
    // What does not open keeps nothing else from being told.
    let rot = |nth: usize| {
        let whole = std::fs::read(&stretches[nth]).expect("a stretch");
        let mut bytes = whole.clone();
        let at = bytes.len() - 20;
        bytes[at] ^= 1;
        std::fs::write(&stretches[nth], bytes).expect("written");
        let told = log(&site, &[]);
        std::fs::write(&stretches[nth], whole).expect("written");
        told
    };
    assert_eq!((kinds(&rot(0)), kinds(&rot(1))), (vec!["gap", "flush-db"], vec!["gap"]));
    std::fs::remove_file(&stretches[1]).expect("removed");
    let events = log(&site, &[]);
    assert_eq!(kinds(&events), ["gap"], "{events:?}");
    let first = |nth: usize| -> u64 {
        let name = stretches[nth].file_name().expect("a name").to_str().expect("text");
        name.parse().expect("an offset")
    };
    let says =
        format!("commands between offset {} and {} of {}", first(1), first(2), &server.info("master_replid")[..8]);
    assert!(events[0]["detail"].as_str().expect("a detail").contains(&says), "{events:?}");
    assert!(events[0]["time"].as_str() < events[0]["end_time"].as_str(), "{events:?}");
    assert_eq!(restored(&site, QUICK_REDIS, &events[0]).0.digest(), ends[0]);
    let end = events[0]["end_time"].as_str().expect("an end");
    assert_eq!(kinds(&log(&site, &["--since", end])), ["gap"], "it reaches into that time");
}

#[test]
fn breaks_and_restarts_are_told() {
    let mut server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let site = site_for(&server);
    server.feed("SET a 1\nSET b 2\n");
    let receiver = receiving(&site);
    server.feed("SET c 3\n");
    acknowledged(&server, &receiver);
    let digest = server.digest();
    // Without its data, as another history.
    server.restart();
    server.feed("SET d 4\n");
    based(&receiver, 2);
    acknowledged(&server, &receiver);
    let events = log(&site, &[]);
    assert_eq!(kinds(&events), ["gap", "restart"], "{events:?}");
    assert!(events[0]["detail"].as_str().expect("a detail").contains("cannot continue from there"), "{events:?}");
    assert!(events[1]["detail"].as_str().expect("a detail").contains(&server.info("run_id")[..8]), "{events:?}");
    assert_eq!(restored(&site, QUICK_REDIS, &events[0]).0.digest(), digest);
    assert_eq!(events[1]["target"], Value::Null, "what was before is what the gap leads to");
    // With its data, as the same history under a new name.
    server.feed("SET e 5\n");
    acknowledged(&server, &receiver);
    let digest = server.digest();
    server.run_cli(&["SHUTDOWN", "SAVE"]);
    server.restart();
    server.feed("SET f 6\n");
    acknowledged(&server, &receiver);
    let events = log(&site, &[]);
    assert_eq!(kinds(&events), ["gap", "restart", "restart"], "{events:?}\n{}", receiver.output());
    assert_eq!(restored(&site, QUICK_REDIS, &events[2]).0.digest(), digest);
}

#[test]
fn a_failover_is_told() {
    let mut master = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let port = master.port.to_string();
    let replica =
        RedisServer::start(QUICK_REDIS, &[debug(QUICK_REDIS), vec!["--replicaof", "127.0.0.1", &port]].concat());
    let linked = until(PATIENCE, || (replica.info("master_link_status") == "up").then_some(()));
    assert!(linked.is_some(), "no replica\n{}", replica.log());
    let sentinels = Sentinels::watch(&master);
    let site = site(&sentinels.section());
    let receiver = receiving(&site);
    master.feed("SET a 1\nSET b 2\n");
    acknowledged(&master, &receiver);
    master.ask(&["WAIT", "2", "10000"]);
    let digest = master.digest();
    master.kill9();
    let promoted =
        until(PATIENCE, || replica.run_cli(&["INFO", "replication"]).stdout.contains("role:master").then_some(()));
    assert!(promoted.is_some(), "no failover");
    replica.feed("SET c 3\nSELECT 4\nSET d 4\nFLUSHDB\n");
    acknowledged(&replica, &receiver);
    let events = log(&site, &[]);
    assert_eq!(kinds(&events), ["failover", "flush-db"], "{events:?}\n{}", receiver.output());
    let detail = events[0]["detail"].as_str().expect("a detail");
    assert!(detail.contains(&format!("now from 127.0.0.1:{}", replica.port)), "{detail}");
    assert_eq!(restored(&site, QUICK_REDIS, &events[0]).0.digest(), digest);
    // The snapshot before the failover leads to behind it.
    assert_eq!(restored(&site, QUICK_REDIS, &events[1]).0.ask(&["-n", "4", "GET", "d"]), "4");
    let known = block_on(async { instance(&site).await.list_known_stretches().await.expect("known") });
    assert_eq!(known.histories().count(), 2);
}
