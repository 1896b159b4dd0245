//! Being a replica: the handshake, the snapshot in either of its two forms, and the stream after it.
//!
//! What is sent and answered stands in `syncWithMaster` and `slaveTryPartialResynchronization` (replication.c), seen
//! from the replica; `syncCommand` and `masterTryPartialResynchronization` are the other side. What is acknowledged is
//! decided in `redis::receive`.

use bytes::{Bytes, BytesMut};

use super::backlog::ReplicationBacklog;
use super::connection::RedisConnection;
use super::error::RedisError;
use super::info::ServerInfo;
use crate::redis::format::replication_id::ReplicationId;
use crate::redis::format::resp::{RedisReply, encode_command};

/// Bytes of the mark that ends a snapshot of unknown length (`CONFIG_RUN_ID_SIZE`, server.h).
const EOF_MARK_BYTES: usize = 40;
/// `$` and a length, or `$EOF:` and the mark.
const MAX_HEADER_BYTES: usize = 128;
/// No snapshot is longer; a length beyond is damage.
const MAX_SNAPSHOT_BYTES: u64 = 1 << 46;

/// What is asked of a server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyncRequest {
    /// A snapshot and nothing after it, so that the server need not keep the stream for us meanwhile.
    Snapshot,
    /// The stream alone, from this offset of this history on.
    Continue(ReplicationId, u64),
}

/// What a server does about it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SyncAnswer {
    /// A snapshot comes, which holds the history up to this offset.
    Full(ReplicationId, u64),
    /// The stream goes on where it was asked to, under another name if there is one: after a failover.
    Continue(Option<ReplicationId>),
}

/// What is known of the right to attach as a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplicaPermission {
    /// The server has let us.
    Granted,
    /// Nobody could say without making the server begin a snapshot.
    Unknown,
}

impl RedisConnection {
    /// Whether the server lets us attach as a replica, found out without a snapshot: the stream is asked for from its
    /// very end, which a server with a backlog continues at once (`masterTryPartialResynchronization`); one without is
    /// asked what it would say (`ACL DRYRUN`, from 7.0 on).
    ///
    /// # Errors
    /// The server refuses, or the connection broke.
    pub async fn check_replica_permission(mut self, info: &ServerInfo) -> Result<ReplicaPermission, RedisError> {
        let replid = info.get("master_replid").and_then(|id| id.parse().ok());
        let offset = info.number("master_repl_offset");
        if let (Some(replid), Some(offset)) = (replid, offset)
            && ReplicationBacklog::from_info(info).covers(offset)
        {
            self.request_sync(SyncRequest::Continue(replid, offset), info.version()).await?;
            return Ok(ReplicaPermission::Granted);
        }
        let Ok(RedisReply::Bulk(user)) = self.call(&[b"ACL", b"WHOAMI"]).await else {
            return Ok(ReplicaPermission::Unknown);
        };
        match self.call(&[b"ACL", b"DRYRUN", &user, b"PSYNC", b"?", b"-1"]).await {
            Ok(RedisReply::Status(_)) => Ok(ReplicaPermission::Granted),
            Ok(RedisReply::Bulk(why)) => {
                Err(RedisError::from_reply(self.peer(), "PSYNC", &format!("NOPERM {}", String::from_utf8_lossy(&why))))
            }
            Ok(_) | Err(RedisError::Refused { .. } | RedisError::Login { .. }) => Ok(ReplicaPermission::Unknown),
            Err(error) => Err(error),
        }
    }

    /// Attaches as a replica. `version` is the server's own, so that it sends what it would send its equal: Valkey
    /// writes an older format for replicas it does not know.
    ///
    /// # Errors
    /// The server refuses, is not ready, or the connection broke.
    pub async fn request_sync(&mut self, wish: SyncRequest, version: &str) -> Result<SyncAnswer, RedisError> {
        // No `PING` before, as replicas send: a server whose own saves fail refuses it (`MISCONF`), and none of this.
        self.call(&[b"REPLCONF", b"capa", b"eof", b"capa", b"psync2"]).await?;
        // Options that older servers do not have; all goes well without.
        self.call_ignoring_errors(&[b"REPLCONF", b"version", version.as_bytes()]).await?;
        if wish == SyncRequest::Snapshot {
            self.call_ignoring_errors(&[b"REPLCONF", b"rdb-only", b"1"]).await?;
        }
        let (id, next) = match wish {
            SyncRequest::Snapshot => ("?".to_owned(), "-1".to_owned()),
            SyncRequest::Continue(id, offset) => (id.to_string(), offset.saturating_add(1).to_string()),
        };
        self.send(&encode_command(&[b"PSYNC", id.as_bytes(), next.as_bytes()])).await?;
        let answer = match self.read_reply("it prepared a synchronisation").await? {
            RedisReply::Status(answer) => answer,
            RedisReply::Error(message) => return Err(RedisError::from_reply(self.peer(), "PSYNC", &message)),
            other => return Err(RedisError::protocol(self.peer(), format!("PSYNC is answered with {other:?}"))),
        };
        parse_sync_answer(&answer)
            .ok_or_else(|| RedisError::protocol(self.peer(), format!("PSYNC is answered with {answer:?}")))
    }

