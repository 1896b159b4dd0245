//! Where a server is and who logs in there: `redis://[user:password@]host:port`, `rediss://…` for TLS, `unix:///path`.

use std::fmt;
use std::path::PathBuf;

use url::Url;
use zeroize::Zeroizing;

/// The port of a Redis that is not told otherwise.
const DEFAULT_REDIS_PORT: u16 = 6379;

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum RedisAddress {
    /// Over TCP.
    Tcp {
        /// A name or an address.
        host: String,
        /// Its port.
        port: u16,
        /// Whether TLS is spoken.
        tls: bool,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for RedisAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RedisAddress::Tcp { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            RedisAddress::Tcp { host, port, .. } => write!(f, "{host}:{port}"),
            RedisAddress::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A password; wiped when dropped, and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisPassword(Zeroizing<String>);

impl RedisPassword {
    /// Takes the text as a password.
    #[must_use]
    pub fn new(text: impl Into<String>) -> RedisPassword {
        RedisPassword(Zeroizing::new(text.into()))
    }

    pub(super) fn reveal(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl fmt::Debug for RedisPassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

/// Who logs in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RedisLogin {
    /// The ACL user; `default` if none is named.
    pub user: Option<String>,
    /// The password; without one only a user that has `nopass` is let in.
    pub password: Option<RedisPassword>,
}

/// What was given is no address of a Redis. Quotes nothing of it: there may be a password in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write redis://host:6379, rediss://host:6379 for TLS, or unix:///run/redis/redis.sock")]
pub struct RedisUrlError(&'static str);

/// What is said where a password seems to stand in a URL as it is.
const PASSWORD_IN_URL_ADVICE: &str =
    "this is no URL; where the password holds @ / ? # : or %, write %40 %2F %3F %23 %3A or %25 for it";

/// Reads a URL.
///
/// # Errors
/// [`RedisUrlError`] says what is wrong, without the URL.
pub fn parse_redis_url(text: &str) -> Result<(RedisAddress, RedisLogin), RedisUrlError> {
    let no_url = if text.contains('@') { PASSWORD_IN_URL_ADVICE } else { "this is no URL" };
    let url = Url::parse(text).ok().ok_or(RedisUrlError(no_url))?;
    // Such a character ends the part that the password stands in, so that the @ behind it comes where none belongs.
    let beyond = [Some(url.path()).filter(|_| !url.scheme().contains("unix")), url.query(), url.fragment()];
    if beyond.into_iter().flatten().any(|part| part.contains('@')) {
        return Err(RedisUrlError(PASSWORD_IN_URL_ADVICE));
    }
    let decoded = |part: &str, what| percent_decode(part).ok_or(RedisUrlError(what));
    let user = decoded(url.username(), "the user holds a bad %-sequence")?;
    let password = url.password().map(|word| decoded(word, "the password holds a bad %-sequence")).transpose()?;
    let login = RedisLogin { user: (!user.is_empty()).then_some(user), password: password.map(RedisPassword::new) };
    if login.user.is_some() && login.password.is_none() {
        return Err(RedisUrlError("it names a user and no password"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(RedisUrlError("it has options behind ? or #, which walkeep does not know"));
    }
    let tls = match url.scheme() {
        "redis" | "valkey" => false,
        "rediss" | "valkeys" => true,
        "unix" | "redis+unix" => {
            let path = decoded(url.path(), "the path holds a bad %-sequence")?;
            if url.host_str().is_some_and(|host| !host.is_empty()) || !path.starts_with('/') || path.len() < 2 {
                return Err(RedisUrlError("a socket's URL has three slashes and a path"));
            }
            return Ok((RedisAddress::Unix(path.into()), login));
        }
        _ => return Err(RedisUrlError("its scheme is none of redis, rediss and unix")),
    };
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    let host = decoded(host, "the host holds a bad %-sequence")?;
    if host.is_empty() {
        return Err(RedisUrlError("it names no host"));
    }
    // A database's number is common in such URLs. A replica gets all databases, so it would promise too much.
    if !matches!(url.path(), "" | "/" | "/0") {
        return Err(RedisUrlError("it names a database, but all of them are backed up together; leave that out"));
    }
    Ok((RedisAddress::Tcp { host, port: url.port().unwrap_or(DEFAULT_REDIS_PORT), tls }, login))
}

/// Undoes `%XX`; `None` where that makes no text.
fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::{RedisAddress, RedisLogin, RedisPassword, parse_redis_url};

    fn tcp(host: &str, port: u16, tls: bool) -> RedisAddress {
        RedisAddress::Tcp { host: host.into(), port, tls }
    }

    #[test]
    fn urls_of_every_kind_are_read() {
        let login = |user: Option<&str>, password: Option<&str>| RedisLogin {
            user: user.map(str::to_owned),
            password: password.map(RedisPassword::new),
        };
        for (text, address, expected) in [
            ("redis://127.0.0.1:7000", tcp("127.0.0.1", 7000, false), login(None, None)),
            ("redis://cache", tcp("cache", 6379, false), login(None, None)),
            ("rediss://[::1]:7000/", tcp("::1", 7000, true), login(None, None)),
            ("redis://:p%40ss%2F@h/0", tcp("h", 6379, false), login(None, Some("p@ss/"))),
            ("redis://walkeep:secret@h:1", tcp("h", 1, false), login(Some("walkeep"), Some("secret"))),
            ("unix:///run/a@b.sock", RedisAddress::Unix("/run/a@b.sock".into()), login(None, None)),
            ("unix:///run/redis/a%20b.sock", RedisAddress::Unix("/run/redis/a b.sock".into()), login(None, None)),
        ] {
            assert_eq!(parse_redis_url(text), Ok((address, expected)), "{text}");
        }
        assert_eq!(tcp("::1", 1, false).to_string(), "[::1]:1");
    }

    #[test]
    fn a_wrong_url_is_refused_without_quoting_it() {
        for (text, says) in [
            ("hunter2", "no URL"),
            ("redis://hunter2@h", "no password"),
            ("redis://:p@hunter2/word@h:6379", "write %40 %2F"),
            ("redis://:hunter2/word@h:6379", "write %40 %2F"),
            ("redis://:hunter2#word@h", "write %40 %2F"),
            ("redis://:hunter2?word@h", "write %40 %2F"),
            ("redis://:hunter2@h/3", "a database"),
            ("redis://:hunter2@h?db=1", "options"),
            ("http://:hunter2@h", "scheme"),
            ("unix://run/redis.sock", "three slashes"),
            ("redis://", "no host"),
            ("redis://u:hunter2%zz@h", "bad %-sequence"),
        ] {
            let error = parse_redis_url(text).unwrap_err();
            assert!(error.to_string().contains(says), "{text}: {error}");
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
        }
        let (_, login) = parse_redis_url("redis://u:hunter2@h").unwrap();
        assert!(!format!("{login:?}").contains("hunter2"));
    }
}
