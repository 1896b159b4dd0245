//! What follows what in an RDB file (`rdbSaveObject` and `rdbLoadObject` in `rdb.c`), as steps for a [`super::RdbWalker`] to take.

use super::summary::{RdbMagic, RdbValueKind};

/// What one string of a file is, so what to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RdbStringRole {
    /// Anything: it flows by.
    Any,
    /// Sixteen bytes: milliseconds and sequence.
    StreamId,
    AuxName,
    AuxValue,
    Library,
    /// An element of a list that has a node of its own.
    Element,
    /// A listpack of so many entries an element.
    Listpack(u64),
    StreamListpack,
    Ziplist(u64),
    Zipmap,
    Integers,
}

impl RdbStringRole {
    /// Whether the content is needed in one piece.
    pub(super) fn is_looked_into(self) -> bool {
        !matches!(self, RdbStringRole::Any | RdbStringRole::Element | RdbStringRole::Library)
    }
}

/// What comes next.
#[derive(Debug, Clone, Copy)]
pub(super) enum RdbStep {
    Text(RdbStringRole),
    /// A length or number that says nothing to us.
    Number,
    /// So many bytes.
    Skip(u64),
    /// Eight bytes, a number.
    Double,
    /// A number in decimal with its length before it.
    Decimal,
    /// A count, and that many times the steps.
    Times(&'static [RdbStep]),
    /// Likewise, and they are the elements of the value.
    Elements(&'static [RdbStep]),
    Again(u64, &'static [RdbStep]),
    /// How a list's node is packed, then the node.
    ListNode,
    StreamNodes,
    StreamLength,
    GroupPending(&'static [RdbStep]),
    ConsumerPending(&'static [RdbStep]),
    GroupEnd,
    ModuleName,
    /// The opcode before a module's `when`: always an unsigned integer.
    ModuleWhen,
    ModuleValue,
    Database,
    Seconds,
    Milliseconds,
    /// The value is whole.
    Key(RdbValueKind),
}

const STRING: RdbStep = RdbStep::Text(RdbStringRole::Any);

const ID: RdbStep = RdbStep::Skip(16);
const TIME: RdbStep = RdbStep::Skip(8);

const CONSUMER_PENDING: RdbStep = RdbStep::ConsumerPending(&[ID]);
const PENDING: RdbStep = RdbStep::GroupPending(&[ID, TIME, RdbStep::Number]);
/// Name, seen, pending.
const CONSUMERS: RdbStep = RdbStep::Times(&[STRING, TIME, CONSUMER_PENDING]);
/// Name, seen, active, pending.
const CONSUMERS_3: RdbStep = RdbStep::Times(&[STRING, TIME, TIME, CONSUMER_PENDING]);

// A group: name, last id in two numbers, since 2 how many entries it has read, pending entries, consumers.
const GROUPS: RdbStep =
    RdbStep::Times(&[STRING, RdbStep::Number, RdbStep::Number, PENDING, CONSUMERS, RdbStep::GroupEnd]);
const GROUPS_2: RdbStep =
    RdbStep::Times(&[STRING, RdbStep::Number, RdbStep::Number, RdbStep::Number, PENDING, CONSUMERS, RdbStep::GroupEnd]);
const GROUPS_3: RdbStep = RdbStep::Times(&[
    STRING,
    RdbStep::Number,
    RdbStep::Number,
    RdbStep::Number,
    PENDING,
    CONSUMERS_3,
    RdbStep::GroupEnd,
]);

pub(super) const STREAM_NODE: &[RdbStep] =
    &[RdbStep::Text(RdbStringRole::StreamId), RdbStep::Text(RdbStringRole::StreamListpack)];

/// What is made of a type byte: what the key holds, and the steps through it. `None` for a type that is not known.
///
/// Types 22 and up mean other things to Redis (hashes with field expiry, first as in 7.4's release candidates) and Valkey.
pub(super) fn value(magic: RdbMagic, code: u8) -> Option<(RdbValueKind, &'static [RdbStep])> {
    const NUMBER: RdbStep = RdbStep::Number;
    Some(match (code, magic) {
        (0, _) => (RdbValueKind::String, &[STRING]),
        (1, _) => (RdbValueKind::List, &[RdbStep::Elements(&[STRING])]),
        (2, _) => (RdbValueKind::Set, &[RdbStep::Elements(&[STRING])]),
        (3, _) => (RdbValueKind::SortedSet, &[RdbStep::Elements(&[STRING, RdbStep::Decimal])]),
        (4, _) => (RdbValueKind::Hash, &[RdbStep::Elements(&[STRING, STRING])]),
        (5, _) => (RdbValueKind::SortedSet, &[RdbStep::Elements(&[STRING, RdbStep::Double])]),
        (7, _) => (RdbValueKind::Module, &[RdbStep::ModuleName, RdbStep::ModuleValue]),
        (9, _) => (RdbValueKind::Hash, &[RdbStep::Text(RdbStringRole::Zipmap)]),
        (10, _) => (RdbValueKind::List, &[RdbStep::Text(RdbStringRole::Ziplist(1))]),
        (11, _) => (RdbValueKind::Set, &[RdbStep::Text(RdbStringRole::Integers)]),
        (12, _) => (RdbValueKind::SortedSet, &[RdbStep::Text(RdbStringRole::Ziplist(2))]),
        (13, _) => (RdbValueKind::Hash, &[RdbStep::Text(RdbStringRole::Ziplist(2))]),
        (14, _) => (RdbValueKind::List, &[RdbStep::Times(&[RdbStep::Text(RdbStringRole::Ziplist(1))])]),
        (15, _) => (RdbValueKind::Stream, &[RdbStep::StreamNodes, RdbStep::StreamLength, NUMBER, NUMBER, GROUPS]),
        (16, _) => (RdbValueKind::Hash, &[RdbStep::Text(RdbStringRole::Listpack(2))]),
        (17, _) => (RdbValueKind::SortedSet, &[RdbStep::Text(RdbStringRole::Listpack(2))]),
        (18, _) => (RdbValueKind::List, &[RdbStep::Times(&[RdbStep::ListNode])]),
        // Last id, first id, largest deleted id, entries ever added.
        (19, _) => (
            RdbValueKind::Stream,
            &[
                RdbStep::StreamNodes,
                RdbStep::StreamLength,
                NUMBER,
                NUMBER,
                NUMBER,
                NUMBER,
                NUMBER,
                NUMBER,
                NUMBER,
                GROUPS_2,
            ],
        ),
        (20, _) => (RdbValueKind::Set, &[RdbStep::Text(RdbStringRole::Listpack(1))]),
        (21, _) => (
            RdbValueKind::Stream,
            &[
                RdbStep::StreamNodes,
                RdbStep::StreamLength,
                NUMBER,
                NUMBER,
                NUMBER,
                NUMBER,
                NUMBER,
                NUMBER,
                NUMBER,
                GROUPS_3,
            ],
        ),
        (22, RdbMagic::Redis) => (RdbValueKind::Hash, &[RdbStep::Elements(&[NUMBER, STRING, STRING])]),
        (22, RdbMagic::Valkey) => (RdbValueKind::Hash, &[RdbStep::Elements(&[STRING, STRING, TIME])]),
        (23, RdbMagic::Redis) => (RdbValueKind::Hash, &[RdbStep::Text(RdbStringRole::Listpack(3))]),
        // The earliest expiry of a field, to which the others are relative.
        (24, RdbMagic::Redis) => (RdbValueKind::Hash, &[TIME, RdbStep::Elements(&[NUMBER, STRING, STRING])]),
        (25, RdbMagic::Redis) => (RdbValueKind::Hash, &[TIME, RdbStep::Text(RdbStringRole::Listpack(3))]),
        _ => return None,
    })
}

/// Whether fields of such a hash may expire by themselves.
pub(super) fn has_field_expiry(code: u8) -> bool {
    matches!(code, 22..=25)
}

pub(super) const END: u8 = 255;

/// The steps after an opcode that comes before keys or between them. `None` for one that is not known.
pub(super) fn opcode(magic: RdbMagic, code: u8) -> Option<&'static [RdbStep]> {
    const NUMBER: RdbStep = RdbStep::Number;
    Some(match (code, magic) {
        (254, _) => &[RdbStep::Database],
        (253, _) => &[RdbStep::Seconds],
        (252, _) => &[RdbStep::Milliseconds],
        // How many keys and how many that expire: a hint.
        (251, _) => &[NUMBER, NUMBER],
        (250, _) => &[RdbStep::Text(RdbStringRole::AuxName), RdbStep::Text(RdbStringRole::AuxValue)],
        // How often used, how long idle.
        (249, _) => &[RdbStep::Skip(1)],
        (248, _) => &[NUMBER],
        (247, _) => &[RdbStep::ModuleName, RdbStep::ModuleWhen, NUMBER, RdbStep::ModuleValue],
        (245, _) => &[RdbStep::Text(RdbStringRole::Library)],
        // Slot, its keys, its keys that expire: a hint.
        (244, _) => &[NUMBER, NUMBER, NUMBER],
        // A migration of slots under way: its name, the slots from and to.
        (243, RdbMagic::Valkey) => &[STRING, RdbStep::Times(&[NUMBER, NUMBER])],
        _ => return None,
    })
}
