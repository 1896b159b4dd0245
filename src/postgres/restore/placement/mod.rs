//! Putting a backup's files in their places, in parallel by pack, each verified against its hash.
//!
//! The order is the safety. The marker stands from the first file to the last; `global/pg_control` gets its name only
//! when everything else is on the disk for good, so that what an aborted restore leaves cannot be started (I6).

#[cfg(test)]
mod tests;
pub(super) mod error;
mod placement_state;
mod reuse;

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use futures_util::stream::{self, TryStreamExt};

use super::created_tablespace::CreatedTablespace;
use super::delta;
use super::destination::CheckedDestination;
use super::destination_error::{DestinationError, RESTORE_MARKER, io_error};
use super::left_out_files::is_left_out;
use crate::base::blocking::run_blocking;
use crate::base::durable::{self, Filesystem};
use crate::base::lock::FileLock;
use crate::postgres::archive::Archive;
use crate::postgres::archive::chunks::{
    CHUNK_BYTES, ChunkSubtreeHash, Pack, PackError, PackId, chunk_subtree_hash, file_hash, pack_binding,
};
use crate::postgres::archive::manifest::{EntryContent, Manifest, ManifestEntry};
use crate::postgres::format::pg_control::PgControl;
use crate::vault::seal::SealedKind;

pub use error::PlacementError;
pub use placement_state::Placement;
use placement_state::{ChunkPlacement, FileProgress, TargetFile};

/// What `pg_control` is called until all else is in place.
const STAGED_PG_CONTROL_NAME: &str = "pg_control.walkeep";
const PG_CONTROL_PATH: &str = "global/pg_control";

/// The rights that the owner of a file or directory has while it is filled.
const OWNER_FILE_MODE: u32 = 0o600;
const OWNER_DIRECTORY_MODE: u32 = 0o700;

/// Packs that are fetched or placed at the same time; each is up to 32 MiB, and as much again while it is opened.
const PACKS_IN_FLIGHT: usize = 4;

impl Placement {
    /// Works out which pack has what for which file.
    ///
    /// # Errors
    /// [`PlacementError::Manifest`].
    pub fn new(manifest: Arc<Manifest>, ground: CheckedDestination) -> Result<Placement, PlacementError> {
        let broken = |what| PlacementError::Manifest { label: manifest.summary.label.clone(), what };
        let mut by_pack: Vec<Vec<ChunkPlacement>> = manifest.packs.iter().map(|_| Vec::new()).collect();
        let mut targets = BTreeMap::new();
        for (entry_number, entry) in (0_u32..).zip(&manifest.entries) {
            let EntryContent::File { hash, chunks, .. } = &entry.content else { continue };
            if is_left_out(&entry.path) {
                continue;
            }
            let mut offset = 0_u64;
            for &number in chunks {
                let chunk = manifest.chunks.get(number as usize).ok_or_else(|| broken("a chunk"))?;
                let pack = by_pack.get_mut(chunk.pack as usize).ok_or_else(|| broken("a pack"))?;
                pack.push(ChunkPlacement { entry: entry_number, chunk: number, offset });
                offset = offset.saturating_add(u64::from(chunk.len));
            }
            let target = TargetFile {
                path: staged_path(&ground, entry),
                mode: entry.mode,
                hash: *hash,
                len: offset,
                pieces: u32::try_from(chunks.len()).unwrap_or(u32::MAX),
                written: Mutex::default(),
            };
            targets.insert(entry_number, target);
        }
        Ok(Placement {
            manifest,
            ground,
            targets,
            by_pack,
            placed: AtomicU64::new(0),
            reused: AtomicU64::new(0),
            filesystems: OnceLock::new(),
            marker: OnceLock::new(),
            found_marker: AtomicBool::new(false),
        })
    }

    /// The data directory.
    #[must_use]
    pub fn pgdata(&self) -> &Path {
        self.ground.pgdata()
    }

