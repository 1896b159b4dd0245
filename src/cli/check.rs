//! `walkeep check`: does archiving work, end to end, now?
//!
//! Every part is tried and said, good or bad, so that one run shows all that is wrong. The proof is the last line: the server is made to end
//! its current WAL segment, and that very segment must arrive in the repository.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;

use super::Surroundings;
use super::args::Check;
use super::exit::{self, Code, Failure};
use super::open;
use super::output::{Tone, size, span};
use super::server::Server;
use crate::archive::instance::Wanted;
use crate::archive::{self, Archive};
use crate::clock::Clock;
use crate::config::{Cluster, Config, Instance};
use crate::postgres::segment::SegmentName;
use crate::redis;
use crate::repository::{Put, Repository};
use crate::seal::Protection;
use crate::sql::Sql;

/// The segment must be archived within this time: long enough for a slow store, short enough to wait for at a terminal.
const PATIENCE: Duration = Duration::from_secs(60);
/// What a writer that crashed left half-written is removed once it is this old; no writer takes so long.
const LEFT_OVER: Duration = Duration::from_secs(24 * 60 * 60);
/// How often the archive is asked for it.
const INTERVAL: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Good,
    Warning,
    Bad,
}

/// One thing that was looked at.
#[derive(Debug, serde::Serialize)]
struct Finding {
    what: &'static str,
    verdict: Verdict,
    text: String,
    #[serde(skip)]
    code: Code,
}

/// What `--json` prints.
#[derive(Debug, serde::Serialize)]
struct Report<'r> {
    cluster: &'r str,
    healthy: bool,
    findings: &'r [Finding],
}

#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

/// What is found of a server that nobody can ask: then it is not proved that its WAL comes.
const UNASKED: &str = "connection";

impl Findings {
    fn good(&mut self, what: &'static str, text: impl Into<String>) {
        self.0.push(Finding { what, verdict: Verdict::Good, text: text.into(), code: Code::Done });
    }

    fn warn(&mut self, what: &'static str, text: impl Into<String>) {
        self.0.push(Finding { what, verdict: Verdict::Warning, text: text.into(), code: Code::Done });
    }

    fn bad(&mut self, what: &'static str, text: impl Into<String>) {
        self.0.push(Finding { what, verdict: Verdict::Bad, text: text.into(), code: Code::Failed });
    }

    fn error(&mut self, what: &'static str, error: &anyhow::Error) {
        let (text, code) = (exit::explain(error), exit::code(error));
        self.0.push(Finding { what, verdict: Verdict::Bad, text, code });
    }
}

