//! One way in for WAL, one way out.
