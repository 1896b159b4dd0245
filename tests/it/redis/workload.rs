//! A client that works on a Redis without a pause and keeps a record of its own: of each thing it did, when it asked
//! and when it had the answer by its own clock, and what that made of the data, said in commands that leave nothing to
//! chance or to the time at which they run. Replayed into an empty server, a beginning of the record is the state that
//! the server had after it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use jiff::Timestamp;
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng};

/// Each client has so many databases: from `base` on. Things that are brief are in the first two, the others may be
/// flushed and swapped.
const DATABASES: u32 = 4;
/// Far ahead, in milliseconds.
const FAR: i64 = 4_102_444_800_000;

pub(crate) type Words = Vec<Vec<u8>>;

#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Reply {
    Status(String),
    Error(String),
    Number(i64),
    Bulk(Vec<u8>),
    Nil,
    Many(Vec<Reply>),
}

impl Reply {
    fn text(&self) -> Option<String> {
        match self {
            Reply::Bulk(text) => Some(String::from_utf8(text.clone()).expect("text")),
            _ => None,
        }
    }
}

/// Words of a command, at the blanks.
fn words(text: &str) -> Words {
    text.split(' ').map(|word| word.as_bytes().to_vec()).collect()
}

fn encoded(into: &mut Vec<u8>, words: &[Vec<u8>]) {
    write!(into, "*{}\r\n", words.len()).expect("memory");
    for word in words {
        write!(into, "${}\r\n", word.len()).expect("memory");
        into.extend_from_slice(word);
        into.extend_from_slice(b"\r\n");
    }
}

/// A plain connection.
pub(crate) struct Client(BufReader<UnixStream>);

impl Client {
    pub(crate) fn connect(socket: &Path) -> Client {
        Client(BufReader::new(UnixStream::connect(socket).expect("connect")))
    }

    pub(crate) fn ask(&mut self, command: &[Vec<u8>]) -> Reply {
        self.ask_all(std::slice::from_ref(&command.to_vec())).remove(0)
    }

    /// All in one write.
    fn ask_all(&mut self, commands: &[Words]) -> Vec<Reply> {
        let mut bytes = Vec::new();
        commands.iter().for_each(|command| encoded(&mut bytes, command));
        self.0.get_mut().write_all(&bytes).expect("asked");
        commands.iter().map(|_| self.read()).collect()
    }

    fn read(&mut self) -> Reply {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        let (kind, text) = line.trim_end().split_at(1);
        let number = || text.parse::<i64>().expect("a number");
        match kind {
            "+" => Reply::Status(text.to_owned()),
            "-" => Reply::Error(text.to_owned()),
            ":" => Reply::Number(number()),
            "$" | "*" if number() < 0 => Reply::Nil,
            "$" => {
                let mut bulk = vec![0; usize::try_from(number()).expect("a length") + 2];
                self.0.read_exact(&mut bulk).expect("a bulk");
                bulk.truncate(bulk.len() - 2);
                Reply::Bulk(bulk)
            }
            "*" => Reply::Many((0..number()).map(|_| self.read()).collect()),
            _ => panic!("no answer: {line:?}"),
        }
    }
}

/// What a server must do to have the same data.
#[derive(Clone, Debug)]
pub(crate) struct Effect {
    db: u32,
    words: Words,
}

/// One thing that was done at once: a command, a script, a transaction.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    /// By the client's clock, in microseconds since 1970.
    pub(crate) asked: i64,
    pub(crate) answered: i64,
    effects: Vec<Effect>,
    /// The number that it wrote into `seq`.
    number: Option<u64>,
    /// Keys that are brief from then on and not before which millisecond they expire, or that are so no longer.
    brief: Vec<(String, Option<i64>)>,
}

/// All that one client did, in order.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) base: u32,
    pub(crate) units: Vec<Unit>,
}

impl Record {
    /// How many units may have happened, if this was the number: all up to the one that wrote it, and those before the
    /// next that writes one.
    pub(crate) fn lengths(&self, number: u64) -> Vec<usize> {
        let wrote = |unit: &Unit| unit.number == Some(number);
        let after = if number == 0 { Some(0) } else { self.units.iter().position(wrote).map(|at| at + 1) };
        let after = after.expect("a number that was written");
        let silent = self.units[after..].iter().take_while(|unit| unit.number.is_none()).count();
        (after..=after + silent).collect()
    }

