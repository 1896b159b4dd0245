//! The one way out: files of `pg_wal` as they came in, opened and authenticated; digests; and what there is.

use bytes::Bytes;
use futures_util::future::join_all;

use super::{Archive, ArchiveError};
use crate::postgres::archive::layout::ClusterObject;
use crate::postgres::format::segment::{SegmentName, WalFileName};
use crate::postgres::format::timeline::{TimelineHistory, TimelineId};
use crate::postgres::wal::digest::SegmentDigest;
use crate::vault::repository::ObjectInfo;
use crate::vault::repository::key::KeyPrefix;
use crate::vault::seal::SealedKind;
use crate::vault::{self, ObjectListing, UnreachableRepositories};

/// The segments of one timeline.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct SegmentListing {
    /// Their names and objects, in the order of their positions.
    pub found: Vec<(SegmentName, ObjectInfo)>,
    /// Repositories that could not be asked, with what they said: what is missing above may be there.
    pub unasked: Vec<(String, String)>,
}

impl Archive {
    /// A whole segment; `None` if every repository says that it has none of this name.
    ///
    /// # Errors
    /// No repository gave it whole, and not all said that they don't have it. Never taken for "not there".
    pub async fn segment(&self, name: SegmentName) -> Result<Option<Bytes>, ArchiveError> {
        let opened = self.vault().get_object(SealedKind::Wal, &self.layout.segment(name)).await?;
        Ok(opened.map(|opened| opened.plain))
    }

    /// Any file of `pg_wal` by its name.
    ///
    /// # Errors
    /// As [`Archive::segment`].
    pub async fn file(&self, name: &WalFileName) -> Result<Option<Bytes>, ArchiveError> {
        if let WalFileName::Segment(segment) = name {
            return self.segment(*segment).await;
        }
        let opened = self.vault().get_object(SealedKind::WalFile, &self.layout.file(name)).await?;
        Ok(opened.map(|opened| opened.plain))
    }

    /// A segment's digest, from its trailer alone.
    ///
    /// # Errors
    /// As [`Archive::segment`].
    pub async fn digest(&self, name: SegmentName) -> Result<Option<SegmentDigest>, ArchiveError> {
        let key = self.layout.segment(name);
        let Some(trailer) = self.vault().get_trailer(SealedKind::Wal, &key).await? else { return Ok(None) };
        let wrong = |e: crate::postgres::wal::digest::DigestFormatError| vault::VaultError::MalformedContent {
            name: self.cluster().to_string(),
            key: key.clone(),
            why: e.to_string(),
        };
        SegmentDigest::from_bytes(trailer.metadata()).map(Some).map_err(|e| wrong(e).into())
    }

    /// A timeline's history; `None` for the first timeline, and where none is archived.
    ///
    /// # Errors
    /// As [`Archive::segment`]; also if it is not one.
    pub async fn history(&self, timeline: TimelineId) -> Result<Option<TimelineHistory>, ArchiveError> {
        let name = WalFileName::History(timeline);
        let Some(bytes) = self.file(&name).await? else { return Ok(None) };
        let wrong = |why: String| vault::VaultError::MalformedContent {
            name: self.cluster().to_string(),
            key: self.layout.file(&name),
            why,
        };
        let text = std::str::from_utf8(&bytes).map_err(|e| wrong(e.to_string()))?;
        TimelineHistory::parse(timeline, text).map(Some).map_err(|e| wrong(e.to_string()).into())
    }

    /// The timelines that WAL or a history is archived of in a repository that can be reached, in order.
    ///
    /// # Errors
    /// No repository could be asked.
    pub async fn timelines(&self) -> Result<Vec<TimelineId>, ArchiveError> {
        let (level, _unasked) = self.vault().list_level(&self.layout.wal()).await?;
        let mut timelines: Vec<TimelineId> = level.prefixes.iter().filter_map(timeline_of_prefix).collect();
        let (histories, _unasked) = self.vault().list_level(&self.layout.histories()).await?;
        for object in &histories.objects {
            if let Some(ClusterObject::File(WalFileName::History(timeline))) = self.layout.object_of_key(&object.key) {
                timelines.push(timeline);
            }
        }
        timelines.sort_unstable();
        timelines.dedup();
        Ok(timelines)
    }

