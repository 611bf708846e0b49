//! Two gateways on one database: one namespace.

use super::cluster::{TestClock, entry, keys, new_bucket, node, object, stored, stripe};
use super::*;
use crate::meta::postgres::tests::server::Postgres;

async fn gateway(server: &Postgres, instance: i64) -> Arc<Meta> {
    let config = PostgresConfig::of_instance(server.url(), instance);
    let store = PostgresStore::open(&config).await.unwrap();
    Meta::open(store, keys(1), Arc::new(TestClock::default())).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gateways_on_one_database_serve_one_namespace() {
    let server = Postgres::start().unwrap();
    let (one, two) = tokio::join!(gateway(&server, 1), gateway(&server, 2));
    let bucket = one.create_bucket(new_bucket("shared", false)).await.unwrap();
    assert_eq!(two.bucket("shared").await.unwrap().unwrap(), bucket);
    assert!(matches!(two.create_bucket(new_bucket("shared", true)).await, Err(BucketError::Exists { .. })));
    each_sees_what_the_other_wrote(&one, &two, &bucket).await;
    one_of_two_conditional_puts_wins(&one, &two, &bucket).await;
    one_counts_what_both_wrote(&one, &two, &bucket).await;
    queues_are_shared(&one, &two, &bucket).await;
    for meta in [&one, &two] {
        let report = meta.check().await.unwrap();
        assert_eq!(report.findings, vec![], "references and stripes agree after all that");
    }
    one.close().await.unwrap();
    assert!(two.object(&bucket, "0").await.unwrap().is_some(), "the other goes on");
    two.close().await.unwrap();
}

async fn each_sees_what_the_other_wrote(one: &Arc<Meta>, two: &Arc<Meta>, bucket: &Bucket) {
    for turn in 0..20u32 {
        let (writer, reader) = if turn % 2 == 0 { (one, two) } else { (two, one) };
        let key = turn.to_string();
        let put = object(&key, stored(vec![entry(turn.into(), 1000)], true));
        let put = writer.put_object(bucket, put).await.unwrap();
        let seen = reader.object(bucket, &key).await.unwrap().unwrap();
        assert_eq!((seen.version, seen.size), (put.version, put.size));
        let located = reader.locate(&entry(turn.into(), 1000).digest).await.unwrap();
        let to_read = reader.locate_to_read(&entry(turn.into(), 1000).digest).await.unwrap();
        assert_eq!(to_read.map(|to_read| to_read.stripe.id), located.as_ref().map(|found| found.stripe.id));
        assert!(located.is_some(), "the other gateway can read it, too");
        // The keys that the writer wrapped open at the reader.
        assert!(reader.read(&seen, 0..10).next().await.unwrap().is_some());
        assert!(reader.delete_object(bucket, &key).await.unwrap());
        assert!(writer.object(bucket, &key).await.unwrap().is_none());
        writer.put_object(bucket, object(&key, stored(vec![entry(turn.into(), 1000)], true))).await.unwrap();
    }
}

async fn one_of_two_conditional_puts_wins(one: &Arc<Meta>, two: &Arc<Meta>, bucket: &Bucket) {
    for turn in 0..10u64 {
        let put = |seed: u64| NewObject {
            condition: PutCondition::Absent,
            ..object(&format!("only-once/{turn}"), stored(vec![entry(1000 + 2 * turn + seed, 500)], true))
        };
        let (first, second) = tokio::join!(one.put_object(bucket, put(0)), two.put_object(bucket, put(1)));
        let lost = match (first, second) {
            (Ok(_), Err(error)) | (Err(error), Ok(_)) => error,
            both => panic!("{both:?}"),
        };
        assert!(matches!(lost, PutError::PreconditionFailed), "{lost}");
    }
}

/// Both gateways put and delete the same few keys, whose objects share blocks, all at once.
async fn one_counts_what_both_wrote(one: &Arc<Meta>, two: &Arc<Meta>, bucket: &Bucket) {
    let writers: Vec<_> = (0..6u64)
        .map(|writer| {
            let meta = Arc::clone(if writer % 2 == 0 { one } else { two });
            let bucket = bucket.clone();
            tokio::spawn(async move {
                for turn in 0..12u64 {
                    let key = format!("busy/{}", (writer + turn) % 4);
                    let blocks: Vec<_> = (0..3).map(|at| entry(5000 + (turn + at) % 7, 700)).collect();
                    match meta.put_object(&bucket, object(&key, stored(blocks, true))).await {
                        // A stripe may lose its last block to the other's delete; clients upload again.
                        Ok(_) | Err(PutError::StripeReleased { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                    if turn % 3 == 0 {
                        meta.delete_object(&bucket, &format!("busy/{}", turn % 4)).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let query = ListQuery {
        prefix: String::new(),
        delimiter: String::new(),
        start_after: String::new(),
        token: None,
        max_keys: 1000,
    };
    let listed = one.list_objects(bucket, &query).await.unwrap();
    assert_eq!(two.list_objects(bucket, &query).await.unwrap(), listed);
    let usage = two.usage(bucket).await.unwrap();
    assert_eq!(usage.objects, listed.objects.len() as u64);
    assert_eq!(usage.bytes, listed.objects.iter().map(|object| object.size).sum::<u64>());
}

/// What one gateway queued for a node that it alone has met, the other delivers.
async fn queues_are_shared(one: &Arc<Meta>, two: &Arc<Meta>, bucket: &Bucket) {
    let block = entry(9_999, 100);
    let mut fresh = (*stripe(&[block])).clone();
    for shard in fresh.shards.iter_mut().flatten() {
        shard.node = shard.node.map(|_| node(77));
    }
    fresh.shards.truncate(6);
    let put = Stored {
        size: 100,
        blocks: vec![block],
        secret: Some(PartSecret::fresh().unwrap()),
        stripes: vec![Arc::new(fresh)],
    };
    one.put_object(bucket, object("new-node", put)).await.unwrap();
    let items = two.commit_queue_of(node(77), 10).await.unwrap();
    assert_eq!(items.len(), 1, "the other gateway never met this node");
    two.ack_commits(&items).await.unwrap();
    assert!(one.commit_queue_of(node(77), 10).await.unwrap().is_empty());
}
