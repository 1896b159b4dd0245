//! Fields that a digest and its events have in common.

use crate::postgres::wal::byte_reader::{ByteReader, put_varint};

/// Zero for none, else the number and one.
pub(super) fn put_option(out: &mut Vec<u8>, value: Option<u64>) {
    put_varint(out, value.map_or(0, |value| value.saturating_add(1)));
}

pub(super) fn read_option(reader: &mut ByteReader<'_>) -> Option<Option<u64>> {
    Some(reader.varint()?.checked_sub(1))
}

pub(super) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(super) fn read_bytes<'a>(reader: &mut ByteReader<'a>, limit: usize) -> Option<&'a [u8]> {
    let len = usize::try_from(reader.varint()?).ok().filter(|len| *len <= limit)?;
    reader.take_bytes(len)
}
