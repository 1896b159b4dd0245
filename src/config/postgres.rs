//! `[postgres.NAME]`: one cluster.

use std::time::Duration;

use super::environment::ProcessEnvironment;
use super::error::ConfigError;
use super::secret::Secret;
use super::section::{ConfigSection, ConfigText, UnreadSection};
use super::value_syntax;
use crate::postgres::archive::layout::ClusterName;
use crate::postgres::receive::{AcknowledgePolicy, ReceiveSettings};
use crate::postgres::wire::{Conninfo, ConninfoError, SlotName};
use crate::vault::RequiredCopies;

/// The slot and the application name that the receiver has unless the configuration names others, so that
/// `synchronous_standby_names = 'walkeep'` works as it stands.
const DEFAULT_SLOT: &str = "walkeep";
/// The database in which settings and privileges are looked up unless the connection names one: it is in every cluster.
const DEFAULT_DATABASE: &str = "postgres";
const POSTGRES_KEYS: [&str; 6] = ["connection", "slot", "application-name", "backup", "acknowledge", "copy-every"];

/// One PostgreSQL cluster.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    /// Its name here and in the repository.
    pub name: ClusterName,
    /// How to reach it; without, the cluster is fed by `archive_command` alone.
    pub connection: Option<Secret>,
    /// The physical replication slot that holds WAL for the receiver.
    pub slot: SlotName,
    /// The name that `synchronous_standby_names` sees.
    pub application_name: String,
    /// When a backup is due, as a cron line in UTC.
    pub backup: Option<String>,
    /// What the receiver's acknowledgement means.
    pub acknowledge: AcknowledgePolicy,
    /// The repositories that must have WAL before it counts as archived.
    pub required: RequiredCopies,
    /// How often new WAL goes to the repositories before its segment is whole; `None` for never.
    pub copy_every: Option<Duration>,
}

/// `acknowledge`: one of two words, or a table of repositories of which some are enough.
fn read_acknowledge(
    source: &ConfigText<'_>,
    section: &ConfigSection<'_, '_>,
    repositories: &[&str],
) -> Result<(AcknowledgePolicy, RequiredCopies), ConfigError> {
    if let Some(value) = section.raw("acknowledge").filter(|value| value.get_ref().as_table().is_some()) {
        let name = format!("acknowledge of {}", section.name());
        let table = ConfigSection::open(source, name, value, &["repositories", "at-least"])?;
        let named = table.names("repositories", repositories)?;
        let Some(named) = named else {
            return Err(table.error("repositories", "acknowledge needs repositories = [\"NAME\", …]"));
        };
        let count = table.count("at-least", 1..=named.len())?.unwrap_or(named.len());
        return Ok((AcknowledgePolicy::Repository, RequiredCopies::Of { repositories: named, count }));
    }
    let words = [("spool", (AcknowledgePolicy::Spool, false)), ("repository", (AcknowledgePolicy::Repository, true))];
    let (policy, all) = section.choice("acknowledge", &words)?.unwrap_or_default();
    Ok((policy, if all { RequiredCopies::All } else { RequiredCopies::Any }))
}

impl ClusterConfig {
    /// `repositories`: the names of those that are configured.
    pub(super) fn read(
        source: &ConfigText<'_>,
        child: &UnreadSection<'_>,
        repositories: &[&str],
    ) -> Result<ClusterConfig, ConfigError> {
        let name: ClusterName =
            value_syntax::parse_name(child.name.value).map_err(|why| source.error(child.name.offset, why))?;
        let section = ConfigSection::open(source, format!("[postgres.{name}]"), child.value, &POSTGRES_KEYS)?;
        let connection = section.text("connection")?.map(|text| text.and_then(source, parse_connection)).transpose()?;
        let connection = connection.map(|located| located.value);
        let slot = section.parsed("slot", |text| SlotName::new(text).map_err(|bad| bad.to_string()))?;
        let default_slot = || SlotName::new(DEFAULT_SLOT).map_err(|bad| section.error("slot", bad.to_string()));
        let application_name = section.text("application-name")?.map(|text| text.value.to_owned());
        let backup = section.parsed("backup", value_syntax::parse_schedule)?;
        let (acknowledge, required) = read_acknowledge(source, &section, repositories)?;
        let copy_every = section.parsed("copy-every", value_syntax::parse_pause)?;
        if connection.is_none()
            // Without a connection it says when `archive-push` succeeds.
            && let Some(key) = POSTGRES_KEYS.iter().find(|key| **key != "acknowledge" && section.has(key))
        {
            let message = format!("{key} of {} needs a connection; add one, or leave {key} out", section.name());
            return Err(section.error(key, message));
        }
        Ok(ClusterConfig {
            name,
            connection,
            slot: slot.map_or_else(default_slot, Ok)?,
            application_name: application_name.unwrap_or_else(|| DEFAULT_SLOT.to_owned()),
            backup,
            acknowledge,
            required,
            copy_every: copy_every.unwrap_or(Some(ReceiveSettings::DEFAULT_COPY_INTERVAL)),
        })
    }

    /// The connection with what the environment and walkeep's defaults add to it; `None` if the cluster has none.
    ///
    /// # Errors
    /// [`ConninfoError`] where a `PG*` variable makes no sense.
    pub fn conninfo(&self, environment: &ProcessEnvironment) -> Result<Option<Conninfo>, ConninfoError> {
        let Some(connection) = &self.connection else { return Ok(None) };
        let mut info = Conninfo::parse(connection.reveal(), &environment.postgres_variables())?;
        info.application_name.get_or_insert_with(|| self.application_name.clone());
        info.dbname.get_or_insert_with(|| DEFAULT_DATABASE.to_owned());
        Ok(Some(info))
    }
}

/// A connection string whose grammar is right. Its messages quote no values, which may be passwords.
fn parse_connection(text: &str) -> Result<Secret, String> {
    Conninfo::parse(text, &std::collections::BTreeMap::new()).map(|_| Secret::new(text)).map_err(|bad| bad.to_string())
}
