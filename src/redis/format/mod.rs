//! The formats of Redis: RDB files, the protocol, and what follows from a server's version. Pure: bytes in, values out.

pub mod rdb;
pub mod resp;
pub(crate) mod flavour;
pub(crate) mod position;
pub(crate) mod replication_id;
pub(crate) mod server_version;
