//! Runs of several processes: the same losses at any number of ranks, and an end in good order where one is lost.

#![allow(clippy::print_stderr, reason = "a skipped test says so")]

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use reward::{loss::LossName, train::trainable::TrainingMode};

use crate::support::harness::{Finished, Workspace, free_port};

const TRAIN: &str = "reward train --training-file toy/train.parquet --model random:tiny --device cpu --batch-size 10 --learning-rate 1e-4";

#[track_caller]
pub(crate) fn all_succeed(ranks: &[Finished]) {
    for rank in ranks {
        rank.succeeds();
    }
}

/// Losses, gaps and rewards are means of values of the order of 1, which may cancel: below 0.1 their differences count as of 0.1.
#[track_caller]
fn close(found: &[f64], wanted: &[f64], within: f64, name: &str) {
    assert_eq!(found.len(), wanted.len(), "{name}");
    for (step, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        let difference = (found - wanted).abs() / wanted.abs().max(0.1);
        assert!(difference <= within, "{name}, step {}: {found} for {wanted} ({difference:.1e})", step + 1);
    }
}

/// Trains for 20 steps at 1, 2 and 3 ranks, and compares losses and validations.
fn trains_alike(work: &Workspace, mode: &str, loss: &str) {
    let settings = format!(
        "--training-mode {mode} --loss-name {loss} --n-epochs 5 --validation-file toy/validation.parquet --validate-every 10"
    );
    let run = |size: usize| {
        let folder = format!("{mode}-{loss}-{size}");
        all_succeed(&work.run_ranks(size, &format!("{TRAIN} {settings} --save-folder {folder}")));
        let accuracies = work.metrics(&folder, "validation_mean_gap");
        let gaps: Vec<f64> = accuracies.iter().map(|line| line["validation_mean_gap"].as_f64().unwrap()).collect();
        (work.losses(&folder), gaps)
    };
    let (wanted, gaps) = run(1);
    assert_eq!(wanted.len(), 20);
    for size in [2, 3] {
        let (found, found_gaps) = run(size);
        close(&found, &wanted, 1e-5, &format!("{mode}, {loss}, {size} ranks"));
        close(&found_gaps, &gaps, 1e-4, &format!("{mode}, {loss}, {size} ranks, validation"));
    }
}

#[test]
fn a_reward_trains_to_the_same_losses_at_any_number_of_ranks() {
    let work = Workspace::new();
    for (mode, loss) in [
        ("all", "triplet"),
        ("visual", "bradley-terry"),
        ("visual_last_layer", "info-nce"),
        ("visual_upper_layers_textual_upper_layers", "triplet"),
        ("visual_upper_layers_textual_upper_layers_deeper", "info-nce"),
    ] {
        trains_alike(&work, mode, loss);
    }
}

#[test]
#[ignore = "ten minutes; CI crosses a part of them"]
fn every_mode_and_loss_trains_alike() {
    let work = Workspace::new();
    for (mode, _) in TrainingMode::NAMES {
        for loss in LossName::NAMES {
            trains_alike(&work, mode, loss);
        }
    }
}

#[test]
fn two_ranks_repeat_themselves_to_the_byte() {
    let work = Workspace::new();
    for run in ["first", "second"] {
        let settings = "--training-mode all --n-epochs 1 --loss-name info-nce";
        all_succeed(&work.run_ranks(2, &format!("{TRAIN} {settings} --save-folder {run}")));
    }
    assert_eq!(work.bytes("first/final/model.safetensors"), work.bytes("second/final/model.safetensors"));
    let losses = [work.losses("first"), work.losses("second")];
    assert_eq!(losses[0], losses[1]);
}

