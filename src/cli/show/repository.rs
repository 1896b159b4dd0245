//! What `walkeep repository` shows.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::cli::exit::{self, CliExitCode};
use crate::cli::show::output::{TerminalOutput, TextTone, format_bytes, format_duration};
use crate::vault::repository::RepositoryId;
use crate::vault::shipper::sync::SyncReport;
use crate::vault::shipper::{Lacking, ShipStage};

/// A repository that was added.
#[derive(Debug)]
pub(in crate::cli) struct AddedRepository<'a> {
    pub(in crate::cli) name: &'a str,
    pub(in crate::cli) url: Arc<str>,
    pub(in crate::cli) id: RepositoryId,
    pub(in crate::cli) created: bool,
    /// What the probe found.
    pub(in crate::cli) proved: Vec<String>,
    /// Other repositories that could not be opened.
    pub(in crate::cli) unreachable: Vec<String>,
    pub(in crate::cli) config: &'a Path,
}

pub(in crate::cli) fn print_added(added: &AddedRepository<'_>, out: &TerminalOutput) -> anyhow::Result<()> {
    let name = added.name;
    out.print_line(out.style(TextTone::Strong, format!("{name} is added")))?;
    let line = |what: &str, text: &str| out.print_line(format!("  {what:<14} {text}"));
    line("repository", &format!("{}, {}", added.url, if added.created { "created" } else { "which existed" }))?;
    line("id", &added.id.to_string())?;
    added.proved.iter().try_for_each(|proved| line("proved", proved))?;
    line("configuration", &added.config.display().to_string())?;
    for other in &added.unreachable {
        let note = format!("{other} is unreachable; if it has more keys, they are brought when it is opened again");
        line("note", &out.style(TextTone::Warning, note))?;
    }
    out.print_line("")?;
    out.print_line("Then:")?;
    out.print_line(format!("  walkeep repository sync {name}"))?;
    out.print_line(out.style(TextTone::Quiet, "    # copies what the other repositories have"))?;
    out.print_line("  restart walkeep receive")?;
    out.print_line(out.style(TextTone::Quiet, "    # a running receiver does not know the new repository"))
}

/// How many objects of an archive a repository lacks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(in crate::cli) struct LackingSummary<'c> {
    archive: &'c str,
    objects: usize,
    by_stage: BTreeMap<&'static str, usize>,
    /// Repositories that could not be compared with, and why.
    unasked: Vec<(String, String)>,
    /// Why nothing could be compared.
    error: Option<String>,
}

impl<'c> LackingSummary<'c> {
    pub(in crate::cli) fn new(archive: &'c str, found: &Lacking) -> LackingSummary<'c> {
        let mut by_stage = BTreeMap::new();
        for item in &found.items {
            let stage = match item.stage {
                ShipStage::Description => "description",
                ShipStage::Log => "log",
                ShipStage::Data => "data",
                ShipStage::Manifest => "backup",
            };
            let count: &mut usize = by_stage.entry(stage).or_default();
            *count = count.saturating_add(1);
        }
        let unasked = found.unasked.clone();
        LackingSummary { archive, objects: found.items.len(), by_stage, unasked, error: None }
    }

    pub(in crate::cli) fn failed(archive: &'c str, error: String) -> LackingSummary<'c> {
        LackingSummary { error: Some(error), ..LackingSummary::new(archive, &Lacking::default()) }
    }

    fn describe(&self) -> String {
        if let Some(error) = &self.error {
            return format!("not compared: {error}");
        }
        let parts: Vec<String> = self.by_stage.iter().map(|(stage, count)| format!("{count} {stage}")).collect();
        let lacks = match self.objects {
            0 => "lacks nothing".to_owned(),
            1 => format!("lacks 1 object ({})", parts.join(", ")),
            count => format!("lacks {count} objects ({})", parts.join(", ")),
        };
        match self.unasked.as_slice() {
            [] => lacks,
            unasked => {
                let names: Vec<&str> = unasked.iter().map(|(name, _)| name.as_str()).collect();
                format!("{lacks}; not compared with {}", names.join(", "))
            }
        }
    }
}

/// What a synchronisation did for one archive.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct SyncedArchive<'c> {
    lacking: LackingSummary<'c>,
    copied: u64,
    bytes: u64,
    existing: u64,
    gone: u64,
    damaged: Vec<(String, String)>,
    interrupted: Option<String>,
    left: u64,
    held_back: Vec<String>,
    seconds: u64,
    #[serde(skip)]
    took: Duration,
    #[serde(skip)]
    code: CliExitCode,
}

impl<'c> SyncedArchive<'c> {
    pub(in crate::cli) fn new(
        name: &'c str,
        lacking: &Lacking,
        report: SyncReport,
        took: Duration,
    ) -> SyncedArchive<'c> {
        let unasked = if lacking.unasked.is_empty() { CliExitCode::Done } else { CliExitCode::Unavailable };
        let damaged = if report.damaged.is_empty() { unasked } else { CliExitCode::Integrity };
        let interrupted = report.interrupted.map(anyhow::Error::from);
        let ended = interrupted.as_ref().map_or(damaged, exit::exit_code);
        SyncedArchive {
            lacking: LackingSummary::new(name, lacking),
            copied: report.copied,
            bytes: report.bytes,
            existing: report.existing,
            gone: report.gone,
            damaged: report.damaged.iter().map(|(item, why)| (item.key.to_string(), why.to_string())).collect(),
            interrupted: interrupted.as_ref().map(exit::error_line),
            left: report.left,
            held_back: report.held_back.iter().map(ToString::to_string).collect(),
            seconds: took.as_secs(),
            took,
            code: if ended.severity() > damaged.severity() { ended } else { damaged },
        }
    }

