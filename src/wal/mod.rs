//! Write-ahead log: pages, records, events, digests.
//!
//! Pure: bytes in, values out, no I/O and no clock. [`page`] and [`record`] read the headers, [`decode`] turns bytes that come in pieces of
//! any size into checked records, [`event`] says what a record means to a restore, [`digest`] sums up one whole segment, and [`assemble`]
//! makes whole segments of a stream.
//!
//! WAL is written in the byte order of its server; these modules read little-endian WAL, which is what every platform that PostgreSQL is
//! packaged for writes today. On any other the page magic is unknown, and the log is kept as opaque bytes.

mod read;
pub mod page;
pub mod record;
pub mod decode;
pub mod event;
mod compressed;
mod heap;
pub mod catalog;
pub mod digest;
pub mod assemble;

#[cfg(test)]
mod tests;
