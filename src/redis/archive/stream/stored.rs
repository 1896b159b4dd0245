//! The stretches in the repositories.

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::OnceCell;

use super::spooled_stretch::{SpooledStretch, StretchStart};
use super::stretch::{ArrivalMark, StreamStretch, StretchName};
use crate::redis::archive::instance::Archive;
use crate::redis::archive::layout::InstanceObject;
use crate::redis::format::replication_id::ReplicationId;
use crate::redis::format::resp::{CommandLimits, CommandParser};
use crate::vault::repository::PutOutcome;
use crate::vault::repository::key::ObjectKey;
use crate::vault::seal::{OpenFault, SealedKind, SealedObject, Trailer};
use crate::vault::{UnreachableRepositories, VaultError, VaultRepository};

/// How often an object that is there when it is put and gone when it is read is put again. Once is what another
/// receiver makes of it that replaces a damaged one just then.
const MAX_PUT_ATTEMPTS: u32 = 5;

/// A stretch that is to be stored. It is sealed once, for all repositories that take it.
#[derive(Debug)]
pub struct StretchToStore {
    stretch: StreamStretch,
    bytes: Bytes,
    sealed: OnceCell<SealedObject>,
}

impl StretchToStore {
    /// A stretch and its bytes, not sealed yet.
    #[must_use]
    pub fn new(stretch: StreamStretch, bytes: Bytes) -> StretchToStore {
        StretchToStore { stretch, bytes, sealed: OnceCell::new() }
    }

    /// What the stretch's metadata says.
    #[must_use]
    pub fn stretch(&self) -> &StreamStretch {
        &self.stretch
    }

    /// What comes after `from`, as a stretch of its own; `None` if the stream may not be cut there.
    fn cut_after(&self, from: u64) -> Option<StretchToStore> {
        let (stretch, bytes) = (self.stretch.clone(), &self.bytes);
        let at = usize::try_from(from.checked_sub(stretch.first)?).ok()?;
        let mut parser =
            CommandParser::resume_at(stretch.first, stretch.db, stretch.in_transaction, CommandLimits::default());
        parser.push(bytes.get(..at)?, &mut |_| {}).ok()?;
        let (before, marks): (Vec<ArrivalMark>, Vec<ArrivalMark>) =
            stretch.marks.into_iter().partition(|mark| mark.offset <= from);
        let beginning = StretchStart {
            replid: stretch.replid,
            first: from,
            db: parser.db(),
            in_transaction: parser.in_transaction(),
            follows: None,
            started_at: before.last().map_or(stretch.started_at, |mark| mark.time),
            run: stretch.run,
            missed_until: stretch.missed.map(|missed| missed.until).filter(|until| *until > from),
        };
        let (ended_at, clock, reading) = (stretch.ended_at, stretch.clock, stretch.reading);
        let spooled = SpooledStretch { beginning, bytes: bytes.slice(at..), marks, ended_at, clock, reading };
        let (stretch, bytes) = spooled.into_stretch();
        (parser.boundary() == from).then(|| StretchToStore::new(stretch, bytes))
    }
}

/// A stretch in a listing of the repositories.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ListedStretch {
    /// Its name.
    pub name: StretchName,
    /// The bytes of its object.
    pub stored_bytes: u64,
    /// When it was stored.
    pub stored_at: Timestamp,
}

/// What a place has where a stretch is to be stored.
enum StoredCopy {
    /// All of it.
    Complete,
    /// Its beginning; this is the rest.
    Prefix(Box<StretchToStore>),
    /// Nothing any more.
    Vanished,
}

fn conflict_error(place: &VaultRepository, key: &ObjectKey, what: &str) -> VaultError {
    let why = format!(
        "{what} than was received here: another receiver wrote it, of a server with another past, or it came there by \
         other means; give each server a [redis.NAME] of its own and let one receiver alone work for it. The spool \
         keeps \
         what was received here; \
         `walkeep verify` tells whether what is stored is right"
    );
    VaultError::NameTaken { name: place.name.clone(), key: key.clone(), why }
}

impl Archive {
    /// In how many repositories everything is stored, those included that could not be reached.
    #[must_use]
    pub fn place_count(&self) -> usize {
        self.vault().places.len()
    }

