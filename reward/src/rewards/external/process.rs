//! A program that runs beside this one and talks in lines. It ends when this one does, however that ends.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, Read, Write},
    os::unix::process::CommandExt,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::{cut, tell};

/// Longer lines are split: no answer is that long.
const LONGEST_LINE: u64 = 1 << 16;
/// Lines of its stderr that are kept for a message.
const LAST_LINES: usize = 5;
/// How long it may take to end by itself once its input is closed.
const GRACE: Duration = Duration::from_secs(2);

/// What was heard of a program.
pub(super) enum Heard {
    /// A line of its stdout, and when it came.
    Line(String, Instant),
    /// Nothing, until it was too late.
    Nothing,
    /// Its stdout is closed.
    End,
}

/// A running program in a process group of its own, which the terminal's Ctrl-C does not reach.
pub(super) struct Process {
    child: Child,
    /// How it ended, once it was waited for.
    status: Option<ExitStatus>,
    /// Kills the group where this program ends without doing so.
    guard: Option<Child>,
    input: Option<Sender<String>>,
    output: Receiver<(String, Instant)>,
    last_lines: Arc<Mutex<VecDeque<String>>>,
    stderr: thread::JoinHandle<()>,
}

impl Process {
    /// Starts the program `words[0]` with the other words as its arguments. Each line of its stderr goes to ours, with `label`.
    ///
    /// # Errors
    /// It cannot be started.
    pub(super) fn start(label: &str, words: &[String]) -> std::io::Result<Self> {
        let [program, arguments @ ..] = words else { return Err(std::io::ErrorKind::InvalidInput.into()) };
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let guard = guard(&child);
        let (input, lines) = channel::<String>();
        let (heard, output) = channel();
        let stdin = child.stdin.take();
        // A thread for each pipe: one that is full never stops this program.
        thread::spawn(move || {
            let Some(mut stdin) = stdin else { return };
            for line in lines {
                // That it has ended is seen on its stdout.
                if stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush()).is_err() {
                    return;
                }
            }
        });
        let stdout = child.stdout.take();
        thread::spawn(move || {
            read_lines(stdout, |line| {
                // Nobody listens any more.
                let _ = heard.send((line, Instant::now()));
            });
        });
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        let (pipe, kept, owner) = (child.stderr.take(), Arc::clone(&last_lines), label.to_owned());
        let stderr = thread::spawn(move || {
            read_lines(pipe, |line| {
                tell(&owner, &line);
                if let Ok(mut kept) = kept.lock()
                    && !line.trim().is_empty()
                {
                    kept.push_back(line);
                    let surplus = kept.len().saturating_sub(LAST_LINES);
                    kept.drain(..surplus);
                }
            });
        });
        Ok(Self { child, status: None, guard, input: Some(input), output, last_lines, stderr })
    }

    /// Writes a line to its stdin, without waiting.
    pub(super) fn write(&self, line: &str) {
        if let Some(input) = &self.input {
            // The writer has ended where the program has, which is seen on its stdout.
            let _ = input.send(format!("{line}\n"));
        }
    }

    /// The next line of its stdout. What came is given out even after `deadline`; without one it is waited for.
    pub(super) fn hear(&self, deadline: Option<Instant>) -> Heard {
        if let Ok((line, at)) = self.output.try_recv() {
            return Heard::Line(line, at);
        }
        let heard = match deadline {
            Some(deadline) => self.output.recv_timeout(deadline.saturating_duration_since(Instant::now())),
            None => self.output.recv().map_err(RecvTimeoutError::from),
        };
        match heard {
            Ok((line, at)) => Heard::Line(line, at),
            Err(RecvTimeoutError::Timeout) => Heard::Nothing,
            Err(RecvTimeoutError::Disconnected) => Heard::End,
        }
    }

    /// How it ended, in words; it is waited for a moment.
    pub(super) fn end_in_words(&mut self) -> String {
        let status = match self.ended_within(GRACE).then(|| self.reap()).flatten() {
            Some(status) => format!("ended ({status})"),
            None => "closed its stdout".to_owned(),
        };
        until(GRACE, || self.stderr.is_finished());
        status
    }

    /// The last lines of its stderr, as the end of a message.
    pub(super) fn last_words(&self) -> String {
        let lines = self.last_lines.lock().map(|lines| lines.iter().map(|line| cut(line)).collect::<Vec<_>>());
        match lines {
            Ok(lines) if !lines.is_empty() => format!("; the end of its stderr: {}", lines.join(" | ")),
            _ => String::new(),
        }
    }

    /// Kills it and what it started. While it was not waited for, no other group has its number.
    pub(super) fn kill(&mut self) {
        if self.status.is_none() {
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
        }
    }

    /// Ends what is left of it, and gives how it ended.
    fn reap(&mut self) -> Option<ExitStatus> {
        self.kill();
        if let Some(mut guard) = self.guard.take() {
            let _ = guard.kill();
            let _ = guard.wait();
        }
        self.status = self.child.wait().ok();
        self.status
    }

    /// Whether it has ended, or does so within `time`. It stays to be waited for, so that nothing else has its number.
    fn ended_within(&self, time: Duration) -> bool {
        let id = Pid::from_child(&self.child);
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        until(time, || !matches!(waitid(WaitId::Pid(id), options), Ok(None)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.input = None;
        self.ended_within(GRACE);
        self.reap();
    }
}

/// Looks until `done` or for `time`; gives whether it is done.
fn until(time: Duration, done: impl Fn() -> bool) -> bool {
    let started = Instant::now();
    while !done() {
        if started.elapsed() > time {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
    true
}

/// A shell that kills the group of `child` once its stdin closes, as it does when this program ends in whatever way. `None` where
/// there is no shell: then the end of its own stdin is all that tells the child.
fn guard(child: &Child) -> Option<Child> {
    const SCRIPT: &str = r#"read -r _; sleep 2; kill -s KILL -- "-$0""#;
    Command::new("sh")
        .args(["-c", SCRIPT, &child.id().to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .ok()
}

/// Gives out each line of `pipe` that is complete, without its end.
fn read_lines(pipe: Option<impl Read>, mut take: impl FnMut(String)) {
    let Some(pipe) = pipe else { return };
    let mut reader = BufReader::new(pipe);
    loop {
        let mut line = Vec::new();
        match (&mut reader).take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(read) if read > 0 => {}
            _ => return,
        }
        let complete = line.ends_with(b"\n") || line.len() as u64 == LONGEST_LINE;
        if complete {
            take(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::test_kill_process;

    use super::*;

    /// A program that goes on when its stdin is closed.
    fn deaf() -> Process {
        let words = ["sh", "-c", "sleep 1000 & echo ready; wait"].map(str::to_owned);
        let process = Process::start("deaf", &words).unwrap();
        let Heard::Line(line, _) = process.hear(None) else { panic!("it did not start") };
        assert_eq!(line, "ready");
        process
    }

    fn is_gone(id: Pid) -> bool {
        test_kill_process(id).is_err()
    }

    #[test]
    fn a_program_that_does_not_end_is_killed() {
        let process = deaf();
        let id = Pid::from_child(&process.child);
        assert!(!is_gone(id));
        drop(process);
        assert!(is_gone(id));
    }

    #[test]
    fn a_program_does_not_outlive_this_one() {
        let mut process = deaf();
        // All that is left of this program when it is killed: its ends of pipes are closed.
        drop(process.guard.as_mut().unwrap().stdin.take());
        assert!(process.ended_within(Duration::from_secs(20)));
        assert_eq!(process.end_in_words(), "ended (signal: 9 (SIGKILL))");
    }
}
