//! What stands out in a stretch of the stream: databases that were emptied, and many keys that were deleted together.
//!
//! It is found when a stretch leaves the spool and kept with the stretch's metadata, so that a log need not read the commands again. A key that
//! expires or is evicted reaches a replica as a `DEL` or `UNLINK` of its own (`propagateDeletion`, db.c): in the stream that is the same as
//! deleting keys one by one, so a storm of expiries stands out as well.

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::commands::{Mark, Stretch};
use crate::resp::{Command, Commands, Error, Kind, Limits};

/// So many keys that go together are noted.
pub const NOTED_KEYS: u64 = 100;
/// What comes within this time of each other belongs together.
pub const TOGETHER: SignedDuration = SignedDuration::from_secs(1);
/// From so many on, what repeats itself within [`TOGETHER`] is counted instead of listed.
const LISTED: usize = 256;
/// No stretch lists more: it keeps the metadata of an object small, whatever comes.
const MOST: usize = 4096;

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// `FLUSHALL`.
    FlushAll,
    /// `FLUSHDB`.
    FlushDb,
    /// Keys were deleted by `DEL` or `UNLINK`.
    Delete,
}

/// Something that stands out.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Notable {
    /// What.
    pub what: What,
    /// The offset before it: where its first command begins, or the transaction around that.
    pub before: u64,
    /// The offset after its last command.
    pub end: u64,
    /// The database.
    pub db: u32,
    /// Keys that were named.
    pub keys: u64,
    /// Commands.
    pub commands: u64,
}

/// All that stands out in a stretch.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Notables {
    /// So many keys that were deleted together were noted, and no fewer.
    pub floor: u64,
    /// In the order of the stream.
    pub found: Vec<Notable>,
    /// Whether there was more than could be listed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub more: bool,
}

impl Stretch {
    /// When what begins at `offset` had come.
    #[must_use]
    pub fn time_at(&self, offset: u64) -> Timestamp {
        time_at(&self.marks, self.ended_at, offset)
    }

    /// What stands out in its bytes, when it says nothing of that itself, or not of so few keys.
    ///
    /// # Errors
    /// The bytes are no commands.
    pub fn look(&self, bytes: &[u8], floor: u64) -> Result<Notables, Error> {
        let mut scan = Scan::begin(self.first, self.in_transaction, floor, &self.marks, self.ended_at);
        let mut parser = Commands::resuming(self.first, self.db, self.in_transaction, Limits::default());
        parser.push(bytes, &mut |command| scan.see(command))?;
        Ok(scan.end())
    }
}

fn time_at(marks: &[Mark], ended_at: Timestamp, offset: u64) -> Timestamp {
    marks.get(marks.partition_point(|mark| mark.offset <= offset)).map_or(ended_at, |mark| mark.time)
}

/// Deletions that belong together.
#[derive(Clone, Copy)]
struct Group {
    notable: Notable,
    from: Timestamp,
    to: Timestamp,
}

impl Group {
    fn extend(&mut self, more: &Group) {
        self.notable.end = self.notable.end.max(more.notable.end);
        self.notable.keys = self.notable.keys.saturating_add(more.notable.keys);
        self.notable.commands = self.notable.commands.saturating_add(more.notable.commands);
        self.to = self.to.max(more.to);
    }
}

/// Looks at one command after the other.
pub(super) struct Scan<'m> {
    marks: &'m [Mark],
    ended_at: Timestamp,
    floor: u64,
    /// Where the open transaction begins.
    transaction: Option<u64>,
    /// What the command or transaction under way deletes, by database.
    unit: BTreeMap<u32, Group>,
    /// What commands that are small by themselves delete within [`TOGETHER`], by database.
    series: BTreeMap<u32, Group>,
    found: Vec<Group>,
    more: bool,
}

