//! The methods that need no gradient of a reward against PyTorch's autograd on the same rule (`tests/golden/policy.py`): loss and
//! the gradient of every adapter, for both kinds of prediction.

use diffusion::{
    advantage::{Deviation, PromptStatistics, combined, of_groups},
    algorithm::{
        Round, Settings,
        denoising::{Noised, losses},
        nft,
        policy_gradient::{Anchor, Judge, PolicyGradient, PolicyRound},
        rwr,
    },
    objective::Scores,
    old_policy::OldPolicy,
    policy::Policy,
    preference::{self, PreferenceLoss, Utility},
    schedule::Level,
    trajectory::Trajectory,
};
use serde_json::Value;
use tch::{Kind, Tensor};

use crate::{
    finetune_cases::Golden,
    fixture::{assert_close, values},
};

fn settings(case: &Value) -> Settings {
    Settings {
        sample_steps: 5,
        batch_size: 4,
        group: 2,
        prompts: 2,
        truncation_steps: None,
        copies: 0,
        snr_gamma: None,
        prompt_dropout: 0.0,
        inner_epochs: 1,
        minibatches: 1,
        clip_range: case["clip"].as_f64().unwrap_or(0.2),
        advantage_clip: 5.0,
        kl: case["kl"].as_f64().unwrap_or_default(),
        buffer_size: 16,
        buffer_min_count: 3,
        same_noise: false,
        timestep_fraction: 1.0,
        deviation: Deviation::Group,
        combine_groups: false,
        beta: case["beta"].as_f64().unwrap_or(1.0),
        temperature: case["temperature"].as_f64().unwrap_or(1.0),
        preference_loss: PreferenceLoss::Sigmoid,
        utility: Utility::Sigmoid,
        reference_every: 0,
    }
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    values(tensor).into_iter().map(f64::from).collect()
}

/// The loss of a round over all steps of a stored trajectory.
fn policy_gradient(golden: &Golden, policy: &Policy, case: &Value) -> Tensor {
    let settings = settings(case);
    let stored = |part: &str| golden.fixture.torch(&format!("{}.{part}", case["trajectory"].as_str().unwrap()));
    let anchor = match case["method"].as_str().unwrap() {
        "ddpo" => Anchor::Epsilon(settings.kl),
        _ => Anchor::Divergence(settings.kl),
    };
    let judge = Judge::Groups { size: 2, deviation: Deviation::Group, combined: false };
    let method = PolicyGradient { judge, anchor, drop_last: false, settings };
    let steps = case["steps"].as_array().unwrap().iter().map(|step| step.as_u64().unwrap() as usize).collect();
    let clip = case["advantage_clip"].as_f64().unwrap();
    let advantages = numbers(&golden.fixture.torch(case["advantages"].as_str().unwrap()));
    let round = PolicyRound {
        method: &method,
        policy,
        trajectory: Trajectory {
            latents: stored("latents"),
            log_probabilities: stored("log_probabilities"),
            deviations: vec![1.0; 5],
        },
        rolled: (0..4).map(|row| (row, 4)).collect(),
        prompts: golden.fixture.torch("context").into(),
        steps,
        // The policy has moved on since the roll-out, as it has in every update but the first.
        updates: vec![Vec::new(), (0..4).collect()],
        advantages: advantages.iter().map(|advantage| advantage.clamp(-clip, clip)).collect(),
        scores: Scores::default(),
        even: None,
    };
    let items = round.items(1);
    // In parts, which do not end with a step, as when memory is short.
    let parts = [0..items - 7, items - 7..items];
    let part = |items: std::ops::Range<usize>| round.loss(1, items.clone()).unwrap().loss * items.len() as f64;
    parts.map(part).into_iter().reduce(|sum, part| sum + part).unwrap() / items as f64
}

