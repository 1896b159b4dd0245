//! One way in for WAL, one way out.

pub mod chunks;
pub mod lookup;
pub mod manifest;
