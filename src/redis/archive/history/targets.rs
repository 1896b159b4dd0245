//! The way to a target, from the newest snapshot that leads there.

use bytes::Bytes;
use jiff::Timestamp;

use super::chain::ChainLimit;
use super::route::{RedisTarget, RestoreRoute, UnreachableState, cut_chain_at, route_to_snapshot};
use crate::redis::archive::instance::Archive;
use crate::redis::archive::snapshot::{SnapshotManifest, SnapshotOrigin};
use crate::redis::archive::unseen_sources::UnseenErrors;
use crate::redis::format::replication_id::ReplicationId;
use crate::vault::VaultError;

impl Archive {
    /// Finds the way to what is wanted, from the newest snapshot that leads there, or from the one named. All that is
    /// on the way is there: the parts of the snapshot are listed with the bytes that were stored, and the trailer of
    /// each stretch was read.
    ///
    /// The repositories that can be reached are asked, and the answer names the others. An unreachable one is not
    /// waited for, for example one whose disk is lost.
    ///
    /// # Errors
    /// No repository could be asked, or something does not open. [`VaultError::Spool`] if the answer would be another
    /// one if the spool, which cannot be read, had more. What cannot be reached is no error but an answer.
    pub async fn resolve_target(
        &self,
        wanted: RedisTarget,
        from: Option<&str>,
    ) -> Result<Result<RestoreRoute, UnreachableState>, VaultError> {
        let mut unseen = UnseenErrors::of_vault(&self.vault);
        let found = self.reachable().find_route(wanted, from, &mut unseen).await?;
        let depends_on_spool = match wanted {
            RedisTarget::Time(_) | RedisTarget::Offset(..) => found.is_err(),
            RedisTarget::Newest => true,
            RedisTarget::Snapshot => false,
        };
        if depends_on_spool {
            unseen.ensure_spool_was_read()?;
        }
        Ok(with_unseen(found, &unseen))
    }

    /// The same, also if the spool cannot be read: for a report of how things are, and not for a restore.
    ///
    /// # Errors
    /// No repository could be asked, or something does not open.
    pub async fn resolve_target_for_report(
        &self,
        wanted: RedisTarget,
        from: Option<&str>,
    ) -> Result<Result<RestoreRoute, UnreachableState>, VaultError> {
        let mut unseen = UnseenErrors::of_vault(&self.vault);
        let found = self.reachable().find_route(wanted, from, &mut unseen).await?;
        Ok(with_unseen(found, &unseen))
    }

    /// [`Archive::resolve_target`] as far as the repositories and the spool tell that answer. Notes the others.
    async fn find_route(
        &self,
        wanted: RedisTarget,
        from: Option<&str>,
        unseen: &mut UnseenErrors,
    ) -> Result<Result<RestoreRoute, UnreachableState>, VaultError> {
        let (mut snapshots, damaged) = self.read_snapshots_and_damaged(&mut unseen.unreachable).await?;
        snapshots.retain(|snapshot| from.is_none_or(|label| snapshot.label == label));
        for snapshot in &mut snapshots {
            // Times are written and read to the microsecond, and a time that is named must be one that is reached.
            snapshot.at = Timestamp::from_microsecond(snapshot.at.as_microsecond()).unwrap_or(snapshot.at);
        }
        let newest_damaged = damaged.keys().next_back().filter(|label| from.is_none_or(|from| from == *label));
        // As it is, the newest one is meant and no other.
        let passed_over = newest_damaged > snapshots.iter().map(|snapshot| &snapshot.label).max();
        if from.is_none() {
            remove_foreign_snapshots(&mut snapshots);
        }
        snapshots.sort_by_key(|snapshot| snapshot.at);
        let mut lacking = self.find_missing_parts_in_reachable(&snapshots, &mut unseen.unreachable).await?;
        let unfit = |snapshot: &SnapshotManifest| lacking.contains_key(&snapshot.label);
        let meant = wanted == RedisTarget::Snapshot && (passed_over || snapshots.last().is_some_and(unfit));
        let none = !snapshots.is_empty() && snapshots.iter().all(unfit);
        snapshots.retain(|snapshot| !unfit(snapshot));
        let found = if meant || none {
            let nearest_before = snapshots.last().map(|snapshot| snapshot.at);
            let reason = "a snapshot is not whole".to_owned();
            Err(UnreachableState { nearest_before, ..UnreachableState::because(reason) })
        } else {
            self.find_route_from(&snapshots, (wanted, from), unseen).await?
        };
        lacking.extend(damaged);
        Ok(found.map_err(|not| not.explain_missing_parts(&lacking)))
    }