    /// Stores a stretch in the repository of this number. Says whether any of it was new.
    ///
    /// Where it has the beginning of it already, as another receiver left it, the rest is stored behind that as a
    /// stretch of its own; where it has more, that is as good. A stored copy that the disk has damaged is replaced.
    ///
    /// # Errors
    /// It did not take it, or has another stream in its place.
    pub async fn put_commands(&self, place: usize, stretch: &StretchToStore) -> Result<PutOutcome, VaultError> {
        let place = self.vault().places.get(place).ok_or(VaultError::NoRepository)?;
        // Nothing is sealed for one that is unreachable.
        place.reopened(&self.vault().keys).await?;
        let mut rest: Option<Box<StretchToStore>> = None;
        let (mut replaced, mut gone) = (None, 0);
        loop {
            let given = rest.as_deref().unwrap_or(stretch);
            let key = self.commands_key(given.stretch.replid, given.stretch.first)?;
            let sealed = given.sealed.get_or_try_init(|| self.seal_stretch(given)).await?;
            if place.put(&key, sealed).await? == PutOutcome::Created {
                return Ok(PutOutcome::Created);
            }
            match self.compare_stored(place, &key, given).await {
                Ok(StoredCopy::Complete) => {
                    // It may have been put a moment ago by another process that has not synced its folder yet.
                    place.make_durable(&key).await?;
                    return Ok(PutOutcome::Exists);
                }
                Ok(StoredCopy::Vanished) if gone < MAX_PUT_ATTEMPTS => gone += 1,
                Ok(StoredCopy::Vanished) => {
                    let why = "is there when it is put and gone when it is read, again and again; what removes it?";
                    return Err(VaultError::NameTaken { name: place.name.clone(), key, why: why.to_owned() });
                }
                Ok(StoredCopy::Prefix(new)) => {
                    tracing::info!(
                        place = place.name, %key, from = new.stretch.first,
                        "only the beginning is stored; the rest is stored behind it"
                    );
                    rest = Some(new);
                }
                // Not what another key may open. Its bytes are here, and in the spool until they are stored.
                Err(VaultError::CannotOpen { source, .. })
                    if matches!(source.fault, OpenFault::Damaged(_) | OpenFault::NoEnd)
                        && replaced != Some(key.clone()) =>
                {
                    tracing::warn!(place = place.name, %key, error = %source, "replaced by what was received again");
                    place.repository()?.delete(&key).await.map_err(|error| place.repository_error(error))?;
                    replaced = Some(key);
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn seal_stretch(&self, given: &StretchToStore) -> Result<SealedObject, VaultError> {
        let key = self.commands_key(given.stretch.replid, given.stretch.first)?;
        let metadata =
            serde_json::to_vec(&given.stretch).map_err(|error| self.unreadable_error(&key, error.to_string()))?;
        self.vault().seal_object(SealedKind::Commands, &key, vec![given.bytes.clone()], metadata).await
    }

    /// What a place has of a stretch that had something under this key already.
    async fn compare_stored(
        &self,
        place: &VaultRepository,
        key: &ObjectKey,
        given: &StretchToStore,
    ) -> Result<StoredCopy, VaultError> {
        let Some(there) = place.get(SealedKind::Commands, key, self.vault()).await? else {
            return Ok(StoredCopy::Vanished);
        };
        let there = there.plain;
        let common = there.len().min(given.bytes.len());
        if let Some(at) = there.iter().zip(&given.bytes).position(|(there, given)| there != given) {
            let offset = given.stretch.first.saturating_add(at as u64);
            return Err(conflict_error(place, key, &format!("holds another stream from offset {offset} on")));
        }
        if common == given.bytes.len() {
            return Ok(StoredCopy::Complete);
        }
        let from = given.stretch.first.saturating_add(common as u64);
        let rest = given.cut_after(from).filter(|_| common > 0);
        let within = || {
            conflict_error(place, key, &format!("ends at offset {from}, within a command, and so holds another stream"))
        };
        rest.map(|rest| StoredCopy::Prefix(Box::new(rest))).ok_or_else(within)
    }

    /// What a stored stretch says of itself.
    ///
    /// # Errors
    /// No repository gave it, or it does not open.
    pub async fn stored_stretch(&self, replid: ReplicationId, first: u64) -> Result<Option<StreamStretch>, VaultError> {
        let key = self.commands_key(replid, first)?;
        let trailer = self.vault().get_trailer(SealedKind::Commands, &key).await?;
        trailer.map(|trailer| self.parse_stretch_metadata(&key, &trailer)).transpose()
    }

    /// What a stretch says of itself that is stored in the repository of this name: where two receivers ran, another
    /// one may hold more under the same offset.
    ///
    /// # Errors
    /// The repository did not give it, or it does not open.
    pub async fn read_stretch_from(
        &self,
        repository: &str,
        replid: ReplicationId,
        first: u64,
    ) -> Result<Option<StreamStretch>, VaultError> {
        let place =
            self.vault().places.iter().find(|place| place.name == repository).ok_or(VaultError::NoRepository)?;
        let key = self.commands_key(replid, first)?;
        let trailer = place.trailer(SealedKind::Commands, &key, self.vault()).await?;
        trailer.map(|(trailer, _)| self.parse_stretch_metadata(&key, &trailer)).transpose()
    }

    fn parse_stretch_metadata(&self, key: &ObjectKey, trailer: &Trailer) -> Result<StreamStretch, VaultError> {
        serde_json::from_slice(trailer.metadata()).map_err(|error| self.unreadable_error(key, error.to_string()))
    }

    /// The bytes of a stored stretch.
    ///
    /// # Errors
    /// No repository gave them, or they do not open.
    pub async fn stored_commands(&self, replid: ReplicationId, first: u64) -> Result<Option<Bytes>, VaultError> {
        let key = self.commands_key(replid, first)?;
        Ok(self.vault().get_object(SealedKind::Commands, &key).await?.map(|opened| opened.plain))
    }

    /// All stretches in the repositories, by name.
    ///
    /// # Errors
    /// No repository could be asked.
    pub async fn stored_stretches(&self) -> Result<Vec<ListedStretch>, VaultError> {
        self.list_stored_stretches(&mut UnreachableRepositories::default()).await
    }

    pub(crate) async fn list_stored_stretches(
        &self,
        unasked: &mut UnreachableRepositories,
    ) -> Result<Vec<ListedStretch>, VaultError> {
        let objects = self.list_reachable(&self.layout().streams(), unasked).await?;
        let name = |key: &ObjectKey| match self.layout().parse_key(key)? {
            InstanceObject::Commands(id, first) => Some(StretchName { replid: id.parse().ok()?, first }),
            _ => None,
        };
        let named = objects.iter().filter_map(|object| {
            let (stored_bytes, stored_at) = (object.len, object.modified);
            Some(ListedStretch { name: name(&object.key)?, stored_bytes, stored_at })
        });
        let mut stretches: Vec<ListedStretch> = named.collect();
        stretches.sort_unstable();
        Ok(stretches)
    }

    fn commands_key(&self, replid: ReplicationId, first: u64) -> Result<ObjectKey, VaultError> {
        self.layout().commands(&replid.to_string(), first).map_err(|bad| self.bad_key_error(&bad))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use jiff::Timestamp;
    use tempfile::TempDir;

    use super::{ArrivalMark, StreamStretch, StretchName, StretchToStore};
    use crate::base::retry::ErrorClass;
    use crate::redis::archive::Archive;
    use crate::redis::archive::stream::spooled_stretch::{SpooledStretch, StretchStart};
    use crate::redis::format::resp::{CommandLimits, CommandParser, encode_command};
    use crate::vault::VaultError;
    use crate::vault::repository::PutOutcome;
    use crate::vault::repository::fault_store::InjectedFault;
    use crate::vault::testing::{create, faulty, open};

    const ID: &str = "0123456789abcdef0123456789abcdef01234567";
    const FIRST: u64 = 1000;

    /// A stretch of commands in several databases and in a transaction, and the offsets between them.
    fn received() -> (StreamStretch, Bytes, Vec<u64>) {
        let commands: [&[&[u8]]; 9] = [
            &[b"SET", b"a", b"1"],
            &[b"SELECT", b"5"],
            &[b"SET", b"b", b"2"],
            &[b"MULTI"],
            &[b"INCR", b"b"],
            &[b"INCR", b"c"],
            &[b"EXEC"],
            &[b"SELECT", b"0"],
            &[b"SET", b"d", b"4"],
        ];
        let (mut bytes, mut ends, mut marks) = (Vec::new(), Vec::new(), Vec::new());
        for (nth, command) in commands.iter().enumerate() {
            bytes.extend(encode_command(command));
            let offset = FIRST + bytes.len() as u64;
            ends.push(offset);
            if !(3..6).contains(&nth) {
                let time = Timestamp::from_second(100 + nth as i64).unwrap();
                marks.push(ArrivalMark { offset, db: if (1..7).contains(&nth) { 5 } else { 0 }, time });
            }
        }
        let (stretch, bytes) = spooled(&bytes, marks);
        assert_eq!(Some(&stretch.last), ends.last());
        (stretch, bytes, ends)
    }

    fn spooled(bytes: &[u8], marks: Vec<ArrivalMark>) -> (StreamStretch, Bytes) {
        let (started_at, ended_at) = (Timestamp::from_second(90).unwrap(), Timestamp::from_second(200).unwrap());
        let replid = ID.parse().unwrap();
        let beginning = StretchStart { first: FIRST, ..StretchStart::new(replid, started_at) };
        let bytes = Bytes::copy_from_slice(bytes);
        SpooledStretch { beginning, bytes, marks, ended_at, clock: None, reading: None }.into_stretch()
    }

    /// The beginning of it, as another receiver had it.
    fn until(end: u64) -> (StreamStretch, Bytes) {
        let (whole, bytes, _) = received();
        let marks = whole.marks.into_iter().filter(|mark| mark.offset <= end).collect();
        spooled(&bytes[..usize::try_from(end - FIRST).unwrap()], marks)
    }

    /// Into every repository; what any says of it.
    async fn put(instance: &Archive, stretch: &StreamStretch, bytes: Bytes) -> Result<PutOutcome, VaultError> {
        let mut all = PutOutcome::Exists;
        for place in 0..instance.place_count() {
            if instance.put_commands(place, &StretchToStore::new(stretch.clone(), bytes.clone())).await?
                == PutOutcome::Created
            {
                all = PutOutcome::Created;
            }
        }
        Ok(all)
    }

    async fn instance(dirs: &[&TempDir]) -> Archive {
        Archive::new(open(dirs, None).await.unwrap(), "main".parse().unwrap())
    }

    /// What a repository alone has, parsed from its first byte to its last with what each stretch says of its beginning
    /// and end.
    async fn everything(dir: &TempDir) -> (Vec<u8>, Vec<ArrivalMark>) {
        let instance = instance(&[dir]).await;
        let (mut bytes, mut marks) = (Vec::new(), Vec::new());
        let mut before: Option<StreamStretch> = None;
        for listed in instance.stored_stretches().await.unwrap() {
            let StretchName { replid, first } = listed.name;
            let stretch = instance.stored_stretch(replid, first).await.unwrap().unwrap();
            let own = instance.stored_commands(replid, first).await.unwrap().unwrap();
            if let Some(before) = before {
                let end = (before.last, before.db_after, before.in_transaction_after);
                assert_eq!(end, (stretch.first, stretch.db, stretch.in_transaction));
            }
            let mut parser =
                CommandParser::resume_at(first, stretch.db, stretch.in_transaction, CommandLimits::default());
            parser.push(&own, &mut |_| {}).unwrap();
            let end = (parser.boundary(), parser.db(), parser.in_transaction());
            assert_eq!(end, (stretch.last, stretch.db_after, stretch.in_transaction_after));
            bytes.extend_from_slice(&own);
            marks.extend_from_slice(&stretch.marks);
            before = Some(stretch);
        }
        (bytes, marks)
    }

    #[tokio::test]
    async fn where_the_beginning_is_stored_the_rest_is_stored_behind_it_in_each_repository() {
        let (stretch, bytes, ends) = received();
        for end in &ends[..ends.len() - 1] {
            let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            let both = Archive::new(create(&[&dirs[0], &dirs[1]], None).await, "main".parse().unwrap());
            let (short, its) = until(*end);
            assert_eq!(put(&instance(&[&dirs[0]]).await, &short, its).await.unwrap(), PutOutcome::Created);
            for expected in [PutOutcome::Created, PutOutcome::Exists] {
                assert_eq!(put(&both, &stretch, bytes.clone()).await.unwrap(), expected, "{end}");
            }
            for dir in &dirs {
                assert_eq!(everything(dir).await, (bytes.to_vec(), stretch.marks.clone()), "{end}");
            }
            // The other receiver, which had less, comes once more.
            let (short, its) = until(ends[0]);
            assert_eq!(put(&both, &short, its).await.unwrap(), PutOutcome::Exists);
            assert_eq!(everything(&dirs[0]).await.0, bytes);
        }
    }

    #[tokio::test]
    async fn another_stream_is_never_taken_for_this_one() {
        let (stretch, bytes, _) = received();
        let mut other = bytes.to_vec();
        let at = other.len() - 3;
        other[at] = b'9';
        let (other, others) = spooled(&other, Vec::new());
        let dir = tempfile::tempdir().unwrap();
        let instance = Archive::new(create(&[&dir], None).await, "main".parse().unwrap());
        put(&instance, &other, others.clone()).await.unwrap();
        let refused = put(&instance, &stretch, bytes).await.unwrap_err();
        assert_eq!(refused.class(), ErrorClass::Permanent);
        let said = refused.to_string();
        assert!(
            matches!(refused, VaultError::NameTaken { .. }) && said.contains(&format!("offset {}", FIRST + at as u64)),
            "{said}"
        );
        assert!(said.contains("another receiver") && said.contains("spool keeps") && !said.contains("newer"), "{said}");
        assert_eq!(everything(&dir).await.0, others);
    }

    #[tokio::test]
    async fn a_copy_that_the_disk_has_damaged_is_replaced_by_what_was_received_again() {
        let (stretch, bytes, ends) = received();
        for (end, back) in [(stretch.last, 30), (ends[4], 30), (stretch.last, 0)] {
            let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
            let instance = Archive::new(create(&[&dirs[0], &dirs[1]], None).await, "main".parse().unwrap());
            let (old, its) = until(end);
            put(&instance, &old, its).await.unwrap();
            let path = walk(dirs[0].path()).into_iter().find(|path| path.to_string_lossy().contains(ID)).unwrap();
            let mut stored = std::fs::read(&path).unwrap();
            let at = if back == 0 { 90 } else { stored.len() - back };
            stored[at] ^= 1;
            std::fs::write(&path, stored).unwrap();
            assert_eq!(put(&instance, &stretch, bytes.clone()).await.unwrap(), PutOutcome::Created, "{end} {back}");
            for dir in &dirs {
                assert_eq!(everything(dir).await.0, bytes, "{end} {back}");
            }
        }
    }

    /// Between a damaged copy and the one in its place that another receiver puts there is nothing.
    #[tokio::test]
    async fn what_is_gone_for_a_moment_is_put_again() {
        let (vault, store) = faulty().await;
        let instance = Archive::new(vault, "main".parse().unwrap());
        let (stretch, bytes, _) = received();
        assert_eq!(put(&instance, &stretch, bytes.clone()).await.unwrap(), PutOutcome::Created);
        // The name is taken, by other bytes at its end, and then there is nothing.
        let gone = [None, None, Some(InjectedFault::Absent)];
        store.set_script(gone);
        assert_eq!(put(&instance, &stretch, bytes.clone()).await.unwrap(), PutOutcome::Exists);
        store.set_script(gone.repeat(100));
        let error = put(&instance, &stretch, bytes).await.unwrap_err();
        assert!(
            matches!(error, VaultError::NameTaken { .. }) && error.to_string().contains("again and again"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_stretch_that_has_vanished_is_not_said_to_be_in_an_index() {
        let dir = tempfile::tempdir().unwrap();
        let instance = Archive::new(create(&[&dir], None).await, "main".parse().unwrap());
        let error = instance.read_stretch_bytes(&received().0).await.unwrap_err();
        let said = error.to_string();
        assert!(matches!(error, VaultError::Vanished { .. }) && said.contains("behind offset 1000"), "{said}");
        assert!(!said.contains("index"), "{said}");
    }

    fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
        let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
    }

    #[test]
    fn the_rest_begins_between_two_commands_or_not_at_all() {
        let (stretch, bytes, ends) = received();
        for from in FIRST..stretch.last {
            let given = StretchToStore::new(stretch.clone(), bytes.clone());
            assert_eq!(given.cut_after(from).is_some(), from == FIRST || ends.contains(&from), "{from}");
        }
    }
}