#[test]
fn a_run_goes_on_at_another_number_of_ranks() {
    let work = Workspace::new();
    let settings = |run: &str| {
        format!(
            "{TRAIN} --training-mode all --n-epochs 10 --checkpoint-every 5 --keep-checkpoints 99 --save-folder {run}"
        )
    };
    all_succeed(&work.run_ranks(1, &settings("whole")));
    for (size, checkpoint) in [(1, "step-10"), (2, "step-20")] {
        let command = format!("{} --resume", settings("parts"));
        let ranks = work.start_ranks(&vec![command.as_str(); size]);
        work.wait_for(&format!("parts/checkpoints/{checkpoint}"));
        for rank in &ranks {
            rank.send("KILL");
        }
        for rank in ranks {
            rank.wait().dies_of(9);
        }
    }
    all_succeed(&work.run_ranks(1, &format!("{} --resume", settings("parts"))));
    close(&work.losses("parts"), &work.losses("whole"), 1e-5, "1, 2 and 1 ranks");
}

/// The processes that a process has started.
fn children(process: u32) -> Vec<u32> {
    let mut found = Vec::new();
    for task in fs_err::read_dir(format!("/proc/{process}/task")).unwrap() {
        let children = fs_err::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
        found.extend(children.split_whitespace().map(|id| id.parse::<u32>().unwrap()));
    }
    found
}

/// PyTorch's own launcher, which CI installs and names by `TORCHRUN`.
#[test]
fn torchrun_starts_ranks_and_starts_them_again() {
    let Ok(torchrun) = std::env::var("TORCHRUN") else {
        eprintln!("skipped: TORCHRUN does not name a torchrun (scripts/setup-torchrun brings one)");
        return;
    };
    let work = Workspace::new();
    let command = |run: &str| {
        format!(
            "{TRAIN} --training-mode all --n-epochs 25 --checkpoint-every 5 --keep-checkpoints 99 --rank-timeout 4 --resume \
             --save-folder {run}"
        )
    };
    work.run(&command("alone")).succeeds();
    let port = free_port();
    // The harness begins a command with `exec`, which torchrun does not know.
    let launch = format!(
        "run() {{ shift; exec '{torchrun}' --nproc-per-node 2 --max-restarts 1 --master-port {port} --no-python \"$@\"; }}; run"
    );
    let launched = work.start_until_after(&launch, &command("torchrun"), "torchrun/checkpoints/step-10");
    let ranks = children(launched.id());
    assert_eq!(ranks.len(), 2);
    let killed = std::process::Command::new("kill").args(["-KILL", &ranks[1].to_string()]).status().unwrap();
    assert!(killed.success());
    launched.wait().exits(0).says("rank 1").says("has not answered for 4 s").says("from step 11");
    close(&work.losses("torchrun"), &work.losses("alone"), 1e-5, "two ranks of torchrun, one of them killed");
}

/// A run that goes on until it is stopped.
fn endless(run: &str) -> String {
    format!("{TRAIN} --training-mode all --n-epochs 100000 --checkpoint-every 5 --rank-timeout 4 --save-folder {run}")
}

#[test]
fn a_rank_that_is_lost_ends_the_others_by_its_name() {
    let work = Workspace::new();
    for (signal, lost) in [("KILL", 1), ("STOP", 1), ("KILL", 0), ("STOP", 0)] {
        let run = format!("{signal}-{lost}");
        let mut ranks = work.start_ranks(&[endless(&run).as_str(); 3]);
        work.wait_for(&format!("{run}/checkpoints/step-5"));
        let lost_rank = ranks.remove(lost);
        lost_rank.send(signal);
        let started = Instant::now();
        for rank in ranks {
            let ended = rank.wait();
            ended.fails(1, &[&format!("rank {lost}")]).hints("--resume");
        }
        assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
        lost_rank.signal("KILL");
        let ranks = work.start_ranks(&[format!("{} --resume", endless(&run)).as_str(); 2]);
        std::thread::sleep(Duration::from_secs(3));
        for rank in &ranks {
            rank.send("INT");
        }
        for rank in ranks {
            rank.wait().exits(130);
        }
    }
}

