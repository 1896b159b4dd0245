//! What `walkeep check` finds: the flows of both wings add to it, and the command line shows it.

use std::error::Error;

use super::clock::{ClockOffset, OFFSET_WARNING};
use super::findings::FindingLevel;

/// Findings in the order in which they were made.
#[derive(Default, Debug)]
pub struct CheckFindings(Vec<CheckFinding>);

/// One finding.
#[derive(Debug)]
pub struct CheckFinding {
    /// What was checked.
    pub subject: &'static str,
    /// How bad it is.
    pub level: FindingLevel,
    /// What was seen.
    pub detail: CheckDetail,
}

/// What was seen, in words or as the error that prevented the check.
#[derive(Debug)]
pub enum CheckDetail {
    /// What was seen, and what to do.
    Text(String),
    /// Why the check failed.
    Error(Box<dyn Error + Send + Sync>),
}

impl CheckFindings {
    /// Adds what is as it should be.
    pub fn add_good(&mut self, subject: &'static str, text: impl Into<String>) {
        self.add(subject, FindingLevel::Good, CheckDetail::Text(text.into()));
    }

    /// Adds what the user should look at.
    pub fn add_warning(&mut self, subject: &'static str, text: impl Into<String>) {
        self.add(subject, FindingLevel::Warning, CheckDetail::Text(text.into()));
    }

    /// Adds what makes archiving fail.
    pub fn add_bad(&mut self, subject: &'static str, text: impl Into<String>) {
        self.add(subject, FindingLevel::Bad, CheckDetail::Text(text.into()));
    }

    /// Adds a check that failed with an error.
    pub fn add_error(&mut self, subject: &'static str, error: impl Error + Send + Sync + 'static) {
        self.add(subject, FindingLevel::Bad, CheckDetail::Error(Box::new(error)));
    }

    /// Adds how far a server's clock is from this machine's. `what` says what depends on that clock.
    pub(crate) fn add_clock_offset(&mut self, offset: ClockOffset, what: &str) {
        if offset.certain_skew() > OFFSET_WARNING {
            self.add_warning("clock", format!("{offset} this machine's, and {what}; see to NTP on both machines"));
        } else {
            self.add_good("clock", format!("{offset} this machine's"));
        }
    }

    fn add(&mut self, subject: &'static str, level: FindingLevel, detail: CheckDetail) {
        self.0.push(CheckFinding { subject, level, detail });
    }

    /// All findings.
    #[must_use]
    pub fn into_findings(self) -> Vec<CheckFinding> {
        self.0
    }
}

#[cfg(test)]
impl std::fmt::Display for CheckFindings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|finding| match &finding.detail {
            CheckDetail::Text(text) => writeln!(f, "{:?} {} {text}", finding.level, finding.subject),
            CheckDetail::Error(error) => writeln!(f, "{:?} {} {error}", finding.level, finding.subject),
        })
    }
}
