//! `auditor verify` and `auditor report`: a whole log checked again, by whoever wants to.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use holdfast_proofs::log::check::Focus;
use holdfast_proofs::log::{
    LogChecker, LogReport, LogTail, Severity, SignedCheckpoint, TILE_WIDTH, blob_path, bundle_entries,
    tile_path,
};
use holdfast_proofs::score::ScoreBook;
use holdfast_protocol::PublicKey;

use super::logdir::{CHECKPOINT, LogSource};
use super::page;
use crate::args::{ReportArgs, VerifyArgs};
use crate::output::Output;

/// Findings shown to people; JSON has all that are kept.
const FINDINGS_SHOWN: usize = 20;

/// What was read from a log.
pub(crate) struct Checked {
    /// What was found.
    pub(crate) report: LogReport,
    /// The scores, computed again.
    pub(crate) book: ScoreBook,
    /// How long an epoch of the log is.
    pub(crate) epoch_ms: u64,
}

/// `holdfast auditor verify LOG`.
pub(crate) async fn verify(args: &VerifyArgs, output: Output) -> Result<ExitCode> {
    let node = args.node.as_deref().map(str::parse).transpose().context("--node")?;
    let key = args.key.as_deref().map(str::parse::<PublicKey>).transpose().context("--key")?;
    let focus = Focus { node, epoch: args.epoch };
    let mut checked = check(&LogSource::parse(&args.audit_log)?, focus, key).await?;
    for decoy in &args.decoy {
        let node = decoy.parse().context("--decoy")?;
        if let Some(account) = checked.book.account(node)
            && account.last_miss.is_none()
        {
            checked.report.failed += 1;
            checked.report.findings.push(holdfast_proofs::log::Finding {
                severity: Severity::Log,
                entry: checked.report.entries,
                node: Some(decoy.clone()),
                epoch: None,
                what: "the auditor never found a fault with this node, which is known to answer wrongly"
                    .into(),
            });
        }
    }
    output.value(&checked.report);
    say(&checked.report, output);
    Ok(if checked.report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn say(report: &LogReport, output: Output) {
    output.say(format!("log      {} of auditor {}", report.origin, report.auditor));
    output.say(format!("beacon   {}", report.beacon));
    if !report.beacon_independent {
        output.say("         beacon: not independent; whoever runs it could have known the draws");
    }
    output.say(format!(
        "checked  {} entries, {} signatures, rounds, draws and verdicts; {} draws proved again",
        report.entries, report.checked, report.draws
    ));
    if report.unverifiable + report.by_word > 0 {
        output.say(format!(
            "by word  {} draws whose proofs are not kept any more, {} verdicts of silence",
            report.unverifiable, report.by_word
        ));
    }
    for line in &report.trace {
        output.say(format!("  {line}"));
    }
    for finding in report.findings.iter().take(FINDINGS_SHOWN) {
        let whose = if finding.severity == Severity::Log { "AUDITOR" } else { "node" };
        let node = finding.node.as_deref().unwrap_or_default();
        let epoch = finding.epoch.map(|epoch| format!(", epoch {epoch}")).unwrap_or_default();
        output.say(format!("  {whose} {node}{epoch} (entry {}): {}", finding.entry, finding.what));
    }
    if report.findings.len() > FINDINGS_SHOWN {
        output.say(format!("  and {} more; --json has them", report.findings.len() - FINDINGS_SHOWN));
    }
    output.say(match report.failed {
        0 => "the log holds".to_owned(),
        failed => format!("THE LOG DOES NOT HOLD: {failed} findings against the auditor"),
    });
}

/// Checks a log from its files alone. `key` is whose it must be; without one, whoever its opening names.
pub(crate) async fn check(source: &LogSource, focus: Focus, key: Option<PublicKey>) -> Result<Checked> {
    let note = source.read(CHECKPOINT).await?.context("there is no log: it has no `checkpoint`")?;
    let note = String::from_utf8(note).context("the checkpoint is not text")?;
    let checkpoint = SignedCheckpoint::parse(&note)?;
    let mut checker = LogChecker::new(focus);
    let mut tail = LogTail::new();
    for bundle in 0..checkpoint.size.div_ceil(TILE_WIDTH as u64) {
        let left = checkpoint.size - bundle * TILE_WIDTH as u64;
        let width = usize::try_from(left).unwrap_or(usize::MAX).min(TILE_WIDTH);
        let Some(bytes) = source.tile("entries", bundle, width).await? else {
            checker.fail(format!("{} is missing", tile_path("entries", bundle, width)));
            break;
        };
        let entries = bundle_entries(&bytes).filter(|entries| entries.len() >= width);
        let Some(entries) = entries else {
            checker.fail(format!("{} is damaged", tile_path("entries", bundle, width)));
            break;
        };
        for entry in entries.into_iter().take(width) {
            let blobs = blobs(source, entry).await?;
            checker.entry(entry, &mut |digest| {
                blobs.as_ref().filter(|(named, _)| named == digest).map(|(_, bytes)| bytes.clone())
            });
            if tail.append(entry).is_err() {
                checker.fail("an entry cannot be part of a log");
            }
        }
        compare_tiles(source, &mut tail, &mut checker).await?;
    }
    finish(checker, &tail, &checkpoint, key)
}

/// The proofs that an entry refers to, if it is an answer and they are kept.
async fn blobs(source: &LogSource, entry: &[u8]) -> Result<Option<(holdfast_protocol::Digest, Vec<u8>)>> {
    let Ok(holdfast_proofs::log::LogEntry::Answered(answer)) = holdfast_proofs::log::LogEntry::decode(entry)
    else {
        return Ok(None);
    };
    let Ok(answer) = answer.verify() else { return Ok(None) };
    let digest = answer.record().body;
    Ok(source.read(&blob_path(&digest)).await?.map(|bytes| (digest, bytes)))
}

/// The tiles that others read must be those of the entries.
async fn compare_tiles(source: &LogSource, tail: &mut LogTail, checker: &mut LogChecker) -> Result<()> {
    for file in tail.files() {
        if file.path.contains(".p/") || file.path.starts_with("tile/entries") {
            continue;
        }
        if source.read(&file.path).await?.as_ref() != Some(&file.bytes) {
            checker.fail(format!("{} is not the tile of the entries below it", file.path));
        }
    }
    Ok(())
}

fn finish(
    mut checker: LogChecker,
    tail: &LogTail,
    checkpoint: &SignedCheckpoint,
    key: Option<PublicKey>,
) -> Result<Checked> {
    if tail.root() != checkpoint.root {
        checker.fail("the entries are not those of the checkpoint");
    }
    match (checker.auditor(), key) {
        (Some(auditor), Some(key)) if auditor.key() != key => checker.fail("the log is another auditor's"),
        _ => {}
    }
    if let Some(auditor) = checker.auditor()
        && let Err(error) = checkpoint.verify(&auditor.key())
    {
        checker.fail(error.to_string());
    }
    let epoch_ms = checker.policy().map_or(0, |policy| policy.epoch_ms);
    let (report, book) = checker.finish();
    Ok(Checked { report, book, epoch_ms })
}

/// `holdfast auditor report`.
pub(crate) async fn report(args: &ReportArgs, output: Output) -> Result<ExitCode> {
    let log = match &args.audit_log {
        Some(log) => log.clone(),
        None => args.data.join("auditor/log").to_string_lossy().into_owned(),
    };
    let source = LogSource::parse(&log)?;
    if source.read(CHECKPOINT).await?.is_none() {
        bail!("no audit log at {log}; `holdfast up` runs an auditor, and so does `holdfast auditor run`");
    }
    let checked = check(&source, Focus::default(), None).await?;
    let summary = page::summary(&checked, &log);
    output.value(&summary);
    output.say(format!(
        "auditor {}, {} entries checked, {} findings against it",
        checked.report.auditor, checked.report.entries, checked.report.failed
    ));
    output.say(format!("beacon  {}", checked.report.beacon));
    for node in &summary.nodes {
        output.say(format!(
            "   {}  {:12} data {:.4}  online {:.4}  last epoch {:8} {:>2} of {:>2} chunks   {}",
            node.node,
            node.state,
            node.data,
            node.online,
            node.outcome,
            node.passed,
            node.draws,
            node.picture
        ));
        if let Some(miss) = &node.last_miss {
            output.say(format!("      last miss: {miss}; {}", node.replay));
        }
    }
    if summary.nodes.is_empty() {
        output.say("no epoch has been judged yet");
    }
    Ok(if checked.report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
