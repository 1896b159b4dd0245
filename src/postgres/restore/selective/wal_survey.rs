//! What a stretch of log holds that matters to a restore of a part: read once, record by record, before anything is
//! placed.
//!
//! The segments that were read are kept in the scratch directory where there is room, so that the scratch server takes
//! them from there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};

use crate::base::blocking::run_blocking;
use crate::postgres::archive::Archive;
use crate::postgres::archive::spool::Spool;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::segment::{SegmentName, SegmentNo, SegmentSize};
use crate::postgres::format::timeline::TimelinePath;
use crate::postgres::wal::decode::WalDecoder;
use crate::postgres::wal::page::MajorVersion;
use crate::postgres::wal::record::{RECORD_HEADER_BYTES, RMGR_INFO, WalRecord, rmgr};

use super::error::{SelectiveRestoreError, io_error};

/// A resource manager that only a restore of a part looks into (`rmgrlist.h`).
const RELATION_MAP_RMGR: u8 = 7;

/// Bytes of segments that may be on their way at once.
const MAX_FETCH_BYTES: u64 = 256 << 20;

/// What was found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct WalSurvey {
    /// Databases that others were made from by copying files: the log has nothing of what was copied.
    pub(super) copied: BTreeSet<u32>,
    /// Whether the list of databases may have changed.
    pub(super) databases_changed: bool,
    /// The first record that says that `full_page_writes` is off.
    pub(super) no_full_pages: Option<Lsn>,
    /// Whether there are records of a resource manager that an extension brings (15 and later).
    pub(super) custom_records: bool,
    /// Segments that were not found, and will be asked for again by the server.
    pub(super) unseen: u64,
}

/// A stretch of log to be read.
pub(super) struct SurveyRange<'a> {
    pub(super) path: &'a TimelinePath,
    pub(super) from: Lsn,
    pub(super) to: Lsn,
    pub(super) size: SegmentSize,
    /// The file of `pg_database`, if it is known.
    pub(super) databases: Option<u32>,
    /// Where segments are kept; `None` where there is no room for them.
    pub(super) keep: Option<PathBuf>,
}

impl SurveyRange<'_> {
    fn segment_numbers(&self) -> impl Iterator<Item = SegmentNo> + use<> {
        let (size, last) = (self.size, self.size.segment_of(self.to));
        let first = size.segment_of(self.from);
        std::iter::successors(Some(first), |number| Some(number.next())).take_while(move |number| *number <= last)
    }

    /// Reads it all. `progress` is told bytes read and bytes in all.
    pub(super) async fn survey(
        &self,
        archive: &Arc<Archive>,
        spool: Option<&Spool>,
        progress: &(dyn Fn(u64, u64) + Sync),
    ) -> Result<WalSurvey, SelectiveRestoreError> {
        let total = (self.segment_numbers().count() as u64).saturating_mul(self.size.get());
        let at_once = usize::try_from(MAX_FETCH_BYTES / self.size.get()).unwrap_or(1).clamp(1, 4);
        let begin = self.size.segment_of(self.from).start(self.size);
        let reader = SurveyReader {
            decoder: WalDecoder::new(begin, self.path.target(), self.size),
            databases: self.databases.map(catalog_file_pattern),
            survey: WalSurvey::default(),
        };
        let mut reader = Some(reader);
        let done = AtomicU64::new(0);
        let mut fetched = std::pin::pin!(
            stream::iter(self.segment_numbers())
                .map(|number| self.fetch_segment(archive, spool, number))
                .buffered(at_once)
        );
        while let Some(segment) = fetched.next().await {
            let Some(mut now) = reader.take() else { break };
            match segment? {
                Some((name, bytes)) => {
                    let keep = self.keep.as_ref().map(|folder| folder.join(name.to_string()));
                    reader =
                        Some(run_blocking(move || now.read_segment(&bytes, keep.as_deref()).map(|()| now)).await??);
                }
                None => {
                    now.survey.unseen = now.survey.unseen.saturating_add(1);
                    reader = Some(now);
                }
            }
            progress(done.fetch_add(self.size.get(), Ordering::Relaxed).saturating_add(self.size.get()), total);
        }
        Ok(reader.map(|reader| reader.survey).unwrap_or_default())
    }

    /// A segment as the server would get it: from the newest timeline that has it, or what there is of it.
    async fn fetch_segment(
        &self,
        archive: &Arc<Archive>,
        spool: Option<&Spool>,
        number: SegmentNo,
    ) -> Result<Option<(SegmentName, Bytes)>, SelectiveRestoreError> {
        let names = || self.path.candidates(number, self.size).filter_map(|at| SegmentName::new(at, number, self.size));
        for name in names() {
            if let Some(bytes) = archive.segment(name).await? {
                return Ok(Some((name, bytes)));
            }
        }
        for name in names() {
            if let Some(beginning) = archive.segment_beginning(spool, name).await? {
                return Ok(Some((name, beginning.bytes)));
            }
        }
        Ok(None)
    }
}

