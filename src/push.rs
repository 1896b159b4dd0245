//! `archive-push`: the `archive_command`.
