//! Connection strings as libpq reads them: `host=… user=…` or `postgresql://…`, with `PG*` variables filling what they
//! leave open (`fe-connect.c`: `conninfo_parse`, `conninfo_uri_parse`, `conninfo_add_defaults`).
//!
//! A string and a map of variables come in, a [`Conninfo`] goes out; no file is read and no name resolved here. What
//! libpq knows and this client doesn't (service files, GSSAPI, encrypted keys) is refused with a word on what to do,
//! never ignored: an ignored security option is worse than an error.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use super::conninfo_syntax::{self, ConninfoSettings};

pub use super::conninfo_error::{ConninfoError, LibpqEnvironment};
pub use super::password::PgPassword;

/// The port of a server whose connection string names none (`DEF_PGPORT`).
const DEFAULT_PORT: u16 = 5432;

/// When the connection is encrypted and what is checked (libpq's `sslmode`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SslMode {
    /// Never.
    Disable,
    /// Without first; with TLS if the server refuses that.
    Allow,
    /// With TLS first; without if that fails.
    Prefer,
    /// With TLS or not at all; the certificate is checked only if a root certificate file exists.
    Require,
    /// TLS, and the certificate is signed by a trusted root.
    VerifyCa,
    /// As [`SslMode::VerifyCa`], and it is for the host that was asked for.
    VerifyFull,
}

/// Whether the password exchange must be tied to the TLS connection (libpq's `channel_binding`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If both sides can.
    Prefer,
    /// Or no connection.
    Require,
}

/// Which server of several will do (libpq's `target_session_attrs`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetSessionAttrs {
    /// Any that answers.
    Any,
    /// One whose sessions may write.
    ReadWrite,
    /// One whose sessions may not.
    ReadOnly,
    /// One not in recovery.
    Primary,
    /// One in recovery.
    Standby,
    /// A standby if there is one, else any.
    PreferStandby,
}

/// Where the root certificates come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RootCert {
    /// `~/.postgresql/root.crt`, if it exists.
    Default,
    /// The operating system's (`sslrootcert=system`).
    System,
    /// A PEM file.
    File(PathBuf),
}

/// What TLS needs to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsOptions {
    /// `sslmode`.
    pub mode: SslMode,
    /// `sslnegotiation=direct`: TLS from the first byte (PostgreSQL 17 and later).
    pub direct: bool,
    /// `sslrootcert`.
    pub root_cert: RootCert,
    /// `sslcert`: the client's certificate; else `~/.postgresql/postgresql.crt` if it exists.
    pub cert: Option<PathBuf>,
    /// `sslkey`: its key; else `~/.postgresql/postgresql.key`.
    pub key: Option<PathBuf>,
    /// `sslcrl`: revoked certificates, a PEM file.
    pub crl: Option<PathBuf>,
    /// `sslsni`: whether the host's name is sent in clear in the handshake.
    pub sni: bool,
    /// `ssl_min_protocol_version` is 1.3.
    pub only_tls13: bool,
    /// `ssl_max_protocol_version` is 1.2.
    pub only_tls12: bool,
}

/// TCP keepalive as the connection string sets it; `None` leaves the system's value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpKeepalives {
    /// `keepalives`.
    pub enabled: bool,
    /// `keepalives_idle`.
    pub idle: Option<Duration>,
    /// `keepalives_interval`.
    pub interval: Option<Duration>,
    /// `keepalives_count`.
    pub count: Option<u32>,
    /// `tcp_user_timeout`.
    pub user_timeout: Option<Duration>,
}

/// One server to try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConninfoHost {
    /// Name or address; a directory (`/…`, `@…` for an abstract name) of Unix sockets; `None` for the default socket
    /// directory.
    pub name: Option<String>,
    /// `hostaddr`: the address to connect to; [`ConninfoHost::name`] is then only what the certificate must say.
    pub address: Option<std::net::IpAddr>,
    /// TCP port, or the number in the Unix socket's name.
    pub port: u16,
}

