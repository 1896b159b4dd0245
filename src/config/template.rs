//! The file that `walkeep init` writes: short, with comments that help, and read back by [`super::Config::parse`]
//! before it is kept.

use std::path::Path;

use url::Url;

/// What `init` was told.
#[derive(Clone, Copy, Debug)]
pub struct NewConfig<'c> {
    /// The cluster's name.
    pub cluster: &'c str,
    /// How to reach it, if at all.
    pub connection: Option<&'c str>,
    /// The repository.
    pub repository: &'c Url,
    /// Where index, spool and control socket go.
    pub state_dir: &'c Path,
    /// The key file; `None` to do without encryption.
    pub key_file: Option<&'c Path>,
}

/// The column at which comments begin.
const COMMENT_COLUMN: usize = 40;

/// The text of the configuration.
#[must_use]
pub fn render_config(new: &NewConfig<'_>) -> String {
    let local = repository_name(new.repository);
    let mut lines = vec![
        "# walkeep's configuration. Relative paths are taken from this file's folder.".to_owned(),
        commented_line(
            &setting_line("state-dir", &new.state_dir.display().to_string()),
            "index, spool, control socket",
        ),
        String::new(),
        commented_line(&format!("[repository.{local}]"), "any number; each gets everything"),
        setting_line("url", new.repository.as_str()),
        String::new(),
        "[encryption]".to_owned(),
        match new.key_file {
            Some(path) => {
                commented_line(&setting_line("key-file", &path.display().to_string()), "keep a copy elsewhere")
            }
            None => commented_line("enabled = false", "whoever reaches the repository can read it"),
        },
        String::new(),
        "[compression]".to_owned(),
        commented_line("level = \"auto\"", "zstd: faster when behind, better when idle; or a number"),
        String::new(),
        format!("[postgres.{}]", new.cluster),
    ];
    match new.connection {
        Some(text) => lines.extend([
            setting_line("connection", text),
            commented_line("acknowledge = \"spool\"", "what flushed means; or \"repository\""),
        ]),
        None => lines.extend([
            "# fed by archive_command alone; to stream and to take backups, add:".to_owned(),
            "# connection = \"host=/var/run/postgresql user=walkeep\"".to_owned(),
        ]),
    }
    lines.extend([
        String::new(),
        commented_line("# [redis.cache]", "a Redis or Valkey instance; any number"),
        commented_line("# url = \"redis://127.0.0.1:6379\"", "rediss:// for TLS; or sentinels and master"),
        commented_line("# user = \"walkeep\"", "see docs/operations.md for its ACL"),
        "# password-file = \"/etc/walkeep/redis-password\"".to_owned(),
        String::new(),
    ]);
    lines.join("\n")
}

fn setting_line(key: &str, value: &str) -> String {
    format!("{key} = {}", toml::Value::String(value.to_owned()))
}

fn commented_line(setting: &str, comment: &str) -> String {
    format!("{setting:<COMMENT_COLUMN$}  # {comment}")
}

/// What the repository is called in the file.
fn repository_name(url: &Url) -> &'static str {
    if url.scheme() == "file" { "local" } else { "offsite" }
}
