//! AES-256-GCM under a key of the object's own.
//!
//! The key comes from the epoch key and the object's random salt by HKDF-SHA256, so it is used for this object alone
//! and the frame's number is nonce enough. What the object is goes into every tag as associated data. An object that is
//! not encrypted has no tags on its frames; its trailer carries a BLAKE3 in the tag's place, which finds damage and
//! mix-ups but no forger.

use std::fmt;

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::{AeadInOut, Aes256Gcm, KeyInit};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// Bytes of a tag.
pub(super) const TAG_BYTES: usize = 16;

/// HKDF's label for the keys of sealed objects.
const OBJECT_KEY_LABEL: &[u8] = b"walkeep sealed object key v1";

/// A part of an object that is sealed by itself; its nonce is its kind and number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SealedPart {
    /// The frame of this number, from 0.
    Frame(u64),
    /// The trailer.
    Trailer,
}

impl SealedPart {
    fn nonce(self) -> [u8; 12] {
        let (domain, number) = match self {
            SealedPart::Frame(number) => (0_u32, number),
            SealedPart::Trailer => (1, 0),
        };
        let mut nonce = [0; 12];
        let (first, second) = nonce.split_at_mut(4);
        first.copy_from_slice(&domain.to_be_bytes());
        second.copy_from_slice(&number.to_be_bytes());
        nonce
    }
}

/// The tag did not verify: another key, another name, or changed bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TagMismatchError;

/// The cipher of one object.
pub(super) enum ObjectCipher {
    /// AES-256-GCM.
    Gcm(Box<Aes256Gcm>),
    /// Nothing is encrypted.
    Clear,
}

impl fmt::Debug for ObjectCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ObjectCipher::Gcm(_) => "AES-256-GCM (key redacted)",
            ObjectCipher::Clear => "not encrypted",
        })
    }
}

/// HKDF-SHA256 to one 256-bit key.
pub(super) fn derive_key(secret: &[u8; 32], salt: &[u8], label: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    let expanded = Hkdf::<Sha256>::new(Some(salt), secret).expand_multi_info(label, key.as_mut_slice());
    debug_assert!(expanded.is_ok(), "HKDF-SHA256 gives up to 8160 bytes");
    key
}

/// AES-256-GCM under `key`.
pub(super) fn aes_gcm(key: &[u8; 32]) -> Aes256Gcm {
    Aes256Gcm::new(key.into())
}

impl ObjectCipher {
    /// The cipher of the object with this salt under this epoch key.
    pub(super) fn for_object(epoch: &[u8; 32], salt: &[u8; 32]) -> ObjectCipher {
        ObjectCipher::Gcm(Box::new(aes_gcm(&derive_key(epoch, salt, &[OBJECT_KEY_LABEL]))))
    }

    /// The bytes a part of `len` bytes grows by.
    pub(super) const fn overhead_bytes(&self, part: SealedPart) -> usize {
        match (self, part) {
            (ObjectCipher::Clear, SealedPart::Frame(_)) => 0,
            (ObjectCipher::Gcm(_), _) | (ObjectCipher::Clear, SealedPart::Trailer) => TAG_BYTES,
        }
    }

    /// Encrypts `plain`; the tag, if the part has one, comes after it.
    pub(super) fn seal(&self, part: SealedPart, associated: &[u8], plain: &[u8]) -> Result<Vec<u8>, TagMismatchError> {
        let mut sealed = vec![0; plain.len().saturating_add(self.overhead_bytes(part))];
        let Some((body, tag)) = sealed.split_at_mut_checked(plain.len()) else { return Err(TagMismatchError) };
        match self {
            ObjectCipher::Clear => {
                body.copy_from_slice(plain);
                if part == SealedPart::Trailer {
                    tag.copy_from_slice(&clear_trailer_checksum(associated, plain));
                }
            }
            ObjectCipher::Gcm(cipher) => {
                let buffer = InOutBuf::new(plain, body).map_err(|_unequal| TagMismatchError)?;
                let computed = cipher
                    .encrypt_inout_detached(&part.nonce().into(), associated, buffer)
                    .map_err(|_too_long| TagMismatchError)?;
                tag.copy_from_slice(&computed);
            }
        }
        Ok(sealed)
    }

