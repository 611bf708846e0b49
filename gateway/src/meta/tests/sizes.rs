//! The budgets of the design: 150 MB of metadata per TB of 1 MiB blocks, 1 KB per small object.

use super::cluster::{MIB, entry, object, stored, stored_in, stripe};
use super::*;

/// Bytes of keys and values of all rows that stay, queues not counted: they empty within seconds.
async fn row_bytes(cluster: &Cluster) -> usize {
    let queues = [schema::COMMITS, schema::RELEASES, schema::COMPLETIONS];
    let mut bytes = 0;
    let mut start = Vec::new();
    loop {
        let rows = cluster.meta.store.page(&start, &[0xff], store::PAGE_ROWS_MAX).await.unwrap();
        let Some(last) = rows.last() else { return bytes };
        start = next_key(last.key.clone());
        let lasting = rows.iter().filter(|row| !queues.contains(&row.key[0]));
        // Eight bytes more a row: RocksDB's sequence number.
        bytes += lasting.map(|row| row.key.len() + row.value.len() + 8).sum::<usize>();
    }
}

#[tokio::test]
async fn a_terabyte_of_blocks_takes_150_megabytes() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    let empty = row_bytes(&cluster).await;
    let blocks: Vec<_> = (0..4096).map(|seed| entry(seed, MIB)).collect();
    cluster.meta.put_object(&bucket, object("big", stored(blocks, true))).await.unwrap();
    let a_block = (row_bytes(&cluster).await - empty) as f64 / 4096.0;
    let a_terabyte = a_block * 1e12 / f64::from(MIB) / 1e6;
    eprintln!("{a_block:.1} bytes a block, {a_terabyte:.0} MB a TB");
    assert!(a_terabyte <= 150.0, "{a_terabyte} MB");
}

#[tokio::test]
async fn a_small_object_takes_a_kilobyte() {
    let cluster = Cluster::new().await;
    let bucket = cluster.bucket("b", false).await;
    let empty = row_bytes(&cluster).await;
    for group in 0..100u64 {
        let blocks: Vec<_> =
            (0..4u32).map(|slot| entry(group * 4 + u64::from(slot), 100_000 + slot)).collect();
        let shared = stripe(&blocks);
        for (slot, block) in blocks.into_iter().enumerate() {
            let key = format!("train/class-{group:04}/image-{slot:08}.jpeg");
            let mut put = object(&key, stored_in(vec![block], vec![shared.clone()], true));
            put.attributes = Attributes {
                tags: Vec::new(),
                lock: Lock::default(),
                etag: "d41d8cd98f00b204e9800998ecf8427e-1".to_owned(),
                headers: vec![("content-type".to_owned(), "image/jpeg".to_owned())],
                user: vec![("mtime".to_owned(), "1763900000.123456789".to_owned())],
                checksums: vec![("crc64nvme".to_owned(), "AAAAAAAAAAA=".to_owned())],
            };
            cluster.meta.put_object(&bucket, put).await.unwrap();
        }
    }
    let an_object = (row_bytes(&cluster).await - empty) / 400;
    eprintln!("{an_object} bytes a small object");
    assert!(an_object <= 1000, "{an_object}");
}