    async fn find_route_from(
        &self,
        snapshots: &[SnapshotManifest],
        (wanted, from): (RedisTarget, Option<&str>),
        unseen: &mut UnseenErrors,
    ) -> Result<Result<RestoreRoute, UnreachableState>, VaultError> {
        let Some(newest) = snapshots.last() else {
            let reason = match from {
                Some(label) => format!("there is no snapshot {label}"),
                None => "there is no snapshot yet; take one with walkeep backup redis".to_owned(),
            };
            return Ok(Err(UnreachableState::because(reason)));
        };
        if wanted == RedisTarget::Snapshot {
            return Ok(Ok(route_to_snapshot(newest)));
        }
        let known = self.list_known_stretches().await?;
        unseen.merge(known.unseen_errors());
        let time = match wanted {
            RedisTarget::Time(time) => Some(time),
            RedisTarget::Newest | RedisTarget::Snapshot => None,
            RedisTarget::Offset(replid, offset) => return self.resolve_offset(snapshots, &known, replid, offset).await,
        };
        let after = snapshots.iter().map(|snapshot| snapshot.at).filter(|at| time.is_some_and(|time| *at > time)).min();
        let mut failed: Option<UnreachableState> = None;
        for snapshot in snapshots.iter().rev().filter(|snapshot| time.is_none_or(|time| snapshot.at <= time)) {
            let way = self.collect_chain(snapshot, &known, time.map_or(ChainLimit::End, ChainLimit::Time)).await?;
            let hole = known.find_hole_after(snapshot, &way);
            match cut_chain_at(snapshot, way, time) {
                Ok(reach) => {
                    let hole = hole.filter(|_| wanted == RedisTarget::Newest);
                    return Ok(Ok(RestoreRoute { hole, ..reach }));
                }
                Err(short) if failed.as_ref().is_none_or(|failed| failed.nearest_before < Some(short.followed_to)) => {
                    let reason = match (short.followed_from, hole) {
                        (Some(_), _) => {
                            "nobody received the stream at that time, and what was written meanwhile came all at \
                                         once when it was received again"
                                .to_owned()
                        }
                        (None, Some(hole)) => {
                            format!("the stream of commands behind snapshot {} ends before it: {hole}", snapshot.label)
                        }
                        (None, None) => {
                            format!("the stream of commands behind snapshot {} ends before it", snapshot.label)
                        }
                    };
                    let nearest_before = Some(short.followed_to);
                    let nearest_after = short.followed_from.or(after);
                    let because = UnreachableState::because(reason);
                    failed = Some(UnreachableState { nearest_before, nearest_after, ..because });
                }
                Err(_) => {}
            }
        }
        Ok(Err(failed.unwrap_or_else(|| {
            let because = UnreachableState::because("it lies before the first snapshot".to_owned());
            UnreachableState { nearest_after: after, ..because }
        })))
    }

    /// The bytes of the stretch of this number on the way, as far as they lie on it. All in turn are the commands to
    /// replay; the first acts on database `from.db`.
    ///
    /// # Errors
    /// Neither the spool nor a repository gave them.
    pub async fn read_route_commands(&self, reach: &RestoreRoute, number: usize) -> Result<Bytes, VaultError> {
        let (Some(stretch), Some(_), Some(to)) = (reach.stretches.get(number), reach.from, reach.to) else {
            return Ok(Bytes::new());
        };
        let bytes = self.read_stretch_bytes(stretch).await?;
        let at = |offset: u64| usize::try_from(offset.saturating_sub(stretch.first)).unwrap_or(usize::MAX);
        let (begin, end) = (at(reach.stretch_start_offset(number).max(stretch.first)), at(to.offset.min(stretch.last)));
        if begin > end || end > bytes.len() {
            let what = format!("what leads to offset {} of history {}", to.offset, stretch.replid);
            return Err(VaultError::Vanished { what });
        }
        Ok(bytes.slice(begin..end))
    }
}

