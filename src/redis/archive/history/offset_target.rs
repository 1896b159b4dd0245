//! The way to the state at an offset of the stream.

use jiff::Timestamp;

use super::chain::{ChainLimit, StretchChain};
use super::known_stretches::KnownStretches;
use super::route::{RestoreRoute, UnreachableState, route_to_snapshot};
use crate::base::blocking::run_blocking;
use crate::redis::archive::instance::Archive;
use crate::redis::archive::snapshot::SnapshotManifest;
use crate::redis::archive::stream::StreamStretch;
use crate::redis::format::position::StreamPosition;
use crate::redis::format::replication_id::ReplicationId;
use crate::redis::format::resp::{CommandLimits, CommandParser, StreamCut};
use crate::vault::VaultError;

impl Archive {
    /// The histories that a place may be meant to be in: those that have it and are so named.
    ///
    /// # Errors
    /// No repository could be asked. [`VaultError::NotAllAnswered`] if none has it as far as the others tell, and not
    /// all could be asked.
    pub async fn find_histories_at(&self, position: &StreamPosition) -> Result<Vec<ReplicationId>, VaultError> {
        let named = |replid: &ReplicationId| replid.to_string().starts_with(&position.history);
        let known = self.list_known_stretches().await?;
        let mut unseen = known.unseen_errors().clone();
        let mut found = Vec::new();
        for (replid, _) in known.histories().filter(|(replid, _)| named(replid)) {
            let stretch = self.find_covering_stretch(&known, replid, position.offset).await?;
            found.extend(stretch.filter(|stretch| position.offset <= stretch.last).map(|stretch| stretch.replid));
        }
        for snapshot in self.read_snapshots_and_damaged(&mut unseen.unreachable).await?.0 {
            let here = snapshot.replid.filter(|replid| named(replid) && snapshot.offset == Some(position.offset));
            found.extend(here);
        }
        if found.is_empty() {
            unseen.ensure_spool_was_read()?;
            unseen.unreachable.ensure_empty()?;
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Whether any of these snapshots leads to a place.
    ///
    /// # Errors
    /// As [`Archive::resolve_target`].
    pub async fn any_snapshot_reaches(
        &self,
        snapshots: &[SnapshotManifest],
        known: &KnownStretches,
        replid: ReplicationId,
        offset: u64,
    ) -> Result<bool, VaultError> {
        Ok(self.find_chain_to(snapshots, known, replid, offset).await?.is_some())
    }

    /// The newest snapshot that leads to a place, and the way from it to the stretch that has the place.
    async fn find_chain_to<'s>(
        &self,
        snapshots: &'s [SnapshotManifest],
        known: &KnownStretches,
        replid: ReplicationId,
        offset: u64,
    ) -> Result<Option<(&'s SnapshotManifest, StretchChain)>, VaultError> {
        let before = |snapshot: &&SnapshotManifest| snapshot.offset.is_some_and(|at| at <= offset);
        for snapshot in snapshots.iter().rev().filter(before) {
            let mut way = self.collect_chain(snapshot, known, ChainLimit::Offset(offset)).await?;
            let has =
                |stretch: &StreamStretch| stretch.replid == replid && (stretch.first..=stretch.last).contains(&offset);
            if let Some(nth) = way.stretches.iter().position(has) {
                way.stretches.truncate(nth.saturating_add(1));
                return Ok(Some((snapshot, way)));
            }
            if (snapshot.replid, snapshot.offset) == (Some(replid), Some(offset)) {
                return Ok(Some((snapshot, StretchChain::default())));
            }
        }
        Ok(None)
    }

    /// Finds the way to the last place at or before `offset` where the stream may be cut.
    pub(super) async fn resolve_offset(
        &self,
        snapshots: &[SnapshotManifest],
        known: &KnownStretches,
        replid: ReplicationId,
        offset: u64,
    ) -> Result<Result<RestoreRoute, UnreachableState>, VaultError> {
        let Some((snapshot, mut way)) = self.find_chain_to(snapshots, known, replid, offset).await? else {
            let reason = format!("no snapshot leads to offset {offset} of history {replid}");
            return Ok(Err(UnreachableState::because(reason)));
        };
        let base = route_to_snapshot(snapshot);
        let Some(from) = base.from else { return Ok(Ok(base)) };
        while let Some(stretch) = way.stretches.last() {
            let ahead = way.stretches.iter().rev().nth(1).map_or(from.offset, |ahead| ahead.last.max(from.offset));
            if let Some(to) = self.find_cut_before(stretch, offset).await?.filter(|to| to.offset > ahead) {
                let at = stretch.time_at(to.offset.saturating_sub(1));
                let before = self.find_next_arrival(known, stretch, to.offset).await?;
                return Ok(Ok(RestoreRoute { stretches: way.stretches, to: Some(to), at, before, ..base }));
            }
            // A transaction that began in the stretch before.
            way.stretches.pop();
        }
        Ok(Ok(base))
    }

    /// The last place in a stretch, at or before `offset`, where the stream may be cut.
    async fn find_cut_before(&self, stretch: &StreamStretch, offset: u64) -> Result<Option<StreamCut>, VaultError> {
        let bytes = self.read_stretch_bytes(stretch).await?;
        let len = usize::try_from(offset.saturating_sub(stretch.first)).unwrap_or(usize::MAX).min(bytes.len());
        let mut parser =
            CommandParser::resume_at(stretch.first, stretch.db, stretch.in_transaction, CommandLimits::default());
        let parsed = run_blocking(move || {
            parser.push(&bytes.slice(..len), &mut |_| {})?;
            Ok::<_, crate::redis::format::resp::RespError>(parser.cut())
        });
        let parsed = parsed.await?;
        parsed.map_err(|error| self.unreadable_error(&self.layout().streams_name(), error.to_string()))
    }

    /// When what comes after `offset`, in this stretch or the next one, had come.
    async fn find_next_arrival(
        &self,
        known: &KnownStretches,
        stretch: &StreamStretch,
        offset: u64,
    ) -> Result<Option<Timestamp>, VaultError> {
        if offset < stretch.last {
            return Ok(Some(stretch.time_at(offset)));
        }
        let next = self.find_covering_stretch(known, stretch.replid, offset).await?;
        Ok(next.filter(|next| next.last > offset).map(|next| next.time_at(offset)))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{Archive, StreamStretch};
    use crate::redis::archive::stream::StretchToStore;
    use crate::redis::format::resp::encode_command;
    use crate::vault::testing::create;

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    /// A stretch of so many commands, of 27 bytes each.
    async fn put(instance: &Archive, first: u64, commands: usize) {
        let bytes = Bytes::from(encode_command(&[b"SET", b"a", b"1"]).repeat(commands));
        let stretch: StreamStretch = serde_json::from_value(serde_json::json!({
            "replid": ID, "first": first, "last": first + bytes.len() as u64, "db": 0, "in_transaction": false,
            "db_after": 0, "in_transaction_after": false, "follows": null, "started_at": "2026-11-22T14:00:00Z",
            "ended_at": "2026-11-22T14:00:10Z", "writes": commands, "marks": [],
        }))
        .unwrap();
        instance.put_commands(0, &StretchToStore::new(stretch, bytes)).await.unwrap();
    }

    /// One receiver's connection broke again and again while another one had the same stretch as one.
    #[tokio::test]
    async fn a_stretch_that_has_a_place_is_found_behind_many_that_begin_within_it() {
        let dir = tempfile::tempdir().unwrap();
        let instance = Archive::new(create(&[&dir], None).await, "main".parse().unwrap());
        put(&instance, 100, 41).await;
        for nth in 1..40 {
            put(&instance, 100 + 27 * nth, 1).await;
        }
        let (known, replid) = (instance.list_known_stretches().await.unwrap(), ID.parse().unwrap());
        let has = async |offset| {
            let found = instance.find_covering_stretch(&known, replid, offset).await.unwrap().unwrap();
            (found.first, found.last)
        };
        assert_eq!(has(100 + 27 * 40).await, (100, 100 + 27 * 41), "all others end there");
        assert_eq!(has(100 + 27).await, (100, 100 + 27 * 41));
        assert_eq!(has(100 + 27 * 41).await, (100, 100 + 27 * 41), "where none goes on");
    }
}
