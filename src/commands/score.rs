//! `social-reward reward score`.

use std::{path::Path, process::ExitCode, sync::Arc};

use anyhow::{Context, Result};
use parquet::{
    data_type::{ByteArray, ByteArrayType, FloatType},
    file::{properties::WriterProperties, writer::SerializedFileWriter},
    schema::parser::parse_message_type,
};
use reward::{
    Error,
    clip::tokenizer::{Tokenizer, Tokens},
    data::{
        manifest::{Manifest, ManifestRow},
        source::ImageSource,
    },
    score::{embed, engine},
    weights::{Checkpoint, save::replace_file},
};
use serde::Serialize;

use crate::{cli::ScoreArgs, commands, progress::Progress, settings::layered, signals};

/// One line of the answer.
#[derive(Serialize)]
struct Scored {
    path: String,
    prompt: String,
    score: Option<f32>,
}

pub(crate) fn run(arguments: &ScoreArgs) -> Result<ExitCode> {
    let settings: ScoreArgs = layered(arguments, arguments.config.as_deref())?;
    let Some(model) = &settings.model else {
        return Err(Error::usage("--model is missing").hint("a CLIP folder, a state dict or a hub id").into());
    };
    if let Some(output) = &settings.output {
        format_of(output)?;
    }
    let manifest = match (&settings.prompt, &settings.manifest) {
        (_, Some(manifest)) => Manifest::read(manifest)?,
        (Some(prompt), None) => of_images(prompt, &settings.image),
        (None, None) => {
            return Err(Error::usage("nothing to score").hint("--prompt TEXT IMAGE… or --manifest FILE").into());
        }
    };
    let (stop, progress) = (signals::listen()?, Progress::new());
    let checkpoint = Checkpoint::open(model, settings.common.open_options()?)?;
    let options = settings.images.embed_options(settings.batch_size, &checkpoint.config)?;
    checkpoint.announce(&progress);
    let tokens: Vec<Tokens> = manifest
        .prompts
        .iter()
        .map(|prompt| Tokenizer::openai().encode(prompt, checkpoint.config.context_length))
        .collect();
    let engine = engine(&checkpoint, commands::device(settings.common.device, settings.common.threads))?;
    let table = embed(&*engine, &manifest.images, &tokens, &options, &progress, &stop)?;
    let scored: Vec<Scored> = manifest
        .rows
        .iter()
        .map(|row| Scored {
            path: row.path.clone(),
            prompt: manifest.prompts[row.prompt as usize].clone(),
            score: table.score(row.prompt, row.image),
        })
        .collect();
    if let Some(output) = &settings.output {
        write(output, &scored)?;
        progress.line(&format!("{} scores in {}", scored.len(), output.display()));
    }
    if arguments.json {
        commands::print(&serde_json::to_string_pretty(&scored)?)?;
    } else if settings.output.is_none() {
        let line =
            |row: &Scored| format!("{}\t{}", row.score.map_or("-".to_owned(), |score| format!("{score:.6}")), row.path);
        commands::print(&scored.iter().map(line).collect::<Vec<_>>().join("\n"))?;
    }
    Ok(ExitCode::SUCCESS)
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

#[derive(Clone, Copy)]
enum Format {
    Parquet,
    Csv,
    JsonLines,
}

fn format_of(path: &Path) -> Result<Format> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("parquet") => Ok(Format::Parquet),
        Some("csv") => Ok(Format::Csv),
        Some("jsonl") => Ok(Format::JsonLines),
        _ => {
            Err(Error::usage(format!("--output {}: want a name that ends in .parquet, .csv or .jsonl", path.display()))
                .into())
        }
    }
}

fn write(path: &Path, rows: &[Scored]) -> Result<()> {
    let format = format_of(path)?;
    let contents = match format {
        Format::Parquet => as_parquet(rows).context("scores as parquet")?,
        Format::Csv => {
            let mut writer = csv::Writer::from_writer(Vec::new());
            rows.iter().try_for_each(|row| writer.serialize(row))?;
            writer.into_inner()?
        }
        Format::JsonLines => {
            let lines: Result<Vec<_>, _> = rows.iter().map(serde_json::to_string).collect();
            (lines?.join("\n") + "\n").into_bytes()
        }
    };
    Ok(replace_file(path, |partial| Ok(fs_err::write(partial, contents)?))?)
}

fn as_parquet(rows: &[Scored]) -> Result<Vec<u8>> {
    let schema =
        "message scores { required binary path (STRING); required binary prompt (STRING); optional float score; }";
    let schema = Arc::new(parse_message_type(schema)?);
    let mut file = SerializedFileWriter::new(Vec::new(), schema, Arc::new(WriterProperties::default()))?;
    let mut group = file.next_row_group()?;
    let texts: [fn(&Scored) -> &str; 2] = [|row| &row.path, |row| &row.prompt];
    for text in texts {
        let values: Vec<ByteArray> = rows.iter().map(|row| ByteArray::from(text(row))).collect();
        let mut column = group.next_column()?.context("the schema has this column")?;
        column.typed::<ByteArrayType>().write_batch(&values, None, None)?;
        column.close()?;
    }
    let scores: Vec<f32> = rows.iter().filter_map(|row| row.score).collect();
    let levels: Vec<i16> = rows.iter().map(|row| i16::from(row.score.is_some())).collect();
    let mut column = group.next_column()?.context("the schema has this column")?;
    column.typed::<FloatType>().write_batch(&scores, Some(&levels), None)?;
    column.close()?;
    group.close()?;
    Ok(file.into_inner()?)
}
