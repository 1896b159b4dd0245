//! Files of `pg_wal` by their path: read whole or refused.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use memmap2::{Advice, MmapMut};

use super::chunks;
use super::fork::RecordedFork;
use super::ingest::{IngestError, Ingested};
use super::{Archive, ArchiveError};
use crate::base::blocking::run_blocking;
use crate::postgres::format::segment::WalFileName;
use crate::vault::VaultError;

pub use super::wal_file_error::WalFileError;

/// No file of `pg_wal` is longer: the largest segment.
const MAX_WAL_FILE_BYTES: u64 = 1 << 30;

/// How much is hashed at a time: it stays in the processor's cache, and is little memory to touch for the first time.
const HASHED_AT_ONCE_BYTES: usize = chunks::CHUNK_BYTES as usize;

impl Archive {
    /// Archives the file at `path` under `name`, as [`Archive::put_wal_file`]; a segment with a note of how it came
    /// ([`super::clock_notes`]), empty for none. A file that somebody is still writing is refused.
    ///
    /// # Errors
    /// Why it was not archived.
    pub async fn put_wal_file_at(
        self: &Arc<Self>,
        path: &Path,
        name: &str,
        note: &[u8],
    ) -> Result<Ingested, IngestError> {
        let parsed = WalFileName::parse(name).ok_or_else(|| WalFileError::Name(name.to_owned()))?;
        let path = path.to_owned();
        let WalFileName::Segment(segment) = parsed else {
            let bytes = run_blocking(move || WalFileReader::open(path)?.read()).await??;
            return self.put_wal_file(&parsed, bytes).await;
        };
        let Some(copies) = self.stored_copies(segment).await? else {
            let bytes = run_blocking(move || WalFileReader::open(path)?.read()).await??;
            return self.put_new_segment(segment, note, bytes).await;
        };
        // Asked twice for one segment, which happens: its hash says so, and takes no memory.
        let (hash, source) = run_blocking(move || {
            let source = WalFileReader::open(path)?;
            Ok::<_, WalFileError>((source.hash()?, source))
        })
        .await??;
        if copies.stored.iter().all(|stored| *stored.trailer.content() == hash) {
            return Ok(self.confirm_identical(segment, copies).await?);
        }
        let bytes = run_blocking(move || source.read()).await??;
        self.put_segment(segment, bytes).await
    }

    /// Records this machine's server as a fork, if the file at `path` is a segment that is archived with another
    /// content.
    ///
    /// # Errors
    /// As [`Archive::record_refused_segment`].
    pub async fn record_refused_file(&self, path: &Path, name: &str) -> Result<Option<RecordedFork>, ArchiveError> {
        let Some(WalFileName::Segment(segment)) = WalFileName::parse(name) else { return Ok(None) };
        let path = path.to_owned();
        let read = run_blocking(move || WalFileReader::open(path)?.read()).await.map_err(VaultError::from)?;
        // A file that changed meanwhile proves nothing.
        let Ok(bytes) = read else { return Ok(None) };
        let server = rustix::system::uname().nodename().to_string_lossy().into_owned();
        self.record_refused_segment(segment, &bytes, server).await
    }
}

/// A plain file that seems to be finished.
struct WalFileReader {
    path: PathBuf,
    file: File,
    before: Metadata,
    len: usize,
}

impl WalFileReader {
    fn open(path: PathBuf) -> Result<WalFileReader, WalFileError> {
        let failed = |source| WalFileError::Read { path: path.clone(), source: Arc::new(source) };
        let file = File::open(&path).map_err(failed)?;
        let before = file.metadata().map_err(failed)?;
        if !before.is_file() {
            return Err(WalFileError::NotAFile(path));
        }
        match usize::try_from(before.len()) {
            Ok(len) if before.len() <= MAX_WAL_FILE_BYTES => Ok(WalFileReader { path, file, before, len }),
            _ => Err(WalFileError::StillWritten(path)),
        }
    }

    /// All of it, by two threads: most of the time goes into touching fresh memory, of which huge pages make less.
    fn read(&self) -> Result<Bytes, WalFileError> {
        let failed = |source| WalFileError::Read { path: self.path.clone(), source: Arc::new(source) };
        let mut bytes = MmapMut::map_anon(self.len).map_err(failed)?;
        // A wish only: without them, ordinary pages do.
        let _granted = bytes.advise(Advice::HugePage);
        let (front, back) = bytes.split_at_mut(self.len / 2);
        let middle = front.len() as u64;
        let read = thread::scope(|scope| {
            let back = scope.spawn(|| self.file.read_exact_at(back, middle));
            let front = self.file.read_exact_at(front, 0);
            front.and(back.join().unwrap_or_else(|_panic| Err(io::ErrorKind::Other.into())))
        });
        self.check_unchanged(read)?;
        Ok(Bytes::from_owner(bytes))
    }

