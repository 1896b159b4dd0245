//! `walkeep receive` of a Redis instance: what was written comes back, to the moment, after crashes and failovers too.

use std::time::Duration;

use jiff::Timestamp;
use walkeep::redis::archive::{RedisTarget, RestoreRoute};

use crate::support::Site;
use crate::support::process::{Running, until};
use crate::support::redis::{
    QUICK_REDIS, RedisServer, Sentinels, VERSIONS, block_on, debug, instance, rdb_of, site, site_for, started_from,
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The way to what is wanted, and the commands on it.
pub(crate) fn reach(site: &Site, wanted: RedisTarget) -> Result<(RestoreRoute, Vec<u8>), String> {
    block_on(async {
        let instance = instance(site).await;
        let reach = instance.resolve_target(wanted, None).await.expect("asked").map_err(|no| no.reason)?;
        let mut commands = Vec::new();
        for number in 0..reach.stretches.len() {
            commands.extend_from_slice(&instance.read_route_commands(&reach, number).await.expect("commands"));
        }
        assert_eq!(commands.len() as u64, reach.command_bytes());
        Ok((reach, commands))
    })
}

/// A server with the state that was reached: the snapshot, then the commands through an ordinary connection.
pub(crate) fn restored(site: &Site, wanted: RedisTarget) -> RedisServer {
    use std::io::{Read, Write};
    let (reach, commands) = reach(site, wanted).expect("reachable");
    let version = reach.snapshot.version.clone();
    let version =
        VERSIONS.into_iter().find(|known| version.starts_with(known.trim_start_matches("valkey"))).expect("known");
    let server = started_from(version, &rdb_of(site, &reach.snapshot.label), &[]);
    if let Some(from) = reach.from {
        let mut socket = std::net::TcpStream::connect(("127.0.0.1", server.port)).expect("connect");
        let mut reader = socket.try_clone().expect("clone");
        let answers = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).ok();
            String::from_utf8_lossy(&all).into_owned()
        });
        // What is meant for replicas alone is refused in other places; a server that loads commands knows it.
        socket
            .write_all(&walkeep::redis::format::resp::encode_command(&[b"SELECT", from.db.to_string().as_bytes()]))
            .expect("write");
        socket.write_all(&commands).expect("write");
        socket.shutdown(std::net::Shutdown::Write).expect("end");
        let answers = answers.join().expect("answers");
        let wrong = answers.lines().find(|line| line.starts_with('-') && !line.contains("REPLCONF"));
        assert!(wrong.is_none(), "{wrong:?}");
    }
    server
}

pub(crate) fn receiving(site: &Site) -> Running {
    site.spawn("receive", &["receive", "cache", "-v"])
}

/// Waits until the server knows that everything it has written is durable here.
pub(crate) fn acknowledged(server: &RedisServer, receiver: &mut Running) {
    let done = until(PATIENCE, || {
        assert!(receiver.ended().is_none(), "it has ended\n{}", receiver.output());
        let offset = server.offset();
        let replica = server.ask(&["INFO", "replication"]);
        let acked =
            replica.lines().filter(|line| line.starts_with("slave")).filter(|line| line.contains("state=online"));
        let acked = acked.filter_map(|line| line.split("offset=").nth(1)?.split(',').next()?.parse::<u64>().ok()).max();
        (acked >= Some(offset)).then_some(())
    });
    assert!(done.is_some(), "not acknowledged\n{}\n{}", server.ask(&["INFO", "replication"]), receiver.output());
}

/// Waits for the snapshot that the stream begins with.
pub(crate) fn based(receiver: &Running) {
    let based = until(PATIENCE, || receiver.output().contains("a snapshot to begin with is stored").then_some(()));
    assert!(based.is_some(), "no snapshot\n{}", receiver.output());
}

