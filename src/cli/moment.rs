//! Moments as people write them, and as they are printed.
//!
//! A moment is read without guessing: a time without a zone is refused with its two likely readings, because the machine on which one
//! types, the server and the person each may live in another.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};

use crate::postgres::time::PgTime;

/// Reads a moment: RFC 3339, PostgreSQL's spelling, `now`, or relative to now (`5 minutes ago`). `local` is only used to suggest.
pub(super) fn read(text: &str, now: Timestamp, local: &TimeZone) -> Result<PgTime, String> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("now") {
        return Ok(PgTime::from_timestamp(now));
    }
    if let Some(moment) = ago(text, now)? {
        return Ok(PgTime::from_timestamp(moment));
    }
    // Temporal's grammar covers RFC 3339, a space for the T, and offsets like +00; it wants a bracket after a zone's name.
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(PgTime::from_timestamp(moment));
    }
    if let Some((civil, zone)) = named_zone(text) {
        return in_zone(text, civil, &zone).map(PgTime::from_timestamp);
    }
    match text
        .parse::<DateTime>()
        .or_else(|_| text.parse::<jiff::civil::Date>().map(|date| date.to_datetime(jiff::civil::Time::midnight())))
    {
        Ok(civil) => Err(without_zone(text, civil, local)),
        Err(_) => Err(format!(
            "{text:?} is no time; write 2026-11-22T14:03:00Z, \"2026-11-22 14:03:00+01\", now, or \"5 minutes ago\""
        )),
    }
}

fn ago(text: &str, now: Timestamp) -> Result<Option<Timestamp>, String> {
    if !text.ends_with("ago") {
        return Ok(None);
    }
    let shape = || format!("{text:?} is no span of time; write \"90s ago\", \"5 minutes ago\" or \"2 days ago\"");
    let span: Span = text.parse().ok().ok_or_else(shape)?;
    let moment = now.to_zoned(TimeZone::UTC).checked_add(span).ok().ok_or_else(shape)?;
    Ok(Some(moment.timestamp()))
}

/// `2026-11-22 14:03:00 Europe/Vienna` or `… UTC`, PostgreSQL's other spelling.
fn named_zone(text: &str) -> Option<(DateTime, TimeZone)> {
    let (civil, zone) = text.rsplit_once(' ')?;
    let zone = match zone {
        "UTC" | "GMT" | "Z" => TimeZone::UTC,
        name if name.starts_with(|c: char| c.is_ascii_alphabetic()) => TimeZone::get(name).ok()?,
        _ => return None,
    };
    Some((civil.trim_end().parse().ok()?, zone))
}

/// The moment of a wall clock in a zone; one that the clock shows twice or never is refused with its neighbours.
fn in_zone(text: &str, civil: DateTime, zone: &TimeZone) -> Result<Timestamp, String> {
    let ambiguous = zone.to_ambiguous_timestamp(civil);
    ambiguous.unambiguous().ok().ok_or_else(|| {
        let readings = [zone.to_ambiguous_timestamp(civil).earlier(), zone.to_ambiguous_timestamp(civil).later()];
        let shown: Vec<String> = readings.iter().flatten().map(ToString::to_string).collect();
        format!("{text:?} does not name one moment, because the clocks changed; write {}", shown.join(" or "))
    })
}

fn without_zone(text: &str, civil: DateTime, local: &TimeZone) -> String {
    let utc = format!("{civil}Z");
    let here = in_zone(text, civil, local)
        .map(|moment| moment.to_zoned(local.clone()).strftime("%Y-%m-%dT%H:%M:%S%.f%:z").to_string());
    let here = here.ok().filter(|text| !text.ends_with("+00:00"));
    let other = here.unwrap_or_else(|| format!("{civil}+01:00 (or whichever offset your clock has)"));
    format!("{text:?} has no time zone; it is {utc} or {other}: say which")
}

/// A zone by its name; `local` is the machine's.
pub(super) fn zone(name: &str) -> Result<TimeZone, String> {
    match name {
        "local" => Ok(TimeZone::system()),
        "UTC" | "utc" => Ok(TimeZone::UTC),
        _ => TimeZone::get(name)
            .ok()
            .ok_or_else(|| format!("{name:?} is no time zone; write one like Europe/Vienna, UTC or local")),
    }
}

