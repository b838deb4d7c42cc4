"""Losses and LoRA gradients of the fine-tuning methods that do not differentiate the reward: policy gradients (DDPO, GRPO),
forward-process methods (NFT, reward-weighted regression) and preferences (DPO, KTO). Each is written out plainly, with torch's
autograd.

    python tests/golden/policy.py          writes policy/

diffusers 0.42.1, transformers 5.24.0, peft 0.21.2, torch 2.11.0. The base is `pipeline/model`; prompts, scheduler and the layers,
rank and alpha of the LoRA are those of `finetune.py`. What is stored was computed in float64 from the stored inputs and
rounded; the script prints how far float32 is off.

Four images (B = 4), two a prompt: prompts 0, 0, 1, 1. With a the alpha-bar of a step and a' that of the step after it
(`alphas_cumprod[0]` after the last), x the latents, eta 1, and mean_CHW the mean over an image's values:

    guided  = negative + 3 (positive - negative)                      of the model's output, noise or velocity
    x0, e   = (x - sqrt(1 - a) output) / sqrt(a), output              epsilon
              sqrt(a) x - sqrt(1 - a) output, sqrt(a) output + sqrt(1 - a) x     v_prediction
    s       = eta sqrt((1 - a') / (1 - a) * (1 - a / a'))             above 0 at every step, 0.02 at the last
    mu      = sqrt(a') x0 + sqrt(1 - a' - s^2) e                      (x0 not clipped)
    log pi  = mean_CHW(-(next - mu)^2 / (2 s^2) - ln s - ln(2 pi) / 2)

    ddpo    r = exp(log pi - log pi_old) on the trajectory of the old adapters, A the advantages clamped to +-`advantage_clip`;
            mean over images and `steps` of max(-A r, -A clamp(r, 1 - clip, 1 + clip))
            + kl mean((e - e_base)^2), e of the guided output; both branches of the guidance have gradient
    grpo    the same, but the negative branch has no gradient and the last term is
            + kl mean over images and `steps` of mean_CHW((mu - mu_base)^2) / (2 s^2)
    nft     x = sqrt(a) clean + sqrt(1 - a) noise at each of the five steps; f, o, b: the output with the current and the old
            adapters and without any, unguided; pos = beta f + (1 - beta) o, neg = (1 + beta) o - beta f, each turned into x0;
            L(x0) = mean_CHW((x0 - clean)^2) / max(mean_CHW|x0 - clean|, 1e-5), the divisor without gradient;
            scale mean over images and steps of (R L(pos) + (1 - R) L(neg)) / beta + kl mean((f - b)^2)
    mse     mean_CHW((output - target)^2), unguided, of sqrt(a) clean + sqrt(1 - a) noise; the target is the noise or the velocity
            sqrt(a) noise - sqrt(1 - a) clean
    rwr     mean over images of w mse, w = 4 softmax(z / temperature), z = (R - mean R) / deviation of R
    dpo     images 0 and 1 won over 2 and 3, to prompts 0 and 1; a pair has one noise and one timestep;
            inside = -beta / 2 ((mse_won - mse_lost) - (base mse_won - base mse_lost)), mean over pairs of
            sigmoid  -ln sigmoid(inside)
            hinge    relu(1 - inside)
            ipo      (2 inside / beta - 1 / (2 beta))^2, as in diffusers' train_diffusion_dpo.py
    kto     g = base mse - mse, z = max(0, mean g) without gradient, y the labels, w the weights; mean over images of
            sigmoid      w (1 - sigmoid(y beta (g - z)))
            logsigmoid   -w ln sigmoid(y beta (g - z))

`base` is the UNet without adapters; old adapters and base have no gradient. Every deviation is the population's.

`policy.safetensors`, float32 but for the timesteps (int64). Inputs:

    context [4,77,16], negative [1,77,16]         rows of the text encoder: of the images' prompts, of the negative prompt
    lora.LAYER.lora_A.weight [2,in], lora.LAYER.lora_B.weight [out,2]    the current adapters, which have the gradients
    old.LAYER.lora_A.weight, old.LAYER.lora_B.weight                     the old ones: each value some 10 % from the current
    trajectory.P.latents [4,6,4,8,8]              P = eps, v: rolled out under the old adapters, guided; [:,0] is noise,
                                                  [:,I] is x before step I, [:,I+1] after it
    trajectory.P.log_probabilities [4,5]          log pi of [:,I+1] after [:,I] under the old adapters
    clean [4,4,8,8]                               scaled latents of images: nft, rwr, dpo, kto
    ddpo.advantages [4]                           one is beyond the clip at 5
    grpo.rewards [4]
    grpo.advantages_group [4]                     (R - the group's mean) / (the group's deviation + 1e-4)
    grpo.advantages_batch [4]                     (R - the group's mean) / (the batch's deviation + 1e-4)
    nft.noise [4,5,4,8,8], nft.r [4]              noise by image and step; R in 0..=1
    forward.noise [4,4,8,8], forward.timesteps [4]    of rwr and kto
    rwr.rewards [4], rwr.weights [4]              R and w
    dpo.noise [2,4,8,8], dpo.timesteps [2]        by pair
    kto.labels [4], kto.weights [4]               y = +-1 and w
    gdpo.rewards [2,4], gdpo.advantages [4]       by scorer and image; each row normalised as `grpo.advantages_group`, rows
                                                  summed with `gdpo.weights`, then (x - mean) / (deviation + 1e-4) over the batch
    tracker.rewards [3,4], tracker.advantages [3,4]   three batches in turn through ddpo-pytorch's PerPromptStatTracker:
                                                  rewards join their prompt's last `buffer`; while these are fewer than
                                                  `min_count` the batch's mean and deviation count, else the buffer's;
                                                  (R - mean) / (deviation + 1e-6)
    tracker.advantages_small [3,4]                the same with `buffer_small`, which drops the oldest

Results, by the name of the case, which ends in _eps or _v:

    CASE.loss []
    CASE.grad.LAYER.lora_A.weight [2,in], CASE.grad.LAYER.lora_B.weight [out,2]
    CASE.log_probabilities [4,S]                  ddpo, grpo: log pi under the current adapters, S of `steps`
    CASE.kl []                                    where `kl` is above 0: before its factor
    CASE.inside [2], CASE.accuracy []             dpo: accuracy is the share of inside > 0
    CASE.gains [4], CASE.reference_point []       kto: g and z

`policy.json` has each case's keys under the names above (`prediction_type`, `guidance`, `detach_negative` and `eta` as in
`finetune.json`; `trajectory` and `advantages` are names of tensors; `form` is the line under dpo or kto), the `deviations` s of the
steps, and for every case `float32_difference` relative to the greatest value: of `loss`, of `gradient` (all adapters as one) and
`worst_gradient` (each tensor by its own greatest).
"""

