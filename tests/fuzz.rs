//! Every fuzz target without a fuzzer: its corpus, and some thousand seeded mutations of it, within the ordinary tests.
//! `make fuzz` searches for as long as one likes.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test says what it expects by panicking"
)]

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};

type Target = (&'static str, &'static str, fn(&[u8]));

/// `name => path` of each body; the file of that name in `fuzz/fuzz_targets/` calls the same.
macro_rules! targets {
    ($($name:ident => $path:path),* $(,)?) => {
        &[$((stringify!($name), stringify!($path), $path as fn(&[u8]))),*]
    };
}

const TARGETS: &[Target] = targets! {
    backup_label => walkeep::postgres::format::backup_label::fuzz,
    conninfo => walkeep::postgres::wire::conninfo::fuzz,
    control => walkeep::postgres::format::pg_control::fuzz,
    datadir => walkeep::postgres::format::datadir::fuzz,
    manifest => walkeep::postgres::archive::manifest::fuzz,
    page_checksum => walkeep::postgres::format::page::fuzz,
    pgpass => walkeep::postgres::wire::pgpass::fuzz,
    rdb => walkeep::redis::format::rdb::fuzz,
    replication_command => walkeep::postgres::wire::command::fuzz,
    replication_message => walkeep::postgres::wire::message::fuzz,
    resp => walkeep::redis::format::resp::fuzz,
    sealed_object => walkeep::vault::seal::fuzz,
    snapshot_manifest => walkeep::redis::archive::fuzz,
    spooled_stretch => walkeep::redis::archive::stream::spool::fuzz,
    stored_stretch => walkeep::redis::verify::fuzz,
    timeline_history => walkeep::postgres::format::timeline::fuzz,
    wal_decode => walkeep::postgres::wal::decode::fuzz,
    wal_digest => walkeep::postgres::wal::digest::fuzz,
    wal_event => walkeep::postgres::wal::event::fuzz,
    wal_page => walkeep::postgres::wal::page::fuzz,
    wal_record => walkeep::postgres::wal::record::fuzz,
};

const MUTATIONS: u64 = 3_000;

/// Past this, inputs only take longer.
const MAX_LEN: usize = 1 << 16;

#[test]
fn no_target_falls_over_its_corpus_or_what_is_near_it() {
    for (name, _, body) in TARGETS {
        let seeds = corpus(name);
        for seed in &seeds {
            body(seed);
        }
        assert_eq!(first_failure(*body, &seeds, MUTATIONS), None, "{name} fails on the input with this seed");
    }
}

/// A body with a fault must be found to have one, or the test above means nothing.
#[test]
fn a_fault_is_found() {
    let faulty = |data: &[u8]| {
        if data.len() > 12 && data.starts_with(b"canary") && data[9..].contains(&0xFF) {
            let _ = data[usize::from(data[8]) + data.len()];
        }
    };
    std::panic::set_hook(Box::new(|_| {}));
    let found = first_failure(faulty, &[b"canary, and some more".to_vec()], MUTATIONS);
    drop(std::panic::take_hook());
    assert!(found.is_some());
}

/// Each body in `src` is a target here, and each target here is one for cargo-fuzz.
#[test]
fn every_body_is_a_target_here_and_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for file in with_a_body(&root.join("src")) {
        // A body may be exported by a module above its file.
        let module =
            file.strip_prefix(root.join("src")).unwrap().with_extension("").to_string_lossy().replace('/', "::");
        let target = TARGETS.iter().any(|(_, path, _)| {
            let path: String = path.split_whitespace().collect();
            module.starts_with(path.trim_start_matches("walkeep::").trim_end_matches("::fuzz"))
        });
        assert!(target, "{} has a fuzz body that is no target in tests/fuzz.rs", file.display());
    }

    let manifest = fs::read_to_string(root.join("fuzz/Cargo.toml")).unwrap();
    for (name, path, _) in TARGETS {
        let call: String = path.split_whitespace().collect();
        let file = fs::read_to_string(root.join(format!("fuzz/fuzz_targets/{name}.rs"))).unwrap_or_default();
        assert!(file.contains(&format!("{call}(data)")), "fuzz/fuzz_targets/{name}.rs does not call {call}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "fuzz/Cargo.toml does not name {name}");
    }
    let names: BTreeSet<&str> = TARGETS.iter().map(|(name, ..)| *name).collect();
    for entry in fs::read_dir(root.join("fuzz/corpus")).unwrap() {
        let folder = entry.unwrap().file_name().into_string().unwrap();
        assert!(names.contains(folder.as_str()), "fuzz/corpus/{folder} is no target's");
    }
}

fn with_a_body(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let has_one = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.contains("\npub fn fuzz(data: &[u8])"));
    entries
        .flat_map(
            |path| if path.is_dir() { with_a_body(&path) } else { Vec::from_iter(has_one(&path).then_some(path)) },
        )
        .collect()
}

fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

/// The seed of the first mutation on which the body panics.
fn first_failure(body: fn(&[u8]), seeds: &[Vec<u8>], mutations: u64) -> Option<u64> {
    (0..mutations).find(|seed| {
        let input = mutate(seeds, *seed);
        catch_unwind(|| body(&input)).is_err()
    })
}

/// One to eight changes to a seed, or to nothing.
fn mutate(seeds: &[Vec<u8>], seed: u64) -> Vec<u8> {
    let random = &mut SmallRng::seed_from_u64(seed);
    let mut input = if seeds.is_empty() { Vec::new() } else { seeds[random.random_range(0..seeds.len())].clone() };
    for _ in 0..random.random_range(1..=8) {
        change(&mut input, seeds, random);
    }
    input.truncate(MAX_LEN);
    input
}

fn change(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut SmallRng) {
    const EXTREMES: [u64; 8] = [0, 1, 0x7F, 0xFF, 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFF, u64::MAX];
    let at = random.random_range(0..=input.len());
    match random.random_range(0..7) {
        0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
        1 if at < input.len() => input[at] = random.random(),
        2 => input.truncate(at),
        3 => {
            let more: Vec<u8> = (0..random.random_range(1..40)).map(|_| random.random()).collect();
            input.splice(at..at, more);
        }
        // A length that is too much, in both byte orders and several widths.
        4 => {
            let value = EXTREMES[random.random_range(0..EXTREMES.len())].to_le_bytes();
            let width = 1 << random.random_range(0..4);
            let end = (at + width).min(input.len());
            input.splice(at..end, value[..width].iter().copied());
        }
        5 if !seeds.is_empty() => {
            let other = &seeds[random.random_range(0..seeds.len())];
            let from = random.random_range(0..=other.len());
            input.truncate(at);
            input.extend_from_slice(&other[from..]);
        }
        _ => {
            let end = random.random_range(at..=input.len());
            input.drain(at..end);
        }
    }
}
