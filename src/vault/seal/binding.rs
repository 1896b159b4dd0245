//! What an object is and where it belongs.

use std::fmt;

/// What an object is. An object of one kind never opens as another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum SealedKind {
    /// A whole WAL segment.
    Wal,
    /// Another file of `archive_command`: history, `.partial`, `.backup`, or a name walkeep doesn't know.
    WalFile,
    /// What a cluster is: system identifier, segment size.
    Cluster,
    /// The manifest of a base backup.
    Manifest,
    /// Chunks of base backups.
    Pack,
    /// A recorded gap.
    Gap,
    /// What `check` writes, reads and deletes.
    Probe,
    /// A part of a Redis snapshot.
    RdbPart,
    /// The manifest of a Redis snapshot.
    Snapshot,
    /// A stretch of a Redis replication stream.
    Commands,
    /// What a Redis instance is.
    Instance,
    /// What databases and tables were called when a backup was taken.
    Names,
    /// WAL of a segment that still grows.
    Piece,
    /// A server whose WAL differs from the archive, or what was decided about it.
    Fork,
}

impl SealedKind {
    const ALL: [SealedKind; 14] = [
        SealedKind::Wal,
        SealedKind::WalFile,
        SealedKind::Cluster,
        SealedKind::Manifest,
        SealedKind::Pack,
        SealedKind::Gap,
        SealedKind::Probe,
        SealedKind::RdbPart,
        SealedKind::Snapshot,
        SealedKind::Commands,
        SealedKind::Instance,
        SealedKind::Names,
        SealedKind::Piece,
        SealedKind::Fork,
    ];

    pub(super) const fn code(self) -> u8 {
        match self {
            SealedKind::Wal => 1,
            SealedKind::WalFile => 2,
            SealedKind::Cluster => 3,
            SealedKind::Manifest => 4,
            SealedKind::Pack => 5,
            SealedKind::Gap => 6,
            SealedKind::Probe => 7,
            SealedKind::RdbPart => 8,
            SealedKind::Snapshot => 9,
            SealedKind::Commands => 10,
            SealedKind::Instance => 11,
            SealedKind::Names => 12,
            SealedKind::Piece => 13,
            SealedKind::Fork => 14,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<SealedKind> {
        SealedKind::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// The longest plaintext an object of this kind may have; nothing longer is sealed, and a hostile object cannot
    /// claim more memory.
    #[must_use]
    pub const fn max_len(self) -> u64 {
        match self {
            // PostgreSQL's largest segment; a `.partial` is as long.
            SealedKind::Wal | SealedKind::WalFile | SealedKind::Piece => 1 << 30,
            // Some 50 bytes for each chunk of 128 KiB: enough for a cluster of about 10 TB.
            SealedKind::Manifest => 4 << 30,
            SealedKind::Pack => 256 << 20,
            SealedKind::RdbPart => 64 << 20,
            // A hundred bytes for each part of 32 MiB.
            SealedKind::Snapshot => 64 << 20,
            // The stream is cut between commands, and a value may have 512 MiB as servers come.
            SealedKind::Commands => 1 << 30,
            // Some 150 bytes a relation: seven million of them.
            SealedKind::Names => 1 << 30,
            SealedKind::Cluster | SealedKind::Gap | SealedKind::Probe | SealedKind::Instance | SealedKind::Fork => {
                1 << 20
            }
        }
    }
}

impl fmt::Display for SealedKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SealedKind::Wal => "WAL segment",
            SealedKind::WalFile => "WAL file",
            SealedKind::Cluster => "cluster description",
            SealedKind::Manifest => "backup manifest",
            SealedKind::Pack => "pack",
            SealedKind::Gap => "gap record",
            SealedKind::Probe => "probe",
            SealedKind::RdbPart => "part of a Redis snapshot",
            SealedKind::Snapshot => "Redis snapshot",
            SealedKind::Commands => "Redis command stream",
            SealedKind::Instance => "instance description",
            SealedKind::Piece => "piece of WAL",
            SealedKind::Fork => "fork record",
            SealedKind::Names => "list of names",
        })
    }
}

/// What an object is and where it belongs; authenticated with every part of it, so that an object moved to another name
/// does not open.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ObjectBinding {
    kind: SealedKind,
    subject: String,
}

impl ObjectBinding {
    /// The binding of the object of this kind under this name. Names are the repository's keys.
    #[must_use]
    pub fn new(kind: SealedKind, subject: impl Into<String>) -> ObjectBinding {
        ObjectBinding { kind, subject: subject.into() }
    }

    /// What the object is.
    #[must_use]
    pub const fn kind(&self) -> SealedKind {
        self.kind
    }

    /// The object's name.
    #[must_use]
    pub fn subject(&self) -> &str {
        &self.subject
    }
}

impl fmt::Display for ObjectBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.subject)
    }
}
