//! What walkeep says of Redis instances to whoever has never seen it: what `check` proves, and where each wrong step
//! leads.

use std::time::Duration;

use crate::support::Site;
use crate::support::process::until;
use crate::support::redis::{QUICK_REDIS, RedisServer, Sentinels};

const PATIENCE: Duration = Duration::from_secs(60);

/// A site with a cluster `main` that nobody can ask, and these sections behind it.
fn beside_main(sections: &str) -> Site {
    let site = Site::new();
    site.init(&[]).expect_ok();
    let text = std::fs::read_to_string(site.config()).expect("the configuration");
    site.scratch().file("walkeep.toml", &format!("{text}\n{sections}"));
    site
}

fn both(server: &RedisServer) -> Site {
    beside_main(&format!("[redis.cache]\nurl = \"{}\"\n", server.url()))
}

/// What `check cache` says of the stream, and how it ends.
fn stream(site: &Site) -> (i32, String) {
    let finished = site.walkeep(&["check", "cache"]);
    let line =
        finished.stdout.lines().find(|line| line.contains("  stream  ")).unwrap_or_else(|| panic!("{finished:?}"));
    (finished.code.expect("a code"), line.split_whitespace().collect::<Vec<_>>().join(" "))
}

#[test]
fn check_and_log_without_a_name_look_at_everything() {
    let server = RedisServer::start(QUICK_REDIS, &[]);
    let site = both(&server);
    let checked = site.walkeep(&["check"]).expect_code(1);
    for part in ["main: the repository works; whether WAL comes", "cache: archiving does not work; mend what says FAIL"]
    {
        assert!(checked.stdout.contains(part), "{part:?} is missing in:\n{}", checked.stdout);
    }
    let checked: serde_json::Value = serde_json::from_str(&site.walkeep(&["check", "--json"]).stdout).unwrap();
    let [main, cache] = [&checked["clusters"][0], &checked["instances"][0]];
    assert_eq!((&main["cluster"], &main["healthy"]), (&"main".into(), &true.into()), "{checked}");
    assert_eq!((&cache["instance"], &cache["healthy"]), (&"cache".into(), &false.into()), "{checked}");
    assert_eq!(checked["healthy"], false);
    assert_eq!(site.walkeep(&["check", "main", "--json"]).json()["cluster"], "main");

    let mut receiver = site.spawn("receive", &["receive", "cache"]);
    let good = until(PATIENCE, || (site.walkeep(&["check", "cache"]).code == Some(0)).then_some(()));
    assert!(good.is_some(), "{}", receiver.output());
    server.ask(&["SET", "a", "1"]);
    server.ask(&["FLUSHALL"]);
    let told = until(PATIENCE, || {
        let told = site.walkeep(&["log", "--json"]).expect_ok();
        told.contains("flush-all").then_some(told)
    });
    let told = told.expect("the flush");
    let event: serde_json::Value = serde_json::from_str(told.lines().next().expect("a line")).unwrap();
    assert_eq!((&event["instance"], &event["kind"]), (&"cache".into(), &"flush-all".into()), "{told}");
    let told = site.walkeep(&["log"]).expect_ok();
    let [main, cache] = ["main\n", "\ncache\n"].map(|name| told.find(name).unwrap_or_else(|| panic!("{name}: {told}")));
    assert!(main < cache && told[cache..].contains("flush-all"), "{told}");
    // What only PostgreSQL has is asked of it alone.
    site.walkeep(&["log", "--relation", "x"]).expect_code(4);
    assert!(receiver.terminate().success(), "{}", receiver.output());
}

