//! The walk through the body: a stack of steps still to take, and the bytes at hand.

use super::grammar::{self, STREAM_NODE, Step, Text};
use super::lengths::{self, Head};
use super::summary::{Kind, Walk};
use super::walker::{Taken, count};
use super::{Limits, MAX_DATABASES, MAX_NAME, MAX_NAMES, listpack, lzf, ziplist};

/// What is wrong.
type Fault = &'static str;

/// A string that is longer than the bytes at hand.
#[derive(Debug)]
enum Long {
    Skip { left: u64 },
    Compressed { left: u64, check: lzf::Check },
    Keep { left: usize, plain: Option<usize>, text: Text, bytes: Vec<u8> },
}

/// The key that is being walked, from the opcodes before it on.
#[derive(Debug, Default)]
struct Key {
    code: u8,
    expires: Option<i64>,
    elements: u64,
    stream_nodes: u64,
    pending: u64,
    owned: u64,
}

#[derive(Debug)]
pub(super) struct Steps {
    limits: Limits,
    /// The next step is the last one. Never deeper than the grammar, some twenty.
    stack: Vec<Step>,
    long: Option<Long>,
    key: Key,
    database: u64,
    /// The name of the auxiliary field whose value comes next.
    aux: String,
}

impl Steps {
    pub(super) fn new(limits: Limits) -> Steps {
        Steps { limits, stack: Vec::new(), long: None, key: Key::default(), database: 0, aux: String::new() }
    }

    /// Whether the next step goes on with a string.
    pub(super) fn is_within_a_string(&self) -> bool {
        self.long.is_some()
    }

    /// Takes one step.
    pub(super) fn take(&mut self, input: &[u8], walk: &mut Walk) -> Result<Taken, Fault> {
        if let Some(long) = self.long.take() {
            return self.go_on(long, input, walk).map(Taken::Used);
        }
        let Some(step) = self.stack.pop() else { return Ok(self.code(input, walk)) };
        let taken = self.step(step, input, walk)?;
        if taken == Taken::Cut {
            self.stack.push(step);
        }
        Ok(taken)
    }

    /// An opcode, or the type of a key.
    fn code(&mut self, input: &[u8], walk: &Walk) -> Taken {
        let Some(code) = input.first() else { return Taken::Cut };
        if *code == grammar::END {
            return Taken::End(1);
        }
        if let Some(steps) = grammar::opcode(walk.magic, *code) {
            self.plan(steps);
        } else if let Some((kind, steps)) = grammar::value(walk.magic, *code) {
            self.key.code = *code;
            self.stack.push(Step::Key(kind));
            self.plan(steps);
            self.stack.push(Step::Text(Text::Any));
        } else {
            return Taken::Unknown(1, *code);
        }
        Taken::Used(1)
    }

    fn plan(&mut self, steps: &[Step]) {
        self.stack.extend(steps.iter().rev());
    }

    fn step(&mut self, step: Step, input: &[u8], walk: &mut Walk) -> Result<Taken, Fault> {
        match step {
            Step::Text(text) => self.text(text, input, walk),
            Step::Skip(bytes) => Ok(Taken::Used(self.skip(bytes, input))),
            Step::Double => match input.first_chunk() {
                None => Ok(Taken::Cut),
                Some(raw) if f64::from_le_bytes(*raw).is_nan() => Err("a score is not a number"),
                Some(_) => Ok(Taken::Used(8)),
            },
            Step::Decimal => Ok(match input.first() {
                None => Taken::Cut,
                Some(253) => return Err("a score is not a number"),
                Some(254 | 255) => Taken::Used(1),
                Some(digits) => {
                    self.stack.push(Step::Skip(u64::from(*digits)));
                    Taken::Used(1)
                }
            }),
            Step::Again(0, _) => Ok(Taken::Used(0)),
            Step::Again(times, steps) => {
                self.stack.push(Step::Again(times.saturating_sub(1), steps));
                self.plan(steps);
                Ok(Taken::Used(0))
            }
            Step::Seconds => Ok(input.first_chunk().map_or(Taken::Cut, |raw| {
                self.key.expires = Some(i64::from(i32::from_le_bytes(*raw)).saturating_mul(1000));
                Taken::Used(4)
            })),
            Step::Milliseconds => Ok(input.first_chunk().map_or(Taken::Cut, |raw| {
                self.key.expires = Some(i64::from_le_bytes(*raw));
                Taken::Used(8)
            })),
            Step::Key(kind) => self.count_key(kind, walk).map(|()| Taken::Used(0)),
            Step::GroupEnd if self.key.owned > self.key.pending => {
                Err("consumers of a stream have more pending entries than their group")
            }
            Step::GroupEnd => Ok(Taken::Used(0)),
            step => match lengths::length(input)? {
                None => Ok(Taken::Cut),
                Some((number, used)) => self.number(step, number, used, walk),
            },
        }
    }

