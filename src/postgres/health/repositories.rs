//! Whether each repository has what the others have.

use super::facts::HealthFacts;
use crate::base::findings::{FindingLevel, Findings, MAX_UNPROTECTED};
use crate::base::units::{format_age, format_bytes_roughly, format_count, whole_seconds};
use crate::postgres::archive::coverage::RepositoryCoverage;
use crate::postgres::format::lsn::Lsn;

/// Adds a finding for each repository that could be looked at, if there are several.
pub(super) fn judge_repositories(facts: &HealthFacts, findings: &mut Findings) {
    let all = &facts.repositories;
    let newest = all.iter().filter_map(|coverage| coverage.newest_lsn).max();
    for coverage in all.iter().filter(|coverage| coverage.unreachable.is_none()) {
        let (level, text) = judge_repository(coverage, newest, facts);
        findings.add(level, "repository", format!("{} {text}", coverage.repository));
    }
    // The vault may have found another one unreachable, or reached it only when it was listed.
    let is_reported = |name: &str| facts.unreachable.iter().any(|(known, _)| known == name);
    for coverage in all.iter().filter(|coverage| !is_reported(&coverage.repository)) {
        if let Some(why) = &coverage.unreachable {
            findings.add_unreachable_repositories(&[(coverage.repository.clone(), why.clone())]);
        }
    }
}

fn judge_repository(coverage: &RepositoryCoverage, newest: Option<Lsn>, facts: &HealthFacts) -> (FindingLevel, String) {
    let lacking = &coverage.lacking;
    let up_to = coverage.newest_lsn.map_or_else(|| "has no WAL".to_owned(), |lsn| format!("has WAL up to {lsn}"));
    let lag = newest.map(|newest| newest.bytes_since(coverage.newest_lsn.unwrap_or(Lsn::new(0))));
    let lag = lag.filter(|bytes| *bytes > 0 && coverage.newest_lsn.is_some());
    let lag = lag.map_or_else(String::new, |bytes| format!(", {} less than another one,", format_bytes_roughly(bytes)));
    if lacking.is_empty() {
        return (FindingLevel::Good, format!("{up_to}{lag} and lacks nothing that another one has"));
    }
    let mut what = Vec::new();
    if lacking.segments > 0 {
        let range = match (&lacking.first_segment, &lacking.last_segment) {
            (Some(first), Some(last)) if first != last => format!(" ({first} to {last})"),
            (Some(first), _) => format!(" ({first})"),
            (None, _) => String::new(),
        };
        what.push(format!("{}{range}", format_count(lacking.segments, "segment")));
    }
    if let Some(newest) = lacking.backups.last() {
        what.push(match lacking.backups.len() {
            1 => format!("backup {newest}"),
            more => format!("{more} backups, the newest {newest}"),
        });
    }
    let what = what.join(" and ");
    let age = lacking.since.map(|since| facts.now.duration_since(since));
    if lacking.backups.is_empty() && age.is_some_and(|age| age <= MAX_UNPROTECTED) {
        return (FindingLevel::Good, format!("{up_to}{lag}: {what} of the last minutes are on their way"));
    }
    let since = age.map_or_else(String::new, |age| format!(", the oldest for {}", format_age(whole_seconds(age))));
    let text = format!(
        "{up_to}{lag} and lacks {what}, which another repository has{since}; walkeep receive copies it while it \
         runs, and walkeep repository sync at once"
    );
    (FindingLevel::Bad, text)
}
