//! Versioning, locks, tags, conditional deletes, and reading while somebody deletes.

use super::*;

const ENABLED: &[u8] = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
const SUSPENDED: &[u8] = b"<VersioningConfiguration><Status>Suspended</Status></VersioningConfiguration>";

async fn assert_sound(world: &World) {
    while !world.core.meta.sweep(SystemClock.now_ms(), 1000).await.unwrap().is_idle() {}
    let report = world.core.meta.check().await.unwrap();
    let findings: Vec<_> = report.findings.iter().map(ToString::to_string).collect();
    assert!(findings.is_empty(), "{findings:#?}");
}

fn version(answer: &Answer) -> String {
    answer.header("x-amz-version-id").to_owned()
}

#[tokio::test]
async fn versions_stay_until_they_are_named() {
    let world = World::with_bucket("bucket").await;
    let client = &world.client;
    client.put("/bucket/k", b"before").await.expect_status(200);
    assert!(!client.get("/bucket?versioning").await.text().contains("<Status>"));
    client.put("/bucket?versioning", ENABLED).await.expect_status(200);
    assert!(client.get("/bucket?versioning").await.text().contains("<Status>Enabled</Status>"));
    let first = version(&client.put("/bucket/k", b"first").await.expect_status(200));
    let second = version(&client.put("/bucket/k", b"second").await.expect_status(200));
    assert_ne!(first, second);
    assert_eq!(client.get("/bucket/k").await.expect_status(200).body, b"second");
    let old = client.get(&format!("/bucket/k?versionId={first}")).await.expect_status(200);
    assert_eq!((old.body.as_slice(), version(&old)), (&b"first"[..], first.clone()));
    assert_eq!(client.get("/bucket/k?versionId=null").await.expect_status(200).body, b"before");
    client.get(&format!("/bucket/k?versionId={}", "0".repeat(48))).await.expect_error(404, "NoSuchVersion");
    client.get("/bucket/k?versionId=nonsense").await.expect_error(400, "InvalidArgument");

    let gone = client.call("DELETE", "/bucket/k", &[], b"").await.expect_status(204);
    assert_eq!(gone.header("x-amz-delete-marker"), "true");
    let marker = version(&gone);
    let missing = client.get("/bucket/k").await.expect_error(404, "NoSuchKey");
    assert_eq!(missing.header("x-amz-delete-marker"), "true");
    client.get(&format!("/bucket/k?versionId={marker}")).await.expect_error(405, "MethodNotAllowed");
    assert!(!client.get("/bucket?list-type=2").await.text().contains("<Key>"));
    let listed = client.get("/bucket?versions").await.expect_status(200).text();
    assert_eq!(
        (listed.matches("<Version>").count(), listed.matches("<DeleteMarker>").count()),
        (3, 1),
        "{listed}"
    );
    client.call("DELETE", "/bucket", &[], b"").await.expect_error(409, "BucketNotEmpty");

    // Without its marker the newest version is the current one again.
    client.call("DELETE", &format!("/bucket/k?versionId={marker}"), &[], b"").await.expect_status(204);
    assert_eq!(client.get("/bucket/k").await.expect_status(200).body, b"second");
    client.call("DELETE", &format!("/bucket/k?versionId={second}"), &[], b"").await.expect_status(204);
    assert_eq!(client.get("/bucket/k").await.expect_status(200).body, b"first");
    assert_sound(&world).await;
    for name in [first.as_str(), "null"] {
        client.call("DELETE", &format!("/bucket/k?versionId={name}"), &[], b"").await.expect_status(204);
    }
    client.get("/bucket/k").await.expect_error(404, "NoSuchKey");
    assert_sound(&world).await;
    client.call("DELETE", "/bucket", &[], b"").await.expect_status(204);
}

