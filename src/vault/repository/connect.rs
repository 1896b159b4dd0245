//! From a URL and settings to a store.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as StorePath;
use object_store::{BackoffConfig, ClientConfigKey, ObjectStore, RetryConfig};
use url::Url;

use super::error::{RepositoryError, StoreCall};
use super::key;
use super::options::RepositoryOptions;
use super::retrying_store::{ObjectStoreKind, RetryingStore};
use crate::base::durable;

/// Whether there should be a repository at the URL.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum ConnectIntent {
    Create,
    Open,
}

/// Makes the client of one kind of store.
type StoreFactory = fn(&str, &RepositoryOptions) -> Result<Arc<dyn ObjectStore>, RepositoryError>;

/// One request with all its bytes may take this long before the client gives up on it. It must not cut off what
/// [`super::options::RepositoryLimits`] still allows for the largest object over an ordinary link (350 MB of a
/// compressed 1 GiB segment at 1.2 MB/s). The setting `timeout` changes it.
const REQUEST_TIMEOUT: &str = "300s";

/// Connects to the store behind `url`.
///
/// # Errors
/// [`RepositoryError::BadUrl`] if the URL or the settings make no sense; for a local folder also what the file system
/// said.
pub(super) fn connect(
    url: &str,
    options: &RepositoryOptions,
    intent: ConnectIntent,
) -> Result<RetryingStore, RepositoryError> {
    #[cfg(test)]
    if let Some(store) = &options.store {
        let kind = ObjectStoreKind::Remote { suffix_ranges: true };
        return Ok(RetryingStore::new(Arc::clone(store), StorePath::default(), kind, url.into(), options));
    }
    if url.starts_with('/') {
        return connect_local(Path::new(url), options, intent);
    }
    let parsed = Url::parse(url).map_err(|e| bad_url(url, &e))?;
    let shown = redacted_url(&parsed);
    let bad = |why: &dyn Display| bad_url(&shown, why);
    let base = || StorePath::from_url_path(parsed.path()).map_err(|e| bad(&e));
    let remote = |make: StoreFactory, suffix_ranges| {
        // The network client uses the process's provider; if another part has set it already, that is as good.
        drop(rustls::crypto::ring::default_provider().install_default());
        let store = make(&shown, options)?;
        Ok(RetryingStore::new(
            store,
            base()?,
            ObjectStoreKind::Remote { suffix_ranges },
            shown.as_str().into(),
            options,
        ))
    };
    match parsed.scheme() {
        "file" => match parsed.to_file_path() {
            Ok(path) if path.parent().is_some() => connect_local(&path, options, intent),
            _ => Err(bad(&"a local repository is written file:///absolute/path")),
        },
        "memory" => Ok(RetryingStore::new(
            Arc::new(InMemory::new()),
            StorePath::default(),
            ObjectStoreKind::Memory,
            shown.as_str().into(),
            options,
        )),
        "s3" | "s3a" | "gs" | "az" | "azure" | "abfs" | "abfss" if parsed.host_str().is_none_or(str::is_empty) => {
            Err(bad(&"the bucket is missing; write scheme://bucket/path"))
        }
        "s3" | "s3a" => remote(connect_s3, true),
        "gs" => remote(connect_gs, true),
        // Azure's client refuses to ask for "the last n bytes".
        "az" | "azure" | "abfs" | "abfss" => remote(connect_azure, false),
        other => Err(bad(&format_args!("{other:?} is none of file, s3, gs and az"))),
    }
}

fn connect_local(
    path: &Path,
    options: &RepositoryOptions,
    intent: ConnectIntent,
) -> Result<RetryingStore, RepositoryError> {
    let url: Arc<str> = format!("file://{}", path.display()).into();
    let call = StoreCall { action: "open", key: "", url: &url };
    if intent == ConnectIntent::Create {
        // Only the owner: WAL holds what the tables hold, and encryption may be off.
        durable::create_dir_all(path, 0o700).map_err(|e| call.file_error(e))?;
        let foreign = std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
        if foreign && !path.join(key::marker_key().as_str()).exists() {
            return Err(bad_url(&url, &"the folder holds other files; choose an empty or a new one"));
        }
    }
    if !path.is_dir() {
        return Err(RepositoryError::NoRepository { url });
    }
    let store = LocalFileSystem::new_with_prefix(path).map_err(|e| call.store_error(e))?.with_fsync(true);
    let root: PathBuf = path.to_owned();
    Ok(RetryingStore::new(Arc::new(store), StorePath::default(), ObjectStoreKind::Local { root }, url, options))
}

