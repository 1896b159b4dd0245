//! `global/pg_control`, PostgreSQL 13 to 18 (`pg_control.h`).
//!
//! The bytes of the file in, a [`PgControl`] out, its CRC-32C checked first. The structure is a C struct as a 64-bit
//! little-endian machine lays it out; versions 1300 (PostgreSQL 13 to 16), 1700 (17) and 1800 (18) differ in two
//! fields.

use super::lsn::Lsn;
use super::segment::{SegmentSize, SystemId};
use super::time::PgTime;
use super::timeline::TimelineId;

/// What the cluster was doing when the file was last written (`DBState`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DbState {
    /// Starting up.
    Startup,
    /// Shut down cleanly.
    ShutDown,
    /// Shut down cleanly while in recovery.
    ShutDownInRecovery,
    /// Shutting down.
    ShuttingDown,
    /// In crash recovery.
    CrashRecovery,
    /// In archive recovery: a standby, or a restore under way.
    ArchiveRecovery,
    /// In production, or crashed while it was.
    Production,
}

/// How much the WAL says (`wal_level`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ControlWalLevel {
    /// Only what crash recovery needs: nothing can be restored past it.
    Minimal,
    /// What archiving and standbys need.
    Replica,
    /// What logical decoding needs as well.
    Logical,
}

impl ControlWalLevel {
    /// The level of this number (`WalLevel` in `xlog.h`).
    #[must_use]
    pub const fn from_number(number: u32) -> Option<ControlWalLevel> {
        match number {
            0 => Some(ControlWalLevel::Minimal),
            1 => Some(ControlWalLevel::Replica),
            2 => Some(ControlWalLevel::Logical),
            _ => None,
        }
    }
}

/// The five settings that a server in recovery must have at least as high as the server that wrote the WAL
/// (`CheckRequiredParameterValues`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct RequiredSettings {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

impl RequiredSettings {
    /// What is enough for both.
    #[must_use]
    pub fn max(self, other: RequiredSettings) -> RequiredSettings {
        RequiredSettings {
            max_connections: self.max_connections.max(other.max_connections),
            max_worker_processes: self.max_worker_processes.max(other.max_worker_processes),
            max_wal_senders: self.max_wal_senders.max(other.max_wal_senders),
            max_prepared_transactions: self.max_prepared_transactions.max(other.max_prepared_transactions),
            max_locks_per_transaction: self.max_locks_per_transaction.max(other.max_locks_per_transaction),
        }
    }

    /// Each setting's name and value.
    #[must_use]
    pub const fn names_and_values(&self) -> [(&'static str, u32); 5] {
        [
            ("max_connections", self.max_connections),
            ("max_worker_processes", self.max_worker_processes),
            ("max_wal_senders", self.max_wal_senders),
            ("max_prepared_transactions", self.max_prepared_transactions),
            ("max_locks_per_transaction", self.max_locks_per_transaction),
        ]
    }
}

/// What `pg_control` says of its cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PgControl {
    /// The cluster's identity.
    pub system_id: SystemId,
    /// The format of the file: 1300, 1700 or 1800.
    pub pg_control_version: u32,
    /// The format of the system catalogs, which tells the major version ([`PgControl::major`]).
    pub catalog_version: u32,
    /// What the cluster was doing.
    pub state: DbState,
    /// When the file was last written, to the second.
    pub modified: PgTime,
    /// The latest checkpoint's record.
    pub checkpoint: Lsn,
    /// Where replay from that checkpoint begins.
    pub redo: Lsn,
    /// The timeline of that checkpoint.
    pub checkpoint_timeline: TimelineId,
    /// The timeline before it, if the checkpoint began a new one; else the same.
    pub previous_timeline: TimelineId,
    /// Whether full-page writes were on.
    pub full_page_writes: bool,
    /// The next transaction, with its epoch in the high half.
    pub next_xid: u64,
    /// When the latest checkpoint began, to the second.
    pub checkpoint_time: PgTime,
    /// The position that recovery must pass before the cluster is consistent.
    pub min_recovery_point: Option<Lsn>,
    /// The timeline of that position.
    pub min_recovery_timeline: Option<TimelineId>,
    /// Where the backup being recovered began.
    pub backup_start: Option<Lsn>,
    /// Where the backup being recovered ends, if it was taken from a standby.
    pub backup_end: Option<Lsn>,
    /// Whether an end-of-backup record must be seen before the cluster is consistent.
    pub backup_end_required: bool,
    /// `wal_level`.
    pub wal_level: ControlWalLevel,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// What a server that replays this cluster's WAL must have.
    pub required: RequiredSettings,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
    /// The alignment of tuples, 8.
    pub max_align: u32,
    /// The size of a data block.
    pub block_size: u32,
    /// Blocks per file of a large relation.
    pub relation_segment_blocks: u32,
    /// The size of a WAL block.
    pub wal_block_size: u32,
    /// The size of a WAL segment.
    pub segment_size: SegmentSize,
    /// The kind of data checksum; zero if pages have none.
    pub data_checksum_version: u32,
}

