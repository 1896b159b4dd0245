//! A connection that hands everything on in pieces of a few bytes, with pauses between them: no moment shows half of
//! what a server did as one, and a snapshot ends where its mark ends, however that is cut.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};
use serde_json::Value;
use walkeep::redis::archive::RedisTarget;

use super::receive::{PATIENCE, acknowledged, based, receiving, restored};
use crate::support::process::until;
use crate::support::redis::{QUICK_REDIS, RedisServer, debug, program, site};
use crate::support::{Scratch, Site};

/// Pieces have at most so many bytes.
const LONGEST: usize = 24;
/// Longer than the receiver takes to note another time.
const PAUSE: Duration = Duration::from_millis(12);

/// Listens in place of a server. Its threads end with the connections.
struct Proxy {
    port: u16,
    pieces: Arc<AtomicU64>,
}

impl Proxy {
    /// One piece in `rarely` is followed by a long pause.
    fn before(server: &RedisServer, rarely: u32) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let (port, pieces) = (listener.local_addr().expect("its address").port(), Arc::new(AtomicU64::new(0)));
        let (to, count) = (server.port, Arc::clone(&pieces));
        std::thread::spawn(move || {
            for (seed, client) in listener.incoming().enumerate() {
                let client = client.expect("a client");
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
                client.set_nodelay(true).expect("no delay");
                let (mut up, mut down) = (client.try_clone().expect("clone"), server.try_clone().expect("clone"));
                std::thread::spawn(move || {
                    std::io::copy(&mut up, &mut down).ok();
                    down.shutdown(std::net::Shutdown::Both).ok();
                });
                let (count, random) = (Arc::clone(&count), SmallRng::seed_from_u64(seed as u64));
                std::thread::spawn(move || in_pieces(server, client, random, rarely, &count));
            }
        });
        Self { port, pieces }
    }

    fn site(&self) -> Site {
        site(&format!("url = \"redis://127.0.0.1:{}\"\n", self.port))
    }
}

fn in_pieces(mut from: TcpStream, mut to: TcpStream, mut random: SmallRng, rarely: u32, count: &AtomicU64) {
    let mut buffer = [0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(random.random_range(1..=LONGEST).min(rest.len()));
            if to.write_all(piece).is_err() {
                return;
            }
            count.fetch_add(1, Ordering::Relaxed);
            rest = after;
            let pause = if random.random_range(0..rarely) == 0 { PAUSE } else { Duration::from_micros(50) };
            std::thread::sleep(pause);
        }
    }
    to.shutdown(std::net::Shutdown::Both).ok();
}

/// What must change together, for one number: in a transaction over two databases, and in a script.
fn together(n: usize) -> String {
    format!(
        "MULTI\nSET a {n}\nRPUSH list {n}\nSELECT 3\nSET b {n}\nSELECT 0\nINCR c\nEXEC\n\
         EVAL \"redis.call('SET','x',ARGV[1]) redis.call('RPUSH','y',ARGV[1]) redis.call('INCR','z')\" 0 {n}\n"
    )
}

/// The numbers of both, each of which all of its keys must say.
fn both(server: &RedisServer) -> [u64; 2] {
    let number = |text: String| if text.is_empty() { 0 } else { text.parse::<u64>().expect("a number") };
    let ask = |words: &[&str]| number(server.ask(words));
    let transaction = [
        ask(&["GET", "a"]),
        ask(&["LINDEX", "list", "-1"]),
        ask(&["LLEN", "list"]),
        ask(&["-n", "3", "GET", "b"]),
        ask(&["GET", "c"]),
    ];
    let script = [ask(&["GET", "x"]), ask(&["LINDEX", "y", "-1"]), ask(&["LLEN", "y"]), ask(&["GET", "z"])];
    let same = |all: &[u64]| all.iter().all(|one| *one == all[0]);
    assert!(same(&transaction) && same(&script), "half a transaction: {transaction:?}, half a script: {script:?}");
    [transaction[0], script[0]]
}

