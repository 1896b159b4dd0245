//! The walk through the body: a stack of steps still to take, and the bytes at hand.

use super::grammar::{self, RdbStep, RdbStringRole, STREAM_NODE_STEPS};
use super::lengths::{self, StringHead, byte_count};
use super::limits::{MAX_DATABASES, MAX_NAME_BYTES, MAX_NAMES, RdbLimits};
use super::summary::{RdbSummary, RdbValueKind};
use super::{listpack, lzf, ziplist};

/// What a step leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RdbStepResult {
    /// So many bytes were used.
    Used(usize),
    /// More bytes are needed than there are.
    Cut,
    /// So many bytes were used, the last of them the end.
    End(usize),
    /// So many bytes were used; what comes after this code is not known.
    Unknown(usize, u8),
}

/// What is wrong.
type RdbFault = &'static str;

/// A string that is longer than the bytes at hand.
#[derive(Debug)]
enum LongString {
    Skip { left: u64 },
    Compressed { left: u64, check: lzf::LzfChecker },
    Keep { left: usize, plain: Option<usize>, text: RdbStringRole, bytes: Vec<u8> },
}

/// The key that is being walked, from the opcodes before it on.
#[derive(Debug, Default)]
struct RdbKey {
    code: u8,
    expires: Option<i64>,
    elements: u64,
    stream_nodes: u64,
    pending: u64,
    owned: u64,
}

#[derive(Debug)]
pub(super) struct RdbBodyWalker {
    limits: RdbLimits,
    /// The next step is the last one. Never deeper than the grammar, some twenty.
    stack: Vec<RdbStep>,
    long: Option<LongString>,
    key: RdbKey,
    database: u64,
    /// The name of the auxiliary field whose value comes next.
    aux: String,
}

impl RdbBodyWalker {
    pub(super) fn new(limits: RdbLimits) -> RdbBodyWalker {
        RdbBodyWalker { limits, stack: Vec::new(), long: None, key: RdbKey::default(), database: 0, aux: String::new() }
    }

    /// Whether the next step goes on with a string.
    pub(super) fn is_within_a_string(&self) -> bool {
        self.long.is_some()
    }

    /// Takes one step.
    pub(super) fn walk(&mut self, input: &[u8], walk: &mut RdbSummary) -> Result<RdbStepResult, RdbFault> {
        if let Some(long) = self.long.take() {
            return self.continue_long_string(long, input, walk).map(RdbStepResult::Used);
        }
        let Some(step) = self.stack.pop() else { return Ok(self.read_opcode(input, walk)) };
        let taken = self.take_step(step, input, walk)?;
        if taken == RdbStepResult::Cut {
            self.stack.push(step);
        }
        Ok(taken)
    }

    /// An opcode, or the type of a key.
    fn read_opcode(&mut self, input: &[u8], walk: &RdbSummary) -> RdbStepResult {
        let Some(code) = input.first() else { return RdbStepResult::Cut };
        if *code == grammar::END_OPCODE {
            return RdbStepResult::End(1);
        }
        if let Some(steps) = grammar::opcode_steps(walk.magic, *code) {
            self.push_steps(steps);
        } else if let Some((kind, steps)) = grammar::value_steps(walk.magic, *code) {
            self.key.code = *code;
            self.stack.push(RdbStep::Key(kind));
            self.push_steps(steps);
            self.stack.push(RdbStep::Text(RdbStringRole::Any));
        } else {
            return RdbStepResult::Unknown(1, *code);
        }
        RdbStepResult::Used(1)
    }

    fn push_steps(&mut self, steps: &[RdbStep]) {
        self.stack.extend(steps.iter().rev());
    }

