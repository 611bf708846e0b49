//! Answer and verdict: what a node proved of the chunks drawn, and what an auditor found.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::{Epoch, OwnerHash, Record, RecordId, text_within, within};
use crate::cbor::DecodeError;
use crate::digest::{BlockLen, Digest};
use crate::key::NodeId;
use crate::limits::{
    ANSWER_BODY_MAX, BEACON_PROOF_MAX, CHUNK_LEN, DRAWS_MAX, INVENTORY_PATH_MAX, PATH_LEN_MAX,
};

/// A round of a randomness beacon with what proves it. Signed by the beacon, in its own way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BeaconRound {
    /// Which round.
    pub round: u64,
    /// drand: the signature. Embedded beacon: the members' preimages one after another, 32 bytes each.
    pub proof: ByteBuf,
}

impl BeaconRound {
    /// Checks the bounds that CBOR cannot express.
    pub fn check_bounds(&self) -> Result<(), DecodeError> {
        within(self.proof.len() <= BEACON_PROOF_MAX, "proof")
    }
}

/// A node's answer to an epoch's draw: signed, so that a wrong one is evidence. The proofs travel beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditAnswer {
    /// Version.
    pub v: u16,
    /// Who; also the signer.
    pub node: NodeId,
    /// To which epoch's draw.
    pub epoch: Epoch,
    /// The beacon's round that drew.
    pub round: u64,
    /// How many bytes of proofs follow.
    pub body_len: u32,
    /// BLAKE3 of them: they are the canonical DAG-CBOR of [`AnswerBody`].
    pub body: Digest,
    /// When it was said.
    pub issued_ms: u64,
}

impl Record for AuditAnswer {
    const NAME: &'static str = "audit answer";
    const DOMAIN: &'static str = "holdfast audit answer v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        within(self.body_len > 0 && self.body_len <= ANSWER_BODY_MAX, "body_len")
    }
}

/// The proofs of an answer, one per drawn chunk that it speaks of, by ascending draw.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AnswerBody {
    /// At most [`DRAWS_MAX`].
    pub draws: Vec<DrawProof>,
}

impl AnswerBody {
    /// Checks the bounds that CBOR cannot express.
    pub fn check_bounds(&self) -> Result<(), DecodeError> {
        within(self.draws.len() <= DRAWS_MAX, "draws")?;
        within(self.draws.is_sorted_by(|one, next| one.draw < next.draw), "draws")?;
        self.draws.iter().try_for_each(DrawProof::check_bounds)
    }
}

/// One drawn chunk: the inventory's leaf at the drawn byte, and the chunk itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrawProof {
    /// Which of the epoch's draws, from 0.
    #[serde(rename = "i")]
    pub draw: u32,
    /// The leaf that holds the drawn byte.
    #[serde(rename = "n")]
    pub leaf: OpenedLeaf,
    /// The chunk, or nothing when the node cannot show it.
    #[serde(rename = "c")]
    pub chunk: Option<ChunkProof>,
}

/// An inventory's leaf, opened, with its way up to the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenedLeaf {
    /// The block.
    #[serde(rename = "d")]
    pub digest: Digest,
    /// Its length.
    #[serde(rename = "l")]
    pub len: BlockLen,
    /// Who keeps it, blinded.
    #[serde(rename = "o")]
    pub owner: OwnerHash,
    /// Which leaf of its bucket, from 0.
    #[serde(rename = "i")]
    pub index: u32,
    /// How many leaves the bucket has.
    #[serde(rename = "n")]
    pub count: u32,
    /// Siblings from the leaf upwards, 40 bytes each: hash, then bytes as u64 LE.
    #[serde(rename = "s")]
    pub siblings: ByteBuf,
}

/// A chunk with its path, and the last chunk with its path, which alone binds the block's length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkProof {
    /// The drawn chunk's bytes.
    #[serde(rename = "c")]
    pub chunk: ByteBuf,
    /// Its path.
    #[serde(rename = "p")]
    pub path: ByteBuf,
    /// The last chunk's bytes; empty when the drawn chunk is the last.
    #[serde(rename = "z")]
    pub last: ByteBuf,
    /// Its path.
    #[serde(rename = "q")]
    pub last_path: ByteBuf,
}

impl DrawProof {
    fn check_bounds(&self) -> Result<(), DecodeError> {
        within((self.draw as usize) < DRAWS_MAX, "draw")?;
        within(self.leaf.siblings.len() <= INVENTORY_PATH_MAX * 40, "siblings")?;
        let Some(chunk) = &self.chunk else { return Ok(()) };
        let fits = |bytes: &ByteBuf, path: &ByteBuf| {
            bytes.len() <= CHUNK_LEN as usize && path.len() <= PATH_LEN_MAX * 32
        };
        within(fits(&chunk.chunk, &chunk.path) && fits(&chunk.last, &chunk.last_path), "chunk")
    }
}

