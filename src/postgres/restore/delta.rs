//! A restore into a data directory that is there already (`--delta`): what is right is kept, what is not is replaced,
//! what is too much goes.
//!
//! The order of effects is the safety. Up to 3, the old server still starts. Killed after any later step, the directory
//! cannot be started, and the same command again ends right, because each step looks at what is there and not at what
//! an earlier run meant to do:
//!
//! 1. everything that can be known is proved before a file is touched: that the repositories list each pack and
//!    segment, that no server runs there, that there is room, and that this user may replace what has to be;
//! 2. the marker is written, durably, with the cluster's identity, and locked; another restore finds it locked. What
//!    fails before step 4 removes it;
//! 3. each file is read, and each chunk compared with the backup's by its keyed hash. The first pack is fetched and
//!    opened, which proves the keys;
//! 4. `global/pg_control` gets another name, durably: from here on no server starts. One that was started just before
//!    is found, and the name given back;
//! 5. what the backup has not is removed: in the data directory, and in the tablespaces that its own links lead to,
//!    there only in the directories of this release. No link is followed, but for `pg_wal`, of which only log is
//!    removed. A file with other names (hard links) is removed here and written again, so that the others keep their
//!    content;
//! 6. directories and links are made, files are cut to their lengths, and what differs, and only that, is fetched and
//!    written;
//! 7. as in every restore: each file's hash is checked, what recovery needs is written, the file systems are synced,
//!    `pg_control` gets its name, and the marker goes.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::destination::{CheckedDestination, Destination};
use super::destination_error::{DestinationError, RESTORE_MARKER, io_error};
use super::left_out_files::is_left_out;
use super::placement::error::PlacementError;
use super::running_server::check_at_rest;
use crate::base::blocking::run_blocking;
use crate::base::durable;
use crate::postgres::archive::manifest::{EntryContent, Manifest};
use crate::postgres::archive::spool::Spool;
use crate::postgres::archive::unfinished::SegmentBeginning;
use crate::postgres::archive::{Archive, ArchiveIdentity};
use crate::postgres::format::pg_control::PgControl;
use crate::postgres::format::segment::{SegmentName, SystemId, WalFileName};
use crate::postgres::wal::digest::digest_segment;
use crate::postgres::wal::page::WalPageHeader;

/// `pg_control` before the restore, until it is removed.
const OLD_PG_CONTROL_PATH: &str = "global/pg_control.walkeep-old";
const PG_CONTROL_PATH: &str = "global/pg_control";
/// The first page's header (`XLogLongPageHeaderData`).
const LONG_PAGE_HEADER_BYTES: u64 = 40;

/// The marker's last line, before the number.
const MARKER_IDENTITY_PREFIX: &str = "system identifier ";

/// What stands in the marker.
pub(super) fn marker_text(system: SystemId) -> String {
    format!(
        "walkeep is restoring here, or was stopped while it did. Nothing here can be used; restore again with \
            --delta.\n{MARKER_IDENTITY_PREFIX}{}\n",
        system.get()
    )
}

/// Whether there is something in a directory that a restore can go on from: a data directory of this cluster at rest,
/// or what an unfinished restore of it left. `false` if it is absent or empty.
///
/// # Errors
/// [`DestinationError`] for anything else.
fn is_resumable(pgdata: &Path, system: SystemId, force: bool) -> Result<bool, DestinationError> {
    let mut found = list_directory(pgdata)?.into_iter().filter(|path| !is_lost_and_found(path));
    let Some(first) = found.next() else { return Ok(false) };
    let foreign = |found: String| DestinationError::OtherCluster { path: pgdata.to_owned(), found };
    let found = match fs::read_to_string(pgdata.join(RESTORE_MARKER)) {
        Ok(text) => text.lines().last().and_then(|line| line.strip_prefix(MARKER_IDENTITY_PREFIX)?.parse().ok()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let path = pgdata.join(PG_CONTROL_PATH);
            let bytes = match fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let name = first.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    return Err(foreign(format!("has {name} and no {PG_CONTROL_PATH}")));
                }
                Err(error) => return Err(io_error("read", &path)(error)),
            };
            let control = PgControl::parse(&bytes).map_err(|error| foreign(format!("has what is none: {error}")))?;
            Some(control.system_id.get())
        }
        Err(error) => return Err(io_error("read", &pgdata.join(RESTORE_MARKER))(error)),
    };
    if found != Some(system.get()) {
        let whose = found.map_or_else(|| "an unknown cluster".to_owned(), |id| format!("the cluster {id}"));
        return Err(foreign(format!("is of {whose}, and the backup of {}", system.get())));
    }
    check_at_rest(pgdata, force)?;
    Ok(true)
}

