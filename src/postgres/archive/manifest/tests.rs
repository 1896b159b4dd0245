//! Tests of the manifest's bytes.

use std::path::PathBuf;

use proptest::prelude::*;

use super::codec::FUZZ_SUMMARY;
use super::{
    BackupDefects, BackupSummary, DamagedPage, EntryContent, Manifest, ManifestChunk, ManifestEntry, ManifestError,
    fuzz,
};
use crate::postgres::archive::chunks::{ChunkName, PackId};

fn summary() -> BackupSummary {
    BackupSummary::from_bytes(FUZZ_SUMMARY.as_bytes()).unwrap()
}

fn chunk(byte: u8, pack: u32, offset: u32, len: u32) -> ManifestChunk {
    ManifestChunk { name: ChunkName::from_bytes([byte; 32]), pack, offset, len }
}

fn file(path: &str, len: u64, chunks: &[u32]) -> ManifestEntry {
    let content = EntryContent::File { len, hash: [9; 32], chunks: chunks.to_vec() };
    ManifestEntry { path: path.into(), mode: 0o600, modified: 1_790_000_000, content }
}

fn manifest() -> Manifest {
    Manifest {
        summary: summary(),
        packs: vec![PackId::from_bytes([1; 16]), PackId::from_bytes([2; 16])],
        chunks: vec![chunk(1, 0, 0, 8192), chunk(2, 0, 8192, 100), chunk(3, 1, 0, 131_072)],
        entries: vec![
            ManifestEntry { path: "base".into(), mode: 0o700, modified: -5, content: EntryContent::Directory },
            file("base/1259", 8292, &[0, 1]),
            file("base/1260", 131_072 * 2 + 8192, &[2, 2, 0]),
            file("empty", 0, &[]),
            ManifestEntry {
                path: "link".into(),
                mode: 0o777,
                modified: 0,
                content: EntryContent::Link("/elsewhere".into()),
            },
        ],
        backup_label: b"START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\xFF".to_vec(),
        tablespace_map: Some(b"16384 /srv/a\\\nb\n".to_vec()),
    }
}

#[test]
fn reads_what_it_wrote() {
    let mut manifest = manifest();
    assert_eq!(Manifest::from_bytes(summary(), &manifest.to_bytes()).unwrap(), manifest);
    manifest.tablespace_map = None;
    assert_eq!(Manifest::from_bytes(summary(), &manifest.to_bytes()).unwrap(), manifest);
    assert_eq!(BackupSummary::from_bytes(&summary().to_bytes()).unwrap(), summary());
}

#[test]
fn defects_are_named_up_to_a_limit_and_old_readers_overlook_them() {
    assert!(!String::from_utf8(summary().to_bytes()).unwrap().contains("defects"), "whole, as it always was");
    let page = |block| DamagedPage { file: "base/5/16384".into(), block };
    let missing = ["base/5/3", "base/5/2", "base/5/3"].map(str::to_owned).to_vec();
    let defects = BackupDefects::new((missing, 4), ((0..1500).rev().map(page).collect(), 0));
    assert_eq!(defects.missing_files, ["base/5/2", "base/5/3"]);
    assert_eq!((defects.missing_file_count, defects.damaged_page_count), (6, 1500));
    assert_eq!((defects.damaged_pages.len(), &defects.damaged_pages[0]), (1000, &page(0)));
    let shown = defects.to_string();
    assert!(shown.starts_with("6 files are missing: base/5/2, base/5/3, and 4 more; 1500 pages are damaged: block 0"));
    assert!(shown.ends_with("block 4 of base/5/16384, and 1495 more"), "{shown}");
    let with = BackupSummary { defects, left_out: vec!["pg_hba.conf".into()], ..summary() };
    assert_eq!(BackupSummary::from_bytes(&with.to_bytes()).unwrap(), with);
    assert_eq!(
        BackupDefects::new((vec!["a".into()], 0), (vec![page(1)], 0)).to_string(),
        "1 file is missing: a; 1 page is damaged: block 1 of base/5/16384"
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refused = |change: &dyn Fn(&mut Manifest), word: &str| {
        let mut wrong = manifest();
        change(&mut wrong);
        let error = Manifest::from_bytes(summary(), &wrong.to_bytes()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    refused(&|m| m.entries[3] = file("base/1259", 0, &[]), "twice");
    for path in ["", "/etc/passwd", "..", "base/../../x", "./base", "a//b", "a/./b", "a/", "a/.", "a\0b"] {
        refused(&|m| m.entries[3] = file(path, 0, &[]), "leads out");
    }
    refused(&|m| m.entries[3] = file("x", 0, &[3]), "not in the list");
    refused(&|m| m.entries[3] = file("x", 8191, &[0]), "not as long");
    refused(&|m| m.chunks[0].pack = 2, "nowhere");
    refused(&|m| m.chunks[0].len = 0, "nowhere");
    refused(&|m| m.chunks[0].offset = u32::MAX, "nowhere");
    refused(&|m| m.entries[3].path = PathBuf::from("x".repeat(4097)), "limit");
    let mut newer = manifest().to_bytes();
    newer[0] = 2;
    assert_eq!(Manifest::from_bytes(summary(), &newer).unwrap_err(), ManifestError::Newer(2));
    let newer = FUZZ_SUMMARY.replace("\"format\":1", "\"format\":7");
    assert_eq!(BackupSummary::from_bytes(newer.as_bytes()).unwrap_err(), ManifestError::Newer(7));
}

#[test]
fn cut_or_lengthened_it_is_refused() {
    let whole = manifest().to_bytes();
    for len in 0..whole.len() {
        assert!(Manifest::from_bytes(summary(), &whole[..len]).is_err(), "cut to {len}");
    }
    assert!(Manifest::from_bytes(summary(), &[&whole[..], &[0]].concat()).is_err());
}

/// Bytes as they were first written; they must read for ever.
#[test]
fn the_golden_manifest_reads() {
    let golden = [
        "01 01 01010101010101010101010101010101",
        "01 0202020202020202020202020202020202020202020202020202020202020202 00 8040 64",
        "02 04 62617365 c003 09 00",
        "06 622f31323539 8003 00 02 64 0909090909090909090909090909090909090909090909090909090909090909 01 00",
        "03 4c420a 00",
    ]
    .concat()
    .replace(' ', "");
    let bytes: Vec<u8> = golden
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    let expected = Manifest {
        summary: summary(),
        packs: vec![PackId::from_bytes([1; 16])],
        chunks: vec![chunk(2, 0, 8192, 100)],
        entries: vec![
            ManifestEntry { path: "base".into(), mode: 0o700, modified: -5, content: EntryContent::Directory },
            ManifestEntry { modified: 0, ..file("b/1259", 100, &[0]) },
        ],
        backup_label: b"LB\n".to_vec(),
        tablespace_map: None,
    };
    assert_eq!(Manifest::from_bytes(summary(), &bytes).unwrap(), expected);
    assert_eq!(expected.to_bytes(), bytes);
}

proptest! {
    #[test]
    fn any_change_is_refused_or_reads_as_something_whole(at in any::<prop::sample::Index>(), mask in 1..=255_u8) {
        let mut bytes = manifest().to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= mask;
        fuzz(&bytes);
    }

    #[test]
    fn anything_is_survived(data in prop::collection::vec(any::<u8>(), 0..2000)) {
        fuzz(&data);
    }
}