    /// The keys that may have expired by this millisecond after so many units.
    pub(crate) fn expired(&self, len: usize, by: i64) -> BTreeSet<String> {
        let mut brief = BTreeMap::new();
        for (key, until) in self.units[..len].iter().flat_map(|unit| &unit.brief) {
            brief.insert(key.clone(), *until);
        }
        // A millisecond for each clock that is read in whole ones.
        brief.into_iter().filter(|(_, until)| until.is_some_and(|until| until - 2 <= by)).map(|(key, _)| key).collect()
    }

    /// Appends what so many units did, as an append-only file says it.
    pub(crate) fn replay(&self, len: usize, into: &mut Vec<u8>) {
        let mut db = None;
        for effect in self.units[..len].iter().flat_map(|unit| &unit.effects) {
            if db.replace(effect.db) != Some(effect.db) {
                encoded(into, &words(&format!("SELECT {}", effect.db)));
            }
            encoded(into, &effect.words);
        }
    }
}

/// A client at work.
pub(crate) struct Worker {
    client: Client,
    base: u32,
    db: u32,
    nth: u64,
    random: SmallRng,
    functions: bool,
    field_expiry: bool,
    brief_fields: bool,
    units: Vec<Unit>,
}

/// What became of one command, and when.
struct Answer {
    asked: i64,
    answered: i64,
    reply: Reply,
}

impl Answer {
    fn is_error(&self) -> bool {
        matches!(self.reply, Reply::Error(_))
    }

    /// The effect's time for something that lasts so many milliseconds from then on.
    fn until(&self, lasts: i64) -> String {
        (self.answered / 1000 + lasts).to_string()
    }
}

fn now() -> i64 {
    Timestamp::now().as_microsecond()
}

impl Worker {
    /// On the four databases from `base` on of a server of this version.
    pub(crate) fn new(socket: &Path, base: u32, version: &str) -> Worker {
        let mut worker = Worker {
            client: Client::connect(socket),
            base,
            db: 0,
            nth: 0,
            random: SmallRng::seed_from_u64(u64::from(base) + 1),
            functions: version != "6.2",
            field_expiry: ["8.2", "valkey9"].contains(&version),
            // Valkey lets fields expire even in a server that is at rest, so nobody could look whether they were there.
            brief_fields: version == "8.2",
            units: Vec::new(),
        };
        if worker.functions && base == 0 {
            worker.load_function();
        }
        worker
    }

    /// Until it is told to stop; `done` says how many units have been answered.
    pub(crate) fn run(mut self, stop: &AtomicBool, done: &AtomicU64) -> Record {
        while !stop.load(Ordering::Relaxed) {
            self.step();
            done.store(self.units.len() as u64, Ordering::SeqCst);
        }
        Record { base: self.base, units: self.units }
    }

    fn pick(&mut self, many: u64) -> u64 {
        self.random.random_range(0..many)
    }

    fn select(&mut self, db: u32) {
        if self.db != db {
            assert_eq!(self.client.ask(&words(&format!("SELECT {db}"))), Reply::Status("OK".into()));
            self.db = db;
        }
    }

    fn ask(&mut self, command: &[Vec<u8>]) -> Answer {
        let asked = now();
        let reply = self.client.ask(command);
        Answer { asked, answered: now(), reply }
    }

    fn effect(&self, text: &str) -> Effect {
        Effect { db: self.db, words: words(text) }
    }

    fn note(&mut self, answer: &Answer, effects: Vec<Effect>, number: Option<u64>, brief: Vec<(String, Option<i64>)>) {
        self.units.push(Unit { asked: answer.asked, answered: answer.answered, effects, number, brief });
    }

    /// A command whose effect is itself.
    fn plainly(&mut self, command: Words) -> Answer {
        let answer = self.ask(&command);
        let effects = if answer.is_error() { Vec::new() } else { vec![Effect { db: self.db, words: command }] };
        self.note(&answer, effects, None, Vec::new());
        answer
    }

    fn step(&mut self) {
        self.nth += 1;
        if self.pick(3) == 0 {
            let db = self.base + self.random.random_range(0..DATABASES);
            self.select(db);
        }
        match self.pick(100) {
            0..50 => {
                let command = self.plain();
                self.plainly(command);
            }
            50..60 => return self.transaction(),
            60..64 => return self.script(),
            64..66 => self.failing_script(),
            66..69 => self.function(),
            69..72 => self.optimistic(),
            72..77 => self.long(),
            77..84 => self.brief(),
            84..91 => self.again(),
            91..93 => self.copied(),
            _ => self.by_chance(),
        }
        self.select(self.base);
        let nth = self.nth;
        let command = words(&format!("SET seq {nth}"));
        let answer = self.ask(&command);
        let effect = self.effect(&format!("SET seq {nth}"));
        self.note(&answer, vec![effect], Some(nth), Vec::new());
    }

