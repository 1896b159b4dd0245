//! Sizes, durations and counts in words: how walkeep prints them, and how settings write them.
//!
//! Three forms of a span of time are printed. [`format_duration`] is for how long something took, [`format_age`] for
//! how long ago something was, and [`format_precise`] for differences of clocks.

use std::time::Duration;

use jiff::{SignedDuration, Span, SpanRelativeTo};

/// Bytes as people say them: `512 B`, `1.5 MB`, in powers of 1000, so that they agree with rates and with `ls --si`.
pub(crate) fn format_bytes(bytes: u64) -> String {
    let units = ["kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut scaled = bytes;
    let mut remainder = 0;
    let mut unit = "B";
    for name in units {
        if scaled < 1000 {
            break;
        }
        remainder = scaled % 1000;
        scaled /= 1000;
        unit = name;
    }
    if scaled < 10 {
        format!("{scaled}.{:02} {unit}", remainder / 10)
    } else if scaled < 100 {
        format!("{scaled}.{} {unit}", remainder / 100)
    } else {
        format!("{scaled} {unit}")
    }
}

/// A span of time as people say it: `85 ms`, `4.2 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`.
pub(crate) fn format_duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 => format!("{} ms", time.as_millis()),
        1..=9 if time.subsec_millis() >= 100 => format!("{seconds}.{} s", time.subsec_millis() / 100),
        1..=9 => format!("{seconds} s"),
        10..=59 => format!("{seconds} s"),
        60..=3599 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// The age of something: `3 min`, `2 h 5 min`, `4 d 3 h`. Below two of a unit the smaller one is used.
pub(crate) fn format_age(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A span of time in its largest unit alone; a negative one is none.
pub(crate) fn format_largest_unit(span: SignedDuration) -> String {
    let seconds = whole_seconds(span);
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// A span of time with three decimals, in milliseconds below one second.
pub(crate) fn format_precise(span: Duration) -> String {
    match span.as_secs() {
        0 => format!("{:.3} ms", span.as_secs_f64() * 1000.0),
        _ => format!("{:.3} s", span.as_secs_f64()),
    }
}

/// The whole seconds of a span; a negative one has none.
pub(crate) fn whole_seconds(span: SignedDuration) -> u64 {
    u64::try_from(span.as_secs()).unwrap_or(0)
}

/// Bytes in whole units, for sizes that change while they are read: `9999 bytes`, `10 kB`, `16 MB`.
pub(crate) fn format_bytes_roughly(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{} kB", bytes / 1000),
        10_000_000..10_000_000_000 => format!("{} MB", bytes / 1_000_000),
        _ => format!("{} GB", bytes / 1_000_000_000),
    }
}

/// Bytes in megabytes, rounded up, so that an estimate of what is needed is never too small.
pub(crate) fn format_megabytes_needed(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}

/// `1 segment`, `2 segments`.
pub(crate) fn format_count(number: u64, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", format_number(number))
}

/// A number with thin groups of three, `12 345`.
pub(crate) fn format_number(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (nth, digit) in digits.chars().enumerate() {
        if nth > 0 && (digits.len() - nth).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

/// A size as a setting of a server writes it, a number of bytes or with a unit of a power of 1024: `8192`, `16MB`.
/// `None` if it is no such text, or above `u64::MAX` bytes.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let (number, unit) = parse_number_and_unit(text)?;
    let bytes: u64 = match unit {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(bytes)
}

/// A time as a setting of a server writes it, in milliseconds or with a unit: `1min`, `60s`, `500ms`, `0`.
pub(crate) fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = parse_number_and_unit(text)?;
    let seconds_each = match unit {
        "" | "ms" => return Some(Duration::from_millis(number)),
        "us" => return Some(Duration::from_micros(number)),
        "s" => 1,
        "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(seconds_each).map(Duration::from_secs)
}

fn parse_number_and_unit(text: &str) -> Option<(u64, &str)> {
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    Some((digits.parse().ok()?, unit.trim()))
}

/// Why a text is no span of fixed length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SpanError {
    /// It is no span at all.
    Shape,
    /// It has months or years, which differ in length.
    Varying,
}

/// A span as users write it: `30d`, `12h`, `2 weeks`. A day is 24 hours.
pub(crate) fn parse_span(text: &str) -> Result<SignedDuration, SpanError> {
    let span: Span = text.parse().ok().ok_or(SpanError::Shape)?;
    span.to_duration(SpanRelativeTo::days_are_24_hours()).ok().ok_or(SpanError::Varying)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use jiff::SignedDuration;

    use super::{
        SpanError, format_age, format_bytes, format_bytes_roughly, format_count, format_duration, format_largest_unit,
        format_megabytes_needed, format_number, format_precise, parse_duration, parse_size, parse_span,
    };

    #[test]
    fn ages_and_differences_have_forms_of_their_own() {
        let ages = [0, 119, 120, 7199, 7200, 172_799, 172_800].map(format_age);
        assert_eq!(ages, ["0 s", "119 s", "2 min", "119 min", "2 h 0 min", "47 h 59 min", "2 d 0 h"]);
        let largest = [-5, 59, 60, 3600, 90_000].map(|seconds| format_largest_unit(SignedDuration::from_secs(seconds)));
        assert_eq!(largest, ["0 s", "59 s", "1 min", "1 h", "1 d"]);
        let precise = [0, 1_500, 999_999, 1_000_000].map(|micros| format_precise(Duration::from_micros(micros)));
        assert_eq!(precise, ["0.000 ms", "1.500 ms", "999.999 ms", "1.000 s"]);
        let rough = [9_999, 10_000, 9_999_999, 10_000_000, 10_000_000_000].map(format_bytes_roughly);
        assert_eq!(rough, ["9999 bytes", "10 kB", "9999 kB", "10 MB", "10 GB"]);
        assert_eq!([0, 1, 1_000_000].map(format_megabytes_needed), ["0 MB", "1 MB", "1 MB"]);
    }

    #[test]
    fn sizes_of_settings_are_read_and_those_above_64_bits_are_not() {
        for (text, bytes) in [
            ("16MB", Some(16 << 20)),
            ("1GB", Some(1 << 30)),
            ("1024kB", Some(1 << 20)),
            ("2TB", Some(2 << 40)),
            ("16", Some(16)),
            ("8192 B", Some(8192)),
            ("17179869183GB", Some(17_179_869_183 << 30)),
            ("17179869184GB", None),
            ("17179869185GB", None),
            ("18446744073709551616", None),
            ("16XB", None),
            ("MB", None),
            ("", None),
            ("-1", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }

    #[test]
    fn times_of_settings_are_read() {
        for (text, seconds) in [
            ("1min", Some(60)),
            ("60s", Some(60)),
            ("0", Some(0)),
            ("2h", Some(7200)),
            ("1d", Some(86_400)),
            ("1x", None),
            ("213503982334602d", None),
        ] {
            assert_eq!(parse_duration(text), seconds.map(Duration::from_secs), "{text}");
        }
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration("10us"), Some(Duration::from_micros(10)));
    }

    #[test]
    fn spans_are_of_fixed_length() {
        for (text, hours) in [("30d", 720), ("12h", 12), ("4w", 672), ("1 week", 168), ("1d12h", 36), ("-3d", -72)] {
            assert_eq!(parse_span(text), Ok(SignedDuration::from_hours(hours)), "{text}");
        }
        assert_eq!(parse_span("30"), Err(SpanError::Shape));
        assert_eq!(parse_span("3mo"), Err(SpanError::Varying));
    }

    #[test]
    fn sizes_and_spans_read_well() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.00 kB"),
            (16_777_216, "16.7 MB"),
            (999_999, "999 kB"),
            (1_500_000_000, "1.50 GB"),
            (u64::MAX, "18.4 EB"),
        ] {
            assert_eq!(format_bytes(bytes), text);
        }
        for (millis, text) in [
            (85, "85 ms"),
            (4_250, "4.2 s"),
            (4_050, "4 s"),
            (59_900, "59 s"),
            (200_000, "3 min 20 s"),
            (7_500_000, "2 h 5 min"),
            (273_600_000, "3 d 4 h"),
        ] {
            assert_eq!(format_duration(Duration::from_millis(millis)), text);
        }
        assert_eq!(
            (format_number(7), format_number(1_234), format_number(12_345_678)),
            ("7".into(), "1 234".into(), "12 345 678".into())
        );
        assert_eq!(
            (format_count(1, "segment"), format_count(2_000, "segment")),
            ("1 segment".into(), "2 000 segments".into())
        );
    }
}
