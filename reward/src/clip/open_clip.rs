//! `open_clip_config.json`: what open_clip saves beside its weights, and their folder on the hub holds.
//!
//! Reference: `CLIPVisionCfg`, `CLIPTextCfg` of `open_clip/model.py`, `PreprocessCfg` of `open_clip/transform.py`
//! (open_clip_torch 3.3.0). Deviations: keys of `preprocess_cfg` that it drops in silence, and a `size` unlike the model's,
//! which it replaces, are refused.

use serde_json::{Value, json};

use super::{
    config::{Activation, ClipConfig, EndOfText, TowerConfig, bounds},
    filter::Filter,
    hugging_face::{check_std, triple},
    preprocessing::{MEAN, Preprocessing, Resize, STD},
};
use crate::{Error, Result, json::Section};

/// What a key must be for its tower to be that of a plain CLIP.
enum Must {
    /// Absent, or null.
    Absent,
    /// This, or absent.
    Be(Value),
    /// Anything: it changes training only, or nothing where its feature is off.
    Any,
}

impl ClipConfig {
    /// Reads `open_clip_config.json`, architecture and preprocessing. `place`: the file it is from.
    ///
    /// # Errors
    /// A model that is no plain CLIP with a vision transformer, or a value that is not supported, by file and key.
    pub fn from_open_clip(place: &str, document: &Value) -> Result<Self> {
        let document = Section::of(place, document)?;
        document.only(&["model_cfg", "preprocess_cfg"])?;
        let model = required(&document, "model_cfg")?;
        let (vision, text) = (required(&model, "vision_cfg")?, required(&model, "text_cfg")?);
        only_plain(
            &model,
            &["embed_dim", "vision_cfg", "text_cfg", "quick_gelu"],
            &[
                ("custom_text", Must::Any),
                ("init_logit_scale", Must::Any),
                ("init_logit_bias", Must::Absent),
                ("nonscalar_logit_scale", Must::Any),
                ("multimodal_cfg", Must::Absent),
                ("cast_dtype", Must::Any),
                ("output_dict", Must::Any),
            ],
        )?;
        only_plain(
            &vision,
            &["layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "norm_kwargs"],
            &[
                ("patch_dropout", Must::Any),
                ("attentional_pool", Must::Be(json!(false))),
                ("attn_pooler_queries", Must::Any),
                ("attn_pooler_heads", Must::Any),
                ("no_ln_pre", Must::Be(json!(false))),
                ("pos_embed_type", Must::Be(json!("learnable"))),
                ("pool_type", Must::Be(json!("tok"))),
                ("timm_model_name", Must::Absent),
                ("timm_model_pretrained", Must::Any),
                ("timm_pool", Must::Any),
                ("timm_proj", Must::Any),
                ("timm_proj_bias", Must::Any),
                ("timm_drop", Must::Any),
                ("timm_drop_path", Must::Any),
            ],
        )?;
        only_plain(
            &text,
            &[
                "context_length",
                "vocab_size",
                "width",
                "heads",
                "layers",
                "mlp_ratio",
                "norm_kwargs",
                "pool_type",
                "eos_id",
            ],
            &[
                ("hf_tokenizer_name", Must::Absent),
                ("tokenizer_mode", Must::Absent),
                ("tokenizer_kwargs", Must::Absent),
                ("embed_cls", Must::Be(json!(false))),
                ("pad_id", Must::Any),
                ("no_causal_mask", Must::Be(json!(false))),
                ("proj_bias", Must::Be(json!(false))),
                ("proj_type", Must::Be(json!("linear"))),
                ("hf_model_name", Must::Absent),
                ("hf_model_pretrained", Must::Any),
                ("hf_proj_type", Must::Any),
                ("hf_pooler_type", Must::Any),
            ],
        )?;
        let activation =
            if model.flag("quick_gelu")?.unwrap_or(false) { Activation::QuickGelu } else { Activation::Gelu };
        let vision_width = vision.whole("width", bounds::WIDTH)?.unwrap_or(768);
        let head_width = vision.whole("head_width", 1..=vision_width)?.unwrap_or(64);
        let text_width = text.whole("width", bounds::WIDTH)?.unwrap_or(512);
        let text_heads = text.whole("heads", 1..=text_width)?.unwrap_or(8);
        let vocab_size = text.whole("vocab_size", bounds::VOCABULARY)?.unwrap_or(49_408);
        let image_size = square(&vision, "image_size")?.unwrap_or(224);
        if vision.get("layers").is_some_and(Value::is_array) {
            return Err(vision.wrong("layers", "a number of blocks: ResNet towers are not supported"));
        }
        let end_of_text = match text.text("pool_type")? {
            None | Some("argmax") => EndOfText::HighestId,
            Some("eos") => EndOfText::Id(text.whole("eos_id", 0..=vocab_size - 1)?.unwrap_or(2) as u32),
            Some(_) => return Err(text.wrong("pool_type", "\"argmax\" or \"eos\"")),
        };
        Ok(Self {
            embed_dim: model.whole("embed_dim", bounds::WIDTH)?.ok_or_else(|| model.wrong("embed_dim", "a number"))?,
            vision: tower(&vision, vision_width, vision_width.div_euclid(head_width), activation)?,
            image_size,
            patch_size: square(&vision, "patch_size")?.unwrap_or(16),
            text: tower(&text, text_width, text_heads, activation)?,
            context_length: text.whole("context_length", bounds::CONTEXT)?.unwrap_or(77),
            vocab_size,
            end_of_text,
            preprocessing: match document.section("preprocess_cfg")? {
                Some(settings) => Preprocessing::from_open_clip(&settings, image_size)?,
                None => Preprocessing::default(),
            },
        })
    }
}

impl Preprocessing {
    fn from_open_clip(settings: &Section, image_size: usize) -> Result<Self> {
        settings.only(&["size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"])?;
        if settings.text("mode")?.is_some_and(|mode| mode != "RGB") {
            return Err(settings.wrong("mode", "\"RGB\""));
        }
        if square(settings, "size")?.is_some_and(|size| size != image_size) {
            return Err(settings.wrong("size", format!("the model's image_size, {image_size}")));
        }
        let fill = settings.whole("fill_color", 0..=255)?.unwrap_or(0) as u8;
        let resize = match settings.text("resize_mode")? {
            None | Some("shortest") => Resize::Shortest,
            Some("longest") => Resize::Longest { fill },
            Some("squash") => Resize::Squash,
            Some(_) => return Err(settings.wrong("resize_mode", "\"shortest\", \"longest\" or \"squash\"")),
        };
        let filter = match settings.text("interpolation")? {
            // Random is for training; pictures are then judged with bicubic ones.
            None | Some("bicubic" | "random") => Filter::Bicubic,
            Some("bilinear") => Filter::Bilinear,
            Some(_) => return Err(settings.wrong("interpolation", "\"bicubic\" or \"bilinear\"")),
        };
        let (mean, std) = (triple(settings, "mean", MEAN)?, triple(settings, "std", STD)?);
        check_std(settings, "std", std)?;
        Ok(Self { resize, filter, mean, std })
    }
}

fn required<'a>(section: &Section<'a>, key: &str) -> Result<Section<'a>> {
    section.section(key)?.ok_or_else(|| {
        section.wrong(key, "an object").hint("want the open_clip_config.json that open_clip's push_to_hf_hub writes")
    })
}

