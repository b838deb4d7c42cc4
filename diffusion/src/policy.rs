//! What fine-tuning trains: the UNet under classifier-free guidance and its sampling steps, with and without a graph.

use std::{cell::OnceCell, convert::Infallible, ops::Range};

use tch::{Kind, Tensor};

use crate::{
    Result,
    conditioning::Conditioning,
    denoise::{denoise, guide},
    layer::{Handle, SwitchedOff},
    lora::{Merged, merge},
    noise::{self, Stream},
    schedule::{Level, NoiseSchedule, PredictionType, Sampler, Step},
    unet::{Context, Unet},
    weights::Parameters,
};

/// A UNet that trains, and how it is sampled from.
pub struct Policy<'a> {
    /// The model.
    pub unet: &'a Unet,
    /// The model before training, where it is not `unet` with its adapters switched off.
    pub base: Option<&'a Unet>,
    /// Set to its number of steps.
    pub sampler: Sampler,
    /// The forward process the model was trained with.
    pub schedule: NoiseSchedule,
    /// What the model predicts.
    pub prediction: PredictionType,
    /// Classifier-free guidance; at most 1 is none, and no unconditional pass.
    pub guidance_scale: f64,
    /// The negative prompt, one row.
    pub negative: Conditioning,
    /// Whether gradients flow through the unconditional pass.
    pub negative_branch_gradient: bool,
}

/// Unit-variance noise by stream and shape `[C, h, w]`, `[B, C, h, w]`.
pub type Noise = Box<dyn Fn(Stream, [i64; 3]) -> Tensor>;

/// The images of a micro-batch.
pub struct Batch {
    /// The prompt of each image, B of them.
    pub prompts: Vec<String>,
    /// The prompts, encoded.
    pub conditioning: Conditioning,
    /// Channels, height and width of the latents.
    pub shape: [i64; 3],
    /// The noise of each image.
    pub noise: Noise,
}

impl Batch {
    /// Images of effective seeds `seeds` and latents `shape`, on the device of `conditioning`.
    pub fn new(prompts: Vec<String>, conditioning: Conditioning, seeds: Vec<u64>, shape: [i64; 3]) -> Self {
        let device = conditioning.device();
        let noise = Box::new(move |name: Stream, shape| noise::named(&seeds, name, shape).to_device(device));
        Self { prompts, conditioning, shape, noise }
    }

    /// The noise `name` in the latents' shape.
    pub fn noise(&self, name: Stream) -> Tensor {
        (self.noise)(name, self.shape)
    }
}

/// Which sampling steps run, which of them train, and where the image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Steps below this one have no graph.
    pub cut: usize,
    /// Steps below this one run.
    pub stop: usize,
    /// The steps from `cut` on whose prediction is trained, ascending.
    pub trained: Vec<usize>,
    /// The UNet's input is detached, so that gradients flow through the sampler's linear steps only.
    pub detach_inputs: bool,
    /// What is decoded.
    pub end: End,
}

/// What is decoded after the last step that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The latents after it.
    Latents,
    /// The x₀ it was taken towards.
    Original,
}

/// Latents with a graph.
pub struct Unrolled {
    /// To be decoded, `[B, C, h, w]`, fp32; one or more for each image of the batch.
    pub latents: Vec<Tensor>,
    /// Mean squared distance of the trained steps' ε from the base model's, a scalar; absent where nobody asked.
    pub anchor: Option<Tensor>,
}

/// Adapters that are merged into their weights until it is dropped, also by a panic.
struct MergedIn<'a> {
    merged: Option<Merged>,
    parameters: &'a Parameters,
    _off: SwitchedOff<'a>,
}

impl Drop for MergedIn<'_> {
    fn drop(&mut self) {
        if let Some(merged) = self.merged.take() {
            merged.unmerge(self.parameters);
        }
    }
}

