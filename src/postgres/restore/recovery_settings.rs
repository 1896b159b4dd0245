//! The settings of a restored server: where recovery stops, where its log comes from, and what must not be left over
//! from before.
//!
//! Text in, text out. What is written goes to the end of `postgresql.auto.conf`, whose settings win over
//! `postgresql.conf`'s; `recovery.signal` beside it makes PostgreSQL 12 and later recover.

use std::fmt::Write as _;
use std::path::Path;

use crate::postgres::format::pg_control::RequiredSettings;
use crate::postgres::format::timeline::TimelineId;

use super::resolve_target::RecoveryStop;
use super::target::RecoveryTargetAction;

/// The file that makes a server recover from the archive once.
pub const RECOVERY_SIGNAL: &str = "recovery.signal";

/// The file that makes a server a standby; it wins over the other, so a restore must not have it.
pub const STANDBY_SIGNAL: &str = "standby.signal";

/// The file that is written.
pub const AUTO_CONF: &str = "postgresql.auto.conf";

/// What says where recovery stops. PostgreSQL takes one alone, and ends with "multiple recovery targets specified" for
/// more.
const TARGET_SETTINGS: [&str; 5] =
    ["recovery_target", "recovery_target_lsn", "recovery_target_name", "recovery_target_time", "recovery_target_xid"];

/// What belongs to another server's life: a standby's, or that of an earlier restore. Dropped from the file, and
/// emptied where `postgresql.conf` has it: such commands would run against another server's archive.
const FOREIGN_SETTINGS: [&str; 6] = [
    "archive_cleanup_command",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
];

/// What is written anew in any case.
const WRITTEN_SETTINGS: [&str; 5] = [
    "restore_command",
    "recovery_target_inclusive",
    "recovery_target_timeline",
    "recovery_target_action",
    "archive_mode",
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

/// `postgresql.auto.conf` for a restored server: what was in it, less what collides, and the recovery's settings at its
/// end.
#[must_use]
pub fn auto_conf(recovery: &RecoverySettings, auto_conf: &str, postgresql_conf: &str, major: u32) -> String {
    let stale = |name: &str| {
        TARGET_SETTINGS.contains(&name) || FOREIGN_SETTINGS.contains(&name) || WRITTEN_SETTINGS.contains(&name)
    };
    let mut text = String::new();
    for line in auto_conf.lines().filter(|line| parse_setting(line).is_none_or(|(name, _)| !stale(&name))) {
        text.push_str(line);
        text.push('\n');
    }
    text.push_str("# written by walkeep restore; of no effect once recovery has ended, but for archive_mode\n");
    let elsewhere = ConfigurationFile::parse(postgresql_conf);
    for (name, value) in recovery_settings(recovery, &elsewhere, &text, major) {
        // Writing to a string cannot fail.
        let _written = writeln!(text, "{name} = '{}'", quote_value(&value));
    }
    text
}

/// The settings in the order they must stand: emptied targets go first, because each that is assigned later forgets the
/// one before it (`assign_recovery_target` and its siblings).
fn recovery_settings(
    recovery: &RecoverySettings,
    elsewhere: &ConfigurationFile,
    kept: &str,
    major: u32,
) -> Vec<(&'static str, String)> {
    let mut all: Vec<(&'static str, String)> = Vec::new();
    let own = match recovery.stop {
        RecoveryStop::Before(_) | RecoveryStop::After(_) => "recovery_target_lsn",
        RecoveryStop::Consistent(_) => "recovery_target",
    };
    for name in TARGET_SETTINGS.into_iter().filter(|name| *name != own && elsewhere.may_set(name)) {
        all.push((name, String::new()));
    }
    for name in ["archive_cleanup_command", "recovery_end_command"].into_iter().filter(|name| elsewhere.may_set(name)) {
        all.push((name, String::new()));
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
    if !recovery.keep_archiving {
        all.push(("archive_mode", "off".to_owned()));
    }
    if recovery.no_read_ahead && major >= 15 {
        all.push(("recovery_prefetch", "off".to_owned()));
    }
    let auto = ConfigurationFile::parse(kept);
    for ((name, least), (_, default)) in
        recovery.required.names_and_values().into_iter().zip(REQUIRED_SETTING_DEFAULTS.names_and_values())
    {
        let has = auto.value(name).or(elsewhere.value(name)).map_or(Some(default), |value| value.parse().ok());
        // What an included file says is not known here.
        if elsewhere.includes || has.is_none_or(|has| has < least) {
            all.push((name, least.to_string()));
        }
    }
    all
}

/// What a configuration file sets a name to, if it does: its last line wins.
pub(super) fn setting_value(text: &str, name: &str) -> Option<String> {
    ConfigurationFile::parse(text).value(name).map(str::to_owned)
}

/// What another configuration file sets.
struct ConfigurationFile {
    set: Vec<(String, String)>,
    includes: bool,
}

impl ConfigurationFile {
    fn parse(text: &str) -> ConfigurationFile {
        let set: Vec<(String, String)> = text.lines().filter_map(parse_setting).collect();
        let includes = set.iter().any(|(name, _)| name.starts_with("include"));
        ConfigurationFile { set, includes }
    }

    fn may_set(&self, name: &str) -> bool {
        self.includes || self.value(name).is_some()
    }

    /// The last one wins.
    fn value(&self, name: &str) -> Option<&str> {
        self.set.iter().rev().find(|(set, _)| set == name).map(|(_, value)| value.as_str())
    }
}

/// A line of configuration as name and value: `name = value`, the equals sign optional, comments after `#`
/// (`guc-file.l`). Names don't mind case.
fn parse_setting(line: &str) -> Option<(String, String)> {
    let line = line.trim_start();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$')))?;
    let (name, rest) = line.split_at_checked(end)?;
    if !name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') {
        return None;
    }
    let rest = rest.trim_start();
    let rest = rest.strip_prefix('=').unwrap_or(rest).trim_start();
    let value = match rest.strip_prefix('\'') {
        Some(inner) => unquote_value(inner),
        None => rest.split(|c: char| c == '#' || c.is_whitespace()).next().unwrap_or("").to_owned(),
    };
    Some((name.to_ascii_lowercase(), value))
}

/// A value up to its closing quote; two quotes or a backslash and a quote are one quote.
fn unquote_value(text: &str) -> String {
    let mut value = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\'' if characters.next_if_eq(&'\'').is_none() => break,
            '\\' => value.extend(characters.next()),
            other => value.push(other),
        }
    }
    value
}

