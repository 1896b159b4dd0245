//! `walkeep check`: does archiving work, end to end, now?
//!
//! Every part is tried and said, good or bad, so that one run shows all that is wrong. The proof is the last line: the server is made to end
//! its current WAL segment, and that very segment must arrive in the repository.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::Args;

use crate::base::clock::{Clock, ClockOffset, OFFSET_WARNING};
use crate::cli::args::help;
use crate::cli::check_redis;
use crate::cli::context::CliContext;
use crate::cli::exit::{self, CliError, CliExitCode};
use crate::cli::open;
use crate::cli::server::InspectedServer;
use crate::cli::show::output::{TextTone, format_bytes, format_duration, terminal_width, wrap_text};
use crate::cli::show::shell;
use crate::config::{ClusterConfig, Config, InstanceConfig};
use crate::postgres::archive::Archive;
use crate::postgres::format::segment::SegmentName;
use crate::postgres::sql::SqlSession;
use crate::redis::wire::{self, ServerInfo};
use crate::vault::Vault;
use crate::vault::repository::key::{ObjectKey, ObjectKeyError};
use crate::vault::repository::{PutOutcome, Repository};
use crate::vault::seal::ObjectEncryption;

/// The segment must be archived within this time: long enough for a slow store, short enough to wait for at a terminal.
const SEGMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// What a writer that crashed left half-written is removed once it is this old; no writer takes so long.
const LEFTOVER_MIN_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// How often the archive is asked for it.
const ARCHIVE_POLL_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum CheckVerdict {
    Good,
    Warning,
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, serde::Serialize)]
struct CheckFinding {
    what: &'static str,
    verdict: CheckVerdict,
    text: String,
    #[serde(skip)]
    code: CliExitCode,
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
    findings: &'r [CheckFinding],
}

/// What `--json` prints of several, like that of `walkeep health`.
#[derive(serde::Serialize)]
struct CheckJson<'d> {
    healthy: bool,
    clusters: Vec<CheckedStoreJson<'d>>,
    instances: Vec<CheckedStoreJson<'d>>,
}

/// What was found of a cluster or of an instance.
struct CheckedStore<'c> {
    name: &'c str,
    redis: bool,
    findings: CheckFindings,
}

#[derive(Debug, Default)]
pub(in crate::cli) struct CheckFindings(Vec<CheckFinding>);

/// What is found of a server that nobody can ask: then it is not proved that its WAL comes.
const CONNECTION_SUBJECT: &str = "connection";
/// What is found of whether a Redis instance's commands come.
pub(in crate::cli) const STREAM_SUBJECT: &str = "stream";
/// The column at which what is found begins.
const FINDING_TEXT_COLUMN: usize = 22;

impl CheckFindings {
    pub(in crate::cli) fn add_good(&mut self, what: &'static str, text: impl Into<String>) {
        self.0.push(CheckFinding { what, verdict: CheckVerdict::Good, text: text.into(), code: CliExitCode::Done });
    }

    pub(in crate::cli) fn add_warning(&mut self, what: &'static str, text: impl Into<String>) {
        self.0.push(CheckFinding { what, verdict: CheckVerdict::Warning, text: text.into(), code: CliExitCode::Done });
    }

    pub(in crate::cli) fn add_bad(&mut self, what: &'static str, text: impl Into<String>) {
        self.0.push(CheckFinding { what, verdict: CheckVerdict::Bad, text: text.into(), code: CliExitCode::Failed });
    }

    pub(in crate::cli) fn add_error(&mut self, what: &'static str, error: &anyhow::Error) {
        let (text, code) = (exit::error_line(error), exit::exit_code(error));
        self.0.push(CheckFinding { what, verdict: CheckVerdict::Bad, text, code });
    }

    fn is_healthy(&self) -> bool {
        self.0.iter().all(|finding| finding.verdict != CheckVerdict::Bad)
    }

