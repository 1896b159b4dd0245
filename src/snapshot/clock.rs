//! How far the server's own clock is from ours, while its stream is followed.
//!
//! Nothing in the stream is timed by it, as the stream says no times: marks are by the clock of whoever receives. But keys expire by it, and who brings
//! PostgreSQL and Redis to one moment wants to know of a clock that is wrong. A replica's link carries no answers, so every half minute a
//! connection of its own asks (`TIME`), beside the stream and without holding it up.
//!
//! Where Sentinels say which server that is, it also shows when they name another one than the one that is followed: an old master that they no
//! longer see goes on sending signs of life to us.

use std::time::Duration;

use tokio::task::JoinHandle;

use crate::clock::{Clock, FAR, Measured, timeout};
use crate::redis::{self, Source};

/// How often it is asked: a stretch of a busy stream lasts as long.
const ASK_EVERY: Duration = Duration::from_secs(30);
/// An answer that takes longer will tell nothing.
const PATIENCE: Duration = Duration::from_secs(10);

/// So many answers of another server running, and the one that is followed is not the one that is meant.
const ELSEWHERE: u32 = 2;

/// What is known of the server's clock.
#[derive(Debug)]
pub(super) struct ServerClock {
    source: Source,
    /// The run of the server that is followed.
    run_id: Option<String>,
    /// How many answers running came from another one.
    elsewhere: u32,
    due: Duration,
    under_way: Option<JoinHandle<Option<Answer>>>,
    last: Option<Measured>,
    /// Since the stretch under way began.
    here: Option<Measured>,
    far: bool,
}

#[derive(Debug)]
struct Answer {
    run_id: Option<String>,
    measured: Option<Measured>,
}

impl ServerClock {
    pub(super) fn of(source: &Source, run_id: Option<String>, now: Duration) -> ServerClock {
        let (source, elsewhere) = (source.clone(), 0);
        ServerClock { source, run_id, elsewhere, due: now, under_way: None, last: None, here: None, far: false }
    }

    /// Whether the Sentinels have named another server than the one that is followed, again and again. One address may stand for several servers.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self.source, Source::Sentinels(_)) && self.elsewhere >= ELSEWHERE
    }

    /// Since the stretch under way began.
    pub(super) fn known(&self) -> Option<Measured> {
        self.here
    }

    /// Another stretch begins.
    pub(super) fn begin_stretch(&mut self) {
        self.here = self.last;
    }

    /// Takes in an answer that has come, and asks if it is time. Called again and again; never waits.
    pub(super) async fn look(&mut self, clock: &crate::clock::SharedClock) {
        if let Some(ended) = self.under_way.take_if(|asking| asking.is_finished())
            && let Ok(Some(answer)) = ended.await
        {
            self.hear(answer);
        }
        if self.under_way.is_none() && clock.elapsed() >= self.due {
            self.due = clock.elapsed().saturating_add(ASK_EVERY);
            let (source, clock) = (self.source.clone(), std::sync::Arc::clone(clock));
            self.under_way = Some(tokio::spawn(async move { ask(&source, &*clock).await }));
        }
    }

    fn hear(&mut self, answer: Answer) {
        let known = answer.run_id.as_ref().zip(self.run_id.as_ref());
        let other = known.is_some_and(|(answered, followed)| answered != followed);
        self.elsewhere = if other { self.elsewhere.saturating_add(1) } else { 0 };
        // Another server's clock is not this one's.
        if let Some(measured) = answer.measured.filter(|_| !other) {
            self.note(measured);
        }
    }

    fn note(&mut self, measured: Measured) {
        self.last = Some(measured);
        self.here = Some(self.here.and_then(|before| before.and_then(measured)).unwrap_or(measured));
        let offset = measured.offset;
        let far = offset.certain() > FAR;
        if far && !self.far {
            tracing::warn!(
                "the server's clock is {offset} this machine's; keys expire by the server's clock: see to NTP on both"
            );
        } else if self.far && !far {
            tracing::info!("the server's clock is {offset} this machine's again");
        }
        self.far = far;
    }
}

impl Drop for ServerClock {
    fn drop(&mut self) {
        if let Some(asking) = self.under_way.take() {
            asking.abort();
        }
    }
}

async fn ask(source: &Source, clock: &dyn Clock) -> Option<Answer> {
    let asked = timeout(clock, PATIENCE, async {
        let (mut connection, info) = source.connect().await?;
        let run_id = info.get("run_id").map(str::to_owned);
        Ok::<_, redis::Error>(Answer { run_id, measured: connection.measure_clock().await? })
    });
    match asked.await? {
        Ok(answer) => Some(answer),
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "the server was not asked for its clock");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Answer, ServerClock};
    use crate::clock::SystemClock;
    use crate::redis::{Address, Login, Sentinels, Server, Source, TlsFiles};

    #[test]
    fn the_one_that_is_followed_is_another_one_when_the_sentinels_say_so_twice_running() {
        let address = Address::Tcp { host: "h".into(), port: 1, tls: false };
        let server = Server::new(address, Login::default(), TlsFiles::default(), SystemClock::shared());
        let (addresses, login) = (Vec::new(), Login::default());
        let sentinels = Sentinels { addresses, master: "m".into(), login, server: server.clone() };
        for (source, answers, elsewhere) in [
            (Source::Sentinels(sentinels.clone()), &["b", "b"][..], true),
            (Source::Sentinels(sentinels.clone()), &["b", "a", "b"], false),
            (Source::Sentinels(sentinels), &["a", "a"], false),
            // One address may stand for several.
            (Source::Fixed(server), &["b", "b", "b"], false),
        ] {
            let mut clock = ServerClock::of(&source, Some("a".into()), Duration::ZERO);
            for answer in answers {
                clock.hear(Answer { run_id: Some((*answer).into()), measured: None });
            }
            assert_eq!(clock.is_elsewhere(), elsewhere, "{answers:?}");
        }
    }
}
