//! What a local folder needs beyond `object_store`: durability of names that others created, and the sweep of what
//! crashed writers left.
//!
//! The client writes `name#N`, syncs it, links it to `name` and syncs the folder. That leaves two holes, closed here: a
//! name that exists may have been linked by a writer that has not synced the folder yet, and a folder may have been
//! made by one that died before syncing the folder above it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::base::durable::{self, DurableError};

/// The folders of a repository whose own names this process knows to be durable.
#[derive(Debug, Default)]
pub(super) struct SyncedFolders(Mutex<BTreeSet<PathBuf>>);

impl SyncedFolders {
    /// Makes the names of all folders between `root` and the file `path` durable, once for each folder that is not long
    /// there.
    pub(super) fn sync_folders(&self, root: &Path, path: &Path, now: SystemTime) -> Result<(), DurableError> {
        let known = |dir: &Path| self.0.lock().unwrap_or_else(PoisonError::into_inner).contains(dir);
        let mut fresh = Vec::new();
        for dir in path.ancestors().skip(1).take_while(|dir| dir.starts_with(root) && *dir != root) {
            if known(dir) {
                break;
            }
            let made = fs::metadata(dir).and_then(|metadata| metadata.created());
            if !made.is_ok_and(|made| is_long_ago(made, now)) {
                // The name of `dir` is kept in the folder above it.
                durable::sync_dir(dir.parent().unwrap_or(root))?;
            }
            fresh.push(dir.to_owned());
        }
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(fresh);
        Ok(())
    }

    /// Makes the file `path`, which somebody else wrote, durable under its name.
    pub(super) fn sync_file(&self, root: &Path, path: &Path, now: SystemTime) -> Result<(), DurableError> {
        let written = fs::metadata(path).and_then(|metadata| metadata.modified());
        if !written.is_ok_and(|written| is_long_ago(written, now)) {
            durable::sync_file(path)?;
            durable::sync_dir(path.parent().unwrap_or(root))?;
        }
        self.sync_folders(root, path, now)
    }
}

/// What is older than this was written back by the kernel, whether its writer lived to sync it or not: four times the
/// longest interval at which any of the usual file systems commits by itself (ext4 5 seconds, XFS and btrfs 30). The
/// syncs saved are most of the time that a push of a segment takes which is there already.
const WRITEBACK_TIME: Duration = Duration::from_secs(120);

fn is_long_ago(moment: SystemTime, now: SystemTime) -> bool {
    now.duration_since(moment).is_ok_and(|age| age > WRITEBACK_TIME)
}

/// Removes the `name#N` files under `root` that were last written before `limit`, and counts them.
pub(super) fn sweep_orphans(root: &Path, now: SystemTime, age: Duration) -> std::io::Result<u64> {
    let mut removed = 0;
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                folders.push(entry.path());
            } else if is_orphan(&entry.file_name().to_string_lossy()) {
                // Gone in the meantime: its writer has finished after all.
                let Ok(metadata) = entry.metadata() else { continue };
                let old = now.duration_since(metadata.modified()?).is_ok_and(|since| since >= age);
                removed += u64::from(old && fs::remove_file(entry.path()).is_ok());
            }
        }
    }
    Ok(removed)
}

/// `object_store`'s name for an unfinished upload.
fn is_orphan(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}
