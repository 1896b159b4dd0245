//! What came before listpacks: ziplists (`ziplist.c`), zipmaps (`zipmap.c`); and integer sets (`intset.c`).

pub(super) const BROKEN_ZIPLIST: &str = "a ziplist inside is damaged";
pub(super) const BROKEN_ZIPMAP: &str = "a zipmap inside is damaged";
pub(super) const BROKEN_INTSET: &str = "an integer set inside is damaged";

/// Total length, offset of the last entry, number of entries.
const ZIPLIST_HEADER_BYTES: usize = 10;

/// The end of a ziplist and of a zipmap.
const END_BYTE: u8 = 0xff;

/// Checks a ziplist that holds groups of `group` entries, and says how many groups.
pub(super) fn check_ziplist(bytes: &[u8], group: u64) -> Result<u64, &'static str> {
    let found = count_entries(bytes).ok_or(BROKEN_ZIPLIST)?;
    match (found.checked_div(group), found.checked_rem(group)) {
        (Some(groups), Some(0)) => Ok(groups),
        _ => Err(BROKEN_ZIPLIST),
    }
}

fn count_entries(bytes: &[u8]) -> Option<u64> {
    let length = u32::from_le_bytes(*bytes.first_chunk()?);
    let last = usize::try_from(u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?)).ok()?;
    let told = u16::from_le_bytes(*bytes.get(8..)?.first_chunk()?);
    let (&END_BYTE, body) = bytes.get(ZIPLIST_HEADER_BYTES..)?.split_last()? else { return None };
    (usize::try_from(length).ok()? == bytes.len() && last < bytes.len()).then_some(())?;

    let (mut rest, mut previous, mut found) = (body, 0, 0_u64);
    while !rest.is_empty() {
        let len = entry_length(rest, previous)?;
        rest = rest.get(len..)?;
        previous = len;
        found = found.saturating_add(1);
    }
    // The offset leads to the last entry, where there is one.
    let leads = bytes.len().checked_sub(1)?.checked_sub(previous)? == last;
    ((leads || found == 0) && (told == u16::MAX || u64::from(told) == found)).then_some(found)
}

/// The length of the entry that `bytes` begins with, after one of `previous` bytes.
fn entry_length(bytes: &[u8], previous: usize) -> Option<usize> {
    let (told, head): (usize, usize) = match bytes.first()? {
        &END_BYTE => return None,
        &0xfe => (usize::try_from(u32::from_le_bytes(*bytes.get(1..)?.first_chunk()?)).ok()?, 5),
        short => (usize::from(*short), 1),
    };
    (told == previous).then_some(())?;
    let rest = bytes.get(head..)?;
    let first = rest.first()?;
    let (own, content): (usize, usize) = match first {
        0..=0x3f => (1, usize::from(first & 0x3f)),
        0x40..=0x7f => (2, usize::from(first & 0x3f) << 8 | usize::from(*rest.get(1)?)),
        0x80..=0xbf => (5, usize::try_from(u32::from_be_bytes(*rest.get(1..)?.first_chunk()?)).ok()?),
        0xc0 => (1, 2),
        0xd0 => (1, 4),
        0xe0 => (1, 8),
        0xf0 => (1, 3),
        0xfe => (1, 1),
        0xf1..=0xfd => (1, 0),
        _ => return None,
    };
    let len = own.checked_add(content)?.checked_add(head)?;
    (len <= bytes.len()).then_some(len)
}

/// Checks a zipmap and says how many fields it has.
pub(super) fn check_zipmap(bytes: &[u8]) -> Result<u64, &'static str> {
    count_map_fields(bytes).ok_or(BROKEN_ZIPMAP)
}

fn count_map_fields(bytes: &[u8]) -> Option<u64> {
    let (told, rest) = bytes.split_first()?;
    let (&END_BYTE, mut rest) = rest.split_last()? else { return None };
    let mut found = 0_u64;
    while !rest.is_empty() {
        let (field, after) = map_length(rest)?;
        let (value, after) = map_length(after.get(field..)?)?;
        let (free, after) = after.split_first()?;
        rest = after.get(value.checked_add(usize::from(*free))?..)?;
        found = found.saturating_add(1);
    }
    // More than 253 are not counted there; an empty one is never written.
    (found > 0 && (*told == 254 || u64::from(*told) == found)).then_some(found)
}

fn map_length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    match bytes.split_first()? {
        (&END_BYTE, _) => None,
        (254, rest) => {
            let (len, rest) = rest.split_first_chunk()?;
            Some((usize::try_from(u32::from_le_bytes(*len)).ok()?, rest))
        }
        (len, rest) => Some((usize::from(*len), rest)),
    }
}

