//! Each rule on a text that breaks it, and on one that does not.

use crate::lexer::{Token, lex};
use crate::prose::{lost_modules, lost_references, occurrences, one_word_docs, page_words, source_words, wide_lines};
use crate::rules::{Fault, table_faults, text_faults, tree_faults};
use crate::source::Source;
use crate::tables::{COLUMNS, LINES};
use crate::tree::Tree;
use crate::visibility::unused_public_items;
use crate::{ratchet, unexcused};

fn tree(files: &[(&str, &str)]) -> Tree {
    let files: Vec<(String, String)> =
        files.iter().map(|(path, text)| ((*path).to_owned(), format!("//! A file.\n{text}\n"))).collect();
    Tree::new(&files)
}

/// What is wrong with a file whose neighbours are the modules of a small tree.
fn faults(path: &str, text: &str) -> Vec<Fault> {
    let around = [
        ("src/vault/repository/mod.rs", ""),
        ("src/postgres/wire/mod.rs", "pub use conninfo::Conninfo;"),
        ("src/postgres/wire/conninfo.rs", ""),
        ("src/postgres/archive/mod.rs", ""),
    ];
    let around = around.into_iter().filter(|(other, _)| *other != path);
    let files: Vec<(&str, &str)> = around.chain([(path, text)]).collect();
    let found = [text_faults(path, text), tree_faults(&tree(&files))].concat();
    found.into_iter().filter(|fault| fault.path == path).collect()
}

#[test]
fn what_must_be_caught_is_caught() {
    let wrong = [
        // Rooms.
        ("src/base/retry.rs", "use crate::vault::Vault;", "imports `vault`"),
        ("src/vault/name.rs", "use crate::postgres::archive;", "imports `postgres::archive`"),
        ("src/redis/wire/info.rs", "use crate::postgres::wire::Conninfo;", "imports `postgres::wire`"),
        ("src/redis/wire/info.rs", "use super::super::super::postgres::wire;", "imports `postgres::wire`"),
        ("src/postgres/sql.rs", "use crate::{base::clock, redis};", "imports `redis`"),
        ("src/joint/plan.rs", "use crate::config::Config;", "imports `config`"),
        ("src/control.rs", "use crate::config::Config;", "imports `config`"),
        ("src/config/mod.rs", "fn f() { crate::cli::run() }", "imports `cli`"),
        ("src/vault/name.rs", "#[cfg(test)]\nmod tests { use crate::redis; }", "imports `redis`"),
        ("src/control.rs", "use crate::{postgres::wire, redis::wire as other};", "imports both wings"),
        ("src/elsewhere.rs", "", "no level"),
        ("src/postgres/elsewhere/mod.rs", "", "no level"),
        // Levels of a room.
        ("src/base/lock.rs", "use super::clock::Clock;", "imports `base::clock`"),
        ("src/vault/seal/mod.rs", "use crate::vault::repository::Repository;", "imports `vault::repository`"),
        ("src/vault/seal/keys.rs", "use super::super::Error;", "imports `vault::Error`"),
        ("src/vault/repository/key.rs", "use crate::vault::name::Name;", "imports `vault::name`"),
        ("src/postgres/format/page.rs", "use crate::postgres::wal::page;", "imports `postgres::wal`"),
        (
            "src/postgres/wal/decode.rs",
            "use crate::postgres::{format::lsn::Lsn, index::Index};",
            "imports `postgres::index`",
        ),
        ("src/postgres/wire/mod.rs", "use crate::postgres::sql::Sql;", "imports `postgres::sql`"),
        ("src/postgres/index/mod.rs", "use super::archive as store;", "imports `postgres::archive`"),
        ("src/postgres/archive_push.rs", "use super::archive_get::fetch;", "imports `postgres::archive_get`"),
        ("src/postgres/receive/mod.rs", "let x = crate::postgres::backup::take();", "imports `postgres::backup`"),
        (
            "src/postgres/receive/mod.rs",
            "use crate::postgres; fn f() { postgres::log::read() }",
            "imports `postgres::log`",
        ),
        ("src/postgres/mod.rs", "pub use crate::postgres::restore::Plan;", "imports `postgres::restore`"),
        ("src/redis/archive/mod.rs", "use crate::redis::receive;", "imports `redis::receive`"),
        ("src/redis/verify/mod.rs", "use crate::redis::health::Health;", "imports `redis::health`"),
        // Foreign systems.
        ("src/postgres/archive/fetch.rs", "use object_store::path::Path;", "belongs to vault::repository"),
        ("src/postgres/archive/fetch.rs", "use rocksdb::DB;", "belongs to postgres::index"),
        ("src/postgres/backup/mod.rs", "fn f(row: ::tokio_postgres::Row) {}", "belongs to postgres::sql"),
        ("src/redis/wire/tls.rs", "use postgres_protocol::message;", "belongs to postgres::wire"),
        ("src/postgres/restore/mod.rs", "std::fs::rename(a, b)?;", "belongs to base::durable"),
        ("src/postgres/restore/mod.rs", "use std::fs;\nfn f() { fs::rename(a, b) }", "belongs to base::durable"),
        ("src/postgres/index/mod.rs", "use anyhow::Context;", "belongs to service, cli"),
        ("src/postgres/receive/mod.rs", "println!(\"x\");", "belongs to cli"),
        ("src/config/mod.rs", "eprintln!(\"x\");", "belongs to cli"),
        ("src/postgres/sql.rs", "use tokio::{net, time::sleep};", "`tokio::time` belongs to base::clock"),
        ("src/redis/log/mod.rs", "use jiff::Timestamp;\nlet now = Timestamp::now();", "belongs to base::clock"),
        ("src/redis/backup/mod.rs", "tokio::net::TcpStream::connect(x)", "belongs to postgres::wire"),
        ("src/vault/mod.rs", "std::env::var(\"KEY\")", "belongs to config"),
        // Pure modules.
        ("src/vault/seal/opening.rs", "    async fn open() {}", "`async` in a pure module"),
        ("src/postgres/format/pg_control.rs", "use std::fs::File;", "`std::fs` in a pure module"),
        ("src/postgres/wal/page.rs", "use std::{fs, io};", "`std::fs` in a pure module"),
        ("src/redis/format/rdb.rs", "tokio::spawn(x);", "`tokio` in a pure module"),
        // Files.
        ("src/postgres/archive/util.rs", "", "has no meaning"),
        ("src/postgres/archive/fetch.rs", concat!("to", "do!()"), "do it"),
        ("src/cli/mod.rs", "// TO\u{44}O: later", "do it"),
    ];
    for (path, text, expected) in wrong {
        let found = faults(path, text);
        assert!(found.iter().any(|fault| fault.what.contains(expected)), "{path}: {text}: {found:?}");
    }
    let plain = Tree::new(&[("src/cli/get.rs".into(), "use x;\n".into())]);
    assert!(!tree_faults(&plain).is_empty(), "a file without a first comment");
    assert!(!text_faults("tests/it/main.rs", &"//!\n".repeat(LINES + 1)).is_empty(), "a file too long");
}

