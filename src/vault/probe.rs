//! Whether each repository takes, returns and removes an object, and refuses to replace one.

use std::time::Duration;

use bytes::Bytes;

use super::repository::key::{ObjectKey, ObjectKeyError};
use super::repository::{PutOutcome, Repository, RepositoryError};
use super::seal::ObjectEncryption;
use super::{Vault, VaultError};
use crate::base::findings::CheckFindings;
use crate::base::units::format_duration;

/// Half-written files of a writer that crashed are removed once they are this old. No writer takes so long.
const LEFTOVER_MIN_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Why a repository is not good.
#[derive(Debug, thiserror::Error)]
enum RepositoryCheckError {
    /// It was not reachable when the vault was opened.
    #[error("{name} cannot be opened")]
    Unopened {
        /// Its name in the configuration.
        name: String,
        /// The error from opening it.
        source: VaultError,
    },
    /// The probe failed.
    #[error("{name} failed")]
    Failed {
        /// Its name in the configuration.
        name: String,
        /// The first error of the probe.
        source: ProbeError,
    },
}

/// Why the probe of a repository failed.
#[derive(Debug, thiserror::Error)]
enum ProbeError {
    /// The probe has no valid key.
    #[error("{0}")]
    Key(#[from] ObjectKeyError),
    /// The repository did not carry out an operation.
    #[error("{0}")]
    Repository(#[from] RepositoryError),
    /// A put of an existing object was not refused.
    #[error("this store replaces objects that exist, so it cannot protect what is archived; use another")]
    Replaced,
    /// The object that was read is not the one that was written.
    #[error("{0} came back with another content than was written")]
    Altered(ObjectKey),
}

/// Probes each repository of the vault, with an object under the key that `probe_key` makes of a unique name, and
/// reports whether new objects are encrypted.
pub async fn check_repositories(
    vault: &Vault,
    probe_key: impl Fn(&str) -> Result<ObjectKey, ObjectKeyError>,
    findings: &mut CheckFindings,
) {
    for (name, why) in vault.unreachable() {
        let (name, source) = (name.to_owned(), why);
        findings.add_error("repository", RepositoryCheckError::Unopened { name, source });
    }
    for (name, repository) in vault.repositories() {
        let began = vault.clock().elapsed();
        let key = probe_key(&format!("{:032x}", rand::random::<u128>()));
        match probe_repository(key, &repository).await {
            Ok(()) => {
                sweep_leftovers(name, &repository).await;
                let took = vault.clock().elapsed().saturating_sub(began);
                let url = repository.url();
                findings.add_good(
                    "repository",
                    format!("{name} at {url}: wrote, read and removed an object in {}", format_duration(took)),
                );
            }
            Err(source) => {
                findings.add_error("repository", RepositoryCheckError::Failed { name: name.to_owned(), source });
            }
        }
    }
    match &**vault.protection() {
        ObjectEncryption::Encrypted(ring) => {
            findings.add_good(
                "key",
                format!("opens the repository's keys; new objects are sealed under {}", ring.current().0),
            );
        }
        ObjectEncryption::None => {
            findings.add_warning("key", "encryption is off: whoever reaches the repository can read it")
        }
    }
}

/// Removes what crashed writers left. Nothing depends on it, so a failure is only logged.
async fn sweep_leftovers(name: &str, repository: &Repository) {
    match repository.sweep_orphans(LEFTOVER_MIN_AGE).await {
        Ok(0) => {}
        Ok(files) => tracing::info!(name, files, "removed what crashed writers had left"),
        Err(error) => tracing::warn!(name, %error, "cannot remove what crashed writers have left"),
    }
}

async fn probe_repository(key: Result<ObjectKey, ObjectKeyError>, repository: &Repository) -> Result<(), ProbeError> {
    let content = Bytes::from(rand::random::<[u8; 64]>().to_vec());
    let key = key?;
    repository.put_new(&key, vec![content.clone()]).await?;
    // Some stores that speak S3 overlook "only if there is none", and would let one segment replace another.
    let other = repository.put_new(&key, vec![Bytes::from_static(b"another content")]).await;
    let back = repository.get(&key).await;
    repository.delete(&key).await?;
    if other? == PutOutcome::Created {
        return Err(ProbeError::Replaced);
    }
    if back? == content { Ok(()) } else { Err(ProbeError::Altered(key)) }
}
