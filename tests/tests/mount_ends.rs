//! How mounts end, with real processes: killed ones, those of ordinary users, and what is left of their data.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use holdfast_tests::mounted::{Mount, has_fuse};
use holdfast_tests::{Network, Process, bytes_of, poll, program, succeeded};

const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);
/// `nobody` and `nogroup`.
const NOBODY: &str = "65534";

fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().and_then(|error| error.raw_os_error())
}

#[test]
fn a_mount_takes_the_place_of_one_that_was_killed_and_finds_what_was_not_uploaded() -> Result<()> {
    if !has_fuse()? {
        return Ok(());
    }
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    network.aws_ok(&["s3", "mb", "s3://killed"])?;
    let mut first = Mount::new(&network, root.path(), "m", "killed", &[])?;
    std::fs::write(first.dir.join("closed"), b"closed before")?;
    let mut open = std::fs::File::create(first.dir.join("a b"))?;
    open.write_all(b"not uploaded")?;
    first.process()?.kill()?;
    drop(open);
    assert_eq!(errno(std::fs::read_dir(&first.dir)), Some(libc::ENOTCONN));

    let (dir, staging, data) = (first.dir.clone(), root.path().join("m.staging"), network.data.clone());
    let text = |path: &Path| path.to_str().map(str::to_owned).context("UTF-8");
    let args = ["mount", "killed", &text(&dir)?, "--staging", &text(&staging)?, "--data", &text(&data)?];
    let second = Process::start(&args)?;
    second.wait_event("dead_mount_removed")?;
    let left = second.wait_event("leftover")?;
    assert_eq!(left["key"], "a b");
    assert_eq!(std::fs::read(left["path"].as_str().context("path")?)?, b"not uploaded");
    second.wait_event("ready")?;
    assert_eq!(std::fs::read(dir.join("closed"))?, b"closed before");
    second.stop()?;
    assert_eq!(std::fs::read_dir(&dir)?.count(), 0, "unmounted");
    Ok(())
}

/// Everything is killed the moment fsync returns, with the file still open.
#[test]
fn what_fsync_acknowledged_outlives_the_death_of_everything() -> Result<()> {
    if !has_fuse()? {
        return Ok(());
    }
    let root = tempfile::tempdir()?;
    let data = root.path().join("data");
    let mut network = Network::up(&data, &[])?;
    network.aws_ok(&["s3", "mb", "s3://synced"])?;
    let mut mount = Mount::new(&network, root.path(), "m", "synced", &[])?;
    let held = bytes_of("synced", 20_000_001);
    let mut file = std::fs::File::create(mount.dir.join("checkpoint"))?;
    file.write_all(&held)?;
    file.sync_all()?;
    // Nodes run in the gateway's process.
    network.gateway.kill()?;
    mount.process()?.kill()?;
    drop(file);
    drop(mount);
    drop(network);
    let network = Network::up(&data, &[])?;
    let back = root.path().join("back");
    network.aws_ok(&["s3", "cp", "s3://synced/checkpoint", back.to_str().context("UTF-8")?])?;
    ensure!(std::fs::read(back)? == held, "the bucket holds other bytes");
    Ok(())
}

/// A program that runs as an ordinary user.
fn as_nobody(program: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]).arg(program).args(args);
    command
}

#[test]
fn an_ordinary_user_mounts_for_himself_alone() -> Result<()> {
    if !has_fuse()? {
        return Ok(());
    }
    let helper = Command::new("fusermount3").arg("--version").output();
    helper.context("mounting without root takes fusermount3; `scripts/setup.sh --tests` installs it")?;
    if !rustix::process::getuid().is_root() {
        // Every other test of mounts is one of an ordinary user then.
        eprintln!("NOT TESTED: only root can become another user");
        return Ok(());
    }
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    network.aws_ok(&["s3", "mb", "s3://mine"])?;
    std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o711))?;
    let home = root.path().join("home");
    let (dir, binary) = (home.join("m"), home.join("holdfast"));
    std::fs::create_dir_all(&dir)?;
    // The build directory may be closed to others.
    std::fs::copy(program()?, &binary)?;
    for path in [&home, &dir] {
        std::os::unix::fs::chown(path, Some(65534), Some(65534))?;
    }
    let credentials = std::fs::read_to_string(network.data.join("credentials"))?;
    let value = |name: &str| {
        let mut lines = credentials.lines().filter_map(|line| line.split_once(" = "));
        lines.find(|(found, _)| *found == name).map(|(_, value)| value.to_owned()).context("credentials")
    };
    let mut child = as_nobody(&binary, &["--json", "mount", "mine"])
        .arg(&dir)
        .args(["--stop-on-stdin-eof", "--gateway", &network.s3()])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", &home)
        .env("AWS_ACCESS_KEY_ID", value("aws_access_key_id")?)
        .env("AWS_SECRET_ACCESS_KEY", value("aws_secret_access_key")?)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()?;
    let place = dir.to_str().context("UTF-8")?;
    let shown = || -> Result<bool> { Ok(std::fs::read_to_string("/proc/self/mountinfo")?.contains(place)) };
    poll("the mount", PATIENCE, || Ok(shown()?.then_some(())))?;
    let script = "set -e; echo written > f; test \"$(cat f)\" = written; mkdir d; mv f d/g; cat d/g";
    let script = format!("cd '{}'; {script}", dir.display());
    let said = succeeded(as_nobody(Path::new("/bin/sh"), &["-c", &script]).output()?, "the user's programs")?;
    assert_eq!(said, "written\n");
    // Not even root is let in.
    assert_eq!(errno(std::fs::read_dir(&dir)), Some(libc::EACCES));
    drop(child.stdin.take());
    ensure!(child.wait()?.success(), "it did not end cleanly");
    ensure!(!shown()?, "still mounted");
    assert_eq!(network.aws_ok(&["s3", "cp", "s3://mine/d/g", "-"])?, "written\n");
    Ok(())
}
