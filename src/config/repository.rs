//! `[repository.NAME]`: where archives are kept, and how to reach them.

use crate::postgres::archive::layout::ClusterName;
use std::collections::BTreeMap;

use jiff::SignedDuration;
use url::Url;

use super::error::ConfigError;
use super::secret::Secret;
use super::section::{ConfigSection, ConfigText, UnreadSection, nearest_name};
use super::value_syntax;

/// One place where everything is stored.
#[derive(Clone, Debug)]
pub struct RepositoryConfig {
    /// The name it has in the configuration.
    pub name: String,
    /// Where it is.
    pub url: Url,
    /// How far back every moment stays restorable; for ever if not given.
    pub retention: Option<SignedDuration>,
    /// How many backups that can be restored stay at least; 1 if not given.
    pub minimum_backups: usize,
    /// Credentials and endpoint from the file, under the names `object_store` gives them. The environment's are not
    /// among them.
    pub settings: BTreeMap<String, Secret>,
}

/// More than a backup every hour for a year leaves.
const MAX_MINIMUM_BACKUPS: usize = 10_000;

/// A setting of a store: its name here, and its name in `object_store`.
type StoreSetting = (&'static str, &'static str);

const S3_SETTINGS: [StoreSetting; 6] = [
    ("endpoint", "aws_endpoint"),
    ("region", "aws_region"),
    ("access-key-id", "aws_access_key_id"),
    ("secret-access-key", "aws_secret_access_key"),
    ("session-token", "aws_session_token"),
    ("allow-http", "allow_http"),
];
const GCS_SETTINGS: [StoreSetting; 1] = [("service-account", "google_service_account")];
const AZURE_SETTINGS: [StoreSetting; 4] = [
    ("account-name", "azure_storage_account_name"),
    ("account-key", "azure_storage_account_key"),
    ("sas-token", "azure_storage_sas_key"),
    ("endpoint", "azure_storage_endpoint"),
];

/// The schemes, each with the settings it takes.
const SCHEMES: [(&str, &[StoreSetting]); 4] =
    [("file", &[]), ("s3", &S3_SETTINGS), ("gs", &GCS_SETTINGS), ("az", &AZURE_SETTINGS)];

impl RepositoryConfig {
    pub(super) fn read(source: &ConfigText<'_>, child: &UnreadSection<'_>) -> Result<RepositoryConfig, ConfigError> {
        let name: ClusterName =
            value_syntax::parse_name(child.name.value).map_err(|why| source.error(child.name.offset, why))?;
        let heading = format!("[repository.{name}]");
        let url_text = child.value.get_ref().get("url").and_then(|url| url.get_ref().as_str());
        let scheme = url_text
            .and_then(|text| parse_repository_url(text).ok())
            .map_or("file".to_owned(), |url| url.scheme().to_owned());
        let settings =
            SCHEMES.iter().find(|(known, _)| *known == scheme).map_or(&[] as &[StoreSetting], |(_, all)| all);
        let known: Vec<&str> =
            ["url", "retention", "minimum-backups"].into_iter().chain(settings.iter().map(|(here, _)| *here)).collect();
        let section = ConfigSection::open(source, heading, child.value, &known)?;
        let Some(url) = section.parsed("url", parse_repository_url)? else {
            let message = format!("{} has no url; add url = \"file:///var/lib/walkeep/repository\"", section.name());
            return Err(section.error("url", message));
        };
        let retention = section.parsed("retention", value_syntax::parse_duration)?;
        let minimum_backups = section.count("minimum-backups", 1..=MAX_MINIMUM_BACKUPS)?.unwrap_or(1);
        let mut stated = BTreeMap::new();
        for (here, there) in settings {
            let value = match *here {
                "allow-http" => section.flag(here)?.map(|flag| flag.to_string()),
                _ => section.text(here)?.map(|text| text.value.to_owned()),
            };
            if let Some(value) = value {
                stated.insert((*there).to_owned(), Secret::new(value));
            }
        }
        Ok(RepositoryConfig { name: name.to_string(), url, retention, minimum_backups, settings: stated })
    }
}

