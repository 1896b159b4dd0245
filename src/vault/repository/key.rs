//! Names of objects: parts separated by slashes, and the few names that every repository has. Pure; what stands under
//! an archive's own prefix is its wing's business. `docs/format/repository.md` is the same in prose.
//!
//! Keys hold only ASCII letters, digits, dots, underscores, dashes and slashes, which every store takes as they are.

use std::fmt;

const MARKER_NAME: &str = "walkeep.json";

/// The folder of the key objects.
pub(crate) const KEYS_FOLDER: &str = "keys";

/// The name of one object, relative to the repository's root: parts separated by single slashes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(transparent)]
pub struct ObjectKey(String);

/// A part of the key space: all objects whose key begins with these parts. Empty for the whole repository.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct KeyPrefix(String);

/// What was given cannot be (a part of) an object's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no object name: up to 512 ASCII letters, digits, dots, underscores and dashes between single slashes"
)]
pub struct ObjectKeyError(String);

/// The longest key. S3 takes 1024 bytes; half of it is left for the repository's own path in the bucket.
const MAX_KEY_BYTES: usize = 512;

impl ObjectKey {
    /// Reads a key as a listing gives it.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if no object of ours can have this name; it may be somebody else's file.
    pub fn parse(key: &str) -> Result<ObjectKey, ObjectKeyError> {
        if key.len() <= MAX_KEY_BYTES && key.split('/').all(is_part) {
            Ok(ObjectKey(key.to_owned()))
        } else {
            Err(ObjectKeyError(key.to_owned()))
        }
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or_default()
    }

    /// All parts but the last.
    #[must_use]
    pub fn parent(&self) -> KeyPrefix {
        KeyPrefix(self.0.rsplit_once('/').map(|(parent, _)| parent.to_owned()).unwrap_or_default())
    }
}

impl ObjectKey {
    /// A key put together from parts that are known to be good.
    pub(crate) const fn from_parts(key: String) -> ObjectKey {
        ObjectKey(key)
    }
}

impl KeyPrefix {
    /// A prefix put together from parts that are known to be good.
    pub(crate) const fn from_parts(prefix: String) -> KeyPrefix {
        KeyPrefix(prefix)
    }

    /// The whole repository.
    #[must_use]
    pub const fn all() -> KeyPrefix {
        KeyPrefix(String::new())
    }

    /// The parts as text, without a slash at the end; empty for the whole repository.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key of the object `name` right under this prefix.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if it is not a single part or too long.
    pub fn object_key(&self, name: &str) -> Result<ObjectKey, ObjectKeyError> {
        if !is_part(name) {
            return Err(ObjectKeyError(name.to_owned()));
        }
        ObjectKey::parse(&join_parts(&self.0, name))
    }

    /// The prefix of what stands under `name` right under this prefix.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if it is not a single part or too long.
    pub fn child(&self, name: &str) -> Result<KeyPrefix, ObjectKeyError> {
        self.object_key(name).map(|key| KeyPrefix(key.0))
    }
}

fn join_parts(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") }
}

fn is_part(part: &str) -> bool {
    !part.is_empty()
        && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !part.bytes().all(|b| b == b'.')
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/", self.0)
    }
}

impl fmt::Debug for KeyPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The object that makes a folder a repository: its format version and identity.
#[must_use]
pub fn marker_key() -> ObjectKey {
    ObjectKey(MARKER_NAME.to_owned())
}

/// All wrapped epoch keys.
#[must_use]
pub fn keys_prefix() -> KeyPrefix {
    KeyPrefix(KEYS_FOLDER.to_owned())
}

/// A wrapped epoch key. `generation` counts its wrappings: a key-encryption key is rotated by wrapping anew under the
/// next number.
///
/// # Errors
/// [`ObjectKeyError`] if `id` cannot stand in a name.
pub fn epoch_key_object(id: &str, generation: u32) -> Result<ObjectKey, ObjectKeyError> {
    keys_prefix().object_key(&format!("{id}.{generation}"))
}

#[cfg(test)]
mod tests {
    use super::{KeyPrefix, ObjectKey};

    #[test]
    fn names_that_climb_or_hide_are_refused() {
        for wrong in ["", "/", "a//b", "a/", "/a", "..", "a/../b", ".", "a#1", "a b", "ä", "a\0", &"a/".repeat(300)] {
            assert!(ObjectKey::parse(wrong).is_err(), "{wrong:?}");
        }
        assert!(KeyPrefix::all().object_key("a/b").is_err());
    }
}
