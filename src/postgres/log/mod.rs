//! What happened: the events of the log in order, each with its time, whom it befell, and the target that restores to
//! just before it.
//!
//! Everything comes from the index and the digests; the server is not asked. A record says who did it by number: a
//! transaction, a database, a file. [`relation_names`] knows what these were called at that moment, and [`describe`]
//! makes of a record what people call it: a DROP, a TRUNCATE.

mod transactions;
mod entry;
mod error;
pub mod relation_names;
pub mod describe;

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::base::blocking::run_blocking;
use crate::postgres::archive::lookup::WalLookup;
use crate::postgres::archive::manifest::BackupSummary;
use crate::postgres::archive::name_list::NameList;
use crate::postgres::archive::reindex::ArchiveSegments;
use crate::postgres::archive::spool::Spool;
use crate::postgres::archive::{Archive, inventory};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::{TimelineHistory, TimelineId, TimelinePath};
use crate::postgres::index::{IndexEntry, WalIndex};
use crate::vault::seal::SealedKind as ObjectKind;

pub use entry::{LogEntry, LogEntryKind};
pub use error::LogError;

use describe::EntryDescriber;

/// Rows of a table that a transaction must change to be told, unless asked otherwise.
pub const DEFAULT_MIN_ROWS: u64 = 1000;

/// Events read from the index at a time.
const EVENTS_PER_READ: usize = 2048;

/// Commit times are in no order. An event so much earlier than what stands before it in the log is not looked for.
const COMMIT_DISORDER_MICROS: i64 = 3_600_000_000;

/// What is asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogQuery {
    /// Only what happened then or later.
    pub since: Option<PgTime>,
    /// Only what happened then or earlier.
    pub until: Option<PgTime>,
    /// Only these kinds; the usual ones if empty.
    pub kinds: Vec<LogEntryKind>,
    /// Only what befell this table: `schema.table`, `table`, or an OID.
    pub relation: Option<String>,
    /// Rows of a table that a transaction must change to be told.
    pub rows: u64,
    /// The timeline to look back from; the newest if none is given.
    pub timeline: Option<TimelineId>,
}

impl LogQuery {
    /// Whether this is among what was asked for.
    #[must_use]
    pub fn matches(&self, happening: &LogEntry) -> bool {
        let after =
            self.since.is_none_or(|since| happening.time.is_none_or(|time| latest_possible_time(time) >= since));
        let before = self.until.is_none_or(|until| happening.time.is_none_or(|time| time <= until));
        let kind = match self.kinds.as_slice() {
            [] => happening.kind.is_shown_by_default(),
            kinds => kinds.iter().any(|wanted| happening.kind.matches_kind(*wanted)),
        };
        let relation = self.relation.as_ref().is_none_or(|wanted| {
            happening.relation.as_ref().is_some_and(|name| name == wanted || without_schema(name) == wanted)
        });
        after && before && kind && relation
    }
}

/// Checkpoints carry whole seconds: what they say was then may have been up to a second later.
fn latest_possible_time(time: PgTime) -> PgTime {
    let micros = time.pg_micros();
    if micros % 1_000_000 == 0 { PgTime::from_pg_micros(micros.saturating_add(999_999)) } else { time }
}

/// The name behind the schema. A quoted name may hold dots.
fn without_schema(name: &str) -> &str {
    let schema_end = match name.strip_prefix('"') {
        Some(quoted) => quoted.find("\".").map(|at| at.saturating_add(2)),
        None => name.find('.'),
    };
    schema_end.and_then(|at| name.get(at.saturating_add(1)..)).unwrap_or(name)
}

/// Tells what happened in a cluster, in log order, as far as the archive and this machine's spool know. `tell` is
/// called on a thread where it may block, and can end the story.
///
/// # Errors
/// [`LogError`].
pub async fn read_log(
    archive: &Arc<Archive>,
    index: &Arc<WalIndex>,
    spool: Option<Spool>,
    question: LogQuery,
    tell: impl FnMut(LogEntry) -> ControlFlow<()> + Send + 'static,
) -> Result<(), LogError> {
    let cluster = archive.cluster().to_string();
    let Some(identity) = archive.identity().await? else { return Err(LogError::EmptyArchive { cluster }) };
    let newest = archive.timelines().await?.into_iter().max().unwrap_or(TimelineId::FIRST);
    let path = timeline_path(archive, question.timeline.unwrap_or(newest)).await?;
    let lists = name_lists(archive, &path).await?;
    let runtime = tokio::runtime::Handle::current();
    let shelf = ArchiveSegments::new(Arc::clone(archive), runtime.clone(), identity.segment_size);
    let histories = inventory::timeline_histories(archive).await?;
    let growing = inventory::unfinished_segments(archive, index, spool, &histories).await?;
    let (index, archive) = (Arc::clone(index), Arc::clone(archive));
    let told = run_blocking(move || {
        let laid_over = growing.iter().map(|segment| IndexEntry { digest: &segment.digest, stored: 0 });
        let view = index.view_with(&cluster, laid_over)?;
        let lookup = WalLookup::new(view, shelf.with_unfinished(growing.clone()));
        let names = |label: &str| Ok(runtime.block_on(archive.name_list(label))?);
        LogReader { lookup: &lookup, path: &path, newest, query: &question, lists: &lists, names: &names }.run(tell)
    });
    told.await?
}

