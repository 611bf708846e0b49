//! Random interleavings of puts, overwrites, deletes and uploads, against a plain map.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::cluster::{MIB, entry, object, stored};
use super::*;

#[derive(Clone, Debug)]
enum Step {
    Put { key: u8, blocks: Vec<u8> },
    Delete { key: u8 },
    Start { key: u8 },
    Part { upload: u8, number: u16, blocks: Vec<u8> },
    Complete { upload: u8 },
    Abort { upload: u8 },
    Sweep,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    // Few keys and few blocks: everything is shared, overwritten and released all the time. Runs of more than
    // eight blocks have pages.
    let key = 0u8..5;
    let blocks = prop_oneof![prop::collection::vec(0u8..12, 0..7), prop::collection::vec(0u8..40, 9..20)];
    prop_oneof![
        8 => (key.clone(), blocks.clone()).prop_map(|(key, blocks)| Step::Put { key, blocks }),
        5 => key.clone().prop_map(|key| Step::Delete { key }),
        2 => key.prop_map(|key| Step::Start { key }),
        5 => (0u8..3, 1u16..4, blocks).prop_map(|(upload, number, blocks)| Step::Part { upload, number, blocks }),
        2 => (0u8..3).prop_map(|upload| Step::Complete { upload }),
        1 => (0u8..3).prop_map(|upload| Step::Abort { upload }),
        1 => Just(Step::Sweep),
        1 => Just(Step::Reopen),
    ]
}

type Blocks = Vec<Entry>;

#[derive(Default)]
struct Model {
    objects: BTreeMap<String, Blocks>,
    uploads: Vec<(String, VersionId, BTreeMap<u16, Blocks>)>,
}

/// Blocks of 1 MiB, so that parts of five are long enough.
fn entries(blocks: &[u8]) -> Blocks {
    blocks.iter().map(|seed| entry(u64::from(*seed), MIB)).collect()
}

fn etag(blocks: &Blocks) -> String {
    format!("{:?}", Digest::of(format!("{blocks:?}").as_bytes()))
}

async fn apply(cluster: Cluster, bucket: &Bucket, model: &mut Model, step: &Step) -> Cluster {
    let meta = &cluster.meta;
    match step {
        Step::Put { key, blocks } => {
            let blocks = entries(blocks);
            meta.put_object(bucket, object(&key.to_string(), stored(blocks.clone(), false))).await.unwrap();
            model.objects.insert(key.to_string(), blocks);
        }
        Step::Delete { key } => {
            let there = meta.delete_object(bucket, &key.to_string()).await.unwrap();
            assert_eq!(there, model.objects.remove(&key.to_string()).is_some());
        }
        Step::Start { key } => {
            let upload = meta.create_upload(bucket, &key.to_string(), Attributes::default()).await.unwrap();
            model.uploads.push((upload.key, upload.id, BTreeMap::new()));
        }
        Step::Part { upload, number, blocks } => {
            if let Some((key, id, parts)) = model.uploads.get_mut(usize::from(*upload)) {
                let blocks = entries(blocks);
                let attributes = Attributes { etag: etag(&blocks), ..Attributes::default() };
                let stored = stored(blocks.clone(), false);
                let part = NewPart { key: key.clone(), upload: *id, number: *number, attributes, stored };
                meta.put_part(bucket, part).await.unwrap();
                parts.insert(*number, blocks);
            }
        }
        Step::Complete { upload } => complete(meta, bucket, model, usize::from(*upload)).await,
        Step::Abort { upload } => {
            if usize::from(*upload) < model.uploads.len() {
                let (key, id, _) = model.uploads.remove(usize::from(*upload));
                meta.abort_upload(bucket, &key, id).await.unwrap();
            }
        }
        Step::Sweep => {
            meta.sweep(0, 5).await.unwrap();
        }
        Step::Reopen => return cluster.reopen().await,
    }
    cluster
}

async fn complete(meta: &Meta, bucket: &Bucket, model: &mut Model, upload: usize) {
    let Some((key, id, parts)) = model.uploads.get(upload) else { return };
    let completion = Completion {
        key: key.clone(),
        upload: *id,
        parts: parts.iter().map(|(number, blocks)| (*number, etag(blocks))).collect(),
        etag: "whole".to_owned(),
        checksums: vec![],
        condition: PutCondition::Any,
    };
    let outcome = meta.complete_upload(bucket, completion).await;
    let last = parts.keys().last();
    let small = parts.iter().any(|(number, blocks)| Some(number) != last && blocks.len() < 5);
    match outcome {
        Ok(_) => {
            assert!(!small && !parts.is_empty());
            let blocks = parts.values().flatten().copied().collect();
            model.objects.insert(key.clone(), blocks);
            model.uploads.remove(upload);
        }
        Err(UploadError::EntityTooSmall { .. }) => assert!(small),
        Err(UploadError::InvalidPartOrder) => assert!(parts.is_empty()),
        Err(error) => panic!("{error}"),
    }
}