impl Policy<'_> {
    /// Runs `body`, which builds no graph, with the adapters merged into the weights where those are fp32: in bf16 a small
    /// update would round away.
    ///
    /// # Errors
    /// What `body` says.
    pub fn merged<T>(&self, body: impl FnOnce() -> Result<T>) -> Result<T> {
        let parameters = &self.unet.parameters;
        if parameters.kind != Kind::Float || parameters.adapted.is_empty() || !parameters.switch.is_on() {
            return body();
        }
        let merged = Some(merge(parameters, &parameters.adapted)?);
        let _merged = MergedIn { merged, parameters, _off: SwitchedOff::new(&parameters.switch) };
        body()
    }

    /// Runs `body` with the model before training in place of the one that trains.
    ///
    /// # Errors
    /// What `body` says.
    pub fn as_base<T>(&self, body: impl FnOnce(&Policy) -> Result<T>) -> Result<T> {
        let Some(base) = self.base else {
            let _off = SwitchedOff::new(&self.unet.parameters.switch);
            return body(self);
        };
        body(&Policy {
            unet: base,
            base: None,
            sampler: self.sampler.clone(),
            schedule: self.schedule.clone(),
            negative: self.negative.handle(),
            ..*self
        })
    }

    /// Steps `steps` from latents `x` without a graph.
    pub fn roll(&self, x: &Tensor, steps: Range<usize>, batch: &Batch) -> Tensor {
        self.roll_watched(x, steps, batch, true, |_, _| ())
    }

    /// As [`Self::roll`]; `after` sees each step and the latents it led to. Where log-probabilities will be evaluated again,
    /// `joined` is false, so that both branches of guidance go through the UNet as they do in training.
    pub fn roll_watched(
        &self,
        x: &Tensor,
        steps: Range<usize>,
        batch: &Batch,
        joined: bool,
        mut after: impl FnMut(&Step, &Tensor),
    ) -> Tensor {
        let calls = OnceCell::new();
        let predict =
            |index, input: &Tensor| Ok::<_, Infallible>(self.predict_prepared(input, index, batch, joined, &calls));
        let noise = |index| batch.noise(Stream::Step(index));
        let seen = |_, step: &Step, latents: &Tensor| {
            after(step, latents);
            Ok(())
        };
        let Ok(end) = tch::no_grad(|| denoise(&self.sampler, &x.detach(), steps, predict, noise, seen));
        end.latents
    }

    /// Steps `plan.cut..plan.stop` from latents `x` with a graph through those that train; `anchored` also compares them with
    /// the base model.
    pub fn unroll(&self, x: &Tensor, plan: &Plan, batch: &Batch, anchored: bool) -> Unrolled {
        let mut distances = Vec::new();
        let calls = OnceCell::new();
        let predict = |index, input: &Tensor| {
            if !plan.trained.contains(&index) {
                return Ok::<_, Infallible>(tch::no_grad(|| {
                    self.predict_prepared(&input.detach(), index, batch, true, &calls)
                }));
            }
            let input = if plan.detach_inputs { input.detach() } else { input.shallow_clone() };
            let output = self.predict(&input, index, batch);
            if anchored {
                distances.push(self.distance(&input, &output, index, batch));
            }
            Ok(output)
        };
        let noise = |index| batch.noise(Stream::Step(index));
        let steps = plan.cut..plan.stop;
        let Ok(end) = denoise(&self.sampler, &x.detach(), steps, predict, noise, |_, _, _| Ok(()));
        let latents = vec![if plan.end == End::Latents { end.latents } else { end.original }];
        let anchor = (!distances.is_empty()).then(|| Tensor::stack(&distances, 0).mean(Kind::Float));
        Unrolled { latents, anchor }
    }

    /// The guided prediction for `x` before step `index`, `[B, C, h, w]`, fp32.
    pub fn predict(&self, x: &Tensor, index: usize, batch: &Batch) -> Tensor {
        self.predict_each(x, &self.timesteps(x, index), &batch.conditioning)
    }

    /// The same for images that are each before a step of their own: `timesteps` `[B]`, one prompt for each.
    pub fn predict_each(&self, x: &Tensor, timesteps: &Tensor, prompts: &Conditioning) -> Tensor {
        self.predict_with(self.unet, x, timesteps, prompts, self.negative_branch_gradient)
    }

    /// The guided prediction for `x` before step `index`, without a graph. Keys and values of the prompts are the same in every
    /// step and kept in `calls`. They are of one call for both branches of guidance or, where these are not `joined` in training,
    /// of two.
    fn predict_prepared(
        &self,
        x: &Tensor,
        index: usize,
        batch: &Batch,
        joined: bool,
        calls: &OnceCell<Vec<Context>>,
    ) -> Tensor {
        let prompts = &batch.conditioning;
        let calls = calls.get_or_init(|| {
            if !self.guided() {
                vec![self.unet.context(prompts)]
            } else if joined || self.negative_branch_gradient {
                vec![self.unet.context(&prompts.behind(&self.negative))]
            } else {
                vec![self.unet.context(&self.negative.repeated(prompts.len())), self.unet.context(prompts)]
            }
        });
        let call = |x: &Tensor, context| self.unet.forward_with(x, &self.timesteps(x, index), context);
        match &calls[..] {
            [one] if !self.guided() => call(x, one),
            [both] => guide(&call(&Tensor::cat(&[x, x], 0), both), self.guidance_scale),
            each => {
                guide(&Tensor::cat(&each.iter().map(|one| call(x, one)).collect::<Vec<_>>(), 0), self.guidance_scale)
            }
        }
    }

    /// What the model before training predicts, without a graph.
    pub fn predict_base(&self, x: &Tensor, index: usize, batch: &Batch) -> Tensor {
        self.predict_base_each(x, &self.timesteps(x, index), &batch.conditioning)
    }

    /// The same for images that are each before a step of their own.
    pub fn predict_base_each(&self, x: &Tensor, timesteps: &Tensor, prompts: &Conditioning) -> Tensor {
        tch::no_grad(|| match self.base {
            Some(base) => self.predict_with(base, &x.detach(), timesteps, prompts, true),
            None => {
                let _off = SwitchedOff::new(&self.unet.parameters.switch);
                self.predict_with(self.unet, &x.detach(), timesteps, prompts, true)
            }
        })
    }

    /// Mean squared distance of ε from the base model's for input `x` of step `index`, a scalar.
    pub fn distance(&self, x: &Tensor, output: &Tensor, index: usize, batch: &Batch) -> Tensor {
        let base = self.predict_base(x, index, batch);
        let level = self.level(index);
        let epsilon = |output: &Tensor| level.epsilon(self.prediction, output, x);
        (epsilon(output) - epsilon(&base)).square().mean(Kind::Float)
    }

    /// The noise level before step `index`.
    pub fn level(&self, index: usize) -> Level {
        Level::of(self.schedule.alpha_bar(self.sampler.timesteps()[index] as usize))
    }

    fn predict_with(
        &self,
        unet: &Unet,
        x: &Tensor,
        timesteps: &Tensor,
        prompts: &Conditioning,
        both_branches: bool,
    ) -> Tensor {
        if !self.guided() {
            return unet.forward(x, timesteps, prompts);
        }
        if both_branches {
            let (x, timesteps) = (Tensor::cat(&[x, x], 0), Tensor::cat(&[timesteps, timesteps], 0));
            return guide(&unet.forward(&x, &timesteps, &prompts.behind(&self.negative)), self.guidance_scale);
        }
        let negative = tch::no_grad(|| unet.forward(&x.detach(), timesteps, &self.negative.repeated(prompts.len())));
        let positive = unet.forward(x, timesteps, prompts);
        &negative + (positive - &negative) * self.guidance_scale
    }

    fn guided(&self) -> bool {
        self.guidance_scale > 1.0
    }

    fn timesteps(&self, x: &Tensor, index: usize) -> Tensor {
        Tensor::full([x.size()[0]], self.sampler.timesteps()[index], (Kind::Float, x.device()))
    }
}
