//! Whether what a Redis instance writes comes here: the last part of `walkeep check` of one.
//!
//! Judged as `walkeep health` judges it, with one thing more: whether `walkeep receive` could go on from what is
//! here, or would begin with a gap, because the server keeps only so much of its stream (`repl-backlog-size`) and
//! only of one history (`masterTryPartialResynchronization`, replication.c).

use std::time::Duration;

use jiff::Timestamp;

use crate::base::findings::CheckFindings;
use crate::base::units::{format_bytes, format_count, format_duration};
use crate::redis::archive::Archive;
use crate::redis::wire::{ReplicationBacklog, ReplicationId, ServerInfo};
use crate::vault::VaultError;

/// The subject of the findings about whether the commands of an instance are received.
pub const STREAM_SUBJECT: &str = "stream";
/// What may be under way for so long, as in `walkeep health`.
const MAX_STREAM_DELAY: Duration = Duration::from_secs(300);

/// What a server says of its stream.
#[derive(Clone, Debug, Default)]
struct ReplicationState {
    offset: Option<u64>,
    backlog: ReplicationBacklog,
    /// Whether somebody follows it who announces no port, as walkeep does and replicas do not.
    followed: bool,
}

impl ReplicationState {
    fn from_info(info: &ServerInfo) -> ReplicationState {
        let replicas = info.number("connected_slaves").unwrap_or(0).min(1000);
        let online = |nth| {
            let line = info.get(&format!("slave{nth}")).unwrap_or_default();
            let has = |wanted: &str| line.split(',').any(|part| part == wanted);
            has("port=0") && has("state=online")
        };
        ReplicationState {
            offset: info.number("master_repl_offset"),
            backlog: ReplicationBacklog::from_info(info),
            followed: (0..replicas).any(online),
        }
    }
}

/// The newest moment that can be restored.
#[derive(Clone, Copy, Debug)]
pub struct NewestArchived {
    /// Up to when everything is archived, by the receiver's clock.
    pub time: Timestamp,
    /// The history; `None` if the snapshot is not known to be part of one.
    pub replid: Option<ReplicationId>,
    /// Up to which offset it is archived.
    pub offset: Option<u64>,
}

/// What there is to judge by.
#[derive(Debug)]
pub struct StreamCheckFacts {
    name: String,
    newest: Result<NewestArchived, String>,
    /// Whether there is any snapshot, of use or not.
    based: bool,
    /// Whether its stream of commands is, or was, received.
    streamed: bool,
    /// What the server says, if it can be asked.
    server: Option<ReplicationState>,
    now: Timestamp,
}

impl StreamCheckFacts {
    /// Looks at what is archived of the instance. `newest` is its newest moment, or why there is none; `info` is what
    /// the server reports, if it can be asked.
    ///
    /// # Errors
    /// A repository cannot be read.
    pub async fn gather(
        instance: &Archive,
        newest: Result<NewestArchived, String>,
        info: Option<&ServerInfo>,
    ) -> Result<StreamCheckFacts, VaultError> {
        let streamed = instance.list_known_stretches().await?.histories().next().is_some();
        let based = !instance.list_snapshot_labels().await?.is_empty();
        Ok(StreamCheckFacts {
            name: instance.name().to_string(),
            newest,
            based,
            streamed,
            server: info.map(ReplicationState::from_info),
            now: instance.vault().clock().now(),
        })
    }
}

