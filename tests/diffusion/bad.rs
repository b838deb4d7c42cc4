//! `diffusion`: command lines, prompts, models and folders that cannot work.

use crate::{
    diffusion::generate::TINY,
    support::{harness::Workspace, tensors},
};

#[test]
fn wrong_settings_are_named_before_anything_is_touched() {
    let work = Workspace::new();
    for (flags, parts) in [
        ("--steps 0", ["steps = 0", "want 1"]),
        ("--steps 1001", ["1001", "1000"]),
        ("--height 100", ["height = 100", "96 or 104"]),
        ("--width 7", ["width = 7", "multiple of 8"]),
        ("--batch-size 0", ["batch_size = 0", "want 1"]),
        ("--images-per-prompt 0", ["images_per_prompt = 0", "want 1"]),
        ("--eta 2", ["eta = 2", "0 to 1"]),
        ("--eta 0.5 --scheduler euler", ["eta = 0.5", "ddim"]),
        ("--guidance-scale nan", ["guidance_scale", "finite"]),
        ("--lora-scale 0.5", ["lora_scale = 0.5", "--lora"]),
        ("--base-steps 1", ["base_steps = 1", "no --lora"]),
        ("--base-steps 4 --lora x.safetensors", ["base_steps = 4", "want 0 to 3"]),
        ("--scheduler pndm", ["pndm", "--scheduler"]),
        ("--prompts x.txt", ["--prompts", "cannot be used"]),
        ("--model random:sd-tinny", ["random:sd-tinny", ""]),
    ] {
        let base = if flags.starts_with("--steps") { TINY.replace("--steps 3", "") } else { TINY.to_owned() };
        let base = if flags.starts_with("--model") { base.replace("--model random:sd-tiny", "") } else { base };
        work.run(&format!("{base} --prompt fox --output out {flags}")).fails(2, &parts);
    }
    work.run(&format!("{TINY} --prompt fox")).fails(2, &["--output", "missing"]).hints("output");
    work.run(&format!("{TINY} --output out")).fails(2, &["no prompt"]).hints("--prompts");
    work.run("diffusion generate --prompt fox --output out").fails(2, &["--model", "missing"]);
    work.write("run.toml", "model = 'random:sd-tiny'\nstep = 3\n");
    work.run("diffusion generate --config run.toml --prompt fox --output out")
        .fails(2, &["run.toml", "unknown key `step`"])
        .hints("steps");
    work.write("run.toml", "model = 'random:sd-tiny'\nscheduler = 'eular'\n");
    work.run("diffusion generate --config run.toml --prompt fox --output out").fails(2, &["run.toml", "eular"]);
    assert!(!work.path("out").exists());
}

#[test]
fn files_without_prompts_are_named() {
    let work = Workspace::new();
    work.write("empty.txt", "\n  \n");
    work.write("table.csv", "text\nfox\n");
    for (file, parts) in [
        ("empty.txt", ["no prompts in", "empty.txt"]),
        ("table.csv", ["no column `prompt`", "text"]),
        ("none.txt", ["none.txt", "does not exist"]),
    ] {
        work.run(&format!("{TINY} --prompts {file} --output out")).fails(1, &parts);
    }
    assert!(!work.path("out").exists());
}

#[test]
fn what_is_no_model_is_named() {
    let work = Workspace::new();
    fs_err::create_dir_all(work.path("folder")).unwrap();
    work.write("cut.safetensors", "xx");
    for model in ["nowhere", "folder", "cut.safetensors"] {
        let command = format!("{TINY} --prompt fox --output out").replace("random:sd-tiny", model);
        work.run(&command).fails(1, &[model]);
        work.run(&format!("diffusion verify --model {model}")).fails(1, &[model]);
        work.run(&format!("diffusion export --model {model} --output x")).fails(1, &[model]);
    }
    work.run(&format!("{TINY} --prompt fox --output out --lora nothing.safetensors"))
        .fails(1, &["nothing.safetensors"]);
    assert!(!work.path("out/images/00000-0.png").exists());
}

/// A limit on the size of files stands for a disk that is full.
#[test]
fn a_full_disk_leaves_no_half_image() {
    let work = Workspace::new();
    work.run("diffusion export --model random:sd-tiny --output model").succeeds();
    let command = format!("{TINY} --prompt fox --output out").replace("random:sd-tiny", "model");
    let run = work.run_after("ulimit -f 8; trap '' XFSZ;", &command);
    run.fails(1, &["out/images/", "00000-0.png", "too large"]);
    let left: Vec<_> = fs_err::read_dir(work.path("out/images")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    work.run(&command).succeeds();

    work.write("file", "x");
    work.run(&format!("{TINY} --prompt fox --output file/out")).fails(1, &["file/out"]).hints("--output");
    work.run(&format!("{TINY} --prompt fox --output /proc/out")).fails(1, &["/proc/out"]);
}

#[test]
fn values_that_are_not_finite_are_named_with_step_and_precision() {
    let work = Workspace::new();
    for (name, value) in [("nan", f32::NAN), ("huge", 3e38)] {
        let bytes = [value; 4 * 8 * 8].iter().flat_map(|value| value.to_le_bytes()).collect();
        let file = tensors::file(&[("latents".to_owned(), "F32", vec![1, 4, 8, 8], bytes)]);
        work.write(&format!("{name}.safetensors"), file);
    }
    work.run(&format!("{TINY} --prompt fox --latents nan.safetensors --output nan"))
        .fails(1, &["nan.safetensors: tensor `latents`: element 0 is NaN"]);
    for precision in ["fp32", "bf16"] {
        work.run(&format!(
            "{TINY} --prompt fox --latents huge.safetensors --precision {precision} --output {precision}"
        ))
        .fails(1, &["latents are not finite", "after step 1 of 3", precision]);
    }
    assert!(!work.path("fp32/images.parquet").exists());
}
