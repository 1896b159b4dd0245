//! The CRC-64 that ends an RDB file: polynomial `ad93d23594c935a9` ("Jones"), reflected, from zero and not inverted (`crc64.c`).

/// The polynomial, bits reversed.
const POLYNOMIAL: u64 = 0x95ac_9329_ac4b_c9b5;

/// How many bytes one step takes: sixteen independent look-ups instead of a chain of sixteen. The tables fit the first-level cache.
const STEP: usize = 16;

static TABLES: [[u64; 256]; STEP] = tables();

/// `TABLES[k][b]` is the CRC of byte `b` followed by `k` zero bytes.
#[expect(clippy::indexing_slicing, reason = "runs in the compiler, which checks every index")]
const fn tables() -> [[u64; 256]; STEP] {
    let mut tables = [[0; 256]; STEP];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = byte as u64;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ POLYNOMIAL } else { crc >> 1 };
            bit += 1;
        }
        tables[0][byte] = crc;
        byte += 1;
    }
    let mut zeros = 1;
    while zeros < STEP {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[zeros - 1][byte];
            tables[zeros][byte] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        zeros += 1;
    }
    tables
}

/// The CRC of what `crc` is the CRC of, followed by `bytes`. Begin with 0.
#[must_use]
#[expect(clippy::indexing_slicing, reason = "a byte indexes a table of 256, and the optimiser sees it")]
pub fn update(mut crc: u64, bytes: &[u8]) -> u64 {
    let t = &TABLES;
    let (steps, rest) = bytes.as_chunks::<STEP>();
    for step in steps {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *step;
        let [a, b, c, d, e, f, g, h] = (crc ^ u64::from_le_bytes([a, b, c, d, e, f, g, h])).to_le_bytes();
        let near = t[15][usize::from(a)]
            ^ t[14][usize::from(b)]
            ^ t[13][usize::from(c)]
            ^ t[12][usize::from(d)]
            ^ t[11][usize::from(e)]
            ^ t[10][usize::from(f)]
            ^ t[9][usize::from(g)]
            ^ t[8][usize::from(h)];
        let far = t[7][usize::from(i)]
            ^ t[6][usize::from(j)]
            ^ t[5][usize::from(k)]
            ^ t[4][usize::from(l)]
            ^ t[3][usize::from(m)]
            ^ t[2][usize::from(n)]
            ^ t[1][usize::from(o)]
            ^ t[0][usize::from(p)];
        crc = near ^ far;
    }
    for byte in rest {
        let [low, ..] = crc.to_le_bytes();
        crc = (crc >> 8) ^ t[0][usize::from(low ^ byte)];
    }
    crc
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
                     dolore magna aliqua. Ut enim ad minim veniam, quis nostrud exercitation ullamco laboris nisi ut aliquip \
                     ex ea commodo consequat. Duis aute irure dolor in reprehenderit in voluptate velit esse cillum dolore eu \
                     fugiat nulla pariatur. Excepteur sint occaecat cupidatat non proident, sunt in culpa qui officia \
                     deserunt mollit anim id est laborum.\0";
        assert_eq!(update(0, lorem.as_bytes()), 0xc779_4709_e696_83b3);
    }

    proptest! {
        #[test]
        fn as_bit_by_bit_in_any_pieces(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..200) {
            let at = at.min(bytes.len());
            let (head, tail) = bytes.split_at(at);
            prop_assert_eq!(update(update(0, head), tail), bit_by_bit(0, &bytes));
        }
    }
}
