//! The rules that a single file can break: what it imports, what it names, how it is named and sized.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::Source;
use crate::tables::{BOTH_WINGS, EMPTY_NAMES, IMPURE, LINES, ORDERS, OWNERS, Order, PLANNED, PURE, REST, UNFINISHED};
use crate::tree::{Meaning, Tree};

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Fault {
    pub(crate) path: String,
    pub(crate) line: usize,
    pub(crate) what: String,
    /// By what an entry of `KNOWN` excuses it; empty for what nothing excuses.
    pub(crate) key: String,
}

impl Fault {
    pub(crate) fn new(path: &str, line: usize, key: &str, what: String) -> Self {
        Self { path: path.to_owned(), line, what, key: key.to_owned() }
    }
}

/// Faults of the text of any file of Rust.
pub(crate) fn text_faults(path: &str, text: &str) -> Vec<Fault> {
    let mut found = Vec::new();
    let mut fault = |line, what| found.push(Fault::new(path, line, "", what));
    let stem = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".rs");
    if EMPTY_NAMES.contains(&stem) {
        fault(1, format!("`{stem}` has no meaning: name the file by what it is"));
    }
    let lines = text.lines().count();
    if lines > LINES {
        fault(lines, format!("{lines} lines, of {LINES} at most"));
    }
    for (number, line) in text.lines().enumerate() {
        for word in UNFINISHED.iter().filter(|word| line.contains(**word)) {
            fault(number + 1, format!("`{word}`: do it, or leave it out"));
        }
    }
    found
}

/// Faults of the files of `src`. What a file names several times is one fault, at the first.
pub(crate) fn tree_faults(tree: &Tree) -> Vec<Fault> {
    let mut found = Vec::new();
    let mut imported: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for source in &tree.sources {
        let only_tests = tree.only_tests(&source.module);
        if !only_tests && !source.text.starts_with("//!") {
            found.push(Fault::new(&source.path, 1, "", "it begins without a comment that describes the file".into()));
        }
        found.extend(without_level(source));
        let mut by_key: BTreeMap<String, Fault> = BTreeMap::new();
        let mut add = |line: usize, key: String, what: String| {
            by_key.entry(key.clone()).or_insert_with(|| Fault::new(&source.path, line, &key, what));
        };
        for named in &source.named {
            match tree.meaning(named) {
                Meaning::Own(path) => {
                    let module = path[..tree.module_depth(&path)].join("::");
                    for (shortest, order) in ORDERS.iter().filter_map(|order| forbidden(order, &source.module, &path)) {
                        let key = if module.len() > shortest.len() { module.clone() } else { shortest };
                        let what = format!("`{}` imports `{key}`, but {order}", source.module.join("::"));
                        add(named.line, key, what);
                    }
                    let room = source.module.first().map_or("", String::as_str);
                    let wings = imported.entry(room).or_default();
                    wings.extend(WINGS.iter().filter(|wing| path.first().is_some_and(|to| to == *wing)));
                    if wings.len() == 2 && !room.is_empty() && ![BOTH_WINGS.as_slice(), &WINGS].concat().contains(&room)
                    {
                        let what = format!("`{room}` imports both wings, which only {} may", BOTH_WINGS.join(", "));
                        add(named.line, module, what);
                    }
                }
                Meaning::Foreign(path) if !(only_tests || named.testing) => {
                    for (key, what) in foreign(&source.module, &path) {
                        add(named.line, key, what);
                    }
                }
                Meaning::Foreign(_) => {}
            }
        }
        found.extend(by_key.into_values());
    }
    found
}

const WINGS: [&str; 2] = ["postgres", "redis"];

/// A module that has no level in its folder.
fn without_level(source: &Source) -> Option<Fault> {
    let missing = ORDERS.iter().find(|order| {
        order
            .child(&source.module)
            .is_some_and(|name| !order.levels.concat().contains(&REST) && !order.levels.concat().contains(&name))
    })?;
    let what = format!("the module has no level in `{}`: add it to ORDERS", missing.folder);
    Some(Fault::new(&source.path, 1, "", what))
}