/// Refuses keys that are neither `read` nor known, and those whose value makes it another model.
fn only_plain(section: &Section, read: &[&str], others: &[(&str, Must)]) -> Result<()> {
    // Of both towers, and of no plain CLIP.
    let common = [
        ("ls_init_value", Must::Absent),
        ("final_ln_after_pool", Must::Be(json!(false))),
        ("output_tokens", Must::Be(json!(false))),
        ("act_kwargs", Must::Absent),
        ("block_type", Must::Be(json!("default"))),
        ("qk_norm", Must::Be(json!(false))),
        ("scaled_cosine_attn", Must::Be(json!(false))),
        ("scale_heads", Must::Be(json!(false))),
        ("scale_attn_inner", Must::Be(json!(false))),
        ("scale_attn", Must::Be(json!(false))),
        ("scale_fc", Must::Be(json!(false))),
    ];
    let known: Vec<&str> = read.iter().copied().chain(others.iter().chain(&common).map(|(key, _)| *key)).collect();
    section.only(&known)?;
    for (key, must) in others.iter().chain(&common) {
        let Some(value) = section.get(key) else { continue };
        let is_empty = value.as_object().is_some_and(serde_json::Map::is_empty);
        let wrong = match must {
            Must::Any => continue,
            Must::Absent if is_empty => continue,
            Must::Be(wanted) if value == wanted => continue,
            Must::Absent => section.wrong(key, "no such part"),
            Must::Be(wanted) => section.wrong(key, wanted),
        };
        return Err(wrong.hint("models that are no plain CLIP with a vision transformer are not supported"));
    }
    Ok(())
}

