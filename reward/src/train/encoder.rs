//! Triplets to embeddings: each image and prompt of a batch once, its frozen prefix from the cache where it is there.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, OnceLock, PoisonError},
};

use blake3::Hash;
use tch::{Device, Kind, Tensor};

use super::{prefix_cache::PrefixCache, trainable::Trainable};
use crate::{
    Result,
    clip::{
        config::ClipConfig,
        model::{Clip, Depth, unit},
        preprocess,
        preprocessing::Preprocessing,
        tokenizer::{Tokenizer, Tokens},
    },
    data::{
        image::DecodeOptions,
        triplets::{Triplet, Triplets},
    },
    loss::Embeddings,
};

/// Triplets with what is known about their prompts and images.
pub struct Examples {
    /// The table.
    pub triplets: Triplets,
    tokens: Vec<Tokens>,
    /// Content hash of each image, once it was read.
    keys: Vec<OnceLock<Hash>>,
}

impl Examples {
    /// Tokenizes every distinct prompt.
    pub fn new(triplets: Triplets, context_length: usize) -> Self {
        let tokenizer = Tokenizer::openai();
        let tokens = triplets.prompts.iter().map(|prompt| tokenizer.encode(prompt, context_length)).collect();
        let keys = triplets.images.iter().map(|_| OnceLock::new()).collect();
        Self { triplets, tokens, keys }
    }

    /// Tokens of each distinct prompt.
    pub fn tokens(&self) -> &[Tokens] {
        &self.tokens
    }
}

/// An image on its way into a batch.
pub enum Fetched {
    /// An image whose prefix is in the cache.
    Cached(Hash),
    /// Preprocessed RGB bytes, S·S·3.
    Pixels(Option<Hash>, Vec<u8>),
}

/// What one micro-batch feeds into the part that trains.
pub struct Inputs {
    images: Tensor,
    texts: Tensor,
    ends: Tensor,
    /// Place of each row's prompt, positive and negative among the distinct ones above.
    prompt: Tensor,
    positive: Tensor,
    negative: Tensor,
    /// Number of each row's prompt in the whole table: equal prompts are equal across micro-batches.
    prompt_number: Tensor,
    /// Triplets in it.
    pub rows: usize,
}

impl Inputs {
    /// The inputs of `rows`, not empty. `images` gives distinct images, by number, as pixels `[n, 3, S, S]` or prefix
    /// activations; `texts` distinct prompts, by number, as token ids `[n, T]` or prefix activations, and their pooled
    /// positions `[n]`.
    ///
    /// # Errors
    /// What `images` or `texts` says.
    pub fn new(
        rows: &[Triplet],
        images: impl FnOnce(&[u32]) -> Result<Tensor>,
        texts: impl FnOnce(&[u32]) -> Result<(Tensor, Tensor)>,
    ) -> Result<Self> {
        let mut distinct_images = Distinct::default();
        let mut distinct_prompts = Distinct::default();
        let (positive, negative): (Vec<i64>, Vec<i64>) =
            rows.iter().map(|row| (distinct_images.place(row.positive), distinct_images.place(row.negative))).unzip();
        let prompt: Vec<i64> = rows.iter().map(|row| distinct_prompts.place(row.prompt)).collect();
        let images = images(&distinct_images.order)?;
        let (texts, ends) = texts(&distinct_prompts.order)?;
        let indices = |numbers: &[i64]| Tensor::from_slice(numbers).to_device(images.device());
        Ok(Self {
            prompt: indices(&prompt),
            positive: indices(&positive),
            negative: indices(&negative),
            prompt_number: indices(&rows.iter().map(|row| i64::from(row.prompt)).collect::<Vec<_>>()),
            rows: rows.len(),
            images,
            texts,
            ends,
        })
    }
}

/// Images on their way to the model: read, decoded and preprocessed in worker threads unless their prefix is cached.
pub struct Fetcher {
    cache: PrefixCache,
    decode: DecodeOptions,
    image_size: u32,
    preprocessing: Preprocessing,
    /// Whether images have a frozen prefix to cache.
    keyed: bool,
    truncated: Mutex<BTreeSet<String>>,
}

