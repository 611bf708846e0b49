//! `put`, `get`, `cat`, `ls`, `rm`: files and directories in and out of buckets, over S3.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use indicatif::ProgressBar;
use tokio::io::AsyncWriteExt;

use crate::args::{CatArgs, GetArgs, LsArgs, PutArgs, RmArgs};
use crate::client::S3;
use crate::direct::Direct;
use crate::network::Access;
use crate::output::Output;
use crate::sizes::ByteSize;
pub(crate) use crate::transfer::Transferred;
use crate::transfer::{Item, Journal, Source, transfer};

/// Splits `BUCKET/KEY`.
pub(crate) fn split(target: &str) -> Result<(&str, &str)> {
    let target = target.strip_prefix("s3://").unwrap_or(target);
    let (bucket, key) = target.split_once('/').unwrap_or((target, ""));
    if bucket.is_empty() {
        bail!("`{target}` names no bucket; write BUCKET/KEY");
    }
    Ok((bucket, key))
}

/// `holdfast put`.
pub(crate) async fn put(args: PutArgs, output: Output) -> Result<ExitCode> {
    let s3 = S3::new(Access::resolve(&args.network)?);
    let (bucket, key) = split(&args.target)?;
    let items = plan_items(plan_upload(&args.source, key)?)?;
    s3.create_bucket(bucket, args.public).await?;
    let source = std::fs::canonicalize(&args.source)?;
    let names = [s3.address(), bucket, key, source.to_str().context("the source's path is not UTF-8")?];
    let journal = if args.no_resume { None } else { Some(Journal::open(&names)?) };
    if journal.as_ref().is_some_and(Journal::is_resumed) {
        output.say("going on where an earlier run stopped");
    }
    let jobs = usize::from(args.jobs);
    let done = transfer_all(&s3, bucket, items, jobs, (journal.as_ref(), "uploading", output)).await;
    let done = match (&journal, done) {
        (_, Ok(done)) => done,
        (None, Err(error)) => return Err(error),
        (Some(_), Err(error)) => return Err(error.context("run the same command again to go on")),
    };
    if let Some(journal) = journal {
        journal.finish()?;
    }
    let (bytes, resumed) = totals(&done);
    for file in &done {
        output.value(file);
        if done.len() <= 20 {
            output.say(format!("{}/{}  {}  {}", bucket, file.key, ByteSize(file.bytes), cid_text(file)));
        }
    }
    let before =
        if resumed > 0 { format!(" ({} of it by an earlier run)", ByteSize(resumed)) } else { String::new() };
    output.say(format!("{} files, {} uploaded to {bucket}{before}", done.len(), ByteSize(bytes)));
    Ok(ExitCode::SUCCESS)
}

/// Bytes in all, and those that an earlier run transferred.
pub(crate) fn totals(done: &[Transferred]) -> (u64, u64) {
    (done.iter().map(|file| file.bytes).sum(), done.iter().map(|file| file.resumed_bytes).sum())
}

fn cid_text(file: &Transferred) -> &str {
    file.cid.as_deref().unwrap_or("-")
}

/// Files to upload with their keys, sorted by key.
pub(crate) fn plan_upload(source: &Path, key: &str) -> Result<Vec<(PathBuf, String, u64)>> {
    let metadata = std::fs::metadata(source).with_context(|| format!("cannot read {}", source.display()))?;
    if metadata.is_file() {
        let name =
            source.file_name().and_then(|name| name.to_str()).context("the file's name is not UTF-8")?;
        let key = if key.is_empty() || key.ends_with('/') { format!("{key}{name}") } else { key.to_owned() };
        return Ok(vec![(source.to_path_buf(), key, metadata.len())]);
    }
    let prefix = if key.is_empty() || key.ends_with('/') { key.to_owned() } else { format!("{key}/") };
    let mut files = Vec::new();
    let mut folders = vec![source.to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in
            std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?
        {
            let path = entry?.path();
            let metadata =
                std::fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?;
            if metadata.is_dir() {
                folders.push(path);
            } else if metadata.is_file() {
                let relative = path.strip_prefix(source)?;
                let name = relative.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
                let key = format!("{prefix}{name}");
                files.push((path, key, metadata.len()));
            }
        }
    }
    files.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(files)
}

