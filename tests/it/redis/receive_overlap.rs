//! Two receivers cut one stream at places of their own: stretches that overlap, or lie within another, change nothing
//! of what is restored.

use jiff::Timestamp;
use walkeep::redis::archive::stream::StretchToStore;
use walkeep::redis::archive::{RedisTarget, StreamStretch};
use walkeep::redis::format::resp::StreamCut;

use super::receive::{acknowledged, based, reach, receiving, restored, work};
use crate::support::Site;
use crate::support::process::{self, Orphan};
use crate::support::redis::{QUICK_REDIS, RedisServer, block_on, debug, instance, site_for};

type Stored = (StreamStretch, Vec<u8>);

fn stored(site: &Site) -> Vec<Stored> {
    block_on(async {
        let instance = instance(site).await;
        let mut all = Vec::new();
        for listed in instance.stored_stretches().await.expect("listed") {
            let (replid, first) = (listed.name.replid, listed.name.first);
            let stretch = instance.stored_stretch(replid, first).await.expect("asked").expect("there");
            let bytes = instance.stored_commands(replid, first).await.expect("asked").expect("there");
            all.push((stretch, bytes.to_vec()));
        }
        all
    })
}

/// These and no others.
fn store(site: &Site, all: &[Stored]) {
    block_on(async {
        let instance = instance(site).await;
        for listed in instance.stored_stretches().await.expect("listed") {
            let (replid, first) = (listed.name.replid, listed.name.first);
            let key = instance.layout().commands(&replid.to_string(), first).expect("a key");
            instance.vault().delete(&key).await.expect("removed");
        }
        for (stretch, bytes) in all {
            instance.put_commands(0, &StretchToStore::new(stretch.clone(), bytes.clone().into())).await.expect("put");
        }
    });
}

/// What a receiver stores that did not cut between them.
fn whole(all: &[Stored]) -> Stored {
    let (mut whole, mut bytes) = all[0].clone();
    for (next, more) in &all[1..] {
        assert_eq!(whole.last, next.first);
        (whole.last, whole.ended_at) = (next.last, next.ended_at);
        (whole.db_after, whole.in_transaction_after) = (next.db_after, next.in_transaction_after);
        whole.writes += next.writes;
        whole.marks.extend(next.marks.iter().copied());
        whole.notable = None;
        bytes.extend_from_slice(more);
    }
    (whole, bytes)
}

/// Which places are reached at which times, what comes next, and with which commands.
type Told = (Option<StreamCut>, Timestamp, Option<Timestamp>, Vec<u8>);

fn told(site: &Site, wanted: RedisTarget) -> Told {
    let (reach, commands) = reach(site, wanted).unwrap_or_else(|no| panic!("{wanted:?}: {no}"));
    (reach.to, reach.at, reach.before, commands)
}

#[test]
fn what_two_receivers_store_is_one_stream() {
    let server = RedisServer::start(QUICK_REDIS, &debug(QUICK_REDIS));
    let site = site_for(&server);
    based(&receiving(&site));
    for round in 0..4 {
        let mut receiver = receiving(&site);
        work(&server, round);
        if round == 2 {
            acknowledged(&server, &mut receiver);
            site.walkeep(&["backup", "redis"]).expect_ok();
            work(&server, 20);
        }
        acknowledged(&server, &mut receiver);
        assert!(receiver.terminate().success(), "{}", receiver.output());
    }
    let plain = stored(&site);
    let [a, b, c, d] = plain.clone().try_into().expect("four stretches");
    let marks = plain.iter().flat_map(|(stretch, _)| &stretch.marks);
    let mut wanted: Vec<RedisTarget> = marks.clone().map(|mark| RedisTarget::Time(mark.time)).collect();
    wanted.extend(marks.map(|mark| RedisTarget::Offset(a.0.replid, mark.offset)));
    wanted.push(RedisTarget::Newest);
    let before: Vec<Told> = wanted.iter().map(|wanted| told(&site, *wanted)).collect();
    let end = before.last().and_then(|(to, ..)| *to).expect("an end").offset;
    let inside = reach(&site, RedisTarget::Newest).expect("reachable").0.snapshot.offset.expect("an offset");
    assert!((c.0.first..c.0.last).contains(&inside), "{inside}");

    let cuts = [
        // One ends before the snapshot in the other, which goes on.
        vec![whole(&[a.clone(), b.clone(), c.clone()]), b.clone(), d.clone()],
        vec![whole(&plain), b.clone(), c.clone()],
        vec![whole(&[a.clone(), b.clone()]), whole(&[b.clone(), c.clone()]), d.clone()],
        vec![a.clone(), whole(&[b.clone(), c.clone()]), whole(&[c, d])],
    ];
    for (nth, cut) in cuts.iter().enumerate() {
        store(&site, cut);
        for (wanted, before) in wanted.iter().zip(&before) {
            assert_eq!(told(&site, *wanted), *before, "{nth}: {wanted:?}");
        }
        site.walkeep(&["verify", "cache"]).expect_ok();
        let place = site.walkeep(&["plan", "redis", "--target-offset", &inside.to_string()]);
        assert_eq!(place.code, Some(0), "{nth}: {}{}", place.stdout, place.stderr);
    }
    for (nth, cut) in cuts.iter().enumerate() {
        store(&site, cut);
        // What goes on beyond the snapshot that is kept stays, though the next one begins before.
        let mut command = process::command("env", Orphan::Kill);
        command.args(["LD_PRELOAD=/usr/$LIB/faketime/libfaketime.so.1", "FAKETIME_DISABLE_SHM=1", "FAKETIME=+40d"]);
        command
            .arg(env!("CARGO_BIN_EXE_walkeep"))
            .args(["cleanup", "1", "--trust-this-clock"])
            .env("WALKEEP_CONFIG", site.config());
        process::run(command).expect_ok();
        // In the first, the next one after the short one begins behind the snapshot, which is reason enough not to
        // look.
        assert_eq!(cut.len() - stored(&site).len(), usize::from(nth > 0), "{nth}");
        assert_eq!(told(&site, RedisTarget::Newest), before[before.len() - 1], "{nth}");
    }
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest());
    // And a receiver goes on from the end.
    let mut receiver = receiving(&site);
    work(&server, 30);
    acknowledged(&server, &mut receiver);
    assert!(receiver.terminate().success(), "{}", receiver.output());
    assert_eq!(stored(&site).last().expect("a stretch").0.first, end);
    assert_eq!(restored(&site, RedisTarget::Newest).digest(), server.digest());
}
