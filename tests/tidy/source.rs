//! One file of Rust: which of it is for tests, which modules it declares, and which paths it names.

use crate::lexer::{Token, lex};

/// A path as written, in a `use` or anywhere else in code.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    pub(crate) line: usize,
    /// The module it is written in.
    pub(crate) module: Vec<String>,
    /// Its segments; a macro's last one ends with `!`, that of a glob import is `*`.
    pub(crate) path: Vec<String>,
    /// What a `use` binds it to.
    pub(crate) binds: Option<String>,
    pub(crate) testing: bool,
}

/// A module that a file declares, in a file of its own or inline.
#[derive(Debug, Clone)]
pub(crate) struct Declared {
    pub(crate) module: Vec<String>,
    pub(crate) inline: bool,
    pub(crate) testing: bool,
}

/// A parsed file.
#[derive(Debug)]
pub(crate) struct Source {
    /// From the root of the repository.
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) module: Vec<String>,
    pub(crate) tokens: Vec<(usize, Token)>,
    /// Of each token, whether it is in an item for tests alone.
    pub(crate) testing: Vec<bool>,
    pub(crate) named: Vec<Named>,
    pub(crate) declared: Vec<Declared>,
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let tokens = lex(text);
        let testing = testing(&tokens);
        let module = module_of(path);
        let mut walk = Walk { named: Vec::new(), declared: Vec::new(), module: module.clone(), inline: Vec::new() };
        let code: Vec<(usize, &Token, bool)> = tokens
            .iter()
            .zip(&testing)
            .filter(|((_, token), _)| !matches!(token, Token::Comment { .. }))
            .map(|((line, token), testing)| (*line, token, *testing))
            .collect();
        walk.run(&code);
        let (named, declared) = (walk.named, walk.declared);
        Self { path: path.to_owned(), text: text.to_owned(), module, tokens, testing, named, declared }
    }
}

/// The module that a file of `src` is: empty for `lib.rs` and for files elsewhere.
pub(crate) fn module_of(path: &str) -> Vec<String> {
    let Some(inner) = path.strip_prefix("src/") else { return Vec::new() };
    let parts = inner.trim_end_matches(".rs").split('/').filter(|part| !["mod", "lib"].contains(part));
    parts.map(str::to_owned).collect()
}

/// Of each token, whether it is in an item under `#[cfg(test)]`.
fn testing(tokens: &[(usize, Token)]) -> Vec<bool> {
    let mut testing = vec![false; tokens.len()];
    let mut at = 0;
    while at < tokens.len() {
        let attribute =
            tokens[at].1 == Token::Sign('#') && tokens.get(at + 1).is_some_and(|next| next.1 == Token::Sign('['));
        if !attribute {
            at += 1;
            continue;
        }
        let end = closing(tokens, at + 1);
        let inside = &tokens[at..end];
        let has = |name: &str| inside.iter().any(|(_, token)| token.is(name));
        if !(inside.get(2).is_some_and(|(_, token)| token.is("cfg")) && has("test") && !has("not")) {
            at = end;
            continue;
        }
        let end = item_end(tokens, end);
        testing[at..end].fill(true);
        at = end;
    }
    testing
}

/// One past the bracket that closes the one at `open`.
pub(crate) fn closing(tokens: &[(usize, Token)], open: usize) -> usize {
    let mut depth = 0;
    for (at, (_, token)) in tokens.iter().enumerate().skip(open) {
        match token {
            Token::Sign('(' | '[' | '{') => depth += 1,
            Token::Sign(')' | ']' | '}') => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return at + 1;
        }
    }
    tokens.len()
}

/// One past the item that begins at `start`, perhaps with further attributes. It ends at its `;`, or at the brace that
/// closes its first one.
fn item_end(tokens: &[(usize, Token)], start: usize) -> usize {
    let mut at = start;
    while at < tokens.len() {
        match &tokens[at].1 {
            Token::Sign(';') => return at + 1,
            Token::Sign('{') => return closing(tokens, at),
            Token::Sign('(' | '[') => at = closing(tokens, at),
            // The end of what is around it: a field or a variant.
            Token::Sign('}') => return at,
            _ => at += 1,
        }
    }
    at
}

struct Walk {
    named: Vec<Named>,
    declared: Vec<Declared>,
    module: Vec<String>,
    /// The depths of braces at which the inline modules around began.
    inline: Vec<usize>,
}

