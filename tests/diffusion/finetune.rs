//! `diffusion finetune`: every method raises its reward, runs resume to the bit, and what cannot work is named.

use std::{thread::sleep, time::Duration};

use diffusion::{algorithm::Data, finetune::FinetuneConfig};
use serde_json::Value;

use crate::{diffusion::generate::pixels, support::harness::Workspace};

/// 64² images of a random model, watched on prompts that do not train.
const TINY: &str = "diffusion finetune --model random:sd-tiny --reward random:tiny --device cpu --prompts prompts.txt";

fn workspace() -> Workspace {
    let work = Workspace::new();
    work.write("prompts.txt", "a red fox\nan owl\na house by the sea\ntwo boats\n");
    work.write("held-out.txt", "a green bird\nsnow\nan old tree\n");
    work
}

/// Reaches a gain beyond its bootstrap interval on held-out prompts and noise within 60 steps.
#[track_caller]
fn raises(method: &str, settings: &str) {
    let work = workspace();
    let run = work.run(&format!(
        "{TINY} --algorithm {method} {settings} --held-out-prompts held-out.txt --held-out-images 12 --scale-images 12 \
         --sample-steps 6 --height 32 --width 32 --batch-size 4 --evaluate-every 0 --output run"
    ));
    run.succeeds().check(run.stdout == "run/lora\n", "the result on stdout");
    let held_out = work.metrics("run", "held_out_reward");
    assert_eq!(held_out.len(), 2, "before the first and after the last step");
    let (before, after) = (&held_out[0], &held_out[1]);
    let figure = |line: &Value, name: &str| line[name].as_f64().unwrap_or_else(|| panic!("no {name}\n{run}"));
    assert_eq!(figure(before, "gain"), 0.0, "new adapters change nothing");
    assert!(figure(after, "gain_low") > 0.0, "{method} gained {after}\n{run}");
    assert!(figure(after, "held_out_reward") > figure(before, "held_out_reward"));
    assert!(figure(after, "epsilon_drift") > 0.0 && figure(after, "lora_norm") > 0.0);
    for line in work.metrics("run", "loss") {
        for name in ["step", "loss", "reward_mean", "reward_std", "grad_norm", "learning_rate", "images_per_second"] {
            assert!(figure(&line, name).is_finite());
        }
        assert!(figure(&line, "peak_memory_bytes") > 1e8);
    }
    // What was written makes other images than the base model, in both forms the same.
    let image = |lora: &str, output: &str| {
        let tiny =
            "diffusion generate --model random:sd-tiny --prompt snow --steps 4 --height 32 --width 32 --device cpu";
        work.run(&format!("{tiny} {lora} --output {output}")).succeeds();
        pixels(&work, &format!("{output}/images/00000-0.png"))
    };
    let base = image("", "base");
    let diffusers = image("--lora run/lora/pytorch_lora_weights.safetensors", "diffusers");
    let kohya = image("--lora run/lora/kohya.safetensors", "kohya");
    assert_eq!(diffusers, kohya);
    assert_ne!(diffusers, base);
}

#[test]
fn draft_k_raises_its_reward() {
    raises("draft-k", "--truncation-steps 1 --learning-rate 2e-3 --train-steps 40");
}

#[test]
fn draft_lv_raises_its_reward() {
    raises("draft-lv", "--copies 1 --learning-rate 2e-3 --train-steps 40");
}

#[test]
fn drtune_raises_its_reward() {
    raises("drtune", "--truncation-steps 2 --learning-rate 2e-3 --train-steps 40");
}

#[test]
fn align_prop_raises_its_reward() {
    raises("align-prop", "--learning-rate 2e-3 --train-steps 40");
}

#[test]
fn refl_raises_its_reward() {
    raises("refl", "--learning-rate 2e-3 --train-steps 40 --shaping relu --margin 4");
}

