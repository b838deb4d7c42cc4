//! `social-reward reward score`.

use std::process::ExitCode;

use anyhow::Result;
use reward::{
    Error,
    clip::tokenizer::{Tokenizer, Tokens},
    data::{
        image::DecodeOptions,
        manifest::{Manifest, ManifestRow},
        source::ImageSource,
    },
    device::DeviceName,
    engine::{EmbedOptions, engine},
    output,
    scoring::{
        first_look::look,
        parts::{Model, Parts},
        rows::Rows,
        table::{Format, ScoreTable},
    },
    weights::Checkpoint,
};
use serde::Serialize;

use crate::{cli::ScoreArgs, commands, progress::Progress, settings::layered, signals};

/// One line of the answer.
#[derive(Serialize)]
struct Scored<'a> {
    path: &'a str,
    prompt: &'a str,
    score: Option<f32>,
}

pub(crate) fn run(arguments: &ScoreArgs) -> Result<ExitCode> {
    let settings: ScoreArgs = layered(arguments, arguments.config.as_deref())?;
    let Some(model) = &settings.model else {
        return Err(Error::usage("--model is missing").hint("a CLIP folder, a state dict or a hub id").into());
    };
    let (open_options, on_bad_image) = (settings.common.open_options()?, settings.images.on_bad_image()?);
    if let Some(output) = &settings.output {
        if Format::of(output).is_none() {
            let wrong = format!("--output {}: want a name that ends in .parquet, .csv or .jsonl", output.display());
            return Err(Error::usage(wrong).into());
        }
        output::check_file(output, "give an --output that you may write to")?;
    }
    let (shard, local_rank) = commands::shard(settings.shard.shard)?;
    if shard.count > 1 && settings.output.is_none() {
        return Err(Error::usage("--output is missing: parts of several processes meet beside it").into());
    }
    let (stop, progress) = (signals::listen()?, Progress::new());
    let manifest = asked(&settings)?;
    let source = settings.manifest.as_deref();
    let table = settings.output.as_deref().map(|output| ScoreTable::new(output, &manifest, source)).transpose()?;

    // All images before a model is looked for, which may be a download.
    let decode = settings.images.decode_options();
    let stamps = look(&manifest.images, decode.max_pixels, on_bad_image, &progress, &stop)?;
    let checkpoint = Checkpoint::open(model, open_options)?;
    let options = settings.images.embed_options(settings.batch_size, &checkpoint.config)?;
    checkpoint.announce(&progress);
    let encode = |prompt: &String| Tokenizer::openai().encode(prompt, checkpoint.config.context_length);
    let tokens: Vec<Tokens> = manifest.prompts.iter().map(encode).collect();
    commands::warn_of_cut_prompts(&tokens, &progress);

    let device = commands::device(settings.common.compute.device, settings.common.compute.threads).of_rank(local_rank);
    let computed = described(model, &checkpoint, &options, device, settings.common.compute.seed.unwrap_or(0))?;
    let mut parts = match &settings.output {
        Some(output) => {
            let model = Model { files: checkpoint.files(), settings: &computed };
            Some(Parts::of(output, model, shard.count > 1)?)
        }
        None => None,
    };
    let rows = Rows::new(&manifest, &tokens, &stamps);
    let scored = rows.score(|| engine(&checkpoint, device), shard, &options, parts.as_mut(), &progress, &stop)?;
    let Some(scores) = scored else {
        let folder = parts.map_or(String::new(), |parts| parts.folder().display().to_string());
        progress.line(&format!("part {shard} is scored, in {folder}"));
        progress.line("the last part to end writes the table; without --shard, one process scores what is left");
        return Ok(ExitCode::SUCCESS);
    };

    if let (Some(output), Some(table)) = (&settings.output, &table) {
        table.write(&scores, &progress)?;
        if let Some(parts) = parts {
            parts.remove();
        }
        let without = scores.iter().filter(|score| score.is_none()).count();
        let more = if without > 0 { format!(", {without} row(s) without one") } else { String::new() };
        progress.line(&format!("{} scores in {}{more}", scores.len() - without, output.display()));
    }
    let scored = manifest.rows.iter().zip(scores);
    if arguments.json {
        let prompt = |row: &ManifestRow| manifest.prompts[row.prompt as usize].as_str();
        let scored = scored.map(|(row, score)| Scored { path: &row.path, prompt: prompt(row), score });
        commands::print(&serde_json::to_string_pretty(&scored.collect::<Vec<_>>())?)?;
    } else if settings.output.is_none() {
        let line = |(row, score): (&ManifestRow, Option<f32>)| {
            format!("{}\t{}", score.map_or("-".to_owned(), |score| format!("{score:.6}")), row.path)
        };
        commands::print(&scored.map(line).collect::<Vec<_>>().join("\n"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The rows to score.
fn asked(settings: &ScoreArgs) -> Result<Manifest> {
    let asked = match (&settings.prompt, &settings.manifest) {
        (_, Some(manifest)) => Manifest::read(manifest)?,
        (Some(prompt), None) => of_images(prompt, &settings.image),
        (None, None) => {
            return Err(Error::usage("nothing to score").hint("--prompt TEXT IMAGE… or --manifest FILE").into());
        }
    };
    Ok(match &settings.images.image_root {
        Some(root) => asked.rooted_at(root),
        None => asked,
    })
}

fn of_images(prompt: &str, images: &[String]) -> Manifest {
    let row = |(image, path): (usize, &String)| ManifestRow {
        prompt: 0,
        image: image as u32,
        path: path.clone(),
        seed: None,
    };
    Manifest {
        prompts: vec![prompt.to_owned()],
        images: images.iter().map(|path| ImageSource::File(path.into())).collect(),
        rows: images.iter().enumerate().map(row).collect(),
        labels: Vec::new(),
    }
}

/// What scores depend on beside the weights and the rows.
fn described(
    model: &str,
    checkpoint: &Checkpoint,
    options: &EmbedOptions,
    device: DeviceName,
    seed: u64,
) -> Result<String> {
    #[cfg(feature = "torch")]
    let device = if device.resolve(0)?.is_cuda() { "libtorch, CUDA" } else { "libtorch, CPU" };
    #[cfg(not(feature = "torch"))]
    let device = format!("candle, {device}");
    let DecodeOptions { max_pixels: _, exif_rotate, fast_for } = options.decode;
    let random = if checkpoint.files().is_empty() { format!("{model} seed {seed}") } else { String::new() };
    let config = &checkpoint.config;
    Ok(format!("{device}; {config:?}; exif_rotate {exif_rotate}, fast_decode {}; {random}", fast_for.is_some()))
}
