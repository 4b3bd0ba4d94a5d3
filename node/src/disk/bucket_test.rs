//! Buckets: in this process, where they can be made to fail, and on real servers (tests/buckets.py starts them).

use super::bucket::BucketDisk;
use super::mount::Mount;
use super::provider::{BucketOptions, BucketUrl};
use super::{RealDisk, conformance::run};
use async_trait::async_trait;
use bytes::Bytes;
use farshore_core::host::{Disk, random, real::OsEntropy};
use farshore_core::limits::BUCKET_PART_BYTES;
use futures_util::stream::{BoxStream, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use std::collections::BTreeMap;
use std::future::Future;
use std::io::ErrorKind;
use std::sync::{Arc, Mutex};

pub(crate) const ME: &str = "node 1 of cluster 1";

/// What is wrong with a bucket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ill {
    /// It was removed, or another server answers under its name.
    Gone,
    /// The credentials are no longer good.
    Denied,
    /// The server is there and does not answer as it should.
    Busy,
    /// A server of one's own has no room.
    Full,
}

/// A bucket in this process. It counts requests and fails them all while it is ill.
#[derive(Clone, Debug)]
pub(crate) struct Sick {
    store: Arc<InMemory>,
    ill: Arc<Mutex<Option<Ill>>>,
    asked: Arc<Mutex<BTreeMap<&'static str, usize>>>,
}

impl Sick {
    pub(crate) fn new() -> Self {
        Sick { store: Arc::default(), ill: Arc::default(), asked: Arc::default() }
    }
    pub(crate) fn fall(&self, ill: Option<Ill>) {
        *self.ill.lock().unwrap() = ill;
    }
    /// Requests since the last call, by kind.
    pub(crate) fn asked(&self) -> BTreeMap<&'static str, usize> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
    pub(crate) async fn disk(&self) -> BucketDisk {
        let url = "s3://memory/some/prefix".parse().unwrap();
        BucketDisk::claimed(Arc::new(self.clone()), url, ME.into()).await.unwrap()
    }
    fn ask(&self, what: &'static str) -> Result<()> {
        *self.asked.lock().unwrap().entry(what).or_default() += 1;
        let (path, source) = (String::new(), "in a test".into());
        match *self.ill.lock().unwrap() {
            None => Ok(()),
            Some(Ill::Gone) => Err(Error::NotFound { path, source }),
            Some(Ill::Denied) => Err(Error::PermissionDenied { path, source }),
            Some(Ill::Busy) => Err(Error::Generic { store: "test", source: "HTTP error: 503".into() }),
            Some(Ill::Full) => {
                Err(Error::Generic { store: "test", source: "<Code>XMinioStorageFull".into() })
            }
        }
    }
}

impl std::fmt::Display for Sick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a bucket that can fall ill")
    }
}

#[async_trait]
impl ObjectStore for Sick {
    async fn put_opts(&self, at: &Path, payload: PutPayload, how: PutOptions) -> Result<PutResult> {
        self.ask("put")?;
        self.store.put_opts(at, payload, how).await
    }
    async fn put_multipart_opts(
        &self,
        at: &Path,
        how: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.ask("parts")?;
        self.store.put_multipart_opts(at, how).await
    }
    async fn get_opts(&self, at: &Path, how: GetOptions) -> Result<GetResult> {
        self.ask(if how.head { "head" } else { "get" })?;
        self.store.get_opts(at, how).await
    }
    fn delete_stream(&self, at: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.ask("delete") {
            Ok(()) => self.store.delete_stream(at),
            Err(e) => futures_util::stream::iter([Err(e)]).boxed(),
        }
    }
    fn list(&self, below: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.store.list(below)
    }
    async fn list_with_delimiter(&self, below: Option<&Path>) -> Result<ListResult> {
        self.ask("list")?;
        self.store.list_with_delimiter(below).await
    }
    async fn copy_opts(&self, from: &Path, to: &Path, how: CopyOptions) -> Result<()> {
        self.ask("copy")?;
        self.store.copy_opts(from, to, how).await
    }
}

