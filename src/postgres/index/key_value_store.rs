//! What the index asks of a database: ordered keys in a few families, read one by one or by range, written in batches that apply whole.
//!
//! RocksDB is one such store ([`rocks`](super::rocks)); a sorted map in memory is another, which tests and readers without a database use.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::sync::Arc;

use super::error::Error;
use super::keys::Range;

/// The families of keys, each its own ordered space.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Family {
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

impl Family {
    /// Every family.
    pub const ALL: [Family; 5] = [Family::Meta, Family::Segments, Family::Blocks, Family::Events, Family::Names];

    /// The family's name in the database.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Family::Meta => "meta",
            Family::Segments => "segments",
            Family::Blocks => "blocks",
            Family::Events => "events",
            Family::Names => "names",
        }
    }
}

/// Which end of a range a scan begins at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Smallest key first.
    Forward,
    /// Largest key first.
    Backward,
}

/// Key and value.
pub type Pair = (Vec<u8>, Vec<u8>);

/// The pairs of a range, one by one.
pub type Pairs<'a> = Box<dyn Iterator<Item = Result<Pair, Error>> + 'a>;

/// A database that can be read.
pub trait Store {
    /// The value of a key.
    ///
    /// # Errors
    /// Whatever keeps the database from answering.
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, Error>;

    /// The pairs of `range`. An error ends the scan.
    fn scan(&self, family: Family, range: &Range, order: Order) -> Pairs<'_>;
}

impl<S: Store + ?Sized> Store for &S {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        (**self).get(family, key)
    }

    fn scan(&self, family: Family, range: &Range, order: Order) -> Pairs<'_> {
        (**self).scan(family, range, order)
    }
}

/// One change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Sets a key.
    Put(Vec<u8>),
    /// Removes a key.
    Delete,
}

/// Changes that a store makes together or not at all.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    changes: BTreeMap<(Family, Vec<u8>), Change>,
    cleared: Vec<(Family, Range)>,
}

impl Batch {
    /// Sets a key; what the batch said of it before no longer counts.
    pub fn put(&mut self, family: Family, key: Vec<u8>, value: Vec<u8>) {
        self.changes.insert((family, key), Change::Put(value));
    }

    /// Removes a key.
    pub fn delete(&mut self, family: Family, key: Vec<u8>) {
        self.changes.insert((family, key), Change::Delete);
    }

    /// Removes every key of a range, before anything else in the batch is done.
    pub fn clear(&mut self, family: Family, range: Range) {
        self.cleared.push((family, range));
    }

    /// What the batch will do to a key, if anything.
    #[must_use]
    pub fn change(&self, family: Family, key: &[u8]) -> Option<&Change> {
        self.changes.get(&(family, key.to_vec()))
    }

    /// The ranges to be cleared first.
    #[must_use]
    pub fn cleared(&self) -> &[(Family, Range)] {
        &self.cleared
    }

    /// The changes in key order.
    pub fn changes(&self) -> impl Iterator<Item = (Family, &[u8], &Change)> {
        self.changes.iter().map(|((family, key), change)| (*family, key.as_slice(), change))
    }

    /// Takes in the changes of a later batch. Ranges that it clears are not taken.
    #[must_use]
    pub fn followed_by(mut self, later: Batch) -> Batch {
        self.changes.extend(later.changes);
        self
    }

    /// Bytes of keys and values, about.
    #[must_use]
    pub fn weight(&self) -> usize {
        self.changes()
            .map(|(_, key, change)| key.len() + if let Change::Put(value) = change { value.len() } else { 0 })
            .sum()
    }
}

/// A store as it would be with a batch applied that is not. The batch must not clear ranges.
#[derive(Debug)]
pub struct Layered<S> {
    base: S,
    over: Arc<Batch>,
}

impl<S: Store> Layered<S> {
    /// `base` with `over` on top.
    pub fn new(base: S, over: Arc<Batch>) -> Layered<S> {
        Layered { base, over }
    }
}

impl<S: Store> Store for Layered<S> {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        match self.over.change(family, key) {
            Some(Change::Put(value)) => Ok(Some(value.clone())),
            Some(Change::Delete) => Ok(None),
            None => self.base.get(family, key),
        }
    }

    fn scan(&self, family: Family, range: &Range, order: Order) -> Pairs<'_> {
        if range.from >= range.to {
            return Box::new(std::iter::empty());
        }
        let over = self.over.changes.range((family, range.from.clone())..(family, range.to.clone()));
        let over = over.map(|((_, key), change)| (key, change));
        let over: Changes<'_> = match order {
            Order::Forward => Box::new(over),
            Order::Backward => Box::new(over.rev()),
        };
        let merge = Merge { base: self.base.scan(family, range, order).peekable(), over: over.peekable(), order };
        Box::new(merge.filter_map(Result::transpose))
    }
}

/// Changes by key.
type Changes<'a> = Box<dyn Iterator<Item = (&'a Vec<u8>, &'a Change)> + 'a>;

/// The pairs of two scans in one order; where both have a key, that of `over` counts.
struct Merge<'a> {
    base: Peekable<Pairs<'a>>,
    over: Peekable<Changes<'a>>,
    order: Order,
}

impl Iterator for Merge<'_> {
    /// `Ok(None)` for a key that was removed.
    type Item = Result<Option<Pair>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let turn = match (self.base.peek(), self.over.peek()) {
            (Some(Ok((base, _))), Some((over, _))) if self.order == Order::Forward => base.cmp(over),
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
            Change::Put(value) => Ok(Some((key.clone(), value.clone()))),
            Change::Delete => Ok(None),
        })
    }
}

/// A store in memory.
#[derive(Debug, Default, Clone)]
pub struct Memory {
    pairs: BTreeMap<(Family, Vec<u8>), Vec<u8>>,
}

impl Memory {
    /// Makes a batch's changes.
    pub fn apply(&mut self, batch: &Batch) {
        for (family, range) in batch.cleared() {
            self.pairs.retain(|(of, key), _| of != family || *key < range.from || *key >= range.to);
        }
        for (family, key, change) in batch.changes() {
            match change {
                Change::Put(value) => self.pairs.insert((family, key.to_vec()), value.clone()),
                Change::Delete => self.pairs.remove(&(family, key.to_vec())),
            };
        }
    }
}

impl Store for Memory {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.pairs.get(&(family, key.to_vec())).cloned())
    }

    fn scan(&self, family: Family, range: &Range, order: Order) -> Pairs<'_> {
        if range.from >= range.to {
            return Box::new(std::iter::empty());
        }
        let found = self.pairs.range((family, range.from.clone())..(family, range.to.clone()));
        let pairs = found.map(|((_, key), value)| Ok((key.clone(), value.clone())));
        match order {
            Order::Forward => Box::new(pairs),
            Order::Backward => Box::new(pairs.rev()),
        }
    }
}
