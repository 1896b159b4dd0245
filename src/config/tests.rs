//! Each wrong configuration with the exact message it gets.

use std::path::{Path, PathBuf};

use super::{Config, KeySource, NamedStore, NewConfig, ProcessEnvironment, render_config};
use crate::postgres::receive::AcknowledgePolicy;
use crate::vault::seal::compress::CompressionLevel;

const PATH: &str = "/etc/walkeep/walkeep.toml";
const REPOSITORY: &str = "[repository.local]\nurl = \"file:///srv/archive\"\n";
const PLAIN: &str = "[encryption]\nenabled = false\n";

fn parse(text: &str) -> Result<Config, String> {
    Config::parse(Path::new(PATH), text).map_err(|error| error.to_string())
}

/// Parses a file that has a repository, no encryption, and then `rest`, which begins on line 5.
fn with(rest: &str) -> Result<Config, String> {
    parse(&format!("{REPOSITORY}{PLAIN}{rest}"))
}

#[test]
fn reads_the_configuration_of_the_manual() {
    let config = parse(
        r#"
state-dir = "/var/lib/walkeep"            # index, spool, control socket

[repository.local]                        # any number; each gets everything
url = "file:///var/lib/walkeep/repository"
retention = "30d"

[repository.offsite]
url = "s3://backups/production"
retention = "90d"
minimum-backups = 3

[encryption]
key-file = "/etc/walkeep/key"             # or key-env, or key-command

[compression]
level = "auto"

[postgres.main]
connection = "host=/var/run/postgresql user=walkeep"
backup = "0 2 * * *"
acknowledge = "spool"

[redis.cache]
url = "redis://127.0.0.1:6379"
backup = "0 */6 * * *"

[server]
listen = "127.0.0.1:9187"
"#,
    )
    .unwrap();
    let names: Vec<&str> = config.repositories.iter().map(|repository| repository.name.as_str()).collect();
    assert_eq!(names, ["local", "offsite"]);
    assert_eq!(config.repositories.iter().map(|one| one.minimum_backups).collect::<Vec<_>>(), [1, 3]);
    assert_eq!(config.state_dir, PathBuf::from("/var/lib/walkeep"));
    assert_eq!(config.key, Some(KeySource::File(PathBuf::from("/etc/walkeep/key"))));
    let cluster = config.cluster(None).unwrap();
    assert_eq!((cluster.name.as_str(), cluster.acknowledge), ("main", AcknowledgePolicy::Spool));
    assert_eq!(cluster.slot.as_str(), "walkeep");
    let idle = ["[server]", "backup of [postgres.main]"];
    assert!(idle.iter().all(|name| config.idle.iter().any(|idle| idle == name)), "{:?}", config.idle);
}