/// The servers that were started for these tests, from a list of `url=endpoint`. There is no test without them.
pub(crate) fn servers() -> Vec<BucketOptions> {
    let list = std::env::var("FARSHORE_TEST_BUCKETS").expect("tests/buckets.py starts servers and runs this");
    let servers: Vec<_> = list.split_whitespace().map(server).collect();
    assert!(!servers.is_empty(), "FARSHORE_TEST_BUCKETS names no server");
    servers
}

fn server(text: &str) -> BucketOptions {
    let (url, endpoint) = text.split_once('=').expect("url=endpoint");
    let endpoint = (!endpoint.is_empty()).then(|| endpoint.to_owned());
    BucketOptions { url: url.parse().unwrap(), endpoint, region: None, allow_http: true }
}

/// Part of a server's bucket that nobody else has used.
pub(crate) fn fresh(server: &BucketOptions) -> BucketOptions {
    let prefix = format!("test/{:016x}", u64::from_le_bytes(random(&OsEntropy)));
    BucketOptions { url: BucketUrl { prefix, ..server.url.clone() }, ..server.clone() }
}

fn shared(disk: impl Disk + 'static) -> Arc<dyn Disk> {
    Arc::new(disk)
}

/// The suite on one bucket, its numbered disks being prefixes or, in memory, buckets.
async fn conforms<F: Future<Output = BucketDisk>>(open: impl Fn(u32) -> F) {
    run(|number| {
        let opened = open(number);
        async { shared(opened.await) }
    })
    .await;
    // Names on both sides of every border that the suite crosses.
    for at in ["final", "d", "dir", "meta", "new/dir"] {
        let own = tempfile::tempdir().unwrap();
        let own = |number: u32| shared(RealDisk::new(own.path().join(number.to_string())));
        run(|number| {
            // Each border has disks of its own.
            let opened = open(number + 100 * (1 + at.len() as u32));
            let own = own(number);
            async move { shared(Mount::new(own, shared(opened.await), at, "tmp")) }
        })
        .await;
    }
}

#[tokio::test]
async fn a_bucket_in_memory_conforms() {
    let buckets = Mutex::new(BTreeMap::<u32, Sick>::new());
    let bucket = |n| buckets.lock().unwrap().entry(n).or_insert_with(Sick::new).clone();
    conforms(|n| {
        let bucket = bucket(n);
        async move { bucket.disk().await }
    })
    .await;
}

#[tokio::test]
#[ignore = "needs servers: tests/buckets.py"]
async fn real_servers_conform() {
    for server in servers() {
        let base = fresh(&server);
        conforms(|n| {
            let mut options = base.clone();
            options.url.prefix += &format!("/{n}");
            async move { BucketDisk::open(&options, ME.into()).await.unwrap() }
        })
        .await;
    }
}

#[tokio::test]
async fn names_stay_below_the_prefix() {
    let disk = Sick::new().disk().await;
    for bad in ["", "/etc/passwd", "..", "a/../b", "./a", "a//b", "a/", "a\0b"] {
        assert_eq!(disk.create(bad).await.err().unwrap().kind(), ErrorKind::InvalidInput, "{bad:?}");
        assert!(disk.read(bad, 0, 1).await.is_err(), "{bad:?}");
        assert!(disk.len(bad).await.is_err(), "{bad:?}");
        assert!(disk.rename("ok", bad).await.is_err(), "{bad:?}");
        assert!(disk.remove(bad).await.is_err(), "{bad:?}");
        assert!(disk.write_slot(bad, 0, b"x").await.is_err(), "{bad:?}");
    }
    assert!(disk.list("..").await.is_err());
    assert!(disk.sync_dir("a/..").await.is_err());
}

