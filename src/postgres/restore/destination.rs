//! Where a restore puts things: the data directory and its tablespaces, looked over before anything is written.
//!
//! Refused is whatever could destroy something or could not be started: a directory that has something in it, two
//! tablespaces in one place, a mapping of something that is not in the backup.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use super::created_tablespace::CreatedTablespace;
use super::destination_error::io_error;
use crate::base::disk::{self, FileOwner};
use crate::postgres::archive::manifest::{EntryContent, ManifestEntry, ManifestTablespace};

pub use super::destination_error::{DestinationError, RESTORE_MARKER};

/// Where a backup is to go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Destination {
    /// The data directory: absent, or empty.
    pub pgdata: PathBuf,
    /// For tablespaces that go elsewhere: where they were, and where they go.
    pub mapping: Vec<(PathBuf, PathBuf)>,
}

/// Bytes that are free where `path` is, or would be.
///
/// # Errors
/// [`DestinationError::Io`].
pub fn free_bytes_at(path: &Path) -> Result<u64, DestinationError> {
    let existing = disk::nearest_existing(path);
    disk::free_bytes(existing).map_err(io_error("ask for free space on", existing))
}

/// A place that has been looked over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckedDestination {
    pgdata: PathBuf,
    tablespaces: BTreeMap<u32, PathBuf>,
    /// Where `pg_wal` is a link to.
    waldir: Option<PathBuf>,
    /// Set where this process may give files away and must: root's restores belong to whoever owns the directory.
    owner: Option<FileOwner>,
}

impl CheckedDestination {
    /// Looks a destination over. Nothing is changed.
    ///
    /// # Errors
    /// [`DestinationError`].
    pub fn check(
        destination: &Destination,
        tablespaces: &[ManifestTablespace],
        entries: &[ManifestEntry],
    ) -> Result<CheckedDestination, DestinationError> {
        check_empty(&absolute_path(&destination.pgdata)?)?;
        let ground = CheckedDestination::resolve_paths(destination, tablespaces)?;
        for space in tablespaces {
            ground.check_tablespace(space, entries)?;
        }
        ground.check_free_space(entries, &|_| 0)?;
        Ok(ground)
    }

    /// Where everything goes, whatever is there.
    pub(super) fn resolve_paths(
        destination: &Destination,
        tablespaces: &[ManifestTablespace],
    ) -> Result<CheckedDestination, DestinationError> {
        let pgdata = absolute_path(&destination.pgdata)?;
        let mut spaces = BTreeMap::new();
        for space in tablespaces {
            spaces.insert(space.oid, tablespace_path(space, &pgdata, &destination.mapping)?);
        }
        for (old, _) in &destination.mapping {
            if !tablespaces.iter().any(|space| Path::new(&space.location) == old) {
                let known: Vec<&str> = tablespaces.iter().map(|space| space.location.as_str()).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                return Err(DestinationError::UnknownMapping { old: old.clone(), known });
            }
        }
        let ground = CheckedDestination { owner: inherited_owner(&pgdata)?, pgdata, tablespaces: spaces, waldir: None };
        ground.check_apart(tablespaces)?;
        Ok(ground)
    }

    /// The data directory.
    #[must_use]
    pub fn pgdata(&self) -> &Path {
        &self.pgdata
    }

