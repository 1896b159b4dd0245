//! What a manifest consists of.

use std::fmt;
use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::postgres::archive::chunks::{ManifestChunk, PackId};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::RequiredSettings;
use crate::postgres::format::segment::{SegmentSize, SystemId};
use crate::postgres::format::timeline::TimelineId;
use crate::vault::seal::EpochKeyId;

/// The format of summary and manifest that this program writes, and the newest it reads.
pub const MANIFEST_FORMAT: u32 = 1;

/// What a list shows of a backup, and what planning needs: small, and readable without the files.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct BackupSummary {
    /// The format of what follows: [`MANIFEST_FORMAT`].
    pub format: u32,
    /// The backup's name.
    pub label: String,
    /// The cluster it is of.
    pub system_id: SystemId,
    /// The server, in its own words: `15.12 (Debian 15.12-1)`.
    pub server_version: String,
    /// Its major version.
    pub major_version: u32,
    /// The format of its system catalogs.
    pub catalog_version: u32,
    /// The size of its WAL segments.
    pub segment_size: SegmentSize,
    /// The size of its data blocks.
    pub block_size: u32,
    /// Whether its pages carry checksums, which were then verified.
    pub data_checksums: bool,
    /// What a server that restores it must have set at least.
    pub required: RequiredSettings,
    /// Whether it was taken from a standby.
    pub from_standby: bool,
    /// The timeline it was taken on.
    pub timeline: TimelineId,
    /// Where replay begins: the redo position of its checkpoint.
    pub start_lsn: Lsn,
    /// The record of that checkpoint.
    pub checkpoint_lsn: Lsn,
    /// Where it is consistent: no target before this can be reached from it.
    pub stop_lsn: Lsn,
    /// When it began, by walkeep's clock.
    pub started_at: Timestamp,
    /// When its last byte had been read.
    pub finished_at: Timestamp,
    /// Tablespaces besides the data directory itself.
    pub tablespaces: Vec<ManifestTablespace>,
    /// Bytes of all files.
    pub logical_bytes: u64,
    /// Bytes of the packs that were written for it: what it cost. The manifest is not counted.
    pub stored_bytes: u64,
    /// How many files, directories and links.
    pub files: u64,
    /// How many different chunks.
    pub chunks: u64,
    /// How many of them were new.
    pub new_chunks: u64,
    /// How many pages' checksums were verified.
    pub pages_checked: u64,
    /// How many pages were being written while they were read. Replay puts them right.
    pub torn_pages: u64,
    /// The epoch key that names its chunks.
    pub naming_key: EpochKeyId,
    /// What it lacks, or has damaged.
    #[serde(default, skip_serializing_if = "BackupDefects::is_empty")]
    pub defects: BackupDefects,
    /// What the server left out that no restore needs, such as a configuration file that is a link: the paths.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// Files and pages that a manifest names as missing or damaged. More are counted.
const MAX_LISTED_DEFECTS: usize = 1000;

/// What is wrong with a backup that was stored all the same: a restore of it needs an option.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct BackupDefects {
    /// Files and directories that the server has and did not send, sorted; the first [`MAX_LISTED_DEFECTS`].
    pub missing_files: Vec<String>,
    /// How many are missing, the listed ones among them.
    pub missing_file_count: u64,
    /// Pages whose checksum is wrong and which replay does not restore; the first [`MAX_LISTED_DEFECTS`].
    pub damaged_pages: Vec<DamagedPage>,
    /// How many are damaged, the listed ones among them.
    pub damaged_page_count: u64,
}

/// A page whose checksum is wrong.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct DamagedPage {
    /// Its file, relative to the data directory.
    pub file: String,
    /// Its number within the relation's fork.
    pub block: u32,
}

impl BackupDefects {
    /// Defects with these files missing and these pages damaged, and of either so many more that have no name.
    #[must_use]
    pub fn new(
        (mut missing, more_missing): (Vec<String>, u64),
        (mut damaged, more_damaged): (Vec<DamagedPage>, u64),
    ) -> BackupDefects {
        missing.sort_unstable();
        missing.dedup();
        damaged.sort_unstable();
        let missing_file_count = (missing.len() as u64).saturating_add(more_missing);
        let damaged_page_count = (damaged.len() as u64).saturating_add(more_damaged);
        missing.truncate(MAX_LISTED_DEFECTS);
        damaged.truncate(MAX_LISTED_DEFECTS);
        BackupDefects { missing_files: missing, missing_file_count, damaged_pages: damaged, damaged_page_count }
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.missing_file_count == 0 && self.damaged_page_count == 0
    }
}

