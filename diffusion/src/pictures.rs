//! Pictures with prompts to train on, as a table has them.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    path::Path,
};

use reward::{
    clip::{preprocess, preprocessing},
    data::{image, manifest::Manifest, preflight::check_header, source::ImageSource},
    native::memory,
    run::order::{Order, image_seed},
};
use tch::{Device, Kind, Tensor};

use crate::Result;

/// The pictures to train on.
#[derive(Default)]
pub struct Pictures {
    prompts: Vec<String>,
    sources: Vec<ImageSource>,
    /// Index of the prompt and of the picture.
    rows: Vec<(u32, u32)>,
    /// Rows that are never trained on, to watch the loss by.
    held_out: Vec<usize>,
    /// Height and width in pixels.
    size: [u32; 2],
    /// RGB bytes `[3, H, W]` of pictures seen so far, within a budget.
    pixels: RefCell<HashMap<u32, Tensor>>,
    budget: Cell<u64>,
}

/// The distinct prompts of a table of pictures.
///
/// # Errors
/// The table cannot be read.
pub fn prompts(table: &Path) -> Result<Vec<String>> {
    Ok(Manifest::read(table)?.prompts)
}

impl Pictures {
    /// Opens the pictures of `table`, of which `held_out` rows, a tenth at most, never train. `size`: height and width in pixels.
    ///
    /// # Errors
    /// The table or a picture cannot be read.
    pub fn open(table: &Path, held_out: usize, size: [u32; 2], seed: u64) -> Result<Self> {
        let manifest = Manifest::read(table)?;
        let rows: Vec<(u32, u32)> = manifest.rows.iter().map(|row| (row.prompt, row.image)).collect();
        // A tenth at most, and every distinct row at least once in training.
        let count = held_out.min(rows.len().div_euclid(10));
        let mut order = Order::of_prompts(rows.len(), image_seed(seed, "held-out rows", 0));
        let pictures = Self {
            held_out: order.full_batch(1, count.max(1))[..count].to_vec(),
            prompts: manifest.prompts,
            sources: manifest.images,
            rows,
            size,
            budget: Cell::new(memory(Device::Cpu).map_or(0, |memory| memory.free.div_euclid(4))),
            ..Self::default()
        };
        pictures.check()?;
        Ok(pictures)
    }

    /// The prompt of row `row`.
    pub fn prompt(&self, row: usize) -> &str {
        &self.prompts[self.rows[row].0 as usize]
    }

    /// Rows that never train.
    pub fn held_out(&self) -> &[usize] {
        &self.held_out
    }

    /// Rows that train.
    pub fn training_rows(&self) -> usize {
        self.rows.len() - self.held_out.len()
    }

    /// Row `index` of those that train, in the table's order.
    pub fn training_row(&self, index: usize) -> usize {
        let mut row = index;
        let mut held_out = self.held_out.clone();
        held_out.sort_unstable();
        for held in held_out {
            row += usize::from(held <= row);
        }
        row
    }

    /// Every picture can be read, before hours of training.
    fn check(&self) -> Result<()> {
        for source in &self.sources {
            check_header(source, |bytes| image::probe(bytes, &source.label()).map(drop))?;
        }
        Ok(())
    }

    /// A picture's RGB bytes, `[3, H, W]`: its centre, resized.
    fn bytes(&self, picture: u32) -> Result<Tensor> {
        if let Some(pixels) = self.pixels.borrow().get(&picture) {
            return Ok(pixels.shallow_clone());
        }
        let [height, width] = self.size.map(i64::from);
        let source = &self.sources[picture as usize];
        let side = height.max(width);
        let how = preprocessing::Preprocessing::default();
        let options = image::DecodeOptions::default();
        let loaded = preprocess::load(&source.read()?, &source.label(), side as u32, &how, &options)?;
        let square = Tensor::from_slice(&loaded.pixels).view([side, side, 3]).permute([2, 0, 1]);
        let (top, left) = ((side - height).div_euclid(2), (side - width).div_euclid(2));
        let pixels = square.narrow(1, top, height).narrow(2, left, width).contiguous();
        let bytes = (3 * height * width) as u64;
        if let Some(left) = self.budget.get().checked_sub(bytes) {
            self.budget.set(left);
            self.pixels.borrow_mut().insert(picture, pixels.shallow_clone());
        }
        Ok(pixels)
    }

    /// Pictures of rows as the VAE takes them, `[B, 3, H, W]`, −1..=1.
    ///
    /// # Errors
    /// A picture cannot be read.
    pub fn pixels(&self, rows: &[usize], device: Device) -> Result<Tensor> {
        let pictures = rows.iter().map(|row| self.bytes(self.rows[*row].1)).collect::<Result<Vec<_>>>()?;
        Ok(Tensor::stack(&pictures, 0).to_device(device).to_kind(Kind::Float) / 127.5 - 1.0)
    }
}
