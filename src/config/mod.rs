//! The configuration file and the environment, turned into values that are known to be usable.
//!
//! The file is TOML ([`Config::read`]). Unknown keys, bad values and combinations that cannot work are refused with
//! file, line and the nearest valid name; nothing is guessed and nothing is ignored. Only this module reads the
//! process's environment.

mod section;
#[cfg(test)]
mod tests;
mod value_syntax;
mod encryption;
mod locate;
mod environment;
mod redis;
mod postgres;
mod repository;
mod repository_section;
mod error;
mod template;
mod secret;

use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

use crate::vault::seal::compress::CompressionLevel;
use section::{ConfigSection, ConfigText};

pub use encryption::{KeySource, KeySourceError};
pub use environment::ProcessEnvironment;
pub use error::ConfigError;
pub use locate::{SYSTEM_CONFIG_PATH, is_config_named, locate_config, new_config_path};
pub use postgres::ClusterConfig;
pub use redis::{InstanceConfig, PasswordError};
pub use repository::RepositoryConfig;
pub use repository::parse_repository_url;
pub use repository_section::{NewRepository, append_repository, remove_repository};
pub use secret::Secret;
pub use section::nearest_name;
pub use template::{NewConfig, render_config};
pub use value_syntax::parse_name;

/// Where the index, the spool and the control socket are unless the configuration says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/walkeep";
/// A configuration is a page of text; more than this is some other file.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// A configuration that was read and checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file it came from, as an absolute path.
    pub path: PathBuf,
    /// Where the index, the spool and the control socket are.
    pub state_dir: PathBuf,
    /// Where everything is stored; at least one, in the order of the file.
    pub repositories: Vec<RepositoryConfig>,
    /// Where the key comes from; `None` if the file switches encryption off.
    pub key: Option<KeySource>,
    /// How hard to compress.
    pub compression: CompressionLevel,
    /// The clusters, in the order of the file.
    pub clusters: Vec<ClusterConfig>,
    /// The Redis instances, in the order of the file.
    pub instances: Vec<InstanceConfig>,
    /// Sections and keys that are valid and checked, but that no command of this version acts on.
    pub idle: Vec<String>,
}

impl Config {
    /// Finds and reads the configuration: `named`, `$WALKEEP_CONFIG`, `./walkeep.toml`, `/etc/walkeep/walkeep.toml`.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and what would be right.
    pub fn read(named: Option<&Path>, environment: &ProcessEnvironment) -> Result<Config, ConfigError> {
        let path = locate_config(named, environment)?;
        let unreadable = |source| ConfigError::Unreadable { path: path.clone(), source };
        if std::fs::metadata(&path).map_err(unreadable)?.len() > MAX_CONFIG_BYTES {
            return Err(unreadable(std::io::Error::other(format!("it is longer than {MAX_CONFIG_BYTES} bytes"))));
        }
        let text = std::fs::read_to_string(&path).map_err(unreadable)?;
        let path = std::path::absolute(&path).map_err(unreadable)?;
        Config::parse(&path, &text)
    }