impl<'m> Scan<'m> {
    pub(super) fn begin(
        first: u64,
        in_transaction: bool,
        floor: u64,
        marks: &'m [Mark],
        ended_at: Timestamp,
    ) -> Scan<'m> {
        Scan {
            marks,
            ended_at,
            floor,
            // Its MULTI is in a stretch before; whoever goes to before this goes to before that.
            transaction: in_transaction.then_some(first),
            unit: BTreeMap::new(),
            series: BTreeMap::new(),
            found: Vec::new(),
            more: false,
        }
    }

    pub(super) fn see(&mut self, command: &Command<'_>) {
        let before = if command.in_transaction {
            *self.transaction.get_or_insert(command.start)
        } else {
            self.transaction = None;
            command.start
        };
        if let Some(what) = what(command) {
            let keys = if what == What::Delete { command.count.saturating_sub(1) } else { 0 };
            let notable = Notable { what, before, end: command.end, db: command.db, keys, commands: 1 };
            let at = time_at(self.marks, self.ended_at, command.start);
            let group = Group { notable, from: at, to: at };
            if what == What::Delete {
                self.unit.entry(command.db).and_modify(|unit| unit.extend(&group)).or_insert(group);
            } else {
                self.add(group);
            }
        }
        if !command.in_transaction || command.kind == Kind::Exec {
            self.transaction = None;
            self.close_unit();
        }
    }

    fn close_unit(&mut self) {
        while let Some((db, group)) = self.unit.pop_first() {
            if group.notable.keys >= self.floor {
                self.add(group);
                continue;
            }
            match self.series.get_mut(&db) {
                Some(series) if near(series.from, group.from) => series.extend(&group),
                _ => {
                    if let Some(series) = self.series.insert(db, group) {
                        self.add_series(series);
                    }
                }
            }
        }
    }

    fn add_series(&mut self, series: Group) {
        if series.notable.keys >= self.floor {
            self.add(series);
        }
    }

    /// Adds a group, to an earlier one of the same kind if that was only just.
    fn add(&mut self, group: Group) {
        let (what, db) = (group.notable.what, group.notable.db);
        let recent = self.found.iter().enumerate().rev().take(LISTED);
        let earlier = if what == What::Delete {
            // A flush parts them: whoever goes back to before the deletions is not asked whether it is to be undone as well.
            let same = |(_, earlier): &(usize, &Group)| earlier.notable.what == what && earlier.notable.db == db;
            recent.take_while(|(_, earlier)| earlier.notable.what == What::Delete).find(same)
        } else if self.found.len() >= LISTED {
            let mut recent = recent;
            recent.find(|(_, earlier)| earlier.notable.what == what && earlier.notable.db == db)
        } else {
            None
        };
        let nth = earlier.filter(|(_, earlier)| near(earlier.to, group.from)).map(|(nth, _)| nth);
        let room = self.found.len() < MOST;
        match nth.and_then(|nth| self.found.get_mut(nth)) {
            Some(earlier) => earlier.extend(&group),
            None if room => self.found.push(group),
            None => self.more = true,
        }
    }

    pub(super) fn end(mut self) -> Notables {
        self.close_unit();
        while let Some((_, series)) = self.series.pop_first() {
            self.add_series(series);
        }
        let mut found: Vec<Notable> = self.found.into_iter().map(|group| group.notable).collect();
        found.sort_by_key(|notable| notable.before);
        Notables { floor: self.floor, found, more: self.more }
    }
}

/// Whether `later` is only just after `earlier`.
fn near(earlier: Timestamp, later: Timestamp) -> bool {
    later.duration_since(earlier) <= TOGETHER
}

