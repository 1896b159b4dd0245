//! Data checksums of the pages in a chunk.
//!
//! The rule is the server's own (`verify_page_checksum`, `basebackup.c`): a page that was changed after the backup
//! began may have been read half written, and replay puts it right from its full-page image; any other page must carry
//! its checksum. Where the server finds a wrong one, it reads the page again: it may have been torn between an old
//! first half, which says how old the page is, and a new second one. We can't do that in a stream, so such pages are
//! gathered, and judged at the end ([`super::damaged_pages`]).

use bytes::Bytes;

use crate::postgres::format::lsn::Lsn;
use crate::postgres::format::page;

/// What checking the pages of a file takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct ChecksumRule {
    /// Bytes of a page.
    pub(super) block_size: usize,
    /// Pages in a file of a large relation.
    pub(super) segment_blocks: u32,
    /// Where the backup began.
    pub(super) start: Lsn,
}

/// What was found in one chunk.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct PageFindings {
    /// Pages looked at.
    pub(super) checked: u64,
    /// Pages that are wrong and younger than the backup's start, by their own word: their numbers within the relation's
    /// fork, and when they were last changed.
    pub(super) torn: Vec<(u32, Lsn)>,
    /// Pages that are wrong and older: their numbers within the relation's fork.
    pub(super) suspect: Vec<u32>,
}

impl ChecksumRule {
    /// Checks every whole page in `parts`, which begin at a page's beginning; the first page is the fork's page
    /// `first`.
    pub(super) fn check_pages(&self, parts: &[Bytes], first: u32) -> PageFindings {
        let mut findings = PageFindings::default();
        let mut scratch = Vec::with_capacity(self.block_size);
        let mut block = first;
        let whole = |page: &[u8], findings: &mut PageFindings, block: &mut u32| {
            self.check_page(page, *block, findings);
            *block = block.wrapping_add(1);
        };
        for part in parts {
            let mut rest = &part[..];
            if !scratch.is_empty() {
                let missing = self.block_size.saturating_sub(scratch.len()).min(rest.len());
                let (head, tail) = rest.split_at_checked(missing).unwrap_or((rest, &[]));
                scratch.extend_from_slice(head);
                rest = tail;
                if scratch.len() == self.block_size {
                    whole(&scratch, &mut findings, &mut block);
                    scratch.clear();
                }
            }
            let mut pages = rest.chunks_exact(self.block_size);
            pages.by_ref().for_each(|page| whole(page, &mut findings, &mut block));
            scratch.extend_from_slice(pages.remainder());
        }
        findings
    }

    fn check_page(&self, page: &[u8], block: u32, findings: &mut PageFindings) {
        // A page nothing was ever put on has no checksum (`PageIsNew`).
        if page::is_new(page) {
            return;
        }
        findings.checked = findings.checked.saturating_add(1);
        if page::verify_checksum(page, block) {
            return;
        }
        match page::lsn(page) {
            Some(lsn) if lsn >= self.start => findings.torn.push((block, lsn)),
            _ => findings.suspect.push(block),
        }
    }

    /// Where a page begins in the file of its segment.
    pub(super) fn page_offset(&self, block: u32) -> u64 {
        let within = block.checked_rem(self.segment_blocks).unwrap_or(block);
        u64::from(within).saturating_mul(self.block_size as u64)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{ChecksumRule, PageFindings};
    use crate::postgres::format::lsn::Lsn;
    use crate::postgres::format::page;

    const RULE: ChecksumRule = ChecksumRule { block_size: 8192, segment_blocks: 131_072, start: Lsn::new(0x5000) };

    /// A page last changed at `lsn`, with its right checksum as page `block`.
    fn page(lsn: u64, block: u32) -> Vec<u8> {
        let mut page = vec![0x5A; 8192];
        page[..4].copy_from_slice(&[0; 4]);
        page[4..8].copy_from_slice(&u32::try_from(lsn).unwrap().to_le_bytes());
        page[14..16].copy_from_slice(&8000_u16.to_le_bytes());
        let sum = page::checksum(&page, block).unwrap();
        page[8..10].copy_from_slice(&sum.to_le_bytes());
        page
    }

    #[test]
    fn wrong_pages_are_told_by_their_age() {
        let mut content =
            [page(0x4000, 10), page(0x4000, 11), page(0x6000, 12), page(0x4000, 13), vec![0; 8192]].concat();
        content.extend_from_slice(&[1; 100]);
        content[8192 + 5000] ^= 1;
        content[2 * 8192 + 5000] ^= 1;
        let expected = PageFindings { checked: 4, torn: vec![(12, Lsn::new(0x6000))], suspect: vec![11] };
        for size in [8192, 512, 1000, 8191, 8193, 100_000] {
            let parts: Vec<Bytes> = content.chunks(size).map(Bytes::copy_from_slice).collect();
            assert_eq!(RULE.check_pages(&parts, 10), expected, "in parts of {size}");
        }
        assert_eq!(
            RULE.check_pages(&[content[..8192].to_vec().into()], 9).suspect,
            [9],
            "the number is part of the sum"
        );
    }

    #[test]
    fn a_page_has_its_place_in_the_file_of_its_segment() {
        assert_eq!(RULE.page_offset(3), 3 * 8192);
        assert_eq!(RULE.page_offset(131_072 + 3), 3 * 8192);
    }
}