fn forward_process(golden: &Golden, policy: &Policy, case: &Value) -> Tensor {
    let (fixture, settings) = (&golden.fixture, settings(case));
    let clean = fixture.torch("clean");
    let errors = |policy: &Policy, noise: &Tensor, timesteps: &Tensor| {
        let prompts = fixture.torch("context").into();
        let noised = Noised { latents: &clean, noise, timesteps, prompts: &prompts };
        losses(policy.unet, &policy.schedule, policy.prediction, &noised, None)
    };
    let base = |noise: &Tensor, timesteps: &Tensor| {
        tch::no_grad(|| policy.as_base(|base| Ok(errors(base, noise, timesteps)))).unwrap()
    };
    let (noise, timesteps) = (|| fixture.torch("forward.noise"), || fixture.torch_integers("forward.timesteps"));
    match case["method"].as_str().unwrap() {
        "rwr" => {
            let weights = rwr::softmax(&numbers(&fixture.torch("rwr.rewards")), settings.temperature);
            let weights: Vec<f32> = weights.into_iter().map(|weight| weight as f32).collect();
            assert_close("weights", &weights, &fixture.floats("rwr.weights"), 1e-4);
            (errors(policy, &noise(), &timesteps()) * Tensor::from_slice(&weights)).mean(Kind::Float)
        }
        "kto" => {
            let name = case["name"].as_str().unwrap();
            let gains = preference::gain(&errors(policy, &noise(), &timesteps()), &base(&noise(), &timesteps()));
            assert_close("gains", &values(&gains.detach()), &fixture.floats(&format!("{name}.gains")), 1e-5);
            let point = preference::reference_point(&gains);
            assert_close("point", &[point as f32], &fixture.floats(&format!("{name}.reference_point")), 1e-6);
            let utility = if case["form"] == "sigmoid" { Utility::Sigmoid } else { Utility::LogSigmoid };
            let losses = preference::of_likes(&gains, point, &fixture.torch("kto.labels"), utility, settings.beta);
            (losses * fixture.torch("kto.weights")).mean(Kind::Float)
        }
        _ => {
            let name = case["name"].as_str().unwrap();
            let twice = |tensor: Tensor| Tensor::cat(&[&tensor, &tensor], 0);
            let (noise, timesteps) =
                (twice(fixture.torch("dpo.noise")), twice(fixture.torch_integers("dpo.timesteps")));
            // Prompts 0 and 1, of both the images that won and the ones that lost.
            let prompts = fixture.torch("context").index_select(0, &Tensor::from_slice(&[0_i64, 2, 0, 2])).into();
            let noised = Noised { latents: &clean, noise: &noise, timesteps: &timesteps, prompts: &prompts };
            let pair = |policy: &Policy| {
                let errors = losses(policy.unet, &policy.schedule, policy.prediction, &noised, None);
                [errors.narrow(0, 0, 2), errors.narrow(0, 2, 2)]
            };
            let reference = tch::no_grad(|| policy.as_base(|base| Ok(pair(base)))).unwrap();
            let inside = preference::inside(&pair(policy), &reference, settings.beta);
            let wanted = fixture.floats(&format!("{name}.inside"));
            assert_close(name, &values(&inside.detach()), &wanted, 1e-5 * settings.beta as f32);
            let loss = case["form"].as_str().unwrap().parse().unwrap();
            preference::of_pairs(&inside, loss, settings.beta).mean(Kind::Float)
        }
    }
}

