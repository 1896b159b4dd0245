//! The house rules of docs/architecture.md that no compiler checks: who may import whom, which module may name which
//! foreign system, how files are named and sized, and how walkeep writes. `tables.rs` has the rules. The other files
//! find what breaks them.
//!
//! # How to read a failure
//!
//! Each line is one fault: `file:line: what is wrong`. Change that file, not the tables. For example:
//!
//! ```text
//! src/redis/log/mod.rs:21: `redis::log` imports `postgres::sql`, but src is ordered base ← vault ← postgres, redis ← …
//! ```
//!
//! An import must point to the left of its own place in that order, and never to a neighbour. If two modules of one
//! level need the same code, it moves down.
//!
//! Three kinds of line ask for a change of `tables.rs` instead:
//!
//! - *A number is above its limit* (cycles, wide lines, words). Your change added one; take it out again. The places
//!   follow the number: look for the files that you touched.
//! - *A number fell.* Write the new one into the table, so that it cannot rise again.
//! - *An entry no longer occurs*, in `KNOWN`, `PLANNED` or `neighbours`. Remove it.
//!
//! After a merge several numbers may differ at once. Fix the faults first, then copy the numbers from the output.
//!
//! # What counts as an import
//!
//! A `use` or a path in code, resolved to the file that defines the longest part of it that is a module. A name that a
//! `mod.rs` exports again belongs to that `mod.rs`. `mod x;` is no import. Cycles are counted without tests; the order
//! of the rooms holds for tests too.
//!
//! A change that makes a rule weaker is a commit of its own with a decision record in docs/decisions/.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::string_slice, reason = "a test")]

mod tables;
mod lexer;
mod source;
mod tree;
mod rules;
mod prose;
mod visibility;
mod canaries;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use prose::{
    Place, Words, lost_modules, lost_references, occurrences, one_word_docs, page_words, source_words, wide_lines,
};
use rules::{Fault, table_faults, text_faults, tree_faults};
use tables::{FILES_IN_CYCLES, KNOWN, ONE_WORD_DOCS, WIDE_LINES, WORDS};
use tree::Tree;
use visibility::unused_public_items;

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let files = read(root);
    let rust: Vec<(String, String)> = files.iter().filter(|(path, _)| path.ends_with(".rs")).cloned().collect();
    let tree = Tree::new(&rust);
    assert!(tree.sources.len() > 200, "only {} files of src looked at", tree.sources.len());

    let mut faults: Vec<Fault> = rust.iter().flat_map(|(path, text)| text_faults(path, text)).collect();
    faults.extend(tree_faults(&tree));
    faults.extend(unused_public_items(&rust, &tree));
    let exists = |path: &str| root.join(path).exists();
    faults.extend(files.iter().flat_map(|(path, text)| lost_references(path, text, &exists)));
    let pages = files.iter().filter(|(path, _)| path.ends_with(".md") && path != "docs/changelog.md");
    faults.extend(pages.flat_map(|(path, text)| lost_modules(path, text, &tree)));
    let mut found = unexcused(&faults, KNOWN);
    found.extend(table_faults(&tree));
    found.extend(risen_or_fallen(&files, &rust, &tree));
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

/// Every file with rules: Rust, pages, and the scripts that build and test.
fn read(root: &Path) -> Vec<(String, String)> {
    let mut paths = Vec::new();
    for place in ["src", "tests", "bench", "fuzz", "docs", "README.md", "Makefile", "Cargo.toml", ".ci/run"] {
        collect(root, place, &mut paths);
    }
    paths.sort();
    // Fixtures and corpora are no text.
    paths.into_iter().filter_map(|path| fs::read_to_string(root.join(&path)).ok().map(|text| (path, text))).collect()
}

