//! A server's clock.

use std::time::Duration;

use jiff::Timestamp;

use super::connection::RedisConnection;
use super::error::RedisError;
use crate::base::clock::{ClockMeasurement, ClockOffset, MAX_ROUND_TRIP};
use crate::redis::format::resp::RedisReply;

/// The quickest of so many answers says most.
const CLOCK_SAMPLES: usize = 3;

impl RedisConnection {
    /// How far the server's clock is from ours, by `TIME`; `None` if the server does not let us ask, or is too slow to
    /// tell anything.
    ///
    /// # Errors
    /// The connection broke.
    pub async fn measure_clock(&mut self) -> Result<Option<ClockMeasurement>, RedisError> {
        let mut best: Option<(Duration, ClockMeasurement)> = None;
        for _ in 0..CLOCK_SAMPLES {
            let asked = self.clock().elapsed();
            let reply = match self.call(&[b"TIME"]).await {
                Ok(reply) => reply,
                Err(error @ (RedisError::Refused { .. } | RedisError::Login { .. })) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "the server's clock is not known");
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
            // The trip is taken after the time, so that it is not too short for it.
            let came = self.clock().now();
            let trip = self.clock().elapsed().saturating_sub(asked);
            let shown = parse_time_reply(&reply)
                .ok_or_else(|| RedisError::protocol(self.peer(), "TIME is answered with no time"))?;
            if trip <= MAX_ROUND_TRIP && best.is_none_or(|(quickest, _)| trip < quickest) {
                let measured = ClockMeasurement::single(came, ClockOffset::from_answer(shown, came, trip));
                best = Some((trip, measured.against_machine(self.clock().machine())));
            }
        }
        Ok(best.map(|(_, measured)| measured))
    }
}

/// Seconds, and microseconds of the second (`timeCommand`).
fn parse_time_reply(reply: &RedisReply) -> Option<Timestamp> {
    let RedisReply::Array(parts) = reply else { return None };
    let number = |part: &RedisReply| match part {
        RedisReply::Bulk(text) => std::str::from_utf8(text).ok()?.parse::<i64>().ok(),
        _ => None,
    };
    let [seconds, micros] = parts.as_slice() else { return None };
    let (seconds, micros) = (number(seconds)?, number(micros)?);
    Timestamp::from_microsecond(seconds.checked_mul(1_000_000)?.checked_add(micros)?).ok()
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::parse_time_reply;
    use crate::redis::format::resp::RedisReply;

    #[test]
    fn a_time_is_two_numbers() {
        let reply = |parts: &[&'static str]| {
            RedisReply::Array(parts.iter().map(|part| RedisReply::Bulk(Bytes::from_static(part.as_bytes()))).collect())
        };
        assert_eq!(
            parse_time_reply(&reply(&["1763850000", "42"])).map(|time| time.as_microsecond()),
            Some(1_763_850_000_000_042)
        );
        for wrong in
            [reply(&["1"]), reply(&["a", "1"]), reply(&["9223372036854775807", "1"]), reply(&[]), RedisReply::Null]
        {
            assert_eq!(parse_time_reply(&wrong), None, "{wrong:?}");
        }
    }
}
