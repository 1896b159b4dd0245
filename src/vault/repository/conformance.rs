//! One suite that every kind of store must pass, and the faults that only a wrapper can produce.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use object_store::memory::InMemory;
use proptest::prelude::*;

use super::fault_store::{FaultStore, InjectedFault};
use super::key::{KeyPrefix, ObjectKey};
use super::{PutOutcome, Repository, RepositoryError, RepositoryOptions};
use crate::base::clock::ManualClock;
use crate::base::retry::ErrorClass;

fn key(key: &str) -> ObjectKey {
    ObjectKey::parse(key).unwrap()
}

fn parts(bytes: &'static [u8]) -> Vec<Bytes> {
    // In three parts, one of them empty: no store may depend on how an object is cut.
    let (a, b) = bytes.split_at(bytes.len() / 2);
    vec![Bytes::from_static(a), Bytes::new(), Bytes::from_static(b)]
}

async fn conforms(repository: &Repository) {
    created_once(repository).await;
    read_in_any_way(repository).await;
    listed_in_order(repository).await;
    removed(repository).await;
    one_winner_of_a_race(repository).await;
}

async fn created_once(repository: &Repository) {
    let it = key("main/once/a");
    assert_eq!(repository.put_new(&it, parts(b"first")).await.unwrap(), PutOutcome::Created);
    assert_eq!(repository.put_new(&it, parts(b"other")).await.unwrap(), PutOutcome::Exists);
    assert_eq!(repository.get(&it).await.unwrap(), &b"first"[..]);
    // A name under another object's name, and a longer one: neither may disturb the other.
    assert_eq!(repository.put_new(&key("main/once/a.partial"), parts(b"p")).await.unwrap(), PutOutcome::Created);
    assert_eq!(repository.get(&it).await.unwrap(), &b"first"[..]);
    let large = Bytes::from(vec![7; 9 << 20]);
    assert_eq!(repository.put_new(&key("main/once/large"), vec![large.clone()]).await.unwrap(), PutOutcome::Created);
    assert_eq!(repository.get(&key("main/once/large")).await.unwrap(), large);
}

async fn read_in_any_way(repository: &Repository) {
    let it = key("main/read/a");
    repository.put_new(&it, parts(b"0123456789")).await.unwrap();
    repository.put_new(&key("main/read/empty"), vec![]).await.unwrap();
    assert_eq!(repository.get_range(&it, 2..5).await.unwrap(), &b"234"[..]);
    assert_eq!(repository.get_range(&it, 4..4).await.unwrap(), &b""[..]);
    assert!(matches!(repository.get_range(&it, 8..12).await, Err(RepositoryError::Corrupt { .. })));
    assert_eq!(repository.get_suffix(&it, 3).await.unwrap(), (Bytes::from_static(b"789"), 10));
    assert_eq!(repository.get_suffix(&it, 30).await.unwrap(), (Bytes::from_static(b"0123456789"), 10));
    assert_eq!(repository.get_suffix(&it, 0).await.unwrap(), (Bytes::new(), 10));
    assert_eq!(repository.get(&key("main/read/empty")).await.unwrap(), &b""[..]);
    assert_eq!(repository.head(&it).await.unwrap().unwrap().len, 10);
    assert_eq!(repository.head(&key("main/read/none")).await.unwrap(), None);
    for missing in ["main/read/none", "main/read/none/deeper", "nobody/x"] {
        let missing = key(missing);
        assert!(matches!(repository.get(&missing).await, Err(RepositoryError::NotFound { .. })));
        assert!(matches!(repository.get_suffix(&missing, 5).await, Err(RepositoryError::NotFound { .. })));
        assert!(matches!(repository.get_range(&missing, 0..5).await, Err(RepositoryError::NotFound { .. })));
    }
}

