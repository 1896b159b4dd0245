//! Listpacks (`listpack.c`) and the form that streams give them (`t_stream.c`).
//!
//! A listpack is a length, a count, entries and `ff`; every entry is followed by its own length, to be read backwards.

/// Bytes before the first entry: total length, number of entries.
const LISTPACK_HEADER_BYTES: usize = 6;

/// More entries than the header's sixteen bits can say.
const UNKNOWN_ENTRY_COUNT: u16 = u16::MAX;

pub(super) const BROKEN_LISTPACK: &str = "a listpack inside is damaged";
pub(super) const BROKEN_STREAM_LISTPACK: &str = "a listpack inside a stream is damaged";

/// An entry of a listpack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ListpackEntry<'a> {
    Int(i64),
    Str(&'a [u8]),
}

struct ListpackEntries<'a> {
    rest: &'a [u8],
}

/// The entries, and how many the header says there are.
fn open_listpack(bytes: &[u8]) -> Option<(ListpackEntries<'_>, u16)> {
    let (header, rest) = bytes.split_at_checked(LISTPACK_HEADER_BYTES)?;
    let [a, b, c, d, e, f] = *header.first_chunk::<LISTPACK_HEADER_BYTES>()?;
    if usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()? != bytes.len() {
        return None;
    }
    let (0xff, rest) = rest.split_last()? else { return None };
    Some((ListpackEntries { rest }, u16::from_le_bytes([e, f])))
}

impl<'a> ListpackEntries<'a> {
    /// The next entry; `None` at the end, an error where none can be read.
    fn next(&mut self) -> Result<Option<ListpackEntry<'a>>, ()> {
        if self.rest.is_empty() { Ok(None) } else { self.next_entry().map(Some).ok_or(()) }
    }

    fn next_entry(&mut self) -> Option<ListpackEntry<'a>> {
        let (entry, len) = decode_entry(self.rest)?;
        let (body, rest) = self.rest.split_at_checked(len)?;
        let back = backward_length_size(len);
        let (length, rest) = rest.split_at_checked(back)?;
        // Seven bits a byte, the most significant first; every byte but that one has the high bit set.
        let told = length.iter().fold(0_usize, |sum, byte| (sum << 7) | usize::from(byte & 0x7f));
        let marked = length.iter().skip(1).all(|byte| byte & 0x80 != 0) && length.first()? & 0x80 == 0;
        (told == body.len() && marked).then(|| self.rest = rest)?;
        Some(entry)
    }

    fn integer(&mut self) -> Option<i64> {
        match self.next().ok()?? {
            ListpackEntry::Int(int) => Some(int),
            // Integers of streams are always written as such.
            ListpackEntry::Str(_) => None,
        }
    }

    fn skip(&mut self, entries: i64) -> Option<()> {
        (0..entries).try_for_each(|_| self.next_entry().map(drop))
    }
}

/// `lpEncodeBacklen`: its thresholds are one off in the middle, and so must these be.
fn backward_length_size(len: usize) -> usize {
    match len {
        ..=127 => 1,
        128..16_383 => 2,
        16_383..2_097_151 => 3,
        2_097_151..268_435_455 => 4,
        _ => 5,
    }
}

/// An entry and how long it is, without the length after it.
fn decode_entry(bytes: &[u8]) -> Option<(ListpackEntry<'_>, usize)> {
    let (first, rest) = bytes.split_first()?;
    let first_bits = |mask: u8| usize::from(first & mask);
    let string = |header: usize, len: usize| {
        let end = header.checked_add(len)?;
        Some((ListpackEntry::Str(bytes.get(header..end)?), end))
    };
    match first {
        0..=0x7f => Some((ListpackEntry::Int(i64::from(*first)), 1)),
        0x80..=0xbf => string(1, first_bits(0x3f)),
        0xc0..=0xdf => {
            let raw = i64::from(first & 0x1f) << 8 | i64::from(*rest.first()?);
            Some((ListpackEntry::Int(if raw >= 1 << 12 { raw.saturating_sub(1 << 13) } else { raw }), 2))
        }
        0xe0..=0xef => string(2, first_bits(0x0f) << 8 | usize::from(*rest.first()?)),
        0xf0 => string(5, usize::try_from(u32::from_le_bytes(*rest.first_chunk()?)).ok()?),
        0xf1 => Some((ListpackEntry::Int(i64::from(i16::from_le_bytes(*rest.first_chunk()?))), 3)),
        0xf2 => {
            let [a, b, c] = *rest.first_chunk()?;
            Some((ListpackEntry::Int(i64::from(i32::from_le_bytes([0, a, b, c]) >> 8)), 4))
        }
        0xf3 => Some((ListpackEntry::Int(i64::from(i32::from_le_bytes(*rest.first_chunk()?))), 5)),
        0xf4 => Some((ListpackEntry::Int(i64::from_le_bytes(*rest.first_chunk()?)), 9)),
        0xf5..=0xff => None,
    }
}

/// Checks a listpack that holds groups of `group` entries, and says how many groups.
pub(super) fn check_listpack(bytes: &[u8], group: u64) -> Result<u64, &'static str> {
    let (mut entries, told) = open_listpack(bytes).ok_or(BROKEN_LISTPACK)?;
    let mut found = 0_u64;
    while entries.next().map_err(|()| BROKEN_LISTPACK)?.is_some() {
        found = found.saturating_add(1);
    }
    if told != UNKNOWN_ENTRY_COUNT && u64::from(told) != found {
        return Err(BROKEN_LISTPACK);
    }
    match (found.checked_div(group), found.checked_rem(group)) {
        (Some(groups), Some(0)) => Ok(groups),
        _ => Err(BROKEN_LISTPACK),
    }
}

