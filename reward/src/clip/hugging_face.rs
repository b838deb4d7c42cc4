//! A Hugging Face CLIP folder's `config.json` and `preprocessor_config.json`, read and written as transformers 4 and 5 do.
//!
//! Reference: `CLIPConfig`, `CLIPImageProcessorPil` and `get_image_processor_dict` of transformers 5.24.0.

use std::sync::LazyLock;

use serde_json::{Value, json};

use super::{
    config::{Activation, ClipConfig, EndOfText, TowerConfig, bounds},
    filter::Filter,
    preprocessing::{MEAN, Preprocessing, Resize, STD},
};
use crate::{Error, Result, json::Section};

const MODEL_KEYS: [&str; 6] =
    ["model_type", "projection_dim", "text_config", "text_config_dict", "vision_config", "vision_config_dict"];
const TOWER_KEYS: [&str; 13] = [
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_hidden_layers",
    "hidden_act",
    "layer_norm_eps",
    "projection_dim",
    "image_size",
    "patch_size",
    "num_channels",
    "vocab_size",
    "max_position_embeddings",
    "eos_token_id",
];
/// Keys of towers that look like one of those and are not read.
const TOKEN_KEYS: [&str; 3] = ["bos_token_id", "pad_token_id", "sep_token_id"];
const PICTURE_KEYS: [&str; 19] = [
    "image_processor_type",
    "feature_extractor_type",
    "do_resize",
    "size",
    "default_to_square",
    "use_square_size",
    "resample",
    "do_center_crop",
    "crop_size",
    "do_pad",
    "fill_color",
    "do_convert_rgb",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
    "processor_class",
    "pad_size",
];

impl ClipConfig {
    /// Reads a Hugging Face `CLIPModel` config, with that library's defaults for absent fields. `place`: the file it is from.
    ///
    /// # Errors
    /// Another `model_type`, or a field whose value is not supported, by file and key.
    pub fn from_hugging_face(place: &str, config: &Value) -> Result<Self> {
        let config = Section::of(place, config)?;
        if config.text("model_type")?.is_some_and(|kind| kind != "clip") {
            return Err(config.wrong("model_type", "\"clip\""));
        }
        config.no_slips(&MODEL_KEYS, &[])?;
        let (text, vision) = (section(&config, "text_config")?, section(&config, "vision_config")?);
        let vocab_size = text.whole("vocab_size", bounds::VOCABULARY)?.unwrap_or(49_408);
        let end = text.whole("eos_token_id", 0..=(vocab_size - 1).max(2))?.unwrap_or(49_407);
        let image_size = vision.whole("image_size", bounds::PIXELS)?.unwrap_or(224);
        if vision.get("num_channels").is_some_and(|channels| *channels != 3) {
            return Err(vision.wrong("num_channels", "3"));
        }
        let embed_dim = match config.whole("projection_dim", bounds::WIDTH)? {
            Some(width) => width,
            None => text.whole("projection_dim", bounds::WIDTH)?.unwrap_or(512),
        };
        Ok(Self {
            embed_dim,
            vision: tower(&vision, [768, 12, 12, 3072])?,
            image_size,
            patch_size: vision.whole("patch_size", 1..=image_size)?.unwrap_or(32),
            text: tower(&text, [512, 8, 12, 2048])?,
            context_length: text.whole("max_position_embeddings", bounds::CONTEXT)?.unwrap_or(77),
            vocab_size,
            // 2 was written by mistake for years; transformers pools at the highest id then.
            end_of_text: if end == 2 { EndOfText::HighestId } else { EndOfText::Id(end as u32) },
            preprocessing: Preprocessing::default(),
        })
    }

    /// The `config.json` that `transformers.CLIPModel.from_pretrained` reads.
    pub fn to_hugging_face(&self) -> Value {
        let tower = |tower: &TowerConfig| {
            json!({
                "hidden_size": tower.width,
                "intermediate_size": tower.mlp_width,
                "num_attention_heads": tower.heads,
                "num_hidden_layers": tower.layers,
                "hidden_act": match tower.activation { Activation::QuickGelu => "quick_gelu", Activation::Gelu => "gelu" },
                "layer_norm_eps": tower.layer_norm_eps,
                "projection_dim": self.embed_dim,
                "attention_dropout": 0.0,
            })
        };
        let (mut text, mut vision) = (tower(&self.text), tower(&self.vision));
        text["model_type"] = json!("clip_text_model");
        text["max_position_embeddings"] = json!(self.context_length);
        text["vocab_size"] = json!(self.vocab_size);
        // The highest id is the end token in every CLIP vocabulary; `2` says "pool at the highest id" to transformers.
        text["eos_token_id"] = match self.end_of_text {
            EndOfText::HighestId => json!(2),
            EndOfText::Id(id) => json!(id),
        };
        text["bos_token_id"] = json!(self.vocab_size.saturating_sub(2));
        text["pad_token_id"] = json!(self.vocab_size.saturating_sub(1));
        vision["model_type"] = json!("clip_vision_model");
        vision["image_size"] = json!(self.image_size);
        vision["patch_size"] = json!(self.patch_size);
        vision["num_channels"] = json!(3);
        json!({
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": self.embed_dim,
            "logit_scale_init_value": 2.6592,
            "text_config": text,
            "vision_config": vision,
            "torch_dtype": "float32",
        })
    }
}