#[test]
fn what_is_allowed_passes() {
    let right = [
        ("src/postgres/wal/decode.rs", "use crate::postgres::format::lsn::Lsn;"),
        ("src/postgres/wal/decode.rs", "use super::page::Page; // not tokio::spawn, nor crate::redis::wire"),
        ("src/postgres/wal/decode.rs", "const HELP: &str = \"crate::redis tokio::spawn\";"),
        ("src/postgres/wal/decode.rs", "#[cfg(test)]\nmod tests {\n use super::*;\n use std::fs;\n async fn f() {} }"),
        ("src/postgres/format/page.rs", "use super::pg_control::Control;"),
        ("src/postgres/sql.rs", "use crate::postgres::wire::Conninfo;\nuse tokio_postgres::Row;"),
        ("src/postgres/restore/plan/mod.rs", "use super::target::Target;\nuse crate::postgres::restore;"),
        ("src/base/retry.rs", "use super::clock::Clock;"),
        ("src/base/clock/mod.rs", "tokio::time::sleep(x).await; std::time::SystemTime::now();"),
        ("src/vault/repository/store.rs", "use object_store::ObjectStore;\nuse crate::vault::seal::Kind;"),
        ("src/vault/mod.rs", "use crate::vault::{name::Name, seal};\npub use repository::Repository;"),
        (
            "src/postgres/archive_push.rs",
            "use crate::{vault::Vault, postgres::{archive::Archive, format::{lsn, segment}}};",
        ),
        ("src/postgres/mod.rs", "pub mod wire;\npub mod archive;"),
        ("src/joint/restore.rs", "use crate::{postgres::restore, redis::restore as other};"),
        ("src/cli/mod.rs", "use crate::config::Config;\nfn f() { println!(\"x\") }"),
        ("src/main.rs", "fn main() { walkeep::cli::run() }"),
    ];
    for (path, text) in right {
        let found = faults(path, text);
        assert!(found.is_empty(), "{path}: {text}: {found:?}");
    }
}

