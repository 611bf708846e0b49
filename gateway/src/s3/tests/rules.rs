//! Policies, lifecycle rules, host names.

use super::*;

const DAY_MS: u64 = 24 * 3600 * 1000;

#[tokio::test]
async fn a_policy_opens_to_anybody_what_it_names_and_closes_to_keys_what_it_denies() {
    let world = World::with_bucket("bucket").await;
    let client = &world.client;
    client.put("/bucket/open/a", b"a").await.expect_status(200);
    client.put("/bucket/closed/b", b"b").await.expect_status(200);
    client.anonymous("GET", "/bucket/open/a", &[]).await.expect_error(403, "AccessDenied");
    let policy = br#"{"Version":"2012-10-17","Statement":[
        {"Effect":"Allow","Principal":"*","Action":["s3:GetObject","s3:ListBucket"],
         "Resource":["arn:aws:s3:::bucket/open/*","arn:aws:s3:::bucket"]},
        {"Effect":"Deny","Principal":{"AWS":"HOLDTESTKEY"},"Action":"s3:DeleteObject",
         "Resource":"arn:aws:s3:::bucket/closed/*"}]}"#;
    client.get("/bucket?policy").await.expect_error(404, "NoSuchBucketPolicy");
    client.put("/bucket?policy", policy).await.expect_status(204);
    assert_eq!(client.get("/bucket?policy").await.expect_status(200).body, policy);
    assert_eq!(client.anonymous("GET", "/bucket/open/a", &[]).await.expect_status(200).body, b"a");
    client.anonymous("HEAD", "/bucket/open/a", &[]).await.expect_status(200);
    client.anonymous("GET", "/bucket?list-type=2", &[]).await.expect_status(200);
    for (method, path) in [
        ("GET", "/bucket/closed/b"),
        ("PUT", "/bucket/open/a"),
        ("DELETE", "/bucket/open/a"),
        ("GET", "/bucket?policy"),
        ("GET", "/bucket?versions"),
    ] {
        client.anonymous(method, path, &[]).await.expect_error(403, "AccessDenied");
    }
    client.call("DELETE", "/bucket/closed/b", &[], b"").await.expect_error(403, "AccessDenied");
    let many = b"<Delete><Object><Key>closed/b</Key></Object><Object><Key>open/a</Key></Object></Delete>";
    let said = client.call("POST", "/bucket?delete", &[], many).await.expect_status(200).text();
    assert!(said.contains("<Code>AccessDenied</Code>") && said.contains("<Deleted><Key>open/a"), "{said}");
    client.put("/bucket?policy", b"{").await.expect_error(400, "MalformedPolicy");
    client.call("DELETE", "/bucket?policy", &[], b"").await.expect_status(204);
    client.call("DELETE", "/bucket/closed/b", &[], b"").await.expect_status(204);
}

