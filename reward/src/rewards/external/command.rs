//! A program of the user as a reward: it reads a request a line and writes an answer a line, in any order.
//!
//! ```text
//! {"id": 0, "path": "/…/0.png", "prompt": "a red fox"}     to its stdin
//! {"id": 0, "score": 0.25}                                 from its stdout, or {"id": 0, "error": "why not"}
//! ```

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    ops::Range,
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Value, json};
use tch::Tensor;

use super::{
    Limits, Pictures, cut, not_json,
    process::{Heard, Process},
    score, tell, tensor,
};
use crate::{
    Error, Result,
    rewards::reward::{Pending, Reward, check},
};

/// A reward that a program of the user gives. The program runs until the reward is dropped.
pub struct Command {
    label: String,
    /// As the user wrote it.
    command: String,
    words: Vec<String>,
    timeout: Duration,
    talk: RefCell<Talk>,
    /// Files of pictures that are not answered yet. Dropped after the program, which may still read there.
    folder: tempfile::TempDir,
}

/// The program, and what was said.
struct Talk {
    process: Process,
    restarts_left: usize,
    next_id: u64,
    unanswered: BTreeMap<u64, Request>,
    scores: HashMap<u64, f32>,
    /// When it started or last answered.
    heard: Instant,
}

struct Request {
    line: String,
    prompt: String,
    path: PathBuf,
}

#[derive(Deserialize)]
struct Answer {
    id: u64,
    #[serde(default)]
    score: Value,
    #[serde(default)]
    error: Value,
}

impl Command {
    /// Starts the program of `command`, which is split as a shell's words are, without a shell.
    ///
    /// # Errors
    /// It cannot be started, or there is no folder for pictures.
    pub fn start(label: &str, command: &str, limits: Limits) -> Result<Self> {
        let words = shlex::split(command).unwrap_or_default();
        let process = start(label, &words)?;
        Ok(Self {
            label: label.to_owned(),
            command: command.to_owned(),
            words,
            timeout: limits.timeout(),
            folder: tempfile::Builder::new().prefix("reward-").tempdir()?,
            talk: RefCell::new(Talk {
                process,
                restarts_left: limits.restarts,
                next_id: 0,
                unanswered: BTreeMap::new(),
                scores: HashMap::new(),
                heard: Instant::now(),
            }),
        })
    }

    fn error(&self, what: &str) -> Error {
        Error::data(format!("reward `{}`: {what}", self.label))
    }

    /// Waits until all of `ids`, which were asked for at `sent`, have scores.
    fn wait(&self, ids: Range<u64>, sent: Instant) -> Result<Vec<f32>> {
        let talk = &mut *self.talk.borrow_mut();
        loop {
            let due = talk.unanswered.range(ids.clone()).count();
            if due == 0 {
                break;
            }
            match talk.process.hear(talk.heard.max(sent).checked_add(self.timeout)) {
                Heard::Line(line, at) => {
                    talk.heard = at;
                    self.take(talk, &line)?;
                }
                Heard::Nothing => {
                    let last = talk.process.last_words();
                    let what = format!("no answer within {} s, {due} due{last}", self.timeout.as_secs_f64());
                    let hint = "reward_timeout allows more; an answer is a line that is flushed, in Python print(…, flush=True)";
                    talk.process.kill();
                    self.restart(talk, &what, hint)?;
                }
                Heard::End => {
                    let (end, last) = (talk.process.end_in_words(), talk.process.last_words());
                    let what = format!("the program {end}, {due} answer(s) due{last}");
                    let request = r#"{"id": 0, "path": "a.png", "prompt": "a red fox"}"#;
                    let hint = format!("`{}` in a terminal, given the line {request}, shows why", self.command);
                    self.restart(talk, &what, &hint)?;
                }
            }
        }
        let scores = ids.map(|id| talk.scores.remove(&id).ok_or_else(|| self.error("an answer was taken twice")));
        scores.collect()
    }

    /// Reads an answer. What is not as it has to be is an error: the program may have mixed up what belongs to what.
    fn take(&self, talk: &mut Talk, line: &str) -> Result<()> {
        if line.trim().is_empty() {
            return Ok(());
        }
        let Ok(value) = serde_json::from_str::<Value>(line) else {
            return Err(self
                .error(&format!("its stdout has {}", not_json(line)))
                .hint(r#"stdout is for lines as {"id": 0, "score": 0.5}; messages belong on stderr"#));
        };
        let answer = if value.is_object() { Answer::deserialize(value).ok() } else { None };
        let Some(Answer { id, score: value, error }) = answer else {
            return Err(self.error(&format!("its answer `{}` has no `id` that was asked for", cut(line))));
        };
        let Some(request) = talk.unanswered.remove(&id) else {
            return Err(self.error(&match id < talk.next_id {
                true => format!("it answers request {id} twice, now with `{}`", cut(line)),
                false => format!("it answers request {id}, which was never sent: `{}`", cut(line)),
            }));
        };
        fs_err::remove_file(&request.path)?;
        let of = format!("request {id}, prompt `{}`", cut(&request.prompt));
        if !error.is_null() {
            let said = error.as_str().map_or_else(|| error.to_string(), str::to_owned);
            return Err(self.error(&format!("{of}: {}", cut(&said))));
        }
        let Some(score) = score(&value) else {
            return Err(self.error(&format!("{of}: want a finite number as `score`, got `{}`", cut(line))));
        };
        talk.scores.insert(id, score);
        Ok(())
    }

    /// Starts the program again and asks it for what is due, or gives up.
    fn restart(&self, talk: &mut Talk, what: &str, hint: &str) -> Result<()> {
        if talk.restarts_left == 0 {
            return Err(self.error(what).hint(hint));
        }
        talk.restarts_left -= 1;
        tell(&self.label, &format!("{what}; started again, {} restart(s) left", talk.restarts_left));
        talk.process = start(&self.label, &self.words)?;
        talk.heard = Instant::now();
        for Request { line, .. } in talk.unanswered.values() {
            talk.process.write(line);
        }
        Ok(())
    }
}

fn start(label: &str, words: &[String]) -> Result<Process> {
    Process::start(label, words).map_err(|error| {
        let program = words.first().map_or("", String::as_str);
        Error::data(format!("reward `{label}`: `{program}` cannot be started: {error}"))
    })
}

impl Reward for Command {
    fn name(&self) -> &str {
        &self.label
    }

    fn begin<'a>(&'a self, pixels: &Tensor, prompts: &[&str]) -> Result<Pending<'a>> {
        check(pixels, prompts)?;
        let pngs = Pictures::new(pixels)?.pngs()?;
        let talk = &mut *self.talk.borrow_mut();
        let first = talk.next_id;
        for (png, prompt) in pngs.iter().zip(prompts) {
            let id = talk.next_id;
            let path = self.folder.path().join(format!("{id}.png"));
            fs_err::write(&path, png)?;
            let line = json!({"id": id, "path": path.display().to_string(), "prompt": prompt}).to_string();
            talk.process.write(&line);
            talk.unanswered.insert(id, Request { line, prompt: (*prompt).to_owned(), path });
            talk.next_id += 1;
        }
        let (ids, sent, pixels) = (first..talk.next_id, Instant::now(), pixels.detach());
        Ok(Box::new(move || Ok(tensor(&self.wait(ids, sent)?, &pixels))))
    }

    fn score(&self, pixels: &Tensor, prompts: &[&str]) -> Result<Tensor> {
        self.begin(pixels, prompts)?()
    }

    fn differentiable(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests;