/// The URL of a repository. A plain absolute path is taken as `file://`.
pub fn parse_repository_url(text: &str) -> Result<Url, String> {
    if text.starts_with('/') {
        let folder = || format!("{text:?} is no folder that a URL can name");
        return Url::from_file_path(text).map_err(|()| folder());
    }
    let schemes = || SCHEMES.iter().map(|(scheme, _)| *scheme);
    let shape = "write file:///folder, s3://bucket/folder, gs://bucket/folder or az://container/folder";
    let url = Url::parse(text).map_err(|why| format!("not a URL ({why}); {shape}"))?;
    if !schemes().any(|scheme| scheme == url.scheme()) {
        let near = nearest_name(url.scheme(), schemes());
        let meant = near.map_or(shape.to_owned(), |near| format!("did you mean {near}://?"));
        return Err(format!("walkeep has no store {}://; {meant}", url.scheme()));
    }
    if url.scheme() == "file" && url.host().is_some() {
        return Err("a folder's URL has three slashes: file:///folder".to_owned());
    }
    if url.scheme() != "file" && url.host().is_none() {
        return Err(format!("the bucket is missing; {shape}"));
    }
    for (part, sign, written) in [(url.query(), '?', "%3F"), (url.fragment(), '#', "%23")] {
        if part.is_some() {
            return Err(format!("a repository's URL has no {sign} part; write the character in a name as {written}"));
        }
    }
    if url.port().is_some() {
        return Err(format!("a bucket has no port; {}", port_advice(url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("credentials do not belong into the URL; use their usual variables or keys of their own".to_owned());
    }
    Ok(url)
}

/// How the server of a store of this scheme is named.
fn port_advice(scheme: &str) -> String {
    match SCHEMES
        .iter()
        .find(|(known, settings)| *known == scheme && settings.iter().any(|(key, _)| *key == "endpoint"))
    {
        Some(_) => "name the server in a key of its own: endpoint = \"http://host:port\"".to_owned(),
        None => format!("write {scheme}://bucket/folder"),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_repository_url;

    #[test]
    fn takes_urls_and_absolute_paths() {
        for (text, means) in [
            ("/var/lib/archive", "file:///var/lib/archive"),
            ("file:///srv/a b", "file:///srv/a%20b"),
            ("s3://backups/production", "s3://backups/production"),
            ("gs://backups", "gs://backups"),
            ("az://container/x", "az://container/x"),
            ("/srv/a#b?c", "file:///srv/a%23b%3Fc"),
            ("s3://backups/a%23b", "s3://backups/a%23b"),
        ] {
            assert_eq!(parse_repository_url(text).unwrap().as_str(), means);
        }
    }

    #[test]
    fn says_what_a_wrong_url_should_be() {
        for (text, says) in [
            ("archive", "not a URL"),
            ("file://srv/archive", "three slashes"),
            ("s33://bucket", "did you mean s3://?"),
            ("ftp://host/x", "walkeep has no store ftp://"),
            ("memory:///", "walkeep has no store memory://"),
            ("s3:///production", "the bucket is missing"),
            ("s3://key:secret@bucket/x", "credentials do not belong"),
            ("file:///srv/a#b", "no # part; write the character in a name as %23"),
            ("s3://backups/a?x=secret", "no ? part; write the character in a name as %3F"),
            ("s3://backups/a?", "no ? part"),
            ("s3://backups:9000/a", "a bucket has no port; name the server in a key of its own: endpoint = "),
            ("gs://backups:9000/a", "a bucket has no port; write gs://bucket/folder"),
        ] {
            let why = parse_repository_url(text).unwrap_err();
            assert!(why.contains(says), "{text}: {why}");
            assert!(!why.contains("secret"), "{why}");
        }
    }
}
