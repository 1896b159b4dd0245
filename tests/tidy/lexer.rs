//! Rust's text as tokens: enough to keep code, comments and strings apart, and to find paths in code.

/// One token, as far as the rules ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// An identifier or keyword.
    Name(String),
    /// `::`
    Colons,
    Sign(char),
    /// What is in a string literal, with every escape as a space.
    Text(String),
    Comment {
        text: String,
        doc: bool,
    },
    /// A number, a character or a lifetime.
    Other,
}

impl Token {
    pub(crate) fn is(&self, name: &str) -> bool {
        matches!(self, Token::Name(found) if found == name)
    }

    pub(crate) fn name(&self) -> Option<&str> {
        if let Token::Name(name) = self { Some(name) } else { None }
    }
}

/// The tokens of `text`, each with the number of the line where it begins.
pub(crate) fn lex(text: &str) -> Vec<(usize, Token)> {
    let mut lexer = Lexer { text: text.chars().collect(), at: 0, line: 1 };
    let mut tokens = Vec::new();
    while let Some(c) = lexer.peek(0) {
        let line = lexer.line;
        if let Some(token) = lexer.token(c) {
            tokens.push((line, token));
        }
    }
    tokens
}

struct Lexer {
    text: Vec<char>,
    at: usize,
    line: usize,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.text.get(self.at + ahead).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek(0)?;
        self.at += 1;
        self.line += usize::from(c == '\n');
        Some(c)
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some(c) = self.peek(0).filter(|c| wanted(*c)) {
            taken.push(c);
            self.next();
        }
        taken
    }

    fn token(&mut self, c: char) -> Option<Token> {
        match (c, self.peek(1)) {
            ('/', Some('/')) => Some(self.line_comment()),
            ('/', Some('*')) => Some(self.block_comment()),
            ('"', _) => Some(self.string()),
            ('\'', _) => Some(self.quote()),
            (':', Some(':')) => {
                self.at += 2;
                Some(Token::Colons)
            }
            _ if c.is_alphabetic() || c == '_' => Some(self.name()),
            _ if c.is_ascii_digit() => {
                self.take_while(|c| c.is_alphanumeric() || c == '_');
                Some(Token::Other)
            }
            _ => {
                self.next();
                (!c.is_whitespace()).then_some(Token::Sign(c))
            }
        }
    }

    fn line_comment(&mut self) -> Token {
        let text = self.take_while(|c| c != '\n');
        let doc = (text.starts_with("///") && !text.starts_with("////")) || text.starts_with("//!");
        Token::Comment { text: text.trim_start_matches(['/', '!']).to_owned(), doc }
    }

    fn block_comment(&mut self) -> Token {
        let (mut text, mut depth) = (String::new(), 0);
        while let Some(c) = self.next() {
            match (c, self.peek(0)) {
                ('/', Some('*')) => depth += 1,
                ('*', Some('/')) => depth -= 1,
                _ => {
                    text.push(c);
                    continue;
                }
            }
            self.next();
            if depth == 0 {
                break;
            }
        }
        let doc = text.starts_with(['*', '!']);
        Token::Comment { text, doc }
    }

    fn string(&mut self) -> Token {
        self.next();
        let mut text = String::new();
        while let Some(c) = self.next().filter(|c| *c != '"') {
            let escaped = if c == '\\' { self.next() } else { None };
            // The end of a line that is escaped still ends the line.
            text.push(escaped.map_or(c, |escaped| if escaped == '\n' { '\n' } else { ' ' }));
        }
        Token::Text(text)
    }

    fn raw_string(&mut self) -> Token {
        let end = format!("\"{}", self.take_while(|c| c == '#'));
        self.next();
        let mut text = String::new();
        while !text.ends_with(&end) {
            let Some(c) = self.next() else { break };
            text.push(c);
        }
        Token::Text(text.trim_end_matches(&end).to_owned())
    }

    /// A character or a lifetime.
    fn quote(&mut self) -> Token {
        self.next();
        if self.peek(0) == Some('\\') {
            self.at += 2;
            self.take_while(|c| c != '\'');
            self.next();
        } else if self.peek(1) == Some('\'') {
            self.next();
            self.next();
        } else {
            self.take_while(|c| c.is_alphanumeric() || c == '_');
        }
        Token::Other
    }

    fn name(&mut self) -> Token {
        let name = self.take_while(|c| c.is_alphanumeric() || c == '_');
        match (name.as_str(), self.peek(0), self.peek(1)) {
            ("b" | "c", Some('"'), _) => self.string(),
            ("b", Some('\''), _) => self.quote(),
            ("r" | "br" | "cr", Some('"'), _) | ("r" | "br" | "cr", Some('#'), Some('"' | '#')) => self.raw_string(),
            ("r", Some('#'), _) => {
                self.next();
                Token::Name(self.take_while(|c| c.is_alphanumeric() || c == '_'))
            }
            _ => Token::Name(name),
        }
    }
}
