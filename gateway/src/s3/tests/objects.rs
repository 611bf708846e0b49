//! Objects in one PUT.

use super::*;

#[tokio::test]
async fn bytes_come_back_as_they_went_in_and_lie_enciphered() {
    let world = World::with_bucket("private").await;
    for len in [0, 1, 70_000, 1 << 20, (1 << 20) + 1, 5 * (1 << 20) + 17] {
        let body = body_of(len);
        let put = world.client.put(&format!("/private/o{len}"), &body).await.expect_status(200);
        let got = world.client.get(&format!("/private/o{len}")).await.expect_status(200);
        assert!(got.body == body, "{len} bytes differ");
        assert_eq!(got.header("etag"), put.header("etag"));
        assert_eq!(got.header("x-holdfast-cid"), put.header("x-holdfast-cid"));
        assert_eq!(got.header("content-length"), len.to_string());
        assert!(put.header("etag").contains('-'));
    }
    let body = body_of(70_000);
    let blocks = world.plane.blocks.lock();
    assert!(!blocks.contains_key(&Digest::of(&body)), "a private block must not be the bytes themselves");
}

#[tokio::test]
async fn a_public_bucket_keeps_the_bytes_themselves_and_anybody_reads() {
    let world = World::new().await;
    world.client.call("PUT", "/open", &[("x-holdfast-public", "true")], b"").await.expect_status(200);
    let body = body_of(70_000);
    let put = world.client.put("/open/o", &body).await.expect_status(200);
    assert_eq!(put.header("x-holdfast-cid"), Digest::of(&body).raw_cid().to_string());
    let got = world.client.anonymous("GET", "/open/o", &[]).await.expect_status(200);
    assert!(got.body == body);
    world.client.anonymous("GET", "/open?list-type=2", &[]).await.expect_status(200);
    world.client.anonymous("PUT", "/open/p", &[]).await.expect_error(403, "AccessDenied");
    world.client.anonymous("DELETE", "/open/o", &[]).await.expect_error(403, "AccessDenied");
    world.client.put("/closed", b"").await.expect_status(200);
    world.client.anonymous("GET", "/closed/o", &[]).await.expect_error(403, "AccessDenied");
    world.client.anonymous("GET", "/absent/o", &[]).await.expect_error(403, "AccessDenied");
    world.client.anonymous("GET", "/", &[]).await.expect_error(403, "AccessDenied");
}

#[tokio::test]
async fn ranges_are_exact_over_block_borders() {
    let world = World::with_bucket("ranges").await;
    let body = body_of(3 * (1 << 20) + 5);
    world.client.put("/ranges/o", &body).await.expect_status(200);
    let len = body.len();
    for (range, expected) in [
        ("bytes=0-0", 0..1),
        ("bytes=1048570-1048580", 1_048_570..1_048_581),
        ("bytes=100-2200000", 100..2_200_001),
        ("bytes=3145728-", 3_145_728..len),
        ("bytes=-7", len - 7..len),
        ("bytes=5-99999999", 5..len),
    ] {
        let got = world.client.call("GET", "/ranges/o", &[("range", range)], b"").await.expect_status(206);
        assert!(got.body == body[expected.clone()], "{range}");
        assert_eq!(
            got.header("content-range"),
            format!("bytes {}-{}/{len}", expected.start, expected.end - 1)
        );
    }
    let outside = world.client.call("GET", "/ranges/o", &[("range", "bytes=3145733-")], b"").await;
    let outside = outside.expect_error(416, "InvalidRange");
    assert_eq!(outside.header("content-range"), format!("bytes */{len}"));
}

#[tokio::test]
async fn headers_metadata_and_checksums_are_kept() {
    let world = World::with_bucket("kept").await;
    let headers = [
        ("content-type", "image/jpeg"),
        ("cache-control", "max-age=60"),
        ("content-disposition", "inline"),
        ("expires", "Wed, 21 Oct 2026 07:28:00 GMT"),
        ("x-amz-meta-colour", "blue"),
        ("x-amz-checksum-crc32", "y/Q5Jg=="),
    ];
    let put = world.client.call("PUT", "/kept/o", &headers, b"123456789").await.expect_status(200);
    assert_eq!(put.header("x-amz-checksum-crc32"), "y/Q5Jg==");
    let head = world
        .client
        .call("HEAD", "/kept/o", &[("x-amz-checksum-mode", "ENABLED")], b"")
        .await
        .expect_status(200);
    for (name, value) in headers {
        assert_eq!(head.header(name), value);
    }
    assert_eq!(head.header("content-length"), "9");
    assert!(head.body.is_empty());
    let plain = world.client.get("/kept/o").await.expect_status(200);
    assert!(plain.headers.get("x-amz-checksum-crc32").is_none(), "given only when asked for");
    let overridden = world.client.get("/kept/o?response-content-type=text%2Fplain").await.expect_status(200);
    assert_eq!(overridden.header("content-type"), "text/plain");
}

