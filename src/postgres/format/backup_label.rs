//! `backup_label` and `tablespace_map`: what tells a restored data directory where its recovery begins and where its
//! tablespaces are (`build_backup_content` in `xlogbackup.c`, `read_backup_label` and `read_tablespace_map` in
//! `xlogrecovery.c`).
//!
//! Both are kept byte for byte; they are parsed here to be understood, and a tablespace map is written anew only when a
//! restore puts a tablespace elsewhere.

use super::lsn::Lsn;
use super::segment::SegmentName;
use super::timeline::TimelineId;

/// The longest of either file that is read, in bytes: room for some thousand tablespaces.
const MAX_LABEL_FILE_BYTES: usize = 4 << 20;

/// Which server a backup was taken from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BackupFrom {
    /// A primary; 13 calls it `master`.
    Primary,
    /// A standby.
    Standby,
}

/// What a `backup_label` says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackupLabel {
    /// Where recovery of this backup begins to read WAL: the redo position of its checkpoint.
    pub start: Lsn,
    /// The segment of that position.
    pub start_segment: SegmentName,
    /// The checkpoint's record.
    pub checkpoint: Lsn,
    /// The timeline of both.
    pub timeline: TimelineId,
    /// Whether the backup was taken over a connection (`streamed`), the one method that 15 and later know.
    pub streamed: bool,
    /// Which server it was taken from. Very old files don't say.
    pub from: Option<BackupFrom>,
    /// When it began, in the server's own `log_timezone`; for people only.
    pub start_time: Option<String>,
    /// What its taker called it.
    pub label: Option<String>,
    /// Whether it is incremental (17 and later), of no use until `pg_combinebackup` has made it whole.
    pub incremental: bool,
}

/// A `backup_label` or `tablespace_map` that PostgreSQL would refuse.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackupLabelError {
    /// Not UTF-8 where it must be, or too long.
    #[error("{file} is no text of at most {MAX_LABEL_FILE_BYTES} bytes")]
    NotText {
        /// Which of the two files.
        file: &'static str,
    },
    /// A line that is missing or not of its form.
    #[error("backup_label has no line of the form {expected:?}")]
    Missing {
        /// What the line begins with.
        expected: &'static str,
    },
    /// The start position, its segment and its timeline contradict one another.
    #[error("backup_label names timeline {timeline} beside segment {segment}")]
    Contradiction {
        /// What the last line says.
        timeline: TimelineId,
        /// What the first line says.
        segment: SegmentName,
    },
    /// A line of the map that is not `<oid> <path>`.
    #[error("line {line} of tablespace_map is not of the form <oid> <path>")]
    MapLine {
        /// Counted from one.
        line: usize,
    },
}

impl BackupLabel {
    /// The name of the file in a data directory.
    pub const FILE: &'static str = "backup_label";

    /// Reads the file. The lines stand in a fixed order; the first two are needed, the rest may be absent as in old
    /// servers' files.
    ///
    /// # Errors
    /// [`BackupLabelError`] where PostgreSQL would refuse the file too.
    pub fn parse(bytes: &[u8]) -> Result<BackupLabel, BackupLabelError> {
        let text = text_of_file(bytes, BackupLabel::FILE)?;
        let mut lines = text.lines().peekable();
        let mut next = |prefix: &'static str| {
            lines.next_if(|line| line.starts_with(prefix)).and_then(|line| line.strip_prefix(prefix))
        };
        let (start, start_segment) =
            next("START WAL LOCATION: ").and_then(parse_start_location).ok_or(BackupLabelError::Missing {
                expected: "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)",
            })?;
        let checkpoint = next("CHECKPOINT LOCATION: ")
            .and_then(|position| position.parse().ok())
            .ok_or(BackupLabelError::Missing { expected: "CHECKPOINT LOCATION: 0/2000060" })?;
        let streamed = next("BACKUP METHOD: ") == Some("streamed");
        let from = match next("BACKUP FROM: ") {
            Some("primary" | "master") => Some(BackupFrom::Primary),
            Some("standby") => Some(BackupFrom::Standby),
            _ => None,
        };
        let start_time = next("START TIME: ").map(str::to_owned);
        let label = next("LABEL: ").map(str::to_owned);
        let timeline = match next("START TIMELINE: ") {
            Some(number) => {
                number.parse().map_err(|_not_a_number| BackupLabelError::Missing { expected: "START TIMELINE: 1" })?
            }
            None => start_segment.timeline(),
        };
        if timeline != start_segment.timeline() {
            return Err(BackupLabelError::Contradiction { timeline, segment: start_segment });
        }
        let incremental = next("INCREMENTAL FROM LSN: ").is_some();
        Ok(BackupLabel { start, start_segment, checkpoint, timeline, streamed, from, start_time, label, incremental })
    }
}

/// `0/2000028 (file 000000010000000000000002)`.
fn parse_start_location(text: &str) -> Option<(Lsn, SegmentName)> {
    let (position, file) = text.split_once(" (file ")?;
    Some((position.parse().ok()?, SegmentName::parse(file.strip_suffix(')')?)?))
}