#[test]
fn a_rank_that_fails_tells_the_others_why() {
    let work = Workspace::new();
    let settings = "--training-mode all --n-epochs 1 --rank-timeout 10";
    let command = |file: &str, more: &str| format!("{} {settings} {more}", TRAIN.replace("toy/train.parquet", file));
    // Other data under the same name, other settings, and data that is not there.
    let rows = crate::support::triplets::read(&work.path("toy/train.parquet"));
    for folder in ["a", "b"] {
        fs_err::create_dir(work.path(folder)).unwrap();
    }
    crate::support::triplets::write(&work.path("a/t.parquet"), &rows[..20]);
    crate::support::triplets::write(&work.path("b/t.parquet"), &rows[..30]);
    let root = "--image-root toy --save-folder run";
    let run = |ranks: [String; 2]| -> Vec<Finished> {
        let ranks = work.start_ranks(&ranks.each_ref().map(String::as_str));
        ranks.into_iter().map(crate::support::harness::Running::wait).collect()
    };
    let ended = run([command("a/t.parquet", root), command("b/t.parquet", root)]);
    ended[1].fails(1, &["other settings", "training_file"]);
    ended[0].fails(1, &["rank 1", "failed", "other settings"]);
    let ended = run([command("a/t.parquet", root), command("a/t.parquet", &format!("{root} --seed 1"))]);
    ended[0].fails(1, &["rank 1", "seed"]);
    let ended = run([command("none.parquet", root), command("none.parquet", root)]);
    ended[0].exits(1).says("none.parquet");
    ended[1].exits(1).says("none.parquet");
    // Whoever fails, the others say who and why, and not that the store is gone.
    for failing in [0, 2] {
        let mut ranks = vec![command("a/t.parquet", root); 3];
        ranks[failing] = command("b/t.parquet", root);
        let started = Instant::now();
        let ranks = work.start_ranks(&ranks.iter().map(String::as_str).collect::<Vec<_>>());
        let ended: Vec<Finished> = ranks.into_iter().map(crate::support::harness::Running::wait).collect();
        for (rank, ended) in ended.iter().enumerate() {
            // The rank that fails says so itself.
            let named = if rank == failing { String::new() } else { format!("rank {failing}") };
            if failing == 0 && rank > 0 {
                // Both others differ from rank 0, and each says so.
                ended.fails(1, &["other settings"]);
            } else {
                ended.fails(1, &["other settings", &named]);
            }
        }
        assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    }
}

#[test]
fn a_rank_without_memory_tells_the_others() {
    let work = Workspace::new();
    work.write("p.txt", "a red fox\nan owl\n");
    let command = "diffusion finetune --model random:sd-tiny --device cpu --algorithm draft-k --reward random:tiny --prompts p.txt \
                   --height 512 --width 512 --sample-steps 2 --batch-size 2 --train-steps 2 --reward-scale raw --output run";
    let port = free_port();
    let rank = |rank: usize, limit: &str| {
        let place = format!("RANK={rank} WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT={port}");
        work.start_after(&format!("{limit} {place}"), command)
    };
    // In kilobytes: enough to load the models, and not for a step.
    let ranks = [rank(0, ""), rank(1, "ulimit -v 1300000;")];
    let ended = ranks.map(crate::support::harness::Running::wait);
    ended[0].fails(1, &["rank 1", "failed", "out of memory"]).hints("--resume");
    ended[1].fails(1, &["out of memory", "you tried to allocate"]).hints("gradient_checkpointing");
}

#[test]
fn ranks_that_cannot_meet_say_why() {
    let work = Workspace::new();
    let command = format!("{TRAIN} --training-mode all --join-timeout 2 --save-folder run");
    let port = free_port();
    let place = |rank: usize, port: u16| format!("RANK={rank} WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT={port}");
    work.run_after("WORLD_SIZE=2", &command).fails(2, &["WORLD_SIZE is set, but RANK is not"]);
    work.run_after("RANK=0 WORLD_SIZE=2", &command).fails(2, &["where rank 0 is"]).hints("MASTER_ADDR");
    work.run_after(&place(0, port), &command).fails(1, &["absent are 1 of 2 ranks: 1"]).hints("WORLD_SIZE");
    work.run_after(&place(1, port), &command).fails(1, &["no store at 127.0.0.1"]).hints("MASTER_PORT");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    work.run_after(&place(0, port), &command).fails(1, &["no store at 127.0.0.1"]).hints("another program");
    assert!(!work.path("run").exists());
}