/// A `pg_control` that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PgControlError {
    /// Shorter than the structure.
    #[error("pg_control has {len} bytes, which is less than its structure: the file is cut short")]
    Short {
        /// What was given.
        len: usize,
    },
    /// A version of the format that is not known here.
    #[error("pg_control has format version {version}; PostgreSQL 13 to 18 use 1300, 1700 and 1800")]
    Version {
        /// What stands in the file.
        version: u32,
    },
    /// Written on a machine of the other byte order.
    #[error("pg_control was written on a big-endian machine; only little-endian clusters are supported")]
    ByteOrder,
    /// The checksum is wrong: the file is damaged.
    #[error("pg_control is damaged: its CRC is {stored:08X}, its content gives {computed:08X}")]
    Crc {
        /// What the file says.
        stored: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// The checksum is right but a field has a value that PostgreSQL never writes.
    #[error("pg_control has {value} as its {field}, which PostgreSQL never writes")]
    Field {
        /// The field's name in `pg_control.h`.
        field: &'static str,
        /// What stands there.
        value: u64,
    },
}

impl PgControl {
    /// Reads the file's bytes; what follows the structure is ignored.
    ///
    /// # Errors
    /// [`PgControlError`] for an unknown version, a wrong CRC, or a value that cannot be.
    pub fn parse(bytes: &[u8]) -> Result<PgControl, PgControlError> {
        let fields = PgControlFields { bytes };
        let version = fields.u32(8)?;
        // default_char_signedness (18) moved the nonce and the CRC behind it.
        let crc_at = match version {
            1300 | 1700 => 288,
            1800 => 292,
            // `check_control_version`: a multiple of 65536 is a small number in the other byte order.
            swapped if swapped % 65_536 == 0 && swapped != 0 => return Err(PgControlError::ByteOrder),
            version => return Err(PgControlError::Version { version }),
        };
        let stored = fields.u32(crc_at)?;
        let covered = bytes.get(..crc_at).ok_or(PgControlError::Short { len: bytes.len() })?;
        let computed = crc32c::crc32c(covered);
        if stored != computed {
            return Err(PgControlError::Crc { stored, computed });
        }
        fields.control()
    }

    /// PostgreSQL's major version, told by the catalog version of its releases. `None` for a development or beta
    /// version.
    #[must_use]
    pub const fn major(&self) -> Option<u32> {
        match self.catalog_version {
            202_007_201 => Some(13),
            202_107_181 => Some(14),
            202_209_061 => Some(15),
            202_307_071 => Some(16),
            202_406_281 => Some(17),
            202_506_291 => Some(18),
            _ => None,
        }
    }
}

/// The structure's fields by offset.
struct PgControlFields<'a> {
    bytes: &'a [u8],
}