/// Transactions, scripts, databases, expiry.
pub(crate) fn work(server: &RedisServer, round: u32) {
    server.feed(&format!(
        "SELECT 2\nSET round {round}\nSET gone:{round} x PX 1\nSET later:{round} y EX 1000\nMULTI\nINCR a\nINCR b\nSELECT 5\nRPUSH l {round}\nEXEC\n\
         EVAL \"redis.call('SET','s',ARGV[1]) redis.call('INCR','t')\" 0 {round}\nSELECT 0\nSADD members {round} one \
             two\nSPOP members\n"
    ));
}

#[test]
fn every_version_is_followed_to_the_last_acknowledged_byte() {
    for version in VERSIONS {
        let server = RedisServer::start(version, &debug(version));
        server.fill(500);
        let site = site_for(&server);
        let mut receiver = receiving(&site);
        based(&receiver);
        for round in 0..20 {
            work(&server, round);
        }
        acknowledged(&server, &mut receiver);
        // The host is gone: what was acknowledged is in the spool.
        receiver.kill9();
        let copy = restored(&site, RedisTarget::Newest);
        assert_eq!(copy.digest(), server.digest(), "{version}, spooled");
        // It goes on from there, and a clean end leaves nothing spooled.
        let mut receiver = receiving(&site);
        work(&server, 20);
        acknowledged(&server, &mut receiver);
        assert!(receiver.terminate().success(), "{}", receiver.output());
        assert!(!receiver.output().contains("gap"), "{}", receiver.output());
        let spooled = std::fs::read_dir(site.state_dir().join("spool/cache")).expect("the spool").count();
        assert_eq!(spooled, 0, "{version}");
        assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest(), "{version}, stored");
    }
}

/// Two would write over each other's spool.
#[test]
fn a_second_receiver_on_the_same_state_is_refused() {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let site = site_for(&server);
    let mut receiver = receiving(&site);
    based(&receiver);
    let second = site.walkeep(&["receive", "cache"]).expect_code(1);
    assert!(second.stderr.contains("another `walkeep receive`"), "{}", second.stderr);
    work(&server, 1);
    acknowledged(&server, &mut receiver);
    receiver.kill9();
    // The lock went with the process.
    let mut receiver = receiving(&site);
    work(&server, 2);
    acknowledged(&server, &mut receiver);
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest());
}

/// Each second's state is what it was in that second.
#[test]
fn any_moment_is_the_state_of_that_moment() {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let site = site_for(&server);
    let mut receiver = receiving(&site);
    based(&receiver);
    let mut moments = Vec::new();
    for round in 0..5 {
        work(&server, round);
        acknowledged(&server, &mut receiver);
        moments.push((Timestamp::now(), server.digest()));
        // So that the next round is another moment to marks that are 10 ms apart.
        std::thread::sleep(Duration::from_millis(50));
    }
    work(&server, 9);
    acknowledged(&server, &mut receiver);
    for (time, digest) in &moments {
        assert_eq!(restored(&site, RedisTarget::Time(*time)).digest(), *digest, "{time}");
    }
    let before =
        reach(&site, RedisTarget::Time("2020-01-01T00:00:00Z".parse().expect("a time"))).expect_err("too early");
    assert!(before.contains("before the first snapshot"), "{before}");
    let after = Timestamp::now().checked_add(Duration::from_secs(3600)).expect("a time");
    assert!(reach(&site, RedisTarget::Time(after)).expect_err("too late").contains("ends before it"));
}

/// Killed again and again while the server is busy.
#[test]
fn nothing_acknowledged_is_lost_by_a_crash() {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let site = site_for(&server);
    let mut receiver = receiving(&site);
    based(&receiver);
    for crash in 0..4 {
        for round in 0..30 {
            work(&server, crash * 100 + round);
        }
        // Whatever it is doing now.
        receiver.kill9();
        work(&server, crash * 100 + 50);
        receiver = receiving(&site);
    }
    acknowledged(&server, &mut receiver);
    assert!(!receiver.output().contains("gap"), "{}", receiver.output());
    receiver.kill9();
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest());
}

