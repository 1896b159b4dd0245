//! Tests of the sealed object as a whole.

use proptest::prelude::*;

use super::keys::{EpochKey, EpochKeyId, KeyRing};
use super::sealing::seal_salted;
use super::{
    CompressionLevel, ObjectBinding, ObjectEncryption, ObjectPart, OpenError, OpenFault, OpenedObject, SealError,
    SealSpec, SealedKind, SuffixOutcome, Trailer, check_without_key, open_object, read_trailer, seal_object,
};

fn ring(byte: u8) -> ObjectEncryption {
    ObjectEncryption::Encrypted(KeyRing::new(EpochKeyId::from_bytes([byte; 16]), EpochKey::from_bytes([byte; 32])))
}

fn binding() -> ObjectBinding {
    ObjectBinding::new(SealedKind::Wal, "main/wal/00000001/00000000/000000010000000000000007")
}

/// Half text, half noise, so that both stored and compressed frames occur.
fn plain(len: usize) -> Vec<u8> {
    let mut noise = vec![0; len];
    blake3::Hasher::new().update(&len.to_le_bytes()).finalize_xof().fill(&mut noise);
    noise.iter().enumerate().map(|(at, byte)| if at / 4096 % 2 == 0 { (at / 64) as u8 } else { *byte }).collect()
}

fn sealed(plain: &[u8], protection: &ObjectEncryption) -> Vec<u8> {
    let binding = binding();
    let spec = SealSpec { frame_size: 4096, metadata: b"about it", threads: 2, ..SealSpec::new(&binding) };
    seal_object(&[plain], &spec, protection).unwrap().to_bytes().to_vec()
}

fn opened(object: &[u8], protection: &ObjectEncryption) -> Result<OpenedObject, OpenError> {
    open_object(object, &binding(), protection, 2)
}

fn fault(object: &[u8], protection: &ObjectEncryption) -> OpenFault {
    opened(object, protection).unwrap_err().fault
}

fn trailer(object: &[u8], protection: &ObjectEncryption) -> Box<Trailer> {
    match read_trailer(object, object.len() as u64, &binding(), protection).unwrap() {
        SuffixOutcome::Ready(trailer) => trailer,
        SuffixOutcome::NeedMore(more) => panic!("the whole object is not enough: {more}"),
    }
}

#[test]
fn gives_back_what_was_sealed() {
    for protection in [ring(1), ObjectEncryption::None] {
        for len in [0, 1, 4095, 4096, 4097, 8192, 20_000, 100_000] {
            let plain = plain(len);
            let object = sealed(&plain, &protection);
            let opened = opened(&object, &protection).unwrap();
            assert_eq!(opened.plain, plain);
            assert_eq!(opened.metadata, b"about it");
            assert_eq!(opened.content, *blake3::hash(&plain).as_bytes());
            let checked = check_without_key(&object).unwrap();
            assert_eq!(
                (checked.kind, checked.plain_len, checked.key),
                (SealedKind::Wal, len as u64, protection.current_id())
            );
        }
    }
}

#[test]
fn the_content_hash_may_be_left_out_where_tags_say_as_much() {
    let (plain, binding) = (plain(20_000), binding());
    let spec = SealSpec { content: false, frame_size: 4096, ..SealSpec::new(&binding) };
    for (protection, left_out) in [(ring(1), true), (ObjectEncryption::None, false)] {
        let object = seal_object(&[&plain], &spec, &protection).unwrap();
        assert_eq!(object.content == [0; 32], left_out);
        let opened = opened(&object.to_bytes(), &protection).unwrap();
        assert_eq!((opened.plain, opened.content), (plain.clone().into(), object.content));
    }
}

#[test]
fn any_flipped_bit_is_found() {
    for protection in [ring(1), ObjectEncryption::None] {
        let mut object = sealed(&plain(4396), &protection);
        for bit in 0..object.len() * 8 {
            object[bit / 8] ^= 1 << (bit % 8);
            assert!(opened(&object, &protection).is_err(), "bit {bit} of {} bytes", object.len());
            assert!(check_without_key(&object).is_err(), "bit {bit}, without the key");
            object[bit / 8] ^= 1 << (bit % 8);
        }
    }
}

