//! The two spellings of a connection string, taken apart into keys and values; what they mean is [`super::conninfo`]'s
//! business.

use std::collections::BTreeMap;

use super::conninfo_error::{ConninfoError, LibpqEnvironment};

/// The longest connection string that is looked at; libpq has no limit, but nobody writes 64 KiB of one.
const MAX_CONNINFO_BYTES: usize = 64 * 1024;

/// Every key libpq knows, with the variable that stands in for it (`PQconninfoOptions` in `fe-connect.c`).
const CONNINFO_KEYS: &[(&str, Option<&str>)] = &[
    ("service", Some("PGSERVICE")),
    ("user", Some("PGUSER")),
    ("password", Some("PGPASSWORD")),
    ("passfile", Some("PGPASSFILE")),
    ("channel_binding", Some("PGCHANNELBINDING")),
    ("connect_timeout", Some("PGCONNECT_TIMEOUT")),
    ("dbname", Some("PGDATABASE")),
    ("host", Some("PGHOST")),
    ("hostaddr", Some("PGHOSTADDR")),
    ("port", Some("PGPORT")),
    ("client_encoding", None),
    ("options", Some("PGOPTIONS")),
    ("application_name", Some("PGAPPNAME")),
    ("fallback_application_name", None),
    ("keepalives", None),
    ("keepalives_idle", None),
    ("keepalives_interval", None),
    ("keepalives_count", None),
    ("tcp_user_timeout", None),
    ("sslmode", Some("PGSSLMODE")),
    ("sslnegotiation", Some("PGSSLNEGOTIATION")),
    ("sslcompression", None),
    ("sslcert", Some("PGSSLCERT")),
    ("sslkey", Some("PGSSLKEY")),
    ("sslcertmode", Some("PGSSLCERTMODE")),
    ("sslpassword", None),
    ("sslrootcert", Some("PGSSLROOTCERT")),
    ("sslcrl", Some("PGSSLCRL")),
    ("sslcrldir", Some("PGSSLCRLDIR")),
    ("sslsni", Some("PGSSLSNI")),
    ("requirepeer", Some("PGREQUIREPEER")),
    ("require_auth", Some("PGREQUIREAUTH")),
    ("min_protocol_version", Some("PGMINPROTOCOLVERSION")),
    ("max_protocol_version", Some("PGMAXPROTOCOLVERSION")),
    ("ssl_min_protocol_version", Some("PGSSLMINPROTOCOLVERSION")),
    ("ssl_max_protocol_version", Some("PGSSLMAXPROTOCOLVERSION")),
    ("gssencmode", Some("PGGSSENCMODE")),
    ("krbsrvname", None),
    ("gsslib", None),
    ("gssdelegation", None),
    ("replication", None),
    ("target_session_attrs", Some("PGTARGETSESSIONATTRS")),
    ("load_balance_hosts", Some("PGLOADBALANCEHOSTS")),
];

/// What a connection string says, key by key; the last of several wins, as in libpq. An empty value counts as none.
#[derive(Default)]
pub(super) struct ConninfoSettings(BTreeMap<&'static str, String>);

impl ConninfoSettings {
    fn set(&mut self, key: &str, value: String) -> Result<(), ConninfoError> {
        match CONNINFO_KEYS.iter().find(|(known, _)| *known == key) {
            Some((known, _)) => {
                self.0.insert(known, value);
                Ok(())
            }
            None => Err(ConninfoError::UnknownKey { key: key.to_owned(), nearest: nearest_key(key) }),
        }
    }

    /// The value of `key`, out of the set.
    pub(super) fn remove(&mut self, key: &str) -> Option<String> {
        self.0.remove(key).filter(|value| !value.is_empty())
    }
}

fn nearest_key(key: &str) -> Option<&'static str> {
    let best = CONNINFO_KEYS.iter().map(|(known, _)| (strsim::damerau_levenshtein(key, known), *known)).min()?;
    (best.0 <= 2 && best.0 < key.len()).then_some(best.1)
}

fn syntax_error<T>(problem: impl Into<String>) -> Result<T, ConninfoError> {
    Err(ConninfoError::Syntax(problem.into()))
}

/// Takes a connection string of either spelling apart.
pub(super) fn parse_conninfo(text: &str) -> Result<ConninfoSettings, ConninfoError> {
    if text.len() > MAX_CONNINFO_BYTES {
        return syntax_error(format!("is {} bytes long; at most {MAX_CONNINFO_BYTES} are read", text.len()));
    }
    if text.contains('\0') {
        return syntax_error("contains a zero byte");
    }
    match text.strip_prefix("postgresql://").or_else(|| text.strip_prefix("postgres://")) {
        Some(rest) => parse_uri(rest),
        None => parse_pairs(text),
    }
}

