use std::sync::atomic::{AtomicU64, Ordering};

use holdfast_protocol::limits::BLOCK_LEN_MAX;
use holdfast_protocol::record::{PolicyName, Shard, Stripe, StripeId};
use holdfast_protocol::{BlockLen, Digest, NamespaceId, NodeId, PublicKey};

use super::*;
use crate::crypt::PartSecret;
use crate::keys::RootKey;
use crate::layout::{Entry, total_len};

mod cluster;
mod commit;
mod leases;
mod links;
mod listing;
mod locks;
mod model;
mod packing;
mod sealed;
mod shared;
mod sizes;
mod uploads;

use cluster::Cluster;
