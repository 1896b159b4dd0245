//! What stands out in a stretch of the stream: databases that were emptied, and keys that were deleted.
//!
//! It is found when a stretch leaves the spool and kept with the stretch's metadata, so that a log need not read the
//! commands again. Deletions are noted whatever their number, in pieces of a second at most: what belongs together,
//! over stretches as well, and what is worth telling is for the log to decide. A key that expires or is evicted reaches
//! a replica as a `DEL` or `UNLINK` of its own (`propagateDeletion`, db.c): in the stream that is the same as deleting
//! keys one by one, so a storm of expiries stands out as well.

use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeMap;

use super::stretch::{ArrivalMark, Deletion, DeletionKind, StreamStretch, StretchDeletions};
use crate::redis::format::resp::{CommandKind, CommandLimits, CommandParser, ReplicatedCommand, RespError};

/// A command or transaction that deletes so many keys begins a piece of its own, so that its very beginning is known.
pub const LARGE_DELETION_KEYS: u64 = 100;
/// What comes within this time of each other belongs together.
const MAX_PAUSE_WITHIN_DELETION: SignedDuration = SignedDuration::from_secs(1);
/// From so many on, flushes that repeat themselves within [`MAX_PAUSE_WITHIN_DELETION`] are counted instead of listed.
const MAX_LISTED_FLUSHES: usize = 256;
/// No stretch lists more: it keeps the metadata of an object small, whatever comes.
const MAX_DELETIONS_PER_STRETCH: usize = 4096;

impl StreamStretch {
    /// When what begins at `offset` had come.
    #[must_use]
    pub fn time_at(&self, offset: u64) -> Timestamp {
        time_at(&self.marks, self.ended_at, offset)
    }

    /// What was noted, with its times.
    #[must_use]
    pub fn time_deletion(&self, notable: Deletion) -> TimedDeletion {
        let (from, to) = (self.time_at(notable.before), self.time_at(notable.end.saturating_sub(1)));
        // What goes on with a transaction that began in the stretch before.
        let goes_on = self.in_transaction && notable.before == self.first;
        TimedDeletion { notable, from: if goes_on { from.min(self.started_at) } else { from }, to }
    }

    /// What stands out in its bytes from offset `from` on, when it says nothing of that itself.
    ///
    /// # Errors
    /// The bytes are no commands.
    pub fn scan_deletions(&self, bytes: &[u8], from: u64) -> Result<StretchDeletions, RespError> {
        let mut scan = DeletionScanner::new(self.first, self.in_transaction, &self.marks, self.ended_at);
        let mut parser = CommandParser::resume_at(self.first, self.db, self.in_transaction, CommandLimits::default());
        parser.push(bytes, &mut |command| {
            if command.start >= from {
                scan.push_command(command);
            }
        })?;
        Ok(scan.finish())
    }
}

fn time_at(marks: &[ArrivalMark], ended_at: Timestamp, offset: u64) -> Timestamp {
    marks.get(marks.partition_point(|mark| mark.offset <= offset)).map_or(ended_at, |mark| mark.time)
}

/// Something that stands out, and when its first and its last command had come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TimedDeletion {
    /// What.
    pub notable: Deletion,
    /// The first.
    pub from: Timestamp,
    /// The last.
    pub to: Timestamp,
}

impl TimedDeletion {
    /// Takes what comes after it.
    pub fn extend(&mut self, more: &TimedDeletion) {
        self.notable.end = self.notable.end.max(more.notable.end);
        self.notable.keys = self.notable.keys.saturating_add(more.notable.keys);
        self.notable.commands = self.notable.commands.saturating_add(more.notable.commands);
        self.to = self.to.max(more.to);
    }

    /// Whether the next one is noted with it.
    #[must_use]
    pub fn joins(&self, next: &TimedDeletion) -> bool {
        let second = self.from.as_second() == next.from.as_second() && is_within_pause(self.to, next.from);
        second && !(next.notable.keys >= LARGE_DELETION_KEYS && self.notable.keys < LARGE_DELETION_KEYS)
    }
}

