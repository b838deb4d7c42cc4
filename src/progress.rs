//! Events as bars and lines on stderr: bars with rates and time left on a terminal, a line now and then elsewhere.

use std::{
    io::{IsTerminal, Write},
    sync::Mutex,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use reward::event::{Event, Observer};

/// How often a line is written where there is no terminal.
const QUIET: Duration = Duration::from_secs(10);

/// The observer of every command.
pub(crate) struct Progress {
    terminal: bool,
    /// A rank besides the first, which shows warnings only.
    rank: Option<usize>,
    bars: MultiProgress,
    phases: Mutex<Vec<Phase>>,
}

/// A phase under way: several are where threads work side by side.
struct Phase {
    name: &'static str,
    bar: ProgressBar,
    spoken: Instant,
}

impl Progress {
    /// Bars if stderr is a terminal.
    pub(crate) fn new() -> Self {
        let (bars, phases) = (MultiProgress::new(), Mutex::default());
        Self { terminal: std::io::stderr().is_terminal(), rank: None, bars, phases }
    }

    /// For rank `rank` of a run of several processes: rank 0 tells how the run goes, the others what is wrong.
    #[cfg(feature = "torch")]
    pub(crate) fn of_rank(rank: usize) -> Self {
        Self { rank: (rank > 0).then_some(rank), ..Self::new() }
    }

    /// Whether this is the rank that tells how the run goes.
    #[cfg(feature = "torch")]
    pub(crate) fn leads(&self) -> bool {
        self.rank.is_none()
    }

    /// One line, above the bars if there are any.
    pub(crate) fn line(&self, text: &str) {
        // Off a terminal the bars' own lines are not shown.
        let shown = self.terminal && self.bars.println(text).is_ok();
        if !shown {
            plain(text);
        }
    }

    /// Moves the bar of a phase; `message` is shown beside it and, off a terminal, every few seconds.
    fn advance(&self, name: &'static str, done: usize, total: usize, message: &str) {
        let Ok(mut phases) = self.phases.lock() else { return };
        let index = phases.iter().position(|phase| phase.name == name).unwrap_or_else(|| {
            phases.push(Phase { name, bar: self.bar(name), spoken: Instant::now() });
            phases.len() - 1
        });
        let phase = &mut phases[index];
        if self.terminal {
            // A resumed run starts in the middle: rate and time left count from there.
            if phase.bar.position() == 0 && done > 1 {
                phase.bar.set_position(done as u64);
                phase.bar.reset_eta();
            }
            phase.bar.set_length(total as u64);
            phase.bar.set_position(done as u64);
            phase.bar.set_message(message.to_owned());
        } else if done == total || phase.spoken.elapsed() > QUIET {
            phase.spoken = Instant::now();
            plain(&format!("{name} {done}/{total} {message}"));
        }
        if done == total {
            phases.remove(index).bar.finish_and_clear();
        }
    }

    fn bar(&self, name: &'static str) -> ProgressBar {
        if !self.terminal {
            return ProgressBar::hidden();
        }
        let bar = self.bars.add(ProgressBar::new(0));
        let template = "{prefix} {wide_bar} {pos}/{len} [{elapsed} < {eta}, {per_sec}] {msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(name);
        bar
    }
}

impl Observer for Progress {
    fn event(&self, event: &Event) {
        if let Some(rank) = self.rank {
            if let Event::Warning(text) = event {
                self.line(&format!("warning: rank {rank}: {text}"));
            }
            return;
        }
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
