//! What a PostgreSQL server has written that nobody else has, and for how long.
//!
//! Positions are compared on one timeline only: after a failover to a standby that lagged, the server may be at a lower
//! one than the archive, which has nothing of its timeline. The last protected commit says how old what is missing can
//! be, and no more: on a quiet server it may have been written just now. So what looks late is looked at again before
//! it is called so ([`confirm_late`]).

use std::time::Duration;

use super::facts::{HealthFacts, NewestRestorable, ServerWalStatus};
use crate::base::clock::Clock;
use crate::base::findings::{FindingLevel, Findings, MAX_UNPROTECTED};
use crate::base::units::{format_age, format_bytes_roughly, whole_seconds};
use crate::postgres::archive::inventory::ArchiveInventory;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;

/// What was written is here after so long, if anything brings it: a receiver elsewhere copies what it has every ten
/// seconds (`copy-every`).
const TRANSIT_ALLOWANCE: Duration = Duration::from_secs(15);

/// How far the server is ahead of what is protected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ServerLead {
    /// By so many bytes.
    By(u64),
    /// It is on another timeline, whose positions mean something else.
    Elsewhere(TimelineId),
    /// It is a standby with nothing more, which does not know what its primary has: it may be cut off.
    Standby,
    /// Nobody could say.
    Unknown,
}

/// What is protected, and what is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct WalProtection {
    /// The newest moment that can be restored to.
    pub(super) newest: Option<NewestRestorable>,
    ahead: ServerLead,
    /// Whether WAL is missing right behind it. What follows may be archived, and is of no use.
    gap: bool,
    /// Seconds since the last protected commit.
    age: Option<u64>,
    /// After so many seconds at the most the server hands on what it is ahead by, if that is known.
    handed_on: Option<u64>,
}

/// What looks late is looked at once more, by `again`: it may have been written a moment ago. What the server writes
/// meanwhile counts for nothing, because it is not asked again.
///
/// # Errors
/// Those of `again`.
pub(super) async fn confirm_late<E>(
    clock: &dyn Clock,
    mut facts: HealthFacts,
    again: impl Future<Output = Result<ArchiveInventory, E>>,
) -> Result<HealthFacts, E> {
    if WalProtection::from_facts(&facts).is_late() {
        clock.sleep(TRANSIT_ALLOWANCE).await;
        facts.overview = again.await?;
        facts.now = clock.now();
    }
    Ok(facts)
}

impl WalProtection {
    pub(super) fn from_facts(facts: &HealthFacts) -> WalProtection {
        let window = facts.overview.windows.iter().max_by_key(|window| (window.timeline, window.to_lsn));
        let newest = window.map(|window| NewestRestorable {
            lsn: window.to_lsn,
            time: window.to_time,
            timeline: window.timeline,
        });
        let both = newest.zip(facts.server.as_ref().and_then(|server| server.as_ref().ok()));
        let since = newest.and_then(|newest| newest.time).and_then(PgTime::to_timestamp);
        let gap = newest.is_some_and(|newest| facts.overview.gaps.iter().any(|gap| gap.from_lsn == newest.lsn));
        WalProtection {
            newest,
            ahead: both.map_or(ServerLead::Unknown, |(newest, server)| server_lead(newest, server)),
            gap,
            age: since.map(|since| whole_seconds(facts.now.duration_since(since))),
            handed_on: both
                .and_then(|(newest, server)| archive_timeout_bound(newest, server, &facts.overview))
                .filter(|_| !gap),
        }
    }

    /// Bytes of log that the server has and nobody else, where that is known.
    pub(super) fn unprotected_bytes(&self) -> Option<u64> {
        match self.ahead {
            ServerLead::By(bytes) => Some(bytes),
            ServerLead::Elsewhere(_) | ServerLead::Standby | ServerLead::Unknown => None,
        }
    }

    /// For how long what was committed is not protected, at the most.
    pub(super) fn unprotected_seconds(&self) -> Option<u64> {
        match self.ahead {
            ServerLead::By(0) => Some(0),
            ServerLead::By(_) => self.age.into_iter().chain(self.handed_on).min(),
            ServerLead::Elsewhere(_) | ServerLead::Standby | ServerLead::Unknown => self.age,
        }
    }

