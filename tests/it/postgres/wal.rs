//! What walkeep reads in real WAL, beside what the `pg_waldump` of the same release reads: every record, every
//! transaction's end, every event, of every major and several segment sizes, through a workload that writes all that a
//! decoder has to know, two kinds of crash included.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};

use walkeep::postgres::format::lsn::Lsn;
use walkeep::postgres::format::segment::{SegmentName, SegmentSize};
use walkeep::postgres::format::timeline::TimelineId;
use walkeep::postgres::wal::decode::WalDecoder;
use walkeep::postgres::wal::digest::{self, SegmentDigest, SegmentState};
use walkeep::postgres::wal::event::{
    DroppedObjectKind, RelFileLocator, RemovedObjects, TransactionEnd, WalEvent, WalEventKind, WalLevel, interpret,
};
use walkeep::postgres::wal::page::MajorVersion;

use crate::support::waldump::{self, lsn};
use crate::support::{Cluster, Options, QUICK, Running, Scratch};

#[test]
fn postgresql_13() {
    check(13, 1);
}

#[test]
fn postgresql_14() {
    check(14, 1);
}

#[test]
fn postgresql_15_in_small_segments() {
    check(15, 1);
}

#[test]
fn postgresql_15_in_ordinary_segments() {
    check(15, 16);
}

#[test]
fn postgresql_15_in_large_segments() {
    check(15, 64);
}

#[test]
fn postgresql_16() {
    check(16, 1);
}

#[test]
fn postgresql_17() {
    check(17, 1);
}

#[test]
fn postgresql_18() {
    check(18, 1);
}

/// A record as both sides tell it: start, transaction in the header, and for those that mean something to us what
/// `pg_waldump` prints.
type Told = BTreeMap<u64, (u32, Option<String>)>;

fn check(major: u32, segment_mb: u32) {
    let options = Options::default().segment_size_mb(segment_mb).set("max_prepared_transactions", 20);
    let options = options.set("wal_keep_size", "8GB").set("max_wal_size", "8GB").set("autovacuum_naptime", "1s");
    let mut cluster = Cluster::start(major, options);
    let scratch = Scratch::new();
    all_kinds(&cluster, segment_mb);
    crash_in_traffic(&mut cluster, &scratch);
    if major > 13 {
        // The pg_waldump of 13 at hand is 13.4, which does not know what 13.5 began to write.
        crash_within_a_record(&mut cluster);
    }
    let last = cluster.switch_wal();
    let log = Log::read(&cluster.pg_wal(), &last);
    let oracle = Oracle::read(&cluster, &log, 1);
    oracle.is_worth_its_name();
    oracle.compare(&log.decode(&mut SmallRng::seed_from_u64(7)));
    oracle.compare(&log.digests());
    checkpoint_time(&cluster, &log);
}

