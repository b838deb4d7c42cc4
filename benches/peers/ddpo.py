"""Times rounds of DDPO in PyTorch, diffusers and PEFT, on a CPU in float32, eager mode.

    python benches/peers/ddpo.py FOLDER --side 128 --images 2 --train-batch 2 --rounds 1

FOLDER is a diffusers folder of Stable Diffusion. The rule is written out here after ddpo-pytorch, whose own scripts
need a diffusers of 2023 (https://github.com/kvablack/ddpo-pytorch at 18294d8d, `scripts/train.py` and
`ddpo_pytorch/diffusers_patch/ddim_with_logprob.py`): a DDIM step with noise and its log-probability, a mean over the latent;
the ratio to the roll-out's; the clipped loss; gradients accumulated over micro-batches of `train_batch_size` images and over
their time steps in random order, one time step of a micro-batch at a time, to one AdamW step. Both branches of guidance are
one batch, in the roll-out without and in training with gradients. diffusers runs the models, PEFT the LoRA.

The reward is the mean of the decoded image's red channel. Prompts are encoded before the clock starts, and the text encoder
is dropped. Prints one JSON line: seconds of each round after one that does not count, the mean seconds of its phases,
samples_per_second (the median's), train_batch_size, peak_rss_bytes, threads.
"""

import argparse
import gc
import json
import math
import statistics
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from models import encode_prompts, load_unet, peak_rss_bytes

PROMPTS = ["a photo of a red fox in the snow", "a castle on a hill, oil painting"]
GUIDANCE, ETA, CLIP_RANGE, ADVANTAGE_CLIP = 5.0, 1.0, 1e-4, 5.0
LEARNING_RATE, WEIGHT_DECAY, MAX_GRADIENT_NORM = 3e-4, 1e-4, 1.0
PHASES = ["sample", "decode_and_reward", "forward", "backward", "optimizer"]


def ddim_step(scheduler, noise_prediction, timestep, sample, previous_sample=None):
    """One DDIM step of images [B, C, h, w] that are each before a `timestep` of their own, [B]: what it leads to, drawn
    where it is not given, and its log-probability, the mean over C, h and w."""
    column = lambda values: values.view(-1, 1, 1, 1)
    stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
    alpha = column(scheduler.alphas_cumprod.gather(0, timestep))
    alpha_previous = column(scheduler.alphas_cumprod.gather(0, (timestep - stride).clamp(min=0)))
    original = (sample - (1 - alpha) ** 0.5 * noise_prediction) / alpha**0.5
    if scheduler.config.clip_sample:
        original = original.clamp(-scheduler.config.clip_sample_range, scheduler.config.clip_sample_range)
    variance = (1 - alpha_previous) / (1 - alpha) * (1 - alpha / alpha_previous)
    deviation = ETA * variance**0.5
    direction = (1 - alpha_previous - deviation**2) ** 0.5 * noise_prediction
    mean = alpha_previous**0.5 * original + direction
    if previous_sample is None:
        previous_sample = mean + deviation * torch.randn_like(mean)
    log_probability = (
        -((previous_sample.detach() - mean) ** 2) / (2 * deviation**2)
        - torch.log(deviation)
        - math.log(math.sqrt(2 * math.pi))
    )
    return previous_sample, log_probability.mean(dim=(1, 2, 3))


def guided(unet, latents, timestep, context):
    """The guided prediction; `context` is of the negative prompts, then of the prompts."""
    noise = unet(torch.cat([latents] * 2), torch.cat([timestep] * 2), context, return_dict=False)[0]
    negative, positive = noise.chunk(2)
    return negative + GUIDANCE * (positive - negative)


