//! How far the server's clock was from the receiver's while WAL came: a note with each segment and each piece that a
//! receiver puts.
//!
//! Commits carry the time of the server's clock, and the commands of a Redis instance that of its receiver's, so who
//! brings both to one moment must know what the two differed by then. It stands beside the WAL itself, because there it
//! is found wherever the WAL is found. What `archive_command` brought without a receiver has no such note, nor has what
//! came from a standby or an earlier version archived: then it is not known.

use super::{Archive, ArchiveError};
use crate::base::clock::ClockMeasurement;
use crate::postgres::format::segment::SegmentName;
use crate::postgres::wal::digest;
use crate::vault::seal::SealedKind;

/// The note that says this; empty for nothing.
#[must_use]
pub fn encode_clock_note(spans: &[ClockMeasurement]) -> Vec<u8> {
    if spans.is_empty() { Vec::new() } else { serde_json::to_vec(spans).unwrap_or_default() }
}

/// What a note says; nothing if there is none, or one of a later version.
#[must_use]
pub fn parse_clock_note(note: &[u8]) -> Vec<ClockMeasurement> {
    serde_json::from_slice(note).unwrap_or_default()
}

impl Archive {
    /// What was measured of the server's clock while a segment came: from its object, or from the pieces of one that
    /// still grows.
    ///
    /// # Errors
    /// The repositories could not say.
    pub async fn clock_measurements(&self, name: SegmentName) -> Result<Vec<ClockMeasurement>, ArchiveError> {
        if let Some(trailer) = self.vault().get_trailer(SealedKind::Wal, &self.layout().segment(name)).await? {
            return Ok(parse_clock_note(digest::note_after_digest(trailer.metadata())));
        }
        let Some(identity) = self.identity().await? else { return Ok(Vec::new()) };
        let mut spans = Vec::new();
        for piece in self.list_pieces(Some(name.timeline())).await? {
            if piece.segment(identity.segment_size) == Some(name)
                && let Some(trailer) = self.vault().get_trailer(SealedKind::Piece, &self.piece_key(piece)).await?
            {
                spans.extend(parse_clock_note(trailer.metadata()));
            }
        }
        Ok(join_pieces(spans))
    }
}

/// In order of time. A later piece repeats what earlier ones say, and goes on.
fn join_pieces(mut spans: Vec<ClockMeasurement>) -> Vec<ClockMeasurement> {
    spans.sort_unstable_by_key(|span| span.from);
    spans.dedup_by(|later, kept| {
        let same = later.from == kept.from;
        if same {
            *kept = kept.merged_with(*later);
        }
        same
    });
    spans
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::{encode_clock_note, join_pieces, parse_clock_note};
    use crate::base::clock::{ClockMeasurement, ClockOffset, Machine};
    use crate::postgres::archive::ingest::{NotedSegment, prepare_segment_with_note};
    use crate::postgres::archive::tests::{create, segment};
    use crate::postgres::format::lsn::Lsn;
    use crate::vault::seal::CompressionLevel;
    use crate::vault::seal::keys::KeyEncryptionKey;

    fn span(from: i64, to: i64, high: i64) -> ClockMeasurement {
        let at = |second| Timestamp::from_second(second).unwrap();
        ClockMeasurement { from: at(from), to: at(to), offset: ClockOffset { low: -5, high }, machine: None }
    }

    #[test]
    fn a_note_is_read_as_it_is_written() {
        let spans = vec![span(1, 2, 3), span(100, 200, 7)];
        assert_eq!(parse_clock_note(&encode_clock_note(&spans)), spans);
        let text = r#"[{"from":"1970-01-01T00:00:01Z","to":"1970-01-01T00:00:02Z","low":-5,"high":3}]"#;
        assert_eq!(String::from_utf8(encode_clock_note(&spans[..1])).unwrap(), text, "the documented format");
        assert_eq!((parse_clock_note(b""), parse_clock_note(b"{}"), encode_clock_note(&[])), (vec![], vec![], vec![]));
        let machine = Some("00c0ffee00c0ffee".parse::<Machine>().unwrap());
        let spans = vec![span(1, 2, 3).against_machine(machine)];
        assert_eq!(parse_clock_note(&encode_clock_note(&spans)), spans);
        let text = r#"[{"from":"1970-01-01T00:00:01Z","to":"1970-01-01T00:00:02Z","low":-5,"high":3,"machine":"00c0ffee00c0ffee"}]"#;
        assert_eq!(String::from_utf8(encode_clock_note(&spans)).unwrap(), text, "the documented format");
    }

    /// Two receivers may have begun at once, in whatever order their pieces are read.
    #[test]
    fn spans_that_begin_together_are_one_that_holds_what_each_says() {
        let (narrow, wide, long) = (span(1, 9, 2), span(1, 9, 7), span(1, 20, 3));
        for spans in [[narrow, wide, long], [wide, long, narrow], [long, narrow, wide]] {
            assert_eq!(join_pieces([&spans[..], &[span(30, 40, 1)]].concat()), [span(1, 20, 7), span(30, 40, 1)]);
        }
    }

    #[tokio::test]
    async fn a_segment_says_it_while_it_grows_and_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let archive = create(&[&dir], Some(&KeyEncryptionKey::generate().unwrap())).await;
        let (before, _) = segment(7, 4, b"a", 9);
        let (name, bytes) = segment(7, 5, b"a", 9);
        let (_, first) = segment(7, 4, b"a", 9);
        archive.put_segment(before, first).await.unwrap();
        assert_eq!(
            (archive.clock_measurements(before).await.unwrap(), archive.clock_measurements(name).await.unwrap()),
            (vec![], vec![])
        );
        let start = Lsn::new(5 << 20);
        for (end, spans) in [(100, vec![span(1, 2, 3)]), (200, vec![span(1, 20, 4), span(100, 110, 9)])] {
            let note = encode_clock_note(&spans);
            archive.put_piece_with_note(name.timeline(), start, bytes.slice(..end), note).await.unwrap();
            assert_eq!(archive.clock_measurements(name).await.unwrap(), spans);
        }
        let spans = vec![span(1, 50, 4)];
        let noted = NotedSegment { name, bytes: &bytes, note: &encode_clock_note(&spans) };
        let prepared = prepare_segment_with_note(&archive, noted, CompressionLevel::Fixed(1), 1).unwrap();
        archive.commit_segment(prepared).await.unwrap();
        assert_eq!(archive.clock_measurements(name).await.unwrap(), spans);
        assert!(archive.digest(name).await.unwrap().is_some(), "the digest is read as ever");
        // From a file, as `archive_command` brings it to a receiver.
        let (pushed, bytes) = segment(7, 6, b"a", 9);
        let path = dir.path().join(pushed.to_string());
        std::fs::write(&path, bytes).unwrap();
        archive.put_wal_file_at(&path, &pushed.to_string(), &encode_clock_note(&spans)).await.unwrap();
        assert_eq!(archive.clock_measurements(pushed).await.unwrap(), spans);
    }
}
