//! Targets, plans and restores.
