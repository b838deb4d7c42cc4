//! What the three models look like: read from diffusers' and transformers' `config.json`, written for saving, and the
//! published configurations as presets. A value that is not supported is an error that names its field.

mod fields;
mod text;
mod unet;
mod vae;

use fields::Fields;
pub use text::{Activation, TextConfig};
pub use unet::UnetConfig;
pub use vae::VaeConfig;

/// The version of diffusers whose layout is written. Below 0.9 diffusers would replace a `sample_size` under 64.
pub(crate) const DIFFUSERS_VERSION: &str = "0.42.1";

/// The names of the presets: `random:NAME` is a model of this architecture.
pub const PRESETS: [&str; 4] = ["sd-tiny", "sd-toy", "sd15", "sd21-base"];

/// The model family that a class of diffusers or transformers belongs to, where it is one that is not supported.
pub fn other_family(class_name: &str) -> Option<&'static str> {
    let families = [
        ("StableDiffusionXL", "Stable Diffusion XL"),
        ("StableDiffusion3", "Stable Diffusion 3"),
        ("SD3", "Stable Diffusion 3"),
        ("Flux", "Flux"),
        ("Inpaint", "inpainting"),
        ("InstructPix2Pix", "InstructPix2Pix"),
        ("Upscale", "upscaling"),
        ("Depth2Img", "depth to image"),
        ("Transformer2D", "diffusion transformer"),
        ("UNet3D", "video"),
        ("UNetMotion", "video"),
        ("Kandinsky", "Kandinsky"),
        ("PixArt", "PixArt"),
    ];
    families.iter().find(|(part, _)| class_name.contains(part)).map(|(_, family)| *family)
}