/// Checks an integer set, whose members ascend, and says how many there are.
pub(super) fn check_intset(bytes: &[u8]) -> Result<u64, &'static str> {
    count_intset_members(bytes).ok_or(BROKEN_INTSET)
}

fn count_intset_members(bytes: &[u8]) -> Option<u64> {
    let (width, rest) = bytes.split_first_chunk()?;
    let (told, rest) = rest.split_first_chunk()?;
    let (width, told) = (u32::from_le_bytes(*width), u32::from_le_bytes(*told));
    let ascending = match width {
        2 => is_ascending(rest.as_chunks(), |raw| i64::from(i16::from_le_bytes(*raw))),
        4 => is_ascending(rest.as_chunks(), |raw| i64::from(i32::from_le_bytes(*raw))),
        8 => is_ascending(rest.as_chunks(), |raw| i64::from_le_bytes(*raw)),
        _ => false,
    };
    let length = u64::from(told).checked_mul(u64::from(width))?;
    (told > 0 && ascending && u64::try_from(rest.len()).ok()? == length).then_some(u64::from(told))
}

fn is_ascending<const N: usize>((members, rest): (&[[u8; N]], &[u8]), value: impl Fn(&[u8; N]) -> i64) -> bool {
    rest.is_empty() && members.is_sorted_by(|a, b| value(a) < value(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&[u8]]) -> Vec<u8> {
        let mut bytes = vec![0; ZIPLIST_HEADER_BYTES];
        let mut last = ZIPLIST_HEADER_BYTES;
        for entry in entries {
            last = bytes.len();
            bytes.extend_from_slice(entry);
        }
        bytes.push(END_BYTE);
        let len = u32::try_from(bytes.len()).unwrap();
        bytes[..4].copy_from_slice(&len.to_le_bytes());
        bytes[4..8].copy_from_slice(&u32::try_from(last).unwrap().to_le_bytes());
        bytes[8..10].copy_from_slice(&u16::try_from(entries.len()).unwrap().to_le_bytes());
        bytes
    }

    #[test]
    fn ziplists() {
        let good = list(&[&[0, 2, b'a', b'b'], &[4, 0xf5], &[2, 0xc0, 1, 2]]);
        assert_eq!(check_ziplist(&good, 1), Ok(3));
        assert_eq!(check_ziplist(&good, 2), Err(BROKEN_ZIPLIST));
        assert_eq!(check_ziplist(&list(&[]), 2), Ok(0));
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x20;
            // The string's content, the integer's, and the small integer that becomes another.
            let content = [12, 13, 18, 19].contains(&at);
            assert_eq!(check_ziplist(&bad, 1).is_ok(), content, "byte {at}");
            assert!(check_ziplist(&good[..at], 1).is_err(), "{at} bytes");
        }
        let long: Vec<u8> = [&[0, 0x80, 0, 0, 1, 44][..], &[b'x'; 300][..]].concat();
        assert_eq!(check_ziplist(&list(&[&long, &[0xfe, 0x32, 1, 0, 0, 0xf1]]), 2), Ok(1));
        assert_eq!(check_ziplist(&list(&[&long, &[0xfe, 0x33, 1, 0, 0, 0xf1]]), 2), Err(BROKEN_ZIPLIST));
    }

    #[test]
    fn zipmaps() {
        let good = [1, 1, b'f', 2, 3, b'v', b'w', 0, 0, 0, END_BYTE];
        assert_eq!(check_zipmap(&good), Ok(1));
        for at in [0, 1, 3, 4, 10] {
            let mut bad = good;
            bad[at] = bad[at].wrapping_add(9);
            assert_eq!(check_zipmap(&bad), Err(BROKEN_ZIPMAP), "byte {at}");
        }
        assert_eq!(check_zipmap(&[0, END_BYTE]), Err(BROKEN_ZIPMAP), "empty");
    }

    #[test]
    fn integer_sets() {
        let good = [2, 0, 0, 0, 3, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0];
        assert_eq!(check_intset(&good), Ok(3));
        for at in [0, 4, 8, 10, 12] {
            let mut bad = good;
            bad[at] = 7;
            assert_eq!(check_intset(&bad).is_ok(), at == 8 || at == 12, "byte {at}");
        }
        assert_eq!(check_intset(&good[..13]), Err(BROKEN_INTSET));
        assert_eq!(check_intset(&[2, 0, 0, 0, 0, 0, 0, 0]), Err(BROKEN_INTSET), "empty");
    }
}
