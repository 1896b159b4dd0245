//! The small grammars of the configuration's values: names, durations, levels, schedules.

use std::str::FromStr;
use std::time::Duration;

use jiff::SignedDuration;

use crate::base::units::{SpanError, parse_span};
use crate::vault::seal::compress::CompressionLevel;

/// Checks a name. That of a cluster or an instance becomes a folder in the repository; a repository's follows the same
/// rule.
pub fn parse_name<N: FromStr>(text: &str) -> Result<N, String> {
    let rule = "a letter or digit, then up to 62 letters, digits, - and _, and not the word keys";
    text.parse().ok().ok_or_else(|| format!("{text:?} is no name; use {rule}"))
}

/// `30d`, `12h`, `2 weeks`; a day is 24 hours.
pub(super) fn parse_duration(text: &str) -> Result<SignedDuration, String> {
    let duration = parse_span(text).map_err(|error| match error {
        SpanError::Shape => "write it like \"30d\", \"12h\" or \"4w\"",
        SpanError::Varying => "months and years differ in length; write days, like \"90d\"",
    })?;
    if duration <= SignedDuration::ZERO {
        return Err("it must be longer than nothing; leave the line out to keep everything".to_owned());
    }
    Ok(duration)
}

/// `10s`, `1m`; `off` for never.
pub(super) fn parse_pause(text: &str) -> Result<Option<Duration>, String> {
    if text == "off" {
        return Ok(None);
    }
    let shape = || "write it like \"10s\" or \"1m\", a second at least and an hour at most, or \"off\"".to_owned();
    let pause = parse_duration(text).ok().and_then(|pause| Duration::try_from(pause).ok()).ok_or_else(shape)?;
    if (Duration::from_secs(1)..=Duration::from_hours(1)).contains(&pause) { Ok(Some(pause)) } else { Err(shape()) }
}

/// A level from the lowest to the highest that zstd has for us.
pub(super) fn parse_level(number: i64) -> Result<CompressionLevel, String> {
    match i32::try_from(number) {
        Ok(level @ (CompressionLevel::FASTEST_ZSTD_LEVEL..=-1 | 1..=CompressionLevel::BEST_ZSTD_LEVEL)) => {
            Ok(CompressionLevel::Fixed(level))
        }
        _ => Err(format!("level = {number} is no zstd level; write \"auto\", 1 to 19, or -1 to -7 for the fast ones")),
    }
}

/// A cron line of five fields, in UTC. Each field is `*`, numbers, ranges and lists of them, with an optional `/step`.
pub(super) fn parse_schedule(text: &str) -> Result<String, String> {
    let limits =
        [("minute", 0, 59), ("hour", 0, 23), ("day of the month", 1, 31), ("month", 1, 12), ("day of the week", 0, 7)];
    let fields: Vec<&str> = text.split_whitespace().collect();
    if fields.len() != limits.len() {
        return Err("a schedule has five fields: minute, hour, day, month, weekday, like \"0 2 * * *\"".to_owned());
    }
    for (field, (what, low, high)) in fields.iter().zip(limits) {
        if !field.split(',').all(|part| is_schedule_field(part, low, high)) {
            return Err(format!("{field:?} is no {what}; use *, {low} to {high}, ranges like 1-5 and steps like */6"));
        }
    }
    Ok(fields.join(" "))
}

fn is_schedule_field(part: &str, low: u8, high: u8) -> bool {
    let (range, step) = match part.split_once('/') {
        Some((range, step)) => (range, Some(step)),
        None => (part, None),
    };
    let number = |text: &str| text.parse::<u8>().ok().filter(|n| (low..=high).contains(n));
    let range_fits = match range.split_once('-') {
        _ if range == "*" => true,
        Some((from, to)) => matches!((number(from), number(to)), (Some(from), Some(to)) if from <= to),
        None => number(range).is_some(),
    };
    range_fits && step.is_none_or(|step| step.parse::<u8>().is_ok_and(|step| step > 0 && step <= high))
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::{CompressionLevel, parse_duration, parse_level, parse_schedule};

    #[test]
    fn durations_are_days_and_weeks_of_fixed_length() {
        for (text, hours) in [("30d", 720), ("12h", 12), ("4w", 672), ("1 week", 168), ("1d12h", 36)] {
            assert_eq!(parse_duration(text), Ok(SignedDuration::from_hours(hours)), "{text}");
        }
        for (text, says) in [
            ("30", "write it like"),
            ("thirty days", "write it like"),
            ("3mo", "write days"),
            ("0d", "longer"),
            ("-3d", "longer"),
        ] {
            let why = parse_duration(text).unwrap_err();
            assert!(why.contains(says), "{text}: {why}");
        }
    }

    #[test]
    fn schedules_are_five_fields_within_their_limits() {
        for good in ["0 2 * * *", "*/15 * * * *", "0 0,12 1-7 * 1-5", "5 4 * * 0-6/2"] {
            assert_eq!(parse_schedule(good).as_deref(), Ok(good));
        }
        for wrong in [
            "0 2 * *",
            "60 2 * * *",
            "0 24 * * *",
            "0 2 0 * *",
            "0 2 * 13 *",
            "0 2 * * 8",
            "daily",
            "5-1 * * * *",
            "*/0 * * * *",
            "1, * * * *",
        ] {
            assert!(parse_schedule(wrong).is_err(), "{wrong:?} was accepted");
        }
    }

    #[test]
    fn levels_are_zstds() {
        assert_eq!(parse_level(3), Ok(CompressionLevel::Fixed(3)));
        assert_eq!(parse_level(-5), Ok(CompressionLevel::Fixed(-5)));
        for wrong in [0, 20, -8, i64::MAX] {
            assert!(parse_level(wrong).is_err(), "{wrong} was accepted");
        }
    }
}
