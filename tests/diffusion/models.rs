//! `diffusion verify` and `diffusion export`.

use crate::{
    diffusion::generate::{TINY, pixels},
    support::harness::Workspace,
    support::tensors,
};

#[test]
fn verify_says_that_our_models_are_theirs() {
    let work = Workspace::new();
    let command = "diffusion verify --model random:sd-tiny --device cpu";
    let report = work.run(&format!("{command} --json")).json();
    let components = report["components"].as_array().unwrap();
    let names: Vec<_> = components.iter().map(|component| component["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["text_encoder", "unet", "vae_encoder", "vae_decoder"]);
    for component in components {
        assert_eq!(component["tolerance"], 1e-4);
        let (absolute, relative) = (component["max_abs"].as_f64().unwrap(), component["max_rel"].as_f64().unwrap());
        assert!(absolute > 0.0 && relative < 1e-4, "{component}");
    }
    assert_eq!(report["verdict"], "match");
    let text = work.run(command);
    text.succeeds().check(text.stdout.ends_with("verdict: match\n"), "the verdict");
    let half = work.run(&format!("{command} --precision bf16 --json")).json();
    let error = half["components"][1]["max_rel"].as_f64().unwrap();
    assert!((1e-4..3e-2).contains(&error), "bf16 is used: {error}");
    work.run("diffusion verify").fails(2, &["--model", "missing"]);
}

/// A LoRA of rank 2 for two layers of `random:sd-tiny`, in PEFT's keys.
fn write_lora(work: &Workspace, name: &str) {
    let mut parts = Vec::new();
    for (layer, width) in [
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v", 64),
        ("text_encoder.text_model.encoder.layers.1.self_attn.v_proj", 32),
    ] {
        for (part, shape) in [("lora_A", vec![2, width]), ("lora_B", vec![width, 2])] {
            let bytes = (0..2 * width as u8).flat_map(|index| (f32::from(index % 7) - 3.0).to_le_bytes()).collect();
            parts.push((format!("{layer}.{part}.weight"), "F32", shape, bytes));
        }
    }
    work.write(name, tensors::file(&parts));
}

/// The largest difference in levels.
fn apart(work: &Workspace, left: &str, right: &str) -> u8 {
    let [left, right] = [left, right].map(|run| pixels(work, &format!("{run}/images/00000-0.png")));
    left.iter().zip(right.iter()).map(|(left, right)| left.abs_diff(*right)).max().unwrap()
}

#[test]
fn an_exported_folder_makes_the_same_images() {
    let work = Workspace::new();
    let exported = work.run("diffusion export --model random:sd-tiny --output models/folder");
    exported.succeeds().check(exported.stdout == "models/folder\n", "the output on stdout");
    for file in ["model_index.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"] {
        assert!(work.path("models/folder").join(file).is_file(), "{file}");
    }
    let run = |model: &str, output: &str| {
        let command = TINY.replace("random:sd-tiny", model);
        work.run(&format!("{command} --prompt fox --seed 3 --output {output}")).succeeds();
    };
    run("random:sd-tiny", "random");
    run("models/folder", "saved");
    assert_eq!(apart(&work, "random", "saved"), 0);
    work.run("diffusion verify --model models/folder --device cpu").succeeds();

    work.run("diffusion export --model random:sd-tiny --output models/folder")
        .fails(1, &["models/folder", "holds files"]);
    work.run("diffusion export --model models/folder --precision fp16 --output half").succeeds();
    let size = |folder: &str| work.bytes(&format!("{folder}/unet/diffusion_pytorch_model.safetensors")).len();
    assert!(size("half") * 9 < size("models/folder") * 5);
    run("half", "half-images");
    assert!(apart(&work, "random", "half-images") <= 4);
}

#[test]
fn a_lora_is_applied_merged_and_converted() {
    let work = Workspace::new();
    write_lora(&work, "lora.safetensors");
    let run = |flags: &str, output: &str| {
        work.run(&format!("{TINY} --prompt fox {flags} --output {output}")).succeeds();
    };
    run("", "base");
    run("--lora lora.safetensors", "applied");
    run("--lora lora.safetensors --lora-scale 0", "off");
    assert!(apart(&work, "base", "applied") > 1);
    assert_eq!(apart(&work, "base", "off"), 0);

    work.run("diffusion export --model random:sd-tiny --lora lora.safetensors --output merged").succeeds();
    work.run(&format!("{TINY} --prompt fox --output from-merged").replace("random:sd-tiny", "merged")).succeeds();
    assert!(apart(&work, "applied", "from-merged") <= 1);

    let convert = "diffusion export --lora lora.safetensors --format kohya --output kohya/lora.safetensors";
    work.run(convert).succeeds();
    work.run(
        &convert
            .replace("lora.safetensors --format kohya", "kohya/lora.safetensors --format diffusers")
            .replace("--output kohya", "--output back"),
    )
    .succeeds();
    for (index, file) in ["kohya/lora.safetensors", "back/lora.safetensors"].iter().enumerate() {
        let output = format!("converted-{index}");
        run(&format!("--lora {file}"), &output);
        assert_eq!(apart(&work, "applied", &output), 0, "{file}");
    }

    // Twice half of it, under a name with an `@` and from a file of settings, is it; in every command that takes one.
    work.write("fox@home.safetensors", work.bytes("lora.safetensors"));
    run("--lora fox@home.safetensors@0.5 --lora lora.safetensors@0.5", "halves");
    work.write("halves.toml", "lora = ['fox@home.safetensors@0.25', 'lora.safetensors@0.25']\nlora_scale = 2\n");
    run("--config halves.toml", "halves-of-settings");
    for output in ["halves", "halves-of-settings"] {
        assert!(apart(&work, "applied", output) <= 1, "{output}");
    }
    let said = "fox@home.safetensors@0.5";
    let png = String::from_utf8_lossy(&work.bytes("halves/images/00000-0.png")).into_owned();
    assert!(png.contains(&format!(r#""lora":["{said}","lora.safetensors@0.5"]"#)), "the PNG says both");
    let table = String::from_utf8_lossy(&work.bytes("halves/images.parquet")).into_owned();
    assert!(table.contains(&format!("{said}, lora.safetensors@0.5")), "the table says both");
    let halves = "--lora fox@home.safetensors@0.5 --lora lora.safetensors@0.5";
    work.run(&format!("diffusion export --model random:sd-tiny {halves} --output merged-halves")).succeeds();
    work.run(&format!("diffusion export {halves} --format kohya --output halves.safetensors")).succeeds();
    run("--lora halves.safetensors", "joined");
    assert!(apart(&work, "applied", "joined") <= 1);
    work.run(&format!("{TINY} --prompt fox --output from-halves").replace("random:sd-tiny", "merged-halves"))
        .succeeds();
    assert!(apart(&work, "applied", "from-halves") <= 1);

    let verified =
        work.run("diffusion verify --model random:sd-tiny --device cpu --lora lora.safetensors --json").json();
    assert_eq!(verified["verdict"], "match");
    let plain = work.run("diffusion verify --model random:sd-tiny --device cpu --json").json();
    assert_ne!(verified["components"][1]["max_abs"], plain["components"][1]["max_abs"]);
}

#[test]
fn the_base_model_makes_the_first_steps() {
    let work = Workspace::new();
    write_lora(&work, "lora.safetensors");
    let run = |flags: &str, output: &str| {
        work.run(&format!("{TINY} --prompt fox --save-final-latents {output}.safetensors {flags} --output {output}"))
            .succeeds();
        work.bytes(&format!("{output}.safetensors"))
    };
    for scheduler in ["ddim", "dpmpp-2m --guidance-scale 1"] {
        let run = |flags: &str, output: &str| run(&format!("--scheduler {scheduler} {flags}"), output);
        let name = |end: &str| format!("{}-{end}", scheduler.replace(' ', ""));
        let base = run("", &name("base"));
        let tuned = run("--lora lora.safetensors", &name("tuned"));
        let [none, one, two, all] = [0, 1, 2, 3]
            .map(|steps| run(&format!("--lora lora.safetensors --base-steps {steps}"), &name(&steps.to_string())));
        assert!(none == tuned && all == base, "{scheduler}: from the tuned model's images to the base model's");
        for (latents, others) in [(&one, [&base, &tuned, &two]), (&two, [&base, &tuned, &one])] {
            assert!(others.iter().all(|other| latents != *other), "{scheduler}: in between they are others");
        }
        assert_eq!(apart(&work, &name("3"), &name("base")), 0);
    }

    let png = String::from_utf8_lossy(&work.bytes("ddim-2/images/00000-0.png")).into_owned();
    assert!(png.contains(r#""base_steps":2"#), "the PNG says it");
    assert!(work.text("ddim-2/config.toml").contains("base_steps = 2"), "the settings say it");
    let again = |output: &str, flags: &str| {
        let finals = format!("--save-final-latents {output}.safetensors");
        work.run(&format!("{TINY} --prompt fox {finals} --lora lora.safetensors {flags} --output {output}"))
    };
    again("ddim-2", "--base-steps 1").fails(2, &["ddim-2 holds another run: base_steps differ(s)"]);
    // A folder of a version that did not know the setting.
    let config = work.text("ddim-tuned/config.toml");
    assert!(config.contains("base_steps = 0\n"));
    work.write("ddim-tuned/config.toml", config.replace("base_steps = 0\n", ""));
    again("ddim-tuned", "--base-steps 1").fails(2, &["ddim-tuned holds another run: base_steps differ(s)"]);
    again("ddim-tuned", "").succeeds();
    let help = work.run("diffusion generate --help");
    help.check(help.stdout.contains("--base-steps <N>"), "the flag in the help");
    work.run(&format!("{TINY} --prompt fox --base-steps 1 --output bad"))
        .fails(2, &["base_steps = 1"])
        .hints("add --lora FILE");
}

#[test]
fn what_an_export_cannot_be_is_said() {
    let work = Workspace::new();
    write_lora(&work, "lora.safetensors");
    for (flags, parts) in [
        ("--model random:sd-tiny", ["--output", "missing"]),
        ("--output out", ["--model", "missing"]),
        ("--output out.safetensors --format kohya", ["--lora", "missing"]),
        ("--output out.safetensors --lora lora.safetensors", ["--format", "missing"]),
        ("--output out --model random:sd-tiny --format kohya", ["format", "LoRA"]),
        ("--output out --model random:sd-tiny --lora-scale 2", ["lora_scale", "--lora"]),
        ("--output out --model random:sd-tiny --lora lora.safetensors@nan", ["lora.safetensors@nan", "finite scale"]),
        ("--output out.safetensors --lora lora.safetensors --format kohya --lora-scale 2", ["lora_scale", "scale"]),
    ] {
        work.run(&format!("diffusion export {flags}")).fails(2, &parts);
    }
    // Another base than the LoRA's.
    work.run("diffusion export --model random:sd15 --lora lora.safetensors --format kohya --output x.safetensors")
        .fails(1, &["lora.safetensors", "attn1.to_v"])
        .hints("another base");
    assert!(!work.path("x.safetensors").exists() && !work.path("out").exists());
}
