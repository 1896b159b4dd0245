//! From the archive into a folder: the parts of a snapshot, then the stretches of the stream up to the target.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::absolute_expiry::CommandArrivals;
use super::error::RestoreError;
use super::placement::{DataFileForm, DataFileWriter, PlacedFiles};
use super::redis_conf::DataFileNames;
use crate::base::blocking::run_blocking;
use crate::base::disk;
use crate::redis::archive::{Archive, RestoreRoute};
use crate::redis::format::rdb::RdbLimits;
use crate::redis::format::server_version::RedisVersion;

/// Where to, and for whom.
#[derive(Clone, Debug)]
pub struct RestoreOptions {
    /// The server's folder: new, or empty.
    pub dir: PathBuf,
    /// The server that is to start from it.
    pub version: RedisVersion,
    /// What it calls its files.
    pub names: DataFileNames,
}

/// Whether what is to be written fits where `dir` is or would be, before anything is. What a server adds when it starts
/// comes on top.
///
/// # Errors
/// [`RestoreError::NotEnoughSpace`], or nobody can say.
pub fn check_free_space(reach: &RestoreRoute, dir: &Path) -> Result<(), RestoreError> {
    ensure_free_space(reach.snapshot.logical_bytes.saturating_add(reach.command_bytes()), dir)
}

fn ensure_free_space(needed: u64, dir: &Path) -> Result<(), RestoreError> {
    let dir = disk::nearest_existing(dir);
    let free = disk::free_bytes(dir).map_err(|source| RestoreError::OpenFolder { path: dir.to_owned(), source })?;
    if free < needed { Err(RestoreError::NotEnoughSpace { dir: dir.to_owned(), needed, free }) } else { Ok(()) }
}

/// Writes what a server starts from. `progress` hears how many bytes of how many are written.
///
/// Memory: one part of the snapshot or one stretch of the stream, and what the walker looks into.
///
/// # Errors
/// Something is missing or damaged, or can't be written. Nothing that a server would load is complete then.
pub async fn restore_instance(
    instance: &Archive,
    reach: &RestoreRoute,
    wishes: RestoreOptions,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<PlacedFiles, RestoreError> {
    let form = DataFileForm::for_version(wishes.version, reach.command_bytes() > 0);
    let now = instance.vault().clock().now().as_millisecond();
    let limits = RdbLimits { expired_by: Some(now), ..RdbLimits::default() };
    let total = reach.snapshot.logical_bytes.saturating_add(reach.command_bytes());
    let mut done = 0_u64;
    let mut place = run_blocking(move || DataFileWriter::new(&wishes.dir, form, &wishes.names, limits)).await??;
    for number in 0..reach.snapshot.parts.len() {
        let bytes = instance.read_part(&reach.snapshot, number).await?;
        done = done.saturating_add(bytes.len() as u64);
        place = run_blocking(move || {
            place.push_snapshot(&bytes)?;
            Ok::<_, RestoreError>(place)
        })
        .await??;
        progress(done, total);
    }
    if let (true, Some(from)) = (form.is_append_only(), reach.from) {
        place = run_blocking(move || place.begin_commands(from)).await??;
        for (number, stretch) in reach.stretches.iter().enumerate() {
            let arrivals = CommandArrivals::from_stretch(stretch);
            let bytes: Bytes = instance.read_route_commands(reach, number).await?;
            done = done.saturating_add(bytes.len() as u64);
            place = run_blocking(move || {
                place.push_commands(&bytes, &arrivals)?;
                Ok::<_, RestoreError>(place)
            })
            .await??;
            progress(done, total);
        }
    }
    let to = reach.to.map(|to| to.offset);
    run_blocking(move || place.finish(to)).await?
}

#[cfg(test)]
mod tests {
    use super::{RestoreError, ensure_free_space};

    #[test]
    fn what_does_not_fit_is_not_begun() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("a/b");
        ensure_free_space(1, &below).unwrap();
        let refused = ensure_free_space(1 << 62, &below).unwrap_err();
        assert!(
            matches!(&refused, RestoreError::NotEnoughSpace { dir: at, needed, .. } if at == dir.path() && *needed == 1 << 62),
            "{refused}"
        );
        assert!(!below.exists());
    }
}
