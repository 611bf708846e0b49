//! Whether the process that waits for an answer is being killed.
//!
//! The kernel tells file systems about signals by FUSE_INTERRUPT, which `fuser` answers with ENOSYS before anybody
//! sees it; and a process whose request was taken up waits until it is answered, whatever signal it has. So whoever
//! has waited for a while is looked at, in /proc, and a killed one is answered with EINTR.

use std::time::Duration;

/// What waits for less is not looked at; and how often the rest is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
const SIGHUP: u32 = 1;
const SIGINT: u32 = 2;
const SIGQUIT: u32 = 3;
const SIGKILL: u32 = 9;
const SIGTERM: u32 = 15;
/// `PF_EXITING` in the flags of /proc/PID/stat.
const EXITING: u64 = 0x4;
/// Where flags and exit code stand in /proc/PID/stat, counted from the state.
const FLAGS_AT: usize = 6;
const EXIT_CODE_AT: usize = 49;

/// Returns when the thread `tid` is being killed or told to stop; never for one that is not known.
pub(super) async fn killed(tid: u32) {
    // Callers outside our process namespace have no number here.
    if tid == 0 {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if is_killed(tid) {
            return;
        }
    }
}

fn is_killed(tid: u32) -> bool {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{tid}/{name}"));
    let Ok(status) = read("status") else { return false };
    is_told_to_stop(&status) || read("stat").is_ok_and(|stat| died_of_signal(&stat))
}

/// A fatal signal is marked as SIGKILL in every thread of a process; others that mean "stop" count unless they are
/// blocked. Ignored ones never wait.
fn is_told_to_stop(status: &str) -> bool {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        u64::from_str_radix(line.trim().rsplit(' ').next()?, 16).ok()
    };
    let bit = |signal: u32| 1u64 << (signal - 1);
    let stops = bit(SIGHUP) | bit(SIGINT) | bit(SIGQUIT) | bit(SIGTERM);
    let pending = mask("SigPnd:").unwrap_or(0) | mask("ShdPnd:").unwrap_or(0);
    let blocked = mask("SigBlk:").unwrap_or(0);
    pending & bit(SIGKILL) != 0 || pending & stops & !blocked != 0
}

/// A process that ends closes its files: after a signal nobody waits for them, after an exit somebody may.
fn died_of_signal(stat: &str) -> bool {
    // The name may hold anything, but no parenthesis follows it.
    let Some((_, fields)) = stat.rsplit_once(')') else { return false };
    let field = |at: usize| fields.split_ascii_whitespace().nth(at)?.parse::<u64>().ok();
    let is_exiting = field(FLAGS_AT).is_some_and(|flags| flags & EXITING != 0);
    is_exiting && field(EXIT_CODE_AT).is_some_and(|code| code & 0x7f != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(pending: &str, shared: &str, blocked: &str) -> String {
        format!("Name:\tcat\nSigQ:\t0/9\nSigPnd:\t{pending}\nShdPnd:\t{shared}\nSigBlk:\t{blocked}\n")
    }

    #[test]
    fn fatal_and_stopping_signals_count_and_others_do_not() {
        let none = "0000000000000000";
        assert!(is_told_to_stop(&status("0000000000000100", none, none)), "SIGKILL in the thread");
        assert!(is_told_to_stop(&status(none, "0000000000000002", none)), "SIGINT");
        assert!(!is_told_to_stop(&status(none, "0000000000000002", "0000000000000002")), "blocked");
        assert!(!is_told_to_stop(&status(none, "0000000008000000", none)), "SIGWINCH");
        assert!(!is_told_to_stop(&status(none, none, none)) && !is_told_to_stop(""));
    }

    #[test]
    fn an_exit_is_no_kill() {
        let stat = |flags: u64, code: u64| {
            let mut fields = vec!["0".to_owned(); 50];
            fields[0] = "D".to_owned();
            fields[FLAGS_AT] = flags.to_string();
            fields[EXIT_CODE_AT] = code.to_string();
            format!("7 (a) b) {}\n", fields.join(" "))
        };
        assert!(died_of_signal(&stat(EXITING | 0x40_0000, 9)));
        assert!(!died_of_signal(&stat(EXITING, 0)));
        assert!(!died_of_signal(&stat(EXITING, 1 << 8)), "exit(1)");
        assert!(!died_of_signal(&stat(0, 9)) && !died_of_signal("nonsense"));
    }

    #[test]
    fn our_own_thread_is_not_being_killed() {
        assert!(!is_killed(std::process::id()));
    }
}
