//! The tar stream of `BASE_BACKUP`: bytes in, entries and their content out, any split (`tarCreateHeader`,
//! `basebackup.c`).
//!
//! Only what PostgreSQL writes: plain ustar headers with files, directories and symbolic links. Pure, and copies
//! nothing but headers.

use bytes::{Buf, Bytes, BytesMut};

const TAR_BLOCK_BYTES: usize = 512;

/// What the stream brings next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TarEvent {
    /// An entry begins; if it is a file, its content follows.
    Entry(TarEntry),
    /// The next bytes of the file that began last.
    Data(Bytes),
}

/// An entry's header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TarEntry {
    /// Its path, without a slash at the end.
    pub(super) path: Vec<u8>,
    pub(super) kind: TarEntryKind,
    /// Permission bits.
    pub(super) mode: u32,
    /// Seconds since 1970.
    pub(super) modified: i64,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TarEntryKind {
    /// A file of so many bytes.
    File(u64),
    Directory,
    /// A symbolic link, and where it leads.
    Link(Vec<u8>),
}

/// The stream is not what PostgreSQL sends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TarError {
    /// A header's checksum is wrong.
    #[error("a header of the server's archive is damaged, {at} bytes from its beginning")]
    Checksum {
        /// Where.
        at: u64,
    },
    /// A header holds what it cannot.
    #[error("a header of the server's archive makes no sense ({field}), {at} bytes from its beginning")]
    Field {
        /// Which field.
        field: &'static str,
        /// Where.
        at: u64,
    },
    /// The stream ended too early.
    #[error("the server's archive ends in the middle of an entry")]
    Truncated,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TarState {
    /// Between entries, or within a header.
    Header,
    /// Within a file; so many bytes of it and of the padding after it are to come.
    Body { left: u64, padding: u64 },
    /// After a block of zeros, which ends the archive: the rest is zeros, too.
    End,
}

/// Reads one archive.
#[derive(Debug)]
pub(super) struct TarReader {
    state: TarState,
    header: BytesMut,
    input: Bytes,
    at: u64,
}

impl TarReader {
    pub(super) fn new() -> TarReader {
        TarReader { state: TarState::Header, header: BytesMut::new(), input: Bytes::new(), at: 0 }
    }

    /// Takes the next piece; what was there before must have been polled out.
    pub(super) fn push(&mut self, piece: Bytes) {
        debug_assert!(self.input.is_empty(), "polled until there was nothing more");
        self.input = piece;
    }

    /// The next event; `None` when more input is needed.
    pub(super) fn poll(&mut self) -> Result<Option<TarEvent>, TarError> {
        while self.input.has_remaining() {
            match self.state {
                TarState::Body { left: 0, padding: 0 } => self.state = TarState::Header,
                TarState::Body { left: 0, padding } => {
                    let skipped = self.split_input(padding).len() as u64;
                    self.state = TarState::Body { left: 0, padding: padding.saturating_sub(skipped) };
                }
                TarState::Body { left, padding } => {
                    let data = self.split_input(left);
                    self.state = TarState::Body { left: left.saturating_sub(data.len() as u64), padding };
                    return Ok(Some(TarEvent::Data(data)));
                }
                TarState::Header => {
                    if let Some(entry) = self.read_header()? {
                        return Ok(Some(TarEvent::Entry(entry)));
                    }
                }
                TarState::End => drop(self.split_input(u64::MAX)),
            }
        }
        Ok(None)
    }

    /// Says whether the stream may end here. PostgreSQL 13 and 14 leave out the zeros at the end.
    pub(super) fn finish(&self) -> Result<(), TarError> {
        match self.state {
            TarState::Body { left: 0, padding: 0 } | TarState::End => Ok(()),
            TarState::Header if self.header.is_empty() => Ok(()),
            TarState::Body { .. } | TarState::Header => Err(TarError::Truncated),
        }
    }

    fn split_input(&mut self, len: u64) -> Bytes {
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(self.input.len());
        self.at = self.at.saturating_add(len as u64);
        self.input.split_to(len)
    }