/// Each kind of record that means something to us, and some that are large.
fn all_kinds(cluster: &Cluster, segment_mb: u32) {
    let sql = |statements: &[&str]| statements.iter().for_each(|statement| drop(cluster.sql(statement)));
    cluster.run("pgbench", &["-i", "-s", "1", "-q"]).expect_ok();
    cluster.run("pgbench", &["-c", "6", "-j", "2", "-T", "1", "-n"]).expect_ok();
    sql(&[
        "create table big (id int, t text); alter table big alter t set storage external",
        "insert into big select g, repeat(md5(g::text), 32768) from generate_series(1, 3) g",
        "select pg_create_restore_point('before the drop')",
        "create table kept (i int primary key, t text); insert into kept select g, md5(g::text) from \
            generate_series(1, 1000) g",
        "begin; savepoint a; insert into kept values (-1, 'a'); savepoint b; insert into kept values (-2, 'b'); rollback to b;
         insert into kept values (-3, 'c'); commit",
        "begin; insert into kept values (-4, 'x'); rollback",
        "begin; create table gone (i int); insert into gone values (1); rollback",
        "begin; insert into kept values (-5, 'p'); prepare transaction 'one'",
        "begin; insert into kept values (-6, 'p'); create table two (i int); prepare transaction 'two, with a longer \
            name'",
        "create table three (i int primary key); begin; drop table three; prepare transaction 'three'",
        "commit prepared 'one'",
        "rollback prepared 'two, with a longer name'",
        "commit prepared 'three'",
        "create table cut (i int); insert into cut select generate_series(1, 1000)",
        "truncate cut",
        "begin; create table born (i int); insert into born values (1); truncate born; commit",
        "create schema s; create table s.a (i int primary key, t text); create table s.b (i int);
         create function s.f() returns int language sql as 'select 1'",
        "drop schema s cascade",
        "begin; create temp table t (i int); drop table t; commit",
        "vacuum full cut",
        "delete from cut",
        "vacuum cut",
        "select pg_create_restore_point('ünïcode')",
        "select pg_create_restore_point(repeat('x', 63))",
        "select pg_switch_wal()",
        "create database other",
        "drop database other",
        "create table sub (i int)",
        "do $$ begin for i in 1..20000 loop begin insert into sub values (i); exception when others then null; end; \
            end loop; end $$",
        "create table many (i int) partition by range (i)",
        "do $$ begin for i in 1..100 loop
         execute format('create table many_%s partition of many for values from (%s) to (%s)', i, i, i + 1); end loop; end $$",
        "drop table many",
    ]);
    // One record that fills whole segments.
    let bytes = 7 * (segment_mb << 20) / 2;
    sql(&[&format!("select pg_logical_emit_message(true, 'large', repeat('x', {}))", bytes.min(40 << 20))]);
    cluster.set("full_page_writes", "off");
    cluster.set("full_page_writes", "on");
    cluster.run("pg_basebackup", &["-D", "-", "-Ft", "-X", "none", "-c", "fast"]).expect_code(0);
    sql(&[
        "alter system set wal_level = logical",
        "alter system set max_connections = 61",
        "alter system set wal_log_hints = on",
    ]);
}

/// The new settings come into force with the restart.
fn crash_in_traffic(cluster: &mut Cluster, scratch: &Scratch) {
    cluster.restart();
    cluster.sql("create table logical (i int); insert into logical values (1)");
    cluster.sql("truncate logical, kept restart identity cascade");
    let mut command = cluster.command("pgbench");
    command.args(["-c", "6", "-j", "2", "-T", "30", "-n"]);
    let traffic = Running::start(command, &scratch.join("pgbench.log"));
    std::thread::sleep(std::time::Duration::from_millis(700));
    cluster.kill9();
    drop(traffic);
    cluster.start_again();
    cluster.run("pgbench", &["-c", "6", "-j", "2", "-T", "1", "-n"]).expect_ok();
}

/// A record of which only the first pages were written when the server died (as in 026_overwrite_contrecord.pl). An
/// asynchronous commit that leaves more than a megabyte behind wakes the WAL writer, which writes whole pages; the end
/// of the long record waits for its next turn.
fn crash_within_a_record(cluster: &mut Cluster) {
    cluster.set("wal_writer_delay", "10s");
    for _ in 0..5 {
        let redo = cluster.sql("select redo_lsn from pg_control_checkpoint()");
        let large = "select pg_logical_emit_message(true, 'cut', repeat('x', 3000000))";
        cluster.sql(&format!("begin; set local synchronous_commit = off; {large}; commit"));
        std::thread::sleep(std::time::Duration::from_millis(100));
        cluster.stop_immediately();
        cluster.start_again();
        let records = waldump::records(cluster, &cluster.pg_wal(), 1, &redo);
        if records.iter().any(|record| record.description.starts_with("OVERWRITE_CONTRECORD")) {
            return;
        }
    }
    panic!("no crash has cut a record");
}

/// The segments of one timeline in a folder, up to one of them.
struct Log {
    size: SegmentSize,
    segments: Vec<(SegmentName, Vec<u8>)>,
}