impl ConninfoHost {
    /// The directory of Unix sockets, if this host is one.
    #[must_use]
    pub fn socket_dir(&self) -> Option<&str> {
        match (&self.name, self.address) {
            (Some(name), None) if name.starts_with(['/', '@']) => Some(name),
            _ => None,
        }
    }
}

impl fmt::Display for ConninfoHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.address) {
            (Some(name), None) if name.starts_with(['/', '@']) => write!(f, "{name}/.s.PGSQL.{}", self.port),
            (Some(name), _) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            (Some(name), _) => write!(f, "{name}:{}", self.port),
            (None, Some(address)) => write!(f, "{}", std::net::SocketAddr::new(address, self.port)),
            (None, None) => write!(f, "the local socket .s.PGSQL.{}", self.port),
        }
    }
}

/// An authentication method, as `require_auth` names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AuthMethod {
    /// Cleartext password.
    Password,
    /// MD5-hashed password.
    Md5,
    /// SCRAM-SHA-256, with or without channel binding.
    ScramSha256,
    /// The server asks for nothing.
    None,
}

/// How to reach a server and who to be there.
///
/// `Display` and `Debug` never show the password.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Conninfo {
    /// The servers to try, in order; at least one.
    pub hosts: Vec<ConninfoHost>,
    /// Who to connect as; `None` for the operating system's user.
    pub user: Option<String>,
    /// The database, for ordinary SQL. Physical replication has none.
    pub dbname: Option<String>,
    /// The password, unless it is in a password file.
    pub password: Option<PgPassword>,
    /// The password file; else `~/.pgpass`.
    pub passfile: Option<PathBuf>,
    /// The user's home directory.
    pub home: Option<PathBuf>,
    /// What `pg_stat_replication` and `synchronous_standby_names` know us by. `None` if the user said nothing.
    pub application_name: Option<String>,
    /// `options`: settings for the server process.
    pub options: Option<String>,
    /// The longest one attempt on one address may take; `None` for ever.
    pub connect_timeout: Option<Duration>,
    /// Which server will do.
    pub target_session: TargetSessionAttrs,
    /// TLS.
    pub tls: TlsOptions,
    /// Channel binding.
    pub channel_binding: ChannelBinding,
    /// The methods the server may use; `None` for any.
    pub require_auth: Option<Vec<AuthMethod>>,
    /// The user that must own the server behind a Unix socket.
    pub require_peer: Option<String>,
    /// TCP keepalive.
    pub keepalives: TcpKeepalives,
}

impl Conninfo {
    /// Reads a connection string of either form. `environment` fills what it leaves open; `HOME` in it says where `~`
    /// is.
    ///
    /// # Errors
    /// [`ConninfoError`] names the parameter and what it must be.
    pub fn parse(text: &str, environment: &LibpqEnvironment) -> Result<Conninfo, ConninfoError> {
        let mut settings = conninfo_syntax::parse_conninfo(text)?;
        conninfo_syntax::add_environment(&mut settings, environment);
        interpret_settings(settings, environment.get("HOME").filter(|home| !home.is_empty()).map(PathBuf::from))
    }

    /// Where the password file is, if anywhere.
    #[must_use]
    pub fn password_file(&self) -> Option<PathBuf> {
        self.passfile.clone().or_else(|| self.home.as_ref().map(|home| home.join(".pgpass")))
    }

    /// A file in `~/.postgresql`, where libpq looks for certificates.
    #[must_use]
    pub fn default_file(&self, name: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(".postgresql").join(name))
    }
}

impl fmt::Display for Conninfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(user) = &self.user {
            write!(f, "{user}@")?;
        }
        for (i, host) in self.hosts.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            fmt::Display::fmt(host, f)?;
        }
        Ok(())
    }
}

/// `libpq` allows more, but nobody has more servers than this in one string, and each costs a time-out.
const MAX_HOSTS: usize = 64;

fn bad_value<T>(key: &'static str, problem: impl Into<String>) -> Result<T, ConninfoError> {
    Err(ConninfoError::BadValue { key, problem: problem.into() })
}

