//! From the server's archives to files cut in chunks: what comes in is bytes of tar, what goes out is work for the
//! hashing threads.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use bytes::Bytes;

use super::error::BackupError;
use super::page_checksums::{ChecksumRule, PageFindings};
use super::tar::{TarEntry, TarEntryKind, TarEvent, TarReader};
use crate::postgres::archive::chunks::{self, CHUNK_BYTES, ChunkName, ChunkNamer, ChunkSubtreeHash};
use crate::postgres::archive::manifest::{EntryContent, ManifestEntry};
use crate::postgres::format::backup_label::{BackupLabel, TablespaceMap};
use crate::postgres::format::datadir;

/// `backup_label`, `tablespace_map` and `pg_control` are kept in memory as well; none is ever near this size.
const MAX_KEPT_FILE_BYTES: u64 = 16 << 20;

const TABLESPACE_MAP: &str = TablespaceMap::FILE;
const PG_CONTROL_PATH: &str = "global/pg_control";

/// A chunk as it was cut, for a hashing thread.
#[derive(Debug)]
pub(super) struct CutChunk {
    /// The file it is of, counted from zero.
    pub(super) file: usize,
    pub(super) file_len: u64,
    pub(super) offset: u64,
    pub(super) parts: Vec<Bytes>,
    /// How to check its pages, and the first one's number.
    pub(super) pages: Option<(ChecksumRule, u32)>,
}

/// A chunk with all that can be known from its bytes.
#[derive(Debug)]
pub(super) struct HashedChunk {
    pub(super) file: usize,
    pub(super) name: ChunkName,
    pub(super) value: ChunkSubtreeHash,
    pub(super) len: u32,
    pub(super) parts: Vec<Bytes>,
    pub(super) pages: PageFindings,
}

/// The work of a hashing thread.
pub(super) fn hash_chunk(cut: CutChunk, namer: &ChunkNamer) -> HashedChunk {
    let slices: Vec<&[u8]> = cut.parts.iter().map(|part| &part[..]).collect();
    let value = chunks::chunk_subtree_hash(&slices, cut.offset, cut.file_len);
    let pages = cut.pages.map(|(rule, first)| rule.check_pages(&cut.parts, first)).unwrap_or_default();
    let len = cut.parts.iter().map(Bytes::len).sum::<usize>();
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    HashedChunk { file: cut.file, name: namer.name(&value), value, len, parts: cut.parts, pages }
}

/// A file whose content is coming in.
#[derive(Debug)]
struct OpenTarFile {
    /// Its number among the files that have chunks; `None` if it is one of the two that stand apart.
    file: Option<usize>,
    len: u64,
    offset: u64,
    parts: Vec<Bytes>,
    parts_len: u32,
    pages: Option<(ChecksumRule, u32)>,
    /// The whole content, of the few files that we read ourselves.
    kept: Option<(&'static str, Vec<u8>)>,
}

/// Reads the archives of one backup, one after the other.
#[derive(Debug)]
pub(super) struct Chunker {
    rule: Option<ChecksumRule>,
    tablespace: Option<u32>,
    tar: TarReader,
    open: Option<OpenTarFile>,
    /// Everything but `backup_label` and `tablespace_map`, files still without chunks.
    pub(super) entries: Vec<ManifestEntry>,
    /// Which of `entries` are files, by file number.
    pub(super) files: Vec<usize>,
    pub(super) backup_label: Option<Vec<u8>>,
    pub(super) tablespace_map: Option<Vec<u8>>,
    pub(super) control: Option<Vec<u8>>,
    pub(super) logical_bytes: u64,
}

impl Chunker {
    /// `rule` is how to check pages; `None` if the cluster has no checksums.
    pub(super) fn new(rule: Option<ChecksumRule>) -> Chunker {
        Chunker {
            rule,
            tablespace: None,
            tar: TarReader::new(),
            open: None,
            entries: Vec::new(),
            files: Vec::new(),
            backup_label: None,
            tablespace_map: None,
            control: None,
            logical_bytes: 0,
        }
    }

    /// The archive of a tablespace begins, `None` for the data directory.
    pub(super) fn begin_archive(&mut self, tablespace: Option<u32>) -> Result<(), BackupError> {
        self.finish()?;
        self.tablespace = tablespace;
        self.tar = TarReader::new();
        Ok(())
    }

    /// No archive may be unfinished.
    pub(super) fn finish(&self) -> Result<(), BackupError> {
        self.tar.finish()?;
        Ok(())
    }

