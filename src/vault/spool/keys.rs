//! The keys of the spool: random, wrapped by the user's key as the repositories' keys are, and stored in the state
//! directory as `spool/keys/<key id>.<n>`. No archive can be called `keys`.
//!
//! The youngest key seals new frames. To open a frame, all of them are known, and the keys of the configured
//! repositories too: earlier versions sealed the spool with those.
//!
//! The order of effects: create the folder, write the key object under a temporary name, fsync it, rename it to a name
//! that must not exist, fsync the folder, read it back and unwrap it. Only then is a frame sealed with it. Two
//! receivers that start on an empty state directory may store one key each; both keys stay.
//!
//! A key that cannot be unwrapped is never replaced by a new one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::error::SpoolKeyError;
use crate::base::durable;
use crate::vault::seal::ObjectEncryption;
use crate::vault::seal::keys::{EpochKey, EpochKeyId, KeyEncryptionKey, KeyRing, wrap_epoch_key};
use crate::vault::seal::wrapped_keys::{WrappedKeys, parse_key_object_name};

/// What a spool's key objects are bound to instead of the id of a repository.
const BOUND_TO: &str = "spool";

/// How the frames of a spool are sealed, and with which keys they open.
#[derive(Clone, Debug)]
pub(crate) struct SpoolProtection {
    pub(super) encryption: Arc<ObjectEncryption>,
    /// Why the spool's own keys are not among them.
    pub(super) missing: Option<Arc<SpoolKeyError>>,
}

impl SpoolProtection {
    /// Protection without keys of the spool's own.
    #[cfg(test)]
    pub(crate) const fn new(encryption: Arc<ObjectEncryption>) -> SpoolProtection {
        SpoolProtection { encryption, missing: None }
    }

    /// Frames that are not encrypted.
    pub(crate) fn without_encryption() -> SpoolProtection {
        SpoolProtection { encryption: Arc::new(ObjectEncryption::None), missing: None }
    }

    /// For the receiver: the spool's keys, and one at least. `by` is the configured key-encryption key, `None` if
    /// encryption is off; `repositories` has the keys of the repositories.
    pub(crate) fn provide(
        state_dir: &Path,
        by: Option<&KeyEncryptionKey>,
        repositories: &Arc<ObjectEncryption>,
        now: Timestamp,
    ) -> Result<SpoolProtection, SpoolKeyError> {
        let dir = keys_dir(state_dir);
        let mut found = read_keys(&dir, by)?;
        if let Some(by) = by.filter(|_| found.is_empty()) {
            store_new_key(&dir, by, now)?;
            found = read_keys(&dir, Some(by))?;
        }
        Ok(SpoolProtection { encryption: with_own_keys(repositories, found), missing: None })
    }

    /// For those that read the spool. If its keys cannot be used, that is an error only when a frame needs one of them.
    pub(crate) fn read(
        state_dir: &Path,
        by: Option<&KeyEncryptionKey>,
        repositories: &Arc<ObjectEncryption>,
    ) -> SpoolProtection {
        match read_keys(&keys_dir(state_dir), by) {
            Ok(found) => SpoolProtection { encryption: with_own_keys(repositories, found), missing: None },
            Err(error) => SpoolProtection { encryption: Arc::clone(repositories), missing: Some(Arc::new(error)) },
        }
    }
}

fn keys_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("spool").join("keys")
}

/// The repositories' keys with those of the spool, of which the youngest seals.
fn with_own_keys(repositories: &Arc<ObjectEncryption>, own: Vec<(EpochKeyId, EpochKey)>) -> Arc<ObjectEncryption> {
    let mut own = own.into_iter();
    let Some((id, key)) = own.next() else { return Arc::clone(repositories) };
    let mut ring = KeyRing::new(id, key);
    own.for_each(|(id, key)| ring.add(id, key));
    if let ObjectEncryption::Encrypted(others) = &**repositories {
        ring.add_for_opening(others);
    }
    Arc::new(ObjectEncryption::Encrypted(ring))
}

/// All keys of the spool, of each the latest wrapping that `by` opens.
fn read_keys(dir: &Path, by: Option<&KeyEncryptionKey>) -> Result<Vec<(EpochKeyId, EpochKey)>, SpoolKeyError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| SpoolKeyError::Read { path, source }
    };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(dir)(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.map_err(failed(dir))?.file_name();
        names.extend(name.to_str().and_then(|name| Some((parse_key_object_name(name)?, name.to_owned()))));
    }
    let Some(by) = by else {
        return if names.is_empty() {
            Ok(Vec::new())
        } else {
            Err(SpoolKeyError::NotConfigured { dir: dir.to_owned() })
        };
    };
    names.sort();
    let mut wrapped = WrappedKeys::new(by, BOUND_TO);
    for ((id, _), name) in names.into_iter().rev().filter(|((id, _), _)| *id != EpochKeyId::NONE) {
        if wrapped.wants(id) {
            let path = dir.join(name);
            let object = fs::read(&path).map_err(failed(&path))?;
            wrapped.unwrap_object(id, path, &object);
        }
    }
    let found = wrapped.finish().map_err(|(path, source)| SpoolKeyError::Unusable { path, source })?;
    Ok(found.into_iter().collect())
}

fn store_new_key(dir: &Path, by: &KeyEncryptionKey, now: Timestamp) -> Result<(), SpoolKeyError> {
    let id = EpochKeyId::new(now)?;
    let object = wrap_epoch_key(id, &EpochKey::generate()?, by, BOUND_TO)?;
    durable::create_dir_all(dir, 0o700)?;
    Ok(durable::write_new(&dir.join(format!("{id}.0")), &object, 0o600)?)
}
