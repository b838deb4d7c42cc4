//! Events as bars and lines on stderr: bars with rates and time left on a terminal, a line now and then elsewhere.

use std::{
    io::{IsTerminal, Write},
    sync::Mutex,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use reward::event::{Event, Observer};

/// How often a line is written where there is no terminal.
const QUIET: Duration = Duration::from_secs(10);

/// The observer of every command.
pub(crate) struct Progress {
    terminal: bool,
    state: Mutex<State>,
}

struct State {
    phase: &'static str,
    bar: Option<ProgressBar>,
    spoken: Instant,
}

impl Progress {
    /// Bars if stderr is a terminal.
    pub(crate) fn new() -> Self {
        let state = State { phase: "", bar: None, spoken: Instant::now() };
        Self { terminal: std::io::stderr().is_terminal(), state: Mutex::new(state) }
    }

    /// One line, above the bar if there is one.
    pub(crate) fn line(&self, text: &str) {
        match self.state.lock().ok().and_then(|state| state.bar.clone()) {
            Some(bar) => bar.println(text),
            None => plain(text),
        }
    }

    /// Moves the bar of `phase`; `message` is shown beside it and, off a terminal, every few seconds.
    fn advance(&self, phase: &'static str, done: usize, total: usize, message: &str) {
        let Ok(mut state) = self.state.lock() else { return };
        if state.phase != phase {
            if let Some(bar) = state.bar.take() {
                bar.finish_and_clear();
            }
            state.phase = phase;
            if self.terminal {
                let bar = ProgressBar::new(total as u64);
                let template = "{prefix} {wide_bar} {pos}/{len} [{elapsed} < {eta}, {per_sec}] {msg}";
                if let Ok(style) = ProgressStyle::with_template(template) {
                    bar.set_style(style);
                }
                bar.set_prefix(phase);
                state.bar = Some(bar);
            }
        }
        if let Some(bar) = &state.bar {
            // A resumed run starts in the middle: rate and time left count from there.
            if bar.position() == 0 && done > 1 {
                bar.set_position(done as u64);
                bar.reset_eta();
            }
            bar.set_position(done as u64);
            bar.set_message(message.to_owned());
        } else if done == total || state.spoken.elapsed() > QUIET {
            state.spoken = Instant::now();
            plain(&format!("{phase} {done}/{total} {message}"));
        }
        if done == total {
            if let Some(bar) = state.bar.take() {
                bar.finish_and_clear();
            }
            state.phase = "";
        }
    }
}

impl Observer for Progress {
    fn event(&self, event: &Event) {
        match event {
            Event::Note(text) => self.line(text),
            Event::Warning(text) => self.line(&format!("warning: {text}")),
            Event::Progress { phase, done, total } => self.advance(phase, *done, *total, ""),
            Event::Preflight(report) => self.line(&report.to_string()),
            Event::Step(step) => {
                let message = format!(
                    "epoch {} loss {:.4} lr {:.2e} {:.1} triplets/s",
                    step.epoch, step.loss, step.learning_rate, step.triplets_per_second
                );
                self.advance("training", step.step, step.total, &message);
            }
            Event::Tuned(step) => {
                let reward = step.reward_mean.map_or(String::new(), |reward| format!("reward {reward:.4} "));
                let message = format!(
                    "loss {:.4} {reward}lr {:.2e} {:.2} images/s (sampling {:.1} s, forward {:.1}, backward {:.1}), peak {:.1} GB",
                    step.loss,
                    step.learning_rate,
                    step.images_per_second,
                    step.rollout_seconds,
                    step.forward_seconds,
                    step.backward_seconds,
                    step.peak_memory_bytes as f64 / 1e9,
                );
                self.advance("fine-tuning", step.step, step.total, &message);
            }
            Event::Validated { step, validation, best } => self.line(&format!(
                "step {step}: validation accuracy {:.4} [{:.4}, {:.4}], gap {:+.4}{}",
                validation.accuracy,
                validation.interval_low,
                validation.interval_high,
                validation.mean_gap,
                if *best { ", best so far" } else { "" },
            )),
            Event::Generating { done, total, step, steps, images_per_second } => {
                let step = if *step > 0 { format!("step {step}/{steps}, ") } else { String::new() };
                let message = format!("{step}{images_per_second:.3} images/s");
                self.advance("images", *done, *total, &message);
            }
            Event::Saved(path) => self.line(&format!("saved {}", path.display())),
        }
    }
}

fn plain(text: &str) {
    // A full disk or a reader that has gone is no reason to stop the work.
    writeln!(std::io::stderr(), "{text}").ok();
}
