//! Starts the binary in a folder of its own and shows everything when a check fails.

use std::{
    fmt,
    net::TcpListener,
    os::unix::{fs::symlink, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::LazyLock,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

/// Training triplets in `toy/`; a tenth as many for validation.
pub(crate) const TOY_TRIPLETS: usize = 40;

/// The demo's data, made once.
static TOY: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("toy");
    let command = format!("demo --data-only '{}' --triplets {TOY_TRIPLETS}", folder.display());
    finish(start(&command, Path::new("/"), ""), command, PathBuf::from("/nowhere")).succeeds();
    folder
});

/// Where a command runs: an empty folder but for links to the toy data (`toy`) and the fixtures (`golden`).
pub(crate) struct Workspace(TempDir);

impl Workspace {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        symlink(&*TOY, folder.path().join("toy")).unwrap();
        symlink(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden"), folder.path().join("golden")).unwrap();
        Self(folder)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn bytes(&self, name: &str) -> Vec<u8> {
        fs_err::read(self.path(name)).unwrap()
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs_err::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs_err::write(self.path(name), content).unwrap();
    }

    /// Runs `social-reward` with these arguments, as a shell reads them, to its end.
    pub(crate) fn run(&self, arguments: &str) -> Finished {
        self.run_after("", arguments)
    }

    /// The same in a shell that did `setup` before.
    pub(crate) fn run_after(&self, setup: &str, arguments: &str) -> Finished {
        finish(start(arguments, self.0.path(), setup), format!("{setup} {arguments}"), self.0.path().to_owned())
    }

    /// Starts it in a shell that did `setup` before.
    pub(crate) fn start_after(&self, setup: &str, arguments: &str) -> Running {
        let child = start(arguments, self.0.path(), setup);
        Running { child, arguments: format!("{setup} {arguments}"), folder: self.0.path().to_owned() }
    }

    /// Starts it and waits until `name` is there.
    pub(crate) fn start_until(&self, arguments: &str, name: &str) -> Running {
        self.start_until_after("", arguments, name)
    }

    /// The same in a shell that did `setup` before.
    pub(crate) fn start_until_after(&self, setup: &str, arguments: &str, name: &str) -> Running {
        let mut child = start(arguments, self.0.path(), setup);
        let started = Instant::now();
        while !self.path(name).exists() {
            let over = child.try_wait().unwrap().is_some() || started.elapsed() > Duration::from_secs(120);
            if over {
                child.kill().ok();
                panic!("no {name}\n{}", finish(child, arguments.to_owned(), self.0.path().to_owned()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Running { child, arguments: arguments.to_owned(), folder: self.0.path().to_owned() }
    }

    /// Starts ranks of one run, each with arguments of its own, as a loop that sets torchrun's variables would.
    pub(crate) fn start_ranks(&self, ranks: &[&str]) -> Vec<Running> {
        let port = free_port();
        let start_rank = |(rank, arguments): (usize, &&str)| {
            let setup = format!("RANK={rank} WORLD_SIZE={} MASTER_ADDR=127.0.0.1 MASTER_PORT={port}", ranks.len());
            self.start_after(&setup, arguments)
        };
        ranks.iter().enumerate().map(start_rank).collect()
    }

    /// Runs `size` ranks of one run to their end.
    pub(crate) fn run_ranks(&self, size: usize, arguments: &str) -> Vec<Finished> {
        self.start_ranks(&vec![arguments; size]).into_iter().map(Running::wait).collect()
    }

    /// Waits until `name` is there.
    pub(crate) fn wait_for(&self, name: &str) {
        let started = Instant::now();
        while !self.path(name).exists() {
            assert!(started.elapsed() < Duration::from_secs(120), "no {name}");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The lines of a run's `metrics.jsonl` that have this key.
    pub(crate) fn metrics(&self, run: &str, key: &str) -> Vec<Value> {
        let text = self.text(&format!("{run}/metrics.jsonl"));
        let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.filter(|line| line.get(key).is_some()).collect()
    }

    pub(crate) fn losses(&self, run: &str) -> Vec<f64> {
        self.metrics(run, "loss").iter().map(|line| line["loss"].as_f64().unwrap()).collect()
    }

    /// The steps of a run's checkpoints.
    pub(crate) fn checkpoints(&self, run: &str) -> Vec<usize> {
        let entries = fs_err::read_dir(self.path(&format!("{run}/checkpoints"))).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut steps: Vec<_> = names.map(|name| name.strip_prefix("step-").unwrap().parse().unwrap()).collect();
        steps.sort_unstable();
        steps
    }
}

/// A port that nobody listens at.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A command under way.
pub(crate) struct Running {
    child: Child,
    arguments: String,
    folder: PathBuf,
}

impl Running {
    /// The id of the process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for the end.
    pub(crate) fn wait(self) -> Finished {
        finish(self.child, self.arguments, self.folder)
    }

    /// Sends a signal, by its name.
    pub(crate) fn send(&self, name: &str) {
        let sent = Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Sends a signal (`INT`, `TERM`, `KILL`) and waits for the end.
    pub(crate) fn signal(self, name: &str) -> Finished {
        self.send(name);
        finish(self.child, format!("{} (SIG{name})", self.arguments), self.folder)
    }
}

fn start(arguments: &str, folder: &Path, setup: &str) -> Child {
    let program = env!("CARGO_BIN_EXE_social-reward");
    Command::new("sh")
        .args(["-c", &format!("{setup} exec '{program}' {arguments}")])
        .current_dir(folder)
        // Tests run beside one another; the same for all, as sums in another order differ in the last bits.
        .env("OMP_NUM_THREADS", "1")
        .env_remove("RUST_BACKTRACE")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn finish(child: Child, arguments: String, folder: PathBuf) -> Finished {
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Finished { arguments, status: output.status, stdout: text(output.stdout), stderr: text(output.stderr), folder }
}

/// What came of a command.
pub(crate) struct Finished {
    arguments: String,
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    folder: PathBuf,
}

impl Finished {
    #[track_caller]
    pub(crate) fn check(&self, holds: bool, wanted: &str) -> &Self {
        assert!(holds, "wanted {wanted}\n{self}");
        self
    }

    #[track_caller]
    pub(crate) fn exits(&self, code: i32) -> &Self {
        self.check(self.status.code() == Some(code), &format!("exit code {code}"))
    }

    #[track_caller]
    pub(crate) fn succeeds(&self) -> &Self {
        self.exits(0).check(!self.stderr.contains("error:"), "no error")
    }

    #[track_caller]
    pub(crate) fn dies_of(&self, signal: i32) -> &Self {
        self.check(self.status.signal() == Some(signal), &format!("death by signal {signal}"))
    }

    /// One `error:` line with all `parts`, no data, no panic.
    #[track_caller]
    pub(crate) fn fails(&self, code: i32, parts: &[&str]) -> &Self {
        self.exits(code).check(self.stdout.is_empty(), "nothing on stdout");
        for word in ["panicked", "RUST_BACKTRACE", "internal error", "unwrap", "Exception raised from"] {
            self.check(!self.stderr.contains(word), &format!("no `{word}`"));
        }
        let errors: Vec<&str> = self.stderr.lines().filter(|line| line.starts_with("error: ")).collect();
        self.check(errors.len() == 1, "one error line");
        for part in parts {
            self.check(errors[0].contains(part), &format!("`{part}` in the error"));
        }
        self
    }

    /// A `hint:` line, or clap's tip, with this in it.
    #[track_caller]
    pub(crate) fn hints(&self, part: &str) -> &Self {
        let is_hint = |line: &str| line.starts_with("hint: ") || line.trim_start().starts_with("tip: ");
        let hints = self.stderr.lines().any(|line| is_hint(line) && line.contains(part));
        self.check(hints, &format!("a hint with `{part}`"))
    }

    #[track_caller]
    pub(crate) fn says(&self, part: &str) -> &Self {
        self.check(self.stderr.contains(part), &format!("`{part}` on stderr"))
    }

    /// All of stdout, which must be one JSON document.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        self.succeeds();
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("stdout is not JSON: {error}\n{self}"))
    }
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { arguments, status, stdout, stderr, folder } = self;
        writeln!(f, "$ {}\n{status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n--- files", arguments.trim())?;
        let listing = Command::new("find").args([".", "-size", "-9999M"]).current_dir(folder).output();
        let listing = listing.map(|found| String::from_utf8_lossy(&found.stdout).into_owned()).unwrap_or_default();
        write!(f, "{listing}")
    }
}