    fn take_step(&mut self, step: RdbStep, input: &[u8], walk: &mut RdbSummary) -> Result<RdbStepResult, RdbFault> {
        match step {
            RdbStep::Text(text) => self.take_string(text, input, walk),
            RdbStep::Skip(bytes) => Ok(RdbStepResult::Used(self.skip_bytes(bytes, input))),
            RdbStep::Double => match input.first_chunk() {
                None => Ok(RdbStepResult::Cut),
                Some(raw) if f64::from_le_bytes(*raw).is_nan() => Err("a score is not a number"),
                Some(_) => Ok(RdbStepResult::Used(8)),
            },
            RdbStep::Decimal => Ok(match input.first() {
                None => RdbStepResult::Cut,
                Some(253) => return Err("a score is not a number"),
                Some(254 | 255) => RdbStepResult::Used(1),
                Some(digits) => {
                    self.stack.push(RdbStep::Skip(u64::from(*digits)));
                    RdbStepResult::Used(1)
                }
            }),
            RdbStep::Again(0, _) => Ok(RdbStepResult::Used(0)),
            RdbStep::Again(times, steps) => {
                self.stack.push(RdbStep::Again(times.saturating_sub(1), steps));
                self.push_steps(steps);
                Ok(RdbStepResult::Used(0))
            }
            RdbStep::Seconds => Ok(input.first_chunk().map_or(RdbStepResult::Cut, |raw| {
                self.key.expires = Some(i64::from(i32::from_le_bytes(*raw)).saturating_mul(1000));
                RdbStepResult::Used(4)
            })),
            RdbStep::Milliseconds => Ok(input.first_chunk().map_or(RdbStepResult::Cut, |raw| {
                self.key.expires = Some(i64::from_le_bytes(*raw));
                RdbStepResult::Used(8)
            })),
            RdbStep::Key(kind) => self.count_key(kind, walk).map(|()| RdbStepResult::Used(0)),
            RdbStep::GroupEnd if self.key.owned > self.key.pending => {
                Err("consumers of a stream have more pending entries than their group")
            }
            RdbStep::GroupEnd => Ok(RdbStepResult::Used(0)),
            step => match lengths::read_length(input)? {
                None => Ok(RdbStepResult::Cut),
                Some((number, used)) => self.take_number(step, number, used, walk),
            },
        }
    }

    /// A step that begins with a number.
    fn take_number(
        &mut self,
        step: RdbStep,
        number: u64,
        used: usize,
        walk: &mut RdbSummary,
    ) -> Result<RdbStepResult, RdbFault> {
        match step {
            RdbStep::Times(steps) => self.stack.push(RdbStep::Again(number, steps)),
            RdbStep::Elements(steps) => {
                self.key.elements = number;
                self.stack.push(RdbStep::Again(number, steps));
            }
            // QUICKLIST_NODE_CONTAINER_PLAIN and _PACKED.
            RdbStep::ListNode => self.stack.push(match number {
                1 => RdbStep::Text(RdbStringRole::Element),
                2 => RdbStep::Text(RdbStringRole::Listpack(1)),
                _ => return Err("a list's node is packed in an unknown way"),
            }),
            RdbStep::StreamNodes => {
                self.key.stream_nodes = number;
                self.stack.push(RdbStep::Again(number, STREAM_NODE_STEPS));
            }
            RdbStep::StreamLength if number > 0 && self.key.stream_nodes == 0 => {
                return Err("a stream has a length and no entries");
            }
            RdbStep::GroupPending(steps) => {
                (self.key.pending, self.key.owned) = (number, 0);
                self.stack.push(RdbStep::Again(number, steps));
            }
            RdbStep::ConsumerPending(steps) => {
                self.key.owned = self.key.owned.saturating_add(number);
                self.stack.push(RdbStep::Again(number, steps));
            }
            RdbStep::ModuleName if walk.modules.len() < MAX_NAMES => {
                walk.modules.insert(lengths::module_name(number));
            }
            RdbStep::ModuleWhen if number != 2 => return Err("a module's auxiliary data begins wrongly"),
            // RDB_MODULE_OPCODE_EOF, _SINT, _UINT, _FLOAT, _DOUBLE, _STRING.
            RdbStep::ModuleValue => match number {
                0 => {}
                1 | 2 => self.push_steps(&[RdbStep::Number, RdbStep::ModuleValue]),
                3 => self.push_steps(&[RdbStep::Skip(4), RdbStep::ModuleValue]),
                4 => self.push_steps(&[RdbStep::Skip(8), RdbStep::ModuleValue]),
                5 => self.push_steps(&[RdbStep::Text(RdbStringRole::Any), RdbStep::ModuleValue]),
                code => return Ok(RdbStepResult::Unknown(used, u8::try_from(code).unwrap_or(u8::MAX))),
            },
            RdbStep::Database => self.database = number,
            _ => {}
        }
        Ok(RdbStepResult::Used(used))
    }

