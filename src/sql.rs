//! Ordinary SQL: settings, slots, privileges.
