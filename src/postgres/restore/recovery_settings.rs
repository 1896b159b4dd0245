//! The settings with which a restored server recovers: where recovery stops, which command fetches WAL, and what must
//! not be left over from before.
//!
//! Text in, text out. What a whole server gets besides, and where it is written, is in
//! [`written_configuration`](super::written_configuration).

use std::path::Path;

use crate::postgres::format::pg_control::RequiredSettings;
use crate::postgres::format::timeline::TimelineId;

use super::configuration_file::{ConfigurationFile, kept_lines, parse_setting, setting_line};
use super::resolve_target::RecoveryStop;
use super::target::RecoveryTargetAction;

/// The file that makes a server recover from the archive once.
pub const RECOVERY_SIGNAL: &str = "recovery.signal";

/// The file that makes a server a standby; it wins over the other, so a restore must not have it.
pub const STANDBY_SIGNAL: &str = "standby.signal";

/// The file whose settings win over those of `postgresql.conf`. `ALTER SYSTEM` writes it.
pub const AUTO_CONF: &str = "postgresql.auto.conf";

/// The settings that are of use only until recovery has ended. Base backups and `pg_rewind` leave out what is in
/// `pg_stat_tmp`, so no copy of the server gets them, not even one made while it recovers.
pub const RECOVERY_FILE: &str = "pg_stat_tmp/walkeep_recovery.conf";

/// What says where recovery stops. PostgreSQL takes one alone, and ends with "multiple recovery targets specified" for
/// more.
pub(super) const TARGET_SETTINGS: [&str; 5] =
    ["recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"];

/// Settings of recovery besides its target. Each restore writes them itself.
pub(super) const RECOVERY_SETTINGS: [&str; 4] =
    ["restore_command", "recovery_target_inclusive", "recovery_target_timeline", "recovery_target_action"];

/// Settings of another server's life: a standby's, or that of an earlier restore. A restore drops them from
/// `postgresql.auto.conf`.
const FOREIGN_SETTINGS: [&str; 6] = [
    "archive_cleanup_command",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
];

/// What PostgreSQL takes where nothing is set (`guc_tables.c`).
const REQUIRED_SETTING_DEFAULTS: RequiredSettings = RequiredSettings {
    max_connections: 100,
    max_worker_processes: 8,
    max_wal_senders: 10,
    max_prepared_transactions: 0,
    max_locks_per_transaction: 64,
};

/// How the recovery is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RecoverySettings {
    /// Where it stops.
    pub stop: RecoveryStop,
    /// The timeline it follows.
    pub timeline: TimelineId,
    /// What happens then.
    pub action: RecoveryTargetAction,
    /// `restore_command`, whole.
    pub restore_command: String,
    /// What the server's settings must be at least.
    pub required: RequiredSettings,
    /// Whether it goes on archiving as it did when it was backed up. Off unless asked for: a restored copy that
    /// archives to its original's archive spoils it.
    pub keep_archiving: bool,
    /// Whether reading ahead must be off, because the log has a hole right after the target. 15 and later.
    pub no_read_ahead: bool,
}

/// `postgresql.auto.conf` for a server that recovers and is then removed: everything in one file.
#[must_use]
pub fn auto_conf(recovery: &RecoverySettings, auto_conf: &str, postgresql_conf: &str, major: u32) -> String {
    let is_kept = |name: &str| !is_stale(name) && name != "archive_mode";
    let kept = kept_lines(auto_conf.as_bytes(), |line| parse_setting(line).is_none_or(|(name, _)| is_kept(&name)));
    let mut text = String::from_utf8_lossy(&kept).into_owned();
    let (auto, elsewhere) = (ConfigurationFile::parse(&text), ConfigurationFile::parse(postgresql_conf));
    let raised = raised_settings(recovery.required, &auto, &elsewhere);
    let mut written = recovery_settings(recovery, &elsewhere, major);
    written.extend((!recovery.keep_archiving).then(|| ("archive_mode", "off".to_owned())));
    written.extend(raised.into_iter().map(|raised| (raised.name, raised.least.to_string())));
    for (name, value) in written {
        text.push_str(&setting_line(name, &value));
        text.push('\n');
    }
    text
}

