//! The CRC-64 that ends an RDB file: polynomial `ad93d23594c935a9` ("Jones"), reflected, from zero and not inverted
//! (`crc64.c`).

use crc_fast::{CrcAlgorithm, Digest};

/// The CRC of what `crc` is the CRC of, followed by `bytes`. Begin with 0.
#[must_use]
pub fn update(crc: u64, bytes: &[u8]) -> u64 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc64Redis, crc);
    digest.update(bytes);
    digest.finalize()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The polynomial, bits reversed.
    const POLYNOMIAL: u64 = 0x95ac_9329_ac4b_c9b5;

    fn bit_by_bit(mut crc: u64, bytes: &[u8]) -> u64 {
        for byte in bytes {
            crc ^= u64::from(*byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            }
        }
        crc
    }

    /// The check values in `crc64.c`.
    #[test]
    fn check_values() {
        assert_eq!(update(0, b"123456789"), 0xe9c6_d914_c4b8_d9ca);
        let lorem = "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt ut labore et \
                     dolore magna aliqua. Ut enim ad minim veniam, quis nostrud exercitation ullamco laboris nisi ut \
                     aliquip \
                     ex ea commodo consequat. Duis aute irure dolor in reprehenderit in voluptate velit esse cillum \
                     dolore eu \
                     fugiat nulla pariatur. Excepteur sint occaecat cupidatat non proident, sunt in culpa qui officia \
                     deserunt mollit anim id est laborum.\0";
        assert_eq!(update(0, lorem.as_bytes()), 0xc779_4709_e696_83b3);
    }

    proptest! {
        #[test]
        fn as_bit_by_bit_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..2000), at in 0_usize..2000) {
            let at = at.min(bytes.len());
            let (head, tail) = bytes.split_at(at);
            prop_assert_eq!(update(update(0, head), tail), bit_by_bit(0, &bytes));
        }
    }
}
