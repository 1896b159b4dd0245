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
use crate::vault::{self, ObjectListing};

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

    /// The timelines that WAL or a history is archived of, in order.
    ///
    /// # Errors
    /// No repository could be asked, or not all of them.
    pub async fn timelines(&self) -> Result<Vec<TimelineId>, ArchiveError> {
        let (level, unasked) = self.vault().list_level(&self.layout.wal()).await?;
        self.require_all_answered(&unasked)?;
        let mut timelines: Vec<TimelineId> = level.prefixes.iter().filter_map(timeline_of_prefix).collect();
        let (histories, unasked) = self.vault().list_level(&self.layout.histories()).await?;
        self.require_all_answered(&unasked)?;
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

    /// The segments of a timeline that sort after `after`, or all, as [`Archive::list_segments`] finds them.
    ///
    /// # Errors
    /// No repository could be asked, or not all of them.
    pub async fn list_all_segments(
        &self,
        timeline: TimelineId,
        after: Option<SegmentName>,
    ) -> Result<Vec<SegmentName>, ArchiveError> {
        let SegmentListing { found, unasked } = self.list_segments(timeline, after).await?;
        self.require_all_answered(&unasked)?;
        Ok(found.into_iter().map(|(name, _)| name).collect())
    }

    /// Whether some repository certainly has a segment.
    pub async fn has_segment(&self, name: SegmentName) -> bool {
        let key = self.layout.segment(name);
        let looks = self
            .vault
            .places
            .iter()
            .filter_map(|place| place.repository().ok())
            .map(|repository| repository.head(&key));
        join_all(looks).await.iter().any(|found| matches!(found, Ok(Some(_))))
    }

    /// The first segment of a timeline in any repository.
    ///
    /// # Errors
    /// No repository could be asked, or not all of them.
    pub async fn first_segment(&self, timeline: TimelineId) -> Result<Option<SegmentName>, ArchiveError> {
        let (level, unasked) = self.vault().list_level(&self.layout.timeline(timeline)).await?;
        self.require_all_answered(&unasked)?;
        for log in &level.prefixes {
            let ObjectListing { objects, unasked } = self.vault().list(log, None).await?;
            self.require_all_answered(&unasked)?;
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

    /// The last segment of a timeline in any repository.
    ///
    /// # Errors
    /// No repository could be asked, or not all of them.
    pub async fn last_segment(&self, timeline: TimelineId) -> Result<Option<SegmentName>, ArchiveError> {
        let (level, unasked) = self.vault().list_level(&self.layout.timeline(timeline)).await?;
        self.require_all_answered(&unasked)?;
        for log in level.prefixes.iter().rev() {
            let ObjectListing { objects, unasked } = self.vault().list(log, None).await?;
            self.require_all_answered(&unasked)?;
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

    /// An error if any repository could not be asked.
    fn require_all_answered(&self, unasked: &[(String, String)]) -> Result<(), ArchiveError> {
        if unasked.is_empty() {
            return Ok(());
        }
        for place in &self.vault.places {
            place.repository()?;
        }
        // It was there when the archive was opened and is not now.
        let why = unasked.iter().map(|(name, why)| format!("{name}: {why}")).collect::<Vec<_>>().join("; ");
        Err(vault::VaultError::NotAllAnswered { why }.into())
    }
}

fn timeline_of_prefix(prefix: &KeyPrefix) -> Option<TimelineId> {
    let name = prefix.as_str().rsplit('/').next()?;
    TimelineId::new(u32::from_str_radix(name, 16).ok()?).filter(|timeline| timeline.hex() == name)
}
