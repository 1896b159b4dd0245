//! Results as people read them and as `--json` prints them.

pub(super) mod plan;
