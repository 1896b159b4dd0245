//! Writing the files.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use super::absolute_expiry::CommandArrivals;
use super::append_only_file::AppendOnlyWriter;
use super::error::RestoreError;
use super::redis_conf::DataFileNames;
use crate::base::disk::{self, FileOwner};
use crate::base::durable::{self, StagedFile};
use crate::redis::format::rdb::{RdbLimits, RdbSummary, RdbWalker};
use crate::redis::format::resp::StreamCut;
use crate::redis::format::server_version::RedisVersion;

/// As servers make their own, but for the others, who need not read a restored data set.
const FILE_MODE: u32 = 0o640;
const FOLDER_MODE: u32 = 0o750;

/// What the file under way is called.
const PARTIAL_FILE_NAME: &str = "walkeep-partial";

/// What the files are.
#[derive(Clone, Copy, PartialEq, Eq, Debug, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DataFileForm {
    /// The dump alone.
    Dump,
    /// One append-only file that begins with the dump.
    Preamble,
    /// A folder of parts and their manifest.
    Parts,
}

impl DataFileForm {
    /// What a server of this version starts from.
    #[must_use]
    pub fn for_version(version: RedisVersion, with_commands: bool) -> DataFileForm {
        match (with_commands, version.has_multi_part_aof()) {
            (false, _) => DataFileForm::Dump,
            (true, false) => DataFileForm::Preamble,
            (true, true) => DataFileForm::Parts,
        }
    }

    /// Whether the server must have `appendonly yes`; otherwise `no`.
    #[must_use]
    pub fn is_append_only(self) -> bool {
        self != DataFileForm::Dump
    }
}

/// What was written.
#[derive(Clone, Debug, serde::Serialize)]
pub struct PlacedFiles {
    /// The server's folder.
    pub dir: PathBuf,
    /// What the files are.
    pub form: DataFileForm,
    /// The files, in the order in which they came to be.
    pub files: Vec<PathBuf>,
    /// Their bytes.
    pub bytes: u64,
    /// What is in the snapshot.
    pub walk: RdbSummary,
    /// Up to where the stream was replayed.
    pub end: Option<StreamCut>,
    /// How many commands that change something follow the snapshot.
    pub commands: u64,
    /// How many databases the server must have.
    pub databases: u64,
    /// Whether the files belong to root, as whom no server should run.
    pub owned_by_root: bool,
}

/// Files under construction. First the bytes of the snapshot, then those of the commands, if there are any.
///
/// Blocks; async code calls it through `spawn_blocking`.
#[derive(Debug)]
pub struct DataFileWriter {
    dir: PathBuf,
    names: DataFileNames,
    form: DataFileForm,
    file: StagedFile,
    len: u64,
    walker: RdbWalker,
    tail: Option<(AppendOnlyWriter, RdbSummary)>,
    files: Vec<PathBuf>,
    bytes: u64,
}

impl DataFileWriter {
    /// Begins in `dir`, which is made if it isn't there.
    ///
    /// # Errors
    /// There is something in `dir`, or it can't be written to.
    pub fn new(
        dir: &Path,
        form: DataFileForm,
        names: &DataFileNames,
        limits: RdbLimits,
    ) -> Result<DataFileWriter, RestoreError> {
        let folder = |path: &Path| {
            let path = path.to_owned();
            move |source| RestoreError::OpenFolder { path, source }
        };
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(dir).map_err(folder(dir))?;
        for entry in fs::read_dir(dir).map_err(folder(dir))? {
            let name = entry.map_err(folder(dir))?.file_name();
            // What file systems put into the root of a volume.
            if name != "lost+found" {
                return Err(RestoreError::FolderNotEmpty {
                    dir: dir.to_owned(),
                    found: name.to_string_lossy().into_owned(),
                });
            }
        }
        if form == DataFileForm::Parts {
            let parts = dir.join(&names.append_dir);
            DirBuilder::new().mode(FOLDER_MODE).create(&parts).map_err(folder(&parts))?;
            durable::sync_dir(dir)?;
        }
        let file = StagedFile::begin(&partial_path(dir, form, names), FILE_MODE)?;
        Ok(DataFileWriter {
            dir: dir.to_owned(),
            names: names.clone(),
            form,
            file,
            len: 0,
            walker: RdbWalker::new(limits),
            tail: None,
            files: Vec::new(),
            bytes: 0,
        })
    }