#[test]
fn a_backlog_that_does_not_reach_back_is_a_gap_and_a_new_snapshot() {
    let server = RedisServer::start(QUICK_REDIS, &[debug(QUICK_REDIS), vec!["--repl-backlog-size", "16384"]].concat());
    let site = site_for(&server);
    let mut receiver = receiving(&site);
    based(&receiver);
    work(&server, 1);
    acknowledged(&server, &mut receiver);
    receiver.kill9();
    server.fill(3000);
    let unseen = Timestamp::now();
    let mut receiver = receiving(&site);
    let gap = until(PATIENCE, || receiver.output().contains("the stream has a gap").then_some(()));
    assert!(gap.is_some(), "{}", receiver.output());
    let twice = until(PATIENCE, || (receiver.output().matches("to begin with is stored").count() == 2).then_some(()));
    assert!(twice.is_some(), "{}", receiver.output());
    work(&server, 2);
    acknowledged(&server, &mut receiver);
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest());
    let gaps = block_on(async { instance(&site).await.gaps().await.expect("asked") });
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    // Nobody knows what was there between.
    assert!(reach(&site, RedisTarget::Time(unseen)).is_err());
}

/// A server that restarts without its data is another history.
#[test]
fn a_server_with_another_run_and_no_memory_of_ours_begins_anew() {
    let mut server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let site = site_for(&server);
    let mut receiver = receiving(&site);
    based(&receiver);
    work(&server, 1);
    acknowledged(&server, &mut receiver);
    server.restart();
    server.ask(&["SET", "new", "life"]);
    let twice = until(PATIENCE, || (receiver.output().matches("to begin with is stored").count() == 2).then_some(()));
    assert!(twice.is_some(), "{}", receiver.output());
    acknowledged(&server, &mut receiver);
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest());
}

/// The server cuts off whoever reads too slowly; the receiver comes back where it was.
#[test]
fn a_connection_that_the_server_kills_is_made_again_without_a_gap() {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let site = site_for(&server);
    let mut receiver = receiving(&site);
    based(&receiver);
    for round in 0..3 {
        work(&server, round);
        acknowledged(&server, &mut receiver);
        server.ask(&["CLIENT", "KILL", "TYPE", "replica"]);
    }
    // By the output buffer: the receiver stands still while more comes than the server will hold.
    server.ask(&["CONFIG", "SET", "client-output-buffer-limit", "replica 1mb 1mb 1", "repl-backlog-size", "256mb"]);
    work(&server, 3);
    acknowledged(&server, &mut receiver);
    receiver.signal(rustix::process::Signal::STOP);
    server.ask(&["DEBUG", "POPULATE", "10", "unseen", "10"]);
    for n in 0..10 {
        server.ask(&[
            "EVAL",
            "for i=1,10 do redis.call('SET', KEYS[1]..i, string.rep('x', 1000000)) end",
            "1",
            &format!("big{n}:"),
        ]);
    }
    let cut = until(PATIENCE, || server.log().contains("output buffer limits").then_some(()));
    receiver.signal(rustix::process::Signal::CONT);
    assert!(cut.is_some(), "{}", server.log());
    work(&server, 4);
    acknowledged(&server, &mut receiver);
    assert!(receiver.output().contains("the stream of commands broke"), "{}", receiver.output());
    assert!(!receiver.output().contains("gap"), "{}", receiver.output());
    // POPULATE is not replicated.
    server.ask(&["EVAL", "for _,k in ipairs(redis.call('KEYS','unseen*')) do redis.call('DEL',k) end", "0"]);
    acknowledged(&server, &mut receiver);
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest());
}

