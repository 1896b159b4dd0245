//! The receiver of one PostgreSQL cluster, with its place in the index.

use std::sync::Arc;

use tokio::sync::watch;

use super::index_feed::{IndexFeed, SharedIndex};
use super::push_handler::PushTarget;
use crate::cli::context::CliContext;
use crate::cli::exit::{CliError, CliExitCode};
use crate::cli::open;
use crate::config::{ClusterConfig, Config};
use crate::postgres::archive::Archive;
use crate::postgres::format::lsn::Lsn;
use crate::postgres::receive::{self, ReceiveSettings};
use crate::vault::Vault;

/// What one cluster's receiver needs, however often it is started.
pub(super) struct ClusterReceiver {
    archive: Arc<Archive>,
    settings: ReceiveSettings,
    index: IndexFeed,
    /// What is known of the server's clock, for files that `archive-push` hands over.
    noted: watch::Receiver<Vec<u8>>,
}

impl ClusterReceiver {
    /// # Errors
    /// The cluster has no connection, or one that makes no sense.
    pub(super) fn new(
        vault: &Arc<Vault>,
        cluster: &ClusterConfig,
        config: &Config,
        around: &CliContext,
        end: Option<Lsn>,
        index: &SharedIndex,
    ) -> anyhow::Result<ClusterReceiver> {
        let Some(conninfo) = cluster.conninfo(&around.environment)? else {
            let (name, path) = (&cluster.name, config.path.display());
            let message = format!("[postgres.{name}] has no connection to receive from; add one to {path}");
            return Err(CliError::usage(message).into());
        };
        let archive = Arc::new(open::archive_in(vault, cluster));
        let settings = ReceiveSettings {
            acknowledge: cluster.acknowledge,
            copy_every: cluster.copy_every,
            end,
            ..ReceiveSettings::new(conninfo, Some(cluster.slot.clone()), config.state_dir.clone())
        };
        let (note, noted) = watch::channel(Vec::new());
        let index = IndexFeed::start(Arc::clone(&archive), index.clone(), note);
        Ok(ClusterReceiver { archive, settings, index, noted })
    }

    pub(super) fn name(&self) -> &str {
        self.archive.cluster().as_str()
    }

    /// Where `archive-push` hands this cluster's files over.
    pub(super) fn push_target(&self) -> PushTarget {
        PushTarget { archive: Arc::clone(&self.archive), noted: self.noted.clone() }
    }

    /// Receives until the end that was asked for, or until it is to stop.
    ///
    /// # Errors
    /// Something that trying again does not change.
    pub(super) async fn receive(&self, stopped: watch::Receiver<bool>) -> anyhow::Result<CliExitCode> {
        let finished = receive::receive(&self.archive, &self.settings, &self.index, stopped).await?;
        let (cluster, until, timeline) = (self.name(), finished.until, finished.timeline);
        tracing::info!(cluster, %until, %timeline, "receiver stopped; WAL before this position is safe");
        if let (Some(end), false) = (self.settings.end, finished.reached) {
            let message = format!("stopped at {until}, before {end} was archived");
            return Err(CliError { code: CliExitCode::Failed, message }.into());
        }
        Ok(CliExitCode::Done)
    }

    /// Lets the index take in what waits.
    pub(super) async fn finish(self) {
        self.index.finish().await;
    }
}
