//! Why an object does not open.

use std::fmt;

use super::binding::{ObjectBinding, SealedKind};
use super::keys::EpochKeyId;

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
