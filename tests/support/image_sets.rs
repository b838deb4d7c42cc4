//! Sets of generated images for `evaluate`.

use image::{Rgb, RgbImage};

use crate::support::harness::Workspace;

/// Writes `name/set.csv` and its images in hue `hue`: an image, of this width and height, for every seed of every prompt.
pub(crate) fn write_set(work: &Workspace, name: &str, hue: u8, prompts: &[(&str, &[[u32; 2]])]) {
    fs_err::create_dir(work.path(name)).unwrap();
    let mut table = "prompt,path,seed\n".to_owned();
    for (prompt, (words, sizes)) in prompts.iter().enumerate() {
        for (seed, [width, height]) in (0_u32..).zip(*sizes) {
            let path = format!("{prompt}-{seed}.png");
            let shade = |x: u32, y: u32| (x * y * (seed + 1) + 40 * prompt as u32) as u8;
            let picture = RgbImage::from_fn(*width, *height, |x, y| Rgb([shade(x, y), hue, shade(y, 3)]));
            picture.save(work.path(name).join(&path)).unwrap();
            table += &format!("\"{}\",{path},{seed}\n", words.replace('"', "\"\""));
        }
    }
    work.write(&format!("{name}/set.csv"), table);
}