#[tokio::test]
async fn lifecycle_rules_delete_what_is_due_and_nothing_else() {
    let world = World::with_bucket("bucket").await;
    let client = &world.client;
    for key in ["logs/old", "kept/old"] {
        client.put(&format!("/bucket/{key}"), b"x").await.expect_status(200);
    }
    client
        .call("PUT", "/bucket/logs/tagged", &[("x-amz-tagging", "keep=yes")], b"x")
        .await
        .expect_status(200);
    client.call("POST", "/bucket/logs/upload?uploads", &[], b"").await.expect_status(200);
    client.get("/bucket?lifecycle").await.expect_error(404, "NoSuchLifecycleConfiguration");
    let rules = b"<LifecycleConfiguration>
        <Rule><ID>a</ID><Status>Enabled</Status><Filter><And><Prefix>logs/</Prefix><Tag><Key>keep</Key><Value>no</Value></Tag></And></Filter><Expiration><Days>1</Days></Expiration></Rule>
        <Rule><ID>b</ID><Status>Enabled</Status><Filter><Prefix>logs/o</Prefix></Filter><Expiration><Days>10</Days></Expiration></Rule>
        <Rule><ID>c</ID><Status>Enabled</Status><Filter><Prefix></Prefix></Filter><AbortIncompleteMultipartUpload><DaysAfterInitiation>5</DaysAfterInitiation></AbortIncompleteMultipartUpload></Rule>
        </LifecycleConfiguration>";
    client.put("/bucket?lifecycle", rules).await.expect_status(200);
    let shown = client.get("/bucket?lifecycle").await.expect_status(200).text();
    assert!(shown.contains("<ID>b</ID>") && shown.contains("<Days>10</Days>"), "{shown}");
    let now = SystemClock.now_ms();
    let nothing = crate::s3::lifecycle::run(&world.core, now + 4 * DAY_MS).await.unwrap();
    assert_eq!(nothing, crate::s3::lifecycle::Expired::default());
    let done = crate::s3::lifecycle::run(&world.core, now + 11 * DAY_MS).await.unwrap();
    assert_eq!((done.versions, done.uploads), (1, 1));
    client.get("/bucket/logs/old").await.expect_error(404, "NoSuchKey");
    client.get("/bucket/logs/tagged").await.expect_status(200);
    client.get("/bucket/kept/old").await.expect_status(200);
    let transition = b"<LifecycleConfiguration><Rule><Status>Enabled</Status><Filter/><Transition><Days>1</Days><StorageClass>GLACIER</StorageClass></Transition></Rule></LifecycleConfiguration>";
    client.put("/bucket?lifecycle", transition).await.expect_error(501, "NotImplemented");
}

#[tokio::test]
async fn old_versions_and_lonely_markers_expire() {
    let world = World::with_bucket("bucket").await;
    let client = &world.client;
    let enabled = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
    client.put("/bucket?versioning", enabled).await.expect_status(200);
    for body in [&b"1"[..], b"2", b"3"] {
        client.put("/bucket/k", body).await.expect_status(200);
    }
    client.put("/bucket/gone", b"x").await.expect_status(200);
    client.call("DELETE", "/bucket/gone", &[], b"").await.expect_status(204);
    let rules = b"<LifecycleConfiguration><Rule><ID>a</ID><Status>Enabled</Status><Filter/>
        <Expiration><ExpiredObjectDeleteMarker>true</ExpiredObjectDeleteMarker></Expiration>
        <NoncurrentVersionExpiration><NoncurrentDays>1</NoncurrentDays></NoncurrentVersionExpiration></Rule></LifecycleConfiguration>";
    client.put("/bucket?lifecycle", rules).await.expect_status(200);
    let later = SystemClock.now_ms() + 2 * DAY_MS;
    assert_eq!(crate::s3::lifecycle::run(&world.core, later).await.unwrap().versions, 3);
    // Only now the marker stands alone.
    assert_eq!(crate::s3::lifecycle::run(&world.core, later).await.unwrap().versions, 1);
    let listed = client.get("/bucket?versions").await.text();
    assert_eq!(
        (listed.matches("<Version>").count(), listed.matches("<DeleteMarker>").count()),
        (1, 0),
        "{listed}"
    );
    assert_eq!(client.get("/bucket/k").await.body, b"3");
}

#[tokio::test]
async fn buckets_can_be_host_names() {
    let world = World::with_bucket("bucket").await;
    world.client.put("/bucket/dir/k", b"by path").await.expect_status(200);
    let policy = br#"{"Statement":{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::bucket/*"}}"#;
    world.client.put("/bucket?policy", policy).await.expect_status(204);
    let get = |host: &str| {
        let request = format!("GET /dir/k HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        let client = world.client.clone();
        async move { client.exchange(request.as_bytes()).await }
    };
    assert_eq!(get("bucket.localhost:9000").await.expect_status(200).body, b"by path");
    get("other.localhost").await.expect_error(403, "AccessDenied");
    get("localhost").await.expect_error(403, "AccessDenied");
}
