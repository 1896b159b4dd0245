//! From a record's event to what people call it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::entry::{LogEntry, LogEntryKind};
use super::error::LogError;
use super::relation_names::{FIRST_NORMAL_OID, RelationKind, RelationNames};
use super::transactions::{OpenTransactions, TransactionChanges};
use crate::postgres::archive::lookup::WalLookup;
use crate::postgres::archive::name_list::NameList;
use crate::postgres::archive::reindex::ArchiveSegments;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::{TimelineId, TimelinePath};
use crate::postgres::wal::catalog::{Catalog, CatalogChange, RowCounts};
use crate::postgres::wal::event::{
    CheckpointRecord, DroppedObjectKind, RelFileLocator, RemovedObjects, TransactionEnd, WalEvent, WalEventKind,
    WalLevel, WalParameters, Xid,
};
use crate::postgres::wal::page::MajorVersion;

/// The kinds of events that a story is made of ([`WalEventKind::tag`]): all but switches, `full_page_writes` and
/// emptied files. VACUUM empties files, too, and a file that TRUNCATE empties in place was made by the same
/// transaction: nobody else ever saw what was in it.
pub const LOG_EVENT_TAGS: [u8; 14] = [1, 2, 3, 4, 5, 8, 9, 10, 11, 13, 14, 15, 16, 17];

/// Transactions whose dropped and rewritten relations are remembered until they commit.
const MAX_REMEMBERED_TRANSACTIONS: usize = 4096;

/// What it takes to tell one event after the other.
pub(super) struct EntryDescriber<'a> {
    lookup: &'a WalLookup<'a, ArchiveSegments>,
    path: &'a TimelinePath,
    newest: TimelineId,
    names: RelationNames,
    work: OpenTransactions<'a>,
    major: Option<MajorVersion>,
    /// Relations whose rows a transaction deleted from `pg_class`, by database and OID.
    gone: HashMap<Xid, BTreeSet<(u32, u32)>>,
    /// Files that a transaction wrote page by page, by database and number.
    written: HashMap<Xid, BTreeSet<(u32, u32)>>,
    /// The transaction that last wrote tables anew, and these tables: their rows were copied, not changed.
    copied: Option<(Xid, BTreeSet<(u32, u32)>)>,
    /// The time of the last event that carries one.
    clock: Option<PgTime>,
    parameters: Option<WalParameters>,
    /// The transaction whose TRUNCATE was told by the record that `wal_level = logical` adds: its commit says the same
    /// again.
    truncated: Option<Xid>,
}

