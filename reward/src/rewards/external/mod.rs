//! Rewards outside this program: a program of the user that runs beside it ([`command`]) or a server ([`http`]).
//!
//! Neither has a gradient. A failure is an error that names the reward: no picture is ever given a score for it.

pub mod command;
pub mod http;
mod process;
mod protocol;

use std::{io::Write, time::Duration};

use rayon::prelude::*;
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// How long an external reward is waited for, and how often it is tried again.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// The longest silence, in seconds, while an answer is due.
    pub timeout_seconds: f64,
    /// How often in a run a command is started again, or a request to a server sent again.
    pub restarts: usize,
}

impl Default for Limits {
    /// The time-out of UniRL's reward service.
    fn default() -> Self {
        Self { timeout_seconds: 120.0, restarts: 0 }
    }
}

impl Limits {
    fn timeout(self) -> Duration {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Duration::try_from_secs_f64(self.timeout_seconds).unwrap_or(DAY)
    }
}

/// Pictures as bytes, RGB, row by row.
struct Pictures {
    width: u32,
    height: u32,
    rgb: Vec<u8>,
}

impl Pictures {
    /// `pixels`: `[B, 3, H, W]`, in 0..=1. A byte is round(x · 255), half to even.
    ///
    /// # Errors
    /// Values that are not finite.
    fn new(pixels: &Tensor) -> Result<Self> {
        let pixels = pixels.detach().to_kind(Kind::Float);
        if pixels.isfinite().all().int64_value(&[]) == 0 {
            return Err(Error::data("pixels to score are not finite (NaN or infinite)"));
        }
        let levels = (pixels.clamp(0.0, 1.0) * 255.0).round().to_kind(Kind::Uint8);
        let levels = levels.permute([0, 2, 3, 1]).contiguous().to_device(Device::Cpu);
        let size = levels.size();
        let rgb = Vec::try_from(levels.view(-1)).map_err(|error| Error::data("pixels to score").caused_by(error))?;
        Ok(Self { width: size[2] as u32, height: size[1] as u32, rgb })
    }

    /// Each of them as a PNG file.
    fn pngs(&self) -> Result<Vec<Vec<u8>>> {
        let encode = |rgb: &[u8]| -> Result<Vec<u8>, png::EncodingError> {
            let mut bytes = Vec::new();
            let mut encoder = png::Encoder::new(&mut bytes, self.width, self.height);
            encoder.set_color(png::ColorType::Rgb);
            encoder.set_depth(png::BitDepth::Eight);
            encoder.set_compression(png::Compression::Fast);
            let mut writer = encoder.write_header()?;
            writer.write_image_data(rgb)?;
            writer.finish()?;
            Ok(bytes)
        };
        let pictures = self.rgb.par_chunks_exact(self.width as usize * self.height as usize * 3);
        let pngs: Result<Vec<_>, _> = pictures.map(encode).collect();
        pngs.map_err(|error| Error::data("a picture to score cannot be written as PNG").caused_by(error))
    }
}

/// Scores `[B]`, fp32, where `pixels` are.
fn tensor(scores: &[f32], pixels: &Tensor) -> Tensor {
    Tensor::from_slice(scores).to_device(pixels.device())
}

/// The score that `value` is, if it is a number that fp32 can hold.
fn score(value: &Value) -> Option<f32> {
    value.as_f64().map(|score| score as f32).filter(|score| score.is_finite())
}

/// What was found where JSON was wanted. Python writes NaN and Infinity, which JSON does not have.
fn not_json(text: &str) -> String {
    let found = cut(text);
    match ["NaN", "Infinity"].into_iter().find(|word| text.contains(word)) {
        Some(word) => format!("`{found}`, which holds {word}: want finite numbers"),
        None => format!("`{found}`, which is no JSON"),
    }
}

/// Shows a line of reward `label` on stderr at once: a program's own stderr would show it there too.
fn tell(label: &str, line: &str) {
    let _ = std::io::stderr().lock().write_all(format!("[{label}] {line}\n").as_bytes());
}

/// The beginning of a text, for a message.
fn cut(text: &str) -> String {
    const LETTERS: usize = 200;
    let text = text.trim();
    match text.char_indices().nth(LETTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_rounded_half_to_even_and_written_losslessly() {
        // 0.5 · 255 = 127.5 goes to 128; 1.5 / 255 and 2.5 / 255 both go to 2, as far as fp32 has them; what is outside is clamped.
        let pixels = Tensor::from_slice(&[0.5_f32, 0.0, 1.0, -1.0, 2.0, 0.25]).view([1, 3, 1, 2]);
        let pictures = Pictures::new(&pixels).unwrap();
        assert_eq!((pictures.width, pictures.height), (2, 1));
        assert_eq!(pictures.rgb, [128, 255, 255, 0, 0, 64]);
        let read = image::load_from_memory(&pictures.pngs().unwrap()[0]).unwrap().to_rgb8();
        assert_eq!((read.dimensions(), read.into_raw()), ((2, 1), pictures.rgb));
        let error = Pictures::new(&(pixels * f64::NAN)).err().unwrap();
        assert_eq!(error.to_string(), "pixels to score are not finite (NaN or infinite)");
    }

    #[test]
    fn long_texts_are_cut_between_letters() {
        assert_eq!(cut(" é\n"), "é");
        assert_eq!(cut(&"é".repeat(201)), format!("{}…", "é".repeat(200)));
    }
}
