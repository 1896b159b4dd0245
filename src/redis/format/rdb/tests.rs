//! Files that servers wrote, whole, cut, split and bent.

use std::path::{Path, PathBuf};

use proptest::prelude::*;

use super::*;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rdb")
}

fn walk(bytes: &[u8]) -> Result<RdbSummary, RdbError> {
    walk_in(&[bytes], RdbLimits::default())
}

fn walk_in(pieces: &[&[u8]], limits: RdbLimits) -> Result<RdbSummary, RdbError> {
    let mut walker = RdbWalker::new(limits);
    for piece in pieces {
        walker.push(piece)?;
    }
    walker.finish()
}

/// As in `expected.txt`, but for the order.
fn told(walk: &RdbSummary) -> Vec<String> {
    let of = |(number, database): (&u64, &RdbDatabase)| {
        let kind = |(kind, count): (&RdbValueKind, &u64)| {
            format!("{number}:{}={count}", serde_json::to_value(kind).unwrap().as_str().unwrap())
        };
        let expiring = (database.with_expiry > 0).then(|| format!("{number}:expiring={}", database.with_expiry));
        database.kinds.iter().map(kind).chain(expiring).collect::<Vec<_>>()
    };
    let mut told: Vec<String> = walk.databases.iter().flat_map(of).collect();
    told.sort();
    told
}

fn expected() -> Vec<(String, Vec<u8>, Vec<String>)> {
    let list = std::fs::read_to_string(fixtures().join("expected.txt")).unwrap();
    let of = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let name = words.next().unwrap();
        let mut expected: Vec<String> = words.collect();
        expected.sort();
        (name.clone(), std::fs::read(fixtures().join(name)).unwrap(), expected)
    };
    list.lines().map(of).collect()
}

const DAMAGED: &str = "hdt3213/zipmap_big_len.rdb";

#[test]
fn every_file_has_the_keys_that_others_found_in_it() {
    let files = expected();
    assert!(files.len() > 40);
    for (name, bytes, expected) in files {
        let walk = walk(&bytes);
        if name == DAMAGED {
            assert!(matches!(walk, Err(RdbError::Damaged { what: ziplist::BROKEN_ZIPMAP, .. })), "{walk:?}");
            continue;
        }
        let walk = walk.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(told(&walk), expected, "{name}");
        assert_eq!((walk.stopped.as_ref(), walk.unwalked, walk.bytes), (None, 0, bytes.len() as u64), "{name}");
    }
}

#[test]
fn every_file_cut_anywhere_is_cut_off() {
    for (name, bytes, _) in expected() {
        let step = bytes.len() / 500 + 1;
        for end in (0..bytes.len()).step_by(step).filter(|_| name != DAMAGED) {
            assert_eq!(walk(&bytes[..end]), Err(RdbError::Truncated { at: end as u64 }), "{name} at {end}");
        }
        let more = [&bytes[..], b"x"].concat();
        let end = bytes.len() as u64;
        assert!(name == DAMAGED || walk(&more) == Err(RdbError::Trailing { at: end }), "{name}");
    }
}

#[test]
fn every_file_is_the_same_in_any_pieces() {
    for (name, bytes, _) in expected() {
        let limits = || RdbLimits { nested: 64, expired_by: Some(1_700_000_000_000) };
        let whole = walk_in(&[&bytes], limits());
        let singles: Vec<&[u8]> = bytes.chunks(1).collect();
        assert_eq!(walk_in(&singles, limits()), whole, "{name} byte by byte");
        for size in [2, 3, 7, 23, 24, 25, 1000] {
            assert_eq!(walk_in(&bytes.chunks(size).collect::<Vec<_>>(), limits()), whole, "{name} by {size}");
        }
    }
}

/// Behind a right checksum too: the walk finds what the checksum does not.
fn resummed(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - 8;
    let sum = crc64(0, &bytes[..end]).to_le_bytes();
    bytes[end..].copy_from_slice(&sum);
    bytes
}

