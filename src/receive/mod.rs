//! The streaming receiver.