/// What came of one drawn chunk, or of a node's whole epoch. A miss is never yet a lie: only `Wrong` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditOutcome {
    /// Proved.
    Passed,
    /// Declared lost before the draw: costs that block's pay and nothing else.
    Declared,
    /// Declared refused before the draw.
    Refused,
    /// The auditor could not know: it was cut off itself, the beacon was silent, or the epoch is void.
    Unknown,
    /// Not answered yet, and still due.
    Pending,
    /// The node could not be reached.
    Offline,
    /// The node was reached and did not answer in time.
    Timeout,
    /// The node says that it cannot show it, or the time for answering is over.
    Absent,
    /// The node signed an answer that does not hold: exact evidence.
    Wrong,
}

/// One draw of a verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrawVerdict {
    /// Which draw, from 0.
    #[serde(rename = "i")]
    pub draw: u32,
    /// The block, once the node has opened the leaf that was drawn.
    #[serde(rename = "d")]
    pub digest: Option<Digest>,
    /// What came of it.
    #[serde(rename = "o")]
    pub outcome: AuditOutcome,
    /// For people: why it is wrong. Empty otherwise.
    #[serde(rename = "w")]
    pub why: String,
}

/// What an auditor found of one node in one epoch. A later one for the same epoch takes the earlier one's place:
/// drawn chunks stay due, and are settled when they are answered or when their time is over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Version.
    pub v: u16,
    /// Who found it; also the signer.
    pub auditor: NodeId,
    /// Of whom.
    pub node: NodeId,
    /// In which epoch.
    pub epoch: Epoch,
    /// The beacon's round that drew.
    pub round: u64,
    /// The commitment drawn from; none when there was none in time.
    pub commitment: Option<RecordId>,
    /// The newest answer, if there is one.
    pub answer: Option<RecordId>,
    /// The epoch as a whole: the worst outcome of its draws, or why there are none.
    pub outcome: AuditOutcome,
    /// Every draw, in order; empty without a commitment.
    pub draws: Vec<DrawVerdict>,
    /// Whether nothing of it can change any more.
    pub settled: bool,
    /// When it was said.
    pub issued_ms: u64,
}

impl Verdict {
    /// The draws with this outcome.
    pub fn count(&self, outcome: AuditOutcome) -> usize {
        self.draws.iter().filter(|draw| draw.outcome == outcome).count()
    }

    /// Blocks that the node was drawn for and does not have: what a repairer acts on.
    pub fn missing(&self) -> impl Iterator<Item = (Digest, AuditOutcome)> + '_ {
        let lost =
            |outcome| matches!(outcome, AuditOutcome::Wrong | AuditOutcome::Absent | AuditOutcome::Declared);
        self.draws
            .iter()
            .filter(move |draw| lost(draw.outcome))
            .filter_map(|draw| Some((draw.digest?, draw.outcome)))
    }
}

impl Record for Verdict {
    const NAME: &'static str = "verdict";
    const DOMAIN: &'static str = "holdfast verdict v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        within(self.draws.len() <= DRAWS_MAX, "draws")?;
        within(self.draws.is_sorted_by(|one, next| one.draw < next.draw), "draws")?;
        self.draws.iter().try_for_each(|draw| within(draw.why.len() <= crate::limits::VERDICT_WHY_MAX, "why"))
    }
}

/// Whether a score is good enough, with hysteresis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StandingState {
    /// Too little is known.
    New,
    /// As it should be.
    Good,
    /// Below a threshold: no new data until it is above the higher one again.
    Suspended,
    /// Proven to have lied: its data is repaired elsewhere.
    Disqualified,
}

/// An auditor's scores of a node, told to the node: what they are, where they are going, and how to check them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Version.
    pub v: u16,
    /// Who says so; also the signer.
    pub auditor: NodeId,
    /// Of whom.
    pub node: NodeId,
    /// As of which epoch.
    pub epoch: Epoch,
    /// Data score in parts per million.
    pub data_ppm: u32,
    /// Online score in parts per million.
    pub online_ppm: u32,
    /// Share of the epoch's pay, in parts per million; withheld while draws are due.
    pub pay_ppm: u32,
    /// What the scores mean.
    pub state: StandingState,
    /// Data score in a week if every draw passes from here.
    pub forecast_data_ppm: u32,
    /// Online score in a week if every epoch is answered from here.
    pub forecast_online_ppm: u32,
    /// The verdict that changed them last.
    pub evidence: RecordId,
    /// The command that replays it.
    pub replay: String,
    /// When it was said.
    pub issued_ms: u64,
}

impl Record for Standing {
    const NAME: &'static str = "standing";
    const DOMAIN: &'static str = "holdfast standing v1";
    fn version(&self) -> u16 {
        self.v
    }
    fn check_bounds(&self) -> Result<(), DecodeError> {
        text_within(&self.replay, "replay")
    }
}
