//! What is checked of each record: its length, its resource manager, its link to the record before, and its CRC-32C
//! (`ValidXLogRecordHeader` and `ValidXLogRecord`, `xlogreader.c`).

use super::{DecodeError, WalDecoder};
use crate::postgres::wal::record::{MAX_RECORD_BYTES, MIN_RECORD_BYTES, RECORD_HEADER_BYTES, RecordHeader, record_crc};

impl WalDecoder {
    /// What can be said of a record before all of it is there.
    #[inline]
    pub(super) fn check_header(&self, header: &RecordHeader) -> Result<(), DecodeError> {
        let at = self.record_start;
        let damaged = |problem| Err(DecodeError::Header { at, problem });
        self.check_length(header.total_len)?;
        if !header.has_valid_rmgr() {
            return damaged("a resource manager that does not exist");
        }
        match self.last {
            Some(expected) if expected != header.prev => Err(DecodeError::Chain { at, found: header.prev, expected }),
            None if header.prev >= at => damaged("it follows a record further on"),
            _ => Ok(()),
        }
    }

    /// Whether a record can be so long.
    #[inline]
    pub(super) fn check_length(&self, total_len: u32) -> Result<(), DecodeError> {
        if (MIN_RECORD_BYTES..=MAX_RECORD_BYTES).contains(&total_len) {
            return Ok(());
        }
        Err(DecodeError::Header { at: self.record_start, problem: "a length that no record has" })
    }

    /// The CRC-32C over all of it.
    #[inline]
    pub(super) fn check_crc(&self, header: &RecordHeader, bytes: &[u8]) -> Result<(), DecodeError> {
        let computed = match bytes.split_first_chunk::<RECORD_HEADER_BYTES>() {
            Some((fixed, body)) => record_crc(fixed, body),
            None => 0,
        };
        if computed == header.crc {
            return Ok(());
        }
        Err(DecodeError::Crc { at: self.record_start, stored: header.crc, computed })
    }
}
