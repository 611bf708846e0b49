use super::*;

const HOUR_MS: u64 = 3_600_000;

fn hours(scores: &mut Scores, from: u64, count: u64, outcomes: impl Fn(u64) -> Vec<AuditOutcome>) {
    for hour in from..from + count {
        scores.draws(hour * HOUR_MS, outcomes(hour));
        scores.epoch(hour * HOUR_MS, true);
    }
}

fn passed(_: u64) -> Vec<AuditOutcome> {
    vec![AuditOutcome::Passed; 20]
}

/// One chunk of a hundred is missing.
fn one_percent(hour: u64) -> Vec<AuditOutcome> {
    let mut outcomes = passed(hour);
    if hour.is_multiple_of(5) {
        outcomes[0] = AuditOutcome::Absent;
    }
    outcomes
}

#[test]
fn who_keeps_everything_is_good_and_who_keeps_99_percent_is_suspended() {
    let mut honest = Scores::new();
    hours(&mut honest, 0, 4, passed);
    assert_eq!(honest.state(), StandingState::New);
    hours(&mut honest, 4, 24, passed);
    assert_eq!((honest.state(), honest.data()), (StandingState::Good, 1.0));
    let mut sloppy = Scores::new();
    hours(&mut sloppy, 0, 24 * 30, one_percent);
    assert_eq!(sloppy.state(), StandingState::Suspended);
    assert!((sloppy.data() - 0.908).abs() < 0.01, "{}", sloppy.data());
}

#[test]
fn one_lost_chunk_in_a_week_costs_little_and_heals() {
    let mut scores = Scores::new();
    hours(&mut scores, 0, 24 * 7, passed);
    scores.draws(24 * 7 * HOUR_MS, [AuditOutcome::Absent]);
    assert_eq!(scores.state(), StandingState::Good);
    assert!(scores.data() > 0.99);
}

#[test]
fn silence_costs_online_score_alone() {
    let mut scores = Scores::new();
    hours(&mut scores, 0, 48, passed);
    for hour in 48..72 {
        scores.draws(hour * HOUR_MS, vec![AuditOutcome::Pending; 20]);
        scores.epoch(hour * HOUR_MS, false);
    }
    assert_eq!(scores.data(), 1.0);
    assert!(scores.online() < ONLINE_SUSPENDED_BELOW);
    assert_eq!(scores.state(), StandingState::Suspended);
}

#[test]
fn a_suspended_node_must_rise_above_the_higher_threshold() {
    let mut scores = Scores::new();
    hours(&mut scores, 0, 100, passed);
    for hour in 100..107 {
        scores.epoch(hour * HOUR_MS, false);
    }
    assert_eq!(scores.state(), StandingState::Suspended);
    let mut hour = 107;
    while scores.online() < ONLINE_GOOD_ABOVE {
        assert_eq!(scores.state(), StandingState::Suspended, "at {}", scores.online());
        hours(&mut scores, hour, 1, passed);
        hour += 1;
    }
    assert_eq!(scores.state(), StandingState::Good);
    assert!(hour > 150, "between the thresholds it stays suspended");
}

#[test]
fn wrong_proofs_in_two_epochs_or_two_commitments_disqualify_for_good() {
    let mut scores = Scores::new();
    hours(&mut scores, 0, 100, passed);
    scores.draws(100 * HOUR_MS, [AuditOutcome::Wrong; 20]);
    assert_eq!(scores.state(), StandingState::Suspended);
    scores.draws(101 * HOUR_MS, [AuditOutcome::Wrong]);
    assert_eq!(scores.state(), StandingState::Disqualified);
    hours(&mut scores, 102, 2000, passed);
    assert_eq!(scores.state(), StandingState::Disqualified);
    let mut twice = Scores::new();
    twice.equivocated();
    assert_eq!(twice.state(), StandingState::Disqualified);
}

#[test]
fn pay_is_withheld_declared_or_cut() {
    let mut outcomes = vec![AuditOutcome::Passed; 20];
    assert_eq!(pay(&outcomes), Some(1.0));
    outcomes[0] = AuditOutcome::Declared;
    assert_eq!(pay(&outcomes), Some(0.95));
    outcomes[0] = AuditOutcome::Absent;
    assert_eq!(pay(&outcomes), Some(0.5));
    outcomes[1] = AuditOutcome::Wrong;
    assert_eq!(pay(&outcomes), Some(0.0));
    outcomes[2] = AuditOutcome::Pending;
    assert_eq!(pay(&outcomes), None);
    assert_eq!(pay(&[]), Some(0.0));
    assert_eq!(pay(&[AuditOutcome::Declared; 3]), Some(0.0));
    assert_eq!(pay(&[AuditOutcome::Unknown, AuditOutcome::Passed]), Some(1.0));
}

/// What the formula is for: over the binomial distribution of 20 draws, keeping a fraction q in secret earns less than
/// declaring the rest, for every q below 1.
#[test]
fn keeping_a_part_in_secret_earns_less_than_declaring_the_loss() {
    for kept in [0.999, 0.99, 0.98, 0.95, 0.9, 0.5, 0.1] {
        let mut expected = 0.0;
        let mut ways = 1.0;
        for missed in 0..=20i32 {
            let probability = ways * f64::powi(kept, 20 - missed) * f64::powi(1.0 - kept, missed);
            expected += probability * pay_factor(f64::from(missed) / 20.0);
            ways = ways * f64::from(20 - missed) / f64::from(missed + 1);
        }
        assert!(expected < kept, "keeping {kept} earns {expected}");
    }
}

#[test]
fn misses_of_many_at_once_are_nobodys_fault() {
    assert!(is_correlated(6, 6));
    assert!(is_correlated(2, 2));
    assert!(!is_correlated(1, 1));
    assert!(!is_correlated(2, 6));
    assert!(!is_correlated(4, 9));
    assert!(is_correlated(5, 15));
    assert!(!is_correlated(5, 16));
}

#[test]
fn a_forecast_lies_between_now_and_whole() {
    let mut scores = Scores::new();
    hours(&mut scores, 0, 200, one_percent);
    let (data, online) = scores.forecast(HOUR_MS, 20);
    assert!(data > scores.data() && data < 1.0, "{data}");
    assert_eq!(online, 1.0);
}
