//! `walkeep backup redis` against real servers: what is stored, put together again, is what a server of that version
//! loads with the same data.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::support::Site;
use crate::support::process;
use crate::support::redis::{
    QUICK_REDIS, RedisServer, VERSIONS, block_on, debug, free_port, instance, program, rdb_of, site, site_for,
    started_from, starting_from,
};

fn options<'o>(version: &str, more: &[&'o str]) -> Vec<&'o str> {
    let mut options = debug(version);
    options.extend(more);
    options
}

fn backup(site: &Site) -> Value {
    site.walkeep(&["backup", "redis", "--json"]).json()
}

fn label(backup: &Value) -> &str {
    backup["label"].as_str().expect("a label")
}

fn no_snapshot(site: &Site) {
    let labels = block_on(async { instance(site).await.list_snapshot_labels().await.expect("asked") });
    assert!(labels.is_empty(), "{labels:?}");
}

/// Every version, from a file and from memory: the same data by the server's own digest, the same keys by its own
/// count, and at the offset that its INFO says.
#[test]
fn every_version_comes_back_as_it_was() {
    for version in VERSIONS {
        for diskless in ["no", "yes"] {
            let server = RedisServer::start(version, &options(version, &["--repl-diskless-sync", diskless]));
            server.fill(2000);
            let site = site_for(&server);
            let taken = backup(&site);
            let counted: u64 = [0, 3, 15]
                .iter()
                .map(|db| server.ask(&["-n", &db.to_string(), "DBSIZE"]).parse::<u64>().expect("a number"))
                .sum();
            assert_eq!(taken["keys"], counted, "{version} diskless {diskless}");
            assert_eq!(taken["replid"].as_str(), Some(server.info("master_replid").as_str()));
            assert!(taken["offset"].as_u64().expect("an offset") <= server.offset());
            let restored = started_from(version, &rdb_of(&site, label(&taken)), &[]);
            assert_eq!(restored.digest(), server.digest(), "{version} diskless {diskless}");
        }
    }
}

/// The file that redis-cli gets is the oracle for what the server sends.
#[test]
fn the_servers_own_check_accepts_what_is_stored() {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    server.fill(500);
    let site = site_for(&server);
    let path = site.scratch().file("stored.rdb", "");
    std::fs::write(&path, rdb_of(&site, label(&backup(&site)))).expect("write");
    let mut check = process::command(program(QUICK_REDIS, "redis-check-rdb"), process::Orphan::Kill);
    check.arg(&path);
    let said = process::run(check).expect_ok();
    assert!(said.contains("RDB looks OK"), "{said}");
}

#[test]
fn an_acl_user_a_password_and_a_socket_get_in_and_a_wrong_password_does_not() {
    let server = RedisServer::start(QUICK_REDIS, &["--requirepass", "hunter2"]);
    let cli = |arguments: &[&str]| {
        let mut all = vec!["-a", "hunter2", "--no-auth-warning"];
        all.extend(arguments);
        server.run_cli(&all).expect_ok()
    };
    cli(&["ACL", "SETUSER", "walkeep", "on", ">s3cret/@", "+psync", "+replconf", "+ping", "+info"]);
    cli(&["SET", "a", "1"]);
    for section in [
        format!("url = \"redis://:hunter2@127.0.0.1:{}\"\n", server.port),
        format!("url = \"redis://walkeep:s3cret%2F%40@127.0.0.1:{}\"\n", server.port),
        format!("url = \"unix://{}\"\nuser = \"walkeep\"\npassword-env = \"WORD\"\n", server.socket().display()),
    ] {
        let site = site(&section);
        let mut command = site.command();
        command.args(["backup", "redis", "--json"]).env("WORD", "s3cret/@");
        assert_eq!(process::run(command).json()["keys"], 1, "{section}");
    }
    for (user, word) in [("walkeep", "wrong-word"), ("nobody", "wrong-word")] {
        let site = site(&format!("url = \"redis://{user}:{word}@127.0.0.1:{}\"\n", server.port));
        let refused = site.walkeep(&["backup", "redis"]).expect_code(1);
        assert!(refused.stderr.contains("does not let walkeep in: WRONGPASS"), "{}", refused.stderr);
        assert!(!refused.stderr.contains(word), "{}", refused.stderr);
        no_snapshot(&site);
    }
    let site = site_for(&server);
    assert!(site.walkeep(&["backup", "redis"]).expect_code(1).stderr.contains("NOAUTH"));
}

