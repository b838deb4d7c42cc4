//! Scorers in Python, good and bad.

use std::time::Instant;

use tch::{Device, Kind};

use super::*;

/// A scorer that answers request N with its prompt's length plus N tenths, in the way that `answer` says, called for each.
fn scorer(folder: &tempfile::TempDir, answer: &str) -> String {
    let script = format!(
        r#"
import json, os, sys, time
def say(**answer):
    print(json.dumps(answer), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    id, score = request["id"], len(request["prompt"]) + request["id"] / 10
    assert open(request["path"], "rb").read(4) == b"\x89PNG"
{answer}
"#
    );
    let path = folder.path().join("score it.py");
    fs_err::write(&path, script).unwrap();
    format!("python3 '{}' {}", path.display(), folder.path().join("started").display())
}

fn pixels() -> Tensor {
    Tensor::linspace(0.0, 1.0, 3 * 3 * 4 * 5, (Kind::Float, Device::Cpu)).view([3, 3, 4, 5])
}

fn scores(reward: &Command) -> Result<Vec<f32>> {
    Ok(Vec::try_from(reward.score(&pixels(), &["a", "bcd", "ef"])?).unwrap())
}

fn with(answer: &str, limits: Limits) -> (Result<Vec<f32>>, Command, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let reward = Command::start("mine", &scorer(&folder, answer), limits).unwrap();
    (scores(&reward), reward, folder)
}

/// A minute for a machine that has much else to do.
const SLOW: Limits = Limits { timeout_seconds: 60.0, restarts: 0 };

#[test]
fn scores_belong_to_their_pictures_and_nothing_is_left_on_disk() {
    let (first, reward, _folder) = with("    say(id=id, score=score)", SLOW);
    assert_eq!(first.unwrap(), [1.0, 3.1, 2.2]);
    // Two under way at once, the later asked for first.
    let early = reward.begin(&pixels(), &["a", "bcd", "ef"]).unwrap();
    let late = reward.begin(&pixels().narrow(0, 0, 1), &["longer"]).unwrap();
    assert_eq!(Vec::<f32>::try_from(late().unwrap()).unwrap(), [6.6]);
    assert_eq!(Vec::<f32>::try_from(early().unwrap()).unwrap(), [1.3, 3.4, 2.5]);
    assert_eq!(fs_err::read_dir(reward.folder.path()).unwrap().count(), 0);
    assert!(!reward.differentiable() && reward.weights().is_empty());
    let error = reward.score(&pixels(), &["one"]).unwrap_err();
    assert_eq!(error.to_string(), "pixels to score for 1 prompt(s): want [1, 3, H, W], got [3, 3, 4, 5]");
}

#[test]
fn answers_come_in_any_order() {
    let answer = "
    kept = [*globals().get('kept', []), (id, score)]
    if len(kept) == 3:
        for id, score in reversed(kept): say(id=id, score=score)
";
    assert_eq!(with(answer, SLOW).0.unwrap(), [1.0, 3.1, 2.2]);
}

#[test]
fn what_a_scorer_does_wrong_is_said_with_its_label() {
    for (answer, message) in [
        (
            "    say(id=id, score=float('nan'))",
            r#"its stdout has `{"id": 0, "score": NaN}`, which holds NaN: want finite numbers"#,
        ),
        (
            "    say(id=id, score=float('inf'))",
            r#"its stdout has `{"id": 0, "score": Infinity}`, which holds Infinity: want"#,
        ),
        (
            "    say(id=id, score=None)",
            r#"request 0, prompt `a`: want a finite number as `score`, got `{"id": 0, "score": null}`"#,
        ),
        ("    say(id=id, score='2')", "request 0, prompt `a`: want a finite number as `score`"),
        ("    say(id=id, score=1e300)", "request 0, prompt `a`: want a finite number as `score`"),
        ("    say(id=id)", "request 0, prompt `a`: want a finite number as `score`, got `{\"id\": 0}`"),
        ("    say(id=0, score=1)", "it answers request 0 twice, now with `{\"id\": 0, \"score\": 1}`"),
        ("    say(id=id + 77, score=1)", "it answers request 77, which was never sent"),
        ("    print([0, 1], flush=True)", "its answer `[0, 1]` has no `id` that was asked for"),
        ("    say(score=1)", "its answer `{\"score\": 1}` has no `id` that was asked for"),
        ("    print('loading weights' + '.' * 500, flush=True)", "its stdout has `loading weights...."),
        ("    say(id=id, error='out of memory')", "request 0, prompt `a`: out of memory"),
        (
            "    sys.stderr.write('no model\\n'); sys.exit(3)",
            "the program ended (exit status: 3), 3 answer(s) due; the end of its stderr: no model",
        ),
    ] {
        let (scores, ..) = with(answer, SLOW);
        let error = scores.unwrap_err().to_string();
        let wanted = format!("reward `mine`: {message}");
        assert!(error.starts_with(&wanted), "{error}\n{wanted}");
        assert!(error.chars().count() < 320, "{error}");
    }
    let Err(error) = Command::start("mine", "no-such-program x", SLOW) else { panic!("it started") };
    let wanted = "reward `mine`: `no-such-program` cannot be started: No such file or directory";
    assert!(error.to_string().starts_with(wanted), "{error}");
}

#[test]
fn a_scorer_that_hangs_is_an_error_in_time() {
    let hangs = "
    if id == 0: say(id=id, score=score)
    else: time.sleep(1000)
";
    // Python itself starts slowly on a busy machine, so that the first answer may not have come either.
    let started = Instant::now();
    let (scores, reward, _folder) = with(hangs, Limits { timeout_seconds: 0.5, restarts: 0 });
    let error = scores.unwrap_err();
    assert!(error.to_string().starts_with("reward `mine`: no answer within 0.5 s, "), "{error}");
    assert!(error.hint_text().unwrap().starts_with("reward_timeout allows more"));
    drop(reward);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn a_scorer_that_dies_is_started_again_and_asked_for_the_rest() {
    let dies_once = "
    if id == 1 and not os.path.exists(sys.argv[1]):
        open(sys.argv[1], 'w').close()
        os.kill(os.getpid(), 9)
    say(id=id, score=score)
";
    let (scores, ..) = with(dies_once, Limits { restarts: 1, ..SLOW });
    assert_eq!(scores.unwrap(), [1.0, 3.1, 2.2]);
    let (scores, ..) = with("    os.kill(os.getpid(), 9)", Limits { restarts: 1, ..SLOW });
    let error = scores.unwrap_err();
    assert!(error.to_string().starts_with("reward `mine`: the program ended (signal: 9 (SIGKILL)"), "{error}");
    assert!(error.hint_text().unwrap().contains("in a terminal, given the line"), "{error}");
}