    /// Where a tablespace was put, if outside the data directory.
    #[must_use]
    pub fn tablespace_path(&self, oid: u32) -> Option<&Path> {
        self.ground.tablespaces().get(&oid).filter(|_| !self.ground.is_in_place(oid)).map(PathBuf::as_path)
    }

    /// Bytes placed so far.
    pub fn placed(&self) -> u64 {
        self.placed.load(Ordering::Relaxed)
    }

    /// The data directory's own mode is that of every directory in it; PostgreSQL insists on 0700 or 0750.
    fn mode(&self) -> u32 {
        let base = self.manifest.entries.iter().find(|entry| entry.path == Path::new("base"));
        base.map_or(0o700, |base| base.mode & 0o750)
    }

    /// Claims a data directory that is there, without changing anything in it yet: the marker is written and locked.
    ///
    /// # Errors
    /// [`DestinationError::Busy`], and what the operating system said.
    pub fn claim_directory(&self) -> Result<(), PlacementError> {
        self.create_marker(true)
    }

    /// Gives up a claim if nothing has been changed yet, so that the directory is as it was.
    pub fn release_directory(&self) {
        let pgdata = self.ground.pgdata();
        // After a restore that was killed the directory is not whole, and the marker must stay.
        let whole = pgdata.join(PG_CONTROL_PATH).exists();
        if self.marker.get().is_some() && whole && !self.found_marker.load(Ordering::Relaxed) {
            drop(fs::remove_file(pgdata.join(RESTORE_MARKER)));
        }
    }

    /// Makes the data directory, and in it the marker, locked.
    fn create_marker(&self, again: bool) -> Result<(), PlacementError> {
        if self.marker.get().is_some() {
            return Ok(());
        }
        let pgdata = self.ground.pgdata();
        if !again {
            self.ground.create_dir(pgdata, self.mode())?;
        }
        let marker = pgdata.join(RESTORE_MARKER);
        self.found_marker.store(marker.exists(), Ordering::Relaxed);
        if !again || !marker.exists() {
            durable::write_new(&marker, delta::marker_text(self.manifest.summary.system_id).as_bytes(), 0o600)?;
        }
        let file = File::open(&marker).map_err(io_error("open", &marker))?;
        let locked = match FileLock::acquire(file) {
            Ok(locked) => Some(locked),
            Err(TryLockError::WouldBlock) => return Err(DestinationError::Busy { path: pgdata.to_owned() }.into()),
            // Some file systems have no locks; then the marker alone must do.
            Err(TryLockError::Error(_)) => None,
        };
        let _only_once = self.marker.set(locked);
        Ok(())
    }

    /// Makes a data directory that is there one to restore into: it cannot be started any more, and has nothing that
    /// the backup has not. Answers with what should be known of it ([`delta`]).
    ///
    /// # Errors
    /// [`PlacementError`].
    pub fn take_over_directory(&self, force: bool) -> Result<Vec<String>, PlacementError> {
        self.create_marker(true)?;
        delta::make_unstartable(self.ground.pgdata(), force)?;
        let staged = Path::new(PG_CONTROL_PATH).with_file_name(STAGED_PG_CONTROL_NAME);
        Ok(delta::remove_extra_files(&self.ground, &self.manifest, &staged)?.notes)
    }

