//! The configuration of a restored server: `postgresql.auto.conf`, and the settings that it has only until recovery has
//! ended.
//!
//! Text in, text out. Two kinds of settings are written, to two places:
//!
//! - Settings of recovery go to [`RECOVERY_FILE`], which the last line of `postgresql.auto.conf` includes if it exists.
//!   Base backups and `pg_rewind` leave that file out, so no replica gets them. At the end of recovery the server
//!   itself removes the file and the line, by `recovery_end_command` ([`recovery_end`](super::recovery_end)).
//! - Settings of the role stay in `postgresql.auto.conf`. For a copy they are its isolation.
//!
//! `postgresql.conf` is never changed.

use super::configuration_file::{ConfigurationFile, kept_lines, parse_setting, setting_line};
use super::recovery_settings::{
    RECOVERY_FILE, RECOVERY_SIGNAL, RecoverySettings, STANDBY_SIGNAL, emptied_targets, is_stale, raised_settings,
    recovery_settings,
};
use super::server_role::{ServerRole, StandbyConnection};

/// The comments of earlier restores, which a new one drops.
const COMMENT_PREFIXES: [&str; 2] = ["# walkeep restore:", "# written by walkeep restore;"];

/// Libraries whose workers connect to other servers, and that no setting stops.
const CONNECTING_LIBRARIES: [&str; 3] = ["pglogical", "spock", "bdr"];

/// The configuration that a backup has.
pub(super) struct BackupConfiguration<'f> {
    /// `postgresql.auto.conf`, which may have any encoding.
    pub(super) auto_conf: &'f [u8],
    /// `postgresql.conf`; `None` if it is outside the data directory.
    pub(super) postgresql_conf: Option<&'f str>,
    /// The major version.
    pub(super) major: u32,
}

/// How a server is to be configured.
pub(super) struct ConfigurationRequest<'r> {
    pub(super) role: &'r ServerRole,
    /// The recovery. Its `restore_command` is the one for the role, and `keep_archiving` applies to every role.
    pub(super) recovery: &'r RecoverySettings,
    /// The `recovery_end_command` that removes the settings of recovery.
    pub(super) end_command: &'r str,
}

/// The configuration of a restored server.
pub(super) struct WrittenConfiguration {
    pub(super) auto_conf: Vec<u8>,
    /// The content of [`RECOVERY_FILE`]; a standby has none.
    pub(super) recovery_file: Option<String>,
    /// The file that makes the server recover.
    pub(super) signal: &'static str,
    /// The settings that stay in `postgresql.auto.conf`.
    pub(super) settings: Vec<WrittenSetting>,
    /// What else the user should know.
    pub(super) notes: Vec<String>,
}

/// A setting that a restore wrote and that stays until the user resets it.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize)]
pub struct WrittenSetting {
    /// Its name.
    pub name: &'static str,
    /// Its value; `None` if it may contain a password.
    pub value: Option<String>,
    /// The value that the configuration had, as far as it is known.
    pub before: Option<String>,
    /// What it does, in words.
    pub effect: &'static str,
}

