//! What may be tried again, and how long to wait before it is.

/// What a failed operation's caller can do about it. Every adapter's error answers `class()`; nothing else decides a retry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    /// The same call may succeed later: network, time-out, a server that is starting.
    Transient,
    /// The same call will fail again: wrong password, damaged data, a full name space.
    Permanent,
    /// Another content already stands under the name.
    Conflict,
}