    /// Makes the directories, links and empty files. From here on the marker stands.
    ///
    /// # Errors
    /// [`PlacementError`].
    pub fn create_layout(&self) -> Result<(), PlacementError> {
        let (ground, entries, mode) = (&self.ground, &self.manifest.entries, self.mode());
        self.create_marker(false)?;
        ground.create_dir(ground.pgdata(), mode)?;
        for (&oid, path) in ground.tablespaces() {
            ground.create_dir(path, mode)?;
            let link = ground.pgdata().join("pg_tblspc").join(oid.to_string());
            if !ground.is_in_place(oid) {
                ground.create_dir(&ground.pgdata().join("pg_tblspc"), mode)?;
                create_link(path, &link)?;
            }
        }
        if let Some(waldir) = ground.waldir() {
            ground.create_dir(waldir, mode)?;
            let pg_wal = ground.pgdata().join("pg_wal");
            // A link that exists was checked to lead there, perhaps by another path.
            if !pg_wal.is_symlink() {
                create_link(waldir, &pg_wal)?;
            }
        }
        let places = std::iter::once(ground.pgdata()).chain(ground.tablespaces().values().map(PathBuf::as_path));
        let places = places.chain(ground.waldir());
        let filesystems = places.map(Filesystem::containing).collect::<Result<Vec<_>, _>>()?;
        let _only_once = self.filesystems.set(filesystems);
        for entry in entries {
            self.create_entry(entry)?;
        }
        // BASE_BACKUP has it as an empty directory; without it the server does not start.
        ground.create_dir(&ground.pgdata().join("pg_wal"), mode)?;
        for target in self.targets.values().filter(|target| target.pieces == 0) {
            self.create_file(target)?.set_len(0).map_err(io_error("cut", &target.path))?;
            target.check_hash(&[])?;
        }
        Ok(())
    }

    /// Makes the directories that replay wants to find for tablespaces it makes; without them recovery ends with an
    /// error.
    ///
    /// # Errors
    /// [`PlacementError`].
    pub fn create_tablespaces(&self, made: &[CreatedTablespace]) -> Result<(), PlacementError> {
        for space in made.iter().map(|made| Path::new(&made.location)).filter(|space| !space.exists()) {
            self.ground.create_dir(space, 0o700)?;
        }
        Ok(())
    }

    fn create_entry(&self, entry: &ManifestEntry) -> Result<(), PlacementError> {
        let path = self.ground.path_of(&entry.path);
        match &entry.content {
            // The last step takes from the owner what the owner did not have.
            EntryContent::Directory => self.ground.create_dir(&path, entry.mode | OWNER_DIRECTORY_MODE)?,
            // The links of tablespaces are made by what the restore was told, not by what the backup remembers.
            EntryContent::Link(_) if entry.path.starts_with("pg_tblspc") => {}
            EntryContent::Link(to) => create_link(to, &path)?,
            EntryContent::File { .. } => {}
        }
        Ok(())
    }

    /// Opens a file for writing. A read-only file gets its mode in the last step, because other packs hold its other
    /// pieces.
    fn create_file(&self, target: &TargetFile) -> Result<File, PlacementError> {
        let (path, mode) = (&target.path, target.mode | OWNER_FILE_MODE);
        // Several threads may come with pieces of one file; the first creates it.
        let open = || OpenOptions::new().write(true).create(true).truncate(false).mode(mode).open(path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && path.is_file() => {
                self.ground.set_mode_and_owner(path, mode)?;
                open()
            }
            opened => opened,
        };
        let file = file.map_err(io_error("create", path))?;
        self.ground.set_mode_and_owner(path, mode)?;
        Ok(file)
    }

    /// Takes from their owner the rights that the backup's files and directories do not give.
    fn set_last_modes(&self) -> Result<(), PlacementError> {
        for target in self.targets.values().filter(|target| target.mode & OWNER_FILE_MODE != OWNER_FILE_MODE) {
            self.ground.set_mode_and_owner(&target.path, target.mode)?;
        }
        let mut directories = self.manifest.entries.iter().rev().filter(|entry| {
            matches!(entry.content, EntryContent::Directory)
                && entry.mode & OWNER_DIRECTORY_MODE != OWNER_DIRECTORY_MODE
        });
        let set = |entry: &ManifestEntry| self.ground.set_mode_and_owner(&self.ground.path_of(&entry.path), entry.mode);
        Ok(directories.try_for_each(set)?)
    }

    /// Fetches and opens the first pack that is needed, and writes nothing: it proves that packs can be had and that
    /// their keys are here.
    ///
    /// # Errors
    /// [`PlacementError`].
    pub async fn try_first_pack(&self, archive: &Archive) -> Result<(), PlacementError> {
        let first = self.manifest.packs.iter().enumerate().find(|(number, _)| self.has_chunks_of(*number));
        match first {
            Some((_, id)) => fetch_pack(archive, *id).await.map(drop),
            None => Ok(()),
        }
    }

