//! The cursors of an archive's repositories, in a file of the state directory.
//!
//! A cursor is derived and may be lost: then the whole archive is compared once. It is never ahead of what was proved,
//! and a repository that was made again has another id, so that an old cursor does not count for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::base::durable::{self, DurableError};
use crate::vault::repository::RepositoryId;
use crate::vault::repository::key::ObjectKey;

/// The folder of the cursor files in the state directory.
const FOLDER: &str = "cursors";

/// The format of the file.
const CURSOR_FORMAT: u32 = 1;

/// The cursors of one archive's repositories.
#[derive(Debug)]
pub struct CursorFile {
    path: PathBuf,
    cursors: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
struct CursorDocument {
    format: u32,
    /// The key before which everything is in the repository, by repository id.
    cursors: BTreeMap<String, String>,
}

impl CursorFile {
    /// The cursors of the archive of this name. A file that is absent or does not make sense counts as empty. Blocks.
    #[must_use]
    pub fn read(state_dir: &Path, archive: &str) -> CursorFile {
        let path = state_dir.join(FOLDER).join(format!("{archive}.json"));
        let document = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<CursorDocument>(&text).ok());
        let known = document.filter(|document| document.format == CURSOR_FORMAT);
        CursorFile { path, cursors: known.map(|document| document.cursors).unwrap_or_default() }
    }

    /// The cursor of a repository.
    #[must_use]
    pub fn cursor(&self, repository: RepositoryId) -> Option<ObjectKey> {
        self.cursors.get(&repository.to_string()).and_then(|key| ObjectKey::parse(key).ok())
    }

    /// Sets a repository's cursor, or removes it, and writes the file. Blocks.
    ///
    /// # Errors
    /// [`DurableError`]. The file on disk is then an older one: as true if the cursor was to move forward.
    pub fn set(&mut self, repository: RepositoryId, cursor: Option<&ObjectKey>) -> Result<(), DurableError> {
        let id = repository.to_string();
        let new = cursor.map(|cursor| cursor.as_str().to_owned());
        if self.cursors.get(&id) == new.as_ref() {
            return Ok(());
        }
        match new {
            Some(new) => self.cursors.insert(id, new),
            None => self.cursors.remove(&id),
        };
        self.write()
    }

    /// Whether a cursor is at or after this key.
    #[must_use]
    pub fn is_past(&self, key: &ObjectKey) -> bool {
        self.cursors.values().any(|cursor| cursor.as_str() >= key.as_str())
    }

    /// Removes every cursor at or after this key, and writes the file: an older object is about to be stored. Blocks.
    ///
    /// # Errors
    /// [`DurableError`]. The object must not be stored anywhere then.
    pub fn retract_to(&mut self, key: &ObjectKey) -> Result<(), DurableError> {
        self.cursors.retain(|_, cursor| cursor.as_str() < key.as_str());
        self.write()
    }

    fn write(&self) -> Result<(), DurableError> {
        let document = CursorDocument { format: CURSOR_FORMAT, cursors: self.cursors.clone() };
        if let Some(folder) = self.path.parent() {
            durable::create_dir_all(folder, 0o700)?;
        }
        durable::replace_file(&self.path, &serde_json::to_vec(&document).unwrap_or_default(), 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::CursorFile;
    use crate::vault::repository::RepositoryId;
    use crate::vault::repository::key::ObjectKey;

    #[test]
    fn a_cursor_counts_for_its_repository_alone_and_garbage_for_none() {
        let dir = tempfile::tempdir().unwrap();
        let id = |text: &str| RepositoryId::try_from(text.to_owned()).unwrap();
        let key = ObjectKey::parse("main/wal/00000001/00000000/000000010000000000000003").unwrap();
        let mut file = CursorFile::read(dir.path(), "main");
        assert_eq!(file.cursor(id("a1")), None);
        file.set(id("a1"), Some(&key)).unwrap();
        let again = CursorFile::read(dir.path(), "main");
        assert_eq!((again.cursor(id("a1")), again.cursor(id("b2"))), (Some(key), None));
        assert_eq!(CursorFile::read(dir.path(), "other").cursor(id("a1")), None);
        // An older object takes the cursors back that are past it, and no others.
        let older = ObjectKey::parse("main/wal/00000001/00000000/000000010000000000000002").unwrap();
        file.set(id("c3"), Some(&ObjectKey::parse("main/wal/00000001/00000000/000000010000000000000001").unwrap()))
            .unwrap();
        assert!(file.is_past(&older));
        file.retract_to(&older).unwrap();
        let again = CursorFile::read(dir.path(), "main");
        assert_eq!((again.cursor(id("a1")), again.cursor(id("c3")).is_some()), (None, true));
        assert!(!again.is_past(&older));
        assert_eq!(CursorFile::read(dir.path(), "main").cursor(id("a1")), None);
        std::fs::write(dir.path().join("cursors/main.json"), "{").unwrap();
        assert_eq!(CursorFile::read(dir.path(), "main").cursor(id("a1")), None);
    }
}
