//! Which pages with wrong checksums are damaged, and which ones replay restores.
//!
//! A page may have been read while it was being written. PostgreSQL's own base backup reads it again; here the archived
//! WAL of the backup decides, for which the role needs no right: between start and stop of a backup, the first record
//! that changes a page has all of it, and replay writes that without looking at what was there. A page that no record
//! restores is damaged, unless its file is gone: then replay removes it, too.

use std::collections::HashMap;
use std::sync::Arc;

use super::error::BackupError;
use super::page_checksums::ChecksumRule;
use super::required_wal::RequiredWal;
use crate::base::blocking::run_blocking;
use crate::base::pipeline::StageLostError;
use crate::postgres::archive::Archive;
use crate::postgres::archive::manifest::DamagedPage;
use crate::postgres::format::datadir::{DataDirRelation, RelationFile, RelationFork};
use crate::postgres::sql::SqlSession;
use crate::postgres::wal::decode::WalDecoder;
use crate::postgres::wal::page::MajorVersion;
use crate::postgres::wal::record::ChangedPage;
use crate::postgres::wire::conninfo::Conninfo;

/// Pages that are looked up. Of more than that a damaged disk is the reason, and all others count as damaged.
const MAX_LOOKED_UP: usize = 1000;

/// A page as WAL names it: the relation, the fork's number and the block.
type PageName = (DataDirRelation, u8, u32);

/// Of the pages `suspect`, those that are damaged. The archive must have the backup's WAL.
pub(super) async fn damaged_pages(
    archive: &Arc<Archive>,
    server: &Conninfo,
    rule: ChecksumRule,
    needed: &RequiredWal,
    mut suspect: Vec<DamagedPage>,
) -> Result<Vec<DamagedPage>, BackupError> {
    if suspect.is_empty() {
        return Ok(suspect);
    }
    let mut damaged = suspect.split_off(suspect.len().min(MAX_LOOKED_UP));
    let replay = first_changes(archive, needed, &suspect).await?;
    suspect.retain(|page| page_name(page).is_none_or(|name| replay.get(&name) != Some(&true)));
    if !suspect.is_empty() {
        damaged.extend(still_there(server, rule, suspect).await);
    }
    Ok(damaged)
}

/// Whether the first change of each page in the backup's WAL writes all of it. Pages that are not changed are absent.
async fn first_changes(
    archive: &Arc<Archive>,
    needed: &RequiredWal,
    suspect: &[DamagedPage],
) -> Result<HashMap<PageName, bool>, BackupError> {
    let wanted: HashMap<PageName, Option<bool>> = suspect.iter().filter_map(page_name).map(|p| (p, None)).collect();
    let begin = needed.size.segment_of(needed.start).start(needed.size);
    let mut reader = (WalDecoder::new(begin, needed.timeline, needed.size), wanted);
    for name in needed.segment_names() {
        let Some(segment) = archive.segment(name).await? else { break };
        let start = needed.start;
        reader = run_blocking(move || {
            let (mut decoder, mut wanted) = reader;
            let major = decoder.major().or_else(|| {
                MajorVersion::from_magic(segment.first_chunk().map_or(0, |magic| u16::from_le_bytes(*magic)))
            });
            let mut feed = decoder.feed_bytes(&segment);
            // The archive has checked the WAL: it ends where it cannot be read.
            while let (Some(major), Ok(Some(record))) = (major, feed.next_record()) {
                let pages = if record.lsn >= start { record.pages(major) } else { None };
                for page in pages.into_iter().flatten() {
                    if let Some(first @ None) = wanted.get_mut(&changed_page_name(&page)) {
                        *first = Some(page.restored);
                    }
                }
            }
            (decoder, wanted)
        })
        .await
        .map_err(|_lost| StageLostError)?;
    }
    Ok(reader.1.into_iter().filter_map(|(page, first)| Some((page, first?))).collect())
}

/// The pages whose file the server still has, as far as it shows: that takes `pg_read_server_files` and the right to
/// execute `pg_read_binary_file`.
async fn still_there(server: &Conninfo, rule: ChecksumRule, pages: Vec<DamagedPage>) -> Vec<DamagedPage> {
    let sql = match SqlSession::connect(server).await {
        Ok(sql) => sql,
        Err(error) => {
            tracing::debug!(%error, "pages with wrong checksums cannot be looked at again");
            return pages;
        }
    };
    let mut there = Vec::with_capacity(pages.len());
    for page in pages {
        match sql.page_lsn(&page.file, rule.page_offset(page.block)).await {
            Ok(None) => {}
            Ok(Some(_)) => there.push(page),
            Err(error) => {
                tracing::debug!(file = page.file, %error, "a page with a wrong checksum cannot be looked at again");
                there.push(page);
            }
        }
    }
    there
}

fn page_name(page: &DamagedPage) -> Option<PageName> {
    let file = RelationFile::parse(&page.file)?;
    let fork = match file.fork {
        RelationFork::Main => 0,
        RelationFork::FreeSpace => 1,
        RelationFork::Visibility => 2,
        RelationFork::Init => 3,
    };
    Some((file.relation, fork, page.block))
}

fn changed_page_name(page: &ChangedPage) -> PageName {
    let file = page.file;
    let relation = DataDirRelation { tablespace: file.tablespace, database: file.database, filenode: file.filenode };
    (relation, page.fork, page.block)
}
