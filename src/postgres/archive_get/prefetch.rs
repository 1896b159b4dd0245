//! Segments fetched ahead of PostgreSQL, by a process of their own that outlives the `restore_command` which started
//! it.
//!
//! They lie in a directory of their own, whole, synced and under their own names, so that taking one is a rename. One
//! process at a time fills it, with [`PREFETCHED_SEGMENTS`] segments at the most. The directory is removed when
//! recovery begins or ends, or reaches the archive's end.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;

use super::error::ArchiveGetError;
use super::wal_file_write::write_file;
use crate::base::durable;
use crate::base::lock::FileLock;
use crate::postgres::archive::Archive;
use crate::postgres::format::segment::SegmentName;

/// How many segments may lie ready. At 16 MiB that is 128 MiB of disk, and a second or two of replay.
pub const PREFETCHED_SEGMENTS: u64 = 8;

/// How many are fetched at the same time: one waits for the network or the disk while another is opened.
const FETCHES_IN_FLIGHT: usize = 2;

/// Held by the process that fills the directory.
const LOCK_FILE: &str = "lock";

/// Starts a process that calls [`fill_directory`] with this directory and this segment, and does not wait for it.
pub type PrefetchStarter = dyn Fn(&Path, SegmentName) -> io::Result<()> + Send + Sync;

/// Where segments lie ready, and how more are had.
pub struct Prefetch {
    dir: PathBuf,
    start: Box<PrefetchStarter>,
}

impl std::fmt::Debug for Prefetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prefetch").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Prefetch {
    /// Prefetching for the server that `dest` belongs to. The directory stands beside its data directory, never in it,
    /// where backups and pg_rewind would find it; or in `state_dir` if there is no writing beside it. `None` if there
    /// is no such place either.
    #[must_use]
    pub fn for_destination(dest: &Path, state_dir: &Path, start: Box<PrefetchStarter>) -> Option<Prefetch> {
        let folder = dest.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let pg_wal = folder.canonicalize().ok()?;
        // Two servers never share a directory: its name is made from the place of their pg_wal.
        let id: String = blake3::hash(pg_wal.as_os_str().as_encoded_bytes()).to_hex().chars().take(16).collect();
        let name = format!(".walkeep-prefetch-{id}");
        let beside_data = pg_wal.parent().and_then(Path::parent).map(|dir| dir.join(&name));
        let dirs = beside_data.into_iter().chain([state_dir.join(&name)]);
        let dir = dirs.into_iter().find(|dir| create_dir(dir).is_ok())?;
        Some(Prefetch { dir, start })
    }

    /// Moves a segment that lies ready to `dest`, durably; `false` if it does not.
    pub(super) fn place_ready_segment(&self, segment: SegmentName, dest: &Path) -> Result<bool, ArchiveGetError> {
        let ready = self.dir.join(segment.to_string());
        if !ready.exists() {
            return Ok(false);
        }
        match durable::rename(&ready, dest) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            // pg_wal is on a disk of its own. The ordinary way is as good as a copy.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
                drop(fs::remove_file(&ready));
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Sees to it that what follows `segment` is being fetched, unless enough lies ready or somebody is at it.
    pub(super) fn ensure_fetching_after(&self, segment: SegmentName) {
        if ready_segments(&self.dir).is_ok_and(|ready| ready.len() as u64 * 2 >= PREFETCHED_SEGMENTS)
            || try_lock(&self.dir).is_none()
        {
            return;
        }
        if let Err(error) = (self.start)(&self.dir, segment) {
            tracing::warn!(%error, "cannot start fetching ahead; recovery goes on, a little slower");
        }
    }

    /// Removes the directory with all that lies ready. Whoever fills it notices.
    pub fn remove_dir(&self) {
        drop(fs::remove_dir_all(&self.dir));
    }
}

fn create_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        made => made,
    }
}

/// The names of the segments that lie ready.
fn ready_segments(dir: &Path) -> io::Result<Vec<SegmentName>> {
    let names = fs::read_dir(dir)?.map(|entry| Ok(SegmentName::parse(&entry?.file_name().to_string_lossy())));
    names.filter_map(Result::transpose).collect()
}

/// The directory's lock, unless another process has it. Held until dropped.
fn try_lock(dir: &Path) -> Option<FileLock> {
    let file = File::options().create(true).truncate(false).write(true).open(dir.join(LOCK_FILE)).ok()?;
    FileLock::acquire(file).ok()
}

/// Fetches the [`PREFETCHED_SEGMENTS`] segments that follow `after` into the directory, and removes others from it.
/// Ends at the first that is not there or cannot be had: whoever needs it asks for it again, and reports what is wrong
/// with it. Does nothing if another process is at it.
///
/// # Errors
/// The archive does not say what the cluster is.
pub async fn fill_directory(archive: &Arc<Archive>, dir: &Path, after: SegmentName) -> Result<(), ArchiveGetError> {
    let Some(identity) = archive.identity().await? else { return Ok(()) };
    let size = identity.segment_size;
    let Some(first) = after.number(size).map(crate::postgres::format::segment::SegmentNo::next) else { return Ok(()) };
    let Some(_lock) = try_lock(dir) else { return Ok(()) };
    let numbers = std::iter::successors(Some(first), |number| Some(number.next()));
    let count = usize::try_from(PREFETCHED_SEGMENTS).unwrap_or(usize::MAX);
    let wanted: Vec<SegmentName> =
        numbers.take(count).filter_map(|number| SegmentName::new(after.timeline(), number, size)).collect();
    let lying = ready_segments(dir).unwrap_or_default();
    for stale in lying.iter().filter(|name| !wanted.contains(name)) {
        drop(fs::remove_file(dir.join(stale.to_string())));
    }
    let missing = wanted.into_iter().filter(|name| !lying.contains(name));
    let mut fetched = stream::iter(missing)
        .map(|name| async move { (name, archive.segment(name).await) })
        .buffered(FETCHES_IN_FLIGHT);
    while let Some((name, segment)) = fetched.next().await {
        let Some(bytes) = usable_segment(name, segment) else { break };
        // The directory is gone once recovery has ended.
        if write_file(bytes, &dir.join(name.to_string())).await.is_err() {
            break;
        }
    }
    Ok(())
}

fn usable_segment(
    name: SegmentName,
    segment: Result<Option<Bytes>, crate::postgres::archive::ArchiveError>,
) -> Option<Bytes> {
    segment.unwrap_or_else(|error| {
        tracing::warn!(%error, segment = %name, "cannot fetch ahead");
        None
    })
}