/// Files as things to transfer. One that changes has another fingerprint: its length, or the time of its last change.
fn plan_items(files: Vec<(PathBuf, String, u64)>) -> Result<Vec<Item>> {
    files
        .into_iter()
        .map(|(path, key, len)| {
            let modified = std::fs::metadata(&path)
                .and_then(|metadata| metadata.modified())
                .with_context(|| format!("cannot read {}", path.display()))?;
            let modified = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
            let fingerprint = format!("{len} {}", modified.as_nanos());
            Ok(Item { source: Source::File(path), key, len, fingerprint })
        })
        .collect()
}

/// Uploads files, `jobs` at a time; the first failure ends it and leaves nothing half done behind.
pub(crate) async fn upload(
    s3: &S3,
    bucket: &str,
    files: Vec<(PathBuf, String, u64)>,
    jobs: usize,
    output: Output,
) -> Result<Vec<Transferred>> {
    transfer_all(s3, bucket, plan_items(files)?, jobs, (None, "uploading", output)).await
}

/// Transfers items, `jobs` at a time; the first failure ends it.
pub(crate) async fn transfer_all(
    s3: &S3,
    bucket: &str,
    items: Vec<Item>,
    jobs: usize,
    (journal, what, output): (Option<&Journal>, &str, Output),
) -> Result<Vec<Transferred>> {
    let total = items.iter().map(|item| item.len).sum();
    let bar = output.bytes_bar(total, what);
    let done = futures::stream::iter(items)
        .map(|item| {
            let (s3, bar) = (s3.clone(), bar.clone());
            async move {
                let outcome = transfer(&s3, bucket, &item, journal, &bar).await;
                outcome.with_context(|| format!("{what} {bucket}/{} failed", item.key))
            }
        })
        .buffered(jobs)
        .try_collect()
        .await;
    bar.finish_and_clear();
    done
}

/// `holdfast get`.
pub(crate) async fn get(args: GetArgs, output: Output) -> Result<ExitCode> {
    let s3 = S3::new(Access::resolve(&args.network)?);
    let (bucket, key) = split(&args.source)?;
    let files: Vec<(String, PathBuf, u64)> = if key.is_empty() || key.ends_with('/') {
        let listed = s3.list_all(bucket, key).await?;
        let mut files = Vec::new();
        // Folder markers, as S3 browsers make them, are no files.
        for object in listed.into_iter().filter(|object| object.size > 0 || !object.key.ends_with('/')) {
            files.push((object.key.clone(), safe_path(&args.target, &object.key[key.len()..])?, object.size));
        }
        files
    } else {
        let target = if args.target.is_dir() {
            args.target.join(key.rsplit('/').next().unwrap_or(key))
        } else {
            args.target.clone()
        };
        vec![(key.to_owned(), target, 0)]
    };
    if files.is_empty() {
        bail!("nothing lies under {bucket}/{key}; `holdfast ls {bucket}` shows what does");
    }
    let total = files.iter().map(|file| file.2).sum();
    let bar = output.bytes_bar(total, "downloading");
    let direct = Direct::start(&args.direct, &s3).await?;
    let done: Vec<Transferred> = futures::stream::iter(files)
        .map(|(key, path, _)| {
            let (s3, bar, direct) = (s3.clone(), bar.clone(), direct.clone());
            async move {
                let outcome = match &direct {
                    Some(direct) => direct.download(bucket, &key, &path, &bar).await,
                    None => download_file(&s3, bucket, &key, &path, &bar).await,
                };
                outcome.with_context(|| format!("downloading {bucket}/{key} failed"))
            }
        })
        .buffered(usize::from(args.jobs))
        .try_collect()
        .await?;
    bar.finish_and_clear();
    if let Some(direct) = &direct {
        direct.finish(output).await?;
    }
    let bytes: u64 = done.iter().map(|file| file.bytes).sum();
    done.iter().for_each(|file| output.value(file));
    output.say(format!("{} files, {} to {}", done.len(), ByteSize(bytes), args.target.display()));
    Ok(ExitCode::SUCCESS)
}

