//! The walk from the first byte to the last: header, body, checksum.

use std::collections::{BTreeMap, BTreeSet};
use std::mem;

use super::body::{RdbBodyWalker, RdbStepResult};
use super::crc64::update as crc64;
use super::error::RdbError;
use super::grammar;
use super::lengths::byte_count;
use super::limits::RdbLimits;
use super::summary::{RdbChecksum, RdbMagic, RdbSummary, WalkStop};

/// More than the longest piece that must be seen whole to take a step: the head of a compressed string has 19 bytes.
const MAX_TOKEN_BYTES: usize = 24;

/// Walked and then summed in one go, while it is in the cache.
const WALK_CHUNK_BYTES: usize = 64 << 10;

/// Version 5 brought the checksum.
const FIRST_VERSION_WITH_CHECKSUM: u32 = 5;

const RDB_HEADER_BYTES: usize = 9;
const CHECKSUM_BYTES: usize = 8;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RdbWalkPhase {
    Header,
    Body,
    /// Something unknown was met: the rest is only summed.
    Opaque,
    Checksum,
    Done,
}

/// Walks an RDB file that is pushed in pieces.
#[derive(Debug)]
pub struct RdbWalker {
    phase: RdbWalkPhase,
    steps: RdbBodyWalker,
    /// A piece that was cut, less than [`MAX_TOKEN_BYTES`] bytes.
    cut: Vec<u8>,
    /// The header while it comes in; later the last bytes, which may be the checksum.
    tail: Vec<u8>,
    /// Bytes walked: where the next step begins.
    at: u64,
    /// Where the piece began that the next step goes on with.
    start: u64,
    crc: u64,
    walk: RdbSummary,
    failed: Option<RdbError>,
}

impl RdbWalker {
    /// A walk from the first byte.
    #[must_use]
    pub fn new(limits: RdbLimits) -> RdbWalker {
        let walk = RdbSummary {
            magic: RdbMagic::Redis,
            version: 0,
            aux: BTreeMap::new(),
            databases: BTreeMap::new(),
            functions: 0,
            modules: BTreeSet::new(),
            unwalked: 0,
            stopped: None,
            checksum: RdbChecksum::Absent,
            bytes: 0,
        };
        RdbWalker {
            phase: RdbWalkPhase::Header,
            steps: RdbBodyWalker::new(limits),
            cut: Vec::new(),
            tail: Vec::new(),
            at: 0,
            start: 0,
            crc: 0,
            walk,
            failed: None,
        }
    }

    /// The next bytes.
    ///
    /// # Errors
    /// The bytes are no RDB file, a damaged one, or go on after its end. After an error every call gives the same.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), RdbError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let done = bytes.chunks(WALK_CHUNK_BYTES).try_for_each(|chunk| self.push_chunk(chunk));
        done.inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// The database that the stream of commands behind the file acts on first, once that was met: it stands near the
    /// file's beginning.
    #[must_use]
    pub fn stream_database(&self) -> Option<u32> {
        self.walk.stream_database()
    }

