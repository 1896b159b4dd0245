//! What happened in a Redis instance: databases emptied, many keys deleted, restarts, failovers and breaks, each with
//! the target that restores to just before it.
//!
//! Everything comes from the archive and this machine's spool; the server is not asked. What stands out in a stretch of
//! the stream is in its metadata ([`crate::redis::archive::stream::deletions`]), so the commands themselves are read
//! only where an older receiver did not say all of it. Which deletions belong together is found from that
//! (`deletions`); what is told while they go on waits for them. A history is searched for the time asked for, so what
//! lies before and after is not looked at.
//!
//! Memory: the names of the stretches, the snapshots' manifests, the metadata of [`MAX_PARALLEL_STRETCH_READS`]
//! stretches, the bytes of one, and [`MAX_WAITING_EVENTS`] lines.

pub(crate) mod entry;
pub(crate) mod missing_commands;
pub mod error;
pub(crate) mod deletion_runs;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use futures_util::future::join_all;
use jiff::{SignedDuration, Timestamp};

use crate::base::blocking::run_blocking;
use crate::base::units::format_largest_unit;
use crate::redis::archive::stream::{Deletion, DeletionKind, StretchDeletions};
use crate::redis::archive::{
    Archive, Gap, KnownStretches, SnapshotManifest, SnapshotOrigin, StreamPosition, StreamStretch,
};
use crate::redis::format::replication_id::ReplicationId;
use crate::vault;

use super::log::deletion_runs::{DeletionRun, OpenDeletionRuns};
use super::log::entry::{bare_event, short_replid, truncate_times};
use super::log::error::LogError as Error;
use missing_commands::{MissingCommands, StretchEnd};

pub use super::log::entry::{DEFAULT_MIN_DELETED_KEYS, LogEntry, LogEntryKind, LogQuery};

/// Stretches whose metadata is read at once.
const MAX_PARALLEL_STRETCH_READS: usize = 16;
/// Lines that wait for deletions that began before them. When there are more, what goes on is told later than its time.
const MAX_WAITING_EVENTS: usize = 10_000;
/// A clock that is set back makes times run back along a history. By more than this it is not looked for.
const MAX_CLOCK_DISORDER: SignedDuration = SignedDuration::from_hours(1);

/// Tells what happened, in order. `tell` can end the story.
///
/// # Errors
/// [`Error`].
pub async fn read_instance_log(
    instance: &Archive,
    question: &LogQuery,
    tell: &mut (dyn FnMut(LogEntry) -> ControlFlow<()> + Send),
) -> Result<(), Error> {
    if !instance.is_archived().await? {
        return Err(Error::Nothing { instance: instance.name().to_string() });
    }
    let (snapshots, known) = (instance.read_snapshots().await?, instance.list_known_stretches().await?);
    known.unseen().log_warnings();
    let gaps = instance.gaps().await?;
    let broke = gaps.iter().map(|gap| (gap.replid, gap.offset)).collect();
    let mut beside: Vec<SideEvent> = gaps.into_iter().map(SideEvent::Gap).collect();
    beside.extend(snapshots.iter().cloned().map(|snapshot| SideEvent::Snapshot(Box::new(snapshot))));
    beside.sort_by_key(|beside| std::cmp::Reverse(beside.time()));
    let mut story = LogReader {
        instance,
        question,
        snapshots,
        known,
        gaps: broke,
        side_events: beside,
        last_run_ids: BTreeMap::new(),
        previous_end: None,
        reach_cache: None,
        runs: OpenDeletionRuns::default(),
        targets: BTreeMap::new(),
        next_sequence: 0,
        waiting: BTreeMap::new(),
        emit_entry: tell,
    };
    story.emit_all().await
}

/// What is recorded beside the stream.
enum SideEvent {
    Gap(Gap),
    Snapshot(Box<SnapshotManifest>),
}

impl SideEvent {
    fn time(&self) -> Timestamp {
        match self {
            SideEvent::Gap(gap) => gap.noticed_at,
            SideEvent::Snapshot(snapshot) => snapshot.at,
        }
    }
}