import json
import math
from collections import defaultdict, deque
from typing import Callable

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor

from finetune import ALPHA, HERE, MODEL, NEGATIVE, PROMPTS, RANK, SCHEDULER, STEPS
from finetune import add_lora, difference, gradients, noise, text_inputs

FOLDER = HERE / "policy"
PROMPT_OF_IMAGE = [0, 0, 1, 1]
CURRENT_SHARE, OLD_SHARE = 0.5, 0.1  # of each value: from `finetune.py`'s adapters, and from the current ones
TRAJECTORY_SEED = 6090  # no ratio comes near a bound of the clip
GDPO_WEIGHTS = [1.0, 0.5]
TRACKER = {"prompts": [[0, 0, 1, 1], [0, 1, 1, 2], [0, 0, 0, 1]], "buffer": 16, "buffer_small": 4, "min_count": 3}
PREDICTIONS = {"eps": "epsilon", "v": "v_prediction"}

GUIDED = {"guidance": 3.0, "detach_negative": False, "eta": 1.0, "advantage_clip": 5.0, "steps": [0, 1, 2, 3, 4]}
PLAIN = {"guidance": 1.0, "detach_negative": False, "eta": 1.0}
DDPO = GUIDED | {"method": "ddpo", "advantages": "ddpo.advantages", "clip": 0.2, "kl": 0.0}
GRPO = GUIDED | {"method": "grpo", "detach_negative": True, "steps": [0, 2, 3], "clip": 0.2, "kl": 0.04}
NFT = PLAIN | {"method": "nft", "kl": 1e-4, "scale": 5.0}
DPO = PLAIN | {"method": "dpo", "beta": 10.0}
KTO = PLAIN | {"method": "kto", "beta": 10.0}
RULES = {
    "ddpo": DDPO | {"clip": 1e-4},
    "ddpo_wide": DDPO,
    "ddpo_kl": DDPO | {"kl": 0.01},
    "ddpo_kl_strong": DDPO | {"kl": 1.0},
    "grpo_group": GRPO | {"advantages": "grpo.advantages_group"},
    "grpo_batch": GRPO | {"advantages": "grpo.advantages_batch"},
    "nft": NFT | {"beta": 1.0},
    "nft_sharp": NFT | {"beta": 0.1},
    "rwr": PLAIN | {"method": "rwr", "temperature": 0.2},
    "dpo": DPO | {"form": "sigmoid"},
    "dpo_hinge": DPO | {"form": "hinge"},
    "dpo_hinge_steep": DPO | {"form": "hinge", "beta": 200.0},  # one pair is beyond the hinge
    "dpo_ipo": DPO | {"form": "ipo"},
    "kto": KTO | {"form": "sigmoid"},
    "kto_logsigmoid": KTO | {"form": "logsigmoid"},
}
CASES = {
    f"{rule}_{short}": {"prediction_type": prediction}
    | ({"trajectory": f"trajectory.{short}"} if "steps" in case else {})
    | case
    for rule, case in RULES.items()
    for short, prediction in PREDICTIONS.items()
}


