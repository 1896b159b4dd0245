//! `[redis.NAME]`: one instance.

use std::path::{Path, PathBuf};

use toml::de::DeValue;

use super::environment::ProcessEnvironment;
use super::error::ConfigError;
use super::secret::Secret;
use super::section::{ConfigSection, ConfigText, UnreadSection};
use super::value_syntax;
use crate::base::clock::SharedClock;
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::redis::archive::layout::InstanceName;
use crate::redis::wire::{
    self, RedisAddress, RedisEndpoint, RedisLogin, RedisPassword, RedisTlsFiles, Sentinels, parse_redis_url,
};

const REDIS_KEYS: [&str; 13] = [
    "url",
    "sentinels",
    "master",
    "tls",
    "user",
    "password-file",
    "password-env",
    "sentinel-user",
    "sentinel-password-file",
    "tls-ca-file",
    "tls-cert-file",
    "tls-key-file",
    "backup",
];
/// Keys that mean something only where TLS is spoken.
const TLS_FILE_KEYS: [&str; 3] = ["tls-ca-file", "tls-cert-file", "tls-key-file"];
/// The port of a Sentinel that is not told otherwise.
const DEFAULT_SENTINEL_PORT: u16 = 26379;
/// A password is one short line; more than this is some other file.
const MAX_PASSWORD_BYTES: u64 = 4096;

/// One Redis or Valkey instance.
#[derive(Clone, Debug)]
pub struct InstanceConfig {
    /// Its name here and in the repository.
    pub name: InstanceName,
    /// Where it is, if it is always there.
    pub url: Option<Secret>,
    /// The Sentinels that know where it is.
    pub sentinels: Vec<RedisAddress>,
    /// What they call it.
    pub master: Option<String>,
    /// When a backup is due, as a cron line in UTC.
    pub backup: Option<String>,
    tls: bool,
    user: Option<String>,
    password: Option<PasswordSource>,
    sentinel_user: Option<String>,
    sentinel_password: Option<PasswordSource>,
    files: RedisTlsFiles,
}

/// Where a password comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
enum PasswordSource {
    File(PathBuf),
    Env(String),
}

/// A password that could not be had.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// The file can't be read.
    #[error("cannot read the password file {}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The variable is not set.
    #[error("the password's variable {0} is not set")]
    Variable(String),
}

impl HasKind for PasswordError {
    fn kind(&self) -> ErrorKind {
        match self {
            PasswordError::File { .. } | PasswordError::Variable(_) => ErrorKind::Usage,
        }
    }
}

impl InstanceConfig {
    pub(super) fn read(source: &ConfigText<'_>, child: &UnreadSection<'_>) -> Result<InstanceConfig, ConfigError> {
        let name: InstanceName =
            value_syntax::parse_name(child.name.value).map_err(|why| source.error(child.name.offset, why))?;
        let section = ConfigSection::open(source, format!("[redis.{name}]"), child.value, &REDIS_KEYS)?;
        let tls = section.flag("tls")?.unwrap_or(false);
        let url = parse_url_key(source, &section)?;
        let sentinels = parse_sentinels(source, &section, tls)?;
        let text = |key| Ok::<_, ConfigError>(section.text(key)?.map(|text| text.value.to_owned()));
        let master = text("master")?;
        match (&url, sentinels.is_empty(), &master) {
            (Some(_), true, None) | (None, false, Some(_)) => {}
            (Some(_), ..) => {
                let message = "url and Sentinels are two ways to find it; keep url, or sentinels with master";
                return Err(section.error("url", message));
            }
            (None, false, None) => {
                return Err(
                    section.error("sentinels", "the Sentinels need the master's name; add master = \"mymaster\"")
                );
            }
            (None, true, _) => {
                let message = format!(
                    "{} says not where it is; add url = \"redis://127.0.0.1:6379\", or sentinels and master",
                    section.name()
                );
                return Err(section.error("master", message));
            }
        }
        if url.is_none()
            && !tls
            && let Some(key) = TLS_FILE_KEYS.iter().find(|key| section.has(key))
        {
            return Err(
                section.error(key, format!("{key} needs tls = true, for the Sentinels and the servers they name"))
            );
        }
        let folder = source.folder();
        let file = |key| Ok::<_, ConfigError>(section.text(key)?.map(|path| folder.join(path.value)));
        let password = match (file("password-file")?, text("password-env")?) {
            (Some(_), Some(_)) => {
                return Err(section.error("password-env", "password-file and password-env both give it; keep one"));
            }
            (Some(path), None) => Some(PasswordSource::File(path)),
            (None, name) => name.map(PasswordSource::Env),
        };
        let files =
            RedisTlsFiles { ca: file("tls-ca-file")?, certificate: file("tls-cert-file")?, key: file("tls-key-file")? };
        if files.certificate.is_some() != files.key.is_some() {
            return Err(section.error("tls-cert-file", "tls-cert-file and tls-key-file go together"));
        }
        Ok(InstanceConfig {
            name,
            url,
            sentinels,
            master,
            backup: section.parsed("backup", value_syntax::parse_schedule)?,
            tls,
            user: text("user")?,
            password,
            sentinel_user: text("sentinel-user")?,
            sentinel_password: file("sentinel-password-file")?.map(PasswordSource::File),
            files,
        })
    }

