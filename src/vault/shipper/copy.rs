//! Carrying an object from one repository to another as it is: sealed once, for all of them.

use crate::base::blocking::run_blocking;
use crate::vault::error::VaultError;
use crate::vault::repositories::Vault;
use crate::vault::repository::{PutOutcome, RepositoryError};
use crate::vault::seal;
use crate::vault::sealed_objects::object_binding;
use crate::vault::shipper::item::ShipItem;

/// The result of shipping an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CopyOutcome {
    /// It was stored, with so many bytes.
    Copied(u64),
    /// The repository had it already.
    Exists,
    /// No other repository has it any more: retention removed it meanwhile.
    Gone,
}

impl Vault {
    /// Copies an object into the repository of this name, from the first other one that gives it whole. It is opened
    /// before it is stored, so that damage does not spread.
    ///
    /// # Errors
    /// The repository did not take it, or no other one gave it whole and not all reported that they don't have it.
    pub async fn copy_object(&self, item: &ShipItem, to: &str) -> Result<CopyOutcome, VaultError> {
        let target = self.places.iter().find(|place| place.name == to).ok_or(VaultError::NoRepository)?;
        let repository = target.reopened(&self.keys).await?;
        let mut trouble = None;
        for source in self.places.iter().filter(|place| place.name != to) {
            let read = match source.reopened(&self.keys).await {
                Ok(open) => open.get(&item.key).await,
                Err(error) => {
                    trouble = trouble.or(Some(error));
                    continue;
                }
            };
            let object = match read {
                Ok(object) => object,
                Err(RepositoryError::NotFound { .. }) => continue,
                Err(error) => {
                    trouble = trouble.or(Some(source.repository_error(error)));
                    continue;
                }
            };
            let (binding, protection) =
                (object_binding(item.kind, &item.key), std::sync::Arc::clone(self.protection()));
            let checked = object.clone();
            let opened = run_blocking(move || seal::open_object(&checked, &binding, &protection, 1).map(drop)).await?;
            if let Err(error) = opened {
                let error = source.open_error(error);
                tracing::error!(key = %item.key, %error, "a damaged object is not copied");
                trouble = Some(error);
                continue;
            }
            let len = object.len() as u64;
            let put = repository.put_new(&item.key, vec![object]).await.map_err(|e| target.repository_error(e))?;
            target.note_success();
            return Ok(match put {
                PutOutcome::Created => CopyOutcome::Copied(len),
                PutOutcome::Exists => CopyOutcome::Exists,
            });
        }
        trouble.map_or(Ok(CopyOutcome::Gone), Err)
    }
}
