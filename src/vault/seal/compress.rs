//! Compression of one frame, and the choice of a zstd level.
//!
//! Comes in: a frame's plaintext. Goes out: fewer bytes, or the advice to store it as it is. The level follows the
//! queue: who falls behind compresses faster, who has time compresses better ([`AdaptiveLevel`]). zstd's contexts are
//! kept per thread.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::str::FromStr;

use zstd::bulk::{Compressor, Decompressor};

/// The level of [`CompressionLevel::Auto`] where no controller runs. On steady WAL level 1 reaches the ratio of level 3
/// and is 1.7 times as fast.
const DEFAULT_ZSTD_LEVEL: i32 = 1;

/// A frame is stored as it is unless compression takes off at least one part in this many: decompressing costs time,
/// too.
const MIN_SAVING_FRACTION: usize = 16;

/// So much from the middle of a frame is tried first where the frame before it was not worth it: noise comes in
/// gigabytes (what is compressed or encrypted already), and trying costs more than all else that is done with it.
const SAMPLE_BYTES: usize = 64 << 10;

/// How hard to compress.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum CompressionLevel {
    /// As the load allows: [`AdaptiveLevel`] where work is queued, else zstd's level 1.
    #[default]
    Auto,
    /// Always this zstd level, from [`CompressionLevel::FASTEST_ZSTD_LEVEL`] to [`CompressionLevel::BEST_ZSTD_LEVEL`].
    Fixed(i32),
}

impl CompressionLevel {
    /// The fastest level that may be configured.
    pub const FASTEST_ZSTD_LEVEL: i32 = -7;
    /// The best level that may be configured; zstd's levels beyond it need far more memory.
    pub const BEST_ZSTD_LEVEL: i32 = 19;

    /// The level as zstd counts it.
    #[must_use]
    const fn zstd_level(self) -> i32 {
        match self {
            CompressionLevel::Auto => DEFAULT_ZSTD_LEVEL,
            CompressionLevel::Fixed(level) => level,
        }
    }
}

impl fmt::Display for CompressionLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CompressionLevel::Auto => f.write_str("auto"),
            CompressionLevel::Fixed(level) => fmt::Display::fmt(level, f),
        }
    }
}

/// What was given is no compression level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a compression level; it is \"auto\" or a zstd level from -7 to 19")]
pub struct ParseCompressionLevelError(String);

impl FromStr for CompressionLevel {
    type Err = ParseCompressionLevelError;

    fn from_str(text: &str) -> Result<CompressionLevel, ParseCompressionLevelError> {
        if text == "auto" {
            return Ok(CompressionLevel::Auto);
        }
        match text.parse::<i32>() {
            Ok(level)
                if level != 0
                    && (CompressionLevel::FASTEST_ZSTD_LEVEL..=CompressionLevel::BEST_ZSTD_LEVEL).contains(&level) =>
            {
                Ok(CompressionLevel::Fixed(level))
            }
            _ => Err(ParseCompressionLevelError(text.to_owned())),
        }
    }
}

/// Picks a level from how full the queue before compression is: a full queue means that whoever feeds it waits for us.
///
/// Pure: the same observations give the same levels. Falling behind is answered at once, a step a time; being idle only
/// after it has lasted, so that a short pause in a busy stream changes nothing.
#[derive(Debug, Clone)]
pub struct AdaptiveLevel {
    step: usize,
    idle: u32,
}

/// From fast to good. Negative levels leave out the entropy stage by degrees. Beyond 3 the gain on WAL is small, and
/// the processor is usually the database's.
const ADAPTIVE_LEVELS: [i32; 5] = [-5, -3, -1, 1, 3];
/// Where a new controller starts: level 1.
const START_STEP: usize = 3;
/// So many observations of a nearly empty queue in a row before it compresses better.
const IDLE_OBSERVATIONS: u32 = 8;

impl Default for AdaptiveLevel {
    fn default() -> AdaptiveLevel {
        AdaptiveLevel::new()
    }
}

impl AdaptiveLevel {
    /// A controller that has seen nothing yet: zstd's level 1.
    #[must_use]
    pub const fn new() -> AdaptiveLevel {
        AdaptiveLevel { step: START_STEP, idle: 0 }
    }

