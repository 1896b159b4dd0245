//! What is wrong with bytes that are no RESP, and the numbers in it.

/// Bytes that are no RESP, or beyond its limits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RespError {
    /// A line did not end within its limit.
    #[error("a line of more than {limit} bytes in the Redis protocol at offset {at}")]
    Endless {
        /// Where it begins.
        at: u64,
        /// What is allowed.
        limit: usize,
    },
    /// A number that is none.
    #[error("{what} in the Redis protocol at offset {at} is no number: {found:?}")]
    Number {
        /// Where it is.
        at: u64,
        /// What it counts.
        what: &'static str,
        /// What was found, at most its first bytes.
        found: String,
    },
    /// A number beyond its limit.
    #[error("{what} in the Redis protocol at offset {at} is {found}, more than the {limit} that are allowed")]
    TooMuch {
        /// Where it is.
        at: u64,
        /// What it counts.
        what: &'static str,
        /// What was found.
        found: i128,
        /// What is allowed.
        limit: u64,
    },
    /// A byte that cannot stand where it does.
    #[error("expected {wanted} in the Redis protocol at offset {at}, found byte {found:#04x}")]
    Unexpected {
        /// Where it is.
        at: u64,
        /// What should be there.
        wanted: &'static str,
        /// What is.
        found: u8,
    },
    /// Replies within replies without end.
    #[error("replies are nested more than {limit} deep")]
    Deep {
        /// What is allowed.
        limit: usize,
    },
}

/// A decimal number as RESP writes it: digits, perhaps after a minus sign.
pub(super) fn parse_number(text: &[u8], what: &'static str, at: u64) -> Result<i64, RespError> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let wrong = || {
        let head = text.get(..text.len().min(32)).unwrap_or_default();
        RespError::Number { at, what, found: String::from_utf8_lossy(head).into_owned() }
    };
    if digits.is_empty() || digits.len() > 20 {
        return Err(wrong());
    }
    let mut value: i64 = 0;
    for digit in digits {
        let digit = if digit.is_ascii_digit() { i64::from(digit - b'0') } else { return Err(wrong()) };
        let signed = if negative { -digit } else { digit };
        value = value.checked_mul(10).and_then(|value| value.checked_add(signed)).ok_or_else(wrong)?;
    }
    Ok(value)
}
