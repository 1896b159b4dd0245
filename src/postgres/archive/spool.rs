//! The spool: WAL that has come and is not in the repository yet, durable on this machine.
//!
//! One file a segment, `<segment name>.tail`, which grows at its end. Each append is one frame of a spool file
//! (`vault::spool`), bound to cluster, segment and offset. An incomplete last frame ends what is read, and is cut off
//! before anything is appended again. A file with anything else that does not open is set aside: the receiver uses a
//! copy of the frames before that, and asks the server for the rest again.
//!
//! All calls block. Not known here: who fills the spool, and when a file may go.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};

use super::Archive;
use crate::postgres::archive::layout::ClusterName;
use crate::postgres::format::segment::{SegmentName, SegmentSize};
use crate::vault::seal::SealedKind;
use crate::vault::spool::{
    FramePosition, GrowingFile, MAX_FRAME_PLAIN_BYTES, ScannedFrames, SetAsideFile, SpoolError, SpoolFolder,
    SpoolFormat, SpoolLock, SpoolProtection, SpoolRest, buffered, open_for_reading, remove_file, sync_left_file,
};

/// A frame has at most its plaintext, if that defies compression, and room for header and trailer.
static TAIL_FORMAT: SpoolFormat = SpoolFormat {
    kind: SealedKind::WalFile,
    file_suffix: ".tail",
    max_stored_bytes: MAX_FRAME_PLAIN_BYTES + (64 << 10),
};

/// The directory of one cluster's tails.
#[derive(Debug, Clone)]
pub struct Spool {
    folder: SpoolFolder,
}

impl Spool {
    /// The receiver's spool of `archive`'s cluster under `state_dir`. Its directory and its key are made if they do not
    /// exist.
    ///
    /// # Errors
    /// The directory can't be made, or the spool's key cannot be unwrapped.
    pub fn open(state_dir: &Path, archive: &Archive) -> Result<Spool, SpoolError> {
        let vault = archive.vault();
        let by = vault.key_encryption_key();
        let protection = SpoolProtection::provide(state_dir, by, vault.protection(), vault.clock().now())?;
        Spool::in_state_dir(state_dir, archive.cluster(), protection)
    }

    /// The spool of `archive`'s cluster under `state_dir`, for reading; `None` if there is certainly none. If this user
    /// may not look, that is an error of the first read: acknowledged WAL may be there.
    #[must_use]
    pub fn existing(state_dir: &Path, archive: &Archive) -> Option<Spool> {
        let vault = archive.vault();
        let protection = SpoolProtection::read(state_dir, vault.key_encryption_key(), vault.protection());
        let folder = SpoolFolder::in_state_dir(state_dir, archive.cluster().as_str(), &TAIL_FORMAT, protection);
        folder.may_exist().then_some(Spool { folder })
    }

    /// Takes the spool for one receiver alone.
    ///
    /// # Errors
    /// [`SpoolError::InUse`] if there is another one.
    pub fn lock(&self) -> Result<SpoolLock, SpoolError> {
        self.folder.lock("end it, or give this one a state-dir of its own")
    }

    fn in_state_dir(state_dir: &Path, cluster: &ClusterName, protection: SpoolProtection) -> Result<Spool, SpoolError> {
        let folder = SpoolFolder::in_state_dir(state_dir, cluster.as_str(), &TAIL_FORMAT, protection).create()?;
        Ok(Spool { folder })
    }

    /// The segments of which something is spooled, by timeline and position.
    ///
    /// # Errors
    /// The directory can't be read.
    pub fn list_segments(&self) -> Result<Vec<SegmentName>, SpoolError> {
        let mut names = self.folder.list(SegmentName::parse)?;
        names.sort_unstable_by_key(ToString::to_string);
        Ok(names)
    }

    /// What is spooled of a segment, from its first byte on; empty if nothing is. If the file is damaged, that is what
    /// precedes the damage.
    ///
    /// # Errors
    /// The file is there and can't be read, or the spool's key cannot be unwrapped.
    pub fn read_segment(&self, name: SegmentName, size: SegmentSize) -> Result<Bytes, SpoolError> {
        let path = self.path(name);
        let Some(mut file) = open_for_reading(&path)? else { return Ok(Bytes::new()) };
        let (plain, scanned) = self.scan_frames(&path, &mut file, name, size)?;
        if let SpoolRest::Damaged(error) = scanned.rest {
            let (file, bytes) = (path.display(), plain.len());
            tracing::warn!(%file, bytes, %error, "a spool file is damaged; the WAL before that is used");
        }
        Ok(plain)
    }

    /// The same for the receiver, before it archives what it reads and removes the file: a damaged file is set aside,
    /// and only a copy of what is returned stays under its name.
    ///
    /// # Errors
    /// [`SpoolError`].
    pub fn read_leftover(&self, name: SegmentName, size: SegmentSize) -> Result<Bytes, SpoolError> {
        let path = self.path(name);
        let Some(mut file) = open_for_reading(&path)? else { return Ok(Bytes::new()) };
        let (plain, scanned) = self.scan_frames(&path, &mut file, name, size)?;
        self.set_aside_if_damaged(name, &scanned)?;
        Ok(plain)
    }

