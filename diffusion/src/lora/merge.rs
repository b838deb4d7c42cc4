//! Adapters added into the weights they are for, and taken out again.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

use tch::{Kind, Tensor};

use crate::{Error, Result, layer::Adapter, weights::Parameters};

/// What merging changed; dropping it keeps the merged weights.
#[derive(Debug)]
pub struct Merged {
    /// The weights before, by key.
    saved: BTreeMap<String, Tensor>,
}

/// Adds `scale · up · down` to the weight of each layer, in fp32 whatever the kind of the weight, in place: the layers that hold
/// the weight see it. (Merging into bf16 weights rounds small updates away.)
///
/// # Errors
/// An adapter is for a layer that is not there, or of another shape; nothing is changed then.
pub fn merge(parameters: &Parameters, adapters: &BTreeMap<String, Adapter>) -> Result<Merged> {
    let mut updates = Vec::new();
    for (layer, adapter) in adapters {
        let key = format!("{layer}.weight");
        let weight = parameters
            .tensors
            .get(&key)
            .ok_or_else(|| Error::data(format!("an adapter is for `{layer}`, which this model does not have")))?;
        let fits = adapter.up.size().first() == weight.size().first()
            && adapter.down.size().get(1..) == weight.size().get(1..)
            && adapter.down.size().first() == adapter.up.size().get(1);
        if !fits {
            return Err(Error::data(format!(
                "the adapter of `{layer}` has shapes {:?} and {:?}, its weight {:?}",
                adapter.down.size(),
                adapter.up.size(),
                weight.size()
            )));
        }
        updates.push((key, weight, adapter));
    }
    let mut merged = Merged { saved: BTreeMap::new() };
    let all = AssertUnwindSafe(|| {
        let _no_grad = tch::no_grad_guard();
        for (key, weight, adapter) in updates {
            let sum = weight.to_kind(Kind::Float) + delta(adapter).to_device(weight.device());
            merged.saved.insert(key, weight.copy());
            weight.shallow_clone().copy_(&sum.to_kind(weight.kind()));
        }
    });
    match catch_unwind(all) {
        Ok(()) => Ok(merged),
        Err(panic) => {
            // Memory ran out half-way: nothing stays merged.
            merged.unmerge(parameters);
            resume_unwind(panic)
        }
    }
}

impl Merged {
    /// Puts back the tensors that were there before merging, to the bit.
    pub fn unmerge(self, parameters: &Parameters) {
        tch::no_grad(|| {
            for (key, before) in self.saved {
                if let Some(weight) = parameters.tensors.get(&key) {
                    weight.shallow_clone().copy_(&before);
                }
            }
        });
    }
}

/// The update of a weight, in the weight's shape, fp32: `scale · up · down`.
pub(crate) fn delta(adapter: &Adapter) -> Tensor {
    let Adapter { down, up, scale } = adapter;
    let shape = [&up.size()[..1], &down.size()[1..]].concat();
    let (down, up) = (down.to_kind(Kind::Float).flatten(1, -1), up.to_kind(Kind::Float).flatten(1, -1));
    (up.matmul(&down) * *scale).reshape(shape)
}
