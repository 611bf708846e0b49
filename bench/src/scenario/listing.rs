//! Listings of a bucket with a million keys.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use super::Scenario;
use crate::load::{self, Job, Until};
use crate::many;
use crate::measure::{Goal, Line, Round, Unit, Work};
use crate::s3::{Server, Session};

/// Connections that fill the bucket: enough that commits are shared.
const FILLERS: usize = 64;
/// Listings of each kind.
const LISTINGS: u64 = 500;

impl Scenario {
    /// Fills the bucket and lists it in four ways.
    pub(super) async fn listings(&self, lines: &mut Vec<Line>) -> Result<()> {
        let count = self.size.many_count;
        let thousands = count / 1000;
        let names = [
            format!("PUT {thousands},000 empty, {FILLERS} clients"),
            format!("LIST 1,000 keys of {thousands},000"),
            format!("LIST folders of {thousands},000 keys"),
            format!("LIST 100 keys of one folder of {thousands},000"),
            format!("LIST all {thousands},000, page by page"),
        ];
        if !names.iter().any(|name| self.is_wanted(name)) {
            return Ok(());
        }
        let quick = Goal { p99_ms_max: Some(10.0), ..Goal::default() };
        let jobs = [
            (Job::PutEmpty, FILLERS, count, Goal::default()),
            (Job::ListKeys { count }, 1, LISTINGS, quick),
            (Job::ListFolders { count }, 1, LISTINGS, quick),
            (Job::ListFolder { count }, 1, LISTINGS, quick),
        ];
        for (name, (job, width, operations, goal)) in names.iter().zip(jobs) {
            let work = load::closed_loop(&self.server, job, width, Until::Count(operations));
            self.done(lines, self.measure(name, Unit::OperationsPerSecond, goal, work).await?);
        }
        let goal = Goal { gateway_mib_max: Some(512.0), ..Goal::default() };
        let work = walk(&self.server, count);
        self.done(lines, self.measure(&names[4], Unit::OperationsPerSecond, goal, work).await?);
        Ok(())
    }
}

async fn walk(server: &Arc<Server>, count: u64) -> Result<Work> {
    let mut session = Session::new(server);
    let start = Instant::now();
    let latencies_us = many::walk(&mut session, count).await?;
    let round = Round { bytes: 0, operations: latencies_us.len() as u64, elapsed: start.elapsed() };
    Ok(Work::one(round, latencies_us, session.retries))
}
