"""Times the UNet's forward pass or the VAE's decoder of a diffusers folder in PyTorch's eager mode, in float32,
on CUDA in bfloat16.

    python benches/peers/stable_diffusion.py FOLDER unet|vae [--device cuda]

Inputs as in benches/stable_diffusion.rs. Prints one JSON line: seconds by the side of the latents, the best of three
runs (on CUDA of thirty) after one (ten) that does not count. With `pictures`: a whole pipeline's seconds a picture of 512²,
50 guided DDIM steps, after one that does not count, and its peak_cuda_bytes.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

parser = argparse.ArgumentParser()
parser.add_argument("folder", type=Path)
parser.add_argument("part", choices=["unet", "vae", "pictures"])
parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
parser.add_argument("--threads", type=int, default=2)
arguments = parser.parse_args()
torch.set_num_threads(arguments.threads)
device, cuda = arguments.device, arguments.device == "cuda"
kind = torch.bfloat16 if cuda else torch.float32
random = lambda *shape: torch.randn(*shape, device=device, dtype=kind)

part = arguments.folder / arguments.part
if arguments.part == "unet":
    unet = UNet2DConditionModel.from_pretrained(part, torch_dtype=kind).eval().to(device)
    context = random(2, 77, unet.config.cross_attention_dim)
    sides, run = [16, 32, 64], lambda side: unet(random(2, 4, side, side), 481, context)
elif arguments.part == "vae":
    vae = AutoencoderKL.from_pretrained(part, torch_dtype=kind).eval().to(device)
    sides, run = [64 if cuda else 32], lambda side: vae.decode(random(1, 4, side, side))
else:
    pipeline = StableDiffusionPipeline.from_pretrained(arguments.folder, torch_dtype=kind, safety_checker=None).to(device)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    sides, run = [64], lambda side: pipeline("a lighthouse", num_inference_steps=50, height=8 * side, width=8 * side)


def now() -> float:
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


result = {}
warm_up, timed = (10, 30) if cuda and arguments.part != "pictures" else (1, 3)
with torch.no_grad():
    for side in sides:
        rounds = []
        for _ in range(warm_up + timed):
            start = now()
            run(side)
            rounds.append(now() - start)
        result[str(side)] = min(rounds[warm_up:])
result["peak_cuda_bytes"] = torch.cuda.max_memory_allocated() if cuda else None
print(json.dumps(result))
