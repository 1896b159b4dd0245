//! What `walkeep check` and `walkeep health` find. The flows of both wings add to it, and the command line shows it.
//!
//! `health` gathers what the archive, the server and the disks report and then makes findings of it, which is pure. One
//! bad finding makes a store unhealthy. What cannot be determined is bad too: it must not appear first in the middle of
//! a restore. `check` makes a finding of each thing that it tries, and keeps the error of what failed.

use std::error::Error;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::clock::{ClockOffset, OFFSET_WARNING};
use super::disk::{self, FileSystemSpace};
use super::schedule::last_due;
use super::units::{format_age, format_bytes_roughly, whole_seconds};

/// A server that does not answer for so long is one that cannot be asked.
pub(crate) const SERVER_QUERY_TIMEOUT: Duration = Duration::from_secs(15);
/// What may be unprotected for so long while it is on its way.
pub(crate) const MAX_UNPROTECTED: SignedDuration = SignedDuration::from_mins(5);
/// A backup may take so long, or twice as long as the last, before it is overdue.
const MIN_BACKUP_ALLOWANCE: SignedDuration = SignedDuration::from_hours(1);
/// Free space below which archiving is about to stop, and below which somebody should look.
const DISK_BAD_BYTES: u64 = 1 << 30;
const DISK_LOW_PERCENT: u64 = 10;

/// How bad something is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingLevel {
    /// As it should be.
    Good,
    /// Somebody should look.
    Warning,
    /// Not healthy.
    Bad,
}

/// Something that was looked at.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Finding<M = String> {
    /// How bad it is.
    pub level: FindingLevel,
    /// What was looked at.
    pub subject: &'static str,
    /// What was seen, and what to do.
    pub text: M,
}

/// What a check saw, in words or as the error that prevented the check.
#[derive(Debug)]
pub enum CheckMessage {
    /// What was seen, and what to do.
    Text(String),
    /// Why the check failed.
    Error(Box<dyn Error + Send + Sync>),
}

impl fmt::Display for CheckMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckMessage::Text(text) => f.write_str(text),
            CheckMessage::Error(error) => write!(f, "{error}"),
        }
    }
}

/// Room on a disk.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct DiskSpace {
    /// What is on it.
    pub what: String,
    /// Where.
    pub path: PathBuf,
    /// Bytes free.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Findings in the order in which they were made.
#[derive(Debug)]
pub struct Findings<M = String>(Vec<Finding<M>>);

/// What a check of a store found.
pub type CheckFindings = Findings<CheckMessage>;

impl<M> Default for Findings<M> {
    fn default() -> Self {
        Findings(Vec::new())
    }
}

impl CheckFindings {
    /// Adds what is as it should be.
    pub fn add_good(&mut self, subject: &'static str, text: impl Into<String>) {
        self.push(FindingLevel::Good, subject, CheckMessage::Text(text.into()));
    }

    /// Adds what the user should look at.
    pub fn add_warning(&mut self, subject: &'static str, text: impl Into<String>) {
        self.push(FindingLevel::Warning, subject, CheckMessage::Text(text.into()));
    }

    /// Adds what makes archiving fail.
    pub fn add_bad(&mut self, subject: &'static str, text: impl Into<String>) {
        self.push(FindingLevel::Bad, subject, CheckMessage::Text(text.into()));
    }

    /// Adds a check that failed with an error.
    pub fn add_error(&mut self, subject: &'static str, error: impl Error + Send + Sync + 'static) {
        self.push(FindingLevel::Bad, subject, CheckMessage::Error(Box::new(error)));
    }

    /// Adds how far a server's clock is from this machine's. `what` names what depends on that clock.
    pub(crate) fn add_clock_offset(&mut self, offset: ClockOffset, what: &str) {
        if offset.certain_skew() > OFFSET_WARNING {
            self.add_warning("clock", format!("{offset} this machine's, and {what}; see to NTP on both machines"));
        } else {
            self.add_good("clock", format!("{offset} this machine's"));
        }
    }

