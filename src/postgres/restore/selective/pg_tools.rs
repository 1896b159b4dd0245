//! PostgreSQL's own tools: out of the scratch server, into the running one.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::postgres::wire::Conninfo;
use crate::postgres::wire::conninfo::{AuthMethod, ChannelBinding, RootCert, SslMode, TargetSessionAttrs};

use super::super::server_start::major_version_of;
use super::error::{SelectiveRestoreError, io_error};
use super::restore_failure::FailedEntry;

/// Variables that libpq takes settings from (`PQconninfoOptions` in fe-connect.c); what the tools get is said whole
/// instead.
const LIBPQ_VARIABLES: [&str; 33] = [
    "PGHOST",
    "PGHOSTADDR",
    "PGPORT",
    "PGDATABASE",
    "PGUSER",
    "PGPASSWORD",
    "PGPASSFILE",
    "PGREQUIREAUTH",
    "PGCHANNELBINDING",
    "PGSERVICE",
    "PGSERVICEFILE",
    "PGOPTIONS",
    "PGAPPNAME",
    "PGSSLMODE",
    "PGSSLNEGOTIATION",
    "PGSSLCERT",
    "PGSSLKEY",
    "PGSSLROOTCERT",
    "PGSSLCRL",
    "PGSSLSNI",
    "PGREQUIREPEER",
    "PGGSSENCMODE",
    "PGCONNECT_TIMEOUT",
    "PGCLIENTENCODING",
    "PGTARGETSESSIONATTRS",
    "PGLOADBALANCEHOSTS",
    "PGKRBSRVNAME",
    "PGSSLCOMPRESSION",
    // Not connection options, but sent or read by libpq all the same (`EnvironmentOptions` in fe-protocol3.c).
    "PGDATESTYLE",
    "PGTZ",
    "PGGEQO",
    "PGSSLCRLDIR",
    "PGSSLCERTMODE",
];

/// How much of what a tool complains about is kept.
const MAX_STDERR_BYTES: u64 = 4 << 20;

/// One run of a tool.
#[derive(Debug)]
pub(super) struct PgTool {
    program: PathBuf,
    command: Command,
}

impl PgTool {
    /// A tool that talks to the server of `info`, in its database. A password goes through its environment, never
    /// through its arguments.
    pub(super) fn new(bin: &Path, name: &str, info: &Conninfo) -> PgTool {
        let program = bin.join(name);
        let mut command = Command::new(&program);
        for variable in LIBPQ_VARIABLES {
            command.env_remove(variable);
        }
        for (variable, value) in libpq_variables(info) {
            command.env(variable, value);
        }
        command.env("LC_ALL", "C").kill_on_drop(true).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        PgTool { program, command }
    }

    pub(super) fn arg(mut self, argument: impl AsRef<std::ffi::OsStr>) -> PgTool {
        self.command.arg(argument);
        self
    }

    pub(super) fn args<'a>(mut self, arguments: impl IntoIterator<Item = &'a str>) -> PgTool {
        self.command.args(arguments);
        self
    }

    /// Runs it to its end. Dropped before that, it is killed.
    pub(super) async fn run(self) -> Result<(), SelectiveRestoreError> {
        let ended = self.run_to_end().await?;
        if ended.status.success() { Ok(()) } else { Err(ended.into_error()) }
    }

    /// Runs `pg_restore` to its end and gives what it could not restore. An error after which it could not continue is
    /// one here, too.
    pub(super) async fn run_through(self) -> Result<Vec<FailedEntry>, SelectiveRestoreError> {
        let ended = self.run_to_end().await?;
        if ended.status.success() {
            return Ok(Vec::new());
        }
        let failures = FailedEntry::read_all(&ended.said);
        if failures.is_empty() || !ended.said.contains(CONTINUED) { Err(ended.into_error()) } else { Ok(failures) }
    }

    async fn run_to_end(mut self) -> Result<EndedTool, SelectiveRestoreError> {
        let name = self.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut child = self.command.spawn().map_err(io_error("run", &self.program))?;
        let mut said = Vec::new();
        if let Some(stderr) = child.stderr.take() {
            let mut first = stderr.take(MAX_STDERR_BYTES);
            first.read_to_end(&mut said).await.map_err(io_error("read from", &self.program))?;
            // The rest is read and forgotten, or the tool would wait for ever.
            tokio::io::copy(&mut first.into_inner(), &mut tokio::io::sink())
                .await
                .map_err(io_error("read from", &self.program))?;
        }
        let status = child.wait().await.map_err(io_error("wait for", &self.program))?;
        let said = String::from_utf8_lossy(&said).into_owned();
        if status.success() {
            said.lines().for_each(|line| tracing::warn!(tool = name, "{line}"));
        }
        Ok(EndedTool { name, status, said })
    }
}

