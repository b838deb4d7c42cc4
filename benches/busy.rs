//! Row `busy`: what fine-tuning a tiny model and scoring with ViT-L/14 keep of their speed beside another process that takes
//! a core. On two cores an equal share is two thirds; what spins while it waits keeps far less.

use std::{
    process::{Child, Command},
    time::Instant,
};

use anyhow::Result;

use crate::{data, figures, mean, ours, steps, weights};

/// Measurements of either kind, in turn.
const ROUNDS: usize = 3;

/// A process that takes a core until it is dropped.
struct BusyLoop(Child);

impl BusyLoop {
    fn start() -> Result<Self> {
        Ok(Self(Command::new("sh").args(["-c", "while :; do :; done"]).spawn()?))
    }
}

impl Drop for BusyLoop {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

pub(crate) fn busy() -> Result<()> {
    for (name, seconds) in
        [("a DRaFT-1 step of random:sd-tiny", step as fn() -> Result<f64>), ("scoring 8 images with ViT-L/14", scores)]
    {
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            alone.push(seconds()?);
            let other = BusyLoop::start()?;
            beside.push(seconds()?);
            drop(other);
        }
        let [alone, beside] = [alone, beside].map(crate::median);
        println!(
            "busy: {name}: {alone:.3} s alone, {beside:.3} s beside a busy loop, {:.0} % of its speed",
            100.0 * alone / beside
        );
    }
    Ok(())
}

/// Seconds of an optimizer step of four images.
fn step() -> Result<f64> {
    let run = tempfile::tempdir()?;
    let [prompts, output] = ["prompts.txt", "run"].map(|name| run.path().join(name).display().to_string());
    fs_err::write(&prompts, "a photo of a red fox in the snow\na castle on a hill, oil painting\n")?;
    let settings = [
        ["--algorithm", "draft-k"],
        ["--model", "random:sd-tiny"],
        ["--reward", "random:tiny"],
        ["--reward-scale", "raw"],
        ["--prompts", &prompts],
        ["--sample-steps", "4"],
        ["--batch-size", "4"],
        ["--train-steps", "16"],
        ["--device", "cpu"],
        ["--output", &output],
    ];
    ours(&[&["diffusion", "finetune"], settings.as_flattened()].concat())?;
    let rates = figures(&steps(&run.path().join("run"))?.split_off(1), "images_per_second");
    Ok(mean(&rates.iter().map(|rate| 4.0 / rate).collect::<Vec<_>>()))
}

/// Seconds that scoring eight images takes beside loading and scoring one.
fn scores() -> Result<f64> {
    let (images, weights) = (data("few", &["--images", "32"])?.join("images"), weights()?);
    let files: Vec<String> = (0..9).map(|image| images.join(format!("{image:05}.jpg")).display().to_string()).collect();
    let seconds = |files: &[String]| -> Result<f64> {
        let flags = ["reward", "score", "--model", &weights, "--device", "cpu", "--prompt", "a lighthouse"];
        let files: Vec<&str> = files.iter().map(String::as_str).collect();
        let started = Instant::now();
        ours(&[flags.as_slice(), &files].concat())?;
        Ok(started.elapsed().as_secs_f64())
    };
    Ok(seconds(&files)? - seconds(&files[..1])?)
}