impl Fetcher {
    /// A fetcher for a model whose frozen part is `trainable`'s.
    pub fn new(cache: PrefixCache, decode: DecodeOptions, model: &ClipConfig, trainable: Trainable) -> Self {
        Self {
            cache,
            decode,
            image_size: model.image_size as u32,
            preprocessing: model.preprocessing.clone(),
            keyed: trainable.image_depth != Depth::Input,
            truncated: Mutex::default(),
        }
    }

    /// The pixels of a file as the model wants them; `label` names it in errors.
    fn load(&self, bytes: &[u8], label: &str) -> Result<Vec<u8>> {
        let loaded = preprocess::load(bytes, label, self.image_size, &self.preprocessing, &self.decode)?;
        if loaded.truncated {
            self.truncated.lock().unwrap_or_else(PoisonError::into_inner).insert(label.to_owned());
        }
        Ok(loaded.pixels)
    }

    /// Names of the pictures so far that were cut off and decoded as far as they went.
    pub fn truncated(&self) -> BTreeSet<String> {
        self.truncated.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Gives an image's place in the cache, or its pixels.
    ///
    /// # Errors
    /// The image is missing or cannot be decoded.
    pub fn fetch(&self, examples: &Examples, image: u32) -> Result<Fetched> {
        let known = examples.keys[image as usize].get().copied();
        if let Some(key) = known.filter(|key| self.cache.contains(*key)) {
            return Ok(Fetched::Cached(key));
        }
        let source = &examples.triplets.images[image as usize];
        let bytes = source.read()?;
        let key = self.keyed.then(|| *examples.keys[image as usize].get_or_init(|| blake3::hash(&bytes)));
        if let Some(key) = key.filter(|key| self.cache.contains(*key)) {
            return Ok(Fetched::Cached(key));
        }
        Ok(Fetched::Pixels(key, self.load(&bytes, &source.label())?))
    }

    /// The pixels of an image whose cache entry turned out damaged.
    fn pixels(&self, examples: &Examples, image: u32) -> Result<Fetched> {
        let source = &examples.triplets.images[image as usize];
        Ok(Fetched::Pixels(None, self.load(&source.read()?, &source.label())?))
    }
}

/// The model, split where training starts.
pub struct Encoder<'a> {
    /// The model.
    pub clip: &'a Clip,
    trainable: Trainable,
    pub(super) fetcher: &'a Fetcher,
    /// How many prompts share one prefix pass: on a CPU a prompt is as long as it is, an accelerator would wait for its orders.
    prompts_at_once: usize,
}

/// How many images or prompts share one prefix pass, on a CPU `on_cpu`, filled up with repeats where fewer are left. What is
/// cached must not depend on its neighbours. The last bits of libtorch's products do change with the number of rows, if not with
/// what is in the other rows.
fn prefix_batch(device: Device, on_cpu: usize) -> usize {
    if device == Device::Cpu { on_cpu } else { 64 }
}

impl<'a> Encoder<'a> {
    /// An encoder over `clip`.
    pub fn new(clip: &'a Clip, trainable: Trainable, fetcher: &'a Fetcher) -> Self {
        Self { clip, trainable, fetcher, prompts_at_once: prefix_batch(clip.device, 1) }
    }

    /// The inputs of a micro-batch. `fetched` holds every image of `rows`.
    ///
    /// # Errors
    /// A cache entry is damaged and its image cannot be read again.
    pub fn inputs(&self, examples: &Examples, rows: &[Triplet], fetched: HashMap<u32, Fetched>) -> Result<Inputs> {
        Inputs::new(rows, |order| self.images(examples, order, fetched), |order| Ok(self.texts(examples, order)))
    }

    /// Unit embeddings of every row's prompt, positive and negative image.
    pub fn embed(&self, inputs: &Inputs) -> Embeddings {
        let images = unit(&self.clip.image_suffix(&inputs.images, self.trainable.image_depth));
        let texts = unit(&self.clip.text_suffix(&inputs.texts, &inputs.ends, self.trainable.text_depth));
        Embeddings {
            text: texts.index_select(0, &inputs.prompt),
            positive: images.index_select(0, &inputs.positive),
            negative: images.index_select(0, &inputs.negative),
            prompt: inputs.prompt_number.shallow_clone(),
        }
    }

