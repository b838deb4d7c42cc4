//! From prompts and noise to latents as `diffusion generate` makes them: checked, watched, and stopped where the user says so.

use std::sync::atomic::{AtomicBool, Ordering};

use tch::{Device, Kind, Tensor};

use crate::{
    Error, Result,
    conditioning::Conditioning,
    denoise::{denoise, guide},
    layer::Handle,
    noise,
    schedule::Sampler,
};

/// Which model makes a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// The base model, without adapters.
    Base,
    /// The model with its adapters.
    Adapted,
}

/// The first steps of combined generation, which the base model makes before the adapters join ("ImageReFL", Sorokin et al.,
/// 2025, <https://arxiv.org/abs/2505.22569>). So images of a tuned model are more diverse.
pub struct BaseSteps<'a> {
    /// How many; with as many as the sampler has, adapters take no part.
    pub count: usize,
    /// The prompts as the text encoder without adapters gives them, B of them.
    pub prompts: &'a Conditioning,
    /// The negative prompts, encoded in the same way.
    pub negative_prompts: Option<&'a Conditioning>,
}

/// What a batch is made from.
pub struct Request<'a> {
    /// Set to its number of steps.
    pub sampler: &'a Sampler,
    /// The prompts, B of them, on the model's device.
    pub prompts: &'a Conditioning,
    /// The negative prompts, B of them or one for all; not needed where the guidance scale is at most 1.
    pub negative_prompts: Option<&'a Conditioning>,
    /// The first steps, where the base model makes them.
    pub base: Option<BaseSteps<'a>>,
    /// Noise of unit variance, `[B,C,h,w]`.
    pub latents: &'a Tensor,
    /// The images' effective seeds, B of them, for the noise that stochastic samplers add.
    pub seeds: &'a [u64],
    /// How far to go past the prompt, away from the negative prompt. At most 1 is no guidance and no unconditional pass, as in
    /// diffusers.
    pub guidance_scale: f64,
    /// What the model computes in; only for the message when values overflow.
    pub precision: Kind,
}

impl Request<'_> {
    fn guided(&self) -> bool {
        self.guidance_scale > 1.0
    }

    /// What step `index` is made by.
    fn phase(&self, index: usize) -> Phase {
        match &self.base {
            Some(base) if index < base.count => Phase::Base,
            _ => Phase::Adapted,
        }
    }

    /// B prompts, or 2B with the negative ones first.
    fn conditioning(&self, positive: &Conditioning, negative: Option<&Conditioning>) -> Result<Conditioning> {
        let (batch, prompts) = (self.latents.size(), positive.hidden.size());
        let images = batch.first().copied().unwrap_or(0);
        let wrong = |what: &str, got: &[i64]| {
            Err(Error::usage(format!("{what} {got:?} for latents {batch:?} and prompts {prompts:?}")))
        };
        if batch.len() != 4 || prompts.len() != 3 || prompts[0] != images {
            return wrong("prompt embeddings", &prompts);
        }
        if self.seeds.len() as i64 != images {
            return wrong("seeds", &[self.seeds.len() as i64]);
        }
        if !self.guidance_scale.is_finite() {
            return Err(Error::usage(format!("guidance scale {}, want a number", self.guidance_scale)));
        }
        if !self.guided() {
            return Ok(positive.handle());
        }
        let Some(negative) = negative else {
            return Err(Error::usage(format!(
                "guidance scale {} needs the embedding of a negative prompt (an empty one will do)",
                self.guidance_scale
            )));
        };
        let size = negative.hidden.size();
        if size.len() != 3 || size[1..] != prompts[1..] || !(size[0] == 1 || size[0] == images) {
            return wrong("negative prompt embeddings", &size);
        }
        Ok(positive.behind(negative))
    }
}

