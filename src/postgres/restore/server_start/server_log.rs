//! What a server logged since it was started, wherever it logs. For people to read: nothing is decided by it, because
//! its words are in the server's language.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::ServerStartError;
use super::log_excerpt::LogExcerpt;
use super::postmaster::{ServerCommand, read_from};
use crate::base::clock::real_sleep;

/// How often the collector's files are read again until they no longer change, and the pause before each time.
const COLLECTOR_READS: u32 = 20;
const COLLECTOR_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of each log file that are looked at: a start and a replay that fail log far less.
const READ_LIMIT: u64 = 256 << 10;
/// Lines that are shown at the most.
const SHOWN_LINES: usize = 16;
/// Of those, how many are the last ones if there are more than can be shown.
const LAST_LINES: usize = 5;
/// Lines shown before the first that is not routine: a cause is often logged one line earlier.
const LINES_BEFORE: usize = 2;

/// Where a server logs.
#[derive(Debug)]
pub(super) struct ServerLog {
    pgdata: PathBuf,
    start_log: PathBuf,
    start_len: u64,
    collector: bool,
    destinations: String,
    directory: PathBuf,
    /// The files in `directory` before the start, and their lengths.
    before: BTreeMap<PathBuf, u64>,
}

impl ServerLog {
    /// Notes where the server will log, before it is started.
    pub(super) fn find(
        server: &ServerCommand,
        pgdata: &Path,
        start_log: PathBuf,
    ) -> Result<ServerLog, ServerStartError> {
        let collector = server.setting("logging_collector")? == "on";
        let directory = pgdata.join(server.setting("log_directory")?);
        let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
        let before = entries.filter_map(|entry| Some((entry.path(), entry.metadata().ok()?.len()))).collect();
        Ok(ServerLog {
            start_len: fs::metadata(&start_log).map_or(0, |metadata| metadata.len()),
            start_log,
            pgdata: pgdata.to_owned(),
            collector,
            destinations: server.setting("log_destination")?,
            directory,
            before,
        })
    }

    /// What there is to show of a server that has ended. The process that collects its log may still be writing.
    pub(super) async fn last_excerpt(&self) -> LogExcerpt {
        let mut excerpt = self.excerpt();
        for _ in 0..if self.collector { COLLECTOR_READS } else { 0 } {
            real_sleep(COLLECTOR_PAUSE).await;
            let again = self.excerpt();
            let settled = again == excerpt && again.lines.len() > 1;
            excerpt = again;
            if settled && self.has_collected() {
                break;
            }
        }
        excerpt
    }

    /// Whether a file has lines by the collector.
    fn has_collected(&self) -> bool {
        let longer = |path: &PathBuf| {
            let len = fs::metadata(path).map_or(0, |metadata| metadata.len());
            len > self.before.get(path).copied().unwrap_or(0)
        };
        self.collected_files().iter().any(|(_, path)| longer(path))
    }

    /// What there is to show.
    pub(super) fn excerpt(&self) -> LogExcerpt {
        let mut lines = read_text_log(&self.start_log, self.start_len);
        let mut places = vec![self.start_log.display().to_string()];
        if self.collector {
            let files = self.collected_files();
            if files.is_empty() {
                places.push(format!("{}, by logging_collector", self.directory.display()));
            }
            // All formats have the same messages; one that can be read is enough.
            let mut read = false;
            for (format, path) in files {
                let from = self.before.get(&path).copied().unwrap_or(0);
                places.push(path.display().to_string());
                if read {
                    continue;
                }
                let found = match format.as_str() {
                    "csvlog" => csv_lines(&read_from(&path, from, READ_LIMIT).unwrap_or_default()),
                    "jsonlog" => json_lines(&read_from(&path, from, READ_LIMIT).unwrap_or_default()),
                    _ => read_text_log(&path, from),
                };
                read = !found.is_empty();
                lines.extend(found);
            }
        }
        if self.destinations.split(',').any(|destination| destination.trim() == "syslog") {
            places.push("the system's log, by syslog".to_owned());
        }
        let first_error = first_odd_line(&lines).and_then(|at| lines.get(at)).map(|line| line.trim().to_owned());
        LogExcerpt { lines: lines_to_show(&lines), first_error, place: places.join(", ") }
    }

