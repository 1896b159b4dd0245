//! Sealing and opening, beside zstd and AES-256-GCM alone on the same bytes in the same run.
//!
//! The limit: sealing within 1.2 times the sum of zstd and AES-GCM alone, on one thread. The BLAKE3 of the content, by
//! which segments are compared, comes on top of that sum.

use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use walkeep::vault::seal::keys::EpochKey;
use walkeep::vault::seal::{
    CompressionLevel, EpochKeyId, KeyRing, ObjectBinding, ObjectEncryption, SealSpec, SealedKind, open_object,
    seal_object,
};

const LEN: usize = 16 << 20;
const FRAME: usize = SealSpec::DEFAULT_FRAME_BYTES as usize;

/// 16 MiB that compress about as steady WAL does at level 1, three to one: short records of counters, few distinct
/// fields, and noise.
fn wal_like() -> Vec<u8> {
    let mut noise = blake3::Hasher::new().finalize_xof();
    let mut bytes = Vec::with_capacity(LEN + 64);
    let mut record = 0_u64;
    while bytes.len() < LEN {
        record += 1;
        let mut random = [0; 14];
        noise.fill(&mut random);
        bytes.extend_from_slice(&[0x3D, 0, 0, 0]);
        bytes.extend_from_slice(&(record / 4).to_le_bytes());
        bytes.extend_from_slice(&[0x40, 0x0A, 0, 0, 0, 0x7F, 6, 0, 0, 5, 0, 0]);
        bytes.extend_from_slice(&random);
        bytes.extend_from_slice(&(record % 400).to_le_bytes());
        bytes.extend_from_slice(&[0x20; 18]);
    }
    bytes.truncate(LEN);
    bytes
}

fn keys() -> ObjectEncryption {
    ObjectEncryption::Encrypted(KeyRing::new(EpochKeyId::from_bytes([1; 16]), EpochKey::from_bytes([1; 32])))
}

fn binding() -> ObjectBinding {
    ObjectBinding::new(SealedKind::Wal, "bench")
}

/// The roof: zstd's level 1 on 1 MiB frames, then AES-256-GCM in place, nothing else. One thread.
#[divan::bench]
fn zstd_and_aes_gcm_alone(bencher: Bencher<'_, '_>) {
    let plain = wal_like();
    let cipher = Aes256Gcm::new(&[1; 32].into());
    let mut zstd = zstd::bulk::Compressor::new(1).expect("zstd");
    let mut buffer = vec![0; zstd::zstd_safe::compress_bound(FRAME)];
    bencher.counter(BytesCount::new(LEN)).bench_local(|| {
        for frame in plain.chunks(FRAME) {
            let len = zstd.compress_to_buffer(frame, buffer.as_mut_slice()).expect("zstd");
            let tag = cipher.encrypt_inout_detached(&[0; 12].into(), b"", (&mut buffer[..len]).into());
            black_box(tag.expect("aes"));
        }
    });
}

/// What the content's hash takes of sealing. One thread.
#[divan::bench]
fn blake3_alone(bencher: Bencher<'_, '_>) {
    let plain = wal_like();
    bencher.counter(BytesCount::new(LEN)).bench_local(|| black_box(blake3::hash(&plain)));
}

/// The same bytes sealed; 1 thread is to be within 1.2 of the roof, 2 threads show what the second core gives.
#[divan::bench(args = [1, 2])]
fn sealed(bencher: Bencher<'_, '_>, threads: usize) {
    let (plain, keys, binding) = (wal_like(), keys(), binding());
    let spec = SealSpec { level: CompressionLevel::Fixed(1), threads, ..SealSpec::new(&binding) };
    bencher.counter(BytesCount::new(LEN)).bench_local(|| black_box(seal_object(&[&plain], &spec, &keys)));
}

/// The roof of opening: AES-256-GCM and zstd back. One thread.
#[divan::bench]
fn aes_gcm_and_zstd_back_alone(bencher: Bencher<'_, '_>) {
    let plain = wal_like();
    let cipher = Aes256Gcm::new(&[1; 32].into());
    let frames: Vec<_> = plain
        .chunks(FRAME)
        .map(|frame| {
            let mut bytes = zstd::bulk::compress(frame, 1).expect("zstd");
            let tag = cipher.encrypt_inout_detached(&[0; 12].into(), b"", bytes.as_mut_slice().into()).expect("aes");
            (bytes, tag)
        })
        .collect();
    let mut zstd = zstd::bulk::Decompressor::new().expect("zstd");
    bencher.counter(BytesCount::new(LEN)).bench_local(|| {
        let mut out = vec![0; LEN];
        for ((bytes, tag), slot) in frames.iter().zip(out.chunks_mut(FRAME)) {
            let mut bytes = bytes.clone();
            cipher.decrypt_inout_detached(&[0; 12].into(), b"", bytes.as_mut_slice().into(), tag).expect("aes");
            zstd.decompress_to_buffer(&bytes, slot).expect("zstd");
        }
        black_box(out);
    });
}

/// Opened, tags, checksums and content hash verified.
#[divan::bench(args = [1, 2])]
fn opened(bencher: Bencher<'_, '_>, threads: usize) {
    let (plain, keys, binding) = (wal_like(), keys(), binding());
    let spec = SealSpec { level: CompressionLevel::Fixed(1), threads: 2, ..SealSpec::new(&binding) };
    let object = seal_object(&[&plain], &spec, &keys).expect("seal").to_bytes();
    bencher.counter(BytesCount::new(LEN)).bench_local(|| black_box(open_object(&object, &binding, &keys, threads)));
}
