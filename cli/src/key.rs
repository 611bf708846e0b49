//! `holdfast key`: access keys, tokens and links, what they used, and the namespace's own keys.

use std::io::{BufRead, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use holdfast_gateway::keys::recovery::{self, RecoveryCode};
use holdfast_gateway::keys::token::{self, Narrowing, Presented};
use holdfast_gateway::keys::{Grant, Operation, Rules};
use holdfast_gateway::web::api::{
    KeyList, KeyMade, KeyRow, NewKey, RotateKey, TokenMade, TrailList, UsageReport,
};
use holdfast_protocol::time::{Clock, SystemClock};

use crate::args::{
    KeyBackupArgs, KeyCommand, KeyCreateArgs, KeyDelegateArgs, KeyInspectArgs, KeyListArgs, KeyRestoreArgs,
    KeyRevokeArgs, KeyRotateArgs, KeyShareArgs, KeyTrailArgs, KeyUsageArgs,
};
use crate::client::Admin;
use crate::network::Access;
use crate::output::Output;
use crate::sizes::ByteSize;

/// How often a code may be typed wrong.
const ATTEMPTS: usize = 3;

pub(crate) async fn run(command: KeyCommand, output: Output) -> Result<ExitCode> {
    match command {
        KeyCommand::Create(args) => create(&args, output).await?,
        KeyCommand::List(args) => list(&args, output).await?,
        KeyCommand::Revoke(args) => revoke(&args, output).await?,
        KeyCommand::Rotate(args) => rotate(&args, output).await?,
        KeyCommand::Delegate(args) => delegate(&args, output)?,
        KeyCommand::Share(args) => share(&args, output).await?,
        KeyCommand::Inspect(args) => inspect(&args, output)?,
        KeyCommand::Usage(args) => usage(&args, output).await?,
        KeyCommand::Trail(args) => trail(&args, output).await?,
        KeyCommand::Backup(args) => back_up(&args, output)?,
        KeyCommand::Restore(args) => restore(&args, output)?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(args: &KeyCreateArgs, output: Output) -> Result<()> {
    let operations = operations(&args.allow)?;
    let grant = |bucket: &String| Grant {
        bucket: bucket.clone(),
        prefix: args.prefix.clone(),
        operations: operations.clone(),
    };
    let rules = Rules {
        grants: args.bucket.iter().map(grant).collect(),
        expires_ms: args.expires.map(|period| from_now(period.0)),
        quota_bytes: args.quota.map(|size| size.0),
        requests_per_second: args.rate,
        bytes_per_second: args.byte_rate.map(|size| size.0),
        concurrent: args.concurrent,
    };
    let new = NewKey { person: args.person.clone(), owner: args.owner, rules };
    let made: KeyMade = Admin::of(&Access::resolve(&args.network)?)?.post("api/v1/keys", &new).await?;
    show_made(&made, output);
    Ok(())
}

fn show_made(made: &KeyMade, output: Output) {
    output.value(made);
    output.say(format!(
        "# access key of {}: {}\n[{}]\naws_access_key_id = {}\naws_secret_access_key = {}\n\
         # token to narrow and hand on with `holdfast key delegate`:\n# {}",
        made.person,
        describe(&made.rules),
        profile_name(&made.person),
        made.access_key,
        made.secret_key,
        made.token
    ));
    output.say("# the secret and the token are shown this once");
}

/// A profile's name in an AWS credentials file.
fn profile_name(person: &str) -> String {
    person.chars().map(|each| if each.is_alphanumeric() { each } else { '-' }).collect()
}

fn describe(rules: &Rules) -> String {
    if rules.is_owner() {
        return "everything".to_owned();
    }
    let grants = rules.grants.iter().map(|grant| {
        let operations: Vec<_> = grant.operations.iter().map(|operation| operation.name()).collect();
        format!("{} in {}/{}", operations.join(","), grant.bucket, grant.prefix)
    });
    let mut text = grants.collect::<Vec<_>>().join("; ");
    if let Some(quota) = rules.quota_bytes {
        text.push_str(&format!("; up to {}", ByteSize(quota)));
    }
    if let Some(rate) = rules.requests_per_second {
        text.push_str(&format!("; {rate} requests/s"));
    }
    if let Some(rate) = rules.bytes_per_second {
        text.push_str(&format!("; {}/s", ByteSize(rate)));
    }
    if let Some(expires_ms) = rules.expires_ms {
        text.push_str(&format!("; until {}", moment(expires_ms)));
    }
    text
}

fn moment(at_ms: u64) -> String {
    let at = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| at_ms.to_string(), |at| at.to_string())
}

async fn list(args: &KeyListArgs, output: Output) -> Result<()> {
    let admin = Admin::of(&Access::resolve(&args.network)?)?;
    let mut after: Option<String> = None;
    loop {
        let path = match &after {
            Some(after) => format!("api/v1/keys?after={after}"),
            None => "api/v1/keys".to_owned(),
        };
        let page: KeyList = admin.get(&path).await?;
        for key in page.keys.iter().filter(|key| args.all || key.live) {
            output.value(key);
            let state = if key.live { "" } else { " (ended)" };
            output.say(format!("{}  {:16} {}{state}", key.access_key, key.person, describe(&key.rules)));
        }
        after = page.next;
        if after.is_none() {
            return Ok(());
        }
    }
}

async fn revoke(args: &KeyRevokeArgs, output: Output) -> Result<()> {
    let admin = Admin::of(&Access::resolve(&args.network)?)?;
    if args.what.len() == 128 {
        let revoked: serde_json::Value = admin.delete(&format!("api/v1/tokens/{}", args.what)).await?;
        output.value(&revoked);
        output.say("the token, and every token made from it, has ended");
        return Ok(());
    }
    let revoked: KeyRow = admin.delete(&format!("api/v1/keys/{}", args.what)).await?;
    output.value(&revoked);
    output.say(format!("the key of {} has ended, with every token made from it", revoked.person));
    Ok(())
}

async fn rotate(args: &KeyRotateArgs, output: Output) -> Result<()> {
    let admin = Admin::of(&Access::resolve(&args.network)?)?;
    if let Some(bucket) = &args.bucket {
        let done: serde_json::Value =
            admin.post(&format!("api/v1/buckets/{bucket}/rotate"), &serde_json::json!({})).await?;
        output.value(&done);
        output.say(format!(
            "bucket {bucket} has key {}; what was written before stays under its older key",
            done["key_epoch"]
        ));
        return Ok(());
    }
    let id = args.access_key.as_deref().context("name an access key, or a bucket with --bucket")?;
    let grace_ms = args.grace.map_or(0, |grace| millis(grace.0));
    let made: KeyMade = admin.post(&format!("api/v1/keys/{id}/rotate"), &RotateKey { grace_ms }).await?;
    show_made(&made, output);
    Ok(())
}

fn delegate(args: &KeyDelegateArgs, output: Output) -> Result<()> {
    let (token, secret) = (read_line_of(&args.token_file)?, read_line_of(&args.secret_file)?);
    let narrowing = Narrowing {
        bucket: args.bucket.clone(),
        prefix: args.prefix.clone(),
        object: None,
        operations: if args.allow.is_empty() { None } else { Some(operations(&args.allow)?) },
        expires_ms: args.expires.map(|period| from_now(period.0)),
    };
    let narrowed = token::delegate(&token, &narrowing, Presented::Signed)?;
    let secret = token::delegated_secret(&token, &secret, &narrowed)?;
    output.value(&serde_json::json!({
        "access_key": args.access_key,
        "secret_key": secret.as_str(),
        "session_token": narrowed,
    }));
    output.say(format!(
        "[delegated]\naws_access_key_id = {}\naws_secret_access_key = {}\naws_session_token = {narrowed}",
        args.access_key,
        secret.as_str()
    ));
    Ok(())
}

async fn share(args: &KeyShareArgs, output: Output) -> Result<()> {
    let (bucket, key) = args.target.split_once('/').context("write BUCKET/KEY or BUCKET/PREFIX/")?;
    ensure!(!key.is_empty(), "a link is for one object or a prefix; write {bucket}/KEY or {bucket}/PREFIX/");
    let access = Access::resolve(&args.network)?;
    let path = format!("api/v1/keys/{}/token", access.credentials.key());
    let whole: TokenMade = Admin::of(&access)?.post(&path, &serde_json::json!({})).await?;
    let is_prefix = key.ends_with('/');
    let narrowing = Narrowing {
        bucket: Some(bucket.to_owned()),
        prefix: is_prefix.then(|| key.to_owned()),
        object: (!is_prefix).then(|| key.to_owned()),
        operations: Some(vec![Operation::Read, Operation::List]),
        expires_ms: Some(from_now(args.expires.0)),
    };
    let link = token::delegate(&whole.token, &narrowing, Presented::Bearer)?;
    let mut url = access.s3.clone();
    url.path_segments_mut()
        .map_err(|()| anyhow::anyhow!("the S3 address has no path"))?
        .push(bucket)
        .extend(if is_prefix { Vec::new() } else { key.split('/').collect() });
    if is_prefix {
        url.query_pairs_mut().append_pair("list-type", "2").append_pair("prefix", key);
    }
    url.query_pairs_mut().append_pair("x-holdfast-token", &link);
    output.value(
        &serde_json::json!({ "url": url.as_str(), "token": link, "expires_ms": narrowing.expires_ms }),
    );
    output.say(url.as_str());
    if is_prefix {
        output.say(format!(
            "# objects: {}/{bucket}/KEY?x-holdfast-token={link}",
            access.s3.as_str().trim_end_matches('/')
        ));
    }
    output.say("# whoever has the link can read; `holdfast key inspect` names the block to revoke it by");
    Ok(())
}

fn inspect(args: &KeyInspectArgs, output: Output) -> Result<()> {
    let text = match url::Url::parse(&args.token) {
        Ok(url) => {
            let pair = url.query_pairs().find(|(name, _)| name == "x-holdfast-token");
            pair.context("the link has no token")?.1.into_owned()
        }
        Err(_) => args.token.clone(),
    };
    let blocks = token::describe(&text)?;
    output.value(&blocks);
    for (number, block) in blocks.iter().enumerate() {
        output.say(format!("block {number}, revoked by {}\n{}", block.revocation_id, block.source));
    }
    Ok(())
}

async fn usage(args: &KeyUsageArgs, output: Output) -> Result<()> {
    let mut path = format!("api/v1/usage?days={}", args.days);
    if let Some(key) = &args.access_key {
        path.push_str(&format!("&key={key}"));
    }
    let report: UsageReport = Admin::of(&Access::resolve(&args.network)?)?.get(&path).await?;
    output.value(&report);
    output.say("day         access key            requests  refused          in         out");
    for row in &report.rows {
        output.say(format!(
            "{}  {:20} {:>9} {:>8} {:>11} {:>11}",
            row.day,
            row.access_key,
            row.counts.requests,
            row.counts.refused,
            ByteSize(row.counts.bytes_in).to_string(),
            ByteSize(row.counts.bytes_out).to_string()
        ));
    }
    Ok(())
}

async fn trail(args: &KeyTrailArgs, output: Output) -> Result<()> {
    let mut path = format!("api/v1/trail?limit={}", args.last);
    for (name, value) in [("key", &args.access_key), ("person", &args.person)] {
        if let Some(value) = value {
            let value: String = url::form_urlencoded::byte_serialize(value.as_bytes()).collect();
            path.push_str(&format!("&{name}={value}"));
        }
    }
    let found: TrailList = Admin::of(&Access::resolve(&args.network)?)?.get(&path).await?;
    output.value(&found);
    for entry in &found.entries {
        let place = if entry.bucket.is_empty() {
            entry.object.clone()
        } else {
            format!("{}/{}", entry.bucket, entry.object)
        };
        let who = if entry.person.is_empty() { "anonymous" } else { &entry.person };
        output.say(format!(
            "{}  {:12} {:24} {} {place}",
            moment(entry.at_ms),
            who,
            entry.operation,
            entry.status
        ));
    }
    if !found.chain_holds {
        bail!(
            "the chain of the trail is broken: lines were changed, dropped or added by somebody without the key"
        );
    }
    Ok(())
}

fn back_up(args: &KeyBackupArgs, output: Output) -> Result<()> {
    let code = recovery::back_up(&args.data, &args.out, SystemClock.now_ms())?;
    confirm_code(&args.data, &args.out, &code, output)
}

/// Shows the code of a recovery file and has the user type it back.
pub(crate) fn confirm_code(data: &Path, file: &Path, code: &RecoveryCode, output: Output) -> Result<()> {
    let shown = code.expose();
    output.value(&serde_json::json!({ "event": "recovery", "file": file, "code": shown.as_str() }));
    output.say(format!(
        "recovery file  {}\nrecovery code  {}\n\nFile and code together bring the namespace back; without them, whoever loses {} loses \
         every private object. Keep the two apart, and neither beside the data.",
        file.display(),
        shown.as_str(),
        data.display()
    ));
    for _ in 0..ATTEMPTS {
        match ask("Type the code to confirm that you have written it down: ")? {
            Some(typed) if RecoveryCode::parse(&typed).is_ok_and(|typed| typed.matches(code)) => {
                recovery::confirm(data, SystemClock.now_ms())?;
                output.value(&serde_json::json!({ "event": "confirmed" }));
                output.say("confirmed");
                return Ok(());
            }
            Some(_) => output.say("that is another code"),
            None => break,
        }
    }
    bail!(
        "the code was not confirmed; the keys are there, but nothing shows that you could bring them back: \
         run `holdfast key backup --data {} --out FILE` for another file and code",
        data.display()
    )
}

fn restore(args: &KeyRestoreArgs, output: Output) -> Result<()> {
    let typed = ask("Recovery code: ")?.context("the recovery code is read from standard input")?;
    restore_keys(&args.data, &args.file, &typed, output)
}

pub(crate) fn restore_keys(data: &Path, file: &Path, typed: &str, output: Output) -> Result<()> {
    let code = RecoveryCode::parse(typed)?;
    let namespace = recovery::restore(data, file, &code)?;
    recovery::confirm(data, SystemClock.now_ms())?;
    output.value(&serde_json::json!({ "event": "restored", "namespace": namespace.to_string() }));
    output.say(format!("the keys of namespace {namespace} are in {}", data.display()));
    Ok(())
}

/// A line from standard input; `None` at its end.
pub(crate) fn ask(question: &str) -> Result<Option<String>> {
    // Questions go to standard error: standard output is for results.
    eprint!("{question}");
    std::io::stderr().flush()?;
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line).context("cannot read standard input")?;
    Ok((read > 0).then(|| line.trim().to_owned()))
}

fn operations(names: &[String]) -> Result<Vec<Operation>> {
    names
        .iter()
        .map(|name| {
            Operation::by_name(name).with_context(|| {
                format!("`{name}` is no operation; there are read, list, write, delete, manage")
            })
        })
        .collect()
}

fn read_line_of(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

fn from_now(period: Duration) -> u64 {
    SystemClock.now_ms().saturating_add(millis(period))
}

fn millis(period: Duration) -> u64 {
    u64::try_from(period.as_millis()).unwrap_or(u64::MAX)
}
