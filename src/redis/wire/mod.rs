//! Redis and Valkey, as a replica sees them: the only socket to them.
//!
//! [`Server`] says where a server is and how to log in; [`Connection`] asks it ([`Info`]) and attaches to it as a replica does
//! ([`Connection::sync`]): the snapshot comes by length or between marks ([`Transfer`]), then the stream of commands ([`Connection::read`]),
//! whose bytes are counted as the server counts them. [`Source`] finds the server, directly or by asking Sentinels ([`sentinel`]).
//!
//! Nothing here writes to a server, asks it to save, or changes its configuration. It does not announce a port, so no Sentinel takes walkeep
//! for a replica that could be promoted.

mod address;
mod info;
mod connection;
mod replica;
mod error;
pub mod sentinel;
mod server_clock;
mod tls;

pub use address::{Address, Login, Password, UrlError, parse_url};
pub use connection::{Connection, Server};
pub use error::{Claimant, Error};
pub use info::{Flavour, Info};
pub use replica::{ReplicationId, Right, Sync, Transfer, Wish};
pub use sentinel::{Sentinels, Source};
pub use tls::{TlsError, TlsFiles};