/// Whether a tablespace's link in the data directory leads there: then what is in it is the data directory's own.
fn link_leads_to(pgdata: &Path, oid: u32, space: &Path) -> bool {
    fs::read_link(pgdata.join("pg_tblspc").join(oid.to_string())).is_ok_and(|to| to == space)
}

/// Makes the directory one that cannot be started.
///
/// # Errors
/// [`DestinationError::Running`] if a server was started in it meanwhile, and what the operating system said.
pub(super) fn make_unstartable(pgdata: &Path, force: bool) -> Result<(), PlacementError> {
    let (control, old) = (pgdata.join(PG_CONTROL_PATH), pgdata.join(OLD_PG_CONTROL_PATH));
    if control.symlink_metadata().is_err() {
        return Ok(());
    }
    durable::rename(&control, &old)?;
    if let Err(error) = check_at_rest(pgdata, force) {
        durable::rename(&old, &control)?;
        return Err(error.into());
    }
    Ok(())
}

/// The log in a data directory's `pg_wal` that is nowhere else and that a restore over it takes away, in order.
///
/// # Errors
/// The directory, the repositories or the spool could not be read.
pub async fn wal_only_in_pgdata(
    archive: &Archive,
    spool: Option<&Spool>,
    pgdata: &Path,
) -> Result<Vec<SegmentName>, super::error::RestoreError> {
    let Some(identity) = archive.identity().await? else { return Ok(Vec::new()) };
    let (log, mut found) = (pgdata.join("pg_wal"), Vec::new());
    let listed = log.clone();
    for name in run_blocking(move || written_segments(&listed, identity)).await?? {
        match archive.digest(name).await {
            Ok(Some(_)) => {}
            Ok(None) => found.push(name),
            Err(error) if error.is_integrity() => found.push(name),
            Err(error) => return Err(error.into()),
        }
    }
    // Of the one under way, what was received may be all that was written.
    if let Some(name) = found.last().copied()
        && let Some(SegmentBeginning { end: received, .. }) = archive.segment_beginning(spool, name).await?
    {
        let path = log.join(name.to_string());
        let end = run_blocking(move || {
            let bytes = fs::read(&path).map_err(io_error("read", &path))?;
            Ok::<_, DestinationError>(
                digest_segment(&bytes, name, identity.segment_size).ok().map(|digest| digest.valid_until),
            )
        });
        if end.await??.is_some_and(|end| end <= received) {
            found.pop();
        }
    }
    Ok(found)
}

