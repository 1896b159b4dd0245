//! Segments fetched ahead of PostgreSQL, by a process of their own that outlives the `restore_command` which started
//! it.
//!
//! They lie in a directory of their own, whole, synced and under their own names, so that taking one is a rename. One
//! process at a time fills it, with [`PREFETCHED_SEGMENTS`] segments at the most. The directory is removed when
//! recovery begins or ends, or reaches the archive's end.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
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
use crate::postgres::format::pg_control::PgControl;
use crate::postgres::format::segment::{SegmentName, SystemId};

/// How many segments may lie ready. At 16 MiB that is 128 MiB of disk, and a second or two of replay.
pub const PREFETCHED_SEGMENTS: u64 = 8;

/// How many are fetched at the same time: one waits for the network or the disk while another is opened.
const FETCHES_IN_FLIGHT: usize = 2;

/// Held by the process that fills the directory.
const LOCK_FILE: &str = "lock";

/// Names the cluster whose segments are there, by its system identifier.
const CLUSTER_FILE: &str = "cluster";

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
        let cluster = system_identifier_beside(folder).map_or_else(String::new, |system| system.get().to_string());
        let dir = dirs.into_iter().find(|dir| create_dir(dir).and_then(|()| claim_dir(dir, &cluster)).is_ok())?;
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
            // pg_wal is on a disk of its own.
            Err(error) if error.kind() == io::ErrorKind::CrossesDevices => copy_ready_segment(&ready, dest),
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

/// Copies a segment to another file system, durably; `false` if it is gone, or cut short.
fn copy_ready_segment(ready: &Path, dest: &Path) -> Result<bool, ArchiveGetError> {
    let Ok(bytes) = fs::read(ready) else { return Ok(false) };
    durable::replace_file(dest, &bytes, 0o600)?;
    drop(fs::remove_file(ready));
    Ok(true)
}

/// The cluster of the data directory that has this `pg_wal`. The server may be writing the file just now.
fn system_identifier_beside(pg_wal: &Path) -> Option<SystemId> {
    let control = pg_wal.parent()?.join("global/pg_control");
    (0..3).find_map(|_| PgControl::parse(&fs::read(&control).ok()?).ok()).map(|control| control.system_id)
}

/// Empties the directory if it has another cluster's segments, left by a restore at the same place that did not get to
/// its end: segments of different clusters have the same names.
fn claim_dir(dir: &Path, cluster: &str) -> io::Result<()> {
    let file = dir.join(CLUSTER_FILE);
    if fs::read_to_string(&file).is_ok_and(|claimed| claimed == cluster) {
        return Ok(());
    }
    fs::remove_dir_all(dir)?;
    DirBuilder::new().mode(0o700).create(dir)?;
    fs::write(&file, cluster)
}

/// Makes the directory. An existing one must belong to this user, and no other user may write to it: its files are
/// replayed as WAL.
fn create_dir(dir: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            let found = dir.symlink_metadata()?;
            let user = rustix::process::geteuid().as_raw();
            if found.is_dir() && found.uid() == user && found.mode() & 0o022 == 0 {
                return Ok(());
            }
            tracing::warn!(dir = %dir.display(), "another user can write to it, so it is not used for fetching ahead");
            Err(error)
        }
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
        // The directory is gone once recovery has ended, and may be another cluster's by now.
        if !is_for_cluster(dir, identity.system_id) || write_file(bytes, &dir.join(name.to_string())).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Whether no other cluster has claimed the directory.
fn is_for_cluster(dir: &Path, system: SystemId) -> bool {
    let claimed = fs::read_to_string(dir.join(CLUSTER_FILE)).unwrap_or_default();
    claimed.is_empty() || claimed == system.get().to_string()
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::{CLUSTER_FILE, Prefetch, copy_ready_segment, is_for_cluster};
    use crate::postgres::format::segment::SystemId;

    const PG_CONTROL: &[u8] = include_bytes!("../../../tests/fixtures/control/15-production.pg_control");

    fn prefetch_for(root: &Path) -> Option<Prefetch> {
        Prefetch::for_destination(&root.join("data/pg_wal/RECOVERYXLOG"), &root.join("state"), Box::new(|_, _| Ok(())))
    }

    fn scene() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for dir in ["data/pg_wal", "data/global", "state"] {
            fs::create_dir_all(root.path().join(dir)).unwrap();
        }
        fs::write(root.path().join("data/global/pg_control"), PG_CONTROL).unwrap();
        root
    }

    #[test]
    fn segments_of_another_cluster_at_the_same_place_are_removed() {
        let root = scene();
        let dir = prefetch_for(root.path()).unwrap().dir;
        let segment = dir.join("000000010000000000000004");
        fs::write(&segment, "this cluster's").unwrap();
        assert!(prefetch_for(root.path()).is_some() && segment.exists(), "the same cluster asks again");
        fs::write(dir.join(CLUSTER_FILE), "4711").unwrap();
        assert!(!is_for_cluster(&dir, SystemId::new(8)) && is_for_cluster(&dir, SystemId::new(4711)));
        assert!(prefetch_for(root.path()).is_some_and(|again| again.dir == dir) && !segment.exists());
        // An earlier version of walkeep wrote no such file.
        fs::write(&segment, "whose?").unwrap();
        fs::remove_file(dir.join(CLUSTER_FILE)).unwrap();
        assert!(prefetch_for(root.path()).is_some() && !segment.exists());
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_not_used() {
        let root = scene();
        let dir = prefetch_for(root.path()).unwrap().dir;
        assert_eq!(dir.parent(), Some(root.path().canonicalize().unwrap().as_path()));
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
        let other = prefetch_for(root.path()).unwrap().dir;
        assert_eq!(other.parent(), Some(root.path().join("state").as_path()));
        fs::remove_dir_all(&dir).unwrap();
        std::os::unix::fs::symlink(&other, &dir).unwrap();
        assert_eq!(prefetch_for(root.path()).unwrap().dir, other, "a link may lead anywhere");
    }

    #[test]
    fn a_segment_is_copied_to_another_file_system() {
        let root = tempfile::tempdir().unwrap();
        let (ready, dest) = (root.path().join("ready"), root.path().join("dest"));
        fs::write(&ready, "segment").unwrap();
        assert!(copy_ready_segment(&ready, &dest).unwrap());
        assert_eq!((fs::read(&dest).unwrap(), ready.exists()), (b"segment".to_vec(), false));
        assert!(!copy_ready_segment(&ready, &dest).unwrap(), "it is gone");
    }
}
