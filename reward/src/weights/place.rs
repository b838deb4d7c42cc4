//! A tensor's place in its file, held against the storage that it is a part of.

use std::ops::Range;

use safetensors::Dtype;

/// Where a tensor is in the file.
pub(super) struct Place {
    pub(super) start: u64,
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) elements: usize,
    /// Strides in elements, where the elements do not lie in one piece in their order.
    pub(super) strides: Option<Vec<usize>>,
}

impl Place {
    /// A tensor that begins at element `offset` of a storage.
    ///
    /// # Errors
    /// It reaches beyond its storage, or (where elements are repeated) would have more than `most` bytes.
    pub(super) fn within(
        storage: Range<u64>,
        most: u64,
        dtype: Dtype,
        offset: usize,
        shape: Vec<usize>,
        strides: Vec<usize>,
    ) -> Result<Self, String> {
        let size = dtype.bitsize().div_euclid(8);
        let bytes = storage.end.saturating_sub(storage.start);
        let beyond = || format!("shape {shape:?} from element {offset} does not fit its storage of {bytes} bytes");
        let elements = shape.iter().try_fold(1_usize, |all, side| all.checked_mul(*side)).ok_or_else(beyond)?;
        let mut last = offset;
        let (mut in_order, mut step) = (true, 1_usize);
        for (side, stride) in shape.iter().zip(&strides).rev() {
            let reach = side.saturating_sub(1).checked_mul(*stride);
            last = reach.and_then(|reach| last.checked_add(reach)).ok_or_else(beyond)?;
            in_order &= *side <= 1 || *stride == step;
            step = step.saturating_mul(*side);
        }
        let fits = |count: usize, bytes: u64| count.checked_mul(size).is_some_and(|count| count as u64 <= bytes);
        if elements > 0 && !(last.checked_add(1).is_some_and(|count| fits(count, bytes)) && fits(elements, most)) {
            return Err(beyond());
        }
        let start = storage.start + if elements == 0 { 0 } else { (offset * size) as u64 };
        Ok(Self { start, dtype, shape, elements, strides: (!in_order && elements > 0).then_some(strides) })
    }

    /// Bytes of its elements.
    pub(super) fn bytes(&self) -> u64 {
        self.elements as u64 * (self.dtype.bitsize() as u64).div_ceil(8)
    }
}