    /// The files that the collector writes, with their formats: by the server's own note of them, or if it ended before
    /// it wrote one, those that have grown.
    fn collected_files(&self) -> Vec<(String, PathBuf)> {
        let text = fs::read_to_string(self.pgdata.join("current_logfiles")).unwrap_or_default();
        let pair = |line: &str| {
            let (format, path) = line.split_once(' ')?;
            Some((format.to_owned(), self.pgdata.join(path)))
        };
        let noted: Vec<(String, PathBuf)> = text.lines().filter_map(pair).collect();
        if !noted.is_empty() {
            return noted;
        }
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let grown = entries.filter(|entry| {
            let before = self.before.get(&entry.path()).copied().unwrap_or(0);
            entry.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() > before)
        });
        let format = |path: &Path| match path.extension().and_then(|ending| ending.to_str()) {
            Some("csv") => "csvlog".to_owned(),
            Some("json") => "jsonlog".to_owned(),
            _ => "stderr".to_owned(),
        };
        grown.map(|entry| (format(&entry.path()), entry.path())).collect()
    }
}

fn read_text_log(path: &Path, from: u64) -> Vec<String> {
    let text = read_from(path, from, READ_LIMIT).unwrap_or_default();
    text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect()
}

/// The word by which a line says how grave it is, such as `LOG` or `FATAL`: it precedes a colon and two spaces
/// (`send_message_to_server_log`), in the server's language.
fn severity_word(line: &str) -> Option<&str> {
    let (before, _) = line.split_once(":  ")?;
    before.rsplit(char::is_whitespace).next().filter(|word| !word.is_empty())
}

/// Where the first line is that is not routine. Which word means routine is learned from the first line, with which
/// every server reports its version. A hint to where the log goes is no error, though it has another word: the line
/// before it is about the same file.
fn first_odd_line(lines: &[String]) -> Option<usize> {
    let routine = lines.iter().find_map(|line| severity_word(line));
    let odd = |line: &String| severity_word(line).is_some_and(|word| Some(word) != routine);
    // The collector's hint is the second line of all, after the one with which the server hands its log over.
    let handed_over = lines.iter().position(odd).filter(|at| *at == 1);
    match handed_over.and_then(|at| lines.iter().skip(at.saturating_add(1)).position(odd)) {
        Some(later) => Some(later.saturating_add(2)),
        None => lines.iter().position(odd),
    }
}

/// The lines from about the first on that is not routine.
fn lines_to_show(lines: &[String]) -> Vec<String> {
    let odd = first_odd_line(lines);
    let from = odd.map_or(0, |odd| odd.saturating_sub(LINES_BEFORE));
    let shown = lines.get(from..).unwrap_or_default();
    let shown = if odd.is_none() && shown.len() > LAST_LINES {
        shown.get(shown.len().saturating_sub(LAST_LINES)..).unwrap_or_default()
    } else {
        shown
    };
    if shown.len() <= SHOWN_LINES {
        return shown.to_vec();
    }
    let first = shown.get(..SHOWN_LINES.saturating_sub(LAST_LINES)).unwrap_or_default();
    let last = shown.get(shown.len().saturating_sub(LAST_LINES)..).unwrap_or_default();
    let left_out = shown.len().saturating_sub(first.len()).saturating_sub(last.len());
    first.iter().cloned().chain([format!("... ({left_out} lines)")]).chain(last.iter().cloned()).collect()
}

/// A record's severity, message, detail and hint as the lines of an ordinary log.
fn record_lines(severity: &str, parts: [(&str, &str); 3]) -> Vec<String> {
    let named = parts.into_iter().filter(|(_, text)| !text.is_empty());
    named.map(|(name, text)| format!("{}:  {text}", if name.is_empty() { severity } else { name })).collect()
}

/// `csvlog`: columns 12, 14, 15 and 16 (`write_csvlog`).
fn csv_lines(text: &str) -> Vec<String> {
    let record = |fields: Vec<String>| {
        let field = |at: usize| fields.get(at).map(String::as_str).unwrap_or_default();
        record_lines(field(11), [("", field(13)), ("DETAIL", field(14)), ("HINT", field(15))])
    };
    csv_records(text).into_iter().flat_map(record).collect()
}

fn csv_records(text: &str) -> Vec<Vec<String>> {
    let (mut records, mut fields, mut field, mut quoted) = (Vec::new(), Vec::new(), String::new(), false);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.next_if_eq(&'"').is_some() => field.push('"'),
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            '\n' if !quoted => {
                fields.push(std::mem::take(&mut field));
                records.push(std::mem::take(&mut fields));
            }
            // A message of several lines is one line here.
            '\n' => field.push(' '),
            other => field.push(other),
        }
    }
    records
}