/// The file as text. The name its taker gave it may be in any encoding: what is no UTF-8 is replaced, for it is only
/// ever shown.
fn text_of_file<'a>(bytes: &'a [u8], file: &'static str) -> Result<std::borrow::Cow<'a, str>, BackupLabelError> {
    if bytes.len() > MAX_LABEL_FILE_BYTES {
        return Err(BackupLabelError::NotText { file });
    }
    Ok(String::from_utf8_lossy(bytes))
}

/// How a tablespace map writes a path with unusual bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TablespaceMapEscapes {
    /// PostgreSQL 13: a backslash before a line end, and nothing else.
    LineEnds,
    /// PostgreSQL 14 and later: a backslash before a line end or a backslash.
    LineEndsAndBackslashes,
}

impl TablespaceMapEscapes {
    /// How a server of this major version writes and reads them.
    #[must_use]
    pub const fn for_major_version(major: u32) -> TablespaceMapEscapes {
        if major < 14 { TablespaceMapEscapes::LineEnds } else { TablespaceMapEscapes::LineEndsAndBackslashes }
    }
}

/// One tablespace and the directory it lies in.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct MappedTablespace {
    /// The tablespace's number; its link is `pg_tblspc/<oid>`.
    pub oid: u32,
    /// The directory the link points to.
    pub path: String,
}

/// What a `tablespace_map` says: which links recovery must make in `pg_tblspc`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TablespaceMap {
    /// In the file's order.
    pub tablespaces: Vec<MappedTablespace>,
}

impl TablespaceMap {
    /// The name of the file in a data directory.
    pub const FILE: &'static str = "tablespace_map";

    /// Reads the file.
    ///
    /// # Errors
    /// [`BackupLabelError`] for a line that is not `<oid> <path>`, or a path that is not UTF-8.
    pub fn parse(bytes: &[u8], escapes: TablespaceMapEscapes) -> Result<TablespaceMap, BackupLabelError> {
        let not_text = BackupLabelError::NotText { file: TablespaceMap::FILE };
        if bytes.len() > MAX_LABEL_FILE_BYTES {
            return Err(not_text);
        }
        let text = std::str::from_utf8(bytes).map_err(|_not_utf8| not_text)?;
        let mut tablespaces = Vec::new();
        for (number, line) in map_lines(text, escapes).into_iter().enumerate() {
            let tablespace = line
                .split_once(' ')
                .and_then(|(oid, path)| Some(MappedTablespace { oid: oid.parse().ok()?, path: path.to_owned() }))
                .filter(|tablespace| !tablespace.path.is_empty());
            tablespaces.push(tablespace.ok_or(BackupLabelError::MapLine { line: number.saturating_add(1) })?);
        }
        Ok(TablespaceMap { tablespaces })
    }

    /// Writes the file as the server does (`do_pg_backup_start`).
    #[must_use]
    pub fn serialise(&self, escapes: TablespaceMapEscapes) -> Vec<u8> {
        let mut text = String::new();
        for tablespace in &self.tablespaces {
            text.push_str(&tablespace.oid.to_string());
            text.push(' ');
            for character in tablespace.path.chars() {
                let line_end = matches!(character, '\n' | '\r');
                if line_end || (character == '\\' && escapes == TablespaceMapEscapes::LineEndsAndBackslashes) {
                    text.push('\\');
                }
                text.push(character);
            }
            text.push('\n');
        }
        text.into_bytes()
    }
}

/// The map's lines with their escapes undone. An escaped line end is part of its line.
fn map_lines(text: &str, escapes: TablespaceMapEscapes) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let escaped = (character == '\\')
            .then(|| {
                characters.next_if(|next| {
                    matches!(next, '\n' | '\r') || escapes == TablespaceMapEscapes::LineEndsAndBackslashes
                })
            })
            .flatten();
        match (escaped, character) {
            (Some(escaped), _) => line.push(escaped),
            (None, '\n' | '\r') if line.is_empty() => {}
            (None, '\n' | '\r') => lines.push(std::mem::take(&mut line)),
            (None, other) => line.push(other),
        }
    }
    if !line.is_empty() {
        lines.push(line);
    }
    lines
}