    /// The same with `pg_wal` as a link to `waldir`, if there is one. `over` is whether the data directory exists: then
    /// its `pg_wal` must be that link already.
    ///
    /// # Errors
    /// [`DestinationError::BadWaldir`].
    pub fn with_waldir(self, waldir: Option<PathBuf>, over: bool) -> Result<CheckedDestination, DestinationError> {
        let Some(waldir) = waldir else { return Ok(self) };
        let bad = |why| DestinationError::BadWaldir { path: waldir.clone(), why };
        plain_path(&waldir).map_err(|_not_plain| bad("it must be an absolute path without . and .."))?;
        let path = absolute_path(&waldir)?;
        let others = std::iter::once(&self.pgdata).chain(self.tablespaces.values());
        if others.into_iter().any(|other| path.starts_with(other) || other.starts_with(&path)) {
            return Err(bad("it must be outside the data directory and the tablespaces, and contain none of them"));
        }
        let pg_wal = self.pgdata.join("pg_wal");
        if over && pg_wal.symlink_metadata().is_ok() {
            if pg_wal.canonicalize().is_ok_and(|found| found == path) {
                return Ok(CheckedDestination { waldir: Some(path), ..self });
            }
            return Err(bad("pg_wal of the existing data directory is elsewhere; move it yourself, or omit --waldir"));
        }
        match check_empty(&path) {
            Ok(()) => Ok(CheckedDestination { waldir: Some(path), ..self }),
            Err(DestinationError::NotEmpty { .. } | DestinationError::UnfinishedRestore { .. }) => {
                Err(bad("it is not empty"))
            }
            Err(error) => Err(error),
        }
    }

    /// Where `pg_wal` is a link to, if it is one.
    #[must_use]
    pub fn waldir(&self) -> Option<&Path> {
        self.waldir.as_deref()
    }

    /// Where each tablespace goes.
    #[must_use]
    pub const fn tablespaces(&self) -> &BTreeMap<u32, PathBuf> {
        &self.tablespaces
    }

    /// Where a file of the backup goes. What is under `pg_tblspc/<oid>` goes to its tablespace.
    #[must_use]
    pub fn path_of(&self, entry: &Path) -> PathBuf {
        match tablespace_of(entry) {
            Some((oid, rest)) => match self.tablespaces.get(&oid) {
                Some(space) if rest.as_os_str().is_empty() => space.clone(),
                Some(space) => space.join(rest),
                None => self.pgdata.join(entry),
            },
            None => self.pgdata.join(entry),
        }
    }

    /// Whether a tablespace lies within the data directory, as a directory of its own and not behind a link.
    #[must_use]
    pub fn is_in_place(&self, oid: u32) -> bool {
        self.tablespaces.get(&oid).is_some_and(|space| *space == self.pgdata.join("pg_tblspc").join(oid.to_string()))
    }

    /// Two places that are one, or one within another, would mix their files; only a tablespace in its place may lie in
    /// the data directory.
    fn check_apart(&self, tablespaces: &[ManifestTablespace]) -> Result<(), DestinationError> {
        let mut all: Vec<&PathBuf> = vec![&self.pgdata];
        for space in tablespaces.iter().filter(|space| !self.is_in_place(space.oid)) {
            let Some(path) = self.tablespaces.get(&space.oid) else { continue };
            if let Some(other) = all.iter().find(|other| path.starts_with(other) || other.starts_with(path)) {
                return Err(DestinationError::Overlap { first: (*other).clone(), second: path.clone() });
            }
            all.push(path);
        }
        Ok(())
    }

    /// A tablespace's directory may be shared with other major versions, each in a directory of its own, but not with
    /// itself.
    pub(super) fn check_tablespace(
        &self,
        space: &ManifestTablespace,
        entries: &[ManifestEntry],
    ) -> Result<(), DestinationError> {
        let Some(path) = self.tablespaces.get(&space.oid).filter(|_| !self.is_in_place(space.oid)) else {
            return Ok(());
        };
        for entry in entries {
            let Some((oid, rest)) = tablespace_of(&entry.path) else { continue };
            let mut parts = rest.components();
            if oid == space.oid
                && let (Some(Component::Normal(name)), None) = (parts.next(), parts.next())
                && path.join(name).symlink_metadata().is_ok()
            {
                return Err(DestinationError::TablespaceOccupied {
                    oid,
                    path: path.clone(),
                    found: name.to_string_lossy().into_owned(),
                    location: space.location.clone(),
                });
            }
        }
        Ok(())
    }