    pub(in crate::cli) const fn exit_code(&self) -> CliExitCode {
        self.code
    }
}

/// What `sync --json` prints.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct SyncJson<'c> {
    pub(in crate::cli) from: Option<&'c str>,
    pub(in crate::cli) to: &'c str,
    pub(in crate::cli) dry_run: bool,
    pub(in crate::cli) archives: Vec<SyncedArchive<'c>>,
}

pub(in crate::cli) fn print_synced(
    synced: &SyncedArchive<'_>,
    to: &str,
    dry_run: bool,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    let name = synced.lacking.archive;
    if dry_run || synced.lacking.objects == 0 {
        out.print_line(format!("{name}: {to} {}", synced.lacking.describe()))?;
    } else {
        let (count, bytes, took) = (synced.copied, format_bytes(synced.bytes), format_duration(synced.took));
        out.print_line(format!("{name}: copied {count} objects, {bytes}, to {to} in {took}"))?;
    }
    for (repository, why) in &synced.lacking.unasked {
        let text = format!("  {repository} is unreachable, and what only it has was not copied: {why}");
        out.print_line(out.style(TextTone::Warning, text))?;
    }
    for (object, why) in &synced.damaged {
        out.print_line(out.style(TextTone::Bad, format!("  damaged in every source: {object}: {why}")))?;
    }
    if let Some(why) = &synced.interrupted {
        out.print_line(out.style(TextTone::Bad, format!("  interrupted: {why}")))?;
    }
    for manifest in &synced.held_back {
        let text = format!("  not copied: {manifest}, because it needs data that no source has; take a new backup");
        out.print_line(out.style(TextTone::Bad, text))?;
    }
    let left = synced.left.saturating_sub(synced.held_back.len() as u64);
    if left > 0 {
        let text = format!("  {left} objects are left; run it again to copy them");
        out.print_line(out.style(TextTone::Warning, text))?;
    }
    Ok(())
}

/// A repository of the configuration.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct ListedRepository<'c> {
    pub(in crate::cli) name: &'c str,
    pub(in crate::cli) url: &'c str,
    pub(in crate::cli) id: Option<String>,
    /// Why it is unreachable.
    pub(in crate::cli) unreachable: Option<String>,
    pub(in crate::cli) retention_hours: Option<i64>,
    pub(in crate::cli) lacking: Vec<LackingSummary<'c>>,
}

/// What `list --json` prints.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct RepositoryListJson<'c> {
    pub(in crate::cli) repositories: Vec<ListedRepository<'c>>,
}