#[test]
fn damage_inside_is_found_behind_a_right_checksum() {
    let cases = [
        ("hdt3213/listpack.rdb", listpack::BROKEN_LISTPACK),
        ("hdt3213/set_listpack.rdb", listpack::BROKEN_LISTPACK),
        ("hdt3213/stream_listoacks_3.rdb", listpack::BROKEN_STREAM_LISTPACK),
        ("rdbtools/ziplist_with_integers.rdb", ziplist::BROKEN_ZIPLIST),
        ("rdbtools/intset_32.rdb", ziplist::BROKEN_INTSET),
        ("rdbtools/easily_compressible_string_key.rdb", lzf::BROKEN_LZF),
    ];
    for (name, what) in cases {
        let bytes = std::fs::read(fixtures().join(name)).unwrap();
        let version: u32 = std::str::from_utf8(&bytes[5..9]).unwrap().parse().unwrap();
        let bent = (9..bytes.len() - 9).map(|at| {
            let mut bytes = bytes.clone();
            bytes[at] = bytes[at].wrapping_add(1);
            walk(&if version < 5 { bytes } else { resummed(bytes) })
        });
        let found =
            bent.filter(|walk| matches!(walk, Err(RdbError::Damaged { what: found, .. }) if *found == what)).count();
        assert!(found > 2, "{name}: {what} found {found} times");
    }
}

#[test]
fn the_checksum() {
    let bytes = std::fs::read(fixtures().join("hdt3213/listpack.rdb")).unwrap();
    assert_eq!(walk(&bytes).unwrap().checksum, RdbChecksum::Verified);
    let end = bytes.len() - 8;
    let mut none = bytes.clone();
    none[end..].fill(0);
    let none = walk(&none).unwrap();
    assert_eq!(none.checksum, RdbChecksum::Disabled);
    assert!(none.warnings()[0].contains("rdbchecksum"));
    let mut wrong = bytes.clone();
    wrong[end] ^= 1;
    assert!(matches!(walk(&wrong), Err(RdbError::Checksum { .. })));
    let old = std::fs::read(fixtures().join("rdbtools/intset_16.rdb")).unwrap();
    assert_eq!(walk(&old).unwrap().checksum, RdbChecksum::Absent);
}

#[test]
fn what_is_no_rdb() {
    for bytes in [&b"PGDMP0001"[..], b"REDIS00a1", b"REDIS0000", b"VALKEY0x0", b"*1\r\n$4\r\nPING\r\n"] {
        assert!(matches!(walk(bytes), Err(RdbError::Header { .. })), "{bytes:?}");
    }
    assert_eq!(walk(b"REDIS00"), Err(RdbError::Truncated { at: 7 }));
    let mut walker = RdbWalker::new(RdbLimits::default());
    let first = walker.push(b"nothing of the kind");
    assert!(first.is_err());
    assert_eq!(walker.push(b"more"), first, "an error stays");
}

fn small(magic: &[u8], body: &[u8]) -> Vec<u8> {
    resummed([magic, body, &[0xff], &[0; 8]].concat())
}

/// A type of the future: counted up to there, opaque from there, and still found to be cut or damaged.
#[test]
fn a_newer_code_stops_the_walk_and_keeps_the_checksum() {
    let file = small(b"REDIS0013", b"\xfe\x03\x00\x01a\x01b\x63anything\xff\xff, really");
    for pieces in [vec![&file[..]], file.chunks(1).collect(), file.chunks(5).collect()] {
        let walk = walk_in(&pieces, RdbLimits::default()).unwrap();
        assert_eq!(walk.stopped, Some(WalkStop { at: 16, code: 0x63, opaque: file.len() as u64 - 16 }));
        assert_eq!((walk.keys(), walk.checksum, walk.version), (1, RdbChecksum::Verified, 13));
        assert!(walk.warnings()[0].contains("byte 16"), "{:?}", walk.warnings());
    }
    for end in 17..file.len() {
        assert!(walk(&file[..end]).is_err(), "{end}");
    }
    let mut bent = file.clone();
    bent[20] ^= 1;
    assert!(matches!(walk(&bent), Err(RdbError::Checksum { .. })));
    // 22 is a hash to both, in another form to each; slots on the move are Valkey's alone.
    let valkey = small(b"VALKEY080", b"\xf3\x01j\x01\x00\x05\x16\x01h\x01\x01f\x01v\xff\xff\xff\xff\xff\xff\xff\xff");
    let walked = walk(&valkey).unwrap();
    assert_eq!((walked.magic, walked.stopped, walked.databases[&0].with_field_expiry), (RdbMagic::Valkey, None, 1));
    let redis = small(b"REDIS0013", b"\xf3\x01j\x01\x00\x05");
    assert_eq!(walk(&redis).unwrap().stopped.unwrap().code, 0xf3);
}

