"""Losses and LoRA gradients of every fine-tuning method that differentiates the reward, and of the denoising loss: each
method written out plainly, with torch's autograd.

    python tests/golden/finetune.py        writes finetune/

diffusers 0.42.1, transformers 5.24.0, peft 0.21.2, torch 2.11.0. The base is `pipeline/model`, the reward the cosine of
`clip/hf_gelu`. What is stored was computed in float64 and rounded; the script prints how far float32 is off.

With a the alpha-bar of a step and a' that of the step after it (`alphas_cumprod[0]` after the last), e the guided noise
prediction `negative + guidance * (positive - negative)` and z the step's noise:

    x0   = (x - sqrt(1 - a) e) / sqrt(a)                              (not clipped)
    s    = eta sqrt((1 - a') / (1 - a) * (1 - a / a'))
    next = sqrt(a') x0 + sqrt(1 - a' - s^2) e + s z

    draft       all but the last `k` steps without gradient; the image is x after the last step
    draft_lv    draft with k = 1; then, for each renoise, its final latents (detached) noised to the last timestep
                and stepped once with gradient
    drtune      `stop` steps; the UNet sees x detached; only the steps in `trained` build its graph, while x keeps
                its own graph through the lines above; the image is the x0 predicted by step `stop - 1`
    align_prop  x detached before step `truncation`, the rest with gradient; the image is x after the last step
    refl        `mid` steps without gradient; the image is the x0 predicted by step `mid`, which has gradient
    denoising   mean over the batch of weight * mean((prediction - target)^2); weight 1 or, as diffusers'
                train_text_to_image.py has it, min(snr, gamma) / snr (noise) or / (snr + 1) (velocity)

The loss on the standardised rewards r of all images is -mean(r) or mean(relu(margin - r)), times `loss_scale`, plus
`anchor` times the mean over the steps with gradient of mean((e - e of the base)^2).
"""

import copy
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer

HERE = Path(__file__).parent
FOLDER = HERE / "finetune"
MODEL = HERE / "pipeline" / "model"
REWARD_MODEL = HERE / "clip" / "hf_gelu"
SCHEDULER = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
STEPS = 5
PROMPTS = ["a red house by the sea", "Two cats, café & rain 雨"]
NEGATIVE = "blurry"
REWARD_IDS = [  # start 198; id 197 stands above the end token 190, at whose first occurrence the text is pooled
    [198, 161, 197, 2, 37, 36, 104, 190] + [190] * 8,
    [198, 76, 197, 2, 5, 180, 148, 19, 100, 151, 41, 190] + [190] * 4,
]
RANK, ALPHA, RELATIVE_UPDATE = 2, 3, 0.2
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
REWARD_MEAN, REWARD_DEVIATION = -0.2, 0.15
PIXEL_MEAN = [0.48145466, 0.4578275, 0.40821073]
PIXEL_DEVIATION = [0.26862954, 0.26130258, 0.27577711]
PREPROCESS = {"square": (20, 20, 50), "oblong": (24, 36, 40), "shrunk": (44, 37, 54)}  # height, width, seed