pub(in crate::cli) fn print_list(all: &[ListedRepository<'_>], out: &TerminalOutput) -> anyhow::Result<()> {
    for (nth, repository) in all.iter().enumerate() {
        if nth > 0 {
            out.print_line("")?;
        }
        out.print_line(out.style(TextTone::Strong, repository.name))?;
        let line = |what: &str, text: &str| out.print_line(format!("  {what:<14} {text}"));
        line("url", repository.url)?;
        if let Some(id) = &repository.id {
            line("id", id)?;
        }
        match &repository.unreachable {
            None => line("state", "open")?,
            Some(why) => line("state", &out.style(TextTone::Bad, format!("unreachable: {why}")))?,
        }
        line("retention", &format_retention(repository.retention_hours))?;
        repository.lacking.iter().try_for_each(|lacking| line(lacking.archive, &lacking.describe()))?;
    }
    Ok(())
}

/// As it is written in the configuration.
fn format_retention(hours: Option<i64>) -> String {
    match hours {
        None => "everything is kept".to_owned(),
        Some(hours) if hours % 24 == 0 => format!("{}d", hours / 24),
        Some(hours) => format!("{hours}h"),
    }
}

/// What was found of one repository.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct CheckedRepository<'c> {
    name: &'c str,
    healthy: bool,
    /// What works.
    pub(in crate::cli) works: Vec<String>,
    /// What does not work.
    failures: Vec<String>,
    lacking: Vec<LackingSummary<'c>>,
    #[serde(skip)]
    pub(in crate::cli) code: CliExitCode,
}

impl<'c> CheckedRepository<'c> {
    pub(in crate::cli) const fn new(name: &'c str) -> CheckedRepository<'c> {
        CheckedRepository {
            name,
            healthy: true,
            works: Vec::new(),
            failures: Vec::new(),
            lacking: Vec::new(),
            code: CliExitCode::Done,
        }
    }

    pub(in crate::cli) fn fail(&mut self, code: CliExitCode, why: String) {
        self.healthy = false;
        self.failures.push(why);
        self.worsen(code);
    }

    pub(in crate::cli) fn add_lacking(&mut self, lacking: LackingSummary<'c>) {
        if lacking.objects > 0 {
            self.healthy = false;
            self.worsen(CliExitCode::Failed);
        }
        if !lacking.unasked.is_empty() {
            self.worsen(CliExitCode::Unavailable);
        }
        self.lacking.push(lacking);
    }

    fn worsen(&mut self, code: CliExitCode) {
        if code.severity() > self.code.severity() {
            self.code = code;
        }
    }
}

/// What `check --json` prints.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct RepositoryCheckJson<'r, 'c> {
    pub(in crate::cli) repositories: &'r [CheckedRepository<'c>],
}

pub(in crate::cli) fn print_checked(checked: &CheckedRepository<'_>, out: &TerminalOutput) -> anyhow::Result<()> {
    let line = |tone, mark: &str, text: &str| out.print_line(format!("  {}  {text}", out.style(tone, mark)));
    out.print_line(out.style(TextTone::Strong, checked.name))?;
    checked.works.iter().try_for_each(|works| line(TextTone::Good, "ok  ", works))?;
    checked.failures.iter().try_for_each(|why| line(TextTone::Bad, "FAIL", why))?;
    for lacking in &checked.lacking {
        let text = format!("{} {}", lacking.archive, lacking.describe());
        match lacking.objects {
            0 if lacking.unasked.is_empty() && lacking.error.is_none() => line(TextTone::Good, "ok  ", &text)?,
            0 => line(TextTone::Warning, "note", &text)?,
            _ => {
                line(TextTone::Bad, "FAIL", &format!("{text}; fill it: walkeep repository sync {}", checked.name))?;
            }
        }
    }
    Ok(())
}

/// `only_here`: what no other repository has, by folder.
pub(in crate::cli) fn print_removed(
    name: &str,
    url: &str,
    config: &Path,
    only_here: &BTreeMap<String, usize>,
    out: &TerminalOutput,
) -> anyhow::Result<()> {
    out.print_line(format!("[repository.{name}] is taken out of {}", config.display()))?;
    for (folder, count) in only_here {
        let text = format!("  only it had {count} objects in {folder}");
        out.print_line(out.style(TextTone::Warning, text))?;
    }
    out.print_line(format!("Nothing was deleted in {url}. To use it again: walkeep repository add {name} {url}"))?;
    out.print_line("Restart walkeep receive: a running receiver still stores in it.")
}
