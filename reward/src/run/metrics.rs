//! `metrics.jsonl` and the TensorBoard events beside it.

use std::{io::Write, path::Path};

use serde_json::Value;

use super::tensorboard::EventWriter;
use crate::{Result, weights::save::replace_file};

/// Appends a line per step to `metrics.jsonl` and its numbers to TensorBoard.
pub struct Metrics {
    lines: fs_err::File,
    events: EventWriter,
}

impl Metrics {
    /// Opens both in `folder`, cutting `metrics.jsonl` back to the lines of `step` and before (all of it at 0).
    ///
    /// # Errors
    /// The folder is not writable.
    pub fn open(folder: &Path, step: usize) -> Result<Self> {
        let path = folder.join("metrics.jsonl");
        let earlier = if path.is_file() { fs_err::read_to_string(&path)? } else { String::new() };
        let kept = |line: &&str| {
            let parsed: Option<Value> = serde_json::from_str(line).ok();
            step > 0 && parsed.and_then(|line| line["step"].as_u64()).is_some_and(|at| at <= step as u64)
        };
        let kept: String = earlier.lines().filter(kept).flat_map(|line| [line, "\n"]).collect();
        replace_file(&path, |partial| Ok(fs_err::write(partial, kept)?))?;
        let lines = fs_err::OpenOptions::new().append(true).open(&path)?;
        Ok(Self { lines, events: EventWriter::create(&folder.join("tensorboard"), step)? })
    }

    /// Adds one line. `line` is an object with a `step`; its other numbers become TensorBoard scalars.
    ///
    /// # Errors
    /// The disk is full.
    pub fn add(&mut self, line: &Value) -> Result<()> {
        self.lines.write_all(format!("{line}\n").as_bytes())?;
        let step = line["step"].as_u64().unwrap_or_default() as i64;
        let numbers = line.as_object().into_iter().flatten();
        let scalars = numbers.filter(|(name, _)| !matches!(name.as_str(), "step" | "epoch"));
        let scalars = scalars.filter_map(|(name, value)| Some((name.as_str(), value.as_f64()? as f32)));
        self.events.scalars(step, scalars)
    }

    /// Adds an RGB picture, a whole PNG file, to TensorBoard.
    ///
    /// # Errors
    /// The disk is full.
    pub fn image(&mut self, step: usize, tag: &str, png: &[u8], [height, width]: [u32; 2]) -> Result<()> {
        self.events.image(step as i64, tag, png, [height, width])
    }
}
