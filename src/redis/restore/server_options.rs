//! What must be set for a server to start from what was written, and what in a configuration would keep it from that.

use super::placement::{DataFileForm, PlacedFiles};
use super::redis_conf::{DataFileNames, RedisConf};
use crate::redis::format::server_version::RedisVersion;

/// The options with which a server starts from what was written.
#[must_use]
pub fn server_options(placed: &PlacedFiles, names: &DataFileNames) -> Vec<String> {
    let mut options = vec!["--dir".to_owned(), placed.dir.display().to_string()];
    let mut set = |name: &str, value: &str| options.extend([format!("--{name}"), value.to_owned()]);
    let usual = DataFileNames::default();
    set("appendonly", if placed.form.is_append_only() { "yes" } else { "no" });
    match placed.form {
        DataFileForm::Dump if names.dump != usual.dump => set("dbfilename", &names.dump),
        DataFileForm::Preamble | DataFileForm::Parts if names.append_file != usual.append_file => {
            set("appendfilename", &names.append_file)
        }
        DataFileForm::Dump | DataFileForm::Preamble | DataFileForm::Parts => {}
    }
    if placed.form == DataFileForm::Parts && names.append_dir != usual.append_dir {
        set("appenddirname", &names.append_dir);
    }
    if placed.databases > 16 {
        set("databases", &placed.databases.to_string());
    }
    options
}

/// What is to be known before a server is started: of its configuration, if one was found, of its version, and of the
/// snapshot.
#[must_use]
pub fn configuration_warnings(
    placed: &PlacedFiles,
    conf: Option<(&str, &RedisConf)>,
    version: RedisVersion,
) -> Vec<String> {
    let mut warnings = Vec::new();
    let walk = &placed.walk;
    if !version.can_load(walk.magic, walk.version) {
        let whose = if walk.magic == crate::redis::format::rdb::RdbMagic::Valkey { "Valkey's" } else { "Redis's" };
        warnings.push(format!(
            "{version} does not load this snapshot, which is {whose} RDB version {}: start the server that wrote it, \
                {}",
            walk.version,
            walk.server_version().unwrap_or("or a newer one")
        ));
    }
    if let Some((name, conf)) = conf {
        warn_about_conf(placed, name, conf, &mut warnings);
    }
    if placed.owned_by_root {
        let dir = placed.dir.display();
        warnings.push(format!("the files belong to root: give them to the server's user, as in chown -R redis: {dir}"));
    }
    warnings.extend(walk.warnings().into_iter().map(|warning| format!("the snapshot {warning}")));
    let expired: u64 = walk.databases.values().map(|database| database.expired).sum();
    if expired > 0 {
        warnings.push(match placed.form {
            DataFileForm::Dump => {
                format!("{expired} keys of the snapshot have expired since; a server drops them while it loads")
            }
            DataFileForm::Preamble | DataFileForm::Parts => {
                format!(
                    "{expired} keys of the snapshot have expired since; a server drops them soon after it has loaded"
                )
            }
        });
    }
    let empty: u64 = walk.databases.values().map(|database| database.empty).sum();
    if empty > 0 {
        warnings.push(format!("{empty} empty collections are in the snapshot; a server skips them"));
    }
    warnings
}

fn warn_about_conf(placed: &PlacedFiles, name: &str, conf: &RedisConf, warnings: &mut Vec<String>) {
    match (placed.form.is_append_only(), conf.append_only) {
        (false, true) => warnings.push(format!(
            "{name} has appendonly yes: a server started with it ignores {} and comes up EMPTY; start with appendonly no, then CONFIG SET \
             appendonly yes",
            conf.names.dump
        )),
        (true, false) => warnings.push(format!(
            "{name} has appendonly no: a server started with it ignores what was restored and comes up EMPTY; set \
                appendonly yes"
        )),
        _ => {}
    }
    if let Some(dir) = conf.dir.as_ref().filter(|dir| **dir != placed.dir) {
        warnings.push(format!(
            "{name} has dir {}: move the files there, or set dir {}",
            dir.display(),
            placed.dir.display()
        ));
    }
    if conf.databases.unwrap_or(16) < placed.databases {
        warnings.push(format!(
            "{name} allows {} databases: set databases {}",
            conf.databases.unwrap_or(16),
            placed.databases
        ));
    }
    if let [include, ..] = conf.includes.as_slice() {
        warnings.push(format!("{name} includes {include}, which was not looked at and may say otherwise"));
    }
}
