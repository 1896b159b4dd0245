//! Backups of everything, one after the other.

/// Why `backup all` has nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NothingToBackUp {
    /// No cluster and no instance is configured.
    #[error("nothing is configured")]
    Nothing,
    /// Clusters are configured, and a base backup can be taken of none of them.
    #[error("no cluster has a connection")]
    NoConnection,
}

/// The clusters and instances to back up, in the order of the configuration.
#[derive(Debug)]
pub struct BackupAll<'c, C, I> {
    clusters: Vec<&'c C>,
    instances: &'c [I],
}

impl<'c, C, I> BackupAll<'c, C, I> {
    /// All instances, and those clusters that `has_connection` to take a base backup over.
    ///
    /// # Errors
    /// There is none of either.
    pub fn new(
        clusters: &'c [C],
        instances: &'c [I],
        has_connection: impl Fn(&C) -> bool,
    ) -> Result<BackupAll<'c, C, I>, NothingToBackUp> {
        let connected: Vec<&C> = clusters.iter().filter(|cluster| has_connection(cluster)).collect();
        match (connected.is_empty() && instances.is_empty(), clusters.is_empty()) {
            (true, true) => Err(NothingToBackUp::Nothing),
            (true, false) => Err(NothingToBackUp::NoConnection),
            (false, _) => Ok(BackupAll { clusters: connected, instances }),
        }
    }

    /// How many backups are taken.
    #[must_use]
    pub fn count(&self) -> usize {
        self.clusters.len().saturating_add(self.instances.len())
    }

    /// Takes the backups, the clusters first. A failure goes to `failed`, and does not prevent the others.
    pub async fn run<E>(
        self,
        mut postgres: impl AsyncFnMut(&'c C) -> Result<(), E>,
        mut redis: impl AsyncFnMut(&'c I) -> Result<(), E>,
        mut failed: impl FnMut(E),
    ) {
        for cluster in self.clusters {
            if let Err(error) = postgres(cluster).await {
                failed(error);
            }
        }
        for instance in self.instances {
            if let Err(error) = redis(instance).await {
                failed(error);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::{BackupAll, NothingToBackUp};

    #[tokio::test]
    async fn a_failure_does_not_prevent_the_others() {
        let (clusters, instances) = ([("main", true), ("pushed", false), ("other", true)], ["cache"]);
        let all = BackupAll::new(&clusters, &instances, |(_, connected)| *connected).unwrap();
        assert_eq!(all.count(), 3);
        let done = RefCell::new(Vec::new());
        let mut failures = Vec::new();
        let postgres = async |(name, _): &(&'static str, bool)| {
            done.borrow_mut().push(*name);
            if *name == "main" { Err(*name) } else { Ok(()) }
        };
        let redis = async |name: &&'static str| {
            done.borrow_mut().push(*name);
            Ok(())
        };
        all.run(postgres, redis, |name| failures.push(name)).await;
        assert_eq!((done.into_inner(), failures), (vec!["main", "other", "cache"], vec!["main"]));
    }

    #[test]
    fn there_must_be_something_to_back_up() {
        let none: [bool; 0] = [];
        let reason = |clusters: &[bool]| BackupAll::new(clusters, &none, |connected| *connected).err();
        assert_eq!(reason(&[]), Some(NothingToBackUp::Nothing));
        assert_eq!(reason(&[false]), Some(NothingToBackUp::NoConnection));
        assert_eq!(reason(&[true]), None);
    }
}
