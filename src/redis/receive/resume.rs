//! Where a receiver goes on: after the newest of what an earlier run left in the spool and of what is stored.
//!
//! Of one history that is the stretch that ends last. Of several it is the one from which no other leads on
//! (`follows`): offsets and names say that, and the clock of this machine, which may have been set back between two
//! stretches, only decides where they don't.
//!
//! A stored stretch that does not open is passed over with a warning, as the stream must not be lost for damage that
//! nothing needs now: its beginning is the end of the one before it. What is received again from there replaces it.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use super::base_snapshot::ignore_damaged;
use super::position::ReceivePosition;
use super::receiver::{Receiver, ResumeState};
use crate::base::blocking::run_blocking;
use crate::redis::archive::snapshot::error::SnapshotError;
use crate::redis::archive::{Gap, StreamStretch};
use crate::redis::format::replication_id::ReplicationId;

/// So many stretches of a history are tried, beginning with its last, before its end counts as unknown.
const MAX_STRETCHES_TRIED: usize = 32;
/// Stretches asked about at once.
const MAX_PARALLEL_STRETCH_READS: usize = 8;

impl Receiver<'_> {
    /// Puts what an earlier run left, and finds where it ended, unless that is done. If it fails it may be tried again.
    pub(super) async fn find_resume_position(&mut self) -> Result<(), SnapshotError> {
        if self.resume_state.resumed {
            return Ok(());
        }
        let mut stretches = match self.resume_state.spooled.clone() {
            Some(spooled) => spooled,
            None => self.read_spool().await?,
        };
        stretches.extend(self.read_stored_ends().await?);
        self.position = newest_stretch(&stretches).map(ReceivePosition::from_stretch);
        if let Some(newest) = newest_stretch(&stretches) {
            self.base_snapshot.record_history_start(newest.replid, newest.first);
        }
        for stretch in stretches.iter().filter(|stretch| stretch.first == stretch.last) {
            // The newest is made anew under the same name; the others are of no use any more.
            if self
                .position
                .is_none_or(|position| (position.replid, position.offset) != (stretch.replid, stretch.first))
            {
                self.spool.discard(stretch.name())?;
            }
        }
        self.base_snapshot.search_for_base(&self.instance, self.position);
        self.uploads.begin_filling(&self.instance);
        self.resume_state = ResumeState {
            resumed: true,
            spooled: None,
            unreadable_ends: std::mem::take(&mut self.resume_state.unreadable_ends),
        };
        Ok(())
    }

    /// Reads the spool once, and sends on what has commands.
    async fn read_spool(&mut self) -> Result<Vec<StreamStretch>, SnapshotError> {
        let spool = self.spool.clone();
        let read = move || -> Result<Vec<StreamStretch>, SnapshotError> {
            let mut stretches = Vec::new();
            let names = spool.list()?;
            for (nth, name) in names.iter().copied().enumerate() {
                let next =
                    names.get(nth.saturating_add(1)).filter(|next| next.replid == name.replid).map(|next| next.first);
                let read = || {
                    // Whoever left it may have been killed before it was synced, and it is acknowledged from here on.
                    spool.recover(name)?;
                    spool.end_with_whole_transaction(name, next)?;
                    spool.read(name)
                };
                match read() {
                    Ok(Some(spooled)) => stretches.push(spooled.into_stretch().0),
                    Ok(None) => spool.discard(name)?,
                    // One bad place of the disk must not keep all that comes from being received.
                    Err(error) => {
                        spool.set_aside(name, &error)?;
                        stretches.extend(spool.read(name)?.map(|spooled| spooled.into_stretch().0));
                    }
                }
            }
            Ok(stretches)
        };
        let stretches = run_blocking(read).await??;
        for stretch in stretches.iter().filter(|stretch| stretch.first < stretch.last) {
            self.uploads.enqueue(stretch.name());
        }
        self.resume_state.spooled = Some(stretches.clone());
        Ok(stretches)
    }

    /// The last stretch of each history in the repositories, and the first, which tells what the history follows.
    async fn read_stored_ends(&mut self) -> Result<Vec<StreamStretch>, SnapshotError> {
        let mut histories: BTreeMap<ReplicationId, Vec<u64>> = BTreeMap::new();
        for listed in self.instance.stored_stretches().await? {
            histories.entry(listed.name.replid).or_default().push(listed.name.first);
        }
        let mut ends = Vec::new();
        self.resume_state.unreadable_ends.clear();
        for (replid, firsts) in histories {
            // Where two receivers ran, the one that begins last need not be the one that ends last.
            let mut last = Vec::new();
            for some in
                firsts.rchunks(MAX_PARALLEL_STRETCH_READS).take(MAX_STRETCHES_TRIED / MAX_PARALLEL_STRETCH_READS)
            {
                let read = join_all(some.iter().map(|first| self.instance.stored_stretch(replid, *first))).await;
                for stretch in read {
                    last.extend(ignore_damaged(stretch)?.flatten());
                }
                if !last.is_empty() {
                    break;
                }
            }
            if let (true, Some(last)) = (last.is_empty(), firsts.last()) {
                self.resume_state.unreadable_ends.push((replid, *last));
            }
            let first = firsts.first().filter(|first| last.iter().all(|stretch| stretch.first > **first));
            if let Some(first) = first.filter(|_| !last.is_empty()) {
                ends.extend(ignore_damaged(self.instance.stored_stretch(replid, *first).await)?.flatten());
            }
            ends.extend(last);
        }
        Ok(ends)
    }

    /// Records the ends that nobody knows as breaks, as a new snapshot begins.
    pub(super) async fn record_unknown_ends(&mut self) -> Result<(), SnapshotError> {
        for (replid, offset) in self.resume_state.unreadable_ends.clone() {
            let noticed_at = self.instance.vault().clock().now();
            let reason =
                "what is stored of the stream from there on does not open; walkeep verify tells more".to_owned();
            let gap = Gap { replid, offset, until: None, noticed_at, reason };
            self.record_gap_everywhere(&gap).await?;
        }
        self.resume_state.unreadable_ends.clear();
        Ok(())
    }
}

