//! Two tenants on one gateway cannot see, guess or slow each other.

use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::*;
use crate::keys::{Grant, Operation, Rules};

pub(super) fn rules(bucket: &str, prefix: &str, operations: &[Operation]) -> Rules {
    let grant =
        Grant { bucket: bucket.to_owned(), prefix: prefix.to_owned(), operations: operations.to_vec() };
    Rules { grants: vec![grant], ..Rules::default() }
}

impl World {
    /// A client of a person with these rules.
    pub(super) async fn tenant(&self, person: &str, rules: Rules) -> Client {
        let key = self.core.access_keys.create(person, rules, 1).await.unwrap();
        Client::new(self.client.address, key.id(), &key.credentials.secret_key)
    }
}

async fn two_tenants() -> (World, Client, Client) {
    let world = World::new().await;
    let alice = world.tenant("alice", rules("alice-*", "", &Operation::ALL)).await;
    let bob = world.tenant("bob", rules("bob-*", "", &Operation::ALL)).await;
    alice.put("/alice-data", b"").await.expect_status(200);
    alice.put("/alice-data/secret.txt", b"hers").await.expect_status(200);
    bob.put("/bob-data", b"").await.expect_status(200);
    bob.put("/bob-data/own.txt", b"his").await.expect_status(200);
    (world, alice, bob)
}

#[tokio::test]
async fn a_tenant_sees_its_own_buckets_and_the_owner_all() {
    let (world, alice, bob) = two_tenants().await;
    let names = |answer: Answer| {
        let text = answer.expect_status(200).text();
        ["alice-data", "bob-data"].map(|name| text.contains(name))
    };
    assert_eq!(names(alice.get("/").await), [true, false]);
    assert_eq!(names(bob.get("/").await), [false, true]);
    assert_eq!(names(world.client.get("/").await), [true, true]);
    assert_eq!(bob.get("/bob-data/own.txt").await.expect_status(200).body, b"his");
}

#[tokio::test]
async fn a_tenant_cannot_tell_what_exists_from_what_does_not() {
    let (_world, _alice, bob) = two_tenants().await;
    for (method, query, body) in [
        ("GET", "/secret.txt", ""),
        ("HEAD", "/secret.txt", ""),
        ("PUT", "/secret.txt", "overwritten"),
        ("DELETE", "/secret.txt", ""),
        ("GET", "", ""),
        ("GET", "?list-type=2", ""),
        ("HEAD", "", ""),
        ("PUT", "", ""),
        ("DELETE", "", ""),
        ("GET", "?uploads", ""),
        ("GET", "?location", ""),
        ("POST", "/secret.txt?uploads", ""),
        ("PUT", "/copy?partNumber=1&uploadId=00000000000000000000000000000000", "x"),
        ("POST", "?delete", "<Delete><Object><Key>secret.txt</Key></Object></Delete>"),
    ] {
        let mut answers = Vec::new();
        for bucket in ["alice-data", "alice-none"] {
            let path = format!("/{bucket}{query}");
            let answer = bob.call(method, &path, &[], body.as_bytes()).await;
            assert_eq!(answer.status, 403, "{method} {path}: {}", answer.text());
            let text = answer.text().replace(bucket, "BUCKET");
            // Ids of requests differ from request to request.
            answers.push(text.split("<RequestId>").next().unwrap_or_default().to_owned());
        }
        assert_eq!(answers[0], answers[1], "{method} {query}");
    }
}

#[tokio::test]
async fn a_tenant_reads_nothing_through_a_copy_a_listing_or_a_batch() {
    let (_world, alice, bob) = two_tenants().await;
    let source = ("x-amz-copy-source", "/alice-data/secret.txt");
    bob.call("PUT", "/bob-data/stolen", &[source], b"").await.expect_error(403, "AccessDenied");
    let upload = bob.call("POST", "/bob-data/stolen?uploads", &[], b"").await.expect_status(200).text();
    let (_, id) = upload.split_once("<UploadId>").unwrap();
    let id = id.split('<').next().unwrap();
    let path = format!("/bob-data/stolen?partNumber=1&uploadId={id}");
    let answer = bob.call("PUT", &path, &[source], b"").await;
    assert!(answer.status == 403 || answer.status == 501, "{}: {}", answer.status, answer.text());
    let own = ("x-amz-copy-source", "/bob-data/own.txt");
    bob.call("PUT", "/bob-data/copy", &[own], b"").await.expect_status(200);
    assert_eq!(alice.get("/alice-data/secret.txt").await.expect_status(200).body, b"hers");
}

