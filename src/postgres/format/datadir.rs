//! What of a data directory a backup copies, skips or empties, and what its relation files' names mean (`basebackup.c`,
//! `reinit.c`, `relpath.c`).
//!
//! Pure: paths relative to the data directory in, with `/` between the parts, verdicts out.

/// Directories whose content is of no use in a copy (`excludeDirContents`): the copy has them, empty.
const EMPTIED_DIRECTORIES: [&str; 7] =
    ["pg_stat_tmp", "pg_replslot", "pg_dynshmem", "pg_notify", "pg_serial", "pg_snapshots", "pg_subtrans"];

/// Files that are left out wherever they are (`excludeFiles`).
const SKIPPED_FILES: [&str; 7] = [
    "postgresql.auto.conf.tmp",
    "current_logfiles.tmp",
    "backup_label",
    "tablespace_map",
    "backup_manifest",
    "postmaster.pid",
    "postmaster.opts",
];

/// What a backup does with one path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PathClass {
    /// Copy it as it is.
    Copy,
    /// A relation's file: copy it, and check its pages where the cluster has checksums.
    Relation(RelationFile),
    /// `global/pg_control`: copied last by a backup, placed last by a restore.
    Control,
    /// A directory that is kept, and everything in it left out.
    EmptyDirectory,
    /// `pg_tblspc/<oid>`: the link to a tablespace, or the tablespace itself where it lies in place.
    Tablespace(u32),
    /// Left out.
    Skip,
}

/// Which part of a relation a file holds (`ForkNumber`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum RelationFork {
    /// Its rows or index entries.
    Main,
    /// `_fsm`, the free space map.
    FreeSpace,
    /// `_vm`, the visibility map.
    Visibility,
    /// `_init`, what an unlogged relation is reset to; only unlogged relations have it.
    Init,
}

/// A relation, wherever it lies.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct DataDirRelation {
    /// The tablespace; 1663 is `base`, 1664 is `global`.
    pub tablespace: u32,
    /// The database; zero for what all databases share.
    pub database: u32,
    /// The number in the file's name.
    pub filenode: u32,
}

/// One file of a relation.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct RelationFile {
    /// Which relation.
    pub relation: DataDirRelation,
    /// Which part of it.
    pub fork: RelationFork,
    /// Which gigabyte of that part.
    pub segment: u32,
}

impl DataDirRelation {
    /// The tablespace of `base` (`DEFAULTTABLESPACE_OID`).
    const DEFAULT_TABLESPACE_OID: u32 = 1663;
    /// The tablespace of `global` (`GLOBALTABLESPACE_OID`).
    pub const GLOBAL_TABLESPACE_OID: u32 = 1664;
}

impl RelationFile {
    /// Reads a path such as `base/5/16384_fsm.1`. `None` for anything else, temporary relations among it.
    #[must_use]
    pub fn parse(path: &str) -> Option<RelationFile> {
        let parts: Vec<&str> = path.split('/').collect();
        let (tablespace, database, name) = match parts.as_slice() {
            ["global", name] => (DataDirRelation::GLOBAL_TABLESPACE_OID, 0, name),
            ["base", database, name] => (DataDirRelation::DEFAULT_TABLESPACE_OID, parse_file_number(database)?, name),
            ["pg_tblspc", tablespace, version, database, name] if version.starts_with("PG_") => {
                (parse_file_number(tablespace)?, parse_file_number(database)?, name)
            }
            _ => return None,
        };
        let (stem, segment) = match name.split_once('.') {
            Some((stem, segment)) => (stem, parse_file_number(segment)?),
            None => (*name, 0),
        };
        let (filenode, fork) = match stem.split_once('_') {
            None => (stem, RelationFork::Main),
            Some((filenode, "fsm")) => (filenode, RelationFork::FreeSpace),
            Some((filenode, "vm")) => (filenode, RelationFork::Visibility),
            Some((filenode, "init")) => (filenode, RelationFork::Init),
            Some(_) => return None,
        };
        Some(RelationFile {
            relation: DataDirRelation { tablespace, database, filenode: parse_file_number(filenode)? },
            fork,
            segment,
        })
    }

    /// The number of the file's first block within the relation's fork, for its pages' checksums; `None` past the end
    /// of the block space.
    #[must_use]
    pub fn first_block(&self, relation_segment_blocks: u32) -> Option<u32> {
        self.segment.checked_mul(relation_segment_blocks)
    }
}

