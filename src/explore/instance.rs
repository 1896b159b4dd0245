//! What happened in a Redis instance: databases emptied, many keys deleted, restarts, failovers and breaks, each with the target that
//! restores to just before it.
//!
//! Everything comes from the archive and this machine's spool; the server is not asked. What stands out in a stretch of the stream is in its
//! metadata ([`crate::archive::instance::notable`]), so the commands themselves are read only where an older receiver did not say, or where fewer
//! keys are asked for than it noted. A history is searched for the time asked for, so what lies before and after is not looked at.
//!
//! Memory: the names of the stretches, the snapshots' manifests, the metadata of [`AT_ONCE`] stretches, and the bytes of one.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};

use crate::archive;
use crate::archive::instance::notable::{NOTED_KEYS, Notable, TOGETHER, What};
use crate::archive::instance::{Gap, Instance, Known, Origin, Position, Snapshot, Stretch};
use crate::redis::ReplicationId;

use super::Error;

/// Keys that must be deleted together to be told, unless asked otherwise.
pub const MANY_KEYS: u64 = 1000;
/// Stretches whose metadata is read at once.
const AT_ONCE: usize = 16;
/// A clock that is set back makes times run back along a history. By more than this it is not looked for.
const DISORDER: SignedDuration = SignedDuration::from_hours(1);

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// All databases were emptied.
    FlushAll,
    /// A database was emptied.
    FlushDb,
    /// Many keys were deleted together.
    Delete,
    /// The server was started anew.
    Restart,
    /// Another server became the master.
    Failover,
    /// Part of the stream was lost; a new snapshot follows.
    Gap,
    /// A snapshot was taken. Only told when asked for.
    Snapshot,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 7] =
        [Kind::FlushAll, Kind::FlushDb, Kind::Delete, Kind::Restart, Kind::Failover, Kind::Gap, Kind::Snapshot];

    /// How it is written, on the command line and in JSON.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::FlushAll => "flush-all",
            Kind::FlushDb => "flush-db",
            Kind::Delete => "delete",
            Kind::Restart => "restart",
            Kind::Failover => "failover",
            Kind::Gap => "gap",
            Kind::Snapshot => "snapshot",
        }
    }

    /// Whether it is told without being asked for.
    #[must_use]
    pub const fn is_usual(self) -> bool {
        !matches!(self, Kind::Snapshot)
    }
}

/// Something that happened. Its JSON form is a line of `log redis --json`.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct Happening {
    /// When it had come, by the receiver's clock; a break: when it was noticed.
    pub time: Timestamp,
    /// The offset before it.
    pub offset: Option<u64>,
    /// The history that counts this offset.
    pub replid: Option<String>,
    /// What it was.
    pub kind: Kind,
    /// The database.
    pub database: Option<u32>,
    /// Keys: that were deleted, or that are in a snapshot.
    pub keys: Option<u64>,
    /// Commands that did it.
    pub commands: Option<u64>,
    /// What else there is to say.
    pub detail: Option<String>,
    /// The option that restores to just before it; none where nothing leads there.
    pub target: Option<String>,
}

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Question {
    /// Only what happened then or later.
    pub since: Option<Timestamp>,
    /// Only what happened then or earlier.
    pub until: Option<Timestamp>,
    /// Only these kinds; the usual ones if empty.
    pub kinds: Vec<Kind>,
    /// Keys that must be deleted together to be told.
    pub keys: u64,
}

impl Question {
    /// Whether this is among what was asked for.
    #[must_use]
    pub fn wants(&self, happening: &Happening) -> bool {
        let after = self.since.is_none_or(|since| happening.time >= since);
        let before = self.until.is_none_or(|until| happening.time <= until);
        let kind = match self.kinds.as_slice() {
            [] => happening.kind.is_usual(),
            kinds => kinds.contains(&happening.kind),
        };
        let many = happening.kind != Kind::Delete || happening.keys >= Some(self.keys);
        after && before && kind && many
    }
}

