//! What follows what in an RDB file (`rdbSaveObject` and `rdbLoadObject` in `rdb.c`), as steps for a [`super::Walker`] to take.

use super::summary::{Kind, Magic};

/// What one string of a file is, so what to do with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Text {
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

impl Text {
    /// Whether the content is needed in one piece.
    pub(super) fn is_looked_into(self) -> bool {
        !matches!(self, Text::Any | Text::Element | Text::Library)
    }
}

/// What comes next.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Text(Text),
    /// A length or number that says nothing to us.
    Number,
    /// So many bytes.
    Skip(u64),
    /// Eight bytes, a number.
    Double,
    /// A number in decimal with its length before it.
    Decimal,
    /// A count, and that many times the steps.
    Times(&'static [Step]),
    /// Likewise, and they are the elements of the value.
    Elements(&'static [Step]),
    Again(u64, &'static [Step]),
    /// How a list's node is packed, then the node.
    ListNode,
    StreamNodes,
    StreamLength,
    GroupPending(&'static [Step]),
    ConsumerPending(&'static [Step]),
    GroupEnd,
    ModuleName,
    /// The opcode before a module's `when`: always an unsigned integer.
    ModuleWhen,
    ModuleValue,
    Database,
    Seconds,
    Milliseconds,
    /// The value is whole.
    Key(Kind),
}

const STRING: Step = Step::Text(Text::Any);

const ID: Step = Step::Skip(16);
const TIME: Step = Step::Skip(8);

const CONSUMER_PENDING: Step = Step::ConsumerPending(&[ID]);
const PENDING: Step = Step::GroupPending(&[ID, TIME, Step::Number]);
/// Name, seen, pending.
const CONSUMERS: Step = Step::Times(&[STRING, TIME, CONSUMER_PENDING]);
/// Name, seen, active, pending.
const CONSUMERS_3: Step = Step::Times(&[STRING, TIME, TIME, CONSUMER_PENDING]);

// A group: name, last id in two numbers, since 2 how many entries it has read, pending entries, consumers.
const GROUPS: Step = Step::Times(&[STRING, Step::Number, Step::Number, PENDING, CONSUMERS, Step::GroupEnd]);
const GROUPS_2: Step =
    Step::Times(&[STRING, Step::Number, Step::Number, Step::Number, PENDING, CONSUMERS, Step::GroupEnd]);
const GROUPS_3: Step =
    Step::Times(&[STRING, Step::Number, Step::Number, Step::Number, PENDING, CONSUMERS_3, Step::GroupEnd]);

pub(super) const STREAM_NODE: &[Step] = &[Step::Text(Text::StreamId), Step::Text(Text::StreamListpack)];

/// What is made of a type byte: what the key holds, and the steps through it. `None` for a type that is not known.
///
/// Types 22 and up mean other things to Redis (hashes with field expiry, first as in 7.4's release candidates) and Valkey.
pub(super) fn value(magic: Magic, code: u8) -> Option<(Kind, &'static [Step])> {
    const NUMBER: Step = Step::Number;
    Some(match (code, magic) {
        (0, _) => (Kind::String, &[STRING]),
        (1, _) => (Kind::List, &[Step::Elements(&[STRING])]),
        (2, _) => (Kind::Set, &[Step::Elements(&[STRING])]),
        (3, _) => (Kind::SortedSet, &[Step::Elements(&[STRING, Step::Decimal])]),
        (4, _) => (Kind::Hash, &[Step::Elements(&[STRING, STRING])]),
        (5, _) => (Kind::SortedSet, &[Step::Elements(&[STRING, Step::Double])]),
        (7, _) => (Kind::Module, &[Step::ModuleName, Step::ModuleValue]),
        (9, _) => (Kind::Hash, &[Step::Text(Text::Zipmap)]),
        (10, _) => (Kind::List, &[Step::Text(Text::Ziplist(1))]),
        (11, _) => (Kind::Set, &[Step::Text(Text::Integers)]),
        (12, _) => (Kind::SortedSet, &[Step::Text(Text::Ziplist(2))]),
        (13, _) => (Kind::Hash, &[Step::Text(Text::Ziplist(2))]),
        (14, _) => (Kind::List, &[Step::Times(&[Step::Text(Text::Ziplist(1))])]),
        (15, _) => (Kind::Stream, &[Step::StreamNodes, Step::StreamLength, NUMBER, NUMBER, GROUPS]),
        (16, _) => (Kind::Hash, &[Step::Text(Text::Listpack(2))]),
        (17, _) => (Kind::SortedSet, &[Step::Text(Text::Listpack(2))]),
        (18, _) => (Kind::List, &[Step::Times(&[Step::ListNode])]),
        // Last id, first id, largest deleted id, entries ever added.
        (19, _) => (
            Kind::Stream,
            &[Step::StreamNodes, Step::StreamLength, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, GROUPS_2],
        ),
        (20, _) => (Kind::Set, &[Step::Text(Text::Listpack(1))]),
        (21, _) => (
            Kind::Stream,
            &[Step::StreamNodes, Step::StreamLength, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, NUMBER, GROUPS_3],
        ),
        (22, Magic::Redis) => (Kind::Hash, &[Step::Elements(&[NUMBER, STRING, STRING])]),
        (22, Magic::Valkey) => (Kind::Hash, &[Step::Elements(&[STRING, STRING, TIME])]),
        (23, Magic::Redis) => (Kind::Hash, &[Step::Text(Text::Listpack(3))]),
        // The earliest expiry of a field, to which the others are relative.
        (24, Magic::Redis) => (Kind::Hash, &[TIME, Step::Elements(&[NUMBER, STRING, STRING])]),
        (25, Magic::Redis) => (Kind::Hash, &[TIME, Step::Text(Text::Listpack(3))]),
        _ => return None,
    })
}

/// Whether fields of such a hash may expire by themselves.
pub(super) fn has_field_expiry(code: u8) -> bool {
    matches!(code, 22..=25)
}

pub(super) const END: u8 = 255;

/// The steps after an opcode that comes before keys or between them. `None` for one that is not known.
pub(super) fn opcode(magic: Magic, code: u8) -> Option<&'static [Step]> {
    const NUMBER: Step = Step::Number;
    Some(match (code, magic) {
        (254, _) => &[Step::Database],
        (253, _) => &[Step::Seconds],
        (252, _) => &[Step::Milliseconds],
        // How many keys and how many that expire: a hint.
        (251, _) => &[NUMBER, NUMBER],
        (250, _) => &[Step::Text(Text::AuxName), Step::Text(Text::AuxValue)],
        // How often used, how long idle.
        (249, _) => &[Step::Skip(1)],
        (248, _) => &[NUMBER],
        (247, _) => &[Step::ModuleName, Step::ModuleWhen, NUMBER, Step::ModuleValue],
        (245, _) => &[Step::Text(Text::Library)],
        // Slot, its keys, its keys that expire: a hint.
        (244, _) => &[NUMBER, NUMBER, NUMBER],
        // A migration of slots under way: its name, the slots from and to.
        (243, Magic::Valkey) => &[STRING, Step::Times(&[NUMBER, NUMBER])],
        _ => return None,
    })
}