#[test]
fn check_of_an_instance_says_whether_what_it_writes_comes() {
    let mut server = RedisServer::start(QUICK_REDIS, &["--repl-backlog-size", "16384"]);
    let site = both(&server);
    let says = |code: i32, words: &str| {
        let (ended, said) = stream(&site);
        assert!(ended == code && said.contains(words), "{words:?}, {code}: {ended} {said}");
    };
    says(
        1,
        "FAIL stream nothing is archived yet: take a snapshot with walkeep backup redis cache, and start walkeep \
            receive cache",
    );

    site.walkeep(&["backup", "redis"]).expect_ok();
    says(0, "note stream snapshots alone are kept");
    assert!(site.walkeep(&["check", "cache"]).expect_ok().contains("cache: archiving works, by snapshots alone"));

    let mut receiver = site.spawn("receive", &["receive", "cache"]);
    let all = || {
        let (code, said) = stream(&site);
        (code == 0 && said.contains("everything that the server has written is here, and somebody follows it"))
            .then_some(())
    };
    for _ in 0..2 {
        assert!(until(PATIENCE, all).is_some(), "{:?}\n{}", stream(&site), receiver.output());
        server.ask(&["SET", "a", "1"]);
    }
    assert!(until(PATIENCE, all).is_some(), "{:?}\n{}", stream(&site), receiver.output());
    assert!(site.walkeep(&["check", "cache"]).expect_ok().contains("cache: archiving works\n"));

    assert!(receiver.terminate().success(), "{}", receiver.output());
    server.ask(&["SET", "a", "2"]);
    says(1, "nobody follows it: start walkeep receive cache; so far it can go on without a gap");
    for n in 0..40 {
        server.ask(&["SET", "a", &format!("{n}{}", "x".repeat(1000))]);
    }
    says(1, "walkeep receive would begin with a gap; take a snapshot with walkeep backup redis cache");
    server.restart();
    says(1, "the server is in another history than what is here");
}

/// After a disaster the configuration is written anew, and the name is another one.
#[test]
fn an_archive_under_another_name_is_no_empty_archive() {
    let server = RedisServer::start(QUICK_REDIS, &[]);
    let site = both(&server);
    site.walkeep(&["backup", "redis"]).expect_ok();
    let good = std::fs::read_to_string(site.config()).unwrap();
    std::fs::write(site.config(), good.replace("redis.cache", "redis.kache")).unwrap();
    let asked = "the repository has cache: is it this one?";
    let listed = site.walkeep(&["list", "redis"]).expect_ok();
    assert!(listed.contains(&format!("kache  nothing is archived yet\n  {asked}\n")), "{listed}");
    for arguments in [&["plan", "redis"][..], &["restore", "redis", "--dir", "/nowhere"], &["log", "redis"]] {
        let refused = site.walkeep(arguments).expect_code(4);
        assert_eq!(refused.stderr, format!("walkeep: nothing of kache is archived; {asked}\n"));
    }
    let verified = site.walkeep(&["verify", "kache"]).expect_code(4);
    assert_eq!(verified.stdout, format!("kache: nothing is archived under this name; {asked}\n"));
    let verified: serde_json::Value = serde_json::from_str(&site.walkeep(&["verify", "--json"]).stdout).unwrap();
    assert_eq!((&verified["whole"], &verified["instances"][0]["archived"]), (&false.into(), &false.into()));
    let checked = site.walkeep(&["check", "kache"]).expect_code(1).stdout;
    assert!(checked.contains(asked), "{checked}");

    // Where the name is right and nothing is there yet, nobody is led astray.
    std::fs::write(site.config(), format!("{good}\n[redis.new]\nurl = \"{}\"\n", server.url())).unwrap();
    let refused = site.walkeep(&["plan", "redis", "new"]).expect_code(4);
    assert!(refused.stderr.ends_with("archived yet; take a snapshot with walkeep backup redis new\n"), "{refused:?}");
    site.walkeep(&["verify", "cache"]).expect_ok();
}

