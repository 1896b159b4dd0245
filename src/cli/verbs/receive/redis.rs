//! `walkeep receive` of a Redis instance: follows its stream of commands.

use std::pin::pin;
use std::time::Duration;

use anyhow::Context;
use tokio::sync::watch;

use super::stop_signal::stop_on_signal;
use crate::cli::context::CliContext;
use crate::cli::exit::CliExitCode;
use crate::cli::open;
use crate::config::{Config, InstanceConfig};
use crate::redis::archive::Archive;
use crate::redis::receive as redis_receive;
use crate::redis::receive::{ReceiveEvent, ReceiveObserver, ReceiveSettings};

/// How often a repository that was away at the start is looked for.
const REOPEN_INTERVAL: Duration = Duration::from_secs(20);

/// Follows an instance's stream of commands, in the foreground.
pub(in crate::cli) async fn run(
    config: &Config,
    of: &InstanceConfig,
    around: &CliContext,
) -> anyhow::Result<CliExitCode> {
    let mut instance = open::open_instance(config, of, around).await?;
    let settings = ReceiveSettings::new(of.redis_source(&around.environment, &around.clock)?, config.state_dir.clone());
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(stop_on_signal(stop)?);
    let position = loop {
        let (again, ended) = {
            let (end, ends) = watch::channel(false);
            let mut run = pin!(redis_receive::receive_stream(&instance, &settings, &StreamEventLogger, ends));
            let mut signal = stopped.clone();
            let again = tokio::select! {
                ended = &mut run => break ended,
                _ = signal.wait_for(|stop| *stop) => None,
                opened = await_all_repositories(config, of, &instance, around) => Some(opened),
            };
            end.send_replace(true);
            (again, run.await)
        };
        match again {
            // It goes on where it was, with all of them.
            Some(opened) if ended.is_ok() && !*stopped.borrow() => instance = opened,
            _ => break ended,
        }
    };
    let position = position.with_context(|| format!("receiving {} has ended", of.name))?;
    if let Some(position) = position {
        tracing::info!(replid = %position.replid, offset = position.offset, "everything up to here is safe");
    }
    Ok(CliExitCode::Done)
}

/// Waits until all repositories can be reached, where one could not be when they were opened: nothing comes to that one
/// until it is opened again. Where all could, it waits for ever.
async fn await_all_repositories(
    config: &Config,
    of: &InstanceConfig,
    opened: &Archive,
    around: &CliContext,
) -> Archive {
    if opened.vault().unreachable().next().is_none() {
        std::future::pending::<()>().await;
    }
    loop {
        around.clock.sleep(REOPEN_INTERVAL).await;
        if let Ok(again) = open::open_instance(config, of, around).await
            && again.vault().unreachable().next().is_none()
        {
            tracing::info!("all repositories can be reached now");
            return again;
        }
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