    /// Each file system must have room for the files that go there, less what `there` says they take already. WAL comes
    /// on top, a few segments at a time.
    pub(super) fn check_free_space(
        &self,
        entries: &[ManifestEntry],
        there: &dyn Fn(&Path) -> u64,
    ) -> Result<(), DestinationError> {
        let mut needed: BTreeMap<u64, (PathBuf, u64)> = BTreeMap::new();
        for (place, bytes) in self.bytes_by_directory(entries, there) {
            let existing = disk::nearest_existing(place);
            let device = existing.metadata().map_err(io_error("read", existing))?.dev();
            let (_, sum) = needed.entry(device).or_insert_with(|| (existing.to_owned(), 0));
            *sum = sum.saturating_add(bytes);
        }
        for (path, needed) in needed.into_values() {
            let free = free_bytes_at(&path)?;
            if free < needed {
                return Err(DestinationError::NoSpace { path, needed, free });
            }
        }
        Ok(())
    }

    fn bytes_by_directory(&self, entries: &[ManifestEntry], there: &dyn Fn(&Path) -> u64) -> BTreeMap<&Path, u64> {
        let mut bytes: BTreeMap<&Path, u64> = BTreeMap::new();
        for entry in entries {
            let EntryContent::File { len, .. } = &entry.content else { continue };
            let space = tablespace_of(&entry.path).and_then(|(oid, _)| self.tablespaces.get(&oid));
            let sum = bytes.entry(space.map_or(self.pgdata.as_path(), PathBuf::as_path)).or_default();
            *sum = sum.saturating_add(len.saturating_sub(there(&self.path_of(&entry.path))));
        }
        bytes
    }

    /// Makes a directory and those above it, and gives the new ones to the owner.
    ///
    /// # Errors
    /// [`DestinationError::Io`].
    pub fn create_dir(&self, path: &Path, mode: u32) -> Result<(), DestinationError> {
        if path.is_dir() {
            return self.set_mode_and_owner(path, mode);
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
            self.create_dir(parent, 0o700)?;
        }
        fs::DirBuilder::new().mode(mode).create(path).map_err(io_error("create", path))?;
        self.set_mode_and_owner(path, mode)
    }

    /// Gives a file or directory its mode, whatever the umask was, and its owner.
    ///
    /// # Errors
    /// [`DestinationError::Io`].
    pub fn set_mode_and_owner(&self, path: &Path, mode: u32) -> Result<(), DestinationError> {
        if let Some(owner) = self.owner {
            owner.give(path).map_err(io_error("give its owner to", path))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(io_error("set the mode of", path))
    }
}

/// Refuses to let replay make tablespaces where something is already. Recovery takes the directory as it is, makes
/// another server's version directory its own and points `pg_tblspc` at it (`create_tablespace_directories`,
/// tablespace.c). Nothing is changed here.
///
/// # Errors
/// [`DestinationError::WouldBeReplayedInto`].
pub fn check_created_tablespaces(made: &[CreatedTablespace]) -> Result<(), DestinationError> {
    for CreatedTablespace { lsn, tablespace, location, time } in made {
        let found = match fs::read_dir(location) {
            Ok(mut entries) => match entries.next() {
                None => continue,
                Some(Ok(entry)) => entry.file_name().to_string_lossy().into_owned(),
                Some(Err(error)) => format!("what cannot be read ({error})"),
            },
            // A path that is not known to the letter may be any.
            Err(error) if error.kind() == io::ErrorKind::NotFound && !location.contains('\u{FFFD}') => continue,
            Err(error) => format!("what cannot be looked into ({error})"),
        };
        let when = time.map_or_else(String::new, |time| format!(" ({time})"));
        let (lsn, tablespace, location) = (*lsn, *tablespace, location.clone());
        return Err(DestinationError::WouldBeReplayedInto { tablespace, lsn, when, location, found });
    }
    Ok(())
}

/// The tablespace a path of the backup lies in, and where in it.
fn tablespace_of(entry: &Path) -> Option<(u32, &Path)> {
    let rest = entry.strip_prefix("pg_tblspc").ok()?;
    let Some(Component::Normal(oid)) = rest.components().next() else { return None };
    let number = oid.to_str()?.parse().ok()?;
    Some((number, rest.strip_prefix(oid).ok()?))
}

fn tablespace_path(
    space: &ManifestTablespace,
    pgdata: &Path,
    mapping: &[(PathBuf, PathBuf)],
) -> Result<PathBuf, DestinationError> {
    let location = Path::new(&space.location);
    match mapping.iter().rfind(|(old, _)| old == location) {
        Some((_, new)) => plain_path(new),
        // In its place, within the data directory.
        None if location.is_relative() => Ok(pgdata.join("pg_tblspc").join(space.oid.to_string())),
        None => plain_path(location),
    }
}

fn plain_path(path: &Path) -> Result<PathBuf, DestinationError> {
    let plain =
        path.is_absolute() && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if plain { Ok(path.components().collect()) } else { Err(DestinationError::BadPath { path: path.to_owned() }) }
}

fn absolute_path(path: &Path) -> Result<PathBuf, DestinationError> {
    // A link to an empty directory is followed now, so that everything is compared with where it really is.
    if path.exists() {
        return path.canonicalize().map_err(io_error("find", path));
    }
    std::path::absolute(path).map_err(io_error("find", path))
}

fn check_empty(path: &Path) -> Result<(), DestinationError> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error("read", path)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(io_error("read", path))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // The root of a file system has it, and PostgreSQL ignores it.
        if name != "lost+found" || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(name);
        }
    }
    if found.iter().any(|name| name == RESTORE_MARKER) {
        return Err(DestinationError::UnfinishedRestore { path: path.to_owned() });
    }
    match found.into_iter().min() {
        Some(found) => Err(DestinationError::NotEmpty { path: path.to_owned(), found }),
        None => Ok(()),
    }
}

