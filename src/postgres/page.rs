//! Data pages: header and checksum.
