//! Data pages: header and checksum (`bufpage.h`, `checksum_impl.h`).
//!
//! Functions on a page as it lies in a relation file, of any block size PostgreSQL can be built with. Little-endian, as
//! every machine we know of that runs PostgreSQL in earnest.

use super::lsn::Lsn;

/// The block size of every stock build (`BLCKSZ`).
pub const DEFAULT_BLOCK_SIZE: usize = 8192;

/// The bytes of a page's fixed header (`SizeOfPageHeaderData`).
pub const PAGE_HEADER_BYTES: usize = 24;

/// Checksums computed side by side, so that a processor can work on several at once (`N_SUMS`).
const CHECKSUM_LANES: usize = 32;

/// The multiplier of the Fowler-Noll-Vo hash (`FNV_PRIME`).
const FNV_PRIME: u32 = 16_777_619;

/// Where each lane starts (`checksumBaseOffsets`).
const CHECKSUM_BASE_OFFSETS: [u32; CHECKSUM_LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// One row of words, one for each lane.
const CHECKSUM_ROW_BYTES: usize = CHECKSUM_LANES * 4;

/// Whether the server has never put anything on the page (`PageIsNew`: no upper offset). Such a page has no checksum.
#[must_use]
pub fn is_new(page: &[u8]) -> bool {
    u16_at(page, 14) == Some(0)
}

/// Whether every byte is zero. A new page that is not all zero is damaged (`PageIsVerified`).
#[must_use]
pub fn is_zero(page: &[u8]) -> bool {
    page.iter().fold(0, |seen, byte| seen | byte) == 0
}

/// The position of the last WAL record that changed the page (`pd_lsn`). `None` if this is shorter than a page header.
#[must_use]
pub fn lsn(page: &[u8]) -> Option<Lsn> {
    let (high, low) = (u32_at(page, 0)?, u32_at(page, 4)?);
    Some(Lsn::new(u64::from(high) << 32 | u64::from(low)))
}

/// The checksum the page carries (`pd_checksum`). `None` if this is shorter than a page header.
#[must_use]
fn stored_checksum(page: &[u8]) -> Option<u16> {
    u16_at(page, 8)
}

/// The checksum the page should carry as block `block` of its relation (`pg_checksum_page`). `None` if this is no whole
/// page: the block size is a power of two from 1 to 32 KiB.
///
/// `block` counts from the relation's beginning, not from the file's: file `16384.1` starts at block 131072.
#[must_use]
pub fn checksum(page: &[u8], block: u32) -> Option<u16> {
    if !page.len().is_power_of_two() || !(1 << 10..=1 << 15).contains(&page.len()) {
        return None;
    }
    let (first, rest) = page.split_first_chunk::<CHECKSUM_ROW_BYTES>()?;
    let mut first = *first;
    // The field itself counts as zero.
    first.get_mut(8..10)?.fill(0);
    let mut sums = CHECKSUM_BASE_OFFSETS;
    mix_lanes(&mut sums, &first);
    for row in rest.as_chunks::<CHECKSUM_ROW_BYTES>().0 {
        mix_lanes(&mut sums, row);
    }
    // Two rounds of zeros mix the last words well.
    mix_lanes(&mut sums, &[0; CHECKSUM_ROW_BYTES]);
    mix_lanes(&mut sums, &[0; CHECKSUM_ROW_BYTES]);
    let folded = sums.iter().fold(block, |all, sum| all ^ sum);
    // Zero is kept for pages without a checksum.
    u16::try_from(folded % 65_535 + 1).ok()
}

/// Whether the page carries its right checksum as block `block`, or is all zero and needs none. False for anything that
/// is no whole page.
///
/// Only for clusters with data checksums: without, the field is zero on every page.
#[must_use]
pub fn verify_checksum(page: &[u8], block: u32) -> bool {
    if is_new(page) && is_zero(page) {
        return checksum(page, block).is_some();
    }
    checksum(page, block).is_some_and(|sum| Some(sum) == stored_checksum(page))
}

/// One step of every lane (`CHECKSUM_COMP`): xor, multiply, and fold the high bits down.
#[inline(always)]
fn mix_lanes(sums: &mut [u32; CHECKSUM_LANES], row: &[u8; CHECKSUM_ROW_BYTES]) {
    for (sum, word) in sums.iter_mut().zip(row.as_chunks::<4>().0) {
        let mixed = *sum ^ u32::from_le_bytes(*word);
        *sum = mixed.wrapping_mul(FNV_PRIME) ^ (mixed >> 17);
    }
}

fn u16_at(page: &[u8], offset: usize) -> Option<u16> {
    page.get(offset..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(page: &[u8], offset: usize) -> Option<u32> {
    page.get(offset..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

/// The body of a fuzz target: any bytes as a page.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let known = data.len().is_power_of_two() && (1 << 10..=1 << 15).contains(&data.len());
    assert_eq!(checksum(data, 7).is_some(), known);
    assert!(!verify_checksum(data, 7) || known);
    assert_eq!(lsn(data).is_some(), data.len() >= 8);
    if let Some(sum) = checksum(data, 7) {
        let mut stamped = data.to_vec();
        if let Some(field) = stamped.get_mut(8..10) {
            field.copy_from_slice(&sum.to_le_bytes());
        }
        assert!(verify_checksum(&stamped, 7));
    }
}

#[cfg(test)]
mod tests {
    use super::{DEFAULT_BLOCK_SIZE, checksum, fuzz, is_new, is_zero, lsn, stored_checksum, verify_checksum};
    use proptest::prelude::*;

    const RELATION: &[u8; 2 * DEFAULT_BLOCK_SIZE] = include_bytes!("../../../tests/fixtures/page/relation");

    #[test]
    fn pages_a_server_wrote_carry_the_checksum_we_compute() {
        for (block, page) in (0..).zip(RELATION.chunks(DEFAULT_BLOCK_SIZE)) {
            assert_eq!(checksum(page, block), stored_checksum(page), "block {block}");
            assert!(verify_checksum(page, block) && !is_new(page));
            assert!(!verify_checksum(page, block + 1), "a page in another block's place is wrong");
            assert!((0x0100_0000..0x0200_0000).contains(&lsn(page).unwrap().get()));
        }
    }

    #[test]
    fn a_flipped_bit_is_found_wherever_it_is() {
        for at in (0..DEFAULT_BLOCK_SIZE).step_by(7) {
            let mut page = RELATION[..DEFAULT_BLOCK_SIZE].to_vec();
            page[at] ^= 1 << (at % 8);
            assert!(!verify_checksum(&page, 0), "byte {at}");
        }
    }

    #[test]
    fn an_all_zero_page_is_good_and_a_new_one_with_something_on_it_is_not() {
        let mut page = vec![0; DEFAULT_BLOCK_SIZE];
        assert!(is_new(&page) && is_zero(&page) && verify_checksum(&page, 3));
        page[4000] = 1;
        assert!(is_new(&page) && !verify_checksum(&page, 3));
        assert!(!verify_checksum(&[0; 100], 0) && !verify_checksum(&[], 0));
    }

    /// The algorithm once more, word by word and as `checksum_impl.h` describes it.
    fn plain(page: &[u8], block: u32) -> u16 {
        let mut page = page.to_vec();
        page[8..10].fill(0);
        let mut sums = super::CHECKSUM_BASE_OFFSETS;
        let words = page.chunks(4).map(|word| u32::from_le_bytes(word.try_into().unwrap())).chain([0; 64]);
        for (number, word) in words.enumerate() {
            let sum = &mut sums[number % 32];
            let mixed = *sum ^ word;
            *sum = mixed.wrapping_mul(super::FNV_PRIME) ^ (mixed >> 17);
        }
        let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block;
        u16::try_from(folded % 65535 + 1).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_block_size_and_number_agrees_with_the_plain_algorithm(size in 10..=15u32, block: u32, seed: u64) {
            let mut state = seed;
            let page: Vec<u8> = (0..1usize << size).map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                state.to_be_bytes()[0]
            }).collect();
            prop_assert_eq!(checksum(&page, block), Some(plain(&page, block)));
            fuzz(&page);
        }

        #[test]
        fn any_bytes_are_a_page_or_none(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            fuzz(&data);
        }
    }
}
