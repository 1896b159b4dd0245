//! The stream of commands of one instance into the repositories, without a gap, as long as it is let.
//!
//! ```text
//! redis --bytes--> parser (where may it be cut?) --> spool --fsync--> acknowledge        once a second, and when the server asks
//!                                                      \--whole stretch--> archive::instance
//! ```
//!
//! # The order of durable effects
//!
//! 1. A snapshot's offset is known before the stream behind it is followed; the stream is followed while the snapshot is still being stored.
//! 2. Bytes are appended to the spool, then synced; only then are they acknowledged.
//! 3. A stretch is put into every repository; only then is its spool file removed.
//! 4. A break is recorded before anything after it is received.
//!
//! A crash after any of these leaves the steps before it done. On the next start what is spooled is put, and the server is asked for what
//! follows the last whole command. Where it cannot continue, because its backlog does not reach back that far or its history has parted from
//! ours, the break is recorded and a new snapshot begins a new stretch of history. After a failover the stream goes on under a new
//! replication id from the very next byte, if the new master has all that we have (`masterTryPartialResynchronization`).
//!
//! Memory: a few MiB of bytes not yet spooled, and one stretch at a time on its way to the repositories: [`Settings::rotate_bytes`], or one
//! command if that is longer.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use super::Error;
use super::follow::{Ended, Following};
use super::take::{Begun, Input, take, warn_of_trouble};
use super::upload::Uploads;
use crate::archive::instance::commands::Follows;
use crate::archive::instance::spool::{Name, Spool};
use crate::archive::instance::{Gap, Instance, Run, Snapshot, Stretch};
use crate::clock::Clock;
use crate::redis::{Connection, Info, ReplicationId, Source, Sync, Wish};
use crate::retry::{Backoff, Class, Policy};

/// Pauses between attempts to connect. For ever: a server that is down for a week must be followed again when it is back.
const RECONNECT: Policy = Policy { first: Duration::from_millis(250), longest: Duration::from_secs(15), total: None };
/// How long a clean end may wait for what is on its way to the repositories; the rest stays spooled.
const FAREWELL: Duration = Duration::from_secs(10);

/// What to receive, and how.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the server is.
    pub source: Source,
    /// Where the spool is.
    pub state_dir: PathBuf,
    /// A stretch ends when it has so many bytes.
    pub rotate_bytes: u64,
    /// A stretch in which anything was written ends after this time.
    pub rotate_after: Duration,
    /// Any stretch ends after this time.
    pub rotate_idle: Duration,
}

impl Settings {
    /// The usual: 16 MiB, or half a minute, or ten minutes of nothing but signs of life. What is younger is in the spool alone.
    #[must_use]
    pub fn new(source: Source, state_dir: PathBuf) -> Settings {
        let (rotate_after, rotate_idle) = (Duration::from_secs(30), Duration::from_secs(600));
        Settings { source, state_dir, rotate_bytes: 16 << 20, rotate_after, rotate_idle }
    }
}

