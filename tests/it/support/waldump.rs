//! `pg_waldump` as an oracle: what PostgreSQL itself reads in a server's WAL.

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::Cluster;
use super::Scratch;
use super::process::{self, Orphan};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    /// Where it starts.
    pub(crate) lsn: u64,
    pub(crate) manager: String,
    /// From the record's header; 0 for those that end a prepared transaction.
    pub(crate) xid: u32,
    pub(crate) description: String,
}

/// The record that commits or aborts a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) lsn: u64,
    pub(crate) xid: u32,
    pub(crate) time: jiff::Timestamp,
    pub(crate) commit: bool,
    pub(crate) prepared: bool,
}

/// Every record from a position up to where the WAL in a folder ends. Positions in PostgreSQL's spelling.
pub(crate) fn records(cluster: &Cluster, folder: &Path, timeline: u32, from: &str) -> Vec<Record> {
    // pg_waldump takes the segment size from whichever segment the folder lists first, which may be one made in advance
    // and never written.
    let written = Scratch::new();
    for entry in fs::read_dir(folder).expect("list the WAL").map(|entry| entry.expect("list the WAL")) {
        let mut magic = [0; 2];
        let begun = entry.file_type().is_ok_and(|kind| kind.is_file())
            && fs::File::open(entry.path()).and_then(|mut file| file.read_exact(&mut magic)).is_ok()
            && magic != [0; 2];
        if begun {
            symlink(entry.path(), written.join(entry.file_name())).expect("link to a segment");
        }
    }
    let mut command = process::command(cluster.program("pg_waldump"), Orphan::Kill);
    command.env("TZ", "UTC").arg("-p").arg(written.path()).args(["-t", &timeline.to_string(), "-s", from]);
    let finished = process::run(command);
    // It ends with an error where the WAL ends, always.
    let records: Vec<Record> = finished.stdout.lines().filter_map(record).collect();
    assert!(!records.is_empty(), "{}\n{}", finished.command, finished.stderr);
    records
}

/// `rmgr: Transaction len (rec/tot): 34/ 34, tx: 740, lsn: 0/01B0F0A8, prev 0/01B0F068, desc: COMMIT 2026-11-22
/// 18:22:01.123456 UTC`
fn record(line: &str) -> Option<Record> {
    let after = |name: &str| line.split_once(name).map(|(_, rest)| rest.trim_start());
    let word = |name: &str| after(name)?.split([' ', ',']).next();
    Some(Record {
        lsn: lsn(word("lsn: ")?),
        manager: word("rmgr: ")?.to_owned(),
        xid: word("tx: ")?.parse().ok()?,
        description: after("desc: ")?.to_owned(),
    })
}

pub(crate) fn endings(records: &[Record]) -> Vec<Ending> {
    records.iter().filter(|record| record.manager == "Transaction").filter_map(ending).collect()
}

fn ending(record: &Record) -> Option<Ending> {
    let (kind, rest) = record.description.split_once(' ')?;
    let (commit, prepared) = match kind {
        "COMMIT" => (true, false),
        "ABORT" => (false, false),
        "COMMIT_PREPARED" => (true, true),
        "ABORT_PREPARED" => (false, true),
        _ => return None,
    };
    // `COMMIT_PREPARED 740: 2026-...`
    let (xid, rest) = match rest.split_once(": ").filter(|_| prepared) {
        Some((xid, rest)) => (xid.parse().ok()?, rest),
        None => (record.xid, rest),
    };
    let time = rest.split(" UTC").next()?.replacen(' ', "T", 1) + "Z";
    let time = time.parse().unwrap_or_else(|error| panic!("{error}: {}", record.description));
    Some(Ending { lsn: record.lsn, xid, time, commit, prepared })
}

/// From PostgreSQL's spelling.
pub(crate) fn lsn(text: &str) -> u64 {
    let (high, low) = text.split_once('/').unwrap_or_else(|| panic!("not an LSN: {text}"));
    let part = |digits| u64::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("not an LSN: {text}"));
    part(high) << 32 | part(low)
}

/// In PostgreSQL's spelling.
pub(crate) fn spell(lsn: u64) -> String {
    format!("{:X}/{:X}", lsn >> 32, lsn & 0xFFFF_FFFF)
}
