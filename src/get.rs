//! `archive-get`: the `restore_command`.
