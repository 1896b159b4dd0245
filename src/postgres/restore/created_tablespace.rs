//! Tablespaces that replay makes.

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::time::PgTime;

/// A tablespace that the log makes. Replay works in its directory, at the path the log has, whatever was mapped.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct CreatedTablespace {
    /// The record.
    pub lsn: Lsn,
    /// Its OID.
    pub tablespace: u32,
    /// Its directory.
    pub location: String,
    /// When its transaction committed.
    pub time: Option<PgTime>,
}
