//! The rule that an item is public only if another file uses it.
//!
//! Functions, methods, constants, types and traits of `src` are looked at, with any `pub`. Fields, modules and
//! re-exports are not. Names are compared, not meanings: an item that shares its name with a used one passes.

use std::collections::{BTreeMap, BTreeSet};

use crate::lexer::{Token, lex};
use crate::rules::Fault;
use crate::source::{Source, closing};
use crate::tree::Tree;

/// How an item is named where it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// In a `use` or a path, or in the signature or the fields of another public item.
    Item,
    /// As `.name(` or `::name`.
    Member,
}

/// A public item.
#[derive(Debug)]
struct PublicItem {
    name: String,
    line: usize,
    kind: Kind,
}

/// The names that one file uses.
#[derive(Debug, Default)]
struct UsedNames {
    items: BTreeSet<String>,
    members: BTreeSet<String>,
}

/// Public items that no other file of `files` uses. A use in tests, benchmarks and fuzz targets counts.
pub(crate) fn unused_public_items(files: &[(String, String)], tree: &Tree) -> Vec<Fault> {
    let used: BTreeMap<&str, UsedNames> = files.iter().map(|(path, text)| (path.as_str(), used_names(text))).collect();
    let mut found = Vec::new();
    for source in tree.sources.iter().filter(|source| !tree.only_tests(&source.module)) {
        let code = code(source);
        let surface = surface(&code);
        let uses = |item: &PublicItem| {
            let others = || used.iter().filter(|(path, _)| **path != source.path).map(|(_, names)| names);
            match item.kind {
                Kind::Item => surface.contains(&item.name) || others().any(|names| names.items.contains(&item.name)),
                Kind::Member => others().any(|names| names.members.contains(&item.name)),
            }
        };
        for item in public_items(&code).into_iter().filter(|item| !uses(item)) {
            let what = format!("no other file uses `{}`: make it private, or delete it", item.name);
            found.push(Fault::new(&source.path, item.line, &item.name, what));
        }
    }
    found
}

type Code = Vec<(usize, Token)>;

/// The tokens of a file without comments and without what is for tests alone.
fn code(source: &Source) -> Code {
    let tokens = source.tokens.iter().zip(&source.testing);
    let kept = tokens.filter(|((_, token), testing)| !**testing && !matches!(token, Token::Comment { .. }));
    kept.map(|(token, _)| token.clone()).collect()
}

fn sign(code: &Code, at: usize, sign: char) -> bool {
    code.get(at).is_some_and(|(_, token)| *token == Token::Sign(sign))
}

fn name(code: &Code, at: usize) -> Option<&str> {
    code.get(at).and_then(|(_, token)| token.name())
}

/// One past a `pub`, a `pub(crate)` or the like that begins at `at`.
fn after_visibility(code: &Code, at: usize) -> Option<usize> {
    (name(code, at) == Some("pub")).then(|| if sign(code, at + 1, '(') { closing(code, at + 1) } else { at + 1 })
}

/// The place of an item's keyword, after what may qualify it. The `const` of a constant is its keyword.
fn keyword(code: &Code, mut at: usize) -> usize {
    while let Some(word) = name(code, at) {
        let constant = word == "const" && !matches!(name(code, at + 1), Some("fn" | "async" | "unsafe" | "extern"));
        if constant || !["const", "async", "unsafe", "extern"].contains(&word) {
            break;
        }
        at += 1;
    }
    at
}

fn public_items(code: &Code) -> Vec<PublicItem> {
    let (mut found, mut impls_end) = (Vec::new(), 0);
    let mut at = 0;
    while at < code.len() {
        match name(code, at) {
            // What an inline module shows is for its own file.
            Some("mod") if sign(code, at + 2, '{') => at = closing(code, at + 2),
            Some("impl") if at >= impls_end && begins_item(code, at) => {
                let body = (at..code.len()).find(|at| sign(code, *at, '{')).unwrap_or(at);
                impls_end = closing(code, body);
                at = body + 1;
            }
            Some("pub") => {
                let at_keyword = after_visibility(code, at).map_or(at, |after| keyword(code, after));
                let kind = match name(code, at_keyword) {
                    Some("fn" | "const") if at < impls_end => Some(Kind::Member),
                    Some("fn" | "const" | "static" | "struct" | "enum" | "union" | "trait" | "type") => {
                        Some(Kind::Item)
                    }
                    _ => None,
                };
                if let (Some(kind), Some(name)) = (kind, name(code, at_keyword + 1)) {
                    found.push(PublicItem { name: name.to_owned(), line: code[at].0, kind });
                }
                at = at_keyword.max(at + 1);
            }
            _ => at += 1,
        }
    }
    found
}

