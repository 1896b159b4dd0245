//! Which deletions are one deed: joined from the pieces that stretches of the stream note
//! ([`crate::redis::archive::stream::deletions`]).
//!
//! A run goes on while no more than a second passes between its deletions and its database is not emptied in between;
//! where stretches begin and end makes no difference. A cache whose keys expire all the time is one run that never
//! ends, and what somebody deletes meanwhile must not be lost in it: seconds with far more deletions than were usual
//! for a minute are a run of their own, a surge.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};

use crate::redis::archive::stream::Deletion;
use crate::redis::archive::stream::deletions::{FlushedOffsets, LARGE_DELETION_KEYS, TimedDeletion, is_within_pause};
use crate::redis::format::replication_id::ReplicationId;

/// So long a run must have lasted before anything can be unusual in it.
const MIN_STEADY_TIME: SignedDuration = SignedDuration::from_secs(60);
/// A surge begins with so many times as many keys as usual, ...
const SURGE_FACTOR: u64 = 10;
/// ... and reaches as far as there are so many times as many.
const ELEVATED_FACTOR: u64 = 2;

/// Deletions that are one deed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct DeletionRun {
    /// Its place in the order of what is told.
    pub(super) sequence: u64,
    /// The history in which it begins.
    pub(super) replid: ReplicationId,
    /// From where to where, when, and how much.
    pub(super) piece: TimedDeletion,
    /// For a surge: how many keys a second went before, and since when.
    pub(super) usual_rate: Option<(u64, Timestamp)>,
}

/// The runs of one database that go on.
#[derive(Debug)]
struct DatabaseDeletions {
    base: DeletionRun,
    /// The second before the last.
    second_to_last: Option<DeletionRun>,
    last: DeletionRun,
    surge: Option<DeletionRun>,
}

impl DatabaseDeletions {
    fn new(first: DeletionRun) -> DatabaseDeletions {
        let nothing = Deletion { keys: 0, commands: 0, ..first.piece.notable };
        let base = DeletionRun { piece: TimedDeletion { notable: nothing, ..first.piece }, ..first };
        DatabaseDeletions { base, second_to_last: None, last: first, surge: None }
    }

    /// Takes the next piece; gives the surge that ended with the last one.
    fn add(&mut self, next: DeletionRun) -> Option<DeletionRun> {
        if self.last.piece.joins(&next.piece) {
            self.last.piece.extend(&next.piece);
            return None;
        }
        let last = std::mem::replace(&mut self.last, next);
        self.settle(last)
    }

    fn settle(&mut self, last: DeletionRun) -> Option<DeletionRun> {
        let lasted = last.piece.from.duration_since(self.base.piece.from);
        let seconds = u64::try_from(lasted.as_secs()).unwrap_or(0).max(1);
        let usual = self.base.piece.notable.keys.div_ceil(seconds);
        let keys = last.piece.notable.keys;
        let is_elevated = |run: &DeletionRun| run.piece.notable.keys >= usual.saturating_mul(ELEVATED_FACTOR);
        if let Some(surge) = &mut self.surge {
            if is_elevated(&last) {
                surge.piece.extend(&last.piece);
                return None;
            }
        } else if lasted >= MIN_STEADY_TIME && keys >= LARGE_DELETION_KEYS && keys >= usual.saturating_mul(SURGE_FACTOR)
        {
            let before = self.second_to_last.take();
            let mut surge = before.filter(is_elevated).unwrap_or(last);
            if surge.sequence != last.sequence {
                surge.piece.extend(&last.piece);
            }
            if let Some(before) = before.filter(|before| !is_elevated(before)) {
                self.base.piece.extend(&before.piece);
            }
            self.surge = Some(DeletionRun { usual_rate: Some((usual, self.base.piece.from)), ..surge });
            return None;
        }
        if let Some(before) = self.second_to_last.replace(last) {
            self.base.piece.extend(&before.piece);
        }
        self.surge.take()
    }