async fn compare(cluster: &Cluster, bucket: &Bucket, model: &Model) {
    for key in 0..5 {
        let key = key.to_string();
        let object = cluster.meta.object(bucket, &key).await.unwrap();
        assert_eq!(object.is_some(), model.objects.contains_key(&key));
        let (Some(object), Some(blocks)) = (object, model.objects.get(&key)) else { continue };
        let read: Vec<_> =
            cluster.read(&object, 0..u64::MAX).await.into_iter().map(|piece| piece.0).collect();
        assert_eq!(read, blocks.iter().map(|block| block.digest).collect::<Vec<_>>());
        for digest in read {
            let located = cluster.meta.locate(&digest).await.unwrap().expect("what is read can be located");
            assert_eq!(located.stripe.shards[located.slot].unwrap().digest, digest);
            let to_read = cluster.meta.locate_to_read(&digest).await.unwrap().expect("and found by its hint");
            assert_eq!(to_read.stripe.shards[to_read.slot].unwrap().digest, digest);
        }
    }
    let report = cluster.assert_sound().await;
    assert_eq!(report.objects, model.objects.len() as u64);
    assert_eq!(report.uploads, model.uploads.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_history_equals_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut cluster = Cluster::new().await;
            let bucket = cluster.bucket("model", true).await;
            let mut model = Model::default();
            for (at, step) in steps.iter().enumerate() {
                cluster = apply(cluster, &bucket, &mut model, step).await;
                if at % 10 == 9 {
                    compare(&cluster, &bucket, &model).await;
                }
            }
            compare(&cluster, &bucket, &model).await;
        });
    }

    /// Eight clients at once on the same few keys: whatever the order, the counts come out right.
    #[test]
    fn any_interleaving_leaves_sound_counts(histories in prop::collection::vec(prop::collection::vec(step(), 1..12), 8)) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
        runtime.block_on(async {
            let cluster = Cluster::new().await;
            let bucket = cluster.bucket("model", true).await;
            let clients: Vec<_> = histories.into_iter().map(|history| {
                tokio::spawn(client(Arc::clone(&cluster.meta), bucket.clone(), history))
            }).collect();
            for client in clients {
                client.await.unwrap();
            }
            cluster.assert_sound().await;
        });
    }
}

/// One client's history; others may take its keys away at any time.
async fn client(meta: Arc<Meta>, bucket: Bucket, history: Vec<Step>) {
    let mut upload: Option<(String, VersionId)> = None;
    for step in history {
        match step {
            Step::Put { key, blocks } => {
                let put = object(&key.to_string(), stored(entries(&blocks), false));
                meta.put_object(&bucket, put).await.unwrap();
            }
            Step::Delete { key } => {
                meta.delete_object(&bucket, &key.to_string()).await.unwrap();
            }
            Step::Start { key } => {
                let started = meta.create_upload(&bucket, &key.to_string(), Attributes::default()).await;
                upload = Some((key.to_string(), started.unwrap().id));
            }
            Step::Part { number, blocks, .. } => {
                if let Some((key, id)) = &upload {
                    let stored = stored(entries(&blocks), false);
                    let attributes = Attributes { etag: "part".to_owned(), ..Attributes::default() };
                    let part = NewPart { key: key.clone(), upload: *id, number, attributes, stored };
                    meta.put_part(&bucket, part).await.unwrap();
                }
            }
            Step::Complete { .. } => {
                if let Some((key, id)) = upload.take() {
                    let completion = Completion {
                        key,
                        upload: id,
                        parts: vec![(1, "part".to_owned())],
                        etag: "whole".to_owned(),
                        checksums: vec![],
                        condition: PutCondition::Any,
                    };
                    let outcome = meta.complete_upload(&bucket, completion).await;
                    assert!(
                        matches!(outcome, Ok(_) | Err(UploadError::InvalidPart { number: 1 })),
                        "{outcome:?}"
                    );
                }
            }
            Step::Abort { .. } => {
                if let Some((key, id)) = upload.take() {
                    meta.abort_upload(&bucket, &key, id).await.unwrap();
                }
            }
            Step::Sweep | Step::Reopen => {
                meta.sweep(0, 5).await.unwrap();
            }
        }
    }
}
