//! Many clients, greedy ones, and ones that dawdle.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::keys::Operation;
use crate::layout::Entry;
use crate::meta::{Attributes, NewPart, Stored, VersionId};

/// Nobody waits longer for what must happen.
const PATIENCE: Duration = Duration::from_secs(30);
/// What dawdlers are given in these tests.
const SHORT: Duration = Duration::from_millis(200);

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what}"));
}

/// All that the server sends until it hangs up.
async fn rest(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A connection that is cut may end in a reset, which is an end too.
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes)).await.expect("it is cut");
    bytes
}

/// Sixty-four clients of one key against four of another, over reads that are let through one at a time. First come, first
/// served would give the four a seventeenth.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_heavy_key_leaves_a_light_one_its_share() {
    const SERVED: usize = 400;
    let world = World::configured(|config| config.http.requests_per_key = 16).await;
    world.client.put("/data", b"").await.expect_status(200);
    world.client.put("/data/a", &body_of(5000)).await.expect_status(200);
    let heavy = world.tenant("heavy", tenants::rules("data", "", &[Operation::Read])).await;
    let light = world.tenant("light", tenants::rules("data", "", &[Operation::Read])).await;
    let gate = Arc::new(Semaphore::new(0));
    *world.plane.gate.lock() = Some(Arc::clone(&gate));
    let counts: [Arc<AtomicUsize>; 2] = Default::default();
    let mut clients = tokio::task::JoinSet::new();
    for (client, width, count) in [(heavy, 64, &counts[0]), (light, 4, &counts[1])] {
        for _ in 0..width {
            let (client, count) = (client.clone(), Arc::clone(count));
            clients.spawn(async move {
                loop {
                    client.get("/data/a").await.expect_status(200);
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    }
    let served = || counts.each_ref().map(|count| count.load(Ordering::Relaxed));
    for number in 1..=SERVED {
        gate.add_permits(1);
        until("a read that was let through is answered", || served().iter().sum::<usize>() >= number).await;
    }
    let [heavy, light] = served();
    clients.shutdown().await;
    assert!(light * 6 >= SERVED, "{light} of {SERVED} for the light key, {heavy} for the heavy one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_dawdle_are_cut_and_leave_nothing() {
    let world = World::configured(|config| {
        config.http.head_timeout = SHORT;
        config.http.body_idle_timeout = SHORT;
        config.http.write_idle_timeout = SHORT;
    })
    .await;
    world.client.put("/data", b"").await.expect_status(200);
    let large = body_of(24 << 20);
    world.client.put("/data/large", &large).await.expect_status(200);
    // A connection that says nothing, one that stops in its head, and one that asked before and says nothing more.
    let silent = TcpStream::connect(world.client.address).await.unwrap();
    assert_eq!(rest(silent).await, b"");
    let mut stuck = TcpStream::connect(world.client.address).await.unwrap();
    stuck.write_all(b"GET /data/large HTTP/1.1\r\nhost: x\r\nx-a").await.unwrap();
    assert!(!String::from_utf8_lossy(&rest(stuck).await).contains("200 OK"));
    // One that stops in its body: told so, and nothing is stored.
    let head = world.client.signed_head("PUT", "/data/half", &[], "UNSIGNED-PAYLOAD", 1000);
    let mut half = TcpStream::connect(world.client.address).await.unwrap();
    half.write_all(head.as_bytes()).await.unwrap();
    half.write_all(&[7; 500]).await.unwrap();
    let said = String::from_utf8_lossy(&rest(half).await).into_owned();
    assert!(said.starts_with("HTTP/1.1 400") && said.contains("RequestTimeout"), "{said}");
    world.client.get("/data/half").await.expect_error(404, "NoSuchKey");
    // One that never reads its answer: its connection goes, and with it the memory of its answer.
    let head = world.client.signed_head("GET", "/data/large", &[], "UNSIGNED-PAYLOAD", 0);
    let mut deaf = TcpStream::connect(world.client.address).await.unwrap();
    deaf.write_all(head.as_bytes()).await.unwrap();
    until("the answer begins", || world.core.answers.is_in_use()).await;
    until("the answer is given up", || !world.core.answers.is_in_use()).await;
    assert!(rest(deaf).await.len() < large.len(), "what was cut does not look whole");
}

/// Twice as many silent connections as there are seats, and one client that asks: it gets a seat.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_keep_nobody_out() {
    let world = World::configured(|config| config.http.connections = 8).await;
    let mut silent = Vec::new();
    for _ in 0..16 {
        let mut stream = TcpStream::connect(world.client.address).await.unwrap();
        stream.write_all(b"GET / HT").await.unwrap();
        silent.push(stream);
    }
    for _ in 0..4 {
        world.client.get("/").await.expect_status(200);
    }
    // The first to come was the first to go.
    rest(silent.remove(0)).await;
}

/// Slow readers hold whole blocks only while there is room for them; what comes beyond is served in small pieces, whole
/// and right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_beyond_their_memory_are_served_in_small_pieces() {
    let world = World::configured(|config| config.memory.answer_bytes = 4 << 20).await;
    world.client.put("/data", b"").await.expect_status(200);
    let large = body_of((12 << 20) + 77);
    world.client.put("/data/large", &large).await.expect_status(200);
    let head = world.client.signed_head("GET", "/data/large", &[], "UNSIGNED-PAYLOAD", 0);
    let mut deaf = Vec::new();
    for _ in 0..2 {
        // The kernel alone would take most of the object for a client that never reads.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let mut stream = socket.connect(world.client.address).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        deaf.push(stream);
    }
    until("both have their room", || world.core.answers.is_full()).await;
    for range in ["bytes=0-", "bytes=65530-9000001", "bytes=12582900-"] {
        let (from, to) = range.trim_start_matches("bytes=").split_once('-').unwrap();
        let (from, to): (usize, usize) = (from.parse().unwrap(), to.parse().unwrap_or(large.len() - 1));
        let got = world.client.call("GET", "/data/large", &[("range", range)], b"").await.expect_status(206);
        assert!(got.body == large[from..=to], "{range}");
        assert!(world.core.answers.is_full(), "it was served without room");
    }
    drop(deaf);
    until("room is free again", || !world.core.answers.is_in_use()).await;
}

/// After the stop no new connection is taken; what is under way ends as it should, and then the listener has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_finishes_what_is_under_way_and_takes_nothing_new() {
    let world = World::with_bucket("data").await;
    let listener = listen::bind("S3", "127.0.0.1:0".parse().unwrap(), "--s3-listen").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = Client { address, ..world.client.clone() };
    let stop = CancellationToken::new();
    let serving = tokio::spawn(listen::serve(
        listen::Listener::plain(listener),
        crate::s3::handler(Arc::clone(&world.core)),
        world.core.config.http,
        stop.clone(),
        PATIENCE,
    ));
    let body = body_of(3 << 20);
    let head = client.signed_head("PUT", "/data/late", &[], "UNSIGNED-PAYLOAD", body.len());
    let mut upload = TcpStream::connect(address).await.unwrap();
    upload.write_all(head.as_bytes()).await.unwrap();
    upload.write_all(&body[..1000]).await.unwrap();
    let idle = TcpStream::connect(address).await.unwrap();
    until("the upload is under way", || world.core.uploads.free_bytes() < world.core.uploads.budget_bytes())
        .await;
    stop.cancel();
    assert_eq!(rest(idle).await, b"", "an idle connection ends at once");
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    tokio::time::timeout(PATIENCE, refused).await.expect("the socket is closed");
    assert!(!serving.is_finished());
    upload.write_all(&body[1000..]).await.unwrap();
    let said = String::from_utf8_lossy(&rest(upload).await).into_owned();
    assert!(said.starts_with("HTTP/1.1 200"), "{said}");
    assert!(serving.await.unwrap(), "nothing had to be cut");
    assert!(world.client.get("/data/late").await.expect_status(200).body == body);
}

const PART: usize = 5 << 20;
const PARTS: u16 = 10_000;

/// Parts whose blocks are named and exist nowhere, which is all that completing and listing look at: all but two.
async fn put_named_parts(world: &World, upload: VersionId) {
    let bucket = world.core.meta.bucket("data").await.unwrap().unwrap();
    let next = Arc::new(AtomicUsize::new(1));
    let mut putting = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let (meta, bucket, next) = (Arc::clone(&world.core.meta), bucket.clone(), Arc::clone(&next));
        let policy = world.core.config.policy;
        putting.spawn(async move {
            loop {
                let number = u16::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap();
                if number > PARTS - 2 {
                    return;
                }
                let name = |at: u8| Digest::of(&[&number.to_le_bytes()[..], &[at]].concat());
                let len = BlockLen::new(1 << 20).unwrap();
                let blocks: Vec<BlockRef> = (0..5).map(|at| BlockRef { digest: name(at), len }).collect();
                let stored = Stored {
                    size: PART as u64,
                    stripes: blocks.chunks(policy.k).map(|data| Arc::new(stripe(&policy, data))).collect(),
                    blocks: blocks.iter().map(|block| Entry { digest: block.digest, len }).collect(),
                    secret: Some(crate::crypt::PartSecret::fresh().unwrap()),
                };
                let attributes = Attributes { etag: format!("{number:032x}"), ..Attributes::default() };
                let part = NewPart { key: "huge".to_owned(), upload, number, attributes, stored };
                meta.put_part(&bucket, part).await.unwrap();
            }
        });
    }
    while let Some(done) = putting.join_next().await {
        done.unwrap();
    }
}

