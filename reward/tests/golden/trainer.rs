//! The trainer against the original's recipe in PyTorch: six modes, three losses, twenty steps each.

use std::collections::BTreeMap;

use reward::{
    clip::{
        model::{Clip, Depth},
        tokenizer::Tokens,
    },
    data::{image::DecodeOptions, triplets::Triplet},
    loss::LossName,
    train::{
        encoder::{Encoder, Fetcher, Inputs},
        prefix_cache::PrefixCache,
        step::Stepper,
        trainable::{Trainable, TrainingMode},
    },
    weights::{
        Checkpoint, OpenOptions,
        layout::{Layout, Stored},
    },
    world::World,
};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::fixture::{Fixture, golden, golden_text, relative_norm, values};

/// How a case is run.
#[derive(Debug, Clone, Copy)]
struct Variant {
    /// Frozen blocks run apart, without a graph, as the trainer does; else whole towers.
    split: bool,
    /// Triplets per micro-batch.
    micro_batch: usize,
    checkpointing: bool,
}

const BATCH: usize = 8;
const ORIGINAL: Variant = Variant { split: false, micro_batch: BATCH, checkpointing: false };

struct Run {
    losses: Vec<f64>,
    /// Weights before and after, by OpenAI key.
    weights: BTreeMap<String, [Vec<f32>; 2]>,
    trainable: Trainable,
}

fn base() -> Checkpoint {
    Checkpoint::open(&golden_text("trainer/base"), OpenOptions::default()).unwrap()
}

fn description() -> Value {
    serde_json::from_str(&fs_err::read_to_string(golden("trainer/trainer.json")).unwrap()).unwrap()
}

