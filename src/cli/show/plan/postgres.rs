//! `walkeep plan postgres`: a page that an engineer on call can read at three in the morning.

use std::time::Duration;

use crate::cli::args::role::RequestedRole;
use crate::cli::args::target::TargetRequest;
use crate::cli::show::output::{
    TerminalOutput, TextTone, format_bytes, format_count, format_duration, text_width, wrap_text,
};
use crate::cli::show::shell;
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::restore::plan::{
    CommitPoint, DiskRequirement, PlanOutcome, PlannedDestination, ProvedRestore, RestorePlan, RestorePlanDocument,
    UnreachableTarget,
};
use crate::postgres::restore::resolve_target::RecoveryStop;
use crate::postgres::restore::target::{RecoveryTarget, RestoreRequest};

/// The column at which what is said begins, after its name.
const VALUE_COLUMN: usize = 17;

/// What `plan --json` prints.
#[derive(serde::Serialize)]
pub(in crate::cli) struct PostgresPlanJson<'p> {
    #[serde(flatten)]
    plan: RestorePlanDocument<'p>,
    role: &'static str,
    role_summary: &'static str,
}

impl<'p> PostgresPlanJson<'p> {
    pub(in crate::cli) fn new(plan: &'p RestorePlan, role: &RequestedRole) -> PostgresPlanJson<'p> {
        PostgresPlanJson { plan: plan.into(), role: role.role.as_str(), role_summary: role.summary() }
    }
}

/// The plan as text, a line each. `asked` is whether it was only asked for: then it ends with how `program` carries it
/// out.
fn plan_lines(
    plan: &RestorePlan,
    request: &TargetRequest<RestoreRequest>,
    role: Option<&RequestedRole>,
    (program, asked): (&str, bool),
    out: &TerminalOutput,
) -> Vec<String> {
    let mut page = PlanPage { lines: Vec::new(), plan, program, out };
    page.lines.push(
        out.style(TextTone::Strong, format!("{} to {}", plan.cluster, describe_target(plan, &request.request, out))),
    );
    page.lines.push(String::new());
    match &plan.outcome {
        PlanOutcome::Target(restore) => page.push_reachable(restore, None),
        PlanOutcome::OtherPoint { restore, .. } => page.push_reachable(restore, Some(&plan.reason())),
        PlanOutcome::Refused { restore, reason } => page.push_refused(restore, reason),
        PlanOutcome::Unreachable(target) => page.push_unreachable(target),
    }
    page.push_commits();
    if let Some(role) = role.filter(|_| plan.is_reachable()) {
        page.push_paragraph("role", role.summary());
    }
    for note in &plan.notes {
        page.push_paragraph("note", note);
    }
    if asked || !plan.is_reachable() {
        page.push_next_command(&request.options, role.map_or("", |role| role.options.as_str()));
    }
    page.lines
}

/// Prints the plan of a restore that is not of a whole server.
pub(in crate::cli) fn print_plan(
    plan: &RestorePlan,
    request: &TargetRequest<RestoreRequest>,
    asked: (&str, bool),
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    plan_lines(plan, request, None, asked, out).iter().try_for_each(|line| out.print_line(line))
}

/// Prints the plan of a server's restore.
pub(in crate::cli) fn print_server_plan(
    plan: &RestorePlan,
    request: &TargetRequest<RestoreRequest>,
    role: &RequestedRole,
    asked: (&str, bool),
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    plan_lines(plan, request, Some(role), asked, out).iter().try_for_each(|line| out.print_line(line))
}

/// What an estimate is made from.
pub(in crate::cli) fn estimate_basis(restores: u64) -> String {
    match restores {
        0 => "a guess, until a restore with --start was measured here".to_owned(),
        restores => format!("by {} measured here", format_count(restores, "restore")),
    }
}

/// The target in words.
fn describe_target(plan: &RestorePlan, request: &RestoreRequest, out: &TerminalOutput) -> String {
    let before = if request.exclusive() { "just before " } else { "" };
    let what = match &plan.target {
        RecoveryTarget::Time(time) => out.format_time(*time),
        other => other.to_string(),
    };
    format!("{before}{what}")
}

struct PlanPage<'p> {
    lines: Vec<String>,
    plan: &'p RestorePlan,
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

    /// `but` is why another point than the target is reached.
    fn push_reachable(&mut self, restore: &ProvedRestore, but: Option<&str>) {
        self.push_row("reachable", self.out.style(TextTone::Good, "yes"));
        if let Some(but) = but {
            self.push_paragraph("but", but);
        }
        self.push_row("stops", describe_stop(restore));
        self.push_row("backup", &restore.backup);
        let records = format_count(restore.work.wal_records, "record");
        self.push_row(
            "replay",
            format!(
                "{}, {} of WAL, {records}",
                format_count(restore.wal_segments, "segment"),
                format_bytes(restore.work.wal_bytes)
            ),
        );
        let basis = estimate_basis(self.plan.measured_restores);
        let takes = format_duration(Duration::from_secs(restore.estimated_seconds));
        self.push_row("takes about", takes + &self.out.style(TextTone::Quiet, format!("  {basis}")));
        if let Some(room) = &restore.room {
            self.push_row("room", describe_room(room));
        }
        if restore.hole_follows {
            self.push_row("note", "WAL is missing right after the target; the server will not read ahead");
        }
    }

