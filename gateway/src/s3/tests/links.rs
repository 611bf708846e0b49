//! Renames over S3, and snapshots as S3 clients see them.

use super::*;
use crate::snapshot::{self, SnapshotError};

const COPY_SOURCE: &str = "x-amz-copy-source";
const RENAME: (&str, &str) = ("x-holdfast-rename", "true");

#[tokio::test]
async fn a_rename_is_one_step_and_says_that_it_was_no_copy() {
    let world = World::with_bucket("links").await;
    let body = body_of(3 << 20);
    let put = world.client.put("/links/tmp", &body).await.expect_status(200);
    world.client.put("/links/final", b"old").await.expect_status(200);
    let blocks = world.plane.blocks.lock().len();
    let absent = [(COPY_SOURCE, "/links/tmp"), ("if-none-match", "*"), RENAME];
    world.client.call("PUT", "/links/final", &absent, b"").await.expect_error(412, "PreconditionFailed");
    let headers = [(COPY_SOURCE, "/links/tmp"), RENAME];
    let renamed = world.client.call("PUT", "/links/final", &headers, b"").await.expect_status(200);
    assert_eq!(renamed.header("x-holdfast-rename"), "true");
    assert_eq!(renamed.header("x-holdfast-cid"), put.header("x-holdfast-cid"));
    assert_eq!(world.plane.blocks.lock().len(), blocks, "no byte was written");
    let got = world.client.get("/links/final").await.expect_status(200);
    assert!(got.body == body);
    assert_eq!(got.header("etag"), put.header("etag"));
    world.client.get("/links/tmp").await.expect_error(404, "NoSuchKey");
    world.client.call("PUT", "/links/x", &headers, b"").await.expect_error(404, "NoSuchKey");
    world.client.put("/other", b"").await.expect_status(200);
    let across = [(COPY_SOURCE, "/links/final"), RENAME];
    world.client.call("PUT", "/other/x", &across, b"").await.expect_error(400, "InvalidRequest");
}

#[tokio::test]
async fn a_snapshot_is_read_like_a_bucket_and_refuses_every_change() {
    let world = World::with_bucket("links").await;
    let body = body_of(2 << 20);
    world.client.put("/links/v1/a", &body).await.expect_status(200);
    world.client.put("/links/v1/d/", b"").await.expect_status(200);
    world.client.put("/links/v2/other", b"other").await.expect_status(200);
    let create = |name: &str, prefix: &str| {
        snapshot::create(Arc::clone(&world.core), name.to_owned(), "links".to_owned(), prefix.to_owned())
    };
    let row = create("one", "v1/").await.unwrap();
    assert_eq!((row.objects, row.bytes), (2, 2 << 20));
    assert!(matches!(create("one", "v1/").await, Err(SnapshotError::Exists { .. })));
    assert!(matches!(create("two", "none/").await, Err(SnapshotError::Empty { .. })));
    world.client.call("DELETE", "/links/v1/a", &[], b"").await.expect_status(204);
    let path = format!("/{}", row.read_bucket);
    assert!(world.client.get(&format!("{path}/a")).await.expect_status(200).body == body);
    let listed = world.client.get(&format!("{path}?list-type=2")).await.expect_status(200).text();
    assert!(listed.contains("<Key>a</Key>") && !listed.contains("other"), "{listed}");
    assert!(!world.client.get("/").await.expect_status(200).text().contains("cid-"));
    let refused = [
        world.client.put(&format!("{path}/new"), b"x").await,
        world.client.call("DELETE", &format!("{path}/a"), &[], b"").await,
        world.client.call("POST", &format!("{path}/up?uploads"), &[], b"").await,
        world.client.call("PUT", &format!("{path}/copy"), &[(COPY_SOURCE, "/links/v2/other")], b"").await,
        world
            .client
            .call("PUT", &format!("{path}/a2"), &[(COPY_SOURCE, &format!("{path}/a")), RENAME], b"")
            .await,
        world.client.call("DELETE", &path, &[], b"").await,
        world.client.put(&path, b"").await,
    ];
    for answer in refused {
        let text = answer.expect_error(403, "AccessDenied").text();
        assert!(text.contains("snapshot"), "{text}");
    }
    world.client.anonymous("GET", &format!("{path}/a"), &[]).await.expect_error(403, "AccessDenied");
    let copy = [(COPY_SOURCE, format!("{path}/a"))];
    let copy: Vec<_> = copy.iter().map(|(name, value)| (*name, value.as_str())).collect();
    world.client.call("PUT", "/links/back", &copy, b"").await.expect_status(200);
    snapshot::remove(Arc::clone(&world.core), "one".to_owned()).await.unwrap();
    world.client.get(&format!("{path}/a")).await.expect_error(404, "NoSuchBucket");
    assert!(world.core.meta.check().await.unwrap().findings.is_empty());
}

#[tokio::test]
async fn keys_that_make_no_tree_are_refused_and_leave_nothing_behind() {
    let world = World::with_bucket("links").await;
    for key in ["a", "a/b"] {
        world.client.put(&format!("/links/{key}"), b"x").await.expect_status(200);
    }
    let made =
        snapshot::create(Arc::clone(&world.core), "s".to_owned(), "links".to_owned(), String::new()).await;
    assert!(matches!(made, Err(SnapshotError::Tree(_))), "{made:?}");
    assert_eq!(world.core.meta.buckets().await.unwrap().len(), 1);
    assert!(snapshot::list(&world.core).await.unwrap().is_empty());
    assert!(world.core.meta.check().await.unwrap().findings.is_empty());
}