/// Mode, loss and the losses before each update.
fn cases() -> Vec<(TrainingMode, LossName, Vec<f64>, String)> {
    let description = description();
    let cases = description["cases"].as_array().unwrap().iter().map(|case| {
        let losses = case["losses"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
        let mode = serde_json::from_value(case["mode"].clone()).unwrap();
        let loss = serde_json::from_value(case["loss_name"].clone()).unwrap();
        (mode, loss, losses, format!("trainer/{}", case["updates"].as_str().unwrap()))
    });
    cases.collect()
}

struct Batches {
    pixels: Tensor,
    prompts: Vec<Tokens>,
    rows: Vec<Triplet>,
}

fn batches(clip: &Clip) -> Batches {
    let fixture = Fixture::open("trainer/batches.safetensors");
    let ids: Vec<u32> = fixture.integers("input_ids").into_iter().map(|id| id as u32).collect();
    let prompts = ids.chunks(clip.config.context_length).map(|ids| {
        let end = clip.config.end_of_text.position(ids);
        Tokens { ids: ids[..=end].to_vec(), truncated: false }
    });
    let rows = fixture.integers("batches");
    let rows = rows.as_chunks().0.iter().map(|row| {
        let [prompt, positive, negative] = row.map(|number| number as u32);
        Triplet { prompt, positive, negative }
    });
    Batches { pixels: fixture.torch("pixel_values"), prompts: prompts.collect(), rows: rows.collect() }
}

fn inputs(clip: &Clip, trainable: &Trainable, batches: &Batches, rows: &[Triplet]) -> Inputs {
    let images = |order: &[u32]| {
        let order: Vec<i64> = order.iter().map(|image| i64::from(*image)).collect();
        let pixels = batches.pixels.index_select(0, &Tensor::from_slice(&order));
        Ok(tch::no_grad(|| clip.image_prefix(&pixels, trainable.image_depth)))
    };
    let texts = |order: &[u32]| {
        let prompts: Vec<&Tokens> = order.iter().map(|prompt| &batches.prompts[*prompt as usize]).collect();
        let (ids, ends) = clip.token_ids(&prompts);
        Ok((tch::no_grad(|| clip.text_prefix(&ids, &ends, trainable.text_depth)), ends))
    };
    Inputs::new(rows, images, texts).unwrap()
}

fn train(mode: TrainingMode, loss: LossName, variant: Variant) -> Run {
    // Threads cost more than they give at this size.
    tch::set_num_threads(1);
    let checkpoint = base();
    let mut trainable = Trainable::new(mode, &checkpoint.config);
    if !variant.split {
        (trainable.image_depth, trainable.text_depth) = (Depth::Input, Depth::Input);
    }
    let mut clip = Clip::load(&checkpoint, Device::Cpu, Kind::Float, |name| trainable.trains(name)).unwrap();
    clip.checkpointing = variant.checkpointing;
    let batches = batches(&clip);
    let fetcher = Fetcher::new(PrefixCache::off(), DecodeOptions::default(), &clip.config, trainable);
    let encoder = Encoder::new(&clip, trainable, &fetcher);
    let mut stepper = Stepper::new(&clip, mode, loss, 2.0, None);
    let step = |rows: &[Triplet]| {
        let micro_batches = rows.chunks(variant.micro_batch).map(|rows| Ok(inputs(&clip, &trainable, &batches, rows)));
        let outcome = stepper.step(&World::alone(), &encoder, micro_batches, rows.len(), 1e-3).unwrap();
        assert!(outcome.applied && outcome.gradient_norm > 0.0);
        outcome.loss
    };
    let losses = batches.rows.chunks(BATCH).map(step).collect();
    let weights = checkpoint.parameters().map(|parameter| {
        let (name, _, before) = parameter.unwrap();
        let after = values(&clip.parameters[&name]);
        (name, [before, after])
    });
    Run { losses, weights: weights.collect(), trainable }
}

impl Run {
    /// w - w0 of what trains, under Hugging Face keys in Hugging Face shapes.
    fn updates(&self) -> BTreeMap<String, Vec<f32>> {
        let mut updates = BTreeMap::new();
        for (name, shape) in base().config.parameters() {
            if !self.trainable.trains(&name) {
                continue;
            }
            let [before, after] = &self.weights[&name];
            let update: Vec<f32> = after.iter().zip(before).map(|(after, before)| after - before).collect();
            match Layout::HuggingFace.stored(&name) {
                Stored::Same(key) => drop(updates.insert(key, update)),
                Stored::Transposed(key) => {
                    let shape = [shape[0] as i64, shape[1] as i64];
                    drop(updates.insert(key, values(&Tensor::from_slice(&update).view(shape).tr())));
                }
                Stored::Split(keys) => {
                    let length = update.len().div_euclid(3);
                    updates.extend(keys.into_iter().zip(update.chunks(length).map(<[f32]>::to_vec)));
                }
            }
        }
        updates
    }
}

/// Runs every case as `variant` says and compares it with the fixture.
fn compare(variant: Variant) {
    for (mode, loss, losses, updates) in cases() {
        let run = train(mode, loss, variant);
        for (step, (got, want)) in run.losses.iter().zip(&losses).enumerate() {
            let error = (got - want).abs() / want;
            assert!(error <= 1e-5, "{updates} {variant:?}: loss {step} is {got}, want {want}: off by {error:e}");
        }
        let expected = Fixture::open(&updates);
        let got = run.updates();
        let mut names = expected.names();
        names.sort();
        assert_eq!(got.keys().collect::<Vec<_>>(), names.iter().collect::<Vec<_>>(), "{updates}");
        for (name, got) in got.iter().filter(|(name, _)| !name.ends_with("k_proj.bias")) {
            let want = expected.floats(name);
            let error = relative_norm(got, &want);
            assert!(error <= 1e-3, "{updates} {variant:?} {name}: off by {error:e}");
            // What the recipe does not touch, such as unused rows of the token embedding, stays to the bit.
            let moved = got.iter().zip(&want).any(|(got, want)| *want == 0.0 && *got != 0.0);
            assert!(!(moved && name.contains("token_embedding")), "{updates} {name}: an unused row moved");
        }
        for (name, [before, after]) in &run.weights {
            if !run.trainable.trains(name) || (name == "logit_scale" && loss == LossName::Triplet) {
                assert!(before == after, "{updates} {variant:?} {name}: moved");
            }
        }
    }
}

#[test]
fn whole_towers() {
    compare(ORIGINAL);
}

#[test]
fn frozen_prefix_apart() {
    compare(Variant { split: true, ..ORIGINAL });
}

#[test]
fn micro_batches() {
    compare(Variant { split: true, micro_batch: 2, ..ORIGINAL });
}

#[test]
fn gradient_checkpointing() {
    compare(Variant { checkpointing: true, ..ORIGINAL });
    compare(Variant { split: true, micro_batch: 4, checkpointing: true });
}

/// Two passes over micro-batches are one pass over the batch.
#[test]
fn info_nce_in_two_passes_has_the_same_losses() {
    for mode in [TrainingMode::All, TrainingMode::VisualUpperLayersTextualUpperLayers] {
        let one_pass = train(mode, LossName::InfoNce, Variant { split: true, ..ORIGINAL });
        for micro_batch in [2, 4] {
            let two_passes = train(mode, LossName::InfoNce, Variant { split: true, micro_batch, ..ORIGINAL });
            for (got, want) in two_passes.losses.iter().zip(&one_pass.losses) {
                assert!((got - want).abs() <= 1e-6 * want, "{mode:?} by {micro_batch}: {got}, want {want}");
            }
        }
    }
}

#[test]
fn logit_scale_is_cut_at_ln_100() {
    let checkpoint = base();
    let trainable = Trainable::new(TrainingMode::All, &checkpoint.config);
    let clip = Clip::load(&checkpoint, Device::Cpu, Kind::Float, |_| true).unwrap();
    let mut scale = clip.parameters["logit_scale"].shallow_clone();
    tch::no_grad(|| drop(scale.fill_(6.0)));
    let batches = batches(&clip);
    let fetcher = Fetcher::new(PrefixCache::off(), DecodeOptions::default(), &clip.config, trainable);
    let encoder = Encoder::new(&clip, trainable, &fetcher);
    let mut stepper = Stepper::new(&clip, TrainingMode::All, LossName::BradleyTerry, 0.0, None);
    let micro_batches = [Ok(inputs(&clip, &trainable, &batches, &batches.rows[..BATCH]))].into_iter();
    stepper.step(&World::alone(), &encoder, micro_batches, BATCH, 1e-3).unwrap();
    assert_eq!(values(&scale), [100.0_f32.ln()]);
}