async fn owned_by_one(open: impl AsyncFn(&str) -> std::io::Result<BucketDisk>) {
    let (one, two) = tokio::join!(open("node 1 of cluster 1"), open("node 2 of cluster 1"));
    let (won, lost) = match (one, two) {
        (Ok(_), Err(lost)) => ("node 1", lost.to_string()),
        (Err(lost), Ok(_)) => ("node 2", lost.to_string()),
        (one, two) => panic!("{:?} and {:?}", one.err(), two.err()),
    };
    assert!(lost.contains(&format!("belongs to {won} of cluster 1")), "{lost}");
    let disk = open(&format!("{won} of cluster 1")).await.unwrap();
    assert!(open(&format!("{won} of cluster 2")).await.is_err());
    assert_eq!(disk.list("").await.unwrap(), [""; 0], "the owner's note is nobody's file");

    // Whoever removes the note does not make the objects' absence true, nor anybody their owner.
    disk.write_slot("shards/here", 0, b"here").await.unwrap();
    assert_eq!(disk.len("shards/other").await.unwrap(), None);
    disk.remove("owner").await.unwrap();
    assert_eq!(disk.len("shards/other").await.unwrap_err().kind(), ErrorKind::Other);
    let refused = open(&format!("{won} of cluster 1")).await.err().unwrap().to_string();
    assert!(refused.contains("holds `shards/` but no `owner`"), "{refused}");
    let mut note = disk.create("owner").await.unwrap();
    note.append(Bytes::from_static(b"node 3 of cluster 1\n")).await.unwrap();
    note.sync().await.unwrap();
    assert_eq!(disk.len("shards/other").await.unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(disk.len("shards/here").await.unwrap(), Some(4), "what is there is there");
}

#[tokio::test]
async fn a_prefix_belongs_to_one_node() {
    let store = Sick::new();
    let url: BucketUrl = "s3://memory/p".parse().unwrap();
    owned_by_one(async |owner| BucketDisk::claimed(Arc::new(store.clone()), url.clone(), owner.into()).await)
        .await;
}

#[tokio::test]
#[ignore = "needs servers: tests/buckets.py"]
async fn a_prefix_on_a_real_server_belongs_to_one_node() {
    for server in servers() {
        let options = fresh(&server);
        owned_by_one(async |owner| BucketDisk::open(&options, owner.into()).await).await;
    }
}

#[tokio::test]
#[ignore = "needs servers: tests/buckets.py"]
async fn a_bucket_that_is_not_there_is_refused() {
    for server in servers() {
        let mut options = fresh(&server);
        options.url.bucket = "no-such-bucket".into();
        let refused = BucketDisk::open(&options, ME.into()).await.err().unwrap();
        assert_ne!(refused.kind(), ErrorKind::NotFound, "{refused}");
    }
}

#[tokio::test]
async fn a_failure_on_the_way_says_nothing_about_a_file() {
    let store = Sick::new();
    let disk = store.disk().await;
    disk.write_slot("shards/here", 0, b"here").await.unwrap();
    for ill in [Ill::Gone, Ill::Denied, Ill::Busy, Ill::Full] {
        store.fall(Some(ill));
        let all = [
            disk.read("shards/here", 0, 9).await.unwrap_err(),
            disk.open("shards/here", 9).await.unwrap_err(),
            disk.len("shards/here").await.unwrap_err(),
            disk.list("shards").await.unwrap_err(),
            disk.list_sized("shards").await.unwrap_err(),
            disk.remove("shards/here").await.unwrap_err(),
            disk.rename("shards/here", "shards/there").await.unwrap_err(),
            disk.write_slot("shards/here", 0, b"h").await.unwrap_err(),
        ];
        for error in all {
            let kinds = match ill {
                Ill::Gone | Ill::Busy => [ErrorKind::Other; 2],
                Ill::Denied => [ErrorKind::PermissionDenied; 2],
                Ill::Full => [ErrorKind::StorageFull; 2],
            };
            assert!(kinds.contains(&error.kind()), "{ill:?}: {error:?}");
            assert_eq!(error.raw_os_error(), None, "no bad sector");
        }
    }
    store.fall(None);
    assert_eq!(disk.read("shards/here", 0, 9).await.unwrap(), b"here"[..]);
}

/// Larger than a part, in pieces that do not divide it.
async fn large_object(disk: &dyn Disk) {
    let piece = Bytes::from((0..999_983u32).map(|i| (i % 251) as u8).collect::<Vec<_>>());
    let len = BUCKET_PART_BYTES as u64 * 2 + 1_000_000;
    let mut file = disk.create("large").await.unwrap();
    let mut left = len;
    while left > 0 {
        let take = left.min(piece.len() as u64);
        file.append(piece.slice(..take as usize)).await.unwrap();
        left -= take;
    }
    assert_eq!(disk.len("large").await.unwrap(), None, "it appears when it is whole");
    file.sync().await.unwrap();
    assert_eq!(disk.len("large").await.unwrap(), Some(len));
    for at in [0, BUCKET_PART_BYTES as u64 - 7, BUCKET_PART_BYTES as u64 * 2 - 7, len - 10] {
        let bytes = disk.read("large", at, 14).await.unwrap();
        assert_eq!(bytes.len() as u64, 14.min(len - at));
        for (i, byte) in bytes.iter().enumerate() {
            assert_eq!(
                *byte,
                ((at + i as u64) % 999_983 % 251) as u8,
                "byte {} of the object",
                at + i as u64
            );
        }
    }
}

#[tokio::test]
async fn a_large_object_is_put_together_from_parts() {
    let store = Sick::new();
    large_object(&store.disk().await).await;
    assert_eq!(store.asked().get("parts"), Some(&1));
}

#[tokio::test]
#[ignore = "needs servers: tests/buckets.py"]
async fn real_servers_put_large_objects_together_from_parts() {
    for server in servers() {
        // The one server that stands in for Google's does not know their way of parts.
        if !server.url.to_string().starts_with("gs:") {
            large_object(&BucketDisk::open(&fresh(&server), ME.into()).await.unwrap()).await;
        }
    }
}

#[tokio::test]
async fn what_is_being_written_reaches_the_bucket_only_when_it_is_whole() {
    let (own, store) = (tempfile::tempdir().unwrap(), Sick::new());
    let mount =
        Mount::new(shared(RealDisk::new(own.path())), shared(store.disk().await), "shards", "shards/tmp");
    store.asked();
    let mut file = mount.create("shards/tmp/x").await.unwrap();
    file.append(Bytes::from_static(b"whole")).await.unwrap();
    assert_eq!(mount.list("shards/tmp").await.unwrap(), ["x"]);
    mount.create("identity").await.unwrap();
    assert_eq!(store.asked(), BTreeMap::new());
    farshore_core::host::publish(&mount, file, "shards/tmp/x", "shards/ab/x").await.unwrap();
    assert_eq!(store.asked(), BTreeMap::from([("put", 1)]));
    assert_eq!(mount.list_sized("shards/ab").await.unwrap(), [("x".to_owned(), Some(5))]);
    assert!(mount.list("shards/tmp").await.unwrap().is_empty());
    assert!(std::path::Path::new(&own.path().join("identity")).exists());

    // What cannot be uploaded stays what it was: a temp file.
    let mut file = mount.create("shards/tmp/y").await.unwrap();
    file.append(Bytes::from_static(b"whole")).await.unwrap();
    store.fall(Some(Ill::Busy));
    assert!(farshore_core::host::publish(&mount, file, "shards/tmp/y", "shards/ab/y").await.is_err());
    store.fall(None);
    assert_eq!(mount.len("shards/ab/y").await.unwrap(), None);
    assert_eq!(mount.list("shards/tmp").await.unwrap(), ["y"]);
}
