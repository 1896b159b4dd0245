//! Forks without a decision.

use crate::base::findings::{Finding, FindingLevel};
use crate::postgres::archive::Archive;

/// A finding for each unresolved fork.
pub(super) async fn find_unresolved_forks(archive: &Archive) -> Vec<Finding> {
    let bad = |text: String| Finding { level: FindingLevel::Bad, subject: "fork", text };
    match archive.unresolved_forks().await {
        Ok(forks) => forks.iter().map(|known| bad(known.describe(archive.cluster().as_str()))).collect(),
        Err(error) => vec![bad(format!("cannot be listed: {error}"))],
    }
}
