//! The load: single streams, parallel parts and ranges, and closed loops of many clients.
//!
//! Every byte read is compared; a wrong one ends the run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use crate::many;
use crate::measure::{Round, Work};
use crate::pattern::Dice;
use crate::s3::{Payload, Server, Session, Upload};

/// Parts of the multipart line: what clients choose for objects of a gigabyte.
const PART_LEN: u64 = 16 * 1024 * 1024;
/// Ranges of the parallel read.
const PARALLEL_RANGE_LEN: u64 = 8 * 1024 * 1024;

/// What each operation of a closed loop does.
#[derive(Clone, Debug)]
pub(crate) enum Job {
    /// Reads `len` bytes at a random place of an object, aligned to 4 KiB.
    RandomRange { key: String, object_len: u64, len: u64 },
    /// Writes the next small object under `prefix`.
    PutSmall { prefix: String, len: u64 },
    /// Reads a small object; `count` of them exist.
    GetSmall { prefix: String, len: u64, count: u64 },
    /// Writes the next object without bytes.
    PutEmpty,
    /// Lists 1,000 keys behind a random one of `count`.
    ListKeys { count: u64 },
    /// Lists the folders under a folder that all keys share.
    ListFolders { count: u64 },
    /// Lists the 100 keys of a random innermost folder.
    ListFolder { count: u64 },
}

/// When a closed loop ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Until {
    /// After this many operations.
    Count(u64),
    /// After this long.
    Elapsed(Duration),
}

/// The key of small object `number`.
fn small_key(prefix: &str, number: u64) -> String {
    format!("{prefix}{number:06}.jpg")
}

/// Stores one object in one request, `rounds` times under different keys; the last is `key` itself.
pub(crate) async fn put_stream(
    server: &Arc<Server>,
    key: &str,
    len: u64,
    payload: Payload,
    rounds: u32,
) -> Result<Work> {
    let mut work = Work::default();
    for round in (0..rounds).rev() {
        let key = if round == 0 { key.to_owned() } else { format!("{key}-{round}") };
        let upload = Upload::prepare(&server.pattern, &key, 0, len, payload);
        let mut session = Session::new(server);
        let start = Instant::now();
        session.put(&upload).await?;
        let elapsed = start.elapsed();
        work.add(Work::one(Round { bytes: len, operations: 1, elapsed }, vec![], session.retries));
    }
    Ok(work)
}

/// Reads a whole object on one connection, `rounds` times.
pub(crate) async fn get_stream(server: &Arc<Server>, key: &str, len: u64, rounds: u32) -> Result<Work> {
    let mut work = Work::default();
    for _ in 0..rounds {
        let mut session = Session::new(server);
        let start = Instant::now();
        session.get(key, 0, len, true).await?;
        let elapsed = start.elapsed();
        work.add(Work::one(Round { bytes: len, operations: 1, elapsed }, vec![], session.retries));
    }
    Ok(work)
}

/// Stores one object as parts over `width` connections.
pub(crate) async fn put_parts(server: &Arc<Server>, key: &str, len: u64, width: usize) -> Result<Work> {
    let mut session = Session::new(server);
    let start = Instant::now();
    let id = session.create_multipart(key).await?;
    let parts = len.div_ceil(PART_LEN);
    let (job_key, job_id) = (Arc::<str>::from(key), Arc::<str>::from(&*id));
    let mut done = pieces(server, width, parts, move |mut session, number, server| {
        let (key, id) = (Arc::clone(&job_key), Arc::clone(&job_id));
        async move {
            let offset = number * PART_LEN;
            let part_len = PART_LEN.min(len - offset);
            let upload = Upload::prepare(&server.pattern, &key, offset, part_len, Payload::Unsigned);
            let etag = session.upload_part(&upload, &id, u32::try_from(number + 1)?).await?;
            Ok((session, etag))
        }
    })
    .await?;
    done.results.sort_by_key(|(number, _)| *number);
    let etags: Vec<String> = done.results.into_iter().map(|(_, etag)| etag).collect();
    session.complete_multipart(key, &id, &etags).await?;
    let elapsed = start.elapsed();
    Ok(Work::one(Round { bytes: len, operations: 1, elapsed }, done.latencies_us, done.retries))
}

/// Reads one object as ranges over `width` connections.
pub(crate) async fn get_ranges(server: &Arc<Server>, key: &str, len: u64, width: usize) -> Result<Work> {
    let start = Instant::now();
    let job_key = Arc::<str>::from(key);
    let done = pieces(server, width, len.div_ceil(PARALLEL_RANGE_LEN), move |mut session, number, _| {
        let key = Arc::clone(&job_key);
        async move {
            let offset = number * PARALLEL_RANGE_LEN;
            session.get(&key, offset, PARALLEL_RANGE_LEN.min(len - offset), false).await?;
            Ok((session, ()))
        }
    })
    .await?;
    let elapsed = start.elapsed();
    Ok(Work::one(Round { bytes: len, operations: 1, elapsed }, done.latencies_us, done.retries))
}

struct Done<T> {
    results: Vec<(u64, T)>,
    latencies_us: Vec<u64>,
    retries: u64,
}