/// A stock server on what is restored. Half a transaction must not even be in the files, where it would be ignored with
/// a word in the log.
fn at(site: &Site, time: Timestamp) -> [u64; 2] {
    let scratch = Scratch::new();
    let (dir, server) = (scratch.directory("redis"), program(QUICK_REDIS, "redis-server"));
    let (dir, server, text) = (dir.display().to_string(), server.display().to_string(), time.to_string());
    let words = ["restore", "redis", "--dir", &dir, "--target-time", &text, "--redis-server", &server, "--json"];
    let report: Value = site.walkeep(&words).json();
    let options = report["start"].as_array().expect("options").iter();
    let options: Vec<&str> = options.map(|word| word.as_str().expect("a word")).collect();
    let server = RedisServer::start(QUICK_REDIS, &options);
    server.await_loaded();
    let log = server.log();
    let wrong = ["incomplete MULTI", "Unexpected end", "Truncat"].into_iter().find(|words| log.contains(words));
    assert!(wrong.is_none(), "{time}: {wrong:?}\n{log}");
    both(&server)
}

#[test]
fn no_moment_shows_half_of_what_was_done_as_one() {
    const ROUNDS: usize = 120;
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let proxy = Proxy::before(&server, 8);
    let site = proxy.site();
    let mut receiver = receiving(&site);
    based(&receiver);
    let from = Timestamp::now();
    for round in 0..ROUNDS {
        server.feed(&together(round + 1));
    }
    acknowledged(&server, &mut receiver);
    let to = Timestamp::now();
    // The next commands, so that every moment before is known.
    server.ask(&["SET", "later", "1"]);
    acknowledged(&server, &mut receiver);
    let covered = || (site.walkeep(&["plan", "redis", "--target-time", &to.to_string()]).code == Some(0)).then_some(());
    assert!(until(PATIENCE, covered).is_some(), "{}", receiver.output());
    let random = &mut SmallRng::seed_from_u64(19);
    let span = i64::try_from(to.duration_since(from).as_micros()).expect("a span");
    let mut moments: Vec<i64> = (0..16).map(|_| random.random_range(0..span)).collect();
    moments.extend([0, span]);
    moments.sort_unstable();
    let seen: Vec<[u64; 2]> =
        moments.iter().map(|micros| at(&site, from + SignedDuration::from_micros(*micros))).collect();
    println!("{} pieces, seen {seen:?}", proxy.pieces.load(Ordering::Relaxed));
    assert!(seen.iter().all(|[a, x]| a == x || *a == x + 1), "one came after the other: {seen:?}");
    assert!(seen.is_sorted(), "later moments show more: {seen:?}");
    assert_eq!((seen[0], seen[seen.len() - 1]), ([0, 0], [ROUNDS as u64; 2]));
    let different: BTreeSet<_> = seen.iter().collect();
    assert!(different.len() > 8, "the moments are not within the work: {seen:?}");
}

#[test]
fn a_snapshot_without_checksum_ends_at_its_mark_in_small_pieces_and_is_told_of() {
    let options = ["--rdbchecksum", "no", "--repl-diskless-sync", "yes"];
    let server = RedisServer::start(QUICK_REDIS, &[debug(QUICK_REDIS), options.to_vec()].concat());
    server.fill(200);
    let proxy = Proxy::before(&server, 200);
    let site = proxy.site();
    let taken = site.walkeep(&["backup", "redis", "--json"]).expect_code(0);
    assert!(server.log().contains("replicas sockets"), "{}", server.log());
    assert!(taken.stderr.contains("has no checksum: the server has rdbchecksum off"), "{}", taken.stderr);
    let no_checksum = |warnings: &Value| {
        warnings
            .as_array()
            .expect("warnings")
            .iter()
            .any(|warning| warning.as_str().is_some_and(|text| text.contains("rdbchecksum")))
    };
    let taken = taken.json();
    assert!(no_checksum(&taken["warnings"]), "{taken:#}");
    assert!(proxy.pieces.load(Ordering::Relaxed) > taken["logical_bytes"].as_u64().expect("bytes") / LONGEST as u64);
    // Everybody who asks later is told, too; what is stored is verified by walkeep's own sums.
    let listed = site.walkeep(&["list", "redis", "--json"]).json();
    assert!(listed.to_string().contains("rdbchecksum"), "{listed:#}");
    site.walkeep(&["verify", "cache"]).expect_ok();
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest(), "the snapshot alone");
    // The same as the beginning of a stream.
    let mut receiver = receiving(&site);
    based(&receiver);
    assert!(receiver.output().contains("rdbchecksum"), "{}", receiver.output());
    server.feed(&together(1));
    acknowledged(&server, &mut receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    site.walkeep(&["verify", "cache"]).expect_ok();
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest(), "with the stream");
}