impl ConfigurationRequest<'_> {
    pub(super) fn apply(&self, found: &BackupConfiguration<'_>) -> WrittenConfiguration {
        let kept = kept_lines(found.auto_conf, |line| !is_stale_line(line));
        let auto = ConfigurationFile::parse(&String::from_utf8_lossy(&kept));
        let elsewhere = found.postgresql_conf.map_or_else(ConfigurationFile::unknown, ConfigurationFile::parse);
        let known = KnownConfiguration { auto, elsewhere, major: found.major };
        let raised = raised_settings(self.recovery.required, &known.auto, &known.elsewhere);
        let mut lasting = match self.role {
            ServerRole::Copy => isolation(&known),
            ServerRole::Takeover => Vec::new(),
            ServerRole::Standby(connection) => standby_settings(connection, self.recovery, &known),
        };
        if !self.recovery.keep_archiving {
            lasting.insert(0, Lasting::new("archive_mode", "off", "it archives nothing"));
        }
        let too_low = raised.iter().filter(|raised| raised.is_too_low);
        lasting.extend(too_low.map(|raised| {
            Lasting::new(
                raised.name,
                raised.least.to_string(),
                "recovery needs at least this, the configuration has less",
            )
        }));
        let mut auto_conf = kept;
        append_line(&mut auto_conf, &self.comment());
        lasting.iter().for_each(|setting| append_line(&mut auto_conf, &setting_line(setting.name, &setting.value)));
        let recovery_file = self.recovery_file(&known).map(|mut file| {
            for raised in raised.iter().filter(|raised| !raised.is_too_low) {
                file.push_str(&setting_line(raised.name, &raised.least.to_string()));
                file.push('\n');
            }
            file
        });
        if recovery_file.is_some() {
            if known.elsewhere.may_set("restore_command") {
                // Without the included file PostgreSQL must refuse to recover, and not use another command.
                append_line(&mut auto_conf, &setting_line("restore_command", ""));
            }
            append_line(&mut auto_conf, &setting_line("include_if_exists", RECOVERY_FILE));
        }
        WrittenConfiguration {
            auto_conf,
            recovery_file,
            signal: if self.is_standby() { STANDBY_SIGNAL } else { RECOVERY_SIGNAL },
            settings: lasting
                .into_iter()
                .filter(|setting| !setting.effect.is_empty())
                .map(|s| s.written(&known))
                .collect(),
            notes: self.notes(&known),
        }
    }

    const fn is_standby(&self) -> bool {
        matches!(self.role, ServerRole::Standby(_))
    }

    fn comment(&self) -> String {
        let comment = match self.role {
            ServerRole::Copy => {
                "# walkeep restore: this is an isolated copy. To end its isolation, reset these settings and restart."
            }
            ServerRole::Takeover => "# walkeep restore: this server has taken over from its original.",
            ServerRole::Standby(_) => "# walkeep restore: this is a standby.",
        };
        comment.to_owned()
    }

    /// The settings that the server has until recovery has ended. They come last, so they win.
    fn recovery_file(&self, known: &KnownConfiguration) -> Option<String> {
        if self.is_standby() {
            return None;
        }
        let mut text =
            "# Written by walkeep restore. The server removes this file when recovery has ended.\n".to_owned();
        let settings = recovery_settings(self.recovery, &known.elsewhere, known.major).into_iter();
        let others = settings.filter(|(name, _)| *name != "recovery_end_command");
        for (name, value) in others.chain([("recovery_end_command", self.end_command.to_owned())]) {
            text.push_str(&setting_line(name, &value));
            text.push('\n');
        }
        Some(text)
    }

    fn notes(&self, known: &KnownConfiguration) -> Vec<String> {
        let mut notes = Vec::new();
        if self.recovery.keep_archiving && !self.is_standby() {
            notes.push(known.describe_archiving());
        }
        match self.role {
            ServerRole::Copy => {
                let libraries = known.value("shared_preload_libraries").unwrap_or_default();
                let connecting = CONNECTING_LIBRARIES.iter().filter(|library| libraries.contains(**library));
                notes.extend(connecting.map(|library| {
                    format!(
                        "shared_preload_libraries has {library}: its workers connect to other servers, and walkeep \
                         cannot prevent that; remove it before you start the server"
                    )
                }));
            }
            ServerRole::Takeover => {
                if let Some(names) = known.value("synchronous_standby_names").filter(|names| !names.is_empty()) {
                    notes.push(format!(
                        "commits wait until a standby of synchronous_standby_names = '{names}' is connected"
                    ));
                }
                notes.push(
                    "replication slots are not in a backup: create those that standbys, subscribers and walkeep \
                     receive use"
                        .to_owned(),
                );
                notes.push(
                    "its subscriptions continue; a publisher does not send again what the original had confirmed after \
                     the restored moment"
                        .to_owned(),
                );
            }
            ServerRole::Standby(connection) => notes.extend(self.standby_notes(connection, known)),
        }
        notes
    }

    fn standby_notes(&self, connection: &StandbyConnection, known: &KnownConfiguration) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(slot) = &connection.slot {
            notes.push(format!(
                "the primary needs the slot: SELECT pg_create_physical_replication_slot('{slot}', true)"
            ));
        }
        if self.recovery.no_read_ahead {
            notes.push(
                "WAL is missing in the archive after the point that the plan names; the standby gets past it only \
                 if its primary still has that WAL"
                    .to_owned(),
            );
        }
        if let Some(delay) = known.value("recovery_min_apply_delay").filter(|delay| *delay != "0") {
            notes.push(format!("it replays with a delay: recovery_min_apply_delay = '{delay}'"));
        }
        if known.elsewhere.may_set_more() {
            let at_least = self.recovery.required.names_and_values().map(|(name, least)| format!("{name} = {least}"));
            notes.push(format!("its configuration must have at least {}", at_least.join(", ")));
        }
        notes
    }
}

