//! `walkeep plan postgres`: a page that an engineer on call can read at three in the morning.

use std::time::Duration;

use super::args::PostgresTargetArgs;
use super::output::{TerminalOutput, TextTone, count, size, span, width, wrap};
use super::target;
use crate::postgres::restore::plan::{CommitPoint, ReachablePoint, RestorePlan};
use crate::postgres::restore::resolve_target::RecoveryStop;
use crate::postgres::restore::target::RecoveryTarget;

/// The column at which what is said begins, after its name.
const INDENT: usize = 17;

/// The plan as text, a line each. `asked` is whether it was only asked for: then it ends with how `program` carries it out.
pub(super) fn page(
    plan: &RestorePlan,
    args: &PostgresTargetArgs,
    (program, asked): (&str, bool),
    out: &TerminalOutput,
) -> Vec<String> {
    let mut page = PlanPage { lines: Vec::new(), program, out };
    page.lines.push(out.tone(TextTone::Strong, format!("{} to {}", plan.cluster, wanted(plan, args, out))));
    page.lines.push(String::new());
    if plan.reachable {
        page.reachable(plan);
    } else {
        page.unreachable(plan);
    }
    page.commits(plan);
    for note in &plan.notes {
        page.prose("note", note);
    }
    if asked || !plan.reachable {
        page.what_next(plan, args);
    }
    page.lines
}

/// What an estimate rests on.
pub(super) fn basis(restores: u64) -> String {
    match restores {
        0 => "a guess, until a restore with --start was measured here".to_owned(),
        restores => format!("by {} measured here", count(restores, "restore")),
    }
}

/// The target in words.
fn wanted(plan: &RestorePlan, args: &PostgresTargetArgs, out: &TerminalOutput) -> String {
    let before = if args.target_exclusive { "just before " } else { "" };
    let what = match &plan.target {
        RecoveryTarget::Time(time) => out.time(*time),
        other => other.to_string(),
    };
    format!("{before}{what}")
}

struct PlanPage<'p> {
    lines: Vec<String>,
    program: &'p str,
    out: &'p TerminalOutput,
}

impl PlanPage<'_> {
    fn row(&mut self, name: &str, text: impl std::fmt::Display) {
        self.lines.push(format!("  {name:<14} {text}"));
    }

    /// A row of many words, broken to fit.
    fn prose(&mut self, name: &str, text: &str) {
        let lines = wrap(text, width().saturating_sub(INDENT));
        for (nth, line) in lines.iter().enumerate() {
            self.row(if nth == 0 { name } else { "" }, line);
        }
    }

    fn reachable(&mut self, plan: &RestorePlan) {
        self.row("reachable", self.out.tone(TextTone::Good, "yes"));
        if plan.goes_elsewhere() {
            self.prose("but", &plan.reason);
        }
        if let Some(stop) = plan.stop {
            self.row("stops", stop_in_words(stop, plan));
        }
        self.row("backup", plan.backup.as_deref().unwrap_or("none"));
        let records = count(plan.wal_records, "record");
        self.row(
            "replay",
            format!("{}, {} of WAL, {records}", count(plan.wal_segments, "segment"), size(plan.wal_bytes)),
        );
        let basis = basis(plan.estimated_from_restores);
        let takes = span(Duration::from_secs(plan.estimated_seconds));
        self.row("takes about", takes + &self.out.tone(TextTone::Quiet, format!("  {basis}")));
        if let Some(room) = &plan.room {
            self.row("room", format!("{} needed, {} free", size(room.needed_bytes), size(room.free_bytes)));
        }
        if plan.hole_follows {
            self.row("note", "WAL is missing right after the target; the server will not read ahead");
        }
    }

    fn unreachable(&mut self, plan: &RestorePlan) {
        self.row("reachable", self.out.tone(TextTone::Bad, "NO"));
        self.prose("why", &plan.reason);
        if let Some(room) = plan.room.as_ref().filter(|room| !room.is_enough()) {
            let (needed, free) = (size(room.needed_bytes), size(room.free_bytes));
            self.row("room", self.out.tone(TextTone::Bad, format!("{needed} needed, {free} free")));
        }
        if let Some(lsn) = plan.target_lsn {
            self.row("target", format!("is at {lsn} on timeline {}", plan.timeline));
        }
    }

    fn commits(&mut self, plan: &RestorePlan) {
        let commit = |commit: CommitPoint| {
            format!("transaction {} at {}, {}", commit.xid, commit.lsn, self.out.time(commit.time))
        };
        let known = |commit: Option<String>, none: &str, fate: &str| match commit {
            Some(text) if plan.reachable => text + &self.out.tone(TextTone::Quiet, format!("  {fate}")),
            Some(text) => text,
            None => none.to_owned(),
        };
        let last = known(plan.last_commit_before.map(commit), "none is known", "kept");
        let next = known(plan.first_commit_after.map(commit), "none is archived", "undone");
        self.row("last commit", last);
        self.row("next commit", next);
    }

    fn what_next(&mut self, plan: &RestorePlan, args: &PostgresTargetArgs) {
        let program = self.program;
        let restore = |options: &str| format!("{program} restore postgres {} --pgdata DIR {options}", plan.cluster);
        self.lines.push(String::new());
        if plan.reachable {
            self.lines.push("To do it:".to_owned());
            let command = restore(&target::options(args));
            self.lines.push(format!("  {} --start", self.out.tone(TextTone::Strong, command.trim_end())));
            return;
        }
        if plan.room.as_ref().is_some_and(|room| !room.is_enough()) {
            self.lines.push("Make room there, or choose another place.".to_owned());
            return;
        }
        let points = [("before", &plan.nearest_before), ("after", &plan.nearest_after)];
        if points.iter().all(|(_, point)| point.is_none()) {
            // What keeps it from this machine says what to do.
            if plan.backup.is_some() {
                return;
            }
            let what = "No point near it can be reached. walkeep list shows what can.";
            self.lines.push(what.to_owned());
            return;
        }
        self.lines.push("What can be reached instead:".to_owned());
        for (side, point) in points {
            if let Some(ReachablePoint { lsn, time, backup, options }) = point {
                let time = time.map_or_else(String::new, |time| format!(", last commit {}", self.out.time(time)));
                self.lines.push(format!("  {side} it: {lsn}{time}, from backup {backup}"));
                self.lines.push(format!("    {}", self.out.tone(TextTone::Strong, restore(options))));
            }
        }
    }
}

fn stop_in_words(stop: RecoveryStop, plan: &RestorePlan) -> String {
    let timeline = plan.timeline;
    match stop {
        RecoveryStop::Before(lsn) => format!("before the record at {lsn} on timeline {timeline}"),
        RecoveryStop::After(lsn) => format!("after the record at {lsn} on timeline {timeline}"),
        RecoveryStop::Consistent(lsn) => format!("where the backup is consistent, {lsn} on timeline {timeline}"),
    }
}
