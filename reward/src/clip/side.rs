//! One side of a picture on the way to the model: how long it becomes, and the stretch of it that is kept.

/// A side of a picture, and the stretch of it that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Side {
    /// Pixels in the file.
    pub(super) full: u32,
    /// Pixels the whole side has after resizing.
    pub(super) resized: u64,
    /// The first of them that is kept.
    pub(super) offset: u64,
    /// How many are kept.
    pub(super) size: u32,
}

impl Side {
    /// `short` is the shorter side of the picture, the one that becomes `size` pixels.
    pub(super) fn cropped(full: u32, short: u32, size: u32) -> Self {
        let resized = (u64::from(size) * u64::from(full)).div_euclid(u64::from(short));
        let surplus = resized - u64::from(size);
        let half = surplus >> 1;
        // Half of the surplus, and halves round to even.
        Self { full, resized, offset: half + (surplus & half & 1), size }
    }

    /// `length`: what becomes of it, before rounding; never 0 pixels, which the originals fail on.
    pub(super) fn fitted(full: u32, length: f64, size: u32) -> Self {
        let resized = (length.round_ties_even() as u32).clamp(1, size);
        Self { full, resized: u64::from(resized), offset: 0, size: resized }
    }

    pub(super) fn whole(full: u32) -> Self {
        Self { full, resized: u64::from(full), offset: 0, size: full }
    }

    pub(super) fn is_resized(&self) -> bool {
        self.resized != u64::from(self.full)
    }

    /// Start and length of the stretch, in the file's pixels.
    pub(super) fn kept(&self) -> [f64; 2] {
        [self.offset as f64, f64::from(self.size)].map(|place| place * f64::from(self.full) / self.resized as f64)
    }

    /// Pixels to fill up before and after it, to `size` in all.
    pub(super) fn margins(&self, size: u32) -> [u32; 2] {
        let missing = size.saturating_sub(self.size);
        [missing >> 1, missing - (missing >> 1)]
    }
}