impl Walk {
    fn run(&mut self, code: &[(usize, &Token, bool)]) {
        let (mut at, mut depth) = (0, 0);
        while at < code.len() {
            let (_, token, testing) = code[at];
            let next = code.get(at + 1).map(|(_, token, _)| *token);
            match token {
                Token::Sign('{') => depth += 1,
                Token::Sign('}') => {
                    depth -= 1;
                    if self.inline.last() == Some(&depth) {
                        self.inline.pop();
                        self.module.pop();
                    }
                }
                Token::Name(word) if word == "mod" => {
                    if let Some(name) = next.and_then(Token::name) {
                        let inline = code.get(at + 2).is_some_and(|(_, token, _)| **token == Token::Sign('{'));
                        let module = [self.module.as_slice(), &[name.to_owned()]].concat();
                        self.declared.push(Declared { module: module.clone(), inline, testing });
                        if inline {
                            self.inline.push(depth);
                            self.module = module;
                        }
                        at += 1;
                    }
                }
                // A visibility names who may import, and imports nothing.
                Token::Name(word) if word == "pub" && code.get(at + 2).is_some_and(|(_, token, _)| token.is("in")) => {
                    at += code[at..].iter().take_while(|(_, token, _)| **token != Token::Sign(')')).count();
                }
                Token::Name(word) if word == "use" && next != Some(&Token::Sign('<')) => {
                    at = self.use_tree(code, at + 1, Vec::new());
                    continue;
                }
                Token::Name(_) if begins_path(code, at) => {
                    at = self.path(code, at);
                    continue;
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// One branch of a `use`; returns where it ends, at a `,`, `}` or `;`.
    fn use_tree(&mut self, code: &[(usize, &Token, bool)], mut at: usize, mut path: Vec<String>) -> usize {
        while at < code.len() {
            match code[at].1 {
                Token::Name(word) if word == "as" => {
                    let name = code.get(at + 1).and_then(|(_, token, _)| token.name()).unwrap_or("_");
                    self.leaf(code[at], path, Some(name.to_owned()));
                    return at + 2;
                }
                Token::Name(word) => path.push(word.clone()),
                Token::Sign('*') => path.push("*".into()),
                Token::Sign('{') => {
                    at += 1;
                    while at < code.len() && *code[at].1 != Token::Sign('}') {
                        at = self.use_tree(code, at, path.clone());
                        at += usize::from(at < code.len() && *code[at].1 == Token::Sign(','));
                    }
                    return at + 1;
                }
                Token::Colons => {}
                _ => break,
            }
            at += 1;
        }
        let line = code[at.min(code.len() - 1)];
        self.leaf(line, path, None);
        at
    }

    fn leaf(&mut self, (line, _, testing): (usize, &Token, bool), mut path: Vec<String>, binds: Option<String>) {
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        let binds = binds.or_else(|| path.last().cloned());
        self.named.push(Named { line, module: self.module.clone(), path, binds, testing });
    }

    /// A path in an expression, a type or a pattern; returns where it ends.
    fn path(&mut self, code: &[(usize, &Token, bool)], mut at: usize) -> usize {
        let (line, _, testing) = code[at];
        let mut path = Vec::new();
        while let Some(name) = code.get(at).and_then(|(_, token, _)| token.name()) {
            path.push(name.to_owned());
            at += 1;
            let goes_on = code.get(at + 1).is_some_and(|(_, token, _)| token.name().is_some());
            if !(goes_on && *code[at].1 == Token::Colons) {
                break;
            }
            at += 1;
        }
        let sign = |ahead: usize| code.get(at + ahead).map(|(_, token, _)| *token);
        if sign(0) == Some(&Token::Sign('!')) && sign(1) != Some(&Token::Sign('=')) {
            path.last_mut().expect("a path has a name").push('!');
        }
        if path.len() > 1 || path[0].ends_with('!') || path[0] == "async" || path[0].starts_with(char::is_uppercase) {
            self.named.push(Named { line, module: self.module.clone(), path, binds: None, testing });
        }
        at
    }
}

/// Whether the name at `at` is the first of its path.
fn begins_path(code: &[(usize, &Token, bool)], at: usize) -> bool {
    let back = |by: usize| at.checked_sub(by).map(|at| code[at].1);
    match back(1) {
        Some(Token::Sign('.')) => false,
        // `::std::fs`, and not what follows a path or `<T as Trait>`.
        Some(Token::Colons) => !matches!(back(2), Some(Token::Name(_) | Token::Sign('>'))),
        _ => true,
    }
}