#[test]
fn modules_are_named_and_walked_without_them() {
    let module = walk(&std::fs::read(fixtures().join("rdbtools/redis_40_with_module.rdb")).unwrap()).unwrap();
    assert_eq!(module.modules.iter().collect::<Vec<_>>(), ["ReJSON-RL"]);
    assert!(module.warnings().iter().any(|warning| warning.contains("ReJSON-RL")));
    let aux = walk(&std::fs::read(fixtures().join("rdbtools/redis_60_with_module_aux.rdb")).unwrap()).unwrap();
    assert_eq!(aux.modules.iter().collect::<Vec<_>>(), ["test__rdb"]);
    assert_eq!(aux.aux["redis-ver"], "999.999.999");
    let functions = walk(&std::fs::read(fixtures().join("hdt3213/function.rdb")).unwrap()).unwrap();
    assert_eq!(functions.functions, 1);
}

#[test]
fn expiry_and_empty_collections_are_counted() {
    let file = small(
        b"REDIS0009",
        b"\xfc\x10\0\0\0\0\0\0\0\x00\x01a\x01b\xfd\x01\0\0\0\x00\x01c\xc0\x05\x01\x01l\x00\x02\x01s\x01\x01m",
    );
    let walk = |by| walk_in(&[&file], RdbLimits { expired_by: Some(by), ..RdbLimits::default() }).unwrap();
    let database = &walk(17).databases[&0];
    assert_eq!((database.keys, database.with_expiry, database.expired, database.empty), (4, 2, 1, 1));
    assert_eq!(walk(16).databases[&0].expired, 0, "a key lives in its last millisecond");
    assert_eq!(walk(1001).databases[&0].expired, 2);
}

/// Strings of any length flow by; a nested encoding past the bound is counted, not looked into.
#[test]
fn memory_is_bounded() {
    let mut walker = RdbWalker::new(RdbLimits { nested: 1 << 10, expired_by: None });
    walker.push(b"REDIS0012\x00\x01k\x81\0\0\0\x40\0\0\0\0").unwrap();
    let piece = vec![b'x'; 1 << 20];
    // A part of 256 GiB: nothing is kept of it.
    for _ in 0..64 {
        walker.push(&piece).unwrap();
    }
    assert!(!walker.is_complete());
    assert_eq!(walker.finish(), Err(RdbError::Truncated { at: 21 + (64 << 20) }));

    // A listpack of 4 KiB that is none.
    let blob = [&b"\x10\x01h\x50\x00"[..], &[b'?'; 4096]].concat();
    let file = small(b"REDIS0012", &blob);
    let walked = walk_in(&[&file], RdbLimits { nested: 1 << 10, expired_by: None }).unwrap();
    assert_eq!((walked.unwalked, walked.databases[&0].empty), (1, 0));
    assert!(walked.warnings()[0].contains("larger"));
    assert!(matches!(walk(&file), Err(RdbError::Damaged { what: listpack::BROKEN_LISTPACK, .. })));
}

#[test]
fn absurd_lengths() {
    for body in [
        &b"\x01\x01l\x81\xff\xff\xff\xff\xff\xff\xff\xff"[..],
        b"\x00\x81\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x00\x01k\xc3\x81\xff\xff\xff\xff\xff\xff\xff\xff\x81\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x10\x01h\xc3\x05\x81\xff\xff\xff\xff\xff\xff\xff\xff\x00a\x00a",
    ] {
        let file = [b"REDIS0012", body].concat();
        assert!(walk(&file).is_err(), "{body:x?}");
    }
}

#[test]
fn a_walk_as_json_and_back() {
    for (name, bytes, _) in expected().into_iter().filter(|(name, ..)| name != DAMAGED) {
        let walk = walk(&bytes).unwrap();
        let json = serde_json::to_string(&walk).unwrap();
        assert_eq!(serde_json::from_str::<RdbSummary>(&json).unwrap(), walk, "{name}");
    }
}

proptest! {
    #[test]
    fn any_pieces_of_anything_give_the_same(
        which in 0_usize..44, flips in proptest::collection::vec((any::<prop::sample::Index>(), 0_u8..8), 0..4),
        cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let (_, mut bytes, _) = expected().swap_remove(which);
        bytes.truncate(3000);
        for (at, bit) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
        }
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts {
            pieces.push(&bytes[from..cut]);
            from = cut;
        }
        pieces.push(&bytes[from..]);
        prop_assert_eq!(walk_in(&pieces, RdbLimits::default()), walk(&bytes));
    }
}
