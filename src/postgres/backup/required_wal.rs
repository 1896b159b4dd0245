//! The proof that the archive has the WAL a backup needs, and the fetching of what nobody archived.
//!
//! Decided: a backup does not stream WAL beside itself. A running receiver or `archive_command` has it within a moment
//! of the backup's end; PostgreSQL ends the segment by itself then, on a primary. Where nothing has come for
//! [`FETCH_AFTER`], or nobody seems to archive at all, the backup fetches the missing segments over a connection of its
//! own and puts them into the archive as a receiver would, where whoever comes later finds them identical. That the
//! server still has them is the work of a temporary slot ([`hold_server_wal`]), which lives as long as the backup's
//! connection and not a moment longer.

use std::sync::Arc;
use std::time::Duration;

use super::error::BackupError;
use crate::base::clock::timeout;
use crate::postgres::archive::Archive;
use crate::postgres::archive::chunks::PackId;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentNo, SegmentSize, WalFileName};
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::wal::assemble::SegmentAssembler;
use crate::postgres::wal::digest::SegmentState;
use crate::postgres::wire::conninfo::Conninfo;
use crate::postgres::wire::{
    ReplicationConnection, ReplicationError, SlotName, StandbyStatus, StartedReplication, WalStreamEvent,
};

/// How long nothing may come before the backup fetches WAL by itself.
const FETCH_AFTER: Duration = Duration::from_secs(5);
/// How long the server may be silent before it is asked whether it is there, and again after that.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);

/// The longest pause between two looks.
const MAX_POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The WAL a backup needs.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequiredWal {
    pub(super) timeline: TimelineId,
    pub(super) size: SegmentSize,
    pub(super) start: Lsn,
    pub(super) stop: Lsn,
    pub(super) standby: bool,
}

impl RequiredWal {
    fn first(&self) -> SegmentNo {
        self.size.segment_of(self.start)
    }

    /// The segment of the last byte before the stop position.
    fn last(&self) -> SegmentNo {
        self.size.segment_of(Lsn::new(self.stop.get().saturating_sub(1))).max(self.first())
    }

    pub(super) fn segment_names(&self) -> impl Iterator<Item = SegmentName> + use<> {
        let (timeline, size) = (self.timeline, self.size);
        let numbers = self.first().get()..=self.last().get();
        numbers.filter_map(move |n| SegmentName::new(timeline, SegmentNo::new(n), size))
    }

    const fn advice(&self) -> &'static str {
        if self.standby {
            "a standby cannot end the segment: run \"select pg_switch_wal()\" on the primary, and have `walkeep \
                receive` running"
        } else {
            "have `walkeep receive` running or archive_command set, and take the backup again; `walkeep check` finds \
                what is wrong"
        }
    }
}

/// Waits until all of it is in the archive and proves to be whole; fetches what nobody brings.
pub(super) async fn require_archived(
    archive: &Arc<Archive>,
    server: &Conninfo,
    needed: &RequiredWal,
    limit: Duration,
) -> Result<(), BackupError> {
    let clock = Arc::clone(archive.vault().clock());
    let began = clock.elapsed();
    let patience = if is_being_archived(archive, needed).await? { FETCH_AFTER } else { Duration::ZERO };
    let (mut progressed, mut missing_before) = (began, usize::MAX);
    let mut pause = Duration::from_millis(50);
    loop {
        let missing = missing_segments(archive, needed).await?;
        let Some(first) = missing.first().copied() else { break };
        let now = clock.elapsed();
        if missing.len() < missing_before {
            (progressed, missing_before) = (now, missing.len());
        }
        let waited = now.saturating_sub(began);
        if waited >= limit {
            let advice = needed.advice();
            return Err(BackupError::WalMissing { missing: first, stop: needed.stop, waited, advice });
        }
        if now.saturating_sub(progressed) >= patience {
            tracing::info!(cluster = %archive.cluster(), segment = %first, "nobody archives the WAL of the backup: \
                fetching it");
            let left = limit.saturating_sub(waited);
            timeout(&*clock, left, fetch_missing(archive, server, needed, first)).await.transpose()?;
            progressed = clock.elapsed();
        }
        clock.sleep(pause).await;
        pause = pause.saturating_mul(2).min(MAX_POLL_INTERVAL);
    }
    for name in needed.segment_names() {
        check_segment(archive, name).await?;
    }
    Ok(())
}