    fn push_refused(&mut self, restore: &ProvedRestore, reason: &str) {
        self.push_not_reachable(reason);
        if let Some(room) = missing_room(restore) {
            self.push_row("room", self.out.style(TextTone::Bad, describe_room(room)));
        }
        self.push_position(restore.stop, restore.timeline);
    }

    fn push_unreachable(&mut self, target: &UnreachableTarget) {
        self.push_not_reachable(&target.reason);
        if let Some(stop) = target.place.stop() {
            self.push_position(stop, target.timeline);
        }
    }

    fn push_not_reachable(&mut self, reason: &str) {
        self.push_row("reachable", self.out.style(TextTone::Bad, "NO"));
        self.push_paragraph("why", reason);
    }

    fn push_position(&mut self, stop: RecoveryStop, timeline: TimelineId) {
        self.push_row("target", format!("is at {} on timeline {timeline}", stop.lsn()));
    }

    fn push_commits(&mut self) {
        let commit = |commit: CommitPoint| {
            format!("transaction {} at {}, {}", commit.xid, commit.lsn, self.out.format_time(commit.time))
        };
        let known = |commit: Option<String>, none: &str, fate: &str| match commit {
            Some(text) if self.plan.is_reachable() => text + &self.out.style(TextTone::Quiet, format!("  {fate}")),
            Some(text) => text,
            None => none.to_owned(),
        };
        let commits = self.plan.commits();
        let last = known(commits.last.map(commit), "none is known", "kept");
        let next = known(commits.next.map(commit), "none is archived", "undone");
        self.push_row("last commit", last);
        self.push_row("next commit", next);
    }

    /// `options` name the target, `role` the role of the server. A standby has no target that `--start` waits for.
    fn push_next_command(&mut self, options: &str, role: &str) {
        let (program, cluster) = (self.program, &self.plan.cluster);
        let pgdata = match &self.plan.destination {
            Some(PlannedDestination { pgdata, delta }) => {
                let pgdata = shell::quote_for_shell(&pgdata.display().to_string());
                if *delta { format!("{pgdata} --delta") } else { pgdata }
            }
            None => "DIR".to_owned(),
        };
        let restore = |options: &str| {
            let words = [options, role].into_iter().filter(|words| !words.is_empty()).collect::<Vec<_>>().join(" ");
            format!("{program} restore postgres {cluster} --pgdata {pgdata} {words}").trim_end().to_owned()
        };
        self.lines.push(String::new());
        match &self.plan.outcome {
            PlanOutcome::Target(_) | PlanOutcome::OtherPoint { .. } => {
                self.lines.push("To do it:".to_owned());
                let start = if role.starts_with("--standby") { "" } else { " --start" };
                self.lines.push(format!("  {}{start}", self.out.style(TextTone::Strong, restore(options))));
            }
            PlanOutcome::Refused { restore, .. } => {
                // Any other reason for the refusal says what to do.
                if missing_room(restore).is_some() {
                    self.lines.push("Make room there, or choose another place.".to_owned());
                }
            }
            PlanOutcome::Unreachable(target) => {
                let points = [("before", target.place.nearest_before()), ("after", target.place.nearest_after())];
                if points.iter().all(|(_, point)| point.is_none()) {
                    self.lines.push("No point near it can be reached. walkeep list shows what can.".to_owned());
                    return;
                }
                self.lines.push("What can be reached instead:".to_owned());
                for (side, point) in points {
                    let Some(point) = point else { continue };
                    let shown = |time| format!(", last commit {}", self.out.format_time(time));
                    let time = point.time.map_or_else(String::new, shown);
                    self.lines.push(format!("  {side} it: {}{time}, from backup {}", point.lsn(), point.backup));
                    let command = restore(&point.options());
                    self.lines.push(format!("    {}", self.out.style(TextTone::Strong, command)));
                }
            }
        }
    }
}

/// The space at a destination that has too little of it.
fn missing_room(restore: &ProvedRestore) -> Option<&DiskRequirement> {
    restore.room.as_ref().filter(|room| !room.is_enough())
}

fn describe_room(room: &DiskRequirement) -> String {
    format!("{} needed, {} free", format_bytes(room.needed_bytes), format_bytes(room.free_bytes))
}

fn describe_stop(restore: &ProvedRestore) -> String {
    let timeline = restore.timeline;
    match restore.stop {
        RecoveryStop::Before(lsn) => format!("before the record at {lsn} on timeline {timeline}"),
        RecoveryStop::After(lsn) => format!("after the record at {lsn} on timeline {timeline}"),
        RecoveryStop::Consistent(lsn) => format!("where the backup is consistent, {lsn} on timeline {timeline}"),
    }
}
