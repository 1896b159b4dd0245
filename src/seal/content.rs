//! The BLAKE3 of a plaintext, computed frame by frame on several threads.
//!
//! BLAKE3 is a tree: a frame, being a power of two of bytes at a multiple of its length, is a subtree. Each thread hashes its frames, and the
//! subtrees' values are joined at the end. The result is the ordinary hash, as `b3sum` prints it.

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

/// The value of one frame, which begins at `offset` of a plaintext that has other frames, too. `frame` must not be empty.
pub(super) fn subtree(frame: &[u8], offset: u64) -> ChainingValue {
    blake3::Hasher::new().set_input_offset(offset).update(frame).finalize_non_root()
}

/// The hash of the whole, `len` bytes in frames of `frame_size`, from the values of its frames, of which there are at least two.
pub(super) fn root(values: &[ChainingValue], len: u64, frame_size: u32) -> [u8; 32] {
    match halves(values, len, frame_size) {
        Some((left, right)) => *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes(),
        None => values.first().copied().unwrap_or_default(),
    }
}

fn halves(values: &[ChainingValue], len: u64, frame_size: u32) -> Option<(ChainingValue, ChainingValue)> {
    if values.len() < 2 {
        return None;
    }
    let left_len = left_subtree_len(len);
    let frames = usize::try_from(left_len / u64::from(frame_size)).ok()?;
    let (left, right) = values.split_at_checked(frames)?;
    Some((node(left, left_len, frame_size), node(right, len.saturating_sub(left_len), frame_size)))
}

fn node(values: &[ChainingValue], len: u64, frame_size: u32) -> ChainingValue {
    match halves(values, len, frame_size) {
        Some((left, right)) => merge_subtrees_non_root(&left, &right, Mode::Hash),
        None => values.first().copied().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::{root, subtree};

    #[test]
    fn is_the_ordinary_hash() {
        let plain: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let frame = 4096;
        for len in [4097, 8192, 8193, 12_288, 65_536, 70_001, 799_999, 800_000] {
            let plain = &plain[..len];
            let values: Vec<_> =
                plain.chunks(frame).enumerate().map(|(n, part)| subtree(part, (n * frame) as u64)).collect();
            assert_eq!(root(&values, len as u64, 4096), *blake3::hash(plain).as_bytes(), "{len} bytes");
        }
    }
}
