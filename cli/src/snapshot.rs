//! `holdfast snapshot`: immutable, named versions of a bucket or prefix.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use holdfast_gateway::web::api::{SnapshotList, SnapshotRow};
use http::Method;

use crate::args::{SnapshotCommand, SnapshotCreateArgs};
use crate::client::S3;
use crate::network::Access;
use crate::output::Output;
use crate::sizes::ByteSize;

/// The query parameter that makes a request one about snapshots.
const MARK: &str = "holdfast-snapshot";

/// `holdfast snapshot …`.
pub(crate) async fn run(command: SnapshotCommand, output: Output) -> Result<ExitCode> {
    match command {
        SnapshotCommand::Create(args) => create(args, output).await,
        SnapshotCommand::List(args) => {
            let answer =
                S3::new(Access::resolve(&args.network)?).snapshots(Method::GET, &[(MARK, "")]).await?;
            let list: SnapshotList =
                serde_json::from_slice(&answer).context("the gateway's list of snapshots cannot be read")?;
            for row in &list.snapshots {
                output.value(row);
                output.say(line(row));
            }
            Ok(ExitCode::SUCCESS)
        }
        SnapshotCommand::Rm(args) => {
            let s3 = S3::new(Access::resolve(&args.network)?);
            s3.snapshots(Method::DELETE, &[(MARK, &args.name)]).await?;
            output.value(&serde_json::json!({ "removed": args.name }));
            output.say(format!("{} removed", args.name));
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn create(args: SnapshotCreateArgs, output: Output) -> Result<ExitCode> {
    let source = args.source.strip_prefix("s3://").unwrap_or(&args.source);
    let (bucket, prefix) = source.split_once('/').unwrap_or((source, ""));
    if bucket.is_empty() {
        bail!("`{source}` names no bucket; write BUCKET or BUCKET/PREFIX");
    }
    // `v1` means what lies below it, as in `put`; never `v10`.
    let prefix = prefix.trim_end_matches('/');
    let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
    let s3 = S3::new(Access::resolve(&args.network)?);
    let query = [("bucket", bucket), (MARK, &*args.name), ("prefix", &prefix)];
    let answer = s3.snapshots(Method::PUT, &query).await?;
    let row: SnapshotRow =
        serde_json::from_slice(&answer).context("the gateway's answer about the snapshot cannot be read")?;
    output.value(&row);
    output.say(line(&row));
    output.say(format!(
        "mount it with `holdfast mount {} DIR`, or read bucket {} over S3",
        row.cid, row.read_bucket
    ));
    Ok(ExitCode::SUCCESS)
}

fn line(row: &SnapshotRow) -> String {
    let size = ByteSize(row.bytes).to_string();
    format!(
        "{:24} {}  {:>8} objects {size:>10}  {}/{}",
        row.name, row.cid, row.objects, row.bucket, row.prefix
    )
}