    /// A whole key and its value.
    fn count_key(&mut self, kind: RdbValueKind, walk: &mut RdbSummary) -> Result<(), RdbFault> {
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
        let collection = !matches!(kind, RdbValueKind::String | RdbValueKind::Stream | RdbValueKind::Module);
        add(&mut database.empty, collection && key.elements == 0);
        add(&mut database.with_field_expiry, kind == RdbValueKind::Hash && grammar::has_field_expiry(key.code));
        add(database.kinds.entry(kind).or_default(), true);
        Ok(())
    }

    /// Bytes that may be anything.
    fn skip_bytes(&mut self, bytes: u64, input: &[u8]) -> usize {
        match usize::try_from(bytes) {
            Ok(bytes) if bytes <= input.len() => bytes,
            _ => {
                self.long = Some(LongString::Skip { left: bytes.saturating_sub(byte_count(input.len())) });
                input.len()
            }
        }
    }

    /// A string: its head, and its content if that is at hand, else the beginning of it.
    fn take_string(
        &mut self,
        text: RdbStringRole,
        input: &[u8],
        walk: &mut RdbSummary,
    ) -> Result<RdbStepResult, RdbFault> {
        let Some((head, used)) = lengths::read_string_head(input)? else { return Ok(RdbStepResult::Cut) };
        match text {
            RdbStringRole::AuxName => self.aux.clear(),
            RdbStringRole::Library => walk.functions = walk.functions.saturating_add(1),
            RdbStringRole::Element => self.key.elements = self.key.elements.saturating_add(1),
            _ => {}
        }
        let (stored, plain) = match head {
            StringHead::Integer(number) => {
                self.check_integer(text, number, walk)?;
                return Ok(RdbStepResult::Used(used));
            }
            StringHead::Plain(bytes) => (bytes, None),
            StringHead::Compressed { stored, plain } => (stored, Some(plain)),
        };
        let long = self.begin_long_string(text, stored, plain, walk)?;
        let body = input.get(used..).unwrap_or_default();
        let more = self.continue_long_string(long, body, walk)?;
        Ok(RdbStepResult::Used(used.saturating_add(more)))
    }

    /// What to do with a string of such a length.
    fn begin_long_string(
        &mut self,
        text: RdbStringRole,
        stored: u64,
        plain: Option<u64>,
        walk: &mut RdbSummary,
    ) -> Result<LongString, RdbFault> {
        let limit = match text {
            RdbStringRole::AuxName | RdbStringRole::AuxValue => MAX_NAME_BYTES,
            RdbStringRole::StreamId if plain.unwrap_or(stored) != 16 => {
                return Err("the id of a stream's node is no id");
            }
            _ => byte_count(self.limits.nested),
        };
        let fits = stored <= limit && plain.unwrap_or(0) <= limit;
        if let (true, true, Ok(left)) = (text.is_looked_into(), fits, usize::try_from(stored)) {
            let plain = plain.map(usize::try_from).transpose().map_err(|_wide| "a string too long for this machine")?;
            return Ok(LongString::Keep { left, plain, text, bytes: Vec::new() });
        }
        if text.is_looked_into() && !matches!(text, RdbStringRole::AuxName | RdbStringRole::AuxValue) {
            walk.unwalked = walk.unwalked.saturating_add(1);
            // Whatever is in there, it is not empty.
            self.key.elements = self.key.elements.saturating_add(1);
        }
        Ok(match plain {
            None => LongString::Skip { left: stored },
            Some(plain) => LongString::Compressed { left: stored, check: lzf::LzfChecker::new(plain) },
        })
    }