    /// Verifies `sealed` and only then decrypts it into `plain`, which must have exactly the length of its plaintext.
    pub(super) fn open(
        &self,
        part: SealedPart,
        associated: &[u8],
        sealed: &[u8],
        plain: &mut [u8],
    ) -> Result<(), TagMismatchError> {
        if sealed.len() != plain.len().saturating_add(self.overhead_bytes(part)) {
            return Err(TagMismatchError);
        }
        let (body, tag) = sealed.split_at_checked(plain.len()).ok_or(TagMismatchError)?;
        match self {
            ObjectCipher::Clear => {
                if part == SealedPart::Trailer && clear_trailer_checksum(associated, body) != tag {
                    return Err(TagMismatchError);
                }
                plain.copy_from_slice(body);
                Ok(())
            }
            ObjectCipher::Gcm(cipher) => {
                let tag: [u8; TAG_BYTES] = tag.try_into().map_err(|_length| TagMismatchError)?;
                let buffer = InOutBuf::new(body, plain).map_err(|_unequal| TagMismatchError)?;
                cipher
                    .decrypt_inout_detached(&part.nonce().into(), associated, buffer, &tag.into())
                    .map_err(|_tag| TagMismatchError)
            }
        }
    }
}

/// What stands in the place of the trailer's tag where nothing is encrypted.
pub(super) fn clear_trailer_checksum(associated: &[u8], body: &[u8]) -> [u8; TAG_BYTES] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(associated).update(body);
    let mut tag = [0; TAG_BYTES];
    hasher.finalize_xof().fill(&mut tag);
    tag
}

#[cfg(test)]
mod tests {
    use aes_gcm::aead::{Aead, Payload};

    use super::{ObjectCipher, SealedPart, aes_gcm, derive_key};

    /// Expected value by Python's `hmac` and `hashlib`, after RFC 5869.
    #[test]
    fn derives_as_rfc_5869_says() {
        let secret: [u8; 32] = core::array::from_fn(|n| u8::try_from(n).unwrap());
        let expected = "d6e7dbbc42415c6a2f98eae798282cb58a13cbafbe12063d4a5702d6e6c4f5f1";
        let key = derive_key(&secret, b"salt", &[b"walkeep sealed ", b"object key v1"]);
        assert_eq!(key.iter().map(|byte| format!("{byte:02x}")).collect::<String>(), expected);
    }

    #[test]
    fn seals_what_the_plain_aead_interface_opens() {
        let cipher = ObjectCipher::for_object(&[1; 32], &[2; 32]);
        let sealed = cipher.seal(SealedPart::Frame(7), b"what", b"plain").unwrap();
        let key = derive_key(&[1; 32], &[2; 32], &[b"walkeep sealed object key v1"]);
        let nonce = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];
        let opened = aes_gcm(&key).decrypt(&nonce.into(), Payload { msg: &sealed, aad: b"what" }).unwrap();
        assert_eq!(opened, b"plain");
    }

    #[test]
    fn nothing_comes_out_before_the_tag_verifies() {
        let cipher = ObjectCipher::for_object(&[1; 32], &[2; 32]);
        let mut sealed = cipher.seal(SealedPart::Frame(7), b"what", b"plain").unwrap();
        sealed[0] ^= 1;
        let mut plain = [0; 5];
        assert!(cipher.open(SealedPart::Frame(7), b"what", &sealed, &mut plain).is_err());
        assert_eq!(plain, [0; 5]);
        sealed[0] ^= 1;
        assert!(cipher.open(SealedPart::Frame(6), b"what", &sealed, &mut plain).is_err());
        assert!(cipher.open(SealedPart::Trailer, b"what", &sealed, &mut plain).is_err());
        assert!(cipher.open(SealedPart::Frame(7), b"other", &sealed, &mut plain).is_err());
        assert_eq!(plain, [0; 5]);
        cipher.open(SealedPart::Frame(7), b"what", &sealed, &mut plain).unwrap();
        assert_eq!(&plain, b"plain");
    }

    #[test]
    fn debug_shows_no_key() {
        let cipher = ObjectCipher::for_object(&[1; 32], &[2; 32]);
        assert_eq!(format!("{cipher:?}"), "AES-256-GCM (key redacted)");
    }
}