    /// A step that begins with a number.
    fn number(&mut self, step: Step, number: u64, used: usize, walk: &mut Walk) -> Result<Taken, Fault> {
        match step {
            Step::Times(steps) => self.stack.push(Step::Again(number, steps)),
            Step::Elements(steps) => {
                self.key.elements = number;
                self.stack.push(Step::Again(number, steps));
            }
            // QUICKLIST_NODE_CONTAINER_PLAIN and _PACKED.
            Step::ListNode => self.stack.push(match number {
                1 => Step::Text(Text::Element),
                2 => Step::Text(Text::Listpack(1)),
                _ => return Err("a list's node is packed in an unknown way"),
            }),
            Step::StreamNodes => {
                self.key.stream_nodes = number;
                self.stack.push(Step::Again(number, STREAM_NODE));
            }
            Step::StreamLength if number > 0 && self.key.stream_nodes == 0 => {
                return Err("a stream has a length and no entries");
            }
            Step::GroupPending(steps) => {
                (self.key.pending, self.key.owned) = (number, 0);
                self.stack.push(Step::Again(number, steps));
            }
            Step::ConsumerPending(steps) => {
                self.key.owned = self.key.owned.saturating_add(number);
                self.stack.push(Step::Again(number, steps));
            }
            Step::ModuleName if walk.modules.len() < MAX_NAMES => {
                walk.modules.insert(lengths::module_name(number));
            }
            Step::ModuleWhen if number != 2 => return Err("a module's auxiliary data begins wrongly"),
            // RDB_MODULE_OPCODE_EOF, _SINT, _UINT, _FLOAT, _DOUBLE, _STRING.
            Step::ModuleValue => match number {
                0 => {}
                1 | 2 => self.plan(&[Step::Number, Step::ModuleValue]),
                3 => self.plan(&[Step::Skip(4), Step::ModuleValue]),
                4 => self.plan(&[Step::Skip(8), Step::ModuleValue]),
                5 => self.plan(&[Step::Text(Text::Any), Step::ModuleValue]),
                code => return Ok(Taken::Unknown(used, u8::try_from(code).unwrap_or(u8::MAX))),
            },
            Step::Database => self.database = number,
            _ => {}
        }
        Ok(Taken::Used(used))
    }

    /// A whole key and its value.
    fn count_key(&mut self, kind: Kind, walk: &mut Walk) -> Result<(), Fault> {
        let key = std::mem::take(&mut self.key);
        if walk.databases.len() >= MAX_DATABASES && !walk.databases.contains_key(&self.database) {
            return Err("there are more databases than any server has");
        }
        let database = walk.databases.entry(self.database).or_default();
        let add = |count: &mut u64, one: bool| *count = count.saturating_add(u64::from(one));
        add(&mut database.keys, true);
        add(&mut database.with_expiry, key.expires.is_some());
        let expired = key.expires.zip(self.limits.expired_by).is_some_and(|(at, by)| at < by);
        add(&mut database.expired, expired);
        let collection = !matches!(kind, Kind::String | Kind::Stream | Kind::Module);
        add(&mut database.empty, collection && key.elements == 0);
        add(&mut database.with_field_expiry, kind == Kind::Hash && grammar::has_field_expiry(key.code));
        add(database.kinds.entry(kind).or_default(), true);
        Ok(())
    }

    /// Bytes that may be anything.
    fn skip(&mut self, bytes: u64, input: &[u8]) -> usize {
        match usize::try_from(bytes) {
            Ok(bytes) if bytes <= input.len() => bytes,
            _ => {
                self.long = Some(Long::Skip { left: bytes.saturating_sub(count(input.len())) });
                input.len()
            }
        }
    }

    /// A string: its head, and its content if that is at hand, else the beginning of it.
    fn text(&mut self, text: Text, input: &[u8], walk: &mut Walk) -> Result<Taken, Fault> {
        let Some((head, used)) = lengths::head(input)? else { return Ok(Taken::Cut) };
        match text {
            Text::AuxName => self.aux.clear(),
            Text::Library => walk.functions = walk.functions.saturating_add(1),
            Text::Element => self.key.elements = self.key.elements.saturating_add(1),
            _ => {}
        }
        let (stored, plain) = match head {
            Head::Integer(number) => {
                self.integer(text, number, walk)?;
                return Ok(Taken::Used(used));
            }
            Head::Plain(bytes) => (bytes, None),
            Head::Compressed { stored, plain } => (stored, Some(plain)),
        };
        let long = self.long_text(text, stored, plain, walk)?;
        let body = input.get(used..).unwrap_or_default();
        let more = self.go_on(long, body, walk)?;
        Ok(Taken::Used(used.saturating_add(more)))
    }

