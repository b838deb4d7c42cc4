//! `make bench`: the program beside the original's recipe in PyTorch, one after the other on the same weights and files.
//!
//! `make bench` runs every row, `cargo bench -- train` one. Rows: gemm, decode, fast-decode, train, memory, validate, score, start-up,
//! unet, vae, load, finetune, sampling, ddpo, dpo, ranks, busy, and where there is a CUDA device cuda-train, cuda-unet, cuda-finetune.
//! The peers are the scripts in `benches/peers`, run by `$PYTHON` (default `python3`), which needs torch 2.11, torchvision,
//! openai-clip, safetensors, pandas, pyarrow, diffusers, transformers and peft, and diffusers-rs. Data and weights are made once,
//! in `target/bench`.
#![allow(clippy::print_stdout, reason = "a benchmark's figures go to stdout")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use reward::{
    clip::{preprocess::load, preprocessing::Preprocessing},
    data::image::DecodeOptions,
};
use serde_json::Value;

mod busy;
mod cuda;
mod finetune;
mod methods;
mod ranks;
mod stable_diffusion;

const PROGRAM: &str = env!("CARGO_BIN_EXE_social-reward");
type Row = fn() -> Result<()>;

const ROWS: [(&str, Row); 20] = [
    ("gemm", gemm),
    ("decode", decode),
    ("fast-decode", fast_decode),
    ("train", train),
    ("memory", memory),
    ("validate", validate),
    ("score", score),
    ("start-up", start_up),
    ("unet", stable_diffusion::unet),
    ("vae", stable_diffusion::vae),
    ("load", stable_diffusion::load),
    ("finetune", finetune::finetune),
    ("sampling", finetune::sampling),
    ("ddpo", methods::ddpo),
    ("dpo", methods::dpo),
    ("ranks", ranks::ranks),
    ("busy", busy::busy),
    ("cuda-train", cuda::train),
    ("cuda-unet", cuda::unet),
    ("cuda-finetune", cuda::finetune),
];

fn main() -> Result<()> {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    if wanted.first().is_some_and(|argument| argument == "exit-at-once") {
        return Ok(());
    }
    if let [command, model] = wanted.as_slice()
        && command == "load-unet"
    {
        return stable_diffusion::load_unet(model);
    }
    if let [command, task] = wanted.as_slice()
        && command == "method-steps"
    {
        return methods::method_steps(task);
    }
    for name in &wanted {
        let known = ROWS.map(|(row, _)| row);
        ensure!(known.contains(&name.as_str()), "no row `{name}`: want one of {}", known.join(", "));
    }
    for (name, row) in ROWS {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            row().with_context(|| format!("row {name}"))?;
        }
    }
    Ok(())
}

/// Where data and weights are kept between runs.
fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench").join(name)
}