/// `text_config`; where there is a `text_config_dict` (OpenAI's own folders carry both), that alone, as transformers fills it
/// with defaults and lets it win.
fn section<'a>(config: &Section<'a>, name: &str) -> Result<Section<'a>> {
    static NOTHING: LazyLock<Value> = LazyLock::new(|| json!({}));
    let section = match config.section(&format!("{name}_dict"))? {
        Some(section) => section,
        None => match config.section(name)? {
            Some(section) => section,
            None => Section::of(format!("{}: {name}", config.place()), &NOTHING)?,
        },
    };
    section.no_slips(&TOWER_KEYS, &TOKEN_KEYS)?;
    Ok(section)
}

/// `defaults`: width, heads, layers, width of the MLP.
fn tower(section: &Section, defaults: [usize; 4]) -> Result<TowerConfig> {
    let activation = match section.text("hidden_act")? {
        None | Some("quick_gelu") => Activation::QuickGelu,
        Some("gelu") => Activation::Gelu,
        Some(_) => {
            let wrong = section.wrong("hidden_act", "\"quick_gelu\" or \"gelu\"");
            return Err(wrong.hint("models with another activation are not supported"));
        }
    };
    let width = section.whole("hidden_size", bounds::WIDTH)?.unwrap_or(defaults[0]);
    let heads = section.whole("num_attention_heads", 1..=width)?.unwrap_or(defaults[1]);
    if !width.is_multiple_of(heads) {
        return Err(Error::data(format!(
            "{}: `num_attention_heads` {heads} does not divide `hidden_size` {width}",
            section.place()
        )));
    }
    Ok(TowerConfig {
        width,
        heads,
        layers: section.whole("num_hidden_layers", bounds::LAYERS)?.unwrap_or(defaults[2]),
        mlp_width: section.whole("intermediate_size", bounds::MLP_WIDTH)?.unwrap_or(defaults[3]),
        activation,
        layer_norm_eps: section.number("layer_norm_eps", f64::MIN_POSITIVE..=1.0)?.unwrap_or(1e-5),
    })
}

impl Preprocessing {
    /// Reads what `CLIPImageProcessor` saves, for a model of `image_size` pixels. `place`: the file it is from.
    ///
    /// # Errors
    /// What this program does not do, or another size than the model's, by file and key.
    pub fn from_hugging_face(place: &str, settings: &Value, image_size: usize) -> Result<Self> {
        let settings = Section::of(place, settings)?;
        settings.no_slips(&PICTURE_KEYS, &[])?;
        for key in ["image_processor_type", "feature_extractor_type"] {
            let known =
                ["CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor"];
            if settings.text(key)?.is_some_and(|kind| !known.contains(&kind)) {
                let wrong = settings.wrong(key, "\"CLIPImageProcessor\"");
                return Err(wrong.hint("pictures of other processors are prepared in ways that are not supported"));
            }
        }
        let resize = resize(&settings, image_size)?;
        let normalized = settings.flag("do_normalize")?.unwrap_or(true);
        let (mean, std) = match normalized {
            true => (triple(&settings, "image_mean", MEAN)?, triple(&settings, "image_std", STD)?),
            false => ([0.0; 3], [1.0; 3]),
        };
        check_std(&settings, "image_std", std)?;
        // Bytes times a factor other than 1/255, less the mean, over the deviation, is 0..=1 less another mean, over another.
        let factor = settings.number("rescale_factor", 1e-6..=1e6)?.unwrap_or(1.0 / 255.0);
        let factor = if settings.flag("do_rescale")?.unwrap_or(true) { factor } else { 1.0 };
        let unit = 255.0 * factor;
        let rescaled = |values: [f32; 3]| values.map(|value| (f64::from(value) / unit) as f32);
        let is_unit = (unit - 1.0).abs() < 1e-6;
        let (mean, std) = if is_unit { (mean, std) } else { (rescaled(mean), rescaled(std)) };
        settings.flag("do_convert_rgb")?;
        let filter = match settings.whole("resample", 0..=Filter::ALL.len() - 1)? {
            Some(number) => Filter::ALL[number],
            None => Filter::Bicubic,
        };
        Ok(Self { resize, filter, mean, std })
    }