/// Fills keys that the string left open from their variables.
pub(super) fn add_environment(settings: &mut ConninfoSettings, environment: &LibpqEnvironment) {
    for (key, variable) in CONNINFO_KEYS {
        if let Some(value) = variable.and_then(|name| environment.get(name))
            && !value.is_empty()
            && !settings.0.contains_key(key)
        {
            settings.0.insert(key, value.clone());
        }
    }
    if !settings.0.contains_key("sslmode")
        && environment.get("PGREQUIRESSL").is_some_and(|value| value.starts_with('1'))
    {
        settings.0.insert("sslmode", "require".to_owned());
    }
}

/// `key = value key='quoted \' value'` (`conninfo_parse`).
fn parse_pairs(text: &str) -> Result<ConninfoSettings, ConninfoError> {
    let mut settings = ConninfoSettings::default();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let (key, after) = rest.split_at(end);
        let Some(after) = after.trim_start().strip_prefix('=') else {
            return syntax_error("has a word without \"=\"; put a value that contains spaces between single quotes");
        };
        let (value, after) = parse_pair_value(after.trim_start())?;
        settings.set(key, value)?;
        rest = after.trim_start();
    }
    Ok(settings)
}

/// The value at the start of `text`, unescaped, and what follows it.
fn parse_pair_value(text: &str) -> Result<(String, &str), ConninfoError> {
    let (quoted, body) = match text.strip_prefix('\'') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut value = String::new();
    let mut chars = body.chars();
    loop {
        let rest = chars.as_str();
        match chars.next() {
            Some('\\') => value.extend(chars.next()),
            Some('\'') if quoted => return Ok((value, chars.as_str())),
            Some(c) if !quoted && c.is_ascii_whitespace() => return Ok((value, rest)),
            Some(c) => value.push(c),
            None if quoted => return syntax_error("ends within a quoted value; a closing quote is missing"),
            None => return Ok((value, "")),
        }
    }
}

/// `[user[:password]@][host[:port],…][/dbname][?key=value&…]` (`conninfo_uri_parse_options`).
fn parse_uri(text: &str) -> Result<ConninfoSettings, ConninfoError> {
    let mut settings = ConninfoSettings::default();
    let (main, query) = text.split_once('?').map_or((text, None), |(main, query)| (main, Some(query)));
    let (authority, dbname) = main.split_once('/').map_or((main, None), |(authority, path)| (authority, Some(path)));
    let hosts = match authority.rsplit_once('@') {
        Some((userinfo, hosts)) => {
            let (user, password) = userinfo.split_once(':').map_or((userinfo, None), |(u, p)| (u, Some(p)));
            settings.set("user", percent_decode(user)?)?;
            if let Some(password) = password {
                settings.set("password", percent_decode(password)?)?;
            }
            hosts
        }
        None => authority,
    };
    let (mut names, mut ports) = (Vec::new(), Vec::new());
    for host in hosts.split(',') {
        let (name, port) = parse_uri_host(host)?;
        names.push(percent_decode(name)?);
        ports.push(percent_decode(port)?);
    }
    if names.iter().any(|name| !name.is_empty()) {
        settings.set("host", names.join(","))?;
    }
    if ports.iter().any(|port| !port.is_empty()) {
        settings.set("port", ports.join(","))?;
    }
    if let Some(dbname) = dbname.filter(|name| !name.is_empty()) {
        settings.set("dbname", percent_decode(dbname)?)?;
    }
    for pair in query.into_iter().flat_map(|query| query.split('&')).filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return syntax_error("has a URI parameter without \"=\"");
        };
        match (percent_decode(key)?.as_str(), percent_decode(value)?) {
            ("ssl", value) if value == "true" => settings.set("sslmode", "require".to_owned())?,
            (key, value) => settings.set(key, value)?,
        }
    }
    Ok(settings)
}

/// `name`, `name:port`, `[v6]`, `[v6]:port`.
fn parse_uri_host(host: &str) -> Result<(&str, &str), ConninfoError> {
    let Some(bracketed) = host.strip_prefix('[') else {
        return Ok(host.split_once(':').unwrap_or((host, "")));
    };
    let Some((address, after)) = bracketed.split_once(']') else {
        return syntax_error("has an address that begins with [ and lacks its ]");
    };
    match (after.strip_prefix(':'), after.is_empty()) {
        (_, true) => Ok((address, "")),
        (Some(port), _) => Ok((address, port)),
        (None, false) => syntax_error("has something other than :port after ]"),
    }
}

/// Undoes percent-encoding (`conninfo_uri_decode`).
fn percent_decode(text: &str) -> Result<String, ConninfoError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes().iter();
    while let Some(&byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit =
            |byte: Option<&u8>| byte.and_then(|&b| char::from(b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
        match (digit(rest.next()), digit(rest.next())) {
            (Some(0), Some(0)) => return syntax_error("has %00 in a URI, which is not allowed"),
            (Some(high), Some(low)) => bytes.push(high << 4 | low),
            _ => {
                return syntax_error(
                    "has a % in a URI that two hexadecimal digits don't follow; write %25 for a percent sign",
                );
            }
        }
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(_) => syntax_error("has percent-encoded bytes that are not UTF-8"),
    }
}
