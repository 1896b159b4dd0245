//! The sealed object: compressed, encrypted and bound to what it is.
//!
//! Everything in a repository but its description and its wrapped keys is one of these. Plaintext comes in and is cut into frames; each is
//! compressed ([`compress`]), encrypted under a key of the object's own ([`cipher`]) and followed by a trailer with the frame table and
//! whatever the object says about itself ([`Trailer::metadata`]). [`open_object`] gives back exactly what was sealed, or an error: no plaintext leaves
//! before its tag has verified, and an object under another name, cut, reordered or changed in any bit does not open. [`check_without_key`] finds rot
//! without any key. A trailer alone ([`read_trailer`]) is enough to read what an object is about, and any part of it.
//!
//! Pure: no files, no clock; the only thing asked of the outside are random bytes. `docs/format/sealed-object.md` has the bytes.

pub mod compress;
#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "the sizes here are small")]
mod tests;
pub mod content_hash;
mod sealing;
mod frame_table;
mod cipher;
mod opening;
pub mod keys;

use std::fmt;

pub use compress::CompressionLevel;
pub use frame_table::{MAX_FRAME_BYTES, MAX_TRAILER_BYTES, MIN_FRAME_BYTES, OBJECT_END};
pub use keys::{EpochKeyId, KeyRing, ObjectEncryption};
pub use opening::{CheckedObject, OpenedObject, SuffixOutcome, Trailer, check_without_key, open_object, read_trailer};
pub use sealing::{SealError, SealSpec, SealedObject, seal_object, seal_with};

#[doc(hidden)]
pub use opening::fuzz::fuzz;

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
}

impl SealedKind {
    const ALL: [SealedKind; 13] = [
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
    ];

    const fn code(self) -> u8 {
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
        }
    }

    fn from_code(code: u8) -> Option<SealedKind> {
        SealedKind::ALL.into_iter().find(|kind| kind.code() == code)
    }

    /// The longest plaintext an object of this kind may have; nothing longer is sealed, and a hostile object cannot claim more memory.
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
            SealedKind::Cluster | SealedKind::Gap | SealedKind::Probe | SealedKind::Instance => 1 << 20,
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
            SealedKind::Names => "list of names",
        })
    }
}

/// What an object is and where it belongs; authenticated with every part of it, so that an object moved to another name does not open.
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

/// A part of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectPart {
    /// The first bytes.
    Header,
    /// The frame of this number, from 0.
    Frame(u64),
    /// The frame table and the metadata.
    Trailer,
    /// The last bytes.
    Footer,
    /// All of it taken together.
    Whole,
}

impl fmt::Display for ObjectPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ObjectPart::Header => f.write_str("header"),
            ObjectPart::Frame(number) => write!(f, "frame {number}"),
            ObjectPart::Trailer => f.write_str("trailer"),
            ObjectPart::Footer => f.write_str("footer"),
            ObjectPart::Whole => f.write_str("content"),
        }
    }
}

/// Why an object does not open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenFault {
    /// It does not begin like a sealed object.
    #[error("it is not a sealed object; something else was put in its place")]
    NotSealed,
    /// It is of a later format.
    #[error("it is of format {0}, this version knows format 1; use a newer version of walkeep")]
    Newer(u8),
    /// It does not end like a sealed object, or not where it should.
    #[error("it was cut short or lengthened; restore it from another repository or a copy")]
    NoEnd,
    /// Bytes have changed: a checksum does not match.
    #[error("its {0} is damaged; restore it from another repository or a copy")]
    Damaged(ObjectPart),
    /// The checksums match, the tag does not: not written under this name with this key.
    #[error("its {0} is not authentic: it was forged, moved from another name, or written with another key")]
    NotAuthentic(ObjectPart),
    /// It is of another kind than was asked for.
    #[error("it is a {0}; it was moved from another name")]
    WrongKind(SealedKind),
    /// Its key is not in the ring.
    #[error("it is encrypted with key {0}, which this repository's keys/ does not have; restore that key object")]
    UnknownKey(EpochKeyId),
    /// It is encrypted and the repository is not.
    #[error("it is encrypted, but the repository is set up without encryption; check the repository's address")]
    Encrypted,
    /// It is not encrypted and the repository is.
    #[error("it is not encrypted, but everything in this repository is: something else was put in its place")]
    NotEncrypted,
    /// It claims more than an object of its kind may hold.
    #[error("it claims {len} bytes, more than the {max} that are allowed; it was forged or is damaged")]
    TooLarge {
        /// What it claims.
        len: u64,
        /// What is allowed.
        max: u64,
    },
    /// The caller asked for what the object does not have, or brought other bytes than it said.
    #[error("bytes beyond its {plain_len} were asked for")]
    OutOfRange {
        /// How many there are.
        plain_len: u64,
    },
}

/// An object does not open. Always permanent: the same bytes under the same name will never open with the same keys.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{binding} does not open: {fault}")]
pub struct OpenError {
    /// What was to be opened.
    pub binding: ObjectBinding,
    /// Why it does not.
    pub fault: OpenFault,
}
