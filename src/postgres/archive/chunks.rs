//! Content-addressed chunks of base backups, and the packs they are kept in.
//!
//! A chunk is a piece of a file, cut at a multiple of [`CHUNK_BYTES`] bytes, which is a multiple of every page size.
//! Its name is a keyed hash of its [`chunk_subtree_hash`], so that the same piece at the same place of any file is
//! stored once a cluster, and whoever has not the key cannot tell from a name what is behind it. The values of a file's
//! chunks, which come of one pass over its bytes in any order, also join to the file's own BLAKE3 ([`file_hash`]).
//! Chunks are put together into packs, sealed objects of [`PACK_BYTES`] bytes or so, whose metadata lists them. A pack
//! is never changed; two backups at once may store a chunk twice, in packs of their own, which does no harm.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;

use bytes::Bytes;
use rand::TryRng;
use rand::rngs::SysRng;
use zeroize::Zeroizing;

use crate::postgres::archive::layout::Layout;
use crate::vault::repository::key::{ObjectKey, ObjectKeyError};
use crate::vault::seal::keys::RandomnessError;
use crate::vault::seal::{
    CompressionLevel, EpochKeyId, ObjectBinding, ObjectEncryption, OpenedObject, SealError, SealSpec, SealedKind,
    SealedObject, content_hash, seal_object,
};

/// Bytes of a chunk, the last of a file excepted. Measured: `docs/decisions/` says against what.
pub const CHUNK_BYTES: u32 = 128 << 10;

/// A pack is closed when it holds this many bytes of chunks: large enough that a restore from far away reads at full
/// speed, small enough that a backup holds only a few at a time.
pub const PACK_BYTES: usize = 32 << 20;

/// What derives the key of chunk names.
const CHUNK_NAME_KEY_PURPOSE: &str = "chunk names";
/// The format of a pack's metadata.
const PACK_LIST_VERSION: u8 = 1;
/// Bytes of an entry of a pack's list: name and length.
const PACK_LIST_ENTRY_BYTES: usize = 36;

/// The name of a chunk: a keyed BLAKE3 of its content.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkName([u8; 32]);

impl ChunkName {
    /// The name with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> ChunkName {
        ChunkName(bytes)
    }

    /// The bytes of the name.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ChunkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Gives chunks their names.
pub struct ChunkNamer {
    key: Zeroizing<[u8; 32]>,
    id: EpochKeyId,
}

impl fmt::Debug for ChunkNamer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkNamer({})", self.id)
    }
}

impl ChunkNamer {
    /// The namer of new backups: by the current epoch key.
    #[must_use]
    pub fn for_current_key(protection: &ObjectEncryption) -> ChunkNamer {
        ChunkNamer { key: protection.derived_key(CHUNK_NAME_KEY_PURPOSE), id: protection.current_id() }
    }

    /// The namer of a backup whose summary names this key ([`super::manifest::BackupSummary::naming_key`]). `None` if
    /// the key is not in the ring.
    #[must_use]
    pub fn for_epoch_key(protection: &ObjectEncryption, id: EpochKeyId) -> Option<ChunkNamer> {
        Some(ChunkNamer { key: protection.derived_key_for(id, CHUNK_NAME_KEY_PURPOSE)?, id })
    }

    /// Which epoch key the names come from.
    #[must_use]
    pub const fn id(&self) -> EpochKeyId {
        self.id
    }

    /// The name of the chunk with this [`chunk_subtree_hash`].
    #[must_use]
    pub fn name(&self, value: &ChunkSubtreeHash) -> ChunkName {
        ChunkName(*blake3::keyed_hash(&self.key, value).as_bytes())
    }
}

/// What a chunk contributes to the BLAKE3 of its file.
pub type ChunkSubtreeHash = [u8; 32];

/// The value of a chunk, given in parts, at `offset` of a file of `file_len` bytes: of a file of a single chunk its
/// BLAKE3, else that of a subtree. A chunk is not empty; an empty file has none.
#[must_use]
pub fn chunk_subtree_hash(parts: &[&[u8]], offset: u64, file_len: u64) -> ChunkSubtreeHash {
    if file_len > u64::from(CHUNK_BYTES) {
        return content_hash::subtree_hash(parts, offset);
    }
    let mut hasher = blake3::Hasher::new();
    parts.iter().for_each(|part| {
        hasher.update(part);
    });
    *hasher.finalize().as_bytes()
}