/// Whether `later` is only just after `earlier`, or a clock was set back between them.
#[must_use]
pub fn is_within_pause(earlier: Timestamp, later: Timestamp) -> bool {
    later.duration_since(earlier) <= MAX_PAUSE_WITHIN_DELETION
}

/// Up to where databases were emptied.
#[derive(Debug, Default)]
pub struct FlushedOffsets {
    all: u64,
    each: BTreeMap<u32, u64>,
}

impl FlushedOffsets {
    /// Notes a flush.
    pub fn record_flush(&mut self, flush: &Deletion) {
        if flush.what == DeletionKind::FlushAll {
            self.all = self.all.max(flush.end);
            self.each.clear();
        } else {
            let until = self.each.entry(flush.db).or_default();
            *until = flush.end.max(*until);
        }
    }

    /// Whether something that goes on from `end` to `before` was parted by a flush: who goes back to before the
    /// deletions after it is not asked whether those before it are to be undone as well. Flushes that are counted
    /// together part all that lies among them.
    #[must_use]
    pub fn separates(&self, db: u32, end: u64, before: u64) -> bool {
        let until = self.each.get(&db).copied().unwrap_or_default().max(self.all);
        until > end || until > before
    }
}

/// Looks at one command after the other.
pub(super) struct DeletionScanner<'m> {
    marks: &'m [ArrivalMark],
    ended_at: Timestamp,
    /// When its first command had come.
    began: Timestamp,
    /// When the last that stands out had come.
    latest: Timestamp,
    /// Where the open transaction begins.
    transaction: Option<u64>,
    /// What the command or transaction under way deletes, by database.
    unit: BTreeMap<u32, TimedDeletion>,
    /// What may grow, by database.
    open: BTreeMap<u32, TimedDeletion>,
    found: Vec<TimedDeletion>,
    flushes: usize,
    floor: u64,
    more: bool,
}

