//! The BLAKE3 of something long, computed piece by piece, in any order and on several threads.
//!
//! BLAKE3 is a tree: a piece of a power of two of bytes, at a multiple of its length, is a subtree of it. Each piece is
//! hashed by itself ([`subtree_hash`]), and the values are joined at the end ([`root_hash`]). The result is the
//! ordinary hash, as `b3sum` prints it.

use blake3::hazmat::{ChainingValue, HasherExt, Mode, left_subtree_len, merge_subtrees_non_root, merge_subtrees_root};

/// The value of one piece, given in parts, that begins at `offset` of a whole that has other pieces, too. It must not
/// be empty, and `offset` must be a multiple of the size of pieces.
#[must_use]
pub fn subtree_hash(parts: &[&[u8]], offset: u64) -> ChainingValue {
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset);
    parts.iter().for_each(|part| {
        hasher.update(part);
    });
    hasher.finalize_non_root()
}

/// The hash of the whole, `len` bytes in pieces of `frame_size`, a power of two from 1 KiB, from the values of its
/// pieces. Of a single piece it is the value itself, which then must be its ordinary hash.
#[must_use]
pub fn root_hash(values: &[ChainingValue], len: u64, frame_size: u32) -> [u8; 32] {
    match half_values(values, len, frame_size) {
        Some((left, right)) => *merge_subtrees_root(&left, &right, Mode::Hash).as_bytes(),
        None => values.first().copied().unwrap_or_default(),
    }
}

fn half_values(values: &[ChainingValue], len: u64, frame_size: u32) -> Option<(ChainingValue, ChainingValue)> {
    if values.len() < 2 {
        return None;
    }
    let left_len = left_subtree_len(len);
    let frames = usize::try_from(left_len / u64::from(frame_size)).ok()?;
    let (left, right) = values.split_at_checked(frames)?;
    Some((subtree_value(left, left_len, frame_size), subtree_value(right, len.saturating_sub(left_len), frame_size)))
}

fn subtree_value(values: &[ChainingValue], len: u64, frame_size: u32) -> ChainingValue {
    match half_values(values, len, frame_size) {
        Some((left, right)) => merge_subtrees_non_root(&left, &right, Mode::Hash),
        None => values.first().copied().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::{root_hash, subtree_hash};

    #[test]
    fn is_the_ordinary_hash() {
        let plain: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let frame = 4096;
        for len in [4097, 8192, 8193, 12_288, 65_536, 70_001, 799_999, 800_000] {
            let plain = &plain[..len];
            let values: Vec<_> =
                plain.chunks(frame).enumerate().map(|(n, part)| subtree_hash(&[part], (n * frame) as u64)).collect();
            assert_eq!(root_hash(&values, len as u64, 4096), *blake3::hash(plain).as_bytes(), "{len} bytes");
        }
    }
}
