//! Surprise audits against a node that tries to tell them from readers, and against nodes that misbehave.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::record::{Policy, PolicyName, Record, Shard, Stripe, StripeId};
use holdfast_protocol::{BlockLen, Digest, NodeId, PublicKey};

use super::*;
use crate::testing::{Behaviour, TestNetwork};

const MIB: u64 = 1024 * 1024;

fn chance(seed: u8) -> Chance {
    Chance::new(&[seed; 32])
}

/// A stripe of four blocks of 1 MiB on nodes 0 to 3 and parity on 4 and 5.
fn stripe(id: u8) -> Stripe {
    let shard = |slot: u8| {
        let node = Some(NodeId(PublicKey([slot; 32])));
        Some(Shard { digest: Digest::of(&[id, slot]), len: BlockLen::MAX, node })
    };
    Stripe {
        v: Stripe::VERSION,
        id: StripeId([id; 16]),
        version: 1,
        policy: PolicyName::Local,
        k: 4,
        m: 2,
        block_len: BlockLen::MAX,
        shards: (0..6).map(shard).collect(),
    }
}

fn targets() -> Vec<SurpriseTarget> {
    (0..40).map(|id| SurpriseTarget { stripe: stripe(id), grant: None }).collect()
}

/// One reader of the population: what it reads and how fast, step by step.
fn reader(kind: usize, chance: &mut Chance) -> Vec<ReadShape> {
    let steps = 2 + chance.below(SESSION_STEPS_MAX - 2);
    let block = u32::try_from(MIB).unwrap();
    (0..steps)
        .map(|_| {
            let jitter = u32::try_from(chance.below(40)).unwrap();
            match kind {
                // A training job: ranges of 64 KiB all over.
                0 => {
                    let offset = u32::try_from(chance.below(16)).unwrap() * 65_536;
                    ReadShape { pause_ms: 2 + jitter / 8, offset, len: 65_536 }
                }
                // A loader of small files.
                1 => {
                    ReadShape { pause_ms: 5 + jitter, offset: 0, len: 40_000 + chance.below(200_000) as u64 }
                }
                // A download: whole stripes one after the other.
                2 => ReadShape { pause_ms: 30 + jitter, offset: 0, len: 8 * MIB },
                // A reader of records that start anywhere.
                _ => {
                    let offset = u32::try_from(chance.below(block as usize - 1)).unwrap();
                    ReadShape { pause_ms: 100 + 9 * jitter, offset, len: 1000 + chance.below(900_000) as u64 }
                }
            }
        })
        .collect()
}

/// What a node sees of one request.
#[derive(Clone, Copy)]
struct Sight {
    /// Whether the key was never seen before this session.
    fresh_key: bool,
    /// Requests of this key before.
    earlier: usize,
    bytes: u32,
    offset: u32,
    pause_ms: u32,
    /// Requests of this session in the same step: a run over stripes shows as several.
    together: usize,
}

impl Sight {
    fn features(self) -> [f64; 6] {
        let log = |value: u32| f64::from(value.saturating_add(1)).ln();
        let count = |value: usize| f64::from(u32::try_from(value.min(100)).unwrap()).ln_1p();
        [
            f64::from(u8::from(self.fresh_key)) * 3.0,
            count(self.earlier),
            log(self.bytes),
            log(self.offset),
            log(self.pause_ms),
            count(self.together),
        ]
    }
}

/// What node 1 sees of a session.
fn seen_by_a_node(session: &Session, reads: &[Vec<Planned>], fresh_key: bool) -> Vec<Sight> {
    let watcher = NodeId(PublicKey([1; 32]));
    let mut seen = Vec::new();
    let mut pause = 0u32;
    for (step, reads) in session.steps.iter().zip(reads) {
        pause = pause.saturating_add(u32::try_from(step.pause.as_millis()).unwrap());
        let mine: Vec<_> = reads.iter().filter(|read| read.node == watcher).collect();
        for read in &mine {
            seen.push(Sight {
                fresh_key,
                earlier: if fresh_key { seen.len() } else { 100 },
                bytes: read.range.len,
                offset: read.range.start,
                pause_ms: pause,
                together: mine.len(),
            });
            pause = 0;
        }
    }
    seen
}

