//! A repository that was tried: an object written, read, not replaced, and deleted.

use crate::base::findings::{CheckFindings, CheckMessage, Finding, FindingLevel};
use crate::config::Config;
use crate::postgres::archive::layout::Layout;
use crate::redis::archive::layout::Layout as InstanceLayout;
use crate::vault::repository::key::{ObjectKey, ObjectKeyError};
use crate::vault::{Vault, probe};

/// What the probe of one repository found: lines of what works.
///
/// # Errors
/// The first thing that does not work.
pub(super) async fn probe_repository(config: &Config, vault: &Vault, name: &str) -> anyhow::Result<Vec<String>> {
    let mut findings = CheckFindings::default();
    let alone = vault.view(|other| other == name);
    probe::check_repositories(&alone, |unique| probe_key(config, unique), &mut findings).await;
    let mut lines = Vec::new();
    for Finding { level, text, .. } in findings.into_findings() {
        match (level, text) {
            (FindingLevel::Bad, CheckMessage::Error(error)) => return Err(anyhow::Error::from_boxed(error)),
            (FindingLevel::Bad, CheckMessage::Text(text)) => return Err(anyhow::anyhow!(text)),
            (FindingLevel::Good | FindingLevel::Warning, text) => lines.push(text.to_string()),
        }
    }
    Ok(lines)
}

/// The probe is written where the archives are, so that it needs the same rights as they do.
fn probe_key(config: &Config, unique: &str) -> Result<ObjectKey, ObjectKeyError> {
    match (config.clusters.first(), config.instances.first()) {
        (Some(cluster), _) => Layout::new(cluster.name.clone()).probe(unique),
        (None, Some(instance)) => InstanceLayout::new(instance.name.clone()).probe(unique),
        (None, None) => ObjectKey::parse(&format!("probe/{unique}")),
    }
}
