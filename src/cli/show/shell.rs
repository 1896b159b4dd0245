//! Words and commands as a shell reads them: in lines that a person copies, and in commands that PostgreSQL runs.
//!
//! The two differ in the percent sign. PostgreSQL replaces `%p`, `%f` and `%%` in `archive_command` and
//! `restore_command` before the shell sees them, so there a percent sign is doubled. A shell replaces nothing.

use std::path::Path;

use anyhow::Context;

use crate::cli::context::CliContext;
use crate::config::{self, Config};

/// The start of an `archive_command` or a `restore_command` that calls walkeep with this configuration. PostgreSQL
/// runs it with its own working directory and `PATH`, so both paths are absolute.
pub(in crate::cli) fn postgres_command_prefix(config: &Path) -> anyhow::Result<String> {
    let program = std::env::current_exe().context("cannot tell where the program itself is")?;
    let program = quote_for_postgres_command(&program.display().to_string());
    if config == Path::new(config::SYSTEM_CONFIG_PATH) {
        return Ok(program);
    }
    Ok(format!("{program} --config {}", quote_for_postgres_command(&config.display().to_string())))
}

/// The start of a command line that a person copies: with the configuration, if the user named one.
pub(in crate::cli) fn shell_command_prefix(config: &Config, around: &CliContext) -> String {
    match config::is_config_named(around.named_config.as_deref(), &around.environment) {
        true => format!("walkeep --config {}", quote_for_shell(&config.path.display().to_string())),
        false => "walkeep".to_owned(),
    }
}

/// One word of an `archive_command` or a `restore_command`. PostgreSQL replaces `%p` and `%f` before the shell reads
/// the command, so a percent sign is doubled.
fn quote_for_postgres_command(word: &str) -> String {
    quote_for_shell(&word.replace('%', "%%"))
}

/// One word of a line that a person pastes into a shell.
pub(in crate::cli) fn quote_for_shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+,:=@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use jiff::tz::TimeZone;

    use super::{quote_for_postgres_command, quote_for_shell, shell_command_prefix};
    use crate::base::clock::SystemClock;
    use crate::cli::context::CliContext;
    use crate::cli::show::output::TerminalOutput;
    use crate::config::{Config, ProcessEnvironment};

    #[test]
    fn a_configuration_that_was_named_is_named_again() {
        let again = |path: &str, named: Option<&str>, variable: &[(&str, &str)]| {
            let around = CliContext {
                named_config: named.map(PathBuf::from),
                quiet: false,
                environment: variable.iter().copied().collect::<ProcessEnvironment>(),
                clock: SystemClock::shared(),
                zone_asked: false,
                output: TerminalOutput { styled: false, zone: TimeZone::UTC },
            };
            let text = "[encryption]\nenabled = false\n[repository.local]\nurl = \"file:///srv/repository\"\n";
            shell_command_prefix(&Config::parse(Path::new(path), text).unwrap(), &around)
        };
        assert_eq!(again("/a/walkeep.toml", None, &[]), "walkeep");
        assert_eq!(again("/a/walkeep.toml", Some("walkeep.toml"), &[]), "walkeep --config /a/walkeep.toml");
        let variable = [("WALKEEP_CONFIG", "/50% a.toml")];
        assert_eq!(again("/50% a.toml", None, &variable), "walkeep --config '/50% a.toml'");
    }

    const WORDS: [&str; 9] =
        ["/usr/bin/walkeep", "/a b/c", "it's", "", "$HOME;rm", "ä", "50%", "/srv/50%/pg %p", "100%% sure"];

    /// The words as the shell passes them to a program.
    fn read_by_shell(quoted: &str) -> String {
        let echoed = std::process::Command::new("/bin/sh").args(["-c", &format!("printf %s {quoted}")]).output();
        String::from_utf8(echoed.unwrap().stdout).unwrap()
    }

    #[test]
    fn words_survive_the_shell() {
        for word in WORDS {
            let quoted = quote_for_shell(word);
            assert_eq!(read_by_shell(&quoted), word, "{quoted}");
        }
        assert_eq!(quote_for_shell("/srv/50%"), "/srv/50%");
    }

    #[test]
    fn words_survive_postgresql_and_the_shell() {
        for word in WORDS {
            let quoted = quote_for_postgres_command(word);
            assert_eq!(read_by_shell(&quoted.replace("%%", "%")), word, "{quoted}");
        }
        assert_eq!(quote_for_postgres_command("/usr/bin/walkeep"), "/usr/bin/walkeep");
        assert_eq!(quote_for_postgres_command("a%p"), "a%%p");
    }
}
