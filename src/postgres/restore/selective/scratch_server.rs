//! The scratch directory of a restore of a part, and the server that runs in it for as long as it takes to copy the
//! part out.
//!
//! It is a directory of its own, locked as long as its process lives, removed with everything in it when the
//! [`ScratchServer`] is dropped. The server in it listens on a socket in that directory alone, archives nothing, starts
//! no workers of extensions, and knows nothing of the settings of the server that was backed up: those are about
//! another machine's memory, disks and neighbours.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use rand::TryRng;
use rand::rngs::SysRng;

use crate::base::blocking::run_blocking;
use crate::base::disk::{self, FileOwner};
use crate::base::lock::FileLock;
use crate::postgres::archive::Archive;
use crate::postgres::archive::manifest::{EntryContent, Manifest, ManifestEntry};
use crate::postgres::format::datadir::RelationFile;
use crate::postgres::format::pg_control::RequiredSettings;
use crate::postgres::session_settings::{self, SessionRights};
use crate::postgres::wire::{Conninfo, LibpqEnvironment};

use super::super::backup_reading::{PROGRESS_INTERVAL, tablespace_map};
use super::super::destination::{CheckedDestination, Destination};
use super::super::placement::Placement;
use super::super::plan::ProvedRestore;
use super::super::recovery_settings::{self, AUTO_CONF, RECOVERY_SIGNAL, RecoverySettings};
use super::super::server_start::{START_LOG, ServerStartError};
use super::super::target::RecoveryTargetAction;
use super::error::{SelectiveRestoreError, io_error};
use super::request::SelectiveRestoreStep;
use super::scratch_directory::LeftoverScratch;

/// What scratch directories' names begin with.
const SCRATCH_PREFIX: &str = "walkeep-scratch-";
const LOCK_FILE: &str = "lock";
/// A socket's path may have 107 bytes (`sun_path`); its file's name takes 18 of them.
const MAX_SOCKET_DIR_BYTES: usize = 88;
/// The number in the socket's name: nobody else is in that directory.
const SCRATCH_PORT: u16 = 5432;

/// A directory that goes away with everything in it.
#[derive(Debug)]
pub(super) struct ScratchServer {
    dir: PathBuf,
    sockets: PathBuf,
    owner: Option<FileOwner>,
    major: u32,
    bin: Option<PathBuf>,
    _lock: FileLock,
}

impl ScratchServer {
    /// A new directory in `parent`, which is made if it is not there, for a server of this major version.
    pub(super) fn new(parent: &Path, major: u32) -> Result<ScratchServer, SelectiveRestoreError> {
        let mut random = [0; 4];
        SysRng.try_fill_bytes(&mut random).map_err(|_none| SelectiveRestoreError::NoRandomness)?;
        let name = format!("{SCRATCH_PREFIX}{:08x}", u32::from_le_bytes(random));
        if !parent.exists() {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(io_error("create", parent))?;
        }
        let parent = parent.canonicalize().map_err(io_error("find", parent))?;
        let owner = scratch_owner(&parent)?;
        let dir = parent.join(&name);
        create_dir(&dir, owner)?;
        let path = dir.join(LOCK_FILE);
        let lock = File::create(&path).map_err(io_error("create", &path))?;
        let lock = FileLock::acquire(lock).map_err(|error| io_error("lock", &path)(error.into()))?;
        let mut sockets = dir.join("s");
        if sockets.as_os_str().len() > MAX_SOCKET_DIR_BYTES {
            sockets = Path::new("/tmp").join(&name);
        }
        let scratch = ScratchServer { dir, sockets, owner, major, bin: None, _lock: lock };
        create_dir(&scratch.sockets, owner)?;
        create_dir(&scratch.wal_dir(), owner)?;
        Ok(scratch)
    }

