//! `import`: copies objects from another S3 endpoint, through this machine, and goes on where it was stopped.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use rusty_s3::Credentials;
use url::Url;

use crate::args::ImportArgs;
use crate::client::S3;
use crate::network::{self, Access};
use crate::objects;
use crate::output::Output;
use crate::sizes::ByteSize;
use crate::transfer::{Item, Journal, Source};

/// `holdfast import`.
pub(crate) async fn run(args: ImportArgs, output: Output) -> Result<ExitCode> {
    let from = source_access(&args)?;
    let (source_bucket, source_key) = objects::split(&args.source)?;
    let (bucket, prefix) = objects::split(&args.target)?;
    let source = S3::new(from.clone());
    let items = plan(&source, (source_bucket, source_key), prefix).await?;
    if items.is_empty() {
        bail!("nothing lies under {source_bucket}/{source_key} at {}", from.s3);
    }
    let target = S3::new(Access::resolve(&args.network)?);
    target.create_bucket(bucket, args.public).await?;
    let names = [target.address(), from.s3.as_str(), &args.source, &args.target];
    let journal = Journal::open(&names)?;
    if journal.is_resumed() {
        output.say("going on where an earlier run stopped");
    }
    let count = items.len();
    let done = objects::transfer_all(
        &target,
        bucket,
        items,
        usize::from(args.jobs),
        (Some(&journal), "importing", output),
    )
    .await
    .context("run the same command again to go on")?;
    journal.finish()?;
    let (bytes, resumed) = objects::totals(&done);
    done.iter().for_each(|file| output.value(file));
    output.say(format!(
        "{count} objects, {} imported into {bucket} ({} of it by an earlier run)",
        ByteSize(bytes),
        ByteSize(resumed)
    ));
    Ok(ExitCode::SUCCESS)
}

/// Objects to copy with the keys they get: what lies below the source's last slash keeps its path.
async fn plan(source: &S3, (bucket, key): (&str, &str), prefix: &str) -> Result<Vec<Item>> {
    let is_tree = key.is_empty() || key.ends_with('/');
    let listed = source.list_all(bucket, key).await?;
    let mut items = Vec::new();
    for object in listed {
        if !is_tree && object.key != key {
            continue;
        }
        let relative = if is_tree {
            object.key[key.len()..].to_owned()
        } else {
            object.key.rsplit('/').next().unwrap_or(&object.key).to_owned()
        };
        let target = if relative.is_empty() || (!is_tree && !prefix.is_empty() && !prefix.ends_with('/')) {
            prefix.to_owned()
        } else if prefix.is_empty() || prefix.ends_with('/') {
            format!("{prefix}{relative}")
        } else {
            format!("{prefix}/{relative}")
        };
        if target.is_empty() {
            continue;
        }
        let etag = object.etag.clone().context("the source lists an object without its entity tag")?;
        items.push(Item {
            fingerprint: format!("{} {etag}", object.size),
            source: Source::Object {
                s3: Box::new(source.clone()),
                bucket: bucket.to_owned(),
                key: object.key,
                etag,
            },
            key: target,
            len: object.size,
        });
    }
    Ok(items)
}

/// The other endpoint, with keys from the environment (`SOURCE_AWS_…`) or a profile of the AWS credentials file.
fn source_access(args: &ImportArgs) -> Result<Access> {
    let url = Url::parse(&args.from).with_context(|| format!("`{}` is not a URL", args.from))?;
    if !matches!(url.scheme(), "http" | "https") {
        bail!("`{}`: an endpoint is an http:// or https:// URL", args.from);
    }
    let from_environment = || {
        let key = std::env::var("SOURCE_AWS_ACCESS_KEY_ID").ok()?;
        let secret = std::env::var("SOURCE_AWS_SECRET_ACCESS_KEY").ok()?;
        Some(Credentials::new(key, secret))
    };
    let credentials = match (&args.from_profile, from_environment()) {
        (None, Some(credentials)) => credentials,
        (profile, _) => network::shared_profile(profile.as_deref().unwrap_or("default"))?,
    };
    Ok(Access::elsewhere(url, credentials, args.from_region.clone()))
}