/// The segments of a cluster in its `pg_wal` that were begun; not those that are kept to be written later, which hold
/// older bytes.
fn written_segments(log: &Path, identity: ArchiveIdentity) -> Result<Vec<SegmentName>, DestinationError> {
    let mut found = Vec::new();
    for path in list_directory(log)? {
        let Some(name) = path.file_name().and_then(|name| SegmentName::parse(name.to_str()?)) else { continue };
        let mut head = Vec::new();
        let opened = fs::File::open(&path).map_err(io_error("open", &path))?;
        opened.take(LONG_PAGE_HEADER_BYTES).read_to_end(&mut head).map_err(io_error("read", &path))?;
        let start = name.number(identity.segment_size).map(|number| number.start(identity.segment_size));
        let header = WalPageHeader::parse(&head).filter(|header| Some(header.address) == start);
        if header.and_then(|header| header.long).is_some_and(|long| long.system_id == identity.system_id) {
            found.push(name);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// What a path of the backup is.
enum WantedEntry<'m> {
    Directory,
    File,
    Link(&'m Path),
}

/// What was removed, and what was not though it is not of the backup.
#[derive(Debug, Default)]
pub(super) struct RemovedFiles {
    /// Sentences about what lies elsewhere.
    pub(super) notes: Vec<String>,
}

/// Removes what the backup has not.
///
/// # Errors
/// What the operating system said.
pub(super) fn remove_extra_files(
    ground: &CheckedDestination,
    manifest: &Manifest,
    staged: &Path,
) -> Result<RemovedFiles, DestinationError> {
    let pgdata = ground.pgdata();
    let mut wanted: HashMap<PathBuf, WantedEntry<'_>> = HashMap::with_capacity(manifest.entries.len());
    for entry in manifest.entries.iter().filter(|entry| !is_left_out(&entry.path)) {
        let what = match &entry.content {
            EntryContent::Directory => WantedEntry::Directory,
            EntryContent::Link(_) if entry.path.starts_with("pg_tblspc") => continue,
            EntryContent::Link(to) => WantedEntry::Link(to),
            EntryContent::File { .. } if entry.path == Path::new(PG_CONTROL_PATH) => continue,
            EntryContent::File { .. } => WantedEntry::File,
        };
        wanted.insert(ground.path_of(&entry.path), what);
    }
    wanted.insert(pgdata.join(staged), WantedEntry::File);
    wanted.insert(pgdata.join(RESTORE_MARKER), WantedEntry::File);
    wanted.insert(pgdata.join("pg_wal"), WantedEntry::Directory);
    wanted.insert(pgdata.join("pg_tblspc"), WantedEntry::Directory);
    let in_place = ground.tablespaces().iter().filter(|(oid, _)| ground.is_in_place(**oid));
    wanted.extend(in_place.map(|(_, space)| (space.clone(), WantedEntry::Directory)));
    let mut cleaner = DirectoryCleaner { top: pgdata, wanted: &wanted, cleaned: RemovedFiles::default() };
    for (oid, space) in ground.tablespaces() {
        let link = pgdata.join("pg_tblspc").join(oid.to_string());
        // What an earlier link led to is told before the link goes.
        if !ground.is_in_place(*oid) && link_leads_to(pgdata, *oid, space) {
            cleaner.clean_tablespace(space)?;
        } else if !ground.is_in_place(*oid) {
            cleaner.remove_path(&link)?;
        }
    }
    let links = ground.tablespaces().iter().filter(|(oid, _)| !ground.is_in_place(**oid));
    let links: HashMap<PathBuf, WantedEntry<'_>> =
        links.map(|(oid, space)| (pgdata.join("pg_tblspc").join(oid.to_string()), WantedEntry::Link(space))).collect();
    cleaner.clean_directory(pgdata, &links)?;
    Ok(cleaner.cleaned)
}

struct DirectoryCleaner<'w, 'm> {
    top: &'w Path,
    wanted: &'w HashMap<PathBuf, WantedEntry<'m>>,
    cleaned: RemovedFiles,
}

impl DirectoryCleaner<'_, '_> {
    /// Of a tablespace, only the directories that the backup has there.
    fn clean_tablespace(&mut self, space: &Path) -> Result<(), DestinationError> {
        for path in list_directory(space)? {
            if matches!(self.wanted.get(&path), Some(WantedEntry::Directory)) && is_directory(&path)? {
                self.clean_directory(&path, &HashMap::new())?;
            }
        }
        Ok(())
    }

    fn clean_directory(
        &mut self,
        directory: &Path,
        links: &HashMap<PathBuf, WantedEntry<'_>>,
    ) -> Result<(), DestinationError> {
        for path in list_directory(directory)? {
            let metadata = path.symlink_metadata().map_err(io_error("read", &path))?;
            if directory == self.top && is_lost_and_found(&path) {
                continue;
            }
            match self.wanted.get(&path).or_else(|| links.get(&path)) {
                Some(WantedEntry::Directory) if metadata.is_dir() => self.clean_directory(&path, links)?,
                Some(WantedEntry::Directory) if directory.join("pg_wal") == path && path.is_dir() => {
                    self.clean_linked_wal(&path)?
                }
                Some(WantedEntry::File) if metadata.is_file() && metadata.nlink() == 1 => {}
                Some(WantedEntry::Link(to)) if fs::read_link(&path).is_ok_and(|is| is == *to) => {}
                _ => self.remove_path(&path)?,
            }
        }
        Ok(())
    }

    /// `pg_wal` is a link: what it leads to stays, without the log in it.
    fn clean_linked_wal(&mut self, link: &Path) -> Result<(), DestinationError> {
        let log = link.canonicalize().map_err(io_error("find", link))?;
        for path in list_directory(&log)? {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_log = WalFileName::parse(&name).is_some() || name.starts_with("xlogtemp.");
            if is_log || name == "archive_status" || name == "summaries" {
                self.remove_path(&path)?;
            }
        }
        self.cleaned.notes.push(format!("the log in {}, where pg_wal leads, was removed", log.display()));
        Ok(())
    }

    /// A link goes, what it leads to stays.
    fn remove_path(&mut self, path: &Path) -> Result<(), DestinationError> {
        let metadata = match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            metadata => metadata.map_err(io_error("read", path))?,
        };
        if metadata.is_dir() {
            return fs::remove_dir_all(path).map_err(io_error("remove", path));
        }
        if metadata.is_symlink()
            && let Ok(to) = fs::read_link(path)
        {
            let (path, to) = (path.display(), to.display());
            self.cleaned.notes.push(format!("the link {path} was removed; what it led to, {to}, is as it was"));
        }
        fs::remove_file(path).map_err(io_error("remove", path))
    }
}

/// What `mkfs` puts into the root of a file system. PostgreSQL ignores it in a data directory, and so does a restore.
fn is_lost_and_found(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "lost+found") && is_directory(path).unwrap_or(false)
}

/// Whether everything can be replaced and removed that has to be: asked before anything is. Root may.
fn check_permissions(ground: &CheckedDestination, manifest: &Manifest) -> Result<(), DestinationError> {
    let user = rustix::process::geteuid();
    let files: HashSet<PathBuf> = manifest
        .entries
        .iter()
        .filter(|entry| matches!(entry.content, EntryContent::File { .. }))
        .map(|entry| ground.path_of(&entry.path))
        .collect();
    let pgdata = ground.pgdata();
    let check = PermissionCheck { user: user.as_raw(), is_root: user.is_root(), top: pgdata, files: &files };
    check.directory(pgdata)?;
    let log = pgdata.join("pg_wal");
    if log.symlink_metadata().is_ok_and(|metadata| metadata.is_symlink()) && log.is_dir() {
        check.writable(&log)?;
    }
    for (oid, space) in ground.tablespaces() {
        if !ground.is_in_place(*oid) && link_leads_to(pgdata, *oid, space) {
            check.writable(space)?;
            list_directory(space)?.iter().filter(|path| is_directory(path).unwrap_or(false)).try_for_each(|path| {
                let ours = manifest.entries.iter().any(|entry| ground.path_of(&entry.path) == **path);
                if ours { check.directory(path) } else { Ok(()) }
            })?;
        }
    }
    Ok(())
}

struct PermissionCheck<'p> {
    user: u32,
    is_root: bool,
    top: &'p Path,
    /// The backup's files.
    files: &'p HashSet<PathBuf>,
}