/// Sessions of readers, and audits drawn from what a gateway recorded of *other* readers of the same population.
fn sights(audits: impl Fn(&[ReadShape], &mut Chance) -> Session) -> (Vec<Sight>, Vec<Sight>) {
    let mut numbers = chance(1);
    let recorder = ShapeRecorder::default();
    let mut now_ms = 0;
    for _ in 0..800 {
        let kind = numbers.below(4);
        for (index, shape) in reader(kind, &mut numbers).into_iter().enumerate() {
            now_ms += if index == 0 { 20_000 } else { u64::from(shape.pause_ms) };
            recorder.record(shape.offset, shape.len, now_ms);
        }
    }
    let shapes = recorder.shapes();
    assert!(shapes.len() > SHAPES_MIN);
    let (mut readers, mut audited) = (Vec::new(), Vec::new());
    for _ in 0..1500 {
        let kind = numbers.below(4);
        let steps = reader(kind, &mut numbers).into_iter().map(|shape| Step {
            pause: Duration::from_millis(shape.pause_ms.into()),
            offset: shape.offset,
            len: shape.len,
        });
        let session = Session { steps: steps.collect() };
        let reads = plan_reads(&session, &targets(), &mut numbers);
        // Three in ten readers come with a key of their own.
        readers.extend(seen_by_a_node(&session, &reads, numbers.below(10) < 3));
        let session = audits(&shapes, &mut numbers);
        let reads = plan_reads(&session, &targets(), &mut numbers);
        audited.extend(seen_by_a_node(&session, &reads, numbers.below(10) < 3));
    }
    (readers, audited)
}

/// The best that three ways of telling apart reach on requests that they did not learn from, half of them audits.
fn best_accuracy(readers: &[Sight], audits: &[Sight]) -> f64 {
    let each = readers.len().min(audits.len()).min(4000);
    let mut numbers = chance(9);
    let mut labelled: Vec<([f64; 6], bool)> = Vec::new();
    for _ in 0..each {
        labelled.push((readers[numbers.below(readers.len())].features(), false));
        labelled.push((audits[numbers.below(audits.len())].features(), true));
    }
    let (learn, test) = labelled.split_at(labelled.len() / 2);
    [neighbours(learn, test), thresholds(learn, test), logistic(learn, test)].into_iter().fold(0.0, f64::max)
}

type Labelled = ([f64; 6], bool);

fn share_right(test: &[Labelled], guess: impl Fn(&[f64; 6]) -> bool) -> f64 {
    let right = test.iter().filter(|(features, label)| guess(features) == *label).count();
    f64::from(u32::try_from(right).unwrap()) / f64::from(u32::try_from(test.len()).unwrap())
}

/// The majority of the 15 nearest.
fn neighbours(learn: &[Labelled], test: &[Labelled]) -> f64 {
    share_right(&test[..test.len().min(1000)], |features| {
        let distance =
            |other: &[f64; 6]| -> f64 { features.iter().zip(other).map(|(a, b)| (a - b) * (a - b)).sum() };
        let mut near: Vec<(f64, bool)> =
            learn.iter().map(|(other, label)| (distance(other), *label)).collect();
        near.select_nth_unstable_by(15, |a, b| a.0.total_cmp(&b.0));
        near[..15].iter().filter(|(_, audit)| *audit).count() > 7
    })
}

/// The best single threshold of any one feature.
fn thresholds(learn: &[Labelled], test: &[Labelled]) -> f64 {
    let mut best = (0.0, 0, 0.0, true);
    for feature in 0..6 {
        let mut cuts: Vec<f64> = learn.iter().map(|(features, _)| features[feature]).collect();
        cuts.sort_by(f64::total_cmp);
        for cut in cuts.iter().step_by((cuts.len() / 50).max(1)) {
            for above in [true, false] {
                let right = share_right(learn, |features| (features[feature] > *cut) == above);
                if right > best.0 {
                    best = (right, feature, *cut, above);
                }
            }
        }
    }
    share_right(test, |features| (features[best.1] > best.2) == best.3)
}

/// Logistic regression over all features, their squares and their products.
fn logistic(learn: &[Labelled], test: &[Labelled]) -> f64 {
    let spread = |features: &[f64; 6]| -> Vec<f64> {
        let mut all = vec![1.0];
        for (at, feature) in features.iter().enumerate() {
            all.push(feature / 10.0);
            all.extend(features[at..].iter().map(|other| feature * other / 100.0));
        }
        all
    };
    let mut weights = vec![0.0; spread(&learn[0].0).len()];
    for round in 0..60 {
        let rate = 1.0 / (1.0 + f64::from(round));
        for (features, label) in learn {
            let inputs = spread(features);
            let sum: f64 = inputs.iter().zip(&weights).map(|(input, weight)| input * weight).sum();
            let error = f64::from(u8::from(*label)) - 1.0 / (1.0 + (-sum).exp());
            weights.iter_mut().zip(&inputs).for_each(|(weight, input)| *weight += rate * error * input);
        }
    }
    share_right(test, |features| {
        spread(features).iter().zip(&weights).map(|(input, weight)| input * weight).sum::<f64>() > 0.0
    })
}

#[test]
fn a_node_cannot_tell_audits_from_readers() {
    let (readers, audits) = sights(draw_session);
    assert!(readers.len() > 2000 && audits.len() > 2000, "{} and {}", readers.len(), audits.len());
    let accuracy = best_accuracy(&readers, &audits);
    eprintln!("the best classifier is right about {accuracy:.3} of the requests");
    assert!(accuracy <= 0.55, "{accuracy}");
}

