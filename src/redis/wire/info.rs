//! `INFO`: what a server says of itself, as `name:value` lines.

use std::collections::BTreeMap;

use crate::redis::format::flavour::ServerFlavour;

/// The lines of `INFO`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ServerInfo(BTreeMap<String, String>);

impl ServerInfo {
    /// Reads the text of the reply. Lines of a later server that are no pairs are passed over.
    #[must_use]
    pub fn parse(text: &str) -> ServerInfo {
        let pairs = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(':'));
        ServerInfo(pairs.map(|(name, value)| (name.to_owned(), value.trim_end().to_owned())).collect())
    }

    /// A value by its name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A value that is a number.
    #[must_use]
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.parse().ok()
    }

    /// Whose server it is.
    #[must_use]
    pub fn flavour(&self) -> ServerFlavour {
        if self.get("valkey_version").is_some() { ServerFlavour::Valkey } else { ServerFlavour::Redis }
    }

    /// Its own version, not the one it is compatible with.
    #[must_use]
    pub fn version(&self) -> &str {
        self.get("valkey_version").or_else(|| self.get("redis_version")).unwrap_or("?")
    }

    /// Whether it is a master.
    #[must_use]
    pub fn is_master(&self) -> bool {
        self.get("role") == Some("master")
    }

    /// Whether it is a replica whose link to its master is up, and heard from within `seconds`.
    #[must_use]
    pub fn is_healthy_replica(&self, seconds: u64) -> bool {
        self.get("role") == Some("slave")
            && self.get("master_link_status") == Some("up")
            && self.number("master_sync_in_progress") == Some(0)
            && self.number("master_last_io_seconds_ago").is_some_and(|ago| ago <= seconds)
    }

    /// Whether it is one shard of a Redis Cluster: it has some of the keys, and the other shards have their own
    /// histories of writes.
    #[must_use]
    pub fn is_shard(&self) -> bool {
        self.number("cluster_enabled") == Some(1)
    }

    /// What is wrong with the server's own persistence. It says so here and nowhere else (TRAPS 71): a snapshot's file
    /// keeps its old date.
    #[must_use]
    pub fn persistence_trouble(&self) -> Option<String> {
        let failed = |name: &str| self.get(name).is_some_and(|status| status != "ok");
        let since =
            self.number("rdb_last_save_time").and_then(|s| jiff::Timestamp::from_second(i64::try_from(s).ok()?).ok());
        let since = since.map(|time| format!(" (last good one: {time})")).unwrap_or_default();
        if failed("rdb_last_bgsave_status") {
            return Some(format!(
                "the server's own BGSAVE fails{since}: rdb_last_bgsave_status is not ok; see its log"
            ));
        }
        if failed("aof_last_write_status") || failed("aof_last_bgrewrite_status") {
            return Some("the server cannot write its append-only file: see its log".to_owned());
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::{ServerFlavour, ServerInfo};

    #[test]
    fn a_server_is_known_by_its_lines() {
        let redis =
            ServerInfo::parse("# Server\r\nredis_version:7.0.15\r\nrun_id:ab\r\n\r\n# Replication\r\nrole:master\r\n");
        assert_eq!((redis.flavour(), redis.version(), redis.is_master()), (ServerFlavour::Redis, "7.0.15", true));
        let valkey = ServerInfo::parse("redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.0.0\r\n");
        assert_eq!((valkey.flavour(), valkey.version()), (ServerFlavour::Valkey, "9.0.0"));
    }

    #[test]
    fn a_replica_is_healthy_only_with_its_master() {
        let text = "role:slave\nmaster_link_status:up\nmaster_sync_in_progress:0\nmaster_last_io_seconds_ago:1\n";
        assert!(ServerInfo::parse(text).is_healthy_replica(10));
        for (from, to) in [("up", "down"), ("progress:0", "progress:1"), ("ago:1", "ago:11"), ("slave", "master")] {
            assert!(!ServerInfo::parse(&text.replace(from, to)).is_healthy_replica(10), "{to}");
        }
    }

    #[test]
    fn a_failed_save_is_seen() {
        assert_eq!(
            ServerInfo::parse("rdb_last_bgsave_status:ok\naof_last_write_status:ok").persistence_trouble(),
            None
        );
        let trouble =
            ServerInfo::parse("rdb_last_bgsave_status:err\nrdb_last_save_time:0").persistence_trouble().unwrap();
        assert!(trouble.contains("1970-01-01"), "{trouble}");
    }
}