    fn finish(mut self) -> Vec<DeletionRun> {
        let mut ended = Vec::new();
        ended.extend(self.settle(self.last));
        ended.extend(self.surge);
        if let Some(before) = self.second_to_last {
            self.base.piece.extend(&before.piece);
        }
        ended.push(self.base);
        ended
    }
}

/// The runs that go on.
#[derive(Debug, Default)]
pub(super) struct OpenDeletionRuns {
    open: BTreeMap<u32, DatabaseDeletions>,
    emptied: FlushedOffsets,
}

impl OpenDeletionRuns {
    /// What is over when this comes, and whether it begins a run.
    pub(super) fn add(&mut self, piece: DeletionRun) -> (Vec<DeletionRun>, bool) {
        let Deletion { db, before, .. } = piece.piece.notable;
        let mut ended = self.end_before(piece.piece.from);
        let parted = |series: &DatabaseDeletions| self.emptied.separates(db, series.last.piece.notable.end, before);
        if self.open.get(&db).is_some_and(parted) {
            ended.extend(self.open.remove(&db).into_iter().flat_map(DatabaseDeletions::finish));
        }
        if let Some(series) = self.open.get_mut(&db) {
            ended.extend(series.add(piece));
            return (ended, false);
        }
        self.open.insert(db, DatabaseDeletions::new(piece));
        (ended, true)
    }

    /// Notes that a database was emptied, or all of them.
    pub(super) fn record_flush(&mut self, flush: &Deletion) {
        self.emptied.record_flush(flush);
    }

    /// What is over by a time.
    pub(super) fn end_before(&mut self, time: Timestamp) -> Vec<DeletionRun> {
        let over = self.open.extract_if(.., |_, series| !is_within_pause(series.last.piece.to, time));
        over.flat_map(|(_, series)| series.finish()).collect()
    }

    /// Ends all: what comes next does not follow.
    pub(super) fn finish(&mut self) -> Vec<DeletionRun> {
        self.emptied = FlushedOffsets::default();
        std::mem::take(&mut self.open).into_values().flat_map(DatabaseDeletions::finish).collect()
    }