/// A number, or a list of one or two equal ones.
fn square(section: &Section, key: &str) -> Result<Option<usize>> {
    match section.get(key) {
        Some(Value::Array(sides)) if matches!(sides.len(), 1 | 2) && sides[0] == sides[sides.len() - 1] => {
            let side = sides[0].as_u64().and_then(|side| usize::try_from(side).ok());
            let side = side.filter(|side| bounds::PIXELS.contains(side));
            side.map(Some).ok_or_else(|| section.wrong(key, "a number of pixels"))
        }
        Some(Value::Array(_)) => Err(section.wrong(key, "a square")),
        _ => section.whole(key, bounds::PIXELS),
    }
}

fn tower(section: &Section, width: usize, heads: usize, activation: Activation) -> Result<TowerConfig> {
    if !width.is_multiple_of(heads) {
        return Err(Error::data(format!("{}: {heads} heads do not divide `width` {width}", section.place())));
    }
    let ratio = section.number("mlp_ratio", 1e-3..=64.0)?.unwrap_or(4.0);
    let norm = section.section("norm_kwargs")?;
    let mut layer_norm_eps = 1e-5;
    if let Some(norm) = norm {
        norm.only(&["eps"])?;
        layer_norm_eps = norm.number("eps", f64::MIN_POSITIVE..=1.0)?.unwrap_or(layer_norm_eps);
    }
    Ok(TowerConfig {
        width,
        layers: section.whole("layers", bounds::LAYERS)?.unwrap_or(12),
        heads,
        mlp_width: ((width as f64 * ratio) as usize).max(1),
        activation,
        layer_norm_eps,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document() -> Value {
        json!({
            "model_cfg": {
                "embed_dim": 64,
                "vision_cfg": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 16},
                "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
            },
            "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": 0.5, "interpolation": "bilinear", "resize_mode": "squash"},
        })
    }

    fn with(pointer: &str, value: Value) -> Value {
        let mut document = document();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        document.pointer_mut(parent).unwrap()[key] = value;
        document
    }

    #[test]
    fn architecture_and_preprocessing_are_read() {
        let read = |document: &Value| ClipConfig::from_open_clip("o", document).unwrap();
        let config = read(&document());
        assert_eq!((config.vision.heads, config.vision.mlp_width, config.text.heads), (2, 512, 1));
        assert_eq!((config.vision.activation, config.text.activation), (Activation::Gelu, Activation::Gelu));
        let expected =
            Preprocessing { resize: Resize::Squash, filter: Filter::Bilinear, mean: [0.5; 3], std: [0.5; 3] };
        assert_eq!(config.preprocessing, expected);
        let quick = read(&with("/model_cfg/quick_gelu", json!(true)));
        assert_eq!(quick.activation(), "quick-gelu");
        let long =
            read(&with("/preprocess_cfg", json!({"resize_mode": "longest", "fill_color": 127, "size": [64, 64]})));
        assert_eq!(long.preprocessing.resize, Resize::Longest { fill: 127 });
        assert_eq!(read(&with("/preprocess_cfg", Value::Null)).preprocessing, Preprocessing::default());
        let eps = read(&with("/model_cfg/vision_cfg/norm_kwargs", json!({"eps": 1e-6})));
        assert_eq!((eps.vision.layer_norm_eps, eps.text.layer_norm_eps), (1e-6, 1e-5));
        // What says nothing.
        for (pointer, value) in [
            ("/model_cfg/custom_text", json!(true)),
            ("/model_cfg/vision_cfg/timm_model_name", Value::Null),
            ("/model_cfg/vision_cfg/act_kwargs", json!({})),
            ("/model_cfg/vision_cfg/pool_type", json!("tok")),
            ("/model_cfg/text_cfg/pool_type", json!("argmax")),
            ("/model_cfg/vision_cfg/image_size", json!([64, 64])),
        ] {
            assert_eq!(read(&with(pointer, value)), config, "{pointer}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_file_and_key() {
        for (pointer, value, says) in [
            ("/model_cfg", Value::Null, "o: `model_cfg` is null"),
            ("/model_cfg/embed_dim", json!("64"), "o: model_cfg: `embed_dim` is \"64\""),
            ("/model_cfg/quick_gelu", json!("yes"), "`quick_gelu` is \"yes\""),
            ("/model_cfg/quick_gel", json!(true), "unknown key `quick_gel`"),
            ("/model_cfg/multimodal_cfg", json!({"width": 1}), "`multimodal_cfg`"),
            ("/model_cfg/init_logit_bias", json!(-10), "`init_logit_bias` is -10"),
            (
                "/model_cfg/vision_cfg/timm_model_name",
                json!("vit_base"),
                "vision_cfg: `timm_model_name` is \"vit_base\"",
            ),
            ("/model_cfg/vision_cfg/layers", json!([3, 4, 6, 3]), "ResNet"),
            ("/model_cfg/vision_cfg/layers", json!(1_000_000), "`layers` is 1000000"),
            ("/model_cfg/vision_cfg/pool_type", json!("avg"), "`pool_type` is \"avg\", want \"tok\""),
            ("/model_cfg/vision_cfg/image_size", json!([64, 32]), "want a square"),
            ("/model_cfg/vision_cfg/ls_init_value", json!(1e-5), "`ls_init_value`"),
            ("/model_cfg/vision_cfg/mlp_ratio", json!(1e9), "`mlp_ratio`"),
            ("/model_cfg/text_cfg/hf_model_name", json!("xlm"), "`hf_model_name` is \"xlm\""),
            ("/model_cfg/text_cfg/pool_type", json!("last"), "`pool_type` is \"last\""),
            ("/model_cfg/text_cfg/tokenizer_kwargs", json!({"clean": "canonicalize"}), "`tokenizer_kwargs`"),
            ("/model_cfg/text_cfg/heads", json!(3), "3 heads do not divide"),
            ("/preprocess_cfg/size", json!(224), "preprocess_cfg: `size` is 224, want the model's image_size, 64"),
            ("/preprocess_cfg/interpolation", json!("lanczos"), "`interpolation` is \"lanczos\""),
            ("/preprocess_cfg/resize_mode", json!("fit"), "`resize_mode` is \"fit\""),
            ("/preprocess_cfg/std", json!([0, 1, 1]), "`std` is [0,1,1], want numbers above 0"),
            ("/preprocess_cfg/fill_color", json!(256), "`fill_color` is 256"),
            ("/preprocess_cfg/resize_mod", json!("squash"), "unknown key `resize_mod`"),
        ] {
            let error = ClipConfig::from_open_clip("o", &with(pointer, value)).unwrap_err().to_string();
            assert!(error.starts_with("o: ") && error.contains(says), "{pointer}: {error}");
        }
    }
}
