//! A store that fails as real ones do: before the effect, after it, or never answering. For tests.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// How one call goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum InjectedFault {
    /// An error, and nothing was done.
    Refuse,
    /// An error, though it was done.
    LoseAnswer,
    /// Nothing is done and no answer ever comes.
    Hang,
    /// The answer that there is nothing.
    Absent,
    /// The answer that the object exists, though nothing was done.
    Conflict,
}

/// Wraps a store. Calls follow the script, one entry each; after its end they succeed, unless chance has it otherwise.
#[derive(Clone, Debug)]
pub(crate) struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    script: Arc<Mutex<VecDeque<Option<InjectedFault>>>>,
    calls: Arc<Mutex<Vec<String>>>,
    chance: Arc<Mutex<FaultChance>>,
}

/// What happens to calls that the script leaves alone.
#[derive(Debug, Default)]
struct FaultChance {
    /// Every call is refused.
    down: bool,
    /// One call in so many fails; none if zero.
    one_in: u64,
    /// The state of xorshift64.
    random: u64,
}

impl FaultChance {
    fn next(&mut self) -> Option<InjectedFault> {
        if self.down {
            return Some(InjectedFault::Refuse);
        }
        if self.one_in == 0 {
            return None;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let kinds = [InjectedFault::Refuse, InjectedFault::LoseAnswer, InjectedFault::Hang];
        self.random.is_multiple_of(self.one_in).then(|| kinds[(self.random >> 32) as usize % kinds.len()])
    }
}

impl FaultStore {
    pub(crate) fn wrap(inner: Arc<dyn ObjectStore>) -> FaultStore {
        FaultStore { inner, script: Arc::default(), calls: Arc::default(), chance: Arc::default() }
    }

    /// What the next calls meet.
    pub(crate) fn set_script(&self, faults: impl IntoIterator<Item = Option<InjectedFault>>) {
        *self.script.lock().unwrap() = faults.into_iter().collect();
    }

    /// Refuses every call from now on, or none.
    pub(crate) fn set_down(&self, down: bool) {
        self.chance.lock().unwrap().down = down;
    }

    /// Lets one call in so many fail from now on, as the seed has it; none if zero.
    pub(crate) fn fail_one_in(&self, one_in: u64, seed: u64) {
        let mut chance = self.chance.lock().unwrap();
        (chance.one_in, chance.random) = (one_in, seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    }

    /// The store beneath.
    pub(crate) fn without_faults(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.inner)
    }

    /// The calls since the last look: the operation and the object.
    pub(crate) fn drain_calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn next_fault(&self, operation: &str, path: &str) -> Option<InjectedFault> {
        self.calls.lock().unwrap().push(format!("{operation} {path}"));
        let scripted = self.script.lock().unwrap().pop_front();
        scripted.unwrap_or_else(|| self.chance.lock().unwrap().next())
    }
}

fn injected_error() -> Error {
    Error::Generic { store: "fault", source: "planted".into() }
}

/// Runs `call` as the fault has it.
async fn run_with_fault<T>(fault: Option<InjectedFault>, call: impl Future<Output = Result<T>>) -> Result<T> {
    match fault {
        None => call.await,
        Some(InjectedFault::Refuse) => Err(injected_error()),
        Some(InjectedFault::LoseAnswer) => {
            drop(call.await);
            Err(injected_error())
        }
        Some(InjectedFault::Hang) => std::future::pending().await,
        Some(InjectedFault::Conflict) => Err(Error::AlreadyExists { path: String::new(), source: "planted".into() }),
        Some(InjectedFault::Absent) => Err(Error::NotFound { path: String::new(), source: "planted".into() }),
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faults over {}", self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, path: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        run_with_fault(self.next_fault("put", path.as_ref()), self.inner.put_opts(path, payload, options)).await
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        run_with_fault(self.next_fault("multipart", path.as_ref()), self.inner.put_multipart_opts(path, options)).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        run_with_fault(self.next_fault("get", path.as_ref()), self.inner.get_opts(path, options)).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[std::ops::Range<u64>]) -> Result<Vec<bytes::Bytes>> {
        run_with_fault(self.next_fault("get", path.as_ref()), self.inner.get_ranges(path, ranges)).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.next_fault("delete", "") {
            None => self.inner.delete_stream(paths),
            Some(InjectedFault::LoseAnswer) => self.inner.delete_stream(paths).map(|_| Err(injected_error())).boxed(),
            Some(_) => futures_util::stream::iter([Err(injected_error())]).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.next_fault("list", prefix.map_or("", AsRef::as_ref)) {
            None => self.inner.list(prefix),
            Some(_) => futures_util::stream::iter([Err(injected_error())]).boxed(),
        }
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.next_fault("list", prefix.map_or("", AsRef::as_ref)) {
            None => self.inner.list_with_offset(prefix, offset),
            Some(_) => futures_util::stream::iter([Err(injected_error())]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let fault = self.next_fault("list", prefix.map_or("", AsRef::as_ref));
        run_with_fault(fault, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        run_with_fault(self.next_fault("copy", from.as_ref()), self.inner.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: object_store::RenameOptions) -> Result<()> {
        run_with_fault(self.next_fault("rename", from.as_ref()), self.inner.rename_opts(from, to, options)).await
    }
}
