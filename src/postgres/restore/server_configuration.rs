//! The configuration files of a restored server, wherever they are. On Debian they are not in the data directory and so
//! not in a backup: `/etc/postgresql/VERSION/NAME/postgresql.conf` names the data directory instead.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::configuration_file::parse_setting;
use super::destination_error::{DestinationError, io_error};

/// The file in a data directory, and the one with the options of the server's last start.
pub(super) const POSTGRESQL_CONF: &str = "postgresql.conf";
const POSTMASTER_OPTS: &str = "postmaster.opts";

/// Where Debian's tools keep the configuration of clusters, unless `PG_CLUSTER_CONF_ROOT` names another directory.
const DEBIAN_ROOT: &str = "/etc/postgresql";

/// Files that include one another are followed so deep (`CONF_FILE_MAX_DEPTH`).
const MAX_DEPTH: u32 = 10;

/// What says that another file may set anything.
const UNKNOWN_INCLUDE: &str = "include 'unknown'\n";

/// Settings that name a file or directory that the server reads.
const FILE_SETTINGS: [&str; 9] = [
    "hba_file",
    "ident_file",
    "ssl_cert_file",
    "ssl_key_file",
    "ssl_ca_file",
    "ssl_crl_file",
    "ssl_crl_dir",
    "ssl_dh_params_file",
    "krb_server_keyfile",
];

/// Settings that name libraries without which a server does not start, or cannot read what it has.
const LIBRARY_SETTINGS: [&str; 3] = ["shared_preload_libraries", "session_preload_libraries", "archive_library"];

/// Where `postgresql.conf` of a restored server is looked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigurationSearch {
    /// The file that the user named.
    pub named: Option<PathBuf>,
    /// Where Debian's tools keep the configuration of clusters.
    pub debian_root: PathBuf,
}

impl Default for ConfigurationSearch {
    fn default() -> ConfigurationSearch {
        ConfigurationSearch { named: None, debian_root: DEBIAN_ROOT.into() }
    }
}

/// Which `postgresql.conf` a server of a data directory reads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum ConfigurationPlace {
    /// That in the data directory, as it is in the backup.
    DataDirectory,
    /// This one.
    Elsewhere(PathBuf),
    /// None is known; walkeep writes one that sets nothing.
    Absent,
}

impl ConfigurationPlace {
    /// Finds it: the file that the user named; that with which the last server in the directory was started; that which
    /// names the directory, as Debian's do; or that of the backup.
    pub(super) fn find(
        pgdata: &Path,
        search: &ConfigurationSearch,
        major: u32,
        in_backup: bool,
    ) -> Result<ConfigurationPlace, DestinationError> {
        if let Some(file) = &search.named {
            fs::metadata(file).map_err(io_error("read", file))?;
            return Ok(ConfigurationPlace::Elsewhere(file.clone()));
        }
        let started_with = fs::read_to_string(pgdata.join(POSTMASTER_OPTS)).ok();
        let started_with = started_with.and_then(|text| option_in(&text, "config_file")).filter(|file| file.exists());
        let known = started_with.or_else(|| debian_configuration(&search.debian_root, pgdata, major));
        Ok(match known {
            Some(file) => ConfigurationPlace::Elsewhere(file),
            None if in_backup => ConfigurationPlace::DataDirectory,
            None => ConfigurationPlace::Absent,
        })
    }

    /// The file, if it is not in the data directory.
    pub(super) fn elsewhere(&self) -> Option<&Path> {
        match self {
            ConfigurationPlace::Elsewhere(file) => Some(file),
            ConfigurationPlace::DataDirectory | ConfigurationPlace::Absent => None,
        }
    }
}

/// The value of a `-c` option in `postmaster.opts`, where each word of the command line is in double quotes.
fn option_in(text: &str, name: &str) -> Option<PathBuf> {
    let prefix = format!("{name}=");
    let word = |word: &str| word.trim_start_matches("--").strip_prefix(&prefix).map(PathBuf::from);
    text.split('"').filter_map(word).next_back()
}

