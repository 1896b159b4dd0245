//! What a `redis.conf` says of the files that a server starts from (`config.c`). Files it includes are not looked at.

use std::path::{Path, PathBuf};

/// The names of the files, as servers come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DataFileNames {
    /// `dbfilename`.
    pub dump: String,
    /// `appendfilename`.
    pub append_file: String,
    /// `appenddirname`.
    pub append_dir: String,
}

impl Default for DataFileNames {
    fn default() -> DataFileNames {
        let names = ("dump.rdb", "appendonly.aof", "appendonlydir");
        DataFileNames { dump: names.0.to_owned(), append_file: names.1.to_owned(), append_dir: names.2.to_owned() }
    }
}

/// What a configuration says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RedisConf {
    /// The names of the files.
    pub names: DataFileNames,
    /// Whether the server starts from the append-only file; otherwise from the dump.
    pub append_only: bool,
    /// The folder it works in.
    pub dir: Option<PathBuf>,
    /// How many databases it has; 16 if it doesn't say.
    pub databases: Option<u64>,
    /// Other files it reads, which may say otherwise.
    pub includes: Vec<String>,
}

impl RedisConf {
    /// Reads the text of a configuration. The last of equal directives counts.
    #[must_use]
    pub fn parse(text: &str) -> RedisConf {
        let mut conf = RedisConf::default();
        for line in text.lines().map(str::trim).filter(|line| !line.starts_with('#')) {
            let Some((name, value)) = line.split_once(char::is_whitespace) else { continue };
            let value = value.trim().trim_matches(['"', '\'']).to_owned();
            // A name leads to a file in its folder, and nowhere else.
            let is_name = Path::new(&value).components().count() == 1 && !value.contains('/');
            match name.to_ascii_lowercase().as_str() {
                "appendonly" => conf.append_only = value.eq_ignore_ascii_case("yes"),
                "dbfilename" if is_name => conf.names.dump = value,
                "appendfilename" if is_name => conf.names.append_file = value,
                "appenddirname" if is_name => conf.names.append_dir = value,
                "dir" => conf.dir = Some(PathBuf::from(value)),
                "databases" => conf.databases = value.parse().ok(),
                "include" => conf.includes.push(value),
                _ => {}
            }
        }
        conf
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_counts_and_what_does_not() {
        let text = "# appendonly no\nappendonly no\nAppendOnly yes\nappendfilename \"cache.aof\"\n  appenddirname 'aofs'\ndir /var/lib/redis\n\
                    dbfilename ../dump.rdb\ndatabases 32\ninclude /etc/redis/local.conf\nsave 900 1";
        let conf = RedisConf::parse(text);
        assert!(conf.append_only);
        let names =
            DataFileNames { dump: "dump.rdb".into(), append_file: "cache.aof".into(), append_dir: "aofs".into() };
        assert_eq!(conf.names, names);
        assert_eq!((conf.dir, conf.databases), (Some("/var/lib/redis".into()), Some(32)));
        assert_eq!(conf.includes, ["/etc/redis/local.conf"]);
        assert_eq!(RedisConf::parse(""), RedisConf::default());
    }
}
