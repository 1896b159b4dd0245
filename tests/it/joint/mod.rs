//! PostgreSQL and Redis together.

/// One process that receives everything.
mod receive;
/// Both restored to one moment.
mod restore;
/// Clocks that are off, and the bound that follows.
mod skew;