/// The stretch after which the stream goes on.
fn newest_stretch(stretches: &[StreamStretch]) -> Option<&StreamStretch> {
    let mut ends: BTreeMap<ReplicationId, &StreamStretch> = BTreeMap::new();
    for stretch in stretches {
        let end = ends.entry(stretch.replid).or_insert(stretch);
        // Of two that end there, one has commands, and then it is known what they follow.
        if (stretch.last, end.first) > (end.last, stretch.first) {
            *end = stretch;
        }
    }
    // A history that went on beyond where another one left it did not end there: its server came back.
    let led_on = |end: &StreamStretch| {
        stretches.iter().filter(|stretch| stretch.replid != end.replid).any(|stretch| {
            stretch.follows.is_some_and(|follows| follows.replid == end.replid && end.last <= follows.offset)
        })
    };
    ends.into_values().max_by_key(|end| (!led_on(end), end.ended_at, end.last))
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::newest_stretch;
    use crate::redis::archive::StreamStretch;
    use crate::redis::archive::stream::PreviousHistory;

    fn stretch(history: char, first: u64, last: u64, ended: i64, follows: Option<(char, u64)>) -> StreamStretch {
        let id = |history: char| history.to_string().repeat(40).parse().unwrap();
        let follows = follows.map(|(history, offset)| PreviousHistory { replid: id(history), offset });
        let time = |second| Timestamp::from_second(second).unwrap();
        let json = serde_json::json!({
            "replid": id(history), "first": first, "last": last, "db": 0, "in_transaction": false, "db_after": 0,
            "in_transaction_after": false, "follows": follows, "started_at": time(0), "ended_at": time(ended), "writes": 1, "marks": [],
        });
        serde_json::from_value(json).unwrap()
    }

    fn check(stretches: &[StreamStretch], history: char, first: u64, last: u64) {
        let mut all = stretches.to_vec();
        for _ in 0..all.len() {
            all.rotate_left(1);
            let newest = newest_stretch(&all).unwrap();
            let name = newest.replid.to_string().chars().next().unwrap();
            assert_eq!((name, newest.first, newest.last), (history, first, last), "{all:?}");
        }
    }

    #[test]
    fn within_a_history_the_last_offset_counts_and_not_the_clock() {
        check(&[stretch('a', 0, 100, 50, None), stretch('a', 100, 200, 40, None)], 'a', 100, 200);
        check(&[stretch('a', 0, 100, 50, None), stretch('a', 100, 100, 40, None)], 'a', 0, 100);
        assert!(newest_stretch(&[]).is_none());
    }

    #[test]
    fn a_history_that_another_follows_is_not_the_newest_whatever_the_clock_said() {
        let (a, b) = (stretch('a', 0, 100, 50, None), stretch('b', 100, 150, 40, Some(('a', 100))));
        check(&[a.clone(), b.clone()], 'b', 100, 150);
        check(&[a.clone(), b.clone(), stretch('b', 150, 220, 45, None)], 'b', 150, 220);
        check(&[a.clone(), stretch('b', 100, 100, 40, Some(('a', 100)))], 'b', 100, 100);
        let c = stretch('c', 150, 300, 30, Some(('b', 150)));
        check(&[a, b, c], 'c', 150, 300);
    }

    #[test]
    fn the_clock_decides_between_histories_that_do_not_lead_to_each_other() {
        check(&[stretch('a', 0, 100, 50, None), stretch('b', 7, 9, 60, None)], 'b', 7, 9);
        // The old master came back and was followed anew, beyond where it had been left.
        let a = [stretch('a', 0, 100, 50, None), stretch('a', 130, 180, 60, None)];
        check(&[a[0].clone(), a[1].clone(), stretch('b', 100, 150, 55, Some(('a', 100)))], 'a', 130, 180);
    }
}