impl Log {
    fn read(folder: &Path, last: &str) -> Self {
        let mut names: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.len() == 24 && name.as_bytes()[..8] == last.as_bytes()[..8] && name.as_str() <= last)
            .collect();
        names.sort();
        let segments: Vec<_> = names
            .iter()
            .map(|name| (SegmentName::parse(name).unwrap(), fs::read(folder.join(name)).unwrap()))
            .collect();
        let size = SegmentSize::new(segments[0].1.len() as u64).unwrap();
        for pair in segments.windows(2) {
            assert_eq!(pair[0].0.number(size).unwrap().next(), pair[1].0.number(size).unwrap(), "a hole in pg_wal");
        }
        Self { size, segments }
    }

    fn start(&self) -> Lsn {
        self.segments[0].0.number(self.size).unwrap().start(self.size)
    }

    fn end(&self) -> u64 {
        self.start().get() + self.size.get() * self.segments.len() as u64
    }

    fn timeline(&self) -> TimelineId {
        self.segments[0].0.timeline()
    }

    /// Decoded in one stream, in pieces of random sizes.
    fn decode(&self, random: &mut SmallRng) -> Told {
        let mut decoder = WalDecoder::new(self.start(), self.timeline(), self.size);
        let major =
            MajorVersion::from_magic(u16::from_le_bytes([self.segments[0].1[0], self.segments[0].1[1]])).unwrap();
        let mut told = Told::new();
        for (_, segment) in &self.segments {
            let mut rest = segment.as_slice();
            while !rest.is_empty() {
                let most = [64, 5000, 131_072][random.random_range(0..3)];
                let (piece, after) = rest.split_at(random.random_range(1..=most).min(rest.len()));
                rest = after;
                let mut feed = decoder.feed_bytes(piece);
                while let Some(record) = feed.next_record().unwrap() {
                    let meaning = interpret(&record, major).unwrap();
                    let text = spelled(meaning.ending.as_ref(), meaning.event.as_ref());
                    told.insert(record.lsn.get(), (record.header.xid, text));
                }
            }
        }
        assert_eq!(decoder.end(), None);
        told
    }

    /// The same from the digests alone: all that means something, the records between segments joined.
    fn digests(&self) -> Told {
        let digests: Vec<SegmentDigest> = self
            .segments
            .iter()
            .map(|(name, bytes)| {
                let digest = digest::digest_segment(bytes, *name, self.size).unwrap();
                assert_eq!(digest.state, SegmentState::Checked, "{name}");
                assert!(!digest.ends_early(), "{name} ends at {}", digest.valid_until);
                assert_eq!(SegmentDigest::from_bytes(&digest.to_bytes()).unwrap(), digest);
                digest
            })
            .collect();
        let mut told = Told::new();
        let mut tell = |lsn: Lsn, ending: Option<&TransactionEnd>, event: Option<&WalEvent>| {
            let text = spelled(ending, event);
            let before = told.insert(lsn.get(), (0, text.clone()));
            if let Some((_, Some(before))) = before {
                told.insert(lsn.get(), (0, text.map(|text| before + &text)));
            }
        };
        for (n, digest) in digests.iter().enumerate() {
            digest.endings.iter().for_each(|ending| tell(ending.lsn, Some(ending), None));
            digest.events.iter().for_each(|event| tell(event.lsn, None, Some(event)));
            let parts: Vec<&SegmentDigest> = digests[n..].iter().collect();
            if let Some(joined) = digest::join_record(&parts).unwrap() {
                tell(joined.lsn, joined.meaning.ending.as_ref(), joined.meaning.event.as_ref());
            }
            if let Some(next) = digests.get(n + 1) {
                digest::check_follows(digest, next).unwrap();
            }
            let times = || digest.endings.iter().map(|ending| ending.time);
            assert_eq!((digest.earliest, digest.latest), (times().min(), times().max()));
        }
        told.retain(|_, (_, text)| text.is_some());
        told
    }
}

/// What `pg_waldump` says of the same segments.
struct Oracle {
    records: Vec<waldump::Record>,
}

impl Oracle {
    fn read(cluster: &Cluster, log: &Log, timeline: u32) -> Self {
        let mut records = waldump::records(cluster, &cluster.pg_wal(), timeline, &log.start().to_string());
        records.retain(|record| record.lsn < log.end());
        Self { records }
    }