/// A key never writes outside the target directory.
fn safe_path(target: &Path, relative: &str) -> Result<PathBuf> {
    let relative_path = Path::new(relative);
    let is_plain = relative_path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if relative.is_empty() || relative.ends_with('/') || !is_plain {
        bail!("the key `{relative}` cannot be a file below {}; fetch it alone by name", target.display());
    }
    Ok(target.join(relative_path))
}

async fn download_file(
    s3: &S3,
    bucket: &str,
    key: &str,
    path: &Path,
    bar: &ProgressBar,
) -> Result<Transferred> {
    let (mut file, partial) = partial_file(path).await?;
    let response = s3.open(bucket, key, 0).await?;
    let expected: Option<u64> = header(&response, "content-length").and_then(|text| text.parse().ok());
    let cid = header(&response, "x-holdfast-cid").map(str::to_owned);
    if bar.length() == Some(0) {
        bar.set_length(expected.unwrap_or(0));
    }
    let mut body = response.into_body();
    let mut bytes = 0u64;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the connection broke off")?.into_data() {
            bytes += data.len() as u64;
            bar.inc(data.len() as u64);
            file.write_all(&data).await.with_context(|| format!("cannot write {}", partial.display()))?;
        }
    }
    if expected.is_some_and(|expected| expected != bytes) {
        bail!("{bytes} bytes came instead of {}", expected.unwrap_or(0));
    }
    complete_file(file, &partial, path).await?;
    Ok(Transferred { key: key.to_owned(), bytes, cid, resumed_bytes: 0 })
}

/// A file beside `path`: whole under its own name or not at all, so that a reader never meets half of it.
pub(crate) async fn partial_file(path: &Path) -> Result<(tokio::fs::File, PathBuf)> {
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent)
            .await
            .with_context(|| format!("cannot create {}", parent.display()))?;
    }
    let partial = path.with_file_name(format!(
        ".{}.partial",
        path.file_name().and_then(|name| name.to_str()).context("the target's name is not UTF-8")?
    ));
    let file = tokio::fs::File::create(&partial)
        .await
        .with_context(|| format!("cannot create {}", partial.display()))?;
    Ok((file, partial))
}

/// Syncs what [`partial_file`] gave and gives it its name.
pub(crate) async fn complete_file(mut file: tokio::fs::File, partial: &Path, path: &Path) -> Result<()> {
    file.flush().await?;
    file.sync_all().await?;
    tokio::fs::rename(partial, path).await.with_context(|| format!("cannot create {}", path.display()))
}

fn header<'a>(response: &'a http::Response<hyper::body::Incoming>, name: &str) -> Option<&'a str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}

/// Streams an object to `sink`, chunk by chunk; returns its length.
pub(crate) async fn stream(
    s3: &S3,
    bucket: &str,
    key: &str,
    mut sink: impl FnMut(&[u8]) -> Result<()>,
) -> Result<u64> {
    let mut body = s3.open(bucket, key, 0).await?.into_body();
    let mut bytes = 0u64;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.context("the connection broke off")?.into_data() {
            bytes += data.len() as u64;
            sink(&data)?;
        }
    }
    Ok(bytes)
}

