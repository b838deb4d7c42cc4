//! Decoding with less memory: one image at a time, or in tiles whose overlaps are blended (as diffusers' `enable_slicing` and
//! `enable_tiling` do). A tile does not see the rest of the image, so tiled images differ slightly.

use tch::{Kind, Tensor};

use super::Vae;

/// How to decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DecodeOptions {
    /// One image of the batch at a time.
    pub slicing: bool,
    /// Images with a side above this many pixels are decoded in square tiles of this side.
    pub tile_side: Option<i64>,
}

impl Vae {
    /// As [`Vae::decode`], with less memory where `options` say so.
    pub fn decode_with(&self, latents: &Tensor, options: DecodeOptions) -> Tensor {
        if options.slicing && latents.size()[0] > 1 {
            let images: Vec<_> = latents.split(1, 0).iter().map(|one| self.decode_tiles(one, options)).collect();
            return Tensor::cat(&images, 0);
        }
        self.decode_tiles(latents, options)
    }

    fn decode_tiles(&self, latents: &Tensor, options: DecodeOptions) -> Tensor {
        let [_, _, height, width] = latents.size()[..] else { return self.decode(latents) };
        let factor = self.config.factor();
        let Some(tile) = options.tile_side.map(|side| side.div_euclid(factor).max(4)) else {
            return self.decode(latents);
        };
        if height <= tile && width <= tile {
            return self.decode(latents);
        }
        // A quarter of a tile overlaps the one before.
        let overlap = tile.div_euclid(4);
        let (stride, blended) = (tile - overlap, overlap * factor);
        let starts = |size: i64| (0..size).step_by(stride as usize);
        let part = |image: &Tensor, dimension: i64| {
            image.narrow(dimension, 0, image.size()[dimension as usize].min(stride * factor))
        };
        let mut above: Vec<Tensor> = Vec::new();
        let mut rows = Vec::new();
        for top in starts(height) {
            let mut row: Vec<Tensor> = Vec::new();
            let mut parts = Vec::new();
            for (column, left) in starts(width).enumerate() {
                let latent = latents.narrow(2, top, tile.min(height - top)).narrow(3, left, tile.min(width - left));
                let mut image = self.decode(&latent);
                if let Some(above) = above.get(column) {
                    image = blend(above, &image, 2, blended);
                }
                if let Some(left) = row.last() {
                    image = blend(left, &image, 3, blended);
                }
                parts.push(part(&part(&image, 2), 3));
                row.push(image);
            }
            rows.push(Tensor::cat(&parts, 3));
            above = row;
        }
        Tensor::cat(&rows, 2)
    }
}

/// `image`, whose first `extent` lines along `dimension` go over linearly from the last ones of `before`.
fn blend(before: &Tensor, image: &Tensor, dimension: i64, extent: i64) -> Tensor {
    let (length, size) = (before.size()[dimension as usize], image.size()[dimension as usize]);
    let extent = extent.min(length).min(size);
    let mut shape = [1; 4];
    shape[dimension as usize] = extent;
    let weight = (Tensor::arange(extent, (Kind::Float, image.device())) / extent as f64).view(shape);
    let before = before.narrow(dimension, length - extent, extent);
    let mixed = before.lerp_tensor(&image.narrow(dimension, 0, extent), &weight);
    Tensor::cat(&[mixed, image.narrow(dimension, extent, size - extent)], dimension)
}
