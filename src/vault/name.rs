//! Names of archives: the folder that an archive has in each repository, and the section that it has in the
//! configuration.
//!
//! Each wing has a type of its own for the names of its archives, so that a Redis instance cannot be taken for a
//! PostgreSQL cluster. The rules for the text are the same, because the folders of both are side by side in the
//! repository.

use crate::vault::repository::key::KEYS_FOLDER;

/// The text cannot name an archive.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot name a cluster: a letter or digit, then up to 62 letters, digits, underscores and dashes, and not \
        the word \"keys\""
)]
pub struct ArchiveNameError(String);

/// Checks the text of a name.
pub(crate) fn check_archive_name(name: &str) -> Result<String, ArchiveNameError> {
    let plain = (1..=63).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        // The folder of the key objects is beside those of the archives.
        && !name.eq_ignore_ascii_case(KEYS_FOLDER);
    if plain { Ok(name.to_owned()) } else { Err(ArchiveNameError(name.to_owned())) }
}

/// Defines the type for the names of one wing's archives: checked text.
macro_rules! archive_name {
    ($(#[doc = $doc:literal])* $name:ident) => {
        $(#[doc = $doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::vault::name::ArchiveNameError;

            fn from_str(name: &str) -> Result<$name, $crate::vault::name::ArchiveNameError> {
                $crate::vault::name::check_archive_name(name).map($name)
            }
        }

        impl TryFrom<String> for $name {
            type Error = $crate::vault::name::ArchiveNameError;

            fn try_from(name: String) -> Result<$name, $crate::vault::name::ArchiveNameError> {
                name.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::fmt::Debug for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

pub(crate) use archive_name;
