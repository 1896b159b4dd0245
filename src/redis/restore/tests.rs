//! What is written, beside what a server would write; the servers themselves are asked in tests/it.

use std::path::Path;

use super::*;
use crate::redis::format::flavour::ServerFlavour;
use crate::redis::format::rdb::{RdbError, RdbLimits};
use crate::redis::format::resp::{StreamCut, encode_command};

fn dump() -> Vec<u8> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/rdb");
    std::fs::read(fixtures.join("hdt3213/listpack.rdb")).unwrap()
}

fn command(words: &[&str]) -> Vec<u8> {
    encode_command(&words.iter().map(|word| word.as_bytes()).collect::<Vec<_>>())
}

/// All at the second 1000.
fn arrivals() -> CommandArrivals {
    let at = "1970-01-01T00:16:40Z";
    let stretch = serde_json::json!({
        "replid": "0".repeat(40), "first": 0, "last": 0, "db": 0, "in_transaction": false, "db_after": 0,
        "in_transaction_after": false, "follows": null, "started_at": at, "ended_at": at, "writes": 0, "marks": [],
    });
    CommandArrivals::from_stretch(&serde_json::from_value(stretch).unwrap())
}

fn redis(text: &str) -> RedisVersion {
    RedisVersion::parse(ServerFlavour::Redis, text).unwrap()
}

/// Places a dump and these commands, in pieces of `size` bytes.
fn placed(form: DataFileForm, stream: &[u8], size: usize) -> (tempfile::TempDir, Result<PlacedFiles, RestoreError>) {
    placed_up_to(None, form, stream, size)
}

fn placed_up_to(
    to: Option<u64>,
    form: DataFileForm,
    stream: &[u8],
    size: usize,
) -> (tempfile::TempDir, Result<PlacedFiles, RestoreError>) {
    let scratch = tempfile::tempdir().unwrap();
    let place = || {
        let mut place =
            DataFileWriter::new(&scratch.path().join("redis"), form, &DataFileNames::default(), RdbLimits::default())?;
        for piece in dump().chunks(size) {
            place.push_snapshot(piece)?;
        }
        if form != DataFileForm::Dump {
            place = place.begin_commands(StreamCut { offset: 1000, db: 3 })?;
            for piece in stream.chunks(size) {
                place.push_commands(piece, &arrivals())?;
            }
        }
        place.finish(to)
    };
    let placed = place();
    (scratch, placed)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort();
    names
}

#[test]
fn a_dump_alone() {
    let (scratch, placed) = placed(DataFileForm::Dump, &[], 100);
    let placed = placed.unwrap();
    let dir = scratch.path().join("redis");
    assert_eq!(names(&dir), ["dump.rdb"]);
    assert_eq!(std::fs::read(dir.join("dump.rdb")).unwrap(), dump());
    assert_eq!((placed.walk.keys(), placed.commands, placed.end, placed.bytes), (3, 0, None, dump().len() as u64));
    assert_eq!(server_options::server_options(&placed, &DataFileNames::default())[2..], ["--appendonly", "no"]);
}

/// The traffic between servers is left out, the stream's database comes first, and nothing of an open transaction is
/// there.
#[test]
fn commands_up_to_the_last_cut() {
    let whole = [
        command(&["SET", "a", "1"]),
        command(&["PING"]),
        b"\n".to_vec(),
        command(&["SELECT", "5"]),
        command(&["REPLCONF", "GETACK", "*"]),
        command(&["MULTI"]),
        command(&["SET", "b", &"long ".repeat(3000), "PX", "7"]),
        command(&["PING"]),
        command(&["EXEC"]),
    ];
    // What counts from when it is run is followed by what was meant, and both are in the transaction.
    let (select, meant) = (command(&["SELECT", "3"]), command(&["PEXPIREAT", "b", "1000007"]));
    let kept = [&select, &whole[0], &whole[3], &whole[5], &whole[6], &meant, &whole[8]];
    let kept: Vec<u8> = kept.into_iter().flatten().copied().collect();
    let end = 1000 + whole.concat().len() as u64;
    let open = [command(&["PING"]), command(&["MULTI"]), command(&["SET", "c", &"x".repeat(9000)])].concat();
    for size in [1, 7, 1000, 1 << 20] {
        for more in [0, 5, open.len() / 2, open.len()] {
            let stream = [whole.concat(), open[..more].to_vec()].concat();
            let (scratch, parts) = placed(DataFileForm::Parts, &stream, size);
            let parts = parts.unwrap();
            let dir = scratch.path().join("redis/appendonlydir");
            let files = ["appendonly.aof.1.base.rdb", "appendonly.aof.1.incr.aof", "appendonly.aof.manifest"];
            assert_eq!(names(&dir), files);
            assert_eq!(std::fs::read(dir.join(files[0])).unwrap(), dump());
            assert!(
                std::fs::read(dir.join(files[1])).unwrap() == kept,
                "pieces of {size}, {more} bytes of an open transaction"
            );
            // The ping after the last command is no command, but part of the history.
            let ping = if more >= 14 { 14 } else { 0 };
            assert_eq!(parts.end, Some(StreamCut { offset: end + ping, db: 5 }));
            assert_eq!((parts.commands, parts.databases), (2, 16));
            assert_eq!(parts.files, files.map(|name| dir.join(name)), "the manifest comes last");

            let (scratch, one) = placed(DataFileForm::Preamble, &stream, size);
            one.unwrap();
            let dir = scratch.path().join("redis");
            assert_eq!(names(&dir), ["appendonly.aof"]);
            assert!(std::fs::read(dir.join("appendonly.aof")).unwrap() == [dump(), kept.clone()].concat());
        }
    }
}

