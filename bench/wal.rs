//! Decoding and digesting WAL, beside what neither can be faster than, on the same bytes in the same run.
//!
//! The bytes are real: the steady state of pgbench, some 15 records to the kilobyte. To be at least 1 GB/s on one core,
//! digest included. The limits: a copy of the bytes, CRC-32C of all of them in one call, and BLAKE3 of all of them,
//! which a digest contains.

use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use walkeep::postgres::format::segment::{SegmentName, SegmentSize};
use walkeep::postgres::wal::assemble::SegmentAssembler;
use walkeep::postgres::wal::decode::WalDecoder;
use walkeep::postgres::wal::digest::{SegmentDigest, digest_segment};

/// Copies of the two segments, so that they don't all stay in the nearest caches.
const COPIES: usize = 8;

struct Log {
    size: SegmentSize,
    segments: Vec<(SegmentName, Vec<u8>)>,
}

impl Log {
    fn steady() -> Log {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/wal/steady");
        let read = |name: &str| {
            let packed = std::fs::read(format!("{folder}/{name}.zst")).expect("a fixture");
            (SegmentName::parse(name).expect("a name"), zstd::decode_all(packed.as_slice()).expect("zstd"))
        };
        let two = [read("000000010000000000000047"), read("000000010000000000000048")];
        let segments: Vec<_> = (0..COPIES).flat_map(|_| two.clone()).collect();
        Log { size: SegmentSize::new(segments[0].1.len() as u64).expect("a size"), segments }
    }

    fn bytes(&self) -> BytesCount {
        BytesCount::new(self.segments.iter().map(|(_, bytes)| bytes.len()).sum::<usize>())
    }
}

/// Every record checked: CRC, chain, page headers. Each copy of a segment is a log of its own.
#[divan::bench]
fn decode(bencher: Bencher<'_, '_>) {
    let log = Log::steady();
    bencher.counter(log.bytes()).bench_local(|| {
        let mut records = 0_u64;
        for (name, bytes) in &log.segments {
            let start = name.number(log.size).expect("a number").start(log.size);
            let mut decoder = WalDecoder::new(start, name.timeline(), log.size);
            let mut feed = decoder.feed_bytes(bytes);
            while let Some(record) = feed.next_record().expect("good WAL") {
                black_box(record.bytes);
                records += 1;
            }
        }
        records
    });
}

/// The same, in the pieces that a WAL sender sends.
#[divan::bench]
fn decode_in_pieces_of_128_kib(bencher: Bencher<'_, '_>) {
    let log = Log::steady();
    bencher.counter(log.bytes()).bench_local(|| {
        for (name, bytes) in &log.segments {
            let start = name.number(log.size).expect("a number").start(log.size);
            let mut decoder = WalDecoder::new(start, name.timeline(), log.size);
            for piece in bytes.chunks(128 << 10) {
                let mut feed = decoder.feed_bytes(piece);
                while let Some(record) = feed.next_record().expect("good WAL") {
                    black_box(record.bytes);
                }
            }
        }
    });
}

/// All that ingest does with a segment's bytes before it seals them: decode, commit index, events, BLAKE3, and the
/// digest as bytes.
#[divan::bench]
fn digest_to_bytes(bencher: Bencher<'_, '_>) {
    let log = Log::steady();
    bencher.counter(log.bytes()).bench_local(|| {
        for (name, bytes) in &log.segments {
            black_box(digest_segment(bytes, *name, log.size).expect("a segment").to_bytes());
        }
    });
}

/// Reading digests back, as the index does when it is rebuilt; throughput is that of the log they stand for.
#[divan::bench]
fn digest_from_bytes(bencher: Bencher<'_, '_>) {
    let log = Log::steady();
    let digests: Vec<Vec<u8>> = log
        .segments
        .iter()
        .map(|(name, bytes)| digest_segment(bytes, *name, log.size).expect("a segment").to_bytes())
        .collect();
    bencher.counter(log.bytes()).bench_local(|| {
        for digest in &digests {
            black_box(SegmentDigest::from_bytes(digest).expect("a digest"));
        }
    });
}

/// Pieces of 128 KiB into whole segments, buffers given back. Its limit is the copy.
#[divan::bench]
fn assemble(bencher: Bencher<'_, '_>) {
    let log = Log::steady();
    let start = log.segments[0].0.number(log.size).expect("a number").start(log.size);
    bencher.counter(log.bytes()).bench_local(|| {
        let mut assembler = SegmentAssembler::new(log.segments[0].0.timeline(), log.size, start);
        for (_, bytes) in &log.segments {
            for piece in bytes.chunks(128 << 10) {
                assembler.push(assembler.position(), piece).expect("in place");
            }
            while let Some(segment) = assembler.poll() {
                assembler.recycle(black_box(segment.bytes));
            }
        }
    });
}

#[divan::bench]
fn limit_copy(bencher: Bencher<'_, '_>) {
    let log = Log::steady();
    let mut buffer = vec![0; log.size.len()];
    bencher.counter(log.bytes()).bench_local(|| {
        for (_, bytes) in &log.segments {
            buffer.copy_from_slice(bytes);
            black_box(&buffer);
        }
    });
}

#[divan::bench]
fn limit_crc32c(bencher: Bencher<'_, '_>) {
    let log = Log::steady();
    bencher.counter(log.bytes()).bench_local(|| {
        for (_, bytes) in &log.segments {
            black_box(crc32c::crc32c(bytes));
        }
    });
}

#[divan::bench]
fn limit_blake3(bencher: Bencher<'_, '_>) {
    let log = Log::steady();
    bencher.counter(log.bytes()).bench_local(|| {
        for (_, bytes) in &log.segments {
            black_box(blake3::hash(bytes));
        }
    });
}
