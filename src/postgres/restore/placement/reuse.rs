//! What of a backup's files lies in its place already: found chunk by chunk, by the keyed hashes of the manifest.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::stream::{self, TryStreamExt};

use super::error::PlacementError;
use super::placement_state::{FileProgress, Placement, TargetFile};
use crate::base::blocking::run_blocking;
use crate::postgres::archive::Archive;
use crate::postgres::archive::chunks::{CHUNK_BYTES, ChunkNamer, chunk_subtree_hash};
use crate::postgres::archive::manifest::EntryContent;
use crate::postgres::restore::destination_error::io_error;

/// Files that are read at the same time.
const FILES_IN_FLIGHT: usize = 4;

impl Placement {
    /// Compares the files that are there with the backup's; what is right will not be fetched. Changes nothing:
    /// [`Placement::fit_existing`] cuts and opens up what stays.
    ///
    /// # Errors
    /// [`PlacementError`].
    pub async fn reuse_existing(self: &Arc<Self>, archive: &Archive) -> Result<(), PlacementError> {
        // Without the key of the names nothing can be told, and everything is fetched.
        let Some(namer) = ChunkNamer::for_epoch_key(archive.vault().protection(), self.manifest.summary.naming_key)
        else {
            return Ok(());
        };
        let namer = Arc::new(namer);
        let work = self.targets.keys().map(|&entry| {
            let (placement, namer) = (Arc::clone(self), Arc::clone(&namer));
            Ok(async move {
                let compared = run_blocking(move || placement.compare_file(entry, &namer));
                compared.await?
            })
        });
        stream::iter(work)
            .map_ok(|file| file)
            .try_buffer_unordered(FILES_IN_FLIGHT)
            .try_collect::<Vec<()>>()
            .await
            .map(drop)
    }

    fn compare_file(&self, entry: u32, namer: &ChunkNamer) -> Result<(), PlacementError> {
        let broken = |what| PlacementError::Manifest { label: self.manifest.summary.label.clone(), what };
        let Some(target) = self.targets.get(&entry) else { return Ok(()) };
        let Some(EntryContent::File { chunks, .. }) =
            self.manifest.entries.get(entry as usize).map(|entry| &entry.content)
        else {
            return Ok(());
        };
        let path = &target.path;
        if !self.will_stay(path) {
            return Ok(());
        }
        let file = match File::open(path) {
            // What cannot be read is written again.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) => {
                return Ok(());
            }
            file => file.map_err(io_error("open", path))?,
        };
        let len = file.metadata().map_err(io_error("read", path))?.len();
        let (mut offset, mut values, mut kept) = (0_u64, Vec::new(), 0_u64);
        let mut buffer = vec![0; CHUNK_BYTES as usize];
        for (place, number) in chunks.iter().enumerate() {
            let chunk = self.manifest.chunks.get(*number as usize).ok_or_else(|| broken("a chunk"))?;
            let part = buffer.get_mut(..chunk.len as usize).ok_or_else(|| broken("a chunk"))?;
            if offset.saturating_add(u64::from(chunk.len)) > len {
                break;
            }
            file.read_exact_at(part, offset).map_err(io_error("read", path))?;
            let is = chunk_subtree_hash(&[part], offset, target.len);
            if namer.name(&is) == chunk.name {
                values.push((place, is));
                kept = kept.saturating_add(u64::from(chunk.len));
            }
            offset = offset.saturating_add(u64::from(chunk.len));
        }
        self.keep_chunks(target, &values)?;
        self.placed.fetch_add(kept, Ordering::Relaxed);
        self.reused.fetch_add(kept, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a file is one that a restore over it leaves where it is: no link and no other name, and reached through
    /// no link.
    fn will_stay(&self, path: &Path) -> bool {
        let ground = &self.ground;
        let tops = std::iter::once(ground.pgdata()).chain(ground.tablespaces().values().map(PathBuf::as_path));
        let Some(top) = tops.filter(|top| path.starts_with(top)).max_by_key(|top| top.as_os_str().len()) else {
            return false;
        };
        let is_directory = |above: &Path| above.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
        path.symlink_metadata().is_ok_and(|metadata| metadata.is_file() && metadata.nlink() == 1)
            && path.ancestors().skip(1).take_while(|above| *above != top).all(is_directory)
    }

    /// Cuts what is too long, and lets the owner write to what stays.
    ///
    /// # Errors
    /// [`PlacementError`].
    pub fn fit_existing(&self) -> Result<(), PlacementError> {
        for target in self.targets.values() {
            let path = &target.path;
            let len = match path.symlink_metadata() {
                Ok(metadata) => metadata.len(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // Removed since it was compared: nothing of it is kept.
                    self.forget_chunks(target);
                    continue;
                }
                Err(error) => return Err(io_error("read", path)(error).into()),
            };
            let file = self.create_file(target)?;
            if len > target.len {
                file.set_len(target.len).map_err(io_error("cut", path))?;
            }
        }
        Ok(())
    }

    fn forget_chunks(&self, target: &TargetFile) {
        *target.lock() = FileProgress::default();
    }

    fn keep_chunks(&self, target: &TargetFile, values: &[(usize, [u8; 32])]) -> Result<(), PlacementError> {
        if values.is_empty() {
            return Ok(());
        }
        let mut written = target.lock();
        written.kept.resize(target.pieces as usize, false);
        for (place, _) in values {
            *written.kept.get_mut(*place).ok_or_else(|| target.differs_error())? = true;
        }
        drop(written);
        target.record_chunks(values)
    }

    /// Bytes that were in their places already.
    pub fn reused(&self) -> u64 {
        self.reused.load(Ordering::Relaxed)
    }
}
