//! Passwords in memory.

use std::fmt;

use zeroize::Zeroizing;

/// A password. Wiped from memory when dropped, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct PgPassword(Zeroizing<String>);

impl PgPassword {
    /// The password `text`.
    #[must_use]
    pub fn new(text: String) -> PgPassword {
        PgPassword(Zeroizing::new(text))
    }

    /// The password itself, for sending.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PgPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}
