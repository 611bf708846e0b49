//! A gateway whose metadata is in PostgreSQL: over TLS, and while the database goes away and comes back.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use holdfast_tests::postgres::Postgres;
use holdfast_tests::uploads::{self, Uploads};
use holdfast_tests::{Network, program};

/// Acknowledged uploads before the database is killed.
const UPLOADS_BEFORE_CRASH: usize = 40;

#[test]
fn a_database_over_tls_is_used_by_those_who_trust_it() -> Result<()> {
    let root = tempfile::tempdir()?;
    let server = Postgres::start_tls()?;
    let up = |name: &str, certificates: &std::path::Path| -> Result<std::process::Child> {
        let any = ["--quic-port", "0", "--s3-listen", "127.0.0.1:0", "--web-listen", "127.0.0.1:0"];
        Ok(Command::new(program()?)
            .args(["up", "--json", "--stop-on-stdin-eof", "--meta", &server.url(), "--data"])
            .arg(root.path().join(name))
            .args(any)
            .env_remove("SSL_CERT_DIR")
            .env("SSL_CERT_FILE", certificates)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?)
    };
    let mut trusting = up("trusting", &server.certificate())?;
    let mut line = String::new();
    BufReader::new(trusting.stdout.take().context("piped")?).read_line(&mut line)?;
    ensure!(line.contains("\"event\":\"ready\""), "{line}");
    drop(trusting.stdin.take());
    ensure!(trusting.wait()?.success());
    // The authorities of the system have not signed for it.
    let system = std::path::Path::new("/etc/ssl/certs/ca-certificates.crt");
    let doubting = up("doubting", system)?.wait_with_output()?;
    let said =
        format!("{}{}", String::from_utf8_lossy(&doubting.stdout), String::from_utf8_lossy(&doubting.stderr));
    ensure!(!doubting.status.success() && said.contains("invalid peer certificate"), "{said}");
    Ok(())
}

#[test]
fn a_database_that_is_killed_under_load_loses_nothing_that_was_acknowledged() -> Result<()> {
    let root = tempfile::tempdir()?;
    let server = Postgres::start()?;
    let network = Network::up(&root.path().join("data"), &["--meta", &server.url()])?;
    network.aws_ok(&["s3", "mb", "s3://crash"])?;
    let uploads = Uploads::start(&network, UPLOADS_BEFORE_CRASH)?;
    server.crash()?;
    let acknowledged = uploads.ended()?;
    server.up()?;
    // The same gateway goes on with the database that came back.
    uploads::check(&network, &acknowledged)?;
    network.aws_ok(&["s3api", "put-object", "--bucket", "crash", "--key", "afterwards"])?;
    Ok(())
}
