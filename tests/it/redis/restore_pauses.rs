//! Times at which nobody can say what was there: while a receiver is away or held up, and until it has caught up. They
//! are refused, and those around them are what the client's own record says.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rustix::process::Signal;
use serde_json::Value;

use walkeep::redis::archive::RedisTarget;

use super::receive::{PATIENCE, based, receiving, restored};
use crate::support::process::until;
use crate::support::redis::{QUICK_REDIS, RedisServer, debug, site_for};
use crate::support::{Running, Site};

/// When a number was written, by the client's clock: not before, and not after.
struct Written {
    asked: Timestamp,
    answered: Timestamp,
}

/// Tells the client to stop, even when a test fails.
struct Stop<'s>(&'s AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Writes one number after the other until it is told to stop.
fn count(server: &RedisServer, stop: &AtomicBool) -> Vec<Written> {
    let mut socket = UnixStream::connect(server.socket()).expect("connect");
    let mut written = Vec::new();
    while !stop.load(Ordering::SeqCst) {
        let asked = Timestamp::now();
        socket.write_all(format!("SET n {}\r\n", written.len() + 1).as_bytes()).expect("asked");
        let mut answer = [0; 5];
        socket.read_exact(&mut answer).expect("answered");
        assert_eq!(&answer, b"+OK\r\n");
        written.push(Written { asked, answered: Timestamp::now() });
        std::thread::sleep(Duration::from_millis(2));
    }
    written
}

fn plan(site: &Site, time: Timestamp) -> (i32, Value) {
    let planned = site.walkeep(&["plan", "redis", "--target-time", &time.to_string(), "--json"]);
    (planned.code.expect("an end"), serde_json::from_str(&planned.stdout).expect("JSON"))
}

/// The reachable moments around one that is refused.
fn around(refused: &Value) -> (Timestamp, Timestamp) {
    let told = |name: &str| refused[name].as_str().expect("a time").parse::<Timestamp>().expect("a time");
    (told("nearest_before"), told("nearest_after"))
}

/// Nothing that came later, and nothing missing that was done a second before: what a receiver that is not held up has
/// by then. One that a busy machine holds up for a second says so.
fn is_right(site: &Site, time: Timestamp, written: &[Written]) {
    let (code, planned) = plan(site, time);
    if code == 3 {
        let (before, after) = around(&planned);
        return assert!(after.duration_since(before) >= SignedDuration::from_secs(1), "{planned:#}");
    }
    let n = restored(site, RedisTarget::Time(time)).ask(&["GET", "n"]);
    let n: usize = if n.is_empty() { 0 } else { n.parse().expect("a number") };
    assert!(n == 0 || written[n - 1].asked <= time, "{n} was written later than {time}");
    let second = time - Duration::from_secs(1);
    assert!(written.get(n).is_none_or(|next| next.answered > second), "{} is missing at {time}", n + 1);
}

/// Long enough for the client to write a lot.
const WHILE: Duration = Duration::from_secs(2);

/// `away` makes the receiver be away, or held up, for a while, gives the times between which it surely was, and the
/// receiver that goes on.
fn check(away: impl FnOnce(&Site, Running) -> (Timestamp, Timestamp, Running)) {
    let server = RedisServer::start(QUICK_REDIS, &[debug(QUICK_REDIS), vec!["--repl-backlog-size", "64mb"]].concat());
    let site = site_for(&server);
    let stop = AtomicBool::new(false);
    let receiver = receiving(&site);
    based(&receiver);
    let ((from, to, _receiver), written) = std::thread::scope(|scope| {
        let guard = Stop(&stop);
        let counting = scope.spawn(|| count(&server, &stop));
        std::thread::sleep(WHILE);
        let times = away(&site, receiver);
        std::thread::sleep(WHILE);
        drop(guard);
        (times, counting.join().expect("a record"))
    });
    let middle = from + to.duration_since(from) / 2;
    let last = written.last().expect("written").answered;
    assert!(until(PATIENCE, || (plan(&site, last).0 == 0).then_some(())).is_some(), "{:#}", plan(&site, last).1);
    let (code, refused) = plan(&site, middle);
    assert_eq!(code, 3, "{refused:#}");
    let (before, after) = around(&refused);
    assert!(before < middle && middle < after && after >= to, "{refused:#}, {from} to {to}");
    for time in [before, after, after + Duration::from_millis(50), last] {
        is_right(&site, time, &written);
    }
    let windows = site.walkeep(&["list", "redis", "--json"]).json();
    let windows = windows["instances"][0]["windows"].as_array().expect("windows");
    let time =
        |window: &Value, name: &str| window[name].as_str().expect("a time").parse::<Timestamp>().expect("a time");
    let holds =
        |moment: Timestamp| windows.iter().any(|w| time(w, "from_time") <= moment && moment <= time(w, "to_time"));
    assert!(holds(before) && holds(after) && !holds(middle), "{windows:#?}");
}

#[test]
fn what_was_written_while_there_was_no_receiver_has_no_time() {
    check(|site, mut receiver| {
        receiver.kill9();
        let from = Timestamp::now();
        std::thread::sleep(WHILE);
        let to = Timestamp::now();
        (from, to, receiving(site))
    });
}

#[test]
fn nor_has_what_was_written_while_the_receiver_was_held_up() {
    check(|_, receiver| {
        receiver.signal(Signal::STOP);
        let from = Timestamp::now();
        std::thread::sleep(WHILE);
        let to = Timestamp::now();
        receiver.signal(Signal::CONT);
        (from, to, receiver)
    });
}
