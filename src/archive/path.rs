//! Files of `pg_wal` by their path: read whole or refused, and pushes on behalf of others.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

use super::Archive;
use super::ingest::{IngestError, Ingested, Outcome};
use super::objects::blocking;
use crate::control::Answer;
use crate::postgres::segment::WalFileName;
use crate::retry::Class;

/// No file of `pg_wal` is longer: the largest segment.
const LONGEST: u64 = 1 << 30;

/// Why a file cannot be read as a whole.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PathError {
    /// Not a name PostgreSQL uses.
    #[error("{0:?} is not a name that PostgreSQL gives to a file of pg_wal")]
    Name(String),
    /// The operating system refused.
    #[error("cannot read {path}: {source}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: Arc<io::Error>,
    },
    /// A directory, a device.
    #[error("{path} is not a plain file", path = .0.display())]
    NotAFile(PathBuf),
    /// It changed while it was read, or it is longer than any WAL file.
    #[error("{path} is not a finished file: it changed while it was read, or is longer than any segment", path = .0.display())]
    Unfinished(PathBuf),
}

impl Archive {
    /// Archives the file at `path` under `name`, as [`Archive::put`]. A file that somebody is still writing is refused.
    ///
    /// # Errors
    /// Why it was not archived.
    pub async fn put_path(self: &Arc<Self>, path: &Path, name: &str) -> Result<Ingested, IngestError> {
        let parsed = WalFileName::parse(name).ok_or_else(|| PathError::Name(name.to_owned()))?;
        let path = path.to_owned();
        let bytes = blocking(move || read_whole(&path)).await??;
        self.put(&parsed, bytes).await
    }

    /// Carries out a push that came through the control socket.
    pub async fn answer_push(self: &Arc<Self>, path: &Path, name: &str) -> (Answer, Option<Ingested>) {
        match self.put_path(path, name).await {
            Ok(ingested) => (Answer::Pushed { identical: ingested.outcome == Outcome::Identical }, Some(ingested)),
            Err(error) => {
                let transient = error.class() == Class::Transient;
                (Answer::Refused { why: error.to_string(), transient }, None)
            }
        }
    }
}

fn read_whole(path: &Path) -> Result<Bytes, PathError> {
    let failed = |source| PathError::Read { path: path.to_owned(), source: Arc::new(source) };
    let mut file = File::open(path).map_err(failed)?;
    let before = file.metadata().map_err(failed)?;
    if !before.is_file() {
        return Err(PathError::NotAFile(path.to_owned()));
    }
    let unfinished = || PathError::Unfinished(path.to_owned());
    let len = usize::try_from(before.len()).ok().filter(|_| before.len() <= LONGEST).ok_or_else(unfinished)?;
    let mut bytes = Vec::with_capacity(len);
    // One byte more than there should be shows whether it has grown.
    (&mut file).take(LONGEST.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    let after = file.metadata().map_err(failed)?;
    let unchanged = bytes.len() == len && after.len() == before.len() && same_moment(&before, &after);
    if unchanged { Ok(bytes.into()) } else { Err(unfinished()) }
}

fn same_moment(before: &std::fs::Metadata, after: &std::fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (before.mtime(), before.mtime_nsec()) == (after.mtime(), after.mtime_nsec())
}

#[cfg(test)]
mod tests {
    use super::{PathError, read_whole};
    use std::fs::File;

    #[test]
    fn only_plain_files_of_a_possible_length_are_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read_whole(dir.path()), Err(PathError::NotAFile(_))));
        assert!(matches!(read_whole(&dir.path().join("none")), Err(PathError::Read { .. })));
        assert!(matches!(read_whole("/dev/zero".as_ref()), Err(PathError::NotAFile(_))));
        let long = dir.path().join("long");
        File::create(&long).unwrap().set_len((1 << 30) + 1).unwrap();
        assert!(matches!(read_whole(&long), Err(PathError::Unfinished(_))));
        let short = dir.path().join("short");
        std::fs::write(&short, "whole").unwrap();
        assert_eq!(read_whole(&short).unwrap(), "whole");
    }
}
