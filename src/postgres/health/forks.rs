//! Forks that nobody has decided about.

use crate::base::findings::{Finding, FindingLevel};
use crate::postgres::archive::Archive;

use super::HealthReport;

/// Adds a finding for each unresolved fork, before all others.
pub(super) async fn add_unresolved_forks(archive: &Archive, mut report: HealthReport) -> HealthReport {
    let bad = |text: String| Finding { level: FindingLevel::Bad, subject: "fork", text };
    let mut findings = match archive.unresolved_forks().await {
        Ok(forks) => forks.iter().map(|known| bad(known.describe(&report.cluster))).collect(),
        Err(error) => vec![bad(format!("cannot be listed: {error}"))],
    };
    report.healthy &= findings.is_empty();
    findings.append(&mut report.findings);
    HealthReport { findings, ..report }
}