/// Tells what happened, in order. `tell` can end the story.
///
/// # Errors
/// [`Error`].
pub async fn explore(
    instance: &Instance,
    question: &Question,
    tell: &mut (dyn FnMut(Happening) -> ControlFlow<()> + Send),
) -> Result<(), Error> {
    if instance.identity().await?.is_none() {
        return Err(Error::Nothing { cluster: instance.name().to_string() });
    }
    let (snapshots, known) = (instance.snapshots().await?, instance.known().await?);
    let mut beside: Vec<Beside> = instance.gaps().await?.into_iter().map(Beside::Gap).collect();
    beside.extend(snapshots.iter().cloned().map(|snapshot| Beside::Snapshot(Box::new(snapshot))));
    beside.sort_by_key(|beside| std::cmp::Reverse(beside.time()));
    let mut story = Story {
        instance,
        question,
        snapshots,
        known,
        beside,
        runs: BTreeMap::new(),
        end: None,
        led: None,
        pending: None,
        tell,
    };
    story.run().await
}

/// What is recorded beside the stream.
enum Beside {
    Gap(Gap),
    Snapshot(Box<Snapshot>),
}

impl Beside {
    fn time(&self) -> Timestamp {
        match self {
            Beside::Gap(gap) => gap.noticed_at,
            Beside::Snapshot(snapshot) => snapshot.at,
        }
    }
}

/// One telling.
struct Story<'a> {
    instance: &'a Instance,
    question: &'a Question,
    snapshots: Vec<Snapshot>,
    known: Known,
    /// Not told yet, the next one last.
    beside: Vec<Beside>,
    /// Which run of each server was last seen.
    runs: BTreeMap<String, String>,
    /// Where the stretch before ended.
    end: Option<(ReplicationId, u64)>,
    /// Up to where it is known whether a snapshot leads there.
    led: Option<Led>,
    /// Deletions that may go on.
    pending: Option<(Happening, Timestamp)>,
    tell: &'a mut (dyn FnMut(Happening) -> ControlFlow<()> + Send),
}

#[derive(Clone, Copy)]
struct Led {
    replid: ReplicationId,
    /// The end of the last stretch without a break since it was asked.
    until: u64,
    /// Where it was asked.
    asked: u64,
    leads: bool,
}

type Told = ControlFlow<()>;