    /// Something that depends on nothing but the data.
    fn plain(&mut self) -> Words {
        let n = self.nth;
        let (k, j, i) = (self.pick(8), self.pick(8), self.pick(8));
        let (g, c) = (j % 3, i % 3);
        let (db, from) = (self.base + self.random.random_range(0..DATABASES), self.base + 2);
        let kind = self.pick(66);
        words(&match kind {
            0 => format!("SET s{k} {n}"),
            1 => format!("SET s{k} {n} XX"),
            2 => format!("SETNX s{k} {n}"),
            3 => format!("GETSET s{k} {n}"),
            4 => format!("GETDEL s{k}"),
            5 => format!("MSET s{k} {n} s{j} x{n}"),
            6 => format!("APPEND a{k} part-{n}"),
            7 => format!("SETRANGE a{k} {} {n}", n % 400),
            8 => format!("INCRBY c{k} {i}"),
            9 => format!("DECR c{k}"),
            10 => format!("RPUSH l{k} {n} tail-{n} x{}", "x".repeat(usize::try_from(n % 90).expect("few"))),
            11 => format!("LPUSH l{k} {n}"),
            12 => format!("LPOP l{k} 2"),
            13 => format!("RPOP l{k}"),
            14 => format!("LMOVE l{k} l{j} LEFT RIGHT"),
            15 => format!("LTRIM l{k} -60 -1"),
            16 => format!("LSET l{k} 0 set-{n}"),
            17 => format!("LREM l{k} 1 x"),
            18 => format!("SADD set{k} {} a b c", n % 200),
            19 => format!("SREM set{k} a b"),
            20 => format!("SMOVE set{k} set{j} c"),
            21 => format!("SINTERSTORE set{k} set{j} set{i}"),
            22 => format!("SDIFFSTORE set{k} set{j} set{i}"),
            23 | 60 => format!("SADD ints{k} {}", n % 900),
            24 | 61 => format!("ZADD z{k} {n}.25 m{}", n % 60),
            25 => format!("ZINCRBY z{k} 1.5 m{}", n % 60),
            26 => format!("ZPOPMIN z{k} 2"),
            27 => format!("ZUNIONSTORE z{k} 2 z{j} z{i} AGGREGATE MAX"),
            28 => format!("ZRANGESTORE z{k} z{j} 0 20"),
            29 => format!("ZREM z{k} m{}", n % 60),
            30 | 62 => format!("HSET h{k} f{} {n} g x{n}", n % 50),
            31 => format!("HINCRBY h{k} count {i}"),
            32 => format!("HDEL h{k} f{} g", n % 50),
            33 => format!("HSETNX h{k} f{} first", n % 50),
            34 => format!("XTRIM x{k} MAXLEN 30"),
            35 => format!("XGROUP CREATE x{k} g{g} 0 MKSTREAM"),
            36 => format!("XGROUP CREATECONSUMER x{k} g{g} c{c}"),
            37 | 63 => format!("XREADGROUP GROUP g{g} c{c} COUNT 3 STREAMS x{k} >"),
            38 => format!("XAUTOCLAIM x{k} g{g} c{c} 0 0 COUNT 5"),
            39 => format!("XGROUP SETID x{k} g{g} $"),
            40 => format!("XGROUP DELCONSUMER x{k} g{g} c{c}"),
            41 if i == 0 => format!("XGROUP DESTROY x{k} g{g}"),
            42 | 64 => format!("PFADD p{k} {n} more-{n}"),
            43 => format!("PFMERGE p{k} p{j}"),
            44 => format!("PFCOUNT p{k}"),
            45 | 65 => format!("GEOADD geo{k} 13.{} 38.{} m{}", n % 1000, n % 777, n % 30),
            46 => format!("GEOSEARCHSTORE geo{k} geo{j} FROMLONLAT 13 38 BYRADIUS 90 km ASC COUNT 9"),
            47 => format!("SETBIT b{k} {} 1", n % 600),
            48 => format!("BITFIELD b{k} SET u8 #{} {} OVERFLOW SAT INCRBY i5 100 3", n % 50, n % 256),
            49 => format!("BITOP XOR b{k} b{j} b{i}"),
            50 => format!("RENAME s{k} s{j}"),
            51 => format!("COPY l{k} l{j} REPLACE"),
            52 => format!("MOVE s{k} {db}"),
            53 => format!("PERSIST s{k}"),
            54 => format!("EXPIREAT s{k} {}", FAR / 1000 + i64::try_from(n).expect("few")),
            55 => format!("PEXPIREAT h{k} {}", FAR + i64::try_from(n).expect("few")),
            56 => format!("DEL s{k} l{j}"),
            57 => format!("UNLINK z{k}"),
            58 => format!("SORT ints{k} STORE sorted{k}"),
            59 if self.field_expiry => format!("HPEXPIREAT h{k} {FAR} FIELDS 2 f1 f2"),
            _ if n.is_multiple_of(7) && self.db == from => "FLUSHDB".to_owned(),
            _ if n.is_multiple_of(7) => format!("SWAPDB {from} {}", from + 1),
            _ => format!("HSET h{k} other {n}"),
        })
    }