/// The BLAKE3 of a file of `len` bytes, from the values of its chunks in order.
#[must_use]
pub fn file_hash(values: &[ChunkSubtreeHash], len: u64) -> [u8; 32] {
    if len == 0 { *blake3::hash(&[]).as_bytes() } else { content_hash::root_hash(values, len, CHUNK_BYTES) }
}

/// The name of a pack: 16 random bytes, printed as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackId([u8; 16]);

impl PackId {
    /// A new one, like no other.
    ///
    /// # Errors
    /// [`RandomnessError`].
    pub fn random() -> Result<PackId, RandomnessError> {
        let mut id = [0; 16];
        SysRng.try_fill_bytes(&mut id).map_err(|_unavailable| RandomnessError)?;
        Ok(PackId(id))
    }

    /// The id with these bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 16]) -> PackId {
        PackId(bytes)
    }

    /// The bytes of the id.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// Reads what [`PackId`] prints.
    #[must_use]
    pub fn parse(text: &str) -> Option<PackId> {
        let plain = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if plain { u128::from_str_radix(text, 16).ok().map(|id| PackId(id.to_be_bytes())) } else { None }
    }
}

impl fmt::Display for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Debug for PackId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A pack cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// Its object cannot be made.
    #[error(transparent)]
    Seal(#[from] SealError),
    /// Its key cannot be made.
    #[error(transparent)]
    Key(#[from] ObjectKeyError),
    /// Its list of chunks is not one.
    #[error("pack {0} opens, but its list of chunks makes no sense; it was written by a faulty program")]
    MalformedList(PackId),
    /// A chunk is not where its manifest says.
    #[error(
        "pack {pack} does not have chunk {chunk} where the manifest says; the manifest was written by a faulty program"
    )]
    ChunkElsewhere {
        /// The pack.
        pack: PackId,
        /// The chunk.
        chunk: ChunkName,
    },
}

/// What the object of a pack is bound to.
///
/// # Errors
/// [`ObjectKeyError`], which no id of ours gives.
pub fn pack_binding(layout: &Layout, id: PackId) -> Result<(ObjectKey, ObjectBinding), ObjectKeyError> {
    let key = layout.pack(&id.to_string())?;
    let binding = ObjectBinding::new(SealedKind::Pack, key.as_str());
    Ok((key, binding))
}

/// A pack that is being filled.
#[derive(Debug)]
pub struct PackBuilder {
    id: PackId,
    names: Vec<(ChunkName, u32)>,
    content: Vec<Bytes>,
    len: usize,
}

impl PackBuilder {
    /// An empty one under a new id.
    ///
    /// # Errors
    /// [`RandomnessError`].
    pub fn new() -> Result<PackBuilder, RandomnessError> {
        Ok(PackBuilder { id: PackId::random()?, names: Vec::new(), content: Vec::new(), len: 0 })
    }

    /// Its id.
    #[must_use]
    pub const fn id(&self) -> PackId {
        self.id
    }

    /// How many bytes of chunks it holds.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Adds a chunk of at most [`CHUNK_BYTES`] bytes, in the pieces it came in, and says where it begins.
    pub fn push(&mut self, name: ChunkName, pieces: &[Bytes]) -> u32 {
        let len: usize = pieces.iter().map(Bytes::len).sum();
        assert!(len <= CHUNK_BYTES as usize, "a chunk of {len} bytes, and {CHUNK_BYTES} at most");
        // An offset that did not fit would make a restore read another chunk.
        assert!(self.len <= u32::MAX as usize - len, "a pack of {} bytes and {len} more", self.len);
        let offset = u32::try_from(self.len).unwrap_or(u32::MAX);
        self.names.push((name, u32::try_from(len).unwrap_or(u32::MAX)));
        self.content.extend(pieces.iter().cloned());
        self.len += len;
        offset
    }

