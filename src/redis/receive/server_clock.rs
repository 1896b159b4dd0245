//! How far the server's own clock is from ours, while its stream is followed.
//!
//! Nothing in the stream is timed by it, as the stream says no times: marks are by the clock of whoever receives. But
//! keys expire by it, and who brings PostgreSQL and Redis to one moment wants to know of a clock that is wrong. A
//! replica's link carries no answers, so every half minute a connection of its own asks (`TIME`), beside the stream and
//! without holding it up.
//!
//! Where Sentinels say which server that is, it also shows when they name another one than the one that is followed: an
//! old master that they no longer see goes on sending signs of life to us. Where some of them still name it, there are
//! two masters: that is said, and it is followed on.

use std::time::Duration;

use tokio::task::JoinHandle;

use crate::base::clock::{Clock, ClockMeasurement, OFFSET_WARNING, timeout};
use crate::redis::wire::{self, MasterClaimant, RedisSource};

/// How often it is asked: a stretch of a busy stream lasts as long.
const CLOCK_QUERY_INTERVAL: Duration = Duration::from_secs(30);
/// An answer that takes longer is not waited for. It is time for Sentinels and then for a server that take packets and
/// never answer.
const CLOCK_QUERY_TIMEOUT: Duration = Duration::from_secs(20);

/// So many answers of another server running, and the one that is followed is not the one that is meant.
const MAX_OTHER_SERVER_ANSWERS: u32 = 2;

/// What is known of the server's clock.
#[derive(Debug)]
pub(super) struct RedisServerClock {
    source: RedisSource,
    /// The run of the server that is followed.
    run_id: Option<String>,
    /// How many answers running came from another one.
    other_server_answers: u32,
    /// Whether there are two masters, which was said.
    two_masters_reported: bool,
    next_query_at: Duration,
    query: Option<JoinHandle<Option<ClockAnswer>>>,
    last_measured: Option<ClockMeasurement>,
    /// Since the stretch under way began.
    stretch_measured: Option<ClockMeasurement>,
    is_far_off: bool,
}

#[derive(Debug)]
enum ClockAnswer {
    Answer { run_id: Option<String>, measured: Option<ClockMeasurement> },
    TwoMasters(Vec<MasterClaimant>),
}

impl RedisServerClock {
    pub(super) fn new(source: &RedisSource, run_id: Option<String>, now: Duration) -> RedisServerClock {
        let (source, elsewhere, split) = (source.clone(), 0, false);
        RedisServerClock {
            source,
            run_id,
            other_server_answers: elsewhere,
            two_masters_reported: split,
            next_query_at: now,
            query: None,
            last_measured: None,
            stretch_measured: None,
            is_far_off: false,
        }
    }

    /// Whether the Sentinels have named another server than the one that is followed, again and again. One address may
    /// stand for several servers.
    pub(super) fn is_elsewhere(&self) -> bool {
        matches!(self.source, RedisSource::Sentinels(_)) && self.other_server_answers >= MAX_OTHER_SERVER_ANSWERS
    }

    /// Since the stretch under way began.
    pub(super) fn stretch_measurement(&self) -> Option<ClockMeasurement> {
        self.stretch_measured
    }

    /// Another stretch begins.
    pub(super) fn begin_stretch(&mut self) {
        self.stretch_measured = self.last_measured;
    }

    /// Takes in an answer that has come, and asks if it is time. Called again and again; never waits.
    pub(super) async fn poll(&mut self, clock: &crate::base::clock::SharedClock) {
        if let Some(ended) = self.query.take_if(|asking| asking.is_finished())
            && let Ok(Some(heard)) = ended.await
        {
            self.handle_answer(heard);
        }
        if self.query.is_none() && clock.elapsed() >= self.next_query_at {
            self.next_query_at = clock.elapsed().saturating_add(CLOCK_QUERY_INTERVAL);
            let (source, clock) = (self.source.clone(), std::sync::Arc::clone(clock));
            self.query = Some(tokio::spawn(async move { query_clock(&source, &*clock).await }));
        }
    }

    fn handle_answer(&mut self, heard: ClockAnswer) {
        let (run_id, measured) = match heard {
            ClockAnswer::Answer { run_id, measured } => (run_id, measured),
            ClockAnswer::TwoMasters(masters) => {
                if let Some(said) = self.record_two_masters(&masters) {
                    tracing::error!("{said}");
                }
                return;
            }
        };
        if std::mem::take(&mut self.two_masters_reported) {
            tracing::info!("there is one master again");
        }
        let known = run_id.as_ref().zip(self.run_id.as_ref());
        let other = known.is_some_and(|(answered, followed)| answered != followed);
        self.other_server_answers = if other { self.other_server_answers.saturating_add(1) } else { 0 };
        // Another server's clock is not this one's.
        if let Some(measured) = measured.filter(|_| !other) {
            self.record_measurement(measured);
        }
    }