    /// All at once, in several databases, with what fails among it.
    fn transaction(&mut self) {
        let (nth, mut commands, mut effects) = (self.nth, vec![words("MULTI")], Vec::new());
        for _ in 0..=self.pick(5) {
            if self.pick(3) == 0 {
                self.db = self.base + self.random.random_range(0..DATABASES);
                commands.push(words(&format!("SELECT {}", self.db)));
                effects.push(None);
            }
            let command = if self.pick(9) == 0 { words("LPUSH seq never") } else { self.plain() };
            effects.push(Some(Effect { db: self.db, words: command.clone() }));
            commands.push(command);
        }
        self.db = self.base;
        commands.push(words(&format!("SELECT {}", self.base)));
        commands.push(words(&format!("SET seq {nth}")));
        effects.extend([None, Some(self.effect(&format!("SET seq {nth}")))]);
        commands.push(words("EXEC"));
        let asked = now();
        let reply = self.client.ask_all(&commands).pop().expect("an answer");
        let answer = Answer { asked, answered: now(), reply };
        let Reply::Many(replies) = &answer.reply else { panic!("{commands:?}: {:?}", answer.reply) };
        assert_eq!(replies.len(), effects.len());
        let did = effects.into_iter().zip(replies);
        let did = did.filter(|(_, reply)| !matches!(reply, Reply::Error(_))).filter_map(|(effect, _)| effect).collect();
        self.note(&answer, did, Some(nth), Vec::new());
    }

    fn eval(body: &str, keys: &[String], arguments: &[String]) -> Words {
        let mut command = vec![b"EVAL".to_vec(), body.as_bytes().to_vec(), keys.len().to_string().into_bytes()];
        command.extend(keys.iter().chain(arguments).map(|word| word.clone().into_bytes()));
        command
    }

    /// One that does what no other run of it would do, in two databases.
    fn script(&mut self) {
        let (nth, k) = (self.nth, self.pick(8));
        let body = "local t = redis.call('TIME') local v = t[1]..'.'..t[2] redis.call('SET', KEYS[1], v) \
            local m = redis.call('SPOP', KEYS[2]) redis.call('SELECT', ARGV[1]) redis.call('SET', 'seq', ARGV[2]) \
            return {v, m or ''}";
        let command =
            Self::eval(body, &[format!("s{k}"), format!("set{k}")], &[self.base.to_string(), nth.to_string()]);
        let answer = self.ask(&command);
        let Reply::Many(parts) = &answer.reply else { panic!("{:?}", answer.reply) };
        let (value, member) = (parts[0].text().expect("the time"), parts[1].text().expect("a member"));
        let mut effects = vec![self.effect(&format!("SET s{k} {value}"))];
        if !member.is_empty() {
            effects.push(self.effect(&format!("SREM set{k} {member}")));
        }
        effects.push(Effect { db: self.base, words: words(&format!("SET seq {nth}")) });
        self.note(&answer, effects, Some(nth), Vec::new());
    }

    /// What a script did before it failed stays done.
    fn failing_script(&mut self) {
        let (n, k) = (self.nth, self.pick(8));
        let body = "redis.call('HSET', KEYS[1], 'script', ARGV[1]) redis.call('LPUSH', KEYS[1], 'x') \
            redis.call('HSET', KEYS[1], 'never', 'x')";
        let answer = self.ask(&Self::eval(body, &[format!("h{k}")], &[n.to_string()]));
        assert!(answer.is_error(), "{:?}", answer.reply);
        let effect = self.effect(&format!("HSET h{k} script {n}"));
        self.note(&answer, vec![effect], None, Vec::new());
    }

