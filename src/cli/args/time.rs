//! Moments as people write them.
//!
//! A moment is read without guessing: a time without a zone is refused with its two likely readings, because the
//! machine on which one types, the server and the person each may live in another. Who names a zone with
//! `--time-zone` has said which.

use jiff::civil::{Date, DateTime, Time};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};

use crate::cli::show::time::format_time;
use crate::postgres::format::time::PgTime;

/// The zone of a time that names none.
#[derive(Clone, Debug)]
pub(in crate::cli) enum DefaultZone {
    /// The one that was asked for.
    Asked(TimeZone),
    /// The machine's, which is only good to suggest.
    Machine(TimeZone),
}

/// Reads a moment: RFC 3339, PostgreSQL's spelling, `now`, relative to now (`5 minutes ago`, `10m`), or a wall
/// clock's (`08:00`, `yesterday`).
pub(in crate::cli) fn parse_time(text: &str, now: Timestamp, zone: &DefaultZone) -> Result<PgTime, String> {
    let text = text.trim();
    if text.eq_ignore_ascii_case("now") {
        return Ok(PgTime::from_timestamp(now));
    }
    if let Some(moment) = parse_ago(text, now)? {
        return Ok(PgTime::from_timestamp(moment));
    }
    // Temporal's grammar covers RFC 3339, a space for the T, and offsets like +00; it wants a bracket after a zone's
    // name.
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Ok(PgTime::from_timestamp(moment));
    }
    if let Some((civil, zone)) = split_zone_name(text)
        && let Some(civil) = parse_wall_clock(civil, now, &zone)
    {
        return resolve_in_zone(text, civil, &zone).map(PgTime::from_timestamp);
    }
    let (DefaultZone::Asked(local) | DefaultZone::Machine(local)) = zone;
    match (parse_wall_clock(text, now, local), zone) {
        (Some(civil), DefaultZone::Asked(zone)) => resolve_in_zone(text, civil, zone).map(PgTime::from_timestamp),
        (Some(civil), DefaultZone::Machine(local)) => Err(missing_zone_message(text, civil, now, local)),
        (None, _) => Err(format!(
            "{text:?} is no time; write 2026-11-22T14:03:00Z, \"2026-11-22 14:03:00+01\", now, \"5 minutes ago\" or 5m, or with \
             --time-zone also 14:03, \"yesterday 14:03\" or \"2026-11-22 14:03\""
        )),
    }
}

/// `5 minutes ago`, and the same without its last word: a span alone can only mean the past, for nothing is known of
/// the future.
fn parse_ago(text: &str, now: Timestamp) -> Result<Option<Timestamp>, String> {
    // The word, not the letters: Chicago ends with them.
    let said = text.split_whitespace().next_back() == Some("ago");
    if !said && text.contains(':') {
        return Ok(None);
    }
    let shape = || format!("{text:?} is no span of time; write \"90s ago\", \"5 minutes ago\" or \"2 days ago\"");
    let span: Span = match text.parse() {
        Ok(span) => span,
        Err(_) if said => return Err(shape()),
        Err(_) => return Ok(None),
    };
    let span = if span.is_negative() { span } else { -span };
    let moment = now.to_zoned(TimeZone::UTC).checked_add(span).ok().ok_or_else(shape)?;
    Ok(Some(moment.timestamp()))
}

/// `2026-11-22 14:03:00 Europe/Vienna` or `… UTC`, PostgreSQL's other spelling: what stands before the zone, and the
/// zone.
fn split_zone_name(text: &str) -> Option<(&str, TimeZone)> {
    let (civil, zone) = text.rsplit_once(' ')?;
    let zone = match zone {
        "UTC" | "GMT" | "Z" => TimeZone::UTC,
        name if name.starts_with(|c: char| c.is_ascii_alphabetic()) => TimeZone::get(name).ok()?,
        _ => return None,
    };
    Some((civil.trim_end(), zone))
}

/// What a clock on the wall shows there: a date with or without a time, a time of today, or `today` and `yesterday`
/// with or without a time.
fn parse_wall_clock(text: &str, now: Timestamp, zone: &TimeZone) -> Option<DateTime> {
    if let Ok(civil) = text.parse::<DateTime>() {
        return Some(civil);
    }
    if let Ok(date) = text.parse::<Date>() {
        return Some(date.to_datetime(Time::midnight()));
    }
    let today = now.to_zoned(zone.clone()).date();
    let (day, time) = text.split_once(' ').map_or((text, None), |(day, time)| (day, Some(time.trim_start())));
    let date = match day.to_ascii_lowercase().as_str() {
        "today" => today,
        "yesterday" => today.yesterday().ok()?,
        _ => return text.parse().ok().map(|time: Time| today.to_datetime(time)),
    };
    Some(date.to_datetime(time.map_or(Some(Time::midnight()), |time| time.parse().ok())?))
}

