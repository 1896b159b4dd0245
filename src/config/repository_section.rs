//! Sections of repositories as text: added at the end of a configuration, and taken out of it. The rest of the file
//! keeps every byte. The caller parses the result before it writes it.

use url::Url;

/// A repository to be added.
#[derive(Clone, Copy, Debug)]
pub struct NewRepository<'r> {
    /// Its name.
    pub name: &'r str,
    /// Where it is.
    pub url: &'r Url,
    /// Its retention, as it is written.
    pub retention: Option<&'r str>,
    /// More keys of the section with their values.
    pub settings: &'r [(String, String)],
}

/// The configuration with a section for the repository at its end.
#[must_use]
pub fn append_repository(text: &str, new: &NewRepository<'_>) -> String {
    let quoted = |value: &str| toml::Value::String(value.to_owned()).to_string();
    let mut lines = vec![format!("[repository.{}]", new.name), format!("url = {}", quoted(new.url.as_str()))];
    lines.extend(new.retention.map(|retention| format!("retention = {}", quoted(retention))));
    for (key, value) in new.settings {
        let value = if matches!(value.as_str(), "true" | "false") { value.clone() } else { quoted(value) };
        lines.push(format!("{key} = {value}"));
    }
    let gap = match text {
        "" => "",
        text if text.ends_with("\n\n") => "",
        text if text.ends_with('\n') => "\n",
        _ => "\n\n",
    };
    format!("{text}{gap}{}\n", lines.join("\n"))
}

/// The configuration without the section of this repository. Comments and blank lines before the next section stay.
/// `None` if it has no section of its own: a file may also write `repository.NAME.url = …`.
#[must_use]
pub fn remove_repository(text: &str, name: &str) -> Option<String> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let begin = lines.iter().position(|line| is_heading_of(line, name))?;
    let body = lines.iter().skip(begin.saturating_add(1)).take_while(|line| !line.trim_start().starts_with('['));
    let is_setting = |line: &str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    let settings = body.enumerate().filter(|(_, line)| is_setting(line)).map(|(nth, _)| nth.saturating_add(1)).last();
    let end = begin.saturating_add(settings.unwrap_or(0));
    let kept = lines.iter().enumerate().filter(|(nth, _)| *nth < begin || *nth > end).map(|(_, line)| *line);
    Some(kept.collect())
}

/// Whether a line is `[repository.NAME]`, with blanks, quotes and a comment as TOML allows them.
fn is_heading_of(line: &str, name: &str) -> bool {
    let Some((heading, rest)) = line.trim_start().strip_prefix('[').and_then(|rest| rest.split_once(']')) else {
        return false;
    };
    let plain = |part: &str| part.trim().trim_matches(['"', '\'']).to_owned();
    let parts: Vec<String> = heading.split('.').map(plain).collect();
    let rest = rest.trim();
    parts == ["repository", name] && (rest.is_empty() || rest.starts_with('#'))
}

#[cfg(test)]
mod tests {
    use super::{NewRepository, append_repository, remove_repository};
    use crate::config::{Config, parse_repository_url};

    const BEFORE: &str = "# ours\r\nstate-dir = \"/s\"\n[repository.local] # here\nurl = \"/srv/a\"\n\n[encryption]\n\
        enabled = false";

    fn append(text: &str) -> String {
        let url = parse_repository_url("s3://b/a \"quoted\" folder").unwrap();
        let settings = [
            ("endpoint".to_owned(), "http://h:9".to_owned()),
            ("allow-http".to_owned(), "true".to_owned()),
            ("secret-access-key".to_owned(), "a\"b\\c\n[x]".to_owned()),
        ];
        append_repository(
            text,
            &NewRepository { name: "off-site", url: &url, retention: Some("90d"), settings: &settings },
        )
    }

    #[test]
    fn what_is_added_is_read_and_the_rest_keeps_every_byte() {
        for before in [BEFORE.to_owned(), format!("{BEFORE}\n"), format!("{BEFORE}\n\n")] {
            let text = append(&before);
            assert!(text.starts_with(&before), "{text}");
            let config = Config::parse(std::path::Path::new("/etc/w.toml"), &text).unwrap();
            let [_, added] = config.repositories.as_slice() else { panic!("{text}") };
            assert_eq!((added.name.as_str(), added.url.as_str()), ("off-site", "s3://b/a%20%22quoted%22%20folder"));
            assert_eq!(added.retention.unwrap().as_hours(), 90 * 24);
            assert_eq!(added.settings["aws_secret_access_key"].reveal(), "a\"b\\c\n[x]");
            assert_eq!(added.settings["allow_http"].reveal(), "true");
        }
    }

    /// Written with dotted keys, as the README does, a file takes a section too.
    #[test]
    fn a_file_of_dotted_keys_takes_a_section() {
        let text = append("repository.local.url = \"/srv/a\"\nencryption.enabled = false\n");
        let config = Config::parse(std::path::Path::new("/etc/w.toml"), &text).unwrap();
        assert_eq!(config.repositories.len(), 2);
        assert_eq!(remove_repository(&text, "local"), None);
    }

    #[test]
    fn removing_takes_the_section_alone() {
        let section = "[ repository . \"two\" ]  # second\nurl = \"/srv/b\"\n# inside\nretention = \"3d\"\n";
        let after = "\n# about the next\n[repository.twofold]\nurl = \"/srv/c\"\n";
        for (before, rest) in [("", after), (BEFORE, after), ("[repository.local]\nurl = \"/srv/a\"\n", "")] {
            let before = if before.is_empty() { String::new() } else { format!("{before}\n") };
            let text = format!("{before}{section}{rest}");
            assert_eq!(remove_repository(&text, "two").unwrap(), format!("{before}{rest}"));
        }
        assert_eq!(remove_repository(after, "two"), None);
        assert_eq!(remove_repository("[repository.two.more]\n", "two"), None);
    }
}
