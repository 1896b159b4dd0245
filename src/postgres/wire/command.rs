//! What we say to a walsender: commands as text, and the status reports of a standby (protocol.sgml "Streaming
//! Replication Protocol"; grammar in `repl_gram.y`).
//!
//! Pure: values in, text or bytes out.

use std::fmt;
use std::fmt::Write;

use bytes::{BufMut, BytesMut};

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;
use crate::postgres::format::timeline::TimelineId;

/// The name of a replication slot: lower-case letters, digits and underscores, at most 63
/// (`ReplicationSlotValidateName`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotName(String);

/// A name no replication slot can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no name for a replication slot; lower-case letters, digits and underscores are allowed, at most 63")]
pub struct SlotNameError(String);

impl SlotName {
    /// The slot called `name`.
    ///
    /// # Errors
    /// [`SlotNameError`] if PostgreSQL would refuse it.
    pub fn new(name: &str) -> Result<SlotName, SlotNameError> {
        let plain = name.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'_'));
        if plain && (1..=63).contains(&name.len()) {
            Ok(SlotName(name.to_owned()))
        } else {
            Err(SlotNameError(name.to_owned()))
        }
    }

    /// The name itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SlotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The major version of a server, 13 to 18 and those to come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ServerVersion(pub u32);

impl ServerVersion {
    /// Reads the parameter `server_version`: `15.20 (Debian 15.20-1)`, `18beta1`, `19devel`.
    #[must_use]
    pub fn parse(text: &str) -> Option<ServerVersion> {
        let digits = text.split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok().map(ServerVersion)
    }

    /// Commands take their options in parentheses.
    #[must_use]
    pub fn has_option_lists(self) -> bool {
        self >= ServerVersion(15)
    }

    /// `SHOW in_hot_standby` is there.
    #[must_use]
    pub fn shows_recovery(self) -> bool {
        self >= ServerVersion(14)
    }

    /// `READ_REPLICATION_SLOT` is there.
    #[must_use]
    pub fn can_read_slots(self) -> bool {
        self >= ServerVersion(15)
    }
}

impl fmt::Display for ServerVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// `text` between single quotes, as `repl_scanner.l` reads it back.
fn quote_literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// `CREATE_REPLICATION_SLOT`, physical. With `reserve` the server keeps WAL from now on; without, only from the first
/// connection on.
#[must_use]
pub fn create_physical_slot(slot: &SlotName, reserve: bool, version: ServerVersion) -> String {
    let reserve = match (reserve, version.has_option_lists()) {
        (false, _) => "",
        (true, true) => " (RESERVE_WAL)",
        (true, false) => " RESERVE_WAL",
    };
    format!("CREATE_REPLICATION_SLOT \"{slot}\" PHYSICAL{reserve}")
}

/// `CREATE_REPLICATION_SLOT`, physical and temporary: the server keeps WAL from its last checkpoint on until the
/// connection ends.
#[must_use]
pub fn create_temporary_slot(slot: &SlotName, version: ServerVersion) -> String {
    let reserve = if version.has_option_lists() { "(RESERVE_WAL)" } else { "RESERVE_WAL" };
    format!("CREATE_REPLICATION_SLOT \"{slot}\" TEMPORARY PHYSICAL {reserve}")
}

/// `DROP_REPLICATION_SLOT`.
#[must_use]
pub fn drop_slot(slot: &SlotName) -> String {
    format!("DROP_REPLICATION_SLOT \"{slot}\"")
}

/// `READ_REPLICATION_SLOT` (PostgreSQL 15 and later).
#[must_use]
pub fn read_slot(slot: &SlotName) -> String {
    format!("READ_REPLICATION_SLOT \"{slot}\"")
}

/// `TIMELINE_HISTORY`.
#[must_use]
pub fn timeline_history(timeline: TimelineId) -> String {
    format!("TIMELINE_HISTORY {timeline}")
}

/// `SHOW`. `None` if `name` is none a setting can have: it goes into the command unquoted.
#[must_use]
pub fn show(name: &str) -> Option<String> {
    let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'));
    plain.then(|| format!("SHOW {name}"))
}

/// `START_REPLICATION`, physical.
#[must_use]
pub fn start_physical(slot: Option<&SlotName>, start: Lsn, timeline: TimelineId) -> String {
    let slot = slot.map(|slot| format!("SLOT \"{slot}\" ")).unwrap_or_default();
    format!("START_REPLICATION {slot}PHYSICAL {start} TIMELINE {timeline}")
}

