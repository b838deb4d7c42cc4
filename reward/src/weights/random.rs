//! Seeded random weights at CLIP's initial scales (Radford et al., 2021, section 2.5 and the published code), for tests,
//! benchmarks and training from scratch: `random:tiny`, `random:vit-l-14`, …

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};

use crate::clip::config::ClipConfig;

/// The values of parameter `name` (an OpenAI key of shape `shape`). A tensor's values depend on its name and `seed` only.
pub fn parameter(config: &ClipConfig, name: &str, shape: &[usize], seed: u64) -> Vec<f32> {
    let count = shape.iter().product();
    let tower = if name.starts_with("visual.") { &config.vision } else { &config.text };
    let width = tower.width as f64;
    let residual = width.powf(-0.5) * (2.0 * tower.layers as f64).powf(-0.5);
    let last = name.rsplit("resblocks.").next().and_then(|rest| rest.split_once('.')).map_or(name, |(_, rest)| rest);
    let deviation = match last {
        "logit_scale" => return vec![(1.0_f32 / 0.07).ln()],
        _ if last.ends_with("bias") => return vec![0.0; count],
        _ if last.contains("ln_") => return vec![1.0; count],
        "token_embedding.weight" => 0.02,
        "positional_embedding" => 0.01,
        "attn.out_proj.weight" | "mlp.c_proj.weight" => residual,
        "mlp.c_fc.weight" => (2.0 * width).powf(-0.5),
        "visual.conv1.weight" => (3.0 * (config.patch_size * config.patch_size) as f64).powf(-0.5),
        _ => width.powf(-0.5),
    };
    let mut key = [0; 32];
    key.copy_from_slice(blake3::hash(format!("{seed}/{name}").as_bytes()).as_bytes());
    let mut stream = ChaCha8Rng::from_seed(key);
    // Deviations above are positive and finite, so the distribution exists.
    Normal::new(0.0, deviation as f32)
        .map_or_else(|_| vec![0.0; count], |normal| normal.sample_iter(&mut stream).take(count).collect())
}