/// The imported module at the depth where the order decides, and the order in words, if the import breaks it.
fn forbidden(order: &Order, from: &[String], to: &[String]) -> Option<(String, String)> {
    let (importer, imported) = (order.child(from), order.child(to)?);
    let inside = order.folder.is_empty() || from.first().is_some_and(|folder| folder == order.folder);
    let to_level = order.level(Some(imported))?;
    // Without a level of its own the folder's `mod.rs` is a table of contents, and imports nothing.
    let allowed = order.level(importer).is_some_and(|from_level| {
        let rest = order.levels[from_level].contains(&REST);
        let neighbours = importer.is_some_and(|importer| order.neighbours.contains(&(importer, imported)));
        importer == Some(imported) || from_level > to_level || (from_level == to_level && (rest || neighbours))
    });
    let levels: Vec<String> = order.levels.iter().map(|level| level.join(", ")).collect();
    let name = if order.folder.is_empty() { "src" } else { order.folder };
    (inside && !allowed).then(|| (order.path_of(imported), format!("{name} is ordered {}", levels.join(" ← "))))
}

/// What a path outside the crate breaks.
fn foreign(module: &[String], path: &[String]) -> Vec<(String, String)> {
    let within = |owners: &[&str]| owners.iter().any(|owner| is_within(module, owner));
    let mut found = Vec::new();
    for (name, owners) in OWNERS.iter().filter(|(name, owners)| names(path, name) && !within(owners)) {
        found.push(((*name).to_owned(), format!("`{name}` belongs to {}", owners.join(", "))));
    }
    for impure in IMPURE.iter().filter(|impure| names(path, impure) && within(&PURE)) {
        found.push(((*impure).to_owned(), format!("`{impure}` in a pure module: bytes in, values out")));
    }
    found
}

fn is_within(module: &[String], owner: &str) -> bool {
    let owner: Vec<&str> = owner.split("::").collect();
    module.len() >= owner.len() && owner.iter().zip(module).all(|(a, b)| a == b)
}

/// Whether the segments of `name` follow one another in `path`.
fn names(path: &[String], name: &str) -> bool {
    let wanted: Vec<&str> = name.split("::").collect();
    path.windows(wanted.len()).any(|window| window == wanted)
}

/// What the tables name and the tree lacks, or has although the tables do not expect it yet.
pub(crate) fn table_faults(tree: &Tree) -> Vec<String> {
    let exists = |module: &str| tree.modules.contains_key(&module.split("::").map(str::to_owned).collect::<Vec<_>>());
    let mut listed: BTreeSet<String> = BTreeSet::new();
    for order in &ORDERS {
        listed.extend(order.levels.concat().iter().filter(|name| **name != REST).map(|name| order.path_of(name)));
    }
    listed.extend(
        OWNERS.iter().flat_map(|(_, owners)| *owners).chain(&PURE).chain(&BOTH_WINGS).map(|name| (*name).to_owned()),
    );
    let planned = |name: &String| PLANNED.contains(&name.as_str());
    let gone = listed.iter().filter(|name| !planned(name) && !exists(name));
    let mut found: Vec<String> =
        gone.map(|name| format!("tables.rs names module `{name}`, which does not exist")).collect();
    let built = PLANNED.iter().filter(|name| exists(name));
    found.extend(built.map(|name| format!("module `{name}` exists: remove it from PLANNED")));
    found.extend(unused_neighbours(tree));
    found
}

fn unused_neighbours(tree: &Tree) -> Vec<String> {
    let mut used: BTreeSet<(String, String, String)> = BTreeSet::new();
    for source in &tree.sources {
        for named in &source.named {
            let Meaning::Own(path) = tree.meaning(named) else { continue };
            for order in &ORDERS {
                if let (Some(from), Some(to)) = (order.child(&source.module), order.child(&path)) {
                    used.insert((order.folder.into(), from.into(), to.into()));
                }
            }
        }
    }
    let all = ORDERS.iter().flat_map(|order| order.neighbours.iter().map(|(from, to)| (order.folder, *from, *to)));
    all.filter(|(folder, from, to)| !used.contains(&((*folder).into(), (*from).into(), (*to).into())))
        .map(|(folder, from, to)| {
            format!("nothing in `{folder}::{from}` imports `{to}` any longer: remove the pair from neighbours")
        })
        .collect()
}
