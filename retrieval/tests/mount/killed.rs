//! Processes that are killed while they wait for a network that does not answer.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::memory::MemoryBackend;
use crate::world::{Mount, World};

/// Far beyond the whole test: nobody here is let go because patience ended.
const PATIENCE: Duration = Duration::from_secs(3600);
/// What a killed process may need to end, on a machine that is busy.
const ENDS_WITHIN: Duration = Duration::from_secs(60);

/// Cuts the network, runs a program in the mount, waits until it waits, and sends it a signal.
async fn ended_by(signal: Signal, backend: &MemoryBackend, mut child: Child) -> ExitStatus {
    let asked = backend.calls();
    backend.set_silent(true);
    // Whoever waits for a line of input goes on now; the others never read it.
    drop(child.stdin.take().map(|mut input| input.write_all(b"\n")));
    backend.wait_until("a request of the program", |backend| backend.calls() > asked).await;
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("fits")).expect("a process");
    kill_process(pid, signal).expect("signalled");
    let waited = tokio::task::spawn_blocking(move || child.wait().expect("waited for"));
    let ended = tokio::time::timeout(ENDS_WITHIN, waited).await;
    backend.set_silent(false);
    ended.expect("it still waits for a request that is never answered").expect("no panic")
}

fn spawn(dir: &Path, script: &str) -> Child {
    let mut child = Command::new("sh")
        .args(["-c", script])
        .current_dir(dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("sh");
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("a line");
    assert_eq!(line, "ready\n");
    child
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_ends_although_its_request_is_not_answered() {
    let Some(mut mount) = Mount::new(World::with(|config| config.patience = PATIENCE)) else { return };
    let backend = Arc::clone(&mount.world.backend);
    backend.insert("a", vec![7; 9 << 20]);
    let dir = mount.path();
    let scripts = [
        ("looking up", "echo ready; read line; exec stat unknown"),
        ("opening", "stat a > /dev/null; echo ready; read line; exec cat a"),
        ("reading", "exec 3< a; echo ready; read line; exec cat <&3"),
        ("listing", "echo ready; read line; exec ls"),
    ];
    for (what, script) in scripts {
        for signal in [Signal::KILL, Signal::INT] {
            let dir = dir.clone();
            let child = tokio::task::spawn_blocking(move || spawn(&dir, script)).await.expect("started");
            let ended = ended_by(signal, &backend, child).await;
            assert_eq!(ended.signal(), Some(signal.as_raw()), "{what}");
        }
    }
    mount.unmount().await.expect("nobody is left in it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_was_saving_is_saved_without_it() {
    let Some(mut mount) = Mount::new(World::with(|config| config.patience = PATIENCE)) else { return };
    let backend = Arc::clone(&mount.world.backend);
    let dir = mount.path();
    // It ends by a signal, in fsync, with a file open that waits to be uploaded. The shell's own copies of that file are
    // closed, and so uploaded, before it writes: every close of a descriptor uploads what is new.
    let script = "exec 4>&1 1> f; echo ready >&4; read line; echo saved by itself; exec sync f";
    let child = tokio::task::spawn_blocking(move || spawn(&dir, script)).await.expect("started");
    backend.wait_until("the first upload", |backend| backend.get("f").is_some()).await;
    assert_eq!(ended_by(Signal::KILL, &backend, child).await.signal(), Some(9));
    mount.unmount().await.expect("nobody is left in it");
    mount.world.files.finish().await;
    assert_eq!(backend.get("f").as_deref(), Some(&b"saved by itself\n"[..]));
}
