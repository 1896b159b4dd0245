//! What the index asks of a database: ordered keys in a few families, read one by one or by range, written in batches
//! that apply whole.
//!
//! RocksDB is one such store ([`rocks`](super::rocks)); a sorted map in memory is another, which tests and readers
//! without a database use.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::Arc;

use super::error::IndexError;
use super::keys::KeyRange;

/// The families of keys, each its own ordered space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum KeyFamily {
    /// The index's own facts: format, repository, timelines, marks.
    Meta,
    /// One summary a segment.
    Segments,
    /// Summaries of 256 segments each.
    Blocks,
    /// Events by kind and position.
    Events,
    /// Restore points by name.
    Names,
}

impl KeyFamily {
    /// Every family.
    pub const ALL: [KeyFamily; 5] =
        [KeyFamily::Meta, KeyFamily::Segments, KeyFamily::Blocks, KeyFamily::Events, KeyFamily::Names];

    /// The family's name in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            KeyFamily::Meta => "meta",
            KeyFamily::Segments => "segments",
            KeyFamily::Blocks => "blocks",
            KeyFamily::Events => "events",
            KeyFamily::Names => "names",
        }
    }
}

/// Which end of a range a scan begins at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ScanOrder {
    /// Smallest key first.
    Forward,
    /// Largest key first.
    Backward,
}

/// Key and value.
pub type KeyValue = (Vec<u8>, Vec<u8>);

/// The pairs of a range, one by one.
pub type KeyValues<'a> = Box<dyn Iterator<Item = Result<KeyValue, IndexError>> + 'a>;

/// A database that can be read.
pub trait KeyValueStore {
    /// The value of a key.
    ///
    /// # Errors
    /// Whatever keeps the database from answering.
    fn get(&self, family: KeyFamily, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError>;

    /// The pairs of `range`. An error ends the scan.
    fn scan(&self, family: KeyFamily, range: &KeyRange, order: ScanOrder) -> KeyValues<'_>;
}

impl<S: KeyValueStore + ?Sized> KeyValueStore for &S {
    fn get(&self, family: KeyFamily, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        (**self).get(family, key)
    }

    fn scan(&self, family: KeyFamily, range: &KeyRange, order: ScanOrder) -> KeyValues<'_> {
        (**self).scan(family, range, order)
    }
}

/// One change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeyChange {
    /// Sets a key.
    Put(Vec<u8>),
    /// Removes a key.
    Delete,
}

/// Changes that a store makes together or not at all.
#[derive(Clone, Debug, Default)]
pub struct IndexBatch {
    changes: BTreeMap<(KeyFamily, Vec<u8>), KeyChange>,
    cleared: Vec<(KeyFamily, KeyRange)>,
}

impl IndexBatch {
    /// Sets a key; what the batch said of it before no longer counts.
    pub fn put(&mut self, family: KeyFamily, key: Vec<u8>, value: Vec<u8>) {
        self.changes.insert((family, key), KeyChange::Put(value));
    }

    /// Removes a key.
    pub fn delete(&mut self, family: KeyFamily, key: Vec<u8>) {
        self.changes.insert((family, key), KeyChange::Delete);
    }

    /// Removes every key of a range, before anything else in the batch is done.
    pub fn clear(&mut self, family: KeyFamily, range: KeyRange) {
        self.cleared.push((family, range));
    }

    /// What the batch will do to a key, if anything.
    #[must_use]
    pub fn change(&self, family: KeyFamily, key: &[u8]) -> Option<&KeyChange> {
        self.changes.get(&(family, key.to_vec()))
    }

    /// The ranges to be cleared first.
    #[must_use]
    pub fn cleared(&self) -> &[(KeyFamily, KeyRange)] {
        &self.cleared
    }

    /// The changes in key order.
    pub fn changes(&self) -> impl Iterator<Item = (KeyFamily, &[u8], &KeyChange)> {
        self.changes.iter().map(|((family, key), change)| (*family, key.as_slice(), change))
    }

    /// Takes in the changes of a later batch. Ranges that it clears are not taken.
    #[must_use]
    pub fn merged_with(mut self, later: IndexBatch) -> IndexBatch {
        self.changes.extend(later.changes);
        self
    }

    /// Bytes of keys and values, about.
    #[must_use]
    pub fn size_bytes(&self) -> usize {
        self.changes()
            .map(|(_, key, change)| key.len() + if let KeyChange::Put(value) = change { value.len() } else { 0 })
            .sum()
    }
}

