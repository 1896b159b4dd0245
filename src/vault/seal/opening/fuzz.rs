//! The fuzz target's body.

use super::{check_without_key, open_object, read_trailer};
use crate::vault::seal::binding::{ObjectBinding, SealedKind};
use crate::vault::seal::cipher::clear_trailer_checksum;
use crate::vault::seal::frame_table::{FOOTER_BYTES, HEADER_BYTES, ObjectFooter, ObjectHeader};
use crate::vault::seal::keys::{EpochKey, EpochKeyId, KeyRing, ObjectEncryption};
use crate::vault::seal::sealing::{SealSpec, seal_salted};

/// Opens anything. The first byte chooses: the rest as an object of an encrypted or of a clear repository; the rest
/// with its checksums mended, so that the parser is reached behind them; or the rest sealed and then changed, which
/// must not open as anything else.
#[doc(hidden)]
pub fn fuzz(data: &[u8]) {
    let Some((choice, rest)) = data.split_first() else { return };
    let binding = ObjectBinding::new(SealedKind::Probe, "fuzz");
    let keyed =
        ObjectEncryption::Encrypted(KeyRing::new(EpochKeyId::from_bytes([7; 16]), EpochKey::from_bytes([7; 32])));
    match choice % 4 {
        0 => open_once(rest, &binding, &keyed),
        1 => open_once(rest, &binding, &ObjectEncryption::None),
        2 => open_once(&with_valid_framing(rest, &binding), &binding, &ObjectEncryption::None),
        _ => seal_change_open(rest, &binding, if choice & 4 == 0 { &keyed } else { &ObjectEncryption::None }),
    }
}

fn open_once(object: &[u8], binding: &ObjectBinding, protection: &ObjectEncryption) {
    let opened = open_object(object, binding, protection, 1);
    assert!(opened.is_err() || check_without_key(object).is_ok(), "opens, but fails the check");
    let half = object.get(object.len() / 2..).unwrap_or_default();
    let trailer = read_trailer(half, object.len() as u64, binding, protection);
    drop(trailer);
}

/// The bytes with a valid header, footer and checksums written over them.
fn with_valid_framing(data: &[u8], binding: &ObjectBinding) -> Vec<u8> {
    let mut object = data.to_vec();
    let Some(foot) = object.len().checked_sub(FOOTER_BYTES).filter(|at| *at >= HEADER_BYTES) else { return object };
    let header = ObjectHeader {
        kind: SealedKind::Probe,
        key: EpochKeyId::NONE,
        encrypted: false,
        frame_size: 4096,
        salt: [0; 32],
    };
    let Some(rest) = object.get(foot..foot.saturating_add(88)) else { return object };
    let number = |at: usize| super::array::<4>(rest, at).map_or(0, u32::from_le_bytes);
    let plain_len = u64::from(number(80)) % (1 << 20);
    let mut footer = ObjectFooter {
        header: header.clone(),
        frames: u32::try_from(plain_len.div_ceil(4096)).unwrap_or(0),
        trailer: super::StoredLen { len: number(68) % 4096, compressed: number(68) >> 31 == 1 },
        trailer_plain: number(72) % (1 << 20),
        crc: 0,
        plain_len,
    };
    let start = usize::try_from(footer.tail_len()).ok().and_then(|len| object.len().checked_sub(len));
    if let Some(start) = start.filter(|start| *start >= HEADER_BYTES) {
        let table_end = start.saturating_add(footer.frames as usize * super::FRAME_ENTRY_BYTES);
        let table = object.get(start..table_end).unwrap_or_default().to_vec();
        let body = object.get(table_end..foot.saturating_sub(16)).unwrap_or_default().to_vec();
        let tag = clear_trailer_checksum(&footer.associated(&header.authenticated_context(binding), &table), &body);
        if let Some(place) = object.get_mut(foot.saturating_sub(16)..foot) {
            place.copy_from_slice(&tag);
        }
        footer.crc = crc32fast::hash(object.get(start..foot).unwrap_or_default());
    }
    object.iter_mut().zip(header.to_bytes()).for_each(|(to, from)| *to = from);
    object.iter_mut().skip(foot).zip(footer.to_bytes()).for_each(|(to, from)| *to = from);
    object
}

/// Seals the first half and changes the object as the second half says: pairs of position and mask.
fn seal_change_open(data: &[u8], binding: &ObjectBinding, protection: &ObjectEncryption) {
    let (plain, changes) = data.split_at(data.len() / 2);
    let spec = SealSpec {
        frame_size: 4096,
        metadata: plain.get(..plain.len().min(9)).unwrap_or_default(),
        ..SealSpec::new(binding)
    };
    let Ok(sealed) = seal_salted(&[plain], &spec, protection, [9; 32]) else { return };
    let original = sealed.to_bytes();
    let mut object = original.to_vec();
    for change in changes.chunks_exact(3) {
        let [low, high, mask] = change else { continue };
        let at = usize::from(u16::from_le_bytes([*low, *high])) % object.len();
        if let Some(byte) = object.get_mut(at) {
            *byte ^= mask;
        }
    }
    match open_object(&object, binding, protection, 1) {
        Ok(opened) => assert!(object == original && opened.plain == plain, "a changed object opened"),
        Err(_) => assert!(object != original, "an object as it was sealed did not open"),
    }
}
