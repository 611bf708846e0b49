//! What HTTP and S3 cost by themselves: reads of blocks that the gateway has in memory.
//!
//! The object fits into the gateway's cache of verified blocks and was read before, so nothing is asked of a node and
//! nothing is hashed. What is left is everything but retrieval: accepting, parsing, SigV4, access, metadata, deciphering,
//! writing to the socket (the kernel's share included), and the look-up in the cache, which a pure figure would not have.
//! The gateway's own counter of bytes that nodes sent says whether that is what was measured.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use http::Request;
use http_body_util::BodyExt;

use super::{CLIENTS, MIB, SMALL_LEN, Scenario};
use crate::client::{Body, Connection, Endpoint};
use crate::load::{self, Job, Until};
use crate::measure::{Goal, Line, Unit, Work};
use crate::s3::Payload;

/// Bytes of the object: two thirds of the gateway's default cache.
const CACHED_LEN: u64 = 32 * MIB;
const KEY: &str = "cached/object";
/// Small objects that fit beside it.
const CACHED_OBJECTS: u64 = 100;
/// Reads before the clock starts: the cache takes in what it sees for the second time.
const WARM_UP: u32 = 3;
/// How many times the object is read as a whole.
const ROUNDS: u32 = 64;
/// The counter of verified bytes that nodes sent.
const NODE_BYTES: &str = "holdfast_block_read_bytes_total";
/// More than this share of the bytes from nodes, and the line says nothing about overhead.
const NODE_SHARE_MAX: f64 = 0.01;

impl Scenario {
    /// Whole objects and 1 MiB ranges from the gateway's memory.
    pub(super) async fn cached_reads(&self, lines: &mut Vec<Line>) -> Result<()> {
        let names = [
            "GET cached, 1 stream",
            "GET cached 1 MiB ranges, 16 clients",
            "GET cached 100 KiB objects, 16 clients",
        ];
        if !names.iter().any(|name| self.is_wanted(name)) {
            return Ok(());
        }
        let Some(web) = self.web else {
            names.into_iter().try_for_each(|name| self.not_offered(lines, name))?;
            return Ok(());
        };
        let server = &self.server;
        load::put_stream(server, KEY, CACHED_LEN, Payload::Unsigned, 1).await?;
        load::get_stream(server, KEY, CACHED_LEN, WARM_UP).await?;
        let goal = Goal { cpu_s_per_gib_max: Some(0.5), ..Goal::default() };
        if self.is_wanted(names[0]) {
            let work = load::get_stream(server, KEY, CACHED_LEN, ROUNDS);
            self.cached_line(lines, web, (names[0], Unit::MegabytesPerSecond), goal, work).await?;
        }
        if self.is_wanted(names[1]) {
            let job = Job::RandomRange { key: KEY.to_owned(), object_len: CACHED_LEN, len: MIB };
            let work = load::closed_loop(server, job, CLIENTS, Until::Elapsed(self.size.loop_for));
            self.cached_line(lines, web, (names[1], Unit::OperationsPerSecond), goal, work).await?;
        }
        if self.is_wanted(names[2]) {
            self.cached_objects(lines, web, names[2]).await?;
        }
        Ok(())
    }

    /// The cost of a request rather than of its bytes; no goal is set for it.
    async fn cached_objects(&self, lines: &mut Vec<Line>, web: SocketAddr, name: &str) -> Result<()> {
        let (server, prefix, len) = (&self.server, "cached/small/".to_owned(), SMALL_LEN);
        let put = Job::PutSmall { prefix: prefix.clone(), len };
        load::closed_loop(server, put, CLIENTS, Until::Count(CACHED_OBJECTS)).await?;
        let get = Job::GetSmall { prefix, len, count: CACHED_OBJECTS };
        let warm_up = Until::Count(CACHED_OBJECTS * u64::from(WARM_UP));
        load::closed_loop(server, get.clone(), CLIENTS, warm_up).await?;
        let work = load::closed_loop(server, get, CLIENTS, Until::Elapsed(self.size.loop_for));
        self.cached_line(lines, web, (name, Unit::OperationsPerSecond), Goal::default(), work).await
    }

    async fn cached_line(
        &self,
        lines: &mut Vec<Line>,
        web: SocketAddr,
        (name, unit): (&str, Unit),
        goal: Goal,
        work: impl Future<Output = Result<Work>>,
    ) -> Result<()> {
        let before = node_bytes(web).await?;
        let mut line = self.measure(name, unit, goal, work).await?;
        #[allow(clippy::cast_precision_loss, reason = "a share, shown in percent")]
        let share = (node_bytes(web).await? - before) / line.bytes.max(1) as f64;
        if share > NODE_SHARE_MAX {
            line.met = Some(false);
            line.note =
                format!("{:.1} % of the bytes came from nodes: not the overhead alone", share * 100.0);
        }
        self.done(lines, line);
        Ok(())
    }
}

async fn node_bytes(web: SocketAddr) -> Result<f64> {
    let mut connection = Connection::open(&Endpoint::plain(web)).await?;
    let request = Request::get("/metrics").header("host", web.to_string()).body(Body::empty())?;
    let body = connection.send(request).await?.into_body().collect().await?.to_bytes();
    counter(&String::from_utf8_lossy(&body), NODE_BYTES)
        .with_context(|| format!("the gateway's metrics have no {NODE_BYTES}"))
}

/// The value of a counter without labels.
fn counter(metrics: &str, name: &str) -> Option<f64> {
    let value = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    value.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_found_among_its_neighbours() {
        let text = "# HELP a b\na_total_more 1\na_total{x=\"y\"} 2\na_total 3\n";
        assert_eq!(counter(text, "a_total"), Some(3.0));
        assert_eq!(counter(text, "b_total"), None);
    }
}
