//! `index rebuild`, `list` and `plan` by the program itself on a repository of real sealed segments.
//!
//! A segment is one megabyte with a hundred commits in it and a switch behind them, so that its object is small and
//! 20,000 of them take 200 MB; a digest of a busy segment of 16 MiB is some ten times as long. Each reads its trailer,
//! so what a rebuild takes is a matter of how many objects there are. "Cold": nothing of the repository and of the
//! index is in memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use walkeep::base::clock::SystemClock;
use walkeep::postgres::archive::Archive;
use walkeep::postgres::format::segment::{SegmentName, SegmentNo, SegmentSize};
use walkeep::postgres::format::time::PgTime;
use walkeep::postgres::format::timeline::TimelineId;
use walkeep::vault::repository;
use walkeep::vault::seal::CompressionLevel;
use walkeep::vault::seal::keys::KeyEncryptionKey;
use walkeep::vault::{RepositoryLocation, Vault, VaultSettings};

use super::{files, forget, middle, millis, size_of, worst};

const MEGABYTE: usize = 1 << 20;
const COMMITS: u64 = 100;
/// A commit's record, and where the switch stands behind all of them.
const RECORD: u64 = 40;
const SWITCH_AT: u64 = 40 + COMMITS * RECORD;
/// Microseconds between two commits.
const BETWEEN: u64 = 10_000;

/// Segment `number` of a PostgreSQL 15 (`xlog_internal.h`, `xlogrecord.h`).
fn segment(number: u64) -> (SegmentName, Bytes) {
    let size = SegmentSize::new(MEGABYTE as u64).unwrap();
    let start = SegmentNo::new(number).start(size).get();
    let mut bytes = Vec::with_capacity(MEGABYTE);
    bytes.extend(0xD110_u16.to_le_bytes());
    bytes.extend(2_u16.to_le_bytes()); // XLP_LONG_HEADER
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(start.to_le_bytes());
    bytes.extend(0_u64.to_le_bytes()); // xlp_rem_len and padding
    bytes.extend(7_u64.to_le_bytes());
    bytes.extend((MEGABYTE as u32).to_le_bytes());
    bytes.extend(8192_u32.to_le_bytes());
    let mut previous = start - MEGABYTE as u64 + SWITCH_AT;
    for nth in 0..COMMITS {
        let at = number * COMMITS + nth;
        let time = (at * BETWEEN).to_le_bytes();
        let body = [&[0xFF, 8], time.as_slice()].concat();
        record(&mut bytes, previous, (1, 0x00), (at as u32 + 3, &body));
        previous = start + 40 + nth * RECORD;
    }
    record(&mut bytes, previous, (0, 0x40), (0, &[]));
    bytes.resize(MEGABYTE, 0);
    (SegmentName::new(TimelineId::FIRST, SegmentNo::new(number), size).unwrap(), bytes.into())
}

/// A record of a resource manager, with its transaction and its body; the CRC is that of the body and then of the
/// header.
fn record(bytes: &mut Vec<u8>, previous: u64, (manager, info): (u8, u8), (xid, body): (u32, &[u8])) {
    let mut header = Vec::new();
    header.extend((24 + body.len() as u32).to_le_bytes());
    header.extend(xid.to_le_bytes());
    header.extend(previous.to_le_bytes());
    header.extend([info, manager, 0, 0]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(body), &header);
    header.extend(crc.to_le_bytes());
    bytes.extend(header);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(8), 0);
}

/// An installation of walkeep in a folder of its own.
struct Site(tempfile::TempDir);