fn connect_s3(url: &str, options: &RepositoryOptions) -> Result<Arc<dyn ObjectStore>, RepositoryError> {
    let mut builder = AmazonS3Builder::new().with_url(url).with_retry(retry_config(options));
    for (key, value) in store_settings::<AmazonS3ConfigKey>(url, options, "AWS_")? {
        builder = builder.with_config(key, value);
    }
    let allowed = builder.get_config_value(&AmazonS3ConfigKey::Client(ClientConfigKey::AllowHttp));
    ensure_http_allowed(url, builder.get_config_value(&AmazonS3ConfigKey::Endpoint), allowed)?;
    builder.build().map(|store| Arc::new(store) as Arc<dyn ObjectStore>).map_err(|e| bad_url(url, &e))
}

/// Without this each request would fail, as if the store did not answer.
fn ensure_http_allowed(url: &str, endpoint: Option<String>, allowed: Option<String>) -> Result<(), RepositoryError> {
    let plain = endpoint.filter(|endpoint| endpoint.starts_with("http://"));
    match plain {
        Some(endpoint) if allowed.as_deref() != Some("true") => Err(bad_url(
            url,
            &format_args!(
                "its endpoint {endpoint} is not encrypted; use https://, or set allow-http = true if you trust the \
                    network"
            ),
        )),
        _ => Ok(()),
    }
}

fn connect_gs(url: &str, options: &RepositoryOptions) -> Result<Arc<dyn ObjectStore>, RepositoryError> {
    let mut builder = GoogleCloudStorageBuilder::new().with_url(url).with_retry(retry_config(options));
    for (key, value) in store_settings::<GoogleConfigKey>(url, options, "GOOGLE_")? {
        builder = builder.with_config(key, value);
    }
    builder.build().map(|store| Arc::new(store) as Arc<dyn ObjectStore>).map_err(|e| bad_url(url, &e))
}

fn connect_azure(url: &str, options: &RepositoryOptions) -> Result<Arc<dyn ObjectStore>, RepositoryError> {
    let mut builder = MicrosoftAzureBuilder::new().with_url(url).with_retry(retry_config(options));
    for (key, value) in store_settings::<AzureConfigKey>(url, options, "AZURE_")? {
        builder = builder.with_config(key, value);
    }
    let allowed = builder.get_config_value(&AzureConfigKey::Client(ClientConfigKey::AllowHttp));
    ensure_http_allowed(url, builder.get_config_value(&AzureConfigKey::Endpoint), allowed)?;
    builder.build().map(|store| Arc::new(store) as Arc<dyn ObjectStore>).map_err(|e| bad_url(url, &e))
}

/// The store's settings: those of the environment that begin with its prefix and that it knows, then the explicit ones,
/// all of which it must know.
fn store_settings<K: FromStr>(
    url: &str,
    options: &RepositoryOptions,
    prefix: &str,
) -> Result<Vec<(K, String)>, RepositoryError> {
    let known = |name: &str| name.to_ascii_lowercase().parse::<K>().ok();
    let mut settings: Vec<(K, String)> =
        known("timeout").map(|k| (k, REQUEST_TIMEOUT.to_owned())).into_iter().collect();
    let ours = |environment: &BTreeMap<String, String>| -> Vec<(String, String)> {
        environment.iter().filter(|(name, _)| name.starts_with(prefix)).map(|(n, v)| (n.clone(), v.clone())).collect()
    };
    for (name, value) in ours(&options.environment) {
        settings.extend(known(&name).map(|key| (key, value)));
    }
    for (name, value) in &options.settings {
        let key = known(name).ok_or_else(|| bad_url(url, &format_args!("it has no setting {name:?}")))?;
        settings.push((key, value.clone()));
    }
    Ok(settings)
}

/// How the client itself repeats a request that was refused (5xx, 429, 408) or found no connection.
fn retry_config(options: &RepositoryOptions) -> RetryConfig {
    let limit = options.limits.client_retry;
    RetryConfig { backoff: BackoffConfig::default(), max_retries: 6, retry_timeout: limit }
}

fn bad_url(url: &str, why: &dyn Display) -> RepositoryError {
    let shown = Url::parse(url).map_or_else(|_| url.to_owned(), |url| redacted_url(&url));
    RepositoryError::BadUrl { url: shown.into(), why: why.to_string() }
}

/// The URL without a password or a query, which may be a signature.
fn redacted_url(url: &Url) -> String {
    let mut shown = url.clone();
    // Refused only where there can be no user or password.
    let _no_user = shown.set_password(None).is_err();
    shown.set_query(None);
    shown.set_fragment(None);
    shown.to_string()
}