    fn read_header(&mut self) -> Result<Option<TarEntry>, TarError> {
        let missing = TAR_BLOCK_BYTES.saturating_sub(self.header.len());
        let part = self.split_input(missing as u64);
        self.header.extend_from_slice(&part);
        if self.header.len() < TAR_BLOCK_BYTES {
            return Ok(None);
        }
        let at = self.at.saturating_sub(TAR_BLOCK_BYTES as u64);
        let header = self.header.split();
        if header.iter().all(|byte| *byte == 0) {
            self.state = TarState::End;
            return Ok(None);
        }
        let entry = parse_header(&header, at)?;
        let left = if let TarEntryKind::File(len) = entry.kind { len } else { 0 };
        let padding = left.next_multiple_of(TAR_BLOCK_BYTES as u64).saturating_sub(left);
        self.state = TarState::Body { left, padding };
        Ok(Some(entry))
    }
}

fn parse_header(header: &[u8], at: u64) -> Result<TarEntry, TarError> {
    let wrong = |field| TarError::Field { field, at };
    let field = |from: usize, to: usize| header.get(from..to).unwrap_or_default();
    // The checksum counts its own field as blanks.
    let sum: u64 =
        header.iter().zip(0_usize..).map(|(b, n)| if (148..156).contains(&n) { 32 } else { u64::from(*b) }).sum();
    if parse_number(field(148, 156)) != Some(sum) {
        return Err(TarError::Checksum { at });
    }
    let name = trim_field(field(0, 100));
    let prefix = trim_field(field(345, 500));
    let joined = if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() };
    let path = joined.strip_prefix(b"./").unwrap_or(&joined);
    let path = path.strip_suffix(b"/").unwrap_or(path).to_vec();
    let kind = match header.get(156) {
        Some(b'0' | 0) => {
            TarEntryKind::File(parse_number(field(124, 136)).filter(|len| *len < 1 << 60).ok_or(wrong("size"))?)
        }
        Some(b'5') => TarEntryKind::Directory,
        Some(b'2') => TarEntryKind::Link(trim_field(field(157, 257)).to_vec()),
        _ => return Err(wrong("type")),
    };
    let mode = parse_number(field(100, 108)).and_then(|mode| u32::try_from(mode).ok()).ok_or(wrong("mode"))?;
    let modified = parse_time(field(136, 148)).ok_or(wrong("mtime"))?;
    Ok(TarEntry { path, kind, mode: mode & 0o7777, modified })
}