    /// Its BLAKE3, by two threads.
    fn hash(&self) -> Result<[u8; 32], WalFileError> {
        let pieces = self.len.div_ceil(HASHED_AT_ONCE_BYTES);
        let read = thread::scope(|scope| {
            let back = scope.spawn(|| self.subtree_hashes(pieces / 2..pieces));
            let mut values = self.subtree_hashes(0..pieces / 2)?;
            values.append(&mut back.join().unwrap_or_else(|_panic| Err(io::ErrorKind::Other.into()))?);
            Ok(values)
        });
        let mut values = Vec::new();
        self.check_unchanged(read.map(|read| values = read))?;
        Ok(chunks::file_hash(&values, self.len as u64))
    }

    /// What some of its pieces of [`HASHED_AT_ONCE_BYTES`] contribute to it.
    fn subtree_hashes(&self, pieces: Range<usize>) -> io::Result<Vec<[u8; 32]>> {
        let mut buffer = vec![0; self.len.min(HASHED_AT_ONCE_BYTES)];
        let mut values = Vec::with_capacity(pieces.len());
        for at in pieces.map(|piece| piece.saturating_mul(HASHED_AT_ONCE_BYTES)) {
            let len = buffer.len().min(self.len.saturating_sub(at));
            let Some(piece) = buffer.get_mut(..len) else { break };
            self.file.read_exact_at(piece, at as u64)?;
            values.push(chunks::chunk_subtree_hash(&[piece], at as u64, self.len as u64));
        }
        Ok(values)
    }

    /// An error if it was not read to its end, or if it is not what it was before.
    fn check_unchanged(&self, read: io::Result<()>) -> Result<(), WalFileError> {
        let failed = |source| WalFileError::Read { path: self.path.clone(), source: Arc::new(source) };
        match read {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(WalFileError::StillWritten(self.path.clone()));
            }
            read => read.map_err(failed)?,
        }
        let after = self.file.metadata().map_err(failed)?;
        let moment = |metadata: &Metadata| (metadata.len(), metadata.mtime(), metadata.mtime_nsec());
        if moment(&self.before) == moment(&after) { Ok(()) } else { Err(WalFileError::StillWritten(self.path.clone())) }
    }
}

#[cfg(test)]
mod tests {
    use super::{WalFileError, WalFileReader};
    use bytes::Bytes;
    use std::fs::File;

    #[test]
    fn only_plain_files_of_a_possible_length_are_read() {
        let read_whole = |path: &std::path::Path| -> Result<Bytes, WalFileError> {
            let source = WalFileReader::open(path.to_owned())?;
            let bytes = source.read()?;
            assert_eq!(source.hash()?, *blake3::hash(&bytes).as_bytes());
            Ok(bytes)
        };
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(read_whole(dir.path()), Err(WalFileError::NotAFile(_))));
        assert!(matches!(read_whole(&dir.path().join("none")), Err(WalFileError::Read { .. })));
        assert!(matches!(read_whole("/dev/zero".as_ref()), Err(WalFileError::NotAFile(_))));
        let long = dir.path().join("long");
        File::create(&long).unwrap().set_len((1 << 30) + 1).unwrap();
        assert!(matches!(read_whole(&long), Err(WalFileError::StillWritten(_))));
        let short = dir.path().join("short");
        std::fs::write(&short, "whole").unwrap();
        assert_eq!(read_whole(&short).unwrap(), "whole");
        std::fs::write(&short, "").unwrap();
        assert_eq!(read_whole(&short).unwrap(), "");
        let large: Vec<u8> = (0..(5 << 20) + 3).map(|n: u32| n.to_le_bytes()[1]).collect();
        std::fs::write(&short, &large).unwrap();
        assert_eq!(read_whole(&short).unwrap(), large);
        for (change, text) in [("longer", "whole and more"), ("shorter", "wh"), ("other", "WHOLE")] {
            std::fs::write(&short, "whole").unwrap();
            let source = WalFileReader::open(short.clone()).unwrap();
            // Another moment on any file system's clock.
            std::thread::sleep(std::time::Duration::from_millis(20));
            std::fs::write(&short, text).unwrap();
            assert!(matches!(source.read(), Err(WalFileError::StillWritten(_))), "{change}");
            assert!(matches!(source.hash(), Err(WalFileError::StillWritten(_))), "{change}");
        }
    }
}
