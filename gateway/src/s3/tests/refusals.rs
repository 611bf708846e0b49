//! Wrong requests: a clear error each, and nothing half-written.

use super::*;

#[tokio::test]
async fn wrong_keys_signatures_and_clocks_are_403_with_their_codes() {
    let world = World::with_bucket("bucket").await;
    let mut client = world.client.clone();
    client.access_key = "NOSUCHKEY".to_owned();
    client.get("/bucket").await.expect_error(403, "InvalidAccessKeyId");
    let mut client = world.client.clone();
    client.secret = "wrong".to_owned();
    client.get("/bucket").await.expect_error(403, "SignatureDoesNotMatch");
    for offset in [-3600, 3600] {
        let mut client = world.client.clone();
        client.clock_offset_s = offset;
        client.get("/bucket").await.expect_error(403, "RequestTimeTooSkewed");
    }
    let v2 = [("authorization", "AWS HOLDTESTKEY:c2lnbmF0dXJl"), ("date", "Mon, 23 Nov 2026 11:00:00 GMT")];
    let refused = world.client.anonymous("GET", "/bucket", &v2).await.expect_error(400, "InvalidRequest");
    assert!(refused.text().contains("Signature Version 2"));
    let query = "/bucket/o?AWSAccessKeyId=HOLDTESTKEY&Expires=9999999999&Signature=c2ln";
    world.client.anonymous("GET", query, &[]).await.expect_error(400, "InvalidRequest");
}

#[tokio::test]
async fn presigned_urls_work_until_they_expire() {
    let world = World::with_bucket("bucket").await;
    world.client.put("/bucket/o", b"held").await.expect_status(200);
    let path = world.client.presigned("/bucket/o", 60);
    assert_eq!(world.client.anonymous("GET", &path, &[]).await.expect_status(200).body, b"held");
    let mut late = world.client.clone();
    late.clock_offset_s = -300;
    let path = late.presigned("/bucket/o", 60);
    world.client.anonymous("GET", &path, &[]).await.expect_error(403, "AccessDenied");
    let forged = world.client.presigned("/bucket/o", 60).replace("/bucket/o", "/bucket/p");
    world.client.anonymous("GET", &forged, &[]).await.expect_error(403, "SignatureDoesNotMatch");
}

#[tokio::test]
async fn unknown_buckets_and_keys_are_404() {
    let world = World::with_bucket("bucket").await;
    world.client.get("/nowhere/o").await.expect_error(404, "NoSuchBucket");
    world.client.put("/nowhere/o", b"x").await.expect_error(404, "NoSuchBucket");
    world.client.get("/nowhere?list-type=2").await.expect_error(404, "NoSuchBucket");
    world.client.get("/bucket/nothing").await.expect_error(404, "NoSuchKey");
    world.client.put("/bucket", b"").await.expect_error(409, "BucketAlreadyOwnedByYou");
}

#[tokio::test]
async fn what_is_not_implemented_says_so() {
    let world = World::with_bucket("bucket").await;
    world.client.put("/bucket/o", b"x").await.expect_status(200);
    for path in ["/bucket?inventory&id=x", "/bucket?analytics&id=x", "/bucket/o?torrent"] {
        world.client.get(path).await.expect_error(501, "NotImplemented");
    }
    let conditional = br#"{"Statement":{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::bucket/*","Condition":{"StringEquals":{"aws:SourceVpc":"x"}}}}"#;
    world.client.put("/bucket?policy", conditional).await.expect_error(501, "NotImplemented");
    let acl = [("x-amz-acl", "public-read-write")];
    world.client.call("PUT", "/other", &acl, b"").await.expect_error(400, "AccessControlListNotSupported");
}

#[tokio::test]
async fn a_body_shorter_than_promised_leaves_nothing() {
    let world = World::with_bucket("bucket").await;
    let head = world.client.signed_head("PUT", "/bucket/short", &[], "UNSIGNED-PAYLOAD", 3_000_000);
    let mut stream = tokio::net::TcpStream::connect(world.client.address).await.unwrap();
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body_of(2_000_000)).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut reply = Vec::new();
    // An IncompleteBody or a closed connection: both tell the client that nothing was stored.
    let _ = stream.read_to_end(&mut reply).await;
    assert!(!reply.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&reply));
    world.client.get("/bucket/short").await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn wrong_checksums_store_nothing() {
    let world = World::with_bucket("bucket").await;
    for (name, value, code) in [
        ("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==", "BadDigest"),
        ("content-md5", "short", "InvalidDigest"),
        ("x-amz-checksum-crc32", "AAAAAA==", "BadDigest"),
        ("x-amz-checksum-sha256", "AAAA", "InvalidRequest"),
    ] {
        world.client.call("PUT", "/bucket/o", &[(name, value)], b"123456789").await.expect_error(400, code);
    }
    world.client.get("/bucket/o").await.expect_error(404, "NoSuchKey");
    assert!(world.plane.blocks.lock().is_empty(), "a small body with a wrong checksum never leaves");
    let right = [("content-md5", "JfnnlDI7RTiF9RgfG2JNCw==")];
    world.client.call("PUT", "/bucket/o", &right, b"123456789").await.expect_status(200);
}

/// An aws-chunked body without chunk signatures and with a checksum trailer: what AWS CLI and boto3 send over TLS,
/// and what our own benchmark sends over HTTP.
fn chunked(chunks: &[&[u8]], trailer: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for chunk in chunks {
        body.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        body.extend_from_slice(chunk);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("0\r\n{trailer}\r\n\r\n").as_bytes());
    body
}