/// How a base backup is to be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseBackupOptions {
    /// Goes into `backup_label`.
    pub label: String,
    /// Start with an immediate checkpoint instead of one spread over `checkpoint_completion_target`.
    pub fast_checkpoint: bool,
    /// The most the server sends, in KiB a second (32 to 1048576).
    pub max_rate_kib: Option<u32>,
    /// The server's own manifest (`backup_manifest`); none is not to be sent.
    pub manifest: bool,
    /// The server verifies data checksums too. We verify them ourselves, so usually it is work done twice.
    pub server_verifies: bool,
    /// Wait until the server has archived the WAL of the backup. A receiver has it anyway.
    pub wait_for_archive: bool,
    /// Have the server compress what it sends (PostgreSQL 15 and later, if built for it). It comes out as if it were
    /// not.
    pub compression: Option<ServerCompression>,
}

/// How a server is to compress what it sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerCompression {
    /// At its fastest.
    Lz4,
    /// At this level.
    Zstd(i32),
}

/// `BASE_BACKUP`, in the server's spelling; always with progress and with the tablespace map in the archive.
#[must_use]
pub fn base_backup(options: &BaseBackupOptions, version: ServerVersion) -> String {
    let mut words: Vec<String> = vec![format!("LABEL {}", quote_literal(&options.label))];
    let lists = version.has_option_lists();
    let mut word = |new: &str, old: &str| words.push(if lists { new } else { old }.to_owned());
    word("PROGRESS true", "PROGRESS");
    if options.fast_checkpoint {
        word("CHECKPOINT 'fast'", "FAST");
    }
    if !options.wait_for_archive {
        word("WAIT false", "NOWAIT");
    }
    if let Some(rate) = options.max_rate_kib {
        let text = format!("MAX_RATE {rate}");
        word(&text, &text);
    }
    word("TABLESPACE_MAP true", "TABLESPACE_MAP");
    match options.compression.filter(|_| lists) {
        Some(ServerCompression::Lz4) => word("COMPRESSION 'lz4'", ""),
        Some(ServerCompression::Zstd(level)) => {
            word(&format!("COMPRESSION 'zstd', COMPRESSION_DETAIL 'level={level}'"), "")
        }
        None => {}
    }
    if !options.server_verifies {
        word("VERIFY_CHECKSUMS false", "NOVERIFY_CHECKSUMS");
    }
    word(
        if options.manifest { "MANIFEST 'yes'" } else { "MANIFEST 'no'" },
        if options.manifest { "MANIFEST 'yes'" } else { "MANIFEST 'no'" },
    );
    if lists { format!("BASE_BACKUP ({})", words.join(", ")) } else { format!("BASE_BACKUP {}", words.join(" ")) }
}

/// How far a standby is. `apply` is not here: walkeep replays nothing, and a position that is claimed applied would
/// make a commit under `synchronous_commit = remote_apply` visible where nothing can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StandbyStatus {
    /// Everything before this has been received.
    pub written: Lsn,
    /// Everything before this survives a crash.
    pub flushed: Lsn,
    /// The server is to answer at once, to show that it is there.
    pub reply_wanted: bool,
}

/// Appends a standby status update, framed as `CopyData`, to `out` (protocol.sgml "Standby status update").
pub fn standby_status(status: StandbyStatus, now: PgTime, out: &mut BytesMut) {
    out.put_u8(b'd');
    out.put_u32(4 + 1 + 8 + 8 + 8 + 8 + 1);
    out.put_u8(b'r');
    out.put_u64(status.written.get());
    out.put_u64(status.flushed.get());
    out.put_u64(Lsn::INVALID.get());
    out.put_i64(now.pg_micros());
    out.put_u8(u8::from(status.reply_wanted));
}

/// The startup packet: protocol 3.0 and `parameters` (protocol.sgml "StartupMessage"). Zero bytes can't be sent and are
/// left out.
pub fn startup(parameters: &[(&str, &str)], out: &mut BytesMut) {
    let mut body = String::new();
    for (name, value) in parameters {
        // Writing to a string can't fail.
        let _written = write!(body, "{}\0{}\0", name.replace('\0', ""), value.replace('\0', ""));
    }
    let len = u32::try_from(body.len() + 9).unwrap_or(u32::MAX);
    out.put_u32(len);
    out.put_u32(196_608);
    out.put_slice(body.as_bytes());
    out.put_u8(0);
}