    async fn call_ignoring_errors(&mut self, arguments: &[&[u8]]) -> Result<(), RedisError> {
        match self.call(arguments).await {
            Ok(_) | Err(RedisError::Refused { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Waits for the snapshot to begin.
    ///
    /// # Errors
    /// The server gave up, or the connection broke.
    pub async fn begin_transfer(&mut self) -> Result<SnapshotTransfer, RedisError> {
        let during = "a snapshot was awaited";
        loop {
            self.skip_line_feeds();
            if let Some(end) = self.input.iter().take(MAX_HEADER_BYTES).position(|byte| *byte == b'\n') {
                let line = self.input.split_to(end.saturating_add(1));
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if let Some(message) = line.strip_prefix('-') {
                    return Err(RedisError::from_reply(self.peer(), "PSYNC", message));
                }
                let wrong = || RedisError::protocol(self.peer(), format!("a snapshot begins with {line:?}"));
                return SnapshotTransfer::parse_header(&line).ok_or_else(wrong);
            }
            if self.input.len() >= MAX_HEADER_BYTES {
                return Err(RedisError::protocol(self.peer(), "no line before the snapshot"));
            }
            self.read_more(during).await?;
        }
    }

    /// The next bytes of the snapshot; `None` at its end. Cancel safe.
    ///
    /// # Errors
    /// The connection broke before the end.
    pub async fn read_snapshot(&mut self, transfer: &mut SnapshotTransfer) -> Result<Option<Bytes>, RedisError> {
        loop {
            if let Some(bytes) = transfer.split_payload(&mut self.input) {
                return Ok(Some(bytes));
            }
            if transfer.ended {
                return Ok(None);
            }
            self.read_more("a snapshot was under way").await?;
        }
    }

    /// The next bytes of the stream, at least one. Cancel safe.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn read_stream(&mut self) -> Result<Bytes, RedisError> {
        self.read_bytes("the stream was followed").await
    }

    /// Tells the server how far the stream is safe here. Also what makes it begin the stream after a snapshot of
    /// unknown length.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn acknowledge(&mut self, offset: u64) -> Result<(), RedisError> {
        self.send(&encode_command(&[b"REPLCONF", b"ACK", offset.to_string().as_bytes()])).await
    }
}

fn parse_sync_answer(answer: &str) -> Option<SyncAnswer> {
    let words: Vec<&str> = answer.split_ascii_whitespace().collect();
    match words.as_slice() {
        ["FULLRESYNC", id, offset] => Some(SyncAnswer::Full(id.parse().ok()?, offset.parse().ok()?)),
        ["CONTINUE"] => Some(SyncAnswer::Continue(None)),
        ["CONTINUE", id] => Some(SyncAnswer::Continue(Some(id.parse().ok()?))),
        _ => None,
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TransferForm {
    /// From a file: so many bytes are still to come.
    Length(u64),
    /// Straight from the server's memory: until these bytes.
    Marked([u8; EOF_MARK_BYTES]),
}

/// A snapshot on its way.
#[derive(Clone, Debug)]
pub struct SnapshotTransfer {
    form: TransferForm,
    len: Option<u64>,
    ended: bool,
}

impl SnapshotTransfer {
    /// From the line before the snapshot.
    fn parse_header(line: &str) -> Option<SnapshotTransfer> {
        let rest = line.strip_prefix('$')?;
        if let Some(mark) = rest.strip_prefix("EOF:") {
            let form = TransferForm::Marked(mark.as_bytes().try_into().ok()?);
            return Some(SnapshotTransfer { form, len: None, ended: false });
        }
        let len = rest.parse().ok().filter(|len| *len <= MAX_SNAPSHOT_BYTES)?;
        Some(SnapshotTransfer { form: TransferForm::Length(len), len: Some(len), ended: len == 0 })
    }

    /// How long the snapshot is, if the server said so.
    #[must_use]
    pub fn len(&self) -> Option<u64> {
        self.len
    }

    /// Whether the server said that nothing comes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == Some(0)
    }

    /// Takes what is certainly part of the snapshot out of `input`.
    ///
    /// The mark may be cut by any read, so as many bytes as it has are held back. After it the server sends nothing
    /// until it is acknowledged (`repl_put_online_on_ack`), so it is looked for at the end alone, as
    /// `readSyncBulkPayload` does.
    fn split_payload(&mut self, input: &mut BytesMut) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let taken = match &mut self.form {
            TransferForm::Length(left) => {
                let len = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left = left.saturating_sub(len as u64);
                self.ended = *left == 0;
                input.split_to(len)
            }
            TransferForm::Marked(mark) => {
                let body = input.len().saturating_sub(EOF_MARK_BYTES);
                let taken = input.split_to(body);
                if input.as_ref() == mark.as_slice() {
                    input.clear();
                    self.ended = true;
                }
                taken
            }
        };
        (!taken.is_empty()).then(|| taken.freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::{ReplicationId, SnapshotTransfer, SyncAnswer, parse_sync_answer};
    use bytes::BytesMut;

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";

    /// Feeds `bytes` in pieces that end at `cuts`; what came out, and what was left.
    fn transferred(line: &str, bytes: &[u8], cuts: &[usize]) -> (Vec<u8>, bool, Vec<u8>) {
        let mut transfer = SnapshotTransfer::parse_header(line).unwrap();
        let (mut input, mut out, mut from) = (BytesMut::new(), Vec::new(), 0);
        for to in cuts.iter().copied().chain([bytes.len()]) {
            input.extend_from_slice(&bytes[from..to]);
            while let Some(taken) = transfer.split_payload(&mut input) {
                out.extend_from_slice(&taken);
            }
            from = to;
        }
        (out, transfer.ended, input.to_vec())
    }

    #[test]
    fn a_marked_snapshot_ends_at_its_mark_wherever_reads_end() {
        // The mark's own beginning is in the data, and just before it.
        let body = [b"REDIS0010".as_slice(), &ID.as_bytes()[..39], b"x", &ID.as_bytes()[..20]].concat();
        let bytes = [body.as_slice(), ID.as_bytes()].concat();
        let line = format!("$EOF:{ID}");
        for cut in 0..=bytes.len() {
            assert_eq!(transferred(&line, &bytes, &[cut]), (body.clone(), true, vec![]), "cut at {cut}");
        }
        let each: Vec<usize> = (0..bytes.len()).collect();
        assert_eq!(transferred(&line, &bytes, &each), (body.clone(), true, vec![]));
        let (out, ended, _) = transferred(&line, &bytes[..bytes.len() - 1], &[]);
        assert!(!ended && out.len() < body.len(), "a mark that is not whole ends nothing");
    }

    #[test]
    fn a_snapshot_of_known_length_leaves_the_stream_alone() {
        for cut in 0..=8 {
            let (out, ended, left) = transferred("$5", b"REDISnext"[..8].as_ref(), &[cut]);
            assert_eq!((out.as_slice(), ended, left.as_slice()), (b"REDIS".as_slice(), true, b"nex".as_slice()));
        }
        assert!(!transferred("$5", b"REDI", &[]).1);
    }

    #[test]
    fn answers_are_what_a_master_gives() {
        let id: ReplicationId = ID.parse().unwrap();
        assert_eq!(id.to_string(), ID);
        assert_eq!(parse_sync_answer(&format!("FULLRESYNC {ID} 42")), Some(SyncAnswer::Full(id, 42)));
        assert_eq!(parse_sync_answer("CONTINUE"), Some(SyncAnswer::Continue(None)));
        assert_eq!(parse_sync_answer(&format!("CONTINUE {ID}")), Some(SyncAnswer::Continue(Some(id))));
        for wrong in ["", "FULLRESYNC", "FULLRESYNC x 1", &format!("FULLRESYNC {ID} -1"), "OK", "CONTINUE x"] {
            assert_eq!(parse_sync_answer(wrong), None, "{wrong}");
        }
        for wrong in ["", "$", "$-1", "$99999999999999999", "$EOF:", "$EOF:short", ":5"] {
            assert!(SnapshotTransfer::parse_header(wrong).is_none(), "{wrong}");
        }
    }
}
