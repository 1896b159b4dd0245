//! From a record's event to what people call it.

use std::collections::BTreeSet;

use super::names::{FIRST_NORMAL, Names, RelationKind};
use super::{Error, Happening, Kind};
use crate::archive::lookup::Lookup;
use crate::archive::reindex::Shelf;
use crate::postgres::lsn::Lsn;
use crate::postgres::time::PgTime;
use crate::postgres::timeline::{TimelineId, TimelinePath};
use crate::wal::event::{
    Checkpoint, Ending, Event, EventKind, ObjectKind, Parameters, RelationId, Removal, WalLevel, Xid,
};
use crate::wal::page::Major;

/// The kinds of events that a story is made of ([`EventKind::tag`]): all but switches, `full_page_writes` and emptied files. VACUUM empties
/// files, too, and a file that TRUNCATE empties in place was made by the same transaction: nobody else ever saw what was in it.
pub const KINDS: [u8; 10] = [1, 2, 3, 4, 5, 8, 9, 10, 11, 13];

/// What it takes to tell one event after the other.
pub(super) struct Teller<'a> {
    lookup: &'a Lookup<'a, Shelf>,
    path: &'a TimelinePath,
    newest: TimelineId,
    names: Names,
    /// The time of the last event that carries one.
    clock: Option<PgTime>,
    parameters: Option<Parameters>,
    /// The transaction whose TRUNCATE was told by the record that `wal_level = logical` adds: its commit says the same again.
    truncated: Option<Xid>,
}

