//! Every fine-tuning method against PyTorch's autograd on the same rule, weights and noise (`tests/golden/finetune.py`): loss,
//! rewards, latents and the gradient of every adapter, through sampling, VAE decoder, preprocessing and CLIP.

use std::collections::BTreeMap;

use diffusion::{
    algorithm::denoising,
    layer::Adapter,
    noise::Stream,
    objective::Weighted,
    policy::{End, Plan, Policy},
    schedule::{NoiseSchedule, SchedulerConfig},
    source::{Source, SourceOptions},
    unet::Unet,
};
use tch::{Device, Kind, Tensor};

use crate::{
    finetune_cases::{Golden, given, golden_model, loss},
    fixture::{Fixture, assert_close, values},
};

#[test]
fn every_reward_method_is_pytorchs() {
    let golden = Golden::open();
    let mut cases = 0;
    for case in golden.cases().iter().filter(|case| case["method"] != "denoising") {
        let name = case["name"].as_str().unwrap();
        golden.forget_gradients();
        let (loss, ends) = loss(&golden, case, 0, 2);
        let want = golden.fixture.floats(&format!("{name}.loss"))[0];
        assert_close(name, &[loss.loss.double_value(&[]) as f32], &[want], 1e-4 * want.abs());
        assert_close(name, &values(&loss.rewards[0]), &golden.fixture.floats(&format!("{name}.rewards")), 1e-5);
        assert_close(name, &ends, &golden.fixture.floats(&format!("{name}.latents")), 1e-4);
        loss.loss.backward();
        golden.check_gradients(name);
        cases += 1;
    }
    assert_eq!(cases, 13);
}

/// Three quarters of a reward and a quarter of the same are the reward; half of it less half of it is nothing.
#[test]
fn weighted_rewards_are_added_up() {
    let golden = Golden::open();
    let case = golden.cases().into_iter().find(|case| case["name"] == "draft_k1").unwrap();
    let (policy, batch) = (golden.policy(&case), golden.batch(0, 2));
    let plan = given(&case, 5).plan;
    let loss = |weights: &[f64]| {
        let rewards: Vec<Weighted> = weights
            .iter()
            .flat_map(|weight| golden.rewards(0, 2).into_iter().map(|one| Weighted { weight: *weight, ..one }))
            .collect();
        let mut objective = golden.objective(&case, &rewards);
        objective.scales = vec![objective.scales[0]; weights.len()];
        let start = policy.roll(&batch.noise(Stream::Latents), 0..plan.cut, &batch);
        let loss = objective.loss(&policy.unroll(&start, &plan, &batch, false), &batch).unwrap();
        assert_eq!(loss.rewards.len(), weights.len());
        loss.loss.double_value(&[])
    };
    assert!((loss(&[0.75, 0.25]) - loss(&[1.0])).abs() < 1e-5);
    assert!(loss(&[0.5, -0.5]).abs() < 1e-5 && loss(&[1.0]).abs() > 0.1);
}

/// Recomputing blocks and splitting a batch change no gradient.
#[test]
fn checkpointing_and_micro_batches_give_the_same_gradients() {
    let mut golden = Golden::open();
    for case in golden.cases().iter().filter(|case| case["method"] != "denoising") {
        let name = case["name"].as_str().unwrap();
        golden.forget_gradients();
        loss(&golden, case, 0, 2).0.loss.backward();
        let plain = golden.gradients();
        let same = |golden: &Golden, how: &str| {
            let apart: f64 = golden.gradients().iter().map(|(key, gradient)| squares(&(gradient - &plain[key]))).sum();
            let whole: f64 = plain.values().map(squares).sum();
            assert!((apart / whole).sqrt() < 1e-5, "{name}, {how}: {:e}", (apart / whole).sqrt());
        };
        golden.forget_gradients();
        (golden.unet.checkpointing, golden.vae.checkpointing) = (true, true);
        loss(&golden, case, 0, 2).0.loss.backward();
        same(&golden, "checkpointed");
        golden.forget_gradients();
        (golden.unet.checkpointing, golden.vae.checkpointing) = (false, false);
        for image in [0, 1] {
            (loss(&golden, case, image, 1).0.loss * 0.5).backward();
        }
        same(&golden, "split");
    }
}

