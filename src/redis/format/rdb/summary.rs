//! What a walk through an RDB file finds.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Whose format it is: the two have parted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RdbMagic {
    /// `REDIS` and four digits; also Valkey's up to 8.
    Redis,
    /// `VALKEY` and three digits, since Valkey 9.
    Valkey,
}

/// What a key holds, whatever its encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RdbValueKind {
    /// A string.
    String,
    /// A list.
    List,
    /// A set.
    Set,
    /// A sorted set.
    SortedSet,
    /// A hash.
    Hash,
    /// A stream.
    Stream,
    /// A value that a module made.
    Module,
}

/// The keys of one database.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdbDatabase {
    /// All keys in the file.
    pub keys: u64,
    /// Of these, how many expire.
    pub with_expiry: u64,
    /// Of these, how many had expired at [`super::RdbLimits::expired_by`]; a server that starts from the file as it is
    /// drops them.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub expired: u64,
    /// Collections without an element, which a server skips (`rdbLoadObject`).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub empty: u64,
    /// Hashes of which fields expire by themselves: they may lose their last field, and themselves, while they are
    /// loaded.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub with_field_expiry: u64,
    /// How many keys of each kind.
    pub kinds: BTreeMap<RdbValueKind, u64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "what serde calls it with")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Whether the file's checksum was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RdbChecksum {
    /// It is right.
    Verified,
    /// The server writes none (`rdbchecksum no`).
    Disabled,
    /// RDB versions before 5 have none.
    Absent,
}

/// Where the walk met something that it does not know. Nothing after it was looked at, except the checksum.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalkStop {
    /// Bytes before it.
    pub at: u64,
    /// The opcode or type.
    pub code: u8,
    /// Bytes from there on, which are in no count.
    pub opaque: u64,
}

/// What is in an RDB file that was walked to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RdbSummary {
    /// Whose format.
    pub magic: RdbMagic,
    /// The format's version.
    pub version: u32,
    /// Auxiliary fields, such as `redis-ver`, `ctime`, `used-mem`, `repl-stream-db`.
    pub aux: BTreeMap<String, String>,
    /// By number, those that have keys.
    pub databases: BTreeMap<u64, RdbDatabase>,
    /// Libraries of functions.
    pub functions: u64,
    /// Modules that a server must have loaded to load this file.
    pub modules: BTreeSet<String>,
    /// Nested encodings too large to look into.
    pub unwalked: u64,
    /// Where the walk ended early, if it did.
    pub stopped: Option<WalkStop>,
    /// Whether the checksum was compared.
    pub checksum: RdbChecksum,
    /// The length of the file.
    pub bytes: u64,
}

impl RdbSummary {
    /// All keys.
    #[must_use]
    pub fn keys(&self) -> u64 {
        self.databases.values().fold(0, |sum, database| sum.saturating_add(database.keys))
    }

    /// The server that wrote it, as it says itself.
    #[must_use]
    pub fn server_version(&self) -> Option<&str> {
        self.aux.get("redis-ver").or_else(|| self.aux.get("valkey-ver")).map(String::as_str)
    }

    /// The database that the replication stream was in when the snapshot was made; the commands that follow begin
    /// there.
    #[must_use]
    pub fn stream_database(&self) -> Option<u32> {
        self.aux.get("repl-stream-db")?.parse().ok()
    }

    /// What the reader of a report should know, in a line each.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if let Some(stopped) = &self.stopped {
            warnings.push(format!(
                "not walked beyond byte {}: code {} belongs to a newer format than this walkeep knows; {} bytes are \
                    stored as they came",
                stopped.at, stopped.code, stopped.opaque
            ));
        }
        if self.unwalked > 0 {
            warnings.push(format!("{} nested encodings are larger than what is looked into", self.unwalked));
        }
        if !self.modules.is_empty() {
            let names: Vec<&str> = self.modules.iter().map(String::as_str).collect();
            warnings.push(format!("loads only into a server with the modules {}", names.join(", ")));
        }
        if self.checksum == RdbChecksum::Disabled {
            warnings.push("has no checksum: the server has rdbchecksum off".to_owned());
        }
        warnings
    }
}
