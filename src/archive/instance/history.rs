//! From a moment to what leads there: a snapshot, and the stream behind it up to a place where it may be cut.
//!
//! What the stream had brought by a time is told by its marks, in the order of the stream: the target is the last mark before the first one that
//! is later than the time asked for. So a clock that was set back makes the target earlier, never one that holds what came after.
//! A time counts as covered only if something shows that the stream was followed beyond it. Every stretch on the way is looked at: a hole
//! between two of them ends the way there.

use std::collections::BTreeMap;

use bytes::Bytes;
use jiff::Timestamp;

use super::commands::{Mark, Stretch};
use super::present::Lacking;
use super::snapshot::Snapshot;
use super::spool::{Spool, Spooled};
use super::{Error, Instance};
use crate::redis::ReplicationId;
use crate::resp::Cut;

/// What is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// The state at a time: everything that had come by then, and nothing after.
    Time(Timestamp),
    /// The state before whatever comes after so many bytes of a history.
    Offset(ReplicationId, u64),
    /// All there is.
    Newest,
    /// A snapshot as it is.
    Snapshot,
}

/// The way to a state.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reach {
    /// The snapshot to begin with.
    pub snapshot: Snapshot,
    /// The stretches to replay, in order; the first and the last perhaps in part. None if the snapshot is the target.
    pub stretches: Vec<Stretch>,
    /// Where the snapshot stands in the stream; `None` if it is not known to be part of one.
    pub from: Option<Cut>,
    /// Where the target stands.
    pub to: Option<Cut>,
    /// When the target's last command had come, as the receiver's clock said.
    pub at: Timestamp,
    /// When the next commands had come, if there are any: the target holds for every time before.
    pub before: Option<Timestamp>,
}

impl Reach {
    /// The history in which the target stands.
    #[must_use]
    pub fn replid(&self) -> Option<ReplicationId> {
        self.stretches.last().map(|stretch| stretch.replid).or(self.snapshot.replid)
    }

    /// Bytes of commands to replay.
    #[must_use]
    pub fn command_bytes(&self) -> u64 {
        self.from.zip(self.to).map_or(0, |(from, to)| to.offset.saturating_sub(from.offset))
    }
}

/// Why a state cannot be reached, and what can.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Unreachable {
    /// Why, for people.
    pub reason: String,
    /// The newest reachable moment before.
    pub nearest_before: Option<Timestamp>,
    /// The oldest reachable moment after.
    pub nearest_after: Option<Timestamp>,
}

impl Unreachable {
    /// The same, with the snapshots that could not be used.
    fn because_of(mut self, lacking: &Lacking) -> Unreachable {
        for (label, what) in lacking {
            self.reason.push_str(&format!("; snapshot {label} cannot be used, for {what}"));
        }
        self
    }
}

/// Whatever a stretch is read from.
type Spools = BTreeMap<(ReplicationId, u64), Stretch>;

/// All stretches by name, and what this machine's spool adds.
#[derive(Clone, Debug)]
pub struct Known {
    names: BTreeMap<ReplicationId, Vec<u64>>,
    spooled: Spools,
}

impl Known {
    /// The histories, each with the offsets before the first bytes of its stretches, in order.
    pub fn histories(&self) -> impl Iterator<Item = (ReplicationId, &[u64])> {
        self.names.iter().map(|(replid, firsts)| (*replid, firsts.as_slice()))
    }

    /// What is missing where a way ends, in words; nothing if nothing of that history comes after it.
    fn hole(&self, snapshot: &Snapshot, way: &Way) -> String {
        let end = way.stretches.last().map(|stretch| (stretch.replid, stretch.last));
        let Some((replid, offset)) = end.or(snapshot.replid.zip(snapshot.offset)) else { return String::new() };
        let next = self.names.get(&replid).and_then(|firsts| firsts.iter().find(|first| **first > offset));
        next.map_or_else(String::new, |next| {
            format!(": what lies between offset {offset} and {next} of history {replid} is missing")
        })
    }
}