/// Every weight of the UNet, held to a copy of the model before.
#[test]
fn the_whole_unet_trains_and_is_saved_as_a_folder() {
    let work = workspace();
    let run = work.run(&format!(
        "{TINY} --algorithm refl --train full --anchor 0.1 --learning-rate 1e-4 --train-steps 20 --held-out-prompts held-out.txt \
         --held-out-images 6 --scale-images 6 --sample-steps 6 --height 32 --width 32 --evaluate-every 0 --output run"
    ));
    run.succeeds().check(run.stdout == "run/model\n", "the result on stdout");
    let held_out = work.metrics("run", "held_out_reward");
    assert!(held_out[1]["gain_low"].as_f64().unwrap() > 0.0, "{held_out:?}");
    assert!(held_out[0]["epsilon_drift"].as_f64().unwrap() < 1e-9, "no drift before training");
    assert!(held_out[1]["epsilon_drift"].as_f64().unwrap() > 1e-6);
    let image = |model: &str, output: &str| {
        let settings = "--prompt snow --steps 4 --height 32 --width 32 --device cpu";
        work.run(&format!("diffusion generate --model {model} {settings} --output {output}")).succeeds();
        pixels(&work, &format!("{output}/images/00000-0.png"))
    };
    assert_ne!(image("run/model", "tuned"), image("random:sd-tiny", "base"));
}

/// A picture of one colour a prompt, as PNG files and a table.
fn pictures(work: &Workspace) {
    fs_err::create_dir_all(work.path("pictures")).unwrap();
    let mut table = "prompt,path\n".to_owned();
    for (index, (name, colour)) in
        [("red", [220, 30, 30]), ("blue", [30, 30, 220])].into_iter().cycle().take(40).enumerate()
    {
        let path = format!("pictures/{index}.png");
        image::RgbImage::from_pixel(16, 16, image::Rgb(colour)).save(work.path(&path)).unwrap();
        table += &format!("{name},{path}\n");
    }
    work.write("pictures.csv", table);
}

#[test]
fn denoising_trains_a_model_from_scratch_with_a_vae_of_its_own() {
    let work = workspace();
    pictures(&work);
    let run = work.run(
        "diffusion finetune --algorithm denoising --model random:sd-tiny --images pictures.csv --train full --vae-steps 20 \
         --height 16 --width 16 --batch-size 4 --learning-rate 1e-3 --train-steps 40 --held-out-images 4 --evaluate-every 20 \
         --device cpu --ema-decay 0.9 --output run",
    );
    run.succeeds().check(run.stdout == "run/model\n", "the result on stdout");
    let losses: Vec<f64> =
        work.metrics("run", "held_out_loss").iter().map(|line| line["held_out_loss"].as_f64().unwrap()).collect();
    assert_eq!(losses.len(), 3);
    assert!(losses[2] < 0.9 * losses[0], "{losses:?}\n{run}");
    let config: Value = serde_json::from_str(&work.text("run/model/vae/config.json")).unwrap();
    assert_ne!(config["scaling_factor"], 0.18215);
    work.run("diffusion generate --model run/model --prompt red --steps 2 --height 16 --width 16 --device cpu --output images")
        .succeeds();
}

const LONG: &str = "--algorithm drtune --truncation-steps 2 --sample-steps 4 --height 32 --width 32 --batch-size 2 \
    --train-steps 9 --checkpoint-every 2 --evaluate-every 4 --scale-images 4 --held-out-prompts held-out.txt --held-out-images 5 \
    --ema-decay 0.5 --warmup-steps 2 --pixel-noise 0.02 --weight-noise 0.01 --anchor 0.1";

/// The lines of `metrics.jsonl` less what depends on the clock and the machine.
fn metrics(work: &Workspace, run: &str) -> Vec<Value> {
    let mut lines = work.metrics(run, "step");
    for line in &mut lines {
        let line = line.as_object_mut().unwrap();
        line.retain(|name, _| {
            !name.ends_with("_seconds") && name != "images_per_second" && name != "peak_memory_bytes"
        });
    }
    lines
}

#[track_caller]
fn same_as_whole(work: &Workspace, run: &str) {
    assert_eq!(metrics(work, run), metrics(work, "whole"));
    for file in [
        "lora/pytorch_lora_weights.safetensors",
        "lora/kohya.safetensors",
        "best/trained.safetensors",
        "checkpoints/step-9/trained.safetensors",
        "checkpoints/step-9/ema.safetensors",
        "checkpoints/step-9/optimizer.safetensors",
        "samples/step-000008.png",
        "samples/step-000008/images.parquet",
        "samples/step-000008/images/00001-1.png",
    ] {
        let bytes = |run: &str| work.bytes(&format!("{run}/{file}"));
        assert!(bytes(run) == bytes("whole"), "{file} differs");
    }
}