/// A store as it would be with a batch applied that is not. The batch must not clear ranges.
#[derive(Debug)]
pub struct LayeredStore<S> {
    base: S,
    over: Arc<IndexBatch>,
}

impl<S: KeyValueStore> LayeredStore<S> {
    /// `base` with `over` on top.
    pub fn new(base: S, over: Arc<IndexBatch>) -> LayeredStore<S> {
        LayeredStore { base, over }
    }
}

impl<S: KeyValueStore> KeyValueStore for LayeredStore<S> {
    fn get(&self, family: KeyFamily, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        match self.over.change(family, key) {
            Some(KeyChange::Put(value)) => Ok(Some(value.clone())),
            Some(KeyChange::Delete) => Ok(None),
            None => self.base.get(family, key),
        }
    }

    fn scan(&self, family: KeyFamily, range: &KeyRange, order: ScanOrder) -> KeyValues<'_> {
        if range.from >= range.to {
            return Box::new(std::iter::empty());
        }
        let over = self.over.changes.range((family, range.from.clone())..(family, range.to.clone()));
        let over = over.map(|((_, key), change)| (key, change));
        let over: KeyChanges<'_> = match order {
            ScanOrder::Forward => Box::new(over),
            ScanOrder::Backward => Box::new(over.rev()),
        };
        let merge = MergedScan { base: self.base.scan(family, range, order).peekable(), over: over.peekable(), order };
        Box::new(merge.filter_map(Result::transpose))
    }
}

/// Changes by key.
type KeyChanges<'a> = Box<dyn Iterator<Item = (&'a Vec<u8>, &'a KeyChange)> + 'a>;

/// The pairs of two scans in one order; where both have a key, that of `over` counts.
struct MergedScan<'a> {
    base: Peekable<KeyValues<'a>>,
    over: Peekable<KeyChanges<'a>>,
    order: ScanOrder,
}

impl Iterator for MergedScan<'_> {
    /// `Ok(None)` for a key that was removed.
    type Item = Result<Option<KeyValue>, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        let turn = match (self.base.peek(), self.over.peek()) {
            (Some(Ok((base, _))), Some((over, _))) if self.order == ScanOrder::Forward => base.cmp(over),
            (Some(Ok((base, _))), Some((over, _))) => (*over).cmp(base),
            (Some(_), _) => Ordering::Less,
            (None, _) => Ordering::Greater,
        };
        if turn == Ordering::Less {
            return self.base.next().map(|pair| pair.map(Some));
        }
        if turn == Ordering::Equal {
            self.base.next();
        }
        self.over.next().map(|(key, change)| match change {
            KeyChange::Put(value) => Ok(Some((key.clone(), value.clone()))),
            KeyChange::Delete => Ok(None),
        })
    }
}

/// A store in memory.
#[derive(Debug, Default, Clone)]
pub struct MemoryStore {
    pairs: BTreeMap<(KeyFamily, Vec<u8>), Vec<u8>>,
}

impl MemoryStore {
    /// Makes a batch's changes.
    pub fn apply(&mut self, batch: &IndexBatch) {
        for (family, range) in batch.cleared() {
            self.pairs.retain(|(of, key), _| of != family || *key < range.from || *key >= range.to);
        }
        for (family, key, change) in batch.changes() {
            match change {
                KeyChange::Put(value) => self.pairs.insert((family, key.to_vec()), value.clone()),
                KeyChange::Delete => self.pairs.remove(&(family, key.to_vec())),
            };
        }
    }
}

impl KeyValueStore for MemoryStore {
    fn get(&self, family: KeyFamily, key: &[u8]) -> Result<Option<Vec<u8>>, IndexError> {
        Ok(self.pairs.get(&(family, key.to_vec())).cloned())
    }

    fn scan(&self, family: KeyFamily, range: &KeyRange, order: ScanOrder) -> KeyValues<'_> {
        if range.from >= range.to {
            return Box::new(std::iter::empty());
        }
        let found = self.pairs.range((family, range.from.clone())..(family, range.to.clone()));
        let pairs = found.map(|((_, key), value)| Ok((key.clone(), value.clone())));
        match order {
            ScanOrder::Forward => Box::new(pairs),
            ScanOrder::Backward => Box::new(pairs.rev()),
        }
    }
}
