//! Which server takes which files.

use std::fmt;

use crate::redis::format::flavour::ServerFlavour;
use crate::redis::format::rdb::RdbMagic;

/// A server's version, as far as it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RedisVersion {
    /// Whose server.
    pub flavour: ServerFlavour,
    /// As in 7.0.
    pub major: u32,
    /// As in 7.0.
    pub minor: u32,
}

impl fmt::Display for RedisVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}.{}", self.flavour, self.major, self.minor)
    }
}

impl RedisVersion {
    /// From a server's version, such as `7.0.15`.
    #[must_use]
    pub fn parse(flavour: ServerFlavour, text: &str) -> Option<RedisVersion> {
        let mut numbers = text.split('.').map(|part| part.parse().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        Some(RedisVersion { flavour, major, minor })
    }

    /// From what `redis-server --version` prints: `Redis server v=7.0.15 sha=…`.
    #[must_use]
    pub fn parse_program_output(output: &str) -> Option<RedisVersion> {
        let flavour = if output.starts_with("Valkey") { ServerFlavour::Valkey } else { ServerFlavour::Redis };
        let version = output.split_ascii_whitespace().find_map(|word| word.strip_prefix("v="))?;
        RedisVersion::parse(flavour, version)
    }

    /// Whether its append-only file is a folder of parts with a manifest (since Redis 7.0, and always in Valkey).
    #[must_use]
    pub fn has_multi_part_aof(self) -> bool {
        self.flavour == ServerFlavour::Valkey || self.major >= 7
    }

    /// The newest RDB version with Redis's magic that it loads (`RDB_VERSION` in rdb.h; Valkey 9 takes what was Redis's
    /// before they parted).
    fn newest_rdb_version(self) -> u32 {
        match (self.flavour, self.major, self.minor) {
            (ServerFlavour::Valkey, ..) => 11,
            (ServerFlavour::Redis, ..5, _) => 8,
            (ServerFlavour::Redis, 5 | 6, _) => 9,
            (ServerFlavour::Redis, 7, ..2) => 10,
            (ServerFlavour::Redis, 7, ..4) => 11,
            (ServerFlavour::Redis, 7, _) | (ServerFlavour::Redis, 8, ..6) => 12,
            // Not known yet: it takes what it wrote.
            (ServerFlavour::Redis, ..) => u32::MAX,
        }
    }

    /// Whether it loads an RDB file of this version.
    #[must_use]
    pub fn can_load(self, magic: RdbMagic, version: u32) -> bool {
        match magic {
            RdbMagic::Valkey => self.flavour == ServerFlavour::Valkey && self.major >= 9,
            RdbMagic::Redis => version <= self.newest_rdb_version(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_prints() {
        let redis =
            RedisVersion::parse_program_output("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64")
                .unwrap();
        assert_eq!(redis, RedisVersion { flavour: ServerFlavour::Redis, major: 7, minor: 0 });
        let valkey =
            RedisVersion::parse_program_output("Valkey server v=9.1.2 sha=00000000:1 malloc=libc bits=64").unwrap();
        assert_eq!((valkey.to_string(), valkey.has_multi_part_aof()), ("Valkey 9.1".to_owned(), true));
        assert_eq!(RedisVersion::parse_program_output("bash: redis-server: not found"), None);
    }

    /// Seen on real servers: 7.0 refuses RDB 11 and 12, Redis refuses `VALKEY080`.
    #[test]
    fn who_loads_what() {
        let version = |flavour, text| RedisVersion::parse(flavour, text).unwrap();
        let loads = |text, rdb| version(ServerFlavour::Redis, text).can_load(RdbMagic::Redis, rdb);
        assert!(loads("6.2.14", 9) && !loads("6.2.14", 10));
        assert!(loads("7.0.15", 10) && !loads("7.0.15", 11));
        assert!(loads("7.2.4", 11) && loads("8.2.3", 12) && !loads("8.2.3", 13));
        assert!(!version(ServerFlavour::Redis, "8.2.3").can_load(RdbMagic::Valkey, 80));
        assert!(version(ServerFlavour::Valkey, "9.1.2").can_load(RdbMagic::Valkey, 80));
        assert!(!version(ServerFlavour::Valkey, "8.0.1").can_load(RdbMagic::Valkey, 80));
        assert!(!version(ServerFlavour::Valkey, "9.1.2").can_load(RdbMagic::Redis, 12));
    }
}
