//! Where words go: results to stdout, all else to stderr; progress only on a terminal.

use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::Shared;
use super::flags::spelled;
use crate::cli::FAILED;
use crate::cli::given::FlagVariable;

/// What the user wants to see.
#[derive(Debug)]
pub struct Output {
    pub json: bool,
    quiet: bool,
    verbose: bool,
    /// Flags that the environment has set.
    variables: Vec<FlagVariable>,
}

impl Output {
    pub fn new(shared: &Shared, variables: Vec<FlagVariable>) -> Self {
        log::set_max_level(match (shared.quiet, shared.verbose) {
            (true, _) => log::LevelFilter::Error,
            (_, true) => log::LevelFilter::Debug,
            _ => log::LevelFilter::Warn,
        });
        // Fails only if a logger is set already, which then serves as well.
        let _ = log::set_logger(&Logger);
        Self {
            json: shared.json,
            quiet: shared.quiet,
            verbose: shared.verbose,
            variables,
        }
    }

    /// A line of the result. A reader that has gone away (`| head`) is no error of ours.
    pub fn line(&self, line: &str) {
        self.text(line);
        self.text("\n");
    }

    /// Part of a line of the result, shown at once.
    pub fn text(&self, text: &str) {
        let mut stdout = std::io::stdout().lock();
        let written = stdout
            .write_all(text.as_bytes())
            .and_then(|()| stdout.flush());
        match written {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
            Err(error) => {
                self.error(&format!(
                    "standard output: cannot be written ({error}); check where it leads and the space there"
                ));
                std::process::exit(FAILED.into());
            }
        }
    }

    /// A failure, always shown, on one line whatever a file name or a file's text put into it.
    pub fn error(&self, error: &dyn std::fmt::Display) {
        let message = spelled(&error.to_string()).replace(char::is_control, " ");
        let variables = self.variables.iter();
        let variables = variables.filter(|it| is_about(&message, it));
        let origin: String = variables
            .map(|it| format!("; {} sets {} here", it.variable, it.flag))
            .collect();
        to_stderr(format_args!("error: {message}{origin}"));
    }

    /// Says that `flags` do nothing here; `remedy` goes on after "no effect".
    pub fn idle(&self, flags: &[impl AsRef<str>], remedy: &str) {
        let flags: Vec<&str> = flags.iter().map(AsRef::as_ref).collect();
        if !flags.is_empty() {
            self.warning(&format!("{}: no effect {remedy}", flags.join(", ")));
        }
    }

    /// Reports what a command cannot go on with; the command's outcome.
    pub fn fail(&self, error: &dyn std::fmt::Display) -> bool {
        self.error(error);
        false
    }

    /// Something that is not as the user may think, unless quiet; on one line.
    pub fn warning(&self, text: &str) {
        if !self.quiet {
            to_stderr(format_args!(
                "warn: {}",
                spelled(text).replace(char::is_control, " ")
            ));
        }
    }

    /// A line to know, unless quiet.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            to_stderr(format_args!("{}", spelled(text)));
        }
    }

    /// A line of something that was asked for beside the result: not even `--quiet` takes it away.
    pub fn report(&self, text: &str) {
        to_stderr(format_args!("{text}"));
    }

    /// A timing or detail for `-v`.
    pub fn detail(&self, text: &str) {
        if self.verbose && !self.quiet {
            to_stderr(format_args!("{text}"));
        }
    }

    fn wants_progress(&self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }

    /// A bar over `total` of `what` ("images") with their rate and the time left; hidden unless
    /// stderr is a terminal, and where the results themselves go to a terminal and show how far it
    /// is.
    pub fn items(&self, total: usize, what: &'static str, printing: bool) -> ItemsBar {
        let shown = printing && std::io::stdout().is_terminal();
        if !self.wants_progress() || total < 2 || shown {
            return ItemsBar(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("{pos}/{len} {wide_bar} {rate}, {eta} left");
        // The template is a constant that can be read; the default style serves otherwise.
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let rate = move |state: &ProgressState, text: &mut dyn std::fmt::Write| {
            let _ = write!(text, "{:.1} {what}/s", state.per_sec()); // into memory
        };
        let bar = ProgressBar::new(total as u64).with_style(style.with_key("rate", rate));
        if let Ok(mut shown) = SHOWN.lock() {
            *shown = Some(bar.clone());
        }
        ItemsBar(bar)
    }
}

/// Whether a message names a flag, or begins with or quotes the value that a variable gave it.
fn is_about(message: &str, FlagVariable { flag, value, .. }: &FlagVariable) -> bool {
    let mut values = value.split(',').map(str::trim);
    message
        .split(|c: char| c != '-' && !c.is_alphanumeric())
        .any(|word| word == flag)
        || message.starts_with(value.as_str())
        || values.any(|value| {
            message.contains(&format!("'{value}'")) || message.contains(&format!("{value:?}"))
        })
}

/// The bar that is on the terminal, which other lines must not run into.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// A bar, gone when it is dropped.
pub struct ItemsBar(ProgressBar);

impl std::ops::Deref for ItemsBar {
    type Target = ProgressBar;

    fn deref(&self) -> &ProgressBar {
        &self.0
    }
}

impl Drop for ItemsBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        if let Ok(mut shown) = SHOWN.lock() {
            *shown = None;
        }
    }
}

/// A score with the digits that an f32 has, not those of the f64 it is written as.
pub fn digits(score: f32) -> Option<f64> {
    score.to_string().parse().ok()
}

/// A line on stderr. There is nowhere left to report that stderr is closed, and `eprintln` would
/// panic.
fn to_stderr(line: std::fmt::Arguments<'_>) {
    let write = || {
        let _ = writeln!(std::io::stderr(), "{line}");
    };
    match SHOWN.lock().ok().and_then(|shown| shown.clone()) {
        Some(bar) => bar.suspend(write),
        None => write(),
    }
}

/// A bar over the checkpoint's bytes while it is loaded.
pub fn load_progress(output: &Output) -> impl FnMut(u64, u64) + Send + use<> {
    byte_progress(output, "loading")
}

/// A bar over bytes; `doing` says what is done with them.
pub fn byte_progress(output: &Output, doing: &str) -> impl FnMut(u64, u64) + Send + use<> {
    let bar = if output.wants_progress() {
        let style = ProgressStyle::with_template(&format!(
            "{doing} {{bytes}}/{{total_bytes}} {{wide_bar}} {{bytes_per_sec}} {{eta}}"
        ));
        ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    } else {
        ProgressBar::hidden()
    };
    move |done, total| {
        bar.set_length(total);
        bar.set_position(done);
        if done >= total {
            bar.finish_and_clear();
        }
    }
}

/// Shows the library's warnings on stderr. wgpu's own chatter is left out.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target().starts_with("blip2_wgpu")
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_lowercase();
            to_stderr(format_args!(
                "{level}: {}",
                spelled(&record.args().to_string())
            ));
        }
    }

    fn flush(&self) {}
}