    /// The segments of a timeline that sort after `after`, or all. What lies before is not looked at, so that it costs
    /// nothing however much it is.
    ///
    /// # Errors
    /// No repository could be asked.
    pub async fn list_segments(
        &self,
        timeline: TimelineId,
        after: Option<SegmentName>,
    ) -> Result<SegmentListing, ArchiveError> {
        let after = after.map(|name| self.layout.segment(name));
        let ObjectListing { objects, mut unasked } =
            self.vault().list(&self.layout.timeline(timeline), after.as_ref()).await?;
        let segment = |object: ObjectInfo| match self.layout.object_of_key(&object.key)? {
            ClusterObject::Segment(name) => Some((name, object)),
            _ => None,
        };
        unasked.sort_unstable();
        unasked.dedup();
        Ok(SegmentListing { found: objects.into_iter().filter_map(segment).collect(), unasked })
    }

    /// Whether some repository certainly has a segment.
    pub async fn has_segment(&self, name: SegmentName) -> bool {
        let key = self.layout.segment(name);
        let looks = self.vault.repositories().map(|(_, repository)| {
            let key = key.clone();
            async move { repository.head(&key).await }
        });
        join_all(looks).await.iter().any(|found| matches!(found, Ok(Some(_))))
    }

    /// The first segment of a timeline in any repository that can be reached.
    ///
    /// # Errors
    /// No repository could be asked.
    pub async fn first_segment(&self, timeline: TimelineId) -> Result<Option<SegmentName>, ArchiveError> {
        let (level, _unasked) = self.vault().list_level(&self.layout.timeline(timeline)).await?;
        for log in &level.prefixes {
            let ObjectListing { objects, .. } = self.vault().list(log, None).await?;
            let first = objects.iter().find_map(|object| match self.layout.object_of_key(&object.key)? {
                ClusterObject::Segment(name) => Some(name),
                _ => None,
            });
            if first.is_some() {
                return Ok(first);
            }
        }
        Ok(None)
    }

    /// The last segment of a timeline in any repository that can be reached.
    ///
    /// # Errors
    /// No repository could be asked.
    pub async fn last_segment(&self, timeline: TimelineId) -> Result<Option<SegmentName>, ArchiveError> {
        let (level, _unasked) = self.vault().list_level(&self.layout.timeline(timeline)).await?;
        for log in level.prefixes.iter().rev() {
            let ObjectListing { objects, .. } = self.vault().list(log, None).await?;
            let last = objects.iter().rev().find_map(|object| match self.layout.object_of_key(&object.key)? {
                ClusterObject::Segment(name) => Some(name),
                _ => None,
            });
            if last.is_some() {
                return Ok(last);
            }
        }
        Ok(None)
    }

    /// Proves that every repository could be asked: to be called after the listings whose answers must be complete.
    ///
    /// # Errors
    /// [`vault::VaultError::NotAllAnswered`].
    pub fn ensure_all_reachable(&self) -> Result<(), ArchiveError> {
        let mut unreachable = UnreachableRepositories::default();
        unreachable.insert(self.vault.unreachable().map(|(name, why)| (name.to_owned(), why.to_string())));
        Ok(unreachable.ensure_empty()?)
    }
}

fn timeline_of_prefix(prefix: &KeyPrefix) -> Option<TimelineId> {
    let name = prefix.as_str().rsplit('/').next()?;
    TimelineId::new(u32::from_str_radix(name, 16).ok()?).filter(|timeline| timeline.hex() == name)
}