    /// Opens a segment's file to append to it. What an earlier run left is synced first, because that run may not have
    /// done it, and a torn frame at its end is cut off. A damaged file is set aside, and what is returned is a copy of
    /// the frames before the damage. Also returns what the file holds.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn open_for_append(&self, name: SegmentName, size: SegmentSize) -> Result<(SpoolFile, Bytes), SpoolError> {
        let path = self.path(name);
        let failed = |action| SpoolError::io(action, &path);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let mut file = opened.map_err(failed("open"))?;
        sync_left_file(&file, &path)?;
        let (plain, scanned) = self.scan_frames(&path, &mut file, name, size)?;
        if self.set_aside_if_damaged(name, &scanned)? {
            // Ends at last, because each file is shorter than the one before.
            return self.open_for_append(name, size);
        }
        let end = scanned.end;
        if matches!(scanned.rest, SpoolRest::Torn) {
            let len = file.seek(SeekFrom::End(0)).map_err(failed("read"))?;
            tracing::info!(%name, cut = len.saturating_sub(end), "an incomplete last frame is cut off the spool");
            file.set_len(end).map_err(failed("truncate"))?;
            file.sync_all().map_err(failed("fsync"))?;
        }
        file.seek(SeekFrom::Start(end)).map_err(failed("read"))?;
        self.folder.sync()?;
        let held = plain.len() as u64;
        Ok((SpoolFile { file: GrowingFile::new(file, path, self.folder.clone()), name, held }, plain))
    }

    /// Whether the file was damaged, and is set aside now.
    fn set_aside_if_damaged(&self, name: SegmentName, scanned: &ScannedFrames) -> Result<bool, SpoolError> {
        let SpoolRest::Damaged(error) = &scanned.rest else { return Ok(false) };
        let aside = self.folder.set_aside(&name.to_string(), scanned.end)?;
        tracing::error!(
            file = %aside.display(), segment = %name, %error,
            "a spool file of acknowledged WAL is damaged: it is kept under this name, and the server is asked for the \
             WAL again; if a gap is recorded, take a backup. If the key is unknown, stop the receiver, configure the \
             repository with that key, and move the file back. Remove it when it is no longer needed"
        );
        Ok(true)
    }

    /// What is in the files that were set aside because they are damaged, by their names, and what to do. `size` is the
    /// cluster's, if it is known.
    ///
    /// # Errors
    /// The directory can't be read.
    fn describe_set_aside(&self, size: Option<SegmentSize>) -> Result<Vec<String>, SpoolError> {
        let describe = |SetAsideFile { path, stem }| {
            let name = SegmentName::parse(&stem);
            let range = name.zip(size).and_then(|(name, size)| Some((name.number(size)?, size)));
            let what = match (name, range) {
                (Some(name), Some((number, size))) => {
                    format!("WAL {} to {} of timeline {}", number.start(size), number.end(size), name.timeline())
                }
                (Some(name), None) => format!("WAL of segment {name}"),
                (None, _) => "a part of the spool".to_owned(),
            };
            format!(
                "{} is a damaged spool file with {what}; if walkeep list does not show that as restorable, take a \
                 backup; then remove the file",
                path.display()
            )
        };
        Ok(self.folder.list_set_aside()?.into_iter().map(describe).collect())
    }

    /// The same, or why it is not known, for a report.
    #[must_use]
    pub fn set_aside_report(&self, size: Option<SegmentSize>) -> Vec<String> {
        self.describe_set_aside(size).unwrap_or_else(|error| vec![error.to_string()])
    }

    /// Removes a segment's file, if there is one. The caller has archived all that it was read to have, or all of the
    /// segment from memory. Not synced: should it come back after a power cut, it is found in the
    /// repository and removed again.
    ///
    /// # Errors
    /// What the operating system said.
    pub fn remove_segment(&self, name: SegmentName) -> Result<(), SpoolError> {
        remove_file(&self.path(name))
    }

    /// The file of a segment, whether it exists or not.
    #[must_use]
    pub fn path(&self, name: SegmentName) -> PathBuf {
        self.folder.path(&name.to_string())
    }

    /// All whole frames, and what follows them.
    fn scan_frames(
        &self,
        path: &Path,
        file: &mut File,
        name: SegmentName,
        size: SegmentSize,
    ) -> Result<(Bytes, ScannedFrames), SpoolError> {
        let mut plain = BytesMut::new();
        let place = |at: FramePosition| frame_place(name, at.plain_offset);
        let scanned = self.folder.frames().scan(path, &mut buffered(file), place, |frame| {
            let fits = plain.len() + frame.plain.len() <= size.len();
            if fits {
                plain.extend_from_slice(&frame.plain);
            }
            fits
        })?;
        Ok((plain.freeze(), scanned))
    }
}

/// What a frame is bound to, apart from the cluster.
fn frame_place(name: SegmentName, offset: u64) -> String {
    format!("{name}/{offset}")
}

