//! Taking mounts away: our own at its end, and one whose process died.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::output::Output;

/// What sources of our mounts begin with, and what the kernel calls their kind: a mount made by root bears no name.
const SOURCE: &str = "holdfast:";
const KINDS: [&str; 2] = ["fuse", "fuse.holdfast"];

/// Takes away what a mount left on `dir` that was killed: every access to it fails with ENOTCONN.
pub(super) async fn clear(dir: &Path, output: Output) -> Result<()> {
    // Each mount over another that died is one more.
    while is_dead(dir).await? {
        let place = place(dir)?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        match kind_at(&mounts, &place) {
            Some((kind, source)) if KINDS.contains(&&*kind) && source.starts_with(SOURCE) => {}
            Some((kind, _)) => {
                bail!("{} is a mount of {kind} whose process is gone; unmount it first", dir.display())
            }
            None => bail!("{} cannot be reached: the process that served it is gone", dir.display()),
        }
        detach(&place).await?;
        output.value(&serde_json::json!({ "event": "dead_mount_removed", "dir": place }));
        output.say(format!(
            "{}: the mount that was here was killed; it is taken away, what it had not uploaded is looked for",
            dir.display()
        ));
    }
    Ok(())
}

/// Whether a file system is mounted there whose process is gone.
async fn is_dead(dir: &Path) -> Result<bool> {
    // Another file system that hangs must not hang the runtime.
    let path = dir.to_owned();
    let looked = tokio::task::spawn_blocking(move || std::fs::metadata(path)).await?;
    Ok(looked.is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN)))
}

/// The directory's own path; the directory itself cannot be asked.
fn place(dir: &Path) -> Result<PathBuf> {
    let absolute = std::path::absolute(dir).with_context(|| format!("{} is no path", dir.display()))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return Ok(absolute) };
    Ok(std::fs::canonicalize(parent).map_or_else(|_| absolute.clone(), |parent| parent.join(name)))
}

/// Kind and source of the topmost mount at `place`, from the text of /proc/self/mountinfo.
fn kind_at(mounts: &str, place: &Path) -> Option<(String, String)> {
    let line = mounts.lines().rev().find(|line| {
        let point = line.split(' ').nth(4).map(unescaped);
        point.is_some_and(|point| Path::new(&point) == place)
    })?;
    let (_, behind) = line.split_once(" - ")?;
    let mut words = behind.split(' ');
    Some((words.next()?.to_owned(), unescaped(words.next()?)))
}

/// Spaces and the like are written as three octal digits.
fn unescaped(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Unmounts; while files are open, from the tree of names only. They are served until they are closed.
pub(super) async fn detach(dir: &Path) -> Result<()> {
    // Who is not root unmounts with the help of a program that is.
    let ways: [(&str, &[&str]); 4] =
        [("umount", &[]), ("umount", &["-l"]), ("fusermount3", &["-u"]), ("fusermount3", &["-u", "-z"])];
    let mut said = String::new();
    for (program, options) in ways {
        match tokio::process::Command::new(program).args(options).arg(dir).output().await {
            Ok(output) if output.status.success() => return Ok(()),
            Ok(output) => said = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => said = format!("{program}: {error}"),
        }
    }
    bail!("cannot unmount {}: {said}", dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_of_a_place_is_found() {
        let mounts = "29 1 0:1 / / rw - ext4 /dev/vda rw\n\
                      40 29 0:40 / /mnt/a\\040b rw - tmpfs tmpfs rw\n\
                      41 40 0:41 / /mnt/a\\040b rw,nosuid shared:7 - fuse.holdfast holdfast:x rw\n";
        let found = |place: &str| kind_at(mounts, Path::new(place));
        let pair = |kind: &str, source: &str| Some((kind.to_owned(), source.to_owned()));
        assert_eq!(found("/mnt/a b"), pair("fuse.holdfast", "holdfast:x"));
        assert_eq!(found("/"), pair("ext4", "/dev/vda"));
        assert_eq!(found("/mnt/c"), None);
    }
}