def mean_of_image(values: Tensor) -> Tensor:
    return values.mean((1, 2, 3))


def standardised(values: Tensor, floor: float) -> Tensor:
    return (values - values.mean()) / (values.std(correction=0) + floor)


def of_groups(rewards: Tensor) -> Tensor:
    return torch.cat([standardised(group, 1e-4) for group in rewards.split(2)])


def factors(unet: UNet2DConditionModel) -> dict[str, Tensor]:
    named = unet.named_parameters()
    return {name.replace(".default.", "."): parameter for name, parameter in named if "lora_" in name}


@torch.no_grad()
def vary(unet: UNet2DConditionModel, share: float, seed: int) -> None:
    for at, parameter in enumerate(factors(unet).values()):
        parameter.mul_(1 + share * noise(seed + at, *parameter.shape))


class World:
    """Models and inputs in one precision."""

    def __init__(self, inputs: dict[str, Tensor], dtype: torch.dtype):
        self.dtype = dtype
        self.base, self.old, self.unet = (UNet2DConditionModel.from_pretrained(MODEL / "unet") for _ in range(3))
        for model in (self.base, self.old, self.unet):
            model.requires_grad_(False).eval()
        for model in (self.old, self.unet):
            add_lora(model)
            vary(model, CURRENT_SHARE, 4000)
        vary(self.old, OLD_SHARE, 5000)
        self.old.requires_grad_(False)
        for model in (self.base, self.old, self.unet):
            model.to(dtype)
        self.inputs: dict[str, Tensor] = {}
        self.give(inputs)
        scheduler = DDIMScheduler(**SCHEDULER)
        scheduler.set_timesteps(STEPS)
        self.timesteps = scheduler.timesteps.tolist()
        self.alpha_bar = scheduler.alphas_cumprod.double().tolist()  # float32 values, as diffusers has them
        self.recorded: list[Tensor] = []
        self.replayed: list[Tensor] | None = None

    def give(self, inputs: dict[str, Tensor]) -> None:
        self.inputs |= {
            name: value.to(self.dtype) if value.is_floating_point() else value for name, value in inputs.items()
        }

    def held(self, compute: Callable[[], Tensor]) -> Tensor:
        """A value that has no gradient; `check_slope` plays it back while the adapters move."""
        if self.replayed is not None:
            return self.replayed.pop(0)
        with torch.no_grad():
            self.recorded.append(compute())
        return self.recorded[-1]

    def levels(self, index: int) -> tuple[float, float, float]:
        """a, a' and s."""
        timestep = self.timesteps[index]
        previous = timestep - 1000 // STEPS
        now, then = self.alpha_bar[timestep], self.alpha_bar[previous] if previous >= 0 else self.alpha_bar[0]
        return now, then, math.sqrt((1 - then) / (1 - now) * (1 - now / then))

    def original_and_epsilon(self, x: Tensor, output: Tensor, now: float, case: dict) -> tuple[Tensor, Tensor]:
        signal, spread = math.sqrt(now), math.sqrt(1 - now)
        if case["prediction_type"] == "epsilon":
            return (x - spread * output) / signal, output
        return signal * x - spread * output, signal * output + spread * x

    def guided(self, unet: UNet2DConditionModel, x: Tensor, index: int, case: dict) -> Tensor:
        timestep, context = self.timesteps[index], self.inputs["context"]
        against = self.inputs["negative"].expand_as(context)
        if case["detach_negative"]:
            negative = self.held(lambda: unet(x, timestep, against, return_dict=False)[0])
            positive = unet(x, timestep, context, return_dict=False)[0]
        else:
            both = unet(torch.cat([x, x]), timestep, torch.cat([against, context]), return_dict=False)[0]
            negative, positive = both.chunk(2)
        return negative + case["guidance"] * (positive - negative)

    def step(self, unet: UNet2DConditionModel, x: Tensor, index: int, case: dict) -> tuple[Tensor, Tensor]:
        """The mean of the next latents, and the noise predicted."""
        now, then, deviation = self.levels(index)
        original, epsilon = self.original_and_epsilon(x, self.guided(unet, x, index, case), now, case)
        return math.sqrt(then) * original + math.sqrt(1 - then - deviation**2) * epsilon, epsilon

    def log_probability(self, after: Tensor, mean: Tensor, index: int) -> Tensor:
        _, _, deviation = self.levels(index)
        constant = math.log(deviation) + 0.5 * math.log(2 * math.pi)
        return mean_of_image(-((after - mean) ** 2) / (2 * deviation**2) - constant)

    @torch.no_grad()
    def roll_out(self, case: dict) -> dict[str, Tensor]:
        """Under the old adapters; every step starts from float32 latents, which are what is stored."""
        latents, log_probabilities = [noise(TRAJECTORY_SEED, 4, 4, 8, 8)], []
        for index in range(STEPS):
            mean, _ = self.step(self.old, latents[-1].double(), index, case)
            _, _, deviation = self.levels(index)
            latents.append((mean + deviation * noise(TRAJECTORY_SEED + 1 + index, *mean.shape)).float())
            log_probabilities.append(self.log_probability(latents[-1].double(), mean, index).float())
        return {"latents": torch.stack(latents, 1), "log_probabilities": torch.stack(log_probabilities, 1)}

    def policy_gradient(self, case: dict) -> dict[str, Tensor]:
        latents = self.inputs[f"{case['trajectory']}.latents"]
        old = self.inputs[f"{case['trajectory']}.log_probabilities"]
        advantages = self.inputs[case["advantages"]].clamp(-case["advantage_clip"], case["advantage_clip"])
        losses, log_probabilities, distances = [], [], []
        for index in case["steps"]:
            x, after = latents[:, index], latents[:, index + 1]
            mean, epsilon = self.step(self.unet, x, index, case)
            log_probabilities.append(self.log_probability(after, mean, index))
            ratio = (log_probabilities[-1] - old[:, index]).exp()
            clipped = ratio.clamp(1 - case["clip"], 1 + case["clip"])
            losses.append(torch.maximum(-advantages * ratio, -advantages * clipped))
            if case["kl"]:
                with torch.no_grad():
                    base_mean, base_epsilon = self.step(self.base, x, index, case)
                if case["method"] == "ddpo":
                    distances.append(mean_of_image((epsilon - base_epsilon) ** 2))
                else:
                    _, _, deviation = self.levels(index)
                    distances.append(mean_of_image((mean - base_mean) ** 2) / (2 * deviation**2))
        loss = torch.stack(losses).mean()
        results = {"loss": loss, "log_probabilities": torch.stack(log_probabilities, 1)}
        if case["kl"]:
            results["kl"] = torch.stack(distances).mean()
            results["loss"] = loss + case["kl"] * results["kl"]
        return results

    ddpo = grpo = policy_gradient

    def nft(self, case: dict) -> dict[str, Tensor]:
        clean, reward, context, beta = self.inputs["clean"], self.inputs["nft.r"], self.inputs["context"], case["beta"]

        def weighted_error(output: Tensor) -> Tensor:
            error = self.original_and_epsilon(x, output, now, case)[0] - clean
            divisor = self.held(lambda: mean_of_image(error.abs()).clamp(min=1e-5))
            return mean_of_image(error**2) / divisor

        losses, distances = [], []
        for index, timestep in enumerate(self.timesteps):
            now, _, _ = self.levels(index)
            x = math.sqrt(now) * clean + math.sqrt(1 - now) * self.inputs["nft.noise"][:, index]
            output = self.unet(x, timestep, context, return_dict=False)[0]
            with torch.no_grad():
                old, base = (model(x, timestep, context, return_dict=False)[0] for model in (self.old, self.base))
            positive = weighted_error(beta * output + (1 - beta) * old)
            negative = weighted_error((1 + beta) * old - beta * output)
            losses.append((reward * positive + (1 - reward) * negative) / beta)
            distances.append(((output - base) ** 2).mean())
        distance = torch.stack(distances).mean()
        return {"loss": case["scale"] * torch.stack(losses).mean() + case["kl"] * distance, "kl": distance}

    def errors(self, clean: Tensor, added: Tensor, timesteps: Tensor, context: Tensor, case: dict) -> tuple[Tensor, Tensor]:
        """mse with the current adapters and without any, by image."""
        now = clean.new_tensor([self.alpha_bar[timestep] for timestep in timesteps.tolist()])
        signal, spread = (value.sqrt().view(-1, 1, 1, 1) for value in (now, 1 - now))
        x = signal * clean + spread * added
        target = added if case["prediction_type"] == "epsilon" else signal * added - spread * clean
        output = self.unet(x, timesteps, context, return_dict=False)[0]
        with torch.no_grad():
            base = self.base(x, timesteps, context, return_dict=False)[0]
        return mean_of_image((output - target) ** 2), mean_of_image((base - target) ** 2)

    def forward_errors(self, case: dict) -> tuple[Tensor, Tensor]:
        names = ("clean", "forward.noise", "forward.timesteps", "context")
        return self.errors(*(self.inputs[name] for name in names), case)

    def rwr(self, case: dict) -> dict[str, Tensor]:
        errors, _ = self.forward_errors(case)
        return {"loss": (self.inputs["rwr.weights"] * errors).mean()}

    def dpo(self, case: dict) -> dict[str, Tensor]:
        context = self.inputs["context"][[0, 2, 0, 2]]
        added, timesteps = self.inputs["dpo.noise"].repeat(2, 1, 1, 1), self.inputs["dpo.timesteps"].repeat(2)
        (won, lost), (base_won, base_lost) = (
            errors.chunk(2) for errors in self.errors(self.inputs["clean"], added, timesteps, context, case)
        )
        beta = case["beta"]
        inside = -beta / 2 * ((won - lost) - (base_won - base_lost))
        losses = {
            "sigmoid": lambda: -F.logsigmoid(inside),
            "hinge": lambda: F.relu(1 - inside),
            "ipo": lambda: (2 * inside / beta - 1 / (2 * beta)) ** 2,
        }[case["form"]]()
        return {"loss": losses.mean(), "inside": inside, "accuracy": (inside > 0).to(self.dtype).mean()}

    def kto(self, case: dict) -> dict[str, Tensor]:
        errors, base = self.forward_errors(case)
        gains = base - errors
        reference_point = self.held(lambda: gains.mean().clamp(min=0))
        value = self.inputs["kto.labels"] * case["beta"] * (gains - reference_point)
        losses = 1 - torch.sigmoid(value) if case["form"] == "sigmoid" else -F.logsigmoid(value)
        loss = (self.inputs["kto.weights"] * losses).mean()
        return {"loss": loss, "gains": gains, "reference_point": reference_point}

    def run(self, case: dict) -> dict[str, Tensor]:
        """The loss, what it came from, and the gradients of the LoRA factors."""
        for parameter in self.unet.parameters():
            parameter.grad = None
        self.recorded = []
        results = getattr(self, case["method"])(case)
        results["loss"].backward()
        results = {name: value.detach().clone() for name, value in results.items()}
        lora = factors(self.unet)
        for name, parameter in lora.items():
            assert parameter.grad is not None and parameter.grad.norm() > 0, f"{name} has no gradient"
            results[f"grad.{name}"] = parameter.grad.clone()
        everything = [parameter for model in (self.unet, self.old, self.base) for parameter in model.parameters()]
        assert sum(parameter.grad is not None for parameter in everything) == len(lora)
        return results


