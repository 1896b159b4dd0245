//! PostgreSQL's time stamps: microseconds since 2000-01-01 00:00:00 UTC.

use std::fmt;

use jiff::Timestamp;

/// Microseconds from the Unix epoch to PostgreSQL's (`POSTGRES_EPOCH_JDATE`, `timestamp.h`).
const EPOCH_FROM_UNIX_MICROS: i64 = PgTime::EPOCH_FROM_UNIX_SECONDS * 1_000_000;

/// A moment as PostgreSQL stores it (`TimestampTz`): microseconds since 2000-01-01 00:00:00 UTC, negative before.
///
/// Prints in UTC with microseconds, `2026-11-22 14:03:06.998000+00`, which every PostgreSQL reads back unchanged.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTime(i64);

impl PgTime {
    /// Seconds from the Unix epoch to 2000-01-01 00:00:00 UTC.
    pub const EPOCH_FROM_UNIX_SECONDS: i64 = 946_684_800;

    /// The moment `micros` microseconds after 2000-01-01 00:00:00 UTC.
    #[must_use]
    pub const fn from_pg_micros(micros: i64) -> PgTime {
        PgTime(micros)
    }

    /// Microseconds since 2000-01-01 00:00:00 UTC.
    #[must_use]
    pub const fn pg_micros(self) -> i64 {
        self.0
    }

    /// The same moment as a [`Timestamp`], or `None` outside the years that type knows (-9999 to 9999).
    #[must_use]
    pub fn to_timestamp(self) -> Option<Timestamp> {
        Timestamp::from_microsecond(self.0.checked_add(EPOCH_FROM_UNIX_MICROS)?).ok()
    }

    /// The same moment, cut to microseconds towards the past.
    #[must_use]
    pub fn from_timestamp(moment: Timestamp) -> PgTime {
        let micros = moment.as_nanosecond().div_euclid(1_000);
        PgTime(i64::try_from(micros).unwrap_or(i64::MAX).saturating_sub(EPOCH_FROM_UNIX_MICROS))
    }
}

impl fmt::Display for PgTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_timestamp() {
            Some(moment) => write!(f, "{}", moment.strftime("%Y-%m-%d %H:%M:%S.%6f+00")),
            None => write!(f, "{} microseconds from 2000-01-01", self.0),
        }
    }
}

impl fmt::Debug for PgTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for PgTime {
    /// RFC 3339 in UTC with microseconds, `2026-11-22T14:03:06.998000Z`.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.to_timestamp() {
            Some(moment) => serializer.collect_str(&moment.strftime("%Y-%m-%dT%H:%M:%S.%6fZ")),
            None => Err(serde::ser::Error::custom("a time outside the years -9999 to 9999")),
        }
    }
}

impl<'de> serde::Deserialize<'de> for PgTime {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<PgTime, D::Error> {
        let text = std::borrow::Cow::<'_, str>::deserialize(deserializer)?;
        text.parse::<Timestamp>().map(PgTime::from_timestamp).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::PgTime;

    #[test]
    fn prints_what_postgresql_reads_back() {
        assert_eq!(PgTime::from_pg_micros(0).to_string(), "2000-01-01 00:00:00.000000+00");
        assert_eq!(PgTime::from_pg_micros(-1).to_string(), "1999-12-31 23:59:59.999999+00");
        assert!(PgTime::from_pg_micros(i64::MAX).to_string().contains("microseconds"));
    }

    #[test]
    fn round_trips_through_json() {
        let moment = PgTime::from_pg_micros(848_412_345_678_901);
        let json = serde_json::to_string(&moment).unwrap();
        assert_eq!(serde_json::from_str::<PgTime>(&json).unwrap(), moment);
    }
}
