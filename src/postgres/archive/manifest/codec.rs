//! The bytes of a manifest: numbers as LEB128, everything else as it is.

use std::collections::HashSet;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use super::contents::{BackupSummary, EntryContent, MANIFEST_FORMAT, Manifest, ManifestEntry, ManifestError};
use crate::postgres::archive::chunks::{ChunkName, ManifestChunk, PackId};

/// PostgreSQL's `MAXPGPATH`; nothing in a data directory has a longer path.
const MAX_PATH_BYTES: usize = 4096;
/// `backup_label` and `tablespace_map` are a few lines.
const MAX_LABEL_BYTES: usize = 16 << 20;

const DIRECTORY_TAG: u64 = 0;
const LINK_TAG: u64 = 1;
const FILE_TAG: u64 = 2;

impl Manifest {
    /// All but the summary, as the plaintext of the manifest's object.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.chunks.len().saturating_mul(38).saturating_add(self.entries.len() * 96));
        put_number(&mut out, u64::from(MANIFEST_FORMAT));
        put_number(&mut out, self.packs.len() as u64);
        self.packs.iter().for_each(|pack| out.extend_from_slice(pack.as_bytes()));
        put_number(&mut out, self.chunks.len() as u64);
        for chunk in &self.chunks {
            out.extend_from_slice(chunk.name.as_bytes());
            [chunk.pack, chunk.offset, chunk.len].into_iter().for_each(|field| put_number(&mut out, u64::from(field)));
        }
        put_number(&mut out, self.entries.len() as u64);
        self.entries.iter().for_each(|one| put_entry(&mut out, one));
        put_bytes(&mut out, &self.backup_label);
        match &self.tablespace_map {
            None => put_number(&mut out, 0),
            Some(map) => {
                put_number(&mut out, 1);
                put_bytes(&mut out, map);
            }
        }
        out
    }

    /// Reads what [`Manifest::to_bytes`] wrote. What it returns is whole in itself: every index leads somewhere, every
    /// file is as long as its chunks, no path climbs, is absolute or comes twice.
    ///
    /// Allocates at most about 16 bytes for each byte given.
    ///
    /// # Errors
    /// [`ManifestError`].
    pub fn from_bytes(summary: BackupSummary, data: &[u8]) -> Result<Manifest, ManifestError> {
        let mut input = ManifestReader { data, at: 0 };
        let format = input.read_number()?;
        if format != u64::from(MANIFEST_FORMAT) {
            return Err(ManifestError::Newer(format));
        }
        let packs = (0..input.read_count(16)?)
            .map(|_| input.read_array().map(PackId::from_bytes))
            .collect::<Result<Vec<_>, _>>()?;
        let chunks =
            (0..input.read_count(35)?).map(|_| input.read_chunk(packs.len())).collect::<Result<Vec<_>, _>>()?;
        let entries = (0..input.read_count(4)?).map(|_| input.read_entry(&chunks)).collect::<Result<Vec<_>, _>>()?;
        let mut seen = HashSet::with_capacity(entries.len());
        if !entries.iter().all(|entry| seen.insert(entry.path.as_path())) {
            return Err(input.malformed("a path that comes twice"));
        }
        let backup_label = input.read_bytes(MAX_LABEL_BYTES)?.to_vec();
        let tablespace_map = match input.read_number()? {
            0 => None,
            1 => Some(input.read_bytes(MAX_LABEL_BYTES)?.to_vec()),
            _ => return Err(input.malformed("neither a tablespace map nor none")),
        };
        if input.at != data.len() {
            return Err(input.malformed("bytes after the end"));
        }
        Ok(Manifest { summary, packs, chunks, entries, backup_label, tablespace_map })
    }
}

fn put_entry(out: &mut Vec<u8>, entry: &ManifestEntry) {
    put_bytes(out, entry.path.as_os_str().as_bytes());
    put_number(out, u64::from(entry.mode));
    put_number(out, zigzag(entry.modified));
    match &entry.content {
        EntryContent::Directory => put_number(out, DIRECTORY_TAG),
        EntryContent::Link(target) => {
            put_number(out, LINK_TAG);
            put_bytes(out, target.as_os_str().as_bytes());
        }
        EntryContent::File { len, hash, chunks } => {
            put_number(out, FILE_TAG);
            put_number(out, *len);
            out.extend_from_slice(hash);
            put_number(out, chunks.len() as u64);
            // Most chunks follow the one before: one byte each.
            let mut expected = 0_i64;
            for chunk in chunks {
                put_number(out, zigzag(i64::from(*chunk).saturating_sub(expected)));
                expected = i64::from(*chunk).saturating_add(1);
            }
        }
    }
}

fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Small numbers of either sign become small numbers.
const fn zigzag(value: i64) -> u64 {
    (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned()
}

const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ (value & 1).cast_signed().wrapping_neg()
}