/// How records name a shared catalog of this file: tablespace, no database, file.
fn catalog_file_pattern(file: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..4].copy_from_slice(&crate::postgres::format::datadir::DataDirRelation::GLOBAL_TABLESPACE_OID.to_le_bytes());
    bytes[8..].copy_from_slice(&file.to_le_bytes());
    bytes
}

struct SurveyReader {
    decoder: WalDecoder,
    databases: Option<[u8; 12]>,
    survey: WalSurvey,
}

impl SurveyReader {
    fn read_segment(&mut self, segment: &[u8], keep: Option<&Path>) -> Result<(), SelectiveRestoreError> {
        if let Some(path) = keep {
            std::fs::write(path, segment).map_err(io_error("write", path))?;
        }
        // After a segment that was not found, or the end of the log, nothing more is known of what follows.
        if self.survey.unseen > 0 || self.decoder.end().is_some() {
            return Ok(());
        }
        let SurveyReader { decoder, databases, survey } = self;
        let mut major = decoder.major();
        if major.is_none() {
            // The first page says which release wrote it.
            let magic = segment.first_chunk().map_or(0, |magic| u16::from_le_bytes(*magic));
            major = MajorVersion::from_magic(magic);
        }
        let Some(major) = major else { return Ok(()) };
        let mut feed = decoder.feed_bytes(segment);
        while let Some(record) =
            feed.next_record().map_err(|error| SelectiveRestoreError::WalUnusable(error.to_string()))?
        {
            survey.note_record(&record, major, databases.as_ref());
        }
        Ok(())
    }
}

impl WalSurvey {
    /// Whether the replay may need the libraries that the original preloads.
    pub(super) fn needs_libraries(&self) -> bool {
        self.custom_records || self.unseen > 0
    }

    fn note_record(&mut self, record: &WalRecord<'_>, major: MajorVersion, databases: Option<&[u8; 12]>) {
        let op = record.header.info & RMGR_INFO;
        let main = || record.main_data(major).unwrap_or_default();
        match record.header.rmgr {
            rmgr::XLOG => {
                // Of a checkpoint, the flag stands behind its position and two timelines (`CheckPoint` in
                // pg_control.h).
                let flag = match op {
                    0x00 | 0x10 => main().get(16).copied(),
                    0x80 => main().first().copied(),
                    _ => None,
                };
                if flag == Some(0) {
                    self.no_full_pages.get_or_insert(record.lsn);
                }
            }
            rmgr::DATABASE => {
                self.databases_changed = true;
                // `XLOG_DBASE_CREATE`, since 15 `XLOG_DBASE_CREATE_FILE_COPY`: the number of the new, its tablespace,
                // the number of the old.
                if op == 0x00 {
                    self.copied.extend(main().get(8..).and_then(<[u8]>::first_chunk).map(|n| u32::from_le_bytes(*n)));
                }
            }
            RELATION_MAP_RMGR => self.databases_changed = true,
            rmgr::FIRST_CUSTOM.. => self.custom_records = true,
            rmgr::SMGR_TRUNCATE_HEAP | 9 if !self.databases_changed => {
                // A block's reference stands at the front, behind at most eleven bytes.
                let front = record
                    .bytes
                    .get(RECORD_HEADER_BYTES..record.bytes.len().min(RECORD_HEADER_BYTES + 40))
                    .unwrap_or_default();
                self.databases_changed =
                    databases.is_none_or(|pattern| front.windows(pattern.len()).any(|window| window == pattern));
            }
            _ => {}
        }
    }
}
