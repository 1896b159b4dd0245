use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use tempfile::TempDir;

use super::super::delta::marker_text;
use super::{PG_CONTROL_PATH, Placement, PlacementError, STAGED_PG_CONTROL_NAME};
use crate::base::clock::SystemClock;
use crate::postgres::archive::Archive;
use crate::postgres::archive::chunks::{
    CHUNK_BYTES, ChunkNamer, ChunkSubtreeHash, PackBuilder, PackId, chunk_subtree_hash, file_hash, pack_binding,
};
use crate::postgres::archive::manifest::{
    BackupDefects, BackupSummary, EntryContent, MANIFEST_FORMAT, Manifest, ManifestChunk, ManifestEntry,
    ManifestTablespace,
};
use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::pg_control::{PgControl, RequiredSettings};
use crate::postgres::format::segment::{SegmentSize, SystemId};
use crate::postgres::format::timeline::TimelineId;
use crate::postgres::restore::destination::{CheckedDestination, Destination, DestinationError, RESTORE_MARKER};
use crate::vault::repository::RepositoryOptions;
use crate::vault::seal::CompressionLevel;
use crate::vault::{RepositoryLocation, Vault, VaultSettings};

const PG_CONTROL: &[u8] = include_bytes!("../../../../tests/fixtures/control/15-production.pg_control");

/// A backup made by hand, its packs in an archive on disk.
struct Stored {
    root: TempDir,
    archive: Arc<Archive>,
    manifest: Manifest,
    files: BTreeMap<PathBuf, Vec<u8>>,
}

async fn archive(root: &Path) -> Arc<Archive> {
    let url = root.join("repository").to_str().unwrap().to_owned();
    let settings = VaultSettings {
        places: vec![RepositoryLocation { name: "local".into(), url, options: RepositoryOptions::new() }],
        key: None,
        level: CompressionLevel::Auto,
        threads: 2,
        clock: SystemClock::shared(),
    };
    Arc::new(Archive::new(Arc::new(Vault::create(settings).await.unwrap()), "main".parse().unwrap()))
}

fn summary(tablespaces: Vec<ManifestTablespace>, namer: &ChunkNamer, logical_bytes: u64) -> BackupSummary {
    BackupSummary {
        format: MANIFEST_FORMAT,
        label: "20261122T020000Z-F".into(),
        system_id: SystemId::new(7),
        server_version: "15.20".into(),
        major_version: 15,
        catalog_version: 202_209_061,
        segment_size: SegmentSize::DEFAULT,
        block_size: 8192,
        data_checksums: true,
        required: RequiredSettings::default(),
        from_standby: false,
        timeline: TimelineId::FIRST,
        start_lsn: Lsn::new(0x200_0028),
        checkpoint_lsn: Lsn::new(0x200_0060),
        stop_lsn: Lsn::new(0x200_0100),
        started_at: Timestamp::UNIX_EPOCH,
        finished_at: Timestamp::UNIX_EPOCH,
        tablespaces,
        logical_bytes,
        stored_bytes: 0,
        files: 0,
        chunks: 0,
        new_chunks: 0,
        pages_checked: 0,
        torn_pages: 0,
        naming_key: namer.id(),
        defects: BackupDefects::default(),
        left_out: Vec::new(),
    }
}

/// Content that differs from one place to the next, and between files.
fn noise(len: usize, seed: u32) -> Vec<u8> {
    (0..len)
        .map(|i| ((u32::try_from(i).unwrap() / 7).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 24) as u8)
        .collect()
}