    /// Takes bytes of the archive, and cuts what it can.
    pub(super) fn push(&mut self, bytes: Bytes, cuts: &mut Vec<CutChunk>) -> Result<(), BackupError> {
        self.tar.push(bytes);
        while let Some(event) = self.tar.poll()? {
            match event {
                TarEvent::Entry(entry) => self.begin_entry(entry)?,
                TarEvent::Data(data) => self.append_data(data, cuts),
            }
        }
        Ok(())
    }

    fn begin_entry(&mut self, entry: TarEntry) -> Result<(), BackupError> {
        let text = String::from_utf8_lossy(&entry.path).into_owned();
        let path = match self.tablespace {
            Some(oid) if text.is_empty() || text == "." => format!("pg_tblspc/{oid}").into_bytes(),
            Some(oid) => [format!("pg_tblspc/{oid}/").as_bytes(), &entry.path].concat(),
            // The data directory itself.
            None if text.is_empty() || text == "." => return Ok(()),
            None => entry.path,
        };
        let shown = String::from_utf8_lossy(&path).into_owned();
        let path = PathBuf::from(OsString::from_vec(path));
        let (mode, modified) = (entry.mode, entry.modified);
        match entry.kind {
            TarEntryKind::Directory => {
                self.entries.push(ManifestEntry { path, mode, modified, content: EntryContent::Directory });
            }
            TarEntryKind::Link(target) => {
                let content = EntryContent::Link(PathBuf::from(OsString::from_vec(target)));
                self.entries.push(ManifestEntry { path, mode, modified, content });
            }
            TarEntryKind::File(len) => {
                let kept = [BackupLabel::FILE, TABLESPACE_MAP, PG_CONTROL_PATH].into_iter().find(|name| *name == shown);
                if kept.is_some() && len > MAX_KEPT_FILE_BYTES {
                    return Err(BackupError::UnusableFile { file: shown, why: format!("it has {len} bytes") });
                }
                let apart = kept.is_some_and(|name| name != PG_CONTROL_PATH);
                let file = (!apart).then_some(self.files.len());
                if !apart {
                    self.files.push(self.entries.len());
                    self.logical_bytes = self.logical_bytes.saturating_add(len);
                    let content = EntryContent::File { len, hash: chunks::file_hash(&[], 0), chunks: Vec::new() };
                    self.entries.push(ManifestEntry { path, mode, modified, content });
                }
                let pages = self.rule.zip(first_block(&shown, self.rule)).filter(|_| len > 0);
                let kept = kept.map(|name| (name, Vec::new()));
                self.open = Some(OpenTarFile { file, len, offset: 0, parts: Vec::new(), parts_len: 0, pages, kept });
                self.close_if_full();
            }
        }
        Ok(())
    }

    fn append_data(&mut self, mut data: Bytes, cuts: &mut Vec<CutChunk>) {
        let Some(open) = &mut self.open else { return };
        if let Some((_, kept)) = &mut open.kept {
            kept.extend_from_slice(&data);
        }
        while !data.is_empty() {
            let room = (CHUNK_BYTES.saturating_sub(open.parts_len)) as usize;
            let part = data.split_to(room.min(data.len()));
            open.parts_len = open.parts_len.saturating_add(u32::try_from(part.len()).unwrap_or(u32::MAX));
            open.parts.push(part);
            let end = open.offset.saturating_add(u64::from(open.parts_len));
            if open.parts_len == CHUNK_BYTES || end == open.len {
                cuts.extend(open.cut_chunk());
            }
        }
        self.close_if_full();
    }