    /// The pack's object.
    ///
    /// # Errors
    /// [`PackError`].
    pub fn seal(
        &self,
        layout: &Layout,
        protection: &ObjectEncryption,
        level: CompressionLevel,
        threads: usize,
    ) -> Result<SealedPack, PackError> {
        let (key, binding) = pack_binding(layout, self.id)?;
        let metadata = list_bytes(&self.names);
        let plain: Vec<&[u8]> = self.content.iter().map(|piece| &piece[..]).collect();
        // Every chunk has a hash already, and nobody compares packs.
        let spec = SealSpec { level, threads, metadata: &metadata, content: false, ..SealSpec::new(&binding) };
        Ok(SealedPack { key, object: seal_object(&plain, &spec, protection)? })
    }
}

/// A pack ready to be put.
#[derive(Debug)]
pub struct SealedPack {
    /// Where it belongs.
    pub key: ObjectKey,
    /// What is to be put there.
    pub object: SealedObject,
}

fn list_bytes(names: &[(ChunkName, u32)]) -> Vec<u8> {
    let mut list = Vec::with_capacity(names.len().saturating_mul(PACK_LIST_ENTRY_BYTES).saturating_add(1));
    list.push(PACK_LIST_VERSION);
    for (name, len) in names {
        list.extend_from_slice(name.as_bytes());
        list.extend_from_slice(&len.to_le_bytes());
    }
    list
}

/// Where a chunk is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ManifestChunk {
    /// Its name: a keyed hash of its content.
    pub name: ChunkName,
    /// Its pack, as an index into [`super::manifest::Manifest::packs`].
    pub pack: u32,
    /// Where in the pack's plaintext it begins.
    pub offset: u32,
    /// How long it is; never zero.
    pub len: u32,
}

/// Which chunks a pack holds, and where: from the end of its object alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PackList {
    /// The pack.
    pub id: PackId,
    chunks: Vec<(ChunkName, Range<u32>)>,
}

impl PackList {
    /// Reads the metadata of a pack's object whose plaintext is `plain_len` bytes long.
    ///
    /// # Errors
    /// [`PackError::MalformedList`].
    pub fn parse(id: PackId, metadata: &[u8], plain_len: u64) -> Result<PackList, PackError> {
        let Some((&PACK_LIST_VERSION, list)) = metadata.split_first() else { return Err(PackError::MalformedList(id)) };
        let (entries, rest) = list.as_chunks::<PACK_LIST_ENTRY_BYTES>();
        let mut chunks = Vec::with_capacity(entries.len());
        let mut offset = 0_u32;
        for entry in entries {
            let (name, len) = entry.split_first_chunk::<32>().ok_or(PackError::MalformedList(id))?;
            let len = len.first_chunk::<4>().map_or(0, |len| u32::from_le_bytes(*len));
            let end = offset.checked_add(len).ok_or(PackError::MalformedList(id))?;
            chunks.push((ChunkName(*name), offset..end));
            offset = end;
        }
        if rest.is_empty() && u64::from(offset) == plain_len {
            Ok(PackList { id, chunks })
        } else {
            Err(PackError::MalformedList(id))
        }
    }

    /// Each chunk, and where it is in the pack's plaintext.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = (ChunkName, Range<u32>)> {
        self.chunks.iter().cloned()
    }
}

/// A pack that was read and opened.
#[derive(Clone, Debug)]
pub struct Pack {
    list: PackList,
    plain: Bytes,
}

impl Pack {
    /// The pack in an object that was opened under the key of [`pack_binding`].
    ///
    /// # Errors
    /// [`PackError::MalformedList`].
    pub fn from_opened(id: PackId, opened: OpenedObject) -> Result<Pack, PackError> {
        Ok(Pack { list: PackList::parse(id, &opened.metadata, opened.plain.len() as u64)?, plain: opened.plain })
    }

    /// Which chunks it holds.
    #[must_use]
    pub const fn list(&self) -> &PackList {
        &self.list
    }

    /// Each chunk with its content.
    pub fn chunks(&self) -> impl ExactSizeIterator<Item = (ChunkName, Bytes)> {
        self.list.chunks.iter().map(|(name, range)| (*name, self.slice(range)))
    }

