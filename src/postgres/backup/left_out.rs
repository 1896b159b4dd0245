//! What the server left out of a base backup, as its warnings name it. Pure.
//!
//! `sendDir` (`basebackup.c`) copies files and directories. A symbolic link outside of `pg_tblspc`, a socket or a
//! device it leaves out with a warning ("skipping special file"), whose text is translated: it is recognised by the C
//! function that raised it, and the path is found in it because it begins like a path that the server was about to
//! send.

use crate::postgres::wire::{ServerError, ServerWarnings};

/// The function that walks the data directory and the tablespaces.
const WALKING_ROUTINE: &str = "sendDir";

/// Entries of the data directory without which PostgreSQL does not start, or starts with other data. Without the rest,
/// such as a configuration file or a socket, it has the same data.
const NEEDED_ENTRIES: [&str; 9] = [
    "PG_VERSION",
    "base",
    "global",
    "pg_commit_ts",
    "pg_logical",
    "pg_multixact",
    "pg_tblspc",
    "pg_twophase",
    "pg_xact",
];

/// A tablespace by its number and where the server has it.
pub(super) struct TablespacePlace<'a> {
    pub(super) oid: u32,
    pub(super) location: &'a str,
}

/// What was left out.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct LeftOut {
    /// Paths that a restore needs, relative to the data directory; a whole warning that names no path.
    pub(super) needed: Vec<String>,
    /// How many more there may be.
    pub(super) more: u64,
    /// Paths that it does not need.
    pub(super) unneeded: Vec<String>,
    /// Warnings about something else.
    pub(super) other: Vec<String>,
}

impl LeftOut {
    pub(super) fn read(warnings: &ServerWarnings, tablespaces: &[TablespacePlace<'_>]) -> LeftOut {
        let mut found = LeftOut { more: warnings.more, ..LeftOut::default() };
        for warning in &warnings.kept {
            if warning.routine != WALKING_ROUTINE {
                found.other.push(warning.message.clone());
                continue;
            }
            match path_in(warning, tablespaces) {
                Some(path) if !is_needed(&path) => found.unneeded.push(path),
                Some(path) => found.needed.push(path),
                None => found.needed.push(warning.message.clone()),
            }
        }
        found
    }
}

fn is_needed(path: &str) -> bool {
    let first = path.split('/').next().unwrap_or(path);
    NEEDED_ENTRIES.contains(&first)
}

/// The path that a message names, relative to the data directory. The server writes `./` in front of one in the data
/// directory, and the tablespace's own place in front of another.
fn path_in(warning: &ServerError, tablespaces: &[TablespacePlace<'_>]) -> Option<String> {
    let message = &warning.message;
    // While it estimates sizes, before it sends anything, a tablespace has the path of its link.
    let main = [("./".to_owned(), String::new()), ("pg_tblspc/".to_owned(), "pg_tblspc/".to_owned())];
    let of_tablespaces =
        tablespaces.iter().map(|space| (format!("{}/", space.location), format!("pg_tblspc/{}/", space.oid)));
    of_tablespaces.chain(main).find_map(|(prefix, instead)| {
        // Quoted, whichever quotes the language has: what is before the path is one character that ends it, too, or
        // its counterpart.
        let (before, rest) = message.split_once(prefix.as_str())?;
        // French sets a space between quote and path.
        let quote = before.trim_end_matches([' ', '\u{a0}']).chars().next_back()?;
        if quote.is_alphanumeric() || quote == '/' {
            return None;
        }
        let closing = match quote {
            '»' => '«',
            '«' => '»',
            '„' | '“' => '“',
            '‘' | '‚' => '’',
            '「' => '」',
            other => other,
        };
        let (path, _) = rest.rsplit_once(closing).or_else(|| rest.rsplit_once('”'))?;
        Some(format!("{instead}{}", path.trim_end_matches([' ', '\u{a0}'])))
    })
}

#[cfg(test)]
mod tests {
    use super::{LeftOut, TablespacePlace};
    use crate::postgres::wire::{ServerError, ServerWarnings};

    fn read(messages: &[&str]) -> LeftOut {
        let warning = |message: &&str| ServerError {
            severity: "WARNING".into(),
            message: (*message).into(),
            routine: "sendDir".into(),
            ..ServerError::default()
        };
        let warnings = ServerWarnings { kept: messages.iter().map(warning).collect(), more: 0 };
        LeftOut::read(&warnings, &[TablespacePlace { oid: 16385, location: "/srv/fast" }])
    }

    #[test]
    fn paths_are_found_in_every_language() {
        let found = read(&[
            r#"skipping special file "./base/5/16384""#,
            r#"skipping special file or directory "./base/16390""#,
            "überspringe besondere Datei »./base/5/16385«",
            "fichier spécial « ./global/1262 » ignoré",
            "спецфайл \u{201e}./pg_xact/0000\u{201c} пропускается",
            r#"skipping special file "/srv/fast/PG_15_202209061/5/16400""#,
            r#"skipping special file "pg_tblspc/16385/PG_15_202209061/5/16400""#,
            r#"skipping special file "./pg_tblspc/16385/PG_15_202209061/5/16400""#,
        ]);
        let expected = [
            "base/5/16384",
            "base/16390",
            "base/5/16385",
            "global/1262",
            "pg_xact/0000",
            "pg_tblspc/16385/PG_15_202209061/5/16400",
            "pg_tblspc/16385/PG_15_202209061/5/16400",
            "pg_tblspc/16385/PG_15_202209061/5/16400",
        ];
        assert_eq!(found.needed, expected);
        assert!(found.unneeded.is_empty() && found.other.is_empty());
    }

    #[test]
    fn settings_sockets_and_the_like_are_not_needed_and_the_unknown_is() {
        let found =
            read(&[r#"skipping special file "./pg_hba.conf""#, r#"skipping special file "./.s.PGSQL.5432""#, "x"]);
        assert_eq!(found.unneeded, ["pg_hba.conf", ".s.PGSQL.5432"]);
        assert_eq!(found.needed, ["x"]);
    }
}