#[tokio::test]
async fn aws_chunked_trailers_are_verified() {
    let world = World::with_bucket("bucket").await;
    let put = |key: &'static str, decoded: &'static str, body: Vec<u8>| {
        let client = world.client.clone();
        async move {
            let headers = [
                ("content-encoding", "aws-chunked"),
                ("x-amz-decoded-content-length", decoded),
                ("x-amz-trailer", "x-amz-checksum-crc32"),
            ];
            let payload = "STREAMING-UNSIGNED-PAYLOAD-TRAILER";
            let path = format!("/bucket/{key}");
            let head = client.signed_head("PUT", &path, &headers, payload, body.len());
            client.exchange(&[head.as_bytes(), &body].concat()).await
        }
    };
    let right = chunked(&[b"1234", b"56789"], "x-amz-checksum-crc32:y/Q5Jg==");
    put("right", "9", right.clone()).await.expect_status(200);
    let got = world.client.call("GET", "/bucket/right", &[("x-amz-checksum-mode", "ENABLED")], b"").await;
    assert_eq!(got.body, b"123456789");
    assert_eq!(got.header("x-amz-checksum-crc32"), "y/Q5Jg==");
    assert!(got.headers.get("content-encoding").is_none());
    let wrong = chunked(&[b"123456789"], "x-amz-checksum-crc32:AAAAAA==");
    put("wrong", "9", wrong).await.expect_error(400, "BadDigest");
    let absent = chunked(&[b"123456789"], "");
    put("absent", "9", absent).await.expect_error(400, "InvalidRequest");
    put("longer", "12", right.clone()).await.expect_error(400, "IncompleteBody");
    put("shorter", "5", right).await.expect_error(400, "InvalidRequest");
    for key in ["wrong", "absent", "longer", "shorter"] {
        world.client.get(&format!("/bucket/{key}")).await.expect_error(404, "NoSuchKey");
    }
}

#[tokio::test]
async fn too_few_nodes_are_503_before_and_after_the_body() {
    let world = World::with_bucket("bucket").await;
    world.plane.unwritable.store(true, Ordering::Relaxed);
    let refused = world.client.put("/bucket/o", b"x").await.expect_error(503, "SlowDown");
    assert_eq!(refused.header("retry-after"), "2");
    world.plane.unwritable.store(false, Ordering::Relaxed);
    world.plane.fails_midway.store(true, Ordering::Relaxed);
    world.client.put("/bucket/o", &body_of(2_000_000)).await.expect_error(503, "SlowDown");
    world.client.get("/bucket/o").await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn a_lost_block_is_an_error_and_never_a_short_answer() {
    let world = World::with_bucket("bucket").await;
    let body = body_of(3 << 20);
    world.client.put("/bucket/o", &body).await.expect_status(200);
    let bucket = world.core.meta.bucket("bucket").await.unwrap().unwrap();
    let object = world.core.meta.object(&bucket, "o").await.unwrap().unwrap();
    let mut manifest = world.core.meta.read(&object, 0..object.size);
    let pieces = manifest.next().await.unwrap().unwrap();
    world.plane.blocks.lock().remove(&pieces[2].digest);
    let cut = world.client.get("/bucket/o").await;
    assert_eq!(cut.header("content-length"), body.len().to_string());
    assert!(cut.body.len() < body.len(), "the connection ends before the announced length");
    world.plane.blocks.lock().remove(&pieces[0].digest);
    let gone = world.client.get("/bucket/o").await;
    assert!(gone.status >= 500, "{}", gone.status);
}

#[tokio::test]
async fn huge_heads_and_garbage_are_answered_and_forgotten() {
    let world = World::with_bucket("bucket").await;
    let long = "x".repeat(80 * 1024);
    let answer = world.client.anonymous("GET", "/bucket", &[("x-long", &long)]).await;
    assert_eq!(answer.status, 431);
    let many: Vec<(String, String)> = (0..150).map(|index| (format!("x-{index}"), "1".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(world.client.anonymous("GET", "/bucket", &many).await.status, 431);
    assert_eq!(world.client.exchange(b"garbage\r\n\r\n").await.status, 400);
    world.client.get("/bucket?list-type=2").await.expect_status(200);
}

#[tokio::test]
async fn a_port_in_use_is_named_with_the_option_to_change_it() {
    let world = World::new().await;
    let error = listen::bind("S3", world.client.address, "--s3-listen").await.unwrap_err().to_string();
    assert!(error.contains(&world.client.address.to_string()) && error.contains("--s3-listen"), "{error}");
}

#[tokio::test]
async fn an_answer_in_place_of_100_continue_ends_the_connection() {
    let world = World::with_bucket("bucket").await;
    let expect = [("expect", "100-continue")];
    let keeps_alive = |head: String| head.replace("connection: close\r\n", "");
    let head = keeps_alive(world.client.signed_head("PUT", "/bucket/empty", &expect, "UNSIGNED-PAYLOAD", 0));
    let empty = world.client.exchange(head.as_bytes()).await.expect_status(200);
    assert_eq!(empty.header("connection"), "close");
    world.plane.unwritable.store(true, Ordering::Relaxed);
    let head = world.client.signed_head("PUT", "/bucket/o", &expect, "UNSIGNED-PAYLOAD", 1_000_000);
    let head = keeps_alive(head);
    let refused = world.client.exchange(head.as_bytes()).await.expect_error(503, "SlowDown");
    assert_eq!(refused.header("connection"), "close", "and the body was never asked for");
}