pub(super) async fn run(args: Check, around: &Surroundings) -> anyhow::Result<Code> {
    let config = around.config()?;
    if let Some(instance) = config.instance_meant(args.cluster.as_deref()) {
        return of_instance(&args, &config, instance, around).await;
    }
    let cluster = config.cluster(args.cluster.as_deref())?;
    let mut findings = Findings::default();
    let archive = match open::archive(&config, cluster, around).await {
        Ok(archive) => Some(archive),
        Err(error) => {
            findings.error("repository", &error);
            None
        }
    };
    if let Some(archive) = &archive {
        repositories(archive, &mut findings).await;
    }
    match server(&config, cluster, around, &mut findings).await {
        Ok(Some((server, sql))) => {
            let fed = feeds(cluster, &server, &sql, &mut findings).await;
            if let (Some(archive), true) = (&archive, fed) {
                segment(archive, &server, &sql, around, &mut findings).await;
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
            findings.warn(UNASKED, text);
        }
        Err(error) => findings.error("connection", &error),
    }
    for idle in &config.idle {
        findings.warn("configuration", format!("{idle} is read and checked, but this version does nothing with it"));
    }
    show(&args, cluster.name.as_str(), &findings.0, around)
}

async fn of_instance(args: &Check, config: &Config, of: &Instance, around: &Surroundings) -> anyhow::Result<Code> {
    let mut findings = Findings::default();
    match open::instance(config, of, around).await {
        Ok(instance) => {
            repositories(instance.archive(), &mut findings).await;
            redis_state(&instance, around, &mut findings).await;
        }
        Err(error) => findings.error("repository", &error),
    }
    if let Err(error) = redis_server(of, around, &mut findings).await {
        findings.error("connection", &error);
    }
    show(args, of.name.as_str(), &findings.0, around)
}

/// The server, asked as for a snapshot, up to the point where it would begin one.
async fn redis_server(of: &Instance, around: &Surroundings, findings: &mut Findings) -> anyhow::Result<()> {
    let source = of.source(&around.environment, &around.clock)?;
    let (connection, info) = source.connect().await?;
    let (flavour, version, peer) = (info.flavour(), info.version(), connection.peer().to_owned());
    let role = if info.is_master() { "a master" } else { "a replica" };
    findings.good("connection", format!("{flavour} {version} at {peer}, {role}"));
    match info.persistence_trouble() {
        Some(trouble) => findings.warn("persistence", trouble),
        None => findings.good("persistence", "the server's own saves succeed, as far as it says"),
    }
    if info.is_shard() {
        findings.warn(
            "cluster",
            "this is one shard of a Redis Cluster: each shard takes a section [redis.NAME] of its own, and a moment is restored shard by shard",
        );
    }
    if let redis::Source::Sentinels(_) = source {
        let (snapshots, _) = source.connect_for_snapshot().await?;
        findings.good("sentinels", format!("snapshots come from {}", snapshots.peer()));
    }
    match connection.may_follow(&info).await {
        Ok(redis::Right::Proved) => findings.good("replication", "the server lets walkeep attach as a replica"),
        Ok(redis::Right::Unproved) => findings.warn(
            "replication",
            "whether the server lets walkeep attach as a replica shows with the first snapshot; before that it does not say",
        ),
        Err(error) => findings.error("replication", &error.into()),
    }
    let backlog = info.number("repl_backlog_size").unwrap_or(0);
    findings.good("backlog", format!("{}: as many bytes of writes may pass while nobody receives", size(backlog)));
    Ok(())
}

/// What is there of an instance already.
async fn redis_state(instance: &archive::instance::Instance, around: &Surroundings, findings: &mut Findings) {
    match instance.reach(Wanted::Newest, None).await {
        Ok(Ok(reach)) => {
            let age = Duration::try_from(around.clock.now().duration_since(reach.at)).unwrap_or_default();
            let text = format!("snapshot {} and the stream behind it lead to {} ago", reach.snapshot.label, span(age));
            findings.good("newest", text);
        }
        Ok(Err(nothing)) => findings.warn("newest", nothing.reason),
        Err(error) => findings.error("newest", &error.into()),
    }
}

/// Each repository takes, gives back and removes an object.
async fn repositories(archive: &Archive, findings: &mut Findings) {
    for (name, why) in archive.unreachable() {
        findings.error("repository", &anyhow::Error::from(Arc::clone(why)).context(format!("{name} cannot be opened")));
    }
    for (name, repository) in archive.repositories() {
        let began = archive.clock().elapsed();
        match probe(archive, repository).await {
            Ok(()) => {
                sweep(name, repository).await;
                let took = archive.clock().elapsed().saturating_sub(began);
                let url = repository.url();
                findings.good(
                    "repository",
                    format!("{name} at {url}: wrote, read and removed an object in {}", span(took)),
                );
            }
            Err(error) => findings.error("repository", &error.context(format!("{name} failed"))),
        }
    }
    match &**archive.protection() {
        Protection::Encrypted(ring) => {
            findings
                .good("key", format!("opens the repository's keys; new objects are sealed under {}", ring.current().0));
        }
        Protection::None => findings.warn("key", "encryption is off: whoever reaches the repository can read it"),
    }
}

/// Removes what crashed writers left. Nothing depends on it, so that trouble is no finding.
async fn sweep(name: &str, repository: &Repository) {
    match repository.sweep(LEFT_OVER).await {
        Ok(0) => {}
        Ok(files) => tracing::info!(name, files, "removed what crashed writers had left"),
        Err(error) => tracing::warn!(name, %error, "cannot remove what crashed writers have left"),
    }
}

async fn probe(archive: &Archive, repository: &Repository) -> anyhow::Result<()> {
    let content = Bytes::from(rand::random::<[u8; 64]>().to_vec());
    let key = archive.layout().probe(&format!("{:032x}", rand::random::<u128>()))?;
    repository.put_new(&key, vec![content.clone()]).await?;
    // Some stores that speak S3 overlook "only if there is none", and would let one segment replace another.
    let other = repository.put_new(&key, vec![Bytes::from_static(b"another content")]).await;
    let back = repository.get(&key).await;
    repository.delete(&key).await?;
    if other? == Put::Created {
        anyhow::bail!("this store replaces objects that exist, so it cannot protect what is archived; use another");
    }
    if back? == content { Ok(()) } else { anyhow::bail!("{key} came back with another content than was written") }
}

async fn server(
    config: &Config,
    cluster: &Cluster,
    around: &Surroundings,
    findings: &mut Findings,
) -> anyhow::Result<Option<(Server, Sql)>> {
    let Some(info) = cluster.conninfo(&around.environment)? else { return Ok(None) };
    let (server, sql) = Server::look(&info).await?;
    let kind = if server.standby { "a standby" } else { "a primary" };
    let (release, peer, role) = (server.release(), &server.peer, &server.privileges.role);
    findings.good("connection", format!("PostgreSQL {release} at {peer}, {kind}, as {role}"));
    let push = format!("{} archive-push %p", open::invocation(&config.path)?);
    let mut advice = server.advice(&push);
    advice.sort_by_key(|advice| !advice.needed);
    for advice in &advice {
        let what = if advice.line.ends_with(';') { "privileges" } else { "settings" };
        if advice.needed {
            findings.bad(what, format!("{}  ({})", advice.line, advice.why));
        } else if !(server.standby || advice.line.starts_with("archive_")) {
            findings.warn(what, format!("{}  ({})", advice.line, advice.why));
        }
    }
    if advice.iter().all(|advice| !advice.needed) {
        let setting = |name: &str| server.settings.get(name).map_or("?", String::as_str);
        findings.good("settings", format!("wal_level = {}, timeline {}", setting("wal_level"), server.timeline()));
    }
    Ok(Some((server, sql)))
}

/// Whether anything brings this server's WAL here.
async fn feeds(cluster: &Cluster, server: &Server, sql: &Sql, findings: &mut Findings) -> bool {
    let mut streams = false;
    match sql.slot(cluster.slot.as_str()).await {
        Ok(None) => findings.warn("slot", format!("{} does not exist yet; walkeep receive makes it", cluster.slot)),
        Ok(Some(slot)) => {
            let held = slot.restart.map(|restart| size(server.identity.flushed.bytes_since(restart)));
            let held = held.map_or("no WAL".to_owned(), |bytes| format!("{bytes} of WAL"));
            streams = slot.active;
            match (slot.wal_status.as_deref(), slot.active) {
                (Some("lost"), _) => {
                    let text = format!(
                        "{} is lost: the server removed WAL it needed; drop it, start receive, take a backup",
                        cluster.slot
                    );
                    findings.bad("slot", text);
                }
                (_, true) => findings.good("slot", format!("{} is in use and holds {held}", cluster.slot)),
                (_, false) => {
                    findings.warn(
                        "slot",
                        format!("{} holds {held} and nobody streams from it; start walkeep receive", cluster.slot),
                    );
                }
            }
        }
        Err(error) => findings.error("slot", &error.into()),
    }
    match sql.archiver().await {
        Ok(state) if server.pushes() => match (&state.last_failed, state.failed) {
            (Some(file), failed) if failed > 0 => {
                findings
                    .warn("archiver", format!("archive_command has failed {failed} times, the last time with {file}"));
            }
            _ => findings.good("archiver", format!("archive_command has archived {} files", state.archived)),
        },
        Ok(_) => {}
        Err(error) => findings.error("archiver", &error.into()),
    }
    if !streams && !server.pushes() {
        findings.bad(
            "segment",
            "nothing brings WAL here: start walkeep receive, or set archive_command (see walkeep init)",
        );
    }
    streams || server.pushes()
}

/// The proof.
async fn segment(archive: &Archive, server: &Server, sql: &Sql, around: &Surroundings, findings: &mut Findings) {
    if server.standby {
        findings
            .warn("segment", "a standby cannot be made to end a segment; run check against the primary for the proof");
        return;
    }
    match await_switched(archive, server, sql, &*around.clock).await {
        Ok((name, took)) => findings.good("segment", format!("{name} was archived {} after the switch", span(took))),
        Err(error) => findings.error("segment", &error),
    }
}

async fn await_switched(
    archive: &Archive,
    server: &Server,
    sql: &Sql,
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
        if took >= PATIENCE {
            let message = format!(
                "{name} was not archived within {}; look at the log of walkeep receive and at the server's",
                span(PATIENCE)
            );
            return Err(Failure { code: Code::Failed, message }.into());
        }
        clock.sleep(INTERVAL).await;
    }
}

