//! The cases of `tests/golden/finetune.py`: the models, inputs and expected gradients of each, and our side of it.

use std::collections::{BTreeMap, BTreeSet};

use diffusion::{
    algorithm::{AlignProp, Backprop, DraftK, DraftLv},
    layer::Adapter,
    noise::Stream,
    objective::{Loss, Objective, Scale, Shaping, Weighted},
    policy::{Batch, End, Plan, Policy},
    schedule::{NoiseSchedule, PredictionType, Sampler, SamplerName, SchedulerConfig},
    source::{Source, SourceOptions},
    unet::Unet,
    vae::Vae,
};
use reward::{
    clip::{
        model::{Clip, Depth, unit},
        preprocess_tensor::preprocess,
    },
    rewards::Reward,
    weights::{Checkpoint, OpenOptions},
};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::fixture::{Fixture, golden, values};

/// CLIP's cosine with given text embeddings, as the fixture has it.
struct Cosine {
    clip: Clip,
    text: Tensor,
}

impl Reward for Cosine {
    fn name(&self) -> &str {
        "cosine"
    }

    fn score(&self, pixels: &Tensor, _: &[&str]) -> diffusion::Result<Tensor> {
        let pixels = preprocess(pixels, self.clip.config.image_size as i64, &self.clip.config.preprocessing);
        let image = unit(&self.clip.image_suffix(&pixels, Depth::Input));
        Ok((image * &self.text).sum_dim_intlist([1_i64].as_slice(), false, Kind::Float))
    }

    fn differentiable(&self) -> bool {
        true
    }
}

pub(crate) struct Golden {
    pub(crate) fixture: Fixture,
    pub(crate) description: Value,
    pub(crate) unet: Unet,
    pub(crate) vae: Vae,
}

impl Golden {
    pub(crate) fn open() -> Self {
        Self::open_at("finetune/finetune")
    }

    /// The fixture of this name without ending.
    pub(crate) fn open_at(name: &str) -> Self {
        let fixture = Fixture::open(&format!("{name}.safetensors"));
        let description = fs_err::read_to_string(golden(&format!("{name}.json"))).unwrap();
        let description: Value = serde_json::from_str(&description).unwrap();
        let lora = &description["lora"];
        let scale = lora["alpha"].as_f64().unwrap() / lora["rank"].as_f64().unwrap();
        let part =
            |layer: &str, part| fixture.torch(&format!("lora.{layer}.lora_{part}.weight")).set_requires_grad(true);
        let adapters: BTreeMap<String, Adapter> = lora["layers"]
            .as_array()
            .unwrap()
            .iter()
            .map(|layer| layer.as_str().unwrap())
            .map(|layer| (layer.to_owned(), Adapter { down: part(layer, "A"), up: part(layer, "B"), scale }))
            .collect();
        let source = Source::open(&golden_model(), SourceOptions::default()).unwrap();
        let (config, weights) = source.unet().unwrap();
        let unet = Unet::new(&config, weights.adapters(adapters)).unwrap();
        let (config, weights) = source.vae().unwrap();
        let vae = Vae::new(&config, weights).unwrap();
        Self { fixture, description, unet, vae }
    }

    pub(crate) fn cases(&self) -> Vec<Value> {
        self.description["cases"].as_array().unwrap().clone()
    }

    pub(crate) fn prediction(case: &Value) -> PredictionType {
        case["prediction_type"].as_str().unwrap().parse().unwrap()
    }