    /// The workload did write what it is there for.
    fn is_worth_its_name(&self) {
        for kind in
            ["COMMIT 2", "ABORT 2", "COMMIT_PREPARED", "ABORT_PREPARED", "CHECKPOINT_ONLINE", "CHECKPOINT_SHUTDOWN"]
        {
            assert!(self.records.iter().any(|record| record.description.starts_with(kind)), "no {kind}");
        }
        for kind in ["PARAMETER_CHANGE", "RESTORE_POINT", "SWITCH", "FPW_CHANGE", "BACKUP_END", "TRUNCATE", "DROP dir"]
        {
            assert!(self.records.iter().any(|record| record.description.starts_with(kind)), "no {kind}");
        }
    }

    fn compare(&self, told: &Told) {
        let whole = told.values().any(|(_, text)| text.is_none());
        let mut seen = 0;
        for record in &self.records {
            let expected = expected(record);
            let found = told.get(&record.lsn);
            if !whole && expected.is_none() {
                assert_eq!(found, None, "{record:?}");
                continue;
            }
            let Some((xid, text)) = found else { panic!("not found: {record:?}") };
            assert_eq!(*text, expected, "{record:?}");
            assert!(!whole || *xid == record.xid, "{record:?}");
            seen += 1;
        }
        assert_eq!(seen, told.len(), "records that pg_waldump does not know");
    }
}

/// The part of `pg_waldump`'s description that our events can tell as well; `None` for records that are no events.
fn expected(record: &waldump::Record) -> Option<String> {
    let text = record.description.as_str();
    let kind = text.split(' ').next()?;
    let cut = |end: &str| Some(text.split(end).next()?.to_owned());
    match (record.manager.as_str(), kind) {
        ("XLOG", "CHECKPOINT_ONLINE" | "CHECKPOINT_SHUTDOWN") => {
            let fields: Vec<&str> = text.split("; ").take(4).collect();
            Some(fields.join("; "))
        }
        ("XLOG", "PARAMETER_CHANGE" | "RESTORE_POINT" | "FPW_CHANGE" | "BACKUP_END") => Some(text.to_owned()),
        ("XLOG", "SWITCH") => Some("SWITCH".into()),
        ("XLOG", "OVERWRITE_CONTRECORD" | "END_OF_RECOVERY") => cut("; wal_level"),
        ("Transaction", "COMMIT" | "ABORT" | "COMMIT_PREPARED" | "ABORT_PREPARED") => {
            let list = |name: &str| {
                let (_, after) = text.split_once(&format!("; {name}: "))?;
                Some(after.split(';').next()?.split(' ').take(64).map(str::to_owned).collect::<Vec<_>>())
            };
            let mut out = text.split(';').next()?.to_owned();
            if kind.starts_with("COMMIT") {
                list("rels").into_iter().for_each(|rels| out += &format!("; rels: {}", rels.join(" ")));
                list("dropped stats")
                    .into_iter()
                    .for_each(|items| out += &format!("; dropped stats: {}", items.join(" ")));
            }
            Some(out)
        }
        // To nothing, and more than the free space map alone.
        ("Storage", "TRUNCATE") => text.contains(" to 0 blocks").then(|| cut(" flags")).flatten(),
        // 16 writes `flags: [CASCADE, RESTART_SEQS], nrelids: 2, relids: [1, 2]` for what was `cascade restart_seqs
        // nrelids 2 relids 1 2`.
        ("Heap", "TRUNCATE") => {
            let words = text.split([' ', ':', ',', '[', ']']).filter(|word| !word.is_empty() && *word != "flags");
            let words: Vec<String> = words.skip(1).map(str::to_lowercase).collect();
            Some(format!("TRUNCATE {}", words.join(" ")))
        }
        ("Tablespace", "CREATE") => Some(text.to_owned()),
        ("Database", "DROP") => Some(format!("DROP {}", text.rsplit('/').next()?)),
        _ => None,
    }
}

