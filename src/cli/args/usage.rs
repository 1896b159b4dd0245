//! What a wrong line is answered: clap's own words in one line, and where those lead nowhere, what was most likely
//! meant.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory as _};

use crate::cli::args::command_line::CommandLine;
use crate::cli::exit;
use crate::config::{Config, ProcessEnvironment};

/// `walkeep help COMMAND` as `walkeep COMMAND --help`.
pub(in crate::cli) fn without_help(mut arguments: Vec<OsString>) -> Vec<OsString> {
    if arguments.get(1).is_some_and(|first| first == "help") {
        arguments.remove(1);
        arguments.push("--help".into());
    }
    arguments
}

/// What is wrong with a line, and what to write instead.
pub(in crate::cli) fn usage_error_line(error: &clap::Error, arguments: &[OsString]) -> String {
    let (path, after) = parsed_commands(arguments);
    match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            return incomplete_command_line(&path);
        }
        ErrorKind::InvalidSubcommand if !path.is_empty() && error.get(ContextKind::SuggestedSubcommand).is_none() => {
            if let Some(name) = &after {
                return missing_kind_line(&path, name, &configured_names(arguments));
            }
        }
        ErrorKind::UnknownArgument => {
            let given = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::String(given)) => given.as_str(),
                _ => "",
            };
            let negative = given.strip_prefix('-').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
            if negative
                && arguments
                    .iter()
                    .any(|argument| ["--target-time", "--since", "--until"].iter().any(|o| argument == o))
            {
                return format!("{given} is no time; a time before now is written '5 minutes ago', in quotes");
            }
        }
        _ => {}
    }
    exit::clap_error_line(error)
}

/// The commands of a line, one within the other, and the word behind them.
fn parsed_commands(arguments: &[OsString]) -> (Vec<Command>, Option<String>) {
    let mut path: Vec<Command> = Vec::new();
    let mut within = CommandLine::command();
    let mut words = arguments.iter().skip(1).filter_map(|argument| argument.to_str());
    while let Some(word) = words.next() {
        if matches!(word, "--config" | "--log-format" | "--time-zone") {
            words.next();
        } else if let Some(found) = within.find_subcommand(word).cloned() {
            path.push(found.clone());
            within = found;
        } else if !word.starts_with('-') {
            return (path, Some(word.to_owned()));
        }
    }
    (path, None)
}

fn command_path(path: &[Command]) -> String {
    path.iter().fold("walkeep".to_owned(), |line, command| format!("{line} {}", command.get_name()))
}

fn incomplete_command_line(path: &[Command]) -> String {
    let line = command_path(path);
    let (what, names) = match path.last() {
        Some(last) => ("one of", subcommand_names(last)),
        None => ("a command", subcommand_names(&CommandLine::command())),
    };
    format!("{line} takes {what}: {}; see {line} --help", names.join(", "))
}

fn subcommand_names(command: &Command) -> Vec<String> {
    command.get_subcommands().map(|command| command.get_name().to_owned()).collect()
}

/// A name stands where its kind belongs first.
fn missing_kind_line(path: &[Command], name: &str, configured: &[(&'static str, String)]) -> String {
    let line = command_path(path);
    let kinds = path.last().map(subcommand_names).unwrap_or_default();
    match configured.iter().find(|(kind, known)| known == name && kinds.iter().any(|known| known == kind)) {
        Some((kind, _)) => format!("did you mean: {line} {kind} {name}?"),
        None => format!("{line} knows no {name:?}; it takes one of: {}; see {line} --help", kinds.join(", ")),
    }
}

/// What is configured, with its kind; nothing where the configuration cannot be read, which is not what is wrong here.
fn configured_names(arguments: &[OsString]) -> Vec<(&'static str, String)> {
    let mut rest = arguments.iter().filter_map(|argument| argument.to_str());
    let mut named = None;
    while let Some(word) = rest.next() {
        match word.strip_prefix("--config") {
            Some("") => named = rest.next().map(PathBuf::from),
            Some(value) => named = value.strip_prefix('=').map(PathBuf::from),
            None => {}
        }
    }
    let Ok(config) = Config::read(named.as_deref(), &ProcessEnvironment::from_process()) else { return Vec::new() };
    let clusters = config.clusters.iter().map(|cluster| ("postgres", cluster.name.to_string()));
    clusters.chain(config.instances.iter().map(|instance| ("redis", instance.name.to_string()))).collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser as _;

    use super::{missing_kind_line, parsed_commands, usage_error_line, without_help};
    use crate::cli::args::command_line::CommandLine;

    fn said(line: &str) -> String {
        let arguments: Vec<OsString> = line.split(' ').map(Into::into).collect();
        usage_error_line(&CommandLine::try_parse_from(&arguments).unwrap_err(), &arguments)
    }

    #[test]
    fn a_wrong_line_is_answered_with_what_to_write() {
        for (line, holds) in [
            ("walkeep", "walkeep takes a command: init, check, receive"),
            ("walkeep plan", "walkeep plan takes one of: postgres, redis, all; see walkeep plan --help"),
            ("walkeep index", "walkeep index takes one of: rebuild, stats"),
            ("walkeep -v backup", "walkeep backup takes one of: postgres, redis, all"),
            ("walkeep list postgre", "a similar subcommand exists: 'postgres'"),
            (
                "walkeep --time-zone UTC list nothing-like-it",
                "knows no \"nothing-like-it\"; it takes one of: postgres, redis",
            ),
            (
                "walkeep plan redis --target-time -5 minutes",
                "-5 is no time; a time before now is written '5 minutes ago'",
            ),
            ("walkeep log --since -2h", "-2 is no time; a time before now is written"),
            ("walkeep cleanup 30x", "invalid value '30x' for '[DAYS]': write a number of days, like 30; see --help"),
            ("walkeep cleanup 0", "write a number of days, like 30; see --help"),
        ] {
            let said = said(line);
            assert!(said.contains(holds) && !said.contains("For more"), "{line}: {said}");
        }
        assert!(CommandLine::try_parse_from(["walkeep", "cleanup", "30d"]).is_ok());
    }

    #[test]
    fn a_name_without_its_kind_is_completed() {
        let arguments: Vec<OsString> = ["walkeep", "list", "cache"].map(Into::into).into();
        let (path, name) = parsed_commands(&arguments);
        let known = [("postgres", "main".to_owned()), ("redis", "cache".to_owned())];
        assert_eq!(missing_kind_line(&path, &name.unwrap(), &known), "did you mean: walkeep list redis cache?");
        assert_eq!(missing_kind_line(&path, "main", &known), "did you mean: walkeep list postgres main?");
    }

    #[test]
    fn help_is_a_command_too() {
        let asked = |line: &str| without_help(line.split(' ').map(Into::into).collect());
        assert_eq!(asked("walkeep help plan redis"), ["walkeep", "plan", "redis", "--help"]);
        assert_eq!(asked("walkeep help"), ["walkeep", "--help"]);
        assert_eq!(asked("walkeep check help"), ["walkeep", "check", "help"]);
    }
}
