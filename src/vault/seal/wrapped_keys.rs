//! The epoch keys in a set of key objects, which are bound to one repository or to a spool.

use std::collections::BTreeMap;

use super::keys::{EpochKey, EpochKeyId, KeyEncryptionKey, SealKeyError, unwrap_epoch_key};

/// The epoch key and the number of the wrapping in the name of a key object, `<key id>.<n>`.
#[must_use]
pub fn parse_key_object_name(name: &str) -> Option<(EpochKeyId, u32)> {
    let (id, wrapping) = name.split_once('.')?;
    Some((id.parse().ok()?, wrapping.parse().ok()?))
}

/// Unwraps key objects, of which each has the name `N` in messages. The latest wrapping of each key must be given
/// first: after a change of the user's key the earlier ones are wrapped by the old key.
#[derive(Debug)]
pub struct WrappedKeys<'k, N> {
    by: &'k KeyEncryptionKey,
    bound_to: String,
    found: BTreeMap<EpochKeyId, EpochKey>,
    refused: BTreeMap<EpochKeyId, (N, SealKeyError)>,
}

impl<'k, N> WrappedKeys<'k, N> {
    /// `bound_to` is the id of the repository, or the name of what else the keys are for.
    #[must_use]
    pub fn new(by: &'k KeyEncryptionKey, bound_to: &str) -> WrappedKeys<'k, N> {
        WrappedKeys { by, bound_to: bound_to.to_owned(), found: BTreeMap::new(), refused: BTreeMap::new() }
    }

    /// Whether no wrapping of this key has opened yet.
    #[must_use]
    pub fn wants(&self, id: EpochKeyId) -> bool {
        !self.found.contains_key(&id)
    }

    /// Unwraps one key object.
    pub fn unwrap_object(&mut self, id: EpochKeyId, name: N, object: &[u8]) {
        match unwrap_epoch_key(object, self.by, &self.bound_to) {
            Ok((stored, key)) if stored == id => drop(self.found.insert(id, key)),
            Ok(_) => drop(self.refused.insert(id, (name, SealKeyError::Damaged))),
            Err(source) => drop(self.refused.entry(id).or_insert((name, source))),
        }
    }

    /// All keys.
    ///
    /// # Errors
    /// A key of which no wrapping opened, with the name of the latest.
    pub fn finish(self) -> Result<BTreeMap<EpochKeyId, EpochKey>, (N, SealKeyError)> {
        let WrappedKeys { found, refused, .. } = self;
        match refused.into_iter().find(|(id, _)| !found.contains_key(id)) {
            Some((_, error)) => Err(error),
            None => Ok(found),
        }
    }
}
