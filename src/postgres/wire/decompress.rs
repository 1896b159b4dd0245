//! Takes off the compression that a server has put on the archives of a backup.
//!
//! Comes in: the bytes of one archive in pieces of any length. Goes out: plaintext. What a hostile server can make it
//! hold is bounded: a block of LZ4's largest size, or zstd's largest window, 128 MiB.

use bytes::{Buf, Bytes, BytesMut};
use zstd::stream::raw::{Decoder, InBuffer, Operation, OutBuffer};

use super::command::ServerCompression;

/// Bytes that are not what the server said they were.
#[derive(Debug)]
pub(super) struct DecompressError;

/// The decompression of one archive.
#[derive(Debug)]
pub(super) enum StreamDecompressor {
    Lz4(Box<Lz4Decompressor>),
    Zstd(ZstdDecompressor),
}

impl StreamDecompressor {
    pub(super) fn new(compression: ServerCompression) -> StreamDecompressor {
        match compression {
            ServerCompression::Lz4 => StreamDecompressor::Lz4(Box::new(Lz4Decompressor::new())),
            ServerCompression::Zstd(_) => StreamDecompressor::Zstd(ZstdDecompressor::new()),
        }
    }

    /// Takes the next piece, after the one before was polled out.
    pub(super) fn push(&mut self, piece: Bytes) {
        match self {
            StreamDecompressor::Lz4(lz4) => lz4.input.extend_from_slice(&piece),
            StreamDecompressor::Zstd(zstd) => zstd.input = piece,
        }
    }

    /// The next plaintext; `None` if it takes another piece.
    pub(super) fn poll(&mut self) -> Result<Option<Bytes>, DecompressError> {
        match self {
            StreamDecompressor::Lz4(lz4) => lz4.poll(),
            StreamDecompressor::Zstd(zstd) => zstd.poll(),
        }
    }
}

/// How much of zstd is decompressed in one go: what a chunk of a backup holds.
const ZSTD_OUTPUT_BYTES: usize = 128 << 10;

pub(super) struct ZstdDecompressor {
    decoder: Option<Decoder<'static>>,
    input: Bytes,
    /// The last output was full: there may be more without any more input.
    full: bool,
}

impl std::fmt::Debug for ZstdDecompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Zstd").field("input", &self.input.len()).finish_non_exhaustive()
    }
}

impl ZstdDecompressor {
    fn new() -> ZstdDecompressor {
        ZstdDecompressor { decoder: Decoder::new().ok(), input: Bytes::new(), full: false }
    }

    fn poll(&mut self) -> Result<Option<Bytes>, DecompressError> {
        let decoder = self.decoder.as_mut().ok_or(DecompressError)?;
        while !self.input.is_empty() || self.full {
            let mut plain = Vec::with_capacity(ZSTD_OUTPUT_BYTES);
            let mut input = InBuffer::around(&self.input);
            let mut output = OutBuffer::around(&mut plain);
            decoder.run(&mut input, &mut output).map_err(|_damaged| DecompressError)?;
            let read = input.pos();
            self.input.advance(read);
            self.full = plain.len() == plain.capacity();
            if !plain.is_empty() {
                return Ok(Some(plain.into()));
            }
            // Neither output nor input: what is left makes no sense.
            if read == 0 && !self.input.is_empty() {
                return Err(DecompressError);
            }
        }
        Ok(None)
    }
}

/// What an LZ4 frame begins with (`lz4_Frame_format.md` of the LZ4 project, which `basebackup_lz4.c` has write it).
const LZ4_FRAME_MAGIC: u32 = 0x184D_2204;
/// How far back a block may refer.
const LZ4_WINDOW_BYTES: usize = 64 << 10;

