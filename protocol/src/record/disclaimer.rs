//! Disclaimer: a namespace's signed no. The node may let these provisional blocks go.

use serde::{Deserialize, Serialize};

use super::{AgreementId, ClaimRef, Record, within};
use crate::cbor::DecodeError;
use crate::limits::CLAIMS_PER_REQUEST_MAX;

/// "We never committed these": the answer to a node that asks at the end of a lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disclaimer {
    /// Version.
    pub v: u16,
    /// Under which agreement.
    pub agreement: AgreementId,
    /// The claims that nobody wants.
    pub claims: Vec<ClaimRef>,
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
        within(self.claims.len() <= CLAIMS_PER_REQUEST_MAX, "claims")
    }
}
