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

/// Adds `scale · up · down` to the weight of each layer in place, in fp32 whatever the kind of the weight. The layers that hold
/// the weight see it. (Merging into bf16 weights rounds small updates away.)
///
/// # Errors
/// An adapter is for a layer that is not there, or of another shape; nothing is changed then.
pub fn merge(parameters: &Parameters, adapters: &BTreeMap<String, Adapter>) -> Result<Merged> {
    check(parameters, adapters)?;
    let updates = adapters.iter().filter_map(|(layer, adapter)| {
        let key = format!("{layer}.weight");
        let weight = parameters.tensors.get(&key)?;
        Some((key, weight, adapter))
    });
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

/// Checks that every adapter has its layer and its layer's shape: `[r, in, ..]` and `[out, r, ..]` of a weight `[out, in, ..]`.
///
/// # Errors
/// An adapter is for a layer that is not there, or of another shape.
pub(crate) fn check(parameters: &Parameters, adapters: &BTreeMap<String, Adapter>) -> Result<()> {
    for (layer, adapter) in adapters {
        let weight = parameters
            .tensors
            .get(&format!("{layer}.weight"))
            .ok_or_else(|| Error::data(format!("an adapter is for `{layer}`, which this model does not have")))?;
        let (down, up, weight) = (adapter.down.size(), adapter.up.size(), weight.size());
        let fits = up.first() == weight.first()
            && down.get(1..) == weight.get(1..)
            && down.first() == up.get(1)
            && up.len() == weight.len()
            && up.iter().skip(2).all(|size| *size == 1);
        if !fits {
            let text = format!("the adapter of `{layer}` has shapes {down:?} and {up:?}, its weight {weight:?}");
            return Err(Error::data(text));
        }
    }
    Ok(())
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