fn show(args: &Check, name: &str, findings: &[Finding], around: &Surroundings) -> anyhow::Result<Code> {
    let bad = findings.iter().find(|finding| finding.verdict == Verdict::Bad);
    let out = &around.output;
    if args.json {
        out.json(&Report { cluster: name, healthy: bad.is_none(), findings })?;
    } else {
        for finding in findings {
            let (mark, tone) = match finding.verdict {
                Verdict::Good => ("ok", Tone::Good),
                Verdict::Warning => ("note", Tone::Warning),
                Verdict::Bad => ("FAIL", Tone::Bad),
            };
            let mark = out.tone(tone, format!("{mark:<4}"));
            out.line(format!("  {mark}  {:<13} {}", finding.what, finding.text))?;
        }
        let verdict = match bad {
            None if findings.iter().any(|finding| finding.what == UNASKED && finding.verdict == Verdict::Warning) => {
                out.tone(Tone::Warning, format!("{name}: the repository works; whether WAL comes, walkeep list shows"))
            }
            None => out.tone(Tone::Good, format!("{name}: archiving works")),
            Some(_) => out.tone(Tone::Bad, format!("{name}: archiving does not work; mend what says FAIL")),
        };
        out.line("")?;
        out.line(verdict)?;
    }
    Ok(bad.map_or(Code::Done, |finding| finding.code))
}
