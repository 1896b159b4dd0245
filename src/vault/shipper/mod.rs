//! Filling one repository with what the others have.
//!
//! Each repository of an archive is a follower with a cursor: everything that the others had before the cursor is in
//! it. [`rules`] decides what is shipped next, as a pure state machine. [`copy`] carries an object from one repository
//! to another as it is, sealed. [`cursor`] keeps the cursors on disk. [`fillers`] carries out the rules for an archive
//! that holds nothing itself, and [`sync`] copies all that a comparison found, once, for a command.
//!
//! Not known here: what an object means. An archive names what a repository lacks, in the order in which it must get
//! it.

mod copy;
pub mod cursor;
pub mod fillers;
mod item;
pub mod rules;
pub mod sync;

pub use copy::CopyOutcome;
pub use item::{Lacking, ManifestNeeds, SeedScope, ShipItem, ShipStage};