fn trim_field(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits, or in binary if the top bit is set (`print_tar_number`).
fn parse_number(field: &[u8]) -> Option<u64> {
    match field.split_first()? {
        (0x80, rest) => rest.iter().try_fold(0_u64, |sum, byte| Some(sum.checked_mul(256)? | u64::from(*byte))),
        _ => {
            let digits = trim_field(field).trim_ascii();
            let plain = !digits.is_empty() && digits.iter().all(|digit| matches!(digit, b'0'..=b'7'));
            let fold = |sum: u64, digit: &u8| Some(sum.checked_mul(8)? | u64::from(digit & 7));
            if plain { digits.iter().try_fold(0_u64, fold) } else { None }
        }
    }
}

/// A time, which may be before 1970. PostgreSQL writes that as the 64 bits of the negative number, after the marker of
/// binary numbers and zeros (`print_tar_number`, which takes it for unsigned); GNU tar extends the sign instead.
fn parse_time(field: &[u8]) -> Option<i64> {
    match field.split_last_chunk::<8>()? {
        (rest, last) if rest.first().is_some_and(|first| first & 0x80 != 0) => {
            let value = i64::from_be_bytes(*last);
            let (marker, padding) = rest.split_first()?;
            let extended = *marker == 0xFF && value < 0 && padding.iter().all(|byte| *byte == 0xFF);
            let plain = *marker == 0x80 && padding.iter().all(|byte| *byte == 0);
            (extended || plain).then_some(value)
        }
        _ => parse_number(field).and_then(|time| i64::try_from(time).ok()),
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{TarEntry, TarEntryKind, TarError, TarEvent, TarReader};

    /// Written by the `tar` crate, which is not ours.
    fn archive() -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        let mut add = |path: &str, kind: tar::EntryType, content: &[u8]| {
            let mut header = tar::Header::new_ustar();
            header.set_entry_type(kind);
            header.set_mode(0o640);
            header.set_mtime(1_790_000_000);
            header.set_size(content.len() as u64);
            if kind.is_symlink() {
                builder.append_link(&mut header, path, "/srv/elsewhere").unwrap();
            } else {
                builder.append_data(&mut header, path, content).unwrap();
            }
        };
        add("backup_label", tar::EntryType::Regular, b"START WAL LOCATION");
        add("base/", tar::EntryType::Directory, b"");
        add("base/1259", tar::EntryType::Regular, &[7; 1024]);
        add("base/empty", tar::EntryType::Regular, b"");
        add("pg_tblspc/1", tar::EntryType::Symlink, b"");
        add("base/1260", tar::EntryType::Regular, &[8; 1500]);
        builder.into_inner().unwrap()
    }

    /// Entries with the content put together again.
    fn read(pieces: impl Iterator<Item = Bytes>) -> Result<Vec<(TarEntry, Vec<u8>)>, TarError> {
        let mut reader = TarReader::new();
        let mut read: Vec<(TarEntry, Vec<u8>)> = Vec::new();
        for piece in pieces {
            reader.push(piece);
            while let Some(event) = reader.poll()? {
                match event {
                    TarEvent::Entry(entry) => read.push((entry, Vec::new())),
                    TarEvent::Data(data) => read.last_mut().unwrap().1.extend_from_slice(&data),
                }
            }
        }
        reader.finish()?;
        Ok(read)
    }

    fn whole() -> Vec<(TarEntry, Vec<u8>)> {
        read([archive().into()].into_iter()).unwrap()
    }

    #[test]
    fn reads_what_the_tar_crate_writes() {
        let read = whole();
        let paths: Vec<_> = read.iter().map(|(entry, _)| String::from_utf8(entry.path.clone()).unwrap()).collect();
        assert_eq!(paths, ["backup_label", "base", "base/1259", "base/empty", "pg_tblspc/1", "base/1260"]);
        assert_eq!(read[1].0.kind, TarEntryKind::Directory);
        assert_eq!(read[4].0.kind, TarEntryKind::Link(b"/srv/elsewhere".to_vec()));
        assert_eq!((read[2].0.kind.clone(), &read[2].1), (TarEntryKind::File(1024), &vec![7; 1024]));
        assert_eq!((read[5].0.kind.clone(), &read[5].1), (TarEntryKind::File(1500), &vec![8; 1500]));
        assert_eq!((read[5].0.mode, read[5].0.modified), (0o640, 1_790_000_000));
    }

    /// As `print_tar_number` writes a size of 8 GiB or more.
    #[test]
    fn sizes_beyond_octal_are_read() {
        assert_eq!(super::parse_number(&[0x80, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1]), Some((2 << 32) + 1));
        assert_eq!(super::parse_number(b"00000001750\0"), Some(1000));
        assert_eq!(super::parse_number(b"0000000175x\0"), None);
        assert_eq!(super::parse_number(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None, "beyond 64 bits");
    }

    /// As `print_tar_number` and as GNU tar write a time before 1970.
    #[test]
    fn times_before_1970_are_read() {
        assert_eq!(super::parse_time(b"00000001750\0"), Some(1000));
        for value in [-1, -86_400, i64::MIN] {
            for front in [[0x80, 0, 0, 0], [0xFF; 4]] {
                assert_eq!(super::parse_time(&[&front[..], &value.to_be_bytes()[..]].concat()), Some(value));
            }
        }
        assert_eq!(super::parse_time(&[0x80, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0]), Some(1 << 40));
        assert_eq!(super::parse_time(&[0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), None, "beyond 64 bits");
    }

    #[test]
    fn a_cut_or_damaged_archive_is_found() {
        let bytes = archive();
        let end = bytes.len() - 1024;
        assert!(read([Bytes::copy_from_slice(&bytes[..end])].into_iter()).is_ok(), "13 and 14 leave out the zeros");
        for cut in [100, 511, 513, 530, end - 1, end - 600] {
            let cut = Bytes::copy_from_slice(&bytes[..cut]);
            assert_eq!(read([cut].into_iter()), Err(TarError::Truncated));
        }
        for at in 0..512 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert!(read([damaged.into()].into_iter()).is_err(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn any_split_reads_the_same(sizes in prop::collection::vec(1..700_usize, 1..40)) {
            let mut rest = Bytes::from(archive());
            let mut sizes = sizes.into_iter().cycle();
            let pieces = std::iter::from_fn(|| {
                let size = sizes.next().unwrap().min(rest.len());
                (size > 0).then(|| rest.split_to(size))
            });
            prop_assert_eq!(read(pieces).unwrap(), whole());
        }

        #[test]
        fn anything_is_survived(data in prop::collection::vec(any::<u8>(), 0..2000)) {
            drop(read([data.into()].into_iter()));
        }
    }
}
