//! Where a restore puts files and which server is to start from them, checked before anything is written.

use std::path::{Path, PathBuf};

use super::server_start::query_server_version;
use super::write::check_free_space;
use super::{RedisConf, RedisVersion, RestoreError};
use crate::base::error_kind::{ErrorKind, HasKind};
use crate::redis::archive::RestoreRoute;
use crate::redis::wire::ServerFlavour;

/// Where distributions keep the server's configuration.
const REDIS_CONF_PATHS: [&str; 4] =
    ["/etc/redis/redis.conf", "/etc/redis.conf", "/etc/valkey/valkey.conf", "/etc/valkey.conf"];

/// Where the user wants the files, and for which server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RedisDestinationRequest {
    /// The folder.
    pub dir: PathBuf,
    /// The server program, if the user named one.
    pub program: Option<PathBuf>,
    /// The server's configuration, if the user named one.
    pub conf: Option<PathBuf>,
    /// Where else to look for a server program, such as the folders of `PATH`.
    pub search: Vec<PathBuf>,
    /// Whether a server is to be started on the files.
    pub start: bool,
}

/// A folder with room for the files, and the server that they are for.
#[derive(Clone, Debug)]
pub struct RedisDestination {
    /// The folder, as an absolute path.
    pub dir: PathBuf,
    /// The server program, if one was found.
    pub program: Option<PathBuf>,
    /// The server that the files are written for.
    pub version: RedisVersion,
    /// The server's configuration and its path, if one was found.
    pub conf: Option<(String, RedisConf)>,
}

/// Why a restore does not begin.
#[derive(Debug, thiserror::Error)]
pub enum RedisDestinationError {
    /// A server is to be started, and there is none.
    #[error("no {program} in $PATH, and this snapshot is {origin}'s; name one with --redis-server")]
    NoProgram {
        /// What the program is called.
        program: &'static str,
        /// The server that wrote the snapshot.
        origin: String,
    },
    /// No server was found, and the snapshot has no usable version.
    #[error("the snapshot does not say for which server it is ({version}); name one with --redis-server")]
    UnknownVersion {
        /// The version in the snapshot.
        version: String,
    },
    /// The program that the user named is no usable server.
    #[error(transparent)]
    Program(RestoreError),
    /// The folder is no path that can be made absolute.
    #[error("cannot tell where the files go")]
    RelativePath(#[source] std::io::Error),
    /// The files do not fit.
    #[error("cannot restore into {}", dir.display())]
    Space {
        /// The folder.
        dir: PathBuf,
        /// The reason.
        source: RestoreError,
    },
    /// The configuration that the user named cannot be read.
    #[error("cannot read {}", path.display())]
    ReadConf {
        /// The configuration.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
}

impl HasKind for RedisDestinationError {
    fn kind(&self) -> ErrorKind {
        match self {
            RedisDestinationError::NoProgram { .. } | RedisDestinationError::UnknownVersion { .. } => ErrorKind::Usage,
            RedisDestinationError::Program(error) => error.kind(),
            RedisDestinationError::Space { source, .. } => source.kind(),
            RedisDestinationError::RelativePath(_) | RedisDestinationError::ReadConf { .. } => ErrorKind::Failed,
        }
    }
}

/// Checks a destination for what `route` restores.
///
/// # Errors
/// [`RedisDestinationError`].
pub async fn check_destination(
    request: &RedisDestinationRequest,
    route: &RestoreRoute,
) -> Result<RedisDestination, RedisDestinationError> {
    let (program, version) = find_server_program(request, route).await?;
    if request.start && program.is_none() {
        let snapshot = &route.snapshot;
        let origin = format!("{} {}", snapshot.flavour, snapshot.version);
        return Err(RedisDestinationError::NoProgram { program: program_name(snapshot.flavour), origin });
    }
    let dir = std::path::absolute(&request.dir).map_err(RedisDestinationError::RelativePath)?;
    match check_free_space(route, &dir) {
        Ok(()) => Ok(RedisDestination { program, version, conf: read_redis_conf(request)?, dir }),
        Err(source) => Err(RedisDestinationError::Space { dir, source }),
    }
}

/// The server to restore for: the one named or found, else one like that of the snapshot.
async fn find_server_program(
    request: &RedisDestinationRequest,
    route: &RestoreRoute,
) -> Result<(Option<PathBuf>, RedisVersion), RedisDestinationError> {
    if let Some(program) = &request.program {
        let version = query_server_version(program).await.map_err(RedisDestinationError::Program)?;
        return Ok((Some(program.clone()), version));
    }
    let snapshot = &route.snapshot;
    let name = program_name(snapshot.flavour);
    let found = request.search.iter().map(|folder| folder.join(name)).find(|program| program.is_file());
    if let Some(program) = found
        && let Ok(version) = query_server_version(&program).await
    {
        return Ok((Some(program), version));
    }
    match RedisVersion::parse(snapshot.flavour, &snapshot.version) {
        Some(version) => Ok((None, version)),
        None => Err(RedisDestinationError::UnknownVersion { version: snapshot.version.clone() }),
    }
}

/// The server's configuration: the one named, or the one where distributions keep it.
fn read_redis_conf(request: &RedisDestinationRequest) -> Result<Option<(String, RedisConf)>, RedisDestinationError> {
    if let Some(path) = &request.conf {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(|source| RedisDestinationError::ReadConf { path: path.clone(), source })?;
        return Ok(Some((path.display().to_string(), RedisConf::parse(&text))));
    }
    // Only advice depends on it.
    let read = |path: &str| Some((path.to_owned(), RedisConf::parse(&std::fs::read_to_string(path).ok()?)));
    Ok(REDIS_CONF_PATHS.iter().find_map(|path| read(path)))
}

impl RedisDestination {
    /// Warnings about configurations that exist and cannot be read, if none was read.
    pub(super) fn unread_conf_warnings(&self) -> Vec<String> {
        match &self.conf {
            Some(_) => Vec::new(),
            None => unreadable_configurations(REDIS_CONF_PATHS.map(Path::new)),
        }
    }
}

/// Configurations that exist and cannot be read. What they would make the server ignore is not known.
fn unreadable_configurations<'p>(paths: impl IntoIterator<Item = &'p Path>) -> Vec<String> {
    let mut warnings = Vec::new();
    for path in paths {
        match std::fs::File::open(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let path = path.display();
                warnings.push(format!("{path} is not checked: cannot read it ({error}); name one with --redis-conf"));
            }
            _ => {}
        }
    }
    warnings
}

/// What the server's program is called.
#[must_use]
pub const fn program_name(flavour: ServerFlavour) -> &'static str {
    match flavour {
        ServerFlavour::Valkey => "valkey-server",
        ServerFlavour::Redis => "redis-server",
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::unreadable_configurations;

    #[test]
    fn a_configuration_that_cannot_be_read_is_reported_and_an_absent_one_is_not() {
        // Neither can be opened, by root either.
        let warnings = unreadable_configurations(["/nowhere/redis.conf", "/dev/null/redis.conf"].map(Path::new));
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].starts_with("/dev/null/redis.conf is not checked: cannot read it ("), "{warnings:?}");
    }
}
