//! The self-check: counts all references again by walking every manifest, and compares.
//!
//! It reads page by page, not one snapshot: run it when nothing else writes, or take findings as hints.
//! Memory is one entry per referenced block, about 40 bytes each. It reports and repairs nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use holdfast_protocol::Digest;
use holdfast_protocol::record::StripeId;

use super::error::MetaError;
use super::history::Past;
use super::model::{Bucket, BucketId, VersionId};
use super::queue::stripe_of;
use super::row::{BlockRow, ObjectRow, PartRow, StripeRow};
use super::store::{PAGE_ROWS_MAX, Row, counters, prefix_end};
use super::{Meta, next_key, schema};
use crate::layout::{Layout, PartLayout, Run};

/// Findings kept; the rest is only counted.
const FINDINGS_MAX: usize = 1000;

/// What a self-check found.
#[derive(Clone, Debug, Default)]
pub struct CheckReport {
    /// Objects walked.
    pub objects: u64,
    /// Unfinished uploads walked.
    pub uploads: u64,
    /// Block rows.
    pub blocks: u64,
    /// Stripe rows.
    pub stripes: u64,
    /// What does not fit, at most a thousand.
    pub findings: Vec<Finding>,
    /// All that does not fit.
    pub findings_total: u64,
}

/// One thing that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
    /// A block row counts other references than there are.
    References {
        /// The block.
        digest: Digest,
        /// What its row says.
        counted: u64,
        /// What manifests say.
        found: u64,
    },
    /// A block row points to a slot that does not hold it.
    Misplaced {
        /// The block.
        digest: Digest,
        /// Where it points.
        stripe: StripeId,
    },
    /// A stripe in which no block lives.
    LeakedStripe {
        /// The stripe.
        stripe: StripeId,
    },
    /// A stripe that is released and stands.
    Undead {
        /// The stripe.
        stripe: StripeId,
    },
    /// A stripe that waits for a node and is not queued for completion.
    NotQueued {
        /// The stripe.
        stripe: StripeId,
    },
    /// A run counts other sharers than there are.
    Shares {
        /// The run.
        run: VersionId,
        /// What its row says.
        counted: u64,
        /// What manifests say.
        found: u64,
    },
    /// A row that belongs to nothing.
    Orphan {
        /// The kind of row.
        what: &'static str,
    },
    /// An object or part whose pieces are not as long as it says, or a run with a missing page.
    Length {
        /// The version or upload.
        version: VersionId,
    },
    /// A bucket's counters.
    Usage {
        /// The bucket.
        bucket: String,
        /// What they say.
        counted: Vec<i64>,
        /// What there is.
        found: Vec<i64>,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::References { digest, counted, found } => {
                write!(f, "block {digest} counts {counted} references, manifests hold {found}")
            }
            Self::Misplaced { digest, stripe } => write!(f, "block {digest} is not in stripe {stripe}"),
            Self::LeakedStripe { stripe } => write!(f, "no block lives in stripe {stripe}"),
            Self::Undead { stripe } => write!(f, "stripe {stripe} is released and stands"),
            Self::NotQueued { stripe } => write!(f, "stripe {stripe} waits for a node and is not queued"),
            Self::Shares { run, counted, found } => {
                write!(f, "run {run} counts {counted} more objects than one, manifests show {found}")
            }
            Self::Orphan { what } => write!(f, "a {what} row belongs to nothing"),
            Self::Length { version } => write!(f, "the blocks of {version} are not as long as it says"),
            Self::Usage { bucket, counted, found } => {
                write!(f, "bucket {bucket} counts {counted:?}, there are {found:?}")
            }
        }
    }
}

/// What has been seen so far.
#[derive(Default)]
struct Walk {
    report: CheckReport,
    refs: HashMap<Digest, u64>,
    runs: BTreeSet<VersionId>,
    versions: BTreeSet<VersionId>,
    uploads: BTreeSet<VersionId>,
    live: BTreeSet<StripeId>,
    shares: BTreeMap<VersionId, u64>,
}

impl Walk {
    fn found(&mut self, finding: Finding) {
        self.report.findings_total += 1;
        if self.report.findings.len() < FINDINGS_MAX {
            self.report.findings.push(finding);
        }
    }
}

impl Meta {
    /// Walks everything.
    pub async fn check(&self) -> Result<CheckReport, MetaError> {
        let mut walk = Walk::default();
        for bucket in self.buckets().await? {
            self.check_bucket(&bucket, &mut walk).await?;
        }
        self.check_unlinked(&mut walk).await?;
        self.check_shares(&mut walk).await?;
        self.check_owners(&mut walk).await?;
        self.check_blocks(&mut walk).await?;
        self.check_stripes(&mut walk).await?;
        Ok(walk.report)
    }

    async fn rows(&self, start: &mut Vec<u8>, table: &[u8]) -> Result<Vec<Row>, MetaError> {
        let page = self.store.page(start, &prefix_end(table), PAGE_ROWS_MAX).await?;
        if let Some(last) = page.last() {
            *start = next_key(last.key.clone());
        }
        Ok(page)
    }

