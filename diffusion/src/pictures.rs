//! Pictures with prompts to train on, as a table has them.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    path::Path,
};

use reward::{
    clip::{preprocess, preprocessing},
    data::{
        image,
        liked::Liked,
        manifest::Manifest,
        preflight::check_header,
        source::ImageSource,
        triplets::{ReadOptions, Triplets},
    },
    native::memory,
    run::order::{Order, image_seed},
    statistics::mean,
};
use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    noise::{self, Stream},
    vae::Vae,
};

/// What tables of pictures say, before any picture is read.
#[derive(Default)]
pub struct Rows {
    /// The distinct prompts.
    pub prompts: Vec<String>,
    images: Vec<ImageSource>,
    /// Index of the prompt and of the picture.
    rows: Vec<(u32, u32)>,
    /// Rows that make one item: 2 of pairs, the preferred picture first.
    per_item: usize,
    /// Whether people liked each row, and what it counts, on average 1; empty where nobody asked.
    likes: Vec<(bool, f64)>,
    hash: String,
}

impl Rows {
    /// Pictures with prompts.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn of_pictures(table: &Path) -> Result<Self> {
        let manifest = Manifest::read(table)?;
        let hash = manifest.content_hash();
        let rows = manifest.rows.iter().map(|row| (row.prompt, row.image)).collect();
        Ok(Self { prompts: manifest.prompts, images: manifest.images, rows, per_item: 1, likes: Vec::new(), hash })
    }

    /// Pairs of pictures of one prompt.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn of_pairs(files: &[String], root: Option<&Path>) -> Result<Self> {
        let triplets = triplets(files, root)?;
        let pair = |row: &reward::data::triplets::Triplet| [(row.prompt, row.positive), (row.prompt, row.negative)];
        let (rows, hash) = (triplets.rows.iter().flat_map(pair).collect(), triplets.content_hash());
        Ok(Self { prompts: triplets.prompts, images: triplets.images, rows, per_item: 2, likes: Vec::new(), hash })
    }

    /// The pictures of triplets one by one: liked are those that were preferred at least once.
    ///
    /// # Errors
    /// A table cannot be read.
    pub fn of_preferred(files: &[String], root: Option<&Path>) -> Result<Self> {
        let triplets = triplets(files, root)?;
        let mut liked = BTreeMap::new();
        for row in &triplets.rows {
            *liked.entry((row.prompt, row.positive)).or_default() = true;
            liked.entry((row.prompt, row.negative)).or_default();
        }
        let hash = triplets.content_hash();
        let (rows, likes) = liked.into_iter().map(|(row, liked)| (row, (liked, 1.0))).unzip();
        Self { prompts: triplets.prompts, images: triplets.images, rows, per_item: 1, likes, hash }
            .with_both_classes(files)
    }

    /// Pictures that people liked or did not.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn of_likes(table: &Path, root: Option<&Path>) -> Result<Self> {
        let liked = Liked::read(table, root)?;
        let centre = mean(&liked.rows.iter().map(|row| row.weight).collect::<Vec<_>>());
        let likes = liked.rows.iter().map(|row| (row.liked, row.weight / centre)).collect();
        let rows = liked.rows.iter().map(|row| (row.prompt, row.image)).collect();
        let hash = liked.content_hash();
        Self { prompts: liked.prompts, images: liked.images, rows, per_item: 1, likes, hash }
            .with_both_classes(&[table.display().to_string()])
    }

    /// Refuses likes that are all the same: there is nothing to tell apart.
    fn with_both_classes(self, files: &[String]) -> Result<Self> {
        let liked = self.likes.iter().filter(|(liked, _)| *liked).count();
        if liked > 0 && liked < self.likes.len() {
            return Ok(self);
        }
        let what = if liked == 0 { "no row is liked" } else { "every row is liked" };
        Err(Error::data(format!("{}: {what}, so that there is nothing to tell apart", files.join(", "))))
    }

    /// Number of rows, and the hash of what they say.
    pub fn content(&self) -> (usize, String) {
        (self.rows.len(), self.hash.clone())
    }
}

fn triplets(files: &[String], root: Option<&Path>) -> Result<Triplets> {
    Triplets::read(files, &ReadOptions { image_root: root.map(Path::to_owned), slice_by: None })
}

/// A picture's latents as a VAE sees them: mean and logarithm of the variance, `[C, h, w]` each.
type Encoded = [Tensor; 2];

/// Pictures to train on.
#[derive(Default)]
pub struct Pictures {
    rows: Rows,
    /// Items that are never trained on, to watch the loss by.
    held_out: Vec<usize>,
    /// Height and width in pixels.
    size: [u32; 2],
    /// RGB bytes `[3, H, W]` of pictures seen so far, within a budget.
    pixels: RefCell<HashMap<u32, Tensor>>,
    /// Latents of pictures seen so far, within the same budget.
    encoded: RefCell<HashMap<u32, Encoded>>,
    budget: Cell<u64>,
}

impl Pictures {
    /// Opens the pictures of `rows`, of which `held_out` items, a tenth at most, never train. `size`: height and width in pixels.
    ///
    /// # Errors
    /// A picture cannot be read.
    pub fn open(rows: Rows, held_out: usize, size: [u32; 2], seed: u64) -> Result<Self> {
        let items = rows.rows.len().div_euclid(rows.per_item.max(1));
        // A tenth at most, and every distinct row at least once in training.
        let count = held_out.min(items.div_euclid(10));
        let mut order = Order::of_prompts(items, image_seed(seed, "held-out rows", 0));
        let pictures = Self {
            held_out: order.full_batch(1, count.max(1))[..count].to_vec(),
            rows,
            size,
            budget: Cell::new(memory(Device::Cpu).map_or(0, |memory| memory.free.div_euclid(4))),
            ..Self::default()
        };
        pictures.check()?;
        Ok(pictures)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.rows.is_empty()
    }