COMMON = {
    "prediction_type": "epsilon",
    "guidance": 3.0,
    "detach_negative": False,
    "eta": 0.0,
    "margin": None,  # of the loss on rewards; none: -mean
    "loss_scale": 1.0,
    "anchor": 0.0,
}
REFL = {"method": "refl", "mid": 3, "eta": 1.0, "margin": 2.0, "loss_scale": 1e-3}
DRTUNE = {"method": "drtune", "detach_negative": True}
CASES = {
    "draft_k1": {"method": "draft", "k": 1},
    "draft_k2": {"method": "draft", "k": 2},
    "draft_full": {"method": "draft", "k": 5},
    "draft_k2_anchor": {"method": "draft", "k": 2, "anchor": 0.5, "margin": 0.0},
    "draft_k2_detached_negative": {"method": "draft", "k": 2, "detach_negative": True},
    "draft_k2_v": {"method": "draft", "k": 2, "prediction_type": "v_prediction"},
    "draft_k2_unguided": {"method": "draft", "k": 2, "guidance": 1.0},
    "draft_lv": {"method": "draft_lv", "renoises": 2},
    "drtune": DRTUNE | {"stop": 4, "start": 0, "stride": 2, "trained": [0, 2]},
    "drtune_last": DRTUNE | {"stop": 3, "start": 0, "stride": 1, "trained": [0, 1, 2]},
    "align_prop": {"method": "align_prop", "truncation": 2, "eta": 1.0},
    "refl": REFL | {"guidance": 1.0},
    "refl_guided": REFL,
    "denoising_eps": {"method": "denoising"},
    "denoising_v": {"method": "denoising", "prediction_type": "v_prediction"},
    "denoising_eps_snr": {"method": "denoising", "snr_gamma": 5.0},
    "denoising_v_snr": {"method": "denoising", "prediction_type": "v_prediction", "snr_gamma": 5.0},
}
CASES = {
    name: ({"snr_gamma": None, "prediction_type": "epsilon"} if case["method"] == "denoising" else COMMON) | case
    for name, case in CASES.items()
}


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def preprocess(images: Tensor, size: int) -> Tensor:
    """What CLIP sees of images in 0..1: the short side to `size`, the centre, normalised."""
    height, width = images.shape[-2:]
    short = min(height, width)
    height, width = (int(size * side / short) for side in (height, width))
    images = F.interpolate(images, size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    images = images.clamp(0, 1)  # as PIL's bytes are
    top, left = (int(round((side - size) / 2)) for side in (height, width))
    images = images[..., top : top + size, left : left + size]
    mean, deviation = (images.new_tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_DEVIATION))
    return (images - mean) / deviation


def add_lora(unet: UNet2DConditionModel) -> None:
    """LoRA on every attention projection, both factors random, each update `RELATIVE_UPDATE` of its weight."""
    unet.add_adapter(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=ATTENTION))
    layers = [(name, module) for name, module in sorted(unet.named_modules()) if hasattr(module, "lora_A")]
    for index, (_, layer) in enumerate(layers):
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        with torch.no_grad():
            down.copy_(noise(1000 + index, *down.shape) * down.shape[1] ** -0.5)
            up.copy_(noise(2000 + index, *up.shape))
            update = ALPHA / RANK * up @ down
            up.mul_(RELATIVE_UPDATE * layer.base_layer.weight.norm() / update.norm())
        assert layer.scaling == {"default": ALPHA / RANK}


