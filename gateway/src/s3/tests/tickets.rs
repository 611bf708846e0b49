//! Tickets open plaintext: they are for whoever may GET the object, and for nobody else.

use holdfast_retrieval::direct::ReadTicket;

use super::tenants::rules;
use super::*;
use crate::keys::Operation;

const HOLDER: &str = "z6MkhaXgBZDvotDkL5257faiztiGiC2QtKLGpbnnEGta2doK";

fn ticket(path: &str) -> String {
    format!("{path}?holdfast-ticket=1&holder={HOLDER}&offset=0")
}

#[tokio::test]
async fn a_ticket_is_for_whoever_may_read_the_object() {
    let world = World::with_bucket("shared").await;
    world.client.put("/shared/v1/a", b"one").await.expect_status(200);
    world.client.put("/shared/v2/b", b"two").await.expect_status(200);
    let reader = world.tenant("reader", rules("shared", "v1/", &[Operation::Read])).await;
    let writer = world.tenant("writer", rules("shared", "", &[Operation::Write, Operation::List])).await;
    let other = world.tenant("other", rules("elsewhere", "", &Operation::ALL)).await;

    for client in [&world.client, &reader] {
        let answer = client.get(&ticket("/shared/v1/a")).await.expect_status(200);
        assert_eq!(answer.header("cache-control"), "no-store");
        let ticket = ReadTicket::decode(&answer.body).unwrap();
        assert_eq!((ticket.size, ticket.blocks.len()), (3, 1));
        assert!(ticket.parts[0].key.is_some(), "a private object's key goes to its reader");
        let grant = ticket.grant.unwrap();
        assert!(grant.verify(HOLDER.parse().unwrap(), world.core.config.clock.now_ms()).is_ok());
    }
    reader.get(&ticket("/shared/v2/b")).await.expect_error(403, "AccessDenied");
    writer.get(&ticket("/shared/v1/a")).await.expect_error(403, "AccessDenied");
    other.get(&ticket("/shared/v1/a")).await.expect_error(403, "AccessDenied");
    world.client.anonymous("GET", &ticket("/shared/v1/a"), &[]).await.expect_error(403, "AccessDenied");
    // The same refusal whether the object is there or not.
    other.get(&ticket("/shared/v1/none")).await.expect_error(403, "AccessDenied");
    reader.get(&ticket("/shared/v1/none")).await.expect_error(404, "NoSuchKey");
}

#[tokio::test]
async fn a_ticket_names_its_holder_and_its_version() {
    let world = World::with_bucket("shared").await;
    world.client.put("/shared/a", b"one").await.expect_status(200);
    for bad in ["?holdfast-ticket=1", "?holdfast-ticket=1&holder=nobody"] {
        world.client.get(&format!("/shared/a{bad}")).await.expect_error(400, "InvalidArgument");
    }
    let first = world.client.get(&ticket("/shared/a")).await.expect_status(200);
    let version = hex::encode(ReadTicket::decode(&first.body).unwrap().version);
    let again = format!("{}&version={version}", ticket("/shared/a"));
    world.client.get(&again).await.expect_status(200);
    world.client.put("/shared/a", b"two").await.expect_status(200);
    world.client.get(&again).await.expect_error(412, "PreconditionFailed");
}