/// How far the stream leads from a snapshot.
#[derive(Clone, Debug, Default)]
pub(super) struct Way {
    pub(super) stretches: Vec<Stretch>,
}

/// How far a way is followed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Until {
    End,
    /// Until a stretch begins later.
    Time(Timestamp),
    /// Until a stretch ends beyond it.
    Offset(u64),
}

impl Until {
    fn is_beyond(self, stretch: &Stretch) -> bool {
        match self {
            Until::End => false,
            Until::Time(time) => stretch.started_at > time,
            Until::Offset(offset) => stretch.last > offset,
        }
    }
}

impl Way {
    fn marks(&self) -> impl Iterator<Item = (usize, &Mark)> {
        self.stretches.iter().enumerate().flat_map(|(nth, stretch)| stretch.marks.iter().map(move |mark| (nth, mark)))
    }
}

impl Instance {
    /// Finds the way to what is wanted, from the newest snapshot that leads there, or from the one named. All that is on the way is there: the
    /// parts of the snapshot are listed with the bytes that were stored, and the trailer of each stretch was read.
    ///
    /// # Errors
    /// No repository could be asked, or something does not open. What cannot be reached is no error but an answer.
    pub async fn reach(&self, wanted: Wanted, from: Option<&str>) -> Result<Result<Reach, Unreachable>, Error> {
        let mut snapshots = self.snapshots().await?;
        snapshots.retain(|snapshot| from.is_none_or(|label| snapshot.label == label));
        let lacking = self.lacking(&snapshots).await?;
        let unfit = |snapshot: &Snapshot| lacking.contains_key(&snapshot.label);
        // As it is, the newest one is meant and no other.
        let meant = snapshots.last().is_some_and(|newest| wanted == Wanted::Snapshot && unfit(newest));
        let none = !snapshots.is_empty() && snapshots.iter().all(unfit);
        snapshots.retain(|snapshot| !unfit(snapshot));
        let found = if meant || none {
            let nearest_before = snapshots.last().map(|snapshot| snapshot.at);
            let reason = "a snapshot is not whole".to_owned();
            Err(Unreachable { reason, nearest_before, nearest_after: None })
        } else {
            self.reach_from(&snapshots, wanted, from).await?
        };
        Ok(found.map_err(|not| not.because_of(&lacking)))
    }

    async fn reach_from(
        &self,
        snapshots: &[Snapshot],
        wanted: Wanted,
        from: Option<&str>,
    ) -> Result<Result<Reach, Unreachable>, Error> {
        let Some(newest) = snapshots.last() else {
            let reason = match from {
                Some(label) => format!("there is no snapshot {label}"),
                None => "there is no snapshot yet; take one with walkeep backup redis".to_owned(),
            };
            return Ok(Err(Unreachable { reason, nearest_before: None, nearest_after: None }));
        };
        let time = match wanted {
            Wanted::Snapshot => return Ok(Ok(as_it_is(newest))),
            Wanted::Time(time) => Some(time),
            Wanted::Newest => None,
            Wanted::Offset(replid, offset) => return self.reach_offset(snapshots, replid, offset).await,
        };
        let known = self.known().await?;
        let after = snapshots.iter().map(|snapshot| snapshot.at).filter(|at| time.is_some_and(|time| *at > time)).min();
        let mut failed: Option<Unreachable> = None;
        for snapshot in snapshots.iter().rev().filter(|snapshot| time.is_none_or(|time| snapshot.at <= time)) {
            let way = self.way(snapshot, &known, time.map_or(Until::End, Until::Time)).await?;
            let hole = known.hole(snapshot, &way);
            match target(snapshot, way, time) {
                Ok(reach) => return Ok(Ok(reach)),
                Err(end) if failed.as_ref().is_none_or(|failed| failed.nearest_before < Some(end)) => {
                    let reason =
                        format!("the stream of commands behind snapshot {} ends at {end}{hole}", snapshot.label);
                    failed = Some(Unreachable { reason, nearest_before: Some(end), nearest_after: after });
                }
                Err(_) => {}
            }
        }
        Ok(Err(failed.unwrap_or_else(|| Unreachable {
            reason: "it lies before the first snapshot".to_owned(),
            nearest_before: None,
            nearest_after: after,
        })))
    }

