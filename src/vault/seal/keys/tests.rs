//! Tests of keys: text form, wrapping, rings.

use jiff::Timestamp;

use super::{
    EpochKey, EpochKeyId, KEY_OBJECT_BYTES, KeyEncryptionKey, KeyRing, ObjectEncryption, SealKeyError,
    unwrap_epoch_key, wrap_epoch_key, wrap_with, wrapped_ids,
};

/// Made with Python's hashlib: `sha256(b"walkeep-key:1:" + digits).hexdigest()[:8]`.
const TEXT: &str = "walkeep-key:1:000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f:8e4dd964";

fn fixed() -> KeyEncryptionKey {
    KeyEncryptionKey::from_text(TEXT).unwrap()
}

#[test]
fn a_key_reads_back_from_its_line() {
    assert_eq!(*fixed().to_text(), TEXT);
    let random = KeyEncryptionKey::generate().unwrap();
    let file = format!("# keep a copy of this somewhere else\n\n  {} \r\n", *random.to_text());
    assert_eq!(KeyEncryptionKey::from_text(&file).unwrap().id(), random.id());
    assert_ne!(random.id(), fixed().id());
}

#[test]
fn any_typo_is_found() {
    for at in 0..TEXT.len() {
        for wrong in ['0', '7', 'e', ':', 'x', ' '] {
            let mut typo: Vec<char> = TEXT.chars().collect();
            if typo[at] == wrong || (at > 0 && typo[at].is_ascii_whitespace()) {
                continue;
            }
            typo[at] = wrong;
            let typo: String = typo.into_iter().collect();
            if typo.trim() == TEXT {
                continue;
            }
            let error = KeyEncryptionKey::from_text(&typo).unwrap_err();
            assert!(!error.to_string().contains("000102"), "the message shows the key");
        }
        let mut swapped: Vec<char> = TEXT.chars().collect();
        if at > 0 && swapped[at] != swapped[at - 1] {
            swapped.swap(at, at - 1);
            assert!(KeyEncryptionKey::from_text(&swapped.into_iter().collect::<String>()).is_err(), "swapped at {at}");
        }
        assert!(KeyEncryptionKey::from_text(TEXT.get(..at).unwrap()).is_err(), "cut at {at}");
    }
}

#[test]
fn each_wrong_text_says_what_is_wrong() {
    let check =
        |text: &str, expected: SealKeyError| assert_eq!(KeyEncryptionKey::from_text(text).unwrap_err(), expected);
    check("", SealKeyError::Empty);
    check("# nothing\n", SealKeyError::Empty);
    check("hunter2", SealKeyError::NotAKey);
    check(&format!("{TEXT}\n{TEXT}"), SealKeyError::SeveralLines);
    check(&TEXT.replace(":1:", ":2:"), SealKeyError::NewerText("2".into()));
    check(&TEXT.replace("1c1d", "1d1c"), SealKeyError::ChecksumMismatch);
    check(&format!("{TEXT}:"), SealKeyError::NotAKey);
}

#[test]
fn a_wrapped_key_opens_with_its_key_in_its_repository_alone() {
    let (id, key) = (EpochKeyId::new(Timestamp::UNIX_EPOCH).unwrap(), EpochKey::generate().unwrap());
    let object = wrap_epoch_key(id, &key, &fixed(), "repository a").unwrap();
    let (opened_id, opened) = unwrap_epoch_key(&object, &fixed(), "repository a").unwrap();
    assert_eq!((opened_id, opened.secret()), (id, key.secret()));
    assert_eq!(wrapped_ids(&object).unwrap(), (id, fixed().id()));
    assert!(!object.windows(8).any(|w| w == &key.secret()[..8]), "the key is in the clear");

    assert_eq!(unwrap_epoch_key(&object, &fixed(), "repository b").unwrap_err(), SealKeyError::NotAuthentic(id));
    let other = KeyEncryptionKey::generate().unwrap();
    let expected = SealKeyError::WrongKey { key: id, wrapped_by: fixed().id(), given: other.id() };
    assert_eq!(unwrap_epoch_key(&object, &other, "repository a").unwrap_err(), expected);
}

