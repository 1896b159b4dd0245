//! Redis or Valkey.

/// Whose server it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ServerFlavour {
    /// Redis.
    Redis,
    /// Valkey, whose `redis_version` is what it is compatible with.
    Valkey,
}

impl std::fmt::Display for ServerFlavour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ServerFlavour::Redis => "Redis",
            ServerFlavour::Valkey => "Valkey",
        })
    }
}