struct ManifestReader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> ManifestReader<'a> {
    const fn malformed(&self, what: &'static str) -> ManifestError {
        ManifestError::Malformed { what, at: self.at }
    }

    fn read_slice(&mut self, len: usize) -> Result<&'a [u8], ManifestError> {
        let end = self.at.checked_add(len);
        let Some((taken, end)) = end.and_then(|end| Some((self.data.get(self.at..end)?, end))) else {
            return Err(self.malformed("the end"));
        };
        self.at = end;
        Ok(taken)
    }

    fn read_array<const N: usize>(&mut self) -> Result<[u8; N], ManifestError> {
        let taken = self.read_slice(N)?;
        taken.try_into().map_err(|_length| self.malformed("the end"))
    }

    fn read_number(&mut self) -> Result<u64, ManifestError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let [byte] = self.read_array()?;
            let part = u64::from(byte & 0x7F);
            if (part << shift) >> shift != part {
                return Err(self.malformed("a number beyond 64 bits"));
            }
            value |= part << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(self.malformed("a number beyond 64 bits"))
    }

    fn read_u32(&mut self) -> Result<u32, ManifestError> {
        let value = self.read_number()?;
        u32::try_from(value).map_err(|_large| self.malformed("a number beyond 32 bits"))
    }

    /// A count of things that take at least `each` bytes, so that a false one is found before anything is allocated for
    /// it.
    fn read_count(&mut self, each: usize) -> Result<usize, ManifestError> {
        let count = self.read_number()?;
        match usize::try_from(count) {
            Ok(count) if count <= self.data.len().saturating_sub(self.at) / each => Ok(count),
            _ => Err(self.malformed("a count beyond the end")),
        }
    }

    fn read_bytes(&mut self, max: usize) -> Result<&'a [u8], ManifestError> {
        match usize::try_from(self.read_number()?) {
            Ok(len) if len <= max => self.read_slice(len),
            _ => Err(self.malformed("a length beyond its limit")),
        }
    }

    fn read_chunk(&mut self, packs: usize) -> Result<ManifestChunk, ManifestError> {
        let name = ChunkName::from_bytes(self.read_array()?);
        let chunk = ManifestChunk { name, pack: self.read_u32()?, offset: self.read_u32()?, len: self.read_u32()? };
        if chunk.pack as usize >= packs || chunk.len == 0 || chunk.offset.checked_add(chunk.len).is_none() {
            return Err(self.malformed("a chunk that is nowhere"));
        }
        Ok(chunk)
    }

    fn read_entry(&mut self, chunks: &[ManifestChunk]) -> Result<ManifestEntry, ManifestError> {
        let path = PathBuf::from(std::ffi::OsString::from_vec(self.read_bytes(MAX_PATH_BYTES)?.to_vec()));
        if !is_inside(&path) {
            return Err(self.malformed("a path that leads out of the data directory"));
        }
        let mode = self.read_u32()?;
        let modified = unzigzag(self.read_number()?);
        let content = match self.read_number()? {
            DIRECTORY_TAG => EntryContent::Directory,
            LINK_TAG => EntryContent::Link(PathBuf::from(std::ffi::OsString::from_vec(
                self.read_bytes(MAX_PATH_BYTES)?.to_vec(),
            ))),
            FILE_TAG => self.read_file(chunks)?,
            _ => return Err(self.malformed("neither file, directory nor link")),
        };
        Ok(ManifestEntry { path, mode, modified, content })
    }

    fn read_file(&mut self, chunks: &[ManifestChunk]) -> Result<EntryContent, ManifestError> {
        let (len, hash) = (self.read_number()?, self.read_array()?);
        let count = self.read_count(1)?;
        let mut indexes = Vec::with_capacity(count);
        let (mut expected, mut sum) = (0_i64, 0_u64);
        for _ in 0..count {
            let index = unzigzag(self.read_number()?).checked_add(expected).and_then(|index| u32::try_from(index).ok());
            let chunk = index.and_then(|index| Some((index, chunks.get(index as usize)?)));
            let Some((index, chunk)) = chunk else { return Err(self.malformed("a chunk that is not in the list")) };
            indexes.push(index);
            expected = i64::from(index).saturating_add(1);
            sum = sum.saturating_add(u64::from(chunk.len));
        }
        if sum != len {
            return Err(self.malformed("a file that is not as long as its chunks"));
        }
        Ok(EntryContent::File { len, hash, chunks: indexes })
    }
}

/// Relative, not empty, and without `.` and `..`: joined to a directory it stays inside.
fn is_inside(path: &Path) -> bool {
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    // Components leave out what stands double, which would let one file have two names.
    let bytes = path.as_os_str().as_bytes();
    plain
        && !bytes.is_empty()
        && !bytes.contains(&0)
        && !bytes.ends_with(b"/")
        && !bytes.windows(2).any(|pair| pair == b"//")
        && !bytes.windows(3).any(|part| part == b"/./")
        && !bytes.ends_with(b"/.")
}

/// The body of a fuzz target: any bytes as a manifest. What reads is written the same.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    drop(BackupSummary::from_bytes(data));
    let Ok(summary) = BackupSummary::from_bytes(FUZZ_SUMMARY.as_bytes()) else { return };
    if let Ok(manifest) = Manifest::from_bytes(summary.clone(), data) {
        let written = manifest.to_bytes();
        assert_eq!(
            Manifest::from_bytes(summary, &written).as_ref(),
            Ok(&manifest),
            "written and read again it differs"
        );
    }
}

/// A summary for the fuzz target and the tests; also what the format was when it was first written.
pub(super) const FUZZ_SUMMARY: &str = r#"{"format":1,"label":"20261122T020000Z-F","system-id":"7300000000000000001",
"server-version":"15.12","major-version":15,"catalog-version":202209061,"segment-size":16777216,"block-size":8192,"data-checksums":true,
"required":{"max_connections":100,"max_worker_processes":8,"max_wal_senders":10,"max_prepared_transactions":0,"max_locks_per_transaction":64},
"from-standby":false,"timeline":1,"start-lsn":"0/2000028","checkpoint-lsn":"0/2000060","stop-lsn":"0/2000138","started-at":"2026-11-22T02:00:00Z",
"finished-at":"2026-11-22T02:00:09.5Z","tablespaces":[{"oid":16384,"location":"/srv/fast"}],"logical-bytes":23000000,"stored-bytes":4000000,"files":980,
"chunks":900,"new-chunks":900,"pages-checked":2800,"torn-pages":0,"naming-key":"019318fafc00101112131415161718ff"}"#;
