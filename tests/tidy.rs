//! The house rules of docs/architecture.md that no compiler checks: who may import whom, which module may name which foreign system, and
//! how files are named and sized.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::string_slice, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};

/// Lowest first. A module imports from the layers before its own.
const LAYERS: [&[&str]; 6] = [
    &["clock", "durable", "lock", "retry", "pipeline", "metrics"],
    &["postgres", "wal", "rdb", "resp", "seal"],
    &["pem", "replication", "sql", "redis", "repository", "index", "control"],
    &["archive"],
    &["receive", "push", "get", "backup", "restore", "explore", "snapshot", "retention", "verify", "health"],
    &["config", "daemon", "cli"],
];

/// Within a layer, who may import whom. Flows are not among them, ever.
const NEIGHBOURS: [(&str, &str); 9] = [
    ("retry", "clock"),
    ("pipeline", "clock"),
    ("wal", "postgres"),
    // Both speak of servers by the same connection string.
    ("sql", "replication"),
    // Both speak TLS with certificates from files.
    ("replication", "pem"),
    ("redis", "pem"),
    ("daemon", "config"),
    ("cli", "config"),
    ("cli", "daemon"),
];

/// A foreign system, and the only modules that name it.
const OWNERS: [(&str, &[&str]); 14] = [
    ("object_store::", &["repository"]),
    ("rocksdb::", &["index"]),
    ("tokio_postgres::", &["sql"]),
    ("tokio_postgres_rustls::", &["sql"]),
    ("postgres_protocol::", &["replication"]),
    ("clap::", &["config", "daemon", "cli", "main"]),
    ("anyhow::", &["config", "daemon", "cli", "main"]),
    ("println!", &["cli", "main"]),
    ("fs::rename", &["durable"]),
    ("SystemTime::now", &["clock"]),
    ("Timestamp::now", &["clock"]),
    ("TcpStream", &["replication", "redis", "control", "daemon"]),
    ("UnixStream", &["replication", "redis", "control", "daemon"]),
    ("env::var", &["config", "daemon", "cli"]),
];

/// Formats are pure.
const IMPURE: [&str; 8] =
    ["async fn", "async move", "std::fs", "std::net", "std::env", "SystemTime", "Instant::", "tokio::"];

/// Names that say nothing.
const EMPTY_NAMES: [&str; 8] = ["util", "utils", "common", "helper", "helpers", "manager", "misc", "types"];

const LINES: usize = 800;

/// Assembled from parts, so that this file may speak of it.
const UNFINISHED: [&str; 4] = [concat!("to", "do!"), concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];

#[test]
fn the_house_is_tidy() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let paths = ["src", "tests", "bench", "fuzz"].into_iter().flat_map(|folder| rust_files(root, Path::new(folder)));
    let files: Vec<(PathBuf, String)> =
        paths.map(|path| (path.clone(), fs::read_to_string(root.join(&path)).expect("a source file"))).collect();
    assert!(files.len() > 30, "only {} files looked at", files.len());
    let tests: Vec<PathBuf> = files.iter().flat_map(|(path, text)| test_modules(path, text)).collect();
    let mut found = Vec::new();
    for (path, text) in &files {
        let testing = tests.iter().any(|test| path.starts_with(test) || path.with_extension("") == *test);
        found.extend(faults(&path.to_string_lossy(), text, testing));
    }
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

