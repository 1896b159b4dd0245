//! Pages as `wal_compression` writes them: pglz, LZ4 and zstd, told apart by a flag in the record (`RestoreBlockImage`,
//! `xlogreader.c`).

use std::io::Read as _;

/// No page is larger.
const MAX_PAGE_BYTES: usize = 32 << 10;

/// A way to compress.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ImageCompression {
    Pglz,
    Lz4,
    Zstd,
}

/// The bytes of a page, without its hole. `None` for what no server wrote.
pub(super) fn decompress_image(bytes: &[u8], way: ImageCompression) -> Option<Vec<u8>> {
    match way {
        ImageCompression::Pglz => decompress_pglz(bytes),
        ImageCompression::Lz4 => decompress_lz4(bytes),
        ImageCompression::Zstd => {
            let mut page = Vec::new();
            let mut reader = zstd::stream::read::Decoder::new(bytes).ok()?.take(MAX_PAGE_BYTES as u64);
            reader.read_to_end(&mut page).ok()?;
            Some(page)
        }
    }
}

/// `pglz_decompress` (`pg_lzcompress.c`): a byte of flags before each eight items, of which each is a byte or a
/// reference.
fn decompress_pglz(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(8192);
    let mut input = bytes.iter().map(|byte| usize::from(*byte));
    while let Some(mut flags) = input.next() {
        for _ in 0..8 {
            let Some(first) = input.next() else { break };
            if flags & 1 == 0 {
                push_byte(&mut out, u8::try_from(first).ok()?)?;
            } else {
                let distance = (first & 0xF0) << 4 | input.next()?;
                let mut len = (first & 0x0F).saturating_add(3);
                if len == 18 {
                    len = len.saturating_add(input.next()?);
                }
                copy_back(&mut out, distance, len)?;
            }
            flags >>= 1;
        }
    }
    Some(out)
}

/// The LZ4 block format: literals, then a reference, but for the last.
fn decompress_lz4(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(8192);
    let mut input = bytes.iter().map(|byte| usize::from(*byte));
    while let Some(token) = input.next() {
        for _ in 0..read_length(token >> 4, &mut input)? {
            push_byte(&mut out, u8::try_from(input.next()?).ok()?)?;
        }
        let Some(low) = input.next() else { return Some(out) };
        let distance = input.next()? << 8 | low;
        let len = read_length(token & 0x0F, &mut input)?.saturating_add(4);
        copy_back(&mut out, distance, len)?;
    }
    Some(out)
}

/// A length of which 15 says that more of it follows.
fn read_length(first: usize, input: &mut impl Iterator<Item = usize>) -> Option<usize> {
    let mut len = first;
    if first == 15 {
        loop {
            let more = input.next()?;
            len = len.saturating_add(more);
            if more != 255 {
                break;
            }
        }
    }
    (len <= MAX_PAGE_BYTES).then_some(len)
}

fn push_byte(out: &mut Vec<u8>, byte: u8) -> Option<()> {
    (out.len() < MAX_PAGE_BYTES).then(|| out.push(byte))
}

/// Copies `len` bytes from so far back; they may overlap with what they make.
fn copy_back(out: &mut Vec<u8>, distance: usize, len: usize) -> Option<()> {
    let from = out.len().checked_sub(distance).filter(|_| distance > 0)?;
    for at in from..from.saturating_add(len) {
        let byte = *out.get(at)?;
        push_byte(out, byte)?;
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};

    use super::{ImageCompression, MAX_PAGE_BYTES, decompress_image};

    #[test]
    fn each_way_is_undone() {
        // A literal, then what repeats it: eight times the same byte.
        assert_eq!(decompress_image(&[0b10, b'a', 0x04, 1], ImageCompression::Pglz).unwrap(), b"aaaaaaaa");
        assert_eq!(decompress_image(&[0x13, b'a', 1, 0, 0x10, b'b'], ImageCompression::Lz4).unwrap(), b"aaaaaaaab");
        let packed = zstd::encode_all(&b"aaaaaaaa"[..], 1).unwrap();
        assert_eq!(decompress_image(&packed, ImageCompression::Zstd).unwrap(), b"aaaaaaaa");
    }

    #[test]
    fn long_lengths_go_on_in_more_bytes() {
        assert_eq!(decompress_image(&[0b10, b'a', 0x0F, 1, 10], ImageCompression::Pglz).unwrap().len(), 1 + 28);
        assert_eq!(
            decompress_image(&[0x1F, b'a', 1, 0, 255, 1, 0], ImageCompression::Lz4).unwrap().len(),
            1 + 15 + 256 + 4
        );
    }

    #[test]
    fn what_refers_to_before_the_beginning_is_refused() {
        assert_eq!(decompress_image(&[0b10, b'a', 0x04, 2], ImageCompression::Pglz), None);
        assert_eq!(decompress_image(&[0b10, b'a', 0x04, 0], ImageCompression::Pglz), None);
        assert_eq!(decompress_image(&[0x13, b'a', 2, 0], ImageCompression::Lz4), None);
    }

    proptest! {
        #[test]
        fn nothing_grows_beyond_a_page(bytes in any::<Vec<u8>>()) {
            for way in [ImageCompression::Pglz, ImageCompression::Lz4, ImageCompression::Zstd] {
                if let Some(page) = decompress_image(&bytes, way) {
                    prop_assert!(page.len() <= MAX_PAGE_BYTES);
                }
            }
        }

        #[test]
        fn literals_stay_what_they_are(bytes in proptest::collection::vec(any::<u8>(), 1..200)) {
            let packed: Vec<u8> = bytes.chunks(8).flat_map(|part| [&[0][..], part].concat()).collect();
            prop_assert_eq!(decompress_image(&packed, ImageCompression::Pglz), Some(bytes));
        }
    }
}