    /// More of a string.
    fn continue_long_string(
        &mut self,
        long: LongString,
        input: &[u8],
        walk: &mut RdbSummary,
    ) -> Result<usize, RdbFault> {
        match long {
            LongString::Skip { left } => Ok(self.skip_bytes(left, input)),
            LongString::Compressed { left, mut check } => {
                let used = usize::try_from(left).map_or(input.len(), |left| left.min(input.len()));
                check.push(input.get(..used).unwrap_or_default())?;
                match left.saturating_sub(byte_count(used)) {
                    0 => check.finish()?,
                    left => self.long = Some(LongString::Compressed { left, check }),
                }
                Ok(used)
            }
            LongString::Keep { left, plain, text, mut bytes } => {
                let (piece, rest) = input.split_at(left.min(input.len()));
                if piece.len() < left {
                    bytes.extend_from_slice(piece);
                    self.long = Some(LongString::Keep { left: left.saturating_sub(piece.len()), plain, text, bytes });
                } else if bytes.is_empty() {
                    self.check_content(text, piece, plain, walk)?;
                } else {
                    bytes.extend_from_slice(piece);
                    self.check_content(text, &bytes, plain, walk)?;
                }
                Ok(input.len().saturating_sub(rest.len()))
            }
        }
    }

    /// A string that is looked into.
    fn check_content(
        &mut self,
        text: RdbStringRole,
        bytes: &[u8],
        plain: Option<usize>,
        walk: &mut RdbSummary,
    ) -> Result<(), RdbFault> {
        let decompressed = plain.map(|plain| lzf::decompress(bytes, plain)).transpose()?;
        let bytes = decompressed.as_deref().unwrap_or(bytes);
        let elements = match text {
            RdbStringRole::AuxName => {
                self.aux = String::from_utf8_lossy(bytes).into_owned();
                0
            }
            RdbStringRole::AuxValue => {
                self.remember_name(String::from_utf8_lossy(bytes).into_owned(), walk);
                0
            }
            RdbStringRole::Listpack(group) => listpack::check_listpack(bytes, group)?,
            RdbStringRole::StreamListpack => listpack::check_stream_listpack(bytes)?,
            RdbStringRole::Ziplist(group) => ziplist::check_ziplist(bytes, group)?,
            RdbStringRole::Zipmap => ziplist::check_zipmap(bytes)?,
            RdbStringRole::Integers => ziplist::check_intset(bytes)?,
            RdbStringRole::Any | RdbStringRole::Element | RdbStringRole::Library | RdbStringRole::StreamId => 0,
        };
        self.key.elements = self.key.elements.saturating_add(elements);
        Ok(())
    }

    /// A string that is written as a number.
    fn check_integer(&mut self, text: RdbStringRole, number: i64, walk: &mut RdbSummary) -> Result<(), RdbFault> {
        match text {
            RdbStringRole::Any | RdbStringRole::Element | RdbStringRole::Library => Ok(()),
            RdbStringRole::AuxName => {
                self.aux = number.to_string();
                Ok(())
            }
            RdbStringRole::AuxValue => {
                self.remember_name(number.to_string(), walk);
                Ok(())
            }
            _ => Err("a number stands where a nested encoding belongs"),
        }
    }

    fn remember_name(&mut self, value: String, walk: &mut RdbSummary) {
        if !self.aux.is_empty() && walk.aux.len() < MAX_NAMES {
            walk.aux.insert(std::mem::take(&mut self.aux), value);
        }
    }
}
