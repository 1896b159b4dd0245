//! RDB: the file that a Redis or Valkey server writes its whole content into, and sends to its replicas.
//!
//! A [`RdbWalker`] takes a file in any pieces and walks every opcode and value, nested encodings too ([`listpack`],
//! [`ziplist`]), for the outer checksum says nothing of what is inside: a damaged nested encoding behind a right
//! checksum loads on some servers and crashes them later. It keeps counts only. Strings flow by whatever their length;
//! what must be looked into is buffered up to [`RdbLimits::nested`].
//!
//! Not checked: whether keys or elements are there twice, and whether the pending entries of a stream's consumers are
//! those of the group (only that they are no more), both of which would need memory in proportion to the data.
//!
//! Source: `rdb.c`, `rdb.h` of Redis 6 to 8 and Valkey 8 and 9.

mod crc64;
mod error;
mod limits;
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
pub use error::RdbError;
pub use limits::RdbLimits;
pub use summary::{RdbChecksum, RdbDatabase, RdbMagic, RdbSummary, RdbValueKind, WalkStop};
pub use walker::RdbWalker;

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