def tracked(rewards: Tensor, buffer: int) -> Tensor:
    """ddpo-pytorch's PerPromptStatTracker."""
    kept: dict[int, deque] = defaultdict(lambda: deque(maxlen=buffer))
    advantages = torch.empty_like(rewards)
    for batch, prompts in enumerate(TRACKER["prompts"]):
        for at, prompt in enumerate(prompts):
            kept[prompt].append(rewards[batch, at].item())
        for at, prompt in enumerate(prompts):
            enough = len(kept[prompt]) >= TRACKER["min_count"]
            among = rewards.new_tensor(list(kept[prompt])) if enough else rewards[batch]
            advantages[batch, at] = (rewards[batch, at] - among.mean()) / (among.std(correction=0) + 1e-6)
    return advantages


def inputs() -> dict[str, Tensor]:
    text = text_inputs()
    drawn = {
        "context": text["context"][PROMPT_OF_IMAGE],
        "negative": text["negative"],
        "clean": noise(6100, 4, 4, 8, 8),
        "ddpo.advantages": torch.tensor([0.8, -6.5, 1.4, -0.5]),
        "grpo.rewards": torch.tensor([0.21, 0.35, 0.40, 0.28]),
        "nft.noise": noise(6101, 4, STEPS, 4, 8, 8),
        "nft.r": torch.tensor([0.9, 0.2, 0.5, 1.0]),
        "forward.noise": noise(6211, 4, 4, 8, 8),  # KTO's reference point is above 0 for eps, 0 for v
        "forward.timesteps": torch.tensor([81, 561, 301, 941]),
        "rwr.rewards": torch.tensor([0.3, 0.28, -0.2, 0.22]),
        "dpo.noise": noise(6202, 2, 4, 8, 8),  # one pair right, one wrong
        "dpo.timesteps": torch.tensor([181, 661]),
        "kto.labels": torch.tensor([1.0, -1.0, 1.0, -1.0]),
        "kto.weights": torch.tensor([1.5, 0.5, 1.0, 1.0]),
        # The second scorer is wide in one group, and within 1e-4's reach in the other.
        "gdpo.rewards": torch.tensor([[0.21, 0.35, 0.30, 0.28], [5.0, 1.0, 0.001, 0.0014]]),
        "tracker.rewards": torch.tensor([[0.1, 0.5, 0.9, 0.2], [0.7, 0.3, 0.8, 0.4], [0.6, 0.2, 1.1, 0.5]]),
    }
    rewards = drawn["grpo.rewards"].double()
    drawn["grpo.advantages_group"] = of_groups(rewards)
    centred = torch.cat([group - group.mean() for group in rewards.split(2)])
    drawn["grpo.advantages_batch"] = centred / (rewards.std(correction=0) + 1e-4)
    temperature = RULES["rwr"]["temperature"]
    drawn["rwr.weights"] = 4 * torch.softmax(standardised(drawn["rwr.rewards"].double(), 0) / temperature, 0)
    summed = sum(weight * of_groups(row) for weight, row in zip(GDPO_WEIGHTS, drawn["gdpo.rewards"].double()))
    drawn["gdpo.advantages"] = standardised(summed, 1e-4)
    rewards = drawn["tracker.rewards"].double()
    drawn["tracker.advantages"] = tracked(rewards, TRACKER["buffer"])
    drawn["tracker.advantages_small"] = tracked(rewards, TRACKER["buffer_small"])
    # What a loss reads is what is stored.
    return {name: value.float() if value.is_floating_point() else value for name, value in drawn.items()}