    /// Fetches every pack once and puts its chunks where they belong, several packs at a time.
    ///
    /// # Errors
    /// [`PlacementError`].
    pub async fn write_packs(self: &Arc<Self>, archive: &Arc<Archive>) -> Result<(), PlacementError> {
        let packs = self.manifest.packs.iter().enumerate().filter(|(number, _)| self.has_chunks_of(*number));
        let work = packs.map(|(number, id)| {
            let (placement, archive, id) = (Arc::clone(self), Arc::clone(archive), *id);
            Ok(async move {
                let pack = fetch_pack(&archive, id).await?;
                let written = run_blocking(move || placement.write_pack(number, &pack));
                written.await?
            })
        });
        stream::iter(work)
            .map_ok(|future| future)
            .try_buffer_unordered(PACKS_IN_FLIGHT)
            .try_collect::<Vec<()>>()
            .await?;
        Ok(())
    }

    fn has_chunks_of(&self, pack: usize) -> bool {
        self.by_pack.get(pack).is_some_and(|pieces| pieces.iter().any(|piece| !self.is_kept(piece)))
    }

    /// Whether a piece was in its place before.
    fn is_kept(&self, piece: &ChunkPlacement) -> bool {
        let at_chunk = usize::try_from(piece.offset / u64::from(CHUNK_BYTES)).unwrap_or(usize::MAX);
        let target = self.targets.get(&piece.entry);
        target.is_some_and(|target| target.lock().kept.get(at_chunk).is_some_and(|kept| *kept))
    }

    /// Writes every piece that a pack has, file by file.
    fn write_pack(&self, number: usize, pack: &Pack) -> Result<(), PlacementError> {
        let pieces = self.by_pack.get(number).map_or(&[][..], Vec::as_slice);
        for pieces in pieces.chunk_by(|one, other| one.entry == other.entry) {
            let Some(target) = pieces.first().and_then(|piece| self.targets.get(&piece.entry)) else { continue };
            self.write_chunks(target, pieces, pack)?;
        }
        Ok(())
    }

    fn write_chunks(&self, target: &TargetFile, pieces: &[ChunkPlacement], pack: &Pack) -> Result<(), PlacementError> {
        let pieces: Vec<&ChunkPlacement> = pieces.iter().filter(|piece| !self.is_kept(piece)).collect();
        if pieces.is_empty() {
            return Ok(());
        }
        let file = self.create_file(target)?;
        let mut values = Vec::with_capacity(pieces.len());
        for piece in pieces {
            let broken = || PlacementError::Manifest { label: self.manifest.summary.label.clone(), what: "a chunk" };
            let chunk = self.manifest.chunks.get(piece.chunk as usize).ok_or_else(broken)?;
            let content = pack.chunk(chunk)?;
            let at_chunk = usize::try_from(piece.offset / u64::from(CHUNK_BYTES)).unwrap_or(usize::MAX);
            values.push((at_chunk, chunk_subtree_hash(&[&content], piece.offset, target.len)));
            file.write_all_at(&content, piece.offset).map_err(io_error("write", &target.path))?;
            self.placed.fetch_add(u64::from(chunk.len), Ordering::Relaxed);
        }
        target.record_chunks(&values)
    }

    fn check_whole(&self) -> Result<(), PlacementError> {
        let whole = |target: &&TargetFile| target.lock().count == target.pieces;
        match self.targets.values().find(|target| !whole(target)) {
            Some(target) => Err(PlacementError::HashDiffers { path: target.path.clone() }),
            None => Ok(()),
        }
    }

    /// A file that belongs beside the backup's own: written and durable, over whatever has its name.
    ///
    /// # Errors
    /// [`PlacementError`].
    pub fn write_extra_file(&self, name: &str, bytes: &[u8]) -> Result<(), PlacementError> {
        let path = self.ground.pgdata().join(name);
        if let Some(dir) = path.parent().filter(|dir| !dir.is_dir()) {
            self.ground.create_dir(dir, self.mode())?;
        }
        // As the data directory: readable by the group if that is (`initdb --allow-group-access`).
        let mode = self.mode() & 0o640;
        durable::replace_file(&path, bytes, mode)?;
        Ok(self.ground.set_mode_and_owner(&path, mode)?)
    }

