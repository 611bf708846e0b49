//! The lines of the benchmark, in their order, and what each must reach.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

mod cached;
mod listing;

use crate::load::{self, Job, Until};
use crate::measure::{Goal, Line, Unit, Work, measure};
use crate::process::Watched;
use crate::s3::{Payload, Server, Session};

/// Long enough for the commits that a PUT leaves to the background.
const SETTLE: Duration = Duration::from_millis(700);
const MIB: u64 = 1024 * 1024;
/// The small objects: what an image of a training set has.
const SMALL_LEN: u64 = 100 * 1024;
/// Clients of the closed loops and of the streaming line.
const CLIENTS: usize = 16;
/// Connections of one object's parallel parts and ranges.
const PARALLEL: usize = 8;
/// The large object that all reads use.
const LARGE: &str = "large/object";
/// Where the small objects are.
const SMALL: &str = "small/";

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Bytes of the large object.
    pub(crate) large_len: u64,
    /// How many small objects.
    pub(crate) small_count: u64,
    /// How many objects without bytes, for the listings.
    pub(crate) many_count: u64,
    /// Rounds of the single-stream lines with a goal.
    pub(crate) rounds: u32,
    /// How long each timed loop runs.
    pub(crate) loop_for: Duration,
    /// For how long after a line its CPU is still counted: acknowledged work leaves some behind.
    pub(crate) settle: Duration,
}

impl Size {
    /// What the figures in the documentation come from.
    pub(crate) const FULL: Self = Self {
        large_len: 1024 * MIB,
        small_count: 5_000,
        many_count: 1_000_000,
        rounds: 3,
        loop_for: Duration::from_secs(8),
        settle: SETTLE,
    };
    /// A minute's look.
    pub(crate) const QUICK: Self = Self {
        large_len: 256 * MIB,
        small_count: 1_500,
        many_count: 20_000,
        rounds: 1,
        loop_for: Duration::from_secs(3),
        settle: SETTLE,
    };
}

/// A server to measure.
pub(crate) struct Scenario {
    /// The server, plain HTTP.
    pub(crate) server: Arc<Server>,
    /// The same over TLS, if it offers that.
    pub(crate) tls: Option<Arc<Server>>,
    /// Where its counters are, if it is one of ours.
    pub(crate) web: Option<SocketAddr>,
    /// Its processes.
    pub(crate) watched: Watched,
    /// How much.
    pub(crate) size: Size,
    /// Lines whose name does not contain this are left out (the large object is always written).
    pub(crate) only: Option<String>,
    /// Called with each line as it is done.
    pub(crate) show: fn(&Line),
}

impl Scenario {
    /// Runs all lines.
    pub(crate) async fn run(&self) -> Result<Vec<Line>> {
        Session::new(&self.server).create_bucket().await?;
        let mut lines = Vec::new();
        self.writes(&mut lines).await?;
        self.reads(&mut lines).await?;
        self.random_reads(&mut lines).await?;
        self.cached_reads(&mut lines).await?;
        self.small_objects(&mut lines).await?;
        self.listings(&mut lines).await?;
        Ok(lines)
    }

    /// Reads a little of what an earlier start of the same network stored.
    pub(crate) async fn check_survival(&self) -> Result<()> {
        let mut session = Session::new(&self.server);
        let len = self.size.large_len;
        for offset in [0, len / 2 + 4097, len - MIB] {
            session.get(LARGE, offset, MIB, false).await?;
        }
        Ok(())
    }

    async fn writes(&self, lines: &mut Vec<Line>) -> Result<()> {
        let (server, len) = (&self.server, self.size.large_len);
        let goal = Goal { speed_min: Some(350.0), cpu_s_per_gib_max: Some(4.0), ..Goal::default() };
        let name = "PUT large, 1 stream";
        // Once in any case, since every read needs the object.
        let rounds = if self.is_wanted(name) { self.size.rounds } else { 1 };
        let work = load::put_stream(server, LARGE, len, Payload::Unsigned, rounds);
        self.done(lines, self.measure(name, Unit::MegabytesPerSecond, goal, work).await?);

        let name = "PUT large, 16 MiB parts, 8 at once";
        self.line(lines, name, Goal::default(), load::put_parts(server, "large/parts", len, PARALLEL))
            .await?;
        for (name, key, payload) in [
            ("PUT large, signed payload", "large/signed", Payload::Signed),
            ("PUT large, aws-chunked + CRC64NVME", "large/chunked", Payload::Crc64Trailer),
        ] {
            self.line(lines, name, Goal::default(), load::put_stream(server, key, len, payload, 1)).await?;
        }
        let name = "PUT large, 1 stream, TLS";
        match &self.tls {
            Some(tls) => {
                let work = load::put_stream(tls, "large/tls", len, Payload::Unsigned, 1);
                self.line(lines, name, Goal::default(), work).await
            }
            None => self.not_offered(lines, name),
        }
    }