/// The end of what `pg_restore` writes if it continued after errors.
const CONTINUED: &str = "errors ignored on restore";

/// A tool that has ended.
struct EndedTool {
    name: String,
    status: std::process::ExitStatus,
    said: String,
}

impl EndedTool {
    fn into_error(self) -> SelectiveRestoreError {
        let said = first_error(&self.said).unwrap_or_else(|| self.status.to_string());
        SelectiveRestoreError::Tool { name: self.name, said }
    }
}

/// The directory with `pg_dump` and `pg_restore` of this major version; if there is none, with those of the oldest
/// later one. The directory that the user named is asked first.
pub(super) fn find_tools(major: u32, bindir: Option<&Path>, search: &[PathBuf]) -> Option<PathBuf> {
    let version = |place: &Path| {
        let whole = place.join("pg_restore").exists();
        major_version_of(&place.join("pg_dump")).filter(|found| whole && *found >= major)
    };
    if let Some(named) = bindir.filter(|named| version(named).is_some()) {
        return Some(named.to_owned());
    }
    let packaged = (major..major.saturating_add(8)).flat_map(|major| {
        [format!("/usr/lib/postgresql/{major}/bin"), format!("/usr/pgsql-{major}/bin")].map(PathBuf::from)
    });
    let places = packaged.chain(search.iter().cloned());
    places.filter_map(|place| Some((version(&place)?, place))).min_by_key(|(found, _)| *found).map(|(_, place)| place)
}

/// The first error and the lines that belong to it, in one.
fn first_error(said: &str) -> Option<String> {
    let lines: Vec<&str> = said.lines().collect();
    let first = lines.iter().position(|line| line.contains("error:")).unwrap_or(0);
    let words = |line: &str| line.split_once("error: ").map_or(line, |(_, words)| words).trim().to_owned();
    let told: Vec<String> = lines.iter().skip(first).take(3).map(|line| words(line)).collect();
    (!told.is_empty()).then(|| told.join(" "))
}

/// `info` as libpq takes it from the environment.
fn libpq_variables(info: &Conninfo) -> Vec<(&'static str, String)> {
    let list = |of: &dyn Fn(&crate::postgres::wire::conninfo::ConninfoHost) -> String| {
        info.hosts.iter().map(of).collect::<Vec<_>>().join(",")
    };
    let mut set = vec![("PGPORT", list(&|host| host.port.to_string()))];
    let mut some =
        |name, value: Option<String>| set.extend(value.filter(|value| !value.is_empty()).map(|value| (name, value)));
    let plain = |list: String| Some(list).filter(|list| list.chars().any(|c| c != ','));
    some("PGHOST", plain(list(&|host| host.name.clone().unwrap_or_default())));
    some("PGHOSTADDR", plain(list(&|host| host.address.map_or_else(String::new, |address| address.to_string()))));
    some("PGUSER", info.user.clone());
    some("PGDATABASE", info.dbname.clone());
    some("PGPASSWORD", info.password.as_ref().map(|password| password.reveal().to_owned()));
    let path = |path: &Option<PathBuf>| path.as_ref().map(|path| path.to_string_lossy().into_owned());
    some("PGPASSFILE", path(&info.passfile));
    some("HOME", path(&info.home));
    some("PGOPTIONS", info.options.clone());
    some("PGREQUIREPEER", info.require_peer.clone());
    some("PGCONNECT_TIMEOUT", info.connect_timeout.map(|limit| limit.as_secs().max(2).to_string()));
    some("PGSSLMODE", Some(ssl_mode_value(info.tls.mode).to_owned()));
    some("PGSSLNEGOTIATION", info.tls.direct.then(|| "direct".to_owned()));
    some("PGSSLCERT", path(&info.tls.cert));
    some("PGSSLKEY", path(&info.tls.key));
    some("PGSSLCRL", path(&info.tls.crl));
    some(
        "PGSSLROOTCERT",
        match &info.tls.root_cert {
            RootCert::Default => None,
            RootCert::System => Some("system".to_owned()),
            RootCert::File(file) => Some(file.to_string_lossy().into_owned()),
        },
    );
    some("PGSSLSNI", (!info.tls.sni).then(|| "0".to_owned()));
    some("PGCHANNELBINDING", Some(channel_binding_value(info.channel_binding).to_owned()));
    // A copy can only go where one may write.
    let session = if info.hosts.len() > 1 { Some("read-write") } else { target_session_value(info.target_session) };
    some("PGTARGETSESSIONATTRS", session.map(str::to_owned));
    some(
        "PGREQUIREAUTH",
        info.require_auth
            .as_ref()
            .map(|methods| methods.iter().map(|method| auth_method_value(*method)).collect::<Vec<_>>().join(",")),
    );
    set.push(("PGAPPNAME", "walkeep".to_owned()));
    set
}