#[test]
fn any_cut_or_addition_is_found() {
    for protection in [ring(1), ObjectEncryption::None] {
        let object = sealed(&plain(4396), &protection);
        for len in 0..object.len() {
            assert!(opened(&object[..len], &protection).is_err(), "cut to {len}");
            assert!(opened(&object[object.len() - len..], &protection).is_err(), "the last {len}");
        }
        assert!(opened(&[&object[..], b"x"].concat(), &protection).is_err());
        assert!(opened(&[b"x", &object[..]].concat(), &protection).is_err());
        assert!(opened(&[&object[..64], b"x", &object[64..]].concat(), &protection).is_err());
        assert!(opened(&[&object[..], &object[..]].concat(), &protection).is_err());
    }
}

/// An attacker who can mend every checksum still cannot reorder, exchange or drop frames.
#[test]
fn reordered_and_exchanged_frames_are_found_behind_mended_checksums() {
    let noise = |seed: u8| {
        let mut bytes = vec![0; 4 * 4096];
        blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
        bytes
    };
    let stored = 4096 + 16;
    let (one, two) = (sealed(&noise(1), &ring(1)), sealed(&noise(2), &ring(1)));
    let frame = |n: usize| 64 + n * stored..64 + (n + 1) * stored;
    let entry = |n: usize| 64 + 4 * stored + n * 8..64 + 4 * stored + (n + 1) * 8;

    let mut swapped = one.clone();
    swapped[frame(1)].copy_from_slice(&one[frame(2)]);
    swapped[frame(2)].copy_from_slice(&one[frame(1)]);
    assert_eq!(fault(&swapped, &ring(1)), OpenFault::Damaged(ObjectPart::Frame(1)));
    swapped[entry(1)].copy_from_slice(&one[entry(2)]);
    swapped[entry(2)].copy_from_slice(&one[entry(1)]);
    mend(&mut swapped);
    check_without_key(&swapped).unwrap();
    assert_eq!(fault(&swapped, &ring(1)), OpenFault::NotAuthentic(ObjectPart::Trailer));

    let mut exchanged = one.clone();
    exchanged[frame(3)].copy_from_slice(&two[frame(3)]);
    exchanged[entry(3)].copy_from_slice(&two[entry(3)]);
    mend(&mut exchanged);
    check_without_key(&exchanged).unwrap();
    assert_eq!(fault(&exchanged, &ring(1)), OpenFault::NotAuthentic(ObjectPart::Trailer));

    // By a range request the frames are read without the rest: their own tags find it.
    let good = trailer(&one, &ring(1));
    let range = good.stored_range(4096..8192);
    assert_eq!(range, (64 + stored) as u64..(64 + 2 * stored) as u64);
    assert_eq!(good.open_range(4096..8192, &one[frame(1)], 1).unwrap(), noise(1)[4096..8192]);
    assert!(good.open_range(4096..8192, &one[frame(2)], 1).is_err());
    assert!(good.open_range(4096..8192, &two[frame(1)], 1).is_err());
}

