//! The rules: the rooms and their order, the owners of foreign systems, the words to avoid, and what is excused for
//! now.

/// The modules of one folder, lowest level first. A module imports from the levels below its own. On its own level it
/// imports only what `neighbours` names, as (importer, imported).
pub(crate) struct Order {
    /// The folder's module, at the root of the crate; empty for the root of the crate.
    pub(crate) folder: &'static str,
    pub(crate) levels: &'static [&'static [&'static str]],
    pub(crate) neighbours: &'static [(&'static str, &'static str)],
}

impl Order {
    /// The module of the folder in which `path` is, if it is below that folder.
    pub(crate) fn child<'a>(&self, path: &'a [String]) -> Option<&'a str> {
        let (first, rest) = path.split_first()?;
        match self.folder {
            "" => Some(first.as_str()),
            folder => rest.first().filter(|_| first == folder).map(String::as_str),
        }
    }

    pub(crate) fn path_of(&self, child: &str) -> String {
        if self.folder.is_empty() { child.to_owned() } else { format!("{}::{child}", self.folder) }
    }

    /// The level of a module, or of an item in the folder's own `mod.rs`.
    pub(crate) fn level(&self, child: Option<&str>) -> Option<usize> {
        let at = |name: &str| self.levels.iter().position(|level| level.contains(&name));
        child.and_then(at).or_else(|| at(REST))
    }
}

/// The level of all modules of a folder that no other level names. They import one another freely, and so does the
/// folder's `mod.rs`.
pub(crate) const REST: &str = "*";

pub(crate) const ORDERS: [Order; 5] = [
    Order {
        folder: "",
        levels: &[
            &["base"],
            &["vault"],
            &["postgres", "redis"],
            &["joint"],
            &["control", "config"],
            &["service"],
            &["cli"],
            &["main"],
        ],
        neighbours: &[],
    },
    Order {
        folder: "base",
        levels: &[&[
            "clock",
            "durable",
            "disk",
            "lock",
            "retry",
            "error_kind",
            "pipeline",
            "blocking",
            "scoped_threads",
            "schedule",
            "pem",
            "findings",
            "units",
            "restore_estimate",
        ]],
        neighbours: &[
            ("retry", "clock"),
            ("error_kind", "retry"),
            ("blocking", "error_kind"),
            ("findings", "schedule"),
            ("findings", "disk"),
            ("findings", "units"),
            ("findings", "clock"),
            ("restore_estimate", "durable"),
        ],
    },
    Order { folder: "vault", levels: &[&["seal"], &["repository"], &[REST]], neighbours: &[] },
    Order {
        folder: "postgres",
        levels: &[
            &["format"],
            &["wal"],
            &["session_settings"],
            &["wire", "sql", "index"],
            &["archive"],
            &["fork_check"],
            &[
                "receive",
                "archive_push",
                "archive_get",
                "backup",
                "restore",
                "log",
                "retention",
                "verify",
                "health",
                "check",
            ],
        ],
        // Both describe a server by the same connection string.
        neighbours: &[("sql", "wire")],
    },
    Order {
        folder: "redis",
        levels: &[
            &["format"],
            &["wire"],
            &["archive"],
            &["receive", "backup", "restore", "log", "retention", "verify", "health", "check"],
        ],
        neighbours: &[],
    },
];

/// The only rooms that may import both wings.
pub(crate) const BOTH_WINGS: [&str; 4] = ["joint", "config", "service", "cli"];

/// Modules that the tables name and the tree does not have yet. An entry that exists must go.
pub(crate) const PLANNED: [&str; 2] = ["service", "redis::backup"];

/// A foreign system, by the path that names it, and the only modules that may.
pub(crate) const OWNERS: [(&str, &[&str]); 25] = [
    ("object_store", &["vault::repository"]),
    ("rocksdb", &["postgres::index"]),
    ("tokio_postgres", &["postgres::sql"]),
    ("tokio_postgres_rustls", &["postgres::sql"]),
    ("postgres_protocol", &["postgres::wire"]),
    ("clap", EDGE),
    ("anyhow", EDGE),
    ("println!", OUTPUT),
    ("print!", OUTPUT),
    ("eprintln!", OUTPUT),
    ("eprint!", OUTPUT),
    ("fs::rename", &["base::durable"]),
    ("SystemTime::now", &["base::clock"]),
    ("Timestamp::now", &["base::clock"]),
    ("Zoned::now", &["base::clock"]),
    ("Instant::now", &["base::clock"]),
    ("tokio::time", &["base::clock"]),
    ("TcpStream", SOCKETS),
    ("TcpListener", SOCKETS),
    ("UnixStream", SOCKETS),
    ("UnixListener", SOCKETS),
    ("env::var", ENVIRONMENT),
    ("env::var_os", ENVIRONMENT),
    ("env::vars", ENVIRONMENT),
    ("env::vars_os", ENVIRONMENT),
];