#[test]
fn every_method_tunes_alike_at_any_number_of_ranks() {
    tunes_alike(4, 1e-4, |sizes| sizes);
}

#[test]
#[ignore = "half an hour; CI takes fewer steps"]
fn every_method_tunes_alike_for_long() {
    tunes_alike(20, 1e-5, |_| &[2, 3]);
}

/// Fine-tunes by every method for so many steps at several numbers of ranks, and compares all figures.
///
/// Losses are rewards in units of their deviation, which is a small part of them, so that their last bits show; and Adam makes steps
/// of the rate's length out of the last bits of small gradients.
fn tunes_alike(steps: usize, rate: f64, sizes_of: impl Fn(&'static [usize]) -> &'static [usize]) {
    let work = super::diffusion::methods::workspace();
    super::diffusion::methods::preferences(&work);
    let by_reward = "--reward random:tiny --prompts prompts.txt --scale-images 6 --held-out-prompts held-out.txt --held-out-images 4";
    let grouped = format!("{by_reward} --images-per-prompt 3");
    let triplets = "--training-file triplets.parquet --beta 10 --held-out-images 2";
    for (method, settings, sizes) in [
        ("draft-k", format!("{by_reward} --anchor 0.1 --ema-decay 0.9 --evaluate-every 2"), &[2, 3][..]),
        ("draft-lv", by_reward.to_owned(), &[2]),
        ("drtune", by_reward.to_owned(), &[2]),
        ("align-prop", by_reward.to_owned(), &[2]),
        ("refl", by_reward.to_owned(), &[2]),
        ("ddpo", format!("{by_reward} --buffer-min-count 2 --minibatches 2"), &[2, 3]),
        ("grpo", format!("{grouped} --kl 0.1 --clip-range 1e-2"), &[2]),
        ("nft", grouped.clone(), &[2]),
        ("rwr", by_reward.to_owned(), &[2]),
        ("best-of-n", grouped.clone(), &[2]),
        ("dpo", triplets.to_owned(), &[2]),
        ("kto", "--labels likes.csv --beta 10 --held-out-images 2".to_owned(), &[2]),
        ("denoising", "--images likes.csv --held-out-images 2".to_owned(), &[2]),
    ] {
        let run = |size: usize| {
            let folder = format!("{method}-{size}");
            let command = format!(
                "diffusion finetune --model random:sd-tiny --device cpu --height 32 --width 32 --sample-steps 4 --algorithm {method} \
                 {settings} --learning-rate {rate} --batch-size 6 --train-steps {steps} --output {folder}"
            );
            all_succeed(&work.run_ranks(size, &command));
            let figures = |name: &str| -> Vec<f64> {
                let lines = work.metrics(&folder, "loss");
                lines.iter().filter_map(|line| line[name].as_f64()).collect()
            };
            let held_out = |name: &str| -> Vec<f64> {
                work.metrics(&folder, name).iter().filter_map(|line| line[name].as_f64()).collect()
            };
            ["loss", "grad_norm", "reward_mean", "reward_std"]
                .map(figures)
                .into_iter()
                .chain(["held_out_reward", "held_out_loss", "diversity", "contrast"].map(held_out))
                .collect::<Vec<_>>()
        };
        let wanted = run(1);
        for size in sizes_of(sizes) {
            for (found, wanted) in run(*size).iter().zip(&wanted) {
                close(found, wanted, 1e-4, &format!("{method}, {size} ranks"));
            }
        }
    }
}

#[test]
fn doctor_shows_ranks_and_adds_up_with_them() {
    let work = Workspace::new();
    let ranks = work.run_ranks(2, "doctor --json");
    let found = &ranks[0].json()["ranks"];
    assert_eq!((found["size"].as_u64(), found["all"].as_array().unwrap().len()), (Some(2), 2), "{found}");
    assert!(
        found["small_sum_seconds"].as_f64().unwrap() > 0.0 && found["large_sum_rate"].as_f64().unwrap() > 1e6,
        "{found}"
    );
    ranks[1].exits(0).check(ranks[1].stdout.is_empty(), "rank 0 reports");
    assert!(work.run("doctor --json").json()["ranks"].is_null());
}