    /// The `preprocessor_config.json` that `CLIPImageProcessor` reads. Of pictures that are filled up it knows the words but
    /// not the deed: transformers opens the file and refuses the first picture.
    pub fn to_hugging_face(&self, image_size: usize) -> Value {
        let square = json!({"height": image_size, "width": image_size});
        let mut settings = json!({
            "image_processor_type": "CLIPImageProcessor",
            "processor_class": "CLIPProcessor",
            "do_resize": true,
            "size": match self.resize {
                Resize::Shortest => json!({"shortest_edge": image_size}),
                Resize::Longest { .. } | Resize::Letterbox => json!({"longest_edge": image_size}),
                Resize::Squash => square.clone(),
            },
            "resample": self.filter.number(),
            "do_center_crop": true, "crop_size": square,
            "do_convert_rgb": true,
            "do_rescale": true, "rescale_factor": 1.0 / 255.0,
            "do_normalize": true, "image_mean": self.mean, "image_std": self.std,
        });
        if let Resize::Longest { fill } = self.resize {
            settings["fill_color"] = json!(fill);
        }
        settings
    }
}

/// How a picture becomes square.
fn resize(settings: &Section, image_size: usize) -> Result<Resize> {
    let of_model = |key: &str, found: usize| {
        if found == image_size {
            return Ok(());
        }
        let said = if settings.get(key).is_some() { "is" } else { "is not given, which means" };
        Err(Error::data(format!(
            "{}: `{key}` {said} {found}, but the model's image_size is {image_size}",
            settings.place()
        )))
    };
    if settings.flag("do_resize")? == Some(false) {
        return Err(settings.wrong("do_resize", "true: pictures of any size are read"));
    }
    for key in ["do_pad", "use_square_size"] {
        if settings.flag(key)? == Some(true) {
            return Err(settings.wrong(key, "false"));
        }
    }
    let wrong = || settings.wrong("size", "a number, {\"shortest_edge\"} or {\"height\", \"width\"}");
    let resize = match settings.get("size") {
        None => (Resize::Shortest, 224),
        Some(Value::Number(_)) => {
            let squash = settings.flag("default_to_square")?.unwrap_or(false);
            let size = settings.whole("size", bounds::PIXELS)?.unwrap_or(224);
            (if squash { Resize::Squash } else { Resize::Shortest }, size)
        }
        Some(Value::Object(_)) => {
            let size = settings.section("size")?.ok_or_else(wrong)?;
            let mut keys: Vec<&str> = size.keys().filter(|key| size.get(key).is_some()).collect();
            keys.sort_unstable();
            match keys[..] {
                ["shortest_edge"] => (Resize::Shortest, size.whole("shortest_edge", bounds::PIXELS)?.unwrap_or(0)),
                ["longest_edge"] => {
                    let fill = settings.whole("fill_color", 0..=255)?.unwrap_or(0);
                    (Resize::Longest { fill: fill as u8 }, size.whole("longest_edge", bounds::PIXELS)?.unwrap_or(0))
                }
                ["height", "width"] => {
                    let (height, width) = (size.whole("height", bounds::PIXELS)?, size.whole("width", bounds::PIXELS)?);
                    if height != width {
                        return Err(settings.wrong("size", "a square"));
                    }
                    (Resize::Squash, height.unwrap_or(0))
                }
                _ => return Err(wrong()),
            }
        }
        Some(_) => return Err(wrong()),
    };
    of_model("size", resize.1)?;
    if settings.flag("do_center_crop")?.unwrap_or(true) {
        let crop = match settings.get("crop_size") {
            None => 224,
            Some(Value::Number(_)) => settings.whole("crop_size", bounds::PIXELS)?.unwrap_or(0),
            Some(_) => {
                let crop = settings.section("crop_size")?;
                let side = |key| crop.as_ref().map_or(Ok(None), |crop| crop.whole(key, bounds::PIXELS));
                match (side("height")?, side("width")?) {
                    (Some(height), Some(width)) if height == width => height,
                    _ => return Err(settings.wrong("crop_size", "a number, or a square {\"height\", \"width\"}")),
                }
            }
        };
        of_model("crop_size", crop)?;
    } else if resize.0 == Resize::Shortest {
        return Err(settings.wrong("do_center_crop", "true: pictures that are not cropped are not square"));
    }
    Ok(resize.0)
}

/// Three numbers, or one for all.
pub(super) fn triple(settings: &Section, key: &str, default: [f32; 3]) -> Result<[f32; 3]> {
    let wrong = || settings.wrong(key, "a number, or three, from -1000000 to 1000000");
    let number = |value: &Value| value.as_f64().filter(|number| number.abs() <= 1e6).map(|number| number as f32);
    match settings.get(key) {
        None => Ok(default),
        Some(Value::Array(values)) => {
            let numbers: Option<Vec<f32>> = values.iter().map(number).collect();
            numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(wrong)
        }
        Some(value) => number(value).map(|number| [number; 3]).ok_or_else(wrong),
    }
}

/// Refuses a deviation that nothing can be divided by.
pub(super) fn check_std(settings: &Section, key: &str, std: [f32; 3]) -> Result<()> {
    if std.iter().all(|std| *std >= 1e-6) { Ok(()) } else { Err(settings.wrong(key, "numbers above 0")) }
}

#[cfg(test)]
mod tests;