impl PermissionCheck<'_> {
    /// A directory and all that is in it. What links lead to stays as it is.
    fn directory(&self, directory: &Path) -> Result<(), DestinationError> {
        self.writable(directory)?;
        for path in list_directory(directory)? {
            let metadata = path.symlink_metadata().map_err(io_error("read", &path))?;
            if metadata.is_dir() {
                if !(directory == self.top && is_lost_and_found(&path)) {
                    self.directory(&path)?;
                }
            } else if metadata.is_file() && metadata.nlink() == 1 && self.files.contains(&path) {
                self.owned(&path, metadata.uid())?;
            }
        }
        Ok(())
    }

    /// Names can be added and removed there, and its mode can be set.
    fn writable(&self, directory: &Path) -> Result<(), DestinationError> {
        use rustix::fs::{Access, access};
        let metadata = directory.metadata().map_err(io_error("read", directory))?;
        self.owned(directory, metadata.uid())?;
        access(directory, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).map_err(|errno| {
            let what = format!("cannot be written to ({})", io::Error::from(errno));
            DestinationError::NotOurs { path: directory.to_owned(), what }
        })
    }

    /// Only its owner may change a file's mode, and so write to one that is read-only.
    fn owned(&self, path: &Path, owner: u32) -> Result<(), DestinationError> {
        if self.is_root || owner == self.user {
            return Ok(());
        }
        let what = format!("belongs to user {owner}, and walkeep runs as user {}", self.user);
        Err(DestinationError::NotOurs { path: path.to_owned(), what })
    }
}

fn is_directory(path: &Path) -> Result<bool, DestinationError> {
    Ok(path.symlink_metadata().map_err(io_error("read", path))?.is_dir())
}

fn list_directory(directory: &Path) -> Result<Vec<PathBuf>, DestinationError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(io_error("read", directory))?,
    };
    entries.map(|entry| entry.map(|entry| entry.path()).map_err(io_error("read", directory))).collect()
}

impl CheckedDestination {
    /// Looks over a data directory that is there, as [`CheckedDestination::check`] does one that is not. `None` if
    /// there is nothing in it.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub fn check_existing(
        destination: &Destination,
        manifest: &Manifest,
        force: bool,
    ) -> Result<Option<CheckedDestination>, DestinationError> {
        let spaces = &manifest.summary.tablespaces;
        let ground = CheckedDestination::resolve_paths(destination, spaces)?;
        if !is_resumable(ground.pgdata(), manifest.summary.system_id, force)? {
            return Ok(None);
        }
        for space in spaces {
            let ours = ground
                .tablespaces()
                .get(&space.oid)
                .is_some_and(|path| link_leads_to(ground.pgdata(), space.oid, path));
            if !ours {
                ground.check_tablespace(space, &manifest.entries)?;
            }
        }
        // What is too much is removed first, and what is there is written over.
        let there = |path: &Path| path.symlink_metadata().map_or(0, |metadata| metadata.len());
        ground.check_free_space(&manifest.entries, &there)?;
        check_permissions(&ground, manifest)?;
        Ok(Some(ground))
    }
}