/// Doubled quotes and backslashes (`escape_single_quotes_ascii`).
fn quote_value(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "''")
}

/// `restore_command` for a restored server: this program, by its absolute path, with its configuration and cluster
/// named, since neither the server's directory nor its environment is the user's. The server always has a target.
#[must_use]
pub fn restore_command_line(program: &Path, config: Option<&Path>, cluster: &str) -> String {
    let word = |path: &Path| quote_for_shell(&path.to_string_lossy().replace('%', "%%"));
    let config = config.map(|config| format!(" --config {}", word(config))).unwrap_or_default();
    format!("{}{config} archive-get --cluster {cluster} --has-target %f \"%p\"", word(program))
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

    use super::{ConfigurationFile, RecoverySettings, auto_conf, parse_setting, restore_command_line};
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
    fn lines_are_read_as_postgresql_reads_them() {
        let is = |line: &str, name: &str, value: &str| {
            assert_eq!(parse_setting(line), Some((name.into(), value.into())), "{line}")
        };
        is("a = 1 # one", "a", "1");
        is("  Work_Mem='it''s'", "work_mem", "it's");
        is("b 'x\\'y' # z", "b", "x'y");
        is("include_dir = 'conf.d'", "include_dir", "conf.d");
        assert_eq!(parse_setting("# a = 1"), None);
        assert_eq!(parse_setting(""), None);
    }

    #[test]
    fn the_command_survives_the_shell_and_postgresql() {
        let command =
            restore_command_line(Path::new("/usr/bin/walkeep"), Some(Path::new("/etc/walkeep/walkeep.toml")), "main");
        assert_eq!(
            command,
            "/usr/bin/walkeep --config /etc/walkeep/walkeep.toml archive-get --cluster main --has-target %f \"%p\""
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