/// Any bytes, as the parts of commands: what comes in must not be able to end its quotes. For fuzzing.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let quoted = quote_literal(&text);
    let inner = quoted.trim_start_matches('\'').len();
    assert!(inner <= quoted.len() && quoted.matches('\'').count().is_multiple_of(2), "a quote is left open");
    if let Ok(slot) = SlotName::new(&text) {
        assert!(!slot.as_str().contains('"'), "a slot's name ends its quotes");
    }
    if let Some(command) = show(&text) {
        assert!(!command.contains([';', '\'', '"', '\0']), "a setting's name is more than a name");
    }
    let _version = ServerVersion::parse(&text);
}

#[cfg(test)]
mod tests {
    use super::{
        BaseBackupOptions, ServerCompression, ServerVersion, SlotName, StandbyStatus, base_backup,
        create_physical_slot, fuzz, show, standby_status, start_physical,
    };
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::time::PgTime;
    use crate::postgres::format::timeline::TimelineId;
    use bytes::BytesMut;

    #[test]
    fn each_version_gets_its_own_spelling() {
        let slot = SlotName::new("walkeep_1").unwrap();
        let check = |version, text: &str| {
            assert_eq!(create_physical_slot(&slot, true, ServerVersion(version)), text);
        };
        check(14, "CREATE_REPLICATION_SLOT \"walkeep_1\" PHYSICAL RESERVE_WAL");
        check(15, "CREATE_REPLICATION_SLOT \"walkeep_1\" PHYSICAL (RESERVE_WAL)");
        let options = BaseBackupOptions {
            label: "it's".into(),
            fast_checkpoint: true,
            max_rate_kib: None,
            manifest: false,
            server_verifies: false,
            wait_for_archive: false,
            compression: None,
        };
        let compressed = BaseBackupOptions { compression: Some(ServerCompression::Zstd(-5)), ..options.clone() };
        assert_eq!(base_backup(&compressed, ServerVersion(14)), base_backup(&options, ServerVersion(14)));
        let spelling = base_backup(&compressed, ServerVersion(15));
        assert!(spelling.contains(", COMPRESSION 'zstd', COMPRESSION_DETAIL 'level=-5', "), "{spelling}");
        let spelling = base_backup(
            &BaseBackupOptions { compression: Some(ServerCompression::Lz4), ..options.clone() },
            ServerVersion(15),
        );
        assert!(spelling.contains(", COMPRESSION 'lz4', "), "{spelling}");
        assert_eq!(
            base_backup(&options, ServerVersion(14)),
            "BASE_BACKUP LABEL 'it''s' PROGRESS FAST NOWAIT TABLESPACE_MAP NOVERIFY_CHECKSUMS MANIFEST 'no'"
        );
        assert_eq!(
            base_backup(&options, ServerVersion(15)),
            "BASE_BACKUP (LABEL 'it''s', PROGRESS true, CHECKPOINT 'fast', WAIT false, TABLESPACE_MAP true, \
             VERIFY_CHECKSUMS false, MANIFEST 'no')"
        );
    }

    #[test]
    fn versions_are_read_from_every_kind_of_build() {
        for (text, major) in [("15.20 (Debian 15.20-1)", 15), ("18beta1", 18), ("19devel", 19), ("13.4", 13)] {
            assert_eq!(ServerVersion::parse(text), Some(ServerVersion(major)), "{text}");
        }
        assert_eq!(ServerVersion::parse("devel"), None);
    }

    #[test]
    fn nothing_can_climb_out_of_a_command() {
        for wrong in ["", "A", "a b", "a\"b", "ü", &"a".repeat(64)] {
            assert!(SlotName::new(wrong).is_err(), "{wrong}");
        }
        assert_eq!(show("wal_segment_size; DROP"), None);
        for data in [&b"'; x"[..], b"\0", b"''", b"a_b"] {
            fuzz(data);
        }
        assert_eq!(
            start_physical(None, Lsn::new(0x16_B374_D848), TimelineId::new(16).unwrap()),
            "START_REPLICATION PHYSICAL 16/B374D848 TIMELINE 16"
        );
    }

    #[test]
    fn a_status_never_claims_that_anything_was_applied() {
        let mut out = BytesMut::new();
        let status = StandbyStatus { written: Lsn::new(0x30), flushed: Lsn::new(0x20), reply_wanted: false };
        standby_status(status, PgTime::from_pg_micros(7), &mut out);
        let expected =
            [&b"d\0\0\0\x26r"[..], &[0, 0, 0, 0, 0, 0, 0, 0x30], &[0, 0, 0, 0, 0, 0, 0, 0x20], &[0; 8]].concat();
        assert_eq!(out.get(..expected.len()), Some(expected.as_slice()));
        assert_eq!(out.len(), 1 + 4 + 34);
    }
}