    /// How to find and enter it.
    ///
    /// # Errors
    /// A password cannot be had.
    pub fn redis_source(
        &self,
        environment: &ProcessEnvironment,
        clock: &SharedClock,
    ) -> Result<wire::RedisSource, PasswordError> {
        let fetch = |source: &Option<PasswordSource>| source.as_ref().map(|from| from.fetch(environment)).transpose();
        let own = RedisLogin { user: self.user.clone(), password: fetch(&self.password)? };
        let server =
            |address, login| RedisEndpoint::new(address, login, self.files.clone(), std::sync::Arc::clone(clock));
        // It was read once already, so it is well-formed.
        if let Some(Ok((address, login))) = self.url.as_ref().map(|url| parse_redis_url(url.reveal())) {
            let user = login.user.or(own.user);
            let password = login.password.or(own.password);
            return Ok(wire::RedisSource::Fixed(server(address, RedisLogin { user, password })));
        }
        let nowhere = RedisAddress::Tcp { host: String::new(), port: 0, tls: self.tls };
        let login = RedisLogin { user: self.sentinel_user.clone(), password: fetch(&self.sentinel_password)? };
        let (addresses, master) = (self.sentinels.clone(), self.master.clone().unwrap_or_default());
        Ok(wire::RedisSource::Sentinels(Sentinels::new(addresses, master, login, server(nowhere, own))))
    }
}

impl PasswordSource {
    fn fetch(&self, environment: &ProcessEnvironment) -> Result<RedisPassword, PasswordError> {
        match self {
            PasswordSource::Env(name) => {
                environment.get(name).map(RedisPassword::new).ok_or_else(|| PasswordError::Variable(name.clone()))
            }
            PasswordSource::File(path) => password_from_file(path),
        }
    }
}

fn password_from_file(path: &Path) -> Result<RedisPassword, PasswordError> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |source| PasswordError::File { path: path.to_owned(), source };
    let other = |why: &str| failed(std::io::Error::other(why.to_owned()));
    let metadata = std::fs::metadata(path).map_err(failed)?;
    if metadata.permissions().mode() & 0o007 != 0 {
        return Err(other("others can read it; run chmod 600 on it"));
    }
    if metadata.len() > MAX_PASSWORD_BYTES {
        return Err(other("it is too long for a password"));
    }
    let text = zeroize::Zeroizing::new(std::fs::read_to_string(path).map_err(failed)?);
    let word = text.trim_end_matches(['\r', '\n']);
    if word.is_empty() { Err(other("it is empty")) } else { Ok(RedisPassword::new(word)) }
}

/// Where it always is. The messages quote nothing of the URL, in which there may be a password.
fn parse_url_key(source: &ConfigText<'_>, section: &ConfigSection<'_, '_>) -> Result<Option<Secret>, ConfigError> {
    let Some(text) = section.text("url")? else { return Ok(None) };
    let (address, login) =
        parse_redis_url(text.value).map_err(|why| source.error(text.offset, format!("url: {why}")))?;
    if login.password.is_some() && (section.has("password-file") || section.has("password-env")) {
        return Err(source.error(text.offset, "the url and a key of its own both give a password; keep one"));
    }
    if login.user.is_some() && section.has("user") {
        return Err(section.error("user", "the url and user both name a user; keep one"));
    }
    // What was meant to be encrypted must not go out in clear.
    let tls = matches!(address, RedisAddress::Tcp { tls: true, .. });
    match section.flag("tls")? {
        Some(true) if !tls => return Err(section.error("tls", "tls = true needs a rediss:// url")),
        Some(false) if tls => {
            return Err(section.error("tls", "tls = false and a rediss:// url contradict each other; keep one"));
        }
        _ => {}
    }
    match TLS_FILE_KEYS.iter().find(|key| !tls && section.has(key)) {
        Some(key) => Err(section.error(key, format!("{key} needs a rediss:// url"))),
        None => Ok(Some(Secret::new(text.value))),
    }
}

/// `sentinels = ["host:26379", …]`.
fn parse_sentinels(
    source: &ConfigText<'_>,
    section: &ConfigSection<'_, '_>,
    tls: bool,
) -> Result<Vec<RedisAddress>, ConfigError> {
    let Some(value) = section.raw("sentinels") else { return Ok(Vec::new()) };
    let shape = "sentinels is a list like [\"10.0.0.1:26379\", \"10.0.0.2:26379\"]";
    let DeValue::Array(items) = value.get_ref() else { return Err(source.error(value.span().start, shape)) };
    let mut found = Vec::new();
    for item in items.iter() {
        let wrong = || source.error(item.span().start, shape);
        let text = item.get_ref().as_str().ok_or_else(wrong)?;
        let (host, port) = match text.rsplit_once(':') {
            // A bare IPv6 address has colons of its own.
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                (host, port.parse().ok().ok_or_else(wrong)?)
            }
            _ => (text, DEFAULT_SENTINEL_PORT),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() || host.contains('/') {
            return Err(wrong());
        }
        found.push(RedisAddress::Tcp { host: host.to_owned(), port, tls });
    }
    if found.is_empty() { Err(source.error(value.span().start, shape)) } else { Ok(found) }
}
