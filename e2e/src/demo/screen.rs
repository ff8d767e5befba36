//! What the demonstration prints: steps with their times, and what they show.

use std::io::{IsTerminal, stdout};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const RED: &str = "31";
const CYAN: &str = "36";

/// Tells what a step is doing.
pub(super) type Say<'a> = &'a (dyn Fn(&str) + Sync);

/// The terminal, or a file without colours and movement.
pub(super) struct Screen {
    start: Instant,
    colours: bool,
    moving: bool,
}

impl Screen {
    pub(super) fn new() -> Self {
        let terminal = stdout().is_terminal();
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { start: Instant::now(), colours: terminal && !plain, moving: terminal }
    }

    /// Runs a step, shows what it says meanwhile, and then how long it took.
    pub(super) async fn step<T>(&self, title: &str, step: impl AsyncFnOnce(Say<'_>) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let (began, spinner) = (Instant::now(), self.spinner(title));
        let say = |text: &str| match self.moving {
            true => spinner.set_message(text.to_owned()),
            false => println!("  {:>6}  {title}: {text}", seconds(began.elapsed())),
        };
        let result = step(&say).await;
        spinner.finish_and_clear();
        let (mark, colour) = if result.is_ok() { ("✓", GREEN) } else { ("✗", RED) };
        let took = self.paint(DIM, &format!("{:>6}", seconds(began.elapsed())));
        println!("{} {took}  {}", self.paint(colour, mark), self.paint(BOLD, title));
        result
    }

    /// Shows YAML that was applied.
    pub(super) fn yaml(&self, text: &str) {
        self.indented(text, DIM);
    }

    /// Shows a command and what it printed.
    pub(super) fn command(&self, command: &str, output: &str) {
        println!("            {}", self.paint(CYAN, &format!("$ {command}")));
        self.indented(output, "0");
    }

    /// Shows a fact.
    pub(super) fn note(&self, text: &str) {
        println!("            {}\n", self.paint(BOLD, text));
    }

    /// Says how long everything took, and what to do next.
    pub(super) fn end(&self, next: &str) {
        println!("{}\n\n{next}", self.paint(BOLD, &format!("Done in {}.", seconds(self.start.elapsed()))));
    }

    fn indented(&self, text: &str, colour: &str) {
        for line in text.trim_end().lines() {
            println!("            {}", self.paint(colour, line));
        }
        println!();
    }

    fn spinner(&self, title: &str) -> ProgressBar {
        if !self.moving {
            return ProgressBar::hidden();
        }
        let spinner = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed:>6}  {prefix}  {wide_msg}") {
            spinner.set_style(style);
        }
        spinner.set_prefix(title.to_owned());
        spinner.enable_steady_tick(Duration::from_millis(100));
        spinner
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