impl Story<'_> {
    async fn run(&mut self) -> Result<(), Error> {
        for (replid, firsts) in self.in_time().await? {
            if self.history(replid, &firsts).await?.is_break() {
                return Ok(());
            }
        }
        if self.flush().is_continue() {
            let _told = self.beside(Timestamp::MAX).await?;
        }
        Ok(())
    }

    /// The histories that reach into the time asked for, oldest first. One server is followed at a time, so they don't overlap.
    async fn in_time(&self) -> Result<Vec<(ReplicationId, Vec<u64>)>, Error> {
        let mut found = Vec::new();
        for (replid, firsts) in self.known.histories() {
            let Some(first) = firsts.first() else { continue };
            let Some(stretch) = self.instance.stretch(&self.known, replid, *first).await? else { continue };
            let late = self.question.until.is_some_and(|until| stretch.started_at > later(until));
            if !late {
                found.push((stretch.started_at, replid, firsts.to_vec()));
            }
        }
        found.sort_unstable();
        Ok(found.into_iter().map(|(_, replid, firsts)| (replid, firsts)).collect())
    }

    async fn history(&mut self, replid: ReplicationId, firsts: &[u64]) -> Result<Told, Error> {
        let begin = self.begin(replid, firsts).await?;
        for names in firsts.get(begin..).unwrap_or_default().chunks(AT_ONCE) {
            let read = names.iter().map(|first| self.instance.stretch(&self.known, replid, *first));
            for stretch in join_all(read).await {
                // Retention may have been faster.
                let Some(stretch) = stretch? else { continue };
                if self.question.until.is_some_and(|until| stretch.started_at > later(until)) {
                    return Ok(ControlFlow::Continue(()));
                }
                if self.stretch(&stretch).await?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The first stretch of a history that may hold something of the time asked for.
    async fn begin(&self, replid: ReplicationId, firsts: &[u64]) -> Result<usize, Error> {
        let Some(since) = self.question.since.map(|since| since.saturating_sub(DISORDER).unwrap_or(Timestamp::MIN))
        else {
            return Ok(0);
        };
        let (mut low, mut high) = (0, firsts.len());
        while low < high {
            let middle = low.midpoint(high);
            let Some(first) = firsts.get(middle) else { break };
            let stretch = self.instance.stretch(&self.known, replid, *first).await?;
            if stretch.is_some_and(|stretch| stretch.ended_at < since) {
                low = middle.saturating_add(1);
            } else {
                high = middle;
            }
        }
        Ok(low)
    }

    async fn stretch(&mut self, stretch: &Stretch) -> Result<Told, Error> {
        let goes_on = self.goes_on(stretch);
        if self.beside(stretch.started_at).await?.is_break() || self.change(stretch, goes_on).await?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        for notable in self.notables(stretch).await? {
            let time = stretch.time_at(notable.before);
            if self.pending.as_ref().is_some_and(|(_, last)| time.duration_since(*last) > TOGETHER)
                && self.flush().is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
            if self.beside(time).await?.is_break() || self.notable(stretch, &notable, time).await?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// What stands out in a stretch; its bytes are read only where its metadata does not say.
    async fn notables(&self, stretch: &Stretch) -> Result<Vec<Notable>, Error> {
        let wanted = |kind: Kind| self.question.kinds.is_empty() || self.question.kinds.contains(&kind);
        if ![Kind::FlushAll, Kind::FlushDb, Kind::Delete].into_iter().any(wanted) {
            return Ok(Vec::new());
        }
        let floor = self.question.keys.min(NOTED_KEYS);
        let told = stretch.notable.clone().filter(|told| told.floor <= floor || !wanted(Kind::Delete));
        let notables = match told {
            Some(told) => told,
            None if stretch.writes == 0 => return Ok(Vec::new()),
            None => {
                let (bytes, looked) = (self.instance.bytes_of(stretch).await?, stretch.clone());
                let read = move || looked.look(bytes.get(..len_of(&looked)).unwrap_or(&bytes), floor);
                let read = tokio::task::spawn_blocking(read).await.map_err(|_gone| Error::Stopped)?;
                read.map_err(|error| archive::Error::Content {
                    name: self.instance.name().to_string(),
                    key: self.instance.layout().streams_name(),
                    why: error.to_string(),
                })?
            }
        };
        if notables.more {
            tracing::warn!(replid = %stretch.replid, first = stretch.first, "more happened in this stretch than is listed");
        }
        Ok(notables.found)
    }

    async fn notable(&mut self, stretch: &Stretch, notable: &Notable, time: Timestamp) -> Result<Told, Error> {
        let last = stretch.time_at(notable.end.saturating_sub(1));
        if notable.what == What::Delete {
            let goes_on = |(pending, _): &&mut (Happening, Timestamp)| pending.database == Some(notable.db);
            if let Some((pending, until)) = self.pending.as_mut().filter(goes_on) {
                *until = last;
                pending.keys = pending.keys.map(|keys| keys.saturating_add(notable.keys));
                pending.commands = pending.commands.map(|commands| commands.saturating_add(notable.commands));
                return Ok(ControlFlow::Continue(()));
            }
        }
        let (replid, offset) = (stretch.replid, notable.before);
        let kind = match notable.what {
            What::FlushAll => Kind::FlushAll,
            What::FlushDb => Kind::FlushDb,
            What::Delete => Kind::Delete,
        };
        let happening = Happening {
            time,
            offset: Some(offset),
            replid: Some(replid.to_string()),
            kind,
            database: (kind != Kind::FlushAll).then_some(notable.db),
            keys: (kind == Kind::Delete).then_some(notable.keys),
            commands: Some(notable.commands),
            detail: if kind == Kind::Delete { None } else { self.had(kind, notable, replid) },
            target: self.target(replid, offset).await?,
        };
        if kind == Kind::Delete {
            let told = self.flush();
            self.pending = Some((happening, last));
            return Ok(told);
        }
        Ok(self.say(happening))
    }

    /// What the newest snapshot before says of what was emptied: the stream does not say how much it was.
    fn had(&self, kind: Kind, notable: &Notable, replid: ReplicationId) -> Option<String> {
        let before =
            |s: &&Snapshot| s.replid == Some(replid) && s.offset.is_some_and(|offset| offset <= notable.before);
        let snapshot = self.snapshots.iter().rev().find(before)?;
        let keys = match kind {
            Kind::FlushAll => snapshot.walk.keys(),
            _ => snapshot.walk.databases.get(&u64::from(notable.db)).map_or(0, |database| database.keys),
        };
        let times = if notable.commands > 1 { format!("{} times; ", notable.commands) } else { String::new() };
        let word = if keys == 1 { "key" } else { "keys" };
        Some(format!("{times}{keys} {word} in snapshot {} before", snapshot.label))
    }

    /// A stretch that comes from another server, or from the same one after a restart.
    async fn change(&mut self, stretch: &Stretch, goes_on: bool) -> Result<Told, Error> {
        let run = stretch.run.as_ref().map(|run| (run.server.as_str(), run.id.as_str()));
        let restart = run.and_then(|(server, id)| self.restart(server, id, stretch.started_at));
        let happening = match (restart, stretch.follows) {
            (Some(restart), _) => restart,
            (None, Some(follows)) => {
                let server = run.map_or_else(String::new, |(server, _)| format!(", now from {server}"));
                let detail = format!("history {} goes on as {}{server}", short(follows.replid), short(stretch.replid));
                Happening { detail: Some(detail), ..plain(Kind::Failover, stretch.started_at) }
            }
            (None, None) => return Ok(ControlFlow::Continue(())),
        };
        let (replid, offset) = (stretch.replid, stretch.first);
        let place = Happening { offset: Some(offset), replid: Some(replid.to_string()), ..happening };
        // After a break there is nothing to go back to but what the break itself is told with.
        let target = if goes_on { self.target(replid, offset).await? } else { None };
        Ok(self.say(Happening { target, ..place }))
    }

    /// Notes which run of a server this is; says so if it was another one before.
    fn restart(&mut self, server: &str, id: &str, time: Timestamp) -> Option<Happening> {
        let before = self.runs.insert(server.to_owned(), id.to_owned()).filter(|before| before != id)?;
        let cut = |id: &str| id.chars().take(8).collect::<String>();
        let detail = format!("{server}: run {} instead of {}", cut(id), cut(&before));
        Some(Happening { detail: Some(detail), ..plain(Kind::Restart, time) })
    }

    /// Tells what is recorded beside the stream up to `time`.
    async fn beside(&mut self, time: Timestamp) -> Result<Told, Error> {
        while let Some(next) = self.beside.pop_if(|next| next.time() <= time) {
            let told = match next {
                Beside::Gap(gap) => self.gap(gap).await?,
                Beside::Snapshot(snapshot) => self.snapshot(&snapshot),
            };
            if told.is_break() {
                return Ok(told);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn gap(&mut self, gap: Gap) -> Result<Told, Error> {
        let known = gap.until.map_or_else(String::new, |until| format!("nothing is known since {until:.3}; "));
        let happening = Happening {
            offset: Some(gap.offset),
            replid: Some(gap.replid.to_string()),
            detail: Some(format!("{known}{}", gap.reason)),
            ..plain(Kind::Gap, gap.noticed_at)
        };
        // Looked up only for those that are told.
        let target = if self.question.wants(&happening) { self.target(gap.replid, gap.offset).await? } else { None };
        Ok(self.say(Happening { target, ..happening }))
    }

    fn snapshot(&mut self, snapshot: &Snapshot) -> Told {
        let (server, run) = match (&snapshot.origin, &snapshot.run_id) {
            (Origin::Replication { server, .. }, Some(run)) => (server, run),
            _ => return self.tell_snapshot(snapshot),
        };
        let restart = self.restart(server, run, snapshot.at);
        if let Some(restart) = restart
            && self.say(restart).is_break()
        {
            return ControlFlow::Break(());
        }
        self.tell_snapshot(snapshot)
    }

    fn tell_snapshot(&mut self, snapshot: &Snapshot) -> Told {
        let place = snapshot.replid.zip(snapshot.offset);
        let happening = Happening {
            offset: snapshot.offset,
            replid: snapshot.replid.map(|replid| replid.to_string()),
            keys: Some(snapshot.walk.keys()),
            detail: Some(snapshot.label.clone()),
            target: Some(match place {
                Some((replid, offset)) => option(replid, offset),
                None => format!("--target-immediate --backup {}", snapshot.label),
            }),
            ..plain(Kind::Snapshot, snapshot.at)
        };
        self.say(happening)
    }

    /// Tells the deletions that are certain to be over.
    fn flush(&mut self) -> Told {
        match self.pending.take().filter(|(happening, _)| self.question.wants(happening)) {
            Some((happening, _)) => (self.tell)(in_micros(happening)),
            None => ControlFlow::Continue(()),
        }
    }

    fn say(&mut self, happening: Happening) -> Told {
        if !self.question.wants(&happening) {
            return ControlFlow::Continue(());
        }
        if self.flush().is_break() {
            return ControlFlow::Break(());
        }
        (self.tell)(in_micros(happening))
    }

    /// Whether a stretch goes on from the one before. A snapshot that leads to the one then leads to the other.
    fn goes_on(&mut self, stretch: &Stretch) -> bool {
        let follows = stretch.follows.map(|follows| (follows.replid, follows.offset));
        let before = self.end.replace((stretch.replid, stretch.last));
        let goes_on = before.is_some_and(|(replid, end)| {
            (replid == stretch.replid && (stretch.first..=stretch.last).contains(&end))
                || follows == Some((replid, end))
        });
        self.led = self.led.filter(|_| goes_on).map(|led| Led { replid: stretch.replid, until: stretch.last, ..led });
        goes_on
    }

    /// The option that restores to a place, if any snapshot leads there.
    async fn target(&mut self, replid: ReplicationId, offset: u64) -> Result<Option<String>, Error> {
        let newer = |asked: u64| {
            let between = |s: &Snapshot| s.offset.is_some_and(|at| at > asked && at <= offset);
            self.snapshots.iter().any(between)
        };
        let led = self.led.filter(|led| led.replid == replid && (led.asked..=led.until).contains(&offset));
        let leads = match led {
            Some(led) if led.leads || !newer(led.asked) => led.leads,
            _ => {
                let leads = self.instance.leads_to(&self.snapshots, &self.known, replid, offset).await?;
                let here = self.end.filter(|(here, end)| *here == replid && *end >= offset);
                self.led = Some(Led { replid, until: here.map_or(offset, |(_, end)| end), asked: offset, leads });
                leads
            }
        };
        Ok(leads.then(|| option(replid, offset)))
    }
}

/// Times are told in microseconds, as all others are; clocks have more.
fn in_micros(happening: Happening) -> Happening {
    let time = Timestamp::from_microsecond(happening.time.as_microsecond()).unwrap_or(happening.time);
    Happening { time, ..happening }
}

fn later(time: Timestamp) -> Timestamp {
    time.saturating_add(DISORDER).unwrap_or(Timestamp::MAX)
}

fn len_of(stretch: &Stretch) -> usize {
    usize::try_from(stretch.last.saturating_sub(stretch.first)).unwrap_or(usize::MAX)
}

fn option(replid: ReplicationId, offset: u64) -> String {
    format!("--target-offset {}", Position::of(replid, offset))
}

fn short(replid: ReplicationId) -> String {
    Position::of(replid, 0).history
}

const fn plain(kind: Kind, time: Timestamp) -> Happening {
    Happening {
        time,
        offset: None,
        replid: None,
        kind,
        database: None,
        keys: None,
        commands: None,
        detail: None,
        target: None,
    }
}