async fn listed_in_order(repository: &Repository) {
    let names: Vec<String> = (0..40).map(|n| format!("main/list/{:02X}/{:08X}", n / 16, n * 7919 % 1000)).collect();
    let sorted: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    for name in &names {
        repository.put_new(&key(name), parts(b"x")).await.unwrap();
    }
    repository.put_new(&key("main/list-not/a"), parts(b"x")).await.unwrap();
    let under = key("main/list/x").parent();
    let listed = repository.list(&under).await.unwrap();
    assert!(listed.iter().map(|object| object.key.as_str()).eq(sorted.iter().copied()));
    assert!(listed.iter().all(|object| object.len == 1 && object.modified > Timestamp::UNIX_EPOCH));
    let middle = &listed[17].key;
    assert_eq!(repository.list_after(&under, middle).await.unwrap(), listed[18..]);
    let level = repository.list_level(&under).await.unwrap();
    let expected = ["00", "01", "02"].map(|part| under.child(part).unwrap());
    assert_eq!((level.prefixes.as_slice(), level.objects.len()), (&expected[..], 0));
    let last = repository.list_level(&expected[2]).await.unwrap();
    assert_eq!(last.objects, listed[32..]);
    assert!(
        repository.list(&KeyPrefix::all()).await.unwrap().iter().any(|object| object.key.as_str() == "walkeep.json")
    );
    let nowhere = key("nobody/x").parent();
    assert!(repository.list(&nowhere).await.unwrap().is_empty());
    assert!(repository.list_level(&nowhere).await.unwrap().prefixes.is_empty());
}

async fn removed(repository: &Repository) {
    let it = key("main/remove/a");
    repository.put_new(&it, parts(b"x")).await.unwrap();
    repository.delete(&it).await.unwrap();
    assert_eq!(repository.head(&it).await.unwrap(), None);
    repository.delete(&it).await.unwrap();
    assert_eq!(repository.put_new(&it, parts(b"again")).await.unwrap(), PutOutcome::Created);
}

async fn one_winner_of_a_race(repository: &Repository) {
    for round in 0..4 {
        let it = key(&format!("main/race/{round}"));
        let writers: Vec<_> = (0..16_u8)
            .map(|n| {
                let (repository, it) = (repository.clone(), it.clone());
                tokio::spawn(async move { repository.put_new(&it, vec![Bytes::from(vec![n; 1000])]).await.unwrap() })
            })
            .collect();
        let mut winners = Vec::new();
        for (n, writer) in writers.into_iter().enumerate() {
            if writer.await.unwrap() == PutOutcome::Created {
                winners.push(n);
            }
        }
        assert_eq!(winners.len(), 1, "{winners:?}");
        assert_eq!(usize::from(repository.get(&it).await.unwrap()[0]), winners[0]);
    }
}

#[tokio::test]
async fn memory_conforms() {
    conforms(&Repository::in_memory(&RepositoryOptions::new()).await.unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_folder_conforms() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("with space and #1");
    let repository = Repository::create(path.to_str().unwrap(), &RepositoryOptions::new()).await.unwrap();
    conforms(&repository).await;
}

/// What an unmounted disk leaves is the folder it was mounted on, or nothing at all.
#[tokio::test]
async fn nothing_is_put_beneath_the_mount_point_of_a_repository_that_is_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk");
    let repository = Repository::create(path.to_str().unwrap(), &RepositoryOptions::new()).await.unwrap();
    repository.put_new(&key("main/wal/a"), parts(b"before")).await.unwrap();
    let marker = std::fs::read(path.join("walkeep.json")).unwrap();
    for folder_stays in [true, false] {
        std::fs::remove_dir_all(&path).unwrap();
        if folder_stays {
            std::fs::create_dir(&path).unwrap();
        }
        let refused = repository.put_new(&key("main/wal/b"), parts(b"meanwhile")).await.unwrap_err();
        assert!(matches!(refused, RepositoryError::NoRepository { .. }), "{refused}");
        let found = std::fs::read_dir(&path).map_or(0, Iterator::count);
        assert_eq!((found, path.exists()), (0, folder_stays));
    }
    std::fs::create_dir(&path).unwrap();
    std::fs::write(path.join("walkeep.json"), marker).unwrap();
    assert_eq!(repository.put_new(&key("main/wal/b"), parts(b"meanwhile")).await.unwrap(), PutOutcome::Created);
}

/// moto's S3 in memory, on a port of its own choice.
struct Moto {
    server: Child,
    port: u16,
}