/// The time embedding trains too, and every block that is computed again has it as an input.
#[test]
fn checkpointing_gives_the_same_gradients_of_every_weight() {
    let source = Source::open(&golden_model(), SourceOptions::default()).unwrap();
    let (config, weights) = source.unet().unwrap();
    let mut unet = Unet::new(&config, weights.trained(true)).unwrap();
    let fixture = Fixture::open("finetune/finetune.safetensors");
    let (x, context) = (fixture.torch("latents"), fixture.torch("context").into());
    let timesteps = Tensor::from_slice(&[801.0_f32, 201.0]);
    let mut gradients = |checkpointing: bool| {
        unet.checkpointing = checkpointing;
        unet.parameters.trained().iter_mut().for_each(|(_, tensor)| tensor.zero_grad());
        unet.forward(&x, &timesteps, &context).square().mean(Kind::Float).backward();
        let trained = unet.parameters.trained().into_iter();
        trained.map(|(name, tensor)| (name, tensor.grad().copy())).collect::<BTreeMap<_, _>>()
    };
    let (plain, recomputed) = (gradients(false), gradients(true));
    for (name, gradient) in &plain {
        let apart = squares(&(gradient - &recomputed[name])).sqrt();
        assert!(apart <= 1e-5 * squares(gradient).sqrt(), "{name}: {apart:e}");
    }
}

fn squares(tensor: &Tensor) -> f64 {
    tensor.square().sum(Kind::Double).double_value(&[])
}

/// With all steps trained, DRaFT is the whole gradient of the guided sampler, taken here by hand.
#[test]
fn draft_over_all_steps_is_the_whole_gradient() {
    let golden = Golden::open();
    let case = golden.cases().into_iter().find(|case| case["name"] == "draft_full").unwrap();
    let (policy, batch, rewards) = (golden.policy(&case), golden.batch(0, 2), golden.rewards(0, 2));
    let objective = golden.objective(&case, &rewards);
    let context = batch.conditioning.behind(&policy.negative);
    let mut x = golden.fixture.torch("latents");
    for (index, timestep) in policy.sampler.timesteps().to_vec().into_iter().enumerate() {
        let timesteps = Tensor::full([4], timestep, (Kind::Float, Device::Cpu));
        let output = golden.unet.forward(&Tensor::cat(&[&x, &x], 0), &timesteps, &context).chunk(2, 0);
        let guided = &output[0] + (&output[1] - &output[0]) * policy.guidance_scale;
        x = policy.sampler.step(index, &guided, &x, None).mean;
    }
    let reward = rewards[0].reward.score(&objective.decode(&x), &["", ""]).unwrap();
    (-((reward - objective.scales[0].mean) / objective.scales[0].deviation).mean(Kind::Float)).backward();
    golden.check_gradients("draft_full");
}

/// A detached input leaves only the sampler's linear steps: the gradient of an early step that trains must not depend on
/// the Jacobian of a later one, so it stays the same when the later one is not trained.
#[test]
fn detached_steps_and_branches_have_no_gradient() {
    let golden = Golden::open();
    let case = golden.cases().into_iter().find(|case| case["name"] == "drtune").unwrap();
    let (policy, batch) = (golden.policy(&case), golden.batch(0, 2));
    let plan = |trained: Vec<usize>| Plan { cut: 0, stop: 4, trained, detach_inputs: true, end: End::Original };
    let rewards = golden.rewards(0, 2);
    let objective = golden.objective(&case, &rewards);
    let gradients = |trained: Vec<usize>| {
        golden.forget_gradients();
        let unrolled = policy.unroll(&batch.noise(Stream::Latents), &plan(trained), &batch, false);
        objective.loss(&unrolled, &batch).unwrap().loss.backward();
        golden.gradients()
    };
    let (both, first, third) = (gradients(vec![0, 2]), gradients(vec![0]), gradients(vec![2]));
    for (name, gradient) in &both {
        let sum = &first[name] + &third[name];
        assert!((gradient - &sum).norm().double_value(&[]) <= 1e-5 * gradient.norm().double_value(&[]), "{name}");
    }
    // Nothing trains: no graph at all.
    let unrolled = policy.unroll(&batch.noise(Stream::Latents), &plan(Vec::new()), &batch, false);
    assert!(!unrolled.latents[0].requires_grad());
    // The unconditional branch alone: with guidance pulling all weight to it, a detached one gives no gradient.
    let x = batch.noise(Stream::Latents);
    let toward_negative = Policy { guidance_scale: 1.5, ..golden.policy(&case) };
    golden.forget_gradients();
    let (sum, positive) = (toward_negative.predict(&x, 0, &batch), {
        let timesteps = Tensor::full([2], policy.sampler.timesteps()[0], (Kind::Float, Device::Cpu));
        golden.unet.forward(&x, &timesteps, &batch.conditioning)
    });
    (sum - positive * 1.5).sum(Kind::Float).backward();
    for (name, gradient) in golden.gradients() {
        assert!(gradient.abs().max().double_value(&[]) < 1e-4, "{name}");
    }
}

