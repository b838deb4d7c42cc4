//! Rows `finetune` and `sampling`: DRaFT-1 steps with a LoRA of rank 4 and ten guided sampling steps, and such sampling alone,
//! beside diffusers with PEFT, one after the other, in fp32, on random Stable Diffusion 2.1-base weights with a random ViT-L/14
//! as the reward, and on tiny ones with a tiny CLIP, where what is not computing shows.

use std::time::Instant;

use anyhow::{Context, Result};
use diffusion::{
    lora::fresh,
    noise::{Stream, normal},
    policy::{Batch, Policy},
    schedule::{NoiseSchedule, Sampler, SamplerName},
    source::{Source, SourceOptions},
    unet::Unet,
};
use serde_json::Value;

use crate::{figures, folder, mean, ours, peer, stable_diffusion, steps, weights};

const STEPS: usize = 10;
const GUIDANCE: f64 = 7.5;

/// A diffusers folder with random `sd-tiny` weights.
pub(crate) fn tiny() -> Result<String> {
    let path = folder("sd-tiny");
    let name = path.display().to_string();
    if !path.is_dir() {
        fs_err::create_dir_all(folder(""))?;
        ours(&["diffusion", "export", "--model", "random:sd-tiny", "--output", &name])?;
    }
    Ok(name)
}

/// A random tiny CLIP in OpenAI's layout.
fn tiny_reward() -> Result<String> {
    let path = folder("tiny-clip.safetensors");
    let name = path.display().to_string();
    if !path.is_file() {
        ours(&["reward", "export", "--model", "random:tiny", "--format", "openai", "--output", &name])?;
    }
    Ok(name)
}

/// Optimizer steps, after one that does not count.
pub(crate) fn finetune() -> Result<()> {
    let run = tempfile::tempdir()?;
    let prompts = run.path().join("prompts.txt").display().to_string();
    fs_err::write(&prompts, "a photo of a red fox in the snow\na castle on a hill, oil painting\n")?;
    let large = ("2.1-base", stable_diffusion::model()?, weights()?, "128");
    for (name, model, reward, side) in [("tiny", tiny()?, tiny_reward()?, "64"), large] {
        let output = run.path().join(name).display().to_string();
        let settings = [
            ["--algorithm", "draft-k"],
            ["--model", &model],
            ["--reward", &reward],
            ["--reward-scale", "raw"],
            ["--prompts", &prompts],
            ["--sample-steps", "10"],
            ["--guidance-scale", "7.5"],
            ["--lora-rank", "4"],
            ["--height", side],
            ["--width", side],
            ["--batch-size", "1"],
            ["--train-steps", "4"],
            ["--gradient-checkpointing", "off"],
            ["--device", "cpu"],
            ["--output", &output],
        ];
        ours(&[&["diffusion", "finetune"], settings.as_flattened()].concat())?;
        let lines = steps(&run.path().join(name))?.split_off(1);
        let figure = |name: &str| mean(&figures(&lines, name));
        let theirs = peer("finetune.py", &[&model, &reward, "train", "--side", side, "--batch", "1", "--steps", "3"])?;
        let python = mean(&crate::numbers(&theirs["seconds_per_step"]));
        let seconds = 1.0 / figure("images_per_second");
        println!(
            "finetune: {name}, {side}², a DRaFT-1 step: ours {seconds:.2} s, diffusers with PEFT {python:.2} s, {:.2}×; peak {:.2} GB against {:.2} GB",
            python / seconds,
            figure("peak_memory_bytes") / 1e9,
            theirs["peak_rss_bytes"].as_f64().unwrap_or(f64::NAN) / 1e9,
        );
        phases(&format!("finetune: {name}, {side}²"), &lines, &theirs);
    }
    Ok(())
}

/// Where the time of a step goes, ours and the peer's.
pub(crate) fn phases(row: &str, lines: &[Value], theirs: &Value) {
    let seconds = |phase: &str| mean(&figures(lines, &format!("{phase}_seconds")));
    println!(
        "{row}: sampling {:.2} s, forward {:.2}, backward {:.2}, optimizer {:.2}; theirs {}",
        seconds("rollout"),
        seconds("forward"),
        seconds("backward"),
        seconds("optimizer"),
        theirs["phases"],
    );
}

/// Guided sampling with trained adapters, ours merged into the weights, theirs attached.
pub(crate) fn sampling() -> Result<()> {
    let model = stable_diffusion::model()?;
    let source = Source::open(&model, SourceOptions::default())?;
    let (config, weights) = source.unet()?;
    let targets = ["to_q", "to_k", "to_v", "to_out.0"].map(str::to_owned);
    let mut adapters = fresh(&source.layers()?.unet, &targets, 4, 4.0, 0)?;
    for (index, adapter) in adapters.values_mut().enumerate() {
        adapter.up = normal(index as u64, Stream::Noise, &adapter.up.size()) * 0.01;
    }
    let unet = Unet::new(&config, weights.adapters(adapters))?;
    let scheduler = source.scheduler()?;
    let policy = Policy {
        unet: &unet,
        base: None,
        sampler: Sampler::new(SamplerName::Ddim, &scheduler, STEPS, 0.0)?,
        schedule: NoiseSchedule::new(&scheduler),
        prediction: scheduler.prediction_type,
        guidance_scale: GUIDANCE,
        negative: normal(0, Stream::Noise, &[1, 77, config.cross_attention_dim]).into(),
        negative_branch_gradient: true,
    };
    let mut best = Vec::new();
    for side in [16, 32] {
        let prompt = normal(1, Stream::Noise, &[1, 77, config.cross_attention_dim]).into();
        let batch = Batch::new(vec![String::new()], prompt, vec![0], [4, side, side]);
        let mut seconds = f64::INFINITY;
        for round in 0..4 {
            let started = Instant::now();
            let latents = policy.merged(|| Ok(policy.roll(&batch.noise(Stream::Latents), 0..STEPS, &batch)))?;
            drop(std::hint::black_box(latents));
            if round > 0 {
                seconds = seconds.min(started.elapsed().as_secs_f64());
            }
        }
        best.push((side * 8, seconds));
    }
    drop(unet);
    let reward = crate::weights()?;
    for (side, ours) in best {
        let arguments = [&model, &reward, "sample", "--side", &side.to_string(), "--rounds", "3"];
        let theirs = peer("finetune.py", &arguments)?["seconds"].as_f64().context("no time")?;
        println!(
            "sampling: {side}², {STEPS} guided steps with a LoRA: ours merged {ours:.2} s, diffusers with PEFT {theirs:.2} s, {:.2}×",
            theirs / ours
        );
    }
    Ok(())
}