fn negative_aware(golden: &Golden, policy: &Policy, old: &OldPolicy, case: &Value) -> Tensor {
    let (fixture, settings) = (&golden.fixture, settings(case));
    let prompts = fixture.torch("context").into();
    let (clean, noise, share) = (fixture.torch("clean"), fixture.torch("nft.noise"), fixture.torch("nft.r"));
    let times = policy.sampler.timesteps();
    let mut sum = Tensor::from(0.0_f32);
    let noised = |step: usize| {
        let timesteps = Tensor::from_slice(&[times[step] as i64; 4]);
        let level = policy.schedule.levels(&timesteps, clean.device());
        (level.add_noise(&clean, &noise.select(1, step as i64)), timesteps, level)
    };
    let predict =
        |policy: &Policy, (x, timesteps, _): &(Tensor, Tensor, Level)| policy.unet.forward(x, timesteps, &prompts);
    // The old policy first: it takes the place of what trains, which a graph must not see.
    let steps: Vec<_> = (0..times.len()).map(noised).collect();
    let before = |noised: &_| tch::no_grad(|| old.stand_in(policy, || predict(policy, noised)));
    let before: Vec<Tensor> = steps.iter().map(before).collect();
    for (noised, before) in steps.iter().zip(&before) {
        let base = tch::no_grad(|| policy.as_base(|base| Ok(predict(base, noised)))).unwrap();
        let output = predict(policy, noised);
        let original = |output: &Tensor| noised.2.original(policy.prediction, output, &noised.0);
        let losses = nft::losses(&output, before, &clean, original, &share, settings.beta);
        sum += losses.mean(Kind::Float) + (output - base).square().mean(Kind::Float) * settings.kl;
    }
    sum / times.len() as f64
}

#[test]
fn every_other_method_is_pytorchs() {
    let golden = Golden::open_at("policy/policy");
    let trained = golden.unet.parameters.trained();
    let old = OldPolicy::from_state(&trained, &|name, _| Ok(golden.fixture.torch(name))).unwrap();
    let mut cases = 0;
    for case in golden.cases() {
        let name = case["name"].as_str().unwrap();
        golden.forget_gradients();
        let policy = golden.policy(&case);
        let loss = match case["method"].as_str().unwrap() {
            "ddpo" | "grpo" => policy_gradient(&golden, &policy, &case),
            "nft" => negative_aware(&golden, &policy, &old, &case),
            _ => forward_process(&golden, &policy, &case),
        };
        let want = golden.fixture.floats(&format!("{name}.loss"))[0];
        assert_close(name, &[loss.double_value(&[]) as f32], &[want], 2e-5 * want.abs().max(0.1));
        loss.backward();
        golden.check_gradients(name);
        cases += 1;
    }
    assert_eq!(cases, 30);
}

/// The same trajectory from the same noise is rolled out, with the same probabilities.
#[test]
fn advantages_are_those_of_the_field() {
    let golden = Golden::open_at("policy/policy");
    let stored = |name: &str| numbers(&golden.fixture.torch(name));
    let same = |name: &str, found: &[f64]| {
        let found: Vec<f32> = found.iter().map(|value| *value as f32).collect();
        assert_close(name, &found, &golden.fixture.floats(name), 2e-5);
    };
    let rewards = stored("grpo.rewards");
    same("grpo.advantages_group", &of_groups(&rewards, 2, Deviation::Group));
    same("grpo.advantages_batch", &of_groups(&rewards, 2, Deviation::Batch));
    let both = stored("gdpo.rewards");
    let weights: Vec<f64> = serde_json::from_value(golden.description["gdpo"]["weights"].clone()).unwrap();
    same("gdpo.advantages", &combined(&[both[..4].to_vec(), both[4..].to_vec()], &weights, 2));
    let tracker = &golden.description["tracker"];
    let prompts: Vec<Vec<usize>> = serde_json::from_value(tracker["prompts"].clone()).unwrap();
    let least = tracker["min_count"].as_u64().unwrap() as usize;
    for (buffer, name) in [("buffer", "tracker.advantages"), ("buffer_small", "tracker.advantages_small")] {
        let size = tracker[buffer].as_u64().unwrap() as usize;
        let mut statistics = PromptStatistics::new(3, size, least);
        let rewards = stored("tracker.rewards");
        let batches = prompts.iter().zip(rewards.chunks(4));
        let found: Vec<f64> = batches.flat_map(|(prompts, rewards)| statistics.advantages(prompts, rewards)).collect();
        same(name, &found);
    }
}
