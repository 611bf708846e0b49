//! Disclaimer: a namespace's signed no. The node may let these provisional blocks go.

use serde::{Deserialize, Serialize};

use super::{AgreementId, Record, within};
use crate::cbor::DecodeError;
use crate::digest::Digest;
use crate::limits::DIGESTS_PER_REQUEST_MAX;

/// "We never committed these": the answer to a node that asks at the end of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disclaimer {
    /// Version.
    pub v: u16,
    /// Under which agreement.
    pub agreement: AgreementId,
    /// The blocks that nobody wants.
    pub digests: Vec<Digest>,
    /// When it was said.
    pub issued_ms: u64,
}

impl Record for Disclaimer {
    const NAME: &'static str = "disclaimer";
    const DOMAIN: &'static str = "holdfast disclaimer v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        within(self.digests.len() <= DIGESTS_PER_REQUEST_MAX, "digests")
    }
}