#[tokio::test]
async fn suspended_versioning_has_one_null_version() {
    let world = World::with_bucket("bucket").await;
    let client = &world.client;
    client.put("/bucket?versioning", ENABLED).await.expect_status(200);
    let kept = version(&client.put("/bucket/k", b"kept").await.expect_status(200));
    client.put("/bucket?versioning", SUSPENDED).await.expect_status(200);
    for body in [&b"null one"[..], b"null two"] {
        assert_eq!(version(&client.put("/bucket/k", body).await.expect_status(200)), "null");
    }
    assert_eq!(client.get("/bucket/k").await.body, b"null two");
    assert_eq!(client.get(&format!("/bucket/k?versionId={kept}")).await.body, b"kept");
    let gone = client.call("DELETE", "/bucket/k", &[], b"").await.expect_status(204);
    assert_eq!(version(&gone), "null");
    client.get("/bucket/k?versionId=null").await.expect_error(405, "MethodNotAllowed");
    let listed = client.get("/bucket?versions").await.text();
    assert_eq!(
        (listed.matches("<Version>").count(), listed.matches("<DeleteMarker>").count()),
        (1, 1),
        "{listed}"
    );
    client.put("/bucket/k", b"null three").await.expect_status(200);
    let listed = client.get("/bucket?versions").await.text();
    assert_eq!(
        (listed.matches("<Version>").count(), listed.matches("<DeleteMarker>").count()),
        (2, 0),
        "{listed}"
    );
    assert_sound(&world).await;
}

#[tokio::test]
async fn versions_are_listed_page_by_page() {
    let world = World::with_bucket("bucket").await;
    let client = &world.client;
    client.put("/bucket?versioning", ENABLED).await.expect_status(200);
    for key in ["a", "dir/x", "dir/y", "z"] {
        for body in [&b"1"[..], b"2", b"3"] {
            client.put(&format!("/bucket/{key}"), body).await.expect_status(200);
        }
    }
    let whole = client.get("/bucket?versions").await.expect_status(200).text();
    let ids = |text: &str| -> Vec<String> {
        text.split("<VersionId>").skip(1).map(|rest| rest.split('<').next().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&whole).len(), 12);
    assert_eq!(whole.matches("<IsLatest>true</IsLatest>").count(), 4);
    let (mut found, mut marker) = (Vec::new(), String::new());
    loop {
        let page =
            client.get(&format!("/bucket?max-keys=5&versions{marker}")).await.expect_status(200).text();
        found.extend(ids(&page));
        let next = |name: &str| {
            page.split(&format!("<{name}>"))
                .nth(1)
                .map(|rest| rest.split('<').next().unwrap().replace('/', "%2F"))
        };
        match (next("NextKeyMarker"), next("NextVersionIdMarker")) {
            (Some(key), Some(id)) => marker = format!("&key-marker={key}&version-id-marker={id}"),
            _ => break,
        }
    }
    assert_eq!(found, ids(&whole));
    let rolled = client.get("/bucket?delimiter=%2F&versions").await.text();
    assert_eq!((ids(&rolled).len(), rolled.matches("<Prefix>dir/</Prefix>").count()), (6, 1), "{rolled}");
}