#[test]
fn a_user_without_a_password_is_who_logs_in() {
    let server = RedisServer::start(QUICK_REDIS, &[]);
    server.ask(&["ACL", "SETUSER", "free", "on", "nopass", "+psync", "+replconf", "+ping", "+info"]);
    server.ask(&["ACL", "SETUSER", "bound", "on", ">word", "+psync", "+replconf", "+ping", "+info"]);
    server.ask(&["ACL", "SETUSER", "default", "off"]);
    let site = |user: &str| beside_main(&format!("[redis.cache]\nurl = \"{}\"\nuser = \"{user}\"\n", server.url()));
    site("free").walkeep(&["backup", "redis"]).expect_ok();
    let refused = site("bound").walkeep(&["backup", "redis"]);
    assert!(refused.stderr.contains("does not let walkeep in: WRONGPASS"), "{refused:?}");
}

#[test]
fn a_master_that_no_sentinel_knows_is_a_mistake_in_the_configuration() {
    let server = RedisServer::start(QUICK_REDIS, &[]);
    let sentinels = Sentinels::alone(&server);
    let section = sentinels.section().replace("mymaster", "yourmaster");
    let site = beside_main(&format!("[redis.cache]\n{section}"));
    for command in [&["backup", "redis"][..], &["receive", "cache"]] {
        let refused = site.walkeep(command).expect_code(2);
        assert!(refused.stderr.contains("know no master \"yourmaster\"; SENTINEL MASTERS lists"), "{refused:?}");
    }
}

#[test]
fn a_wrong_step_is_answered_with_the_right_one() {
    let server = RedisServer::start(QUICK_REDIS, &[]);
    let site = both(&server);
    let label = site.walkeep(&["-q", "backup", "redis"]).expect_ok();
    let says = |arguments: &[&str], code: i32, words: &str| {
        let refused = site.walkeep(arguments).expect_code(code);
        assert_eq!((refused.stdout.as_str(), refused.stderr.lines().count()), ("", 1), "{refused:?}");
        assert!(refused.stderr.contains(words), "{words}: {}", refused.stderr);
    };
    says(&["plan", "redis", "--backup", "nope"], 4, "there is no snapshot \"nope\" of cache; walkeep list redis cache");
    says(&["restore", "redis", "--dir", "/nowhere", "--backup", "nope"], 4, "there is no snapshot \"nope\"");
    says(&["list", "cache"], 2, "did you mean: walkeep list redis cache?");
    says(&["log", "main"], 2, "did you mean: walkeep log postgres main?");
    says(&["plan"], 2, "walkeep plan takes one of: postgres, redis, all");
    site.walkeep(&["plan", "redis", "--backup", label.trim()]).expect_ok();
    assert!(site.walkeep(&["help", "plan", "redis"]).expect_ok().contains("walkeep plan redis --target-time"));
    site.walkeep(&["cleanup", "30d", "--dry-run"]).expect_ok();
}

#[test]
fn a_plan_ends_with_the_command_that_does_it() {
    let server = RedisServer::start(QUICK_REDIS, &[]);
    let site = both(&server);
    site.walkeep(&["backup", "redis"]).expect_ok();
    let planned = site.walkeep(&["plan", "redis"]).expect_ok();
    let restore = format!("walkeep --config {} restore redis cache --dir DIR", site.config().display());
    assert!(planned.ends_with(&format!("\nTo do it:\n  {restore} --start\n")), "{planned}");
    let planned = site.walkeep(&["plan", "redis", "--json"]).json();
    assert!(planned["estimated_seconds"].as_u64() > Some(0) && planned["estimated_from_restores"] == 0, "{planned}");
    let missed = site.walkeep(&["plan", "redis", "--target-time", "1 hour ago"]).expect_code(3).stdout;
    let prefix = format!("{restore} --target-time '");
    let line = missed.lines().find_map(|line| line.trim().strip_prefix(&prefix));
    let time = line.unwrap_or_else(|| panic!("{missed}")).trim_end_matches("' --nearest");
    site.walkeep(&["plan", "redis", "--target-time", time, "--nearest"]).expect_ok();
    assert!(!missed.contains("To do it"), "{missed}");
}
