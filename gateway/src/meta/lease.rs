//! Leases: which gateway does the work that only one may do.
//!
//! A lease is two rows. The owner's row holds a *fence*, a number that every change of owner raises; the other says until
//! when the lease runs, and only the owner moves it. Clocks decide when somebody may take over, so clocks that disagree
//! cost double work and nothing else: whoever was overtaken finds the fence changed in the transaction that commits what
//! it did ([`Fence::guard`]), and nothing of it happens. An end that an owner's wrong clock put far ahead does not keep
//! the others out: a lease that nobody has moved for a whole term, as they see it, is over.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::NodeId;
use holdfast_protocol::time::UnixMs;
use parking_lot::Mutex;

use super::error::{Attempt, MetaError, PlacementError};
use super::store::{TransactError, Transaction};
use super::{Meta, schema};

/// Bytes of an owner's row: a fence and a gateway's key.
const OWNER_LEN: usize = 8 + 32;
/// Bytes of a lease's name.
const NAME_LEN_MAX: usize = 64;
/// Names of leases that are watched at once; there is one today.
const LEASES_SEEN_MAX: usize = 64;

/// What a transaction must rely on to be the owner's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    key: Vec<u8>,
    value: Bytes,
}

impl Fence {
    /// Makes `transaction` fail with a conflict once the lease has another owner.
    pub fn guard(&self, transaction: &mut Transaction) {
        transaction.expect(self.key.clone(), Some(self.value.clone()));
    }

    /// How often the lease has changed its owner so far.
    pub fn number(&self) -> u64 {
        self.value.get(..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_be_bytes)
    }
}

/// A lease that this gateway was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    name: String,
    fence: Fence,
    /// When it ends, unless it is renewed.
    pub expires_ms: UnixMs,
}

impl Lease {
    /// What the owner's transactions rely on.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }
}