    /// Unit embeddings `[n, embed_dim]` of distinct images, on the CPU, without a graph.
    ///
    /// # Errors
    /// As [`Self::inputs`].
    pub fn embed_images(&self, examples: &Examples, order: &[u32], fetched: HashMap<u32, Fetched>) -> Result<Tensor> {
        let inputs = self.images(examples, order, fetched)?;
        let embedded = tch::no_grad(|| unit(&self.clip.image_suffix(&inputs, self.trainable.image_depth)));
        Ok(embedded.to_device(Device::Cpu))
    }

    /// Unit embeddings `[n, embed_dim]` of distinct prompts, on the CPU, without a graph.
    pub fn embed_prompts(&self, examples: &Examples, order: &[u32]) -> Tensor {
        let (inputs, ends) = self.texts(examples, order);
        let embedded = tch::no_grad(|| unit(&self.clip.text_suffix(&inputs, &ends, self.trainable.text_depth)));
        embedded.to_device(Device::Cpu)
    }

    /// The images' pixels `[n, 3, S, S]` or prefix activations `[n, T, width]`.
    fn images(&self, examples: &Examples, order: &[u32], mut fetched: HashMap<u32, Fetched>) -> Result<Tensor> {
        let depth = self.trainable.image_depth;
        let width = self.clip.config.vision.width;
        let mut inputs: Vec<Option<Tensor>> = Vec::new();
        let mut missing: Vec<(usize, Option<Hash>, Vec<u8>)> = Vec::new();
        for (place, image) in order.iter().enumerate() {
            let mut found = fetched.remove(image).map_or_else(|| self.fetcher.fetch(examples, *image), Ok)?;
            // What was decoded ahead may have been cached since.
            let key = match &found {
                Fetched::Cached(key) => Some(*key),
                Fetched::Pixels(key, _) => *key,
            };
            let cached = key.and_then(|key| self.fetcher.cache.get(key, width, self.clip.kind));
            if cached.is_none() && matches!(found, Fetched::Cached(_)) {
                found = self.fetcher.pixels(examples, *image)?;
            }
            if let (None, Fetched::Pixels(key, pixels)) = (&cached, found) {
                missing.push((place, key, pixels));
            }
            inputs.push(cached.map(|tensor| tensor.to_device(self.clip.device)));
        }
        if depth == Depth::Input {
            let pictures: Vec<&[u8]> = missing.iter().map(|(_, _, pixels)| pixels.as_slice()).collect();
            return Ok(self.clip.pixels(&pictures));
        }
        let group = prefix_batch(self.clip.device, 8);
        for chunk in missing.chunks(group) {
            let pictures = chunk.iter().map(|(_, _, pixels)| pixels.as_slice()).cycle().take(group).collect::<Vec<_>>();
            let activations = tch::no_grad(|| self.clip.image_prefix(&self.clip.pixels(&pictures), depth));
            for ((place, key, _), activation) in chunk.iter().zip(activations.unbind(0)) {
                if let Some(key) = key {
                    self.fetcher.cache.put(*key, &activation);
                }
                inputs[*place] = Some(activation);
            }
        }
        Ok(Tensor::stack(&inputs.into_iter().flatten().collect::<Vec<_>>(), 0))
    }

    /// The prompts' token ids `[n, T]` or prefix activations, padded to the longest, and the pooled positions `[n]`.
    fn texts(&self, examples: &Examples, order: &[u32]) -> (Tensor, Tensor) {
        let depth = self.trainable.text_depth;
        let tokens: Vec<&Tokens> = order.iter().map(|prompt| &examples.tokens[*prompt as usize]).collect();
        let (ids, ends) = self.clip.token_ids(&tokens);
        let width = match depth {
            Depth::Input => return (ids, ends),
            Depth::Blocks(_) => self.clip.config.text.width,
            Depth::Whole => self.clip.config.embed_dim,
        };
        let kind = if depth == Depth::Whole { Kind::Float } else { self.clip.kind };
        let content = |tokens: &Tokens| {
            let bytes: Vec<u8> = tokens.ids.iter().flat_map(|id| id.to_le_bytes()).collect();
            blake3::hash(&[b"prompt".as_slice(), &bytes].concat())
        };
        let cached = |tokens: &&Tokens| {
            let found = self.fetcher.cache.get(content(tokens), width, kind);
            found.map(|tensor| tensor.to_device(self.clip.device))
        };
        let mut activations: Vec<Option<Tensor>> = tokens.iter().map(cached).collect();
        let missing: Vec<usize> = (0..tokens.len()).filter(|place| activations[*place].is_none()).collect();
        for chunk in missing.chunks(self.prompts_at_once) {
            let prompts: Vec<&Tokens> = chunk.iter().map(|place| tokens[*place]).collect();
            for (place, activation) in chunk.iter().zip(self.text_prefixes(&prompts)) {
                self.fetcher.cache.put(content(tokens[*place]), &activation);
                activations[*place] = Some(activation);
            }
        }
        let activations: Vec<Tensor> = activations.into_iter().flatten().collect();
        let longest = activations.iter().map(|tensor| tensor.size()[0]).max().unwrap_or(0);
        let padded: Vec<Tensor> =
            activations.iter().map(|tensor| tensor.constant_pad_nd([0, 0, 0, longest - tensor.size()[0]])).collect();
        let stacked = Tensor::stack(&padded, 0);
        (if depth == Depth::Whole { stacked.squeeze_dim(1) } else { stacked }, ends)
    }