/// The last line that a peer prints, as JSON.
fn peer(script: &str, arguments: &[&str]) -> Result<Value> {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers").join(script);
    let output = Command::new(python).arg(&script).args(arguments).output()?;
    ensure!(output.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let last = text.lines().last().unwrap_or("null");
    Ok(serde_json::from_str(last).unwrap_or(Value::Null))
}

/// Wall time of the program.
fn ours(arguments: &[&str]) -> Result<Duration> {
    let started = Instant::now();
    answer(arguments)?;
    Ok(started.elapsed())
}

/// What the program prints.
fn answer(arguments: &[&str]) -> Result<Vec<u8>> {
    let output = Command::new(PROGRAM).args(arguments).output()?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// Distinct photographs and triplets over them, made once.
fn data(name: &str, arguments: &[&str]) -> Result<PathBuf> {
    let folder = folder(name);
    if !folder.join("triplets.parquet").is_file() {
        let path = folder.display().to_string();
        peer("make_data.py", &[&[path.as_str()], arguments].concat())?;
    }
    Ok(folder)
}

/// Random ViT-L/14 weights that both sides read.
fn weights() -> Result<String> {
    let path = folder("vit-l-14.safetensors");
    if !path.is_file() {
        fs_err::create_dir_all(folder(""))?;
        let output = path.display().to_string();
        ours(&["reward", "export", "--model", "random:vit-l-14", "--format", "openai", "--output", &output])?;
    }
    Ok(path.display().to_string())
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().into_iter().flatten().filter_map(Value::as_f64).collect()
}

/// The lines of a run's `metrics.jsonl` that are of steps.
fn steps(run: &Path) -> Result<Vec<Value>> {
    let text = fs_err::read_to_string(run.join("metrics.jsonl"))?;
    let lines = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    Ok(lines.into_iter().filter(|line| line.get("loss").is_some()).collect())
}

fn figures(lines: &[Value], name: &str) -> Vec<f64> {
    lines.iter().filter_map(|line| line[name].as_f64()).collect()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn gemm() -> Result<()> {
    println!("gemm: fp32 products on this machine, GFLOP/s: {}", peer("gemm.py", &[])?);
    Ok(())
}

fn decode() -> Result<()> {
    let large = ["--images", "16", "--size", "2048"];
    for (side, data) in [(1024, data("distinct", &["--images", "64"])?), (2048, data("large", &large)?)] {
        let images = data.join("images");
        let files: Vec<PathBuf> = fs_err::read_dir(&images)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
        let rate = |fast_for| -> Result<f64> {
            let options = DecodeOptions { fast_for, ..DecodeOptions::default() };
            let openai = Preprocessing::default();
            let mut best = 0.0_f64;
            for _ in 0..3 {
                let started = Instant::now();
                for file in &files {
                    std::hint::black_box(load(&fs_err::read(file)?, "", 224, &openai, &options)?);
                }
                best = best.max(files.len() as f64 / started.elapsed().as_secs_f64());
            }
            Ok(best)
        };
        let theirs =
            peer("decode.py", &[&images.display().to_string()])?["images_per_second"].as_f64().context("no rate")?;
        for (name, ours) in [("decode", rate(None)?), ("decode --fast-decode", rate(Some(224))?)] {
            println!(
                "{name}: {side}² JPEG to 224² pixels on one core: ours {ours:.1}/s, PIL + torchvision {theirs:.1}/s, {:.2}×",
                ours / theirs
            );
        }
    }
    Ok(())
}

/// How far `--fast-decode` moves scores, against how far scores of different pictures lie apart.
fn fast_decode() -> Result<()> {
    let weights = weights()?;
    let images = data("distinct", &["--images", "64"])?.join("images");
    let mut files =
        fs_err::read_dir(&images)?.map(|entry| Ok(entry?.path().display().to_string())).collect::<Result<Vec<_>>>()?;
    files.sort();
    let scores = |more: &[&str]| -> Result<Vec<f64>> {
        let files: Vec<&str> = files.iter().take(40).map(String::as_str).collect();
        let flags = ["reward", "score", "--model", &weights, "--prompt", "two foxes, oil painting", "--json"];
        let rows: Value = serde_json::from_slice(&answer(&[&flags, more, &files].concat())?)?;
        rows.as_array().into_iter().flatten().map(|row| row["score"].as_f64().context("no score")).collect()
    };
    let (exact, fast) = (scores(&[])?, scores(&["--fast-decode"])?);
    let centre = mean(&exact);
    let deviation = mean(&exact.iter().map(|score| (score - centre).powi(2)).collect::<Vec<_>>()).sqrt();
    let moved: Vec<f64> = exact.iter().zip(&fast).map(|(exact, fast)| (exact - fast).abs() / deviation).collect();
    println!(
        "fast-decode: scores of {} 1024² JPEGs move by {:.3} of their standard deviation on average, {:.3} at most",
        moved.len(),
        mean(&moved),
        moved.iter().copied().fold(0.0, f64::max)
    );
    Ok(())
}

/// Three epochs of the paper's mode over 32 triplets of 64 distinct photographs, batch 8. The peer is timed over one warm-up
/// and three steps, and scaled.
fn train() -> Result<()> {
    let table = data("distinct", &["--images", "64"])?.join("triplets.parquet").display().to_string();
    let weights = weights()?;
    let run = tempfile::tempdir()?;
    let save_folder = run.path().join("run").display().to_string();
    let mode = "visual_upper_layers_textual_upper_layers";
    let arguments = ["reward", "train", "--training-file", &table, "--training-mode", mode, "--model", &weights];
    let rest = ["--batch-size", "8", "--n-epochs", "3", "--save-folder", &save_folder, "--device", "cpu"];
    ours(&[arguments.as_slice(), &rest].concat())?;
    let lines = steps(Path::new(&save_folder))?;
    let seconds: Vec<f64> = figures(&lines, "triplets_per_second").iter().map(|per_second| 8.0 / per_second).collect();
    ensure!(seconds.len() == 12, "12 steps wanted, {} done", seconds.len());
    let original = peer("train.py", &[&weights, &table, "--batch-size", "8", "--steps", "3", "--warm-up", "1"])?;
    let step = mean(&numbers(&original["seconds_per_step"]));
    let (first, later) = (mean(&seconds[..4]), mean(&seconds[4..]));
    println!(
        "train: 3 epochs, 32 triplets, batch 8, ViT-L/14: ours {:.1} s, the original {:.1} s (12 × the mean of 3 steps), {:.2}×",
        seconds.iter().sum::<f64>(),
        12.0 * step,
        12.0 * step / seconds.iter().sum::<f64>(),
    );
    println!(
        "train: a step of the first epoch {first:.2} s, later {later:.2} s, the original {step:.2} s: {:.2}× and {:.2}×",
        step / first,
        step / later
    );
    // Forward and backward of the blocks that train, the frozen ones forward: multiply-adds of the image tower's products.
    let block = 2.0 * 257.0 * 12.0 * 1024.0 * 1024.0;
    println!(
        "train: image-tower products at {:.0} GFLOP/s in the first epoch, {:.0} later",
        16.0 * 27.5 * block / first / 1e9,
        16.0 * 6.5 * block / later / 1e9
    );
    println!(
        "train: peak memory of the original {:.1} GiB",
        original["peak_rss_bytes"].as_f64().unwrap_or(f64::NAN) / (1u64 << 30) as f64
    );
    Ok(())
}

/// Peak memory of the paper's mode at batch 32 over two steps, the cache of 64 prefixes included.
fn memory() -> Result<()> {
    let table = data("distinct", &["--images", "64"])?.join("triplets.parquet").display().to_string();
    let weights = weights()?;
    let run = tempfile::tempdir()?;
    let save_folder = run.path().join("run").display().to_string();
    let mode = "visual_upper_layers_textual_upper_layers";
    let mut child = Command::new(PROGRAM)
        .args(["reward", "train", "--training-file", &table, "--training-mode", mode, "--model", &weights])
        .args(["--batch-size", "32", "--n-epochs", "2", "--save-folder", &save_folder, "--device", "cpu"])
        .stderr(Stdio::null())
        .spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0.0;
    while child.try_wait()?.is_none() {
        let text = fs_err::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        peak_kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or(peak_kib);
        std::thread::sleep(Duration::from_millis(20));
    }
    ensure!(child.wait()?.success(), "reward train failed");
    let cache = 64.0 * 257.0 * 1024.0 * 4.0 / f64::from(1 << 30);
    println!(
        "memory: the paper's mode, ViT-L/14, batch 32: peak {:.2} GiB, {cache:.2} GiB of it the cache",
        peak_kib / f64::from(1 << 20)
    );
    Ok(())
}

/// Validation on all-distinct rows and on rows where images recur 3.5 times and prompts 29 times.
fn validate() -> Result<()> {
    let weights = weights()?;
    let recurring = ["--images", "32", "--image-recurrence", "3.5", "--prompt-recurrence", "29"];
    for (name, table) in
        [("distinct", data("few", &["--images", "32"])?), ("recurring", data("recurring", &recurring)?)]
    {
        let table = table.join("triplets.parquet").display().to_string();
        let took = ours(&[
            "reward",
            "validate",
            &table,
            "--checkout-path",
            &weights,
            "--batch-size",
            "8",
            "--device",
            "cpu",
            "--json",
        ])?;
        let loading =
            ours(&["reward", "score", "--model", &weights, "--prompt", "x", &first_image(&table)?, "--device", "cpu"])?;
        let theirs =
            peer("validate.py", &[&weights, &table, "--batch-size", "8"])?["seconds"].as_f64().context("no time")?;
        let ours = (took - loading.min(took)).as_secs_f64();
        println!(
            "validate, {name}: ours {ours:.1} s beside loading, the original {theirs:.1} s, {:.2}×",
            theirs / ours
        );
    }
    Ok(())
}

/// Scores of 200 distinct pictures of 512², and how far they are from those of transformers.
fn score() -> Result<()> {
    let data = data("scored", &["--images", "200", "--size", "512"])?;
    let manifest = data.join("images.csv");
    let rows: String =
        (0..200).map(|image| format!("picture {image} of a lighthouse,images/{image:05}.jpg\n")).collect();
    fs_err::write(&manifest, format!("prompt,path\n{rows}"))?;
    let (manifest, model) = (manifest.display().to_string(), folder("vit-l-14").display().to_string());
    if !Path::new(&model).is_dir() {
        ours(&["reward", "export", "--model", &weights()?, "--format", "hf", "--output", &model])?;
    }
    let one = first_image(&manifest)?;
    let loading = ours(&["reward", "score", "--model", &model, "--prompt", "x", &one, "--device", "cpu"])?;
    let started = Instant::now();
    let arguments = ["reward", "score", "--model", &model, "--manifest", &manifest, "--device", "cpu", "--json"];
    let rows: Value = serde_json::from_slice(&answer(&arguments)?)?;
    let ours = (started.elapsed() - loading).as_secs_f64();
    let theirs = peer("score.py", &[&model, &manifest])?;
    let scores: Vec<f64> = rows.as_array().into_iter().flatten().filter_map(|row| row["score"].as_f64()).collect();
    let expected = numbers(&theirs["scores"]);
    ensure!(scores.len() == 200 && expected.len() == 200, "{} and {} scores, 200 wanted", scores.len(), expected.len());
    let apart = scores.iter().zip(&expected).map(|(ours, theirs)| (ours - theirs).abs()).fold(0.0, f64::max);
    let seconds = theirs["seconds"].as_f64().context("no time")?;
    println!(
        "score: 200 JPEGs of 512², ViT-L/14: ours {ours:.1} s beside loading, transformers {seconds:.1} s, {:.2}×; \
         scores at most {apart:.1e} apart",
        seconds / ours
    );
    Ok(())
}

fn first_image(table: &str) -> Result<String> {
    Ok(Path::new(table).with_file_name("images").join("00000.jpg").display().to_string())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() >> 1]
}

/// Our own share of starting, beside loading libtorch: this bench links the same libraries and leaves at once. The two are
/// started in turn, and the median of the differences counts.
fn start_up() -> Result<()> {
    let own = std::env::current_exe()?;
    let milliseconds = |program: &Path, arguments: &[&str]| -> Result<f64> {
        let started = Instant::now();
        Command::new(program).args(arguments).output()?;
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    for arguments in [["--help"].as_slice(), &["reward", "train", "--batch-size", "x"]] {
        let (mut loading, mut differences) = (Vec::new(), Vec::new());
        for _ in 0..25 {
            loading.push(milliseconds(&own, &["exit-at-once"])?);
            differences.push(milliseconds(Path::new(PROGRAM), arguments)? - loading[loading.len() - 1]);
        }
        println!(
            "start-up: `{}`: {:.1} ms ours, beside {:.0} ms for loading libtorch",
            arguments.join(" "),
            median(differences),
            median(loading)
        );
    }
    Ok(())
}
