//! Hundreds of small S3 cases, and command-line tools that people have: rclone, s3cmd, s5cmd.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use holdfast_tests::{Network, bytes_of, succeeded, tree, write_file};

/// Cases that `s3_cases.py` has at least; it says how many held.
const CASES_MIN: usize = 55;

#[test]
fn hundreds_of_small_cases_are_answered_as_s3_answers_them() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    let said = network.python("s3_cases.py", &[])?;
    let held = said.split_whitespace().nth(1).and_then(|count| count.parse::<usize>().ok());
    ensure!(held.is_some_and(|held| held >= CASES_MIN), "{said}");
    Ok(())
}

/// Access key and secret of the network's owner.
fn owner(network: &Network) -> Result<(String, String)> {
    let text = std::fs::read_to_string(network.data.join("credentials"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.trim_start().strip_prefix('='));
        line.map(|value| value.trim().to_owned()).with_context(|| format!("no {name}"))
    };
    Ok((field("aws_access_key_id")?, field("aws_secret_access_key")?))
}

/// A tool of the system or of the test clients, without what the surroundings say of other servers.
fn tool(program: impl AsRef<std::ffi::OsStr>, args: &[&str]) -> Result<Output> {
    let name = program.as_ref().to_string_lossy().into_owned();
    let mut command = Command::new(program);
    for variable in ["AWS_CA_BUNDLE", "AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"] {
        command.env_remove(variable);
    }
    let output = command.args(args).output();
    output.with_context(|| format!("cannot start {name}; run scripts/setup.sh --tests"))
}

fn source(root: &Path) -> Result<std::path::PathBuf> {
    let source = root.join("source");
    write_file(&source, "a/one.bin", &bytes_of("one", 100_000))?;
    write_file(&source, "b/large.bin", &bytes_of("large", 12_000_001))?;
    write_file(&source, "c d/ü+%.txt", b"text")?;
    write_file(&source, "empty", b"")?;
    Ok(source)
}

#[test]
fn rclone_syncs_checks_moves_and_hears_no() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    let (access, secret) = owner(&network)?;
    let source = source(root.path())?;
    let (from, copy) = (source.to_str().context("UTF-8")?, root.path().join("copy"));
    let run = |secret: &str, args: &[&str]| {
        let endpoint = network.s3();
        let remote = [
            "--config=/dev/null",
            "--s3-provider=Other",
            "--s3-chunk-size=5M",
            "--s3-upload-cutoff=6M",
            "--retries=1",
            &format!("--s3-endpoint={endpoint}"),
            &format!("--s3-access-key-id={access}"),
            &format!("--s3-secret-access-key={secret}"),
        ]
        .map(str::to_owned);
        tool("rclone", &[&remote.each_ref().map(String::as_str)[..], args].concat())
    };
    let ok = |args: &[&str]| succeeded(run(&secret, args)?, &format!("rclone {}", args.join(" ")));
    ok(&["mkdir", ":s3:rclone-bucket"])?;
    ok(&["sync", from, ":s3:rclone-bucket/tree"])?;
    ok(&["check", "--download", from, ":s3:rclone-bucket/tree"])?;
    ok(&["moveto", ":s3:rclone-bucket/tree/empty", ":s3:rclone-bucket/moved"])?;
    ensure!(ok(&["lsf", ":s3:rclone-bucket"])? == "moved\ntree/\n");
    ok(&["moveto", ":s3:rclone-bucket/moved", ":s3:rclone-bucket/tree/empty"])?;
    ok(&["copy", ":s3:rclone-bucket/tree", copy.to_str().context("UTF-8")?])?;
    ensure!(tree(&copy)? == tree(&source)?, "what came back is not what was sent");
    let refused = run("wrong", &["lsf", ":s3:rclone-bucket"])?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(!refused.status.success() && said.contains("SignatureDoesNotMatch"), "{said}");
    ok(&["purge", ":s3:rclone-bucket"])?;
    Ok(())
}