/// The body of a fuzz target: any bytes as each of the files; a map that was read is written and read again.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    if let Ok(label) = BackupLabel::parse(data) {
        assert_eq!(label.timeline, label.start_segment.timeline());
    }
    for escapes in [TablespaceMapEscapes::LineEnds, TablespaceMapEscapes::LineEndsAndBackslashes] {
        if let Ok(map) = TablespaceMap::parse(data, escapes) {
            // A path of 13 that ends in a backslash cannot be told from an escaped line end: the server has the same
            // trouble.
            let ambiguous =
                escapes == TablespaceMapEscapes::LineEnds && map.tablespaces.iter().any(|t| t.path.contains('\\'));
            let again = TablespaceMap::parse(&map.serialise(escapes), escapes);
            assert!(ambiguous || again.as_ref() == Ok(&map), "{map:?} became {again:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{
        BackupFrom, BackupLabel, BackupLabelError, MappedTablespace, TablespaceMap, TablespaceMapEscapes, fuzz,
    };

    const LABELS: [(&[u8], BackupFrom, &str, &str); 4] = [
        (
            include_bytes!("../../../tests/fixtures/label/13.backup_label"),
            BackupFrom::Primary,
            "0/2000028",
            "0/2000060",
        ),
        (
            include_bytes!("../../../tests/fixtures/label/15.backup_label"),
            BackupFrom::Primary,
            "0/2000028",
            "0/2000060",
        ),
        (
            include_bytes!("../../../tests/fixtures/label/18.backup_label"),
            BackupFrom::Primary,
            "0/2000028",
            "0/2000080",
        ),
        (
            include_bytes!("../../../tests/fixtures/label/18-standby.backup_label"),
            BackupFrom::Standby,
            "0/3000028",
            "0/3000080",
        ),
    ];

    #[test]
    fn reads_what_servers_wrote() {
        for (bytes, from, start, checkpoint) in LABELS {
            let label = BackupLabel::parse(bytes).unwrap();
            assert_eq!((label.from, label.streamed, label.incremental), (Some(from), true, false));
            assert_eq!((label.start.to_string().as_str(), label.checkpoint.to_string().as_str()), (start, checkpoint));
            assert_eq!(label.timeline.get(), 1);
            let name = if from == BackupFrom::Standby { "standby" } else { "it is a \"label\" with spaces" };
            assert_eq!(label.label.as_deref(), Some(name));
            assert!(label.start_time.unwrap().starts_with("2026-11-22 18:1"));
        }
    }

    #[test]
    fn what_postgresql_would_refuse_is_refused() {
        let start = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n";
        let minimal = format!("{start}CHECKPOINT LOCATION: 0/2000060\n");
        assert!(BackupLabel::parse(minimal.as_bytes()).is_ok());
        for wrong in [
            "",
            start,
            "CHECKPOINT LOCATION: 0/2000060\n",
            "START WAL LOCATION: 0/2000028\nCHECKPOINT LOCATION: 0/2000060\n",
        ] {
            assert!(matches!(BackupLabel::parse(wrong.as_bytes()), Err(BackupLabelError::Missing { .. })), "{wrong:?}");
        }
        let other = format!("{minimal}START TIMELINE: 2\n");
        assert!(matches!(BackupLabel::parse(other.as_bytes()), Err(BackupLabelError::Contradiction { .. })));
        let incremental =
            format!("{minimal}START TIMELINE: 1\nINCREMENTAL FROM LSN: 0/1000028\nINCREMENTAL FROM TLI: 1\n");
        assert!(BackupLabel::parse(incremental.as_bytes()).unwrap().incremental);
    }

    #[test]
    fn a_map_is_read_by_the_rules_of_its_major() {
        for (bytes, major) in [
            (include_bytes!("../../../tests/fixtures/label/13.tablespace_map").as_slice(), 13),
            (include_bytes!("../../../tests/fixtures/label/15.tablespace_map").as_slice(), 15),
            (include_bytes!("../../../tests/fixtures/label/18.tablespace_map").as_slice(), 18),
        ] {
            let escapes = TablespaceMapEscapes::for_major_version(major);
            let map = TablespaceMap::parse(bytes, escapes).unwrap();
            let mut paths: Vec<&str> = map.tablespaces.iter().map(|tablespace| tablespace.path.as_str()).collect();
            paths.sort_unstable();
            assert_eq!(paths, ["/srv/walkeep/ts 1", "/srv/walkeep/ts\\2"], "{major}");
            assert_eq!(map.serialise(escapes), bytes, "{major}");
        }
        let escapes = TablespaceMapEscapes::for_major_version(18);
        assert_eq!(TablespaceMap::parse(b"1 /a\nx /b\n", escapes), Err(BackupLabelError::MapLine { line: 2 }));
        assert_eq!(TablespaceMap::parse(b"1 \n", escapes), Err(BackupLabelError::MapLine { line: 1 }));
    }

    proptest! {
        #[test]
        fn any_path_comes_back(paths in proptest::collection::vec("/[a-z \\\\\n\r\u{e9}]{0,12}", 0..5)) {
            let tablespaces = (16_384..).zip(paths).map(|(oid, path)| MappedTablespace { oid, path }).collect();
            let map = TablespaceMap { tablespaces };
            let escapes = TablespaceMapEscapes::LineEndsAndBackslashes;
            prop_assert_eq!(TablespaceMap::parse(&map.serialise(escapes), escapes), Ok(map));
        }

        #[test]
        fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            fuzz(&data);
        }

        #[test]
        fn any_lines_are_read_or_refused(text in "([0-9]{1,2} /[a\\\\ \r\n]{0,4}\n){0,4}") {
            fuzz(text.as_bytes());
        }
    }
}
