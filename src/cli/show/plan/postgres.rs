//! `walkeep plan postgres`: a page that an engineer on call can read at three in the morning.

use std::time::Duration;

use crate::cli::args::target;
use crate::cli::args::target::PostgresTargetArgs;
use crate::cli::show::output::{
    TerminalOutput, TextTone, format_bytes, format_count, format_duration, text_width, wrap_text,
};
use crate::postgres::restore::plan::{CommitPoint, ReachablePoint, RestorePlan};
use crate::postgres::restore::resolve_target::RecoveryStop;
use crate::postgres::restore::target::RecoveryTarget;

/// The column at which what is said begins, after its name.
const VALUE_COLUMN: usize = 17;

/// The plan as text, a line each. `asked` is whether it was only asked for: then it ends with how `program` carries it
/// out.
fn plan_lines(
    plan: &RestorePlan,
    args: &PostgresTargetArgs,
    (program, asked): (&str, bool),
    out: &TerminalOutput,
) -> Vec<String> {
    let mut page = PlanPage { lines: Vec::new(), program, out };
    page.lines.push(out.style(TextTone::Strong, format!("{} to {}", plan.cluster, describe_target(plan, args, out))));
    page.lines.push(String::new());
    if plan.reachable {
        page.push_reachable(plan);
    } else {
        page.push_unreachable(plan);
    }
    page.push_commits(plan);
    for note in &plan.notes {
        page.push_paragraph("note", note);
    }
    if asked || !plan.reachable {
        page.push_next_command(plan, args);
    }
    page.lines
}

/// Prints the plan.
pub(in crate::cli) fn print_plan(
    plan: &RestorePlan,
    args: &PostgresTargetArgs,
    asked: (&str, bool),
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    plan_lines(plan, args, asked, out).iter().try_for_each(|line| out.print_line(line))
}

/// What an estimate is made from.
pub(in crate::cli) fn estimate_basis(restores: u64) -> String {
    match restores {
        0 => "a guess, until a restore with --start was measured here".to_owned(),
        restores => format!("by {} measured here", format_count(restores, "restore")),
    }
}

/// The target in words.
fn describe_target(plan: &RestorePlan, args: &PostgresTargetArgs, out: &TerminalOutput) -> String {
    let before = if args.target_exclusive { "just before " } else { "" };
    let what = match &plan.target {
        RecoveryTarget::Time(time) => out.format_time(*time),
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
    fn push_row(&mut self, name: &str, text: impl std::fmt::Display) {
        self.lines.push(format!("  {name:<14} {text}"));
    }

    /// A row of many words, broken to fit.
    fn push_paragraph(&mut self, name: &str, text: &str) {
        let lines = wrap_text(text, text_width().saturating_sub(VALUE_COLUMN));
        for (nth, line) in lines.iter().enumerate() {
            self.push_row(if nth == 0 { name } else { "" }, line);
        }
    }

    fn push_reachable(&mut self, plan: &RestorePlan) {
        self.push_row("reachable", self.out.style(TextTone::Good, "yes"));
        if plan.reaches_other_point() {
            self.push_paragraph("but", &plan.reason);
        }
        if let Some(stop) = plan.stop {
            self.push_row("stops", describe_stop(stop, plan));
        }
        self.push_row("backup", plan.backup.as_deref().unwrap_or("none"));
        let records = format_count(plan.wal_records, "record");
        self.push_row(
            "replay",
            format!(
                "{}, {} of WAL, {records}",
                format_count(plan.wal_segments, "segment"),
                format_bytes(plan.wal_bytes)
            ),
        );
        let basis = estimate_basis(plan.estimated_from_restores);
        let takes = format_duration(Duration::from_secs(plan.estimated_seconds));
        self.push_row("takes about", takes + &self.out.style(TextTone::Quiet, format!("  {basis}")));
        if let Some(room) = &plan.room {
            self.push_row(
                "room",
                format!("{} needed, {} free", format_bytes(room.needed_bytes), format_bytes(room.free_bytes)),
            );
        }
        if plan.hole_follows {
            self.push_row("note", "WAL is missing right after the target; the server will not read ahead");
        }
    }

    fn push_unreachable(&mut self, plan: &RestorePlan) {
        self.push_row("reachable", self.out.style(TextTone::Bad, "NO"));
        self.push_paragraph("why", &plan.reason);
        if let Some(room) = plan.room.as_ref().filter(|room| !room.is_enough()) {
            let (needed, free) = (format_bytes(room.needed_bytes), format_bytes(room.free_bytes));
            self.push_row("room", self.out.style(TextTone::Bad, format!("{needed} needed, {free} free")));
        }
        if let Some(lsn) = plan.target_lsn {
            self.push_row("target", format!("is at {lsn} on timeline {}", plan.timeline));
        }
    }

    fn push_commits(&mut self, plan: &RestorePlan) {
        let commit = |commit: CommitPoint| {
            format!("transaction {} at {}, {}", commit.xid, commit.lsn, self.out.format_time(commit.time))
        };
        let known = |commit: Option<String>, none: &str, fate: &str| match commit {
            Some(text) if plan.reachable => text + &self.out.style(TextTone::Quiet, format!("  {fate}")),
            Some(text) => text,
            None => none.to_owned(),
        };
        let last = known(plan.last_commit_before.map(commit), "none is known", "kept");
        let next = known(plan.first_commit_after.map(commit), "none is archived", "undone");
        self.push_row("last commit", last);
        self.push_row("next commit", next);
    }

    fn push_next_command(&mut self, plan: &RestorePlan, args: &PostgresTargetArgs) {
        let program = self.program;
        let restore = |options: &str| format!("{program} restore postgres {} --pgdata DIR {options}", plan.cluster);
        self.lines.push(String::new());
        if plan.reachable {
            self.lines.push("To do it:".to_owned());
            let command = restore(&target::target_options(args));
            self.lines.push(format!("  {} --start", self.out.style(TextTone::Strong, command.trim_end())));
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
                let time =
                    time.map_or_else(String::new, |time| format!(", last commit {}", self.out.format_time(time)));
                self.lines.push(format!("  {side} it: {lsn}{time}, from backup {backup}"));
                self.lines.push(format!("    {}", self.out.style(TextTone::Strong, restore(options))));
            }
        }
    }
}

fn describe_stop(stop: RecoveryStop, plan: &RestorePlan) -> String {
    let timeline = plan.timeline;
    match stop {
        RecoveryStop::Before(lsn) => format!("before the record at {lsn} on timeline {timeline}"),
        RecoveryStop::After(lsn) => format!("after the record at {lsn} on timeline {timeline}"),
        RecoveryStop::Consistent(lsn) => format!("where the backup is consistent, {lsn} on timeline {timeline}"),
    }
}
