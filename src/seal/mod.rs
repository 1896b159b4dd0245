//! The sealed object: compressed, encrypted and bound to what it is.