/// Root gives what it restores to whoever owns the directory, or the nearest one above it that exists; everybody else
/// keeps it.
fn inherited_owner(path: &Path) -> Result<Option<FileOwner>, DestinationError> {
    if !disk::runs_as_root() {
        return Ok(None);
    }
    let existing = disk::nearest_existing(path);
    FileOwner::of(existing).map(Some).map_err(io_error("read", existing))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use super::{CheckedDestination, Destination, DestinationError, RESTORE_MARKER};
    use crate::postgres::archive::manifest::{EntryContent, ManifestEntry, ManifestTablespace};

    fn space(oid: u32, location: &str) -> ManifestTablespace {
        ManifestTablespace { oid, location: location.to_owned() }
    }

    fn directory(path: &str) -> ManifestEntry {
        ManifestEntry { path: path.into(), mode: 0o700, modified: 0, content: EntryContent::Directory }
    }

    fn survey(
        root: &Path,
        mapping: &[(&str, &str)],
        spaces: &[ManifestTablespace],
    ) -> Result<CheckedDestination, DestinationError> {
        let under = |path: &str| path.strip_prefix('/').map_or_else(|| PathBuf::from(path), |path| root.join(path));
        let mapping = mapping.iter().map(|(old, new)| (PathBuf::from(*old), under(new))).collect();
        let entries = [directory("pg_tblspc/16400/PG_15_202209061"), directory("base")];
        CheckedDestination::check(&Destination { pgdata: root.join("data"), mapping }, spaces, &entries)
    }

    #[test]
    fn an_absent_or_empty_directory_is_taken_and_any_other_refused() {
        let root = tempfile::tempdir().unwrap();
        assert!(survey(root.path(), &[], &[]).is_ok());
        fs::create_dir(root.path().join("data")).unwrap();
        let ground = survey(root.path(), &[], &[]).unwrap();
        assert_eq!(ground.path_of(Path::new("base/5/16384")), ground.pgdata().join("base/5/16384"));
        fs::write(root.path().join("data/.hidden"), "").unwrap();
        assert!(
            matches!(survey(root.path(), &[], &[]), Err(DestinationError::NotEmpty { found, .. }) if found == ".hidden")
        );
        fs::write(root.path().join("data").join(RESTORE_MARKER), "").unwrap();
        assert!(matches!(survey(root.path(), &[], &[]), Err(DestinationError::UnfinishedRestore { .. })));
    }

    #[test]
    fn tablespaces_go_where_they_were_or_are_mapped() {
        let root = tempfile::tempdir().unwrap();
        let here = root.path().canonicalize().unwrap();
        let old = here.join("old").to_string_lossy().into_owned();
        let spaces = [space(16_400, &old), space(16_401, "pg_tblspc/16401")];
        let ground = survey(&here, &[], &spaces).unwrap();
        assert_eq!(ground.path_of(Path::new("pg_tblspc/16400/PG_15/5/1")), here.join("old/PG_15/5/1"));
        assert_eq!(ground.path_of(Path::new("pg_tblspc/16400")), here.join("old"));
        assert_eq!(ground.path_of(Path::new("pg_tblspc/16401/PG_15")), here.join("data/pg_tblspc/16401/PG_15"));
        assert!(ground.is_in_place(16_401) && !ground.is_in_place(16_400));
        let ground = survey(&here, &[(&old, "/new")], &spaces).unwrap();
        assert_eq!(ground.path_of(Path::new("pg_tblspc/16400/PG_15/5/1")), here.join("new/PG_15/5/1"));
    }

    #[test]
    fn places_that_clash_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let here = root.path().canonicalize().unwrap();
        let spaces = [space(16_400, "/elsewhere/a"), space(16_401, "/elsewhere/b")];
        let refused = |mapping: &[(&str, &str)]| survey(&here, mapping, &spaces).unwrap_err();
        let one = refused(&[("/elsewhere/a", "/x"), ("/elsewhere/b", "/x")]);
        assert!(matches!(one, DestinationError::Overlap { .. }), "{one}");
        let nested = refused(&[("/elsewhere/a", "/x"), ("/elsewhere/b", "/x/y")]);
        assert!(matches!(nested, DestinationError::Overlap { .. }), "{nested}");
        let inside = refused(&[("/elsewhere/a", "/data/ts")]);
        assert!(matches!(inside, DestinationError::Overlap { .. }), "{inside}");
        let unknown = refused(&[("/elsewhere/c", "/x")]);
        assert!(unknown.to_string().contains("/elsewhere/a, /elsewhere/b"), "{unknown}");
        let climbing = refused(&[("/elsewhere/a", "x/../y")]);
        assert!(matches!(climbing, DestinationError::BadPath { .. }), "{climbing}");
    }

    #[test]
    fn more_than_fits_is_refused_before_anything_is_written() {
        let root = tempfile::tempdir().unwrap();
        let content = EntryContent::File { len: 1 << 60, hash: [0; 32], chunks: Vec::new() };
        let huge = ManifestEntry { path: "base/5/1".into(), mode: 0o600, modified: 0, content };
        let destination = Destination { pgdata: root.path().join("data"), mapping: Vec::new() };
        let error = CheckedDestination::check(&destination, &[], &[huge]).unwrap_err();
        assert!(matches!(error, DestinationError::NoSpace { needed, .. } if needed == 1 << 60), "{error}");
        assert!(!root.path().join("data").exists());
    }

    #[test]
    fn a_tablespace_that_is_in_use_is_not_written_into() {
        let root = tempfile::tempdir().unwrap();
        let here = root.path().canonicalize().unwrap();
        let old = here.join("old").to_string_lossy().into_owned();
        fs::create_dir_all(here.join("old/PG_14_202107181")).unwrap();
        let spaces = [space(16_400, &old)];
        assert!(survey(&here, &[], &spaces).is_ok(), "another major's files don't matter");
        fs::create_dir_all(here.join("old/PG_15_202209061")).unwrap();
        let error = survey(&here, &[], &spaces).unwrap_err();
        assert!(error.to_string().contains("--tablespace-mapping"), "{error}");
    }
}
