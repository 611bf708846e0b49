//! The store's shared state.

use std::sync::Arc;

use bytes::Bytes;
use holdfast_protocol::digest::Digest;
use holdfast_protocol::message::ByteRange;
use holdfast_protocol::record::{AgreementId, Claim, ClaimRef};
use tokio::sync::mpsc;

use super::command::Command;
use super::config::StoreConfig;
use super::error::{IndexError, OpenError, ReadError, StoreError};
use super::types::{Accounts, AgreementUsage, KeptOrder, Located, ReclaimReport, SharedTree};
use crate::disk::{BufferPool, Disk};

pub(crate) struct Shared {
    pub(crate) id: [u8; 16],
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) write_pool: Arc<BufferPool>,
}

pub(crate) fn open(config: StoreConfig) -> Result<(Arc<Shared>, mpsc::Sender<Command>), OpenError> {
    Err(OpenError::Identity { dir: config.dir, detail: "this build has no engine yet".to_owned() })
}

pub(crate) async fn reclaim(
    _shared: &Arc<Shared>,
    _commands: &mpsc::Sender<Command>,
    _now_ms: u64,
) -> Result<ReclaimReport, StoreError> {
    Err(StoreError::Closing)
}

pub(crate) struct View;

impl View {
    pub(crate) fn is_lost(&self, _digest: &Digest) -> Result<bool, IndexError> {
        Ok(false)
    }
    pub(crate) fn claim(&self, _a: &AgreementId, _c: &ClaimRef) -> Result<Option<Claim>, IndexError> {
        Ok(None)
    }
    pub(crate) fn expired_leases(
        &self,
        _now_ms: u64,
        _max: usize,
    ) -> Result<Vec<(AgreementId, ClaimRef)>, IndexError> {
        Ok(Vec::new())
    }
    pub(crate) fn agreement_usage(&self, _a: &AgreementId) -> Result<AgreementUsage, IndexError> {
        Ok(AgreementUsage::default())
    }
}

impl Shared {
    pub(crate) async fn lookup<T>(
        &self,
        look: impl Fn(&View) -> Result<T, IndexError>,
    ) -> Result<T, ReadError> {
        Ok(look(&View)?)
    }
    pub(crate) async fn locate(&self, _digest: Digest) -> Result<Option<Located>, ReadError> {
        Err(ReadError::Closing)
    }
    pub(crate) async fn read(&self, _located: &Located, _range: ByteRange) -> Result<Bytes, ReadError> {
        Err(ReadError::Closing)
    }
    pub(crate) async fn tree(&self, _located: &Located) -> Result<SharedTree, ReadError> {
        Err(ReadError::Closing)
    }
    pub(crate) async fn orders(&self, _a: AgreementId, _max: usize) -> Result<Vec<KeptOrder>, ReadError> {
        Err(ReadError::Closing)
    }
    pub(crate) fn accounts(&self) -> Accounts {
        Accounts::default()
    }
    pub(crate) fn failure(&self) -> Option<String> {
        None
    }
}