    /// The chunk that a manifest says is at `offset`.
    ///
    /// # Errors
    /// [`PackError::ChunkElsewhere`] if another one is there, or none.
    pub fn chunk(&self, chunk: &ManifestChunk) -> Result<Bytes, PackError> {
        let found = self.list.chunks.binary_search_by_key(&chunk.offset, |(_, range)| range.start).ok();
        let found = found.and_then(|at| self.list.chunks.get(at));
        match found {
            Some((name, range)) if *name == chunk.name && range.end.checked_sub(range.start) == Some(chunk.len) => {
                Ok(self.slice(range))
            }
            _ => Err(PackError::ChunkElsewhere { pack: self.list.id, chunk: chunk.name }),
        }
    }

    fn slice(&self, range: &Range<u32>) -> Bytes {
        self.plain.slice(range.start as usize..range.end as usize)
    }
}

/// Where every chunk is that a new backup need not store again.
///
/// Takes about 100 bytes a chunk: 800 MB for 1 TB of different chunks.
#[derive(Debug, Default)]
pub struct KnownChunks {
    chunks: HashMap<ChunkName, (PackId, u32, u32)>,
}

impl KnownChunks {
    /// Learns where a chunk is; the first place stays.
    pub fn insert(&mut self, name: ChunkName, pack: PackId, offset: u32, len: u32) {
        self.chunks.entry(name).or_insert((pack, offset, len));
    }

    /// Pack, offset and length of a chunk that is stored.
    #[must_use]
    pub fn get(&self, name: &ChunkName) -> Option<(PackId, u32, u32)> {
        self.chunks.get(name).copied()
    }

    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.chunks.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{
        CHUNK_BYTES, ChunkName, ChunkNamer, ManifestChunk, Pack, PackBuilder, PackError, PackId, PackList,
        chunk_subtree_hash, file_hash, pack_binding,
    };
    use crate::postgres::archive::layout::Layout;
    use crate::vault::seal::keys::EpochKey;
    use crate::vault::seal::{CompressionLevel, EpochKeyId, KeyRing, ObjectEncryption, open_object};

    fn keys(byte: u8) -> ObjectEncryption {
        ObjectEncryption::Encrypted(KeyRing::new(EpochKeyId::from_bytes([byte; 16]), EpochKey::from_bytes([byte; 32])))
    }

    fn layout() -> Layout {
        Layout::new("main".parse().unwrap())
    }

    fn name(namer: &ChunkNamer, content: &[u8]) -> ChunkName {
        namer.name(&chunk_subtree_hash(&[content], 0, content.len() as u64))
    }

    fn filled(namer: &ChunkNamer) -> (PackBuilder, Vec<ManifestChunk>) {
        let mut builder = PackBuilder::new().unwrap();
        let chunks = (1..200_u8)
            .map(|byte| {
                let content = vec![byte; usize::from(byte) * 100];
                let name = name(namer, &content);
                let (first, second) = content.split_at(content.len() / 3);
                let offset = builder.push(name, &[Bytes::copy_from_slice(first), Bytes::copy_from_slice(second)]);
                ManifestChunk { name, pack: 0, offset, len: u32::try_from(content.len()).unwrap() }
            })
            .collect();
        (builder, chunks)
    }

    fn opened(builder: &PackBuilder, protection: &ObjectEncryption) -> Pack {
        let sealed = builder.seal(&layout(), protection, CompressionLevel::Auto, 2).unwrap();
        let (key, binding) = pack_binding(&layout(), builder.id()).unwrap();
        assert_eq!(key, sealed.key);
        Pack::from_opened(builder.id(), open_object(&sealed.object.to_bytes(), &binding, protection, 2).unwrap())
            .unwrap()
    }