impl<'m> DeletionScanner<'m> {
    pub(super) fn new(
        first: u64,
        in_transaction: bool,
        marks: &'m [ArrivalMark],
        ended_at: Timestamp,
    ) -> DeletionScanner<'m> {
        let began = time_at(marks, ended_at, first);
        DeletionScanner {
            marks,
            ended_at,
            began,
            latest: began,
            // Its MULTI is in a stretch before; whoever goes to before this goes to before that.
            transaction: in_transaction.then_some(first),
            unit: BTreeMap::new(),
            open: BTreeMap::new(),
            found: Vec::new(),
            flushes: 0,
            floor: 1,
            more: false,
        }
    }

    pub(super) fn push_command(&mut self, command: &ReplicatedCommand<'_>) {
        let before = if command.in_transaction {
            *self.transaction.get_or_insert(command.start)
        } else {
            self.transaction = None;
            command.start
        };
        if let Some(what) = deletion_kind(command) {
            let keys = if what == DeletionKind::Delete { command.count.saturating_sub(1) } else { 0 };
            let notable = Deletion { what, before, end: command.end, db: command.db, keys, commands: 1 };
            let at = time_at(self.marks, self.ended_at, command.start);
            let piece = TimedDeletion { notable, from: at, to: at };
            self.latest = at;
            match what {
                DeletionKind::Delete => {
                    self.unit.entry(command.db).and_modify(|unit| unit.extend(&piece)).or_insert(piece);
                }
                DeletionKind::FlushDb => self.add_flush(piece, Some(command.db)),
                DeletionKind::FlushAll => self.add_flush(piece, None),
            }
        }
        if !command.in_transaction || command.kind == CommandKind::Exec {
            self.transaction = None;
            self.close_units(None);
            if self.open.len() > MAX_DELETIONS_PER_STRETCH {
                self.close_open_deletions(None);
            }
        }
    }

    /// Ends the units of this database, or of all.
    fn close_units(&mut self, only: Option<u32>) {
        while let Some((db, unit)) = pop_entry(&mut self.unit, only) {
            match self.open.get_mut(&db) {
                Some(open) if open.joins(&unit) => open.extend(&unit),
                _ => {
                    if let Some(done) = self.open.insert(db, unit) {
                        self.add_deletion(done);
                    }
                }
            }
        }
    }

    fn close_open_deletions(&mut self, only: Option<u32>) {
        self.close_units(only);
        while let Some((_, done)) = pop_entry(&mut self.open, only) {
            self.add_deletion(done);
        }
    }

    fn add_deletion(&mut self, done: TimedDeletion) {
        self.found.push(done);
        if self.found.len() >= MAX_DELETIONS_PER_STRETCH.saturating_mul(2) {
            self.drop_smallest();
        }
    }

    /// Adds a flush, to an earlier one of the same kind if that was only just and there are many.
    fn add_flush(&mut self, flush: TimedDeletion, db: Option<u32>) {
        self.close_open_deletions(db);
        let (what, db) = (flush.notable.what, flush.notable.db);
        let same = |earlier: &&mut TimedDeletion| earlier.notable.what == what && earlier.notable.db == db;
        let earlier = if self.flushes >= MAX_LISTED_FLUSHES {
            let mut recent = self.found.iter_mut().rev().take(2 * MAX_LISTED_FLUSHES);
            recent.find(same).filter(|earlier| is_within_pause(earlier.to, flush.from))
        } else {
            None
        };
        match earlier {
            Some(earlier) => earlier.extend(&flush),
            None if self.flushes >= MAX_DELETIONS_PER_STRETCH => self.more = true,
            None => {
                self.flushes = self.flushes.saturating_add(1);
                self.add_deletion(flush);
            }
        }
    }

    /// Makes the list short again: of deletions what belongs together becomes one, and where that is not enough the
    /// smallest go, but never one that may go on in another stretch.
    fn drop_smallest(&mut self) {
        let mut joined: Vec<TimedDeletion> = Vec::new();
        let (mut last, mut emptied) = (BTreeMap::<u32, usize>::new(), FlushedOffsets::default());
        self.found.sort_by_key(|piece| (piece.notable.before, piece.notable.end));
        for piece in self.found.drain(..) {
            let Deletion { what, db, before, .. } = piece.notable;
            if what != DeletionKind::Delete {
                emptied.record_flush(&piece.notable);
                joined.push(piece);
                continue;
            }
            let earlier = last.get(&db).and_then(|nth| joined.get_mut(*nth));
            let goes_on = |earlier: &&mut TimedDeletion| {
                is_within_pause(earlier.to, piece.from) && !emptied.separates(db, earlier.notable.end, before)
            };
            if let Some(earlier) = earlier.filter(goes_on) {
                earlier.extend(&piece);
            } else {
                last.insert(db, joined.len());
                joined.push(piece);
            }
        }
        self.found = joined;
        let (began, latest) = (self.began, self.latest);
        self.drop_matching(&|piece| !is_within_pause(began, piece.from) && !is_within_pause(piece.to, latest));
        // More flushes than anybody can have meant.
        self.drop_matching(&|_| true);
    }

    /// Leaves out the smallest deletions among those that may go, until the list is short enough.
    fn drop_matching(&mut self, may_go: &dyn Fn(&TimedDeletion) -> bool) {
        let mut excess = self.found.len().saturating_sub(MAX_DELETIONS_PER_STRETCH);
        let may_go = |piece: &TimedDeletion| piece.notable.what == DeletionKind::Delete && may_go(piece);
        let mut sizes: Vec<u64> =
            self.found.iter().filter(|piece| may_go(piece)).map(|piece| piece.notable.keys).collect();
        excess = excess.min(sizes.len());
        if excess == 0 {
            return;
        }
        sizes.sort_unstable();
        let largest = sizes.get(excess.saturating_sub(1)).copied().unwrap_or_default();
        let mut as_large = excess.saturating_sub(sizes.partition_point(|keys| *keys < largest));
        self.found.retain(|piece| {
            let (goes, keys) = (may_go(piece), piece.notable.keys);
            let last_ones = goes && keys == largest && as_large > 0;
            as_large = as_large.saturating_sub(usize::from(last_ones));
            !(last_ones || (goes && keys < largest))
        });
        self.floor = self.floor.max(largest.saturating_add(1));
        self.more = true;
    }

    pub(super) fn finish(mut self) -> StretchDeletions {
        self.close_open_deletions(None);
        if self.found.len() > MAX_DELETIONS_PER_STRETCH {
            self.drop_smallest();
        }
        let mut found: Vec<Deletion> = self.found.into_iter().map(|piece| piece.notable).collect();
        found.sort_by_key(|notable| (notable.before, notable.end));
        StretchDeletions { floor: self.floor, found, more: self.more, pieces: true }
    }
}

