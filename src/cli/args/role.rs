//! What a restored server is to its original: the options of `restore` and `plan`.

use clap::{Args, ValueEnum};

use super::target::{PostgresTargetArgs, TargetActionArg};
use crate::cli::exit::CliError;
use crate::cli::show::shell;
use crate::postgres::restore::server_role::{ServerRole, StandbyConnection};

#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Role of the restored server (an isolated copy without one)")]
pub(in crate::cli) struct SuccessorArgs {
    /// Take over from the original after a disaster: archiving, subscriptions and synchronous standbys stay as they
    /// were configured
    #[arg(long)]
    pub(in crate::cli) takeover: bool,
    /// Whether archiving stays as it was configured [default: off for a copy, else preserve]
    #[arg(long, value_enum, value_name = "MODE")]
    pub(in crate::cli) archive_mode: Option<ArchiveModeAfterRestore>,
}

#[derive(Args, Debug, Clone, Default)]
#[command(next_help_heading = "Role of the restored server (an isolated copy without one)")]
pub(in crate::cli) struct StandbyArgs {
    /// Make a standby. It has no target: it follows its primary and the archive
    #[arg(long, conflicts_with = "takeover")]
    pub(in crate::cli) standby: bool,
    /// How the standby connects to its primary, for example 'host=db1 user=replicator'
    #[arg(long, value_name = "CONNINFO", requires = "standby")]
    pub(in crate::cli) primary_conninfo: Option<String>,
    /// The standby's replication slot on the primary
    #[arg(long, value_name = "SLOT", requires = "primary_conninfo")]
    pub(in crate::cli) slot: Option<String>,
}

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::cli) enum ArchiveModeAfterRestore {
    /// It archives nothing
    Off,
    /// It archives if it is configured to
    Preserve,
}

/// What the restored server is to be. The default is an isolated copy.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(in crate::cli) struct RequestedRole {
    pub(in crate::cli) role: ServerRole,
    /// Whether archiving stays as it was configured.
    pub(in crate::cli) keep_archiving: bool,
    /// The options that ask for the same role again, for a line to copy.
    pub(in crate::cli) options: String,
}

impl RequestedRole {
    /// A copy or a successor.
    pub(in crate::cli) fn successor(args: &SuccessorArgs) -> RequestedRole {
        let role = if args.takeover { ServerRole::Takeover } else { ServerRole::Copy };
        RequestedRole::new(role, args, if args.takeover { "--takeover".to_owned() } else { String::new() })
    }

    /// Any role. A standby with a target is refused.
    pub(in crate::cli) fn read(
        args: &SuccessorArgs,
        standby: &StandbyArgs,
        target: &PostgresTargetArgs,
    ) -> Result<RequestedRole, CliError> {
        if !standby.standby {
            return Ok(RequestedRole::successor(args));
        }
        if let Some(option) = target_option(target) {
            return Err(CliError::usage(format!(
                "--standby: a standby follows its primary and has no target; omit {option}, or omit --standby to \
                 restore a copy"
            )));
        }
        if standby.primary_conninfo.as_ref().is_some_and(|conninfo| conninfo.trim().is_empty()) {
            return Err(CliError::usage(
                "--primary-conninfo: write a connection string, like 'host=db1 user=replicator'",
            ));
        }
        if let Some(slot) = standby.slot.as_ref().filter(|slot| !is_slot_name(slot)) {
            return Err(CliError::usage(format!(
                "--slot {slot:?}: a slot's name has 1 to 63 lower-case letters, digits and underscores"
            )));
        }
        let mut options = vec!["--standby".to_owned()];
        let pairs = [("--primary-conninfo", &standby.primary_conninfo), ("--slot", &standby.slot)];
        for (option, value) in pairs {
            options.extend(value.as_ref().map(|value| format!("{option} {}", shell::quote_for_shell(value))));
        }
        let connection =
            StandbyConnection { primary_conninfo: standby.primary_conninfo.clone(), slot: standby.slot.clone() };
        Ok(RequestedRole::new(ServerRole::Standby(connection), args, options.join(" ")))
    }

