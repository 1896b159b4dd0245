//! What a repository answers about objects.

use jiff::Timestamp;

use super::key::{KeyPrefix, ObjectKey};

/// What came of a `Repository::put_new`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PutOutcome {
    /// The object is new, whole and durable.
    Created,
    /// Something stands under this key already, durable and untouched. Whether it is the same is for the caller to find
    /// out.
    Exists,
}

/// An object as a listing shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ObjectInfo {
    /// Its name.
    pub key: ObjectKey,
    /// Its bytes.
    pub len: u64,
    /// When it was created, by the store's clock.
    pub modified: Timestamp,
}

/// What stands right under a prefix.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PrefixListing {
    /// The prefixes one part longer, sorted.
    pub prefixes: Vec<KeyPrefix>,
    /// The objects, sorted by key.
    pub objects: Vec<ObjectInfo>,
}
