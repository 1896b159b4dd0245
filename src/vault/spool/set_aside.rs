//! Spool files that cannot be read to their end: kept in `set-aside/` beside the spool files, and never removed.
//!
//! Their name is that of the spool file, then a point and a number. A copy of the frames that open takes the place of
//! the spool file. The user removes a file that was set aside; walkeep reports it until then.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::error::SpoolError;
use super::folder::SpoolFolder;
use crate::base::durable::{self, DurableError};

/// The folder of these files, in the folder of an archive's spool.
const FOLDER: &str = "set-aside";
/// What earlier versions added to the name of a file that they set aside in the spool itself.
const EARLIER_SUFFIX: &str = ".damaged";
/// What is added to the name of a copy under construction.
const COPY_SUFFIX: &str = "readable";

/// A spool file that was set aside.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SetAsideFile {
    /// Where it is.
    pub path: PathBuf,
    /// The name that the spool file had, without its suffix.
    pub stem: String,
}

impl SpoolFolder {
    /// Sets a file aside, and leaves a copy of its first `readable` bytes in its place, if there are any. Returns its
    /// path.
    ///
    /// The order of effects: write the copy under a name of its own and fsync it, give the damaged file its second
    /// name and fsync that folder, rename the copy over the first name and fsync this folder. After a crash in between,
    /// the damaged file still has its first name. It is then found and set aside again.
    pub(crate) fn set_aside(&self, stem: &str, readable: u64) -> Result<PathBuf, SpoolError> {
        let (path, dir) = (self.path(stem), self.dir.join(FOLDER));
        durable::create_dir_all(&dir, 0o700)?;
        if readable == 0 {
            return Ok(under_free_name(&path, &dir, durable::rename_new)?);
        }
        let copy = path.with_added_extension(COPY_SUFFIX);
        copy_beginning(&path, &copy, readable)?;
        let aside = match find_same_file(&path, &dir)? {
            Some(aside) => aside,
            None => match under_free_name(&path, &dir, durable::link_new) {
                Ok(aside) => aside,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error.into()),
                // A file system without hard links. A crash right after this leaves the frames in the copy and here.
                Err(_) => under_free_name(&path, &dir, durable::rename_new)?,
            },
        };
        durable::rename(&copy, &path)?;
        Ok(aside)
    }

    /// The files that were set aside, by name.
    pub(crate) fn list_set_aside(&self) -> Result<Vec<SetAsideFile>, SpoolError> {
        let mut found: Vec<SetAsideFile> = Vec::new();
        for path in list_files(&self.dir.join(FOLDER))? {
            let stem = path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            found.push(SetAsideFile { stem: self.without_suffix(&stem), path });
        }
        for path in list_files(&self.dir)? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if let Some(stem) = name.strip_suffix(EARLIER_SUFFIX) {
                found.push(SetAsideFile { stem: self.without_suffix(stem), path });
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn without_suffix(&self, name: &str) -> String {
        name.strip_suffix(self.format.file_suffix).unwrap_or(name).to_owned()
    }
}

/// Puts a file under its name with the first number that is free.
fn under_free_name(
    path: &Path,
    dir: &Path,
    put: impl Fn(&Path, &Path) -> Result<(), DurableError>,
) -> Result<PathBuf, DurableError> {
    let name = path.file_name().unwrap_or_default();
    let mut number = 1_u32;
    loop {
        let aside = dir.join(name).with_added_extension(number.to_string());
        match put(path, &aside) {
            Ok(()) => return Ok(aside),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < u32::MAX => {
                number = number.saturating_add(1);
            }
            Err(error) => return Err(error),
        }
    }
}

/// The file in `dir` that is the file at `path`, after a crash that left it both names.
fn find_same_file(path: &Path, dir: &Path) -> Result<Option<PathBuf>, SpoolError> {
    let ours = fs::metadata(path).map_err(SpoolError::io("look at", path))?;
    for other in list_files(dir)? {
        let its = fs::metadata(&other).map_err(SpoolError::io("look at", &other))?;
        if (its.dev(), its.ino()) == (ours.dev(), ours.ino()) {
            durable::sync_dir(dir)?;
            return Ok(Some(other));
        }
    }
    Ok(None)
}

fn copy_beginning(from: &Path, to: &Path, len: u64) -> Result<(), SpoolError> {
    let file = File::open(from).map_err(SpoolError::io("open", from))?;
    let opened = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(to);
    let mut copy = opened.map_err(SpoolError::io("create", to))?;
    io::copy(&mut file.take(len), &mut copy).map_err(SpoolError::io("write", to))?;
    copy.sync_all().map_err(SpoolError::io("fsync", to))
}

fn list_files(dir: &Path) -> Result<Vec<PathBuf>, SpoolError> {
    let failed = |source| SpoolError::Io { action: "list", path: dir.to_owned(), source };
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}
