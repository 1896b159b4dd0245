//! PostgreSQL and Redis together: both planned and restored to one moment, and everything backed up by one command.
//!
//! This is the only room that imports both wings. It takes values and callbacks, and knows neither the configuration
//! nor the command line. [`plan`] brings both to [`common_moment`] and bounds their [`skew`]; [`restore`] carries both
//! plans out.

pub mod error;
pub mod common_moment;
pub mod skew;
pub mod plan;
pub mod restore;
pub mod backup;
