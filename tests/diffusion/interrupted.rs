//! `diffusion generate` that was killed or stopped goes on without making an image twice; a folder belongs to one run.

use std::{collections::BTreeMap, time::SystemTime};

use crate::{
    diffusion::generate::pixels,
    support::{harness::Workspace, tensors},
};

const MANY: &str = "diffusion generate --model random:sd-tiny --device cpu --steps 8 --batch-size 2 --images-per-prompt 3 \
    --prompt fox --prompt owl --prompt 'red fox' --prompt snow --contact-sheet";

fn images(work: &Workspace, run: &str) -> BTreeMap<String, Vec<u8>> {
    let names = fs_err::read_dir(work.path(&format!("{run}/images"))).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names
        .filter(|name| !name.starts_with('.'))
        .map(|name| (name.clone(), work.bytes(&format!("{run}/images/{name}"))))
        .collect()
}

fn written(work: &Workspace, file: &str) -> SystemTime {
    fs_err::metadata(work.path(file)).unwrap().modified().unwrap()
}

#[test]
fn a_run_goes_on_where_it_stopped() {
    let work = Workspace::new();
    let saving = |run: &str| format!("{MANY} --save-final-latents {run}.safetensors --output {run}");
    work.run(&saving("whole")).succeeds();
    let whole = images(&work, "whole");
    assert_eq!(whole.len(), 12);
    let sheet = pixels(&work, "whole/contact-sheet.png").dimensions();

    for (signal, code) in [("INT", Some(130)), ("TERM", Some(143)), ("KILL", None)] {
        let name = format!("stopped-{signal}");
        let command = saving("stopped").replace("--output stopped", &format!("--output {name}"));
        let stopped = work.start_until(&command, &format!("{name}/images/00000-2.png")).signal(signal);
        match code {
            Some(code) => stopped.exits(code).says("goes on").check(stopped.stdout.is_empty(), "no data"),
            None => stopped.dies_of(9),
        };
        assert!(!work.path(&format!("{name}/images.parquet")).exists(), "the signal came too late");
        let before = images(&work, &name);
        let first = format!("{name}/images/00000-0.png");
        let time = written(&work, &first);
        assert!((3..12).contains(&before.len()), "{}", before.len());
        assert!(before.iter().all(|(image, bytes)| whole[image] == *bytes), "whole images only");
        work.run(&command).succeeds().says(&format!("{} of 12 images are there already", before.len()));
        assert!(images(&work, &name).keys().eq(whole.keys()), "{signal}");
        for image in whole.keys() {
            // A kill in the middle of a batch leaves other batches to be made: the last bits may differ.
            let [left, right] = [name.as_str(), "whole"].map(|run| pixels(&work, &format!("{run}/images/{image}")));
            let apart = left.iter().zip(right.iter()).map(|(left, right)| left.abs_diff(*right)).max();
            assert!(apart <= Some(1) && (code.is_none() || apart == Some(0)), "{signal}: {image} {apart:?}");
        }
        assert_eq!(written(&work, &first), time, "a finished image is not made again");
        assert!(work.bytes(&format!("{name}/images.parquet")) == work.bytes("whole/images.parquet"));
        assert_eq!(pixels(&work, &format!("{name}/contact-sheet.png")).dimensions(), sheet);
        let [left, right] = ["stopped.safetensors", "whole.safetensors"]
            .map(|file| tensors::floats(tensors::tensor(&work.bytes(file), "latents").1));
        assert!(left.iter().zip(&right).all(|(left, right)| (left - right).abs() <= 1e-3), "final latents");
        // A run that is done stays as it is.
        work.run(&command).succeeds();
        assert_eq!(written(&work, &first), time);
        fs_err::remove_file(work.path("stopped.safetensors")).unwrap();
    }
}

#[test]
fn a_folder_belongs_to_one_run() {
    let work = Workspace::new();
    let command = format!("{MANY} --output run");
    let running = work.start_until(&command, "run/images/00000-0.png");
    work.run(&command).fails(1, &["run", "another run is working here"]).hints("--output");
    running.signal("KILL").dies_of(9);
    work.run(&format!("{command} --seed 4 --steps 9").replace("--steps 8 ", ""))
        .fails(2, &["run holds another run", "seed", "steps"]);
    work.run(&command.replace("snow", "rain")).fails(2, &["prompt"]).hints("run/config.toml");
    work.run(&format!("{command} --batch-size 5").replace("--batch-size 2 ", "")).succeeds();

    // A prompt file whose content has changed.
    work.write("prompts.txt", "fox\nowl\n");
    let command =
        "diffusion generate --model random:sd-tiny --device cpu --steps 2 --prompts prompts.txt --output file";
    work.run(command).succeeds();
    work.write("prompts.txt", "fox\nrain\n");
    work.run(command).fails(2, &["00001-0.png", "owl", "rain"]);

    // A run that failed before its first image may be tried with other settings.
    let tried = command.replace("--output file", "--output tried");
    work.run(&format!("{tried} --lora none.safetensors")).fails(1, &["none.safetensors"]);
    work.run(&tried).succeeds();

    // A folder of another command.
    fs_err::create_dir_all(work.path("other")).unwrap();
    work.write("other/config.toml", "training_mode = 'all'\n");
    work.run(&command.replace("--output file", "--output other")).fails(2, &["other holds another run"]);
}
