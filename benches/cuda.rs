//! Rows `cuda-train`, `cuda-unet`, `cuda-finetune`: training the reward, sampling and fine-tuning on a CUDA device, beside
//! PyTorch, openai-clip, diffusers and PEFT on the same device, one after the other.

use std::{
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use diffusion::{
    noise::{Stream, normal},
    source::{Source, SourceOptions},
    unet::Unet,
    vae::Vae,
};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::{data, figures, finetune::phases, mean, numbers, ours, peer, stable_diffusion, steps, weights};

const DEVICE: Device = Device::Cuda(0);
/// Prompts of the fine-tuning.
const PROMPTS: &str =
    "a photo of a red fox in the snow\na castle on a hill, oil painting\na bowl of fruit\ntwo cats asleep\n";

/// Whether there is a device to measure on.
fn device(row: &str) -> bool {
    let found = reward::cuda::device_count() > 0;
    if !found {
        println!("{row}: skipped, no CUDA device");
    }
    found
}

/// The share of `run`'s time in which some kernel was on the device, as NVML samples it.
fn busy<T>(run: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut shares: Vec<f64> = Vec::new();
            while !done.load(Ordering::Relaxed) {
                let query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "--id=0"];
                let output = Command::new("nvidia-smi").args(query).output();
                shares.extend(
                    output.ok().and_then(|found| String::from_utf8_lossy(&found.stdout).trim().parse::<f64>().ok()),
                );
                std::thread::sleep(Duration::from_millis(100));
            }
            // Of a run's middle, without loading and saving.
            let least = shares.len() >> 1;
            mean(&shares[least..])
        });
        let result = run();
        done.store(true, Ordering::Relaxed);
        Ok((result?, watcher.join().unwrap_or(f64::NAN)))
    })
}

/// The paper's mode on ViT-L/14 at batch 32: four epochs of 64 triplets of 128 photographs.
pub(crate) fn train() -> Result<()> {
    if !device("cuda-train") {
        return Ok(());
    }
    let table = data("cuda", &["--images", "128", "--size", "512"])?.join("triplets.parquet").display().to_string();
    let weights = weights()?;
    let run = tempfile::tempdir()?;
    let train = |name: &str, rest: &[&str]| {
        let output = run.path().join(name);
        let save_folder = output.display().to_string();
        let mode = "visual_upper_layers_textual_upper_layers";
        let arguments = ["reward", "train", "--training-file", &table, "--training-mode", mode, "--model", &weights];
        let more = ["--batch-size", "32", "--n-epochs", "4", "--checkpoint-every", "0", "--save-folder", &save_folder];
        ours(&[&arguments[..], &more, rest].concat())?;
        steps(&output)
    };
    let exact = figures(&train("cpu", &["--device", "cpu", "--max-steps", "2"])?, "loss");
    for precision in ["fp32", "bf16"] {
        let (lines, busy) = busy(|| train(precision, &["--device", "cuda", "--precision", precision]))?;
        let seconds: Vec<f64> =
            figures(&lines, "triplets_per_second").iter().map(|per_second| 32.0 / per_second).collect();
        let losses = figures(&lines, "loss");
        let apart = losses.iter().zip(&exact).map(|(found, wanted)| (found / wanted - 1.0).abs()).fold(0.0, f64::max);
        let fixed = ["--batch-size", "32", "--steps", "6", "--warm-up", "2", "--device", "cuda", "--workers", "8"];
        let inputs = [weights.as_str(), &table, "--precision", precision];
        let theirs = peer("train.py", &[&inputs, &fixed[..]].concat())?;
        let original = numbers(&theirs["seconds_per_step"]);
        let (average, best) = (mean(&original), original.iter().copied().fold(f64::INFINITY, f64::min));
        let (first, later) = (seconds[1], mean(&seconds[2..]));
        println!(
            "cuda-train: {precision}, batch 32: the second step {first:.3} s, those of later epochs {later:.3} s; PyTorch with 8 \
             workers {average:.3} s, {best:.3} s where they need not start: {:.2}× and {:.2}×, {:.2}× and {:.2}×; first losses \
             {apart:.1e} from the CPU's; device busy {busy:.0} %",
            average / first,
            average / later,
            best / first,
            best / later,
        );
    }
    Ok(())
}

fn gigabytes(bytes: &Value) -> String {
    format!("{:.1} GB", bytes.as_f64().unwrap_or(f64::NAN) / 1e9)
}

/// The best of thirty runs after ten that do not count.
fn seconds(run: impl Fn() -> Tensor) -> f64 {
    let timed = || {
        tch::Cuda::synchronize(0);
        let started = Instant::now();
        drop(std::hint::black_box(tch::no_grad(&run)));
        tch::Cuda::synchronize(0);
        started.elapsed().as_secs_f64()
    };
    for _ in 0..10 {
        timed();
    }
    (0..30).map(|_| timed()).fold(f64::INFINITY, f64::min)
}

