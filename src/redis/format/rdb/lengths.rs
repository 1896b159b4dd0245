//! The small pieces that everything in an RDB file is made of: lengths and the heads of strings (`rdbLoadLenByRef`).

/// A number, and how many bytes it took. `None` if more bytes are needed.
pub(super) fn read_length(input: &[u8]) -> Result<Option<(u64, usize)>, &'static str> {
    let Some((first, rest)) = input.split_first() else { return Ok(None) };
    Ok(match first {
        0..0x40 => Some((u64::from(*first), 1)),
        0x40..0x80 => rest.first().map(|low| (u64::from(first & 0x3f) << 8 | u64::from(*low), 2)),
        0x80 => rest.first_chunk().map(|raw| (u64::from(u32::from_be_bytes(*raw)), 5)),
        0x81 => rest.first_chunk().map(|raw| (u64::from_be_bytes(*raw), 9)),
        _ => return Err("a length of an unknown form"),
    })
}

/// What a string begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StringHead {
    /// So many bytes follow.
    Plain(u64),
    /// A number in place of its digits.
    Integer(i64),
    /// So many bytes follow, which decompress to so many.
    Compressed { stored: u64, plain: u64 },
}

/// The head of a string, and how many bytes it took: 19 at most. `None` if more bytes are needed.
pub(super) fn read_string_head(input: &[u8]) -> Result<Option<(StringHead, usize)>, &'static str> {
    let Some((first, rest)) = input.split_first() else { return Ok(None) };
    Ok(match first {
        0xc0 => rest.first_chunk().map(|raw| (StringHead::Integer(i64::from(i8::from_le_bytes(*raw))), 2)),
        0xc1 => rest.first_chunk().map(|raw| (StringHead::Integer(i64::from(i16::from_le_bytes(*raw))), 3)),
        0xc2 => rest.first_chunk().map(|raw| (StringHead::Integer(i64::from(i32::from_le_bytes(*raw))), 5)),
        0xc3 => {
            let Some((stored, used)) = read_length(rest)? else { return Ok(None) };
            let Some((plain, more)) = read_length(rest.get(used..).unwrap_or_default())? else { return Ok(None) };
            Some((StringHead::Compressed { stored, plain }, used.saturating_add(more).saturating_add(1)))
        }
        0xc4.. => return Err("a string of an unknown form"),
        _ => read_length(input)?.map(|(len, used)| (StringHead::Plain(len), used)),
    })
}

/// The name in a module's 64-bit id: nine characters of six bits above ten bits of version (`moduleTypeNameByID`).
pub(super) fn module_name(id: u64) -> String {
    const CHARACTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let character = |at: u32| {
        let six = (id >> (10 + 6 * at)) & 63;
        usize::try_from(six).ok().and_then(|six| CHARACTERS.get(six)).map_or('?', |byte| char::from(*byte))
    };
    (0..9).rev().map(character).collect()
}

pub(super) fn byte_count(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_every_form() {
        let cases: [(&[u8], u64); 5] = [
            (&[0x3f], 63),
            (&[0x40, 0x40], 64),
            (&[0x7f, 0xff], 16_383),
            (&[0x80, 0, 0, 0x40, 0], 16_384),
            (&[0x81, 0, 0, 0, 1, 0, 0, 0, 0], 1 << 32),
        ];
        for (bytes, expected) in cases {
            assert_eq!(read_length(bytes), Ok(Some((expected, bytes.len()))));
            assert_eq!(read_length(&bytes[..bytes.len() - 1]), Ok(None));
        }
        assert!(read_length(&[0x82]).is_err());
        assert!(read_length(&[0xc0]).is_err());
    }

    #[test]
    fn heads_of_every_form() {
        let cases: [(&[u8], StringHead); 5] = [
            (&[0x05], StringHead::Plain(5)),
            (&[0xc0, 0xff], StringHead::Integer(-1)),
            (&[0xc1, 0, 0x80], StringHead::Integer(-32768)),
            (&[0xc2, 0, 0, 0, 0x80], StringHead::Integer(-1 << 31)),
            (&[0xc3, 0x05, 0x40, 0xff], StringHead::Compressed { stored: 5, plain: 255 }),
        ];
        for (bytes, expected) in cases {
            assert_eq!(read_string_head(bytes), Ok(Some((expected, bytes.len()))));
            assert_eq!(read_string_head(&bytes[..bytes.len() - 1]), Ok(None));
        }
        assert!(read_string_head(&[0xc4]).is_err());
    }

    /// The example in `moduleTypeEncodeId`'s neighbourhood: RedisJSON's type.
    #[test]
    fn the_name_of_a_module() {
        let id = "ReJSON-RL".bytes().fold(0_u64, |id, byte| {
            let at =
                b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".iter().position(|c| *c == byte);
            id << 6 | u64::try_from(at.unwrap()).unwrap()
        });
        assert_eq!(module_name(id << 10 | 3), "ReJSON-RL");
    }
}
