//! Rows `unet`, `vae` and `load`: Stable Diffusion 2.1-base with random weights, saved as an fp16 diffusers folder, beside
//! diffusers and diffusers-rs, one after the other, in fp32.

use std::{
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use diffusion::{
    conditioning::Conditioning,
    noise::{Stream, normal},
    source::{Source, SourceOptions},
    unet::Unet,
    vae::Vae,
    verify::reference,
};
use reward::native::operator_times;
use serde_json::{Value, json};
use tch::Tensor;

use crate::{folder, ours, peer};

/// Sides of the latents; the picture's are eight times as long.
const SIDES: [i64; 3] = [16, 32, 64];
const TIMESTEP: f64 = 481.0;

pub(crate) fn model() -> Result<String> {
    let path = folder("sd21-base");
    let name = path.display().to_string();
    if !path.is_dir() {
        fs_err::create_dir_all(folder(""))?;
        ours(&["diffusion", "export", "--model", "random:sd21-base", "--precision", "fp16", "--output", &name])?;
    }
    Ok(name)
}

/// The best of three runs after one that does not count.
fn seconds(run: impl Fn() -> Tensor) -> f64 {
    let timed = || {
        let started = Instant::now();
        drop(std::hint::black_box(tch::no_grad(&run)));
        started.elapsed().as_secs_f64()
    };
    timed();
    (0..3).map(|_| timed()).fold(f64::INFINITY, f64::min)
}

fn compare(row: &str, what: &str, ours: f64, diffusers: &Value, diffusers_rs: f64) -> Result<()> {
    let diffusers = diffusers.as_f64().with_context(|| format!("no time for {what}"))?;
    println!(
        "{row}: {what}: ours {ours:.2} s, diffusers {diffusers:.2} s, {:.2}×, diffusers-rs {diffusers_rs:.2} s, {:.2}×",
        diffusers / ours,
        diffusers_rs / ours
    );
    Ok(())
}

/// The operators of libtorch that take most of the time, and their shares of it.
pub(crate) fn shares(times: &[(String, f64)]) -> String {
    let total: f64 = times.iter().map(|(_, seconds)| seconds).sum();
    let share = |seconds: f64| format!("{:.0} %", 100.0 * seconds / total);
    let (most, rest) = times.split_at(times.len().min(8));
    let most = most.iter().map(|(name, seconds)| format!("{} {}", name.trim_start_matches("aten::"), share(*seconds)));
    let rest = rest.iter().map(|(_, seconds)| seconds).sum();
    format!("{}, others {}", most.collect::<Vec<_>>().join(", "), share(rest))
}

/// Tells the [`shares`] of `run`.
fn tell_shares(row: &str, what: &str, run: impl Fn() -> Tensor) {
    println!("{row}: {what}: {}", shares(&operator_times(|| drop(tch::no_grad(run)))));
}

/// The UNet's forward pass, batch 2.
pub(crate) fn unet() -> Result<()> {
    let model = model()?;
    let (config, weights) = Source::open(&model, SourceOptions::default())?.unet()?;
    let unet = Unet::new(&config, weights)?;
    let context = normal(0, Stream::Noise, &[2, 77, config.cross_attention_dim]);
    let prompts = Conditioning::from(context.shallow_clone());
    let timesteps = Tensor::from_slice(&[TIMESTEP as f32; 2]);
    let latents = |side: i64| normal(0, Stream::Latents, &[2, config.channels, side, side]);
    let ours = SIDES.map(latents).map(|x| seconds(|| unet.forward(&x, &timesteps, &prompts)));
    for side in SIDES {
        tell_shares("unet", &format!("{side}×{side} latents"), || unet.forward(&latents(side), &timesteps, &prompts));
    }
    let theirs = reference::unet(&config, &unet.parameters)?;
    drop(unet);
    let rust = SIDES.map(latents).map(|x| seconds(|| theirs.model.forward(&x, TIMESTEP, &context)));
    drop(theirs);
    let python = peer("stable_diffusion.py", &[&model, "unet"])?;
    for ((side, ours), rust) in SIDES.into_iter().zip(ours).zip(rust) {
        let what = format!("{side}×{side} latents, batch 2");
        compare("unet", &what, ours, &python[side.to_string()], rust)?;
    }
    Ok(())
}

/// The VAE's decoder to one picture of 256².
pub(crate) fn vae() -> Result<()> {
    let model = model()?;
    let (config, weights) = Source::open(&model, SourceOptions::default())?.vae()?;
    let vae = Vae::new(&config, weights)?;
    let latents = normal(0, Stream::Latents, &[1, config.latent_channels, 32, 32]);
    let ours = seconds(|| vae.decode(&latents));
    tell_shares("vae", "decoding 256²", || vae.decode(&latents));
    let theirs = reference::vae(&config, &vae.parameters)?;
    let rust = seconds(|| theirs.model.decode(&latents));
    compare("vae", "decoding 256²", ours, &peer("stable_diffusion.py", &[&model, "vae"])?["32"], rust)
}

/// An fp16 file in the page cache to a UNet in fp32, in a process of its own.
pub(crate) fn load() -> Result<()> {
    let model = model()?;
    for file in fs_err::read_dir(Path::new(&model).join("unet"))? {
        std::io::copy(&mut fs_err::File::open(file?.path())?, &mut std::io::sink())?;
    }
    let output = Command::new(std::env::current_exe()?).args(["load-unet", &model]).output()?;
    ensure!(output.status.success(), "load-unet: {}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout)?;
    let figure = |name: &str| found[name].as_f64().with_context(|| format!("no {name}"));
    let (seconds, weights) = (figure("seconds")?, figure("weight_bytes")?);
    println!(
        "load: fp16 file to fp32 UNet in {seconds:.2} s; of its {:.2} GB, peak anonymous memory {:.2}×, peak resident {:.2}×",
        weights / 1e9,
        figure("peak_anonymous_bytes")? / weights,
        figure("peak_resident_bytes")? / weights
    );
    Ok(())
}

/// What the process of [`load`] does.
pub(crate) fn load_unet(model: &str) -> Result<()> {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut peak = 0.0_f64;
            while !done.load(Ordering::Relaxed) {
                peak = peak.max(status("RssAnon").unwrap_or_default());
                std::thread::sleep(Duration::from_millis(2));
            }
            peak
        });
        let started = Instant::now();
        let loaded =
            Source::open(model, SourceOptions::default())?.unet().and_then(|(c, weights)| Unet::new(&c, weights));
        let seconds = started.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        let anonymous = watcher.join().unwrap_or_default();
        let weights: usize = loaded?.parameters.tensors.values().map(|tensor| 4 * tensor.numel()).sum();
        println!(
            "{}",
            json!({"seconds": seconds, "weight_bytes": weights, "peak_anonymous_bytes": anonymous,
                "peak_resident_bytes": status("VmHWM")?})
        );
        Ok(())
    })
}

/// A figure of this process in bytes, as Linux counts it.
fn status(name: &str) -> Result<f64> {
    let status = fs_err::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    Ok(1024.0 * line.and_then(|line| line.trim().strip_suffix(" kB")).context(name.to_owned())?.parse::<f64>()?)
}
