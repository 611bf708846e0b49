//! Who may make, see, read and remove snapshots over S3, and what they keep.

use super::tenants::rules;
use super::*;
use crate::keys::Operation;
use crate::web::api::{SnapshotList, SnapshotRow};

const HOLDER: &str = "z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK";
const ENABLED: &[u8] =
    b"<VersioningConfiguration xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Status>Enabled</Status></VersioningConfiguration>";

fn create(name: &str, prefix: &str) -> String {
    format!("/?bucket=data&holdfast-snapshot={name}&prefix={}", prefix.replace('/', "%2F"))
}

fn named(name: &str) -> String {
    format!("/?holdfast-snapshot={name}")
}

async fn list(client: &Client) -> Vec<SnapshotRow> {
    let answer = client.get(&named("")).await.expect_status(200);
    serde_json::from_slice::<SnapshotList>(&answer.body).unwrap().snapshots
}

#[tokio::test]
async fn a_snapshot_takes_the_rights_of_the_bucket_and_no_more() {
    let world = World::with_bucket("data").await;
    world.client.put("/data/v1/a", b"one").await.expect_status(200);
    world.client.put("/data/v2/b", b"two").await.expect_status(200);
    let all = [Operation::Read, Operation::List, Operation::Write, Operation::Delete];
    let trainer = world.tenant("trainer", rules("data", "v1/", &all)).await;
    let reader = world.tenant("reader", rules("data", "v1/", &all[..2])).await;
    let other = world.tenant("other", rules("elsewhere", "", &Operation::ALL)).await;
    for client in [&reader, &other] {
        client.put(&create("one", "v1/"), b"").await.expect_error(403, "AccessDenied");
    }
    trainer.put(&create("all", ""), b"").await.expect_error(403, "AccessDenied");
    world.client.anonymous("PUT", &create("one", "v1/"), &[]).await.expect_error(403, "AccessDenied");
    let made = trainer.put(&create("one", "v1/"), b"").await.expect_status(201);
    let row: SnapshotRow = serde_json::from_slice(&made.body).unwrap();
    assert_eq!((row.objects, row.bytes, &*row.bucket, &*row.prefix), (1, 3, "data", "v1/"));
    trainer.put(&create("one", "v1/"), b"").await.expect_error(409, "SnapshotExists");
    trainer.put(&create("no~name", "v1/"), b"").await.expect_error(400, "InvalidArgument");
    world.client.put(&create("two", "v9/"), b"").await.expect_error(404, "NoSuchSnapshot");

    assert_eq!((list(&trainer).await.len(), list(&reader).await.len(), list(&other).await.len()), (1, 1, 0));
    world.client.anonymous("GET", &named(""), &[]).await.expect_error(403, "AccessDenied");
    let path = format!("/{}", row.read_bucket);
    let ticket = format!("{path}/a?holdfast-ticket=1&holder={HOLDER}&offset=0");
    for client in [&trainer, &reader] {
        assert_eq!(client.get(&format!("{path}/a")).await.expect_status(200).body, b"one"[..]);
        assert!(
            client.get(&format!("{path}?list-type=2")).await.expect_status(200).text().contains("<Key>a<")
        );
        client.get(&ticket).await.expect_status(200);
    }
    let v2 = world.tenant("v2", rules("data", "v2/", &all)).await;
    for client in [&other, &v2] {
        for path in [format!("{path}/a"), format!("{path}?list-type=2"), ticket.clone()] {
            client.get(&path).await.expect_error(403, "AccessDenied");
        }
        client.call("DELETE", &named("one"), &[], b"").await.expect_error(403, "AccessDenied");
        client.call("DELETE", &named("none"), &[], b"").await.expect_error(403, "AccessDenied");
    }
    trainer.put(&format!("{path}/new"), b"x").await.expect_error(403, "AccessDenied");
    reader.call("DELETE", &named("one"), &[], b"").await.expect_error(403, "AccessDenied");
    trainer.call("DELETE", &named("one"), &[], b"").await.expect_status(204);
    assert!(list(&world.client).await.is_empty());
    world.client.call("DELETE", &named("one"), &[], b"").await.expect_error(404, "NoSuchSnapshot");
    world.client.get(&format!("{path}/a")).await.expect_error(404, "NoSuchBucket");
    assert!(world.core.meta.check().await.unwrap().findings.is_empty());
}

/// Overwritten, deleted version by version, the bucket removed: what was pinned is there, for those who could read it.
#[tokio::test]
async fn what_a_snapshot_pins_outlives_versions_and_the_bucket() {
    let world = World::with_bucket("data").await;
    world.client.put("/data?versioning", ENABLED).await.expect_status(200);
    let body = body_of(3 << 20);
    let put = world.client.put("/data/a", &body).await.expect_status(200);
    let made = world.client.put(&create("one", ""), b"").await.expect_status(201);
    let row: SnapshotRow = serde_json::from_slice(&made.body).unwrap();
    let path = format!("/{}/a", row.read_bucket);
    let second = world.client.put("/data/a", b"other").await.expect_status(200);
    let marker = world.client.call("DELETE", "/data/a", &[], b"").await.expect_status(204);
    for version in [&put, &second, &marker].map(|answer| answer.header("x-amz-version-id")) {
        let gone = format!("/data/a?versionId={version}");
        world.client.call("DELETE", &gone, &[], b"").await.expect_status(204);
        assert!(world.client.get(&path).await.expect_status(200).body == body);
    }
    world.client.call("DELETE", "/data", &[], b"").await.expect_status(204);
    let reader = world.tenant("reader", rules("data", "", &[Operation::Read])).await;
    assert!(reader.get(&path).await.expect_status(200).body == body);
    assert!(world.core.meta.check().await.unwrap().findings.is_empty());
}