/// A setting that is written to `postgresql.auto.conf`. One without an effect is not worth showing.
struct Lasting {
    name: &'static str,
    value: String,
    effect: &'static str,
}

impl Lasting {
    fn new(name: &'static str, value: impl Into<String>, effect: &'static str) -> Lasting {
        Lasting { name, value: value.into(), effect }
    }

    fn written(self, known: &KnownConfiguration) -> WrittenSetting {
        let is_secret = self.name == "primary_conninfo";
        let before = known.value(self.name).filter(|before| !is_secret && *before != self.value).map(str::to_owned);
        let value = (!is_secret).then_some(self.value);
        WrittenSetting { name: self.name, value, before, effect: self.effect }
    }
}

/// The configuration of the backup as far as it is known.
struct KnownConfiguration {
    auto: ConfigurationFile,
    elsewhere: ConfigurationFile,
    major: u32,
}

impl KnownConfiguration {
    fn value(&self, name: &str) -> Option<&str> {
        self.auto.value(name).or_else(|| self.elsewhere.value(name))
    }

    /// Whether a library may be loaded at the start: it is named, or not all of the configuration is known.
    fn may_preload(&self, library: &str) -> bool {
        match self.auto.value("shared_preload_libraries") {
            Some(libraries) => libraries.contains(library),
            None if self.elsewhere.may_set_more() => true,
            None => self.value("shared_preload_libraries").is_some_and(|libraries| libraries.contains(library)),
        }
    }

    /// Whether the server will archive, as far as its configuration is known.
    fn describe_archiving(&self) -> String {
        let (mode, command) = (self.value("archive_mode"), self.value("archive_command"));
        let is_unknown = self.auto.value("archive_mode").is_none() && self.elsewhere.may_set_more();
        let library = self.value("archive_library").filter(|library| !library.is_empty());
        if is_unknown {
            return mode.map_or_else(
                || {
                    "it archives if the part of its configuration that walkeep does not know has archive_mode = on"
                        .into()
                },
                |mode| format!("postgresql.conf has archive_mode = {mode}; a file that it includes may change that"),
            );
        }
        match mode.map(str::to_ascii_lowercase).as_deref() {
            None | Some("off" | "false" | "no" | "0") => {
                "it does not archive: its configuration has archive_mode = off".into()
            }
            Some(mode) => match (library, command.filter(|command| !command.is_empty())) {
                (Some(library), _) => format!("it archives: archive_mode = {mode}, archive_library = '{library}'"),
                (None, Some(command)) => format!("it archives: archive_mode = {mode}, archive_command = '{command}'"),
                (None, None) if self.elsewhere.may_set_more() => format!("it archives: archive_mode = {mode}"),
                (None, None) => {
                    format!("archive_mode = {mode}, but archive_command is empty: WAL stays in pg_wal until you set it")
                }
            },
        }
    }
}