    #[test]
    fn chunks_come_back_from_where_the_manifest_says() {
        for protection in [keys(1), ObjectEncryption::None] {
            let namer = ChunkNamer::for_current_key(&protection);
            let (builder, chunks) = filled(&namer);
            let pack = opened(&builder, &protection);
            for chunk in &chunks {
                assert_eq!(name(&namer, &pack.chunk(chunk).unwrap()), chunk.name);
            }
            assert!(pack.chunks().all(|(named, content)| name(&namer, &content) == named));
            assert_eq!(pack.chunks().len(), chunks.len());
            for wrong in [
                ManifestChunk { offset: chunks[1].offset + 1, ..chunks[1] },
                ManifestChunk { len: chunks[1].len + 1, ..chunks[1] },
                ManifestChunk { name: chunks[2].name, ..chunks[1] },
            ] {
                assert!(matches!(pack.chunk(&wrong), Err(PackError::ChunkElsewhere { .. })));
            }
        }
    }

    #[test]
    fn names_say_nothing_without_the_key() {
        let name = |protection: &ObjectEncryption| name(&ChunkNamer::for_current_key(protection), b"content");
        assert_eq!(name(&keys(1)), name(&keys(1)));
        assert_ne!(name(&keys(1)), name(&keys(2)));
        assert_ne!(*name(&keys(1)).as_bytes(), *blake3::hash(b"content").as_bytes());
        let namer = ChunkNamer::for_epoch_key(&keys(1), EpochKeyId::from_bytes([1; 16])).unwrap();
        assert_eq!(namer.name(&chunk_subtree_hash(&[b"content"], 0, 7)), name(&keys(1)));
        assert!(ChunkNamer::for_epoch_key(&keys(1), EpochKeyId::from_bytes([2; 16])).is_none());
    }

    #[test]
    #[should_panic(expected = "a chunk of 131073 bytes")]
    fn a_chunk_that_is_too_long_is_a_bug() {
        let name = name(&ChunkNamer::for_current_key(&keys(1)), b"content");
        PackBuilder::new().unwrap().push(name, &[vec![0; CHUNK_BYTES as usize].into(), Bytes::from_static(b"1")]);
    }

    #[test]
    fn the_values_of_chunks_join_to_the_ordinary_hash_of_the_file() {
        let chunk = CHUNK_BYTES as usize;
        let content: Vec<u8> = (0..CHUNK_BYTES).flat_map(|n| (n / 3).to_le_bytes()).collect();
        for len in [0, 1, 1000, chunk - 1, chunk, chunk + 1, 2 * chunk, 3 * chunk, 3 * chunk + 17, 4 * chunk] {
            let file = &content[..len];
            let values: Vec<_> = file
                .chunks(chunk)
                .enumerate()
                .map(|(n, part)| {
                    chunk_subtree_hash(
                        &[&part[..part.len() / 3], &part[part.len() / 3..]],
                        (n * chunk) as u64,
                        len as u64,
                    )
                })
                .collect();
            assert_eq!(file_hash(&values, len as u64), *blake3::hash(file).as_bytes(), "{len} bytes");
        }
    }

    #[test]
    fn a_list_that_makes_no_sense_is_refused() {
        let id = PackId::from_bytes([0xAB; 16]);
        assert_eq!(PackId::parse(&id.to_string()), Some(id));
        let mut list = vec![1];
        list.extend([7; 32]);
        list.extend(100_u32.to_le_bytes());
        assert_eq!(PackList::parse(id, &list, 100).unwrap().chunks().len(), 1);
        assert!(PackList::parse(id, &list, 99).is_err());
        for len in 0..list.len() {
            assert!(PackList::parse(id, &list[..len], 100).is_err(), "cut to {len}");
        }
        list[0] = 2;
        assert!(PackList::parse(id, &list, 100).is_err());
    }

    #[test]
    fn a_pack_of_another_cluster_or_name_does_not_open() {
        let (builder, _) = filled(&ChunkNamer::for_current_key(&keys(1)));
        let sealed = builder.seal(&layout(), &keys(1), CompressionLevel::Auto, 1).unwrap().object.to_bytes();
        let attempt = |layout: &Layout, id| open_object(&sealed, &pack_binding(layout, id).unwrap().1, &keys(1), 1);
        assert!(attempt(&layout(), builder.id()).is_ok());
        assert!(attempt(&Layout::new("other".parse().unwrap()), builder.id()).is_err());
        assert!(attempt(&layout(), PackId::random().unwrap()).is_err());
    }
}