    /// Whether something is missing for too long, as far as one look tells.
    fn is_late(&self) -> bool {
        let too_long = |age: u64| age > whole_seconds(MAX_UNPROTECTED);
        match self.ahead {
            ServerLead::By(0) | ServerLead::Standby | ServerLead::Unknown => false,
            ServerLead::By(_) => self.unprotected_seconds().is_some_and(too_long),
            ServerLead::Elsewhere(_) => self.unprotected_seconds().is_none_or(too_long),
        }
    }

    pub(super) fn add_findings(&self, findings: &mut Findings) {
        let mut say = |level, text: String| findings.add(level, "protection", text);
        let Some(newest) = self.newest else {
            return say(FindingLevel::Bad, "nothing can be restored: there is no backup with its WAL yet".to_owned());
        };
        let last = match self.age {
            Some(age) => format!("the last protected commit is {} old", format_age(age)),
            None => "no commit is archived since the backup".to_owned(),
        };
        let late = self.is_late();
        match self.ahead {
            ServerLead::By(0) => {
                say(FindingLevel::Good, "everything that the server has written is protected".to_owned())
            }
            ServerLead::By(bytes) => {
                let alone = match self.gap {
                    true => format!(
                        "{} of WAL cannot be restored, because WAL before it is missing",
                        format_bytes_roughly(bytes)
                    ),
                    false => format!("{} of WAL are on the server alone", format_bytes_roughly(bytes)),
                };
                let advice = "; is walkeep receive running, or archive_timeout at most 5 min?";
                let advice = if self.gap { "" } else { advice };
                match (self.handed_on, self.age) {
                    _ if late => say(FindingLevel::Bad, format!("{alone}, {last}{advice}")),
                    (Some(within), _) => {
                        say(
                            FindingLevel::Good,
                            format!("{alone}, which archive_timeout hands on within {}", format_age(within)),
                        );
                    }
                    (None, Some(_)) => say(FindingLevel::Good, format!("{alone}, {last}")),
                    (None, None) => say(FindingLevel::Warning, alone),
                }
            }
            ServerLead::Elsewhere(theirs) => {
                let ours = newest.timeline;
                let text =
                    format!("the server is on timeline {theirs}, what can be restored on timeline {ours}; {last}");
                match late {
                    true => say(FindingLevel::Bad, format!("{text}; does walkeep receive follow this server?")),
                    false => say(FindingLevel::Warning, text),
                }
            }
            ServerLead::Standby => {
                let text = format!("the server is a standby and cannot say what its primary has written; {last}");
                say(FindingLevel::Warning, text);
            }
            ServerLead::Unknown if self.age.is_some() => {
                say(FindingLevel::Warning, format!("{last}; what came after is not known"));
            }
            ServerLead::Unknown => say(FindingLevel::Warning, last),
        }
    }
}

fn server_lead(newest: NewestRestorable, server: &ServerWalStatus) -> ServerLead {
    if let Some(theirs) = server.timeline.filter(|theirs| *theirs != newest.timeline) {
        return ServerLead::Elsewhere(theirs);
    }
    match server.lsn.map(|lsn| lsn.bytes_since(newest.lsn)) {
        Some(0) | None if server.standby => ServerLead::Standby,
        Some(bytes) => ServerLead::By(bytes),
        None => ServerLead::Unknown,
    }
}

/// `archive_timeout`, where it bounds the age of what is missing: the server's archiver works, and no more than its
/// segment under way is missing. What an idle server writes by itself (`XLOG_MARK_UNIMPORTANT`) ends no segment, so
/// there it may be missing for ever, and nothing is lost with it.
fn archive_timeout_bound(
    newest: NewestRestorable,
    server: &ServerWalStatus,
    overview: &ArchiveInventory,
) -> Option<u64> {
    let size = overview.segment_size?;
    let works = server.archives && server.failing.is_none() && !server.standby;
    let under_way = size.segment_of(newest.lsn) == size.segment_of(server.lsn?);
    server.archive_timeout_seconds.filter(|within| works && under_way && *within <= whole_seconds(MAX_UNPROTECTED))
}