/// Ours, in the words of `pg_waldump`.
fn spelled(ending: Option<&TransactionEnd>, event: Option<&WalEvent>) -> Option<String> {
    let mut out = String::new();
    if let Some(ending) = ending {
        let kind = match (ending.kind.is_commit(), format!("{:?}", ending.kind).ends_with("Prepared")) {
            (true, false) => "COMMIT".to_owned(),
            (false, false) => "ABORT".to_owned(),
            (true, true) => format!("COMMIT_PREPARED {}:", ending.xid),
            (false, true) => format!("ABORT_PREPARED {}:", ending.xid),
        };
        out += &format!("{kind} {}", timestamp(ending.time));
    }
    // What counts rows and follows names says nothing that pg_waldump has a line for.
    if let Some(event) = event.filter(|event| event.kind.tag() < 14 || event.kind.tag() == 18) {
        out += &event_text(event);
    }
    (!out.is_empty()).then_some(out)
}

fn timestamp(time: walkeep::postgres::format::time::PgTime) -> String {
    time.to_timestamp().unwrap().strftime("%Y-%m-%d %H:%M:%S.%6f UTC").to_string()
}

fn event_text(event: &WalEvent) -> String {
    let on = |on: bool| if on { "on" } else { "off" };
    match &event.kind {
        WalEventKind::Checkpoint(c) => {
            let kind = if c.shutdown { "SHUTDOWN" } else { "ONLINE" };
            format!(
                "CHECKPOINT_{kind} redo {}; tli {}; prev tli {}; fpw {}",
                c.redo, c.timeline, c.previous_timeline, c.full_page_writes
            )
        }
        WalEventKind::Parameters(p) => {
            let level = match p.wal_level {
                WalLevel::Minimal => "minimal",
                WalLevel::Replica => "replica",
                WalLevel::Logical => "logical",
            };
            format!(
                "PARAMETER_CHANGE max_connections={} max_worker_processes={} max_wal_senders={} max_prepared_xacts={} \
                    max_locks_per_xact={} wal_level={level} wal_log_hints={} track_commit_timestamp={}",
                p.max_connections,
                p.max_worker_processes,
                p.max_wal_senders,
                p.max_prepared_transactions,
                p.max_locks_per_transaction,
                on(p.wal_log_hints),
                on(p.track_commit_timestamp)
            )
        }
        WalEventKind::RestorePoint { name, .. } => format!("RESTORE_POINT {name}"),
        WalEventKind::EndOfRecovery { time, timeline, previous } => {
            format!("END_OF_RECOVERY tli {timeline}; prev tli {previous}; time {}", timestamp(*time))
        }
        WalEventKind::BackupEnd { start } => format!("BACKUP_END {start}"),
        WalEventKind::Switch => "SWITCH".into(),
        WalEventKind::FullPageWrites { on } => format!("FPW_CHANGE {on}"),
        WalEventKind::OverwriteContrecord { overwritten, time } => {
            format!("OVERWRITE_CONTRECORD lsn {overwritten}; time {}", timestamp(*time))
        }
        WalEventKind::Drop(removal) | WalEventKind::Rewrite(removal) => {
            assert_eq!(matches!(event.kind, WalEventKind::Drop(_)), removal.objects_total > 0);
            removal_text(removal)
        }
        WalEventKind::Truncate { cascade, restart_identity, total, relations, .. } => {
            assert_eq!(relations.len(), *total as usize);
            let flags = [(*cascade, "cascade "), (*restart_identity, "restart_seqs ")];
            let flags: String = flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
            let ids: Vec<String> = relations.iter().map(u32::to_string).collect();
            format!("TRUNCATE {flags}nrelids {total} relids {}", ids.join(" "))
        }
        WalEventKind::FileEmptied { file } => format!("TRUNCATE {} to 0 blocks", path(*file)),
        WalEventKind::DropDatabase { database } => format!("DROP {database}"),
        WalEventKind::CreateTablespace { tablespace, location } => format!("CREATE {tablespace} \"{location}\""),
        WalEventKind::Rows { .. }
        | WalEventKind::Catalog(_)
        | WalEventKind::CreateDatabase { .. }
        | WalEventKind::Subtransactions { .. } => unreachable!("these are among a digest's changes"),
    }
}

