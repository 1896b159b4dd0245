//! Times to live that count from when a command is run.
//!
//! Before version 7 a Redis tells its replicas `SET k v PX 100` and `EXPIRE k 10` as clients do, for they run them at
//! once (`setGenericCommand`, t_string.c 6.2). In an append-only file they would count from when that is loaded, so
//! that servers write absolute times there (`feedAppendOnlyFile`, aof.c 6.2). Here a `PEXPIREAT` is put behind each
//! instead, which says the same and leaves the stream's bytes as they are. They count from when they had come to the
//! receiver, as they would for a replica.

use jiff::Timestamp;

use crate::redis::archive::{ArrivalMark, StreamStretch};
use crate::redis::format::resp::{self, CommandLimits, CommandParser};

/// When commands had come.
#[derive(Clone, Debug)]
pub struct CommandArrivals {
    marks: Vec<ArrivalMark>,
    last: Timestamp,
}

impl CommandArrivals {
    /// Those of a stretch.
    #[must_use]
    pub fn from_stretch(stretch: &StreamStretch) -> CommandArrivals {
        CommandArrivals { marks: stretch.marks.clone(), last: stretch.ended_at }
    }

    /// When everything before an offset had come.
    fn arrival_time(&self, offset: u64) -> Timestamp {
        let nth = self.marks.partition_point(|mark| mark.offset < offset);
        self.marks.get(nth).map_or(self.last, |mark| mark.time)
    }
}

/// What is to follow a command that ends at offset `end`, whose bytes are what `raw` gives, so that it says when
/// something expires and not how long it lives.
pub(super) fn absolute_expiry(
    name: &[u8],
    end: u64,
    arrivals: &CommandArrivals,
    raw: impl FnOnce() -> Vec<u8>,
) -> Option<Vec<u8>> {
    const RELATIVE: [&[u8]; 7] = [b"set", b"expire", b"pexpire", b"setex", b"psetex", b"getex", b"restore"];
    if !RELATIVE.iter().any(|relative| name.eq_ignore_ascii_case(relative)) {
        return None;
    }
    let raw = raw();
    // All of it is in memory already.
    let limits = CommandLimits { kept: raw.len(), ..CommandLimits::default() };
    let mut following = None;
    let parsed = CommandParser::resume_at(0, 0, false, limits).push(&raw, &mut |command| {
        let mut words: Vec<&[u8]> = Vec::new();
        for nth in 0.. {
            let Some(word) = command.argument(nth).and_then(|argument| argument.complete_value()) else { break };
            words.push(word);
        }
        following = relative_ttl(&words).and_then(|(key, millis)| {
            let until = arrivals.arrival_time(end).as_millisecond().checked_add(millis)?;
            Some(resp::encode_command(&[b"PEXPIREAT", key, until.to_string().as_bytes()]))
        });
    });
    parsed.ok().and(following)
}

/// The key that a command gives so many milliseconds to live; `None` if it says no such thing.
fn relative_ttl<'w>(words: &[&'w [u8]]) -> Option<(&'w [u8], i64)> {
    let number = |word: &[u8], unit: i64| std::str::from_utf8(word).ok()?.parse::<i64>().ok()?.checked_mul(unit);
    let named = |word: &[u8], name: &str| word.eq_ignore_ascii_case(name.as_bytes());
    let option = |options: &[&[u8]]| {
        options.windows(2).find_map(|pair| match pair {
            [name, span] if named(name, "ex") => number(span, 1000),
            [name, span] if named(name, "px") => number(span, 1),
            _ => None,
        })
    };
    let (name, key) = (words.first()?, words.get(1)?);
    let millis = match (name.to_ascii_lowercase().as_slice(), words.get(2..)?) {
        // With options they come from a server that sends absolute times.
        (b"expire", [seconds]) | (b"setex", [seconds, _]) => number(seconds, 1000)?,
        (b"pexpire", [millis]) | (b"psetex", [millis, _]) => number(millis, 1)?,
        (b"set", [_, options @ ..]) | (b"getex", options) => option(options)?,
        (b"restore", [millis, _, options @ ..]) if !options.iter().any(|word| named(word, "absttl")) => {
            number(millis, 1).filter(|millis| *millis > 0)?
        }
        _ => return None,
    };
    Some((key, millis))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{CommandArrivals, absolute_expiry};
    use crate::redis::archive::ArrivalMark;
    use crate::redis::format::resp::encode_command;

    fn check(command: &str, end: u64, expected: Option<&str>) {
        let mark = |offset, second| ArrivalMark { offset, db: 0, time: Timestamp::from_second(second).unwrap() };
        let arrivals =
            CommandArrivals { marks: vec![mark(100, 10), mark(200, 20)], last: Timestamp::from_second(30).unwrap() };
        let words: Vec<&[u8]> = command.split(' ').map(str::as_bytes).collect();
        let found = absolute_expiry(words[0], end, &arrivals, || encode_command(&words));
        let expected = expected.map(|text| encode_command(&text.split(' ').map(str::as_bytes).collect::<Vec<_>>()));
        assert_eq!(found, expected, "{command}");
    }

    #[test]
    fn what_counts_from_now_counts_from_when_it_came() {
        for (command, expected) in [
            ("SET k v PX 250", Some("PEXPIREAT k 20250")),
            ("set k v nx ex 3 get", Some("PEXPIREAT k 23000")),
            ("SETEX k 4 v", Some("PEXPIREAT k 24000")),
            ("PSETEX k 4 v", Some("PEXPIREAT k 20004")),
            ("EXPIRE k 5", Some("PEXPIREAT k 25000")),
            ("pexpire k 5", Some("PEXPIREAT k 20005")),
            ("GETEX k EX 6", Some("PEXPIREAT k 26000")),
            ("RESTORE k 700 payload REPLACE", Some("PEXPIREAT k 20700")),
            ("RESTORE k 0 payload", None),
            ("RESTORE k 700 payload ABSTTL", None),
            ("SET k v", None),
            ("SET px v KEEPTTL", None),
            ("SET k v PXAT 250", None),
            ("SET k px 250", None),
            ("PEXPIREAT k 250", None),
            ("EXPIRE k much", None),
            ("EXPIRE k 9223372036854775807", None),
            ("LPUSH EX EX 5", None),
            ("EXPIRE", None),
        ] {
            check(command, 150, expected);
        }
        check("EXPIRE k 5", 100, Some("PEXPIREAT k 15000"));
        check("EXPIRE k 5", 201, Some("PEXPIREAT k 35000"));
    }
}
