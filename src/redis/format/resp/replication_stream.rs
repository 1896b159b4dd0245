//! The stream of commands from a server to its replicas: bytes in by any split, commands out with their places.

use super::error::{RespError, parse_number};

/// What a stream may hold. None of it is allocated; the limits keep damage from being taken for data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommandLimits {
    /// Arguments of a command. `INT_MAX`, as `processMultibulkBuffer` (networking.c) has it.
    pub arguments: u64,
    /// Bytes of an argument. 64 GiB: `proto-max-bulk-len` is 512 MiB as it comes and does not bind a master's stream;
    /// no server holds a single value beyond this.
    pub argument: u64,
    /// Bytes of a line, as `PROTO_INLINE_MAX_SIZE` (server.h).
    pub line: usize,
    /// Bytes that are kept of a command's arguments, all together: enough for names and a few keys.
    pub kept: usize,
}

impl Default for CommandLimits {
    fn default() -> CommandLimits {
        CommandLimits { arguments: 0x7FFF_FFFF, argument: 64 << 30, line: 64 << 10, kept: 4 << 10 }
    }
}

/// The most arguments of which anything is kept.
const MAX_KEPT_ARGUMENTS: usize = 256;

/// What a command is to somebody who only follows the stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommandKind {
    /// An empty line: it counts, and says nothing.
    Empty,
    /// The server's sign of life.
    Ping,
    /// The server wants to know our offset (`REPLCONF GETACK *`).
    GetAck,
    /// Another database from here on.
    Select,
    /// A transaction begins.
    Multi,
    /// It ends.
    Exec,
    /// Anything else: it changes data.
    Other,
}

/// A place where the stream may be cut: after a command, and in no transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
pub struct StreamCut {
    /// How many bytes of the history come before.
    pub offset: u64,
    /// The database that the next command acts on.
    pub db: u32,
}

/// An argument, as far as it was kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommandArgument<'c> {
    /// Its beginning.
    pub head: &'c [u8],
    /// How long it is.
    pub len: u64,
}

impl<'c> CommandArgument<'c> {
    /// The argument, if all of it was kept.
    #[must_use]
    pub fn complete_value(&self) -> Option<&'c [u8]> {
        (self.head.len() as u64 == self.len).then_some(self.head)
    }
}

/// One command.
#[derive(Clone, Copy, Debug)]
pub struct ReplicatedCommand<'c> {
    /// The offset before its first byte.
    pub start: u64,
    /// The offset after its last byte.
    pub end: u64,
    /// What it is.
    pub kind: CommandKind,
    /// The database it acts on.
    pub db: u32,
    /// Whether it stands within a transaction; its `MULTI` and `EXEC` do.
    pub in_transaction: bool,
    /// How many arguments it has, its name with them.
    pub count: u64,
    kept: &'c KeptArguments,
}

impl<'c> ReplicatedCommand<'c> {
    /// Its name, as it was sent.
    #[must_use]
    pub fn name(&self) -> &'c [u8] {
        self.argument(0).map(|name| name.head).unwrap_or_default()
    }

    /// The argument of this number, its name being 0; `None` beyond what was kept.
    #[must_use]
    pub fn argument(&self, nth: usize) -> Option<CommandArgument<'c>> {
        let slot = self.kept.slots.get(nth)?;
        Some(CommandArgument { head: self.kept.bytes.get(slot.from..slot.to)?, len: slot.len })
    }
}

#[derive(Clone, Copy, Debug)]
struct ArgumentSlot {
    from: usize,
    to: usize,
    len: u64,
}

/// What is kept of the command under way.
#[derive(Clone, Debug, Default)]
struct KeptArguments {
    bytes: Vec<u8>,
    slots: Vec<ArgumentSlot>,
}

impl KeptArguments {
    fn clear(&mut self) {
        self.bytes.clear();
        self.slots.clear();
    }

    fn begin_argument(&mut self, len: u64) {
        if self.slots.len() < MAX_KEPT_ARGUMENTS {
            let at = self.bytes.len();
            self.slots.push(ArgumentSlot { from: at, to: at, len });
        }
    }