/// 10,000 parts of 5 MiB, 48 GiB.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_of_ten_thousand_parts_is_completed() {
    let world = World::with_bucket("data").await;
    let path = "/data/huge";
    let created =
        world.client.call("POST", &format!("{path}?uploads"), &[], b"").await.expect_status(200).text();
    let id = created.split_once("<UploadId>").unwrap().1.split('<').next().unwrap().to_owned();
    put_named_parts(&world, VersionId(hex::decode(&id).unwrap().try_into().unwrap())).await;
    let bodies = [body_of(PART), body_of(1_234_567)];
    let mut lines: String = (1..=PARTS - 2)
        .map(|number| format!("<Part><PartNumber>{number}</PartNumber><ETag>{number:032x}</ETag></Part>"))
        .collect();
    for (number, body) in (PARTS - 1..).zip(&bodies) {
        let part = format!("{path}?partNumber={number}&uploadId={id}");
        let tag = world.client.put(&part, body).await.expect_status(200).header("etag").to_owned();
        lines.push_str(&format!("<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>"));
    }
    let page =
        world.client.get(&format!("{path}?uploadId={id}&part-number-marker=9500")).await.expect_status(200);
    assert_eq!(page.text().matches("<PartNumber>").count(), 500);
    let wrong = world.client.put(&format!("{path}?partNumber=10001&uploadId={id}"), b"x").await;
    wrong.expect_error(400, "InvalidArgument");
    let document = format!("<CompleteMultipartUpload>{lines}</CompleteMultipartUpload>");
    let complete = format!("{path}?uploadId={id}");
    let done = world.client.call("POST", &complete, &[], document.as_bytes()).await.expect_status(200);
    assert!(done.text().contains("-10000"), "{}", done.text());

    let size = (u64::from(PARTS) - 1) * PART as u64 + bodies[1].len() as u64;
    let head = world.client.call("HEAD", path, &[], b"").await.expect_status(200);
    assert_eq!(head.header("content-length"), size.to_string());
    let last = world.client.get(&format!("{path}?partNumber=10000")).await.expect_status(206);
    assert!(last.body == bodies[1]);
    assert_eq!(last.header("x-amz-mp-parts-count"), "10000");
    let border = size - bodies[1].len() as u64;
    let range = format!("bytes={}-{}", border - 10, border + 9);
    let got = world.client.call("GET", path, &[("range", &range)], b"").await.expect_status(206);
    assert!(got.body == [&bodies[0][PART - 10..], &bodies[1][..10]].concat());
    let tail = world.client.call("GET", path, &[("range", "bytes=-20")], b"").await.expect_status(206);
    assert!(tail.body == bodies[1][bodies[1].len() - 20..]);
    // The first parts are nowhere: an error before the answer, never a short body.
    assert!(world.client.get(&format!("{path}?partNumber=1")).await.status >= 500);
    world.client.call("DELETE", path, &[], b"").await.expect_status(204);
    world.client.get(path).await.expect_error(404, "NoSuchKey");
}