    /// Puts the file away when all of it has come.
    fn close_if_full(&mut self) {
        let Some(open) = self.open.take_if(|open| open.offset == open.len) else { return };
        match open.kept {
            Some((BackupLabel::FILE, content)) => self.backup_label = Some(content),
            Some((TABLESPACE_MAP, content)) => self.tablespace_map = Some(content),
            Some((_, content)) => self.control = Some(content),
            None => {}
        }
    }
}

impl OpenTarFile {
    /// The chunk that has come together; none for the files that stand apart.
    fn cut_chunk(&mut self) -> Option<CutChunk> {
        let (parts, len) = (std::mem::take(&mut self.parts), std::mem::take(&mut self.parts_len));
        let offset = self.offset;
        self.offset = offset.saturating_add(u64::from(len));
        let pages = self.pages.map(|(rule, first)| {
            let skipped = u32::try_from(offset.checked_div(rule.block_size as u64).unwrap_or(0)).unwrap_or(u32::MAX);
            (rule, first.saturating_add(skipped))
        });
        Some(CutChunk { file: self.file?, file_len: self.len, offset, parts, pages })
    }
}

/// The number of the first page of a relation's file; `None` for what is no relation's.
fn first_block(path: &str, rule: Option<ChecksumRule>) -> Option<u32> {
    match datadir::classify_path(path) {
        datadir::PathClass::Relation(file) => file.first_block(rule?.segment_blocks),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{Chunker, CutChunk, hash_chunk};
    use crate::postgres::archive::chunks::{CHUNK_BYTES, ChunkNamer, file_hash};
    use crate::postgres::archive::manifest::EntryContent;
    use crate::postgres::backup::page_checksums::ChecksumRule;
    use crate::postgres::format::lsn::Lsn;
    use crate::vault::seal::ObjectEncryption;

    fn archive(files: &[(&str, &[u8])]) -> Bytes {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in files {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o600);
            header.set_mtime(7);
            header.set_size(content.len() as u64);
            builder.append_data(&mut header, path, *content).unwrap();
        }
        builder.into_inner().unwrap().into()
    }

    fn read(reader: &mut Chunker, tablespace: Option<u32>, bytes: &Bytes, piece: usize) -> Vec<CutChunk> {
        let mut cuts = Vec::new();
        reader.begin_archive(tablespace).unwrap();
        for at in (0..bytes.len()).step_by(piece) {
            reader.push(bytes.slice(at..bytes.len().min(at + piece)), &mut cuts).unwrap();
        }
        reader.finish().unwrap();
        cuts
    }

    #[test]
    fn files_are_cut_the_same_however_they_come() {
        let chunk = CHUNK_BYTES as usize;
        let content: Vec<u8> = (0..CHUNK_BYTES).flat_map(|n| (n / 5).to_le_bytes()).collect();
        let long = &content[..2 * chunk + 100];
        let bytes = archive(&[
            ("backup_label", b"the label"),
            ("tablespace_map", b"the map"),
            ("base/1/1259", long),
            ("base/1/empty", b""),
            ("base/1/2", &content[..chunk]),
            ("global/pg_control", b"control"),
        ]);
        let namer = ChunkNamer::for_current_key(&ObjectEncryption::None);
        for piece in [512, 1000, 32 * 1024 - 9, 1 << 20] {
            let mut reader = Chunker::new(None);
            let cuts = read(&mut reader, None, &bytes, piece);
            let sizes: Vec<_> =
                cuts.iter().map(|cut| (cut.file, cut.offset, cut.parts.iter().map(Bytes::len).sum())).collect();
            let expected = [
                (0, 0, chunk),
                (0, u64::from(CHUNK_BYTES), chunk),
                (0, 2 * u64::from(CHUNK_BYTES), 100),
                (2, 0, chunk),
                (3, 0, 7),
            ];
            assert_eq!(sizes, expected, "pieces of {piece}");
            let values: Vec<_> = cuts.into_iter().take(3).map(|cut| hash_chunk(cut, &namer).value).collect();
            assert_eq!(file_hash(&values, long.len() as u64), *blake3::hash(long).as_bytes());
            assert_eq!(reader.backup_label.as_deref(), Some(&b"the label"[..]));
            assert_eq!(reader.tablespace_map.as_deref(), Some(&b"the map"[..]));
            assert_eq!(reader.control.as_deref(), Some(&b"control"[..]));
            let paths: Vec<_> = reader.entries.iter().map(|entry| entry.path.to_str().unwrap()).collect();
            assert_eq!(paths, ["base/1/1259", "base/1/empty", "base/1/2", "global/pg_control"]);
            assert_eq!(reader.logical_bytes, (long.len() + chunk + 7) as u64);
        }
    }

    #[test]
    fn a_tablespace_stands_under_its_number_and_its_pages_are_checked() {
        let rule = ChecksumRule { block_size: 8192, segment_blocks: 131_072, start: Lsn::new(9) };
        let mut reader = Chunker::new(Some(rule));
        let bytes = archive(&[("PG_15_202209061/5/16385.1", &[1; 8192]), ("PG_15_202209061/5/PG_VERSION", b"15\n")]);
        let cuts = read(&mut reader, Some(16384), &bytes, 4000);
        assert_eq!(reader.entries[0].path.to_str(), Some("pg_tblspc/16384/PG_15_202209061/5/16385.1"));
        assert!(matches!(reader.entries[0].content, EntryContent::File { len: 8192, .. }));
        assert_eq!(cuts[0].pages, Some((rule, 131_072)));
        assert_eq!(cuts[1].pages, None);
    }
}