fn rust_files(root: &Path, folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(root.join(folder)).into_iter().flatten() {
        let path = folder.join(entry.expect("a folder's entry").file_name());
        if root.join(&path).is_dir() {
            if !path.ends_with("target") {
                found.extend(rust_files(root, &path));
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The modules in files of their own that exist for tests alone, as paths without `.rs`.
fn test_modules(path: &Path, text: &str) -> Vec<PathBuf> {
    let stem = path.with_extension("");
    let folder = if path.ends_with("mod.rs") || path.ends_with("lib.rs") { path.with_file_name("") } else { stem };
    // Other attributes may stand between.
    let module = |rest: &str| {
        let item = rest.lines().map(str::trim).find(|line| line.contains("mod ") || line.is_empty())?;
        item.rsplit_once("mod ")?.1.strip_suffix(';').map(|name| folder.join(name))
    };
    text.split("#[cfg(test)]\n").skip(1).filter_map(module).collect()
}

/// Everything wrong with one file, in lines to read. `testing` if it exists for tests alone.
fn faults(path: &str, text: &str, testing: bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut fault = |line: usize, what: String| found.push(format!("{path}:{line}: {what}"));

    let stem = Path::new(path).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    if EMPTY_NAMES.contains(&stem.as_str()) {
        fault(1, format!("`{stem}` says nothing: name it by what it is"));
    }
    let lines = text.lines().count();
    if lines > LINES {
        fault(lines, format!("{lines} lines, of {LINES} at most"));
    }
    let source = path.strip_prefix("src/");
    if source.is_some() && !testing && !text.starts_with("//!") {
        fault(1, "the first comment says what the file is".into());
    }
    for (number, line) in text.lines().enumerate() {
        for word in UNFINISHED.iter().filter(|word| line.contains(**word)) {
            fault(number + 1, format!("`{word}`: do it, or leave it out"));
        }
    }
    if let Some(source) = source {
        for (number, what) in source_faults(source, text, testing) {
            fault(number, what);
        }
    }
    found
}

/// What depends on where in `src` a file is.
fn source_faults(path: &str, text: &str, only_tests: bool) -> Vec<(usize, String)> {
    let parts: Vec<&str> = path.trim_end_matches(".rs").split('/').filter(|part| *part != "mod").collect();
    let (module, depth) = (parts[0], parts.len());
    if module == "lib" {
        return Vec::new();
    }
    let mut found = Vec::new();
    if module != "main" && layer(module).is_none() {
        found.push((1, format!("module `{module}` stands in no layer")));
    }
    let mut testing = only_tests;
    for (number, line) in text.lines().enumerate().map(|(number, line)| (number + 1, line)) {
        let code = line.split("//").next().unwrap_or_default();
        // Test modules stand at the end of their file.
        testing |= code.trim() == "mod tests {";
        let depth = if testing && !only_tests { depth + 1 } else { depth };
        for used in imports(code, depth) {
            if let Some(what) = forbidden(module, &used) {
                found.push((number, what));
            }
        }
        if testing {
            continue;
        }
        for (name, owners) in OWNERS {
            if code.contains(name) && !owners.contains(&module) {
                found.push((number, format!("`{name}` belongs to {}", owners.join(", "))));
            }
        }
        if layer(module) == Some(1) {
            for impure in IMPURE.iter().filter(|impure| code.contains(**impure)) {
                found.push((number, format!("`{impure}` in a format: bytes in, values out")));
            }
        }
    }
    found
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

fn forbidden(from: &str, to: &str) -> Option<String> {
    if from == to || from == "main" {
        return None;
    }
    let (below, above) = (layer(to)?, layer(from)?);
    let allowed = below < above || (below == above && NEIGHBOURS.contains(&(from, to)));
    (!allowed).then(|| format!("`{from}` (layer {above}) imports `{to}` (layer {below})"))
}

/// The top-level modules that a line of code names, through `crate::` or by climbing up to the root.
fn imports(code: &str, depth: usize) -> Vec<String> {
    let climb = "super::".repeat(depth);
    let mut found = Vec::new();
    for root in ["crate::", climb.as_str()] {
        for (at, _) in code.match_indices(root) {
            let before = &code[..at];
            if before.ends_with("super::") || before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
                continue;
            }
            let rest = &code[at + root.len()..];
            if rest.starts_with("super::") {
                continue;
            }
            match rest.strip_prefix('{') {
                Some(group) => found.extend(heads(group)),
                None => found.push(identifier(rest)),
            }
        }
    }
    found
}

/// The first names in a `{a::{b, c}, d}` group whose brace is already open.
fn heads(group: &str) -> Vec<String> {
    let mut found = Vec::new();
    let (mut level, mut expecting) = (0, true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => level += 1,
            '}' if level == 0 => break,
            '}' => level -= 1,
            ',' if level == 0 => expecting = true,
            _ if expecting && c.is_alphabetic() => {
                found.push(identifier(&group[at..]));
                expecting = false;
            }
            _ => {}
        }
    }
    found
}

fn identifier(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

#[test]
fn what_must_be_caught_is_caught() {
    let wrong = [
        ("src/wal/decode.rs", "use crate::repository::Repository;", "imports `repository`"),
        ("src/wal/decode.rs", "use crate::{postgres::lsn::Lsn, index::Index};", "imports `index`"),
        ("src/wal/decode.rs", "use super::super::archive::Archive;", "imports `archive`"),
        ("src/push.rs", "use super::get::fetch;", "imports `get`"),
        ("src/receive/mod.rs", "let x = crate::backup::take();", "imports `backup`"),
        ("src/postgres/page.rs", "use crate::wal::page;", "imports `wal`"),
        ("src/seal/open.rs", "    async fn open() {}", "`async fn` in a format"),
        ("src/postgres/control.rs", "use std::fs::File;", "`std::fs` in a format"),
        ("src/archive/fetch.rs", "use object_store::path::Path;", "belongs to repository"),
        ("src/restore/mod.rs", "std::fs::rename(a, b)?;", "belongs to durable"),
        ("src/index/mod.rs", "use anyhow::Context;", "belongs to config"),
        ("src/receive/mod.rs", "println!(\"x\");", "belongs to cli"),
        ("src/elsewhere.rs", "", "stands in no layer"),
        ("src/archive/util.rs", "", "says nothing"),
        ("src/archive/fetch.rs", concat!("to", "do!()"), "do it"),
    ];
    for (path, line, expected) in wrong {
        let found = faults(path, &format!("//! A file.\n{line}\n"), false);
        assert!(found.iter().any(|fault| fault.contains(expected)), "{path}: {line}: {found:?}");
    }
    assert!(!faults("src/archive/fetch.rs", "use x;\n", false).is_empty(), "a file without a first comment");
    assert!(!faults("tests/it/main.rs", &"//!\n".repeat(LINES + 1), false).is_empty(), "a file too long");

    let right = [
        ("src/wal/decode.rs", "use crate::postgres::lsn::Lsn;"),
        ("src/wal/decode.rs", "use super::page::Page; // not tokio::spawn"),
        ("src/postgres/page.rs", "use super::control::Control;"),
        ("src/postgres/page.rs", "#[cfg(test)]\nmod tests {\n use super::*;\n use std::fs; }"),
        ("src/repository/store.rs", "use object_store::ObjectStore;"),
        ("src/push.rs", "use crate::{archive::Archive, postgres::{lsn, segment}};"),
        ("src/cli/mod.rs", "use crate::config::Config;"),
        ("src/main.rs", "use walkeep::cli;"),
    ];
    for (path, line) in right {
        let found = faults(path, &format!("//! A file.\n{line}\n"), false);
        assert!(found.is_empty(), "{found:?}");
    }
    assert_eq!(
        test_modules(
            Path::new("src/a/mod.rs"),
            "mod b;\n#[cfg(test)]\nmod tests;\n#[cfg(test)]\npub(crate) mod fault;\n"
        ),
        [PathBuf::from("src/a/tests"), PathBuf::from("src/a/fault")]
    );
    assert_eq!(test_modules(Path::new("src/a/b.rs"), "#[cfg(test)]\nmod tests;"), [PathBuf::from("src/a/b/tests")]);
}
