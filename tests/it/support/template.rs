//! Fresh data directories in a moment: `initdb` runs once per major and set of options, what it made is kept in the
//! cache, and each cluster is a copy with a system identifier of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::installed;
use super::process::{self, Orphan};
use super::scratch;

/// Makes `data` a new cluster.
pub(crate) fn create(major: u32, segment_size_mb: u32, checksums: bool, data: &Path) {
    let template = template(major, segment_size_mb, checksums);
    let mut copy = process::command("cp", Orphan::Kill);
    copy.args(["-a", "--reflink=auto"]).arg(&template).arg(data);
    process::run(copy).expect_ok();
    set_system_identifier(data, rand::random::<u64>() >> 1);
}

fn template(major: u32, segment_size_mb: u32, checksums: bool) -> PathBuf {
    static KNOWN: Mutex<BTreeMap<(u32, u32, bool), PathBuf>> = Mutex::new(BTreeMap::new());
    // Held while `initdb` runs, so that it runs once.
    let mut known = KNOWN.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    known.entry((major, segment_size_mb, checksums)).or_insert_with(|| made(major, segment_size_mb, checksums)).clone()
}

/// Makes the template unless an earlier test run has.
fn made(major: u32, segment_size_mb: u32, checksums: bool) -> PathBuf {
    let bin = installed::bin(major);
    let mut version = process::command(bin.join("postgres"), Orphan::Kill);
    version.arg("--version");
    let version = process::run(version).expect_ok();
    let version = version.split_whitespace().nth(2).expect("a version").to_owned();

    let folder = installed::cache().join("templates");
    fs::create_dir_all(&folder).expect("a folder for templates");
    scratch::give(&folder);
    let path = folder.join(format!("{version}-{segment_size_mb}mb-{}", if checksums { "checksums" } else { "plain" }));
    if path.join("PG_VERSION").exists() {
        return path;
    }
    let fresh = tempfile::Builder::new().prefix("new-").tempdir_in(&folder).expect("a folder");
    scratch::give(fresh.path());
    let data = fresh.path().join("data");
    let mut initdb = process::command(bin.join("initdb"), Orphan::Kill);
    initdb.arg("-D").arg(&data).args(["--no-sync", "--no-locale", "-E", "UTF8", "-U", "postgres", "-A", "trust"]);
    initdb.arg(format!("--wal-segsize={segment_size_mb}"));
    match (checksums, major) {
        (true, _) => drop(initdb.arg("--data-checksums")),
        (false, 18..) => drop(initdb.arg("--no-data-checksums")),
        (false, _) => {}
    }
    process::run(initdb).expect_ok();
    // Another test run may have been first; then its template is as good.
    if fs::rename(&data, &path).is_err() {
        assert!(path.join("PG_VERSION").exists(), "cannot make {}", path.display());
    }
    path
}

/// Writes another system identifier into pg_control and into the first WAL segment, as if `initdb` had run again.
fn set_system_identifier(data: &Path, identifier: u64) {
    // ControlFileData (pg_control.h) starts with system_identifier and ends with the CRC-32C of all before it, at an
    // offset that differs between majors: it is found by being right.
    let control = data.join("global/pg_control");
    let mut bytes = fs::read(&control).expect("pg_control");
    let crc = |bytes: &[u8], at: usize| crc32c::crc32c(&bytes[..at]).to_le_bytes();
    let at = (64..512).step_by(4).find(|&at| bytes[at..at + 4] == crc(&bytes, at)).expect("the CRC of pg_control");
    bytes[..8].copy_from_slice(&identifier.to_le_bytes());
    let sum = crc(&bytes, at);
    bytes[at..at + 4].copy_from_slice(&sum);
    fs::write(&control, bytes).expect("pg_control");

    // xlp_sysid stands at 24 in XLogLongPageHeaderData (xlog_internal.h); page headers have no CRC.
    for entry in fs::read_dir(data.join("pg_wal")).expect("pg_wal") {
        let path = entry.expect("pg_wal").path();
        if path.is_file() {
            let mut bytes = fs::read(&path).expect("a segment");
            bytes[24..32].copy_from_slice(&identifier.to_le_bytes());
            fs::write(&path, bytes).expect("a segment");
        }
    }
}
