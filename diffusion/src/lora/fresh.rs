//! New adapters, as PEFT initialises them with `init_lora_weights="gaussian"`: A normal with deviation 1/r, B zero.

use std::collections::BTreeMap;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result, layer::Adapter};

/// Adapters of rank `rank` and scale `alpha / rank` that train, fp32 on the CPU. Every layer of `layers` (shapes of weights by
/// name) whose name is one of `targets` or ends in `.TARGET` gets one. A layer's values depend on its name and `seed` only.
///
/// # Errors
/// A target that no layer has (usage).
pub fn fresh(
    layers: &BTreeMap<String, Vec<i64>>,
    targets: &[String],
    rank: usize,
    alpha: f64,
    seed: u64,
) -> Result<BTreeMap<String, Adapter>> {
    let is_for =
        |name: &str, target: &str| name.strip_suffix(target).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if let Some(target) = targets.iter().find(|target| !layers.keys().any(|name| is_for(name, target))) {
        return Err(Error::usage(format!("lora_targets: no layer of this model is called or ends in `{target}`"))
            .hint(
                "attention: to_q, to_k, to_v, to_out.0; its MLP: ff.net.0.proj, ff.net.2; convolutions: conv1, conv2",
            ));
    }
    let rank = rank as i64;
    let chosen = layers.iter().filter(|(name, _)| targets.iter().any(|target| is_for(name, target)));
    let adapter = |(name, shape): (&String, &Vec<i64>)| {
        let down = [&[rank], &shape[1..]].concat();
        let up = [&[shape[0], rank], &vec![1; shape.len() - 2][..]].concat();
        let mut stream = ChaCha8Rng::from_seed(*blake3::hash(format!("{seed}/adapter/{name}").as_bytes()).as_bytes());
        let normal = |stream: &mut ChaCha8Rng| -> f32 { StandardNormal.sample(stream) };
        let values: Vec<f32> = (0..down.iter().product()).map(|_: i64| normal(&mut stream) / rank as f32).collect();
        let down = Tensor::from_slice(&values).reshape(down).set_requires_grad(true);
        let up = Tensor::zeros(up, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        (name.clone(), Adapter { down, up, scale: alpha / rank as f64 })
    };
    Ok(chosen.map(adapter).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_ends_of_names_and_values_have_their_scale() {
        let shapes = [("a.to_q", vec![8, 64]), ("a.not_to_q", vec![8, 64]), ("b.conv1", vec![6, 5, 3, 3])];
        let layers: BTreeMap<_, _> = shapes.into_iter().map(|(name, shape)| (name.to_owned(), shape)).collect();
        let targets = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let adapters = fresh(&layers, &targets(&["to_q", "conv1"]), 4, 2.0, 0).unwrap();
        assert!(adapters.keys().eq(["a.to_q", "b.conv1"]));
        let (linear, conv) = (&adapters["a.to_q"], &adapters["b.conv1"]);
        assert_eq!((linear.down.size(), linear.up.size()), (vec![4, 64], vec![8, 4]));
        assert_eq!((conv.down.size(), conv.up.size()), (vec![4, 5, 3, 3], vec![6, 4, 1, 1]));
        assert_eq!(linear.scale, 0.5);
        assert!((linear.down.std(true).double_value(&[]) - 0.25).abs() < 0.03);
        assert_eq!(linear.up.abs().max().double_value(&[]), 0.0);
        assert!(linear.down.requires_grad() && linear.up.requires_grad());
        let error = fresh(&layers, &targets(&["to_q", "to_w"]), 4, 2.0, 0).unwrap_err();
        assert!(error.to_string().contains("`to_w`"), "{error}");
    }
}