    async fn check_bucket(&self, bucket: &Bucket, walk: &mut Walk) -> Result<(), MetaError> {
        let mut found = vec![0i64; 3];
        let table = schema::objects(bucket.id);
        let mut at = table.clone();
        loop {
            let rows = self.rows(&mut at, &table).await?;
            if rows.is_empty() {
                break;
            }
            for row in rows {
                let object = self.open_object(bucket.id, &row.key, &row.value)?;
                found[0] += 1;
                found[1] += super::bucket::delta(object.size);
                self.check_object(bucket.id, &object, walk).await?;
            }
        }
        let table = schema::history(bucket.id);
        let mut at = table.clone();
        loop {
            let rows = self.rows(&mut at, &table).await?;
            if rows.is_empty() {
                break;
            }
            for row in rows {
                if let Past::Object(object) = self.open_past(bucket.id, &row)? {
                    found[0] += 1;
                    found[1] += super::bucket::delta(object.size);
                    self.check_object(bucket.id, &object, walk).await?;
                }
            }
        }
        found[2] = self.check_uploads(bucket, walk).await?;
        let counted = self.store.get(&schema::usage(bucket.id)).await?;
        let mut counted = counted.map(|value| counters(&value)).unwrap_or_default();
        counted.resize(3, 0);
        if counted != found {
            walk.found(Finding::Usage { bucket: bucket.name.clone(), counted, found });
        }
        Ok(())
    }

    async fn check_object(
        &self,
        bucket: BucketId,
        object: &ObjectRow,
        walk: &mut Walk,
    ) -> Result<(), MetaError> {
        let parts = match &object.layout {
            Layout::Empty => Vec::new(),
            Layout::Single(part) => vec![part.clone()],
            Layout::Parts => {
                walk.versions.insert(object.version);
                let rows = self.object_part_rows(object.version).await?;
                let parts = rows.iter().map(|row| self.open_object_part(bucket, row));
                parts.collect::<Result<_, _>>()?
            }
        };
        walk.report.objects += 1;
        let blocks = self.check_parts(bucket, object.version, &parts, walk).await?;
        let len: u64 = parts.iter().map(|part| part.len).sum();
        if len != object.size || blocks != object.block_count {
            walk.found(Finding::Length { version: object.version });
        }
        Ok(())
    }

    /// Bytes of all parts of a bucket's unfinished uploads.
    async fn check_uploads(&self, bucket: &Bucket, walk: &mut Walk) -> Result<i64, MetaError> {
        let mut bytes = 0;
        let table = schema::uploads(bucket.id);
        let mut at = table.clone();
        loop {
            let rows = self.rows(&mut at, &table).await?;
            if rows.is_empty() {
                return Ok(bytes);
            }
            for row in rows {
                let upload = self.open_upload(bucket, &row)?;
                walk.report.uploads += 1;
                walk.uploads.insert(upload.id);
                let parts = self.part_rows(bucket, upload.id).await?;
                bytes += parts.values().map(|part| super::bucket::delta(part.size())).sum::<i64>();
                let layouts: Vec<_> = parts.into_values().filter_map(|part: PartRow| part.layout).collect();
                self.check_parts(bucket.id, upload.id, &layouts, walk).await?;
            }
        }
    }

    /// Counts the references of parts, and returns their blocks.
    async fn check_parts(
        &self,
        bucket: BucketId,
        version: VersionId,
        parts: &[PartLayout],
        walk: &mut Walk,
    ) -> Result<u64, MetaError> {
        let mut blocks = 0;
        for part in parts {
            let (mut len, mut count) = (0, 0);
            match &part.blocks {
                Run::Inline(entries) => {
                    len += crate::layout::total_len(entries);
                    count += entries.len() as u64;
                    entries.iter().for_each(|entry| *walk.refs.entry(entry.digest).or_default() += 1);
                }
                Run::Pages { run, .. } => {
                    // A shared run is listed by several objects; its blocks are referenced once.
                    let is_first = walk.runs.insert(*run);
                    if !is_first {
                        *walk.shares.entry(*run).or_default() += 1;
                    }
                    let table = schema::pages(*run);
                    let mut at = table.clone();
                    loop {
                        let rows = self.rows(&mut at, &table).await?;
                        if rows.is_empty() {
                            break;
                        }
                        for row in rows {
                            let page = self.open_page(bucket, &row)?;
                            len = page.end();
                            count += page.entries.len() as u64;
                            for entry in page.entries.iter().filter(|_| is_first) {
                                *walk.refs.entry(entry.digest).or_default() += 1;
                            }
                        }
                    }
                }
            }
            if len != part.len || count != part.blocks.count() {
                walk.found(Finding::Length { version });
            }
            blocks += count;
        }
        Ok(blocks)
    }

    /// Graves hold references like objects do; and each run must count as many sharers as there are.
    async fn check_shares(&self, walk: &mut Walk) -> Result<(), MetaError> {
        let objects = walk.report.objects;
        for (bucket, _, object) in self.graves().await? {
            self.check_object(bucket, &object, walk).await?;
        }
        walk.report.objects = objects;
        for run in walk.runs.clone() {
            let counted = self.shares_of(run).await?;
            let found = walk.shares.get(&run).copied().unwrap_or_default();
            if counted != found {
                walk.found(Finding::Shares { run, counted, found });
            }
        }
        Ok(())
    }

