//! Failovers one after another, restores that branch off, and the way to a target over all of them. What a restore
//! along a timeline shows is what was committed on it, and what a plan says of it comes true.

use std::fs;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::{Cluster, Options, QUICK, Site};

/// A server that archives, with a backup of it.
struct Scene {
    site: Site,
    cluster: Cluster,
}

impl Scene {
    fn new() -> Scene {
        let cluster = Cluster::start(QUICK, Options::default().set("archive_mode", "on"));
        let site = Site::for_cluster(&cluster);
        cluster.set("archive_command", &site.archive_command());
        cluster.sql("create table t (n int)");
        site.walkeep(&["backup", "postgres", "--checkpoint", "fast"]).expect_ok();
        Scene { site, cluster }
    }

    fn standby(&self, of: &Cluster) -> Cluster {
        let options = Options::default().set("archive_mode", "on").set("archive_command", self.site.archive_command());
        of.standby(options)
    }

    fn plan(&self, options: &[&str]) -> Value {
        let finished = self.site.walkeep(&[&["plan", "postgres", "--json"], options].concat());
        serde_json::from_str(&finished.stdout)
            .unwrap_or_else(|error| panic!("{error}: {}{}", finished.stdout, finished.stderr))
    }

    /// The rows that a restore shows.
    fn restored(&self, name: &str, options: &[&str]) -> (String, Cluster) {
        let pgdata = self.site.path().join(name);
        let into = ["restore", "postgres", "--pgdata", pgdata.to_str().unwrap()];
        self.site.walkeep(&[&into, options].concat()).expect_ok();
        let mut server = Cluster::adopt(QUICK, &pgdata);
        server.start_again();
        server.wait_for("select not pg_is_in_recovery()");
        (server.sql("select string_agg(n::text, ',' order by n) from t"), server)
    }

    fn object(&self, timeline: u32, name: &str) -> PathBuf {
        let folder = self.site.repository().join(format!("main/wal/{timeline:08X}"));
        let mut found = Vec::new();
        let mut waiting = vec![folder];
        while let Some(folder) = waiting.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().map(|entry| entry.unwrap().path()) {
                if entry.is_dir() { waiting.push(entry) } else { found.push(entry) }
            }
        }
        let of = |path: &&PathBuf| path.file_name().unwrap().to_str().unwrap() == name;
        found.iter().find(of).unwrap_or_else(|| panic!("no {name} among {found:?}")).clone()
    }
}

/// Inserts a row; the transaction's number.
fn insert(cluster: &Cluster, n: u32) -> u64 {
    cluster.sql(&format!("insert into t values ({n}) returning pg_current_xact_id()")).parse().unwrap()
}

/// Everything on the old server has come to the standby; then the old one is gone, and the standby goes on alone.
fn fail_over(old: &mut Cluster, standby: &Cluster) {
    let lsn = old.current_lsn();
    standby.wait_for(&format!("select pg_last_wal_replay_lsn() >= '{lsn}'"));
    old.kill9();
    standby.promote();
}

fn archived(cluster: &Cluster, name: &str) {
    cluster.wait_for(&format!(
        "select exists (select from pg_ls_dir('pg_wal/archive_status') f where f = '{name}.done') from pg_stat_archiver"
    ));
}

/// Two failovers within one segment, so that three timelines have one of its number (TRAPS 79), and none but the last
/// completes it.
#[test]
fn the_end_of_each_timeline_is_planned_and_restored_wherever_it_is_kept() {
    let mut scene = Scene::new();
    let second = scene.standby(&scene.cluster);
    let third = scene.standby(&second);
    insert(&scene.cluster, 1);
    let first_segment = scene.cluster.switch_wal();
    archived(&scene.cluster, &first_segment);
    let on_first = insert(&scene.cluster, 10);
    fail_over(&mut scene.cluster, &second);
    let on_second = insert(&second, 20);
    let partial =
        second.sql("select lpad('1', 8, '0') || substr(pg_walfile_name(pg_current_wal_lsn()), 9) || '.partial'");
    archived(&second, &partial);

    // Timeline 1's end is in the .partial alone, timeline 2's in nothing that is archived.
    let plan = scene.plan(&["--target-timeline", "1"]);
    assert_eq!((&plan["reachable"], &plan["last_commit_before"]["xid"]), (&true.into(), &on_first.into()), "{plan}");
    let plan = scene.plan(&["--target-timeline", "1", "--target-xid", &on_first.to_string()]);
    assert_eq!(plan["reachable"], true, "{plan}");
    assert_eq!(scene.restored("partial", &["--target-timeline", "1"]).0, "1,10");

    let mut second = second;
    fail_over(&mut second, &third);
    let on_third = insert(&third, 30);
    let completed = third.switch_wal();
    archived(&third, &completed);
    for (timeline, xid, rows) in [("1", on_first, "1,10"), ("2", on_second, "1,10,20"), ("3", on_third, "1,10,20,30")] {
        let plan = scene.plan(&["--target-timeline", timeline]);
        assert_eq!(plan["reachable"], true, "{plan}");
        assert_eq!(plan["last_commit_before"]["xid"], xid, "timeline {timeline}: {plan}");
        assert_eq!(plan["first_commit_after"], Value::Null, "timeline {timeline}: {plan}");
        assert_eq!(scene.restored(&format!("end-{timeline}"), &["--target-timeline", timeline]).0, rows);
    }
    // Without the .partial the copy in timeline 3's segment is as good.
    fs::remove_file(scene.object(1, &partial)).unwrap();
    assert_eq!(scene.plan(&["--target-timeline", "1"])["last_commit_before"]["xid"], on_first);
    assert_eq!(scene.restored("copy", &["--target-timeline", "1"]).0, "1,10");
    branches(&scene, on_second, on_third);
}