    /// The prompt of row `row`.
    pub fn prompt(&self, row: usize) -> &str {
        &self.rows.prompts[self.rows.rows[row].0 as usize]
    }

    /// Whether people liked row `row`.
    pub fn is_liked(&self, row: usize) -> bool {
        self.rows.likes[row].0
    }

    /// What row `row` counts, on average 1.
    pub fn weight(&self, row: usize) -> f64 {
        self.rows.likes[row].1
    }

    /// Items that never train: rows, or pairs.
    pub fn held_out(&self) -> &[usize] {
        &self.held_out
    }

    /// Items that train, in the table's order.
    pub fn training(&self) -> Vec<usize> {
        let items = self.rows.rows.len().div_euclid(self.rows.per_item.max(1));
        (0..items).filter(|item| !self.held_out.contains(item)).collect()
    }

    /// Whether rows are liked or not.
    pub fn has_likes(&self) -> bool {
        !self.rows.likes.is_empty()
    }

    /// Every picture can be read, before hours of training.
    fn check(&self) -> Result<()> {
        for source in &self.rows.images {
            check_header(source, |bytes| image::probe(bytes, &source.label()).map(drop))?;
        }
        Ok(())
    }

    /// A picture's RGB bytes, `[3, H, W]`, kept within the budget.
    fn bytes(&self, picture: u32) -> Result<Tensor> {
        if let Some(pixels) = self.pixels.borrow().get(&picture) {
            return Ok(pixels.shallow_clone());
        }
        let pixels = self.load(picture)?;
        if self.take(pixels.numel()) {
            self.pixels.borrow_mut().insert(picture, pixels.shallow_clone());
        }
        Ok(pixels)
    }

    /// Takes `bytes` of the budget, if so many are left.
    fn take(&self, bytes: usize) -> bool {
        let left = self.budget.get().checked_sub(bytes as u64);
        self.budget.set(left.unwrap_or(self.budget.get()));
        left.is_some()
    }

    /// A picture's RGB bytes, `[3, H, W]`: its centre, resized.
    fn load(&self, picture: u32) -> Result<Tensor> {
        let [height, width] = self.size.map(i64::from);
        let source = &self.rows.images[picture as usize];
        let side = height.max(width);
        let how = preprocessing::Preprocessing::default();
        let options = image::DecodeOptions::default();
        let loaded = preprocess::load(&source.read()?, &source.label(), side as u32, &how, &options)?;
        let square = Tensor::from_slice(&loaded.pixels).view([side, side, 3]).permute([2, 0, 1]);
        let (top, left) = ((side - height).div_euclid(2), (side - width).div_euclid(2));
        Ok(square.narrow(1, top, height).narrow(2, left, width).contiguous())
    }

    /// Latents of rows as `vae` samples them, times its scaling factor, `[B, C, h, w]`. Each picture is encoded once; its noise
    /// is that of `seeds`, one a row.
    ///
    /// # Errors
    /// A picture cannot be read.
    pub fn latents(&self, rows: &[usize], seeds: &[u64], vae: &Vae) -> Result<Tensor> {
        let one = |(row, seed): (&usize, &u64)| {
            let [mean, log_variance] = self.encode(self.rows.rows[*row].1, vae)?;
            let size = mean.size();
            let noise = noise::normal(*seed, Stream::Posterior, &size).to_device(mean.device());
            Ok((mean + (log_variance * 0.5).exp() * noise) * vae.config.scaling_factor)
        };
        let latents = rows.iter().zip(seeds).map(one).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&latents, 0))
    }

    /// One picture as the VAE sees it; alone, so that its values do not depend on the batch it is first met in.
    fn encode(&self, picture: u32, vae: &Vae) -> Result<Encoded> {
        let handles = |encoded: &Encoded| encoded.each_ref().map(Tensor::shallow_clone);
        if let Some(encoded) = self.encoded.borrow().get(&picture) {
            return Ok(handles(encoded));
        }
        let pixels = as_input(&self.load(picture)?.unsqueeze(0), vae.parameters.device);
        let (mean, log_variance) = tch::no_grad(|| vae.encode(&pixels));
        let encoded = [mean, log_variance].map(|tensor| tensor.squeeze_dim(0).contiguous());
        if self.take(2 * 4 * encoded[0].numel()) {
            self.encoded.borrow_mut().insert(picture, handles(&encoded));
        }
        Ok(encoded)
    }

    /// Pictures of rows as the VAE takes them, `[B, 3, H, W]`, −1..=1.
    ///
    /// # Errors
    /// A picture cannot be read.
    pub fn pixels(&self, rows: &[usize], device: Device) -> Result<Tensor> {
        let pictures = rows.iter().map(|row| self.bytes(self.rows.rows[*row].1)).collect::<Result<Vec<_>>>()?;
        Ok(as_input(&Tensor::stack(&pictures, 0), device))
    }
}

/// Bytes as a VAE takes them, −1..=1.
fn as_input(bytes: &Tensor, device: Device) -> Tensor {
    bytes.to_device(device).to_kind(Kind::Float) / 127.5 - 1.0
}