/// Whether more commands are received, and whether `walkeep receive` could continue without a gap.
pub fn judge_stream(facts: &StreamCheckFacts, findings: &mut CheckFindings) {
    let name = facts.name.as_str();
    let followed = facts.server.as_ref().is_some_and(|server| server.followed);
    let newest = match &facts.newest {
        Ok(newest) => newest,
        Err(_) if followed && !facts.based => {
            let text = "there is no snapshot yet: if it is walkeep receive that follows the server, it is taking one";
            return findings.add_bad(STREAM_SUBJECT, text);
        }
        Err(_) if !facts.streamed && !facts.based => {
            let text = format!(
                "nothing is archived yet: take a snapshot with walkeep backup redis {name}, and start walkeep \
                 receive {name}"
            );
            return findings.add_bad(STREAM_SUBJECT, text);
        }
        Err(why) => return findings.add_bad("newest", why.clone()),
    };
    let age = Duration::try_from(facts.now.duration_since(newest.time)).unwrap_or_default();
    let ago = format_duration(age);
    let Some(server) = &facts.server else {
        return findings.add_warning(
            "newest",
            format!("what is here leads to {ago} ago; what the server has written since is not known"),
        );
    };
    let here = newest.replid.zip(newest.offset);
    let same = here.filter(|(replid, offset)| server.backlog.has_history(*replid, *offset));
    let behind = same.and_then(|(_, offset)| Some(server.offset?.saturating_sub(offset)));
    if !facts.streamed && !followed {
        return match behind {
            Some(0) => findings.add_warning(
                STREAM_SUBJECT,
                format!(
                    "snapshots alone are kept; the newest has all that was written. walkeep receive {name} keeps every \
                     second"
                ),
            ),
            _ => findings.add_warning(
                STREAM_SUBJECT,
                format!(
                    "snapshots alone are kept: what was written in the last {ago} is on the server alone; \
                     walkeep receive {name} keeps every second"
                ),
            ),
        };
    }
    let again = format!("take a snapshot with walkeep backup redis {name}, and start walkeep receive {name}");
    match (same, behind) {
        (Some((_, offset)), Some(behind)) => {
            judge_same_history(server, ArchivedOffset { offset, behind, age }, name, findings);
        }
        _ if followed => findings.add_bad(
            STREAM_SUBJECT,
            "the server is in another history than what is here, after a failover or a restart: if it is walkeep \
             receive that follows it, it is taking a new snapshot",
        ),
        _ => {
            let text = "the server is in another history than what is here, after a failover or a restart: walkeep \
                        receive would begin with a gap";
            findings.add_bad(STREAM_SUBJECT, format!("{text}; {again}"));
        }
    }
}

/// Up to where the archive has the server's history.
#[derive(Clone, Copy)]
struct ArchivedOffset {
    offset: u64,
    /// Bytes that the server has written since.
    behind: u64,
    /// The age of the newest moment in the archive.
    age: Duration,
}

/// In the server's own history.
fn judge_same_history(
    server: &ReplicationState,
    ArchivedOffset { offset, behind, age }: ArchivedOffset,
    name: &str,
    findings: &mut CheckFindings,
) {
    let what = match behind {
        0 => "everything that the server has written is here".to_owned(),
        bytes => format!("{} of the server's stream are not here yet", format_count(bytes, "byte")),
    };
    if server.followed && (behind == 0 || age <= MAX_STREAM_DELAY) {
        let backlog = format_bytes(server.backlog.size());
        findings.add_good(
            STREAM_SUBJECT,
            format!("{what}, and somebody follows it; the newest moment is {} ago", format_duration(age)),
        );
        return findings
            .add_good("backlog", format!("{backlog}: as many bytes of writes may pass while nobody receives"));
    }
    if server.followed {
        let text = format!(
            "{what}, and the newest moment is {} ago: see what walkeep receive {name} logs",
            format_duration(age)
        );
        return findings.add_bad(STREAM_SUBJECT, text);
    }
    if server.backlog.covers(offset) {
        let text = format!(
            "{what}, and nobody follows it: start walkeep receive {name}; so far it can go on without a gap \
             (repl-backlog-size is {})",
            format_bytes(server.backlog.size())
        );
        return findings.add_bad(STREAM_SUBJECT, text);
    }
    let begins = server.backlog.first_next_byte().map_or_else(
        || "the server keeps no backlog".to_owned(),
        |first| format!("the server's backlog begins at offset {first}"),
    );
    findings.add_bad(
        STREAM_SUBJECT,
        format!(
            "{begins} and what is here ends at {offset}: walkeep receive would begin with a gap; take a snapshot with \
             walkeep backup redis {name}, and start walkeep receive {name}"
        ),
    );
}

#[cfg(test)]
mod tests {
    use jiff::{SignedDuration, Timestamp};