    fn load_function(&mut self) {
        let code = format!(
            "#!lua name=lib\nredis.register_function('bump', function(keys, args) redis.call('HSET', keys[1], 'by', args[1]) \
             redis.call('RPUSH', keys[2], args[1]) return {} end)",
            self.nth
        );
        let command = ["FUNCTION", "LOAD", "REPLACE", &code].map(|word| word.as_bytes().to_vec()).to_vec();
        assert!(!self.plainly(command).is_error());
    }

    fn function(&mut self) {
        let (n, k) = (self.nth, self.pick(8));
        if !self.functions {
            return;
        }
        if self.base == 0 && self.pick(20) == 0 {
            return self.load_function();
        }
        let answer = self.ask(&words(&format!("FCALL bump 2 h{k} l{k} {n}")));
        assert!(!answer.is_error(), "{:?}", answer.reply);
        let effects = vec![self.effect(&format!("HSET h{k} by {n}")), self.effect(&format!("RPUSH l{k} {n}"))];
        self.note(&answer, effects, None, Vec::new());
    }

    /// Transactions that come to nothing.
    fn optimistic(&mut self) {
        let (n, k) = (self.nth, self.pick(8));
        if n.is_multiple_of(2) {
            let never = ["MULTI".to_owned(), format!("SET s{k} never"), "DISCARD".to_owned()].map(|text| words(&text));
            self.client.ask_all(&never);
            return;
        }
        self.client.ask(&words(&format!("WATCH s{k}")));
        self.plainly(words(&format!("SET s{k} w{n}")));
        let never = ["MULTI".to_owned(), format!("SET s{k} never"), "EXEC".to_owned()].map(|text| words(&text));
        assert_eq!(self.client.ask_all(&never).pop(), Some(Reply::Nil));
    }

    /// Expiry far enough ahead, said as a span.
    fn long(&mut self) {
        let (n, k) = (self.nth, self.pick(8));
        let (text, sets, lasts) = match self.pick(6) {
            0 => (format!("SET s{k} {n} EX 100000"), true, 100_000_000),
            1 => (format!("SETEX s{k} 90000 {n}"), true, 90_000_000),
            2 => (format!("PSETEX s{k} 95000000 {n}"), true, 95_000_000),
            3 => (format!("EXPIRE s{k} 80000"), false, 80_000_000),
            4 => (format!("GETEX s{k} PX 70000000"), false, 70_000_000),
            _ => (format!("PEXPIRE s{k} 60000000"), false, 60_000_000),
        };
        let answer = self.ask(&words(&text));
        let mut effects = Vec::new();
        if sets {
            effects.push(self.effect(&format!("SET s{k} {n}")));
        }
        if !matches!(answer.reply, Reply::Nil | Reply::Number(0)) {
            effects.push(self.effect(&format!("PEXPIREAT s{k} {}", answer.until(lasts))));
        }
        self.note(&answer, effects, None, Vec::new());
    }

    /// Keys of their own that go away by themselves, soon or a little later; nobody looks at most of them again.
    fn brief(&mut self) {
        let db = self.base + self.random.random_range(0..2);
        self.select(db);
        let lasts =
            if self.pick(2) == 0 { self.random.random_range(3..200) } else { self.random.random_range(500..4000) };
        let (n, kind) = (self.nth, self.pick(if self.brief_fields { 4 } else { 3 }));
        let key = format!("{}:{}:{n}", if kind == 3 { "fields" } else { "brief" }, self.base);
        let until = |answer: &Answer| (key.clone(), Some(answer.asked / 1000 + lasts));
        match kind {
            0 => {
                self.plainly(words(&format!("SADD {key} a b {n}")));
                let answer = self.ask(&words(&format!("PEXPIRE {key} {lasts}")));
                assert_eq!(answer.reply, Reply::Number(1));
                let effect = self.effect(&format!("PEXPIREAT {key} {}", answer.until(lasts)));
                self.note(&answer, vec![effect], None, vec![until(&answer)]);
            }
            3 => {
                self.plainly(words(&format!("HSET {key} stays {n} goes {n}")));
                let answer = self.ask(&words(&format!("HPEXPIRE {key} {lasts} FIELDS 1 goes")));
                let effect = self.effect(&format!("HPEXPIREAT {key} {} FIELDS 1 goes", answer.until(lasts)));
                self.note(&answer, vec![effect], None, vec![until(&answer)]);
            }
            kind => {
                let answer = self.ask(&words(&format!("SET {key} {n} PX {lasts}")));
                let effects = ["SET", "PEXPIREAT"].map(|verb| match verb {
                    "SET" => self.effect(&format!("SET {key} {n}")),
                    _ => self.effect(&format!("PEXPIREAT {key} {}", answer.until(lasts))),
                });
                self.note(&answer, effects.to_vec(), None, vec![until(&answer)]);
                if kind == 1 && n.is_multiple_of(4) {
                    let answer = self.ask(&words(&format!("PERSIST {key}")));
                    if answer.reply == Reply::Number(1) {
                        let effect = self.effect(&format!("PERSIST {key}"));
                        self.note(&answer, vec![effect], None, vec![(key.clone(), None)]);
                    }
                }
            }
        }
    }