/// `holdfast cat`.
pub(crate) async fn cat(args: CatArgs) -> Result<ExitCode> {
    let s3 = S3::new(Access::resolve(&args.network)?);
    let (bucket, key) = split(&args.source)?;
    if let Some(direct) = Direct::start(&args.direct, &s3).await? {
        crate::direct::cat(&direct, bucket, key).await?;
        std::io::stdout().flush().context("cannot write to standard output")?;
        // Standard output has the object; what else there is to say goes nowhere.
        direct.finish(Output::new(true)).await?;
        return Ok(ExitCode::SUCCESS);
    }
    stream(&s3, bucket, key, |data| {
        std::io::stdout().write_all(data).context("cannot write to standard output")
    })
    .await?;
    std::io::stdout().flush().context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// `holdfast ls`.
pub(crate) async fn ls(args: LsArgs, output: Output) -> Result<ExitCode> {
    let s3 = S3::new(Access::resolve(&args.network)?);
    let Some(target) = &args.target else {
        for bucket in s3.buckets().await? {
            output.value(&serde_json::json!({ "bucket": bucket }));
            output.say(bucket);
        }
        return Ok(ExitCode::SUCCESS);
    };
    let (bucket, prefix) = split(target)?;
    let delimiter = (!args.recursive).then_some("/");
    let mut after = None;
    loop {
        let page = s3.list(bucket, prefix, delimiter, after.as_deref()).await?;
        for item in &page.items {
            output.value(item);
            if item.is_prefix {
                output.say(format!("{:>12}  {:24}  {}", "", "", item.key));
            } else {
                let when = item.last_modified.as_deref().unwrap_or("");
                output.say(format!("{:>12}  {when:24}  {}", ByteSize(item.size).to_string(), item.key));
            }
        }
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(ExitCode::SUCCESS),
        }
    }
}

/// `holdfast rm`.
pub(crate) async fn rm(args: RmArgs, output: Output) -> Result<ExitCode> {
    let s3 = S3::new(Access::resolve(&args.network)?);
    let (bucket, key) = split(&args.target)?;
    let keys: Vec<String> = if args.recursive {
        // `v1` means what lies below it, as in `put`; never `v10` or `v1-backup`.
        let below = if key.is_empty() || key.ends_with('/') { key.to_owned() } else { format!("{key}/") };
        s3.list_all(bucket, &below).await?.into_iter().map(|object| object.key).collect()
    } else if key.is_empty() {
        bail!("`{}` names a bucket; write BUCKET/KEY, or use --recursive", args.target);
    } else {
        vec![key.to_owned()]
    };
    let bar = output.count_bar(keys.len() as u64, "deleting");
    futures::stream::iter(keys.iter().map(Ok::<_, anyhow::Error>))
        .try_for_each_concurrent(8, |key| {
            let (s3, bar) = (s3.clone(), bar.clone());
            async move {
                s3.delete(bucket, key).await.with_context(|| format!("deleting {bucket}/{key} failed"))?;
                bar.inc(1);
                Ok(())
            }
        })
        .await?;
    bar.finish_and_clear();
    output.value(&serde_json::json!({ "deleted": keys.len() }));
    output.say(format!("{} deleted", keys.len()));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_would_leave_the_target_are_refused() {
        for key in ["../x", "/etc/passwd", "a/../../b", "", "a/"] {
            assert!(safe_path(Path::new("out"), key).is_err(), "{key}");
        }
        assert_eq!(safe_path(Path::new("out"), "a/b").expect("plain"), Path::new("out/a/b"));
    }

    #[test]
    fn a_directory_becomes_keys_under_its_prefix() -> Result<()> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir_all(dir.path().join("a/b"))?;
        std::fs::write(dir.path().join("a/b/c.txt"), b"x")?;
        std::fs::write(dir.path().join("z"), b"yy")?;
        let keys: Vec<_> = plan_upload(dir.path(), "p")?.into_iter().map(|file| (file.1, file.2)).collect();
        assert_eq!(keys, [("p/a/b/c.txt".to_owned(), 1), ("p/z".to_owned(), 2)]);
        Ok(())
    }
}