fn what(command: &Command<'_>) -> Option<What> {
    let name = command.name();
    let is = |word: &[u8]| name.eq_ignore_ascii_case(word);
    match name.len() {
        3 if is(b"DEL") => Some(What::Delete),
        6 if is(b"UNLINK") => Some(What::Delete),
        7 if is(b"FLUSHDB") => Some(What::FlushDb),
        8 if is(b"FLUSHALL") => Some(What::FlushAll),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{LISTED, MOST, Mark, Notable, Notables, What};
    use crate::archive::instance::Stretch;
    use crate::resp::encode;

    const START: u64 = 1000;

    /// Commands with the second in which they came.
    fn look(commands: &[(Vec<u8>, i64)], in_transaction: bool, floor: u64) -> (Notables, Vec<u64>) {
        let (mut bytes, mut marks, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        for (command, second) in commands {
            starts.push(START + bytes.len() as u64);
            bytes.extend_from_slice(command);
            let (offset, time) = (START + bytes.len() as u64, Timestamp::from_second(*second).unwrap());
            marks.push(Mark { offset, db: 0, time });
        }
        let stretch = Stretch {
            replid: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            first: START,
            last: START + bytes.len() as u64,
            db: 4,
            in_transaction,
            db_after: 0,
            in_transaction_after: false,
            follows: None,
            started_at: Timestamp::UNIX_EPOCH,
            ended_at: Timestamp::from_second(1 << 30).unwrap(),
            writes: 0,
            marks,
            run: None,
            notable: None,
        };
        (stretch.look(&bytes, floor).unwrap(), starts)
    }

    fn command(words: &[&str]) -> Vec<u8> {
        encode(&words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>())
    }

    fn del(keys: usize) -> Vec<u8> {
        let keys: Vec<String> = (0..keys).map(|key| format!("k{key}")).collect();
        let words: Vec<&str> = ["del"].into_iter().chain(keys.iter().map(String::as_str)).collect();
        command(&words)
    }

    fn told(notables: &Notables) -> Vec<(What, u64, u32, u64, u64)> {
        let told = |n: &Notable| (n.what, n.before, n.db, n.keys, n.commands);
        notables.found.iter().map(told).collect()
    }

    #[test]
    fn a_flush_stands_where_its_command_or_transaction_begins() {
        let (found, starts) = look(
            &[
                (command(&["SET", "a", "1"]), 1),
                (command(&["flushdb", "ASYNC"]), 2),
                (command(&["SELECT", "7"]), 2),
                (command(&["MULTI"]), 3),
                (command(&["SET", "b", "1"]), 3),
                (command(&["FLUSHDB"]), 3),
                (command(&["EXEC"]), 3),
                (command(&["FLUSHALL"]), 4),
            ],
            false,
            100,
        );
        let expected = [
            (What::FlushDb, starts[1], 4, 0, 1),
            (What::FlushDb, starts[3], 7, 0, 1),
            (What::FlushAll, starts[7], 7, 0, 1),
        ];
        assert_eq!(told(&found), expected);
        let (found, _) = look(&[(command(&["FLUSHALL"]), 1), (command(&["EXEC"]), 1)], true, 100);
        assert_eq!(told(&found), [(What::FlushAll, START, 4, 0, 1)], "the transaction began before the stretch");
    }

    #[test]
    fn deletions_count_together_within_a_command_a_transaction_or_a_second() {
        // A command by itself, told apart from the small one right before it.
        let (found, starts) = look(&[(del(1), 1), (del(150), 1), (del(99), 9)], false, 100);
        assert_eq!(told(&found), [(What::Delete, starts[1], 4, 150, 1)]);
        // A transaction.
        let commands = [(command(&["MULTI"]), 1), (del(60), 1), (del(60), 1), (command(&["EXEC"]), 1)];
        let (found, starts) = look(&commands, false, 100);
        assert_eq!(told(&found), [(What::Delete, starts[0], 4, 120, 2)]);
        // One by one, in a second and in the next; then too slowly.
        let mut commands: Vec<_> = (0..300).map(|n| (del(1), 10 + n / 100)).collect();
        commands.extend((0..99).map(|n| (del(1), 20 + n * 2)));
        let (found, starts) = look(&commands, false, 100);
        assert_eq!(told(&found), [(What::Delete, starts[0], 4, 300, 300)]);
        // Large ones in a row are one deed.
        let (found, starts) = look(&[(del(200), 1), (del(200), 1), (del(200), 2), (del(200), 9)], false, 100);
        assert_eq!(told(&found), [(What::Delete, starts[0], 4, 600, 3), (What::Delete, starts[3], 4, 200, 1)]);
    }

    #[test]
    fn whatever_comes_the_list_stays_short() {
        let flush: Vec<_> = (0..10_000).map(|_| (command(&["FLUSHDB"]), 5)).collect();
        let (found, _) = look(&flush, false, 100);
        assert_eq!((found.found.len(), found.more), (LISTED, false));
        assert_eq!(found.found.iter().map(|notable| notable.commands).sum::<u64>(), 10_000);
        let flush: Vec<_> = (0..10_000).map(|n| (command(&["FLUSHDB"]), 5 * n)).collect();
        let (found, _) = look(&flush, false, 100);
        assert_eq!((found.found.len(), found.more), (MOST, true));
    }
}
