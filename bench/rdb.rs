//! Walking RDB files, beside the checksum alone: for large strings the walk should be little more than that.

use divan::Bencher;
use divan::counter::BytesCount;
use walkeep::redis::format::rdb::{RdbLimits, RdbWalker, crc64};

/// What comes from a socket at once.
const PIECE: usize = 128 << 10;

const END: &[u8] = &[0xff, 0, 0, 0, 0, 0, 0, 0, 0];

fn string(bytes: &[u8]) -> Vec<u8> {
    let len = u32::try_from(bytes.len()).unwrap();
    [&[0x80][..], &len.to_be_bytes(), bytes].concat()
}

/// 64 MiB in strings of `len` bytes.
fn strings(len: usize) -> Vec<u8> {
    let mut file = b"REDIS0012".to_vec();
    let value = string(&vec![b'x'; len]);
    for key in 0_u64.. {
        file.push(0);
        file.extend(string(format!("key:{key:012}").as_bytes()));
        file.extend_from_slice(&value);
        if file.len() >= 64 << 20 {
            break;
        }
    }
    file.extend_from_slice(END);
    file
}

/// 64 MiB in hashes of eight fields, as listpacks.
fn hashes() -> Vec<u8> {
    let entry = |text: &str| {
        let mut entry = vec![0x80 | u8::try_from(text.len()).unwrap()];
        entry.extend_from_slice(text.as_bytes());
        entry.push(u8::try_from(text.len() + 1).unwrap());
        entry
    };
    let entries: Vec<u8> = (0..8)
        .flat_map(|i| [entry(&format!("field{i}")), entry(&format!("a value of some length {i}"))].concat())
        .collect();
    let mut list = u32::try_from(entries.len() + 7).unwrap().to_le_bytes().to_vec();
    list.extend([16, 0]);
    list.extend(entries);
    list.push(0xff);
    let mut file = b"REDIS0012".to_vec();
    while file.len() < 64 << 20 {
        file.push(16);
        file.extend(string(format!("hash:{:012}", file.len()).as_bytes()));
        file.extend(string(&list));
    }
    file.extend_from_slice(END);
    file
}

fn walk(bencher: Bencher<'_, '_>, file: &[u8]) {
    bencher.counter(BytesCount::new(file.len())).bench(|| {
        let mut walker = RdbWalker::new(RdbLimits::default());
        for piece in file.chunks(PIECE) {
            walker.push(piece).unwrap();
        }
        walker.finish().unwrap().keys()
    });
}

#[divan::bench(args = [16, 100, 1 << 10, 1 << 20, 16 << 20])]
fn strings_of(bencher: Bencher<'_, '_>, len: usize) {
    walk(bencher, &strings(len));
}

#[divan::bench]
fn hashes_as_listpacks(bencher: Bencher<'_, '_>) {
    walk(bencher, &hashes());
}

/// The roof.
#[divan::bench]
fn checksum(bencher: Bencher<'_, '_>) {
    let file = strings(1 << 20);
    bencher.counter(BytesCount::new(file.len())).bench(|| file.chunks(PIECE).fold(0, crc64));
}
