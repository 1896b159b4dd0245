//! What `walkeep check` shows.

use crate::base::findings::{CheckFindings, CheckMessage, Finding, FindingLevel};
use crate::cli::exit::{self, CliExitCode};
use crate::cli::show::output::{TerminalOutput, TextTone, terminal_width, wrap_text};
use crate::redis::check::stream::STREAM_SUBJECT;

/// The subject of the findings about a server that cannot be asked: then it is not proved that its WAL is received.
pub(in crate::cli) const CONNECTION_SUBJECT: &str = "connection";
/// The column at which what is found begins.
const FINDING_TEXT_COLUMN: usize = 22;

/// What was found of a cluster or of an instance.
pub(in crate::cli) struct CheckedStore<'c> {
    pub(in crate::cli) name: &'c str,
    pub(in crate::cli) redis: bool,
    findings: Vec<ShownFinding>,
}

/// A finding in words, as `--json` prints it.
#[derive(Debug, serde::Serialize)]
struct ShownFinding {
    what: &'static str,
    verdict: FindingLevel,
    text: String,
    #[serde(skip)]
    code: CliExitCode,
}

/// The error of a finding, with its chain of causes.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct FindingError(#[source] Box<dyn std::error::Error + Send + Sync>);

impl ShownFinding {
    fn new(finding: Finding<CheckMessage>) -> ShownFinding {
        let (what, verdict) = (finding.subject, finding.level);
        match finding.text {
            CheckMessage::Text(text) => {
                let code = if verdict == FindingLevel::Bad { CliExitCode::Failed } else { CliExitCode::Done };
                ShownFinding { what, verdict, text, code }
            }
            CheckMessage::Error(error) => {
                let error = anyhow::Error::from(FindingError(error));
                ShownFinding { what, verdict, text: exit::error_line(&error), code: exit::exit_code(&error) }
            }
        }
    }
}

/// What `--json` prints of a cluster, or of an instance that was named.
#[derive(Debug, serde::Serialize)]
struct CheckedStoreJson<'r> {
    /// The name that was given, a cluster's or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<&'r str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<&'r str>,
    healthy: bool,
    findings: &'r [ShownFinding],
}

/// What `--json` prints of several, like that of `walkeep health`.
#[derive(serde::Serialize)]
struct CheckJson<'d> {
    healthy: bool,
    clusters: Vec<CheckedStoreJson<'d>>,
    instances: Vec<CheckedStoreJson<'d>>,
}

pub(in crate::cli) fn print_json(all: &[CheckedStore<'_>], several: bool, out: &TerminalOutput) -> anyhow::Result<()> {
    let healthy = all.iter().all(|checked| checked.is_healthy());
    match all {
        [only] if !several => out.print_json(&only.to_json(true)),
        all => out.print_json(&CheckJson {
            healthy,
            clusters: all.iter().filter(|checked| !checked.redis).map(|checked| checked.to_json(false)).collect(),
            instances: all.iter().filter(|checked| checked.redis).map(|checked| checked.to_json(false)).collect(),
        }),
    }
}

impl<'c> CheckedStore<'c> {
    pub(in crate::cli) fn new(name: &'c str, redis: bool, findings: CheckFindings) -> CheckedStore<'c> {
        CheckedStore { name, redis, findings: findings.into_findings().into_iter().map(ShownFinding::new).collect() }
    }

    fn is_healthy(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != FindingLevel::Bad)
    }

    /// The exit code of the worst finding that is bad.
    pub(in crate::cli) fn exit_code(&self) -> CliExitCode {
        let bad =
            self.findings.iter().filter(|finding| finding.verdict == FindingLevel::Bad).map(|finding| finding.code);
        bad.max_by_key(|code| code.severity()).unwrap_or(CliExitCode::Done)
    }

    /// `alone`: scripts know the one that is looked at by `cluster`, whatever it is.
    fn to_json(&self, alone: bool) -> CheckedStoreJson<'_> {
        CheckedStoreJson {
            cluster: Some(self.name).filter(|_| alone || !self.redis),
            instance: Some(self.name).filter(|_| self.redis),
            healthy: self.is_healthy(),
            findings: &self.findings,
        }
    }
}

pub(in crate::cli) fn print_findings(checked: &CheckedStore<'_>, out: &TerminalOutput) -> anyhow::Result<()> {
    let (name, findings) = (checked.name, &checked.findings);
    // Not where a program reads: one finding is one line there.
    let room = terminal_width().map_or(usize::MAX, |columns| columns.saturating_sub(FINDING_TEXT_COLUMN));
    for finding in findings {
        let (mark, tone) = match finding.verdict {
            FindingLevel::Good => ("ok", TextTone::Good),
            FindingLevel::Warning => ("note", TextTone::Warning),
            FindingLevel::Bad => ("FAIL", TextTone::Bad),
        };
        let mark = out.style(tone, format!("{mark:<4}"));
        for (nth, line) in wrap_text(&finding.text, room).iter().enumerate() {
            match nth {
                0 => out.print_line(format!("  {mark}  {:<13} {line}", finding.what))?,
                _ => out.print_line(format!("{:FINDING_TEXT_COLUMN$}{line}", ""))?,
            }
        }
    }
    let warned =
        |what: &str| findings.iter().any(|finding| finding.what == what && finding.verdict == FindingLevel::Warning);
    let verdict = if !checked.is_healthy() {
        out.style(TextTone::Bad, format!("{name}: archiving does not work; mend what says FAIL"))
    } else if !checked.redis && warned(CONNECTION_SUBJECT) {
        out.style(TextTone::Warning, format!("{name}: the repository works; whether WAL comes, walkeep list shows"))
    } else if checked.redis && warned(STREAM_SUBJECT) {
        out.style(TextTone::Warning, format!("{name}: archiving works, by snapshots alone"))
    } else {
        out.style(TextTone::Good, format!("{name}: archiving works"))
    };
    out.print_line("")?;
    out.print_line(verdict)
}