    /// Reads the text of a configuration that stands at `path`.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and what would be right.
    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        let source = ConfigText { path: path.to_owned(), text };
        let table = DeTable::parse(text).map_err(|error| {
            let offset = error.span().map_or(0, |span| span.start);
            source.error(offset, format!("not TOML: {}", error.message()))
        })?;
        let known = ["state-dir", "repository", "encryption", "compression", "postgres", "redis", "server"];
        let top = ConfigSection::top(&source, &table, &known)?;
        let folder = source.folder();
        let state_dir = top.text("state-dir")?.map_or(PathBuf::from(DEFAULT_STATE_DIR), |dir| folder.join(dir.value));
        let repositories = repositories(&source, &top)?;
        let clusters = clusters(&source, &top, &repositories)?;
        let instances = instances(&source, &top, &clusters)?;
        let key = match top.raw("encryption") {
            Some(value) => {
                let section =
                    ConfigSection::open(&source, "[encryption]".to_owned(), value, &encryption::ENCRYPTION_KEYS)?;
                encryption::read_section(&section, folder)?
            }
            None => {
                let message = "there is no [encryption]; name a key-file in it, or enabled = false to do without";
                return Err(ConfigError::Whole { path: source.path, message: message.to_owned() });
            }
        };
        let compression = compression(&source, &top)?;
        let idle = unused_settings(&source, &top, (&clusters, &instances))?;
        let path = source.path.clone();
        let config = Config { path, state_dir, repositories, key, compression, clusters, instances, idle };
        config.check(&source)?;
        Ok(config)
    }

    /// What each section alone cannot see.
    fn check(&self, source: &ConfigText<'_>) -> Result<(), ConfigError> {
        let whole = |message: String| ConfigError::Whole { path: source.path.clone(), message };
        for (nth, repository) in self.repositories.iter().enumerate() {
            if let Some(twin) = self.repositories.iter().take(nth).find(|other| other.url == repository.url) {
                let (one, two) = (&twin.name, &repository.name);
                return Err(whole(format!(
                    "[repository.{one}] and [repository.{two}] are the same place; keep one of them"
                )));
            }
            let folder = repository.url.to_file_path().ok().filter(|_| repository.url.scheme() == "file");
            if folder.is_some_and(|folder| self.state_dir.starts_with(folder)) {
                let message = "state-dir lies inside [repository.{}]; move one of them, their files would mix";
                return Err(whole(message.replace("{}", &repository.name)));
            }
        }
        Ok(())
    }

    /// The cluster of this name, or the only one there is.
    ///
    /// # Errors
    /// A message that names the clusters there are.
    pub fn cluster(&self, name: Option<&str>) -> Result<&ClusterConfig, ConfigError> {
        let whole = |message| ConfigError::Whole { path: self.path.clone(), message };
        let names: Vec<&str> = self.clusters.iter().map(|cluster| cluster.name.as_str()).collect();
        match (name, self.clusters.as_slice()) {
            (None, [only]) => Ok(only),
            (None, []) => Err(whole("no cluster is configured; add a section [postgres.main]".to_owned())),
            (None, _) => Err(whole(format!("several clusters are configured; name one of {}", names.join(", ")))),
            (Some(name), all) => all
                .iter()
                .find(|cluster| cluster.name.as_str() == name)
                .ok_or_else(|| whole(format!("no cluster {name:?} is configured; {}", name_advice(name, &names)))),
        }
    }
}

impl Config {
    /// The Redis instance of this name, or the only one there is.
    ///
    /// # Errors
    /// A message that names the instances there are.
    pub fn instance(&self, name: Option<&str>) -> Result<&InstanceConfig, ConfigError> {
        let whole = |message| ConfigError::Whole { path: self.path.clone(), message };
        let names: Vec<&str> = self.instances.iter().map(|instance| instance.name.as_str()).collect();
        match (name, self.instances.as_slice()) {
            (None, [only]) => Ok(only),
            (_, []) => Err(whole("no Redis instance is configured; add a section [redis.cache] with a url".to_owned())),
            (None, _) => {
                Err(whole(format!("several Redis instances are configured; name one of {}", names.join(", "))))
            }
            (Some(name), all) => all.iter().find(|instance| instance.name.as_str() == name).ok_or_else(|| {
                whole(format!("no Redis instance {name:?} is configured; {}", name_advice(name, &names)))
            }),
        }
    }

    /// What a name means where it may be either; without one the only cluster, or in a configuration without clusters
    /// the only instance.
    ///
    /// # Errors
    /// A message that names what there is.
    pub fn find_named(&self, name: Option<&str>) -> Result<NamedStore<'_>, ConfigError> {
        let Some(name) = name else {
            return match self.clusters.is_empty() && !self.instances.is_empty() {
                true => self.instance(None).map(NamedStore::Instance),
                false => self.cluster(None).map(NamedStore::Cluster),
            };
        };
        let clusters = self.clusters.iter().map(|cluster| (cluster.name.as_str(), NamedStore::Cluster(cluster)));
        let instances = self.instances.iter().map(|instance| (instance.name.as_str(), NamedStore::Instance(instance)));
        let all: Vec<(&str, NamedStore<'_>)> = clusters.chain(instances).collect();
        all.iter().find(|(known, _)| *known == name).map(|(_, meant)| *meant).ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|(known, _)| *known).collect();
            let message = format!("nothing called {name:?} is configured; {}", name_advice(name, &names));
            ConfigError::Whole { path: self.path.clone(), message }
        })
    }

    /// Everything of this name, or everything there is.
    ///
    /// # Errors
    /// As [`Config::find_named`].
    pub fn find_all_named(
        &self,
        name: Option<&str>,
    ) -> Result<(Vec<&ClusterConfig>, Vec<&InstanceConfig>), ConfigError> {
        Ok(match name.map(|name| self.find_named(Some(name))).transpose()? {
            None => (self.clusters.iter().collect(), self.instances.iter().collect()),
            Some(NamedStore::Cluster(cluster)) => (vec![cluster], Vec::new()),
            Some(NamedStore::Instance(instance)) => (Vec::new(), vec![instance]),
        })
    }
}

