//! PostgreSQL's configuration files as text: what they set, and lines for them. Text in, text out.

/// What a configuration file sets.
pub(super) struct ConfigurationFile {
    set: Vec<(String, String)>,
    /// Whether it may set more than is known here: it includes other files, or it is not known itself.
    may_set_more: bool,
}

impl ConfigurationFile {
    pub(super) fn parse(text: &str) -> ConfigurationFile {
        let set: Vec<(String, String)> = text.lines().filter_map(parse_setting).collect();
        let may_set_more = set.iter().any(|(name, _)| name.starts_with("include"));
        ConfigurationFile { set, may_set_more }
    }

    /// A file that is not in the data directory. It may set anything.
    pub(super) const fn unknown() -> ConfigurationFile {
        ConfigurationFile { set: Vec::new(), may_set_more: true }
    }

    pub(super) const fn may_set_more(&self) -> bool {
        self.may_set_more
    }

    pub(super) fn may_set(&self, name: &str) -> bool {
        self.may_set_more || self.value(name).is_some()
    }

    /// The value of a setting as far as it is known. The last line of a file wins.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.set.iter().rev().find(|(set, _)| set == name).map(|(_, value)| value.as_str())
    }
}

/// A line of configuration as name and value: `name = value`, the equals sign optional, comments after `#`
/// (`guc-file.l`). Names don't mind case.
pub(super) fn parse_setting(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$')))?;
    let (name, rest) = line.split_at_checked(end)?;
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        Some(inner) => unquote_value(inner),
        None => rest.split(|c: char| c == '#' || c.is_whitespace()).next().unwrap_or("").to_owned(),
    };
    Some((name.to_ascii_lowercase(), value))
}

/// The line that sets `name` to `value`, without its end.
pub(super) fn setting_line(name: &str, value: &str) -> String {
    format!("{name} = '{}'", quote_value(value))
}

/// The lines of a file that are kept, byte for byte: a file of another encoding stays as it is.
pub(super) fn kept_lines(file: &[u8], is_kept: impl Fn(&str) -> bool) -> Vec<u8> {
    let mut kept = Vec::with_capacity(file.len());
    for line in file.split_inclusive(|byte| *byte == b'\n') {
        if is_kept(&String::from_utf8_lossy(line)) {
            kept.extend_from_slice(line);
        }
    }
    if kept.last().is_some_and(|last| *last != b'\n') {
        kept.push(b'\n');
    }
    kept
}

/// A value up to its closing quote; two quotes or a backslash and a quote are one quote.
fn unquote_value(text: &str) -> String {
    let mut value = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\'' if characters.next_if_eq(&'\'').is_none() => break,
            '\\' => value.extend(characters.next()),
            other => value.push(other),
        }
    }
    value
}

/// Doubled quotes and backslashes (`escape_single_quotes_ascii`).
fn quote_value(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "''")
}

#[cfg(test)]
mod tests {
    use super::{ConfigurationFile, kept_lines, parse_setting, setting_line};

    #[test]
    fn lines_are_read_as_postgresql_reads_them() {
        let is = |line: &str, name: &str, value: &str| {
            assert_eq!(parse_setting(line), Some((name.into(), value.into())), "{line}")
        };
        is("a = 1 # one", "a", "1");
        is("  Work_Mem='it''s'", "work_mem", "it's");
        is("b 'x\\'y' # z", "b", "x'y");
        is("include_dir = 'conf.d'", "include_dir", "conf.d");
        is(&setting_line("c", "it's a \\"), "c", "it's a \\");
        assert_eq!(parse_setting("# a = 1"), None);
        assert_eq!(parse_setting(""), None);
    }

    #[test]
    fn a_file_that_is_not_known_may_set_anything() {
        assert!(ConfigurationFile::unknown().may_set("work_mem"));
        assert!(ConfigurationFile::parse("include_if_exists 'x'").may_set("work_mem"));
        assert!(!ConfigurationFile::parse("a = 1").may_set("work_mem"));
    }

    #[test]
    fn kept_lines_keep_their_bytes() {
        let file = b"# caf\xe9\na = 1\nb = '\xff'";
        assert_eq!(kept_lines(file, |line| !line.starts_with('a')), b"# caf\xe9\nb = '\xff'\n");
    }
}
