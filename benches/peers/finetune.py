"""Times DRaFT-1 or DRTune steps (or the sampling alone) in PyTorch, diffusers and PEFT: eager mode.

    python benches/peers/finetune.py FOLDER CLIP train --side 128 --batch 1 --steps 3 [--checkpointing]
    python benches/peers/finetune.py FOLDER CLIP sample --side 128 --rounds 3
    python benches/peers/finetune.py FOLDER CLIP train --side 512 --batch 4 --sampling-steps 50 --device cuda

FOLDER is a diffusers folder of Stable Diffusion, CLIP an OpenAI-layout .safetensors file, the reward. A step samples
with DDIM and guidance, both branches in one batch; only the last step of the sampling, the decoder and the reward's
image tower carry gradients, to a LoRA on the UNet's attentions; with --drtune K it is K steps evenly spread, and the UNet's
inputs are detached. On a CPU all is float32; on CUDA the frozen weights are bfloat16 and autocast is on, as in diffusers'
training scripts. The prompts are encoded before the clock starts, and
the text towers dropped. Sampling has the LoRA attached, not merged, with its B random instead of zero, and loads
neither the VAE nor CLIP. Prints one JSON line: seconds_per_step, rewards and the mean seconds of the phases of the
steps after one that does not count, or seconds, the best of the rounds after one that does not count; always
peak_rss_bytes, peak_rss_after_load_bytes, peak_cuda_bytes, threads.
"""

import argparse
import gc
import json
import time
from pathlib import Path

import clip
import clip.model
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from models import encode_prompts, load_unet, peak_rss_bytes
from safetensors.torch import load_file
from torchvision.transforms.functional import InterpolationMode, center_crop, normalize, resize

