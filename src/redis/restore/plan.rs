//! From what the user asks for to the snapshot and the commands that restore it.

use crate::base::error_kind::{ErrorKind, HasKind};
use crate::base::restore_estimate::RestoreWork;
use crate::redis::archive::{Archive, RedisTarget, RestoreRoute, StreamPosition, UnreachableState};
use crate::vault::VaultError;

/// What is to be restored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RedisRestoreRequest {
    /// The target.
    pub target: RequestedTarget,
    /// The label of the snapshot to begin with, if the user chose one.
    pub backup: Option<String>,
    /// Take the newest reachable moment before the target if the target cannot be reached.
    pub nearest: bool,
}

/// The target as the user gave it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RequestedTarget {
    /// Complete as it is given.
    Resolved(RedisTarget),
    /// A replication offset, whose history may be abbreviated.
    Position(StreamPosition),
}

/// Why there is no plan. A target that cannot be reached is no error.
#[derive(Debug, thiserror::Error)]
pub enum RedisPlanError {
    /// The archive cannot be read.
    #[error("cannot plan a restore of {instance}")]
    Archive {
        /// The instance.
        instance: String,
        /// The reason.
        source: VaultError,
    },
    /// The snapshot that the user chose is not in the archive.
    #[error("there is no snapshot {label:?} of {instance}; walkeep list redis {instance} shows which there are")]
    UnknownSnapshot {
        /// What was asked for.
        label: String,
        /// The instance.
        instance: String,
    },
    /// No history has the offset.
    #[error("--target-offset: nothing that is archived of {instance} has offset {position}")]
    UnknownPosition {
        /// What was asked for.
        position: StreamPosition,
        /// The instance.
        instance: String,
    },
    /// Several histories have the offset.
    #[error("--target-offset: say which history: {}", positions.join(" or "))]
    AmbiguousPosition {
        /// The offset in each of them.
        positions: Vec<String>,
    },
}

impl HasKind for RedisPlanError {
    fn kind(&self) -> ErrorKind {
        match self {
            RedisPlanError::Archive { source, .. } => source.kind(),
            RedisPlanError::UnknownSnapshot { .. } | RedisPlanError::UnknownPosition { .. } => ErrorKind::NotFound,
            RedisPlanError::AmbiguousPosition { .. } => ErrorKind::Usage,
        }
    }
}

/// Resolves a request to a snapshot and the commands after it, or to why it cannot be reached. Changes nothing.
///
/// # Errors
/// [`RedisPlanError`].
pub async fn plan_restore(
    instance: &Archive,
    request: &RedisRestoreRequest,
) -> Result<Result<RestoreRoute, UnreachableState>, RedisPlanError> {
    let failed = |source: VaultError| RedisPlanError::Archive { instance: instance.name().to_string(), source };
    let target = match &request.target {
        RequestedTarget::Resolved(target) => *target,
        RequestedTarget::Position(position) => resolve_position(instance, position).await?,
    };
    let backup = request.backup.as_deref();
    if let Some(label) = backup
        && !instance.has_snapshot(label).await.map_err(failed)?
    {
        let (label, instance) = (label.to_owned(), instance.name().to_string());
        return Err(RedisPlanError::UnknownSnapshot { label, instance });
    }
    let found = instance.resolve_target(target, backup).await.map_err(failed)?;
    match &found {
        Err(UnreachableState { nearest_before: Some(nearest), .. }) if request.nearest => {
            instance.resolve_target(RedisTarget::Time(*nearest), backup).await.map_err(failed)
        }
        _ => Ok(found),
    }
}

/// The only history that has the offset.
async fn resolve_position(instance: &Archive, position: &StreamPosition) -> Result<RedisTarget, RedisPlanError> {
    let name = || instance.name().to_string();
    let found = instance.find_histories_at(position).await;
    let found = found.map_err(|source| RedisPlanError::Archive { instance: name(), source })?;
    match found.as_slice() {
        [replid] => Ok(RedisTarget::Offset(*replid, position.offset)),
        [] => Err(RedisPlanError::UnknownPosition { position: position.clone(), instance: name() }),
        several => {
            let named = several.iter().map(|replid| StreamPosition::new(*replid, position.offset).to_string());
            Err(RedisPlanError::AmbiguousPosition { positions: named.collect() })
        }
    }
}

/// What a restore has to do: everything is written, and then a server loads all of it, which takes time as replay does.
#[must_use]
pub fn restore_work(route: &RestoreRoute) -> RestoreWork {
    let bytes = route.snapshot.logical_bytes.saturating_add(route.command_bytes());
    RestoreWork { file_bytes: bytes, wal_bytes: bytes, wal_records: 0 }
}
