//! What a repository is opened with.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::base::clock::{SharedClock, SystemClock};
use crate::base::retry::RetryPolicy;

/// What a repository is opened with.
#[derive(Clone)]
pub struct RepositoryOptions {
    /// The process's environment, of which only the chosen store's own variables are used: `AWS_*`, `GOOGLE_*` or
    /// `AZURE_*`.
    pub environment: BTreeMap<String, String>,
    /// Settings from the configuration, by `object_store`'s names (`endpoint`, `region`, …). They go before the
    /// environment.
    pub settings: BTreeMap<String, String>,
    /// Where time comes from.
    pub clock: SharedClock,
    /// How long things may take.
    pub limits: RepositoryLimits,
    /// A test's own store, in place of the one at the URL.
    #[cfg(test)]
    pub(crate) store: Option<std::sync::Arc<dyn object_store::ObjectStore>>,
}

impl RepositoryOptions {
    /// No settings, the machine's clock and the ordinary limits.
    #[must_use]
    pub fn new() -> RepositoryOptions {
        RepositoryOptions {
            environment: BTreeMap::new(),
            settings: BTreeMap::new(),
            clock: SystemClock::shared(),
            limits: RepositoryLimits::default(),
            #[cfg(test)]
            store: None,
        }
    }
}

impl Default for RepositoryOptions {
    fn default() -> RepositoryOptions {
        RepositoryOptions::new()
    }
}

impl fmt::Debug for RepositoryOptions {
    /// Names only: the values hold credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.settings.keys().collect();
        f.debug_struct("Options").field("settings", &names).field("limits", &self.limits).finish_non_exhaustive()
    }
}

/// How long a call may take, and how long it is tried.
#[derive(Clone, Copy, Debug)]
pub struct RepositoryLimits {
    /// One attempt may take this long, and the time that its bytes need at `slowest` besides. A minute: twice what a
    /// store's own front end waits before it answers with an error, so that the error is seen rather than guessed.
    pub attempt: Duration,
    /// The slowest link that is worth waiting for, in bytes a second. At 1 MiB a 16 MiB segment takes the 16 seconds in
    /// which a small server writes the next one; whoever is slower falls behind for ever.
    pub slowest: u64,
    /// How a call over the network is tried again; local files are not, as their errors don't pass. Two minutes in all,
    /// so that an attempt that hung is followed by another: every caller that can wait longer has a loop of its own,
    /// with its own log line.
    pub network_retry: RetryPolicy,
    /// How long the network's client repeats a request by itself. Half of what a call may take, so that the loop of the
    /// call still gets a turn.
    pub client_retry: Duration,
    /// No object is larger: a 1 GiB segment that would not compress, and its frame table. A length beyond this is
    /// damage or not ours.
    pub largest_object: u64,
}

impl RepositoryLimits {
    /// The limits of a repository beside others, which do its work while it does not answer: nothing waits for it for
    /// minutes. Who must have it in the end asks again.
    #[must_use]
    pub fn replaceable() -> RepositoryLimits {
        let usual = RepositoryLimits::default();
        RepositoryLimits {
            attempt: Duration::from_secs(15),
            network_retry: RetryPolicy { total: Some(Duration::from_secs(5)), ..usual.network_retry },
            client_retry: Duration::from_secs(2),
            ..usual
        }
    }
}

impl Default for RepositoryLimits {
    fn default() -> RepositoryLimits {
        RepositoryLimits {
            attempt: Duration::from_secs(60),
            slowest: 1 << 20,
            network_retry: RetryPolicy {
                first: Duration::from_millis(200),
                longest: Duration::from_secs(5),
                total: Some(Duration::from_secs(120)),
            },
            client_retry: Duration::from_secs(30),
            largest_object: (1 << 30) + (64 << 20),
        }
    }
}
