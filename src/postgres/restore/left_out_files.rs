//! Files of a backup that a restore does not place.

use std::path::Path;

use super::destination_error::RESTORE_MARKER;
use super::recovery_settings::{RECOVERY_SIGNAL, STANDBY_SIGNAL};

/// Whether a file of the backup is left out: it would make the restored server a standby, or is written anew.
pub(super) fn is_left_out(path: &Path) -> bool {
    [STANDBY_SIGNAL, RECOVERY_SIGNAL, RESTORE_MARKER].iter().any(|name| path == Path::new(name))
}
