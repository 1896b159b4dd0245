//! What the parsers say of real clusters of every major, beside what PostgreSQL's own programs say of them.

use std::fs;
use std::path::{Path, PathBuf};

use walkeep::postgres::format::datadir::{PathClass, classify_path};
use walkeep::postgres::format::page::{DEFAULT_BLOCK_SIZE, verify_checksum};
use walkeep::postgres::format::pg_control::{DbState, PgControl};

use crate::support::{Cluster, Options, majors};

/// Every relation file of a cluster and the blocks in it whose checksum is wrong.
fn wrong_pages(data: &Path) -> (usize, Vec<(String, u32)>) {
    let control = PgControl::parse(&fs::read(data.join("global/pg_control")).unwrap()).unwrap();
    let (mut pages, mut wrong) = (0, Vec::new());
    for path in files(data) {
        let name = path.strip_prefix(data).unwrap().to_str().unwrap().to_owned();
        let PathClass::Relation(file) = classify_path(&name) else { continue };
        let first = file.first_block(control.relation_segment_blocks).unwrap();
        for (block, page) in (first..).zip(fs::read(&path).unwrap().chunks(DEFAULT_BLOCK_SIZE)) {
            pages += 1;
            if !verify_checksum(page, block) {
                wrong.push((name.clone(), block));
            }
        }
    }
    (pages, wrong)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

#[test]
fn every_page_of_every_major_verifies_and_a_damaged_one_is_found_as_pg_checksums_finds_it() {
    for major in majors() {
        let mut cluster = Cluster::start(major, Options::default());
        cluster
            .sql("create table t as select g, repeat('x', 300) from generate_series(1, 5000) g; create index on t (g)");
        let path = cluster.sql("select pg_relation_filepath('t')");
        cluster.stop();
        let check =
            |cluster: &Cluster| cluster.run("pg_checksums", &["--check", "-D", &cluster.data().to_string_lossy()]);
        check(&cluster).expect_ok();
        let (pages, wrong) = wrong_pages(cluster.data());
        assert!(pages > 1000 && wrong.is_empty(), "{major}: {wrong:?} of {pages}");

        let file = cluster.data().join(&path);
        let mut bytes = fs::read(&file).unwrap();
        bytes[17 * DEFAULT_BLOCK_SIZE + 5000] ^= 0x10;
        fs::write(&file, bytes).unwrap();
        let said = check(&cluster).expect_code(1).stderr;
        assert!(said.contains("block 17"), "{said}");
        assert_eq!(wrong_pages(cluster.data()).1, [(path, 17)], "{major}");
    }
}

#[test]
fn pg_control_says_what_the_cluster_does() {
    for major in majors() {
        let mut cluster = Cluster::start(major, Options::default().segment_size_mb(4).set("max_connections", 33));
        let control =
            |cluster: &Cluster| PgControl::parse(&fs::read(cluster.data().join("global/pg_control")).unwrap()).unwrap();
        let running = control(&cluster);
        assert_eq!((running.state, running.major()), (DbState::Production, Some(major)));
        assert_eq!(running.system_id.get(), cluster.system_identifier());
        assert_eq!((running.segment_size.get(), running.required.max_connections), (4 << 20, 33));
        cluster.stop();
        assert_eq!(control(&cluster).state, DbState::ShutDown);
    }
}