/// Settings that this client can't honour and must not ignore.
fn refuse_unsupported(settings: &mut ConninfoSettings) -> Result<(), ConninfoError> {
    if settings.remove("service").is_some() {
        return bad_value("service", "is not supported; write the service's settings into the connection string");
    }
    if settings.remove("gssencmode").is_some_and(|mode| mode == "require") {
        return bad_value("gssencmode", "cannot be \"require\": GSSAPI is not supported, use TLS (sslmode)");
    }
    for key in ["sslcrldir", "sslpassword"] {
        if settings.remove(key).is_some() {
            return bad_value(
                key,
                "is not supported; name one PEM file with sslcrl, or a key without a pass phrase with sslkey",
            );
        }
    }
    if settings.remove("load_balance_hosts").is_some_and(|value| value != "disable") {
        return bad_value("load_balance_hosts", "can only be \"disable\" here: hosts are tried in the order given");
    }
    if settings.remove("sslcertmode").is_some_and(|value| value != "allow") {
        return bad_value("sslcertmode", "can only be \"allow\" here");
    }
    if settings.remove("max_protocol_version").is_some_and(|v| v != "3.0" && v != "latest") {
        return bad_value("max_protocol_version", "can only be 3.0 here");
    }
    if settings.remove("min_protocol_version").is_some_and(|v| v != "3.0") {
        return bad_value("min_protocol_version", "can only be 3.0 here");
    }
    Ok(())
}

fn interpret_settings(mut settings: ConninfoSettings, home: Option<PathBuf>) -> Result<Conninfo, ConninfoError> {
    refuse_unsupported(&mut settings)?;
    let tls = parse_tls_options(&mut settings)?;
    let channel_binding = match settings.remove("channel_binding").as_deref() {
        None | Some("prefer") => ChannelBinding::Prefer,
        Some("disable") => ChannelBinding::Disable,
        Some("require") => ChannelBinding::Require,
        Some(_) => return bad_value("channel_binding", "must be disable, prefer or require"),
    };
    let target_session = match settings.remove("target_session_attrs").as_deref() {
        None | Some("any") => TargetSessionAttrs::Any,
        Some("read-write") => TargetSessionAttrs::ReadWrite,
        Some("read-only") => TargetSessionAttrs::ReadOnly,
        Some("primary") => TargetSessionAttrs::Primary,
        Some("standby") => TargetSessionAttrs::Standby,
        Some("prefer-standby") => TargetSessionAttrs::PreferStandby,
        Some(_) => {
            return bad_value(
                "target_session_attrs",
                "must be any, read-write, read-only, primary, standby or prefer-standby",
            );
        }
    };
    Ok(Conninfo {
        hosts: parse_hosts(&mut settings)?,
        user: settings.remove("user"),
        dbname: settings.remove("dbname"),
        password: settings.remove("password").map(PgPassword::new),
        passfile: settings.remove("passfile").map(PathBuf::from),
        home,
        application_name: settings.remove("application_name").or_else(|| settings.remove("fallback_application_name")),
        options: settings.remove("options"),
        connect_timeout: parse_connect_timeout(&mut settings)?,
        target_session,
        tls,
        channel_binding,
        require_auth: parse_require_auth(&mut settings)?,
        require_peer: settings.remove("requirepeer"),
        keepalives: parse_keepalives(&mut settings)?,
    })
}