/// What stands from line 5 on, and what is said of it.
const WRONG: [(&str, &str); 40] = [
    ("[postgre.main]\n", "5: the top of the file has no key \"postgre\"; did you mean \"postgres\"?"),
    (
        "[postgres.main]\nconection = \"host=a\"\n",
        "6: [postgres.main] has no key \"conection\"; did you mean \"connection\"?",
    ),
    (
        "[postgres.main]\nzzz = 1\n",
        "6: [postgres.main] has no key \"zzz\"; it has connection, slot, application-name, backup, acknowledge, \
            copy-every",
    ),
    ("[postgres.main]\nconnection = 5\n", "6: connection must be text in quotes, not an integer"),
    (
        "[postgres.main]\nconnection = \"hots=a password=hush\"\n",
        "6: connection string: there is no parameter \"hots\"; did you mean \"host\"?",
    ),
    ("[postgres.main]\nconnection = \"\"\n", "6: connection is empty; give it a value or leave the line out"),
    (
        "[postgres.main]\nconnection = \"host=a\"\nacknowledge = \"disk\"\n",
        "7: acknowledge = \"disk\" of [postgres.main]: it is \"spool\" or \"repository\"",
    ),
    (
        "[postgres.main]\ncopy-every = \"5s\"\n",
        "6: copy-every of [postgres.main] needs a connection; add one, or leave copy-every out",
    ),
    (
        "[postgres.main]\nacknowledge = { repositories = [\"locla\"], at-least = 1 }\n",
        "6: repositories of acknowledge of [postgres.main]: there is no \"locla\"; there are local",
    ),
    (
        "[postgres.main]\nacknowledge = { repositories = [\"local\"], at-least = 2 }\n",
        "6: at-least of acknowledge of [postgres.main] is a number from 1 to 1",
    ),
    (
        "[postgres.main]\nconnection = \"host=a\"\nslot = \"Walkeep\"\n",
        "7: slot = \"Walkeep\" of [postgres.main]: \"Walkeep\" is no name for a replication slot; lower-case letters, \
            digits and underscores are allowed, at most 63",
    ),
    (
        "[postgres.main]\nconnection = \"host=a\"\nbackup = \"daily\"\n",
        "7: backup = \"daily\" of [postgres.main]: a schedule has five fields: minute, hour, day, month, weekday, \
            like \"0 2 * * *\"",
    ),
    (
        "[postgres.\"a/b\"]\n",
        "5: \"a/b\" is no name; use a letter or digit, then up to 62 letters, digits, - and _, and not the word keys",
    ),
    (
        "[postgres.keys]\n",
        "5: \"keys\" is no name; use a letter or digit, then up to 62 letters, digits, - and _, and not the word keys",
    ),
    (
        "[postgres]\nconnection = \"host=a\"\n",
        "6: [postgres] has no key \"connection\"; write a section [postgres.main]",
    ),
    ("postgres = 1\n", "5: [encryption] has no key \"postgres\"; it has key-file, key-env, key-command, enabled"),
    (
        "[repository.two]\nretention = \"3d\"\n",
        "5: [repository.two] has no url; add url = \"file:///var/lib/walkeep/repository\"",
    ),
    (
        "[repository.two]\nurl = \"file://srv\"\n",
        "6: url = \"file://srv\" of [repository.two]: a folder's URL has three slashes: file:///folder",
    ),
    (
        "[repository.two]\nurl = \"s3://b\"\nretention = \"30 dys\"\n",
        "7: retention = \"30 dys\" of [repository.two]: write it like \"30d\", \"12h\" or \"4w\"",
    ),
    ("[repository.two]\nurl = \"s3://b\"\nallow-http = \"yes\"\n", "7: allow-http must be true or false, not a string"),
    (
        "[repository.two]\nurl = \"gs://b\"\nregion = \"x\"\n",
        "7: [repository.two] has no key \"region\"; it has url, retention, minimum-backups, service-account",
    ),
    ("[compression]\nlevel = \"fast\"\n", "6: level is \"auto\" or a number without quotes, like 3"),
    (
        "[compression]\nlevel = 23\n",
        "6: level = 23 is no zstd level; write \"auto\", 1 to 19, or -1 to -7 for the fast ones",
    ),
    ("[redis.main]\n[postgres.main]\n", "5: [redis.main] and [postgres.main] would share a folder; rename one of them"),
    (
        "[redis.a]\nurl = \"redis://u@h\"\n",
        "6: url: it names a user and no password; write redis://host:6379, rediss://host:6379 for TLS, or \
            unix:///run/redis/redis.sock",
    ),
    ("[redis.a]\nsentinels = [\"h:1\"]\n", "6: the Sentinels need the master's name; add master = \"mymaster\""),
    (
        "[redis.a]\nsentinels = \"h:1\"\nmaster = \"m\"\n",
        "6: sentinels is a list like [\"10.0.0.1:26379\", \"10.0.0.2:26379\"]",
    ),
    (
        "[redis.a]\nurl = \"redis://h\"\nmaster = \"m\"\n",
        "6: url and Sentinels are two ways to find it; keep url, or sentinels with master",
    ),
    (
        "[redis.a]\nbackup = \"0 2 * * *\"\n",
        "5: [redis.a] says not where it is; add url = \"redis://127.0.0.1:6379\", or sentinels and master",
    ),
    (
        "[redis.a]\nurl = \"redis://:x@h\"\npassword-env = \"X\"\n",
        "6: the url and a key of its own both give a password; keep one",
    ),
    ("[redis]\nurl = \"redis://h\"\n", "6: [redis] has no key \"url\"; write a section [redis.cache]"),
    (
        "[redis.a]\nurl = \"redis://h\"\npassword = \"x\"\n",
        "7: [redis.a] has no key \"password\"; write it into a file and name that with password-file",
    ),
    ("[redis.a]\nurl = \"redis://h\"\ntls = true\n", "7: tls = true needs a rediss:// url"),
    ("[redis.a]\nurl = \"unix:///h\"\ntls = true\n", "7: tls = true needs a rediss:// url"),
    (
        "[redis.a]\nurl = \"rediss://h\"\ntls = false\n",
        "7: tls = false and a rediss:// url contradict each other; keep one",
    ),
    ("[redis.a]\nurl = \"redis://h\"\ntls-ca-file = \"x\"\n", "7: tls-ca-file needs a rediss:// url"),
    (
        "[redis.a]\nsentinels = [\"h:1\"]\nmaster = \"m\"\ntls-ca-file = \"x\"\n",
        "8: tls-ca-file needs tls = true, for the Sentinels and the servers they name",
    ),
    ("[redis.a]\nurl = \"redis://u:x@h\"\nuser = \"v\"\n", "7: the url and user both name a user; keep one"),
    (
        "[server]\nlisten = \"9187\"\n",
        "6: listen = \"9187\" of [server]: write an address and a port, like \"127.0.0.1:9187\"",
    ),
    ("[server\n", "5: not TOML: unclosed table, expected `]`"),
];

