//! Log sequence numbers: byte positions in the write-ahead log.

use std::fmt;
use std::str::FromStr;

/// A byte position in the write-ahead log of one cluster (PostgreSQL's `XLogRecPtr`, `xlogdefs.h`).
///
/// Prints as PostgreSQL does, `16/B374D848`: high and low 32 bits in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// The position PostgreSQL never uses for a record (`InvalidXLogRecPtr`).
    pub const INVALID: Lsn = Lsn(0);
    /// The largest position; an upper bound for range scans.
    pub const MAX: Lsn = Lsn(u64::MAX);

    /// The position `bytes` after the beginning of the log.
    #[must_use]
    pub const fn new(bytes: u64) -> Lsn {
        Lsn(bytes)
    }

    /// Bytes since the beginning of the log.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The position `bytes` further on, or `None` past the end of the 64-bit space.
    #[must_use]
    pub const fn checked_add(self, bytes: u64) -> Option<Lsn> {
        match self.0.checked_add(bytes) {
            Some(sum) => Some(Lsn(sum)),
            None => None,
        }
    }

    /// The position `bytes` further on, held at [`Lsn::MAX`].
    #[must_use]
    pub const fn saturating_add(self, bytes: u64) -> Lsn {
        Lsn(self.0.saturating_add(bytes))
    }

    /// Bytes from `earlier` to `self`; zero if `earlier` is in fact later.
    #[must_use]
    pub const fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What was given is not of the form `16/B374D848`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a log position; PostgreSQL writes them like 16/B374D848")]
pub struct ParseLsnError(String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    /// Accepts exactly what `pg_lsn` accepts: one to eight hexadecimal digits on each side of a slash (`pg_lsn.c`,
    /// `pg_lsn_in_internal`).
    fn from_str(s: &str) -> Result<Lsn, ParseLsnError> {
        let part = |text: &str| -> Option<u64> {
            let plain = (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
            if plain { u64::from_str_radix(text, 16).ok() } else { None }
        };
        s.split_once('/')
            .and_then(|(high, low)| Some(Lsn(part(high)? << 32 | part(low)?)))
            .ok_or_else(|| ParseLsnError(s.to_owned()))
    }
}

impl serde::Serialize for Lsn {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Lsn {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Lsn, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::Lsn;

    #[test]
    fn reads_and_writes_as_postgresql_does() {
        for (text, bytes) in
            [("0/0", 0), ("0/16B3748", 0x16B_3748), ("16/B374D848", 0x16_B374_D848), ("FFFFFFFF/FFFFFFFF", u64::MAX)]
        {
            assert_eq!(text.parse::<Lsn>().unwrap(), Lsn::new(bytes));
            assert_eq!(Lsn::new(bytes).to_string(), text);
        }
        for wrong in ["", "/", "0/", "/0", "0", "0/0/0", "0/-1", "+1/0", "0/123456789", "g/0", " 0/0"] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong:?} was accepted");
        }
    }
}