impl Meta {
    /// Takes the lease `name` for `holder`, if nobody else holds it; `None` when somebody does.
    ///
    /// Whoever held it last, and comes again under the same key, need not wait for its end: a gateway that was killed
    /// goes on at once. The fence is raised all the same, so that nothing of its last life commits any more.
    pub async fn acquire_lease(
        &self,
        name: &str,
        holder: NodeId,
        term: Duration,
    ) -> Result<Option<Lease>, MetaError> {
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return Err(MetaError::Bounds { what: "lease name" });
        }
        let (owner_key, end_key) = (schema::lease_owner(name), schema::lease_end(name));
        let owner = self.store.get(&owner_key).await?;
        let end = self.store.get(&end_key).await?;
        let now_ms = self.now_ms();
        let number = match &owner {
            None => 0,
            Some(row) => {
                let (number, holds) = decode_owner(row)?;
                let end_ms = end.as_deref().map_or(Ok(0), decode_end)?;
                let stands_still = self.lease_watch.stands_still(name, number, end_ms, now_ms, millis(term));
                if holds != *holder.as_bytes() && end_ms > now_ms && !stands_still {
                    return Ok(None);
                }
                number
            }
        };
        let number = number.checked_add(1).ok_or(MetaError::Corrupt { what: "lease" })?;
        let value = Bytes::from([&number.to_be_bytes()[..], holder.as_bytes()].concat());
        let expires_ms = now_ms.saturating_add(millis(term));
        let mut transaction = Transaction::default();
        // The end is relied on too: a renewal that comes between keeps the lease where it is.
        transaction.expect(owner_key.clone(), owner);
        transaction.expect(end_key.clone(), end);
        transaction.put(owner_key.clone(), value.to_vec());
        transaction.put(end_key, expires_ms.to_be_bytes().to_vec());
        match self.store.transact(transaction).await {
            Ok(()) => {
                let fence = Fence { key: owner_key, value };
                Ok(Some(Lease { name: name.to_owned(), fence, expires_ms }))
            }
            Err(TransactError::Conflict) => Ok(None),
            Err(TransactError::Store(error)) => Err(error.into()),
        }
    }

    /// Lets `lease` run for another `term`; `None` when it has another owner by now.
    pub async fn renew_lease(&self, lease: &Lease, term: Duration) -> Result<Option<Lease>, MetaError> {
        let expires_ms = self.now_ms().saturating_add(millis(term));
        let mut transaction = Transaction::default();
        lease.fence.guard(&mut transaction);
        transaction.put(schema::lease_end(&lease.name), expires_ms.to_be_bytes().to_vec());
        match self.store.transact(transaction).await {
            Ok(()) => Ok(Some(Lease { expires_ms, ..lease.clone() })),
            Err(TransactError::Conflict) => Ok(None),
            Err(TransactError::Store(error)) => Err(error.into()),
        }
    }

    /// Gives `lease` back, so that the next owner need not wait for its end.
    pub async fn release_lease(&self, lease: &Lease) -> Result<(), MetaError> {
        let mut transaction = Transaction::default();
        lease.fence.guard(&mut transaction);
        transaction.put(schema::lease_end(&lease.name), 0u64.to_be_bytes().to_vec());
        match self.store.transact(transaction).await {
            Ok(()) | Err(TransactError::Conflict) => Ok(()),
            Err(TransactError::Store(error)) => Err(error.into()),
        }
    }

    /// From now on what packing commits relies on `fence`. It stays when the lease is lost: what was begun under it must
    /// not be committed beside the next owner's work.
    pub fn own(&self, fence: &Fence) {
        *self.owner.write() = Some(fence.clone());
    }

    /// Makes `transaction` the owner's, if this gateway ever was one.
    pub(super) fn guard_owned(&self, transaction: &mut Transaction) {
        if let Some(fence) = &*self.owner.read() {
            fence.guard(transaction);
        }
    }

    /// Whether `fence` is still the lease's.
    pub async fn holds(&self, fence: &Fence) -> Result<bool, MetaError> {
        Ok(self.store.get(&fence.key).await?.as_ref() == Some(&fence.value))
    }

    /// Commits `transaction` as the owner: `false` when the fence or another precondition does not hold, and then
    /// nothing changed.
    pub async fn transact_owned(
        &self,
        fence: &Fence,
        mut transaction: Transaction,
    ) -> Result<bool, MetaError> {
        fence.guard(&mut transaction);
        match self.store.transact(transaction).await.map_err(Attempt::<MetaError>::from) {
            Ok(()) => Ok(true),
            Err(Attempt::Conflict) => Ok(false),
            Err(Attempt::Failed(error)) => Err(error),
        }
    }

    /// [`Meta::put_stripe`] by the owner of a lease: fails with [`PlacementError::Overtaken`] once there is another.
    pub async fn put_stripe_owned(
        &self,
        stripe: &holdfast_protocol::record::Stripe,
        expected_version: u64,
        fence: &Fence,
    ) -> Result<(), PlacementError> {
        self.put_stripe_guarded(stripe, expected_version, Some(fence)).await
    }
}

/// The leases of others, as last seen and since when by our own clock.
#[derive(Debug, Default)]
pub(super) struct LeaseWatch(Mutex<HashMap<String, (u64, UnixMs, UnixMs)>>);

impl LeaseWatch {
    /// Whether the lease has been seen with this fence and this end for `term_ms`: its owner renews it no more.
    fn stands_still(&self, name: &str, number: u64, end_ms: UnixMs, now_ms: UnixMs, term_ms: u64) -> bool {
        let mut seen = self.0.lock();
        if seen.len() >= LEASES_SEEN_MAX {
            seen.clear();
        }
        let (old_number, old_end, since) = seen.entry(name.to_owned()).or_insert((number, end_ms, now_ms));
        if (*old_number, *old_end) != (number, end_ms) || now_ms < *since {
            (*old_number, *old_end, *since) = (number, end_ms, now_ms);
        }
        now_ms - *since >= term_ms
    }
}

fn decode_owner(row: &[u8]) -> Result<(u64, [u8; 32]), MetaError> {
    let corrupt = MetaError::Corrupt { what: "lease" };
    let row: &[u8; OWNER_LEN] = row.try_into().map_err(|_| corrupt.clone())?;
    let (number, holder) = row.split_first_chunk::<8>().ok_or(corrupt.clone())?;
    Ok((u64::from_be_bytes(*number), holder.try_into().map_err(|_| corrupt)?))
}

fn decode_end(row: &[u8]) -> Result<UnixMs, MetaError> {
    row.try_into().map(u64::from_be_bytes).map_err(|_| MetaError::Corrupt { what: "lease" })
}

fn millis(term: Duration) -> u64 {
    u64::try_from(term.as_millis()).unwrap_or(u64::MAX)
}
