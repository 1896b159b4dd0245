//! Names out of a backup's files, before anything is restored: which databases and roles a cluster had.
//!
//! `pg_database` and `pg_authid` begin with the object's number and its name (`pg_database.h`, `pg_authid.h`). Every
//! version of a row that is on the pages is read, living or dead: a name that was given up is as good a hint as one
//! that was not. What is found here is never trusted alone, the restored server has the last word.

/// The number of `pg_database`'s own row in `pg_class`.
pub(super) const PG_DATABASE_OID: u32 = 1262;
/// The number of `pg_authid`'s.
pub(super) const PG_AUTHID_OID: u32 = 1260;
/// The role that `initdb` made (`BOOTSTRAP_SUPERUSERID`).
pub(super) const BOOTSTRAP_SUPERUSER_OID: u32 = 10;
/// Databases that `initdb` made have smaller numbers (`FirstNormalObjectId`): the templates, and `postgres`.
pub(super) const FIRST_NORMAL_OID: u32 = 16_384;

/// `RELMAPPER_FILEMAGIC` (`relmapper.c`).
const MAP_MAGIC: u32 = 0x0059_2717;
/// Bytes of a page's header, and of a line pointer (`bufpage.h`, `itemid.h`).
const PAGE_HEADER_BYTES: usize = 24;
const LINE_POINTER_BYTES: usize = 4;
/// `LP_NORMAL`.
const LINE_POINTER_NORMAL: u32 = 1;
/// Where a row says how long its own header is (`t_hoff` in `htup_details.h`).
const TUPLE_HOFF_OFFSET: usize = 22;
/// Bytes of a name, zeros included (`NAMEDATALEN`).
const NAME_BYTES: usize = 64;

/// The file of a mapped catalog, from `global/pg_filenode.map`.
pub(super) fn mapped_file(map: &[u8], catalog: u32) -> Option<u32> {
    if read_u32(map, 0)? != MAP_MAGIC {
        return None;
    }
    let count = usize::try_from(read_u32(map, 4)?).ok()?;
    let (pairs, _) = map.get(8..)?.as_chunks::<8>();
    let pair = pairs.iter().take(count).find(|pair| read_u32(&pair[..], 0) == Some(catalog))?;
    read_u32(&pair[..], 4)
}

/// Numbers and names in a catalog's pages, each pair once.
pub(super) fn read_names(heap: &[u8], page_size: usize) -> Vec<(u32, String)> {
    let mut found: Vec<(u32, String)> = heap.chunks_exact(page_size.max(1)).flat_map(names_in_page).collect();
    found.sort();
    found.dedup();
    found
}

fn names_in_page(page: &[u8]) -> Vec<(u32, String)> {
    let lower =
        page.get(12..14).and_then(<[u8]>::first_chunk).map_or(0, |bytes| usize::from(u16::from_le_bytes(*bytes)));
    let pointers = page.get(PAGE_HEADER_BYTES..lower).unwrap_or_default();
    let rows = pointers.chunks_exact(LINE_POINTER_BYTES).filter_map(|pointer| {
        let pointer = read_u32(pointer, 0)?;
        let (offset, flags, len) = (pointer & 0x7FFF, pointer >> 15 & 3, pointer >> 17);
        let row = page.get(usize::try_from(offset).ok()?..)?.get(..usize::try_from(len).ok()?)?;
        (flags == LINE_POINTER_NORMAL).then(|| name_in_row(row)).flatten()
    });
    rows.collect()
}

fn name_in_row(row: &[u8]) -> Option<(u32, String)> {
    let columns = row.get(usize::from(*row.get(TUPLE_HOFF_OFFSET)?)..)?;
    let name = columns.get(4..4 + NAME_BYTES)?;
    let name = name.split(|byte| *byte == 0).next()?;
    let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty())?;
    Some((read_u32(columns, 0)?, name.to_owned()))
}

fn read_u32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|four| u32::from_le_bytes(*four))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{mapped_file, read_names};

    /// A page with one row of number 16384 and a name.
    fn page(name: &str) -> Vec<u8> {
        let mut page = vec![0; 8192];
        let (offset, len) = (8000_u32, 24 + 4 + 64_u32);
        page[12..14].copy_from_slice(&28_u16.to_le_bytes());
        page[24..28].copy_from_slice(&(offset | 1 << 15 | len << 17).to_le_bytes());
        page[8022] = 24;
        page[8024..8028].copy_from_slice(&16_384_u32.to_le_bytes());
        page[8028..8028 + name.len()].copy_from_slice(name.as_bytes());
        page
    }

    #[test]
    fn names_are_found_in_pages() {
        assert_eq!(read_names(&page("zoptal"), 8192), [(16_384, "zoptal".to_owned())]);
        let two = [page("zoptal"), page("other"), vec![0; 8192]].concat();
        assert_eq!(read_names(&two, 8192).len(), 2);
        let mut dead = page("zoptal");
        dead[26] = 0;
        dead[25] &= 0x7F;
        assert_eq!(read_names(&dead, 8192), []);
    }

    #[test]
    fn the_map_says_which_file() {
        let map = [0x0059_2717_u32, 2, 1260, 1260, 1262, 16_500].map(u32::to_le_bytes).concat();
        assert_eq!(
            (mapped_file(&map, 1262), mapped_file(&map, 1260), mapped_file(&map, 1)),
            (Some(16_500), Some(1260), None)
        );
        assert_eq!(mapped_file(&map[4..], 1262), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..400), size in 0..300_usize) {
            let _found = (read_names(&bytes, size), mapped_file(&bytes, 1262));
        }
    }
}
