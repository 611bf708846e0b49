//! What keeps locks, memory and policies from those who have no right to them.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::tenants::rules;
use super::*;
use crate::keys::Operation;

const LOCKED: &str = "/locked/k";

async fn locked_world() -> (World, String) {
    let world = World::new().await;
    let lock = [("x-amz-bucket-object-lock-enabled", "true")];
    world.client.call("PUT", "/locked", &lock, b"").await.expect_status(200);
    let retained = [
        ("x-amz-object-lock-mode", "GOVERNANCE"),
        ("x-amz-object-lock-retain-until-date", "2097-01-01T00:00:00Z"),
    ];
    let put = world.client.call("PUT", LOCKED, &retained, b"kept").await.expect_status(200);
    let version = put.header("x-amz-version-id").to_owned();
    (world, version)
}

#[tokio::test]
async fn governance_is_passed_by_whoever_manages_the_bucket_and_by_nobody_else() {
    use Operation::{Delete, List, Manage, Read, Write};
    let (world, version) = locked_world().await;
    let path = format!("{LOCKED}?versionId={version}");
    let bypass = [("x-amz-bypass-governance-retention", "true")];
    let deleter = world.tenant("deleter", rules("locked", "", &[Read, List, Write, Delete])).await;
    deleter.call("DELETE", &path, &[], b"").await.expect_error(403, "AccessDenied");
    deleter.call("DELETE", &path, &bypass, b"").await.expect_error(403, "AccessDenied");
    let many = format!("<Delete><Object><Key>k</Key><VersionId>{version}</VersionId></Object></Delete>");
    deleter.call("POST", "/locked?delete", &bypass, many.as_bytes()).await.expect_error(403, "AccessDenied");
    let shorter = b"<Retention><Mode>GOVERNANCE</Mode><RetainUntilDate>2096-01-01T00:00:00Z</RetainUntilDate></Retention>";
    let retention = format!("{LOCKED}?retention=&versionId={version}");
    deleter.call("PUT", &retention, &bypass, shorter).await.expect_error(403, "AccessDenied");
    assert_eq!(world.client.get(&path).await.expect_status(200).body, b"kept");
    // A policy takes the right from a manager, too.
    let manager = world.tenant("manager", rules("locked", "", &[Read, List, Write, Delete, Manage])).await;
    let policy = format!(
        r#"{{"Statement":{{"Effect":"Deny","Principal":{{"AWS":"{}"}},"Action":"s3:BypassGovernanceRetention","Resource":"arn:aws:s3:::locked/*"}}}}"#,
        manager.access_key
    );
    world.client.put("/locked?policy", policy.as_bytes()).await.expect_status(204);
    manager.call("DELETE", &path, &bypass, b"").await.expect_error(403, "AccessDenied");
    world.client.call("DELETE", "/locked?policy", &[], b"").await.expect_status(204);
    manager.call("PUT", &retention, &bypass, shorter).await.expect_status(200);
    manager.call("DELETE", &path, &bypass, b"").await.expect_status(204);
}

/// Strangers announce forms that would take all of the forms' memory, and send only so much that it is not known yet whose
/// they are. A form that is signed finds its memory all the same.
#[tokio::test]
async fn forms_that_nobody_signed_hold_no_memory() {
    let world = World::with_bucket("bucket").await;
    let mut hanging = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(world.client.address).await.unwrap();
        let head = format!(
            "POST /bucket HTTP/1.1\r\nhost: {}\r\ncontent-type: multipart/form-data; boundary=edge\r\ncontent-length: {}\r\n\r\n--edge\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\nk\r\n{}",
            world.client.address,
            60 << 20,
            "-".repeat(5000),
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        hanging.push(stream);
    }
    let unsigned = "--edge\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\nk\r\n--edge\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\n";
    let request = format!(
        "POST /bucket HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: multipart/form-data; boundary=edge\r\ncontent-length: {}\r\n\r\n{unsigned}{}",
        world.client.address,
        unsigned.len() + (1 << 20),
        "x".repeat(1 << 20),
    );
    world.client.exchange(request.as_bytes()).await.expect_error(403, "AccessDenied");
    let body = super::browser::signed_form("form", "from a form");
    super::browser::post(&world, &body).await.expect_status(204);
    assert_eq!(world.client.get("/bucket/form").await.expect_status(200).body, b"from a form");
    // Fields without an end are refused, however many bytes were announced.
    let endless =
        format!("--edge\r\nContent-Disposition: form-data; name=\"key\"\r\n\r\n{}", "y".repeat(1 << 20));
    super::browser::post(&world, &endless).await.expect_error(400, "MaxPostPreDataLengthExceeded");
    drop(hanging);
}

#[tokio::test]
async fn a_public_access_block_closes_what_a_policy_opened() {
    let world = World::with_bucket("bucket").await;
    world.client.put("/bucket/k", b"x").await.expect_status(200);
    let policy = br#"{"Statement":{"Effect":"Allow","Principal":"*","Action":"s3:GetObject","Resource":"arn:aws:s3:::bucket/*"}}"#;
    world.client.put("/bucket?policy", policy).await.expect_status(204);
    world.client.anonymous("GET", "/bucket/k", &[]).await.expect_status(200);
    let block = b"<PublicAccessBlockConfiguration><RestrictPublicBuckets>true</RestrictPublicBuckets></PublicAccessBlockConfiguration>";
    world.client.put("/bucket?publicAccessBlock", block).await.expect_status(200);
    world.client.anonymous("GET", "/bucket/k", &[]).await.expect_error(403, "AccessDenied");
    world.client.call("DELETE", "/bucket?publicAccessBlock", &[], b"").await.expect_status(204);
    world.client.anonymous("GET", "/bucket/k", &[]).await.expect_status(200);
    // What is plain at the nodes cannot be closed.
    world.client.call("PUT", "/open", &[("x-amz-acl", "public-read")], b"").await.expect_status(200);
    world.client.put("/open?publicAccessBlock", block).await.expect_error(400, "InvalidRequest");
}