#[test]
fn tls_checks_the_server_and_shows_our_certificate() {
    let pki = crate::support::Scratch::new();
    let script = "
        openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 2 -subj /CN=ca 2>/dev/null
        openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=server 2>/dev/null
        printf 'subjectAltName=IP:127.0.0.1\\n' > ext
        openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt -days 2 -extfile ext 2>/dev/null
        openssl req -x509 -newkey rsa:2048 -nodes -keyout other.key -out other.crt -days 2 -subj /CN=other 2>/dev/null
        chmod 644 *";
    let mut shell = process::command("sh", process::Orphan::Kill);
    shell.args(["-ec", script]).current_dir(pki.path());
    process::run(shell).expect_ok();
    let file = |name: &str| pki.join(name).display().to_string();
    let port = free_port().to_string();
    let (certificate, key, ca) = (file("server.crt"), file("server.key"), file("ca.crt"));
    let tls = ["--tls-port", &port, "--tls-cert-file", &certificate, "--tls-key-file", &key, "--tls-ca-cert-file", &ca];
    let server = RedisServer::start(QUICK_REDIS, &tls);
    server.ask(&["SET", "a", "1"]);
    let own = format!("tls-cert-file = \"{certificate}\"\ntls-key-file = \"{key}\"\n");
    let section = |ca: &str, own: &str| format!("url = \"rediss://127.0.0.1:{port}\"\ntls-ca-file = \"{ca}\"\n{own}");
    assert_eq!(backup(&site(&section(&ca, &own)))["keys"], 1);
    let stranger = site(&section(&file("other.crt"), &own));
    let says = |finished: process::Finished, code, words: &str| {
        assert!(finished.stderr.contains(words), "{words}: {}", finished.stderr);
        finished.expect_code(code)
    };
    says(stranger.walkeep(&["backup", "redis"]), 2, "set tls-ca-file to the file of its CA");
    // Nobody should wait for that to pass.
    says(stranger.walkeep(&["receive"]), 2, "set tls-ca-file to the file of its CA");
    // Servers ask for a certificate unless told otherwise.
    says(site(&section(&ca, "")).walkeep(&["backup", "redis"]), 2, "set tls-cert-file and tls-key-file");
    let plain = site(&format!("url = \"redis://127.0.0.1:{port}\"\n"));
    says(plain.walkeep(&["backup", "redis"]), 5, "is this a TLS port? then write rediss://");
    let wrong = site(&section(&ca, &own).replace(&port, &server.port.to_string()));
    says(wrong.walkeep(&["backup", "redis"]), 5, "if that port speaks no TLS, write redis://");
}

/// Between the client and the server: passes bytes on until `limit` bytes came from the server, then changes or cuts.
fn proxy(to: u16, limit: usize, damage: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = listener.local_addr().expect("address").port();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.expect("a client");
            let mut server = TcpStream::connect(("127.0.0.1", to)).expect("the server");
            let (mut from, mut into) = (client.try_clone().expect("clone"), server.try_clone().expect("clone"));
            std::thread::spawn(move || std::io::copy(&mut from, &mut into).ok());
            let (mut passed, mut buffer) = (0, [0; 4096]);
            while let Ok(read) = server.read(&mut buffer) {
                if read == 0 {
                    break;
                }
                let before = passed;
                passed += read;
                if passed > limit && before <= limit {
                    if damage {
                        buffer[limit - before] ^= 0x01;
                    } else {
                        client.write_all(&buffer[..limit - before]).ok();
                        break;
                    }
                }
                if client.write_all(&buffer[..read]).is_err() {
                    break;
                }
            }
            client.shutdown(std::net::Shutdown::Both).ok();
        }
    });
    port
}

