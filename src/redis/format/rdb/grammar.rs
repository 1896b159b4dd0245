//! What follows what in an RDB file (`rdbSaveObject` and `rdbLoadObject` in `rdb.c`), as steps for a
//! [`super::RdbWalker`] to take.

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

const STRING_STEP: RdbStep = RdbStep::Text(RdbStringRole::Any);

const STREAM_ID_STEP: RdbStep = RdbStep::Skip(16);
const TIME_STEP: RdbStep = RdbStep::Skip(8);

const CONSUMER_PENDING_STEP: RdbStep = RdbStep::ConsumerPending(&[STREAM_ID_STEP]);
const GROUP_PENDING_STEP: RdbStep = RdbStep::GroupPending(&[STREAM_ID_STEP, TIME_STEP, RdbStep::Number]);
/// Name, seen, pending.
const CONSUMERS_STEP: RdbStep = RdbStep::Times(&[STRING_STEP, TIME_STEP, CONSUMER_PENDING_STEP]);
/// Name, seen, active, pending.
const CONSUMERS_3_STEP: RdbStep = RdbStep::Times(&[STRING_STEP, TIME_STEP, TIME_STEP, CONSUMER_PENDING_STEP]);

// A group: name, last id in two numbers, since 2 how many entries it has read, pending entries, consumers.
const GROUPS_STEP: RdbStep = RdbStep::Times(&[
    STRING_STEP,
    RdbStep::Number,
    RdbStep::Number,
    GROUP_PENDING_STEP,
    CONSUMERS_STEP,
    RdbStep::GroupEnd,
]);
const GROUPS_2_STEP: RdbStep = RdbStep::Times(&[
    STRING_STEP,
    RdbStep::Number,
    RdbStep::Number,
    RdbStep::Number,
    GROUP_PENDING_STEP,
    CONSUMERS_STEP,
    RdbStep::GroupEnd,
]);
const GROUPS_3_STEP: RdbStep = RdbStep::Times(&[
    STRING_STEP,
    RdbStep::Number,
    RdbStep::Number,
    RdbStep::Number,
    GROUP_PENDING_STEP,
    CONSUMERS_3_STEP,
    RdbStep::GroupEnd,
]);

pub(super) const STREAM_NODE_STEPS: &[RdbStep] =
    &[RdbStep::Text(RdbStringRole::StreamId), RdbStep::Text(RdbStringRole::StreamListpack)];

/// What is made of a type byte: what the key holds, and the steps through it. `None` for a type that is not known.
///
/// Types 22 and up mean other things to Redis (hashes with field expiry, first as in 7.4's release candidates) and
/// Valkey.
pub(super) fn value_steps(magic: RdbMagic, code: u8) -> Option<(RdbValueKind, &'static [RdbStep])> {
    const NUMBER: RdbStep = RdbStep::Number;
    Some(match (code, magic) {
        (0, _) => (RdbValueKind::String, &[STRING_STEP]),
        (1, _) => (RdbValueKind::List, &[RdbStep::Elements(&[STRING_STEP])]),
        (2, _) => (RdbValueKind::Set, &[RdbStep::Elements(&[STRING_STEP])]),
        (3, _) => (RdbValueKind::SortedSet, &[RdbStep::Elements(&[STRING_STEP, RdbStep::Decimal])]),
        (4, _) => (RdbValueKind::Hash, &[RdbStep::Elements(&[STRING_STEP, STRING_STEP])]),
        (5, _) => (RdbValueKind::SortedSet, &[RdbStep::Elements(&[STRING_STEP, RdbStep::Double])]),
        (7, _) => (RdbValueKind::Module, &[RdbStep::ModuleName, RdbStep::ModuleValue]),
        (9, _) => (RdbValueKind::Hash, &[RdbStep::Text(RdbStringRole::Zipmap)]),
        (10, _) => (RdbValueKind::List, &[RdbStep::Text(RdbStringRole::Ziplist(1))]),
        (11, _) => (RdbValueKind::Set, &[RdbStep::Text(RdbStringRole::Integers)]),
        (12, _) => (RdbValueKind::SortedSet, &[RdbStep::Text(RdbStringRole::Ziplist(2))]),
        (13, _) => (RdbValueKind::Hash, &[RdbStep::Text(RdbStringRole::Ziplist(2))]),
        (14, _) => (RdbValueKind::List, &[RdbStep::Times(&[RdbStep::Text(RdbStringRole::Ziplist(1))])]),
        (15, _) => (RdbValueKind::Stream, &[RdbStep::StreamNodes, RdbStep::StreamLength, NUMBER, NUMBER, GROUPS_STEP]),
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
                GROUPS_2_STEP,
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
                GROUPS_3_STEP,
            ],
        ),
        (22, RdbMagic::Redis) => (RdbValueKind::Hash, &[RdbStep::Elements(&[NUMBER, STRING_STEP, STRING_STEP])]),
        (22, RdbMagic::Valkey) => (RdbValueKind::Hash, &[RdbStep::Elements(&[STRING_STEP, STRING_STEP, TIME_STEP])]),
        (23, RdbMagic::Redis) => (RdbValueKind::Hash, &[RdbStep::Text(RdbStringRole::Listpack(3))]),
        // The earliest expiry of a field, to which the others are relative.
        (24, RdbMagic::Redis) => {
            (RdbValueKind::Hash, &[TIME_STEP, RdbStep::Elements(&[NUMBER, STRING_STEP, STRING_STEP])])
        }
        (25, RdbMagic::Redis) => (RdbValueKind::Hash, &[TIME_STEP, RdbStep::Text(RdbStringRole::Listpack(3))]),
        _ => return None,
    })
}

/// Whether fields of such a hash may expire by themselves.
pub(super) fn has_field_expiry(code: u8) -> bool {
    matches!(code, 22..=25)
}

pub(super) const END_OPCODE: u8 = 255;

/// The steps after an opcode that comes before keys or between them. `None` for one that is not known.
pub(super) fn opcode_steps(magic: RdbMagic, code: u8) -> Option<&'static [RdbStep]> {
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
        (243, RdbMagic::Valkey) => &[STRING_STEP, RdbStep::Times(&[NUMBER, NUMBER])],
        _ => return None,
    })
}