#[test]
fn the_same_classifiers_tell_audits_that_are_made_up() {
    // Chunks at random places at a steady pace, as an audit without a model of readers would ask.
    let naive = |_: &[ReadShape], chance: &mut Chance| Session {
        steps: (0..12)
            .map(|_| Step {
                pause: Duration::from_millis(50),
                offset: u32::try_from(chance.below(1024)).unwrap() * 1024,
                len: 1024,
            })
            .collect(),
    };
    let (readers, audits) = sights(naive);
    assert!(best_accuracy(&readers, &audits) > 0.9);
}

#[test]
fn audits_do_not_repeat_a_session_as_it_was() {
    let mut numbers = chance(3);
    let recorder = ShapeRecorder::default();
    let mut now_ms = 0;
    for _ in 0..200 {
        for (index, shape) in reader(3, &mut numbers).into_iter().enumerate() {
            now_ms += if index == 0 { 20_000 } else { u64::from(shape.pause_ms) };
            recorder.record(shape.offset, shape.len, now_ms);
        }
    }
    let shapes = recorder.shapes();
    let repeated = (0..200).filter(|_| {
        let session = draw_session(&shapes, &mut numbers);
        let steps: Vec<_> = session.steps.iter().map(|step| (step.offset, step.len)).collect();
        steps.len() > 2
            && shapes
                .windows(steps.len())
                .any(|was| was.iter().map(|s| (s.offset, s.len)).eq(steps.iter().copied()))
    });
    // By chance a short one may.
    assert!(repeated.count() <= 4);
}

#[test]
fn whole_stripes_are_read_in_runs() {
    let session = Session { steps: vec![Step { pause: Duration::ZERO, offset: 0, len: 8 * MIB }] };
    let reads = plan_reads(&session, &targets(), &mut chance(4));
    assert_eq!(reads[0].len(), 8, "two stripes of four blocks");
    let nodes: Vec<_> = reads[0].iter().map(|read| read.node.0.0[0]).collect();
    assert_eq!(nodes, [0, 1, 2, 3, 0, 1, 2, 3]);
    assert!(reads[0].iter().all(|read| (read.range.start, read.range.len) == (0, BlockLen::MAX.bytes())));
}

#[test]
fn the_recorder_forgets_the_oldest_and_starts_with_what_is_usual() {
    let recorder = ShapeRecorder::default();
    assert!(recorder.shapes().iter().any(|shape| shape.len == 8 * MIB));
    (0..SHAPES_MAX as u64 + 10).for_each(|at| recorder.record(0, 1 + at, at));
    let shapes = recorder.shapes();
    assert_eq!((shapes.len(), shapes[0].len), (SHAPES_MAX, 11));
}

#[tokio::test(start_paused = true)]
async fn answers_move_the_retrieval_score() {
    let network = TestNetwork::start(3).await;
    let bytes = Bytes::from(vec![7; 50_000]);
    let mut shards = vec![None; 6];
    for (slot, node) in network.nodes.iter().enumerate() {
        let digest = node.place(bytes.clone());
        shards[slot] = Some(Shard { digest, len: BlockLen::of(&bytes).unwrap(), node: Some(node.id()) });
    }
    let stripe = Stripe { shards, block_len: BlockLen::of(&bytes).unwrap(), ..stripe(1) };
    assert_eq!(usize::from(stripe.k), Policy::LOCAL.k);
    network.nodes[1].behave(Behaviour::FlipBit);
    network.nodes[2].vanish().await;
    let targets = [SurpriseTarget { stripe, grant: None }];
    let steps = vec![Step { pause: Duration::from_millis(5), offset: 0, len: 150_000 }; 3];
    let session = Session { steps };
    let reads = plan_reads(&session, &targets, &mut chance(5));
    let mut scores = [RetrievalScore::default(); 3];
    let reader = SurpriseReader::from(Arc::clone(&network.pool));
    let now_ms = crate::testing::START_MS;
    reader
        .run(&session, reads, |answer| {
            let at = network.nodes.iter().position(|node| node.id() == answer.node).unwrap();
            scores[at].add(&answer, now_ms);
        })
        .await;
    assert_eq!(scores.map(|score| (score.asked, score.right)), [(3, 3), (3, 0), (3, 0)]);
    assert!((scores[0].score() - 1.0).abs() < 1e-12);
    assert!(scores[1].score() < 0.05, "wrong bytes: {}", scores[1].score());
    assert!((scores[2].score() - 0.25).abs() < 1e-9, "silence weighs as much as an answer");
    // Evidence fades: a month later it counts half.
    let right = SurpriseAnswer {
        node: network.nodes[2].id(),
        digest: Digest([0; 32]),
        range: holdfast_protocol::message::ByteRange { start: 0, len: 1 },
        took: Duration::ZERO,
        fault: None,
    };
    scores[2].add(&right, now_ms + HALF_LIFE_MS);
    assert!((scores[2].bad - 1.5).abs() < 1e-9);
}