    /// All findings.
    #[must_use]
    pub fn into_findings(self) -> Vec<Finding<CheckMessage>> {
        self.0
    }
}

#[cfg(test)]
impl fmt::Display for CheckFindings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|finding| writeln!(f, "{:?} {} {}", finding.level, finding.subject, finding.text))
    }
}

impl<M> Findings<M> {
    fn push(&mut self, level: FindingLevel, subject: &'static str, text: M) {
        self.0.push(Finding { level, subject, text });
    }
}

impl Findings {
    pub(crate) fn add(&mut self, level: FindingLevel, subject: &'static str, text: impl Into<String>) {
        self.push(level, subject, text.into());
    }

    /// How old the newest backup is, which took from `started_at` to `finished_at`, and whether another one was due
    /// since. `command` takes one.
    pub(crate) fn add_backup_age(
        &mut self,
        times: (Timestamp, Timestamp),
        schedule: Option<&str>,
        now: Timestamp,
        command: &str,
    ) {
        let (started_at, finished_at) = times;
        let about = format!("the newest is {} old", format_age(whole_seconds(now.duration_since(finished_at))));
        let Some(schedule) = schedule else {
            return self.add(FindingLevel::Good, "backup", format!("{about}; no schedule is configured"));
        };
        let Some(due) = last_due(schedule, now) else {
            return self.add(
                FindingLevel::Warning,
                "backup",
                format!("{about}; by its schedule none was due for a year"),
            );
        };
        let took = finished_at.duration_since(started_at);
        let late = now.duration_since(due) > took.saturating_add(took).max(MIN_BACKUP_ALLOWANCE);
        if started_at >= due || !late {
            return self.add(FindingLevel::Good, "backup", about);
        }
        let since = format_age(whole_seconds(now.duration_since(due)));
        self.add(FindingLevel::Bad, "backup", format!("{about}, and one was due {since} ago; take it with {command}"));
    }

    pub(crate) fn add_unreachable_repositories(&mut self, unreachable: &[(String, String)]) {
        for (name, why) in unreachable {
            let why = why.strip_prefix(&format!("repository {name}: ")).unwrap_or(why);
            self.add(FindingLevel::Bad, "repository", format!("{name} cannot be reached: {why}"));
        }
    }

    /// Damaged files of the spool, each with what is in it and what to do.
    pub(crate) fn add_set_aside(&mut self, files: &[String]) {
        files.iter().for_each(|file| self.add(FindingLevel::Bad, "spool", file.clone()));
    }

    pub(crate) fn add_disks(&mut self, disks: &[DiskSpace]) {
        for disk in disks {
            let percent = disk.free.saturating_mul(100) / disk.total.max(1);
            let text = format!(
                "{} of {} free for {} ({percent} %)",
                format_bytes_roughly(disk.free),
                format_bytes_roughly(disk.total),
                disk.what
            );
            let level = match disk.free {
                free if free < DISK_BAD_BYTES => FindingLevel::Bad,
                _ if percent < DISK_LOW_PERCENT => FindingLevel::Warning,
                _ => FindingLevel::Good,
            };
            self.add(level, "disk", text);
        }
    }

    /// Whether nothing is bad, and all findings, worst first.
    pub(crate) fn into_sorted(mut self) -> (bool, Vec<Finding>) {
        self.0.sort_by_key(|finding| std::cmp::Reverse(finding.level));
        (self.0.iter().all(|finding| finding.level < FindingLevel::Bad), self.0)
    }
}

/// The room of each of these directories, with what is in it; what does not exist yet is where it will be made.
pub(crate) fn disk_spaces(places: &[(String, PathBuf)]) -> Vec<DiskSpace> {
    places.iter().filter_map(|(what, path)| disk_space(what, path)).collect()
}

fn disk_space(what: &str, path: &Path) -> Option<DiskSpace> {
    let FileSystemSpace { free, total } = disk::space_at(disk::nearest_existing(path)).ok()?;
    Some(DiskSpace { what: what.to_owned(), path: path.to_owned(), free, total })
}