    /// Keys that expire between two uses: what the next use finds depends on whether it has.
    fn again(&mut self) {
        let db = self.base + self.random.random_range(0..2);
        self.select(db);
        let (nth, lasts) = (self.pick(6), self.random.random_range(1..60));
        let key = format!("again:{}:{nth}", self.db);
        let expiring = |worker: &Worker, answer: &Answer| {
            let effects = vec![
                worker.effect(&format!("SET {key} 1")),
                worker.effect(&format!("PEXPIREAT {key} {}", answer.until(lasts))),
            ];
            (effects, vec![(key.clone(), Some(answer.asked / 1000 + lasts))])
        };
        let (text, kind) = match self.pick(5) {
            0 => (format!("SET {key} 1 PX {lasts}"), "set"),
            1 => (format!("SET {key} 1 NX PX {lasts}"), "set"),
            2 | 3 => (format!("INCR {key}"), "incr"),
            _ => (format!("GET {key}"), "get"),
        };
        let answer = self.ask(&words(&text));
        let (effects, brief) = match (&answer.reply, kind) {
            (Reply::Status(_), "set") => expiring(self, &answer),
            // There was none: it is a new one, which stays.
            (Reply::Number(1), "incr") => (vec![self.effect(&format!("SET {key} 1"))], vec![(key.clone(), None)]),
            (Reply::Number(more), "incr") => (vec![self.effect(&format!("SET {key} {more} KEEPTTL"))], Vec::new()),
            _ => (Vec::new(), Vec::new()),
        };
        self.note(&answer, effects, None, brief);
    }

    /// DUMP and RESTORE.
    fn copied(&mut self) {
        let (from, to) = (self.pick(8), self.pick(8));
        let kind = ["l", "set", "z", "h", "x"][usize::try_from(self.pick(5)).expect("few")];
        let Reply::Bulk(payload) = self.client.ask(&words(&format!("DUMP {kind}{from}"))) else { return };
        let mut command = words(&format!("RESTORE {kind}{to} 0"));
        command.extend([payload, b"REPLACE".to_vec()]);
        assert!(!self.plainly(command).is_error());
    }

    /// The server decides what comes of it.
    fn by_chance(&mut self) {
        let (n, k) = (self.nth, self.pick(8));
        let text = match self.pick(6) {
            0 | 1 => format!("XADD x{k} MAXLEN 80 * n {n} text t-{n}"),
            2 => format!("SPOP set{k}"),
            3 => format!("SPOP set{k} 3"),
            4 => format!("INCRBYFLOAT f{k} 0.1"),
            _ => format!("HINCRBYFLOAT h{k} float 0.3"),
        };
        let answer = self.ask(&words(&text));
        let verb = text.split(' ').next().expect("a verb");
        let effect = match (verb, &answer.reply) {
            ("XADD", Reply::Bulk(_)) => text.replace('*', &answer.reply.text().expect("an id")),
            ("SPOP", Reply::Bulk(_)) => format!("SREM set{k} {}", answer.reply.text().expect("a member")),
            ("SPOP", Reply::Many(members)) if !members.is_empty() => {
                let members: Vec<String> = members.iter().filter_map(Reply::text).collect();
                format!("SREM set{k} {}", members.join(" "))
            }
            ("INCRBYFLOAT", Reply::Bulk(_)) => format!("SET f{k} {}", answer.reply.text().expect("a number")),
            ("HINCRBYFLOAT", Reply::Bulk(_)) => format!("HSET h{k} float {}", answer.reply.text().expect("a number")),
            _ => return,
        };
        let effect = self.effect(&effect);
        self.note(&answer, vec![effect], None, Vec::new());
    }
}