class World:
    """Models and inputs in one precision."""

    def __init__(self, inputs: dict[str, Tensor], dtype: torch.dtype):
        self.base = UNet2DConditionModel.from_pretrained(MODEL / "unet")
        self.vae = AutoencoderKL.from_pretrained(MODEL / "vae")
        self.clip = CLIPModel.from_pretrained(REWARD_MODEL)
        for model in (self.base, self.vae, self.clip):
            model.requires_grad_(False).eval()
        self.unet = copy.deepcopy(self.base)
        add_lora(self.unet)
        if dtype == torch.float64:
            for model in (self.base, self.unet, self.vae, self.clip):
                model.double()
        self.inputs = {
            name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()
        }
        scheduler = DDIMScheduler(**SCHEDULER)
        scheduler.set_timesteps(STEPS)
        self.timesteps = scheduler.timesteps.tolist()
        self.alpha_bar = scheduler.alphas_cumprod.double().tolist()  # float32 values, as diffusers has them
        self.distances: list[Tensor] = []  # from the base, of the steps with gradient

    def lora(self) -> dict[str, Tensor]:
        return {
            name.replace(".default.", "."): parameter
            for name, parameter in self.unet.named_parameters()
            if "lora_" in name
        }

    def guided(self, unet: UNet2DConditionModel, x: Tensor, timestep: int, case: dict) -> Tensor:
        context = self.inputs["context"]
        positive = unet(x, timestep, context, return_dict=False)[0]
        if case["guidance"] == 1.0:
            return positive
        negative = unet(x, timestep, self.inputs["negative"].expand_as(context), return_dict=False)[0]
        if case["detach_negative"]:
            negative = negative.detach()
        return negative + case["guidance"] * (positive - negative)

    def predict(self, x: Tensor, index: int, case: dict) -> Tensor:
        output = self.guided(self.unet, x, self.timesteps[index], case)
        if case["anchor"] and torch.is_grad_enabled():
            with torch.no_grad():
                base = self.guided(self.base, x, self.timesteps[index], case)
            self.distances.append(((output - base) ** 2).mean())
        return output

    def levels(self, index: int) -> tuple[float, float]:
        timestep = self.timesteps[index]
        previous = timestep - 1000 // STEPS
        return self.alpha_bar[timestep], self.alpha_bar[previous] if previous >= 0 else self.alpha_bar[0]

    def ddim(self, x: Tensor, output: Tensor, index: int, case: dict) -> tuple[Tensor, Tensor]:
        """The next latents and the predicted x0."""
        now, then = self.levels(index)
        if case["prediction_type"] == "epsilon":
            epsilon, original = output, (x - math.sqrt(1 - now) * output) / math.sqrt(now)
        else:
            original = math.sqrt(now) * x - math.sqrt(1 - now) * output
            epsilon = math.sqrt(now) * output + math.sqrt(1 - now) * x
        deviation = case["eta"] * math.sqrt((1 - then) / (1 - now) * (1 - now / then))
        mean = math.sqrt(then) * original + math.sqrt(1 - then - deviation**2) * epsilon
        return mean + deviation * self.inputs[f"step_noise.{index}"], original

    def step(self, x: Tensor, index: int, case: dict) -> tuple[Tensor, Tensor]:
        return self.ddim(x, self.predict(x, index, case), index, case)

    @torch.no_grad()
    def roll_out(self, steps: int, case: dict) -> Tensor:
        x = self.inputs["latents"]
        for index in range(steps):
            x, _ = self.step(x, index, case)
        return x

    def draft(self, case: dict) -> list[Tensor]:
        x = self.roll_out(STEPS - case["k"], case)
        for index in range(STEPS - case["k"], STEPS):
            x, _ = self.step(x, index, case)
        return [x]

    def draft_lv(self, case: dict) -> list[Tensor]:
        last = STEPS - 1
        first, _ = self.step(self.roll_out(last, case), last, case)
        examples = [first]
        now, _ = self.levels(last)
        for again in range(case["renoises"]):
            x = math.sqrt(now) * first.detach() + math.sqrt(1 - now) * self.inputs[f"renoise.{again}"]
            examples.append(self.step(x, last, case)[0])
        return examples

    def drtune(self, case: dict) -> list[Tensor]:
        x = self.inputs["latents"]
        for index in range(case["stop"]):
            with torch.set_grad_enabled(index in case["trained"]):
                output = self.predict(x.detach(), index, case)
            x, original = self.ddim(x, output, index, case)
        return [original]

    def align_prop(self, case: dict) -> list[Tensor]:
        x = self.inputs["latents"]
        for index in range(STEPS):
            if index == case["truncation"]:
                x = x.detach()
            x, _ = self.step(x, index, case)
        return [x]

    def refl(self, case: dict) -> list[Tensor]:
        x = self.roll_out(case["mid"], case)
        _, original = self.step(x, case["mid"], case)
        return [original]

    def images(self, latents: Tensor) -> Tensor:
        return (self.vae.decode(latents / self.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)

    def rewards(self, latents: Tensor) -> Tensor:
        pixels = preprocess(self.images(latents), self.clip.config.vision_config.image_size)
        embeddings = self.clip.visual_projection(self.clip.vision_model(pixels).pooler_output)
        return (F.normalize(embeddings, dim=-1) * self.inputs["reward_text"]).sum(-1)

    def loss_of_rewards(self, rewards: Tensor, case: dict) -> Tensor:
        rewards = (rewards - REWARD_MEAN) / REWARD_DEVIATION
        losses = -rewards if case["margin"] is None else F.relu(case["margin"] - rewards)
        return losses.mean() * case["loss_scale"]

    def on_reward(self, case: dict) -> dict[str, Tensor]:
        self.distances = []
        examples = getattr(self, case["method"])(case)
        rewards = torch.stack([self.rewards(latents) for latents in examples])
        loss = self.loss_of_rewards(rewards, case)
        latents = torch.stack(examples)
        if len(examples) == 1:
            rewards, latents = rewards[0], latents[0]
        results = {"loss": loss, "rewards": rewards, "latents": latents}
        if case["anchor"]:
            results["anchor"] = torch.stack(self.distances).mean()
            results["loss"] = loss + case["anchor"] * results["anchor"]
        return results

    def denoising(self, case: dict) -> dict[str, Tensor]:
        latents, added, timesteps = (self.inputs[f"denoising.{name}"] for name in ("latents", "noise", "timesteps"))
        now = latents.new_tensor([self.alpha_bar[timestep] for timestep in timesteps.tolist()])
        signal, spread = (value.sqrt().view(-1, 1, 1, 1) for value in (now, 1 - now))
        output = self.unet(signal * latents + spread * added, timesteps, self.inputs["context"], return_dict=False)[0]
        velocity = case["prediction_type"] == "v_prediction"
        target = signal * added - spread * latents if velocity else added
        losses = ((output - target) ** 2).mean((1, 2, 3))
        if case["snr_gamma"] is not None:
            snr = now / (1 - now)
            losses = losses * snr.clamp(max=case["snr_gamma"]) / (snr + 1 if velocity else snr)
        return {"loss": losses.mean()}

    def run(self, case: dict) -> dict[str, Tensor]:
        """The loss, what it came from, and the gradients of the LoRA factors."""
        for parameter in self.unet.parameters():
            parameter.grad = None
        results = self.denoising(case) if case["method"] == "denoising" else self.on_reward(case)
        results["loss"].backward()
        results = {name: value.detach().clone() for name, value in results.items()}
        lora = self.lora()
        for name, parameter in lora.items():
            assert parameter.grad is not None and parameter.grad.norm() > 0, f"{name} has no gradient"
            results[f"grad.{name}"] = parameter.grad.clone()
        frozen = [*self.unet.parameters(), *self.base.parameters(), *self.vae.parameters(), *self.clip.parameters()]
        assert sum(parameter.grad is not None for parameter in frozen) == len(lora)
        assert all(value.grad is None for value in self.inputs.values())
        return results


def gradients(results: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for name, value in results.items() if name.startswith("grad.")])


