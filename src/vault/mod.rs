//! What both stores share: named, sealed objects in one or more repositories.
//!
//! A [`Vault`] knows its repositories, the keys that objects are sealed under, how hard to compress, and the clock. It
//! puts, gets, lists and deletes objects, and treats an object as absent only if every repository reports it absent: a
//! repository that cannot be asked is an error, never "not found".
//!
//! Not known here: PostgreSQL, Redis, and what is inside an object.

mod repositories;
pub mod repository;
mod repository_location;
pub mod verify;
pub mod spool;
pub mod probe;
mod sealed_objects;
pub mod shipper;
#[cfg(test)]
pub(crate) mod testing;
mod key_objects;
mod opened_ids;
pub mod retention;
pub(crate) mod running;
mod error;
mod required_copies;
mod skipped_repositories;
mod unreachable_notes;
mod unreachable_repositories;
mod vault_repository;
pub(crate) mod name;
pub mod seal;

pub use error::VaultError;
pub use name::ArchiveNameError;
pub(crate) use name::archive_name;
pub use repositories::{Vault, VaultSettings};
pub use repository_location::RepositoryLocation;
pub use required_copies::RequiredCopies;
pub use sealed_objects::ObjectListing;
pub(crate) use sealed_objects::object_binding;
pub use skipped_repositories::SkippedRepositories;
pub use unreachable_notes::{HeldOffRepository, UnreachableNotes};
pub use unreachable_repositories::UnreachableRepositories;
pub use vault_repository::VaultRepository;
