//! Commands that are not like others: a transaction longer than any stretch, and values that look like the stream they
//! come in.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use walkeep::redis::archive::RedisTarget;

use super::receive::{PATIENCE, acknowledged, based, receiving, restored};
use crate::support::process::until;
use crate::support::redis::{QUICK_REDIS, RedisServer, VERSIONS, block_on, debug, instance, program, site, site_for};
use crate::support::relay::Relay;
use crate::support::{Running, Scratch, Site};

const MEGABYTE: u64 = 1_000_000;
/// A transaction may be cut between two stretches beyond so many bytes.
const CUT: u64 = 64 << 20;

/// A server that remembers all of the transaction.
fn server() -> RedisServer {
    let options = ["--repl-backlog-size", "256mb", "--repl-ping-replica-period", "3600"];
    RedisServer::start(QUICK_REDIS, &[debug(QUICK_REDIS), options.to_vec()].concat())
}

/// A script that does more than one stretch holds, all of it as one.
fn transact(server: &RedisServer) {
    let script = "local value = string.rep('x', 100000) redis.call('SET', 'first', '1') \
                  for n = 1, 720 do redis.call('SET', 'big:' .. n, value .. n) end redis.call('SET', 'last', '1')";
    server.ask(&["EVAL", script, "0"]);
}

/// Where the state stands that is reached, without its bytes.
fn offset(site: &Site, wanted: RedisTarget) -> Result<u64, String> {
    let reached = block_on(async { instance(site).await.resolve_target(wanted, None).await.expect("asked") });
    reached.map(|reached| reached.to.expect("a place").offset).map_err(|not| not.reason)
}

#[test]
fn a_transaction_longer_than_a_stretch_is_restored_whole_or_not_at_all() {
    let server = server();
    let site = site_for(&server);
    let mut receiver = receiving(&site);
    based(&receiver);
    server.ask(&["SET", "before", "1"]);
    acknowledged(&server, &mut receiver);
    let before = (server.offset(), server.digest(), Timestamp::now());
    transact(&server);
    let done = Timestamp::now();
    acknowledged(&server, &mut receiver);
    let after = (server.offset(), server.digest(), Timestamp::now());
    assert!(after.0 - before.0 > CUT + 2 * MEGABYTE, "too little for a cut: {} bytes", after.0 - before.0);
    // So that the moments before are covered.
    server.ask(&["SET", "later", "1"]);
    acknowledged(&server, &mut receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());

    let stretches = block_on(async {
        let instance = instance(&site).await;
        let mut all = Vec::new();
        for listed in instance.stored_stretches().await.expect("listed") {
            let (replid, first) = (listed.name.replid, listed.name.first);
            all.push(instance.stored_stretch(replid, first).await.expect("asked").expect("there"));
        }
        all
    });
    assert!(stretches.iter().any(|stretch| stretch.in_transaction), "it was not cut: {}", stretches.len());
    let replid = stretches[0].replid;
    // At whatever place and moment within it.
    for into in [1, 100, 20 * MEGABYTE, 63 * MEGABYTE, CUT, CUT + MEGABYTE, CUT + 2 * MEGABYTE] {
        assert_eq!(offset(&site, RedisTarget::Offset(replid, before.0 + into)), Ok(before.0), "{into} bytes into it");
    }
    assert_eq!(offset(&site, RedisTarget::Offset(replid, after.0 - 1)), Ok(before.0), "a byte before its end");
    assert_eq!(offset(&site, RedisTarget::Offset(replid, after.0)), Ok(after.0));
    let (span, mut seen) = (after.2.duration_since(before.2).as_micros(), Vec::new());
    for part in 0..=20 {
        let micros = i64::try_from(span * part / 20).expect("a span");
        seen.push(offset(&site, RedisTarget::Time(before.2 + SignedDuration::from_micros(micros))));
    }
    assert_eq!((&seen[0], &seen[20]), (&Ok(before.0), &Ok(after.0)), "it was done at {done}");
    // Of a moment at which the receiver was too busy to read nobody knows anything.
    let known: Vec<u64> = seen.iter().flatten().copied().collect();
    assert!(known.iter().all(|known| [before.0, after.0].contains(known)) && known.is_sorted(), "{before:?} {seen:?}");
    let restored_before = restored(&site, RedisTarget::Time(before.2));
    assert_eq!((restored_before.digest(), restored_before.ask(&["DBSIZE"])), (before.1, "1".into()));
    assert_eq!(restored(&site, RedisTarget::Time(after.2)).digest(), after.1);
    site.walkeep(&["verify", "cache"]).expect_ok();
}