/// `host`, `hostaddr` and `port` are lists of equal length; one port serves all hosts (`connectOptions2`).
fn parse_hosts(settings: &mut ConninfoSettings) -> Result<Vec<ConninfoHost>, ConninfoError> {
    let list = |value: Option<String>| -> Vec<String> {
        value.map(|v| v.split(',').map(|item| item.trim().to_owned()).collect()).unwrap_or_default()
    };
    let names = list(settings.remove("host"));
    let addresses = list(settings.remove("hostaddr"));
    let ports = list(settings.remove("port"));
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return bad_value("hostaddr", format!("has {} entries but host has {}", addresses.len(), names.len()));
    }
    let count = names.len().max(addresses.len()).max(1);
    if count > MAX_HOSTS {
        return bad_value("host", format!("has {count} entries; at most {MAX_HOSTS} are allowed"));
    }
    if ports.len() > 1 && ports.len() != count {
        return bad_value("port", format!("has {} entries but there are {count} hosts", ports.len()));
    }
    let some = |list: &[String], i: usize| list.get(i).filter(|item| !item.is_empty()).cloned();
    (0..count)
        .map(|i| {
            let port = match some(&ports, if ports.len() == 1 { 0 } else { i }) {
                None => DEFAULT_PORT,
                Some(text) => match text.parse::<u16>() {
                    Ok(port) if port > 0 => port,
                    _ => return bad_value("port", "must be a number from 1 to 65535"),
                },
            };
            let address = match some(&addresses, i) {
                None => None,
                Some(text) => match text.parse() {
                    Ok(address) => Some(address),
                    Err(_) => return bad_value("hostaddr", "must be an IP address; names belong in host"),
                },
            };
            Ok(ConninfoHost { name: some(&names, i), address, port })
        })
        .collect()
}

fn parse_tls_options(settings: &mut ConninfoSettings) -> Result<TlsOptions, ConninfoError> {
    let root_cert = match settings.remove("sslrootcert") {
        None => RootCert::Default,
        Some(name) if name == "system" => RootCert::System,
        Some(path) => RootCert::File(PathBuf::from(path)),
    };
    let system = root_cert == RootCert::System;
    let mode = match settings.remove("sslmode").as_deref() {
        None if system => SslMode::VerifyFull,
        None | Some("prefer") => SslMode::Prefer,
        Some("disable") => SslMode::Disable,
        Some("allow") => SslMode::Allow,
        Some("require") => SslMode::Require,
        Some("verify-ca") => SslMode::VerifyCa,
        Some("verify-full") => SslMode::VerifyFull,
        Some(_) => return bad_value("sslmode", "must be disable, allow, prefer, require, verify-ca or verify-full"),
    };
    if system && mode != SslMode::VerifyFull {
        return bad_value(
            "sslmode",
            "is too weak for sslrootcert=system, where anybody can get a certificate; use verify-full",
        );
    }
    let direct = match settings.remove("sslnegotiation").as_deref() {
        None | Some("postgres") => false,
        Some("direct") if mode >= SslMode::Require => true,
        Some("direct") => {
            return bad_value("sslnegotiation", "can only be \"direct\" with sslmode=require or stronger");
        }
        Some(_) => return bad_value("sslnegotiation", "must be postgres or direct"),
    };
    let version = |key: &'static str, value: Option<String>| match value.as_deref() {
        None | Some("TLSv1" | "TLSv1.1" | "TLSv1.2") => Ok(2),
        Some("TLSv1.3") => Ok(3),
        Some(_) => bad_value(key, "must be TLSv1.2 or TLSv1.3"),
    };
    let least = version("ssl_min_protocol_version", settings.remove("ssl_min_protocol_version"))?;
    let most = settings.remove("ssl_max_protocol_version");
    let only_tls12 = most.is_some() && version("ssl_max_protocol_version", most)? == 2;
    if only_tls12 && least == 3 {
        return bad_value("ssl_max_protocol_version", "is below ssl_min_protocol_version");
    }
    Ok(TlsOptions {
        mode,
        direct,
        root_cert,
        cert: settings.remove("sslcert").map(PathBuf::from),
        key: settings.remove("sslkey").map(PathBuf::from),
        crl: settings.remove("sslcrl").map(PathBuf::from),
        sni: parse_boolean(settings, "sslsni")?,
        only_tls13: least == 3,
        only_tls12,
    })
}

/// A switch that is on unless the string says 0.
fn parse_boolean(settings: &mut ConninfoSettings, key: &'static str) -> Result<bool, ConninfoError> {
    match settings.remove(key).as_deref() {
        None | Some("1") => Ok(true),
        Some("0") => Ok(false),
        Some(_) => bad_value(key, "must be 0 or 1"),
    }
}

