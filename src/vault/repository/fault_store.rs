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
}

/// Wraps a store. Calls follow the script, one entry each; after its end they succeed.
#[derive(Clone, Debug)]
pub(crate) struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    script: Arc<Mutex<VecDeque<Option<InjectedFault>>>>,
    calls: Arc<Mutex<Vec<String>>>,
}

impl FaultStore {
    pub(crate) fn over(inner: Arc<dyn ObjectStore>) -> FaultStore {
        FaultStore { inner, script: Arc::default(), calls: Arc::default() }
    }

    /// What the next calls meet.
    pub(crate) fn script(&self, faults: impl IntoIterator<Item = Option<InjectedFault>>) {
        *self.script.lock().unwrap() = faults.into_iter().collect();
    }

    /// The calls since the last look: the operation and the object.
    pub(crate) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn next(&self, operation: &str, path: &str) -> Option<InjectedFault> {
        self.calls.lock().unwrap().push(format!("{operation} {path}"));
        self.script.lock().unwrap().pop_front().flatten()
    }
}

fn planted() -> Error {
    Error::Generic { store: "fault", source: "planted".into() }
}

/// Runs `call` as the fault has it.
async fn run<T>(fault: Option<InjectedFault>, call: impl Future<Output = Result<T>>) -> Result<T> {
    match fault {
        None => call.await,
        Some(InjectedFault::Refuse) => Err(planted()),
        Some(InjectedFault::LoseAnswer) => {
            drop(call.await);
            Err(planted())
        }
        Some(InjectedFault::Hang) => std::future::pending().await,
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
        run(self.next("put", path.as_ref()), self.inner.put_opts(path, payload, options)).await
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        run(self.next("multipart", path.as_ref()), self.inner.put_multipart_opts(path, options)).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        run(self.next("get", path.as_ref()), self.inner.get_opts(path, options)).await
    }

    async fn get_ranges(&self, path: &Path, ranges: &[std::ops::Range<u64>]) -> Result<Vec<bytes::Bytes>> {
        run(self.next("get", path.as_ref()), self.inner.get_ranges(path, ranges)).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.next("delete", "") {
            None => self.inner.delete_stream(paths),
            Some(InjectedFault::LoseAnswer) => self.inner.delete_stream(paths).map(|_| Err(planted())).boxed(),
            Some(_) => futures_util::stream::iter([Err(planted())]).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.next("list", prefix.map_or("", AsRef::as_ref)) {
            None => self.inner.list(prefix),
            Some(_) => futures_util::stream::iter([Err(planted())]).boxed(),
        }
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        match self.next("list", prefix.map_or("", AsRef::as_ref)) {
            None => self.inner.list_with_offset(prefix, offset),
            Some(_) => futures_util::stream::iter([Err(planted())]).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let fault = self.next("list", prefix.map_or("", AsRef::as_ref));
        run(fault, self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        run(self.next("copy", from.as_ref()), self.inner.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: object_store::RenameOptions) -> Result<()> {
        run(self.next("rename", from.as_ref()), self.inner.rename_opts(from, to, options)).await
    }
}