/// Tickets hold the keys of the plaintext, and go by a route of their own.
#[tokio::test]
async fn a_tenant_gets_no_ticket_for_what_it_may_not_read() {
    let (world, alice, bob) = two_tenants().await;
    let holder = world.core.config.keys.node_id();
    let path = |target: &str| format!("/{target}?holder={holder}&holdfast-ticket=");
    alice.get(&path("alice-data/secret.txt")).await.expect_status(200);
    bob.get(&path("alice-data/secret.txt")).await.expect_error(403, "AccessDenied");
    bob.get(&path("alice-none/secret.txt")).await.expect_error(403, "AccessDenied");
    let carol = world.tenant("carol", rules("alice-data", "public/", &[Operation::Read])).await;
    carol.get(&path("alice-data/secret.txt")).await.expect_error(403, "AccessDenied");
    alice.anonymous("GET", &path("alice-data/secret.txt"), &[]).await.expect_error(403, "AccessDenied");
    world.core.access_keys.revoke(&alice.access_key, 2).await.unwrap();
    alice.get(&path("alice-data/secret.txt")).await.expect_error(403, "InvalidAccessKeyId");
}

#[tokio::test]
async fn a_rename_needs_the_right_to_delete_its_source() {
    let world = World::with_bucket("data").await;
    world.client.put("/data/a", b"x").await.expect_status(200);
    let writer = world.tenant("writer", rules("data", "", &[Operation::Read, Operation::Write])).await;
    let headers = [("x-amz-copy-source", "/data/a"), ("x-holdfast-rename", "true")];
    writer.call("PUT", "/data/b", &headers, b"").await.expect_error(403, "AccessDenied");
    world.client.get("/data/a").await.expect_status(200);
    writer.call("PUT", "/data/b", &headers[..1], b"").await.expect_status(200);
    let mover = world.tenant("mover", rules("data", "", &Operation::ALL)).await;
    mover.call("PUT", "/data/c", &headers, b"").await.expect_status(200);
    world.client.get("/data/a").await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn a_prefix_bounds_reads_lists_writes_and_batches() {
    let world = World::with_bucket("shared").await;
    world.client.put("/shared/v1/a", b"one").await.expect_status(200);
    world.client.put("/shared/v2/b", b"two").await.expect_status(200);
    use Operation::{Delete, List, Read, Write};
    let carol = world.tenant("carol", rules("shared", "v1/", &[Read, List, Write, Delete])).await;
    carol.get("/shared/v1/a").await.expect_status(200);
    carol.get("/shared/v2/b").await.expect_error(403, "AccessDenied");
    carol.put("/shared/v1/new", b"x").await.expect_status(200);
    carol.put("/shared/new", b"x").await.expect_error(403, "AccessDenied");
    let listed = carol.get("/shared?list-type=2&prefix=v1%2F").await.expect_status(200).text();
    assert!(listed.contains("v1/a") && listed.contains("v1/new"));
    for query in ["?list-type=2", "?list-type=2&prefix=v", "?prefix=v2%2F", "?list-type=2&prefix=v2%2F"] {
        carol.get(&format!("/shared{query}")).await.expect_error(403, "AccessDenied");
    }
    let batch = b"<Delete><Object><Key>v1/a</Key></Object><Object><Key>v2/b</Key></Object></Delete>";
    carol.call("POST", "/shared?delete", &[], batch).await.expect_error(403, "AccessDenied");
    world.client.get("/shared/v1/a").await.expect_status(200);
    carol.call("DELETE", "/shared", &[], b"").await.expect_error(403, "AccessDenied");
    carol.get("/shared?location").await.expect_status(200);
}

#[tokio::test]
async fn keys_end_and_rates_and_quotas_hold() {
    let world = World::with_bucket("data").await;
    let limited = Rules {
        quota_bytes: Some(1000),
        requests_per_second: Some(1_000_000),
        ..rules("data", "", &Operation::ALL)
    };
    let dave = world.tenant("dave", limited).await;
    dave.put("/data/a", &[1; 600]).await.expect_status(200);
    dave.put("/data/b", &[1; 600]).await.expect_error(403, "QuotaExceeded");
    dave.put("/data/b", &[1; 400]).await.expect_status(200);
    dave.put("/data/c", &[1; 1]).await.expect_error(403, "QuotaExceeded");
    world.client.put("/data/c", &[1; 5000]).await.expect_status(200);
    world.core.access_keys.revoke(&dave.access_key, 2).await.unwrap();
    dave.get("/data/a").await.expect_error(403, "InvalidAccessKeyId");

    let slow = Rules { requests_per_second: Some(3), ..rules("data", "", &[Operation::Read]) };
    let erin = world.tenant("erin", slow).await;
    let mut refused = 0;
    for _ in 0..40 {
        refused += u32::from(erin.get("/data/a").await.status == 503);
    }
    assert!(refused > 0, "40 requests fit into no second at 3 a second, unless each took a third of one");
    let frank = world.tenant("frank", rules("data", "", &[Operation::Read])).await;
    frank.get("/data/a").await.expect_status(200);
}

/// One tenant opens as many uploads as it is let and sends nothing more on any of them. The others' uploads need memory
/// and places, and have them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_that_leaves_its_uploads_hanging_stands_in_nobodys_way() {
    let (world, alice, bob) = two_tenants().await;
    let mut hanging = Vec::new();
    // Each asks for the memory of a whole stripe; all of the gateway's would hold some twenty.
    let len = 64 << 20;
    for number in 0..300 {
        let path = format!("/alice-data/hanging-{number}");
        let head = alice.signed_head("PUT", &path, &[], "UNSIGNED-PAYLOAD", len);
        let mut stream = TcpStream::connect(alice.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&[7; 1000]).await.unwrap();
        hanging.push(stream);
    }
    // Her places are all taken, and most of her uploads wait for her share of the memory.
    let held = tokio::time::timeout(Duration::from_secs(30), async {
        loop {
            let answer = alice.get("/alice-data/secret.txt").await;
            if answer.status == 503 {
                return;
            }
        }
    });
    held.await.expect("her places run out");
    for number in 0..20 {
        let body = body_of(1_500_000 + number);
        bob.put(&format!("/bob-data/{number}"), &body).await.expect_status(200);
        assert_eq!(bob.get(&format!("/bob-data/{number}")).await.expect_status(200).body, body);
    }
    world.client.put("/bob-data/owner", &body_of(20 << 20)).await.expect_status(200);
    assert!(world.core.uploads.free_bytes() >= world.core.uploads.budget_bytes() / 2);
    drop(hanging);
}

#[tokio::test]
async fn what_happened_is_counted_by_key() {
    let world = World::with_bucket("data").await;
    let gina = world.tenant("gina", rules("data", "", &[Operation::Read, Operation::Write])).await;
    gina.put("/data/a", &[1; 3000]).await.expect_status(200);
    gina.get("/data/a").await.expect_status(200);
    gina.call("DELETE", "/data/a", &[], b"").await.expect_status(403);
    let usage = || async {
        world.core.key_usage.flush(&world.core.meta, 86_400_000 * 20_000).await.unwrap();
        world.core.meta.key_counts(Some(&gina.access_key), 20_000, 1).await.unwrap()
    };
    let mut days = usage().await;
    // The last request is counted when its answer's body ends, which may be after the client has read it.
    while days.first().is_none_or(|day| day.counts.requests < 3) {
        days = usage().await;
    }
    let counts = days[0].counts;
    assert_eq!((counts.requests, counts.refused, counts.bytes_in), (3, 1, 3000));
    assert!(counts.bytes_out >= 3000, "{counts:?}");
}
