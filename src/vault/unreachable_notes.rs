//! What one short-lived process leaves for the next about unreachable repositories.
//!
//! Without a service, `archive-push` is a process for each segment. Each would wait some seconds for a repository that
//! does not answer, while the server writes WAL faster than that. So the first one notes the failure in the state
//! directory, and those that follow leave the repository alone until a pause has passed. A note is a hint: one that is
//! lost or cannot be written costs time, and nothing else.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::error::VaultError;
use crate::base::durable;

/// The file in the state directory.
const FILE: &str = "unreachable.json";

/// The shortest pause. Less, and a repository that takes 20 seconds to fail would be waited for most of the time.
const MIN_PAUSE: Duration = Duration::from_secs(30);

/// The longest pause. Every segment of this time is missing in a repository that has just come back.
const MAX_PAUSE: Duration = Duration::from_secs(120);

/// A repository that is left alone for a while.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeldOffRepository {
    /// Its name in the configuration.
    pub name: String,
    /// When it was first found to be unreachable.
    pub since: Timestamp,
    /// For how long from now.
    pub pause: Duration,
    /// What was in the way.
    pub why: String,
}

/// The notes of one state directory.
#[derive(Debug)]
pub struct UnreachableNotes {
    path: PathBuf,
    notes: BTreeMap<String, UnreachableNote>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct UnreachableNote {
    since: Timestamp,
    asked: Timestamp,
    why: String,
}

impl UnreachableNote {
    /// How much longer it is left alone. A note from the future is one of a clock that has been set back: it does not
    /// count.
    fn remaining(&self, now: Timestamp) -> Option<Duration> {
        let elapsed = Duration::try_from(now.duration_since(self.asked)).ok()?;
        let age = Duration::try_from(self.asked.duration_since(self.since)).unwrap_or_default();
        age.clamp(MIN_PAUSE, MAX_PAUSE).checked_sub(elapsed).filter(|pause| !pause.is_zero())
    }
}

impl UnreachableNotes {
    /// The notes of this state directory. A file that is absent or does not make sense counts as empty. Blocks.
    #[must_use]
    pub fn read(state_dir: &Path) -> UnreachableNotes {
        let path = state_dir.join(FILE);
        let notes = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        UnreachableNotes { path, notes }
    }

    /// The repositories to leave alone now.
    #[must_use]
    pub fn held_off(&self, now: Timestamp) -> Vec<HeldOffRepository> {
        let held = |(name, note): (&String, &UnreachableNote)| {
            let pause = note.remaining(now)?;
            Some(HeldOffRepository { name: name.clone(), since: note.since, pause, why: note.why.clone() })
        };
        self.notes.iter().filter_map(held).collect()
    }

    /// Notes which repositories are unreachable now, for the next process. Those of `held_off` were not asked, and keep
    /// their notes. Blocks.
    pub fn update<'v>(
        &mut self,
        unreachable: impl Iterator<Item = (&'v str, VaultError)>,
        held_off: &[HeldOffRepository],
        now: Timestamp,
    ) {
        let unreachable = unreachable.map(|(name, why)| (name.to_owned(), failure_words(&why)));
        self.note(unreachable.collect(), held_off, now);
    }

    fn note(&mut self, unreachable: BTreeMap<String, String>, held_off: &[HeldOffRepository], now: Timestamp) {
        let before = self.notes.clone();
        self.notes.retain(|name, _| unreachable.contains_key(name));
        for (name, why) in unreachable {
            if held_off.iter().any(|held| held.name == name) {
                continue;
            }
            let since = before.get(&name).map_or(now, |note| note.since.min(now));
            self.notes.insert(name, UnreachableNote { since, asked: now, why });
        }
        if self.notes == before {
            return;
        }
        let written = serde_json::to_vec_pretty(&self.notes).map_err(std::io::Error::from);
        let written = written.and_then(|text| durable::replace_file(&self.path, &text, 0o600).map_err(io_error));
        if let Err(error) = written {
            tracing::debug!(%error, "an unreachable repository is not noted; the next process asks it again");
        }
    }
}

fn io_error(error: durable::DurableError) -> std::io::Error {
    std::io::Error::new(error.kind(), error)
}

/// The failure without the repository's name, which the reader has already.
fn failure_words(error: &VaultError) -> String {
    match error {
        VaultError::Repository { source, .. } => source.to_string(),
        other => other.to_string(),
    }
}

impl HeldOffRepository {
    /// As the vault's error.
    pub(super) fn failure(&self) -> VaultError {
        let HeldOffRepository { name, since, why, .. } = self.clone();
        VaultError::HeldOff { name, since, why }
    }

    /// When it was asked first, seen from a clock that shows `now`: never in the future.
    pub(super) fn since(&self, now: Timestamp) -> Timestamp {
        if now.duration_since(self.since) < SignedDuration::ZERO { now } else { self.since }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::{SignedDuration, Timestamp};

    use super::UnreachableNotes;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap() + SignedDuration::from_secs(second)
    }

    fn failing(names: &[&str]) -> BTreeMap<String, String> {
        names.iter().map(|name| ((*name).to_owned(), "no answer".to_owned())).collect()
    }

    #[test]
    fn a_repository_that_failed_is_left_alone_for_a_while_that_grows_to_two_minutes() {
        let dir = tempfile::tempdir().unwrap();
        let held = |second| {
            let held = UnreachableNotes::read(dir.path()).held_off(at(second));
            held.first().map(|held| (held.name.clone(), held.pause.as_secs(), held.since))
        };
        let note = |second| {
            let mut notes = UnreachableNotes::read(dir.path());
            let held = notes.held_off(at(second));
            notes.note(failing(&["offsite"]), &held, at(second));
        };
        assert_eq!(held(0), None);
        note(0);
        assert_eq!(held(1), Some(("offsite".to_owned(), 29, at(0))));
        // What was not asked proves nothing new.
        note(20);
        assert_eq!((held(29).unwrap().1, held(30)), (1, None));
        note(70);
        assert_eq!((held(139).unwrap(), held(140)), (("offsite".to_owned(), 1, at(0)), None));
        note(4000);
        assert_eq!((held(4119).unwrap().1, held(4120)), (1, None));
    }

    #[test]
    fn one_that_answers_again_is_forgotten_and_a_clock_that_was_set_back_holds_nothing_off() {
        let dir = tempfile::tempdir().unwrap();
        let mut notes = UnreachableNotes::read(dir.path());
        notes.note(failing(&["a", "b"]), &[], at(100));
        assert_eq!((notes.held_off(at(101)).len(), notes.held_off(at(99)).len()), (2, 0));
        notes.note(failing(&["b"]), &[], at(110));
        let names = UnreachableNotes::read(dir.path()).held_off(at(111)).into_iter().map(|held| held.name);
        assert_eq!(names.collect::<Vec<_>>(), ["b"]);
    }
}
