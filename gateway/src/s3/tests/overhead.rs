//! What HTTP and S3 cost beside retrieval: the whole service over a real socket, with blocks that lie ready in memory.
//!
//! `cargo nextest run -p holdfast-gateway --run-ignored only overhead --no-capture` prints the figures. They are upper
//! bounds: the plane's copies are counted, and so is the BLAKE3 of its PUT, which are retrieval's.

use std::io::{Read, Write};
use std::net::TcpStream;

use super::*;

const OBJECT_LEN: usize = 256 << 20;
const ROUNDS: usize = 4;

/// User and system time of this process, or of this thread, in seconds.
fn cpu_s(file: &str) -> f64 {
    let stat = std::fs::read_to_string(file).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let ticks: Vec<u32> = rest.split(' ').skip(11).take(2).map(|field| field.parse().unwrap()).collect();
    // The kernel counts in hundredths of a second on every Linux that we run on.
    f64::from(ticks[0] + ticks[1]) / 100.0
}

/// Sends `request` and `body`, reads the answer to its end; returns the CPU of the client's own thread.
fn exchange(address: std::net::SocketAddr, request: &[u8], body: &[u8]) -> (u64, f64) {
    let before = cpu_s("/proc/thread-self/stat");
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(request).unwrap();
    stream.write_all(body).unwrap();
    let (mut buffer, mut length) = (vec![0; 1 << 20], 0);
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => return (length, cpu_s("/proc/thread-self/stat") - before),
            read => length += read as u64,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement, not a test"]
async fn overhead_of_http_and_s3_beside_retrieval() {
    let world = World::with_bucket("private").await;
    world.client.call("PUT", "/public", &[("x-amz-acl", "public-read")], b"").await.expect_status(200);
    let body = Arc::new(body_of(OBJECT_LEN));
    let gib = (OBJECT_LEN * ROUNDS) as f64 / f64::from(1 << 30);
    for bucket in ["public", "private"] {
        for method in ["PUT", "GET"] {
            let (whole, mut clients) = (cpu_s("/proc/self/stat"), 0.0);
            for _ in 0..ROUNDS {
                let path = format!("/{bucket}/object");
                let (len, sent) =
                    if method == "PUT" { (body.len(), Arc::clone(&body)) } else { (0, Arc::default()) };
                let head = world.client.signed_head(method, &path, &[], "UNSIGNED-PAYLOAD", len);
                let address = world.client.address;
                let client = tokio::task::spawn_blocking(move || exchange(address, head.as_bytes(), &sent));
                let (length, cpu) = client.await.unwrap();
                assert!(method == "PUT" || length > OBJECT_LEN as u64);
                clients += cpu;
            }
            let spent = (cpu_s("/proc/self/stat") - whole - clients) / gib;
            eprintln!("{method} {bucket}: {spent:.2} CPU-s/GiB of the gateway");
        }
    }
}