/// One telling.
struct LogReader<'a> {
    instance: &'a Archive,
    question: &'a LogQuery,
    snapshots: Vec<SnapshotManifest>,
    known: KnownStretches,
    /// Not told yet, the next one last.
    side_events: Vec<SideEvent>,
    /// The breaks that are recorded: history and offset.
    gaps: Vec<missing_commands::GapPosition>,
    /// Which run of each server was last seen.
    last_run_ids: BTreeMap<String, String>,
    /// Where the stretch before ended.
    previous_end: Option<StretchEnd>,
    /// Up to where it is known whether a snapshot leads there.
    reach_cache: Option<SnapshotReachCache>,
    /// Deletions that may go on.
    runs: OpenDeletionRuns,
    /// Their targets.
    targets: BTreeMap<u64, Option<String>>,
    /// How much there was so far.
    next_sequence: u64,
    /// What is not told yet, because deletions that began before it go on.
    waiting: BTreeMap<u64, LogEntry>,
    emit_entry: &'a mut (dyn FnMut(LogEntry) -> ControlFlow<()> + Send),
}

#[derive(Clone, Copy)]
struct SnapshotReachCache {
    replid: ReplicationId,
    /// The end of the last stretch without a break since it was asked.
    until: u64,
    /// Where it was asked.
    asked: u64,
    leads: bool,
}

type LogFlow = ControlFlow<()>;

