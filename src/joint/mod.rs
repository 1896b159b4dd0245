//! PostgreSQL and Redis together: both planned and restored to one moment, and everything backed up by one command.
//!
//! This is the only room that imports both wings. It takes values and callbacks, and knows neither the configuration
//! nor the command line.

pub mod common_moment;
pub mod skew;
