//! When to stop: Ctrl-C, SIGTERM, or the end of standard input for a process that another one started.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first signal. A second Ctrl-C ends the process at once.
pub(crate) fn stop_token(stop_on_stdin_eof: bool) -> Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot watch for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot watch for SIGTERM")?;
    let stop = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        stop.cancel();
        interrupt.recv().await;
        // Whoever asks twice does not want to wait; nothing acknowledged depends on a clean stop.
        std::process::exit(130);
    });
    if stop_on_stdin_eof {
        let stop = token.clone();
        // A thread, because a blocking read of standard input cannot be cancelled.
        std::thread::spawn(move || {
            let drained = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
            if drained.is_ok() {
                stop.cancel();
            }
        });
    }
    Ok(token)
}
