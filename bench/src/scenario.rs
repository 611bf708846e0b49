//! The lines of the benchmark, in their order, and what each must reach.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;

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
/// Where the empty objects of the long listing are.
const WIDE: &str = "wide/";
/// Clients that write them: their commits share a sync.
const WIDE_CLIENTS: usize = 64;
/// Listings of the long one.
const WIDE_LISTINGS: u64 = 300;
/// Where the small objects are.
const SMALL: &str = "small/";

/// How much of everything.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Bytes of the large object.
    pub(crate) large_len: u64,
    /// How many small objects.
    pub(crate) small_count: u64,
    /// How many empty objects the long listing is taken from.
    pub(crate) listed_count: u64,
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
        listed_count: 1_000_000,
        rounds: 3,
        loop_for: Duration::from_secs(8),
        settle: SETTLE,
    };
    /// A minute's look.
    pub(crate) const QUICK: Self = Self {
        large_len: 256 * MIB,
        small_count: 1_500,
        listed_count: 20_000,
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
        self.small_objects(&mut lines).await?;
        self.long_listing(&mut lines).await?;
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
        // Always, since every read needs the object.
        let work = load::put_stream(server, LARGE, len, Payload::Unsigned, self.size.rounds);
        let name = "PUT large, 1 stream";
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
        let ranges = [
            ("GET 64 KiB ranges, 16 clients", MIB / 16, Some(3000.0), None),
            ("GET 1 MiB ranges, 16 clients", MIB, None, Some(40.0)),
        ];
        for (name, len, speed_min, p99_ms_max) in ranges {
            if !self.is_wanted(name) {
                continue;
            }
            let job = Job::RandomRange { key: LARGE.to_owned(), object_len: self.size.large_len, len };
            // Warm: placements and trees are looked up before the clock starts.
            let warm_up = Until::Elapsed(self.size.loop_for / 4);
            load::closed_loop(&self.server, job.clone(), CLIENTS, warm_up).await?;
            let work = load::closed_loop(&self.server, job, CLIENTS, Until::Elapsed(self.size.loop_for));
            let goal = Goal { speed_min, p99_ms_max, ..Goal::default() };
            let line = self.measure(name, Unit::OperationsPerSecond, goal, work).await?;
            self.done(lines, line);
        }
        Ok(())
    }

    async fn small_objects(&self, lines: &mut Vec<Line>) -> Result<()> {
        let names = ["PUT 100 KiB objects, 16 clients", "GET 100 KiB objects, 16 clients", "LIST 1,000 keys"];
        if !names.iter().any(|name| self.is_wanted(name)) {
            return Ok(());
        }
        let (prefix, count) = (SMALL.to_owned(), self.size.small_count);
        let put = Job::PutSmall { prefix: prefix.clone(), len: SMALL_LEN };
        let get = Job::GetSmall { prefix: prefix.clone(), len: SMALL_LEN, count };
        let jobs = [
            (put, CLIENTS, Until::Count(count), Some(1000.0)),
            (get, CLIENTS, Until::Count(count), Some(4000.0)),
            (Job::List { prefix, expected: 1000 }, 1, Until::Count(30), None),
        ];
        for (name, (job, width, until, speed_min)) in names.into_iter().zip(jobs) {
            let work = load::closed_loop(&self.server, job, width, until);
            let goal = Goal { speed_min, ..Goal::default() };
            self.done(lines, self.measure(name, Unit::OperationsPerSecond, goal, work).await?);
        }
        Ok(())
    }

    /// A page out of a million keys, which are empty objects put over S3 beforehand.
    async fn long_listing(&self, lines: &mut Vec<Line>) -> Result<()> {
        let count = self.size.listed_count;
        let name = format!("LIST 1,000 of {count} keys");
        if !self.is_wanted(&name) {
            return Ok(());
        }
        let prefix = WIDE.to_owned();
        let put = Job::PutSmall { prefix: prefix.clone(), len: 0 };
        let work = load::closed_loop(&self.server, put, WIDE_CLIENTS, Until::Count(count));
        let line =
            self.measure("PUT empty objects, 64 clients", Unit::OperationsPerSecond, Goal::default(), work);
        self.done(lines, line.await?);
        let job = Job::ListFrom { prefix, count };
        let work = load::closed_loop(&self.server, job, 1, Until::Count(WIDE_LISTINGS));
        // One client: so many a second is 10 ms each.
        let goal = Goal { speed_min: Some(100.0), ..Goal::default() };
        let line = self.measure(&name, Unit::OperationsPerSecond, goal, work).await?;
        self.done(lines, line);
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