/// UNet and VAE of 2.1-base in bf16, and a picture of 512² in 50 guided steps.
pub(crate) fn unet() -> Result<()> {
    if !device("cuda-unet") {
        return Ok(());
    }
    let model = stable_diffusion::model()?;
    let source = Source::open(&model, SourceOptions::default())?;
    let (config, weights) = source.unet()?;
    let unet = Unet::new(&config, weights.to(DEVICE, Kind::BFloat16))?;
    let on_device = |tensor: Tensor| tensor.to_device(DEVICE).to_kind(Kind::BFloat16);
    let prompts = on_device(normal(0, Stream::Noise, &[2, 77, config.cross_attention_dim])).into();
    let timesteps = Tensor::from_slice(&[481_f32; 2]).to_device(DEVICE);
    let theirs = peer("stable_diffusion.py", &[&model, "unet", "--device", "cuda"])?;
    for side in [16, 32, 64] {
        let latents = on_device(normal(0, Stream::Latents, &[2, config.channels, side, side]));
        let ours = seconds(|| unet.forward(&latents, &timesteps, &prompts));
        let diffusers = theirs[side.to_string()].as_f64().context("no time")?;
        println!(
            "cuda-unet: {side}×{side} latents, batch 2, bf16: ours {:.2} ms, {:.0} TFLOP/s, diffusers {:.2} ms, {:.2}×",
            1e3 * ours,
            2.0 * flops(side) / ours / 1e12,
            1e3 * diffusers,
            diffusers / ours
        );
    }
    drop(unet);
    let (config, weights) = source.vae()?;
    let vae = Vae::new(&config, weights.to(DEVICE, Kind::BFloat16))?;
    let latents = on_device(normal(0, Stream::Latents, &[1, config.latent_channels, 64, 64]));
    let ours_seconds = seconds(|| vae.decode(&latents));
    let diffusers =
        peer("stable_diffusion.py", &[&model, "vae", "--device", "cuda"])?["64"].as_f64().context("no time")?;
    println!(
        "cuda-unet: VAE to 512², bf16: ours {:.2} ms, diffusers {:.2} ms, {:.2}×",
        1e3 * ours_seconds,
        1e3 * diffusers,
        diffusers / ours_seconds
    );
    drop(vae);
    let folder = tempfile::tempdir()?;
    let generate = |images: &str| {
        let output = folder.path().join(images).display().to_string();
        let fixed = ["diffusion", "generate", "--model", &model, "--prompt", "a lighthouse", "--device", "cuda"];
        let rest = ["--batch-size", "1", "--steps", "50", "--images-per-prompt", images, "--output", &output];
        ours(&[fixed, rest].concat())
    };
    let (one, nine) = (generate("1")?, generate("9")?);
    let picture = (nine - one).as_secs_f64() / 8.0;
    let theirs = peer("stable_diffusion.py", &[&model, "pictures", "--device", "cuda"])?;
    let diffusers = theirs["64"].as_f64().context("no time")?;
    println!(
        "cuda-unet: a picture of 512², 50 guided steps, PNG included: ours {picture:.3} s, diffusers without PNG {diffusers:.3} s, \
         {:.2}×; peak of diffusers {}",
        diffusers / picture,
        gigabytes(&theirs["peak_cuda_bytes"])
    );
    Ok(())
}

/// Floating-point operations of one forward pass of 2.1-base's UNet for one image: measured by PyTorch's FlopCounterMode.
fn flops(side: i64) -> f64 {
    match side {
        16 => 4.68e10,
        32 => 1.81e11,
        _ => 8.04e11,
    }
}

/// DRaFT-1 and DRTune with three steps: 2.1-base, 512², batch 4, 50 sampling steps, LoRA of rank 4, bf16.
pub(crate) fn finetune() -> Result<()> {
    if !device("cuda-finetune") {
        return Ok(());
    }
    let (model, reward) = (stable_diffusion::model()?, weights()?);
    let run = tempfile::tempdir()?;
    let prompts = run.path().join("prompts.txt").display().to_string();
    fs_err::write(&prompts, PROMPTS)?;
    for (algorithm, trained, drtune) in [("draft-k", "1", "0"), ("drtune", "3", "3")] {
        for checkpointing in ["off", "on"] {
            let output = run.path().join(format!("{algorithm}-{checkpointing}"));
            let path = output.display().to_string();
            let settings = [
                ["--algorithm", algorithm],
                ["--truncation-steps", trained],
                ["--model", &model],
                ["--reward", &reward],
                ["--reward-scale", "raw"],
                ["--prompts", &prompts],
                ["--sample-steps", "50"],
                ["--guidance-scale", "7.5"],
                ["--lora-rank", "4"],
                ["--height", "512"],
                ["--width", "512"],
                ["--batch-size", "4"],
                ["--train-steps", "7"],
                ["--gradient-checkpointing", checkpointing],
                ["--checkpoint-every", "0"],
                ["--device", "cuda"],
                ["--output", &path],
            ];
            let ((), busy) =
                busy(|| ours(&[&["diffusion", "finetune"], settings.as_flattened()].concat()).map(|_| ()))?;
            let lines = steps(&output)?.split_off(2);
            let figure = |name: &str| mean(&figures(&lines, name));
            let seconds = 4.0 / figure("images_per_second");
            let fixed = ["--side", "512", "--batch", "4", "--sampling-steps", "50", "--steps", "5", "--device", "cuda"];
            let flag: &[&str] = if checkpointing == "on" { &["--checkpointing"] } else { &[] };
            let theirs = peer(
                "finetune.py",
                &[&[model.as_str(), &reward, "train"], &fixed[..], &["--drtune", drtune], flag].concat(),
            )?;
            let python = mean(&numbers(&theirs["seconds_per_step"]));
            println!(
                "cuda-finetune: {algorithm} {trained}, 512², batch 4, checkpointing {checkpointing}: ours {seconds:.2} s a step, \
                 diffusers with PEFT {python:.2} s, {:.2}×; peak {:.1} GB against {}; device busy {busy:.0} %",
                python / seconds,
                figure("peak_memory_bytes") / 1e9,
                gigabytes(&theirs["peak_cuda_bytes"]),
            );
            phases("cuda-finetune", &lines, &theirs);
        }
    }
    Ok(())
}
