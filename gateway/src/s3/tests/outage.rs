//! Metadata that cannot be reached: every operation says so, none says that something is not there or was done.

use super::*;
use crate::keys::Operation;
use crate::meta::store::Row;
use crate::meta::{StoreError, TransactError, Transaction};

/// What a database says of itself, which is nobody's business but its operator's.
const DETAIL: &str = "FATAL: role of db7.internal";

/// A store that can be taken away.
struct Severed {
    inner: Arc<dyn MetaStore>,
    is_away: Arc<AtomicBool>,
}

impl Severed {
    fn reach(&self) -> Result<&dyn MetaStore, StoreError> {
        if self.is_away.load(Ordering::Relaxed) {
            return Err(StoreError::Backend {
                operation: "connect",
                detail: DETAIL.to_owned(),
                retryable: true,
            });
        }
        Ok(&*self.inner)
    }
}

#[async_trait]
impl MetaStore for Severed {
    async fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.reach()?.get(key).await
    }

    async fn get_many(&self, keys: &[Vec<u8>]) -> Result<Vec<Option<Bytes>>, StoreError> {
        self.reach()?.get_many(keys).await
    }

    async fn page(&self, start: &[u8], end: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        self.reach()?.page(start, end, limit).await
    }

    async fn transact(&self, transaction: Transaction) -> Result<(), TransactError> {
        self.reach()?.transact(transaction).await
    }

    async fn close(&self) -> Result<(), StoreError> {
        self.inner.close().await
    }
}

type Call = (&'static str, String, client::Headers<'static>, &'static str);

/// One call of each operation, against what there is.
fn calls(upload_id: &str) -> Vec<Call> {
    const COMPLETE: &str = "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part>\
                            </CompleteMultipartUpload>";
    const TAGS: &str = "<Tagging><TagSet><Tag><Key>a</Key><Value>b</Value></Tag></TagSet></Tagging>";
    const VERSIONING: &str = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    const BATCH: &str = "<Delete><Object><Key>a</Key></Object></Delete>";
    const SOURCE: client::Headers<'_> = &[("x-amz-copy-source", "/data/a")];
    const WANTED: client::Headers<'_> = &[("x-amz-object-attributes", "ETag")];
    let upload = format!("/data/up?uploadId={upload_id}");
    let part = format!("/data/up?partNumber=1&uploadId={upload_id}");
    let plain = [
        ("GET", "/", ""),
        ("GET", "/data?list-type=2", ""),
        ("GET", "/data", ""),
        ("GET", "/data?versions", ""),
        ("GET", "/data?uploads", ""),
        ("HEAD", "/data", ""),
        ("PUT", "/new", ""),
        ("DELETE", "/data", ""),
        ("GET", "/data?location", ""),
        ("GET", "/data?versioning", ""),
        ("PUT", "/data?versioning", VERSIONING),
        ("GET", "/data?policy", ""),
        ("DELETE", "/data?policy", ""),
        ("GET", "/data?cors", ""),
        ("GET", "/data?lifecycle", ""),
        ("GET", "/data?tagging", ""),
        ("PUT", "/data?tagging", TAGS),
        ("GET", "/data?acl", ""),
        ("GET", "/data/a", ""),
        ("HEAD", "/data/a", ""),
        ("GET", "/data/missing", ""),
        ("PUT", "/data/a", "other"),
        ("PUT", "/data/empty", ""),
        ("DELETE", "/data/a", ""),
        ("POST", "/data?delete", BATCH),
        ("GET", "/data/a?tagging", ""),
        ("PUT", "/data/a?tagging", TAGS),
        ("DELETE", "/data/a?tagging", ""),
        ("GET", "/data/a?acl", ""),
        ("POST", "/data/new?uploads", ""),
        ("PUT", &part, "part"),
        ("GET", &upload, ""),
        ("POST", &upload, COMPLETE),
        ("DELETE", &upload, ""),
    ];
    let mut calls: Vec<Call> =
        plain.into_iter().map(|(method, path, body)| (method, path.to_owned(), &[][..], body)).collect();
    calls.push(("PUT", "/data/copy".to_owned(), SOURCE, ""));
    calls.push(("PUT", part, SOURCE, ""));
    calls.push(("GET", "/data/a?attributes".to_owned(), WANTED, ""));
    calls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_metadata_every_operation_is_503_and_goes_on_afterwards() {
    let is_away = Arc::new(AtomicBool::new(false));
    let away = Arc::clone(&is_away);
    let world = World::over(|_| {}, |inner| Arc::new(Severed { inner, is_away: away }) as _).await;
    let owner = &world.client;
    owner.call("PUT", "/data", &[("x-amz-acl", "public-read")], b"").await.expect_status(200);
    owner.put("/data/a", b"bytes").await.expect_status(200);
    let created = owner.call("POST", "/data/up?uploads", &[], b"").await.expect_status(200).text();
    let id = created.split_once("<UploadId>").unwrap().1.split('<').next().unwrap().to_owned();
    let tenant = world.tenant("tenant", tenants::rules("data", "", &Operation::ALL)).await;
    let calls = calls(&id);
    is_away.store(true, Ordering::Relaxed);
    for client in [owner, &tenant] {
        for (method, path, headers, body) in &calls {
            let answer = client.call(method, path, headers, body.as_bytes()).await;
            assert_unreachable(&format!("{method} {path}"), &answer);
        }
    }
    for (method, path) in [("GET", "/data/a"), ("HEAD", "/data/a"), ("GET", "/data?list-type=2")] {
        assert_unreachable(&format!("anonymous {method} {path}"), &owner.anonymous(method, path, &[]).await);
    }
    let preflight = [("origin", "http://a"), ("access-control-request-method", "GET")];
    assert_unreachable("OPTIONS", &owner.anonymous("OPTIONS", "/data/a", &preflight).await);

    is_away.store(false, Ordering::Relaxed);
    assert_eq!(owner.get("/data/a").await.expect_status(200).body, b"bytes");
    owner.get("/data/empty").await.expect_error(404, "NoSuchKey");
    owner.get("/data/copy").await.expect_error(404, "NoSuchKey");
    tenant.put("/data/b", b"after").await.expect_status(200);
}

#[track_caller]
fn assert_unreachable(what: &str, answer: &Answer) {
    let text = answer.text();
    assert_eq!(answer.status, 503, "{what}: {text}");
    assert!(!text.contains(DETAIL) && !text.contains("db7"), "{what} says too much: {text}");
}
