//! How long a restore takes on this machine: a rough model of files and log, set right by the restores that were
//! measured here.
//!
//! Replay costs time for each byte that is read and applied and for each record; which of them counts depends on the
//! workload, so the model has both. What it gets wrong about a machine it gets wrong each time by about the same
//! factor, which is what is measured.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::durable;

/// Bytes of files written in a second: a modest disk, whose speed it mostly is.
const FILE_BYTES_PER_SECOND: f64 = 300.0 * MIB;
/// Bytes of log that replay reads in a second where records are few and large.
const WAL_BYTES_PER_SECOND: f64 = 200.0 * MIB;
/// Records that replay applies in a second. With the bytes that makes 55 MB/s of steady pgbench WAL, of which 50 to 65
/// were measured.
const WAL_RECORDS_PER_SECOND: f64 = 750_000.0;
const MIB: f64 = 1_048_576.0;

/// Restores that are kept; older ones say little of the machine as it is.
const MAX_MEASUREMENTS: usize = 8;
/// Shorter work says more of how long a server takes to start than of how fast it works.
const MIN_MEASURED_TIME: Duration = Duration::from_secs(2);

/// What a restore has to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RestoreWork {
    /// Bytes of files.
    pub file_bytes: u64,
    /// Bytes of log.
    pub wal_bytes: u64,
    /// Records in it.
    pub wal_records: u64,
}

/// A restore that was measured.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct MeasuredRestore {
    /// What it did.
    pub work: RestoreWork,
    /// How long its files took.
    pub file_seconds: f64,
    /// How long its log took, with starting the server.
    pub replay_seconds: f64,
}

/// How fast this machine restores a cluster, as far as is known.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct RestoreEstimator {
    /// The newest last.
    restores: Vec<MeasuredRestore>,
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn model_file_seconds(work: &RestoreWork) -> f64 {
    work.file_bytes as f64 / FILE_BYTES_PER_SECOND
}

#[expect(clippy::cast_precision_loss, reason = "an estimate")]
fn model_replay_seconds(work: &RestoreWork) -> f64 {
    work.wal_bytes as f64 / WAL_BYTES_PER_SECOND + work.wal_records as f64 / WAL_RECORDS_PER_SECOND
}

impl RestoreEstimator {
    /// What was measured of `cluster` and kept under `state_dir`; nothing where there is no such file, or none that can
    /// be read.
    #[must_use]
    pub fn load(state_dir: &Path, cluster: &str) -> RestoreEstimator {
        let read = std::fs::read(state_file(state_dir, cluster)).and_then(|bytes| Ok(serde_json::from_slice(&bytes)?));
        match read {
            Ok(pace) => pace,
            Err(error) if error.kind() == io::ErrorKind::NotFound => RestoreEstimator::default(),
            Err(error) => {
                tracing::warn!(%error, "what restores took before is not known");
                RestoreEstimator::default()
            }
        }
    }

    /// Keeps it under `state_dir`.
    ///
    /// # Errors
    /// What the operating system says.
    fn save(&self, state_dir: &Path, cluster: &str) -> Result<(), durable::DurableError> {
        let path = state_file(state_dir, cluster);
        durable::create_dir_all(path.parent().unwrap_or(state_dir), 0o700)?;
        // No map with keys that are not strings: it cannot fail.
        durable::replace_file(&path, &serde_json::to_vec(self).unwrap_or_default(), 0o600)
    }

    /// Keeps the measurement of a restore under `state_dir`, for later estimates. If it cannot be kept, this is logged:
    /// the restore itself did not fail.
    pub fn record(state_dir: &Path, name: &str, restore: MeasuredRestore) {
        if let Err(error) = RestoreEstimator::load(state_dir, name).with_measurement(restore).save(state_dir, name) {
            tracing::warn!(%error, "how long the restore took is not kept for later estimates");
        }
    }

    /// Takes one more restore in.
    #[must_use]
    fn with_measurement(mut self, restore: MeasuredRestore) -> RestoreEstimator {
        self.restores.push(restore);
        let excess = self.restores.len().saturating_sub(MAX_MEASUREMENTS);
        self.restores.drain(..excess);
        self
    }

