//! Rights that were handed on without the gateway's help: signed tokens and links.

use super::tenants::rules;
use super::*;
use crate::keys::Operation;
use crate::keys::token::{Narrowing, delegate, delegated_secret};
use crate::keys::{Presented, token};

/// A client with a narrowed token of `client`, whose whole token is `whole`.
fn narrowed(client: &Client, whole: &str, narrowing: &Narrowing) -> (Client, String) {
    let text = delegate(whole, narrowing, Presented::Signed).unwrap();
    let secret = delegated_secret(whole, &client.secret, &text).unwrap();
    (Client::new(client.address, &client.access_key, &secret), text)
}

async fn world() -> (World, Client, String) {
    let world = World::with_bucket("train").await;
    for key in ["v1/a", "v2/b"] {
        world.client.put(&format!("/train/{key}"), key.as_bytes()).await.expect_status(200);
    }
    let alice = world.tenant("alice", rules("train", "v", &[Operation::Read, Operation::List])).await;
    let whole = world.core.tokens.issue(&alice.access_key).unwrap();
    (world, alice, whole)
}

#[tokio::test]
async fn a_narrowed_token_opens_what_is_left_and_nothing_else() {
    let (world, alice, whole) = world().await;
    let narrowing = Narrowing { prefix: Some("v1/".to_owned()), ..Narrowing::default() };
    let (friend, text) = narrowed(&alice, &whole, &narrowing);
    let token = [("x-amz-security-token", text.as_str())];
    assert_eq!(friend.call("GET", "/train/v1/a", &token, b"").await.expect_status(200).body, b"v1/a");
    let listed = friend.call("GET", "/train?list-type=2&prefix=v1%2F", &token, b"").await;
    assert!(listed.expect_status(200).text().contains("v1/a"));
    friend.call("GET", "/train/v2/b", &token, b"").await.expect_error(403, "AccessDenied");
    friend.call("GET", "/train?list-type=2", &token, b"").await.expect_error(403, "AccessDenied");
    // What alice may not do, her token cannot give.
    friend.call("PUT", "/train/v1/new", &token, b"x").await.expect_error(403, "AccessDenied");
    // The secret without the token, the token without its secret, and the token in a link.
    friend.get("/train/v1/a").await.expect_error(403, "SignatureDoesNotMatch");
    alice.call("GET", "/train/v1/a", &token, b"").await.expect_error(403, "SignatureDoesNotMatch");
    let link = format!("/train/v1/a?x-holdfast-token={}", text.replace('=', "%3D"));
    alice.anonymous("GET", &link, &[]).await.expect_error(403, "AccessDenied");
    // With her key, all of it ends.
    world.core.access_keys.revoke(&alice.access_key, 2).await.unwrap();
    friend.call("GET", "/train/v1/a", &token, b"").await.expect_error(403, "InvalidAccessKeyId");
}

#[tokio::test]
async fn a_token_is_revoked_by_a_block_and_its_siblings_are_not() {
    let (world, alice, whole) = world().await;
    let (one, first) = narrowed(&alice, &whole, &Narrowing::default());
    let (two, second) = narrowed(&alice, &whole, &Narrowing::default());
    let block = token::describe(&first).unwrap().pop().unwrap().revocation_id;
    world.core.access_keys.revoke_token(&block, 2).await.unwrap();
    let with = |text: &str| [("x-amz-security-token".to_owned(), text.to_owned())];
    for (client, text, status) in [(&one, &first, 400), (&two, &second, 200)] {
        let header = with(text);
        let header: Vec<_> = header.iter().map(|(name, value)| (&name[..], &value[..])).collect();
        let answer = client.call("GET", "/train/v1/a", &header, b"").await;
        assert_eq!(answer.status, status, "{}", answer.text());
    }
}

#[tokio::test]
async fn a_link_opens_one_object_for_anybody_until_it_ends() {
    let (world, alice, whole) = world().await;
    let link = |object: &str, expires_ms| {
        let narrowing = Narrowing {
            bucket: Some("train".to_owned()),
            object: Some("v1/a".to_owned()),
            operations: Some(vec![Operation::Read]),
            expires_ms: Some(expires_ms),
            ..Narrowing::default()
        };
        let text = delegate(&whole, &narrowing, Presented::Bearer).unwrap().replace('=', "%3D");
        format!("/train/{object}?x-holdfast-token={text}")
    };
    let later = world.core.config.clock.now_ms() + 60_000;
    let answer = alice.anonymous("GET", &link("v1/a", later), &[]).await.expect_status(200);
    assert_eq!(answer.body, b"v1/a");
    alice.anonymous("HEAD", &link("v1/a", later), &[]).await.expect_status(200);
    alice.anonymous("GET", &link("v2/b", later), &[]).await.expect_error(403, "AccessDenied");
    alice.anonymous("DELETE", &link("v1/a", later), &[]).await.expect_error(403, "AccessDenied");
    alice.anonymous("GET", &link("v1/a", 1), &[]).await.expect_error(403, "AccessDenied");
    let forged = link("v1/a", later).replace("x-holdfast-token=E", "x-holdfast-token=F");
    assert_ne!(alice.anonymous("GET", &forged, &[]).await.status, 200);
}