/// A moment as PostgreSQL prints it, in the zone asked for, with microseconds.
pub(super) fn show(moment: PgTime, zone: &TimeZone) -> String {
    match moment.to_timestamp() {
        Some(timestamp) if *zone != TimeZone::UTC => {
            let offset = zone.to_offset(timestamp);
            let pattern =
                if offset.seconds() % 3600 == 0 { "%Y-%m-%d %H:%M:%S.%6f" } else { "%Y-%m-%d %H:%M:%S.%6f%:z" };
            let text = timestamp.to_zoned(zone.clone()).strftime(pattern).to_string();
            if offset.seconds() % 3600 == 0 { format!("{text}{:+03}", offset.seconds() / 3600) } else { text }
        }
        _ => moment.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use jiff::tz::TimeZone;

    use super::{read, show, zone};

    fn vienna() -> TimeZone {
        TimeZone::get("Europe/Vienna").unwrap()
    }

    fn check(text: &str) -> Result<String, String> {
        let now: Timestamp = "2026-11-22T14:00:00Z".parse().unwrap();
        read(text, now, &vienna()).map(|moment| moment.to_string())
    }

    #[test]
    fn reads_every_spelling_that_names_one_moment() {
        for (text, means) in [
            ("2026-11-22T14:03:06.998Z", "2026-11-22 14:03:06.998000+00"),
            ("2026-11-22T15:03:06+01:00", "2026-11-22 14:03:06.000000+00"),
            ("2026-11-22 14:03:06.998123+00", "2026-11-22 14:03:06.998123+00"),
            ("2026-11-22 19:33:06+05:30", "2026-11-22 14:03:06.000000+00"),
            ("2026-11-22 14:03:06 UTC", "2026-11-22 14:03:06.000000+00"),
            ("2026-11-22 15:03 Europe/Vienna", "2026-11-22 14:03:00.000000+00"),
            ("2026-11-22T15:03:06+01:00[Europe/Vienna]", "2026-11-22 14:03:06.000000+00"),
            ("now", "2026-11-22 14:00:00.000000+00"),
            ("5 minutes ago", "2026-11-22 13:55:00.000000+00"),
            ("90s ago", "2026-11-22 13:58:30.000000+00"),
            ("1 day ago", "2026-11-21 14:00:00.000000+00"),
        ] {
            assert_eq!(check(text).as_deref(), Ok(means), "{text}");
        }
    }

    #[test]
    fn refuses_a_time_without_a_zone_and_says_both_readings() {
        assert_eq!(
            check("2026-11-22 14:03:06").unwrap_err(),
            "\"2026-11-22 14:03:06\" has no time zone; it is 2026-11-22T14:03:06Z or 2026-11-22T14:03:06+01:00: say which"
        );
        assert!(check("2026-11-22").unwrap_err().contains("2026-11-22T00:00:00Z or 2026-11-22T00:00:00+01:00"));
        // The clocks go back at 03:00: 02:30 is there twice.
        assert!(
            check("2026-10-25 02:30 Europe/Vienna")
                .unwrap_err()
                .contains("2026-10-25T00:30:00Z or 2026-10-25T01:30:00Z")
        );
        for wrong in [
            "",
            "yesterday",
            "14:03",
            "2026-13-01T00:00:00Z",
            "five minutes ago",
            "2026-11-22 14:03:06 CET5X",
            "1732284186",
        ] {
            assert!(check(wrong).is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn prints_in_the_zone_asked_for() {
        let moment = read("2026-11-22T14:03:06.5Z", Timestamp::UNIX_EPOCH, &TimeZone::UTC).unwrap();
        for (name, shown) in [
            ("UTC", "2026-11-22 14:03:06.500000+00"),
            ("Europe/Vienna", "2026-11-22 15:03:06.500000+01"),
            ("America/New_York", "2026-11-22 09:03:06.500000-05"),
            ("Asia/Kolkata", "2026-11-22 19:33:06.500000+05:30"),
        ] {
            assert_eq!(show(moment, &zone(name).unwrap()), shown);
        }
        assert!(zone("Europe/Wien").is_err());
    }
}
