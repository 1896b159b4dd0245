//! One table of the configuration file, read key by key, with the line of each for messages.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::ConfigError;

/// The file being read: its name and its text, to turn a position into a line.
pub(super) struct ConfigText<'s> {
    pub(super) path: PathBuf,
    pub(super) text: &'s str,
}

impl ConfigText<'_> {
    /// The line, counted from 1, on which the byte at `offset` stands.
    fn line(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count().saturating_add(1)
    }

    /// An error at the byte `offset`.
    pub(super) fn error(&self, offset: usize, message: impl Into<String>) -> ConfigError {
        ConfigError::Line { path: self.path.clone(), line: self.line(offset), message: message.into() }
    }

    /// The folder against which relative paths in the file are taken.
    pub(super) fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new(""))
    }
}

/// A value with the place where it stands.
#[derive(Debug)]
pub(super) struct LocatedValue<T> {
    pub(super) value: T,
    pub(super) offset: usize,
}

impl<T> LocatedValue<T> {
    /// The same place with what `change` makes of the value; its message becomes an error of that line.
    pub(super) fn and_then<U>(
        self,
        source: &ConfigText<'_>,
        change: impl FnOnce(T) -> Result<U, String>,
    ) -> Result<LocatedValue<U>, ConfigError> {
        match change(self.value) {
            Ok(value) => Ok(LocatedValue { value, offset: self.offset }),
            Err(message) => Err(source.error(self.offset, message)),
        }
    }
}

/// A table whose keys are all known.
pub(super) struct ConfigSection<'s, 't> {
    source: &'s ConfigText<'s>,
    /// As it is written, `[repository.local]`; empty for the top of the file.
    name: String,
    offset: usize,
    table: &'t DeTable<'t>,
}

impl<'s, 't> ConfigSection<'s, 't> {
    /// Takes the value under `name` as a table that has no keys but `known`.
    pub(super) fn open(
        source: &'s ConfigText<'s>,
        name: String,
        value: &'t Spanned<DeValue<'t>>,
        known: &[&str],
    ) -> Result<ConfigSection<'s, 't>, ConfigError> {
        let offset = value.span().start;
        let Some(table) = value.get_ref().as_table() else {
            let found = article(value.get_ref().type_str());
            return Err(source.error(offset, format!("{name} is a section with keys of its own, not {found}")));
        };
        let section = ConfigSection { source, name, offset, table };
        section.check(known)?;
        Ok(section)
    }

    /// The top of the file, whose keys and sections may be `known`.
    pub(super) fn top(
        source: &'s ConfigText<'s>,
        table: &'t Spanned<DeTable<'t>>,
        known: &[&str],
    ) -> Result<ConfigSection<'s, 't>, ConfigError> {
        let section = ConfigSection { source, name: String::new(), offset: 0, table: table.get_ref() };
        section.check(known)?;
        Ok(section)
    }

    fn check(&self, known: &[&str]) -> Result<(), ConfigError> {
        let unknown = self.table.keys().filter(|key| !known.contains(&key.get_ref().as_ref()));
        let Some(key) = unknown.min_by_key(|key| key.span().start) else { return Ok(()) };
        if key.get_ref() == "password" && known.contains(&"password-file") {
            let message =
                format!("{} has no key \"password\"; write it into a file and name that with password-file", self.name);
            return Err(self.source.error(key.span().start, message));
        }
        let advice = nearest_name(key.get_ref(), known.iter().copied()).map_or_else(
            || format!("{} {}", if self.name.is_empty() { "there are" } else { "it has" }, known.join(", ")),
            |near| format!("did you mean {near:?}?"),
        );
        let place = if self.name.is_empty() { "the top of the file" } else { &self.name };
        Err(self.source.error(key.span().start, format!("{place} has no key {:?}; {advice}", key.get_ref())))
    }

    /// An error about the section as a whole, or about its key `key` where that is present.
    pub(super) fn error(&self, key: &str, message: impl Into<String>) -> ConfigError {
        let offset = self.table.get(key).map_or(self.offset, |value| value.span().start);
        self.source.error(offset, message)
    }