/// Writes the checksums of trailer and footer anew.
fn mend(object: &mut [u8]) {
    let foot = object.len() - 96;
    let frames = u32::from_le_bytes(object[foot + 64..foot + 68].try_into().unwrap()) as usize;
    let trailer = (u32::from_le_bytes(object[foot + 68..foot + 72].try_into().unwrap()) & 0x7FFF_FFFF) as usize;
    let crc = crc32fast::hash(&object[foot - trailer - frames * 8..foot]);
    object[foot + 76..foot + 80].copy_from_slice(&crc.to_le_bytes());
    let crc = crc32fast::hash(&object[foot..foot + 88]);
    object[foot + 88..foot + 92].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn an_object_opens_under_its_own_name_and_key_alone() {
    for protection in [ring(1), ObjectEncryption::None] {
        let object = sealed(&plain(9000), &protection);
        let moved = ObjectBinding::new(SealedKind::Wal, "main/wal/00000001/00000000/000000010000000000000008");
        assert_eq!(
            open_object(&object, &moved, &protection, 1).unwrap_err().fault,
            OpenFault::NotAuthentic(ObjectPart::Trailer)
        );
        let other = ObjectBinding::new(SealedKind::Pack, binding().subject());
        assert_eq!(
            open_object(&object, &other, &protection, 1).unwrap_err().fault,
            OpenFault::WrongKind(SealedKind::Wal)
        );
    }
    let object = sealed(&plain(9000), &ring(1));
    assert_eq!(fault(&object, &ring(2)), OpenFault::UnknownKey(EpochKeyId::from_bytes([1; 16])));
    let impostor =
        ObjectEncryption::Encrypted(KeyRing::new(EpochKeyId::from_bytes([1; 16]), EpochKey::from_bytes([9; 32])));
    assert_eq!(fault(&object, &impostor), OpenFault::NotAuthentic(ObjectPart::Trailer));
}

#[test]
fn encrypted_and_clear_are_not_taken_for_each_other() {
    let (encrypted, clear) = (sealed(b"plain", &ring(1)), sealed(b"plain", &ObjectEncryption::None));
    assert_eq!(fault(&encrypted, &ObjectEncryption::None), OpenFault::Encrypted);
    assert_eq!(fault(&clear, &ring(1)), OpenFault::NotEncrypted);
}

#[test]
fn nothing_readable_is_left_outside() {
    let text = b"the quick brown fox jumps over the lazy dog".repeat(3);
    let object = sealed(&text, &ring(1));
    for secret in [&b"quick"[..], b"about", b"lazy"] {
        assert!(!object.windows(secret.len()).any(|window| window == secret));
    }
    assert_ne!(object, sealed(&text, &ring(1)), "two objects of one content are alike");
}

#[test]
fn a_newer_format_is_named_as_such() {
    let mut object = sealed(b"plain", &ring(1));
    object[7] = 2;
    assert_eq!(fault(&object, &ring(1)), OpenFault::Newer(2));
    assert_eq!(fault(b"not a sealed object at all", &ring(1)), OpenFault::NotSealed);
    assert_eq!(fault(b"", &ring(1)), OpenFault::NotSealed);
}

#[test]
fn the_end_alone_opens_the_trailer_and_says_how_much_it_needs() {
    let plain = plain(100_000);
    for protection in [ring(1), ObjectEncryption::None] {
        let object = sealed(&plain, &protection);
        let ask = |len: usize| {
            read_trailer(&object[object.len() - len..], object.len() as u64, &binding(), &protection).unwrap()
        };
        let SuffixOutcome::NeedMore(first) = ask(10) else { panic!("ten bytes were enough") };
        let SuffixOutcome::NeedMore(second) = ask(first as usize) else { panic!("the footer alone was enough") };
        let SuffixOutcome::Ready(trailer) = ask(second as usize) else { panic!("what it asked for was not enough") };
        assert_eq!((trailer.metadata(), trailer.plain_len()), (&b"about it"[..], 100_000));
        for range in [0..1, 4095..4097, 5_000..60_000, 99_999..100_000, 0..100_000, 7..7] {
            let stored = trailer.stored_range(range.clone());
            let stored = &object[stored.start as usize..stored.end as usize];
            let expected = &plain[range.start as usize..range.end as usize];
            assert_eq!(trailer.open_range(range, stored, 2).unwrap(), expected);
        }
        assert!(trailer.open_range(0..100_001, &object, 1).is_err());
        assert!(trailer.open_range(std::ops::Range { start: 5, end: 4 }, &object, 1).is_err());
    }
}

#[test]
fn limits_are_kept() {
    let (probe, wal) = (ObjectBinding::new(SealedKind::Probe, "p"), binding());
    let long = vec![0; (1 << 20) + 1];
    assert!(
        matches!(seal_object(&[&long], &SealSpec::new(&probe), &ring(1)), Err(SealError::TooLarge { len, .. }) if len == (1 << 20) + 1)
    );
    for frame_size in [0, 1, 2048, 5000, 8 << 20] {
        let spec = SealSpec { frame_size, ..SealSpec::new(&wal) };
        assert!(matches!(seal_object(&[b"x"], &spec, &ring(1)), Err(SealError::FrameSize(_))));
    }
    // A forged length beyond what the kind allows is refused before anything is allocated.
    let mut object = sealed(&plain(9000), &ObjectEncryption::None);
    let foot = object.len() - 96;
    object[foot + 80..foot + 88].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    mend(&mut object);
    assert_eq!(fault(&object, &ObjectEncryption::None), OpenFault::TooLarge { len: 1 << 40, max: 1 << 30 });
}

#[test]
fn debug_shows_neither_key_nor_content() {
    let object = sealed(b"the secret", &ring(1));
    let shown = format!("{:?}", trailer(&object, &ring(1)));
    assert!(
        shown.contains("AES-256-GCM (key redacted)") && !shown.contains("secret") && !shown.contains("[1, 1"),
        "{shown}"
    );
}

/// What was sealed once must open for ever. The object was made by this code and is decrypted in
/// `docs/format/sealed-object.md` by another.
#[test]
fn the_golden_object_opens() {
    let golden = include_bytes!("testdata/object-v1.bin");
    let binding = ObjectBinding::new(SealedKind::WalFile, "main/wal/00000002/files/00000002.history");
    let opened = open_object(golden, &binding, &ring(0x42), 1).unwrap();
    assert_eq!(opened.plain, golden_plain());
    assert_eq!(opened.metadata, b"golden metadata");

    let clear = include_bytes!("testdata/object-v1-clear.bin");
    assert_eq!(open_object(clear, &binding, &ObjectEncryption::None, 1).unwrap().plain, golden_plain());
}

fn golden_plain() -> Vec<u8> {
    [b"1\t0/5000060\tno recovery target specified\n".repeat(150), plain(8192)[4096..].to_vec()].concat()
}

/// How the golden objects were made: `cargo test --lib write_the_golden -- --ignored`. Only for a new version, under a
/// new name.
#[test]
#[ignore = "writes testdata"]
fn write_the_golden_objects() {
    let binding = ObjectBinding::new(SealedKind::WalFile, "main/wal/00000002/files/00000002.history");
    let spec = SealSpec {
        frame_size: 4096,
        metadata: b"golden metadata",
        level: CompressionLevel::Fixed(1),
        ..SealSpec::new(&binding)
    };
    for (name, protection) in [("object-v1.bin", ring(0x42)), ("object-v1-clear.bin", ObjectEncryption::None)] {
        let object = seal_salted(&[&golden_plain()], &spec, &protection, [0x24; 32]).unwrap();
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src/seal/testdata").join(name);
        std::fs::write(path, object.to_bytes()).unwrap();
    }
}

#[test]
fn the_fuzz_target_survives_its_seeds() {
    for choice in 0..8 {
        for protection in [ring(7), ObjectEncryption::None] {
            super::fuzz(&[&[choice], &sealed(&plain(9000), &protection)[..]].concat());
        }
        for len in 0..400 {
            super::fuzz(&[&[choice], &plain(8192)[4096..4096 + len]].concat());
        }
    }
}

proptest! {
    #[test]
    fn any_plaintext_in_any_pieces_with_any_threads(
        plain in prop::collection::vec(any::<u8>(), 0..40_000),
        cuts in prop::collection::vec(0..40_000_usize, 0..6),
        threads in 0..4_usize,
        level in -7..6_i32,
        frame_bits in 12..16_u32,
        encrypted: bool,
    ) {
        let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut % (plain.len() + 1)).collect();
        cuts.sort_unstable();
        let mut pieces = Vec::new();
        let mut from = 0;
        for cut in cuts.into_iter().chain([plain.len()]) {
            pieces.push(&plain[from..cut]);
            from = cut;
        }
        let protection = if encrypted { ring(3) } else { ObjectEncryption::None };
        let binding = binding();
        let spec = SealSpec { frame_size: 1 << frame_bits, threads, level: CompressionLevel::Fixed(level), ..SealSpec::new(&binding) };
        let object = seal_object(&pieces, &spec, &protection).unwrap();
        let bytes = object.to_bytes();
        prop_assert_eq!(object.len, bytes.len() as u64);
        prop_assert_eq!(object.content, *blake3::hash(&plain).as_bytes());
        prop_assert_eq!(&open_object(&bytes, &binding, &protection, threads).unwrap().plain[..], &plain[..]);
    }

    #[test]
    fn the_fuzz_target_survives_anything(data in prop::collection::vec(any::<u8>(), 0..3000)) {
        super::fuzz(&data);
    }
}