    /// Whether the end of the file has been met. A file of a newer format that is not understood to its end never says
    /// so.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.phase == RdbWalkPhase::Done
    }

    /// What was found, once all bytes were pushed.
    ///
    /// # Errors
    /// The file is cut off, or what [`RdbWalker::push`] said.
    pub fn finish(mut self) -> Result<RdbSummary, RdbError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        match self.phase {
            RdbWalkPhase::Done => {}
            RdbWalkPhase::Opaque => self.finish_opaque()?,
            RdbWalkPhase::Header | RdbWalkPhase::Body | RdbWalkPhase::Checksum => {
                return Err(RdbError::Truncated { at: self.walk.bytes });
            }
        }
        Ok(self.walk)
    }

    /// What is not understood still ends in the end's code and the checksum.
    fn finish_opaque(&mut self) -> Result<(), RdbError> {
        let Some(([grammar::END_OPCODE], sum)) = self.tail.split_last_chunk::<CHECKSUM_BYTES>() else {
            return Err(RdbError::Truncated { at: self.walk.bytes });
        };
        self.walk.checksum = compare_checksums(u64::from_le_bytes(*sum), crc64(self.crc, &[grammar::END_OPCODE]))?;
        if let Some(stopped) = &mut self.walk.stopped {
            stopped.opaque = self.walk.bytes.saturating_sub(stopped.at);
        }
        Ok(())
    }

    fn push_chunk(&mut self, chunk: &[u8]) -> Result<(), RdbError> {
        let mut rest = chunk;
        while !rest.is_empty() {
            let used = match self.phase {
                RdbWalkPhase::Header => self.read_header(rest)?,
                RdbWalkPhase::Body => self.walk_body(rest)?,
                RdbWalkPhase::Opaque => self.skip_opaque(rest),
                RdbWalkPhase::Checksum => self.check_checksum(rest)?,
                RdbWalkPhase::Done => return Err(RdbError::Trailing { at: self.walk.bytes }),
            };
            self.walk.bytes = self.walk.bytes.saturating_add(byte_count(used));
            rest = rest.get(used..).unwrap_or_default();
        }
        Ok(())
    }

    /// Collects up to `wanted` bytes in `tail`, and says how many of `bytes` that took.
    fn collect_bytes(&mut self, bytes: &[u8], wanted: usize) -> usize {
        let used = bytes.len().min(wanted.saturating_sub(self.tail.len()));
        self.tail.extend_from_slice(bytes.get(..used).unwrap_or_default());
        used
    }

    fn read_header(&mut self, bytes: &[u8]) -> Result<usize, RdbError> {
        let used = self.collect_bytes(bytes, RDB_HEADER_BYTES);
        if self.tail.len() == RDB_HEADER_BYTES {
            let bad = || RdbError::Header { found: String::from_utf8_lossy(&self.tail).into_owned() };
            (self.walk.magic, self.walk.version) = parse_magic(&self.tail).ok_or_else(bad)?;
            self.crc = crc64(0, &self.tail);
            self.at = byte_count(RDB_HEADER_BYTES);
            self.tail.clear();
            self.phase = RdbWalkPhase::Body;
        }
        Ok(used)
    }

    /// Walks until the bytes are used up or the body ends, and sums what was walked.
    fn walk_body(&mut self, input: &[u8]) -> Result<usize, RdbError> {
        let mut rest = input;
        while !rest.is_empty() && self.phase == RdbWalkPhase::Body {
            let held = self.cut.len();
            if !self.steps.is_within_a_string() {
                self.start = self.at;
            }
            let taken = if held == 0 {
                self.steps.walk(rest, &mut self.walk)
            } else {
                // A piece was cut: its bytes so far, and enough more.
                self.cut.extend_from_slice(rest.get(..MAX_TOKEN_BYTES.min(rest.len())).unwrap_or_default());
                self.steps.walk(&self.cut, &mut self.walk)
            };
            let taken = taken.map_err(|what| RdbError::Damaged { at: self.start, what })?;
            let used = match taken {
                RdbStepResult::Cut if held == 0 => {
                    self.cut.extend_from_slice(rest);
                    rest = &[];
                    continue;
                }
                // All of the rest is there now, for it was less than the longest piece.
                RdbStepResult::Cut => {
                    rest = &[];
                    continue;
                }
                RdbStepResult::Used(used) => used,
                RdbStepResult::End(used) => {
                    let summed = self.walk.version >= FIRST_VERSION_WITH_CHECKSUM;
                    self.phase = if summed { RdbWalkPhase::Checksum } else { RdbWalkPhase::Done };
                    used
                }
                RdbStepResult::Unknown(used, code) => {
                    self.walk.stopped = Some(WalkStop { at: self.at, code, opaque: 0 });
                    self.phase = RdbWalkPhase::Opaque;
                    used
                }
            };
            self.at = self.at.saturating_add(byte_count(used));
            self.cut.clear();
            rest = rest.get(used.saturating_sub(held)..).unwrap_or_default();
        }
        let used = input.len().saturating_sub(rest.len());
        self.crc = crc64(self.crc, input.get(..used).unwrap_or_default());
        Ok(used)
    }

    /// Sums all but the last bytes, which are held back: the end's code and the checksum, if this is the end.
    fn skip_opaque(&mut self, bytes: &[u8]) -> usize {
        const KEPT: usize = 1 + CHECKSUM_BYTES;
        let gone = self.tail.len().saturating_add(bytes.len()).saturating_sub(KEPT).min(self.tail.len());
        let late = self.tail.split_off(gone);
        self.crc = crc64(self.crc, &mem::replace(&mut self.tail, late));
        let (early, late) = bytes.split_at(bytes.len().saturating_sub(KEPT));
        self.crc = crc64(self.crc, early);
        self.tail.extend_from_slice(late);
        bytes.len()
    }

    fn check_checksum(&mut self, bytes: &[u8]) -> Result<usize, RdbError> {
        let used = self.collect_bytes(bytes, CHECKSUM_BYTES);
        if let Some(sum) = self.tail.first_chunk() {
            self.walk.checksum = compare_checksums(u64::from_le_bytes(*sum), self.crc)?;
            self.phase = RdbWalkPhase::Done;
        }
        Ok(used)
    }
}

/// Zero stands for none: a server that writes no checksum writes that.
fn compare_checksums(found: u64, computed: u64) -> Result<RdbChecksum, RdbError> {
    match found {
        0 => Ok(RdbChecksum::Disabled),
        sum if sum == computed => Ok(RdbChecksum::Verified),
        found => Err(RdbError::Checksum { found, computed }),
    }
}

fn parse_magic(header: &[u8]) -> Option<(RdbMagic, u32)> {
    let (magic, digits) = match header.strip_prefix(b"REDIS") {
        Some(digits) => (RdbMagic::Redis, digits),
        None => (RdbMagic::Valkey, header.strip_prefix(b"VALKEY")?),
    };
    let version = digits.iter().try_fold(0_u32, |sum, byte| {
        let digit = byte.is_ascii_digit().then(|| u32::from(byte.wrapping_sub(b'0')))?;
        sum.checked_mul(10)?.checked_add(digit)
    })?;
    (version > 0).then_some((magic, version))
}