#[test]
fn any_flipped_bit_or_cut_of_a_key_object_is_found() {
    let (id, key) = (EpochKeyId::new(Timestamp::UNIX_EPOCH).unwrap(), EpochKey::generate().unwrap());
    let object = wrap_epoch_key(id, &key, &fixed(), "r").unwrap();
    for bit in 0..KEY_OBJECT_BYTES * 8 {
        let mut changed = object;
        changed[bit / 8] ^= 1 << (bit % 8);
        assert!(unwrap_epoch_key(&changed, &fixed(), "r").is_err(), "bit {bit}");
        // A forger mends the checksum; the tag finds him.
        let crc = crc32fast::hash(&changed[..KEY_OBJECT_BYTES - 4]).to_le_bytes();
        changed[KEY_OBJECT_BYTES - 4..].copy_from_slice(&crc);
        assert!(
            bit >= (KEY_OBJECT_BYTES - 4) * 8 || unwrap_epoch_key(&changed, &fixed(), "r").is_err(),
            "bit {bit}, checksum mended"
        );
    }
    for len in 0..KEY_OBJECT_BYTES {
        assert!(unwrap_epoch_key(&object[..len], &fixed(), "r").is_err(), "cut to {len}");
    }
    let mut newer = object;
    newer[7] = 2;
    assert_eq!(wrapped_ids(&newer).unwrap_err(), SealKeyError::NewerObject(2));
}

/// A key object once written must open for ever.
#[test]
fn the_golden_key_object_opens() {
    let golden = include_bytes!("../testdata/key-v1.bin");
    let (id, key) = unwrap_epoch_key(golden, &fixed(), "golden").unwrap();
    assert_eq!(id.to_string(), "019318fafc00101112131415161718ff");
    assert_eq!(key.secret(), &[0x5A; 32]);
    let again = wrap_with(id, &key, &fixed(), "golden", [0xC3; 32]);
    assert_eq!(&again, golden, "the format changed without a new version");
}

#[test]
fn the_youngest_key_is_current_whatever_the_order() {
    let at = |millis| EpochKeyId::new(Timestamp::from_millisecond(millis).unwrap()).unwrap();
    let (old, middle, young) = (at(1_000), at(2_000), at(1_700_000_000_000));
    assert_eq!(young.created().as_millisecond(), 1_700_000_000_000);
    assert_eq!(young.to_string().parse::<EpochKeyId>().unwrap(), young);
    let mut ring = KeyRing::new(middle, EpochKey::from_bytes([2; 32]));
    ring.add(young, EpochKey::from_bytes([3; 32]));
    ring.add(old, EpochKey::from_bytes([1; 32]));
    assert_eq!(ring.current().0, young);
    assert_eq!(ring.current().1.secret(), &[3; 32]);
    assert_eq!(ring.get(old).unwrap().secret(), &[1; 32]);
    assert_eq!(ring.ids().collect::<Vec<_>>(), [old, middle, young]);
}

#[test]
fn debug_shows_no_secret() {
    let kek = fixed();
    let ring = KeyRing::new(EpochKeyId::NONE, EpochKey::from_bytes([0xAB; 32]));
    let shown = format!("{kek:?} {ring:?} {:?}", ObjectEncryption::Encrypted(ring.clone()));
    for secret in ["0001020304", "abab", "171, 171", "0, 1, 2"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

#[test]
fn derived_keys_differ_by_purpose_and_epoch() {
    let with = |byte| ObjectEncryption::Encrypted(KeyRing::new(EpochKeyId::NONE, EpochKey::from_bytes([byte; 32])));
    assert_eq!(with(1).derived_key("a"), with(1).derived_key("a"));
    assert_ne!(with(1).derived_key("a"), with(1).derived_key("b"));
    assert_ne!(with(1).derived_key("a"), with(2).derived_key("a"));
    assert_ne!(with(1).derived_key("a"), ObjectEncryption::None.derived_key("a"));
}
