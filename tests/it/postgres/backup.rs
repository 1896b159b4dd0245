//! Base backups of real servers: what a manifest names is put back by this test's own few lines, and PostgreSQL itself
//! says whether it is whole.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use walkeep::base::clock::SystemClock;
use walkeep::postgres::archive::Archive;
use walkeep::postgres::archive::chunks::{ChunkNamer, Pack, PackId, chunk_subtree_hash, file_hash, pack_binding};
use walkeep::postgres::archive::manifest::{BackupSummary, EntryContent, Manifest};
use walkeep::postgres::backup::{self, BackupError, BackupProgress};
use walkeep::postgres::format::backup_label::TablespaceMap;
use walkeep::postgres::wire::{Conninfo, LibpqEnvironment};
use walkeep::vault::repository;
use walkeep::vault::seal::keys::KeyEncryptionKey;
use walkeep::vault::seal::{CompressionLevel, SealedKind};
use walkeep::vault::{RepositoryLocation, Vault, VaultSettings};

use crate::support::{Cluster, Options, QUICK, Scratch, majors, scratch};

pub(super) fn server(cluster: &Cluster) -> Conninfo {
    Conninfo::parse(&cluster.socket_conninfo(), &LibpqEnvironment::new()).unwrap()
}

pub(super) async fn archive(scratch: &Scratch, encrypted: bool) -> Arc<Archive> {
    let settings = VaultSettings {
        places: vec![RepositoryLocation {
            name: "local".into(),
            url: format!("file://{}", scratch.join("repository").display()),
            options: repository::RepositoryOptions::new(),
        }],
        key: encrypted.then(|| KeyEncryptionKey::generate().unwrap()),
        level: CompressionLevel::Auto,
        threads: 2,
        clock: SystemClock::shared(),
    };
    let vault = Vault::create(settings).await.unwrap();
    Arc::new(Archive::new(Arc::new(vault), "main".parse().unwrap()))
}

pub(super) async fn take(archive: &Arc<Archive>, cluster: &Cluster) -> BackupSummary {
    try_take(archive, cluster, Duration::from_secs(60)).await.unwrap()
}

async fn try_take(
    archive: &Arc<Archive>,
    cluster: &Cluster,
    wal_limit: Duration,
) -> Result<BackupSummary, BackupError> {
    let options = backup::BackupOptions { wal_limit, ..backup::BackupOptions::default() };
    let mut last = BackupProgress::Checkpoint;
    let summary = backup::take_backup(archive, &server(cluster), &options, &mut |now| last = now).await?;
    assert_eq!(last, BackupProgress::WaitingForWal);
    Ok(summary)
}

async fn manifest(archive: &Archive, label: &str) -> Manifest {
    let key = archive.layout().backup(label).unwrap();
    let opened = archive.vault().get_object(SealedKind::Manifest, &key).await.unwrap().expect("a manifest");
    Manifest::from_bytes(BackupSummary::from_bytes(&opened.metadata).unwrap(), &opened.plain).unwrap()
}

