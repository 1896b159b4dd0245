//! The stream of commands on its way into an append-only file.
//!
//! The file is what a client might have sent, so what servers say to each other in between is left out: `PING`,
//! `REPLCONF GETACK`, empty lines. It begins with the database that the stream was in, and it ends at the last place
//! where the stream may be cut. A time to live that would count from when the file is loaded is followed by the time
//! that is meant ([`super::absolute_expiry`]).
//!
//! Holds the command under way, if it comes in pieces.

use super::absolute_expiry::{CommandArrivals, absolute_expiry};
use super::error::RestoreError;
use crate::base::durable::StagedFile;
use crate::redis::format::resp::{self, CommandKind, CommandLimits, CommandParser, StreamCut};

/// A command that ends in the bytes under way.
struct CommandEnd {
    /// Where.
    at: usize,
    /// Whether it is for the file.
    kept: bool,
    /// What is to follow it there.
    more: Option<Vec<u8>>,
}

/// Where the commands end.
#[derive(Debug)]
pub(super) struct AppendOnlyEnd {
    /// The length of the file.
    pub(super) len: u64,
    pub(super) cut: StreamCut,
    /// How many commands change something.
    pub(super) commands: u64,
    pub(super) highest_db: u32,
}

/// Writes commands to the end of a file.
#[derive(Debug)]
pub(super) struct AppendOnlyWriter {
    commands: CommandParser,
    /// The beginning of a command that is not whole.
    held: Vec<u8>,
    /// The length of the file with everything written.
    written: u64,
    /// The length of the file with the commands that are whole.
    whole: u64,
    /// The length of the file and the place, where it may be cut.
    end: (u64, StreamCut),
    /// How many commands that change something are before the end, and how many there are.
    counts: (u64, u64),
    highest_db: u32,
}

impl AppendOnlyWriter {
    /// Goes on after `len` bytes of `file`, with the commands from `from` on.
    pub(super) fn new(file: &mut StagedFile, len: u64, from: StreamCut) -> Result<AppendOnlyWriter, RestoreError> {
        let select = resp::encode_command(&[b"SELECT", from.db.to_string().as_bytes()]);
        file.write(&select)?;
        let len = len.saturating_add(select.len() as u64);
        Ok(AppendOnlyWriter {
            commands: CommandParser::new(from, CommandLimits::default()),
            held: Vec::new(),
            written: len,
            whole: len,
            end: (len, from),
            counts: (0, 0),
            highest_db: from.db,
        })
    }

    /// The next bytes of the stream, and when they had come.
    pub(super) fn push_stream(
        &mut self,
        file: &mut StagedFile,
        bytes: &[u8],
        arrivals: &CommandArrivals,
    ) -> Result<(), RestoreError> {
        let begin = self.commands.offset();
        let mut ends: Vec<CommandEnd> = Vec::new();
        let held = &self.held;
        let (mut end, mut counts, mut highest) = (self.end, self.counts, self.highest_db);
        let mut whole = self.whole;
        self.commands.push(bytes, &mut |command| {
            let kept = !matches!(command.kind, CommandKind::Empty | CommandKind::Ping | CommandKind::GetAck);
            let place = |offset: u64| usize::try_from(offset.saturating_sub(begin)).unwrap_or(usize::MAX);
            let (from, to) = (place(command.start), place(command.end));
            let raw = || {
                let before = if command.start < begin { held.as_slice() } else { &[] };
                [before, bytes.get(from..to).unwrap_or_default()].concat()
            };
            let more = absolute_expiry(command.name(), command.end, arrivals, raw);
            if kept {
                let len = command.end.saturating_sub(command.start);
                whole = whole.saturating_add(len).saturating_add(more.as_ref().map_or(0, |more| more.len() as u64));
            }
            ends.push(CommandEnd { at: to, kept, more });
            let writes = kept && !matches!(command.kind, CommandKind::Select | CommandKind::Multi | CommandKind::Exec);
            counts.1 = counts.1.saturating_add(u64::from(writes));
            highest = highest.max(command.db);
            if !command.in_transaction || command.kind == CommandKind::Exec {
                // A SELECT acts on what comes after it.
                end = (whole, StreamCut { offset: command.end, db: command.db });
                counts.0 = counts.1;
            }
        })?;
        if let Some(cut) = self.commands.cut()
            && cut.offset == end.1.offset
        {
            end.1 = cut;
        }
        (self.whole, self.end, self.counts) = (whole, end, counts);
        self.highest_db = highest.max(self.commands.db());
        self.write_commands(file, bytes, &ends)
    }

    /// Writes what is kept of `bytes`, in as few pieces as there are gaps.
    fn write_commands(&mut self, file: &mut StagedFile, bytes: &[u8], ends: &[CommandEnd]) -> Result<(), RestoreError> {
        let (mut from, mut to) = (0, 0);
        for CommandEnd { at, kept, more } in ends {
            if !*kept {
                self.write_bytes(file, bytes.get(from..to).unwrap_or_default())?;
                self.held.clear();
                from = *at;
            } else if !self.held.is_empty() {
                let held = std::mem::take(&mut self.held);
                self.write_bytes(file, &held)?;
            }
            if let Some(more) = more {
                self.write_bytes(file, bytes.get(from..*at).unwrap_or_default())?;
                self.write_bytes(file, more)?;
                from = *at;
            }
            to = *at;
        }
        self.write_bytes(file, bytes.get(from..to).unwrap_or_default())?;
        self.held.extend_from_slice(bytes.get(to..).unwrap_or_default());
        Ok(())
    }

    fn write_bytes(&mut self, file: &mut StagedFile, bytes: &[u8]) -> Result<(), RestoreError> {
        file.write(bytes)?;
        self.written = self.written.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Cuts the file where it may be cut.
    pub(super) fn finish(self, file: &mut StagedFile) -> Result<AppendOnlyEnd, RestoreError> {
        let (len, cut) = self.end;
        if self.written > len {
            file.truncate(len)?;
        }
        Ok(AppendOnlyEnd { len, cut, commands: self.counts.0, highest_db: self.highest_db })
    }
}