#[test]
fn refuses_with_file_line_and_what_would_be_right() {
    for (rest, message) in WRONG {
        let got = with(rest).map(|_| ()).unwrap_err();
        assert_eq!(got, format!("{PATH}:{message}"), "for {rest:?}");
    }
}

#[test]
fn refuses_what_is_missing_or_contradicts_itself() {
    for (text, message) in [
        (PLAIN.to_owned(), ": there is no repository; add a section [repository.local] with a url"),
        (REPOSITORY.to_owned(), ": there is no [encryption]; name a key-file in it, or enabled = false to do without"),
        (
            format!("{REPOSITORY}[encryption]\n"),
            ":3: [encryption] names no key; add key-file, key-env or key-command, or enabled = false to do without",
        ),
        (
            format!("{REPOSITORY}[encryption]\nkey-file = \"k\"\nenabled = false\n"),
            ":5: enabled = false and key-file contradict each other; keep one",
        ),
        (
            format!("{REPOSITORY}[encryption]\nkey-file = \"k\"\nkey-env = \"K\"\n"),
            ":5: key-file and key-env both name a key; keep one of them",
        ),
        (
            format!("{REPOSITORY}{PLAIN}[repository.two]\nurl = \"/srv/archive\"\n"),
            ": [repository.local] and [repository.two] are the same place; keep one of them",
        ),
        (
            format!("state-dir = \"/srv/archive/state\"\n{REPOSITORY}{PLAIN}"),
            ": state-dir lies inside [repository.local]; move one of them, their files would mix",
        ),
    ] {
        assert_eq!(parse(&text).map(|_| ()).unwrap_err(), format!("{PATH}{message}"), "for {text:?}");
    }
}

#[test]
fn a_cluster_may_be_left_unnamed_only_when_there_is_one() {
    let config = with("[postgres.main]\n[postgres.sales]\n").unwrap();
    assert_eq!(config.cluster(Some("sales")).unwrap().name.as_str(), "sales");
    for (name, message) in [
        (None, "several clusters are configured; name one of main, sales"),
        (Some("sale"), "no cluster \"sale\" is configured; did you mean \"sales\"?"),
        (Some("x"), "no cluster \"x\" is configured; there is main, sales"),
    ] {
        let got = config.cluster(name).map(|cluster| cluster.name.to_string()).unwrap_err().to_string();
        assert_eq!(got, format!("{PATH}: {message}"));
    }
    assert!(with("").unwrap().cluster(None).unwrap_err().to_string().ends_with("add a section [postgres.main]"));
}

#[test]
fn a_name_may_be_a_clusters_or_an_instances() {
    let redis = |name: &str| format!("[redis.{name}]\nurl = \"redis://127.0.0.1:6379\"\n");
    let both = with(&format!("[postgres.main]\n{}", redis("cache"))).unwrap();
    let said = |config: &Config, name| match config.find_named(name) {
        Ok(NamedStore::Cluster(cluster)) => format!("cluster {}", cluster.name),
        Ok(NamedStore::Instance(instance)) => format!("instance {}", instance.name),
        Err(error) => error.to_string(),
    };
    let of = |name| said(&both, name);
    assert_eq!([of(None), of(Some("main")), of(Some("cache"))], ["cluster main", "cluster main", "instance cache"]);
    assert_eq!(of(Some("cash")), format!("{PATH}: nothing called \"cash\" is configured; did you mean \"cache\"?"));
    assert_eq!(of(Some("x")), format!("{PATH}: nothing called \"x\" is configured; there is main, cache"));
    assert_eq!(said(&with(&redis("cache")).unwrap(), None), "instance cache");
    assert!(said(&with("").unwrap(), None).ends_with("add a section [postgres.main]"));
    let (clusters, instances) = both.find_all_named(None).unwrap();
    assert_eq!((clusters.len(), instances.len()), (1, 1));
    assert_eq!(both.find_all_named(Some("cache")).unwrap().1.len(), 1);
}