#[test]
fn cycles_of_files_are_found() {
    let parent = ("src/vault/mod.rs", "mod a;\nmod b;\npub use a::A;");
    // A parent's `mod` is no import, what it exports again is.
    assert!(tree(&[("src/vault/mod.rs", "mod a;"), ("src/vault/a.rs", "use super::Vault;")]).cycles().is_empty());
    let through_parent =
        tree(&[parent, ("src/vault/a.rs", "use super::Vault;"), ("src/vault/b.rs", "use crate::vault::A;")]);
    assert_eq!(through_parent.cycles(), [["src/vault/a.rs", "src/vault/mod.rs"]]);
    let siblings = [
        parent,
        ("src/vault/a.rs", "fn f() { super::b::g() }"),
        ("src/vault/b.rs", "use self::inner::X;\nmod inner { use crate::vault::a::A; }"),
    ];
    assert_eq!(tree(&siblings).cycles(), [["src/vault/a.rs", "src/vault/b.rs"]]);
    let in_tests = [
        parent,
        ("src/vault/a.rs", "use super::b::B;"),
        ("src/vault/b.rs", "#[cfg(test)]\nmod tests { use super::super::a::A; }"),
    ];
    assert!(tree(&in_tests).cycles().is_empty());
    // A visibility is no import.
    let seen = [("src/vault/mod.rs", "mod a;\nuse a::A;"), ("src/vault/a.rs", "pub(in crate::vault) struct A;")];
    assert!(tree(&seen).cycles().is_empty());
    let named =
        [("src/vault/mod.rs", "mod a;\nuse a::A;"), ("src/vault/a.rs", "pub(super) struct A(crate::vault::B);")];
    assert_eq!(tree(&named).cycles(), [["src/vault/a.rs", "src/vault/mod.rs"]]);
}

#[test]
fn files_for_tests_are_known() {
    let tree = tree(&[
        ("src/vault/mod.rs", "mod b;\n#[cfg(test)]\n#[path = \"x\"]\nmod tests;\n#[cfg(test)]\npub(crate) mod fault;"),
        ("src/vault/b.rs", "#[cfg(not(test))]\nmod c;"),
    ]);
    let only_tests = |path: &str| tree.only_tests(&path.split("::").map(str::to_owned).collect::<Vec<_>>());
    assert!(only_tests("vault::tests") && only_tests("vault::fault::inner"));
    assert!(!only_tests("vault::b") && !only_tests("vault::b::c"));
}

#[test]
fn public_items_without_a_user_are_found() {
    let unused = |text: &str, other: &str| {
        let files = [("src/vault/a.rs".to_owned(), text.to_owned()), ("tests/it/b.rs".to_owned(), other.to_owned())];
        let found = unused_public_items(&files, &Tree::new(&files));
        found.into_iter().map(|fault| format!("{}:{}", fault.line, fault.key)).collect::<Vec<_>>().join(" ")
    };
    let items = "pub fn a() {}\npub(crate) const B: u8 = 1;\npub(in crate::vault) struct C;\npub const fn d() {}";
    assert_eq!(unused(items, ""), "1:a 2:B 3:C 4:d");
    assert_eq!(unused(items, "use x::{a, B};\nfn f(_: x::C) { x::d() }"), "");
    assert_eq!(unused(items, "use x::*;\nfn f(_: C) { a(); d(); B }"), "");
    assert_eq!(
        unused(items, "// x::a\nconst E: &str = \"x::a\"; fn a(B: u8) { y.d() }\npub use x::C;"),
        "1:a 2:B 3:C 4:d"
    );
    // A method is called, and a field of its name is no call.
    let method =
        "impl<T: Fn() -> u8> S<T> {\n pub fn a(self, x: impl Copy) {}\n pub async fn b() {} }\nimpl Drop for S {}";
    assert_eq!(unused(method, "fn f() { s.a; s.c(); let b = a(); }"), "2:a 3:b");
    assert_eq!(unused(method, "fn f() { s.a(); S::b }"), "");
    // What a public item shows is as public as that item.
    let shown = [
        "pub struct A;\npub fn f() -> Result<A, ()> {}",
        "pub struct A;\npub struct f {\n pub b: Vec<(u8, A)>, c: u8 }",
        "pub enum A {}\npub enum f { B(A) }",
        "pub enum A {}\nimpl X for f { type Error = A; }\npub struct f;",
        "pub fn A() {}\nmacro_rules! m { () => { $crate::vault::a::A() } }",
    ];
    for text in shown {
        assert_eq!(unused(text, "use x::f;"), "", "{text}");
    }
    assert_eq!(unused("pub struct A;\npub fn f() { A }\npub struct g { b: A }", "use x::{f, g};"), "1:A");
    // Tests, inline modules and private items are not asked about.
    assert_eq!(
        unused(
            "#[cfg(test)]\npub fn a() {}\nmod b { pub(super) fn c() {} }\npub mod g { pub fn h() {} }\nfn d() {}",
            ""
        ),
        ""
    );
}