#[test]
fn a_failover_is_followed_without_a_gap_and_snapshots_come_from_a_replica() {
    for version in VERSIONS {
        let mut master = RedisServer::start(version, &debug(version));
        let port = master.port.to_string();
        let replica = RedisServer::start(version, &[debug(version), vec!["--replicaof", "127.0.0.1", &port]].concat());
        let linked = until(PATIENCE, || (replica.info("master_link_status") == "up").then_some(()));
        assert!(linked.is_some(), "{version}: no replica\n{}", replica.log());
        let sentinels = Sentinels::watch(&master);
        let site = site(&sentinels.section());
        let mut receiver = receiving(&site);
        based(&receiver);
        let taken = site.walkeep(&["backup", "redis", "--json"]).json();
        let label = taken["label"].as_str().expect("a label").to_owned();
        let origin = block_on(async {
            instance(&site).await.read_snapshot(&label).await.expect("asked").expect("there").origin
        });
        assert!(format!("{origin:?}").contains(&format!("127.0.0.1:{}", replica.port)), "{version}: {origin:?}");
        for round in 0..5 {
            work(&master, round);
        }
        acknowledged(&master, &mut receiver);
        master.ask(&["WAIT", "2", "10000"]);
        master.kill9();
        let promoted =
            until(PATIENCE, || replica.run_cli(&["INFO", "replication"]).stdout.contains("role:master").then_some(()));
        assert!(promoted.is_some(), "{version}: no failover");
        work(&replica, 7);
        let followed = until(PATIENCE, || receiver.output().contains("a failover").then_some(()));
        assert!(followed.is_some(), "{version}\n{}", receiver.output());
        acknowledged(&replica, &mut receiver);
        assert!(!receiver.output().contains("gap"), "{version}\n{}", receiver.output());
        receiver.kill9();
        let (reached, _) = reach(&site, RedisTarget::Newest).expect("reachable");
        assert_eq!(reached.replid().map(|id| id.to_string()), Some(replica.info("master_replid")), "{version}");
        assert_eq!(restored(&site, RedisTarget::Newest).digest(), replica.digest(), "{version}");
    }
}

/// Two that both say they are master: the Sentinels of each know only their own.
#[test]
fn two_masters_at_once_are_reported() {
    let one = RedisServer::start(QUICK_REDIS, &[]);
    let two = RedisServer::start(QUICK_REDIS, &[]);
    let watched: Vec<Sentinels> = [&one, &two].map(Sentinels::alone).into();
    let ports: Vec<String> = watched.iter().map(|one| format!("\"127.0.0.1:{}\"", one.ports[0])).collect();
    let site = site(&format!("sentinels = [{}]\nmaster = \"mymaster\"\n", ports.join(", ")));
    let refused = site.walkeep(&["backup", "redis"]).expect_code(5);
    assert!(refused.stderr.contains("two masters at once"), "{}", refused.stderr);
}

/// A replica hands on its master's stream, in which nobody says the database for us.
#[test]
fn the_stream_of_a_replica_begins_on_the_database_of_its_master() {
    let master = RedisServer::start(QUICK_REDIS, &[]);
    let port = master.port.to_string();
    let replica = RedisServer::start(QUICK_REDIS, &["--replicaof", "127.0.0.1", &port]);
    let linked = until(PATIENCE, || (replica.info("master_link_status") == "up").then_some(()));
    assert!(linked.is_some(), "{}", replica.log());
    master.feed("SELECT 3\nSET a 1\n");
    let site = site_for(&replica);
    let mut receiver = receiving(&site);
    based(&receiver);
    master.feed("SELECT 3\nSET b 1\nFLUSHDB\n");
    let there = until(PATIENCE, || (replica.offset() == master.offset()).then_some(()));
    assert!(there.is_some(), "{}", replica.log());
    acknowledged(&replica, &mut receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    let told = site.walkeep(&["log", "redis", "--event", "flush-db", "--json"]);
    let told: serde_json::Value = serde_json::from_str(&told.expect_ok()).expect("JSON");
    assert!(told.to_string().contains("\"database\":3"), "{told}");
}