/// The moment of a wall clock in a zone; one that the clock shows twice or never is refused with its neighbours.
fn resolve_in_zone(text: &str, civil: DateTime, zone: &TimeZone) -> Result<Timestamp, String> {
    let ambiguous = zone.to_ambiguous_timestamp(civil);
    ambiguous.unambiguous().ok().ok_or_else(|| {
        let readings = [zone.to_ambiguous_timestamp(civil).earlier(), zone.to_ambiguous_timestamp(civil).later()];
        let shown: Vec<String> = readings.iter().flatten().map(ToString::to_string).collect();
        format!("{text:?} does not name one moment, because the clocks changed; write {}", shown.join(" or "))
    })
}

fn missing_zone_message(text: &str, civil: DateTime, now: Timestamp, local: &TimeZone) -> String {
    // Another zone may have another day.
    let utc = format!("{}Z", parse_wall_clock(text, now, &TimeZone::UTC).unwrap_or(civil));
    let here = resolve_in_zone(text, civil, local)
        .map(|moment| moment.to_zoned(local.clone()).strftime("%Y-%m-%dT%H:%M:%S%.f%:z").to_string());
    let here = here.ok().filter(|text| !text.ends_with("+00:00"));
    let other = here.unwrap_or_else(|| format!("{civil}+01:00 (or whichever offset your clock has)"));
    format!("{text:?} has no time zone; it is {utc} or {other}: say which, or name a zone with --time-zone")
}

/// A zone by its name; `local` is the machine's.
pub(in crate::cli) fn parse_zone(name: &str) -> Result<TimeZone, String> {
    match name {
        "local" => Ok(TimeZone::system()),
        "UTC" | "utc" => Ok(TimeZone::UTC),
        _ => TimeZone::get(name)
            .ok()
            .ok_or_else(|| format!("{name:?} is no time zone; write one like Europe/Vienna, UTC or local")),
    }
}

/// A moment that the user wrote.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::cli) struct WrittenMoment {
    /// What it means.
    pub(in crate::cli) moment: PgTime,
    /// Words that mean the same tomorrow and elsewhere, for a line to copy: the user's own if they do.
    pub(in crate::cli) lasting: String,
}