/// One LZ4 frame. Its checksums are not looked at: the server writes none, and the connection has its own.
pub(super) struct Lz4Decompressor {
    input: BytesMut,
    at: Lz4State,
    /// The last plaintext, up to [`LZ4_WINDOW_BYTES`] bytes.
    before: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
enum Lz4State {
    Header,
    Block {
        /// The most plaintext in one.
        most: usize,
        /// Bytes after each one, and after the last.
        checksums: [usize; 2],
    },
    /// So many bytes are left of the frame.
    End(usize),
}

impl std::fmt::Debug for Lz4Decompressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lz4").field("at", &self.at).field("input", &self.input.len()).finish_non_exhaustive()
    }
}

impl Lz4Decompressor {
    fn new() -> Lz4Decompressor {
        Lz4Decompressor { input: BytesMut::new(), at: Lz4State::Header, before: Vec::new() }
    }

    fn poll(&mut self) -> Result<Option<Bytes>, DecompressError> {
        loop {
            match self.at {
                Lz4State::Header => {
                    let Some((len, at)) = parse_frame_header(&self.input)? else { return Ok(None) };
                    self.input.advance(len);
                    self.at = at;
                }
                Lz4State::Block { most, checksums: [after_each, after_all] } => {
                    let Some(size) = self.input.first_chunk().map(|size| u32::from_le_bytes(*size)) else {
                        return Ok(None);
                    };
                    if size == 0 {
                        self.input.advance(4);
                        self.at = Lz4State::End(after_all);
                        continue;
                    }
                    let (len, stored) = ((size & !(1 << 31)) as usize, size >> 31 == 1);
                    if len > most {
                        return Err(DecompressError);
                    }
                    let whole = 4_usize.saturating_add(len).saturating_add(after_each);
                    if self.input.len() < whole {
                        return Ok(None);
                    }
                    let block = self.input.split_to(whole);
                    let packed = block.get(4..).and_then(|block| block.get(..len)).ok_or(DecompressError)?;
                    return self.decompress_block(packed, stored, most).map(Some);
                }
                Lz4State::End(left) => {
                    let last = left.min(self.input.len());
                    self.input.advance(last);
                    self.at = Lz4State::End(left.saturating_sub(last));
                    return if self.input.is_empty() { Ok(None) } else { Err(DecompressError) };
                }
            }
        }
    }

    /// The plaintext of a block, which may refer to what came before it.
    fn decompress_block(&mut self, packed: &[u8], stored: bool, most: usize) -> Result<Bytes, DecompressError> {
        let plain = if stored {
            packed.to_vec()
        } else {
            lz4_flex::block::decompress_with_dict(packed, most, &self.before).map_err(|_damaged| DecompressError)?
        };
        let kept = LZ4_WINDOW_BYTES.saturating_sub(plain.len());
        self.before.drain(..self.before.len().saturating_sub(kept));
        self.before.extend_from_slice(plain.get(plain.len().saturating_sub(LZ4_WINDOW_BYTES)..).unwrap_or_default());
        Ok(plain.into())
    }
}

