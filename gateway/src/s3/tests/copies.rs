//! Copies move no bytes, within a bucket and between buckets that are enciphered alike.

use super::*;

async fn assert_sound(world: &World) {
    while !world.core.meta.sweep(SystemClock.now_ms(), 1000).await.unwrap().is_idle() {}
    let report = world.core.meta.check().await.unwrap();
    let findings: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "{findings:#?}");
}

async fn copy(world: &World, from: &str, to: &str, headers: &[(&str, &str)]) -> Answer {
    let mut all = vec![("x-amz-copy-source", from)];
    all.extend(headers);
    world.client.call("PUT", to, &all, b"").await
}

#[tokio::test]
async fn a_copy_within_a_bucket_shares_its_blocks_and_outlives_its_source() {
    let world = World::with_bucket("bucket").await;
    // One that lists its blocks in its own row, and one with pages.
    for (name, len) in [("small", 3_000_000), ("large", 12 << 20)] {
        let body = body_of(len);
        let (from, to) = (format!("/bucket/{name}"), format!("/bucket/{name}-copy"));
        let put = world.client.put(&from, &body).await.expect_status(200);
        let blocks = world.plane.blocks.lock().len();
        copy(&world, &from, &to, &[]).await.expect_status(200);
        assert_eq!(world.plane.blocks.lock().len(), blocks, "no block was written");
        copy(&world, &to, &format!("{to}-2"), &[]).await.expect_status(200);
        assert_eq!(world.client.get(&to).await.header("etag"), put.header("etag"));
        assert_sound(&world).await;
        world.client.call("DELETE", &from, &[], b"").await.expect_status(204);
        assert!(world.client.get(&to).await.expect_status(200).body == body);
        // Copied over itself, and over what shares its blocks.
        copy(&world, &format!("{to}-2"), &to, &[]).await.expect_status(200);
        assert!(world.client.get(&to).await.expect_status(200).body == body);
        assert_sound(&world).await;
        for path in [to.clone(), format!("{to}-2")] {
            world.client.call("DELETE", &path, &[], b"").await.expect_status(204);
        }
        assert_sound(&world).await;
    }
    let report = world.core.meta.check().await.unwrap();
    assert_eq!((report.objects, report.blocks, report.stripes), (0, 0, 0));
}

#[tokio::test]
async fn a_copy_onto_itself_changes_what_it_carries() {
    let world = World::with_bucket("bucket").await;
    let body = body_of(12 << 20);
    let put = world.client.call("PUT", "/bucket/k", &[("x-amz-meta-a", "1")], &body).await.expect_status(200);
    copy(&world, "/bucket/k", "/bucket/k", &[]).await.expect_error(400, "InvalidRequest");
    let replace = [("x-amz-metadata-directive", "REPLACE"), ("x-amz-meta-b", "2")];
    copy(&world, "/bucket/k", "/bucket/k", &replace).await.expect_status(200);
    let got = world.client.get("/bucket/k").await.expect_status(200);
    assert!(got.body == body && got.headers.get("x-amz-meta-a").is_none());
    assert_eq!((got.header("x-amz-meta-b"), got.header("etag")), ("2", put.header("etag")));
    assert_sound(&world).await;
}

#[tokio::test]
async fn copies_keep_to_conditions_on_both_sides() {
    let world = World::with_bucket("bucket").await;
    let tag = world.client.put("/bucket/a", b"a").await.expect_status(200).header("etag").to_owned();
    world.client.put("/bucket/b", b"b").await.expect_status(200);
    for headers in [
        [("x-amz-copy-source-if-match", "\"other\"")],
        [("x-amz-copy-source-if-none-match", tag.as_str())],
        [("if-none-match", "*")],
        [("if-match", "\"other\"")],
    ] {
        copy(&world, "/bucket/a", "/bucket/b", &headers).await.expect_error(412, "PreconditionFailed");
    }
    assert_eq!(world.client.get("/bucket/b").await.body, b"b");
    copy(&world, "/bucket/a", "/bucket/c", &[("if-none-match", "*")]).await.expect_status(200);
    copy(&world, "/bucket/nothing", "/bucket/c", &[]).await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn versions_can_be_copied_back() {
    let world = World::with_bucket("bucket").await;
    let enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    world.client.put("/bucket?versioning", enabled).await.expect_status(200);
    let first = world.client.put("/bucket/k", b"first").await.header("x-amz-version-id").to_owned();
    world.client.put("/bucket/k", b"second").await.expect_status(200);
    let back =
        copy(&world, &format!("/bucket/k?versionId={first}"), "/bucket/k", &[]).await.expect_status(200);
    assert_eq!(back.header("x-amz-copy-source-version-id"), first);
    assert_eq!(world.client.get("/bucket/k").await.body, b"first");
    assert_sound(&world).await;
}

#[tokio::test]
async fn a_copy_to_another_private_bucket_writes_no_block_and_outlives_its_source() {
    let world = World::with_bucket("bucket").await;
    world.client.put("/other", b"").await.expect_status(200);
    world.client.call("PUT", "/open", &[("x-amz-acl", "public-read")], b"").await.expect_status(200);
    for (name, len) in [("small", 3_000_000), ("large", 12 << 20)] {
        let body = body_of(len);
        let (from, to) = (format!("/bucket/{name}"), format!("/other/{name}"));
        world.client.put(&from, &body).await.expect_status(200);
        let blocks = world.plane.blocks.lock().len();
        copy(&world, &from, &to, &[]).await.expect_status(200);
        assert_eq!(world.plane.blocks.lock().len(), blocks, "no block was written");
        assert_sound(&world).await;
        world.client.call("DELETE", &from, &[], b"").await.expect_status(204);
        assert!(world.client.get(&to).await.expect_status(200).body == body);
        // Back again, and gone for good.
        copy(&world, &to, &from, &[]).await.expect_status(200);
        world.client.call("DELETE", &to, &[], b"").await.expect_status(204);
        assert!(world.client.get(&from).await.expect_status(200).body == body);
        assert_sound(&world).await;
        // Ciphertext is of no use to a public bucket.
        let blocks = world.plane.blocks.lock().len();
        copy(&world, &from, "/open/k", &[]).await.expect_status(200);
        assert!(world.plane.blocks.lock().len() > blocks, "deciphered and stored again");
        for path in [from.as_str(), "/open/k"] {
            world.client.call("DELETE", path, &[], b"").await.expect_status(204);
        }
    }
    assert_sound(&world).await;
    let report = world.core.meta.check().await.unwrap();
    assert_eq!((report.objects, report.blocks, report.stripes), (0, 0, 0));
}
