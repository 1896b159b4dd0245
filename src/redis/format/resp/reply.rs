//! Replies: what a server answers on an ordinary connection.

use bytes::Bytes;

use super::error::{RespError, parse_number};

/// How deep arrays may stand in arrays. No command that walkeep sends is answered deeper than three.
const MAX_REPLY_DEPTH: usize = 8;
/// A status line, an error, a number.
const MAX_LINE_BYTES: usize = 64 << 10;
/// The longest single text of a reply: `INFO` with every section of a large server is some 100 KiB.
const MAX_TEXT_BYTES: u64 = 16 << 20;
/// The most elements of one array; each takes three bytes at least before it is believed.
const MAX_ARRAY_ELEMENTS: u64 = 1 << 20;

/// A reply of RESP2.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RedisReply {
    /// `+OK`.
    Status(String),
    /// `-ERR …`.
    Error(String),
    /// `:1`.
    Integer(i64),
    /// A text of any bytes.
    Bulk(Bytes),
    /// Nothing: the null bulk or the null array.
    Null,
    /// Several.
    Array(Vec<RedisReply>),
}

impl RedisReply {
    /// Reads the reply at the front of `input`, and how many bytes it takes; `None` if more is needed.
    ///
    /// # Errors
    /// [`RespError`] if no reply can begin like that.
    pub fn parse(input: &[u8]) -> Result<Option<(RedisReply, usize)>, RespError> {
        let mut at = 0;
        Ok(parse_reply(input, &mut at, 0)?.map(|reply| (reply, at)))
    }

    /// The text of a status or bulk reply.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        match self {
            RedisReply::Status(text) => Some(text),
            RedisReply::Bulk(bytes) => std::str::from_utf8(bytes).ok(),
            RedisReply::Error(_) | RedisReply::Integer(_) | RedisReply::Null | RedisReply::Array(_) => None,
        }
    }

    /// The elements of an array.
    #[must_use]
    pub fn elements(&self) -> Option<&[RedisReply]> {
        match self {
            RedisReply::Array(elements) => Some(elements),
            RedisReply::Status(_)
            | RedisReply::Error(_)
            | RedisReply::Integer(_)
            | RedisReply::Bulk(_)
            | RedisReply::Null => None,
        }
    }
}

/// A command as a client sends it.
#[must_use]
pub fn encode_command(arguments: &[&[u8]]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
        bytes.extend_from_slice(argument);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// The line at `at` without its end; `at` moves behind it.
fn read_line<'i>(input: &'i [u8], at: &mut usize) -> Result<Option<&'i [u8]>, RespError> {
    let rest = input.get(*at..).unwrap_or_default();
    let Some(len) = rest.iter().take(MAX_LINE_BYTES).position(|byte| *byte == b'\n') else {
        let endless = RespError::Endless { at: *at as u64, limit: MAX_LINE_BYTES };
        return if rest.len() < MAX_LINE_BYTES { Ok(None) } else { Err(endless) };
    };
    let line = rest.get(..len).unwrap_or_default();
    *at = at.saturating_add(len).saturating_add(1);
    Ok(Some(line.strip_suffix(b"\r").unwrap_or(line)))
}

fn parse_reply(input: &[u8], at: &mut usize, depth: usize) -> Result<Option<RedisReply>, RespError> {
    if depth > MAX_REPLY_DEPTH {
        return Err(RespError::Deep { limit: MAX_REPLY_DEPTH });
    }
    let begin = *at as u64;
    let Some(first) = input.get(*at).copied() else { return Ok(None) };
    if !b"+-:$*".contains(&first) {
        return Err(RespError::Unexpected { at: begin, wanted: "a reply", found: first });
    }
    let Some(line) = read_line(input, at)? else { return Ok(None) };
    let rest = line.get(1..).unwrap_or_default();
    let text = || String::from_utf8_lossy(rest).into_owned();
    Ok(Some(match first {
        b'+' => RedisReply::Status(text()),
        b'-' => RedisReply::Error(text()),
        b':' => RedisReply::Integer(parse_number(rest, "an integer", begin)?),
        b'$' => {
            let Some(len) = parse_length(rest, "the length of a text", begin, MAX_TEXT_BYTES)? else {
                return Ok(Some(RedisReply::Null));
            };
            let end = at.saturating_add(len);
            let Some(ending) = input.get(end..end.saturating_add(2)) else { return Ok(None) };
            if ending != b"\r\n" {
                let found = ending.first().copied().unwrap_or_default();
                return Err(RespError::Unexpected { at: end as u64, wanted: "the end of a text", found });
            }
            let bytes = Bytes::copy_from_slice(input.get(*at..end).unwrap_or_default());
            *at = end.saturating_add(2);
            RedisReply::Bulk(bytes)
        }
        _ => {
            let Some(count) = parse_length(rest, "a number of elements", begin, MAX_ARRAY_ELEMENTS)? else {
                return Ok(Some(RedisReply::Null));
            };
            let mut elements = Vec::new();
            for _ in 0..count {
                let Some(element) = parse_reply(input, at, depth.saturating_add(1))? else { return Ok(None) };
                elements.push(element);
            }
            RedisReply::Array(elements)
        }
    }))
}

