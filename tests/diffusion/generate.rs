//! `diffusion generate`: what it writes, and that an image depends on its prompt and seed only.

use parquet::{
    file::reader::{FileReader, SerializedFileReader},
    record::{Field, Row},
};
use serde_json::Value;

use crate::support::{harness::Workspace, tensors};

pub(crate) const TINY: &str = "diffusion generate --model random:sd-tiny --device cpu --steps 3";

fn rows(work: &Workspace, table: &str) -> Vec<Row> {
    let file = fs_err::File::open(work.path(table)).unwrap().into_parts().0;
    SerializedFileReader::new(file).unwrap().get_row_iter(None).unwrap().map(Result::unwrap).collect()
}

fn cell(row: &Row, name: &str) -> String {
    let (_, field) = row.get_column_iter().find(|(column, _)| *column == name).unwrap();
    match field {
        Field::Str(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(crate) fn pixels(work: &Workspace, file: &str) -> image::RgbImage {
    image::load_from_memory(&work.bytes(file)).unwrap().into_rgb8()
}

/// The text chunk `keyword` of a PNG.
fn chunk(work: &Workspace, file: &str, keyword: &str) -> String {
    let bytes = work.bytes(file);
    let mut rest = &bytes[8..];
    while rest.len() > 8 {
        let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        let data = &rest[8..8 + length];
        if let Some(text) = data.strip_prefix(format!("{keyword}\0").as_bytes()).filter(|_| rest[4..8] == *b"tEXt") {
            return String::from_utf8(text.to_vec()).unwrap();
        }
        rest = &rest[12 + length..];
    }
    panic!("no {keyword} in {file}");
}

#[test]
fn a_run_leaves_images_a_table_and_its_settings() {
    let work = Workspace::new();
    work.write("prompts.csv", "id,prompt\n7,a red fox\n8,\"owl, grey\"\n");
    let run = work.run(&format!(
        "{TINY} --prompts prompts.csv --images_per_prompt 2 --seed 5 --negative_prompt blurry --scheduler euler \
         --contact-sheet --output out"
    ));
    run.succeeds().check(run.stdout == "out/images.parquet\n", "the table on stdout").says("4 image(s)");

    let rows = rows(&work, "out/images.parquet");
    let column = |name: &str| rows.iter().map(|row| cell(row, name)).collect::<Vec<_>>();
    assert_eq!(column("prompt"), ["a red fox", "a red fox", "owl, grey", "owl, grey"]);
    let paths = ["images/00000-0.png", "images/00000-1.png", "images/00001-0.png", "images/00001-1.png"];
    assert_eq!(column("path"), paths);
    assert_eq!(column("prompt_index"), ["0", "0", "1", "1"]);
    assert_eq!(column("index"), ["0", "1", "0", "1"]);
    assert_eq!(column("seed"), ["5", "6", "5", "6"]);
    assert_eq!(column("scheduler"), ["euler"; 4]);
    assert_eq!(column("steps"), ["3"; 4]);
    let picture = pixels(&work, "out/images/00001-1.png");
    assert_eq!(column("width")[0], picture.width().to_string());
    assert_ne!(picture, pixels(&work, "out/images/00001-0.png"));

    let parameters = chunk(&work, "out/images/00001-1.png", "parameters");
    let size = format!("{}x{}", picture.width(), picture.height());
    assert_eq!(
        parameters,
        format!(
            "owl, grey\nNegative prompt: blurry\nSteps: 3, Sampler: Euler, CFG scale: 7.5, Seed: 6, Size: {size}, \
             Model: random:sd-tiny"
        )
    );
    let json: Value = serde_json::from_str(&chunk(&work, "out/images/00001-1.png", "social-reward")).unwrap();
    assert_eq!((json["prompt"].as_str(), json["seed"].as_u64()), (Some("owl, grey"), Some(6)));
    let sheet = pixels(&work, "out/contact-sheet.png");
    assert_eq!((sheet.width(), sheet.height()), (2 * picture.width() + 12, 2 * picture.height() + 12));

    // What a run leaves is itself a config.
    let config: toml::Table = work.text("out/config.toml").parse().unwrap();
    assert_eq!((config["seed"].as_integer(), config["negative_prompt"].as_str()), (Some(5), Some("blurry")));
    work.run("diffusion generate --config out/config.toml --output again").succeeds();
    for path in paths {
        assert!(work.bytes(&format!("out/{path}")) == work.bytes(&format!("again/{path}")), "{path}");
    }
}

#[test]
fn an_image_depends_on_its_prompt_and_seed_only() {
    let work = Workspace::new();
    let prompts = "--prompt fox --prompt owl --prompt 'red fox'";
    for scheduler in ["ddim --eta 1", "dpmpp-2m", "euler-a"] {
        let run = |name: &str, flags: &str| {
            work.run(&format!("{TINY} --scheduler {scheduler} {flags} --output {name}")).succeeds();
        };
        fs_err::remove_dir_all(work.path("all")).ok();
        fs_err::remove_dir_all(work.path("one")).ok();
        run("all", &format!("{prompts} --images-per-prompt 2 --batch-size 5"));
        run("one", "--prompt owl --seed 1 --batch-size 1");
        let (all, one) = (pixels(&work, "all/images/00001-1.png"), pixels(&work, "one/images/00000-0.png"));
        let apart = all.iter().zip(one.iter()).map(|(left, right)| left.abs_diff(*right)).max().unwrap();
        assert!(apart <= 1, "{scheduler}: {apart} levels apart");
        assert_ne!(pixels(&work, "all/images/00001-0.png"), all, "another seed");
        assert_ne!(pixels(&work, "all/images/00000-1.png"), all, "another prompt");
    }
}

#[test]
fn latents_go_out_and_in() {
    let work = Workspace::new();
    let flags = "--prompt fox --prompt owl --images-per-prompt 2";
    work.run(&format!(
        "{TINY} {flags} --seed 3 --save-latents noise.safetensors --save-final-latents new/folder/final.safetensors --output seeds"
    ))
    .succeeds();
    work.run(&format!(
        "{TINY} {flags} --latents noise.safetensors --save-final-latents again.safetensors --output given"
    ))
    .succeeds();
    assert!(work.bytes("new/folder/final.safetensors") == work.bytes("again.safetensors"));
    assert!(work.bytes("new/folder/final.safetensors") != work.bytes("noise.safetensors"));
    assert_eq!(pixels(&work, "seeds/images/00001-1.png"), pixels(&work, "given/images/00001-1.png"));
    assert!(!work.path("seeds/.final-latents").exists());

    work.run(&format!("{TINY} --prompt fox --latents noise.safetensors --output bad"))
        .fails(2, &["noise.safetensors", "`latents` has shape [4, 4, ", "want [1, 4, "]);
    work.run(&format!("{TINY} --prompt fox --latents none.safetensors --output bad")).fails(1, &["none.safetensors"]);
    assert!(!work.path("bad").exists());
}

#[test]
fn what_deserves_a_warning_gets_one() {
    let work = Workspace::new();
    let long = "fox ".repeat(90);
    work.write("prompts.txt", format!("owl\n\n{long}\nowl\n{long}\n"));
    let run = work.run(&format!("{TINY} --prompts prompts.txt --guidance-scale 1 --output out"));
    run.succeeds().says("2 prompt(s) repeat").says("warning: 1 prompt(s) are longer than the 77 tokens").says("92");
    assert_eq!(run.stderr.matches("longer than").count(), 1, "{run}");
    assert_eq!(pixels(&work, "out/images/00000-0.png"), pixels(&work, "out/images/00002-0.png"));
}

#[test]
fn a_size_of_ones_own_and_tiles() {
    let work = Workspace::new();
    let command = format!("{TINY} --prompt fox --height 72 --width 136");
    work.run(&format!("{command} --output whole")).succeeds();
    work.run(&format!("{command} --vae-tile 64 --output tiles")).succeeds();
    for run in ["whole", "tiles"] {
        let picture = pixels(&work, &format!("{run}/images/00000-0.png"));
        assert_eq!((picture.width(), picture.height()), (136, 72));
    }
}

/// Prompts to PNG files, as `StableDiffusionPipeline` of diffusers made them from the same folder and latents.
#[test]
fn images_are_those_of_diffusers() {
    let work = Workspace::new();
    let fixture = work.bytes("golden/pipeline/pipeline.safetensors");
    let (shape, start) = tensors::tensor(&fixture, "start");
    work.write("latents.safetensors", tensors::file(&[("latents".to_owned(), "F32", shape, start.to_vec())]));
    work.run(
        "diffusion generate --model golden/pipeline/model --device cpu --latents latents.safetensors --steps 10 \
         --prompt 'a red house by the sea' --prompt 'Two cats, café & rain 雨' --negative-prompt blurry \
         --height 16 --width 16 --save-final-latents final.safetensors --output out",
    )
    .succeeds();
    let written = work.bytes("final.safetensors");
    let [got, want] = [(&written, "latents"), (&fixture, "ddim.latents")]
        .map(|(file, name)| tensors::floats(tensors::tensor(file, name).1));
    let error = got.iter().zip(&want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
    let largest = want.iter().map(|value| value.abs()).fold(0.0, f32::max);
    assert!(got.len() == want.len() && error <= 1e-4 * largest.max(1.0), "latents are {error} apart");
    let images = tensors::tensor(&fixture, "ddim.images").1;
    for (index, want) in images.chunks(16 * 16 * 3).enumerate() {
        let got = pixels(&work, &format!("out/images/0000{index}-0.png")).into_raw();
        assert!(got.len() == want.len() && got.iter().zip(want).all(|(got, want)| got.abs_diff(*want) <= 1), "{index}");
    }
}
