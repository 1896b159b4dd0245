//! Keys: what the user keeps, what the repository keeps, and how one wraps the other.
//!
//! A **key-encryption key** is the user's: one line of text in a file, an environment variable, or the output of a
//! command (which of them is read in `config`; here the text is only parsed). **Epoch keys** are random and stay in the
//! repository as small objects, wrapped by a key-encryption key. Each sealed object has a key of its own, derived from
//! the epoch key of its time. Changing the key-encryption key wraps the epoch keys anew and touches no data; a new
//! epoch key seals what comes after it. The formats are in `docs/format/keys.md`.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use aes_gcm::AeadInOut;
use jiff::Timestamp;
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::cipher::{TAG_BYTES, aes_gcm, derive_key};

/// What a key file's line begins with.
const TEXT_PREFIX: &str = "walkeep-key";
/// The form of that line.
const TEXT_VERSION: &str = "1";
/// How a key object begins.
const KEY_OBJECT_MAGIC: [u8; 7] = *b"walkkey";
/// The byte after it: the format's version.
const KEY_OBJECT_VERSION: u8 = 1;
const WRAPPING_KEY_LABEL: &[u8] = b"walkeep epoch key wrapping v1";
const KEK_ID_LABEL: &[u8] = b"walkeep key-encryption key id v1";
const DERIVED_KEY_LABEL: &[u8] = b"walkeep derived key v1: ";

/// Bytes of a key object.
pub const KEY_OBJECT_BYTES: usize = 116;

/// The system's random number generator did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system gives no random numbers")]
pub struct RandomnessError;

/// Random bytes from the operating system.
pub(super) fn random_bytes<const N: usize>() -> Result<[u8; N], RandomnessError> {
    let mut bytes = [0; N];
    SysRng.try_fill_bytes(&mut bytes).map_err(|_unavailable| RandomnessError)?;
    Ok(bytes)
}

/// What is wrong with a key or a key object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealKeyError {
    /// Nothing there but blank lines and comments.
    #[error("there is no key in it; a key is one line that begins with walkeep-key:1:")]
    Empty,
    /// More than one line.
    #[error("there is more than one line in it; a key is a single line that begins with walkeep-key:1:")]
    SeveralLines,
    /// Not the form of a key.
    #[error(
        "this is no walkeep key; a key is a single line, walkeep-key:1: then 64 and 8 hexadecimal digits with a colon \
            between"
    )]
    NotAKey,
    /// The line is of a form this version does not know.
    #[error(
        "the key is of form {0}, this version knows form 1; use the version of walkeep that made it, or a newer one"
    )]
    NewerText(String),
    /// The digits and their checksum disagree.
    #[error("the key's checksum does not match: a character of it was changed or lost; compare it with your copy")]
    ChecksumMismatch,
    /// Not a key object, or damaged.
    #[error("the key object is damaged; restore it from a copy of the repository")]
    Damaged,
    /// A key object of a newer version.
    #[error("the key object is of format {0}, this version knows format 1; use a newer version of walkeep")]
    NewerObject(u8),
    /// Wrapped by another key.
    #[error(
        "key {key} is wrapped by the key-encryption key {wrapped_by}, but the configured one is {given}; give the one \
            it was made with"
    )]
    WrongKey {
        /// The epoch key in question.
        key: EpochKeyId,
        /// Whose wrapping it is in.
        wrapped_by: KekId,
        /// What was given.
        given: KekId,
    },
    /// The right key, yet the tag does not verify.
    #[error(
        "the key object of {0} belongs to another repository or was changed; restore it from a copy of the repository"
    )]
    NotAuthentic(EpochKeyId),
    /// No random numbers.
    #[error(transparent)]
    Random(#[from] RandomnessError),
}

/// The name of an epoch key: 16 bytes, the first six of them its birth in Unix milliseconds, so that names sort by age.
/// Prints as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochKeyId([u8; 16]);

impl EpochKeyId {
    /// What stands in the place of a key's name in an object that is not encrypted.
    pub const NONE: EpochKeyId = EpochKeyId([0; 16]);

    /// A new name for a key born at `created`.
    ///
    /// # Errors
    /// [`RandomnessError`].
    pub fn new(created: Timestamp) -> Result<EpochKeyId, RandomnessError> {
        let mut id: [u8; 16] = random_bytes()?;
        let millis = u64::try_from(created.as_millisecond()).unwrap_or(0).to_be_bytes();
        for (to, from) in id.iter_mut().zip(millis.iter().skip(2)) {
            *to = *from;
        }
        Ok(EpochKeyId(id))
    }

