//! SIGINT and SIGTERM end a receiver cleanly.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Sends `true` at the first SIGINT or SIGTERM, so that the receiver ends cleanly.
pub(super) fn stop_on_signal(stop: watch::Sender<bool>) -> anyhow::Result<impl Future<Output = ()>> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for signals")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    Ok(async move {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        tracing::info!("ending: what is under way is finished first");
        // The receiver may have ended by itself.
        stop.send_replace(true);
        stop.closed().await;
    })
}
