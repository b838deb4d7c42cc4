//! Checkpoints that do not fit, are damaged or hostile; folders and disks that cannot be written; losses that blow up.

use serde_json::Value;

use crate::support::harness::Workspace;

const SCORE: &str = "reward score --prompt fox golden/pixels/rgb.png --device cpu --model";
const TRAIN: &str = "reward train --training-file toy/train.parquet --training-mode visual_last_layer --device cpu \
    --batch-size 8";

/// A state dict less the tensor that comes last in the file; gives that one's name.
fn without_last_tensor(bytes: &[u8]) -> (Vec<u8>, String) {
    let (length, rest) = bytes.split_at(8);
    let (header, data) = rest.split_at(u64::from_le_bytes(length.try_into().unwrap()) as usize);
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(header).unwrap();
    let start = |value: &Value| value["data_offsets"][0].as_u64();
    let last = header.iter().max_by_key(|(_, value)| start(value)).unwrap().0.clone();
    let end = start(&header.remove(&last).unwrap()).unwrap() as usize;
    let header = serde_json::to_vec(&header).unwrap();
    ([&(header.len() as u64).to_le_bytes()[..], &header, &data[..end]].concat(), last)
}

#[test]
fn checkpoints_that_do_not_fit_say_what_does_not() {
    let work = Workspace::new();
    work.run("reward export --model random:tiny --format openai --output whole.safetensors").succeeds();
    let whole = work.bytes("whole.safetensors");
    let (without_one, missing) = without_last_tensor(&whole);
    work.write("missing.safetensors", without_one);
    let one = work.run(&format!("{SCORE} missing.safetensors"));
    one.fails(1, &["missing.safetensors", &missing]);
    work.write("truncated.safetensors", &whole[..whole.len() / 2]);
    work.run(&format!("{SCORE} truncated.safetensors")).fails(1, &["truncated.safetensors"]).hints("truncated");
    work.write("stub.safetensors", &whole[..100]);
    work.run(&format!("{SCORE} stub.safetensors")).fails(1, &["stub.safetensors"]);
    work.write("empty.safetensors", "");
    work.run(&format!("{SCORE} empty.safetensors")).fails(1, &["empty.safetensors", "empty"]);
    work.write("cut.pt", &fs_err::read(work.path("golden/clip/openai.pt")).unwrap()[..2000]);
    work.run(&format!("{SCORE} cut.pt")).fails(1, &["cut.pt"]);
    work.run(&format!("{SCORE} absent.pth")).fails(1, &["absent.pth"]);
    work.run(&format!("{SCORE} toy")).fails(1, &["toy", "config.json"]);

    let other = "reward validate toy/validation.parquet --device cpu --checkout-path whole.safetensors";
    let other = work.run(&format!("{other} --model random:vit-b-32"));
    other.fails(1, &["whole.safetensors", "do not fit", "shape"]).hints("architecture");
    if cfg!(feature = "torch") {
        let other =
            work.run(&format!("{TRAIN} --checkout_path whole.safetensors --model random:vit-b-32 --save-folder out"));
        other.fails(1, &["whole.safetensors", "do not fit"]);
        let one =
            work.run(&format!("{TRAIN} --checkout_path missing.safetensors --model random:tiny --save-folder out"));
        one.fails(1, &["missing.safetensors", &format!("`{missing}` is missing")]);
        assert!(!work.path("out/config.toml").exists());
    }
}

/// The fixtures' payloads would create a file where they are loaded.
#[test]
fn a_pickle_that_wants_to_run_code_is_refused() {
    let work = Workspace::new();
    work.run(&format!("{SCORE} golden/clip/malicious.pt")).fails(1, &["malicious.pt"]).hints("safetensors");
    work.run(&format!("{SCORE} golden/clip/malicious_tensor.pt")).fails(1, &["malicious_tensor.pt"]);
    let left: Vec<_> = fs_err::read_dir(work.path("")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "the two links alone, not {left:?}");
}

#[cfg(feature = "torch")]
#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let work = Workspace::new();
    work.write("file", "");
    let train = format!("{TRAIN} --model random:tiny --max-steps 1 --save-folder");
    work.run(&format!("{train} file/out")).fails(1, &["save folder", "file/out"]).hints("--save-folder");
    work.run(&format!("{train} file")).fails(1, &["save folder", "file"]).hints("--save-folder");
    work.run(&format!("{train} /proc/out")).fails(1, &["save folder", "/proc/out"]).hints("--save-folder");
    let score = format!("{SCORE} random:tiny --output");
    work.run(&format!("{score} file/scores.csv")).fails(1, &["file/"]);
    work.run("reward export --model random:tiny --format hf --output file/folder").fails(1, &["file/folder"]);
    assert!(work.bytes("file").is_empty());
}

/// A limit on the size of files stands for a disk that is full: writes fail after so many blocks of 512 bytes.
#[cfg(feature = "torch")]
#[test]
fn a_full_disk_leaves_the_older_checkpoint() {
    let work = Workspace::new();
    let train = format!("{TRAIN} --model random:tiny --checkpoint-every 2 --resume --save-folder");
    work.run(&format!("{train} whole --max-steps 6")).succeeds();
    work.run(&format!("{train} full --max-steps 2")).succeeds();
    let before = work.bytes("full/checkpoints/step-2/model.safetensors");
    let limit = "ulimit -f 20000; trap '' XFSZ;";
    let full = work.run_after(limit, &format!("{train} full --max-steps 6"));
    full.fails(1, &["full/checkpoints/", "model.safetensors", "too large"]);
    assert_eq!(work.checkpoints("full"), [2], "nothing half-written is left\n{full}");
    assert!(work.bytes("full/checkpoints/step-2/model.safetensors") == before);
    work.run(&format!("{SCORE} full/checkpoints/step-2")).succeeds();
    work.run_after(limit, "reward export --model full/final --format openai --output x.safetensors")
        .fails(1, &["x.safetensors"]);
    assert!(!work.path("x.safetensors").exists());
    work.run(&format!("{train} full --max-steps 6")).succeeds();
    let weights = |run: &str| work.bytes(&format!("{run}/final/model.safetensors"));
    assert!(weights("full") == weights("whole"));
}

#[cfg(feature = "torch")]
#[test]
fn a_loss_that_is_not_finite_stops_the_run() {
    let work = Workspace::new();
    let diverged = work.run(&format!("{TRAIN} --model random:tiny --learning-rate 1e30 --save-folder out"));
    diverged.fails(1, &["non-finite"]).hints("--learning-rate").hints("no checkpoint was written yet");
    diverged.says("step left out");
    assert!(work.text("out/metrics.jsonl").lines().count() < 10);
    assert!(!work.path("out/final").exists());
}
