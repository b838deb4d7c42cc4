//! A CLIP that metrics share: loaded when first needed, each image embedded once.

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
};

use super::{Item, Run};
use crate::{
    Result,
    clip::{
        config::{Activation, ClipConfig},
        preprocessing::Preprocessing,
        tokenizer::{Tokenizer, Tokens},
    },
    data::source::ImageSource,
    engine::{Engine, embed_images, embed_prompts, engine},
    event::Event,
    weights::{Checkpoint, sha256, wrappers},
};

pub(super) struct SharedClip {
    checkpoint: Checkpoint,
    /// SHA-256 of the weights.
    pub(super) sha256: String,
    engine: Option<Box<dyn Engine>>,
    /// Unit embeddings by image hash, where they are needed beyond scores.
    kept: Option<HashMap<String, Vec<f32>>>,
}

impl SharedClip {
    /// Opens the checkpoint; `keep`: whether [`Self::embeddings`] will be asked for.
    pub(super) fn open(path: &str, keep: bool, run: &Run) -> Result<Self> {
        let checkpoint = Checkpoint::open(path, run.options.open)?;
        checkpoint.check_vocabulary()?;
        let sha256 = checkpoint_sha256(path, &checkpoint.files(), run.options.open.seed)?;
        Ok(Self { checkpoint, sha256, engine: None, kept: keep.then(HashMap::new) })
    }

    /// See [`reading`].
    pub(super) fn reading(&self) -> String {
        reading(&self.checkpoint.config)
    }

    /// [`reading`] for the name of a measure that says nothing where all is as OpenAI has it.
    pub(super) fn unlike_openais(&self) -> String {
        let reading = self.reading();
        if reading == "QuickGELU" { String::new() } else { format!(", {reading}") }
    }

    /// Cosines of prompt and image, each set in `scores` as soon as it is known.
    pub(super) fn scores(&mut self, items: &[Item], run: &Run, scores: &mut [Option<f64>]) -> Result<()> {
        let mut prompts: Vec<&str> = items.iter().map(|item| item.prompt).collect();
        prompts.sort_unstable();
        prompts.dedup();
        let length = self.checkpoint.config.context_length;
        let tokens: Vec<Tokens> = prompts.iter().map(|prompt| Tokenizer::openai().encode(prompt, length)).collect();
        let truncated = tokens.iter().filter(|tokens| tokens.truncated).count();
        if truncated > 0 {
            let warning = format!("{truncated} prompt(s) are longer than the model reads and were cut");
            run.observer.event(&Event::Warning(&warning));
        }
        let mut texts = vec![Vec::new(); prompts.len()];
        let engine = Self::loaded(&mut self.engine, &self.checkpoint, run)?;
        embed_prompts(engine, &tokens, &run.options.embed, run.observer, run.stop, |indexes, embeddings| {
            for (index, embedding) in indexes.iter().zip(embeddings) {
                texts[*index as usize] = embedding;
            }
        })?;
        let texts: HashMap<&str, Vec<f32>> = prompts.into_iter().zip(texts).collect();
        self.embed(items, run, |index, embedding| {
            let text = &texts[items[index].prompt];
            let cosine: f32 = text.iter().zip(embedding).map(|(a, b)| a * b).sum();
            scores[index] = Some(f64::from(cosine));
        })
    }

    /// Unit embeddings of these images by hash.
    pub(super) fn embeddings(&mut self, items: &[Item], run: &Run) -> Result<&HashMap<String, Vec<f32>>> {
        let kept = self.kept.get_or_insert_default();
        let missing: Vec<Item> = items.iter().filter(|item| !kept.contains_key(item.sha256)).copied().collect();
        self.embed(&missing, run, |_, _| {})?;
        Ok(self.kept.get_or_insert_default())
    }

    /// Calls `each` with the index of every item and its image's embedding; equal images are embedded once.
    fn embed(&mut self, items: &[Item], run: &Run, mut each: impl FnMut(usize, &[f32])) -> Result<()> {
        let mut users: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, item) in items.iter().enumerate() {
            users.entry(item.sha256).or_default().push(index);
        }
        let mut users: Vec<(&str, Vec<usize>)> = users.into_iter().collect();
        // As the rows come, which is how the files lie on disk.
        users.sort_unstable_by_key(|(_, users)| users[0]);
        let images: Vec<&ImageSource> = users.iter().map(|(_, users)| items[users[0]].image).collect();
        let engine = Self::loaded(&mut self.engine, &self.checkpoint, run)?;
        // Room for what stays, before anything large is taken: small pieces that stay between large ones that go would leave a
        // heap of gaps (3 GB for 20,000 images).
        let room = if self.kept.is_some() { self.checkpoint.config.embed_dim } else { 0 };
        let mut kept: Vec<(String, Vec<f32>)> =
            users.iter().map(|(sha256, _)| ((*sha256).to_owned(), Vec::with_capacity(room))).collect();
        let truncated =
            embed_images(engine, &images, &run.options.embed, run.observer, run.stop, |indexes, embeddings| {
                for (index, embedding) in indexes.iter().zip(embeddings) {
                    users[*index as usize].1.iter().for_each(|user| each(*user, &embedding));
                    if room > 0 {
                        kept[*index as usize].1.extend_from_slice(&embedding);
                    }
                }
                Ok(())
            });
        if let Some(known) = &mut self.kept {
            known.extend(kept.into_iter().filter(|(_, embedding)| !embedding.is_empty()));
        }
        run.truncated().extend(truncated?.into_iter().map(|index| users[index as usize].0.to_owned()));
        Ok(())
    }

    fn loaded<'a>(slot: &'a mut Option<Box<dyn Engine>>, checkpoint: &Checkpoint, run: &Run) -> Result<&'a dyn Engine> {
        let loaded = match slot.take() {
            Some(loaded) => loaded,
            None => {
                checkpoint.announce(run.observer);
                engine(checkpoint, run.options.device)?
            }
        };
        Ok(&**slot.insert(loaded))
    }
}

/// What decides scores and is not in the weights: the activation, and how pictures are prepared if not as OpenAI does.
pub(super) fn reading(config: &ClipConfig) -> String {
    let word = |activation| match activation {
        Activation::QuickGelu => "QuickGELU",
        Activation::Gelu => "GELU",
    };
    let mut text = word(config.vision.activation).to_owned();
    if config.text.activation != config.vision.activation {
        text += &format!(", text {}", word(config.text.activation));
    }
    if config.preprocessing != Preprocessing::default() {
        text += &format!(", {}", config.preprocessing);
    }
    text
}

/// SHA-256 of the weights file; for several, of what `sha256sum` would print in their folder; for random weights, of name and seed.
pub(crate) fn checkpoint_sha256(name: &str, files: &[PathBuf], seed: u64) -> Result<String> {
    if let [file] = files {
        let sha256 = sha256::of_file(file)?;
        // Several models of one file are told apart.
        return Ok(match wrappers::split(name).1 {
            Some(choice) => sha256::of_bytes(format!("{sha256}#{choice}").as_bytes()),
            None => sha256,
        });
    }
    let mut listing = BTreeMap::new();
    for file in files {
        listing.insert(file.file_name().unwrap_or_default(), sha256::of_file(file)?);
    }
    let lines = listing.iter().map(|(name, sha256)| format!("{sha256}  {}\n", name.display()));
    let text = if files.is_empty() { format!("{name} seed {seed}") } else { lines.collect() };
    Ok(sha256::of_bytes(text.as_bytes()))
}