    /// How many restores it was made from.
    #[must_use]
    pub fn restores(&self) -> u64 {
        self.restores
            .iter()
            .filter(|restore| is_long_enough(restore.file_seconds) || is_long_enough(restore.replay_seconds))
            .count() as u64
    }

    /// About how long this takes, at least a second.
    #[must_use]
    pub fn estimated_seconds(&self, work: &RestoreWork) -> u64 {
        let placing =
            model_file_seconds(work) * self.slowdown_factor(model_file_seconds, |restore| restore.file_seconds);
        let replaying =
            model_replay_seconds(work) * self.slowdown_factor(model_replay_seconds, |restore| restore.replay_seconds);
        let seconds = (placing + replaying).clamp(0.0, Duration::MAX.as_secs_f64() / 2.0);
        Duration::try_from_secs_f64(seconds).map_or(u64::MAX, |seconds| seconds.as_secs().saturating_add(1))
    }

    /// How many times longer it took than the model says, all restores together.
    fn slowdown_factor(&self, model: fn(&RestoreWork) -> f64, took: fn(&MeasuredRestore) -> f64) -> f64 {
        let (mut seconds, mut modelled) = (0.0, 0.0);
        for restore in self.restores.iter().filter(|restore| is_long_enough(took(restore))) {
            seconds += took(restore);
            modelled += model(&restore.work);
        }
        if modelled > 0.0 { seconds / modelled } else { 1.0 }
    }
}

fn is_long_enough(seconds: f64) -> bool {
    seconds >= MIN_MEASURED_TIME.as_secs_f64()
}

fn state_file(state_dir: &Path, cluster: &str) -> PathBuf {
    state_dir.join("pace").join(format!("{cluster}.json"))
}

#[cfg(test)]
mod tests {
    use super::{MAX_MEASUREMENTS, MeasuredRestore, RestoreEstimator, RestoreWork};

    const WORK: RestoreWork = RestoreWork { file_bytes: 3000 << 20, wal_bytes: 2000 << 20, wal_records: 7_500_000 };

    #[test]
    fn an_estimate_follows_what_was_measured() {
        let unknown = RestoreEstimator::default();
        assert_eq!(
            (unknown.estimated_seconds(&WORK), unknown.restores()),
            (31, 0),
            "ten for files, bytes and records each"
        );
        let more_records = RestoreWork { wal_records: 75_000_000, ..WORK };
        assert_eq!(unknown.estimated_seconds(&more_records), 121);
        let slow = MeasuredRestore { work: WORK, file_seconds: 30.0, replay_seconds: 100.0 };
        let known = unknown.clone().with_measurement(slow);
        assert_eq!((known.estimated_seconds(&WORK), known.restores()), (131, 1));
        let both = known.with_measurement(MeasuredRestore { file_seconds: 10.0, replay_seconds: 20.0, ..slow });
        assert_eq!(both.estimated_seconds(&WORK), 81, "20 and 60 on average");
        let short = RestoreWork { file_bytes: 1, wal_bytes: 1, wal_records: 1 };
        let started = unknown.with_measurement(MeasuredRestore { work: short, file_seconds: 0.1, replay_seconds: 1.5 });
        assert_eq!((started.estimated_seconds(&WORK), started.restores()), (31, 0), "a server's start is no replay");
    }

    #[test]
    fn it_is_kept_and_old_restores_are_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(RestoreEstimator::load(dir.path(), "main"), RestoreEstimator::default());
        let restore = MeasuredRestore { work: WORK, file_seconds: 30.0, replay_seconds: 100.0 };
        let mut pace =
            RestoreEstimator::default().with_measurement(MeasuredRestore { replay_seconds: 9000.0, ..restore });
        for _ in 0..MAX_MEASUREMENTS {
            pace = pace.with_measurement(restore);
        }
        pace.save(dir.path(), "main").unwrap();
        assert_eq!(RestoreEstimator::load(dir.path(), "main"), pace);
        assert_eq!(pace.estimated_seconds(&WORK), 131, "the slow one is forgotten");
        assert_eq!(RestoreEstimator::load(dir.path(), "other"), RestoreEstimator::default());
        std::fs::write(dir.path().join("pace/main.json"), "{").unwrap();
        assert_eq!(RestoreEstimator::load(dir.path(), "main"), RestoreEstimator::default());
    }
}
