//! What the program says: sentences for people, or one JSON value a line.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::settings::Setting;

/// Where and how to speak.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// A line for people; silent with `--json`.
    pub(crate) fn say(self, line: impl AsRef<str>) {
        if !self.json {
            print_line(line.as_ref());
        }
    }

    /// A value for programs; silent without `--json`.
    pub(crate) fn value(self, value: &impl Serialize) {
        if self.json {
            let line = serde_json::to_string(value)
                .unwrap_or_else(|error| format!("{{\"error\":\"this result has no JSON form: {error}\"}}"));
            print_line(&line);
        }
    }

    /// A failure, on standard error in both forms.
    pub(crate) fn error(self, error: &anyhow::Error) {
        if self.json {
            let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
            eprintln!("{}", serde_json::json!({ "error": format!("{error:#}"), "causes": causes }));
        } else {
            eprintln!("error: {error:#}");
        }
    }

    /// A progress bar over bytes, on a terminal only.
    pub(crate) fn bytes_bar(self, total: u64, what: &str) -> ProgressBar {
        let style = "{msg:>12} [{bar:30}] {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>5}";
        self.bar(total, what, style)
    }

    /// A progress bar over things, on a terminal only.
    pub(crate) fn count_bar(self, total: u64, what: &str) -> ProgressBar {
        self.bar(total, what, "{msg:>12} [{bar:30}] {pos:>8}/{len:8} {eta:>5}")
    }

    fn bar(self, total: u64, what: &str, style: &str) -> ProgressBar {
        let target = if self.json || !std::io::stderr().is_terminal() {
            ProgressDrawTarget::hidden()
        } else {
            ProgressDrawTarget::stderr()
        };
        let style = ProgressStyle::with_template(style)
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .progress_chars("=> ");
        let bar = ProgressBar::with_draw_target(Some(total), target)
            .with_style(style)
            .with_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    }

    /// `config show`.
    pub(crate) fn settings(self, settings: &[Setting]) {
        self.value(&settings);
        let mut command = None;
        for setting in settings {
            if command != Some(&setting.command) {
                command = Some(&setting.command);
                let title = if setting.command.is_empty() { "every command" } else { &setting.command };
                self.say(format!("\n{title}"));
            }
            let value = setting.value.as_deref().unwrap_or("-");
            self.say(format!("  {:20} {:24} {}", setting.option, value, setting.source));
        }
    }
}

/// Prints a line; a reader that has gone away (`| head`) ends the program without a panic.
fn print_line(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}
