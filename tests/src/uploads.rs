//! Uploads that go on until whoever answers them dies, and the check that all that was acknowledged is there.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};

use crate::{Network, succeeded};

/// Uploads under way: small and large objects and parts, four at a time, into the bucket `crash`.
pub struct Uploads {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
    seen: Vec<String>,
}

impl Uploads {
    /// Starts them and waits until `enough` are acknowledged.
    pub fn start(network: &Network, enough: usize) -> Result<Self> {
        let mut command = network.python_command("upload_until_killed.py", &["4"])?;
        let mut process = command.stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(process.stdout.take().context("piped")?).lines();
        let mut seen = Vec::new();
        while seen.len() < enough {
            seen.push(lines.next().context("the uploads ended early")??);
        }
        Ok(Self { process, lines, seen })
    }

    /// Waits for their end, the first answer that is not theirs. What was acknowledged between the last look and the
    /// kill counts too.
    pub fn ended(mut self) -> Result<Vec<String>> {
        self.seen.extend(self.lines.map_while(Result::ok));
        self.process.wait()?;
        Ok(self.seen)
    }
}

/// Reads every acknowledged object back and compares it.
pub fn check(network: &Network, acknowledged: &[String]) -> Result<()> {
    let mut command = network.python_command("check_acknowledged.py", &[])?;
    let mut check = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let lines = format!("{}\n", acknowledged.join("\n"));
    check.stdin.take().context("piped")?.write_all(lines.as_bytes())?;
    let said = succeeded(check.wait_with_output()?, "check_acknowledged.py")?;
    ensure!(said.contains("acknowledged objects are there"), "{said}");
    Ok(())
}