/// A whole number that may be zero or negative for "the system's own value".
fn parse_number(settings: &mut ConninfoSettings, key: &'static str) -> Result<Option<u32>, ConninfoError> {
    match settings.remove(key).map(|text| text.trim().parse::<i32>()) {
        None => Ok(None),
        Some(Ok(value)) => Ok(u32::try_from(value).ok().filter(|&value| value > 0)),
        Some(Err(_)) => bad_value(key, "must be a whole number"),
    }
}

/// Whole seconds; zero, negative or absent means no limit, and one second counts as two (`connectDBComplete`).
fn parse_connect_timeout(settings: &mut ConninfoSettings) -> Result<Option<Duration>, ConninfoError> {
    Ok(parse_number(settings, "connect_timeout")?.map(|seconds| Duration::from_secs(u64::from(seconds.max(2)))))
}

fn parse_keepalives(settings: &mut ConninfoSettings) -> Result<TcpKeepalives, ConninfoError> {
    let seconds = |value: Option<u32>| value.map(|s| Duration::from_secs(u64::from(s)));
    Ok(TcpKeepalives {
        enabled: parse_boolean(settings, "keepalives")?,
        idle: seconds(parse_number(settings, "keepalives_idle")?),
        interval: seconds(parse_number(settings, "keepalives_interval")?),
        count: parse_number(settings, "keepalives_count")?,
        user_timeout: parse_number(settings, "tcp_user_timeout")?.map(|ms| Duration::from_millis(u64::from(ms))),
    })
}

/// `require_auth`: a list of methods, or of methods that are forbidden, each with `!` before it.
fn parse_require_auth(settings: &mut ConninfoSettings) -> Result<Option<Vec<AuthMethod>>, ConninfoError> {
    let Some(text) = settings.remove("require_auth") else { return Ok(None) };
    let known = [
        ("password", Some(AuthMethod::Password)),
        ("md5", Some(AuthMethod::Md5)),
        ("scram-sha-256", Some(AuthMethod::ScramSha256)),
        ("none", Some(AuthMethod::None)),
        ("gss", None),
        ("sspi", None),
        ("oauth", None),
    ];
    let mut named = Vec::new();
    let mut negated = None;
    for item in text.split(',').map(str::trim) {
        let (not, name) = item.strip_prefix('!').map_or((false, item), |name| (true, name));
        if negated.is_some_and(|earlier| earlier != not) {
            return bad_value("require_auth", "mixes methods with and without \"!\"");
        }
        negated = Some(not);
        match known.iter().find(|(known, _)| *known == name) {
            Some((_, method)) => named.extend(*method),
            None => return bad_value("require_auth", "must list password, md5, scram-sha-256 or none"),
        }
    }
    if negated == Some(true) {
        named = known.iter().filter_map(|(_, method)| *method).filter(|method| !named.contains(method)).collect();
    }
    Ok(Some(named))
}

/// Any text, as a connection string: must end, not panic, and not grow. For fuzzing.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(info) = Conninfo::parse(text, &LibpqEnvironment::new()) {
        assert!(!info.hosts.is_empty(), "a connection string without a host means the local socket");
    }
}

#[cfg(test)]
mod tests {
    use super::{AuthMethod, ChannelBinding, Conninfo, LibpqEnvironment, RootCert, SslMode, TargetSessionAttrs};
    use std::time::Duration;

    fn parse(text: &str) -> Conninfo {
        Conninfo::parse(text, &LibpqEnvironment::new()).unwrap()
    }

    fn refused(text: &str) -> String {
        Conninfo::parse(text, &LibpqEnvironment::new()).unwrap_err().to_string()
    }