def check_trajectory(world: World, case: dict) -> None:
    """Steps against diffusers, log-probabilities against torch; under the adapters that rolled out every ratio is 1."""
    scheduler = DDIMScheduler(**SCHEDULER, prediction_type=case["prediction_type"])
    scheduler.set_timesteps(STEPS)
    latents = world.inputs[f"{case['trajectory']}.latents"]
    old = world.inputs[f"{case['trajectory']}.log_probabilities"]
    with torch.no_grad():
        for index, timestep in enumerate(scheduler.timesteps):
            x, after = latents[:, index], latents[:, index + 1]
            output, (mean, _) = world.guided(world.old, x, index, case), world.step(world.old, x, index, case)
            _, _, deviation = world.levels(index)
            added = noise(TRAJECTORY_SEED + 1 + index, *x.shape).double()
            theirs = scheduler.step(output, timestep, x, eta=1.0, variance_noise=added).prev_sample
            assert difference(mean + deviation * added, theirs) < 1e-5 and difference(after, theirs) < 1e-5
            normal = torch.distributions.Normal(mean, deviation)
            assert (normal.log_prob(after).mean((1, 2, 3)) - old[:, index]).abs().max() < 1e-6


def check_slope(world: World, case: dict, results: dict[str, Tensor]) -> None:
    """The gradient along a random direction against the loss a little to both sides, what has no gradient held fixed."""
    lora, recorded = factors(world.unet).values(), world.recorded
    directions = [noise(7000 + at, *parameter.shape).double() for at, parameter in enumerate(lora)]
    slope = gradients(results) @ torch.cat([direction.flatten() for direction in directions])
    losses, width = [], 1e-6
    for shift in (width, -2 * width, width):
        with torch.no_grad():
            for parameter, direction in zip(lora, directions):
                parameter.add_(shift * direction)
            world.replayed = list(recorded)
            losses.append(getattr(world, case["method"])(case)["loss"])
            assert not world.replayed
    world.replayed = None
    numeric = (losses[0] - losses[1]) / (2 * width)
    assert abs(numeric / slope - 1) < 1e-5, (numeric.item(), slope.item())


