//! Errors as the user sees them: one line that names the thing, `hint:` where there is a way out, and the exit code.

use std::{io::Write, process::ExitCode};

use reward::{Error, ErrorKind};

/// Prints an error and gives the exit code for it. `signal`: the signal that asked to stop, or 0.
pub(crate) fn report(error: &anyhow::Error, signal: usize) -> ExitCode {
    let ours = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    let kind = ours.map_or(ErrorKind::Data, Error::kind);
    if kind == ErrorKind::Interrupted {
        complain("interrupted");
        return interrupted(signal);
    }
    complain(&format!("error: {}", format!("{error:#}").replace('\n', " ")));
    if let Some(hint) = ours.and_then(Error::hint_text).filter(|hint| !hint.is_empty()) {
        complain(&format!("hint: {hint}"));
    }
    ExitCode::from(if kind == ErrorKind::Usage { 2 } else { 1 })
}

/// 128 + the signal, as shells have it: 130 for Ctrl-C, 143 for SIGTERM, 129 where the terminal closed.
pub(crate) fn interrupted(signal: usize) -> ExitCode {
    ExitCode::from(128 + if signal == 0 { 2 } else { signal as u8 })
}

fn complain(line: &str) {
    // A full disk or a reader that has gone: there is nobody to tell.
    writeln!(std::io::stderr(), "{line}").ok();
}