    /// The bytes of the stretch of this number on the way, as far as they lie on it. All in turn are the commands to replay; the first acts on
    /// database `from.db`.
    ///
    /// # Errors
    /// Neither the spool nor a repository gave them.
    pub async fn commands_of(&self, reach: &Reach, number: usize) -> Result<Bytes, Error> {
        let (Some(stretch), Some(from), Some(to)) = (reach.stretches.get(number), reach.from, reach.to) else {
            return Ok(Bytes::new());
        };
        let bytes = self.bytes_of(stretch).await?;
        let at = |offset: u64| usize::try_from(offset.saturating_sub(stretch.first)).unwrap_or(usize::MAX);
        let (begin, end) = (at(from.offset.max(stretch.first)), at(to.offset.min(stretch.last)));
        if begin > end || end > bytes.len() {
            return Err(Error::Gone { name: format!("offset {} of {}", to.offset, stretch.replid) });
        }
        Ok(bytes.slice(begin..end))
    }

    /// All bytes of a stretch, from the repositories or the spool; perhaps more than the stretch was seen to have.
    ///
    /// # Errors
    /// Neither gave them.
    pub async fn bytes_of(&self, stretch: &Stretch) -> Result<Bytes, Error> {
        if let Some(bytes) = self.stored_commands(stretch.replid, stretch.first).await? {
            return Ok(bytes);
        }
        let gone = || Error::Gone { name: format!("the stream of {} at {}", stretch.replid, stretch.first) };
        Ok(self.spooled((stretch.replid, stretch.first)).await?.ok_or_else(gone)?.bytes)
    }

    /// The way behind the newest snapshot, or the one named, as far as it leads: for lists and logs.
    ///
    /// # Errors
    /// As [`Instance::reach`].
    pub async fn behind(&self, snapshot: &Snapshot) -> Result<Vec<Stretch>, Error> {
        let known = self.known().await?;
        Ok(self.way(snapshot, &known, Until::End).await?.stretches)
    }

    /// Which stretches there are, in the repositories and the spool.
    ///
    /// # Errors
    /// No repository could be asked, or the spool can't be read.
    pub async fn known(&self) -> Result<Known, Error> {
        let mut names: BTreeMap<ReplicationId, Vec<u64>> = BTreeMap::new();
        let mut spooled = Spools::new();
        // The spool first: what is uploaded in between is then found in both, not in neither.
        if let Some(spool) = self.state_dir.as_deref().and_then(|dir| Spool::existing(dir, self)) {
            let read = move || -> Result<Vec<Stretch>, crate::archive::spool::SpoolError> {
                let mut all = Vec::new();
                for name in spool.list()? {
                    // One after the other: while a repository is away, there may be more of them than memory.
                    all.extend(spool.read(name)?.map(|spooled| spooled.stretch().0));
                }
                Ok(all)
            };
            let read = tokio::task::spawn_blocking(read).await.map_err(|_panic| Error::Lost)?;
            for stretch in read.map_err(|error| self.unreadable(&self.layout().streams_name(), error.to_string()))? {
                if stretch.last > stretch.first {
                    names.entry(stretch.replid).or_default().push(stretch.first);
                    spooled.insert((stretch.replid, stretch.first), stretch);
                }
            }
        }
        for (replid, first, _) in self.stored_stretches().await? {
            names.entry(replid).or_default().push(first);
        }
        for firsts in names.values_mut() {
            firsts.sort_unstable();
            firsts.dedup();
        }
        Ok(Known { names, spooled })
    }

