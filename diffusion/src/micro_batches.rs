//! Images a few at a time: how many go through a model at once, and less where memory runs out.

use std::{cell::Cell, ops::Range};

use reward::{
    event::{Event, Observer},
    native::{Failure, empty_cache, guarded},
};
use tch::Device;

use crate::{Error, Result};

/// The size of micro-batches of a run; it shrinks when memory runs out.
pub struct MicroBatches<'a> {
    size: Cell<usize>,
    device: Device,
    observer: &'a dyn Observer,
}

impl<'a> MicroBatches<'a> {
    /// Micro-batches of `size` images at first.
    pub fn new(size: usize, device: Device, observer: &'a dyn Observer) -> Self {
        Self { size: Cell::new(size), device, observer }
    }

    /// Images at a time.
    pub fn size(&self) -> usize {
        self.size.get()
    }

    /// The micro-batches of `count` images.
    fn of(&self, count: usize) -> Vec<Range<usize>> {
        (0..count).step_by(self.size()).map(|start| start..count.min(start + self.size())).collect()
    }

    /// Runs `body` over the micro-batches of `count` images. Where memory runs out, what it made is dropped and it runs again
    /// with micro-batches of half the size.
    ///
    /// # Errors
    /// What `body` says, one image does not fit into memory, or libtorch fails otherwise.
    pub fn run<T>(&self, count: usize, mut body: impl FnMut(&[Range<usize>]) -> Result<T>) -> Result<T> {
        loop {
            let failure = match guarded(|| body(&self.of(count))) {
                Ok(result) => return result,
                Err(Failure::Libtorch(text)) => {
                    return Err(Error::data(format!("training stopped in libtorch: {text}")));
                }
                Err(failure) => failure,
            };
            if self.size() == 1 {
                return Err(Error::data(format!("out of memory with one image at a time: {failure}"))
                    .hint("gradient_checkpointing = \"on\", precision = \"bf16\", a smaller height and width"));
            }
            empty_cache(self.device);
            self.size.set(self.size().div_ceil(2));
            let note = format!(
                "out of memory ({failure}): going on with micro-batches of {}, the effective batch stays",
                self.size()
            );
            self.observer.event(&Event::Warning(&note));
        }
    }
}
