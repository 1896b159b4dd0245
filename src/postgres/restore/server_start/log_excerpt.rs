//! The part of a server's log that is shown with an error.

use std::fmt;

/// A part of a server's log. In an error, which is one line, it is its first line that is not routine.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LogExcerpt {
    /// Its lines from about the first that is not routine on; empty if there are none to show.
    pub lines: Vec<String>,
    /// The first line that is not routine.
    pub first_error: Option<String>,
    /// Where the log is.
    pub place: String,
}

impl fmt::Display for LogExcerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = &self.first_error {
            write!(f, "{line}; ")?;
        }
        write!(f, "its log: {}", self.place)
    }
}
