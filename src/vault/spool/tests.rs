//! What a crash, the disk, another key and another repository do to spool files.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use proptest::prelude::*;

use super::error::{SpoolError, SpoolKeyError};
use super::folder::SpoolFolder;
use super::frames::{SpoolFormat, SpoolRest};
use super::keys::SpoolProtection;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::vault::seal::keys::{EpochKey, EpochKeyId, KeyEncryptionKey, KeyRing, SealKeyError, wrap_epoch_key};
use crate::vault::seal::wrapped_keys::parse_key_object_name;
use crate::vault::seal::{ObjectEncryption, SealedKind};

static FORMAT: SpoolFormat = SpoolFormat { kind: SealedKind::WalFile, file_suffix: ".tail", max_stored_bytes: 1 << 20 };

fn key(byte: u8) -> Arc<ObjectEncryption> {
    let id = EpochKeyId::from_bytes([byte; 16]);
    Arc::new(ObjectEncryption::Encrypted(KeyRing::new(id, EpochKey::from_bytes([byte; 32]))))
}

fn folder(dir: &Path, protection: SpoolProtection) -> SpoolFolder {
    SpoolFolder::new(dir.to_owned(), "main", &FORMAT, protection)
}

fn of_key(byte: u8) -> SpoolFolder {
    folder(Path::new(""), SpoolProtection::new(key(byte)))
}

/// Bytes that do not compress.
fn noise(len: usize, seed: u8) -> Vec<u8> {
    blake3::Hasher::new().update(&[seed]).finalize_xof().take_vec(len)
}

trait TakeVec {
    fn take_vec(self, len: usize) -> Vec<u8>;
}

impl TakeVec for blake3::OutputReader {
    fn take_vec(mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.fill(&mut bytes);
        bytes
    }
}

/// A file of frames with these lengths of plaintext, and where each frame ends.
fn file_of(spool: &SpoolFolder, lens: &[usize]) -> (Vec<u8>, Vec<usize>) {
    let (mut file, mut ends, mut offset) = (Vec::new(), vec![0], 0);
    for (number, len) in lens.iter().enumerate() {
        let plain = noise(*len, u8::try_from(number).unwrap());
        file.extend(spool.frames().seal(&format!("a/{offset}"), &plain, b"").unwrap());
        offset += len;
        ends.push(file.len());
    }
    (file, ends)
}

/// How many frames open, and what follows.
fn scan(spool: &SpoolFolder, file: &[u8]) -> Result<(usize, u64, SpoolRest), SpoolError> {
    let mut frames = 0;
    let place = |at: super::FramePosition| format!("a/{}", at.plain_offset);
    let scanned = spool.frames().scan(Path::new("a.tail"), &mut &*file, place, |frame| {
        assert!(noise(frame.plain.len(), u8::try_from(frames).unwrap()) == frame.plain, "what is read was not written");
        frames += 1;
        true
    })?;
    Ok((frames, scanned.end, scanned.rest))
}

fn is_torn_or_whole(rest: &SpoolRest) -> bool {
    matches!(rest, SpoolRest::Nothing | SpoolRest::Torn)
}

/// A process that ends while it appends leaves a part of a frame. A power cut may also leave space after it, or a frame
/// of which some sectors were not written.
#[test]
fn whatever_a_crash_leaves_of_the_last_frames_is_torn() {
    let spool = of_key(1);
    let (file, ends) = file_of(&spool, &[700, 20, 3000, 5000]);
    for cut in ends[2]..=file.len() {
        let whole = ends.iter().rposition(|end| *end <= cut).unwrap();
        for zeros in [0, 3, 5000] {
            let mut left = file[..cut].to_vec();
            left.resize(cut + zeros, 0);
            let (frames, end, rest) = scan(&spool, &left).unwrap();
            // Zeros can be just what the frame has there.
            assert!(frames >= whole && end >= ends[whole] as u64, "cut at {cut}");
            // A part of the mark at the end of a frame counts as its end.
            let marked = zeros > 0 && ends.iter().any(|end| (cut..cut + 4).contains(end) && cut < *end);
            assert!(is_torn_or_whole(&rest) || marked, "cut at {cut}, {zeros} zeros: {rest:?}");
        }
    }
    for sector in (ends[3] / 512 + 1)..(file.len() / 512) {
        let mut left = file.clone();
        left[sector * 512..(sector + 1) * 512].fill(0);
        let (frames, _, rest) = scan(&spool, &left).unwrap();
        assert!(frames == 3 && matches!(rest, SpoolRest::Torn), "sector {sector}: {rest:?}");
        // With another frame after it, it had been appended before that one was.
        let mut followed = left.clone();
        followed.extend_from_slice(&file[..ends[1]]);
        assert!(matches!(scan(&spool, &followed).unwrap().2, SpoolRest::Damaged(_)), "sector {sector}");
    }
}