    /// A small text file of those that were placed; empty if there is none.
    ///
    /// # Errors
    /// [`PlacementError`].
    pub fn read_placed(&self, name: &str) -> Result<String, PlacementError> {
        Ok(String::from_utf8_lossy(&self.read_placed_bytes(name)?.unwrap_or_default()).into_owned())
    }

    /// A small file of those that were placed; `None` if there is none.
    ///
    /// # Errors
    /// [`PlacementError`].
    pub fn read_placed_bytes(&self, name: &str) -> Result<Option<Vec<u8>>, PlacementError> {
        let path = self.ground.pgdata().join(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io_error("read", &path)(error).into()),
        }
    }

    /// The last step: everything is made durable, then `pg_control` gets its name, then the marker goes.
    ///
    /// # Errors
    /// [`PlacementError`].
    pub fn finish(&self) -> Result<PgControl, PlacementError> {
        self.check_whole()?;
        let pgdata = self.ground.pgdata();
        let staged = pgdata.join("global").join(STAGED_PG_CONTROL_NAME);
        let control = PgControl::parse(&fs::read(&staged).map_err(io_error("read", &staged))?)?;
        self.set_last_modes()?;
        for filesystem in self.filesystems.get().into_iter().flatten() {
            filesystem.sync()?;
        }
        durable::rename(&staged, &pgdata.join(PG_CONTROL_PATH))?;
        let marker = pgdata.join(RESTORE_MARKER);
        fs::remove_file(&marker).map_err(io_error("remove", &marker))?;
        durable::sync_dir(pgdata)?;
        Ok(control)
    }
}

/// Fetches a pack and opens it.
pub(super) async fn fetch_pack(archive: &Archive, id: PackId) -> Result<Pack, PlacementError> {
    let (key, _) = pack_binding(archive.layout(), id).map_err(PackError::from)?;
    let opened = archive.vault().get_object(SealedKind::Pack, &key).await?.ok_or(PlacementError::PackMissing(id))?;
    Ok(Pack::from_opened(id, opened)?)
}

/// A link, unless it is there already.
fn create_link(to: &Path, path: &Path) -> Result<(), DestinationError> {
    if fs::read_link(path).is_ok_and(|is| is == to) {
        return Ok(());
    }
    std::os::unix::fs::symlink(to, path).map_err(io_error("create", path))
}

fn staged_path(ground: &CheckedDestination, entry: &ManifestEntry) -> PathBuf {
    let path = ground.path_of(&entry.path);
    if entry.path == Path::new(PG_CONTROL_PATH) { path.with_file_name(STAGED_PG_CONTROL_NAME) } else { path }
}

impl TargetFile {
    fn lock(&self) -> MutexGuard<'_, FileProgress> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the values of chunks that were written; with the last of them, checks the file's hash.
    fn record_chunks(&self, values: &[(usize, ChunkSubtreeHash)]) -> Result<(), PlacementError> {
        let mut written = self.lock();
        written.values.resize(self.pieces as usize, [0; 32]);
        for (place, value) in values {
            *written.values.get_mut(*place).ok_or_else(|| self.differs_error())? = *value;
        }
        written.count = written.count.saturating_add(u32::try_from(values.len()).unwrap_or(u32::MAX));
        if written.count < self.pieces {
            return Ok(());
        }
        let values = std::mem::take(&mut written.values);
        drop(written);
        self.check_hash(&values)
    }

    fn check_hash(&self, values: &[ChunkSubtreeHash]) -> Result<(), PlacementError> {
        if file_hash(values, self.len) == self.hash { Ok(()) } else { Err(self.differs_error()) }
    }

    fn differs_error(&self) -> PlacementError {
        PlacementError::HashDiffers { path: self.path.clone() }
    }
}
