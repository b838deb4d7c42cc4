//! Row `ranks`: two processes of one thread beside one process of two threads, training the reward, fine-tuning with a LoRA, and
//! scoring; what an exchange costs, and the bound that its bytes set.

use std::{
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{PROGRAM, data, figures, median, stable_diffusion, steps, weights};

/// Turns of each side.
const TURNS: usize = 2;

/// Runs `arguments` as `size` ranks, of `threads` threads each; what rank 0 prints.
fn run(size: usize, threads: usize, arguments: &[&str]) -> Result<Vec<u8>> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port().to_string();
    let start = |rank: usize| -> Result<Child> {
        let mut command = Command::new(PROGRAM);
        command
            .args(arguments)
            .env("OMP_NUM_THREADS", threads.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command.envs([("RANK", rank.to_string()), ("WORLD_SIZE", size.to_string())]);
        Ok(command.envs([("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", &port)]).spawn()?)
    };
    let children = (0..size).map(start).collect::<Result<Vec<_>>>()?;
    let mut first = None;
    for child in children {
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        first.get_or_insert(output.stdout);
    }
    first.context("no rank")
}

/// Bytes that have gone over the loopback interface since the machine was started.
fn sent() -> Result<f64> {
    let interfaces = fs_err::read_to_string("/proc/net/dev")?;
    let line = interfaces.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("no loopback interface")?;
    Ok(line.split_whitespace().nth(8).context("no count of bytes sent")?.parse()?)
}

/// Seconds of a step of a run, the median of those after the first; both sides in turn.
fn compare(name: &str, folder: &str, rate: &str, items: f64, arguments: &[&str]) -> Result<[f64; 2]> {
    let mut seconds = [Vec::new(), Vec::new()];
    let mut megabytes = 0.0;
    for _ in 0..TURNS {
        for ((size, threads), seconds) in [(1, 2), (2, 1)].into_iter().zip(&mut seconds) {
            let place = tempfile::tempdir()?;
            let output = place.path().join("run");
            let before = sent()?;
            run(size, threads, &[arguments, &[folder, &output.display().to_string()]].concat())?;
            let lines = steps(&output)?;
            megabytes = (sent()? - before) / 1e6 / lines.len() as f64;
            seconds.extend(figures(&lines, rate).iter().skip(1).map(|rate| items / rate));
        }
    }
    let [one, two] = seconds.map(median);
    println!(
        "ranks: {name}: one process of two threads {one:.2} s a step, two of one {two:.2} s, {:.2}×; {megabytes:.1} MB sent a step",
        one / two
    );
    Ok([one, two])
}

pub(crate) fn ranks() -> Result<()> {
    let doctor: Value = serde_json::from_slice(&run(2, 1, &["doctor", "--json"])?)?;
    let figure = |name: &str| doctor["ranks"][name].as_f64().with_context(|| format!("no {name}"));
    let (small, rate) = (figure("small_sum_seconds")?, figure("large_sum_rate")?);
    println!("ranks: a sum of 4 bytes takes {:.0} µs, one of 64 MB runs at {:.0} MB/s", small * 1e6, rate / 1e6);

    let table = data("distinct", &["--images", "64"])?.join("triplets.parquet").display().to_string();
    let weights = weights()?;
    let mode = "visual_upper_layers_textual_upper_layers";
    let train = [
        "reward",
        "train",
        "--training-file",
        &table,
        "--training-mode",
        mode,
        "--model",
        &weights,
        "--batch-size",
        "32",
    ];
    let rest = ["--device", "cpu", "--checkpoint-every", "0"];
    for (cache, epochs) in [("off", "3"), ("ram", "4")] {
        let name = format!("ViT-L/14, the paper's mode, batch 32, cache {cache}");
        let arguments = [&train, &rest[..], &["--cache", cache, "--n-epochs", epochs]].concat();
        let [one, _] = compare(&name, "--save-folder", "triplets_per_second", 32.0, &arguments)?;
        // The blocks that train: 208 MB of gradients, added up once a step; each of two ranks sends half of them twice.
        let exchange = 208e6 / rate;
        println!(
            "ranks: {name}: 208 MB of gradients, of which the two send 416 MB, take {exchange:.2} s at that rate: at most {:.2}× \
             where nothing overlaps",
            one / (one + exchange)
        );
    }

    let place = tempfile::tempdir()?;
    let prompts = place.path().join("prompts.txt").display().to_string();
    fs_err::write(&prompts, "a photo of a red fox in the snow\na castle on a hill, oil painting\n")?;
    let model = stable_diffusion::model()?;
    let finetune = [
        "diffusion",
        "finetune",
        "--algorithm",
        "draft-k",
        "--model",
        &model,
        "--reward",
        &weights,
        "--reward-scale",
        "raw",
    ];
    let rest = ["--prompts", &prompts, "--sample-steps", "10", "--lora-rank", "4", "--height", "128", "--width", "128"];
    let more = ["--batch-size", "2", "--train-steps", "3", "--gradient-checkpointing", "off", "--device", "cpu"];
    let arguments = [&finetune, &rest[..], &more].concat();
    compare("DRaFT-1, 2.1-base, 128², 2 images", "--output", "images_per_second", 2.0, &arguments)?;
    shards(&weights, &table)
}

/// Scoring by one process and by two shards, in turn.
fn shards(weights: &str, triplets: &str) -> Result<()> {
    let images = Path::new(triplets).with_file_name("images");
    let row = |number: usize| format!("a picture,{}/{number:05}.jpg\n", images.display());
    let manifest = "prompt,path\n".to_owned() + &(0..48).map(row).collect::<String>();
    let place = tempfile::tempdir()?;
    let table = place.path().join("images.csv");
    fs_err::write(&table, manifest)?;
    let score = |size: usize, threads: usize, output: &Path| -> Result<f64> {
        let started = Instant::now();
        let (table, output) = (table.display().to_string(), output.display().to_string());
        let arguments =
            ["reward", "score", "--model", weights, "--manifest", &table, "--output", &output, "--batch-size", "8"];
        run(size, threads, &arguments)?;
        Ok(started.elapsed().as_secs_f64())
    };
    let mut seconds = [Vec::new(), Vec::new()];
    for turn in 0..2 * TURNS {
        for ((size, threads), seconds) in [(1, 2), (2, 1)].into_iter().zip(&mut seconds) {
            seconds.push(score(size, threads, &place.path().join(format!("{turn}-{size}.csv")))?);
        }
    }
    let [one, two] = seconds.map(median);
    println!(
        "ranks: ViT-L/14, 48 images scored: one process of two threads {one:.1} s, two shards of one {two:.1} s, {:.2}×",
        one / two
    );
    Ok(())
}