    async fn reads(&self, lines: &mut Vec<Line>) -> Result<()> {
        let (server, size) = (&self.server, self.size);
        let goal = Goal { speed_min: Some(500.0), cpu_s_per_gib_max: Some(2.5), ..Goal::default() };
        let work = load::get_stream(server, LARGE, size.large_len, size.rounds);
        self.line(lines, "GET large, 1 stream", goal, work).await?;
        let work = load::get_ranges(server, LARGE, size.large_len, PARALLEL);
        self.line(lines, "GET large, 8 MiB ranges, 8 at once", Goal::default(), work).await?;
        let name = "GET large, 1 stream, TLS";
        match &self.tls {
            Some(tls) => {
                let work = load::get_stream(tls, LARGE, size.large_len, 1);
                self.line(lines, name, Goal::default(), work).await?;
            }
            None => self.not_offered(lines, name)?,
        }
        let goal = Goal { gateway_mib_max: Some(512.0), ..Goal::default() };
        let work = load::stream_many(server, LARGE, size.large_len, CLIENTS, size.loop_for);
        self.line(lines, "GET streams, 16 clients", goal, work).await
    }

    async fn random_reads(&self, lines: &mut Vec<Line>) -> Result<()> {
        let small = Goal { speed_min: Some(3000.0), ..Goal::default() };
        let whole = Goal { p99_ms_max: Some(40.0), ..Goal::default() };
        let ranges = [
            ("GET 64 KiB ranges, 16 clients", MIB / 16, small),
            ("GET 1 MiB ranges, 16 clients", MIB, whole),
        ];
        for (name, len, goal) in ranges {
            if !self.is_wanted(name) {
                continue;
            }
            let job = Job::RandomRange { key: LARGE.to_owned(), object_len: self.size.large_len, len };
            // Warm: placements and trees are looked up before the clock starts.
            let warm_up = Until::Elapsed(self.size.loop_for / 4);
            load::closed_loop(&self.server, job.clone(), CLIENTS, warm_up).await?;
            let work = load::closed_loop(&self.server, job, CLIENTS, Until::Elapsed(self.size.loop_for));
            let line = self.measure(name, Unit::OperationsPerSecond, goal, work).await?;
            self.done(lines, line);
        }
        Ok(())
    }

    async fn small_objects(&self, lines: &mut Vec<Line>) -> Result<()> {
        let (put, get) = ("PUT 100 KiB objects, 16 clients", "GET 100 KiB objects, 16 clients");
        if !self.is_wanted(put) && !self.is_wanted(get) {
            return Ok(());
        }
        let (prefix, count) = (SMALL.to_owned(), self.size.small_count);
        let goal = |speed| Goal { speed_min: Some(speed), stalls_max: Some(0), ..Goal::default() };
        let jobs = [
            (put, Job::PutSmall { prefix: prefix.clone(), len: SMALL_LEN }, goal(1000.0)),
            (get, Job::GetSmall { prefix, len: SMALL_LEN, count }, goal(4000.0)),
        ];
        for (name, job, goal) in jobs {
            let work = load::closed_loop(&self.server, job, CLIENTS, Until::Count(count));
            self.done(lines, self.measure(name, Unit::OperationsPerSecond, goal, work).await?);
        }
        Ok(())
    }

    async fn line(
        &self,
        lines: &mut Vec<Line>,
        name: &str,
        goal: Goal,
        work: impl Future<Output = Result<Work>>,
    ) -> Result<()> {
        if self.is_wanted(name) {
            self.done(lines, self.measure(name, Unit::MegabytesPerSecond, goal, work).await?);
        }
        Ok(())
    }

    async fn measure(
        &self,
        name: &str,
        unit: Unit,
        goal: Goal,
        work: impl Future<Output = Result<Work>>,
    ) -> Result<Line> {
        measure(&self.watched, self.size.settle, name, unit, goal, work).await
    }

    fn not_offered(&self, lines: &mut Vec<Line>, name: &str) -> Result<()> {
        if self.is_wanted(name) {
            self.done(lines, Line::absent(name, "not offered"));
        }
        Ok(())
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| name.contains(only))
    }

    fn done(&self, lines: &mut Vec<Line>, line: Line) {
        (self.show)(&line);
        lines.push(line);
    }
}
