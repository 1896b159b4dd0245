//! What is archived of a Redis instance: snapshots, the moments that can be restored, and gaps in the stream.

use anyhow::Context;

use crate::cli::context::CliContext;
use crate::cli::open;
use crate::cli::show::list::redis::InstanceInventory;
use crate::config::{self, Config};
use crate::redis::archive::coverage::CoverageScope;

pub(in crate::cli) async fn read_inventory(
    config: &Config,
    of: &config::InstanceConfig,
    around: &CliContext,
) -> anyhow::Result<InstanceInventory> {
    let instance = open::open_instance(config, of, around).await?;
    let coverage = instance.coverage(CoverageScope::All).await;
    let coverage = coverage.with_context(|| format!("cannot list what is archived of {}", of.name))?;
    let identity = instance.identity().await.with_context(|| format!("cannot tell what {} is", of.name))?;
    Ok(InstanceInventory::new(instance.name(), identity, coverage))
}