fn with_unseen(
    found: Result<RestoreRoute, UnreachableState>,
    unseen: &UnseenErrors,
) -> Result<RestoreRoute, UnreachableState> {
    let unseen = unseen.to_sources();
    match found {
        Ok(route) => Ok(RestoreRoute { unseen, ..route }),
        Err(not) => Err(UnreachableState { unseen, ..not }),
    }
}

/// Leaves out what was read from a file and belongs to no history of this instance, if there is anything else: another
/// server's dump may be kept here, and is restored by its label, but it is not the state of this instance at any time.
pub fn remove_foreign_snapshots(snapshots: &mut Vec<SnapshotManifest>) {
    let own = |snapshot: &SnapshotManifest| matches!(snapshot.origin, SnapshotOrigin::Replication { .. });
    let histories: Vec<ReplicationId> = snapshots.iter().filter(|s| own(s)).filter_map(|s| s.replid).collect();
    if snapshots.iter().any(own) {
        snapshots.retain(|s| own(s) || s.replid.is_some_and(|replid| histories.contains(&replid)));
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;
    use tempfile::TempDir;

    use crate::redis::archive::coverage::CoverageScope;
    use crate::redis::archive::stream::StretchToStore;
    use crate::redis::archive::{Archive, RedisTarget, SnapshotManifest, SnapshotOrigin, StreamStretch};
    use crate::redis::format::rdb::{RdbLimits, RdbWalker};
    use crate::redis::format::resp::encode_command;
    use crate::vault::SkippedRepositories;
    use crate::vault::testing::{create, open};

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";
    const LABEL: &str = "20261122T120000.000Z";
    const OTHER: &str = "20261122T130000.000Z";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A snapshot of the second 10 at offset 100.
    fn snapshot() -> SnapshotManifest {
        let mut walker = RdbWalker::new(RdbLimits::default());
        walker.push(b"REDIS0009\xff\0\0\0\0\0\0\0\0").unwrap();
        SnapshotManifest {
            format: 1,
            label: LABEL.into(),
            started_at: at(9),
            finished_at: at(12),
            at: at(10),
            origin: SnapshotOrigin::File { path: "x".into() },
            flavour: crate::redis::format::flavour::ServerFlavour::Redis,
            version: "7".into(),
            run_id: None,
            replid: ID.parse().ok(),
            offset: Some(100),
            db: 0,
            walk: walker.finish().unwrap(),
            parts: Vec::new(),
            logical_bytes: 18,
            stored_bytes: 0,
        }
    }

    /// One command of 27 bytes, which had come by then.
    async fn put(instance: &Archive, first: u64, second: i64) {
        let bytes = Bytes::from(encode_command(&[b"SET", b"a", b"1"]));
        let last = first + bytes.len() as u64;
        let stretch: StreamStretch = serde_json::from_value(serde_json::json!({
            "replid": ID, "first": first, "last": last, "db": 0, "in_transaction": false, "db_after": 0,
            "in_transaction_after": false, "follows": null, "started_at": at(second - 1), "ended_at": at(second),
            "writes": 1, "marks": [[last, 0, at(second).as_microsecond()]],
        }))
        .unwrap();
        for place in 0..instance.place_count() {
            instance.put_commands(place, &StretchToStore::new(stretch.clone(), bytes.clone())).await.unwrap();
        }
    }

    async fn instance(dirs: &[&TempDir]) -> Archive {
        Archive::new(open(dirs, None).await.unwrap(), "main".parse().unwrap())
    }

    #[tokio::test]
    async fn what_a_repository_may_have_that_is_away_is_neither_missing_nor_left_out() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let both = Archive::new(create(&[&a, &b], None).await, "main".parse().unwrap());
        both.put_snapshot(&snapshot(), &SkippedRepositories::default()).await.unwrap();
        put(&both, 100, 12).await;
        // The other one lags.
        put(&instance(&[&a]).await, 127, 20).await;
        let newest = both.resolve_target(RedisTarget::Newest, None).await.unwrap().unwrap();
        assert_eq!(newest.to.unwrap().offset, 154);
        assert!(!both.has_snapshot(OTHER).await.unwrap());

        std::fs::remove_dir_all(a.path().join("repository")).unwrap();
        let left = instance(&[&a, &b]).await;
        let id = ID.parse().unwrap();
        for (wanted, from, offset) in [
            (RedisTarget::Time(at(12)), None, Some(127)),
            (RedisTarget::Offset(id, 127), None, Some(127)),
            (RedisTarget::Snapshot, Some(LABEL), Some(100)),
            (RedisTarget::Newest, None, Some(127)),
            (RedisTarget::Snapshot, None, Some(100)),
            (RedisTarget::Time(at(20)), None, None),
            (RedisTarget::Offset(id, 154), None, None),
            (RedisTarget::Snapshot, Some(OTHER), None),
        ] {
            let found = left.resolve_target(wanted, from).await.unwrap();
            let unseen = found.as_ref().map_or_else(|not| &not.unseen, |route| &route.unseen);
            assert_eq!(unseen.unreachable.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["place0"], "{wanted:?}");
            assert_eq!(found.ok().map(|route| route.to.unwrap().offset), offset, "{wanted:?}");
        }
        assert!(left.has_snapshot(LABEL).await.unwrap());
        assert!(matches!(left.has_snapshot(OTHER).await, Err(crate::vault::VaultError::NotAllAnswered { .. })));
        assert_eq!(left.find_histories_at(&"127".parse().unwrap()).await.unwrap(), [id]);
        assert!(matches!(
            left.find_histories_at(&"154".parse().unwrap()).await,
            Err(crate::vault::VaultError::NotAllAnswered { .. })
        ));

        assert_eq!(left.stored_stretches().await.unwrap().len(), 1);
        let known = left.list_known_stretches().await.unwrap();
        assert_eq!(known.unseen().unreachable.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["place0"]);
    }

    /// A folder that cannot be looked into is not an empty one. A loop of links is one for root too.
    #[tokio::test]
    async fn a_spool_that_cannot_be_read_is_neither_empty_nor_in_the_way_of_the_rest() {
        let (a, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let stored = Archive::new(create(&[&a], None).await, "main".parse().unwrap());
        stored.put_snapshot(&snapshot(), &SkippedRepositories::default()).await.unwrap();
        put(&stored, 100, 12).await;
        let instance = stored.with_spool(state.path().to_owned());
        assert!(instance.resolve_target(RedisTarget::Newest, None).await.unwrap().is_ok());
        let folder = state.path().join("spool");
        std::fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(folder.join("main"), folder.join("main")).unwrap();
        for unknown in [RedisTarget::Newest, RedisTarget::Time(at(20)), RedisTarget::Offset(ID.parse().unwrap(), 154)] {
            let error = instance.resolve_target(unknown, None).await.unwrap_err();
            assert!(matches!(error, crate::vault::VaultError::Spool(_)), "{unknown:?}: {error}");
        }
        for known in [RedisTarget::Time(at(11)), RedisTarget::Offset(ID.parse().unwrap(), 127), RedisTarget::Snapshot] {
            assert!(instance.resolve_target(known, None).await.unwrap().is_ok(), "{known:?}");
        }
        let told = instance.resolve_target_for_report(RedisTarget::Newest, None).await.unwrap().unwrap();
        assert!(told.unseen.unread_spool.is_some_and(|why| why.contains("spool")));
        let coverage = instance.coverage(CoverageScope::All).await.unwrap();
        assert!(coverage.unseen.unread_spool.is_some() && coverage.repositories.is_empty());
    }
}
