//! The sealed object: compressed, encrypted and bound to what it is.
//!
//! Everything in a repository but its description and its wrapped keys is one of these. Plaintext comes in and is cut
//! into frames; each is compressed ([`compress`]), encrypted under a key of the object's own ([`cipher`]) and followed
//! by a trailer with the frame table and whatever the object says about itself ([`Trailer::metadata`]). [`open_object`]
//! gives back exactly what was sealed, or an error: no plaintext leaves before its tag has verified, and an object
//! under another name, cut, reordered or changed in any bit does not open. [`check_without_key`] finds rot without any
//! key. A trailer alone ([`read_trailer`]) is enough to read what an object is about, and any part of it.
//!
//! Pure: no files, no clock; the only thing asked of the outside are random bytes. `docs/format/sealed-object.md` has
//! the bytes.

pub mod compress;
#[cfg(test)]
#[expect(clippy::cast_possible_truncation, reason = "the sizes here are small")]
mod tests;
pub mod content_hash;
mod sealing;
mod frame_table;
mod binding;
mod cipher;
mod fault;
mod opening;
pub mod keys;
pub mod wrapped_keys;

pub use binding::{ObjectBinding, SealedKind};
pub use compress::CompressionLevel;
pub use fault::{ObjectPart, OpenError, OpenFault};
pub use frame_table::{MAX_FRAME_BYTES, MAX_TRAILER_BYTES, MIN_FRAME_BYTES, OBJECT_END};
pub use keys::{EpochKeyId, KeyRing, ObjectEncryption};
pub use opening::{CheckedObject, OpenedObject, SuffixOutcome, Trailer, check_without_key, open_object, read_trailer};
pub use sealing::{SealError, SealSpec, SealedObject, seal_object, seal_with};

#[doc(hidden)]
pub use opening::fuzz::fuzz;
