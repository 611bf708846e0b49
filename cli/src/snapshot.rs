//! `holdfast snapshot`: immutable, named versions of a bucket or prefix.

use std::process::ExitCode;

use anyhow::{Result, bail};
use holdfast_gateway::web::api::{CreateSnapshot, SnapshotList, SnapshotRow};

use crate::args::{SnapshotCommand, SnapshotCreateArgs};
use crate::client::Admin;
use crate::network::Access;
use crate::output::Output;
use crate::sizes::ByteSize;

const PATH: &str = "api/v1/snapshots";

/// `holdfast snapshot …`.
pub(crate) async fn run(command: SnapshotCommand, output: Output) -> Result<ExitCode> {
    match command {
        SnapshotCommand::Create(args) => create(args, output).await,
        SnapshotCommand::List(args) => {
            let admin = Admin::of(&Access::resolve(&args.network)?)?;
            let list: SnapshotList = admin.get(PATH).await?;
            for row in &list.snapshots {
                output.value(row);
                output.say(line(row));
            }
            Ok(ExitCode::SUCCESS)
        }
        SnapshotCommand::Rm(args) => {
            let admin = Admin::of(&Access::resolve(&args.network)?)?;
            admin.remove(&format!("{PATH}/{}", args.name)).await?;
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
    let admin = Admin::of(&Access::resolve(&args.network)?)?;
    let new = CreateSnapshot { name: args.name, bucket: bucket.to_owned(), prefix };
    let row: SnapshotRow = admin.post(PATH, &new).await?;
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
