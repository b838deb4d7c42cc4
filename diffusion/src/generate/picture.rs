//! PNG files that say how they were made: a `parameters` chunk as web UIs write and read it, and the same as JSON.

use std::{io::Cursor, path::Path};

use reward::{data::image::png_is_whole, files::replace_file};
use serde_json::{Value, json};

use super::{GenerateConfig, plan::PlannedImage};
use crate::{Error, Result, schedule::SamplerName};

/// Keyword of the JSON chunk.
const JSON_CHUNK: &str = "social-reward";

/// 8-bit RGB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// Rows of RGB triples, top to bottom.
    pub rgb: Vec<u8>,
}

/// The settings of an image as JSON: what `images.parquet` has in its row, and the model.
pub fn settings(config: &GenerateConfig, image: &PlannedImage, prompt: &str, size: (u32, u32)) -> Value {
    json!({
        "prompt": prompt,
        "negative_prompt": config.negative_prompt,
        "prompt_index": image.prompt_index,
        "index": image.index,
        "seed": image.seed,
        "model": config.model,
        "steps": config.steps,
        "guidance_scale": config.guidance_scale,
        "scheduler": config.scheduler.to_string(),
        "eta": config.eta,
        "width": size.0,
        "height": size.1,
        "precision": config.precision,
        "lora": config.lora,
        "lora_scale": config.lora_scale,
        "base_steps": config.base_steps,
        "latents": config.latents,
        "version": env!("CARGO_PKG_VERSION"),
    })
}

/// The settings of an image as AUTOMATIC1111's web UI writes them: prompt, negative prompt, a line of `Name: value`.
fn parameters(config: &GenerateConfig, image: &PlannedImage, prompt: &str, size: (u32, u32)) -> String {
    let sampler = match config.scheduler {
        SamplerName::Ddim => "DDIM",
        SamplerName::Dpmpp2m => "DPM++ 2M",
        SamplerName::Euler => "Euler",
        SamplerName::EulerA => "Euler a",
    };
    let negative = match config.negative_prompt.as_str() {
        "" => String::new(),
        text => format!("\nNegative prompt: {text}"),
    };
    let model = config.model.as_deref().unwrap_or_default().trim_end_matches('/');
    let model = model.rsplit('/').next().unwrap_or(model);
    let model = [".safetensors", ".ckpt"].iter().find_map(|end| model.strip_suffix(end)).unwrap_or(model);
    let (width, height) = size;
    format!(
        "{prompt}{negative}\nSteps: {}, Sampler: {sampler}, CFG scale: {}, Seed: {}, Size: {width}x{height}, Model: {model}",
        config.steps, config.guidance_scale, image.seed
    )
}

/// Writes the image with its settings; a file of that name is either the old or the new one, never half.
///
/// # Errors
/// The disk is full or not writable.
pub fn write(
    path: &Path,
    picture: &Picture,
    config: &GenerateConfig,
    image: &PlannedImage,
    prompt: &str,
) -> Result<()> {
    let failed =
        |error: png::EncodingError| Error::data(format!("{}: cannot be written", path.display())).caused_by(error);
    let Picture { width, height, rgb } = picture;
    let size = (*width, *height);
    let json = settings(config, image, prompt, size).to_string();
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, *width, *height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    for (keyword, text) in [("parameters", parameters(config, image, prompt, size)), (JSON_CHUNK, json)] {
        let (keyword, latin1) = (keyword.to_owned(), text.chars().all(|letter| u32::from(letter) < 256));
        // As Pillow: tEXt holds Latin-1, iTXt the rest.
        if latin1 { encoder.add_text_chunk(keyword, text) } else { encoder.add_itxt_chunk(keyword, text) }
            .map_err(failed)?;
    }
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(rgb).map_err(failed)?;
    writer.finish().map_err(failed)?;
    replace_file(path, |partial| Ok(fs_err::write(partial, &bytes)?))
}

/// The [`settings`] that a PNG says it was made from; `None` if it says nothing.
pub fn settings_of(file: &[u8]) -> Option<Value> {
    let reader = png::Decoder::new(Cursor::new(file)).read_info().ok()?;
    let info = reader.info();
    let latin1 = info.uncompressed_latin1_text.iter().map(|chunk| (chunk.keyword.as_str(), Some(chunk.text.clone())));
    let utf8 = info.utf8_text.iter().map(|chunk| (chunk.keyword.as_str(), chunk.get_text().ok()));
    let text = latin1.chain(utf8).find_map(|(keyword, text)| text.filter(|_| keyword == JSON_CHUNK));
    serde_json::from_str(&text?).ok().filter(Value::is_object)
}

/// What there is of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No file.
    Missing,
    /// A PNG that is cut off or damaged.
    Damaged,
    /// The whole image.
    Finished,
}