/// Whether a setting in `postgresql.auto.conf` is dropped by every restore.
pub(super) fn is_stale(name: &str) -> bool {
    TARGET_SETTINGS.contains(&name) || RECOVERY_SETTINGS.contains(&name) || FOREIGN_SETTINGS.contains(&name)
}

/// The settings in the order they must have: emptied targets go first, because each that is assigned later forgets the
/// one before it (`assign_recovery_target` and its siblings).
pub(super) fn recovery_settings(
    recovery: &RecoverySettings,
    elsewhere: &ConfigurationFile,
    major: u32,
) -> Vec<(&'static str, String)> {
    let mut all: Vec<(&'static str, String)> = Vec::new();
    let own = match recovery.stop {
        RecoveryStop::Before(_) | RecoveryStop::After(_) => "recovery_target_lsn",
        RecoveryStop::Consistent(_) => "recovery_target",
    };
    all.extend(emptied_targets(elsewhere).filter(|(name, _)| *name != own));
    // Such commands would run against another server's archive.
    let commands = ["archive_cleanup_command", "recovery_end_command"].into_iter();
    all.extend(commands.filter(|name| elsewhere.may_set(name)).map(|name| (name, String::new())));
    if elsewhere.may_set("recovery_min_apply_delay") {
        // It also delays a recovery to a target (`recoveryApplyDelay` in xlogrecovery.c).
        all.push(("recovery_min_apply_delay", "0".to_owned()));
    }
    all.push(("restore_command", recovery.restore_command.clone()));
    match recovery.stop {
        RecoveryStop::Before(lsn) | RecoveryStop::After(lsn) => all.push((own, lsn.to_string())),
        RecoveryStop::Consistent(_) => all.push((own, "immediate".to_owned())),
    }
    all.push(("recovery_target_inclusive", if recovery.stop.is_inclusive() { "on" } else { "off" }.to_owned()));
    all.push(("recovery_target_timeline", recovery.timeline.to_string()));
    all.push(("recovery_target_action", recovery.action.as_str().to_owned()));
    if recovery.action == RecoveryTargetAction::Pause {
        // Without it, pause means shutdown.
        all.push(("hot_standby", "on".to_owned()));
    }
    if recovery.no_read_ahead && major >= 15 {
        all.push(("recovery_prefetch", "off".to_owned()));
    }
    all
}

/// Recovery targets that another file may set, without a value.
pub(super) fn emptied_targets(elsewhere: &ConfigurationFile) -> impl Iterator<Item = (&'static str, String)> {
    TARGET_SETTINGS.into_iter().filter(|name| elsewhere.may_set(name)).map(|name| (name, String::new()))
}

/// A setting that recovery needs to be at least as high as on the server that wrote the WAL.
pub(super) struct RaisedSetting {
    pub(super) name: &'static str,
    pub(super) least: u32,
    /// Whether the configuration is known to have less. If not, it is raised because a part of the configuration is not
    /// known.
    pub(super) is_too_low: bool,
}

/// The required settings that the configuration has too low, or may have. `auto` is what `postgresql.auto.conf` keeps.
pub(super) fn raised_settings(
    required: RequiredSettings,
    auto: &ConfigurationFile,
    elsewhere: &ConfigurationFile,
) -> Vec<RaisedSetting> {
    let all = required.names_and_values().into_iter().zip(REQUIRED_SETTING_DEFAULTS.names_and_values());
    let raised = all.filter_map(|((name, least), (_, default))| {
        let known: Option<u32> = match (auto.value(name), elsewhere.value(name)) {
            (Some(value), _) => value.parse().ok(),
            (None, _) if elsewhere.may_set_more() => None,
            (None, Some(value)) => value.parse().ok(),
            (None, None) => Some(default),
        };
        let is_too_low = known.is_some_and(|known| known < least);
        (is_too_low || known.is_none()).then_some(RaisedSetting { name, least, is_too_low })
    });
    raised.collect()
}

/// What a configuration file sets a name to, if it does: its last line wins.
pub(super) fn setting_value(text: &str, name: &str) -> Option<String> {
    ConfigurationFile::parse(text).value(name).map(str::to_owned)
}

/// `restore_command` for a restored server: this program, by its absolute path, with its configuration and cluster
/// named, since neither the server's directory nor its environment is the user's. The server always has a target.
#[must_use]
pub fn restore_command_line(program: &Path, config: Option<&Path>, cluster: &str) -> String {
    let config = config.map(|config| format!(" --config {}", command_word(config))).unwrap_or_default();
    format!("{}{config} archive-get --cluster {cluster} --has-target %f \"%p\"", command_word(program))
}

/// `restore_command` for a standby, which asks again: any failure is reported to it as a missing file.
#[must_use]
pub fn standby_restore_command_line(program: &Path, config: &Path, cluster: &str) -> String {
    let [program, config] = [program, config].map(command_word);
    format!("{program} --config {config} archive-get --cluster {cluster} --standby %f \"%p\"")
}

/// `recovery_end_command` for a restored server. It runs in the data directory. PostgreSQL ends with an error if it
/// exits with more than 125 (`ExecuteRecoveryCommand`), for example because the program is gone: then the file alone
/// goes, which is what a copy of the server must not find.
#[must_use]
pub fn recovery_end_command_line(program: &Path) -> String {
    format!("{} recovery-ended --pgdata . || rm -f {RECOVERY_FILE}", command_word(program))
}

/// One word of a command that PostgreSQL runs.
fn command_word(path: &Path) -> String {
    quote_for_shell(&path.to_string_lossy().replace('%', "%%"))
}

/// As it is if the shell takes it so, else in single quotes.
fn quote_for_shell(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '+' | ':' | '%' | ',');
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{
        ConfigurationFile, RecoverySettings, auto_conf, recovery_end_command_line, restore_command_line,
        standby_restore_command_line,
    };
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::pg_control::RequiredSettings;
    use crate::postgres::format::timeline::TimelineId;
    use crate::postgres::restore::resolve_target::RecoveryStop;
    use crate::postgres::restore::target::RecoveryTargetAction;

    fn recovery(stop: RecoveryStop) -> RecoverySettings {
        RecoverySettings {
            stop,
            timeline: TimelineId::new(16).unwrap(),
            action: RecoveryTargetAction::Promote,
            restore_command: "walkeep archive-get %f \"%p\"".to_owned(),
            required: RequiredSettings::default(),
            keep_archiving: false,
            no_read_ahead: false,
        }
    }

    /// What PostgreSQL would read: of each name the last.
    fn read(text: &str) -> impl Fn(&str) -> Option<String> + use<> {
        let all = ConfigurationFile::parse(text);
        move |name| all.value(name).map(str::to_owned)
    }

    #[test]
    fn an_exact_position_is_written_whatever_the_target_was() {
        let text = auto_conf(&recovery(RecoveryStop::Before(Lsn::new(0x16_B374_D848))), "", "", 15);
        let value = read(&text);
        assert_eq!(value("recovery_target_lsn").as_deref(), Some("16/B374D848"));
        assert_eq!(value("recovery_target_inclusive").as_deref(), Some("off"));
        assert_eq!(value("recovery_target_timeline").as_deref(), Some("16"));
        assert_eq!(value("recovery_target_action").as_deref(), Some("promote"));
        assert_eq!(value("restore_command").as_deref(), Some("walkeep archive-get %f \"%p\""));
        assert_eq!(value("archive_mode").as_deref(), Some("off"));
        assert_eq!(value("recovery_target"), None);
        let after =
            read(&auto_conf(&recovery(RecoveryStop::After(Lsn::new(8))), "", "", 15))("recovery_target_inclusive");
        assert_eq!(after.as_deref(), Some("on"));
        let immediate = read(&auto_conf(&recovery(RecoveryStop::Consistent(Lsn::new(8))), "", "", 15));
        assert_eq!(
            (immediate("recovery_target").as_deref(), immediate("recovery_target_lsn")),
            (Some("immediate"), None)
        );
    }

    #[test]
    fn what_an_earlier_restore_left_is_removed_and_the_rest_kept() {
        let stale = "# Do not edit\nwork_mem = '8MB'\nrecovery_target_time = '2026-01-01'\nRecovery_Target_XID='7'\nrestore_command = 'cp'\n\
                     recovery_target_timeline = 'latest'\nprimary_conninfo = 'host=a'\narchive_mode = \
                     'on'\narchive_cleanup_command='rm'\n";
        let text = auto_conf(&recovery(RecoveryStop::Before(Lsn::new(8))), stale, "", 15);
        let value = read(&text);
        for gone in ["recovery_target_time", "recovery_target_xid", "primary_conninfo", "archive_cleanup_command"] {
            assert_eq!(value(gone), None, "{gone}");
        }
        assert_eq!(value("work_mem").as_deref(), Some("8MB"));
        assert_eq!(text.matches("restore_command").count(), 1);
        assert_eq!(text.matches("archive_mode = ").count(), 1);
        assert!(text.starts_with("# Do not edit\n"));
    }

    #[test]
    fn a_target_in_postgresql_conf_is_emptied_before_the_own_one_is_set() {
        let text = auto_conf(
            &recovery(RecoveryStop::Before(Lsn::new(8))),
            "",
            "recovery_target_time = 'x' # old\nrecovery_end_command 'y'\n",
            15,
        );
        let value = read(&text);
        assert_eq!(value("recovery_target_time").as_deref(), Some(""));
        assert_eq!(value("recovery_end_command").as_deref(), Some(""));
        assert!(text.find("recovery_target_time").unwrap() < text.find("recovery_target_lsn").unwrap());
        let included = auto_conf(&recovery(RecoveryStop::Before(Lsn::new(8))), "", "include_dir 'conf.d'\n", 15);
        assert_eq!(read(&included)("recovery_target_xid").as_deref(), Some(""), "an included file may set it");
    }

    #[test]
    fn settings_are_raised_where_they_are_too_low_or_unknown() {
        let required = RequiredSettings { max_connections: 200, max_wal_senders: 10, ..RequiredSettings::default() };
        let wish = RecoverySettings {
            required,
            action: RecoveryTargetAction::Pause,
            no_read_ahead: true,
            ..recovery(RecoveryStop::After(Lsn::new(8)))
        };
        let raised = |auto: &str, conf: &str| read(&auto_conf(&wish, auto, conf, 15));
        let value = raised("", "max_connections = 100\nmax_wal_senders = 12\nmax_connections=300\n");
        assert_eq!(
            (value("max_connections"), value("max_wal_senders")),
            (None, None),
            "the last one in the file is enough"
        );
        assert_eq!(raised("", "max_connections = 100\n")("max_connections").as_deref(), Some("200"));
        assert_eq!(
            raised("max_connections = '150'\n", "max_connections = 300\n")("max_connections").as_deref(),
            Some("200")
        );
        assert_eq!(raised("", "max_connections = 300\n")("max_wal_senders"), None, "10 is what it is without a word");
        assert_eq!(raised("", "include 'x'\nmax_connections = 300\n")("max_connections").as_deref(), Some("200"));
        assert_eq!(raised("", "")("hot_standby").as_deref(), Some("on"), "without it pause would shut down");
        assert_eq!(raised("", "")("recovery_prefetch").as_deref(), Some("off"));
        assert_eq!(read(&auto_conf(&wish, "", "", 14))("recovery_prefetch"), None, "14 has no such setting");
    }

    #[test]
    fn the_command_survives_the_shell_and_postgresql() {
        let command =
            restore_command_line(Path::new("/usr/bin/walkeep"), Some(Path::new("/etc/walkeep/walkeep.toml")), "main");
        assert_eq!(
            command,
            "/usr/bin/walkeep --config /etc/walkeep/walkeep.toml archive-get --cluster main --has-target %f \"%p\""
        );
        let (program, config) = (Path::new("/opt/100%/walkeep"), Path::new("/etc/walkeep.toml"));
        assert_eq!(
            standby_restore_command_line(program, config, "main"),
            "/opt/100%%/walkeep --config /etc/walkeep.toml archive-get --cluster main --standby %f \"%p\""
        );
        assert_eq!(
            recovery_end_command_line(program),
            "/opt/100%%/walkeep recovery-ended --pgdata . || rm -f pg_stat_tmp/walkeep_recovery.conf"
        );
        let odd = restore_command_line(Path::new("/opt/it's 100%/walkeep"), None, "main");
        assert_eq!(odd, "'/opt/it'\\''s 100%%/walkeep' archive-get --cluster main --has-target %f \"%p\"");
        let text = auto_conf(
            &RecoverySettings { restore_command: odd.clone(), ..recovery(RecoveryStop::After(Lsn::new(8))) },
            "",
            "",
            15,
        );
        assert_eq!(read(&text)("restore_command"), Some(odd));
    }
}
