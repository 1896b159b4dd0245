//! Little-endian fields and varints out of a slice, each read checked against the slice's end.

/// What is left to read. Every method answers `None` when there are too few bytes, and then the reader is of no further
/// use.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByteReader<'a>(&'a [u8]);

impl<'a> ByteReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> ByteReader<'a> {
        ByteReader(bytes)
    }

    pub(super) fn rest(&self) -> &'a [u8] {
        self.0
    }

    pub(super) fn take_bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(super) fn i64(&mut self) -> Option<i64> {
        self.array().map(i64::from_le_bytes)
    }

    /// A count of items of `item` bytes each that follow, which a count from outside may overstate.
    pub(super) fn take_items(&mut self, item: usize) -> Option<(usize, &'a [u8])> {
        let count = usize::try_from(self.u32()?).ok()?;
        Some((count, self.take_bytes(count.checked_mul(item)?)?))
    }

    /// Seven bits a byte, lowest first, the eighth set on all but the last; at most ten bytes.
    pub(super) fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A varint of a signed number, small ones of either sign in few bytes.
    pub(super) fn signed(&mut self) -> Option<i64> {
        let raw = self.varint()?;
        Some((raw >> 1).cast_signed() ^ -(raw & 1).cast_signed())
    }
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.push((value & 0x7F) as u8);
}

pub(super) fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, (value << 1 ^ value >> 63).cast_unsigned());
}

#[cfg(test)]
mod tests {
    use super::{ByteReader, put_signed, put_varint};

    #[test]
    fn varints_round_trip_at_their_edges() {
        let mut out = Vec::new();
        let unsigned = [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX - 1, u64::MAX];
        let signed = [0, 1, -1, 63, -64, 64, i64::MAX, i64::MIN];
        unsigned.iter().for_each(|&value| put_varint(&mut out, value));
        signed.iter().for_each(|&value| put_signed(&mut out, value));
        let mut reader = ByteReader::new(&out);
        for value in unsigned {
            assert_eq!(reader.varint(), Some(value));
        }
        for value in signed {
            assert_eq!(reader.signed(), Some(value));
        }
        assert!(reader.rest().is_empty());
    }

    #[test]
    fn a_varint_that_does_not_fit_or_end_is_refused() {
        assert_eq!(ByteReader::new(&[0xFF; 11]).varint(), None);
        assert_eq!(ByteReader::new(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x02]).varint(), None);
        assert_eq!(ByteReader::new(&[0x80]).varint(), None);
    }

    #[test]
    fn a_count_is_held_against_what_is_there() {
        assert_eq!(ByteReader::new(&[2, 0, 0, 0, 1, 2, 3, 4]).take_items(2), Some((2, &[1, 2, 3, 4][..])));
        assert_eq!(ByteReader::new(&[3, 0, 0, 0, 1, 2, 3, 4]).take_items(2), None);
        assert_eq!(ByteReader::new(&[0xFF, 0xFF, 0xFF, 0xFF]).take_items(usize::MAX), None);
    }
}
