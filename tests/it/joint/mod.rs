//! PostgreSQL and Redis together.

/// Both restored to one moment.
mod restore;
/// Clocks that are off, and the bound that follows.
mod skew;