    /// The section's name as it is written, `[repository.local]`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the key is there.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.contains_key(key)
    }

    /// The value as it stands, with its type still open.
    pub(super) fn raw(&self, key: &str) -> Option<&'t Spanned<DeValue<'t>>> {
        self.table.get(key)
    }

    /// The text under `key`; an empty one is refused.
    pub(super) fn text(&self, key: &str) -> Result<Option<LocatedValue<&'t str>>, ConfigError> {
        let Some(value) = self.raw(key) else { return Ok(None) };
        let offset = value.span().start;
        match value.get_ref() {
            DeValue::String(text) if text.trim().is_empty() => {
                Err(self.source.error(offset, format!("{key} is empty; give it a value or leave the line out")))
            }
            DeValue::String(text) => Ok(Some(LocatedValue { value: text.as_ref(), offset })),
            other => {
                let found = article(other.type_str());
                Err(self.source.error(offset, format!("{key} must be text in quotes, not {found}")))
            }
        }
    }

    /// `true` or `false` under `key`.
    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        let Some(value) = self.raw(key) else { return Ok(None) };
        let found = article(value.get_ref().type_str());
        let wrong = || self.source.error(value.span().start, format!("{key} must be true or false, not {found}"));
        value.get_ref().as_bool().map(Some).ok_or_else(wrong)
    }

    /// The text under `key` read by `read`; what that refuses is refused with the line.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(text) = self.text(key)? else { return Ok(None) };
        let place = if self.name.is_empty() { String::new() } else { format!(" of {}", self.name) };
        let described = |text: &str| read(text).map_err(|why| format!("{key} = {text:?}{place}: {why}"));
        text.and_then(self.source, described).map(|located| Some(located.value))
    }

    /// One of a few words under `key`.
    pub(super) fn choice<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>, ConfigError> {
        self.parsed(key, |text| {
            words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
                let all: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
                format!("it is {}", all.join(" or "))
            })
        })
    }

    /// A list of different names under `key`, each one of `known`.
    pub(super) fn names(&self, key: &str, known: &[&str]) -> Result<Option<Vec<String>>, ConfigError> {
        let Some(value) = self.raw(key) else { return Ok(None) };
        let wrong = |offset: usize, message: String| Err(self.source.error(offset, message));
        let Some(list) = value.get_ref().as_array().filter(|list| !list.is_empty()) else {
            return wrong(value.span().start, format!("{key} of {} is a list of names, [\"NAME\", …]", self.name));
        };
        let mut names: Vec<String> = Vec::with_capacity(list.len());
        for item in list {
            let offset = item.span().start;
            match item.get_ref().as_str() {
                Some(name) if names.iter().any(|other| other == name) => {
                    return wrong(offset, format!("{key} of {} has {name:?} twice", self.name));
                }
                Some(name) if known.contains(&name) => names.push(name.to_owned()),
                Some(name) => {
                    let message =
                        format!("{key} of {}: there is no {name:?}; there are {}", self.name, known.join(", "));
                    return wrong(offset, message);
                }
                None => return wrong(offset, format!("{key} of {} is a list of names in quotes", self.name)),
            }
        }
        Ok(Some(names))
    }

    /// A number under `key`, within `range`.
    pub(super) fn count(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.raw(key) else { return Ok(None) };
        let number = value.get_ref().as_integer().and_then(|number| number.as_str().parse().ok());
        match number.filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None => {
                let message = format!("{key} of {} is a number from {} to {}", self.name, range.start(), range.end());
                Err(self.source.error(value.span().start, message))
            }
        }
    }

    /// The sections below this one (`[postgres.main]`, `[postgres.other]`), in the order of the file.
    pub(super) fn children(&self, key: &str) -> Result<Vec<UnreadSection<'t>>, ConfigError> {
        let Some(value) = self.raw(key) else { return Ok(Vec::new()) };
        // A cluster and an instance of one name would share a folder.
        let example = match key {
            "repository" => "local",
            "redis" => "cache",
            _ => "main",
        };
        let Some(table) = value.get_ref().as_table() else {
            return Err(self.error(key, format!("{key} needs a name; write a section [{key}.{example}]")));
        };
        let mut children: Vec<UnreadSection<'t>> = Vec::new();
        for (name, value) in table.iter() {
            let offset = name.span().start;
            if value.get_ref().as_table().is_none() {
                let message = format!("[{key}] has no key {:?}; write a section [{key}.{example}]", name.get_ref());
                return Err(self.source.error(offset, message));
            }
            children.push(UnreadSection { name: LocatedValue { value: name.get_ref().as_ref(), offset }, value });
        }
        children.sort_by_key(|child| child.name.offset);
        Ok(children)
    }
}

/// A named section, not yet opened.
pub(super) struct UnreadSection<'t> {
    pub(super) name: LocatedValue<&'t str>,
    pub(super) value: &'t Spanned<DeValue<'t>>,
}

/// The known word that `word` most likely was meant to be, if any is near enough.
#[must_use]
pub fn nearest_name<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    known
        .map(|candidate| (strsim::jaro_winkler(&word.to_lowercase(), candidate), candidate))
        .filter(|(likeness, _)| *likeness >= 0.8)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, candidate)| candidate)
}

fn article(kind: &str) -> String {
    let vowel = kind.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {kind}", if vowel { "an" } else { "a" })
}
