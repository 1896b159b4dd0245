//! A file's lock (flock(2)) that ends when its holder drops it.
//!
//! Closing the file would not do: a process forked at that moment has it open too until it becomes the program it was
//! forked for, and the lock is everybody's who has the file open. Whoever takes the lock next would be told that it is
//! in use, by nobody.

use std::fs::{File, TryLockError};

/// Held until dropped.
#[derive(Debug)]
pub struct FileLock(File);

impl FileLock {
    /// Locks the file, for this holder alone. Over NFS it must be open for writing.
    ///
    /// # Errors
    /// [`TryLockError::WouldBlock`] if somebody has it; or the file system has no locks.
    pub fn acquire(file: File) -> Result<FileLock, TryLockError> {
        file.try_lock()?;
        Ok(FileLock(file))
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // It fails only where nothing is locked any more.
        let _ended = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_with_its_holder_though_the_file_is_still_open_elsewhere() {
        let file = tempfile::tempfile().unwrap();
        // What a forked process has.
        let inherited = file.try_clone().unwrap();
        let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&inherited));
        let held = FileLock::acquire(file).unwrap();
        assert!(matches!(FileLock::acquire(File::open(&path).unwrap()), Err(TryLockError::WouldBlock)));
        drop(held);
        FileLock::acquire(File::open(&path).unwrap()).unwrap();
    }
}