    /// The first that goes on, in the order of what is told.
    pub(super) fn first_open_offset(&self) -> Option<u64> {
        self.open.values().map(|series| series.base.sequence).min()
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::{DeletionRun, OpenDeletionRuns};
    use crate::redis::archive::stream::{Deletion, DeletionKind};
    use crate::redis::archive::{ArrivalMark, StreamStretch};
    use crate::redis::format::resp::encode_command;

    /// A command, the database it acts on, when it came, and whether a transaction is open behind it.
    #[derive(Clone, Debug)]
    struct Sent {
        bytes: Vec<u8>,
        db: u32,
        at: i64,
        open: bool,
    }

    const START: u64 = 1000;

    /// The stretch of these commands.
    fn stretch(sent: &[Sent], before: Option<&Sent>, first: u64) -> (StreamStretch, Vec<u8>) {
        let time = |sent: &Sent| Timestamp::from_millisecond(sent.at).unwrap();
        let (mut bytes, mut marks) = (Vec::new(), Vec::new());
        for command in sent {
            bytes.extend_from_slice(&command.bytes);
            if !command.open {
                marks.push(ArrivalMark { offset: first + bytes.len() as u64, db: command.db, time: time(command) });
            }
        }
        let stretch = StreamStretch {
            replid: "0123456789abcdef0123456789abcdef01234567".parse().unwrap(),
            first,
            last: first + bytes.len() as u64,
            db: before.map_or(0, |before| before.db),
            in_transaction: before.is_some_and(|before| before.open),
            db_after: sent.last().unwrap().db,
            in_transaction_after: sent.last().unwrap().open,
            follows: None,
            started_at: before.map_or(Timestamp::UNIX_EPOCH, time),
            ended_at: time(sent.last().unwrap()),
            writes: 0,
            marks,
            run: None,
            notable: None,
            clock: None,
            missed: None,
            reading: None,
        };
        (stretch, bytes)
    }

    /// The runs of these commands in stretches that end after so many commands: before, database, keys, commands, from,
    /// to.
    ///
    /// A stretch that begins within a transaction knows no better than that; whoever goes to there goes to before the
    /// transaction.
    fn runs(sent: &[Sent], cuts: &[usize]) -> Vec<(u64, u32, u64, u64, Timestamp, Timestamp)> {
        let (mut runs, mut ended, mut first, mut from) = (OpenDeletionRuns::default(), Vec::new(), START, 0);
        for cut in cuts.iter().copied().filter(|cut| *cut < sent.len()).chain([sent.len()]) {
            if cut == from {
                continue;
            }
            let before = from.checked_sub(1).map(|before| &sent[before]);
            let (stretch, bytes) = stretch(&sent[from..cut], before, first);
            for notable in stretch.scan_deletions(&bytes, first).unwrap().found {
                if notable.what == DeletionKind::Delete {
                    let run = DeletionRun {
                        sequence: 0,
                        replid: stretch.replid,
                        piece: stretch.time_deletion(notable),
                        usual_rate: None,
                    };
                    ended.extend(runs.add(run).0);
                } else {
                    runs.record_flush(&notable);
                }
            }
            ended.extend(runs.end_before(stretch.ended_at));
            (first, from) = (stretch.last, cut);
        }
        ended.extend(runs.finish());
        let told = |DeletionRun { piece, .. }: DeletionRun| {
            let Deletion { before, db, keys, commands, .. } = piece.notable;
            let mut offset = START;
            let begins = sent.iter().enumerate().filter_map(|(nth, command)| {
                let begins = (nth == 0 || !sent[nth - 1].open).then_some(offset);
                offset += command.bytes.len() as u64;
                begins.filter(|begins| *begins <= before)
            });
            (begins.last().unwrap(), db, keys, commands, piece.from, piece.to)
        };
        let mut told: Vec<_> = ended.into_iter().map(told).collect();
        told.sort_unstable();
        told
    }

    fn command(words: &[&str]) -> Vec<u8> {
        encode_command(&words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>())
    }

    fn del(keys: usize) -> Vec<u8> {
        command(&["DEL"].into_iter().chain(std::iter::repeat_n("k", keys)).collect::<Vec<_>>())
    }

    /// What is sent: every number is an action, and a pause before it in milliseconds.
    fn sent(actions: &[(u8, u16)]) -> Vec<Sent> {
        let (mut sent, mut db, mut at): (Vec<Sent>, u32, i64) = (Vec::new(), 0, 0);
        for (action, pause) in actions {
            at += i64::from(*pause);
            let mut send = |words: Vec<Vec<u8>>, db: u32| {
                let last = words.len() - 1;
                sent.extend(words.into_iter().enumerate().map(|(nth, bytes)| Sent { bytes, db, at, open: nth < last }));
            };
            let bracket = |inner: Vec<Vec<u8>>| [vec![command(&["MULTI"])], inner, vec![command(&["EXEC"])]].concat();
            match action {
                0..=9 => send(vec![del(1)], db),
                10 | 11 => send(vec![del(usize::from(*action) * 12)], db),
                12 => {
                    db = (db + 1) % 2;
                    send(vec![command(&["SELECT", &db.to_string()])], db);
                }
                13 => send(vec![command(&["FLUSHDB"])], db),
                14 => send(vec![command(&["FLUSHALL"])], db),
                15 => send(bracket(vec![del(1), del(2), command(&["FLUSHDB"]), del(3)]), db),
                16 => send(bracket(vec![del(70), command(&["SET", "a", "b"]), del(70)]), db),
                _ => send(vec![command(&["SET", "a", "b"])], db),
            }
        }
        sent
    }

    /// The rule itself, command by command.
    fn naive(sent: &[Sent]) -> Vec<(u64, u32, u64, u64, Timestamp, Timestamp)> {
        let mut found: Vec<(u64, u32, u64, u64, Timestamp, Timestamp)> = Vec::new();
        let mut open: [Option<usize>; 2] = [None; 2];
        let (mut offset, mut begun, mut in_transaction) = (START, START, false);
        for command in sent {
            if !in_transaction {
                begun = offset;
            }
            let (text, at) =
                (String::from_utf8_lossy(&command.bytes), Timestamp::from_millisecond(command.at).unwrap());
            let db = command.db as usize;
            if text.contains("FLUSHALL") {
                open = [None; 2];
            } else if text.contains("FLUSHDB") {
                open[db] = None;
            } else if text.contains("DEL") {
                let keys = text.matches("$1\r\nk").count() as u64;
                match open[db].and_then(|nth| found.get_mut(nth)) {
                    Some(run) if at.duration_since(run.5).as_millis() <= 1000 => {
                        (run.2, run.3, run.5) = (run.2 + keys, run.3 + 1, at);
                    }
                    _ => {
                        open[db] = Some(found.len());
                        found.push((begun, command.db, keys, 1, at, at));
                    }
                }
            }
            offset += command.bytes.len() as u64;
            in_transaction = command.open;
        }
        found.sort_unstable();
        found
    }

    proptest! {
        #[test]
        fn wherever_stretches_end_the_runs_are_the_same(
            actions in prop::collection::vec((0_u8..20, prop_oneof![0_u16..50, 900_u16..1100]), 1..60),
            cuts in prop::collection::btree_set(0_usize..120, 0..8),
        ) {
            let sent = sent(&actions);
            let expected = naive(&sent);
            prop_assert_eq!(&runs(&sent, &[]), &expected);
            prop_assert_eq!(&runs(&sent, &cuts.into_iter().collect::<Vec<_>>()), &expected);
            prop_assert_eq!(&runs(&sent, &(0..sent.len()).collect::<Vec<_>>()), &expected);
        }
    }

    /// A cache whose keys expire all the time, and somebody who deletes beside that.
    #[test]
    fn what_is_far_more_than_usual_is_told_by_itself() {
        // Five a second for two minutes, and then so many a second for ten.
        let steady = |from: i64| (0..600).map(move |n| (from + n * 200, 1));
        let (surge, flood) = ((0..5000).map(|n| (120_000 + n * 2, 1)), [(120_100, 4000)]);
        let sent = |all: Vec<(i64, usize)>| -> Vec<Sent> {
            let sent = |(at, keys)| Sent { bytes: del(keys), db: 0, at, open: false };
            all.into_iter().map(sent).collect()
        };
        let mut all: Vec<_> = steady(0).chain(surge).chain(steady(120_000)).collect();
        all.sort_by_key(|(at, _)| *at);
        let found = runs(&sent(all.clone()), &[100, 3000, 4000]);
        let second = Timestamp::from_second;
        let told: Vec<_> = found.iter().map(|(_, _, keys, _, from, _)| (*keys, *from)).collect();
        assert_eq!(told, [(1150, second(0).unwrap()), (5050, second(120).unwrap())], "with what expired meanwhile");
        assert_eq!(found.iter().map(|run| run.2).sum::<u64>(), 6200, "no key is counted twice, and none is missed");
        // All at once: to just before that command.
        let all: Vec<_> = steady(0).chain(flood).chain(steady(120_200)).collect();
        let found = runs(&sent(all), &[]);
        let before: u64 = START + 600 * del(1).len() as u64;
        assert_eq!(found.iter().map(|run| (run.0, run.2)).collect::<Vec<_>>(), [(START, 1196), (before, 4004)]);
        // However fast from its first second on, a run that is no longer is one.
        let found = runs(&sent((0..1000).map(|n| (if n < 10 { n * 900 } else { 9000 + n }, 1)).collect()), &[]);
        assert_eq!(found.iter().map(|run| run.2).collect::<Vec<_>>(), [1000]);
    }
}
