//! `[postgres.NAME]`: one cluster.

use super::error::ConfigError;
use super::secret::Secret;
use super::section::{Child, Section, Source};
use super::value;
use crate::repository::layout::ClusterName;

/// The slot and the application name that the receiver has unless the configuration names others, so that
/// `synchronous_standby_names = 'walkeep'` works as it stands.
pub(super) const DEFAULT_SLOT: &str = "walkeep";
/// PostgreSQL's limit for the names of slots (`NAMEDATALEN` less the zero byte).
const SLOT_MAX: usize = 63;
const KEYS: [&str; 5] = ["connection", "slot", "application-name", "backup", "acknowledge"];

/// One PostgreSQL cluster.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Its name here and in the repository.
    pub name: ClusterName,
    /// How to reach it; without, the cluster is fed by `archive_command` alone.
    pub connection: Option<Secret>,
    /// The physical replication slot that holds WAL for the receiver.
    pub slot: String,
    /// The name that `synchronous_standby_names` sees.
    pub application_name: String,
    /// When a backup is due, as a cron line in UTC.
    pub backup: Option<String>,
    /// What the receiver's acknowledgement means.
    pub acknowledge: Acknowledge,
}

/// Where WAL must be durable before the receiver reports it as flushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Acknowledge {
    /// In the spool on this machine's disk.
    #[default]
    Spool,
    /// In every repository.
    Repository,
}

impl Cluster {
    pub(super) fn read(source: &Source<'_>, child: &Child<'_>) -> Result<Cluster, ConfigError> {
        let name = value::name(child.name.value).map_err(|why| source.error(child.name.offset, why))?;
        let section = Section::open(source, format!("[postgres.{name}]"), child.value, &KEYS)?;
        let connection = section.text("connection")?.map(|text| Secret::new(text.value));
        let slot = section.parsed("slot", slot)?;
        let application_name = section.text("application-name")?.map(|text| text.value.to_owned());
        let backup = section.parsed("backup", value::schedule)?;
        let words = [("spool", Acknowledge::Spool), ("repository", Acknowledge::Repository)];
        let acknowledge = section.choice("acknowledge", &words)?;
        if connection.is_none()
            && let Some(key) = KEYS.iter().find(|key| section.has(key))
        {
            let message = format!("{key} of {} needs a connection; add one, or leave {key} out", section.name());
            return Err(section.error(key, message));
        }
        Ok(Cluster {
            name,
            connection,
            slot: slot.unwrap_or_else(|| DEFAULT_SLOT.to_owned()),
            application_name: application_name.unwrap_or_else(|| DEFAULT_SLOT.to_owned()),
            backup,
            acknowledge: acknowledge.unwrap_or_default(),
        })
    }
}

/// A slot's name as PostgreSQL allows it (`ReplicationSlotValidateName`, slot.c).
fn slot(text: &str) -> Result<String, String> {
    let fits =
        text.len() <= SLOT_MAX && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
    if fits {
        Ok(text.to_owned())
    } else {
        Err(format!("PostgreSQL allows up to {SLOT_MAX} lower-case letters, digits and _"))
    }
}
