//! One way in for WAL, one way out.

pub mod lookup;