/// Puts a backup and its WAL back, ready to be started, and checks every hash on the way.
pub(super) async fn put_back(archive: &Archive, label: &str, scratch: &Scratch, name: &str) -> std::path::PathBuf {
    let manifest = manifest(archive, label).await;
    let namer = ChunkNamer::for_epoch_key(archive.vault().protection(), manifest.summary.naming_key).unwrap();
    let mut packs: HashMap<PackId, Pack> = HashMap::new();
    for id in &manifest.packs {
        let (key, _) = pack_binding(archive.layout(), *id).unwrap();
        let opened = archive.vault().get_object(SealedKind::Pack, &key).await.unwrap().expect("a pack");
        packs.insert(*id, Pack::from_opened(*id, opened).unwrap());
    }
    let data = scratch.directory(name);
    for space in &manifest.summary.tablespaces {
        let place = scratch.directory(&format!("{name}-{}", space.oid));
        fs::create_dir_all(data.join("pg_tblspc")).unwrap();
        std::os::unix::fs::symlink(place, data.join(format!("pg_tblspc/{}", space.oid))).unwrap();
    }
    for entry in &manifest.entries {
        let path = data.join(&entry.path);
        match &entry.content {
            EntryContent::Directory => fs::create_dir_all(&path).unwrap(),
            EntryContent::Link(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
            EntryContent::File { len, hash, chunks } => {
                let (mut content, mut values) = (Vec::new(), Vec::new());
                for chunk in chunks.iter().map(|chunk| manifest.chunks[*chunk as usize]) {
                    let bytes = packs[&manifest.packs[chunk.pack as usize]].chunk(&chunk).unwrap();
                    let value = chunk_subtree_hash(&[&bytes], content.len() as u64, *len);
                    assert_eq!(namer.name(&value), chunk.name, "{}", path.display());
                    values.push(value);
                    content.extend_from_slice(&bytes);
                }
                assert_eq!(content.len() as u64, *len);
                assert_eq!(blake3::hash(&content), *hash, "{}", path.display());
                assert_eq!(file_hash(&values, *len), *hash);
                fs::write(&path, content).unwrap();
            }
        }
        if !matches!(entry.content, EntryContent::Link(_)) {
            fs::set_permissions(&path, fs::Permissions::from_mode(entry.mode)).unwrap();
        }
    }
    fs::write(data.join("backup_label"), &manifest.backup_label).unwrap();
    if let Some(map) = &manifest.tablespace_map {
        // The server sends an empty one where there are no tablespaces.
        assert_eq!(map.is_empty(), manifest.summary.tablespaces.is_empty());
        let moved: String = manifest
            .summary
            .tablespaces
            .iter()
            .map(|space| format!("{} {}\n", space.oid, scratch.join(format!("{name}-{}", space.oid)).display()))
            .collect();
        fs::write(data.join(TablespaceMap::FILE), moved).unwrap();
    }
    let wal = scratch.directory(&format!("{name}-wal"));
    for (segment, _) in archive.list_segments(manifest.summary.timeline, None).await.unwrap().found {
        fs::write(wal.join(segment.to_string()), archive.segment(segment).await.unwrap().unwrap()).unwrap();
    }
    let conf = format!("restore_command = 'cp {}/%f %p'\n", wal.display());
    fs::write(data.join("postgresql.auto.conf"), conf).unwrap();
    fs::write(data.join("recovery.signal"), "").unwrap();
    // A standby's, which would keep it one for ever.
    drop(fs::remove_file(data.join("standby.signal")));
    give_all(scratch.path());
    data
}

fn give_all(path: &Path) {
    scratch::give(path);
    if path.is_dir() && !path.is_symlink() {
        fs::read_dir(path).unwrap().for_each(|entry| give_all(&entry.unwrap().path()));
    }
}

/// Starts what was put back; every table's content is read and every page's checksum verified by the server.
pub(super) fn started(major: u32, data: &Path) -> Cluster {
    let mut restored = Cluster::adopt(major, data);
    restored.start_again();
    restored.wait_for("select not pg_is_in_recovery()");
    restored
}

const SUM: &str = "select count(*), sum(hashtext(t::text)::bigint) from things t";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_major_is_backed_up_and_starts_again_from_it() {
    for major in majors() {
        let scratch = Scratch::new();
        let cluster = Cluster::start(major, Options::default().segment_size_mb(1));
        let space = scratch.directory("fast space");
        cluster.sql(&format!("create tablespace fast location '{}'", space.display()));
        cluster
            .sql("create table things as select i, repeat(md5(i::text), 10) as text from generate_series(1, 20000) i");
        cluster.sql("create table elsewhere tablespace fast as select i from generate_series(1, 5000) i");
        cluster.sql("create unlogged table passing as select 1 as x");
        let archive = archive(&scratch, major % 2 == 0).await;
        let summary = take(&archive, &cluster).await;

        assert_eq!(summary.major_version, major);
        assert_eq!(summary.system_id.get(), cluster.system_identifier());
        assert!(summary.data_checksums && summary.pages_checked > 1000 && summary.torn_pages == 0);
        assert!(!summary.from_standby && summary.start_lsn < summary.stop_lsn);
        assert_eq!(summary.new_chunks, summary.chunks);
        assert_eq!(summary.tablespaces.len(), 1);
        assert_eq!(summary.required.max_connections.to_string(), cluster.sql("show max_connections"));

        let data = put_back(&archive, &summary.label, &scratch, "restored").await;
        let restored = started(major, &data);
        assert_eq!(restored.sql(SUM), cluster.sql(SUM));
        assert_eq!(restored.sql("select count(*) from elsewhere"), "5000");
        assert_eq!(restored.sql("select count(*) from passing"), "0", "unlogged tables are empty after recovery");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_backup_stores_next_to_nothing_and_restores_alone() {
    let scratch = Scratch::new();
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    cluster.sql("create table things as select i, md5(i::text) as text from generate_series(1, 200000) i");
    let archive = archive(&scratch, true).await;
    let first = take(&archive, &cluster).await;
    cluster.sql("insert into things values (0, 'one more')");
    let second = take(&archive, &cluster).await;
    assert!(second.logical_bytes > 20 << 20);
    assert!(second.stored_bytes < first.stored_bytes / 20, "{} after {}", second.stored_bytes, first.stored_bytes);
    assert!(second.new_chunks < 60, "{} chunks are new", second.new_chunks);

    // A pack that is gone is noticed: its chunks are stored again.
    let packs = manifest(&archive, &second.label).await.packs;
    archive.vault().delete(&pack_binding(archive.layout(), packs[0]).unwrap().0).await.unwrap();
    let third = take(&archive, &cluster).await;
    assert!(third.new_chunks > second.new_chunks);
    let data = put_back(&archive, &third.label, &scratch, "restored").await;
    let restored = started(QUICK, &data);
    assert_eq!(restored.sql(SUM), cluster.sql(SUM));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_at_once_under_load_are_both_whole() {
    let scratch = Scratch::new();
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    cluster.run("pgbench", &["-i", "-s", "3", "-q", "postgres"]).expect_ok();
    let archive = archive(&scratch, true).await;
    let mut load = cluster.command("pgbench");
    let mut load = load.args(["-c", "2", "-T", "8", "-n", "postgres"]).spawn().unwrap();
    let (one, two) = tokio::join!(take(&archive, &cluster), take(&archive, &cluster));
    load.wait().unwrap();
    assert_ne!(one.label, two.label);
    for (summary, name) in [(one, "one"), (two, "two")] {
        let data = put_back(&archive, &summary.label, &scratch, name).await;
        let restored = started(QUICK, &data);
        // What pgbench promises: the three sums are equal in every consistent state.
        let sums = "select (select sum(abalance) from pgbench_accounts) = (select sum(bbalance) from pgbench_branches) \
                    and (select sum(tbalance) from pgbench_tellers) = (select sum(bbalance) from pgbench_branches) \
                    and (select coalesce(sum(delta), 0) from pgbench_history) = (select sum(bbalance) from \
                    pgbench_branches)";
        assert_eq!(restored.sql(sums), "t");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_is_backed_up_once_the_primary_ends_the_segment() {
    let scratch = Scratch::new();
    let primary = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    primary.sql("create table things as select i, md5(i::text) as text from generate_series(1, 20000) i");
    let standby = primary.standby(Options::default());
    // So that the standby's consistent position lies within a segment.
    primary.sql("create table more as select i from generate_series(1, 1000) i");
    primary.sql("checkpoint");
    primary.sql("create table last as select i from generate_series(1, 1000) i");
    standby.wait_for("select count(*) = 1000 from last");
    standby.sql("checkpoint");
    let archive = archive(&scratch, true).await;

    let error = try_take(&archive, &standby, Duration::from_secs(2)).await.unwrap_err();
    assert!(
        matches!(error, BackupError::WalMissing { .. }) && error.to_string().contains("pg_switch_wal()"),
        "{error}"
    );
    let manifests = archive.vault().list(&archive.layout().backups(), None).await.unwrap().objects;
    assert!(manifests.is_empty(), "a backup without its WAL is none");

    let switching = async {
        for _ in 0..10 {
            tokio::time::sleep(Duration::from_secs(1)).await;
            primary.switch_wal();
        }
    };
    let (summary, ()) = tokio::join!(take(&archive, &standby), switching);
    assert!(summary.from_standby);
    let data = put_back(&archive, &summary.label, &scratch, "restored").await;
    let restored = started(QUICK, &data);
    assert_eq!(restored.sql(SUM), primary.sql(SUM));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_refused() {
    let scratch = Scratch::new();
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    let archive = archive(&scratch, true).await;
    take(&archive, &cluster).await;
    let other = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    let error = try_take(&archive, &other, Duration::from_secs(60)).await.unwrap_err();
    assert!(matches!(error, BackupError::WrongCluster { .. }), "{error}");
    assert_eq!(archive.vault().list(&archive.layout().backups(), None).await.unwrap().objects.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn given_up_half_way_there_is_no_backup() {
    let scratch = Scratch::new();
    let cluster = Cluster::start(QUICK, Options::default().segment_size_mb(1));
    cluster.run("pgbench", &["-i", "-s", "8", "-q", "postgres"]).expect_ok();
    let archive = archive(&scratch, true).await;
    let (seen, mut stored) = tokio::sync::watch::channel(0);
    let (task_archive, info) = (Arc::clone(&archive), server(&cluster));
    let task = tokio::spawn(async move {
        let options = backup::BackupOptions { max_rate_kib: Some(32 << 10), ..backup::BackupOptions::default() };
        let mut note = |progress| {
            if let BackupProgress::Reading { stored, .. } = progress {
                seen.send_replace(stored);
            }
        };
        backup::take_backup(&task_archive, &info, &options, &mut note).await
    });
    stored.wait_for(|stored| *stored > 0).await.unwrap();
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    let list = async |prefix| archive.vault().list(&prefix, None).await.unwrap().objects.len();
    assert!(list(archive.layout().packs()).await > 0, "it was given up before anything was stored");
    assert_eq!(list(archive.layout().backups()).await, 0);
    // Those packs are in nobody's way.
    let summary = take(&archive, &cluster).await;
    assert_eq!(summary.new_chunks, summary.chunks);
}