const EDGE: &[&str] = &["service", "cli"];
const OUTPUT: &[&str] = &["cli"];
const SOCKETS: &[&str] = &["postgres::wire", "redis::wire", "control", "service"];
const ENVIRONMENT: &[&str] = &["config", "service", "cli"];

/// Bytes in, values out.
pub(crate) const PURE: [&str; 4] = ["vault::seal", "postgres::format", "postgres::wal", "redis::format"];

/// What no pure module names. `async` is a keyword, the others are paths.
pub(crate) const IMPURE: [&str; 7] = ["async", "std::fs", "std::net", "std::env", "SystemTime", "Instant", "tokio"];

/// Names without meaning.
pub(crate) const EMPTY_NAMES: [&str; 8] = ["util", "utils", "common", "helper", "helpers", "manager", "misc", "types"];

/// The longest file, in lines.
pub(crate) const LINES: usize = 800;

/// The widest line, in columns. rustfmt holds code to it; comments and strings are counted here.
pub(crate) const COLUMNS: usize = 120;

/// Assembled from parts, so that this file may name them.
pub(crate) const UNFINISHED: [&str; 4] =
    [concat!("to", "do!"), concat!("TO", "DO"), concat!("FIX", "ME"), concat!("XX", "X:")];

/// Pages of other projects that comments name.
pub(crate) const FOREIGN_PAGES: [&str; 1] = ["lz4_Frame_format.md"];

/// Faults that are excused for now, by file and by what it names. The list may only shrink: an entry that no longer
/// occurs fails the test.
pub(crate) const KNOWN: &[(&str, &str)] = &[];

/// Files of `src` that are in a component of more than one file of the import graph. May only fall.
pub(crate) const FILES_IN_CYCLES: usize = 0;

/// Lines of Rust wider than [`COLUMNS`]. May only fall.
pub(crate) const WIDE_LINES: usize = 116;

/// Doc comments of a single word: make the item private instead. May only fall.
pub(crate) const ONE_WORD_DOCS: usize = 102;

/// A word or phrase, what to write instead, and how often it occurs. Counted are README.md, docs/*.md, docs/decisions/
/// and the strings and doc comments of `src`, tests apart. The numbers may only fall. `…` is one to five words of the
/// same sentence.
pub(crate) const WORDS: &[(&str, &str, usize)] = &[
    ("misses", "reports … as missing", 4),
    ("says", "reports, prints, shows, returns", 293),
    ("tells", "reports, prints, shows, returns", 40),
    ("is told", "is notified", 33),
    ("is said", "is reported", 23),
    ("comes", "arrives, is received", 124),
    ("came", "arrived, was received", 85),
    ("come by", "received", 10),
    ("is away", "is unreachable", 13),
    ("whoever", "the process that …", 35),
    ("nobody", "no process", 67),
    ("somebody", "another process, the user", 34),
    ("anew", "again, recreated", 38),
    ("mend", "fix", 13),
    ("mended", "fixed", 1),
    ("behind", "after", 91),
    ("leads to", "restores to, makes … restorable", 31),
    ("stands", "is, is stored", 115),
    ("lies", "is, is stored", 54),
    ("goes on", "continues, resumes", 75),
    ("there already", "an existing …", 21),
    ("no whole segment", "an incomplete segment", 2),
    ("no more", "no longer", 25),
    ("for ever", "indefinitely", 17),
    ("by then", "at that point", 15),
    ("of itself", "on its own", 6),
    ("keeps … from", "prevents … from", 17),
    ("rests on", "depends on, assumes", 8),
    ("likewise", "also", 3),
    ("lest", "so that … not", 0),
    ("hence", "so", 0),
    ("thus", "so", 0),
    ("thereby", "so", 0),
    ("whence", "from where", 0),
    ("rubbish", "padding, stale bytes", 0),
];
