//! What a plan asks of the archived log, answered by the index and the archive. The calls block.

use super::archived_log::{ArchivedLog, ReplayChain, ReplayObstacle, WalRequirements};
use super::created_tablespace::CreatedTablespace;
use super::error::RestoreError;
use crate::postgres::archive;
use crate::postgres::archive::lookup::{LookupError, RecordSpan, SegmentSource, WalLookup};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::RequiredSettings;
use crate::postgres::format::segment::SegmentSize;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelinePath;
use crate::postgres::index::WalHole;
use crate::postgres::wal::event::{TransactionEnd, WalEventKind, WalParameters, Xid};

/// The kind of tablespaces made ([`WalEventKind::tag`]).
const CREATE_TABLESPACE_TAG: u8 = 18;

impl<S: SegmentSource<Error = archive::ArchiveError>> ArchivedLog for WalLookup<'_, S> {
    fn segment_size(&self) -> SegmentSize {
        WalLookup::segment_size(self)
    }

    fn ending_after(
        &self,
        path: &TimelinePath,
        from: Lsn,
        time: PgTime,
    ) -> Result<Option<TransactionEnd>, RestoreError> {
        Ok(WalLookup::ending_after(self, path, from, time)?)
    }

    fn ending_of(&self, path: &TimelinePath, from: Lsn, xid: Xid) -> Result<Option<TransactionEnd>, RestoreError> {
        Ok(WalLookup::ending_of(self, path, from, xid)?)
    }

    fn restore_points(&self, path: &TimelinePath, from: Lsn, name: &str) -> Result<Vec<RecordSpan>, RestoreError> {
        let found = WalLookup::restore_points(self, path, from, name)?;
        Ok(found.into_iter().map(|event| RecordSpan { lsn: event.lsn, end: event.end_lsn }).collect())
    }

    fn effect_of(&self, path: &TimelinePath, lsn: Lsn) -> Result<Option<RecordSpan>, RestoreError> {
        Ok(WalLookup::effect_of(self, path, lsn)?)
    }

    fn record_from(&self, path: &TimelinePath, from: Lsn) -> Result<Option<RecordSpan>, RestoreError> {
        Ok(WalLookup::record_from(self, path, from)?)
    }

    fn record_until(&self, path: &TimelinePath, end: Lsn) -> Result<Option<Lsn>, RestoreError> {
        Ok(WalLookup::record_until(self, path, end)?)
    }

    fn commit_before(&self, path: &TimelinePath, before: Lsn) -> Result<Option<TransactionEnd>, RestoreError> {
        Ok(WalLookup::commit_before(self, path, before)?)
    }

    fn commit_from(&self, path: &TimelinePath, from: Lsn) -> Result<Option<TransactionEnd>, RestoreError> {
        Ok(WalLookup::commit_from(self, path, from)?)
    }

    fn replay_chain(&self, path: &TimelinePath, from: Lsn, to: Option<Lsn>) -> Result<ReplayChain, RestoreError> {
        let found = WalLookup::wal_chain(self, path, from, to)?;
        let obstacle = found.hole.map(|WalHole { timeline, from, to, why }| {
            let why = why.to_string();
            ReplayObstacle { timeline, from, to, why }
        });
        Ok(ReplayChain {
            obstacle,
            segments: found.segments,
            records: found.records,
            bytes: found.end.bytes_since(from),
            end: found.end,
        })
    }

    fn wal_requirements(&self, path: &TimelinePath, from: Lsn, to: Lsn) -> Result<WalRequirements, RestoreError> {
        let maxima = self.parameter_maxima(path, from, to)?;
        let required = |parameters: WalParameters| RequiredSettings {
            max_connections: parameters.max_connections,
            max_worker_processes: parameters.max_worker_processes,
            max_wal_senders: parameters.max_wal_senders,
            max_prepared_transactions: parameters.max_prepared_transactions,
            max_locks_per_transaction: parameters.max_locks_per_transaction,
        };
        Ok(WalRequirements { largest: maxima.largest.map(required).unwrap_or_default(), minimal_at: maxima.minimal_at })
    }

    fn created_tablespaces(
        &self,
        path: &TimelinePath,
        from: Lsn,
        to: Lsn,
    ) -> Result<Vec<CreatedTablespace>, RestoreError> {
        let mut made = Vec::new();
        for event in self.events(path, &[CREATE_TABLESPACE_TAG], from, to, usize::MAX)? {
            // One without a path lies in the data directory.
            if let WalEventKind::CreateTablespace { tablespace, location } = event.kind
                && !location.is_empty()
            {
                let ending = WalLookup::ending_of(self, path, event.lsn, event.xid)?;
                made.push(CreatedTablespace {
                    lsn: event.lsn,
                    tablespace,
                    location,
                    time: ending.map(|ending| ending.time),
                });
            }
        }
        Ok(made)
    }

    fn unreadable_end(&self, path: &TimelinePath, from: Lsn, to: Lsn) -> Result<Option<ReplayObstacle>, RestoreError> {
        let last = Lsn::new(to.get().saturating_sub(1).max(from.get()));
        for lsn in [from, last] {
            match self.check_opens(path, lsn) {
                Err(LookupError::Segments(error)) if error.is_integrity() => {
                    let timeline = path.timeline_at(lsn);
                    return Ok(Some(ReplayObstacle { timeline, from: lsn, to, why: error.to_string() }));
                }
                opened => opened?,
            }
        }
        Ok(None)
    }
}

impl From<LookupError<archive::ArchiveError>> for RestoreError {
    fn from(error: LookupError<archive::ArchiveError>) -> RestoreError {
        match error {
            LookupError::Index(error) => RestoreError::Index(error),
            LookupError::Segments(error) => RestoreError::Archive(error),
        }
    }
}