    async fn spooled(&self, name: (ReplicationId, u64)) -> Result<Option<Spooled>, Error> {
        let Some(spool) = self.state_dir.as_deref().and_then(|dir| Spool::existing(dir, self)) else { return Ok(None) };
        let read = tokio::task::spawn_blocking(move || spool.read(name)).await.map_err(|_panic| Error::Lost)?;
        read.map_err(|error| self.unreadable(&self.layout().streams_name(), error.to_string()))
    }

    /// A stretch by its name.
    ///
    /// # Errors
    /// No repository gave it, or it does not open.
    pub async fn stretch(&self, known: &Known, replid: ReplicationId, first: u64) -> Result<Option<Stretch>, Error> {
        match self.stored_stretch(replid, first).await? {
            Some(stretch) => Ok(Some(stretch)),
            None => Ok(known.spooled.get(&(replid, first)).cloned()),
        }
    }

    /// Stretch after stretch from a snapshot on, until one is beyond what is wanted, or there is none.
    pub(super) async fn way(&self, snapshot: &Snapshot, known: &Known, until: Until) -> Result<Way, Error> {
        let mut way = Way::default();
        let (Some(mut replid), Some(mut offset)) = (snapshot.replid, snapshot.offset) else { return Ok(way) };
        loop {
            let next = match self.next_of(known, replid, offset).await? {
                Some(next) => next,
                None => match self.next_after(known, replid, offset).await? {
                    Some(next) => next,
                    None => return Ok(way),
                },
            };
            (replid, offset) = (next.replid, next.last);
            let beyond = until.is_beyond(&next);
            way.stretches.push(next);
            if beyond {
                return Ok(way);
            }
        }
    }

    /// The stretch of the same history that holds the byte after `offset`.
    async fn next_of(&self, known: &Known, replid: ReplicationId, offset: u64) -> Result<Option<Stretch>, Error> {
        let firsts = known.names.get(&replid).map(Vec::as_slice).unwrap_or_default();
        let Some(first) = firsts.iter().rev().find(|first| **first <= offset) else { return Ok(None) };
        Ok(self.stretch(known, replid, *first).await?.filter(|stretch| stretch.last > offset))
    }

    /// The stretch that goes on from there under another name.
    async fn next_after(&self, known: &Known, replid: ReplicationId, offset: u64) -> Result<Option<Stretch>, Error> {
        for (other, firsts) in known.names.iter().filter(|(other, _)| **other != replid) {
            if firsts.binary_search(&offset).is_err() {
                continue;
            }
            if let Some(stretch) = self.stretch(known, *other, offset).await?
                && stretch.follows.is_some_and(|follows| (follows.replid, follows.offset) == (replid, offset))
            {
                return Ok(Some(stretch));
            }
        }
        Ok(None)
    }
}

pub(super) fn as_it_is(snapshot: &Snapshot) -> Reach {
    let cut = snapshot.offset.map(|offset| Cut { offset, db: snapshot.db });
    let (at, stretches) = (snapshot.at, Vec::new());
    Reach { snapshot: snapshot.clone(), stretches, from: cut, to: cut, at, before: None }
}