    /// Takes note that `queued` of at most `capacity` items wait to be compressed; asked once an item.
    pub fn observe(&mut self, queued: usize, capacity: usize) {
        let (queued, capacity) = (queued.saturating_mul(8), capacity.max(1));
        if queued >= capacity.saturating_mul(6) {
            self.step = self.step.saturating_sub(1);
            self.idle = 0;
        } else if queued <= capacity {
            self.idle = self.idle.saturating_add(1);
            if self.idle >= IDLE_OBSERVATIONS {
                self.step = ADAPTIVE_LEVELS.len().saturating_sub(1).min(self.step.saturating_add(1));
                self.idle = 0;
            }
        } else {
            self.idle = 0;
        }
    }

    /// The level for the next item.
    #[must_use]
    pub fn level(&self) -> CompressionLevel {
        CompressionLevel::Fixed(ADAPTIVE_LEVELS.get(self.step).copied().unwrap_or(DEFAULT_ZSTD_LEVEL))
    }
}

/// A compressor and the level it was last set to.
type CachedCompressor = Option<(i32, Compressor<'static>)>;

/// zstd's contexts and a buffer, one set a thread: making them anew for each frame costs as much as compressing a small
/// one.
#[derive(Default)]
struct ZstdScratch {
    compressor: CachedCompressor,
    /// Whether this thread's last frame was stored as it is.
    noise: bool,
    decompressor: Option<Decompressor<'static>>,
    buffer: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<ZstdScratch> = RefCell::new(ZstdScratch::default());
}

/// Compresses `plain` and hands the result to `then`: `Some` bytes, or `None` where compression does not pay and
/// `plain` is to be stored.
pub(super) fn with_compressed<R>(
    plain: &[u8],
    level: CompressionLevel,
    then: impl FnOnce(Option<&[u8]>) -> R,
) -> io::Result<R> {
    SCRATCH.with_borrow_mut(|scratch| {
        let compressor = compressor_at_level(&mut scratch.compressor, level.zstd_level())?;
        scratch.buffer.clear();
        scratch.buffer.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        let mut pays = |plain: &[u8]| {
            scratch.buffer.clear();
            let len = compressor.compress_to_buffer(plain, &mut scratch.buffer)?;
            Ok::<_, io::Error>(len < plain.len().saturating_sub(plain.len() / MIN_SAVING_FRACTION))
        };
        let middle = plain.len().saturating_sub(SAMPLE_BYTES) / 2;
        let sample = plain.get(middle..middle.saturating_add(SAMPLE_BYTES)).filter(|_| plain.len() >= 4 * SAMPLE_BYTES);
        let hopeless = match sample.filter(|_| scratch.noise) {
            Some(sample) => !pays(sample)?,
            None => false,
        };
        let pays = !hopeless && pays(plain)?;
        scratch.noise = !pays;
        Ok(then(pays.then_some(scratch.buffer.as_slice())))
    })
}

fn compressor_at_level(slot: &mut CachedCompressor, level: i32) -> io::Result<&mut Compressor<'static>> {
    let fresh = match slot.take() {
        Some((used, kept)) if used == level => (used, kept),
        Some((_, mut kept)) => {
            kept.set_compression_level(level)?;
            (level, kept)
        }
        None => (level, Compressor::new(level)?),
    };
    Ok(&mut slot.insert(fresh).1)
}