#[test]
fn relative_paths_are_taken_from_the_files_folder() {
    let config = parse(&format!("state-dir = \"state\"\n{REPOSITORY}[encryption]\nkey-file = \"key\"\n")).unwrap();
    assert_eq!(config.state_dir, PathBuf::from("/etc/walkeep/state"));
    assert_eq!(config.key, Some(KeySource::File(PathBuf::from("/etc/walkeep/key"))));
}

#[test]
fn a_store_is_reached_by_keys_of_its_own() {
    let text = format!(
        "{PLAIN}[repository.s3]\nurl = \"s3://b\"\nregion = \"there\"\nsecret-access-key = \"hush\"\nallow-http = \
            true\n"
    );
    let config = parse(&text).unwrap();
    let seen: Vec<(&str, &str)> =
        config.repositories[0].settings.iter().map(|(name, value)| (name.as_str(), value.reveal())).collect();
    assert_eq!(seen, [("allow_http", "true"), ("aws_region", "there"), ("aws_secret_access_key", "hush")]);
    assert!(!format!("{config:?}").contains("hush"));
}

#[test]
fn secrets_never_show() {
    let text = format!(
        "{REPOSITORY}[encryption]\nkey-command = \"vault --token=hush\"\n[postgres.main]\nconnection = \"host=a \
            password=hush\"\n"
    );
    let shown = format!("{:?}", parse(&text).unwrap());
    assert!(!shown.contains("hush"), "{shown}");
}

#[test]
fn what_init_writes_is_read_back_as_meant() {
    let url = super::parse_repository_url("/srv/a \"quoted\" folder").unwrap();
    for (connection, key_file) in
        [(Some("host=/run user='o\\'brien'"), Some(Path::new("/etc/walkeep/key"))), (None, None)]
    {
        let new = NewConfig {
            cluster: "main",
            connection,
            repository: &url,
            state_dir: Path::new("/var/lib/walkeep"),
            key_file,
        };
        let text = render_config(&new);
        let config = parse(&text).unwrap();
        let cluster = config.cluster(None).unwrap();
        assert_eq!(cluster.connection.as_ref().map(|secret| secret.reveal()), connection);
        assert_eq!(config.repositories[0].url, url);
        assert_eq!(config.key, key_file.map(|path| KeySource::File(path.to_owned())));
        assert_eq!(config.compression, CompressionLevel::Auto);
        assert!(config.idle.is_empty());
        assert!(text.lines().all(|line| line.len() <= 120), "{text}");
    }
}

#[test]
fn a_key_comes_from_a_file_that_is_its_owners_or_a_variable_or_a_command() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    std::fs::write(&file, "the key\n").unwrap();
    let environment: ProcessEnvironment = [("KEY", " the key ")].into_iter().collect();
    let fetch = |source: &KeySource| source.fetch(&environment).map_err(|error| error.to_string());
    let from_file = KeySource::File(file.clone());
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(fetch(&from_file).unwrap_err().ends_with("can be read by others (mode 644); run chmod 600 on it"));
    std::fs::set_permissions(&file, PermissionsExt::from_mode(0o600)).unwrap();
    for good in [from_file, KeySource::Env("KEY".to_owned()), KeySource::Command("echo the key".to_owned())] {
        assert_eq!(fetch(&good).unwrap().reveal(), "the key", "{good:?}");
    }
    for (wrong, says) in [
        (KeySource::File(folder.path().join("none")), "cannot read the key file"),
        (KeySource::Env("NONE".to_owned()), "the key's variable NONE is not set"),
        (KeySource::Command("exit 3".to_owned()), "the key-command failed: it ended with exit status: 3"),
        (KeySource::Command("true".to_owned()), "holds no key"),
    ] {
        let why = fetch(&wrong).unwrap_err();
        assert!(why.starts_with(says) || why.contains(says), "{why}");
    }
}

#[test]
fn the_readmes_configuration_is_one() {
    let readme = include_str!("../../README.md");
    let block = readme.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    assert_eq!(block.lines().count(), 5);
    let config = parse(block).unwrap();
    assert_eq!(config.cluster(None).unwrap().name.as_str(), "main");
    assert_eq!(config.repositories[0].url.as_str(), "file:///srv/archive");
    assert_eq!(config.key, Some(KeySource::File(PathBuf::from("/etc/walkeep/key"))));
}
