//! Scratch directories that earlier runs left.

use std::path::PathBuf;

/// A scratch directory whose process is gone.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct LeftoverScratch {
    /// The directory.
    pub dir: PathBuf,
    /// Its server, if that still runs.
    pub server: Option<u32>,
}