    /// Takes in that there are two masters. What is to be said of it, unless it was said.
    fn record_two_masters(&mut self, masters: &[MasterClaimant]) -> Option<String> {
        self.other_server_answers = 0;
        if std::mem::replace(&mut self.two_masters_reported, true) {
            return None;
        }
        let is_followed = |master: &&MasterClaimant| master.run_id.is_some() && master.run_id == self.run_id;
        let followed = masters.iter().find(is_followed).map_or("neither of them", |master| master.server.as_str());
        let listed = MasterClaimant::list_names(masters);
        Some(format!(
            "two masters at once: {listed} all say they are it. {followed} is followed, and goes on to be; what the others take is not archived, and their \
             data differs: end those that are wrong"
        ))
    }

    fn record_measurement(&mut self, measured: ClockMeasurement) {
        self.last_measured = Some(measured);
        self.stretch_measured =
            Some(self.stretch_measured.and_then(|before| before.extended_by(measured)).unwrap_or(measured));
        let offset = measured.offset;
        let far = offset.certain_skew() > OFFSET_WARNING;
        if far && !self.is_far_off {
            tracing::warn!(
                "the server's clock is {offset} this machine's; keys expire by the server's clock: see to NTP on both"
            );
        } else if self.is_far_off && !far {
            tracing::info!("the server's clock is {offset} this machine's again");
        }
        self.is_far_off = far;
    }
}

impl Drop for RedisServerClock {
    fn drop(&mut self) {
        if let Some(asking) = self.query.take() {
            asking.abort();
        }
    }
}

async fn query_clock(source: &RedisSource, clock: &dyn Clock) -> Option<ClockAnswer> {
    let asked = timeout(clock, CLOCK_QUERY_TIMEOUT, async {
        let (mut connection, info) = source.connect().await?;
        let run_id = info.get("run_id").map(str::to_owned);
        Ok::<_, wire::RedisError>(ClockAnswer::Answer { run_id, measured: connection.measure_clock().await? })
    });
    match asked.await? {
        Ok(answer) => Some(answer),
        Err(wire::RedisError::TwoMasters { masters, .. }) => Some(ClockAnswer::TwoMasters(masters)),
        Err(error) => {
            tracing::debug!(error = &error as &dyn std::error::Error, "the server was not asked for its clock");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{ClockAnswer, RedisServerClock};
    use crate::base::clock::SystemClock;
    use crate::redis::wire::{
        MasterClaimant, RedisAddress, RedisEndpoint, RedisLogin, RedisSource, RedisTlsFiles, Sentinels,
    };

    fn server() -> RedisEndpoint {
        let address = RedisAddress::Tcp { host: "h".into(), port: 1, tls: false };
        RedisEndpoint::new(address, RedisLogin::default(), RedisTlsFiles::default(), SystemClock::shared())
    }

    fn sentinels() -> Sentinels {
        Sentinels::new(Vec::new(), "m".into(), RedisLogin::default(), server())
    }

    fn answer(run_id: &str) -> ClockAnswer {
        ClockAnswer::Answer { run_id: Some(run_id.into()), measured: None }
    }

    #[test]
    fn two_masters_are_said_once_and_the_one_that_is_followed_is_named() {
        let mut clock = RedisServerClock::new(&RedisSource::Sentinels(sentinels()), Some("a".into()), Duration::ZERO);
        let master = |server: &str, run_id: &str| MasterClaimant { server: server.into(), run_id: Some(run_id.into()) };
        let masters = [master("new:1", "b"), master("old:1", "a")];
        for _ in 0..2 {
            let said = clock.record_two_masters(&masters).unwrap();
            assert!(said.contains("new:1 and old:1") && said.contains("old:1 is followed"), "{said}");
            clock.handle_answer(answer("b"));
            clock.handle_answer(ClockAnswer::TwoMasters(masters.to_vec()));
            assert_eq!(clock.record_two_masters(&masters), None);
            clock.handle_answer(answer("b"));
            assert!(!clock.is_elsewhere(), "some Sentinels still named it");
        }
        clock.handle_answer(answer("b"));
        assert!(clock.is_elsewhere());
    }

    #[test]
    fn the_one_that_is_followed_is_another_one_when_the_sentinels_say_so_twice_running() {
        let (server, sentinels) = (server(), sentinels());
        for (source, answers, elsewhere) in [
            (RedisSource::Sentinels(sentinels.clone()), &["b", "b"][..], true),
            (RedisSource::Sentinels(sentinels.clone()), &["b", "a", "b"], false),
            (RedisSource::Sentinels(sentinels), &["a", "a"], false),
            // One address may stand for several.
            (RedisSource::Fixed(server), &["b", "b", "b"], false),
        ] {
            let mut clock = RedisServerClock::new(&source, Some("a".into()), Duration::ZERO);
            for run_id in answers {
                clock.handle_answer(answer(run_id));
            }
            assert_eq!(clock.is_elsewhere(), elsewhere, "{answers:?}");
        }
    }
}