/// In bf16 an adapter whose update is a ten-thousandth of the weights, less than bf16 resolves, moves the UNet's output in
/// sampling to the bit as it does in training; in fp32, where it is merged for sampling, within rounding.
#[test]
fn a_small_adapter_counts_the_same_in_sampling_and_in_training() {
    let golden = Golden::open();
    let case = golden.cases().into_iter().find(|case| case["name"] == "draft_k2_unguided").unwrap();
    let batch = golden.batch(0, 2);
    let moved = |kind: Kind| {
        // Of the fixture's adapters, 0.2 of the weights.
        let scale = 1.5 * 1e-4 / 0.2;
        let adapters = golden.unet.parameters.adapted.iter().map(|(layer, adapter)| {
            (layer.clone(), Adapter { down: adapter.down.detach(), up: adapter.up.detach(), scale })
        });
        let source = Source::open(&golden_model(), SourceOptions::default()).unwrap();
        let (config, weights) = source.unet().unwrap();
        let unet = Unet::new(&config, weights.to(Device::Cpu, kind).adapters(adapters.collect())).unwrap();
        let policy = Policy { unet: &unet, ..golden.policy(&case) };
        // The sampler is linear in the prediction: one step sampled tells it.
        let x = batch.noise(Stream::Latents);
        let sampled = policy.merged(|| Ok(policy.roll(&x, 0..1, &batch))).unwrap();
        let trained = policy.sampler.step(0, &policy.predict(&x, 0, &batch), &x, None).mean;
        let base = policy.sampler.step(0, &policy.predict_base(&x, 0, &batch), &x, None).mean;
        (values(&(sampled - &base)), values(&(trained - &base)))
    };
    let (sampled, trained) = moved(Kind::BFloat16);
    assert_eq!(sampled, trained);
    assert!(trained.iter().any(|moved| *moved != 0.0));
    let (sampled, trained) = moved(Kind::Float);
    let norm = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>().sqrt();
    let apart: Vec<f32> = sampled.iter().zip(&trained).map(|(sampled, trained)| sampled - trained).collect();
    assert!(norm(&apart) < 0.02 * norm(&trained), "{} of {}", norm(&apart), norm(&trained));
}

#[test]
fn the_denoising_loss_is_pytorchs() {
    let golden = Golden::open();
    let config = SchedulerConfig::from_json(&golden.description["scheduler"]).unwrap();
    let mut cases = 0;
    for case in golden.cases().iter().filter(|case| case["method"] == "denoising") {
        let name = case["name"].as_str().unwrap();
        golden.forget_gradients();
        let noised = denoising::Noised {
            latents: &golden.fixture.torch("denoising.latents"),
            noise: &golden.fixture.torch("denoising.noise"),
            timesteps: &golden.fixture.torch_integers("denoising.timesteps"),
            prompts: &golden.fixture.torch("context").into(),
        };
        let schedule = NoiseSchedule::new(&config);
        let gamma = case["snr_gamma"].as_f64();
        let loss = denoising::losses(&golden.unet, &schedule, Golden::prediction(case), &noised, gamma);
        let loss = loss.mean(Kind::Float);
        let want = golden.fixture.floats(&format!("{name}.loss"))[0];
        assert_close(name, &[loss.double_value(&[]) as f32], &[want], 1e-4 * want.abs());
        loss.backward();
        golden.check_gradients(name);
        cases += 1;
    }
    assert_eq!(cases, 4);
}
