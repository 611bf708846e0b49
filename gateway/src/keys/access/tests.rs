use holdfast_protocol::NamespaceId;
use holdfast_protocol::PublicKey;
use holdfast_protocol::time::SystemClock;

use super::super::rules::{Grant, Operation};
use super::*;
use crate::crypt::NamespaceKeys;
use crate::keys::RootKey;
use crate::meta::{RocksConfig, RocksStore};

const ROOT: [u8; 32] = [7; 32];

struct World {
    meta: Arc<Meta>,
    dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = RocksStore::open(&RocksConfig::new(dir.path().join("meta"))).unwrap();
        let keys = NamespaceKeys::new(RootKey::from_bytes(ROOT), NamespaceId(PublicKey([1; 32])));
        Self { meta: Meta::open(store, keys, Arc::new(SystemClock)).await.unwrap(), dir }
    }

    async fn keys(&self) -> AccessKeys {
        AccessKeys::open(Arc::clone(&self.meta), &ROOT, self.dir.path(), 1000).await.unwrap()
    }
}

fn reader() -> Rules {
    let grant = Grant { bucket: "data".to_owned(), prefix: String::new(), operations: vec![Operation::Read] };
    Rules { grants: vec![grant], ..Rules::default() }
}

#[tokio::test]
async fn the_owners_key_is_made_once_and_every_gateway_finds_it() {
    let world = World::new().await;
    let (first, second) = (world.keys().await, world.keys().await);
    assert_eq!(first.first().access_key, second.first().access_key);
    let found = second.live(&first.first().access_key, 2000).await.unwrap().unwrap();
    assert_eq!(found.credentials.secret_key, first.first().secret_key);
    assert!(found.rules.is_owner());
}

#[tokio::test]
async fn no_secret_lies_in_the_metadata_in_clear() {
    let world = World::new().await;
    let keys = world.keys().await;
    let made = keys.create("alice", reader(), 1000).await.unwrap();
    let rows = world.meta.settings(SETTING_PREFIX, None, 10).await.unwrap();
    assert_eq!(rows.len(), 2);
    for (_, row) in rows {
        for hidden in [made.credentials.secret_key.as_bytes(), keys.first().secret_key.as_bytes(), b"alice"] {
            assert!(!row.windows(hidden.len()).any(|window| window == hidden));
        }
    }
    assert!(!format!("{keys:?} {made:?}").contains(made.credentials.secret_key.as_str()));
}

#[tokio::test]
async fn a_record_under_another_name_or_changed_does_not_open() {
    let world = World::new().await;
    let keys = world.keys().await;
    let made = keys.create("alice", reader(), 1000).await.unwrap();
    let owner = format!("{SETTING_PREFIX}{}", keys.first().access_key);
    let owners = world.meta.setting(&owner).await.unwrap().unwrap();
    let name = format!("{SETTING_PREFIX}{}", made.id());
    let row = world.meta.setting(&name).await.unwrap().unwrap();
    // Alice writes to the database: the owner's record under her own id.
    assert!(world.meta.put_setting(&name, Some(row.clone()), Some(owners.to_vec())).await.unwrap());
    let error = keys.live(made.id(), 2000).await.unwrap_err();
    assert!(matches!(error, AccessKeyError::Damaged { .. }), "{error}");
    let mut flipped = row.to_vec();
    *flipped.last_mut().unwrap() ^= 1;
    assert!(world.meta.put_setting(&name, Some(owners), Some(flipped)).await.unwrap());
    assert!(keys.live(made.id(), 2000).await.is_err());
}

#[tokio::test]
async fn keys_end_by_revocation_and_by_themselves() {
    let world = World::new().await;
    let keys = world.keys().await;
    let made = keys.create("alice", reader(), 1000).await.unwrap();
    let brief = Rules { expires_ms: Some(5000), ..reader() };
    let brief = keys.create("bob", brief, 1000).await.unwrap();
    assert!(keys.live(made.id(), 2000).await.unwrap().is_some());
    assert!(keys.live(brief.id(), 4999).await.unwrap().is_some());
    assert!(keys.live(brief.id(), 5000).await.unwrap().is_none());
    keys.revoke(made.id(), 3000).await.unwrap();
    assert!(keys.live(made.id(), 3001).await.unwrap().is_none(), "at once where it was revoked");
    assert!(world.keys().await.live(made.id(), 3001).await.unwrap().is_none());
    assert!(matches!(keys.revoke("HOLDNOBODY", 1).await, Err(AccessKeyError::Unknown { .. })));
    assert_eq!(keys.page(None, 10).await.unwrap().len(), 3);
}

#[tokio::test]
async fn a_rotated_key_hands_its_rules_to_its_successor() {
    let world = World::new().await;
    let keys = world.keys().await;
    let old = keys.create("alice", reader(), 1000).await.unwrap();
    let new = keys.rotate(old.id(), 500, 2000).await.unwrap();
    assert_eq!((&new.person, &new.rules), (&old.person, &old.rules));
    assert_ne!(new.id(), old.id());
    assert!(keys.live(old.id(), 2499).await.unwrap().is_some());
    assert!(keys.live(old.id(), 2500).await.unwrap().is_none());
    keys.rotate(new.id(), 0, 3000).await.unwrap();
    assert!(keys.live(new.id(), 3000).await.unwrap().is_none());
    assert!(matches!(keys.rotate(new.id(), 0, 3000).await, Err(AccessKeyError::Unknown { .. })));
}

#[tokio::test]
async fn keys_of_the_first_release_move_in_and_a_revoked_one_stays_revoked() {
    let world = World::new().await;
    let pair = Credentials::fresh().unwrap();
    legacy::tests::write(world.dir.path(), &ROOT, &pair);
    let keys = world.keys().await;
    assert_eq!(keys.first().access_key, pair.access_key);
    assert_eq!(keys.first().secret_key, pair.secret_key);
    keys.revoke(&pair.access_key, 2000).await.unwrap();
    let keys = world.keys().await;
    assert_ne!(keys.first().access_key, pair.access_key);
    assert!(keys.live(&pair.access_key, 3000).await.unwrap().is_none());
}

#[test]
fn access_keys_have_the_shape_that_tools_expect() {
    let pair = Credentials::fresh().unwrap();
    assert_eq!(pair.access_key.len(), 20);
    assert_eq!(pair.secret_key.len(), 40);
    assert!(pair.access_key.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit()));
    assert!(!format!("{pair:?}").contains(pair.secret_key.as_str()));
}