    /// What it ends with: the worst that is bad decides.
    fn exit_code(&self) -> CliExitCode {
        let bad = self.0.iter().filter(|finding| finding.verdict == CheckVerdict::Bad).map(|finding| finding.code);
        bad.max_by_key(|code| code.severity()).unwrap_or(CliExitCode::Done)
    }
}

#[cfg(test)]
impl std::fmt::Display for CheckFindings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|finding| writeln!(f, "{:?} {} {}", finding.verdict, finding.what, finding.text))
    }
}

/// Prove that archiving works, end to end, now
#[derive(Args, Debug)]
#[command(after_help = help::CHECK_HELP)]
pub(in crate::cli) struct CheckArgs {
    /// The cluster or Redis instance [default: all that are configured, one after the other]
    #[arg(value_name = "NAME")]
    pub(in crate::cli) cluster: Option<String>,
    /// Print one JSON document
    #[arg(long)]
    pub(in crate::cli) json: bool,
}

pub(in crate::cli) async fn run(args: CheckArgs, around: &CliContext) -> anyhow::Result<CliExitCode> {
    let config = around.read_config()?;
    let (clusters, instances) = config.find_all_named(args.cluster.as_deref())?;
    let several = clusters.len().saturating_add(instances.len()) > 1;
    let mut all: Vec<CheckedStore<'_>> = Vec::new();
    for cluster in clusters {
        let findings = check_cluster(&config, cluster, around).await;
        all.push(CheckedStore { name: cluster.name.as_str(), redis: false, findings });
        print_newest(&args, &config, &mut all, around)?;
    }
    for instance in instances {
        let findings = check_instance(&config, instance, around).await;
        all.push(CheckedStore { name: instance.name.as_str(), redis: true, findings });
        print_newest(&args, &config, &mut all, around)?;
    }
    match all.as_slice() {
        [] => return Err(CliError::usage(format!("nothing is configured in {}", config.path.display())).into()),
        all if args.json => print_json(all, several, around)?,
        _ => {}
    }
    Ok(all
        .iter()
        .map(|checked| checked.findings.exit_code())
        .max_by_key(|code| code.severity())
        .unwrap_or(CliExitCode::Done))
}