fn removal_text(removal: &RemovedObjects) -> String {
    let mut out = String::new();
    if removal.files_total > 0 {
        let files: Vec<String> = removal.files.iter().map(|file| path(*file)).collect();
        assert_eq!(files.len(), (removal.files_total as usize).min(64));
        out += &format!("; rels: {}", files.join(" "));
    }
    if removal.objects_total > 0 {
        let objects = removal.objects.iter().map(|item| {
            let kind = match item.kind {
                DroppedObjectKind::Database => 1,
                DroppedObjectKind::Relation => 2,
                DroppedObjectKind::Function => 3,
                DroppedObjectKind::Subscription => 5,
                DroppedObjectKind::Other(number) => number,
            };
            format!("{kind}/{}/{}", item.database, item.object)
        });
        let objects: Vec<String> = objects.collect();
        assert_eq!(objects.len(), (removal.objects_total as usize).min(64));
        out += &format!("; dropped stats: {}", objects.join(" "));
    }
    out
}

/// `relpathperm`, for the default tablespace.
fn path(file: RelFileLocator) -> String {
    assert_eq!(file.tablespace, 1663);
    format!("base/{}/{}", file.database, file.filenode)
}

/// `pg_waldump` does not print a checkpoint's time; `pg_control` holds the last one's.
fn checkpoint_time(cluster: &Cluster, log: &Log) {
    cluster.sql("checkpoint");
    let control =
        cluster.sql("select checkpoint_lsn, extract(epoch from checkpoint_time)::bigint from pg_control_checkpoint()");
    let (at, seconds) = control.split_once('|').unwrap();
    let last = cluster.switch_wal();
    let again = Log::read(&cluster.pg_wal(), &last);
    assert_eq!(again.start(), log.start());
    let digests = again.segments.iter().map(|(name, bytes)| digest::digest_segment(bytes, *name, again.size).unwrap());
    let events: Vec<WalEvent> = digests.flat_map(|digest| digest.events).collect();
    let event = events.iter().find(|event| event.lsn.get() == lsn(at)).unwrap();
    let WalEventKind::Checkpoint(checkpoint) = &event.kind else { panic!("{event:?}") };
    assert_eq!(checkpoint.time.to_timestamp().unwrap().as_second().to_string(), seconds);
}

/// A promotion: the new timeline's first segment holds the old one's bytes up to the fork, and its log is one with the
/// segments before.
#[test]
fn a_new_timeline_goes_on_with_the_log_of_the_old() {
    let options = Options::default().segment_size_mb(1).set("wal_keep_size", "1GB");
    let primary = Cluster::start(QUICK, options.clone());
    primary.run("pgbench", &["-i", "-s", "1", "-q"]).expect_ok();
    let standby = primary.standby(Options::default().set("wal_keep_size", "1GB"));
    primary.run("pgbench", &["-c", "4", "-T", "1", "-n"]).expect_ok();
    standby.promote();
    standby.run("pgbench", &["-c", "4", "-T", "1", "-n"]).expect_ok();
    let log = Log::read(&standby.pg_wal(), &standby.switch_wal());
    assert_eq!(log.timeline().get(), 2);
    let oracle = Oracle::read(&standby, &log, 2);
    oracle.compare(&log.decode(&mut SmallRng::seed_from_u64(8)));
    oracle.compare(&log.digests());

    let first = digest::digest_segment(&log.segments[0].1, log.segments[0].0, log.size).unwrap();
    let fork = first.events.iter().find_map(|event| event.kind.new_timeline()).unwrap();
    assert_eq!((fork.0.get(), fork.1.get()), (1, 2));
    let before = first.segment.previous().unwrap();
    let name = SegmentName::new(TimelineId::FIRST, before, log.size).unwrap();
    let earlier =
        digest::digest_segment(&fs::read(primary.pg_wal().join(name.to_string())).unwrap(), name, log.size).unwrap();
    digest::check_follows(&earlier, &first).unwrap();

    // The new segment under the old timeline's name is refused: the log in it is that of the new one.
    let old = SegmentName::new(TimelineId::FIRST, first.segment.next(), log.size).unwrap();
    let refused = digest::digest_segment(&log.segments[1].1, old, log.size);
    assert!(matches!(refused, Err(digest::DigestError::Timeline { found: 2, .. })), "{refused:?}");
}
