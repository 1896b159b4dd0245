//! The spool file: sealed frames that are durable on this machine before the repositories have them.
//!
//! A file grows at its end. Each append is one frame: its length, and the bytes sealed as an object of their own. The
//! caller gives the place of each frame, which binds it to the archive, the file and its position in it. So nothing is
//! stored here in clear, and no frame opens in another's place.
//!
//! The frames are sealed with a key of the spool's own ([`keys`]), so that the spool outlives every repository.
//!
//! The order of effects: store the key, create the file, fsync its directory, append frames, fsync the file. Only after
//! that are the bytes durable. A crash leaves whole frames and perhaps an incomplete last one. Reading stops at the
//! first frame that does not open, so what is read is always a prefix of what was appended, and contains all that was
//! synced.
//!
//! An incomplete last frame is torn ([`frames`]): no one was told that it is durable, and it may go. Anything else that
//! does not open is damage. The file is then set aside ([`set_aside`]) and never removed.
//!
//! Two receivers would overwrite each other's files, so a receiver locks an empty file beside the folder (`flock`).
//!
//! All calls block. Not known here: the names of the files, what is in the frames, and when a file may go.

pub mod error;
pub(crate) mod folder;
pub(crate) mod frames;
pub mod keys;
pub mod set_aside;
#[cfg(test)]
mod tests;

pub use error::SpoolError;
pub use folder::SpoolLock;
pub(crate) use folder::{GrowingFile, SpoolFolder, buffered, open_for_reading, remove_file, sync_left_file};
pub(crate) use frames::{FramePosition, MAX_FRAME_PLAIN_BYTES, ScannedFrames, SpoolFormat, SpoolRest};
pub(crate) use keys::SpoolProtection;
pub use set_aside::SetAsideFile;