    fn new(role: ServerRole, args: &SuccessorArgs, mut options: String) -> RequestedRole {
        let mode = args.archive_mode;
        let keep_archiving = match mode {
            Some(mode) => mode == ArchiveModeAfterRestore::Preserve,
            None => role != ServerRole::Copy,
        };
        if let Some(mode) = mode {
            let mode = if mode == ArchiveModeAfterRestore::Preserve { "preserve" } else { "off" };
            options = format!("{options} --archive-mode {mode}").trim_start().to_owned();
        }
        RequestedRole { role, keep_archiving, options }
    }

    /// What the role means, in one sentence.
    pub(in crate::cli) const fn summary(&self) -> &'static str {
        self.role.summary(self.keep_archiving)
    }
}

/// The first option that gives a target. `--backup` is none, and the newest timeline is the one that a standby follows.
fn target_option(target: &PostgresTargetArgs) -> Option<&'static str> {
    let given = [
        ("--target-time", target.target_time.is_some()),
        ("--target-lsn", target.target_lsn.is_some()),
        ("--target-xid", target.target_xid.is_some()),
        ("--target-name", target.target_name.is_some()),
        ("--before-event", target.before_event.is_some()),
        ("--target-immediate", target.target_immediate),
        ("--target-timeline", target.target_timeline != "latest"),
        ("--target-action", target.target_action != TargetActionArg::Promote),
        ("--nearest", target.nearest),
    ];
    given.into_iter().find(|(_, is_given)| *is_given).map(|(option, _)| option)
}

/// As PostgreSQL has it (`ReplicationSlotValidateName`).
fn is_slot_name(name: &str) -> bool {
    let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    !name.is_empty() && name.len() < 64 && name.chars().all(valid)
}

#[cfg(test)]
mod tests {
    use super::{ArchiveModeAfterRestore, RequestedRole, StandbyArgs, SuccessorArgs};
    use crate::cli::args::target::PostgresTargetArgs;
    use crate::postgres::restore::server_role::ServerRole;

    fn standby() -> StandbyArgs {
        StandbyArgs { standby: true, primary_conninfo: Some("host=a user=b".into()), slot: Some("s_1".into()) }
    }

    fn target() -> PostgresTargetArgs {
        PostgresTargetArgs { target_timeline: "latest".into(), ..PostgresTargetArgs::default() }
    }

    #[test]
    fn a_copy_does_not_archive_and_a_successor_does_unless_told() {
        let archives = |takeover, archive_mode| {
            let role = RequestedRole::successor(&SuccessorArgs { takeover, archive_mode });
            (role.keep_archiving, role.options)
        };
        assert_eq!(archives(false, None), (false, String::new()));
        assert_eq!(archives(true, None), (true, "--takeover".to_owned()));
        assert_eq!(
            archives(true, Some(ArchiveModeAfterRestore::Off)),
            (false, "--takeover --archive-mode off".to_owned())
        );
        assert_eq!(
            archives(false, Some(ArchiveModeAfterRestore::Preserve)),
            (true, "--archive-mode preserve".to_owned())
        );
    }

    #[test]
    fn a_standby_has_no_target() {
        let read = |standby: &StandbyArgs, target: &PostgresTargetArgs| {
            RequestedRole::read(&SuccessorArgs::default(), standby, target).map_err(|error| error.to_string())
        };
        let role = read(&standby(), &target()).unwrap();
        assert!(matches!(role.role, ServerRole::Standby(_)) && role.keep_archiving, "{role:?}");
        assert_eq!(role.options, "--standby --primary-conninfo 'host=a user=b' --slot s_1");
        read(&standby(), &PostgresTargetArgs { backup: Some("x".into()), ..target() }).unwrap();
        for wrong in [
            PostgresTargetArgs { target_time: Some("now".into()), ..target() },
            PostgresTargetArgs { target_immediate: true, ..target() },
            PostgresTargetArgs { target_timeline: "2".into(), ..target() },
            PostgresTargetArgs { nearest: true, ..target() },
        ] {
            let error = read(&standby(), &wrong).unwrap_err();
            assert!(error.contains("has no target"), "{error}");
        }
        let error = read(&StandbyArgs { slot: Some("a b".into()), ..standby() }, &target()).unwrap_err();
        assert!(error.contains("lower-case"), "{error}");
    }
}
