//! What is wrong with bytes that are no RDB file.

/// Bytes that are no RDB file, or a damaged one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RdbError {
    /// Neither Redis's nor Valkey's.
    #[error("this is no RDB file: it begins with {found:?} instead of REDIS or VALKEY and a version")]
    Header {
        /// The first nine bytes.
        found: String,
    },
    /// It ends before its end.
    #[error("the RDB is cut off after {at} bytes: take it again from the server")]
    Truncated {
        /// How many bytes there are.
        at: u64,
    },
    /// Something follows its end.
    #[error("the RDB ends at byte {at}, and more bytes follow")]
    Trailing {
        /// The length of the RDB.
        at: u64,
    },
    /// The checksum at the end is another.
    #[error("the RDB is damaged: its checksum is {found:016x}, its bytes have {computed:016x}")]
    Checksum {
        /// What the file says.
        found: u64,
        /// What its bytes have.
        computed: u64,
    },
    /// What is there cannot be.
    #[error("the RDB is damaged at byte {at}: {what}")]
    Damaged {
        /// Bytes before it.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
}