impl PgControlFields<'_> {
    /// Everything, once version and CRC are known to be right. Offsets of 64-bit little-endian machines;
    /// `checkPointCopy` starts at 40.
    fn control(&self) -> Result<PgControl, PgControlError> {
        Ok(PgControl {
            system_id: SystemId::new(self.u64(0)?),
            pg_control_version: self.u32(8)?,
            catalog_version: self.u32(12)?,
            state: self.state(16)?,
            modified: self.time(24, "time")?,
            checkpoint: Lsn::new(self.u64(32)?),
            redo: Lsn::new(self.u64(40)?),
            checkpoint_timeline: self.timeline(48, "ThisTimeLineID")?,
            previous_timeline: self.timeline(52, "PrevTimeLineID")?,
            full_page_writes: self.flag(56, "fullPageWrites")?,
            next_xid: self.u64(64)?,
            checkpoint_time: self.time(104, "checkPointCopy.time")?,
            min_recovery_point: self.position(136)?,
            min_recovery_timeline: TimelineId::new(self.u32(144)?),
            backup_start: self.position(152)?,
            backup_end: self.position(160)?,
            backup_end_required: self.flag(168, "backupEndRequired")?,
            wal_level: self.wal_level(172)?,
            wal_log_hints: self.flag(176, "wal_log_hints")?,
            required: RequiredSettings {
                max_connections: self.u32(180)?,
                max_worker_processes: self.u32(184)?,
                max_wal_senders: self.u32(188)?,
                max_prepared_transactions: self.u32(192)?,
                max_locks_per_transaction: self.u32(196)?,
            },
            track_commit_timestamp: self.flag(200, "track_commit_timestamp")?,
            max_align: self.u32(204)?,
            block_size: self.u32(216)?,
            relation_segment_blocks: self.u32(220)?,
            wal_block_size: self.u32(224)?,
            segment_size: self.segment_size(228)?,
            data_checksum_version: self.u32(252)?,
        })
    }

    fn u32(&self, offset: usize) -> Result<u32, PgControlError> {
        let bytes = self.bytes.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.map(|bytes| u32::from_le_bytes(*bytes)).ok_or(PgControlError::Short { len: self.bytes.len() })
    }

    fn u64(&self, offset: usize) -> Result<u64, PgControlError> {
        let bytes = self.bytes.get(offset..).and_then(|rest| rest.first_chunk());
        bytes.map(|bytes| u64::from_le_bytes(*bytes)).ok_or(PgControlError::Short { len: self.bytes.len() })
    }

    fn flag(&self, offset: usize, field: &'static str) -> Result<bool, PgControlError> {
        match self.u32(offset)? & 0xFF {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(PgControlError::Field { field, value: u64::from(value) }),
        }
    }

    fn state(&self, offset: usize) -> Result<DbState, PgControlError> {
        Ok(match self.u32(offset)? {
            0 => DbState::Startup,
            1 => DbState::ShutDown,
            2 => DbState::ShutDownInRecovery,
            3 => DbState::ShuttingDown,
            4 => DbState::CrashRecovery,
            5 => DbState::ArchiveRecovery,
            6 => DbState::Production,
            value => return Err(PgControlError::Field { field: "state", value: u64::from(value) }),
        })
    }

    fn wal_level(&self, offset: usize) -> Result<ControlWalLevel, PgControlError> {
        let value = self.u32(offset)?;
        ControlWalLevel::from_number(value).ok_or(PgControlError::Field { field: "wal_level", value: u64::from(value) })
    }

    fn timeline(&self, offset: usize, field: &'static str) -> Result<TimelineId, PgControlError> {
        TimelineId::new(self.u32(offset)?).ok_or(PgControlError::Field { field, value: 0 })
    }

    fn position(&self, offset: usize) -> Result<Option<Lsn>, PgControlError> {
        let position = Lsn::new(self.u64(offset)?);
        Ok((position != Lsn::INVALID).then_some(position))
    }

    /// `pg_time_t`: seconds since 1970.
    fn time(&self, offset: usize, field: &'static str) -> Result<PgTime, PgControlError> {
        let value = self.u64(offset)?;
        let seconds = value.cast_signed();
        seconds
            .checked_sub(PgTime::EPOCH_FROM_UNIX_SECONDS)
            .and_then(|since| since.checked_mul(1_000_000))
            .map(PgTime::from_pg_micros)
            .ok_or(PgControlError::Field { field, value })
    }

    fn segment_size(&self, offset: usize) -> Result<SegmentSize, PgControlError> {
        let value = u64::from(self.u32(offset)?);
        SegmentSize::new(value).map_err(|_bad_size| PgControlError::Field { field: "xlog_seg_size", value })
    }
}

