//! What of a data directory a backup copies, skips or empties.
