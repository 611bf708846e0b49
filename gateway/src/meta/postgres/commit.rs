//! The committer: takes what waits, decides it in one serializable transaction, commits, answers.
//!
//! **Losing.** When another gateway's transaction was in the way, the database refuses the commit and the group is loaded
//! and decided again; after every loss it is halved, so that what is really contended ends up alone.
//!
//! **Not knowing.** When the connection breaks around the commit, nobody said whether it happened. Every group therefore
//! puts a random mark of its own into one row of this instance; [`Committer::settle`] looks for it on a new connection.
//! To be sure that the old transaction cannot commit afterwards, it replaces the mark: the two then compete for one row,
//! and the database lets only one of them through. So callers hear the truth through a database's restart.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join3;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_postgres::types::ToSql;

use super::super::store::{StoreError, TransactError, Write, prefix_end};
use super::Waiting;
use super::connection::{Session, Slot, backend, is_conflict, is_lost};
use super::group::{Effects, Group, Needs};
use crate::gateway::telemetry;

/// Transactions of one group: enough that sync and round trips are shared, few enough that the first does not wait long.
const GROUP_MAX: usize = 256;
/// Bytes written by one group, past which it takes no more.
const GROUP_BYTES_MAX: usize = 8 << 20;
/// Losses of one group to other gateways before its callers hear of it. Waiting adds up to about two seconds.
const LOSSES_MAX: u32 = 40;
/// The longest pause after a loss.
const LOSS_PAUSE_MAX: Duration = Duration::from_millis(80);
/// How long a group is tried in all, through restarts and failovers.
const GROUP_WITHIN: Duration = Duration::from_secs(40);
/// Pause after a broken connection, counted as so many losses.
const BROKEN_PAUSE: u32 = 4;
/// The row that says which group this instance committed last. No key of the schema is empty.
const MARK_KEY: &[u8] = b"";

/// A group's own name.
type Mark = [u8; 16];

/// Owns the connection that writes.
pub(super) struct Committer {
    slot: Slot,
    instance: i64,
    waiting: VecDeque<Waiting>,
    /// How many transactions to take; shrinks with losses, grows back with successes.
    size: usize,
}

/// How an attempt at a group ended.
enum Attempt {
    /// Committed; which of the transactions held.
    Done(Vec<bool>),
    /// Somebody else was in the way; nothing happened.
    Lost,
    /// The connection broke before the commit was asked for; nothing happened.
    Broken,
    /// The connection broke while the commit was asked for; what would have been answered.
    Unknown(Mark, Vec<bool>),
    /// It cannot be done now; nothing happened.
    Failed(StoreError),
    /// The database cannot be reached; nothing happened.
    Away(StoreError),
}

impl Committer {
    pub(super) fn new(slot: Slot, instance: i64) -> Self {
        Self { slot, instance, waiting: VecDeque::new(), size: GROUP_MAX }
    }

