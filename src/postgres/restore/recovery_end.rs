//! The end of recovery: what a restore wrote for recovery alone is removed from the data directory.
//!
//! The server itself does this, by its `recovery_end_command`, after it has removed `recovery.signal` and before it
//! takes writes. It may be done again at any time. What is removed is known by [`RECOVERY_FILE`]: the file, the line
//! that includes it, and its settings where an `ALTER SYSTEM` during recovery has copied them to
//! `postgresql.auto.conf`.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::configuration_file::{ConfigurationFile, kept_lines, parse_setting};
use super::recovery_settings::{
    AUTO_CONF, RECOVERY_FILE, RECOVERY_SETTINGS, RECOVERY_SIGNAL, STANDBY_SIGNAL, TARGET_SETTINGS,
};
use super::written_configuration::is_include;
use crate::base::disk::{self, FileOwner};
use crate::base::durable::{self, DurableError};
use crate::base::error_kind::{ErrorKind, HasKind};

/// What was done at the end of recovery.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RecoveryEnd {
    /// These settings were removed from `postgresql.auto.conf`. None if there were none.
    Removed(Vec<String>),
    /// Nothing was removed, because the server recovers or will recover when it is started. It has this file.
    InRecovery(&'static str),
}

/// Why settings could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryEndError {
    /// There is no data directory.
    #[error("{path} is not a data directory: it has no PG_VERSION")]
    NotADataDirectory {
        /// The directory.
        path: PathBuf,
    },
    /// The operating system refused something.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// A file could not be made durable.
    #[error(transparent)]
    Durable(#[from] DurableError),
}

impl HasKind for RecoveryEndError {
    fn kind(&self) -> ErrorKind {
        match self {
            RecoveryEndError::NotADataDirectory { .. } => ErrorKind::Usage,
            RecoveryEndError::Io { .. } | RecoveryEndError::Durable(_) => ErrorKind::Failed,
        }
    }
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> RecoveryEndError + 'a {
    move |source| RecoveryEndError::Io { what, path: path.to_owned(), source }
}

/// Removes what a restore wrote for recovery alone, durably. The file with these settings goes last, because it is the
/// record of what is to be removed.
///
/// # Errors
/// [`RecoveryEndError`].
pub fn remove_recovery_settings(pgdata: &Path) -> Result<RecoveryEnd, RecoveryEndError> {
    if !pgdata.join("PG_VERSION").exists() {
        return Err(RecoveryEndError::NotADataDirectory { path: pgdata.to_owned() });
    }
    if let Some(signal) = [RECOVERY_SIGNAL, STANDBY_SIGNAL].into_iter().find(|name| pgdata.join(name).exists()) {
        return Ok(RecoveryEnd::InRecovery(signal));
    }
    let (recovery_file, auto_conf) = (pgdata.join(RECOVERY_FILE), pgdata.join(AUTO_CONF));
    let written = read(&recovery_file)?.unwrap_or_default();
    let before = read(&auto_conf)?.unwrap_or_default();
    let (after, removed) = without_recovery_settings(&before, &String::from_utf8_lossy(&written));
    if after != before {
        let mode = auto_conf.metadata().map_err(io_error("read", &auto_conf))?.permissions().mode() & 0o777;
        let owner = FileOwner::of(&auto_conf).map_err(io_error("read", &auto_conf))?;
        durable::replace_file(&auto_conf, &after, mode)?;
        if disk::runs_as_root() {
            owner.give(&auto_conf).map_err(io_error("give its owner to", &auto_conf))?;
        }
    }
    match fs::remove_file(&recovery_file) {
        Ok(()) => durable::sync_dir(recovery_file.parent().unwrap_or(pgdata))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(io_error("remove", &recovery_file)(error)),
    }
    Ok(RecoveryEnd::Removed(removed))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, RecoveryEndError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_error("read", path)(error)),
    }
}