impl<'a> EntryDescriber<'a> {
    pub(super) fn new(
        lookup: &'a WalLookup<'a, ArchiveSegments>,
        path: &'a TimelinePath,
        newest: TimelineId,
        many: u64,
    ) -> EntryDescriber<'a> {
        EntryDescriber {
            lookup,
            path,
            newest,
            names: RelationNames::default(),
            work: OpenTransactions::new(lookup, path, many),
            major: None,
            gone: HashMap::new(),
            written: HashMap::new(),
            copied: None,
            clock: None,
            parameters: None,
            truncated: None,
        }
    }

    /// Takes in a list of names: one that was made about here, or one from later on, where there is none from before.
    pub(super) fn apply_name_list(&mut self, names: &NameList, here: bool) {
        self.names.apply_name_list(names, here);
    }

    /// What is left to tell at the end of the log.
    pub(super) fn finish(&mut self) -> Result<Vec<LogEntry>, LogError> {
        self.transactions_before(Lsn::MAX)
    }

    /// Transactions that committed before `lsn` and changed many rows.
    fn transactions_before(&mut self, lsn: Lsn) -> Result<Vec<LogEntry>, LogError> {
        let mut told = Vec::new();
        while let Some((xid, commit, work)) = self.work.next_committed_before(lsn)? {
            told.extend(self.row_entries(xid, &commit, &work));
        }
        Ok(told)
    }

    /// Takes in what has no line of its own: names, rows, and what is under way before the story begins.
    pub(super) fn observe_event(&mut self, event: &WalEvent) -> Result<(), LogError> {
        match &event.kind {
            WalEventKind::Rows { file, counts, ended } => {
                if counts.pages > 0 {
                    remember_relation(&mut self.written, event.xid, (file.database, file.filenode));
                }
                self.work.add_rows(event.lsn, event.xid, *file, *counts, *ended)
            }
            WalEventKind::Subtransactions { of } => self.work.join_subtransactions(event.lsn, event.xid, of),
            WalEventKind::Catalog(change) => self.apply_catalog_change(event, change),
            _ => Ok(()),
        }
    }

    fn apply_catalog_change(&mut self, event: &WalEvent, change: &CatalogChange) -> Result<(), LogError> {
        if self.major.is_none() {
            self.major = self.lookup.major_at(self.path, event.lsn)?;
        }
        let Some(major) = self.major else { return Ok(()) };
        let undone = !change.committed
            && self.lookup.ending_of(self.path, event.lsn, event.xid)?.is_some_and(|ending| !ending.kind.is_commit());
        if !undone
            && let Some(row) = self.names.apply_change(change, major)
            && change.catalog == Catalog::Class
        {
            remember_relation(&mut self.gone, event.xid, (change.database, row.oid));
        }
        Ok(())
    }

    /// A line for each table of which the transaction changed many rows, or one for all of it.
    fn row_entries(&self, xid: Xid, commit: &TransactionEnd, work: &TransactionChanges) -> Vec<LogEntry> {
        let stands = WalEvent { lsn: commit.lsn, end_lsn: commit.end_lsn, xid, kind: WalEventKind::Switch };
        let base = self.entry_at(&stands, LogEntryKind::LargeTransaction, Some(commit.time));
        let mut tables: Vec<(RelFileLocator, RowCounts)> =
            work.tables.iter().map(|(file, counts)| (*file, *counts)).collect();
        tables.sort_by_key(|(file, counts)| (std::cmp::Reverse(counts.rows()), file.database, file.filenode));
        let (mut told, mut all, mut shown) = (Vec::new(), 0_u64, 0_u64);
        let mut names = Vec::new();
        for (file, counts) in tables {
            let owner = (file.database, self.names.relation_of_file(file).unwrap_or(file.filenode));
            if self.copied.as_ref().is_some_and(|(by, tables)| *by == xid && tables.contains(&owner)) {
                continue;
            }
            let Some((database, relation)) = self.table_of(file) else { continue };
            all = all.saturating_add(counts.rows());
            for (kind, rows) in [(LogEntryKind::Delete, counts.deleted), (LogEntryKind::Update, counts.updated)] {
                if rows >= self.work.min_rows {
                    shown = shown.saturating_add(rows);
                    let (database, relation) = (Some(database.clone()), Some(relation.clone()));
                    told.push(LogEntry { kind, database, relation, rows: Some(rows), ..base.clone() });
                }
            }
            if counts.rows() > 0 {
                names.push((database, relation));
            }
        }
        if all >= self.work.large_transaction_rows() && shown < all / 2 {
            let (database, relation) = names.first().cloned().unzip();
            let others = names.len().saturating_sub(1);
            let detail = (others > 0).then(|| format!("and {others} more tables"));
            told.push(LogEntry { database, relation, rows: Some(all), detail, ..base });
        }
        told
    }

    /// Database and table that a file is of; `None` for what is no table of a user.
    fn table_of(&self, file: RelFileLocator) -> Option<(String, String)> {
        let oid = self.names.relation_of_file(file).unwrap_or(file.filenode);
        let relation = self.names.relation(file.database, oid);
        if oid < FIRST_NORMAL_OID || relation.is_some_and(|relation| relation.kind != RelationKind::Table) {
            return None;
        }
        let name =
            relation.map_or_else(|| oid.to_string(), |relation| self.names.qualified_name(file.database, relation));
        Some((self.names.database_name(file.database), name))
    }
    /// Takes the next event of the log in, and says what there is to tell by now.
    pub(super) fn describe_event(&mut self, event: &WalEvent) -> Result<Vec<LogEntry>, LogError> {
        let mut told = self.transactions_before(event.lsn)?;
        self.clock = time_in_event(&event.kind).or(self.clock);
        self.observe_event(event)?;
        told.append(&mut self.entries_for_event(event)?);
        Ok(told)
    }

    fn entries_for_event(&mut self, event: &WalEvent) -> Result<Vec<LogEntry>, LogError> {
        Ok(match &event.kind {
            WalEventKind::Checkpoint(checkpoint) => self.checkpoint_entries(event, checkpoint),
            WalEventKind::Parameters(parameters) => self.parameter_entries(event, *parameters)?,
            WalEventKind::RestorePoint { name, time } => {
                vec![LogEntry {
                    detail: Some(name.clone()),
                    ..self.entry_at(event, LogEntryKind::RestorePoint, Some(*time))
                }]
            }
            WalEventKind::EndOfRecovery { timeline, previous, time } => {
                vec![self.promotion_entry(event, *previous, *timeline, Some(*time))]
            }
            WalEventKind::BackupEnd { start } => {
                let detail = Some(format!("begun at {start}"));
                let time = self.time_before(event.lsn)?;
                vec![LogEntry { detail, target: None, ..self.entry_at(event, LogEntryKind::Backup, time) }]
            }
            WalEventKind::OverwriteContrecord { overwritten, time } => {
                let detail = Some(format!("the record at {overwritten} was cut"));
                vec![LogEntry { detail, ..self.entry_at(event, LogEntryKind::Crash, Some(*time)) }]
            }
            WalEventKind::Drop(removal) | WalEventKind::Rewrite(removal) => self.removal_entries(event, removal)?,
            WalEventKind::Truncate { database, relations, total, cascade, .. } => {
                self.truncate_entries(event, *database, relations, *total, *cascade)?
            }
            WalEventKind::DropDatabase { database } => self.drop_database_entries(event, *database)?,
            WalEventKind::CreateDatabase { database } => self.create_database_entries(event, *database)?,
            _ => Vec::new(),
        })
    }

    /// An event that took effect where it stands.
    fn entry_at(&self, event: &WalEvent, kind: LogEntryKind, time: Option<PgTime>) -> LogEntry {
        LogEntry {
            time,
            lsn: event.lsn,
            timeline: self.path.timeline_at(event.lsn),
            xid: Some(event.xid).filter(|xid| *xid != Xid::NONE),
            kind,
            database: None,
            relation: None,
            rows: None,
            detail: None,
            target: Some(self.target_before(event.lsn)),
        }
    }

    /// The options that restore to just before what took effect at `lsn`.
    fn target_before(&self, lsn: Lsn) -> String {
        match self.path.target() {
            timeline if timeline == self.newest => format!("--before-event {lsn}"),
            timeline => format!("--before-event {lsn} --target-timeline {timeline}"),
        }
    }

    /// The time of what stands before `lsn`, for what carries none.
    fn time_before(&self, lsn: Lsn) -> Result<Option<PgTime>, LogError> {
        let commit = self.lookup.commit_before(self.path, lsn)?.map(|commit| commit.time);
        Ok(commit.max(self.clock))
    }

    fn checkpoint_entries(&self, event: &WalEvent, checkpoint: &CheckpointRecord) -> Vec<LogEntry> {
        if let Some((previous, timeline)) = event.kind.new_timeline() {
            return vec![self.promotion_entry(event, previous, timeline, Some(checkpoint.time))];
        }
        if checkpoint.shutdown {
            return vec![LogEntry {
                target: None,
                ..self.entry_at(event, LogEntryKind::Restart, Some(checkpoint.time))
            }];
        }
        let detail = Some(format!("redo from {}", checkpoint.redo));
        vec![LogEntry { detail, target: None, ..self.entry_at(event, LogEntryKind::Checkpoint, Some(checkpoint.time)) }]
    }

    fn promotion_entry(&self, event: &WalEvent, from: TimelineId, to: TimelineId, time: Option<PgTime>) -> LogEntry {
        let detail = Some(format!("timeline {from} became {to}"));
        LogEntry { detail, timeline: to, target: None, ..self.entry_at(event, LogEntryKind::Promotion, time) }
    }

    fn parameter_entries(&mut self, event: &WalEvent, now: WalParameters) -> Result<Vec<LogEntry>, LogError> {
        let detail = Some(changed_parameters(self.parameters.replace(now), now));
        let time = self.time_before(event.lsn)?;
        Ok(vec![LogEntry { detail, target: None, ..self.entry_at(event, LogEntryKind::Parameters, time) }])
    }

    /// A commit that dropped objects or removed files. Since 15 it lists what it dropped; before, the rows that its
    /// transaction deleted from `pg_class` tell. A table that is written anew is so under another OID, which takes the
    /// old file with it (`make_new_heap`, `cluster.c`).
    fn removal_entries(&mut self, event: &WalEvent, removal: &RemovedObjects) -> Result<Vec<LogEntry>, LogError> {
        let lists_drops = self.lookup.major_at(self.path, event.lsn)?.is_none_or(|major| major >= MajorVersion::V15);
        let gone = self.gone.remove(&event.xid).unwrap_or_default();
        let written = self.written.remove(&event.xid).unwrap_or_default();
        let listed = removal.objects.iter().filter(|object| object.kind == DroppedObjectKind::Relation);
        let listed = listed.filter_map(|object| Some((object.database, u32::try_from(object.object).ok()?)));
        let all: BTreeSet<(u32, u32)> = if lists_drops { listed.collect() } else { gone };
        let unclear = if lists_drops { LogEntryKind::TruncateOrRewrite } else { LogEntryKind::DropOrTruncate };
        let old: BTreeSet<(u32, u32)> = removal.files.iter().map(|file| (file.database, file.filenode)).collect();
        let mut kinds: BTreeMap<LogEntryKind, BTreeSet<(u32, u32)>> = BTreeMap::new();
        for (database, oid) in &all {
            let (kind, oid) = match self.names.rewritten_table(*database, *oid) {
                Some(table) => (LogEntryKind::Rewrite, table),
                None => (LogEntryKind::Drop, *oid),
            };
            kinds.entry(kind).or_default().insert((*database, oid));
        }
        for file in &removal.files {
            let Some(oid) = self.names.relation_of_file(*file) else {
                if all.is_empty() {
                    kinds.entry(unclear).or_default().insert((file.database, file.filenode));
                }
                continue;
            };
            let key = (file.database, oid);
            let now = self.names.relation(file.database, oid).map(|relation| (file.database, relation.filenode));
            let kind = match now {
                _ if all.contains(&key) || self.truncated == Some(event.xid) => continue,
                // Its new file is not known: its row was not seen to change.
                Some(file) if old.contains(&file) => unclear,
                Some(file) if written.contains(&file) => LogEntryKind::Rewrite,
                Some(_) => LogEntryKind::Truncate,
                None => unclear,
            };
            kinds.entry(kind).or_default().insert(key);
        }
        let more = removal.objects_total as usize > removal.objects.len();
        let more = more || removal.files_total as usize > removal.files.len();
        let base = self.entry_at(event, unclear, Some(removal.time));
        self.copied = kinds.get(&LogEntryKind::Rewrite).map(|tables| (event.xid, tables.clone()));
        Ok(self.table_entries(&base, kinds, more))
    }

    /// `base` once for each table, by what became of it. What belongs to a table is no event by itself; what nothing is
    /// known of makes one line, and only if there is no other.
    fn table_entries(
        &self,
        base: &LogEntry,
        kinds: BTreeMap<LogEntryKind, BTreeSet<(u32, u32)>>,
        more: bool,
    ) -> Vec<LogEntry> {
        let (mut told, mut sequences, mut known) = (Vec::new(), Vec::new(), false);
        let mut unknown: Vec<(LogEntryKind, u32, u32)> = Vec::new();
        for (kind, relations) in kinds {
            for (database, oid) in relations {
                let Some(relation) = self.names.relation(database, oid) else {
                    unknown.push((kind, database, oid));
                    continue;
                };
                known = true;
                let name = Some(self.names.qualified_name(database, relation));
                let database = Some(self.names.database_name(database));
                let line = LogEntry { kind, database, relation: name, ..base.clone() };
                match relation.kind {
                    RelationKind::Table if oid >= FIRST_NORMAL_OID => told.push(line),
                    RelationKind::Sequence if oid >= FIRST_NORMAL_OID => sequences.push(line),
                    _ => {}
                }
            }
        }
        if told.is_empty() {
            told = sequences;
        }
        if let Some((kind, database, oid)) = unknown.iter().min_by_key(|unknown| unknown.2).filter(|_| !known) {
            let others = unknown.len().saturating_sub(1);
            let detail = (others > 0).then(|| format!("and {others} more that belong to it or went with it"));
            let (database, relation) = (Some(self.names.database_name(*database)), Some(oid.to_string()));
            told.push(LogEntry { kind: *kind, database, relation, detail, ..base.clone() });
        }
        if let Some(first) = told.first_mut().filter(|_| more) {
            first.detail = Some("and more than can be listed".to_owned());
        }
        told
    }

    /// TRUNCATE in a cluster of `wal_level = logical`, where a record names the tables; it takes effect with its
    /// transaction's commit.
    fn truncate_entries(
        &mut self,
        event: &WalEvent,
        database: u32,
        relations: &[u32],
        total: u32,
        cascade: bool,
    ) -> Result<Vec<LogEntry>, LogError> {
        let Some(commit) = self.commit_of(event)? else { return Ok(Vec::new()) };
        self.truncated = Some(event.xid);
        let effect = WalEvent { lsn: commit.lsn, ..event.clone() };
        let detail = cascade.then(|| "cascade".to_owned());
        let base = LogEntry { detail, ..self.entry_at(&effect, LogEntryKind::Truncate, Some(commit.time)) };
        let more = total as usize > relations.len();
        let tables = relations.iter().map(|oid| (database, *oid)).collect();
        Ok(self.table_entries(&base, BTreeMap::from([(LogEntryKind::Truncate, tables)]), more))
    }

    /// DROP DATABASE removes the files before it commits, and since 2023 marks the database as invalid even before
    /// that, in its place (`dropdb`, `dbcommands.c`): nothing brings it back that replays either.
    fn drop_database_entries(&self, event: &WalEvent, database: u32) -> Result<Vec<LogEntry>, LogError> {
        let time = match self.commit_of(event)? {
            Some(commit) => Some(commit.time),
            None => self.time_before(event.lsn)?,
        };
        let spoilt = self.lookup.invalidated_before(self.path, event.lsn, database)?;
        let database = Some(self.names.database_name(database));
        let event = WalEvent { lsn: spoilt.unwrap_or(event.lsn), ..event.clone() };
        Ok(vec![LogEntry { database, ..self.entry_at(&event, LogEntryKind::DropDatabase, time) }])
    }

    fn create_database_entries(&self, event: &WalEvent, database: u32) -> Result<Vec<LogEntry>, LogError> {
        if database < FIRST_NORMAL_OID {
            // `initdb` makes its own that way.
            return Ok(Vec::new());
        }
        let Some(commit) = self.commit_of(event)? else { return Ok(Vec::new()) };
        let effect = WalEvent { lsn: commit.lsn, ..event.clone() };
        let database = Some(self.names.database_name(database));
        Ok(vec![LogEntry { database, ..self.entry_at(&effect, LogEntryKind::CreateDatabase, Some(commit.time)) }])
    }

    /// The commit of the event's transaction; `None` if it was aborted, or has not ended.
    fn commit_of(&self, event: &WalEvent) -> Result<Option<TransactionEnd>, LogError> {
        let ending = self.lookup.ending_of(self.path, event.lsn, event.xid)?;
        Ok(ending.filter(|ending| ending.kind.is_commit()))
    }
}

fn remember_relation(all: &mut HashMap<Xid, BTreeSet<(u32, u32)>>, xid: Xid, what: (u32, u32)) {
    if all.len() >= MAX_REMEMBERED_TRANSACTIONS {
        all.clear();
    }
    all.entry(xid).or_default().insert(what);
}

fn time_in_event(kind: &WalEventKind) -> Option<PgTime> {
    match kind {
        WalEventKind::Checkpoint(checkpoint) => Some(checkpoint.time),
        WalEventKind::RestorePoint { time, .. }
        | WalEventKind::EndOfRecovery { time, .. }
        | WalEventKind::OverwriteContrecord { time, .. } => Some(*time),
        WalEventKind::Drop(removal) | WalEventKind::Rewrite(removal) => Some(removal.time),
        _ => None,
    }
}

/// The settings that differ, `max_connections 100 → 200`; all of them where nothing is known before.
fn changed_parameters(before: Option<WalParameters>, now: WalParameters) -> String {
    let level = |parameters: WalParameters| match parameters.wal_level {
        WalLevel::Minimal => "minimal",
        WalLevel::Replica => "replica",
        WalLevel::Logical => "logical",
    };
    let switch = |on: bool| if on { "on" } else { "off" };
    let all = |p: WalParameters| {
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
