//! Images a few at a time: how many go through a model at once, and less where memory runs out.

use std::{cell::Cell, ops::Range};

use reward::{
    event::{Event, Observer},
    native::{Failure, empty_cache, guarded},
    world::World,
};
use tch::Device;

use crate::{Error, Result};

/// The size of micro-batches of a run; it shrinks when memory runs out. Each rank has its share of every batch.
pub struct MicroBatches<'a> {
    world: &'a World,
    size: Cell<usize>,
    device: Device,
    observer: &'a dyn Observer,
}

impl<'a> MicroBatches<'a> {
    /// Micro-batches of `size` images at first.
    pub fn new(world: &'a World, size: usize, device: Device, observer: &'a dyn Observer) -> Self {
        Self { world, size: Cell::new(size), device, observer }
    }

    /// Images at a time.
    pub fn size(&self) -> usize {
        self.size.get()
    }

    /// The processes that share every batch.
    pub fn world(&self) -> &'a World {
        self.world
    }

    /// The micro-batches of this rank's share of `count` images.
    fn of(&self, count: usize) -> Vec<Range<usize>> {
        let own = self.world.share(count);
        own.clone().step_by(self.size()).map(|start| start..own.end.min(start + self.size())).collect()
    }

    /// Runs `body`, in which ranks may not wait for one another, over the micro-batches of this rank's share of `count` images. Where memory runs out, what it made is dropped and it runs again
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