/// `postgresql.auto.conf` without what a restore `written` for recovery alone, and the names of the settings that went.
fn without_recovery_settings(auto_conf: &[u8], written: &str) -> (Vec<u8>, Vec<String>) {
    let written: Vec<(String, String)> = written.lines().filter_map(parse_setting).collect();
    let text = String::from_utf8_lossy(auto_conf);
    // A restore of an earlier version wrote its settings to postgresql.auto.conf. Its restore_command shows that.
    let is_ours = |command: &str| command.contains(" archive-get ") && command.contains(" --has-target ");
    let by_earlier_version = ConfigurationFile::parse(&text).value("restore_command").is_some_and(is_ours);
    let is_included = !written.is_empty() || text.lines().filter_map(parse_setting).any(|(n, v)| is_include(&n, &v));
    let is_removed = |name: &str, value: &str| {
        is_include(name, value)
            || is_included && name == "restore_command" && value.is_empty()
            || written.iter().any(|(other, written)| other == name && written == value)
            || by_earlier_version && (TARGET_SETTINGS.contains(&name) || RECOVERY_SETTINGS.contains(&name))
    };
    let removed = text.lines().filter_map(parse_setting).filter(|(name, value)| is_removed(name, value));
    let removed = removed.map(|(name, _)| name).collect();
    let kept =
        kept_lines(auto_conf, |line| !parse_setting(line).is_some_and(|(name, value)| is_removed(&name, &value)));
    (kept, removed)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::{RecoveryEnd, remove_recovery_settings};
    use crate::base::error_kind::{ErrorKind, HasKind as _};
    use crate::postgres::restore::recovery_settings::RECOVERY_FILE;

    const WRITTEN: &str = "# by walkeep\nrestore_command = 'walkeep archive-get %f \"%p\"'\nmax_connections = '200'\n";

    fn data_directory(auto_conf: &[u8]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("PG_VERSION"), "15\n").unwrap();
        fs::write(dir.path().join("postgresql.auto.conf"), auto_conf).unwrap();
        fs::create_dir(dir.path().join("pg_stat_tmp")).unwrap();
        fs::write(dir.path().join(RECOVERY_FILE), WRITTEN).unwrap();
        dir
    }

    #[test]
    fn the_file_and_its_line_go_and_the_rest_stays_to_the_byte() {
        let dir = data_directory(
            b"# caf\xe9\nwork_mem = '8MB'\nrestore_command = ''\n\
              include_if_exists = 'pg_stat_tmp/walkeep_recovery.conf'\n",
        );
        let auto_conf = dir.path().join("postgresql.auto.conf");
        fs::set_permissions(&auto_conf, fs::Permissions::from_mode(0o640)).unwrap();
        let removed = RecoveryEnd::Removed(vec!["restore_command".to_owned(), "include_if_exists".to_owned()]);
        assert_eq!(remove_recovery_settings(dir.path()).unwrap(), removed);
        assert_eq!(fs::read(&auto_conf).unwrap(), b"# caf\xe9\nwork_mem = '8MB'\n");
        assert_eq!(auto_conf.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert!(!dir.path().join(RECOVERY_FILE).exists());
        assert_eq!(remove_recovery_settings(dir.path()).unwrap(), RecoveryEnd::Removed(Vec::new()), "again");
    }

    #[test]
    fn what_alter_system_copied_during_recovery_goes_and_what_the_user_set_stays() {
        let flattened = b"max_connections = '300'\nrestore_command = 'walkeep archive-get %f \"%p\"'\n";
        let dir = data_directory(flattened);
        remove_recovery_settings(dir.path()).unwrap();
        let auto_conf = fs::read_to_string(dir.path().join("postgresql.auto.conf")).unwrap();
        assert_eq!(auto_conf, "max_connections = '300'\n");
    }

    #[test]
    fn what_an_earlier_version_left_goes_too() {
        let left = b"work_mem = '8MB'\nrestore_command = '/bin/walkeep archive-get --cluster main --has-target %f'\n\
                     recovery_target_lsn = '0/5000000'\nrecovery_target_timeline = '1'\n";
        let dir = data_directory(left);
        fs::remove_file(dir.path().join(RECOVERY_FILE)).unwrap();
        remove_recovery_settings(dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("postgresql.auto.conf")).unwrap(), "work_mem = '8MB'\n");
        let of_the_user = b"restore_command = 'cp /archive/%f %p'\nrecovery_target_timeline = 'latest'\n";
        let dir = data_directory(of_the_user);
        remove_recovery_settings(dir.path()).unwrap();
        assert_eq!(fs::read(dir.path().join("postgresql.auto.conf")).unwrap(), of_the_user);
    }

    #[test]
    fn nothing_goes_while_the_server_recovers_or_where_there_is_none() {
        for signal in ["recovery.signal", "standby.signal"] {
            let dir = data_directory(b"work_mem = '8MB'\n");
            fs::write(dir.path().join(signal), "").unwrap();
            assert_eq!(remove_recovery_settings(dir.path()).unwrap(), RecoveryEnd::InRecovery(signal));
            assert!(dir.path().join(RECOVERY_FILE).exists());
        }
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(remove_recovery_settings(empty.path()).unwrap_err().kind(), ErrorKind::Usage);
    }
}