    /// The name with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> EpochKeyId {
        EpochKeyId(bytes)
    }

    /// The bytes of the name.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// When the key was made.
    #[must_use]
    pub fn created(self) -> Timestamp {
        let millis = self.0.iter().take(6).fold(0_i64, |sum, byte| sum << 8 | i64::from(*byte));
        Timestamp::from_millisecond(millis).unwrap_or(Timestamp::MAX)
    }
}

impl fmt::Display for EpochKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for EpochKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

/// What was given is not the name of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a key; names are 32 hexadecimal digits")]
pub struct ParseEpochKeyIdError(String);

impl serde::Serialize for EpochKeyId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for EpochKeyId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<EpochKeyId, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for EpochKeyId {
    type Err = ParseEpochKeyIdError;

    fn from_str(text: &str) -> Result<EpochKeyId, ParseEpochKeyIdError> {
        from_hex(text).map(EpochKeyId).ok_or_else(|| ParseEpochKeyIdError(text.to_owned()))
    }
}

/// The fingerprint by which a key-encryption key is told from another; says nothing about the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KekId([u8; 8]);

impl fmt::Display for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

impl fmt::Debug for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(&self.0, f)
    }
}

/// The key the user keeps. Without it nothing in the repository opens; `Debug` shows its fingerprint alone.
#[derive(Clone)]
pub struct KeyEncryptionKey(Zeroizing<[u8; 32]>);

impl KeyEncryptionKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`RandomnessError`].
    pub fn generate() -> Result<KeyEncryptionKey, RandomnessError> {
        Ok(KeyEncryptionKey(Zeroizing::new(random_bytes()?)))
    }

    /// Reads a key from the text of a key file: one line `walkeep-key:1:<64 hex digits>:<8 hex digits>`. Blank lines,
    /// lines that begin with `#` and blanks around the key are passed over.
    ///
    /// # Errors
    /// [`SealKeyError`], whose message never holds any of the text.
    pub fn from_text(text: &str) -> Result<KeyEncryptionKey, SealKeyError> {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let line = lines.next().ok_or(SealKeyError::Empty)?;
        if lines.next().is_some() {
            return Err(SealKeyError::SeveralLines);
        }
        let mut parts = line.split(':');
        if parts.next() != Some(TEXT_PREFIX) {
            return Err(SealKeyError::NotAKey);
        }
        match parts.next() {
            Some(TEXT_VERSION) => {}
            Some(other) if !other.is_empty() && other.len() <= 4 && other.bytes().all(|b| b.is_ascii_digit()) => {
                return Err(SealKeyError::NewerText(other.to_owned()));
            }
            _ => return Err(SealKeyError::NotAKey),
        }
        let (Some(digits), Some(sum), None) = (parts.next(), parts.next(), parts.next()) else {
            return Err(SealKeyError::NotAKey);
        };
        let sum: [u8; 4] = from_hex(sum).ok_or(SealKeyError::NotAKey)?;
        let key = Zeroizing::new(from_hex::<32>(digits).ok_or(SealKeyError::NotAKey)?);
        if text_checksum(&key) != sum { Err(SealKeyError::ChecksumMismatch) } else { Ok(KeyEncryptionKey(key)) }
    }

    /// The line for a key file, without a line end.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let digits = Zeroizing::new(to_hex(self.0.as_slice()));
        let line = format!("{TEXT_PREFIX}:{TEXT_VERSION}:{}:{}", *digits, to_hex(&text_checksum(&self.0)));
        Zeroizing::new(line)
    }

    /// The key's fingerprint.
    #[must_use]
    pub fn id(&self) -> KekId {
        let [a, b, c, d, e, f, g, h, ..] = *derive_key(&self.0, &[], &[KEK_ID_LABEL]);
        KekId([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Debug for KeyEncryptionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyEncryptionKey({})", self.id())
    }
}

/// The first four bytes of SHA-256 over the line up to the checksum: one in four thousand million typos passes.
fn text_checksum(key: &[u8; 32]) -> [u8; 4] {
    let digits = Zeroizing::new(to_hex(key));
    let digest =
        Sha256::new().chain_update(format!("{TEXT_PREFIX}:{TEXT_VERSION}:")).chain_update(digits.as_bytes()).finalize();
    let [a, b, c, d, ..]: [u8; 32] = digest.into();
    [a, b, c, d]
}

/// A random key from which the keys of objects are derived; lives in the repository, wrapped.
#[derive(Clone)]
pub struct EpochKey(Zeroizing<[u8; 32]>);

impl EpochKey {
    /// A new random key.
    ///
    /// # Errors
    /// [`RandomnessError`].
    pub fn generate() -> Result<EpochKey, RandomnessError> {
        Ok(EpochKey(Zeroizing::new(random_bytes()?)))
    }

    /// The key with these bytes; for keys that tests fix.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> EpochKey {
        EpochKey(Zeroizing::new(bytes))
    }

    pub(super) fn secret(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for EpochKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EpochKey(redacted)")
    }
}