/// One segment's file, open at its end.
#[derive(Debug)]
pub struct SpoolFile {
    file: GrowingFile,
    name: SegmentName,
    held: u64,
}

impl SpoolFile {
    /// The segment.
    #[must_use]
    pub const fn name(&self) -> SegmentName {
        self.name
    }

    /// How many bytes of the segment are in the file, synced or not.
    #[must_use]
    pub const fn held(&self) -> u64 {
        self.held
    }

    /// Appends `bytes`, whose position in the segment is `offset`. They are safe only after [`SpoolFile::sync`].
    ///
    /// # Errors
    /// What the operating system said. The file may then end in half a frame and must be opened again.
    pub fn append(&mut self, offset: u64, bytes: &[u8]) -> Result<(), SpoolError> {
        if offset != self.held {
            return Err(SpoolError::NotContiguous { name: self.name.to_string(), held: self.held, offset });
        }
        for piece in bytes.chunks(MAX_FRAME_PLAIN_BYTES) {
            self.file.append(&frame_place(self.name, self.held), piece, &[])?;
            self.held += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes all that was appended survive a power cut.
    ///
    /// # Errors
    /// What the operating system said. It is then unknown what is on the disk: the file must be opened again.
    pub fn sync(&mut self) -> Result<(), SpoolError> {
        self.file.sync()
    }
}

#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "the sizes here are small")]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::Spool;
    use crate::postgres::format::segment::{SegmentName, SegmentSize};
    use crate::vault::spool::SpoolProtection;

    fn spool(dir: &std::path::Path) -> Spool {
        Spool::in_state_dir(dir, &"main".parse().unwrap(), SpoolProtection::without_encryption()).unwrap()
    }

    fn name(text: &str) -> SegmentName {
        SegmentName::parse(text).unwrap()
    }

    const SIZE: SegmentSize = SegmentSize::DEFAULT;

    #[test]
    fn what_was_appended_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let a = name("0000000100000000000000A3");
        let (mut tail, held) = spool.open_for_append(a, SIZE).unwrap();
        assert!(held.is_empty());
        let text: Vec<u8> = (0..5_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
        tail.append(0, &text[..100]).unwrap();
        tail.append(100, &text[100..]).unwrap();
        assert!(tail.append(7, b"x").is_err(), "a gap was taken");
        tail.sync().unwrap();
        assert_eq!(spool.read_segment(a, SIZE).unwrap(), text);
        let (mut again, held) = spool.open_for_append(a, SIZE).unwrap();
        assert_eq!(held, text);
        again.append(text.len() as u64, b"more").unwrap();
        assert_eq!(spool.read_segment(a, SIZE).unwrap().len(), text.len() + 4);
        assert_eq!(spool.list_segments().unwrap(), [a]);
        spool.remove_segment(a).unwrap();
        spool.remove_segment(a).unwrap();
        assert!(spool.list_segments().unwrap().is_empty() && spool.read_segment(a, SIZE).unwrap().is_empty());
    }

    #[test]
    fn a_file_under_another_segments_name_does_not_open() {
        let dir = tempfile::tempdir().unwrap();
        let spool = spool(dir.path());
        let (a, b) = (name("0000000100000000000000A3"), name("0000000100000000000000A4"));
        spool.open_for_append(a, SIZE).unwrap().0.append(0, b"of A3").unwrap();
        fs::copy(spool.path(a), spool.path(b)).unwrap();
        assert!(spool.read_segment(b, SIZE).unwrap().is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// A crash may cut the file anywhere and may leave anything in the part that was never synced.
        #[test]
        fn after_any_cut_a_prefix_of_whole_frames_is_left(cut in 0_usize..3000, rubbish in any::<Option<u8>>()) {
            let dir = tempfile::tempdir().unwrap();
            let spool = spool(dir.path());
            let a = name("0000000100000000000000A3");
            let (mut tail, _) = spool.open_for_append(a, SIZE).unwrap();
            let mut ends = vec![(0, 0)];
            for n in 0..8_u8 {
                let at = tail.held();
                tail.append(at, &[n; 100]).unwrap();
                ends.push((fs::metadata(spool.path(a)).unwrap().len() as usize, tail.held()));
            }
            let mut bytes = fs::read(spool.path(a)).unwrap();
            let cut = cut.min(bytes.len());
            match rubbish {
                Some(fill) => bytes[cut..].fill(fill),
                None => bytes.truncate(cut),
            }
            fs::write(spool.path(a), &bytes).unwrap();
            let expected = ends.iter().rev().find(|(end, _)| *end <= cut).unwrap().1;
            let (mut tail, held) = spool.open_for_append(a, SIZE).unwrap();
            // The rubbish may be just what was there.
            prop_assert!(held.len() as u64 >= expected);
            prop_assert!(held.chunks(100).enumerate().all(|(n, frame)| frame.len() == 100 && frame.iter().all(|b| *b == n as u8)));
            tail.append(held.len() as u64, b"goes on").unwrap();
            prop_assert_eq!(spool.read_segment(a, SIZE).unwrap().len(), held.len() + 7);
        }
    }
}