    fn extend(&mut self, bytes: &[u8], nth: u64, limit: usize) {
        if nth >= self.slots.len() as u64 {
            return;
        }
        let room = limit.saturating_sub(self.bytes.len()).min(bytes.len());
        self.bytes.extend_from_slice(bytes.get(..room).unwrap_or_default());
        let end = self.bytes.len();
        if let Some(slot) = self.slots.last_mut() {
            slot.to = end;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum CommandParserState {
    /// Before a command.
    Begin,
    /// Before an argument's length.
    Length,
    /// Within an argument.
    Argument { left: u64 },
    /// In the line end after an argument; so many bytes of it are still to come.
    End { left: u8 },
}

/// The parser: [`CommandParser::push`] bytes, and be called with each command that they complete.
///
/// Holds at most a line and [`CommandLimits::kept`] bytes of the command under way.
#[derive(Clone, Debug)]
pub struct CommandParser {
    limits: CommandLimits,
    state: CommandParserState,
    line: Vec<u8>,
    kept: KeptArguments,
    /// Arguments announced by the command under way.
    count: u64,
    /// Arguments of it that are complete.
    done: u64,
    start: u64,
    offset: u64,
    db: u32,
    in_transaction: bool,
    cut: Option<StreamCut>,
}

impl CommandParser {
    /// Begins at a place where the stream may be cut.
    #[must_use]
    pub fn new(cut: StreamCut, limits: CommandLimits) -> CommandParser {
        CommandParser { cut: Some(cut), ..CommandParser::resume_at(cut.offset, cut.db, false, limits) }
    }

    /// Begins before a command, perhaps within a transaction.
    #[must_use]
    pub fn resume_at(offset: u64, db: u32, in_transaction: bool, limits: CommandLimits) -> CommandParser {
        CommandParser {
            limits,
            state: CommandParserState::Begin,
            line: Vec::new(),
            kept: KeptArguments::default(),
            count: 0,
            done: 0,
            start: offset,
            offset,
            db,
            in_transaction,
            cut: (!in_transaction).then_some(StreamCut { offset, db }),
        }
    }

    /// The offset after all bytes pushed.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Where the command under way begins; equal to [`CommandParser::offset`] between two commands.
    #[must_use]
    pub fn boundary(&self) -> u64 {
        self.start
    }

    /// The database that the next command acts on.
    #[must_use]
    pub fn db(&self) -> u32 {
        self.db
    }

    /// Whether a transaction is open.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// The last place among the bytes pushed where the stream may be cut; `None` if they began within a transaction
    /// that has not ended.
    #[must_use]
    pub fn cut(&self) -> Option<StreamCut> {
        self.cut
    }

    /// Takes the next bytes and calls `each` with every command that they complete, in order.
    ///
    /// # Errors
    /// [`RespError`] where the bytes are no RESP; the parser is of no use after that.
    pub fn push(&mut self, mut input: &[u8], each: &mut dyn FnMut(&ReplicatedCommand<'_>)) -> Result<(), RespError> {
        while let Some(first) = input.first().copied() {
            match self.state {
                CommandParserState::Begin => {
                    if self.read_line(&mut input)? {
                        self.begin_command(each)?;
                    }
                }
                CommandParserState::Length => {
                    if self.line.is_empty() && first != b'$' {
                        return Err(RespError::Unexpected { at: self.offset, wanted: "'$'", found: first });
                    }
                    if self.read_line(&mut input)? {
                        self.begin_argument()?;
                    }
                }
                CommandParserState::Argument { left } => self.read_argument(left, &mut input),
                CommandParserState::End { left } => self.read_terminator(left, first, &mut input, each)?,
            }
        }
        Ok(())
    }

    fn consume<'i>(&mut self, input: &mut &'i [u8], len: usize) -> &'i [u8] {
        let (taken, rest) = input.split_at_checked(len).unwrap_or((input, &[]));
        *input = rest;
        self.offset = self.offset.saturating_add(taken.len() as u64);
        taken
    }

    /// Moves input to the line under way; true when that has ended.
    fn read_line(&mut self, input: &mut &[u8]) -> Result<bool, RespError> {
        let limit = self.limits.line;
        let found = input.iter().take(limit.saturating_add(1)).position(|byte| *byte == b'\n');
        let len = found.map_or(input.len(), |at| at.saturating_add(1));
        if self.line.len().saturating_add(len) > limit {
            return Err(RespError::Endless { at: self.offset.saturating_sub(self.line.len() as u64), limit });
        }
        let taken = self.consume(input, len);
        self.line.extend_from_slice(taken);
        Ok(found.is_some())
    }

    /// The line without its end, which is a line feed with or without a carriage return before it.
    fn content(&self) -> &[u8] {
        let line = self.line.strip_suffix(b"\n").unwrap_or(&self.line);
        line.strip_suffix(b"\r").unwrap_or(line)
    }

    /// A whole first line: `*3`, or nothing. A command in a line of its own comes from no server, but from damage
    /// (`processInlineBuffer`, networking.c).
    fn begin_command(&mut self, each: &mut dyn FnMut(&ReplicatedCommand<'_>)) -> Result<(), RespError> {
        self.kept.clear();
        (self.count, self.done) = (0, 0);
        let at = self.start;
        if let Some(count) = self.content().strip_prefix(b"*") {
            let count = parse_number(count, "a number of arguments", at)?;
            self.line.clear();
            // `*0` and `*-1` are empty commands to `processMultibulkBuffer`.
            let Some(count) = u64::try_from(count).ok().filter(|count| *count > 0) else {
                self.finish_command(each)?;
                return Ok(());
            };
            if count > self.limits.arguments {
                let (what, limit) = ("a number of arguments", self.limits.arguments);
                return Err(RespError::TooMuch { at, what, found: i128::from(count), limit });
            }
            self.count = count;
            self.state = CommandParserState::Length;
            return Ok(());
        }
        if let Some(found) = self.content().first().copied() {
            return Err(RespError::Unexpected { at, wanted: "a command", found });
        }
        self.line.clear();
        self.finish_command(each)
    }

    /// A whole line with an argument's length.
    fn begin_argument(&mut self) -> Result<(), RespError> {
        let at = self.offset.saturating_sub(self.line.len() as u64);
        let what = "the length of an argument";
        let found = parse_number(self.content().strip_prefix(b"$").unwrap_or_default(), what, at)?;
        let limit = self.limits.argument;
        let Some(len) = u64::try_from(found).ok().filter(|len| *len <= limit) else {
            return Err(RespError::TooMuch { at, what, found: i128::from(found), limit });
        };
        self.line.clear();
        self.kept.begin_argument(len);
        self.state =
            if len == 0 { CommandParserState::End { left: 2 } } else { CommandParserState::Argument { left: len } };
        Ok(())
    }

    fn read_argument(&mut self, left: u64, input: &mut &[u8]) {
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        let taken = self.consume(input, len);
        self.kept.extend(taken, self.done, self.limits.kept);
        let left = left.saturating_sub(taken.len() as u64);
        self.state =
            if left == 0 { CommandParserState::End { left: 2 } } else { CommandParserState::Argument { left } };
    }

    fn read_terminator(
        &mut self,
        left: u8,
        first: u8,
        input: &mut &[u8],
        each: &mut dyn FnMut(&ReplicatedCommand<'_>),
    ) -> Result<(), RespError> {
        let (wanted, byte) = if left == 2 { ("a carriage return", b'\r') } else { ("a line feed", b'\n') };
        if first != byte {
            return Err(RespError::Unexpected { at: self.offset, wanted, found: first });
        }
        self.consume(input, 1);
        if left == 2 {
            self.state = CommandParserState::End { left: 1 };
            return Ok(());
        }
        self.done = self.done.saturating_add(1);
        if self.done < self.count {
            self.state = CommandParserState::Length;
            return Ok(());
        }
        self.finish_command(each)
    }

    /// A whole command.
    fn finish_command(&mut self, each: &mut dyn FnMut(&ReplicatedCommand<'_>)) -> Result<(), RespError> {
        self.state = CommandParserState::Begin;
        let (start, end) = (self.start, self.offset);
        let mut command = ReplicatedCommand {
            start,
            end,
            kind: CommandKind::Empty,
            db: self.db,
            in_transaction: self.in_transaction,
            count: self.count,
            kept: &self.kept,
        };
        command.kind = command_kind(&command);
        match command.kind {
            CommandKind::Multi => {
                self.in_transaction = true;
                command.in_transaction = true;
            }
            CommandKind::Exec => self.in_transaction = false,
            CommandKind::Select => {
                let text = command.argument(1).map(|db| db.head).unwrap_or_default();
                let what = "a database";
                let db = parse_number(text, what, start)?;
                let limit = u64::from(i32::MAX.unsigned_abs());
                self.db = u32::try_from(db).ok().filter(|db| u64::from(*db) <= limit).ok_or(RespError::TooMuch {
                    at: start,
                    what,
                    found: i128::from(db),
                    limit,
                })?;
            }
            CommandKind::Empty | CommandKind::Ping | CommandKind::GetAck | CommandKind::Other => {}
        }
        each(&command);
        self.start = end;
        if !self.in_transaction {
            self.cut = Some(StreamCut { offset: end, db: self.db });
        }
        Ok(())
    }
}

fn command_kind(command: &ReplicatedCommand<'_>) -> CommandKind {
    let is = |nth: usize, word: &[u8]| command.argument(nth).is_some_and(|a| a.head.eq_ignore_ascii_case(word));
    match command.name().len() {
        0 if command.count == 0 => CommandKind::Empty,
        4 if is(0, b"PING") => CommandKind::Ping,
        4 if is(0, b"EXEC") => CommandKind::Exec,
        5 if is(0, b"MULTI") => CommandKind::Multi,
        6 if is(0, b"SELECT") => CommandKind::Select,
        8 if is(0, b"REPLCONF") && is(1, b"GETACK") => CommandKind::GetAck,
        _ => CommandKind::Other,
    }
}

/// What the fuzzer compares.
pub(super) mod fuzz {
    use super::{CommandLimits, CommandParser, StreamCut};

    /// Every command and where it all ended, with the bytes pushed in pieces that end at these places.
    pub(crate) fn seen(data: &[u8], cuts: &[usize]) -> Vec<String> {
        let limits = CommandLimits { line: 64, kept: 128, argument: 1 << 20, arguments: 1 << 10 };
        let mut parser = CommandParser::new(StreamCut { offset: 7, db: 0 }, limits);
        let mut found = Vec::new();
        let mut from = 0;
        for to in cuts.iter().copied().chain([data.len()]) {
            let piece = data.get(from..to).unwrap_or_default();
            let pushed = parser.push(piece, &mut |command| {
                assert!(command.start < command.end, "a command of no bytes");
                let kept: usize = (0..).map_while(|nth| command.argument(nth)).map(|a| a.head.len()).sum();
                assert!(kept <= limits.kept, "{kept} bytes were kept");
                found.push(format!("{}..{} {:?} {:?}", command.start, command.end, command.kind, command.name()));
            });
            if let Err(error) = pushed {
                // Where a limit is met depends on where the pieces end; that it is met does not.
                found.push(if matches!(error, super::RespError::Endless { .. }) {
                    "endless".into()
                } else {
                    error.to_string()
                });
                return found;
            }
            assert!(parser.line.len() <= limits.line && parser.boundary() <= parser.offset(), "it holds too much");
            from = to.max(from);
        }
        found.push(format!("{:?} at {}", parser.cut(), parser.offset()));
        found
    }
}

#[cfg(test)]
mod tests {
    use super::{CommandKind, CommandLimits, CommandParser, StreamCut};
    use crate::redis::format::resp::{RespError, encode_command};

    fn parser() -> CommandParser {
        CommandParser::new(StreamCut { offset: 1000, db: 0 }, CommandLimits::default())
    }

    /// Name, kind, database and length of each command.
    fn all(parser: &mut CommandParser, bytes: &[u8]) -> Result<Vec<(String, CommandKind, u32, u64)>, RespError> {
        let mut found = Vec::new();
        parser.push(bytes, &mut |c| {
            found.push((String::from_utf8_lossy(c.name()).into_owned(), c.kind, c.db, c.end - c.start));
        })?;
        Ok(found)
    }

    #[test]
    fn every_byte_counts_whatever_it_says() {
        let mut parser = parser();
        let stream = [
            encode_command(&[b"PING"]),
            b"\n".to_vec(),
            encode_command(&[b"SELECT", b"3"]),
            encode_command(&[b"SET", b"key", b"a\r\n$5\r\nvalue"]),
            encode_command(&[b"replconf", b"getack", b"*"]),
            b"\r\n".to_vec(),
        ];
        let found = all(&mut parser, &stream.concat()).unwrap();
        let kinds: Vec<CommandKind> = found.iter().map(|(_, kind, ..)| *kind).collect();
        assert_eq!(
            kinds,
            [
                CommandKind::Ping,
                CommandKind::Empty,
                CommandKind::Select,
                CommandKind::Other,
                CommandKind::GetAck,
                CommandKind::Empty
            ]
        );
        let lengths: Vec<usize> = found.iter().map(|(.., len)| usize::try_from(*len).unwrap()).collect();
        assert_eq!(lengths, stream.iter().map(Vec::len).collect::<Vec<_>>());
        assert_eq!(found.iter().map(|(_, _, db, _)| *db).collect::<Vec<_>>(), [0, 0, 0, 3, 3, 3]);
        let end = 1000 + stream.concat().len() as u64;
        assert_eq!(parser.cut(), Some(StreamCut { offset: end, db: 3 }));
    }

    /// A client may send one; what comes to a replica as one is damage.
    #[test]
    fn a_command_in_a_line_of_its_own_is_refused() {
        for line in [&b"PING\r\n"[..], b"+3\r\n", b"SET a 1\r\n", b" \r\n"] {
            let refused = all(&mut parser(), &[&encode_command(&[b"PING"]), line].concat()).unwrap_err();
            assert!(matches!(refused, crate::redis::format::resp::RespError::Unexpected { at: 1014, .. }), "{refused}");
        }
    }

    #[test]
    fn a_transaction_is_never_cut() {
        let mut parser = parser();
        let before = encode_command(&[b"SET", b"a", b"1"]);
        all(&mut parser, &before).unwrap();
        let cut = parser.cut().unwrap();
        assert_eq!(cut.offset, 1000 + before.len() as u64);
        for command in
            [encode_command(&[b"MULTI"]), encode_command(&[b"SELECT", b"2"]), encode_command(&[b"DEL", b"a"])]
        {
            all(&mut parser, &command).unwrap();
            assert_eq!(parser.cut(), Some(cut));
            assert!(parser.in_transaction());
        }
        all(&mut parser, &encode_command(&[b"exec"])).unwrap();
        assert_eq!(parser.cut(), Some(StreamCut { offset: parser.offset(), db: 2 }));

        let mut within = CommandParser::resume_at(5, 0, true, CommandLimits::default());
        assert_eq!(within.cut(), None);
        all(&mut within, &encode_command(&[b"EXEC"])).unwrap();
        assert_eq!(within.cut().map(|cut| cut.db), Some(0));
    }

    #[test]
    fn any_split_gives_the_same() {
        let stream =
            [encode_command(&[b"MULTI"]), encode_command(&[b"SET", b"k", &[b'x'; 300]]), encode_command(&[b"EXEC"])]
                .concat();
        let whole = all(&mut parser(), &stream).unwrap();
        for at in 0..stream.len() {
            let mut parser = parser();
            let mut found = all(&mut parser, &stream[..at]).unwrap();
            assert!(parser.boundary() <= parser.offset());
            found.extend(all(&mut parser, &stream[at..]).unwrap());
            assert_eq!(found, whole, "split at {at}");
        }
    }

    #[test]
    fn a_large_argument_is_counted_and_not_kept() {
        let mut parser = parser();
        parser.push(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$1073741824\r\n", &mut |_| unreachable!()).unwrap();
        let piece = vec![b'v'; 1 << 20];
        for _ in 0..1024 {
            parser.push(&piece, &mut |_| unreachable!()).unwrap();
        }
        assert!(parser.kept.bytes.capacity() <= 2 * CommandLimits::default().kept + 64);
        let mut lengths = Vec::new();
        parser
            .push(b"\r\n", &mut |c| lengths.push(c.argument(2).map(|a| (a.len, a.complete_value().is_none()))))
            .unwrap();
        assert_eq!(lengths, [Some((1 << 30, true))]);
    }

    #[test]
    fn what_is_no_resp_is_refused_where_it_is() {
        let endless = vec![b'x'; 70_000];
        let cases: [(&[u8], &str); 8] = [
            (&endless, "more than 65536 bytes"),
            (b"*99999999999\r\n", "99999999999, more than"),
            (b"*1\r\n$99999999999999\r\n", "99999999999999, more than"),
            (b"*1\r\n$-1\r\n", "-1, more than"),
            (b"*1\r\n:5\r\n", "at offset 1004, found byte 0x3a"),
            (b"*1\r\n$1\r\nab\r\n", "a carriage return"),
            (b"*x\r\n", "is no number"),
            (b"*2\r\n$6\r\nSELECT\r\n$2\r\n-1\r\n", "a database"),
        ];
        for (bytes, says) in cases {
            let error = all(&mut parser(), bytes).unwrap_err().to_string();
            assert!(error.contains(says), "{error} should say {says}");
        }
        // Nothing is said before there is something wrong.
        assert_eq!(all(&mut parser(), b"*1\r\n$4\r\nPIN").unwrap(), []);
    }
}
