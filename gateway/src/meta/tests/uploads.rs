//! Multipart uploads.

use super::cluster::{MIB, entry, object, stored};
use super::*;

/// A part of `mib` blocks of 1 MiB and one of `odd` bytes, told apart by `seed`.
fn part(key: &str, upload: VersionId, number: u16, (seed, mib, odd): (u64, u64, u32)) -> NewPart {
    let mut blocks: Vec<_> = (0..mib).map(|at| entry(seed * 1000 + at, MIB)).collect();
    if odd > 0 {
        blocks.push(entry(seed * 1000 + mib, odd));
    }
    let attributes = Attributes { etag: format!("part {seed}"), ..Attributes::default() };
    NewPart { key: key.to_owned(), upload, number, attributes, stored: stored(blocks, true) }
}

fn completion(key: &str, upload: VersionId, parts: &[(u16, u64)]) -> Completion {
    Completion {
        key: key.to_owned(),
        upload,
        parts: parts.iter().map(|(number, seed)| (*number, format!("part {seed}"))).collect(),
        etag: "whole-3".to_owned(),
        checksums: vec![],
        condition: PutCondition::Any,
    }
}

#[tokio::test]
async fn parts_become_an_object_with_any_lengths() {
    let cluster = Cluster::new().await;
    let meta = &cluster.meta;
    let bucket = cluster.bucket("b", false).await;
    meta.put_object(&bucket, object("k", stored(vec![entry(1, 10)], true))).await.unwrap();
    let user = vec![("a".to_owned(), "b".to_owned())];
    let attributes = Attributes { user: user.clone(), ..Attributes::default() };
    let upload = meta.create_upload(&bucket, "k", attributes).await.unwrap().id;
    // Not in order, one twice, one that is not taken.
    for (number, shape) in
        [(7, (7, 20, 5)), (2, (2, 5, 0)), (3, (3, 5, 77)), (5, (5, 6, 0)), (3, (33, 5, 99))]
    {
        meta.put_part(&bucket, part("k", upload, number, shape)).await.unwrap();
    }
    let five = 5 * u64::from(MIB);
    let in_parts = five * 2 + 99 + 26 * u64::from(MIB) + 5;
    assert_eq!(meta.usage(&bucket).await.unwrap(), Usage { objects: 1, bytes: 10, upload_bytes: in_parts });
    let (parts, more) = meta.list_parts(&bucket, "k", upload, 2, 2).await.unwrap();
    assert_eq!(parts.iter().map(|part| part.number).collect::<Vec<_>>(), [3, 5]);
    assert!(more);
    cluster.assert_sound().await;

    let object =
        meta.complete_upload(&bucket, completion("k", upload, &[(2, 2), (3, 33), (7, 7)])).await.unwrap();
    let size = five * 2 + 99 + 20 * u64::from(MIB) + 5;
    assert_eq!((object.size, object.block_count, object.part_count), (size, 32, 3));
    assert_eq!(object.attributes.user, user);
    assert_eq!(meta.usage(&bucket).await.unwrap(), Usage { objects: 1, bytes: size, upload_bytes: 0 });
    assert!(meta.upload(&bucket, "k", upload).await.unwrap().is_none());
    cluster.assert_sound().await;
    // Over the edge between parts, in the middle of odd blocks; the cipher starts again with each part.
    let mut reader = meta.read(&object, five + 5 * u64::from(MIB) + 90..five * 2 + 99 + 11);
    let pieces = reader.next().await.unwrap().unwrap();
    let shape: Vec<_> = pieces.iter().map(|p| (p.range.start, p.range.len, p.cipher_offset)).collect();
    assert_eq!(shape, [(90, 9, five + 90), (0, 11, 0)]);
    assert_eq!(cluster.read(&object, 0..size).await.len(), 32);
    meta.delete_object(&bucket, "k").await.unwrap();
    assert_eq!(cluster.assert_sound().await.blocks, 0);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_by_name() {
    let cluster = Cluster::new().await;
    let meta = &cluster.meta;
    let bucket = cluster.bucket("b", false).await;
    let upload = meta.create_upload(&bucket, "k", Attributes::default()).await.unwrap().id;
    for number in [0, 10_001] {
        let error = meta.put_part(&bucket, part("k", upload, number, (1, 1, 0))).await.unwrap_err();
        assert!(matches!(error, UploadError::PartNumber { .. }), "{error}");
    }
    meta.put_part(&bucket, part("k", upload, 1, (1, 4, 9))).await.unwrap();
    meta.put_part(&bucket, part("k", upload, 2, (2, 1, 0))).await.unwrap();
    let complete = async |parts: &[(u16, u64)]| {
        meta.complete_upload(&bucket, completion("k", upload, parts)).await.unwrap_err()
    };
    assert!(matches!(complete(&[]).await, UploadError::InvalidPartOrder));
    assert!(matches!(complete(&[(2, 2), (1, 1)]).await, UploadError::InvalidPartOrder));
    assert!(matches!(complete(&[(1, 1), (1, 1)]).await, UploadError::InvalidPartOrder));
    assert!(matches!(complete(&[(1, 2)]).await, UploadError::InvalidPart { number: 1 }));
    assert!(matches!(complete(&[(1, 1), (3, 3)]).await, UploadError::EntityTooSmall { number: 1, .. }));
    assert!(matches!(complete(&[(2, 2), (3, 3)]).await, UploadError::EntityTooSmall { number: 2, .. }));
    let none = VersionId([0; 16]);
    assert!(matches!(meta.abort_upload(&bucket, "k", none).await, Err(UploadError::NoSuchUpload)));
    assert!(matches!(
        meta.put_part(&bucket, part("other key", upload, 1, (9, 1, 0))).await,
        Err(UploadError::NoSuchUpload)
    ));
    cluster.assert_sound().await;
    meta.complete_upload(&bucket, completion("k", upload, &[(2, 2)])).await.unwrap();
    assert!(matches!(complete(&[(2, 2)]).await, UploadError::NoSuchUpload));
    assert_eq!(cluster.assert_sound().await.blocks, 1);
}

#[tokio::test]
async fn an_aborted_upload_leaves_nothing() {
    let cluster = Cluster::new().await;
    let meta = &cluster.meta;
    let bucket = cluster.bucket("b", false).await;
    let upload = meta.create_upload(&bucket, "k", Attributes::default()).await.unwrap().id;
    for number in 1..5 {
        meta.put_part(&bucket, part("k", upload, number, (u64::from(number), 12, 0))).await.unwrap();
    }
    meta.abort_upload(&bucket, "k", upload).await.unwrap();
    let report = cluster.assert_sound().await;
    assert_eq!((report.blocks, report.stripes, report.uploads), (0, 0, 0));
    assert_eq!(meta.usage(&bucket).await.unwrap(), Usage::default());
    assert_eq!(cluster.releases().await.len(), 4 * 3 * 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_races_with_the_end_is_either_in_or_gone() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    for round in 0..20u64 {
        let upload = cluster.meta.create_upload(&bucket, "k", Attributes::default()).await.unwrap().id;
        cluster.meta.put_part(&bucket, part("k", upload, 1, (1, 1, 0))).await.unwrap();
        let late = tokio::spawn({
            let (meta, bucket) = (Arc::clone(&cluster.meta), bucket.clone());
            async move { meta.put_part(&bucket, part("k", upload, 2, (round + 10, 1, 0))).await }
        });
        let end = tokio::spawn({
            let (meta, bucket) = (Arc::clone(&cluster.meta), bucket.clone());
            async move { meta.complete_upload(&bucket, completion("k", upload, &[(1, 1)])).await }
        });
        let late = late.await.unwrap();
        assert!(late.is_ok() || matches!(late, Err(UploadError::NoSuchUpload)), "{late:?}");
        end.await.unwrap().unwrap();
        assert_eq!(cluster.assert_sound().await.blocks, 1);
    }
}

#[tokio::test]
async fn uploads_are_listed_by_key_and_id() {
    let cluster = Cluster::new().await;
    let meta = &cluster.meta;
    let bucket = cluster.bucket("b", false).await;
    let mut all = Vec::new();
    for key in ["a", "a", "a/1", "a/2", "b", "b/1", "c"] {
        all.push((key.to_owned(), meta.create_upload(&bucket, key, Attributes::default()).await.unwrap().id));
    }
    all.sort();
    let (mut found, mut prefixes) = (Vec::new(), Vec::new());
    let mut marker = (String::new(), None);
    loop {
        let page = meta.list_uploads(&bucket, "", "", (&marker.0, marker.1), 2).await.unwrap();
        found.extend(page.uploads.into_iter().map(|upload| (upload.key, upload.id)));
        let Some(next) = page.next else { break };
        marker = next;
    }
    assert_eq!(found, all);
    (found, marker) = (Vec::new(), (String::new(), None));
    loop {
        let page = meta.list_uploads(&bucket, "", "/", (&marker.0, marker.1), 1).await.unwrap();
        found.extend(page.uploads.into_iter().map(|upload| (upload.key, upload.id)));
        prefixes.extend(page.common_prefixes);
        let Some(next) = page.next else { break };
        marker = next;
    }
    assert_eq!(prefixes, ["a/", "b/"]);
    assert_eq!(found.iter().map(|(key, _)| key.as_str()).collect::<Vec<_>>(), ["a", "a", "b", "c"]);
}
