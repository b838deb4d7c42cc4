//! The layers of a model by every name that a LoRA file may have for them.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Layers, Model,
    keys::{Key, Name},
};
use crate::single_file::ldm_unet;

/// LDM's names of the parts of a residual block that have weights to adapt, and of the layers that change the size.
const LDM_PARTS: [&str; 6] = ["in_layers.2", "emb_layers.1", "out_layers.3", "skip_connection", "op", "conv"];

/// The layers that names in files can mean.
pub(super) struct Names<'a> {
    layers: &'a Layers,
    /// The UNet's by LDM's names.
    ldm: BTreeMap<String, &'a str>,
    /// By all names, with underscores for dots.
    underscored: BTreeMap<(Model, String), &'a str>,
}

impl<'a> Names<'a> {
    pub(super) fn of(layers: &'a Layers) -> Self {
        let ldm = ldm(layers);
        let mut underscored = BTreeMap::new();
        for (model, known) in [(Model::Unet, &layers.unet), (Model::Text, &layers.text)] {
            for layer in known.keys() {
                underscored.insert((model, layer.replace('.', "_")), layer.as_str());
                if let Some(short) = layer.strip_prefix("text_model.") {
                    underscored.insert((model, short.replace('.', "_")), layer.as_str());
                }
            }
        }
        for (name, layer) in &ldm {
            underscored.insert((Model::Unet, name.replace('.', "_")), *layer);
        }
        Self { layers, ldm, underscored }
    }

    /// The model and the layer that a key is for.
    pub(super) fn resolve(&self, key: &Key) -> Option<(Model, String)> {
        let models = match key.model {
            Some(model) => &[model][..],
            None => &[Model::Unet, Model::Text],
        };
        models.iter().find_map(|&model| Some((model, self.layer(model, &key.layer)?.to_owned())))
    }

    fn layer(&self, model: Model, name: &Name) -> Option<&'a str> {
        let known = |layers: &'a BTreeMap<String, Vec<i64>>, name: &str| {
            layers.get_key_value(name).map(|(layer, _)| layer.as_str())
        };
        match (model, name) {
            (_, Name::Underscored(name)) => self.underscored.get(&(model, name.clone())).copied(),
            (Model::Unet, Name::Dotted(name)) => known(&self.layers.unet, name).or_else(|| self.ldm.get(name).copied()),
            (Model::Text, Name::Dotted(name)) => {
                let short = name.strip_prefix("text_model.").unwrap_or(name);
                known(&self.layers.text, &format!("text_model.{short}"))
            }
        }
    }
}

/// The UNet's layers by LDM's names: all that the table of single files translates into a layer of this model.
fn ldm(layers: &Layers) -> BTreeMap<String, &str> {
    let unet = &layers.unet;
    let blocks: BTreeSet<&str> =
        unet.keys().filter_map(|name| name.split_once(".resnets.")).map(|(block, _)| block).collect();
    let per_level =
        unet.keys().filter(|name| name.starts_with("down_blocks.0.resnets.") && name.ends_with(".conv1")).count();
    let levels = blocks.iter().filter(|block| block.starts_with("down_blocks.")).count();
    let in_transformers = unet.keys().filter_map(|name| name.split_once(".attentions.")?.1.split_once('.'));
    let parts: BTreeSet<&str> = in_transformers.map(|(_, part)| part).chain(LDM_PARTS).collect();
    let positions = levels * (per_level + 1);
    // The size changes after the blocks of a level: the table does not look at where.
    let ends_level =
        |side: &str, position: usize| (position + usize::from(side == "output_blocks")).is_multiple_of(per_level + 1);
    let sides = ["input_blocks", "output_blocks"].into_iter();
    let places = sides.flat_map(|side| (0..=positions).map(move |position| (side, position)));
    let names =
        places.chain([("middle_block", 0), ("middle_block", 1), ("middle_block", 2)]).flat_map(|(side, position)| {
            let inner = if side == "middle_block" {
                vec![String::new()]
            } else {
                (0..3).map(|inner| format!("{inner}.")).collect()
            };
            let fits = move |part: &str| !matches!(part, "op" | "conv") || ends_level(side, position);
            let parts: Vec<&str> = parts.iter().copied().filter(|part| fits(part)).collect();
            inner.into_iter().flat_map(move |inner| {
                parts.clone().into_iter().map(move |part| format!("{side}.{position}.{inner}{part}"))
            })
        });
    let single = ["time_embed.0", "time_embed.2", "input_blocks.0.0", "out.2"].map(str::to_owned);
    let layer = |name: &str| {
        let ours = ldm_unet(&format!("{name}.weight"), per_level)?;
        unet.get_key_value(ours.strip_suffix(".weight")?).map(|(layer, _)| layer.as_str())
    };
    names.chain(single).filter_map(|name| Some((name.clone(), layer(&name)?))).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::lora::keys;

    /// The layers of a UNet shaped as Stable Diffusion 1.5 or 2.1, with LDM's names of them, as diffusers' converter has them.
    fn published(family: &str) -> (Layers, Vec<(String, String)>) {
        let all: Value = serde_json::from_str(include_str!("../../../tests/golden/sd_keys.json")).unwrap();
        let (mut layers, mut names) = (Layers::default(), Vec::new());
        for (key, entry) in all[family]["unet"]["keys"].as_object().unwrap() {
            let name = |key: &str| key.strip_suffix(".weight").map(str::to_owned);
            let shape: Vec<i64> = serde_json::from_value(entry[1].clone()).unwrap();
            let ours = name(entry[0][0].as_str().unwrap()).filter(|_| shape.len() > 1);
            let Some(ours) = ours else { continue };
            names.push((name(key.strip_prefix("model.diffusion_model.").unwrap()).unwrap(), ours.clone()));
            layers.unet.insert(ours, shape);
        }
        (layers, names)
    }

    #[test]
    fn every_ldm_name_is_the_layer_that_diffusers_makes_of_it_and_back() {
        for family in ["sd1", "sd2"] {
            let (layers, published) = published(family);
            assert!(published.len() > 150, "{}", published.len());
            let names = Names::of(&layers);
            let resolve = |key: &str| names.resolve(&keys::parse(key).unwrap());
            for (ldm, ours) in &published {
                let wanted = Some((Model::Unet, ours.clone()));
                for key in [
                    format!("diffusion_model.{ldm}.lora_up.weight"),
                    format!("lora_unet_{}.lora_down.weight", ldm.replace('.', "_")),
                    format!("unet.{ldm}.alpha"),
                    format!("model.diffusion_model.{ldm}.lora_A.weight"),
                    format!("lora_unet_{}.lora_down.weight", ours.replace('.', "_")),
                    format!("unet.{ours}.lora_A.default_0.weight"),
                ] {
                    assert_eq!(resolve(&key), wanted, "{key}");
                }
                let back: Vec<&String> =
                    names.ldm.iter().filter(|(_, layer)| *layer == ours).map(|(ldm, _)| ldm).collect();
                // The table reads an upsampler's place in its block, 1 or 2, as the same.
                assert!(back.contains(&ldm) && (back.len() == 1 || ours.contains("upsamplers")), "{ours}: {back:?}");
            }
            assert_eq!(names.ldm.values().collect::<BTreeSet<_>>().len(), published.len());
            assert_eq!(resolve("diffusion_model.input_blocks.99.1.proj_in.lora_up.weight"), None);
        }
    }
}
