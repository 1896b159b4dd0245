//! RDB: the file that a Redis or Valkey server writes its whole content into, and sends to its replicas.
//!
//! A [`RdbWalker`] takes a file in any pieces and walks every opcode and value, nested encodings too ([`listpack`], [`ziplist`]), for the outer
//! checksum says nothing of what is inside: a damaged nested encoding behind a right checksum loads on some servers and crashes them later.
//! It keeps counts only. Strings flow by whatever their length; what must be looked into is buffered up to [`RdbLimits::nested`].
//!
//! Not checked: whether keys or elements are there twice, and whether the pending entries of a stream's consumers are those of the group
//! (only that they are no more), both of which would need memory in proportion to the data.
//!
//! Source: `rdb.c`, `rdb.h` of Redis 6 to 8 and Valkey 8 and 9.

mod crc64;
#[cfg(test)]
mod tests;
mod walker;
mod lzf;
mod listpack;
mod body;
mod lengths;
mod summary;
mod ziplist;
mod grammar;

pub use crc64::update as crc64;
pub use summary::{RdbChecksum, RdbDatabase, RdbMagic, RdbSummary, RdbValueKind, WalkStop};
pub use walker::RdbWalker;

/// Bounds of a walk.
#[derive(Debug, Clone)]
pub struct RdbLimits {
    /// The largest nested encoding that is looked into, in bytes, compressed and plain; larger ones are counted and flow by.
    pub nested: usize,
    /// Milliseconds since 1970: keys that expire before are counted as expired.
    pub expired_by: Option<i64>,
}

impl Default for RdbLimits {
    /// Servers write nested encodings of 8 to 64 KiB unless told otherwise; 16 MiB is much more, and little to hold.
    fn default() -> RdbLimits {
        RdbLimits { nested: 16 << 20, expired_by: None }
    }
}

/// Databases that are counted apart, at most. Servers have 16 unless told otherwise.
const MAX_DATABASES: usize = 1 << 14;

/// Auxiliary fields and modules that are remembered, at most, and their length.
const MAX_NAMES: usize = 256;
const MAX_NAME_BYTES: u64 = 4096;

/// Bytes that are no RDB file, or a damaged one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RdbError {
    /// Neither Redis's nor Valkey's.
    #[error("this is no RDB file: it begins with {found:?} instead of REDIS or VALKEY and a version")]
    Header {
        /// The first nine bytes.
        found: String,
    },
    /// It ends before its end.
    #[error("the RDB is cut off after {at} bytes: take it again from the server")]
    Truncated {
        /// How many bytes there are.
        at: u64,
    },
    /// Something follows its end.
    #[error("the RDB ends at byte {at}, and more bytes follow")]
    Trailing {
        /// The length of the RDB.
        at: u64,
    },
    /// The checksum at the end is another.
    #[error("the RDB is damaged: its checksum is {found:016x}, its bytes have {computed:016x}")]
    Checksum {
        /// What the file says.
        found: u64,
        /// What its bytes have.
        computed: u64,
    },
    /// What is there cannot be.
    #[error("the RDB is damaged at byte {at}: {what}")]
    Damaged {
        /// Bytes before it.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// For fuzzing: walks `data` whole, then in two pieces that must agree with it. The first byte says where to cut.
pub fn fuzz(data: &[u8]) {
    let Some((at, data)) = data.split_first() else { return };
    let limits = RdbLimits { nested: 1 << 12, expired_by: Some(0) };
    let walk = |pieces: [&[u8]; 2]| {
        let mut walker = RdbWalker::new(limits.clone());
        pieces.iter().try_for_each(|piece| walker.push(piece)).and_then(|()| walker.finish())
    };
    let (head, tail) = data.split_at(usize::from(*at).min(data.len()));
    assert_eq!(walk([data, &[]]), walk([head, tail]), "the cut at {at} changes what is found");
}
