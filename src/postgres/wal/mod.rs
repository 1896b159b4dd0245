//! Write-ahead log: pages, records, events, digests.
//!
//! Pure: bytes in, values out, no I/O and no clock. [`page`] and [`record`] read the headers, [`decode`] turns bytes
//! that come in pieces of any size into checked records, [`event`] says what a record means to a restore, [`digest`]
//! sums up one whole segment, and [`assemble`] makes whole segments of a stream.
//!
//! WAL is written in the byte order of its server; these modules read little-endian WAL, which is what every platform
//! that PostgreSQL is packaged for writes today. On any other the page magic is unknown, and the log is kept as opaque
//! bytes.

pub mod page;
mod byte_reader;
pub mod record;
pub mod catalog;
mod heap;
mod identifiers;
pub mod assemble;
mod page_image;
pub mod event;
pub mod digest;
pub mod decode;
#[cfg(test)]
mod tests;