impl Stored {
    /// Small and large files, an empty one, two that share chunks, one in a tablespace; in packs of three chunks, so
    /// that large files are in several, and the chunks of one are not in the order of the file.
    async fn make() -> Stored {
        let root = tempfile::tempdir().unwrap();
        let chunk = CHUNK_BYTES as usize;
        let large = noise(5 * chunk + 17, 1);
        let files: BTreeMap<PathBuf, Vec<u8>> = [
            ("PG_VERSION", b"15\n".to_vec()),
            ("global/pg_control", PG_CONTROL.to_vec()),
            ("base/5/1", large.clone()),
            ("base/5/2", [&large[..2 * chunk], &noise(chunk, 2)].concat()),
            ("base/5/3", noise(chunk, 3)),
            ("base/5/empty", Vec::new()),
            ("pg_tblspc/16400/PG_15_202209061/5/4", noise(2 * chunk, 4)),
            ("postgresql.auto.conf", b"work_mem = '8MB'\n".to_vec()),
            ("standby.signal", Vec::new()),
        ]
        .map(|(path, content)| (PathBuf::from(path), content))
        .into();
        let archive = archive(root.path()).await;
        let (packs, chunks, mut entries) = store(&archive, &files).await;
        for path in [
            "base",
            "base/5",
            "global",
            "pg_tblspc",
            "pg_tblspc/16400/PG_15_202209061",
            "pg_tblspc/16400/PG_15_202209061/5",
        ] {
            entries.insert(
                0,
                ManifestEntry { path: path.into(), mode: 0o700, modified: 0, content: EntryContent::Directory },
            );
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let spaces =
            vec![ManifestTablespace { oid: 16_400, location: root.path().join("old").to_string_lossy().into_owned() }];
        let namer = ChunkNamer::for_current_key(archive.vault().protection());
        let total = files.values().map(|content| content.len() as u64).sum();
        let summary = summary(spaces, &namer, total);
        let manifest =
            Manifest { summary, packs, chunks, entries, backup_label: b"label".to_vec(), tablespace_map: None };
        Stored { root, archive, manifest, files }
    }

    fn place(&self, name: &str) -> Result<Arc<Placement>, PlacementError> {
        let destination = Destination {
            pgdata: self.root.path().join(name),
            mapping: vec![(self.root.path().join("old"), self.root.path().join(format!("{name}-space")))],
        };
        let ground =
            CheckedDestination::check(&destination, &self.manifest.summary.tablespaces, &self.manifest.entries)?;
        Ok(Arc::new(Placement::new(Arc::new(self.manifest.clone()), ground)?))
    }

    fn restored(&self, name: &str, path: &Path) -> PathBuf {
        match path.strip_prefix("pg_tblspc/16400") {
            Ok(rest) => self.root.path().join(format!("{name}-space")).join(rest),
            Err(_) => self.root.path().join(name).join(path),
        }
    }
}

async fn store(
    archive: &Archive,
    files: &BTreeMap<PathBuf, Vec<u8>>,
) -> (Vec<PackId>, Vec<ManifestChunk>, Vec<ManifestEntry>) {
    let namer = ChunkNamer::for_current_key(archive.vault().protection());
    let (mut packs, mut chunks, mut entries) = (Vec::new(), Vec::<ManifestChunk>::new(), Vec::new());
    let mut builder = PackBuilder::new().unwrap();
    for (path, content) in files {
        let parts: Vec<&[u8]> = content.chunks(CHUNK_BYTES as usize).collect();
        let values: Vec<ChunkSubtreeHash> = (0..)
            .zip(&parts)
            .map(|(n, part)| chunk_subtree_hash(&[part], n * u64::from(CHUNK_BYTES), content.len() as u64))
            .collect();
        let mut numbers = vec![0; parts.len()];
        for (n, part) in parts.iter().enumerate().rev() {
            let name = namer.name(&values[n]);
            let known = chunks.iter().position(|chunk| chunk.name == name);
            numbers[n] = u32::try_from(known.unwrap_or(chunks.len())).unwrap();
            if known.is_none() {
                let offset = builder.push(name, &[Bytes::copy_from_slice(part)]);
                let len = u32::try_from(part.len()).unwrap();
                chunks.push(ManifestChunk { name, pack: u32::try_from(packs.len()).unwrap(), offset, len });
            }
            if builder.len() >= 3 * CHUNK_BYTES as usize {
                packs.push(put(archive, std::mem::replace(&mut builder, PackBuilder::new().unwrap())).await);
            }
        }
        let len = content.len() as u64;
        let content = EntryContent::File { len, hash: file_hash(&values, len), chunks: numbers };
        entries.push(ManifestEntry { path: path.clone(), mode: 0o600, modified: 0, content });
    }
    packs.push(put(archive, builder).await);
    (packs, chunks, entries)
}

async fn put(archive: &Archive, builder: PackBuilder) -> PackId {
    let sealed = builder.seal(archive.layout(), archive.vault().protection(), CompressionLevel::Auto, 1).unwrap();
    archive.vault().put_sealed(&sealed.key, &sealed.object).await.unwrap();
    builder.id()
}

#[tokio::test]
async fn every_file_is_where_it_belongs_and_pg_control_comes_last() {
    let stored = Stored::make().await;
    let placement = stored.place("data").unwrap();
    placement.create_layout().unwrap();
    placement.write_packs(&stored.archive).await.unwrap();
    let global = stored.root.path().join("data/global");
    assert!(!global.join("pg_control").exists() && global.join(STAGED_PG_CONTROL_NAME).exists());
    assert!(stored.root.path().join("data").join(RESTORE_MARKER).exists());
    assert_eq!(placement.read_placed("postgresql.auto.conf").unwrap(), "work_mem = '8MB'\n");
    placement.write_extra_file("backup_label", b"label").unwrap();
    placement.finish().unwrap();

    for (path, content) in stored.files.iter().filter(|(path, _)| *path != Path::new("standby.signal")) {
        let restored = stored.restored("data", path);
        assert!(fs::read(&restored).unwrap() == *content, "{}", path.display());
        assert_eq!(restored.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
    }
    assert!(!stored.restored("data", Path::new("standby.signal")).exists(), "it would make the server a standby");
    assert!(!stored.root.path().join("data").join(RESTORE_MARKER).exists());
    assert!(!global.join(STAGED_PG_CONTROL_NAME).exists());
    let link = fs::read_link(stored.root.path().join("data/pg_tblspc/16400")).unwrap();
    assert!(link.ends_with("data-space"), "{}", link.display());
    assert_eq!(placement.placed(), stored.manifest.summary.logical_bytes);
    assert!(stored.root.path().join("data/pg_wal").is_dir());
}

#[tokio::test]
async fn a_pack_that_is_damaged_or_gone_stops_the_restore_before_it_could_be_started() {
    for gone in [false, true] {
        let stored = Stored::make().await;
        let (key, _) = pack_binding(stored.archive.layout(), stored.manifest.packs[1]).unwrap();
        let object = stored.root.path().join("repository").join(key.as_str());
        if gone {
            fs::remove_file(&object).unwrap();
        } else {
            let mut bytes = fs::read(&object).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::set_permissions(&object, fs::Permissions::from_mode(0o600)).unwrap();
            fs::write(&object, bytes).unwrap();
        }
        let placement = stored.place("data").unwrap();
        placement.create_layout().unwrap();
        let error = placement.write_packs(&stored.archive).await.unwrap_err();
        let right = if gone {
            matches!(error, PlacementError::PackMissing(_))
        } else {
            matches!(error, PlacementError::Archive(_))
        };
        assert!(right, "{error}");
        assert!(matches!(placement.finish(), Err(PlacementError::HashDiffers { .. })), "not every file is whole");
        assert!(!stored.root.path().join("data").join(PG_CONTROL_PATH).exists());
        let again = stored.place("data").unwrap_err();
        assert!(matches!(again, PlacementError::Destination(DestinationError::UnfinishedRestore { .. })), "{again}");
    }
}

#[tokio::test]
async fn a_file_that_does_not_come_out_as_its_hash_says_is_refused() {
    let mut stored = Stored::make().await;
    let large = stored.manifest.entries.iter_mut().find(|entry| entry.path == Path::new("base/5/1")).unwrap();
    let EntryContent::File { chunks, .. } = &mut large.content else { panic!("it is a file") };
    // Two whole chunks in each other's place: each is authentic, the file is not.
    chunks.swap(0, 1);
    let placement = stored.place("data").unwrap();
    placement.create_layout().unwrap();
    let error = placement.write_packs(&stored.archive).await.unwrap_err();
    assert!(matches!(&error, PlacementError::HashDiffers { path } if path.ends_with("base/5/1")), "{error}");
}

#[tokio::test]
async fn a_manifest_that_names_what_is_not_there_is_refused() {
    let mut stored = Stored::make().await;
    stored.manifest.packs.pop();
    assert!(matches!(stored.place("data"), Err(PlacementError::Manifest { .. })));
}

/// Everything below a directory: links by where they lead, files by what is in them.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let (mut found, mut left) = (BTreeMap::new(), vec![root.to_owned()]);
    while let Some(path) = left.pop() {
        let kind = path.symlink_metadata().unwrap().file_type();
        let content = if kind.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else if kind.is_dir() {
            left.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        } else {
            fs::read(&path).unwrap()
        };
        found.insert(path.strip_prefix(root).unwrap().to_owned(), content);
    }
    found
}

impl Stored {
    /// The backup of the cluster that the directories here are of.
    async fn of_their_cluster() -> Stored {
        let mut stored = Stored::make().await;
        stored.manifest.summary.system_id = PgControl::parse(PG_CONTROL).unwrap().system_id;
        stored
    }