/// Wraps an epoch key for the repository of this id; the result is the content of a `keys/` object.
///
/// # Errors
/// [`RandomnessError`].
pub fn wrap_epoch_key(
    id: EpochKeyId,
    key: &EpochKey,
    by: &KeyEncryptionKey,
    repository: &str,
) -> Result<[u8; KEY_OBJECT_BYTES], RandomnessError> {
    Ok(wrap_with(id, key, by, repository, random_bytes()?))
}

fn wrap_with(
    id: EpochKeyId,
    key: &EpochKey,
    by: &KeyEncryptionKey,
    repository: &str,
    salt: [u8; 32],
) -> [u8; KEY_OBJECT_BYTES] {
    let mut wrapped = [0; KEY_OBJECT_BYTES];
    let (head, rest) = wrapped.split_at_mut(64);
    let fields = KEY_OBJECT_MAGIC.iter().chain(&[KEY_OBJECT_VERSION]).chain(id.as_bytes());
    for (to, from) in head.iter_mut().zip(fields.chain(&by.id().0).chain(&salt)) {
        *to = *from;
    }
    let (body, rest) = rest.split_at_mut(32);
    let (tag, _crc) = rest.split_at_mut(TAG_BYTES);
    body.copy_from_slice(key.secret());
    let cipher = aes_gcm(&derive_key(&by.0, &salt, &[WRAPPING_KEY_LABEL]));
    if let Ok(computed) = cipher.encrypt_inout_detached(&[0; 12].into(), &wrapping_data(head, repository), body.into())
    {
        tag.copy_from_slice(&computed);
    }
    let (covered, crc) = wrapped.split_at_mut(KEY_OBJECT_BYTES - 4);
    crc.copy_from_slice(&crc32fast::hash(covered).to_le_bytes());
    wrapped
}

/// The epoch key in a `keys/` object, and its name.
///
/// # Errors
/// [`SealKeyError`]: damaged, wrapped by another key, of another repository, or forged.
pub fn unwrap_epoch_key(
    object: &[u8],
    by: &KeyEncryptionKey,
    repository: &str,
) -> Result<(EpochKeyId, EpochKey), SealKeyError> {
    let (id, wrapped_by) = wrapped_ids(object)?;
    if wrapped_by != by.id() {
        return Err(SealKeyError::WrongKey { key: id, wrapped_by, given: by.id() });
    }
    let (head, rest) = object.split_at_checked(64).ok_or(SealKeyError::Damaged)?;
    let (body, rest) = rest.split_at_checked(32).ok_or(SealKeyError::Damaged)?;
    let salt = head.get(32..).ok_or(SealKeyError::Damaged)?;
    let tag: [u8; TAG_BYTES] =
        rest.get(..TAG_BYTES).and_then(|tag| tag.try_into().ok()).ok_or(SealKeyError::Damaged)?;
    let mut key = Zeroizing::new([0; 32]);
    key.copy_from_slice(body);
    aes_gcm(&derive_key(&by.0, salt, &[WRAPPING_KEY_LABEL]))
        .decrypt_inout_detached(
            &[0; 12].into(),
            &wrapping_data(head, repository),
            key.as_mut_slice().into(),
            &tag.into(),
        )
        .map_err(|_tag| SealKeyError::NotAuthentic(id))?;
    Ok((id, EpochKey(key)))
}

/// Which epoch key a `keys/` object holds, and whose wrapping it is in; needs no key.
///
/// # Errors
/// [`SealKeyError::Damaged`] and [`SealKeyError::NewerObject`].
pub fn wrapped_ids(object: &[u8]) -> Result<(EpochKeyId, KekId), SealKeyError> {
    match object.split_at_checked(7) {
        Some((magic, [KEY_OBJECT_VERSION, ..])) if magic == KEY_OBJECT_MAGIC => {}
        Some((magic, [newer, ..])) if magic == KEY_OBJECT_MAGIC && *newer > KEY_OBJECT_VERSION => {
            return Err(SealKeyError::NewerObject(*newer));
        }
        _ => return Err(SealKeyError::Damaged),
    }
    let (covered, crc) =
        object.split_at_checked(KEY_OBJECT_BYTES - 4).filter(|(_, crc)| crc.len() == 4).ok_or(SealKeyError::Damaged)?;
    if crc != crc32fast::hash(covered).to_le_bytes() {
        return Err(SealKeyError::Damaged);
    }
    let id = object.get(8..24).and_then(|id| id.try_into().ok()).ok_or(SealKeyError::Damaged)?;
    let kek = object.get(24..32).and_then(|id| id.try_into().ok()).ok_or(SealKeyError::Damaged)?;
    Ok((EpochKeyId(id), KekId(kek)))
}

