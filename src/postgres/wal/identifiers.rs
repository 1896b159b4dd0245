//! Numbers by which the log names transactions and files.

use std::fmt;

/// A transaction's number (`TransactionId`), 32 bits; 0 where there is none, as in the commit of a transaction that
/// wrote nothing of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Xid(u32);

impl Xid {
    /// No transaction (`InvalidTransactionId`).
    pub const NONE: Xid = Xid(0);

    /// The transaction of this number.
    #[must_use]
    pub const fn new(number: u32) -> Xid {
        Xid(number)
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// The files of a relation (`RelFileLocator`; `RelFileNode` before 16).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, serde::Serialize)]
pub struct RelFileLocator {
    /// The tablespace's OID.
    pub tablespace: u32,
    /// The database's OID.
    pub database: u32,
    /// The file's number; the relation's OID until its first rewrite.
    pub filenode: u32,
}