#[test]
fn what_is_lost_is_found() {
    let exists = |path: &str| ["docs/format/keys.md", "docs/x.md", "tests/it", "tests/it/", "src/a.rs"].contains(&path);
    let lost = |path: &str, text: &str| {
        let found = lost_references(path, text, &exists);
        found.into_iter().map(|fault| fault.key).collect::<Vec<_>>()
    };
    assert_eq!(
        lost("docs/format/a.md", "see [keys](keys.md#a), [x](../gone.md) and `src/b.rs`"),
        ["../gone.md", "src/b.rs"]
    );
    assert_eq!(
        lost("src/a.rs", "// docs/gone.md, docs/x.md.\nlet a = \"docs/no.md\"; // tests/it/{a,b}"),
        ["docs/gone.md"]
    );
    assert_eq!(lost("Makefile", "# tests/gone.sh:12 https://a.b/tests/c.md tests/it."), ["tests/gone.sh"]);

    let modules = tree(&[("src/vault/seal/mod.rs", "pub fn check() {}")]);
    let lost = |text: &str| lost_modules("docs/a.md", text, &modules).len();
    assert_eq!(lost("`seal::check`, `vault::seal`, `tokio::time` and `a: b`"), 0);
    assert_eq!(lost("`seal::gone`, `vault::seal::Gone`, `explore::check`"), 3);

    let empty = table_faults(&modules);
    let has = |text: &str| empty.iter().any(|fault| fault.contains(text));
    assert!(has("`vault::repository`, which does not exist") && has("`wire` any longer") && !has("`vault::seal`"));
    assert!(
        table_faults(&tree(&[("src/service/mod.rs", "")])).iter().any(|fault| fault.contains("remove it from PLANNED"))
    );
}

#[test]
fn numbers_only_fall() {
    assert!(ratchet("x", 2, 2, "").is_none());
    assert!(ratchet("x", 2, 3, " here").is_some_and(|what| what.contains("at most") && what.ends_with("here")));
    assert!(ratchet("x", 2, 1, "").is_some_and(|what| what.contains("write 1")));
    let fault = Fault::new("a.rs", 3, "postgres::wire", "wrong".into());
    assert_eq!(unexcused(std::slice::from_ref(&fault), &[]), ["a.rs:3: wrong"]);
    assert!(unexcused(std::slice::from_ref(&fault), &[("a.rs", "postgres::wire")]).is_empty());
    assert_eq!(unexcused(&[fault], &[("a.rs", "postgres::sql")]).len(), 2);
    assert_eq!(wide_lines(&format!("{}\n{}", "ä".repeat(COLUMNS), "a".repeat(COLUMNS + 1))), [2]);
}

#[test]
fn words_are_counted_where_people_read() {
    let page = page_words("It says so.\nIt leads\nto x.\n```\nsays\n```\nkeeps the one from it. keeps it. from");
    let lines = |phrase: &str| occurrences(&page, phrase);
    assert_eq!((lines("says"), lines("leads to"), lines("keeps … from")), (vec![1], vec![2], vec![7]));
    let text = [
        "/// Nobody",
        "/// here.",
        "fn says() {} // nobody",
        "const A: &str = \"a \\",
        "  nobody\";",
        "/// One.",
        "#[cfg(test)]",
        "mod tests { const B: &str = \"nobody\"; }",
    ];
    let source = Source::new("src/a.rs", &text.join("\n"));
    assert_eq!(occurrences(&source_words(&source), "nobody"), [1, 5]);
    assert!(occurrences(&source_words(&source), "says").is_empty());
    assert_eq!(one_word_docs(&source), [6]);
}

#[test]
fn strings_and_comments_are_told_from_code() {
    let text = "a /* b /* c */ d */ 'e' '\\'' &'f r#\"g\"h\"# \"i\\\"j\" br\"k\" r#l b'm' // n\no::p";
    let names: Vec<String> = lex(text).iter().filter_map(|(_, token)| token.name().map(str::to_owned)).collect();
    assert_eq!(names, ["a", "l", "o", "p"]);
    let texts =
        lex(text).into_iter().filter_map(|(_, token)| if let Token::Text(text) = token { Some(text) } else { None });
    assert_eq!(texts.collect::<Vec<_>>(), ["g\"h", "i j", "k"]);
    assert_eq!(lex(text).last(), Some(&(2, Token::Name("p".into()))));
}