impl Site {
    fn join(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn repository(&self) -> String {
        format!("file://{}", self.join("repository").display())
    }

    /// Makes the configuration, and the repository with so many segments.
    fn with(objects: u64) -> Site {
        let site = Site(tempfile::tempdir().unwrap());
        let init = ["init", "--cluster", "main", "--repository", &site.repository(), "--state-dir"].map(str::to_owned);
        let mut command = Command::new(env!("CARGO_BIN_EXE_walkeep"));
        command.args(init).arg(site.join("state")).arg("--config").arg(site.join("walkeep.toml"));
        let made = command.output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let text = fs::read_to_string(site.join("walkeep.toml")).unwrap();
        let key_file = text.lines().find_map(|line| line.strip_prefix("key-file = \"")?.split('"').next()).unwrap();
        let key = fs::read_to_string(site.0.path().join(key_file)).unwrap();
        let place = RepositoryLocation {
            name: "bench".into(),
            url: site.repository(),
            options: repository::RepositoryOptions::new(),
        };
        let settings = VaultSettings {
            places: vec![place],
            key: Some(KeyEncryptionKey::from_text(&key).unwrap()),
            level: CompressionLevel::Fixed(1),
            threads: 1,
            clock: SystemClock::shared(),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let vault = Arc::new(Vault::open(settings).await.unwrap());
            let archive = Arc::new(Archive::new(vault, "main".parse().unwrap()));
            let puts = stream::iter(1..=objects).map(|number| {
                let archive = Arc::clone(&archive);
                tokio::spawn(async move {
                    let (name, bytes) = segment(number);
                    archive.put_segment(name, bytes).await.unwrap()
                })
            });
            puts.buffer_unordered(16).for_each(|put| async { drop(put.unwrap()) }).await;
        });
        site
    }

    /// Runs the program; how long it took, and how much of that some processor was busy with it.
    fn run(&self, arguments: &[&str], codes: &[i32]) -> (Duration, Duration) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_walkeep"));
        command.env("WALKEEP_CONFIG", self.join("walkeep.toml")).args(arguments).stdin(Stdio::null());
        let (busy, begun) = (busy_children(), Instant::now());
        let ended = command.output().unwrap();
        let took = begun.elapsed();
        let code = ended.status.code();
        assert!(codes.iter().any(|expected| code == Some(*expected)), "{}", String::from_utf8_lossy(&ended.stderr));
        (took, busy_children() - busy)
    }
}

/// Processor time of all children that have ended (`cutime`, `cstime` in proc(5)), in hundredths of a second.
fn busy_children() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<u64> =
        stat.rsplit(')').next().unwrap().split_whitespace().map(|field| field.parse().unwrap_or(0)).collect();
    Duration::from_millis((fields[13] + fields[14]) * 10)
}

fn pages_forgotten(dirs: &[&Path]) {
    dirs.iter().for_each(|dir| forget(dir));
}

/// Makes the repository and measures the commands.
pub(super) fn measure(objects: u64) {
    let begun = Instant::now();
    let site = Site::with(objects);
    let (repository, state) = (site.join("repository"), site.join("state"));
    let stored = size_of(&repository);
    println!(
        "\n{objects} segments in a repository of {} files, {:.0} MB, made in {:.0} s",
        files(&repository).len(),
        stored as f64 / 1e6,
        begun.elapsed().as_secs_f64()
    );
    for cold in [true, false] {
        if cold {
            pages_forgotten(&[&repository]);
        }
        let (took, busy) = site.run(&["index", "rebuild"], &[0]);
        println!(
            "index rebuild, {}: {:.1} s, {:.0} segments/s; processors were busy for {:.1} s of it",
            if cold { "cold" } else { "warm" },
            took.as_secs_f64(),
            objects as f64 / took.as_secs_f64(),
            busy.as_secs_f64()
        );
    }
    // There is no backup, so a plan says where the moment is and that nothing leads there.
    let at = |number: u64| PgTime::from_pg_micros((number * COMMITS * BETWEEN) as i64).to_string();
    let moment = at(objects / 2);
    let commands: [(&str, Vec<&str>, i32); 3] = [
        ("list", vec!["list", "postgres"], 0),
        ("plan for a moment", vec!["plan", "postgres", "--target-time", &moment], 3),
        ("plan for the newest point", vec!["plan", "postgres"], 3),
    ];
    println!("{:<34} {:>12} {:>12} {:>12} {:>12}", "the whole program", "warm", "worst", "cold", "worst");
    for (name, arguments, code) in commands {
        let mut times = [Vec::new(), Vec::new()];
        for nth in 0..40 {
            let cold = nth % 4 == 3;
            if cold {
                pages_forgotten(&[&repository, &state]);
            }
            times[usize::from(cold)].push(site.run(&arguments, &[code]).0);
        }
        let [warm, cold] = &times;
        let [warm, warm_worst, cold, cold_worst] = [middle(warm), worst(warm), middle(cold), worst(cold)].map(millis);
        println!("{name:<34} {warm:>12} {warm_worst:>12} {cold:>12} {cold_worst:>12}");
    }
}