const fn ssl_mode_value(mode: SslMode) -> &'static str {
    match mode {
        SslMode::Disable => "disable",
        SslMode::Allow => "allow",
        SslMode::Prefer => "prefer",
        SslMode::Require => "require",
        SslMode::VerifyCa => "verify-ca",
        SslMode::VerifyFull => "verify-full",
    }
}

const fn channel_binding_value(binding: ChannelBinding) -> &'static str {
    match binding {
        ChannelBinding::Disable => "disable",
        ChannelBinding::Prefer => "prefer",
        ChannelBinding::Require => "require",
    }
}

const fn target_session_value(session: TargetSessionAttrs) -> Option<&'static str> {
    match session {
        TargetSessionAttrs::ReadWrite | TargetSessionAttrs::Primary => Some("read-write"),
        _ => None,
    }
}

const fn auth_method_value(method: AuthMethod) -> &'static str {
    match method {
        AuthMethod::Password => "password",
        AuthMethod::Md5 => "md5",
        AuthMethod::ScramSha256 => "scram-sha-256",
        AuthMethod::None => "none",
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::{find_tools, first_error, libpq_variables};
    use crate::postgres::wire::{Conninfo, LibpqEnvironment};

    #[test]
    fn tools_are_told_the_same_as_we_are() {
        let text = "host=a,b port=5433 user=u dbname=d password=p sslmode=verify-full sslrootcert=/ca options='-c x=1'";
        let set = libpq_variables(&Conninfo::parse(text, &LibpqEnvironment::new()).unwrap());
        let value = |name: &str| set.iter().find(|(set, _)| *set == name).map(|(_, value)| value.as_str());
        assert_eq!((value("PGHOST"), value("PGPORT")), (Some("a,b"), Some("5433,5433")));
        assert_eq!((value("PGUSER"), value("PGDATABASE"), value("PGPASSWORD")), (Some("u"), Some("d"), Some("p")));
        assert_eq!((value("PGSSLMODE"), value("PGSSLROOTCERT")), (Some("verify-full"), Some("/ca")));
        assert_eq!((value("PGOPTIONS"), value("PGHOSTADDR")), (Some("-c x=1"), None));
    }

    #[test]
    fn tools_of_the_servers_own_version_are_preferred() {
        let all = tempfile::tempdir().unwrap();
        // Newer than any that may be installed here.
        let place = |major: u32| {
            let place = all.path().join(major.to_string());
            std::fs::create_dir(&place).unwrap();
            for tool in ["pg_dump", "pg_restore"] {
                let text = format!("#!/bin/sh\necho '{tool} (PostgreSQL) {major}.1'\n");
                std::fs::write(place.join(tool), text).unwrap();
                std::fs::set_permissions(place.join(tool), std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            place
        };
        let (newest, own, newer) = (place(92), place(90), place(91));
        let search = [newest.clone(), own.clone(), newer.clone()];
        assert_eq!(find_tools(90, None, &search), Some(own));
        assert_eq!(find_tools(90, None, &[newest.clone(), newer.clone()]), Some(newer), "the oldest of the newer ones");
        assert_eq!(find_tools(90, Some(&newest), &search), Some(newest), "the user has named it");
        assert_eq!(find_tools(93, None, &search), None);
    }

    #[test]
    fn the_first_error_is_told() {
        let said =
            "pg_restore: connecting\npg_restore: error: could not execute query: ERROR:  no\nCommand was: CREATE\n";
        assert_eq!(first_error(said).unwrap(), "could not execute query: ERROR:  no Command was: CREATE");
        assert_eq!(first_error(""), None);
    }
}