/// The target on the way: at a time, or at its end. The error is when the way ends, before the time.
fn target(snapshot: &Snapshot, way: Way, time: Option<Timestamp>) -> Result<Reach, Timestamp> {
    let base = as_it_is(snapshot);
    let Some(from) = base.from else {
        return if time.is_none_or(|time| time == snapshot.at) { Ok(base) } else { Err(snapshot.at) };
    };
    let ended_at = way.stretches.iter().map(|stretch| stretch.ended_at).max().unwrap_or(snapshot.at).max(snapshot.at);
    let mut best: Option<(usize, Mark)> = None;
    let mut before = None;
    for (nth, mark) in way.marks().filter(|(_, mark)| mark.offset > from.offset) {
        if time.is_some_and(|time| mark.time > time) {
            before = Some(mark.time);
            break;
        }
        best = Some((nth, *mark));
    }
    if let (Some(time), None) = (time, before)
        && ended_at < time
    {
        return Err(ended_at);
    }
    let Some((nth, mark)) = best else { return Ok(Reach { before, ..base }) };
    let mut stretches = way.stretches;
    stretches.truncate(nth.saturating_add(1));
    let to = Some(Cut { offset: mark.offset, db: mark.db });
    Ok(Reach { stretches, to, at: mark.time, before, ..base })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::snapshot::{Origin, Snapshot};
    use super::{Mark, Stretch, Way, target};
    use crate::rdb::{Limits, Walker};

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    /// A snapshot of the second 10 at offset 100.
    fn snapshot() -> Snapshot {
        let mut walker = Walker::new(Limits::default());
        walker.push(b"REDIS0009\xff\0\0\0\0\0\0\0\0").unwrap();
        Snapshot {
            format: 1,
            label: "x".into(),
            started_at: at(9),
            finished_at: at(12),
            at: at(10),
            origin: Origin::File { path: "x".into() },
            flavour: crate::redis::Flavour::Redis,
            version: "7".into(),
            run_id: None,
            replid: ID.parse().ok(),
            offset: Some(100),
            db: 3,
            walk: walker.finish().unwrap(),
            parts: Vec::new(),
            logical_bytes: 18,
            stored_bytes: 0,
        }
    }

    fn stretch(first: u64, last: u64, ended: i64, marks: &[(u64, i64)]) -> Stretch {
        Stretch {
            replid: ID.parse().unwrap(),
            first,
            last,
            db: 0,
            in_transaction: false,
            db_after: 0,
            in_transaction_after: false,
            follows: None,
            started_at: at(10),
            ended_at: at(ended),
            writes: 1,
            marks: marks.iter().map(|(offset, second)| Mark { offset: *offset, db: 1, time: at(*second) }).collect(),
            run: None,
            notable: None,
        }
    }

    /// Offset and number of stretches, or where the way ends.
    fn check(way: &[Stretch], time: Option<i64>) -> Result<(u64, usize), i64> {
        let reach = target(&snapshot(), Way { stretches: way.to_vec() }, time.map(at)).map_err(Timestamp::as_second)?;
        Ok((reach.to.unwrap().offset, reach.stretches.len()))
    }

    #[test]
    fn a_time_is_the_last_mark_before_anything_later() {
        // The second stretch's clock was set back once.
        let way = [
            stretch(50, 200, 15, &[(90, 9), (150, 12), (200, 15)]),
            stretch(200, 400, 30, &[(250, 20), (300, 18), (400, 30)]),
        ];
        for (time, expected) in [
            (10, Ok((100, 0))),
            (11, Ok((100, 0))),
            (12, Ok((150, 1))),
            (14, Ok((150, 1))),
            (15, Ok((200, 1))),
            // What came at 20 stands before what came at 18: it is not in the state of 19.
            (19, Ok((200, 1))),
            (20, Ok((300, 2))),
            (30, Ok((400, 2))),
            (31, Err(30)),
        ] {
            assert_eq!(check(&way, Some(time)), expected, "{time}");
        }
        assert_eq!(check(&way, None), Ok((400, 2)));
    }

    #[test]
    fn silence_counts_only_as_far_as_something_shows_it() {
        // A transaction that was open when the stream ended has no mark, but the bytes before it are known to be all there was.
        let way = [stretch(100, 200, 25, &[(150, 12)])];
        assert_eq!(check(&way, Some(25)), Ok((150, 1)));
        assert_eq!(check(&way, Some(26)), Err(25));
        assert_eq!(check(&[], Some(10)), Ok((100, 0)));
        assert_eq!(check(&[], Some(11)), Err(10));
        assert_eq!(check(&[], None), Ok((100, 0)));
    }
}
