//! The bounds of a walk, in memory and in what it remembers.

/// Bounds of a walk.
#[derive(Debug, Clone)]
pub struct RdbLimits {
    /// The largest nested encoding that is looked into, in bytes, compressed and plain; larger ones are counted and
    /// flow by.
    pub nested: usize,
    /// Milliseconds since 1970: keys that expire before are counted as expired.
    pub expired_by: Option<i64>,
}

impl Default for RdbLimits {
    /// Servers write nested encodings of 8 to 64 KiB unless told otherwise; 16 MiB is much more, and little to hold.
    fn default() -> RdbLimits {
        RdbLimits { nested: 16 << 20, expired_by: None }
    }
}

/// Databases that are counted apart, at most. Servers have 16 unless told otherwise.
pub(super) const MAX_DATABASES: usize = 1 << 14;

/// Auxiliary fields and modules that are remembered, at most, and their length.
pub(super) const MAX_NAMES: usize = 256;
pub(super) const MAX_NAME_BYTES: u64 = 4096;
