//! The command line as it is typed. Nothing is looked up here; `cli::dispatch` turns these into usable values. Each
//! verb's arguments stand beside the verb, in `cli::verbs`.

pub(super) mod command_line;
pub(super) mod global;
pub(super) mod help;
pub(super) mod named_values;
pub(super) mod role;
pub(super) mod target;
pub(super) mod time;
pub(super) mod usage;
