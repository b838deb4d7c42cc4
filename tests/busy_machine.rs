//! A machine that others use too: threads that wait sleep, their number follows what the process may use, and output that
//! cannot be shown stops nothing.

use std::path::{Path, PathBuf};

use crate::support::harness::Workspace;

const TRAIN: &str = "reward train --training-file toy/train.parquet --training-mode visual_last_layer --model random:tiny \
                     --device cpu --batch-size 8 --save-folder out";

/// The environment of a run under way.
#[cfg(all(feature = "torch", target_os = "linux", target_env = "gnu"))]
fn environment(setup: &str) -> String {
    let workspace = Workspace::new();
    let run = workspace.start_until_after(setup, &format!("{TRAIN} --n-epochs 100"), "out/config.toml");
    let environment = fs_err::read(format!("/proc/{}/environ", run.id())).unwrap();
    run.signal("INT").exits(130);
    String::from_utf8(environment).unwrap()
}

#[test]
#[cfg(all(feature = "torch", target_os = "linux", target_env = "gnu"))]
fn waiting_threads_sleep_unless_the_user_says_otherwise() {
    assert!(environment("").contains("OMP_WAIT_POLICY=passive\0"));
    let chosen = environment("export OMP_WAIT_POLICY=active;");
    assert!(chosen.contains("OMP_WAIT_POLICY=active\0") && !chosen.contains("passive"));
    assert!(!environment("export GOMP_SPINCOUNT=7;").contains("OMP_WAIT_POLICY"));
}

/// Threads as `doctor` counts them in a shell that did `setup`.
fn threads(setup: &str) -> u64 {
    Workspace::new().run_after(setup, "doctor --json").json()["cpu"]["threads"].as_u64().unwrap()
}

/// A cgroup with this quota of CPU time per 100 ms, where this test may make one.
fn quota(microseconds: u32) -> Option<PathBuf> {
    let name = format!("social-reward-test-{}-{microseconds}", std::process::id());
    let files: [(&str, &[(&str, String)]); 2] = [
        (
            "/sys/fs/cgroup/cpu",
            &[("cpu.cfs_period_us", "100000".into()), ("cpu.cfs_quota_us", microseconds.to_string())],
        ),
        ("/sys/fs/cgroup", &[("cpu.max", format!("{microseconds} 100000"))]),
    ];
    for (parent, settings) in files {
        let folder = Path::new(parent).join(&name);
        if fs_err::create_dir(&folder).is_err() {
            continue;
        }
        if settings.iter().all(|(file, value)| fs_err::write(folder.join(file), value).is_ok()) {
            return Some(folder);
        }
        fs_err::remove_dir(&folder).ok();
    }
    None
}

#[test]
fn threads_follow_affinity_and_the_quota_of_a_container() {
    assert_eq!(threads("taskset -pc 0 $$ >/dev/null;"), 1);
    let Some(folder) = quota(100_000) else { return };
    let inside = threads(&format!("echo $$ > '{}/cgroup.procs';", folder.display()));
    fs_err::remove_dir(&folder).ok();
    assert_eq!(inside, 1);
}

#[test]
#[cfg(feature = "torch")]
fn threads_that_are_asked_for_compute() {
    let workspace = Workspace::new();
    for threads in [1, 3] {
        let run = format!("{TRAIN} --n-epochs 1 --threads {threads}").replace("out", &format!("out{threads}"));
        workspace.run(&run).succeeds();
        let progress = workspace.text(&format!("out{threads}/checkpoints/step-5/progress.json"));
        let progress: serde_json::Value = serde_json::from_str(&progress).unwrap();
        assert_eq!(progress["threads"], threads);
    }
    workspace.run(&format!("{TRAIN} --threads 0")).fails(2, &["--threads", "0"]);
}

#[test]
#[cfg(feature = "torch")]
fn training_goes_on_where_stderr_cannot_be_written() {
    let workspace = Workspace::new();
    workspace.run(&format!("{TRAIN} --n-epochs 2 2>/dev/full")).exits(0);
    assert!(workspace.path("out/final/model.safetensors").is_file());
}

#[test]
fn scores_are_printed_where_stderr_cannot_be_written_and_an_error_keeps_its_code() {
    let workspace = Workspace::new();
    let score = "reward score --model random:tiny --device cpu --prompt x";
    let scored = workspace.run(&format!("{score} toy/images/test/00000-pos.png 2>/dev/full"));
    scored.exits(0).check(scored.stdout.contains("00000-pos.png"), "a score");
    workspace.run(&format!("{score} none.png 2>/dev/full")).exits(1);
    // Data that cannot be written is an error.
    let full = workspace.run(&format!("{score} toy/images/test/00000-pos.png >/dev/full"));
    full.fails(1, &["No space left on device"]);
}
