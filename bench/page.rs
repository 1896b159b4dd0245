//! Page checksums, beside reading the same bytes once: how far from memory speed the 32 lanes of multiplications are.

use divan::Bencher;
use divan::counter::BytesCount;
use walkeep::postgres::format::page;

/// 16 MiB of pages, more than any second-level cache.
const PAGES: usize = 2048;

fn pages() -> Vec<u8> {
    (0..PAGES * page::DEFAULT_BLOCK_SIZE).map(|i| (i.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect()
}

/// What every page of a backup goes through on clusters with data checksums.
#[divan::bench]
fn checksum(bencher: Bencher<'_, '_>) {
    let pages = pages();
    bencher.counter(BytesCount::new(pages.len())).bench(|| {
        (0..)
            .zip(pages.chunks_exact(page::DEFAULT_BLOCK_SIZE))
            .filter(|(block, page)| page::verify_checksum(page, *block))
            .count()
    });
}

/// The roof: reading every byte once.
#[divan::bench]
fn read_once(bencher: Bencher<'_, '_>) {
    let pages = pages();
    bencher
        .counter(BytesCount::new(pages.len()))
        .bench(|| pages.chunks_exact(page::DEFAULT_BLOCK_SIZE).filter(|page| page::is_zero(page)).count());
}
