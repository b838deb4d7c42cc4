//! Where a run is: the part of a checkpoint that is no tensor.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{checksums, inputs::Inputs};
use crate::event::{Event, Observer};

/// Where a run is. `Own` is what only this kind of run has to remember.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Progress<Own> {
    /// Optimizer steps done.
    pub step: usize,
    /// The best figure that an evaluation gave so far, of which `best/` has the model.
    pub best: Option<f64>,
    /// Threads libtorch computed with; another number changes the last bits.
    pub threads: usize,
    /// The inputs of the run.
    pub inputs: Inputs,
    /// What only this kind of run remembers.
    pub own: Own,
}

impl<Own: Clone + Default> Progress<Own> {
    /// The progress of a run in folder `run` that begins with `threads` threads, or goes on from `earlier`. It warns where the
    /// number of threads is another, and where `best/` is gone or damaged, so that the next evaluation takes its place.
    pub fn go_on(earlier: Option<&Self>, run: &Path, threads: usize, observer: &dyn Observer) -> Self {
        let Some(earlier) = earlier else { return Self { threads, ..Self::default() } };
        let best = run.join("best");
        let lost = earlier.best.is_some() && !(best.is_dir() && checksums::verify(&best).is_ok());
        if lost {
            let text = format!("{} is gone or damaged: the next evaluation takes its place", best.display());
            observer.event(&Event::Warning(&text));
        }
        if threads != earlier.threads {
            let text =
                format!("resumed with {threads} threads instead of {}: the last bits will differ", earlier.threads);
            observer.event(&Event::Warning(&text));
        }
        Self { best: earlier.best.filter(|_| !lost), ..earlier.clone() }
    }
}