fn collect(root: &Path, path: &str, paths: &mut Vec<String>) {
    if !root.join(path).is_dir() {
        paths.push(path.to_owned());
        return;
    }
    for entry in fs::read_dir(root.join(path)).into_iter().flatten() {
        let name = entry.expect("a folder's entry").file_name();
        if !["target", "fixtures", "corpus", "testdata"].iter().any(|skipped| name == *skipped) {
            collect(root, &format!("{path}/{}", name.to_string_lossy()), paths);
        }
    }
}

/// Faults that the list does not excuse, and entries of the list that excuse nothing.
fn unexcused(faults: &[Fault], known: &[(&str, &str)]) -> Vec<String> {
    let excuses = |fault: &Fault, entry: &(&str, &str)| fault.path == entry.0 && fault.key == entry.1;
    let open = faults.iter().filter(|fault| !known.iter().any(|entry| excuses(fault, entry)));
    let mut found: Vec<String> = open.map(|Fault { path, line, what, .. }| format!("{path}:{line}: {what}")).collect();
    let spent = known.iter().filter(|entry| !faults.iter().any(|fault| excuses(fault, entry)));
    found.extend(spent.map(|entry| format!("{entry:?} no longer occurs: remove it from KNOWN")));
    found
}

/// The numbers that may only fall.
fn risen_or_fallen(files: &[(String, String)], rust: &[(String, String)], tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    let cycles = tree.cycles();
    let listed = cycles.iter().map(|cycle| format!("\n    {}", cycle.join(" ")));
    found.extend(ratchet(
        "files in import cycles",
        FILES_IN_CYCLES,
        cycles.iter().map(Vec::len).sum(),
        &listed.collect::<String>(),
    ));

    let wide = rust.iter().flat_map(|(path, text)| wide_lines(text).into_iter().map(|line| (path.clone(), line)));
    found.extend(placed_ratchet("lines wider than 120 columns", WIDE_LINES, wide.collect()));

    let sources = || tree.sources.iter().filter(|source| !tree.only_tests(&source.module));
    let short = sources().flat_map(|source| one_word_docs(source).into_iter().map(|line| (source.path.clone(), line)));
    found.extend(placed_ratchet("doc comments of one word", ONE_WORD_DOCS, short.collect()));

    let pages = files.iter().filter(|(path, _)| is_prose(path)).map(|(path, text)| (path.clone(), page_words(text)));
    let texts: Vec<(String, Words)> =
        pages.chain(sources().map(|source| (source.path.clone(), source_words(source)))).collect();
    for (phrase, instead, allowed) in WORDS {
        let places = texts
            .iter()
            .flat_map(|(path, words)| occurrences(words, phrase).into_iter().map(|line| (path.clone(), line)));
        found.extend(placed_ratchet(&format!("\"{phrase}\" (write: {instead})"), *allowed, places.collect()));
    }
    found
}

/// Pages of full sentences. The format pages are a terse reference, and the glossary names the words that it replaces.
fn is_prose(path: &str) -> bool {
    path == "README.md"
        || (path.starts_with("docs/")
            && path.ends_with(".md")
            && !path.starts_with("docs/format/")
            && path != "docs/glossary.md")
}

fn placed_ratchet(what: &str, allowed: usize, places: Vec<Place>) -> Option<String> {
    let count = places.len();
    let mut by_file: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (path, line) in places {
        by_file.entry(path).or_default().push(line.to_string());
    }
    let places: String = by_file.iter().map(|(path, lines)| format!("\n    {path}:{}", lines.join(","))).collect();
    ratchet(what, allowed, count, &places)
}

fn ratchet(what: &str, allowed: usize, count: usize, places: &str) -> Option<String> {
    match count.cmp(&allowed) {
        std::cmp::Ordering::Equal => None,
        std::cmp::Ordering::Less => {
            Some(format!("{what}: fell from {allowed} to {count}; write {count} into tables.rs"))
        }
        std::cmp::Ordering::Greater => Some(format!("{what}: {count}, and {allowed} at most; they are at{places}")),
    }
}
