//! Sealed parts of a snapshot that wait on this machine's disk for a repository that takes them more slowly than the
//! server sends.
//!
//! A server must not wait for a repository: as long as it sends, its fork lives and memory is copied, and one that gets
//! nothing sent for a minute (`repl-timeout`) ends it all. Each file is removed as soon as it is there, so that nothing
//! is left whatever happens; what is in it is sealed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::base::disk;
use crate::vault::seal::SealedObject;

/// So much room is left to the spool of the stream, and to whoever else works on this disk.
const FREE_SPACE_RESERVE_BYTES: u64 = 1 << 30;

/// A folder in which they may wait.
#[derive(Clone, Debug)]
pub(super) struct PartSpill {
    dir: PathBuf,
    reserve: u64,
}

/// A sealed part, there or on the disk.
#[derive(Debug)]
pub(super) struct SpilledPart {
    file: File,
    len: usize,
    /// All of it but its bytes.
    of: SealedObject,
}

impl PartSpill {
    pub(super) fn new(state_dir: &Path) -> PartSpill {
        PartSpill { dir: state_dir.to_owned(), reserve: FREE_SPACE_RESERVE_BYTES }
    }

    /// Writes a part, if there is room; gives it back if there is not, or it cannot be written. Blocks.
    pub(super) fn spill(&self, sealed: SealedObject) -> Result<SpilledPart, SealedObject> {
        match self.write_file(&sealed) {
            Ok(Some((file, len))) => Ok(SpilledPart { file, len, of: SealedObject { parts: Vec::new(), ..sealed } }),
            Ok(None) => Err(sealed),
            Err(error) => {
                tracing::debug!(%error, dir = %self.dir.display(), "no part of the snapshot can wait on this disk; \
                    the server waits");
                Err(sealed)
            }
        }
    }

    fn write_file(&self, sealed: &SealedObject) -> io::Result<Option<(File, usize)>> {
        fs::create_dir_all(&self.dir)?;
        let free = disk::free_bytes(&self.dir)?;
        let Ok(len) = usize::try_from(sealed.len) else { return Ok(None) };
        if free < sealed.len.saturating_add(self.reserve) {
            return Ok(None);
        }
        let path =
            self.dir.join(format!(".part-{}-{}", std::process::id(), blake3::Hash::from(sealed.content).to_hex()));
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        fs::remove_file(&path)?;
        sealed.parts.iter().try_for_each(|part| file.write_all(part))?;
        Ok(Some((file, len)))
    }
}

impl SpilledPart {
    /// The part again. Blocks.
    pub(super) fn read(mut self) -> io::Result<SealedObject> {
        let mut bytes = Vec::with_capacity(self.len);
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_end(&mut bytes)?;
        Ok(SealedObject { parts: vec![Bytes::from(bytes)], ..self.of })
    }
}

#[cfg(test)]
mod tests {
    use super::PartSpill;
    use crate::vault::seal::{self, ObjectBinding, ObjectEncryption, SealSpec, SealedKind};

    #[test]
    fn what_waits_is_the_same_afterwards_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let binding = ObjectBinding::new(SealedKind::RdbPart, "cache/x");
        let sealed = || seal::seal_object(&[&[7; 3 << 20]], &SealSpec::new(&binding), &ObjectEncryption::None).unwrap();
        let aside = PartSpill { reserve: 0, ..PartSpill::new(&dir.path().join("new")) };
        let part = sealed();
        let (bytes, content) = (part.to_bytes(), part.content);
        let waiting = aside.spill(part).unwrap();
        assert_eq!(std::fs::read_dir(&aside.dir).unwrap().count(), 0);
        let again = waiting.read().unwrap();
        assert_eq!((again.to_bytes(), again.content, again.len), (bytes.clone(), content, bytes.len() as u64));
        // Too little room, or none that can be written to: it is given back.
        let full = PartSpill { reserve: u64::MAX, ..aside.clone() };
        assert_eq!(full.spill(sealed()).unwrap_err().content, content);
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(PartSpill::new(&dir.path().join("file")).spill(sealed()).unwrap_err().content, content);
    }
}
