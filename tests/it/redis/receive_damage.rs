//! Bytes of the stream that change on their way: the receiver ends, has acknowledged nothing beyond the last command
//! that was whole, and goes on from there.

use walkeep::redis::archive::RedisTarget;

use super::receive::{PATIENCE, acknowledged, based, receiving, restored};
use crate::support::process::until;
use crate::support::redis::{QUICK_REDIS, RedisServer, block_on, debug, instance, site};
use crate::support::relay::Relay;

/// Several databases and a transaction, and nothing that goes by itself later. The server asks how far the receiver is,
/// which answers at once.
fn write(server: &RedisServer, round: u32) {
    server.feed(&format!(
        "SELECT 2\nSET round {round}\nMULTI\nINCR a\nINCR b\nEXEC\nSELECT 0\nRPUSH list {round}\nWAIT 1 10000\n"
    ));
}

/// Follows a server, and has the next such byte of its stream changed.
fn check(byte: u8) {
    // No sign of life comes in between, so that what comes next is the command that is damaged.
    let quiet = vec!["--repl-ping-replica-period", "3600"];
    let server = RedisServer::start(QUICK_REDIS, &[debug(QUICK_REDIS), quiet].concat());
    let relay = Relay::before(&server);
    let site = site(&format!("url = \"{}\"\n", relay.url()));
    let mut receiver = receiving(&site);
    based(&receiver);
    write(&server, 1);
    acknowledged(&server, &mut receiver);
    let (good, digest) = (server.offset(), server.digest());

    relay.flip(byte);
    // `*3`, `$3`, `SET`, `$7`, `seventh`, `$5`, `value`, each with its line end.
    server.ask(&["SET", "seventh", "value"]);
    let status = until(PATIENCE, || {
        let acknowledged = relay.acknowledged();
        assert!(acknowledged <= good, "{acknowledged}, damaged from {good} on\n{}", receiver.output());
        receiver.ended()
    });
    let told = receiver.output();
    assert_eq!(status.and_then(|status| status.code()), Some(6), "{told}");
    assert!(told.contains("receiving cache has ended: the stream of commands cannot be followed: "), "{told}");
    assert!(told.contains("Redis protocol at offset"), "{told}");
    assert_eq!(relay.acknowledged(), good);
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), digest, "up to the last good command");

    // The server still has it all.
    let mut receiver = receiving(&site);
    write(&server, 2);
    acknowledged(&server, &mut receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    assert!(!receiver.output().contains("gap"), "{}", receiver.output());
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest(), "with what was damaged on its way");
    assert_eq!(block_on(async { instance(&site).await.gaps().await.expect("asked") }), []);
    site.walkeep(&["verify", "cache"]).expect_ok();
}

/// An argument's length is announced by another byte, a line does not end, a length is another one.
#[test]
fn a_stream_that_is_damaged_is_not_acknowledged_and_goes_on_when_it_is_whole() {
    for byte in [b'$', b'\r', b'7'] {
        check(byte);
    }
}

/// A line that announces no arguments is a command as people type them, and no server sends those to its replicas: a
/// replica that gets one takes the stream for damaged (`processInlineBuffer`, networking.c). A command whose first byte
/// has changed comes as such lines, and so does what is left of one that has one argument more than it says.
#[test]
fn lines_that_no_server_sends_its_replicas_are_damage() {
    for byte in [b'*', b'3'] {
        check(byte);
    }
}