@torch.no_grad()
def roll_out(unet, scheduler, latents, context):
    """All latents [B, T + 1, C, h, w], the log-probabilities [B, T] and the time steps [B, T]."""
    all_latents, log_probabilities, timesteps = [latents], [], []
    for timestep in scheduler.timesteps:
        timestep = timestep.expand(len(latents))
        latents, log_probability = ddim_step(scheduler, guided(unet, latents, timestep, context), timestep, latents)
        all_latents.append(latents)
        log_probabilities.append(log_probability)
        timesteps.append(timestep)
    return torch.stack(all_latents, 1), torch.stack(log_probabilities, 1), torch.stack(timesteps, 1)


@torch.no_grad()
def redness(vae, latents):
    images = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    return (images / 2 + 0.5).clamp(0, 1)[:, 0].mean(dim=(1, 2))


def one_round(arguments, unet, vae, scheduler, context, latents, parameters, optimizer) -> list[float]:
    """One roll-out and one update; seconds of the phases."""
    clock = [time.perf_counter()]
    unet.eval()
    all_latents, old, timesteps = roll_out(unet, scheduler, latents, context)
    clock.append(time.perf_counter())
    rewards = redness(vae, all_latents[:, -1])
    advantages = (rewards - rewards.mean()) / (rewards.std(unbiased=False) + 1e-8)
    advantages = advantages.clamp(-ADVANTAGE_CLIP, ADVANTAGE_CLIP)
    clock.append(time.perf_counter())

    count, steps = timesteps.shape
    negative, positive = context.chunk(2)
    before, after = all_latents[:, :-1], all_latents[:, 1:]
    order = torch.stack([torch.randperm(steps) for _ in range(count)])
    accumulated = (count // arguments.train_batch) * steps
    forward = backward = 0.0
    unet.train()
    for images in torch.randperm(count).split(arguments.train_batch):
        embeddings = torch.cat([negative[images], positive[images]])
        for step in order[images].T:
            start = time.perf_counter()
            timestep, x = timesteps[images, step], before[images, step]
            prediction = guided(unet, x, timestep, embeddings)
            _, log_probability = ddim_step(scheduler, prediction, timestep, x, after[images, step])
            ratio = torch.exp(log_probability - old[images, step])
            unclipped = -advantages[images] * ratio
            clipped = -advantages[images] * ratio.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE)
            loss = torch.maximum(unclipped, clipped).mean()
            middle = time.perf_counter()
            (loss / accumulated).backward()
            forward, backward = forward + middle - start, backward + time.perf_counter() - middle
    start = time.perf_counter()
    torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad()
    return [clock[1] - clock[0], clock[2] - clock[1], forward, backward, time.perf_counter() - start]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="diffusers folder")
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--images", type=int, default=2, help="images of a round")
    parser.add_argument("--train-batch", type=int, default=2, help="images of a micro-batch; divides --images")
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1, help="timed rounds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    context = encode_prompts(arguments.folder, [PROMPTS[image % len(PROMPTS)] for image in range(arguments.images)])
    gc.collect()  # the text encoder goes before the UNet comes
    vae = AutoencoderKL.from_pretrained(arguments.folder / "vae", torch_dtype=torch.float32).requires_grad_(False)
    unet = load_unet(arguments.folder, arguments.rank, random_b=False, kind=torch.float32)
    scheduler = DDIMScheduler.from_pretrained(arguments.folder / "scheduler")
    scheduler.set_timesteps(arguments.sampling_steps)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    side = arguments.side // 2 ** (len(vae.config.block_out_channels) - 1)

    seconds, phases = [], []
    for _ in range(1 + arguments.rounds):
        latents = torch.randn(arguments.images, unet.config.in_channels, side, side)
        start = time.perf_counter()
        phases.append(one_round(arguments, unet, vae, scheduler, context, latents, parameters, optimizer))
        seconds.append(time.perf_counter() - start)
    result = {
        "seconds": seconds[1:],
        "phases": dict(zip(PHASES, torch.tensor(phases[1:]).mean(0).tolist(), strict=True)),
        "samples_per_second": arguments.images / statistics.median(seconds[1:]),
        "train_batch_size": arguments.train_batch,
        "peak_rss_bytes": peak_rss_bytes(),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result))