def difference(one: Tensor, other: Tensor) -> float:
    """The greatest difference relative to the greatest value of `other`."""
    return ((one.double() - other.double()).abs().max() / other.double().abs().max()).item()


@torch.no_grad()
def text_inputs() -> dict[str, Tensor]:
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(MODEL / "text_encoder").eval()
    call = dict(padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    hidden = encoder(tokenizer([*PROMPTS, NEGATIVE], **call).input_ids)[0]
    assert torch.equal(hidden, load_file(HERE / "pipeline" / "pipeline.safetensors")["hidden"])
    clip = CLIPModel.from_pretrained(REWARD_MODEL).eval().double()
    ids = torch.tensor(REWARD_IDS)
    pooled = clip.text_projection(clip.text_model(ids).pooler_output)
    ends = (ids == clip.config.text_config.eos_token_id).int().argmax(1)
    at_end = clip.text_projection(clip.text_model(ids).last_hidden_state[torch.arange(2), ends])
    assert torch.equal(pooled, at_end)
    return {
        "context": hidden[:2],
        "negative": hidden[2:],
        "reward_ids": ids,
        "reward_text": F.normalize(pooled, dim=-1).float(),
    }


def inputs() -> dict[str, Tensor]:
    drawn = {"latents": noise(1, 2, 4, 8, 8)}
    drawn |= {f"step_noise.{index}": noise(10 + index, 2, 4, 8, 8) for index in range(STEPS)}
    drawn |= {f"renoise.{again}": noise(20 + again, 2, 4, 8, 8) for again in range(2)}
    drawn |= {"denoising.latents": noise(30, 2, 4, 8, 8), "denoising.noise": noise(31, 2, 4, 8, 8)}
    drawn["denoising.timesteps"] = torch.tensor([81, 561])  # signal to noise above and below 5
    return text_inputs() | drawn


def preprocessed(size: int) -> dict[str, Tensor]:
    """Images with edges, at which the bicubic overshoots 0..1, through `preprocess` alone."""
    stored = {}
    for name, (height, width, seed) in PREPROCESS.items():
        coarse = noise(seed, 1, 3, height // 3, width // 3)
        images = torch.sigmoid(3 * F.interpolate(coarse, size=(height, width), mode="bilinear"))
        weights = noise(100 + seed, 1, 3, size, size)
        pair = []
        for dtype in (torch.float32, torch.float64):
            leaf = images.to(dtype).requires_grad_()
            output = preprocess(leaf, size)
            (gradient,) = torch.autograd.grad((output * weights.to(dtype)).sum(), leaf)
            pair.append((output.detach(), gradient))
        short = min(height, width)
        scaled = [int(size * side / short) for side in (height, width)]
        unclamped = F.interpolate(images.double(), size=scaled, mode="bicubic", antialias=True)
        outside = (unclamped < 0) | (unclamped > 1)
        # No value so near a bound that float32 might fall on the other side of it.
        nearest = torch.minimum(unclamped.abs(), (unclamped - 1).abs()).min().item()
        assert outside.any() and nearest > 5e-5, nearest
        print(
            f"preprocess {name} to {scaled}: float32 is off by {difference(pair[0][0], pair[1][0]):.1e} (output)",
            f"{difference(pair[0][1], pair[1][1]):.1e} (gradient); {outside.double().mean():.3f} clamped",
        )
        parts = {"input": images, "output": pair[1][0], "weights": weights, "gradient": pair[1][1]}
        stored |= {f"preprocess.{name}.{part}": value for part, value in parts.items()}
    return stored


def check_scheduler(world: World) -> None:
    """`World.ddim` against diffusers."""
    x, output = world.inputs["latents"], world.inputs["renoise.0"]
    for prediction in ("epsilon", "v_prediction"):
        scheduler = DDIMScheduler(**SCHEDULER, prediction_type=prediction)
        scheduler.set_timesteps(STEPS)
        for eta in (0.0, 1.0):
            for index, timestep in enumerate(scheduler.timesteps):
                added = world.inputs[f"step_noise.{index}"] if eta else None
                theirs = scheduler.step(output, timestep, x, eta=eta, variance_noise=added)
                ours = world.ddim(x, output, index, {"prediction_type": prediction, "eta": eta})
                for mine, other in zip(ours, (theirs.prev_sample, theirs.pred_original_sample)):
                    assert difference(mine, other) < 1e-5, (prediction, eta, index)


def check_drtune(world: World, case: dict, results: dict[str, Tensor]) -> None:
    """DRTune's gradient by hand: x0 at the stop is linear in every noise prediction, and no Jacobian is between."""
    seen, x = [], world.inputs["latents"]
    with torch.no_grad():
        for index in range(case["stop"]):
            seen.append(x)
            x, original = world.step(x, index, case)
    leaf = original.requires_grad_()
    (pull,) = torch.autograd.grad(world.loss_of_rewards(world.rewards(leaf), case), leaf)
    for parameter in world.unet.parameters():
        parameter.grad = None
    for index in case["trained"]:
        now, then = world.levels(index)
        stop, _ = world.levels(case["stop"] - 1)
        if index == case["stop"] - 1:
            factor = -math.sqrt((1 - stop) / stop)
        else:  # x of the next step times the chain's sqrt(a' / a), which telescopes, and 1 / sqrt(a) at the stop
            factor = math.sqrt(1 - then) - math.sqrt(then * (1 - now) / now)
            factor *= math.sqrt(stop / then) / math.sqrt(stop)
        world.predict(seen[index], index, case).backward(factor * pull)
    by_hand = torch.cat([parameter.grad.flatten() for parameter in world.lora().values()])
    assert difference(by_hand, gradients(results)) < 1e-9, difference(by_hand, gradients(results))


def check_slope(world: World, case: dict, results: dict[str, Tensor]) -> None:
    """The gradient along a random direction against the loss a little to both sides, the roll-out's end held fixed."""
    frozen = {steps: world.roll_out(steps, case) for steps in range(STEPS)} if "eta" in case else {}
    world.roll_out = lambda steps, _: frozen[steps]
    lora = world.lora().values()
    directions = [noise(3000 + at, *parameter.shape).double() for at, parameter in enumerate(lora)]
    slope = gradients(results) @ torch.cat([direction.flatten() for direction in directions])
    losses, width = [], 1e-5
    for shift in (width, -2 * width, width):
        with torch.no_grad():
            for parameter, direction in zip(lora, directions):
                parameter.add_(shift * direction)
            losses.append((world.denoising(case) if case["method"] == "denoising" else world.on_reward(case))["loss"])
    numeric = (losses[0] - losses[1]) / (2 * width)
    del world.roll_out
    assert abs(numeric / slope - 1) < 1e-5, (numeric.item(), slope.item())


def main() -> None:
    torch.set_num_threads(1)
    given = inputs()
    single, double = World(given, torch.float32), World(given, torch.float64)
    check_scheduler(double)
    size = double.clip.config.vision_config.image_size
    stored = given | preprocessed(size)
    stored |= {f"lora.{name}": value.detach().clone() for name, value in single.lora().items()}
    described, exact = [], {}
    for name, case in CASES.items():
        rough, results = single.run(case), double.run(case)
        exact[name] = results
        off = {part: difference(rough[part], results[part]) for part in results if not part.startswith("grad.")}
        off["gradient"] = difference(gradients(rough), gradients(results))
        parts = [part for part in results if part.startswith("grad.")]
        off["worst_gradient"] = max(difference(rough[part], results[part]) for part in parts)
        print(
            f"{name}: loss {results['loss']:.5f}, gradient {gradients(results).norm():.3g};",
            "float32 is off by", ", ".join(f"{value:.1e} ({part})" for part, value in off.items()),
        )
        assert off["loss"] < 2e-5 and off["worst_gradient"] < 1e-4, name
        if "rewards" in results:
            standard = (results["rewards"] - REWARD_MEAN) / REWARD_DEVIATION
            images = double.images(results["latents"].flatten(0, -4)).detach()
            bound = ((images == 0) | (images == 1)).double().mean()
            print("    standardised rewards", *(f"{value:.3f}" for value in standard.flatten()), end="; ")
            print(f"latents {results['latents'].std():.2f}, images {images.std():.2f}, at a bound {bound:.3f}")
            if case["margin"] is not None:
                active = standard < case["margin"]
                assert ((case["margin"] - standard).abs() > 0.05).all()
                assert active.any() and (case["anchor"] == 0 or not active.all()), name
        rounded = {part: float(f"{value:.0e}") for part, value in off.items()}
        described.append({"name": name} | case | {"float32_difference": rounded})
        stored |= {f"{name}.{part}": value for part, value in results.items()}
    for name in ("drtune", "drtune_last"):
        check_drtune(double, CASES[name], exact[name])
    for name in ("draft_k1", "draft_k2", "draft_full", "draft_k2_v", "draft_k2_unguided", "refl", "refl_guided"):
        check_slope(double, CASES[name], exact[name])
    for name in ("denoising_eps", "denoising_v", "denoising_eps_snr", "denoising_v_snr"):
        check_slope(double, CASES[name], exact[name])
    for one in exact:  # what tells the cases apart shows
        for other in exact:
            assert one == other or difference(gradients(exact[one]), gradients(exact[other])) > 0.01, (one, other)

    FOLDER.mkdir(exist_ok=True)
    tensors = {
        name: (value.float() if value.is_floating_point() else value).contiguous().clone()
        for name, value in stored.items()
    }
    save_file(tensors, FOLDER / "finetune.safetensors")
    description = {
        "model": "pipeline/model",
        "reward_model": "clip/hf_gelu",
        "image_size": size,
        "pixel_mean": PIXEL_MEAN,
        "pixel_deviation": PIXEL_DEVIATION,
        "reward_mean": REWARD_MEAN,
        "reward_deviation": REWARD_DEVIATION,
        "prompts": PROMPTS,
        "negative": NEGATIVE,
        "scheduler": SCHEDULER,
        "steps": STEPS,
        "timesteps": double.timesteps,
        "lora": {"rank": RANK, "alpha": ALPHA, "layers": sorted({name.rsplit(".", 2)[0] for name in double.lora()})},
        "cases": described,
    }
    (FOLDER / "finetune.json").write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n")
    print(len(tensors), "tensors,", sum(file.stat().st_size for file in FOLDER.iterdir()) // 1000, "kB")


if __name__ == "__main__":
    main()
