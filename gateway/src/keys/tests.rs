use std::os::unix::fs::PermissionsExt;

use super::*;

const NOW: UnixMs = 1_800_000_000_000;

#[test]
fn a_second_start_finds_the_same_keys() {
    let dir = tempfile::tempdir().unwrap();
    let first = GatewayKeys::load_or_create(dir.path(), "a", NOW).unwrap();
    let second = GatewayKeys::load_or_create(dir.path(), "a", NOW + 1000).unwrap();
    assert_eq!(first.namespace_id(), second.namespace_id());
    assert_eq!(first.node_id(), second.node_id());
    assert_eq!(first.root().expose(), second.root().expose());
    assert_eq!(first.admin_token().expose(), second.admin_token().expose());
    assert_eq!(first.delegation().id(), second.delegation().id());
}

#[test]
fn secrets_are_readable_by_their_owner_alone() {
    let dir = tempfile::tempdir().unwrap();
    GatewayKeys::load_or_create(dir.path(), "a", NOW).unwrap();
    for name in ["keys/namespace.key", "keys/gateway.key", "keys/root.key", "admin-token"] {
        let mode = std::fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn a_directory_of_a_newer_format_is_refused_with_both_numbers() {
    let dir = tempfile::tempdir().unwrap();
    GatewayKeys::load_or_create(dir.path(), "a", NOW).unwrap();
    std::fs::write(dir.path().join("format"), "holdfast-gateway 7\n").unwrap();
    let error = GatewayKeys::load_or_create(dir.path(), "a", NOW).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("format 7") && text.contains("up to 1"), "{text}");
}

#[test]
fn a_lost_root_key_is_an_error_and_not_a_new_key() {
    let dir = tempfile::tempdir().unwrap();
    GatewayKeys::load_or_create(dir.path(), "a", NOW).unwrap();
    std::fs::remove_file(dir.path().join("keys/root.key")).unwrap();
    let error = GatewayKeys::load_or_create(dir.path(), "a", NOW).unwrap_err();
    assert!(matches!(error, KeysError::Missing { .. }), "{error}");
}

#[test]
fn a_delegation_past_half_its_time_is_renewed() {
    let dir = tempfile::tempdir().unwrap();
    let first = GatewayKeys::load_or_create(dir.path(), "a", NOW).unwrap();
    let later = NOW + DELEGATION_MS / 2 + 1;
    let second = GatewayKeys::load_or_create(dir.path(), "a", later).unwrap();
    assert_ne!(first.delegation().id(), second.delegation().id());
    assert!(Authority::verify(&second.delegation().to_wire(), second.node_id(), later).is_ok());
}

#[test]
fn debug_output_shows_no_secret() {
    let dir = tempfile::tempdir().unwrap();
    let keys = GatewayKeys::load_or_create(dir.path(), "a", NOW).unwrap();
    let text = format!("{keys:?} {:?} {:?}", keys.root(), keys.admin_token());
    assert!(!text.contains(keys.admin_token().expose()));
    assert!(!text.contains(&hex::encode(keys.root().expose())));
}