/// What an observer hears of.
#[derive(Debug)]
pub enum Event<'e> {
    /// The stream is followed.
    Streaming {
        /// Which server.
        server: &'e str,
        /// Which history.
        replid: ReplicationId,
        /// From where.
        from: u64,
    },
    /// The history goes on under another name.
    Renamed(Follows, ReplicationId),
    /// A stretch is in every repository.
    Stored(&'e Stretch),
    /// Everything up to here is durable, and the server knows.
    Acknowledged(u64),
    /// A snapshot to begin with is stored.
    Snapshot(&'e Snapshot),
    /// The stream has a break.
    Gap(&'e Gap),
}

/// Who hears what happens. Called between two reads of the socket, so it must return at once.
pub trait Observer: Send + std::marker::Sync {
    /// Something happened.
    fn event(&self, event: Event<'_>);
}

/// Nobody.
impl Observer for () {
    fn event(&self, _event: Event<'_>) {}
}

/// A snapshot under way.
type Base = JoinHandle<Result<Snapshot, Error>>;
/// How it ended.
type BaseEnded = Result<Result<Snapshot, Error>, tokio::task::JoinError>;

/// Where the stream is to go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Position {
    /// The history.
    pub replid: ReplicationId,
    /// The offset up to which everything is durable here, after a whole command.
    pub offset: u64,
    /// The database that the next command acts on.
    pub(super) db: u32,
    /// Whether a transaction is open.
    pub(super) in_transaction: bool,
    /// The history before, if nothing was stored under this name yet.
    pub(super) follows: Option<Follows>,
    /// When the last byte had come.
    pub(super) until: Option<Timestamp>,
}

impl Position {
    fn after(stretch: &Stretch) -> Position {
        Position {
            replid: stretch.replid,
            offset: stretch.last,
            db: stretch.db_after,
            in_transaction: stretch.in_transaction_after,
            follows: stretch.follows.filter(|_| stretch.first == stretch.last),
            until: Some(stretch.ended_at),
        }
    }
}

/// Receives until `shutdown` becomes true, or something happens that trying again can't mend. Not cancel safe: end it by `shutdown`.
///
/// # Errors
/// [`Error`] of a kind that trying again doesn't mend. Everything acknowledged is safe nevertheless.
pub async fn run(
    instance: &Instance,
    settings: &Settings,
    observer: &dyn Observer,
    shutdown: watch::Receiver<bool>,
) -> Result<Option<Position>, Error> {
    let instance = instance.clone().with_spool(settings.state_dir.clone());
    let spool = Spool::open(&settings.state_dir, &instance)?;
    let _alone = spool.lock()?;
    let uploads = Uploads::start(&instance, &spool);
    let mut receiver =
        Receiver { instance, settings, observer, shutdown, spool, uploads, position: None, based: false, base: None };
    receiver.resume().await?;
    let clock = Arc::clone(receiver.instance.archive().clock());
    let seed = u64::try_from(clock.now().as_nanosecond() & i128::from(u32::MAX)).unwrap_or(1);
    let mut backoff = Backoff::new(RECONNECT, clock.elapsed(), seed);
    loop {
        let before = receiver.position.map(|position| position.offset);
        let error = match receiver.attempt(&*clock).await {
            Ok(()) => break,
            Err(error) => error,
        };
        if *receiver.shutdown.borrow() {
            break;
        }
        if error.class() != Class::Transient {
            receiver.farewell(&*clock).await;
            return Err(error);
        }
        if receiver.position.map(|position| position.offset) > before {
            backoff.reset(clock.elapsed());
        }
        let pause = backoff.pause(clock.elapsed()).unwrap_or(RECONNECT.longest);
        tracing::warn!(error = &error as &dyn std::error::Error, ?pause, "the stream of commands broke");
        receiver.pause(&*clock, pause).await?;
    }
    receiver.farewell(&*clock).await;
    Ok(receiver.position)
}

pub(super) struct Receiver<'a> {
    pub(super) instance: Instance,
    pub(super) settings: &'a Settings,
    pub(super) observer: &'a dyn Observer,
    pub(super) shutdown: watch::Receiver<bool>,
    pub(super) spool: Spool,
    pub(super) uploads: Uploads,
    pub(super) position: Option<Position>,
    /// Whether a snapshot leads to the position.
    based: bool,
    /// The snapshot under way.
    base: Option<Base>,
}

impl Receiver<'_> {
    /// Puts what an earlier run left, and finds where it ended.
    async fn resume(&mut self) -> Result<(), Error> {
        let spool = self.spool.clone();
        let read = move || -> Result<Vec<Stretch>, Error> {
            let mut stretches = Vec::new();
            for name in spool.list()? {
                match spool.read(name)? {
                    Some(spooled) => stretches.push(spooled.stretch().0),
                    None => spool.remove(name)?,
                }
            }
            Ok(stretches)
        };
        let mut stretches = tokio::task::spawn_blocking(read).await.map_err(|_panic| Error::Lost)??;
        for stretch in stretches.iter().filter(|stretch| stretch.first < stretch.last) {
            self.uploads.put((stretch.replid, stretch.first));
        }
        stretches.extend(self.newest_stored().await?);
        let newest = stretches.iter().max_by_key(|stretch| (stretch.ended_at, stretch.last));
        self.position = newest.map(Position::after);
        for stretch in stretches.iter().filter(|stretch| stretch.first == stretch.last) {
            // The newest is made anew under the same name; the others are of no use any more.
            if self
                .position
                .is_none_or(|position| (position.replid, position.offset) != (stretch.replid, stretch.first))
            {
                self.spool.remove((stretch.replid, stretch.first))?;
            }
        }
        self.based = self.is_based().await?;
        Ok(())
    }

    /// The newest stretch in the repositories: the last of each history is looked at.
    async fn newest_stored(&self) -> Result<Option<Stretch>, Error> {
        let names = self.instance.stored_stretches().await?;
        let mut newest: Option<Stretch> = None;
        for (nth, (replid, first, _)) in names.iter().enumerate() {
            let last_of_its_history = names.get(nth.saturating_add(1)).is_none_or(|(next, ..)| next != replid);
            if !last_of_its_history {
                continue;
            }
            let stretch = self.instance.stored_stretch(*replid, *first).await?;
            newest = newest.into_iter().chain(stretch).max_by_key(|stretch| stretch.ended_at);
        }
        Ok(newest)
    }

    /// Whether the newest snapshots lead to the position.
    async fn is_based(&self) -> Result<bool, Error> {
        let Some(position) = self.position else { return Ok(false) };
        for label in self.instance.labels().await?.iter().rev().take(3) {
            let Some(snapshot) = self.instance.snapshot(label).await? else { continue };
            let end = match self.instance.behind(&snapshot).await?.last() {
                Some(stretch) => Some((stretch.replid, stretch.last)),
                None => snapshot.replid.zip(snapshot.offset),
            };
            let before = position.follows.map(|follows| (follows.replid, follows.offset));
            if end == Some((position.replid, position.offset)) || (end.is_some() && end == before) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Connects and follows the stream until it breaks or is to end.
    async fn attempt(&mut self, clock: &dyn Clock) -> Result<(), Error> {
        if *self.shutdown.borrow() {
            return Ok(());
        }
        let (mut connection, info) = self.settings.source.connect().await?;
        warn_of_trouble(&connection, &info);
        if let Some(position) = self.position {
            if continues(&info, &position) {
                let wish = Wish::From(position.replid, position.offset);
                if let Sync::Continue(name) = connection.sync(wish, info.version()).await? {
                    if !self.based && self.base.is_none() {
                        self.begin_base();
                    }
                    return self.follow(connection, &info, renamed(position, name), clock).await;
                }
            }
            self.record_gap(&position, &info, clock).await?;
        }
        drop(connection);
        self.start_anew(clock).await
    }

    /// A snapshot, and the stream from its offset on.
    async fn start_anew(&mut self, clock: &dyn Clock) -> Result<(), Error> {
        self.based = false;
        if let Some(base) = self.base.take() {
            base.abort();
        }
        let begun = self.begin_base();
        let Ok(Begun { server, replid, offset }) = begun.await else { return Err(self.base_failed().await) };
        let (mut connection, info) = self.settings.source.connect().await?;
        let Sync::Continue(name) = connection.sync(Wish::From(replid, offset), info.version()).await? else {
            let why = format!(
                "does not continue from the snapshot that {server} has just begun; if that lasts, give it a larger repl-backlog-size"
            );
            return Err(Error::Unfit { server: connection.peer().to_owned(), why });
        };
        // The server says `SELECT` before the first command behind a snapshot, so the database here is only a beginning.
        let position = Position { replid, offset, db: 0, in_transaction: false, follows: None, until: None };
        self.follow(connection, &info, renamed(position, name), clock).await
    }

    /// Begins a snapshot beside the stream.
    fn begin_base(&mut self) -> oneshot::Receiver<Begun> {
        let (begun, hears) = oneshot::channel();
        let (instance, source) = (self.instance.clone(), self.settings.source.clone());
        self.base =
            Some(tokio::spawn(async move { take(&instance, Input::Server(&source), Some(begun), &mut |_| {}).await }));
        hears
    }

    async fn base_failed(&mut self) -> Error {
        match self.base.take() {
            Some(base) => match base.await {
                Ok(Err(error)) => error,
                Ok(Ok(_)) | Err(_) => Error::Lost,
            },
            None => Error::Lost,
        }
    }

    async fn follow(
        &mut self,
        connection: Connection,
        info: &Info,
        position: Position,
        clock: &dyn Clock,
    ) -> Result<(), Error> {
        if let Some(follows) = position.follows {
            self.observer.event(Event::Renamed(follows, position.replid));
        }
        let (server, replid, from) = (connection.peer(), position.replid, position.offset);
        self.observer.event(Event::Streaming { server, replid, from });
        self.position = Some(position);
        let run = info.get("run_id").map(|id| Run { server: connection.peer().to_owned(), id: id.to_owned() });
        let following = Following::begin(self, connection, position, run).await?;
        let (name, ended) = following.run(self, clock).await;
        self.close(name).await?;
        match ended {
            Ended::Shutdown => Ok(()),
            Ended::Broken(error) => Err(error),
        }
    }

    /// What is durable of a stretch is what is there when it is read again; the rest is asked for once more.
    async fn close(&mut self, name: Name) -> Result<(), Error> {
        let spool = self.spool.clone();
        let read = tokio::task::spawn_blocking(move || spool.read(name));
        let Some(spooled) = read.await.map_err(|_panic| Error::Lost)?? else { return Ok(()) };
        let (stretch, _) = spooled.stretch();
        self.position = Some(Position::after(&stretch));
        // An empty one is begun again under the same name, so it must not be on its way then.
        if stretch.first < stretch.last {
            self.uploads.put(name);
        }
        Ok(())
    }

    /// The snapshot under way has ended, well or not.
    pub(super) fn base_ended(&mut self, ended: BaseEnded) {
        self.base = None;
        match ended {
            Ok(Ok(snapshot)) => {
                self.based = true;
                self.observer.event(Event::Snapshot(&snapshot));
            }
            Ok(Err(error)) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "no snapshot to begin with; it is tried again"
                );
            }
            Err(_aborted) => {}
        }
    }

    /// The snapshot under way; never ready if there is none.
    pub(super) async fn base(base: &mut Option<Base>) -> BaseEnded {
        match base {
            Some(base) => base.await,
            None => std::future::pending().await,
        }
    }

    /// The parts that are waited for at once.
    pub(super) fn waits(&mut self) -> (&mut Uploads, &mut Option<Base>, &mut watch::Receiver<bool>) {
        (&mut self.uploads, &mut self.base, &mut self.shutdown)
    }

    /// Tries a snapshot again, if there is none to begin with and none under way.
    pub(super) fn retry_base(&mut self) {
        if !self.based && self.base.is_none() {
            drop(self.begin_base());
        }
    }

    async fn record_gap(&mut self, position: &Position, info: &Info, clock: &dyn Clock) -> Result<(), Error> {
        let told = |name: &str| info.get(name).unwrap_or("?").to_owned();
        let reason = format!(
            "the server cannot continue from there: it is in history {} at offset {}, its backlog begins at {}",
            told("master_replid"),
            told("master_repl_offset"),
            told("repl_backlog_first_byte_offset")
        );
        let (replid, offset, until) = (position.replid, position.offset, position.until);
        let gap = Gap { replid, offset, until, noticed_at: clock.now(), reason };
        self.instance.record_gap(&gap).await?;
        self.observer.event(Event::Gap(&gap));
        self.position = None;
        Ok(())
    }

    async fn pause(&mut self, clock: &dyn Clock, pause: Duration) -> Result<(), Error> {
        let end = clock.elapsed().saturating_add(pause);
        loop {
            let left = end.saturating_sub(clock.elapsed());
            if left.is_zero() || *self.shutdown.borrow() {
                return Ok(());
            }
            tokio::select! {
                stored = self.uploads.next() => self.observer.event(Event::Stored(&stored?)),
                () = clock.sleep(left) => return Ok(()),
                _ = self.shutdown.changed() => return Ok(()),
            }
        }
    }

    /// Lets what is on its way arrive.
    async fn farewell(&mut self, clock: &dyn Clock) {
        if let Some(base) = self.base.take() {
            base.abort();
        }
        let end = clock.elapsed().saturating_add(FAREWELL);
        while self.uploads.outstanding() > 0 {
            let left = end.saturating_sub(clock.elapsed());
            match crate::clock::timeout(clock, left, self.uploads.next()).await {
                Some(Ok(stored)) => self.observer.event(Event::Stored(&stored)),
                Some(Err(_)) | None => break,
            }
        }
    }
}

/// The position under the name that the server gave it.
fn renamed(position: Position, name: Option<ReplicationId>) -> Position {
    match name.filter(|name| *name != position.replid) {
        Some(replid) => {
            let before = position.follows.unwrap_or(Follows { replid: position.replid, offset: position.offset });
            Position { replid, follows: Some(before), ..position }
        }
        None => position,
    }
}

/// Whether the server will continue, by what it says of its backlog; asking it in vain would make it begin a snapshot.
fn continues(info: &Info, position: &Position) -> bool {
    let id = position.replid.to_string();
    let next = position.offset.saturating_add(1);
    let same = info.get("master_replid") == Some(id.as_str());
    let before = info.get("master_replid2") == Some(id.as_str())
        && info.number("second_repl_offset").is_some_and(|second| next <= second);
    let first = info.number("repl_backlog_first_byte_offset").unwrap_or(u64::MAX);
    let len = info.number("repl_backlog_histlen").unwrap_or(0);
    (same || before)
        && info.number("repl_backlog_active") == Some(1)
        && (first..=first.saturating_add(len)).contains(&next)
}

#[cfg(test)]
mod tests {
    use super::{Position, continues, renamed};
    use crate::redis::Info;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";

    fn position(offset: u64) -> Position {
        let replid = A.parse().unwrap();
        Position { replid, offset, db: 0, in_transaction: false, follows: None, until: None }
    }

    /// As `masterTryPartialResynchronization` decides.
    #[test]
    fn a_server_continues_within_its_backlog_and_history() {
        let info = |id: &str, second: &str| {
            Info::parse(&format!(
                "master_replid:{id}\nmaster_replid2:{A}\nsecond_repl_offset:{second}\nrepl_backlog_active:1\n\
                 repl_backlog_first_byte_offset:101\nrepl_backlog_histlen:50\n"
            ))
        };
        for (offset, same, failed_over) in [
            (99, false, false),
            (100, true, true),
            (120, true, true),
            (121, true, false),
            (150, true, false),
            (151, false, false),
        ] {
            assert_eq!(continues(&info(A, "-1"), &position(offset)), same, "{offset}");
            assert_eq!(continues(&info(B, "121"), &position(offset)), failed_over, "{offset}");
        }
        assert!(!continues(&Info::parse(&format!("master_replid:{A}\nrepl_backlog_active:0")), &position(100)));
    }

    #[test]
    fn a_name_that_changes_twice_before_anything_comes_still_follows_the_first() {
        let b = renamed(position(7), Some(B.parse().unwrap()));
        let c = renamed(b, Some("cccccccccccccccccccccccccccccccccccccccc".parse().unwrap()));
        assert_eq!(c.follows.map(|follows| (follows.replid.to_string(), follows.offset)), Some((A.to_owned(), 7)));
        assert_eq!(renamed(position(7), None), position(7));
    }
}