    /// Runs of large objects that are gone still hold references, but may have lost pages already.
    async fn check_unlinked(&self, walk: &mut Walk) -> Result<(), MetaError> {
        let table = schema::table(schema::UNLINKED);
        let mut at = table.clone();
        loop {
            let rows = self.rows(&mut at, &table).await?;
            if rows.is_empty() {
                return Ok(());
            }
            for row in rows {
                let (bucket, part) = self.open_unlinked(&row)?;
                let mut ignored = std::mem::take(&mut walk.report);
                self.check_parts(bucket, VersionId([0; 16]), &[part], walk).await?;
                std::mem::swap(&mut walk.report, &mut ignored);
            }
        }
    }

    /// Pages, parts of objects and parts of uploads must belong to something.
    async fn check_owners(&self, walk: &mut Walk) -> Result<(), MetaError> {
        for (tag, what) in [
            (schema::PAGES, "manifest page"),
            (schema::PARTS, "object part"),
            (schema::UPLOAD_PARTS, "upload part"),
        ] {
            let table = schema::table(tag);
            let mut at = table.clone();
            loop {
                let rows = self.rows(&mut at, &table).await?;
                if rows.is_empty() {
                    break;
                }
                for row in rows {
                    let owner = row.key.get(1..17).and_then(|id| id.try_into().ok()).map(VersionId);
                    let owners = match tag {
                        schema::PAGES => &walk.runs,
                        schema::PARTS => &walk.versions,
                        _ => &walk.uploads,
                    };
                    if !owner.is_some_and(|owner| owners.contains(&owner)) {
                        walk.found(Finding::Orphan { what });
                    }
                }
            }
        }
        Ok(())
    }

    async fn check_blocks(&self, walk: &mut Walk) -> Result<(), MetaError> {
        let table = schema::table(schema::BLOCKS);
        let mut at = table.clone();
        loop {
            let rows = self.rows(&mut at, &table).await?;
            if rows.is_empty() {
                break;
            }
            for row in rows {
                walk.report.blocks += 1;
                let digest = row.key[1..].try_into().map_err(|_| MetaError::Corrupt { what: "block" })?;
                let digest = Digest(digest);
                let block = BlockRow::decode(&row.value)?;
                let found = walk.refs.remove(&digest).unwrap_or_default();
                if found != block.refs {
                    walk.found(Finding::References { digest, counted: block.refs, found });
                }
                let stripe = self.store.get(&schema::stripe(block.stripe)).await?;
                let stripe = stripe.map(|value| StripeRow::decode(&value)).transpose()?;
                let there = stripe.is_some_and(|stripe| {
                    stripe.data().any(|(slot, shard)| slot == block.slot && shard.digest == digest)
                });
                if there {
                    walk.live.insert(block.stripe);
                } else {
                    walk.found(Finding::Misplaced { digest, stripe: block.stripe });
                }
            }
        }
        let missing: BTreeMap<_, _> = walk.refs.drain().collect();
        for (digest, found) in missing {
            walk.found(Finding::References { digest, counted: 0, found });
        }
        Ok(())
    }

    async fn check_stripes(&self, walk: &mut Walk) -> Result<(), MetaError> {
        let table = schema::table(schema::STRIPES);
        let mut at = table.clone();
        loop {
            let rows = self.rows(&mut at, &table).await?;
            if rows.is_empty() {
                break;
            }
            for row in rows {
                walk.report.stripes += 1;
                let stripe = stripe_of(&row.key[1..], "stripe")?;
                if !walk.live.contains(&stripe) {
                    walk.found(Finding::LeakedStripe { stripe });
                }
                if self.store.get(&schema::tombstone(stripe)).await?.is_some() {
                    walk.found(Finding::Undead { stripe });
                }
                let queued = self.store.get(&schema::completion(stripe)).await?.is_some();
                if StripeRow::decode(&row.value)?.incomplete() && !queued {
                    walk.found(Finding::NotQueued { stripe });
                }
            }
        }
        for (tag, what) in [(schema::COMMITS, "commit queue"), (schema::COMPLETIONS, "completion queue")] {
            self.check_queue(tag, what, walk).await?;
        }
        Ok(())
    }

    async fn check_queue(&self, tag: u8, what: &'static str, walk: &mut Walk) -> Result<(), MetaError> {
        let table = schema::table(tag);
        let mut at = table.clone();
        loop {
            let rows = self.rows(&mut at, &table).await?;
            if rows.is_empty() {
                return Ok(());
            }
            for row in rows {
                let (_, id) = row.key.split_last_chunk::<16>().ok_or(MetaError::Corrupt { what: "queue" })?;
                if self.store.get(&schema::stripe(StripeId(*id))).await?.is_none() {
                    walk.found(Finding::Orphan { what });
                }
            }
        }
    }
}
