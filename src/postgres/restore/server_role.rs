//! What a restored server is to the server that was backed up: a copy that lives beside it, its successor, or a standby
//! of the same cluster.

/// The role of a restored server.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum ServerRole {
    /// An isolated copy. It reaches out to nothing and waits for no other server.
    #[default]
    Copy,
    /// The successor of the original after a disaster. It archives, subscribes and waits for standbys as the original.
    Takeover,
    /// A standby. It has no target and follows its primary and the archive.
    Standby(StandbyConnection),
}

/// How a standby reaches its primary.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StandbyConnection {
    /// `primary_conninfo`; without it the standby follows the archive alone.
    pub primary_conninfo: Option<String>,
    /// Its `primary_slot_name`, for a standby that streams.
    pub slot: Option<String>,
}

impl ServerRole {
    /// Its name in documents.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            ServerRole::Copy => "copy",
            ServerRole::Takeover => "takeover",
            ServerRole::Standby(_) => "standby",
        }
    }

    /// What the role means for the restored server, in one sentence. `archives` is whether its archiving stays as it
    /// was configured.
    #[must_use]
    pub const fn summary(&self, archives: bool) -> &'static str {
        match (self, archives) {
            (ServerRole::Copy, false) => {
                "isolated copy: it archives nothing, starts no subscription, and no commit waits for a standby; \
                 --takeover keeps the original's role"
            }
            (ServerRole::Copy, true) => {
                "isolated copy, but with archiving as configured: it starts no subscription, and no commit waits for a \
                 standby; --takeover keeps the original's role"
            }
            (ServerRole::Takeover, true) => {
                "successor of the original: archiving, subscriptions and synchronous standbys stay as configured"
            }
            (ServerRole::Takeover, false) => {
                "successor of the original, without archiving: subscriptions and synchronous standbys stay as \
                 configured"
            }
            (ServerRole::Standby(StandbyConnection { primary_conninfo: Some(_), .. }), _) => {
                "standby: it follows its primary, and the archive when the primary has removed WAL that it needs"
            }
            (ServerRole::Standby(StandbyConnection { primary_conninfo: None, .. }), _) => {
                "standby: it follows the archive alone; --primary-conninfo connects it to its primary"
            }
        }
    }
}

impl serde::Serialize for ServerRole {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}