    use super::{NewestArchived, ReplicationState, StreamCheckFacts, judge_stream};
    use crate::base::findings::CheckFindings;
    use crate::redis::wire::ServerInfo;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    /// At offset 500, with what follows offset 99 in its backlog.
    fn server(change: &[(&str, &str)]) -> Option<ReplicationState> {
        let mut text = format!(
            "master_replid:{A}\nmaster_replid2:{B}\nmaster_repl_offset:500\nsecond_repl_offset:201\nrepl_backlog_active:1\n\
             repl_backlog_size:16384\nrepl_backlog_first_byte_offset:100\nrepl_backlog_histlen:401\nconnected_slaves:2\n\
             slave0:ip=10.0.0.2,port=6379,state=online,offset=500,lag=0\nslave1:ip=10.0.0.3,port=0,state=online,offset=500,lag=0\n"
        );
        for (from, to) in change {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, to);
        }
        Some(ReplicationState::from_info(&ServerInfo::parse(&text)))
    }

    const GONE: (&str, &str) = ("port=0", "port=6380");

    fn said(newest: Option<(&str, u64, i64)>, streamed: bool, server: Option<ReplicationState>) -> String {
        let now: Timestamp = "2026-11-22T14:00:00Z".parse().unwrap();
        let newest = newest.map(|(replid, offset, minutes)| NewestArchived {
            time: now.checked_sub(SignedDuration::from_mins(minutes)).unwrap(),
            replid: replid.parse().ok(),
            offset: Some(offset),
        });
        let based = newest.is_some();
        let newest = newest.ok_or_else(|| "why".to_owned());
        let mut findings = CheckFindings::default();
        judge_stream(
            &StreamCheckFacts { name: "cache".to_owned(), newest, based, streamed, server, now },
            &mut findings,
        );
        findings.to_string()
    }

    #[test]
    fn what_comes_is_judged_by_what_the_server_would_still_give() {
        let gone = || server(&[GONE]);
        for (said, begins, holds) in [
            (said(None, false, gone()), "Bad stream", "nothing is archived yet: take a snapshot"),
            (said(None, false, server(&[])), "Bad stream", "it is taking one"),
            (said(None, true, gone()), "Bad newest", "why"),
            (said(Some((A, 500, 60)), true, server(&[])), "Good stream", "everything that the server has written"),
            (said(Some((A, 400, 4)), true, server(&[])), "Good stream", "100 bytes of the server's stream"),
            (said(Some((A, 400, 6)), true, server(&[])), "Bad stream", "see what walkeep receive cache logs"),
            (said(Some((A, 500, 0)), true, gone()), "Bad stream", "nobody follows it: start walkeep receive cache"),
            (said(Some((A, 99, 0)), true, gone()), "Bad stream", "without a gap"),
            (said(Some((A, 98, 0)), true, gone()), "Bad stream", "begins at offset 100 and what is here ends at 98"),
            (
                said(Some((A, 400, 0)), true, server(&[GONE, ("backlog_active:1", "backlog_active:0")])),
                "Bad stream",
                "no backlog",
            ),
            (said(Some((B, 200, 0)), true, gone()), "Bad stream", "nobody follows it"),
            (said(Some((B, 201, 0)), true, gone()), "Bad stream", "another history than what is here"),
            (said(Some((B, 201, 0)), true, server(&[])), "Bad stream", "it is taking a new snapshot"),
            (said(Some((A, 400, 57_600)), false, gone()), "Warning stream", "in the last 40"),
            (said(Some((A, 500, 60)), false, gone()), "Warning stream", "the newest has all that was written"),
            (said(Some((A, 500, 60)), true, None), "Warning newest", "is not known"),
        ] {
            assert!(said.starts_with(begins) && said.contains(holds), "{holds}: {said}");
        }
    }

    #[test]
    fn a_snapshot_that_is_of_no_use_is_not_called_none() {
        let (newest, now) = (Err("a part is missing".to_owned()), Timestamp::UNIX_EPOCH);
        let mut findings = CheckFindings::default();
        judge_stream(
            &StreamCheckFacts {
                name: "cache".to_owned(),
                newest,
                based: true,
                streamed: false,
                server: server(&[]),
                now,
            },
            &mut findings,
        );
        assert!(findings.to_string().starts_with("Bad newest a part is missing"), "{findings}");
    }
}