#[test]
fn what_cannot_be_restored_leaves_nothing_that_a_server_loads() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("redis");
    let mut place =
        DataFileWriter::new(&dir, DataFileForm::Parts, &DataFileNames::default(), RdbLimits::default()).unwrap();
    place.push_snapshot(&dump()[..100]).unwrap();
    assert!(matches!(
        place.begin_commands(StreamCut { offset: 0, db: 0 }),
        Err(RestoreError::Rdb(RdbError::Truncated { at: 100 }))
    ));
    assert_eq!(names(&dir.join("appendonlydir")), [""; 0]);

    let (scratch, bad) = placed(DataFileForm::Parts, b"*1\r\n$4\r\nPINGxx", 1000);
    assert!(matches!(bad, Err(RestoreError::Stream(_))), "{bad:?}");
    assert_eq!(
        names(&scratch.path().join("redis/appendonlydir")),
        ["appendonly.aof.1.base.rdb"],
        "no manifest, so no data"
    );
}

#[test]
fn commands_that_end_before_the_target_are_not_left_as_if_they_were_all() {
    let stream = command(&["SET", "a", "1"]);
    let end = 1000 + stream.len() as u64;
    for (form, left) in [(DataFileForm::Parts, &["appendonlydir"][..]), (DataFileForm::Preamble, &[])] {
        let (scratch, short) = placed_up_to(Some(end + 1), form, &stream, 1000);
        assert!(
            matches!(short, Err(RestoreError::StreamTooShort { end: at, target }) if at == end && target == end + 1),
            "{short:?}"
        );
        let dir = scratch.path().join("redis");
        assert_eq!(names(&dir), left);
        if form == DataFileForm::Parts {
            assert_eq!(names(&dir.join("appendonlydir")), ["appendonly.aof.1.base.rdb"], "no manifest, so no data");
        }
        placed_up_to(Some(end), form, &stream, 1000).1.unwrap();
    }
}

#[test]
fn a_folder_with_anything_in_it_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    std::fs::create_dir(scratch.path().join("lost+found")).unwrap();
    drop(
        DataFileWriter::new(scratch.path(), DataFileForm::Dump, &DataFileNames::default(), RdbLimits::default())
            .unwrap(),
    );
    for stray in ["dump.rdb", "appendonlydir", ".hidden"] {
        let path = scratch.path().join(stray);
        std::fs::write(&path, b"old").unwrap();
        let refused =
            DataFileWriter::new(scratch.path(), DataFileForm::Dump, &DataFileNames::default(), RdbLimits::default());
        assert!(matches!(refused, Err(RestoreError::FolderNotEmpty { found, .. }) if found == stray));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        std::fs::remove_file(path).unwrap();
    }
}

#[test]
fn a_configuration_that_would_ignore_the_files_is_named() {
    let (_scratch, placed_dump) = placed(DataFileForm::Dump, &[], 1000);
    let placed_dump = placed_dump.unwrap();
    let said = |placed: &PlacedFiles, conf: &str, version| {
        server_options::configuration_warnings(placed, Some(("redis.conf", &RedisConf::parse(conf))), redis(version))
            .join("\n")
    };
    let dir = format!("dir {}\n", placed_dump.dir.display());
    let root = if placed_dump.owned_by_root { "root" } else { "" };
    assert!(said(&placed_dump, &dir, "8.2.3").contains(root));
    assert_eq!(said(&PlacedFiles { owned_by_root: false, ..placed_dump.clone() }, &dir, "8.2.3"), "");
    assert!(said(&placed_dump, &format!("{dir}appendonly yes"), "8.2.3").contains("ignores dump.rdb"));
    assert!(said(&placed_dump, "dir /elsewhere", "8.2.3").contains("/elsewhere"));
    assert!(said(&placed_dump, &format!("{dir}databases 2"), "8.2.3").contains("databases 16"));
    let old = said(&placed_dump, &dir, "6.2.14");
    assert!(old.contains("6.2 does not load"), "{old}");
    let (_scratch, parts) = placed(DataFileForm::Parts, &command(&["DEL", "x"]), 1000);
    assert!(said(&parts.unwrap(), "appendonly no", "8.2.3").contains("EMPTY"));
}

#[test]
fn each_version_has_its_form() {
    let valkey = RedisVersion::parse(ServerFlavour::Valkey, "8.0.1").unwrap();
    for (version, form) in [
        (redis("6.2.14"), DataFileForm::Preamble),
        (redis("7.0.15"), DataFileForm::Parts),
        (valkey, DataFileForm::Parts),
    ] {
        assert_eq!(DataFileForm::for_version(version, true), form);
        assert_eq!(DataFileForm::for_version(version, false), DataFileForm::Dump);
    }
}