impl LogReader<'_> {
    async fn emit_all(&mut self) -> Result<(), Error> {
        for (replid, firsts) in self.histories_in_range().await? {
            if self.emit_history(replid, &firsts).await?.is_break() {
                return Ok(());
            }
        }
        let ended = self.runs.finish();
        if self.emit_deletion_runs(ended).await?.is_continue() && self.side_events(Timestamp::MAX).await?.is_continue()
        {
            let _told = self.emit_waiting();
        }
        Ok(())
    }

    /// The histories that reach into the time asked for, oldest first. One server is followed at a time, so they don't
    /// overlap.
    async fn histories_in_range(&self) -> Result<Vec<(ReplicationId, Vec<u64>)>, Error> {
        let mut found = Vec::new();
        for (replid, firsts) in self.known.histories() {
            let Some(stretch) = self.first_readable_stretch(replid, firsts).await? else { continue };
            let late = self.question.until.is_some_and(|until| stretch.started_at > one_microsecond_later(until));
            if !late {
                found.push((stretch.started_at, replid, firsts.to_vec()));
            }
        }
        found.sort_unstable();
        Ok(found.into_iter().map(|(_, replid, firsts)| (replid, firsts)).collect())
    }

    /// The first stretch of a history that opens.
    async fn first_readable_stretch(
        &self,
        replid: ReplicationId,
        firsts: &[u64],
    ) -> Result<Option<StreamStretch>, Error> {
        for first in firsts {
            if let Some(stretch) = self.read_stretch(replid, *first).await? {
                return Ok(Some(stretch));
            }
        }
        Ok(None)
    }

    /// A stretch, unless retention was faster or it does not open.
    async fn read_stretch(&self, replid: ReplicationId, first: u64) -> Result<Option<StreamStretch>, Error> {
        match self.instance.stretch(&self.known, replid, first).await {
            Err(error) if error.is_integrity() => Ok(None),
            read => Ok(read?),
        }
    }

    async fn emit_history(&mut self, replid: ReplicationId, firsts: &[u64]) -> Result<LogFlow, Error> {
        let begin = self.first_stretch_in_range(replid, firsts).await?;
        let mut is_first = begin == 0;
        for names in firsts.get(begin..).unwrap_or_default().chunks(MAX_PARALLEL_STRETCH_READS) {
            let read = names.iter().map(|first| self.instance.stretch(&self.known, replid, *first));
            for stretch in join_all(read).await {
                let stretch = match stretch {
                    Ok(Some(stretch)) => stretch,
                    // Retention may have been faster.
                    Ok(None) => {
                        (self.previous_end, is_first) = (None, false);
                        continue;
                    }
                    // What follows it shows what is missing.
                    Err(error) if error.is_integrity() => {
                        tracing::warn!(%error, "a stretch that does not open is passed over");
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                };
                if self.question.until.is_some_and(|until| stretch.started_at > one_microsecond_later(until)) {
                    return Ok(ControlFlow::Continue(()));
                }
                if self.emit_stretch(&stretch, std::mem::take(&mut is_first)).await?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// The stretch of a history before the first that may hold something of the time asked for: there may be a hole
    /// behind it.
    async fn first_stretch_in_range(&self, replid: ReplicationId, firsts: &[u64]) -> Result<usize, Error> {
        let Some(since) =
            self.question.since.map(|since| since.saturating_sub(MAX_CLOCK_DISORDER).unwrap_or(Timestamp::MIN))
        else {
            return Ok(0);
        };
        let (mut low, mut high) = (0, firsts.len());
        while low < high {
            let middle = low.midpoint(high);
            let Some(first) = firsts.get(middle) else { break };
            let stretch = self.read_stretch(replid, *first).await?;
            if stretch.is_some_and(|stretch| stretch.ended_at < since) {
                low = middle.saturating_add(1);
            } else {
                high = middle;
            }
        }
        Ok(low.saturating_sub(1))
    }

    async fn emit_stretch(&mut self, stretch: &StreamStretch, is_first: bool) -> Result<LogFlow, Error> {
        let before = self.previous_end;
        let overlap = before.filter(|end| end.replid == stretch.replid && end.offset > stretch.first);
        if overlap.is_some_and(|end| end.offset >= stretch.last) {
            return Ok(ControlFlow::Continue(()));
        }
        let goes_on = self.continues_previous(stretch);
        let over = if goes_on { Vec::new() } else { self.runs.finish() };
        if self.emit_deletion_runs(over).await?.is_break() || self.side_events(stretch.started_at).await?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if !goes_on && self.emit_missing_commands(before, stretch, is_first).await?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        if self.emit_history_change(stretch, goes_on).await?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        for notable in self.read_deletions(stretch, overlap.map(|end| end.offset)).await? {
            let time = stretch.time_at(notable.before);
            let over = self.runs.end_before(stretch.time_deletion(notable).from);
            if self.emit_deletion_runs(over).await?.is_break()
                || self.side_events(time).await?.is_break()
                || self.emit_flush_or_deletion(stretch, &notable, time).await?.is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        let over = self.runs.end_before(stretch.ended_at);
        self.emit_deletion_runs(over).await
    }

    /// What stands out in a stretch, or in what comes after offset `from`; its bytes are read only where its metadata
    /// does not say.
    async fn read_deletions(&self, stretch: &StreamStretch, from: Option<u64>) -> Result<Vec<Deletion>, Error> {
        let wanted = |kind: LogEntryKind| self.question.kinds.is_empty() || self.question.kinds.contains(&kind);
        if ![LogEntryKind::FlushAll, LogEntryKind::FlushDb, LogEntryKind::Delete].into_iter().any(wanted) {
            return Ok(Vec::new());
        }
        let says_all = |told: &StretchDeletions| from.is_none() && (told.pieces || !wanted(LogEntryKind::Delete));
        let told = stretch.notable.clone().filter(says_all);
        let notables = match told {
            Some(told) => told,
            None if stretch.writes == 0 => return Ok(Vec::new()),
            None => {
                let bytes = match self.instance.read_stretch_bytes(stretch).await {
                    Ok(bytes) => bytes,
                    Err(error) if error.is_integrity() => {
                        tracing::warn!(%error, "a stretch does not open, so what was deleted in it is not told");
                        return Ok(Vec::new());
                    }
                    Err(error) => return Err(error.into()),
                };
                let looked = stretch.clone();
                let from = from.unwrap_or(stretch.first);
                let read = move || looked.scan_deletions(bytes.get(..stretch_bytes(&looked)).unwrap_or(&bytes), from);
                let read = run_blocking(read).await?;
                read.map_err(|error| vault::VaultError::MalformedContent {
                    name: self.instance.name().to_string(),
                    key: self.instance.layout().streams_name(),
                    why: error.to_string(),
                })?
            }
        };
        if notables.more {
            let (replid, first, fewer_than) = (stretch.replid, stretch.first, notables.floor);
            tracing::warn!(%replid, first, fewer_than, "more happened in this stretch than is listed: small deletions \
                are left out");
        }
        Ok(notables.found)
    }

    async fn emit_flush_or_deletion(
        &mut self,
        stretch: &StreamStretch,
        notable: &Deletion,
        time: Timestamp,
    ) -> Result<LogFlow, Error> {
        let (replid, offset) = (stretch.replid, notable.before);
        let kind = match notable.what {
            DeletionKind::FlushAll => LogEntryKind::FlushAll,
            DeletionKind::FlushDb => LogEntryKind::FlushDb,
            DeletionKind::Delete => return self.add_deletion(stretch, notable).await,
        };
        self.runs.record_flush(notable);
        let happening = LogEntry {
            offset: Some(offset),
            replid: Some(replid.to_string()),
            database: (kind != LogEntryKind::FlushAll).then_some(notable.db),
            commands: Some(notable.commands),
            detail: self.describe_deleted(kind, notable, replid, time),
            target: self.restore_target(replid, offset).await?,
            ..bare_event(kind, time)
        };
        Ok(self.emit(happening))
    }

    async fn add_deletion(&mut self, stretch: &StreamStretch, notable: &Deletion) -> Result<LogFlow, Error> {
        let (nth, replid) = (self.next_sequence(), stretch.replid);
        let (over, begins) = self.runs.add(DeletionRun {
            sequence: nth,
            replid,
            piece: stretch.time_deletion(*notable),
            usual_rate: None,
        });
        let told = self.emit_deletion_runs(over).await?;
        if begins {
            let target = self.restore_target(replid, notable.before).await?;
            self.targets.insert(nth, target);
        }
        Ok(told)
    }

    /// Tells deletions that are over.
    async fn emit_deletion_runs(&mut self, runs: Vec<DeletionRun>) -> Result<LogFlow, Error> {
        for DeletionRun { sequence: nth, replid, piece, usual_rate: usual } in runs {
            let (asked, notable) = (self.targets.remove(&nth), piece.notable);
            let happening = LogEntry {
                end_time: Some(piece.to),
                offset: Some(notable.before),
                replid: Some(replid.to_string()),
                database: Some(notable.db),
                keys: Some(notable.keys),
                commands: Some(notable.commands),
                detail: usual.map(|(keys, since)| format!("with {keys} a second before, since {since:.0}")),
                ..bare_event(LogEntryKind::Delete, piece.from)
            };
            if !self.question.matches(&happening) {
                continue;
            }
            let target = match asked {
                Some(target) => target,
                None => self.restore_target(replid, notable.before).await?,
            };
            self.waiting.insert(nth, truncate_times(LogEntry { target, ..happening }));
        }
        Ok(self.emit_waiting())
    }

    /// What the newest snapshot before says of what was emptied: the stream does not say how much it was.
    fn describe_deleted(
        &self,
        kind: LogEntryKind,
        notable: &Deletion,
        replid: ReplicationId,
        time: Timestamp,
    ) -> Option<String> {
        let before =
            |s: &&SnapshotManifest| s.replid == Some(replid) && s.offset.is_some_and(|offset| offset <= notable.before);
        let snapshot = self.snapshots.iter().rev().find(before)?;
        let keys = match kind {
            LogEntryKind::FlushAll => snapshot.walk.keys(),
            _ => snapshot.walk.databases.get(&u64::from(notable.db)).map_or(0, |database| database.keys),
        };
        let times = if notable.commands > 1 { format!("{} times; ", notable.commands) } else { String::new() };
        let word = if keys == 1 { "key" } else { "keys" };
        let ago = format_largest_unit(time.duration_since(snapshot.at));
        Some(format!("{times}the snapshot {ago} before had {keys} {word}"))
    }

    /// A stretch that comes from another server, or from the same one after a restart.
    async fn emit_history_change(&mut self, stretch: &StreamStretch, goes_on: bool) -> Result<LogFlow, Error> {
        let run = stretch.run.as_ref().map(|run| (run.server.as_str(), run.id.as_str()));
        let restart = run.and_then(|(server, id)| self.restart_event(server, id, stretch.started_at));
        let happening = match (restart, stretch.follows) {
            (Some(restart), _) => restart,
            (None, Some(follows)) => {
                let server = run.map_or_else(String::new, |(server, _)| format!(", now from {server}"));
                let detail = format!(
                    "history {} goes on as {}{server}",
                    short_replid(follows.replid),
                    short_replid(stretch.replid)
                );
                LogEntry { detail: Some(detail), ..bare_event(LogEntryKind::Failover, stretch.started_at) }
            }
            (None, None) => return Ok(ControlFlow::Continue(())),
        };
        let (replid, offset) = (stretch.replid, stretch.first);
        let place = LogEntry { offset: Some(offset), replid: Some(replid.to_string()), ..happening };
        // After a break there is nothing to go back to but what the break itself is told with.
        let target = if goes_on { self.restore_target(replid, offset).await? } else { None };
        Ok(self.emit(LogEntry { target, ..place }))
    }

    /// Notes which run of a server this is; says so if it was another one before.
    fn restart_event(&mut self, server: &str, id: &str, time: Timestamp) -> Option<LogEntry> {
        let before = self.last_run_ids.insert(server.to_owned(), id.to_owned()).filter(|before| before != id)?;
        let cut = |id: &str| id.chars().take(8).collect::<String>();
        let detail = format!("{server}: run {} instead of {}", cut(id), cut(&before));
        Some(LogEntry { detail: Some(detail), ..bare_event(LogEntryKind::Restart, time) })
    }

    /// Tells what is recorded beside the stream up to `time`.
    async fn side_events(&mut self, time: Timestamp) -> Result<LogFlow, Error> {
        while let Some(next) = self.side_events.pop_if(|next| next.time() <= time) {
            let told = match next {
                SideEvent::Gap(gap) => self.emit_gap(gap).await?,
                SideEvent::Snapshot(snapshot) => self.queue_snapshot(&snapshot),
            };
            if told.is_break() {
                return Ok(told);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    async fn emit_gap(&mut self, gap: Gap) -> Result<LogFlow, Error> {
        let known = gap.until.map_or_else(String::new, |until| format!("nothing is known since {until:.3}; "));
        let happening = LogEntry {
            offset: Some(gap.offset),
            replid: Some(gap.replid.to_string()),
            detail: Some(format!("{known}{}", gap.reason)),
            ..bare_event(LogEntryKind::Gap, gap.noticed_at)
        };
        // Looked up only for those that are told.
        let target =
            if self.question.matches(&happening) { self.restore_target(gap.replid, gap.offset).await? } else { None };
        Ok(self.emit(LogEntry { target, ..happening }))
    }

    fn queue_snapshot(&mut self, snapshot: &SnapshotManifest) -> LogFlow {
        let (server, run) = match (&snapshot.origin, &snapshot.run_id) {
            (SnapshotOrigin::Replication { server, .. }, Some(run)) => (server, run),
            _ => return self.emit_snapshot(snapshot),
        };
        let restart = self.restart_event(server, run, snapshot.at);
        if let Some(restart) = restart
            && self.emit(restart).is_break()
        {
            return ControlFlow::Break(());
        }
        self.emit_snapshot(snapshot)
    }

    fn emit_snapshot(&mut self, snapshot: &SnapshotManifest) -> LogFlow {
        let place = snapshot.replid.zip(snapshot.offset);
        let happening = LogEntry {
            offset: snapshot.offset,
            replid: snapshot.replid.map(|replid| replid.to_string()),
            keys: Some(snapshot.walk.keys()),
            detail: Some(snapshot.label.clone()),
            target: Some(match place {
                Some((replid, offset)) => target_offset_option(replid, offset),
                None => format!("--target-immediate --backup {}", snapshot.label),
            }),
            ..bare_event(LogEntryKind::Snapshot, snapshot.at)
        };
        self.emit(happening)
    }

    /// The place of what comes next.
    fn next_sequence(&mut self) -> u64 {
        self.next_sequence = self.next_sequence.saturating_add(1);
        self.next_sequence
    }

    fn emit(&mut self, happening: LogEntry) -> LogFlow {
        if !self.question.matches(&happening) {
            return ControlFlow::Continue(());
        }
        let nth = self.next_sequence();
        self.waiting.insert(nth, truncate_times(happening));
        self.emit_waiting()
    }

    /// Tells what need not wait any longer.
    fn emit_waiting(&mut self) -> LogFlow {
        let first = self.runs.first_open_offset().unwrap_or(u64::MAX);
        while let Some(next) = self.waiting.first_entry() {
            if *next.key() > first && self.waiting.len() <= MAX_WAITING_EVENTS {
                break;
            }
            let Some((_, happening)) = self.waiting.pop_first() else { break };
            if (self.emit_entry)(happening).is_break() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    /// Tells a hole before a stretch that does not go on from the one before.
    async fn emit_missing_commands(
        &mut self,
        before: Option<StretchEnd>,
        stretch: &StreamStretch,
        is_first: bool,
    ) -> Result<LogFlow, Error> {
        let found = missing_commands::find_missing_before(stretch, is_first, before, &self.snapshots, &self.gaps);
        let Some(hole) = found else { return Ok(ControlFlow::Continue(())) };
        let MissingCommands { replid, from, to, since } = hole;
        let place =
            from.map_or_else(|| format!("before offset {to}"), |from| format!("between offset {from} and {to}"));
        let until = stretch.started_at;
        let happening = LogEntry {
            end_time: Some(until),
            offset: from,
            replid: Some(replid.to_string()),
            detail: Some(format!(
                "commands {place} of {} are missing in the repositories, until {until:.3}",
                short_replid(replid)
            )),
            ..bare_event(LogEntryKind::Gap, since)
        };
        let target = match from.filter(|_| self.question.matches(&happening)) {
            Some(from) => self.restore_target(replid, from).await?,
            None => None,
        };
        Ok(self.emit(LogEntry { target, ..happening }))
    }

    /// Whether a stretch goes on from the one before. A snapshot that leads to the one then leads to the other.
    fn continues_previous(&mut self, stretch: &StreamStretch) -> bool {
        let follows = stretch.follows.map(|follows| (follows.replid, follows.offset));
        let end = StretchEnd { replid: stretch.replid, offset: stretch.last, at: stretch.ended_at };
        let goes_on = self.previous_end.replace(end).is_some_and(|end| {
            (end.replid == stretch.replid && (stretch.first..=stretch.last).contains(&end.offset))
                || follows == Some((end.replid, end.offset))
        });
        self.reach_cache = self.reach_cache.filter(|_| goes_on).map(|led| SnapshotReachCache {
            replid: stretch.replid,
            until: stretch.last,
            ..led
        });
        goes_on
    }

    /// The option that restores to a place, if any snapshot leads there.
    async fn restore_target(&mut self, replid: ReplicationId, offset: u64) -> Result<Option<String>, Error> {
        let newer = |asked: u64| {
            let between = |s: &SnapshotManifest| s.offset.is_some_and(|at| at > asked && at <= offset);
            self.snapshots.iter().any(between)
        };
        let led = self.reach_cache.filter(|led| led.replid == replid && (led.asked..=led.until).contains(&offset));
        let leads = match led {
            Some(led) if led.leads || !newer(led.asked) => led.leads,
            _ => {
                let leads = self.instance.any_snapshot_reaches(&self.snapshots, &self.known, replid, offset).await?;
                let here = self.previous_end.filter(|end| end.replid == replid && end.offset >= offset);
                self.reach_cache = Some(SnapshotReachCache {
                    replid,
                    until: here.map_or(offset, |end| end.offset),
                    asked: offset,
                    leads,
                });
                leads
            }
        };
        Ok(leads.then(|| target_offset_option(replid, offset)))
    }
}

fn one_microsecond_later(time: Timestamp) -> Timestamp {
    time.saturating_add(MAX_CLOCK_DISORDER).unwrap_or(Timestamp::MAX)
}

fn stretch_bytes(stretch: &StreamStretch) -> usize {
    usize::try_from(stretch.last.saturating_sub(stretch.first)).unwrap_or(usize::MAX)
}

fn target_offset_option(replid: ReplicationId, offset: u64) -> String {
    format!("--target-offset {}", StreamPosition::new(replid, offset))
}