/// How far the receiver has it durable, by what the server was told.
fn acknowledged_up_to(relay: &Relay, receiver: &Running, offset: u64) {
    let there = until(PATIENCE, || (relay.acknowledged() >= offset).then_some(()));
    assert!(there.is_some(), "{} of {offset}\n{}", relay.acknowledged(), receiver.output());
}

/// Killed when more of it is acknowledged than a stretch holds, the receiver has nothing that could be restored of it,
/// and gets the rest.
#[test]
fn a_receiver_that_is_killed_within_a_long_transaction_gets_the_rest_of_it() {
    let server = server();
    let relay = Relay::before(&server);
    let site = site(&format!("url = \"{}\"\n", relay.url()));
    let mut receiver = receiving(&site);
    based(&receiver);
    server.ask(&["SET", "before", "1"]);
    acknowledged(&server, &mut receiver);
    let before = (server.offset(), server.digest());
    relay.hold_after(CUT + 4 * MEGABYTE);
    transact(&server);
    acknowledged_up_to(&relay, &receiver, before.0 + CUT + 2 * MEGABYTE);
    receiver.kill9();
    assert_eq!(offset(&site, RedisTarget::Newest), Ok(before.0), "nothing of it can be restored");
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), before.1);

    relay.let_pass();
    let mut receiver = receiving(&site);
    acknowledged(&server, &mut receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    assert!(!receiver.output().contains("gap"), "{}", receiver.output());
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest());
    site.walkeep(&["verify", "cache"]).expect_ok();
}

/// What stands in an append-only file and in the stream between commands: a note of the time as Redis writes it there
/// (`aof-timestamp-enabled`), a sign of life, a question for the offset, another database, a transaction.
const LOOKALIKE: &str = "\r\n#TS:1795312800\r\n*1\r\n$4\r\nPING\r\n*3\r\n$8\r\nREPLCONF\r\n$6\r\nGETACK\r\n$1\r\n*\r\n\
                         *2\r\n$6\r\nSELECT\r\n$1\r\n9\r\n*1\r\n$5\r\nMULTI\r\n*1\r\n$8\r\nFLUSHALL\r\n";

/// As long as Redis's own buffers, so that it begins anywhere in what is read at once.
fn lookalikes(round: usize) -> String {
    let padding = "#TS:".repeat(round * 4099);
    format!("{padding}{LOOKALIKE}{round}{LOOKALIKE}")
}

#[test]
fn values_that_look_like_the_stream_come_back_byte_for_byte() {
    for version in VERSIONS {
        let server = RedisServer::start(version, &debug(version));
        let site = site_for(&server);
        let mut receiver = receiving(&site);
        based(&receiver);
        let mut moments = Vec::new();
        for round in 0..4 {
            let value = lookalikes(round);
            server.ask(&["SET", "value", &value]);
            server.ask(&["HSET", &format!("key{LOOKALIKE}"), &format!("field{LOOKALIKE}"), &value]);
            server.ask(&["EVAL", "redis.call('RPUSH', 'list', ARGV[1]) redis.call('INCR', 'n')", "0", &value]);
            // Who waits has the server ask how far the receiver is, which answers at once.
            server.feed("INCR round\nWAIT 1 10000\n");
            acknowledged(&server, &mut receiver);
            moments.push((Timestamp::now(), server.digest(), value));
            // So that the next round is another moment to marks that are 10 ms apart.
            std::thread::sleep(Duration::from_millis(50));
        }
        server.feed("SET value another\nWAIT 1 10000\n");
        acknowledged(&server, &mut receiver);
        assert!(receiver.terminate().success(), "{}", receiver.output());
        let program = program(version, "redis-server").display().to_string();
        for (time, digest, value) in moments {
            let scratch = Scratch::new();
            let (dir, time) = (scratch.directory("redis").display().to_string(), time.to_string());
            let words = ["restore", "redis", "--dir", &dir, "--target-time", &time, "--redis-server", &program];
            let report: Value = site.walkeep(&[&words[..], &["--start", "--json"]].concat()).json();
            let start = report["start"].as_array().expect("options").iter();
            let start: Vec<&str> = start.map(|word| word.as_str().expect("a word")).collect();
            let restored = RedisServer::start(version, &[start, debug(version)].concat());
            assert_eq!(restored.digest(), digest, "{version} at {time}");
            let got = restored.run_cli(&["GET", "value"]).expect_ok();
            assert!(got.strip_suffix('\n') == Some(&value), "{version} at {time}: another value");
        }
    }
}