    #[test]
    fn both_forms_mean_the_same() {
        let plain = parse("host=a,b port=5433 user=u password='p w' dbname=d sslmode=require application_name=x");
        let uri = parse("postgresql://u:p%20w@a,b:5433/d?sslmode=require&application_name=x");
        assert_eq!(uri.hosts.first().unwrap().port, 5432, "in a URI each host has its own port");
        assert_eq!(plain.hosts.get(1).unwrap().port, 5433);
        assert_eq!((plain.user, plain.dbname, plain.password), (uri.user, uri.dbname, uri.password));
        assert_eq!(plain.application_name, uri.application_name);
    }

    #[test]
    fn variables_fill_only_what_is_left_open() {
        let environment: LibpqEnvironment = [
            ("PGHOST", "/run/x"),
            ("PGPORT", "7"),
            ("PGUSER", "env"),
            ("PGPASSWORD", "secret"),
            ("PGSSLMODE", "verify-full"),
            ("PGTARGETSESSIONATTRS", "primary"),
            ("PGCONNECT_TIMEOUT", "1"),
            ("HOME", "/home/u"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        let info = Conninfo::parse("user=me", &environment).unwrap();
        assert_eq!(info.user.as_deref(), Some("me"));
        assert_eq!(info.to_string(), "me@/run/x/.s.PGSQL.7");
        assert_eq!(info.tls.mode, SslMode::VerifyFull);
        assert_eq!(info.target_session, TargetSessionAttrs::Primary);
        assert_eq!(info.connect_timeout, Some(Duration::from_secs(2)), "libpq rounds one second up");
        assert_eq!(info.password_file().unwrap().to_str(), Some("/home/u/.pgpass"));
        assert!(!format!("{info:?}{info}").contains("secret"));
    }

    #[test]
    fn errors_name_the_parameter_and_never_the_value() {
        for (text, expected) in [
            ("hots=a", "did you mean \"host\""),
            ("sslmode=maybe", "sslmode must be"),
            ("port=99999", "port must be"),
            ("port=0", "port must be"),
            ("host=a,b port=1,2,3", "port has 3 entries"),
            ("hostaddr=nonsense", "hostaddr must be"),
            ("sslrootcert=system sslmode=require", "too weak"),
            ("sslnegotiation=direct", "only be \"direct\""),
            ("service=x", "not supported"),
            ("gssencmode=require", "GSSAPI"),
            ("require_auth=md5,!none", "mixes"),
            ("connect_timeout=soon", "whole number"),
            ("password=tell noone", "without \"=\""),
            ("host='a", "quote"),
            ("postgresql://u:p%4@h", "%"),
            ("postgresql://u@h:x/", "port must be"),
            ("postgresql://[::1", "]"),
            ("postgresql://h/d?sslmode", "="),
        ] {
            let message = refused(text);
            assert!(message.contains(expected), "{text}: {message}");
            assert!(!message.contains("tell") && !message.contains("noone"), "{message}");
        }
    }

    #[test]
    fn security_options_are_read() {
        let info = parse("sslrootcert=system channel_binding=require require_auth=scram-sha-256");
        assert_eq!((info.tls.mode, info.tls.root_cert), (SslMode::VerifyFull, RootCert::System));
        assert_eq!(info.channel_binding, ChannelBinding::Require);
        assert_eq!(info.require_auth, Some(vec![AuthMethod::ScramSha256]));
        let info = parse("require_auth=!password,!none");
        assert_eq!(info.require_auth, Some(vec![AuthMethod::Md5, AuthMethod::ScramSha256]));
    }

    #[test]
    fn hosts_may_be_names_addresses_and_sockets() {
        let info = parse("host=db.example,/run/pg,@abstract hostaddr=10.0.0.1,,");
        let shown: Vec<String> = info.hosts.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["db.example:5432", "/run/pg/.s.PGSQL.5432", "@abstract/.s.PGSQL.5432"]);
        assert_eq!(info.hosts.first().unwrap().address.unwrap().to_string(), "10.0.0.1");
        let info = parse("postgresql://%2Frun%2Fpg:6000,[::1]:6001/");
        let shown: Vec<String> = info.hosts.iter().map(ToString::to_string).collect();
        assert_eq!(shown, ["/run/pg/.s.PGSQL.6000", "[::1]:6001"]);
    }
}
