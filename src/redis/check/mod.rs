//! Does archiving of a Redis instance work, end to end, now?

pub mod stream;

use super::wire::{RedisError, RedisSource, ReplicaPermission, ServerInfo};
use crate::base::findings::CheckFindings;

/// Asks the server as for a snapshot, up to the point where it would begin one.
///
/// # Errors
/// It cannot be reached, or a question was not answered. Findings until then are kept.
pub async fn check_server(source: &RedisSource, findings: &mut CheckFindings) -> Result<ServerInfo, RedisError> {
    let (mut connection, info) = source.connect().await?;
    let (flavour, version, peer) = (info.flavour(), info.version(), connection.peer().to_owned());
    let role = if info.is_master() { "a master" } else { "a replica" };
    findings.add_good("connection", format!("{flavour} {version} at {peer}, {role}"));
    match info.persistence_trouble() {
        Some(trouble) => findings.add_warning("persistence", trouble),
        None => findings.add_good("persistence", "the server's own saves succeed, as far as it says"),
    }
    if info.is_shard() {
        findings.add_warning(
            "cluster",
            "this is one shard of a Redis Cluster: each shard takes a section [redis.NAME] of its own, and a moment is \
             restored shard by shard",
        );
    }
    if let RedisSource::Sentinels(_) = source {
        let (snapshots, _) = source.connect_for_snapshot().await?;
        findings.add_good("sentinels", format!("snapshots come from {}", snapshots.peer()));
    }
    match connection.measure_clock().await? {
        Some(measured) => findings.add_clock_offset(measured.offset, "keys expire by it"),
        None => findings.add_warning(
            "clock",
            "the server does not say its time, so whether it is right is not known; let walkeep ask: \
             ACL SETUSER … +time",
        ),
    }
    match connection.check_replica_permission(&info).await {
        Ok(ReplicaPermission::Granted) => {
            findings.add_good("replication", "the server lets walkeep attach as a replica");
        }
        Ok(ReplicaPermission::Unknown) => findings.add_warning(
            "replication",
            "whether the server lets walkeep attach as a replica shows with the first snapshot; before that it does \
             not say",
        ),
        Err(error) => findings.add_error("replication", error),
    }
    Ok(info)
}