    /// Directories in `parent` that processes left which were killed.
    pub(super) fn find_leftovers(parent: &Path) -> Vec<LeftoverScratch> {
        let entries = fs::read_dir(parent).into_iter().flatten().flatten();
        let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(SCRATCH_PREFIX));
        let ours = ours.filter(|entry| entry.path().is_dir());
        let mut found: Vec<LeftoverScratch> = ours
            .filter_map(|entry| {
                let dir = entry.path();
                let _nobody_has_it = FileLock::acquire(File::open(dir.join(LOCK_FILE)).ok()?).ok()?;
                let pid = fs::read_to_string(dir.join("data/postmaster.pid")).unwrap_or_default();
                let pid = pid.lines().next().and_then(|pid| pid.trim().parse::<u32>().ok());
                let server = pid.filter(|pid| Path::new("/proc").join(pid.to_string()).exists());
                Some(LeftoverScratch { dir, server })
            })
            .collect();
        found.sort_by(|one, other| one.dir.cmp(&other.dir));
        found
    }

    pub(super) fn path(&self) -> &Path {
        &self.dir
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Where segments wait for the server.
    pub(super) fn wal_dir(&self) -> PathBuf {
        self.dir.join("wal")
    }

    /// Where the server notes what it asks for.
    pub(super) fn request_log(&self) -> PathBuf {
        self.dir.join("asked")
    }

    /// Bytes free.
    pub(super) fn free_bytes(&self) -> Result<u64, SelectiveRestoreError> {
        disk::free_bytes(&self.dir).map_err(io_error("ask for free space on", &self.dir))
    }

    /// A directory that the server's user may write to.
    fn create_directory(&self, name: &str) -> Result<PathBuf, SelectiveRestoreError> {
        let path = self.dir.join(name);
        create_dir(&path, self.owner)?;
        Ok(path)
    }

    /// Takes away what an attempt left, so that another can be made.
    pub(super) fn clear(&mut self) -> Result<(), SelectiveRestoreError> {
        self.stop();
        for path in [self.data_dir(), self.dir.join("spaces")] {
            match fs::remove_dir_all(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io_error("remove", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// How the server that runs here is reached, by a superuser: with options that leave what is set for its databases
    /// and roles without effect.
    pub(super) fn conninfo(&self, user: &str, database: &str) -> Result<Conninfo, SelectiveRestoreError> {
        let word = |text: &str| text.replace('\\', "\\\\").replace('\'', "\\'");
        let sockets = self.sockets.to_string_lossy();
        let text = format!(
            "host='{}' port={SCRATCH_PORT} user='{}' dbname='{}' application_name=walkeep sslmode=disable",
            word(&sockets),
            word(user),
            word(database)
        );
        let info = Conninfo::parse(&text, &LibpqEnvironment::default())
            .map_err(|error| SelectiveRestoreError::Conninfo(error.to_string()))?;
        let rights = SessionRights { major: self.major, superuser: true };
        Ok(Conninfo { options: Some(session_settings::options_for(None, rights)), ..info })
    }

    /// Keeps the server's log beside the directory, which is removed, if an error refers to it.
    pub(super) fn keep_log(&self, mut error: ServerStartError) -> ServerStartError {
        let kept = self.dir.with_extension("log");
        if let Some(log) = error.log_mut()
            && fs::copy(&log.place, &kept).is_ok()
        {
            log.place = kept.display().to_string();
        }
        error
    }

    /// Notes which programs run the server, so that they can also end it.
    pub(super) fn set_program_dir(&mut self, bin: PathBuf) {
        self.bin = Some(bin);
    }

    /// A program that runs as whoever runs the server.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).current_dir("/");
        if let Some(FileOwner { uid, gid }) = self.owner {
            command.uid(uid).gid(gid);
        }
        command
    }

    /// Ends the server if one runs: nothing of it is wanted any more.
    pub(super) fn stop(&self) {
        let Some(bin) = self.bin.as_ref().filter(|_| self.data_dir().join("postmaster.pid").exists()) else { return };
        let mut command = self.command(&bin.join("pg_ctl"));
        command.arg("-D").arg(self.data_dir()).args(["-m", "immediate", "-w", "-s", "stop"]);
        if let Err(error) = command.status() {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot stop the scratch server");
        }
    }
}

impl Drop for ScratchServer {
    fn drop(&mut self) {
        self.stop();
        // A thread that was at work when this was called off may still create a file.
        for path in [&self.dir, &self.sockets] {
            let removed = (0..20).find_map(|_| match fs::remove_dir_all(path) {
                Ok(()) => Some(()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Some(()),
                Err(_) => {
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    None
                }
            });
            if removed.is_none() {
                tracing::warn!(path = %path.display(), "cannot remove the scratch directory; remove it by hand");
            }
        }
    }
}

fn create_dir(path: &Path, owner: Option<FileOwner>) -> Result<(), SelectiveRestoreError> {
    if !path.is_dir() {
        fs::DirBuilder::new().mode(0o700).create(path).map_err(io_error("create", path))?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(io_error("set the mode of", path))?;
    match owner {
        Some(owner) => owner.give(path).map_err(io_error("give its owner to", path)),
        None => Ok(()),
    }
}

/// PostgreSQL refuses to be root. Root's scratch servers belong to whoever owns the directory they are made in, or else
/// to `postgres`.
fn scratch_owner(parent: &Path) -> Result<Option<FileOwner>, SelectiveRestoreError> {
    if !disk::runs_as_root() {
        return Ok(None);
    }
    let owner = FileOwner::of(parent).map_err(io_error("read", parent))?;
    if !owner.is_root() {
        return Ok(Some(owner));
    }
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let found = users.lines().find_map(|line| {
        let mut fields = line.split(':');
        let is_server = fields.next()? == "postgres";
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        is_server.then_some(FileOwner { uid, gid })
    });
    found.map(Some).ok_or_else(|| SelectiveRestoreError::Root { parent: parent.to_owned() })
}

/// The database that a path of a backup belongs to; `None` for what all share.
pub(super) fn database_of_path(path: &Path) -> Option<u32> {
    let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).collect();
    match parts.as_slice() {
        ["base", database, _, ..] | ["pg_tblspc", _, _, database, _, ..] => database.parse().ok(),
        _ => None,
    }
}

/// What goes into the scratch directory.
pub(super) struct ScratchContents<'a> {
    pub(super) archive: &'a Arc<Archive>,
    pub(super) proved: &'a ProvedRestore,
    pub(super) manifest: &'a Manifest,
    /// Asked where the scratch directory has no such segment.
    pub(super) restore_command: &'a str,
    /// Whether the log has records that only a library of the original can replay. Any other library would only run its
    /// hooks here.
    pub(super) preload_libraries: bool,
    pub(super) progress: &'a (dyn Fn(SelectiveRestoreStep) + Sync),
}

impl ScratchContents<'_> {
    /// Places the files that `wanted` says, and of the other databases' only the lengths: sparse files without a byte
    /// in them, which records are replayed over as over new pages.
    pub(super) async fn place_files(
        &self,
        scratch: &ScratchServer,
        wanted: impl Fn(u32) -> bool,
    ) -> Result<(), SelectiveRestoreError> {
        let left_out = |entry: &ManifestEntry| {
            matches!(entry.content, EntryContent::File { .. })
                && database_of_path(&entry.path).is_some_and(|oid| !wanted(oid))
        };
        let (holes, entries): (Vec<ManifestEntry>, Vec<ManifestEntry>) =
            self.manifest.entries.iter().cloned().partition(left_out);
        let reduced = Arc::new(Manifest { entries, ..self.manifest.clone() });
        let total = bytes_of(&reduced.entries);
        let destination = Destination { pgdata: scratch.data_dir(), mapping: self.tablespace_mapping(scratch)? };
        let read = Arc::clone(&reduced);
        let placement = run_blocking(move || {
            let ground = CheckedDestination::check(&destination, &read.summary.tablespaces, &read.entries)?;
            let placement = Arc::new(Placement::new(read, ground.clone())?);
            placement.create_layout()?;
            holes.iter().try_for_each(|entry| create_sparse_file(&ground, entry))?;
            Ok::<_, SelectiveRestoreError>(placement)
        })
        .await??;
        let filled = Arc::clone(&placement);
        let mut filling = std::pin::pin!(filled.write_packs(self.archive));
        loop {
            (self.progress)(SelectiveRestoreStep::Placing(placement.placed(), total));
            let pause = self.archive.vault().clock().sleep(PROGRESS_INTERVAL);
            match futures_util::future::select(&mut filling, pause).await {
                futures_util::future::Either::Left((filled, _)) => break filled?,
                futures_util::future::Either::Right(_) => {}
            }
        }
        let settings = self.server_settings(scratch, &placement)?;
        let (label, sockets_only) = (self.manifest.backup_label.clone(), "local all all trust\n");
        let map = tablespace_map(&placement, self.manifest)?;
        run_blocking(move || {
            placement.write_extra_file("backup_label", &label)?;
            if let Some(map) = map {
                placement.write_extra_file(crate::postgres::format::backup_label::TablespaceMap::FILE, &map)?;
            }
            placement.write_extra_file(AUTO_CONF, settings.as_bytes())?;
            placement.write_extra_file("postgresql.conf", b"")?;
            placement.write_extra_file("pg_hba.conf", sockets_only.as_bytes())?;
            placement.write_extra_file("pg_ident.conf", b"")?;
            placement.write_extra_file(RECOVERY_SIGNAL, b"")?;
            placement.finish()?;
            Ok::<_, SelectiveRestoreError>(())
        })
        .await?
    }

    /// Every tablespace goes into the scratch directory: its own place may be in use by the running server.
    fn tablespace_mapping(&self, scratch: &ScratchServer) -> Result<Vec<(PathBuf, PathBuf)>, SelectiveRestoreError> {
        let spaces = scratch.create_directory("spaces")?;
        let outside = self.manifest.summary.tablespaces.iter().filter(|space| Path::new(&space.location).is_absolute());
        Ok(outside.map(|space| (PathBuf::from(&space.location), spaces.join(space.oid.to_string()))).collect())
    }

    fn server_settings(&self, scratch: &ScratchServer, placement: &Placement) -> Result<String, SelectiveRestoreError> {
        let kept = scratch.wal_dir();
        let word = |path: &Path| format!("'{}'", path.to_string_lossy().replace('\'', "'\\''").replace('%', "%%"));
        let (asked, kept) = (word(&scratch.request_log()), word(&kept));
        let required = self.proved.required_settings;
        let recovery = RecoverySettings {
            stop: self.proved.stop,
            timeline: self.proved.timeline,
            action: RecoveryTargetAction::Promote,
            restore_command: format!(
                "echo %f >> {asked}; if test -f {kept}/%f; then cp {kept}/%f \"%p\"; else {}; fi",
                self.restore_command
            ),
            // Without hot standby, prepared transactions are all that must find room.
            required: RequiredSettings {
                max_prepared_transactions: required.max_prepared_transactions,
                ..no_required_settings()
            },
            keep_archiving: false,
            no_read_ahead: true,
        };
        let major = self.manifest.summary.major_version;
        let mut text = recovery_settings::auto_conf(&recovery, "", "", major);
        let sockets = scratch.sockets.to_string_lossy().replace('\\', "\\\\").replace('\'', "''");
        let locks = u64::from(required.max_locks_per_transaction.max(64))
            .saturating_mul(u64::from(required.max_connections.max(100)))
            / 32;
        let libraries = if self.preload_libraries {
            preloaded_libraries(&placement.read_placed("postgresql.conf")?, &placement.read_placed(AUTO_CONF)?)
        } else {
            Vec::new()
        };
        let newer = NEWER_SCRATCH_SETTINGS.into_iter().filter(|(since, _, _)| *since <= major);
        for (name, value) in SCRATCH_SETTINGS.into_iter().chain(newer.map(|(_, name, value)| (name, value))) {
            // Writing to a string cannot fail.
            let _written = writeln!(text, "{name} = {value}");
        }
        let _written = writeln!(text, "port = {SCRATCH_PORT}\nunix_socket_directories = '{sockets}'");
        let _written = writeln!(text, "max_locks_per_transaction = {}", locks.clamp(1024, 20_000));
        let libraries = self.loadable_libraries(scratch, libraries);
        if !libraries.is_empty() {
            let _written = writeln!(text, "shared_preload_libraries = '{}'", libraries.join(","));
        }
        Ok(text)
    }

    /// Those of the libraries that the server's own programs have. The others are told and left out: extensions that
    /// write records of their own kind stop the replay without theirs, all others only miss functions.
    fn loadable_libraries(&self, scratch: &ScratchServer, libraries: Vec<String>) -> Vec<String> {
        let Some(bin) = &scratch.bin else { return Vec::new() };
        let asked = Command::new(bin.join("pg_config")).arg("--pkglibdir").stdin(Stdio::null()).output();
        let folder = asked.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        let beside = bin.parent().map(|top| top.join("lib"));
        let folders: Vec<PathBuf> = folder
            .filter(|folder| !folder.is_empty())
            .map(PathBuf::from)
            .into_iter()
            .chain(beside.iter().cloned())
            .chain(beside.iter().map(|lib| lib.join("postgresql")))
            .collect();
        let is_there = |name: &String| {
            let name = name.trim_start_matches("$libdir/");
            folders.iter().any(|folder| folder.join(format!("{name}.so")).exists())
        };
        let (loadable, missing): (Vec<String>, Vec<String>) = libraries.into_iter().partition(is_there);
        if !missing.is_empty() {
            let note = format!(
                "the server that was backed up preloads {}, which is not installed here; it is left out",
                missing.join(", ")
            );
            (self.progress)(SelectiveRestoreStep::Note(note));
        }
        loadable
    }
}

/// What a scratch server is set to, whatever the server that was backed up was. Nothing of it must last, and nothing of
/// it may reach out.
const SCRATCH_SETTINGS: [(&str, &str); 27] = [
    ("listen_addresses", "''"),
    ("unix_socket_permissions", "0700"),
    ("max_connections", "32"),
    ("max_wal_senders", "0"),
    // Replay needs one for each replication origin that the log mentions (`replorigin_advance`). Before 18, this
    // setting is their number, too.
    ("max_replication_slots", "10000"),
    // No extension's workers: a scheduler among them would run the jobs of the copy.
    ("max_worker_processes", "0"),
    ("max_parallel_workers_per_gather", "0"),
    // Or a subscription of the copy would take its publisher's changes.
    ("max_logical_replication_workers", "0"),
    ("autovacuum", "off"),
    // Near these ages a server vacuums although it is off, and so runs the functions of indexes.
    ("autovacuum_freeze_max_age", "2000000000"),
    ("autovacuum_multixact_freeze_max_age", "2000000000"),
    ("hot_standby", "off"),
    // Records about pages of databases that are left out. What they say of pages that are not is looked for in the log.
    ("ignore_invalid_pages", "on"),
    ("log_min_messages", "warning"),
    ("logging_collector", "off"),
    ("log_destination", "'stderr'"),
    ("lc_messages", "'C'"),
    ("timezone", "'UTC'"),
    ("fsync", "off"),
    ("full_page_writes", "off"),
    ("synchronous_commit", "off"),
    ("shared_buffers", "'128MB'"),
    ("maintenance_work_mem", "'256MB'"),
    ("max_wal_size", "'4GB'"),
    ("checkpoint_timeout", "'30min'"),
    ("huge_pages", "off"),
    ("wal_level", "replica"),
];

/// What only newer servers know: the first major version that does.
const NEWER_SCRATCH_SETTINGS: [(u32, &str, &str); 2] =
    [(17, "event_triggers", "off"), (18, "max_active_replication_origins", "10000")];

const fn no_required_settings() -> RequiredSettings {
    RequiredSettings {
        max_connections: 0,
        max_worker_processes: 0,
        max_wal_senders: 0,
        max_prepared_transactions: 0,
        max_locks_per_transaction: 0,
    }
}

/// `shared_preload_libraries` of a server, the last line that sets it.
fn preloaded_libraries(conf: &str, auto_conf: &str) -> Vec<String> {
    let value = [auto_conf, conf]
        .into_iter()
        .find_map(|text| recovery_settings::setting_value(text, "shared_preload_libraries"));
    let value = value.unwrap_or_default();
    let names = value.split(',').map(|name| name.trim().trim_matches('"').to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

fn create_sparse_file(ground: &CheckedDestination, entry: &ManifestEntry) -> Result<(), SelectiveRestoreError> {
    let EntryContent::File { len, .. } = entry.content else { return Ok(()) };
    if RelationFile::parse(&entry.path.to_string_lossy()).is_none() {
        return Ok(());
    }
    let path = ground.path_of(&entry.path);
    let file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path)
        .map_err(io_error("create", &path))?;
    file.set_len(len).map_err(io_error("write", &path))?;
    Ok(ground.set_mode_and_owner(&path, 0o600)?)
}

/// Bytes of all files among these.
pub(super) fn bytes_of<'e>(entries: impl IntoIterator<Item = &'e ManifestEntry>) -> u64 {
    let len = |entry: &ManifestEntry| if let EntryContent::File { len, .. } = entry.content { len } else { 0 };
    entries.into_iter().map(len).sum()
}

/// What the scratch server's log complains of pages of databases that are not left out: then the copy is not to be
/// trusted.
pub(super) fn page_error_in_log(log: &str, wanted: impl Fn(u32) -> bool) -> Option<String> {
    let suspicious = log.lines().filter(|line| line.contains("is uninitialized") || line.contains("does not exist"));
    suspicious
        .filter(|line| {
            let Some((_, path)) = line.split_once("of relation ") else { return false };
            let path = path.split_whitespace().next().unwrap_or_default();
            database_of_path(Path::new(path)).map_or_else(|| path.starts_with("global/"), &wanted)
        })
        .map(str::to_owned)
        .next()
}

/// The log of a scratch server.
pub(super) fn read_log(scratch: &ScratchServer) -> String {
    String::from_utf8_lossy(&fs::read(scratch.data_dir().join(START_LOG)).unwrap_or_default()).into_owned()
}

/// Bytes in the files of a directory and those below, as far as they can be seen.
pub(super) fn bytes_in(path: &Path) -> u64 {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| entry.metadata().map_or(0, |metadata| metadata.len())).sum()
}

/// Reads what was appended to a file since `at`.
pub(super) fn read_appended(path: &Path, at: &mut u64) -> String {
    let Ok(file) = File::open(path) else { return String::new() };
    let len = file.metadata().map_or(0, |metadata| metadata.len());
    let mut bytes = vec![0; usize::try_from(len.saturating_sub(*at)).unwrap_or(0)];
    if file.read_exact_at(&mut bytes, *at).is_err() {
        return String::new();
    }
    *at = len;
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{START_LOG, ScratchServer, ServerStartError};
    use crate::postgres::restore::server_start::LogExcerpt;

    #[test]
    fn a_log_that_an_error_names_outlives_its_server() {
        let parent = tempfile::tempdir().unwrap();
        let scratch = ScratchServer::new(parent.path(), 17).unwrap();
        fs::create_dir(scratch.data_dir()).unwrap();
        let log = scratch.data_dir().join(START_LOG);
        fs::write(&log, "FATAL:  no\n").unwrap();
        let excerpt = LogExcerpt { place: log.display().to_string(), ..LogExcerpt::default() };
        let error =
            scratch.keep_log(ServerStartError::ServerEnded { pid: 7, how: "exit status 1".into(), log: excerpt });
        drop(scratch);
        let ServerStartError::ServerEnded { log: kept, .. } = error else { panic!("{error}") };
        assert!(!log.exists(), "the scratch directory is removed");
        assert_eq!(fs::read_to_string(&kept.place).unwrap(), "FATAL:  no\n");
        assert_eq!(ScratchServer::find_leftovers(parent.path()), [], "a log is nothing to clean up");
    }
}
