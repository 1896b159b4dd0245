//! The modules of `src`, and what a path in one of them means.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Named, Source};

/// All files of `src`, parsed.
#[derive(Debug)]
pub(crate) struct Tree {
    pub(crate) sources: Vec<Source>,
    /// The file that defines each module, with or without a file of its own.
    pub(crate) modules: BTreeMap<Vec<String>, String>,
    /// What `use` binds in each module; globs under their own key, which no name equals.
    bindings: BTreeMap<Vec<String>, Vec<Named>>,
    only_tests: BTreeSet<Vec<String>>,
}

/// What a path means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// In this crate, from its root on.
    Own(Vec<String>),
    /// In another crate, or only a name.
    Foreign(Vec<String>),
}

impl Tree {
    pub(crate) fn new(files: &[(String, String)]) -> Self {
        let inside = files.iter().filter(|(path, _)| path.starts_with("src/"));
        let sources: Vec<Source> = inside.map(|(path, text)| Source::new(path, text)).collect();
        let mut tree = Self {
            sources: Vec::new(),
            modules: BTreeMap::new(),
            bindings: BTreeMap::new(),
            only_tests: BTreeSet::new(),
        };
        for source in &sources {
            tree.modules.insert(source.module.clone(), source.path.clone());
            for declared in &source.declared {
                if declared.inline {
                    tree.modules.insert(declared.module.clone(), source.path.clone());
                }
                if declared.testing {
                    tree.only_tests.insert(declared.module.clone());
                }
            }
            for named in source.named.iter().filter(|named| named.binds.is_some()) {
                tree.bindings.entry(named.module.clone()).or_default().push(named.clone());
            }
        }
        tree.sources = sources;
        tree
    }

    /// Whether a module exists for tests alone.
    pub(crate) fn only_tests(&self, module: &[String]) -> bool {
        (1..=module.len()).any(|depth| self.only_tests.contains(&module[..depth]))
    }

    pub(crate) fn meaning(&self, named: &Named) -> Meaning {
        self.resolve(&named.module, &named.path, named.binds.is_some(), 0)
    }

    /// How many segments of a path are modules.
    pub(crate) fn module_depth(&self, path: &[String]) -> usize {
        (0..=path.len()).rev().find(|depth| self.modules.contains_key(&path[..*depth])).unwrap_or(0)
    }

    /// The file that defines the longest prefix of a path that is a module.
    fn file(&self, path: &[String]) -> Option<&str> {
        self.modules.get(&path[..self.module_depth(path)]).map(String::as_str)
    }

    /// Whether some module's path ends with `path`, or with its first segments and names the next one.
    pub(crate) fn has(&self, path: &[String]) -> bool {
        let names = |file: &str, name: &str| {
            let source = self.sources.iter().find(|source| source.path == file);
            source.is_some_and(|source| source.tokens.iter().any(|(_, token)| token.is(name)))
        };
        let ends = |depth: usize| self.modules.iter().filter(move |(module, _)| module.ends_with(&path[..depth]));
        let deepest = (1..=path.len()).rev().find(|depth| ends(*depth).next().is_some());
        deepest.is_some_and(|depth| ends(depth).any(|(_, file)| path.get(depth).is_none_or(|item| names(file, item))))
    }

    /// `declaring`: the path is that of a `use`, whose head must not be looked for in its own binding.
    fn resolve(&self, module: &[String], path: &[String], declaring: bool, depth: usize) -> Meaning {
        let foreign = || Meaning::Foreign(path.to_vec());
        let (Some(head), false) = (path.first(), depth > 8) else { return foreign() };
        let rest = &path[1..];
        match head.as_str() {
            "crate" => return Meaning::Own(rest.to_vec()),
            "walkeep" if module == ["main"] => return Meaning::Own(rest.to_vec()),
            "self" | "super" => {
                let mut at = module.to_vec();
                let climbs = path.iter().take_while(|part| ["self", "super"].contains(&part.as_str())).count();
                path[..climbs].iter().filter(|part| *part == "super").for_each(|_| drop(at.pop()));
                return Meaning::Own([&at, &path[climbs..]].concat());
            }
            _ => {}
        }
        let child = [module, std::slice::from_ref(head)].concat();
        if self.modules.contains_key(&child) {
            return Meaning::Own([&child, rest].concat());
        }
        let bound = self.bindings.get(module).into_iter().flatten().find(|named| {
            named.binds.as_ref() == Some(head) && !(declaring && named.path == path) && named.path.first() != Some(head)
        });
        if let Some(bound) = bound {
            return self.append(module, bound, rest, depth);
        }
        let globs = self.bindings.get(module).into_iter().flatten().filter(|named| named.binds.as_deref() == Some("*"));
        for glob in globs.filter(|glob| glob.path.first().is_some_and(|first| first != head)) {
            let Meaning::Own(mut inside) = self.resolve(module, &glob.path, true, depth + 1) else { continue };
            inside.pop();
            let child = [inside.as_slice(), std::slice::from_ref(head)].concat();
            if self.modules.contains_key(&child) {
                return Meaning::Own([&child, rest].concat());
            }
            let bound = self.bindings.get(&inside).into_iter().flatten();
            if let Some(bound) = bound.into_iter().find(|named| named.binds.as_ref() == Some(head)) {
                return self.append(&inside, bound, rest, depth);
            }
        }
        foreign()
    }

    fn append(&self, module: &[String], bound: &Named, rest: &[String], depth: usize) -> Meaning {
        match self.resolve(module, &bound.path, true, depth + 1) {
            Meaning::Own(path) => Meaning::Own([&path, rest].concat()),
            Meaning::Foreign(path) => Meaning::Foreign([&path, rest].concat()),
        }
    }

    /// The groups of files that import one another in a cycle, without tests. A parent's `mod x;` is no import.
    pub(crate) fn cycles(&self) -> Vec<Vec<&str>> {
        let mut imports: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for source in self.sources.iter().filter(|source| !self.only_tests(&source.module)) {
            let from = imports.entry(&source.path).or_default();
            for named in source.named.iter().filter(|named| !named.testing) {
                if let Meaning::Own(path) = self.meaning(named) {
                    from.extend(self.file(&path).filter(|to| *to != source.path));
                }
            }
        }
        let reached: BTreeMap<&str, BTreeSet<&str>> =
            imports.keys().map(|from| (*from, reach(&imports, from))).collect();
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for (from, reachable) in &reached {
            if reachable.contains(from) && !seen.contains(from) {
                let cycle: Vec<&str> = reachable
                    .iter()
                    .copied()
                    .filter(|to| reached.get(to).is_some_and(|back| back.contains(from)))
                    .collect();
                seen.extend(cycle.iter().copied());
                found.push(cycle);
            }
        }
        found
    }
}

/// Every file to which imports lead from one.
fn reach<'a>(imports: &BTreeMap<&'a str, BTreeSet<&'a str>>, from: &str) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&str> = imports.get(from).into_iter().flatten().copied().collect();
    while let Some(file) = open.pop() {
        if found.insert(file) {
            open.extend(imports.get(file).into_iter().flatten());
        }
    }
    found
}
