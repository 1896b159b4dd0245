//! Does archiving of a PostgreSQL cluster work, end to end, now?
//!
//! The server is asked for its settings, its slot and its archiver. The proof comes last: the server is made to end its
//! current WAL segment, and that segment must be archived.

pub mod server;

use std::time::Duration;

use server::InspectedServer;

use super::archive::{Archive, ArchiveError, foreign_server};
use super::format::segment::SegmentName;
use super::sql::{SqlError, SqlSession};
use super::wire::Conninfo;
use crate::base::clock::{Clock, ClockOffset};
use crate::base::findings::CheckFindings;
use crate::base::units::{format_bytes, format_duration};

/// The segment must be archived within this time: long enough for a slow store, short enough to wait for at a terminal.
const SEGMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// How often the archive is asked for the segment.
const ARCHIVE_POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The server to check.
#[derive(Clone, Copy, Debug)]
pub struct CheckedServer<'s> {
    /// How to reach it.
    pub conninfo: &'s Conninfo,
    /// The receiver's slot.
    pub slot: &'s str,
    /// The `archive_command` that would feed walkeep.
    pub push_command: &'s str,
}

/// Why it could not be proved that a segment is archived.
#[derive(Debug, thiserror::Error)]
enum SegmentCheckError {
    /// The server did not switch to a new segment.
    #[error("{0}")]
    Sql(#[from] SqlError),
    /// The server named a file that is no segment.
    #[error("{0:?} is no segment's name")]
    Name(String),
    /// The archive cannot be read.
    #[error("cannot look for {name}")]
    Archive {
        /// The segment that the server ended.
        name: SegmentName,
        /// The error from reading it.
        source: ArchiveError,
    },
    /// Waited long enough.
    #[error(
        "{} was not archived within {}; look at the log of walkeep receive and at the server's",
        .0,
        format_duration(SEGMENT_TIMEOUT)
    )]
    NotArchived(SegmentName),
}

/// Checks the server and the way of its WAL into `archive`, as far as that could be opened.
pub async fn check_server(
    checked: CheckedServer<'_>,
    archive: Option<&Archive>,
    clock: &dyn Clock,
    findings: &mut CheckFindings,
) {
    let (server, sql) = match InspectedServer::inspect(checked.conninfo).await {
        Ok(inspected) => inspected,
        Err(error) => return findings.add_error("connection", error),
    };
    if let Some(archive) = archive {
        match archive.identity().await {
            Ok(archived) => {
                let archived = archived.map(|identity| identity.system_id);
                if let Some(foreign) = archived.and_then(|ours| foreign_server(server.identity.system_id, ours)) {
                    return findings.add_bad("connection", foreign);
                }
            }
            Err(error) => findings.add_error("archive", error),
        }
    }
    check_settings(&server, checked.push_command, findings);
    measure_postgres_clock(&server, &sql, clock, findings).await;
    let fed = check_wal_sources(checked.slot, &server, &sql, findings).await;
    if let (Some(archive), true) = (archive, fed) {
        check_switched_segment(archive, &server, &sql, clock, findings).await;
    }
}

/// What the server is, and which of its settings and privileges should be otherwise.
fn check_settings(server: &InspectedServer, push_command: &str, findings: &mut CheckFindings) {
    let kind = if server.standby { "a standby" } else { "a primary" };
    let (release, peer, role) = (server.release(), &server.peer, &server.privileges.role);
    findings.add_good("connection", format!("PostgreSQL {release} at {peer}, {kind}, as {role}"));
    let mut advice = server.advice(push_command);
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
}

/// The quickest of three answers.
async fn measure_postgres_clock(
    server: &InspectedServer,
    sql: &SqlSession,
    clock: &dyn Clock,
    findings: &mut CheckFindings,
) {
    let mut best: Option<ClockOffset> = None;
    for _ in 0..3 {
        let asked = clock.elapsed();
        match sql.server_time().await {
            Ok(shown) => {
                let came = clock.now();
                let offset = ClockOffset::from_answer(shown, came, clock.elapsed().saturating_sub(asked));
                best = best.into_iter().chain([offset]).min_by_key(|offset| offset.width());
            }
            Err(error) => return findings.add_error("clock", error),
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
        findings.add_clock_offset(offset, "the times of commits and so target times are by it");
    }
}

/// Whether anything brings this server's WAL here.
async fn check_wal_sources(
    slot_name: &str,
    server: &InspectedServer,
    sql: &SqlSession,
    findings: &mut CheckFindings,
) -> bool {
    let mut streams = false;
    match sql.slot(slot_name).await {
        Ok(None) => findings.add_warning("slot", format!("{slot_name} does not exist yet; walkeep receive makes it")),
        Ok(Some(slot)) => {
            let held = slot.restart.map(|restart| format_bytes(server.identity.flushed.bytes_since(restart)));
            let held = held.map_or("no WAL".to_owned(), |bytes| format!("{bytes} of WAL"));
            streams = slot.active;
            match (slot.wal_status.as_deref(), slot.active) {
                (Some("lost"), _) => {
                    let text = format!(
                        "{slot_name} is lost: the server removed WAL it needed; drop it, start receive, take a backup"
                    );
                    findings.add_bad("slot", text);
                }
                (_, true) => findings.add_good("slot", format!("{slot_name} is in use and holds {held}")),
                (_, false) => {
                    findings.add_warning(
                        "slot",
                        format!("{slot_name} holds {held} and nobody streams from it; start walkeep receive"),
                    );
                }
            }
        }
        Err(error) => findings.add_error("slot", error),
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
        Err(error) => findings.add_error("archiver", error),
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
    clock: &dyn Clock,
    findings: &mut CheckFindings,
) {
    if server.standby {
        findings.add_warning(
            "segment",
            "a standby cannot be made to end a segment; run check against the primary for the proof",
        );
        return;
    }
    match switch_and_await_segment(archive, server, sql, clock).await {
        Ok((name, took)) => {
            findings.add_good("segment", format!("{name} was archived {} after the switch", format_duration(took)))
        }
        Err(error) => findings.add_error("segment", error),
    }
}

async fn switch_and_await_segment(
    archive: &Archive,
    server: &InspectedServer,
    sql: &SqlSession,
    clock: &dyn Clock,
) -> Result<(SegmentName, Duration), SegmentCheckError> {
    if server.privileges.superuser || server.privileges.restore_point {
        // On an idle server there may be nothing to switch away from.
        sql.create_restore_point("walkeep check").await?;
    }
    let (_, file) = sql.switch_wal().await?;
    let Some(name) = SegmentName::parse(&file) else { return Err(SegmentCheckError::Name(file)) };
    let began = clock.elapsed();
    loop {
        let took = clock.elapsed().saturating_sub(began);
        let found = archive.digest(name).await;
        if found.map_err(|source| SegmentCheckError::Archive { name, source })?.is_some() {
            return Ok((name, took));
        }
        if took >= SEGMENT_TIMEOUT {
            return Err(SegmentCheckError::NotArchived(name));
        }
        clock.sleep(ARCHIVE_POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::check_postgres_clock_offset;
    use crate::base::clock::ClockOffset;
    use crate::base::findings::CheckFindings;

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
