"""Times steps of Diffusion-DPO in PyTorch, diffusers and PEFT, on a CPU in float32, eager mode.

    python benches/peers/dpo.py FOLDER --side 128 --pairs 2 --steps 3 [--encode]

FOLDER is a diffusers folder of Stable Diffusion. The step is written out here after diffusers' example
(https://github.com/huggingface/diffusers/blob/071190da/examples/research_projects/diffusion_dpo/train_diffusion_dpo.py): the
same noise and the same time step for winner and loser, the loss of the LoRA's UNet against that of the same UNet with the LoRA
disabled, AdamW. Data loading and accelerate are left out: pictures are random pixels in memory. With --encode each step
encodes pictures by the VAE and prompts by the text encoder, as the example does; without it, both come from before the clock.
Prints one JSON line: seconds of each step after one that does not count, peak_rss_bytes, threads.
"""

import argparse
import gc
import json
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from models import load_unet, peak_rss_bytes
from torch.nn import functional
from transformers import CLIPTextModel, CLIPTokenizer

PROMPTS = ["a photo of a red fox in the snow", "a castle on a hill, oil painting"]
BETA, LEARNING_RATE, WEIGHT_DECAY, MAX_GRADIENT_NORM = 5000.0, 1e-4, 1e-2, 1.0


@torch.no_grad()
def latents_of(vae, pixels):
    """Latents of winners, then of losers, from `pixels` [P, 6, H, W]."""
    return vae.encode(torch.cat(pixels.chunk(2, dim=1))).latent_dist.sample() * vae.config.scaling_factor


@torch.no_grad()
def embeddings_of(encoder, tokens):
    return encoder(tokens)[0].repeat(2, 1, 1)


def losses_of(unet, noisy, timesteps, context, target):
    """The loss of each winner and of each loser."""
    prediction = unet(noisy, timesteps, context, return_dict=False)[0]
    return functional.mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3)).chunk(2)


def one_step(unet, scheduler, latents, context, parameters, optimizer):
    noise = torch.randn_like(latents).chunk(2)[0].repeat(2, 1, 1, 1)
    timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(latents) // 2,)).repeat(2)
    noisy = scheduler.add_noise(latents, noise, timesteps)
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, timesteps) if velocity else noise

    winners, losers = losses_of(unet, noisy, timesteps, context, target)
    unet.disable_adapters()
    with torch.no_grad():
        reference_winners, reference_losers = losses_of(unet, noisy, timesteps, context, target)
    unet.enable_adapters()
    inside = 0.5 * BETA * ((reference_winners - reference_losers) - (winners - losers))
    (-functional.logsigmoid(inside).mean()).backward()
    torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="diffusers folder")
    parser.add_argument("--side", type=int, default=128, help="pixels")
    parser.add_argument("--pairs", type=int, default=2)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3, help="timed steps")
    parser.add_argument("--encode", action="store_true", help="pictures and prompts are encoded in every step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    prompts = [PROMPTS[pair % len(PROMPTS)] for pair in range(arguments.pairs)]
    tokenizer = CLIPTokenizer.from_pretrained(arguments.folder / "tokenizer")
    length = tokenizer.model_max_length
    tokens = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
    encoder = CLIPTextModel.from_pretrained(arguments.folder / "text_encoder", dtype=torch.float32).requires_grad_(False)
    vae = AutoencoderKL.from_pretrained(arguments.folder / "vae", torch_dtype=torch.float32).requires_grad_(False)
    pixels = torch.rand(arguments.pairs, 6, arguments.side, arguments.side) * 2 - 1
    latents, context = latents_of(vae, pixels), embeddings_of(encoder, tokens)
    if not arguments.encode:
        del encoder, vae
        gc.collect()  # before the UNet comes
    unet = load_unet(arguments.folder, arguments.rank, random_b=False, kind=torch.float32).train()
    scheduler = DDPMScheduler.from_pretrained(arguments.folder / "scheduler")
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    seconds = []
    for _ in range(1 + arguments.steps):
        start = time.perf_counter()
        if arguments.encode:
            latents, context = latents_of(vae, pixels), embeddings_of(encoder, tokens)
        one_step(unet, scheduler, latents, context, parameters, optimizer)
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"seconds": seconds[1:], "peak_rss_bytes": peak_rss_bytes(), "threads": torch.get_num_threads()}))