fn wrapping_data(head: &[u8], repository: &str) -> Vec<u8> {
    [head, repository.as_bytes()].concat()
}

/// The epoch keys of a repository. The one with the greatest name, which is the youngest, seals what is new; all of
/// them open.
#[derive(Clone, Debug)]
pub struct KeyRing {
    current: (EpochKeyId, EpochKey),
    all: BTreeMap<EpochKeyId, EpochKey>,
}

impl KeyRing {
    /// A ring of one key.
    #[must_use]
    pub fn new(id: EpochKeyId, key: EpochKey) -> KeyRing {
        KeyRing { current: (id, key.clone()), all: BTreeMap::from([(id, key)]) }
    }

    /// Adds a key; it becomes current if it is the youngest.
    pub fn add(&mut self, id: EpochKeyId, key: EpochKey) {
        if id > self.current.0 {
            self.current = (id, key.clone());
        }
        self.all.insert(id, key);
    }

    /// Adds all keys of another ring, to open objects only: what is new is not sealed with them, however young they
    /// are.
    pub fn add_for_opening(&mut self, others: &KeyRing) {
        for (id, key) in &others.all {
            self.all.entry(*id).or_insert_with(|| key.clone());
        }
    }

    /// The key that seals what is new.
    #[must_use]
    pub const fn current(&self) -> (EpochKeyId, &EpochKey) {
        (self.current.0, &self.current.1)
    }

    /// The key of this name.
    #[must_use]
    pub fn get(&self, id: EpochKeyId) -> Option<&EpochKey> {
        self.all.get(&id)
    }

    /// The names of all keys, oldest first.
    pub fn ids(&self) -> impl Iterator<Item = EpochKeyId> {
        self.all.keys().copied()
    }
}

/// Whether a repository's objects are encrypted. It is the repository's property, not an object's: a repository that
/// encrypts opens nothing that is not encrypted, or whoever can write to the store could slip something in.
#[derive(Clone, Debug)]
pub enum ObjectEncryption {
    /// With AES-256-GCM, under these keys.
    Encrypted(KeyRing),
    /// Not at all: CRC-32 and BLAKE3 find damage, nothing finds a forger.
    None,
}

impl ObjectEncryption {
    /// A key for a purpose beside sealing, such as naming chunks: derived from the current epoch key, so that what is
    /// so named says nothing to whoever has not the key, and names change with the epoch. Without encryption it is a
    /// public constant.
    #[must_use]
    pub fn derived_key(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        match self {
            ObjectEncryption::Encrypted(ring) => derive_from_epoch_key(ring.current().1, purpose),
            ObjectEncryption::None => derive_without_key(purpose),
        }
    }

    /// What [`ObjectEncryption::derived_key`] gave when the key of this name was current. `None` if the ring does not
    /// have it.
    #[must_use]
    pub fn derived_key_for(&self, id: EpochKeyId, purpose: &str) -> Option<Zeroizing<[u8; 32]>> {
        match self {
            ObjectEncryption::Encrypted(ring) => ring.get(id).map(|key| derive_from_epoch_key(key, purpose)),
            ObjectEncryption::None => (id == EpochKeyId::NONE).then(|| derive_without_key(purpose)),
        }
    }

    /// The name of the key that seals what is new; [`EpochKeyId::NONE`] without encryption.
    #[must_use]
    pub const fn current_id(&self) -> EpochKeyId {
        match self {
            ObjectEncryption::Encrypted(ring) => ring.current().0,
            ObjectEncryption::None => EpochKeyId::NONE,
        }
    }
}

fn derive_from_epoch_key(key: &EpochKey, purpose: &str) -> Zeroizing<[u8; 32]> {
    derive_key(key.secret(), &[], &[DERIVED_KEY_LABEL, purpose.as_bytes()])
}

fn derive_without_key(purpose: &str) -> Zeroizing<[u8; 32]> {
    Zeroizing::new(blake3::derive_key("walkeep derived key v1, not encrypted", purpose.as_bytes()))
}

fn write_hex(bytes: &[u8], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

fn to_hex(bytes: &[u8]) -> String {
    use fmt::Write;
    // Room for all from the start: a string that grows leaves copies of a secret behind.
    let mut digits = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        write!(digits, "{byte:02x}").unwrap_or_default();
    }
    digits
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    if text.len() != N.saturating_mul(2) {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |at: usize| char::from(*pair.get(at)?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        *byte = digit(0)? << 4 | digit(1)?;
    }
    Some(bytes)
}