#[tokio::test]
async fn conditions_hold_reads_and_writes_back() {
    let world = World::with_bucket("conditions").await;
    let put = world.client.put("/conditions/o", b"one").await.expect_status(200);
    let tag = put.header("etag").to_owned();
    let call = |method, headers: [(&'static str, String); 1]| {
        let client = world.client.clone();
        async move {
            let headers = [(headers[0].0, headers[0].1.as_str())];
            client.call(method, "/conditions/o", &headers, b"two").await
        }
    };
    call("GET", [("if-match", tag.clone())]).await.expect_status(200);
    call("GET", [("if-match", "\"other\"".into())]).await.expect_error(412, "PreconditionFailed");
    let unchanged = call("GET", [("if-none-match", tag.clone())]).await.expect_status(304);
    assert_eq!(unchanged.header("etag"), tag);
    assert!(unchanged.body.is_empty());
    call("PUT", [("if-none-match", "*".into())]).await.expect_error(412, "PreconditionFailed");
    call("PUT", [("if-match", "\"other\"".into())]).await.expect_error(412, "PreconditionFailed");
    call("PUT", [("if-match", tag.clone())]).await.expect_status(200);
    assert_eq!(world.client.get("/conditions/o").await.body, b"two");
}

#[tokio::test]
async fn deleting_and_listing_show_what_is_there() {
    let world = World::with_bucket("listed").await;
    for key in ["a", "dir/one", "dir/two", "z%20%2B"] {
        world.client.put(&format!("/listed/{key}"), b"x").await.expect_status(200);
    }
    let list = world.client.get("/listed?delimiter=%2F&list-type=2").await.expect_status(200).text();
    assert!(list.contains("<Key>a</Key>") && list.contains("<Prefix>dir/</Prefix>"), "{list}");
    assert!(!list.contains("dir/one"), "{list}");
    let encoded = world.client.get("/listed?encoding-type=url&list-type=2&prefix=z").await.text();
    assert!(encoded.contains("<Key>z%20%2B</Key>"), "{encoded}");
    let page = world.client.get("/listed?list-type=2&max-keys=2").await.text();
    assert!(page.contains("<IsTruncated>true</IsTruncated>") && page.contains("NextContinuationToken"));
    let first = world.client.get("/listed?max-keys=1").await.text();
    assert!(first.contains("<NextMarker>a</NextMarker>"), "{first}");
    let second = world.client.get("/listed?marker=a&max-keys=1").await.text();
    assert!(second.contains("<Key>dir/one</Key>"), "{second}");

    world.client.call("DELETE", "/listed", &[], b"").await.expect_error(409, "BucketNotEmpty");
    let xml = b"<Delete><Object><Key>a</Key></Object><Object><Key>dir/one</Key></Object></Delete>";
    let gone = world.client.call("POST", "/listed?delete", &[], xml).await.expect_status(200).text();
    assert!(gone.contains("<Key>a</Key>") && !gone.contains("<Error>"), "{gone}");
    world.client.call("DELETE", "/listed/dir/two", &[], b"").await.expect_status(204);
    world.client.call("DELETE", "/listed/z%20%2B", &[], b"").await.expect_status(204);
    world.client.call("DELETE", "/listed/never", &[], b"").await.expect_status(204);
    world.client.get("/listed/a").await.expect_error(404, "NoSuchKey");
    world.client.call("DELETE", "/listed", &[], b"").await.expect_status(204);
    world.client.call("HEAD", "/listed", &[], b"").await.expect_status(404);
}

#[tokio::test]
async fn a_copy_has_the_same_bytes_and_carries_the_same() {
    let world = World::with_bucket("copies").await;
    let body = body_of(1_500_000);
    world.client.call("PUT", "/copies/a", &[("x-amz-meta-k", "v")], &body).await.expect_status(200);
    let copied = world.client.call("PUT", "/copies/b", &[("x-amz-copy-source", "/copies/a")], b"").await;
    let copied = copied.expect_status(200);
    let got = world.client.get("/copies/b").await.expect_status(200);
    assert!(got.body == body);
    assert_eq!(got.header("x-amz-meta-k"), "v");
    assert_eq!(got.header("x-holdfast-cid"), copied.header("x-holdfast-cid"));
    // Within a bucket it is made of the same blocks.
    assert_eq!(world.client.get("/copies/a").await.header("x-holdfast-cid"), got.header("x-holdfast-cid"));
}