    fn destination(&self, name: &str) -> Destination {
        Destination {
            pgdata: self.root.path().join(name),
            mapping: vec![(self.root.path().join("old"), self.root.path().join(format!("{name}-space")))],
        }
    }

    fn over(&self, name: &str) -> Result<Arc<Placement>, PlacementError> {
        let ground = CheckedDestination::check_existing(&self.destination(name), &self.manifest, false)?
            .expect("something is there");
        Ok(Arc::new(Placement::new(Arc::new(self.manifest.clone()), ground)?))
    }

    async fn plainly(&self, name: &str) {
        let placement = self.place(name).unwrap();
        placement.create_layout().unwrap();
        placement.write_packs(&self.archive).await.unwrap();
        placement.write_extra_file("backup_label", b"label").unwrap();
        placement.finish().unwrap();
    }

    /// An old directory of the cluster: changed, cut, longer, gone, too much, and things elsewhere that nothing may
    /// touch.
    async fn old(&self, name: &str) -> PathBuf {
        self.plainly(name).await;
        let (data, outside) = (self.root.path().join(name), self.root.path().join(format!("{name}-outside")));
        fs::create_dir(&outside).unwrap();
        for file in ["file", "wal", "linked"] {
            fs::write(outside.join(file), noise(CHUNK_BYTES as usize, 3)).unwrap();
        }
        fs::write(outside.join("linked"), vec![9; CHUNK_BYTES as usize]).unwrap();
        let mut large = fs::read(data.join("base/5/1")).unwrap();
        large[3 * CHUNK_BYTES as usize + 5] ^= 1;
        fs::write(data.join("base/5/1"), &large).unwrap();
        let cut = fs::read(data.join("base/5/2")).unwrap();
        fs::write(data.join("base/5/2"), &cut[..CHUNK_BYTES as usize + 9]).unwrap();
        // A file that is also another's: writing into it would change that.
        fs::remove_file(data.join("base/5/3")).unwrap();
        fs::hard_link(outside.join("linked"), data.join("base/5/3")).unwrap();
        fs::write(data.join("base/5/empty"), "no more").unwrap();
        fs::create_dir_all(data.join("base/6/more")).unwrap();
        fs::write(data.join("base/6/more/1"), "x").unwrap();
        fs::remove_file(data.join("PG_VERSION")).unwrap();
        std::os::unix::fs::symlink(outside.join("file"), data.join("PG_VERSION")).unwrap();
        std::os::unix::fs::symlink(&outside, data.join("base/7")).unwrap();
        std::os::unix::fs::symlink(&outside, data.join("pg_tblspc/9")).unwrap();
        for left in ["standby.signal", "recovery.signal", "tablespace_map", "pg_wal/000000010000000000000001"] {
            fs::write(data.join(left), "").unwrap();
        }
        let space = self.root.path().join(format!("{name}-space/PG_15_202209061/5"));
        fs::write(space.join("4"), "short").unwrap();
        fs::write(space.join("5"), "too much").unwrap();
        fs::create_dir(self.root.path().join(format!("{name}-space/PG_14_1"))).unwrap();
        data
    }
}

impl Stored {
    /// The first so many steps of a restore over what is there.
    async fn steps(&self, placement: &Arc<Placement>, killed_after: u32, data: &Path) {
        if killed_after > 0 {
            placement.claim_directory().unwrap();
            placement.reuse_existing(&self.archive).await.unwrap();
            placement.try_first_pack(&self.archive).await.unwrap();
        }
        if killed_after > 1 {
            crate::postgres::restore::delta::make_unstartable(data, false).unwrap();
        }
        if killed_after > 2 {
            placement.take_over_directory(false).unwrap();
        }
        if killed_after > 3 {
            placement.create_layout().unwrap();
        }
        if killed_after > 4 {
            placement.fit_existing().unwrap();
        }
        if killed_after == 6 {
            let (key, _) = pack_binding(self.archive.layout(), self.manifest.packs[1]).unwrap();
            let (pack, aside) =
                (self.root.path().join("repository").join(key.as_str()), self.root.path().join("aside"));
            fs::copy(&pack, &aside).unwrap();
            fs::remove_file(&pack).unwrap();
            placement.write_packs(&self.archive).await.unwrap_err();
            assert!(placement.finish().is_err());
            fs::copy(aside, &pack).unwrap();
        }
        if killed_after > 6 {
            placement.write_packs(&self.archive).await.unwrap();
        }
    }
}

#[tokio::test]
async fn killed_after_any_step_the_directory_cannot_be_started_and_the_next_run_ends_right() {
    let stored = Stored::of_their_cluster().await;
    stored.plainly("fresh").await;
    let at = |name: &str| stored.root.path().join(name);
    let (right, right_space) = (tree(&at("fresh")), tree(&at("fresh-space")));
    for killed_after in 0..=7 {
        let name = format!("data{killed_after}");
        let data = stored.old(&name).await;
        let (before, outside) = (tree(&data), tree(&at(&format!("{name}-outside"))));
        let placement = stored.over(&name).unwrap();
        assert_eq!(tree(&data), before, "looking it over changes nothing");
        stored.steps(&placement, killed_after, &data).await;
        if killed_after < 2 {
            let mut now = tree(&data);
            now.remove(Path::new(RESTORE_MARKER));
            assert_eq!(now, before, "it is as it was");
        } else {
            assert!(!data.join(PG_CONTROL_PATH).exists(), "killed after {killed_after}, it could be started");
        }
        if killed_after > 0 {
            let busy = stored.over(&name).unwrap().take_over_directory(false).unwrap_err();
            assert!(matches!(busy, PlacementError::Destination(DestinationError::Busy { .. })), "{busy}");
        }
        drop(placement);

        let placement = stored.over(&name).unwrap();
        placement.claim_directory().unwrap();
        placement.reuse_existing(&stored.archive).await.unwrap();
        placement.take_over_directory(false).unwrap();
        placement.create_layout().unwrap();
        placement.fit_existing().unwrap();
        let reused = placement.reused();
        placement.write_packs(&stored.archive).await.unwrap();
        placement.write_extra_file("backup_label", b"label").unwrap();
        placement.finish().unwrap();
        let link = data.join("pg_tblspc/16400");
        let mut done = tree(&data);
        assert_eq!(fs::read_link(&link).unwrap(), at(&format!("{name}-space")));
        done.insert("pg_tblspc/16400".into(), right[Path::new("pg_tblspc/16400")].clone());
        assert_eq!(done, right, "killed after {killed_after}");
        let mut space = tree(&at(&format!("{name}-space")));
        assert!(space.remove(Path::new("PG_14_1")).is_some(), "another release's files are not ours");
        assert_eq!(space, right_space);
        assert_eq!(tree(&at(&format!("{name}-outside"))), outside, "no link was followed");
        assert_eq!(placement.placed(), stored.manifest.summary.logical_bytes);
        // Four whole chunks and the rest of one file, one of another, pg_control and auto.conf are there from the
        // start.
        let least = 5 * u64::from(CHUNK_BYTES) + 17;
        assert!(reused > least && reused < stored.manifest.summary.logical_bytes || killed_after > 5, "{reused}");
        if killed_after == 7 {
            assert_eq!(reused, stored.manifest.summary.logical_bytes, "all was fetched before");
        }
    }
}

#[tokio::test]
async fn packs_that_cannot_be_had_leave_an_old_directory_as_it_was() {
    let stored = Stored::of_their_cluster().await;
    let data = stored.old("data").await;
    let before = tree(&data);
    for id in &stored.manifest.packs {
        let (key, _) = pack_binding(stored.archive.layout(), *id).unwrap();
        fs::remove_file(stored.root.path().join("repository").join(key.as_str())).unwrap();
    }
    let placement = stored.over("data").unwrap();
    placement.claim_directory().unwrap();
    placement.reuse_existing(&stored.archive).await.unwrap();
    let error = placement.try_first_pack(&stored.archive).await.unwrap_err();
    assert!(matches!(error, PlacementError::PackMissing(_)), "{error}");
    placement.release_directory();
    assert_eq!(tree(&data), before);
    // What a restore left that was killed stays marked.
    fs::write(data.join(RESTORE_MARKER), marker_text(stored.manifest.summary.system_id)).unwrap();
    let placement = stored.over("data").unwrap();
    placement.claim_directory().unwrap();
    placement.release_directory();
    assert!(data.join(RESTORE_MARKER).exists());
}

#[tokio::test]
async fn only_an_old_directory_of_the_same_cluster_at_rest_is_restored_over() {
    let stored = Stored::of_their_cluster().await;
    let refused = |name: &str| {
        let before = tree(&stored.root.path().join(name));
        let error = stored.over(name).unwrap_err();
        assert_eq!(tree(&stored.root.path().join(name)), before);
        error.to_string()
    };
    let survey =
        |name: &str| CheckedDestination::check_existing(&stored.destination(name), &stored.manifest, false).unwrap();
    assert!(survey("absent").is_none());
    let other = stored.root.path().join("other");
    fs::create_dir(&other).unwrap();
    assert!(survey("other").is_none(), "it is empty");
    fs::write(other.join("file"), "").unwrap();
    assert!(refused("other").contains("has file and no global/pg_control"));
    let data = stored.old("running").await;
    for (text, why) in [
        (format!("{}\n{}\n", std::process::id(), data.display()), "which is another program here"),
        (format!("-{}\n", std::process::id()), "which is another program here"),
        (format!("{}\n", i32::MAX), "another machine"),
        ("?".to_owned(), "names no process"),
    ] {
        fs::write(data.join("postmaster.pid"), &text).unwrap();
        let error = refused("running");
        assert!(error.contains(why) && error.contains("--force"), "{text}: {error}");
        let forced = CheckedDestination::check_existing(&stored.destination("running"), &stored.manifest, true);
        assert!(forced.unwrap().is_some(), "{text}");
    }
    fs::remove_file(data.join("postmaster.pid")).unwrap();
    stored.over("running").unwrap();
    // A tablespace that its links do not lead to is somebody else's.
    fs::remove_file(data.join("pg_tblspc/16400")).unwrap();
    assert!(refused("running").contains("--tablespace-mapping"));

    let mut foreign = stored;
    foreign.old("foreign").await;
    foreign.manifest.summary.system_id = SystemId::new(7);
    let error = foreign.over("foreign").unwrap_err().to_string();
    assert!(error.contains("is of the cluster"), "{error}");
}
