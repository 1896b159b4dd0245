//! The settings that every SQL session of walkeep begins with, and those that PostgreSQL's tools are given.
//!
//! An owner of a database or a role can attach settings to it, and a role that may create objects in a schema can
//! create operators and functions there. With their `search_path`, a query of walkeep would call them with its own
//! rights (CVE-2018-1058). Their time-outs would end its sessions, and their `role` would take its rights away.
//!
//! Settings in the startup packet have a higher priority (`PGC_S_CLIENT` in guc.h) than those of databases and roles,
//! and hold from the first statement on. Once logged in, a session sets them again, because a login trigger may have
//! changed them (17 and later), together with those that only newer servers or superusers know. With an empty
//! `search_path`, names of functions and operators are looked up in `pg_catalog` alone: it is searched implicitly, and
//! the schema of temporary objects never is for them (`FuncnameGetCandidates`, `OpernameGetCandidates`).
//!
//! Pure: settings in, options and statements out.

/// What no database and no role may decide, on every supported version, for walkeep's sessions and for the tools. Any
/// role may set them.
const GUARD_SETTINGS: [(&str, &str); 12] = [
    ("search_path", ""),
    ("role", "none"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_deferrable", "off"),
    // A library that is not installed would refuse each login.
    ("local_preload_libraries", ""),
    // Off, it reads the NULL in an array as a word.
    ("array_nulls", "on"),
    ("standard_conforming_strings", "on"),
    ("row_security", "off"),
];

/// The form in which walkeep reads answers. The tools set what they need, and what users' expressions give may depend
/// on the settings of their database.
const READING_SETTINGS: [(&str, &str); 5] = [
    ("DateStyle", "ISO"),
    ("IntervalStyle", "postgres"),
    ("bytea_output", "hex"),
    ("quote_all_identifiers", "off"),
    ("transform_null_equals", "off"),
];

/// A setting that exists only if the server got our options: what is between may drop them.
pub const MARKER_SETTING: &str = "walkeep.session";

/// Guards that older servers do not know: the first major version that does.
const NEWER_GUARD_SETTINGS: [(u32, &str, &str); 2] =
    [(14, "idle_session_timeout", "0"), (17, "transaction_timeout", "0")];

/// What only a superuser may set, with the first major version that knows it. As a replica, a session fires no ordinary
/// trigger: walkeep writes no rows of users, and their event triggers are not about what it does.
const SUPERUSER_SETTINGS: [(u32, &str, &str); 3] =
    [(13, "session_replication_role", "replica"), (13, "session_preload_libraries", ""), (17, "event_triggers", "off")];

/// What is known of a session's server and role before it begins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionRights {
    /// The server's major version.
    pub major: u32,
    /// Whether the role is a superuser.
    pub superuser: bool,
}

/// The options of the startup packet of a session of walkeep, after those that the user gave.
#[must_use]
pub fn startup_options(given: Option<&str>) -> String {
    join_options(given, GUARD_SETTINGS.into_iter().chain(READING_SETTINGS).chain([(MARKER_SETTING, "on")]))
}

/// The options of a session or a tool at a server that is known, for `options` and `PGOPTIONS`.
#[must_use]
pub fn options_for(given: Option<&str>, rights: SessionRights) -> String {
    join_options(
        given,
        GUARD_SETTINGS
            .into_iter()
            .chain(settings_since(&NEWER_GUARD_SETTINGS, rights.major))
            .chain(settings_since(&SUPERUSER_SETTINGS, rights.major).filter(|_| rights.superuser)),
    )
}

/// The statements by which a session of walkeep begins. The time-outs come first.
#[must_use]
pub fn first_statements(major: u32) -> String {
    let newer = settings_since(&NEWER_GUARD_SETTINGS, major);
    statements(newer.chain(GUARD_SETTINGS).chain(READING_SETTINGS))
}

/// The statements that a superuser's session continues with. `session_preload_libraries` is left out: it is too late
/// for it.
#[must_use]
pub fn superuser_statements(major: u32) -> String {
    let late = |(name, _): &(&str, &str)| *name != "session_preload_libraries";
    statements(settings_since(&SUPERUSER_SETTINGS, major).filter(late))
}

fn settings_since(
    settings: &'static [(u32, &'static str, &'static str)],
    major: u32,
) -> impl Iterator<Item = (&'static str, &'static str)> {
    settings.iter().filter(move |(since, _, _)| *since <= major).map(|(_, name, value)| (*name, *value))
}

/// Of two options for one name the later one holds (`process_postgres_switches`). Spaces and backslashes are escaped by
/// a backslash (`pg_split_opts`).
fn join_options<'s>(given: Option<&str>, settings: impl Iterator<Item = (&'s str, &'s str)>) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace(' ', "\\ ");
    let own = settings.map(|(name, value)| format!("-c {name}={}", escaped(value)));
    given.filter(|given| !given.is_empty()).map(str::to_owned).into_iter().chain(own).collect::<Vec<_>>().join(" ")
}

fn statements<'s>(settings: impl Iterator<Item = (&'s str, &'s str)>) -> String {
    // `SET role = 'none'` is `SET ROLE NONE`.
    settings.map(|(name, value)| format!("SET {name} = '{value}'")).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::{SessionRights, first_statements, options_for, startup_options, superuser_statements};

    #[test]
    fn ours_come_after_what_the_user_gave() {
        let options = startup_options(Some("-c search_path=public"));
        assert!(options.find("search_path=public").unwrap() < options.find("-c search_path= ").unwrap(), "{options}");
        assert!(options.contains("default_transaction_isolation=read\\ committed "), "{options}");
        assert!(startup_options(None).starts_with("-c search_path= -c role=none "));
    }

    #[test]
    fn no_server_is_given_a_setting_that_it_does_not_know() {
        let (old, new) = (first_statements(13), first_statements(17));
        assert!(!old.contains("idle_session_timeout") && !old.contains("transaction_timeout"), "{old}");
        assert!(
            new.starts_with("SET idle_session_timeout = '0'; SET transaction_timeout = '0'; SET search_path"),
            "{new}"
        );
        assert_eq!(superuser_statements(16), "SET session_replication_role = 'replica'");
        assert!(superuser_statements(17).ends_with("SET event_triggers = 'off'"));
        let options = |major, superuser| options_for(None, SessionRights { major, superuser });
        assert!(options(17, true).contains("event_triggers=off") && !options(16, true).contains("event_triggers"));
        assert!(!options(18, false).contains("session_replication_role"), "a role that is no superuser may not");
        assert!(options(14, false).contains("idle_session_timeout=0") && !options(13, true).contains("idle_session"));
    }
}
