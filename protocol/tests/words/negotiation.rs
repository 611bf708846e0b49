//! Which version two peers speak.

use holdfast_protocol::message::{Hello, MESSAGE_VERSION, MESSAGE_VERSION_OLDEST, RefusalReason, negotiate};
use holdfast_protocol::rpc::answer_hello;

fn hello(newest: u16, oldest: u16) -> Hello {
    Hello { newest, oldest, delegation: None, node_record: None, now_ms: 0, software: String::new() }
}

#[test]
fn the_newest_common_version_is_spoken() {
    assert_eq!(answer_hello(&hello(MESSAGE_VERSION, MESSAGE_VERSION_OLDEST)), Ok(MESSAGE_VERSION));
    assert_eq!(negotiate(MESSAGE_VERSION + 5, MESSAGE_VERSION), Some(MESSAGE_VERSION));
    assert_eq!(negotiate(u16::MAX, 0), Some(MESSAGE_VERSION));
}

#[test]
fn a_peer_that_speaks_only_newer_versions_is_refused_and_told_why() {
    let refusal = answer_hello(&hello(MESSAGE_VERSION + 2, MESSAGE_VERSION + 1)).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::Version);
    assert!(refusal.message.contains(&format!("{} to {}", MESSAGE_VERSION + 1, MESSAGE_VERSION + 2)));
    assert_eq!(refusal.retry_after_ms, 0);
}

#[test]
fn a_peer_that_speaks_only_older_versions_is_refused() {
    assert_eq!(negotiate(MESSAGE_VERSION_OLDEST - 1, 0), None);
    assert_eq!(answer_hello(&hello(0, 0)).unwrap_err().reason, RefusalReason::Version);
}
