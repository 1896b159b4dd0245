//! Sizes, durations and counts in words.

use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{format_bytes, format_count, format_duration, format_number};

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