impl<'a> Teller<'a> {
    pub(super) fn new(lookup: &'a Lookup<'a, Shelf>, path: &'a TimelinePath, newest: TimelineId) -> Teller<'a> {
        Teller { lookup, path, newest, names: Names::default(), clock: None, parameters: None, truncated: None }
    }

    /// Takes the next event of the log in, and says what there is to tell by now.
    pub(super) fn hear(&mut self, event: &Event) -> Result<Vec<Happening>, Error> {
        self.clock = time_of(&event.kind).or(self.clock);
        Ok(match &event.kind {
            EventKind::Checkpoint(checkpoint) => self.checkpoint(event, checkpoint),
            EventKind::Parameters(parameters) => self.parameters(event, *parameters)?,
            EventKind::RestorePoint { name, time } => {
                vec![Happening { detail: Some(name.clone()), ..self.at(event, Kind::RestorePoint, Some(*time)) }]
            }
            EventKind::EndOfRecovery { timeline, previous, time } => {
                vec![self.promotion(event, *previous, *timeline, Some(*time))]
            }
            EventKind::BackupEnd { start } => {
                let detail = Some(format!("begun at {start}"));
                let time = self.time_before(event.lsn)?;
                vec![Happening { detail, target: None, ..self.at(event, Kind::Backup, time) }]
            }
            EventKind::OverwriteContrecord { overwritten, time } => {
                let detail = Some(format!("the record at {overwritten} was cut"));
                vec![Happening { detail, ..self.at(event, Kind::Crash, Some(*time)) }]
            }
            EventKind::Drop(removal) => self.dropped(event, removal),
            EventKind::Rewrite(removal) => self.removed(event, removal)?,
            EventKind::Truncate { database, relations, total, cascade, .. } => {
                self.truncated(event, (*database, relations, *total), *cascade)?
            }
            EventKind::DropDatabase { database } => self.drop_database(event, *database)?,
            EventKind::Switch | EventKind::FullPageWrites { .. } | EventKind::FileEmptied { .. } => Vec::new(),
        })
    }

    /// An event that took effect where it stands.
    fn at(&self, event: &Event, kind: Kind, time: Option<PgTime>) -> Happening {
        Happening {
            time,
            lsn: event.lsn,
            timeline: self.path.timeline_at(event.lsn),
            xid: Some(event.xid).filter(|xid| *xid != Xid::NONE),
            kind,
            database: None,
            relation: None,
            rows: None,
            detail: None,
            target: Some(self.before(event.lsn)),
        }
    }

    /// The options that restore to just before what took effect at `lsn`.
    fn before(&self, lsn: Lsn) -> String {
        match self.path.target() {
            timeline if timeline == self.newest => format!("--before-event {lsn}"),
            timeline => format!("--before-event {lsn} --target-timeline {timeline}"),
        }
    }

    /// The time of what stands before `lsn`, for what carries none.
    fn time_before(&self, lsn: Lsn) -> Result<Option<PgTime>, Error> {
        let commit = self.lookup.commit_before(self.path, lsn)?.map(|commit| commit.time);
        Ok(commit.max(self.clock))
    }

    fn checkpoint(&self, event: &Event, checkpoint: &Checkpoint) -> Vec<Happening> {
        if let Some((previous, timeline)) = event.kind.new_timeline() {
            return vec![self.promotion(event, previous, timeline, Some(checkpoint.time))];
        }
        if checkpoint.shutdown {
            return vec![Happening { target: None, ..self.at(event, Kind::Restart, Some(checkpoint.time)) }];
        }
        let detail = Some(format!("redo from {}", checkpoint.redo));
        vec![Happening { detail, target: None, ..self.at(event, Kind::Checkpoint, Some(checkpoint.time)) }]
    }

    fn promotion(&self, event: &Event, from: TimelineId, to: TimelineId, time: Option<PgTime>) -> Happening {
        let detail = Some(format!("timeline {from} became {to}"));
        Happening { detail, timeline: to, target: None, ..self.at(event, Kind::Promotion, time) }
    }

    fn parameters(&mut self, event: &Event, now: Parameters) -> Result<Vec<Happening>, Error> {
        let detail = Some(changes(self.parameters.replace(now), now));
        let time = self.time_before(event.lsn)?;
        Ok(vec![Happening { detail, target: None, ..self.at(event, Kind::Parameters, time) }])
    }

    /// A commit that dropped objects. What belongs to a table goes with it and is no event by itself.
    fn dropped(&self, event: &Event, removal: &Removal) -> Vec<Happening> {
        let relations = removal.objects.iter().filter(|object| object.kind == ObjectKind::Relation);
        let oids = relations.filter_map(|object| Some((object.database, u32::try_from(object.object).ok()?)));
        let base = self.at(event, Kind::Drop, Some(removal.time));
        let more = removal.objects_total as usize > removal.objects.len();
        self.each_table(&base, oids, more)
    }

    /// A commit that removed files, and does not say what they were.
    fn removed(&self, event: &Event, removal: &Removal) -> Result<Vec<Happening>, Error> {
        if self.truncated == Some(event.xid) {
            return Ok(Vec::new());
        }
        let lists_drops = self.lookup.major_at(self.path, event.lsn)?.is_none_or(|major| major >= Major::V15);
        let kind = if lists_drops { Kind::TruncateOrRewrite } else { Kind::DropOrTruncate };
        let base = self.at(event, kind, Some(removal.time));
        let owner = |file: &RelationId| (file.database, self.names.owner(*file).unwrap_or(file.filenode));
        let more = removal.files_total as usize > removal.files.len();
        Ok(self.each_table(&base, removal.files.iter().map(owner), more))
    }

    /// `base` once for each table among `relations`; what nothing is known of makes one line.
    fn each_table(&self, base: &Happening, relations: impl Iterator<Item = (u32, u32)>, more: bool) -> Vec<Happening> {
        let mut told = Vec::new();
        let mut unknown: BTreeSet<(u32, u32)> = BTreeSet::new();
        let (mut last, mut known) = (None, false);
        for (database, oid) in relations {
            let Some(relation) = self.names.relation(database, oid) else {
                unknown.insert((database, oid));
                continue;
            };
            known = true;
            if matches!(relation.kind, RelationKind::Table | RelationKind::Sequence) && oid >= FIRST_NORMAL {
                let name = Some(self.names.spell(database, relation));
                told.push(Happening { database: Some(self.names.database(database)), relation: name, ..base.clone() });
                last = Some(database);
            }
        }
        if let Some((database, oid)) = unknown.first().filter(|_| !known) {
            let others = unknown.len().saturating_sub(1);
            let detail = (others > 0).then(|| format!("and {others} more that belong to it or went with it"));
            let (database, relation) = (Some(self.names.database(*database)), Some(oid.to_string()));
            told.push(Happening { database, relation, detail, ..base.clone() });
        }
        if let Some(first) = told.first_mut().filter(|_| more && last.is_some()) {
            first.detail = Some("and more than can be listed".to_owned());
        }
        told
    }

    /// TRUNCATE in a cluster of `wal_level = logical`, where a record names the tables; it takes effect with its transaction's commit.
    fn truncated(
        &mut self,
        event: &Event,
        (database, relations, total): (u32, &[u32], u32),
        cascade: bool,
    ) -> Result<Vec<Happening>, Error> {
        let Some(commit) = self.commit_of(event)? else { return Ok(Vec::new()) };
        self.truncated = Some(event.xid);
        let effect = Event { lsn: commit.lsn, ..event.clone() };
        let detail = cascade.then(|| "cascade".to_owned());
        let base = Happening { detail, ..self.at(&effect, Kind::Truncate, Some(commit.time)) };
        let more = total as usize > relations.len();
        Ok(self.each_table(&base, relations.iter().map(|oid| (database, *oid)), more))
    }

    /// DROP DATABASE removes the files before it commits, and since 2023 marks the database as invalid even before that, in its place
    /// (`dropdb`, `dbcommands.c`): nothing brings it back that replays either.
    fn drop_database(&self, event: &Event, database: u32) -> Result<Vec<Happening>, Error> {
        let time = match self.commit_of(event)? {
            Some(commit) => Some(commit.time),
            None => self.time_before(event.lsn)?,
        };
        let spoilt = self.lookup.invalidated_before(self.path, event.lsn, database)?;
        let database = Some(self.names.database(database));
        let event = Event { lsn: spoilt.unwrap_or(event.lsn), ..event.clone() };
        Ok(vec![Happening { database, ..self.at(&event, Kind::DropDatabase, time) }])
    }

    /// The commit of the event's transaction; `None` if it was aborted, or has not ended.
    fn commit_of(&self, event: &Event) -> Result<Option<Ending>, Error> {
        let ending = self.lookup.ending_of(self.path, event.lsn, event.xid)?;
        Ok(ending.filter(|ending| ending.kind.is_commit()))
    }
}

fn time_of(kind: &EventKind) -> Option<PgTime> {
    match kind {
        EventKind::Checkpoint(checkpoint) => Some(checkpoint.time),
        EventKind::RestorePoint { time, .. }
        | EventKind::EndOfRecovery { time, .. }
        | EventKind::OverwriteContrecord { time, .. } => Some(*time),
        EventKind::Drop(removal) | EventKind::Rewrite(removal) => Some(removal.time),
        _ => None,
    }
}

/// The settings that differ, `max_connections 100 → 200`; all of them where nothing is known before.
fn changes(before: Option<Parameters>, now: Parameters) -> String {
    let level = |parameters: Parameters| match parameters.wal_level {
        WalLevel::Minimal => "minimal",
        WalLevel::Replica => "replica",
        WalLevel::Logical => "logical",
    };
    let switch = |on: bool| if on { "on" } else { "off" };
    let all = |p: Parameters| {
        [
            ("wal_level", level(p).to_owned()),
            ("max_connections", p.max_connections.to_string()),
            ("max_worker_processes", p.max_worker_processes.to_string()),
            ("max_wal_senders", p.max_wal_senders.to_string()),
            ("max_prepared_transactions", p.max_prepared_transactions.to_string()),
            ("max_locks_per_transaction", p.max_locks_per_transaction.to_string()),
            ("wal_log_hints", switch(p.wal_log_hints).to_owned()),
            ("track_commit_timestamp", switch(p.track_commit_timestamp).to_owned()),
        ]
    };
    let new = all(now);
    let changed: Vec<String> = match before {
        Some(before) => all(before)
            .into_iter()
            .zip(new)
            .filter(|(before, now)| before != now)
            .map(|((name, before), (_, now))| format!("{name} {before} → {now}"))
            .collect(),
        None => new.into_iter().map(|(name, value)| format!("{name} {value}")).collect(),
    };
    changed.join(", ")
}