#[test]
fn a_transfer_that_is_cut_or_damaged_stores_nothing() {
    for diskless in ["no", "yes"] {
        let server = RedisServer::start(QUICK_REDIS, &["--repl-diskless-sync", diskless]);
        server.fill(5000);
        // Past the replies and INFO, within the snapshot.
        // A length that was changed may reach beyond the end.
        let cases: [(bool, i32, &[&str]); 2] =
            [(false, 5, &["closed the connection"]), (true, 6, &["damaged", "cut off"])];
        for (damage, code, says) in cases {
            let site = site(&format!("url = \"redis://127.0.0.1:{}\"\n", proxy(server.port, 60_000, damage)));
            let failed = site.walkeep(&["backup", "redis"]).expect_code(code);
            let said = says.iter().any(|says| failed.stderr.contains(says));
            assert!(said, "diskless {diskless}: {}", failed.stderr);
            no_snapshot(&site);
        }
    }
}

#[test]
fn a_file_is_imported_as_it_is_and_a_damaged_one_is_not() {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    server.fill(300);
    let file = server.path().join("by-cli.rdb");
    server.run_cli(&["--rdb", &file.display().to_string()]).expect_ok();
    let bytes = std::fs::read(&file).expect("the file");
    let site = site_for(&server);
    let path = site.scratch().file("import.rdb", "");
    std::fs::write(&path, &bytes).expect("write");
    let path = path.display().to_string();
    let label = site.walkeep(&["-q", "backup", "redis", "--from-file", &path]).expect_ok();
    assert_eq!(rdb_of(&site, label.trim()), bytes);
    let labels = || block_on(async { instance(&site).await.list_snapshot_labels().await.expect("asked") });
    for (len, flip) in [(bytes.len() - 1, None), (bytes.len(), Some(bytes.len() / 2)), (5, None), (0, None)] {
        let mut wrong = bytes[..len].to_vec();
        if let Some(at) = flip {
            wrong[at] ^= 0x40;
        }
        std::fs::write(&path, wrong).expect("write");
        site.walkeep(&["backup", "redis", "--from-file", &path]).expect_code(6);
    }
    // What is no RDB at all was named by mistake.
    let refused = site.walkeep(&["backup", "redis", "--from-file", "/etc/passwd"]).expect_code(2);
    assert!(refused.stderr.contains("walkeep: /etc/passwd: this is no RDB file"), "{}", refused.stderr);
    assert_eq!(labels().len(), 1, "{:?}", labels());
    site.walkeep(&["backup", "redis", "--from-file", "/nowhere.rdb"]).expect_code(4);
}

/// `check` finds out who may not attach as a replica, and the server never begins a snapshot for that.
#[test]
fn check_proves_the_right_to_follow_without_a_snapshot() {
    for version in VERSIONS {
        let server = RedisServer::start(version, &debug(version));
        let may = ["+replconf", "+ping", "+info"];
        let user = |name: &str, more: &[&str]| {
            server.ask(&[&["ACL", "SETUSER", name, "on", ">word"], may.as_slice(), more].concat());
            site(&format!("url = \"redis://{name}:word@127.0.0.1:{}\"\n", server.port))
        };
        let (full, mute, none) = (user("full", &["+psync"]), user("mute", &[]), user("none", &["+acl"]));
        // Nothing is archived yet there, so that all of these end with 1.
        let finding = |site: &Site| {
            let said = site.walkeep(&["check", "cache", "--json"]).stdout;
            let report: Value = serde_json::from_str(&said).expect("JSON");
            let findings = report["findings"].as_array().expect("findings").clone();
            findings.into_iter().find(|finding| finding["what"] == "replication").expect("about replication")
        };
        // Without a backlog nobody can say, unless the user may ask.
        assert_eq!(finding(&mute)["verdict"], "warning", "{version}");
        if version != "6.2" {
            assert!(finding(&none)["text"].as_str().expect("why").contains("psync"), "{version}");
            assert_eq!(finding(&site_for(&server))["verdict"], "good", "{version}");
        }
        assert_eq!(server.info("sync_full"), "0", "{version}");
        // With one, the stream itself is asked for.
        backup(&site_for(&server));
        for _ in 0..3 {
            server.ask(&["SET", "a", "1"]);
            assert_eq!(finding(&full)["verdict"], "good", "{version}");
            assert_eq!(finding(&mute)["verdict"], "bad", "{version}");
        }
        assert_eq!((server.info("sync_full"), server.info("sync_partial_ok")), ("1".into(), "3".into()), "{version}");
    }
}