/// Takes out one entry, of this database or of any.
fn pop_entry(from: &mut BTreeMap<u32, TimedDeletion>, only: Option<u32>) -> Option<(u32, TimedDeletion)> {
    match only {
        Some(db) => from.remove_entry(&db),
        None => from.pop_first(),
    }
}

fn deletion_kind(command: &ReplicatedCommand<'_>) -> Option<DeletionKind> {
    let name = command.name();
    let is = |word: &[u8]| name.eq_ignore_ascii_case(word);
    match name.len() {
        3 if is(b"DEL") => Some(DeletionKind::Delete),
        6 if is(b"UNLINK") => Some(DeletionKind::Delete),
        7 if is(b"FLUSHDB") => Some(DeletionKind::FlushDb),
        8 if is(b"FLUSHALL") => Some(DeletionKind::FlushAll),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{ArrivalMark, Deletion, DeletionKind, MAX_DELETIONS_PER_STRETCH, MAX_LISTED_FLUSHES, StretchDeletions};
    use crate::redis::archive::StreamStretch;
    use crate::redis::format::resp::encode_command;

    const START: u64 = 1000;

    /// Commands with the millisecond in which they came.
    fn look(commands: &[(Vec<u8>, i64)], in_transaction: bool) -> (StretchDeletions, Vec<u64>) {
        let (mut bytes, mut marks, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        for (command, millisecond) in commands {
            starts.push(START + bytes.len() as u64);
            bytes.extend_from_slice(command);
            let (offset, time) = (START + bytes.len() as u64, Timestamp::from_millisecond(*millisecond).unwrap());
            marks.push(ArrivalMark { offset, db: 0, time });
        }
        let stretch = StreamStretch {
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
            clock: None,
            missed: None,
            reading: None,
        };
        (stretch.scan_deletions(&bytes, START).unwrap(), starts)
    }

    fn command(words: &[&str]) -> Vec<u8> {
        encode_command(&words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>())
    }

    fn del(keys: usize) -> Vec<u8> {
        let keys: Vec<String> = (0..keys).map(|key| format!("k{key}")).collect();
        let words: Vec<&str> = ["del"].into_iter().chain(keys.iter().map(String::as_str)).collect();
        command(&words)
    }

    fn told(notables: &StretchDeletions) -> Vec<(DeletionKind, u64, u32, u64, u64)> {
        let told = |n: &Deletion| (n.what, n.before, n.db, n.keys, n.commands);
        notables.found.iter().map(told).collect()
    }

    #[test]
    fn a_flush_stands_where_its_command_or_transaction_begins() {
        let (found, starts) = look(
            &[
                (command(&["SET", "a", "1"]), 1000),
                (command(&["flushdb", "ASYNC"]), 2000),
                (command(&["SELECT", "7"]), 2000),
                (command(&["MULTI"]), 3000),
                (command(&["SET", "b", "1"]), 3000),
                (command(&["FLUSHDB"]), 3000),
                (command(&["EXEC"]), 3000),
                (command(&["FLUSHALL"]), 4000),
            ],
            false,
        );
        let expected = [
            (DeletionKind::FlushDb, starts[1], 4, 0, 1),
            (DeletionKind::FlushDb, starts[3], 7, 0, 1),
            (DeletionKind::FlushAll, starts[7], 7, 0, 1),
        ];
        assert_eq!(told(&found), expected);
        let (found, _) = look(&[(command(&["FLUSHALL"]), 1000), (command(&["EXEC"]), 1000)], true);
        assert_eq!(
            told(&found),
            [(DeletionKind::FlushAll, START, 4, 0, 1)],
            "the transaction began before the stretch"
        );
    }

    #[test]
    fn deletions_are_noted_in_pieces_of_a_second_at_most() {
        // However few; a large command begins its own.
        let (found, starts) = look(&[(del(1), 1000), (del(150), 1000), (del(1), 1999), (del(99), 2000)], false);
        let expected = [
            (DeletionKind::Delete, starts[0], 4, 1, 1),
            (DeletionKind::Delete, starts[1], 4, 151, 2),
            (DeletionKind::Delete, starts[3], 4, 99, 1),
        ];
        assert_eq!(told(&found), expected);
        assert_eq!((found.floor, found.more, found.pieces), (1, false, true));
        // A transaction is one, however long it took.
        let commands = [(command(&["MULTI"]), 1000), (del(60), 1000), (del(60), 3000), (command(&["EXEC"]), 3000)];
        let (found, starts) = look(&commands, false);
        assert_eq!(told(&found), [(DeletionKind::Delete, starts[0], 4, 120, 2)]);
        // A flush parts them, another database's does not.
        let select = |db: &str| (command(&["SELECT", db]), 1000);
        let flush = (command(&["FLUSHDB"]), 1000);
        let commands = [(del(1), 1000), flush.clone(), (del(2), 1000), select("5"), flush, select("4"), (del(3), 1000)];
        let (found, starts) = look(&commands, false);
        let expected = [
            (DeletionKind::Delete, starts[0], 4, 1, 1),
            (DeletionKind::FlushDb, starts[1], 4, 0, 1),
            (DeletionKind::Delete, starts[2], 4, 5, 2),
            (DeletionKind::FlushDb, starts[4], 5, 0, 1),
        ];
        assert_eq!(told(&found), expected);
    }

    #[test]
    fn whatever_comes_the_list_stays_short() {
        let flush: Vec<_> = (0..10_000).map(|_| (command(&["FLUSHDB"]), 5000)).collect();
        let (found, _) = look(&flush, false);
        assert_eq!((found.found.len(), found.more), (MAX_LISTED_FLUSHES, false));
        assert_eq!(found.found.iter().map(|notable| notable.commands).sum::<u64>(), 10_000);
        let flush: Vec<_> = (0..10_000).map(|n| (command(&["FLUSHDB"]), 5000 * n)).collect();
        let (found, _) = look(&flush, false);
        assert_eq!((found.found.len(), found.more), (MAX_DELETIONS_PER_STRETCH, true));
        // One that goes on is counted to the last key.
        let series: Vec<_> = (0..50_000).map(|n| (del(1), 500 * n)).collect();
        let (found, starts) = look(&series, false);
        assert!(found.found.len() <= 2 * MAX_DELETIONS_PER_STRETCH && !found.more, "{}", found.found.len());
        assert_eq!(found.found[0].before, starts[0]);
        assert_eq!(found.found.iter().map(|notable| notable.keys).sum::<u64>(), 50_000);
        // The largest stay, and what reaches the ends.
        let many: Vec<_> =
            (0..20_000).map(|n| (del(if n % 100 == 50 { 30 } else { 1 + n % 3 }), 5000 * n as i64)).collect();
        let (found, starts) = look(&many, false);
        assert!(found.more && found.found.len() <= MAX_DELETIONS_PER_STRETCH, "{}", found.found.len());
        assert_eq!(found.found.iter().filter(|notable| notable.keys == 30).count(), 200);
        assert_eq!((found.found[0].before, found.found.last().unwrap().before), (starts[0], starts[19_999]));
        let kept: Vec<u64> = found.found.iter().map(|notable| notable.before).collect();
        let left_out = (1..19_999).filter(|n| !kept.contains(&starts[*n])).map(|n| 1 + n as u64 % 3).max().unwrap();
        assert_eq!(found.floor, left_out + 1);
    }
}
