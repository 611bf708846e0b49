//! What buckets and objects have beyond bytes: versioning, tags, locks. The types, and their place in rows.
//!
//! Rows of buckets and objects that use none of it keep their first form; those that do have a second form, which is the
//! first with these fields behind it. So a table that never met a version or a tag is readable by the release before.

use holdfast_protocol::time::UnixMs;

use super::codec::{Reader, Writer};
use super::error::MetaError;

/// Whether a bucket keeps what is overwritten and deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Versioning {
    /// It never did.
    #[default]
    Off,
    /// It does.
    Enabled,
    /// It did, and keeps what it has; new objects replace the null version.
    Suspended,
}

/// Who may take a retention back before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetentionMode {
    /// Whoever may bypass it.
    Governance,
    /// Nobody.
    Compliance,
}

/// How long new objects of a bucket are retained unless they say otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DefaultRetention {
    /// The mode.
    pub mode: RetentionMode,
    /// For how many days.
    pub days: u32,
    /// Whether the client counted in years; only shown.
    pub in_years: bool,
}

/// What a bucket does beyond holding objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Whether it keeps versions.
    pub versioning: Versioning,
    /// Whether objects may be locked; then versioning stays enabled.
    pub lock: bool,
    /// The lock of objects that come without one.
    pub retention: Option<DefaultRetention>,
    /// Which settings of [`super::BucketSetting`] it has, one bit each.
    pub settings: u8,
}

/// Until when a version may not be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retention {
    /// The mode.
    pub mode: RetentionMode,
    /// Until when.
    pub until_ms: UnixMs,
}

/// What keeps a version from being deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lock {
    /// A time.
    pub retention: Option<Retention>,
    /// A person who has not said yes yet.
    pub legal_hold: bool,
}

impl Lock {
    /// Whether the version may be deleted at `now_ms`; `bypass` takes governance back.
    pub fn permits_deletion(&self, now_ms: UnixMs, bypass: bool) -> bool {
        let retained = self.retention.is_some_and(|retention| {
            retention.until_ms > now_ms && !(bypass && retention.mode == RetentionMode::Governance)
        });
        !self.legal_hold && !retained
    }
}

const HAS_RETENTION: u8 = 1;
const COMPLIANCE: u8 = 2;
const HELD: u8 = 4;

pub(super) fn put_lock(out: &mut Writer, lock: &Lock) {
    let mut flags = if lock.legal_hold { HELD } else { 0 };
    if let Some(retention) = &lock.retention {
        flags |= HAS_RETENTION;
        if retention.mode == RetentionMode::Compliance {
            flags |= COMPLIANCE;
        }
    }
    out.u8(flags);
    if let Some(retention) = &lock.retention {
        out.int(retention.until_ms);
    }
}

pub(super) fn lock(row: &mut Reader<'_>) -> Result<Lock, MetaError> {
    let flags = row.u8()?;
    if flags & !(HAS_RETENTION | COMPLIANCE | HELD) != 0 {
        return Err(row.corrupt());
    }
    let retention = if flags & HAS_RETENTION != 0 {
        let mode =
            if flags & COMPLIANCE != 0 { RetentionMode::Compliance } else { RetentionMode::Governance };
        Some(Retention { mode, until_ms: row.int()? })
    } else {
        None
    };
    Ok(Lock { retention, legal_hold: flags & HELD != 0 })
}

pub(super) fn put_features(out: &mut Writer, features: &Features) {
    out.u8(match features.versioning {
        Versioning::Off => 0,
        Versioning::Enabled => 1,
        Versioning::Suspended => 2,
    });
    out.u8(u8::from(features.lock));
    match &features.retention {
        None => out.u8(0),
        Some(retention) => out
            .u8(match retention.mode {
                RetentionMode::Governance => 1,
                RetentionMode::Compliance => 2,
            })
            .int(u64::from(retention.days))
            .u8(u8::from(retention.in_years)),
    };
    out.u8(features.settings);
}

pub(super) fn features(row: &mut Reader<'_>) -> Result<Features, MetaError> {
    let versioning = match row.u8()? {
        0 => Versioning::Off,
        1 => Versioning::Enabled,
        2 => Versioning::Suspended,
        _ => return Err(row.corrupt()),
    };
    let lock = row.u8()? != 0;
    let mode = match row.u8()? {
        0 => None,
        1 => Some(RetentionMode::Governance),
        2 => Some(RetentionMode::Compliance),
        _ => return Err(row.corrupt()),
    };
    let retention = match mode {
        None => None,
        Some(mode) => Some(DefaultRetention { mode, days: row.u32()?, in_years: row.u8()? != 0 }),
    };
    Ok(Features { versioning, lock, retention, settings: row.u8()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_and_features_come_back() {
        for mode in [RetentionMode::Governance, RetentionMode::Compliance] {
            for legal_hold in [false, true] {
                let kept = Lock { retention: Some(Retention { mode, until_ms: 77 }), legal_hold };
                let mut out = Writer::default();
                put_lock(&mut out, &kept);
                assert_eq!(lock(&mut Reader::new("lock", &out.0)).unwrap(), kept);
            }
            let kept = Features {
                versioning: Versioning::Suspended,
                lock: true,
                retention: Some(DefaultRetention { mode, days: 365, in_years: true }),
                settings: 5,
            };
            let mut out = Writer::default();
            put_features(&mut out, &kept);
            assert_eq!(features(&mut Reader::new("features", &out.0)).unwrap(), kept);
        }
    }

    #[test]
    fn a_lock_ends_with_its_time_and_governance_can_be_bypassed() {
        let retained = |mode| Lock { retention: Some(Retention { mode, until_ms: 10 }), legal_hold: false };
        let governance = retained(RetentionMode::Governance);
        assert!(!governance.permits_deletion(9, false) && governance.permits_deletion(9, true));
        assert!(governance.permits_deletion(10, false));
        let compliance = retained(RetentionMode::Compliance);
        assert!(!compliance.permits_deletion(9, true) && compliance.permits_deletion(10, false));
        let held = Lock { retention: None, legal_hold: true };
        assert!(!held.permits_deletion(u64::MAX, true));
    }
}