/// The length of a frame's header, and what follows it; `None` if it is not all there.
fn parse_frame_header(bytes: &[u8]) -> Result<Option<(usize, Lz4State)>, DecompressError> {
    let Some((magic, rest)) = bytes.split_first_chunk() else { return Ok(None) };
    let &[flags, sizes, ..] = rest else { return Ok(None) };
    let set = |bit: u8| usize::from(flags >> bit & 1);
    let (version, exponent) = (flags >> 6, sizes >> 4);
    // Whatever takes a dictionary of its own is none of the server's.
    if u32::from_le_bytes(*magic) != LZ4_FRAME_MAGIC || version != 1 || set(0) == 1 || !(4..=7).contains(&exponent) {
        return Err(DecompressError);
    }
    // Magic, flags, sizes, the content's length if it is told, a checksum of one byte.
    let len = 7_usize.saturating_add(set(3).saturating_mul(8));
    let most = 1 << (2 * exponent + 8);
    let checksums = [set(4).saturating_mul(4), set(2).saturating_mul(4)];
    Ok((bytes.len() >= len).then_some((len, Lz4State::Block { most, checksums })))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{LZ4_FRAME_MAGIC, LZ4_WINDOW_BYTES, StreamDecompressor};
    use crate::postgres::wire::command::ServerCompression;

    fn plain() -> Vec<u8> {
        (0..200_000_u32).flat_map(|n| (n / 7).to_le_bytes()).chain(std::iter::repeat_n(0, 3 << 20)).collect()
    }

    /// A frame as `lz4_Frame_format.md` describes it, of blocks that refer to those before.
    fn lz4(plain: &[u8], flags: u8) -> Bytes {
        let (content_size, after_each, after_all) = (flags & 8 != 0, flags & 16 != 0, flags & 4 != 0);
        let mut frame = [&LZ4_FRAME_MAGIC.to_le_bytes()[..], &[0x40 | flags, 5 << 4]].concat();
        if content_size {
            frame.extend((plain.len() as u64).to_le_bytes());
        }
        frame.push(0);
        let mut done = 0;
        // Not one of them as large as it may be, and some smaller than how far back they refer.
        for (n, block) in plain.chunks(100_000).flat_map(|part| part.chunks(70_000)).enumerate() {
            let packed = lz4_flex::block::compress_with_dict(block, &plain[done - LZ4_WINDOW_BYTES.min(done)..done]);
            let (packed, size) = if n % 5 == 0 {
                (block.to_vec(), 1 << 31 | block.len())
            } else {
                let len = packed.len();
                (packed, len)
            };
            frame.extend(u32::try_from(size).unwrap().to_le_bytes());
            frame.extend(packed);
            frame.extend(&[7; 4][..if after_each { 4 } else { 0 }]);
            done += block.len();
        }
        frame.extend([0; 4]);
        frame.extend(&[7; 4][..if after_all { 4 } else { 0 }]);
        frame.into()
    }

    fn inflated(compression: ServerCompression, packed: &Bytes, size: usize) -> Option<Vec<u8>> {
        let (mut inflate, mut out, mut rest) = (StreamDecompressor::new(compression), Vec::new(), packed.clone());
        while !rest.is_empty() {
            inflate.push(rest.split_to(size.min(rest.len())));
            while let Some(bytes) = inflate.poll().ok()? {
                out.extend_from_slice(&bytes);
            }
        }
        Some(out)
    }

    #[test]
    fn any_split_inflates_to_the_same() {
        let plain = plain();
        let zstd = Bytes::from(zstd::encode_all(&plain[..], -5).unwrap());
        let frames = [0, 8, 16, 4, 28].map(|flags| (ServerCompression::Lz4, lz4(&plain, flags)));
        for (compression, packed) in frames.into_iter().chain([(ServerCompression::Zstd(-5), zstd)]) {
            for size in [1, 7, 1000, 32 << 10, packed.len()] {
                assert!(inflated(compression, &packed, size).unwrap() == plain, "{compression:?} in pieces of {size}");
            }
        }
    }

    #[test]
    fn what_is_something_else_is_refused() {
        for compression in [ServerCompression::Lz4, ServerCompression::Zstd(-5)] {
            let text = Bytes::from_static(b"this is not compressed");
            assert!(inflated(compression, &text, 5).is_none(), "{compression:?}");
        }
        let good = lz4(&plain(), 0);
        for (at, byte) in [(4, 0), (4, 0x41), (5, 0x30), (5, 0xF0), (10, 0xFF)] {
            let mut bad = good.to_vec();
            bad[at] = byte;
            assert!(inflated(ServerCompression::Lz4, &bad.into(), 1000).is_none(), "{byte:x} at {at}");
        }
        let longer = [&good[..], b"more"].concat();
        assert!(inflated(ServerCompression::Lz4, &longer.into(), 1000).is_none());
    }

    proptest::proptest! {
        #[test]
        fn a_damaged_frame_never_panics(at in proptest::prelude::any::<proptest::sample::Index>(), bit in 0_u8..8) {
            let mut frame = lz4(&plain()[..300_000], 28).to_vec();
            let at = at.index(frame.len());
            frame[at] ^= 1 << bit;
            drop(inflated(ServerCompression::Lz4, &frame.into(), 10_000));
        }
    }
}
