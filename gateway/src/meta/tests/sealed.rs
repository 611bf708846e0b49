//! Formats, keys and seals: what is refused, and what a table that others can write cannot do.

use std::sync::Arc;

use super::cluster::{entry, keys, object, stored};
use super::*;

#[tokio::test]
async fn other_keys_and_newer_formats_are_refused() {
    let cluster = Cluster::new().await;
    cluster.bucket("b", false).await;
    let error = cluster.reopen_with(keys(2)).await.err().unwrap();
    assert!(matches!(error, MetaError::WrongKeys), "{error}");

    let cluster = Cluster::new().await;
    let mut newer = Transaction::default();
    newer.put(schema::format(), 2u64.to_le_bytes().to_vec());
    cluster.meta.store.transact(newer).await.unwrap();
    let error = cluster.reopen_with(keys(1)).await.err().unwrap();
    assert!(matches!(error, MetaError::Format { found: 2, newest: 1 }), "{error}");
    assert!(error.to_string().contains("newer release"));
}

#[tokio::test]
async fn rows_cannot_be_swapped_or_changed_in_silence() {
    let cluster = Cluster::new().await;
    let meta = &cluster.meta;
    let bucket = cluster.bucket("b", false).await;
    for (key, seed) in [("a", 1), ("z", 100)] {
        let blocks = (seed..seed + 20).map(|seed| entry(seed, 10)).collect();
        meta.put_object(&bucket, object(key, stored(blocks, true))).await.unwrap();
    }
    let (a, z) = (schema::object(bucket.id, "a"), schema::object(bucket.id, "z"));
    let value = meta.store.get(&z).await.unwrap().unwrap();
    let original = meta.store.get(&a).await.unwrap().unwrap();
    let put = async |key: &[u8], value: &[u8]| {
        let mut transaction = Transaction::default();
        transaction.put(key.to_vec(), value.to_vec());
        meta.store.transact(transaction).await.unwrap();
    };
    put(&a, &value).await;
    let swapped = meta.object(&bucket, "a").await;
    assert!(matches!(swapped, Err(MetaError::Forged { what: "object" })), "{swapped:?}");
    for at in [0, 20, original.len() - 1] {
        let mut changed = original.to_vec();
        changed[at] ^= 1;
        put(&a, &changed).await;
        assert!(matches!(meta.object(&bucket, "a").await, Err(MetaError::Forged { .. })));
    }
    put(&a, &original[..10]).await;
    assert!(meta.object(&bucket, "a").await.is_err());
    put(&a, &original).await;

    // A page of another object under this one's run.
    let object = meta.object(&bucket, "a").await.unwrap().unwrap();
    let table = schema::table(schema::PAGES);
    let pages = meta.store.page(&table, &store::prefix_end(&table), 10).await.unwrap();
    assert_eq!(pages.len(), 2);
    put(&pages[0].key, &pages[1].value).await;
    put(&pages[1].key, &pages[0].value).await;
    let read = meta.read(&object, 0..10).next().await;
    assert!(matches!(read, Err(MetaError::Forged { what: "manifest page" })), "{read:?}");
}

#[tokio::test]
async fn keys_open_again_after_a_restart() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    let stored = stored(vec![entry(1, 100), entry(2, 50)], true);
    let mut sealed = *b"attack at dawn";
    let cipher = stored.secret.as_ref().unwrap().cipher().unwrap();
    cipher.apply(110, &mut sealed).unwrap();
    cluster.meta.put_object(&bucket, object("a", stored)).await.unwrap();

    let cluster = cluster.reopen().await;
    let bucket = cluster.meta.bucket("b").await.unwrap().unwrap();
    let object = cluster.meta.object(&bucket, "a").await.unwrap().unwrap();
    let pieces = cluster.meta.read(&object, 110..124).next().await.unwrap().unwrap();
    let [piece] = &pieces[..] else { panic!("{pieces:?}") };
    assert_eq!((piece.range.start, piece.cipher_offset), (10, 110));
    piece.cipher.as_ref().unwrap().apply(piece.cipher_offset, &mut sealed).unwrap();
    assert_eq!(&sealed, b"attack at dawn");
    cluster.assert_sound().await;
}

#[tokio::test]
async fn settings_are_compared_before_they_are_set() {
    let cluster = Cluster::new().await;
    let meta: &Arc<Meta> = &cluster.meta;
    assert!(meta.put_setting("key/1", None, Some(b"x".to_vec())).await.unwrap());
    assert!(!meta.put_setting("key/1", None, Some(b"y".to_vec())).await.unwrap());
    assert!(meta.put_setting("key/2", None, Some(b"y".to_vec())).await.unwrap());
    assert_eq!(meta.setting("key/1").await.unwrap().as_deref(), Some(&b"x"[..]));
    let names: Vec<_> = meta.settings("key/", None, 9).await.unwrap().into_iter().map(|row| row.0).collect();
    assert_eq!(names, ["key/1", "key/2"]);
    assert_eq!(meta.settings("key/", Some("key/1"), 9).await.unwrap().len(), 1);
    assert!(meta.put_setting("key/1", Some(b"x"[..].into()), None).await.unwrap());
    assert!(meta.setting("key/1").await.unwrap().is_none());
}