/// What there is of the image in `folder`, whose [`settings`] are `wanted`.
///
/// # Errors
/// There is a file by its name that is no such image: of another program or of other settings.
pub fn state(folder: &Path, image: &PlannedImage, wanted: &Value) -> Result<State> {
    let path = folder.join(image.path());
    if !path.exists() {
        return Ok(State::Missing);
    }
    let bytes = fs_err::read(&path)?;
    let state = if png_is_whole(&bytes) { State::Finished } else { State::Damaged };
    let place = path.display();
    let Some(found) = settings_of(&bytes) else {
        // The beginning of a PNG that does not reach to its settings, or nothing at all.
        const SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";
        if state == State::Damaged && SIGNATURE.starts_with(&bytes[..bytes.len().min(SIGNATURE.len())]) {
            return Ok(state);
        }
        return Err(Error::usage(format!("{place} is not an image of this program"))
            .hint("remove it, or give another --output"));
    };
    // Another version may know other settings.
    let differs = |name: &&String| *name != "version" && found.get(*name).is_some_and(|found| *found != wanted[*name]);
    match wanted.as_object().and_then(|wanted| wanted.keys().find(differs)) {
        None => Ok(state),
        Some(name) => {
            let (found, wanted) = (&found[name], &wanted[name]);
            let message =
                format!("{place} was made with {name} {found}, wanted {wanted}: the folder holds another run");
            Err(Error::usage(message).hint("give another --output"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_says_how_it_was_made() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fox.png");
        let config = GenerateConfig {
            model: Some("models/sd15.safetensors".to_owned()),
            negative_prompt: "blurry".to_owned(),
            steps: 20,
            ..GenerateConfig::default()
        };
        let image = PlannedImage { number: 0, prompt_index: 0, index: 2, seed: 7 };
        let picture = Picture { width: 2, height: 1, rgb: vec![255, 0, 0, 1, 2, 3] };
        for prompt in ["a red fox", "ein roter Füchs", "赤い狐"] {
            write(&path, &picture, &config, &image, prompt).unwrap();
            let bytes = fs_err::read(&path).unwrap();
            assert_eq!(settings_of(&bytes).unwrap(), settings(&config, &image, prompt, (2, 1)));
            assert!(png_is_whole(&bytes) && !png_is_whole(&bytes[..bytes.len() - 1]));
            let read = image::open(&path).unwrap().into_rgb8();
            assert_eq!((read.width(), read.height(), read.into_raw()), (2, 1, picture.rgb.clone()));
        }
        let large = PlannedImage { seed: u64::MAX, ..image.clone() };
        write(&path, &picture, &config, &large, "a red fox").unwrap();
        assert_eq!(settings_of(&fs_err::read(&path).unwrap()).unwrap()["seed"], u64::MAX);
        write(&path, &picture, &config, &image, "a red fox").unwrap();
        let bytes = String::from_utf8_lossy(&fs_err::read(&path).unwrap()).into_owned();
        let wanted = "parameters\0a red fox\nNegative prompt: blurry\nSteps: 20, Sampler: DDIM, CFG scale: 7.5, Seed: 7, \
                      Size: 2x1, Model: sd15";
        assert!(bytes.contains(wanted), "{bytes}");
        assert_eq!(settings_of(b"no picture"), None);
    }

    #[test]
    fn only_a_whole_image_of_the_same_settings_is_finished() {
        let folder = tempfile::tempdir().unwrap();
        fs_err::create_dir(folder.path().join("images")).unwrap();
        let config = GenerateConfig { model: Some("sd".to_owned()), steps: 20, ..GenerateConfig::default() };
        let image = PlannedImage { number: 0, prompt_index: 0, index: 0, seed: 7 };
        let path = folder.path().join(image.path());
        let wanted = |prompt: &str, config: &GenerateConfig| settings(config, &image, prompt, (8, 8));
        let state = |wanted: &Value| state(folder.path(), &image, wanted);
        let fox = wanted("a red fox", &config);
        assert_eq!(state(&fox).unwrap(), State::Missing);

        let pixels = Picture { width: 8, height: 8, rgb: (0..192).collect() };
        write(&path, &pixels, &config, &image, "a red fox").unwrap();
        assert_eq!(state(&fox).unwrap(), State::Finished);
        let other = GenerateConfig { steps: 50, ..config.clone() };
        for (wanted, name) in
            [(wanted("an owl", &config), "prompt"), (wanted("a red fox", &other), "steps 20, wanted 50")]
        {
            let error = state(&wanted).unwrap_err();
            assert!(error.to_string().contains(name) && error.hint_text().unwrap().contains("--output"), "{error}");
        }

        let whole = fs_err::read(&path).unwrap();
        for length in 0..whole.len() {
            fs_err::write(&path, &whole[..length]).unwrap();
            assert_eq!(state(&fox).unwrap(), State::Damaged, "{length} of {} bytes", whole.len());
        }
        let pixel_data = whole.windows(4).position(|name| name == b"IDAT").unwrap() + 10;
        for place in pixel_data..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1;
            fs_err::write(&path, &damaged).unwrap();
            assert_eq!(state(&fox).unwrap(), State::Damaged, "byte {place}");
        }
        fs_err::write(&path, "my notes").unwrap();
        assert!(state(&fox).unwrap_err().to_string().contains("is not an image of this program"));
    }
}
