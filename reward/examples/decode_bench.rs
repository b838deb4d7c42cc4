//! Images per second of decoding and preprocessing, beside `benches/peers/decode.py`: one thread, the best round.
//!
//! `cargo run --release -p reward --example decode_bench -- FOLDER_OF_JPEGS [--fast]`
#![allow(clippy::print_stdout, reason = "a benchmark's figure goes to stdout")]

use std::path::Path;
use std::time::Instant;

use reward::clip::preprocess::load;
use reward::data::image::DecodeOptions;

const SIZE: u32 = 224;
const ROUNDS: usize = 3;

fn images_per_second(folder: &Path, options: &DecodeOptions) -> reward::Result<f64> {
    let entries = fs_err::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    let files: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
    let mut best = 0.0_f64;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for file in &files {
            let loaded = load(&fs_err::read(file)?, &file.to_string_lossy(), SIZE, options)?;
            std::hint::black_box(loaded);
        }
        best = best.max(files.len() as f64 / start.elapsed().as_secs_f64());
    }
    Ok(best)
}

fn main() -> reward::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or_else(|| reward::Error::usage("wanted a folder of JPEG files"))?;
    let fast_for = (arguments.next().as_deref() == Some("--fast")).then_some(SIZE);
    let figure = images_per_second(Path::new(&folder), &DecodeOptions { fast_for, ..DecodeOptions::default() })?;
    println!("{{\"images_per_second\": {figure:.1}}}");
    Ok(())
}
