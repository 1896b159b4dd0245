//! Both restores, one after the other: the folders and their space are checked before either begins.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::error::JointError;
use super::plan::{JointPlan, JointRestores};
use crate::base::disk::nearest_existing;
use crate::redis::restore::RestoreError;

/// Checks that both folders are free and that neither is within the other, before anything is written to one of them.
///
/// # Errors
/// [`JointError`].
pub fn check_destinations(pgdata: &Path, redis_dir: &Path) -> Result<(), JointError> {
    if pgdata.starts_with(redis_dir) || redis_dir.starts_with(pgdata) {
        return Err(JointError::NestedFolders { pgdata: pgdata.to_owned(), redis_dir: redis_dir.to_owned() });
    }
    for (option, dir) in [("--pgdata", pgdata), ("--redis-dir", redis_dir)] {
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(read_error(dir)(error)),
        };
        for entry in entries {
            let found = entry.map_err(read_error(dir))?.file_name();
            // File systems put this into the root of a volume. PostgreSQL accepts no such directory, Redis does.
            if option == "--pgdata" || found != "lost+found" {
                let found = found.to_string_lossy().into_owned();
                return Err(JointError::FolderNotEmpty { option, dir: dir.to_owned(), found });
            }
        }
    }
    Ok(())
}

/// Checks that both fit if they go to one file system. That each of them fits by itself is checked elsewhere.
///
/// # Errors
/// [`JointError`].
pub fn check_free_space(
    plan: &JointPlan,
    restores: JointRestores<'_>,
    pgdata: &Path,
    redis_dir: &Path,
) -> Result<(), JointError> {
    let JointRestores { postgres, redis } = restores;
    let Some(room) = &postgres.room else { return Ok(()) };
    let of_redis = redis.snapshot.logical_bytes.saturating_add(redis.command_bytes());
    let (needed, free) = (room.needed_bytes.saturating_add(of_redis), room.free_bytes);
    if needed <= free || device_of(pgdata)? != device_of(redis_dir)? {
        return Ok(());
    }
    Err(JointError::SharedFileSystem {
        cluster: plan.cluster_name().to_owned(),
        instance: plan.instance_name().to_owned(),
        source: Box::new(RestoreError::NotEnoughSpace { dir: redis_dir.to_owned(), needed, free }),
    })
}

/// The file system that `dir` is on, or would be on.
fn device_of(dir: &Path) -> Result<u64, JointError> {
    let existing = nearest_existing(dir);
    existing.metadata().map(|known| known.dev()).map_err(read_error(existing))
}

fn read_error(path: &Path) -> impl FnOnce(std::io::Error) -> JointError {
    let path = path.to_owned();
    move |source| JointError::ReadFolder { path, source }
}

/// The restore that failed. Redis is not touched if PostgreSQL failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JointFailure<E> {
    /// The restore of the cluster.
    Postgres(E),
    /// The restore of the instance. The cluster is restored.
    Redis(E),
}

/// Carries out both restores. PostgreSQL is first: its server takes the longest to reach the moment, and may not reach
/// it. Redis is restored only if PostgreSQL is.
///
/// # Errors
/// The restore that failed.
pub async fn restore_in_order<P, R, E>(
    postgres: impl AsyncFnOnce() -> Result<P, E>,
    redis: impl AsyncFnOnce() -> Result<R, E>,
) -> Result<(P, R), JointFailure<E>> {
    let restored = postgres().await.map_err(JointFailure::Postgres)?;
    Ok((restored, redis().await.map_err(JointFailure::Redis)?))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::fs;

    use super::{JointFailure, check_destinations, restore_in_order};
    use crate::base::error_kind::{ErrorKind, HasKind as _};

    #[test]
    fn folders_are_apart_and_empty() {
        let dir = tempfile::tempdir().unwrap();
        let [pgdata, redis_dir] = ["pg", "redis"].map(|name| dir.path().join(name));
        check_destinations(&pgdata, &redis_dir).unwrap();
        assert!(check_destinations(dir.path(), &redis_dir).is_err_and(|error| error.kind() == ErrorKind::Usage));
        fs::create_dir_all(redis_dir.join("lost+found")).unwrap();
        check_destinations(&pgdata, &redis_dir).unwrap();
        fs::create_dir_all(pgdata.join("lost+found")).unwrap();
        let error = check_destinations(&pgdata, &redis_dir).unwrap_err();
        let message = format!(
            "--pgdata {} is not empty, it has lost+found; nothing was touched, name another folder",
            pgdata.display()
        );
        assert_eq!((error.kind(), error.to_string()), (ErrorKind::Usage, message));
    }

    #[tokio::test]
    async fn nothing_is_begun_after_a_failure() {
        for (failing, expected) in
            [(0, Err(JointFailure::Postgres(0))), (1, Err(JointFailure::Redis(1))), (2, Ok((0, 1)))]
        {
            let done = RefCell::new(Vec::new());
            let step = |number: usize| {
                done.borrow_mut().push(number);
                if number == failing { Err(number) } else { Ok(number) }
            };
            assert_eq!(restore_in_order(async || step(0), async || step(1)).await, expected);
            assert_eq!(done.into_inner(), (0..=failing.min(1)).collect::<Vec<_>>());
        }
    }
}