    /// What to do with a string of such a length.
    fn long_text(&mut self, text: Text, stored: u64, plain: Option<u64>, walk: &mut Walk) -> Result<Long, Fault> {
        let limit = match text {
            Text::AuxName | Text::AuxValue => MAX_NAME,
            Text::StreamId if plain.unwrap_or(stored) != 16 => return Err("the id of a stream's node is no id"),
            _ => count(self.limits.nested),
        };
        let fits = stored <= limit && plain.unwrap_or(0) <= limit;
        if let (true, true, Ok(left)) = (text.is_looked_into(), fits, usize::try_from(stored)) {
            let plain = plain.map(usize::try_from).transpose().map_err(|_wide| "a string too long for this machine")?;
            return Ok(Long::Keep { left, plain, text, bytes: Vec::new() });
        }
        if text.is_looked_into() && !matches!(text, Text::AuxName | Text::AuxValue) {
            walk.unwalked = walk.unwalked.saturating_add(1);
            // Whatever is in there, it is not empty.
            self.key.elements = self.key.elements.saturating_add(1);
        }
        Ok(match plain {
            None => Long::Skip { left: stored },
            Some(plain) => Long::Compressed { left: stored, check: lzf::Check::new(plain) },
        })
    }

    /// More of a string.
    fn go_on(&mut self, long: Long, input: &[u8], walk: &mut Walk) -> Result<usize, Fault> {
        match long {
            Long::Skip { left } => Ok(self.skip(left, input)),
            Long::Compressed { left, mut check } => {
                let used = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
                check.push(input.get(..used).unwrap_or_default())?;
                match left.saturating_sub(count(used)) {
                    0 => check.end()?,
                    left => self.long = Some(Long::Compressed { left, check }),
                }
                Ok(used)
            }
            Long::Keep { left, plain, text, mut bytes } => {
                let (piece, rest) = input.split_at(left.min(input.len()));
                if piece.len() < left {
                    bytes.extend_from_slice(piece);
                    self.long = Some(Long::Keep { left: left.saturating_sub(piece.len()), plain, text, bytes });
                } else if bytes.is_empty() {
                    self.content(text, piece, plain, walk)?;
                } else {
                    bytes.extend_from_slice(piece);
                    self.content(text, &bytes, plain, walk)?;
                }
                Ok(input.len().saturating_sub(rest.len()))
            }
        }
    }

    /// A string that is looked into.
    fn content(&mut self, text: Text, bytes: &[u8], plain: Option<usize>, walk: &mut Walk) -> Result<(), Fault> {
        let decompressed = plain.map(|plain| lzf::decompress(bytes, plain)).transpose()?;
        let bytes = decompressed.as_deref().unwrap_or(bytes);
        let elements = match text {
            Text::AuxName => {
                self.aux = String::from_utf8_lossy(bytes).into_owned();
                0
            }
            Text::AuxValue => {
                self.remember(String::from_utf8_lossy(bytes).into_owned(), walk);
                0
            }
            Text::Listpack(group) => listpack::check(bytes, group)?,
            Text::StreamListpack => listpack::check_stream(bytes)?,
            Text::Ziplist(group) => ziplist::check(bytes, group)?,
            Text::Zipmap => ziplist::check_map(bytes)?,
            Text::Integers => ziplist::check_integers(bytes)?,
            Text::Any | Text::Element | Text::Library | Text::StreamId => 0,
        };
        self.key.elements = self.key.elements.saturating_add(elements);
        Ok(())
    }

    /// A string that is written as a number.
    fn integer(&mut self, text: Text, number: i64, walk: &mut Walk) -> Result<(), Fault> {
        match text {
            Text::Any | Text::Element | Text::Library => Ok(()),
            Text::AuxName => {
                self.aux = number.to_string();
                Ok(())
            }
            Text::AuxValue => {
                self.remember(number.to_string(), walk);
                Ok(())
            }
            _ => Err("a number stands where a nested encoding belongs"),
        }
    }

    fn remember(&mut self, value: String, walk: &mut Walk) {
        if !self.aux.is_empty() && walk.aux.len() < MAX_NAMES {
            walk.aux.insert(std::mem::take(&mut self.aux), value);
        }
    }
}