/// Reads a moment as [`parse_time`] does, and finds lasting words for it.
pub(in crate::cli) fn read_moment(text: &str, now: Timestamp, zone: &DefaultZone) -> Result<WrittenMoment, String> {
    let moment = parse_time(text, now, zone)?;
    let tomorrow = now.checked_add(SignedDuration::from_hours(24)).unwrap_or(now);
    let lasts = parse_time(text, tomorrow, &DefaultZone::Machine(TimeZone::UTC)).as_ref() == Ok(&moment);
    let lasting = if lasts { text.to_owned() } else { format_time(moment, &TimeZone::UTC) };
    Ok(WrittenMoment { moment, lasting })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use jiff::tz::TimeZone;

    use super::{DefaultZone, format_time, parse_time, parse_zone, read_moment};

    #[test]
    fn what_depends_on_when_or_where_it_is_typed_is_named_by_what_it_means() {
        let now: Timestamp = "2026-11-22T14:05:00Z".parse().unwrap();
        for (typed, zone, lasting) in [
            ("5 minutes ago", DefaultZone::Machine(vienna()), "2026-11-22 14:00:00.000000+00"),
            ("now", DefaultZone::Machine(vienna()), "2026-11-22 14:05:00.000000+00"),
            ("08:00", DefaultZone::Asked(vienna()), "2026-11-22 07:00:00.000000+00"),
            ("08:00 Europe/Vienna", DefaultZone::Machine(TimeZone::UTC), "2026-11-22 07:00:00.000000+00"),
            ("2026-11-20 08:00:00+01", DefaultZone::Machine(vienna()), "2026-11-20 08:00:00+01"),
        ] {
            let read = read_moment(typed, now, &zone).unwrap();
            assert_eq!(read.lasting, lasting, "{typed}");
            assert_eq!(parse_time(typed, now, &zone).as_ref(), Ok(&read.moment), "{typed}");
            assert_eq!(parse_time(lasting, now, &DefaultZone::Machine(TimeZone::UTC)), Ok(read.moment), "{typed}");
        }
        assert!(read_moment("no time", now, &DefaultZone::Asked(vienna())).is_err());
    }

    fn vienna() -> TimeZone {
        TimeZone::get("Europe/Vienna").unwrap()
    }

    fn check_in(text: &str, zone: &DefaultZone) -> Result<String, String> {
        let now: Timestamp = "2026-11-22T23:30:00Z".parse().unwrap();
        parse_time(text, now, zone).map(|moment| moment.to_string())
    }

    fn check(text: &str) -> Result<String, String> {
        check_in(text, &DefaultZone::Machine(vienna()))
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
            ("08:00 UTC", "2026-11-22 08:00:00.000000+00"),
            ("yesterday 08:00 Europe/Vienna", "2026-11-22 07:00:00.000000+00"),
            ("2026-11-22 14:03 America/Chicago", "2026-11-22 20:03:00.000000+00"),
            ("2026-11-22 14:03 America/Santiago", "2026-11-22 17:03:00.000000+00"),
            ("2026-11-22 14:03 Pacific/Pago_Pago", "2026-11-23 01:03:00.000000+00"),
            ("yesterday America/Chicago", "2026-11-21 06:00:00.000000+00"),
            ("now", "2026-11-22 23:30:00.000000+00"),
            ("5 minutes ago", "2026-11-22 23:25:00.000000+00"),
            ("90s ago", "2026-11-22 23:28:30.000000+00"),
            ("10m\tago", "2026-11-22 23:20:00.000000+00"),
            ("1 day, 01:30:00 ago", "2026-11-21 22:00:00.000000+00"),
            ("1 day ago", "2026-11-21 23:30:00.000000+00"),
            ("10m", "2026-11-22 23:20:00.000000+00"),
            ("-10m", "2026-11-22 23:20:00.000000+00"),
            ("2h30m", "2026-11-22 21:00:00.000000+00"),
            ("1 day", "2026-11-21 23:30:00.000000+00"),
        ] {
            assert_eq!(check(text).as_deref(), Ok(means), "{text}");
        }
    }

    /// In Vienna it is half past midnight.
    #[test]
    fn a_zone_that_was_asked_for_is_that_of_a_time_without_one() {
        for (text, in_vienna, in_utc) in [
            ("2026-11-22 14:03:06", "2026-11-22 13:03:06.000000+00", "2026-11-22 14:03:06.000000+00"),
            ("2026-11-22", "2026-11-21 23:00:00.000000+00", "2026-11-22 00:00:00.000000+00"),
            ("2026-06-22 14:03", "2026-06-22 12:03:00.000000+00", "2026-06-22 14:03:00.000000+00"),
            ("08:00", "2026-11-23 07:00:00.000000+00", "2026-11-22 08:00:00.000000+00"),
            ("08:00:30.5", "2026-11-23 07:00:30.500000+00", "2026-11-22 08:00:30.500000+00"),
            ("today", "2026-11-22 23:00:00.000000+00", "2026-11-22 00:00:00.000000+00"),
            ("Yesterday", "2026-11-21 23:00:00.000000+00", "2026-11-21 00:00:00.000000+00"),
            ("yesterday 14:03", "2026-11-22 13:03:00.000000+00", "2026-11-21 14:03:00.000000+00"),
            // What names its zone means that one.
            ("2026-11-22 14:03:06Z", "2026-11-22 14:03:06.000000+00", "2026-11-22 14:03:06.000000+00"),
        ] {
            assert_eq!(check_in(text, &DefaultZone::Asked(vienna())).as_deref(), Ok(in_vienna), "{text}");
            assert_eq!(check_in(text, &DefaultZone::Asked(TimeZone::UTC)).as_deref(), Ok(in_utc), "{text}");
        }
        assert!(
            check_in("2026-10-25 02:30", &DefaultZone::Asked(vienna()))
                .unwrap_err()
                .contains("does not name one moment")
        );
        assert!(check_in("tomorrow", &DefaultZone::Asked(vienna())).unwrap_err().contains("is no time"));
    }

    #[test]
    fn refuses_a_time_without_a_zone_and_says_both_readings() {
        assert_eq!(
            check("2026-11-22 14:03:06").unwrap_err(),
            "\"2026-11-22 14:03:06\" has no time zone; it is 2026-11-22T14:03:06Z or 2026-11-22T14:03:06+01:00: say which, or name a \
             zone with --time-zone"
        );
        assert!(check("08:00").unwrap_err().contains("2026-11-22T08:00:00Z or 2026-11-23T08:00:00+01:00"));
        assert!(check("yesterday").unwrap_err().contains("2026-11-21T00:00:00Z or 2026-11-22T00:00:00+01:00"));
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
            "ago",
            "tomorrow 8",
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
        let moment =
            parse_time("2026-11-22T14:03:06.5Z", Timestamp::UNIX_EPOCH, &DefaultZone::Machine(TimeZone::UTC)).unwrap();
        for (name, shown) in [
            ("UTC", "2026-11-22 14:03:06.500000+00"),
            ("Europe/Vienna", "2026-11-22 15:03:06.500000+01"),
            ("America/New_York", "2026-11-22 09:03:06.500000-05"),
            ("Asia/Kolkata", "2026-11-22 19:33:06.500000+05:30"),
        ] {
            assert_eq!(format_time(moment, &parse_zone(name).unwrap()), shown);
        }
        assert!(parse_zone("Europe/Wien").is_err());
    }
}