impl Moto {
    fn start() -> Moto {
        let program = cache().join("venv/bin/moto_server");
        let server = Command::new(&program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut server = server.unwrap_or_else(|error| panic!("{}: {error}; run tests/setup.sh", program.display()));
        // " * Running on http://127.0.0.1:41235"
        let lines = BufReader::new(server.stderr.take().unwrap()).lines();
        let port = lines.map_while(Result::ok).find_map(|line| line.rsplit_once("127.0.0.1:")?.1.trim().parse().ok());
        Moto { port: port.expect("moto says its port"), server }
    }
}

/// Where `tests/setup.sh` puts what it fetches.
fn cache() -> PathBuf {
    if let Some(cache) = std::env::var_os("WALKEEP_CACHE") {
        return cache.into();
    }
    if rustix::process::geteuid().is_root() {
        return "/var/cache/walkeep".into();
    }
    PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/walkeep")
}

impl Drop for Moto {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_conforms() {
    let moto = Moto::start();
    let mut options = RepositoryOptions::new();
    for (name, value) in [
        ("AWS_ENDPOINT_URL", format!("http://127.0.0.1:{}", moto.port)),
        ("AWS_ALLOW_HTTP", "true".to_owned()),
        ("AWS_ACCESS_KEY_ID", "test".to_owned()),
        ("AWS_SECRET_ACCESS_KEY", "testtest".to_owned()),
        ("AWS_REGION", "us-east-1".to_owned()),
        ("TOKEN", "of some other program".to_owned()),
    ] {
        options.environment.insert(name.to_owned(), value);
    }
    let missing = Repository::create("s3://walkeep-test/some/path", &options).await.unwrap_err();
    assert!(matches!(missing, RepositoryError::BadUrl { .. }), "{missing}");
    let made = Command::new("python3")
        .args(["-c", "import sys, urllib.request as u; u.urlopen(u.Request(sys.argv[1], method='PUT')).read()"])
        .arg(format!("http://127.0.0.1:{}/walkeep-test", moto.port))
        .status();
    assert!(made.unwrap().success());
    let repository = Repository::create("s3://walkeep-test/some/path", &options).await.unwrap();
    conforms(&repository).await;
    let again = Repository::open("s3://walkeep-test/some/path", &options).await.unwrap();
    assert_eq!(again.id(), repository.id());
}

#[tokio::test]
async fn a_server_that_is_not_there_is_told_from_an_object_that_is_not() {
    let mut options = RepositoryOptions::new();
    options.limits.network_retry.total = Some(Duration::ZERO);
    options.limits.attempt = Duration::from_millis(300);
    let settings = [
        ("endpoint", "http://127.0.0.1:1"),
        ("allow_http", "true"),
        ("region", "us-east-1"),
        ("access_key_id", "a"),
        ("secret_access_key", "b"),
    ];
    options.settings.extend(settings.map(|(name, value)| (name.to_owned(), value.to_owned())));
    let error = Repository::open("s3://bucket/path", &options).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Unavailable { .. }), "{error}");
    assert_eq!(error.class(), ErrorClass::Transient);
}

async fn faulty() -> (Repository, FaultStore) {
    let store = FaultStore::wrap(Arc::new(InMemory::new()));
    let mut options = RepositoryOptions::new();
    options.clock = Arc::new(ManualClock::jumping_from(Timestamp::UNIX_EPOCH));
    let repository = Repository::create_in_store(Arc::new(store.clone()), &options).await.unwrap();
    store.drain_calls();
    (repository, store)
}

#[tokio::test]
async fn a_lost_answer_is_settled_by_content() {
    let (repository, store) = faulty().await;
    store.set_script([Some(InjectedFault::LoseAnswer)]);
    assert_eq!(repository.put_new(&key("main/a"), parts(b"mine")).await.unwrap(), PutOutcome::Created);
    // The same, but somebody else was there first: their bytes, which only look alike at the end.
    let theirs = Bytes::from([vec![1; 5000], vec![0; 5000]].concat());
    let ours = Bytes::from([vec![2; 5000], vec![0; 5000]].concat());
    repository.put_new(&key("main/b"), vec![theirs.clone()]).await.unwrap();
    store.set_script([Some(InjectedFault::Refuse)]);
    assert_eq!(repository.put_new(&key("main/b"), vec![ours]).await.unwrap(), PutOutcome::Exists);
    assert_eq!(repository.get(&key("main/b")).await.unwrap(), theirs);
}

/// S3 answers 409 to a create while another one is under way, which may then fail.
#[tokio::test]
async fn a_conflict_that_leaves_no_object_is_tried_again() {
    let (repository, store) = faulty().await;
    // The first failure lets an existing object be our own, as it always may be over the network.
    store.set_script([Some(InjectedFault::Refuse), Some(InjectedFault::Conflict)]);
    assert_eq!(repository.put_new(&key("main/a"), parts(b"mine")).await.unwrap(), PutOutcome::Created);
    assert_eq!(repository.get(&key("main/a")).await.unwrap(), "mine");
}