/// One shard of a cluster is told for what it is, and taken like any other server.
#[test]
fn a_shard_of_a_cluster_is_named() {
    let bus = free_port().to_string();
    let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus];
    let server = RedisServer::start(QUICK_REDIS, &options(QUICK_REDIS, &cluster));
    server.ask(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    let written = || (server.ask(&["SET", "a", "1"]) == "OK").then_some(());
    process::until(Duration::from_secs(30), written).expect("the cluster is up");
    let site = site_for(&server);
    let taken = backup(&site);
    let said = site.walkeep(&["check", "cache"]).expect_code(0).stdout;
    assert!(said.contains("one shard of a Redis Cluster"), "{said}");
    let restored = started_from(QUICK_REDIS, &rdb_of(&site, label(&taken)), &[]);
    assert_eq!(restored.digest(), server.digest());
}

fn files(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Its manifest comes last, so what was put before is seen by nobody but the cleanup, which waits until nobody can be
/// at it any more.
#[test]
fn a_transfer_that_is_cut_late_leaves_parts_alone_and_the_cleanup_takes_them() {
    let server = RedisServer::start(QUICK_REDIS, &options(QUICK_REDIS, &["--rdbcompression", "no"]));
    server.ask(&["DEBUG", "POPULATE", "150000", "key", "1000"]);
    let site = site(&format!("url = \"redis://127.0.0.1:{}\"\n", proxy(server.port, 130 << 20, false)));
    let failed = site.walkeep(&["backup", "redis"]).expect_code(5);
    assert!(failed.stderr.contains("closed the connection"), "{}", failed.stderr);
    no_snapshot(&site);
    let listed = site.walkeep(&["list", "redis", "--json"]).json();
    assert_eq!(listed["instances"][0]["backups"], serde_json::json!([]), "{listed:#}");
    let of_instance = site.repository().join("cache");
    let (left, parts) = (files(&of_instance), files(&of_instance.join("rdb")));
    assert!(left.len() >= 2 && left.len() == parts.len(), "{left:?}");

    let cleaned = |more: &[&str]| {
        let report = site.walkeep(&[&["cleanup", "1", "--json"], more].concat()).json();
        let local = &report["instances"][0]["repositories"][0];
        let objects = |what: &str| local[what]["objects"].as_u64().expect("a number");
        (objects("parts"), objects("parts_waiting"))
    };
    let all = left.len() as u64;
    assert_eq!(cleaned(&[]), (0, all), "it might still be under way");
    assert_eq!(files(&of_instance).len(), left.len());
    assert_eq!(cleaned(&["--grace", "0"]), (all, 0));
    assert_eq!(files(&of_instance), Vec::<std::path::PathBuf>::new());
}

/// Many parts, with the data changing meanwhile.
#[test]
fn a_snapshot_of_several_parts_is_one_state() {
    let server = RedisServer::start(QUICK_REDIS, &options(QUICK_REDIS, &["--rdbcompression", "no"]));
    server.ask(&["DEBUG", "POPULATE", "150000", "key", "1000"]);
    let site = site_for(&server);
    let taken = backup(&site);
    assert!(taken["logical_bytes"].as_u64().expect("bytes") > 2 * (64 << 20), "{taken}");
    let restored = started_from(QUICK_REDIS, &rdb_of(&site, label(&taken)), &[]);
    assert_eq!(restored.digest(), server.digest());
}

#[test]
fn a_server_that_is_loading_or_alone_is_said_to_be_not_ready() {
    let master = RedisServer::start(QUICK_REDIS, &[]);
    let port = free_port().to_string();
    for version in VERSIONS {
        // One that gives its old data meanwhile, and one that gives nothing.
        for (stale, says) in [("yes", "not ready: NOMASTERLINK"), ("no", "not ready: MASTERDOWN")] {
            let options = ["--replicaof", "127.0.0.1", &port, "--replica-serve-stale-data", stale];
            let replica = RedisServer::start(version, &options);
            let site = site_for(&replica);
            let refused = site.walkeep(&["backup", "redis"]).expect_code(5);
            assert!(refused.stderr.contains(says), "{version}: {}", refused.stderr);
            no_snapshot(&site);
        }
    }

    master.fill(3000);
    let filled = site_for(&master);
    let rdb = rdb_of(&filled, label(&backup(&filled)));
    let loading = starting_from(
        QUICK_REDIS,
        &rdb,
        &["--key-load-delay", "5000", "--loading-process-events-interval-bytes", "1024"],
    );
    let site = site_for(&loading);
    let refused = site.walkeep(&["backup", "redis"]).expect_code(5);
    assert!(refused.stderr.contains("not ready: it is loading"), "{}", refused.stderr);
}

/// Whoever asks for a snapshot while one is written down for another replica gets that one.
#[test]
fn a_snapshot_that_was_under_way_already_is_no_younger_than_it_is() {
    let master = RedisServer::start(
        QUICK_REDIS,
        &options(QUICK_REDIS, &["--repl-diskless-sync", "no", "--rdbcompression", "no"]),
    );
    master.fill(400);
    master.ask(&["CONFIG", "SET", "rdb-key-save-delay", "10000"]);
    let port = master.port.to_string();
    let other = RedisServer::start(QUICK_REDIS, &["--replicaof", "127.0.0.1", &port]);
    let busy = process::until(Duration::from_secs(20), || {
        (master.info("rdb_bgsave_in_progress") == "1").then(|| std::thread::sleep(Duration::from_millis(2500)))
    });
    assert!(busy.is_some(), "{}", other.log());
    master.ask(&["SET", "late", "1"]);
    let late = jiff::Timestamp::now();
    let site = site_for(&master);
    let taken = backup(&site);
    let restored = started_from(QUICK_REDIS, &rdb_of(&site, label(&taken)), &[]);
    assert_eq!(restored.ask(&["EXISTS", "late"]).trim(), "0", "it was to be the one under way");
    let at: jiff::Timestamp = taken["at"].as_str().expect("a time").parse().expect("a time");
    assert!(at < late, "as of {at}, and lacks what was written before {late}");
}

/// A snapshot under way has parts that nothing names. A cleanup without a grace leaves them to it.
#[test]
fn a_snapshot_under_way_keeps_its_parts() {
    let server = RedisServer::start(QUICK_REDIS, &options(QUICK_REDIS, &["--rdbcompression", "no"]));
    server.ask(&["DEBUG", "POPULATE", "250000", "key", "1000"]);
    let site = site_for(&server);
    let mut taking = site.spawn("backup", &["backup", "redis"]);
    let parts = || files(&site.repository().join("cache/rdb"));
    // What has a `#` in its name is being written.
    let part = || parts().into_iter().find(|path| !path.to_string_lossy().contains('#'));
    let part = process::until(Duration::from_secs(60), part).expect("a part");
    taking.signal(Signal::STOP);
    no_snapshot(&site);
    let said = site.walkeep(&["cleanup", "1", "--grace", "0"]).expect_ok();
    assert!(said.contains("is under way"), "{said}");
    assert!(part.exists());
    taking.signal(Signal::CONT);
    assert_eq!(taking.wait(Duration::from_secs(120)).code(), Some(0), "{}", taking.output());
    site.walkeep(&["verify", "cache"]).expect_ok();
    assert_eq!(files(&site.repository().join("cache/running")), Vec::<std::path::PathBuf>::new());
}
