//! Moments as they are printed.

use jiff::tz::TimeZone;

use crate::postgres::format::time::PgTime;

/// A moment as PostgreSQL prints it, in the zone asked for, with microseconds.
pub(in crate::cli) fn format_time(moment: PgTime, zone: &TimeZone) -> String {
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