#[tokio::test]
async fn deletions_keep_to_their_conditions() {
    let world = World::with_bucket("bucket").await;
    let client = &world.client;
    let tag = client.put("/bucket/k", b"body").await.expect_status(200).header("etag").to_owned();
    let delete = |headers: [(&'static str, String); 1]| {
        let client = client.clone();
        async move { client.call("DELETE", "/bucket/k", &[(headers[0].0, &headers[0].1)], b"").await }
    };
    delete([("if-match", "\"other\"".into())]).await.expect_error(412, "PreconditionFailed");
    let many = |condition: &str| {
        let xml = format!("<Delete><Object><Key>k</Key>{condition}</Object></Delete>");
        let client = client.clone();
        async move { client.call("POST", "/bucket?delete", &[], xml.as_bytes()).await.expect_status(200).text() }
    };
    for condition in [
        "<ETag>other</ETag>",
        "<Size>3</Size>",
        "<LastModifiedTime>Mon, 01 Jan 2001 00:00:00 GMT</LastModifiedTime>",
    ] {
        let said = many(condition).await;
        assert!(said.contains("<Code>PreconditionFailed</Code>"), "{condition}: {said}");
    }
    client.get("/bucket/k").await.expect_status(200);
    let said = many(&format!("<ETag>{}</ETag><Size>4</Size>", tag.trim_matches('"'))).await;
    assert!(said.contains("<Deleted>"), "{said}");
    client.get("/bucket/k").await.expect_error(404, "NoSuchKey");
    delete([("if-match", "*".into())]).await.expect_error(412, "PreconditionFailed");
}

#[tokio::test]
async fn documents_are_held_to_their_digests() {
    let world = World::with_bucket("bucket").await;
    let client = &world.client;
    client.put("/bucket/k", b"body").await.expect_status(200);
    let xml = b"<Delete><Object><Key>k</Key></Object></Delete>";
    for header in [("content-md5", "AAAAAAAAAAAAAAAAAAAAAA=="), ("x-amz-checksum-crc32", "AAAAAA==")] {
        client.call("POST", "/bucket?delete", &[header], xml).await.expect_error(400, "BadDigest");
    }
    client.get("/bucket/k").await.expect_status(200);
    let head = client.signed_head("POST", "/bucket?delete", &[], &"0".repeat(64), xml.len());
    let wrong = client.exchange(&[head.as_bytes(), xml].concat()).await;
    wrong.expect_error(400, "XAmzContentSHA256Mismatch");
    client.get("/bucket/k").await.expect_status(200);
}

#[tokio::test]
async fn tags_are_kept_changed_and_counted() {
    let world = World::with_bucket("bucket").await;
    let client = &world.client;
    client.call("PUT", "/bucket/k", &[("x-amz-tagging", "set=train&epoch=7")], b"x").await.expect_status(200);
    assert_eq!(client.get("/bucket/k").await.header("x-amz-tagging-count"), "2");
    let told = client.get("/bucket/k?tagging").await.expect_status(200).text();
    assert!(told.contains("<Key>epoch</Key><Value>7</Value>"), "{told}");
    let set = b"<Tagging><TagSet><Tag><Key>only</Key><Value>one</Value></Tag></TagSet></Tagging>";
    client.put("/bucket/k?tagging", set).await.expect_status(200);
    assert_eq!(client.get("/bucket/k?tagging").await.text().matches("<Tag>").count(), 1);
    client.call("DELETE", "/bucket/k?tagging", &[], b"").await.expect_status(204);
    assert!(client.get("/bucket/k").await.headers.get("x-amz-tagging-count").is_none());
    let doubled = [("x-amz-tagging", "a=1&a=2")];
    client.call("PUT", "/bucket/k", &doubled, b"y").await.expect_error(400, "InvalidArgument");
    assert_eq!(client.get("/bucket/k").await.body, b"x");
    client.put("/bucket/nothing?tagging", set).await.expect_error(404, "NoSuchKey");
    client.get("/bucket?tagging").await.expect_error(404, "NoSuchTagSet");
    client.put("/bucket?tagging", set).await.expect_status(200);
    assert!(client.get("/bucket?tagging").await.text().contains("<Key>only</Key>"));
}

#[tokio::test]
async fn locked_versions_are_not_deleted() {
    let world = World::new().await;
    let client = &world.client;
    client
        .call("PUT", "/locked", &[("x-amz-bucket-object-lock-enabled", "true")], b"")
        .await
        .expect_status(200);
    client.put("/locked?versioning", SUSPENDED).await.expect_error(409, "InvalidBucketState");
    let until = "2099-01-01T00:00:00Z";
    let lock = |mode: &'static str| {
        [("x-amz-object-lock-mode", mode), ("x-amz-object-lock-retain-until-date", until)]
    };
    let kept = version(&client.call("PUT", "/locked/c", &lock("COMPLIANCE"), b"x").await.expect_status(200));
    let path = format!("/locked/c?versionId={kept}");
    client.call("DELETE", &path, &[], b"").await.expect_error(403, "AccessDenied");
    let bypass = [("x-amz-bypass-governance-retention", "true")];
    client.call("DELETE", &path, &bypass, b"").await.expect_error(403, "AccessDenied");
    // A delete marker hides it and removes nothing.
    client.call("DELETE", "/locked/c", &[], b"").await.expect_status(204);
    let held = client.get(&path).await.expect_status(200);
    assert_eq!(held.header("x-amz-object-lock-mode"), "COMPLIANCE");
    let shorter = b"<Retention><Mode>COMPLIANCE</Mode><RetainUntilDate>2098-01-01T00:00:00Z</RetainUntilDate></Retention>";
    client
        .put(&format!("/locked/c?retention&versionId={kept}"), shorter)
        .await
        .expect_error(403, "AccessDenied");

    let governed =
        version(&client.call("PUT", "/locked/g", &lock("GOVERNANCE"), b"x").await.expect_status(200));
    let path = format!("/locked/g?versionId={governed}");
    client.call("DELETE", &path, &[], b"").await.expect_error(403, "AccessDenied");
    client.call("DELETE", &path, &bypass, b"").await.expect_status(204);

    let free = version(&client.put("/locked/h", b"x").await.expect_status(200));
    client
        .put("/locked/h?legal-hold", b"<LegalHold><Status>ON</Status></LegalHold>")
        .await
        .expect_status(200);
    let path = format!("/locked/h?versionId={free}");
    client.call("DELETE", &path, &bypass, b"").await.expect_error(403, "AccessDenied");
    client
        .put("/locked/h?legal-hold", b"<LegalHold><Status>OFF</Status></LegalHold>")
        .await
        .expect_status(200);
    client.call("DELETE", &path, &[], b"").await.expect_status(204);

    let rule = b"<ObjectLockConfiguration><ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention><Mode>GOVERNANCE</Mode><Days>3</Days></DefaultRetention></Rule></ObjectLockConfiguration>";
    client.put("/locked?object-lock", rule).await.expect_status(200);
    client.put("/locked/d", b"x").await.expect_status(200);
    assert!(client.get("/locked/d?retention").await.text().contains("<Mode>GOVERNANCE</Mode>"));
    client.put("/plain", b"").await.expect_status(200);
    client.call("PUT", "/plain/k", &lock("GOVERNANCE"), b"x").await.expect_error(400, "InvalidRequest");

    // The nodes hear until when they must keep the blocks.
    let node = NodeId(PublicKey([1; 32]));
    let queued = world.core.meta.retention_queue_of(node, 100).await.unwrap();
    let far: Vec<_> = queued.iter().filter(|item| item.until_ms == 4_070_908_800_000).collect();
    assert_eq!(far.len(), 1, "only COMPLIANCE goes to the nodes: {queued:?}");
    let stripe = far[0].stripe;
    assert_eq!(world.core.meta.stripe_retained_until(stripe).await.unwrap(), 4_070_908_800_000);
    world.core.meta.ack_retentions(&queued).await.unwrap();
    assert!(world.core.meta.retention_queue_of(node, 100).await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_being_read_stays_until_it_has_been_read() {
    let world = World::with_bucket("bucket").await;
    let body = body_of(12 << 20);
    world.client.put("/bucket/k", &body).await.expect_status(200);
    let bucket = world.core.meta.bucket("bucket").await.unwrap().unwrap();
    let object = world.core.meta.object(&bucket, "k").await.unwrap().unwrap();
    let mut stream = crate::s3::get::ObjectStream::new(&world.core, &object, 0..object.size);
    drop(object);
    let mut read = stream.next().await.unwrap().unwrap().to_vec();
    world.client.call("DELETE", "/bucket/k", &[], b"").await.expect_status(204);
    world.client.get("/bucket/k").await.expect_error(404, "NoSuchKey");
    while !world.core.meta.sweep(SystemClock.now_ms(), 100).await.unwrap().is_idle() {}
    assert!(world.core.meta.release_queue(None, 10).await.unwrap().is_empty(), "nothing is let go yet");
    while let Some(bytes) = stream.next().await.unwrap() {
        read.extend_from_slice(&bytes);
    }
    assert!(read == body);
    drop(stream);
    assert_sound(&world).await;
    assert!(!world.core.meta.release_queue(None, 10).await.unwrap().is_empty(), "and then it is");
}
