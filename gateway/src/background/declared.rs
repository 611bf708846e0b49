//! Losses that nodes declare themselves: asked for every few minutes, so that a lost shard is given a new place before
//! a reader or an auditor comes upon it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::message::DeclaredQuery;
use holdfast_protocol::record::DeclaredAs;
use holdfast_protocol::{Digest, NodeId};
use tokio_util::sync::CancellationToken;

use crate::gateway::Core;

/// How often every node that answers is asked.
const ASK_EVERY: Duration = Duration::from_secs(300);
/// How soon after the start that happens first.
const ASK_FIRST: Duration = Duration::from_secs(20);
/// How long one page may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// Pages taken from one node in one round.
const PAGES_MAX: usize = 128;
/// Losses of one node that are reported in one round, the rest in the next ones: what is none of ours costs a walk
/// through the stripes, and a node may declare what it likes.
const FRESH_MAX: usize = 1024;
/// Losses remembered of one node, so that they are not reported again every time.
const REMEMBERED_MAX: usize = 65_536;

/// Asks until stopped.
pub(super) async fn run(core: Arc<Core>, stop: CancellationToken) {
    let mut told: HashMap<NodeId, HashSet<Digest>> = HashMap::new();
    let mut pause = ASK_FIRST;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = ASK_EVERY;
        let nodes = core.pool.nodes();
        told.retain(|id, _| nodes.iter().any(|view| view.known.id == *id));
        for view in nodes.iter().filter(|view| !view.state.is_down() && view.known.agreement.is_some()) {
            let id = view.known.id;
            tokio::select! {
                () = stop.cancelled() => return,
                () = ask(&core, id, told.entry(id).or_default()) => {}
            }
        }
    }
}

/// Reports what a node declares lost and did not declare before.
async fn ask(core: &Core, id: NodeId, told: &mut HashSet<Digest>) {
    let (mut declared, mut fresh) = (HashSet::new(), 0);
    let (mut after, mut is_whole) = (None, false);
    'pages: for _ in 0..PAGES_MAX {
        let page = match page_of(core, id, after).await {
            Ok(page) => page,
            Err(why) => {
                // A node of an earlier release does not know the question.
                tracing::debug!(node = %id, why, "a node does not say what it has lost");
                break;
            }
        };
        after = page.0.last().copied();
        for digest in page.0 {
            if !told.contains(&digest) {
                if fresh == FRESH_MAX {
                    break 'pages;
                }
                core.healing.report(id, digest);
                fresh += 1;
            }
            declared.insert(digest);
        }
        is_whole = page.1;
        if is_whole {
            break;
        }
    }
    if fresh > 0 {
        tracing::warn!(node = %id, blocks = fresh, "a node declares blocks lost; their shards are checked and replaced");
    }
    if is_whole || told.len() + declared.len() > REMEMBERED_MAX {
        // What is no longer declared was put again, and may be lost again.
        *told = declared;
    } else {
        told.extend(declared);
    }
}

/// One page, checked: the digests, and whether they are the last.
async fn page_of(core: &Core, id: NodeId, after: Option<Digest>) -> Result<(Vec<Digest>, bool), String> {
    let asking = async {
        let peer = core.pool.peer(id).await.map_err(|error| error.to_string())?;
        let asked = peer.declared(DeclaredQuery { kind: DeclaredAs::Lost, after }).await;
        asked.map_err(|error| error.to_string())
    };
    let answer = tokio::time::timeout(ANSWER_WITHIN, asking).await;
    let page = answer.map_err(|_| "it does not answer in time".to_owned())??;
    let page = page.verify_by(id.key()).map_err(|error| error.to_string())?.into_record();
    if page.node != id || page.kind != DeclaredAs::Lost || page.after != after {
        return Err("it answers another question".to_owned());
    }
    Ok((page.digests, page.last))
}