/// Whether the archive has the segment before the backup's first one, or any of the backup's own: then whoever brought
/// that brings the rest.
async fn is_being_archived(archive: &Archive, needed: &RequiredWal) -> Result<bool, BackupError> {
    let before = needed.first().previous().and_then(|n| SegmentName::new(needed.timeline, n, needed.size));
    if let Some(before) = before
        && archive.digest(before).await?.is_some()
    {
        return Ok(true);
    }
    Ok(missing_segments(archive, needed).await?.len() < needed.segment_names().count())
}

/// Has the server keep its WAL for as long as the connection that is returned. `None` if it has no slot to spare: the
/// backup then goes on without, as an archiving server's WAL is not at stake.
pub(super) async fn hold_server_wal(server: &Conninfo) -> Result<Option<ReplicationConnection>, BackupError> {
    let mut connection = ReplicationConnection::connect(server).await?;
    let name = format!("walkeep_backup_{}", PackId::random()?);
    let Ok(slot) = SlotName::new(&name) else { return Ok(None) };
    match connection.create_temporary_slot(&slot).await {
        Ok(()) => Ok(Some(connection)),
        Err(error) => {
            tracing::warn!(%error, "no temporary slot: if nobody archives, the server may remove WAL of the backup \
                before it ends");
            Ok(None)
        }
    }
}

async fn missing_segments(archive: &Archive, needed: &RequiredWal) -> Result<Vec<SegmentName>, BackupError> {
    let before = needed.first().previous().and_then(|n| SegmentName::new(needed.timeline, n, needed.size));
    let there = archive.list_segments(needed.timeline, before).await?;
    let there: std::collections::HashSet<SegmentName> = there.found.into_iter().map(|(name, _)| name).collect();
    Ok(needed.segment_names().filter(|name| !there.contains(name)).collect())
}

/// Reads the digest: the object opens, and no record in it is broken.
async fn check_segment(archive: &Archive, name: SegmentName) -> Result<(), BackupError> {
    match archive.digest(name).await?.map(|digest| digest.state) {
        Some(SegmentState::Broken { at, why }) => Err(BackupError::BrokenWal { segment: name, at, why }),
        Some(SegmentState::Checked | SegmentState::Opaque) | None => Ok(()),
    }
}

/// Streams from the beginning of `first` until the backup's last segment is whole, and archives every segment.
async fn fetch_missing(
    archive: &Arc<Archive>,
    server: &Conninfo,
    needed: &RequiredWal,
    first: SegmentName,
) -> Result<(), BackupError> {
    let clock = Arc::clone(archive.vault().clock());
    let connection = ReplicationConnection::connect(server).await?;
    let number = first.number(needed.size).unwrap_or(needed.first());
    let start = number.start(needed.size);
    let StartedReplication::Streaming(mut stream) = connection.start_physical(None, start, needed.timeline).await?
    else {
        return Ok(());
    };
    let mut assembler = SegmentAssembler::new(needed.timeline, needed.size, start);
    let mut asked = false;
    loop {
        let Some(event) = timeout(&*clock, SILENCE_LIMIT, stream.next()).await else {
            if asked {
                let (host, limit) = (stream.peer().to_owned(), SILENCE_LIMIT);
                return Err(ReplicationError::TimedOut { host, limit }.into());
            }
            asked = true;
            let status = StandbyStatus { reply_wanted: true, ..StandbyStatus::default() };
            stream.send_status(status, PgTime::from_timestamp(clock.now())).await?;
            continue;
        };
        asked = false;
        match event? {
            WalStreamEvent::EndOfTimeline => return Ok(()),
            WalStreamEvent::Keepalive(sign) if sign.reply_requested => {
                // Positions of zero: we are nobody's standby, and promise nothing.
                stream.send_status(StandbyStatus::default(), PgTime::from_timestamp(clock.now())).await?;
            }
            WalStreamEvent::Keepalive(_) => {}
            WalStreamEvent::Wal(data) => assembler.push(data.start, &data.bytes)?,
        }
        while let Some(segment) = assembler.poll() {
            let last = segment.name.number(needed.size) >= Some(needed.last());
            archive.put_segment(segment.name, segment.bytes).await?;
            if last {
                return Ok(());
            }
        }
    }
}

/// Brings the history of the timeline into the archive, if it has one and nobody else did.
pub(super) async fn archive_history(
    archive: &Arc<Archive>,
    connection: &mut ReplicationConnection,
    timeline: TimelineId,
) -> Result<(), BackupError> {
    if timeline == TimelineId::FIRST || archive.file(&WalFileName::History(timeline)).await?.is_some() {
        return Ok(());
    }
    let (_, history) = connection.timeline_history(timeline).await?;
    archive.put_file(&WalFileName::History(timeline), history).await?;
    Ok(())
}
