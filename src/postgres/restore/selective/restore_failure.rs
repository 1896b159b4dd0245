//! What could not be brought back with a part: read from what `pg_restore` writes to standard error.
//!
//! `pg_restore` continues after an error. For each it writes the server's words and the statement
//! (`ahwrite` and `warn_or_exit_horribly` in pg_backup_archiver.c). It names the entry of the dump only in some
//! versions. Its own words are English here, because the tools run with `LC_ALL=C`; the server's may be in any language
//! and are only shown.

/// One thing that could not be brought back.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct RestoreFailure {
    /// What it is, such as `CREATE INDEX orders_total ON orders USING btree (total);`.
    pub object: String,
    /// The server's words.
    pub reason: String,
    /// The statement that failed, if it was one.
    pub statement: Option<String>,
    /// What to do about it.
    pub advice: String,
}

/// Something in a dump that `pg_restore` could not restore.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct FailedEntry {
    pub(super) reason: String,
    pub(super) statement: Option<String>,
}

/// A message of its own begins so.
const OWN_MESSAGE: &str = "pg_restore: ";
/// The rows of a table were refused.
const ROWS_REFUSED: &str = "COPY failed for table \"";

impl FailedEntry {
    /// Every failure in what `pg_restore` wrote, in order.
    pub(super) fn read_all(said: &str) -> Vec<FailedEntry> {
        let mut found: Vec<FailedEntry> = Vec::new();
        // Whether a message of its own that is no error came after the last error.
        let mut ended = true;
        for line in said.lines() {
            if let Some((_, words)) = line.split_once("error: ").filter(|_| line.starts_with(OWN_MESSAGE)) {
                let reason = words.trim_start_matches("could not execute query: ").to_owned();
                found.push(FailedEntry { reason, statement: None });
                ended = false;
            } else if line.starts_with(OWN_MESSAGE) {
                ended = true;
            } else if let Some(failure) = found.last_mut().filter(|_| !ended) {
                failure.add_line(line);
            }
        }
        for failure in &mut found {
            failure.statement = failure.statement.take().map(|statement| statement.trim_end().to_owned());
        }
        found
    }

    /// A statement runs to the next message; of the server's words, the hint and the detail are kept.
    fn add_line(&mut self, line: &str) {
        match (&mut self.statement, line.split_once("Command was: ")) {
            (Some(statement), _) => {
                statement.push('\n');
                statement.push_str(line);
            }
            (None, Some(("", statement))) => self.statement = Some(statement.to_owned()),
            (None, _) if ["DETAIL:", "HINT:"].iter().any(|word| line.starts_with(word)) => {
                self.reason.push(' ');
                self.reason.push_str(line.trim());
            }
            (None, _) => {}
        }
    }

    /// The table whose rows were refused, without its schema.
    pub(super) fn refused_table(&self) -> Option<&str> {
        self.reason.strip_prefix(ROWS_REFUSED)?.split_once("\": ").map(|(table, _)| table)
    }

    /// For the report. A database gets its name last: the first of `renamed` becomes the second in the statement.
    pub(super) fn into_failure(self, renamed: Option<(&str, &str)>) -> RestoreFailure {
        let refused = self.refused_table().map(str::to_owned);
        let is_extension = self.statement.as_deref().is_some_and(|statement| statement.contains(" EXTENSION "));
        let advice = if refused.is_some() {
            "the table is empty; remove the cause and bring it back with --table".to_owned()
        } else if is_extension {
            "install the extension on this server, or live without it; then run the statement and those that need it"
                .to_owned()
        } else {
            "the data is there: run the statement once the cause is removed, with a search_path if its functions need \
             one"
            .to_owned()
        };
        let statement = match (self.statement, renamed) {
            (Some(statement), Some((staged, name))) => Some(statement.replace(staged, name)),
            (statement, _) => statement,
        };
        let object = match (&statement, refused) {
            (Some(statement), _) => statement.lines().next().unwrap_or_default().to_owned(),
            (None, Some(table)) => format!("rows of table {table}"),
            (None, None) => "a part of the dump".to_owned(),
        };
        RestoreFailure { object, reason: self.reason, statement, advice }
    }
}

#[cfg(test)]
mod tests {
    use super::FailedEntry;

    #[test]
    fn each_failure_has_its_reason_and_statement() {
        let said = "pg_restore: while PROCESSING TOC:\n\
            pg_restore: from TOC entry 3364; 1259 16409 INDEX idx postgres\n\
            pg_restore: error: could not execute query: ERROR:  function f(integer) does not exist\n\
            LINE 1: SELECT f(1)\nHINT:  No function matches.\nQUERY:  SELECT f(1)\n\
            Command was: CREATE INDEX idx ON public.t\n    USING btree (public.g(a));\n\n\n\
            pg_restore: from TOC entry 3350; 0 16402 TABLE DATA t postgres\n\
            pg_restore: error: COPY failed for table \"t\": ERREUR:  non\nCONTEXT:  COPY t, line 1\n\
            pg_restore: warning: errors ignored on restore: 2\n";
        let found = FailedEntry::read_all(said);
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(found[0].reason, "ERROR:  function f(integer) does not exist HINT:  No function matches.");
        let statement = found[0].statement.as_deref();
        assert_eq!(statement, Some("CREATE INDEX idx ON public.t\n    USING btree (public.g(a));"));
        assert_eq!((found[0].refused_table(), found[1].refused_table()), (None, Some("t")));
        assert_eq!(found[1].statement, None);
        let shown = found[0].clone().into_failure(None);
        assert_eq!(shown.object, "CREATE INDEX idx ON public.t");
        assert_eq!(FailedEntry::read_all("nothing"), []);
    }

    #[test]
    fn statements_name_the_database_as_it_is_called_at_the_end() {
        let entry = FailedEntry {
            statement: Some("ALTER ROLE gone IN DATABASE walkeep_restoring_ab SET x = 1;".to_owned()),
            ..FailedEntry::default()
        };
        let statement = entry.into_failure(Some(("walkeep_restoring_ab", "\"shop\""))).statement;
        assert_eq!(statement.as_deref(), Some("ALTER ROLE gone IN DATABASE \"shop\" SET x = 1;"));
    }
}