/// Denoises a batch to latents `[B,C,h,w]`, fp32, on the prompts' device, to be divided by the VAE's scaling factor and decoded.
///
/// `unet` takes the phase, latents `[N,C,h,w]`, timesteps `[N]` (fp32) and N prompts, N = B or, guided, 2B, and gives
/// `[N,C,h,w]`. `finished` is told the number of steps done, after each. Gradients are neither switched on nor off here.
///
/// # Errors
/// Prompts that do not fit the latents (usage); `cancel` was set (interrupted); values that are not finite.
pub fn sample(
    unet: impl Fn(Phase, &Tensor, &Tensor, &Conditioning) -> Tensor,
    request: &Request<'_>,
    cancel: &AtomicBool,
    mut finished: impl FnMut(usize),
) -> Result<Tensor> {
    let adapted = request.conditioning(request.prompts, request.negative_prompts)?;
    let base =
        request.base.as_ref().map(|base| request.conditioning(base.prompts, base.negative_prompts)).transpose()?;
    let device = request.prompts.device();
    let sampler = request.sampler;
    let x = request.latents.to_device(device).to_kind(Kind::Float);
    let shape = [x.size()[1], x.size()[2], x.size()[3]];
    let steps = sampler.timesteps().len();
    let mut watch = Watch::new(request.precision, steps, device);
    let predict = |index: usize, input: &Tensor| {
        if cancel.load(Ordering::Relaxed) {
            return Err(Error::interrupted());
        }
        let phase = request.phase(index);
        let prompts = base.as_ref().filter(|_| phase == Phase::Base).unwrap_or(&adapted);
        let timesteps = Tensor::full([prompts.len()], sampler.timesteps()[index], (Kind::Float, device));
        if !request.guided() {
            return Ok(unet(phase, input, &timesteps, prompts).to_kind(Kind::Float));
        }
        let output = unet(phase, &Tensor::cat(&[input, input], 0), &timesteps, prompts).to_kind(Kind::Float);
        Ok(guide(&output, request.guidance_scale))
    };
    let noise = |index| noise::step_noise(request.seeds, index, shape).to_device(device);
    let end = denoise(sampler, &x, 0..steps, predict, noise, |index, _, latents| {
        watch.look(latents)?;
        finished(index + 1);
        Ok(())
    })?;
    Ok(end.latents)
}

/// Finds the first step whose latents are not finite. A look is a reduction on the device. The host asks for what was seen after
/// every step on a CPU; elsewhere, where asking makes it wait, only now and then.
struct Watch {
    precision: Kind,
    steps: usize,
    ask_every: usize,
    done: usize,
    pending: Vec<Tensor>,
}

impl Watch {
    fn new(precision: Kind, steps: usize, device: Device) -> Self {
        let ask_every = if device == Device::Cpu { 1 } else { 10 };
        Self { precision, steps, ask_every, done: 0, pending: Vec::new() }
    }

    fn look(&mut self, latents: &Tensor) -> Result<()> {
        self.pending.push(latents.isfinite().all());
        self.done += 1;
        if !self.done.is_multiple_of(self.ask_every) && self.done < self.steps {
            return Ok(());
        }
        let first = self.done - self.pending.len();
        let seen = Tensor::stack(&self.pending, 0).to_device(Device::Cpu);
        self.pending.clear();
        let seen: Vec<bool> = Vec::try_from(seen).map_err(|error| Error::data("latents").caused_by(error))?;
        match seen.iter().position(|finite| !finite) {
            None => Ok(()),
            Some(at) => {
                Err(not_finite("latents", &format!("after step {} of {}", first + at + 1, self.steps), self.precision))
            }
        }
    }
}

/// An error for values that are not finite: what, where, in which precision.
fn not_finite(what: &str, place: &str, precision: Kind) -> Error {
    let (name, hint) = match precision {
        Kind::BFloat16 => ("bf16", "--precision fp32"),
        Kind::Half => ("fp16", "--precision fp32"),
        _ => (
            "fp32",
            "the weights, or a LoRA's, may be damaged: `diffusion verify` compares them with another implementation",
        ),
    };
    Error::data(format!("{what} are not finite (NaN or infinite) {place}, in {name}")).hint(hint)
}

