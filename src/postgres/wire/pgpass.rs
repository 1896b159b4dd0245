//! The password file, `~/.pgpass` (`passwordFromFile` in `fe-connect.c`).
//!
//! Lines of `hostname:port:database:username:password`; `*` stands for anything, `\` takes the meaning of `:` and `\`
//! away; the first line that fits counts. A file that others may read is not used.

use std::io::{ErrorKind, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use zeroize::Zeroizing;

use super::password::PgPassword;

/// The largest password file that is read; libpq reads any, but thousands of lines fit here.
const MAX_PGPASS_BYTES: u64 = 1 << 20;

/// Who the password is for.
#[derive(Debug, Clone, Copy)]
pub struct PgpassQuery<'a> {
    /// The host's name as the connection string has it; `localhost` for a Unix socket in the default directory.
    pub host: &'a str,
    /// The port.
    pub port: u16,
    /// The database; `replication` for a physical replication connection, as `pg_receivewal` has it.
    pub database: &'a str,
    /// The user.
    pub user: &'a str,
}

/// Looks `wanted` up in the file at `path`. `None` if there is no such file or no line in it fits.
///
/// # Errors
/// A sentence on why the file was not used: it can be read by others, or can't be read by us.
pub fn look_up_password(path: &Path, wanted: PgpassQuery<'_>) -> Result<Option<PgPassword>, String> {
    let shown = path.display();
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        Err(error) => return Err(format!("password file {shown} was not used: {error}")),
    };
    let metadata = file.metadata().map_err(|error| format!("password file {shown} was not used: {error}"))?;
    if !metadata.is_file() {
        return Err(format!("password file {shown} was not used: it is not a plain file"));
    }
    if metadata.permissions().mode() & 0o077 != 0 {
        return Err(format!("password file {shown} was not used: others may read it; run: chmod 0600 {shown}"));
    }
    let mut text = Zeroizing::new(Vec::new());
    file.take(MAX_PGPASS_BYTES)
        .read_to_end(&mut text)
        .map_err(|error| format!("password file {shown} was not used: {error}"))?;
    Ok(find_password(&text, wanted))
}

/// The password of the first line of `text` that fits `wanted`. Lines that aren't UTF-8 are passed over.
#[must_use]
fn find_password(text: &[u8], wanted: PgpassQuery<'_>) -> Option<PgPassword> {
    let port = wanted.port.to_string();
    let sought = [wanted.host, &port, wanted.database, wanted.user];
    text.split(|&byte| byte == b'\n')
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let mut rest = line;
            for value in sought {
                let (field, wildcard, after) = next_field(rest)?;
                if !wildcard && *field != value {
                    return None;
                }
                rest = after;
            }
            Some(PgPassword::new(unescape(rest)))
        })
}

/// The field before the next bare colon, whether it is a bare `*`, and what follows the colon.
fn next_field(text: &str) -> Option<(Zeroizing<String>, bool, &str)> {
    let mut value = Zeroizing::new(String::new());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' => {
                let wildcard = text.starts_with("*:");
                return Some((value, wildcard, chars.as_str()));
            }
            '\\' => value.extend(chars.next()),
            c => value.push(c),
        }
    }
    None
}

fn unescape(text: &str) -> String {
    let mut value = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c == '\\' { value.extend(chars.next()) } else { value.push(c) }
    }
    value
}

/// Any bytes, as a password file. For fuzzing.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let wanted = PgpassQuery { host: "h", port: 1, database: "d", user: "u" };
    if let Some(password) = find_password(data, wanted) {
        assert!(password.reveal().len() <= data.len(), "a password is part of its line");
    }
}

#[cfg(test)]
mod tests {
    use super::{PgpassQuery, find_password, look_up_password};
    use std::os::unix::fs::PermissionsExt;

    const WANTED: PgpassQuery<'_> = PgpassQuery { host: "db", port: 5432, database: "replication", user: "wal:keep" };

    #[test]
    fn the_first_fitting_line_counts() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(
                find_password(text.as_bytes(), WANTED).map(|p| p.reveal().to_owned()).as_deref(),
                expected,
                "{text}"
            );
        };
        check("db:5432:replication:wal\\:keep:se\\:c\\\\ret", Some("se:c\\ret"));
        check("other:5432:*:*:no\n*:*:*:*:yes\n*:*:*:*:late", Some("yes"));
        check("# comment\ndb:*:replication:*:x:y", Some("x:y"));
        check("db:5433:*:*:no", None);
        check("db:5432:postgres:*:no", None);
        check("\\*:*:*:*:no", None);
        check("db:5432:replication:wal\\:keep", None);
        check("*:*:*:*:crlf\r\n", Some("crlf"));
    }

    #[test]
    fn a_file_others_can_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pgpass");
        assert!(look_up_password(&path, WANTED).unwrap().is_none(), "no file is no error");
        std::fs::write(&path, "*:*:*:*:x").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(look_up_password(&path, WANTED).unwrap_err().contains("chmod 0600"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(look_up_password(&path, WANTED).unwrap().unwrap().reveal(), "x");
    }
}