async fn timeline_path(archive: &Archive, timeline: TimelineId) -> Result<TimelinePath, LogError> {
    if timeline == TimelineId::FIRST {
        return Ok(TimelineHistory::first().path());
    }
    archive.history(timeline).await?.map(|history| history.path()).ok_or(LogError::UnknownTimeline { timeline })
}

/// Where backups began that have a list of names, on the path and in log order, and their labels.
async fn name_lists(archive: &Archive, path: &TimelinePath) -> Result<Vec<(Lsn, String)>, LogError> {
    let mut found = Vec::new();
    for object in archive.vault().list(&archive.layout().backups(), None).await?.objects {
        let trailer = match archive.vault().get_trailer(ObjectKind::Manifest, &object.key).await {
            Ok(trailer) => trailer,
            Err(error) if error.is_integrity() => None,
            Err(error) => return Err(error.into()),
        };
        let summary = trailer.and_then(|trailer| BackupSummary::from_bytes(trailer.metadata()).ok());
        let on_path = summary.filter(|summary| path.contains(summary.timeline, summary.start_lsn));
        found.extend(on_path.map(|summary| (summary.start_lsn, summary.label)));
    }
    found.sort_unstable();
    Ok(found)
}

/// One telling.
struct LogReader<'a> {
    lookup: &'a WalLookup<'a, ArchiveSegments>,
    path: &'a TimelinePath,
    newest: TimelineId,
    query: &'a LogQuery,
    lists: &'a [(Lsn, String)],
    names: &'a dyn Fn(&str) -> Result<Option<NameList>, LogError>,
}

impl LogReader<'_> {
    fn run(&self, mut tell: impl FnMut(LogEntry) -> ControlFlow<()>) -> Result<(), LogError> {
        let (from, to) = self.queried_range()?;
        let mut teller = EntryDescriber::new(self.lookup, self.path, self.newest, self.query.rows);
        // Names are those of the last list before, with what changed since; before the first list, those of that one.
        let known = self.lists.partition_point(|(start, _)| *start <= from);
        let mut lists = self.lists.get(known.saturating_sub(1)..).unwrap_or_default().iter().peekable();
        let begin = lists.peek().map_or(from, |(start, _)| from.min(*start));
        if let Some((_, label)) = lists.peek().filter(|(start, _)| *start > begin) {
            self.read_names(&mut teller, label, false)?;
        }
        let mut begin = begin;
        loop {
            let events = self.lookup.events(self.path, &describe::LOG_EVENT_TAGS, begin, to, EVENTS_PER_READ)?;
            for event in &events {
                while let Some((_, label)) = lists.next_if(|(start, _)| *start <= event.lsn) {
                    self.read_names(&mut teller, label, true)?;
                }
                if event.lsn < from {
                    teller.observe_event(event)?;
                } else if self.emit_matching(teller.describe_event(event)?, &mut tell).is_break() {
                    return Ok(());
                }
            }
            match events.last() {
                Some(last) if events.len() >= EVENTS_PER_READ => begin = last.lsn.saturating_add(1),
                Some(_) | None => break,
            }
        }
        let _told = self.emit_matching(teller.finish()?, &mut tell);
        Ok(())
    }

    /// Tells those that were asked for.
    fn emit_matching(
        &self,
        happenings: Vec<LogEntry>,
        tell: &mut impl FnMut(LogEntry) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        happenings.into_iter().filter(|happening| self.query.matches(happening)).try_for_each(tell)
    }

    fn read_names(&self, teller: &mut EntryDescriber<'_>, label: &str, here: bool) -> Result<(), LogError> {
        if let Some(names) = (self.names)(label)? {
            teller.apply_name_list(&names, here);
        }
        Ok(())
    }

    /// The stretch of log in which what is asked for stands.
    fn queried_range(&self) -> Result<(Lsn, Lsn), LogError> {
        let from = match self.query.since {
            Some(since) => self.lookup.search_start(self.path, since)?,
            None => Lsn::INVALID,
        };
        let to = match self.query.until {
            Some(until) => {
                let late = PgTime::from_pg_micros(until.pg_micros().saturating_add(COMMIT_DISORDER_MICROS));
                self.lookup.ending_after(self.path, from, late)?.map_or(Lsn::MAX, |ending| ending.lsn)
            }
            None => Lsn::MAX,
        };
        Ok((from, to))
    }
}
