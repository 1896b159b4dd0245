//! `walkeep.json`: the format of a repository, and the number that tells it from others.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// The layout that this program writes. It reads this one and older ones; there are none older yet.
pub const REPOSITORY_FORMAT: u32 = 1;

/// The random number that tells repositories apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryId(u128);

impl RepositoryId {
    pub(super) fn random() -> RepositoryId {
        RepositoryId(rand::random())
    }
}

impl fmt::Display for RepositoryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl From<RepositoryId> for String {
    fn from(id: RepositoryId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for RepositoryId {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<RepositoryId, std::num::ParseIntError> {
        u128::from_str_radix(&text, 16).map(RepositoryId)
    }
}

/// What `walkeep.json` holds.
#[derive(Serialize, Deserialize)]
pub(super) struct RepositoryMarker {
    pub(super) format: u32,
    pub(super) repository_id: RepositoryId,
    pub(super) created_at: Timestamp,
}

/// The one field of `walkeep.json` that every format will have.
#[derive(Deserialize)]
pub(super) struct RepositoryMarkerFormat {
    pub(super) format: u32,
}