/// The `postgresql.conf` of the Debian cluster whose data directory this is.
fn debian_configuration(root: &Path, pgdata: &Path, major: u32) -> Option<PathBuf> {
    let same = |other: &str| {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        real(Path::new(other)) == real(pgdata)
    };
    let clusters = fs::read_dir(root.join(major.to_string())).ok()?.flatten();
    let files = clusters.map(|cluster| cluster.path().join(POSTGRESQL_CONF));
    files
        .filter(|file| {
            let text = ConfigurationText::read(file);
            text.value("data_directory").is_some_and(|there| same(&there))
        })
        .min()
}

/// What a configuration file and those that it includes set, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct ConfigurationText {
    /// Lines without includes, but for those that could not be read.
    pub(super) text: String,
    /// The files that were read, the first one included.
    pub(super) files: Vec<PathBuf>,
    /// Those that were not, and why.
    pub(super) unread: Vec<(PathBuf, String)>,
}

impl ConfigurationText {
    /// Reads a file with all that it includes. One that cannot be read may set anything.
    pub(super) fn read(file: &Path) -> ConfigurationText {
        let mut all = ConfigurationText::default();
        all.append(file, 0, true);
        all
    }

    /// What a name is set to. The last line wins.
    pub(super) fn value(&self, name: &str) -> Option<String> {
        let lines = self.text.lines().filter_map(parse_setting);
        lines.filter(|(set, _)| set == name).map(|(_, value)| value).next_back()
    }

    fn append(&mut self, file: &Path, depth: u32, required: bool) {
        match fs::read(file) {
            Ok(bytes) if depth <= MAX_DEPTH => {
                self.files.push(file.to_owned());
                self.append_text(&String::from_utf8_lossy(&bytes), file, depth);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound && !required => {}
            Err(error) => self.give_up(file, &error.to_string()),
        }
    }

    fn give_up(&mut self, path: &Path, why: &str) {
        self.unread.push((path.to_owned(), why.to_owned()));
        self.text.push_str(UNKNOWN_INCLUDE);
    }

    fn append_text(&mut self, text: &str, file: &Path, depth: u32) {
        for line in text.lines() {
            let include = parse_setting(line).filter(|(name, _)| name.starts_with("include"));
            let Some((name, value)) = include else {
                self.text.push_str(line);
                self.text.push('\n');
                continue;
            };
            let path = file.parent().unwrap_or(Path::new("/")).join(value);
            match name.as_str() {
                "include_dir" => self.append_directory(&path, depth),
                _ => self.append(&path, depth.saturating_add(1), name == "include"),
            }
        }
    }

    /// Files whose names end with `.conf` and do not begin with a dot, in the order of their names.
    fn append_directory(&mut self, directory: &Path, depth: u32) {
        let entries = match fs::read_dir(directory) {
            Ok(entries) => entries,
            Err(error) => return self.give_up(directory, &error.to_string()),
        };
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.ends_with(".conf") && !name.starts_with('.') && path.is_file()
        });
        files.sort();
        files.iter().for_each(|file| self.append(file, depth.saturating_add(1), true));
    }

    /// What the server needs that no backup of its data directory has, in sentences. `file` is the first file.
    pub(super) fn notes(&self, pgdata: &Path) -> Vec<String> {
        let mut notes = Vec::new();
        for file in self.files.iter().filter(|file| !file.starts_with(pgdata)) {
            notes.push(format!("configuration is read from {}, which is outside the data directory", file.display()));
        }
        for (path, why) in &self.unread {
            notes.push(format!("configuration includes {}, which is not here: {why}", path.display()));
        }
        if let Some(there) = self.value("data_directory").filter(|there| Path::new(there) != pgdata) {
            notes.push(format!(
                "data_directory is set to {there}; start this server with -c data_directory={}",
                pgdata.display()
            ));
        }
        for name in FILE_SETTINGS {
            let Some(value) = self.value(name).filter(|value| !value.is_empty()) else { continue };
            let path = pgdata.join(&value);
            if !path.starts_with(pgdata) {
                let missing = if path.exists() { "" } else { ", which is missing here" };
                notes.push(format!("{name} is {}, outside the data directory{missing}", path.display()));
            }
        }
        for name in LIBRARY_SETTINGS {
            if let Some(value) = self.value(name).filter(|value| !value.is_empty()) {
                notes.push(format!("{name} is {value}: the server needs that installed"));
            }
        }
        notes
    }
}