/// The body of a fuzz target: any bytes as they are, and again under a right version and CRC, so that the fields are
/// reached.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let _as_given = PgControl::parse(data).is_ok();
    let mut sealed = data.to_vec();
    sealed.resize(sealed.len().max(296), 0);
    for (version, crc_at) in [(1300_u32, 288_usize), (1800, 292)] {
        if let Some(field) = sealed.get_mut(8..12) {
            field.copy_from_slice(&version.to_le_bytes());
        }
        let crc = crc32c::crc32c(sealed.get(..crc_at).unwrap_or_default());
        if let Some(field) = sealed.get_mut(crc_at..crc_at.saturating_add(4)) {
            field.copy_from_slice(&crc.to_le_bytes());
        }
        match PgControl::parse(&sealed) {
            Ok(_) | Err(PgControlError::Field { .. }) => {}
            Err(other) => assert_eq!(other, PgControlError::ByteOrder, "version and CRC were right"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{ControlWalLevel, DbState, PgControl, PgControlError, fuzz};

    /// Each file with what that major's own `pg_controldata` prints of it.
    macro_rules! fixture {
        ($($name:literal),*) => {
            [$((
                $name,
                include_bytes!(concat!("../../../tests/fixtures/control/", $name, ".pg_control")).as_slice(),
                include_str!(concat!("../../../tests/fixtures/control/", $name, ".txt")),
            )),*]
        };
    }

    fn fixtures() -> [(&'static str, &'static [u8], &'static str); 12] {
        fixture!(
            "13-production",
            "14-production",
            "15-production",
            "16-production",
            "17-production",
            "18-production",
            "13-standby",
            "14-standby",
            "15-standby",
            "16-standby",
            "17-standby",
            "18-standby"
        )
    }

    /// What `pg_controldata` would print of a value, by its label.
    fn said(control: &PgControl) -> Vec<(&'static str, String)> {
        let on = |flag: bool| if flag { "on" } else { "off" }.to_owned();
        let lsn = |position: Option<crate::postgres::format::lsn::Lsn>| position.unwrap_or_default().to_string();
        let time = |time: crate::postgres::format::time::PgTime| {
            time.to_timestamp().unwrap().strftime("%a %b %e %H:%M:%S %Y").to_string()
        };
        let state = match control.state {
            DbState::ArchiveRecovery => "in archive recovery",
            DbState::Production => "in production",
            other => panic!("no fixture is in {other:?}"),
        };
        vec![
            ("pg_control version number", control.pg_control_version.to_string()),
            ("Catalog version number", control.catalog_version.to_string()),
            ("Database system identifier", control.system_id.to_string()),
            ("Database cluster state", state.to_owned()),
            ("pg_control last modified", time(control.modified)),
            ("Latest checkpoint location", control.checkpoint.to_string()),
            ("Latest checkpoint's REDO location", control.redo.to_string()),
            ("Latest checkpoint's TimeLineID", control.checkpoint_timeline.to_string()),
            ("Latest checkpoint's PrevTimeLineID", control.previous_timeline.to_string()),
            ("Latest checkpoint's full_page_writes", on(control.full_page_writes)),
            ("Latest checkpoint's NextXID", format!("{}:{}", control.next_xid >> 32, control.next_xid & 0xFFFF_FFFF)),
            ("Time of latest checkpoint", time(control.checkpoint_time)),
            ("Minimum recovery ending location", lsn(control.min_recovery_point)),
            (
                "Min recovery ending loc's timeline",
                control.min_recovery_timeline.map_or("0".to_owned(), |t| t.to_string()),
            ),
            ("Backup start location", lsn(control.backup_start)),
            ("Backup end location", lsn(control.backup_end)),
            ("End-of-backup record required", if control.backup_end_required { "yes" } else { "no" }.to_owned()),
            ("wal_level setting", format!("{:?}", control.wal_level).to_lowercase()),
            ("wal_log_hints setting", on(control.wal_log_hints)),
            ("max_connections setting", control.required.max_connections.to_string()),
            ("max_worker_processes setting", control.required.max_worker_processes.to_string()),
            ("max_wal_senders setting", control.required.max_wal_senders.to_string()),
            ("max_prepared_xacts setting", control.required.max_prepared_transactions.to_string()),
            ("max_locks_per_xact setting", control.required.max_locks_per_transaction.to_string()),
            ("track_commit_timestamp setting", on(control.track_commit_timestamp)),
            ("Maximum data alignment", control.max_align.to_string()),
            ("Database block size", control.block_size.to_string()),
            ("Blocks per segment of large relation", control.relation_segment_blocks.to_string()),
            ("WAL block size", control.wal_block_size.to_string()),
            ("Bytes per WAL segment", control.segment_size.get().to_string()),
            ("Data page checksum version", control.data_checksum_version.to_string()),
        ]
    }

    #[test]
    fn says_of_every_major_what_pg_controldata_says() {
        for (name, bytes, text) in fixtures() {
            let control = PgControl::parse(bytes).unwrap();
            assert_eq!(control.major().unwrap().to_string(), name.split('-').next().unwrap(), "{name}");
            assert_eq!(control.wal_level, ControlWalLevel::Logical);
            for (label, value) in said(&control) {
                let printed = text.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(':'));
                assert_eq!(printed.map(str::trim), Some(value.as_str()), "{name}: {label}");
            }
        }
    }

    #[test]
    fn every_flipped_bit_of_the_structure_is_found() {
        for (name, bytes, _) in fixtures() {
            for at in 0..288 * 8 {
                let mut damaged = bytes.to_vec();
                damaged[at / 8] ^= 1 << (at % 8);
                assert!(PgControl::parse(&damaged).is_err(), "{name}: bit {at}");
            }
        }
    }

    #[test]
    fn a_file_cut_short_or_of_another_version_is_named_so() {
        let (_, bytes, _) = fixtures()[2];
        assert_eq!(PgControl::parse(&bytes[..291]), Err(PgControlError::Short { len: 291 }));
        assert_eq!(PgControl::parse(&[]), Err(PgControlError::Short { len: 0 }));
        let versioned = |version: u32| {
            let mut other = bytes.to_vec();
            other[8..12].copy_from_slice(&version.to_le_bytes());
            PgControl::parse(&other)
        };
        assert_eq!(versioned(1201), Err(PgControlError::Version { version: 1201 }));
        assert_eq!(versioned(1300_u32.swap_bytes()), Err(PgControlError::ByteOrder));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(data in proptest::collection::vec(any::<u8>(), 0..320)) {
            fuzz(&data);
        }
    }
}
