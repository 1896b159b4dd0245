//! The rules for what people read: words, the width of lines, and references to files.

use std::collections::BTreeMap;

use crate::lexer::{Token, lex};
use crate::rules::Fault;
use crate::source::Source;
use crate::tables::{COLUMNS, FOREIGN_PAGES, OWNERS};
use crate::tree::Tree;

/// The words of a text with their lines, in lower case. Whatever ends a part of a sentence is the word `.`.
pub(crate) type Words = Vec<(String, usize)>;

/// A place: path and line.
pub(crate) type Place = (String, usize);

fn add_words(words: &mut Words, text: &str, first_line: usize) {
    for (number, line) in text.lines().enumerate() {
        let mut word = String::new();
        for c in line.chars().chain([' ']) {
            if c.is_alphanumeric() || ['\'', '-', '_'].contains(&c) {
                word.extend(c.to_lowercase());
                continue;
            }
            if !word.is_empty() {
                words.push((std::mem::take(&mut word), first_line + number));
            }
            if !c.is_whitespace() && ![',', '*', '`'].contains(&c) {
                words.push((".".into(), first_line + number));
            }
        }
    }
}

/// The words of a page, without what is fenced off as code.
pub(crate) fn page_words(text: &str) -> Words {
    let (mut words, mut fenced) = (Words::new(), false);
    for (number, line) in text.lines().enumerate() {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        if fence || line.trim().is_empty() {
            words.push((".".into(), number + 1));
        } else if !fenced {
            add_words(&mut words, line, number + 1);
        }
    }
    words
}

/// The words of a file's strings and doc comments, tests apart.
pub(crate) fn source_words(source: &Source) -> Words {
    let mut words = Words::new();
    let mut doc_line = 0;
    for ((line, token), testing) in source.tokens.iter().zip(&source.testing) {
        let (text, doc) = match token {
            Token::Text(text) => (text, false),
            Token::Comment { text, doc: true } => (text, true),
            _ => continue,
        };
        if !testing {
            if !(doc && doc_line + 1 == *line) {
                words.push((".".into(), *line));
            }
            add_words(&mut words, text, *line);
            doc_line = if doc { *line } else { 0 };
        }
    }
    words
}

/// The lines at which a phrase of the list occurs.
pub(crate) fn occurrences(words: &Words, phrase: &str) -> Vec<usize> {
    let wanted: Vec<&str> = phrase.split(' ').collect();
    (0..words.len()).filter(|at| begins(&words[*at..], &wanted)).map(|at| words[at].1).collect()
}

fn begins(words: &[(String, usize)], wanted: &[&str]) -> bool {
    match (wanted, words) {
        ([], _) => true,
        (["…", after @ ..], _) => {
            let sentence = words.iter().take_while(|(word, _)| word != ".").count().min(6);
            (1..sentence).any(|skipped| begins(&words[skipped..], after))
        }
        ([wanted, after @ ..], [(word, _), rest @ ..]) => word == wanted && begins(rest, after),
        (_, []) => false,
    }
}

/// The lines of doc comments that are a single word.
pub(crate) fn one_word_docs(source: &Source) -> Vec<usize> {
    let mut docs: BTreeMap<usize, usize> = BTreeMap::new();
    for ((line, token), testing) in source.tokens.iter().zip(&source.testing) {
        if let (Token::Comment { text, doc: true }, false) = (token, testing) {
            docs.insert(*line, text.split_whitespace().count());
        }
    }
    let alone = |line: usize| !docs.contains_key(&(line - 1)) && !docs.contains_key(&(line + 1));
    docs.iter().filter(|(line, words)| **words == 1 && alone(**line)).map(|(line, _)| *line).collect()
}

/// The lines of a file that are too wide.
pub(crate) fn wide_lines(text: &str) -> Vec<usize> {
    text.lines().enumerate().filter(|(_, line)| line.chars().count() > COLUMNS).map(|(number, _)| number + 1).collect()
}

/// References to files that do not exist: paths that begin with a folder of the repository, names that end with `.md`,
/// and in a page the targets of links. `exists` takes paths from the root.
pub(crate) fn lost_references(path: &str, text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<Fault> {
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    let found_from = |target: &str| {
        [folder, "", "docs"].iter().any(|from| {
            let joined = if from.is_empty() { target.to_owned() } else { format!("{from}/{target}") };
            exists(&joined)
        })
    };
    let mut lines: Vec<(usize, String)> = Vec::new();
    if path.ends_with(".rs") {
        for (line, token) in lex(text) {
            if let Token::Comment { text, .. } = token {
                lines.extend(text.lines().enumerate().map(|(number, part)| (line + number, part.to_owned())));
            }
        }
    } else {
        lines.extend(text.lines().enumerate().map(|(number, line)| (number + 1, line.to_owned())));
    }
    let mut found = Vec::new();
    for (line, text) in &lines {
        for reference in references(text, path.ends_with(".md")) {
            if !found_from(&reference) && !FOREIGN_PAGES.contains(&reference.as_str()) {
                found.push(Fault::new(path, *line, &reference, format!("`{reference}` does not exist")));
            }
        }
    }
    found
}

/// Modules that a page names in backticks, for example `wal::digest`, and that the tree lacks. A path need not begin at
/// the root of the crate.
pub(crate) fn lost_modules(path: &str, text: &str, tree: &Tree) -> Vec<Fault> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for span in line.split('`').skip(1).step_by(2).filter(|span| is_module_path(span)) {
            if !tree.has(&span.split("::").map(str::to_owned).collect::<Vec<_>>()) {
                found.push(Fault::new(path, number + 1, span, format!("`{span}` is no path in src")));
            }
        }
    }
    found
}

fn is_module_path(span: &str) -> bool {
    let in_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let head = span.split("::").next().unwrap_or_default();
    let foreign = OWNERS.iter().any(|(name, _)| name.split("::").next() == Some(head));
    span.contains("::") && span.chars().all(in_path) && head.starts_with(|c: char| c.is_lowercase()) && !foreign
}

/// The folders whose files are referred to by path.
const FOLDERS: [&str; 5] = ["src/", "tests/", "docs/", "bench/", "fuzz/"];

fn references(line: &str, page: bool) -> Vec<String> {
    let in_path = |c: char| c.is_ascii_alphanumeric() || ['/', '.', '_', '-', ':'].contains(&c);
    let mut found = Vec::new();
    let links = line.match_indices("](").filter(|_| page);
    for (at, _) in links {
        let target = line[at + 2..].split([')', '#']).next().unwrap_or_default();
        if !target.is_empty() && !target.contains("://") {
            found.push(target.to_owned());
        }
    }
    for word in line.split(|c| !in_path(c)) {
        let word = word.trim_end_matches(['.', ':', '-']);
        // A line number after a colon is no part of the path.
        let (path, _) = word.split_once(':').unwrap_or((word, ""));
        let ours = FOLDERS.iter().any(|folder| path.starts_with(folder)) || (path.len() > 3 && path.ends_with(".md"));
        if ours && !word.contains("://") && !found.iter().any(|link: &String| link == path) {
            found.push(path.to_owned());
        }
    }
    found
}