/// What a backup does not have of its server's configuration, in sentences: by the `postgresql.conf` that is in it, if
/// there is one, and its `postgresql.auto.conf`.
pub(super) fn notes_on_backup(conf: Option<&str>, auto_conf: &str) -> Vec<String> {
    let Some(conf) = conf else {
        return vec![format!(
            "the backup has no {POSTGRESQL_CONF}, because its server's configuration is outside the data directory, as \
             on Debian: keep a copy of it. A restore takes the one that names its directory, or --config-file FILE"
        )];
    };
    let settings = conf.lines().chain(auto_conf.lines()).filter_map(parse_setting);
    let settings: Vec<(String, String)> = settings.filter(|(_, value)| !value.is_empty()).collect();
    let last = |name: &str| settings.iter().rev().find(|(set, _)| set == name).map(|(_, value)| value.as_str());
    let includes = settings.iter().filter(|(name, _)| name.starts_with("include"));
    let includes = includes.map(|(name, value)| (name.as_str(), value.as_str()));
    let files = includes.chain(FILE_SETTINGS.iter().filter_map(|name| Some((*name, last(name)?))));
    let files: Vec<String> = files
        .filter(|(_, value)| Path::new(value).is_absolute() || value.starts_with(".."))
        .map(|(name, value)| format!("{name} {value}"))
        .collect();
    let libraries = LIBRARY_SETTINGS.iter().filter_map(|name| Some(format!("{name} {}", last(name)?)));
    let libraries: Vec<String> = libraries.collect();
    let mut notes = Vec::new();
    if !files.is_empty() {
        notes.push(format!("outside the data directory, so not in the backup: {}", files.join(", ")));
    }
    if !libraries.is_empty() {
        notes.push(format!("the server needs these libraries where it is restored: {}", libraries.join(", ")));
    }
    notes
}