/// A length up to `limit`; `None` for -1.
fn parse_length(text: &[u8], what: &'static str, at: u64, limit: u64) -> Result<Option<usize>, RespError> {
    match parse_number(text, what, at)? {
        -1 => Ok(None),
        found => {
            match u64::try_from(found).ok().filter(|len| *len <= limit).and_then(|len| usize::try_from(len).ok()) {
                Some(len) => Ok(Some(len)),
                None => Err(RespError::TooMuch { at, what, found: i128::from(found), limit }),
            }
        }
    }
}

/// A reply never takes more bytes than there are, and none appears or changes as bytes are added behind it.
pub(super) fn fuzz(data: &[u8]) {
    let whole = RedisReply::parse(data);
    if let Ok(Some((reply, len))) = &whole {
        assert!(*len <= data.len(), "a reply beyond its bytes");
        let exact = RedisReply::parse(data.get(..*len).unwrap_or_default());
        assert_eq!(exact.as_ref(), Ok(&Some((reply.clone(), *len))), "it needs bytes behind it");
        let short = RedisReply::parse(data.get(..len.saturating_sub(1)).unwrap_or_default());
        assert_eq!(short, Ok(None), "it ends too early");
    }
}

#[cfg(test)]
mod tests {
    use super::{RedisReply, encode_command};
    use bytes::Bytes;

    #[test]
    fn every_kind_of_reply_is_read_once_it_is_whole() {
        let bulk = |text: &'static str| RedisReply::Bulk(Bytes::from_static(text.as_bytes()));
        let table = [
            ("+OK\r\n", RedisReply::Status("OK".into())),
            ("-NOAUTH Authentication required.\r\n", RedisReply::Error("NOAUTH Authentication required.".into())),
            (":-42\r\n", RedisReply::Integer(-42)),
            ("$5\r\na\r\nb\n\r\n", bulk("a\r\nb\n")),
            ("$0\r\n\r\n", bulk("")),
            ("$-1\r\n", RedisReply::Null),
            ("*-1\r\n", RedisReply::Null),
            ("*3\r\n:1\r\n*1\r\n$1\r\nx\r\n+y\r\n", {
                RedisReply::Array(vec![
                    RedisReply::Integer(1),
                    RedisReply::Array(vec![bulk("x")]),
                    RedisReply::Status("y".into()),
                ])
            }),
        ];
        for (text, expected) in table {
            let bytes = [text.as_bytes(), b"+next"].concat();
            assert_eq!(RedisReply::parse(&bytes), Ok(Some((expected, text.len()))), "{text:?}");
            for len in 0..text.len() {
                assert_eq!(RedisReply::parse(&bytes[..len]), Ok(None), "{len} bytes of {text:?}");
            }
        }
    }

    #[test]
    fn what_no_server_answers_is_refused() {
        let deep = "*1\r\n".repeat(100);
        let endless = "+".repeat(70_000);
        for (text, says) in [
            ("HTTP/1.1 400", "a reply"),
            ("$99999999999\r\n", "more than"),
            ("*1048577\r\n", "more than"),
            ("$-2\r\n", "more than"),
            (":\r\n", "no number"),
            (":99999999999999999999\r\n", "no number"),
            ("$1\r\nabc", "the end of a text"),
            (deep.as_str(), "nested"),
            (endless.as_str(), "more than 65536 bytes"),
        ] {
            let error = RedisReply::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(says), "{error} should say {says}");
        }
    }

    #[test]
    fn what_is_sent_is_what_a_server_reads() {
        assert_eq!(encode_command(&[b"ECHO", b"a\r\n"]), b"*2\r\n$4\r\nECHO\r\n$3\r\na\r\n\r\n");
    }
}