/// `jsonlog`: an object in each line.
fn json_lines(text: &str) -> Vec<String> {
    let record = |line: &str| {
        let value: serde_json::Value = serde_json::from_str(line).ok()?;
        let text = |name: &str| value.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned();
        let (message, detail, hint) = (text("message"), text("detail"), text("hint"));
        Some(record_lines(&text("error_severity"), [("", &message), ("DETAIL", &detail), ("HINT", &hint)]))
    };
    text.lines().filter_map(record).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::{LogExcerpt, csv_lines, first_odd_line, json_lines, lines_to_show, severity_word};

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_first_line_that_is_not_routine_is_found_in_any_language() {
        // As PostgreSQL 15 logs with lc_messages = de_DE.UTF-8 and ru_RU.UTF-8.
        let german = lines(
            "2026-12-01 06:00:00 UTC [7] LOG:  PostgreSQL 15.18 startet\n\
             2026-12-01 06:00:00 UTC [7] LOG:  erwarte Verbindungen auf Unix-Socket\n\
             2026-12-01 06:00:01 UTC [9] LOG:  starte Wiederherstellung\n\
             2026-12-01 06:00:01 UTC [9] LOG:  noch eine Zeile\n\
             2026-12-01 06:00:01 UTC [9] FATAL:  konnte Datei nicht wiederherstellen\n\
             2026-12-01 06:00:02 UTC [7] LOG:  Datenbanksystem ist heruntergefahren",
        );
        let shown = lines_to_show(&german);
        assert_eq!(shown.len(), 4, "{shown:?}");
        assert!(shown[2].contains("konnte Datei nicht"), "{shown:?}");
        let russian = lines("СООБЩЕНИЕ:  запуск\nВАЖНО:  нет файла\nСООБЩЕНИЕ:  завершение");
        assert_eq!(lines_to_show(&russian).len(), 3);
        assert_eq!(severity_word("2026 [1] ВАЖНО:  нет"), Some("ВАЖНО"));
        assert_eq!(severity_word("\tat character 7: x"), None);
    }

    #[test]
    fn a_log_that_is_handed_to_the_collector_is_no_error() {
        let handed = lines("LOG:  Logausgabe nach stderr\nTIPP:  Verzeichnis log\nLOG:  startet\nLOG:  x\nFATAL:  y");
        assert_eq!(first_odd_line(&handed), Some(4));
        assert_eq!(first_odd_line(&handed[..4]), Some(1), "there is nothing else");
    }

    #[test]
    fn a_long_log_is_cut_in_its_middle_and_a_routine_one_to_its_end() {
        let routine: Vec<String> = (0..30).map(|n| format!("LOG:  line {n}")).collect();
        let shown = lines_to_show(&routine);
        assert_eq!((shown.len(), shown[0].as_str()), (5, "LOG:  line 25"));
        let mut long = routine;
        long.insert(3, "PANIK:  kaputt".to_owned());
        let shown = lines_to_show(&long);
        assert_eq!((shown.len(), shown[0].as_str(), shown[2].as_str()), (17, "LOG:  line 1", "PANIK:  kaputt"));
        assert!(shown.iter().any(|line| line.contains("lines)")) && shown[16] == "LOG:  line 29", "{shown:?}");
        assert!(lines_to_show(&[]).is_empty());
    }

    #[test]
    fn csv_and_json_logs_read_as_ordinary_ones() {
        let csv = "2026-12-01 06:00:01 UTC,,,7,,id,1,,2026-12-01 06:00:00 UTC,,0,FATAL,22023,\
                   \"say \"\"a\"\",\nor b\",\"det\",,,,,,,,,\"startup\",,0\n";
        assert_eq!(csv_lines(csv), ["FATAL:  say \"a\", or b", "DETAIL:  det"]);
        let json = "{\"error_severity\":\"FEHLER\",\"message\":\"m\",\"hint\":\"h\"}\nnot json\n";
        assert_eq!(json_lines(json), ["FEHLER:  m", "HINT:  h"]);
        let excerpt = LogExcerpt { lines: csv_lines(csv), first_error: Some("FATAL:  a".into()), place: "/x".into() };
        assert_eq!(excerpt.to_string(), "FATAL:  a; its log: /x");
    }
}
