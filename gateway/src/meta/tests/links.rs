//! Links and renames: references, keys and runs, for objects of every layout.

use super::cluster::{MIB, entry, object, stored};
use super::*;

/// An object of three parts, the middle one with pages of its own.
async fn in_parts(cluster: &Cluster, bucket: &Bucket, key: &str) -> Object {
    let attributes = Attributes { etag: "whole".to_owned(), ..Attributes::default() };
    let upload = cluster.meta.create_upload(bucket, key, attributes.clone()).await.unwrap().id;
    let mut parts = Vec::new();
    for (number, blocks) in [(1u16, 5u64), (2, 20), (3, 1)] {
        let blocks: Vec<_> = (0..blocks).map(|at| entry(u64::from(number) * 1000 + at, MIB)).collect();
        let new = NewPart {
            key: key.to_owned(),
            upload,
            number,
            attributes: Attributes { etag: number.to_string(), ..Attributes::default() },
            stored: stored(blocks, !bucket.public),
        };
        cluster.meta.put_part(bucket, new).await.unwrap();
        parts.push((number, number.to_string()));
    }
    let completion = Completion {
        key: key.to_owned(),
        upload,
        parts,
        etag: "whole".to_owned(),
        checksums: Vec::new(),
        condition: PutCondition::Any,
    };
    cluster.meta.complete_upload(bucket, completion).await.unwrap()
}

async fn three(cluster: &Cluster, bucket: &Bucket) -> Vec<Object> {
    let blocks = (0..30).map(|at| entry(at, 1000)).collect();
    vec![
        cluster.meta.put_object(bucket, object("paged", stored(blocks, !bucket.public))).await.unwrap(),
        cluster.meta.put_object(bucket, object("empty", stored(vec![], false))).await.unwrap(),
        in_parts(cluster, bucket, "parts").await,
    ]
}

#[tokio::test]
async fn a_link_reads_as_its_source_and_outlives_it() {
    for public in [false, true] {
        let cluster = Cluster::new().await;
        let bucket = cluster.bucket("source", public).await;
        let links = cluster.meta.create_bucket_like(&bucket, "links".to_owned()).await.unwrap();
        assert_eq!((links.scope, links.public, links.encryption), (bucket.scope, public, bucket.encryption));
        for source in three(&cluster, &bucket).await {
            let was = cluster.read(&source, 0..u64::MAX).await;
            let link = cluster.meta.link_object(&source, &links, &source.key).await.unwrap();
            assert_eq!(link.cid, source.root_cid);
            cluster.assert_sound().await;
            cluster.meta.delete_object(&bucket, &source.key).await.unwrap();
            assert!(cluster.releases().await.is_empty(), "the link holds every block of {}", source.key);
            let found = cluster.meta.object(&links, &source.key).await.unwrap().unwrap();
            assert_eq!(cluster.read(&found, 0..u64::MAX).await, was, "{}", source.key);
            assert_eq!((found.root_cid, &found.attributes), (source.root_cid, &source.attributes));
        }
        cluster.assert_sound().await;
        for key in ["paged", "empty", "parts"] {
            cluster.meta.delete_object(&links, key).await.unwrap();
        }
        assert!(!cluster.releases().await.is_empty(), "the last reference is gone");
        assert_eq!(cluster.assert_sound().await.blocks, 0);
    }
}

#[tokio::test]
async fn a_rename_moves_the_object_and_unlinks_what_was_there() {
    for public in [false, true] {
        let cluster = Cluster::new().await;
        let bucket = cluster.bucket("b", public).await;
        for source in three(&cluster, &bucket).await {
            let was = cluster.read(&source, 0..u64::MAX).await;
            let over = object("to", stored(vec![entry(77, 500)], !public));
            cluster.meta.put_object(&bucket, over).await.unwrap();
            let condition = PutCondition::Absent;
            let kept = cluster.meta.rename_object(&bucket, &source.key, "to", condition).await;
            assert!(matches!(kept, Err(PutError::PreconditionFailed)));
            let moved = cluster.meta.rename_object(&bucket, &source.key, "to", PutCondition::Any).await;
            assert_eq!(moved.unwrap().unwrap().version, source.version);
            assert!(cluster.meta.object(&bucket, &source.key).await.unwrap().is_none());
            let found = cluster.meta.object(&bucket, "to").await.unwrap().unwrap();
            assert_eq!(cluster.read(&found, 0..u64::MAX).await, was, "{}", source.key);
            assert_eq!(found.modified_ms, source.modified_ms);
            assert!(cluster.meta.locate(&entry(77, 500).digest).await.unwrap().is_none(), "unlinked");
            cluster.assert_sound().await;
        }
        let usage = cluster.meta.usage(&bucket).await.unwrap();
        assert_eq!((usage.objects, usage.bytes), (1, 26 * u64::from(MIB)));
        assert!(
            cluster.meta.rename_object(&bucket, "none", "to", PutCondition::Any).await.unwrap().is_none()
        );
    }
}

#[tokio::test]
async fn a_link_of_what_is_gone_says_so_and_leaves_nothing() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("source", false).await;
    let links = cluster.meta.create_bucket_like(&bucket, "links".to_owned()).await.unwrap();
    for source in three(&cluster, &bucket).await {
        cluster.meta.delete_object(&bucket, &source.key).await.unwrap();
        if source.size > 0 {
            let link = cluster.meta.link_object(&source, &links, "x").await;
            assert!(matches!(link, Err(LinkError::Gone)), "{}: {link:?}", source.key);
        }
    }
    cluster.meta.delete_bucket("links").await.unwrap();
    assert_eq!(cluster.assert_sound().await.blocks, 0);
}

#[tokio::test]
async fn a_renamed_bucket_keeps_its_objects() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("old", false).await;
    let put = cluster.meta.put_object(&bucket, object("a", stored(vec![entry(1, 9)], true))).await.unwrap();
    cluster.bucket("taken", false).await;
    assert!(matches!(cluster.meta.rename_bucket("old", "taken").await, Err(BucketError::Exists { .. })));
    let renamed = cluster.meta.rename_bucket("old", "new").await.unwrap();
    assert!(cluster.meta.bucket("old").await.unwrap().is_none());
    let found = cluster.meta.object(&renamed, "a").await.unwrap().unwrap();
    assert_eq!(found.version, put.version);
    cluster.assert_sound().await;
}