    pub(crate) fn policy(&self, case: &Value) -> Policy<'_> {
        let config = SchedulerConfig::from_json(&self.description["scheduler"]).unwrap();
        let config = config.with_prediction_type(Self::prediction(case));
        let steps = self.description["steps"].as_u64().unwrap() as usize;
        Policy {
            unet: &self.unet,
            base: None,
            sampler: Sampler::new(SamplerName::Ddim, &config, steps, case["eta"].as_f64().unwrap()).unwrap(),
            schedule: NoiseSchedule::new(&config),
            prediction: Self::prediction(case),
            guidance_scale: case["guidance"].as_f64().unwrap(),
            negative: self.fixture.torch("negative").into(),
            negative_branch_gradient: !case["detach_negative"].as_bool().unwrap(),
        }
    }

    /// Images `range` of the two.
    pub(crate) fn batch(&self, start: i64, length: i64) -> Batch {
        let noises = Fixture::open("finetune/finetune.safetensors");
        let rows = move |name: &str| noises.torch(name).narrow(0, start, length);
        Batch {
            prompts: vec![String::new(); length as usize],
            conditioning: self.fixture.torch("context").narrow(0, start, length).into(),
            shape: [4, 8, 8],
            noise: Box::new(move |name: Stream, _| {
                rows(&name.to_string().replace("step/", "step_noise.").replace("renoise/", "renoise."))
            }),
        }
    }

    /// The fixture's reward for images `start..start + length`.
    pub(crate) fn rewards(&self, start: i64, length: i64) -> Vec<Weighted> {
        let path = golden(&format!("{}/model.safetensors", self.description["reward_model"].as_str().unwrap()));
        let checkpoint = Checkpoint::open(path.parent().unwrap().to_str().unwrap(), OpenOptions::default()).unwrap();
        let clip = Clip::load(&checkpoint, Device::Cpu, Kind::Float, |_| false).unwrap();
        let text = self.fixture.torch("reward_text").narrow(0, start, length);
        vec![Weighted { label: "cosine".to_owned(), reward: Box::new(Cosine { clip, text }), weight: 1.0 }]
    }

    pub(crate) fn objective<'a>(&'a self, case: &Value, rewards: &'a [Weighted]) -> Objective<'a> {
        let number = |name: &str| self.description[name].as_f64().unwrap();
        Objective {
            vae: &self.vae,
            rewards,
            scales: vec![Scale { mean: number("reward_mean"), deviation: number("reward_deviation") }],
            shaping: if case["margin"].is_null() { Shaping::Negative } else { Shaping::Relu },
            margin: case["margin"].as_f64().unwrap_or_default(),
            loss_scale: case["loss_scale"].as_f64().unwrap(),
            anchor: case["anchor"].as_f64().unwrap(),
            pixel_noise: 0.0,
        }
    }

    pub(crate) fn forget_gradients(&self) {
        self.unet.parameters.trained().iter_mut().for_each(|(_, tensor)| tensor.zero_grad());
    }

    /// Gradients by name; an undefined one is absent.
    pub(crate) fn gradients(&self) -> BTreeMap<String, Tensor> {
        let trained = self.unet.parameters.trained();
        let found = trained.into_iter().map(|(name, tensor)| (name, tensor.grad()));
        found.filter(|(_, gradient)| gradient.defined()).map(|(name, gradient)| (name, gradient.copy())).collect()
    }

    #[track_caller]
    pub(crate) fn check_gradients(&self, name: &str) {
        let gradients = self.gradients();
        let prefix = format!("{name}.grad.");
        let wanted: BTreeSet<String> =
            self.fixture.names().iter().filter_map(|key| key.strip_prefix(&prefix)).map(str::to_owned).collect();
        assert!(gradients.keys().eq(&wanted), "{name}");
        let (mut distance, mut length) = (0.0, 0.0);
        for (key, gradient) in &gradients {
            let want = self.fixture.torch(&format!("{prefix}{key}"));
            let apart = (gradient - &want).norm().double_value(&[]);
            let own = want.norm().double_value(&[]);
            assert!(apart <= 3e-4 * own, "{name}: {key} differs by {:e} of its norm", apart / own);
            distance += apart * apart;
            length += own * own;
        }
        let relative = (distance / length).sqrt();
        assert!(relative < 1e-4, "{name}: gradients differ by {relative:e} of their norm");
        assert!(self.unet.parameters.tensors.values().all(|weight| !weight.grad().defined()), "{name}: base weights");
        assert!(self.vae.parameters.tensors.values().all(|weight| !weight.grad().defined()), "{name}: VAE");
    }
}

fn count(case: &Value, name: &str) -> usize {
    case[name].as_u64().unwrap() as usize
}

/// The method of a case, with what it draws at random given.
pub(crate) struct Given {
    pub(crate) plan: Plan,
    pub(crate) algorithm: Box<dyn Backprop>,
}

pub(crate) fn given(case: &Value, steps: usize) -> Given {
    let mut stream = diffusion::noise::stream(0, Stream::Plan(0));
    let planned =
        |algorithm: Box<dyn Backprop>, stream: &mut _| Given { plan: algorithm.plan(steps, stream), algorithm };
    match case["method"].as_str().unwrap() {
        "draft" => planned(Box::new(DraftK { k: count(case, "k") }), &mut stream),
        "draft_lv" => planned(Box::new(DraftLv { copies: count(case, "renoises") }), &mut stream),
        "drtune" => {
            let trained: Vec<usize> =
                case["trained"].as_array().unwrap().iter().map(|step| step.as_u64().unwrap() as usize).collect();
            let plan =
                Plan { cut: trained[0], stop: count(case, "stop"), trained, detach_inputs: true, end: End::Original };
            Given { plan, algorithm: Box::new(AlignProp) }
        }
        "align_prop" => {
            let cut = count(case, "truncation");
            let plan =
                Plan { cut, stop: steps, trained: (cut..steps).collect(), detach_inputs: false, end: End::Latents };
            Given { plan, algorithm: Box::new(AlignProp) }
        }
        "refl" => {
            let step = count(case, "mid");
            let plan =
                Plan { cut: step, stop: step + 1, trained: vec![step], detach_inputs: false, end: End::Original };
            Given { plan, algorithm: Box::new(AlignProp) }
        }
        other => panic!("{other}"),
    }
}

pub(crate) fn loss(golden: &Golden, case: &Value, start: i64, length: i64) -> (Loss, Vec<f32>) {
    let (policy, batch) = (golden.policy(case), golden.batch(start, length));
    let Given { plan, algorithm } = given(case, policy.sampler.timesteps().len());
    let rewards = golden.rewards(start, length);
    let objective = golden.objective(case, &rewards);
    let latents = algorithm.rollout(&policy, &plan, &batch);
    assert!(!latents.requires_grad());
    let unrolled = algorithm.images(&policy, &latents, &plan, &batch, objective.anchor > 0.0);
    let ends = unrolled.latents.iter().flat_map(values).collect();
    (algorithm.loss(&policy, &latents, &plan, &batch, &objective).unwrap(), ends)
}

pub(crate) fn golden_model() -> String {
    golden("pipeline/model").display().to_string()
}