/// A number as PostgreSQL writes it in a file name: no sign, no leading zero, above zero
/// (`parse_filename_for_nontemp_relation`).
fn parse_file_number(text: &str) -> Option<u32> {
    let plain = !text.starts_with('0') && text.bytes().all(|b| b.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

/// What a backup does with `path`. It is the caller's to leave out what lies in an emptied directory that it does not
/// walk, but a path in one is answered with [`PathClass::Skip`] too.
#[must_use]
pub fn classify_path(path: &str) -> PathClass {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let within = |directory: &str| path.strip_prefix(directory).is_some_and(|rest| rest.starts_with('/'));
    if EMPTIED_DIRECTORIES.iter().any(|directory| within(directory)) {
        return PathClass::Skip;
    }
    if EMPTIED_DIRECTORIES.contains(&path) || matches!(path, "pg_wal" | "pg_wal/archive_status" | "pg_wal/summaries") {
        return PathClass::EmptyDirectory;
    }
    // pgsql_tmp holds sorts under way, pgsql_tmp* their files; pg_internal.init.<pid> is a cache being written.
    let temporary = path.split('/').any(|part| part.starts_with("pgsql_tmp"));
    let skipped = SKIPPED_FILES.contains(&name) || name == "pg_internal.init" || name.starts_with("pg_internal.init.");
    if temporary || skipped || within("pg_wal") || is_temporary_relation(parent, name) {
        return PathClass::Skip;
    }
    if path == "global/pg_control" {
        return PathClass::Control;
    }
    if parent == "pg_tblspc"
        && let Some(oid) = parse_file_number(name)
    {
        return PathClass::Tablespace(oid);
    }
    RelationFile::parse(path).map_or(PathClass::Copy, PathClass::Relation)
}

/// `t<backend>_<filenode>…` in a database's directory (`looks_like_temp_rel_name`).
fn is_temporary_relation(parent: &str, name: &str) -> bool {
    let in_database = parent.starts_with("base/") || (parent.starts_with("pg_tblspc/") && parent.contains("/PG_"));
    let Some((backend, rest)) = name.strip_prefix('t').and_then(|rest| rest.split_once('_')) else { return false };
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    let tail = rest.get(digits..).unwrap_or("");
    let backend = !backend.is_empty() && backend.bytes().all(|b| b.is_ascii_digit());
    in_database && backend && digits > 0 && (tail.is_empty() || tail.starts_with('_') || tail.starts_with('.'))
}

/// The body of a fuzz target: any text as a path.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Ok(path) = std::str::from_utf8(data) else { return };
    if let PathClass::Relation(file) = classify_path(path) {
        assert_eq!(RelationFile::parse(path), Some(file));
        assert!(file.first_block(131_072).is_none_or(|block| block.is_multiple_of(131_072)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{DataDirRelation, PathClass, RelationFile, RelationFork, classify_path, fuzz};

    #[test]
    fn each_path_gets_what_pg_basebackup_does_with_it() {
        for path in [
            "PG_VERSION",
            "postgresql.conf",
            "postgresql.auto.conf",
            "standby.signal",
            "pg_xact/0000",
            "pg_stat/pgstat.stat",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "pg_logical/replorigin_checkpoint",
            "pg_twophase/00000000000002A7",
            "pg_tblspc/readme",
            "current_logfiles",
            "base/5",
            "global",
            "t3_16450",
            "pg_hba.conf",
            "pg_wal_old/x",
            "base/5/16384.0",
            "base/5/16384_x",
            "base/5/016384",
            "base/5/t_16384",
        ] {
            assert_eq!(classify_path(path), PathClass::Copy, "{path}");
        }
        for path in [
            "postmaster.pid",
            "postmaster.opts",
            "backup_label",
            "tablespace_map",
            "backup_manifest",
            "global/pg_internal.init",
            "base/5/pg_internal.init.4711",
            "base/pgsql_tmp",
            "base/pgsql_tmp/pgsql_tmp4711.0",
            "pg_tblspc/16389/PG_15_202209061/pgsql_tmp/x",
            "base/5/t3_16450",
            "base/5/t12_16450_fsm",
            "base/5/t12_16450.1",
            "pg_wal/000000010000000000000001",
            "pg_wal/archive_status/x.ready",
            "pg_replslot/walkeep/state",
            "pg_notify/0000",
            "pg_subtrans/0000",
            "postgresql.auto.conf.tmp",
            "current_logfiles.tmp",
        ] {
            assert_eq!(classify_path(path), PathClass::Skip, "{path}");
        }
        for path in ["pg_wal", "pg_wal/archive_status", "pg_wal/summaries", "pg_replslot", "pg_dynshmem", "pg_stat_tmp"]
        {
            assert_eq!(classify_path(path), PathClass::EmptyDirectory, "{path}");
        }
        assert_eq!(classify_path("global/pg_control"), PathClass::Control);
        assert_eq!(classify_path("pg_tblspc/16389"), PathClass::Tablespace(16_389));
    }

    #[test]
    fn relation_files_are_known_by_their_names() {
        let file = |tablespace, database, filenode, fork, segment| {
            Some(RelationFile { relation: DataDirRelation { tablespace, database, filenode }, fork, segment })
        };
        for (path, expected) in [
            ("base/5/16384", file(1663, 5, 16_384, RelationFork::Main, 0)),
            ("base/5/16384.12", file(1663, 5, 16_384, RelationFork::Main, 12)),
            ("base/5/16384_fsm", file(1663, 5, 16_384, RelationFork::FreeSpace, 0)),
            ("base/5/16384_vm.1", file(1663, 5, 16_384, RelationFork::Visibility, 1)),
            ("global/1262", file(1664, 0, 1262, RelationFork::Main, 0)),
            ("pg_tblspc/16389/PG_15_202209061/5/16390_init", file(16_389, 5, 16_390, RelationFork::Init, 0)),
            ("base/5/4294967296", None),
            ("base/5/16384_tmp", None),
            ("base/16384", None),
            ("pg_tblspc/16389/other/5/16390", None),
        ] {
            assert_eq!(RelationFile::parse(path), expected, "{path}");
        }
        let last = RelationFile::parse("base/5/16384.3").unwrap();
        assert_eq!(last.first_block(131_072), Some(3 * 131_072));
        assert_eq!(RelationFile::parse("base/5/16384.40000").unwrap().first_block(131_072), None);
    }

    proptest! {
        #[test]
        fn any_path_is_classified(path in "((base|global|pg_tblspc|pg_wal|PG_1|t3|[0-9]{1,12}|_init|_fsm|pgsql_tmp)[/._]?){0,7}", any in "\\PC{0,40}") {
            fuzz(path.as_bytes());
            fuzz(any.as_bytes());
        }
    }
}