def check_clip(world: World, case: dict, rough: Tensor, exact: Tensor) -> None:
    """Both branches of the maximum occur, and no ratio is so near the bound that float32 might take the other."""
    old = world.inputs[f"{case['trajectory']}.log_probabilities"][:, case["steps"]]
    rough, exact = ((log_probabilities.double() - old).exp() for log_probabilities in (rough, exact))
    sign = world.inputs[case["advantages"]].sign()[:, None]
    beyond = sign * (exact - 1) - case["clip"]
    nearest, off = beyond.abs().min().item(), (rough - exact).abs().max().item()
    share = (beyond > 0).double().mean().item()
    print(
        f"    ratios {exact.min():.4f} to {exact.max():.4f}, {share:.2f} clipped;",
        f"nearest to a bound {nearest:.1e}, float32 is off by {off:.1e}",
    )
    assert nearest > 20 * off and 0 < share < 1


def main() -> None:
    torch.set_num_threads(1)
    given = inputs()
    single, double = World(given, torch.float32), World(given, torch.float64)
    for short, prediction in PREDICTIONS.items():
        rolled = double.roll_out(GUIDED | {"prediction_type": prediction})
        given |= {f"trajectory.{short}.{part}": value for part, value in rolled.items()}
    single.give(given)
    double.give(given)
    for short in PREDICTIONS:
        check_trajectory(double, CASES[f"ddpo_{short}"])
    stored = given | {f"lora.{name}": value.detach().clone() for name, value in factors(single.unet).items()}
    stored |= {f"old.{name}": value.clone() for name, value in factors(single.old).items()}
    for name in ("rwr.weights", "grpo.advantages_group", "grpo.advantages_batch", "gdpo.advantages", "tracker.advantages"):
        print(name, given[name].tolist())
    described, exact = [], {}
    for name, case in CASES.items():
        rough, results = single.run(case), double.run(case)
        exact[name] = results
        off = {"loss": difference(rough["loss"], results["loss"])}
        off["gradient"] = difference(gradients(rough), gradients(results))
        parts = [part for part in results if part.startswith("grad.")]
        off["worst_gradient"] = max(difference(rough[part], results[part]) for part in parts)
        print(
            f"{name}: loss {results['loss']:.5f}, gradient {gradients(results).norm():.3g};",
            "float32 is off by", ", ".join(f"{value:.1e} ({part})" for part, value in off.items()),
        )
        for part in ("kl", "inside", "accuracy", "gains", "reference_point"):
            if part in results:
                print("   ", part, *(f"{value:.5f}" for value in results[part].flatten()))
        if "clip" in case:
            check_clip(double, case, rough["log_probabilities"], results["log_probabilities"])
        check_slope(double, case, results)
        rounded = {part: float(f"{value:.0e}") for part, value in off.items()}
        described.append({"name": name} | case | {"float32_difference": rounded})
        stored |= {f"{name}.{part}": value for part, value in results.items()}
    apart = {
        (one, other): difference(gradients(exact[one]), gradients(exact[other]))
        for one in exact
        for other in exact
        if one != other
    }
    nearest = min(apart, key=apart.get)
    print("nearest cases", *nearest, f"{apart[nearest]:.1e}")
    assert apart[nearest] > 1e-3  # what tells the cases apart shows
    for short, positive in (("eps", True), ("v", False)):
        assert (exact[f"kto_{short}"]["reference_point"] > 0) == positive
        assert exact[f"dpo_{short}"]["accuracy"] == 0.5
        assert ((1 - exact[f"dpo_hinge_steep_{short}"]["inside"]) < 0).sum() == 1

    FOLDER.mkdir(exist_ok=True)
    tensors = {
        name: (value.float() if value.is_floating_point() else value).contiguous().clone()
        for name, value in stored.items()
    }
    save_file(tensors, FOLDER / "policy.safetensors")
    description = {
        "model": "pipeline/model",
        "prompts": PROMPTS,
        "prompt_of_image": PROMPT_OF_IMAGE,
        "negative": NEGATIVE,
        "scheduler": SCHEDULER,
        "steps": STEPS,
        "timesteps": double.timesteps,
        "deviations": [double.levels(index)[2] for index in range(STEPS)],
        "lora": {"rank": RANK, "alpha": ALPHA, "layers": sorted({name.rsplit(".", 2)[0] for name in factors(double.unet)})},
        "gdpo": {"weights": GDPO_WEIGHTS, "groups": PROMPT_OF_IMAGE},
        "tracker": TRACKER,
        "cases": described,
    }
    (FOLDER / "policy.json").write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n")
    print(len(tensors), "tensors,", sum(file.stat().st_size for file in FOLDER.iterdir()) // 1000, "kB")


if __name__ == "__main__":
    main()