/// Whether an item can begin at `at`: unlike the `impl` of an argument's type.
fn begins_item(code: &Code, at: usize) -> bool {
    at == 0 || ['}', ';', '{', ']'].iter().any(|end| sign(code, at - 1, *end)) || name(code, at - 1) == Some("unsafe")
}

/// The names in what a file shows to others: signatures, fields, variants, and the heads of `impl`s of traits.
fn surface(code: &Code) -> BTreeSet<String> {
    let mut shown = BTreeSet::new();
    let mut show = |from: usize, to: usize| shown.extend((from..to).filter_map(|at| name(code, at)).map(str::to_owned));
    for at in 0..code.len() {
        // A macro's text is expanded in the files that call it.
        if sign(code, at, '$') && name(code, at + 1) == Some("crate") {
            show(at, (at + 1..code.len()).find(|at| !is_path(code, *at)).unwrap_or(code.len()));
        }
        if name(code, at) == Some("impl") && begins_item(code, at) {
            let body = (at..code.len()).find(|at| sign(code, *at, '{')).unwrap_or(at);
            if (at..body).any(|at| name(code, at) == Some("for")) {
                show(at, body);
                let bound = (body..closing(code, body)).filter(|at| name(code, *at) == Some("type"));
                bound.for_each(|at| show(at, end(code, at, &[';'])));
            }
        }
        let Some(after) = after_visibility(code, at) else { continue };
        let at_keyword = keyword(code, after);
        match name(code, at_keyword) {
            Some("fn") => show(at_keyword + 2, end(code, at_keyword, &['{', ';'])),
            Some("const" | "static" | "type") => show(at_keyword + 2, end(code, at_keyword, &['=', ';'])),
            Some("enum" | "trait") => {
                let body = end(code, at_keyword, &['{']);
                show(at_keyword + 2, closing(code, body));
            }
            // The parameters and bounds of a struct. Each of its public fields shows itself.
            Some("struct") => show(at_keyword + 2, end(code, at_keyword, &['{', '(', ';'])),
            Some("use" | "mod") | None => {}
            // A field, up to the next one.
            Some(_) => show(at_keyword, end(code, at_keyword, &[',', '}', ')'])),
        }
    }
    shown
}

fn is_path(code: &Code, at: usize) -> bool {
    matches!(code[at].1, Token::Name(_) | Token::Colons)
}

/// The first of these signs from `at` on that is not in brackets of its own. Those of generics count as none.
fn end(code: &Code, mut at: usize, signs: &[char]) -> usize {
    let mut angles = 0_u32;
    while at < code.len() {
        match code[at].1 {
            Token::Sign(found) if angles == 0 && signs.contains(&found) => return at,
            Token::Sign('(' | '[' | '{') => {
                at = closing(code, at);
                continue;
            }
            Token::Sign('<') => angles += 1,
            // Not the arrow of a function's result.
            Token::Sign('>') if !sign(code, at - 1, '-') => angles = angles.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    at
}

/// The names that a file uses of others. What it exports again is not yet used.
fn used_names(text: &str) -> UsedNames {
    let code: Code = lex(text).into_iter().filter(|(_, token)| !matches!(token, Token::Comment { .. })).collect();
    let mut used = UsedNames::default();
    let glob = code.windows(2).any(|pair| pair[0].1 == Token::Colons && pair[1].1 == Token::Sign('*'));
    let mut at = 0;
    while at < code.len() {
        if let Some(after) = after_visibility(&code, at).filter(|after| name(&code, *after) == Some("use")) {
            at = end(&code, after, &[';']);
            continue;
        }
        if name(&code, at) == Some("use") && !sign(&code, at + 1, '<') {
            let end = (at..code.len()).find(|at| sign(&code, *at, ';')).unwrap_or(code.len());
            used.items.extend((at..end).filter_map(|at| name(&code, at)).map(str::to_owned));
            at = end;
            continue;
        }
        if let Some(found) = name(&code, at) {
            let colons =
                |at: Option<usize>| at.and_then(|at| code.get(at)).is_some_and(|(_, token)| *token == Token::Colons);
            let after_colons = colons(at.checked_sub(1));
            if glob || after_colons || colons(Some(at + 1)) {
                used.items.insert(found.to_owned());
            }
            let called = sign(&code, at + 1, '(') || colons(Some(at + 1));
            if after_colons || (called && at > 0 && sign(&code, at - 1, '.')) {
                used.members.insert(found.to_owned());
            }
        }
        at += 1;
    }
    used
}