/// An entry of a stream that has the master entry's fields.
const SAME_FIELDS_FLAG: i64 = 2;

/// Checks a stream's listpack: the master entry, then entries and deleted entries as counted there
/// (`streamValidateListpackIntegrity`).
pub(super) fn check_stream_listpack(bytes: &[u8]) -> Result<u64, &'static str> {
    let (entries, told) = open_listpack(bytes).ok_or(BROKEN_STREAM_LISTPACK)?;
    check_listpack(bytes, 1)?;
    if told == 0 {
        return Err(BROKEN_STREAM_LISTPACK);
    }
    count_stream_entries(entries).ok_or(BROKEN_STREAM_LISTPACK)
}

fn count_stream_entries(mut list: ListpackEntries<'_>) -> Option<u64> {
    let live = list.integer()?;
    let deleted = list.integer()?;
    let master_fields = list.integer()?;
    list.skip(master_fields)?;
    (list.integer()? == 0).then_some(())?;
    for _ in 0..live.checked_add(deleted)? {
        let flags = list.integer()?;
        // The difference to the master's id.
        list.integer()?;
        list.integer()?;
        let (fields, parts) = if flags & SAME_FIELDS_FLAG != 0 {
            (master_fields, master_fields.checked_add(3)?)
        } else {
            let fields = list.integer()?;
            list.skip(fields)?;
            (fields, fields.checked_mul(2)?.checked_add(4)?)
        };
        list.skip(fields)?;
        (list.integer()? == parts).then_some(())?;
    }
    list.rest.is_empty().then_some(())?;
    u64::try_from(live).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; LISTPACK_HEADER_BYTES];
        for entry in entries {
            bytes.extend_from_slice(entry);
        }
        bytes.push(0xff);
        let len = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes[4..6].copy_from_slice(&u16::try_from(entries.len()).unwrap().to_le_bytes());
        bytes
    }

    #[test]
    fn integers_of_every_width() {
        let cases: [(&[u8], i64); 8] = [
            (&[5], 5),
            (&[0xc0, 0x80], 128),
            (&[0xdf, 0xff], -1),
            (&[0xd0, 0x00], -4096),
            (&[0xf1, 0x00, 0x80], -32768),
            (&[0xf2, 0xff, 0xff, 0xff], -1),
            (&[0xf3, 0x01, 0, 0, 0], 1),
            (&[0xf4, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f], i64::MAX),
        ];
        for (bytes, expected) in cases {
            assert_eq!(decode_entry(bytes), Some((ListpackEntry::Int(expected), bytes.len())), "{bytes:x?}");
        }
    }

    #[test]
    fn what_is_no_listpack() {
        let good = list(&[&[1, 1], &[0x82, b'a', b'b', 3]]);
        assert_eq!(check_listpack(&good, 1), Ok(2));
        assert_eq!(check_listpack(&good, 2), Ok(1));
        assert_eq!(check_listpack(&good, 3), Err(BROKEN_LISTPACK), "not a multiple");
        assert_eq!(check_listpack(&list(&[]), 2), Ok(0));
        for at in 0..good.len() {
            // Of all bytes only the content of the string may be anything.
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            let content = (9..11).contains(&at) || at == 6;
            assert_eq!(check_listpack(&bad, 1).is_ok(), content, "byte {at}");
            assert!(check_listpack(&good[..at], 1).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn lengths_on_both_sides_of_each_threshold() {
        for len in [124, 125, 126, 16_379, 16_380, 16_381, 2_097_145, 2_097_146] {
            let mut entry = match len {
                0..4096 => vec![0xe0 | u8::try_from(len >> 8).unwrap(), u8::try_from(len & 0xff).unwrap()],
                _ => [&[0xf0][..], &u32::try_from(len).unwrap().to_le_bytes()[..]].concat(),
            };
            entry.extend(std::iter::repeat_n(b'x', len));
            let whole = entry.len();
            let back = backward_length_size(whole);
            for at in (0..back).rev() {
                let high = if at == back - 1 { 0 } else { 0x80 };
                entry.push(high | u8::try_from(whole >> (7 * at) & 0x7f).unwrap());
            }
            assert_eq!(check_listpack(&list(&[&entry]), 1), Ok(1), "{len}");
        }
    }

    #[test]
    fn a_stream_of_two_entries() {
        let int = |int: u8| [int, 1];
        // One live and one deleted entry; one field "f" in the master.
        let (f, v) = ([0x81, b'f', 2], [0x81, b'v', 2]);
        let mut parts: Vec<Vec<u8>> = vec![int(1).into(), int(1).into(), int(1).into(), f.into(), int(0).into()];
        parts.extend([int(2).into(), int(0).into(), int(0).into(), v.into(), int(4).into()]);
        parts.extend([int(1).into(), int(0).into(), int(1).into(), int(1).into(), f.into(), v.into(), int(6).into()]);
        let bytes = |parts: &[Vec<u8>]| list(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
        assert_eq!(check_stream_listpack(&bytes(&parts)), Ok(1));
        for (at, wrong) in [(0, 2), (2, 2), (4, 1), (9, 5), (16, 1)] {
            let mut parts = parts.clone();
            parts[at] = int(wrong).into();
            assert_eq!(check_stream_listpack(&bytes(&parts)), Err(BROKEN_STREAM_LISTPACK), "part {at}");
        }
        parts.pop();
        assert_eq!(check_stream_listpack(&bytes(&parts)), Err(BROKEN_STREAM_LISTPACK));
        assert_eq!(check_stream_listpack(&list(&[])), Err(BROKEN_STREAM_LISTPACK));
    }
}
