//! Redis and Valkey, as a replica sees them: the only socket to them.
//!
//! [`RedisEndpoint`] says where a server is and how to log in; [`RedisConnection`] asks it ([`ServerInfo`]) and
//! attaches to it as a replica does ([`RedisConnection::request_sync`]): the snapshot comes by length or between marks
//! ([`SnapshotTransfer`]), then the stream of commands ([`RedisConnection::read_stream`]), whose bytes are counted as
//! the server counts them. [`RedisSource`] finds the server, directly or by asking Sentinels ([`sentinel`]).
//!
//! Nothing here writes to a server, asks it to save, or changes its configuration. It does not announce a port, so no
//! Sentinel takes walkeep for a replica that could be promoted.

mod address;
mod backlog;
mod info;
mod connection;
mod replica;
mod error;
pub mod sentinel;
mod server_clock;
mod tls;

pub use crate::redis::format::flavour::ServerFlavour;
pub use crate::redis::format::replication_id::ReplicationId;
pub use address::{RedisAddress, RedisLogin, RedisPassword, RedisUrlError, parse_redis_url};
pub use backlog::ReplicationBacklog;
pub use connection::{RedisConnection, RedisEndpoint};
pub use error::{MasterClaimant, RedisError};
pub use info::ServerInfo;
pub use replica::{ReplicaPermission, SnapshotTransfer, SyncAnswer, SyncRequest};
pub use sentinel::{RedisSource, Sentinels};
pub use tls::{RedisTlsError, RedisTlsFiles};
