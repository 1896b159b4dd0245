//! The receiver of one Redis instance.

use std::sync::Arc;

use tokio::sync::watch;

use crate::cli::context::CliContext;
use crate::cli::exit::CliExitCode;
use crate::cli::open;
use crate::config::{Config, InstanceConfig};
use crate::redis::archive::Archive;
use crate::redis::receive as redis_receive;
use crate::redis::receive::{ReceiveEvent, ReceiveObserver, ReceiveSettings};
use crate::vault::Vault;

/// What one instance's receiver needs, however often it is started.
pub(super) struct InstanceReceiver {
    instance: Archive,
    settings: ReceiveSettings,
}

impl InstanceReceiver {
    /// # Errors
    /// The instance's connection makes no sense.
    pub(super) fn new(
        vault: &Arc<Vault>,
        of: &InstanceConfig,
        config: &Config,
        around: &CliContext,
    ) -> anyhow::Result<InstanceReceiver> {
        let instance = open::instance_in(vault, of, config);
        let source = of.redis_source(&around.environment, &around.clock)?;
        Ok(InstanceReceiver { instance, settings: ReceiveSettings::new(source, config.state_dir.clone()) })
    }

    /// Follows the instance's stream of commands until it is to stop.
    ///
    /// # Errors
    /// Something that trying again does not change.
    pub(super) async fn receive(&self, stopped: watch::Receiver<bool>) -> anyhow::Result<CliExitCode> {
        let position =
            redis_receive::receive_stream(&self.instance, &self.settings, &StreamEventLogger, stopped).await?;
        if let Some(position) = position {
            let (instance, replid, offset) = (self.instance.name(), position.replid, position.offset);
            tracing::info!(%instance, %replid, offset, "receiver stopped; commands before this offset are safe");
        }
        Ok(CliExitCode::Done)
    }
}

/// Logs what happens to the stream.
struct StreamEventLogger;

impl ReceiveObserver for StreamEventLogger {
    fn event(&self, event: ReceiveEvent<'_>) {
        match event {
            ReceiveEvent::Streaming { server, replid, from } => {
                tracing::info!(server, %replid, from, "following the stream")
            }
            ReceiveEvent::Renamed(before, now) => {
                tracing::info!(from = %before.replid, to = %now, offset = before.offset, "the history goes on under a \
                                                                                          new name, after a failover \
                                                                                          or a restart");
            }
            ReceiveEvent::Stored(stretch) => {
                tracing::debug!(replid = %stretch.replid, first = stretch.first, last = stretch.last, "stored");
            }
            ReceiveEvent::Acknowledged(offset) => tracing::trace!(offset, "acknowledged"),
            ReceiveEvent::Snapshot(snapshot) => {
                tracing::info!(label = snapshot.label, "a snapshot to begin with is stored")
            }
            ReceiveEvent::Gap(gap) => {
                tracing::error!(replid = %gap.replid, offset = gap.offset, reason = gap.reason, "the stream has a \
                                                                                                 gap; a new snapshot \
                                                                                                 is taken");
            }
        }
    }
}
