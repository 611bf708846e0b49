//! Listings against a plain model.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::cluster::{object, stored};
use super::*;

fn query(prefix: &str, delimiter: &str, max_keys: usize) -> ListQuery {
    ListQuery {
        prefix: prefix.to_owned(),
        delimiter: delimiter.to_owned(),
        start_after: String::new(),
        token: None,
        max_keys,
    }
}

/// Objects and common prefixes in order, as S3 says.
fn expected(keys: &BTreeSet<String>, query: &ListQuery) -> Vec<String> {
    let mut lines = Vec::new();
    for key in keys.iter().filter(|key| key.starts_with(&query.prefix) && **key > query.start_after) {
        let rest = &key[query.prefix.len()..];
        let line = match rest.find(&query.delimiter) {
            Some(at) if !query.delimiter.is_empty() => {
                format!("{}{}", query.prefix, &rest[..at + query.delimiter.len()])
            }
            _ => key.clone(),
        };
        if lines.last() != Some(&line) {
            lines.push(line);
        }
    }
    lines
}

async fn listed(cluster: &Cluster, bucket: &Bucket, mut query: ListQuery) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        let page = cluster.meta.list_objects(bucket, &query).await.unwrap();
        let count = page.objects.len() + page.common_prefixes.len();
        assert!(count <= query.max_keys);
        let mut both: Vec<_> = page.objects.into_iter().map(|object| object.key).collect();
        both.extend(page.common_prefixes);
        both.sort();
        lines.extend(both);
        match page.next {
            None => return lines,
            // Only a full page goes on.
            Some(_) if count < query.max_keys => panic!("a page of {count} goes on"),
            token => query.token = token,
        }
    }
}

fn any_key() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "/", "ä", "\u{ffff}", "0"]), 1..8)
        .prop_map(|parts| parts.concat())
}

#[test]
fn pages_of_any_size_list_what_a_model_lists() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let (cluster, bucket) = runtime.block_on(async {
        let cluster = Cluster::new().await;
        let bucket = cluster.bucket("listed", false).await;
        (cluster, bucket)
    });
    let keys = std::cell::RefCell::new(BTreeSet::new());
    proptest!(ProptestConfig::with_cases(60), |(
        more in prop::collection::vec(any_key(), 1..6),
        prefix in prop::sample::select(vec!["", "a", "a/", "b/a", "ä", "zzz"]),
        delimiter in prop::sample::select(vec!["", "/", "a", "ä"]),
        start_after in prop::option::of(any_key()),
        max_keys in 1usize..12,
    )| {
        runtime.block_on(async {
            for key in &more {
                cluster.meta.put_object(&bucket, object(key, stored(vec![], false))).await.unwrap();
            }
            keys.borrow_mut().extend(more);
            let start_after = start_after.unwrap_or_default();
            let query = ListQuery { start_after, ..query(prefix, delimiter, max_keys) };
            let found = listed(&cluster, &bucket, query.clone()).await;
            assert_eq!(found, expected(&keys.borrow(), &query));
        });
    });
}

#[tokio::test]
async fn a_wide_group_is_stepped_over() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("wide", false).await;
    let meta = &cluster.meta;
    let puts =
        (0..3000).map(|at| {
            let key = format!("{}/{at}", ["a", "b", "c"][at % 3]);
            async move {
                meta.put_object(&bucket_of(meta).await, object(&key, stored(vec![], false))).await.unwrap()
            }
        });
    futures::future::join_all(puts).await;
    let page = meta.list_objects(&bucket, &query("", "/", 10)).await.unwrap();
    assert_eq!(page.common_prefixes, vec!["a/", "b/", "c/"]);
    assert!(page.next.is_none());
    let none = meta.list_objects(&bucket, &query("", "/", 0)).await.unwrap();
    assert_eq!(none, ListPage::default());
    let most = meta.list_objects(&bucket, &query("", "", usize::MAX)).await.unwrap();
    assert_eq!(most.objects.len(), schema::LIST_MAX);
    assert!(most.next.is_some());
}

async fn bucket_of(meta: &Meta) -> Bucket {
    meta.bucket("wide").await.unwrap().unwrap()
}

#[tokio::test]
async fn a_token_of_nobodys_is_refused() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    for token in ["no base64!".to_owned(), "A".repeat(5000)] {
        let query = ListQuery { token: Some(token), ..query("", "", 10) };
        assert!(matches!(cluster.meta.list_objects(&bucket, &query).await, Err(MetaError::Token)));
    }
}