/// Lets `fill` write `len` compressed bytes into a buffer of this thread, then decompresses them into `plain`.
///
/// `Ok(false)` if they are not what compresses to exactly `plain.len()` bytes. Never writes, or allocates, beyond
/// `plain` and `len`.
pub(super) fn decompress_from<E>(
    len: usize,
    plain: &mut [u8],
    fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
) -> Result<bool, E> {
    SCRATCH.with_borrow_mut(|scratch| {
        let ZstdScratch { decompressor, buffer, .. } = scratch;
        if buffer.len() < len {
            buffer.resize(len, 0);
        }
        let Some(stored) = buffer.get_mut(..len) else { return Ok(false) };
        fill(stored)?;
        if decompressor.is_none() {
            *decompressor = Decompressor::new().ok();
        }
        let Some(decompressor) = decompressor else { return Ok(false) };
        Ok(decompressor.decompress_to_buffer(stored, plain).is_ok_and(|written| written == plain.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::{AdaptiveLevel, CompressionLevel, decompress_from, with_compressed};

    #[test]
    fn levels_are_read_as_written() {
        for (text, level) in [
            ("auto", CompressionLevel::Auto),
            ("-7", CompressionLevel::Fixed(-7)),
            ("1", CompressionLevel::Fixed(1)),
            ("19", CompressionLevel::Fixed(19)),
        ] {
            assert_eq!(text.parse::<CompressionLevel>().unwrap(), level);
            assert_eq!(level.to_string(), text);
        }
        for wrong in ["", "0", "-8", "20", "fast", "1.5", "AUTO"] {
            assert!(wrong.parse::<CompressionLevel>().is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn noise_is_stored_as_it_is() {
        let noise: Vec<u8> = blake3::Hasher::new().finalize_xof().take_bytes(100_000);
        assert!(with_compressed(&noise, CompressionLevel::Auto, |smaller| smaller.is_none()).unwrap());
        assert!(
            with_compressed(&[7; 100_000], CompressionLevel::Auto, |smaller| smaller.is_some_and(|s| s.len() < 100))
                .unwrap()
        );
    }

    #[test]
    fn after_noise_a_frame_is_compressed_all_the_same_if_that_pays() {
        let noise: Vec<u8> = blake3::Hasher::new().finalize_xof().take_bytes(1 << 20);
        let stored =
            |plain: &[u8]| with_compressed(plain, CompressionLevel::Auto, |smaller| smaller.map(<[u8]>::len)).unwrap();
        let text: Vec<u8> = (0..1 << 18_u32).flat_map(|n: u32| (n % 977).to_le_bytes()).collect();
        let alone = stored(&text);
        assert!(alone.is_some_and(|len| len < 1 << 19));
        for _ in 0..2 {
            assert_eq!((stored(&noise), stored(&noise), stored(&text), stored(&text)), (None, None, alone, alone));
        }
        // Only what is in the middle tells, and only after noise.
        let mut mixed = text.clone();
        mixed[..1 << 18].copy_from_slice(&noise[..1 << 18]);
        assert_eq!(stored(&noise), None);
        assert!(stored(&mixed).is_some());
    }

    #[test]
    fn a_level_of_its_own_does_not_stick_to_the_thread() {
        let text: Vec<u8> = (0..200_000_u32).flat_map(|n| (n % 977).to_le_bytes()).collect();
        let at = |level| with_compressed(&text, CompressionLevel::Fixed(level), |s| s.unwrap().to_vec()).unwrap();
        let (fast, best, again) = (at(-5), at(12), at(-5));
        assert!(best.len() < fast.len());
        assert_eq!(fast, again);
    }

    #[test]
    fn what_decompresses_to_another_length_is_refused() {
        let stored = with_compressed(&[7; 1000], CompressionLevel::Auto, |s| s.unwrap().to_vec()).unwrap();
        let try_len = |plain_len: usize| {
            let mut plain = vec![0; plain_len];
            let fill = |buffer: &mut [u8]| {
                buffer.copy_from_slice(&stored);
                Ok::<(), ()>(())
            };
            decompress_from(stored.len(), &mut plain, fill).unwrap()
        };
        assert!(try_len(1000));
        assert!(!try_len(999));
        assert!(!try_len(1001));
    }

    #[test]
    fn behind_means_faster_and_idle_means_better() {
        let mut adaptive = AdaptiveLevel::new();
        assert_eq!(adaptive.level(), CompressionLevel::Fixed(1));
        for _ in 0..3 {
            adaptive.observe(8, 8);
        }
        assert_eq!(adaptive.level(), CompressionLevel::Fixed(-5));
        adaptive.observe(8, 8);
        assert_eq!(adaptive.level(), CompressionLevel::Fixed(-5), "there is nothing faster");
        for _ in 0..7 {
            adaptive.observe(0, 8);
        }
        assert_eq!(adaptive.level(), CompressionLevel::Fixed(-5), "a pause is not yet idleness");
        adaptive.observe(0, 8);
        assert_eq!(adaptive.level(), CompressionLevel::Fixed(-3));
        for _ in 0..100 {
            adaptive.observe(4, 8);
        }
        assert_eq!(adaptive.level(), CompressionLevel::Fixed(-3), "half full is just right");
        for _ in 0..100 {
            adaptive.observe(0, 8);
        }
        assert_eq!(adaptive.level(), CompressionLevel::Fixed(3));
    }

    trait TakeBytes {
        fn take_bytes(self, len: usize) -> Vec<u8>;
    }

    impl TakeBytes for blake3::OutputReader {
        fn take_bytes(mut self, len: usize) -> Vec<u8> {
            let mut bytes = vec![0; len];
            self.fill(&mut bytes);
            bytes
        }
    }
}