/// The settings that isolate a copy. They prevent it from acting for its original and from waiting for other servers.
fn isolation(known: &KnownConfiguration) -> Vec<Lasting> {
    let mut settings = vec![
        Lasting::new("synchronous_standby_names", "", "no commit waits for a standby"),
        // Without workers the launcher does not start either, so no subscription takes changes from the original's
        // slot (`ApplyLauncherRegister` in launcher.c).
        Lasting::new("max_logical_replication_workers", "0", "no subscription starts"),
    ];
    if known.major >= 17 {
        settings.push(Lasting::new("synchronized_standby_slots", "", "no logical consumer waits for a standby"));
    }
    if known.may_preload("pg_cron") {
        settings.push(Lasting::new("cron.launch_active_jobs", "off", "pg_cron starts no job"));
    }
    if known.may_preload("citus") {
        settings.push(Lasting::new("citus.recover_2pc_interval", "-1", "Citus ends no transaction on other servers"));
    }
    settings
}

fn standby_settings(
    connection: &StandbyConnection,
    recovery: &RecoverySettings,
    known: &KnownConfiguration,
) -> Vec<Lasting> {
    let mut settings: Vec<Lasting> =
        emptied_targets(&known.elsewhere).map(|(name, value)| Lasting::new(name, value, "")).collect();
    if known.elsewhere.may_set("recovery_target_timeline") {
        settings.push(Lasting::new("recovery_target_timeline", "latest", ""));
    }
    settings.push(Lasting::new("restore_command", &recovery.restore_command, "it fetches WAL from the archive"));
    match &connection.primary_conninfo {
        Some(conninfo) => settings.push(Lasting::new("primary_conninfo", conninfo, "it receives WAL from the primary")),
        None if known.elsewhere.may_set("primary_conninfo") => {
            settings.push(Lasting::new("primary_conninfo", "", "it connects to no primary"));
        }
        None => {}
    }
    match &connection.slot {
        Some(slot) => settings.push(Lasting::new("primary_slot_name", slot, "the primary keeps WAL for it")),
        None if known.elsewhere.may_set("primary_slot_name") => {
            settings.push(Lasting::new("primary_slot_name", "", ""))
        }
        None => {}
    }
    settings
}

/// Whether a line of `postgresql.auto.conf` goes: it is of another server's life, or of an earlier restore.
fn is_stale_line(line: &str) -> bool {
    match parse_setting(line) {
        Some((name, value)) => is_stale(&name) || is_include(&name, &value),
        None => COMMENT_PREFIXES.iter().any(|prefix| line.starts_with(prefix)),
    }
}

/// Whether a setting is the line that includes [`RECOVERY_FILE`].
pub(super) fn is_include(name: &str, value: &str) -> bool {
    name == "include_if_exists" && value == RECOVERY_FILE
}