/// A byte may change to anything, not only by a bit.
#[test]
fn a_byte_that_became_zero_is_damage() {
    let spool = of_key(1);
    for len in 0..600 {
        let (file, _) = file_of(&spool, &[len]);
        for at in (0..file.len()).filter(|at| file[*at] != 0 && (*at < 8 || *at + 8 > file.len())) {
            let mut changed = file.clone();
            changed[at] = 0;
            let rest = scan(&spool, &changed).unwrap().2;
            assert!(matches!(rest, SpoolRest::Damaged(_)), "byte {at} of {}: {rest:?}", file.len());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// No changed bit is taken for a torn frame, wherever it is; the frames before it are read.
    #[test]
    fn a_changed_bit_is_damage(
        lens in proptest::collection::vec(0_usize..4000, 1..5), at in any::<prop::sample::Index>(), bit in 0..8
    ) {
        let spool = of_key(1);
        let (mut file, ends) = file_of(&spool, &lens);
        let at = at.index(file.len());
        file[at] ^= 1_u8 << bit;
        let before = ends.iter().rposition(|end| *end <= at).unwrap();
        let (frames, end, rest) = scan(&spool, &file).unwrap();
        prop_assert_eq!((frames, end), (before, ends[before] as u64));
        prop_assert!(matches!(rest, SpoolRest::Damaged(_)), "byte {} of {}: {:?}", at, file.len(), rest);
    }
}

#[test]
fn frames_of_an_unknown_key_are_damage_and_named() {
    let (file, ends) = file_of(&of_key(1), &[10, 20]);
    for cut in [file.len(), file.len() - 1, ends[1]] {
        let (frames, end, rest) = scan(&of_key(2), &file[..cut]).unwrap();
        let SpoolRest::Damaged(error) = rest else { panic!("{rest:?}") };
        assert_eq!((frames, end), (0, 0));
        assert!(error.to_string().contains(&format!("sealed with key {}", "01".repeat(16))), "{error}");
    }
}

#[test]
fn a_damaged_file_is_kept_whole_and_what_opens_of_it_takes_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let spool = folder(dir.path(), SpoolProtection::new(key(1)));
    let (mut file, ends) = file_of(&spool, &[100, 200, 300]);
    file[ends[2] + 9] ^= 1;
    let path = spool.path("a");
    for number in 1..=2 {
        fs::write(&path, &file).unwrap();
        let aside = spool.set_aside("a", ends[2] as u64).unwrap();
        assert_eq!(aside, dir.path().join(format!("set-aside/a.tail.{number}")));
        assert_eq!((fs::read(&aside).unwrap(), fs::read(&path).unwrap()), (file.clone(), file[..ends[2]].to_vec()));
    }
    let (frames, _, rest) = scan(&spool, &fs::read(&path).unwrap()).unwrap();
    assert!(frames == 2 && matches!(rest, SpoolRest::Nothing));
    // Nothing opens.
    let aside = spool.set_aside("a", 0).unwrap();
    assert!(!path.exists() && fs::read(aside).unwrap() == file[..ends[2]]);
    // A crash after the file got its second name.
    fs::write(&path, &file).unwrap();
    fs::hard_link(&path, dir.path().join("set-aside/a.tail.9")).unwrap();
    assert_eq!(spool.set_aside("a", ends[1] as u64).unwrap(), dir.path().join("set-aside/a.tail.9"));
    assert_eq!(fs::read(&path).unwrap(), file[..ends[1]]);
    // An earlier version set files aside in the folder itself.
    fs::write(path.with_added_extension("damaged"), &file).unwrap();
    let listed: Vec<String> = spool.list_set_aside().unwrap().into_iter().map(|file| file.stem).collect();
    assert_eq!(listed, ["a"; 5]);
    assert_eq!(spool.list(|stem| Some(stem.to_owned())).unwrap(), ["a"]);
}

fn provided(dir: &Path, by: Option<&KeyEncryptionKey>, repositories: u8) -> Result<SpoolFolder, SpoolKeyError> {
    let repositories = by.map_or(Arc::new(ObjectEncryption::None), |_| key(repositories));
    SpoolProtection::provide(dir, by, &repositories, Timestamp::UNIX_EPOCH).map(|protection| folder(dir, protection))
}

fn key_files(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir.join("spool/keys")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn the_spool_opens_beside_any_repository_and_reads_what_a_repositorys_key_sealed() {
    let dir = tempfile::tempdir().unwrap();
    let by = KeyEncryptionKey::generate().unwrap();
    let first = provided(dir.path(), Some(&by), 1).unwrap();
    let (file, _) = file_of(&first, &[10, 20]);
    let names = key_files(dir.path());
    // Another repository, another repository key.
    let second = provided(dir.path(), Some(&by), 2).unwrap();
    assert_eq!(key_files(dir.path()), names, "a second key was made");
    assert_eq!(scan(&second, &file).unwrap().0, 2);
    // An earlier version sealed the spool with the repository's key.
    let (earlier, _) = file_of(&of_key(2), &[10, 20]);
    assert_eq!(scan(&second, &earlier).unwrap().0, 2);
    assert!(matches!(scan(&first, &earlier).unwrap().2, SpoolRest::Damaged(_)));
    // What is appended to such a file is sealed with the spool's key.
    let mut grown = file_of(&of_key(2), &[10]).0;
    grown.extend(second.frames().seal("a/10", &noise(20, 1), b"").unwrap());
    assert_eq!(scan(&second, &grown).unwrap().0, 2);
    assert_eq!(scan(&of_key(2), &grown).unwrap().0, 1);
}

#[test]
fn a_spool_whose_key_does_not_unwrap_is_an_error_and_stays() {
    let dir = tempfile::tempdir().unwrap();
    let (by, other) = (KeyEncryptionKey::generate().unwrap(), KeyEncryptionKey::generate().unwrap());
    let (file, _) = file_of(&provided(dir.path(), Some(&by), 1).unwrap(), &[10]);
    let [name] = &key_files(dir.path())[..] else { panic!("one key") };
    let path = dir.path().join("spool/keys").join(name);
    let stored = fs::read(&path).unwrap();
    let check = |by: Option<&KeyEncryptionKey>, kind: ErrorKind, words: &str| {
        let error = provided(dir.path(), by, 1).unwrap_err();
        assert!(error.kind() == kind && error.to_string().contains(words), "{error}");
        // Those that read it have the same error, as soon as a frame needs the key.
        let repositories = by.map_or(Arc::new(ObjectEncryption::None), |_| key(1));
        let reader = folder(dir.path(), SpoolProtection::read(dir.path(), by, &repositories));
        let Err(SpoolError::Key(error)) = scan(&reader, &file) else { panic!("it was read") };
        assert!(error.to_string().contains(words), "{error}");
    };
    check(Some(&other), ErrorKind::Integrity, &format!("{}: key ", path.display()));
    check(None, ErrorKind::Usage, "no key is configured");
    assert_eq!(fs::read(&path).unwrap(), stored);
    for bit in 0..stored.len() * 8 {
        let mut changed = stored.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &changed).unwrap();
        let error = provided(dir.path(), Some(&by), 1).unwrap_err();
        assert!(matches!(error, SpoolKeyError::Unusable { .. }), "bit {bit}: {error}");
    }
    // One that was wrapped for a repository does not pass for the spool's.
    let (id, _) = parse_key_object_name(name).unwrap();
    fs::write(&path, wrap_epoch_key(id, &EpochKey::from_bytes([9; 32]), &by, "repository").unwrap()).unwrap();
    let error = provided(dir.path(), Some(&by), 1).unwrap_err();
    assert!(matches!(error, SpoolKeyError::Unusable { source: SealKeyError::NotAuthentic(_), .. }), "{error}");
    assert!(key_files(dir.path()) == *std::slice::from_ref(name));
}

/// As in a repository: each wrapping is a file, and the configured key opens one of them.
#[test]
fn a_key_that_was_wrapped_again_opens_with_either_key() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (KeyEncryptionKey::generate().unwrap(), KeyEncryptionKey::generate().unwrap());
    let keys = dir.path().join("spool/keys");
    fs::create_dir_all(&keys).unwrap();
    let (id, epoch) = (EpochKeyId::new(Timestamp::UNIX_EPOCH).unwrap(), EpochKey::from_bytes([7; 32]));
    for (number, by) in [(0, &old), (1, &new)] {
        fs::write(keys.join(format!("{id}.{number}")), wrap_epoch_key(id, &epoch, by, "spool").unwrap()).unwrap();
    }
    let (file, _) = file_of(&provided(dir.path(), Some(&old), 1).unwrap(), &[10]);
    assert_eq!(scan(&provided(dir.path(), Some(&new), 2).unwrap(), &file).unwrap().0, 1);
    assert_eq!(key_files(dir.path()).len(), 2);
}