/// A client that sends its whole body before it listens hears why it was refused, and no reset.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let world = World::with_bucket("data").await;
    let body = body_of(20 << 20);
    for _ in 0..5 {
        world.client.put("/missing/key", &body).await.expect_error(404, "NoSuchBucket");
        let stranger = Client { secret: "wrong".to_owned(), ..world.client.clone() };
        stranger.put("/data/key", &body).await.expect_error(403, "SignatureDoesNotMatch");
    }
}

/// Documents larger than any that S3 knows, and deep ones, are a client's mistake.
#[tokio::test]
async fn huge_and_hollow_documents_are_mistakes_of_the_client() {
    let world = World::with_bucket("data").await;
    let many = "<Object><Key>k</Key></Object>".repeat(1001);
    let deep = format!("{}{}", "<a>".repeat(100_000), "</a>".repeat(100_000));
    let long = format!("<Delete><Object><Key>{}</Key></Object></Delete>", "k".repeat(5 << 20));
    let entities = "<!DOCTYPE d [<!ENTITY a \"aaaaaaaaaa\"><!ENTITY b \"&a;&a;&a;&a;&a;&a;&a;&a;\">]>\
                    <Delete><Object><Key>&b;</Key></Object></Delete>";
    for (query, body) in [
        ("?delete", format!("<Delete>{many}</Delete>")),
        ("?delete", deep.clone()),
        ("?delete", long),
        ("?delete", entities.to_owned()),
        ("?delete", String::new()),
        ("?delete", "<Delete>".to_owned()),
        ("/k?uploadId=00000000000000000000000000000000", deep),
    ] {
        let answer = world.client.call("POST", &format!("/data{query}"), &[], body.as_bytes()).await;
        let start: String = body.chars().take(60).collect();
        assert!((400..500).contains(&answer.status), "{start}: {} {}", answer.status, answer.text());
    }
    world.client.get("/data?list-type=2").await.expect_status(200);
}