    /// Runs until every sender is gone and everybody is answered.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Waiting>) {
        loop {
            if self.waiting.is_empty() {
                match queue.recv().await {
                    Some(first) => self.waiting.push_back(first),
                    None => break,
                }
            }
            while self.waiting.len() < GROUP_MAX
                && let Ok(next) = queue.try_recv()
            {
                self.waiting.push_back(next);
            }
            if let Err(error) = self.commit_some().await {
                // Nobody is made to wait for an outage once more for each group before theirs.
                let mut waiting: Vec<Waiting> = self.waiting.drain(..).collect();
                while let Ok(next) = queue.try_recv() {
                    waiting.push(next);
                }
                answer(waiting, Err(error));
            }
        }
        self.slot.close().await;
    }

    /// Takes a group off the front of what waits and sees it through; fails when the database is not there.
    async fn commit_some(&mut self) -> Result<(), StoreError> {
        let mut group = self.take_group();
        let deadline = Instant::now() + GROUP_WITHIN;
        let mut losses = 0;
        loop {
            let verdicts = match self.attempt(&group).await {
                Attempt::Done(verdicts) => Ok(verdicts),
                Attempt::Unknown(mark, verdicts) => match self.settle(mark, deadline).await {
                    Ok(true) => Ok(verdicts),
                    Ok(false) => continue,
                    Err(error) => Err(error),
                },
                Attempt::Lost if losses < LOSSES_MAX && Instant::now() < deadline => {
                    losses += 1;
                    telemetry::meta_group_lost();
                    self.size = (group.len() / 2).max(1);
                    for later in group.drain(self.size.min(group.len())..).rev() {
                        self.waiting.push_front(later);
                    }
                    tokio::time::sleep(pause(losses)).await;
                    continue;
                }
                Attempt::Lost => Err(StoreError::Backend {
                    operation: "commit",
                    detail: "other gateways were faster every time".to_owned(),
                    retryable: true,
                }),
                Attempt::Broken if Instant::now() < deadline => {
                    // The broken connection may need a moment to know that it is.
                    tokio::time::sleep(pause(BROKEN_PAUSE)).await;
                    continue;
                }
                Attempt::Broken => Err(StoreError::Backend {
                    operation: "commit",
                    detail: "the database's connections break".to_owned(),
                    retryable: true,
                }),
                Attempt::Failed(error) => Err(error),
                Attempt::Away(error) => {
                    answer(group, Err(error.clone()));
                    return Err(error);
                }
            };
            if let Ok(verdicts) = &verdicts {
                let committed = verdicts.iter().filter(|held| **held).count();
                telemetry::meta_group(committed, verdicts.len() - committed);
            }
            if losses == 0 {
                self.size = (self.size * 2).min(GROUP_MAX);
            }
            answer(group, verdicts);
            return Ok(());
        }
    }

    fn take_group(&mut self) -> Vec<Waiting> {
        let (mut group, mut bytes) = (Vec::new(), 0);
        while group.len() < self.size && bytes < GROUP_BYTES_MAX {
            let Some(next) = self.waiting.pop_front() else { break };
            bytes += next.transaction.writes.iter().map(bytes_of).sum::<usize>();
            group.push(next);
        }
        group
    }

    async fn attempt(&self, group: &[Waiting]) -> Attempt {
        let session = match self.slot.session().await {
            Ok(session) => session,
            Err(error) => return Attempt::Away(error),
        };
        let decided = match self.load_and_decide(&session, group).await {
            Ok(decided) => decided,
            Err(error) => return given_up(&session, &error).await,
        };
        let (verdicts, effects) = decided;
        let Some(mark) = random_mark() else {
            return Attempt::Failed(StoreError::Backend {
                operation: "commit",
                detail: "the system's random source failed".to_owned(),
                retryable: true,
            });
        };
        match self.write_and_commit(&session, effects, mark).await {
            Ok(()) => Attempt::Done(verdicts),
            Err(error) if is_lost(&error) => Attempt::Unknown(mark, verdicts),
            Err(error) => given_up(&session, &error).await,
        }
    }

    /// Begins the transaction and loads all that the group depends on; the questions travel together.
    async fn load_and_decide(
        &self,
        session: &Session,
        group: &[Waiting],
    ) -> Result<(Vec<bool>, Effects), tokio_postgres::Error> {
        let needs = Needs::of(group.iter().map(|waiting| &waiting.transaction));
        let whole: Vec<&[u8]> = needs.whole.iter().map(Vec::as_slice).collect();
        let own: Vec<&[u8]> = needs.own.iter().map(Vec::as_slice).collect();
        let of_whole: [&(dyn ToSql + Sync); 1] = [&whole];
        let of_own: [&(dyn ToSql + Sync); 2] = [&own, &self.instance];
        let (begun, whole_rows, own_rows) = join3(
            session.client.batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE"),
            session.client.query(&session.many, &of_whole),
            session.client.query(&session.own, &of_own),
        )
        .await;
        begun?;
        let mut decided = Group::new(self.instance);
        for row in whole_rows? {
            decided.load(row.get(0), row.get(1), row.get(2));
        }
        for row in own_rows? {
            decided.load(row.get(0), self.instance, row.get(1));
        }
        let most = i64::try_from(needs.keys_per_prefix).unwrap_or(i64::MAX);
        for prefix in &needs.prefixes {
            let end = prefix_end(prefix);
            let rows = session.client.query(&session.keys_of, &[prefix, &end, &most]).await?;
            decided.load_prefix(prefix.clone(), rows.iter().map(|row| row.get(0)).collect());
        }
        let verdicts = group.iter().map(|waiting| decided.apply(&waiting.transaction)).collect();
        Ok((verdicts, decided.effects()))
    }

    /// Writes the effects and the mark, and commits; all of it travels together.
    async fn write_and_commit(
        &self,
        session: &Session,
        effects: Effects,
        mark: Mark,
    ) -> Result<(), tokio_postgres::Error> {
        let (mut keys, mut instances, mut values) = (Vec::new(), Vec::new(), Vec::new());
        if !effects.upserts.is_empty() || !effects.deletes.is_empty() {
            keys.push(MARK_KEY);
            instances.push(self.instance);
            values.push(&mark[..]);
        }
        for (key, instance, value) in &effects.upserts {
            keys.push(key);
            instances.push(*instance);
            values.push(value);
        }
        // One after the other on the wire, as they are polled: what is deleted goes before what is put in its place.
        let delete = async {
            if effects.deletes.is_empty() {
                return Ok(0);
            }
            session.client.execute(&session.delete, &[&effects.deletes]).await
        };
        let upsert = async {
            if keys.is_empty() {
                return Ok(0);
            }
            session.client.execute(&session.upsert, &[&keys, &instances, &values]).await
        };
        let commit = session.client.batch_execute("COMMIT");
        let (deleted, upserted, committed) = join3(delete, upsert, commit).await;
        deleted?;
        upserted?;
        committed
    }

    /// Finds out whether the group of `mark` was committed, and makes sure that the answer stays true.
    async fn settle(&self, mark: Mark, deadline: Instant) -> Result<bool, StoreError> {
        let mut ours: Vec<Mark> = Vec::new();
        let mut turns = 0;
        loop {
            let session = self.slot.session().await?;
            let Some(fresh) = random_mark() else { continue };
            ours.push(fresh);
            match self.replace_mark(&session, mark, &ours, fresh).await {
                Ok(answer) => return Ok(answer),
                Err(error) => {
                    let is_hopeless = !is_lost(&error) && !is_conflict(&error);
                    if is_hopeless || Instant::now() > deadline {
                        return Err(backend("say whether a commit happened", &error));
                    }
                    turns += 1;
                    // Ends the failed transaction; a broken connection has none.
                    let _ = session.client.batch_execute("ROLLBACK").await;
                    tokio::time::sleep(pause(turns)).await;
                }
            }
        }
    }

    async fn replace_mark(
        &self,
        session: &Session,
        mark: Mark,
        ours: &[Mark],
        fresh: Mark,
    ) -> Result<bool, tokio_postgres::Error> {
        session.client.batch_execute("BEGIN ISOLATION LEVEL SERIALIZABLE").await?;
        let rows = session.client.query(&session.own, &[&vec![MARK_KEY], &self.instance]).await?;
        let found: Option<Mark> = rows.first().and_then(|row| row.get::<_, &[u8]>(1).try_into().ok());
        if found == Some(mark) {
            session.client.batch_execute("ROLLBACK").await?;
            return Ok(true);
        }
        if found.is_some_and(|found| ours.contains(&found)) {
            // An earlier turn of ours committed: it had not found the mark, and kept the old transaction out.
            session.client.batch_execute("ROLLBACK").await?;
            return Ok(false);
        }
        let (keys, instances, values) = (vec![MARK_KEY], vec![self.instance], vec![&fresh[..]]);
        session.client.execute(&session.upsert, &[&keys, &instances, &values]).await?;
        session.client.batch_execute("COMMIT").await?;
        Ok(false)
    }
}

