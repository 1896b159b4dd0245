//! The formats of Redis: RDB files, the protocol, and what follows from a server's version. Pure: bytes in, values out.

pub mod rdb;
pub mod resp;
pub(crate) mod server_version;
