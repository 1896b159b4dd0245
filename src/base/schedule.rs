//! When a backup was last due, by a cron line in UTC: minute, hour, day of the month, month, weekday (crontab(5)).

use std::ops::RangeInclusive;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

/// Minutes to look back: a schedule that has not been due for more than a year and a day is not looked for.
const LOOK_BACK_MINUTES: i64 = 367 * 24 * 60;

/// The last moment up to `now` at which `schedule` was due; `None` if it is no schedule, or was not due for a year.
#[must_use]
pub fn last_due(schedule: &str, now: Timestamp) -> Option<Timestamp> {
    let fields: Vec<&str> = schedule.split_whitespace().collect();
    let [minute, hour, day, month, weekday] = fields.as_slice() else { return None };
    let whole = now.as_second().div_euclid(60);
    (0..LOOK_BACK_MINUTES).find_map(|back| {
        let moment = Timestamp::from_second(whole.checked_sub(back)?.checked_mul(60)?).ok()?;
        let civil = moment.to_zoned(TimeZone::UTC).datetime();
        let fits = field_matches(minute, civil.minute(), 0..=59)
            && field_matches(hour, civil.hour(), 0..=23)
            && field_matches(month, civil.month(), 1..=12);
        (fits && day_matches(day, weekday, civil)).then_some(moment)
    })
}

/// Where both days are restricted, either will do. One that begins with a star is not, be it with a step.
fn day_matches(day: &str, weekday: &str, civil: DateTime) -> bool {
    let sunday_based = civil.weekday().to_sunday_zero_offset();
    let on_weekday =
        field_matches(weekday, sunday_based, 0..=7) || (sunday_based == 0 && field_matches(weekday, 7, 0..=7));
    let on_day = field_matches(day, civil.day(), 1..=31);
    if day.starts_with('*') || weekday.starts_with('*') { on_day && on_weekday } else { on_day || on_weekday }
}

/// Whether `value` is one of those that a field names. A star is `all`: a step of it begins with the lowest, which is 1
/// for days and months.
fn field_matches(text: &str, value: i8, all: RangeInclusive<i8>) -> bool {
    text.split(',').any(|part| {
        let (range, step) = part.split_once('/').map_or((part, "1"), |(range, step)| (range, step));
        let number = |text: &str| text.parse::<i8>().ok();
        let bounds = match range.split_once('-') {
            _ if range == "*" => Some((*all.start(), *all.end())),
            Some((from, to)) => number(from).zip(number(to)),
            // A step from one number on has no end.
            None if part.contains('/') => number(range).map(|from| (from, *all.end())),
            None => number(range).map(|one| (one, one)),
        };
        let step = number(step).filter(|step| *step > 0);
        let fits = |((from, to), step): ((i8, i8), i8)| (from..=to).contains(&value) && (value - from) % step == 0;
        bounds.zip(step).is_some_and(fits)
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::last_due;

    #[test]
    fn the_last_due_moment_is_found() {
        // A Sunday.
        let now: Timestamp = "2026-11-22T14:03:30Z".parse().unwrap();
        let check = |schedule: &str, due: &str| {
            assert_eq!(last_due(schedule, now).map(|due| due.to_string()).as_deref(), Some(due), "{schedule}");
        };
        check("* * * * *", "2026-11-22T14:03:00Z");
        check("0 2 * * *", "2026-11-22T02:00:00Z");
        check("30 14 * * *", "2026-11-21T14:30:00Z");
        check("0 */6 * * *", "2026-11-22T12:00:00Z");
        check("0 3 * * 1", "2026-11-16T03:00:00Z");
        check("0 3 * * 7", "2026-11-22T03:00:00Z");
        check("0 3 1 * *", "2026-11-01T03:00:00Z");
        check("0 3 1 * 5", "2026-11-20T03:00:00Z");
        check("15,45 1-3 * 1-6 *", "2026-06-30T03:45:00Z");
        // A step begins with the first of the month, and with January.
        check("0 2 */2 * *", "2026-11-21T02:00:00Z");
        check("0 2 1 */3 *", "2026-10-01T02:00:00Z");
        check("0 2 2/10 * *", "2026-11-22T02:00:00Z");
        check("0 2 * * */2", "2026-11-22T02:00:00Z");
        // A day with a star restricts the other one, as crontab(5) has it: Mondays that are odd.
        check("0 3 */2 * 1", "2026-11-09T03:00:00Z");
        check("0 3 13 * */3", "2026-09-13T03:00:00Z");
        assert_eq!(last_due("0 3 30 2 *", now), None);
        assert_eq!(last_due("daily", now), None);
    }
}