/// Ends a transaction that failed before its commit.
async fn given_up(session: &Arc<Session>, error: &tokio_postgres::Error) -> Attempt {
    if is_lost(error) {
        return Attempt::Broken;
    }
    // Harmless when the transaction is over already; when it fails the connection is gone, and the transaction with it.
    let _ = session.client.batch_execute("ROLLBACK").await;
    if is_conflict(error) { Attempt::Lost } else { Attempt::Failed(backend("commit", error)) }
}

/// Losers are answered together with the rest: before the commit they would read what they read before.
fn answer(group: Vec<Waiting>, verdicts: Result<Vec<bool>, StoreError>) {
    match verdicts {
        Ok(verdicts) => {
            for (waiting, held) in group.into_iter().zip(verdicts) {
                // Nobody waits any more when a caller was dropped; the transaction stands.
                drop(waiting.answer.send(if held { Ok(()) } else { Err(TransactError::Conflict) }));
            }
        }
        Err(error) => {
            for waiting in group {
                drop(waiting.answer.send(Err(error.clone().into())));
            }
        }
    }
}

fn bytes_of(write: &Write) -> usize {
    match write {
        Write::Put(key, value) | Write::PutIfAbsent(key, value) => key.len() + value.len(),
        Write::Delete(key) => key.len(),
        Write::Add(key, deltas) => key.len() + deltas.len() * 8,
    }
}

/// A random part of a bound that grows with every loss, so that two gateways do not keep meeting.
fn pause(losses: u32) -> Duration {
    let bound = Duration::from_millis(1).saturating_mul(1 << losses.min(10)).min(LOSS_PAUSE_MAX);
    let mut random = [0u8; 2];
    // Without random bytes the pause is whole, which is only slower.
    let part =
        if getrandom::fill(&mut random).is_ok() { u32::from(u16::from_le_bytes(random)) } else { 65_535 };
    bound * part / 65_536
}

fn random_mark() -> Option<Mark> {
    let mut mark = [0; 16];
    getrandom::fill(&mut mark).is_ok().then_some(mark)
}
