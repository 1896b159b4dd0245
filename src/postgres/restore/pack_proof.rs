//! Whether the repositories have every pack of a backup: proved by a listing before a restore touches anything.

use std::collections::HashSet;

use super::backup_reading::read_manifest;
use super::error::RestoreError;
use crate::postgres::archive::Archive;
use crate::postgres::archive::chunks::PackId;
use crate::postgres::archive::manifest::Manifest;

/// The packs that the reachable repositories list together. Listed when they are asked for first.
#[derive(Debug, Default)]
pub(super) struct ListedPacks {
    listed: Option<HashSet<PackId>>,
}

/// A backup that cannot be restored, because packs of it are in no repository.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct BrokenBackup {
    pub(super) label: String,
    missing: usize,
    first: PackId,
}

impl BrokenBackup {
    /// What is wrong with it, as a sentence.
    pub(super) fn reason(&self) -> String {
        let BrokenBackup { label, missing, first } = self;
        let packs = match missing {
            1 => format!("pack {first}, which it needs, is in no reachable repository"),
            _ => format!("{missing} packs that it needs are in no reachable repository, for example {first}"),
        };
        format!("backup {label} cannot be restored: {packs}; walkeep verify names what is missing")
    }
}

impl ListedPacks {
    /// The manifest of a backup, if all its packs are listed; else what it lacks.
    pub(super) async fn prove(
        &mut self,
        archive: &Archive,
        label: &str,
    ) -> Result<Result<Manifest, BrokenBackup>, RestoreError> {
        let manifest = read_manifest(archive, label).await?;
        let listed = match &mut self.listed {
            Some(listed) => listed,
            none => none.insert(list_packs(archive).await?),
        };
        let missing: Vec<PackId> = manifest.packs.iter().copied().filter(|id| !listed.contains(id)).collect();
        Ok(match missing.first() {
            Some(first) => Err(BrokenBackup { label: label.to_owned(), missing: missing.len(), first: *first }),
            None => Ok(manifest),
        })
    }
}

async fn list_packs(archive: &Archive) -> Result<HashSet<PackId>, RestoreError> {
    let listed = archive.vault().list(&archive.layout().packs(), None).await?;
    Ok(listed.objects.iter().filter_map(|object| PackId::parse(object.key.file_name())).collect())
}
