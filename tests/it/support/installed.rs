//! Which PostgreSQL majors are here, and where.

use std::path::PathBuf;

/// The major that a test takes unless it is about versions: Debian's, with lz4 and zstd built in.
pub(crate) const QUICK: u32 = 15;

const SUPPORTED: [u32; 6] = [13, 14, 15, 16, 17, 18];

/// Where `tests/setup.sh` puts what it fetches.
pub(crate) fn cache() -> PathBuf {
    if let Some(cache) = std::env::var_os("WALKEEP_CACHE") {
        return cache.into();
    }
    if rustix::process::geteuid().is_root() {
        return "/var/cache/walkeep".into();
    }
    PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache/walkeep")
}

/// The folder with `postgres`, `psql`, `pg_waldump` and the rest of one major.
pub(crate) fn bin(major: u32) -> PathBuf {
    let fetched = cache().join(format!("pg/{major}/bin"));
    let packaged = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    [fetched, packaged]
        .into_iter()
        .find(|folder| folder.join("postgres").exists())
        .unwrap_or_else(|| panic!("PostgreSQL {major} is not installed: run tests/setup.sh"))
}

/// Every supported major that is installed, for tests that are about versions. 15 is always among them.
pub(crate) fn majors() -> Vec<u32> {
    let here = |major: &u32| {
        cache().join(format!("pg/{major}/bin/postgres")).exists()
            || PathBuf::from(format!("/usr/lib/postgresql/{major}/bin/postgres")).exists()
    };
    let found: Vec<u32> = SUPPORTED.into_iter().filter(here).collect();
    assert!(found.contains(&QUICK), "PostgreSQL {QUICK} is not installed: run tests/setup.sh");
    found
}