/// What a name means.
#[derive(Clone, Copy, Debug)]
pub enum NamedStore<'c> {
    /// A cluster.
    Cluster(&'c ClusterConfig),
    /// A Redis instance.
    Instance(&'c InstanceConfig),
}

impl NamedStore<'_> {
    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            NamedStore::Cluster(cluster) => cluster.name.as_str(),
            NamedStore::Instance(instance) => instance.name.as_str(),
        }
    }
}

/// What to say to whoever gave a name that is not one of these.
fn name_advice(name: &str, names: &[&str]) -> String {
    match nearest_name(name, names.iter().copied()) {
        Some(near) => format!("did you mean {near:?}?"),
        None if names.is_empty() => "add a section [postgres.main] or [redis.cache]".to_owned(),
        None => format!("there is {}", names.join(", ")),
    }
}

fn repositories(source: &ConfigText<'_>, top: &ConfigSection<'_, '_>) -> Result<Vec<RepositoryConfig>, ConfigError> {
    let repositories: Vec<RepositoryConfig> = top
        .children("repository")?
        .iter()
        .map(|child| RepositoryConfig::read(source, child))
        .collect::<Result<_, _>>()?;
    if repositories.is_empty() {
        let message = "there is no repository; add a section [repository.local] with a url".to_owned();
        return Err(ConfigError::Whole { path: source.path.clone(), message });
    }
    Ok(repositories)
}

fn clusters(
    source: &ConfigText<'_>,
    top: &ConfigSection<'_, '_>,
    repositories: &[RepositoryConfig],
) -> Result<Vec<ClusterConfig>, ConfigError> {
    let names: Vec<&str> = repositories.iter().map(|repository| repository.name.as_str()).collect();
    top.children("postgres")?.iter().map(|child| ClusterConfig::read(source, child, &names)).collect()
}

fn instances(
    source: &ConfigText<'_>,
    top: &ConfigSection<'_, '_>,
    clusters: &[ClusterConfig],
) -> Result<Vec<InstanceConfig>, ConfigError> {
    let mut instances = Vec::new();
    for child in top.children("redis")? {
        let name = child.name.value;
        if clusters.iter().any(|cluster| cluster.name.as_str() == name) {
            let message = format!("[redis.{name}] and [postgres.{name}] would share a folder; rename one of them");
            return Err(source.error(child.name.offset, message));
        }
        instances.push(InstanceConfig::read(source, &child)?);
    }
    Ok(instances)
}

fn compression(source: &ConfigText<'_>, top: &ConfigSection<'_, '_>) -> Result<CompressionLevel, ConfigError> {
    let Some(value) = top.raw("compression") else { return Ok(CompressionLevel::Auto) };
    let section = ConfigSection::open(source, "[compression]".to_owned(), value, &["level"])?;
    match section.raw("level").map(|level| (level.get_ref(), level.span().start)) {
        None => Ok(CompressionLevel::Auto),
        Some((DeValue::String(text), _)) if text == "auto" => Ok(CompressionLevel::Auto),
        Some((DeValue::Integer(number), offset)) => {
            let number = i64::from_str_radix(number.as_str(), number.radix()).unwrap_or(i64::MAX);
            value_syntax::parse_level(number).map_err(|why| source.error(offset, why))
        }
        Some((_, offset)) => Err(source.error(offset, "level is \"auto\" or a number without quotes, like 3")),
    }
}

/// Checks the sections that belong to the service, and names what is set but idle in this version.
fn unused_settings(
    source: &ConfigText<'_>,
    top: &ConfigSection<'_, '_>,
    (clusters, instances): (&[ClusterConfig], &[InstanceConfig]),
) -> Result<Vec<String>, ConfigError> {
    let mut idle = Vec::new();
    if let Some(value) = top.raw("server") {
        let section = ConfigSection::open(source, "[server]".to_owned(), value, &["listen"])?;
        let shape = || "write an address and a port, like \"127.0.0.1:9187\"".to_owned();
        let address = |text: &str| text.parse::<std::net::SocketAddr>().ok().ok_or_else(shape);
        section.parsed("listen", address)?;
        idle.push("[server]".to_owned());
    }
    let schedules = clusters.iter().filter(|cluster| cluster.backup.is_some());
    idle.extend(schedules.map(|cluster| format!("backup of [postgres.{}]", cluster.name)));
    let schedules = instances.iter().filter(|instance| instance.backup.is_some());
    idle.extend(schedules.map(|instance| format!("backup of [redis.{}]", instance.name)));
    Ok(idle)
}