/// Names a message shows before it counts the rest.
const SHOWN_DEFECTS: usize = 5;

impl fmt::Display for BackupDefects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = |count: u64, named: usize| match count.saturating_sub(named as u64) {
            0 => String::new(),
            rest => format!(", and {rest} more"),
        };
        if self.missing_file_count > 0 {
            let named: Vec<&str> = self.missing_files.iter().take(SHOWN_DEFECTS).map(String::as_str).collect();
            let more = more(self.missing_file_count, named.len());
            write!(f, "{} missing: {}{more}", count(self.missing_file_count, "file"), named.join(", "))?;
        }
        if self.damaged_page_count > 0 {
            let separator = if self.missing_file_count > 0 { "; " } else { "" };
            let page = |page: &DamagedPage| format!("block {} of {}", page.block, page.file);
            let named: Vec<String> = self.damaged_pages.iter().take(SHOWN_DEFECTS).map(page).collect();
            let (count, more) = (count(self.damaged_page_count, "page"), more(self.damaged_page_count, named.len()));
            write!(f, "{separator}{count} damaged: {}{more}", named.join(", "))?;
        }
        Ok(())
    }
}

fn count(number: u64, noun: &str) -> String {
    if number == 1 { format!("1 {noun} is") } else { format!("{number} {noun}s are") }
}

/// A tablespace that lies outside the data directory, or in its `pg_tblspc`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ManifestTablespace {
    /// Its number; its files stand in the manifest under `pg_tblspc/<oid>`.
    pub oid: u32,
    /// Where it was, as the server said. A relative path lies in the data directory (`allow_in_place_tablespaces`).
    pub location: String,
}

/// What an entry of a backup is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EntryContent {
    /// A directory.
    Directory,
    /// A symbolic link, and where it leads.
    Link(PathBuf),
    /// A file.
    File {
        /// How long it is: the sum of its chunks' lengths.
        len: u64,
        /// The BLAKE3 of what is in it, as `b3sum` prints it; also what the values of its chunks join to.
        hash: [u8; 32],
        /// What it is made of, in order, as indexes into [`Manifest::chunks`].
        chunks: Vec<u32>,
    },
}

/// A file, directory or link of a backup.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManifestEntry {
    /// Where it is, relative to the data directory; in a tablespace, under `pg_tblspc/<oid>`. Never absolute, never
    /// climbing, and never twice in one manifest.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// When it was last changed, in seconds since 1970.
    pub modified: i64,
    /// What it is.
    pub content: EntryContent,
}

/// A backup.
#[derive(Clone, PartialEq, Debug)]
pub struct Manifest {
    /// What a list shows.
    pub summary: BackupSummary,
    /// The packs it needs, each once.
    pub packs: Vec<PackId>,
    /// The chunks it needs, each once.
    pub chunks: Vec<ManifestChunk>,
    /// Everything in it, directories before what is in them. `backup_label` and `tablespace_map` are not among them.
    pub entries: Vec<ManifestEntry>,
    /// `backup_label`, byte for byte.
    pub backup_label: Vec<u8>,
    /// `tablespace_map`, byte for byte, if there was one.
    pub tablespace_map: Option<Vec<u8>>,
}

/// A manifest's bytes cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// Of a later format.
    #[error(
        "the manifest is of format {0}, this version knows format {MANIFEST_FORMAT}; use a newer version of walkeep"
    )]
    Newer(u64),
    /// Not of the form.
    #[error("the manifest makes no sense: {what} at byte {at}; it was written by a faulty program")]
    Malformed {
        /// What is wrong.
        what: &'static str,
        /// Where.
        at: usize,
    },
    /// The summary is not of the form.
    #[error("the summary of the backup makes no sense: {0}; it was written by a faulty program")]
    Summary(String),
}

impl BackupSummary {
    /// The metadata of a manifest's object.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        // No map with keys that are not strings, no fallible `Serialize`: all its types print.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the metadata of a manifest's object.
    ///
    /// # Errors
    /// [`ManifestError::Newer`] and [`ManifestError::Summary`].
    pub fn from_bytes(bytes: &[u8]) -> Result<BackupSummary, ManifestError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let wrong = |error: serde_json::Error| ManifestError::Summary(error.to_string());
        let Format { format } = serde_json::from_slice(bytes).map_err(wrong)?;
        if format != MANIFEST_FORMAT {
            return Err(ManifestError::Newer(u64::from(format)));
        }
        serde_json::from_slice(bytes).map_err(wrong)
    }
}