/// The files of a data directory whose configuration is nowhere else, with their names: they set nothing, and let only
/// users of this machine in, by the socket and as themselves, and the server's own user as `postgres`.
pub(super) fn minimal_files(owner: &str) -> [(&'static str, String); 3] {
    let written = "# Written by walkeep restore: the backup has no such file, because the original's is outside its \
                   data directory.\n";
    [
        (POSTGRESQL_CONF, written.to_owned()),
        ("pg_hba.conf", format!("{written}local all all peer map=walkeep\n")),
        ("pg_ident.conf", format!("{written}walkeep /^(.*)$ \\1\nwalkeep \"{}\" postgres\n", owner.replace('"', ""))),
    ]
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::{
        ConfigurationPlace, ConfigurationSearch, ConfigurationText, debian_configuration, notes_on_backup, option_in,
    };

    #[test]
    fn includes_are_followed_in_order_and_the_last_line_wins() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("conf.d")).unwrap();
        fs::write(at("conf.d/20.conf"), "max_connections = 20\n").unwrap();
        fs::write(at("conf.d/10.conf"), "max_connections = 10\nwork_mem = 1MB\n").unwrap();
        for ignored in [".hidden.conf", "30.conf.bak"] {
            fs::write(at("conf.d").join(ignored), "max_connections = 99\n").unwrap();
        }
        fs::write(at("more"), "port = 7\ninclude_if_exists 'absent'\n").unwrap();
        fs::write(at("main"), "port = 5\ninclude 'more'\nmax_connections = 1\ninclude_dir = 'conf.d'\n").unwrap();
        let all = ConfigurationText::read(&at("main"));
        let value = |name: &str| all.value(name);
        assert_eq!((value("port").as_deref(), value("max_connections").as_deref()), (Some("7"), Some("20")));
        assert_eq!((all.files.len(), all.unread.len()), (4, 0));
        assert!(!all.text.contains("include"), "{}", all.text);
        fs::write(at("main"), "include 'gone'\n").unwrap();
        let all = ConfigurationText::read(&at("main"));
        assert!(all.text.contains("include") && all.unread.len() == 1, "what is not known may set anything: {all:?}");
        fs::write(at("main"), "include 'main'\n").unwrap();
        assert!(ConfigurationText::read(&at("main")).files.len() < 20, "it ends");
    }

    #[test]
    fn the_file_is_found_by_the_last_start_or_by_what_names_the_directory() {
        let opts = "/usr/bin/postgres \"-D\" \"/data\" \"-c\" \"config_file=/etc/a b.conf\" \"-c\" \"x=1\"\n";
        assert_eq!(option_in(opts, "config_file"), Some(PathBuf::from("/etc/a b.conf")));
        assert_eq!(option_in("postgres \"-D\" \"/data\"\n", "config_file"), None);
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir_all(dir.path().join("etc/15/main")).unwrap();
        fs::create_dir_all(dir.path().join("etc/15/other")).unwrap();
        fs::create_dir(&data).unwrap();
        let conf = |name: &str, there: &Path| {
            let text = format!("data_directory = '{}'\t\t# use data in another directory\n", there.display());
            fs::write(dir.path().join(format!("etc/15/{name}/postgresql.conf")), text).unwrap();
        };
        conf("main", &data);
        conf("other", Path::new("/elsewhere"));
        let found = debian_configuration(&dir.path().join("etc"), &data, 15);
        assert_eq!(found, Some(dir.path().join("etc/15/main/postgresql.conf")));
        assert_eq!(debian_configuration(&dir.path().join("etc"), &data, 16), None);

        let find = |named: Option<&Path>, in_backup| {
            let search = ConfigurationSearch { named: named.map(Path::to_owned), debian_root: "/absent".into() };
            ConfigurationPlace::find(&data, &search, 15, in_backup)
        };
        assert_eq!(find(None, true).unwrap(), ConfigurationPlace::DataDirectory);
        assert_eq!(find(None, false).unwrap(), ConfigurationPlace::Absent);
        let named = dir.path().join("etc/15/other/postgresql.conf");
        assert_eq!(find(Some(&named), true).unwrap().elsewhere(), Some(named.as_path()));
        assert!(find(Some(Path::new("/absent.conf")), true).is_err());
        fs::write(data.join("postmaster.opts"), format!("postgres \"--config_file={}\"\n", named.display())).unwrap();
        assert_eq!(find(None, true).unwrap().elsewhere(), Some(named.as_path()));
    }

    #[test]
    fn what_a_backup_does_not_have_is_named() {
        assert!(notes_on_backup(None, "")[0].contains("--config-file"));
        let conf = "include_dir 'conf.d'\ninclude '/etc/more.conf'\nssl_key_file = '/etc/ssl/key'\nhba_file = 'x'\n\
                    shared_preload_libraries = ''\n";
        let notes = notes_on_backup(Some(conf), "ssl_key_file = '/etc/new'\narchive_library = 'basic_archive'\n");
        assert_eq!(notes.len(), 2, "{notes:?}");
        assert!(notes[0].ends_with(": include /etc/more.conf, ssl_key_file /etc/new"), "{notes:?}");
        assert!(notes[1].ends_with(": archive_library basic_archive"), "{notes:?}");
        assert!(notes_on_backup(Some("port = 5432\n"), "").is_empty());
    }

    #[test]
    fn what_is_outside_the_data_directory_is_named() {
        let text = "hba_file = '/etc/x/pg_hba.conf'\nssl_cert_file = 'server.crt'\nident_file = '/data/i'\n\
                    shared_preload_libraries = 'timescaledb'\ndata_directory = '/old'\n";
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        fs::write(data.join("postgresql.conf"), text.replace("/data", &data.display().to_string())).unwrap();
        let notes = ConfigurationText::read(&data.join("postgresql.conf")).notes(&data);
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert!(notes[0].contains("/old") && notes[1].contains("/etc/x/pg_hba.conf, outside"), "{notes:?}");
        assert!(notes[1].contains("missing here") && notes[2].contains("timescaledb"), "{notes:?}");
        let outside = dir.path().join("postgresql.conf");
        fs::write(&outside, "").unwrap();
        assert!(ConfigurationText::read(&outside).notes(&data)[0].contains(outside.to_str().unwrap()));
    }
}
