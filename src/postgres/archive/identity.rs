//! What a cluster is: written once with its first segment, asked before every other.

use bytes::Bytes;

use super::cluster_archive::{Archive, ArchiveIdentity};
use super::error::ArchiveError;
use crate::base::blocking::run_blocking;
use crate::vault::VaultRepository;
use crate::vault::repository::PutOutcome;
use crate::vault::seal::{self, SealSpec, SealedKind};
use crate::vault::{self, object_binding};

impl Archive {
    /// What the cluster is; `None` before its first segment.
    ///
    /// # Errors
    /// No place could say.
    pub async fn identity(&self) -> Result<Option<ArchiveIdentity>, ArchiveError> {
        if let Some(identity) = self.identity.get() {
            return Ok(Some(*identity));
        }
        let key = self.layout.identity();
        let Some(opened) = self.vault().get_object(SealedKind::Cluster, &key).await? else { return Ok(None) };
        let identity = serde_json::from_slice(&opened.plain).map_err(|e| vault::VaultError::MalformedContent {
            name: self.cluster().to_string(),
            key,
            why: e.to_string(),
        })?;
        self.identity.set(identity).ok();
        Ok(Some(identity))
    }

    /// What the repositories that can be reached know of the cluster. `None` if they have nothing of it, though an
    /// unreachable one may: what is stored meanwhile is compared with that one when it is back.
    ///
    /// # Errors
    /// No repository could be asked.
    pub async fn known_identity(&self) -> Result<Option<ArchiveIdentity>, ArchiveError> {
        match self.identity().await {
            Err(ArchiveError::Vault(error)) if error.may_pass() && self.vault.repositories().next().is_some() => {
                tracing::warn!(%error, "an unreachable repository cannot be asked which cluster it is of");
                Ok(None)
            }
            known => known,
        }
    }

    /// What the cluster is, in every repository that can be reached: written where it is missing.
    ///
    /// # Errors
    /// No repository could be asked, or two of them disagree. The answer may differ from `proposed`.
    pub(super) async fn identity_or_create(&self, proposed: ArchiveIdentity) -> Result<ArchiveIdentity, ArchiveError> {
        if let Some(identity) = self.identity.get() {
            return Ok(*identity);
        }
        let mut failure = None;
        for place in &self.vault.places {
            let asked = async {
                place.reopened(&self.vault.keys).await?;
                match self.identity_in(place).await? {
                    Some(found) => Ok(found),
                    None => self.write_identity(place, self.identity.get().copied().unwrap_or(proposed)).await,
                }
            };
            let found = match asked.await {
                Ok(found) => found,
                Err(ArchiveError::Vault(error)) if error.may_pass() => {
                    failure = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            if *self.identity.get_or_init(|| std::future::ready(found)).await != found {
                let why = "it is another cluster than in the other repositories";
                return Err(place.content_error(&self.layout.identity(), why).into());
            }
        }
        self.identity.get().copied().ok_or_else(|| failure.unwrap_or(vault::VaultError::NoRepository).into())
    }

    async fn identity_in(&self, place: &VaultRepository) -> Result<Option<ArchiveIdentity>, ArchiveError> {
        let key = self.layout.identity();
        match place.get(SealedKind::Cluster, &key, &self.vault).await? {
            Some(opened) => {
                serde_json::from_slice(&opened.plain).map(Some).map_err(|e| place.content_error(&key, e).into())
            }
            None => Ok(None),
        }
    }

    async fn write_identity(
        &self,
        place: &VaultRepository,
        identity: ArchiveIdentity,
    ) -> Result<ArchiveIdentity, ArchiveError> {
        let key = self.layout.identity();
        let text = serde_json::to_vec(&identity).map_err(|e| place.content_error(&key, e))?;
        let (binding, protection) =
            (object_binding(SealedKind::Cluster, &key), std::sync::Arc::clone(self.vault.protection()));
        let sealed =
            run_blocking(move || seal::seal_object(&[&Bytes::from(text)], &SealSpec::new(&binding), &protection))
                .await?;
        let sealed = sealed.map_err(vault::VaultError::from)?;
        match place.put(&key, &sealed).await? {
            PutOutcome::Created => Ok(identity),
            // Another writer was first; what it wrote holds.
            PutOutcome::Exists => {
                self.identity_in(place).await?.ok_or_else(|| place.content_error(&key, "it is gone again").into())
            }
        }
    }
}