/// A restore along timeline 1 goes on as timeline 4 and archives; what is on 2 and 3 is not on its way.
fn branches(scene: &Scene, on_second: u64, on_third: u64) {
    let branch = ["--target-timeline", "1", "--archive-mode", "preserve"];
    let (rows, server) = scene.restored("branch", &branch);
    assert_eq!(rows, "1,10");
    let on_fourth = insert(&server, 40);
    let last = server.switch_wal();
    archived(&server, &last);
    assert_eq!(&last[..8], "00000004");

    let plan = scene.plan(&["--target-xid", &on_fourth.to_string()]);
    assert_eq!((&plan["reachable"], &plan["timeline"]), (&true.into(), &4.into()), "{plan}");
    let note = plan["notes"].to_string();
    assert!(note.contains("--target-timeline 3"), "{note}");
    for (xid, timeline) in [(on_second, "3"), (on_third, "3")] {
        // The same number may have been given anew on the branch; then it is there.
        if xid == on_fourth {
            continue;
        }
        let refused = scene.site.walkeep(&["plan", "postgres", "--target-xid", &xid.to_string()]).expect_code(3).stdout;
        let refused = refused.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(refused.contains("parted from this one at"), "{refused}");
        assert!(refused.contains(&format!("--target-timeline {timeline}")), "{refused}");
        let plan = scene.plan(&["--target-xid", &xid.to_string(), "--target-timeline", timeline]);
        assert_eq!(plan["reachable"], true, "{plan}");
    }
    let rows = scene.restored("latest", &["--target-timeline", "latest"]).0;
    assert_eq!(rows, "1,10,40");

    let list = scene.site.walkeep(&["list", "postgres", "--json"]).json();
    let timelines = list["clusters"][0]["timelines"].as_array().unwrap();
    let parents: Vec<_> =
        timelines.iter().map(|timeline| (timeline["timeline"].as_u64(), timeline["parent"].as_u64())).collect();
    assert_eq!(parents, [(Some(1), None), (Some(2), Some(1)), (Some(3), Some(2)), (Some(4), Some(1))]);
    let windows = list["clusters"][0]["windows"].as_array().unwrap();
    let led_to: Vec<_> = windows.iter().filter_map(|window| window["timeline"].as_u64()).collect();
    assert_eq!(led_to, [3, 4], "1 and 2 lead nowhere else: {windows:?}");
    let plain = scene.site.walkeep(&["list", "postgres"]).expect_ok();
    let table =
        plain.lines().skip_while(|line| !line.starts_with("Timelines")).skip(3).take_while(|line| !line.is_empty());
    // The branches that are drawn, and the number that follows.
    let branch = |line: &str| {
        let column = line.chars().take(13).filter(|c| !c.is_whitespace()).collect::<String>();
        let digits = column.find(|c: char| c.is_ascii_digit()).map_or(0, |at| at + 1);
        column[..digits].to_owned()
    };
    let drawn: Vec<String> = table.map(branch).collect();
    assert!(drawn == ["1", "|-2", "|`-3", "`-4"] || drawn == ["1", "|-4", "`-2", "`-3"], "{plain}");
}

/// What is missing just before the fork is missing on the old timeline, and on the way to the newest.
#[test]
fn a_gap_just_before_the_fork_is_on_the_way_to_the_newest_timeline() {
    let mut scene = Scene::new();
    let standby = scene.standby(&scene.cluster);
    insert(&scene.cluster, 1);
    let names: Vec<String> = (2..5)
        .map(|n| {
            insert(&scene.cluster, n);
            scene.cluster.switch_wal()
        })
        .collect();
    let last = names.last().unwrap();
    archived(&scene.cluster, last);
    fail_over(&mut scene.cluster, &standby);
    insert(&standby, 20);
    let completed = standby.switch_wal();
    archived(&standby, &completed);
    fs::remove_file(scene.object(1, last)).unwrap();

    scene.site.walkeep(&["verify"]).expect_code(6);
    let list = scene.site.walkeep(&["list", "postgres", "--json"]).json();
    let gaps = list["clusters"][0]["gaps"].as_array().unwrap();
    assert_eq!(gaps.iter().map(|gap| gap["timeline"].as_u64()).collect::<Vec<_>>(), [Some(1)], "{gaps:?}");
    let health = scene.site.walkeep(&["health", "--json"]).stdout;
    let health: Value = serde_json::from_str(&health).unwrap_or_else(|error| panic!("{error}: {health}"));
    let findings = health["clusters"][0]["findings"].as_array().unwrap_or_else(|| panic!("{health}"));
    let of_gaps = findings.iter().find(|finding| finding["subject"] == "gaps").unwrap();
    assert_eq!(of_gaps["level"], "bad", "{of_gaps}");
    assert!(of_gaps["text"].as_str().unwrap().contains("on timeline 1"), "{of_gaps}");
}
