//! The methods that need no gradient of a reward: each raises what a program of the user scores, or learns what people prefer;
//! each resumes to the bit; and a run that would learn nothing is stopped.

use std::{thread::sleep, time::Duration};

use serde_json::Value;

use crate::support::{harness::Workspace, triplets};

/// Scores the redness of PNG files, with nothing but Python itself.
const REDNESS: &str = "
import json, struct, sys, zlib

def pixels(path):
    data, packed, at = open(path, 'rb').read(), b'', 8
    while at < len(data):
        length, kind = struct.unpack('>I4s', data[at:at + 8])
        if kind == b'IHDR':
            width, height = struct.unpack('>II', data[at + 8:at + 16])
        if kind == b'IDAT':
            packed += data[at + 8:at + 8 + length]
        at += 12 + length
    raw, stride, values = zlib.decompress(packed), 3 * width, []
    above = bytes(stride)
    for row in range(height):
        how, line = raw[row * (stride + 1)], bytearray(raw[row * (stride + 1) + 1:(row + 1) * (stride + 1)])
        for i in range(stride):
            a, b, c = line[i - 3] if i > 2 else 0, above[i], above[i - 3] if i > 2 else 0
            p = a + b - c
            near = a if abs(p - a) <= min(abs(p - b), abs(p - c)) else b if abs(p - b) <= abs(p - c) else c
            line[i] = (line[i] + (0, a, b, (a + b) // 2, near)[how]) & 255
        above = line
        values.extend(line)
    return values

for line in sys.stdin:
    request = json.loads(line)
    values = pixels(request['path'])
    red, green, blue = (sum(values[channel::3]) for channel in range(3))
    score = (red - (green + blue) / 2) / len(values) * 3 / 255
    print(json.dumps({'id': request['id'], 'score': score}), flush=True)
";

const TINY: &str = "diffusion finetune --model random:sd-tiny --device cpu --height 32 --width 32 --sample-steps 5";
const BY_REDNESS: &str = "--reward 'command:red=python3 redness.py' --prompts prompts.txt --scale-images 8";

pub(crate) fn workspace() -> Workspace {
    let work = Workspace::new();
    work.write("redness.py", REDNESS);
    work.write("prompts.txt", "a red fox\nan owl\na house by the sea\ntwo boats\n");
    work.write("held-out.txt", "a green bird\nsnow\n");
    work
}

fn figure(line: &Value, name: &str) -> f64 {
    line[name].as_f64().unwrap_or_else(|| panic!("no {name} in {line}"))
}

/// Mean redness of held-out images rises beyond its bootstrap interval.
#[track_caller]
fn raises(method: &str, settings: &str) {
    let work = workspace();
    let run = work.run(&format!(
        "{TINY} {BY_REDNESS} --algorithm {method} {settings} --held-out-prompts held-out.txt --held-out-images 16 --batch-size 16 \
         --evaluate-every 0 --output run"
    ));
    run.succeeds();
    let held_out = work.metrics("run", "held_out_reward");
    let last = held_out.last().unwrap();
    assert!(figure(last, "gain_low") > 0.0, "{method}: {last}\n{run}");
    assert!(figure(last, "epsilon_drift") > 0.0 && figure(last, "epsilon_norm_ratio") > 0.0);
    let checks: Vec<String> =
        work.metrics("run", "self_check").iter().map(|line| line["self_check"].as_str().unwrap().to_owned()).collect();
    assert_eq!(checks[..3], ["spread of red", "gradient", "change of the prediction"]);
    for line in work.metrics("run", "loss") {
        assert!(figure(&line, "loss").is_finite() && figure(&line, "reward_std") > 0.0, "{line}");
        if matches!(method, "ddpo" | "grpo") {
            // As many images go through at a time as rolled out.
            assert_eq!(figure(&line, "ratio_error"), 0.0, "{line}");
            assert!(figure(&line, "clip_fraction") >= 0.0 && figure(&line, "approx_kl") >= 0.0);
        }
    }
}

#[test]
fn ddpo_raises_redness() {
    raises("ddpo", "--guidance-scale 1 --learning-rate 3e-3 --train-steps 8 --buffer-min-count 4");
}

#[test]
fn grpo_raises_redness() {
    raises("grpo", "--guidance-scale 1.5 --learning-rate 3e-3 --train-steps 10 --same-noise");
}

#[test]
fn nft_raises_redness_with_another_sampler() {
    raises("nft", "--learning-rate 3e-3 --train-steps 10 --scheduler dpmpp-2m");
}

#[test]
fn rwr_raises_redness() {
    raises("rwr", "--guidance-scale 1 --learning-rate 1e-3 --inner-epochs 4 --train-steps 40");
}

#[test]
fn best_of_n_raises_redness() {
    raises("best-of-n", "--guidance-scale 1 --learning-rate 1e-3 --inner-epochs 4 --train-steps 40");
}

/// Pictures of two colours, of which people like red: triplets of one prompt each, and likes, each colour with a prompt of its own.
pub(crate) fn preferences(work: &Workspace) {
    fs_err::create_dir_all(work.path("pictures")).unwrap();
    let mut likes = "prompt,path,liked\n".to_owned();
    let mut rows = Vec::new();
    for index in 0..60 {
        let shade = (index * 2) as u8;
        let pair =
            [("red", [220 - shade / 2, 30, shade]), ("blue", [shade, 30, 220 - shade / 2])].map(|(name, colour)| {
                let path = format!("pictures/{name}-{index}.png");
                image::RgbImage::from_pixel(32, 32, image::Rgb(colour)).save(work.path(&path)).unwrap();
                path
            });
        let [red, blue] = pair;
        likes += &format!("a flag,{red},true\na door,{blue},false\n");
        rows.push([["a flag", "a door"][index % 2].to_owned(), red, blue]);
    }
    work.write("likes.csv", likes);
    triplets::write(&work.path("triplets.parquet"), &rows);
}

#[test]
fn preferences_are_learned_from_pairs_and_from_likes() {
    let work = workspace();
    preferences(&work);
    for (name, settings, first, least) in [
        ("pairs", "--algorithm dpo --training-file triplets.parquet", 2.0_f64.ln(), 0.65),
        ("likes", "--algorithm kto --labels likes.csv --liked-share 0.5", 0.5, 0.9),
        // One picture at a time, of one prompt for both colours, says little to an untrained model.
        ("preferred", "--algorithm kto --training-file triplets.parquet --utility log-sigmoid", 2.0_f64.ln(), 0.0),
    ] {
        let run = work.run(&format!(
            "{TINY} {settings} --beta 100 --batch-size 16 --train-steps 50 --learning-rate 1e-3 --held-out-images 12 \
             --prompt-dropout 0.1 --evaluate-every 0 --output {name}"
        ));
        run.succeeds();
        // Before the first update the model is its own reference.
        assert!((work.losses(name)[0] - first).abs() < 1e-6, "{name}: {:?}", work.losses(name));
        let held_out = work.metrics(name, "held_out_implicit_accuracy");
        assert_eq!(figure(&held_out[0], "held_out_implicit_accuracy"), 0.5, "{name}");
        assert!((figure(&held_out[0], "held_out_loss") - first).abs() < 1e-6, "{name}");
        let after = figure(&held_out[1], "held_out_implicit_accuracy");
        assert!(after >= least, "{name}: {after}\n{run}");
    }
}

/// The lines of `metrics.jsonl` less what depends on the clock and the machine.
fn metrics(work: &Workspace, run: &str) -> Vec<Value> {
    let mut lines = work.metrics(run, "step");
    for line in &mut lines {
        line.as_object_mut().unwrap().retain(|name, _| {
            !name.ends_with("_seconds") && name != "images_per_second" && name != "peak_memory_bytes"
        });
    }
    lines
}

/// Killed in a roll-out or an update, and stopped: adapters, optimizer, statistics and old policy are those of a whole run.
#[test]
fn killed_and_stopped_runs_resume_to_the_same_bytes() {
    let work = workspace();
    preferences(&work);
    let common =
        "--batch-size 4 --train-steps 8 --checkpoint-every 2 --evaluate-every 0 --learning-rate 1e-3 --threads 1";
    for (method, settings) in [
        (
            "ddpo",
            format!("{BY_REDNESS} --inner-epochs 2 --minibatches 2 --buffer-min-count 2 --kl 0.01 --clip-range 0.2"),
        ),
        ("grpo", format!("{BY_REDNESS} --timestep-fraction 0.5 --deviation group")),
        ("nft", format!("{BY_REDNESS} --inner-epochs 2")),
        ("rwr", format!("{BY_REDNESS} --minibatches 2")),
        ("best-of-n", format!("{BY_REDNESS} --images-per-prompt 2")),
        ("dpo", format!("{BY_REDNESS} --images-per-prompt 2 --reference-every 3 --preference-loss ipo --beta 10")),
        ("kto", "--labels likes.csv --prompt-dropout 0.3".to_owned()),
    ] {
        let command = format!("{TINY} --algorithm {method} {settings} {common}");
        work.run(&format!("{command} --output {method}-whole")).succeeds();
        let resume = format!("{command} --output {method} --resume");
        for (checkpoint, signal, milliseconds) in [(2, "KILL", 120), (4, "KILL", 10), (4, "INT", 0)] {
            // Where rounds have four steps, checkpoints come after each.
            let step = if method == "ddpo" { 4 } else { checkpoint };
            let running = work.start_until(&resume, &format!("{method}/checkpoints/step-{step}"));
            sleep(Duration::from_millis(milliseconds));
            running.signal(signal);
        }
        work.run(&resume).succeeds();
        assert_eq!(metrics(&work, method), metrics(&work, &format!("{method}-whole")), "{method}");
        for file in ["lora/pytorch_lora_weights.safetensors", "checkpoints/step-8/optimizer.safetensors"] {
            let bytes = |run: &str| work.bytes(&format!("{run}/{file}"));
            assert!(bytes(method) == bytes(&format!("{method}-whole")), "{method}: {file} differs");
        }
        let remembered = "checkpoints/step-8/method.safetensors";
        let kept = work.path(&format!("{method}/{remembered}")).exists();
        assert_eq!(kept, matches!(method, "ddpo" | "nft" | "dpo"), "{method}");
        if kept {
            let bytes = |run: &str| work.bytes(&format!("{run}/{remembered}"));
            assert!(bytes(method) == bytes(&format!("{method}-whole")), "{method}: {remembered} differs");
        }
    }
}

/// What reports success must have trained.
#[test]
fn a_run_that_would_learn_nothing_is_stopped() {
    let work = workspace();
    let constant = "
import json, sys
for line in sys.stdin:
    print(json.dumps({'id': json.loads(line)['id'], 'score': 0.5}), flush=True)
";
    work.write("constant.py", constant);
    let base = format!("{TINY} --algorithm grpo --prompts prompts.txt --batch-size 4 --scale-images 4 --train-steps 2");
    let red = "--reward 'command:red=python3 redness.py'";
    for (index, (settings, parts)) in [
        ("--reward 'command:own=python3 constant.py'".to_owned(), ["own", "0.5 for all four"]),
        (format!("{red} --lora-targets nowhere"), ["lora_targets", "nowhere"]),
        (format!("{red} --learning-rate 1e-30"), ["step 1", "still predicts the same"]),
        (format!("{red} --lora lora.safetensors@0"), ["step 1", "gradient of the first update is 0"]),
    ]
    .into_iter()
    .enumerate()
    {
        if settings.contains("lora.safetensors") {
            work.run(&format!("{base} {red} --output trained")).succeeds();
            fs_err::copy(work.path("trained/lora/pytorch_lora_weights.safetensors"), work.path("lora.safetensors"))
                .unwrap();
        }
        let run = work.run(&format!("{base} {settings} --output out{index}"));
        run.check(!run.status.success(), "stopped");
        for part in parts {
            run.says(part);
        }
        assert!(!work.path(&format!("out{index}/lora")).exists());
    }
}
