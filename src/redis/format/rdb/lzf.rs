//! LZF, as RDB files compress strings (`lzf_d.c`): literal runs, and references at most 8 KiB back.
//!
//! [`LzfChecker`] needs none of the content: it follows how far the output has come, so a string of any length is
//! checked as it flows by. [`decompress`] is for what must be looked into.

/// Why a compressed string is none.
pub(super) const BROKEN_LZF: &str = "an LZF string does not decompress";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum LzfState {
    Control,
    Literals(u8),
    /// A reference of this length so far and these high bits of the distance; the length goes on.
    Length(u64, u64),
    /// A reference whose low byte of the distance is missing.
    Distance(u64, u64),
}

/// Follows a compressed string in any pieces.
#[derive(Debug)]
pub(super) struct LzfChecker {
    state: LzfState,
    produced: u64,
    plain: u64,
}

impl LzfChecker {
    /// A string that is to have `plain` bytes.
    pub(super) fn new(plain: u64) -> LzfChecker {
        LzfChecker { state: LzfState::Control, produced: 0, plain }
    }

    pub(super) fn push(&mut self, mut input: &[u8]) -> Result<(), &'static str> {
        while let Some((byte, rest)) = input.split_first() {
            self.state = match self.state {
                LzfState::Literals(left) => {
                    let run = usize::from(left).min(input.len());
                    input = input.get(run..).unwrap_or_default();
                    // A run has 32 bytes at most.
                    match u8::try_from(run).map_or(0, |run| left.saturating_sub(run)) {
                        0 => self.state = LzfState::Control,
                        left => self.state = LzfState::Literals(left),
                    }
                    continue;
                }
                LzfState::Control if *byte < 32 => {
                    self.add_output(u64::from(*byte).saturating_add(1))?;
                    LzfState::Literals(byte.saturating_add(1))
                }
                LzfState::Control => match (u64::from(byte >> 5), u64::from(byte & 31) << 8) {
                    (7, high) => LzfState::Length(7, high),
                    (length, high) => LzfState::Distance(length, high),
                },
                LzfState::Length(length, high) => LzfState::Distance(length.saturating_add(u64::from(*byte)), high),
                LzfState::Distance(length, high) => {
                    if high.saturating_add(u64::from(*byte)) >= self.produced {
                        return Err(BROKEN_LZF);
                    }
                    self.add_output(length.saturating_add(2))?;
                    LzfState::Control
                }
            };
            input = rest;
        }
        Ok(())
    }

    pub(super) fn finish(&self) -> Result<(), &'static str> {
        if self.state == LzfState::Control && self.produced == self.plain { Ok(()) } else { Err(BROKEN_LZF) }
    }

    fn add_output(&mut self, bytes: u64) -> Result<(), &'static str> {
        self.produced = self.produced.saturating_add(bytes);
        if self.produced > self.plain { Err(BROKEN_LZF) } else { Ok(()) }
    }
}

/// The `plain` bytes that `input` stands for. Allocates no more than that, and no more than some 90 times `input`.
pub(super) fn decompress(mut input: &[u8], plain: usize) -> Result<Vec<u8>, &'static str> {
    let mut output = Vec::with_capacity(plain.min(input.len().saturating_mul(4)));
    while let Some((control, rest)) = input.split_first() {
        if *control < 32 {
            let (run, rest) = rest.split_at_checked(usize::from(*control).saturating_add(1)).ok_or(BROKEN_LZF)?;
            output.extend_from_slice(run);
            input = rest;
        } else {
            let (mut length, mut rest) = (usize::from(control >> 5), rest);
            if length == 7 {
                let (more, after) = rest.split_first().ok_or(BROKEN_LZF)?;
                (length, rest) = (length.saturating_add(usize::from(*more)), after);
            }
            let (low, after) = rest.split_first().ok_or(BROKEN_LZF)?;
            let back = (usize::from(control & 31) << 8).saturating_add(usize::from(*low)).saturating_add(1);
            let from = output.len().checked_sub(back).ok_or(BROKEN_LZF)?;
            // What is referred to may overlap what is being written: then it repeats.
            let mut left = length.saturating_add(2);
            while left > 0 {
                let run = left.min(output.len().saturating_sub(from));
                output.extend_from_within(from..from.saturating_add(run));
                left = left.saturating_sub(run);
            }
            input = after;
        }
        if output.len() > plain {
            return Err(BROKEN_LZF);
        }
    }
    if output.len() == plain { Ok(output) } else { Err(BROKEN_LZF) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(input: &[u8], plain: u64) -> Result<(), &'static str> {
        let mut check = LzfChecker::new(plain);
        check.push(input)?;
        check.finish()
    }

    #[test]
    fn a_run_and_an_overlapping_reference() {
        // "ab", then six bytes from two back.
        let input = [1, b'a', b'b', 4 << 5, 1];
        assert_eq!(decompress(&input, 8).unwrap(), b"abababab");
        assert_eq!(check(&input, 8), Ok(()));
        assert_eq!(check(&input, 9), Err(BROKEN_LZF));
        assert!(decompress(&input, 7).is_err());
        // Three back of two.
        assert!(decompress(&[1, b'a', b'b', 4 << 5, 2], 8).is_err());
        assert_eq!(check(&[1, b'a', b'b', 4 << 5, 2], 8), Err(BROKEN_LZF));
    }

    proptest! {
        /// The check agrees with decompressing, in any two pieces.
        #[test]
        fn the_check_says_what_decompressing_would(
            input in proptest::collection::vec(prop_oneof![0_u8..6, 32_u8..40, any::<u8>()], 0..40), at in 0_usize..40,
        ) {
            let lengths = (0..600_usize).filter(|plain| decompress(&input, *plain).is_ok());
            for plain in lengths.chain([3, 17]) {
                let mut check = LzfChecker::new(u64::try_from(plain).unwrap());
                let (head, tail) = input.split_at(at.min(input.len()));
                let checked = check.push(head).and_then(|()| check.push(tail)).and_then(|()| check.finish());
                prop_assert_eq!(checked.is_ok(), decompress(&input, plain).is_ok(), "{}", plain);
            }
        }
    }
}