    /// The next bytes of the snapshot.
    ///
    /// # Errors
    /// They are no RDB, or can't be written.
    pub fn push_snapshot(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        self.walker.push(bytes)?;
        self.file.write(bytes)?;
        self.len = self.len.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// The snapshot is whole, and commands from `from` on follow.
    ///
    /// # Errors
    /// It isn't whole, or can't be written.
    pub fn begin_commands(mut self, from: StreamCut) -> Result<DataFileWriter, RestoreError> {
        let walk = self.walker.finish()?;
        self.walker = RdbWalker::new(RdbLimits::default());
        let tail = match self.form {
            DataFileForm::Dump => return Err(RestoreError::NoCutInStream),
            DataFileForm::Preamble => AppendOnlyWriter::new(&mut self.file, self.len, from)?,
            DataFileForm::Parts => {
                let base = format!("{}.1.base.rdb", self.names.append_file);
                let incr = StagedFile::begin(
                    &partial_path(&self.dir, self.form, &self.names).with_extension("incr"),
                    FILE_MODE,
                )?;
                let target = self.dir.join(&self.names.append_dir).join(base);
                std::mem::replace(&mut self.file, incr).publish_new(&target)?;
                self.files.push(target);
                self.bytes = std::mem::take(&mut self.len);
                AppendOnlyWriter::new(&mut self.file, 0, from)?
            }
        };
        self.tail = Some((tail, walk));
        Ok(self)
    }

    /// The next bytes of the commands, and when they had come.
    ///
    /// # Errors
    /// They are no commands, or can't be written.
    pub fn push_commands(&mut self, bytes: &[u8], arrivals: &CommandArrivals) -> Result<(), RestoreError> {
        match &mut self.tail {
            None => Err(RestoreError::NoCutInStream),
            Some((tail, _)) => tail.push_stream(&mut self.file, bytes, arrivals),
        }
    }

    /// Everything has come, up to the offset `to`. The files are complete and durable after this, and not before.
    ///
    /// # Errors
    /// The snapshot isn't whole, the commands end elsewhere, or a file can't be put in its place.
    pub fn finish(mut self, to: Option<u64>) -> Result<PlacedFiles, RestoreError> {
        let (walk, len, tail) = match self.tail.take() {
            None => (self.walker.finish()?, self.len, None),
            Some((tail, walk)) => {
                let end = tail.finish(&mut self.file)?;
                (walk, end.len, Some(end))
            }
        };
        let (cut, commands) = (tail.as_ref().map(|end| end.cut), tail.as_ref().map_or(0, |end| end.commands));
        // What was replayed is what was planned, or it is not what was asked for, and nobody may start from it.
        if let Some((end, target)) = cut.map(|cut| cut.offset).zip(to).filter(|(end, target)| end != target) {
            return Err(RestoreError::StreamTooShort { end, target });
        }
        let highest = walk.databases.keys().copied().max().unwrap_or(0);
        let highest = highest.max(tail.map_or(0, |end| u64::from(end.highest_db)));
        let parts = self.dir.join(&self.names.append_dir);
        let append_file = &self.names.append_file;
        let target = match (self.form, cut) {
            (DataFileForm::Dump, _) => self.dir.join(&self.names.dump),
            (DataFileForm::Preamble, _) => self.dir.join(append_file),
            (DataFileForm::Parts, None) => parts.join(format!("{append_file}.1.base.rdb")),
            (DataFileForm::Parts, Some(_)) => parts.join(format!("{append_file}.1.incr.aof")),
        };
        self.file.publish_new(&target)?;
        self.files.push(target);
        if self.form == DataFileForm::Parts {
            let manifest = parts.join(format!("{append_file}.manifest"));
            let lines = manifest_lines(append_file, cut.is_some());
            durable::write_new(&manifest, lines.as_bytes(), FILE_MODE)?;
            self.files.push(manifest);
        }
        let owned_by_root = give_to_owner(&self.dir, &self.files)?;
        Ok(PlacedFiles {
            dir: self.dir,
            form: self.form,
            files: self.files,
            bytes: self.bytes.saturating_add(len),
            walk,
            end: cut,
            commands,
            databases: highest.saturating_add(1).max(16),
            owned_by_root,
        })
    }
}

fn partial_path(dir: &Path, form: DataFileForm, names: &DataFileNames) -> PathBuf {
    let folder = if form == DataFileForm::Parts { dir.join(&names.append_dir) } else { dir.to_owned() };
    folder.join(PARTIAL_FILE_NAME)
}

/// `getAofManifestAsString` in aof.c.
fn manifest_lines(append_file: &str, with_commands: bool) -> String {
    // Names with blanks or the like are quoted, as `sdscatrepr` would.
    let plain = append_file.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\'' | b'\\'));
    let quote = if plain { "" } else { "\"" };
    let escaped = append_file.replace('\\', "\\\\").replace('"', "\\\"");
    let line = |end: &str, kind: char| format!("file {quote}{escaped}{end}{quote} seq 1 type {kind}\n");
    let commands = if with_commands { line(".1.incr.aof", 'i') } else { String::new() };
    line(".1.base.rdb", 'b') + &commands
}

/// A restore by root into a folder of the server's user leaves files that the server may read and write. Says whether
/// they are root's.
fn give_to_owner(dir: &Path, files: &[PathBuf]) -> Result<bool, RestoreError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| RestoreError::OpenFolder { path, source }
    };
    let owner = FileOwner::of(dir).map_err(failed(dir))?;
    if !disk::runs_as_root() || owner.is_root() {
        return Ok(owner.is_root());
    }
    let folders = files.iter().filter_map(|file| file.parent()).filter(|folder| *folder != dir);
    for path in folders.chain(files.iter().map(PathBuf::as_path)) {
        owner.give(path).map_err(failed(path))?;
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::manifest_lines;

    #[test]
    fn manifests() {
        let two = "file appendonly.aof.1.base.rdb seq 1 type b\nfile appendonly.aof.1.incr.aof seq 1 type i\n";
        assert_eq!(manifest_lines("appendonly.aof", true), two);
        assert_eq!(manifest_lines("a b", false), "file \"a b.1.base.rdb\" seq 1 type b\n");
    }
}