fn append_line(file: &mut Vec<u8>, line: &str) {
    file.extend_from_slice(line.as_bytes());
    file.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::{BackupConfiguration, ConfigurationFile, ConfigurationRequest, WrittenConfiguration};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::pg_control::RequiredSettings;
    use crate::postgres::format::timeline::TimelineId;
    use crate::postgres::restore::recovery_settings::{RECOVERY_FILE, RecoverySettings};
    use crate::postgres::restore::resolve_target::RecoveryStop;
    use crate::postgres::restore::server_role::{ServerRole, StandbyConnection};
    use crate::postgres::restore::target::RecoveryTargetAction;

    const MAJOR: u32 = 17;

    fn recovery(keep_archiving: bool) -> RecoverySettings {
        RecoverySettings {
            stop: RecoveryStop::Before(Lsn::new(0x500_0000)),
            timeline: TimelineId::new(16).unwrap(),
            action: RecoveryTargetAction::Promote,
            restore_command: "walkeep archive-get %f \"%p\"".to_owned(),
            required: RequiredSettings { max_connections: 200, ..RequiredSettings::default() },
            keep_archiving,
            no_read_ahead: false,
        }
    }

    fn apply(role: &ServerRole, keep_archiving: bool, auto: &[u8], conf: Option<&str>) -> WrittenConfiguration {
        let recovery = recovery(keep_archiving);
        let request = ConfigurationRequest { role, recovery: &recovery, end_command: "walkeep recovery-ended" };
        request.apply(&BackupConfiguration { auto_conf: auto, postgresql_conf: conf, major: MAJOR })
    }

    fn parsed(text: &[u8]) -> ConfigurationFile {
        ConfigurationFile::parse(std::str::from_utf8(text).unwrap())
    }

    #[test]
    fn what_only_recovery_needs_is_in_its_own_file_and_included_last() {
        let conf = "max_connections = 300\nrecovery_min_apply_delay = '1h'\nrecovery_target_xid = 7\n";
        let written = apply(&ServerRole::Copy, false, b"work_mem = '8MB'\nrestore_command = 'cp'\n", Some(conf));
        let recovery = parsed(written.recovery_file.as_ref().unwrap().as_bytes());
        let value = |name: &str| recovery.value(name);
        assert_eq!(value("recovery_target_lsn"), Some("0/5000000"));
        assert_eq!(value("recovery_target_timeline"), Some("16"));
        assert_eq!(value("recovery_target_xid"), Some(""));
        assert_eq!(value("recovery_min_apply_delay"), Some("0"));
        assert_eq!(value("recovery_end_command"), Some("walkeep recovery-ended"));
        let text = String::from_utf8(written.auto_conf).unwrap();
        assert!(text.ends_with(&format!("include_if_exists = '{RECOVERY_FILE}'\n")), "{text}");
        assert!(text.starts_with("work_mem = '8MB'\n"), "{text}");
        assert!(!text.contains("restore_command") && !text.contains("recovery_target"), "{text}");
        assert_eq!(written.signal, "recovery.signal");
        let other = apply(&ServerRole::Copy, false, b"", Some("restore_command = 'cp /a/%f %p'\n"));
        assert_eq!(parsed(&other.auto_conf).value("restore_command"), Some(""), "unless the file is included");
    }

    #[test]
    fn a_copy_is_isolated_and_what_was_configured_is_named() {
        let conf = "synchronous_standby_names = 'walkeep'\nshared_preload_libraries = 'pg_cron,pglogical'\n";
        let written = apply(&ServerRole::Copy, false, b"archive_mode = 'on'\n", Some(conf));
        let auto = parsed(&written.auto_conf);
        for (name, value) in [
            ("archive_mode", "off"),
            ("synchronous_standby_names", ""),
            ("max_logical_replication_workers", "0"),
            ("synchronized_standby_slots", ""),
            ("cron.launch_active_jobs", "off"),
        ] {
            assert_eq!(auto.value(name), Some(value), "{name}");
        }
        assert_eq!(auto.value("citus.recover_2pc_interval"), None, "Citus is not loaded");
        let before = |name: &str| {
            let setting = written.settings.iter().find(|setting| setting.name == name).unwrap();
            setting.before.as_deref()
        };
        assert_eq!((before("archive_mode"), before("synchronous_standby_names")), (Some("on"), Some("walkeep")));
        assert!(written.notes.iter().any(|note| note.contains("pglogical")), "{:?}", written.notes);
        let unknown = apply(&ServerRole::Copy, false, b"", None);
        assert!(parsed(&unknown.auto_conf).value("cron.launch_active_jobs").is_some(), "pg_cron may be loaded");
    }

    #[test]
    fn a_successor_keeps_what_was_configured_and_a_second_restore_what_the_first_kept() {
        let auto = b"archive_mode = 'on'\narchive_command = 'cp %p /a/%f'\nsynchronous_standby_names = 'walkeep'\n";
        let conf = Some("max_connections = 200\n");
        let first = apply(&ServerRole::Takeover, true, auto, conf);
        let value = |text: &[u8], name: &str| parsed(text).value(name).map(str::to_owned);
        assert_eq!(value(&first.auto_conf, "archive_mode").as_deref(), Some("on"));
        assert_eq!(value(&first.auto_conf, "synchronous_standby_names").as_deref(), Some("walkeep"));
        let of = |part: &str| first.notes.iter().any(|note| note.contains(part));
        assert!(of("it archives: archive_mode = on") && of("commits wait until a standby"), "{:?}", first.notes);
        let second = apply(&ServerRole::Takeover, true, &first.auto_conf, conf);
        assert_eq!(second.auto_conf, first.auto_conf);
    }

    #[test]
    fn archiving_is_described_as_it_will_be() {
        let shown = |auto: &[u8], conf: Option<&str>| apply(&ServerRole::Copy, true, auto, conf).notes.join("\n");
        assert!(shown(b"", Some("archive_mode = off")).contains("it does not archive"));
        assert!(shown(b"", Some("")).contains("it does not archive"), "off is the default");
        assert!(shown(b"", Some("archive_mode = on")).contains("archive_command is empty"));
        assert!(shown(b"", Some("archive_mode = always\narchive_command = 'x'")).contains("archive_mode = always"));
        assert!(shown(b"", None).contains("walkeep does not know"));
        assert!(shown(b"", Some("archive_mode = on\ninclude 'x'")).contains("may change that"));
        assert!(shown(b"archive_mode = 'on'", None).contains("it archives: archive_mode = on"));
    }

    #[test]
    fn settings_that_are_too_low_are_raised_for_good_and_unknown_ones_for_recovery() {
        let low = apply(&ServerRole::Copy, false, b"", Some("max_connections = 100\n"));
        assert_eq!(parsed(&low.auto_conf).value("max_connections"), Some("200"));
        assert!(low.settings.iter().any(|setting| setting.before.as_deref() == Some("100")));
        let unknown = apply(&ServerRole::Copy, false, b"", Some("max_connections = 100\ninclude_dir = 'conf.d'\n"));
        assert_eq!(parsed(&unknown.auto_conf).value("max_connections"), None);
        let file = unknown.recovery_file.unwrap();
        assert_eq!(parsed(file.as_bytes()).value("max_connections"), Some("200"));
    }

    #[test]
    fn a_standby_has_no_target_and_its_connection_wins() {
        let connection =
            StandbyConnection { primary_conninfo: Some("host=a password=secret".into()), slot: Some("s".into()) };
        let conf = "recovery_target_time = 'x'\nprimary_conninfo = 'host=old'\n";
        let written = apply(&ServerRole::Standby(connection), true, b"primary_slot_name = 'old'\n", Some(conf));
        let auto = parsed(&written.auto_conf);
        assert_eq!(auto.value("primary_conninfo"), Some("host=a password=secret"));
        assert_eq!(auto.value("primary_slot_name"), Some("s"));
        assert_eq!(auto.value("recovery_target_time"), Some(""));
        assert_eq!(auto.value("restore_command"), Some("walkeep archive-get %f \"%p\""));
        assert_eq!(auto.value("include_if_exists"), None);
        assert_eq!((written.signal, written.recovery_file), ("standby.signal", None));
        assert!(!format!("{:?}", written.settings).contains("secret"), "{:?}", written.settings);
        let alone = apply(&ServerRole::Standby(StandbyConnection::default()), true, b"", Some(conf));
        assert_eq!(parsed(&alone.auto_conf).value("primary_conninfo"), Some(""), "it follows the archive alone");
    }
}