#[test]
fn s3cmd_works_as_it_comes_with_its_old_name_for_the_region() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    let (access, secret) = owner(&network)?;
    let endpoint = network.s3();
    let host = endpoint.trim_start_matches("http://").trim_end_matches('/');
    let config = root.path().join("s3cfg");
    std::fs::write(
        &config,
        format!(
            "[default]\naccess_key = {access}\nsecret_key = {secret}\nhost_base = {host}\nhost_bucket = {host}\nuse_https = False\n"
        ),
    )?;
    let config = config.to_str().context("UTF-8")?;
    let ok = |args: &[&str]| {
        let all = [&["-c", config, "--no-progress"][..], args].concat();
        succeeded(tool("s3cmd", &all)?, &format!("s3cmd {}", args.join(" ")))
    };
    let source = source(root.path())?;
    let large = source.join("b/large.bin");
    let (large, back) = (large.to_str().context("UTF-8")?, root.path().join("back.bin"));
    ok(&["mb", "s3://s3cmd-bucket"])?;
    ok(&["--multipart-chunk-size-mb=5", "put", large, "s3://s3cmd-bucket/large"])?;
    ok(&["get", "s3://s3cmd-bucket/large", back.to_str().context("UTF-8")?])?;
    ensure!(std::fs::read(&back)? == std::fs::read(large)?);
    ok(&["cp", "s3://s3cmd-bucket/large", "s3://s3cmd-bucket/copy"])?;
    ok(&["setacl", "--acl-private", "s3://s3cmd-bucket/copy"])?;
    let info = ok(&["info", "s3://s3cmd-bucket/copy"])?;
    ensure!(info.contains("SSE:       AES256") && info.contains("12000001"), "{info}");
    let open = tool("s3cmd", &["-c", config, "setacl", "--acl-public", "s3://s3cmd-bucket/copy"])?;
    let said = String::from_utf8_lossy(&open.stderr).into_owned();
    ensure!(!open.status.success() && said.contains("AccessControlListNotSupported"), "{said}");
    let wrong = tool("s3cmd", &["-c", config, "--secret_key=wrong", "ls"])?;
    let said = String::from_utf8_lossy(&wrong.stderr).into_owned();
    ensure!(!wrong.status.success() && said.contains("SignatureDoesNotMatch"), "{said}");
    ok(&["del", "--recursive", "--force", "s3://s3cmd-bucket"])?;
    ok(&["rb", "s3://s3cmd-bucket"])?;
    Ok(())
}

#[test]
fn s5cmd_copies_a_tree_and_hears_no() -> Result<()> {
    let root = tempfile::tempdir()?;
    let network = Network::up(&root.path().join("data"), &[])?;
    let (access, secret) = owner(&network)?;
    let program = Path::new(&std::env::var_os("HOLDFAST_DATA_VENV").context("run through `make test`")?)
        .join("bin/s5cmd");
    let endpoint = network.s3();
    let source = source(root.path())?;
    let (from, copy) = (format!("{}/", source.display()), root.path().join("copy"));
    let to = format!("{}/", copy.display());
    let run = |secret: &str, args: &[&str]| -> Result<Output> {
        let mut command = Command::new(&program);
        command.env_remove("AWS_CA_BUNDLE").env_remove("AWS_PROFILE").env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", &access).env("AWS_SECRET_ACCESS_KEY", secret);
        command.args(["--retry-count", "0", "--endpoint-url", &endpoint]).args(args);
        command.output().context("cannot start s5cmd; run scripts/setup.sh --tests")
    };
    let ok = |args: &[&str]| succeeded(run(&secret, args)?, &format!("s5cmd {}", args.join(" ")));
    ok(&["mb", "s3://s5cmd-bucket"])?;
    ok(&["cp", "--part-size", "5", &from, "s3://s5cmd-bucket/tree/"])?;
    ok(&["cp", "s3://s5cmd-bucket/tree/*", &to])?;
    ensure!(tree(&copy)? == tree(&source)?, "what came back is not what was sent");
    ok(&["mv", "s3://s5cmd-bucket/tree/b/large.bin", "s3://s5cmd-bucket/moved"])?;
    let missing = run(&secret, &["cat", "s3://s5cmd-bucket/tree/b/large.bin"])?;
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    ensure!(!missing.status.success() && said.contains("not found"), "{said}");
    let wrong = run("wrong", &["ls", "s3://s5cmd-bucket"])?;
    ensure!(
        !wrong.status.success() && String::from_utf8_lossy(&wrong.stderr).contains("SignatureDoesNotMatch")
    );
    ok(&["rm", "s3://s5cmd-bucket/*"])?;
    ok(&["rb", "s3://s5cmd-bucket"])?;
    Ok(())
}
