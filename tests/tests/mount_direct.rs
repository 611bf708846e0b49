//! Mounts that read straight from the nodes: verified, cached, recorded, and never waiting for ever.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use holdfast_tests::mounted::{Mount, has_fuse};
use holdfast_tests::{Network, bytes_of, signal, write_file};
use rustix::process::Signal;

const LEN: usize = 30_000_000;

/// Eight readers at once, each of places of its own.
fn read_scattered(path: &std::path::Path, held: &[u8]) -> Result<()> {
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..8usize)
            .map(|reader| {
                scope.spawn(move || -> Result<()> {
                    let file = std::fs::File::open(path)?;
                    let mut piece = vec![0; 100_000];
                    for step in 0..25usize {
                        let at = (step * 8 + reader) * 7_919_993 % (LEN - piece.len());
                        file.read_exact_at(&mut piece, at as u64)?;
                        ensure!(piece == held[at..at + piece.len()], "other bytes at {at}");
                    }
                    Ok(())
                })
            })
            .collect();
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().map_err(|_| anyhow::anyhow!("a reader panicked"))?)
    })
}

#[test]
fn a_direct_mount_reads_without_dead_nodes_and_then_from_its_cache_and_the_run_is_on_record() -> Result<()> {
    if !has_fuse()? {
        return Ok(());
    }
    let root = tempfile::tempdir()?;
    let path = |name: &str| root.path().join(name).to_str().map(str::to_owned).context("UTF-8");
    let network = Network::up(&root.path().join("data"), &["--separate-nodes"])?;
    let (held, other) = (bytes_of("straight", LEN), bytes_of("other", LEN));
    write_file(root.path(), "source/s.bin", &held)?;
    write_file(root.path(), "source/t.bin", &other)?;
    network.holdfast(&["put", &path("source")?, "straight/v1"])?;
    let (cache, run) = (path("cache")?, path("run")?);

    // Sequentially, at random by many, and with a node killed in between.
    let mut mount = Mount::new(&network, root.path(), "m", "straight/v1", &["--direct"])?;
    ensure!(std::fs::read(mount.dir.join("s.bin"))? == held, "other bytes");
    let (_, pid) = network.started_nodes().pop().context("a node")?;
    signal(pid, Signal::KILL)?;
    read_scattered(&mount.dir.join("t.bin"), &other)?;
    std::fs::write(mount.dir.join("new"), b"written through the gateway")?;
    ensure!(std::fs::read(mount.dir.join("new"))? == b"written through the gateway", "other bytes");
    mount.stop()?;

    // Into a cache, with an order to keep to and a transcript of the run.
    std::fs::write(root.path().join("order"), "s.bin\nnot there\n")?;
    let order = path("order")?;
    let recorded = ["--cache-dir", &cache, "--order", &order, "--transcript", &run, "--label", "epoch 1"];
    let mut mount = Mount::new(&network, root.path(), "m", "straight/v1", &recorded)?;
    read_scattered(&mount.dir.join("s.bin"), &held)?;
    ensure!(std::fs::read(mount.dir.join("s.bin"))? == held, "other bytes");
    mount.stop()?;
    let verified = network.holdfast(&["transcript", "verify", &run, "--against", "straight/v1/s.bin"])?;
    let verified = verified.first().context("a line")?;
    ensure!(verified["holds"] == true && verified["label"] == "epoch 1", "{verified}");
    ensure!(verified["bytes"].as_u64() >= Some(LEN as u64), "{verified}");

    // No node is left: what was cached is read, what was not is an error and no hanging process.
    for (_, pid) in network.started_nodes() {
        // One is dead already.
        signal(pid, Signal::KILL).ok();
    }
    let more = ["--cache-dir", &cache, "--timeout", "3s"];
    let mut mount = Mount::new(&network, root.path(), "m", "straight/v1", &more)?;
    ensure!(std::fs::read(mount.dir.join("s.bin"))? == held, "the cache gives other bytes");
    let failed = std::fs::read(mount.dir.join("t.bin")).err().and_then(|error| error.raw_os_error());
    assert_eq!(failed, Some(libc::EIO));
    mount.stop()
}
