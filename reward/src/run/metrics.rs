//! `metrics.jsonl` and the TensorBoard events beside it.

use std::{io::Write, path::Path};

use serde_json::Value;

use super::tensorboard::EventWriter;
use crate::{
    Result,
    event::{Event, Observer},
    files::{followed, replace_file},
};

/// The name of the JSON lines.
pub const FILE: &str = "metrics.jsonl";

/// The step of a line, if it is one of ours.
fn step_of(line: &[u8]) -> Option<usize> {
    let line: Value = serde_json::from_slice(line).ok()?;
    line["step"].as_u64().map(|step| step as usize)
}

/// The largest step that `metrics.jsonl` of this folder tells of.
pub(super) fn last_step(folder: &Path) -> Option<usize> {
    let text = fs_err::read(folder.join(FILE)).ok()?;
    text.split(|byte| *byte == b'\n').filter_map(step_of).max()
}

/// Cuts `metrics.jsonl` back to the lines of `step` and before (all of it at 0). What is no line of ours goes, with a warning
/// unless it is the half line that a killed process leaves at the end.
///
/// # Errors
/// The folder is not writable.
pub fn cut(folder: &Path, step: usize, observer: &dyn Observer) -> Result<()> {
    let path = followed(&folder.join(FILE))?;
    let earlier = if path.is_file() { fs_err::read(&path)? } else { Vec::new() };
    let (mut kept, mut damaged) = (Vec::new(), 0);
    for line in earlier.split_inclusive(|byte| *byte == b'\n').filter(|_| step > 0) {
        match step_of(line) {
            Some(at) if at <= step => {
                kept.extend_from_slice(line.trim_ascii_end());
                kept.push(b'\n');
            }
            Some(_) => {}
            None => damaged += usize::from(line.ends_with(b"\n")),
        }
    }
    if damaged > 0 {
        let text = format!("{}: {damaged} damaged line(s) are left out", path.display());
        observer.event(&Event::Warning(&text));
    }
    replace_file(&path, |partial| Ok(fs_err::write(partial, kept)?))
}

/// Appends a line per step to `metrics.jsonl` and its numbers to TensorBoard.
pub struct Metrics {
    lines: fs_err::File,
    events: EventWriter,
}

impl Metrics {
    /// Opens both in `folder` to go on after `step`; `metrics.jsonl` was [`cut`] there.
    ///
    /// # Errors
    /// The folder is not writable.
    pub fn open(folder: &Path, step: usize) -> Result<Self> {
        let lines = fs_err::OpenOptions::new().create(true).append(true).open(folder.join(FILE))?;
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

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Warnings(Mutex<Vec<String>>);

    impl Observer for Warnings {
        fn event(&self, event: &Event) {
            if let Event::Warning(text) = event {
                self.0.lock().unwrap().push((*text).to_owned());
            }
        }
    }

    #[test]
    fn lines_after_the_step_and_damaged_ones_go() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let cut_at = |step, text: &[u8]| {
            fs_err::write(&path, text).unwrap();
            let warnings = Warnings::default();
            cut(folder.path(), step, &warnings).unwrap();
            let said = warnings.0.into_inner().unwrap();
            (String::from_utf8(fs_err::read(&path).unwrap()).unwrap(), said)
        };
        let good = "{\"step\":1,\"loss\":0.5}\n{\"step\":2}\n";
        let (text, said) = cut_at(2, format!("{good}{{\"step\":3}}\n{{\"step\":4,\"lo").as_bytes());
        assert_eq!((text.as_str(), said.len()), (good, 0), "a half line at the end is what a kill leaves");
        let (text, said) = cut_at(2, &[good.as_bytes(), b"{\"step\":2,\"x\":\"\xff\"}\n\0\0\0\n"].concat());
        assert_eq!(text, good);
        assert!(said.len() == 1 && said[0].ends_with("metrics.jsonl: 2 damaged line(s) are left out"), "{said:?}");
        assert_eq!(cut_at(0, good.as_bytes()), (String::new(), Vec::new()));
        assert_eq!(last_step(folder.path()), None);
    }
}