#[tokio::test]
async fn what_never_answers_is_an_error_in_the_end_and_not_for_ever() {
    let (repository, store) = faulty().await;
    store.set_script(std::iter::repeat_n(Some(InjectedFault::Hang), 1000));
    let error = repository.put_new(&key("main/a"), parts(b"x")).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Unavailable { .. }), "{error}");
    let error = repository.get(&key("main/a")).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Unavailable { .. }), "never 'not found': {error}");
    assert!(repository.head(&key("main/a")).await.is_err());
    assert!(repository.list_level(&KeyPrefix::all()).await.is_err());
    assert!(store.drain_calls().len() < 20, "each call stops trying after a minute or so");
}

#[tokio::test]
async fn a_read_is_tried_again() {
    let (repository, store) = faulty().await;
    repository.put_new(&key("main/a"), parts(b"x")).await.unwrap();
    store.set_script([Some(InjectedFault::Refuse), Some(InjectedFault::LoseAnswer), Some(InjectedFault::Hang)]);
    assert_eq!(repository.get(&key("main/a")).await.unwrap(), &b"x"[..]);
    store.set_script([Some(InjectedFault::Refuse)]);
    assert_eq!(repository.list(&KeyPrefix::all()).await.unwrap().len(), 2);
    store.set_script([Some(InjectedFault::LoseAnswer)]);
    repository.delete(&key("main/a")).await.unwrap();
    assert_eq!(repository.head(&key("main/a")).await.unwrap(), None);
}

#[tokio::test]
async fn only_old_leftovers_are_swept_and_no_object() {
    let dir = tempfile::tempdir().unwrap();
    let repository = Repository::create(dir.path().to_str().unwrap(), &RepositoryOptions::new()).await.unwrap();
    repository.put_new(&key("main/wal/a"), parts(b"x")).await.unwrap();
    for leftover in ["main/wal/a#1", "main/wal/b#27"] {
        std::fs::write(dir.path().join(leftover), "half").unwrap();
    }
    std::fs::write(dir.path().join("main/wal/c#d"), "not the store's").unwrap();
    assert_eq!(repository.sweep_orphans(Duration::from_secs(3600)).await.unwrap(), 0, "a writer may be at it");
    assert_eq!(repository.sweep_orphans(Duration::ZERO).await.unwrap(), 2);
    assert!(dir.path().join("main/wal/c#d").exists());
    assert_eq!(repository.get(&key("main/wal/a")).await.unwrap(), &b"x"[..]);
    assert_eq!(repository.list(&key("main/x").parent()).await.unwrap().len(), 1, "what is not ours is not listed");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// I3 under faults: whatever the store does, an object once created never changes, at most one writer of different
    /// bytes is told that it created it, and who is told so finds its own bytes there.
    #[test]
    fn whoever_is_told_created_finds_its_own_bytes(
        writers in proptest::collection::vec(0..3_u8, 1..6),
        script in proptest::collection::vec(
            prop_oneof![3 => Just(None), 1 => Just(Some(InjectedFault::Refuse)), 1 => Just(Some(InjectedFault::LoseAnswer)), 1 => Just(Some(InjectedFault::Hang))],
            0..24,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (repository, store) = faulty().await;
            store.set_script(script);
            let it = key("main/a");
            let mut first: Option<u8> = None;
            for content in writers {
                let told = repository.put_new(&it, vec![Bytes::from(vec![content; 6000])]).await;
                let now = futures_util::FutureExt::now_or_never(async {
                    store.set_script([]);
                    repository.get(&it).await.ok().map(|bytes| bytes[0])
                }).unwrap();
                if let (Some(before), Some(now)) = (first, now) {
                    assert_eq!(before, now, "an object changed");
                }
                first = first.or(now);
                match told {
                    Ok(PutOutcome::Created) => assert_eq!(now, Some(content), "told created, finds another's"),
                    Ok(PutOutcome::Exists) => assert!(now.is_some(), "told exists, finds nothing"),
                    Err(error) => assert_eq!(error.class(), ErrorClass::Transient),
                }
            }
        });
    }
}
