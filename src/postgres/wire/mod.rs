//! PostgreSQL's streaming-replication protocol: the only socket to it.
//!
//! [`Conninfo`] says where and who, as libpq's connection strings do; [`ReplicationConnection`] is a session in
//! physical replication mode, from which a [`PhysicalStream`] of WAL or a [`BaseBackup`] comes. [`message`] and
//! [`command`] are pure: bytes in, values out, and back.
//!
//! Released tokio-postgres has no replication mode, so this is our own client over postgres-protocol's messages and its
//! SCRAM. It knows nothing of segments, archives or what WAL contains. It never retries: [`ReplicationError::class`]
//! says whether its caller may.

pub mod command;
pub mod message;
mod conninfo_error;
mod password;
mod conninfo_syntax;
mod transport;
pub mod connection;
pub mod conninfo;
pub(crate) mod refusal;
pub mod error;
pub mod base_backup;
mod decompress;
pub(crate) mod socket;
pub mod local_port;
pub mod pgpass;
pub mod physical_stream;
pub(crate) mod login;
pub mod tls;

pub use base_backup::{AnnouncedTablespace, BaseBackup, BaseBackupEnd, BaseBackupEvent, BaseBackupStart};
pub use command::{BaseBackupOptions, ServerCompression, ServerVersion, SlotName, StandbyStatus};
pub use connection::{ReplicationConnection, ReplicationSlot, SystemIdentity};
pub use conninfo::{Conninfo, ConninfoError, LibpqEnvironment};
pub use error::ReplicationError;
pub use message::{KeepaliveMessage, ServerError, XLogData};
pub use physical_stream::{NextTimeline, PhysicalStream, StartedReplication, WalStreamEvent};
pub use transport::ServerWarnings;
