//! Where the objects of a Redis instance stand, beside those of the clusters; `docs/format/repository.md` is the same
//! in prose.
//!
//! Offsets in names have 20 decimal digits, as the server writes them in decimal, so the order of names is that of
//! positions.

use crate::vault::archive_name;
use crate::vault::repository::key::{KeyPrefix, ObjectKey, ObjectKeyError};

archive_name! {
    /// The name under which an instance is configured and its objects are stored.
    InstanceName
}

/// What an object of an instance is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum InstanceObject {
    /// What the instance is.
    Identity,
    /// A part of a snapshot: its label, and the part's number from 0.
    Part(String, u32),
    /// A snapshot's manifest, by label.
    Snapshot(String),
    /// A stretch of the stream of commands: the replication id, and the offset before its first byte.
    Commands(String, u64),
    /// A break in the stream: the replication id and the offset up to which it is whole.
    Gap(String, u64),
    /// The mark of a snapshot under way: its name, and the renewal's number.
    Running(String, u32),
    /// What `check` and `cleanup` write and remove.
    Probe(String),
}

/// The keys of one instance's objects.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Layout {
    name: InstanceName,
}

impl Layout {
    /// The keys of the instance of this name.
    #[must_use]
    pub const fn new(name: InstanceName) -> Layout {
        Layout { name }
    }

    /// The instance's name.
    #[must_use]
    pub const fn name(&self) -> &InstanceName {
        &self.name
    }

    /// Everything that is stored of the instance.
    #[must_use]
    pub fn all(&self) -> KeyPrefix {
        KeyPrefix::from_parts(self.name.to_string())
    }

    fn prefix(&self, path: &str) -> KeyPrefix {
        KeyPrefix::from_parts(format!("{}/{path}", self.name))
    }

    /// What the instance is.
    #[must_use]
    pub fn identity(&self) -> ObjectKey {
        ObjectKey::from_parts(format!("{}/instance", self.name))
    }

    /// All parts of all snapshots, one prefix a label below it.
    #[must_use]
    pub fn parts(&self) -> KeyPrefix {
        self.prefix("rdb")
    }

    /// A part of the snapshot `label`.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if `label` cannot stand in a name.
    pub fn part(&self, label: &str, number: u32) -> Result<ObjectKey, ObjectKeyError> {
        self.parts().child(label)?.object_key(&format!("{number:06}"))
    }

    /// All snapshots' manifests; labels sort by time.
    #[must_use]
    pub fn snapshots(&self) -> KeyPrefix {
        self.prefix("snapshot")
    }

    /// The manifest of the snapshot `label`.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if `label` cannot stand in a name.
    pub fn snapshot(&self, label: &str) -> Result<ObjectKey, ObjectKeyError> {
        self.snapshots().object_key(label)
    }

    /// All of the command stream, one prefix a replication id below it.
    #[must_use]
    pub fn streams(&self) -> KeyPrefix {
        self.prefix("stream")
    }

    /// The stream as a whole, for messages.
    #[must_use]
    pub fn streams_name(&self) -> ObjectKey {
        ObjectKey::from_parts(format!("{}/stream", self.name))
    }

    /// The stream under one replication id.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if `id` cannot stand in a name.
    pub fn stream(&self, id: &str) -> Result<KeyPrefix, ObjectKeyError> {
        self.streams().child(id)
    }

    /// The stretch of that stream that begins after `first` bytes of it.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if `id` cannot stand in a name.
    pub fn commands(&self, id: &str, first: u64) -> Result<ObjectKey, ObjectKeyError> {
        self.stream(id)?.object_key(&format!("{first:020}"))
    }

    /// All recorded breaks in the stream.
    #[must_use]
    pub fn gaps(&self) -> KeyPrefix {
        self.prefix("gap")
    }

    /// A break after `offset`.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if `id` cannot stand in a name.
    pub fn gap(&self, id: &str, offset: u64) -> Result<ObjectKey, ObjectKeyError> {
        self.gaps().child(id)?.object_key(&format!("{offset:020}"))
    }

    /// The marks of snapshots under way, one prefix for each below it.
    #[must_use]
    pub fn running(&self) -> KeyPrefix {
        self.prefix("running")
    }

    /// An object that `walkeep check` and `cleanup` write and remove.
    ///
    /// # Errors
    /// [`ObjectKeyError`] if `name` cannot stand in a key.
    pub fn probe(&self, name: &str) -> Result<ObjectKey, ObjectKeyError> {
        self.prefix("probe").object_key(name)
    }

    /// What stands under `key`, or `None` if it is not a name that walkeep gives to an object of this instance.
    #[must_use]
    pub fn parse_key(&self, key: &ObjectKey) -> Option<InstanceObject> {
        let path = key.as_str().strip_prefix(self.name.as_str())?.strip_prefix('/')?;
        let parts: Vec<&str> = path.split('/').collect();
        let (object, same) = match parts.as_slice() {
            ["instance"] => (InstanceObject::Identity, self.identity()),
            ["rdb", label, number] => {
                let number = number.parse().ok()?;
                (InstanceObject::Part((*label).to_owned(), number), self.part(label, number).ok()?)
            }
            ["snapshot", label] => (InstanceObject::Snapshot((*label).to_owned()), self.snapshot(label).ok()?),
            ["stream", id, first] => {
                let first = first.parse().ok()?;
                (InstanceObject::Commands((*id).to_owned(), first), self.commands(id, first).ok()?)
            }
            ["gap", id, offset] => {
                let offset = offset.parse().ok()?;
                (InstanceObject::Gap((*id).to_owned(), offset), self.gap(id, offset).ok()?)
            }
            ["probe", name] => (InstanceObject::Probe((*name).to_owned()), self.probe(name).ok()?),
            ["running", name, number] => {
                let number = number.parse().ok()?;
                let key = self.running().child(name).ok()?.object_key(&format!("{number:06}")).ok()?;
                (InstanceObject::Running((*name).to_owned(), number), key)
            }
            _ => return None,
        };
        // One object, one name.
        (same == *key).then_some(object)
    }
}

#[cfg(test)]
mod tests {
    use super::{InstanceObject, Layout, ObjectKey};

    #[test]
    fn every_object_stands_where_the_format_says() {
        let layout = Layout::new("cache".parse().unwrap());
        let id = "0123456789abcdef0123456789abcdef01234567";
        for (object, path) in [
            (InstanceObject::Identity, "cache/instance".to_owned()),
            (InstanceObject::Part("20261122T020000Z".into(), 7), "cache/rdb/20261122T020000Z/000007".to_owned()),
            (InstanceObject::Snapshot("20261122T020000Z".into()), "cache/snapshot/20261122T020000Z".to_owned()),
            (InstanceObject::Commands(id.into(), 42), format!("cache/stream/{id}/00000000000000000042")),
            (InstanceObject::Gap(id.into(), u64::MAX), format!("cache/gap/{id}/18446744073709551615")),
            (InstanceObject::Running("20261122T020000Z-1".into(), 3), "cache/running/20261122T020000Z-1/000003".into()),
        ] {
            assert_eq!(layout.parse_key(&ObjectKey::parse(&path).unwrap()), Some(object), "{path}");
        }
        for wrong in ["cache/rdb/x/7", "cache/rdb/x/0000007", "cached/instance", "cache/stream/x/42", "cache/cluster"] {
            assert_eq!(layout.parse_key(&ObjectKey::parse(wrong).unwrap()), None, "{wrong}");
        }
    }
}