#[test]
fn a_killed_or_stopped_run_resumes_to_the_same_bytes() {
    let work = workspace();
    work.run(&format!("{TINY} {LONG} --output whole")).succeeds();
    assert_eq!(work.losses("whole").len(), 9);
    let resume = format!("{TINY} {LONG} --output killed --resume");
    for (checkpoint, signal, milliseconds) in [(2, "KILL", 30), (4, "INT", 0), (6, "TERM", 0)] {
        let running = work.start_until(&resume, &format!("killed/checkpoints/step-{checkpoint}"));
        sleep(Duration::from_millis(milliseconds));
        let ended = running.signal(signal);
        match signal {
            "KILL" => ended.dies_of(9),
            "INT" => ended.exits(130).says("--resume"),
            _ => ended.exits(143).says("--resume"),
        };
        assert!(!work.path("killed/lora").exists(), "the signal came too late");
    }
    work.run(&resume).succeeds();
    same_as_whole(&work, "killed");
    // One bit of the newest checkpoint, and the file of the rewards' scales.
    let mut mean = work.bytes("killed/checkpoints/step-9/ema.safetensors");
    *mean.last_mut().unwrap() ^= 1;
    work.write("killed/checkpoints/step-9/ema.safetensors", mean);
    work.write("killed/reward_scale.json", "{\"social-rew");
    work.run(&resume).succeeds().says("step-9/ema.safetensors is damaged");
    same_as_whole(&work, "killed");
    assert!(work.bytes("killed/reward_scale.json") == work.bytes("whole/reward_scale.json"));

    // The held-out images of all evaluations are sets that pair.
    let samples = "evaluate --device cpu --metrics social-reward=random:tiny --images whole/samples";
    let answer = work.run(&format!("{samples} --baseline whole/samples/step-000000 --json")).json();
    let names: Vec<_> = answer["sets"].as_array().unwrap().iter().map(|set| set["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["step-000004", "step-000008", "step-000009", "step-000000"]);
    let held_out = work.metrics("whole", "held_out_reward");
    for (line, found) in held_out[1..].iter().zip(answer["comparisons"].as_array().unwrap()) {
        assert_eq!(
            (&found["set"], &found["n_pairs"]),
            (&format!("step-{:06}", line["step"].as_u64().unwrap()).into(), &5.into())
        );
        // As the run measured it, but for 8 bits a channel.
        let rose = line["held_out_reward"].as_f64().unwrap() - held_out[0]["held_out_reward"].as_f64().unwrap();
        assert!((found["mean_difference"].as_f64().unwrap() - rose).abs() < 0.01, "{found} {line}");
    }
    let changed = work.run(&format!("{resume} --learning-rate 1e-5").replace("--anchor 0.1", "--anchor 0"));
    changed.fails(2, &["anchor", "learning_rate"]).hints("config.toml");
    work.write("other.txt", "an owl\na red fox\na house by the sea\ntwo boats\n");
    let other = resume.replace("prompts prompts.txt", "prompts other.txt");
    work.run(&other).fails(1, &["prompts other.txt", "the same 4 in another order"]).hints("--output");
    work.run(&format!("{TINY} {LONG} --output killed")).fails(2, &["holds another run"]).hints("--resume");
}

/// All weights, by a reward, and by pictures after a VAE of its own; stopped while that is trained, too.
#[test]
fn runs_on_the_whole_unet_resume_to_the_same_bytes() {
    let work = workspace();
    pictures(&work);
    let common = "--train full --learning-rate 1e-4 --train-steps 6 --checkpoint-every 2 --evaluate-every 3 --ema-decay 0.5 \
        --batch-size 2 --held-out-images 3";
    let by_reward = format!(
        "{TINY} --algorithm refl {common} --anchor 0.1 --held-out-prompts held-out.txt --scale-images 4 --sample-steps 4 \
         --height 32 --width 32"
    );
    let by_pictures = format!(
        "diffusion finetune --algorithm denoising --model random:sd-tiny --device cpu --images pictures.csv {common} \
         --vae-steps 6 --prompt-dropout 0.3 --height 16 --width 16"
    );
    for (name, command, stops) in [
        ("reward", by_reward, ["checkpoints/step-2", "checkpoints/step-4"]),
        ("pictures", by_pictures, ["config.toml", "checkpoints/step-2"]),
    ] {
        let whole = format!("{name}-whole");
        work.run(&format!("{command} --output {whole}")).succeeds();
        let resume = format!("{command} --output {name} --resume");
        for stop in stops {
            work.start_until(&resume, &format!("{name}/{stop}")).signal("INT").exits(130).says("--resume");
            assert!(!work.path(&format!("{name}/model")).exists(), "{name}, {stop}: the signal came too late");
        }
        work.run(&resume).succeeds();
        assert_eq!(metrics(&work, name), metrics(&work, &whole), "{name}");
        for file in [
            "model/unet/diffusion_pytorch_model.safetensors",
            "model/vae/diffusion_pytorch_model.safetensors",
            "checkpoints/step-6/ema.safetensors",
            "checkpoints/step-6/optimizer.safetensors",
        ] {
            let bytes = |run: &str| work.bytes(&format!("{run}/{file}"));
            assert!(bytes(name) == bytes(&whole), "{name}: {file} differs");
        }
    }
}

#[test]
fn the_plan_is_told_without_a_trace() {
    let work = workspace();
    let run = work.run(&format!("{TINY} {LONG} --output run --dry-run"));
    run.succeeds();
    for part in ["M parameters train", "9 steps of 2 images", "of memory", "one step measured", "peak memory"] {
        run.check(run.stdout.contains(part), part);
    }
    assert!(!work.path("run").exists());
}

/// The reward rises, and what is not it falls: back to the best.
#[test]
fn a_hacked_reward_ends_the_run_at_its_best() {
    let work = workspace();
    let run = work.run(&format!(
        "{TINY} --algorithm draft-k --truncation-steps 4 --sample-steps 4 --height 32 --width 32 --batch-size 4 --scale-images 8 \
         --learning-rate 2e-2 --train-steps 60 --evaluate-every 5 --held-out-prompts held-out.txt --held-out-images 8 \
         --stop-after-falls 1 --output run"
    ));
    run.succeeds().says("stopped, back to run/best");
    let steps = work.losses("run").len();
    assert!(steps < 60, "{steps}");
    let best: Value = serde_json::from_str(&work.text("run/best/progress.json")).unwrap();
    assert!(best["step"].as_u64().unwrap() <= steps as u64);
    let weights = |folder: &str| work.bytes(&format!("run/{folder}/pytorch_lora_weights.safetensors"));
    assert!(weights("best") == weights("lora"));
}

/// It is asked for every picture, and does not train; what it says is shown.
#[test]
fn a_program_of_the_user_watches_a_run() {
    let work = workspace();
    let script = "
import json, os, sys
print('weights are read', file=sys.stderr)
for line in sys.stdin:
    request = json.loads(line)
    print(json.dumps({'id': request['id'], 'score': os.path.getsize(request['path']) / 1000}), flush=True)
";
    work.write("size.py", script);
    let run = |rewards: &str, output: &str| {
        work.run(&format!(
            "{TINY} {rewards} --algorithm draft-k --held-out-prompts held-out.txt --held-out-images 4 --scale-images 4 \
             --train-steps 2 --sample-steps 3 --height 32 --width 32 --evaluate-every 0 --output {output}"
        ))
    };
    let watched = run("--reward 'command:size=python3 size.py@0' --reward-restarts 1", "watched");
    watched.succeeds().says("[size] weights are read");
    run("", "alone").succeeds();
    let weights = |run: &str| work.bytes(&format!("{run}/lora/pytorch_lora_weights.safetensors"));
    assert!(weights("watched") == weights("alone"));
    let figures = |name: &str| work.metrics("watched", name).iter().map(|line| line[name].as_f64().unwrap()).collect();
    let (trained, held_out): (Vec<f64>, Vec<f64>) = (figures("size_mean"), figures("size"));
    assert_eq!((trained.len(), held_out.len()), (2, 2));
    assert!(trained.iter().chain(&held_out).all(|size| *size > 0.5), "{trained:?} {held_out:?}");
}

#[test]
fn what_cannot_work_is_named() {
    let work = workspace();
    work.write("empty.txt", "\n");
    work.write("run.toml", "algoritm = 'draft-k'\n");
    let base = format!("{TINY} --output out");
    for (flags, code, parts) in [
        ("", 2, ["--algorithm", "missing"]),
        ("--algorithm draft-k --batch-size 0", 2, ["batch_size = 0", "want 1"]),
        ("--algorithm draft-k --truncation-steps 60", 2, ["truncation_steps = 60", "sample_steps"]),
        ("--algorithm draft-k --learning-rate -1", 2, ["learning_rate = -1", "positive"]),
        ("--algorithm draft-k --images x.csv", 2, ["images", "only `denoising`"]),
        ("--algorithm draft-k --stop-after-falls 2", 2, ["stop_after_falls", "held_out_prompts"]),
        ("--algorithm draft-k --reward clipscore=x", 2, ["clipscore", "social-reward"]),
        ("--algorithm draft-k --reward nowhere.pt", 1, ["nowhere.pt", "no such file"]),
        ("--algorithm draft-k --reward command:own=cat", 2, ["`own` has no gradient", "`draft-k`"]),
        ("--algorithm draft-k --reward command:own=cat@0", 1, ["reward `own`: request 0", "want a finite number"]),
        ("--algorithm draft-k --reward-timeout 9", 2, ["reward_timeout is set", "`command:…`"]),
        (
            "--algorithm draft-k --reward golden/pipeline/model/unet/diffusion_pytorch_model.safetensors",
            1,
            ["unet/diffusion_pytorch_model.safetensors", "CLIP"],
        ),
        ("--algorithm draft-k --height 20", 2, ["height = 20", "multiple of"]),
        ("--algorithm draft-k --lora-targets to_w", 2, ["lora_targets", "to_w"]),
        (
            "--algorithm draft-k --lora golden/lora/kohya.safetensors",
            1,
            ["kohya.safetensors", "not a LoRA for this model"],
        ),
        ("--algorithm denoising", 2, ["--images", "missing"]),
        ("--config run.toml", 2, ["run.toml", "algoritm"]),
    ] {
        work.run(&format!("{base} {flags}")).fails(code, &parts);
    }
    // A VAE of another model beside the UNet.
    work.run("diffusion export --model random:sd-tiny --output mixed").succeeds();
    let config = work.text("mixed/vae/config.json").replace("\"latent_channels\": 4", "\"latent_channels\": 16");
    work.write("mixed/vae/config.json", config);
    work.run(&format!("{base} --algorithm draft-k").replace("random:sd-tiny", "mixed")).fails(1, &["mixed", "vae"]);
    let prompts = |file: &str| format!("{base} --algorithm draft-k").replace("prompts.txt", file);
    work.run(&prompts("empty.txt")).fails(1, &["no prompts in", "empty.txt"]);
    work.run(&prompts("none.txt")).fails(1, &["none.txt", "does not exist"]);
    let without = base.replace("--reward random:tiny", "");
    work.run(&format!("{without} --algorithm draft-k")).fails(2, &["--reward", "missing"]);
    assert!(!work.path("out/config.toml").exists());
}

/// A limit on the size of files stands for a disk that is full.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_the_older_checkpoint() {
    let work = workspace();
    let command = format!("{TINY} {LONG} --output run");
    work.run(&command.replace("--train-steps 9", "--train-steps 2")).succeeds();
    let before = work.bytes("run/checkpoints/step-2/trained.safetensors");
    let full = work.run_after("ulimit -f 100; trap '' XFSZ;", &format!("{command} --resume"));
    full.fails(1, &[]);
    assert_eq!(work.checkpoints("run"), [2]);
    assert!(work.bytes("run/checkpoints/step-2/trained.safetensors") == before);
    work.run(&format!("{command} --resume")).succeeds();
}

/// Every published setting parses, and is complete but for what only a user can say.
#[test]
fn the_configs_are_settings() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("configs/finetune");
    let files: Vec<_> = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 14);
    for file in files {
        let mut config: FinetuneConfig = toml::from_str(&fs_err::read_to_string(&file).unwrap()).unwrap();
        config.model.get_or_insert("SD".to_owned());
        config.output = Some("out".into());
        match config.method().map(|method| method.data[0]) {
            Some(Data::Pictures) => config.images = Some("images.parquet".into()),
            Some(Data::Triplets) => config.training_file = vec!["triplets.parquet".to_owned()],
            Some(Data::Labels) => config.labels = Some("likes.csv".into()),
            _ => {
                config.reward = vec!["clip_model/final".parse().unwrap()];
                config.prompts = Some("prompts.txt".into());
                config.held_out_prompts = Some("held-out.txt".into());
            }
        }
        config.check().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}
