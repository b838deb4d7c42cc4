//! Schedules and samplers against diffusers' (`tests/golden/samplers.py`).

use diffusion::schedule::{NoiseSchedule, PredictionType, Sampler, SamplerName, SchedulerConfig, betas};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::fixture::{Fixture, assert_close, golden, values};

const TABLES: f32 = 1e-6;
const TRAJECTORIES: f32 = 1e-4;

fn description() -> Value {
    serde_json::from_str(&fs_err::read_to_string(golden("samplers/samplers.json")).unwrap()).unwrap()
}

fn fixture() -> Fixture {
    Fixture::open("samplers/samplers.safetensors")
}

fn single(values: impl IntoIterator<Item = f64>) -> Vec<f32> {
    values.into_iter().map(|value| value as f32).collect()
}

/// Sigmas reach 4,096: within `tolerance` of a value above 1, relative.
#[track_caller]
pub(crate) fn assert_close_for_its_size(what: &str, got: &[f32], want: &[f32], tolerance: f32) {
    assert_eq!(got.len(), want.len(), "{what}: {got:?}, want {want:?}");
    let scale: Vec<f32> = want.iter().map(|value| value.abs().max(1.0)).collect();
    let scaled = |values: &[f32]| values.iter().zip(&scale).map(|(value, scale)| value / scale).collect::<Vec<f32>>();
    assert_close(what, &scaled(got), &scaled(want), tolerance);
}

/// The config of a case (in full, or the name of one with changes), its sampler's name and number of steps.
fn case(case: &Value, configs: &Value) -> (String, SchedulerConfig, SamplerName, usize) {
    let what = format!("{} {} {} {}", case["sampler"], case["steps"], case["config"], case["changes"]);
    let mut keys = case["config"].as_str().map_or(&case["config"], |name| &configs[name]).as_object().unwrap().clone();
    keys.extend(case["changes"].as_object().cloned().unwrap_or_default());
    let config = SchedulerConfig::from_json(&Value::Object(keys)).unwrap();
    let sampler = case["sampler"].as_str().unwrap().parse().unwrap();
    (what, config, sampler, case["steps"].as_u64().unwrap() as usize)
}

#[test]
fn betas_and_alphas() {
    let (description, fixture) = (description(), fixture());
    let configs = description["configs"].as_object().unwrap();
    assert_eq!(configs.len(), 6);
    for (name, config) in configs {
        let config = SchedulerConfig::from_json(config).unwrap();
        assert_close(name, &betas(&config), &fixture.floats(&format!("{name}.betas")), TABLES);
        let alphas = single(NoiseSchedule::new(&config).alphas_cumprod().iter().copied());
        assert_close(name, &alphas, &fixture.floats(&format!("{name}.alphas_cumprod")), TABLES);
    }
}

#[test]
fn timesteps_and_sigmas() {
    let (description, fixture) = (description(), fixture());
    let cases = description["tables"].as_array().unwrap();
    assert!(cases.len() > 200);
    for entry in cases {
        let (what, config, name, steps) = case(entry, &description["configs"]);
        let sampler = Sampler::new(name, &config, steps, 0.0).unwrap_or_else(|error| panic!("{what}: {error}"));
        let key = entry["key"].as_str().unwrap();
        let timesteps = single(sampler.timesteps().iter().copied());
        assert_close_for_its_size(&what, &timesteps, &fixture.floats(&format!("{key}.timesteps")), TABLES);
        if let Some(sigmas) = sampler.sigmas() {
            let sigmas = single(sigmas.iter().copied());
            assert_close_for_its_size(&what, &sigmas, &fixture.floats(&format!("{key}.sigmas")), TABLES);
        }
        let first = entry["init_noise_sigma"].as_f64().unwrap();
        assert_close_for_its_size(&what, &[sampler.init_noise_sigma() as f32], &[first as f32], TABLES);
    }
}

/// The toy model of the script.
fn model(seen: &Tensor, timestep: f64) -> Tensor {
    (seen * 0.8 + (0.5 - timestep / 1000.0)).tanh()
}

#[test]
fn trajectories() {
    let (description, fixture) = (description(), fixture());
    let (start, noise) = (fixture.torch("start"), fixture.torch("noise"));
    for entry in description["trajectories"].as_array().unwrap() {
        let (what, config, name, steps) = case(entry, &description["configs"]);
        let sampler = Sampler::new(name, &config, steps, entry["eta"].as_f64().unwrap()).unwrap();
        let key = entry["key"].as_str().unwrap();
        let want = fixture.torch(&format!("{key}.latents"));
        let log_probabilities = fixture
            .names()
            .contains(&format!("{key}.log_probabilities"))
            .then(|| fixture.torch(&format!("{key}.log_probabilities")));
        let mut x = &start * sampler.init_noise_sigma();
        let mut previous = None;
        for (index, timestep) in sampler.timesteps().iter().enumerate() {
            let output = model(&sampler.scale_input(&x, index), *timestep);
            let step = sampler.step(index, &output, &x, previous.as_ref());
            x = step.sample(|| noise.get(index as i64));
            let what = format!("{what}, step {index}");
            assert_close_for_its_size(&what, &values(&x), &values(&want.get(index as i64)), TRAJECTORIES);
            // Where a step is all but deterministic, rounding of x is divided by that little.
            if let Some(log_probabilities) = &log_probabilities
                && step.std > 1e-2
            {
                let got = values(&step.log_probability(&x));
                assert_close(&what, &got, &values(&log_probabilities.get(index as i64)), TRAJECTORIES);
            }
            previous = Some(step.predicted_original);
        }
    }
}

#[test]
fn noise_for_training() {
    let fixture = fixture();
    let config = SchedulerConfig::stable_diffusion(PredictionType::Epsilon);
    let schedule = NoiseSchedule::new(&config);
    let (original, noise) = (fixture.torch("start"), fixture.torch("noise").get(0));
    let timesteps = fixture.torch_integers("training.timesteps");
    let noisy = schedule.add_noise(&original, &noise, &timesteps);
    assert_close("add_noise", &values(&noisy), &fixture.floats("training.add_noise"), TABLES);
    let levels = schedule.levels(&timesteps, Device::Cpu);
    let velocity = levels.target(PredictionType::Velocity, &original, &noise);
    assert_close("velocity", &values(&velocity), &fixture.floats("training.velocity"), TABLES);
    let back = levels.original(PredictionType::Velocity, &velocity, &noisy);
    assert_eq!(back.kind(), Kind::Float);
    assert_close("x₀ from v", &values(&back), &values(&original), 1e-5);
}

/// Fine-tuning goes back through a sampler's steps: the gradient of the last latents reaches the first.
#[test]
fn gradients_flow_through_every_sampler() {
    let config = SchedulerConfig::stable_diffusion(PredictionType::Epsilon);
    for name in SamplerName::ALL {
        let sampler = Sampler::new(name, &config, 4, 0.0).unwrap();
        let start = Tensor::ones([1, 4, 2, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let mut x = &start * sampler.init_noise_sigma();
        let mut previous = None;
        for (index, timestep) in sampler.timesteps().iter().enumerate() {
            let output = model(&sampler.scale_input(&x, index), *timestep);
            let step = sampler.step(index, &output, &x, previous.as_ref());
            (x, previous) = (step.mean, Some(step.predicted_original));
        }
        x.sum(Kind::Float).backward();
        let gradient = values(&start.grad());
        assert!(gradient.iter().all(|value| value.is_finite() && *value != 0.0), "{name}: {gradient:?}");
    }
}