PROMPTS = ["a photo of a red fox in the snow", "a castle on a hill, oil painting", "a bowl of fruit", "two cats asleep"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GUIDANCE, LEARNING_RATE, MAX_GRADIENT_NORM = 7.5, 1e-4, 1.0


def load_reward(path: Path, prompts: list[str]) -> tuple[torch.nn.Module, torch.Tensor]:
    """CLIP's frozen image tower and the unit embeddings of the prompts."""
    clip.model.convert_weights = lambda model: None  # it would round the weights to float16 before float() widens them
    model = clip.model.build_model(load_file(path)).float().requires_grad_(False)
    tokens = clip.tokenize(prompts, context_length=model.context_length, truncate=True)
    embeddings = model.encode_text(tokens.clamp(max=model.vocab_size - 1))  # the clamp matters to a toy vocabulary only
    return model.visual, torch.nn.functional.normalize(embeddings, dim=-1)


def denoise(unet, scheduler, timestep, latents, context):
    noise = unet(torch.cat([latents, latents]), timestep, context, return_dict=False)[0].float()
    negative, positive = noise.chunk(2)
    return scheduler.step(negative + GUIDANCE * (positive - negative), timestep, latents, return_dict=False)[0]


@torch.no_grad()
def sample(unet, scheduler, timesteps, latents, context):
    for timestep in timesteps:
        latents = denoise(unet, scheduler, timestep, latents, context)
    return latents


def drtune(unet, scheduler, timesteps, latents, context, trained):
    """DRTune: x_t is detached where the UNet reads it, and `trained` steps, evenly spread, carry gradients."""
    steps = {len(timesteps) - 1 - index * len(timesteps) // trained for index in range(trained)}
    for index, timestep in enumerate(timesteps):
        with torch.set_grad_enabled(index in steps or latents.requires_grad):
            inputs = latents.detach()
            with torch.set_grad_enabled(index in steps):
                noise = unet(torch.cat([inputs, inputs]), timestep, context, return_dict=False)[0].float()
                negative, positive = noise.chunk(2)
                noise = negative + GUIDANCE * (positive - negative)
            latents = scheduler.step(noise, timestep, latents, return_dict=False)[0]
    return latents


def rewards_of(vae, tower, embeddings, latents):
    images = vae.decode((latents / vae.config.scaling_factor).to(vae.dtype), return_dict=False)[0].float()
    size = tower.input_resolution
    images = resize((images / 2 + 0.5).clamp(0, 1), size, InterpolationMode.BICUBIC, antialias=True)
    images = tower(normalize(center_crop(images, size), MEAN, STD))
    return (torch.nn.functional.normalize(images, dim=-1) * embeddings).sum(-1)


def now(device) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def time_sampling(arguments, unet, scheduler, context, noise) -> dict:
    seconds = []
    for _ in range(1 + arguments.rounds):
        latents = noise()
        start = now(arguments.device)
        sample(unet, scheduler, scheduler.timesteps, latents, context)
        seconds.append(now(arguments.device) - start)
    return {"seconds": min(seconds[1:])}


def time_training(arguments, unet, scheduler, context, noise, vae, tower, embeddings) -> dict:
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    names = ["sample", "last_step_and_decode_and_reward", "backward", "optimizer"]
    clocks, rewards = [], []
    for _ in range(1 + arguments.steps):
        clock = [now(arguments.device)]
        if arguments.drtune:
            clock.append(clock[0])
            latents = drtune(unet, scheduler, scheduler.timesteps, noise(), context, arguments.drtune)
        else:
            latents = sample(unet, scheduler, scheduler.timesteps[:-1], noise(), context)
            clock.append(now(arguments.device))
            latents = denoise(unet, scheduler, scheduler.timesteps[-1], latents, context)
        reward = rewards_of(vae, tower, embeddings, latents).mean()
        clock.append(now(arguments.device))
        (-reward).backward()
        clock.append(now(arguments.device))
        torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimizer.step()
        optimizer.zero_grad()
        clock.append(now(arguments.device))
        clocks.append(clock)
        rewards.append(reward.item())
    clocks = torch.tensor(clocks[1:], dtype=torch.float64)
    return {
        "seconds_per_step": (clocks[:, -1] - clocks[:, 0]).tolist(),
        "rewards": rewards[1:],
        "phases": dict(zip(names, clocks.diff(dim=1).mean(0).tolist(), strict=True)),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="diffusers folder")
    parser.add_argument("clip", type=Path, help="OpenAI-layout .safetensors")
    parser.add_argument("mode", choices=["train", "sample"])
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--sampling-steps", type=int, default=10)
    parser.add_argument("--steps", type=int, default=3, help="timed steps of train")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds of sample")
    parser.add_argument("--checkpointing", action="store_true", help="gradient checkpointing, of the UNet and the VAE")
    parser.add_argument("--drtune", type=int, default=0, metavar="K", help="K steps of DRTune instead of DRaFT-1")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(arguments.batch)]
    kind = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    context = encode_prompts(arguments.folder, prompts).to(arguments.device)
    training, reward = arguments.mode == "train", ()
    if training:
        vae = AutoencoderKL.from_pretrained(arguments.folder / "vae", torch_dtype=kind).requires_grad_(False)
        tower, embeddings = load_reward(arguments.clip, prompts)
        reward = (vae.to(arguments.device), tower.to(arguments.device), embeddings.to(arguments.device))
    gc.collect()  # the text towers go before the UNet comes
    unet = load_unet(arguments.folder, arguments.rank, random_b=not training, kind=kind).to(arguments.device)
    if arguments.checkpointing and training:
        unet.train().enable_gradient_checkpointing()
        vae.train().enable_gradient_checkpointing()
    scheduler = DDIMScheduler.from_pretrained(arguments.folder / "scheduler")
    scheduler.set_timesteps(arguments.sampling_steps)
    after_load = peak_rss_bytes()

    levels = len(AutoencoderKL.load_config(arguments.folder / "vae")["block_out_channels"])
    side = arguments.side // 2 ** (levels - 1)
    noise = lambda: torch.randn(arguments.batch, unet.config.in_channels, side, side, device=arguments.device)
    run = time_training if training else time_sampling
    with torch.autocast(arguments.device, torch.bfloat16, enabled=arguments.device == "cuda"):
        result = run(arguments, unet, scheduler, context, noise, *reward)
    memory = {"peak_rss_bytes": peak_rss_bytes(), "peak_rss_after_load_bytes": after_load}
    memory["peak_cuda_bytes"] = torch.cuda.max_memory_allocated() if arguments.device == "cuda" else None
    print(json.dumps(result | memory | {"threads": torch.get_num_threads()}))
