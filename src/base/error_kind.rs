//! The kind of an error, from which both the retry and the exit code follow.
//!
//! Each error enum names the kind of every variant in a match without a wildcard, so an unclassified new variant does
//! not compile.

use std::sync::Arc;

use crate::base::retry::ErrorClass;

/// What an error means for the process that meets it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ErrorKind {
    /// The command line or the configuration is wrong.
    Usage,
    /// The object that was to be created already exists. The user named the wrong place.
    AlreadyExists,
    /// The archive does not reach the requested target.
    TargetUnreachable,
    /// The named object does not exist.
    NotFound,
    /// The repository, the server or the network does not answer now. The same call may succeed later.
    Unavailable,
    /// Something stored or received is damaged, forged or sealed with another key.
    Integrity,
    /// Other content, or another process, has the name.
    Conflict,
    /// Any other failure. The same call fails again.
    Failed,
}

impl ErrorKind {
    /// Whether trying again helps.
    #[must_use]
    pub const fn class(self) -> ErrorClass {
        match self {
            ErrorKind::Unavailable => ErrorClass::Transient,
            ErrorKind::AlreadyExists | ErrorKind::Conflict => ErrorClass::Conflict,
            ErrorKind::Usage
            | ErrorKind::TargetUnreachable
            | ErrorKind::NotFound
            | ErrorKind::Integrity
            | ErrorKind::Failed => ErrorClass::Permanent,
        }
    }
}

/// An error that knows its kind.
pub trait HasKind {
    /// The kind.
    fn kind(&self) -> ErrorKind;
}

impl<E: HasKind> HasKind for Arc<E> {
    fn kind(&self) -> ErrorKind {
        E::kind(self)
    }
}