/// Does pieces `0..count`, `width` at a time, each worker on a connection of its own.
async fn pieces<T, F, Fut>(server: &Arc<Server>, width: usize, count: u64, piece: F) -> Result<Done<T>>
where
    T: Send + 'static,
    F: Fn(Session, u64, Arc<Server>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<(Session, T)>> + Send,
{
    let next = Arc::new(AtomicU64::new(0));
    let mut workers = JoinSet::new();
    for _ in 0..width {
        let (next, server, piece) = (Arc::clone(&next), Arc::clone(server), piece.clone());
        workers.spawn(async move {
            let mut session = Session::new(&server);
            let (mut results, mut latencies_us) = (Vec::new(), Vec::new());
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return anyhow::Ok(Done { results, latencies_us, retries: session.retries });
                }
                let start = Instant::now();
                let result;
                (session, result) = piece(session, number, Arc::clone(&server)).await?;
                latencies_us.push(micros(start.elapsed()));
                results.push((number, result));
            }
        });
    }
    let mut all = Done { results: Vec::new(), latencies_us: Vec::new(), retries: 0 };
    while let Some(worker) = workers.join_next().await {
        let worker = worker.context("a worker failed")??;
        all.results.extend(worker.results);
        all.latencies_us.extend(worker.latencies_us);
        all.retries += worker.retries;
    }
    Ok(all)
}

/// `width` clients that each start the next operation when the one before is answered.
pub(crate) async fn closed_loop(server: &Arc<Server>, job: Job, width: usize, until: Until) -> Result<Work> {
    let next = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..width as u64 {
        let (next, server, job) = (Arc::clone(&next), Arc::clone(server), job.clone());
        workers.spawn(async move {
            let mut session = Session::new(&server);
            let mut dice = Dice(worker.wrapping_mul(0x1234_5678_9abc_def1) ^ 0x5eed);
            let (mut bytes, mut latencies_us) = (0, Vec::new());
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                let over = match until {
                    Until::Count(count) => number >= count,
                    Until::Elapsed(limit) => start.elapsed() >= limit,
                };
                if over {
                    return anyhow::Ok((bytes, latencies_us, session.retries));
                }
                let begin = Instant::now();
                bytes += operate(&mut session, &server, &job, number, &mut dice).await?;
                latencies_us.push(micros(begin.elapsed()));
            }
        });
    }
    let (mut bytes, mut latencies_us, mut retries) = (0, Vec::new(), 0);
    while let Some(worker) = workers.join_next().await {
        let (worker_bytes, worker_latencies, worker_retries) = worker.context("a worker failed")??;
        bytes += worker_bytes;
        latencies_us.extend(worker_latencies);
        retries += worker_retries;
    }
    let round = Round { bytes, operations: latencies_us.len() as u64, elapsed: start.elapsed() };
    Ok(Work::one(round, latencies_us, retries))
}

/// One operation; returns the bytes of user data that it moved.
async fn operate(
    session: &mut Session,
    server: &Server,
    job: &Job,
    number: u64,
    dice: &mut Dice,
) -> Result<u64> {
    match job {
        Job::RandomRange { key, object_len, len } => {
            let offset = dice.below((object_len - len) / 4096 + 1) * 4096;
            session.get(key, offset, *len, false).await?;
            Ok(*len)
        }
        Job::PutSmall { prefix, len } => {
            let key = small_key(prefix, number);
            session.put(&Upload::prepare(&server.pattern, &key, 0, *len, Payload::Unsigned)).await?;
            Ok(*len)
        }
        Job::GetSmall { prefix, len, count } => {
            let key = small_key(prefix, number % count);
            session.get(&key, 0, *len, true).await?;
            Ok(*len)
        }
        Job::PutEmpty => {
            let key = many::key(number);
            session.put(&Upload::prepare(&server.pattern, &key, 0, 0, Payload::Unsigned)).await?;
            Ok(0)
        }
        Job::ListKeys { count } => many::list_keys(session, *count, dice).await.map(|()| 0),
        Job::ListFolders { count } => many::list_folders(session, *count).await.map(|()| 0),
        Job::ListFolder { count } => many::list_folder(session, *count, dice).await.map(|()| 0),
    }
}

/// `width` clients that each read an object from a random place to its end, over and over, for `limit`.
pub(crate) async fn stream_many(
    server: &Arc<Server>,
    key: &str,
    len: u64,
    width: usize,
    limit: Duration,
) -> Result<Work> {
    let start = Instant::now();
    let mut workers = JoinSet::new();
    for worker in 0..width as u64 {
        let (server, key) = (Arc::clone(server), key.to_owned());
        workers.spawn(async move {
            let mut session = Session::new(&server);
            let mut dice = Dice(worker ^ 0xabcd_ef01);
            let (mut bytes, mut requests) = (0, 0u64);
            while start.elapsed() < limit {
                let offset = dice.below(len / 2);
                bytes += session.read(&key, offset, len - offset, false, |_| start.elapsed() < limit).await?;
                requests += 1;
            }
            anyhow::Ok((bytes, requests, session.retries))
        });
    }
    let (mut round, mut retries) = (Round::default(), 0);
    while let Some(worker) = workers.join_next().await {
        let (bytes, requests, worker_retries) = worker.context("a worker failed")??;
        round.bytes += bytes;
        round.operations += requests;
        retries += worker_retries;
    }
    round.elapsed = start.elapsed();
    Ok(Work::one(round, vec![], retries))
}

fn micros(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}