/// The last of these, as soon as it is looked at, under the others.
fn print_newest(
    args: &CheckArgs,
    config: &Config,
    all: &mut [CheckedStore<'_>],
    around: &CliContext,
) -> anyhow::Result<()> {
    let first = all.len() == 1;
    let Some(last) = all.last_mut() else { return Ok(()) };
    // What belongs to all of them is said once.
    let section = if last.redis { format!("[redis.{}]", last.name) } else { format!("[postgres.{}]", last.name) };
    let of_all = |idle: &&String| first && !idle.contains("[redis.") && !idle.contains("[postgres.");
    for idle in config.idle.iter().filter(|idle| idle.ends_with(&section) || of_all(idle)) {
        let text = if idle.starts_with("backup of ") {
            format!(
                "{idle} starts nothing in this version: run walkeep backup at those times; walkeep health judges by it"
            )
        } else {
            format!("{idle} is read and checked, but this version does nothing with it")
        };
        last.findings.add_warning("configuration", text);
    }
    if args.json {
        return Ok(());
    }
    if !first {
        around.output.print_line("")?;
    }
    print_findings(last, around)
}

async fn check_cluster(config: &Config, cluster: &ClusterConfig, around: &CliContext) -> CheckFindings {
    let mut findings = CheckFindings::default();
    let archive = match open::open_archive(config, cluster, around).await {
        Ok(archive) => Some(archive),
        Err(error) => {
            findings.add_error("repository", &error);
            None
        }
    };
    if let Some(archive) = &archive {
        check_repositories(archive.vault(), |name| archive.layout().probe(name), &mut findings).await;
    }
    match check_postgres_server(config, cluster, around, &mut findings).await {
        Ok(Some((server, sql))) => {
            measure_postgres_clock(&server, &sql, around, &mut findings).await;
            let fed = check_wal_sources(cluster, &server, &sql, &mut findings).await;
            if let (Some(archive), true) = (&archive, fed) {
                check_switched_segment(archive, &server, &sql, around, &mut findings).await;
            }
        }
        Ok(None) => {
            let come = match &archive {
                Some(archive) => archive.identity().await.is_ok_and(|identity| identity.is_some()),
                None => false,
            };
            let text = if come {
                "none is configured: what the server sends can be seen with walkeep list, but not be asked for"
            } else {
                "none is configured, and no WAL has come yet: set archive_command in the server as walkeep init shows it"
            };
            findings.add_warning(CONNECTION_SUBJECT, text);
        }
        Err(error) => findings.add_error("connection", &error),
    }
    findings
}

async fn check_instance(config: &Config, of: &InstanceConfig, around: &CliContext) -> CheckFindings {
    let mut findings = CheckFindings::default();
    let opened = open::open_instance(config, of, around).await;
    match &opened {
        Ok(instance) => check_repositories(instance.vault(), |name| instance.layout().probe(name), &mut findings).await,
        Err(error) => findings.add_error("repository", error),
    }
    let info = match check_redis_server(of, around, &mut findings).await {
        Ok(info) => Some(info),
        Err(error) => {
            findings.add_error("connection", &error);
            None
        }
    };
    if let Ok(instance) = &opened {
        check_redis::check_stream(config, instance, info.as_ref(), around, &mut findings).await;
    }
    findings
}

/// How far a server's clock is from this machine's, and what goes by it.
fn check_clock_offset(offset: ClockOffset, what: &str, findings: &mut CheckFindings) {
    if offset.certain_skew() > OFFSET_WARNING {
        findings.add_warning("clock", format!("{offset} this machine's, and {what}; see to NTP on both machines"));
    } else {
        findings.add_good("clock", format!("{offset} this machine's"));
    }
}

/// The quickest of three answers.
async fn measure_postgres_clock(
    server: &InspectedServer,
    sql: &SqlSession,
    around: &CliContext,
    findings: &mut CheckFindings,
) {
    let clock = &around.clock;
    let mut best: Option<ClockOffset> = None;
    for _ in 0..3 {
        let asked = clock.elapsed();
        match sql.server_time().await {
            Ok(shown) => {
                let came = clock.now();
                let offset = ClockOffset::from_answer(shown, came, clock.elapsed().saturating_sub(asked));
                best = best.into_iter().chain([offset]).min_by_key(|offset| offset.width());
            }
            Err(error) => return findings.add_error("clock", &error.into()),
        }
    }
    if let Some(offset) = best {
        check_postgres_clock_offset(offset, server.standby, findings);
    }
}

/// Of a standby nothing goes by its clock.
fn check_postgres_clock_offset(offset: ClockOffset, standby: bool, findings: &mut CheckFindings) {
    if standby {
        let text = format!("{offset} this machine's; a standby's clock: commits carry the time of the primary's");
        findings.add_good("clock", text);
    } else {
        check_clock_offset(offset, "the times of commits and so target times are by it", findings);
    }
}

/// The server, asked as for a snapshot, up to the point where it would begin one.
async fn check_redis_server(
    of: &InstanceConfig,
    around: &CliContext,
    findings: &mut CheckFindings,
) -> anyhow::Result<ServerInfo> {
    let source = of.redis_source(&around.environment, &around.clock)?;
    let (mut connection, info) = source.connect().await?;
    let (flavour, version, peer) = (info.flavour(), info.version(), connection.peer().to_owned());
    let role = if info.is_master() { "a master" } else { "a replica" };
    findings.add_good("connection", format!("{flavour} {version} at {peer}, {role}"));
    match info.persistence_trouble() {
        Some(trouble) => findings.add_warning("persistence", trouble),
        None => findings.add_good("persistence", "the server's own saves succeed, as far as it says"),
    }
    if info.is_shard() {
        findings.add_warning(
            "cluster",
            "this is one shard of a Redis Cluster: each shard takes a section [redis.NAME] of its own, and a moment is restored shard by shard",
        );
    }
    if let wire::RedisSource::Sentinels(_) = source {
        let (snapshots, _) = source.connect_for_snapshot().await?;
        findings.add_good("sentinels", format!("snapshots come from {}", snapshots.peer()));
    }
    match connection.measure_clock().await? {
        Some(measured) => check_clock_offset(measured.offset, "keys expire by it", findings),
        None => findings.add_warning(
            "clock",
            "the server does not say its time, so whether it is right is not known; let walkeep ask: ACL SETUSER … +time",
        ),
    }
    match connection.check_replica_permission(&info).await {
        Ok(wire::ReplicaPermission::Granted) => findings.add_good("replication", "the server lets walkeep attach as a replica"),
        Ok(wire::ReplicaPermission::Unknown) => findings.add_warning(
            "replication",
            "whether the server lets walkeep attach as a replica shows with the first snapshot; before that it does not say",
        ),
        Err(error) => findings.add_error("replication", &error.into()),
    }
    Ok(info)
}

/// Each repository takes, gives back and removes an object.
async fn check_repositories(
    vault: &Vault,
    probe_key: impl Fn(&str) -> Result<ObjectKey, ObjectKeyError>,
    findings: &mut CheckFindings,
) {
    for (name, why) in vault.unreachable() {
        findings
            .add_error("repository", &anyhow::Error::from(Arc::clone(why)).context(format!("{name} cannot be opened")));
    }
    for (name, repository) in vault.repositories() {
        let began = vault.clock().elapsed();
        let key = probe_key(&format!("{:032x}", rand::random::<u128>()));
        match probe_repository(key, repository).await {
            Ok(()) => {
                sweep_leftovers(name, repository).await;
                let took = vault.clock().elapsed().saturating_sub(began);
                let url = repository.url();
                findings.add_good(
                    "repository",
                    format!("{name} at {url}: wrote, read and removed an object in {}", format_duration(took)),
                );
            }
            Err(error) => findings.add_error("repository", &error.context(format!("{name} failed"))),
        }
    }
    match &**vault.protection() {
        ObjectEncryption::Encrypted(ring) => {
            findings.add_good(
                "key",
                format!("opens the repository's keys; new objects are sealed under {}", ring.current().0),
            );
        }
        ObjectEncryption::None => {
            findings.add_warning("key", "encryption is off: whoever reaches the repository can read it")
        }
    }
}

/// Removes what crashed writers left. Nothing depends on it, so that trouble is no finding.
async fn sweep_leftovers(name: &str, repository: &Repository) {
    match repository.sweep_orphans(LEFTOVER_MIN_AGE).await {
        Ok(0) => {}
        Ok(files) => tracing::info!(name, files, "removed what crashed writers had left"),
        Err(error) => tracing::warn!(name, %error, "cannot remove what crashed writers have left"),
    }
}

async fn probe_repository(key: Result<ObjectKey, ObjectKeyError>, repository: &Repository) -> anyhow::Result<()> {
    let content = Bytes::from(rand::random::<[u8; 64]>().to_vec());
    let key = key?;
    repository.put_new(&key, vec![content.clone()]).await?;
    // Some stores that speak S3 overlook "only if there is none", and would let one segment replace another.
    let other = repository.put_new(&key, vec![Bytes::from_static(b"another content")]).await;
    let back = repository.get(&key).await;
    repository.delete(&key).await?;
    if other? == PutOutcome::Created {
        anyhow::bail!("this store replaces objects that exist, so it cannot protect what is archived; use another");
    }
    if back? == content { Ok(()) } else { anyhow::bail!("{key} came back with another content than was written") }
}

async fn check_postgres_server(
    config: &Config,
    cluster: &ClusterConfig,
    around: &CliContext,
    findings: &mut CheckFindings,
) -> anyhow::Result<Option<(InspectedServer, SqlSession)>> {
    let Some(info) = cluster.conninfo(&around.environment)? else { return Ok(None) };
    let (server, sql) = InspectedServer::inspect(&info).await?;
    let kind = if server.standby { "a standby" } else { "a primary" };
    let (release, peer, role) = (server.release(), &server.peer, &server.privileges.role);
    findings.add_good("connection", format!("PostgreSQL {release} at {peer}, {kind}, as {role}"));
    let push = format!("{} archive-push %p", shell::postgres_command_prefix(&config.path)?);
    let mut advice = server.advice(&push);
    advice.sort_by_key(|advice| !advice.needed);
    for advice in &advice {
        let what = if advice.line.ends_with(';') { "privileges" } else { "settings" };
        if advice.needed {
            findings.add_bad(what, format!("{}  ({})", advice.line, advice.why));
        } else if !(server.standby || advice.line.starts_with("archive_")) {
            findings.add_warning(what, format!("{}  ({})", advice.line, advice.why));
        }
    }
    if advice.iter().all(|advice| !advice.needed) {
        let setting = |name: &str| server.settings.get(name).map_or("?", String::as_str);
        findings.add_good("settings", format!("wal_level = {}, timeline {}", setting("wal_level"), server.timeline()));
    }
    Ok(Some((server, sql)))
}

/// Whether anything brings this server's WAL here.
async fn check_wal_sources(
    cluster: &ClusterConfig,
    server: &InspectedServer,
    sql: &SqlSession,
    findings: &mut CheckFindings,
) -> bool {
    let mut streams = false;
    match sql.slot(cluster.slot.as_str()).await {
        Ok(None) => {
            findings.add_warning("slot", format!("{} does not exist yet; walkeep receive makes it", cluster.slot))
        }
        Ok(Some(slot)) => {
            let held = slot.restart.map(|restart| format_bytes(server.identity.flushed.bytes_since(restart)));
            let held = held.map_or("no WAL".to_owned(), |bytes| format!("{bytes} of WAL"));
            streams = slot.active;
            match (slot.wal_status.as_deref(), slot.active) {
                (Some("lost"), _) => {
                    let text = format!(
                        "{} is lost: the server removed WAL it needed; drop it, start receive, take a backup",
                        cluster.slot
                    );
                    findings.add_bad("slot", text);
                }
                (_, true) => findings.add_good("slot", format!("{} is in use and holds {held}", cluster.slot)),
                (_, false) => {
                    findings.add_warning(
                        "slot",
                        format!("{} holds {held} and nobody streams from it; start walkeep receive", cluster.slot),
                    );
                }
            }
        }
        Err(error) => findings.add_error("slot", &error.into()),
    }
    match sql.archiver().await {
        Ok(state) if server.uses_archive_command() => match (&state.last_failed, state.failed) {
            (Some(file), failed) if failed > 0 => {
                findings.add_warning(
                    "archiver",
                    format!("archive_command has failed {failed} times, the last time with {file}"),
                );
            }
            _ => findings.add_good("archiver", format!("archive_command has archived {} files", state.archived)),
        },
        Ok(_) => {}
        Err(error) => findings.add_error("archiver", &error.into()),
    }
    if !streams && !server.uses_archive_command() {
        findings.add_bad(
            "segment",
            "nothing brings WAL here: start walkeep receive, or set archive_command (see walkeep init)",
        );
    }
    streams || server.uses_archive_command()
}

/// The proof.
async fn check_switched_segment(
    archive: &Archive,
    server: &InspectedServer,
    sql: &SqlSession,
    around: &CliContext,
    findings: &mut CheckFindings,
) {
    if server.standby {
        findings.add_warning(
            "segment",
            "a standby cannot be made to end a segment; run check against the primary for the proof",
        );
        return;
    }
    match switch_and_await_segment(archive, server, sql, &*around.clock).await {
        Ok((name, took)) => {
            findings.add_good("segment", format!("{name} was archived {} after the switch", format_duration(took)))
        }
        Err(error) => findings.add_error("segment", &error),
    }
}

async fn switch_and_await_segment(
    archive: &Archive,
    server: &InspectedServer,
    sql: &SqlSession,
    clock: &dyn Clock,
) -> anyhow::Result<(SegmentName, Duration)> {
    if server.privileges.superuser || server.privileges.restore_point {
        // On an idle server there may be nothing to switch away from.
        sql.create_restore_point("walkeep check").await?;
    }
    let (_, file) = sql.switch_wal().await?;
    let name = SegmentName::parse(&file).with_context(|| format!("{file:?} is no segment's name"))?;
    let began = clock.elapsed();
    loop {
        let took = clock.elapsed().saturating_sub(began);
        if archive.digest(name).await.with_context(|| format!("cannot look for {name}"))?.is_some() {
            return Ok((name, took));
        }
        if took >= SEGMENT_TIMEOUT {
            let message = format!(
                "{name} was not archived within {}; look at the log of walkeep receive and at the server's",
                format_duration(SEGMENT_TIMEOUT)
            );
            return Err(CliError { code: CliExitCode::Failed, message }.into());
        }
        clock.sleep(ARCHIVE_POLL_INTERVAL).await;
    }
}

fn print_json(all: &[CheckedStore<'_>], several: bool, around: &CliContext) -> anyhow::Result<()> {
    let healthy = all.iter().all(|checked| checked.findings.is_healthy());
    let out = &around.output;
    match all {
        [only] if !several => out.print_json(&only.to_json(true)),
        all => out.print_json(&CheckJson {
            healthy,
            clusters: all.iter().filter(|checked| !checked.redis).map(|checked| checked.to_json(false)).collect(),
            instances: all.iter().filter(|checked| checked.redis).map(|checked| checked.to_json(false)).collect(),
        }),
    }
}

impl CheckedStore<'_> {
    /// `alone`: scripts know the one that is looked at by `cluster`, whatever it is.
    fn to_json(&self, alone: bool) -> CheckedStoreJson<'_> {
        CheckedStoreJson {
            cluster: Some(self.name).filter(|_| alone || !self.redis),
            instance: Some(self.name).filter(|_| self.redis),
            healthy: self.findings.is_healthy(),
            findings: &self.findings.0,
        }
    }
}