/// Decoded images `[B,3,H,W]` in −1..=1 as bytes `[B,H,W,3]` on the CPU: round((x/2 + 0.5).clamp(0, 1) · 255), half to even.
///
/// # Errors
/// Values that are not finite; `precision` is what the decoder computed in.
pub fn to_bytes(images: &Tensor, precision: Kind) -> Result<Tensor> {
    let images = images.to_kind(Kind::Float);
    if images.isfinite().all().int64_value(&[]) == 0 {
        return Err(not_finite("image values", "after the VAE", precision));
    }
    let levels = (images / 2.0 + 0.5).clamp(0.0, 1.0) * 255.0;
    Ok(levels.round().to_kind(Kind::Uint8).permute([0, 2, 3, 1]).contiguous().to_device(Device::Cpu))
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;
    use crate::schedule::{PredictionType, SamplerName, SchedulerConfig};

    fn sampler(name: SamplerName, steps: usize) -> Sampler {
        Sampler::new(name, &SchedulerConfig::stable_diffusion(PredictionType::Epsilon), steps, 0.0).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.contiguous().view(-1)).unwrap()
    }

    fn request<'a>(sampler: &'a Sampler, prompts: &'a Conditioning, latents: &'a Tensor, scale: f64) -> Request<'a> {
        Request {
            sampler,
            prompts,
            negative_prompts: None,
            base: None,
            latents,
            seeds: &[3, 4],
            guidance_scale: scale,
            precision: Kind::Float,
        }
    }

    fn zeros(shape: &[i64]) -> Tensor {
        Tensor::zeros(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn both_branches_go_through_one_call() {
        let sampler = sampler(SamplerName::Ddim, 4);
        let (prompts, negative) = (Conditioning::from(zeros(&[2, 3, 5]) + 1.0), Conditioning::from(zeros(&[1, 3, 5])));
        let latents = zeros(&[2, 4, 2, 2]);
        let shapes = RefCell::new(Vec::new());
        let unet = |_, x: &Tensor, t: &Tensor, context: &Conditioning| {
            shapes.borrow_mut().push((x.size()[0], t.size()[0], context.len()));
            assert_eq!((context.hidden.double_value(&[0, 0, 0]), context.hidden.double_value(&[3, 0, 0])), (0.0, 1.0));
            x.zeros_like()
        };
        let mut steps = Vec::new();
        let guided = Request { negative_prompts: Some(&negative), ..request(&sampler, &prompts, &latents, 7.5) };
        let latents = sample(unet, &guided, &AtomicBool::new(false), |done| steps.push(done)).unwrap();
        assert_eq!(latents.size(), [2, 4, 2, 2]);
        assert_eq!(*shapes.borrow(), [(4, 4, 4); 4]);
        assert_eq!(steps, [1, 2, 3, 4]);
    }

    #[test]
    fn without_guidance_there_is_no_unconditional_pass() {
        let sampler = sampler(SamplerName::Euler, 3);
        let (prompts, latents) = (Conditioning::from(zeros(&[2, 3, 5])), zeros(&[2, 4, 2, 2]));
        let calls = Cell::new(0);
        let unet = |_, x: &Tensor, _: &Tensor, context: &Conditioning| {
            calls.set(calls.get() + 1);
            assert_eq!((x.size()[0], context.len()), (2, 2));
            x.zeros_like()
        };
        let request = request(&sampler, &prompts, &latents, 1.0);
        let latents = sample(unet, &request, &AtomicBool::new(false), |_| ()).unwrap();
        assert_eq!(latents.size(), [2, 4, 2, 2]);
        assert_eq!(calls.get(), 3);
    }

    #[test]
    fn the_base_model_makes_the_first_steps_from_prompts_of_its_own() {
        let sampler = sampler(SamplerName::Dpmpp2m, 4);
        let [prompts, base] = [1.0, 2.0].map(|value| Conditioning::from(zeros(&[2, 3, 5]) + value));
        let latents = zeros(&[2, 4, 2, 2]);
        let seen = |base: Option<BaseSteps<'_>>| {
            let calls = RefCell::new(Vec::new());
            let unet = |phase, x: &Tensor, _: &Tensor, context: &Conditioning| {
                calls.borrow_mut().push((phase, context.hidden.double_value(&[0, 0, 0])));
                x.zeros_like()
            };
            let request = Request { base, ..request(&sampler, &prompts, &latents, 1.0) };
            drop(sample(unet, &request, &AtomicBool::new(false), |_| ()).unwrap());
            calls.into_inner()
        };
        let (first, then) = ((Phase::Base, 2.0), (Phase::Adapted, 1.0));
        assert_eq!(seen(None), [then; 4]);
        for (count, wanted) in [(0, [then; 4]), (1, [first, then, then, then]), (4, [first; 4])] {
            assert_eq!(seen(Some(BaseSteps { count, prompts: &base, negative_prompts: None })), wanted);
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let sampler = sampler(SamplerName::Ddim, 2);
        let (prompts, negative) = (Conditioning::from(zeros(&[2, 3, 5])), Conditioning::from(zeros(&[2, 4, 5])));
        let latents = zeros(&[2, 4, 2, 2]);
        let error = |request: Request<'_>| {
            sample(|_, x, _, _| x.shallow_clone(), &request, &AtomicBool::new(false), |_| ()).unwrap_err().to_string()
        };
        assert_eq!(
            error(request(&sampler, &prompts, &latents, 2.0)),
            "guidance scale 2 needs the embedding of a negative prompt (an empty one will do)"
        );
        assert_eq!(
            error(Request { negative_prompts: Some(&negative), ..request(&sampler, &prompts, &latents, 2.0) }),
            "negative prompt embeddings [2, 4, 5] for latents [2, 4, 2, 2] and prompts [2, 3, 5]"
        );
        assert_eq!(
            error(Request { seeds: &[1], ..request(&sampler, &prompts, &latents, 1.0) }),
            "seeds [1] for latents [2, 4, 2, 2] and prompts [2, 3, 5]"
        );
        let base =
            Some(BaseSteps { count: 1, prompts: &Conditioning::from(zeros(&[1, 3, 5])), negative_prompts: None });
        assert_eq!(
            error(Request { base, ..request(&sampler, &prompts, &latents, 1.0) }),
            "prompt embeddings [1, 3, 5] for latents [2, 4, 2, 2] and prompts [1, 3, 5]"
        );
    }

    #[test]
    fn the_first_step_that_overflows_is_named_with_the_precision() {
        let sampler = sampler(SamplerName::Ddim, 5);
        let (prompts, latents) = (Conditioning::from(zeros(&[2, 3, 5])), zeros(&[2, 4, 2, 2]));
        let calls = Cell::new(0);
        let unet = |_, x: &Tensor, _: &Tensor, _: &Conditioning| {
            calls.set(calls.get() + 1);
            if calls.get() < 3 { x.zeros_like() } else { x.full_like(f64::NAN) }
        };
        let request = Request { precision: Kind::BFloat16, ..request(&sampler, &prompts, &latents, 1.0) };
        let error = sample(unet, &request, &AtomicBool::new(false), |_| ()).unwrap_err();
        assert_eq!(error.to_string(), "latents are not finite (NaN or infinite) after step 3 of 5, in bf16");
        assert_eq!(calls.get(), 3);
    }

    #[test]
    fn where_asking_is_dear_the_step_is_still_named() {
        let mut watch = Watch { precision: Kind::Float, steps: 9, ask_every: 4, done: 0, pending: Vec::new() };
        let finite = zeros(&[1]);
        for _ in 0..5 {
            watch.look(&finite).unwrap();
        }
        watch.look(&finite.full_like(f64::INFINITY)).unwrap();
        watch.look(&finite).unwrap();
        let error = watch.look(&finite).unwrap_err();
        assert_eq!(error.to_string(), "latents are not finite (NaN or infinite) after step 6 of 9, in fp32");
    }

    #[test]
    fn a_set_flag_stops_before_the_next_step() {
        let sampler = sampler(SamplerName::Ddim, 5);
        let (prompts, latents) = (Conditioning::from(zeros(&[2, 3, 5])), zeros(&[2, 4, 2, 2]));
        let cancel = AtomicBool::new(false);
        let mut steps = 0;
        let stop_after_two = |done| {
            steps = done;
            cancel.store(done == 2, Ordering::Relaxed);
        };
        let request = request(&sampler, &prompts, &latents, 1.0);
        let error = sample(|_, x, _, _| x.zeros_like(), &request, &cancel, stop_after_two).unwrap_err();
        assert_eq!((error.kind(), steps), (crate::ErrorKind::Interrupted, 2));
    }

    /// Ancestral noise is an image's own: alone or in a batch, the image is the same.
    #[test]
    fn an_image_does_not_depend_on_its_batch() {
        let sampler = sampler(SamplerName::EulerA, 4);
        let prompts = Conditioning::from(zeros(&[2, 3, 5]));
        let latents = noise::initial_latents(&[3, 4], [4, 2, 2]);
        let unet = |_, x: &Tensor, _: &Tensor, _: &Conditioning| x.tanh();
        let both = request(&sampler, &prompts, &latents, 1.0);
        let (first_prompt, second_latents) = (prompts.select(&[0]), latents.narrow(0, 1, 1));
        let alone = Request { seeds: &[4], ..request(&sampler, &first_prompt, &second_latents, 1.0) };
        let cancel = AtomicBool::new(false);
        let both = sample(unet, &both, &cancel, |_| ()).unwrap();
        let alone = sample(unet, &alone, &cancel, |_| ()).unwrap();
        assert_eq!(values(&both.get(1)), values(&alone.get(0)));
    }

    /// 0.5 · 255 = 127.5 goes to 128 (even), and (1/255 · 2.5) · 255 = 2.5 to 2.
    #[test]
    fn bytes_are_rounded_half_to_even() {
        let levels = Tensor::from_slice(&[0.0_f32, -3.0, 1.0, 2.0 * (2.5 / 255.0) - 1.0]).view([1, 1, 2, 2]);
        let images = levels.expand([1, 3, 2, 2], false);
        let bytes = to_bytes(&images, Kind::Float).unwrap();
        assert_eq!(bytes.size(), [1, 2, 2, 3]);
        let bytes: Vec<u8> = Vec::try_from(bytes.view(-1)).unwrap();
        assert_eq!(bytes, [128, 128, 128, 0, 0, 0, 255, 255, 255, 2, 2, 2]);
        assert!(to_bytes(&(images * f64::NAN), Kind::Float).is_err());
    }
}
