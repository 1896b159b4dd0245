//! `walkeep receive` of a Redis instance: follows its stream of commands.

use anyhow::Context;
use tokio::sync::watch;

use super::stop_signal::stop_on_signal;
use crate::cli::context::CliContext;
use crate::cli::exit::CliExitCode;
use crate::cli::open;
use crate::config::{Config, InstanceConfig};
use crate::redis::receive as redis_receive;
use crate::redis::receive::{ReceiveEvent, ReceiveObserver, ReceiveSettings};

/// Follows an instance's stream of commands, in the foreground.
pub(in crate::cli) async fn run(
    config: &Config,
    of: &InstanceConfig,
    around: &CliContext,
) -> anyhow::Result<CliExitCode> {
    let instance = open::open_instance(config, of, around).await?;
    let settings = ReceiveSettings::new(of.redis_source(&around.environment, &around.clock)?, config.state_dir.clone());
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(stop_on_signal(stop)?);
    let position = redis_receive::receive_stream(&instance, &settings, &StreamEventLogger, stopped).await;
    let position = position.with_context(|| format!("receiving {} has ended", of.name))?;
    if let Some(position) = position {
        tracing::info!(replid = %position.replid, offset = position.offset, "everything up to here is safe");
    }
    Ok(CliExitCode::Done)
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