fn print_findings(checked: &CheckedStore<'_>, around: &CliContext) -> anyhow::Result<()> {
    let (name, findings, out) = (checked.name, &checked.findings.0, &around.output);
    // Not where a program reads: one finding is one line there.
    let room = terminal_width().map_or(usize::MAX, |columns| columns.saturating_sub(FINDING_TEXT_COLUMN));
    for finding in findings {
        let (mark, tone) = match finding.verdict {
            CheckVerdict::Good => ("ok", TextTone::Good),
            CheckVerdict::Warning => ("note", TextTone::Warning),
            CheckVerdict::Bad => ("FAIL", TextTone::Bad),
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
        |what: &str| findings.iter().any(|finding| finding.what == what && finding.verdict == CheckVerdict::Warning);
    let verdict = if !checked.findings.is_healthy() {
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

#[cfg(test)]
mod tests {
    use super::{CheckFindings, check_postgres_clock_offset};
    use crate::base::clock::ClockOffset;

    #[test]
    fn the_clock_of_a_standby_is_called_that() {
        let offset = ClockOffset { low: 4_999_800, high: 5_000_100 };
        for (standby, expected) in [
            (false, "Warning clock 4.999 s to 5.000 s ahead of this machine's, and the times of commits"),
            (true, "Good clock 4.999 s to 5.000 s ahead of this machine's; a standby's clock: commits carry the time"),
        ] {
            let mut findings = CheckFindings::default();
            check_postgres_clock_offset(offset, standby, &mut findings);
            assert!(findings.to_string().starts_with(expected), "{findings}");
        }
    }
}