    /// Prefix activations of at most [`Self::prompts_at_once`] prompts, `[T, width]` each, or `[1, embed_dim]`. As with images,
    /// those that share a pass are filled up with repeats, and to the longest that a prompt can be.
    fn text_prefixes(&self, prompts: &[&Tokens]) -> Vec<Tensor> {
        let depth = self.trainable.text_depth;
        let filled: Vec<&Tokens> = prompts.iter().copied().cycle().take(self.prompts_at_once).collect();
        let (mut ids, ends) = self.clip.token_ids(&filled);
        if self.prompts_at_once > 1 {
            ids = ids.constant_pad_nd([0, self.clip.config.context_length as i64 - ids.size()[1]]);
        }
        let activations = tch::no_grad(|| self.clip.text_prefix(&ids, &ends, depth));
        let own = |(tokens, row): (&&Tokens, Tensor)| match depth {
            Depth::Whole => row.unsqueeze(0),
            _ => row.narrow(0, 0, tokens.ids.len() as i64),
        };
        prompts.iter().zip(activations.unbind(0)).map(own).collect()
    }
}

/// Numbers distinct things in the order they come.
#[derive(Default)]
struct Distinct {
    order: Vec<u32>,
    places: HashMap<u32, i64>,
}

impl Distinct {
    fn place(&mut self, thing: u32) -> i64 {
        *self.places.entry(thing).or_insert_with(|| {
            self.order.push(thing);
            self.order.len() as i64 - 1
        })
    }
}

/// The distinct images of `rows` in the order a batch needs them.
pub fn distinct_images(rows: &[Triplet]) -> Vec<u32> {
    let mut images = Distinct::default();
    for row in rows {
        images.place(row.positive);
        images.place(row.negative);
    }
    images.order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        train::trainable::TrainingMode,
        weights::{Checkpoint, OpenOptions},
    };

    #[test]
    fn prompts_that_share_a_pass_get_their_own_activations() {
        let checkpoint = Checkpoint::open("random:tiny", OpenOptions::default()).unwrap();
        let clip = Clip::load(&checkpoint, Device::Cpu, Kind::Float, |_| false).unwrap();
        let prompts = ["a fox", "an owl in the snow, at night", "", "two boats", "a house"];
        let tokens = prompts.map(|prompt| Tokenizer::openai().encode(prompt, 77));
        for mode in [TrainingMode::VisualUpperLayersTextualUpperLayers, TrainingMode::Visual] {
            let trainable = Trainable::new(mode, &clip.config);
            let fetcher = Fetcher::new(PrefixCache::off(), DecodeOptions::default(), &clip.config, trainable);
            let encode = |prompts_at_once: usize| -> Vec<Tensor> {
                let encoder = Encoder { prompts_at_once, ..Encoder::new(&clip, trainable, &fetcher) };
                let prefixes = |chunk: &[Tokens]| encoder.text_prefixes(&chunk.iter().collect::<Vec<_>>());
                tokens.chunks(prompts_at_once).flat_map(prefixes).collect()
            };
            for (alone, shared) in encode(1).iter().zip(encode(4)) {
                assert_eq!(alone.size(), shared.size(), "{mode:?}");
                let apart = (alone - shared).abs().max().double_value(&[]);
                assert!(apart < 1e-5, "{mode:?}: {apart}");
            }
        }
    }
}
