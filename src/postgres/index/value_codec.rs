//! The few encodings that the index's values are made of: LEB128 numbers, zigzag for signed ones, byte strings with
//! their length.
//!
//! Reading never panics and never allocates more than the value is long.

/// A value under construction.
#[derive(Debug, Default)]
pub(super) struct ValueWriter(Vec<u8>);

impl ValueWriter {
    pub(super) fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    pub(super) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(u8::try_from(number & 0x7F).unwrap_or(0) | 0x80);
            number >>= 7;
        }
        self.0.push(u8::try_from(number).unwrap_or(0));
    }

    pub(super) fn signed(&mut self, number: i64) {
        self.number((number.cast_unsigned() << 1) ^ (number >> 63).cast_unsigned());
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.raw(bytes);
    }

    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// A value being read; every method answers `None` where the bytes end early or make no sense.
#[derive(Debug)]
pub(super) struct ValueReader<'a>(&'a [u8]);

impl<'a> ValueReader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> ValueReader<'a> {
        ValueReader(bytes)
    }

    pub(super) fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub(super) fn number(&mut self) -> Option<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7F);
            if shift == 63 && part > 1 {
                return None;
            }
            number |= part << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    pub(super) fn signed(&mut self) -> Option<i64> {
        let number = self.number()?;
        Some((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    pub(super) fn raw(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        self.raw(len)
    }

    /// Whether everything was read.
    pub(super) fn is_finished(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::{ValueReader, ValueWriter};
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    proptest! {
        #[test]
        fn what_is_written_is_read(a in any::<u64>(), b in any::<i64>(), d in any::<Vec<u8>>()) {
            let mut writer = ValueWriter::default();
            writer.number(a);
            writer.signed(b);
            writer.bytes(&d);
            let bytes = writer.finish();
            let mut reader = ValueReader::new(&bytes);
            prop_assert_eq!(reader.number(), Some(a));
            prop_assert_eq!(reader.signed(), Some(b));
            prop_assert_eq!(reader.bytes(), Some(d.as_slice()));
            prop_assert!(reader.is_finished());
        }
    }

    #[test]
    fn numbers_past_64_bits_are_refused() {
        let mut eleven = [0xFF; 11];
        assert_eq!(ValueReader::new(&eleven).number(), None);
        eleven[9] = 0x02;
        assert_eq!(ValueReader::new(&eleven).number(), None);
        eleven[9] = 0x01;
        assert_eq!(ValueReader::new(&eleven).number(), Some(u64::MAX));
    }
}
